//! How a family multiplies where query rows are few and lanes are elements of a head: see [`crate::decode`].
//!
//! A *word* is what a lane multiplies at a time: an element, or a pair of neighbouring ones in its halves. So a vector
//! holds [`Products::KEYS`] times as many elements as it has lanes, and of V, where a word holds an element of as many
//! neighbouring keys, what belongs to as many elements fills that many vectors, in an order of the instruction set's
//! own.

pub(crate) mod bf16;
pub(crate) mod f32;
pub(crate) mod i16;

use super::Source;
use crate::dtype::{Dtype, Stored};
use crate::simd::Isa;

/// See the module.
///
/// All functions that take pointers need the elements that they name, valid for reads, or whole vectors, valid for
/// writes.
pub(crate) trait Products: 'static {
    /// The family's name.
    const NAME: &'static str;
    /// What K and V are stored as, if words are made of that alone.
    const DTYPE: Option<Dtype>;
    /// Elements of a word, and keys that are weighted at a time: 1 or 2.
    const KEYS: usize;
    /// Keys of a block that sums can take.
    const MOST: usize;
    /// Whether the sums of a block are integers: see [`super::Family::BLOCKWISE`].
    const BLOCKWISE: bool;
    /// What a probability of 1 counts.
    const ONE: f32;
    /// Words, one a lane.
    type Words<S: Isa>: Copy;
    /// Sums of products, one a lane.
    type Sum<S: Isa>: Copy;

    /// Packs a query row, zeros behind it up to whole vectors of words; what its scores, which are to be in log2 units
    /// and are dot products times `factor`, are still to be multiplied by.
    ///
    /// # Safety
    /// See the trait; `to` holds a row of f32 in as many vectors.
    unsafe fn pack<S: Isa>(s: S, source: Source, dim: usize, factor: f32, to: *mut f32) -> f32;

    /// Elements of a packed query row from element `d` on.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn query<S: Isa>(s: S, line: *const f32, d: usize) -> Self::Words<S>;

    /// Elements of a row of K or V from element `d` on, which is stored as `T`.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn row<S: Isa, T: Stored>(s: S, row: *const u8, d: usize) -> Self::Words<S>;

    /// The first `n` of them, fewer than a vector has; the others are 0.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn row_first<S: Isa, T: Stored>(s: S, row: *const u8, d: usize, n: usize) -> Self::Words<S>;

    /// No elements.
    fn nothing<S: Isa>(s: S) -> Self::Words<S>;

    /// No sum yet.
    fn zero<S: Isa>(s: S) -> Self::Sum<S>;

    /// `sum` and the products of `a` and `b`.
    fn add<S: Isa>(s: S, a: Self::Words<S>, b: Self::Words<S>, sum: Self::Sum<S>) -> Self::Sum<S>;

    /// Sums of a score, or of outputs, as f32.
    fn number<S: Isa>(s: S, sum: Self::Sum<S>) -> S::F32;

    /// 2^`x`, a probability, for `x` that is not above [`crate::attend::softmax::SLACK`], or not above 0 if
    /// [`Products::BLOCKWISE`]: times [`Products::ONE`], and as it counts in the sum of them.
    fn probability<S: Isa>(s: S, x: S::F32) -> S::F32;

    /// Writes a vector of them, rounded, those of keys from `key` on: into a line of f32, from which nothing before
    /// `key + LANES` is still to be read.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn write<S: Isa>(s: S, line: *mut f32, key: usize, p: S::F32);

    /// The probability of a key, or of two from an even one on, in all lanes.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn weight<S: Isa>(s: S, line: *const f32, key: usize) -> Self::Words<S>;

    /// Rows of V of [`Products::KEYS`] keys, with what belongs to an element in one word.
    fn side_by_side<S: Isa>(s: S, rows: [Self::Words<S>; 2]) -> [Self::Words<S>; 2];

    /// Sums of outputs to go on with, in the order of [`Products::side_by_side`].
    ///
    /// # Safety
    /// See the trait.
    unsafe fn resume<S: Isa>(s: S, from: *const f32) -> [Self::Sum<S>; 2];

    /// Writes them: in the order of elements, as f32; just as they are if [`Products::BLOCKWISE`].
    ///
    /// # Safety
    /// See the trait.
    unsafe fn keep<S: Isa>(s: S, to: *mut f32, sums: [Self::Sum<S>; 2]);

    /// Sums that were written so, as f32 in the order of elements.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn outputs<S: Isa>(s: S, from: *const f32) -> [S::F32; 2];
}

/// Elements of a vector.
#[inline(always)]
pub(crate) const fn width<S: Isa, P: Products>() -> usize {
    S::LANES * P::KEYS
}

/// `n` elements of `bytes` bytes each from element `d` of a row on, and zeros behind them. Out of line: compilers make
/// calls of such loops, which do not belong into kernels.
///
/// # Safety
/// The row has them; they are not more than the array has.
#[inline(never)]
unsafe fn few(row: *const u8, d: usize, n: usize, bytes: usize) -> [u8; 64] {
    let mut elements = [0; 64];
    for (i, byte) in elements.iter_mut().enumerate().take(n * bytes) {
        // SAFETY: a byte of one of the elements.
        *byte = unsafe { row.wrapping_add(d * bytes + i).read() };
    }
    elements
}
