//! Where each sequence of a batch lies, and which of its keys each of its queries sees.

use std::ops::Range;

use super::pages::Pages;
use super::semantics::{Position, Window};
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
        if let Some(pages) = &self.pages {
            let [count, _, size] = kv;
            if size == 0 || pages.starts.is_some_and(|starts| starts.len() != batch_q + 1) {
                return Err(Error::Shape.into());
            }
            // Lists that are all the same, and empty, are as many as they are said to be: no memory
            // bounds them.
            let is_one = pages.starts.is_none() && pages.stride == 0 && self.kv_lens.is_none();
            for b in 0..if is_one { batch_q.min(1) } else { batch_q } {
                let len = self.kv_lens.map_or(len_kv, |lens| usize::try_from(lens.get(b)).unwrap_or(0));
                pages.check(b, len, count, size)?;
            }
        }
        let [most_q, most_kv] = self.most;
        Ok(Sizes { batch: batch_q, len_q: len_q.max(most_q), len_kv: len_kv.max(most_kv) })
    }

    /// Addresses of its lists.
    pub(super) fn addresses(&self) -> [Range<usize>; 5] {
        let pages = self.pages.map(|pages| pages.table);
        let starts = self.pages.and_then(|pages| pages.starts);
        [self.starts_q, self.starts_kv, self.kv_lens, pages, starts]
            .map(|list| list.map_or(0..0, |list| list.addresses()))
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
        let fact = Refusal::of(what, i64::from(starts.get(b))).at(b);
        let start = match usize::try_from(starts.get(b)) {
            Err(_) => return Err(fact.but(Error::Lengths, "negative")),
            Ok(start) if start < before => {
                return Err(fact.against(Error::Lengths, "less than the one before", before as i64));
            }
            Ok(start) if start > rows => {
                return Err(fact.against(Error::Lengths, "beyond the rows of the tensor", rows as i64));
            }
            Ok(start) => start,
        };
        if b > 0 {
            longest = longest.max(start - before);
        }
        before = start;
    }
    Ok((batch, longest))
}

/// The rows of sequence `b`; `sizes` has seen that they are numbers in order.
fn rows_between(starts: Array<i32>, b: usize) -> Range<usize> {
    let at = |b| usize::try_from(starts.get(b)).unwrap_or(0);
    at(b)..at(b + 1)
}

/// One sequence: where its rows are, and which keys they see.
#[derive(Clone, Copy, Debug)]
pub struct Sequence {
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
    pub(super) q_pos: i64,
    pub(super) window: Window,
}

impl Sequence {
    /// Sequence `batch` of a problem with tensors of `rows` rows.
    #[inline(always)]
    pub(super) fn new(
        batch: usize,
        all: &Batch,
        [rows_q, rows_kv]: [usize; 2],
        q_pos: Position,
        window: Window,
    ) -> Sequence {
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
        let q_pos = match q_pos {
            Position::At(position) => position,
            // Lengths fit i64: see `Shape`.
            Position::End => len_kv as i64 - len_q as i64,
        };
        Sequence { batch, len_q, len_kv, q, kv, q_pos, window }
    }

    /// Key position of a query row.
    pub fn position(&self, row: usize) -> i64 {
        // Cannot overflow: checked by `Shape` for every row.
        self.q_pos + row as i64
    }

    /// The keys that the window leaves to a query row.
    pub fn visible(&self, row: usize) -> Range<usize> {
        let len = self.len_kv as i64;
        let [start, end] = self.window(row).map(|bound| bound.clamp(0, len) as usize);
        start..end.max(start)
    }

    /// The keys that the window leaves to at least one of `rows`, which are some.
    #[inline(always)]
    pub fn seen_by(&self, rows: &Range<usize>) -> Range<usize> {
        // Windows move with the row, so the first and the last row bound all others.
        let start = self.visible(rows.start).start;
        start..self.visible(rows.end - 1).end.max(start)
    }

    /// The keys that a query row would see if there were infinitely many in both directions: the
    /// first, and the one behind the last. Each row's window lies one key further than that of the
    /// row before.
    pub fn window(&self, row: usize) -> [i64; 2] {
        let Window { left, right } = self.window;
        let position = self.position(row);
        let start = left.map_or(i64::MIN, |left| position.saturating_sub_unsigned(left));
        let end = right.map_or(i64::MAX, |right| position.saturating_add_unsigned(right).saturating_add(1));
        [start, end]
    }
}
