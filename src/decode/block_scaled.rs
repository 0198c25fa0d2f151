//! K and V in blocks that carry their own scales ([`BlockScaled`]: Q8_0), multiplied as integers.
//! Blocks of 4 and 5 bits have been unpacked to those of Q8_0 before ([`super::unpack`]), and what
//! their minima add is added here. [`super::repacked`] has other loops for the same integers.
//!
//! - Scores: a vector of operands has two blocks of K. Their sums, of as many keys as a vector has
//!   lanes, are multiplied by a vector of their scales. Where a block is one vector of operands or
//!   several, its sums are multiplied lane by lane by its scale, and lanes are added up at the end
//!   of the row.
//! - Values: an element's weight is its key's probability times the scale of its block of V. So
//!   there is a row of weights for each block of a row of V, relative to the largest of them in
//!   this block of keys: integers of as many bits as other probabilities. A scale that is negative
//!   or not finite is unfit for that; query rows that see such a key convert its values instead.
//!
//! Query rows are taken one by one or in pairs, and scales are gathered once for all of them.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::block::{Block, Run};
use super::gemv::{BlockScaledGemv, Gemv, PairedBlocks, Sum, SumLane, SumOf, Weight, interleave, width};
use super::prefetch::{PrefetchStream, prefetch_rows, prefetch_whole_rows};
use super::scratch::{RowArrays, Sums, Weights};
use super::state::State;
use super::unpack;
use crate::attend::finish::{blank, blank_bytes};
use crate::attend::rows::Rows;
use crate::dtype::Stored;
use crate::dtype::block_scaled::BlockScaled;
use crate::simd::lane::{Lane, MAX_PACK, Registers};
use crate::simd::{Body, Isa, MAX_LANES};

/// Bytes from the beginning of a row to the block that has element `d`.
#[inline(always)]
fn block_at<T: BlockScaled>(d: usize) -> usize {
    d / T::BLOCK * T::BLOCK_BYTES
}

/// The blocks with element `d` of the rows of four keys from key `n` on.
#[inline(always)]
fn four<S: Isa, T: BlockScaled>(s: S, rows: Rows, n: usize, d: usize) -> impl Fn(usize) -> *const u8 {
    let rows = Rows { base: s.hide_pointer(rows.skip(n).base.wrapping_add(block_at::<T>(d))), ..rows };
    move |i| rows.skip(i).base
}

/// The blocks with element `d` of the rows of four keys from key `n` on; instead of keys that are
/// not among `keys`, the nearest of these.
#[inline(always)]
fn nearest<T: BlockScaled>(
    rows: Rows,
    keys: &Range<usize>,
    n: usize,
    d: usize,
) -> impl Fn(usize) -> *const u8 {
    let block = block_at::<T>(d);
    move |i| rows.skip((n + i).clamp(keys.start, keys.end - 1)).base.wrapping_add(block)
}

/// The scales of two neighbouring blocks of as many keys as a vector has lanes, or of one block
/// each and 0 without `both`; `four` tells where the first blocks of four keys are.
///
/// # Safety
/// These blocks are readable.
#[inline(always)]
unsafe fn scales<S: Isa, T: BlockScaled, At: Fn(usize) -> *const u8>(
    s: S,
    both: bool,
    four: impl Fn(usize) -> At,
) -> [S::F32; 2] {
    // SAFETY: I2: the caller vouches for the first blocks, and with `both` for those behind them.
    unsafe {
        if both {
            return T::scales(s, four, T::BLOCK_BYTES);
        }
        let [first, _] = T::scales(s, four, 0);
        [first, s.splat(0.0)]
    }
}

/// [`super::gemv::Gemv::dot_products`] of block-scaled types: the scales of K are part of the
/// products.
///
/// # Safety
/// The contract of [`super::gemv::Gemv::dot_products`].
#[inline(always)]
pub(crate) unsafe fn dot_products<S: Isa, P: PairedBlocks, const PREFETCH: bool>(
    s: S,
    rows: &RowArrays,
    count: usize,
    run: &Run,
    next: PrefetchStream,
) {
    let (keys, k, dim) = (&run.keys, run.rows, run.dim);
    for first in (keys.start - keys.start % S::LANES..keys.end).step_by(S::LANES) {
        // SAFETY: I2: only keys of the run are read, whichever lane they are in; I7: scores are
        // whole vectors of keys.
        unsafe {
            if keys.start <= first && first + S::LANES <= keys.end {
                let next = if PREFETCH { next.skip(first) } else { PrefetchStream::NOTHING };
                let k = k.skip(first);
                let prefetch = |n| {
                    if PREFETCH {
                        next.prefetch_lines(s, n, KEYS);
                    }
                };
                let four = |n, d| four::<S, P::Blocks>(s, k, n, d);
                vector::<S, P, _>(s, rows, count, first, dim, four, prefetch);
            } else {
                let four = |n, d| nearest::<P::Blocks>(k, keys, first + n, d);
                vector::<S, P, _>(s, rows, count, first, dim, four, |_| ());
            }
        }
    }
    if let Some(minima) = run.minima {
        // SAFETY: I5: the caller's arrays, and minima of the keys of the run.
        unsafe { unpack::add_to_scores::<S, P>(s, rows, count, dim, keys, minima) };
    }
}

/// Keys that are multiplied one after another.
const KEYS: usize = 4;

