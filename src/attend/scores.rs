//! Step 1: scores of a block of keys, in log2 units, and their maximum for each row.

use super::ahead::Ahead;
use crate::family::{Family, Rows, Tile};
use crate::simd::Isa;

/// Writes `out[key][lane]`, `Z` vectors wide, for `n` keys against `Z` vectors of a panel of packed
/// queries `lanes` wide, in register tiles of `R` keys; returns the largest score of each lane.
///
/// # Safety
/// As [`Family::dot`] for `n` keys; `out` has room for `n * Z` vectors.
#[inline(always)]
pub(crate) unsafe fn scores<S: Isa, F: Family, const R: usize, const Z: usize>(
    s: S,
    panel: *const F::Query,
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
                    let tile = F::dot::<S, { $rows }, Z>(s, panel, lanes, k.skip(key), dim, factor);
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
