//! The families of integers against the arithmetic that their documentation promises, written out
//! plainly.

mod common;

use common::{
    Inputs, KernelPath, Size, has_integers, kernels, largest, max_error, relative_rms, same_bits, thin,
};
use flash_attention::dtype::Dtype;
use flash_attention::kernel::Path;
use flash_attention::machine::Machine;
use flash_attention::plan::Plan;
use flash_attention::problem::{Accuracy, Position, Problem, Semantics, Tensors, Window};
use flash_attention::view::{Array, Layout, Quant, View, ViewMut};

/// The kernels that multiply 8-bit integers.
fn bytes() -> impl Iterator<Item = KernelPath> {
    kernels(Dtype::I8).filter(|kernel| kernel.kernel.compute_type(kernel.path) == "i8")
}

/// These, and those that multiply 16-bit integers.
fn integers() -> impl Iterator<Item = KernelPath> {
    kernels(Dtype::I8).filter(|kernel| ["i8", "i16"].contains(&kernel.kernel.compute_type(kernel.path)))
}

/// What rounding probabilities may cost: relative RMS, and the largest error of log-sum-exp.
fn bounds(kernel: KernelPath) -> [f64; 2] {
    if kernel.kernel.compute_type(kernel.path) == "i8" { [2e-2, 1e-2] } else { [3e-4, 4e-4] }
}

/// The fourth largest of the maxima of sixteen keys each, counted from key 0; the least of them if
/// there are fewer.
fn fourth_of_sixteens(keys: &std::ops::Range<usize>, scores: &[f32]) -> f32 {
    let mut maxima = std::collections::BTreeMap::new();
    for (j, &score) in keys.clone().zip(scores) {
        let max = maxima.entry(j / 16).or_insert(score);
        *max = score.max(*max);
    }
    let mut maxima: Vec<f32> = maxima.into_values().collect();
    maxima.sort_by(|a, b| b.total_cmp(a));
    maxima[maxima.len().min(4) - 1]
}

/// 255 · 2^(score - max), rounded, from a table of 64 steps for each halving: with 16 lanes.
fn by_table(score: f32, max: f32) -> f64 {
    let distance = (-64.0 * f64::from(score) + 64.0 * f64::from(max)).round_ties_even();
    let distance = (distance + 64.0 * 6.0).min(1023.0) as u32;
    let entry = (32640.0 * (-f64::from(distance % 64) / 64.0).exp2()).round() as u32;
    f64::from((entry >> (distance / 64)).div_ceil(2))
}

/// A probability of 8 bits as 8 lanes make it: from 256 steps for each halving, by a parabola in
/// numbers of 16 bits.
fn by_parabola(score: f32, max: f32) -> f64 {
    let units = (256.0 * f64::from(score - max)).round_ties_even() + 9.0 * 256.0 - 1.0;
    let units = units.max(-32768.0) as i32;
    let times = |a: i32, b: i32| (a * b + (1 << 14)) >> 15;
    let fraction = units.rem_euclid(256) * 127;
    let y = times(times(5_754, fraction) + 10_746, fraction) + 16_399;
    let power = units.div_euclid(256);
    if power < 0 { 0.0 } else { f64::from(times(y, 1 << power)) }
}

/// A probability of 8 bits as 4 lanes make it: by a parabola in f32, around the nearest power of
/// two.
fn by_parabola_in_f32(score: f32, max: f32) -> f64 {
    let distance = (score - max).max(-20.0);
    let power = distance.round_ties_even();
    let fraction = distance - power;
    let y = 61.217_71_f32.mul_add(fraction, 179.272_55).mul_add(fraction, 255.0);
    (f64::from(y) * f64::from(power).exp2()).round_ties_even()
}

