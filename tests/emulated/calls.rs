//! Whole calls on tiles: what they leave in threads, signals that interrupt them, forked children.
//! The tiles are emulated, or the machine's own.

use std::mem::zeroed;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use flash_attention::dtype::Dtype;
use flash_attention::kernel::Path;
use flash_attention::pool::{Caller, Concurrency, Threads};
use flash_attention::prepared::Prepared;
use flash_attention::problem::{Problem, Semantics, Tensors};
use flash_attention::view::{Layout, View, ViewMut};

use crate::child::in_a_child;
use crate::common::{KernelPath, Random, kernels};
use crate::store::encode;
use crate::{amx, emulate};

/// A kernel of bf16 on tiles, if there is one here.
fn on_tiles() -> Option<KernelPath> {
    kernels(Dtype::Bf16).find(|kernel| kernel.kernel.isa() == c"amx" && kernel.path == Path::Prefill)
}

/// Prefill of several query tiles for `threads` threads; its bits.
fn compute(kernel: KernelPath, threads: usize, on: &dyn Threads) -> Vec<u32> {
    const HEADS: usize = 4;
    let (rows, keys, dim) = (100, 250, 48);
    let mut random = Random(3);
    let [q, k, v] = [rows, keys, keys].map(|n| encode(Dtype::Bf16, &random.normals(HEADS * n * dim), dim).0);
    let mut o = vec![0f32; HEADS * rows * dim];
    // SAFETY: as many numbers, which outlive the problem.
    let [q, k, v] = [(&q, rows), (&k, keys), (&v, keys)].map(|(data, rows)| unsafe {
        View::new(data.as_ptr(), Layout::dense(Dtype::Bf16, HEADS, rows, dim).unwrap()).unwrap()
    });
    let o_view = ViewMut::of(&mut o, Layout::dense(Dtype::F32, HEADS, rows, dim).unwrap()).unwrap();
    let semantics = Semantics { block_q: 16, ..Semantics::with_scale(0.2) };
    let mut problem = Problem::new(Tensors::new(q, k, v, o_view), semantics).unwrap();
    let plan = kernel.plan(problem.shape(), threads).unwrap();
    Prepared::with_plan(&mut problem, plan).run_allocating(on).unwrap();
    o.iter().map(|x| x.to_bits()).collect()
}

/// Threads of a caller's, each of which looks at its tiles when it has done its part.
#[derive(Default)]
struct Looking {
    /// Threads that have executed instructions, where they are counted.
    busy: AtomicUsize,
}

impl Threads for Looking {
    fn run(&self, concurrency: Concurrency, task: &(dyn Fn() + Sync)) {
        thread::scope(|scope| {
            for _ in 0..concurrency.threads {
                scope.spawn(|| {
                    let before = emulate::own_count();
                    task();
                    self.busy.fetch_add(usize::from(emulate::own_count() > before), Ordering::Relaxed);
                    assert!(amx::are_released(), "tiles are left");
                });
            }
        });
    }
}

#[test]
fn every_thread_releases_its_tiles() {
    let Some(kernel) = on_tiles() else { return };
    let alone = compute(kernel, 1, &Caller);
    assert!(amx::are_released());
    let threads = Looking::default();
    for _ in 0..10 {
        assert!(compute(kernel, 3, &threads) == alone);
    }
    assert!(!emulate::emulates_amx() || threads.busy.load(Ordering::Relaxed) > 10, "one thread had all");
}

static INTERRUPTED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count(_signal: i32) {
    INTERRUPTED.fetch_add(1, Ordering::Relaxed);
}

/// A handler that runs in the middle of a call, wherever that is, changes nothing of it.
#[test]
fn signals_may_interrupt_a_call() {
    let Some(kernel) = on_tiles() else { return };
    let expected = compute(kernel, 1, &Caller);
    // SAFETY: the handler adds to a number. No other test uses this signal.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = count as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &action, ptr::null_mut()), 0);
    }
    // SAFETY: asks for the calling thread.
    let target = unsafe { libc::pthread_self() };
    let (mut within, is_done) = (0, AtomicBool::new(false));
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            // Not without end, if the other thread panics.
            for _ in 0..100_000 {
                if is_done.load(Ordering::Relaxed) {
                    break;
                }
                // SAFETY: the thread waits for this one.
                assert_eq!(unsafe { libc::pthread_kill(target, libc::SIGUSR1) }, 0);
                thread::sleep(std::time::Duration::from_micros(50));
            }
        });
        while within < 20 && !sender.is_finished() {
            let before = INTERRUPTED.load(Ordering::Relaxed);
            assert!(compute(kernel, 1, &Caller) == expected);
            assert!(amx::are_released());
            within += INTERRUPTED.load(Ordering::Relaxed) - before;
        }
        is_done.store(true, Ordering::Relaxed);
    });
    assert!(within >= 20);
}

/// A child has its parent's permission, and tiles of its own.
#[test]
fn a_forked_child_computes() {
    let Some(kernel) = on_tiles() else { return };
    let expected = compute(kernel, 1, &Caller);
    assert!(in_a_child(|| compute(kernel, 1, &Caller) == expected && amx::are_released()));
    assert!(!in_a_child(|| compute(kernel, 1, &Caller) != expected), "what a child says counts");
    assert!(compute(kernel, 1, &Caller) == expected);
}
