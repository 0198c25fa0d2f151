//! Step 1: scores of a span of keys, in log2 units, and their maximum for each row, word by word.

use super::gemm::{Gemm, RegisterTile, Sum};
use super::prefetch::Prefetch;
use crate::attend::rows::Rows;
use crate::simd::lane::Registers;
use crate::simd::{BY_LANE, Body, Isa};

/// Rows of K, and the scales of their scores.
#[derive(Clone, Copy)]
pub(crate) struct Keys {
    /// The rows, as the compute type reads them.
    pub(crate) rows: Rows,
    /// A factor for the scores of each key, if keys have different ones.
    pub(crate) scales: Option<*const f32>,
    /// What corrections of the scores of each key are multiplied by, if K has zeros.
    pub(crate) zeros: Option<*const f32>,
}

impl Keys {
    /// The keys from key `n` on.
    #[inline(always)]
    pub(crate) fn skip(self, n: usize) -> Keys {
        let skip = |of_keys: Option<*const f32>| of_keys.map(|of_keys| of_keys.wrapping_add(n));
        Keys { rows: self.rows.skip(n), scales: skip(self.scales), zeros: skip(self.zeros) }
    }
}

/// The arguments of [`correct`]: scores of `n` keys, `vectors` vectors of them for each, the zero
/// and the scale of each key, and the line of the panel with the corrections of each row.
pub(super) struct Correct {
    pub(super) scores: *mut f32,
    pub(super) n: usize,
    pub(super) vectors: usize,
    pub(super) zeros: *const f32,
    pub(super) scales: Option<*const f32>,
    pub(super) corrections: *const f32,
}

/// Adds to scores what zeros of K correct them by. Kept out of line, so that the code exists once
/// for each instruction set.
///
/// # Safety
/// The arrays have what `body` says.
#[inline(never)]
pub(super) unsafe fn correct<S: Isa>(s: S, body: Correct) {
    s.core().enter(body);
}

impl Body for Correct {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Correct { scores, n, vectors, zeros, scales, corrections } = self;
        for key in 0..n {
            // SAFETY: I5, I7: `correct` is the only one to enter this; its caller vouches for a
            // zero, a scale and `vectors` vectors of scores for each key, and for the line.
            unsafe {
                let scale = scales.map_or(1.0, |scales| scales.add(key).read());
                let zero = s.splat(zeros.add(key).read() * scale);
                for z in 0..vectors {
                    let at = scores.add((key * vectors + z) * S::LANES);
                    s.store(at, s.fma(zero, s.load(corrections.add(z * S::LANES)), s.load(at)));
                }
            }
        }
    }
}

/// Writes `out[key][lane]`, `Z` vectors wide, for `n` keys against `Z` vectors of a panel of packed
/// queries `lanes` wide, in register tiles of `R` keys; returns the largest score of each lane.
///
/// # Safety
/// As [`dot`], for `n` keys. `k` has scales only with [`Gemm::INT_ACC`]. `out` has room
/// for `n * Z` vectors.
#[inline(always)]
pub(crate) unsafe fn scores<S: Isa, F: Gemm, const R: usize, const Z: usize>(
    s: S,
    panel: *const f32,
    lanes: usize,
    k: Keys,
    n: usize,
    dim: usize,
    out: *mut f32,
    prefetch: &mut Prefetch,
) -> [S::F32; Z] {
    let mut max = [s.splat(f32::NEG_INFINITY); Z];
    let mut key = 0;
    macro_rules! tile {
        ($keys:expr) => {{
            // SAFETY: as many of the caller's `n` keys are left, and stored behind the `key` keys
            // before.
            unsafe {
                let tile = dot::<S, F, { $keys }, Z>(s, panel, lanes, k.skip(key), dim);
                store(s, &tile, out.add(key * Z * S::LANES), &mut max);
            }
            $keys
        }};
    }
    // One loop for all heights, so that the code of `step` exists once.
    while key < n {
        key += match n - key {
            left if left >= R => tile!(R),
            left if const { R > 4 } && left >= 4 => tile!(4),
            left if left >= 2 => tile!(2),
            _ => tile!(1),
        };
        prefetch.step(s);
    }
    max
}

