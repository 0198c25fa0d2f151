//! Signed 8-bit integers. They load as they are stored; scales and zero points belong to the view.

use super::Stored;
use crate::simd::Isa;

/// [`Stored`] of [`super::Dtype::I8`].
pub(crate) enum I8 {}

impl Stored for I8 {
    const BLOCK: usize = 1;
    const BLOCK_BYTES: usize = 1;

    #[inline(always)]
    unsafe fn element(row: *const u8, d: usize) -> f32 {
        // SAFETY: element `d` is readable (caller).
        f32::from(unsafe { row.cast::<i8>().wrapping_add(d).read() })
    }

    #[inline(always)]
    unsafe fn load<S: Isa>(s: S, row: *const u8, d: usize) -> S::F32 {
        // SAFETY: LANES elements are readable from element `d` on (caller).
        unsafe { s.load_i8(row.cast::<i8>().wrapping_add(d)) }
    }
}