/// A vector of scores, from key `first` on, for each of `count` query rows. `four(n, d)` tells
/// where the keys from the `n`th of the vector on have the block with element `d`, and
/// `prefetch(n)` is called before they are multiplied.
///
/// # Safety
/// The contract of [`super::gemv::Gemv::dot_products`], for these keys.
#[inline(always)]
unsafe fn vector<S: Isa, P: PairedBlocks, At: Fn(usize) -> *const u8>(
    s: S,
    rows: &RowArrays,
    count: usize,
    first: usize,
    dim: usize,
    four: impl Fn(usize, usize) -> At,
    prefetch: impl Fn(usize),
) {
    let width = width::<S, P>();
    const { assert!(S::LANES * P::PACK == 2 * <P::Blocks as Stored>::BLOCK) };
    for d in (0..dim).step_by(width) {
        let is_whole = dim - d >= width;
        // SAFETY: I7: elements below `dim` of these keys, in whole blocks; I5: `count` packed rows,
        // and a vector of scores of each (caller).
        unsafe {
            let [low, high] = scales::<S, P::Blocks, _>(s, is_whole, |n| four(n, d));
            for r in 0..count {
                let query = rows.queries.add(r * rows.query_stride).cast_const();
                let q = P::query(s, query, d);
                let mut sums = [P::Sum::collapse(s, P::Sum::zero(s)); MAX_LANES];
                // Written out, and not a loop: the sums stay in registers.
                macro_rules! keys {
                    ($n:expr, $load:expr) => {
                        if $n < S::LANES {
                            if d == 0 && r == 0 {
                                prefetch($n);
                            }
                            let block = four($n, d);
                            for i in 0..KEYS {
                                let k = P::key_operand(s, $load(block(i)));
                                sums[($n + i) % MAX_LANES] = P::product(s, q, k);
                            }
                        }
                    };
                }
                macro_rules! all {
                    ($load:expr) => {
                        keys!(0, $load);
                        keys!(4, $load);
                        keys!(8, $load);
                        keys!(12, $load);
                    };
                }
                if is_whole {
                    all!(|block| P::load_kv::<S, P::Blocks>(s, block, 0));
                } else {
                    all!(|block| P::load_kv_partial::<S, P::Blocks>(s, block, 0, dim - d));
                }
                let at = rows.scores.add(r * rows.score_stride + first);
                let before = if d == 0 { s.splat(0.0) } else { s.load(at) };
                let [first, second] = P::sums_of_halves(s, &sums, P::corrections(s, query, dim, d));
                s.store(at, s.fma(second, high, s.fma(first, low, before)));
            }
        }
    }
}

/// Blocks of a row whose scales are kept at a time.
const SLAB: usize = 32;

/// [`super::gemv::Gemv::dot_products`] of block-scaled types whose blocks are vectors of operands.
///
/// # Safety
/// The contract of [`super::gemv::Gemv::dot_products`].
#[inline(always)]
pub(crate) unsafe fn wide_dot_products<S: Isa, P: BlockScaledGemv>(
    s: S,
    rows: &RowArrays,
    count: usize,
    run: &Run,
) {
    let (keys, k, dim) = (&run.keys, run.rows, run.dim);
    for first in (keys.start - keys.start % S::LANES..keys.end).step_by(S::LANES) {
        // SAFETY: I2: only keys of the run are read, whichever lane they are in; I7: scores are
        // whole vectors of keys.
        unsafe {
            if keys.start <= first && first + S::LANES <= keys.end {
                if first + S::LANES + run.prefetch_rows <= run.prefetch_end {
                    let ahead = k.skip(first + run.prefetch_rows);
                    prefetch_whole_rows(s, ahead, S::LANES, block_at::<P::Blocks>(dim));
                }
                let k = k.skip(first);
                let four = |n, d| four::<S, P::Blocks>(s, k, n, d);
                wide_vector::<S, P, _>(s, rows, count, first, dim, four);
            } else {
                let four = |n, d| nearest::<P::Blocks>(k, keys, first + n, d);
                wide_vector::<S, P, _>(s, rows, count, first, dim, four);
            }
        }
    }
    if let Some(minima) = run.minima {
        // SAFETY: I5: the caller's arrays, and minima of the keys of the run.
        unsafe { unpack::add_to_scores::<S, P>(s, rows, count, dim, keys, minima) };
    }
}

/// A vector of scores, from key `first` on, for each of `count` query rows. `four(n, d)` tells
/// where the keys from the `n`th of the vector on have the block with element `d`.
///
/// # Safety
/// The contract of [`super::gemv::Gemv::dot_products`], for these keys.
#[inline(always)]
unsafe fn wide_vector<S: Isa, P: BlockScaledGemv, At: Fn(usize) -> *const u8>(
    s: S,
    rows: &RowArrays,
    count: usize,
    first: usize,
    dim: usize,
    four: impl Fn(usize, usize) -> At,
) {
    let size = <P::Blocks as Stored>::BLOCK;
    let mut kept = MaybeUninit::<[f32; SLAB * MAX_LANES]>::uninit();
    let kept = kept.as_mut_ptr().cast::<f32>();
    for slab in (0..dim).step_by(SLAB * size) {
        let slab = slab..dim.min(slab + SLAB * size);
        // SAFETY: I7: `kept` has a vector for each block of a slab; blocks of these keys (caller).
        unsafe {
            for d in slab.clone().step_by(2 * size) {
                let has_both = d + size < slab.end;
                let both = scales::<S, P::Blocks, _>(s, has_both, |n| four(n, d));
                for (n, x) in both.into_iter().enumerate().take(1 + usize::from(has_both)) {
                    s.store(kept.add(((d - slab.start) / size + n) * S::LANES), x);
                }
            }
            let mut row = 0;
            macro_rules! rows_of {
                ($rows:expr, $($keys:expr),+) => {
                    while count - row >= $rows {
                        $(if const { $rows * $keys == S::LANES } {
                            wide_tile::<S, P, _, $rows, $keys>(s, rows, row, first, &slab, kept, &four);
                        })+
                        row += $rows;
                    }
                };
            }
            rows_of!(2, 2, 4, 8);
            rows_of!(1, 4, 8, 16);
        }
    }
}

