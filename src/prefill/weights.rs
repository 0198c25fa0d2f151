//! Step 3 and 6 for those who want probabilities: scores go to the output before they become
//! probabilities, transposed from lanes to rows; see [`crate::attend::weights`].

use std::ops::Range;
use std::ptr;

use super::LaneTile;
use super::mask::Span;
use super::softmax::State;
use crate::attend::MAX_WIDTH;
use crate::attend::weights::{self, Row};
use crate::simd::transpose::{TransposeTile, transpose_partial};
use crate::simd::{Body, Isa, MAX_LANES};
use crate::work::query_tiles::QueryTile;

/// Prepares the rows of a query tile whose probabilities are wanted, before the first block of its
/// keys, or of a split with `keys`.
///
/// # Safety
/// Nobody else writes these keys (I3).
#[inline(never)]
pub(super) unsafe fn begin<S: Isa>(s: S, part: &QueryTile, keys: Option<Range<usize>>) {
    let keys = keys.unwrap_or_else(|| part.weighed(&part.rows()).keys);
    for at in part.rows().filter_map(|row| part.weights(row)) {
        // SAFETY: I3: an output row of the query tile; the sequence has the keys.
        unsafe { weights::hide(s, at, &keys) };
    }
}

/// Copies the scores of `spans` to the rows of the output. `scores` has them as they were written:
/// those of a key `tile.lanes` values behind those of the key before, but for spans of fewer
/// vectors, whose keys are as far apart as these are wide; `start` is the first key of the block.
///
/// # Safety
/// `scores` has the scores of the spans of the lane tile, masked, and the rows are the query tile's
/// (I3).
#[inline(never)]
pub(super) unsafe fn keep<S: Isa>(
    s: S,
    part: &QueryTile,
    tile: &LaneTile,
    spans: &[Span; 3],
    start: usize,
    scores: *const f32,
) {
    s.core().enter(Keep { part, tile, spans, start, scores });
}

/// The arguments of [`keep`], which alone makes one.
struct Keep<'a, 'p> {
    part: &'a QueryTile<'p>,
    tile: &'a LaneTile,
    spans: &'a [Span; 3],
    start: usize,
    scores: *const f32,
}

impl Body for Keep<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Keep { part, tile, spans, start, scores } = self;
        for span in spans.iter().filter(|span| !span.keys.is_empty()) {
            let scores = scores.wrapping_add((span.keys.start - start) * tile.lanes);
            let stride = span.vectors * S::LANES * 4;
            for (z, first) in span.rows.clone().step_by(S::LANES).enumerate() {
                let n = S::LANES.min(span.rows.end - first);
                let mut rows = [ptr::null_mut::<f32>(); MAX_LANES];
                for (row, at) in (first..first + n).zip(&mut rows) {
                    *at = part.weights(row).map_or(ptr::null_mut(), |at| at.wrapping_add(span.keys.start));
                }
                // SAFETY: a vector of the span, with the scores of its keys, and its rows (the
                // caller of `keep`).
                unsafe { copy(s, scores.wrapping_add(z * S::LANES), stride, span.keys.len(), &rows) };
            }
        }
    }
}

/// Copies the scores of `n` keys of one vector to `rows`, as far as these are not NULL. The scores
/// of a key lie `stride` bytes behind those of the key before.
///
/// # Safety
/// `scores` has a vector for each key, and each row has room for all keys.
#[inline(always)]
unsafe fn copy<S: Isa>(s: S, scores: *const f32, stride: usize, n: usize, rows: &[*mut f32; MAX_LANES]) {
    if rows.iter().all(|row| row.is_null()) {
        return;
    }
    for key in (0..n).step_by(S::LANES) {
        let here = S::LANES.min(n - key);
        let mut square = TransposeTile::uninit();
        let square = square.as_mut_ptr().cast::<f32>();
        // SAFETY: I7: `here` keys of the caller's; the square has room for a vector of vectors.
        unsafe {
            transpose_partial(s, scores.byte_add(key * stride), stride, here, square, S::LANES * 4, None);
            for (lane, row) in rows.iter().enumerate().take(S::LANES).filter(|(_, row)| !row.is_null()) {
                let (x, to) = (s.load(square.add(lane * S::LANES)), row.add(key));
                if here == S::LANES { s.store(to, x) } else { s.store_partial(to, here, x) }
            }
        }
    }
}

/// Turns the scores of a lane tile's rows into probabilities, once all keys have been seen.
/// `is_empty` tells which rows see no key.
///
/// # Safety
/// `state` is that after all keys, and the rows are the query tile's (I3), prepared by [`begin`].
#[inline(never)]
pub(super) unsafe fn finish<S: Isa>(
    s: S,
    part: &QueryTile,
    rows: &Range<usize>,
    state: State,
    is_empty: &[bool; MAX_WIDTH],
) {
    let (problem, sequence, head) = (part.problem(), part.sequence(), part.head());
    let keys = part.weighed(rows);
    for (lane, row) in rows.clone().enumerate() {
        let Some(at) = part.weights(row) else { continue };
        // SAFETY: a lane of the state, and an output row, of the caller's; `begin` has written all
        // of its keys.
        unsafe {
            let (max, sum) = (state.running_max.add(lane).read(), state.sum.add(lane).read());
            let row = Row { problem, sequence, head, row, max, sum, is_empty: is_empty[lane] };
            weights::finish(s, &row, &keys, at);
        }
    }
}
