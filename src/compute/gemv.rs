//! How a family multiplies where query rows are few and lanes are elements of a head: see [`crate::decode`].
//!
//! A *word* is what a lane multiplies at a time: an element, or two or four neighbouring ones. So a vector holds
//! [`Gemv::KEYS`] times as many elements as it has lanes, and of V, where a word holds an element of as many
//! neighbouring keys, what belongs to as many elements fills that many vectors, in an order of the instruction set's
//! own.

use super::Source;
use crate::dtype::{Dtype, Stored};
use crate::simd::{Isa, MAX_LANES};

/// See the module.
///
/// All functions that take pointers need the elements that they name, valid for reads, or whole vectors, valid for
/// writes.
pub(crate) trait Gemv: 'static {
    /// The family's name.
    const NAME: &'static str;
    /// What K and V are stored as, if words are made of that alone.
    const DTYPE: Option<Dtype>;
    /// Whether blocks of elements have scales beside them, by which their sums are multiplied: see
    /// [`crate::decode::beside`], which then takes the place of the loops over rows that have none.
    const BESIDE: bool = false;
    /// Elements of a word, and keys that are weighted at a time: 1, 2 or 4.
    const KEYS: usize;
    /// Rows that are multiplied at a time, at most.
    const ROWS: usize = usize::MAX;
    /// Keys of a block that sums can take.
    const MOST: usize;
    /// Whether the sums of a block are integers: see [`Gemm::BLOCKWISE`].
    const BLOCKWISE: bool;
    /// What a probability of 1 counts.
    const ONE: f32;
    /// Words of K or V, one a lane.
    type Words<S: Isa>: Copy;
    /// What they are multiplied by: words of a query, or probabilities.
    type Factor<S: Isa>: Copy;
    /// Sums of products, one a lane.
    type Sum<S: Isa>: Copy;
    /// The same as numbers.
    type Lanes<S: Isa>: Copy;

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
    unsafe fn query<S: Isa>(s: S, line: *const f32, d: usize) -> Self::Factor<S>;

    /// Sums of a score with a packed query row of `dim` elements, to begin with. With [`Gemv::BESIDE`], what is to be
    /// taken from those of the two blocks of a vector of elements from `d` on.
    ///
    /// # Safety
    /// See the trait.
    #[inline(always)]
    unsafe fn begin<S: Isa>(s: S, _line: *const f32, _dim: usize, _d: usize) -> Self::Sum<S> {
        Self::zero(s)
    }

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

    /// Words of K as they are multiplied.
    #[inline(always)]
    fn of_key<S: Isa>(_s: S, words: Self::Words<S>) -> Self::Words<S> {
        words
    }

    /// No elements.
    fn nothing<S: Isa>(s: S) -> Self::Words<S>;

    /// To be multiplied by nothing.
    fn no_factor<S: Isa>(s: S) -> Self::Factor<S>;

    /// No sum yet.
    fn zero<S: Isa>(s: S) -> Self::Sum<S>;

    /// `sum` and the products of words of a query and of K.
    fn add_score<S: Isa>(s: S, q: Self::Factor<S>, k: Self::Words<S>, sum: Self::Sum<S>) -> Self::Sum<S>;

    /// The products of words of a query and of K alone.
    #[inline(always)]
    fn product<S: Isa>(s: S, q: Self::Factor<S>, k: Self::Words<S>) -> Self::Lanes<S> {
        Self::lanes(s, Self::add_score(s, q, k, Self::zero(s)))
    }

    /// `sum` and the products of probabilities and words of V.
    fn add_value<S: Isa>(s: S, p: Self::Factor<S>, v: Self::Words<S>, sum: Self::Sum<S>) -> Self::Sum<S>;

    /// Sums of a score, one a lane.
    fn lanes<S: Isa>(s: S, sum: Self::Sum<S>) -> Self::Lanes<S>;

    /// What [`Isa::sums`] says, of them.
    fn sums<S: Isa>(s: S, lanes: &[Self::Lanes<S>; MAX_LANES]) -> S::F32;

    /// The same of each half of a vector, less what [`Gemv::begin`] gave: with [`Gemv::BESIDE`].
    #[inline(always)]
    fn sums_of_halves<S: Isa>(
        s: S,
        lanes: &[Self::Lanes<S>; MAX_LANES],
        _begin: Self::Sum<S>,
    ) -> [S::F32; 2] {
        [Self::sums(s, lanes), s.splat(0.0)]
    }

    /// What [`Gemv::sums`] says of one: the number that it gives for it.
    fn total<S: Isa>(s: S, lanes: Self::Lanes<S>) -> f32;

    /// 2^`x`, a probability, for `x` that is not above [`crate::prefill::softmax::SLACK`], or not above 0 if
    /// [`Gemv::BLOCKWISE`]: times [`Gemv::ONE`], and as it counts in the sum of them.
    fn probability<S: Isa>(s: S, x: S::F32) -> S::F32;

    /// Writes a vector of them, rounded, those of keys from `key` on: into a line of f32, from which nothing before
    /// `key + LANES` is still to be read.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn write<S: Isa>(s: S, line: *mut f32, key: usize, p: S::F32);

    /// The probability of a key, or of as many as a word has from a multiple of that on, in all lanes.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn weight<S: Isa>(s: S, line: *const f32, key: usize) -> Self::Factor<S>;

    /// The same where elements of the lower half of a vector are multiplied by those of the first line, others by those of
    /// the second: with [`Gemv::BESIDE`].
    ///
    /// # Safety
    /// See the trait.
    #[inline(always)]
    unsafe fn weights<S: Isa>(s: S, lines: [*const f32; 2], key: usize) -> Self::Factor<S> {
        // SAFETY: this function's contract.
        unsafe { Self::weight(s, lines[0], key) }
    }

    /// Rows of V of [`Gemv::KEYS`] keys, with what belongs to an element in one word.
    fn side_by_side<S: Isa>(s: S, rows: [Self::Words<S>; MOST_KEYS]) -> [Self::Words<S>; MOST_KEYS];

    /// Sums of outputs to go on with, in the order of [`Gemv::side_by_side`].
    ///
    /// # Safety
    /// See the trait.
    unsafe fn resume<S: Isa>(s: S, from: *const f32) -> [Self::Sum<S>; MOST_KEYS];

    /// Writes them: in the order of elements, as f32; just as they are if [`Gemv::BLOCKWISE`].
    ///
    /// # Safety
    /// See the trait.
    unsafe fn keep<S: Isa>(s: S, to: *mut f32, sums: [Self::Sum<S>; MOST_KEYS]);

    /// Sums that were written so, as f32 in the order of elements.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn outputs<S: Isa>(s: S, from: *const f32) -> [S::F32; MOST_KEYS];
}

/// The most that [`Gemv::KEYS`] is: of arrays that long, [`Gemv::KEYS`] vectors count.
pub(crate) const MOST_KEYS: usize = 4;

/// Elements of a vector.
#[inline(always)]
pub(crate) const fn width<S: Isa, P: Gemv>() -> usize {
    S::LANES * P::KEYS
}

/// `n` elements of `bytes` bytes each from element `d` of a row on, and zeros behind them. Out of line: compilers make
/// calls of such loops, which do not belong into kernels.
///
/// # Safety
/// The row has them; they are not more than the array has.
#[inline(never)]
pub(super) unsafe fn few(row: *const u8, d: usize, n: usize, bytes: usize) -> [u8; 64] {
    let mut elements = [0; 64];
    for (i, byte) in elements.iter_mut().enumerate().take(n * bytes) {
        // SAFETY: a byte of one of the elements.
        *byte = unsafe { row.wrapping_add(d * bytes + i).read() };
    }
    elements
}
