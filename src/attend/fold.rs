//! Scales and zeros that leave the loops over keys, so that these multiply the stored integers n:
//!
//! ```text
//! a score    Σ_d q_d c (n_d - z)  =  Σ_d (q_d c) n_d  -  Σ_d (q_d c) z
//! an output  Σ_j p_j (n_j - z) c  =  c (Σ_j p_j n_j  -  z Σ_j p_j)
//! ```
//!
//! - K's a head or a channel: the query is multiplied by c, and the second term is a constant of
//!   each row: [`Folding`].
//! - K's a token: the score is multiplied by c, and the second term is z times the sum of the
//!   query.
//! - V's a head or a channel: once a row of the output, [`values`].
//! - V's a token, in decode: the probability is multiplied by c, and the sum of these times z
//!   leaves the output of a block (`decode::accumulate`).
//!
//! Where scales change from token to token and within a row, nothing can leave: rows are converted
//! ([`super::convert`]).

use super::convert;
use super::rows::{Source, key_rows};
use crate::problem::{Problem, Sequence, Storage};
use crate::simd::{Body, Isa, MAX_LANES};
use crate::view::{Array, Dequant, Quant, ScaleGranularity};

/// Whether scales of K change queries before they meet its integers, or zeros of K correct scores.
#[inline(always)]
pub(crate) fn folds_queries(storage: &Storage) -> bool {
    match storage.granularities[1] {
        ScaleGranularity::PerChannel => true,
        ScaleGranularity::PerHead | ScaleGranularity::PerToken => storage.zeros[1],
        ScaleGranularity::Finer => false,
    }
}

/// Whether outputs are changed after they have met the integers of V, by more than one factor.
#[inline(always)]
pub(crate) fn folds_values(storage: &Storage) -> bool {
    match storage.granularities[2] {
        ScaleGranularity::PerChannel => true,
        ScaleGranularity::PerHead => storage.zeros[2],
        ScaleGranularity::PerToken | ScaleGranularity::Finer => false,
    }
}

/// How the scales and zeros of K enter the queries of a head.
#[derive(Clone, Copy)]
pub(crate) struct Folding<'a> {
    /// Some key of the head: all have the scales and zeros that matter here.
    key: Source<'a>,
    /// Whether each element of a query is multiplied by a scale.
    pub(crate) changes_queries: bool,
    /// Whether zeros are those of a token: queries are summed as they are.
    sums_alone: bool,
}

impl<'a> Folding<'a> {
    /// What K of a kv head, of which `key` is a key, does to queries; `None` if nothing.
    #[inline(always)]
    pub(crate) fn of(
        problem: &'a Problem,
        sequence: &Sequence,
        kv_head: usize,
        key: usize,
    ) -> Option<Folding<'a>> {
        let storage = &problem.shape().storage;
        let granularity = storage.granularities[1];
        folds_queries(storage).then(|| Folding {
            key: key_rows(problem, problem.k(), sequence, kv_head, key),
            changes_queries: granularity == ScaleGranularity::PerChannel,
            sums_alone: granularity == ScaleGranularity::PerToken,
        })
    }

    /// Writes `n` query rows as f32, [`convert::row_bytes`] apart, times the scales of channels;
    /// and for each row what its dot products are to be corrected by, in the same units: minus
    /// their product with the zeros, or with ones where zeros are those of a token. In f32, from
    /// the queries before any rounding to integers.
    ///
    /// Kept out of line: few problems need it.
    ///
    /// # Safety
    /// `source` has `n` rows of `dim` elements; `to` has room for as many rows, and `corrections`
    /// for as many numbers.
    #[inline(never)]
    pub(crate) unsafe fn fold<S: Isa>(
        &self,
        s: S,
        source: Source,
        n: usize,
        dim: usize,
        to: *mut u8,
        corrections: *mut f32,
    ) {
        // SAFETY: `n` rows, and room for them (caller).
        unsafe { convert::convert(s, source, n, dim, to) };
        s.core().enter(Fold { folding: self, n, dim, to, corrections });
    }
}

/// The arguments of [`Folding::fold`], which alone makes one and vouches for its pointers.
struct Fold<'a> {
    folding: &'a Folding<'a>,
    n: usize,
    dim: usize,
    to: *mut u8,
    corrections: *mut f32,
}

