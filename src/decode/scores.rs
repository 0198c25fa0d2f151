//! Scores of a block of keys, in log2 units: a vector holds neighbouring keys of one row. Keys are multiplied as
//! they lie in memory, or converted as they are read.

use std::marker::PhantomData;
use std::ops::Range;

use super::gemv::{Gemv, SumLane, SumOf, width};
use super::prefetch::{AHEAD, PrefetchStream, fetch_rows};
use super::{Lines, ROWS, block_scaled};
use crate::attend::rows::Rows;
use crate::dtype::{Dtype, Stored, with_qkv_type};
use crate::simd::lane::{Lane, Registers};
use crate::simd::{Body, Isa, MAX_LANES};

/// The keys of a block: those that some row sees, counted from the block's start, as is all that is said of them.
pub(super) struct Keys<'a> {
    pub(super) seen: &'a Range<usize>,
    /// Where they are stored: row n is that of key n.
    pub(super) rows: Rows,
    pub(super) dtype: Dtype,
    /// What each is multiplied by besides, in whole vectors.
    pub(super) scales: Option<*const f32>,
    /// What is asked for meanwhile.
    pub(super) next: PrefetchStream,
}

/// Writes the scores of `keys` for the first `rows` lines. Places beside them, up to whole vectors, may be
/// written, too. Out of line: the types of K and V would multiply.
///
/// # Safety
/// `lines` has that many rows, and a line more where [`ROWS`] say so, with queries packed; keys have `dim` elements.
#[inline(never)]
pub(super) unsafe fn scores<S: Isa, P: Gemv, const ASKS: bool>(
    s: S,
    lines: &Lines,
    rows: usize,
    keys: &Keys,
    dim: usize,
) {
    s.enter(Scores::<P, ASKS> { lines, rows, keys, dim, products: PhantomData });
}

/// Made by [`scores`] alone, whose contract covers what it points to.
struct Scores<'a, P, const ASKS: bool> {
    lines: &'a Lines,
    rows: usize,
    keys: &'a Keys<'a>,
    dim: usize,
    products: PhantomData<P>,
}

impl<P: Gemv, const ASKS: bool> Body for Scores<'_, P, ASKS> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Scores { lines, rows, keys, dim, .. } = self;
        let Keys { seen, scales, .. } = *keys;
        // Keys outside, rows inside: a vector's worth of K stays in the first-level cache for all rows.
        // SAFETY: the contract of `scores`, which made this; lines are as long as whole vectors of keys.
        unsafe {
            if P::BLOCK_SCALED {
                block_scaled::scores::<S, P, ASKS>(s, lines, rows, keys, dim);
            } else {
                with_qkv_type!(P::DTYPE.unwrap_or(keys.dtype), T => block::<S, P, T, ASKS>(s, lines, rows, keys, dim));
            }
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

/// A vector of scores after the other for each of `rows` rows.
///
/// # Safety
/// As [`scores`], of keys stored as `T`.
#[inline(always)]
unsafe fn block<S: Isa, P: Gemv, T: Stored, const ASKS: bool>(
    s: S,
    lines: &Lines,
    rows: usize,
    keys: &Keys,
    dim: usize,
) {
    let vectors = (keys.seen.start - keys.seen.start % S::LANES..keys.seen.end).step_by(S::LANES);
    // Of one row, the usual lengths without a loop over them. A row that is alone has a loop over the keys of its own: what
    // one loop counts for all of them does not fit the registers.
    macro_rules! row_of {
        ($vectors:expr) => {
            if (!ASKS || P::MAX_ROWS == 1) && rows == 1 && dim == $vectors * width::<S, P>() {
                for first in vectors {
                    // SAFETY: the caller's row.
                    unsafe { tile::<S, P, T, 1, { $vectors }, ASKS>(s, lines, 0, first, keys, dim, true) };
                }
                return;
            }
        };
    }
    row_of!(2);
    row_of!(4);
    if S::REGISTERS >= 32 {
        row_of!(8);
    }
    for first in vectors {
        let mut row = 0;
        macro_rules! tiles_of {
            ($rows:expr, $least:expr, $vectors:expr) => {
                // A tile's sums fill one vector, four keys at a time.
                while $rows <= P::MAX_ROWS && $rows * KEYS <= S::LANES && rows.saturating_sub(row) >= $least {
                    // SAFETY: the rows are below the caller's count.
                    unsafe {
                        tile::<S, P, T, { $rows }, { $vectors }, ASKS>(
                            s,
                            lines,
                            row,
                            first,
                            keys,
                            dim,
                            row == 0,
                        )
                    };
                    row += $rows;
                }
            };
        }
        tiles_of!(ROWS, ROWS - 1, 0);
        tiles_of!(2, 2, 0);
        if S::REGISTERS >= 32 && dim == 8 * width::<S, P>() {
            tiles_of!(1, 1, 8);
        }
        tiles_of!(1, 1, 0);
    }
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
unsafe fn tile<S: Isa, P: Gemv, T: Stored, const R: usize, const N: usize, const ASKS: bool>(
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
    let Keys { seen, rows, next, .. } = *keys;
    // Keys for which the rows' sums fill one vector.
    let width = S::LANES / R;
    for part in 0..R {
        let here = first + part * width..first + (part + 1) * width;
        // SAFETY: only keys that are seen are read; lines are as long as whole vectors of keys.
        unsafe {
            if seen.start <= here.start && here.end <= seen.end {
                // One row of wide elements takes longer to read than to multiply: what foresees it by itself is not
                // to be disturbed.
                let next = if ASKS && fetches { next.skip(here.start) } else { PrefetchStream::NOTHING };
                let fetches =
                    fetches && here.end + AHEAD <= seen.end && (R > 1 || T::BLOCK_BYTES < 2 * T::BLOCK);
                let bytes = if fetches { T::BLOCK_BYTES * dim.div_ceil(T::BLOCK) } else { 0 };
                let sums = whole::<S, P, T, R, N, ASKS>(
                    s,
                    q,
                    lines.queries_step,
                    rows.skip(here.start),
                    dim,
                    bytes,
                    next,
                );
                s.store_split::<R>(out.add(part * width), lines.scores_step, sums);
            } else {
                edge(s, Edge::<P, T, R> { lines, row, keys, here, dim, kinds: PhantomData });
            }
        }
    }
}

/// What [`whole`] does where only some of the keys are seen. Out of line: in the loop over whole vectors, it would take
/// registers from that.
///
/// # Safety
/// As [`scores`].
#[inline(never)]
unsafe fn edge<S: Isa, P: Gemv, T: Stored, const R: usize>(s: S, edge: Edge<P, T, R>) {
    s.enter(edge);
}

/// Made for [`edge`] alone, whose contract covers what it points to.
struct Edge<'a, P, T, const R: usize> {
    lines: &'a Lines,
    /// The first of its rows.
    row: usize,
    keys: &'a Keys<'a>,
    /// As many keys as fill a vector.
    here: Range<usize>,
    dim: usize,
    kinds: PhantomData<(P, T)>,
}

impl<P: Gemv, T: Stored, const R: usize> Body for Edge<'_, P, T, R> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Edge { lines, row, keys: Keys { seen, rows, .. }, here, dim, .. } = self;
        let q = lines.queries.wrapping_add(row * lines.queries_step).cast_const();
        // SAFETY: the contract of `edge`: only keys that are seen are read; lines are as long as whole vectors of keys.
        unsafe {
            let out = lines.scores.add(row * lines.scores_step + here.start);
            s.store_split::<R>(out, lines.scores_step, s.splat(0.0));
            for key in here.start.max(seen.start)..here.end.min(seen.end) {
                let dots = dot::<S, P, T, R, 1, 0>(s, q, lines.queries_step, rows.skip(key), dim);
                for (r, [lanes]) in dots.into_iter().enumerate() {
                    out.add(r * lines.scores_step + key - here.start).write(SumOf::<P>::total(s, lanes));
                }
            }
        }
    }
}

