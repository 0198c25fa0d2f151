//! Raw bytes as arguments of the simple calls and of the general one, in memory that ends at guard
//! pages: refused and nothing touched, or right.

#![no_main]

use std::cell::RefCell;

use flash_attention_fuzz::input::mutate_field;
use flash_attention_fuzz::{easy, general};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

thread_local! {
    static GENERAL: RefCell<general::Bench> = RefCell::default();
    static EASY: RefCell<easy::Bench> = RefCell::default();
}

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    // Fields lie at multiples of 8 behind the first byte, which says which call it is.
    if !seed.is_multiple_of(4) && size > 8 {
        mutate_field(&mut data[1..size], seed / 4);
        return size;
    }
    fuzzer_mutate(data, size, max_size)
});

fuzz_target!(|data: &[u8]| {
    match data.split_first() {
        Some((call, rest)) if call % 4 == 0 => EASY.with_borrow_mut(|bench| bench.try_out(rest)),
        Some((_, rest)) => GENERAL.with_borrow_mut(|bench| bench.try_out(rest)),
        None => {}
    }
});
