//! exp2 over its whole range, extreme scores, and values that are not finite.

mod common;

use common::{Inputs, Size, kernels, largest, max_error, rows, same_bits, share};
use flash_attention::dtype::Dtype;
use flash_attention::kernel::Function;
use flash_attention::problem::Semantics;

/// Units in the last place of f32 between `x` and the exact `y`.
fn ulps(x: f32, y: f64) -> f64 {
    let spacing = (y as f32).abs().max(f32::MIN_POSITIVE);
    let ulp = f64::from(f32::from_bits(spacing.to_bits() + 1) - spacing);
    ((f64::from(x) - y) / ulp).abs()
}

#[test]
fn exp2_is_within_its_bound_over_its_range() {
    for row in rows(Dtype::F32) {
        let mut worst = (0.0, 0.0);
        // Every 61st float from 2^-30 (nearer to 0 the result is 1) to 126, and down to -110.
        let mut batch = Vec::new();
        for bits in (0x3080_0000u32..=126f32.to_bits()).step_by(61 * share()) {
            let x = f32::from_bits(bits);
            batch.push(x);
            batch.extend((x <= 110.0).then_some(-x));
            if batch.len() >= 1 << 16 {
                check(row, &mut batch, &mut worst);
            }
        }
        check(row, &mut batch, &mut worst);
        assert!(worst.0 <= 1.6, "{row:?}: {} ulp at {}", worst.0, worst.1);
    }

    fn check(row: &dyn flash_attention::kernel::Kernel, batch: &mut Vec<f32>, worst: &mut (f64, f32)) {
        let exact: Vec<_> = batch.iter().map(|&x| (x, f64::from(x).exp2())).collect();
        row.map(Function::Exp2, batch);
        for (&y, (x, exact)) in batch.iter().zip(exact) {
            let error = ulps(y, exact);
            if error > worst.0 {
                *worst = (error, x);
            }
        }
        batch.clear();
    }
}

