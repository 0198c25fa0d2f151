//! Transposition of a partial tile: fewer rows than a vector has lanes are copied to a tile on the
//! stack first, so that memory behind the last row is not read.

use std::mem::MaybeUninit;

use super::{Isa, MAX_LANES};

/// Uninitialised memory for the largest tile of [`Isa::transpose`], with rows of `LANES` values.
pub(crate) type TransposeTile = MaybeUninit<[f32; MAX_LANES * MAX_LANES]>;

/// [`Isa::transpose`] of a tile whose first `n` rows are at `from`, and whose other rows are 0. `n`
/// is at most `LANES`.
///
/// # Safety
/// `n` rows of `LANES` values are readable at `from`. `LANES` rows of `LANES` values are writable
/// at `to`. The two do not overlap.
#[inline(always)]
pub(crate) unsafe fn transpose_partial<S: Isa>(
    s: S,
    from: *const f32,
    from_stride: usize,
    n: usize,
    to: *mut f32,
    to_stride: usize,
    factor: Option<S::F32>,
) {
    // SAFETY: I7: only rows below `n` are read, which are readable (caller), and the tile has room
    // for LANES rows of LANES values.
    unsafe {
        if n == S::LANES {
            return s.transpose(from, from_stride, to, to_stride, factor);
        }
        let mut tile = TransposeTile::uninit();
        let rows = tile.as_mut_ptr().cast::<f32>();
        for row in 0..S::LANES {
            let x = if row < n { s.load(from.byte_add(row * from_stride)) } else { s.splat(0.0) };
            s.store(rows.add(row * S::LANES), x);
        }
        s.transpose(rows, S::LANES * 4, to, to_stride, factor);
    }
}
