//! output += probabilities · V: a vector holds neighbouring elements of one row. Values are
//! converted as they are read, or two or four rows of them interleaved: see [`super::gemv`].

use std::marker::PhantomData;
use std::ops::Range;

use super::block::{Block, Run};
use super::gemv::{Gemv, Sum, interleave, width};
use super::prefetch::{LINE, PrefetchStream, prefetch_rows};
use super::scratch::{ROWS, RowArrays, Sums, least_of_four, padded_rows};
use super::state::State;
use crate::attend::blocks::clip;
use crate::attend::finish::blank;
use crate::attend::rows::Rows;
use crate::dtype::{Stored, with_read_type};
use crate::simd::lane::{MAX_PACK, Registers};
use crate::simd::{Body, Isa, MAX_LANES};

/// Adds the values of a block to the output of each row: run by run, those that all rows see for
/// several rows at a time.
///
/// # Safety
/// `rows` and `state` are the arrays of the block's group (I5), with probabilities of its keys.
#[inline(always)]
pub(super) unsafe fn values<S: Isa, P: Gemv>(s: S, block: &Block, rows: &RowArrays, state: &State) {
    let sums = sums_of::<P>(rows, state);
    let begins = P::INT_ACC || block.is_first;
    // SAFETY: I5: the arrays are the group's (caller), one row more of each where `padded_rows`
    // says so; I2: a run has rows of V.
    unsafe {
        match block.v_run() {
            // All at once, as most blocks are.
            Some(run) if block.is_whole && block.is_plain && !block.has_gap => {
                let next = block.stream_with_v(&run);
                accumulate::<S, P>(s, rows, sums, 0..block.work.count(), run, next, begins);
            }
            _ => {
                let compiled = Compiled { s, rows, sums, compute: PhantomData::<P> };
                add_runs(s.core(), block, &compiled, sums, P::PACK, begins);
            }
        }
        flush::<S, P>(s, block, rows, state);
    }
}

/// What the values of a block are added to.
#[inline(always)]
fn sums_of<P: Gemv>(rows: &RowArrays, state: &State) -> Sums {
    if P::INT_ACC { rows.block_sums } else { Sums { base: state.output, stride: state.stride } }
}

/// Adds the values of a run to the output of each row, all of which see all keys of the block: a
/// part of [`values`], which [`flush`] ends. `next` is prefetched meanwhile. `is_first` says that
/// the run has the first keys of the block.
///
/// # Safety
/// The contract of [`values`]; `run` has rows of V of the block (I2).
#[inline(always)]
pub(super) unsafe fn values_of_run<S: Isa, P: Gemv>(
    s: S,
    block: &Block,
    rows: &RowArrays,
    state: &State,
    run: Run,
    next: PrefetchStream,
    is_first: bool,
) {
    let begins = is_first && (P::INT_ACC || block.is_first);
    let count = block.work.count();
    // SAFETY: I2, I5: the contract is the same.
    unsafe { accumulate::<S, P>(s, rows, sums_of::<P>(rows, state), 0..count, run, next, begins) };
}

/// Ends [`values`]: sums of integers, which are those of one block, are added to the output.
///
/// # Safety
/// The contract of [`values`].
#[inline(always)]
pub(super) unsafe fn flush<S: Isa, P: Gemv>(s: S, block: &Block, rows: &RowArrays, state: &State) {
    if P::INT_ACC {
        for r in 0..block.work.count() {
            let is_fully_masked = block.visible(r).is_empty();
            // SAFETY: I5: a row of the group (caller).
            unsafe { flush_block::<S, P>(s, rows, state, r, is_fully_masked) };
        }
    }
}

/// The steps of [`add_runs`] that are compiled for each instruction set and compute type.
trait AddRun {
    /// Adds the values of `run` to the sums of the query rows `which`, or begins these with them if
    /// `is_fresh`; `next` is prefetched meanwhile.
    ///
    /// # Safety
    /// The contract of [`accumulate`].
    unsafe fn add(&self, which: Range<usize>, run: Run, next: PrefetchStream, is_fresh: bool);

    /// Whether any value of the run is NaN or infinite, or the scale of its row is.
    ///
    /// # Safety
    /// The contract of [`any_not_finite`].
    unsafe fn any_not_finite(&self, run: &Run) -> bool;
}

/// An instruction set and a compute type, with the arrays that values are added to.
struct Compiled<'a, S, P> {
    s: S,
    rows: &'a RowArrays,
    sums: Sums,
    compute: PhantomData<P>,
}

