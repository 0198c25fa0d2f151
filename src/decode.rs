//! One part, few queries: lanes are elements of a head.
//!
//! With fewer query rows than a vector has lanes, [`crate::prefill`] would leave most of them idle.
//! Here a vector holds neighbouring elements of one row of Q, K, V or the output, or the scores of
//! one row for neighbouring keys:
//!
//! ```text
//! pack    the queries: scaled, in whole vectors                              decode
//! for each block of keys that some row sees
//!   stage   K and V, if they cannot be read where they lie                   family
//!   scores, softmax, accumulate: each for all rows of the part               decode
//! epilogue                                                                   decode
//! ```
//!
//! What a row does not see is skipped, not masked: windows are ranges of keys, so each row takes its
//! own range of a block.
//!
//! Blocks start at multiples of the block size from key 0, and a score's lane is its key's place in
//! the block: a row's result does not depend on the rows that it shares a part with.

pub(crate) mod accumulate;
pub(crate) mod epilogue;
pub(crate) mod scores;
pub(crate) mod softmax;

use std::ops::Range;

use crate::attend::accumulate::first_not_finite;
use crate::attend::epilogue::blank;
use crate::attend::logits::Logits;
use crate::attend::mask::{clip, first_block, next_block, seen_by};
use crate::attend::{query_rows, stage};
use crate::family::f32::F32;
use crate::family::{Rows, staged_bytes};
use crate::part::{Part, Tiles};
use crate::problem::{Sequence, Shape};
use crate::simd::{Body, Isa, MAX_LANES};
use crate::workspace::{Scratch, array_bytes};

/// The number of each lane.
const LANE: [i32; MAX_LANES] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Scratch arrays of a part, one line a query row.
struct Lines {
    /// Packed queries, and the values from one line to the next; likewise below.
    queries: *mut f32,
    queries_step: usize,
    /// Scores of a block, later its probabilities, from the block's first key on.
    scores: *mut f32,
    scores_step: usize,
    /// Not normalised.
    output: *mut f32,
    output_step: usize,
    /// One vector a row: each lane sums the probabilities of its own keys.
    sums: *mut f32,
    /// One value a row: -inf before its first visible key.
    references: *mut f32,
}

/// Rows that are computed at a time, at most: three are taken as four, one of them for nothing, which
/// costs less than two and one.
pub(crate) const ROWS: usize = 4;

/// Lines of a part of `rows` rows: not fewer than those of a smaller part.
#[inline(always)]
fn lines_of(rows: usize) -> usize {
    // Saturates where no machine has the memory: the plan then finds no room.
    if rows % ROWS == ROWS - 1 { rows.saturating_add(1) } else { rows }
}

/// Values from one line to the next of an array with lines of `n` values: whole vectors.
#[inline(always)]
fn step<S: Isa>(n: usize) -> usize {
    // Saturates where no machine has the memory: the plan then finds no room.
    n.checked_next_multiple_of(S::LANES).unwrap_or(usize::MAX)
}

/// Bytes of scratch that [`Decode`] takes for one part; `None` if no machine has as many.
pub(crate) fn scratch_bytes<S: Isa>(shape: &Shape, tiles: Tiles) -> Option<usize> {
    let count = lines_of(tiles.q);
    let lines = |values: usize, size| array_bytes(step::<S>(values).checked_mul(count)?, size);
    let arrays = [
        lines(shape.dim_qk, 4),
        lines(tiles.kv, 4),
        lines(shape.dim_v, 4),
        lines(S::LANES, 4),
        array_bytes(count, 4),
        array_bytes(staged_bytes::<F32>(shape, tiles)[0], 1),
        array_bytes(staged_bytes::<F32>(shape, tiles)[1], 1),
    ];
    arrays.into_iter().try_fold(0usize, |sum, bytes| sum.checked_add(bytes?))
}

/// The computation of one part, to be entered with an instruction set.
pub(crate) struct Decode<'a, 'p> {
    part: &'a Part<'p>,
    tiles: Tiles,
    scratch: Scratch<'a>,
}

impl<'a, 'p> Decode<'a, 'p> {
    pub(crate) fn new(part: &'a Part<'p>, tiles: Tiles, scratch: Scratch<'a>) -> Self {
        Decode { part, tiles, scratch }
    }
}

