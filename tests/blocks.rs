//! K and V in blocks of ggml where query rows are few: integers, whose sums are multiplied by
//! scales that lie beside them.

mod common;
#[path = "common/store.rs"]
mod store;

use std::ffi::CStr;

use common::{Inputs, KernelPath, Size, kernels, relative_rms, same_bits};
use flash_attention::dtype::Dtype;
use flash_attention::kernel::Path;
use flash_attention::problem::{Accuracy, Position, Problem, Semantics, Tensors, Window};
use flash_attention::view::{Layout, View, ViewMut};
use store::encode;

const BLOCK: usize = 32;

/// Types in blocks: those of 4 and 5 bits are unpacked to the first.
const TYPES: [Dtype; 6] = [Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4_1, Dtype::Q5_0, Dtype::Q5_1, Dtype::Iq4Nl];

/// Element `i` of a block, by the definition.
fn element(dtype: Dtype, block: &[u8], i: usize) -> f64 {
    let number = |at: usize| half::f16::from_le_bytes([block[at], block[at + 1]]).to_f64();
    let byte = block[block.len() - 16 + i % 16];
    let code = f64::from(if i < 16 { byte & 15 } else { byte >> 4 });
    let fifth = |at: usize| f64::from(block[at + i / 8] >> (i % 8) & 1) * 16.0;
    match dtype {
        Dtype::Q8_0 => number(0) * f64::from(block[2 + i].cast_signed()),
        Dtype::Q4_0 => number(0) * (code - 8.0),
        Dtype::Q4_1 => number(0) * code + number(2),
        Dtype::Q5_0 => number(0) * (code + fifth(2) - 16.0),
        Dtype::Q5_1 => number(0) * (code + fifth(4)) + number(2),
        Dtype::Iq4Nl => {
            let of =
                [-127., -104., -83., -65., -49., -35., -22., -10., 1., 13., 25., 38., 53., 69., 89., 113.];
            number(0) * of[code as usize]
        }
        _ => unreachable!("no type in blocks"),
    }
}

/// Queries of one head, and K and V as blocks.
#[derive(Clone)]
struct Case {
    dtype: Dtype,
    dim: usize,
    q: Vec<f32>,
    k: Vec<u8>,
    v: Vec<u8>,
}

impl Case {
    fn new(dtype: Dtype, rows: usize, keys: usize, dim: usize) -> Case {
        let normal = Inputs::normal(Size::new(1, rows, keys, dim), (keys + dim) as u64);
        let [k, v] = [&normal.k, &normal.v].map(|x| encode(dtype, x, dim).0);
        Case { dtype, dim, q: normal.q, k, v }
    }

    fn keys(&self) -> usize {
        self.k.len() / self.row_bytes()
    }

    /// Scores of the same size whatever the length of a head.
    fn scale(&self) -> f32 {
        2.0 / (self.dim as f32).sqrt()
    }

    fn row_bytes(&self) -> usize {
        self.dim / BLOCK * self.dtype.block_bytes()
    }

