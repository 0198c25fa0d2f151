//! The C boundary: arguments in, a status out. The only `extern "C"` functions are here.
//!
//! The doc comments of public items become `include/flash_attention.h` and are written for its
//! readers; remarks for readers of this code are plain comments.

#![allow(non_camel_case_types, reason = "the names are the C names")]
#![allow(rustdoc::broken_intra_doc_links, reason = "what looks like links there are indices: q[i][d]")]
#![allow(clippy::missing_safety_doc, reason = "the C documentation states the contract of pointers")]

mod abi;
pub mod append;
pub mod attention;
pub mod config;
mod describe;
mod doubts;
pub mod fixed;
pub mod forward;
pub mod isa;
pub mod merge;
pub mod plan;
pub mod pool;
pub mod quantize;
pub mod run;
pub mod scratch;
pub mod sparse;
pub mod status;
pub mod tensor;
pub mod version;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Error;
use crate::pool::{Concurrency, Threads};
use crate::simd::fp_env::FpEnv;
use status::fa_status;

/// Runs the body of a C function. Errors become statuses, and so do panics, without a word on
/// stderr. The body leaves no state behind that a panic could break. It computes in the default
/// floating-point environment, and so do pool threads that it creates: a thread begins in its
/// creator's (POSIX).
fn guard(body: impl FnOnce() -> Result<(), Error>) -> fa_status {
    install_hook();
    let silence = Silence::begin();
    let result = FpEnv::with_default(|| catch_unwind(AssertUnwindSafe(body)));
    drop(silence);
    match result {
        Ok(Ok(())) => fa_status::FA_OK,
        Ok(Err(error)) => error.into(),
        Err(panic) => {
            // Dropping a payload can itself panic; a leaked message cannot.
            std::mem::forget(panic);
            fa_status::FA_ERR_INTERNAL
        }
    }
}

thread_local! {
    /// Whether this thread works for a C function. Const and without a destructor, so that
    /// unloading the library cannot leave one behind.
    static SILENT: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, panics of this thread print nothing.
struct Silence {
    outer: bool,
}

impl Silence {
    fn begin() -> Silence {
        Silence { outer: SILENT.replace(true) }
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        SILENT.set(self.outer);
    }
}

/// Threads that print nothing when a task panics which they run for a C function.
struct Quiet<'t>(&'t dyn Threads);

impl Threads for Quiet<'_> {
    fn run(&self, concurrency: Concurrency, task: &(dyn Fn() + Sync)) {
        self.0.run(concurrency, &|| {
            let _silence = Silence::begin();
            task();
        });
    }
}

type PanicHook = Box<dyn Fn(&PanicHookInfo) + Sync + Send>;