/// Rows of O, and LSE: probabilities of each block of keys relative to its own reference, as
/// multiples of 1/255; sums of integers are exact, and what exceeds the reference is added to them.
fn by_the_book(inputs: &Inputs<i8>, block: usize, probability: fn(f32, f32) -> f64) -> (Vec<f64>, Vec<f64>) {
    let Size { heads, len_q, len_kv, dim } = inputs.size;
    let [q_scale, k_scale, v_scale] = inputs.scales;
    let log2 = (f64::from(inputs.semantics.softmax_scale) * std::f64::consts::LOG2_E) as f32;
    let factor = q_scale * (log2 * k_scale);
    let (mut o, mut lse) = (Vec::new(), Vec::new());
    for h in 0..heads {
        for i in 0..len_q {
            let seen = match inputs.semantics.window.right {
                None => len_kv,
                Some(_) => (inputs.q_pos() + i as i64 + 1).clamp(0, len_kv as i64) as usize,
            };
            let row = |x: &[i8], len: usize, i: usize| x[(h * len + i) * dim..][..dim].to_vec();
            let q = row(&inputs.q, len_q, i);
            let mut sums = vec![0.0; dim];
            let (mut total, mut reference) = (0.0, f64::NEG_INFINITY);
            for first in (0..seen).step_by(block) {
                let keys = first..seen.min(first + block);
                let score = |j| {
                    let k = row(&inputs.k, len_kv, j);
                    q.iter().zip(k).map(|(&q, k)| i64::from(q) * i64::from(k)).sum::<i64>() as f32 * factor
                };
                let scores: Vec<f32> = keys.clone().map(score).collect();
                let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let fourth = fourth_of_sixteens(&keys, &scores);
                let top = max.min(fourth + 2.0);
                let larger = reference.max(f64::from(max));
                let (before, now) = ((reference - larger).exp2(), (f64::from(top) - larger).exp2() / 255.0);
                reference = larger;
                let mut p_v = vec![0.0; dim];
                let mut p_sum = 0.0;
                for (j, score) in keys.zip(scores) {
                    // What exceeds the top is not rounded.
                    let excess = (f64::from(score.max(top)) - f64::from(top)).exp2() - 1.0;
                    let p = probability(score.min(top), top) + 255.0 * excess;
                    p_sum += p;
                    for (sum, v) in p_v.iter_mut().zip(row(&inputs.v, len_kv, j)) {
                        *sum += p * f64::from(v);
                    }
                }
                total = before * total + now * p_sum;
                sums.iter_mut().zip(p_v).for_each(|(sum, x)| *sum = before * *sum + now * x);
            }
            let empty = seen == 0;
            o.extend(sums.iter().map(|x| if empty { 0.0 } else { x / total * f64::from(v_scale) }));
            lse.push(if empty {
                f64::NEG_INFINITY
            } else {
                (reference + total.log2()) * std::f64::consts::LN_2
            });
        }
    }
    (o, lse)
}

#[test]
fn every_instruction_set_computes_what_the_book_says() {
    for (len_q, len_kv, dim) in
        [(1, 1, 1), (16, 5, 3), (33, 300, 64), (70, 129, 100), (40, 700, 32), (64, 64, 257)]
    {
        let blocks = [0, 7, 64, 100];
        for &block_kv in &blocks[..if thin() > 1 { 2 } else { 4 }] {
            let inputs = Inputs::normal(Size::new(2, len_q, len_kv, dim), len_kv as u64).quantised();
            for inputs in [inputs.clone(), inputs.causal()] {
                let inputs = inputs.blocks(0, block_kv);
                for kernel in bytes() {
                    let mut block = 0;
                    let out = inputs.with_problem(|problem| {
                        block = kernel.plan(problem.shape(), 1).unwrap().tiles.kv;
                        common::run(problem, kernel, 1).unwrap();
                    });
                    let probability = match kernel.kernel.lanes() {
                        4 => by_parabola_in_f32,
                        8 => by_parabola,
                        _ => by_table,
                    };
                    let (o, lse) = by_the_book(&inputs, block, probability);
                    // A rounding that goes the other way is a step of 1/255 of one probability.
                    let error = relative_rms(&out.o, &o);
                    assert!(error <= 1e-3, "{kernel:?} {:?} {block_kv}: {error:.1e}", inputs.size);
                    let error = max_error(&out.lse, &lse);
                    assert!(error <= 1e-3, "{kernel:?} {:?} {block_kv}: LSE {error:.1e}", inputs.size);
                }
            }
        }
    }
}