    /// Outputs, and log-sum-exps, of some of the rows; the first row of all is at key `first`.
    fn compute(
        &self,
        kernel: KernelPath,
        rows: std::ops::Range<usize>,
        (first, window): (usize, Window),
        mask: Option<&[u8]>,
    ) -> (Vec<f32>, Vec<f32>) {
        let (n, dim, keys) = (rows.len(), self.dim, self.keys());
        let (mut o, mut lse) = (vec![0f32; n * dim], vec![0f32; n]);
        let dense = |dtype, len, dim| Layout::dense(dtype, 1, len, dim).unwrap();
        // SAFETY: as many blocks, which outlive the problem.
        let [k, v] = [&self.k, &self.v]
            .map(|x| unsafe { View::new(x.as_ptr(), dense(self.dtype, keys, dim)).unwrap() });
        let q = View::of(&self.q[rows.start * dim..rows.end * dim], dense(Dtype::F32, n, dim)).unwrap();
        let mut tensors = Tensors::new(q, k, v, ViewMut::of(&mut o, dense(Dtype::F32, n, dim)).unwrap());
        tensors.lse = Some(ViewMut::of(&mut lse, dense(Dtype::F32, n, 1)).unwrap());
        // SAFETY: a byte for each row and key.
        tensors.logits.mask = mask.map(|mask| unsafe {
            assert!(mask.len() >= n * keys);
            View::new(mask.as_ptr(), dense(Dtype::Bool8, n, keys)).unwrap()
        });
        let q_pos = Position::At((first + rows.start) as i64);
        let semantics = Semantics { q_pos, window, ..Semantics::with_scale(self.scale()) };
        let mut problem = Problem::new(tensors, semantics).unwrap();
        assert!(kernel.kernel.takes(problem.shape()));
        common::run(&mut problem, kernel, 1).unwrap();
        (o, lse)
    }

    fn number(&self, which: &[u8], key: usize, d: usize) -> f64 {
        let bytes = self.dtype.block_bytes();
        element(self.dtype, &which[key * self.row_bytes() + d / BLOCK * bytes..][..bytes], d % BLOCK)
    }

    /// The same of one row that sees some keys, by the definition.
    fn exact(&self, row: usize, sees: impl Fn(usize) -> bool) -> (Vec<f64>, f64) {
        let keys: Vec<usize> = (0..self.keys()).filter(|&key| sees(key)).collect();
        let q = &self.q[row * self.dim..][..self.dim];
        let score = |key: &usize| {
            let products = q.iter().enumerate().map(|(d, &q)| f64::from(q) * self.number(&self.k, *key, d));
            f64::from(self.scale()) * products.sum::<f64>()
        };
        let scores: Vec<f64> = keys.iter().map(score).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        let mut o = vec![0.0; self.dim];
        for (key, s) in keys.iter().zip(&scores) {
            for (d, o) in o.iter_mut().enumerate() {
                *o += (s - max).exp() / sum * self.number(&self.v, *key, d);
            }
        }
        (o, max + sum.ln())
    }
}

/// Those that multiply so.
fn integers() -> impl Iterator<Item = KernelPath> {
    few(Dtype::Q8_0).filter(|kernel| kernel.kernel.compute_type(kernel.path) == "i16")
}

fn few(dtype: Dtype) -> impl Iterator<Item = KernelPath> {
    kernels(dtype).filter(|kernel| kernel.path == Path::Decode)
}

/// Half or all of a vector at the end, one pass over V or several; keys that fill no vector, or
/// several blocks of keys.
const SHAPES: [(usize, usize); 9] =
    [(32, 40), (64, 5), (96, 70), (128, 600), (128, 17), (160, 33), (256, 100), (288, 64), (576, 30)];

/// Each type with some of the shapes, and the first type with all.
fn cases() -> impl Iterator<Item = (Dtype, usize, usize)> {
    let all = TYPES.into_iter().enumerate();
    all.flat_map(|(n, dtype)| {
        let some = SHAPES.into_iter().enumerate().filter(move |(i, _)| n == 0 || (i + n).is_multiple_of(3));
        some.map(move |(_, (dim, keys))| (dtype, dim, keys))
    })
}

const WINDOWS: [Window; 3] = [
    Window { left: None, right: None },
    Window { left: Some(21), right: Some(2) },
    Window { left: Some(3), right: Some(0) },
];

#[test]
fn a_row_alone_has_the_bits_that_it_has_among_others() {
    for (dtype, dim, keys) in cases() {
        let case = Case::new(dtype, 6, keys, dim);
        for kernel in few(dtype) {
            for window in WINDOWS {
                let place = (keys / 2, window);
                let (o, lse) = case.compute(kernel, 0..6, place, None);
                assert!(o.iter().any(|&x| x != 0.0) && o.iter().all(|x| x.is_finite()));
                for rows in [0..1, 1..2, 5..6, 2..4, 1..6] {
                    let part = case.compute(kernel, rows.clone(), place, None);
                    let same = same_bits(&part.0, &o[rows.start * dim..rows.end * dim])
                        && same_bits(&part.1, &lse[rows.clone()]);
                    assert!(same, "{kernel:?}, {dtype}, {keys} x {dim}, {window:?}: rows {rows:?}");
                }
            }
        }
    }
}

