//! From partitions of a text to what block-sparse attention takes: lists of blocks of keys, and
//! single keys that all rows see.
//!
//! The meaning is that of the crate `ruvector-mincut-gated-transformer` (its `SparsityConfig`,
//! `LambdaDensitySchedule` and `GatePacket`): attention is dense within a partition; across
//! partitions only boundary tokens are seen; a coherence value decides how dense. There, the target
//! density is computed and not used, and a mask is a list of pairs. Here, the target is met as far
//! as blocks permit, and nothing grows with the number of pairs.
//!
//! All decisions are made in integers, so that lists are the same on every machine. Densities are
//! numbers of 15 bits behind the point: 32,768 is all.

use std::ops::Range;

use crate::error::{Error, Refusal};
use crate::view::{Array, ArrayMut, overlap};

/// A density of 1.
const ALL: u32 = 1 << 15;

/// The least and the largest target of [`Schedule::Adaptive`]: 0.1 and 0.9.
const ADAPTIVE_LIMITS: [i64; 2] = [3277, 29491];

/// What a pair of a listed block and of a column is expected to cost, in percent of a pair of dense
/// attention.
const COST: [u64; 2] = [110, 130];

/// How the target density follows from the coherence of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Not at all: partitions stay whole, unless a limit of the density demands otherwise.
    None,
    /// From the least density at `coherence_low` to the largest at `coherence_high`, in a line.
    Linear,
    /// The largest density from `coherence_high` on, the least below it.
    Threshold,
    /// 0.1, and up to 0.6 more as the coherence rises to half of `coherence_high`; up to 0.2 more
    /// for concentrated boundaries; 0.05 less for each of up to four partitions.
    Adaptive,
}

/// The partitions of a text, and how much of the attention across them is kept.
///
/// Row i of the last `len_q` tokens is token `p = len_kv - len_q + i`. It sees the blocks of keys
/// that hold a token of its partition, or one at most `window` tokens away, and the boundary
/// tokens. If it is `causal`, no key behind it counts.
#[derive(Clone, Copy, Debug)]
pub struct Partitions<'a> {
    /// Query rows: the last tokens. At most `len_kv`.
    pub len_q: usize,
    /// Keys: all tokens, less than 2^31.
    pub len_kv: usize,
    /// Query rows of a block; at least 1.
    pub kept_q: usize,
    /// Keys of a block; at least 1.
    pub kept_kv: usize,
    /// The first token of each partition: 0, then ascending, each once. None: one partition.
    pub partitions: Array<'a, i32>,
    /// Tokens that all rows see: ascending, each once.
    pub boundary_tokens: Array<'a, i32>,
    /// Boundary tokens that are kept, at most. Of more, so many are taken, evenly spread.
    pub max_edges: usize,
    /// Tokens before each row that it sees in any case; if it is not causal, as many behind it,
    /// too.
    pub window: usize,
    /// Whether a row sees no key behind it.
    pub causal: bool,
    /// How the coherence decides about the density.
    pub schedule: Schedule,
    /// How coherent the text is: the value of the least cut.
    pub coherence: u32,
    /// With a schedule, everything is seen below it: partitions are then not to be relied on.
    pub coherence_low: u32,
    /// Where the density is largest; at least `coherence_low`.
    pub coherence_high: u32,
    /// To how few boundaries the edges between partitions are concentrated, of 32,768.
    pub concentration: u32,
    /// Least target density, of 32,768.
    pub min_density: u32,
    /// Largest target density, of 32,768.
    pub max_density: u32,
}

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sparsity {
    /// Entries of the starts of lists: one for each block of query rows, and one more.
    pub starts: usize,
    /// Blocks in all lists.
    pub blocks: usize,
    /// Single keys that all rows see.
    pub columns: usize,
    /// Tokens around each row that it sees in any case: at least those that were asked for.
    pub window: usize,
    /// Tokens of its own partition around each row that it sees; `len_kv` or more if it sees the
    /// whole partition.
    pub reach: usize,
    /// The density that was aimed at, of 32,768.
    pub target: u32,
    /// Pairs of a row and a key that it sees.
    pub pairs: u64,
    /// Of these, the ones that no block has: columns elsewhere.
    pub column_pairs: u64,
    /// Pairs of dense attention, causal if that is.
    pub all_pairs: u64,
    /// Whether the coherence was too low to be used, so that everything is listed.
    pub is_dense: bool,
}

