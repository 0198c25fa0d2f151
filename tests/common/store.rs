//! Test data in every storage type: numbers to bytes, as a quantising engine would write them.

#![allow(unreachable_pub, reason = "a module of its own where this is included")]

#[path = "f8.rs"]
pub mod f8;

use flash_attention::dtype::Dtype;
use half::{bf16, f16};

/// Rows of `dim` numbers as `dtype`, behind one another, and what an 8-bit integer, or a
/// fraction, is multiplied by.
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
        Dtype::Q15 => {
            let step = largest(values).max(f32::MIN_POSITIVE) / 32_767.0;
            let integers = values.iter().map(|x| (x / step).round_ties_even() as i16);
            return (integers.flat_map(i16::to_ne_bytes).collect(), step * 32_768.0);
        }
        Dtype::F8E4M3 | Dtype::F8E5M2 => values.iter().map(|&x| f8::nearest(dtype, x)).collect(),
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
