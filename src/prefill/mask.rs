//! Step 3: windows. A key that a row does not see gets the score -inf, whatever its score was (NaN
//! included).
//!
//! What a lane tile sees of a block is cut into spans. A key that no row sees is in no span. A span
//! is full if every row of its vectors sees all of it, and partial otherwise: then the register
//! tiles at its ends are masked.

use std::ops::Range;

use crate::attend::MAX_WIDTH;
use crate::attend::blocks::clip;
use crate::problem::Sequence;
use crate::simd::{Body, Isa};

/// A range of keys, and the neighbouring vectors of a lane tile whose rows see some of them.
pub(crate) struct Span {
    /// The keys.
    pub(crate) keys: Range<usize>,
    /// The first of the vectors, and how many they are.
    pub(crate) vector: usize,
    pub(crate) vectors: usize,
    /// The rows in these vectors.
    pub(crate) rows: Range<usize>,
    /// The keys that every row sees.
    by_all: Range<usize>,
}

/// Cuts what a lane tile of `rows` (at most [`crate::attend::VECTORS`] vectors) sees of a block
/// into spans that the same vectors see, in the order of the keys; some may be empty. A key that
/// only half of the lane tile sees then costs half a tile. Spans begin at multiples of `group` keys
/// from the start of the block, and end there or at the end of the block. With `whole` there is one
/// span for each vector: sums of a block that are rounded once must not depend on where the block
/// is cut. Kept out of line: it uses
/// no vectors of `lanes`.
#[inline(never)]
pub(crate) fn spans(
    lanes: usize,
    sequence: &Sequence,
    rows: &Range<usize>,
    block: &Range<usize>,
    group: usize,
    whole: bool,
) -> [Span; 3] {
    let middle = rows.end.min(rows.start + lanes);
    // What some rows see, and what all rows see: windows move with the row, so the first and the
    // last row bound all others.
    let some = |first: &Range<usize>, last: &Range<usize>| first.start..last.end.max(first.start);
    let all = |first: &Range<usize>, last: &Range<usize>| last.start..first.end;
    let window = |row| sequence.window_keys(row);
    let (first, low_last) = (window(rows.start), window(middle - 1));
    let mut low = some(&first, &low_last);
    if middle == rows.end {
        if !sequence.has_windows_only() {
            low = sequence.seen_in(rows, block);
        }
        let low = whole_groups(clip(low, block), block, group);
        let nothing = low.end..low.end;
        let span = |keys| Span::new(sequence, keys, 0, 1, rows.clone(), all(&first, &low_last));
        return [span(low), span(nothing.clone()), span(nothing)];
    }
    let (high_first, last) = (window(middle), window(rows.end - 1));
    let mut high = some(&high_first, &last);
    let mut whole = whole;
    if !sequence.has_windows_only() {
        low = sequence.seen_in(&(rows.start..middle), block);
        high = sequence.seen_in(&(middle..rows.end), block);
        // What a row sees may end before what the row before sees.
        whole |= !sequence.has_windows_only_from(block.start);
    }
    let mut low = whole_groups(clip(low, block), block, group);
    let mut high = whole_groups(clip(high, block), block, group);
    if low.is_empty() {
        low = high.start..high.start;
    }
    if high.is_empty() {
        high = low.end..low.end;
    }
    let both = |keys| Span::new(sequence, keys, 0, 2, rows.clone(), all(&first, &last));
    if whole && !low.is_empty() && !high.is_empty() {
        let all = low.start.min(high.start)..low.end.max(high.end);
        let nothing = all.end..all.end;
        return [both(all), both(nothing.clone()), both(nothing)];
    }
    let low_only = low.start..low.end.min(high.start).max(low.start);
    let high_only = high.start.max(low.end).min(high.end)..high.end;
    [
        Span::new(sequence, low_only, 0, 1, rows.start..middle, all(&first, &low_last)),
        both(clip(high, &low)),
        Span::new(sequence, high_only, 1, 1, middle..rows.end, all(&high_first, &last)),
    ]
}

/// `keys`, extended to whole groups of a block.
#[inline(always)]
fn whole_groups(keys: Range<usize>, block: &Range<usize>, group: usize) -> Range<usize> {
    if group == 1 || keys.is_empty() {
        return keys;
    }
    let (start, end) = (keys.start - block.start, keys.end - block.start);
    keys.start - start % group..block.end.min(block.start + end.next_multiple_of(group))
}

impl Span {
    /// A span of `keys`; `windows` are the keys in the windows of all its rows.
    #[inline(always)]
    fn new(
        sequence: &Sequence,
        keys: Range<usize>,
        vector: usize,
        vectors: usize,
        rows: Range<usize>,
        windows: Range<usize>,
    ) -> Span {
        let mut by_all = clip(windows, &keys);
        if !sequence.has_windows_only() {
            by_all = sequence.seen_by_all(&rows, by_all, &keys);
        }
        Span { by_all, keys, vector, vectors, rows }
    }

    /// The keys before those that every row sees, these, and the keys behind them, counted from the
    /// first key of the span.
    #[inline(always)]
    pub(crate) fn thirds(&self) -> [Range<usize>; 3] {
        let (start, end) = (self.by_all.start - self.keys.start, self.by_all.end - self.keys.start);
        [0..start, start..end, end..self.keys.len()]
    }

