//! The online softmax of one row and one block: see [`crate::prefill::softmax`] for the method.

use std::ops::Range;

use super::gemv::Gemv;
use super::state::State;
use super::{LANE, Lines};
use crate::attend::RESCALE_THRESHOLD;
use crate::simd::Isa;

/// Turns the scores of `seen` of row `r` into probabilities 2^(score - reference), and adds them to
/// its sum. Places beside them, up to whole vectors, become 0. Afterwards they are multiplied by `scales`, those of
/// their values. Where sums of a block are integers, they are relative to the block's largest score, and the row's
/// weight is what they count.
///
/// # Safety
/// `lines` and `state` have the row, and its scores; `seen` is a part of the block, not empty, and scales are whole
/// vectors.
#[inline(always)]
pub(super) unsafe fn softmax<S: Isa, P: Gemv>(
    s: S,
    lines: &Lines,
    state: &State,
    r: usize,
    seen: &Range<usize>,
    scales: Option<*const f32>,
) {
    let first = seen.start - seen.start % S::LANES;
    let never = s.splat(f32::NEG_INFINITY);
    // SAFETY: lines are as long as whole vectors of keys.
    unsafe {
        let scores = lines.scores.add(r * lines.scores_step);
        let mut max = never;
        for at in (first..seen.end).step_by(S::LANES) {
            let mut x = s.load(scores.add(at));
            if at < seen.start || at + S::LANES > seen.end {
                // A block is at most i32::MAX keys long: see `plan`.
                let low = s.splat_i32(seen.start as i32 - at as i32);
                let high = s.splat_i32((seen.end - at) as i32);
                x = s.select(s.within(low, s.load_i32(LANE.as_ptr()), high), x, never);
                s.store(scores.add(at), x);
            }
            // NaN as the first operand leaves the maximum alone; it reappears as a probability.
            max = s.max(x, max);
        }
        let max = s.largest(max);
        let reference = state.references.add(r);
        let old = reference.read();
        if max > old + RESCALE_THRESHOLD {
            if old > f32::NEG_INFINITY {
                rescale(s, lines, state, r, old - max);
            }
            reference.write(max);
        }
        // A row that has seen only scores of -inf has the reference -inf; subtracting that from -inf
        // would be NaN where 0 is meant.
        let finite = |x| if x > f32::NEG_INFINITY { x } else { 0.0 };
        let mut reference = finite(reference.read());
        let sums = lines.sums.add(r * S::LANES);
        let mut sum = s.load(sums);
        let before = sum;
        let mut weight = s.splat(1.0);
        if P::INT_ACC {
            weight = s.mul(s.exp2(s.splat(max - reference)), s.splat(1.0 / P::P_SCALE));
            s.store(lines.weights.add(r * S::LANES), weight);
            reference = finite(max);
            sum = s.splat(0.0);
        }
        let reference = s.splat(reference);
        for at in (first..seen.end).step_by(S::LANES) {
            let p = P::probability(s, s.sub(s.load(scores.add(at)), reference));
            sum = s.add(sum, p);
            let weight = match scales {
                Some(scales) => s.mul(p, s.load(scales.add(at))),
                None => p,
            };
            // With scales beside elements there are more weights than one.
            if P::BLOCK_SCALED {
                s.store(scores.add(at), weight);
            } else {
                P::store_probabilities(s, scores, at, weight);
            }
        }
        let sum = if P::INT_ACC { s.fma(sum, weight, before) } else { sum };
        s.store(sums, sum);
    }
}

/// Multiplies what row `r` has summed up by 2^`by`.
///
/// # Safety
/// `lines` and `state` have the row.
#[inline(always)]
unsafe fn rescale<S: Isa>(s: S, lines: &Lines, state: &State, r: usize, by: f32) {
    let factor = s.exp2(s.splat(by));
    // SAFETY: lines are whole vectors.
    unsafe {
        let sums = lines.sums.add(r * S::LANES);
        s.store(sums, s.mul(s.load(sums), factor));
        for d in (0..state.step).step_by(S::LANES) {
            let at = state.output.add(r * state.step + d);
            s.store(at, s.mul(s.load(at), factor));
        }
    }
}
