//! Division by the sum.

use super::state::State;
use crate::attend::finish::{blank_bytes, log_sum_exp, with_sink};
use crate::dtype;
use crate::simd::Isa;
use crate::work::split_kv::SplitWork;

/// Writes the output rows (and LSE) of a band from its state, where values are still to be multiplied by `scale`;
/// see [`crate::prefill::epilogue`] for rows that see no key.
///
/// # Safety
/// The state is that of the band after all keys, and nobody else writes its rows.
#[inline(always)]
pub(super) unsafe fn epilogue<S: Isa>(s: S, band: &SplitWork, state: &State, scale: f32) {
    let problem = band.problem();
    let dim = problem.shape().dim_v;
    let layout = *problem.o().layout();
    for (r, (head, row)) in band.lines().enumerate() {
        let sink = problem.sink(head);
        // SAFETY: the rows belong to the band; lines are whole vectors.
        unsafe {
            let out = band.output(head, row);
            let (sum, reference) = (state.sums.add(r).read(), state.references.add(r).read());
            // Only a row without a finite score can be one that sees nothing.
            let blind = reference == f32::NEG_INFINITY && !problem.sees_any(band.sequence(), head, row);
            if blind {
                blank_bytes(out, layout.row_bytes());
            } else {
                let weight =
                    if sink == f32::NEG_INFINITY { 1.0 / sum } else { with_sink(sink, reference, sum).0 };
                let weight = s.splat(weight * scale);
                for d in (0..dim).step_by(S::LANES) {
                    // Zeros all get the same sign, as everywhere.
                    let x = s.load(state.output.add(r * state.step + d));
                    let x = s.add(s.mul(x, weight), s.splat(0.0));
                    dtype::store(s, layout.dtype, out, d, S::LANES.min(dim - d), x);
                }
            }
            if let Some(lse) = band.lse(head, row) {
                let x = if blind { sink } else { log_sum_exp(sink, reference, sum) };
                lse.write_unaligned(x);
            }
        }
    }
}
