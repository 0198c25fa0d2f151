//! Few query rows and many keys: which rows are computed together, and which keys of theirs one thread takes.
//!
//! A *band* is the query rows that one pass over K and V serves: all query heads of a kv head, or as many as
//! `MOST` allows. Its keys are cut into *chunks* of a size that only the sequence and the block size decide; each
//! chunk gives a state of its own, and states are joined in the order of the keys. So the bits of a row do not
//! depend on who computed which chunk.
//!
//! All chunks of all bands, laid end to end, are cut into *shares* of about as many keys, one thread each. Where a
//! share begins or ends within a band, it leaves its states for whoever has the band's first chunk to join.
//!
//! Disjointness is a property of this file, as in [`crate::work::query_tiles`]: each share is handed out once, and a band's
//! rows are written by the share that has its first chunk.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::problem::{Problem, Sequence, Shape};
use crate::work::query_tiles::{self, PathRule, TileSizes};

/// Query rows of a band, at most: what each keeps besides its keys has to stay in the first-level cache's reach.
const MOST: usize = 32;

/// Chunks of a sequence, about: each can be another thread's, and each has a state that somebody keeps.
const CHUNKS: usize = 32;

/// Keys of a chunk, at least: joining a state costs as much as a rule keys.
const LEAST: usize = 512;

/// Query heads of a band, and query rows of each.
pub fn size(shape: &Shape) -> [usize; 2] {
    let [_, heads, rows] = shape.queries;
    let group = heads / shape.heads_kv;
    let heads = group.div_ceil(group.div_ceil(MOST));
    let most = if shape.block_q != 0 { shape.block_q } else { (MOST / heads).max(1) };
    [heads, most.min(rows.max(1))]
}

/// Bands of a sequence of `rows` query rows.
fn bands(shape: &Shape, tiles: TileSizes, rows: usize) -> usize {
    let group = shape.queries[1] / shape.heads_kv;
    let of_heads = shape.heads_kv * group.div_ceil(tiles.heads);
    // Saturates only where it is a bound: a ragged batch may have been told of any number of rows.
    of_heads.saturating_mul(rows.div_ceil(tiles.q))
}

/// Bands of a problem, if all its sequences are as long as the longest.
pub fn count(shape: &Shape, tiles: TileSizes) -> usize {
    shape.queries[0].saturating_mul(bands(shape, tiles, shape.queries[2]))
}

/// Threads that could work on a problem at the same time.
pub fn most_threads(shape: &Shape, tiles: TileSizes) -> usize {
    count(shape, tiles).saturating_mul(shape.len_kv.div_ceil(chunk(shape.len_kv, tiles.kv)).max(1))
}

/// States that a share, one of `shares`, leaves to others, at most: one of a band that ends in another share, and
/// one for each chunk of a band that began in another.
pub fn states(shape: &Shape, tiles: TileSizes, shares: usize) -> usize {
    // Chunks are counted from key 0, so a window may touch one more.
    let chunks = CHUNKS + 1;
    let chunks = if shape.uneven {
        chunks
    } else {
        // All bands are alike, and a share has no more than its share of their chunks.
        chunks.min((chunks.saturating_mul(count(shape, tiles)) / shares).saturating_add(2))
    };
    if shares > 1 { chunks + 1 } else { 0 }
}

/// Keys of a chunk, for a sequence whose rows see `keys` keys, in blocks of `block`: a power of two of them, so
/// that it hardly ever changes while a cache grows.
fn chunk(keys: usize, block: usize) -> usize {
    let wanted = keys.div_ceil(CHUNKS).max(LEAST).div_ceil(block);
    // Saturates beyond any sequence.
    wanted.checked_next_power_of_two().and_then(|n| n.checked_mul(block)).unwrap_or(usize::MAX)
}

/// What one thread does at a time: some chunks of a band.
#[derive(Clone, Debug)]
pub struct SplitWork<'p> {
    problem: &'p Problem<'p>,
    sequence: Sequence,
    /// Query heads of one kv head; never empty.
    pub heads: Range<usize>,
    /// Query rows of each; never empty.
    pub rows: Range<usize>,
    /// All keys that some row of the sequence sees, and the keys of a chunk; chunks begin at multiples of it.
    seen: Range<usize>,
    chunk: usize,
    /// Where the band begins among the keys of all.
    start: u128,
    /// The chunks.
    pub chunks: Range<usize>,
}

