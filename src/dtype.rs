//! Storage types, and how each becomes lanes of a compute family.
//!
//! A *storage type* says how bytes in memory become numbers. A *compute family* says how scores
//! are made from them. [`Family`] is the seam between the two and the tile loops of
//! [`crate::attend`]: a new type is one file here and one row in [`crate::kernel`].

pub(crate) mod f32;
pub(crate) mod i8;

use crate::simd::Isa;

/// How the elements of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary64: only read, by the reference and for test data.
    F64,
    /// Signed 8-bit integer, to be multiplied by a scale.
    I8,
    /// A byte that is 0 or not: masks.
    Bool8,
}

impl Dtype {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Dtype::F64 => 8,
            Dtype::F32 => 4,
            Dtype::I8 | Dtype::Bool8 => 1,
        }
    }
}

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

/// One block of `Z` vectors of scores for each of `R` keys.
pub(crate) type Tile<S, const R: usize, const Z: usize> = [[<S as Isa>::F32; Z]; R];

/// How scores are made, and how stored K and V become what the tile loops read.
///
/// All functions that take pointers need: `rows.base` valid for reads of every row named, each of
/// `dim` elements; scratch pointers valid for writes of the bytes that the matching `*_bytes`
/// function gave, 64-byte aligned, and not overlapping anything else.
pub(crate) trait Family: 'static {
    /// Storage type of Q, K and V.
    const DTYPE: Dtype;
    /// One lane of one step of a packed query: what one multiplication consumes.
    type Query: Copy;

    /// Steps in a packed query row of `dim` elements.
    fn steps(dim: usize) -> usize;

    /// Bytes of scratch that one staged row of K needs; 0 when K is read where it lies, which
    /// `copy` forbids.
    fn staged_k_row(dim: usize, copy: bool) -> usize;

    /// Bytes of scratch that one staged row of V needs, likewise.
    fn staged_v_row(dim: usize, copy: bool) -> usize;

    /// Transposes `n` rows of `dim` elements into `panel[step][lane]`, `lanes` wide, the missing
    /// lanes as zeros. `factor` is what a raw dot product must be multiplied by to be a score in
    /// log2 units; a family applies it either here or in [`Family::dot`].
    ///
    /// # Safety
    /// See the trait; `n <= lanes`, and `panel` holds `steps(dim) * lanes` values.
    unsafe fn pack_query<S: Isa>(
        s: S,
        rows: Rows,
        n: usize,
        dim: usize,
        lanes: usize,
        factor: f32,
        panel: *mut Self::Query,
    );

    /// `n` rows of K in the form [`Family::dot`] reads.
    ///
    /// # Safety
    /// See the trait; `scratch` holds `n` staged rows.
    unsafe fn stage_k<S: Isa>(s: S, rows: Rows, n: usize, dim: usize, copy: bool, scratch: *mut u8) -> Rows;

    /// `n` rows of V as f32.
    ///
    /// # Safety
    /// See the trait; `scratch` holds `n` staged rows.
    unsafe fn stage_v<S: Isa>(s: S, rows: Rows, n: usize, dim: usize, copy: bool, scratch: *mut u8) -> Rows;

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
    unsafe fn pack_row<S: Isa>(s: S, row: *const u8, dim: usize, factor: f32, to: *mut Self::Query);

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
