//! bf16: K is multiplied as it lies in memory, in pairs of neighbouring elements; of V two keys at a time are zipped.
//!
//! Queries that are bf16 are taken as they are, others are scaled and rounded once; probabilities are rounded, but not
//! their sum.

use super::{Products, few};
use crate::dtype::{Dtype, Stored};
use crate::family::{Family, Source, bf16::Bf16, convert};
use crate::simd::Isa;

impl Products for Bf16 {
    const NAME: &'static str = <Bf16 as Family>::NAME;
    const DTYPE: Option<Dtype> = Some(Dtype::Bf16);
    const KEYS: usize = 2;
    const MOST: usize = usize::MAX;
    const BLOCKWISE: bool = false;
    const ONE: f32 = 1.0;
    type Words<S: Isa> = S::I32;
    type Sum<S: Isa> = S::F32;

    #[inline(always)]
    unsafe fn pack<S: Isa>(s: S, source: Source, dim: usize, factor: f32, to: *mut f32) -> f32 {
        // What is exact stays exact.
        let [factor, later] = if source.dtype() == Dtype::Bf16 { [1.0, factor] } else { [factor, 1.0] };
        let mut from = source.rows().base.cast::<f32>();
        if source.dtype() != Dtype::F32 {
            // SAFETY: room for as many elements, and a row needs no more than them here.
            unsafe { convert::convert(s, source, 1, dim, to.cast()) };
            from = to;
        }
        let factor = s.splat(factor);
        let words = to.cast::<u16>();
        for d in (0..dim.next_multiple_of(2 * S::LANES)).step_by(S::LANES) {
            // SAFETY: elements below `dim`, and whole vectors of words. In place, halves are written where elements
            // have been read.
            unsafe {
                let from = from.wrapping_add(d);
                let x = if d + S::LANES <= dim {
                    s.load(from)
                } else if d < dim {
                    s.load_first(from, dim - d)
                } else {
                    s.splat(0.0)
                };
                s.store_bf16(words.add(d), s.mul(x, factor));
            }
        }
        later
    }

    #[inline(always)]
    unsafe fn query<S: Isa>(s: S, line: *const f32, d: usize) -> S::I32 {
        // SAFETY: this function's contract.
        unsafe { s.load_i32(line.cast::<u16>().add(d).cast()) }
    }

    #[inline(always)]
    unsafe fn row<S: Isa, T: Stored>(s: S, row: *const u8, d: usize) -> S::I32 {
        // SAFETY: this function's contract.
        unsafe { s.load_i32(row.cast::<u16>().wrapping_add(d).cast()) }
    }

    #[inline(always)]
    unsafe fn row_first<S: Isa, T: Stored>(s: S, row: *const u8, d: usize, n: usize) -> S::I32 {
        // SAFETY: this function's contract; an array is as long as any vector.
        unsafe {
            if n == S::LANES {
                return s.load_lower_half(row.cast::<u16>().wrapping_add(d).cast());
            }
            s.load_i32(few(row, d, n, 2).as_ptr().cast())
        }
    }

    #[inline(always)]
    fn nothing<S: Isa>(s: S) -> S::I32 {
        s.splat_i32(0)
    }

    #[inline(always)]
    fn zero<S: Isa>(s: S) -> S::F32 {
        s.splat(0.0)
    }

    #[inline(always)]
    fn add<S: Isa>(s: S, a: S::I32, b: S::I32, sum: S::F32) -> S::F32 {
        s.dot_bf16(sum, a, b)
    }

    #[inline(always)]
    fn number<S: Isa>(_s: S, sum: S::F32) -> S::F32 {
        sum
    }

    #[inline(always)]
    fn probability<S: Isa>(s: S, x: S::F32) -> S::F32 {
        s.exp2(x)
    }

    #[inline(always)]
    unsafe fn write<S: Isa>(s: S, line: *mut f32, key: usize, p: S::F32) {
        // SAFETY: this function's contract.
        unsafe { s.store_bf16(line.cast::<u16>().add(key), p) };
    }

    #[inline(always)]
    unsafe fn weight<S: Isa>(s: S, line: *const f32, key: usize) -> S::I32 {
        // SAFETY: this function's contract.
        s.splat_i32(unsafe { line.cast::<u16>().add(key).cast::<i32>().read_unaligned() })
    }

    #[inline(always)]
    fn side_by_side<S: Isa>(s: S, [first, second]: [S::I32; 2]) -> [S::I32; 2] {
        s.zip_i16(first, second)
    }

    #[inline(always)]
    unsafe fn resume<S: Isa>(s: S, from: *const f32) -> [S::F32; 2] {
        // SAFETY: this function's contract.
        unsafe { s.zipped([s.load(from), s.load(from.add(S::LANES))]) }
    }

    #[inline(always)]
    unsafe fn keep<S: Isa>(s: S, to: *mut f32, sums: [S::F32; 2]) {
        let [first, second] = s.unzipped(sums);
        // SAFETY: this function's contract.
        unsafe {
            s.store(to, first);
            s.store(to.add(S::LANES), second);
        }
    }

    #[inline(always)]
    unsafe fn outputs<S: Isa>(s: S, from: *const f32) -> [S::F32; 2] {
        // SAFETY: this function's contract.
        unsafe { [s.load(from), s.load(from.add(S::LANES))] }
    }
}
