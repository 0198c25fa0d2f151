//! What is known of the rows of a band after some of their keys, and how two such states become one.

use super::gemv::Gemv;
use super::{lines_of, step};
use crate::simd::Isa;
use crate::workspace::array_bytes;

/// The state of each line: its output, not normalised, the sum of its probabilities, and the score (in log2 units)
/// that both are relative to, -inf before the first visible key.
#[derive(Clone, Copy)]
pub(super) struct State {
    pub(super) output: *mut f32,
    /// Values from one line of the output to the next: whole vectors.
    pub(super) step: usize,
    pub(super) sums: *mut f32,
    pub(super) references: *mut f32,
}

/// Bytes of a state of `rows` rows; `None` if no machine has as many.
#[inline(always)]
pub(crate) fn bytes<S: Isa, P: Gemv>(rows: usize, dim_v: usize) -> Option<usize> {
    let lines = lines_of(rows);
    let output = array_bytes(step::<S, P>(dim_v).checked_mul(lines)?, 4)?;
    output.checked_add(array_bytes(lines, 4)?.checked_mul(2)?)
}

impl State {
    /// The one at `base`.
    ///
    /// # Safety
    /// There are [`bytes`] for as many rows.
    #[inline(always)]
    pub(super) unsafe fn at<S: Isa, P: Gemv>(base: *mut u8, rows: usize, dim_v: usize) -> State {
        let (lines, step) = (lines_of(rows), step::<S, P>(dim_v));
        // Cannot overflow: the memory is there.
        let [output, line] = [lines * step, lines].map(|n| (n * 4).next_multiple_of(crate::workspace::ALIGN));
        let sums = base.wrapping_add(output);
        State { output: base.cast(), step, sums: sums.cast(), references: sums.wrapping_add(line).cast() }
    }

    /// Takes in what later keys gave: with m = max(m1, m2), sums and outputs are s1 · 2^(m1 - m) + s2 · 2^(m2 - m).
    ///
    /// # Safety
    /// Both have this many lines, initialised.
    #[inline(always)]
    pub(super) unsafe fn join<S: Isa>(&self, s: S, other: &State, rows: usize) {
        for r in 0..rows {
            // SAFETY: one of the lines, which are whole vectors.
            unsafe {
                let (reference, added) = (self.references.add(r).read(), other.references.add(r).read());
                let max = if added > reference { added } else { reference };
                // Before any visible score: nothing has been added up then, or NaN.
                let base = if max > f32::NEG_INFINITY { max } else { 0.0 };
                let (own, its) = (s.exp2(s.splat(reference - base)), s.exp2(s.splat(added - base)));
                self.references.add(r).write(max);
                let sum = s.mul(s.splat(self.sums.add(r).read()), own);
                let sum = s.fma(s.splat(other.sums.add(r).read()), its, sum);
                s.store_first(self.sums.add(r), 1, sum);
                for d in (0..self.step).step_by(S::LANES) {
                    let at = self.output.add(r * self.step + d);
                    let x = s.load(other.output.add(r * other.step + d));
                    s.store(at, s.fma(x, its, s.mul(s.load(at), own)));
                }
            }
        }
    }
}
