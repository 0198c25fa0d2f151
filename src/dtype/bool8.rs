//! Bytes that are 0 or not.

use super::Stored;
use crate::simd::Isa;

/// See [`super::Dtype::Bool8`].
pub(crate) enum Bool8 {}

impl Stored for Bool8 {
    const BLOCK: usize = 1;
    const BLOCK_BYTES: usize = 1;

    #[inline(always)]
    unsafe fn one(row: *const u8, d: usize) -> f32 {
        // SAFETY: this method's contract.
        f32::from(u8::from(unsafe { row.wrapping_add(d).read() } != 0))
    }

    #[inline(always)]
    unsafe fn load<S: Isa>(s: S, row: *const u8, d: usize) -> S::F32 {
        // SAFETY: this method's contract.
        let is = unsafe { s.nonzero(row.wrapping_add(d)) };
        s.select(is, s.splat(1.0), s.splat(0.0))
    }
}
