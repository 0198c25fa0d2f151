//! 16-bit integers times 8-bit ones with dot products of four bytes, the 16-bit ones as two digits of 8 bits: the sums,
//! and so the bits, of [`super::i16`], without widening K and V. Of V four keys at a time are zipped.
//!
//! For one query row: several share what widening costs, and the products are as many either way, but need half of the
//! registers there.
//!
//! - Scores: with q = 256 u + l, digits signed, and K made unsigned by adding 128,
//!   Σ q · k = 256 · Σ u · (k + 128) + Σ l · (k + 128) - 128 · Σ q; the last stands behind the packed query.
//! - Probabilities: 256 u + l, digits unsigned.

use super::{MOST_KEYS, Products, few};
use crate::dtype::{Dtype, Stored};
use crate::family::{Source, i16::I16};
use crate::simd::{Isa, MAX_LANES};

/// See the module.
pub(crate) enum Digits {}

/// Elements of a word.
const WORD: usize = 4;

/// In each byte, what is added to K: the sign bit, which is added by turning it round.
const SIGNS: i32 = i32::from_ne_bytes([0x80; WORD]);

/// Where the digits of elements from `d` on are, in bytes: the upper ones of a vector of words, then its lower ones.
#[inline(always)]
fn digits(line: *const f32, d: usize) -> *const i32 {
    line.cast::<u8>().wrapping_add(2 * d).cast()
}

/// Where the digits of the probabilities of keys from `key` on are: the upper ones of a vector, then its lower ones.
#[inline(always)]
fn digits_of_keys<S: Isa>(line: *const f32, key: usize) -> *const u8 {
    line.cast::<u8>().wrapping_add(2 * (key - key % S::LANES) + key % S::LANES)
}

impl Products for Digits {
    const NAME: &'static str = <I16 as Products>::NAME;
    const DTYPE: Option<Dtype> = Some(Dtype::I8);
    const KEYS: usize = WORD;
    const ROWS: usize = 1;
    const MOST: usize = <I16 as Products>::MOST;
    const BLOCKWISE: bool = true;
    const ONE: f32 = <I16 as Products>::ONE;
    type Words<S: Isa> = S::I32;
    /// Upper and lower digits; likewise of sums.
    type Factor<S: Isa> = [S::I32; 2];
    type Sum<S: Isa> = [S::I32; 2];
    type Lanes<S: Isa> = S::I32;

    #[inline(always)]
    unsafe fn pack<S: Isa>(s: S, source: Source, dim: usize, factor: f32, to: *mut f32) -> f32 {
        // SAFETY: this function's contract. Two bytes of each element fill half of the line: room for what sums begin with,
        // too. Vectors are split where they lie.
        unsafe {
            let factor = <I16 as Products>::pack(s, source, dim, factor, to);
            let numbers = to.cast::<i16>();
            let all = dim.next_multiple_of(WORD * S::LANES);
            // It fills whole vectors of pairs.
            let filled = dim.next_multiple_of(2 * S::LANES);
            if filled < all {
                s.store_i32(numbers.add(filled).cast(), s.splat_i32(0));
            }
            let (mut sum, signs) = (Self::zero(s), s.splat_i32(SIGNS));
            for d in (0..all).step_by(WORD * S::LANES) {
                let both = s.load_digits(numbers.add(d));
                let at = digits(to, d).cast_mut();
                s.store_i32(at, both[0]);
                s.store_i32(at.add(S::LANES), both[1]);
                sum = Self::add_score(s, both, signs, sum);
            }
            s.store_i32(digits(to, all).cast_mut(), s.sub_i32(s.splat_i32(0), Self::lanes(s, sum)));
            factor
        }
    }

    #[inline(always)]
    unsafe fn query<S: Isa>(s: S, line: *const f32, d: usize) -> [S::I32; 2] {
        let at = digits(line, d);
        // SAFETY: this function's contract.
        unsafe { [s.load_i32(at), s.load_i32(at.add(S::LANES))] }
    }

    #[inline(always)]
    unsafe fn begin<S: Isa>(s: S, line: *const f32, dim: usize) -> [S::I32; 2] {
        let behind = digits(line, dim.next_multiple_of(WORD * S::LANES));
        // SAFETY: this function's contract: written by `pack`.
        [s.splat_i32(0), unsafe { s.load_i32(behind) }]
    }

    #[inline(always)]
    unsafe fn row<S: Isa, T: Stored>(s: S, row: *const u8, d: usize) -> S::I32 {
        // SAFETY: this function's contract.
        unsafe { s.load_i32(row.wrapping_add(d).cast()) }
    }

