//! Compute families: how scores and weighted sums of values are made, whatever the tensors store.
//!
//! [`Family`] is the seam between storage types and the tile loops of [`crate::attend`]: it says which
//! types are read where they lie, and brings all others, a block of keys at a time, into a form of its own.
//! A new family is one file here and its rows in [`crate::kernel`].

pub(crate) mod convert;
pub(crate) mod f32;

use crate::dtype::Dtype;
use crate::part::Tiles;
use crate::problem::Shape;
use crate::simd::Isa;
use crate::view::View;

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

    /// What they are stored as.
    #[inline(always)]
    pub(crate) fn dtype(&self) -> Dtype {
        self.view.layout().dtype
    }
}

/// Bytes of a staged row of K and of V; 0 where they are read where they lie.
#[inline(always)]
pub(crate) fn staged_bytes<F: Family>(shape: &Shape, tiles: Tiles) -> [usize; 2] {
    let [k, v] = tiles.staged;
    [if k { F::staged_k_row(shape.dim_qk) } else { 0 }, if v { F::staged_v_row(shape.dim_v) } else { 0 }]
}

/// One block of `Z` vectors of scores for each of `R` keys.
pub(crate) type Tile<S, const R: usize, const Z: usize> = [[<S as Isa>::F32; Z]; R];

/// How scores are made, and how stored Q, K and V become what the tile loops read.
///
/// All functions that take pointers need: every row named of a source, each of `dim` elements; staged rows
/// valid for reads; scratch pointers valid for writes of the bytes that the matching function gave, 64-byte
/// aligned, and not overlapping anything else.
pub(crate) trait Family: 'static {
    /// Its name, for people.
    const NAME: &'static str;
    /// Whether it computes problems whose Q, K and V are stored so.
    fn takes(dtypes: [Dtype; 3]) -> bool;
    /// One lane of one step of a packed query: what one multiplication consumes.
    type Query: Copy;

    /// Steps in a packed query row of `dim` elements.
    fn steps(dim: usize) -> usize;

    /// Whether queries of a type are packed where they lie; else they need room as plain rows.
    fn reads_q(dtype: Dtype) -> bool;

    /// Whether rows of K, and of V, of a type can be read where they lie.
    fn reads_kv(dtype: Dtype) -> [bool; 2];

    /// Bytes of a staged row of K.
    fn staged_k_row(dim: usize) -> usize;

    /// Bytes of a staged row of V.
    fn staged_v_row(dim: usize) -> usize;

    /// Transposes `n` rows of `dim` elements into `panel[step][lane]`, `lanes` wide, the missing
    /// lanes as zeros. `factor` is what a raw dot product must be multiplied by to be a score in
    /// log2 units; a family applies it either here or in [`Family::dot`].
    ///
    /// # Safety
    /// See the trait; `n <= lanes`, `panel` holds `steps(dim) * lanes` values, and `room` `LANES` rows of
    /// [`convert::row_bytes`], if the type is not read where it lies.
    unsafe fn pack_query<S: Isa>(
        s: S,
        source: Source,
        n: usize,
        dim: usize,
        lanes: usize,
        factor: f32,
        panel: *mut Self::Query,
        room: *mut u8,
    );

    /// Writes `n` rows of K in the form that [`Family::dot`] reads.
    ///
    /// # Safety
    /// See the trait; `to` holds `n` staged rows.
    unsafe fn stage_k<S: Isa>(s: S, source: Source, n: usize, dim: usize, to: *mut u8);

    /// Writes `n` rows of V in the form that the tile loops read: f32.
    ///
    /// # Safety
    /// See the trait; `to` holds `n` staged rows.
    unsafe fn stage_v<S: Isa>(s: S, source: Source, n: usize, dim: usize, to: *mut u8);

    /// Scores, in log2 units, of `R` keys against `Z` vectors of packed queries. Each lane's sum
    /// runs over the steps in ascending order whatever `R` and `Z` are, so that a score has the
    /// same bits in every tile shape.
    ///
    /// # Safety
    /// See the trait; `k` has at least `R` staged rows, and `panel` is the first of `Z` neighbouring
    /// vectors of a packed panel `lanes` wide.
    unsafe fn dot<S: Isa, const R: usize, const Z: usize>(
        s: S,
        panel: *const Self::Query,
        lanes: usize,
        k: Rows,
        dim: usize,
        factor: f32,
    ) -> Tile<S, R, Z>;

    /// One row of `dim` elements as `steps(dim)` values and zeros up to whole vectors. `factor` is
    /// as for [`Family::pack_query`], applied either here or in [`Family::finish`].
    ///
    /// # Safety
    /// See the trait; `to` has room for whole vectors of `steps(dim)` values.
    unsafe fn pack_row<S: Isa>(s: S, source: Source, dim: usize, factor: f32, to: *mut Self::Query);

    /// Products of `R` rows of queries packed by [`Family::pack_row`], `step` values apart, with `K`
    /// keys. The sum of a vector's lanes is a dot product; each lane runs over the row in ascending
    /// order whatever `R` and `K` are.
    ///
    /// # Safety
    /// See the trait; `k` has at least `K` staged rows.
    unsafe fn dot_row<S: Isa, const R: usize, const K: usize>(
        s: S,
        queries: *const Self::Query,
        step: usize,
        k: Rows,
        dim: usize,
    ) -> Tile<S, R, K>;

    /// Dot products to scores.
    fn finish<S: Isa>(s: S, dots: S::F32, factor: f32) -> S::F32;
}
