//! What happens to a score between the dot product and the softmax, and who sees what beyond
//! windows.

use std::ops::Range;

use super::cells::{BlockMask, Blocks};
use super::lists::{Lists, Words};
use crate::dtype::Dtype;
use crate::error::{Error, Refusal};
use crate::view::{Array, View};

/// Optional inputs that change scores.
#[derive(Clone, Copy, Debug, Default)]
pub struct Logits<'a> {
    /// cap · tanh(score / cap) in place of the score; 0 = off.
    pub softcap: f32,
    /// `[batch][heads_q][len_q]`, rows of len_kv elements: added to the scores (numbers, where -inf
    /// hides the key), or telling which keys are seen (bool).
    pub mask: Option<View<'a>>,
    /// Block-sparse attention.
    pub cells: Option<BlockMask<'a>>,
    /// Single keys, a list for each head: all rows see them, as far as the right end of their
    /// window, whatever its left end and the block mask leave.
    pub columns: Option<Lists<'a>>,
    /// Linear biases.
    pub slopes: Option<Slopes<'a>>,
    /// One more logit for each query head, without a value.
    pub sinks: Option<Array<'a, f32>>,
}

/// The slope of each query head: -slope · |p - j| is added to the score of the query at position p
/// and key j (Press et al. 2021, arXiv:2108.12409).
#[derive(Clone, Copy, Debug)]
pub struct Slopes<'a> {
    /// `[batch][heads_q]`, or `[heads_q]` for all.
    pub values: Array<'a, f32>,
    /// Values from one sequence to the next.
    pub batch_stride: usize,
    /// The mask holds what slopes are multiplied by, in place of -|p - j|.
    pub times_mask: bool,
}

/// Keys from which on masks are scanned for what they hide: of fewer, a scan costs more than it
/// saves.
pub(crate) const SCANNED_FROM: usize = 64;

/// Values of a list of slopes whose sequences are so far apart; `None` if no address space holds
/// as many.
pub fn needed_slopes(batch_stride: usize, batch: usize, heads: usize) -> Option<usize> {
    let Some(last) = batch.checked_sub(1) else { return Some(0) };
    last.checked_mul(batch_stride)?.checked_add(heads)
}

/// The words of a refusal of lists of single keys.
const COLUMNS: Words = Words {
    starts: "column_start",
    entries: "columns",
    too_many: "more than there are columns",
    disordered: "columns of a list are ascending, each once, but this is less than",
    unknown: "no key, of which there are len_kv",
};

impl Logits<'_> {
    /// Whether scores stay as they are until the softmax.
    pub(super) fn is_none(&self) -> bool {
        self.softcap == 0.0 && !self.hides() && self.slopes.is_none()
    }

    /// Whether keys may be hidden that windows and lengths leave.
    #[inline(always)]
    pub fn hides(&self) -> bool {
        self.has_masks() || self.columns.is_some()
    }

    /// Whether there is a mask or a block mask.
    #[inline(always)]
    pub fn has_masks(&self) -> bool {
        self.mask.is_some() || self.cells.is_some()
    }

    /// Whether masks say the same of all heads.
    pub fn hides_same_from_all_heads(&self) -> bool {
        let is_same = |view: &View| view.layout().stride[1] == 0;
        let cells = self.cells.as_ref();
        self.mask.as_ref().is_none_or(is_same) && cells.is_none_or(BlockMask::is_same_for_all_heads)
    }

    /// Whether elements of a row of a mask do not lie behind one another.
    pub(super) fn is_strided(&self) -> bool {
        let is_strided = |view: &View| view.layout().is_strided();
        self.mask.as_ref().is_some_and(is_strided)
            || self.cells.as_ref().is_some_and(|cells| match &cells.blocks {
                Blocks::Bytes(view) => is_strided(view),
                Blocks::Lists(_) => false,
            })
    }

    /// Addresses of the lists of single keys, and words for each.
    pub(super) fn addresses_of_columns(&self) -> [(Range<usize>, &'static str); 2] {
        let [starts, keys] = self
            .columns
            .map_or([0..0, 0..0], |Lists { starts, entries, .. }| [starts.addresses(), entries.addresses()]);
        [(starts, "shares memory with column_start"), (keys, "shares memory with columns")]
    }

    /// Addresses of its lists.
    pub(super) fn addresses(&self) -> [Range<usize>; 2] {
        let slopes = self.slopes.map(|slopes| slopes.values);
        [slopes, self.sinks].map(|list| list.map_or(0..0, |list| list.addresses()))
    }

    /// Refuses what does not fit a problem of these query rows and keys.
    pub(super) fn check(&self, queries: [usize; 3], len_kv: usize) -> Result<(), Refusal> {
        let [batch, heads, rows] = queries;
        if !self.softcap.is_finite() || self.softcap < 0.0 {
            let fact = Refusal::of_real("softcap", self.softcap);
            return Err(fact.but(Error::Softcap, "negative, infinite or NaN"));
        }
        if let Some(mask) = &self.mask {
            let layout = mask.layout();
            // Of a ragged batch it may be made for longer sequences than there are.
            let [b, h, r] = layout.extent;
            if [b, h] != [batch, heads] || r < rows || layout.dim < len_kv {
                return Err(Error::Shape.into());
            }
            if !layout.dtype.is_float() && layout.dtype != Dtype::Bool8 {
                return Err(Error::Dtype.into());
            }
        }
        if let Some(cells) = &self.cells {
            cells.check(queries, len_kv)?;
        }
        if let Some(columns) = &self.columns {
            // What these say of a key goes by its place in the sequence.
            let other = [(self.mask.is_some(), "mask"), (self.slopes.is_some(), "alibi_slopes")];
            if let Some((_, other)) = other.into_iter().find(|&(is_set, _)| is_set) {
                return Err(Refusal::about(Error::Shape, other, "set, but column_start is set, too"));
            }
            columns.check([batch, heads], [1, len_kv], &COLUMNS)?;
        }
        if let Some(slopes) = &self.slopes {
            let needed = needed_slopes(slopes.batch_stride, batch, heads);
            if needed.is_none_or(|needed| needed > slopes.values.len()) {
                return Err(Error::Shape.into());
            }
            let is_float = self.mask.is_some_and(|mask| mask.layout().dtype.is_float());
            if slopes.times_mask && !is_float {
                let but = "FA_MASK_TIMES_SLOPE, but no mask of numbers";
                return Err(Refusal::about(Error::Shape, "flags", but));
            }
        }
        if self.sinks.is_some_and(|sinks| sinks.len() != heads) {
            return Err(Error::Shape.into());
        }
        Ok(())
    }
}
