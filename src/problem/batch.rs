//! Where each sequence of a batch lies, and which of its keys each of its queries sees.

use std::ops::Range;

use super::lists::List;
use super::pages::Pages;
use super::semantics::{Position, Semantics, Window};
use super::spans::Spans;
use crate::error::{Error, Refusal};
use crate::view::Array;

/// How the sequences of a batch lie in the tensors. By default sequence b is entry b of every
/// tensor, and all have the same lengths.
#[derive(Clone, Copy, Debug, Default)]
pub struct Batch<'a> {
    /// Q, O and LSE have one entry with the rows of all sequences behind one another: those of
    /// sequence b from `starts_q[b]` to `starts_q[b + 1]`.
    pub starts_q: Option<Array<'a, i32>>,
    /// K and V have one entry with the keys of all sequences behind one another: those of sequence
    /// b from `starts_kv[b]` to `starts_kv[b + 1]`.
    pub starts_kv: Option<Array<'a, i32>>,
    /// Keys of each sequence that are in use: the first ones.
    pub kv_lens: Option<Array<'a, i32>>,
    /// The first key of each sequence that any row sees; those before it are hidden.
    pub kv_starts: Option<Array<'a, i32>>,
    /// Key position of query row 0 of each sequence, in place of [`Semantics::q_pos`].
    pub positions: Option<Array<'a, i32>>,
    /// Keys that see each other both ways.
    pub spans: Option<Spans<'a>>,
    /// K and V are pages.
    pub pages: Option<Pages<'a>>,
    /// Query rows and keys for which a ragged batch is planned; at least those of the longest
    /// sequence.
    pub most: [usize; 2],
}

