//! Lists of numbers in place of a matrix of bytes: rows of a matrix in compressed form (CSR, BSR).

use std::ops::Range;

use super::batch::start_at;
use crate::error::{Error, Refusal};
use crate::view::Array;

/// Lists of keys, or of blocks of keys: some for each head, one for each block of its query rows,
/// or one for all.
#[derive(Clone, Copy, Debug)]
pub struct Lists<'a> {
    /// Where each list of a head begins in `entries`, and where the last one ends.
    pub starts: Array<'a, i32>,
    /// Numbers of keys or blocks, ascending in each list, each once.
    pub entries: Array<'a, i32>,
    /// Elements of `starts` from one sequence to the next, and from one head with lists to the
    /// next.
    pub stride: [usize; 2],
    /// Neighbouring query heads that share their lists; at least 1.
    pub shared_by: usize,
}

/// The words of a refusal: what starts, entries and what is listed are called.
pub(super) struct Words {
    pub(super) starts: &'static str,
    pub(super) entries: &'static str,
    /// Of a start that is larger than the number of entries, of entries that are out of order, and
    /// of an entry that is too large.
    pub(super) too_many: &'static str,
    pub(super) disordered: &'static str,
    pub(super) unknown: &'static str,
}

/// The keys, or blocks of keys, that some query rows see.
#[derive(Clone, Copy, Debug)]
pub struct List<'a> {
    entries: Array<'a, i32>,
    /// The first of them, and the one behind the last.
    first: usize,
    end: usize,
}

/// Elements of [`Lists::starts`] for `batch` sequences, `heads` heads with lists and `lists` lists
/// each; `None` if no address space holds as many.
pub fn needed_starts(stride: [usize; 2], batch: usize, heads: usize, lists: usize) -> Option<usize> {
    let (Some(b), Some(h)) = (batch.checked_sub(1), heads.checked_sub(1)) else { return Some(0) };
    let last = b.checked_mul(stride[0])?.checked_add(h.checked_mul(stride[1])?)?;
    last.checked_add(lists)?.checked_add(1)
}

impl<'a> Lists<'a> {
    /// Refuses lists that are not there, are out of order, or have numbers from `most` on; each
    /// head has `lists` of them.
    pub(super) fn check(
        &self,
        [batch, heads]: [usize; 2],
        [lists, most]: [usize; 2],
        words: &Words,
    ) -> Result<(), Refusal> {
        let Lists { starts, stride, shared_by, .. } = *self;
        if shared_by == 0 || !heads.is_multiple_of(shared_by) {
            return Err(Error::Shape.into());
        }
        if needed_starts(stride, batch, heads / shared_by, lists).is_none_or(|needed| starts.len() < needed) {
            return Err(Error::Shape.into());
        }
        // Lists that are the same for all are looked at once.
        let distinct = |n: usize, stride: usize| if stride == 0 { n.min(1) } else { n };
        for b in 0..distinct(batch, stride[0]) {
            for h in 0..distinct(heads / shared_by, stride[1]) {
                self.check_head(b * stride[0] + h * stride[1], lists, most, words)?;
            }
        }
        Ok(())
    }

    /// Refuses the lists of a head that begin with element `at` of `starts`.
    fn check_head(&self, at: usize, lists: usize, most: usize, words: &Words) -> Result<(), Refusal> {
        let mut before = 0;
        for i in at..=at + lists {
            let bound = (self.entries.len(), words.too_many);
            let start = start_at(words.starts, self.starts, i, before, bound)?;
            if i > at {
                self.check_list(before..start, most, words)?;
            }
            before = start;
        }
        Ok(())
    }

    /// Refuses a list.
    fn check_list(&self, list: Range<usize>, most: usize, words: &Words) -> Result<(), Refusal> {
        let mut least = 0;
        for i in list {
            let entry = i64::from(self.entries.get(i));
            let fact = Refusal::of(words.entries, entry).at(i);
            if entry < least {
                let but = if least == 0 { "negative" } else { words.disordered };
                return Err(fact.against(Error::Lengths, but, least));
            }
            if entry as usize >= most {
                return Err(fact.against(Error::Lengths, words.unknown, most as i64));
            }
            least = entry + 1;
        }
        Ok(())
    }

    /// List `n` of a head, which [`Lists::check`] has seen.
    #[inline]
    pub(crate) fn of(&self, batch: usize, head: usize, n: usize) -> List<'a> {
        let at = batch * self.stride[0] + head / self.shared_by * self.stride[1] + n;
        let start = |at| usize::try_from(self.starts.get(at)).unwrap_or(0);
        List { entries: self.entries, first: start(at), end: start(at + 1) }
    }
}

/// Lists of one problem are the same where they lie at the same place.
impl PartialEq for List<'_> {
    fn eq(&self, other: &Self) -> bool {
        (self.first, self.end) == (other.first, other.end)
    }
}

impl List<'_> {
    #[inline]
    fn entry(&self, at: usize) -> usize {
        usize::try_from(self.entries.get(at)).unwrap_or(0)
    }

    /// How many entries there are.
    #[inline]
    pub(crate) fn count(&self) -> usize {
        self.end - self.first
    }

    /// Entry `n`.
    #[inline]
    pub(crate) fn get(&self, n: usize) -> usize {
        self.entry(self.first + n)
    }

    /// How many entries are below `bound`.
    pub(crate) fn below(&self, bound: usize) -> usize {
        self.place(bound) - self.first
    }

    /// The part of the list that has the entries in `range`.
    pub(crate) fn within(&self, range: Range<usize>) -> Self {
        let first = self.place(range.start);
        Self { first, end: self.place(range.end).max(first), ..*self }
    }

    /// Where the first entry is that is not below `bound`.
    fn place(&self, bound: usize) -> usize {
        let (mut low, mut high) = (self.first, self.end);
        while low < high {
            let middle = (low + high) / 2;
            if self.entry(middle) < bound {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The first entry in `range`.
    pub(crate) fn first(&self, range: Range<usize>) -> Option<usize> {
        let at = self.place(range.start);
        (at < self.end).then(|| self.entry(at)).filter(|&entry| entry < range.end)
    }

    /// The last entry in `range`.
    pub(crate) fn last(&self, range: Range<usize>) -> Option<usize> {
        let at = self.place(range.end);
        (at > self.first).then(|| self.entry(at - 1)).filter(|&entry| entry >= range.start)
    }

    /// Whether all numbers in `range` are entries.
    pub(crate) fn has_all(&self, range: Range<usize>) -> bool {
        self.place(range.end) - self.place(range.start) == range.len()
    }
}