#[test]
fn tanh_is_within_its_bound_and_right_at_its_edges() {
    for row in rows(Dtype::F32) {
        // Every 97th float from 2^-40 to 12.
        let bits = (0x2b80_0000u32..=12f32.to_bits()).step_by(97 * share());
        let x: Vec<f32> = bits.map(f32::from_bits).flat_map(|x| [x, -x]).collect();
        let mut y = x.clone();
        row.map(Function::Tanh, &mut y);
        for (&x, &y) in x.iter().zip(&y) {
            let error = ulps(y, f64::from(x).tanh());
            assert!(error <= 4.0, "{row:?}: tanh({x:e}) = {y:e}, {error} ulp");
        }
        let mut special = [0.0, 20.0, -20.0, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        row.map(Function::Tanh, &mut special);
        assert_eq!(special[..6], [0.0, 1.0, -1.0, 1.0, 1.0, -1.0], "{row:?}");
        assert!(special[6].is_nan(), "{row:?}");
    }
}

#[test]
fn exp2_at_its_edges() {
    for row in rows(Dtype::F32) {
        // Integers are exact: the largest probability of a row is exactly 1.
        let mut powers: Vec<f32> = (-110..=126).map(|n| n as f32).collect();
        row.map(Function::Exp2, &mut powers);
        for (n, power) in (-110..=126).zip(powers) {
            assert_eq!(power, 2f32.powi(n), "{row:?}");
        }
        // Below: 0, so that nothing is subnormal, whatever that costs on the machine.
        let mut tiny: Vec<f32> = (1..4000).map(|i| -110.0 - i as f32 / 64.0).collect();
        tiny.extend([f32::from_bits((-110f32).to_bits() + 1), -1e3, -1e10, -1e30, f32::MIN]);
        let below = tiny.clone();
        row.map(Function::Exp2, &mut tiny);
        for (x, y) in below.into_iter().zip(tiny) {
            assert_eq!(y.to_bits(), 0, "{row:?}: 2^{x} = {y:e}");
        }
        let mut special = [f32::NEG_INFINITY, 0.0, -0.0, f32::NAN, -f32::NAN];
        row.map(Function::Exp2, &mut special);
        assert_eq!(special[..3], [0.0, 1.0, 1.0], "{row:?}");
        assert!(special[3].is_nan() && special[4].is_nan(), "{row:?}");
    }
}

/// The last division, of sums from 1 to 2^24 and everything between: a key of score 0 and value 1
/// against one of score t and value 0 gives 1 / (1 + 2^t).
#[test]
fn division_is_within_its_bound() {
    let mut inputs = Inputs::normal(Size::new(1, 48, 2, 1), 10);
    inputs.semantics.softmax_scale = std::f32::consts::LN_2;
    (inputs.k, inputs.v) = (vec![0.0, 1.0], vec![1.0, 0.0]);
    // Every so-many-th float of both signs from 2^-24 to 24.
    let bits = (0x3380_0000u32..=24f32.to_bits()).step_by(9973);
    let all: Vec<f32> = bits.map(f32::from_bits).flat_map(|x| [x, -x]).collect();
    for kernel in kernels(Dtype::F32) {
        let mut worst = (0.0, 0.0);
        for t in all.chunks(48).filter(|t| t.len() == 48) {
            inputs.q.copy_from_slice(t);
            for (&x, &t) in inputs.run(kernel, 1).o.iter().zip(t) {
                // The scale times log2(e) is 1 but for its rounding, which is not what is tested.
                let factor = (f64::from(std::f32::consts::LN_2) * std::f64::consts::LOG2_E) as f32;
                let exact = 1.0 / (1.0 + f64::from(t * factor).exp2());
                let error = ulps(x, exact);
                if error > worst.0 {
                    worst = (error, t);
                }
            }
        }
        // Two roundings of the quotient and product, one of the sum, and 1.6 of 2^t, as far as that
        // counts in the sum.
        assert!(worst.0 <= 4.0, "{kernel:?}: {} ulp at {}", worst.0, worst.1);
    }
}

/// Sums of ones are exact: only the quotient and its product are rounded.
#[test]
fn whole_sums_divide_exactly() {
    for n in 1..=600usize {
        let mut inputs = Inputs::normal(Size::new(1, 17, n, 3), 11);
        inputs.semantics.softmax_scale = 0.0;
        inputs.v.fill(1.0);
        inputs.v[0] = 2.0;
        for kernel in kernels(Dtype::F32) {
            for x in inputs.run(kernel, 1).o {
                let exact = [(n as f64 + 1.0) / n as f64, 1.0];
                let error = exact.map(|exact| ulps(x, exact)).into_iter().fold(f64::INFINITY, f64::min);
                assert!(error <= 1.5, "{kernel:?}: {x} of {n} keys, {error} ulp");
            }
        }
    }
}

#[test]
fn all_equal_scores_average_the_values() {
    let mut inputs = Inputs::normal(Size::new(1, 33, 100, 16), 1);
    inputs.k.fill(0.7);
    let average: Vec<f64> = (0..16)
        .map(|d| inputs.v.iter().skip(d).step_by(16).map(|&x| f64::from(x)).sum::<f64>() / 100.0)
        .collect();
    for kernel in kernels(Dtype::F32) {
        for out in inputs.run(kernel, 1).o.chunks(16) {
            assert!(max_error(out, &average) < 1e-6, "{kernel:?}");
        }
    }
}

/// Where scores and sums are whole numbers, nothing but the logarithm is left to be rounded.
#[test]
fn log_sum_exps_are_rounded_once() {
    for n in [1, 2, 3, 7, 100, 200] {
        for score in [-1000.0f32, -3.0, 0.0, 1.0, 1000.0, 100_000.0] {
            let mut inputs = Inputs::normal(Size::new(1, 20, n, 4), 3);
            // 1 in log2 units.
            inputs.semantics.softmax_scale = std::f32::consts::LN_2;
            inputs.q.chunks_mut(4).for_each(|q| q.copy_from_slice(&[1.0, 0.0, 0.0, 0.0]));
            inputs.k.chunks_mut(4).for_each(|k| k[0] = score);
            let exact = ((f64::from(score) + (n as f64).log2()) * std::f64::consts::LN_2) as f32;
            for kernel in kernels(Dtype::F32) {
                for lse in inputs.run(kernel, 1).lse {
                    assert_eq!(
                        lse.to_bits(),
                        exact.to_bits(),
                        "{kernel:?}: {n} times {score}: {lse}, not {exact}"
                    );
                }
            }
        }
    }
}

/// Scores of ±1e4: one key takes everything, and its value comes out to the bit.
#[test]
fn one_hot_rows_copy_a_value() {
    let n = 200;
    for winner in [0, 1, 15, 16, 63, 64, 127, 128, 199] {
        let mut inputs = Inputs::normal(Size::new(1, 40, n, 2), 2);
        inputs.semantics.softmax_scale = 1.0;
        for q in inputs.q.chunks_mut(2) {
            q.copy_from_slice(&[100.0, 0.0]);
        }
        for (j, k) in inputs.k.chunks_mut(2).enumerate() {
            k[0] = if j == winner { 100.0 } else { -100.0 };
        }
        for kernel in kernels(Dtype::F32) {
            for out in inputs.run(kernel, 1).o.chunks(2) {
                assert!(same_bits(out, &inputs.v[2 * winner..][..2]), "{kernel:?}: winner {winner}");
            }
        }
    }
}

/// With scores spread over ±1e4 rounding of the scores themselves dominates: nobody computing in
/// f32 does better than the three steps.
#[test]
fn extreme_scores_are_as_good_as_three_steps() {
    for scale in [10.0, 100.0, 1e3, 1e4] {
        let mut inputs = Inputs::normal(Size::new(2, 64, 300, 64), 3);
        inputs.semantics.softmax_scale = scale / 8.0;
        let exact = inputs.exact();
        let plain = max_error(&inputs.three_steps(), &exact.o);
        for kernel in kernels(Dtype::F32) {
            let error = max_error(&inputs.run(kernel, 1).o, &exact.o);
            assert!(error <= 2.0 * plain, "{kernel:?}, scale {scale}: {error:.1e} against {plain:.1e}");
        }
    }
}

#[test]
fn zero_and_negative_scales() {
    for scale in [0.0, -0.5] {
        let mut inputs = Inputs::normal(Size::new(1, 20, 77, 12), 4);
        inputs.semantics.softmax_scale = scale;
        for kernel in kernels(Dtype::F32) {
            let error = max_error(&inputs.run(kernel, 1).o, &inputs.exact().o);
            assert!(error <= 1e-5 * largest(&inputs.v), "{kernel:?}, scale {scale}: {error:.1e}");
        }
    }
}

const BAD: [f32; 3] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];

