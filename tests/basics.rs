//! The first things that must be right, on problems small enough to check by hand or by eye.

mod common;

use common::{Inputs, Size, kernels, largest, max_error, relative_rms, rows, same_bits};
use flash_attention::dtype::Dtype;
use flash_attention::kernel::Path;
use flash_attention::machine::Machine;
use flash_attention::plan::Plan;
use flash_attention::problem::Semantics;
use flash_attention::work::query_tiles::{DecodeRule, Way, WayRule};

#[test]
fn small_problem_against_the_naive_formula() {
    // One query (2, 0), keys (1, 0) and (0, 1), scale 1/2: scores 1 and 0.
    let inputs: Inputs<f32> = Inputs {
        size: Size::new(1, 1, 2, 2),
        q: vec![2.0, 0.0],
        k: vec![1.0, 0.0, 0.0, 1.0],
        v: vec![10.0, 20.0, 30.0, 40.0],
        scales: [1.0; 3],
        semantics: Semantics::with_scale(0.5),
    };
    let e = std::f64::consts::E;
    let weight = e / (e + 1.0);
    let exact = [10.0 * weight + 30.0 * (1.0 - weight), 20.0 * weight + 40.0 * (1.0 - weight)];
    for kernel in kernels(Dtype::F32) {
        let out = inputs.run(kernel, 1);
        assert!(max_error(&out.o, &exact) < 1e-5, "{kernel:?}: {:?}", out.o);
        assert!(max_error(&out.lse, &[(e + 1.0).ln()]) < 1e-6, "{kernel:?}: {:?}", out.lse);
    }
}

#[test]
fn causal_rows_see_themselves_and_the_past() {
    let inputs = Inputs::normal(Size::new(1, 5, 5, 4), 1).causal();
    for kernel in kernels(Dtype::F32) {
        let out = inputs.run(kernel, 1);
        // The first query sees one key, so its output is that key's value, to the bit.
        assert!(same_bits(&out.o[..4], &inputs.v[..4]), "{kernel:?}");
        assert!(max_error(&out.o, &inputs.exact().o) < 1e-6, "{kernel:?}");
    }
}

#[test]
fn different_lengths_align_at_the_end() {
    // 2 queries on 4 keys: the first sees 3 of them, the second all.
    let longer = Inputs::normal(Size::new(1, 2, 4, 3), 2).causal();
    // 4 queries on 2 keys: the first two see nothing and are exactly 0.
    let shorter = Inputs::normal(Size::new(1, 4, 2, 3), 3).causal();
    for kernel in kernels(Dtype::F32) {
        let out = longer.run(kernel, 1);
        assert!(max_error(&out.o, &longer.exact().o) < 1e-6, "{kernel:?}");
        let mut poisoned = longer.clone();
        poisoned.v[9..].fill(1e30);
        assert!(same_bits(&poisoned.run(kernel, 1).o[..3], &out.o[..3]), "{kernel:?}: saw the fourth key");

        let out = shorter.run(kernel, 1);
        assert!(same_bits(&out.o[..6], &[0.0; 6]), "{kernel:?}: {:?}", out.o);
        assert!(same_bits(&out.lse[..2], &[f32::NEG_INFINITY; 2]), "{kernel:?}: {:?}", out.lse);
        assert!(max_error(&out.o, &shorter.exact().o) < 1e-6, "{kernel:?}");
    }
}

#[test]
fn i8_computes_what_its_numbers_mean() {
    let inputs = Inputs::normal(Size::new(1, 40, 50, 64), 4);
    let quantised = inputs.quantised();
    for kernel in kernels(Dtype::I8) {
        let out = quantised.run(kernel, 1).o;
        let bound = match kernel.kernel.compute_type(kernel.path) {
            "i8" => 2e-2,
            "i16" => 3e-4,
            _ => 1e-6,
        };
        assert!(relative_rms(&out, &quantised.exact().o) < bound, "{kernel:?}");
        // Against the numbers before quantising: what 8 bits cost on normal data.
        let rms = relative_rms(&out, &inputs.exact().o);
        assert!((1e-4..0.03).contains(&rms), "{kernel:?}: {rms:.1e}");
    }
}

#[test]
fn heads_do_not_mix() {
    let all = Inputs::normal(Size::new(3, 20, 30, 16), 5);
    for kernel in kernels(Dtype::F32) {
        let out = all.run(kernel, 1);
        for h in 0..3 {
            let [q, kv] = [20 * 16, 30 * 16];
            let one = Inputs {
                size: Size::new(1, 20, 30, 16),
                q: all.q[h * q..][..q].to_vec(),
                k: all.k[h * kv..][..kv].to_vec(),
                v: all.v[h * kv..][..kv].to_vec(),
                scales: all.scales,
                semantics: all.semantics,
            };
            assert!(same_bits(&one.run(kernel, 1).o, &out.o[h * q..][..q]), "{kernel:?}: head {h}");
        }
    }
}

