//! The online softmax of the rows of a group and one block: see [`crate::prefill::softmax`] for the
//! method.

use std::marker::PhantomData;
use std::ops::Range;

use super::block::Block;
use super::gemv::Gemv;
use super::outliers::{self, Maxima, Outliers};
use super::scratch::RowArrays;
use super::state::State;
use super::weights;
use crate::attend::RESCALE_THRESHOLD;
use crate::attend::logits::Logits;
use crate::simd::{Body, Isa, MAX_LANES};

/// The number of each lane.
const LANE: [i32; MAX_LANES] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Turns the scores of a block into probabilities, row by row: what changes scores (softcap, bias,
/// mask), then the online softmax. Out of line: in the code of a whole call, the constants of exp2
/// would not stay in registers.
///
/// # Safety
/// `rows` and `state` are the arrays of the block's group (I5), with the scores of the block.
#[inline(never)]
pub(super) unsafe fn softmax<S: Isa, P: Gemv>(s: S, block: &Block, rows: &RowArrays, state: &State) {
    s.enter(Softmax::<P> { block, rows, state, compute: PhantomData });
}

/// Made by [`softmax`] alone, whose contract covers what it points to.
struct Softmax<'a, P> {
    block: &'a Block<'a>,
    rows: &'a RowArrays,
    state: &'a State,
    compute: PhantomData<P>,
}

impl<P: Gemv> Body for Softmax<'_, P> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Softmax { block, rows, state, .. } = self;
        let work = block.work;
        let (problem, sequence) = (work.problem(), work.sequence());
        let keys = block.start + block.keys.start..block.start + block.keys.end;
        for (r, (head, row)) in work.lines().enumerate() {
            let visible = block.visible(r);
            if visible.is_empty() {
                continue;
            }
            // SAFETY: I5: row r of the arrays, which hold whole vectors of keys (the contract of
            // `softmax`, which made this).
            unsafe {
                if problem.changes_scores()
                    && let Some(logits) =
                        Logits::of(problem, sequence, head, &work.rows, &keys, block.is_plain, block.masks())
                {
                    let scores = rows.scores.add(r * rows.score_stride);
                    logits.change_row(s, row, block.start, &visible, scores);
                }
                if block.has_gap {
                    block.hide_gap(row, &visible, rows.scores.add(r * rows.score_stride));
                }
                if problem.weights().is_some() {
                    let scores = rows.scores.add(r * rows.score_stride + visible.start);
                    let keys = block.start + visible.start..block.start + visible.end;
                    weights::keep(work, (head, row), &keys, scores);
                }
                softmax_of_row::<S, P>(s, block, rows, state, r, &visible);
            }
        }
    }
}

/// Turns the scores of the keys `visible` of row `r` into probabilities 2^(score - running
/// maximum), and adds them to its sum. Places beside them, up to whole vectors, become 0.
/// Afterwards they are multiplied by `scales`, those of their values. Where sums of a block are
/// integers, probabilities are relative to the largest score of the block, or to its reference if
/// they are rounded, and the weight of the block says what its sums count.
///
/// # Safety
/// `rows` and `state` have the row, with its scores (I5); `visible` is a part of the block, not
/// empty; scales are whole vectors.
#[inline(always)]
unsafe fn softmax_of_row<S: Isa, P: Gemv>(
    s: S,
    block: &Block,
    rows: &RowArrays,
    state: &State,
    r: usize,
    visible: &Range<usize>,
) {
    let scales = block.v_scales();
    let first = visible.start - visible.start % S::LANES;
    let never = s.splat(f32::NEG_INFINITY);
    // SAFETY: I5: row r of the arrays (caller); I7: scores and scales are whole vectors of keys.
    unsafe {
        let scores = rows.scores.add(r * rows.score_stride);
        let mut maxima = Maxima::new(s);
        for at in (first..visible.end).step_by(S::LANES) {
            let mut x = s.load(scores.add(at));
            if at < visible.start || at + S::LANES > visible.end {
                // A block is at most i32::MAX keys long: see `plan`.
                let low = s.splat_i32(visible.start as i32 - at as i32);
                let high = s.splat_i32((visible.end - at) as i32);
                x = s.select(s.in_range(low, s.load_i32(LANE.as_ptr()), high), x, never);
                s.store(scores.add(at), x);
            }
            // NaN, which they leave out, reappears as a probability.
            maxima.add(s, x);
        }
        let max = maxima.largest(s);
        let running_max = state.running_max.add(r);
        let old = running_max.read();
        if max > old + RESCALE_THRESHOLD {
            if old > f32::NEG_INFINITY {
                rescale(s, rows, state, r, old - max);
            }
            running_max.write(max);
        }
        // A row that has seen only scores of -inf has the running maximum -inf; subtracting that
        // from -inf would be NaN where 0 is meant.
        let finite = |x| if x > f32::NEG_INFINITY { x } else { 0.0 };
        let mut base = finite(running_max.read());
        let sums = rows.sums.add(r * S::LANES);
        let mut sum = s.load(sums);
        let mut before = sum;
        let mut weight = s.splat(1.0);
        if P::INT_ACC {
            let mut reference = max;
            if const { P::ROUNDS } {
                reference = maxima.reference(s, max);
                if max > reference {
                    outliers::add(s, Outliers { block, rows, state, row: r, visible, reference });
                    before = s.load(sums);
                }
            }
            weight = s.mul(s.exp2(s.splat(reference - base)), s.splat(1.0 / P::P_SCALE));
            s.store(rows.block_weights.add(r * S::LANES), weight);
            base = finite(reference);
            sum = s.splat(0.0);
        }
        let base = s.splat(base);
        for at in (first..visible.end).step_by(S::LANES) {
            let p = P::probability(s, s.sub(s.load(scores.add(at)), base));
            sum = s.add(sum, p);
            let p = match scales {
                Some(scales) => s.mul(p, s.load(scales.add(at))),
                None => p,
            };
            P::store_probabilities(s, scores, at, p);
        }
        let sum = if P::INT_ACC { s.fma(sum, weight, before) } else { sum };
        s.store(sums, sum);
    }
}

/// Multiplies the sums and the output of row `r` by 2^`by`.
///
/// # Safety
/// `rows` and `state` have the row (I5).
#[inline(always)]
unsafe fn rescale<S: Isa>(s: S, rows: &RowArrays, state: &State, r: usize, by: f32) {
    let factor = s.exp2(s.splat(by));
    // SAFETY: I5, I7: row r of the arrays (caller), which are whole vectors.
    unsafe {
        let sums = rows.sums.add(r * S::LANES);
        s.store(sums, s.mul(s.load(sums), factor));
        for d in (0..state.stride).step_by(S::LANES) {
            let at = state.output.add(r * state.stride + d);
            s.store(at, s.mul(s.load(at), factor));
        }
    }
}
