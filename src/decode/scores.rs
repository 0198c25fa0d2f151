//! Scores of a block of keys, in log2 units: a vector holds neighbouring keys of one row. Keys are
//! multiplied as they lie in memory, or converted as they are read.

use std::marker::PhantomData;
use std::ops::Range;

use super::block::Run;
use super::gemv::{Gemv, SumLane, SumOf, width};
use super::prefetch::{PrefetchStream, prefetch_rows};
use super::scratch::{ROWS, RowArrays, least_of_four};
use crate::attend::rows::Rows;
use crate::dtype::Stored;
use crate::simd::lane::{Lane, Registers};
use crate::simd::{Body, Isa, MAX_LANES};

/// Writes the scores of the first `count` query rows with the keys of `run`. Places beside them, up
/// to whole vectors, may be written, too. Out of line: the types of K and V would multiply.
///
/// # Safety
/// `rows` are the arrays of a group, for `count` rows and what [`super::scratch::padded_rows`]
/// adds, with queries packed (I5); `run` has rows of K (I2).
#[inline(never)]
pub(super) unsafe fn scores<S: Isa, P: Gemv>(
    s: S,
    rows: &RowArrays,
    count: usize,
    run: &Run,
    next: PrefetchStream,
) {
    s.enter(Scores::<P> { rows, count, run, next, compute: PhantomData });
}

/// Made by [`scores`] alone, whose contract covers what it points to.
struct Scores<'a, P> {
    rows: &'a RowArrays,
    count: usize,
    run: &'a Run,
    next: PrefetchStream,
    compute: PhantomData<P>,
}

impl<P: Gemv> Body for Scores<'_, P> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Scores { rows, count, run, next, .. } = self;
        let (keys, scales) = (&run.keys, run.scales);
        // SAFETY: I2, I5: rows of K and arrays are as `scores` demands, which made this; I7: scores
        // and factors are whole vectors of keys.
        unsafe {
            P::dot_products::<S>(s, rows, count, run, next);
            if let Some(corrections) = rows.corrections {
                correct(s, Correct { rows, corrections, count, run });
                return;
            }
            for r in 0..count {
                let factor = rows.factors.add(r).read();
                if factor == 1.0 && scales.is_none() {
                    continue;
                }
                let scores = rows.scores.add(r * rows.score_stride);
                for at in (keys.start - keys.start % S::LANES..keys.end).step_by(S::LANES) {
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

/// Turns the dot products of a run into scores, where K has zeros. Kept out of line, so that the
/// code exists once for each instruction set.
#[inline(never)]
fn correct<S: Isa>(s: S, body: Correct) {
    s.core().enter(body);
}

/// The arguments of [`correct`]. Only [`Scores`] makes one, and vouches for what it points to.
struct Correct<'a> {
    rows: &'a RowArrays,
    corrections: *const f32,
    count: usize,
    run: &'a Run,
}

impl Body for Correct<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Correct { rows, corrections, count, run: Run { keys, scales, zeros, .. } } = self;
        for r in 0..count {
            // SAFETY: I5: row r of the arrays; I7: scores, scales and zeros are whole vectors of
            // keys.
            unsafe {
                let (factor, correction) = (rows.factors.add(r).read(), corrections.add(r).read());
                let (factor, correction) = (s.splat(factor), s.splat(correction));
                let scores = rows.scores.add(r * rows.score_stride);
                for at in (keys.start - keys.start % S::LANES..keys.end).step_by(S::LANES) {
                    let x = s.mul(s.load(scores.add(at)), factor);
                    let x = match (zeros, scales) {
                        (Some(zeros), Some(scales)) => {
                            let x = s.fma(s.load(zeros.add(at)), correction, x);
                            s.mul(x, s.load(scales.add(at)))
                        }
                        _ => s.add(x, correction),
                    };
                    s.store(scores.add(at), x);
                }
            }
        }
    }
}