/// Sums of products never saturate or wrap: the largest there are, and long ones.
#[test]
fn dot_products_of_any_length_are_exact() {
    for dim in [1, 4, 63, 64, 1000, 4096, 65536, 70_000] {
        if dim == 65536 && thin() > 1 {
            continue;
        }
        for (x, y, len_q) in
            [(-128i8, -128i8, 20), (-128, 127, 1), (127, 127, 20), (1, -128, 20), (-128, -128, 1)]
        {
            let size = Size::new(1, len_q, 1, dim);
            let mut inputs = Inputs::normal(size, 1).quantised();
            (inputs.scales, inputs.semantics.softmax_scale) = ([1.0, 1.0, 0.5], 1.0 / 1024.0);
            inputs.q.fill(x);
            inputs.k.fill(y);
            let v: Vec<f64> = inputs.v.iter().map(|&v| 0.5 * f64::from(v)).collect();
            let exact = f64::from(x) * f64::from(y) * dim as f64 / 1024.0;
            for kernel in integers() {
                let takes = |takes: &mut bool| {
                    inputs.with_problem(|problem| {
                        *takes = kernel.kernel.takes(problem.shape());
                        if *takes {
                            common::run(problem, kernel, 1).unwrap();
                        }
                    })
                };
                let mut is_taken = false;
                let out = takes(&mut is_taken);
                assert_eq!(is_taken, dim <= 65536);
                if is_taken {
                    for lse in out.lse {
                        let error = (f64::from(lse) - exact).abs() / exact.abs();
                        assert!(error <= 3e-7, "{kernel:?} {dim} {x} {y}: {lse} is not {exact}");
                    }
                    assert!(out.o.chunks(dim).all(|o| max_error(o, &v) <= 64.0 * 2.0 * 1.2e-7));
                }
            }
        }
    }
}

/// Blocks are cut where sums of integers could no longer hold them.
#[test]
fn large_blocks_do_not_overflow() {
    let keys = 70_000;
    for len_q in if thin() > 1 { vec![] } else { vec![1, 16] } {
        let mut inputs = Inputs::normal(Size::new(1, len_q, keys, 4), 2).quantised().blocks(0, keys);
        inputs.k.fill(1);
        inputs.v.fill(-128);
        for kernel in integers() {
            let out = inputs.run(kernel, 1);
            let expected = -128.0 * f64::from(inputs.scales[2]);
            let error = max_error(&out.o, &vec![expected; out.o.len()]);
            assert!(error <= 1e-5 * expected.abs(), "{kernel:?}: {error:.1e}");
        }
    }
}

