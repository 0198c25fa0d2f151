//! Q8_0 where query rows are few: integers, whose sums are multiplied by scales that lie beside
//! them.

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
const BYTES: usize = 34;

/// Queries of one head, and K and V as blocks.
struct Case {
    dim: usize,
    q: Vec<f32>,
    k: Vec<u8>,
    v: Vec<u8>,
}

impl Case {
    fn new(rows: usize, keys: usize, dim: usize) -> Case {
        let normal = Inputs::normal(Size::new(1, rows, keys, dim), (keys + dim) as u64);
        let [k, v] = [&normal.k, &normal.v].map(|x| encode(Dtype::Q8_0, x, dim).0);
        Case { dim, q: normal.q, k, v }
    }

    fn keys(&self) -> usize {
        self.k.len() / self.row_bytes()
    }

    /// Scores of the same size whatever the length of a head.
    fn scale(&self) -> f32 {
        2.0 / (self.dim as f32).sqrt()
    }

    fn row_bytes(&self) -> usize {
        self.dim / BLOCK * BYTES
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
            .map(|x| unsafe { View::new(x.as_ptr(), dense(Dtype::Q8_0, keys, dim)).unwrap() });
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
        let block = &which[key * self.row_bytes() + d / BLOCK * BYTES..][..BYTES];
        let scale = half::f16::from_le_bytes([block[0], block[1]]).to_f64();
        scale * f64::from(block[2 + d % BLOCK].cast_signed())
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
    few().filter(|kernel| kernel.kernel.compute_type(kernel.path) == "i16")
}

fn few() -> impl Iterator<Item = KernelPath> {
    kernels(Dtype::Q8_0).filter(|kernel| kernel.path == Path::Decode)
}

/// Half or all of a vector at the end, one pass over V or several; keys that fill no vector, or
/// several blocks of keys.
const SHAPES: [(usize, usize); 9] =
    [(32, 40), (64, 5), (96, 70), (128, 600), (128, 17), (160, 33), (256, 100), (288, 64), (576, 30)];

const WINDOWS: [Window; 3] = [
    Window { left: None, right: None },
    Window { left: Some(21), right: Some(2) },
    Window { left: Some(3), right: Some(0) },
];

#[test]
fn a_row_alone_has_the_bits_that_it_has_among_others() {
    for (dim, keys) in SHAPES {
        let case = Case::new(6, keys, dim);
        for kernel in few() {
            for window in WINDOWS {
                let place = (keys / 2, window);
                let (o, lse) = case.compute(kernel, 0..6, place, None);
                assert!(o.iter().any(|&x| x != 0.0) && o.iter().all(|x| x.is_finite()));
                for rows in [0..1, 1..2, 5..6, 2..4, 1..6] {
                    let part = case.compute(kernel, rows.clone(), place, None);
                    let same = same_bits(&part.0, &o[rows.start * dim..rows.end * dim])
                        && same_bits(&part.1, &lse[rows.clone()]);
                    assert!(same, "{kernel:?}, {keys} x {dim}, {window:?}: rows {rows:?}");
                }
            }
        }
    }
}

/// Scales as a quantising engine finds them; then of all sizes, so that a block weighs 2^20 times
/// another, or nothing.
#[test]
fn errors_are_as_documented() {
    for (dim, keys) in SHAPES {
        for is_wide in [false, true] {
            let mut case = Case::new(4, keys, dim);
            if is_wide {
                // Of K only as far as rows still look at more than one key.
                for (n, block) in case.v.chunks_mut(BYTES).enumerate() {
                    let scale = half::f16::from_f64(2f64.powi((n * 7 % 21) as i32 - 14) * ((n % 5) as f64));
                    block[..2].copy_from_slice(&scale.to_le_bytes());
                }
                for (n, block) in case.k.chunks_mut(BYTES).enumerate() {
                    let scale = half::f16::from_f64(0.01 * (n % 4) as f64);
                    block[..2].copy_from_slice(&scale.to_le_bytes());
                }
            }
            for kernel in few() {
                for window in WINDOWS {
                    let (first, what) =
                        (keys / 2, format!("{kernel:?}, {keys} x {dim}, {window:?}, {is_wide}"));
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
    let (dim, keys, odd) = (96, 50, 37);
    let before = Case::new(4, keys, dim);
    for scale in [-0.03, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for block in 0..dim / BLOCK {
            let mut case = Case { q: before.q.clone(), k: before.k.clone(), v: before.v.clone(), dim };
            let at = odd * case.row_bytes() + block * BYTES;
            case.v[at..at + 2].copy_from_slice(&half::f16::from_f64(scale).to_le_bytes());
            // Hidden from the rows 0 and 1.
            let mut mask = vec![1u8; 4 * keys];
            (0..2).for_each(|row| mask[row * keys + odd] = 0);
            for kernel in few() {
                let what = format!("{kernel:?}, {scale}, block {block}");
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
                            got.is_nan() == exact.is_nan() && (got.is_nan() || f64::from(got) == exact)
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
    // A scale of K that is not a number makes the rows that see it so, and only them.
    let mut case = Case { q: before.q.clone(), k: before.k.clone(), v: before.v.clone(), dim };
    let at = odd * case.row_bytes();
    case.k[at..at + 2].copy_from_slice(&half::f16::NAN.to_le_bytes());
    let mut mask = vec![1u8; 4 * keys];
    mask[odd] = 0;
    for kernel in few() {
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
    let found: Vec<_> = integers().map(|kernel| kernel.kernel.isa()).collect();
    assert_eq!(found, expected.into_iter().filter(|isa| common::is_tested(isa)).collect::<Vec<_>>());
}

/// Who demands precision gets f32, on each instruction set.
#[test]
fn precision_is_f32() {
    let case = Case::new(1, 40, 64);
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
    if best == c"avx2" || best == c"avx512vnni" || best == c"avx512bf16" {
        assert_eq!(select(Accuracy::AsStored).compute_type(Path::Decode), "i16");
    }
}

/// Scales from the smallest binary16 to the largest, blocks of zeros, and a key that has most of
/// the probability and hardly a value: over several blocks of keys.
#[test]
fn extreme_scales_and_sinks_of_a_long_cache() {
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
        let mut case = Case::new(3, keys, dim);
        let normal = of_k == 1.0;
        for (which, scale) in [(&mut case.k, of_k), (&mut case.v, of_v)] {
            if scale != 1.0 {
                for block in which.chunks_mut(BYTES) {
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
            case.k[..bytes].copy_from_slice(&encode(Dtype::Q8_0, &like, dim).0);
            let small: Vec<f32> = row.iter().map(|q| 0.001 * q).collect();
            case.v[..bytes].copy_from_slice(&encode(Dtype::Q8_0, &small, dim).0);
        }
        for kernel in few() {
            let what = format!("{kernel:?}, scales {of_k:e} and {of_v:e}");
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
    let (dim, of_v, keys) = (576, 512, 700);
    let case = Case::new(5, keys, dim);
    let layout = |dtype, len, dim| Layout::dense(dtype, 1, len, dim).unwrap();
    let of_k = layout(Dtype::Q8_0, keys, dim);
    for kernel in few() {
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
                    let both = Case { q: case.q.clone(), k: case.k.clone(), v: case.k.clone(), dim };
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