/// Scales as a quantising engine finds them; then of all sizes, so that a block weighs 2^20 times
/// another, or nothing.
#[test]
fn errors_are_as_documented() {
    for (dtype, dim, keys) in cases() {
        for is_wide in [false, true] {
            let mut case = Case::new(dtype, 4, keys, dim);
            // Codes of few bits have larger scales.
            let factor = if [Dtype::Q8_0, Dtype::Iq4Nl].contains(&dtype) { 1.0 } else { 8.0 };
            if is_wide {
                // Of K only as far as rows still look at more than one key.
                for (n, block) in case.v.chunks_mut(dtype.block_bytes()).enumerate() {
                    let scale = half::f16::from_f64(2f64.powi((n * 7 % 21) as i32 - 14) * ((n % 5) as f64));
                    block[..2].copy_from_slice(&scale.to_le_bytes());
                }
                for (n, block) in case.k.chunks_mut(dtype.block_bytes()).enumerate() {
                    let scale = half::f16::from_f64(0.01 * factor * (n % 4) as f64);
                    block[..2].copy_from_slice(&scale.to_le_bytes());
                }
            }
            for kernel in few(dtype) {
                for window in WINDOWS {
                    let (first, what) =
                        (keys / 2, format!("{kernel:?}, {dtype}, {keys} x {dim}, {window:?}, {is_wide}"));
                    let (o, lse) = case.compute(kernel, 0..4, (first, window), None);
                    for row in 0..4 {
                        let sees = |key: usize| {
                            let p = first + row;
                            window.left.is_none_or(|left| key + left as usize >= p)
                                && window.right.is_none_or(|right| key <= p + right as usize)
                        };
                        let (exact, exact_lse) = case.exact(row, sees);
                        // Each block of elements is as exact as its own values are large.
                        for (block, exact) in exact.chunks(BLOCK).enumerate() {
                            let got = &o[row * dim + block * BLOCK..][..BLOCK];
                            let error = relative_rms(got, exact);
                            assert!(error <= 1e-3, "{what}: row {row}, block {block}: {error:.1e}");
                        }
                        let error = relative_rms(&o[row * dim..][..dim], &exact);
                        assert!(error <= 3e-4, "{what}: row {row}: {error:.1e}");
                        assert!((f64::from(lse[row]) - exact_lse).abs() <= 4e-4, "{what}: row {row}");
                    }
                }
            }
        }
    }
}

/// Scales of V that no integer weight can have in it: each element has what the definition says,
/// and a row from which the key is hidden has nothing of them.
#[test]
fn odd_scales_are_data() {
    TYPES.into_iter().for_each(odd_scales_of);
}