/// Where rows are few, one alone is multiplied in another way than several, to the same bits: heads
/// of any length, any number of keys, windows that begin and end anywhere.
#[test]
fn a_row_alone_has_the_bits_that_it_has_among_others() {
    let rows = 3;
    for (dim, keys) in [
        (1, 40),
        (3, 5),
        (31, 70),
        (63, 17),
        (64, 300),
        (65, 33),
        (100, 16),
        (128, 600),
        (192, 64),
        (514, 90),
        (576, 3),
    ] {
        let normal = Inputs::normal(Size::new(1, rows, keys, dim), dim as u64);
        let inputs = normal.quantised();
        for kernel in integers().filter(|kernel| kernel.path == Path::Decode) {
            for window in [Window::default(), Window { left: Some(21), right: Some(2) }] {
                let compute = |rows: std::ops::Range<usize>| {
                    let n = rows.len();
                    let (mut o, mut lse) = (vec![0f32; n * dim], vec![0f32; n]);
                    let dense = |dtype, len, dim| Layout::dense(dtype, 1, len, dim).unwrap();
                    let [k_scale, v_scale] = [&0.02, &0.05].map(Quant::per_tensor);
                    let mut tensors = Tensors::new(
                        View::of(&normal.q[rows.start * dim..rows.end * dim], dense(Dtype::F32, n, dim))
                            .unwrap(),
                        View::of(&inputs.k, dense(Dtype::I8, keys, dim)).unwrap().quantised(k_scale).unwrap(),
                        View::of(&inputs.v, dense(Dtype::I8, keys, dim)).unwrap().quantised(v_scale).unwrap(),
                        ViewMut::of(&mut o, dense(Dtype::F32, n, dim)).unwrap(),
                    );
                    tensors.lse = Some(ViewMut::of(&mut lse, dense(Dtype::F32, n, 1)).unwrap());
                    let q_pos = Position::At((keys / 2 + rows.start) as i64);
                    let semantics = Semantics { q_pos, window, ..Semantics::with_scale(0.3) };
                    let mut problem = Problem::new(tensors, semantics).unwrap();
                    assert!(kernel.kernel.takes(problem.shape()));
                    common::run(&mut problem, kernel, 1).unwrap();
                    (o, lse)
                };
                let (o, lse) = compute(0..rows);
                assert!(o.iter().any(|&x| x != 0.0) && o.iter().all(|x| x.is_finite()));
                for row in 0..rows {
                    let alone = compute(row..row + 1);
                    let same =
                        same_bits(&alone.0, &o[row * dim..][..dim]) && same_bits(&alone.1, &lse[row..=row]);
                    assert!(same, "{kernel:?}, {keys} x {dim}, {window:?}: row {row}");
                }
            }
        }
    }
}

/// What numerics.md says of normal data.
#[test]
fn errors_are_as_documented() {
    let sizes = [(128, 64), (512, 64), (2048, 64), (2048, 128), (8192, 64)];
    for &(len, dim) in &sizes[..if thin() > 1 { 2 } else { 5 }] {
        // Some rows of queries are enough.
        let inputs = Inputs::normal(Size::new(1, 64, len, dim), len as u64).quantised();
        let exact = inputs.exact();
        for kernel in integers() {
            let out = inputs.run(kernel, 1);
            let error = relative_rms(&out.o, &exact.o);
            println!("{kernel:?} {len} x {dim}: {error:.1e}, LSE {:.1e}", max_error(&out.lse, &exact.lse));
            let [rms, of_lse] = bounds(kernel);
            assert!(error <= rms, "{kernel:?} {len} x {dim}: {error:.1e}");
            assert!(max_error(&out.lse, &exact.lse) <= of_lse, "{kernel:?} {len} x {dim}");
            assert!(max_error(&out.o, &exact.o) <= rms * f64::from(inputs.scales[2]) * largest_of(&inputs.v));
        }
    }
}

fn largest_of(x: &[i8]) -> f64 {
    largest(&x.iter().map(|&x| f32::from(x)).collect::<Vec<_>>())
}

/// Which problems are computed so: what K and V are stored as and what shares their scales decide,
/// and few rows are computed by f32.
#[test]
fn the_plan_says_when_integers_compute() {
    let words = |inputs: &Inputs<i8>| {
        let mut words = String::new();
        inputs.with_problem(|problem| {
            let shape = problem.shape();
            let row = flash_attention::kernel::select(shape, Accuracy::Fast).unwrap();
            words = Plan::new(shape, row, Machine::get(), 1).unwrap().to_string();
        });
        words
    };
    let many = Inputs::normal(Size::new(1, 64, 64, 64), 3).quantised();
    let best = kernels(Dtype::I8).next().unwrap();
    assert_eq!(best.path, Path::Prefill);
    let family = format!(" {}, prefill", best.kernel.compute_type(best.path));
    assert!(words(&many).contains(&family), "{}", words(&many));
    let few = Inputs::normal(Size::new(1, 2, 64, 64), 3).quantised();
    let family = if has_integers(best.kernel.isa()) { " i16, decode" } else { " f32, decode" };
    assert!(words(&few).contains(family), "{}", words(&few));
}