/// What a row does not see cannot reach it, whatever it holds; what it sees does.
#[test]
fn invisible_values_do_not_leak() {
    let (n, dim) = (150, 20);
    for block_kv in [0, 16, 64] {
        let clean = Inputs::normal(Size::new(1, n, n, dim), 5).causal().blocks(0, block_kv);
        for kernel in kernels(Dtype::F32) {
            let expected = clean.run(kernel, 1);
            for bad in BAD {
                for key in [0, 1, 17, 31, 32, 100, 148, 149] {
                    let mut inputs = clean.clone();
                    inputs.k[key * dim..][..dim].fill(bad);
                    inputs.v[key * dim..][..dim].fill(bad);
                    let out = inputs.run(kernel, 1);
                    let blind = key * dim;
                    assert!(
                        same_bits(&out.o[..blind], &expected.o[..blind]),
                        "{kernel:?}: {bad} at {key} leaked"
                    );
                    assert!(
                        same_bits(&out.lse[..key], &expected.lse[..key]),
                        "{kernel:?}: {bad} at {key}, LSE"
                    );
                    let sees = &out.o[blind..];
                    // A key of -inf against a query of both signs gives NaN as well.
                    assert!(sees.iter().all(|x| x.is_nan()), "{kernel:?}: {bad} at {key} was not seen");
                }
            }
        }
    }
}

