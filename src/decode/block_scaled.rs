//! K and V whose blocks of elements have scales beside them (Q8_0), multiplied as integers.
//!
//! - Scores: a vector holds two blocks of K. The sums of a block, of as many keys as a vector has lanes, are multiplied
//!   by a vector of their scales.
//! - Values: an element's weight is its key's probability times the scale of its block of V. So there is a line of weights
//!   for each block of a row, relative to the largest of them in this block of keys: integers of as many bits as
//!   other probabilities.
//!
//! Rows are taken one by one, and scales are gathered once for all of them.

use std::marker::PhantomData;
use std::ops::Range;

use super::gemv::{Gemv, interleave, width};
use super::prefetch::{AHEAD, PrefetchStream, fetch_rows};
use super::scores::Keys;
use super::state::State;
use super::{Lines, Visit};
use crate::attend::finish::blank;
use crate::attend::rows::Rows;
use crate::dtype::{Stored as _, q8_0::Q8_0};
use crate::simd::lane::{MAX_PACK, Registers};
use crate::simd::{Body, Isa, MAX_LANES};
use crate::work::split_kv::SplitWork;

/// Blocks of a row of `dim` elements whose scales are beside them.
pub(super) fn blocks<P: Gemv>(dim: usize) -> usize {
    if P::BLOCK_SCALED { dim / Q8_0::BLOCK } else { 0 }
}

/// Scratch arrays for the values of a block of keys: a line for each block of a row.
pub(super) struct Weights {
    /// The scales of V, and values from one line to the next; likewise below.
    pub(super) scales: *mut f32,
    /// What probabilities of a row become.
    pub(super) digits: *mut f32,
    pub(super) step: usize,
    /// What a line's sums count.
    pub(super) factors: *mut f32,
}

impl Weights {
    /// Whether a scale of a key can be no part of an integer weight: it is negative, or no number.
    ///
    /// # Safety
    /// Scales of this key have been gathered.
    #[inline(always)]
    unsafe fn is_odd(&self, key: usize, dim: usize) -> bool {
        (0..dim / Q8_0::BLOCK).any(|block| {
            // SAFETY: this method's contract.
            let scale = unsafe { self.scales.add(block * self.step + key).read() };
            !(0.0..f32::INFINITY).contains(&scale)
        })
    }
}

/// The rows of four keys from key `n` on.
#[inline(always)]
fn four<S: Isa>(s: S, rows: Rows, n: usize, d: usize) -> impl Fn(usize) -> *const u8 {
    let block = d / Q8_0::BLOCK * Q8_0::BLOCK_BYTES;
    let rows = Rows { base: s.anew(rows.skip(n).base.wrapping_add(block)), ..rows };
    move |i| rows.skip(i).base
}

/// The same of those that are seen; instead of others, the nearest of them.
#[inline(always)]
fn nearest(rows: Rows, seen: &Range<usize>, n: usize, d: usize) -> impl Fn(usize) -> *const u8 {
    let block = d / Q8_0::BLOCK * Q8_0::BLOCK_BYTES;
    move |i| rows.skip((n + i).clamp(seen.start, seen.end - 1)).base.wrapping_add(block)
}

/// The scales of two blocks of a vector of keys, or of one if there is no other; `four` says where the first blocks of
/// four keys are.
///
/// # Safety
/// They are there.
#[inline(always)]
unsafe fn scales<S: Isa, At: Fn(usize) -> *const u8>(
    s: S,
    both: bool,
    four: impl Fn(usize) -> At,
) -> [S::F32; 2] {
    // SAFETY: each block begins with its scale.
    unsafe {
        if both {
            return s.gather_f16(four, Q8_0::BLOCK_BYTES);
        }
        let [first, _] = s.gather_f16(four, 0);
        [first, s.splat(0.0)]
    }
}

/// See [`super::scores::scores`].
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn scores<S: Isa, P: Gemv, const ASKS: bool>(
    s: S,
    lines: &Lines,
    rows: usize,
    keys: &Keys,
    dim: usize,
) {
    let Keys { seen, rows: k, next, .. } = *keys;
    for first in (seen.start - seen.start % S::LANES..seen.end).step_by(S::LANES) {
        // SAFETY: only keys that are seen are read, whichever lane they are in; lines are as long as whole vectors of keys.
        unsafe {
            if seen.start <= first && first + S::LANES <= seen.end {
                let next = if ASKS { next.skip(first) } else { PrefetchStream::NOTHING };
                let k = k.skip(first);
                let ask = |n| {
                    if ASKS {
                        next.ask_all(s, n, KEYS);
                    }
                };
                vector::<S, P, _>(s, lines, rows, first, dim, |n, d| four(s, k, n, d), ask);
            } else {
                vector::<S, P, _>(s, lines, rows, first, dim, |n, d| nearest(k, seen, first + n, d), |_| ());
            }
        }
    }
}