impl<S: Isa, P: Gemv> AddRun for Compiled<'_, S, P> {
    unsafe fn add(&self, which: Range<usize>, run: Run, next: PrefetchStream, is_fresh: bool) {
        // SAFETY: I2, I5: the contract is the same, and `values` made this of the group's arrays.
        unsafe { accumulate::<S, P>(self.s, self.rows, self.sums, which, run, next, is_fresh) };
    }

    unsafe fn any_not_finite(&self, run: &Run) -> bool {
        // SAFETY: I2: the contract is the same.
        unsafe { any_not_finite(self.s, run) }
    }
}

/// Adds the values of all runs of a block to `sums`, or begins these with them if `begins`.
/// Operands have `pack` keys. Nothing here depends on the compute type, so that the code exists
/// once for each instruction set.
///
/// # Safety
/// `sums` are those of the block's group (I5), which `compiled` adds to, with probabilities of the
/// keys.
#[inline(never)]
unsafe fn add_runs<S: Isa>(
    s: S,
    block: &Block,
    compiled: &dyn AddRun,
    sums: Sums,
    pack: usize,
    begins: bool,
) {
    let work = block.work;
    let hides = !block.is_plain || block.has_gap;
    // Sums that begin with this block hold nothing yet. If all rows see all of it, its first keys
    // begin them, else zeros do.
    let mut is_fresh = begins && block.is_whole;
    // SAFETY: I5: the arrays are the group's (caller), one row more of each where `padded_rows`
    // says so; I2: runs have rows of V.
    unsafe {
        let clear = || blank(sums.base, padded_rows(work.count()) * sums.stride);
        if begins && !block.is_whole {
            clear();
        }
        for run in block.v_runs(s, block.keys.clone()) {
            for (third, keys) in block.thirds(pack).into_iter().enumerate() {
                let run = run.of(clip(keys, &run.keys));
                if run.keys.is_empty() {
                    continue;
                }
                let is_guarded = hides && compiled.any_not_finite(&run);
                let seen_by_all = third == 1 && !is_guarded;
                if is_fresh && !seen_by_all {
                    clear();
                    is_fresh = false;
                }
                if is_guarded {
                    guarded(block, compiled, pack, &run);
                } else {
                    plain(block, compiled, &run, seen_by_all, is_fresh);
                }
                is_fresh = false;
            }
        }
    }
}

/// Adds the values of a run to the sums, or begins these with them if `is_fresh`. Keys that not all
/// rows see are taken row by row: a value that a row does not see must not reach it, not even
/// multiplied by 0.
///
/// # Safety
/// The contract of [`add_runs`]; `run` has rows of V (I2).
unsafe fn plain(block: &Block, compiled: &dyn AddRun, run: &Run, seen_by_all: bool, is_fresh: bool) {
    let work = block.work;
    // SAFETY: I2, I5: all rows of the group, or one of them, and keys of the run (caller).
    unsafe {
        if seen_by_all {
            compiled.add(0..work.count(), run.clone(), block.stream_with_v(run), is_fresh);
            return;
        }
        for r in 0..work.count() {
            let keys = clip(block.visible(r), &run.keys);
            if !keys.is_empty() {
                compiled.add(r..r + 1, run.of(keys), PrefetchStream::NOTHING, false);
            }
        }
    }
}

/// Adds the values of a run to the sums row by row, those of visible keys only: some value is not
/// finite, and the probability 0 of a key that a mask hides would make NaN of it.
///
/// # Safety
/// The contract of [`add_runs`]; `run` has rows of V (I2).
#[cold]
unsafe fn guarded(block: &Block, compiled: &dyn AddRun, pack: usize, run: &Run) {
    for (r, (head, row)) in block.work.lines().enumerate() {
        let sees = |key: &usize| block.sees(head, row, *key);
        let Range { mut start, end } = clip(block.visible(r), &run.keys);
        while start < end {
            // Of the keys of one operand, the first that are visible.
            let operand_end = end.min((start + 1).next_multiple_of(pack));
            let first = (start..operand_end).find(sees).unwrap_or(operand_end);
            let last = (first..operand_end).find(|key| !sees(key)).unwrap_or(operand_end);
            start = last;
            if first < last {
                // SAFETY: I2, I5: one row of the group, and keys of the run (caller).
                unsafe { compiled.add(r..r + 1, run.of(first..last), PrefetchStream::NOTHING, false) };
            }
        }
    }
}

