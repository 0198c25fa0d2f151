//! Calls on threads of rayon: the bits of any other threads, and nothing that waits for ever.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use flash_attention::pool::rayon::Rayon;
use flash_attention::pool::{Concurrency, Threads};
use flash_attention::{Attention, Pool, Tensor, TensorMut, Workspace};

fn threads(n: usize) -> Arc<rayon::ThreadPool> {
    Arc::new(rayon::ThreadPoolBuilder::new().num_threads(n).build().expect("threads"))
}

/// Waits for a condition, but not for ever.
fn until(is_met: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_met() {
        assert!(start.elapsed() < Duration::from_secs(60), "in vain");
        thread::yield_now();
    }
}

/// Query rows, keys, heads, elements: prefill in many tiles, decode in many splits, and almost
/// nothing.
const SHAPES: [[usize; 4]; 3] = [[300, 300, 3, 64], [1, 20_000, 1, 64], [1, 3, 1, 16]];

/// The bits of an output.
fn output([rows, keys, heads, dim]: [usize; 4], pool: &Pool) -> Vec<u32> {
    let data = |n: usize, a: f32| (0..n).map(|i| (i as f32 * a).sin()).collect::<Vec<f32>>();
    let q = data(rows * heads * dim, 0.3);
    let (k, v) = (data(keys * heads * dim, 0.7), data(keys * heads * dim, 0.9));
    let mut out = vec![0.0; rows * heads * dim];
    let mut workspace = Workspace::new();
    let mut attention = Attention::new(
        Tensor::token_first(&q, [1, rows, heads, dim]),
        Tensor::token_first(&k, [1, keys, heads, dim]),
        Tensor::token_first(&v, [1, keys, heads, dim]),
        TensorMut::token_first(&mut out, [1, rows, heads, dim]),
    );
    attention.reserve(&mut workspace, pool).expect("memory");
    attention.run(&mut workspace, pool).expect("a result");
    out.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn the_bits_are_those_of_one_thread() {
    let global = Pool::rayon_global();
    assert_eq!(global.threads(), rayon::current_num_threads().min(256));
    for shape in SHAPES {
        let expected = output(shape, &Pool::default());
        for n in [1, 2, 5] {
            let pool = Pool::from_rayon(threads(n));
            assert_eq!(pool.threads(), n);
            assert_eq!(output(shape, &pool), expected, "{shape:?}, {n} threads");
        }
        assert_eq!(output(shape, &global), expected, "{shape:?}, global threads");
    }
}

/// A thread of the pool may be the calling one, even the only one, and all of them at the same
/// time.
#[test]
fn callers_may_be_threads_of_the_pool() {
    for n in [1, 3] {
        let (own, shape) = (threads(n), SHAPES[0]);
        let pool = Pool::from_rayon(own.clone());
        let expected = output(shape, &Pool::default());
        own.install(|| assert_eq!(output(shape, &pool), expected));
        own.scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|_| assert_eq!(output(shape, &pool), expected));
            }
        });
    }
}

#[test]
fn several_threads_take_part() {
    for rayon in [Rayon::Pool(threads(3)), Rayon::Pool(threads(7))] {
        let here = AtomicUsize::new(0);
        rayon.run(Concurrency::of(3), &|| {
            here.fetch_add(1, Ordering::Relaxed);
            until(|| here.load(Ordering::Relaxed) == 3);
        });
        assert_eq!(here.into_inner(), 3);
    }
}

/// Nor is a thread waited for that is busy elsewhere.
#[test]
fn a_busy_pool_does_not_hold_up_a_call() {
    let own = threads(2);
    let (busy, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    for _ in 0..2 {
        let (busy, go) = (busy.clone(), go.clone());
        own.spawn(move || {
            busy.fetch_add(1, Ordering::Relaxed);
            until(|| go.load(Ordering::Relaxed));
        });
    }
    until(|| busy.load(Ordering::Relaxed) == 2);
    let pool = Pool::from_rayon(own);
    for shape in SHAPES {
        assert_eq!(output(shape, &pool), output(shape, &Pool::default()));
    }
    go.store(true, Ordering::Relaxed);
}

#[test]
fn a_panic_reaches_the_caller_and_leaves_the_pool_usable() {
    let own = threads(2);
    let rayon = Rayon::Pool(own.clone());
    let calls = AtomicUsize::new(0);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        rayon.run(Concurrency::of(2), &|| {
            let first = calls.fetch_add(1, Ordering::Relaxed) == 0;
            until(|| calls.load(Ordering::Relaxed) == 2);
            assert!(!first, "planted");
        });
    }));
    assert!(panicked.is_err());
    assert_eq!(output(SHAPES[0], &Pool::from_rayon(own)), output(SHAPES[0], &Pool::default()));
}
