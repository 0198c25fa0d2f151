//! Which keys of a block the lane tiles of a query tile see, where masks may hide keys. Blocks that
//! are hidden from all rows are skipped before anything of them is read; of the others, only what
//! lies between keys that some row sees is staged and computed.

use std::ops::Range;
use std::slice;

use super::mask::{Unmasked, Visible};
use super::{LaneTile, LaneTiles};
use crate::attend::seen::{Look, Seen, look};
use crate::simd::Isa;
use crate::work::query_tiles::QueryTile;

/// Arrays of a query tile; no elements where masks hide nothing.
#[derive(Clone, Copy)]
pub(super) struct MaskBuffers {
    /// What each row sees of the block.
    pub(super) seen: *mut Seen,
    /// One for each lane tile.
    pub(super) tiles: *mut TileMask,
}

/// What masks leave to a lane tile.
#[derive(Clone, Copy)]
pub(super) struct TileMask {
    /// Whether any row sees a key of the block.
    sees_any: bool,
    /// Whether masks change no score between the keys that each row sees.
    is_plain: bool,
    /// Whether a block has been computed.
    has_begun: bool,
}

impl MaskBuffers {
    /// Before the first block of keys.
    ///
    /// # Safety
    /// The arrays are those of a query tile with `n` lane tiles (I5).
    pub(super) unsafe fn begin(&self, n: usize) {
        for i in 0..n {
            // SAFETY: I5: one of the lane tiles (caller).
            unsafe {
                self.tiles.add(i).write(TileMask { sees_any: false, is_plain: false, has_begun: false })
            };
        }
    }

    /// Finds what the rows of each lane tile see of a block. Returns the keys between those that
    /// some row sees, in whole groups of `group` keys; and whether some lane tile is not plain.
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
    ) -> (Range<usize>, bool) {
        let (problem, sequence, head) = (part.problem(), part.sequence(), part.head());
        let (mut keys, mut is_mixed) = (block.end..block.start, false);
        for tile in LaneTiles::<S>::new(part.rows()) {
            // SAFETY: I5: rows and lane tiles of the query tile (caller).
            unsafe {
                let to = self.seen.add(tile.rows.start - part.rows().start);
                let (rows, n) = (tile.rows.clone(), tile.rows.len());
                let (start, asks_plain) = (block.start, true);
                let is_plain = look(
                    s,
                    Look { problem, sequence, head, rows, keys: block.clone(), start, asks_plain },
                    to,
                );
                let seen = Seen::by_any(slice::from_raw_parts(to, n), start);
                let tile = &mut *self.tiles.add(tile.index);
                *tile = TileMask { sees_any: !seen.is_empty(), is_plain, ..*tile };
                if tile.sees_any {
                    is_mixed |= !is_plain;
                    keys = keys.start.min(seen.start)..keys.end.max(seen.end);
                }
            }
        }
        if keys.is_empty() {
            return (block.end..block.end, false);
        }
        let (from, to) = (keys.start - block.start, keys.end - block.start);
        (keys.start - from % group..block.end.min(block.start + to.next_multiple_of(group)), is_mixed)
    }

    /// What [`MaskBuffers::look`] has found for a lane tile; `None` if no row sees any key of the
    /// block, which has `start` as its first key.
    ///
    /// # Safety
    /// The arrays are those of `part` (I5), and the block is the one that was looked at.
    #[inline(never)]
    pub(super) unsafe fn of_tile<'a>(
        &self,
        part: &'a QueryTile,
        tile: &LaneTile,
        start: usize,
    ) -> Option<Visible<'a>> {
        // SAFETY: I5: rows and lane tile of the query tile (caller).
        unsafe {
            let seen = self.seen.add(tile.rows.start - part.rows().start);
            let seen = slice::from_raw_parts(seen.cast_const(), tile.rows.len());
            let mask = &mut *self.tiles.add(tile.index);
            if !mask.sees_any {
                return None;
            }
            let begins = !mask.has_begun;
            mask.has_begun = true;
            let (first_row, is_plain) = (tile.rows.start, mask.is_plain);
            let unmasked = Some(Unmasked { seen, first_row, start, is_plain, begins });
            Some(Visible { sequence: part.sequence(), unmasked })
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
