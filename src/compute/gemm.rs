//! How a compute type multiplies where query rows are many and lanes are query rows: see [`crate::prefill`].

use super::Source;
use crate::dtype::Dtype;
use crate::problem::Storage;
use crate::simd::Isa;

/// How scores are made, how probabilities are kept and multiplied with values, and how stored Q, K and V
/// become what the tile loops read.
///
/// Keys are taken [`Gemm::KEYS`] at a time where they meet probabilities: a *group*. Of a group each lane has
/// one 32-bit word of probabilities, and each element of V one word with the values of all its keys.
///
/// All functions that take pointers need: every row named of a source, each of `dim` elements; staged rows
/// valid for reads; scratch pointers valid for writes of the bytes that the matching function gave, 64-byte
/// aligned, and not overlapping anything else.
pub(crate) trait Gemm: 'static {
    /// Its name, for people.
    const NAME: &'static str;
    /// Whether queries or probabilities are rounded to 8 bits.
    const ROUNDS: bool;
    /// Keys of a group: 1, 2 or 4.
    const KEYS: usize;
    /// Lines of a panel of packed queries before those of its steps: what a lane needs to begin and to end a
    /// score with.
    const HEAD: usize;
    /// Keys of a block, and elements of a row of Q and K, that sums can take.
    const MOST: [usize; 2];
    /// Whether the sums of a block are integers: relative to the block's own maximum, begun with 0, and
    /// weighted where blocks meet. Else they are begun with those of the blocks before.
    const BLOCKWISE: bool;
    /// What the largest probability of a block is, as those sums count.
    const ONE: f32;
    /// Words of a vector of lanes: what one multiplication consumes of queries or probabilities, or of a key or
    /// the values of a group, then the same in all lanes.
    type Words<S: Isa>: Copy;
    /// Sums of products, one a lane.
    type Sum<S: Isa>: Copy;

    /// Whether it computes problems whose Q, K and V are stored so.
    fn takes(storage: &Storage) -> bool;

    /// Bytes of scratch for a query row while it is packed.
    fn query_room(dtype: Dtype, dim: usize) -> usize;

    /// Steps in a packed query row of `dim` elements.
    fn steps(dim: usize) -> usize;

    /// Whether rows of K of a type can be read where they lie.
    fn reads_k(dtype: Dtype, dim: usize) -> bool;

    /// Whether rows of V of a type can be read where they lie.
    fn reads_v(dtype: Dtype) -> bool;

    /// Bytes of a staged row of K.
    fn staged_k_row(dim: usize) -> usize;

    /// Bytes of a staged group of V.
    fn staged_v_row(dim: usize) -> usize;

    /// Packs `n` query rows, transposed: `panel[line][lane]`, `lanes` wide, the missing lanes as zeros. Their
    /// products with keys are to be scores in log2 units, which are dot products times `factor`. Answers whether
    /// scores may be NaN of which sums will not tell.
    ///
    /// # Safety
    /// See the trait; `n <= lanes`, `panel` holds `(HEAD + steps(dim)) * lanes` words, and `room` as much as
    /// `LANES` rows take.
    unsafe fn pack_query<S: Isa>(
        s: S,
        source: Source,
        n: usize,
        dim: usize,
        lanes: usize,
        factor: f32,
        panel: *mut f32,
        room: *mut u8,
    ) -> bool;

    /// Writes `n` rows of K as words: one for each step of a packed query.
    ///
    /// # Safety
    /// See the trait; `to` holds `n` staged rows.
    unsafe fn stage_k<S: Isa>(s: S, source: Source, n: usize, dim: usize, to: *mut u8);

    /// Writes `n` rows of V, beginning with key `first` of those that are staged, as groups. Where groups have
    /// more than one key, a value that is not finite becomes 0, and the answer is whether there was any; keys
    /// that follow in the last group are 0.
    ///
    /// # Safety
    /// See the trait; `to` holds all groups; the keys before `first` have been staged.
    unsafe fn stage_v<S: Isa>(s: S, source: Source, n: usize, dim: usize, first: usize, to: *mut u8) -> bool;

    /// What the dot products of a vector of packed queries, the first of whose lines is at `panel`, begin with.
    ///
    /// # Safety
    /// `panel` is `lanes` wide.
    unsafe fn begin_score<S: Isa>(s: S, panel: *const f32, lanes: usize) -> Self::Sum<S>;

    /// `sum` and the products of words of queries and of a key.
    fn add_score<S: Isa>(s: S, q: Self::Words<S>, k: Self::Words<S>, sum: Self::Sum<S>) -> Self::Sum<S>;

    /// The scores whose dot products are `sum`; `panel` as in [`Gemm::begin_score`].
    ///
    /// # Safety
    /// As there.
    unsafe fn end_score<S: Isa>(s: S, panel: *const f32, sum: Self::Sum<S>) -> S::F32;

    /// The probabilities of a group from as many `scores` as it has keys, relative to `reference`; added to
    /// `total`.
    fn make<S: Isa>(s: S, scores: [S::F32; 4], reference: S::F32, total: &mut Self::Sum<S>)
    -> Self::Words<S>;

    /// No sum yet.
    fn zero<S: Isa>(s: S) -> Self::Sum<S>;

    /// A sum to go on with; 0 if [`Gemm::BLOCKWISE`].
    fn resume<S: Isa>(s: S, sum: S::F32) -> Self::Sum<S>;

    /// `sum` and the products of words of probabilities and of values.
    fn add<S: Isa>(s: S, p: Self::Words<S>, v: Self::Words<S>, sum: Self::Sum<S>) -> Self::Sum<S>;

    /// A sum as f32; times `weight` if [`Gemm::BLOCKWISE`].
    fn total<S: Isa>(s: S, sum: Self::Sum<S>, weight: S::F32) -> S::F32;

    /// Words of queries or probabilities from memory.
    ///
    /// # Safety
    /// A vector is readable at `p`.
    unsafe fn load<S: Isa>(s: S, p: *const f32) -> Self::Words<S>;

    /// Words of probabilities to memory.
    ///
    /// # Safety
    /// A vector is writable at `p`.
    unsafe fn store<S: Isa>(s: S, p: *mut f32, x: Self::Words<S>);

    /// The word at `v` in all lanes.
    ///
    /// # Safety
    /// It is readable.
    unsafe fn value<S: Isa>(s: S, v: *const u8) -> Self::Words<S>;

    /// The probability of one key of a group in the word that a lane has.
    fn probability(word: u32, key: usize) -> f32;
}