/// Wraps the panic hook: panics that `guard` turns into a status print nothing, all others go where
/// they went before. Once a process, at the first C function: a Rust program that calls none keeps
/// its hook.
fn install_hook() {
    static DONE: AtomicBool = AtomicBool::new(false);
    if DONE.load(Ordering::Relaxed) {
        return;
    }
    // `take_hook` itself panics on a panicking thread (a destructor that calls us while a Rust
    // caller unwinds): then a later call does it.
    if std::thread::panicking() || DONE.swap(true, Ordering::Relaxed) {
        return;
    }
    // A closure without captures, so that its box is no allocation.
    static BEFORE: OnceLock<PanicHook> = OnceLock::new();
    let _ = BEFORE.set(std::panic::take_hook());
    std::panic::set_hook(Box::new(|info| {
        let is_silent = SILENT.try_with(Cell::get).unwrap_or(false);
        if !is_silent && let Some(before) = BEFORE.get() {
            before(info);
        }
    }));
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::pool::{Own, THREAD_NAME};

    fn on_pool_thread() -> bool {
        std::thread::current().name().is_some_and(|name| name.starts_with(THREAD_NAME))
    }

    #[test]
    fn a_panic_becomes_a_status() {
        assert_eq!(guard(|| panic!("planted")), fa_status::FA_ERR_INTERNAL);
        assert_eq!(guard(|| Ok(())), fa_status::FA_OK);
        assert_eq!(guard(|| Err(Error::Shape)), fa_status::FA_ERR_SHAPE);
    }

    #[test]
    fn a_panic_on_a_pool_thread_becomes_a_status_and_the_pool_lives_on() {
        let _slot = crate::pool::calls::for_a_test();
        for on_which in [true, false, true] {
            // The caller waits for one of the pool's.
            let came = AtomicBool::new(false);
            let planted = || {
                if on_pool_thread() {
                    came.store(true, Ordering::Relaxed);
                } else {
                    while !came.load(Ordering::Relaxed) {
                        std::thread::yield_now();
                    }
                }
                assert!(on_pool_thread() != on_which, "planted");
            };
            let status = guard(|| {
                Quiet(&Own).run(Concurrency::of(4), &planted);
                Ok(())
            });
            assert_eq!(status, fa_status::FA_ERR_INTERNAL);
        }
        let status = guard(|| {
            Quiet(&Own).run(Concurrency::of(2), &|| ());
            Ok(())
        });
        assert_eq!(status, fa_status::FA_OK);
    }

    /// Threads of a caller's: as many as there are tasks.
    unsafe extern "C" fn threads_of_the_caller(
        _ctx: *mut std::ffi::c_void,
        n: usize,
        task: pool::fa_task,
        arg: *mut std::ffi::c_void,
    ) {
        let (task, arg) = (task.expect("a task"), arg.addr());
        std::thread::scope(|scope| {
            for i in 0..n {
                // SAFETY: the library's task, with what it gave.
                scope.spawn(move || unsafe { task(std::ptr::without_provenance_mut(arg), i) });
            }
        });
    }

    unsafe extern "C" fn width_of_4(_ctx: *mut std::ffi::c_void) -> i32 {
        4
    }

    /// Attention of many parts on a pool, its status and output.
    fn attend(pool: *const pool::fa_pool) -> (fa_status, Vec<f32>) {
        const DIM: usize = crate::schedule::planted::DIM;
        let (rows, x) = (400, vec![0.25f32; 400 * DIM]);
        let mut out = vec![7.0f32; rows * DIM];
        let tensor = |data: *const f32| tensor::fa_tensor {
            data: data.cast_mut().cast(),
            stride: [0, 0, 4 * DIM as i64],
            ..tensor::fa_tensor::NONE
        };
        let mut a = attention::EMPTY;
        (a.batch, a.heads_q, a.heads_kv) = (1, 1, 1);
        (a.len_q, a.len_kv, a.dim_qk, a.dim_v) = (rows as i64, rows as i64, DIM as i64, DIM as i64);
        (a.q, a.k, a.v, a.o) =
            (tensor(x.as_ptr()), tensor(x.as_ptr()), tensor(x.as_ptr()), tensor(out.as_ptr()));
        a.o.data = out.as_mut_ptr().cast();
        a.block_q = 16;
        let mut bytes = 0;
        // SAFETY: tensors of these sizes.
        let status = unsafe { run::fa_attention_workspace(&a, 4, &mut bytes) };
        assert_eq!(status, fa_status::FA_OK);
        let mut ws = vec![0u8; bytes];
        // SAFETY: tensors of these sizes, and a workspace of the size that was asked for.
        let status = unsafe { run::fa_attention_run(&a, ws.as_mut_ptr().cast(), bytes, pool) };
        (status, out)
    }

    /// One panic in each part in turn, on whatever thread has it: a status, and the next call is
    /// right.
    #[test]
    fn a_panic_in_the_midst_of_work_becomes_a_status_on_every_kind_of_pool() {
        let _slot = crate::pool::calls::for_a_test();
        let mut made = std::ptr::null_mut();
        // SAFETY: a place for the pool.
        assert_eq!(unsafe { pool::fa_pool_create(4, &mut made) }, fa_status::FA_OK);
        let lent = pool::fa_pool {
            struct_size: size_of::<pool::fa_pool>(),
            ctx: std::ptr::null_mut(),
            width: Some(width_of_4),
            parallel_for: Some(threads_of_the_caller),
        };
        for pool in [std::ptr::null(), made.cast_const(), &raw const lent] {
            let (status, want) = attend(pool);
            assert!(status == fa_status::FA_OK && want.iter().all(|&x| x == 0.25), "{status:?}");
            for after in [0, 1, 2, 5, 9] {
                crate::schedule::planted::plant(after);
                let (status, _) = attend(pool);
                assert_eq!(status, fa_status::FA_ERR_INTERNAL, "after {after}");
                crate::schedule::planted::plant(usize::MAX);
                let (status, out) = attend(pool);
                assert!(status == fa_status::FA_OK && out == want, "after {after}: {status:?}");
            }
        }
        // SAFETY: made above, and nobody uses it.
        unsafe { pool::fa_pool_destroy(made) };
    }

    /// In a process of its own, whose stderr can be read. Panics in C functions must not be in it;
    /// panics outside of them must, those of pool threads that work for a Rust caller included.
    #[test]
    fn caught_panics_print_nothing() {
        let child = |test: &str| {
            let exe = std::env::current_exe().expect("a test binary");
            let args = ["--exact", test, "--ignored", "--nocapture", "--test-threads=1"];
            let output = Command::new(exe).args(args).output().expect("the test binary runs");
            String::from_utf8_lossy(&output.stderr).into_owned()
        };
        assert_eq!(child("capi::tests::child_with_caught_panics"), "");
        let own = child("capi::tests::child_with_panics_of_its_own");
        assert!(own.contains("not ours"), "{own}");
        let on_pool_threads = own.matches("planted for Rust").count();
        assert_eq!(on_pool_threads, 1, "{own}");
    }

    #[test]
    #[ignore = "run by caught_panics_print_nothing"]
    fn child_with_caught_panics() {
        a_panic_becomes_a_status();
        a_panic_on_a_pool_thread_becomes_a_status_and_the_pool_lives_on();
        a_panic_in_the_midst_of_work_becomes_a_status_on_every_kind_of_pool();
    }

    #[test]
    #[ignore = "run by caught_panics_print_nothing"]
    fn child_with_panics_of_its_own() {
        child_with_caught_panics();
        let came = AtomicBool::new(false);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            Own.run(Concurrency::of(2), &|| {
                if on_pool_thread() {
                    came.store(true, Ordering::Relaxed);
                    panic!("planted for Rust");
                }
                while !came.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
            });
        }));
        assert!(caught.is_err());
        panic!("not ours");
    }
}