/// Dot products of `R` rows of queries with as many keys as fill a vector. Of keys further on `bytes` bytes each are
/// asked for.
///
/// # Safety
/// As [`dot`] for these keys.
#[inline(always)]
unsafe fn whole<S: Isa, P: Gemv, T: Stored, const R: usize, const N: usize, const ASKS: bool>(
    s: S,
    q: *const f32,
    step: usize,
    k: Rows,
    dim: usize,
    bytes: usize,
    next: PrefetchStream,
) -> S::F32 {
    let width = S::LANES / R;
    let mut lanes = [P::Sum::collapse(s, P::Sum::zero(s)); MAX_LANES];
    // Written out, and not a loop: the sums stay in registers.
    macro_rules! keys {
        ($n:expr) => {
            if $n * KEYS < width {
                let k = k.skip($n * KEYS);
                fetch_rows(s, k.skip(AHEAD), KEYS, bytes);
                if ASKS {
                    next.ask(s, $n * KEYS, KEYS, next.whole());
                }
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
    SumOf::<P>::sums(s, &lanes)
}

/// Gemv of `R` rows of queries packed by [`Gemv::pack`], `step` values apart, with `K` keys. The sum of a
/// vector's lanes is a dot product; each lane runs over the row in ascending order whatever `R` and `K` are.
///
/// # Safety
/// `queries` has that many rows, and `k` that many keys of `dim` elements.
#[inline(always)]
unsafe fn dot<S: Isa, P: Gemv, T: Stored, const R: usize, const K: usize, const N: usize>(
    s: S,
    queries: *const f32,
    step: usize,
    k: Rows,
    dim: usize,
) -> [[SumLane<S, P>; K]; R] {
    let mut sum = [[P::Sum::zero(s); K]; R];
    for (r, sum) in sum.iter_mut().enumerate() {
        // SAFETY: R packed queries (caller).
        *sum = [unsafe { P::begin(s, queries.add(r * step), dim, 0) }; K];
    }
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
                    let mut query = [[P::Weight::zero(s); $n]; R];
                    for (r, query) in query.iter_mut().enumerate() {
                        for (c, query) in query.iter_mut().enumerate() {
                            *query = P::query(s, queries.add(r * step), d + c * width);
                        }
                    }
                    for key in 0..K {
                        for c in 0..$n {
                            let x = P::key_operand(s, P::load_kv::<S, T>(s, k.skip(key).base, d + c * width));
                            for (sum, query) in sum.iter_mut().zip(&query) {
                                sum[key] = P::add_score(s, query[c], x, sum[key]);
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
                let x =
                    P::key_operand(s, P::load_kv_partial::<S, T>(s, k.skip(key).base, whole, dim - whole));
                for (r, sum) in sum.iter_mut().enumerate() {
                    let query = P::query(s, queries.add(r * step), whole);
                    sum[key] = P::add_score(s, query, x, sum[key]);
                }
            }
        }
    }
    let mut dots = [[P::Sum::collapse(s, P::Sum::zero(s)); K]; R];
    for r in 0..R {
        for key in 0..K {
            dots[r][key] = P::Sum::collapse(s, sum[r][key]);
        }
    }
    dots
}
