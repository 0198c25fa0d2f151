//! Where the rows of new tokens are, and where in a cache of keys and values they go.

use std::iter;
use std::ops::Range;

use super::batch::{Batch, Sequence, Sizes};
use super::semantics::{Position, Semantics};
use crate::error::names::number;
use crate::error::{Error, Refusal};

/// The new tokens of all sequences. They are what a problem has as query rows, and the key position
/// of a row is where the token goes. All of these are keys in use.
#[derive(Debug)]
pub struct Slots<'a> {
    batch: Batch<'a>,
    /// Sequences.
    count: usize,
    /// New tokens, and keys, of a sequence where no list says otherwise.
    rows: [usize; 2],
    page_size: usize,
    semantics: Semantics,
}

/// New tokens that lie behind one another, and their places do, too.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Entry and row of the first new token.
    pub from: [usize; 2],
    /// Entry and row of its place in the cache.
    pub to: [usize; 2],
    /// How many there are.
    pub len: usize,
}

impl<'a> Slots<'a> {
    /// Of tensors of new tokens, and of a cache, with these extents; checks that every token has a
    /// place.
    pub fn new(
        batch: Batch<'a>,
        new: [usize; 3],
        cache: [usize; 3],
        position: Position,
    ) -> Result<Slots<'a>, Refusal> {
        let Sizes { batch: count, len_q, len_kv } = batch.sizes(new, cache)?;
        // Positions are i64.
        if i64::try_from(len_q.max(len_kv)).is_err() {
            return Err(Error::Overflow.into());
        }
        // Positions of a list have been checked.
        if batch.positions.is_none()
            && let Position::At(at) = position
        {
            position
                .check(len_q)
                .map_err(|but| Refusal::of("q_pos", at).against(Error::Overflow, but, number(len_q)))?;
        }
        let count = if new.contains(&0) { 0 } else { count };
        let semantics = Semantics { q_pos: position, ..Semantics::with_scale(1.0) };
        let slots = Slots { batch, count, rows: [len_q, len_kv], page_size: cache[2], semantics };
        // Sequences without lists are all alike.
        for b in 0..if slots.batch.is_uneven() { count } else { count.min(1) } {
            let sequence = slots.sequence(b);
            if sequence.len_q == 0 {
                continue;
            }
            let [first, last] = [0, sequence.len_q - 1].map(|row| sequence.position(row));
            let limits = [sequence.first(), sequence.len_kv].map(number);
            if first < limits[0] {
                let fact = Refusal::of("position of the first new token", first).at(b);
                return Err(fact.against(Error::Lengths, "before the first key of the sequence", limits[0]));
            }
            if last >= limits[1] {
                let fact = Refusal::of("position of the last new token", last).at(b);
                return Err(fact.against(Error::Lengths, "not below the keys of the sequence", limits[1]));
            }
        }
        Ok(slots)
    }

    /// How many sequences may have new tokens.
    pub fn sequences(&self) -> usize {
        self.count
    }

    /// The new tokens of a sequence, in their order: all at once, or those of each page.
    pub fn runs(&self, b: usize) -> impl Iterator<Item = Run> + '_ {
        let sequence = self.sequence(b);
        let ([entry, row], [of_keys, first]) = (sequence.q, sequence.kv);
        // `new` has seen that it is one of the keys, if there are rows.
        let start = usize::try_from(sequence.position(0)).unwrap_or(0);
        let mut done = 0;
        iter::from_fn(move || {
            let (left, key) = (sequence.len_q - done, start + done);
            if left == 0 {
                return None;
            }
            let (to, len) = match &self.batch.pages {
                None => ([of_keys, first + key], left),
                Some(pages) => {
                    let (page, token) = (key / self.page_size, key % self.page_size);
                    ([pages.page(first + page), token], left.min(self.page_size - token))
                }
            };
            let run = Run { from: [entry, row + done], to, len };
            done += len;
            Some(run)
        })
    }

    /// Words for the first of the lists that `is_hit` by its addresses.
    pub fn find_list(&self, is_hit: &dyn Fn(Range<usize>) -> bool) -> Option<&'static str> {
        self.batch.find_list(is_hit)
    }

    fn sequence(&self, b: usize) -> Sequence<'_> {
        Sequence::new(b, &self.batch, self.rows, &self.semantics)
    }
}