fn odd_scales_of(dtype: Dtype) {
    let has_minimum = [Dtype::Q4_1, Dtype::Q5_1].contains(&dtype);
    let (dim, keys, odd) = (96, 50, 37);
    let before = Case::new(dtype, 4, keys, dim);
    for scale in [-0.03, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for block in 0..dim / BLOCK {
            let mut case = before.clone();
            let at = odd * case.row_bytes() + block * dtype.block_bytes();
            case.v[at..at + 2].copy_from_slice(&half::f16::from_f64(scale).to_le_bytes());
            // Hidden from the rows 0 and 1.
            let mut mask = vec![1u8; 4 * keys];
            (0..2).for_each(|row| mask[row * keys + odd] = 0);
            for kernel in few(dtype) {
                let what = format!("{kernel:?}, {dtype}, {scale}, block {block}");
                let all = (0, Window::default());
                let (o, lse) = case.compute(kernel, 0..4, all, Some(&mask));
                let (clean, clean_lse) = before.compute(kernel, 0..4, all, Some(&mask));
                assert!(same_bits(&lse, &clean_lse), "{what}");
                assert!(same_bits(&o[..2 * dim], &clean[..2 * dim]), "{what}: rows that do not see it");
                for row in 0..4 {
                    let (exact, _) = case.exact(row, |key| row >= 2 || key != odd);
                    for d in 0..dim {
                        let (got, exact) = (o[row * dim + d], exact[d]);
                        let is_near = if exact.is_finite() {
                            (f64::from(got) - exact).abs() <= 1e-3
                        } else {
                            // With a minimum, what is infinite may be the difference of two.
                            (got.is_nan() && (exact.is_nan() || has_minimum)) || f64::from(got) == exact
                        };
                        assert!(is_near, "{what}: row {row}, element {d}: {got} is not {exact}");
                    }
                }
                // It is the last key that row 1 sees: row 0 does not.
                let window = (odd - 4, Window { left: Some(9), right: Some(3) });
                let [o, clean] = [&case, &before].map(|case| case.compute(kernel, 0..2, window, None).0);
                assert!(same_bits(&o[..dim], &clean[..dim]), "{what}: next to a window");
                assert!(!same_bits(&o[dim..], &clean[dim..]), "{what}: in a window");
            }
        }
    }
    // Minima of V that are not finite.
    for minimum in if has_minimum { &[f64::NAN, f64::INFINITY, f64::NEG_INFINITY][..] } else { &[] } {
        let mut case = before.clone();
        let at = odd * case.row_bytes() + dtype.block_bytes() + 2;
        case.v[at..at + 2].copy_from_slice(&half::f16::from_f64(*minimum).to_le_bytes());
        let mut mask = vec![1u8; 4 * keys];
        mask[odd] = 0;
        for kernel in few(dtype) {
            let [o, clean] = [&case, &before]
                .map(|case| case.compute(kernel, 0..4, (0, Window::default()), Some(&mask)).0);
            assert!(same_bits(&o[..dim], &clean[..dim]), "{kernel:?}, {dtype}: a row that does not see it");
            for (i, x) in o.iter().enumerate().skip(dim) {
                let is_touched = (BLOCK..2 * BLOCK).contains(&(i % dim));
                let expected = if is_touched { *minimum as f32 } else { clean[i] };
                // Next to it, values are converted.
                let is_near =
                    (x - expected).abs() <= 1e-3 || *x == expected || (x.is_nan() && expected.is_nan());
                assert!(is_near, "{kernel:?}, {dtype}: element {i} is {x}, not {expected}");
            }
        }
    }
    // A scale of K that is not a number makes the rows that see it so, and only them.
    let mut case = before.clone();
    let at = odd * case.row_bytes();
    case.k[at..at + 2].copy_from_slice(&half::f16::NAN.to_le_bytes());
    let mut mask = vec![1u8; 4 * keys];
    mask[odd] = 0;
    for kernel in few(dtype) {
        let [(o, lse), (clean, clean_lse)] =
            [&case, &before].map(|case| case.compute(kernel, 0..4, (0, Window::default()), Some(&mask)));
        assert!(same_bits(&o[..dim], &clean[..dim]) && same_bits(&lse[..1], &clean_lse[..1]), "{kernel:?}");
        assert!(o[dim..].iter().all(|x| x.is_nan()) && lse[1..].iter().all(|x| x.is_nan()), "{kernel:?}");
    }
}