/// The scores of [`wide_vector`] of `R` query rows from `row` on, `K` keys at a time, so far as the
/// blocks of `slab`, a range of elements, make them: the scales of their keys are `kept`.
///
/// # Safety
/// The contract of [`wide_vector`]; the arrays have `R` rows from `row` on, and `kept` a vector for
/// each block of the slab.
#[inline(always)]
unsafe fn wide_tile<
    S: Isa,
    P: BlockScaledGemv,
    At: Fn(usize) -> *const u8,
    const R: usize,
    const K: usize,
>(
    s: S,
    rows: &RowArrays,
    row: usize,
    first: usize,
    slab: &Range<usize>,
    kept: *const f32,
    four: &impl Fn(usize, usize) -> At,
) {
    let (width, size) = (width::<S, P>(), <P::Blocks as Stored>::BLOCK);
    const { assert!(<P::Blocks as Stored>::BLOCK.is_multiple_of(S::LANES * P::PACK)) };
    const { assert!(<P::Blocks as Stored>::BLOCK / (S::LANES * P::PACK) <= VECTORS) };
    let queries = rows.queries.wrapping_add(row * rows.query_stride).cast_const();
    let out = rows.scores.wrapping_add(row * rows.score_stride + first);
    for part in 0..R {
        let mut sums = [[s.splat(0.0); K]; R];
        for d in slab.clone().step_by(size) {
            // SAFETY: I5, I7: whole blocks of packed rows and of keys (caller), and the vector of
            // their scales.
            unsafe {
                let mut q = [[P::Weight::zero(s); VECTORS]; R];
                for (r, q) in q.iter_mut().enumerate() {
                    for (c, q) in q.iter_mut().enumerate().take(size / width) {
                        *q = P::query(s, queries.add(r * rows.query_stride), d + c * width);
                    }
                }
                let scales = kept.add((d - slab.start) / size * S::LANES + part * K);
                // Written out, and not a loop: the sums stay in registers.
                macro_rules! keys {
                    ($n:expr) => {
                        if const { $n < K } {
                            let block = four(part * K + $n, d);
                            for i in 0..if K < KEYS { K } else { KEYS } {
                                let n = ($n + i) % K;
                                let scale = s.splat(scales.add(n).read());
                                let products = products::<S, P, R>(s, &q, block(i));
                                for (sums, products) in sums.iter_mut().zip(products) {
                                    sums[n] = s.fma(SumOf::<P>::to_f32(s, products), scale, sums[n]);
                                }
                            }
                        }
                    };
                }
                keys!(0);
                keys!(4);
                keys!(8);
                keys!(12);
            }
        }
        let mut lanes = [s.splat(0.0); MAX_LANES];
        for (r, sums) in sums.iter().enumerate() {
            for (n, &sum) in sums.iter().enumerate() {
                lanes[(r * K + n) % MAX_LANES] = sum;
            }
        }
        let sums = s.horizontal_sums(&lanes);
        // SAFETY: I5, I7: a vector of scores of each row (caller).
        unsafe {
            let out = out.add(part * K);
            if slab.start == 0 {
                s.store_segments::<R>(out, rows.score_stride, sums);
            } else {
                let mut more = [0.0; MAX_LANES];
                s.store(more.as_mut_ptr(), sums);
                for (i, more) in more.into_iter().enumerate().take(S::LANES) {
                    *out.add(i / K * rows.score_stride + i % K) += more;
                }
            }
        }
    }
}

/// Vectors of operands of a block, at most.
const VECTORS: usize = 4;

/// The sums of products of a block of `R` query rows with the block of K at `block`.
///
/// # Safety
/// The block is readable.
#[inline(always)]
unsafe fn products<S: Isa, P: BlockScaledGemv, const R: usize>(
    s: S,
    q: &[[Weight<S, P>; VECTORS]; R],
    block: *const u8,
) -> [SumLane<S, P>; R] {
    let mut sums = [P::Sum::zero(s); R];
    for c in 0..<P::Blocks as Stored>::BLOCK / width::<S, P>() {
        // SAFETY: I7: a vector of the block (caller).
        let k = P::key_operand(s, unsafe { P::load_kv::<S, P::Blocks>(s, block, c * width::<S, P>()) });
        for (sum, q) in sums.iter_mut().zip(q) {
            *sum = P::add_score(s, q[c], k, *sum);
        }
    }
    sums.map(|sum| P::Sum::collapse(s, sum))
}

