//! f32, with multiply-adds that are fused where the machine has such.
//!
//! In prefill, Q is transposed and scaled once. K and V are read in place if they are f32, and
//! otherwise converted, a block of keys at a time. In decode, they are converted as they are
//! loaded.

use crate::attend::convert;
use crate::attend::fold::Folding;
use crate::attend::rows::{Source, row_scratch, rows_as_f32};
use crate::decode::gemv::Gemv;
use crate::dtype::{Dtype, Stored};
use crate::prefill::gemm::Gemm;
use crate::problem::{Accuracy, Storage};
use crate::simd::lane::{Float, MAX_PACK};
use crate::simd::{Isa, transpose};

/// The compute type of f32.
pub(crate) enum F32 {}

impl Gemm for F32 {
    const NAME: &'static str = "f32";
    const ACCURACY: Accuracy = Accuracy::Precise;
    const PACK: usize = 1;
    const PANEL_HEADER: usize = 0;
    const MAX_KEYS: usize = usize::MAX;
    const MAX_DIM: usize = usize::MAX;
    const INT_ACC: bool = false;
    const P_SCALE: f32 = 1.0;
    type Operand = Float;
    type Sum = Float;

    #[inline(always)]
    fn takes(_storage: &Storage) -> bool {
        true
    }

    #[inline(always)]
    fn query_scratch(dtype: Dtype, dim: usize) -> usize {
        row_scratch(dtype, dim)
    }

    #[inline(always)]
    fn reads_k(dtype: Dtype, _dim: usize) -> bool {
        dtype == Dtype::F32
    }

    #[inline(always)]
    fn reads_v(dtype: Dtype) -> bool {
        dtype == Dtype::F32
    }

    #[inline(always)]
    unsafe fn pack_query<S: Isa>(
        s: S,
        source: Source,
        n: usize,
        dim: usize,
        lanes: usize,
        factor: f32,
        _folding: Option<&Folding>,
        panel: *mut f32,
        scratch: *mut u8,
    ) -> bool {
        let scale = s.splat(factor);
        for first in (0..lanes).step_by(S::LANES) {
            let here = n.saturating_sub(first).min(S::LANES);
            // SAFETY: `here` rows from `first` on, and room for a vector of them (caller).
            let from = unsafe { rows_as_f32(s, source.skip(first), here, dim, scratch) };
            let mut d = 0;
            while d + S::LANES <= dim {
                // SAFETY: `here` rows from `first` on (caller) have columns d..d + LANES (loop
                // bound); the panel is `lanes` wide and `dim` high (caller).
                unsafe {
                    let (q, tile) = (from.base.cast::<f32>().wrapping_add(d), panel.add(d * lanes + first));
                    transpose::transpose_partial(s, q, from.stride, here, tile, lanes * 4, Some(scale));
                }
                d += S::LANES;
            }
            for d in d..dim {
                for lane in 0..S::LANES {
                    // SAFETY: column `d` of a row below `n`, and a place of the panel (caller).
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
        false
    }

    #[inline(always)]
    unsafe fn stage_k<S: Isa>(s: S, source: Source, n: usize, dim: usize, _first: usize, to: *mut u8) {
        // SAFETY: `n` rows of `dim` elements, and room for them staged (caller).
        unsafe { convert::convert(s, source, n, dim, to) }
    }

    #[inline(always)]
    unsafe fn stage_v<S: Isa>(s: S, source: Source, n: usize, dim: usize, first: usize, to: *mut u8) -> bool {
        // SAFETY: `n` rows of `dim` elements, and room for their groups (caller).
        unsafe { convert::convert(s, source, n, dim, to.add(first * Self::staged_v_row(dim))) };
        false
    }

    #[inline(always)]
    fn add_score<S: Isa>(s: S, q: S::F32, k: S::F32, sum: S::F32) -> S::F32 {
        s.fma(q, k, sum)
    }

    #[inline(always)]
    fn probabilities<S: Isa>(
        s: S,
        [x, ..]: [S::F32; MAX_PACK],
        running_max: S::F32,
        total: &mut S::F32,
    ) -> S::F32 {
        let p = s.exp2(s.sub(x, running_max));
        *total = s.add(*total, p);
        p
    }

    #[inline(always)]
    fn add_value<S: Isa>(s: S, p: S::F32, v: S::F32, sum: S::F32) -> S::F32 {
        s.fma(p, v, sum)
    }

    #[inline(always)]
    fn probability(word: u32, _key: usize) -> f32 {
        f32::from_bits(word)
    }
}

impl Gemv for F32 {
    const NAME: &'static str = <F32 as Gemm>::NAME;
    const DTYPE: Option<Dtype> = None;
    type Own = crate::dtype::f32::F32;
    const PACK: usize = 1;
    const MAX_KEYS: usize = usize::MAX;
    const INT_ACC: bool = false;
    const P_SCALE: f32 = 1.0;
    type Operand = Float;
    type Weight = Float;
    type Sum = Float;

    #[inline(always)]
    unsafe fn pack<S: Isa>(s: S, source: Source, dim: usize, factor: f32, to: *mut f32) -> f32 {
        let mut from = source.rows().base.cast::<f32>();
        if source.dtype() != Dtype::F32 {
            // SAFETY: one row of `dim` elements; `to` has room for as many f32 (caller).
            unsafe { convert::convert(s, source, 1, dim, to.cast()) };
            from = to;
        }
        let factor = s.splat(factor);
        for d in (0..dim).step_by(S::LANES) {
            // SAFETY: elements below `dim` of the row, and room for whole vectors (caller).
            unsafe {
                let x = crate::dtype::f32::F32::load_rest(s, from.cast(), d, dim);
                s.store(to.add(d), s.mul(x, factor));
            }
        }
        1.0
    }

    #[inline(always)]
    unsafe fn load_kv<S: Isa, T: Stored>(s: S, row: *const u8, d: usize) -> S::F32 {
        // SAFETY: the row has a vector of elements from `d` on (caller).
        unsafe { T::load(s, row, d) }
    }

    #[inline(always)]
    unsafe fn load_kv_partial<S: Isa, T: Stored>(s: S, row: *const u8, d: usize, n: usize) -> S::F32 {
        // SAFETY: the row has `d + n` elements (caller); the array is as long as any vector.
        unsafe { T::load_partial(s, row, d, n) }
    }

    #[inline(always)]
    fn add_score<S: Isa>(s: S, q: S::F32, k: S::F32, sum: S::F32) -> S::F32 {
        s.fma(q, k, sum)
    }

    #[inline(always)]
    fn add_value<S: Isa>(s: S, p: S::F32, v: S::F32, sum: S::F32) -> S::F32 {
        s.fma(p, v, sum)
    }

    #[inline(always)]
    fn probability<S: Isa>(s: S, x: S::F32) -> S::F32 {
        s.exp2(x)
    }

    #[inline(always)]
    unsafe fn store_probabilities<S: Isa>(s: S, line: *mut f32, key: usize, p: S::F32) {
        // SAFETY: the line has a vector from `key` on (caller).
        unsafe { s.store(line.add(key), p) };
    }
}