    /// The keys that each lane sees, for [`mask`] of `keys`. Where they need not be a range, the
    /// scores of all others become -inf here, and the answer is that all are seen. Kept out of
    /// line, so that the code exists once for each instruction set.
    ///
    /// # Safety
    /// `scores` holds a value for each lane of the span, for each of `keys` and of those before.
    #[inline(never)]
    pub(crate) unsafe fn sight<S: Isa>(
        &self,
        s: S,
        sequence: &Sequence,
        keys: &Range<usize>,
        scores: *mut f32,
    ) -> Sight {
        if !sequence.has_windows_only_from(self.keys.start) {
            // SAFETY: as many values (caller).
            unsafe { hide_beside_gap(sequence, self, scores, self.vectors * S::LANES, keys.clone()) };
            return Sight { low: [0; MAX_WIDTH], high: [i32::MAX; MAX_WIDTH] };
        }
        if !sequence.has_even_windows() {
            return self.uneven_sight(sequence);
        }
        s.core().enter(See { span: self, sequence })
    }

    /// [`Span::sight`] where windows are widened to spans: each row is asked for its own.
    #[inline(never)]
    fn uneven_sight(&self, sequence: &Sequence) -> Sight {
        let mut sight = Sight { low: [0; MAX_WIDTH], high: [0; MAX_WIDTH] };
        for lane in 0..MAX_WIDTH {
            let row = self.rows.end.min(self.rows.start + lane + 1) - 1;
            let window = clip(sequence.window_keys(row), &self.keys);
            sight.low[lane] = (window.start - self.keys.start) as i32;
            sight.high[lane] = (window.end - self.keys.start) as i32;
        }
        sight
    }
}

/// The arguments of [`Span::sight`].
struct See<'a> {
    span: &'a Span,
    sequence: &'a Sequence<'a>,
}

impl Body for See<'_> {
    type Out = Sight;

    #[inline(always)]
    fn run<S: Isa>(self, _s: S) -> Sight {
        let See { span: Span { keys, rows, vectors, .. }, sequence } = self;
        let mut sight = Sight { low: [0; MAX_WIDTH], high: [0; MAX_WIDTH] };
        // Counted in 32 bits from the first key, so that the loop becomes vector code: a block has
        // at most i32::MAX keys (`plan`), and positions far before it need not be told apart.
        let n = keys.len() as i64;
        let window = sequence
            .window(rows.start)
            .map(|bound| bound.saturating_sub(keys.start as i64).clamp(-(MAX_WIDTH as i64), n) as i32);
        let floor = sequence.first().saturating_sub(keys.start).min(keys.len()) as i32;
        let (last, n) = (rows.len() as i32 - 1, n as i32);
        for lane in 0..*vectors * S::LANES {
            // Lanes without a row see what the last row sees: their results go nowhere.
            let further = last.min(lane as i32);
            sight.low[lane] = window[0].saturating_add(further).clamp(floor, n);
            sight.high[lane] = window[1].saturating_add(further).clamp(floor, n);
        }
        sight
    }
}

/// The keys of a span that each lane sees.
pub(crate) struct Sight {
    /// First visible key, counted from the first key of the span.
    low: [i32; MAX_WIDTH],
    /// The key behind the last visible one, counted from the first key of the span.
    high: [i32; MAX_WIDTH],
}

impl Sight {
    /// Whether the row of each lane of the span's vector `z` sees a key.
    #[inline(always)]
    pub(crate) fn lanes<S: Isa>(&self, s: S, key: usize, z: usize) -> S::Mask {
        let at = z * S::LANES;
        assert!(at + S::LANES <= MAX_WIDTH);
        // SAFETY: in bounds by the assertion, which the compiler evaluates.
        unsafe {
            let low = s.load_i32(self.low.as_ptr().add(at));
            let high = s.load_i32(self.high.as_ptr().add(at));
            s.in_range(low, s.splat_i32(key as i32), high)
        }
    }
}

/// Sets the scores of keys that a row does not see to -inf, in a span some of whose keys are always
/// seen: each row is asked for each of them. Kept out of line: few problems have such keys, and of
/// these few blocks.
///
/// # Safety
/// `scores` holds `width` values for each of `keys` and of those before.
#[inline(never)]
unsafe fn hide_beside_gap(
    sequence: &Sequence,
    span: &Span,
    scores: *mut f32,
    width: usize,
    keys: Range<usize>,
) {
    for key in keys {
        for lane in 0..width {
            // Lanes without a row see what the last row sees: their results go nowhere.
            let row = span.rows.end.min(span.rows.start + lane + 1) - 1;
            if !sequence.sees(row, span.keys.start + key) {
                // SAFETY: one of the values for `keys` (caller).
                unsafe { scores.add(key * width + lane).write(f32::NEG_INFINITY) };
            }
        }
    }
}

/// Sets the scores of hidden keys to -inf, and updates the maximum of each lane with the others.
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
            // SAFETY: one of the vectors for `keys` (caller).
            unsafe {
                let at = scores.add((key * Z + z) * S::LANES);
                let score = s.select(sight.lanes(s, key, z), s.load(at), hidden);
                *max = s.max(score, *max);
                s.store(at, score);
            }
        }
    }
}
