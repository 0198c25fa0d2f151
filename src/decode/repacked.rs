//! K and V in blocks that carry their own scales, repacked in scratch memory so that lanes need no
//! sums across them: of K a lane is a key, of V a lane is an element.
//!
//! - K: `LANES` keys are a group, which has a vector for every four neighbouring elements: a lane
//!   has those of its key, as unsigned bytes, codes plus 128. So a query's four elements are
//!   broadcast, and the sums of a block are a vector of scores, to be multiplied by a vector of
//!   scales.
//! - V: four keys are a group, which has a vector for every `LANES` neighbouring elements: a lane
//!   has those of the four keys, as signed bytes. The sign of a negative scale goes to codes of
//!   4 and 5 bits, as in [`super::unpack`]; a code of Q8_0 may be -128, which has no other sign.
//! - Scales, and minima if the type has any, are f32, a row of them for each block ([`OfBlocks`]).
//!
//! Rows of 4 and 5 bits are repacked as they are unpacked, with half of the bytes to move. Products
//! and sums of integers are those of [`super::block_scaled`], in another order: the same bits.

use std::marker::PhantomData;

use super::block::{Block, Run};
use super::gemv::RepackedGemv;
use super::prefetch::PrefetchStream;
use super::scratch::{RowArrays, Sums, Weights};
use super::unpack::{self, OfBlocks};
use crate::attend::finish::blank;
use crate::dtype::nibbles::{Format, Nibbles, with_nibbles};
use crate::dtype::q8_0::{self, Q8_0};
use crate::dtype::{Dtype, Stored};
use crate::simd::{Body, Isa, MAX_LANES};

/// Keys of a group of V.
const KEYS: usize = 4;

/// Neighbouring elements of K in a lane.
const WORD: usize = 4;

/// Vectors of neighbouring elements of V that are summed at a time: those of a block with 16 lanes.
const VECTORS: usize = 2;

/// What turns signed codes into unsigned ones, in each byte: 128 more.
const SIGNS: i32 = i32::from_ne_bytes([0x80; WORD]);

/// As many keys of K or V as a vector has lanes, and where they go.
pub(super) struct Group {
    /// The row of each lane's key, or any row where there is no such key.
    pub(super) rows: [*const u8; MAX_LANES],
    pub(super) dtype: Dtype,
    pub(super) is_v: bool,
    /// Elements of a row.
    pub(super) dim: usize,
    pub(super) to: *mut u8,
    /// The key of the first lane, counted from the first one of the block.
    pub(super) key: usize,
    pub(super) scales: OfBlocks,
    pub(super) minima: Option<OfBlocks>,
    /// The first `prefetched` rows of `next` are prefetched meanwhile.
    pub(super) next: PrefetchStream,
    pub(super) prefetched: usize,
}

/// Repacks a group. Kept out of line, so that the code exists once for each instruction set.
///
/// # Safety
/// Rows of `dim` elements are readable for all lanes; there is room for `LANES` keys at `to`, of a
/// byte for each element, and in rows of scales and minima.
#[inline(never)]
pub(super) unsafe fn repack<S: Isa>(s: S, group: &Group) {
    s.core().enter(Repack(group));
}

/// The argument of [`repack`], which alone makes one and vouches for its pointers.
struct Repack<'a>(&'a Group);

impl Body for Repack<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Repack(group) = self;
        // SAFETY: the contract of `repack`, which made this; I9: rows are stored as `T`, or as
        // Q8_0.
        unsafe {
            with_nibbles!(group.dtype, T => {
                group.gather_scales(s, T::BLOCK_BYTES, T::HAS_MINIMUM.then_some(T::OFFSET));
                match group.is_v {
                    false => group.keys_of_nibbles(s, T::NEW),
                    true => group.values_of_nibbles(s, T::NEW),
                }
            }, else {
                group.gather_scales(s, Q8_0::BLOCK_BYTES, None);
                match group.is_v {
                    false => group.keys_of_bytes(s),
                    true => group.values_of_bytes(s),
                }
            });
        }
    }
}

