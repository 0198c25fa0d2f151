//! K and V in blocks of 4 and 5 bits ([`crate::dtype::nibbles`]) as blocks of Q8_0, in scratch
//! memory: so [`super::block_scaled`] multiplies them as integers, with the loops of Q8_0.
//!
//! - An element is code times scale, plus the minimum of its block if the format has one. Codes are
//!   signed bytes, the scale stays what it is. If that of a block of V is negative, its sign goes
//!   to the codes: a weight of V is a probability times a scale, and not negative.
//! - With a minimum, codes are centred: n - 8 of 4 bits, n - 16 of 5, and what that takes away,
//!   scale times 8 or 16, is added to the minimum. Minima are f32, beside the blocks
//!   ([`OfBlocks`]): what they add to a score is the minimum times the sum of the query's block,
//!   and what they add to an output is the sum of probability times minimum, for all elements of a
//!   block alike. So they cost nothing that grows with the elements of a key.

use std::marker::PhantomData;
use std::ops::Range;

use super::gemv::BlockScaledGemv;
use super::prefetch::LINE;
use super::scratch::RowArrays;
use crate::attend::rows::Rows;
use crate::dtype::nibbles::{Format, Nibbles, with_nibbles};
use crate::dtype::q8_0::{self, Q8_0};
use crate::dtype::{Dtype, Stored};
use crate::simd::{Body, Isa, MAX_LANES};

/// Minima, or scales, of a block of keys, counted from its first key: a row of them for each block
/// of a row of K or V, in whole vectors.
#[derive(Clone, Copy)]
pub(crate) struct OfBlocks {
    pub(super) base: *mut f32,
    /// Values from one row to the next.
    pub(super) stride: usize,
}

impl OfBlocks {
    /// The numbers of block `block` of a row, of all keys.
    #[inline(always)]
    pub(super) fn of(self, block: usize) -> *mut f32 {
        self.base.wrapping_add(block * self.stride)
    }

    /// Makes those of the vectors 0 in which `keys` begin and end: whole vectors are read.
    ///
    /// # Safety
    /// There are `blocks` rows, with these keys (I5).
    pub(super) unsafe fn begin(self, lanes: usize, blocks: usize, keys: &Range<usize>) {
        for block in 0..blocks {
            for key in [keys.start, keys.end - 1] {
                // SAFETY: I5: rows are whole vectors (caller).
                unsafe { self.of(block).add(key - key % lanes).write_bytes(0, lanes) };
            }
        }
    }

    /// Whether those of all `keys` are finite, and none less than `least`. Kept out of line: few
    /// types have any.
    ///
    /// # Safety
    /// Those of `blocks` blocks have been written, of these keys.
    #[inline(never)]
    pub(super) unsafe fn all_are_fit<S: Isa>(
        self,
        s: S,
        least: f32,
        blocks: usize,
        keys: &Range<usize>,
    ) -> bool {
        s.enter(AreFit { numbers: self, least, blocks, keys })
    }

    /// Whether those of a key are finite.
    ///
    /// # Safety
    /// Those of `blocks` blocks have been written, of this key.
    pub(super) unsafe fn are_finite(self, blocks: usize, key: usize) -> bool {
        // SAFETY: I5: a number for each block and key (caller).
        (0..blocks).all(|block| unsafe { self.of(block).add(key).read() }.is_finite())
    }
}

/// The arguments of [`OfBlocks::all_are_fit`], which alone makes one and vouches for its pointers.
struct AreFit<'a> {
    numbers: OfBlocks,
    least: f32,
    blocks: usize,
    keys: &'a Range<usize>,
}

impl Body for AreFit<'_> {
    type Out = bool;

    #[inline(always)]
    fn run<S: Isa>(self, s: S) -> bool {
        let AreFit { numbers, least, blocks, keys } = self;
        // NaN from the first one on that is not finite.
        let (mut found, mut min) = (s.splat(0.0), s.splat(least));
        for block in 0..blocks {
            for at in (keys.start - keys.start % S::LANES..keys.end).step_by(S::LANES) {
                // SAFETY: I7: whole vectors of keys (`OfBlocks::all_are_fit`).
                let x = unsafe { s.load(numbers.of(block).add(at)) };
                found = s.fma(x, s.splat(0.0), found);
                min = s.min(x, min);
            }
        }
        s.horizontal_sum(found) == 0.0 && !s.any(s.gt(s.splat(least), min))
    }
}

