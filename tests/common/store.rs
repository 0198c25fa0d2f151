//! Test data in every storage type: numbers to bytes, as a quantising engine would write them.

#![allow(unreachable_pub, reason = "a module of its own where this is included")]

use flash_attention::dtype::Dtype;
use half::{bf16, f16};

/// What a floating-point number of 8 bits is, by sign, exponent and mantissa.
pub fn f8(dtype: Dtype, bits: u8) -> f64 {
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
pub fn nearest_f8(dtype: Dtype, x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    if x.is_nan() {
        return sign | if dtype == Dtype::F8E4M3 { 0x7f } else { 0x7e };
    }
    let finite = (0..0x80u8).filter(|&bits| f8(dtype, bits).is_finite());
    let x = f64::from(x).abs().min(1e9);
    let far = |&bits: &u8| ((f8(dtype, bits) - x).abs(), bits & 1);
    sign | finite.min_by(|a, b| far(a).partial_cmp(&far(b)).unwrap()).unwrap()
}

/// Rows of `dim` numbers as `dtype`, behind one another, and what an 8-bit integer stands for.
pub fn encode(dtype: Dtype, values: &[f32], dim: usize) -> (Vec<u8>, f32) {
    assert!(values.len().is_multiple_of(dim) && dim.is_multiple_of(dtype.block()));
    let largest = |x: &[f32]| x.iter().fold(0f32, |m, x| m.max(x.abs()));
    let step = |x: &[f32]| if largest(x) > 0.0 { largest(x) / 127.0 } else { 1.0 };
    let integers = |x: &[f32], step: f32| -> Vec<u8> {
        x.iter().map(|x| (x / step).round().clamp(-127.0, 127.0) as i8 as u8).collect()
    };
    let bytes = match dtype {
        Dtype::F32 => values.iter().flat_map(|x| x.to_ne_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_ne_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_ne_bytes()).collect(),
        Dtype::I8 => return (integers(values, step(values)), step(values)),
        // Without zeros: those of numbers below 0 are lost.
        Dtype::U8 => {
            let step = step(values) / 255.0 * 127.0;
            return (values.iter().map(|x| (x / step).round() as u8).collect(), step);
        }
        Dtype::F8E4M3 | Dtype::F8E5M2 => {
            let largest = largest(values).max(1e-30);
            let step = largest / if dtype == Dtype::F8E4M3 { 448.0 } else { 57344.0 };
            return (values.iter().map(|x| nearest_f8(dtype, x / step)).collect(), step);
        }
        Dtype::Q8_0 => values
            .chunks(32)
            .flat_map(|block| {
                let scale = f16::from_f32(step(block));
                let integers = integers(block, scale.to_f32());
                scale.to_ne_bytes().into_iter().chain(integers).collect::<Vec<_>>()
            })
            .collect(),
        Dtype::Q4_0 | Dtype::Q4_1 | Dtype::Q5_0 | Dtype::Q5_1 | Dtype::Iq4Nl => {
            let mut blocks = Vec::new();
            flash_attention::dtype::encode::blocks(dtype, values, &mut blocks);
            blocks
        }
        Dtype::Bool8 => values.iter().map(|&x| u8::from(x != 0.0)).collect(),
    };
    (bytes, 1.0)
}