/// Keys that are multiplied one after another.
const KEYS: usize = 4;

/// A vector of scores, from key `first` on, for each of `rows` rows; `four` says where four of them have the block
/// with an element, and `ask` is told when they are multiplied.
///
/// # Safety
/// There are these rows.
#[inline(always)]
unsafe fn vector<S: Isa, P: Gemv, At: Fn(usize) -> *const u8>(
    s: S,
    lines: &Lines,
    rows: usize,
    first: usize,
    dim: usize,
    four: impl Fn(usize, usize) -> At,
    ask: impl Fn(usize),
) {
    let width = width::<S, P>();
    for d in (0..dim).step_by(width) {
        let is_whole = dim - d >= width;
        // SAFETY: elements below `dim` of the caller's rows.
        unsafe {
            let [low, high] = scales(s, is_whole, |n| four(n, d));
            for r in 0..rows {
                let query = lines.queries.add(r * lines.queries_step).cast_const();
                let q = P::query(s, query, d);
                let mut sums = [P::Sum::collapse(s, P::Sum::zero(s)); MAX_LANES];
                // Written out, and not a loop: the sums stay in registers.
                macro_rules! keys {
                    ($n:expr, $row:expr) => {
                        if $n < S::LANES {
                            if d == 0 && r == 0 {
                                ask($n);
                            }
                            let block = four($n, d);
                            for i in 0..KEYS {
                                let k = P::key_operand(s, $row(block(i)));
                                sums[($n + i) % MAX_LANES] = P::product(s, q, k);
                            }
                        }
                    };
                }
                macro_rules! all {
                    ($row:expr) => {
                        keys!(0, $row);
                        keys!(4, $row);
                        keys!(8, $row);
                        keys!(12, $row);
                    };
                }
                if is_whole {
                    all!(|block| P::load_kv::<S, Q8_0>(s, block, 0));
                } else {
                    all!(|block| P::load_kv_partial::<S, Q8_0>(s, block, 0, dim - d));
                }
                let at = lines.scores.add(r * lines.scores_step + first);
                let before = if d == 0 { s.splat(0.0) } else { s.load(at) };
                let [first, second] = P::sums_of_halves(s, &sums, P::begin(s, query, dim, d));
                s.store(at, s.fma(second, high, s.fma(first, low, before)));
            }
        }
    }
}

/// Adds the values of a block of keys, whose probabilities stand where scores were, to the outputs of all rows.
///
/// # Safety
/// As [`super::visit`], which this ends; `weights` has room for the keys of a block.
#[inline(always)]
pub(super) unsafe fn values<S: Isa, P: Gemv>(
    s: S,
    piece: &SplitWork,
    visit: &Visit<P>,
    lines: &Lines,
    weights: &Weights,
    state: &State,
) {
    let dim = piece.problem().shape().dim_v;
    // SAFETY: keys and rows are those of block and band; there is a line of sums and of weights (the caller's contract).
    unsafe {
        let mut are_plain = true;
        let mut rest = visit.keys.clone();
        while !rest.is_empty() {
            let (keys, rows) = visit.v.run(piece, &rest);
            rest.start = keys.end;
            are_plain &= if S::REGISTERS >= 32 && visit.asks {
                // Asked for here as well as below: of what is asked for at once, some is lost.
                gather::<S, true>(s, weights, rows, &keys, dim, visit.next_keys(piece, &keys))
            } else {
                gather::<S, false>(s, weights, rows, &keys, dim, PrefetchStream::NOTHING)
            };
        }
        for (r, (head, row)) in piece.lines().enumerate() {
            let seen = visit.seen_by(piece.sequence(), row);
            let output = state.output.add(r * state.step);
            if seen.is_empty() {
                if visit.fresh {
                    blank(output, state.step);
                }
                continue;
            }
            let p = lines.scores.add(r * lines.scores_step).cast_const();
            let sums = lines.block.base;
            // What a row does not see changes no bit of it.
            let sees = |key: usize| piece.problem().sees(piece.sequence(), head, row, visit.start + key);
            let is_plain = are_plain || !seen.clone().any(|key| weights.is_odd(key, dim) && sees(key));
            if is_plain {
                if are_plain {
                    weigh::<S, P, false>(s, weights, p, &seen, dim);
                } else {
                    weigh::<S, P, true>(s, weights, p, &seen, dim);
                }
                let mut rest = seen.clone();
                while !rest.is_empty() {
                    let (keys, rows) = visit.v.run(piece, &rest);
                    rest.start = keys.end;
                    let fresh = keys.start == seen.start;
                    macro_rules! accumulate {
                        ($asks:literal, $next:expr) => {{
                            let next = $next;
                            let products = PhantomData;
                            s.enter(Accumulate::<P, $asks> {
                                weights,
                                sums,
                                rows,
                                keys,
                                dim,
                                next,
                                fresh,
                                products,
                            });
                        }};
                    }
                    if S::REGISTERS >= 32 && visit.asks && r == 0 {
                        accumulate!(true, visit.next_keys(piece, &keys));
                    } else {
                        accumulate!(false, PrefetchStream::NOTHING);
                    }
                }
            } else {
                blank(sums, dim);
                for key in seen {
                    if sees(key) {
                        let value = visit.v.run(piece, &(key..key + 1)).1.skip(key).base;
                        add_converted(s, p.add(key).read(), value, dim, sums);
                    }
                }
            }
            let weight = lines.weights.add(r * S::LANES).read();
            for d in (0..state.step).step_by(width::<S, P>()) {
                let all = if is_plain { P::outputs(s, sums.add(d)) } else { converted(s, sums, d, dim) };
                for (v, &sum) in all.iter().enumerate().take(P::PACK) {
                    let d = d + v * S::LANES;
                    let factor = match d / Q8_0::BLOCK {
                        block if is_plain && d < dim => weights.factors.add(block).read(),
                        _ => 1.0,
                    };
                    let at = output.add(d);
                    let before = if visit.fresh { s.splat(0.0) } else { s.load(at) };
                    s.store(at, s.fma(sum, s.splat(weight * factor), before));
                }
            }
        }
    }
}

