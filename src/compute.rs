//! Compute families: how scores and weighted sums of values are made, whatever the tensors store.
//!
//! `Gemm` is the seam between storage types and the tile loops of [`crate::attend`]: it says which
//! types are read where they lie, and brings all others, a block of keys at a time, into a form of its own.
//! A new family is one file here and its rows in [`crate::kernel`].

pub(crate) mod bf16;
pub(crate) mod convert;
pub(crate) mod f32;
pub(crate) mod gemm;
pub(crate) mod gemv;
pub(crate) mod i16;
pub(crate) mod i8;
pub(crate) mod integers;
pub(crate) mod split16;

use std::ptr;

use crate::dtype::Dtype;
use crate::problem::Shape;
use crate::simd::Isa;
use crate::view::View;
use crate::work::query_tiles::TileSizes;
pub(crate) use gemm::Gemm;
pub(crate) use gemv::Gemv;

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
pub(crate) fn staged_bytes<F: Gemm>(shape: &Shape, tiles: TileSizes) -> [usize; 2] {
    let [k, v] = tiles.staged;
    let groups = tiles.kv.div_ceil(F::KEYS);
    [
        if k { F::staged_k_row(shape.dim_qk).saturating_mul(tiles.kv) } else { 0 },
        if v { F::staged_v_row(shape.dim_v).saturating_mul(groups) } else { 0 },
    ]
}

/// One block of `Z` vectors for each of `R` keys, or elements of an output.
pub(crate) type Tile<T, const R: usize, const Z: usize> = [[T; Z]; R];

/// Bytes of scratch for a query row to become f32; 0 where it is.
#[inline(always)]
pub(crate) fn plain_room(dtype: Dtype, dim: usize) -> usize {
    if dtype == Dtype::F32 { 0 } else { convert::row_bytes(dim) }
}

/// `here` query rows (at most `LANES`) as rows of f32.
///
/// # Safety
/// As [`Gemm::pack_query`], with room for [`plain_room`].
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
