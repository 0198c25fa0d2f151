//! Spans of keys that see each other both ways, whatever the window: images in a causal text, the
//! prompt of a prefix language model.

use super::batch::start_at;
use crate::error::{Error, Refusal};
use crate::view::Array;

/// The spans of all sequences: [begin, end) of key positions, two numbers each, ascending and
/// disjoint. A query whose position lies in one sees all its keys, besides what the window leaves
/// it.
#[derive(Clone, Copy, Debug)]
pub struct Spans<'a> {
    /// The numbers of all spans, sequence by sequence.
    pub bounds: Array<'a, i32>,
    /// The first span of each sequence, and where the last one's end.
    pub starts: Array<'a, i32>,
}

/// The spans of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct SpanList<'a> {
    bounds: Array<'a, i32>,
    /// The first of them, and the one behind the last.
    first: usize,
    end: usize,
}

impl<'a> Spans<'a> {
    /// Refuses lists that do not fit `batch` sequences, or are out of order.
    pub(super) fn check(&self, batch: usize) -> Result<(), Refusal> {
        if self.starts.len() != batch + 1 {
            return Err(Error::Shape.into());
        }
        let mut before = 0;
        for b in 0..=batch {
            let most = (self.bounds.len() / 2, "more than there are spans");
            before = start_at("span_starts", self.starts, b, before, most)?;
        }
        for b in 0..batch {
            let SpanList { first, end, .. } = self.of(b);
            let mut before = 0;
            for at in 2 * first..2 * end {
                let bound = i64::from(self.bounds.get(at));
                if bound < before {
                    let but = match before {
                        0 => "negative",
                        _ => "spans of a sequence are ascending and disjoint, but this is less than",
                    };
                    return Err(Refusal::of("spans", bound).at(at).against(Error::Lengths, but, before));
                }
                before = bound;
            }
        }
        Ok(())
    }

    /// The spans of sequence `b`, which [`Spans::check`] has seen.
    #[inline(never)]
    pub(super) fn of(&self, b: usize) -> SpanList<'a> {
        let start = |b| usize::try_from(self.starts.get(b)).unwrap_or(0);
        SpanList { bounds: self.bounds, first: start(b), end: start(b + 1) }
    }
}

impl SpanList<'_> {
    /// The first key of the span that has a position, and the one behind its last.
    pub(super) fn at(&self, position: i64) -> Option<[i64; 2]> {
        let bound = |at| i64::from(self.bounds.get(at));
        // The first span that ends behind the position.
        let (mut low, mut high) = (self.first, self.end);
        while low < high {
            let middle = (low + high) / 2;
            if bound(2 * middle + 1) <= position {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        (low < self.end && bound(2 * low) <= position).then(|| [bound(2 * low), bound(2 * low + 1)])
    }
}