/// [`super::gemv::Gemv::add_values`] of block-scaled types.
///
/// # Safety
/// The contract of [`super::gemv::Gemv::add_values`]: `weights` has room for the keys of a block
/// (I5).
#[inline(always)]
pub(crate) unsafe fn values<S: Isa, P: BlockScaledGemv>(
    s: S,
    block: &Block,
    rows: &RowArrays,
    weights: &Weights,
    state: &State,
) {
    // SAFETY: I5: rows of the arrays, and a row of weights for each block of V (caller); I2: runs
    // have rows of V.
    unsafe {
        let all_fit = P::gather_scales(s, block, weights);
        let mut done = 0;
        for (r, (head, row)) in block.work.lines().enumerate() {
            if r < done {
                continue;
            }
            done = r + 1;
            let visible = block.visible(r);
            if visible.is_empty() {
                if block.is_first {
                    blank(state.output.add(r * state.stride), state.stride);
                }
                continue;
            }
            let p = rows.scores.add(r * rows.score_stride).cast_const();
            let dim = block.work.problem().shape().dim_v;
            // What a row does not see changes no bit of it.
            let fits = all_fit
                || !visible
                    .clone()
                    .any(|key| weights.is_unfit::<P::Blocks>(key, dim) && block.sees(head, row, key));
            if all_fit
                && const { P::VALUE_ROWS > 1 }
                && done < block.work.count()
                && !block.visible(done).is_empty()
            {
                add_integers::<S, P, 2, false>(s, block, rows, weights, r);
                done += 1;
            } else if all_fit {
                add_integers::<S, P, 1, false>(s, block, rows, weights, r);
            } else if fits {
                add_integers::<S, P, 1, true>(s, block, rows, weights, r);
            } else {
                let sums = rows.block_sums.base;
                blank(sums, dim);
                for run in block.v_runs(s, visible) {
                    for key in run.keys.clone().filter(|&key| block.sees(head, row, key)) {
                        let p = p.add(key).read();
                        P::add_converted(s, weights, &run, key, p, sums);
                        if let Some(minima) = weights.minima {
                            unpack::add_one_key(minima, key, p, dim, sums);
                        }
                    }
                }
            }
            let first = r;
            for r in first..done {
                let weight = rows.block_weights.add(r * S::LANES).read();
                let output = state.output.add(r * state.stride);
                let (stride, is_first, n) = (state.stride, block.is_first, r - first);
                let sums = rows.block_sums.base.add(n * rows.block_sums.stride);
                let weights = &weights.of_row::<P>(n, dim);
                flush_block::<S, P>(s, weights, sums, fits, weight, dim, output, stride, is_first);
                if let Some(minima) = weights.minima
                    && fits
                {
                    let p = rows.scores.add(r * rows.score_stride).cast_const();
                    let keys = block.visible(r);
                    unpack::add_to_output(s.core(), p, &keys, minima, all_fit, (weight, dim), output);
                }
            }
        }
    }
}

/// The integer sums of values of `R` query rows from row `r` on. `GUARDED` if scales of keys whose
/// probability is 0 may be unfit.
///
/// # Safety
/// The contract of [`values`]; each of the rows sees a key of the block, and scales have been
/// gathered.
#[inline(always)]
unsafe fn add_integers<S: Isa, P: BlockScaledGemv, const R: usize, const GUARDED: bool>(
    s: S,
    block: &Block,
    rows: &RowArrays,
    weights: &Weights,
    r: usize,
) {
    let dim = block.work.problem().shape().dim_v;
    let mut all = block.visible(r);
    for r in r + 1..r + R {
        let visible = block.visible(r);
        all = all.start.min(visible.start)..all.end.max(visible.end);
    }
    // SAFETY: I5: rows of the arrays, and a row of weights for each block of V (caller); I2: runs
    // have rows of V.
    unsafe {
        for n in 0..R {
            let (visible, weights) = (block.visible(r + n), weights.of_row::<P>(n, dim));
            if R > 1 && visible != all {
                // Keys that only the other row sees weigh nothing. Whole vectors: rows have no
                // others.
                let vectors = all.start - all.start % S::LANES..all.end.next_multiple_of(S::LANES);
                weights.blank_integers::<P>(&vectors, dim);
            }
            let p = rows.scores.add((r + n) * rows.score_stride).cast_const();
            integer_weights::<S, P, GUARDED>(s, &weights, p, &visible, dim);
        }
        for run in block.v_runs(s, all.clone()) {
            let is_fresh = run.keys.start == all.start;
            let sums = rows.block_sums;
            if const { S::PREFETCHES_STREAM } && block.prefetches && r == 0 {
                let next = block.stream_with_v(&run);
                P::accumulate::<S, R, true>(s, weights, sums, run, next, is_fresh);
            } else {
                P::accumulate::<S, R, false>(s, weights, sums, run, PrefetchStream::NOTHING, is_fresh);
            }
        }
    }
}

/// Gathers the scales of V of a block. Returns whether all of them are fit for integer weights.
///
/// # Safety
/// `weights` has room for the keys of a block (I5).
#[inline(always)]
pub(super) unsafe fn gather_scales<S: Isa, P: BlockScaledGemv>(
    s: S,
    block: &Block,
    weights: &Weights,
) -> bool {
    let mut all_fit = true;
    // SAFETY: I5: the arrays of the block's group are the caller's.
    for run in unsafe { block.v_runs(s, block.keys.clone()) } {
        if let Some(minima) = run.minima {
            // SAFETY: I5: those of the keys of the run have been written.
            all_fit &=
                unsafe { minima.all_are_fit(s.core(), f32::MIN, run.dim / P::Blocks::BLOCK, &run.keys) };
        }
        // SAFETY: I2: the run has rows of V; I5: `weights` has room for them (caller).
        all_fit &= unsafe {
            if const { S::PREFETCHES_STREAM } && block.prefetches {
                // Here as well as while V is multiplied: of many requests at once, some are
                // dropped.
                let next = block.stream_with_v(&run);
                gather_run::<S, P::Blocks, true>(s, weights, &run, next, usize::MAX)
            } else if const { S::PREFETCHES_STREAM } {
                gather_run::<S, P::Blocks, false>(s, weights, &run, PrefetchStream::NOTHING, usize::MAX)
            } else {
                // From afar, no hardware prefetcher follows a scale here and there.
                let ahead = if block.prefetches { 2 * run.prefetch_rows } else { usize::MAX };
                gather_alone::<S, P::Blocks>(s, weights, &run, ahead)
            }
        };
    }
    all_fit
}

