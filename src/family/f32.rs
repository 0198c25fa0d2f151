//! f32 FMA: Q is transposed and scaled once; K and V are read where they lie if they are f32, and become
//! f32 a block at a time if not.

use super::{Family, Rows, Source, Tile, convert};
use crate::dtype::Dtype;
use crate::simd::{Isa, corner};

/// The f32 compute family.
pub(crate) enum F32 {}

impl Family for F32 {
    const NAME: &'static str = "f32";
    type Query = f32;

    #[inline(always)]
    fn takes(_dtypes: [Dtype; 3]) -> bool {
        true
    }

    #[inline(always)]
    fn steps(dim: usize) -> usize {
        dim
    }

    #[inline(always)]
    fn reads_q(dtype: Dtype) -> bool {
        dtype == Dtype::F32
    }

    #[inline(always)]
    fn reads_kv(dtype: Dtype) -> [bool; 2] {
        [dtype == Dtype::F32; 2]
    }

    #[inline(always)]
    fn staged_k_row(dim: usize) -> usize {
        convert::row_bytes(dim)
    }

    #[inline(always)]
    fn staged_v_row(dim: usize) -> usize {
        convert::row_bytes(dim)
    }

    #[inline(always)]
    unsafe fn pack_query<S: Isa>(
        s: S,
        source: Source,
        n: usize,
        dim: usize,
        lanes: usize,
        factor: f32,
        panel: *mut f32,
        room: *mut u8,
    ) {
        let scale = s.splat(factor);
        for first in (0..lanes).step_by(S::LANES) {
            let here = n.saturating_sub(first).min(S::LANES);
            let mut from = source.rows().skip(first);
            if !Self::reads_q(source.dtype()) {
                if here > 0 {
                    // SAFETY: `here` rows from `first` on, and room for a vector of them (caller).
                    unsafe { convert::convert(s, source.skip(first), here, dim, room) };
                }
                from = Rows { base: room, stride: convert::row_bytes(dim) };
            }
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
    unsafe fn stage_k<S: Isa>(s: S, source: Source, n: usize, dim: usize, to: *mut u8) {
        // SAFETY: this function's contract.
        unsafe { convert::convert(s, source, n, dim, to) }
    }

    #[inline(always)]
    unsafe fn stage_v<S: Isa>(s: S, source: Source, n: usize, dim: usize, to: *mut u8) {
        // SAFETY: this function's contract.
        unsafe { convert::convert(s, source, n, dim, to) }
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
    unsafe fn pack_row<S: Isa>(s: S, source: Source, dim: usize, factor: f32, to: *mut f32) {
        let mut from = source.rows().base.cast::<f32>();
        if !Self::reads_q(source.dtype()) {
            // SAFETY: room for as many elements, and a row needs no more than them here.
            unsafe { convert::convert(s, source, 1, dim, to.cast()) };
            from = to;
        }
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
