//! Few query rows and many keys: which rows are computed together, and which of their keys one
//! thread takes.
//!
//! A *GQA group* is the query rows that one pass over K and V serves: those of all query heads of a
//! kv head, or of as many as [`group_size`] allows; or those of several kv heads whose rows lie
//! side by side, which decode takes in turns (`decode::together`). Decode computes it, or prefill,
//! which takes its rows as those of a query tile. Its keys are cut into *splits*, whose size only
//! the sequence and the block size decide. Each split gives a partial state, and the states are
//! combined in the order of the keys, so that the bits of a row do not depend on which thread
//! computed which split.
//!
//! The splits of all groups, laid end to end, are cut into *ranges* of about as many keys, one for
//! a thread at a time. A range that begins or ends within a group leaves its partial states to the
//! range that has the group's first split, which combines them.
//!
//! Disjointness is a property of this file, as of [`crate::work::query_tiles`]: each range is
//! handed out once, and the output rows of a group are written by the range that has its first
//! split.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::attend::seen::Hulls;
use crate::problem::batch::{beside_gap, clip};
use crate::problem::{Problem, SeenKeys, Sequence, Shape};
use crate::tuning::SplitLimits;
use crate::work::Partition;
use crate::work::query_tiles::{self, QueryTile, TileCoord, TileSizes, Way, WayRule};
use crate::workspace::PartialStates;

/// Query heads of a GQA group, of `most` neighbouring ones, and query rows of each: `max_rows`
/// together at most.
pub fn group_size(shape: &Shape, most: usize, max_rows: usize) -> [usize; 2] {
    let [_, _, rows] = shape.queries;
    let heads = most.div_ceil(most.div_ceil(max_rows));
    let of_head = if shape.block_q != 0 { shape.block_q } else { (max_rows / heads).max(1) };
    [heads, of_head.min(rows.max(1))]
}

/// GQA groups of a sequence of `rows` query rows.
fn groups(shape: &Shape, tiles: TileSizes, rows: usize) -> usize {
    let per_kv_head = shape.queries[1] / shape.heads_kv;
    let of_heads = shape.heads_kv.div_ceil(tiles.kv_heads) * per_kv_head.div_ceil(tiles.heads);
    // Saturates only where it is a bound: a ragged batch may claim any number of rows.
    of_heads.saturating_mul(rows.div_ceil(tiles.q))
}

/// GQA groups of a problem, if all its sequences are as long as the longest.
pub fn group_count(shape: &Shape, tiles: TileSizes) -> usize {
    shape.queries[0].saturating_mul(groups(shape, tiles, shape.queries[2]))
}

/// Threads that could work on a problem at the same time.
pub fn max_threads(shape: &Shape, tiles: TileSizes) -> usize {
    let splits = shape.len_kv.div_ceil(split_keys(shape.len_kv, tiles)).max(1);
    group_count(shape, tiles).saturating_mul(splits)
}

/// Ranges that the splits of a problem are cut into: a multiple of `threads`, of about `each` for
/// each thread. Where all groups are alike, they are whole groups if that divides the work evenly,
/// so that no states are kept.
pub fn range_count(shape: &Shape, tiles: TileSizes, threads: usize, each: usize) -> usize {
    let groups = group_count(shape, tiles);
    let mut whole = (2..=each).rev().map(|each| threads * each);
    let whole = whole.find(|&ranges| !shape.uneven && groups.is_multiple_of(ranges));
    whole.unwrap_or_else(|| match shape.uneven {
        true => threads * each,
        // There are no more splits than these.
        false => (threads * each).min(groups.saturating_mul(most_splits(shape, tiles))).max(threads),
    })
}

/// Splits of a group, at most.
fn most_splits(shape: &Shape, tiles: TileSizes) -> usize {
    let splits = tiles
        .splits
        .map_or(1, |limits| limits.max_splits.min(shape.len_kv.div_ceil(limits.min_split_keys)).max(1));
    // Splits are counted from key 0, so a window may touch one more. Two ranges of keys may touch
    // one more each, and be divided between two splits more.
    splits + if shape.gaps { 3 } else { 1 }
}

/// Partial states that one of `ranges` ranges leaves to others, at most: one of a group that ends
/// in another range, and one for each split but the first of a group that began in another.
pub fn max_states(shape: &Shape, tiles: TileSizes, ranges: usize) -> usize {
    let (splits, groups) = (most_splits(shape, tiles), group_count(shape, tiles));
    let of_other = if shape.uneven {
        splits - 1
    } else if groups.is_multiple_of(ranges) {
        return 0;
    } else {
        // All groups are alike, and their keys are divided evenly among the ranges.
        (splits - 1).min(splits.saturating_mul(groups).div_ceil(ranges))
    };
    if ranges > 1 { 1 + of_other } else { 0 }
}

