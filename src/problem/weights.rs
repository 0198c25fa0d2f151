//! The optional output of probabilities: where they go, and of which heads and rows they are.

use std::ops::Range;

use super::batch::Sequence;
use crate::dtype::Dtype;
use crate::error::{Error, Refusal};
use crate::view::{Array, ViewMut};

/// Probabilities of all keys, for some query rows of some heads. Until a row is finished, its
/// scores stand where its probabilities will.
#[derive(Debug)]
pub struct Weights<'a> {
    /// f32 `[batch][heads of the list][rows of the list]`, each row with an element for each of
    /// len_kv keys.
    pub view: ViewMut<'a>,
    /// The query heads, ascending; without a list all of them.
    pub heads: Option<Array<'a, i32>>,
    /// The query rows of each sequence, ascending: counted from its first one, or, if they are
    /// negative, from its end, -1 being the last. Without a list all of them.
    pub rows: Option<Array<'a, i32>>,
}

impl Weights<'_> {
    /// Refuses what does not fit a problem of these query rows and keys.
    pub(super) fn check(&self, queries: [usize; 3], len_kv: usize) -> Result<(), Refusal> {
        let [batch, heads, rows] = queries;
        let layout = self.view.layout();
        if layout.dtype != Dtype::F32 {
            return Err(Error::Dtype.into());
        }
        if let Some(list) = self.heads {
            check_list("weight_heads", list, 0, heads)?;
        }
        if let Some(list) = self.rows {
            let is_from_end = list.len() > 0 && list.get(0) < 0;
            check_list("weight_rows", list, if is_from_end { rows } else { 0 }, rows)?;
        }
        let [b, h, r] = layout.extent;
        let fits = [b, h] == [batch, self.heads.map_or(heads, |list| list.len())]
            && self.rows.map_or(r >= rows, |list| r == list.len())
            && layout.dim >= len_kv;
        if fits { Ok(()) } else { Err(Error::Shape.into()) }
    }

    /// Addresses of its lists, and what they are called in refusals.
    pub(super) fn lists(&self) -> [(Range<usize>, &'static str); 2] {
        let lists =
            [(self.heads, "shares memory with weight_heads"), (self.rows, "shares memory with weight_rows")];
        lists.map(|(list, but)| (list.map_or(0..0, |list| list.addresses()), but))
    }

    /// Which of its heads is query head `head`, if that is one of them.
    pub fn head(&self, head: usize) -> Option<usize> {
        let Some(list) = self.heads else { return Some(head) };
        let at = first_from(list, head as i64, 0);
        (at < list.len() && i64::from(list.get(at)) == head as i64).then_some(at)
    }

    /// Which of its rows is query row `row` of a head of a sequence, if that is one of them.
    pub fn row(&self, sequence: &Sequence, row: usize) -> Option<usize> {
        let Some(list) = self.rows else { return Some(row) };
        let end = match list.len() {
            0 => return None,
            _ if list.get(0) < 0 => sequence.queries() as i64,
            _ => 0,
        };
        let at = first_from(list, row as i64, end);
        (at < list.len() && i64::from(list.get(at)) + end == row as i64).then_some(at)
    }
}

/// The first place of an ascending list whose number, plus `more`, is at least `least`.
fn first_from(list: Array<i32>, least: i64, more: i64) -> usize {
    let (mut low, mut high) = (0, list.len());
    while low < high {
        let middle = (low + high) / 2;
        if i64::from(list.get(middle)) + more < least {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// Refuses a list that does not ascend, or whose numbers are not among the `len` ones from -`below`
/// on.
fn check_list(what: &'static str, list: Array<i32>, below: usize, len: usize) -> Result<(), Refusal> {
    // Lengths fit i64: see `Shape`.
    let (first, len) = (-(below as i64), len as i64);
    let mut before = None;
    for at in 0..list.len() {
        let number = i64::from(list.get(at));
        let fact = Refusal::of(what, number).at(at);
        match before {
            Some(before) if number <= before => {
                return Err(fact.against(Error::Lengths, "not more than the one before", before));
            }
            _ if number < first && first == 0 => return Err(fact.but(Error::Lengths, "negative")),
            _ if number < first => {
                return Err(fact.against(Error::Lengths, "before the first row, less than", first));
            }
            _ if number >= first + len => {
                let (but, limit) = match first {
                    0 => ("not less than their number", len),
                    _ => ("not negative, but the first one is", i64::from(list.get(0))),
                };
                return Err(fact.against(Error::Lengths, but, limit));
            }
            _ => before = Some(number),
        }
    }
    Ok(())
}
