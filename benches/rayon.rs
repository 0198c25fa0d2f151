//! The same calls on the library's own threads and on rayon's, behind each other and with pauses.
//!
//!     cargo bench -p benches --features rayon --bench rayon
//!
//! Median microseconds of a call. Pauses are what a program does between calls: threads that wait
//! for the next one fall asleep meanwhile.

use std::hint;
use std::time::{Duration, Instant};

use flash_attention::{Attention, Pool, Tensor, TensorMut, Workspace};

const DIM: usize = 128;
const CALLS: usize = 200;

/// Waits without sleeping, as a program that computes.
fn pause(duration: Duration) {
    let start = Instant::now();
    while start.elapsed() < duration {
        hint::spin_loop();
    }
}

/// Median time of a call of `rows` query rows on `keys` keys.
fn time([rows, keys]: [usize; 2], pool: &Pool, between: Duration) -> f64 {
    let data = |n: usize| (0..n).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<f32>>();
    let (q, k, v) = (data(rows * DIM), data(keys * DIM), data(keys * DIM));
    let mut out = vec![0.0; rows * DIM];
    let mut workspace = Workspace::new();
    let mut attention = Attention::new(
        Tensor::head_first(&q, [1, 1, rows, DIM]),
        Tensor::head_first(&k, [1, 1, keys, DIM]),
        Tensor::head_first(&v, [1, 1, keys, DIM]),
        TensorMut::head_first(&mut out, [1, 1, rows, DIM]),
    );
    attention.reserve(&mut workspace, pool).expect("memory");
    let mut times: Vec<f64> = (0..CALLS)
        .map(|_| {
            pause(between);
            let start = Instant::now();
            attention.run(&mut workspace, pool).expect("a result");
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[CALLS / 2]
}

fn main() {
    let threads = rayon::current_num_threads();
    let pools = [
        ("one thread", Pool::default()),
        ("ours", Pool::new(threads).expect("threads")),
        ("rayon's", Pool::rayon_global()),
    ];
    println!("f32, {DIM} elements, one head, {threads} threads; microseconds a call");
    println!(
        "| query rows x keys | pause, us |{}",
        pools.each_ref().map(|(name, _)| format!(" {name} |")).concat()
    );
    println!("|---|---|---|---|---|");
    for shape in [[1, 2048], [1, 4096], [1, 8192], [1, 32_768], [64, 2048], [512, 512]] {
        for between in [0, 20, 200, 2000] {
            let between_calls = Duration::from_micros(between);
            // In turns, so that a noisy neighbour disturbs all of them.
            let runs: [[f64; 3]; 3] =
                std::array::from_fn(|_| pools.each_ref().map(|(_, pool)| time(shape, pool, between_calls)));
            let best = (0..3).map(|i| runs.iter().map(|run| run[i]).fold(f64::INFINITY, f64::min));
            let cells: String = best.map(|us| format!(" {us:.1} |")).collect();
            println!("| {} x {} | {between} |{cells}", shape[0], shape[1]);
        }
    }
}
