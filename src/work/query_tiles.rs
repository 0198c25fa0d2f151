//! Query tiles: the work items of prefill. One thread computes the output rows of a tile, and no
//! other thread writes them.
//!
//! Disjointness is a property of this file and of [`super::split_kv`]: a [`QueryTile`] can only
//! come from a [`TileQueue`] or from the work of a split, a queue borrows its problem exclusively,
//! and it hands out each index once.
//! [`output`], [`lse`] and [`weights`] alone give addresses to write to, and check that the rows
//! are the caller's.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::attend::seen::Hulls;
use crate::problem::{Problem, SeenKeys, Sequence, Shape};
use crate::tuning::{SplitLimits, Tuning};

/// Sizes of the work items of a path, all at least 1, and how they are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileSizes {
    /// Query heads that are computed together: those of a kv head, or some of them.
    pub heads: usize,
    /// Kv heads whose keys decode goes through together, some keys at a time: with more than one,
    /// `heads` are all query heads of each.
    pub kv_heads: usize,
    /// Query rows of each head; in prefill, those of all these heads together.
    pub q: usize,
    /// Keys of a block.
    pub kv: usize,
    /// Whether K, and V, go through scratch memory, a block at a time, instead of being read in
    /// place.
    pub staged: [bool; 2],
    /// How the keys are cut into splits, whose partial states are combined; not at all without it.
    pub splits: Option<SplitLimits>,
    /// Bytes of K and V of a call from which on decode prefetches one of them while the other one
    /// is multiplied.
    pub prefetch_stream_above: usize,
    /// The measured numbers of the machine.
    pub tuning: &'static Tuning,
}

impl TileSizes {
    /// The sizes of a tile with the query rows of all its heads together, for prefill, where these
    /// are sizes with the rows of each head.
    pub fn together(self) -> TileSizes {
        // Saturates where no machine has the memory.
        TileSizes { q: self.q.saturating_mul(self.heads), ..self }
    }

    /// The sizes for single keys, which do not lie at equal distances.
    pub(crate) fn of_columns(self) -> TileSizes {
        TileSizes { staged: [true; 2], ..self }
    }

    /// Whether there is scratch memory that K, and V, can go through.
    pub(crate) fn has_staging(&self, shape: &Shape) -> [bool; 2] {
        if shape.columns.is_some() { [true; 2] } else { self.staged }
    }
}

/// How a sequence is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By prefill, whose lanes are query rows: query tiles, each over all keys.
    Tiles,
    /// By prefill, but over splits of the keys (see [`crate::work::split_kv`]): there are too few
    /// query rows to give each thread a tile.
    SplitTiles,
    /// By decode, whose lanes are elements of a head: query rows over splits of the keys.
    Decode,
}

/// Which way a sequence takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WayRule {
    /// All sequences take the same.
    Always(Way),
    /// The number of query rows decides, and where these are few that of keys.
    ByRows {
        /// Query rows up to which the keys of tiles are split; 0 where no sequence has as many keys
        /// as two splits.
        split_rows: usize,
        /// Sequences whose query rows leave too many lanes idle take decode; without it, none does.
        decode: Option<DecodeRule>,
    },
}

/// Which query rows leave too many lanes of prefill's vectors idle.
///
/// Prefill takes as long for a vector as for one with fewer rows, and that in proportion to the
/// keys; decode takes as long for each row as for its keys and `row_keys` more. So the rows from
/// which on prefill is faster are those with very many keys, times keys / (keys + `row_keys`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeRule {
    /// Lanes of a vector.
    pub lanes: usize,
    /// Of one to four vectors, in 16ths of the lanes of one, how many are too few where there are
    /// very many keys.
    pub too_few: [usize; 4],
    /// The keys that take decode as long as what it does once for a row.
    pub row_keys: usize,
    /// Query heads that can share vectors of lanes ...
    pub heads: usize,
    /// ... and do where each fills more than so many 16ths of the lanes of one.
    pub of_head: usize,
}

impl WayRule {
    /// The way of a sequence of `rows` query rows and so many keys in use. Tile sizes have no say
    /// in it, so that the bits of a row do not depend on them.
    #[inline(always)]
    pub fn way(self, rows: usize, keys: impl FnOnce() -> usize) -> Way {
        match self {
            WayRule::Always(way) => way,
            WayRule::ByRows { decode: Some(rule), .. } if rule.takes(rows, keys) => Way::Decode,
            WayRule::ByRows { split_rows, .. } if rows <= split_rows => Way::SplitTiles,
            WayRule::ByRows { .. } => Way::Tiles,
        }
    }
}

