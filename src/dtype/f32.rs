//! IEEE 754 binary32 (single precision).

use super::Stored;
use crate::simd::Isa;

/// [`Stored`] of [`super::Dtype::F32`].
pub(crate) enum F32 {}

impl Stored for F32 {
    const BLOCK: usize = 1;
    const BLOCK_BYTES: usize = 4;

    #[inline(always)]
    unsafe fn element(row: *const u8, d: usize) -> f32 {
        // SAFETY: element `d` is readable (caller).
        unsafe { row.cast::<f32>().wrapping_add(d).read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load<S: Isa>(s: S, row: *const u8, d: usize) -> S::F32 {
        // SAFETY: LANES elements are readable from element `d` on (caller).
        unsafe { s.load(row.cast::<f32>().wrapping_add(d)) }
    }

    #[inline(always)]
    unsafe fn load_partial<S: Isa>(s: S, row: *const u8, d: usize, n: usize) -> S::F32 {
        // SAFETY: `n` elements are readable from element `d` on (caller).
        unsafe { s.load_partial(row.cast::<f32>().wrapping_add(d), n) }
    }
}