/// Reads the scales of `keys`. Answers whether none of them [is odd](Weights::is_odd).
///
/// # Safety
/// There are these rows, and room for a block's scales.
#[inline(always)]
unsafe fn gather<S: Isa, const ASKS: bool>(
    s: S,
    weights: &Weights,
    rows: Rows,
    keys: &Range<usize>,
    dim: usize,
    next: PrefetchStream,
) -> bool {
    let row_bytes = dim / Q8_0::BLOCK * Q8_0::BLOCK_BYTES;
    let (mut found, mut least) = (s.splat(0.0), s.splat(0.0));
    for first in (keys.start - keys.start % S::LANES..keys.end).step_by(S::LANES) {
        if ASKS {
            next.ask_all(s, first, S::LANES);
            // From the second level, where they have been asked to: a scale here and there is what no machine foresees.
            fetch_rows(s, rows.skip(first + 2 * AHEAD), S::LANES, row_bytes);
        }
        for d in (0..dim).step_by(2 * Q8_0::BLOCK) {
            // SAFETY: rows of `keys`; lines are as long as whole vectors of keys.
            unsafe {
                let is_whole = keys.start <= first && first + S::LANES <= keys.end;
                let has_both = d + Q8_0::BLOCK < dim;
                let both = if is_whole {
                    scales(s, has_both, |n| four(s, rows, first + n, d))
                } else {
                    scales(s, has_both, |n| nearest(rows, keys, first + n, d))
                };
                let block = d / Q8_0::BLOCK;
                for (n, x) in both.into_iter().enumerate().take(dim / Q8_0::BLOCK - block) {
                    s.store(weights.scales.add((block + n) * weights.step + first), x);
                    // NaN from the first one on that is not finite.
                    found = s.fma(x, s.splat(0.0), found);
                    least = s.min(x, least);
                }
            }
        }
    }
    s.total(found) == 0.0 && !s.any(s.gt(s.splat(0.0), least))
}

/// Turns the probabilities `p` of the keys that a row sees into weights; `GUARDED` if scales of keys whose probability is 0
/// may be odd.
///
/// # Safety
/// There is a line of them, as long as whole vectors, and scales have been gathered.
#[inline(always)]
unsafe fn weigh<S: Isa, P: Gemv, const GUARDED: bool>(
    s: S,
    weights: &Weights,
    p: *const f32,
    seen: &Range<usize>,
    dim: usize,
) {
    let first = seen.start - seen.start % S::LANES;
    for block in 0..dim / Q8_0::BLOCK {
        // SAFETY: lines are as long as whole vectors of keys.
        unsafe {
            let scales = weights.scales.add(block * weights.step);
            let digits = weights.digits.add(block * weights.step);
            let weight = |at| {
                let (p, scale) = (s.load(p.add(at)), s.load(scales.add(at)));
                let (weight, none) = (s.mul(p, scale), s.splat(0.0));
                if GUARDED { s.select(s.gt(p, none), weight, none) } else { weight }
            };
            let mut max = s.splat(0.0);
            for at in (first..seen.end).step_by(S::LANES) {
                max = s.max(weight(at), max);
            }
            let max = s.largest(max);
            weights.factors.add(block).write(max * (1.0 / P::P_SCALE));
            // Finite: what is so small that it would not be counts nothing.
            let factor = s.splat(if max > 0.0 { (P::P_SCALE / max).min(f32::MAX) } else { 0.0 });
            for at in (first..seen.end).step_by(S::LANES) {
                P::store_probabilities(s, digits, at, s.mul(weight(at), factor));
            }
        }
    }
}