impl Batch<'_> {
    /// Number of sequences, and rows for the longest, where their tensors have these extents;
    /// checks that every sequence lies within.
    pub(super) fn sizes(&self, q: [usize; 3], kv: [usize; 3]) -> Result<Sizes, Refusal> {
        let (batch_q, len_q) = longest("cu_len_q", self.starts_q, q)?;
        let (batch_kv, len_kv) = match &self.pages {
            None => longest("cu_len_kv", self.starts_kv, kv)?,
            Some(_) if self.starts_kv.is_some() => return Err(Error::Shape.into()),
            Some(pages) => (batch_q, pages.len_kv),
        };
        if batch_q != batch_kv {
            return Err(Error::Shape.into());
        }
        if let Some(lens) = self.kv_lens {
            if lens.len() != batch_q {
                return Err(Error::Shape.into());
            }
            for b in 0..batch_q {
                let most = self.starts_kv.map_or(len_kv, |starts| rows_between(starts, b).len());
                if !usize::try_from(lens.get(b)).is_ok_and(|len| len <= most) {
                    let fact = Refusal::of("kv_lens", i64::from(lens.get(b))).at(b);
                    return Err(fact.against(
                        Error::Lengths,
                        "negative, or more than the keys of the sequence",
                        most as i64,
                    ));
                }
            }
        }
        if let Some(starts) = self.kv_starts {
            if starts.len() != batch_q {
                return Err(Error::Shape.into());
            }
            for b in 0..batch_q {
                let keys = self.keys_of(b, len_kv);
                if !usize::try_from(starts.get(b)).is_ok_and(|start| start <= keys) {
                    let fact = Refusal::of("kv_starts", i64::from(starts.get(b))).at(b);
                    let but = "negative, or more than the keys of the sequence";
                    return Err(fact.against(Error::Lengths, but, keys as i64));
                }
            }
        }
        if let Some(spans) = &self.spans {
            spans.check(batch_q)?;
        }
        if let Some(pages) = &self.pages {
            if kv[2] == 0 || pages.starts.is_some_and(|starts| starts.len() != batch_q + 1) {
                return Err(Error::Shape.into());
            }
            // Lists that are all the same, and empty, are as many as they are said to be: no memory
            // bounds them.
            let lists = self.kv_lens.or(self.kv_starts);
            let is_one = pages.starts.is_none() && pages.stride == 0 && lists.is_none();
            for b in 0..if is_one { batch_q.min(1) } else { batch_q } {
                pages.check(b, self.first_key(b)..self.keys_of(b, len_kv), kv)?;
            }
        }
        let [most_q, most_kv] = self.most;
        let len_q = len_q.max(most_q);
        if let Some(positions) = self.positions {
            if positions.len() != batch_q {
                return Err(Error::Shape.into());
            }
            for b in 0..batch_q {
                Position::At(i64::from(positions.get(b))).check(len_q).map_err(|but| {
                    Refusal::of("q_positions", i64::from(positions.get(b))).at(b).against(
                        Error::Overflow,
                        but,
                        len_q as i64,
                    )
                })?;
            }
        }
        Ok(Sizes { batch: batch_q, len_q, len_kv: len_kv.max(most_kv) })
    }

    /// Whether sequences may differ in the keys that their rows see.
    pub(super) fn is_uneven(&self) -> bool {
        let lists = [self.starts_q, self.starts_kv, self.kv_lens, self.kv_starts, self.positions];
        lists.iter().any(Option::is_some) || self.spans.is_some()
    }

    /// Whether each sequence has a number of keys of its own.
    pub(super) fn has_lengths(&self) -> bool {
        self.starts_kv.is_some() || self.kv_lens.is_some()
    }

    /// Keys of sequence `b` that are in use; without a list, `all` are.
    #[inline(always)]
    pub(super) fn keys_of(&self, b: usize, all: usize) -> usize {
        let all = self.starts_kv.map_or(all, |starts| rows_between(starts, b).len());
        self.kv_lens.map_or(all, |lens| usize::try_from(lens.get(b)).unwrap_or(0))
    }

    /// The first key of sequence `b` that any row sees.
    #[inline(always)]
    fn first_key(&self, b: usize) -> usize {
        self.kv_starts.map_or(0, |starts| usize::try_from(starts.get(b)).unwrap_or(0))
    }

    /// Words for the first of its lists that `is_hit` by its addresses.
    pub(super) fn find_list(&self, is_hit: &dyn Fn(Range<usize>) -> bool) -> Option<&'static str> {
        let pages = self.pages.as_ref();
        let spans = self.spans.as_ref();
        let lists = [
            (self.starts_q, "shares memory with cu_len_q"),
            (self.starts_kv, "shares memory with cu_len_kv"),
            (self.kv_lens, "shares memory with kv_lens"),
            (pages.map(|pages| pages.table), "shares memory with block_table"),
            (pages.and_then(|pages| pages.starts), "shares memory with block_table_start"),
            (self.positions, "shares memory with q_positions"),
            (self.kv_starts, "shares memory with kv_starts"),
            (spans.map(|spans| spans.bounds), "shares memory with spans"),
            (spans.map(|spans| spans.starts), "shares memory with span_starts"),
        ];
        let hit = |(list, _): &(Option<Array<i32>>, _)| list.is_some_and(|list| is_hit(list.addresses()));
        lists.into_iter().find(hit).map(|(_, but)| but)
    }
}

/// Number of sequences, and rows and keys of the longest.
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) len_q: usize,
    pub(super) len_kv: usize,
}

/// Sequences in a tensor of these extents, and the rows of the longest.
fn longest(
    what: &'static str,
    starts: Option<Array<i32>>,
    [entries, _, rows]: [usize; 3],
) -> Result<(usize, usize), Refusal> {
    let Some(starts) = starts else { return Ok((entries, rows)) };
    if entries != 1 || starts.len() == 0 {
        return Err(Error::Shape.into());
    }
    let batch = starts.len() - 1;
    let (mut before, mut longest) = (0, 0);
    for b in 0..=batch {
        let start = start_at(what, starts, b, before, (rows, "beyond the rows of the tensor"))?;
        if b > 0 {
            longest = longest.max(start - before);
        }
        before = start;
    }
    Ok((batch, longest))
}

