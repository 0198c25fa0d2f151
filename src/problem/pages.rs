//! Keys that lie in pages: a table says which page of K and V has which keys of a sequence.

use std::ops::Range;

use crate::error::{Error, Refusal};
use crate::view::Array;

/// K and V are `[page][head_kv][token of the page]`; key j of a sequence is token j % size of the
/// page that is number j / size in the sequence's list.
#[derive(Clone, Copy, Debug)]
pub struct Pages<'a> {
    /// The lists of all sequences.
    pub table: Array<'a, i32>,
    /// Where each list begins in the table, and where the last ends, if they do not begin `stride`
    /// apart.
    pub starts: Option<Array<'a, i32>>,
    /// Entries of the table from one sequence to the next.
    pub stride: usize,
    /// Entries from the list of one kv head of a sequence to that of the next; 0 = all kv heads of
    /// a sequence have the same.
    pub head_stride: usize,
    /// Keys of the longest sequence, at most.
    pub len_kv: usize,
}

impl Pages<'_> {
    /// Refuses sequence `b`, whose rows see some of `keys`, if it has too few pages, or one that
    /// does not exist; there are `count` pages of `size` tokens and `heads` kv heads.
    pub(super) fn check(
        &self,
        b: usize,
        keys: Range<usize>,
        [count, heads, size]: [usize; 3],
    ) -> Result<(), Refusal> {
        let list = self.list(b).filter(|&[start, end]| start <= end && end <= self.table.len());
        let Some([start, end]) = list else {
            let fact = Refusal::of("block_table_start", b as i64);
            return Err(fact.but(Error::Lengths, "the list of this sequence is negative or out of order"));
        };
        let needed = keys.end.div_ceil(size);
        let heads = if self.head_stride == 0 { 1 } else { heads };
        let of_others = (heads - 1).checked_mul(self.head_stride);
        if of_others.and_then(|n| n.checked_add(needed)).is_none_or(|n| n > end - start) {
            let fact = Refusal::of("pages of a sequence that its keys need", needed as i64);
            let but = match heads {
                1 => "more than its list has",
                _ => "more than the list of its last kv head has room for, of all lists of the sequence",
            };
            return Err(fact.against(Error::Lengths, but, (end - start) as i64));
        }
        // Pages that have no key which is seen may be gone.
        let unused = if keys.is_empty() { needed } else { keys.start / size };
        for list in (0..heads).map(|head| start + head * self.head_stride) {
            for at in list + unused..list + needed {
                let page = self.table.get(at);
                if !usize::try_from(page).is_ok_and(|page| page < count) {
                    let fact = Refusal::of("block_table", i64::from(page)).at(at);
                    return Err(fact.against(Error::Page, "no page of the tensor, num_pages", count as i64));
                }
            }
        }
        Ok(())
    }

    /// Where the list of sequence `b` begins and ends.
    fn list(&self, b: usize) -> Option<[usize; 2]> {
        match self.starts {
            None => Some([b * self.stride, (b + 1) * self.stride]),
            Some(starts) => {
                let at = |b| (b < starts.len()).then(|| usize::try_from(starts.get(b)).ok())?;
                Some([at(b)?, at(b + 1)?])
            }
        }
    }

    /// Where the list of sequence `b` begins, which [`Pages::check`] has seen.
    pub(super) fn first(&self, b: usize) -> usize {
        self.list(b).map_or(0, |[start, _]| start)
    }

    /// The page at index `at` of the table, which [`Pages::check`] has seen.
    #[inline(always)]
    pub(super) fn page(&self, at: usize) -> usize {
        usize::try_from(self.table.get(at)).unwrap_or(0)
    }
}