/// The loops of [`Gemv::dot_products`]: one vector of scores after the other. Keys are the outer
/// loop and query rows the inner one: a vector's worth of K stays in the first-level cache for all
/// rows.
///
/// # Safety
/// The contract of [`Gemv::dot_products`], of rows that are stored as `T`.
#[inline(always)]
pub(super) unsafe fn dot_products<S: Isa, P: Gemv, T: Stored>(
    s: S,
    rows: &RowArrays,
    count: usize,
    run: &Run,
    next: PrefetchStream,
) {
    let dim = run.dim;
    let vectors = (run.keys.start - run.keys.start % S::LANES..run.keys.end).step_by(S::LANES);
    let prefetches = next.is_any();
    // One row of the usual lengths needs no loop over its vectors, and gets a loop over the keys of
    // its own: the counters of one loop for all lengths would not fit the registers.
    macro_rules! row_of {
        ($vectors:expr) => {
            if count == 1 && dim == $vectors * width::<S, P>() {
                if const { S::PREFETCHES_STREAM && P::MAX_ROWS == 1 } && prefetches {
                    for first in vectors {
                        // SAFETY: I5: the one row that there is (caller).
                        unsafe {
                            tile::<S, P, T, 1, { $vectors }, true>(s, rows, 0, 1, first, run, dim, next)
                        };
                    }
                } else {
                    for first in vectors {
                        // SAFETY: I5: the one row that there is (caller).
                        unsafe {
                            tile::<S, P, T, 1, { $vectors }, false>(s, rows, 0, 1, first, run, dim, next)
                        };
                    }
                }
                return;
            }
        };
    }
    row_of!(2);
    row_of!(4);
    if const { S::GEMV_ACCUMULATORS >= 16 } {
        row_of!(8);
    }
    // With few registers, a loop that has tiles of several rows as well would cost one row some.
    if const { S::SCORES_FILL_VECTOR } && count == 1 {
        for first in vectors {
            // SAFETY: I5: the one row that there is (caller).
            unsafe { tile::<S, P, T, 1, 0, false>(s, rows, 0, 1, first, run, dim, next) };
        }
        return;
    }
    for first in vectors {
        let mut row = 0;
        macro_rules! tiles_of {
            ($rows:expr, $least:expr, $vectors:expr) => {
                // The sums of a tile fill vectors.
                if const { $rows <= P::MAX_ROWS && takes_together::<S, T>($rows) } {
                    while count.saturating_sub(row) >= $least {
                        // SAFETY: I5: rows below `count`, and one more if `padded_rows` says so
                        // (caller).
                        unsafe {
                            // One copy of the loop where rows share keys, two where one row is
                            // all that there is.
                            if const { streams::<S, P>($rows) }
                                || const { S::PREFETCHES_STREAM && P::MAX_ROWS == 1 }
                                    && prefetches
                                    && row == 0
                            {
                                tile::<S, P, T, { $rows }, { $vectors }, true>(
                                    s, rows, row, count, first, run, dim, next,
                                );
                            } else {
                                tile::<S, P, T, { $rows }, { $vectors }, false>(
                                    s, rows, row, count, first, run, dim, next,
                                );
                            }
                        }
                        row += $rows;
                    }
                }
            };
        }
        tiles_of!(ROWS, least_of_four::<S, P>(), 0);
        tiles_of!(2, 2, 0);
        // Where rows are never taken together, `row_of` has taken that length.
        if const { S::GEMV_ACCUMULATORS >= 16 && P::MAX_ROWS > 1 } && dim == 8 * width::<S, P>() {
            tiles_of!(1, 1, 8);
        }
        tiles_of!(1, 1, 0);
    }
}

