//! Rows whose elements do not lie behind one another, such as those of a transposed cache: gathered
//! into scratch memory as they are stored, a few keys at a time. Unsigned integers, wherever they
//! lie, become signed ones on that way.

use std::ptr;

use super::rows::Source;
use crate::dtype::{Dtype, u8};
use crate::simd::transpose::TransposeTile;
use crate::simd::{Body, Isa};
use crate::view::View;

/// Rows that are gathered at a time, where they are converted or rearranged afterwards: whole
/// groups of keys of any compute type, and some cache lines of each element.
pub(crate) const GATHERED: usize = 32;

/// Tiles that are transposed at a time: enough keys for a cache line of 16-bit elements.
const TILES: usize = 4;

/// Bytes from one gathered row to the next: an odd number of cache lines, as they are staged.
/// Saturates where no machine has the memory.
#[inline(always)]
pub(crate) fn row_bytes(dtype: Dtype, dim: usize) -> usize {
    dtype.row_bytes(dim).map_or(usize::MAX, |n| (n.div_ceil(64) | 1).saturating_mul(64))
}

/// Gathers `n` rows of a view with strided or unsigned elements to rows `stride` bytes apart, as
/// they are stored, or signed. Kept out of line, so that the code exists once for each instruction
/// set.
///
/// # Safety
/// `source` has `n` rows of `dim` elements, and `to` room for as many rows of whole cache lines,
/// which `stride` is a multiple of.
#[inline(never)]
pub(crate) unsafe fn gather<S: Isa>(s: S, source: Source, n: usize, dim: usize, to: *mut u8, stride: usize) {
    s.core().enter(Gather { source, n, dim, to, stride });
}

/// Gathers `n` rows to `room`, [`GATHERED`] at a time, and calls `f` with these, their number, and
/// how many came before. Kept out of line, so that the code exists once for each instruction set.
///
/// # Safety
/// `source` has `n` rows of `dim` elements, and `room` has place for [`GATHERED`] rows of
/// [`row_bytes`]. The rows are not used when `f` has returned.
#[inline(never)]
pub(crate) unsafe fn in_turns<S: Isa>(
    s: S,
    source: Source,
    n: usize,
    dim: usize,
    room: *mut u8,
    f: &mut dyn FnMut(Source, usize, usize),
) {
    let stride = row_bytes(source.dtype(), dim);
    for first in (0..n).step_by(GATHERED) {
        let (source, here) = (source.skip(first), GATHERED.min(n - first));
        // SAFETY: some of the rows, and room for them in whole cache lines (caller).
        let gathered: View = unsafe {
            gather(s, source, here, dim, room, stride);
            source.view.gathered(source.at[2], room, stride)
        };
        f(Source { view: &gathered, ..source }, here, first);
    }
}

/// Gathers one row, and writes nothing behind its last element.
///
/// # Safety
/// `source` has a row of `dim` elements, and `to` room for it.
#[inline(never)]
pub(crate) unsafe fn gather_row(source: Source, dim: usize, to: *mut u8) {
    let row = Gather { source, n: 1, dim, to, stride: 0 };
    // SAFETY: one row, and room for it (caller).
    unsafe {
        match source.dtype().block_bytes() {
            4 => row.one_by_one::<4>(),
            2 => row.one_by_one::<2>(),
            _ => row.one_by_one::<1>(),
        }
        if source.dtype() == Dtype::U8 {
            row.change_signs();
        }
    }
}

/// The arguments of [`gather`], and of [`gather_row`]; these alone make one, and vouch for its
/// pointers.
struct Gather<'a> {
    source: Source<'a>,
    n: usize,
    dim: usize,
    to: *mut u8,
    stride: usize,
}

impl Body for Gather<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        // SAFETY: rows, and room for them (the callers of `gather`); elements have 4 bytes, 2 or 1.
        unsafe {
            if self.source.dtype() == Dtype::U8 {
                return self.signed(s);
            }
            match self.source.dtype().block_bytes() {
                4 => self.of_size::<S, 4>(s),
                2 => self.of_size::<S, 2>(s),
                _ => self.of_size::<S, 1>(s),
            }
        }
    }
}

