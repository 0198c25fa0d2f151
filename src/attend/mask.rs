//! Step 2: what is not visible gets the score -inf, whatever its score was (NaN included).
//!
//! A block of keys is *skipped* when no row of the tile sees any of it, *full* when every row
//! sees all of it, and *partial* otherwise; only partial blocks pass through here.

use std::ops::Range;

use super::MAX_WIDTH;
use crate::problem::Problem;
use crate::simd::Isa;

/// Which of a block's keys each row of a tile sees.
pub(crate) struct Sight {
    /// First visible key of each lane, counted from `seen.start`.
    low: [i32; MAX_WIDTH],
    /// The key behind the last visible one of each lane, likewise.
    high: [i32; MAX_WIDTH],
    /// The keys that at least one row sees.
    pub(crate) seen: Range<usize>,
    /// The keys that every row sees; empty or within `seen`.
    pub(crate) by_all: Range<usize>,
}

impl Sight {
    /// What `rows` (at most `width` of them, `width` lanes) see of the keys in `block`. Lanes
    /// without a row see what the last row sees: their results go nowhere.
    #[inline(always)]
    pub(crate) fn new(problem: &Problem, rows: Range<usize>, width: usize, block: Range<usize>) -> Sight {
        // Windows move with the row, so the first and the last row bound all others.
        let first = problem.visible(rows.start);
        let last = problem.visible(rows.end - 1);
        let seen = clip(first.start..last.end, &block);
        let by_all = clip(last.start..first.end, &seen);
        let mut sight = Sight { low: [0; MAX_WIDTH], high: [0; MAX_WIDTH], seen, by_all };
        if sight.is_partial() {
            for lane in 0..width {
                let row = rows.end.min(rows.start + lane + 1) - 1;
                let keys = clip(problem.visible(row), &sight.seen);
                // A block is at most i32::MAX keys long: see `plan`.
                sight.low[lane] = (keys.start - sight.seen.start) as i32;
                sight.high[lane] = (keys.end - sight.seen.start) as i32;
            }
        }
        sight
    }

    /// Whether some row does not see some key of `seen`.
    #[inline(always)]
    pub(crate) fn is_partial(&self) -> bool {
        self.by_all != self.seen
    }

    /// One truth value a lane: does its row see key `seen.start + key`?
    #[inline(always)]
    pub(crate) fn lanes<S: Isa>(&self, s: S, key: usize, z: usize) -> S::Mask {
        let at = z * S::LANES;
        assert!(at + S::LANES <= MAX_WIDTH);
        // SAFETY: in bounds by the assertion, which the compiler resolves.
        unsafe {
            let low = s.load_i32(self.low.as_ptr().add(at));
            let high = s.load_i32(self.high.as_ptr().add(at));
            s.within(low, s.splat_i32(key as i32), high)
        }
    }
}

/// Sets the scores of what is not visible to -inf and returns the maximum of the others.
///
/// # Safety
/// `scores` holds `sight.seen.len() * Z` vectors.
#[inline(always)]
pub(crate) unsafe fn mask<S: Isa, const Z: usize>(s: S, scores: *mut f32, sight: &Sight) -> [S::F32; Z] {
    let hidden = s.splat(f32::NEG_INFINITY);
    let mut max = [hidden; Z];
    for key in 0..sight.seen.len() {
        for (z, max) in max.iter_mut().enumerate() {
            // SAFETY: key and z are below the caller's counts.
            unsafe {
                let at = scores.add((key * Z + z) * S::LANES);
                let score = s.select(sight.lanes(s, key, z), s.load(at), hidden);
                *max = s.max(score, *max);
                s.store(at, score);
            }
        }
    }
    max
}

/// The part of `range` that lies in `bounds`; empty, and in bounds, if there is none.
#[inline(always)]
fn clip(range: Range<usize>, bounds: &Range<usize>) -> Range<usize> {
    let start = range.start.clamp(bounds.start, bounds.end);
    start..range.end.clamp(start, bounds.end)
}
