//! Several kv heads whose rows lie side by side: their keys are gone through together.
//!
//! In a cache \[token\]\[head\]\[dim\] the rows of a head are short pieces of memory, a token's
//! whole length apart. No hardware prefetcher follows them, and they fall into a few sets of the
//! caches. So a few keys of each head are multiplied in turns: memory is read in its own order.
//!
//! A row's sums run over the same blocks of keys in the same order as elsewhere: only what happens
//! between two of its keys differs, and no bit does.

use std::marker::PhantomData;
use std::ops::Range;
use std::slice;

use super::accumulate;
use super::block::{Block, Run};
use super::gemv::{Gemv, Reading};
use super::prefetch::{BYTES_AHEAD, PrefetchStream};
use super::scratch::{BlockArrays, RowArrays, part_start};
use super::state::State;
use super::{begin, end, look_at, scores, softmax};
use crate::attend::blocks::{first_block, next_block};
use crate::attend::rows::Rows;
use crate::attend::seen::kept_block;
use crate::attend::{K, V};
use crate::dtype::Dtype;
use crate::problem::SeenKeys;
use crate::simd::{Body, Isa};
use crate::work::query_tiles::TileSizes;
use crate::work::split_kv::{MAX_KV_HEADS, SplitWork};

/// Keys of a head that are multiplied before it is the turn of the next one: whole vectors, and so
/// few that those of all heads, and what is prefetched, stay in the second-level cache.
const TURN: usize = 16;

/// The steps that are compiled for each instruction set and compute type.
pub(super) trait Steps {
    /// Computes [`scores::scores`] of a run, and prefetches `next` meanwhile.
    ///
    /// # Safety
    /// The contract of [`scores::scores`].
    unsafe fn scores(&self, rows: &RowArrays, count: usize, run: &Run, next: PrefetchStream);

    /// Computes [`softmax::softmax`] of a block.
    ///
    /// # Safety
    /// The contract of [`softmax::softmax`].
    unsafe fn softmax(&self, block: &Block, rows: &RowArrays, state: &State);

    /// Adds the values of a run, as [`accumulate::values_of_run`] does.
    ///
    /// # Safety
    /// The contract of [`accumulate::values_of_run`].
    unsafe fn add_run(
        &self,
        block: &Block,
        rows: &RowArrays,
        state: &State,
        run: Run,
        next: PrefetchStream,
        is_first: bool,
    );

    /// What is left to be done for the values of a block: if `are_added`, runs have added all of
    /// them.
    ///
    /// # Safety
    /// As for [`super::add_values`].
    unsafe fn add_values(
        &self,
        block: &Block,
        rows: &RowArrays,
        arrays: &BlockArrays,
        state: &State,
        are_added: bool,
    );
}

/// An instruction set and a compute type.
pub(super) struct Compiled<S, P>(pub(super) S, pub(super) PhantomData<P>);

impl<S: Isa, P: Gemv> Steps for Compiled<S, P> {
    unsafe fn scores(&self, rows: &RowArrays, count: usize, run: &Run, next: PrefetchStream) {
        // SAFETY: I2, I5: the contract is the same.
        unsafe { scores::scores::<S, P>(self.0, rows, count, run, next) };
    }

    unsafe fn softmax(&self, block: &Block, rows: &RowArrays, state: &State) {
        // SAFETY: I5: the contract is the same.
        unsafe { softmax::softmax::<S, P>(self.0, block, rows, state) };
    }

    unsafe fn add_run(
        &self,
        block: &Block,
        rows: &RowArrays,
        state: &State,
        run: Run,
        next: PrefetchStream,
        is_first: bool,
    ) {
        // SAFETY: I2, I5: the contract is the same.
        unsafe { accumulate::values_of_run::<S, P>(self.0, block, rows, state, run, next, is_first) };
    }

    unsafe fn add_values(
        &self,
        block: &Block,
        rows: &RowArrays,
        arrays: &BlockArrays,
        state: &State,
        are_added: bool,
    ) {
        // SAFETY: I5: the contract is the same.
        unsafe { super::add_values::<S, P>(self.0, block, rows, arrays, state, are_added) };
    }
}

