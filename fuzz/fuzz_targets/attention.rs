//! Problems of all features, types and instruction sets, as in the test of the general call: right
//! against its definition in f64, and the same bits however they are run. Their structure comes
//! from the input, the numbers in their tensors from a generator that it seeds.

#![no_main]

use std::ptr;
use std::sync::LazyLock;

use flash_attention::capi::attention::fa_attention;
use flash_attention::capi::pool::{fa_pool, fa_pool_create};
use flash_attention::capi::status::fa_status;
use flash_attention_fuzz::common::Random;
use flash_attention_fuzz::description::{Case, Chooser};
use flash_attention_fuzz::input::{Input, hash};
use libfuzzer_sys::{Corpus, fuzz_target};

/// Multiplications of a problem, at most: others take the oracle too long.
const MOST: i64 = 1 << 16;

/// Of three threads, made once.
static POOL: LazyLock<usize> = LazyLock::new(|| {
    let mut pool = ptr::null_mut();
    // SAFETY: `pool` is writable.
    assert_eq!(unsafe { fa_pool_create(3, &mut pool) }, fa_status::FA_OK);
    pool.expose_provenance()
});

fuzz_target!(|data: &[u8]| -> Corpus {
    let mut input = Input(data);
    let (many_keys, seed) = (input.u8() % 8 == 0, input.u8());
    let random = Random(hash(&[seed]));
    let wanted = |a: &fa_attention| {
        let dims = (a.dim_qk + a.dim_v) * a.heads_q * a.batch;
        dims * a.len_q.max(1) * a.len_kv.max(1) <= MOST
    };
    let chooser = Chooser { choices: input.0, random };
    let Some(mut case) = Case::chosen(chooser, many_keys, "input".to_owned(), wanted) else {
        return Corpus::Reject;
    };
    case.check_everywhere(ptr::with_exposed_provenance::<fa_pool>(*POOL), 3);
    Corpus::Keep
});
