//! Division by the sum.

use super::Lines;
use crate::attend::epilogue::{blank, log_sum_exp};
use crate::dtype::Family;
use crate::part::Part;
use crate::simd::Isa;

/// Writes the output rows (and LSE) of `part` from its lines; see [`crate::attend::epilogue`] for
/// rows that see no key.
///
/// # Safety
/// `lines` are those of the part, after all keys.
#[inline(always)]
pub(super) unsafe fn epilogue<S: Isa, F: Family>(s: S, part: &Part, lines: &Lines<F>) {
    let problem = part.problem();
    let (dim, value_scale) = (problem.shape().dim_v, problem.semantics().scales.v);
    for (r, row) in part.rows().enumerate() {
        // SAFETY: the rows belong to `part`, which nobody else holds; lines are whole vectors.
        unsafe {
            let [entry, at] = problem.query_at(part.sequence(), row);
            let out = problem.o().row(entry, part.head(), at).cast::<f32>();
            let blind = part.sequence().visible(row).is_empty();
            let sum = s.total(s.load(lines.sums.add(r * S::LANES)));
            if blind {
                blank(out, dim);
            } else {
                let weight = s.splat(value_scale / sum);
                for d in (0..dim).step_by(S::LANES) {
                    // Zeros all get the same sign, as everywhere.
                    let x = s.load(lines.output.add(r * lines.output_step + d));
                    let x = s.add(s.mul(x, weight), s.splat(0.0));
                    let out = out.wrapping_add(d);
                    if d + S::LANES <= dim { s.store(out, x) } else { s.store_first(out, dim - d, x) }
                }
            }
            if let Some(lse) = problem.lse() {
                let x =
                    if blind { f32::NEG_INFINITY } else { log_sum_exp(lines.references.add(r).read(), sum) };
                lse.row(entry, part.head(), at).cast::<f32>().write_unaligned(x);
            }
        }
    }
}
