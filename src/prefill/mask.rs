//! Step 3: windows, and masks as far as they are ranges of keys. A key that a row does not see gets
//! the score -inf, whatever its score was (NaN included).
//!
//! What a lane tile sees of a block is cut into spans. A key that no row sees is in no span. A span
//! is full if every row of its vectors sees all of it, and partial otherwise: then the register
//! tiles at its ends are masked.

use std::ops::Range;

use crate::attend::MAX_WIDTH;
use crate::attend::blocks::clip;
use crate::attend::seen::Seen;
use crate::problem::Sequence;
use crate::simd::{Body, Isa};

/// Which keys of a block the rows of a lane tile see.
#[derive(Clone, Copy)]
pub(crate) struct Visible<'a> {
    pub(crate) sequence: &'a Sequence<'a>,
    /// Where masks may hide keys: what they leave.
    pub(crate) unmasked: Option<Unmasked<'a>>,
}

/// What masks leave of a block to the rows of a lane tile.
#[derive(Clone, Copy)]
pub(crate) struct Unmasked<'a> {
    /// The first of the keys, in whole groups, that some row sees, and the one behind the last.
    pub(crate) keys: [usize; 2],
    /// The keys that each row sees, from the first to the last; `None` if windows alone bound them,
    /// or masks are applied within windows.
    pub(crate) seen: Option<&'a [Seen]>,
    /// The first row of the lane tile.
    pub(crate) first_row: usize,
    /// The first key of the block.
    pub(crate) start: usize,
    /// Whether masks change no score within these ranges.
    pub(crate) is_plain: bool,
    /// Whether no block before had a key for any of the rows.
    pub(crate) begins: bool,
}

impl Visible<'_> {
    /// The keys of `block` that some row of the lane tile sees, and those between them, in whole
    /// groups.
    #[inline(always)]
    pub(crate) fn within(&self, block: &Range<usize>) -> Range<usize> {
        self.unmasked.map_or(block.clone(), |Unmasked { keys: [first, end], .. }| first..end)
    }

    /// What masks leave of a block to each of `rows`, and the first key of the block; `None` if
    /// windows alone bound that.
    #[inline(always)]
    fn seen(&self, rows: &Range<usize>) -> Option<(&[Seen], usize)> {
        let masks = self.unmasked?;
        let seen = masks.seen?;
        Some((&seen[rows.start - masks.first_row..rows.end - masks.first_row], masks.start))
    }
}

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
/// is cut. Kept out of line: it uses no vectors of `lanes`.
#[inline(never)]
pub(crate) fn spans(
    lanes: usize,
    visible: &Visible,
    rows: &Range<usize>,
    block: &Range<usize>,
    group: usize,
    whole: bool,
) -> [Span; 3] {
    let middle = rows.end.min(rows.start + lanes);
    let sequence = visible.sequence;
    let is_masked = visible.seen(rows).is_some();
    // Windows move with the row, so the first and the last row bound all others.
    let window = |row| if is_masked { 0..0 } else { sequence.window_keys(row) };
    let (first, low_last) = (window(rows.start), window(middle - 1));
    let (high_first, last) = match middle < rows.end {
        true => (window(middle), window(rows.end - 1)),
        false => (first.clone(), low_last.clone()),
    };
    let by_any = |rows: Range<usize>, first: &Range<usize>, last: &Range<usize>| {
        let keys = match visible.seen(&rows) {
            Some((seen, start)) => clip(Seen::by_any(seen, start), block),
            None if sequence.has_windows_only() => clip(first.start..last.end.max(first.start), block),
            None => sequence.seen_in(&rows, block),
        };
        whole_groups(keys, block, group)
    };
    let low = by_any(rows.start..middle, &first, &low_last);
    let high =
        if middle < rows.end { by_any(middle..rows.end, &high_first, &last) } else { low.end..low.end };
    // What a row sees may end before what the row before sees: beside keys that are always seen,
    // and under masks.
    let in_order = low.start <= high.start && low.end <= high.end;
    let whole = whole || (!is_masked && !sequence.has_windows_only_from(block.start));
    let [only_low, both, only_high] = if low.is_empty() {
        [high.start..high.start, high.start..high.start, high]
    } else if high.is_empty() {
        [low.clone(), low.end..low.end, low.end..low.end]
    } else if whole || !in_order {
        let (start, end) = (low.start.min(high.start), low.end.max(high.end));
        [start..start, start..end, end..end]
    } else {
        [low.start..low.end.min(high.start), clip(high.clone(), &low), high.start.max(low.end)..high.end]
    };
    let spans = [
        (only_low, 0, 1, rows.start..middle, [&first, &low_last]),
        (both, 0, 2, rows.clone(), [&first, &last]),
        (only_high, 1, 1, middle..rows.end, [&high_first, &last]),
    ];
    spans.map(|(keys, vector, vectors, rows, [first, last])| {
        let by_all = match visible.seen(&rows) {
            _ if keys.is_empty() => keys.clone(),
            Some((seen, start)) => clip(Seen::by_all(seen, start), &keys),
            None => {
                let windows = clip(last.start..first.end, &keys);
                if sequence.has_windows_only() {
                    windows
                } else {
                    sequence.seen_by_all(&rows, windows, &keys)
                }
            }
        };
        Span { by_all, keys, vector, vectors, rows }
    })
}

