//! Transposing fewer rows than a vector has lanes, by way of a small square on the stack: what lies
//! behind the last row is not read.

use std::mem::MaybeUninit;

use super::{Isa, MAX_LANES};

/// Room for the largest square.
pub(crate) type Square = MaybeUninit<[f32; MAX_LANES * MAX_LANES]>;

/// As [`Isa::transpose`] of `n` rows (at most `LANES`) and rows of zeros.
///
/// # Safety
/// As there, for the first `n` rows of `from`.
#[inline(always)]
pub(crate) unsafe fn transpose_from<S: Isa>(
    s: S,
    from: *const f32,
    from_stride: usize,
    n: usize,
    to: *mut f32,
    to_stride: usize,
    factor: Option<S::F32>,
) {
    // SAFETY: rows below `n` are readable (caller); the square has LANES rows of LANES.
    unsafe {
        if n == S::LANES {
            return s.transpose(from, from_stride, to, to_stride, factor);
        }
        let mut square = Square::uninit();
        let rows = square.as_mut_ptr().cast::<f32>();
        for row in 0..S::LANES {
            let x = if row < n { s.load(from.byte_add(row * from_stride)) } else { s.splat(0.0) };
            s.store(rows.add(row * S::LANES), x);
        }
        s.transpose(rows, S::LANES * 4, to, to_stride, factor);
    }
}
