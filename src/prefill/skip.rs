//! Which keys of a block the lane tiles of a query tile see, where masks may hide keys. Blocks that
//! are hidden from all rows are skipped before anything of them is read; of the others, only what
//! lies between keys that some row sees is staged and computed.

use std::ops::Range;
use std::slice;

use super::accumulate::first_not_finite;
use super::mask::{Unmasked, Visible, whole_groups};
use super::{LaneTile, tile_rows};
use crate::attend::convert;
use crate::attend::rows::{Rows, key_rows};
use crate::attend::seen::{Found, Look, Seen, look, mark_seen};
use crate::problem::Shape;
use crate::simd::Isa;
use crate::view::Layout;
use crate::work::query_tiles::{QueryTile, TileSizes};
use crate::workspace::{ALIGN, Arena};

/// Arrays of a query tile; no elements where masks hide nothing.
#[derive(Clone, Copy)]
pub(super) struct MaskBuffers {
    /// What each row sees of the block.
    seen: *mut Seen,
    /// One for each lane tile.
    tiles: *mut TileMask,
    /// For each key of a block, whether any row sees it.
    keys: *mut u8,
    /// Rows of V as f32: those of a block, if they are read in place, or one of them.
    values: *mut u8,
}

/// What masks leave to a lane tile.
#[derive(Clone, Copy)]
struct TileMask {
    /// The keys of the block between those that some row sees, in whole groups, from the first to
    /// the one behind the last.
    keys: [usize; 2],
    found: Found,
    /// Whether a block has been computed.
    has_begun: bool,
}

/// Before any block.
const NOTHING: Found = Found { is_plain: false, fills_windows: false };

impl MaskBuffers {
    /// For lane tiles of `height` rows; `is_in_place` says that rows of V are read as f32 where
    /// they lie.
    pub(super) fn of(
        arena: &mut impl Arena,
        shape: &Shape,
        tiles: TileSizes,
        height: usize,
        is_in_place: bool,
    ) -> Self {
        let all = |n: usize| if shape.scans_masks { n } else { 0 };
        let values = if is_in_place { tiles.kv } else { 1 };
        MaskBuffers {
            seen: arena.take(all(tiles.q)),
            tiles: arena.take(all(tiles.q.div_ceil(height))),
            keys: arena.take(all(tiles.kv)),
            values: arena.take(all(convert::row_bytes(shape.dim_v)).checked_mul(values)),
        }
    }

    /// Before the first block of keys.
    ///
    /// # Safety
    /// The arrays are those of a query tile with `n` lane tiles (I5).
    #[inline(never)]
    pub(super) unsafe fn begin(&self, n: usize) {
        for i in 0..n {
            // SAFETY: I5: one of the lane tiles (caller).
            unsafe { self.tiles.add(i).write(TileMask { keys: [0; 2], found: NOTHING, has_begun: false }) };
        }
    }

    /// Finds what the rows of each lane tile see of a block. Returns the keys between those that
    /// some row sees, in whole groups of `group` keys; and whether some lane tile is not plain. Of
    /// the first block, masks are prefetched here.
    ///
    /// # Safety
    /// The arrays are those of `part` (I5), and [`MaskBuffers::begin`] was called.
    #[inline(never)]
    pub(super) unsafe fn look<S: Isa>(
        &self,
        s: S,
        part: &QueryTile,
        block: &Range<usize>,
        group: usize,
        is_first: bool,
    ) -> (Range<usize>, bool) {
        let (problem, sequence, head) = (part.problem(), part.sequence(), part.head());
        let (start, mut is_mixed) = (block.start, false);
        let mut keys = block.end..block.start;
        let (height, mut was_plain) = (tile_rows::<S>(), is_first);
        let Range { start: mut first, end } = part.rows();
        for i in 0..part.rows().len().div_ceil(height) {
            let rows = first..end.min(first + height);
            first = rows.end;
            // Of later blocks, that was done with the blocks before.
            if is_first && was_plain {
                prefetch(s, part, &rows, block);
            }
            // SAFETY: I5: rows and lane tiles of the query tile (caller).
            unsafe {
                let to = self.seen.add(rows.start - part.rows().start);
                let look_at = Look {
                    problem,
                    sequence,
                    head,
                    rows: rows.clone(),
                    keys: block.clone(),
                    start,
                    asks_plain: true,
                };
                let (seen, found) = look(&look_at, to);
                was_plain = found.is_plain;
                let tile = &mut *self.tiles.add(i);
                let seen = whole_groups(seen, block, group);
                *tile = TileMask { keys: [seen.start, seen.end], found, ..*tile };
                if !seen.is_empty() {
                    is_mixed |= !found.is_plain;
                    keys = keys.start.min(seen.start)..keys.end.max(seen.end);
                }
            }
        }
        if keys.is_empty() { (block.end..block.end, false) } else { (keys, is_mixed) }
    }