/// [`gather_run`] out of line: with few registers, addresses would have none.
///
/// # Safety
/// The contract of [`gather_run`].
#[inline(never)]
unsafe fn gather_alone<S: Isa, T: BlockScaled>(s: S, weights: &Weights, run: &Run, ahead: usize) -> bool {
    s.enter(Gather::<T> { weights, run, ahead, blocks: PhantomData })
}

/// Made by [`gather_alone`] alone, whose contract covers what it points to.
struct Gather<'a, T> {
    weights: &'a Weights,
    run: &'a Run,
    ahead: usize,
    blocks: PhantomData<T>,
}

impl<T: BlockScaled> Body for Gather<'_, T> {
    type Out = bool;

    #[inline(always)]
    fn run<S: Isa>(self, s: S) -> bool {
        let Gather { weights, run, ahead, .. } = self;
        // SAFETY: I2, I5: the contract of `gather_alone`, which made this.
        unsafe { gather_run::<S, T, false>(s, weights, run, PrefetchStream::NOTHING, ahead) }
    }
}

/// Gathers the scales of a run of V. Returns whether all of them are fit for integer weights. Rows
/// `ahead` keys further are prefetched; none if that is `usize::MAX`.
///
/// # Safety
/// `run` has rows of V (I2); `weights` has room for the keys of a block (I5).
#[inline(always)]
unsafe fn gather_run<S: Isa, T: BlockScaled, const PREFETCH: bool>(
    s: S,
    weights: &Weights,
    run: &Run,
    next: PrefetchStream,
    ahead: usize,
) -> bool {
    let (keys, rows, dim) = (&run.keys, run.rows, run.dim);
    let row_bytes = dim / T::BLOCK * T::BLOCK_BYTES;
    let (mut found, mut least) = (s.splat(0.0), s.splat(0.0));
    for first in (keys.start - keys.start % S::LANES..keys.end).step_by(S::LANES) {
        if PREFETCH {
            next.prefetch_lines(s, first, S::LANES);
            // V itself has been brought into the second-level cache: from there into the first,
            // because no hardware prefetcher follows a scale here and there.
            prefetch_rows(s, rows.skip(first + 2 * run.prefetch_rows), S::LANES, row_bytes);
        }
        if first + S::LANES <= keys.end.saturating_sub(ahead) {
            prefetch_whole_rows(s, rows.skip(first + ahead), S::LANES, row_bytes);
        }
        for d in (0..dim).step_by(2 * T::BLOCK) {
            // SAFETY: I2: rows of keys of the run; I5, I7: a row of scales for each block, as whole
            // vectors of keys.
            unsafe {
                let is_whole = keys.start <= first && first + S::LANES <= keys.end;
                let has_both = d + T::BLOCK < dim;
                let both = if is_whole {
                    scales::<S, T, _>(s, has_both, |n| four::<S, T>(s, rows.skip(first), n, d))
                } else {
                    scales::<S, T, _>(s, has_both, |n| nearest::<T>(rows, keys, first + n, d))
                };
                let block = d / T::BLOCK;
                for (n, x) in both.into_iter().enumerate().take(dim / T::BLOCK - block) {
                    s.store(weights.scales.add((block + n) * weights.stride + first), x);
                    // NaN from the first one on that is not finite.
                    found = s.fma(x, s.splat(0.0), found);
                    least = s.min(x, least);
                }
            }
        }
    }
    s.horizontal_sum(found) == 0.0 && !s.any(s.gt(s.splat(0.0), least))
}

impl Weights {
    /// The weights of the `n`th query row of those whose sums are made together.
    #[inline(always)]
    pub(super) fn of_row<P: BlockScaledGemv>(&self, n: usize, dim: usize) -> Weights {
        Weights {
            integers: self.integers.wrapping_add(n * self.stride / P::VALUE_ROWS),
            factors: self.factors.wrapping_add(n * (dim / <P::Blocks as Stored>::BLOCK)),
            ..*self
        }
    }

    /// Makes the integer weights of `keys` 0.
    ///
    /// # Safety
    /// There is a row of integers for each block of `dim` elements, with these keys (I5).
    pub(super) unsafe fn blank_integers<P: BlockScaledGemv>(&self, keys: &Range<usize>, dim: usize) {
        let bytes = 4 / P::VALUE_ROWS;
        for block in 0..dim / <P::Blocks as Stored>::BLOCK {
            let row = self.integers.wrapping_add(block * self.stride).cast::<u8>();
            // SAFETY: I5: the integers of keys of the block (caller).
            unsafe { blank_bytes(row.wrapping_add(keys.start * bytes), keys.len() * bytes) };
        }
    }

    /// Whether a scale of a key is unfit for an integer weight: negative or not finite; or whether
    /// a minimum is not finite.
    ///
    /// # Safety
    /// Scales of this key have been gathered, of rows of `dim` elements.
    #[inline(always)]
    unsafe fn is_unfit<T: BlockScaled>(&self, key: usize, dim: usize) -> bool {
        let blocks = dim / T::BLOCK;
        // SAFETY: I5: those of the key have been written (caller).
        if self.minima.is_some_and(|minima| !unsafe { minima.are_finite(blocks, key) }) {
            return true;
        }
        (0..blocks).any(|block| {
            // SAFETY: I5: a row of scales for each block, of which that of `key` is written
            // (caller).
            let scale = unsafe { self.scales.add(block * self.stride + key).read() };
            !(0.0..f32::INFINITY).contains(&scale)
        })
    }
}

