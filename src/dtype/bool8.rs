//! Booleans, one in a byte, true if not 0; they load as 1.0 and 0.0.

use super::Stored;
use crate::simd::Isa;

/// [`Stored`] of [`super::Dtype::Bool8`].
pub(crate) enum Bool8 {}

impl Stored for Bool8 {
    const BLOCK: usize = 1;
    const BLOCK_BYTES: usize = 1;

    #[inline(always)]
    unsafe fn element(row: *const u8, d: usize) -> f32 {
        // SAFETY: element `d` is readable (caller).
        f32::from(u8::from(unsafe { row.wrapping_add(d).read() } != 0))
    }

    #[inline(always)]
    unsafe fn load<S: Isa>(s: S, row: *const u8, d: usize) -> S::F32 {
        // SAFETY: LANES elements are readable from element `d` on (caller).
        let is_true = unsafe { s.load_nonzero(row.wrapping_add(d)) };
        s.select(is_true, s.splat(1.0), s.splat(0.0))
    }
}
