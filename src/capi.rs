//! The C boundary: arguments in, a status out. The only `extern "C"` functions are here.
//!
//! The doc comments of public items become `include/flash_attention.h` and are written for its
//! readers; remarks for readers of this code are plain comments.

#![allow(non_camel_case_types, reason = "the names are the C names")]
#![allow(clippy::missing_safety_doc, reason = "the C documentation states the contract of pointers")]

pub mod config;
pub mod forward;
pub mod isa;
pub mod scratch;
pub mod status;
pub mod version;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Error;
use status::fa_status;

/// Runs the body of a C function: errors become codes, and so do panics, without a word on
/// stderr. The body leaves no state behind that a panic could break.
fn guard(body: impl FnOnce() -> Result<(), Error>) -> fa_status {
    silence_panics();
    let outer = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(body));
    GUARDED.set(outer);
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
    /// Whether this thread is inside `guard`. Const and without a destructor, so that unloading
    /// the library cannot leave one behind.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Makes the panic hook keep quiet about panics that `guard` turns into a status; all others go
/// where they went before. Once a process.
fn silence_panics() {
    static DONE: AtomicBool = AtomicBool::new(false);
    // `take_hook` itself panics on a panicking thread (a destructor that calls us while a Rust
    // caller unwinds): then a later call does it.
    if DONE.load(Ordering::Relaxed) || std::thread::panicking() || DONE.swap(true, Ordering::Relaxed) {
        return;
    }
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let ours = GUARDED.try_with(Cell::get).unwrap_or(false) || on_pool_thread();
        if !ours {
            before(info);
        }
    }));
}

fn on_pool_thread() -> bool {
    std::thread::current().name().is_some_and(|name| name.starts_with(crate::pool::THREAD_NAME))
}
