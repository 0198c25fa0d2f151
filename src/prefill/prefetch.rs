//! Fetching what comes next while this block of keys is computed: the next block, or what the next part
//! begins with. A few rows with each register tile, because the machine takes only some tens of requests
//! at a time and stands still for more.

use crate::attend::blocks::first_block;
use crate::attend::prefetch_row;
use crate::attend::rows::{Rows, Source, key_rows, query_rows};
use crate::problem::{Problem, Sequence};
use crate::simd::Isa;
use crate::work::query_tiles::{Place, QueryTile};
use std::ops::Range;

/// Rows that are still to be asked for.
#[derive(Clone, Copy)]
struct Stream {
    rows: Rows,
    /// Bytes of a row.
    bytes: usize,
    left: usize,
    /// Rows at a time.
    each: usize,
}

impl Stream {
    /// None of these rows yet.
    #[inline(always)]
    fn of(source: &Source) -> Stream {
        Stream { rows: source.rows(), bytes: source.view.layout().row_bytes(), left: 0, each: 0 }
    }
}

/// Nothing.
const NOTHING: Stream =
    Stream { rows: Rows { base: std::ptr::null(), stride: 0 }, bytes: 0, left: 0, each: 0 };

/// What is to be fetched: of K, V and Q.
pub(crate) struct Prefetch([Stream; 3]);

impl Prefetch {
    /// What comes after a block of keys of `part`: the keys `next`, or if there are none the next part's
    /// first `block` keys and its queries. To be asked for in `steps` steps.
    #[inline(always)]
    pub(crate) fn new(part: &QueryTile, next: &Range<usize>, block: usize, steps: usize) -> Prefetch {
        let problem = part.problem();
        let mut ahead = Prefetch([NOTHING; 3]);
        if !next.is_empty() {
            ahead.keys(problem, part.sequence(), part.head(), next);
        } else if let Some(place) = part.next() {
            let Place { batch, head, ref rows } = *place;
            let sequence = problem.sequence(batch);
            let seen = sequence.seen_by(rows);
            let keys = first_block(&seen, block, 1);
            if !keys.is_empty() {
                ahead.keys(problem, &sequence, head, &keys);
            }
            let q = query_rows(problem, &sequence, head, rows.start);
            ahead.0[2] = Stream { left: rows.len(), ..Stream::of(&q) };
        }
        for stream in &mut ahead.0 {
            stream.each = stream.left.div_ceil(steps.max(1));
        }
        ahead
    }

    #[inline(always)]
    fn keys(&mut self, problem: &Problem, sequence: &Sequence, head: usize, keys: &Range<usize>) {
        if problem.shape().page.is_some() {
            // Pages are copied, run by run, which the machine foresees or nobody does.
            return;
        }
        let head = problem.kv_head(head);
        for (view, stream) in [problem.k(), problem.v()].into_iter().zip(&mut self.0) {
            let source = key_rows(problem, view, sequence, head, keys.start);
            *stream = Stream { left: keys.len(), ..Stream::of(&source) };
        }
    }

    /// One step; nothing once all rows are on their way.
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

    /// The rest at once.
    #[inline(always)]
    pub(crate) fn finish<S: Isa>(mut self, s: S) {
        for stream in &mut self.0 {
            stream.each = stream.left;
        }
        self.step(s);
    }
}