impl Gather<'_> {
    /// [`gather`] of unsigned integers, as signed ones.
    ///
    /// # Safety
    /// The contract of [`gather`].
    #[inline(always)]
    unsafe fn signed<S: Isa>(&self, s: S) {
        let Gather { source, n, dim, to, stride } = *self;
        let vector = 4 * S::LANES;
        // SAFETY: I2, I7: bytes below `dim` of the caller's rows, and room for them.
        unsafe {
            if source.view.layout().is_strided() {
                self.of_size::<S, 1>(s);
                return self.change_signs();
            }
            if dim < vector {
                self.one_by_one::<1>();
                return self.change_signs();
            }
            let rows = source.rows();
            let signs = s.splat_i32(i32::from_ne_bytes([u8::SIGN; 4]));
            for i in 0..n {
                let (from, to) = (rows.skip(i).base, to.wrapping_add(i * stride));
                let copy = |d: usize| {
                    let x = s.load_i32(from.wrapping_add(d).cast());
                    s.store_i32(to.wrapping_add(d).cast(), s.xor(x, signs));
                };
                for d in (0..dim - dim % vector).step_by(vector) {
                    copy(d);
                }
                // The last vector may overlap the one before.
                if !dim.is_multiple_of(vector) {
                    copy(dim - vector);
                }
            }
        }
    }

    /// Makes unsigned integers signed ones, where they have been gathered to.
    ///
    /// # Safety
    /// `n` rows of `dim` bytes have been written.
    #[inline(always)]
    unsafe fn change_signs(&self) {
        for i in 0..self.n {
            let row = self.to.wrapping_add(i * self.stride);
            for d in 0..self.dim {
                // SAFETY: a byte of one of the rows (caller).
                unsafe { *row.add(d) ^= u8::SIGN };
            }
        }
    }

    /// [`gather`] of elements of `SIZE` bytes.
    ///
    /// # Safety
    /// The contract of [`gather`].
    #[inline(always)]
    unsafe fn of_size<S: Isa, const SIZE: usize>(&self, s: S) {
        let is_transposed = self.source.view.layout().stride[2] == SIZE;
        // SAFETY: the caller's rows, of which there is a vector.
        unsafe {
            if is_transposed && self.n >= S::LANES {
                self.transposed::<S, SIZE>(s);
            } else {
                self.one_by_one::<SIZE>();
            }
        }
    }

    /// Rows of neighbouring keys lie side by side: tiles of them are transposed, as words of 4
    /// bytes that have one element, or several of the same row. No key beyond the last is read.
    ///
    /// # Safety
    /// The contract of [`gather`]; there are at least `LANES` rows.
    #[inline(always)]
    unsafe fn transposed<S: Isa, const SIZE: usize>(&self, s: S) {
        let Gather { source, n, dim, to, stride } = *self;
        let (base, apart) = (source.rows().base, source.view.layout().stride_dim);
        let in_word = const { 4 / SIZE };
        let mut tiles = [TransposeTile::uninit(); TILES];
        let words = tiles.as_mut_ptr().cast::<f32>();
        let mut start = 0;
        while start < n {
            let here = (n - start).min(TILES * S::LANES);
            // The keys of a tile; the last may overlap the one before.
            let keys = (start..start + here).step_by(S::LANES).map(|key| key.min(n - S::LANES)).enumerate();
            for first in (0..dim).step_by(in_word * S::LANES) {
                let there = (dim - first).div_ceil(in_word).min(S::LANES);
                // What stands behind the last element of a row is never read, and so are the last
                // elements repeated there.
                let element = |d: usize| base.wrapping_add((first + d).min(dim - 1) * apart);
                let is_direct = SIZE == 4 && there == S::LANES;
                // SAFETY: I2, I7: `LANES` keys of elements below `dim` (caller); tiles have `LANES`
                // lines; rows have room for whole cache lines, and so for whole vectors.
                unsafe {
                    // All that is read of an element at once: its cache lines may compete for one
                    // set with those of all others.
                    for i in 0..if is_direct { 0 } else { S::LANES } {
                        let of_word = [0, 1, 2, 3].map(|d| element(i * in_word + d));
                        for (tile, key) in keys.clone() {
                            let x = if i < there {
                                let from = of_word.map(|element| element.wrapping_add(key * SIZE));
                                match SIZE {
                                    4 => s.load_i32(from[0].cast()),
                                    2 => {
                                        s.pack_bf16(s.load_bf16(from[0].cast()), s.load_bf16(from[1].cast()))
                                    }
                                    _ => s.load_interleaved_bytes(from, 0),
                                }
                            } else {
                                s.splat_i32(0)
                            };
                            s.store_i32(words.add((tile * S::LANES + i) * S::LANES).cast(), x);
                        }
                    }
                    for (tile, key) in keys.clone() {
                        let to = to.wrapping_add(key * stride + first * SIZE).cast::<f32>();
                        if is_direct {
                            s.transpose(element(0).wrapping_add(key * SIZE).cast(), apart, to, stride, None);
                        } else {
                            let tile = words.add(tile * S::LANES * S::LANES);
                            s.transpose(tile, S::LANES * 4, to, stride, None);
                        }
                    }
                }
                // As many keys of the next rows: the hardware prefetcher does not follow so many
                // streams.
                for d in 0..there * in_word {
                    let next = element(d).wrapping_add((start + here) * SIZE);
                    for line in (0..here * SIZE).step_by(64) {
                        s.prefetch_l1(next.wrapping_add(line));
                    }
                }
            }
            start += here;
        }
    }

    /// Rows that lie in any other way, or few of them.
    ///
    /// # Safety
    /// `n` rows of `dim` elements of `SIZE` bytes, and room for them.
    #[inline(always)]
    unsafe fn one_by_one<const SIZE: usize>(&self) {
        let Gather { source, n, dim, to, stride } = *self;
        // Those of unsigned integers may lie behind one another.
        let (rows, apart) = (source.rows(), source.view.layout().stride_dim.max(SIZE));
        for i in 0..n {
            let (mut from, to) = (rows.skip(i).base, to.wrapping_add(i * stride));
            for d in 0..dim {
                // SAFETY: I2: an element of one of the rows, and a place for it (caller).
                unsafe { ptr::copy_nonoverlapping(from, to.wrapping_add(d * SIZE), SIZE) };
                from = from.wrapping_add(apart);
            }
        }
    }
}
