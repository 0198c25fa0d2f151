//! Step 5: output += probabilities · V, transposed: a vector is one output element of all rows.
//!
//! The first register tile makes the probabilities while it goes through the keys: the exponential
//! keeps pipes busy that multiply-adds leave free, which a pass of its own would not.

use std::ops::Range;

use super::gemm::{Gemm, Operand, RegisterTile, Sum, weighted};
use super::softmax::Probabilities;
use crate::attend::MAX_WIDTH;
use crate::attend::rows::Rows;
use crate::simd::Isa;
use crate::simd::lane::Registers;

/// Elements of the tile that makes the probabilities: fewer than in others, so that what the
/// exponential needs stays in registers, too.
const FIRST: usize = 4;

/// Groups of keys ahead of the one that is added whose values are asked for: a tile takes a few elements
/// of each row, at a row's distance, which machines foresee badly from the second level.
const NEAR: usize = 4;

/// Turns the scores of `n` groups of keys into words of probabilities, in place, and adds them to the first
/// elements of the output; returns how many elements that are. See [`accumulate`], which does the others.
///
/// # Safety
/// As [`accumulate`].
#[inline(always)]
pub(crate) unsafe fn make_and_accumulate<S: Isa, F: Gemm, const Z: usize>(
    s: S,
    scores: *mut f32,
    v: Rows,
    n: usize,
    dim: usize,
    output: *mut f32,
    lanes: usize,
    fresh: bool,
    making: &mut Probabilities<S, F, Z>,
) -> usize {
    // SAFETY: FIRST or 1 of the caller's dim, which is at least 1.
    unsafe {
        if S::REGISTERS < 32 {
            // Too few to do both: what is saved is lost to spilling, twice over.
            making.make_all(s, scores, n);
            0
        } else if dim >= FIRST {
            tile::<S, F, FIRST, Z>(s, scores, v, n, output, lanes, fresh, making.weight(), Some(making));
            FIRST
        } else {
            tile::<S, F, 1, Z>(s, scores, v, n, output, lanes, fresh, making.weight(), Some(making));
            1
        }
    }
}

/// Adds `n` groups of keys to `Z` vectors of `output[d][lane]`, which is `lanes` wide, from element `d` on,
/// in register tiles of `R` elements. Each element's sum runs over the groups in ascending order.
///
/// # Safety
/// `p` holds `n * Z` vectors of words, `v` `n` groups of `dim` words, `output` `Z` vectors in each of `dim`
/// rows: initialised, or to be if `fresh`.
#[inline(always)]
pub(crate) unsafe fn accumulate<S: Isa, F: Gemm, const R: usize, const Z: usize>(
    s: S,
    p: *mut f32,
    v: Rows,
    n: usize,
    mut d: usize,
    dim: usize,
    output: *mut f32,
    lanes: usize,
    fresh: bool,
    weight: [S::F32; Z],
) {
    // SAFETY: each tile of N elements is taken only while N are left of the caller's dim.
    unsafe {
        macro_rules! tiles_of {
            ($rows:expr) => {
                while dim - d >= $rows {
                    let v = Rows { base: v.base.wrapping_add(d * 4), ..v };
                    let output = output.add(d * lanes);
                    tile::<S, F, { $rows }, Z>(s, p, v, n, output, lanes, fresh, weight, None);
                    d += $rows;
                }
            };
        }
        tiles_of!(R);
        tiles_of!(4);
        tiles_of!(2);
        tiles_of!(1);
    }
}