/// Keys of a split, for a sequence whose rows see `keys` keys: a power of two blocks, so that it
/// hardly ever changes while a cache grows.
fn split_keys(keys: usize, tiles: TileSizes) -> usize {
    let Some(SplitLimits { max_splits, min_split_keys }) = tiles.splits else { return usize::MAX };
    let wanted = keys.div_ceil(max_splits).max(min_split_keys).div_ceil(tiles.kv);
    // Saturates beyond any sequence.
    wanted.checked_next_power_of_two().and_then(|n| n.checked_mul(tiles.kv)).unwrap_or(usize::MAX)
}

/// Kv heads that decode goes through together, at most.
pub(crate) const MAX_KV_HEADS: usize = 16;

/// Some splits of one GQA group: what a thread computes at a time.
#[derive(Clone, Debug)]
pub struct SplitWork<'p> {
    problem: &'p Problem<'p>,
    sequence: Sequence<'p>,
    /// The way of the sequence: one with splits.
    pub way: Way,
    /// Query heads; never empty.
    pub heads: Range<usize>,
    /// How many neighbouring kv heads they belong to: all query heads of each, if it is not one.
    pub kv_heads: usize,
    /// Query rows of each; never empty.
    pub rows: Range<usize>,
    /// The keys that some row of the sequence sees.
    visible: SeenKeys,
    /// Keys of a split; splits begin at multiples of it.
    split_keys: usize,
    /// Where the group begins among the keys of all groups.
    start: u128,
    /// Numbers of the splits, counted from the first that has a visible key.
    pub splits: Range<usize>,
    /// The keys between those that some row sees, or some more.
    seen: SeenKeys,
}

impl<'p> SplitWork<'p> {
    /// The problem that it belongs to.
    pub fn problem(&self) -> &'p Problem<'p> {
        self.problem
    }

