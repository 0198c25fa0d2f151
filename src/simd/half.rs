//! Conversions of binary16 and bfloat16 in integer arithmetic: for the scalar kernels, for single
//! elements, and as the definition that conversion instructions agree with. A NaN stays a NaN and
//! becomes quiet.

/// Converts a binary16 to f32, exactly.
#[inline(always)]
pub(crate) fn from_f16(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff);
    let value = match magnitude >> 10 {
        // Subnormal: a multiple of 2^-24, which is a normal f32.
        0 => (magnitude as f32 * 2f32.powi(-24)).to_bits(),
        // Infinity, or NaN, which becomes quiet.
        31 => 0x7f80_0000 | (magnitude << 13 & 0x7f_ffff) | if magnitude > 0x7c00 { 1 << 22 } else { 0 },
        // Normal: the exponent bias is 127 instead of 15.
        _ => (magnitude << 13) + ((127 - 15) << 23),
    };
    f32::from_bits(sign | value)
}

/// Converts to binary16, rounded to nearest even.
#[inline(always)]
pub(crate) fn to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    let value = if magnitude > 0x7f80_0000 {
        0x7e00 | (magnitude >> 13 & 0x3ff) as u16
    } else if magnitude >= 0x4780_0000 {
        // At least 2^16: infinity.
        0x7c00
    } else if magnitude < 0x3880_0000 {
        // Below 2^-14 the result is subnormal, a multiple of 2^-24. So are f32 next to 0.5: adding
        // 0.5 rounds.
        (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits()) as u16
    } else {
        // A carry out of the mantissa increments the exponent, at most to infinity.
        let rebiased = magnitude - ((127 - 15) << 23);
        ((rebiased + 0xfff + (rebiased >> 13 & 1)) >> 13) as u16
    };
    sign | value
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
    if x.is_nan() {
        return (bits >> 16 | 1 << 6) as u16;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
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
