//! Step 3: what is not visible gets the score -inf, whatever its score was (NaN included).
//!
//! What a tile sees of a block is cut into spans. A key that no row sees is in none; a span is *full*
//! when every row of its vectors sees all of it, and *partial* otherwise: then the register tiles at its
//! ends are masked.

use std::ops::Range;

use crate::attend::MAX_WIDTH;
use crate::attend::blocks::clip;
use crate::problem::Sequence;
use crate::simd::Isa;

/// A run of keys, and the neighbouring vectors of a tile whose rows see some of them.
pub(crate) struct Span {
    /// The keys.
    pub(crate) keys: Range<usize>,
    /// The first of the vectors, and how many they are.
    pub(crate) vector: usize,
    pub(crate) vectors: usize,
    /// The rows in these vectors.
    pub(crate) rows: Range<usize>,
    /// Those of the keys that every row sees.
    by_all: Range<usize>,
}

/// Cuts what a tile of `rows` (at most [`super::VECTORS`] vectors) sees of a block into runs that
/// are seen by the same vectors, in the order of the keys; empty where there are fewer. A key that
/// only half of the tile sees then costs half a tile. Runs begin and end at whole groups of keys, counted
/// from the start of the block, or at its end. With `whole` there is only one run for each vector: sums of a block
/// that are rounded once must not depend on where it is cut.
#[inline(always)]
pub(crate) fn spans<S: Isa>(
    sequence: &Sequence,
    rows: &Range<usize>,
    block: &Range<usize>,
    group: usize,
    whole: bool,
) -> [Span; 3] {
    let middle = rows.end.min(rows.start + S::LANES);
    let low = whole_groups(clip(sequence.seen_by(&(rows.start..middle)), block), block, group);
    if middle == rows.end {
        let nothing = low.end..low.end;
        return [
            Span::new(sequence, low, 0, 1, rows.clone()),
            Span::new(sequence, nothing.clone(), 0, 1, rows.clone()),
            Span::new(sequence, nothing, 0, 1, rows.clone()),
        ];
    }
    let high = whole_groups(clip(sequence.seen_by(&(middle..rows.end)), block), block, group);
    if whole && !low.is_empty() && !high.is_empty() {
        let all = low.start.min(high.start)..low.end.max(high.end);
        let nothing = all.end..all.end;
        return [
            Span::new(sequence, all, 0, 2, rows.clone()),
            Span::new(sequence, nothing.clone(), 0, 2, rows.clone()),
            Span::new(sequence, nothing, 0, 2, rows.clone()),
        ];
    }
    [
        Span::new(sequence, low.start..low.end.min(high.start).max(low.start), 0, 1, rows.start..middle),
        Span::new(sequence, clip(high.clone(), &low), 0, 2, rows.clone()),
        Span::new(sequence, high.start.max(low.end).min(high.end)..high.end, 1, 1, middle..rows.end),
    ]
}

/// The groups of a block that have any of `keys`.
#[inline(always)]
fn whole_groups(keys: Range<usize>, block: &Range<usize>, group: usize) -> Range<usize> {
    if group == 1 || keys.is_empty() {
        return keys;
    }
    let (start, end) = (keys.start - block.start, keys.end - block.start);
    keys.start - start % group..block.end.min(block.start + end.next_multiple_of(group))
}

impl Span {
    #[inline(always)]
    fn new(
        sequence: &Sequence,
        keys: Range<usize>,
        vector: usize,
        vectors: usize,
        rows: Range<usize>,
    ) -> Span {
        // Windows move with the row, so the first and the last row bound all others.
        let (first, last) = (sequence.visible(rows.start), sequence.visible(rows.end - 1));
        Span { by_all: clip(last.start..first.end, &keys), keys, vector, vectors, rows }
    }

    /// The keys that every row sees, and those before and behind, counted from the first of the span: in
    /// the order of the keys.
    #[inline(always)]
    pub(crate) fn thirds(&self) -> [Range<usize>; 3] {
        let (start, end) = (self.by_all.start - self.keys.start, self.by_all.end - self.keys.start);
        [0..start, start..end, end..self.keys.len()]
    }

    /// What each lane sees.
    #[inline(always)]
    pub(crate) fn sight<S: Isa>(&self, sequence: &Sequence) -> Sight {
        let mut sight = Sight { low: [0; MAX_WIDTH], high: [0; MAX_WIDTH] };
        // Counted in 32 bits from the first key on, which makes vector code of the loop: a block is at
        // most i32::MAX keys long (see `plan`), and what lies far before it need not be told apart.
        let n = self.keys.len() as i64;
        let window = sequence
            .window(self.rows.start)
            .map(|bound| bound.saturating_sub(self.keys.start as i64).clamp(-(MAX_WIDTH as i64), n) as i32);
        let (last, n) = (self.rows.len() as i32 - 1, n as i32);
        for lane in 0..self.vectors * S::LANES {
            // Lanes without a row see what the last row sees: their results go nowhere.
            let further = last.min(lane as i32);
            sight.low[lane] = window[0].saturating_add(further).clamp(0, n);
            sight.high[lane] = window[1].saturating_add(further).clamp(0, n);
        }
        sight
    }
}

/// Which keys of a span each lane sees.
pub(crate) struct Sight {
    /// First visible key, counted from the first of the span.
    low: [i32; MAX_WIDTH],
    /// The key behind the last visible one, likewise.
    high: [i32; MAX_WIDTH],
}

impl Sight {
    /// One truth value a lane of the span's vector `z`: does its row see this key?
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

/// Sets the scores of `keys` that are not visible to -inf and takes the others into the maximum.
///
/// # Safety
/// `scores` holds `Z` vectors for each of `keys` and of those before.
#[inline(always)]
pub(crate) unsafe fn mask<S: Isa, const Z: usize>(
    s: S,
    scores: *mut f32,
    keys: Range<usize>,
    sight: &Sight,
    max: &mut [S::F32; Z],
) {
    let hidden = s.splat(f32::NEG_INFINITY);
    for key in keys {
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
}