/// Lists for [`crate::Attention::kept_blocks`] and [`crate::Attention::columns`].
#[derive(Clone, Copy, Debug)]
pub struct SparseLists<'a> {
    /// Where the list of each block of query rows begins, and where the last one ends.
    pub starts: &'a [i32],
    /// Numbers of blocks of keys.
    pub blocks: &'a [i32],
    /// Where the columns begin, and where they end: 0, and how many there are.
    pub column_start: &'a [i32],
    /// Single keys that all rows see, ascending.
    pub columns: &'a [i32],
    /// Query rows of a block.
    pub kept_q: usize,
    /// Keys of a block.
    pub kept_kv: usize,
    /// How much that is.
    pub sparsity: Sparsity,
}

/// What two numbers decide about the blocks of a row.
#[derive(Clone, Copy, Debug)]
struct Pattern {
    window: usize,
    reach: usize,
}

/// The keys of a block of query rows.
#[derive(Clone, Debug)]
struct Span {
    /// How many rows, and at which token the first one is.
    rows: u64,
    token: usize,
    /// Blocks of keys that are listed. As each row sees itself and its neighbours in one piece, so
    /// do consecutive rows.
    blocks: Range<usize>,
}

/// Counts the numbers of an ascending list that are below limits, which ascend, too.
struct Below<F> {
    number: F,
    len: usize,
    count: usize,
}

impl<F: Fn(usize) -> usize> Below<F> {
    fn limit(&mut self, limit: usize) -> usize {
        while self.count < self.len && (self.number)(self.count) < limit {
            self.count += 1;
        }
        self.count
    }
}

impl Sparsity {
    /// Entries of memory for all lists: starts, the two of the columns' start, columns, blocks.
    /// `None` if no address space holds as many.
    pub fn entries(&self) -> Option<usize> {
        self.starts.checked_add(2)?.checked_add(self.columns)?.checked_add(self.blocks)
    }

    /// Where in memory the starts of lists, the start of the columns, the columns and the blocks
    /// are.
    pub(crate) fn places(&self) -> [Range<usize>; 4] {
        let mut end = 0;
        [self.starts, 2, self.columns, self.blocks].map(|n| {
            end += n;
            end - n..end
        })
    }

    /// The share of the pairs that is seen; 1 if there are none.
    pub fn density(&self) -> f64 {
        if self.all_pairs == 0 { 1.0 } else { self.pairs as f64 / self.all_pairs as f64 }
    }

    /// The share of the time of dense attention that will be saved, as an estimate: a pair in a
    /// block of 64 or more costs a tenth more than a dense one, a pair of a column 0.3 more.
    pub fn time_saved(&self) -> f64 {
        if self.is_dense || self.all_pairs == 0 {
            return 0.0;
        }
        let [block, column] = COST;
        let of_blocks = u128::from(self.pairs - self.column_pairs) * u128::from(block);
        let cost = of_blocks + u128::from(self.column_pairs) * u128::from(column);
        let dense = u128::from(self.all_pairs) * 100;
        dense.saturating_sub(cost) as f64 / dense as f64
    }
}

impl<'a> Partitions<'a> {
    /// The partitions of a text of so many tokens, which begin at these. All are query rows, too,
    /// and causal; blocks have 64; at most 20 boundary tokens are kept, of which there are none
    /// yet; no schedule, and no limit of the density.
    pub fn new(len: usize, partitions: &'a [i32]) -> Partitions<'a> {
        Partitions { len_q: len, len_kv: len, partitions: Array::of(partitions), ..Partitions::NONE }
    }

    /// What `fa_sparse_config_init` leaves.
    pub(crate) const NONE: Partitions<'static> = Partitions {
        len_q: 0,
        len_kv: 0,
        kept_q: 64,
        kept_kv: 64,
        partitions: Array::EMPTY,
        boundary_tokens: Array::EMPTY,
        max_edges: 20,
        window: 0,
        causal: true,
        schedule: Schedule::None,
        coherence: 0,
        coherence_low: 30,
        coherence_high: 300,
        concentration: 0,
        min_density: 0,
        max_density: ALL,
    };

