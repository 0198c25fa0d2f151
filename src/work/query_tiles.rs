//! A part: the rows of the output that one thread computes, and nobody else at the same time.
//!
//! Disjointness is a property of this file alone: a [`QueryTile`] can only come from a [`TileQueue`], a
//! queue borrows its problem exclusively, and it hands out each index once. Where an output is written, `output`
//! says, to whoever shows that the rows are theirs.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::problem::{Problem, Sequence, Shape};

/// The pieces that a problem is cut into; sizes are at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileSizes {
    /// Query heads of a part that are computed together; 1 where there are many rows.
    pub heads: usize,
    /// Query rows of a part, of each head.
    pub q: usize,
    /// Keys of a block.
    pub kv: usize,
    /// Whether K, and V, go through scratch memory, a block at a time, instead of being read in place.
    pub staged: [bool; 2],
}

/// Which sequences have so rule query rows that they are not cut into parts, but computed in bands: see
/// [`crate::work::split_kv`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathRule {
    /// None of them.
    AlwaysPrefill,
    /// All of them.
    AlwaysDecode,
    /// Those that would leave most of vectors with this many lanes idle.
    ByRows(usize),
}

impl PathRule {
    /// Whether a sequence of this many query rows is one: not a matter of how they are cut into parts, so that
    /// the bits of a row are not, either.
    #[inline(always)]
    pub fn decodes(self, rows: usize) -> bool {
        match self {
            PathRule::AlwaysPrefill => false,
            PathRule::AlwaysDecode => true,
            // Measured on both instruction sets: a row takes as long with lanes of elements as 16/13 of a lane
            // of rows, and vectors of rows are paid for whole.
            PathRule::ByRows(lanes) => {
                let lanes = rows.checked_next_multiple_of(lanes).unwrap_or(usize::MAX);
                rows.saturating_mul(16) <= lanes.saturating_mul(13)
            }
        }
    }
}

/// Where a part lies: consecutive query rows of one head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of the sequence.
    pub batch: usize,
    /// Query head.
    pub head: usize,
    /// Query rows; never empty.
    pub rows: Range<usize>,
}

/// The right to write the output rows of one place.
pub struct QueryTile<'p> {
    problem: &'p Problem<'p>,
    place: Place,
    sequence: Sequence,
    next: Option<Place>,
}

impl<'p> QueryTile<'p> {
    /// The problem that the part belongs to.
    pub fn problem(&self) -> &'p Problem<'p> {
        self.problem
    }

    /// Where it lies.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The sequence that its rows belong to.
    pub fn sequence(&self) -> &Sequence {
        &self.sequence
    }

    /// Its query head.
    pub fn head(&self) -> usize {
        self.place.head
    }

    /// Its query rows; never empty.
    pub fn rows(&self) -> Range<usize> {
        self.place.rows.clone()
    }

    /// Where output row `row` of this part begins, the first of `rows` that are written.
    #[inline(always)]
    pub(crate) fn output(&self, row: usize, rows: usize) -> *mut u8 {
        output(self.problem, &self.sequence, [self.place.head, row], rows, &self.place.rows)
    }

    /// Where the log-sum-exp of such a row is, if it is wanted.
    #[inline(always)]
    pub(crate) fn lse(&self, row: usize) -> Option<*mut f32> {
        lse(self.problem, &self.sequence, [self.place.head, row], &self.place.rows)
    }

    /// Where the part is that whoever has this one will probably get next.
    pub fn next(&self) -> Option<&Place> {
        self.next.as_ref()
    }
}

/// Where a row of the output begins, and as many as `rows` from it on; `own` are those that the caller may write.
///
/// The one function that gives addresses to be written: in debug builds all of those rows are proved to be the
/// caller's, of the sequence, and within the tensor.
#[inline(always)]
pub(crate) fn output(
    problem: &Problem,
    sequence: &Sequence,
    [head, row]: [usize; 2],
    rows: usize,
    own: &Range<usize>,
) -> *mut u8 {
    let last = row + rows - 1;
    debug_assert!(
        own.contains(&row) && own.contains(&last),
        "rows {row} to {last} written by who has {own:?}"
    );
    debug_assert!(last < sequence.len_q, "row {last} of a sequence of {}", sequence.len_q);
    let [entry, at] = problem.query_at(sequence, row);
    // Within the tensor, as `row` says in debug builds of this one.
    debug_assert!(at + rows <= problem.o().layout().extent[2], "row {last} beyond the tensor");
    problem.o().row(entry, head, at)
}

/// The same of log-sum-exps, one row at a time.
#[inline(always)]
pub(crate) fn lse(
    problem: &Problem,
    sequence: &Sequence,
    [head, row]: [usize; 2],
    own: &Range<usize>,
) -> Option<*mut f32> {
    debug_assert!(own.contains(&row), "row {row} written by who has {own:?}");
    debug_assert!(row < sequence.len_q, "row {row} of a sequence of {}", sequence.len_q);
    let [entry, at] = problem.query_at(sequence, row);
    problem.lse().map(|lse| lse.row(entry, head, at).cast())
}

