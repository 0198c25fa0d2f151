//! Step 1: scores of a block of keys, in log2 units, and their maximum for each row.

use super::ahead::Ahead;
use crate::family::{Family, Rows, Tile};
use crate::simd::Isa;

/// Writes `out[key][lane]`, `Z` vectors wide, for `n` keys against `Z` vectors of a panel of packed
/// queries `lanes` wide, in register tiles of `R` keys; returns the largest score of each lane.
///
/// # Safety
/// As [`dot`] for `n` keys; `out` has room for `n * Z` vectors.
#[inline(always)]
pub(crate) unsafe fn scores<S: Isa, F: Family, const R: usize, const Z: usize>(
    s: S,
    panel: *const f32,
    lanes: usize,
    k: Rows,
    n: usize,
    dim: usize,
    factor: f32,
    out: *mut f32,
    ahead: &mut Ahead,
) -> [S::F32; Z] {
    let mut max = [s.splat(f32::NEG_INFINITY); Z];
    let mut key = 0;
    // SAFETY: each tile of N keys is taken only while N keys are left of the caller's n, and
    // written where `key` keys have been written before.
    unsafe {
        macro_rules! tiles_of {
            ($rows:expr) => {
                while n - key >= $rows {
                    let tile = dot::<S, F, { $rows }, Z>(s, panel, lanes, k.skip(key), dim, factor);
                    store(s, &tile, out.add(key * Z * S::LANES), &mut max);
                    ahead.step(s);
                    key += $rows;
                }
            };
        }
        tiles_of!(R);
        tiles_of!(4);
        tiles_of!(2);
        tiles_of!(1);
    }
    max
}

/// Scores, in log2 units, of `R` keys against `Z` vectors of packed queries: their dot products times
/// `factor`. Each lane's sum runs over the steps in ascending order whatever `R` and `Z` are, so that a
/// score has the same bits in every tile shape.
///
/// # Safety
/// `k` has at least `R` rows as the family reads them, each of `dim` elements, and `panel` is the first of `Z`
/// neighbouring vectors of a packed panel `lanes` wide.
#[inline(always)]
unsafe fn dot<S: Isa, F: Family, const R: usize, const Z: usize>(
    s: S,
    panel: *const f32,
    lanes: usize,
    k: Rows,
    dim: usize,
    factor: f32,
) -> Tile<S, R, Z> {
    let mut sum = [[s.splat(0.0); Z]; R];
    let mut q = panel;
    let mut key = k.base;
    for _ in 0..F::steps(dim) {
        let mut row = key;
        // SAFETY: the panel has Z vectors in each step, and each of the R rows as many words (caller).
        unsafe {
            let mut query = [F::load(s, q); Z];
            for (z, query) in query.iter_mut().enumerate().skip(1) {
                *query = F::load(s, q.add(z * S::LANES));
            }
            for sum in &mut sum {
                let x = F::value(s, row);
                for (sum, query) in sum.iter_mut().zip(query) {
                    *sum = F::add(s, query, x, *sum);
                }
                row = row.wrapping_add(k.stride);
            }
            q = q.wrapping_add(lanes);
        }
        key = key.wrapping_add(4);
    }
    if F::SCALES_SCORES {
        let factor = s.splat(factor);
        for sum in &mut sum {
            // Not flattened: that would not be unrolled, and the sums would live in memory.
            for sum in sum {
                *sum = s.mul(*sum, factor);
            }
        }
    }
    sum
}

/// Writes a tile and takes it into the maximum.
///
/// # Safety
/// `out` has room for `R * Z` vectors.
#[inline(always)]
unsafe fn store<S: Isa, const R: usize, const Z: usize>(
    s: S,
    tile: &Tile<S, R, Z>,
    out: *mut f32,
    max: &mut [S::F32; Z],
) {
    for (r, row) in tile.iter().enumerate() {
        for (z, &score) in row.iter().enumerate() {
            // NaN as the first operand leaves the maximum alone; it reappears as a probability.
            max[z] = s.max(score, max[z]);
            // SAFETY: r < R and z < Z.
            unsafe { s.store(out.add((r * Z + z) * S::LANES), score) };
        }
    }
}
