//! How keys are cut into blocks: at multiples of the block size from key 0, whatever a row sees.

use std::ops::Range;

/// `seen` intersected with the first block that it touches, extended down to a multiple of `group`
/// keys from the start of the block; empty if `seen` is. Blocks of `size` keys start at multiples
/// of `size` from key 0, whatever is seen.
#[inline(always)]
pub(crate) fn first_block(seen: &Range<usize>, size: usize, group: usize) -> Range<usize> {
    let into = seen.start % size;
    let end = seen.end.min((seen.start - into).saturating_add(size));
    if seen.is_empty() { seen.clone() } else { seen.start - into % group..end }
}

/// `seen` intersected with the block behind `block`; empty after the last.
#[inline(always)]
pub(crate) fn next_block(seen: &Range<usize>, block: &Range<usize>, size: usize) -> Range<usize> {
    block.end..seen.end.min(block.end.saturating_add(size))
}

/// `range` intersected with `bounds`; empty, and in bounds, if they are disjoint.
#[inline(always)]
pub(crate) fn clip(range: Range<usize>, bounds: &Range<usize>) -> Range<usize> {
    let start = range.start.clamp(bounds.start, bounds.end);
    start..range.end.clamp(start, bounds.end)
}