impl Body for Decode<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Decode { part, tiles, mut scratch } = self;
        let (problem, sequence, rows) = (part.problem(), part.sequence(), part.rows());
        assert!(rows.len() <= tiles.q);

        let Shape { dim_qk, dim_v, .. } = *problem.shape();
        let (queries_step, scores_step) = (step::<S>(dim_qk), step::<S>(tiles.kv));
        let output_step = step::<S>(dim_v);
        let count = lines_of(tiles.q);
        let lines = Lines {
            queries: scratch.take(count * queries_step),
            queries_step,
            scores: scratch.take(count * scores_step),
            scores_step,
            output: scratch.take(count * output_step),
            output_step,
            sums: scratch.take(count * S::LANES),
            references: scratch.take(count),
        };
        let staged = staged_bytes::<F32>(problem.shape(), tiles);
        let [staged_k, staged_v] = staged.map(|bytes| scratch.take::<u8>(bytes));

        // SAFETY: views and part vouch for the rows of Q, K, V and O; the arrays have the sizes
        // that the callees ask for.
        unsafe {
            let q = query_rows(problem, sequence, part.head(), rows.start);
            for r in 0..lines_of(rows.len()) {
                let query = lines.queries.add(r * queries_step);
                // Lines without a row repeat the last row: their results go nowhere.
                let row = q.skip(r.min(rows.len() - 1));
                scores::pack(s, row, dim_qk, problem.score_factor(), query);
                lines.references.add(r).write(f32::NEG_INFINITY);
                s.store(lines.sums.add(r * S::LANES), s.splat(0.0));
            }

            let kv_head = problem.kv_head(part.head());
            let seen = seen_by(sequence, &rows);
            let mut keys = first_block(&seen, tiles.kv, 1);
            let mut fresh = true;
            while !keys.is_empty() {
                let [any, _] = problem.any_and_all(sequence, part.head(), &rows, &keys);
                if !any {
                    keys = next_block(&seen, &keys, tiles.kv);
                    continue;
                }
                let (k, _) = stage::rows::<S, F32, { stage::K }>(
                    s,
                    problem,
                    sequence,
                    kv_head,
                    &keys,
                    tiles.staged,
                    staged_k,
                );
                let (v, _) = stage::rows::<S, F32, { stage::V }>(
                    s,
                    problem,
                    sequence,
                    kv_head,
                    &keys,
                    tiles.staged,
                    staged_v,
                );
                let (start, next) = (keys.start - keys.start % tiles.kv, next_block(&seen, &keys, tiles.kv));
                visit(s, part, &Block { start, keys, k, v, fresh }, &lines);
                fresh = false;
                keys = next;
            }
            epilogue::epilogue(s, part, &lines);
        }
    }
}

/// A block of keys.
struct Block {
    /// Where it starts: scores are counted from here.
    start: usize,
    /// Those that some row sees.
    keys: Range<usize>,
    /// Their rows, staged.
    k: Rows,
    v: Rows,
    /// Whether there was none before: what the lines' output holds does not matter.
    fresh: bool,
}

impl Block {
    /// What a row sees of it, counted from its start.
    #[inline(always)]
    fn seen_by(&self, sequence: &Sequence, row: usize) -> Range<usize> {
        let keys = clip(sequence.visible(row), &self.keys);
        keys.start - self.start..keys.end - self.start
    }
}

/// All rows of a part meet one block of keys.
///
/// # Safety
/// `lines` are the part's arrays, with the queries packed, and the rest as previous blocks left it.
#[inline(always)]
unsafe fn visit<S: Isa>(s: S, part: &Part, block: &Block, lines: &Lines) {
    let (problem, sequence, rows) = (part.problem(), part.sequence(), part.rows());
    let Shape { dim_qk, dim_v, .. } = *problem.shape();
    // SAFETY: keys and rows are those of block and part; see the steps themselves.
    unsafe {
        let keys = block.keys.start - block.start..block.keys.end - block.start;
        scores::scores(s, lines, rows.len(), &keys, block.k, dim_qk);
        // Windows move with the row, so the first and the last row bound all others.
        let first = block.seen_by(sequence, rows.start);
        let last = block.seen_by(sequence, rows.end - 1);
        let is_whole = first == keys && last == keys;
        let logits = Logits::of(part, &rows, &block.keys);
        for r in 0..rows.len() {
            let seen = if is_whole { keys.clone() } else { block.seen_by(sequence, rows.start + r) };
            if !seen.is_empty() {
                if let Some(logits) = &logits {
                    let scores = lines.scores.add(r * lines.scores_step);
                    logits.change_row(s, rows.start + r, block.start, &seen, scores);
                }
                softmax::softmax(s, lines, r, &seen);
            }
        }
        let fresh = block.fresh && is_whole;
        if block.fresh && !is_whole {
            blank(lines.output, lines_of(rows.len()) * lines.output_step);
        }
        // A value that is not finite must not meet the probability 0 of a key that is hidden.
        if problem.logits().hides() && first_not_finite(block.v, 0..keys.len(), dim_v).is_some() {
            if block.fresh && is_whole {
                blank(lines.output, lines_of(rows.len()) * lines.output_step);
            }
            for r in 0..rows.len() {
                for key in block.seen_by(sequence, rows.start + r) {
                    if problem.sees(sequence, part.head(), rows.start + r, block.start + key) {
                        let v = block.v.skip(key - keys.start);
                        accumulate::accumulate(s, lines, r..r + 1, &(key..key + 1), v, dim_v, false);
                    }
                }
            }
            return;
        }
        // Keys that all rows see are taken for several rows at a time, those before and behind row by row:
        // a value that a row does not see must not reach it, not even multiplied by 0.
        let all = last.start..first.end.max(last.start);
        for third in 0..3 {
            let times = match third {
                1 => 1,
                _ if is_whole => 0,
                _ => rows.len(),
            };
            for r in 0..times {
                let (rows, keys_here) = if third == 1 {
                    (0..rows.len(), all.clone())
                } else {
                    let seen = block.seen_by(sequence, rows.start + r);
                    let before = seen.start..all.start.min(seen.end);
                    let behind = all.end.max(seen.start)..seen.end;
                    (r..r + 1, if third == 0 { before } else { behind })
                };
                if !keys_here.is_empty() {
                    let v = block.v.skip(keys_here.start - keys.start);
                    accumulate::accumulate(s, lines, rows, &keys_here, v, dim_v, fresh);
                }
            }
        }
    }
}