impl Body for Fold<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Fold { folding: Folding { key, changes_queries, sums_alone }, n, dim, to, corrections } = self;
        let Some(quant) = key.view.quant() else { return };
        for row in 0..n {
            let to = to.wrapping_add(row * convert::row_bytes(dim)).cast::<f32>();
            let mut sum = s.splat(0.0);
            for d in (0..dim).step_by(S::LANES) {
                let here = S::LANES.min(dim - d);
                // SAFETY: elements below `dim` of one of the `n` rows (the contract of `fold`).
                unsafe {
                    let at = to.add(d);
                    let mut x = if here == S::LANES { s.load(at) } else { s.load_partial(at, here) };
                    let [scale, zero] = columns(s, quant, quant.at(key.at), d, here);
                    if *changes_queries {
                        x = s.mul(x, scale);
                        if here == S::LANES { s.store(at, x) } else { s.store_partial(at, here, x) }
                    }
                    sum = if *sums_alone { s.add(sum, x) } else { s.fma(x, zero, sum) };
                }
            }
            // SAFETY: one of `n` numbers (the contract of `fold`).
            unsafe { corrections.add(row).write(-s.horizontal_sum(sum)) };
        }
    }
}

/// Scales and zeros of `n` elements (at most a vector) from `d` on, of the row whose first ones are
/// at `at`. The lanes behind them hold some finite number.
#[inline(always)]
pub(crate) fn columns<S: Isa>(s: S, quant: &Dequant, at: usize, d: usize, n: usize) -> [S::F32; 2] {
    let scales = column(s, quant.scale.as_ref(), 1.0, quant, at, d, n);
    let zeros = column(s, quant.zero.as_ref(), 0.0, quant, at, d, n);
    [s.mul(scales, s.splat(quant.factor)), s.sub(zeros, s.splat(quant.less))]
}

/// Divides `n` elements (at most a vector) from `d` on of a row of an output by their scales, the
/// first of which is at `at`. What the lanes behind them become means nothing.
#[inline(always)]
pub(crate) fn divided<S: Isa>(s: S, quant: &Quant, at: usize, d: usize, n: usize, x: S::F32) -> S::F32 {
    s.div(x, column(s, quant.scale.as_ref(), 1.0, quant, at, d, n))
}

/// [`columns`] of one list, whose absence means `otherwise`.
#[inline(always)]
fn column<S: Isa>(
    s: S,
    list: Option<&Array<f32>>,
    otherwise: f32,
    quant: &Quant,
    at: usize,
    d: usize,
    n: usize,
) -> S::F32 {
    let Some(list) = list else { return s.splat(otherwise) };
    let (group, stride) = (quant.group[1], quant.stride[3]);
    if stride == 0 {
        return s.splat(list.get(at));
    }
    // SAFETY: `values` are as many as are loaded; the array is as long as any vector.
    unsafe {
        if group == 1 && stride == 1 {
            let values = list.values(at + d, n);
            return if n == S::LANES { s.load(values) } else { s.load_partial(values, n) };
        }
        let (first, last) = (d / group, (d + n - 1) / group);
        if first == last {
            return s.splat(list.get(at + first * stride));
        }
        let mut lanes = [0.0; MAX_LANES];
        let (mut index, mut end) = (first, (first + 1) * group - d);
        for (lane, to) in lanes.iter_mut().enumerate().take(n) {
            if lane == end {
                (index, end) = (index + 1, end + group);
            }
            *to = list.get(at + index * stride);
        }
        s.load(lanes.as_ptr())
    }
}

/// Some value of a kv head, of which `key` is a key, whose scales and zeros outputs are still to be
/// changed by; `None` if [`folds_values`] says no.
#[inline(always)]
pub(crate) fn values<'a>(
    problem: &'a Problem,
    sequence: &Sequence,
    kv_head: usize,
    key: usize,
) -> Option<Source<'a>> {
    folds_values(&problem.shape().storage).then(|| key_rows(problem, problem.v(), sequence, kv_head, key))
}

/// A vector of elements of an output: `x`, sums of weighted integers, minus `zero` times `sum`, the
/// sum of the weights; all of it times `scale`.
#[inline(always)]
pub(crate) fn dequantized<S: Isa>(s: S, [scale, zero]: [S::F32; 2], x: S::F32, sum: S::F32) -> S::F32 {
    s.mul(s.fma(s.sub(s.splat(0.0), zero), sum, x), scale)
}

/// A scale or a zero of a key: NaN if it is infinite. It is to make its scores NaN, and not -inf,
/// which would hide the key.
#[inline(always)]
pub(crate) fn of_key(x: f32) -> f32 {
    if x.is_infinite() { f32::NAN } else { x }
}