/// Quantises the weights of the keys `visible`: the probabilities `p` times the scales of each
/// block, relative to the largest. `GUARDED` if scales of keys whose probability is 0 may be unfit.
///
/// # Safety
/// Scales have been gathered, of rows of `dim` elements; `p` has whole vectors of keys.
#[inline(always)]
pub(super) unsafe fn integer_weights<S: Isa, P: BlockScaledGemv, const GUARDED: bool>(
    s: S,
    weights: &Weights,
    p: *const f32,
    visible: &Range<usize>,
    dim: usize,
) {
    let (first, blocks) = (visible.start - visible.start % S::LANES, dim / <P::Blocks as Stored>::BLOCK);
    if first >= visible.end {
        // SAFETY: I5: a factor for each block.
        return unsafe { blank(weights.factors, blocks) };
    }
    for block in 0..blocks {
        // SAFETY: I5, I7: rows of scales and of weights for each block, as whole vectors of keys.
        unsafe {
            let scales = weights.scales.add(block * weights.stride);
            let integers = weights.integers.add(block * weights.stride);
            let weight = |at| {
                let (p, scale) = (s.load(p.add(at)), s.load(scales.add(at)));
                let (weight, none) = (s.mul(p, scale), s.splat(0.0));
                if GUARDED { s.select(s.gt(p, none), weight, none) } else { weight }
            };
            let mut max = s.splat(0.0);
            for at in (first..visible.end).step_by(S::LANES) {
                max = s.max(weight(at), max);
            }
            let max = s.horizontal_max(max);
            weights.factors.add(block).write(max * (1.0 / P::MAX_WEIGHT));
            // Finite: weights so small that it would not be count nothing.
            let factor = s.splat(if max > 0.0 { (P::MAX_WEIGHT / max).min(f32::MAX) } else { 0.0 });
            for at in (first..visible.end).step_by(S::LANES) {
                P::store_weights(s, integers, at, s.mul(weight(at), factor));
            }
        }
    }
}

/// Adds the values of a run of V, times integer weights, to the integer `sums` of `R` query rows,
/// or begins these with them if `is_fresh`. Out of line: the sums have the registers to themselves.
///
/// # Safety
/// `run` has rows of V (I2); `weights` has the integers of its keys for each of the rows, and
/// `sums` room for as many (I5).
#[inline(never)]
pub(super) unsafe fn accumulate<S: Isa, P: BlockScaledGemv, const R: usize, const PREFETCH: bool>(
    s: S,
    weights: &Weights,
    sums: Sums,
    run: Run,
    next: PrefetchStream,
    is_fresh: bool,
) {
    s.enter(Accumulate::<P, R, PREFETCH> { weights, sums, run, next, is_fresh, compute: PhantomData });
}

/// Made by [`accumulate`] alone, whose contract covers what it points to.
struct Accumulate<'a, P, const R: usize, const PREFETCH: bool> {
    weights: &'a Weights,
    sums: Sums,
    run: Run,
    next: PrefetchStream,
    is_fresh: bool,
    compute: PhantomData<P>,
}

impl<P: BlockScaledGemv, const R: usize, const PREFETCH: bool> Body for Accumulate<'_, P, R, PREFETCH> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let (dim, width) = (self.run.dim, width::<S, P>());
        let mut d = 0;
        // SAFETY: I7: each tile is taken only while as many elements are left of `dim`; rows have
        // whole blocks, and half a vector is one.
        unsafe {
            macro_rules! tiles_of {
                ($vectors:expr) => {
                    if const { $vectors == 1 || $vectors * R * registers::<S, P>() <= S::GEMV_ACCUMULATORS } {
                        while dim - d >= $vectors * width {
                            self.tile::<S, { $vectors }>(s, d, false);
                            d += $vectors * width;
                        }
                    }
                };
            }
            tiles_of!(4);
            tiles_of!(2);
            tiles_of!(1);
            if d < dim {
                self.tile::<S, 1>(s, d, true);
            }
        }
    }
}

/// Registers of the sums that belong to a vector of elements.
const fn registers<S: Isa, P: Gemv>() -> usize {
    P::PACK * (size_of::<Sum<S, P>>() / size_of::<SumLane<S, P>>())
}

