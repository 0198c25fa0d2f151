//! output += probabilities · V: a vector is neighbouring elements of one row. Values become f32 as they are read.

use std::ops::Range;

use super::{AHEAD, Lines, ROWS, fetch_rows};
use crate::decode::state::State;
use crate::dtype::{Dtype, Stored, with_stored};
use crate::family::Rows;
use crate::simd::{Body, Isa};

/// The values of a block of keys, counted from the block's start.
#[derive(Clone, Copy)]
pub(super) struct Values {
    /// Where they are stored: row n is that of key n.
    pub(super) rows: Rows,
    pub(super) dtype: Dtype,
    pub(super) dim: usize,
}

/// Adds `keys`, counted from the block's start, to the output of `rows`, or begins it with them if `fresh`.
/// Each element's sum runs over the keys in ascending order. Out of line, as [`super::scores::scores`].
///
/// # Safety
/// `lines` and `state` have these rows, and a line more where [`ROWS`] say so, with probabilities for these keys.
#[inline(never)]
pub(super) unsafe fn accumulate<S: Isa>(
    s: S,
    lines: &Lines,
    state: &State,
    rows: Range<usize>,
    keys: &Range<usize>,
    values: Values,
    fresh: bool,
) {
    s.enter(Accumulate { lines, state, rows, keys, values, fresh });
}

/// Made by [`accumulate`] alone, whose contract covers what it points to.
struct Accumulate<'a> {
    lines: &'a Lines,
    state: &'a State,
    rows: Range<usize>,
    keys: &'a Range<usize>,
    values: Values,
    fresh: bool,
}

impl Body for Accumulate<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        // SAFETY: the contract of `accumulate`, which made this.
        unsafe { with_stored!(self.values.dtype, T => self.all_rows::<S, T>(s)) }
    }
}

impl Accumulate<'_> {
    /// # Safety
    /// As [`accumulate`], of values stored as `T`.
    #[inline(always)]
    unsafe fn all_rows<S: Isa, T: Stored>(&self, s: S) {
        let mut row = self.rows.start;
        // Rows times vectors is the number of accumulators: 16 hide FMA's latency where there are 32
        // registers, 8 where there are 16.
        macro_rules! tiles_of {
            ($rows:expr, $least:expr, $vectors:expr) => {
                while self.rows.end.saturating_sub(row) >= $least {
                    // SAFETY: the rows are among the caller's.
                    unsafe { self.all_elements::<S, T, { $rows }, { $vectors }>(s, row) };
                    row += $rows;
                }
            };
        }
        if S::REGISTERS >= 32 {
            tiles_of!(2 * ROWS, 2 * ROWS, 2);
            tiles_of!(ROWS, ROWS - 1, 4);
        }
        tiles_of!(2, 2, 4);
        tiles_of!(1, 1, 8);
    }

    /// # Safety
    /// As [`accumulate`], for `R` rows from `row` on.
    #[inline(always)]
    unsafe fn all_elements<S: Isa, T: Stored, const R: usize, const C: usize>(&self, s: S, row: usize) {
        let dim = self.values.dim;
        let mut d = 0;
        // SAFETY: each tile is taken only while its vectors are left of the caller's dim.
        unsafe {
            macro_rules! tiles_of {
                ($vectors:expr) => {
                    while $vectors <= C && dim - d >= $vectors * S::LANES {
                        self.tile::<S, T, R, { $vectors }>(s, row, d, None);
                        d += $vectors * S::LANES;
                    }
                };
            }
            tiles_of!(8);
            tiles_of!(4);
            tiles_of!(2);
            tiles_of!(1);
            if d < dim {
                self.tile::<S, T, R, 1>(s, row, d, Some(dim - d));
            }
        }
    }

    /// `C` vectors of elements, from element `d` on, of `R` rows from `row` on; with `only`, the last has no more than
    /// these many elements.
    ///
    /// # Safety
    /// There is all that.
    #[inline(always)]
    unsafe fn tile<S: Isa, T: Stored, const R: usize, const C: usize>(
        &self,
        s: S,
        row: usize,
        d: usize,
        only: Option<usize>,
    ) {
        let Accumulate { lines, state, keys, values, fresh, .. } = self;
        let p = lines.scores.wrapping_add(row * lines.scores_step);
        let output = state.output.wrapping_add(row * state.step + d);
        let mut sum = [[s.splat(0.0); C]; R];
        // SAFETY: r < R, c < C and keys of the caller's.
        unsafe {
            if !fresh {
                for (r, sum) in sum.iter_mut().enumerate() {
                    for (c, sum) in sum.iter_mut().enumerate() {
                        *sum = s.load(output.add(r * state.step + c * S::LANES));
                    }
                }
            }
            // Several passes over the same rows, each of which takes a part of them: the first one fetches all.
            let fetches = R > 1 && row == self.rows.start && d == 0;
            let bytes = if fetches { T::BLOCK_BYTES * values.dim.div_ceil(T::BLOCK) } else { 0 };
            let mut from = values.rows.skip(keys.start);
            for key in keys.start..keys.end {
                fetch_rows(s, from.skip(AHEAD), 1, bytes);
                let mut weight = [s.splat(0.0); R];
                for (r, weight) in weight.iter_mut().enumerate() {
                    *weight = s.splat(p.add(r * lines.scores_step + key).read());
                }
                for c in 0..C {
                    let x = match only {
                        Some(n) => T::load_first(s, from.base, d, n),
                        None => T::load(s, from.base, d + c * S::LANES),
                    };
                    for (sum, &weight) in sum.iter_mut().zip(&weight) {
                        sum[c] = s.fma(weight, x, sum[c]);
                    }
                }
                from = from.skip(1);
            }
            for (r, sum) in sum.iter().enumerate() {
                for (c, &sum) in sum.iter().enumerate() {
                    s.store(output.add(r * state.step + c * S::LANES), sum);
                }
            }
        }
    }
}

/// Whether any element of `keys` is NaN or infinite, times the scale of its row.
///
/// # Safety
/// The values have these rows; `scales` their scales, if there are any.
#[inline(never)]
pub(super) unsafe fn any_not_finite<S: Isa>(
    s: S,
    values: Values,
    keys: &Range<usize>,
    scales: Option<*const f32>,
) -> bool {
    s.enter(Finite { values, keys, scales })
}

/// Made by [`any_not_finite`] alone, likewise.
struct Finite<'a> {
    values: Values,
    keys: &'a Range<usize>,
    scales: Option<*const f32>,
}

impl Body for Finite<'_> {
    type Out = bool;

    #[inline(always)]
    fn run<S: Isa>(self, s: S) -> bool {
        let Values { rows, dtype, dim } = self.values;
        // 0 as long as all are finite, then NaN.
        let mut found = s.splat(0.0);
        // SAFETY: the contract of `any_not_finite`, which made this.
        unsafe {
            with_stored!(dtype, T => {
                for key in self.keys.start..self.keys.end {
                    let from = rows.skip(key).base;
                    let zero = s.splat(self.scales.map_or(0.0, |scales| 0.0 * scales.add(key).read()));
                    for d in (0..dim).step_by(S::LANES) {
                        let n = S::LANES.min(dim - d);
                        let x = if n == S::LANES { T::load(s, from, d) } else { T::load_first(s, from, d, n) };
                        found = s.fma(x, zero, found);
                    }
                }
            });
        }
        s.total(found) != 0.0
    }
}
