//! output += probabilities · V: a vector is neighbouring elements of one row.

use std::ops::Range;

use super::{Lines, ROWS};
use crate::family::Rows;
use crate::simd::Isa;

/// Adds `keys`, counted from the block's start, to the output of `rows`, or begins it with them if `fresh`.
/// Each element's sum runs over the keys in ascending order.
///
/// # Safety
/// `lines` has these rows, and a line more where [`ROWS`] say so, with probabilities for these keys; `v`
/// has the keys' rows of `dim` f32.
#[inline(always)]
pub(super) unsafe fn accumulate<S: Isa>(
    s: S,
    lines: &Lines,
    rows: Range<usize>,
    keys: &Range<usize>,
    v: Rows,
    dim: usize,
    fresh: bool,
) {
    let mut row = rows.start;
    // Rows times vectors is the number of accumulators: 16 hide FMA's latency where there are 32
    // registers, 8 where there are 16.
    macro_rules! tiles_of {
        ($rows:expr, $least:expr, $vectors:expr) => {
            while rows.end.saturating_sub(row) >= $least {
                // SAFETY: the rows are among the caller's.
                unsafe { all_elements::<S, { $rows }, { $vectors }>(s, lines, row, keys, v, dim, fresh) };
                row += $rows;
            }
        };
    }
    if S::REGISTERS >= 32 {
        tiles_of!(ROWS, ROWS - 1, 4);
    }
    tiles_of!(2, 2, 4);
    tiles_of!(1, 1, 8);
}

/// # Safety
/// As [`accumulate`], for `R` rows from `row` on.
#[inline(always)]
unsafe fn all_elements<S: Isa, const R: usize, const C: usize>(
    s: S,
    lines: &Lines,
    row: usize,
    keys: &Range<usize>,
    v: Rows,
    dim: usize,
    fresh: bool,
) {
    let p = lines.scores.wrapping_add(row * lines.scores_step + keys.start);
    let output = lines.output.wrapping_add(row * lines.output_step);
    let place = |d: usize| Place {
        p,
        p_step: lines.scores_step,
        v: Rows { base: v.base.wrapping_add(d * 4), ..v },
        n: keys.len(),
        output: output.wrapping_add(d),
        output_step: lines.output_step,
        fresh,
    };
    let mut d = 0;
    // SAFETY: each tile is taken only while its vectors are left of the caller's dim.
    unsafe {
        macro_rules! tiles_of {
            ($vectors:expr) => {
                while $vectors <= C && dim - d >= $vectors * S::LANES {
                    tile::<S, R, { $vectors }>(s, &place(d), None);
                    d += $vectors * S::LANES;
                }
            };
        }
        tiles_of!(8);
        tiles_of!(4);
        tiles_of!(2);
        tiles_of!(1);
        if d < dim {
            tile::<S, R, 1>(s, &place(d), Some(dim - d));
        }
    }
}

/// Where a tile finds its probabilities, values and output.
struct Place {
    p: *const f32,
    /// Values from one row to the next; likewise below.
    p_step: usize,
    v: Rows,
    /// Keys.
    n: usize,
    output: *mut f32,
    output_step: usize,
    /// Whether nothing has been added to the output yet.
    fresh: bool,
}

/// `C` vectors of elements of `R` rows; with `only`, the last has no more than these many elements.
///
/// # Safety
/// `place` has all that.
#[inline(always)]
unsafe fn tile<S: Isa, const R: usize, const C: usize>(s: S, place: &Place, only: Option<usize>) {
    let mut sum = [[s.splat(0.0); C]; R];
    // SAFETY: r < R, c < C and `n` keys.
    unsafe {
        if !place.fresh {
            for (r, sum) in sum.iter_mut().enumerate() {
                for (c, sum) in sum.iter_mut().enumerate() {
                    *sum = s.load(place.output.add(r * place.output_step + c * S::LANES));
                }
            }
        }
        let mut row = place.v.base;
        for key in 0..place.n {
            let mut weight = [s.splat(0.0); R];
            for (r, weight) in weight.iter_mut().enumerate() {
                *weight = s.splat(place.p.add(r * place.p_step + key).read());
            }
            for c in 0..C {
                let from = row.cast::<f32>().wrapping_add(c * S::LANES);
                let x = match only {
                    Some(n) => s.load_first(from, n),
                    None => s.load(from),
                };
                for (sum, &weight) in sum.iter_mut().zip(&weight) {
                    sum[c] = s.fma(weight, x, sum[c]);
                }
            }
            row = row.wrapping_add(place.v.stride);
        }
        for (r, sum) in sum.iter().enumerate() {
            for (c, &sum) in sum.iter().enumerate() {
                s.store(place.output.add(r * place.output_step + c * S::LANES), sum);
            }
        }
    }
}