    /// The sequence that its rows belong to.
    pub fn sequence(&self) -> &Sequence<'p> {
        &self.sequence
    }

    /// The keys between those that some of its rows sees, or some more.
    #[inline(always)]
    pub fn seen(&self) -> &SeenKeys {
        &self.seen
    }

    /// Leaves out of [`SplitWork::seen`] what masks hide at either end of its splits, if these have
    /// more than `block` keys: of one block, the look at it tells. Kept out of line: few problems
    /// have masks.
    #[inline(never)]
    pub(crate) fn narrow(&mut self, hulls: &mut Option<Hulls>, block: usize) {
        let keys = self.keys(self.splits.start).start..self.keys(self.splits.end - 1).end;
        let seen = clip(self.seen.keys.clone(), &keys);
        if seen.len() > block {
            let hulls = hulls.get_or_insert_with(Hulls::new);
            self.seen.keys = hulls.of(self.problem, &self.sequence, &self.heads, &self.rows, &seen);
        }
    }

    /// Its query rows as those of a tile of prefill.
    pub(crate) fn tile(&self) -> QueryTile<'p> {
        let Range { start: head, end } = self.heads;
        let heads = end - head;
        let rows = self.rows.start * heads..self.rows.end * heads;
        let sequence = self.sequence.grouped(heads);
        let coord = TileCoord { batch: self.sequence.batch, head, rows };
        // Who has the last keys of a group probably has the first ones of the next one.
        let mut next = None;
        if self.splits.end == self.all_splits() {
            let (len, end, n) = (sequence.len_q, coord.rows.end, coord.rows.len());
            let next_rows = |start: usize| start..len.min(start + n);
            next = match end < len {
                true => Some(TileCoord { rows: next_rows(end), ..coord.clone() }),
                false if self.heads.end + heads <= self.problem.shape().queries[1] => {
                    Some(TileCoord { head: head + heads, rows: next_rows(0), ..coord.clone() })
                }
                false => None,
            };
        }
        QueryTile::of_group(self.problem, sequence, coord, next, self.seen.clone())
    }

    /// The group with the single keys of its heads, if there is a list, in place of all keys: for
    /// who has its first split.
    pub(crate) fn of_columns(&self) -> Option<SplitWork<'p>> {
        let columns = self.problem.columns(&self.sequence, self.heads.start)?;
        let sequence = self.sequence.of_columns(columns);
        let seen = sequence.seen(&self.rows);
        let (visible, split_keys) = (seen.clone(), usize::MAX);
        Some(SplitWork {
            sequence,
            visible,
            split_keys,
            splits: 0..1,
            seen,
            heads: self.heads.clone(),
            rows: self.rows.clone(),
            ..*self
        })
    }

    /// The part of it with the query heads of its `n`th kv head.
    #[inline(always)]
    pub(crate) fn of_kv_head(&self, n: usize) -> SplitWork<'p> {
        let each = self.heads.len() / self.kv_heads;
        let start = self.heads.start + n * each;
        SplitWork { heads: start..start + each, kv_heads: 1, ..self.clone() }
    }

    /// Query rows of all its heads together.
    #[inline(always)]
    pub fn count(&self) -> usize {
        self.heads.len() * self.rows.len()
    }

    /// Head and row of query row `n` of [`SplitWork::count`].
    #[inline(always)]
    pub fn line(&self, n: usize) -> (usize, usize) {
        let rows = self.rows.len();
        if rows == 1 {
            return (self.heads.start + n, self.rows.start);
        }
        (self.heads.start + n / rows, self.rows.start + n % rows)
    }

    /// Head and row of each of them, in order.
    #[inline(always)]
    pub fn lines(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        (0..self.count()).map(|n| self.line(n))
    }

    /// Where output row `row` of one of its heads begins.
    #[inline(always)]
    pub(crate) fn output(&self, head: usize, row: usize) -> *mut u8 {
        debug_assert!(self.heads.contains(&head), "head {head} written by the owner of {:?}", self.heads);
        query_tiles::output(self.problem, &self.sequence, [head, row], 1, &self.rows)
    }

    /// Where the log-sum-exp of row `row` of one of its heads is written, if it is wanted.
    #[inline(always)]
    pub(crate) fn lse(&self, head: usize, row: usize) -> Option<*mut f32> {
        debug_assert!(self.heads.contains(&head), "head {head} written by the owner of {:?}", self.heads);
        query_tiles::lse(self.problem, &self.sequence, [head, row], &self.rows)
    }

    /// Where the probabilities of row `row` of one of its heads are written, if they are wanted:
    /// those of the keys of its splits, and of all keys once all splits have been computed.
    pub(crate) fn weights(&self, head: usize, row: usize) -> Option<*mut f32> {
        debug_assert!(self.heads.contains(&head), "head {head} written by the owner of {:?}", self.heads);
        query_tiles::weights(self.problem, &self.sequence, [head, row], &self.rows)
    }

    /// The keys that some row of the sequence sees. Its splits have all of them.
    pub(crate) fn visible(&self) -> &SeenKeys {
        &self.visible
    }

    /// The visible keys of a split; empty if the sequence has none.
    #[inline(always)]
    pub fn keys(&self, split: usize) -> Range<usize> {
        match self.visible.gap.is_empty() {
            true => self.keys_from_0(self.visible.keys.start / self.split_keys + split),
            false => self.keys_beside_gap(split),
        }
    }

    /// [`SplitWork::keys`] where some are left out. Kept out of line: few problems have such keys.
    #[inline(never)]
    fn keys_beside_gap(&self, split: usize) -> Range<usize> {
        let mut n = self.visible.keys.start / self.split_keys + split;
        let [before, left_out] = self.left_out();
        if n >= before {
            n += left_out;
        }
        beside_gap(self.keys_from_0(n), &self.visible.gap)
    }

    /// The visible keys of split `n`, counted from key 0.
    #[inline(always)]
    fn keys_from_0(&self, n: usize) -> Range<usize> {
        let keys = &self.visible.keys;
        let first = n.saturating_mul(self.split_keys);
        let end = first.saturating_add(self.split_keys).min(keys.end);
        first.max(keys.start).min(end)..end
    }

    /// Splits that lie in the gap of the visible keys, which are left out: how many, counted from
    /// key 0, begin before them, and how many they are.
    #[inline(never)]
    fn left_out(&self) -> [usize; 2] {
        let Range { start, end } = self.visible.gap;
        if start >= end {
            return [usize::MAX, 0];
        }
        let first = start.div_ceil(self.split_keys);
        [first, (end / self.split_keys).saturating_sub(first)]
    }

    /// Splits of the whole group; at least 1.
    #[inline(always)]
    pub fn all_splits(&self) -> usize {
        let SeenKeys { keys, gap } = &self.visible;
        let left_out = if gap.is_empty() { 0 } else { self.left_out()[1] };
        (keys.end.div_ceil(self.split_keys) - keys.start / self.split_keys - left_out).max(1)
    }

    /// Whether it has all splits of its group.
    pub fn is_whole(&self) -> bool {
        self.splits == (0..self.all_splits())
    }

    /// Whether an earlier range has the first split of the group, and combines all states.
    #[inline(always)]
    pub(crate) fn began_before(&self) -> bool {
        self.splits.start > 0
    }

    /// Among the partial states of the range, the number of that of split `n` of these, if it is
    /// kept until all ranges have been computed.
    #[inline(always)]
    pub(crate) fn kept(&self, n: usize) -> Option<usize> {
        if self.began_before() {
            return Some(BEGUN + 1 + n);
        }
        (n == 0 && !self.is_whole()).then_some(BEGUN)
    }

    /// Splits of the group that begin before `end`, a place among the keys of all groups.
    fn splits_before(&self, end: u128) -> usize {
        if end <= self.start {
            return 0;
        }
        let all = self.all_splits();
        // Saturates beyond the group, whose keys are not more than an address space holds.
        let keys = usize::try_from(end - self.start).unwrap_or(usize::MAX);
        let SeenKeys { keys: visible, gap } = &self.visible;
        let (mut end, mut left_out) = (keys.saturating_add(visible.start), 0);
        if !gap.is_empty() && end > gap.start {
            (end, left_out) = (end.saturating_add(gap.len()), self.left_out()[1]);
        }
        (end.div_ceil(self.split_keys) - visible.start / self.split_keys - left_out).clamp(1, all)
    }
}

