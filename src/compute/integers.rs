//! Queries as integers: as they are stored, if they are 8-bit integers with a scale for each row or
//! more; otherwise quantised, row by row.

use std::marker::PhantomData;

use crate::attend::convert;
use crate::attend::fold::Folding;
use crate::attend::rows::{Rows, Source, rows_as_f32};
use crate::dtype::{Dtype, Stored, f32, i8};
use crate::prefill::gemm::Gemm;
use crate::problem::Storage;
use crate::simd::transpose::TransposeTile;
use crate::simd::{Body, Isa, MAX_LANES};
use crate::view::ScaleGranularity;

/// Whether K and V are 8-bit integers whose scales and zeros leave sums of integers: K's a head, a
/// row or a channel, V's a head or a channel. See [`crate::attend::fold`].
#[inline(always)]
pub(crate) fn takes(storage: &Storage) -> bool {
    let Storage { dtypes: [_, k, v], granularities: [_, of_k, of_v], .. } = *storage;
    let takes_v = matches!(of_v, ScaleGranularity::PerHead | ScaleGranularity::PerChannel);
    [k, v] == [Dtype::I8; 2] && of_k != ScaleGranularity::Finer && takes_v
}

/// A compute type whose operands are integers.
pub(crate) trait Integers: Gemm {
    /// The largest magnitude of an element of a query row, so that sums do not overflow.
    fn max_magnitude(dim: usize) -> f32;

    /// Writes a vector of integers as elements of words.
    ///
    /// # Safety
    /// `LANES` elements are writable from element `d` on.
    unsafe fn store_elements<S: Isa>(s: S, to: *mut u8, d: usize, x: S::F32);

    /// What sums of products with a vector of packed queries begin with.
    ///
    /// # Safety
    /// `words` has `steps` lines, each `lanes` wide.
    unsafe fn offset<S: Isa>(s: S, words: *const u32, steps: usize, lanes: usize) -> S::I32;
}

/// [`Gemm::pack_query`]. The first line of a panel's header has the factors of the scores, the last
/// one what zeros of K correct scores by, and one between them, if [`Gemm::PANEL_HEADER`] is 3,
/// what sums begin with.
///
/// # Safety
/// As [`Gemm::pack_query`].
#[inline(always)]
pub(crate) unsafe fn pack<S: Isa, F: Integers>(
    s: S,
    source: Source,
    n: usize,
    dim: usize,
    lanes: usize,
    factor: f32,
    folding: Option<&Folding>,
    panel: *mut f32,
    scratch: *mut u8,
) -> bool {
    let mut maybe_nan = false;
    for first in (0..lanes).step_by(S::LANES) {
        let here = n.saturating_sub(first).min(S::LANES);
        let panel = panel.wrapping_add(first);
        let pack = Pack::<F> {
            source: source.skip(first),
            n: here,
            dim,
            lanes,
            factor,
            folding,
            scratch,
            panel,
            compute: PhantomData,
        };
        // SAFETY: `here` rows from `first` on, and a vector of each line of the panel (caller).
        maybe_nan |= unsafe { pack_vector(s, pack) };
    }
    maybe_nan
}

/// [`pack`] of one vector of queries, kept out of line, so that the code exists once for each
/// instruction set and not in each kernel.
///
/// # Safety
/// The pointers of the argument are as [`Gemm::pack_query`] asks.
#[inline(never)]
unsafe fn pack_vector<S: Isa, F: Integers>(s: S, pack: Pack<F>) -> bool {
    s.enter(pack)
}

/// The arguments of [`pack_vector`]: at most `LANES` queries, and their vector in each line of the
/// panel. Only [`pack`] makes one, whose caller vouches for its pointers.
struct Pack<'a, F> {
    source: Source<'a>,
    n: usize,
    dim: usize,
    lanes: usize,
    factor: f32,
    folding: Option<&'a Folding<'a>>,
    scratch: *mut u8,
    panel: *mut f32,
    compute: PhantomData<F>,
}

