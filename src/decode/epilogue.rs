//! Division by the sum.

use super::Lines;
use crate::attend::epilogue::{blank_bytes, log_sum_exp, with_sink};
use crate::dtype;
use crate::part::Part;
use crate::simd::Isa;

/// Writes the output rows (and LSE) of `part` from its lines; see [`crate::attend::epilogue`] for
/// rows that see no key.
///
/// # Safety
/// `lines` are those of the part, after all keys.
#[inline(always)]
pub(super) unsafe fn epilogue<S: Isa>(s: S, part: &Part, lines: &Lines) {
    let problem = part.problem();
    let dim = problem.shape().dim_v;
    let layout = *problem.o().layout();
    let sink = problem.sink(part.head());
    for (r, row) in part.rows().enumerate() {
        // SAFETY: the rows belong to `part`, which nobody else holds; lines are whole vectors.
        unsafe {
            let [entry, at] = problem.query_at(part.sequence(), row);
            let out = problem.o().row(entry, part.head(), at);
            let sum = s.total(s.load(lines.sums.add(r * S::LANES)));
            let reference = lines.references.add(r).read();
            // Only a row without a finite score can be one that sees nothing.
            let blind =
                reference == f32::NEG_INFINITY && !problem.sees_any(part.sequence(), part.head(), row);
            if blind {
                blank_bytes(out, layout.row_bytes());
            } else {
                let weight =
                    if sink == f32::NEG_INFINITY { 1.0 / sum } else { with_sink(sink, reference, sum).0 };
                let weight = s.splat(weight);
                for d in (0..dim).step_by(S::LANES) {
                    // Zeros all get the same sign, as everywhere.
                    let x = s.load(lines.output.add(r * lines.output_step + d));
                    let x = s.add(s.mul(x, weight), s.splat(0.0));
                    dtype::store(s, layout.dtype, out, d, S::LANES.min(dim - d), x);
                }
            }
            if let Some(lse) = problem.lse() {
                let x = if blind { sink } else { log_sum_exp(sink, reference, sum) };
                lse.row(entry, part.head(), at).cast::<f32>().write_unaligned(x);
            }
        }
    }
}
