//! 16-bit integers, from 8-bit ones as they are read: K in pairs of neighbouring elements; of V two keys at a time are
//! zipped. See [`crate::family::i16`] for what is rounded.

use super::{MOST_KEYS, Products, few};
use crate::dtype::{Dtype, Stored};
use crate::family::{Family, Rows, Source, convert, i16::I16, integers, integers::Integers};
use crate::simd::{Isa, MAX_LANES};

/// 1.5 · 2^23: an f32 next to it is an integer, so that adding it rounds.
const INTEGERS: f32 = 12_582_912.0;

impl Products for I16 {
    const NAME: &'static str = <I16 as Family>::NAME;
    const DTYPE: Option<Dtype> = Some(Dtype::I8);
    const KEYS: usize = 2;
    /// [`Products::ONE`] · 128 times fewer keys stay below 2^31.
    const MOST: usize = 512;
    const BLOCKWISE: bool = true;
    /// Twice as fine as where many rows are computed, as blocks are longer: probabilities are relative to the largest score of
    /// one.
    const ONE: f32 = 32_767.0;
    type Words<S: Isa> = S::I32;
    type Factor<S: Isa> = S::I32;
    type Sum<S: Isa> = S::I32;
    type Lanes<S: Isa> = S::I32;

    #[inline(always)]
    unsafe fn pack<S: Isa>(s: S, source: Source, dim: usize, factor: f32, to: *mut f32) -> f32 {
        let mut rows = source.rows();
        // SAFETY: room for as many elements, and a row needs no more than them here; whole vectors of words.
        unsafe {
            let scale = if integers::is_direct(&source) {
                integers::own::<S, I16>(s, rows, dim, to.cast());
                source.scale()
            } else {
                if source.dtype() != Dtype::F32 {
                    convert::convert(s, source, 1, dim, to.cast());
                    rows = Rows { base: to.cast(), ..rows };
                }
                integers::quantise::<S, I16>(s, rows, dim, to.cast())
            };
            for d in (dim.next_multiple_of(S::LANES)..dim.next_multiple_of(2 * S::LANES)).step_by(S::LANES) {
                I16::store_elements(s, to.cast(), d, s.splat(0.0));
            }
            scale * factor
        }
    }

    #[inline(always)]
    unsafe fn query<S: Isa>(s: S, line: *const f32, d: usize) -> S::I32 {
        // SAFETY: this function's contract.
        unsafe { s.load_i32(line.cast::<u16>().add(d).cast()) }
    }

    #[inline(always)]
    unsafe fn row<S: Isa, T: Stored>(s: S, row: *const u8, d: usize) -> S::I32 {
        // SAFETY: this function's contract.
        unsafe { s.load_i8_i16(row.cast::<i8>().wrapping_add(d)) }
    }

    #[inline(always)]
    unsafe fn row_first<S: Isa, T: Stored>(s: S, row: *const u8, d: usize, n: usize) -> S::I32 {
        // SAFETY: this function's contract; an array is longer than any vector of bytes.
        unsafe { s.load_i8_i16(few(row, d, n, 1).as_ptr().cast()) }
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
    fn zero<S: Isa>(s: S) -> S::I32 {
        s.splat_i32(0)
    }

    #[inline(always)]
    fn add_score<S: Isa>(s: S, q: S::I32, k: S::I32, sum: S::I32) -> S::I32 {
        s.dot_i16(sum, q, k)
    }

    #[inline(always)]
    fn add_value<S: Isa>(s: S, p: S::I32, v: S::I32, sum: S::I32) -> S::I32 {
        s.dot_i16(sum, p, v)
    }

    #[inline(always)]
    fn lanes<S: Isa>(_s: S, sum: S::I32) -> S::I32 {
        sum
    }

    #[inline(always)]
    fn sums<S: Isa>(s: S, lanes: &[S::I32; MAX_LANES]) -> S::F32 {
        s.to_f32(s.sums_i32(lanes))
    }

    #[inline(always)]
    fn total<S: Isa>(s: S, lanes: S::I32) -> f32 {
        s.total_i32(lanes) as f32
    }

    #[inline(always)]
    fn probability<S: Isa>(s: S, x: S::F32) -> S::F32 {
        // A factor in the exponent costs nothing; NaN stays, which the sum of the probabilities needs.
        let p = s.exp2(s.add(x, s.splat(<Self as Products>::ONE.log2())));
        s.sub(s.add(p, s.splat(INTEGERS)), s.splat(INTEGERS))
    }

    #[inline(always)]
    unsafe fn write<S: Isa>(s: S, line: *mut f32, key: usize, p: S::F32) {
        // SAFETY: this function's contract.
        unsafe { s.store_i16(line.cast::<i16>().add(key), p) };
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
    unsafe fn resume<S: Isa>(s: S, from: *const f32) -> [S::I32; MOST_KEYS] {
        // SAFETY: this function's contract.
        let [low, high] = unsafe { [s.load_i32(from.cast()), s.load_i32(from.add(S::LANES).cast())] };
        [low, high, low, high]
    }

    #[inline(always)]
    unsafe fn keep<S: Isa>(s: S, to: *mut f32, [low, high, ..]: [S::I32; MOST_KEYS]) {
        // SAFETY: this function's contract.
        unsafe {
            s.store_i32(to.cast(), low);
            s.store_i32(to.add(S::LANES).cast(), high);
        }
    }

    #[inline(always)]
    unsafe fn outputs<S: Isa>(s: S, from: *const f32) -> [S::F32; MOST_KEYS] {
        // SAFETY: this function's contract.
        let [low, high, ..] = unsafe { <Self as Products>::resume(s, from) };
        let [first, second] = s.unzipped([s.to_f32(low), s.to_f32(high)]);
        [first, second, first, second]
    }
}