/// Sums of integers cannot be NaN; rows that see a NaN are, and only they.
#[test]
fn what_is_not_a_number_reaches_the_rows_that_see_it() {
    let size = Size::new(1, 40, 40, 8);
    let normal = Inputs::normal(size, 4);
    let inputs = normal.quantised();
    for kernel in integers() {
        // Causal: key 25 is seen by rows 25 and later.
        let compute = |q: &[f32], scales: &[f32], v_scale: f32, mask: Option<&[f32]>| {
            let (mut o, mut lse) = (vec![0f32; 40 * 8], vec![0f32; 40]);
            let key_scales =
                Quant { scale: Some(Array::of(scales)), zero: None, stride: [0, 0, 1, 0], group: [1; 2] };
            let v_scale = Quant::per_tensor(&v_scale);
            let dense = |dtype, dim| Layout::dense(dtype, 1, 40, dim).unwrap();
            let mut tensors = Tensors::new(
                View::of(q, dense(Dtype::F32, 8)).unwrap(),
                View::of(&inputs.k, dense(Dtype::I8, 8)).unwrap().quantised(key_scales).unwrap(),
                View::of(&inputs.v, dense(Dtype::I8, 8)).unwrap().quantised(v_scale).unwrap(),
                ViewMut::of(&mut o, dense(Dtype::F32, 8)).unwrap(),
            );
            tensors.lse = Some(ViewMut::of(&mut lse, dense(Dtype::F32, 1)).unwrap());
            tensors.logits.mask = mask.map(|mask| View::of(mask, dense(Dtype::F32, 40)).unwrap());
            let semantics = Semantics::with_scale(0.4).causal();
            let mut problem = Problem::new(tensors, semantics).unwrap();
            assert!(kernel.kernel.takes(problem.shape()));
            common::run(&mut problem, kernel, 1).unwrap();
            (o, lse)
        };
        let scales = [0.02f32; 40];
        let zeros = [0f32; 1600];
        let (o, lse) = compute(&normal.q, &scales, 0.02, None);
        let (o_masked, _) = compute(&normal.q, &scales, 0.02, Some(&zeros));
        assert!(common::same_bits(&o, &o_masked));
        let check = |got: (Vec<f32>, Vec<f32>), is_nan: &dyn Fn(usize) -> bool, what: &str| {
            for row in 0..40 {
                let (now, before) = (&got.0[row * 8..][..8], &o[row * 8..][..8]);
                if is_nan(row) {
                    assert!(
                        now.iter().all(|x| x.is_nan()) && got.1[row].is_nan(),
                        "{kernel:?}: {what}, row {row}"
                    );
                } else {
                    let same = common::same_bits(now, before) && got.1[row].to_bits() == lse[row].to_bits();
                    assert!(same, "{kernel:?}: {what} reached row {row}");
                }
            }
        };
        for bad in [f32::NAN, f32::INFINITY] {
            let mut with = scales;
            with[25] = bad;
            if bad.is_nan() {
                check(compute(&normal.q, &with, 0.02, None), &|row| row >= 25, "a scale");
            }
            let mut q = normal.q.clone();
            q[31 * 8 + 3] = bad;
            check(compute(&q, &scales, 0.02, None), &|row| row == 31, "a query");
        }
        let mut mask = zeros;
        (mask[33 * 40 + 7], mask[5 * 40 + 30]) = (f32::NAN, f32::NAN);
        check(compute(&normal.q, &scales, 0.02, Some(&mask)), &|row| row == 33, "a mask");
    }
}
