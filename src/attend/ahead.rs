//! Fetching what comes next while this block of keys is computed: the next block, or what the next part
//! begins with. A few rows with each register tile, because the machine takes only some tens of requests
//! at a time and stands still for more.

use super::mask::{first_block, seen_by};
use super::{fetch, key_rows, query_rows};
use crate::dtype::Rows;
use crate::part::{Part, Place};
use crate::problem::{Problem, Sequence, Shape};
use crate::simd::Isa;
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

/// Nothing.
const NOTHING: Stream =
    Stream { rows: Rows { base: std::ptr::null(), stride: 0 }, bytes: 0, left: 0, each: 0 };

/// What is to be fetched: of K, V and Q.
pub(crate) struct Ahead([Stream; 3]);

impl Ahead {
    /// What comes after a block of keys of `part`: the keys `next`, or if there are none the next part's
    /// first `block` keys and its queries. To be asked for in `steps` steps.
    #[inline(always)]
    pub(crate) fn new(part: &Part, next: &Range<usize>, block: usize, steps: usize) -> Ahead {
        let problem = part.problem();
        let mut ahead = Ahead([NOTHING; 3]);
        if !next.is_empty() {
            ahead.keys(problem, part.sequence(), part.head(), next);
        } else if let Some(place) = part.next() {
            let Place { batch, head, ref rows } = *place;
            let sequence = problem.sequence(batch);
            let seen = seen_by(&sequence, rows);
            let keys = first_block(&seen, block);
            if !keys.is_empty() {
                ahead.keys(problem, &sequence, head, &keys);
            }
            let Shape { dtype, dim_qk, .. } = *problem.shape();
            let q = query_rows(problem, &sequence, head, rows.start);
            ahead.0[2] = Stream { rows: q, bytes: dim_qk * dtype.size(), left: rows.len(), each: 0 };
        }
        for stream in &mut ahead.0 {
            stream.each = stream.left.div_ceil(steps.max(1));
        }
        ahead
    }

    #[inline(always)]
    fn keys(&mut self, problem: &Problem, sequence: &Sequence, head: usize, keys: &Range<usize>) {
        let Shape { dtype, dim_qk, dim_v, paged, .. } = *problem.shape();
        if paged {
            // Pages are copied, run by run, which the machine foresees or nobody does.
            return;
        }
        let head = problem.kv_head(head);
        for (i, (view, dim)) in [(problem.k(), dim_qk), (problem.v(), dim_v)].into_iter().enumerate() {
            let rows = key_rows(problem, view, sequence, head, keys.start);
            self.0[i] = Stream { rows, bytes: dim * dtype.size(), left: keys.len(), each: 0 };
        }
    }

    /// One step; nothing once all rows are on their way.
    #[inline(always)]
    pub(crate) fn step<S: Isa>(&mut self, s: S) {
        for stream in &mut self.0 {
            let now = stream.each.min(stream.left);
            for _ in 0..now {
                fetch(s, stream.rows.base, stream.bytes);
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