/// The running maximum and sum must give the same softmax whichever way the maximum moves: never,
/// at every block, past the slack of the lazy rescaling or within it.
#[test]
fn online_softmax_state_survives_every_order_of_scores() {
    let n = 300;
    for step in [0.0f32, 0.01, 0.5, 3.0, 20.0, -0.01, -0.5, -20.0] {
        let mut inputs = Inputs::normal(Size::new(1, 20, n, 2), 6);
        inputs.semantics.softmax_scale = 1.0;
        inputs.q.fill(1.0);
        for (j, k) in inputs.k.chunks_mut(2).enumerate() {
            k.copy_from_slice(&[step * j as f32, 0.0]);
        }
        for block_kv in [1, 2, 16, 64, n] {
            let inputs = inputs.clone().blocks(0, block_kv);
            let exact = inputs.exact();
            for kernel in kernels(Dtype::F32) {
                let out = inputs.run(kernel, 1);
                let error = max_error(&out.o, &exact.o) / largest(&inputs.v);
                assert!(error < 1e-5, "{kernel:?}, step {step}, block {block_kv}: {error:.1e}");
            }
        }
    }
}

/// The path depends on the number of query rows, and on how many heads can fill vectors together.
#[test]
fn heads_of_a_group_fill_vectors_together() {
    // As one vector of one head: 13 of 16 lanes.
    let (too_few, of_head) = ([13, 26, 39, 52], 13);
    for lanes in [4, 8, 16] {
        let decodes = |heads, rows, of_head| {
            let decode = DecodeRule { lanes, too_few, row_keys: 0, heads, of_head };
            WayRule::ByRows { split_rows: 0, decode: Some(decode) }.way(rows, || 1) == Way::Decode
        };
        for rows in 1..8 * lanes {
            // What one head leaves idle; more than four vectors are full enough.
            let idle = |rows: usize| rows <= 4 * lanes && 16 * rows <= 13 * rows.next_multiple_of(lanes);
            assert_eq!(decodes(1, rows, of_head), idle(rows), "{rows} rows on {lanes} lanes");
            for heads in [2, 3, 4, 8, 128] {
                let together = if 16 * rows > 13 * lanes { rows * heads } else { rows };
                let found = [decodes(heads, rows, of_head), decodes(heads, rows, 0)];
                let expected = [idle(together), idle(rows * heads)];
                assert_eq!(found, expected, "{rows} rows of {heads} heads on {lanes} lanes");
            }
        }
    }
}

/// Where decode takes long for a row besides its keys, few keys make more rows than half a vector
/// take prefill; fewer rows never do.
#[test]
fn few_keys_of_many_rows_take_prefill() {
    let (too_few, row_keys) = ([20, 32, 48, 64], 40);
    for lanes in [4, 8, 16] {
        for rows in 1..6 * lanes {
            let decodes = |row_keys, keys: usize| {
                let decode = DecodeRule { lanes, too_few, row_keys, heads: 1, of_head: 0 };
                WayRule::ByRows { split_rows: 0, decode: Some(decode) }.way(rows, || keys) == Way::Decode
            };
            // If a row takes no longer than its keys, their number is of no consequence.
            let all = decodes(0, 1);
            assert_eq!(decodes(0, 0), all, "{rows} rows, {lanes} lanes");
            let share =
                rows.div_ceil(lanes).checked_sub(1).and_then(|i| too_few.get(i).copied()).unwrap_or(0);
            for keys in [0, 1, 7, 30, 64, 200, 5000, usize::MAX >> 20] {
                let most = (share * lanes) as u128 * keys as u128 / (keys + row_keys) as u128;
                let wanted = all && (2 * rows <= lanes || 16 * rows as u128 <= most);
                assert_eq!(decodes(row_keys, keys), wanted, "{rows} rows, {lanes} lanes, {keys} keys");
            }
        }
    }
}

/// In f32 the path depends on the number of query rows, not on keys, sequences or tiles, so that
/// nothing else changes a row's bits.
#[test]
fn few_query_rows_take_the_decode_path() {
    for row in rows(Dtype::F32) {
        let path = |heads, len_q, len_kv, block_q| {
            let inputs = Inputs::normal(Size::new(heads, len_q, len_kv, 8), 1).blocks(block_q, 0);
            let mut path = None;
            inputs.with_problem(|problem| {
                path = Some(Plan::new(problem.shape(), row, Machine::get(), 2).unwrap().path);
            });
            path.unwrap()
        };
        for len_kv in [1, 3000] {
            for block_q in [0, 1, 1000] {
                assert_eq!(path(2, 1, len_kv, block_q), Path::Decode, "{row:?}");
                assert_eq!(path(2, 2 * row.lanes(), len_kv, block_q), Path::Prefill, "{row:?}");
                assert_eq!(path(1, 512, len_kv, block_q), Path::Prefill, "{row:?}");
            }
        }
    }
}