/// [`super::begin`], or with `is_empty` [`super::end`], compiled for an instruction set. Made by
/// [`Together::attend`] alone, which vouches for the arrays.
struct Border<'a> {
    rounds: bool,
    count: usize,
    rows: &'a RowArrays,
    state: &'a State,
    is_empty: Option<bool>,
}

impl Body for Border<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Border { rounds, count, rows, state, is_empty } = self;
        // SAFETY: I5: the arrays of a part of the group (the contract of `attend`, which made
        // this).
        unsafe {
            match is_empty {
                None => begin(s, rounds, count, rows, state),
                Some(is_empty) => end(s, rounds, count, rows, state, is_empty),
            }
        }
    }
}

/// What a group with several kv heads is computed with.
pub(super) struct Together<'a> {
    pub(super) work: &'a SplitWork<'a>,
    pub(super) tiles: TileSizes,
    pub(super) rows: &'a RowArrays,
    pub(super) arrays: &'a BlockArrays,
    pub(super) state: &'a State,
    pub(super) steps: &'a dyn Steps,
    /// [`Gemv::ROUNDS`], [`Gemv::DTYPE`], [`Gemv::reading`] and [`Gemv::ADDS_RUNS`] of the
    /// compute type.
    pub(super) rounds: bool,
    pub(super) read_as: Option<Dtype>,
    pub(super) reading: Reading,
    pub(super) adds_runs: bool,
    /// What [`super::should_prefetch`] says.
    pub(super) prefetches: bool,
    /// Whether the loops over so many query rows prefetch a stream.
    pub(super) loops_prefetch: bool,
}

/// A kv head, and the arrays of its query rows.
struct Part<'a> {
    work: SplitWork<'a>,
    rows: RowArrays,
    arrays: BlockArrays,
    state: State,
    /// Whether no block of keys has been computed yet.
    is_empty: bool,
}