/// Where byte `at` of the rows of four lanes is, as operations of [`Isa`] that gather ask for it.
macro_rules! rows_at {
    ($group:ident, $at:expr) => {{
        let at = $at;
        move |n: usize| move |i: usize| $group.rows[(n + i) % MAX_LANES].wrapping_add(at)
    }};
}

impl Group {
    /// Prefetches a part of the rows, as large as a block is of a row: of many requests at once,
    /// some wait.
    #[inline(always)]
    fn prefetch<S: Isa>(&self, s: S, block: usize) {
        let blocks = self.dim / Q8_0::BLOCK;
        let [first, end] = [block, block + 1].map(|n| n * self.prefetched / blocks);
        self.next.prefetch_lines(s, first, end - first);
    }

    /// Writes the scales of blocks of `bytes` bytes, which begin with them, and, if there are any,
    /// the minima behind them, to which `minimum` times the scale is added.
    ///
    /// # Safety
    /// The contract of [`repack`].
    #[inline(always)]
    unsafe fn gather_scales<S: Isa>(&self, s: S, bytes: usize, minimum: Option<f32>) {
        let blocks = self.dim / Q8_0::BLOCK;
        // SAFETY: I2: numbers of blocks of the rows; I7: there is room for whole vectors (caller).
        unsafe {
            match minimum {
                None => self.copy_numbers::<u16>(S::LANES, blocks, bytes),
                Some(_) => self.copy_numbers::<u32>(S::LANES, blocks, bytes),
            }
        }
        for block in 0..blocks {
            // SAFETY: I7: whole vectors of keys, in which these numbers are.
            unsafe {
                let to = self.scales.of(block).add(self.key);
                if let (Some(offset), Some(minima)) = (minimum, self.minima) {
                    let [scale, minimum] = s.load_f16_pairs(to.cast());
                    s.store(minima.of(block).add(self.key), s.fma(scale, s.splat(offset), minimum));
                    s.store(to, scale);
                } else {
                    s.store(to, s.load_f16(to.cast()));
                }
            }
        }
    }

    /// Copies what each block of `bytes` bytes begins with to where the scale of its lane will be:
    /// half of the room, or all of it. Kept out of line: it is the same for all types.
    ///
    /// # Safety
    /// The contract of [`repack`]: rows have these blocks, and there is room for `lanes` scales of
    /// each.
    #[inline(never)]
    unsafe fn copy_numbers<T>(&self, lanes: usize, blocks: usize, bytes: usize) {
        for (lane, &row) in self.rows.iter().enumerate().take(lanes) {
            let (mut from, mut to) = (row, self.scales.of(0).wrapping_add(self.key).cast::<T>());
            for _ in 0..blocks {
                // SAFETY: I2, I7: a number of a block of the row, and room for it (caller).
                unsafe { to.wrapping_add(lane).write(from.cast::<T>().read_unaligned()) };
                from = from.wrapping_add(bytes);
                to = to.wrapping_byte_add(4 * self.scales.stride);
            }
        }
    }

    /// Replaces the scales of a block of V by their absolute values. Returns their signs, a bit for
    /// each lane.
    ///
    /// # Safety
    /// Scales have been gathered.
    #[inline(always)]
    unsafe fn take_signs<S: Isa>(&self, s: S, block: usize) -> u16 {
        // SAFETY: I7: a vector of the row (caller).
        unsafe {
            let at = self.scales.of(block).add(self.key);
            let scale = s.load(at);
            let is_negative = s.gt(s.splat(0.0), scale);
            s.store(at, s.select(is_negative, s.sub(s.splat(0.0), scale), scale));
            s.signs(scale)
        }
    }

    /// The vector of the four elements of K from element `d` on.
    #[inline(always)]
    fn words<S: Isa>(&self, d: usize) -> *mut i32 {
        self.to.wrapping_add(d * S::LANES).cast()
    }

    /// The vector of the elements of V from element `d` on, of four keys from that of lane `lane`
    /// on.
    #[inline(always)]
    fn elements(&self, lane: usize, d: usize) -> *mut i32 {
        self.to.wrapping_add(lane * self.dim + d * KEYS).cast()
    }