/// `keys`, extended to whole groups of a block.
#[inline(always)]
pub(crate) fn whole_groups(keys: Range<usize>, block: &Range<usize>, group: usize) -> Range<usize> {
    if group == 1 || keys.is_empty() {
        return keys;
    }
    let (start, end) = (keys.start - block.start, keys.end - block.start);
    keys.start - start % group..block.end.min(block.start + end.next_multiple_of(group))
}

impl Span {
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
        visible: &Visible,
        keys: &Range<usize>,
        scores: *mut f32,
    ) -> Sight {
        let sequence = visible.sequence;
        if visible.seen(&self.rows).is_none() {
            if !sequence.has_windows_only_from(self.keys.start) {
                // SAFETY: as many values (caller).
                unsafe { hide_beside_gap(sequence, self, scores, self.vectors * S::LANES, keys.clone()) };
                return Sight { low: [0; MAX_WIDTH], high: [i32::MAX; MAX_WIDTH] };
            }
            if !sequence.has_even_windows() {
                return self.uneven_sight(sequence);
            }
        }
        s.core().enter(See { span: self, visible })
    }

    /// [`Span::sight`] of the first `lanes` lanes, from what each row sees of the block that begins
    /// with key `start`. Kept out of line: few problems have masks.
    #[inline(never)]
    fn unmasked_sight(&self, lanes: usize, seen: &[Seen], start: usize, sight: &mut Sight) {
        // Both are in one block, which has at most i32::MAX keys.
        let (first, n) = ((self.keys.start - start) as i32, self.keys.len() as i32);
        for lane in 0..lanes.min(MAX_WIDTH) {
            // Lanes without a row see what the last row sees, as under windows.
            let Seen { low, high } = seen[lane.min(seen.len() - 1)];
            sight.low[lane] = (low - first).clamp(0, n);
            sight.high[lane] = (high - first).clamp(0, n);
        }
    }

    /// [`Span::sight`] where windows do not move with each row: they are widened to spans, or rows
    /// of several heads are taken as rows of one. Each query is asked for its own.
    #[inline(never)]
    fn uneven_sight(&self, sequence: &Sequence) -> Sight {
        let mut sight = Sight { low: [0; MAX_WIDTH], high: [0; MAX_WIDTH] };
        let mut lane = 0;
        while lane < MAX_WIDTH {
            let row = self.rows.end.min(self.rows.start + lane + 1) - 1;
            let window = clip(sequence.window_keys(row), &self.keys);
            // Lanes without a row see what the last row sees: their results go nowhere.
            let same = match self.rows.start + lane + 1 < self.rows.end {
                true => sequence.rows_of_query(row).min(MAX_WIDTH - lane),
                false => MAX_WIDTH - lane,
            };
            sight.low[lane..lane + same].fill((window.start - self.keys.start) as i32);
            sight.high[lane..lane + same].fill((window.end - self.keys.start) as i32);
            lane += same;
        }
        sight
    }
}

/// The arguments of [`Span::sight`].
struct See<'a> {
    span: &'a Span,
    visible: &'a Visible<'a>,
}

impl Body for See<'_> {
    type Out = Sight;

    #[inline(always)]
    fn run<S: Isa>(self, _s: S) -> Sight {
        let See { span, visible } = self;
        let Span { keys, rows, vectors, .. } = span;
        let mut sight = Sight { low: [0; MAX_WIDTH], high: [0; MAX_WIDTH] };
        if let Some((seen, start)) = visible.seen(rows) {
            span.unmasked_sight(vectors * S::LANES, seen, start, &mut sight);
            return sight;
        }
        // Counted in 32 bits from the first key, so that the loop becomes vector code: a block has
        // at most i32::MAX keys (`plan`), and positions far before it need not be told apart.
        let n = keys.len() as i64;
        let window = visible
            .sequence
            .window(rows.start)
            .map(|bound| bound.saturating_sub(keys.start as i64).clamp(-(MAX_WIDTH as i64), n) as i32);
        let floor = visible.sequence.first().saturating_sub(keys.start).min(keys.len()) as i32;
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