    /// How much is kept, and so how long the lists are.
    ///
    /// Takes time in proportion to partitions, columns and blocks of query rows, times the
    /// logarithm of `len_kv`. So does [`Partitions::lists`], besides what it writes.
    pub fn measure(&self) -> Result<Sparsity, Refusal> {
        self.check()?;
        let (target, pattern, is_dense) = self.choose();
        let [block_pairs, column_pairs] = self.pairs(pattern);
        let blocks: u64 = self.spans(pattern).map(|span| span.blocks.len() as u64).sum();
        let sparsity = Sparsity {
            starts: self.row_blocks() + 1,
            blocks: usize::try_from(blocks).unwrap_or(usize::MAX),
            columns: self.columns(),
            window: pattern.window,
            reach: pattern.reach,
            target,
            pairs: block_pairs + column_pairs,
            column_pairs,
            all_pairs: self.all_pairs(),
            is_dense,
        };
        if i32::try_from(blocks).is_err() || sparsity.entries().is_none() {
            let blocks = i64::try_from(blocks).unwrap_or(i64::MAX);
            return Err(Refusal::of("entries of kept_blocks", blocks).but(Error::Overflow, "2^31 or more"));
        }
        Ok(sparsity)
    }

    /// Writes the lists into memory that has at least [`Sparsity::entries`] entries.
    pub fn lists<'m>(&self, memory: &'m mut [i32]) -> Result<SparseLists<'m>, Refusal> {
        let sparsity = self.write(ArrayMut::of(memory))?;
        let [starts, column_start, columns, blocks] = sparsity.places().map(|place| &memory[place]);
        let Partitions { kept_q, kept_kv, .. } = *self;
        Ok(SparseLists { starts, blocks, column_start, columns, kept_q, kept_kv, sparsity })
    }

    /// Writes the lists where [`Sparsity::places`] says.
    pub(crate) fn write(&self, mut memory: ArrayMut<i32>) -> Result<Sparsity, Refusal> {
        let sparsity = self.measure()?;
        let entries = sparsity.entries().ok_or(Error::Internal)?;
        if memory.len() < entries {
            let fact = Refusal::of("room", memory.len() as i64);
            return Err(fact.against(Error::Shape, "less than the entries of all lists", entries as i64));
        }
        let start = memory.addresses().start;
        let written = start..start.saturating_add(entries * size_of::<i32>());
        for (name, list) in [("partitions", self.partitions), ("boundary_tokens", self.boundary_tokens)] {
            if overlap(&written, &list.addresses()) {
                return Err(Refusal::about(Error::Overlap, "memory", name));
            }
        }
        let [starts, column_start, columns, blocks] = sparsity.places();
        let mut put = |at: usize, number: usize| memory.set(at, number as i32);
        let mut listed = 0;
        put(starts.start, 0);
        let pattern = Pattern { window: sparsity.window, reach: sparsity.reach };
        for (r, span) in self.spans(pattern).enumerate() {
            for block in span.blocks {
                put(blocks.start + listed, block);
                listed += 1;
            }
            put(starts.start + r + 1, listed);
        }
        put(column_start.start, 0);
        put(column_start.start + 1, sparsity.columns);
        for i in 0..sparsity.columns {
            put(columns.start + i, self.column(i));
        }
        Ok(sparsity)
    }

    /// Refuses what makes no sense.
    fn check(&self) -> Result<(), Refusal> {
        let refuse = |what, is: usize| Refusal::of(what, i64::try_from(is).unwrap_or(i64::MAX));
        let most = i32::MAX as usize;
        if self.len_kv > most {
            return Err(refuse("len_kv", self.len_kv).but(Error::Overflow, "2^31 or more"));
        }
        if self.len_q > self.len_kv {
            let but = "query rows are the last tokens, but there are more than len_kv";
            return Err(refuse("len_q", self.len_q).against(Error::Shape, but, self.len_kv as i64));
        }
        for (what, is) in [("kept_q", self.kept_q), ("kept_kv", self.kept_kv)] {
            if is == 0 {
                return Err(refuse(what, is).but(Error::ZeroExtent, "must be at least 1"));
            }
        }
        let limits = [("min_density", self.min_density), ("max_density", self.max_density)];
        for (what, is) in [limits[0], limits[1], ("concentration", self.concentration)] {
            if is > ALL {
                return Err(Refusal::of(what, i64::from(is)).but(Error::Shape, "more than 1, which is 32768"));
            }
        }
        let coherences = [("coherence_low", self.coherence_low), ("coherence_high", self.coherence_high)];
        for ([(what, low), (_, high)], but) in
            [(limits, "more than max_density"), (coherences, "more than coherence_high")]
        {
            if low > high {
                return Err(Refusal::of(what, i64::from(low)).against(Error::Shape, but, i64::from(high)));
            }
        }
        self.check_list("partitions", self.partitions)?;
        if self.partitions.len() > 0 && self.partitions.get(0) != 0 {
            let fact = Refusal::of("partitions", i64::from(self.partitions.get(0))).at(0);
            return Err(fact.against(Error::Lengths, "the first one begins with token", 0));
        }
        self.check_list("boundary_tokens", self.boundary_tokens)
    }

    /// Refuses a list of tokens that are out of order, or that do not exist.
    fn check_list(&self, what: &'static str, list: Array<i32>) -> Result<(), Refusal> {
        let mut least = 0;
        for i in 0..list.len() {
            let token = i64::from(list.get(i));
            let fact = Refusal::of(what, token).at(i);
            if token < 0 {
                return Err(fact.but(Error::Lengths, "negative"));
            }
            if token < least {
                let but = "tokens are ascending, each once, but this is less than";
                return Err(fact.against(Error::Lengths, but, least));
            }
            if token >= self.len_kv as i64 {
                return Err(fact.against(Error::Lengths, "not below len_kv", self.len_kv as i64));
            }
            least = token + 1;
        }
        Ok(())
    }

    /// The target density, the pattern that comes near to it, and whether that is to see
    /// everything.
    fn choose(&self) -> (u32, Pattern, bool) {
        let natural = self.level(self.len_kv);
        let share = |pairs: u64| {
            let share = u128::from(pairs) * u128::from(ALL) / u128::from(self.all_pairs().max(1));
            share.min(u128::from(ALL)) as u32
        };
        let Some(target) = self.target() else {
            if self.schedule != Schedule::None {
                return (ALL, Pattern { window: self.len_kv, reach: self.len_kv }, true);
            }
            let is = share(self.pairs(natural).iter().sum());
            let target = is.clamp(self.min_density, self.max_density);
            let pattern = if target == is { natural } else { self.nearest(target) };
            return (target, pattern, false);
        };
        (target, self.nearest(target), false)
    }

    /// What the schedule says; `None` if there is none, or it may not be followed.
    fn target(&self) -> Option<u32> {
        let [low, high] = [self.coherence_low, self.coherence_high].map(i64::from);
        let coherence = i64::from(self.coherence).min(high);
        let [least, most] = [self.min_density, self.max_density].map(i64::from);
        if self.schedule == Schedule::None || coherence < low || self.partitions.len() < 2 {
            return None;
        }
        let target = match self.schedule {
            Schedule::None => return None,
            Schedule::Linear if low == high => most,
            Schedule::Linear => least + (coherence - low) * (most - least) / (high - low),
            Schedule::Threshold => {
                if coherence == high {
                    most
                } else {
                    least
                }
            }
            Schedule::Adaptive => {
                let full = (high / 2).max(1);
                let of_coherence = i64::from(ALL) * (6 * coherence.min(full) + full) / (10 * full);
                let of_boundaries = i64::from(self.concentration) / 5;
                let of_partitions = i64::from(ALL) * self.partitions.len().min(4) as i64 / 20;
                let target = of_coherence + of_boundaries - of_partitions;
                target.clamp(ADAPTIVE_LIMITS[0], ADAPTIVE_LIMITS[1]).clamp(least, most)
            }
        };
        u32::try_from(target).ok()
    }

    /// Patterns, from sparse to dense. Up to `len_kv`, more and more of a partition is seen;
    /// beyond, more and more around it.
    fn level(&self, level: usize) -> Pattern {
        let window = self.window.min(self.len_kv);
        match level.checked_sub(self.len_kv) {
            None => Pattern { window, reach: level },
            Some(beyond) => Pattern { window: window.max(beyond), reach: self.len_kv },
        }
    }

    /// The densest pattern that is no denser than `target`, or else the sparsest one.
    fn nearest(&self, target: u32) -> Pattern {
        let most = u128::from(self.all_pairs()) * u128::from(target);
        let (mut low, mut high) = (0, 2 * self.len_kv);
        while low < high {
            let middle = high - (high - low) / 2;
            let pairs: u64 = self.pairs(self.level(middle)).iter().sum();
            if u128::from(pairs) * u128::from(ALL) <= most {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        self.level(low)
    }

    fn row_blocks(&self) -> usize {
        self.len_q.div_ceil(self.kept_q)
    }

    /// How many boundary tokens are kept.
    fn columns(&self) -> usize {
        self.boundary_tokens.len().min(self.max_edges)
    }

    /// A boundary token that is kept, which the checks have seen.
    fn column(&self, i: usize) -> usize {
        let at = i as u64 * self.boundary_tokens.len() as u64 / self.columns() as u64;
        self.boundary_tokens.get(at as usize) as usize
    }

    /// Pairs of dense attention.
    fn all_pairs(&self) -> u64 {
        let rows = self.len_q as u64;
        if self.causal {
            triangle(rows, (self.len_kv - self.len_q) as u64)
        } else {
            rows * self.len_kv as u64
        }
    }

    /// Pairs of a row and a key that it sees: in blocks, and in columns besides.
    fn pairs(&self, pattern: Pattern) -> [u64; 2] {
        let columns = || Below { number: |i| self.column(i), len: self.columns(), count: 0 };
        let (mut before, mut within) = (columns(), columns());
        let mut pairs = [0; 2];
        for Span { rows, token, blocks } in self.spans(pattern) {
            let first = blocks.start * self.kept_kv;
            let end = blocks.end.saturating_mul(self.kept_kv).min(self.len_kv);
            let columns_before = before.limit(first) as u64;
            if self.causal {
                // A block that is listed is not behind the row.
                pairs[0] += triangle(rows, (token - first) as u64);
                pairs[1] += rows * columns_before;
            } else {
                let columns_in_blocks = within.limit(end) as u64 - columns_before;
                pairs[0] += rows * (end - first) as u64;
                pairs[1] += rows * (self.columns() as u64 - columns_in_blocks);
            }
        }
        pairs
    }

    /// What each block of query rows sees.
    fn spans(&self, pattern: Pattern) -> impl Iterator<Item = Span> {
        let Partitions { len_q, len_kv, kept_q, kept_kv, .. } = *self;
        let start = |i| self.partitions.get(i) as usize;
        let partitions = || Below { number: start, len: self.partitions.len(), count: 0 };
        let (mut of_first, mut of_last) = (partitions(), partitions());
        (0..self.row_blocks()).map(move |r| {
            let rows = r * kept_q..(r * kept_q).saturating_add(kept_q).min(len_q);
            let [first, last] = [rows.start, rows.end - 1].map(|row| len_kv - len_q + row);
            // The first row sees farthest to the left, the last one to the right.
            let partition = of_first.limit(first + 1).checked_sub(1).map_or(0, start);
            let left = partition.max(first.saturating_sub(pattern.reach));
            let left = left.min(first.saturating_sub(pattern.window));
            let right = if self.causal {
                last
            } else {
                let next = of_last.limit(last + 1);
                let end = if next < self.partitions.len() { start(next) } else { len_kv };
                let right = (end - 1).min(last.saturating_add(pattern.reach));
                right.max(last.saturating_add(pattern.window).min(len_kv - 1))
            };
            Span { rows: rows.len() as u64, token: first, blocks: left / kept_kv..right / kept_kv + 1 }
        })
    }
}

/// The sum of `rows` consecutive numbers from `before + 1` on: keys that rows see one more of each.
fn triangle(rows: u64, before: u64) -> u64 {
    match rows {
        0 => 0,
        _ => rows * (before + 1) + rows * (rows - 1) / 2,
    }
}
