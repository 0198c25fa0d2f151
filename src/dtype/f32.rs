//! f32 storage, f32 FMA: K and V are read where they lie, Q is transposed and scaled once.

use super::{Dtype, Family, Rows, Tile};
use crate::simd::{Isa, corner};

/// The f32 compute family.
pub(crate) enum F32 {}

impl Family for F32 {
    const DTYPE: Dtype = Dtype::F32;
    type Query = f32;

    #[inline(always)]
    fn steps(dim: usize) -> usize {
        dim
    }

    #[inline(always)]
    fn staged_k_row(dim: usize, copy: bool) -> usize {
        if copy { copied_row(dim) } else { 0 }
    }

    #[inline(always)]
    fn staged_v_row(dim: usize, copy: bool) -> usize {
        if copy { copied_row(dim) } else { 0 }
    }

    #[inline(always)]
    unsafe fn pack_query<S: Isa>(
        s: S,
        rows: Rows,
        n: usize,
        dim: usize,
        lanes: usize,
        factor: f32,
        panel: *mut f32,
    ) {
        let scale = s.splat(factor);
        for first in (0..lanes).step_by(S::LANES) {
            let here = n.saturating_sub(first).min(S::LANES);
            let from = rows.skip(first);
            let mut d = 0;
            while d + S::LANES <= dim {
                // SAFETY: `here` rows from `first` on and columns d..d+LANES exist (caller, loop
                // bounds); the panel is `lanes` wide and `dim` high (caller).
                unsafe {
                    let (q, tile) = (from.base.cast::<f32>().wrapping_add(d), panel.add(d * lanes + first));
                    corner::transpose_from(s, q, from.stride, here, tile, lanes * 4, scale);
                }
                d += S::LANES;
            }
            for d in d..dim {
                for lane in 0..S::LANES {
                    // SAFETY: as above; only rows below `n` are read.
                    unsafe {
                        let x = if lane < here {
                            from.skip(lane).base.cast::<f32>().wrapping_add(d).read_unaligned()
                        } else {
                            0.0
                        };
                        panel.add(d * lanes + first + lane).write(x * factor);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn stage_k<S: Isa>(s: S, rows: Rows, n: usize, dim: usize, copy: bool, scratch: *mut u8) -> Rows {
        // SAFETY: this function's contract.
        if copy { unsafe { copied(s, rows, n, dim, scratch) } } else { rows }
    }

    #[inline(always)]
    unsafe fn stage_v<S: Isa>(s: S, rows: Rows, n: usize, dim: usize, copy: bool, scratch: *mut u8) -> Rows {
        // SAFETY: this function's contract.
        if copy { unsafe { copied(s, rows, n, dim, scratch) } } else { rows }
    }

    #[inline(always)]
    unsafe fn dot<S: Isa, const R: usize, const Z: usize>(
        s: S,
        panel: *const f32,
        lanes: usize,
        k: Rows,
        dim: usize,
        _factor: f32,
    ) -> Tile<S, R, Z> {
        let mut sum = [[s.splat(0.0); Z]; R];
        let mut q = panel;
        let mut key = k.base;
        for _ in 0..dim {
            let mut row = key;
            // SAFETY: the panel has Z vectors in each of `dim` steps, and each of the R rows `dim`
            // elements (caller).
            unsafe {
                let mut query = [s.splat(0.0); Z];
                for (z, query) in query.iter_mut().enumerate() {
                    *query = s.load(q.add(z * S::LANES));
                }
                for sum in &mut sum {
                    let x = s.splat(row.cast::<f32>().read_unaligned());
                    for (sum, query) in sum.iter_mut().zip(query) {
                        *sum = s.fma(query, x, *sum);
                    }
                    row = row.wrapping_add(k.stride);
                }
                q = q.wrapping_add(lanes);
            }
            key = key.wrapping_add(4);
        }
        sum
    }

    #[inline(always)]
    unsafe fn pack_row<S: Isa>(s: S, row: *const u8, dim: usize, factor: f32, to: *mut f32) {
        let from = row.cast::<f32>();
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

    #[inline(always)]
    unsafe fn dot_row<S: Isa, const R: usize, const K: usize>(
        s: S,
        queries: *const f32,
        step: usize,
        k: Rows,
        dim: usize,
    ) -> Tile<S, R, K> {
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

    #[inline(always)]
    fn finish<S: Isa>(_s: S, dots: S::F32, _factor: f32) -> S::F32 {
        dots
    }
}

/// Bytes of a copied row: an odd number of cache lines, so that the rows of a register tile never
/// compete for the same sets of the first-level cache.
#[inline(always)]
fn copied_row(dim: usize) -> usize {
    // Saturates where no machine has the memory: the plan then finds no room.
    (dim.div_ceil(16) | 1).saturating_mul(64)
}

/// Copies `n` rows of `dim` elements.
///
/// # Safety
/// `rows` has `n` rows of `dim` elements; `scratch` has room for `n` copied rows.
#[inline(always)]
unsafe fn copied<S: Isa>(s: S, rows: Rows, n: usize, dim: usize, scratch: *mut u8) -> Rows {
    let stride = copied_row(dim);
    for row in 0..n {
        let from = rows.skip(row).base.cast::<f32>();
        // SAFETY: elements below `dim` of rows below `n`.
        unsafe {
            let to = scratch.add(row * stride).cast::<f32>();
            let mut d = 0;
            while d + S::LANES <= dim {
                s.store(to.add(d), s.load(from.wrapping_add(d)));
                d += S::LANES;
            }
            for d in d..dim {
                to.add(d).write(from.wrapping_add(d).read_unaligned());
            }
        }
    }
    Rows { base: scratch, stride }
}
