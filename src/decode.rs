//! Attention of few query rows over many keys: lanes are elements of a head.
//!
//! With fewer query rows than a vector has lanes, [`crate::prefill`] would leave most lanes idle.
//! Here a vector holds neighbouring elements of one row of Q, K, V or the output, or the scores of
//! one row for neighbouring keys. A call computes one [`SplitWork`]: the query rows of a group of
//! heads that share a kv head, over some splits of their keys.
//!
//! ```text
//! take the arrays from scratch memory                                         scratch
//! pack the query rows: scaled, in whole vectors of operands                   gemv
//! for each split of the keys, with a state of its own
//!   for each block of keys that some row sees                                 block
//!     look        what masks leave to each row; nothing: the next block
//!     prepare     rows that cannot be read in place, scales of rows           block
//!     scores      of all rows, for each run of rows of K                      scores
//!     softmax     of each row; before, scores to those who want them          softmax, weights
//!     values      added to the output of each row, for each run of V; one of
//!       plain         several rows at a time                                  accumulate
//!       guarded       visible keys only: some value behind a mask is not
//!                     finite                                                  accumulate
//!       block-scaled  row by row, integer weights that include the scales     block_scaled,
//!                                                                             repacked
//!   combine the state with that of the splits before                          state
//! epilogue: divide by the sums, write rows of the output                      epilogue
//! ```
//!
//! What depends on the compute type is [`gemv::Gemv`]. A *run* is the rows of K or V of
//! neighbouring keys that lie behind one another: all of a block, or the part of it in one page of
//! the cache.
//!
//! Keys that a row does not see are skipped, not masked: windows, and what masks leave of a block,
//! are ranges of keys, so each row takes its own range of a block. Only what masks hide or change
//! within these is masked.
//!
//! Blocks start at multiples of the block size from key 0, and a score's lane is its key's place in
//! the block: a row's result does not depend on the rows that it shares a group with.

pub(crate) mod accumulate;
pub(crate) mod block;
pub(crate) mod block_scaled;
pub(crate) mod epilogue;
pub(crate) mod gemv;
mod outliers;
#[forbid(unsafe_code)]
pub(crate) mod prefetch;
pub(crate) mod repacked;
pub(crate) mod scores;
pub(crate) mod scratch;
pub(crate) mod softmax;
pub(crate) mod state;
mod together;
pub(crate) mod unpack;
mod weights;

use std::marker::PhantomData;
use std::ops::Range;
use std::slice;

use crate::attend::blocks::{clip, first_block, next_block};
use crate::attend::finish::blank;
use crate::attend::fold::Folding;
use crate::attend::rows::{Source, key_rows, query_rows};
use crate::attend::seen::{self, Look, Seen};
use crate::dtype::Dtype;
use crate::problem::{SeenKeys, Shape};
use crate::simd::{Body, Isa};
use crate::view::{Layout, ScaleGranularity, View};
use crate::work::query_tiles::TileSizes;
use crate::work::split_kv::{BEGUN, Combine, SplitRange, SplitWork};
use crate::workspace::{PartialStates, Scratch};
use block::{Block, Run};
use gemv::Gemv;
use scratch::{
    BlockArrays, Buffers, ROWS, RowArrays, Sizes, buffers, max_rows, padded_rows, part_start, row_stride,
};
pub(crate) use scratch::{reads_kv, scratch_bytes, state_bytes};
use state::State;
use together::{Compiled, Together};

/// `T`, computed with the compute type `P`.
pub(crate) struct By<T, P>(pub(crate) T, pub(crate) PhantomData<P>);

/// The attention of the query rows of a group over some splits of their keys, to be entered with an
/// instruction set.
pub struct Decode<'a, 'p> {
    pub(crate) work: &'a SplitWork<'p>,
    pub(crate) tiles: TileSizes,
    pub(crate) scratch: Scratch<'a>,
    /// States that one thread leaves for another, and the range of splits that the work belongs to.
    pub(crate) partial: PartialStates<'a>,
    pub(crate) range: &'a SplitRange<'a, 'p>,
}