/// Entry `i` of a list of starts. Refuses one that is negative, less than the one before, or more
/// than `most`, in the words that go with that.
pub(super) fn start_at(
    what: &'static str,
    starts: Array<i32>,
    i: usize,
    before: usize,
    (most, beyond): (usize, &'static str),
) -> Result<usize, Refusal> {
    let fact = Refusal::of(what, i64::from(starts.get(i))).at(i);
    match usize::try_from(starts.get(i)) {
        Err(_) => Err(fact.but(Error::Lengths, "negative")),
        Ok(start) if start < before => {
            Err(fact.against(Error::Lengths, "less than the one before", before as i64))
        }
        Ok(start) if start > most => Err(fact.against(Error::Lengths, beyond, most as i64)),
        Ok(start) => Ok(start),
    }
}

/// The rows of sequence `b`; `sizes` has seen that they are numbers in order.
fn rows_between(starts: Array<i32>, b: usize) -> Range<usize> {
    let at = |b| usize::try_from(starts.get(b)).unwrap_or(0);
    at(b)..at(b + 1)
}

/// `range` intersected with `bounds`; empty, and in bounds, if they are disjoint.
#[inline(always)]
pub(crate) fn clip(range: Range<usize>, bounds: &Range<usize>) -> Range<usize> {
    let start = range.start.clamp(bounds.start, bounds.end);
    start..range.end.clamp(start, bounds.end)
}

/// `keys` without those of the gap at either end.
pub(crate) fn beside_gap(keys: Range<usize>, gap: &Range<usize>) -> Range<usize> {
    if gap.is_empty() || keys.is_empty() {
        return keys;
    }
    let start = if gap.contains(&keys.start) { gap.end.min(keys.end) } else { keys.start };
    let end = if gap.contains(&(keys.end - 1)) { gap.start.max(start) } else { keys.end };
    start..end
}

/// Keys that some query rows see: all of a range but those in a gap, which none of them sees.
#[derive(Clone, Debug)]
pub struct SeenKeys {
    /// From the first of them to the last.
    pub keys: Range<usize>,
    /// Keys of the range that none of the rows sees; there are some on both sides. Empty but with
    /// keys that the window does not hide.
    pub gap: Range<usize>,
}

impl SeenKeys {
    /// How many keys are seen.
    #[inline(always)]
    #[allow(clippy::len_without_is_empty, reason = "whether `keys` is empty says it")]
    pub fn len(&self) -> usize {
        self.keys.len() - self.gap.len()
    }
}

/// One sequence: where its rows are, and which keys they see.
///
/// A row at position p sees the keys of its window, which is widened to the span that has p, and
/// the first keys of the sequence as far as the window's right end; all of these from `first` on.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// Its number.
    pub batch: usize,
    /// Its query rows.
    pub len_q: usize,
    /// Its keys.
    pub len_kv: usize,
    /// The entry of Q, O and LSE that has its rows, and the first of them there.
    pub(super) q: [usize; 2],
    /// The entry of K and V that has its keys, and the first of them there. With pages: its number,
    /// and where its list begins in the page table.
    pub(super) kv: [usize; 2],
    /// Key position of query row 0.
    q_pos: i64,
    /// The window of query row 0: its first key, and the one behind its last, if there were
    /// infinitely many in both directions. The least and the largest number are no limits.
    window: [i64; 2],
    /// The first key that any row sees; at most `len_kv`.
    first: usize,
    /// The key behind those which the left end of the window does not hide; `first` if it hides all
    /// that are before it.
    always_end: usize,
    spans: Option<&'a Spans<'a>>,
    /// The keys of the tensors that are its keys, if these are not all; see
    /// [`Sequence::of_columns`].
    columns: Option<List<'a>>,
    /// Neighbouring query heads whose rows are taken as rows of one head; see
    /// [`Sequence::grouped`].
    heads: usize,
}

