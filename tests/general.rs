//! The general call on random descriptions: against attention as the header defines it, in f64,
//! read through the description itself; the same bits however it is run; nothing written beside the
//! outputs.

mod common;
#[path = "common/definition.rs"]
mod definition;
#[path = "common/description.rs"]
mod description;

use std::ptr;
use std::sync::atomic::Ordering;

use common::{share, thin};
use definition::BOOL8;
use description::{Case, IN_TURNS, Workspace, empty, why};
use flash_attention::capi::attention::fa_attention;
use flash_attention::capi::pool::{fa_pool_create, fa_pool_destroy};
use flash_attention::capi::run::{fa_attention_check, fa_attention_run, fa_attention_workspace};
use flash_attention::capi::status::fa_status;
use flash_attention::capi::tensor::fa_tensor;
use flash_attention::machine;

#[test]
fn random_descriptions_agree_with_the_definition_however_they_are_run() {
    let mut pool = ptr::null_mut();
    // Without threads there is no pool: the calling thread computes.
    let expected = if machine::HAS_THREADS { fa_status::FA_OK } else { fa_status::FA_ERR_MEMORY };
    // SAFETY: `pool` is writable.
    assert_eq!(unsafe { fa_pool_create(3, &mut pool) }, expected);
    // Seeds are numbers; a failure prints its own.
    for seed in (0..3000).step_by(share()) {
        Case::random(seed).check_everywhere(pool, 3);
    }
    let in_turns = IN_TURNS.load(Ordering::Relaxed);
    assert!(
        thin() != 1 || in_turns >= 30 / share(),
        "only {in_turns} had heads whose keys are taken in turns"
    );
    // SAFETY: nothing uses the pool any more.
    unsafe { fa_pool_destroy(pool) };
}

/// What is seen counts, even if nothing comes of it: a row without a finite score is not a row that
/// sees nothing.
#[test]
fn rows_that_see_only_infinities_or_nan_are_not_empty() {
    // On both paths: many rows, and two.
    let (rows, keys, dim) = (64usize, 20usize, 8usize);
    for (k, len_q) in [(f32::NEG_INFINITY, rows), (f32::NAN, rows), (f32::NEG_INFINITY, 2), (f32::NAN, 2)] {
        let (q, k, v) = (vec![1f32; rows * dim], vec![k; keys * dim], vec![1f32; keys * dim]);
        let mut o = vec![0f32; rows * dim];
        let mut lse = vec![0f32; rows];
        // Row 1 sees no key at all.
        let mask: Vec<u8> = (0..rows * keys).map(|at| u8::from(at / keys != 1)).collect();
        let tensor = |data: *const f32| fa_tensor {
            data: data.cast_mut().cast(),
            stride: [0, 0, 4 * dim as i64],
            ..fa_tensor::NONE
        };
        let mut a = empty();
        (a.batch, a.heads_q, a.heads_kv, a.len_q, a.len_kv) = (1, 1, 1, len_q as i64, keys as i64);
        (a.dim_qk, a.dim_v) = (dim as i64, dim as i64);
        (a.q, a.k, a.v) = (tensor(q.as_ptr()), tensor(k.as_ptr()), tensor(v.as_ptr()));
        (a.o, a.lse, a.lse_stride) = (tensor(o.as_mut_ptr()), lse.as_mut_ptr(), [0, 0, 1]);
        a.mask = fa_tensor {
            data: mask.as_ptr().cast_mut().cast(),
            stride: [0, 0, keys as i64],
            dtype: BOOL8,
            ..fa_tensor::NONE
        };
        let mut ws = Workspace::of(&a, 1);
        // SAFETY: a description of live memory.
        let status = unsafe { fa_attention_run(&a, ws.at(), ws.size, ptr::null()) };
        assert_eq!(status, fa_status::FA_OK, "{}", why(&a));
        for row in 0..len_q {
            let (o, lse) = (&o[row * dim..][..dim], lse[row]);
            if row == 1 {
                assert!(
                    o.iter().all(|&x| x == 0.0) && lse == f32::NEG_INFINITY,
                    "{len_q} rows: {o:?}, {lse}"
                );
            } else {
                assert!(o.iter().all(|x| x.is_nan()), "{len_q} rows, row {row}: {o:?}");
            }
        }
    }
}

