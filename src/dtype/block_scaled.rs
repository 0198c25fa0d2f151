//! Storage types whose blocks of elements carry their own scale, as decode multiplies them: codes
//! as integers, each block's sum times its scale.

use super::{Dtype, Stored};
use crate::simd::Isa;

/// A storage type in blocks of [`Stored::BLOCK`] codes (integers of at most 8 bits) that share a
/// scale: an element is code times scale. [`crate::decode::block_scaled`],
/// [`crate::compute::split16::Split16`] and [`crate::compute::blocks16::Blocks16`] are generic over
/// it.
///
/// With [`crate::compute::split16::Split16`] a block has half as many elements as a vector of
/// signed bytes: 32 with 16 lanes, and only such instruction sets have kernels of that kind. With
/// [`crate::compute::blocks16::Blocks16`] it has one or several vectors of 16-bit integers.
///
/// Q8_0 is the only one with kernels: blocks of fewer bits ([`super::nibbles`]) are unpacked to it.
/// A further type, whose blocks are others, is one file beside this one, a row in each table of
/// [`crate::dtype`], kernels in the table of its instruction set, and tests; one of nibbles is in
/// the tests of [`crate::compute::split16`]. Loads lane by lane are right with any instruction set.
/// Where they are what limits speed, they become an operation of [`Isa`], with the loop as its
/// default (as `Isa::load_halves`, which Q8_0 uses).
pub(crate) trait BlockScaled: Stored + 'static {
    /// Its value of the enumeration.
    const DTYPE: Dtype;
    /// Bytes from the beginning of a block to its scale.
    const SCALE: usize;

    /// The codes of the block at `block` and of the block behind it, in the order of the elements:
    /// signed bytes, those of the first block in the lower half of the vector.
    ///
    /// # Safety
    /// Both blocks are readable.
    unsafe fn load_pair<S: Isa>(s: S, block: *const u8) -> S::I32;

    /// The codes of the block at `block` alone, in the lower half of the vector; 0 in the upper
    /// half.
    ///
    /// # Safety
    /// The block is readable.
    unsafe fn load_single<S: Isa>(s: S, block: *const u8) -> S::I32;

    /// `2 * LANES` codes of the block at `block`, from code `first` on, sign-extended to i16.
    ///
    /// # Safety
    /// The block is readable and has these codes.
    unsafe fn load_wide<S: Isa>(s: S, block: *const u8, first: usize) -> S::I32;

    /// The scales of two blocks of each of `LANES` rows, the second `distance` bytes behind the
    /// first. `four(n)` tells where the first blocks of the four rows from row `n` on are. The
    /// default reads binary16 numbers.
    ///
    /// # Safety
    /// All these blocks are readable.
    #[inline(always)]
    unsafe fn scales<S: Isa, At: Fn(usize) -> *const u8>(
        s: S,
        four: impl Fn(usize) -> At,
        distance: usize,
    ) -> [S::F32; 2] {
        let four = |n| {
            let block = four(n);
            move |i| block(i).wrapping_add(Self::SCALE)
        };
        // SAFETY: I7: two bytes at `SCALE` of each block, which the caller vouches for.
        unsafe { s.gather_f16(four, distance) }
    }
}
