//! The panic hook of a Rust program is its own: only C functions wrap it. One test, as hooks are
//! the process's.

use std::panic::{self, PanicHookInfo};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use flash_attention::capi::version::{FA_ABI_VERSION, fa_abi_version};
use flash_attention::capi::{config, status};
use flash_attention::{Attention, Pool, Tensor, TensorMut, Workspace};

type PanicHook = Box<dyn Fn(&PanicHookInfo<'_>) + Send + Sync>;

fn address(hook: &PanicHook) -> usize {
    (&raw const **hook).cast::<()>().addr()
}

/// One call of each size, on the calling thread and with threads of a pool.
fn attend() {
    for threads in [1, 3] {
        for len in [1, 2, 300] {
            let (dim, pool, mut workspace) = (32, Pool::new(threads).unwrap(), Workspace::new());
            let (x, mut out) = (vec![0.5; len * dim], vec![7.0; len * dim]);
            let all = Tensor::head_first(&x, [1, 1, len, dim]);
            let mut a = Attention::new(all, all, all, TensorMut::head_first(&mut out, [1, 1, len, dim]));
            a.check().unwrap();
            a.reserve(&mut workspace, &pool).unwrap();
            a.run(&mut workspace, &pool).unwrap();
            assert!(out.iter().all(|&x| x == 0.5));
        }
    }
}

/// A panic on a thread that has a name like those of the library's pools.
fn panic_elsewhere() {
    let thread = thread::Builder::new().name("flash_attention 0".to_owned());
    thread.spawn(|| panic!("planted")).unwrap().join().unwrap_err();
}

#[test]
fn only_c_functions_touch_the_panic_hook() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    let hook: PanicHook = Box::new(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let own = address(&hook);
    let before = panic::take_hook();
    panic::set_hook(hook);

    attend();
    assert_eq!(fa_abi_version(), FA_ABI_VERSION);
    panic_elsewhere();
    let hook = panic::take_hook();
    let is_own = address(&hook) == own;
    panic::set_hook(hook);

    // SAFETY: NULL is refused.
    let refused = unsafe { config::fa_config_auto(std::ptr::null_mut(), 64) };
    attend();
    panic_elsewhere();
    let hook = panic::take_hook();
    let is_wrapped = address(&hook) != own;

    panic::set_hook(before);
    assert!(is_own, "the Rust interface has changed the hook");
    assert_eq!(refused, status::fa_status::FA_ERR_NULL);
    assert!(is_wrapped, "this test does not see when the hook is changed");
    assert_eq!(calls.load(Ordering::Relaxed), 2, "panics outside of C functions reach the program's hook");
}