impl<'p> SplitWork<'p> {
    /// The problem that it belongs to.
    pub fn problem(&self) -> &'p Problem<'p> {
        self.problem
    }

    /// The sequence that its rows belong to.
    pub fn sequence(&self) -> &Sequence {
        &self.sequence
    }

    /// Its rows.
    #[inline(always)]
    pub fn count(&self) -> usize {
        self.heads.len() * self.rows.len()
    }

    /// Head and row of one of them.
    #[inline(always)]
    pub fn line(&self, n: usize) -> (usize, usize) {
        let rows = self.rows.len();
        if rows == 1 {
            return (self.heads.start + n, self.rows.start);
        }
        (self.heads.start + n / rows, self.rows.start + n % rows)
    }

    /// Those of all, in order.
    #[inline(always)]
    pub fn lines(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        (0..self.count()).map(|n| self.line(n))
    }

    /// Where output row `row` of one of its heads begins.
    #[inline(always)]
    pub(crate) fn output(&self, head: usize, row: usize) -> *mut u8 {
        debug_assert!(self.heads.contains(&head), "head {head} written by who has {:?}", self.heads);
        query_tiles::output(self.problem, &self.sequence, [head, row], 1, &self.rows)
    }

    /// Where the log-sum-exp of such a row is, if it is wanted.
    #[inline(always)]
    pub(crate) fn lse(&self, head: usize, row: usize) -> Option<*mut f32> {
        debug_assert!(self.heads.contains(&head), "head {head} written by who has {:?}", self.heads);
        query_tiles::lse(self.problem, &self.sequence, [head, row], &self.rows)
    }

    /// The keys of a chunk; empty if the sequence has none that are seen.
    pub fn keys(&self, chunk: usize) -> Range<usize> {
        let first = (self.seen.start / self.chunk + chunk).saturating_mul(self.chunk);
        let end = first.saturating_add(self.chunk).min(self.seen.end);
        first.max(self.seen.start).min(end)..end
    }

    /// Chunks of the whole band; at least 1.
    pub fn all_chunks(&self) -> usize {
        chunks(&self.seen, self.chunk)
    }

    /// Whether it is a band of its own.
    pub fn is_whole(&self) -> bool {
        self.chunks == (0..self.all_chunks())
    }

    /// Chunks that begin before `end`.
    fn before(&self, end: u128) -> usize {
        if end <= self.start {
            return 0;
        }
        let all = self.all_chunks();
        // As `start` and all keys of the band do, it fits.
        let keys = usize::try_from(end - self.start).unwrap_or(usize::MAX).saturating_add(self.seen.start);
        (keys.div_ceil(self.chunk) - self.seen.start / self.chunk).clamp(1, all)
    }
}

fn chunks(seen: &Range<usize>, chunk: usize) -> usize {
    (seen.end.div_ceil(chunk) - seen.start / chunk).max(1)
}

/// The bands of all sequences with few query rows, cut into shares.
#[derive(Debug)]
pub struct SplitQueue<'p> {
    problem: &'p Problem<'p>,
    tiles: TileSizes,
    rule: PathRule,
    count: usize,
    /// Keys of all bands.
    total: u128,
    /// Those to be had, and the next of them.
    range: Range<usize>,
    next: AtomicUsize,
}

/// A share: to be had once.
#[derive(Debug)]
pub struct SplitRange<'s, 'p> {
    shares: &'s SplitQueue<'p>,
    /// Its number.
    pub index: usize,
}