impl<P: Gemv> Body for By<Decode<'_, '_>, P> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Decode { work, tiles, mut scratch, partial, range } = self.0;
        let shape = work.problem().shape();
        assert!(work.kv_heads <= tiles.kv_heads && work.rows.len() <= tiles.q);
        assert!(work.heads.len() <= work.kv_heads * tiles.heads);
        let Buffers { rows, states: [own, other], block } =
            buffers(&mut scratch, Sizes::of::<S, P>(shape, tiles), shape, tiles);
        let keep = |n| {
            let arena = &mut partial.arena(range.index, n);
            State::take(arena, max_rows(tiles), row_stride::<S, P>(shape.dim_v))
        };
        let state_of = |n| match work.kept(n) {
            Some(i) => keep(i),
            None if n == 0 => own,
            None => other,
        };
        let first = state_of(0);
        // SAFETY: I5: `buffers` laid out the arrays for this shape and these sizes, and the scratch
        // memory is this call's; I6: partial states of a range are used by the thread that has the
        // range until all ranges are computed.
        unsafe {
            for n in 0..work.kv_heads {
                let mut part = None;
                let (work, at) = of_kv_head(work, tiles, n, &mut part);
                pack::<S, P>(s, work, &rows.skip::<S>(at));
            }
            // Who has the first split adds single keys next, so that states are combined in one
            // order however splits are divided.
            let columns = if work.began_before() { None } else { work.of_columns() };
            let single = usize::from(columns.is_some());
            for pass in 0..work.splits.len() + single {
                let n = if pass > 0 { pass - single } else { 0 };
                let (part, tiles, seen) = match &columns {
                    Some(columns) if pass == 1 => (columns, tiles.of_columns(), columns.seen().clone()),
                    _ => {
                        let split = work.splits.start + n;
                        if work.problem().weights().is_some() {
                            weights::begin(s.core(), work, split);
                        }
                        let SeenKeys { keys, gap } = work.seen().clone();
                        (work, tiles, SeenKeys { keys: clip(keys, &work.keys(split)), gap })
                    }
                };
                let is_needed = pass == 0 || work.began_before();
                if seen.keys.is_empty() && !is_needed {
                    continue;
                }
                let state = if is_needed { state_of(n) } else { other };
                match work.kv_heads {
                    // Rows that are repacked are never those of several heads.
                    _ if P::reading(0).is_repacked => {
                        attend::<S, P>(s, part, &seen, tiles, &rows, &block, &state);
                    }
                    1 => attend::<S, P>(s, part, &seen, tiles, &rows, &block, &state),
                    _ => attend_together::<S, P>(s, part, &seen, tiles, &rows, &block, &state),
                }
                if !is_needed {
                    combine(s, work, tiles, &first, &other);
                }
            }
            if work.is_whole() {
                write(s, work, tiles, &first);
            }
        }
    }
}

impl<P: Gemv> Body for By<Combine<'_, '_, '_>, P> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Combine { work, range, tiles, partial } = self.0;
        let stride = row_stride::<S, P>(work.problem().shape().dim_v);
        let keep = |range, n| State::take(&mut partial.arena(range, n), max_rows(tiles), stride);
        let first = keep(range.index, BEGUN);
        // SAFETY: I6: all ranges have been computed, and only who has the range in which a group
        // begins uses the states of that group; I3: nobody else has its output rows.
        unsafe {
            for (range, splits) in range.in_later_ranges(work) {
                for n in 0..splits.len() {
                    let later = keep(range, BEGUN + 1 + n);
                    combine(s, work, tiles, &first, &later);
                }
            }
            write(s, work, tiles, &first);
        }
    }
}