/// Whether a register tile takes so many query rows. Where that makes tiles of fewer keys, only if
/// keys have to be converted, which is done once for all rows: numbers that are multiplied from
/// memory are best taken for one row after the other.
const fn takes_together<S: Isa, T: Stored>(rows: usize) -> bool {
    if S::SCORES_FILL_VECTOR {
        rows == 1 || (rows < S::LANES && !is_wide::<T>())
    } else {
        rows * KEYS <= S::LANES || fills_vectors::<S>(rows)
    }
}

/// Whether the sums of a register tile of so many query rows fill a vector for each row, and not
/// one for all: where vectors are as short as a tile has keys, and there are registers for it.
const fn fills_vectors<S: Isa>(rows: usize) -> bool {
    rows > 1 && S::LANES == KEYS && rows * KEYS <= S::GEMV_ACCUMULATORS && S::GEMV_ACCUMULATORS >= 16
}

/// Keys of a register tile of so many query rows.
const fn keys_of_tile<S: Isa>(rows: usize) -> usize {
    if fills_vectors::<S>(rows) { KEYS } else { S::LANES / rows }
}

/// Whether a register tile of so many query rows prefetches the stream that it is given: the first
/// one of several, or, where rows are taken one after the other, the first two.
const fn streams<S: Isa, P: Gemv>(rows: usize) -> bool {
    S::STREAMS_SHARED_KEYS && P::MAX_ROWS > 1 && (rows > 1 || S::SCORES_FILL_VECTOR)
}

/// Whether elements are multiplied as they lie in memory, and not converted.
const fn is_wide<T: Stored>() -> bool {
    T::BLOCK_BYTES >= size_of::<f32>() * T::BLOCK
}

/// Keys that are multiplied at a time: enough to hide the latency of FMA together with the next
/// ones, and few enough for the registers.
const KEYS: usize = 4;

/// One vector of scores, from key `first` on, for each of `R` of `count` query rows, from `row` on.
/// `N` is the number of vectors of a row if the compiler is to know it, else 0. The
/// tile of the first rows prefetches: with `PREFETCH` the rows of `next`, if there are any, else
/// those of this run some keys later.
///
/// # Safety
/// The contract of [`dot_products`]; the arrays have `R` rows from `row` on.
#[inline(always)]
unsafe fn tile<S: Isa, P: Gemv, T: Stored, const R: usize, const N: usize, const PREFETCH: bool>(
    s: S,
    rows: &RowArrays,
    row: usize,
    count: usize,
    first: usize,
    run: &Run,
    dim: usize,
    next: PrefetchStream,
) {
    let q = rows.queries.wrapping_add(row * rows.query_stride).cast_const();
    let out = rows.scores.wrapping_add(row * rows.score_stride + first);
    let (keys, k) = (&run.keys, run.rows);
    let prefetches = row == 0;
    let width = const { keys_of_tile::<S>(R) };
    for part in 0..const { S::LANES / keys_of_tile::<S>(R) } {
        let here = first + part * width..first + (part + 1) * width;
        // SAFETY: I2: keys of `here` are read where all of them are in the run; I7: scores are
        // whole vectors of keys.
        unsafe {
            if keys.start <= here.start && here.end <= keys.end {
                let next = match row {
                    0 if PREFETCH => next.skip(here.start),
                    // The first row has prefetched the first half.
                    1 if PREFETCH && R == 1 && S::SCORES_FILL_VECTOR => next.skip(here.start + width / 2),
                    _ => PrefetchStream::NOTHING,
                };
                // One row of wide elements takes longer to read than to multiply: software prefetch
                // would only disturb the hardware prefetcher, which follows it.
                let prefetches = prefetches
                    && !(PREFETCH && next.is_any())
                    && here.end + run.prefetch_rows <= run.prefetch_end
                    && (R > 1 || T::BLOCK_BYTES < 2 * T::BLOCK || (S::SCORES_FILL_VECTOR && count > 1));
                let bytes = if prefetches { T::BLOCK_BYTES * dim.div_ceil(T::BLOCK) } else { 0 };
                let k = k.skip(here.start);
                if const { fills_vectors::<S>(R) } {
                    prefetch_rows(s, k.skip(run.prefetch_rows), KEYS, bytes);
                    let dots = dot::<S, P, T, R, KEYS, N>(s, q, rows.query_stride, k, dim);
                    for (r, dots) in dots.into_iter().enumerate() {
                        let mut lanes = [dots[0]; MAX_LANES];
                        lanes[..KEYS].copy_from_slice(&dots);
                        let sums = SumOf::<P>::horizontal_sums(s, &lanes);
                        s.store(out.add(r * rows.score_stride), sums);
                    }
                    continue;
                }
                let sums = whole::<S, P, T, R, N, PREFETCH>(
                    s,
                    q,
                    rows.query_stride,
                    k,
                    dim,
                    [run.prefetch_rows, bytes],
                    next,
                );
                s.store_segments::<R>(out.add(part * width), rows.score_stride, sums);
            } else {
                edge(s, Edge::<P, T, R> { rows, row, run, here, dim, types: PhantomData });
            }
        }
    }
}