impl<'a> Sequence<'a> {
    /// Sequence `batch` of a problem with tensors of `rows` rows.
    #[inline(always)]
    pub(super) fn new(
        batch: usize,
        all: &'a Batch<'a>,
        [rows_q, rows_kv]: [usize; 2],
        semantics: &Semantics,
    ) -> Sequence<'a> {
        let place = |starts: Option<Array<i32>>, rows| match starts {
            None => ([batch, 0], rows),
            Some(starts) => {
                let rows = rows_between(starts, batch);
                ([0, rows.start], rows.len())
            }
        };
        let (q, len_q) = place(all.starts_q, rows_q);
        let (kv, len_kv) = place(all.starts_kv, rows_kv);
        let kv = all.pages.map_or(kv, |pages| [batch, pages.first(batch)]);
        let len_kv = all.kv_lens.map_or(len_kv, |lens| usize::try_from(lens.get(batch)).unwrap_or(0));
        let q_pos = match (all.positions, semantics.q_pos) {
            (Some(positions), _) => i64::from(positions.get(batch)),
            (None, Position::At(position)) => position,
            // Lengths fit i64: see `Shape`.
            (None, Position::End) => len_kv as i64 - len_q as i64,
        };
        let Window { left, right } = semantics.window;
        let window = [
            left.map_or(i64::MIN, |left| q_pos.saturating_sub_unsigned(left)),
            right.map_or(i64::MAX, |right| q_pos.saturating_add_unsigned(right).saturating_add(1)),
        ];
        let first = all.first_key(batch);
        let always = if left.is_some() { semantics.prefix_keys } else { 0 };
        let always_end = first.saturating_add(always).min(len_kv);
        let spans = all.spans.as_ref();
        Sequence {
            batch,
            len_q,
            len_kv,
            q,
            kv,
            q_pos,
            window,
            first,
            always_end,
            spans,
            columns: None,
            heads: 1,
        }
    }

    /// The sequence with the rows of `heads` neighbouring query heads, at least 1, taken as rows of
    /// one head: first row 0 of each of these heads, then row 1 of each. Positions and windows
    /// never decrease from row to row. Who reads or writes a row asks [`Sequence::line`] where it
    /// is.
    pub(crate) fn grouped(self, heads: usize) -> Sequence<'a> {
        Sequence { len_q: self.len_q * heads, heads, ..self }
    }

    /// The sequence with the listed keys in place of its own, as far as rows see some of these: key
    /// n is the nth of them. Rows see those before the right end of their window. So who computes
    /// a sequence computes single keys, too; what is said of keys by their place in the tensors
    /// does not hold for them: masks.
    pub(crate) fn of_columns(self, columns: List<'a>) -> Sequence<'a> {
        let columns = columns.within(self.first..self.len_kv);
        Sequence { len_kv: columns.count(), columns: Some(columns), first: 0, always_end: 0, ..self }
    }

    /// Whether its keys are single ones: see [`Sequence::of_columns`].
    #[inline(always)]
    pub(crate) fn is_of_columns(&self) -> bool {
        self.columns.is_some()
    }

    /// The single keys that are its keys, if they are.
    #[inline(always)]
    pub(super) fn columns(&self) -> Option<&List<'a>> {
        self.columns.as_ref()
    }

    /// `other`, grouped as this sequence is.
    pub(crate) fn like<'b>(&self, other: Sequence<'b>) -> Sequence<'b> {
        other.grouped(self.heads)
    }

    /// The query head and the row of a row, which is counted as that of `head` and those grouped
    /// with it.
    #[inline(always)]
    pub(crate) fn line(&self, head: usize, row: usize) -> [usize; 2] {
        if self.heads == 1 { [head, row] } else { [head + row % self.heads, row / self.heads] }
    }

    /// Its query rows, of each head.
    pub(crate) fn queries(&self) -> usize {
        self.len_q / self.heads
    }

    /// How many rows from `row` on have the same query position.
    #[inline(always)]
    pub(crate) fn rows_of_query(&self, row: usize) -> usize {
        if self.heads == 1 { 1 } else { self.heads - row % self.heads }
    }

    /// Whether neighbouring rows belong to different heads.
    #[inline(always)]
    pub(crate) fn is_grouped(&self) -> bool {
        self.heads != 1
    }

    /// The row of its head that a row is.
    #[inline(always)]
    fn query(&self, row: usize) -> usize {
        self.line(0, row)[1]
    }

    /// Key position of a query row.
    pub fn position(&self, row: usize) -> i64 {
        // Cannot overflow: checked by `Shape` for every row.
        self.q_pos + self.query(row) as i64
    }

    /// The first key that any row sees.
    #[inline(always)]
    pub fn first(&self) -> usize {
        self.first
    }

    /// A key that leads to what all keys share, where `seen` are those that some rows see: one of
    /// them, or any, since single keys may be seen where no others are. `None` without keys.
    #[inline(always)]
    pub(crate) fn some_key(&self, seen: &Range<usize>) -> Option<usize> {
        let key = if seen.is_empty() { self.first } else { seen.start };
        (key < self.len_kv).then_some(key)
    }

    /// Whether each row sees the keys of its window, and no others.
    #[inline(always)]
    pub fn has_windows_only(&self) -> bool {
        self.always_end == self.first
    }

    /// Whether rows see no keys from `key` on but those of their windows.
    #[inline(always)]
    pub fn has_windows_only_from(&self, key: usize) -> bool {
        self.has_windows_only() || key >= self.always_end
    }

    /// Whether each row's window lies one key further than that of the row before.
    #[inline(always)]
    pub fn has_even_windows(&self) -> bool {
        self.spans.is_none() && !self.is_grouped() && !self.is_of_columns()
    }

    /// From the first key that a query row sees to the last, as far as no mask hides them.
    #[inline(never)]
    pub fn visible(&self, row: usize) -> Range<usize> {
        let window = self.window_keys(row);
        if self.has_windows_only() { window } else { self.with_always(row, row).keys }
    }

    /// From the first key that some of `rows`, which are some, see to the last.
    pub fn seen_by(&self, rows: &Range<usize>) -> Range<usize> {
        self.seen(rows).keys
    }

    /// The first key that some of `rows`, which are some, see.
    #[inline(always)]
    pub fn seen_from(&self, rows: &Range<usize>) -> usize {
        match self.has_windows_only() {
            true => self.window_keys(rows.start).start,
            false => self.seen(rows).keys.start,
        }
    }

    /// The keys that some of `rows`, which are some, see.
    #[inline(always)]
    pub fn seen(&self, rows: &Range<usize>) -> SeenKeys {
        match self.has_windows_only() {
            true => SeenKeys { keys: self.windows_of(rows), gap: 0..0 },
            false => self.with_always(rows.start, rows.end - 1),
        }
    }

    /// The keys that the windows of some of `rows`, which are some, leave to them.
    #[inline(always)]
    pub fn windows_of(&self, rows: &Range<usize>) -> Range<usize> {
        // Windows move with the row, so the first and the last row bound all others.
        let start = self.window_keys(rows.start).start;
        start..self.window_keys(rows.end - 1).end.max(start)
    }

    /// [`Sequence::seen`] of rows `first` to `last` where some keys are always seen. Kept out of
    /// line: few problems have them.
    #[inline(never)]
    fn with_always(&self, first: usize, last: usize) -> SeenKeys {
        let always = self.always(last);
        let window = self.windows_of(&(first..last + 1));
        let gap = match (always.is_empty(), window.is_empty()) {
            (true, _) => return SeenKeys { keys: window, gap: 0..0 },
            (_, true) => return SeenKeys { keys: always, gap: 0..0 },
            _ if always.end < window.start => always.end..window.start,
            _ => 0..0,
        };
        SeenKeys { keys: always.start..window.end.max(always.end), gap }
    }

    /// Of `keys` those that every one of `rows` sees, where some keys are always seen: these, those
    /// in the windows of all rows, `windows`, or both if they are one range. Kept out of line.
    #[inline(never)]
    pub fn seen_by_all(
        &self,
        rows: &Range<usize>,
        windows: Range<usize>,
        keys: &Range<usize>,
    ) -> Range<usize> {
        let always = clip(self.always(rows.start), keys);
        match windows.len() {
            0 => always,
            _ if !always.is_empty() && always.end >= windows.start => {
                always.start.min(windows.start)..windows.end.max(always.end)
            }
            n if always.len() > n => always,
            _ => windows,
        }
    }

    /// From the first key of `block` that some of `rows` see to the last, where some keys are
    /// always seen. Kept out of line.
    #[inline(never)]
    pub fn seen_in(&self, rows: &Range<usize>, block: &Range<usize>) -> Range<usize> {
        let SeenKeys { keys, gap } = self.seen(rows);
        beside_gap(clip(keys, block), &gap)
    }

    /// Whether a query row sees a key, as far as no mask hides it.
    pub fn sees(&self, row: usize, key: usize) -> bool {
        self.window_keys(row).contains(&key) || (!self.has_windows_only() && self.always(row).contains(&key))
    }

    /// The keys that a query row sees though they may lie before its window.
    fn always(&self, row: usize) -> Range<usize> {
        let [_, end] = self.even_window(row);
        self.first..end.clamp(self.first as i64, self.always_end as i64) as usize
    }

    /// The keys that the window leaves to a query row.
    #[inline(always)]
    pub fn window_keys(&self, row: usize) -> Range<usize> {
        if let Some(columns) = &self.columns {
            return self.columns_before(columns, row);
        }
        let [start, end] = self.window(row).map(|bound| self.clamped(bound));
        start..end.max(start)
    }

    /// The single keys that a query row sees. Kept out of line: few problems have some.
    #[inline(never)]
    fn columns_before(&self, columns: &List, row: usize) -> Range<usize> {
        let [_, end] = self.window(row);
        0..columns.below(usize::try_from(end.max(0)).unwrap_or(usize::MAX))
    }

    /// A bound of a window, held to the keys that there are.
    #[inline(always)]
    fn clamped(&self, bound: i64) -> usize {
        bound.clamp(self.first as i64, self.len_kv as i64) as usize
    }

    /// The keys that a query row would see if there were infinitely many in both directions: the
    /// first, and the one behind the last. Neither is ever less than that of the row before, and
    /// windows of neighbours touch.
    #[inline(always)]
    pub fn window(&self, row: usize) -> [i64; 2] {
        match self.spans {
            None => self.even_window(row),
            Some(spans) => self.widened(spans, row),
        }
    }

    /// The window of a query, and the span that it is in: both have its position, so that they are
    /// one range. Kept out of line: few problems have spans.
    #[inline(never)]
    fn widened(&self, spans: &Spans, row: usize) -> [i64; 2] {
        let [start, end] = self.even_window(row);
        let span = spans.of(self.batch).at(self.position(row));
        span.map_or([start, end], |[first, last]| [start.min(first), end.max(last)])
    }

    /// [`Sequence::window`] without spans: one key further than that of the query before.
    #[inline(always)]
    fn even_window(&self, row: usize) -> [i64; 2] {
        let [start, end] = self.window;
        // `Shape` has checked positions. There are at most i64::MAX rows, so that a start that is
        // no limit, or was saturated, stays negative.
        let row = self.query(row) as i64;
        [start + row, end.saturating_add(row)]
    }
}
