//! The reference of integer probabilities, and scores above it: see [`crate::attend::outliers`].

use std::ops::Range;

use super::block::Block;
use super::scratch::RowArrays;
use super::state::State;
use crate::attend::outliers::HEADROOM;
use crate::dtype::Stored;
use crate::dtype::i8::I8;
use crate::simd::{Body, Isa, MAX_LANES};

/// Keys belong to classes, by the remainder of their numbers in the block: at least so many, and
/// one for each lane. Sinks of a model are a few neighbours, which four classes would all have.
const CLASSES: usize = 8;

/// The largest score of each class of keys, where vectors of scores are added one after the other.
#[derive(Clone, Copy)]
pub(super) struct Maxima<S: Isa> {
    /// With fewer than [`CLASSES`] lanes they take turns; else the first has all.
    vectors: [S::F32; 2],
}

impl<S: Isa> Maxima<S> {
    /// Whether vectors take turns.
    const TAKE_TURNS: bool = {
        assert!(2 * S::LANES >= CLASSES);
        S::LANES < CLASSES
    };

    /// Those of no score.
    #[inline(always)]
    pub(super) fn new(s: S) -> Maxima<S> {
        Maxima { vectors: [s.splat(f32::NEG_INFINITY); 2] }
    }

    /// Adds the next vector of scores. NaN leaves the maxima alone.
    #[inline(always)]
    pub(super) fn add(&mut self, s: S, scores: S::F32) {
        let [this, other] = self.vectors;
        let this = s.max(scores, this);
        self.vectors = if const { Self::TAKE_TURNS } { [other, this] } else { [this, other] };
    }

    /// The largest score.
    #[inline(always)]
    pub(super) fn largest(&self, s: S) -> f32 {
        let [a, b] = self.vectors;
        s.horizontal_max(if const { Self::TAKE_TURNS } { s.max(a, b) } else { a })
    }

    /// The least of the maxima.
    #[inline(always)]
    fn least(&self, s: S) -> f32 {
        let [a, b] = self.vectors;
        let least = if const { Self::TAKE_TURNS } { s.min(a, b) } else { a };
        -s.horizontal_max(s.sub(s.splat(0.0), least))
    }

    /// The reference of a row whose largest score of a block is `max`: that, or what exceeds the
    /// median of the maxima by [`HEADROOM`], if that is less. Sinks in up to half of the
    /// classes leave it alone.
    #[inline(always)]
    pub(super) fn reference(&self, s: S, max: f32) -> f32 {
        if max - self.least(s) <= HEADROOM {
            return max;
        }
        let mut maxima = [f32::NEG_INFINITY; MAX_LANES];
        let [a, b] = self.vectors;
        // SAFETY: the array is as long as any vector, and as two of those that take turns.
        unsafe {
            s.store(maxima.as_mut_ptr(), a);
            if const { Self::TAKE_TURNS } {
                s.store(maxima.as_mut_ptr().add(S::LANES), b);
            }
        }
        max.min(median(&mut maxima) + HEADROOM)
    }
}

/// The median of those that are not -inf, or the smaller of the two in the middle.
#[inline(never)]
fn median(maxima: &mut [f32; MAX_LANES]) -> f32 {
    maxima.sort_unstable_by(|a, b| b.total_cmp(a));
    let seen = maxima.iter().filter(|&&max| max > f32::NEG_INFINITY).count();
    maxima[seen / 2]
}

/// A row of a block with scores above its reference.
pub(super) struct Outliers<'a> {
    pub(super) block: &'a Block<'a>,
    pub(super) rows: &'a RowArrays,
    /// Its running maximum is that of the block, and its output initialised.
    pub(super) state: &'a State,
    pub(super) row: usize,
    pub(super) visible: &'a Range<usize>,
    pub(super) reference: f32,
}

/// Adds what scores exceed the reference by to sum and output, key by key; these scores become the
/// reference. Kept out of line, because it is rare.
///
/// # Safety
/// The arrays have the row (I5), with scores of `visible`, -inf beside them; V is [`I8`].
#[cold]
#[inline(never)]
pub(super) unsafe fn add<S: Isa>(s: S, outliers: Outliers) {
    s.core().enter(outliers);
}

/// Prefetches the rows of V of these scores: they lie here and there, so that nothing else does.
///
/// # Safety
/// As for [`add`].
#[inline(always)]
unsafe fn prefetch_values<S: Isa>(s: S, outliers: &Outliers) {
    let Outliers { block, rows, row, visible, reference, .. } = *outliers;
    // SAFETY: I5, I7: the row of the arrays, which are whole vectors (caller).
    let scores = unsafe { rows.scores.add(row * rows.score_stride) };
    for at in (visible.start - visible.start % S::LANES..visible.end).step_by(S::LANES) {
        // SAFETY: as above.
        let exceeds = unsafe { s.gt(s.load(scores.add(at)), s.splat(reference)) };
        if s.any(exceeds) {
            for lane in 0..S::LANES {
                // SAFETY: as above.
                if unsafe { scores.add(at + lane).read() } > reference {
                    block.prefetch_value(s, at + lane);
                }
            }
        }
    }
}

impl Body for Outliers<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Outliers { block, rows, state, row, visible, reference } = self;
        let dim = block.work.problem().shape().dim_v;
        // SAFETY: I5, I7: the row of the arrays, which are whole vectors (the contract of `add`,
        // which alone runs this); I2: the sequence has the keys; I9: V is stored as I8.
        unsafe {
            let scores = rows.scores.add(row * rows.score_stride);
            let output = state.output.add(row * state.stride);
            let sums = rows.sums.add(row * S::LANES);
            prefetch_values(s, &self);
            let running_max = s.splat(state.running_max.add(row).read());
            let counted = s.exp2(s.sub(s.splat(reference), running_max));
            for at in (visible.start - visible.start % S::LANES..visible.end).step_by(S::LANES) {
                let x = s.load(scores.add(at));
                let exceeds = s.gt(x, s.splat(reference));
                if !s.any(exceeds) {
                    continue;
                }
                s.store(scores.add(at), s.select(exceeds, s.splat(reference), x));
                let excess = s.select(exceeds, s.sub(s.exp2(s.sub(x, running_max)), counted), s.splat(0.0));
                s.store(sums, s.add(s.load(sums), excess));
                let mut lanes = [0.0; MAX_LANES];
                s.store(lanes.as_mut_ptr(), excess);
                for (lane, &excess) in lanes.iter().enumerate() {
                    // The excess of a score of +inf is NaN, and has to be added, too.
                    if excess == 0.0 {
                        continue;
                    }
                    let value = block.raw_value(at + lane);
                    for d in (0..dim).step_by(S::LANES) {
                        let n = S::LANES.min(dim - d);
                        let v = if n == S::LANES {
                            I8::load(s, value, d)
                        } else {
                            I8::load_partial(s, value, d, n)
                        };
                        let to = output.add(d);
                        s.store(to, s.fma(v, s.splat(excess), s.load(to)));
                    }
                }
            }
        }
    }
}
