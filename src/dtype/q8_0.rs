//! Q8_0, the block format of ggml: 32 elements in 34 bytes, a binary16 scale and then as many
//! signed 8-bit codes. An element is code times scale, which f32 holds exactly: 8 and 11
//! significant bits.

use super::block_scaled::BlockScaled;
use super::{Dtype, Stored};
use crate::simd::{Isa, MAX_LANES, half};

/// The type of [`Dtype::Q8_0`].
pub(crate) enum Q8_0 {}

/// Bytes from the beginning of a block to its codes.
pub(crate) const CODES: usize = 2;

/// The block that has element `d` of a row.
#[inline(always)]
fn block(row: *const u8, d: usize) -> *const u8 {
    row.wrapping_add(d / Q8_0::BLOCK * Q8_0::BLOCK_BYTES)
}

impl Stored for Q8_0 {
    const BLOCK: usize = 32;
    const BLOCK_BYTES: usize = CODES + 32;

    #[inline(always)]
    unsafe fn element(row: *const u8, d: usize) -> f32 {
        let block = block(row, d);
        // SAFETY: I7: scale and code of the block of element `d`, which the row has (caller); rows
        // have whole blocks.
        unsafe {
            let scale = half::from_f16(block.cast::<u16>().read_unaligned());
            scale * f32::from(block.wrapping_add(CODES + d % Self::BLOCK).cast::<i8>().read())
        }
    }

    #[inline(always)]
    unsafe fn load<S: Isa>(s: S, row: *const u8, d: usize) -> S::F32 {
        // Vectors do not straddle blocks.
        const { assert!(Self::BLOCK.is_multiple_of(MAX_LANES)) };
        let block = block(row, d);
        // SAFETY: I7: `LANES` codes from element `d` on, all of one block (caller), and its scale.
        unsafe {
            let scale = s.splat_f16(block.cast());
            s.mul(scale, s.load_i8(block.wrapping_add(CODES + d % Self::BLOCK).cast()))
        }
    }
}

impl BlockScaled for Q8_0 {
    const DTYPE: Dtype = Dtype::Q8_0;
    const SCALE: usize = 0;

    #[inline(always)]
    unsafe fn load_pair<S: Isa>(s: S, block: *const u8) -> S::I32 {
        let codes = block.wrapping_add(CODES);
        // SAFETY: I7: half a vector of bytes is a block of codes; the caller vouches for two
        // blocks.
        unsafe { s.load_halves(codes.cast(), codes.wrapping_add(Self::BLOCK_BYTES).cast()) }
    }

    #[inline(always)]
    unsafe fn load_single<S: Isa>(s: S, block: *const u8) -> S::I32 {
        // SAFETY: I7: half a vector of bytes is a block of codes; the caller vouches for the block.
        unsafe { s.load_lower_half(block.wrapping_add(CODES).cast()) }
    }

    #[inline(always)]
    unsafe fn load_wide<S: Isa>(s: S, block: *const u8, first: usize) -> S::I32 {
        // SAFETY: I7: the caller vouches for the block and for as many codes from `first` on.
        unsafe { s.load_i8_i16(block.wrapping_add(CODES + first).cast()) }
    }
}
