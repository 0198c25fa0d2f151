//! Block-sparse attention: which blocks of query rows see which blocks of keys.

use std::ops::Range;

use super::batch::{Sequence, start_at};
use crate::error::{Error, Refusal};
use crate::view::{Array, View};

/// Which blocks of keys a block of query rows sees, as far as nothing else hides them.
#[derive(Clone, Copy, Debug)]
pub struct BlockMask<'a> {
    /// The blocks that are seen.
    pub blocks: Blocks<'a>,
    /// Query rows of a block; at least 1.
    pub rows: usize,
    /// Keys of a block; at least 1.
    pub keys: usize,
}

/// How blocks are given that are seen.
#[derive(Clone, Copy, Debug)]
pub enum Blocks<'a> {
    /// `[batch][heads_q][blocks of query rows]`, rows of a byte for each block of keys: nonzero =
    /// it is seen.
    Bytes(View<'a>),
    /// A list for each block of query rows.
    Lists(BlockLists<'a>),
}

/// Lists of blocks of keys, one for each block of query rows of each head: rows of a matrix in
/// compressed form (BSR).
#[derive(Clone, Copy, Debug)]
pub struct BlockLists<'a> {
    /// Where each list of a head begins in `blocks`, and where the last one ends.
    pub starts: Array<'a, i32>,
    /// Numbers of blocks of keys, ascending in each list, each once.
    pub blocks: Array<'a, i32>,
    /// Entries of `starts` from one sequence to the next, and from one head with lists to the next.
    pub stride: [usize; 2],
    /// Neighbouring query heads that share their lists; at least 1.
    pub shared_by: usize,
}

/// The blocks of keys that one block of query rows sees.
#[derive(Clone, Copy, Debug)]
pub struct BlockList<'a> {
    blocks: Array<'a, i32>,
    /// The first of them, and the one behind the last.
    first: usize,
    end: usize,
}

/// Entries of [`BlockLists::starts`] for `batch` sequences, `heads` heads with lists and `lists`
/// lists each; `None` if no address space holds as many.
pub fn needed_starts(stride: [usize; 2], batch: usize, heads: usize, lists: usize) -> Option<usize> {
    let (Some(b), Some(h)) = (batch.checked_sub(1), heads.checked_sub(1)) else { return Some(0) };
    let last = b.checked_mul(stride[0])?.checked_add(h.checked_mul(stride[1])?)?;
    last.checked_add(lists)?.checked_add(1)
}

impl<'a> BlockMask<'a> {
    pub(super) fn check(&self, queries: [usize; 3], len_kv: usize) -> Result<(), Refusal> {
        let [batch, heads, rows] = queries;
        if self.rows == 0 || self.keys == 0 {
            return Err(Error::ZeroExtent.into());
        }
        let blocks = [rows.div_ceil(self.rows), len_kv.div_ceil(self.keys)];
        match &self.blocks {
            Blocks::Bytes(view) => {
                let [b, h, r] = view.layout().extent;
                let is_large = r >= blocks[0] && view.layout().dim >= blocks[1];
                if [b, h] == [batch, heads] && is_large { Ok(()) } else { Err(Error::Shape.into()) }
            }
            Blocks::Lists(lists) => lists.check([batch, heads], blocks),
        }
    }

    /// Whether a query row sees a key.
    pub fn sees(&self, batch: usize, head: usize, row: usize, key: usize) -> bool {
        let (row, key) = (row / self.rows, key / self.keys);
        match &self.blocks {
            Blocks::Bytes(view) => view.get(batch, head, row, key) != 0.0,
            Blocks::Lists(lists) => lists.of(batch, head, row).has_all(key..key + 1),
        }
    }

    /// Whether all of `rows` see all of `keys`; neither range is empty.
    pub fn sees_all(
        &self,
        sequence: &Sequence,
        head: usize,
        rows: &Range<usize>,
        keys: &Range<usize>,
    ) -> bool {
        let keys = keys.start / self.keys..(keys.end - 1) / self.keys + 1;
        let batch = sequence.batch;
        let see = |head, row| match &self.blocks {
            Blocks::Bytes(view) => keys.clone().all(|key| view.get(batch, head, row, key) != 0.0),
            Blocks::Lists(lists) => lists.of(batch, head, row).has_all(keys.clone()),
        };
        if sequence.is_grouped() {
            let mut lines = rows.clone().map(|row| sequence.line(head, row));
            return lines.all(|[head, row]| see(head, row / self.rows));
        }
        let mut rows = rows.start / self.rows..=(rows.end - 1) / self.rows;
        rows.all(|row| see(head, row))
    }

    /// Whether all heads see the same.
    pub(super) fn is_same_for_all_heads(&self) -> bool {
        match &self.blocks {
            Blocks::Bytes(view) => view.layout().stride[1] == 0,
            Blocks::Lists(lists) => lists.stride[1] == 0,
        }
    }

