//! Rows of tensors: as they are stored, and as the loops read them.

use std::ptr;

use super::convert;
use crate::dtype::Dtype;
use crate::problem::{Chunk, Problem, Sequence};
use crate::simd::Isa;
use crate::view::View;

/// Rows as loops read them: the first byte and the distance between rows.
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
    /// The rows in memory.
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

    /// The scale of the first row, if all its elements share one; 1 if there is none.
    #[inline(always)]
    pub(crate) fn scale(&self) -> f32 {
        self.scale_and_zero()[0]
    }

    /// Scale and zero of the first row, if all its elements share them.
    #[inline(always)]
    pub(crate) fn scale_and_zero(&self) -> [f32; 2] {
        self.view.quant().map_or([1.0, 0.0], |quant| quant.of(quant.at(self.at), 0))
    }

    /// The storage type.
    #[inline(always)]
    pub(crate) fn dtype(&self) -> Dtype {
        self.view.layout().dtype
    }
}

/// Bytes of scratch memory for a query row as f32; 0 if it is stored so.
#[inline(always)]
pub(crate) fn row_scratch(dtype: Dtype, dim: usize) -> usize {
    if dtype == Dtype::F32 { 0 } else { convert::row_bytes(dim) }
}

/// `here` query rows (at most `LANES`) as rows of f32, in `room` unless they are stored so.
///
/// # Safety
/// `source` has `here` rows of `dim` elements; `room` has [`row_scratch`] bytes for each.
#[inline(always)]
pub(crate) unsafe fn rows_as_f32<S: Isa>(
    s: S,
    source: Source,
    here: usize,
    dim: usize,
    room: *mut u8,
) -> Rows {
    if source.dtype() == Dtype::F32 || here == 0 {
        return source.rows();
    }
    // SAFETY: `here` rows, and room for them (caller).
    unsafe { convert::convert(s, source, here, dim, room) };
    Rows { base: room, stride: convert::row_bytes(dim) }
}

/// Copies rows of `bytes` bytes to rows `stride` bytes apart, and writes zeros behind each up to
/// `whole` bytes. Not compiled for an instruction set: `memcpy` selects its own.
///
/// # Safety
/// `rows` has `n` rows of `bytes` bytes; `to` has room for `n` rows of `whole` bytes.
#[inline(never)]
pub(crate) unsafe fn copy_rows(rows: Rows, n: usize, bytes: usize, to: *mut u8, stride: usize, whole: usize) {
    for row in 0..n {
        // SAFETY: one of `n` rows, and room for it (caller).
        unsafe {
            let to = to.add(row * stride);
            ptr::copy_nonoverlapping(rows.skip(row).base, to, bytes);
            to.add(bytes).write_bytes(0, whole - bytes);
        }
    }
}

/// The query rows of a sequence from `row` on.
#[inline(always)]
pub(crate) fn query_rows<'a>(
    problem: &'a Problem,
    sequence: &Sequence,
    head: usize,
    row: usize,
) -> Source<'a> {
    Source { view: problem.q(), at: problem.line_at(sequence, head, row) }
}

/// The rows of a chunk of keys in `view`, which is K or V.
#[inline(always)]
pub(crate) fn chunk_rows<'a>(view: &'a View<'a>, kv_head: usize, chunk: &Chunk) -> Source<'a> {
    let [entry, row] = chunk.at;
    Source { view, at: [entry, kv_head, row] }
}

/// The rows of a sequence in `view`, which is K or V, from `key` on, to the end of its page.
#[inline(always)]
pub(crate) fn key_rows<'a>(
    problem: &Problem,
    view: &'a View<'a>,
    sequence: &Sequence,
    kv_head: usize,
    key: usize,
) -> Source<'a> {
    let [entry, row] = problem.key_at(sequence, kv_head, key);
    Source { view, at: [entry, kv_head, row] }
}