/// One value that is not finite spoils one column of the rows that see it, and no bit more.
#[test]
fn a_bad_value_stays_in_its_column() {
    let (n, dim) = (90, 21);
    let clean = Inputs::normal(Size::new(1, n, n, dim), 6).causal();
    for kernel in kernels(Dtype::F32) {
        let expected = clean.run(kernel, 1);
        for bad in BAD {
            for (key, column) in [(0, 0), (33, 20), (64, 8), (89, 3)] {
                let mut inputs = clean.clone();
                inputs.v[key * dim + column] = bad;
                let out = inputs.run(kernel, 1);
                for (at, (&x, &y)) in out.o.iter().zip(&expected.o).enumerate() {
                    if at % dim == column && at / dim >= key {
                        // A weight that underflows to 0 makes NaN of an infinity.
                        assert!(!x.is_finite(), "{kernel:?}: {bad} not seen by row {}", at / dim);
                    } else {
                        assert_eq!(
                            x.to_bits(),
                            y.to_bits(),
                            "{kernel:?}: row {}, column {}",
                            at / dim,
                            at % dim
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_bad_query_spoils_its_own_row() {
    let (n, dim) = (70, 24);
    let clean = Inputs::normal(Size::new(1, n, n, dim), 7);
    for kernel in kernels(Dtype::F32) {
        let expected = clean.run(kernel, 1);
        for query in [0, 15, 16, 40, 69] {
            let mut inputs = clean.clone();
            inputs.q[query * dim + 5] = f32::NAN;
            let out = inputs.run(kernel, 1);
            for i in 0..n {
                let (got, wanted) = (&out.o[i * dim..][..dim], &expected.o[i * dim..][..dim]);
                if i == query {
                    assert!(got.iter().all(|x| x.is_nan()) && out.lse[i].is_nan(), "{kernel:?}");
                } else {
                    assert!(same_bits(got, wanted), "{kernel:?}: row {i}");
                }
            }
        }
    }
}

/// A score of -inf is a weight of 0, also where a block or all keys before have nothing else.
#[test]
fn minus_infinity_as_a_score_weighs_nothing() {
    let (n, dim) = (140, 4);
    let mut inputs = Inputs::normal(Size::new(1, 20, n, dim), 8);
    inputs.q.iter_mut().for_each(|q| *q = q.abs() + 0.1);
    for hidden in [0..70, 30..100, 70..140, 0..139] {
        let mut inputs = inputs.clone().blocks(0, 32);
        for j in hidden.clone() {
            inputs.k[j * dim] = f32::NEG_INFINITY;
        }
        let exact = inputs.exact();
        assert!(exact.o.iter().all(|x| x.is_finite()));
        for kernel in kernels(Dtype::F32) {
            let out = inputs.run(kernel, 1);
            assert!(max_error(&out.o, &exact.o) < 1e-6, "{kernel:?}: {hidden:?}");
            assert!(max_error(&out.lse, &exact.lse) < 1e-5, "{kernel:?}: {hidden:?}");
        }
    }
    // Nothing but -inf is visible, which is not the same as nothing: 0/0.
    for j in 0..n {
        inputs.k[j * dim] = f32::NEG_INFINITY;
    }
    for kernel in kernels(Dtype::F32) {
        assert!(inputs.run(kernel, 1).o.iter().all(|x| x.is_nan()), "{kernel:?}");
    }
}

#[test]
fn huge_and_tiny_values_keep_their_relative_accuracy() {
    for magnitude in [1e-38f32, 1e-30, 1e30, 1e37] {
        let mut inputs = Inputs::normal(Size::new(1, 30, 40, 8), 9);
        inputs.v.iter_mut().for_each(|v| *v *= magnitude);
        let v = largest(&inputs.v);
        for kernel in kernels(Dtype::F32) {
            let error = max_error(&inputs.run(kernel, 1).o, &inputs.exact().o);
            assert!(error <= 1e-5 * v, "{kernel:?}: {error:.1e} of {v:.1e}");
        }
    }
}

#[test]
fn no_keys_at_all_give_zeros() {
    let inputs: Inputs<f32> = Inputs {
        size: Size::new(2, 3, 0, 5),
        q: vec![1.0; 30],
        k: vec![],
        v: vec![],
        scales: [1.0; 3],
        semantics: Semantics::with_scale(1.0),
    };
    for inputs in [inputs.clone(), inputs.causal()] {
        for kernel in kernels(Dtype::F32) {
            let out = inputs.run(kernel, 1);
            assert!(
                same_bits(&out.o, &[0.0; 30]) && out.lse.iter().all(|&x| x == f32::NEG_INFINITY),
                "{kernel:?}"
            );
        }
    }
}