/// # Safety
/// As [`accumulate`], for `R` elements from the first of `v` on. With `making`, `p` holds scores,
/// which become probabilities.
#[inline(always)]
unsafe fn tile<S: Isa, F: Gemm, const R: usize, const Z: usize>(
    s: S,
    p: *mut f32,
    v: Rows,
    n: usize,
    output: *mut f32,
    lanes: usize,
    fresh: bool,
    weight: [S::F32; Z],
    making: Option<&mut Probabilities<S, F, Z>>,
) {
    let mut sum = [[F::Sum::zero(s); Z]; R];
    // SAFETY: r < R, z < Z, and `n` rows of probabilities and of V.
    unsafe {
        if !fresh && !F::INT_ACC {
            for (r, sum) in sum.iter_mut().enumerate() {
                for (z, sum) in sum.iter_mut().enumerate() {
                    *sum = F::Sum::load(s, output.add(r * lanes + z * S::LANES));
                }
            }
        }
        let mut row = v.base;
        if let Some(making) = making {
            // A copy, which can live in registers. Probabilities are made one group before they are used, so
            // that the multiply-adds of one group never wait for its exponentials.
            let mut made = *making;
            let mut words = made.make(s, p, p);
            for group in 1..n {
                let at = p.add(group * Z * S::LANES);
                let next = made.make(s, p.add(group * F::PACK * Z * S::LANES), at);
                s.prefetch_near(row.wrapping_add(NEAR * v.stride));
                weigh::<S, F, R, Z>(s, words, row, &mut sum);
                words = next;
                row = row.wrapping_add(v.stride);
            }
            weigh::<S, F, R, Z>(s, words, row, &mut sum);
            *making = made;
        } else {
            let mut p = p;
            for _ in 0..n {
                s.prefetch_near(row.wrapping_add(NEAR * v.stride));
                let mut words = [F::Operand::load(s, p); Z];
                for (z, words) in words.iter_mut().enumerate().skip(1) {
                    *words = F::Operand::load(s, p.add(z * S::LANES));
                }
                weigh::<S, F, R, Z>(s, words, row, &mut sum);
                p = p.add(Z * S::LANES);
                row = row.wrapping_add(v.stride);
            }
        }
        for (r, sum) in sum.iter().enumerate() {
            for (z, &sum) in sum.iter().enumerate() {
                let at = output.add(r * lanes + z * S::LANES);
                let sum = weighted::<S, F>(s, sum, weight[z]);
                let more = F::INT_ACC && !fresh;
                s.store(at, if more { s.add(s.load(at), sum) } else { sum });
            }
        }
    }
}

/// Adds one group to `R` elements: its probabilities times the first `R` words at `row`.
///
/// # Safety
/// `row` has `R` words.
#[inline(always)]
unsafe fn weigh<S: Isa, F: Gemm, const R: usize, const Z: usize>(
    s: S,
    words: [Operand<S, F>; Z],
    row: *const u8,
    sum: &mut RegisterTile<Sum<S, F>, R, Z>,
) {
    for (r, sum) in sum.iter_mut().enumerate() {
        // SAFETY: r < R.
        let x = unsafe { F::Operand::broadcast(s, row.wrapping_add(4 * r)) };
        for (sum, words) in sum.iter_mut().zip(words) {
            *sum = F::add_value(s, words, x, *sum);
        }
    }
}

/// Adds one key only to the rows that see it, those with a 1 in `sees`: for values that are not finite,
/// whose product with the probability 0 of the other rows would be NaN.
///
/// # Safety
/// As [`accumulate`] for one key, initialised.
#[inline(always)]
pub(crate) unsafe fn accumulate_guarded<S: Isa, const Z: usize>(
    s: S,
    p: *const f32,
    v: *const u8,
    dim: usize,
    output: *mut f32,
    lanes: usize,
    sees: &[f32; MAX_WIDTH],
) {
    for z in 0..Z {
        // SAFETY: z < Z, and there are not more vectors.
        let sees = s.gt(unsafe { s.load(sees.as_ptr().add(z * S::LANES)) }, s.splat(0.0));
        for d in 0..dim {
            // SAFETY: z < Z and d < dim.
            unsafe {
                let x = s.splat(v.cast::<f32>().wrapping_add(d).read_unaligned());
                let at = output.add(d * lanes + z * S::LANES);
                let old = s.load(at);
                s.store(at, s.select(sees, s.fma(s.load(p.add(z * S::LANES)), x, old), old));
            }
        }
    }
}

/// The first key in `keys` whose values are not all finite.
///
/// # Safety
/// `v` has the rows `keys`, of `dim` f32.
#[inline(always)]
pub(crate) unsafe fn first_not_finite(v: Rows, keys: Range<usize>, dim: usize) -> Option<usize> {
    // The exponent field, all ones in infinities and NaN.
    const EXPONENT: u32 = 0x7f80_0000;
    for key in keys {
        let row = v.skip(key).base.cast::<u32>();
        // A maximum and no early exit, so that the loop becomes vector code.
        let mut exponent = 0;
        for d in 0..dim {
            // SAFETY: `key` is one of the caller's rows, d < dim.
            let bits = unsafe { row.wrapping_add(d).read_unaligned() };
            exponent = exponent.max(bits & EXPONENT);
        }
        if exponent == EXPONENT {
            return Some(key);
        }
    }
    None
}
