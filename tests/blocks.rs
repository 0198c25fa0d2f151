//! Q8_0 where query rows are few: integers, whose sums are multiplied by scales that lie beside
//! them.

mod common;
#[path = "common/store.rs"]
mod store;

use common::{Inputs, KernelPath, Size, kernels, relative_rms, same_bits};
use flash_attention::dtype::Dtype;
use flash_attention::kernel::Path;
use flash_attention::problem::{Position, Problem, Semantics, Tensors, Window};
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

/// The one that multiplies so is where the instruction set has it.
#[test]
fn integers_are_where_the_machine_has_them() {
    let is_there = flash_attention::kernel::available().any(|row| row.isa() == c"avx512vnni");
    assert_eq!(integers().count(), usize::from(is_there));
}
