//! Numbers as blocks of ggml: bit for bit what its reference functions (`quantize_row_*_ref`)
//! write, compiled without contraction to fused multiply-adds.

use super::Dtype;
use super::nibbles::{Format, OfIq4Nl};
use crate::simd::half;

/// Elements of a block.
const BLOCK: usize = 32;

/// Appends `values` to `to`, in blocks of `dtype`: one whose blocks carry scales. A part of a block
/// at the end of `values` is left out.
pub fn blocks(dtype: Dtype, values: &[f32], to: &mut Vec<u8>) {
    for block in values.as_chunks::<BLOCK>().0 {
        match dtype {
            Dtype::Q4_0 => symmetric(block, 4, to),
            Dtype::Q4_1 => with_minimum(block, 4, to),
            Dtype::Q5_0 => symmetric(block, 5, to),
            Dtype::Q5_1 => with_minimum(block, 5, to),
            Dtype::Iq4Nl => of_sixteen(block, to),
            _ => bytes(block, to),
        }
    }
}

/// The element of the largest magnitude, the first one of those.
fn largest(block: &[f32; BLOCK]) -> f32 {
    block.iter().fold(0.0, |most: f32, &x| if most.abs() < x.abs() { x } else { most })
}

/// 1 / `x`, or 0.
fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

fn number(x: f32, to: &mut Vec<u8>) {
    to.extend(half::to_f16(x).to_le_bytes());
}

/// Q8_0.
fn bytes(block: &[f32; BLOCK], to: &mut Vec<u8>) {
    let scale = largest(block).abs() / 127.0;
    number(scale, to);
    to.extend(block.map(|x| (x * inverse(scale)).round() as i8 as u8));
}

/// Q4_0 and Q5_0: the number of the largest magnitude becomes the lowest code.
fn symmetric(block: &[f32; BLOCK], bits: u32, to: &mut Vec<u8>) {
    let half = (1 << (bits - 1)) as f32;
    let scale = largest(block) / -half;
    number(scale, to);
    codes(block.map(|x| x * inverse(scale) + (half + 0.5)), bits, to);
}

/// Q4_1 and Q5_1: the codes go from the least number to the largest one.
fn with_minimum(block: &[f32; BLOCK], bits: u32, to: &mut Vec<u8>) {
    let least = block.iter().fold(f32::MAX, |least, &x| if x < least { x } else { least });
    let most = block.iter().fold(f32::MIN, |most, &x| if x > most { x } else { most });
    let scale = (most - least) / ((1 << bits) - 1) as f32;
    number(scale, to);
    number(least, to);
    codes(block.map(|x| (x - least) * inverse(scale) + 0.5), bits, to);
}

/// Writes codes, which are truncated: the fifth bits, if there are any, and nibbles.
fn codes(block: [f32; BLOCK], bits: u32, to: &mut Vec<u8>) {
    let codes = block.map(|x| (x as i8).clamp(0, (1 << bits) - 1) as u8);
    if bits == 5 {
        let fifths = codes.iter().rev().fold(0u32, |fifths, code| fifths << 1 | u32::from(code >> 4));
        to.extend(fifths.to_le_bytes());
    }
    nibbles(codes, to);
}

fn nibbles(codes: [u8; BLOCK], to: &mut Vec<u8>) {
    let (low, high) = codes.split_at(BLOCK / 2);
    to.extend(low.iter().zip(high).map(|(low, high)| (low & 15) | (high & 15) << 4));
}

/// IQ4_NL: the number of the largest magnitude becomes the lowest code; the scale is then the one
/// that fits the codes best, with squares as weights.
fn of_sixteen(block: &[f32; BLOCK], to: &mut Vec<u8>) {
    let values = OfIq4Nl::CODES.map(f32::from);
    let largest = largest(block);
    if largest.abs() < 1e-15 {
        number(0.0, to);
        return nibbles([0; BLOCK], to);
    }
    let inverse = 1.0 / (largest / values[0]);
    let codes = block.map(|x| nearest(&values, inverse * x));
    let (mut of_products, mut of_squares) = (0.0, 0.0);
    for (&x, &code) in block.iter().zip(&codes) {
        let (weight, value) = (x * x, values[code]);
        of_products += weight * value * x;
        of_squares += weight * value * value;
    }
    number(if of_squares > 0.0 { of_products / of_squares } else { 0.0 }, to);
    nibbles(codes.map(|code| code as u8), to);
}

/// The index of the value nearest to `x`; of two the larger.
fn nearest(values: &[f32; 16], x: f32) -> usize {
    let above = values.iter().skip(1).position(|&value| x < value).map_or(values.len() - 1, |n| n + 1);
    if x - values[above - 1] < values[above] - x { above - 1 } else { above }
}