/// The scores of a vector's worth of keys of which only some are in the run. Out of line: in the
/// loop over whole vectors, it would take registers from that.
///
/// # Safety
/// The contract of [`tile`], for what is in `edge`.
#[inline(never)]
unsafe fn edge<S: Isa, P: Gemv, T: Stored, const R: usize>(s: S, edge: Edge<P, T, R>) {
    s.enter(edge);
}

/// Made for [`edge`] alone, whose contract covers what it points to.
struct Edge<'a, P, T, const R: usize> {
    rows: &'a RowArrays,
    /// The first of its query rows.
    row: usize,
    run: &'a Run,
    /// As many keys as fill a vector.
    here: Range<usize>,
    dim: usize,
    types: PhantomData<(P, T)>,
}

impl<P: Gemv, T: Stored, const R: usize> Body for Edge<'_, P, T, R> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Edge { rows, row, run: Run { keys, rows: k, .. }, here, dim, .. } = self;
        let q = rows.queries.wrapping_add(row * rows.query_stride).cast_const();
        // SAFETY: I2: only keys of the run are read; I5, I7: `R` rows of scores from `row` on,
        // which are whole vectors of keys (the contract of `edge`, which made this).
        unsafe {
            let out = rows.scores.add(row * rows.score_stride + here.start);
            if const { fills_vectors::<S>(R) } {
                for r in 0..R {
                    s.store(out.add(r * rows.score_stride), s.splat(0.0));
                }
            } else {
                s.store_segments::<R>(out, rows.score_stride, s.splat(0.0));
            }
            for key in here.start.max(keys.start)..here.end.min(keys.end) {
                let dots = dot::<S, P, T, R, 1, 0>(s, q, rows.query_stride, k.skip(key), dim);
                for (r, [lanes]) in dots.into_iter().enumerate() {
                    out.add(r * rows.score_stride + key - here.start)
                        .write(SumOf::<P>::horizontal_sum(s, lanes));
                }
            }
        }
    }
}

