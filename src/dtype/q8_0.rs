//! Q8_0, the block format of ggml: 32 elements in 34 bytes, a binary16 scale and then as many signed 8-bit
//! integers that it is multiplied with. The product of 11 and 8 significant bits is exact in f32.

use super::Stored;
use crate::simd::{Isa, MAX_LANES, half};

/// See [`super::Dtype::Q8_0`].
pub(crate) enum Q8_0 {}

/// Where a block's integers begin.
const INTEGERS: usize = 2;

/// The block that has element `d`.
#[inline(always)]
fn block(row: *const u8, d: usize) -> *const u8 {
    row.wrapping_add(d / Q8_0::BLOCK * Q8_0::BLOCK_BYTES)
}

impl Stored for Q8_0 {
    const BLOCK: usize = 32;
    const BLOCK_BYTES: usize = INTEGERS + 32;

    #[inline(always)]
    unsafe fn one(row: *const u8, d: usize) -> f32 {
        let block = block(row, d);
        // SAFETY: this method's contract; rows have whole blocks.
        unsafe {
            let scale = half::from_f16(block.cast::<u16>().read_unaligned());
            scale * f32::from(block.wrapping_add(INTEGERS + d % Self::BLOCK).cast::<i8>().read())
        }
    }

    #[inline(always)]
    unsafe fn load<S: Isa>(s: S, row: *const u8, d: usize) -> S::F32 {
        // Vectors do not straddle blocks.
        const { assert!(Self::BLOCK.is_multiple_of(MAX_LANES)) };
        let block = block(row, d);
        // SAFETY: this method's contract; rows have whole blocks.
        unsafe {
            let scale = s.splat_f16(block.cast());
            s.mul(scale, s.load_i8(block.wrapping_add(INTEGERS + d % Self::BLOCK).cast()))
        }
    }
}
