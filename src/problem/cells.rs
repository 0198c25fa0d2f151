//! Block-sparse attention: which blocks of query rows see which blocks of keys.

use std::ops::Range;

use super::batch::Sequence;
use crate::error::{Error, Refusal};
use crate::view::View;

/// `[batch][heads_q][blocks of query rows]`, rows of a byte for each block of keys: nonzero = these
/// rows see these keys, as far as nothing else hides them.
#[derive(Clone, Copy, Debug)]
pub struct BlockMask<'a> {
    /// The bytes.
    pub view: View<'a>,
    /// Query rows of a block; at least 1.
    pub rows: usize,
    /// Keys of a block; at least 1.
    pub keys: usize,
}

impl BlockMask<'_> {
    pub(super) fn check(&self, queries: [usize; 3], len_kv: usize) -> Result<(), Refusal> {
        let [batch, heads, rows] = queries;
        if self.rows == 0 || self.keys == 0 {
            return Err(Error::ZeroExtent.into());
        }
        let [b, h, r] = self.view.layout().extent;
        let is_large = r >= rows.div_ceil(self.rows) && self.view.layout().dim >= len_kv.div_ceil(self.keys);
        if [b, h] == [batch, heads] && is_large { Ok(()) } else { Err(Error::Shape.into()) }
    }

    /// Whether a query row sees a key.
    pub fn sees(&self, batch: usize, head: usize, row: usize, key: usize) -> bool {
        self.view.get(batch, head, row / self.rows, key / self.keys) != 0.0
    }

    /// Whether all of `rows` see all of `keys`; neither range is empty.
    pub fn sees_all(
        &self,
        sequence: &Sequence,
        head: usize,
        rows: &Range<usize>,
        keys: &Range<usize>,
    ) -> bool {
        let keys = keys.start / self.keys..=(keys.end - 1) / self.keys;
        let see = |head, row| keys.clone().all(|key| self.view.get(sequence.batch, head, row, key) != 0.0);
        if sequence.is_grouped() {
            let mut lines = rows.clone().map(|row| sequence.line(head, row));
            return lines.all(|[head, row]| see(head, row / self.rows));
        }
        let mut rows = rows.start / self.rows..=(rows.end - 1) / self.rows;
        rows.all(|row| see(head, row))
    }
}
