//! Floating-point numbers of 8 bits, by their definition.

#![allow(unreachable_pub, reason = "a module of its own where this is included")]

use flash_attention::dtype::Dtype;

/// What a floating-point number of 8 bits is, by sign, exponent and mantissa.
pub fn value(dtype: Dtype, bits: u8) -> f64 {
    let (mantissa_bits, bias) = if dtype == Dtype::F8E4M3 { (3, 7) } else { (2, 15) };
    let (exponent, mantissa) = (i32::from((bits & 0x7f) >> mantissa_bits), bits & ((1 << mantissa_bits) - 1));
    let part = f64::from(mantissa) / f64::from(1 << mantissa_bits);
    let magnitude = match (dtype, exponent, mantissa) {
        (Dtype::F8E4M3, 15, 7) => f64::NAN,
        (Dtype::F8E5M2, 31, 0) => f64::INFINITY,
        (Dtype::F8E5M2, 31, _) => f64::NAN,
        (_, 0, _) => part * 2f64.powi(1 - bias),
        _ => (1.0 + part) * 2f64.powi(exponent - bias),
    };
    if bits < 0x80 { magnitude } else { -magnitude }
}

/// The finite number of 8 bits that is nearest; of two the one whose last bit is 0. A NaN has its
/// sign.
pub fn nearest(dtype: Dtype, x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let [nan, most] = if dtype == Dtype::F8E4M3 { [0x7f, 0x7e] } else { [0x7e, 0x7b] };
    if x.is_nan() {
        return sign | nan;
    }
    let x = f64::from(x).abs();
    // Magnitudes are in the order of their bits.
    let (mut low, mut high) = (0, most);
    while high - low > 1 {
        let middle = (low + high) / 2;
        if value(dtype, middle) <= x { low = middle } else { high = middle }
    }
    let [below, above] = [x - value(dtype, low), value(dtype, high) - x];
    let is_above = above < below || (above == below && high % 2 == 0);
    sign | if is_above { high } else { low }
}