/// Among the partial states of a range: that of the group which begins in the range. Behind it is
/// one for each split of the group that began in an earlier range.
pub(crate) const BEGUN: usize = 0;

/// What remains to be done for a group that begins in one range of splits and ends in another, once
/// all ranges have been computed.
pub struct Combine<'a, 's, 'p> {
    pub(crate) work: &'a SplitWork<'p>,
    pub(crate) range: &'a SplitRange<'s, 'p>,
    pub(crate) tiles: TileSizes,
    pub(crate) partial: PartialStates<'a>,
}

/// Hands out ranges of the splits of all sequences that have some, each once, to any thread.
#[derive(Debug)]
pub struct SplitQueue<'p> {
    problem: &'p Problem<'p>,
    /// Tile sizes of prefill over splits, and of decode.
    tiles: [TileSizes; 2],
    rule: WayRule,
    /// Ranges of all callers.
    ranges: usize,
    /// Keys of all groups.
    total_keys: u128,
    /// The ranges that this queue hands out, and the next of them.
    own: Range<usize>,
    next: AtomicUsize,
}

/// A range of splits.
#[derive(Debug)]
pub struct SplitRange<'q, 'p> {
    queue: &'q SplitQueue<'p>,
    /// Its number among the ranges of all callers.
    pub index: usize,
}

impl<'p> SplitQueue<'p> {
    /// The ranges of caller `i` of `n`: consecutive ones, so that all callers have as many keys,
    /// within a split. (If each had every n-th range, one caller could have all those in which a
    /// split begins.)
    pub(crate) fn new(problem: &'p Problem<'p>, partition: &Partition, [i, n]: [usize; 2]) -> SplitQueue<'p> {
        let Partition { rule, split_tiles, decode, ranges, .. } = *partition;
        let ranges = if rule == WayRule::Always(Way::Tiles) { 0 } else { ranges };
        // Cannot overflow: there are at most 256 callers, and few ranges for each.
        let own = (ranges * i).div_ceil(n)..(ranges * (i + 1)).div_ceil(n);
        let next = AtomicUsize::new(own.start);
        let tiles = [split_tiles, decode];
        let mut queue = SplitQueue { problem, tiles, rule, ranges, total_keys: u128::MAX, own, next };
        // A single range needs no total, and the pass over all sequences would show in small
        // problems.
        if ranges > 1 {
            let all = queue
                .sequences()
                .map(|(way, sequence, visible)| queue.groups_of(queue.tiles_of(way), &sequence, &visible));
            queue.total_keys = all.map(|(keys, groups)| keys * groups as u128).sum();
        }
        queue
    }

    /// A range that has not been taken yet.
    pub fn take(&self) -> Option<SplitRange<'_, 'p>> {
        // Relaxed: only uniqueness matters; the inputs were there before the threads were.
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        (index < self.own.end).then_some(SplitRange { queue: self, index })
    }

    /// Whether every range has been taken.
    pub fn is_drained(&self) -> bool {
        self.next.load(Ordering::Relaxed) >= self.own.end
    }

    /// Hands out all ranges once more, after each has been computed, so that states can be
    /// combined.
    pub(crate) fn rewind(&mut self) {
        *self.next.get_mut() = self.own.start;
    }

    /// The sequences that have splits, the way of each, and the keys that its rows see.
    fn sequences(&self) -> impl Iterator<Item = (Way, Sequence<'p>, SeenKeys)> + '_ {
        (0..self.problem.shape().queries[0]).filter_map(|batch| {
            let sequence = self.problem.sequence(batch);
            let rows = sequence.len_q;
            let way = self.rule.way(rows, || self.problem.keys_of(batch));
            (rows > 0 && way != Way::Tiles).then(|| (way, sequence, sequence.seen(&(0..rows))))
        })
    }

    /// Tile sizes of a way with splits.
    #[inline(always)]
    fn tiles_of(&self, way: Way) -> TileSizes {
        let [split_tiles, decode] = self.tiles;
        if way == Way::Decode { decode } else { split_tiles }
    }

    /// Keys of each group of a sequence, and the number of its groups. A group without keys counts
    /// as one key, because its rows must be written, too.
    fn groups_of(&self, tiles: TileSizes, sequence: &Sequence, visible: &SeenKeys) -> (u128, usize) {
        (visible.len().max(1) as u128, groups(self.problem.shape(), tiles, sequence.len_q))
    }

    /// Where range `index` begins among the keys of all groups.
    fn range_start(&self, index: usize) -> u128 {
        match (index, self.ranges) {
            (0, _) => 0,
            (i, n) if i == n => u128::MAX,
            // Cannot overflow: keys and groups have 64 bits each at most, and an address space
            // fewer.
            (i, n) => {
                self.total_keys / n as u128 * i as u128 + self.total_keys % n as u128 * i as u128 / n as u128
            }
        }
    }
}