impl<'p> SplitQueue<'p> {
    /// What caller `i` of `n` has of `count` shares: some that follow each other, so that all callers have as many keys,
    /// within a chunk. (Of every n-th, one caller may have all: those in which a chunk begins.)
    pub(crate) fn new(
        problem: &'p Problem<'p>,
        tiles: TileSizes,
        rule: PathRule,
        count: usize,
        [i, n]: [usize; 2],
    ) -> SplitQueue<'p> {
        // Fits: there are at most 256 callers, and fewer shares than bits of an address.
        let range = (count * i).div_ceil(n)..(count * (i + 1)).div_ceil(n);
        let next = AtomicUsize::new(range.start);
        let mut shares = SplitQueue { problem, tiles, rule, count, total: u128::MAX, range, next };
        // Small calls notice how many sequences there are to look at.
        if count > 1 {
            let all = shares.sequences().map(|(sequence, seen)| shares.weight(&sequence, &seen));
            shares.total = all.map(|(one, bands)| one * bands as u128).sum();
        }
        shares
    }

    /// One that nobody has had yet.
    pub fn take(&self) -> Option<SplitRange<'_, 'p>> {
        // Relaxed: only uniqueness matters; the inputs were there before the threads were.
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        (index < self.range.end).then_some(SplitRange { shares: self, index })
    }

    /// Whether all have been taken.
    pub fn is_drained(&self) -> bool {
        self.next.load(Ordering::Relaxed) >= self.range.end
    }

    /// All of them again, once each has been computed: to join what was left.
    pub(crate) fn again(&mut self) {
        *self.next.get_mut() = self.range.start;
    }

    /// Sequences with few rows, and what these see.
    fn sequences(&self) -> impl Iterator<Item = (Sequence, Range<usize>)> + '_ {
        (0..self.problem.shape().queries[0]).filter_map(|batch| {
            let sequence = self.problem.sequence(batch);
            let rows = sequence.len_q;
            (rows > 0 && self.rule.decodes(rows)).then(|| (sequence, sequence.seen_by(&(0..rows))))
        })
    }

    /// Keys of a band of a sequence, and how many bands it has. A band without keys still has rows to be written.
    fn weight(&self, sequence: &Sequence, seen: &Range<usize>) -> (u128, usize) {
        (seen.len().max(1) as u128, bands(self.problem.shape(), self.tiles, sequence.len_q))
    }

    /// Where share `index` begins among the keys of all.
    fn start(&self, index: usize) -> u128 {
        match (index, self.count) {
            (0, _) => 0,
            (i, n) if i == n => u128::MAX,
            // Fits: keys and bands have 64 bits each at most, and an address space far fewer.
            (i, n) => self.total / n as u128 * i as u128 + self.total % n as u128 * i as u128 / n as u128,
        }
    }
}

impl<'p> SplitRange<'_, 'p> {
    /// Does `what` with each of its pieces, until that fails.
    pub fn pieces<E>(&self, mut what: impl FnMut(SplitWork<'p>) -> Result<(), E>) -> Result<(), E> {
        let SplitQueue { problem, tiles, .. } = *self.shares;
        let shape = problem.shape();
        let here = self.shares.start(self.index)..self.shares.start(self.index + 1);
        let group = shape.queries[1] / shape.heads_kv;
        let in_group = group.div_ceil(tiles.heads);
        let mut start = 0;
        for (sequence, seen) in self.shares.sequences() {
            let (one, bands) = self.shares.weight(&sequence, &seen);
            let here_of_it = if self.shares.count == 1 {
                // Small calls notice the divisions.
                0..bands
            } else {
                let before = |end: u128| end.saturating_sub(start).div_ceil(one).min(bands as u128) as usize;
                // The band that the share begins in has chunks in it, or not.
                before(here.start).saturating_sub(1)..before(here.end)
            };
            let tiles_of_rows = sequence.len_q.div_ceil(tiles.q);
            for band in here_of_it {
                let (head, tile) = (band / tiles_of_rows, band % tiles_of_rows);
                let (kv_head, of_group) = (head / in_group, head % in_group);
                let head = kv_head * group + of_group * tiles.heads;
                let row = tile * tiles.q;
                let mut piece = SplitWork {
                    problem,
                    sequence,
                    heads: head..((kv_head + 1) * group).min(head + tiles.heads),
                    rows: row..sequence.len_q.min(row + tiles.q),
                    chunk: chunk(seen.len(), tiles.kv),
                    seen: seen.clone(),
                    start: start + band as u128 * one,
                    chunks: 0..0,
                };
                piece.chunks = piece.before(here.start)..piece.before(here.end);
                if !piece.chunks.is_empty() {
                    what(piece)?;
                }
            }
            start += one * bands as u128;
            if start >= here.end {
                break;
            }
        }
        Ok(())
    }

    /// What of the band of a piece, which begins in this share, the shares behind it have: their numbers and
    /// chunks, in the order of the keys.
    pub fn rest(&self, piece: &SplitWork<'p>) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        let (piece, shares) = (piece.clone(), self.shares);
        let all = piece.all_chunks();
        (self.index + 1..shares.count)
            .map(move |i| (i, piece.before(shares.start(i))..piece.before(shares.start(i + 1))))
            .take_while(move |(_, chunks)| chunks.start < all)
            .filter(|(_, chunks)| !chunks.is_empty())
    }
}