impl<P: BlockScaledGemv, const R: usize, const PREFETCH: bool> Accumulate<'_, P, R, PREFETCH> {
    /// `C` vectors of operands from element `d` on; `in_part` if only one block is left.
    ///
    /// # Safety
    /// The contract of [`accumulate`]; rows of V have these elements.
    #[inline(always)]
    unsafe fn tile<S: Isa, const C: usize>(&self, s: S, d: usize, in_part: bool) {
        let Accumulate { weights, sums, run: Run { rows, keys, dim, .. }, next, is_fresh, .. } = self;
        let (width, block) = (width::<S, P>(), <P::Blocks as Stored>::BLOCK);
        // Vectors of one block have the same row, which the compiler should see. A tile begins with
        // a block unless it is a single vector.
        let row_of = |r: usize, d: usize, more: usize| {
            let row = (d / block + more).min(dim / block - 1) * weights.stride;
            weights.integers.wrapping_add(r * weights.stride / P::VALUE_ROWS + row).cast_const()
        };
        let rows_of: [[[*const f32; 2]; C]; R] = std::array::from_fn(|r| {
            std::array::from_fn(|c| {
                let first = c * width / block;
                [row_of(r, d, first), row_of(r, d, first + width / block / 2)]
            })
        });
        let mut sum = [[[P::Sum::zero(s); MAX_PACK]; C]; R];
        // SAFETY: I2, I7: keys of the run and elements below `dim`, in whole blocks; I5: a row of
        // integers for each block, and whole vectors of sums (caller).
        unsafe {
            if !is_fresh {
                for (r, sum) in sum.iter_mut().enumerate() {
                    for (c, sum) in sum.iter_mut().enumerate() {
                        *sum = P::load_sums(s, sums.base.add(r * sums.stride + d + c * width));
                    }
                }
            }
            macro_rules! group {
                ($key:expr, $is_there:expr) => {{
                    let key = $key;
                    let mut x = [[P::Operand::zero(s); MAX_PACK]; C];
                    for n in 0..P::PACK {
                        let row = rows.skip(key + n).base;
                        for c in 0..C {
                            let d = d + c * width;
                            x[c][n] = match in_part {
                                _ if !$is_there(key + n) => P::Operand::zero(s),
                                true => P::load_kv_partial::<S, P::Blocks>(s, row, d, dim - d),
                                false => P::load_kv::<S, P::Blocks>(s, row, d),
                            };
                        }
                    }
                    for c in 0..C {
                        let x = interleave::<S, P>(s, x[c]);
                        for r in 0..R {
                            let weight = P::weights(s, rows_of[r][c], key);
                            for v in 0..P::PACK {
                                sum[r][c][v] = P::add_value(s, weight, x[v], sum[r][c][v]);
                            }
                        }
                    }
                }};
            }
            // At each end, only some keys of an operand may be in the run.
            let some = |key| keys.contains(&key);
            let mut key = keys.start - keys.start % P::PACK;
            if key < keys.start {
                group!(key, some);
                key += P::PACK;
            }
            while key + P::PACK <= keys.end {
                if PREFETCH && d == 0 {
                    next.prefetch_lines(s, key, P::PACK);
                }
                group!(key, |_| true);
                key += P::PACK;
            }
            if key < keys.end {
                group!(key, some);
            }
            for (r, sum) in sum.iter().enumerate() {
                for (c, &sum) in sum.iter().enumerate() {
                    P::store_sums(s, sums.base.add(r * sums.stride + d + c * width), sum);
                }
            }
        }
    }
}

/// Adds a row of values times `p` to `sums`, converted to f32: for scales that are unfit for an
/// integer weight.
///
/// # Safety
/// `row` and `sums` have `dim` elements.
#[inline(always)]
pub(super) unsafe fn add_converted<S: Isa, T: BlockScaled>(
    s: S,
    p: f32,
    row: *const u8,
    dim: usize,
    sums: *mut f32,
) {
    for d in (0..dim).step_by(S::LANES) {
        // SAFETY: I7: rows have whole blocks (caller), which are whole vectors.
        unsafe { s.store(sums.add(d), s.fma(s.splat(p), T::load(s, row, d), s.load(sums.add(d)))) };
    }
}

/// Adds the `sums` of a block of keys, times `weight`, to an output row of `stride` values, or
/// begins it with them if `is_first`. The sums are integers with a factor for each block of V if
/// `fits`, else f32.
///
/// # Safety
/// `output` and `sums` have `stride` values, `dim` of them elements, and `weights` a factor for
/// each block of V (I5).
#[inline(always)]
pub(super) unsafe fn flush_block<S: Isa, P: BlockScaledGemv>(
    s: S,
    weights: &Weights,
    sums: *const f32,
    fits: bool,
    weight: f32,
    dim: usize,
    output: *mut f32,
    stride: usize,
    is_first: bool,
) {
    // SAFETY: I5, I7: whole vectors of operands of sums and output (caller); factors are read for
    // elements below `dim` only.
    unsafe {
        for d in (0..stride).step_by(width::<S, P>()) {
            let all = if fits { P::outputs(s, sums.add(d)) } else { converted(s, sums, d, dim) };
            for (v, &sum) in all.iter().enumerate().take(P::PACK) {
                let d = d + v * S::LANES;
                let factor = match d / <P::Blocks as Stored>::BLOCK {
                    block if fits && d < dim => weights.factors.add(block).read(),
                    _ => 1.0,
                };
                let at = output.add(d);
                let before = if is_first { s.splat(0.0) } else { s.load(at) };
                s.store(at, s.fma(sum, s.splat(weight * factor), before));
            }
        }
    }
}

/// The sums of [`add_converted`] from element `d` on; 0 behind the last.
///
/// # Safety
/// `sums` has `dim` elements, in whole vectors.
#[inline(always)]
unsafe fn converted<S: Isa>(s: S, sums: *const f32, d: usize, dim: usize) -> [S::F32; MAX_PACK] {
    let mut all = [s.splat(0.0); MAX_PACK];
    for (v, sum) in all.iter_mut().enumerate() {
        let d = d + v * S::LANES;
        if d < dim {
            // SAFETY: I7: a vector below `dim`, which is whole vectors (caller).
            *sum = unsafe { s.load(sums.add(d)) };
        }
    }
    all
}

/// A check of what is generic over block types: [`crate::compute`] has the types to run it with.
#[cfg(test)]
pub(crate) mod check {
    use super::*;
    use crate::attend::rows::Source;
    use crate::decode::scratch::Sums;
    use crate::dtype::Dtype;
    use crate::simd::half;
    use crate::view::{Layout, View};

    /// Scores and outputs of two query rows and a run of keys that begins and ends within a vector.
    pub(crate) struct Check<P> {
        pub(crate) dim: usize,
        pub(crate) compute: PhantomData<P>,
    }

    impl<P: BlockScaledGemv> Body for Check<P> {
        type Out = ();