/// Adds the values of `run` to the sums of the query rows `which`, or begins these with them if
/// `is_fresh`. Each element's sum runs over the keys in ascending order. Out of line: the types of
/// K and V would multiply.
///
/// # Safety
/// `rows` and `sums` have these rows, and what [`padded_rows`] adds (I5), with probabilities of the
/// keys of `run`, which has rows of V (I2).
#[inline(never)]
unsafe fn accumulate<S: Isa, P: Gemv>(
    s: S,
    rows: &RowArrays,
    sums: Sums,
    which: Range<usize>,
    run: Run,
    next: PrefetchStream,
    is_fresh: bool,
) {
    s.enter(Accumulate::<P> { rows, sums, which, run, next, is_fresh, compute: PhantomData });
}

/// Made by [`accumulate`] alone, whose contract covers what it points to.
struct Accumulate<'a, P> {
    rows: &'a RowArrays,
    sums: Sums,
    which: Range<usize>,
    run: Run,
    next: PrefetchStream,
    is_fresh: bool,
    compute: PhantomData<P>,
}

impl<P: Gemv> Body for Accumulate<'_, P> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        // SAFETY: I2, I5: arrays and rows of V are as `accumulate` demands, which made this; I9:
        // `T` is the type that the rows are stored as.
        unsafe {
            // Decided when the loops are compiled: those of other types would never run.
            if const { P::DTYPE.is_some() } {
                self.all_rows::<S, P::Own>(s);
            } else {
                with_read_type!(self.run.dtype, T => self.all_rows::<S, T>(s));
            }
        }
    }
}