/// The part of `work` with its `n`th kv head, and the row that its arrays begin with. `part` keeps
/// it, if it is not all.
#[inline(always)]
fn of_kv_head<'a, 'p>(
    work: &'a SplitWork<'p>,
    tiles: TileSizes,
    n: usize,
    part: &'a mut Option<SplitWork<'p>>,
) -> (&'a SplitWork<'p>, usize) {
    let part = if work.kv_heads == 1 { work } else { part.insert(work.of_kv_head(n)) };
    (part, part_start(tiles, n))
}

/// Combines the states of all rows of a group with those of later keys.
///
/// # Safety
/// The contract of [`State::combine`], for the rows of each kv head.
#[inline(always)]
unsafe fn combine<S: Isa>(s: S, work: &SplitWork, tiles: TileSizes, state: &State, later: &State) {
    for n in 0..work.kv_heads {
        let at = part_start(tiles, n);
        // SAFETY: I6: the contract is the same.
        unsafe { state.skip(at).combine(s, &later.skip(at), work.count() / work.kv_heads) };
    }
}

/// Writes the output rows of a group from their states.
///
/// # Safety
/// The contract of [`epilogue::epilogue`], for the rows of each kv head.
#[inline(always)]
unsafe fn write<S: Isa>(s: S, work: &SplitWork, tiles: TileSizes, state: &State) {
    for n in 0..work.kv_heads {
        let mut part = None;
        let (work, at) = of_kv_head(work, tiles, n, &mut part);
        // SAFETY: I3, I5: the contract is the same.
        unsafe { epilogue::epilogue(s, work, &state.skip(at), scale_of_values(work)) };
    }
}

/// Packs the query rows, and writes what the dot products of each are still to be multiplied by.
///
/// # Safety
/// `rows` are the arrays of a group at least as large (I5).
#[inline(always)]
unsafe fn pack<S: Isa, P: Gemv>(s: S, work: &SplitWork, rows: &RowArrays) {
    let (problem, sequence) = (work.problem(), work.sequence());
    let Shape { dim_qk, ref storage, .. } = *problem.shape();
    let keys = work.keys(work.splits.start);
    let mut factor = problem.score_factor();
    let mut folding = None;
    if let Some(key) = sequence.some_key(&keys) {
        let kv_head = problem.kv_head(work.heads.start);
        if storage.granularities[1] == ScaleGranularity::PerHead {
            factor *= key_rows(problem, problem.k(), sequence, kv_head, key).scale();
        }
        folding = Folding::of(problem, sequence, kv_head, key);
    }
    let last = work.count() - 1;
    for r in 0..padded_rows(work.count()) {
        // The row that a register tile is short of repeats the last one: its results go nowhere.
        let (head, row) = work.line(r.min(last));
        let mut source = query_rows(problem, sequence, head, row);
        let folded;
        // SAFETY: I2: the sequence has the row; I5: the arrays have `padded_rows` rows.
        unsafe {
            if let Some(folding) = &folding {
                folded = fold(s, folding, source, dim_qk, factor, rows, r);
                if let Some(view) = &folded {
                    source = Source { view, at: [0; 3] };
                }
            }
            let query = rows.queries.add(r * rows.query_stride);
            rows.factors.add(r).write(P::pack(s, source, dim_qk, factor, query));
            if storage.dtypes[1].has_minimum() {
                P::sum_blocks(s, query, dim_qk);
            }
        }
    }
}

/// Changes query row `r`, which is that of `source`, as scales of K demand, and writes what zeros
/// of K correct its scores by. Returns the row that is to be packed, if it is another one.
///
/// # Safety
/// `source` has the row (I2), and `rows` are the arrays of its group (I5).
#[inline(never)]
unsafe fn fold<'a, S: Isa>(
    s: S,
    folding: &Folding,
    source: Source,
    dim: usize,
    factor: f32,
    rows: &RowArrays,
    r: usize,
) -> Option<View<'a>> {
    let mut correction = 0.0;
    // SAFETY: I2: the caller's row; I5: `buffers` made room for a row as f32.
    unsafe { folding.fold(s, source, 1, dim, rows.folded.cast(), &mut correction) };
    if let Some(corrections) = rows.corrections {
        // SAFETY: I5: one of the rows of the group.
        unsafe { corrections.add(r).write(correction * factor) };
    }
    let layout = Layout::dense(Dtype::F32, 1, 1, dim).ok().filter(|_| folding.changes_queries)?;
    // SAFETY: I5: the row that has just been written, which nobody else uses.
    unsafe { View::new(rows.folded.cast(), layout).ok() }
}