/// Those that multiply so are where the instruction set has them, and are the ones that are chosen,
/// unless precision is demanded.
#[test]
fn integers_are_where_the_machine_has_them() {
    let is_there = |isa: &&CStr| flash_attention::kernel::available().any(|row| row.isa() == *isa);
    let expected: Vec<_> = [c"avx512vnni", c"avx2"].into_iter().filter(is_there).collect();
    let mut found: Vec<_> = integers().map(|kernel| kernel.kernel.isa()).collect();
    // Kernels for many rows, and for few.
    found.dedup();
    assert_eq!(found, expected.into_iter().filter(|isa| common::is_tested(isa)).collect::<Vec<_>>());
}

/// With AVX512-VNNI nibbles are repacked, and Q8_0 of many query rows.
#[test]
fn many_rows_are_repacked() {
    let best = flash_attention::kernel::best().unwrap().isa();
    let is_there = [c"avx512vnni", c"avx512bf16", c"amx"].contains(&best);
    for (dtype, rows, expected) in [(Dtype::Q8_0, 1, false), (Dtype::Q8_0, 8, true), (Dtype::Q4_0, 1, true)] {
        let case = Case::new(dtype, rows, 40, 64);
        let dense = |dtype, len| Layout::dense(dtype, 1, len, 64).unwrap();
        let mut o = vec![0f32; rows * 64];
        // SAFETY: as many blocks, which outlive the problem.
        let [k, v] = [&case.k, &case.v].map(|x| unsafe { View::new(x.as_ptr(), dense(dtype, 40)).unwrap() });
        let q = View::of(&case.q, dense(Dtype::F32, rows)).unwrap();
        let tensors = Tensors::new(q, k, v, ViewMut::of(&mut o, dense(Dtype::F32, rows)).unwrap());
        let problem = Problem::new(tensors, Semantics::with_scale(1.0)).unwrap();
        let kernel = flash_attention::kernel::select(problem.shape(), Accuracy::AsStored).unwrap();
        assert_eq!(kernel.repacks(), is_there && expected, "{dtype:?}, {rows} rows");
    }
}

/// Who demands precision gets f32, on each instruction set.
#[test]
fn precision_is_f32() {
    let case = Case::new(Dtype::Q8_0, 1, 40, 64);
    let dense = |dtype, len| Layout::dense(dtype, 1, len, 64).unwrap();
    let mut o = vec![0f32; 64];
    // SAFETY: as many blocks, which outlive the problem.
    let [k, v] =
        [&case.k, &case.v].map(|x| unsafe { View::new(x.as_ptr(), dense(Dtype::Q8_0, 40)).unwrap() });
    let q = View::of(&case.q, dense(Dtype::F32, 1)).unwrap();
    let tensors = Tensors::new(q, k, v, ViewMut::of(&mut o, dense(Dtype::F32, 1)).unwrap());
    let problem = Problem::new(tensors, Semantics::with_scale(1.0)).unwrap();
    let select = |accuracy| flash_attention::kernel::select(problem.shape(), accuracy).unwrap();
    assert_eq!(select(Accuracy::Precise).compute_type(Path::Decode), "f32");
    let best = flash_attention::kernel::best().unwrap().isa();
    if [c"avx2", c"avx512vnni", c"avx512bf16", c"amx"].contains(&best) {
        assert_eq!(select(Accuracy::AsStored).compute_type(Path::Decode), "i16");
    }
}

/// Scales from the smallest binary16 to the largest, blocks of zeros, and a key that has most of
/// the probability and hardly a value: over several blocks of keys.
#[test]
fn extreme_scales_and_sinks_of_a_long_cache() {
    [Dtype::Q8_0, Dtype::Q4_0, Dtype::Q5_0].into_iter().for_each(extreme_scales_of);
}