    /// # Safety
    /// The contract of [`repack`], of rows of K in blocks of `F`.
    #[inline(always)]
    unsafe fn keys_of_nibbles<S: Isa, F: Format>(&self, s: S, _: Nibbles<F>) {
        let half = Q8_0::BLOCK / 2;
        for block in 0..self.dim / Q8_0::BLOCK {
            let (first, at) = (block * Q8_0::BLOCK, block * Nibbles::<F>::BLOCK_BYTES);
            self.prefetch(s, block);
            // SAFETY: I2: parts of blocks of the rows; I5: room for the vectors of the block
            // (caller).
            unsafe {
                let words = s.load_transposed_words(rows_at!(self, at + Nibbles::<F>::CODES));
                let mut bits = [0; MAX_LANES];
                if Nibbles::<F>::HAS_FIFTH_BIT {
                    for (bits, row) in bits.iter_mut().zip(&self.rows).take(S::LANES) {
                        *bits = Nibbles::<F>::fifths(row.wrapping_add(at)).cast_signed();
                    }
                }
                let bits = s.load_i32(bits.as_ptr());
                for (w, words) in words.into_iter().enumerate() {
                    let [mut low, mut high] = s.look_up_nibbles(words, &Nibbles::<F>::UNSIGNED);
                    let d = w * WORD;
                    if Nibbles::<F>::HAS_FIFTH_BIT {
                        low = s.add_by_bits(low, bits, d, Nibbles::<F>::FIFTH);
                        high = s.add_by_bits(high, bits, half + d, Nibbles::<F>::FIFTH);
                    }
                    s.store_i32(self.words::<S>(first + d), low);
                    s.store_i32(self.words::<S>(first + half + d), high);
                }
            }
        }
    }

    /// # Safety
    /// The contract of [`repack`], of rows of V in blocks of `F`.
    #[inline(always)]
    unsafe fn values_of_nibbles<S: Isa, F: Format>(&self, s: S, _: Nibbles<F>) {
        let half = Q8_0::BLOCK / 2;
        for block in 0..self.dim / Q8_0::BLOCK {
            let (first, at) = (block * Q8_0::BLOCK, block * Nibbles::<F>::BLOCK_BYTES);
            self.prefetch(s, block);
            // SAFETY: I2: parts of blocks of the rows; I5: room for the vectors of the block
            // (caller).
            unsafe {
                let signs = self.take_signs(s, block);
                for lane in (0..S::LANES).step_by(KEYS) {
                    let signs = (signs >> lane & 15) as u8;
                    let mut rows = [self.rows[0]; KEYS];
                    for (row, &from) in rows.iter_mut().zip(&self.rows[lane..]) {
                        *row = from.wrapping_add(at);
                    }
                    let mut bits = [0; KEYS];
                    if Nibbles::<F>::HAS_FIFTH_BIT {
                        for (bits, &block) in bits.iter_mut().zip(&rows) {
                            *bits = Nibbles::<F>::fifths(block);
                        }
                    }
                    for d in (0..half).step_by(S::LANES) {
                        let x = s.load_interleaved_bytes(rows, Nibbles::<F>::CODES + d);
                        let [mut low, mut high] = s.look_up_nibbles(x, &Nibbles::<F>::SIGNED);
                        if Nibbles::<F>::HAS_FIFTH_BIT {
                            low = s.add_by_bit_of_lane(low, bits, d, Nibbles::<F>::FIFTH);
                            high = s.add_by_bit_of_lane(high, bits, half + d, Nibbles::<F>::FIFTH);
                        }
                        s.store_i32(self.elements(lane, first + d), s.negate_bytes(low, signs));
                        s.store_i32(self.elements(lane, first + half + d), s.negate_bytes(high, signs));
                    }
                }
            }
        }
    }