impl<P: Gemv> Accumulate<'_, P> {
    /// # Safety
    /// The contract of [`accumulate`], of values that are stored as `T`.
    #[inline(always)]
    unsafe fn all_rows<S: Isa, T: Stored>(&self, s: S) {
        let mut row = self.which.start;
        // The first register tile prefetches, and only tiles of as many rows as there can be have a
        // loop for it: with fewer rows nothing is prefetched.
        let prefetches = self.next.is_any();
        // Rows times vectors is the number of accumulators.
        macro_rules! tiles_of {
            ($rows:expr, $least:expr, $vectors:expr) => {
                if const { $rows <= P::MAX_ROWS } {
                    while self.which.end.saturating_sub(row) >= $least {
                        // SAFETY: I5: rows of `which`, and one more if `padded_rows` says so
                        // (caller).
                        unsafe {
                            if const { S::PREFETCHES_STREAM && ($rows >= ROWS || P::MAX_ROWS == 1) }
                                && prefetches
                                && row == self.which.start
                            {
                                self.all_elements::<S, T, { $rows }, { $vectors }, true>(s, row);
                            } else {
                                self.all_elements::<S, T, { $rows }, { $vectors }, false>(s, row);
                            }
                        }
                        row += $rows;
                    }
                }
            };
        }
        if const { S::GEMV_ACCUMULATORS >= 16 } {
            tiles_of!(2 * ROWS, 2 * ROWS, 2);
            tiles_of!(ROWS, ROWS - 1, 4);
            tiles_of!(2, 2, 8);
        } else {
            if const { S::SCORES_FILL_VECTOR } {
                tiles_of!(ROWS, least_of_four::<S, P>(), 2);
            }
            tiles_of!(2, 2, 4);
        }
        // Sums may be several vectors each.
        if const { S::GEMV_ACCUMULATORS < 16 && size_of::<Sum<S, P>>() > size_of::<S::I32>() } {
            tiles_of!(1, 1, 4);
        } else {
            tiles_of!(1, 1, 8);
        }
    }

    /// All elements of `R` query rows from `row` on, at most `MAX` vectors of elements at a time.
    ///
    /// # Safety
    /// The contract of [`accumulate`]; the arrays have these rows.
    #[inline(always)]
    unsafe fn all_elements<S: Isa, T: Stored, const R: usize, const MAX: usize, const PREFETCH: bool>(
        &self,
        s: S,
        row: usize,
    ) {
        let (dim, width) = (self.run.dim, width::<S, P>());
        let mut d = 0;
        // SAFETY: I7: each tile is taken only while as many elements are left of `dim`.
        unsafe {
            macro_rules! tiles_of {
                ($vectors:expr) => {
                    if const { $vectors <= MAX / P::PACK } {
                        while dim - d >= $vectors * width {
                            self.tile::<S, T, R, { $vectors }, PREFETCH>(s, row, d, None);
                            d += $vectors * width;
                        }
                    }
                };
            }
            tiles_of!(8);
            tiles_of!(4);
            // What is left of a row whose last vector is not whole takes one pass: a pass has to
            // wait for its sums, key by key, however few they are.
            macro_rules! rest_of {
                ($vectors:expr) => {
                    if d < dim && !dim.is_multiple_of(width) {
                        self.tile::<S, T, R, { $vectors }, PREFETCH>(s, row, d, Some(dim - d));
                        return;
                    }
                };
            }
            if const { MAX / P::PACK >= 4 } {
                rest_of!(4);
            }
            tiles_of!(2);
            if const { MAX / P::PACK < 4 && MAX / P::PACK >= 2 } {
                rest_of!(2);
            }
            tiles_of!(1);
            if const { MAX / P::PACK < 2 } {
                rest_of!(1);
            }
        }
    }

    /// `C` vectors of operands, from element `d` on, of `R` query rows from `row` on; with `only`,
    /// these many elements, fewer than `C` vectors have, which are all that are left of the row and
    /// end with a part of a vector.
    ///
    /// # Safety
    /// The contract of [`accumulate`]; the arrays have these rows, and V these elements.
    #[inline(always)]
    unsafe fn tile<S: Isa, T: Stored, const R: usize, const C: usize, const PREFETCH: bool>(
        &self,
        s: S,
        row: usize,
        d: usize,
        only: Option<usize>,
    ) {
        let Accumulate { rows, sums, run: Run { keys, rows: values, dim, .. }, is_fresh, .. } = self;
        let p = rows.scores.wrapping_add(row * rows.score_stride);
        let at = sums.base.wrapping_add(row * sums.stride + d);
        let width = width::<S, P>();
        // With `only`, the last vector is the one that is not whole, and so many are before it.
        let whole = only.map_or(C, |n| n / width);
        let is_part = |c: usize| only.is_some() && c == C - 1;
        let is_there = |c: usize| only.is_none() || c == C - 1 || c < whole;
        let first = |c: usize| if is_part(c) { whole * width } else { c * width };
        let mut sum = [[[P::Sum::zero(s); MAX_PACK]; C]; R];
        // SAFETY: I5: `R` rows of scores and sums, as whole vectors; I2, I7: keys of the run and
        // elements below `dim`, with `only` those that are left (caller).
        unsafe {
            if !is_fresh {
                for (r, sum) in sum.iter_mut().enumerate() {
                    for (c, sum) in sum.iter_mut().enumerate() {
                        if is_there(c) {
                            *sum = P::load_sums(s, at.add(r * sums.stride + first(c)));
                        }
                    }
                }
            }
            // Several passes over the same rows, each of which takes a part of them: the first one
            // prefetches all of it.
            let is_first_pass = row == self.which.start && d == 0;
            let again = row + R < self.which.end || C * width < *dim;
            let all = T::BLOCK_BYTES * dim.div_ceil(T::BLOCK);
            // Rows that are in no cache are brought by the stream, or by reads.
            let is_far = is_first_pass && self.next.is_any();
            let prefetches = (R > 1 || S::GEMV_ACCUMULATORS < 16) && again && is_first_pass;
            let streams = is_far && (PREFETCH || S::FIRST_PASS_READS_ROWS);
            let bytes = if prefetches && !streams { all } else { 0 };
            let (distance, end) = (self.run.prefetch_rows, self.run.prefetch_end);
            let next = if PREFETCH && is_first_pass { self.next } else { PrefetchStream::NOTHING };
            // The bytes of each row that other passes take, if reading them is as good as the
            // stream.
            let reads = S::FIRST_PASS_READS_ROWS && is_far && self.next.is_own();
            let rest = if reads { C * width * T::BLOCK_BYTES / T::BLOCK..all } else { 0..0 };
            macro_rules! group {
                ($key:expr, $is_in_run:expr) => {
                    group!($key, values.skip($key), $is_in_run)
                };
                ($key:expr, $from:expr, $is_in_run:expr) => {{
                    let (key, from) = ($key, $from);
                    let mut weight = [P::Weight::zero(s); R];
                    for (r, weight) in weight.iter_mut().enumerate() {
                        *weight = P::weight(s, p.add(r * rows.score_stride), key);
                    }
                    // In the order of memory, which the hardware prefetcher follows.
                    let mut x = [[P::Operand::zero(s); MAX_PACK]; C];
                    for n in 0..P::PACK {
                        let row = from.skip(n).base;
                        for c in 0..C {
                            let d = d + first(c);
                            x[c][n] = if !$is_in_run(key + n) || !is_there(c) {
                                P::Operand::zero(s)
                            } else if is_part(c) {
                                P::load_kv_partial::<S, T>(s, row, d, *dim - d)
                            } else {
                                P::load_kv::<S, T>(s, row, d)
                            };
                        }
                    }
                    for c in 0..C {
                        let x = interleave::<S, P>(s, x[c]);
                        for (sum, &weight) in sum.iter_mut().zip(&weight) {
                            for v in 0..P::PACK {
                                sum[c][v] = P::add_value(s, weight, x[v], sum[c][v]);
                            }
                        }
                    }
                }};
            }
            // At each end, only some keys of an operand may be in the run.
            let some = |key| keys.contains(&key);
            let mut key = keys.start - keys.start % P::PACK;
            // One key is an operand: none is then left over.
            if const { P::PACK > 1 } && key < keys.start {
                group!(key, some);
                key += P::PACK;
            }
            if const { S::SCORES_FILL_VECTOR && R > 1 && !PREFETCH } {
                // Prefetches of some keys, then nothing but products, and an address that is added
                // to: what a loop does besides takes as long where vectors are short.
                let mut from = values.skip(key);
                while key + P::PACK <= keys.end {
                    let some = (key + 16).min(keys.end);
                    if bytes > 0 && key + distance < end {
                        prefetch_rows(s, values.skip(key + distance), some - key, bytes);
                    }
                    // A loop of its own: without it, the next one has nothing but products.
                    while S::FIRST_PASS_READS_ROWS && is_far && key + P::PACK <= some {
                        if self.next.is_own() {
                            read_lines(from, P::PACK, &rest);
                        } else {
                            self.next.prefetch(s, key, P::PACK);
                        }
                        group!(key, from, |_| true);
                        from = from.skip(P::PACK);
                        key += P::PACK;
                    }
                    while key + P::PACK <= some {
                        group!(key, from, |_| true);
                        from = from.skip(P::PACK);
                        key += P::PACK;
                    }
                }
            } else {
                while key + P::PACK <= keys.end {
                    if key + distance < end {
                        prefetch_rows(s, values.skip(key + distance), P::PACK, bytes);
                    }
                    if PREFETCH {
                        next.prefetch(s, key, P::PACK);
                    }
                    group!(key, |_| true);
                    key += P::PACK;
                }
            }
            if const { P::PACK > 1 } && key < keys.end {
                group!(key, some);
            }
            for (r, sum) in sum.iter().enumerate() {
                for (c, &sum) in sum.iter().enumerate() {
                    if is_there(c) {
                        P::store_sums(s, at.add(r * sums.stride + first(c)), sum);
                    }
                }
            }
        }
    }
}