/// How many indices the parts of a problem have, of at most `rows` query rows each.
///
/// Of a ragged batch some indices stand for no part: sequence b begins at index `starts[b] / rows + b` of
/// each head, which leaves room for its rows wherever the division falls. So an index leads to its place
/// by a search among the starts, and nobody has to keep a list.
pub fn count(shape: &Shape, rows: usize) -> usize {
    let [batch, heads, len] = shape.queries;
    match shape.ragged {
        // Without rows there is nothing that bounds the others.
        _ if len == 0 => 0,
        Some(0) => 0,
        // Cannot overflow: there are no more parts than rows of Q, which an address space holds.
        None => batch * heads * len.div_ceil(rows),
        // Nor can this where there is memory for so many rows and starts.
        Some(total) => heads.saturating_mul(total / rows + batch),
    }
}

/// Hands out the parts of a problem, each once, from any thread.
pub struct TileQueue<'p> {
    problem: &'p Problem<'p>,
    rows: usize,
    rule: PathRule,
    count: usize,
    /// The next index, and how far apart indices are.
    next: AtomicUsize,
    step: usize,
    /// How far the index is that whoever takes one will probably get next.
    ahead: usize,
}

impl<'p> TileQueue<'p> {
    /// All parts of `problem`, of at most `rows` (at least 1) query rows, for about this many threads.
    pub fn new(problem: &'p mut Problem<'_>, rows: usize, threads: usize) -> TileQueue<'p> {
        TileQueue::of(problem, rows, PathRule::AlwaysPrefill, [0, 1], threads)
    }

    /// Parts `first`, `first + step`, … of those with more than rule rows.
    pub(crate) fn of(
        problem: &'p Problem<'p>,
        rows: usize,
        rule: PathRule,
        [first, step]: [usize; 2],
        ahead: usize,
    ) -> TileQueue<'p> {
        let count = if rule == PathRule::AlwaysDecode { 0 } else { count(problem.shape(), rows) };
        TileQueue { problem, rows, rule, count, next: AtomicUsize::new(first), step, ahead }
    }

    /// A part that nobody has had yet.
    // Inlined, because a part is large enough to be moved by a call of memmove, which small calls notice.
    #[inline(always)]
    pub fn take(&self) -> Option<QueryTile<'p>> {
        loop {
            // Relaxed: only uniqueness matters; the inputs were there before the threads were.
            let index = self.next.fetch_add(self.step, Ordering::Relaxed);
            if index >= self.count {
                return None;
            }
            if let Some(place) = self.place(index) {
                let next = index.checked_add(self.ahead).and_then(|index| self.place(index));
                let sequence = self.problem.sequence(place.batch);
                return Some(QueryTile { problem: self.problem, place, sequence, next });
            }
        }
    }

    /// Whether every part has been taken.
    pub fn is_drained(&self) -> bool {
        self.next.load(Ordering::Relaxed) >= self.count
    }

    #[inline(always)]
    fn place(&self, index: usize) -> Option<Place> {
        if index >= self.count {
            return None;
        }
        let [_, heads, len] = self.problem.shape().queries;
        if self.count == 1 && self.problem.starts_q().is_none() {
            // Small calls notice the divisions.
            return (!self.rule.decodes(len)).then_some(Place { batch: 0, head: 0, rows: 0..len });
        }
        let (batch, index, tiles, len) = match self.problem.starts_q() {
            None => {
                let tiles = len.div_ceil(self.rows);
                (index / (tiles * heads), index % (tiles * heads), tiles, len)
            }
            Some(starts) => {
                let start = |b| usize::try_from(starts.get(b)).unwrap_or(0);
                let first = |b| start(b) / self.rows + b;
                let (mut batch, mut end) = (0, starts.len() - 1);
                while end - batch > 1 {
                    let middle = (batch + end) / 2;
                    *(if first(middle) * heads <= index { &mut batch } else { &mut end }) = middle;
                }
                let begin = first(batch);
                (
                    batch,
                    index.checked_sub(begin * heads)?,
                    first(batch + 1) - begin,
                    start(batch + 1) - start(batch),
                )
            }
        };
        // Last rows first: under a causal window they see the most keys, and the longest parts
        // must not be the ones that start last. Heads innermost would spread the threads over
        // all of K and V; tiles innermost keeps one head's K and V in cache.
        if self.rule.decodes(len) {
            return None;
        }
        let (head, tile) = (index / tiles, tiles - 1 - index % tiles);
        let start = tile * self.rows;
        (head < heads && start < len).then(|| Place { batch, head, rows: start..len.min(start + self.rows) })
    }
}