/// What the output is still to be multiplied by: the scale of V that all rows of a head share, if
/// it has no zero.
#[inline(always)]
fn scale_of_values(work: &SplitWork) -> f32 {
    let (problem, keys) = (work.problem(), work.keys(0));
    let storage = &problem.shape().storage;
    let is_per_head = storage.granularities[2] == ScaleGranularity::PerHead && !storage.zeros[2];
    let Some(key) = work.sequence().some_key(&keys).filter(|_| is_per_head) else { return 1.0 };
    let kv_head = problem.kv_head(work.heads.start);
    key_rows(problem, problem.v(), work.sequence(), kv_head, key).scale()
}

/// Computes the state of all rows of a group for `visible`, the keys of a split that some row sees
/// and those between them but for a gap.
///
/// # Safety
/// `rows`, `arrays` and `state` are the arrays of the group (I5), with the queries packed.
#[inline(always)]
unsafe fn attend<S: Isa, P: Gemv>(
    s: S,
    work: &SplitWork,
    visible: &SeenKeys,
    tiles: TileSizes,
    rows: &RowArrays,
    arrays: &BlockArrays,
    state: &State,
) {
    // SAFETY: I5: arrays and state have `padded_rows` rows (caller), and blocks have no more keys
    // than `tiles` says, which the arrays were made for.
    unsafe {
        begin(s, P::ROUNDS, work.count(), rows, state);
        let (problem, sequence) = (work.problem(), work.sequence());
        let kept =
            |keys| seen::kept_block(problem, sequence, &work.heads, &work.rows, visible, keys, [tiles.kv, 1]);
        let scans = problem.shape().scans_masks && !sequence.is_of_columns();
        let mut keys = kept(first_block(visible, tiles.kv, 1));
        let prefetches = should_prefetch::<S, P>(work, tiles);
        let mut is_first = true;
        while !keys.is_empty() {
            let next = kept(next_block(visible, &keys, tiles.kv, 1));
            let mut unmasked = None;
            if scans {
                let (left, is_plain) = look_at(work, &keys, keys.start - keys.start % tiles.kv, rows.seen);
                keys = left;
                unmasked = Some((slice::from_raw_parts(rows.seen.cast_const(), work.count()), is_plain));
            }
            if !keys.is_empty() {
                let reading = P::reading(work.problem().shape().dim_v);
                let block = Block::new(
                    work,
                    tiles,
                    arrays,
                    P::DTYPE,
                    reading,
                    &keys,
                    &next,
                    unmasked,
                    is_first,
                    prefetches,
                );
                visit::<S, P>(s, &block, rows, arrays, state);
                is_first = false;
            }
            keys = next;
        }
        end(s, P::ROUNDS, work.count(), rows, state, is_first);
    }
}

/// Prepares the state of `count` query rows before their first block of keys, for a compute type
/// that rounds probabilities or not.
///
/// # Safety
/// The arrays have these rows (I5).
#[inline(always)]
unsafe fn begin<S: Isa>(s: S, rounds: bool, count: usize, rows: &RowArrays, state: &State) {
    let padded = padded_rows(count);
    // SAFETY: I5: arrays and state have `padded_rows` rows (caller).
    unsafe {
        for r in 0..padded {
            state.running_max.add(r).write(f32::NEG_INFINITY);
            s.store(rows.sums.add(r * S::LANES), s.splat(0.0));
        }
        // Tiles of values may have a row more than those of scores, whose results go nowhere.
        if const { S::SCORES_FILL_VECTOR } && padded > count {
            blank(rows.scores.add(count * rows.score_stride), rows.score_stride);
        }
        // Outliers of the first block are added before its other keys.
        if rounds {
            blank(state.output, padded * state.stride);
        }
    }
}