impl DecodeRule {
    /// 16ths of the lanes of a vector that are too few with any number of keys: a call with few
    /// keys costs little on either path, and decode, step by step, has one way.
    const ALWAYS: usize = 8;

    /// Whether a sequence of `rows` query rows takes decode.
    #[inline(always)]
    fn takes(self, rows: usize, keys: impl FnOnce() -> usize) -> bool {
        let DecodeRule { lanes, too_few, row_keys, heads, of_head } = self;
        let fills_at_most = |rows: usize, part: usize| rows.saturating_mul(16) <= part * lanes;
        let rows = if fills_at_most(rows, of_head) { rows } else { rows.saturating_mul(heads) };
        let vectors = rows.div_ceil(lanes);
        let Some(&part) = too_few.get(vectors.max(1) - 1) else { return false };
        if row_keys == 0 || fills_at_most(rows, part.min(DecodeRule::ALWAYS)) {
            return fills_at_most(rows, part);
        }
        // 32 bits of each: more keys than these are very many.
        let keys = keys().min(u32::MAX as usize);
        let [rows, keys, row_keys] = [rows, keys, row_keys].map(|n| n as u64);
        rows * 16 * (keys + row_keys) <= (part * lanes) as u64 * keys
    }
}

/// Where a tile lies: consecutive query rows of one head, or of several that are taken as one: see
/// [`Sequence::grouped`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TileCoord {
    /// Number of the sequence.
    pub batch: usize,
    /// Query head, the first of them.
    pub head: usize,
    /// Query rows; never empty.
    pub rows: Range<usize>,
}

/// A query tile, and with it the right to write its output rows.
pub struct QueryTile<'p> {
    problem: &'p Problem<'p>,
    coord: TileCoord,
    sequence: Sequence<'p>,
    next: Option<TileCoord>,
    /// The keys between those that some row sees, or some more.
    seen: SeenKeys,
    /// Whether it is computed over splits of its keys.
    is_split: bool,
}

impl<'p> QueryTile<'p> {
    /// The query rows of a group of heads, whose rows are counted as [`Sequence::grouped`] says,
    /// for who has splits of their keys.
    pub(super) fn of_group(
        problem: &'p Problem<'p>,
        sequence: Sequence<'p>,
        coord: TileCoord,
        next: Option<TileCoord>,
        seen: SeenKeys,
    ) -> QueryTile<'p> {
        QueryTile { problem, coord, sequence, next, seen, is_split: true }
    }

    /// The tile with the single keys of its head, if there is a list, in place of all keys.
    pub(crate) fn of_columns(&self) -> Option<QueryTile<'p>> {
        let columns = self.problem.columns(&self.sequence, self.coord.head)?;
        let sequence = self.sequence.of_columns(columns);
        let (coord, seen) = (self.coord.clone(), sequence.seen(&self.coord.rows));
        Some(QueryTile { coord, sequence, next: None, seen, ..*self })
    }

    /// The problem that the tile belongs to.
    pub fn problem(&self) -> &'p Problem<'p> {
        self.problem
    }

    /// Where the tile lies.
    pub fn coord(&self) -> &TileCoord {
        &self.coord
    }

    /// The sequence that its rows belong to.
    pub fn sequence(&self) -> &Sequence<'p> {
        &self.sequence
    }

    /// Its query head, or the first of them.
    pub fn head(&self) -> usize {
        self.coord.head
    }

    /// Head and row of each of its query rows, in order.
    pub fn lines(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.rows().map(|row| self.sequence.line(self.head(), row).into())
    }

    /// Its query rows; never empty. Those of several heads are counted as
    /// [`Sequence::grouped`] says.
    pub fn rows(&self) -> Range<usize> {
        self.coord.rows.clone()
    }

    /// The keys between those that some of its rows sees, or some more.
    pub fn seen(&self) -> &SeenKeys {
        &self.seen
    }

    /// Leaves out of [`QueryTile::seen`] what masks hide at either end, if it is more than `block`
    /// keys: of one block, the look at it tells. Kept out of line: few problems have masks.
    #[inline(never)]
    pub(crate) fn narrow(&mut self, hulls: &mut Option<Hulls>, block: usize) {
        if self.seen.keys.len() > block {
            let hulls = hulls.get_or_insert_with(Hulls::new);
            let head = self.coord.head;
            let keys = self.seen.keys.clone();
            self.seen.keys =
                hulls.of(self.problem, &self.sequence, &(head..head + 1), &self.coord.rows, &keys);
        }
    }

    /// Where output row `row` of this tile begins, the first of `rows` that are written.
    #[inline(always)]
    pub(crate) fn output(&self, row: usize, rows: usize) -> *mut u8 {
        output(self.problem, &self.sequence, [self.coord.head, row], rows, &self.coord.rows)
    }

    /// Where the log-sum-exp of output row `row` is written, if it is wanted.
    #[inline(always)]
    pub(crate) fn lse(&self, row: usize) -> Option<*mut f32> {
        lse(self.problem, &self.sequence, [self.coord.head, row], &self.coord.rows)
    }

    /// The keys of some of its rows whose scores have been written to the output of probabilities,
    /// once all keys have been seen: all that any of these rows sees.
    pub(crate) fn weighed(&self, rows: &Range<usize>) -> SeenKeys {
        match self.is_split {
            true => self.sequence.seen(&(0..self.sequence.len_q)),
            false => SeenKeys { keys: self.sequence.seen_by(rows), gap: 0..0 },
        }
    }

    /// Where the probabilities of output row `row` are written, if they are wanted.
    pub(crate) fn weights(&self, row: usize) -> Option<*mut f32> {
        weights(self.problem, &self.sequence, [self.coord.head, row], &self.coord.rows)
    }

    /// The tile that the owner of this one will probably get next, for prefetching.
    pub fn next(&self) -> Option<&TileCoord> {
        self.next.as_ref()
    }
}

