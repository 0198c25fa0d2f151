//! Scores of a block of keys, in log2 units: a vector holds neighbouring keys of one row. Keys are multiplied as
//! they lie in memory, or converted as they are read.

use std::marker::PhantomData;
use std::ops::Range;

use super::{AHEAD, LANE, Lines, ROWS, fetch_rows};
use crate::dtype::{Dtype, Stored, with_stored};
use crate::family::products::{Products, width};
use crate::family::{Rows, Tile};
use crate::simd::{Body, Isa, MAX_LANES};

/// The keys of a block: those that some row sees, counted from the block's start, as is all that is said of them.
pub(super) struct Keys<'a> {
    pub(super) seen: &'a Range<usize>,
    /// Where they are stored: row n is that of key n.
    pub(super) rows: Rows,
    pub(super) dtype: Dtype,
    /// What each is multiplied by besides, in whole vectors.
    pub(super) scales: Option<*const f32>,
}

/// Writes the scores of `keys` for the first `rows` lines. Places beside them, up to whole vectors, may be
/// written, too. Out of line: the types of K and V would multiply.
///
/// # Safety
/// `lines` has that many rows, and a line more where [`ROWS`] say so, with queries packed; keys have `dim` elements.
#[inline(never)]
pub(super) unsafe fn scores<S: Isa, P: Products>(s: S, lines: &Lines, rows: usize, keys: &Keys, dim: usize) {
    s.enter(Scores::<P> { lines, rows, keys, dim, products: PhantomData });
}

/// Made by [`scores`] alone, whose contract covers what it points to.
struct Scores<'a, P> {
    lines: &'a Lines,
    rows: usize,
    keys: &'a Keys<'a>,
    dim: usize,
    products: PhantomData<P>,
}

impl<P: Products> Body for Scores<'_, P> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Scores { lines, rows, keys, dim, .. } = self;
        let Keys { seen, scales, .. } = *keys;
        // Keys outside, rows inside: a vector's worth of K stays in the first-level cache for all rows.
        // SAFETY: the contract of `scores`, which made this; lines are as long as whole vectors of keys.
        unsafe {
            with_stored!(P::DTYPE.unwrap_or(keys.dtype), T => {
                let mut first = seen.start - seen.start % S::LANES;
                while first < seen.end {
                    vector::<S, P, T>(s, lines, rows, first, keys, dim);
                    first += S::LANES;
                }
            });
            for r in 0..rows {
                let factor = lines.factors.add(r).read();
                if factor == 1.0 && scales.is_none() {
                    continue;
                }
                let scores = lines.scores.add(r * lines.scores_step);
                for at in (seen.start - seen.start % S::LANES..seen.end).step_by(S::LANES) {
                    let factor = match scales {
                        Some(scales) => s.mul(s.load(scales.add(at)), s.splat(factor)),
                        None => s.splat(factor),
                    };
                    s.store(scores.add(at), s.mul(s.load(scores.add(at)), factor));
                }
            }
        }
    }
}

/// One vector of scores for each of `rows` rows.
///
/// # Safety
/// As [`scores`], of keys stored as `T`.
#[inline(always)]
unsafe fn vector<S: Isa, P: Products, T: Stored>(
    s: S,
    lines: &Lines,
    rows: usize,
    first: usize,
    keys: &Keys,
    dim: usize,
) {
    let mut row = 0;
    macro_rules! tiles_of {
        ($rows:expr, $least:expr) => {
            // A tile's sums fill one vector, four keys at a time.
            while $rows * KEYS <= S::LANES && rows.saturating_sub(row) >= $least {
                // SAFETY: the rows are below the caller's count.
                unsafe { tile::<S, P, T, { $rows }, 0>(s, lines, row, first, keys, dim, row == 0) };
                row += $rows;
            }
        };
    }
    tiles_of!(ROWS, ROWS - 1);
    tiles_of!(2, 2);
    // Of one row, the usual lengths without a loop.
    macro_rules! row_of {
        ($vectors:expr) => {
            if row + 1 == rows && dim == $vectors * width::<S, P>() {
                // SAFETY: as above.
                unsafe { tile::<S, P, T, 1, { $vectors }>(s, lines, row, first, keys, dim, row == 0) };
                row += 1;
            }
        };
    }
    row_of!(2);
    row_of!(4);
    if S::REGISTERS >= 32 {
        row_of!(8);
    }
    tiles_of!(1, 1);
}

/// Keys that are multiplied at a time: enough to hide the latency of FMA together with the next ones,
/// and few enough for the registers.
const KEYS: usize = 4;