    /// # Safety
    /// The contract of [`repack`], of rows of K in blocks of Q8_0.
    #[inline(always)]
    unsafe fn keys_of_bytes<S: Isa>(&self, s: S) {
        for d in (0..self.dim).step_by(4 * WORD) {
            let at = d / Q8_0::BLOCK * Q8_0::BLOCK_BYTES + q8_0::CODES + d % Q8_0::BLOCK;
            if d % Q8_0::BLOCK == 0 {
                self.prefetch(s, d / Q8_0::BLOCK);
            }
            // SAFETY: I2: codes of a block of the rows; I5: room for their vectors (caller).
            unsafe {
                let words = s.load_transposed_words(rows_at!(self, at));
                for (w, words) in words.into_iter().enumerate() {
                    s.store_i32(self.words::<S>(d + w * WORD), s.xor(words, s.splat_i32(SIGNS)));
                }
            }
        }
    }

    /// # Safety
    /// The contract of [`repack`], of rows of V in blocks of Q8_0.
    #[inline(always)]
    unsafe fn values_of_bytes<S: Isa>(&self, s: S) {
        for block in 0..self.dim / Q8_0::BLOCK {
            self.prefetch(s, block);
            for lane in (0..S::LANES).step_by(KEYS) {
                let mut rows = [self.rows[0]; KEYS];
                for (row, &from) in rows.iter_mut().zip(&self.rows[lane..]) {
                    *row = from.wrapping_add(block * Q8_0::BLOCK_BYTES + q8_0::CODES);
                }
                for d in (0..Q8_0::BLOCK).step_by(S::LANES) {
                    let to = self.elements(lane, block * Q8_0::BLOCK + d);
                    // SAFETY: I2: codes of a block of the rows; I5: room for their vectors
                    // (caller).
                    unsafe { s.store_i32(to, s.load_interleaved_bytes(rows, d)) };
                }
            }
        }
    }
}

/// [`super::gemv::Gemv::dot_products`] of repacked rows: the scales of K are part of the products.
///
/// # Safety
/// The contract of [`super::gemv::Gemv::dot_products`], for a run that has been repacked, and
/// queries that [`crate::compute::split16`] has packed.
#[inline(always)]
pub(crate) unsafe fn dot_products<S: Isa, P: RepackedGemv>(s: S, rows: &RowArrays, count: usize, run: &Run) {
    let Some(scales) = run.block_scales else { return };
    for first in (run.keys.start - run.keys.start % S::LANES..run.keys.end).step_by(S::LANES) {
        let group = run.rows.skip(first).base.cast::<i32>();
        let mut r = 0;
        // SAFETY: I5: groups of the run, and vectors of scales and of scores (caller).
        unsafe {
            while count - r >= 4 {
                scores::<S, P, 4>(s, rows, r, run.dim, first, group, scales);
                r += 4;
            }
            if count - r >= 2 {
                scores::<S, P, 2>(s, rows, r, run.dim, first, group, scales);
                r += 2;
            }
            if count > r {
                scores::<S, P, 1>(s, rows, r, run.dim, first, group, scales);
            }
        }
    }
    if let Some(minima) = run.minima {
        // SAFETY: I5: the caller's arrays, and minima of the keys of the run.
        unsafe { unpack::add_to_scores::<S, P>(s, rows, count, run.dim, &run.keys, minima) };
    }
}

/// A vector of scores, from key `first` on, of `R` query rows from row `r` on.
///
/// # Safety
/// The contract of [`dot_products`], for the group of these keys.
#[inline(always)]
unsafe fn scores<S: Isa, P: RepackedGemv, const R: usize>(
    s: S,
    rows: &RowArrays,
    r: usize,
    dim: usize,
    first: usize,
    group: *const i32,
    scales: OfBlocks,
) {
    let queries = rows.queries.wrapping_add(r * rows.query_stride).cast_const();
    let mut scores = [s.splat(0.0); R];
    for block in 0..dim / Q8_0::BLOCK {
        let first_of_block = block * Q8_0::BLOCK;
        let mut sums = [[s.splat_i32(0); 2]; R];
        // SAFETY: I5, I7: vectors of the group, packed rows, a vector of scales (caller).
        unsafe {
            for d in (first_of_block..first_of_block + Q8_0::BLOCK).step_by(WORD) {
                let k = s.load_i32(group.wrapping_add(d / WORD * S::LANES));
                for (r, sums) in sums.iter_mut().enumerate() {
                    let query = queries.wrapping_add(r * rows.query_stride);
                    let [hi, lo] = P::words_of_query::<S>(query, d);
                    sums[0] = s.dot_u8_i8(sums[0], k, s.splat_i32(hi.read()));
                    sums[1] = s.dot_u8_i8(sums[1], k, s.splat_i32(lo.read()));
                }
            }
            let scale = s.load(scales.of(block).add(first));
            for (r, (score, [hi, lo])) in scores.iter_mut().zip(sums).enumerate() {
                let query = queries.wrapping_add(r * rows.query_stride);
                let correction = s.splat_i32(P::correction::<S>(query, dim, block));
                let sum = s.sub_i32(s.join_split16(hi, lo), correction);
                *score = s.fma(s.to_f32(sum), scale, *score);
            }
        }
    }
    for (n, score) in scores.into_iter().enumerate() {
        // SAFETY: I7: rows of scores are whole vectors (caller).
        unsafe { s.store(rows.scores.add((r + n) * rows.score_stride + first), score) };
    }
}

