//! Scores of a block of keys, in log2 units: a vector holds neighbouring keys of one row.

use std::ops::Range;

use super::{LANE, Lines, ROWS};
use crate::dtype::Dtype;
use crate::family::{Rows, Source, Tile, convert};
use crate::simd::{Isa, MAX_LANES};

/// Writes the scores of `keys`, counted from the block's start, for the first `rows` lines. Places
/// beside them, up to whole vectors, may be written, too.
///
/// # Safety
/// `lines` has that many rows, and a line more where [`ROWS`] say so, with queries packed; `k` has the
/// rows of `keys`, staged.
#[inline(always)]
pub(super) unsafe fn scores<S: Isa>(
    s: S,
    lines: &Lines,
    rows: usize,
    keys: &Range<usize>,
    k: Rows,
    dim: usize,
) {
    // Keys outside, rows inside: a vector's worth of K stays in the first-level cache for all rows.
    let mut first = keys.start - keys.start % S::LANES;
    while first < keys.end {
        let mut row = 0;
        macro_rules! tiles_of {
            ($rows:expr, $least:expr) => {
                // A tile's sums fill one vector, four keys at a time.
                while $rows * KEYS <= S::LANES && rows.saturating_sub(row) >= $least {
                    // SAFETY: the rows are below the caller's count.
                    unsafe { tile::<S, { $rows }>(s, lines, row, first, keys, k, dim) };
                    row += $rows;
                }
            };
        }
        tiles_of!(ROWS, ROWS - 1);
        tiles_of!(2, 2);
        tiles_of!(1, 1);
        first += S::LANES;
    }
}

/// One query row, scaled, and zeros up to whole vectors.
///
/// # Safety
/// `source` has a row of `dim` elements, and `to` room for whole vectors.
#[inline(always)]
pub(super) unsafe fn pack<S: Isa>(s: S, source: Source, dim: usize, factor: f32, to: *mut f32) {
    let mut from = source.rows().base.cast::<f32>();
    if source.dtype() != Dtype::F32 {
        // SAFETY: room for as many elements, and a row needs no more than them here.
        unsafe { convert::convert(s, source, 1, dim, to.cast()) };
        from = to;
    }
    let factor = s.splat(factor);
    for d in (0..dim).step_by(S::LANES) {
        // SAFETY: elements below `dim`, and whole vectors of them (caller).
        unsafe {
            let from = from.wrapping_add(d);
            let x = if d + S::LANES <= dim { s.load(from) } else { s.load_first(from, dim - d) };
            s.store(to.add(d), s.mul(x, factor));
        }
    }
}

/// Keys that are multiplied at a time: enough to hide the latency of FMA together with the next ones,
/// and few enough to be streams that the machine fetches ahead.
const KEYS: usize = 4;

/// One vector of scores, from key `first` on, for each of `R` rows from `row` on.
///
/// # Safety
/// As [`scores`].
#[inline(always)]
unsafe fn tile<S: Isa, const R: usize>(
    s: S,
    lines: &Lines,
    row: usize,
    first: usize,
    keys: &Range<usize>,
    k: Rows,
    dim: usize,
) {
    let q = lines.queries.wrapping_add(row * lines.queries_step).cast_const();
    let out = lines.scores.wrapping_add(row * lines.scores_step + first);
    // Keys for which the rows' sums fill one vector.
    let width = S::LANES / R;
    for part in 0..R {
        let here = first + part * width..first + (part + 1) * width;
        // SAFETY: only keys of `keys` are read; lines are as long as whole vectors of keys.
        unsafe {
            let sums = if keys.start <= here.start && here.end <= keys.end {
                whole::<S, R>(s, q, lines.queries_step, k.skip(here.start - keys.start), dim)
            } else {
                let lane = s.load_i32(LANE.as_ptr());
                let mut sums = s.splat(0.0);
                for key in here.start.max(keys.start)..here.end.min(keys.end) {
                    let dots = dot::<S, R, 1>(s, q, lines.queries_step, k.skip(key - keys.start), dim);
                    for (r, [dot]) in dots.into_iter().enumerate() {
                        let place = (r * width + key - here.start) as i32;
                        let is_here = s.within(s.splat_i32(place), lane, s.splat_i32(place + 1));
                        sums = s.select(is_here, s.splat(s.total(dot)), sums);
                    }
                }
                sums
            };
            if R == 1 {
                s.store(out, sums);
            } else {
                let mut lanes = [0.0; MAX_LANES];
                s.store(lanes.as_mut_ptr(), sums);
                for r in 0..R {
                    for i in 0..width {
                        out.add(r * lines.scores_step + part * width + i).write(lanes[r * width + i]);
                    }
                }
            }
        }
    }
}

/// Dot products of `R` rows of queries with as many keys as fill a vector.
///
/// # Safety
/// As [`dot`] for these keys.
#[inline(always)]
unsafe fn whole<S: Isa, const R: usize>(s: S, q: *const f32, step: usize, k: Rows, dim: usize) -> S::F32 {
    let width = S::LANES / R;
    let mut lanes = [s.splat(0.0); MAX_LANES];
    // Written out, and not a loop: the sums stay in registers.
    macro_rules! keys {
        ($n:expr) => {
            if $n * KEYS < width {
                // SAFETY: the caller has a vector's worth of keys.
                let dots = unsafe { dot::<S, R, KEYS>(s, q, step, k.skip($n * KEYS), dim) };
                for r in 0..R {
                    for i in 0..KEYS {
                        lanes[(r * width + $n * KEYS + i) % MAX_LANES] = dots[r][i];
                    }
                }
            }
        };
    }
    keys!(0);
    keys!(1);
    keys!(2);
    keys!(3);
    s.sums(&lanes)
}

/// Products of `R` rows of queries packed by [`pack`], `step` values apart, with `K` keys. The sum of a
/// vector's lanes is a dot product; each lane runs over the row in ascending order whatever `R` and `K` are.
///
/// # Safety
/// `queries` has that many rows, and `k` that many of `dim` f32.
#[inline(always)]
unsafe fn dot<S: Isa, const R: usize, const K: usize>(
    s: S,
    queries: *const f32,
    step: usize,
    k: Rows,
    dim: usize,
) -> Tile<S::F32, R, K> {
    let mut sum = [[s.splat(0.0); K]; R];
    let whole = dim - dim % S::LANES;
    // SAFETY: elements below `dim` of R queries and K keys (caller).
    unsafe {
        for d in (0..whole).step_by(S::LANES) {
            let mut query = [s.splat(0.0); R];
            for (r, query) in query.iter_mut().enumerate() {
                *query = s.load(queries.add(r * step + d));
            }
            for key in 0..K {
                let x = s.load(k.skip(key).base.cast::<f32>().wrapping_add(d));
                for (sum, &query) in sum.iter_mut().zip(&query) {
                    sum[key] = s.fma(query, x, sum[key]);
                }
            }
        }
        if whole < dim {
            for key in 0..K {
                let x = s.load_first(k.skip(key).base.cast::<f32>().wrapping_add(whole), dim - whole);
                for (r, sum) in sum.iter_mut().enumerate() {
                    sum[key] = s.fma(s.load(queries.add(r * step + whole)), x, sum[key]);
                }
            }
        }
    }
    sum
}
