//! Conversion of stored rows to f32 in scratch memory: a block of keys or a few queries at a time,
//! never a whole tensor. Rows of f32 are copied.

use super::rows::Source;
use crate::dtype::{Stored, with_qkv_type};
use crate::simd::{Body, Isa, MAX_LANES};
use crate::view::Quant;

/// Bytes of a row of `dim` f32: an odd number of cache lines, so that the rows of a register tile
/// never compete for the same sets of L1.
#[inline(always)]
pub(crate) fn row_bytes(dim: usize) -> usize {
    // Saturates where no machine has the memory: the plan then finds no room.
    (dim.div_ceil(16) | 1).saturating_mul(64)
}

/// Writes `n` rows of `dim` elements as f32, [`row_bytes`] apart. Kept out of line, so that the
/// code exists once for each instruction set and not in each kernel.
///
/// # Safety
/// `source` has `n` rows of `dim` elements; `to` has room for as many rows.
#[inline(never)]
pub(crate) unsafe fn convert<S: Isa>(s: S, source: Source, n: usize, dim: usize, to: *mut u8) {
    s.core().enter(Convert { source, n, dim, to });
}

/// The arguments of [`convert`], which alone makes one and vouches for its pointers.
struct Convert<'a> {
    source: Source<'a>,
    n: usize,
    dim: usize,
    to: *mut u8,
}

impl Body for Convert<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        // SAFETY: `convert` made this and vouches for source and scratch; rows are stored as T
        // (I9).
        unsafe { with_qkv_type!(self.source.dtype(), T => self.rows::<S, T>(s)) }
    }
}

impl Convert<'_> {
    /// [`convert`] of rows that are stored as `T`.
    ///
    /// # Safety
    /// Source and scratch are as [`convert`] asks; the rows are stored as `T`.
    #[inline(always)]
    unsafe fn rows<S: Isa, T: Stored>(&self, s: S) {
        let from = self.source.rows();
        for i in 0..self.n {
            let row = from.skip(i).base;
            let to = self.to.wrapping_add(i * row_bytes(self.dim)).cast::<f32>();
            for d in (0..self.dim).step_by(S::LANES) {
                let n = S::LANES.min(self.dim - d);
                // SAFETY: elements below `dim` of one of the `n` rows, and room for them (caller).
                unsafe {
                    let mut x =
                        if n == S::LANES { T::load(s, row, d) } else { T::load_partial(s, row, d, n) };
                    if let Some(quant) = self.source.view.quant() {
                        let at = quant.at(self.source.skip(i).at);
                        let [scale, zero] = scales(s, quant, at, d, n);
                        x = s.mul(s.sub(x, zero), scale);
                    }
                    let to = to.wrapping_add(d);
                    if n == S::LANES { s.store(to, x) } else { s.store_partial(to, n, x) }
                }
            }
        }
    }
}

/// Scales and zeros of `n` elements (at most a vector) from `d` on, of the row whose first scale is
/// at `at`.
#[inline(always)]
fn scales<S: Isa>(s: S, quant: &Quant, at: usize, d: usize, n: usize) -> [S::F32; 2] {
    let (first, last) = (d / quant.group[1], (d + n - 1) / quant.group[1]);
    if quant.stride[3] == 0 || first == last {
        let [scale, zero] = quant.of(at, d);
        return [s.splat(scale), s.splat(zero)];
    }
    let mut lanes = [[0.0; MAX_LANES]; 2];
    let [scales, zeros] = &mut lanes;
    for (i, (scale, zero)) in scales.iter_mut().zip(zeros).enumerate().take(n) {
        [*scale, *zero] = quant.of(at, d + i);
    }
    let [scales, zeros] = &lanes;
    // SAFETY: the arrays are as long as any vector.
    unsafe { [s.load(scales.as_ptr()), s.load(zeros.as_ptr())] }
}
