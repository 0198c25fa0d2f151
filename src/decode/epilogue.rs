//! Division by the sum, and the output rows.

use super::state::State;
use crate::attend::finish::{blank_bytes, log_sum_exp, with_sink};
use crate::attend::fold;
use crate::attend::seen::sees_any;
use crate::attend::weights::{self, Row};
use crate::dtype;
use crate::simd::{Body, Isa};
use crate::work::split_kv::SplitWork;

/// Writes the output rows (and LSE) of a group from its state, where values are still to be
/// multiplied by `scale`, or have scales and zeros that leave their sums (see [`fold`]). Kept out
/// of line, so that the code exists once for each instruction set.
///
/// A fully masked row becomes 0, and its LSE that of the sink (-inf without one). That is decided
/// by what is visible, never by the sum: a row whose visible scores are all -inf, or one of which
/// is NaN, is NaN.
///
/// # Safety
/// `state` is that of the group after all keys (I5), and nobody else writes its output rows (I3).
#[inline(never)]
pub(super) unsafe fn epilogue<S: Isa>(s: S, work: &SplitWork, state: &State, scale: f32) {
    s.core().enter(Epilogue { work, state, scale });
}

/// The arguments of [`epilogue`], which alone makes one.
struct Epilogue<'a, 'p> {
    work: &'a SplitWork<'p>,
    state: &'a State,
    scale: f32,
}

impl Body for Epilogue<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        // SAFETY: I3, I5: `epilogue` made this, and its caller vouches for state and rows.
        unsafe { write(s, self.work, self.state, self.scale) };
    }
}

/// [`epilogue`], compiled for an instruction set.
///
/// # Safety
/// The contract of [`epilogue`].
#[inline(always)]
unsafe fn write<S: Isa>(s: S, work: &SplitWork, state: &State, scale: f32) {
    let (problem, keys) = (work.problem(), work.keys(0));
    let kv_head = problem.kv_head(work.heads.start);
    let values = work.sequence().some_key(&keys);
    let values = values.and_then(|key| fold::values(problem, work.sequence(), kv_head, key));
    let quant = values.and_then(|values| Some((values.view.quant()?, values.at)));
    let dim = problem.shape().dim_v;
    let (layout, scales) = (*problem.o().layout(), problem.o().quant());
    for (r, (head, row)) in work.lines().enumerate() {
        let sink = problem.sink(head);
        // SAFETY: I3: the output rows are the group's (caller); I5, I7: row r of the state, which
        // is whole vectors.
        unsafe {
            let out = work.output(head, row);
            let (sum, max) = (state.sums.add(r).read(), state.running_max.add(r).read());
            // Only a row without a finite score can be fully masked.
            let is_fully_masked = max == f32::NEG_INFINITY && !sees_any(problem, work.sequence(), head, row);
            if is_fully_masked {
                blank_bytes(out, layout.row_bytes());
            } else {
                let weight = if sink == f32::NEG_INFINITY { 1.0 / sum } else { with_sink(sink, max, sum).0 };
                let weight = s.splat(weight * scale);
                let scales =
                    scales.map(|scales| (scales, scales.at(problem.line_at(work.sequence(), head, row))));
                for d in (0..dim).step_by(S::LANES) {
                    // Adding 0 makes all zeros positive, as in prefill.
                    let mut x = s.load(state.output.add(r * state.stride + d));
                    let n = S::LANES.min(dim - d);
                    if let Some((quant, at)) = quant {
                        x = fold::dequantized(
                            s,
                            fold::columns(s, quant, quant.at(at), d, n),
                            x,
                            s.splat(sum),
                        );
                    }
                    let mut x = s.add(s.mul(x, weight), s.splat(0.0));
                    if let Some((scales, at)) = scales {
                        x = fold::divided(s, scales, at, d, n, x);
                    }
                    dtype::store(s, layout.dtype, out, d, n, x);
                }
            }
            if problem.weights().is_some()
                && let Some(at) = work.weights(head, row)
            {
                let (sequence, is_empty) = (work.sequence(), is_fully_masked);
                let row = Row { problem, sequence, head, row, max, sum, is_empty };
                weights::finish(s, &row, work.visible(), at);
            }
            if let Some(lse) = work.lse(head, row) {
                let x = if is_fully_masked { sink } else { log_sum_exp(sink, max, sum) };
                lse.write_unaligned(x);
            }
        }
    }
}
