//! output += probabilities · V: a vector is neighbouring elements of one row. Values are converted as they are read,
//! or two rows of them zipped: see [`crate::compute::gemv`].

use std::marker::PhantomData;
use std::ops::Range;

use super::gemv::{Gemv, interleave, width};
use super::prefetch::{AHEAD, PrefetchStream, fetch_rows};
use super::{Lines, ROWS};
use crate::attend::rows::Rows;
use crate::decode::state::State;
use crate::dtype::{Dtype, Stored, with_qkv_type};
use crate::simd::lane::{MAX_PACK, Registers};
use crate::simd::{Body, Isa};

/// The values of a block of keys, counted from the block's start.
#[derive(Clone, Copy)]
pub(super) struct Values {
    /// Where they are stored: row n is that of key n.
    pub(super) rows: Rows,
    pub(super) dtype: Dtype,
    pub(super) dim: usize,
    /// What is asked for meanwhile.
    pub(super) next: PrefetchStream,
}

/// Lines of weighted sums, one a query row.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    pub(super) base: *mut f32,
    /// Values from one line to the next: whole vectors.
    pub(super) step: usize,
}

/// Adds `keys`, counted from the block's start, to the `sums` of `rows`, or begins these with them if `fresh`.
/// Each element's sum runs over the keys in ascending order. Out of line, as [`super::scores::scores`].
///
/// # Safety
/// `lines` and `sums` have these rows, and a line more where [`ROWS`] say so, with probabilities for these keys.
#[inline(never)]
pub(super) unsafe fn accumulate<S: Isa, P: Gemv, const ASKS: bool>(
    s: S,
    lines: &Lines,
    sums: Sums,
    rows: Range<usize>,
    keys: &Range<usize>,
    values: Values,
    fresh: bool,
) {
    s.enter(Accumulate::<P, ASKS> { lines, sums, rows, keys, values, fresh, products: PhantomData });
}

/// Made by [`accumulate`] alone, whose contract covers what it points to.
struct Accumulate<'a, P, const ASKS: bool> {
    lines: &'a Lines,
    sums: Sums,
    rows: Range<usize>,
    keys: &'a Range<usize>,
    values: Values,
    fresh: bool,
    products: PhantomData<P>,
}

impl<P: Gemv, const ASKS: bool> Body for Accumulate<'_, P, ASKS> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        // SAFETY: the contract of `accumulate`, which made this.
        unsafe { with_qkv_type!(P::DTYPE.unwrap_or(self.values.dtype), T => self.all_rows::<S, T>(s)) }
    }
}