/// Whether all scales, and minima, of V of a block are fit for integer weights. They have been
/// gathered when rows were repacked.
///
/// # Safety
/// Those of the block have been written.
#[inline(always)]
pub(crate) unsafe fn all_fit<S: Isa>(s: S, block: &Block) -> bool {
    let mut all_fit = true;
    // SAFETY: I5: the arrays of the block's group are the caller's.
    for run in unsafe { block.v_runs(s, block.keys.clone()) } {
        for (numbers, least) in [(run.block_scales, 0.0), (run.minima, f32::MIN)] {
            if let Some(numbers) = numbers {
                let blocks = run.dim / Q8_0::BLOCK;
                // SAFETY: I5: those of the keys of the run have been written.
                all_fit &= unsafe { numbers.all_are_fit(s.core(), least, blocks, &run.keys) };
            }
        }
    }
    all_fit
}

/// [`super::gemv::BlockScaledGemv::accumulate`] of repacked rows. Out of line: the sums have the
/// registers to themselves.
///
/// # Safety
/// The contract of [`super::gemv::BlockScaledGemv::accumulate`], for a run that has been repacked.
#[inline(never)]
pub(crate) unsafe fn accumulate<S: Isa, P: RepackedGemv, const R: usize>(
    s: S,
    weights: &Weights,
    sums: Sums,
    run: &Run,
    is_fresh: bool,
) {
    s.enter(Accumulate::<P, R> { weights, sums, run, is_fresh, compute: PhantomData });
}

/// Made by [`accumulate`] alone, whose contract covers what it points to.
struct Accumulate<'a, P, const R: usize> {
    weights: &'a Weights,
    sums: Sums,
    run: &'a Run,
    is_fresh: bool,
    compute: PhantomData<P>,
}

impl<P: RepackedGemv, const R: usize> Body for Accumulate<'_, P, R> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Accumulate { weights, sums, run: Run { keys, rows, dim, .. }, is_fresh, .. } = self;
        for first in (0..*dim).step_by(VECTORS * S::LANES) {
            let mut sum = [[[s.splat_i32(0); 2]; VECTORS]; R];
            // SAFETY: I2, I5: groups of the run, a row of integers for each block and query row,
            // and whole vectors of sums (`accumulate`).
            unsafe {
                for key in (keys.start - keys.start % KEYS..keys.end).step_by(KEYS) {
                    let group = rows.skip(key).base.wrapping_add(first * KEYS).cast::<i32>();
                    for (r, sum) in sum.iter_mut().enumerate() {
                        let row = weights.integers.wrapping_add(r * weights.stride / 2);
                        let row = row.wrapping_add(first / Q8_0::BLOCK * weights.stride);
                        let [hi, lo] = P::words_of_weights::<S>(row, key);
                        let weight = [s.splat_i32(hi.read_unaligned()), s.splat_i32(lo.read_unaligned())];
                        for (v, sum) in sum.iter_mut().enumerate() {
                            let x = s.load_i32(group.wrapping_add(v * S::LANES));
                            sum[0] = s.dot_u8_i8(sum[0], weight[0], x);
                            sum[1] = s.dot_u8_i8(sum[1], weight[1], x);
                        }
                    }
                }
                for (r, sum) in sum.into_iter().enumerate() {
                    for (v, [hi, lo]) in sum.into_iter().enumerate() {
                        let at = sums.base.add(r * sums.stride + first + v * S::LANES).cast::<i32>();
                        let before = if is_fresh { s.splat_i32(0) } else { s.load_i32(at) };
                        // Integers: minus, twice, is plus.
                        let sum = s.sub_i32(s.splat_i32(0), s.join_split16(hi, lo));
                        s.store_i32(at, s.sub_i32(before, sum));
                    }
                }
            }
        }
        for r in 0..R {
            if sums.stride > *dim {
                // SAFETY: I7: rows of sums are whole vectors of operands.
                unsafe { blank(sums.base.add(r * sums.stride + dim), sums.stride - dim) };
            }
        }
    }
}