/// Reads a byte of each cache line of a part of `n` rows, and does nothing with it.
///
/// # Safety
/// The rows have these bytes.
#[inline(always)]
unsafe fn read_lines(rows: Rows, n: usize, part: &Range<usize>) {
    for i in 0..n {
        for at in part.clone().step_by(LINE) {
            // SAFETY: a byte of the row (caller). Volatile: else it would not be read.
            unsafe { rows.skip(i).base.add(at).read_volatile() };
        }
    }
}

/// Adds the integer sums of a block to the output of row `r`. For a row that is fully masked in the
/// block, the sums are 0, and no weight has been written.
///
/// # Safety
/// `rows` and `state` have the row (I5), with its block sums, and its weight unless it is fully
/// masked.
#[inline(always)]
unsafe fn flush_block<S: Isa, P: Gemv>(
    s: S,
    rows: &RowArrays,
    state: &State,
    r: usize,
    is_fully_masked: bool,
) {
    // SAFETY: I5, I7: row r of the arrays (caller), which are whole vectors of operands.
    unsafe {
        let weight =
            if is_fully_masked { s.splat(0.0) } else { s.load(rows.block_weights.add(r * S::LANES)) };
        for d in (0..state.stride).step_by(width::<S, P>()) {
            let sums = P::outputs(s, rows.block_sums.base.add(r * rows.block_sums.stride + d));
            for (v, &sum) in sums.iter().enumerate().take(P::PACK) {
                let at = state.output.add(r * state.stride + d + v * S::LANES);
                s.store(at, s.fma(sum, weight, s.load(at)));
            }
        }
    }
}

