//! What decode does for those who want probabilities: see [`crate::attend::weights`].

use std::ops::Range;
use std::ptr;

use crate::attend::weights;
use crate::simd::Isa;
use crate::work::split_kv::SplitWork;

/// Prepares the keys of a split in the rows of a group whose probabilities are wanted.
///
/// # Safety
/// The split is one of the work's own, so that nobody else writes these keys (I3).
#[inline(never)]
pub(super) unsafe fn begin<S: Isa>(s: S, work: &SplitWork, split: usize) {
    for at in work.lines().filter_map(|(head, row)| work.weights(head, row)) {
        // SAFETY: I3: keys of the split in an output row of the group; the sequence has them.
        unsafe { weights::hide(s, at, &work.keys(split)) };
    }
}

/// Copies the scores of `keys`, which begin at `scores`, to the output row, if it is wanted.
///
/// # Safety
/// `scores` has as many, and the keys are some of a split of the work's own (I3).
#[inline(never)]
pub(super) unsafe fn keep(
    work: &SplitWork,
    (head, row): (usize, usize),
    keys: &Range<usize>,
    scores: *const f32,
) {
    if let Some(at) = work.weights(head, row) {
        // SAFETY: I3: keys of an output row, and as many scores, in scratch memory (caller). Bytes
        // need no alignment.
        unsafe {
            let to = at.wrapping_add(keys.start).cast::<u8>();
            ptr::copy_nonoverlapping(scores.cast::<u8>(), to, keys.len() * 4);
        }
    }
}
