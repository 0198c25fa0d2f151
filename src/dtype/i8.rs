//! Signed 8-bit integers; what one of them stands for is said by the scales and zeros of its view.

use super::Stored;
use crate::simd::Isa;

/// See [`super::Dtype::I8`].
pub(crate) enum I8 {}

impl Stored for I8 {
    const BLOCK: usize = 1;
    const BLOCK_BYTES: usize = 1;

    #[inline(always)]
    unsafe fn one(row: *const u8, d: usize) -> f32 {
        // SAFETY: this method's contract.
        f32::from(unsafe { row.cast::<i8>().wrapping_add(d).read() })
    }

    #[inline(always)]
    unsafe fn load<S: Isa>(s: S, row: *const u8, d: usize) -> S::F32 {
        // SAFETY: this method's contract.
        unsafe { s.load_i8(row.cast::<i8>().wrapping_add(d)) }
    }
}