impl<P: Gemv, const ASKS: bool> Accumulate<'_, P, ASKS> {
    /// # Safety
    /// As [`accumulate`], of values stored as `T`.
    #[inline(always)]
    unsafe fn all_rows<S: Isa, T: Stored>(&self, s: S) {
        let mut row = self.rows.start;
        // Rows times vectors is the number of accumulators: 16 hide FMA's latency where there are 32
        // registers, 8 where there are 16.
        macro_rules! tiles_of {
            ($rows:expr, $least:expr, $vectors:expr) => {
                while $rows <= P::MAX_ROWS && self.rows.end.saturating_sub(row) >= $least {
                    // SAFETY: the rows are among the caller's.
                    unsafe { self.all_elements::<S, T, { $rows }>(s, row, $vectors / P::PACK) };
                    row += $rows;
                }
            };
        }
        if S::REGISTERS >= 32 {
            tiles_of!(2 * ROWS, 2 * ROWS, 2);
            tiles_of!(ROWS, ROWS - 1, 4);
            tiles_of!(2, 2, 8);
        }
        tiles_of!(2, 2, 4);
        tiles_of!(1, 1, 8);
    }

    /// # Safety
    /// As [`accumulate`], for `R` rows from `row` on.
    #[inline(always)]
    unsafe fn all_elements<S: Isa, T: Stored, const R: usize>(&self, s: S, row: usize, most: usize) {
        let (dim, width) = (self.values.dim, width::<S, P>());
        let mut d = 0;
        // SAFETY: each tile is taken only while its elements are left of the caller's dim.
        unsafe {
            macro_rules! tiles_of {
                ($vectors:expr) => {
                    while $vectors <= most && dim - d >= $vectors * width {
                        self.tile::<S, T, R, { $vectors }>(s, row, d, None);
                        d += $vectors * width;
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

    /// `C` vectors of words, from element `d` on, of `R` rows from `row` on; with `only`, the last has no more than
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
        let Accumulate { lines, sums, keys, values, fresh, .. } = self;
        let p = lines.scores.wrapping_add(row * lines.scores_step);
        let at = sums.base.wrapping_add(row * sums.step + d);
        let mut sum = [[[P::Sum::zero(s); MAX_PACK]; C]; R];
        // SAFETY: r < R, c < C and keys of the caller's.
        unsafe {
            if !fresh {
                for (r, sum) in sum.iter_mut().enumerate() {
                    for (c, sum) in sum.iter_mut().enumerate() {
                        *sum = P::load_sums(s, at.add(r * sums.step + c * width::<S, P>()));
                    }
                }
            }
            // Several passes over the same rows, each of which takes a part of them: the first one fetches all.
            let again = row + R < self.rows.end || C * width::<S, P>() < values.dim;
            let fetches = R > 1 && again && row == self.rows.start && d == 0;
            let bytes = if fetches { T::BLOCK_BYTES * values.dim.div_ceil(T::BLOCK) } else { 0 };
            let next = values.next;
            let share = if ASKS && row == self.rows.start {
                next.share(d, d + C * width::<S, P>(), values.dim)
            } else {
                PrefetchStream::NOTHING.whole()
            };
            macro_rules! group {
                ($key:expr, $is_there:expr) => {{
                    let key = $key;
                    let from = values.rows.skip(key);
                    let mut weight = [P::Weight::zero(s); R];
                    for (r, weight) in weight.iter_mut().enumerate() {
                        *weight = P::weight(s, p.add(r * lines.scores_step), key);
                    }
                    // In the order of memory, which is how the machine foresees it.
                    let mut x = [[P::Operand::zero(s); MAX_PACK]; C];
                    for n in 0..P::PACK {
                        let row = from.skip(n).base;
                        for c in 0..C {
                            x[c][n] = match only {
                                _ if !$is_there(key + n) => P::Operand::zero(s),
                                Some(n) => P::load_kv_partial::<S, T>(s, row, d, n),
                                None => P::load_kv::<S, T>(s, row, d + c * width::<S, P>()),
                            };
                        }
                    }
                    for c in 0..C {
                        let x = interleave::<S, P>(s, x[c]);
                        for (sum, &weight) in sum.iter_mut().zip(&weight) {
                            for v in 0..P::PACK {
                                sum[c][v] = P::add_value(s, weight, x[v], sum[c][v]);
                            }
                        }
                    }
                }};
            }
            // Of those that are taken together, some may be alone at each end.
            let some = |key| keys.contains(&key);
            let mut key = keys.start - keys.start % P::PACK;
            if key < keys.start {
                group!(key, some);
                key += P::PACK;
            }
            while key + P::PACK <= keys.end {
                if key + AHEAD < keys.end {
                    fetch_rows(s, values.rows.skip(key + AHEAD), P::PACK, bytes);
                }
                if ASKS {
                    next.ask(s, key, P::PACK, share);
                }
                group!(key, |_| true);
                key += P::PACK;
            }
            if key < keys.end {
                group!(key, some);
            }
            for (r, sum) in sum.iter().enumerate() {
                for (c, &sum) in sum.iter().enumerate() {
                    P::store_sums(s, at.add(r * sums.step + c * width::<S, P>()), sum);
                }
            }
        }
    }
}

/// Adds the integer sums of a block to the output of row `r`, or begins it with them if `fresh`. A row that is `blind` in
/// this block has none.
///
/// # Safety
/// `lines` and `state` have the row; unless it is blind, with its weight.
#[inline(always)]
pub(super) unsafe fn settle<S: Isa, P: Gemv>(
    s: S,
    lines: &Lines,
    state: &State,
    r: usize,
    is_blind: bool,
    fresh: bool,
) {
    // SAFETY: lines are whole vectors of words.
    unsafe {
        let weight = if is_blind { s.splat(0.0) } else { s.load(lines.weights.add(r * S::LANES)) };
        for d in (0..state.step).step_by(width::<S, P>()) {
            let sums = P::outputs(s, lines.block.base.add(r * lines.block.step + d));
            for (v, &sum) in sums.iter().enumerate().take(P::PACK) {
                let at = state.output.add(r * state.step + d + v * S::LANES);
                let before = if fresh { s.splat(0.0) } else { s.load(at) };
                s.store(at, s.fma(sum, weight, before));
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
        let Values { rows, dtype, dim, .. } = self.values;
        // 0 as long as all are finite, then NaN.
        let mut found = s.splat(0.0);
        // SAFETY: the contract of `any_not_finite`, which made this.
        unsafe {
            with_qkv_type!(dtype, T => {
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