/// Unpacks `n` rows of `dim` elements, stored as `dtype`, to rows of Q8_0, and their minima, if
/// they have any, to those of the keys from `key` on. Meanwhile rows `ahead`, as many as there are
/// of both, are prefetched. Scales of K may be negative, those of V (`is_v`) become positive. Kept
/// out of line, so that the code exists once for each instruction set.
///
/// # Safety
/// `from` has the rows, and `to` room for as many; `minima` has the keys.
#[inline(never)]
pub(super) unsafe fn unpack<S: Isa>(
    s: S,
    (from, dtype, is_v): (Rows, Dtype, bool),
    (n, ahead): (usize, Range<usize>),
    dim: usize,
    to: Rows,
    minima: Option<(OfBlocks, usize)>,
) {
    s.core().enter(Unpack { from, dtype, is_v, n, ahead, dim, to, minima });
}

/// The arguments of [`unpack`], which alone makes one and vouches for its pointers.
struct Unpack {
    from: Rows,
    dtype: Dtype,
    is_v: bool,
    n: usize,
    ahead: Range<usize>,
    dim: usize,
    to: Rows,
    minima: Option<(OfBlocks, usize)>,
}

impl Body for Unpack {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        // SAFETY: the contract of `unpack`, which made this; I9: rows are stored as `T`.
        unsafe {
            with_nibbles!(self.dtype, T => match self.is_v {
                false => self.rows::<S, _, false>(s, T::NEW),
                true => self.rows::<S, _, true>(s, T::NEW),
            }, else ())
        }
    }
}

impl Unpack {
    /// # Safety
    /// The contract of [`unpack`], of rows in blocks of `F`; `V` if they are rows of V.
    #[inline(always)]
    unsafe fn rows<S: Isa, F: Format, const V: bool>(&self, s: S, _: Nibbles<F>) {
        let Unpack { from, n, ref ahead, dim, to, minima, .. } = *self;
        let prefetched = ahead.len();
        let (bytes, blocks) = (Nibbles::<F>::BLOCK_BYTES, dim / Q8_0::BLOCK);
        let minima = minima.filter(|_| Nibbles::<F>::HAS_MINIMUM);
        // Of as many rows as a vector has lanes, scales and minima are gathered as they are stored,
        // where their sums go.
        let whole = n - n % S::LANES;
        for row in 0..n {
            // Little is computed here: nothing else hides what memory takes.
            if row < prefetched {
                prefetch_l2(s, from.skip(ahead.start + row).base, blocks * bytes);
            }
            let (first, lane) = (row - row % S::LANES, row % S::LANES);
            let gathered = minima.filter(|_| row < whole);
            let (mut block, mut to) = (from.skip(row).base, to.skip(row).base.cast_mut());
            for n in 0..blocks {
                // SAFETY: I7: a block of a row, and room for one of Q8_0; a vector of minima of
                // each block (caller).
                unsafe {
                    let scale = block.cast::<u16>().read_unaligned();
                    // The byte that has the sign of the scale.
                    let sign = block.cast::<i8>().add(cfg!(target_endian = "little").into());
                    let sign = if V { Some(sign.read()) } else { None };
                    to.cast::<u16>().write_unaligned(if V { scale & 0x7fff } else { scale });
                    Nibbles::<F>::unpack(s, block, sign, to.add(q8_0::CODES).cast());
                    if let Some((minima, key)) = gathered {
                        let at = minima.of(n).add(key + first).cast::<u16>();
                        at.add(lane).write_unaligned(scale);
                        let minimum = block.add(Nibbles::<F>::MINIMUM).cast::<u16>();
                        at.add(S::LANES + lane).write_unaligned(minimum.read_unaligned());
                    }
                }
                (block, to) = (block.wrapping_add(bytes), to.wrapping_add(Q8_0::BLOCK_BYTES));
            }
        }
        let Some((minima, key)) = minima else { return };
        for n in 0..blocks {
            // SAFETY: I7: as above.
            unsafe {
                for first in (0..whole).step_by(S::LANES) {
                    let at = minima.of(n).add(key + first);
                    let [scales, least] = [0, S::LANES].map(|i| s.load_f16(at.cast::<u16>().add(i)));
                    s.store(at, s.fma(scales, s.splat(Nibbles::<F>::OFFSET), least));
                }
                for row in whole..self.n {
                    let block = from.skip(row).base.wrapping_add(n * bytes);
                    minima.of(n).add(key + row).write(Nibbles::<F>::centred_minimum(block));
                }
            }
        }
    }
}

/// Prefetches a row of `bytes` bytes into the second-level cache.
#[inline(always)]
pub(super) fn prefetch_l2<S: Isa>(s: S, row: *const u8, bytes: usize) {
    s.prefetch_l2(row);
    for line in (LINE..bytes).step_by(LINE) {
        s.prefetch_l2(row.wrapping_add(line));
    }
}

/// Adds what minima of K contribute to the dot products of the first `count` query rows with
/// `keys`. Kept out of line: few types have minima.
///
/// # Safety
/// `rows` are the arrays of a group, with queries packed and the products of these keys (I5); the
/// minima of the keys have been written.
#[inline(never)]
pub(super) unsafe fn add_to_scores<S: Isa, P: BlockScaledGemv>(
    s: S,
    rows: &RowArrays,
    count: usize,
    dim: usize,
    keys: &Range<usize>,
    minima: OfBlocks,
) {
    s.enter(AddToScores::<P> { rows, count, dim, keys, minima, compute: PhantomData });
}