/// Only -inf hides a key: what frameworks write for "masked" may be the least finite number, and
/// then a row of nothing else sees all keys alike. Factors as large as f32 has overflow nowhere.
#[test]
fn the_largest_finite_biases_are_numbers_like_others() {
    let (keys, dim) = (20usize, 8usize);
    for len_q in [64usize, 2] {
        let (q, k) = (vec![0.5f32; len_q * dim], vec![0.25f32; keys * dim]);
        let v: Vec<f32> = (0..keys * dim).map(|at| (at / dim) as f32).collect();
        let mut o = vec![0f32; len_q * dim];
        let mut lse = vec![0f32; len_q];
        let tensor = |data: *const f32| fa_tensor {
            data: data.cast_mut().cast(),
            stride: [0, 0, 4 * dim as i64],
            ..fa_tensor::NONE
        };
        let mut a = empty();
        (a.batch, a.heads_q, a.heads_kv, a.len_q, a.len_kv) = (1, 1, 1, len_q as i64, keys as i64);
        (a.dim_qk, a.dim_v, a.q_pos) = (dim as i64, dim as i64, 3);
        (a.q, a.k, a.v) = (tensor(q.as_ptr()), tensor(k.as_ptr()), tensor(v.as_ptr()));
        (a.o, a.lse, a.lse_stride) = (tensor(o.as_mut_ptr()), lse.as_mut_ptr(), [0, 0, 1]);
        let mean = (keys - 1) as f32 / 2.0;
        let run = |a: &fa_attention, expected: &dyn Fn(usize) -> f32, what: &str| {
            let mut ws = Workspace::of(a, 1);
            // SAFETY: a description of live memory.
            let status = unsafe { fa_attention_run(a, ws.at(), ws.size, ptr::null()) };
            assert_eq!(status, fa_status::FA_OK, "{}", why(a));
            for row in 0..len_q {
                // SAFETY: the outputs that the description points to.
                let (o, lse) = unsafe { (*a.o.data.cast::<f32>().add(row * dim), *a.lse.add(row)) };
                assert!((o - expected(row)).abs() < 1e-4, "{what}, {len_q} rows, row {row}: {o}");
                assert!(!lse.is_nan() && lse.abs() < f32::INFINITY, "{what}, {len_q} rows: LSE {lse}");
            }
        };
        let mask: Vec<f32> = vec![f32::MIN; keys];
        a.mask.data = mask.as_ptr().cast_mut().cast();
        run(&a, &|_| mean, "a mask of the least numbers");
        let mut mask = mask;
        mask[5] = f32::MAX;
        a.mask.data = mask.as_ptr().cast_mut().cast();
        run(&a, &|_| 5.0, "a mask with the largest number");
        let slope = [f32::MAX];
        a.alibi_slopes = slope.as_ptr();
        a.mask.data = ptr::null_mut();
        // Rows behind the last key are too far from all keys to tell them apart.
        run(&a, &|row| if row + 3 < keys { (row + 3) as f32 } else { mean }, "the largest slope");
        a.alibi_slopes = ptr::null();
        a.softcap = f32::MAX;
        run(&a, &|_| mean, "the largest softcap");
    }
}

/// Lengths of a ragged batch may be bounds that no address space holds, and so may heads and
/// sequences where there are no rows: nothing is counted one by one, or multiplied, that memory
/// does not bound.
#[test]
fn sizes_that_nothing_bounds_cost_nothing() {
    // Four times that is one more than the largest number.
    const HUGE: i64 = isize::MAX as i64 / 2 + 1;
    let list = |list: &[i32]| list.as_ptr();
    let run = |a: &fa_attention| {
        let mut ws = Workspace::of(a, 1);
        // More threads are planned for otherwise.
        assert!(Workspace::of(a, 8).size >= ws.size);
        // SAFETY: a description of live memory, or of none.
        let status = unsafe { fa_attention_run(a, ws.at(), ws.size, ptr::null()) };
        assert_eq!(status, fa_status::FA_OK, "{}", why(a));
    };
    let mut a = empty();
    (a.batch, a.heads_q, a.heads_kv, a.len_q, a.len_kv) = (4, HUGE, 1, 5, 7);
    (a.dim_qk, a.dim_v) = (8, 8);
    let (kv, no_rows) = (vec![0.5f32; 4 * 7 * 8], [0; 5]);
    let tensor =
        |data: *const f32, stride| fa_tensor { data: data.cast_mut().cast(), stride, ..fa_tensor::NONE };
    (a.k, a.v) = (tensor(kv.as_ptr(), [7 * 32, 0, 32]), tensor(kv.as_ptr(), [7 * 32, 0, 32]));
    a.cu_len_q = list(&no_rows);
    run(&a);
    a.len_q = 0;
    run(&a);

    // Rows, but fewer than len_q says.
    let (q, starts) = (vec![1f32; 2 * 3 * 8], [0, 1, 1, 3, 3]);
    let mut o = vec![0f32; 2 * 3 * 8];
    (a.heads_q, a.len_q, a.block_q) = (2, HUGE, 1);
    (a.q, a.o) = (tensor(q.as_ptr(), [0, 3 * 32, 32]), tensor(o.as_mut_ptr(), [0, 3 * 32, 32]));
    a.cu_len_q = list(&starts);
    run(&a);
    assert_eq!(o, vec![0.5; 2 * 3 * 8]);

    // Pages that no sequence needs.
    (a.batch, a.len_q, a.len_kv, a.heads_q) = (isize::MAX as i64, 0, 0, 1);
    (a.cu_len_q, a.block_table) = (ptr::null(), list(&no_rows));
    (a.table_stride, a.page_size, a.num_pages) = (0, 16, 0);
    run(&a);
}