/// One vector of scores, from key `first` on, for each of `R` rows from `row` on, of `N` vectors of elements if that is
/// not 0.
///
/// # Safety
/// As [`scores`].
#[inline(always)]
unsafe fn tile<S: Isa, P: Products, T: Stored, const R: usize, const N: usize>(
    s: S,
    lines: &Lines,
    row: usize,
    first: usize,
    keys: &Keys,
    dim: usize,
    fetches: bool,
) {
    let q = lines.queries.wrapping_add(row * lines.queries_step).cast_const();
    let out = lines.scores.wrapping_add(row * lines.scores_step + first);
    let Keys { seen, rows, .. } = *keys;
    // Keys for which the rows' sums fill one vector.
    let width = S::LANES / R;
    for part in 0..R {
        let here = first + part * width..first + (part + 1) * width;
        // SAFETY: only keys that are seen are read; lines are as long as whole vectors of keys.
        unsafe {
            let sums = if seen.start <= here.start && here.end <= seen.end {
                // One row of wide elements takes longer to read than to multiply: what foresees it by itself is not
                // to be disturbed.
                let fetches =
                    fetches && here.end + AHEAD <= seen.end && (R > 1 || T::BLOCK_BYTES < 2 * T::BLOCK);
                let bytes = if fetches { T::BLOCK_BYTES * dim.div_ceil(T::BLOCK) } else { 0 };
                whole::<S, P, T, R, N>(s, q, lines.queries_step, rows.skip(here.start), dim, bytes)
            } else {
                let lane = s.load_i32(LANE.as_ptr());
                let mut sums = s.splat(0.0);
                for key in here.start.max(seen.start)..here.end.min(seen.end) {
                    let dots = dot::<S, P, T, R, 1, 0>(s, q, lines.queries_step, rows.skip(key), dim);
                    for (r, [dot]) in dots.into_iter().enumerate() {
                        let place = (r * width + key - here.start) as i32;
                        let is_here = s.within(s.splat_i32(place), lane, s.splat_i32(place + 1));
                        sums = s.select(is_here, s.splat(s.total(dot)), sums);
                    }
                }
                sums
            };
            s.store_split::<R>(out.add(part * width), lines.scores_step, sums);
        }
    }
}

/// Dot products of `R` rows of queries with as many keys as fill a vector. Of keys further on `bytes` bytes each are
/// asked for.
///
/// # Safety
/// As [`dot`] for these keys.
#[inline(always)]
unsafe fn whole<S: Isa, P: Products, T: Stored, const R: usize, const N: usize>(
    s: S,
    q: *const f32,
    step: usize,
    k: Rows,
    dim: usize,
    bytes: usize,
) -> S::F32 {
    let width = S::LANES / R;
    let mut lanes = [s.splat(0.0); MAX_LANES];
    // Written out, and not a loop: the sums stay in registers.
    macro_rules! keys {
        ($n:expr) => {
            if $n * KEYS < width {
                let k = k.skip($n * KEYS);
                fetch_rows(s, k.skip(AHEAD), KEYS, bytes);
                // SAFETY: the caller has a vector's worth of keys.
                let dots = unsafe { dot::<S, P, T, R, KEYS, N>(s, q, step, k, dim) };
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

/// Products of `R` rows of queries packed by [`Products::pack`], `step` values apart, with `K` keys. The sum of a
/// vector's lanes is a dot product; each lane runs over the row in ascending order whatever `R` and `K` are.
///
/// # Safety
/// `queries` has that many rows, and `k` that many keys of `dim` elements.
#[inline(always)]
unsafe fn dot<S: Isa, P: Products, T: Stored, const R: usize, const K: usize, const N: usize>(
    s: S,
    queries: *const f32,
    step: usize,
    k: Rows,
    dim: usize,
) -> Tile<S::F32, R, K> {
    let mut sum = [[P::zero(s); K]; R];
    let width = width::<S, P>();
    let whole = if N > 0 { N * width } else { dim - dim % width };
    let dim = if N > 0 { whole } else { dim };
    // SAFETY: elements below `dim` of R queries and K keys (caller).
    unsafe {
        let mut d = 0;
        // Of one row, so many vectors stay in registers that keys are read in the order of memory, which is how the
        // machine foresees them. Of several, each vector of keys is used for all.
        macro_rules! vectors {
            ($n:expr) => {
                while whole - d >= $n * width {
                    let mut query = [[P::nothing(s); $n]; R];
                    for (r, query) in query.iter_mut().enumerate() {
                        for (c, query) in query.iter_mut().enumerate() {
                            *query = P::query(s, queries.add(r * step), d + c * width);
                        }
                    }
                    for key in 0..K {
                        for c in 0..$n {
                            let x = P::row::<S, T>(s, k.skip(key).base, d + c * width);
                            for (sum, query) in sum.iter_mut().zip(&query) {
                                sum[key] = P::add(s, query[c], x, sum[key]);
                            }
                        }
                    }
                    d += $n * width;
                }
            };
        }
        if N > 0 {
            vectors!(N);
        }
        if R == 1 {
            if S::REGISTERS >= 32 {
                vectors!(8);
            }
            vectors!(4);
        }
        vectors!(1);
        if whole < dim {
            for key in 0..K {
                let x = P::row_first::<S, T>(s, k.skip(key).base, whole, dim - whole);
                for (r, sum) in sum.iter_mut().enumerate() {
                    sum[key] = P::add(s, P::query(s, queries.add(r * step), whole), x, sum[key]);
                }
            }
        }
    }
    let mut dots = [[s.splat(0.0); K]; R];
    for r in 0..R {
        for key in 0..K {
            dots[r][key] = P::number(s, sum[r][key]);
        }
    }
    dots
}
