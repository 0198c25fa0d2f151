//! How keys are cut into blocks: at multiples of the block size from key 0, whatever a row sees.
//! Blocks that nobody sees are left out: those before and behind all keys that are seen, and those
//! in a gap among them.

use std::ops::Range;

pub(crate) use crate::problem::batch::clip;
use crate::problem::{SeenKeys, Sequence};

/// The first block that has some of the keys `seen`: from the first of them, extended down to a
/// multiple of `group` keys from the start of the block, to the last; empty if there are none.
/// Blocks of `size` keys start at multiples of `size` from key 0, whatever is seen.
#[inline(always)]
pub(crate) fn first_block(seen: &SeenKeys, size: usize, group: usize) -> Range<usize> {
    let SeenKeys { keys, gap } = seen;
    if !gap.is_empty() {
        return block_beside_gap(seen, keys.start, size, group);
    }
    let into = keys.start % size;
    let end = keys.end.min((keys.start - into).saturating_add(size));
    if keys.is_empty() { keys.clone() } else { keys.start - into % group..end }
}

/// As [`first_block`], of the blocks behind `block`; empty after the last.
#[inline(always)]
pub(crate) fn next_block(seen: &SeenKeys, block: &Range<usize>, size: usize, group: usize) -> Range<usize> {
    let SeenKeys { keys, gap } = seen;
    if !gap.is_empty() {
        return block_beside_gap(seen, block.end, size, group);
    }
    block.end..keys.end.min(block.end.saturating_add(size))
}

/// The first block that has some of the keys `seen` from `from` on. Kept out of line: few problems
/// have a gap.
#[inline(never)]
fn block_beside_gap(
    SeenKeys { keys, gap }: &SeenKeys,
    from: usize,
    size: usize,
    group: usize,
) -> Range<usize> {
    let start = if gap.contains(&from) { gap.end } else { from };
    if start >= keys.end {
        return keys.end..keys.end;
    }
    let into = start % size;
    let end = keys.end.min((start - into).saturating_add(size));
    let gap_at_end = start < gap.start && gap.start < end && end <= gap.end;
    start - into % group..if gap_at_end { gap.start } else { end }
}

/// From the first key of `block` that a query row sees to the last.
#[inline(always)]
pub(crate) fn visible_in(sequence: &Sequence, row: usize, block: &Range<usize>) -> Range<usize> {
    match sequence.has_windows_only() {
        true => clip(sequence.window_keys(row), block),
        false => sequence.seen_in(&(row..row + 1), block),
    }
}