/// Scores, in log2 units, of `R` keys against `Z` vectors of packed queries. Each lane sums the
/// steps in ascending order whatever `R` and `Z` are, so that a score has the same bits in every
/// tile shape.
///
/// # Safety
/// `k` has at least `R` keys of `dim` elements. `panel` is the first of `Z` neighbouring vectors of
/// a packed panel, which is `lanes` wide.
#[inline(always)]
unsafe fn dot<S: Isa, F: Gemm, const R: usize, const Z: usize>(
    s: S,
    panel: *const f32,
    lanes: usize,
    k: Keys,
    dim: usize,
) -> RegisterTile<S::F32, R, Z> {
    let Keys { rows, scales, .. } = k;
    let mut sum = [[F::Sum::zero(s); Z]; R];
    for z in 0..Z {
        // SAFETY: one of the `Z` vectors of the panel (caller).
        let begin = unsafe { F::begin_score(s, panel.add(z * S::LANES), lanes) };
        for sum in &mut sum {
            sum[z] = begin;
        }
    }
    let mut q = panel.wrapping_add(F::PANEL_HEADER * lanes);
    let mut key = rows.base;
    let mut steps = F::steps(dim);
    if const { S::MULTIPLIES_BY_LANE } {
        const { assert!(!S::MULTIPLIES_BY_LANE || S::LANES == BY_LANE) };
        while steps >= BY_LANE {
            let mut words = [F::Operand::zero(s); R];
            let mut row = key;
            for words in &mut words {
                // SAFETY: each of the R rows has as many words (caller).
                *words = unsafe { F::Operand::load(s, row.cast()) };
                row = row.wrapping_add(rows.stride);
            }
            macro_rules! step {
                ($lane:literal) => {
                    for z in 0..Z {
                        // SAFETY: the panel has Z vectors for each step (caller).
                        let query = unsafe { F::Operand::load(s, q.add(z * S::LANES)) };
                        for (sum, &words) in sum.iter_mut().zip(&words) {
                            sum[z] = F::add_score_lane::<S, $lane>(s, query, words, sum[z]);
                        }
                    }
                    q = q.wrapping_add(lanes);
                };
            }
            step!(0);
            step!(1);
            step!(2);
            step!(3);
            key = key.wrapping_add(4 * BY_LANE);
            steps -= BY_LANE;
        }
    }
    for _ in 0..steps {
        let mut row = key;
        // SAFETY: the panel has Z vectors for each step, and each of the R rows a word for it
        // (caller).
        unsafe {
            let mut query = [F::Operand::load(s, q); Z];
            for (z, query) in query.iter_mut().enumerate().skip(1) {
                *query = F::Operand::load(s, q.add(z * S::LANES));
            }
            for sum in &mut sum {
                let x = F::Operand::broadcast(s, row);
                for (sum, query) in sum.iter_mut().zip(query) {
                    *sum = F::add_score(s, query, x, *sum);
                }
                row = row.wrapping_add(rows.stride);
            }
            q = q.wrapping_add(lanes);
        }
        key = key.wrapping_add(4);
    }
    // SAFETY: the panel, and the scales of R keys (caller).
    unsafe { end::<S, F, R, Z>(s, panel, scales, R, sum) }
}

/// The scores, in log2 units, whose dot products are `sum`, of which `n` keys have scales.
///
/// # Safety
/// `panel` is as for [`dot`]; there are as many scales, if there are some.
#[inline(always)]
pub(crate) unsafe fn end<S: Isa, F: Gemm, const R: usize, const Z: usize>(
    s: S,
    panel: *const f32,
    scales: Option<*const f32>,
    n: usize,
    sum: RegisterTile<Sum<S, F>, R, Z>,
) -> RegisterTile<S::F32, R, Z> {
    // Nested loops, because LLVM would not unroll a flattened one, and the sums would live in
    // memory.
    let mut tile = [[s.splat(0.0); Z]; R];
    for (tile, sum) in tile.iter_mut().zip(sum) {
        for (z, (tile, sum)) in tile.iter_mut().zip(sum).enumerate() {
            // SAFETY: one of the `Z` vectors of the panel (caller).
            *tile = unsafe { F::end_score(s, panel.add(z * S::LANES), sum) };
        }
    }
    if F::INT_ACC
        && let Some(scales) = scales
    {
        for (r, tile) in tile.iter_mut().enumerate().take(n) {
            // SAFETY: the keys have `n` scales (caller).
            let scale = s.splat(unsafe { scales.add(r).read() });
            for x in tile {
                *x = s.mul(*x, scale);
            }
        }
    }
    tile
}

/// Stores a tile of scores and updates the maximum of each lane.
///
/// # Safety
/// `out` has room for all vectors of the tile.
#[inline(always)]
pub(crate) unsafe fn store<S: Isa, const Z: usize>(
    s: S,
    tile: &[[S::F32; Z]],
    out: *mut f32,
    max: &mut [S::F32; Z],
) {
    for (r, row) in tile.iter().enumerate() {
        for (z, &score) in row.iter().enumerate() {
            // NaN as the first operand leaves the maximum alone; it reappears as a probability.
            max[z] = s.max(score, max[z]);
            // SAFETY: one of the vectors of `out` (caller).
            unsafe { s.store(out.add((r * Z + z) * S::LANES), score) };
        }
    }
}
