//! Fractions of 16 bits (Q15): a signed integer stands for itself divided by 32,768.
//!
//! No loop over K or V reads them: they become f32 before, with their scales, a block of keys at a
//! time ([`crate::attend::convert`]). No compute type multiplies them as integers: two products of
//! 16 bits by 16 do not fit a sum of 32. In parts of 8 bits, whose sums fit, each takes four
//! products of bytes: as many instructions as f32 takes, where a vector has four bytes a lane.

use super::Stored;
use crate::simd::Isa;

/// [`Stored`] of [`super::Dtype::Q15`].
pub(crate) enum Q15 {}

/// What a stored integer is divided by.
pub(crate) const ONE: f32 = 32_768.0;

/// The largest integer that is found for a number when scales are: its opposite exists, too.
pub(crate) const LARGEST: f32 = 32_767.0;

impl Stored for Q15 {
    const BLOCK: usize = 1;
    const BLOCK_BYTES: usize = 2;

    #[inline(always)]
    unsafe fn element(row: *const u8, d: usize) -> f32 {
        // SAFETY: element `d` is readable (caller).
        f32::from(unsafe { row.cast::<i16>().wrapping_add(d).read_unaligned() }) / ONE
    }

    #[inline(always)]
    unsafe fn load<S: Isa>(s: S, row: *const u8, d: usize) -> S::F32 {
        // SAFETY: LANES elements are readable from element `d` on (caller).
        let integers = unsafe { s.load_i16(row.cast::<i16>().wrapping_add(d)) };
        s.mul(integers, s.splat(const { 1.0 / ONE }))
    }
}

/// The integer that stands for a number, rounded to nearest even. What is too large becomes the
/// largest integer or the least one, and NaN becomes 0.
#[inline(always)]
pub(crate) fn round(x: f32) -> i16 {
    // `as` saturates, and makes 0 of NaN.
    (x * ONE).round_ties_even() as i16
}

/// Stores a vector of numbers: see [`round`].
///
/// # Safety
/// `LANES` elements are writable at `to`.
#[inline(always)]
pub(crate) unsafe fn store<S: Isa>(s: S, to: *mut i16, x: S::F32) {
    let (x, zero) = (s.mul(x, s.splat(ONE)), s.splat(0.0));
    // Both comparisons are false for NaN.
    let low = s.select(s.gt(zero, x), s.max(x, s.splat(-ONE)), zero);
    let x = s.select(s.gt(x, zero), s.min(x, s.splat(LARGEST)), low);
    // SAFETY: LANES elements are writable (caller); all fit.
    unsafe { s.store_i16(to, x) };
}