/// [`super::gemv::BlockScaledGemv::add_converted`] of repacked rows. Kept out of line: scales that
/// are no numbers are rare.
///
/// # Safety
/// The contract of [`super::gemv::BlockScaledGemv::add_converted`], for a run that has been
/// repacked.
#[inline(never)]
pub(crate) unsafe fn add_converted<S: Isa>(
    s: S,
    weights: &Weights,
    run: &Run,
    key: usize,
    p: f32,
    sums: *mut f32,
) {
    s.core().enter(AddConverted { weights, run, key, p, sums });
}

/// The arguments of [`add_converted`], which alone makes one and vouches for its pointers.
struct AddConverted<'a> {
    weights: &'a Weights,
    run: &'a Run,
    key: usize,
    p: f32,
    sums: *mut f32,
}

impl Body for AddConverted<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let AddConverted { weights, run, key, p, sums } = self;
        let group = run.rows.skip(key - key % KEYS).base.wrapping_add(key % KEYS).cast::<i8>();
        for d in (0..run.dim).step_by(S::LANES) {
            let mut codes = [0; MAX_LANES];
            for (i, code) in codes.iter_mut().enumerate().take(S::LANES) {
                // SAFETY: I5: an element of a key of the run (`add_converted`).
                *code = unsafe { group.wrapping_add((d + i) * KEYS).read() };
            }
            // SAFETY: I5: a scale for each block and key; I7: whole vectors of sums, and an array
            // as long as any (`add_converted`).
            unsafe {
                let scale = weights.scales.add(d / Q8_0::BLOCK * weights.stride + key).read();
                let x = s.mul(s.splat(scale), s.load_i8(codes.as_ptr()));
                s.store(sums.add(d), s.fma(s.splat(p), x, s.load(sums.add(d))));
            }
        }
    }
}

/// A check of these loops: [`crate::compute`] has the type to run it with.
#[cfg(test)]
pub(crate) mod check {
    use super::*;
    use crate::attend::rows::{Rows, Source};
    use crate::decode::block_scaled::{flush_block, integer_weights};
    use crate::decode::gemv::{Reading, width};
    use crate::simd::half;
    use crate::view::{Layout, View};

    /// Keys of the block, and those of them that are there.
    const BLOCK_KEYS: usize = 16;
    const THERE: std::ops::Range<usize> = 2..13;

    /// Scores and outputs of three and of two query rows against plain numbers, of rows that begin
    /// and end within a group, with scales of either sign.
    #[derive(Debug)]
    pub(crate) struct Check<P> {
        pub(crate) dtype: Dtype,
        pub(crate) dim: usize,
        pub(crate) compute: PhantomData<P>,
    }

    impl<P> Clone for Check<P> {
        fn clone(&self) -> Self {
            *self
        }
    }

    impl<P> Copy for Check<P> {}

    fn number(i: usize) -> u8 {
        (i.wrapping_mul(2_654_435_761) >> 7) as u8
    }

