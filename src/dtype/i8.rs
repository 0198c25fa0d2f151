//! i8 storage, integer dot products: Q and K as pairs of i16, summed exactly in i32.
//!
//! Pairs of i16 and not quadruples of i8, because the byte instruction of AVX2 saturates its
//! intermediate sums; a pair of products of i8 values always fits (2 · 128² < 2³¹). Blocks of K
//! and V are widened in cache, one block of keys at a time: never a whole tensor. V becomes f32
//! and the probabilities stay in f32, so the only error left is that of f32 arithmetic.

use super::{Dtype, Family, Rows, Tile};
use crate::simd::Isa;

/// The i8 compute family.
pub(crate) enum I8 {}

/// Steps whose integer sum cannot overflow: each adds at most 2 · 128² = 2¹⁵ in magnitude, so
/// 2¹⁵ of them stay at or below 2³⁰.
const STEPS_PER_SUM: usize = 1 << 15;

impl Family for I8 {
    const DTYPE: Dtype = Dtype::I8;
    /// Two i16, the even element in the low half.
    type Query = i32;

    #[inline(always)]
    fn steps(dim: usize) -> usize {
        dim.div_ceil(2)
    }

    #[inline(always)]
    fn staged_k_row(dim: usize, _copy: bool) -> usize {
        Self::steps(dim).saturating_mul(4)
    }

    #[inline(always)]
    fn staged_v_row(dim: usize, _copy: bool) -> usize {
        dim.saturating_mul(4)
    }

    #[inline(always)]
    unsafe fn pack_query<S: Isa>(
        _s: S,
        rows: Rows,
        n: usize,
        dim: usize,
        lanes: usize,
        _factor: f32,
        panel: *mut i32,
    ) {
        for lane in 0..lanes {
            let row = rows.skip(lane).base.cast::<i8>();
            for step in 0..Self::steps(dim) {
                let at = |d: usize| {
                    // SAFETY: row `lane` exists and has `dim` elements (caller; both checked).
                    if lane < n && d < dim { unsafe { row.wrapping_add(d).read() } } else { 0 }
                };
                // SAFETY: the panel holds `steps` rows of `lanes` (caller).
                unsafe { panel.add(step * lanes + lane).write(pair(at(2 * step), at(2 * step + 1))) };
            }
        }
    }

    #[inline(always)]
    unsafe fn stage_k<S: Isa>(_s: S, rows: Rows, n: usize, dim: usize, copy: bool, scratch: *mut u8) -> Rows {
        let stride = Self::staged_k_row(dim, copy);
        for row in 0..n {
            let from = rows.skip(row).base.cast::<i8>();
            // SAFETY: source row `row` has `dim` elements, and the scratch row room for `dim`
            // rounded up to a pair (caller).
            unsafe {
                let to = scratch.add(row * stride).cast::<i16>();
                for d in 0..dim {
                    to.add(d).write(i16::from(from.add(d).read()));
                }
                if dim % 2 == 1 {
                    to.add(dim).write(0);
                }
            }
        }
        Rows { base: scratch, stride }
    }

    #[inline(always)]
    unsafe fn stage_v<S: Isa>(_s: S, rows: Rows, n: usize, dim: usize, copy: bool, scratch: *mut u8) -> Rows {
        let stride = Self::staged_v_row(dim, copy);
        for row in 0..n {
            let from = rows.skip(row).base.cast::<i8>();
            // SAFETY: source row `row` and scratch row `row` have `dim` elements (caller).
            unsafe {
                let to = scratch.add(row * stride).cast::<f32>();
                for d in 0..dim {
                    to.add(d).write(f32::from(from.add(d).read()));
                }
            }
        }
        Rows { base: scratch, stride }
    }

