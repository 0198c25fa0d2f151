//! How keys are cut into blocks: at multiples of the block size from key 0, whatever a row sees.

use std::ops::Range;

/// The first block that has visible keys: these keys, widened down to the beginning of a group.
/// Empty if no key is visible. Blocks of `size` keys start at multiples of `size` from key 0, and
/// groups of `group` keys at multiples of `group` from the start of the block.
#[inline(always)]
pub(crate) fn first_block(visible: &Range<usize>, size: usize, group: usize) -> Range<usize> {
    let into = visible.start % size;
    let end = visible.end.min((visible.start - into).saturating_add(size));
    if visible.is_empty() { visible.clone() } else { visible.start - into % group..end }
}

/// The visible keys of the block that follows `block`; empty after the last one.
#[inline(always)]
pub(crate) fn next_block(visible: &Range<usize>, block: &Range<usize>, size: usize) -> Range<usize> {
    block.end..visible.end.min(block.end.saturating_add(size))
}

/// The part of `range` that lies in `bounds`. If there is none, an empty range within `bounds`.
#[inline(always)]
pub(crate) fn clip(range: Range<usize>, bounds: &Range<usize>) -> Range<usize> {
    let start = range.start.clamp(bounds.start, bounds.end);
    start..range.end.clamp(start, bounds.end)
}
