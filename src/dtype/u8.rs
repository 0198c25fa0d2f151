//! Unsigned 8-bit integers. One with the other highest bit is a signed integer that is 128 less: so
//! these become signed ones, wherever rows of them are copied ([`crate::attend::gather`]), and have
//! zeros that are 128 less ([`crate::view::Quant`]). No loop over K or V reads them.

use super::Stored;
use crate::simd::Isa;

/// [`Stored`] of [`super::Dtype::U8`]: elements as signed integers, 128 less.
pub(crate) enum U8 {}

/// The bit by which an unsigned integer and the signed one that is 128 less differ.
pub(crate) const SIGN: u8 = 0x80;

impl Stored for U8 {
    const BLOCK: usize = 1;
    const BLOCK_BYTES: usize = 1;

    #[inline(always)]
    unsafe fn element(row: *const u8, d: usize) -> f32 {
        // SAFETY: element `d` is readable (caller).
        f32::from((unsafe { row.wrapping_add(d).read() } ^ SIGN).cast_signed())
    }

    #[inline(always)]
    unsafe fn load<S: Isa>(s: S, row: *const u8, d: usize) -> S::F32 {
        let mut signed = [0; crate::simd::MAX_LANES];
        for (lane, to) in signed.iter_mut().enumerate().take(S::LANES) {
            // SAFETY: LANES elements are readable from element `d` on (caller).
            *to = (unsafe { row.wrapping_add(d + lane).read() } ^ SIGN).cast_signed();
        }
        // SAFETY: I7: the array is as long as any vector.
        unsafe { s.load_i8(signed.as_ptr()) }
    }
}
