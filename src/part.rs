//! A part: the rows of the output that one thread computes, and nobody else at the same time.
//!
//! Disjointness is a property of this file alone: a [`Part`] can only come from a [`Queue`], a
//! queue borrows its problem exclusively, and it hands out each index once.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::problem::Problem;

/// The pieces that a problem is cut into; sizes are at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiles {
    /// Query rows of a part.
    pub q: usize,
    /// Keys of a block.
    pub kv: usize,
    /// Whether K and V are copied, a block at a time, where they could be read in place: their
    /// rows lie so that they displace each other from the first-level cache.
    pub copy: bool,
}

/// Where a part lies: consecutive query rows of one head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Batch entry.
    pub batch: usize,
    /// Query head.
    pub head: usize,
    /// Query rows; never empty.
    pub rows: Range<usize>,
}

/// The right to write the output rows of one place.
pub struct Part<'p> {
    problem: &'p Problem<'p>,
    place: Place,
    next: Option<Place>,
}

impl<'p> Part<'p> {
    /// The problem that the part belongs to.
    pub fn problem(&self) -> &'p Problem<'p> {
        self.problem
    }

    /// Where it lies.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Its batch entry.
    pub fn batch(&self) -> usize {
        self.place.batch
    }

    /// Its query head.
    pub fn head(&self) -> usize {
        self.place.head
    }

    /// Its query rows; never empty.
    pub fn rows(&self) -> Range<usize> {
        self.place.rows.clone()
    }

    /// Where the part is that whoever has this one will probably get next.
    pub fn next(&self) -> Option<&Place> {
        self.next.as_ref()
    }
}

/// How many parts a problem of `[batch, heads, rows]` queries has, of at most `rows_per_part`.
pub fn count(queries: [usize; 3], rows_per_part: usize) -> usize {
    // Cannot overflow: there are no more parts than rows of Q, which an address space holds.
    queries[0] * queries[1] * queries[2].div_ceil(rows_per_part)
}

/// Hands out the parts of a problem, each once, from any thread.
pub struct Queue<'p> {
    problem: &'p Problem<'p>,
    rows_per_part: usize,
    threads: usize,
    count: usize,
    next: AtomicUsize,
}

impl<'p> Queue<'p> {
    /// All parts of `problem`, of at most `rows_per_part` (at least 1) query rows, for about this
    /// many threads.
    pub fn new(problem: &'p mut Problem<'_>, rows_per_part: usize, threads: usize) -> Queue<'p> {
        let problem: &'p Problem<'p> = problem;
        let count = count(problem.shape().queries, rows_per_part);
        Queue { problem, rows_per_part, threads, count, next: AtomicUsize::new(0) }
    }

    /// A part that nobody has had yet.
    pub fn take(&self) -> Option<Part<'p>> {
        // Relaxed: only uniqueness matters; the inputs were there before the threads were.
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        let place = self.place(index)?;
        let next = index.checked_add(self.threads).and_then(|index| self.place(index));
        Some(Part { problem: self.problem, place, next })
    }

    fn place(&self, index: usize) -> Option<Place> {
        if index >= self.count {
            return None;
        }
        let [_, heads, rows] = self.problem.shape().queries;
        if self.count == 1 {
            // Small calls notice the divisions.
            return Some(Place { batch: 0, head: 0, rows: 0..rows });
        }
        let tiles = rows.div_ceil(self.rows_per_part);
        // Last rows first: under a causal window they see the most keys, and the longest parts
        // must not be the ones that start last. Heads innermost would spread the threads over
        // all of K and V; tiles innermost keeps one head's K and V in cache.
        let tile = tiles - 1 - index % tiles;
        let start = tile * self.rows_per_part;
        Some(Place {
            batch: index / tiles / heads,
            head: index / tiles % heads,
            rows: start..rows.min(start + self.rows_per_part),
        })
    }
}