/// Completes the state of `count` query rows after their last block of keys, if there was one.
///
/// # Safety
/// As [`begin`], which began the state.
#[inline(always)]
unsafe fn end<S: Isa>(s: S, rounds: bool, count: usize, rows: &RowArrays, state: &State, is_empty: bool) {
    // SAFETY: I5: arrays and state have `padded_rows` rows (caller).
    unsafe {
        if is_empty && !rounds {
            blank(state.output, padded_rows(count) * state.stride);
        }
        for r in 0..count {
            state.sums.add(r).write(s.horizontal_sum(s.load(rows.sums.add(r * S::LANES))));
        }
    }
}

/// Finds what masks leave of `keys`, some of the block that begins with key `start`, to each row of
/// a group. Returns the keys between those that some row sees, and whether masks change no score
/// within the range of each row. Kept out of line: few problems have masks.
///
/// # Safety
/// `seen` has room for the rows of the group (I5).
#[inline(never)]
unsafe fn look_at(
    work: &SplitWork,
    keys: &Range<usize>,
    start: usize,
    seen: *mut Seen,
) -> (Range<usize>, bool) {
    let (problem, sequence) = (work.problem(), work.sequence());
    let n = work.rows.len();
    // Slopes that are multiplied by the mask may be NaN for some heads only.
    let logits = problem.logits();
    let times_mask = logits.slopes.is_some_and(|slopes| slopes.times_mask);
    let is_same = !times_mask && logits.hides_same_from_all_heads();
    let mut is_plain = true;
    let mut left = keys.end..keys.end;
    for (i, head) in work.heads.clone().enumerate() {
        // SAFETY: I5: the rows of a head are some of those of the group (caller).
        unsafe {
            let to = seen.add(i * n);
            if i > 0 && is_same {
                to.copy_from_nonoverlapping(seen, n);
                continue;
            }
            let rows = work.rows.clone();
            let look =
                Look { problem, sequence, head, rows, keys: keys.clone(), start, asks_plain: is_plain };
            let (seen, found) = seen::look(&look, to);
            seen::join(&mut left, seen);
            is_plain &= found.is_plain;
        }
    }
    if !is_plain {
        // Masks are to be applied to all that is left.
        for (r, (_, row)) in work.lines().enumerate() {
            // SAFETY: I5: a row of the group (caller).
            unsafe { seen.add(r).write(Seen::of(&clip(sequence.visible(row), &left), start)) };
        }
    }
    (left, is_plain)
}

/// All rows of a group meet a block of keys.
///
/// # Safety
/// `rows`, `arrays` and `state` are the arrays of the block's group (I5): the queries are packed,
/// and `state` is that of the blocks before.
#[inline(always)]
unsafe fn visit<S: Isa, P: Gemv>(s: S, block: &Block, rows: &RowArrays, arrays: &BlockArrays, state: &State) {
    let count = block.work.count();
    // SAFETY: I5: the arrays are those of the group and were laid out for blocks of this size
    // (caller).
    unsafe {
        block.prepare(s);
        let multiply = |run: &Run| {
            scores::scores::<S, P>(s, rows, count, run, block.stream_with_k(run));
        };
        match block.k_run() {
            Some(run) => multiply(&run),
            None => block.k_runs(s, block.keys.clone()).for_each(|run| multiply(&run)),
        }
        // While the softmax waits for its own results, the first rows of what comes next arrive.
        block.prefetch_first(s);
        softmax::softmax::<S, P>(s, block, rows, state);
        add_values::<S, P>(s, block, rows, arrays, state, false);
    }
}

