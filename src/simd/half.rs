//! Conversions of binary16 and bfloat16 in integer arithmetic: for the scalar kernels, for single
//! elements, and as the definition that conversion instructions agree with. A NaN stays a NaN and
//! becomes quiet.
//!
//! No conversion branches: each case is computed, and one selected, so that compilers make vectors
//! of them for any target.

/// A format of numbers of 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// bfloat16.
    Bf16,
    /// binary16.
    F16,
}

/// Bits of an f32 that are no sign.
const MAGNITUDE: u32 = 0x7fff_ffff;
/// The bits of infinity.
const INFINITY: u32 = 0x7f80_0000;
/// How much larger the exponent bias of f32 is than that of binary16.
const REBIAS: u32 = 127 - 15;

/// Converts a binary16 to f32, exactly.
#[inline(always)]
pub(crate) fn from_f16(bits: u16) -> f32 {
    // The sign stays where it is, exponent and mantissa move to where an f32 has them. That is the
    // number times 2^-112, also if it is subnormal.
    let small = ((u32::from(bits) << 16).cast_signed() >> 3).cast_unsigned() & 0x8fff_e000;
    // An exponent of ones becomes one of more ones. The product is then the number itself, and
    // makes a NaN quiet.
    const ONES: u32 = 31 << 23;
    let exponent = if small & ONES == ONES { INFINITY } else { 0 };
    f32::from_bits(small | exponent) * f32::from_bits((127 + REBIAS) << 23)
}

/// Converts to binary16, rounded to nearest even.
#[inline(always)]
pub(crate) fn to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let magnitude = bits & MAGNITUDE;
    // A carry out of the mantissa increments the exponent, at most to infinity, which is also what
    // all numbers from 2^16 on become.
    let rebiased = magnitude.wrapping_sub(REBIAS << 23);
    let rounded = rebiased.wrapping_add(0xfff + (rebiased >> 13 & 1)) >> 13;
    let normal = rounded.min(0x7c00);
    // Below 2^-14 the result is subnormal, a multiple of 2^-24. So are f32 next to 0.5: adding 0.5
    // rounds.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let nan = 0x7e00 | (magnitude >> 13 & 0x3ff);
    let value = if magnitude < 0x3880_0000 { subnormal } else { normal };
    let value = if magnitude > INFINITY { nan } else { value };
    (bits >> 16 & 0x8000 | value) as u16
}

/// Converts a bfloat16 to f32, exactly.
#[inline(always)]
pub(crate) fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Converts to bfloat16, rounded to nearest even.
#[inline(always)]
pub(crate) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let nan = bits >> 16 | 1 << 6;
    (if bits & MAGNITUDE > INFINITY { nan } else { rounded }) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares every binary16 with its definition by sign, exponent and mantissa.
    #[test]
    fn every_binary16_has_its_value_and_comes_back() {
        for bits in 0..=u16::MAX {
            let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f64::from(bits & 0x3ff));
            let magnitude = match exponent {
                0 => mantissa * 2f64.powi(-24),
                31 if mantissa == 0.0 => f64::INFINITY,
                31 => f64::NAN,
                _ => (1.0 + mantissa / 1024.0) * 2f64.powi(exponent - 15),
            };
            let value = if bits & 0x8000 == 0 { magnitude } else { -magnitude };
            let x = from_f16(bits);
            assert!(f64::from(x) == value || (x.is_nan() && value.is_nan()), "{bits:#x}: {x}");
            let quiet = if value.is_nan() { bits | 0x200 } else { bits };
            assert_eq!(to_f16(x), quiet);
        }
    }

    /// Rounds the midpoints between neighbours, and the f32 next to them.
    #[test]
    fn rounding_is_to_nearest_even() {
        for low in 0..0x7c00u16 {
            // Above the largest value, rounding takes 2^16 for the next one: infinity.
            let high = if low == 0x7bff { 65536.0 } else { from_f16(low + 1) };
            let middle = (from_f16(low) + high) / 2.0;
            assert_eq!(to_f16(middle), low + (low & 1), "{middle}");
            assert_eq!(to_f16(f32::from_bits(middle.to_bits() - 1)), low);
            assert_eq!(to_f16(f32::from_bits(middle.to_bits() + 1)), low + 1);
            assert_eq!(to_f16(-middle), 0x8000 | (low + (low & 1)));
        }
        for low in (0..0x7f80u16).step_by(3) {
            let middle = f32::from_bits(u32::from(low) << 16 | 0x8000);
            assert_eq!(to_bf16(middle), low + (low & 1), "{middle}");
            assert_eq!(to_bf16(f32::from_bits(middle.to_bits() - 1)), low);
            assert_eq!(to_bf16(f32::from_bits(middle.to_bits() + 1)), low + 1);
            assert_eq!(from_bf16(to_bf16(from_bf16(low))).to_bits(), u32::from(low) << 16);
        }
        assert_eq!(to_bf16(f32::from_bits(0x7f80_0001)), 0x7fc0);
        assert_eq!(to_bf16(f32::NEG_INFINITY), 0xff80);
        assert_eq!(to_f16(f32::INFINITY), 0x7c00);
        assert_eq!(to_f16(1e30), 0x7c00);
    }
}