        fn run<S: Isa>(self, s: S) {
            let block_bytes = <P::Blocks as Stored>::BLOCK_BYTES;
            let (dim, keys, block_keys, count) = (self.dim, 2..13, 16, 2);
            let row_bytes = block_at::<P::Blocks>(dim);
            let stride = dim.next_multiple_of(width::<S, P>());
            let number = |i: usize| (i.wrapping_mul(2_654_435_761) >> 7) as u8;
            // Keys and values alike: blocks of any codes, with scales from 1/256 on.
            let mut kv: Vec<u8> = (0..block_keys * row_bytes).map(number).collect();
            for (i, block) in kv.chunks_exact_mut(block_bytes).enumerate() {
                let scale = half::to_f16((1.0 + f32::from(number(i)) / 64.0) / 256.0);
                block[<P::Blocks as BlockScaled>::SCALE..][..2].copy_from_slice(&scale.to_ne_bytes());
            }
            // SAFETY: I7: row `key` of the array has an element `d`.
            let element = |key: usize, d| unsafe { P::Blocks::element(kv[key * row_bytes..].as_ptr(), d) };
            let q: Vec<f32> = (0..count * dim).map(|i| f32::from(number(i)) / 128.0 - 1.0).collect();

            let mut queries = vec![0.0; count * stride];
            let mut scores = vec![0.0; count * block_keys];
            let mut factors = vec![0.0; count];
            let mut sums = vec![0.0; P::VALUE_ROWS * stride];
            let mut outputs = vec![0.0; stride];
            let blocks = P::reading(dim).scales_in_row;
            let [mut scales, mut integers] = [(); 2].map(|()| vec![0.0; blocks * block_keys]);
            let mut block_factors = vec![0.0; P::VALUE_ROWS * blocks];
            let rows = RowArrays {
                queries: queries.as_mut_ptr(),
                query_stride: stride,
                factors: factors.as_mut_ptr(),
                corrections: None,
                folded: std::ptr::null_mut(),
                scores: scores.as_mut_ptr(),
                score_stride: block_keys,
                sums: std::ptr::null_mut(),
                block_sums: Sums { base: sums.as_mut_ptr(), stride },
                block_weights: std::ptr::null_mut(),
                seen: std::ptr::null_mut(),
            };
            let weights = Weights {
                scales: scales.as_mut_ptr(),
                minima: None,
                integers: integers.as_mut_ptr(),
                stride: block_keys,
                factors: block_factors.as_mut_ptr(),
            };
            let run = Run {
                keys: keys.clone(),
                rows: Rows { base: kv.as_ptr(), stride: row_bytes },
                dtype: P::DTYPE.expect("a type"),
                dim,
                scales: None,
                zeros: None,
                block_scales: None,
                minima: None,
                prefetch_rows: 16,
                prefetch_end: keys.end,
            };
            let layout = Layout::dense(Dtype::F32, 1, count, dim).expect("a layout");
            let view = View::of(&q, layout).expect("a view");
            // SAFETY: I5: all arrays are as long as their fields say.
            unsafe {
                for (r, factor) in factors.iter_mut().enumerate() {
                    let source = Source { view: &view, at: [0, 0, r] };
                    *factor = P::pack(s, source, dim, 1.0, rows.queries.add(r * stride));
                }
                P::dot_products::<S>(s, &rows, count, &run, PrefetchStream::NOTHING);
            }
            for r in 0..count {
                for key in keys.clone() {
                    let products = (0..dim).map(|d| f64::from(q[r * dim + d]) * f64::from(element(key, d)));
                    let score = f64::from(scores[r * block_keys + key]) * f64::from(factors[r]);
                    assert!((score - products.sum::<f64>()).abs() < 1e-4, "row {r}, key {key}");
                }
            }

            // The second row does not see the first keys.
            let sees = |r: usize, key: usize| (keys.start + 3 * r..keys.end).contains(&key);
            let p: Vec<Vec<f32>> = (0..P::VALUE_ROWS)
                .map(|r| {
                    let p = |key| if sees(r, key) { f32::from(number(key + r)) * 128.0 } else { 0.0 };
                    (0..block_keys).map(p).collect()
                })
                .collect();
            // SAFETY: I5: all arrays are as long as their fields say.
            unsafe {
                let all_fit =
                    gather_run::<S, P::Blocks, false>(s, &weights, &run, PrefetchStream::NOTHING, usize::MAX);
                assert!(all_fit && !weights.is_unfit::<P::Blocks>(keys.start, dim));
                for (r, p) in p.iter().enumerate() {
                    let weights = weights.of_row::<P>(r, dim);
                    weights.blank_integers::<P>(&keys, dim);
                    integer_weights::<S, P, false>(
                        s,
                        &weights,
                        p.as_ptr(),
                        &(keys.start + 3 * r..keys.end),
                        dim,
                    );
                }
                let (sums, none) = (rows.block_sums, PrefetchStream::NOTHING);
                if P::VALUE_ROWS == 1 {
                    accumulate::<S, P, 1, false>(s, &weights, sums, run, none, true);
                } else {
                    accumulate::<S, P, 2, false>(s, &weights, sums, run, none, true);
                }
            }
            for (r, p) in p.iter().enumerate() {
                let weight = 1.0 / P::P_SCALE;
                // SAFETY: I5: all arrays are as long as their fields say.
                unsafe {
                    let (weights, sums) = (weights.of_row::<P>(r, dim), rows.block_sums.base.add(r * stride));
                    let output = outputs.as_mut_ptr();
                    flush_block::<S, P>(s, &weights, sums, true, weight, dim, output, stride, true);
                }
                for (d, &output) in outputs.iter().enumerate().take(dim) {
                    let p = |key: usize| f64::from(p[key] / P::P_SCALE);
                    let sum: f64 = keys.clone().map(|key| p(key) * f64::from(element(key, d))).sum();
                    assert!(
                        (f64::from(output) - sum).abs() < 1e-4,
                        "{r}, element {d}: {output} is not {sum}"
                    );
                }
            }
        }
    }
}