/// Integer sums of the values of `keys`, weighted. Made in [`values`] alone, whose contract covers what it points to.
struct Accumulate<'a, P, const ASKS: bool> {
    weights: &'a Weights,
    sums: *mut f32,
    rows: Rows,
    keys: Range<usize>,
    dim: usize,
    next: PrefetchStream,
    /// Whether sums begin with these.
    fresh: bool,
    products: PhantomData<P>,
}

impl<P: Gemv, const ASKS: bool> Body for Accumulate<'_, P, ASKS> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let (dim, width) = (self.dim, width::<S, P>());
        let mut d = 0;
        // SAFETY: elements below `dim` of the rows of `values`.
        unsafe {
            while dim - d >= 2 * width {
                self.tile::<S, 2>(s, d, false);
                d += 2 * width;
            }
            while dim - d >= width {
                self.tile::<S, 1>(s, d, false);
                d += width;
            }
            if d < dim {
                self.tile::<S, 1>(s, d, true);
            }
        }
    }
}

impl<P: Gemv, const ASKS: bool> Accumulate<'_, P, ASKS> {
    /// `C` vectors of words from element `d` on; `in_part` if only one block is left.
    ///
    /// # Safety
    /// There is all that.
    #[inline(always)]
    unsafe fn tile<S: Isa, const C: usize>(&self, s: S, d: usize, in_part: bool) {
        let Accumulate { weights, sums, rows, keys, dim, next, fresh, .. } = self;
        let width = width::<S, P>();
        let line =
            |d: usize| weights.digits.wrapping_add(d.min(dim - 1) / Q8_0::BLOCK * weights.step).cast_const();
        let lines: [[*const f32; 2]; C] =
            std::array::from_fn(|c| [line(d + c * width), line(d + c * width + Q8_0::BLOCK)]);
        let mut sum = [[P::Sum::zero(s); MAX_PACK]; C];
        // SAFETY: c < C and keys of the caller's.
        unsafe {
            if !fresh {
                for (c, sum) in sum.iter_mut().enumerate() {
                    *sum = P::load_sums(s, sums.add(d + c * width));
                }
            }
            macro_rules! group {
                ($key:expr, $is_there:expr) => {{
                    let key = $key;
                    let mut x = [[P::Operand::zero(s); MAX_PACK]; C];
                    for n in 0..P::PACK {
                        let row = rows.skip(key + n).base;
                        for c in 0..C {
                            let d = d + c * width;
                            x[c][n] = match in_part {
                                _ if !$is_there(key + n) => P::Operand::zero(s),
                                true => P::load_kv_partial::<S, Q8_0>(s, row, d, dim - d),
                                false => P::load_kv::<S, Q8_0>(s, row, d),
                            };
                        }
                    }
                    for c in 0..C {
                        let weight = P::weights(s, lines[c], key);
                        let x = interleave::<S, P>(s, x[c]);
                        for v in 0..P::PACK {
                            sum[c][v] = P::add_value(s, weight, x[v], sum[c][v]);
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
                if ASKS && d == 0 {
                    next.ask_all(s, key, P::PACK);
                }
                group!(key, |_| true);
                key += P::PACK;
            }
            if key < keys.end {
                group!(key, some);
            }
            for (c, &sum) in sum.iter().enumerate() {
                P::store_sums(s, sums.add(d + c * width), sum);
            }
        }
    }
}

/// Adds a row of values times `p` to `sums`, converted: for scales that no integer weight can have in it.
///
/// # Safety
/// Both have `dim` elements.
#[inline(always)]
unsafe fn add_converted<S: Isa>(s: S, p: f32, row: *const u8, dim: usize, sums: *mut f32) {
    for d in (0..dim).step_by(S::LANES) {
        // SAFETY: blocks are whole vectors.
        unsafe { s.store(sums.add(d), s.fma(s.splat(p), Q8_0::load(s, row, d), s.load(sums.add(d)))) };
    }
}

/// Such sums from element `d` on; 0 behind the last.
///
/// # Safety
/// As above.
#[inline(always)]
unsafe fn converted<S: Isa>(s: S, sums: *const f32, d: usize, dim: usize) -> [S::F32; MAX_PACK] {
    let mut all = [s.splat(0.0); MAX_PACK];
    for (v, sum) in all.iter_mut().enumerate() {
        let d = d + v * S::LANES;
        if d < dim {
            // SAFETY: a vector of the caller's.
            *sum = unsafe { s.load(sums.add(d)) };
        }
    }
    all
}