/// Where output row `row` begins, the first of `rows` that are written; `own` are the rows that the
/// caller may write.
///
/// No other function gives addresses of output rows to write to. Debug builds check that all these
/// rows are the caller's, belong to the sequence, and lie within the tensor.
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
        "rows {row} to {last} written by the owner of {own:?}"
    );
    debug_assert!(last < sequence.len_q, "row {last} of a sequence of {}", sequence.len_q);
    let [entry, head, at] = problem.line_at(sequence, head, row);
    debug_assert!(rows == 1 || !sequence.is_grouped(), "rows of several heads do not follow one another");
    // `row` checks the first of them in debug builds.
    debug_assert!(at + rows <= problem.o().layout().extent[2], "row {last} beyond the tensor");
    problem.o().row(entry, head, at)
}

/// Where the log-sum-exp of row `row` is written, if it is wanted; see [`output`].
#[inline(always)]
pub(crate) fn lse(
    problem: &Problem,
    sequence: &Sequence,
    [head, row]: [usize; 2],
    own: &Range<usize>,
) -> Option<*mut f32> {
    check_owner(sequence, row, own);
    let [entry, head, at] = problem.line_at(sequence, head, row);
    problem.lse().map(|lse| lse.row(entry, head, at).cast())
}

/// Where the probabilities of row `row` are written, if they are wanted; see [`output`]. Kept out
/// of line: few problems want any.
#[inline(never)]
pub(crate) fn weights(
    problem: &Problem,
    sequence: &Sequence,
    [head, row]: [usize; 2],
    own: &Range<usize>,
) -> Option<*mut f32> {
    check_owner(sequence, row, own);
    let weights = problem.weights()?;
    let [head, row] = sequence.line(head, row);
    let (head, row) = (weights.head(head)?, weights.row(sequence, row)?);
    Some(weights.view.row(sequence.batch, head, row).cast())
}

/// Debug builds check that a row is the caller's, and belongs to the sequence.
#[inline(always)]
fn check_owner(sequence: &Sequence, row: usize, own: &Range<usize>) {
    debug_assert!(own.contains(&row), "row {row} written by the owner of {own:?}");
    debug_assert!(row < sequence.len_q, "row {row} of a sequence of {}", sequence.len_q);
}

/// How many indices the tiles of a problem have, of at most `rows` query rows each, of `group`
/// neighbouring heads together.
///
/// In a ragged batch some indices have no tile: sequence b begins at index `starts[b] * group /
/// rows + b` of each group of heads, which leaves enough room wherever the division falls. So a
/// search among the starts leads from an index to its tile, without a list of tiles.
pub fn count(shape: &Shape, group: usize, rows: usize) -> usize {
    let [batch, heads, len] = shape.queries;
    let heads = heads / group;
    match shape.ragged {
        // Without rows, nothing bounds the other extents; without sequences, nothing has the rows.
        _ if len == 0 || batch == 0 => 0,
        Some(0) => 0,
        // Cannot overflow: there are no more tiles than rows of Q, which an address space holds.
        None => batch * heads * (len * group).div_ceil(rows),
        // Saturates only for rows and starts that no memory holds.
        Some(total) => heads.saturating_mul(total.saturating_mul(group) / rows + batch),
    }
}