    #[inline(always)]
    unsafe fn dot<S: Isa, const R: usize, const Z: usize>(
        s: S,
        panel: *const i32,
        lanes: usize,
        k: Rows,
        dim: usize,
        factor: f32,
    ) -> Tile<S, R, Z> {
        let steps = Self::steps(dim);
        let mut total = [[s.splat(0.0); Z]; R];
        let mut start = 0;
        while start < steps {
            let end = steps.min(start + STEPS_PER_SUM);
            let mut sum = [[s.splat_i32(0); Z]; R];
            for step in start..end {
                // SAFETY: the panel has Z vectors in each of `steps` steps, and each of the R staged rows
                // `steps` pairs (caller).
                unsafe {
                    let mut query = [s.splat_i32(0); Z];
                    for (z, query) in query.iter_mut().enumerate() {
                        *query = s.load_i32(panel.add(step * lanes + z * S::LANES));
                    }
                    for (r, sum) in sum.iter_mut().enumerate() {
                        let row = k.base.wrapping_add(r * k.stride).cast::<i32>();
                        let x = s.splat_i32(row.add(step).read_unaligned());
                        for (sum, query) in sum.iter_mut().zip(query) {
                            *sum = s.dot_i16(*sum, query, x);
                        }
                    }
                }
            }
            for (total, sum) in total.iter_mut().zip(sum) {
                for (total, sum) in total.iter_mut().zip(sum) {
                    *total = s.add(*total, s.to_f32(sum));
                }
            }
            start = end;
        }
        let factor = s.splat(factor);
        for total in &mut total {
            for total in total {
                *total = s.mul(*total, factor);
            }
        }
        total
    }

    #[inline(always)]
    unsafe fn pack_row<S: Isa>(_s: S, row: *const u8, dim: usize, _factor: f32, to: *mut i32) {
        let row = row.cast::<i8>();
        for step in 0..Self::steps(dim).next_multiple_of(S::LANES) {
            // SAFETY: elements below `dim`, and whole vectors of steps (caller).
            let at = |d: usize| if d < dim { unsafe { row.wrapping_add(d).read() } } else { 0 };
            // SAFETY: as above.
            unsafe { to.add(step).write(pair(at(2 * step), at(2 * step + 1))) };
        }
    }

    #[inline(always)]
    unsafe fn dot_row<S: Isa, const R: usize, const K: usize>(
        s: S,
        queries: *const i32,
        step: usize,
        k: Rows,
        dim: usize,
    ) -> Tile<S, R, K> {
        let steps = Self::steps(dim);
        let mut total = [[s.splat(0.0); K]; R];
        let mut start = 0;
        while start < steps {
            // A vector is one step of each lane.
            let end = steps.min(start + STEPS_PER_SUM * S::LANES);
            let mut sum = [[s.splat_i32(0); K]; R];
            for at in (start..end).step_by(S::LANES) {
                for key in 0..K {
                    let row = k.skip(key).base.cast::<i32>().wrapping_add(at);
                    // SAFETY: `steps` pairs of each key, whole vectors of each query (caller).
                    unsafe {
                        let x = if at + S::LANES <= steps {
                            s.load_i32(row)
                        } else {
                            s.load_first_i32(row, steps - at)
                        };
                        for (r, sum) in sum.iter_mut().enumerate() {
                            sum[key] = s.dot_i16(sum[key], s.load_i32(queries.add(r * step + at)), x);
                        }
                    }
                }
            }
            for (total, sum) in total.iter_mut().zip(sum) {
                for (total, sum) in total.iter_mut().zip(sum) {
                    *total = s.add(*total, s.to_f32(sum));
                }
            }
            start = end;
        }
        total
    }

    #[inline(always)]
    fn finish<S: Isa>(s: S, dots: S::F32, factor: f32) -> S::F32 {
        s.mul(dots, s.splat(factor))
    }
}

/// Two i16 in one i32, `even` in the low half as in memory on a little-endian machine.
#[inline(always)]
fn pair(even: i8, odd: i8) -> i32 {
    let [a, b] = i16::from(even).to_ne_bytes();
    let [c, d] = i16::from(odd).to_ne_bytes();
    i32::from_ne_bytes([a, b, c, d])
}
