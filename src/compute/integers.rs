//! Queries as integers: their own if they are 8-bit ones that share a scale, else quantised, a row each.

use std::marker::PhantomData;

use crate::attend::convert;
use crate::attend::rows::{Rows, Source, rows_as_f32};
use crate::dtype::{Dtype, Stored, i8};
use crate::prefill::gemm::Gemm;
use crate::problem::Storage;
use crate::simd::transpose::Square;
use crate::simd::{Body, Isa, MAX_LANES};
use crate::view::ScaleGranularity;

/// Whether K and V are 8-bit integers with scales that integer sums can be multiplied by: K's scale a row or a head, V's a
/// head.
#[inline(always)]
pub(crate) fn takes(storage: &Storage) -> bool {
    let Storage { dtypes: [_, k, v], granularities: [_, of_k, of_v] } = *storage;
    [k, v] == [Dtype::I8; 2] && of_k != ScaleGranularity::Finer && of_v == ScaleGranularity::PerHead
}

/// A compute type whose words are integers.
pub(crate) trait Integers: Gemm {
    /// The largest magnitude that elements of a query row may have, so that sums do not overflow.
    fn most(dim: usize) -> f32;

    /// Writes a vector of integers as elements of words.
    ///
    /// # Safety
    /// `LANES` elements are writable from element `d` on.
    unsafe fn store_elements<S: Isa>(s: S, to: *mut u8, d: usize, x: S::F32);

    /// What sums of products with these words, one vector in each of `steps` lines, begin with.
    ///
    /// # Safety
    /// Words and lines as said, `lanes` wide.
    unsafe fn offset<S: Isa>(s: S, words: *const u32, steps: usize, lanes: usize) -> S::I32;
}

/// See [`Gemm::pack_query`]. Panels begin with a line of what scores are multiplied by, and with the last of
/// [`Gemm::HEAD`] a line of what sums begin with.
///
/// # Safety
/// As there.
#[inline(always)]
pub(crate) unsafe fn pack<S: Isa, F: Integers>(
    s: S,
    source: Source,
    n: usize,
    dim: usize,
    lanes: usize,
    factor: f32,
    panel: *mut f32,
    scratch: *mut u8,
) -> bool {
    let mut doubtful = false;
    for first in (0..lanes).step_by(S::LANES) {
        let here = n.saturating_sub(first).min(S::LANES);
        let panel = panel.wrapping_add(first);
        let pack = Pack::<F> {
            source: source.skip(first),
            n: here,
            dim,
            lanes,
            factor,
            scratch,
            panel,
            family: PhantomData,
        };
        // SAFETY: `here` rows from `first` on, and a vector's part of the panel (caller).
        doubtful |= unsafe { pack_vector(s, pack) };
    }
    doubtful
}

/// Out of line: once for each instruction set, not in each kernel.
///
/// # Safety
/// As [`pack`], for what is in it.
#[inline(never)]
unsafe fn pack_vector<S: Isa, F: Integers>(s: S, pack: Pack<F>) -> bool {
    s.enter(pack)
}

/// Not more queries than a vector has lanes, and their vector of each line. Made by [`pack`] alone, whose contract
/// covers what it points to.
struct Pack<'a, F> {
    source: Source<'a>,
    n: usize,
    dim: usize,
    lanes: usize,
    factor: f32,
    scratch: *mut u8,
    panel: *mut f32,
    family: PhantomData<F>,
}