/// Subtracts from the output of each row the zeros of the values of a block, times their weights:
/// where rows of V have zeros of their own. Kept out of line, so that the code exists once for each
/// instruction set.
///
/// # Safety
/// `rows` and `state` are the arrays of the block's group (I5), with weights of its keys as f32;
/// `zeros` has a zero for each key in whole vectors.
#[inline(never)]
pub(super) unsafe fn subtract_zeros<S: Isa>(
    s: S,
    block: &Block,
    rows: &RowArrays,
    zeros: *const f32,
    state: &State,
) {
    s.core().enter(SubtractZeros { block, rows, zeros, state });
}

/// Made by [`subtract_zeros`] alone, whose contract covers what it points to.
struct SubtractZeros<'a> {
    block: &'a Block<'a>,
    rows: &'a RowArrays,
    zeros: *const f32,
    state: &'a State,
}

impl Body for SubtractZeros<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let SubtractZeros { block, rows, zeros, state } = self;
        for (r, (head, row)) in block.work.lines().enumerate() {
            let visible = block.visible(r);
            if visible.is_empty() {
                continue;
            }
            // SAFETY: I5: row r of the arrays (the contract of `subtract_zeros`, which made this);
            // I7: weights and zeros are whole vectors of keys.
            unsafe {
                let weights = rows.scores.add(r * rows.score_stride);
                let mut sum = sum_of_products::<S>(s, weights, zeros, &visible, |_| true);
                // What is not finite may belong to a key that a mask hides.
                if !sum.is_finite() {
                    sum = sum_of_products::<S>(s, weights, zeros, &visible, |key| block.sees(head, row, key));
                }
                for d in (0..state.stride).step_by(S::LANES) {
                    let at = state.output.add(r * state.stride + d);
                    s.store(at, s.sub(s.load(at), s.splat(sum)));
                }
            }
        }
    }
}

/// The sum of weights times zeros of the keys `visible`, of those that are seen.
///
/// # Safety
/// Both arrays are whole vectors of keys.
#[inline(always)]
unsafe fn sum_of_products<S: Isa>(
    s: S,
    weights: *const f32,
    zeros: *const f32,
    visible: &Range<usize>,
    sees: impl Fn(usize) -> bool,
) -> f32 {
    let mut sum = s.splat(0.0);
    for at in (visible.start - visible.start % S::LANES..visible.end).step_by(S::LANES) {
        let mut products = [0.0; MAX_LANES];
        // SAFETY: I7: whole vectors (caller); the array is as long as any vector.
        unsafe {
            s.store(products.as_mut_ptr(), s.mul(s.load(weights.add(at)), s.load(zeros.add(at))));
            for (lane, product) in products.iter_mut().enumerate().take(S::LANES) {
                if !visible.contains(&(at + lane)) || !sees(at + lane) {
                    *product = 0.0;
                }
            }
            sum = s.add(sum, s.load(products.as_ptr()));
        }
    }
    s.horizontal_sum(sum)
}

/// Whether any value of the run is NaN or infinite, or the scale of its row is. Out of line: it
/// would be compiled for each compute type, and it is rare.
///
/// # Safety
/// `run` has rows of V (I2), and their scales if it has any.
#[inline(never)]
unsafe fn any_not_finite<S: Isa>(s: S, run: &Run) -> bool {
    s.core().enter(AnyNotFinite { run })
}

/// Made by [`any_not_finite`] alone, whose contract covers what it points to.
struct AnyNotFinite<'a> {
    run: &'a Run,
}

impl Body for AnyNotFinite<'_> {
    type Out = bool;

    #[inline(always)]
    fn run<S: Isa>(self, s: S) -> bool {
        let Run { ref keys, rows, dtype, dim, scales, .. } = *self.run;
        // 0 as long as all are finite, then NaN.
        let mut found = s.splat(0.0);
        // SAFETY: I2: rows of the run (the contract of `any_not_finite`, which made this); I9: `T`
        // is the type that the rows are stored as.
        unsafe {
            with_read_type!(dtype, T => {
                for key in keys.start..keys.end {
                    let from = rows.skip(key).base;
                    let zero = s.splat(scales.map_or(0.0, |scales| 0.0 * scales.add(key).read()));
                    for d in (0..dim).step_by(S::LANES) {
                        found = s.fma(T::load_rest(s, from, d, dim), zero, found);
                    }
                }
            });
        }
        s.horizontal_sum(found) != 0.0
    }
}
