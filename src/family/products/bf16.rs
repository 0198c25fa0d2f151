//! bf16: K is multiplied as it lies in memory, in pairs of neighbouring elements; of V two keys at a time are zipped.
//!
//! Queries that are bf16 are taken as they are, others are scaled and rounded once; probabilities are rounded, but not
//! their sum.

use super::{MOST_KEYS, Products, few};
use crate::dtype::{Dtype, Stored};
use crate::family::{Family, Source, bf16::Bf16, convert};
use crate::simd::{Isa, MAX_LANES};

impl Products for Bf16 {
    const NAME: &'static str = <Bf16 as Family>::NAME;
    const DTYPE: Option<Dtype> = Some(Dtype::Bf16);
    const KEYS: usize = 2;
    const MOST: usize = usize::MAX;
    const BLOCKWISE: bool = false;
    const ONE: f32 = 1.0;
    type Words<S: Isa> = S::I32;
    type Factor<S: Isa> = S::I32;
    type Sum<S: Isa> = S::F32;
    type Lanes<S: Isa> = S::F32;

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
    fn no_factor<S: Isa>(s: S) -> S::I32 {
        s.splat_i32(0)
    }

    #[inline(always)]
    fn zero<S: Isa>(s: S) -> S::F32 {
        s.splat(0.0)
    }

    #[inline(always)]
    fn add_score<S: Isa>(s: S, q: S::I32, k: S::I32, sum: S::F32) -> S::F32 {
        s.dot_bf16(sum, q, k)
    }

    #[inline(always)]
    fn add_value<S: Isa>(s: S, p: S::I32, v: S::I32, sum: S::F32) -> S::F32 {
        s.dot_bf16(sum, p, v)
    }

    #[inline(always)]
    fn lanes<S: Isa>(_s: S, sum: S::F32) -> S::F32 {
        sum
    }

    #[inline(always)]
    fn sums<S: Isa>(s: S, lanes: &[S::F32; MAX_LANES]) -> S::F32 {
        s.sums(lanes)
    }

    #[inline(always)]
    fn total<S: Isa>(s: S, lanes: S::F32) -> f32 {
        s.total(lanes)
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
    fn side_by_side<S: Isa>(s: S, [first, second, ..]: [S::I32; MOST_KEYS]) -> [S::I32; MOST_KEYS] {
        let [low, high] = s.zip_i16(first, second);
        [low, high, low, high]
    }

    #[inline(always)]
    unsafe fn resume<S: Isa>(s: S, from: *const f32) -> [S::F32; MOST_KEYS] {
        // SAFETY: this function's contract.
        let [low, high] = unsafe { s.zipped([s.load(from), s.load(from.add(S::LANES))]) };
        [low, high, low, high]
    }

    #[inline(always)]
    unsafe fn keep<S: Isa>(s: S, to: *mut f32, [low, high, ..]: [S::F32; MOST_KEYS]) {
        let [first, second] = s.unzipped([low, high]);
        // SAFETY: this function's contract.
        unsafe {
            s.store(to, first);
            s.store(to.add(S::LANES), second);
        }
    }

    #[inline(always)]
    unsafe fn outputs<S: Isa>(s: S, from: *const f32) -> [S::F32; MOST_KEYS] {
        // SAFETY: this function's contract.
        let [first, second] = unsafe { [s.load(from), s.load(from.add(S::LANES))] };
        [first, second, first, second]
    }
}
