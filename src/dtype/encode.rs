//! Numbers as blocks of ggml: bit for bit what its reference functions (`quantize_row_*_ref`)
//! write, compiled without contraction to fused multiply-adds.

use super::Dtype;
use super::nibbles::{Format, OfIq4Nl};
use crate::simd::half;

/// Elements of a block.
const BLOCK: usize = 32;

/// A scale that is NaN.
const NAN: u16 = 0x7e00;

/// Appends `values` to `to`, in blocks of `dtype`: one whose blocks carry scales. A part of a block
/// at the end of `values` is left out.
pub fn blocks(dtype: Dtype, values: &[f32], to: &mut Vec<u8>) {
    for values in values.as_chunks().0 {
        let at = to.len();
        to.resize(at + dtype.block_bytes(), 0);
        block(dtype, values, &mut to[at..]);
    }
}

/// Writes a block of `dtype`: one whose blocks carry scales, of as many bytes as `to` has. If a
/// number is not finite, which ggml does not expect, the scale is NaN and all codes are 0.
#[inline(never)]
pub fn block(dtype: Dtype, values: &[f32; BLOCK], to: &mut [u8]) {
    if values.iter().fold(false, |found, x| found | !x.is_finite()) {
        to.fill(0);
        return number(NAN, to);
    }
    match dtype {
        Dtype::Q4_0 => symmetric(values, 4, to),
        Dtype::Q4_1 => with_minimum(values, 4, to),
        Dtype::Q5_0 => symmetric(values, 5, to),
        Dtype::Q5_1 => with_minimum(values, 5, to),
        Dtype::Iq4Nl => of_sixteen(values, to),
        _ => bytes(values, to),
    }
}

/// The element of the largest magnitude, the first one of those.
fn largest(block: &[f32; BLOCK]) -> f32 {
    // Magnitudes are in the order of their bits, whose maximum compilers find with vectors.
    let most = block.iter().fold(0, |most: u32, x| most.max(x.abs().to_bits()));
    // Of zeros it is the positive one.
    let found = block.iter().find(|x| x.abs().to_bits() == most && most > 0);
    found.copied().unwrap_or(0.0)
}

/// 1 / `x`, or 0.
fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// Writes a binary16, which a block begins with.
fn number(bits: u16, to: &mut [u8]) {
    to[..2].copy_from_slice(&bits.to_le_bytes());
}

/// Rounds to nearest, ties away from zero, -127 to 127: `roundf` in operations that compilers make
/// vectors of.
fn away(x: f32) -> i32 {
    let x = x.clamp(-127.0, 127.0);
    let whole = x as i32;
    let rest = x - whole as f32;
    whole + i32::from(rest >= 0.5) - i32::from(rest <= -0.5)
}

/// Q8_0.
fn bytes(block: &[f32; BLOCK], to: &mut [u8]) {
    let scale = largest(block).abs() / 127.0;
    let inverse = inverse(scale);
    number(half::to_f16(scale), to);
    to[2..].copy_from_slice(&block.map(|x| away(x * inverse) as u8));
}

/// Q4_0 and Q5_0: the number of the largest magnitude becomes the lowest code.
fn symmetric(block: &[f32; BLOCK], bits: u32, to: &mut [u8]) {
    let half = (1 << (bits - 1)) as f32;
    let scale = largest(block) / -half;
    let inverse = inverse(scale);
    number(half::to_f16(scale), to);
    codes(&block.map(|x| x * inverse + (half + 0.5)), bits, &mut to[2..]);
}

/// Q4_1 and Q5_1: the codes go from the least number to the largest one.
fn with_minimum(block: &[f32; BLOCK], bits: u32, to: &mut [u8]) {
    let least = block.iter().fold(f32::MAX, |least, &x| if x < least { x } else { least });
    let most = block.iter().fold(f32::MIN, |most, &x| if x > most { x } else { most });
    let scale = (most - least) / ((1 << bits) - 1) as f32;
    let inverse = inverse(scale);
    number(half::to_f16(scale), to);
    number(half::to_f16(least), &mut to[2..]);
    codes(&block.map(|x| (x - least) * inverse + 0.5), bits, &mut to[4..]);
}

/// Writes codes, which are truncated: the fifth bits, if there are any, and nibbles.
fn codes(block: &[f32; BLOCK], bits: u32, to: &mut [u8]) {
    let codes = block.map(|x| (x as i32).clamp(0, (1 << bits) - 1) as u8);
    if bits == 4 {
        return nibbles(&codes, to);
    }
    let fifths = codes.iter().rev().fold(0u32, |fifths, code| fifths << 1 | u32::from(code >> 4));
    to[..4].copy_from_slice(&fifths.to_le_bytes());
    nibbles(&codes, &mut to[4..]);
}

fn nibbles(codes: &[u8; BLOCK], to: &mut [u8]) {
    let (low, high) = codes.split_at(BLOCK / 2);
    for ((to, low), high) in to.iter_mut().zip(low).zip(high) {
        *to = (low & 15) | (high & 15) << 4;
    }
}

/// IQ4_NL: the number of the largest magnitude becomes the lowest code; the scale is then the one
/// that fits the codes best, with squares as weights.
fn of_sixteen(block: &[f32; BLOCK], to: &mut [u8]) {
    let values = OfIq4Nl::CODES.map(f32::from);
    let largest = largest(block);
    if largest.abs() < 1e-15 {
        return to.fill(0);
    }
    let inverse = 1.0 / (largest / values[0]);
    let codes = nearest(&values, &block.map(|x| inverse * x));
    let (mut of_products, mut of_squares) = (0.0, 0.0);
    for (&x, &code) in block.iter().zip(&codes) {
        let (weight, value) = (x * x, values[usize::from(code)]);
        of_products += weight * value * x;
        of_squares += weight * value * value;
    }
    number(half::to_f16(if of_squares > 0.0 { of_products / of_squares } else { 0.0 }), to);
    nibbles(&codes, &mut to[2..]);
}

/// The indices of the ascending values that are nearest; of two the larger. Each counts the pairs
/// of neighbours of which the larger is as near.
fn nearest(values: &[f32; 16], block: &[f32; BLOCK]) -> [u8; BLOCK] {
    let mut codes = [0u8; BLOCK];
    for (low, high) in values.iter().zip(&values[1..]) {
        for (code, x) in codes.iter_mut().zip(block) {
            *code += u8::from(x - low >= high - x);
        }
    }
    codes
}
