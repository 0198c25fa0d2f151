//! How fast attention is, as a share of what this core can multiply.
//!
//! `cargo bench --bench attention -- [heads=12] [len=512] [dim=64] [causal] [i8] [threads=1]`
//!
//! Calls and a multiply-add probe of the same instruction set alternate in one process, so that a
//! noisy or throttled machine slows both: the percentage is what can be compared, not the time.
//! The error against f64 is that of the very output that was timed.

use std::hint::black_box;
use std::time::{Duration, Instant};

use flash_attention::dtype::Dtype;
use flash_attention::kernel;
use flash_attention::machine::Machine;
use flash_attention::plan::Plan;
use flash_attention::problem::{Problem, Scales, Semantics, Tensors};
use flash_attention::view::{Element, Layout, View, ViewMut};
use flash_attention::{reference, schedule};

fn main() {
    let mut case = Case { heads: 12, len: 512, dim: 64, threads: 1, causal: false };
    let mut integers = false;
    for arg in std::env::args().skip(1) {
        let (name, value) = arg.split_once('=').unwrap_or((&arg, ""));
        let number = || value.parse().unwrap_or_else(|_| usage(&arg));
        match name {
            "heads" => case.heads = number(),
            "len" => case.len = number(),
            "dim" => case.dim = number(),
            "threads" => case.threads = number(),
            "causal" => case.causal = true,
            "i8" => integers = true,
            "--bench" => {}
            _ => usage(&arg),
        }
    }
    println!("{:>8} {:>12} {:>10} {:>7} {:>9}  FMA peak", "row", "median us", "GFLOP/s", "peak", "max error");
    if integers {
        case.run::<i8>(Scales { q: 0.03, k: 0.03, v: 0.03 }, |x| (x / 0.03).clamp(-127.0, 127.0) as i8);
    } else {
        case.run::<f32>(Scales::default(), |x| x);
    }
}

fn usage(arg: &str) -> ! {
    eprintln!("not understood: {arg}\nusage: [heads=N] [len=N] [dim=N] [threads=N] [causal] [i8]");
    std::process::exit(2)
}

struct Case {
    heads: usize,
    len: usize,
    dim: usize,
    threads: usize,
    causal: bool,
}

impl Case {
    fn run<T: Element>(&self, scales: Scales, make: impl Fn(f32) -> T) {
        let elements = self.heads * self.len * self.dim;
        let [q, k, v] =
            [1, 2, 3].map(|seed| normal(elements, seed).into_iter().map(&make).collect::<Vec<T>>());
        let mut out = vec![0f32; elements];
        let layout = |dtype| Layout::dense(dtype, self.heads, self.len, self.dim).unwrap();
        let semantics = Semantics { scales, ..Semantics::with_scale((self.dim as f32).sqrt().recip()) };
        let semantics = if self.causal { semantics.causal(self.len, self.len) } else { semantics };
        let pairs = if self.causal { self.len * (self.len + 1) / 2 } else { self.len * self.len };
        let flops = (4 * self.heads * pairs * self.dim) as f64;

        for row in kernel::available().filter(|row| row.dtype() == T::DTYPE) {
            let view = |x| View::of(x, layout(T::DTYPE)).unwrap();
            let tensors = Tensors {
                q: view(&q),
                k: view(&k),
                v: view(&v),
                o: ViewMut::of(&mut out, layout(Dtype::F32)).unwrap(),
                lse: None,
            };
            let mut problem = Problem::new(tensors, semantics).unwrap();
            let plan = Plan::new(problem.shape(), row, Machine::get(), self.threads).unwrap();
            let (mut times, mut peaks) = (Vec::new(), Vec::new());
            let begin = Instant::now();
            while times.len() < 7 || begin.elapsed() < Duration::from_secs(2) {
                peaks.push(probe(row.lanes()));
                let start = Instant::now();
                schedule::run(&mut problem, &plan).unwrap();
                times.push(start.elapsed().as_secs_f64());
            }
            let (time, peak) = (median(&mut times), median(&mut peaks));
            let exact = (flops < 2e10).then(|| reference::attention(&problem).o);
            let error = exact.map_or(f64::NAN, |exact| error(&exact, &out));
            println!(
                "{:>8} {:>12.1} {:>10.1} {:>6.1}% {:>9.1e}  {:.1} GFLOP/s",
                row.isa().to_string_lossy(),
                time * 1e6,
                flops / time / 1e9,
                100.0 * flops / time / peak / self.threads as f64,
                error,
                peak / 1e9,
            );
        }
    }
}

fn error(exact: &[f64], out: &[f32]) -> f64 {
    out.iter().zip(exact).map(|(&x, y)| (f64::from(x) - y).abs()).fold(0.0, f64::max)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Normally distributed numbers (Box and Muller 1958 over a 64-bit congruential generator).
fn normal(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f64 + 0.5) / f64::from(1 << 24)
    };
    (0..n)
        .map(|_| ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32)
        .collect()
}

/// FLOP/s of independent multiply-adds in vectors of `lanes`; of multiply, then add, without FMA.
fn probe(lanes: usize) -> f64 {
    const STEPS: usize = 20_000;
    let start = Instant::now();
    let chains = match lanes {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a row with this many lanes is only available where its features are.
        16 => unsafe { fma_avx512(STEPS) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        8 => unsafe { fma_avx2(STEPS) },
        _ => multiply_add(STEPS),
    };
    (2 * chains * lanes * STEPS) as f64 / start.elapsed().as_secs_f64()
}

macro_rules! probe_of {
    ($name:ident, $chains:literal, $features:literal, $splat:ident, $fma:ident) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        fn $name(steps: usize) -> usize {
            use core::arch::x86_64::*;
            let (a, b) = ($splat(black_box(0.999)), $splat(black_box(0.001)));
            let mut sums = [b; $chains];
            for _ in 0..steps {
                for sum in &mut sums {
                    *sum = $fma(*sum, a, b);
                }
            }
            black_box(sums);
            $chains
        }
    };
}
probe_of!(fma_avx512, 16, "avx512f", _mm512_set1_ps, _mm512_fmadd_ps);
probe_of!(fma_avx2, 12, "avx2,fma", _mm256_set1_ps, _mm256_fmadd_ps);

fn multiply_add(steps: usize) -> usize {
    let (a, b) = (black_box(0.999), black_box(0.001));
    let mut sums = [[b; 4]; 10];
    for _ in 0..steps {
        for sum in sums.as_flattened_mut() {
            *sum = *sum * a + b;
        }
    }
    black_box(sums);
    10
}
