//! Floating-point numbers of 8 bits: E4M3, the variant without infinities ("FN"), and E5M2, which
//! is the upper half of a binary16.
//!
//! No loop over K or V reads them: rows are converted to f32, with their scales if they have any,
//! in scratch memory that stays in cache ([`crate::attend::convert`]).

use std::marker::PhantomData;

use super::{Dtype, Stored};
use crate::simd::{Isa, MAX_LANES, half};

/// The type of [`Dtype::F8E4M3`].
pub(crate) type E4M3 = F8<OfE4M3>;
/// The type of [`Dtype::F8E5M2`].
pub(crate) type E5M2 = F8<OfE5M2>;

/// Numbers of a [`Format`].
pub(crate) struct F8<F>(PhantomData<fn() -> F>);

/// What a format of 8 bits says.
pub(crate) trait Format: 'static {
    /// What a number is multiplied by that [`Format::widen`] has made.
    const FACTOR: f32;
    /// A binary16 that is the number divided by [`Format::FACTOR`]: exactly, as subnormal ones of 8
    /// bits have few digits.
    fn widen(bits: u8) -> u16;
    /// Bits of the mantissa.
    const MANTISSA: u32;
    /// What is added to exponents.
    const BIAS: u32;
    /// The largest number.
    const MAX: f32;
    /// A NaN, without its sign.
    const NAN: u8;
}

/// [`Format`] of [`Dtype::F8E4M3`]: all bits but the sign are 1 in a NaN, and there is no infinity.
pub(crate) enum OfE4M3 {}

impl Format for OfE4M3 {
    /// The exponent of a binary16 is 8 larger.
    const FACTOR: f32 = 256.0;

    #[inline(always)]
    fn widen(bits: u8) -> u16 {
        // The shift keeps the sign, and makes room for the wider exponent.
        let number = ((i16::from(bits.cast_signed()) << 8) >> 1).cast_unsigned() & 0xbf80;
        // An exponent that is all ones.
        let nan = if bits & 0x7f == 0x7f { 0x4000 } else { 0 };
        number | nan
    }

    const MANTISSA: u32 = 3;
    const BIAS: u32 = 7;
    const MAX: f32 = 448.0;
    const NAN: u8 = 0x7f;
}

/// [`Format`] of [`Dtype::F8E5M2`].
pub(crate) enum OfE5M2 {}

impl Format for OfE5M2 {
    const FACTOR: f32 = 1.0;

    #[inline(always)]
    fn widen(bits: u8) -> u16 {
        u16::from(bits) << 8
    }

    const MANTISSA: u32 = 2;
    const BIAS: u32 = 15;
    const MAX: f32 = 57_344.0;
    const NAN: u8 = 0x7e;
}

impl<F: Format> F8<F> {
    /// Elements that [`Stored::convert_row`] converts at a time.
    const TOGETHER: usize = 32;

    /// Rounds to nearest even. What is too large becomes the largest number, and so do infinities;
    /// a NaN stays one, with its sign. No case branches, so that compilers make vectors of it.
    #[inline(always)]
    fn round(x: f32) -> u8 {
        let bits = x.to_bits();
        let magnitude = bits & 0x7fff_ffff;
        let is_nan = magnitude > 0x7f80_0000;
        let clamped = magnitude.min(const { F::MAX.to_bits() });
        // A carry out of the mantissa increments the exponent. `MAX` is not exceeded by it.
        let shift = const { 23 - F::MANTISSA };
        let rebiased = clamped.wrapping_sub((127 - F::BIAS) << 23);
        let odd = rebiased >> shift & 1;
        let normal = rebiased.wrapping_add((1 << (shift - 1)) - 1 + odd) >> shift;
        // Subnormal numbers are multiples of the distance between f32 next to this one: adding it
        // rounds.
        let next = const { f32::from_bits((127 + 1 - F::BIAS + (23 - F::MANTISSA)) << 23) };
        let subnormal = (f32::from_bits(clamped) + next).to_bits().wrapping_sub(next.to_bits());
        let is_subnormal = clamped < (127 + 1 - F::BIAS) << 23;
        let value = if is_subnormal { subnormal } else { normal };
        let value = if is_nan { u32::from(F::NAN) } else { value };
        (bits >> 24 & 0x80 | value) as u8
    }
}

impl<F: Format> Stored for F8<F> {
    const BLOCK: usize = 1;
    const BLOCK_BYTES: usize = 1;

    #[inline(always)]
    unsafe fn element(row: *const u8, d: usize) -> f32 {
        // SAFETY: element `d` is readable (caller).
        half::from_f16(F::widen(unsafe { row.wrapping_add(d).read() })) * F::FACTOR
    }

    #[inline(always)]
    unsafe fn load<S: Isa>(s: S, row: *const u8, d: usize) -> S::F32 {
        let mut wide = [0; MAX_LANES];
        for (lane, to) in wide.iter_mut().enumerate().take(S::LANES) {
            // SAFETY: LANES elements are readable from element `d` on (caller).
            *to = F::widen(unsafe { row.wrapping_add(d + lane).read() });
        }
        // SAFETY: I7: the array is as long as any vector.
        s.mul(unsafe { s.load_f16(wide.as_ptr()) }, s.splat(F::FACTOR))
    }

    /// Several vectors are widened together.
    #[inline(always)]
    unsafe fn convert_row<S: Isa>(s: S, row: *const u8, dim: usize, to: *mut f32) {
        const { assert!(Self::TOGETHER.is_multiple_of(MAX_LANES)) };
        let factor = s.splat(F::FACTOR);
        let whole = dim - dim % Self::TOGETHER;
        // SAFETY: I7: elements below `dim` of the row, and room for them (caller).
        unsafe {
            for first in (0..whole).step_by(Self::TOGETHER) {
                let mut wide = [0; 32];
                for (i, to) in wide.iter_mut().enumerate() {
                    *to = F::widen(row.wrapping_add(first + i).read());
                }
                for d in (0..Self::TOGETHER).step_by(S::LANES) {
                    let x = s.load_f16(wide.as_ptr().wrapping_add(d));
                    let x = if const { F::FACTOR == 1.0 } { x } else { s.mul(x, factor) };
                    s.store(to.wrapping_add(first + d), x);
                }
            }
            for d in (whole..dim).step_by(S::LANES) {
                let n = S::LANES.min(dim - d);
                let x = Self::load_rest(s, row, d, dim);
                if n == S::LANES {
                    s.store(to.wrapping_add(d), x)
                } else {
                    s.store_partial(to.wrapping_add(d), n, x)
                }
            }
        }
    }
}

/// The largest number of a type of 8 bits.
pub(crate) fn largest(dtype: Dtype) -> f32 {
    if dtype == Dtype::F8E4M3 { OfE4M3::MAX } else { OfE5M2::MAX }
}

/// Numbers as those of a type of 8 bits, rounded to nearest even: see [`F8::round`]. Kept out of
/// line: one copy serves all instruction sets.
#[inline(never)]
pub(crate) fn round(dtype: Dtype, values: &[f32; MAX_LANES]) -> [u8; MAX_LANES] {
    if dtype == Dtype::F8E4M3 { values.map(E4M3::round) } else { values.map(E5M2::round) }
}