    impl<P> Check<P> {
        /// Rows of any codes, whose scales and minima are numbers about 1/256.
        fn rows(self) -> Vec<u8> {
            let (block, bytes) = (self.dtype.block(), self.dtype.row_bytes(self.dim).expect("a row"));
            let mut all: Vec<u8> = (0..BLOCK_KEYS * bytes).map(number).collect();
            for (i, block) in all.chunks_exact_mut(bytes / (self.dim / block)).enumerate() {
                let sign = if i % 3 == 0 && self.dtype.is_nibbles() { -1.0 } else { 1.0 };
                let [scale, minimum] =
                    [sign, 1.0].map(|sign| sign * (1.0 + f32::from(number(i)) / 64.0) / 256.0);
                block[..2].copy_from_slice(&half::to_f16(scale).to_ne_bytes());
                if self.dtype.has_minimum() {
                    block[2..4].copy_from_slice(&half::to_f16(minimum).to_ne_bytes());
                }
            }
            all
        }

        fn element(self, row: &[u8], d: usize) -> f64 {
            // SAFETY: I7, I9: a row of the type, with this element.
            f64::from(unsafe {
                with_nibbles!(self.dtype, T => T::element(row.as_ptr(), d), else Q8_0::element(row.as_ptr(), d))
            })
        }
    }

    impl<P: RepackedGemv> Body for Check<P> {
        type Out = ();