impl<'p> SplitRange<'_, 'p> {
    /// Calls `compute` for the splits of each group in the range, until it fails.
    pub fn try_for_each<E>(&self, mut compute: impl FnMut(SplitWork<'p>) -> Result<(), E>) -> Result<(), E> {
        let SplitQueue { problem, ranges, .. } = *self.queue;
        let shape = problem.shape();
        let range = self.queue.range_start(self.index)..self.queue.range_start(self.index + 1);
        let per_kv_head = shape.queries[1] / shape.heads_kv;
        let mut start = 0;
        for (way, sequence, visible) in self.queue.sequences() {
            let tiles = self.queue.tiles_of(way);
            let groups_per_kv_head = per_kv_head.div_ceil(tiles.heads);
            let (keys, groups) = self.queue.groups_of(tiles, &sequence, &visible);
            let in_range = if ranges == 1 {
                // Avoids the divisions below, which show in small problems.
                0..groups
            } else {
                let before =
                    |end: u128| end.saturating_sub(start).div_ceil(keys).min(groups as u128) as usize;
                // The group that the range begins in has splits in it, or not.
                before(range.start).saturating_sub(1)..before(range.end)
            };
            let groups_per_head = sequence.len_q.div_ceil(tiles.q);
            for group in in_range {
                let (heads, tile) = (group / groups_per_head, group % groups_per_head);
                let (kv_head, of_kv_head) = (heads / groups_per_kv_head, heads % groups_per_kv_head);
                let kv_head = kv_head * tiles.kv_heads;
                let kv_heads = tiles.kv_heads.min(shape.heads_kv - kv_head);
                let head = kv_head * per_kv_head + of_kv_head * tiles.heads;
                let last = (kv_head + kv_heads) * per_kv_head;
                let row = tile * tiles.q;
                let mut work = SplitWork {
                    problem,
                    sequence,
                    way,
                    heads: head..last.min(head + kv_heads * tiles.heads),
                    kv_heads,
                    rows: row..sequence.len_q.min(row + tiles.q),
                    split_keys: split_keys(visible.len(), tiles),
                    visible: visible.clone(),
                    start: start + group as u128 * keys,
                    splits: 0..0,
                    seen: SeenKeys { keys: 0..0, gap: 0..0 },
                };
                work.seen = sequence.seen(&work.rows);
                work.splits = work.splits_before(range.start)..work.splits_before(range.end);
                if !work.splits.is_empty() {
                    compute(work)?;
                }
            }
            start += keys * groups as u128;
            if start >= range.end {
                break;
            }
        }
        Ok(())
    }

    /// The splits that later ranges have of the group of `work`, which begins in this range: the
    /// number of each range and its splits, in the order of the keys.
    pub fn in_later_ranges(&self, work: &SplitWork<'p>) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        let (work, queue) = (work.clone(), self.queue);
        let all = work.all_splits();
        let before = move |range| work.splits_before(queue.range_start(range));
        (self.index + 1..queue.ranges)
            .map(move |range| (range, before(range)..before(range + 1)))
            .take_while(move |(_, splits)| splits.start < all)
            .filter(|(_, splits)| !splits.is_empty())
    }
}