impl<F: Integers> Body for Pack<'_, F> {
    type Out = bool;

    #[inline(always)]
    fn run<S: Isa>(self, s: S) -> bool {
        let Pack { source, n, dim, lanes, factor, folding, scratch, panel, .. } = self;
        let is_direct = is_direct(&source) && !folding.is_some_and(|folding| folding.changes_queries);
        let (steps, stride) = (F::steps(dim), convert::row_bytes(dim));
        let (mut factors, mut corrections) = ([0.0; MAX_LANES], [0.0; MAX_LANES]);
        let mut maybe_nan = false;
        // SAFETY: `pack` made this, and its caller vouches for `n` rows, scratch memory for each of
        // them as f32, and a vector in each line of the panel.
        unsafe {
            if let Some(folding) = folding {
                folding.fold(s, source, n, dim, scratch, corrections.as_mut_ptr());
            }
            let rows = match folding {
                _ if is_direct => source.rows(),
                Some(_) => Rows { base: scratch, stride },
                None => rows_as_f32(s, source, n, dim, scratch),
            };
            for (row, x) in factors.iter_mut().enumerate().take(n) {
                let (from, to) = (rows.skip(row), scratch.add(row * stride));
                let scale = if is_direct {
                    copy_integers::<S, F>(s, from, dim, to);
                    source.skip(row).scale()
                } else {
                    quantize_row::<S, F>(s, from, dim, to)
                };
                *x = scale * factor;
                corrections[row] *= factor;
                maybe_nan |= !x.is_finite() || !corrections[row].is_finite();
            }
            for row in n..S::LANES {
                clear(scratch.add(row * stride), 4 * steps);
            }
            s.store(panel, s.load(factors.as_ptr()));
            s.store(panel.add((F::PANEL_HEADER - 1) * lanes), s.load(corrections.as_ptr()));
            let words = panel.add(F::PANEL_HEADER * lanes).cast::<u32>();
            for step in (0..steps).step_by(S::LANES) {
                let from = scratch.add(step * 4).cast::<f32>();
                let to = words.add(step * lanes).cast::<f32>();
                if step + S::LANES <= steps {
                    s.transpose(from, stride, to, lanes * 4, None);
                } else {
                    // Rows have room for whole vectors of words; the panel has no more lines than
                    // steps.
                    let mut square = TransposeTile::uninit();
                    let square = square.as_mut_ptr().cast::<f32>();
                    s.transpose(from, stride, square, S::LANES * 4, None);
                    for line in 0..steps - step {
                        s.store(to.add(line * lanes), s.load(square.add(line * S::LANES)));
                    }
                }
            }
            if F::PANEL_HEADER > 2 {
                s.store_i32(panel.add(lanes).cast(), F::offset(s, words, steps, lanes));
            }
        }
        maybe_nan
    }
}

/// Whether rows are 8-bit integers, each with one scale and no zero.
#[inline(always)]
pub(super) fn is_direct(source: &Source) -> bool {
    source.dtype() == Dtype::I8
        && source.view.quant().is_none_or(|quant| {
            let granularity = quant.granularity(source.view.layout(), false);
            let is_one = matches!(granularity, ScaleGranularity::PerHead | ScaleGranularity::PerToken);
            is_one && quant.zero.is_none()
        })
}

/// Copies a row of 8-bit integers as words, with zeros behind the last.
///
/// # Safety
/// The row has `dim` bytes; `to` has room for [`convert::row_bytes`].
#[inline(always)]
pub(super) unsafe fn copy_integers<S: Isa, F: Integers>(s: S, row: Rows, dim: usize, to: *mut u8) {
    for d in (0..dim).step_by(S::LANES) {
        // SAFETY: `dim` bytes, and room in whole cache lines (caller).
        unsafe { F::store_elements(s, to, d, i8::I8::load_rest(s, row.base, d, dim)) };
    }
}

/// Quantises a row of f32 to words whose largest element is [`Integers::max_magnitude`]; returns
/// the scale, which is NaN if an element is not finite.
///
/// # Safety
/// The row has `dim` f32; `to` has room for [`convert::row_bytes`], and may be where the row is.
#[inline(always)]
pub(super) unsafe fn quantize_row<S: Isa, F: Integers>(s: S, row: Rows, dim: usize, to: *mut u8) -> f32 {
    let zero = s.splat(0.0);
    let mut largest = zero;
    // 0 as long as all elements are finite, NaN afterwards.
    let mut nonfinite = zero;
    // SAFETY: `dim` elements, and room in whole cache lines (caller). In place, a word is written
    // after its elements were read.
    unsafe {
        for d in (0..dim).step_by(S::LANES) {
            let x = f32::F32::load_rest(s, row.base, d, dim);
            largest = s.max(s.max(x, s.sub(zero, x)), largest);
            nonfinite = s.add(nonfinite, s.sub(x, x));
        }
        let largest = s.horizontal_max(largest);
        let is_finite = !s.horizontal_sum(nonfinite).is_nan();
        let max = F::max_magnitude(dim);
        let inverse = max / largest;
        // A row whose inverse overflows becomes 0.
        let scale = s.splat(if is_finite && inverse.is_finite() { inverse } else { 0.0 });
        for d in (0..dim).step_by(S::LANES) {
            let x = f32::F32::load_rest(s, row.base, d, dim);
            F::store_elements(s, to, d, s.mul(x, scale));
        }
        if is_finite { largest / max } else { f32::NAN }
    }
}

/// Writes zeros. Kept out of line: LLVM lowers it to memset, and the call would spill the kernel's
/// registers.
///
/// # Safety
/// `bytes` bytes are writable at `to`.
#[inline(never)]
pub(crate) unsafe fn clear(to: *mut u8, bytes: usize) {
    // SAFETY: `bytes` bytes are writable (caller).
    unsafe { to.write_bytes(0, bytes) };
}
