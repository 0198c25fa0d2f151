//! Another archive with Rust's standard library in it: threads, thread-local storage, constructors,
//! and a panic that is caught, where panics unwind. Old compilers must take it, too.

use std::cell::RefCell;

thread_local! {
    static WORDS: RefCell<Vec<String>> = RefCell::new(Vec::new());
}

/// The sum of the lengths of the first `n` numbers as words, computed by another thread, and of the
/// caller's own call before. 1000 if a panic was caught that `n` = 0 causes.
#[no_mangle]
pub extern "C" fn other_sum(n: u32) -> u64 {
    let add = |n: u32| {
        WORDS.with(|words| {
            words.borrow_mut().extend((0..n).map(|i| i.to_string()));
            words.borrow().iter().map(|word| word.len() as u64).sum::<u64>()
        })
    };
    let other = std::thread::spawn(move || add(n)).join();
    let caught = std::panic::catch_unwind(|| {
        if n == 0 {
            std::panic::resume_unwind(Box::new(1000u64));
        }
        0
    });
    let caught = caught.unwrap_or_else(|value| *value.downcast::<u64>().unwrap_or_default());
    other.unwrap_or_default() + caught + add(n)
}

/// How many arguments the program has: what a constructor of the standard library keeps.
#[no_mangle]
pub extern "C" fn other_arguments() -> u64 {
    std::env::args().count() as u64
}