    #[inline(always)]
    unsafe fn row_first<S: Isa, T: Stored>(s: S, row: *const u8, d: usize, n: usize) -> S::I32 {
        // SAFETY: this function's contract; an array is as long as any vector.
        unsafe { s.load_i32(few(row, d, n, 1).as_ptr().cast()) }
    }

    #[inline(always)]
    fn of_key<S: Isa>(s: S, words: S::I32) -> S::I32 {
        s.xor(words, s.splat_i32(SIGNS))
    }

    #[inline(always)]
    fn nothing<S: Isa>(s: S) -> S::I32 {
        s.splat_i32(0)
    }

    #[inline(always)]
    fn no_factor<S: Isa>(s: S) -> [S::I32; 2] {
        Self::zero(s)
    }

    #[inline(always)]
    fn zero<S: Isa>(s: S) -> [S::I32; 2] {
        [s.splat_i32(0), s.splat_i32(0)]
    }

    #[inline(always)]
    fn add_score<S: Isa>(s: S, q: [S::I32; 2], k: S::I32, sum: [S::I32; 2]) -> [S::I32; 2] {
        [s.dot_u8_i8(sum[0], k, q[0]), s.dot_u8_i8(sum[1], k, q[1])]
    }

    #[inline(always)]
    fn add_value<S: Isa>(s: S, p: [S::I32; 2], v: S::I32, sum: [S::I32; 2]) -> [S::I32; 2] {
        [s.dot_u8_i8(sum[0], p[0], v), s.dot_u8_i8(sum[1], p[1], v)]
    }

    #[inline(always)]
    fn lanes<S: Isa>(s: S, [upper, lower]: [S::I32; 2]) -> S::I32 {
        s.join_digits(upper, lower)
    }

    #[inline(always)]
    fn sums<S: Isa>(s: S, lanes: &[S::I32; MAX_LANES]) -> S::F32 {
        <I16 as Products>::sums(s, lanes)
    }

    #[inline(always)]
    fn total<S: Isa>(s: S, lanes: S::I32) -> f32 {
        <I16 as Products>::total(s, lanes)
    }

    #[inline(always)]
    fn probability<S: Isa>(s: S, x: S::F32) -> S::F32 {
        <I16 as Products>::probability(s, x)
    }

    #[inline(always)]
    unsafe fn write<S: Isa>(s: S, line: *mut f32, key: usize, p: S::F32) {
        // SAFETY: this function's contract.
        unsafe { s.store_digits(digits_of_keys::<S>(line, key).cast_mut(), p) };
    }

    #[inline(always)]
    unsafe fn weight<S: Isa>(s: S, line: *const f32, key: usize) -> [S::I32; 2] {
        let at = digits_of_keys::<S>(line, key);
        // SAFETY: this function's contract.
        let [upper, lower] =
            unsafe { [at.cast::<i32>().read_unaligned(), at.add(S::LANES).cast::<i32>().read_unaligned()] };
        [s.splat_i32(upper), s.splat_i32(lower)]
    }

    #[inline(always)]
    fn side_by_side<S: Isa>(s: S, rows: [S::I32; MOST_KEYS]) -> [S::I32; MOST_KEYS] {
        s.zip_bytes(rows)
    }

    #[inline(always)]
    unsafe fn resume<S: Isa>(s: S, from: *const f32) -> [[S::I32; 2]; MOST_KEYS] {
        let mut sums = [Self::zero(s); MOST_KEYS];
        for (n, sum) in sums.iter_mut().enumerate() {
            // SAFETY: this function's contract.
            sum[1] = unsafe { s.load_i32(from.add(n * S::LANES).cast()) };
        }
        sums
    }

    #[inline(always)]
    unsafe fn keep<S: Isa>(s: S, to: *mut f32, sums: [[S::I32; 2]; MOST_KEYS]) {
        for (n, sum) in sums.into_iter().enumerate() {
            // SAFETY: this function's contract.
            unsafe { s.store_i32(to.add(n * S::LANES).cast(), Self::lanes(s, sum)) };
        }
    }

    #[inline(always)]
    unsafe fn outputs<S: Isa>(s: S, from: *const f32) -> [S::F32; MOST_KEYS] {
        let mut sums = [s.splat(0.0); MOST_KEYS];
        for (n, sum) in sums.iter_mut().enumerate() {
            // SAFETY: this function's contract.
            *sum = s.to_f32(unsafe { s.load_i32(from.add(n * S::LANES).cast()) });
        }
        s.unzipped_bytes(sums)
    }
}