/// Near the end of an address space, many threads may want more scratch memory than there can be
/// where one does not: what has been checked is not refused for that.
#[test]
fn sizes_near_the_address_space_are_refused_for_any_number_of_threads_or_for_none() {
    let mut answers = [0; 2];
    let first = usize::BITS - 24;
    for dim in first..usize::BITS - 2 {
        for len_q in [1, 64] {
            let mut a = empty();
            (a.batch, a.heads_q, a.heads_kv, a.len_q, a.len_kv) = (1, 1, 1, len_q, 4096);
            (a.dim_qk, a.dim_v) = (1, 1 << dim);
            // Nothing is read.
            let somewhere = |at: usize| fa_tensor {
                data: ptr::without_provenance_mut(at),
                stride: [0; 3],
                ..fa_tensor::NONE
            };
            (a.q, a.k, a.v, a.o) =
                (somewhere(64), somewhere(128), somewhere(256), somewhere(256 + (4 << dim)));
            a.o.stride[2] = 4 << dim;
            // SAFETY: without words.
            let status = unsafe { fa_attention_check(&a, ptr::null_mut(), 0) };
            let sizes = [1, 2, 7, 256].map(|parts| {
                let mut size = 0;
                // SAFETY: a description whose tensors nobody reads.
                let answered = unsafe { fa_attention_workspace(&a, parts, &mut size) };
                assert_eq!(answered, status, "2^{dim} elements, {len_q} rows, {parts} parts: {}", why(&a));
                size
            });
            // So it is more than there is with the last size that is not refused.
            assert!(dim > first || len_q > 1 || sizes[3] >= 2 * sizes[0], "{sizes:?}");
            answers[usize::from(status == fa_status::FA_OK)] += 1;
        }
    }
    assert!(answers.iter().all(|&n| n > 0), "{answers:?}");
}

/// A cap so small that its inverse is infinite makes all scores alike, those of 0 too.
#[test]
fn the_smallest_softcaps_are_numbers_like_others() {
    let (keys, dim) = (20usize, 8usize);
    for len_q in [64usize, 2] {
        let (q, k) = (vec![0f32; len_q * dim], vec![0.25f32; keys * dim]);
        let v: Vec<f32> = (0..keys * dim).map(|at| (at / dim) as f32).collect();
        let mut o = vec![f32::NAN; len_q * dim];
        let tensor = |data: *const f32| fa_tensor {
            data: data.cast_mut().cast(),
            stride: [0, 0, 4 * dim as i64],
            ..fa_tensor::NONE
        };
        let mut a = empty();
        (a.batch, a.heads_q, a.heads_kv, a.len_q, a.len_kv) = (1, 1, 1, len_q as i64, keys as i64);
        (a.dim_qk, a.dim_v, a.softcap) = (dim as i64, dim as i64, f32::from_bits(1));
        (a.q, a.k, a.v, a.o) =
            (tensor(q.as_ptr()), tensor(k.as_ptr()), tensor(v.as_ptr()), tensor(o.as_mut_ptr()));
        let mut ws = Workspace::of(&a, 1);
        // SAFETY: a description of live memory.
        let status = unsafe { fa_attention_run(&a, ws.at(), ws.size, ptr::null()) };
        assert_eq!(status, fa_status::FA_OK, "{}", why(&a));
        assert!(o.iter().all(|x| (x - 9.5).abs() < 1e-4), "{len_q} rows: {o:?}");
    }
}