impl Together<'_> {
    /// [`super::attend`] for a group with several kv heads. Kept out of line, so that the code
    /// exists once for each instruction set.
    ///
    /// # Safety
    /// The contract of [`super::attend`].
    #[inline(never)]
    pub(super) unsafe fn attend<S: Isa>(&self, s: S, visible: &SeenKeys) {
        let Together { work, tiles, rounds, .. } = *self;
        let mut parts = [const { None }; MAX_KV_HEADS];
        for (n, part) in parts.iter_mut().enumerate().take(work.kv_heads) {
            let at = part_start(tiles, n);
            let (rows, state) = (self.rows.skip::<S>(at), self.state.skip(at));
            let arrays = self.arrays.of_part(n);
            *part = Some(Part { work: work.of_kv_head(n), rows, arrays, state, is_empty: true });
        }
        // SAFETY: I5: the arrays of each part are some rows of those of the group (caller), and
        // blocks have no more keys than `tiles` says, which the arrays were made for.
        unsafe {
            for Part { work, rows, state, .. } in parts.iter().flatten() {
                s.enter(Border { rounds, count: work.count(), rows, state, is_empty: None });
            }
            let (problem, sequence) = (work.problem(), work.sequence());
            let kept =
                |keys| kept_block(problem, sequence, &work.heads, &work.rows, visible, keys, [tiles.kv, 1]);
            let mut keys = kept(first_block(visible, tiles.kv, 1));
            while !keys.is_empty() {
                let next = kept(next_block(visible, &keys, tiles.kv, 1));
                let mut blocks = [const { None }; MAX_KV_HEADS];
                for (block, part) in blocks.iter_mut().zip(&parts) {
                    *block = part.as_ref().and_then(|part| self.block(part, &keys, &next));
                }
                self.visit(s, &blocks, &parts);
                let mut is_there = [false; MAX_KV_HEADS];
                for (is_there, block) in is_there.iter_mut().zip(&blocks) {
                    *is_there = block.is_some();
                }
                for (part, is_there) in parts.iter_mut().flatten().zip(is_there) {
                    part.is_empty &= !is_there;
                }
                keys = next;
            }
            for Part { work, rows, state, is_empty, .. } in parts.iter().flatten() {
                let is_empty = Some(*is_empty);
                s.enter(Border { rounds, count: work.count(), rows, state, is_empty });
            }
        }
    }

    /// The block of `keys` of a part; nothing if masks hide all of it.
    ///
    /// # Safety
    /// The contract of [`Together::attend`].
    unsafe fn block<'b>(
        &self,
        part: &'b Part,
        keys: &Range<usize>,
        next: &Range<usize>,
    ) -> Option<Block<'b>> {
        let Part { work, rows, arrays, is_empty, .. } = part;
        let Together { tiles, read_as, reading, prefetches, .. } = *self;
        let (mut keys, mut unmasked) = (keys.clone(), None);
        if work.problem().shape().scans_masks {
            // SAFETY: I5: the rows of the part are some of those of the group (caller).
            unsafe {
                let start = keys.start - keys.start % tiles.kv;
                let (left, is_plain) = look_at(work, &keys, start, rows.seen);
                keys = left;
                unmasked = Some((slice::from_raw_parts(rows.seen.cast_const(), work.count()), is_plain));
            }
        }
        (!keys.is_empty()).then(|| {
            Block::new(work, tiles, arrays, read_as, reading, &keys, next, unmasked, *is_empty, prefetches)
        })
    }

    /// All parts meet a block of keys, some of them at a time.
    ///
    /// # Safety
    /// The contract of [`super::visit`], for each block and the part of the same number.
    unsafe fn visit<S: Isa>(
        &self,
        s: S,
        blocks: &[Option<Block>; MAX_KV_HEADS],
        parts: &[Option<Part>; MAX_KV_HEADS],
    ) {
        let steps = self.steps;
        let all = || {
            let both = blocks.iter().zip(parts);
            both.filter_map(|(block, part)| Some((block.as_ref()?, part.as_ref()?)))
        };
        let keys = all().map(|(block, _)| block.keys.clone());
        let keys = keys.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0);
        let takes_turns = |block: &Block| {
            let sees_all = block.is_whole && block.is_plain && !block.has_gap;
            self.adds_runs && sees_all && block.v_run().is_some()
        };
        let takes_order = S::PREFETCHES_STREAM || S::STREAMS_SHARED_KEYS && self.prefetches;
        let order = if takes_order { Order::of(all().map(|(block, _)| block)) } else { None };
        // SAFETY: I5: the arrays are those of the parts (caller), and were laid out for blocks of
        // this size.
        unsafe {
            for (block, _) in all() {
                block.prepare(s);
            }
            for now in turns(&keys) {
                for (n, (block, Part { work, rows, .. })) in all().enumerate() {
                    let mine = clip_to(&now, &block.keys);
                    let next = self.prefetch_next(
                        s,
                        block,
                        K,
                        &mine,
                        order.map(|order| order.stream(block, K, n, &now)),
                    );
                    match block.k_run() {
                        _ if mine.is_empty() => {}
                        Some(run) => steps.scores(rows, work.count(), &self.turn(&run, mine, &order), next),
                        None => {
                            for run in block.k_runs(s, mine) {
                                steps.scores(rows, work.count(), &run, PrefetchStream::NOTHING);
                            }
                        }
                    }
                }
            }
            for (block, Part { rows, state, .. }) in all() {
                steps.softmax(block, rows, state);
            }
            for now in turns(&keys) {
                for (n, (block, Part { rows, state, .. })) in all().enumerate() {
                    if !takes_turns(block) {
                        continue;
                    }
                    let mine = clip_to(&now, &block.keys);
                    let next = self.prefetch_next(
                        s,
                        block,
                        V,
                        &mine,
                        order.map(|order| order.stream(block, V, n, &now)),
                    );
                    if let Some(run) = block.v_run()
                        && !mine.is_empty()
                    {
                        let is_first = mine.start == block.keys.start;
                        steps.add_run(block, rows, state, self.turn(&run, mine, &order), next, is_first);
                    }
                }
            }
            for (block, Part { rows, arrays, state, .. }) in all() {
                steps.add_values(block, rows, arrays, state, takes_turns(block));
            }
        }
    }

    /// The part of a run that has `keys`. Rows that lie `TURN` keys ahead are prefetched by the
    /// loops, unless there is an order.
    fn turn(&self, run: &Run, keys: Range<usize>, order: &Option<Order>) -> Run {
        if order.is_some() { Run { prefetch_end: 0, ..run.of(keys) } } else { run.turn(keys, TURN) }
    }

    /// Prefetches what is read after the keys `now` of a part are multiplied, or returns it for the
    /// loops to do so, which takes less time. Without an order that is what the part reads in its
    /// next turn: the next keys; behind the last ones of K the first ones of V, and behind these K
    /// of the next block.
    fn prefetch_next<S: Isa>(
        &self,
        s: S,
        block: &Block,
        which: usize,
        now: &Range<usize>,
        ordered: Option<PrefetchStream>,
    ) -> PrefetchStream {
        let Range { start, end } = block.keys;
        if let Some(stream) = ordered {
            if self.loops_prefetch {
                return stream;
            }
            if stream.is_any() {
                stream.prefetch_lines(s, now.start, now.len());
            }
        } else if now.end < end && block.work.count() > 1 {
            // The loops do.
        } else if now.end < end {
            block.prefetch(s, which, now.end..end.min(now.end + TURN));
        } else if which == K {
            block.prefetch(s, V, start..end.min(start + TURN));
        } else {
            block.prefetch(s, K, block.first_of_next(TURN));
        }
        PrefetchStream::NOTHING
    }
}