fn extreme_scales_of(dtype: Dtype) {
    let (dim, keys) = (64, 5000);
    for (of_k, of_v, has_sink) in [
        (1.0, 1.0, true),
        // Products of the smallest scale that binary16 has.
        (2f64.powi(-24), 2f64.powi(-24), false),
        (2f64.powi(-24), 65504.0, false),
        (8.0, 65504.0, false),
        (0.0, 1.0, false),
        (1.0, 0.0, false),
    ] {
        let mut case = Case::new(dtype, 3, keys, dim);
        let normal = of_k == 1.0;
        for (which, scale) in [(&mut case.k, of_k), (&mut case.v, of_v)] {
            if scale != 1.0 {
                for block in which.chunks_mut(dtype.block_bytes()) {
                    block[..2].copy_from_slice(&half::f16::from_f64(scale).to_le_bytes());
                }
            }
        }
        if of_k == 8.0 {
            // Small scores all the same.
            case.q.iter_mut().for_each(|q| *q /= 1000.0);
        }
        if has_sink {
            // Key 0 has nine tenths of the probability of row 0, and values near 0.
            let (row, bytes) = (case.q[..dim].to_vec(), case.row_bytes());
            let like: Vec<f32> = row.iter().map(|q| 0.8 * q).collect();
            case.k[..bytes].copy_from_slice(&encode(dtype, &like, dim).0);
            let small: Vec<f32> = row.iter().map(|q| 0.001 * q).collect();
            case.v[..bytes].copy_from_slice(&encode(dtype, &small, dim).0);
        }
        for kernel in few(dtype) {
            let what = format!("{kernel:?}, {dtype}, scales {of_k:e} and {of_v:e}");
            let (o, lse) = case.compute(kernel, 0..3, (0, Window::default()), None);
            for row in 0..3 {
                let (exact, exact_lse) = case.exact(row, |_| true);
                let got = &o[row * dim..][..dim];
                if of_v == 0.0 {
                    assert!(got.iter().all(|&x| x == 0.0), "{what}");
                } else {
                    let error = relative_rms(got, &exact);
                    // Where a sink has most of the probability, rounded queries move it.
                    let most = if has_sink && normal { 5e-4 } else { 3e-4 };
                    assert!(error <= most, "{what}: row {row}: {error:.1e}");
                }
                assert!((f64::from(lse[row]) - exact_lse).abs() <= 1e-3, "{what}: row {row}");
            }
        }
    }
}

/// As models with latent caches have it: V is the first 512 of 576 elements of K, on one kv head.
#[test]
fn values_may_be_a_part_of_keys() {
    [Dtype::Q8_0, Dtype::Q4_1].into_iter().for_each(values_of_keys);
}

fn values_of_keys(dtype: Dtype) {
    let (dim, of_v, keys) = (576, 512, 700);
    let case = Case::new(dtype, 5, keys, dim);
    let layout = |of, len, dim| Layout::dense(of, 1, len, dim).unwrap();
    let of_k = layout(dtype, keys, dim);
    for kernel in few(dtype) {
        let mut alone = Vec::new();
        for rows in [5, 1, 2] {
            let mut o = vec![0f32; rows * of_v];
            // SAFETY: as many blocks, which outlive the problem; rows of V are parts of those of K.
            let [k, v] = [of_k, Layout { dim: of_v, ..of_k }]
                .map(|layout| unsafe { View::new(case.k.as_ptr(), layout).unwrap() });
            let q = View::of(&case.q[..rows * dim], layout(Dtype::F32, rows, dim)).unwrap();
            let o_view = ViewMut::of(&mut o, layout(Dtype::F32, rows, of_v)).unwrap();
            let semantics = Semantics::with_scale(case.scale());
            let mut problem = Problem::new(Tensors::new(q, k, v, o_view), semantics).unwrap();
            common::run(&mut problem, kernel, 1).unwrap();
            if alone.is_empty() {
                for row in 0..rows {
                    let both = Case { v: case.k.clone(), ..case.clone() };
                    let error = relative_rms(&o[row * of_v..][..of_v], &both.exact(row, |_| true).0[..of_v]);
                    assert!(error <= 3e-4, "{kernel:?}: row {row}: {error:.1e}");
                }
                alone = o;
            } else {
                assert!(same_bits(&o, &alone[..o.len()]), "{kernel:?}: {rows} rows");
            }
        }
    }
}
