//! Compute families: how scores and weighted sums of values are made, whatever the tensors store.
//!
//! `Family` is the seam between storage types and the tile loops of [`crate::attend`]: it says which
//! types are read where they lie, and brings all others, a block of keys at a time, into a form of its own.
//! A new family is one file here and its rows in [`crate::kernel`].

pub(crate) mod bf16;
pub(crate) mod convert;
pub(crate) mod f32;
pub(crate) mod i16;
pub(crate) mod i8;
pub(crate) mod integers;
pub(crate) mod products;

use std::ptr;

use crate::dtype::Dtype;
use crate::part::Tiles;
use crate::problem::{Shape, Storage};
use crate::simd::Isa;
use crate::view::View;
use products::Products;

/// Rows as the tile loops read them: a first byte and the distance between rows.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) base: *const u8,
    /// Bytes from one row to the next.
    pub(crate) stride: usize,
}

impl Rows {
    /// The rows from row `n` on.
    #[inline(always)]
    pub(crate) fn skip(self, n: usize) -> Rows {
        Rows { base: self.base.wrapping_add(n * self.stride), ..self }
    }
}

/// Rows of a tensor as they are stored.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) view: &'a View<'a>,
    /// Batch entry (or page), head and number of the first row.
    pub(crate) at: [usize; 3],
}

impl Source<'_> {
    /// Where they lie.
    #[inline(always)]
    pub(crate) fn rows(&self) -> Rows {
        let [entry, head, row] = self.at;
        Rows { base: self.view.row(entry, head, row), stride: self.view.layout().stride[2] }
    }

    /// The rows from row `n` on.
    #[inline(always)]
    pub(crate) fn skip(self, n: usize) -> Self {
        let [entry, head, row] = self.at;
        Source { at: [entry, head, row + n], ..self }
    }

    /// What the elements of the first row are multiplied by, if all by the same; 1 if by nothing.
    #[inline(always)]
    pub(crate) fn scale(&self) -> f32 {
        self.view.quant().map_or(1.0, |quant| quant.of(quant.at(self.at), 0)[0])
    }

    /// What they are stored as.
    #[inline(always)]
    pub(crate) fn dtype(&self) -> Dtype {
        self.view.layout().dtype
    }
}

/// Bytes of the staged K and V of a block of keys; 0 where they are read where they lie.
#[inline(always)]
pub(crate) fn staged_bytes<F: Family>(shape: &Shape, tiles: Tiles) -> [usize; 2] {
    let [k, v] = tiles.staged;
    let groups = tiles.kv.div_ceil(F::KEYS);
    [
        if k { F::staged_k_row(shape.dim_qk).saturating_mul(tiles.kv) } else { 0 },
        if v { F::staged_v_row(shape.dim_v).saturating_mul(groups) } else { 0 },
    ]
}

/// One block of `Z` vectors for each of `R` keys, or elements of an output.
pub(crate) type Tile<T, const R: usize, const Z: usize> = [[T; Z]; R];

/// How scores are made, how probabilities are kept and multiplied with values, and how stored Q, K and V
/// become what the tile loops read.
///
/// Keys are taken [`Family::KEYS`] at a time where they meet probabilities: a *group*. Of a group each lane has
/// one 32-bit word of probabilities, and each element of V one word with the values of all its keys.
///
/// All functions that take pointers need: every row named of a source, each of `dim` elements; staged rows
/// valid for reads; scratch pointers valid for writes of the bytes that the matching function gave, 64-byte
/// aligned, and not overlapping anything else.
pub(crate) trait Family: 'static {
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

    /// How it multiplies where query rows are few.
    type Products: Products;

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

    /// The scores whose dot products are `sum`; `panel` as in [`Family::begin_score`].
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

    /// A sum to go on with; 0 if [`Family::BLOCKWISE`].
    fn resume<S: Isa>(s: S, sum: S::F32) -> Self::Sum<S>;

    /// `sum` and the products of words of probabilities and of values.
    fn add<S: Isa>(s: S, p: Self::Words<S>, v: Self::Words<S>, sum: Self::Sum<S>) -> Self::Sum<S>;

    /// A sum as f32; times `weight` if [`Family::BLOCKWISE`].
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

/// Bytes of scratch for a query row to become f32; 0 where it is.
#[inline(always)]
pub(crate) fn plain_room(dtype: Dtype, dim: usize) -> usize {
    if dtype == Dtype::F32 { 0 } else { convert::row_bytes(dim) }
}

/// `here` query rows (at most `LANES`) as rows of f32.
///
/// # Safety
/// As [`Family::pack_query`], with room for [`plain_room`].
#[inline(always)]
pub(crate) unsafe fn plain_rows<S: Isa>(
    s: S,
    source: Source,
    here: usize,
    dim: usize,
    room: *mut u8,
) -> Rows {
    if source.dtype() == Dtype::F32 || here == 0 {
        return source.rows();
    }
    // SAFETY: this function's contract.
    unsafe { convert::convert(s, source, here, dim, room) };
    Rows { base: room, stride: convert::row_bytes(dim) }
}

/// Copies rows of `bytes` bytes, `stride` apart afterwards, and zeros behind them up to `whole` bytes. Not
/// compiled for an instruction set: `memcpy` has its own.
///
/// # Safety
/// `rows` has `n` such rows, `to` room for as many.
#[inline(never)]
pub(crate) unsafe fn copy_rows(rows: Rows, n: usize, bytes: usize, to: *mut u8, stride: usize, whole: usize) {
    for row in 0..n {
        // SAFETY: this function's contract.
        unsafe {
            let to = to.add(row * stride);
            ptr::copy_nonoverlapping(rows.skip(row).base, to, bytes);
            to.add(bytes).write_bytes(0, whole - bytes);
        }
    }
}