/// Rows of K and V of all parts that follow one another in memory, key by key.
///
/// They are prefetched in that order, some keys ahead: while one part is multiplied, its share of
/// what all of them read then. Rows that lie as far apart as keys do come from memory at half the
/// speed.
#[derive(Clone, Copy)]
struct Order {
    /// The first row of K, and of V, of the first part, and the distance between keys.
    rows: [Rows; 2],
    /// Parts.
    count: usize,
}

impl Order {
    /// That of all parts that meet a block; nothing if rows lie otherwise.
    fn of<'b>(blocks: impl Iterator<Item = &'b Block<'b>> + Clone) -> Option<Order> {
        let count = blocks.clone().count();
        let rows = |block: &Block| Some([block.rows_in_place(K)?, block.rows_in_place(V)?]);
        let first = rows(blocks.clone().next()?)?;
        for (n, block) in blocks.enumerate() {
            for (rows, first) in rows(block)?.iter().zip(&first) {
                let is_next = rows.base == first.base.wrapping_add(n * (first.stride / count));
                if !is_next || rows.stride != first.stride || !rows.stride.is_multiple_of(count) {
                    return None;
                }
            }
        }
        Some(Order { rows: first, count })
    }

    /// The share of part `n` of what is read some keys after its keys `now` of K or V (`which`),
    /// which are one turn: row i of the stream goes with key i.
    fn stream(&self, block: &Block, which: usize, n: usize, now: &Range<usize>) -> PrefetchStream {
        let Order { rows, count } = *self;
        let ahead = (BYTES_AHEAD / rows[which].stride.max(1)).next_multiple_of(TURN).max(TURN);
        let first = now.start + ahead;
        let behind = first.saturating_sub(block.keys.end);
        // Behind the last keys of K the first ones of V, and behind these K of the next block.
        let (which, first, end) = match which {
            _ if first < block.keys.end => (which, first, block.keys.end),
            K => (V, block.keys.start + behind, block.keys.end),
            _ => (K, block.next.start + behind, block.next.end),
        };
        if first >= end {
            return PrefetchStream::NOTHING;
        }
        let stride = rows[which].stride / count;
        let base = rows[which].skip(first).base.wrapping_add(n * TURN * stride);
        let rows = Rows { base: base.wrapping_sub(now.start * stride), stride };
        PrefetchStream::rows(rows, stride.min(block.row_bytes(which)))
    }
}

/// `keys` in turns: parts that end at multiples of [`TURN`].
fn turns(keys: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let Range { start, end } = *keys;
    (start / TURN..end.div_ceil(TURN)).map(move |n| start.max(n * TURN)..end.min((n + 1) * TURN))
}

/// The keys of a turn that a block has.
fn clip_to(turn: &Range<usize>, keys: &Range<usize>) -> Range<usize> {
    let start = turn.start.max(keys.start);
    start..turn.end.min(keys.end).max(start)
}
