//! The state of the online softmax of a group's query rows after some of its keys, and how two of
//! them are combined.

use super::scratch::padded_rows;
use crate::simd::{Body, Isa};
use crate::workspace::Arena;

/// For each row: its output, not normalised, the sum of its probabilities, and the running maximum
/// of its scores (in log2 units) that both are relative to: -inf before the first visible key, and
/// at most [`crate::attend::RESCALE_THRESHOLD`] below the true maximum.
#[derive(Clone, Copy)]
pub(crate) struct State {
    pub(super) output: *mut f32,
    /// Values from one row of the output to the next: whole vectors.
    pub(super) stride: usize,
    pub(super) sums: *mut f32,
    pub(super) running_max: *mut f32,
}

impl State {
    /// The state of `rows` rows in memory of `arena`, whose output rows are `stride` values apart:
    /// uninitialised, or as it was left there.
    #[inline(always)]
    pub(super) fn take<A: Arena>(arena: &mut A, rows: usize, stride: usize) -> State {
        let rows = padded_rows(rows);
        State {
            output: arena.take(stride.checked_mul(rows)),
            stride,
            sums: arena.take(rows),
            running_max: arena.take(rows),
        }
    }

    /// The state from row `n` on.
    #[inline(always)]
    pub(super) fn skip(self, n: usize) -> State {
        State {
            output: self.output.wrapping_add(n * self.stride),
            sums: self.sums.wrapping_add(n),
            running_max: self.running_max.wrapping_add(n),
            ..self
        }
    }

    /// Combines this state with that of later keys: with m = max(m1, m2), sums and outputs become
    /// s1 · 2^(m1 - m) + s2 · 2^(m2 - m).
    ///
    /// # Safety
    /// Both states have been computed for `rows` rows, and nobody else uses them (I6).
    #[inline(never)]
    pub(super) unsafe fn combine<S: Isa>(&self, s: S, other: &State, rows: usize) {
        s.core().enter(Combine { into: self, other, rows });
    }

    /// [`State::combine`], compiled for an instruction set.
    ///
    /// # Safety
    /// The contract of [`State::combine`].
    #[inline(always)]
    unsafe fn take_in<S: Isa>(&self, s: S, other: &State, rows: usize) {
        for r in 0..rows {
            // SAFETY: I5: `State::take` made room for the row in both states, in whole vectors, and
            // both are initialised (caller).
            unsafe {
                let (own_max, other_max) = (self.running_max.add(r).read(), other.running_max.add(r).read());
                let max = if other_max > own_max { other_max } else { own_max };
                // Without a visible score so far, all sums are 0 or NaN, whatever they are relative
                // to.
                let base = if max > f32::NEG_INFINITY { max } else { 0.0 };
                let (own, its) = (s.exp2(s.splat(own_max - base)), s.exp2(s.splat(other_max - base)));
                self.running_max.add(r).write(max);
                let sum = s.mul(s.splat(self.sums.add(r).read()), own);
                let sum = s.fma(s.splat(other.sums.add(r).read()), its, sum);
                s.store_partial(self.sums.add(r), 1, sum);
                for d in (0..self.stride).step_by(S::LANES) {
                    let at = self.output.add(r * self.stride + d);
                    let x = s.load(other.output.add(r * other.stride + d));
                    s.store(at, s.fma(x, its, s.mul(s.load(at), own)));
                }
            }
        }
    }
}

/// The arguments of [`State::combine`], which alone makes one.
struct Combine<'a> {
    into: &'a State,
    other: &'a State,
    rows: usize,
}

impl Body for Combine<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        // SAFETY: I6: `State::combine` made this, and its caller vouches for both states.
        unsafe { self.into.take_in(s, self.other, self.rows) };
    }
}