    /// What [`MaskBuffers::look`] has found for a lane tile; `None` if no row sees any key of the
    /// block, which has `start` as its first key. Prefetches what masks say of `next`, the next
    /// block, if it is likely to be looked at.
    ///
    /// # Safety
    /// The arrays are those of `part` (I5), and the block is the one that was looked at.
    #[inline(never)]
    pub(super) unsafe fn of_tile<'a, S: Isa>(
        &self,
        s: S,
        part: &'a QueryTile,
        tile: &LaneTile,
        start: usize,
        next: &Range<usize>,
    ) -> Option<Visible<'a>> {
        // SAFETY: I5: rows and lane tile of the query tile (caller).
        unsafe {
            let mask = &mut *self.tiles.add(tile.index);
            let [first, end] = mask.keys;
            if mask.found.is_plain {
                prefetch(s, part, &tile.rows, next);
            }
            if first >= end {
                return None;
            }
            let begins = !mask.has_begun;
            mask.has_begun = true;
            let Found { is_plain, fills_windows } = mask.found;
            let first_row = tile.rows.start;
            // Of rows that are not plain, no more than their keys is known.
            let seen = if is_plain && !fills_windows {
                let seen = self.seen.add(first_row - part.rows().start);
                Some(slice::from_raw_parts(seen.cast_const(), tile.rows.len()))
            } else {
                None
            };
            let unmasked = Some(Unmasked { keys: [first, end], seen, first_row, start, is_plain, begins });
            Some(Visible { sequence: part.sequence(), unmasked })
        }
    }

    /// Where some value of V, read as `v`, is not finite: takes the values of keys that masks hide
    /// from all rows out of the way, since such a value times the probability 0 is NaN. Returns V
    /// as it is to be read, and whether a value of another key is not finite. `is_packed` says that
    /// words of V have several keys. Kept out of line: it is rare.
    ///
    /// # Safety
    /// The arrays are those of `part` (I5), `keys` are some of the block with the first key `start`
    /// that was looked at, and `v` has their rows.
    #[cold]
    #[inline(never)]
    pub(super) unsafe fn clean<S: Isa>(
        &self,
        s: S,
        part: &QueryTile,
        keys: &Range<usize>,
        start: usize,
        is_staged: bool,
        is_packed: bool,
        v: Rows,
    ) -> (Rows, bool) {
        let (problem, sequence, head) = (part.problem(), part.sequence(), part.head());
        let (kv_head, dim) = (problem.kv_head(head), problem.shape().dim_v);
        let look =
            Look { problem, sequence, head, rows: part.rows(), keys: keys.clone(), start, asks_plain: false };
        // SAFETY: I5: rows and keys of the query tile, and rows of f32 for keys of a block; I2: the
        // sequence has the keys (caller).
        unsafe {
            mark_seen(&look, self.keys);
            let sees = |key: usize| self.keys.add(key).read() != 0;
            if is_packed {
                // These types have left the values out already.
                let row = Rows { base: self.values, stride: 0 };
                let is_finite = |key: usize| {
                    let source = key_rows(problem, problem.v(), sequence, kv_head, keys.start + key);
                    convert::convert(s, source, 1, dim, self.values);
                    first_not_finite(s, row, 0..1, dim).is_none()
                };
                return (v, (0..keys.len()).any(|key| sees(key) && !is_finite(key)));
            }
            let clean =
                if is_staged { v } else { Rows { base: self.values, stride: convert::row_bytes(dim) } };
            for key in 0..keys.len() {
                let to = clean.skip(key).base.cast_mut();
                if !sees(key) {
                    to.write_bytes(0, 4 * dim);
                } else if !is_staged {
                    to.copy_from_nonoverlapping(v.skip(key).base, 4 * dim);
                }
            }
            (clean, first_not_finite(s, clean, 0..keys.len(), dim).is_some())
        }
    }

    /// Whether any key was seen by a row of a lane tile.
    ///
    /// # Safety
    /// The arrays are those of the query tile that has the lane tile (I5).
    pub(super) unsafe fn has_begun(&self, tile: &LaneTile) -> bool {
        // SAFETY: I5: one of the lane tiles (caller).
        unsafe { (*self.tiles.add(tile.index)).has_begun }
    }
}

/// Prefetches what the masks of `rows` say of `keys`, which a look at them reads:
/// some lines of each row, which no hardware prefetcher follows. Kept out of line: few problems
/// have masks.
#[inline(never)]
fn prefetch<S: Isa>(s: S, part: &QueryTile, rows: &Range<usize>, keys: &Range<usize>) {
    let Some(mask) = &part.problem().logits().mask else { return };
    let Layout { dtype, stride: [_, _, stride], .. } = *mask.layout();
    if keys.is_empty() {
        return;
    }
    let [from, to] = [keys.start, keys.end - 1].map(|key| key * dtype.block_bytes());
    for row in if stride == 0 { rows.start..rows.start + 1 } else { rows.clone() } {
        let [head, row] = part.sequence().line(part.head(), row);
        let row = mask.row(part.sequence().batch, head, row);
        for at in (from..to).step_by(ALIGN) {
            s.prefetch_l2(row.wrapping_add(at));
        }
        s.prefetch_l2(row.wrapping_add(to));
    }
}