/// Dot products of `R` query rows with as many keys as fill a vector. `bytes` bytes of each key
/// `distance` rows further on are prefetched, and with `PREFETCH` the rows of `next`.
///
/// # Safety
/// The contract of [`dot`], for these keys.
#[inline(always)]
unsafe fn whole<S: Isa, P: Gemv, T: Stored, const R: usize, const N: usize, const PREFETCH: bool>(
    s: S,
    q: *const f32,
    stride: usize,
    k: Rows,
    dim: usize,
    [distance, bytes]: [usize; 2],
    next: PrefetchStream,
) -> S::F32 {
    let width = S::LANES / R;
    let mut lanes = [P::Sum::collapse(s, P::Sum::zero(s)); MAX_LANES];
    macro_rules! all_keys {
        ($keys:expr) => {
            if const { S::SCORES_FILL_VECTOR && R * $keys == S::LANES && (R > 1 || is_wide::<T>()) } {
                prefetch_rows(s, k.skip(distance), $keys, bytes);
                if PREFETCH && next.is_any() {
                    next.prefetch(s, 0, if R == 1 { $keys / 2 } else { $keys });
                }
                // SAFETY: I2: these are all of the keys that the caller has.
                let dots = unsafe { dot::<S, P, T, R, $keys, N>(s, q, stride, k, dim) };
                for (r, dots) in dots.into_iter().enumerate() {
                    for (i, dot) in dots.into_iter().enumerate() {
                        lanes[(r * $keys + i) % MAX_LANES] = dot;
                    }
                }
                return SumOf::<P>::horizontal_sums(s, &lanes);
            }
        };
    }
    all_keys!(8);
    all_keys!(4);
    all_keys!(2);
    // Written out, and not a loop: the sums stay in registers.
    macro_rules! keys {
        ($n:expr) => {
            if const { $n * KEYS < S::LANES / R } {
                let k = k.skip($n * KEYS);
                prefetch_rows(s, k.skip(distance), KEYS, bytes);
                if PREFETCH && next.is_any() {
                    next.prefetch(s, $n * KEYS, KEYS);
                }
                // SAFETY: I2: these are KEYS of the `LANES / R` keys that the caller has.
                let dots = unsafe { dot::<S, P, T, R, KEYS, N>(s, q, stride, k, dim) };
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
    SumOf::<P>::horizontal_sums(s, &lanes)
}

/// Dot products of `R` query rows packed by [`Gemv::pack`], `stride` values apart, with `K` keys:
/// the sum of the lanes of each vector. Each lane runs over the row in ascending order whatever `R`
/// and `K` are.
///
/// # Safety
/// `queries` has `R` packed rows of `dim` elements, and `k` has `K` keys of as many, stored as `T`.
#[inline(always)]
unsafe fn dot<S: Isa, P: Gemv, T: Stored, const R: usize, const K: usize, const N: usize>(
    s: S,
    queries: *const f32,
    stride: usize,
    k: Rows,
    dim: usize,
) -> [[SumLane<S, P>; K]; R] {
    let mut sum = [[P::Sum::zero(s); K]; R];
    for (r, sum) in sum.iter_mut().enumerate() {
        // SAFETY: I5: one of the R packed rows (caller).
        *sum = [unsafe { P::begin(s, queries.add(r * stride), dim) }; K];
    }
    let width = width::<S, P>();
    let whole = if N > 0 { N * width } else { dim - dim % width };
    let dim = if N > 0 { whole } else { dim };
    // SAFETY: I7: elements below `dim` of R queries and K keys (caller), whole vectors below
    // `whole`.
    unsafe {
        let mut d = 0;
        // Of one row, so many vectors stay in registers that keys are read in the order of memory,
        // which the hardware prefetcher follows. Of several rows, each vector of keys is used for
        // all.
        macro_rules! vectors {
            ($n:expr) => {
                while whole - d >= $n * width {
                    let mut query = [[P::Weight::zero(s); $n]; R];
                    for (r, query) in query.iter_mut().enumerate() {
                        for (c, query) in query.iter_mut().enumerate() {
                            *query = P::query(s, queries.add(r * stride), d + c * width);
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
        if const { N > 0 } {
            vectors!(N);
        }
        if const { R == 1 && S::GEMV_ACCUMULATORS >= 16 } {
            vectors!(8);
        }
        if const { R == 1 } {
            vectors!(4);
        }
        vectors!(1);
        if whole < dim {
            for key in 0..K {
                let x =
                    P::key_operand(s, P::load_kv_partial::<S, T>(s, k.skip(key).base, whole, dim - whole));
                for (r, sum) in sum.iter_mut().enumerate() {
                    let query = P::query(s, queries.add(r * stride), whole);
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