/// Hands out the query tiles of a problem, each once, to any thread.
pub struct TileQueue<'p> {
    problem: &'p Problem<'p>,
    /// Neighbouring heads whose rows are taken as those of one.
    group: usize,
    rows: usize,
    rule: WayRule,
    count: usize,
    /// The next index, and the distance between indices.
    next: AtomicUsize,
    step: usize,
    /// The distance from an index to the one that the same thread will probably get next.
    lookahead: usize,
}

impl<'p> TileQueue<'p> {
    /// All tiles of `problem`, of at most `rows` (at least 1) query rows, for about this many
    /// threads.
    pub fn new(problem: &'p mut Problem<'_>, rows: usize, threads: usize) -> TileQueue<'p> {
        TileQueue::of(problem, [1, rows], WayRule::Always(Way::Tiles), [0, 1], threads)
    }

    /// Tiles `first`, `first + step`, … of the sequences that are computed in tiles over all keys:
    /// at most `rows` query rows of `group` heads together.
    pub(crate) fn of(
        problem: &'p Problem<'p>,
        [group, rows]: [usize; 2],
        rule: WayRule,
        [first, step]: [usize; 2],
        lookahead: usize,
    ) -> TileQueue<'p> {
        let is_empty = matches!(rule, WayRule::Always(Way::SplitTiles | Way::Decode));
        let count = if is_empty { 0 } else { count(problem.shape(), group, rows) };
        TileQueue { problem, group, rows, rule, count, next: AtomicUsize::new(first), step, lookahead }
    }

    /// A tile that has not been taken yet.
    // Inlined: a tile is large enough to be moved by a call of memmove, which shows in small
    // problems.
    #[inline(always)]
    pub fn take(&self) -> Option<QueryTile<'p>> {
        loop {
            // Relaxed: only uniqueness matters; the inputs were there before the threads were.
            let index = self.next.fetch_add(self.step, Ordering::Relaxed);
            if index >= self.count {
                return None;
            }
            if let Some(coord) = self.coord(index) {
                let next = index.checked_add(self.lookahead).and_then(|index| self.coord(index));
                let sequence = self.problem.sequence(coord.batch).grouped(self.group);
                let seen = sequence.seen(&coord.rows);
                let problem = self.problem;
                return Some(QueryTile { problem, coord, sequence, next, seen, is_split: false });
            }
        }
    }

    /// Whether every tile has been taken.
    pub fn is_drained(&self) -> bool {
        self.next.load(Ordering::Relaxed) >= self.count
    }

    #[inline(always)]
    fn coord(&self, index: usize) -> Option<TileCoord> {
        if index >= self.count {
            return None;
        }
        let [_, heads, len] = self.problem.shape().queries;
        let group = self.group;
        if self.count == 1 && self.problem.starts_q().is_none() {
            // Avoids the divisions below, which show in small problems.
            let rows = 0..len * group;
            let way = self.rule.way(len, || self.problem.keys_of(0));
            return (way == Way::Tiles).then_some(TileCoord { batch: 0, head: 0, rows });
        }
        let heads = if group == 1 { heads } else { heads / group };
        let (batch, index, tiles, len) = match self.problem.starts_q() {
            None => {
                let tiles = (len * group).div_ceil(self.rows);
                (index / (tiles * heads), index % (tiles * heads), tiles, len)
            }
            Some(starts) => {
                let start = |b| usize::try_from(starts.get(b)).unwrap_or(0);
                let first = |b| start(b) * group / self.rows + b;
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
        if self.rule.way(len, || self.problem.keys_of(batch)) != Way::Tiles {
            return None;
        }
        // Last rows first: under a causal window they see the most keys, and the longest tiles must
        // not be the last to start. Tiles innermost keeps one head's K and V in cache; heads
        // innermost would spread the threads over all of K and V.
        let (head, tile) = (index / tiles, tiles - 1 - index % tiles);
        let (start, len) = (tile * self.rows, len * group);
        let rows = || start..len.min(start + self.rows);
        (head < heads && start < len).then(|| TileCoord { batch, head: head * group, rows: rows() })
    }
}
