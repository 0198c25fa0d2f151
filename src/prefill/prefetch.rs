//! Software prefetch of what follows a block of keys: the next block, or the first rows of the next
//! query tile. A few rows with each register tile, because a core tracks only some tens of misses
//! and stalls on more.

use crate::attend::blocks::first_block;
use crate::attend::prefetch_row;
use crate::attend::rows::{Rows, Source, key_rows, query_rows};
use crate::problem::{Problem, Sequence};
use crate::simd::Isa;
use crate::work::query_tiles::{QueryTile, TileCoord};
use std::ops::Range;

/// Rows that are still to be prefetched.
#[derive(Clone, Copy)]
struct Stream {
    rows: Rows,
    /// Bytes of a row.
    bytes: usize,
    left: usize,
    /// Rows in each step.
    each: usize,
}

impl Stream {
    /// Rows from the first one of a source on; none of them yet.
    #[inline(always)]
    fn of(source: &Source) -> Stream {
        Stream { rows: source.rows(), bytes: source.view.layout().row_bytes(), left: 0, each: 0 }
    }
}

/// No rows.
const NOTHING: Stream =
    Stream { rows: Rows { base: std::ptr::null(), stride: 0 }, bytes: 0, left: 0, each: 0 };

/// The rows of K, V and Q that are to be prefetched.
pub(crate) struct Prefetch([Stream; 3]);

impl Prefetch {
    /// What follows a block of keys of a query tile: the keys `next`, or, if there are none, the
    /// queries of the next query tile and its first `block` keys. To be prefetched in `steps`
    /// steps.
    #[inline(never)]
    pub(crate) fn new(part: &QueryTile, next: &Range<usize>, block: usize, steps: usize) -> Prefetch {
        let problem = part.problem();
        let mut prefetch = Prefetch([NOTHING; 3]);
        if !next.is_empty() {
            prefetch.keys(problem, part.sequence(), part.head(), next);
        } else if let Some(coord) = part.next() {
            let TileCoord { batch, head, ref rows } = *coord;
            let sequence = part.sequence().like(problem.sequence(batch));
            let keys = first_block(&sequence.seen(rows), block, 1);
            if !keys.is_empty() {
                prefetch.keys(problem, &sequence, head, &keys);
            }
            let q = query_rows(problem, &sequence, head, rows.start);
            // Rows of several heads do not follow one another at one distance.
            let left = if sequence.is_grouped() { 0 } else { rows.len() };
            prefetch.0[2] = Stream { left, ..Stream::of(&q) };
        }
        for stream in &mut prefetch.0 {
            stream.each = stream.left.div_ceil(steps.max(1));
        }
        prefetch
    }

    #[inline(always)]
    fn keys(&mut self, problem: &Problem, sequence: &Sequence, head: usize, keys: &Range<usize>) {
        if problem.shape().page.is_some() {
            // Pages are copied one run at a time, which the hardware prefetcher follows.
            return;
        }
        let head = problem.kv_head(head);
        for (view, stream) in [problem.k(), problem.v()].into_iter().zip(&mut self.0) {
            if view.layout().is_strided() {
                // What gathers rows prefetches the next ones.
                continue;
            }
            let source = key_rows(problem, view, sequence, head, keys.start);
            *stream = Stream { left: keys.len(), ..Stream::of(&source) };
        }
    }

    /// One step; nothing once all rows have been prefetched.
    #[inline(always)]
    pub(crate) fn step<S: Isa>(&mut self, s: S) {
        for stream in &mut self.0 {
            let now = stream.each.min(stream.left);
            for _ in 0..now {
                prefetch_row(s, stream.rows.base, stream.bytes);
                stream.rows = stream.rows.skip(1);
            }
            stream.left -= now;
        }
    }

    /// All remaining rows. Kept out of line, so that the code exists once.
    #[inline(never)]
    pub(crate) fn finish<S: Isa>(mut self, s: S) {
        for stream in &mut self.0 {
            stream.each = stream.left;
        }
        self.step(s);
    }
}