        fn run<S: Isa>(self, s: S) {
            let Check { dtype, dim, .. } = self;
            let (rows, row_bytes) = (self.rows(), dtype.row_bytes(dim).expect("a row"));
            let row = |key: usize| &rows[key * row_bytes..][..row_bytes];
            let count = 3;
            let stride = dim.next_multiple_of(width::<S, P>());
            let blocks = dim / Q8_0::BLOCK;
            let Reading { scales_in_row, is_repacked } = P::reading(dim);
            assert!(scales_in_row == blocks && is_repacked);

            // K, and V, in groups.
            let mut panels = vec![vec![0u8; BLOCK_KEYS * dim]; 2];
            let mut numbers = vec![vec![0f32; blocks * BLOCK_KEYS]; 4];
            let bases: Vec<*mut f32> = numbers.iter_mut().map(|x| x.as_mut_ptr()).collect();
            let of_blocks = |i: usize| OfBlocks { base: bases[i], stride: BLOCK_KEYS };
            let minima = |i| dtype.has_minimum().then(|| of_blocks(i));
            for (which, panel) in panels.iter_mut().enumerate() {
                for key in (0..BLOCK_KEYS).step_by(S::LANES).filter(|key| key + S::LANES > THERE.start) {
                    let mut group = Group {
                        rows: [row(THERE.start).as_ptr(); MAX_LANES],
                        dtype,
                        is_v: which == 1,
                        dim,
                        to: panel[key * dim..].as_mut_ptr(),
                        key,
                        scales: of_blocks(which),
                        minima: minima(2 + which),
                        next: PrefetchStream::NOTHING,
                        prefetched: 0,
                    };
                    for lane in (0..S::LANES).filter(|lane| THERE.contains(&(key + lane))) {
                        group.rows[lane] = row(key + lane).as_ptr();
                    }
                    // SAFETY: I5: all arrays are as long as their fields say.
                    unsafe { repack(s, &group) };
                }
            }

            let q: Vec<f32> = (0..count * dim).map(|i| f32::from(number(i)) / 128.0 - 1.0).collect();
            let mut queries = vec![0.0; count * stride];
            let mut scores = vec![0.0; count * BLOCK_KEYS];
            let mut factors = vec![0.0; count];
            let mut sums = vec![f32::NAN; 2 * stride];
            let mut outputs = vec![0.0; stride];
            let mut integers = vec![0.0; blocks * BLOCK_KEYS];
            let mut block_factors = vec![0.0; 2 * blocks];
            let row_arrays = RowArrays {
                queries: queries.as_mut_ptr(),
                query_stride: stride,
                factors: factors.as_mut_ptr(),
                corrections: None,
                folded: std::ptr::null_mut(),
                scores: scores.as_mut_ptr(),
                score_stride: BLOCK_KEYS,
                sums: std::ptr::null_mut(),
                block_sums: Sums { base: sums.as_mut_ptr(), stride },
                block_weights: std::ptr::null_mut(),
                seen: std::ptr::null_mut(),
            };
            let weights = Weights {
                scales: bases[1],
                minima: minima(3),
                integers: integers.as_mut_ptr(),
                stride: BLOCK_KEYS,
                factors: block_factors.as_mut_ptr(),
            };
            let run = |which: usize| Run {
                keys: THERE,
                rows: Rows { base: panels[which].as_ptr(), stride: dim },
                dtype: Dtype::Q8_0,
                dim,
                scales: None,
                zeros: None,
                block_scales: Some(of_blocks(which)),
                minima: minima(2 + which),
                prefetch_rows: 16,
                prefetch_end: THERE.end,
            };
            let layout = Layout::dense(Dtype::F32, 1, count, dim).expect("a layout");
            let view = View::of(&q, layout).expect("a view");
            // SAFETY: I5: all arrays are as long as their fields say.
            unsafe {
                for (r, factor) in factors.iter_mut().enumerate() {
                    let source = Source { view: &view, at: [0, 0, r] };
                    *factor = P::pack(s, source, dim, 1.0, row_arrays.queries.add(r * stride));
                }
                P::dot_products::<S>(s, &row_arrays, count, &run(0), PrefetchStream::NOTHING);
            }
            for r in 0..count {
                for key in THERE {
                    let product = |d| f64::from(q[r * dim + d]) * self.element(row(key), d);
                    let expected: f64 = (0..dim).map(product).sum();
                    let score = f64::from(scores[r * BLOCK_KEYS + key]) * f64::from(factors[r]);
                    assert!(
                        (score - expected).abs() < 1e-3,
                        "{dtype:?}, {dim}: row {r}, key {key}: {score}, {expected}"
                    );
                }
            }

            // The second row does not see the first keys.
            let first = |r: usize| THERE.start + 3 * r;
            let p: Vec<Vec<f32>> = (0..2)
                .map(|r| {
                    let p = |key: usize| f32::from(number(key + r)) * 128.0;
                    let is_seen = |key: &usize| (first(r)..THERE.end).contains(key);
                    (0..BLOCK_KEYS).map(|key| if is_seen(&key) { p(key) } else { 0.0 }).collect()
                })
                .collect();
            // SAFETY: I5: all arrays are as long as their fields say.
            unsafe {
                for (r, p) in p.iter().enumerate() {
                    let weights = weights.of_row::<P>(r, dim);
                    weights.blank_integers::<P>(&(0..BLOCK_KEYS), dim);
                    let seen = first(r)..THERE.end;
                    integer_weights::<S, P, false>(s, &weights, p.as_ptr(), &seen, dim);
                }
                accumulate::<S, P, 2>(s, &weights, row_arrays.block_sums, &run(1), true);
            }
            for (r, p) in p.iter().enumerate() {
                let weight = 1.0 / P::P_SCALE;
                let mut converted = vec![0.0; dim];
                // SAFETY: I5: all arrays are as long as their fields say.
                unsafe {
                    let (weights, sums) = (weights.of_row::<P>(r, dim), sums.as_ptr().add(r * stride));
                    let output = outputs.as_mut_ptr();
                    flush_block::<S, P>(s, &weights, sums, true, weight, dim, output, stride, true);
                    if let Some(minima) = weights.minima {
                        unpack::add_to_output(s, p.as_ptr(), &THERE, minima, true, (weight, dim), output);
                    }
                    for key in THERE {
                        add_converted(s, &weights, &run(1), key, p[key] * weight, converted.as_mut_ptr());
                        if let Some(minima) = weights.minima {
                            unpack::add_one_key(minima, key, p[key] * weight, dim, converted.as_mut_ptr());
                        }
                    }
                }
                for (d, (&output, &converted)) in outputs.iter().zip(&converted).enumerate() {
                    let product = |key: usize| f64::from(p[key] * weight) * self.element(row(key), d);
                    let expected: f64 = THERE.map(product).sum();
                    for got in [output, converted] {
                        let error = (f64::from(got) - expected).abs();
                        assert!(error < 1e-3, "{dtype:?}, {dim}: row {r}, element {d}: {got}, {expected}");
                    }
                }
            }
        }
    }
}