    /// Addresses of its memory, and words for each.
    pub(super) fn addresses(&self) -> [(Range<usize>, &'static str); 2] {
        match &self.blocks {
            Blocks::Bytes(view) => [(view.addresses(), "shares memory with block_mask"), (0..0, "")],
            Blocks::Lists(BlockLists { starts, blocks, .. }) => [
                (starts.addresses(), "shares memory with kept_start"),
                (blocks.addresses(), "shares memory with kept_blocks"),
            ],
        }
    }
}

impl<'a> BlockLists<'a> {
    /// Refuses lists that are not there, are out of order, or name blocks of keys that do not
    /// exist; there are `blocks` blocks of query rows and of keys.
    fn check(&self, [batch, heads]: [usize; 2], blocks: [usize; 2]) -> Result<(), Refusal> {
        let BlockLists { starts, stride, shared_by, .. } = *self;
        if shared_by == 0 || !heads.is_multiple_of(shared_by) {
            return Err(Error::Shape.into());
        }
        let [lists, keys] = blocks;
        if needed_starts(stride, batch, heads / shared_by, lists).is_none_or(|needed| starts.len() < needed) {
            return Err(Error::Shape.into());
        }
        // Lists that are the same for all are looked at once.
        let distinct = |n: usize, stride: usize| if stride == 0 { n.min(1) } else { n };
        for b in 0..distinct(batch, stride[0]) {
            for h in 0..distinct(heads / shared_by, stride[1]) {
                self.check_head(b * stride[0] + h * stride[1], lists, keys)?;
            }
        }
        Ok(())
    }

    /// Refuses the lists of a head that begin with entry `at` of `starts`.
    fn check_head(&self, at: usize, lists: usize, keys: usize) -> Result<(), Refusal> {
        let mut before = 0;
        for i in at..=at + lists {
            let most = (self.blocks.len(), "more than there are blocks");
            let start = start_at("kept_start", self.starts, i, before, most)?;
            if i > at {
                self.check_list(before..start, keys)?;
            }
            before = start;
        }
        Ok(())
    }

    /// Refuses a list.
    fn check_list(&self, list: Range<usize>, keys: usize) -> Result<(), Refusal> {
        let mut least = 0;
        for i in list {
            let block = i64::from(self.blocks.get(i));
            let fact = Refusal::of("kept_blocks", block).at(i);
            if block < least {
                let but = match least {
                    0 => "negative",
                    _ => "blocks of a list are ascending, each once, but this is less than",
                };
                return Err(fact.against(Error::Lengths, but, least));
            }
            if block as usize >= keys {
                return Err(fact.against(
                    Error::Lengths,
                    "no block of len_kv keys, of which there are",
                    keys as i64,
                ));
            }
            least = block + 1;
        }
        Ok(())
    }

    /// The list of a block of query rows, which [`BlockLists::check`] has seen.
    #[inline]
    pub(crate) fn of(&self, batch: usize, head: usize, row: usize) -> BlockList<'a> {
        let at = batch * self.stride[0] + head / self.shared_by * self.stride[1] + row;
        let start = |at| usize::try_from(self.starts.get(at)).unwrap_or(0);
        BlockList { blocks: self.blocks, first: start(at), end: start(at + 1) }
    }
}

/// Lists of one problem are the same where they lie at the same place.
impl PartialEq for BlockList<'_> {
    fn eq(&self, other: &Self) -> bool {
        (self.first, self.end) == (other.first, other.end)
    }
}

impl BlockList<'_> {
    #[inline]
    fn block(&self, at: usize) -> usize {
        usize::try_from(self.blocks.get(at)).unwrap_or(0)
    }

    /// Where the first block is that is not below `block`.
    fn place(&self, block: usize) -> usize {
        let (mut low, mut high) = (self.first, self.end);
        while low < high {
            let middle = (low + high) / 2;
            if self.block(middle) < block {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The first of `blocks` that is seen.
    pub(crate) fn first(&self, blocks: Range<usize>) -> Option<usize> {
        let at = self.place(blocks.start);
        (at < self.end).then(|| self.block(at)).filter(|&block| block < blocks.end)
    }

    /// The last of `blocks` that is seen.
    pub(crate) fn last(&self, blocks: Range<usize>) -> Option<usize> {
        let at = self.place(blocks.end);
        (at > self.first).then(|| self.block(at - 1)).filter(|&block| block >= blocks.start)
    }

    /// Whether all of `blocks` are seen.
    pub(crate) fn has_all(&self, blocks: Range<usize>) -> bool {
        self.place(blocks.end) - self.place(blocks.start) == blocks.len()
    }
}
