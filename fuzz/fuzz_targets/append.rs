//! fa_cache_append on any description, in memory that ends at guard pages: refused and nothing
//! touched, or the rows that the header says, the same bits on every instruction set.

#![no_main]

use std::cell::RefCell;

use flash_attention_fuzz::append::Bench;
use flash_attention_fuzz::input::mutate_field;
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

thread_local! {
    static BENCH: RefCell<Bench> = RefCell::default();
}

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if !seed.is_multiple_of(4) {
        mutate_field(&mut data[..size], seed / 4);
        return size;
    }
    fuzzer_mutate(data, size, max_size)
});

fuzz_target!(|data: &[u8]| BENCH.with_borrow_mut(|bench| bench.try_out(data)));