impl<F: Integers> Body for Pack<'_, F> {
    type Out = bool;

    #[inline(always)]
    fn run<S: Isa>(self, s: S) -> bool {
        let Pack { source, n, dim, lanes, factor, scratch, panel, .. } = self;
        let is_direct = is_direct(&source);
        let (steps, stride) = (F::steps(dim), convert::row_bytes(dim));
        let mut factors = [0.0; MAX_LANES];
        let mut doubtful = false;
        // SAFETY: the contract of `pack`, which made this: `n` rows, as much room for each as for a row of f32,
        // and a vector in each line of the panel.
        unsafe {
            let rows = if is_direct { source.rows() } else { rows_as_f32(s, source, n, dim, scratch) };
            for (row, x) in factors.iter_mut().enumerate().take(n) {
                let (from, to) = (rows.skip(row), scratch.add(row * stride));
                let scale = if is_direct {
                    own::<S, F>(s, from, dim, to);
                    source.skip(row).scale()
                } else {
                    quantise::<S, F>(s, from, dim, to)
                };
                *x = scale * factor;
                doubtful |= !x.is_finite();
            }
            for row in n..S::LANES {
                clear(scratch.add(row * stride), 4 * steps);
            }
            s.store(panel, s.load(factors.as_ptr()));
            let words = panel.add(F::PANEL_HEADER * lanes).cast::<u32>();
            for step in (0..steps).step_by(S::LANES) {
                let from = scratch.add(step * 4).cast::<f32>();
                let to = words.add(step * lanes).cast::<f32>();
                if step + S::LANES <= steps {
                    s.transpose(from, stride, to, lanes * 4, None);
                } else {
                    // Rows have room for whole vectors of words, the panel has no more lines than steps.
                    let mut square = Square::uninit();
                    let square = square.as_mut_ptr().cast::<f32>();
                    s.transpose(from, stride, square, S::LANES * 4, None);
                    for line in 0..steps - step {
                        s.store(to.add(line * lanes), s.load(square.add(line * S::LANES)));
                    }
                }
            }
            if F::PANEL_HEADER > 1 {
                s.store_i32(panel.add(lanes).cast(), F::offset(s, words, steps, lanes));
            }
        }
        doubtful
    }
}

/// Whether rows are integers as they are stored, each with one scale.
#[inline(always)]
pub(super) fn is_direct(source: &Source) -> bool {
    source.dtype() == Dtype::I8
        && source.view.quant().is_none_or(|q| q.granularity(false) != ScaleGranularity::Finer)
}

/// One row of 8-bit integers as words, zeros behind the last.
///
/// # Safety
/// A row of `dim` bytes, and room for [`convert::row_bytes`] at `to`.
#[inline(always)]
pub(super) unsafe fn own<S: Isa, F: Integers>(s: S, row: Rows, dim: usize, to: *mut u8) {
    for d in (0..dim).step_by(S::LANES) {
        // SAFETY: this function's contract; room is in whole cache lines.
        unsafe {
            let whole = d + S::LANES <= dim;
            let x = if whole {
                i8::I8::load(s, row.base, d)
            } else {
                i8::I8::load_first(s, row.base, d, dim - d)
            };
            F::store_elements(s, to, d, x);
        }
    }
}

/// One row of f32 as words, the largest element of which is [`Integers::most`]; what these are to be multiplied
/// by, NaN if an element is not finite.
///
/// # Safety
/// A row of `dim` f32, and room for [`convert::row_bytes`] at `to`, which may be where the row is.
#[inline(always)]
pub(super) unsafe fn quantise<S: Isa, F: Integers>(s: S, row: Rows, dim: usize, to: *mut u8) -> f32 {
    let from = row.base.cast::<f32>();
    let zero = s.splat(0.0);
    let mut largest = zero;
    // 0 as long as all elements are finite, else NaN.
    let mut suspicion = zero;
    // SAFETY: this function's contract. In place, a word is written after its elements were read; those behind
    // the last are zeros, for which rows in whole cache lines have room.
    unsafe {
        for d in (0..dim).step_by(S::LANES) {
            let at = from.wrapping_add(d);
            let x = if d + S::LANES <= dim { s.load(at) } else { s.load_first(at, dim - d) };
            largest = s.max(s.max(x, s.sub(zero, x)), largest);
            suspicion = s.add(suspicion, s.sub(x, x));
        }
        let largest = s.largest(largest);
        let is_finite = !s.total(suspicion).is_nan();
        let most = F::most(dim);
        let inverse = most / largest;
        // Rows that are next to 0 are 0.
        let scale = s.splat(if is_finite && inverse.is_finite() { inverse } else { 0.0 });
        for d in (0..dim).step_by(S::LANES) {
            let at = from.wrapping_add(d);
            let x = if d + S::LANES <= dim { s.load(at) } else { s.load_first(at, dim - d) };
            F::store_elements(s, to, d, s.mul(x, scale));
        }
        if is_finite { largest / most } else { f32::NAN }
    }
}

/// Zeros. Out of line: compilers make a call of it anyway, which does not belong into kernels.
///
/// # Safety
/// `to` has room for so many bytes.
#[inline(never)]
pub(crate) unsafe fn clear(to: *mut u8, bytes: usize) {
    // SAFETY: this function's contract.
    unsafe { to.write_bytes(0, bytes) };
}
