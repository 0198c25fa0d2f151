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
/// A further type, say Q4_0 of ggml, is one file beside this one, a row in each table of
/// [`crate::dtype`], kernels in the table of its instruction set, and tests:
///
/// ```ignore
/// //! Q4_0: a binary16 scale, then 16 bytes: elements 0 to 15 are the low nibbles, elements 16 to
/// //! 31 the high ones. Each nibble is 8 more than its code.
///
/// const NIBBLES: usize = 2;
///
/// pub(crate) enum Q4_0 {}
///
/// impl Stored for Q4_0 {
///     const BLOCK: usize = 32;
///     const BLOCK_BYTES: usize = NIBBLES + 16;
///     // `one` and `load` give elements as f32, to all code that does not multiply codes: prefill,
///     // queries of this type, and rows whose scales are unfit for integer weights.
/// }
///
/// impl BlockScaled for Q4_0 {
///     const DTYPE: Dtype = Dtype::Q4_0;
///     const SCALE: usize = 0;
///
///     unsafe fn load_pair<S: Isa>(s: S, block: *const u8) -> S::I32 {
///         let mut codes = [0i8; 64];
///         for (i, code) in codes.iter_mut().enumerate() {
///             let block = block.wrapping_add(i / 32 * Self::BLOCK_BYTES + NIBBLES);
///             let nibble = unsafe { block.wrapping_add(i % 16).read() } >> (i % 32 / 16 * 4) & 15;
///             *code = nibble.cast_signed() - 8;
///         }
///         unsafe { s.load_i32(codes.as_ptr().cast()) }
///     }
///
///     // `load_single`: the loop over 32 elements; the other codes stay 0. `load_wide`: the same,
///     // as i16.
/// }
///
/// // In src/kernel/x86_64.rs:
/// &Combination::<Avx512, F32, Split16<Q4_0>, Split16<Q4_0>, Vnni, 8>::new()
///     .only_for(<I16 as Gemm>::MAX_DIM, |storage| storage.dtypes[1..] == [Dtype::Q4_0; 2]),
/// &Combination::<Avx2, F32, Blocks16<Q4_0>, Blocks16<Q4_0>, Avx2, 6>::new()
///     .only_for(<I16 as Gemm>::MAX_DIM, |storage| storage.dtypes[1..] == [Dtype::Q4_0; 2]),
/// ```
///
/// Loads of that kind are right with any instruction set. Where the loop is what limits speed, it
/// becomes an operation of [`Isa`], with the loop as its default (as `Isa::load_halves`, which Q8_0
/// uses).
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
