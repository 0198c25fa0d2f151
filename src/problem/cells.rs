//! Block-sparse attention: which blocks of query rows see which blocks of keys.

use std::ops::Range;

use super::batch::Sequence;
use super::lists::{Lists, Words};
use crate::error::{Error, Refusal};
use crate::view::View;

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
    /// A list of blocks of keys for each block of query rows (BSR).
    Lists(Lists<'a>),
}

/// The words of a refusal of lists of blocks.
const WORDS: Words = Words {
    starts: "kept_start",
    entries: "kept_blocks",
    too_many: "more than there are blocks",
    disordered: "blocks of a list are ascending, each once, but this is less than",
    unknown: "no block of len_kv keys, of which there are",
};

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
            Blocks::Lists(lists) => lists.check([batch, heads], blocks, &WORDS),
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
            Blocks::Lists(Lists { starts, entries, .. }) => [
                (starts.addresses(), "shares memory with kept_start"),
                (entries.addresses(), "shares memory with kept_blocks"),
            ],
        }
    }
}