/// Adds the values of a block to the output of each row, or what is left of that once all runs have
/// been added. Out of line, like the steps before.
///
/// # Safety
/// The contract of [`Gemv::add_values`].
#[inline(never)]
unsafe fn add_values<S: Isa, P: Gemv>(
    s: S,
    block: &Block,
    rows: &RowArrays,
    arrays: &BlockArrays,
    state: &State,
    are_added: bool,
) {
    s.enter(AddValues::<P> { block, rows, arrays, state, are_added, compute: PhantomData });
}

/// Made by [`add_values`] alone, whose contract covers what it points to.
struct AddValues<'a, P> {
    block: &'a Block<'a>,
    rows: &'a RowArrays,
    arrays: &'a BlockArrays,
    state: &'a State,
    are_added: bool,
    compute: PhantomData<P>,
}

impl<P: Gemv> Body for AddValues<'_, P> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let AddValues { block, rows, arrays, state, are_added, .. } = self;
        // SAFETY: I5: arrays of the block's group (the contract of `add_values`, which made this).
        unsafe {
            if are_added {
                accumulate::flush::<S, P>(s, block, rows, state);
            } else {
                P::add_values(s, block, rows, arrays, state);
            }
            // Other types compute no values with such scales.
            if const { P::DTYPE.is_none() }
                && let Some(zeros) = block.v_zeros()
            {
                accumulate::subtract_zeros(s, block, rows, zeros, state);
            }
        }
    }
}

/// [`attend`] for a group with several kv heads.
///
/// # Safety
/// The contract of [`attend`].
#[inline(never)]
unsafe fn attend_together<S: Isa, P: Gemv>(
    s: S,
    work: &SplitWork,
    visible: &SeenKeys,
    tiles: TileSizes,
    rows: &RowArrays,
    arrays: &BlockArrays,
    state: &State,
) {
    let reading = P::reading(work.problem().shape().dim_v);
    let (steps, prefetches) = (&Compiled(s, PhantomData::<P>), should_prefetch::<S, P>(work, tiles));
    let (rounds, read_as, adds_runs) = (P::ROUNDS, P::DTYPE, P::ADDS_RUNS);
    // The least number of rows whose loops over V prefetch, as those over K do from two on.
    let least = if S::FIRST_PASS_READS_ROWS { 2 } else { scratch::least_of_four::<S, P>() };
    let loops_prefetch = P::MAX_ROWS == 1 || work.count() >= least;
    let together = Together {
        work,
        tiles,
        rows,
        arrays,
        state,
        steps,
        rounds,
        read_as,
        reading,
        adds_runs,
        prefetches,
        loops_prefetch,
    };
    // SAFETY: I5: the contract is the same.
    unsafe { together.attend(s.core(), visible) };
}

/// Whether to prefetch a stream while K and V are multiplied. Not for one row: it takes longer to
/// read than to multiply, and the hardware prefetcher already follows it, unless rows of bytes are
/// multiplied faster than that follows.
fn should_prefetch<S: Isa, P: Gemv>(work: &SplitWork, tiles: TileSizes) -> bool {
    // Loops over rows that contain their scales prefetch on all instruction sets.
    if const { !S::PREFETCHES_STREAM } && P::reading(work.problem().shape().dim_v).scales_in_row > 0 {
        return bytes_read(work) > tiles.tuning.decode.prefetch_scales_above;
    }
    let streams = match work.count() {
        1 => S::PREFETCHES_STREAM && P::MAX_ROWS == 1,
        _ => S::STREAMS_SHARED_KEYS && P::MAX_ROWS > 1 || work.count() >= ROWS && S::PREFETCHES_STREAM,
    };
    streams && bytes_read(work) > tiles.prefetch_stream_above
}

/// Bytes of K and V that the call reads, if all sequences are like this one.
fn bytes_read(work: &SplitWork) -> usize {
    let shape = work.problem().shape();
    let heads = shape.queries[0].saturating_mul(shape.heads_kv);
    let keys = work.sequence().seen(&work.rows).len();
    let row = shape.row_bytes_kv().into_iter().fold(0usize, usize::saturating_add);
    row.saturating_mul(heads).saturating_mul(keys)
}