/// The arguments of [`add_to_scores`], which alone makes one and vouches for its pointers.
struct AddToScores<'a, P> {
    rows: &'a RowArrays,
    count: usize,
    dim: usize,
    keys: &'a Range<usize>,
    minima: OfBlocks,
    compute: PhantomData<P>,
}

impl<P: BlockScaledGemv> Body for AddToScores<'_, P> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let AddToScores { rows, count, dim, keys, minima, .. } = self;
        for r in 0..count {
            // SAFETY: I5: a packed row; I7: scores and minima are whole vectors of keys
            // (`add_to_scores`).
            unsafe {
                let query = rows.queries.add(r * rows.query_stride).cast_const();
                let scores = rows.scores.add(r * rows.score_stride);
                for slab in (0..dim / <P::Blocks as Stored>::BLOCK).step_by(SUMS) {
                    let blocks = slab..(slab + SUMS).min(dim / <P::Blocks as Stored>::BLOCK);
                    let mut sums = [0.0; SUMS];
                    for (sum, block) in sums.iter_mut().zip(blocks.clone()) {
                        *sum = P::sum_of_block(s, query, dim, block) as f32;
                    }
                    for at in (keys.start - keys.start % S::LANES..keys.end).step_by(S::LANES) {
                        let mut score = s.load(scores.add(at));
                        for (&sum, block) in sums.iter().zip(blocks.clone()) {
                            score = s.fma(s.load(minima.of(block).add(at)), s.splat(sum), score);
                        }
                        s.store(scores.add(at), score);
                    }
                }
            }
        }
    }
}

/// Blocks of a query row whose sums are at hand at a time.
const SUMS: usize = 8;

/// Adds to an output row of `dim` elements what minima of V contribute: of each block the sum of
/// `p` times the minima of `keys`, times `weight`. Keys whose probability is 0 contribute nothing,
/// whatever their minimum is; `all_are_finite` says that it is finite. Kept out of line: few types
/// have minima.
///
/// # Safety
/// `p` and the minima are whole vectors of keys, and the output has whole blocks.
#[inline(never)]
pub(super) unsafe fn add_to_output<S: Isa>(
    s: S,
    p: *const f32,
    keys: &Range<usize>,
    minima: OfBlocks,
    all_are_finite: bool,
    (weight, dim): (f32, usize),
    output: *mut f32,
) {
    s.core().enter(AddToOutput { p, keys, minima, all_are_finite, weight, dim, output });
}

/// The arguments of [`add_to_output`], which alone makes one and vouches for its pointers.
struct AddToOutput<'a> {
    p: *const f32,
    keys: &'a Range<usize>,
    minima: OfBlocks,
    all_are_finite: bool,
    weight: f32,
    dim: usize,
    output: *mut f32,
}

impl Body for AddToOutput<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let AddToOutput { p, keys, minima, all_are_finite, weight, dim, output } = self;
        let none = s.splat(0.0);
        let vectors = || (keys.start - keys.start % S::LANES..keys.end).step_by(S::LANES);
        for block in 0..dim / Q8_0::BLOCK {
            let mut sum = none;
            // SAFETY: I7: whole vectors of keys, and whole blocks of the output (`add_to_output`).
            unsafe {
                if all_are_finite {
                    for at in vectors() {
                        sum = s.fma(s.load(p.add(at)), s.load(minima.of(block).add(at)), sum);
                    }
                } else {
                    for at in vectors() {
                        let p = s.load(p.add(at));
                        let sum_with = s.fma(p, s.load(minima.of(block).add(at)), sum);
                        sum = s.select(s.gt(p, none), sum_with, sum);
                    }
                }
                let sum = s.splat(s.horizontal_sum(sum) * weight);
                for d in (0..Q8_0::BLOCK).step_by(S::LANES) {
                    let at = output.add(block * Q8_0::BLOCK + d);
                    s.store(at, s.add(s.load(at), sum));
                }
            }
        }
    }
}

/// Adds `p` times the minima of a key to `sums`, a row of `dim` elements.
///
/// # Safety
/// `sums` has whole blocks, and the minima of the key have been written.
pub(super) unsafe fn add_one_key(minima: OfBlocks, key: usize, p: f32, dim: usize, sums: *mut f32) {
    for d in 0..dim {
        // SAFETY: I5: an element of the row, and a number for its block and key (caller).
        unsafe { *sums.add(d) += p * minima.of(d / Q8_0::BLOCK).add(key).read() };
    }
}

const _: () = assert!(Q8_0::BLOCK.is_multiple_of(MAX_LANES));
