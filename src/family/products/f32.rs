//! f32: a word is an element, converted as it is read.

use super::{MOST_KEYS, Products};
use crate::dtype::{Dtype, Stored};
use crate::family::{Family, Source, convert, f32::F32};
use crate::simd::{Isa, MAX_LANES};

impl Products for F32 {
    const NAME: &'static str = <F32 as Family>::NAME;
    const DTYPE: Option<Dtype> = None;
    const KEYS: usize = 1;
    const MOST: usize = usize::MAX;
    const BLOCKWISE: bool = false;
    const ONE: f32 = 1.0;
    type Words<S: Isa> = S::F32;
    type Factor<S: Isa> = S::F32;
    type Sum<S: Isa> = S::F32;
    type Lanes<S: Isa> = S::F32;

    #[inline(always)]
    unsafe fn pack<S: Isa>(s: S, source: Source, dim: usize, factor: f32, to: *mut f32) -> f32 {
        let mut from = source.rows().base.cast::<f32>();
        if source.dtype() != Dtype::F32 {
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
        1.0
    }

    #[inline(always)]
    unsafe fn query<S: Isa>(s: S, line: *const f32, d: usize) -> S::F32 {
        // SAFETY: this function's contract.
        unsafe { s.load(line.add(d)) }
    }

    #[inline(always)]
    unsafe fn row<S: Isa, T: Stored>(s: S, row: *const u8, d: usize) -> S::F32 {
        // SAFETY: this function's contract.
        unsafe { T::load(s, row, d) }
    }

    #[inline(always)]
    unsafe fn row_first<S: Isa, T: Stored>(s: S, row: *const u8, d: usize, n: usize) -> S::F32 {
        // SAFETY: this function's contract.
        unsafe { T::load_first(s, row, d, n) }
    }

    #[inline(always)]
    fn nothing<S: Isa>(s: S) -> S::F32 {
        s.splat(0.0)
    }

    #[inline(always)]
    fn no_factor<S: Isa>(s: S) -> S::F32 {
        s.splat(0.0)
    }

    #[inline(always)]
    fn zero<S: Isa>(s: S) -> S::F32 {
        s.splat(0.0)
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
        unsafe { s.store(line.add(key), p) };
    }

    #[inline(always)]
    unsafe fn weight<S: Isa>(s: S, line: *const f32, key: usize) -> S::F32 {
        // SAFETY: this function's contract.
        s.splat(unsafe { line.add(key).read() })
    }

    #[inline(always)]
    fn side_by_side<S: Isa>(_s: S, rows: [S::F32; MOST_KEYS]) -> [S::F32; MOST_KEYS] {
        rows
    }

    #[inline(always)]
    unsafe fn resume<S: Isa>(s: S, from: *const f32) -> [S::F32; MOST_KEYS] {
        let none = s.splat(0.0);
        // SAFETY: this function's contract.
        [unsafe { s.load(from) }, none, none, none]
    }

    #[inline(always)]
    unsafe fn keep<S: Isa>(s: S, to: *mut f32, [sum, ..]: [S::F32; MOST_KEYS]) {
        // SAFETY: this function's contract.
        unsafe { s.store(to, sum) };
    }

    #[inline(always)]
    unsafe fn outputs<S: Isa>(s: S, from: *const f32) -> [S::F32; MOST_KEYS] {
        // SAFETY: this function's contract.
        unsafe { <Self as Products>::resume(s, from) }
    }
}
