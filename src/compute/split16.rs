//! 16-bit integers times 8-bit ones with dot products of four bytes, the 16-bit ones as two digits
//! of 8 bits: the sums, and so the bits, of [`super::i16`], without widening K and V. Of V four
//! keys at a time are zipped.
//!
//! For one query row of 8-bit integers: several share what widening costs, and the products are as
//! many either way, but need half of the registers there. For Q8_0, whose blocks have scales of
//! their own, rows are taken one by one anyway (see [`crate::decode::beside`]): a vector has two
//! blocks.
//!
//! - Scores: with q = 256 u + l, digits signed, and K made unsigned by adding 128, Σ q · k = 256 ·
//!   Σ u · (k + 128) + Σ l · (k + 128) - 128 · Σ q; the last stands behind the packed query.
//! - Probabilities: 256 u + l, digits unsigned.

use super::i16::I16;
use crate::attend::rows::Source;
use crate::decode::gemv::{Gemv, padded};
use crate::dtype::{Dtype, Stored};
use crate::simd::lane::{Int, Registers};
use crate::simd::{Isa, MAX_LANES};

/// See the module; `BLOCK_SCALED` for Q8_0, whose scales are beside the elements.
pub(crate) enum Digits<const BLOCK_SCALED: bool> {}

/// 8-bit integers, whose scales are elsewhere.
pub(crate) type OfI8 = Digits<false>;

/// Blocks of them next to their scales.
pub(crate) type OfQ8_0 = Digits<true>;

/// Elements of a word.
const WORD: usize = 4;

/// In each byte, what is added to K: the sign bit, which is added by turning it round.
const SIGNS: i32 = i32::from_ne_bytes([0x80; WORD]);

/// Where the digits of elements from `d` on are, in bytes: the upper ones of a vector of words,
/// then its lower ones.
#[inline(always)]
fn digits(line: *const f32, d: usize) -> *const i32 {
    line.cast::<u8>().wrapping_add(2 * d).cast()
}

/// Where what the sums of a score begin with is, for a vector of elements from `d` on of `dim`.
#[inline(always)]
fn beginning<S: Isa, const BLOCK_SCALED: bool>(line: *const f32, dim: usize, d: usize) -> *const i32 {
    let behind = digits(line, dim.next_multiple_of(WORD * S::LANES));
    behind.wrapping_add(if BLOCK_SCALED { d / WORD } else { 0 })
}

/// Where the digits of the probabilities of keys from `key` on are: the upper ones of a vector,
/// then its lower ones.
#[inline(always)]
fn digits_of_keys<S: Isa>(line: *const f32, key: usize) -> *const u8 {
    line.cast::<u8>().wrapping_add(2 * (key - key % S::LANES) + key % S::LANES)
}

/// Where the integers of the block with element `d` are, and those of the next one.
#[inline(always)]
fn blocks<T: Stored>(row: *const u8, d: usize) -> [*const i32; 2] {
    // The scale stands before them.
    let integers = T::BLOCK_BYTES - T::BLOCK;
    let block = row.wrapping_add(d / T::BLOCK * T::BLOCK_BYTES + integers);
    [block.cast(), block.wrapping_add(T::BLOCK_BYTES).cast()]
}

/// Two vectors of digits: 256 times the first one, and the second one, are the number. So are sums
/// of their products.
pub(crate) enum Pair {}

impl Registers for Pair {
    type Of<S: Isa> = [S::I32; 2];
    type Lane = Int;

    #[inline(always)]
    fn zero<S: Isa>(s: S) -> [S::I32; 2] {
        [s.splat_i32(0); 2]
    }

    #[inline(always)]
    unsafe fn load<S: Isa>(s: S, p: *const f32) -> [S::I32; 2] {
        // SAFETY: the caller vouches for a vector at `p`.
        [s.splat_i32(0), unsafe { s.load_i32(p.cast()) }]
    }

    /// The upper digits at `p`, and the lower ones as many bytes behind them as there are lanes.
    #[inline(always)]
    unsafe fn broadcast<S: Isa>(s: S, p: *const u8) -> [S::I32; 2] {
        let [upper, lower] = [p, p.wrapping_add(S::LANES)];
        // SAFETY: the caller vouches for a word of each.
        unsafe { [Int::broadcast(s, upper), Int::broadcast(s, lower)] }
    }

    #[inline(always)]
    fn collapse<S: Isa>(s: S, [upper, lower]: [S::I32; 2]) -> S::I32 {
        s.join_digits(upper, lower)
    }
}

impl<const BLOCK_SCALED: bool> Gemv for Digits<BLOCK_SCALED> {
    const NAME: &'static str = <I16 as Gemv>::NAME;
    const DTYPE: Option<Dtype> = Some(if BLOCK_SCALED { Dtype::Q8_0 } else { Dtype::I8 });
    const BLOCK_SCALED: bool = BLOCK_SCALED;
    const PACK: usize = WORD;
    const MAX_ROWS: usize = 1;
    const MAX_KEYS: usize = <I16 as Gemv>::MAX_KEYS;
    const INT_ACC: bool = true;
    /// Where it is multiplied by scales and rounded again, a power of two: nothing is lost by it.
    /// Sums of the most keys still fit: -128 · 512 · 32768 = -2^31.
    const P_SCALE: f32 = if BLOCK_SCALED { 32_768.0 } else { <I16 as Gemv>::P_SCALE };
    type Operand = Int;
    /// Upper and lower digits; likewise of sums.
    type Weight = Pair;
    type Sum = Pair;

    #[inline(always)]
    unsafe fn pack<S: Isa>(s: S, source: Source, dim: usize, factor: f32, to: *mut f32) -> f32 {
        // SAFETY: this function's contract. Two bytes of each element fill half of the line: room
        // for what sums begin with, too. Vectors are split where they lie.
        unsafe {
            let factor = <I16 as Gemv>::pack(s, source, dim, factor, to);
            let numbers = to.cast::<i16>();
            let all = dim.next_multiple_of(WORD * S::LANES);
            // It fills whole vectors of pairs.
            let filled = dim.next_multiple_of(2 * S::LANES);
            if filled < all {
                s.store_i32(numbers.add(filled).cast(), s.splat_i32(0));
            }
            let (mut sum, signs) = (Pair::zero(s), s.splat_i32(SIGNS));
            for d in (0..all).step_by(WORD * S::LANES) {
                let both = s.load_digits(numbers.add(d));
                let at = digits(to, d).cast_mut();
                s.store_i32(at, both[0]);
                s.store_i32(at.add(S::LANES), both[1]);
                sum = Self::add_score(s, both, signs, sum);
                if BLOCK_SCALED {
                    let mut lanes = [0i32; MAX_LANES];
                    s.store_i32(lanes.as_mut_ptr(), Pair::collapse(s, sum));
                    let (low, high) = lanes.split_at(S::LANES / 2);
                    let at = beginning::<S, BLOCK_SCALED>(to, dim, d).cast_mut();
                    at.write(low.iter().sum());
                    at.add(1).write(high.iter().sum());
                    sum = Pair::zero(s);
                }
            }
            if !BLOCK_SCALED {
                let begin = s.sub_i32(s.splat_i32(0), Pair::collapse(s, sum));
                s.store_i32(beginning::<S, BLOCK_SCALED>(to, dim, 0).cast_mut(), begin);
            }
            factor
        }
    }

    #[inline(always)]
    unsafe fn query<S: Isa>(s: S, line: *const f32, d: usize) -> [S::I32; 2] {
        let at = digits(line, d);
        // SAFETY: a packed row with a vector of elements from `d` on (caller).
        unsafe { [s.load_i32(at), s.load_i32(at.add(S::LANES))] }
    }

    #[inline(always)]
    unsafe fn begin<S: Isa>(s: S, line: *const f32, dim: usize, d: usize) -> [S::I32; 2] {
        let at = beginning::<S, BLOCK_SCALED>(line, dim, d);
        if BLOCK_SCALED {
            // SAFETY: `pack` wrote it behind the packed row (caller).
            let [low, high] = unsafe { [at.read(), at.add(1).read()] };
            return [s.splat_i32(low), s.splat_i32(high)];
        }
        // SAFETY: `pack` wrote it behind the packed row (caller).
        [s.splat_i32(0), unsafe { s.load_i32(at) }]
    }

    #[inline(always)]
    unsafe fn load_kv<S: Isa, T: Stored>(s: S, row: *const u8, d: usize) -> S::I32 {
        if BLOCK_SCALED {
            let [low, high] = blocks::<T>(row, d);
            // SAFETY: the row has a vector of elements from `d` on (caller).
            return unsafe { s.load_halves(low, high) };
        }
        // SAFETY: the row has a vector of elements from `d` on (caller).
        unsafe { s.load_i32(row.wrapping_add(d).cast()) }
    }

    #[inline(always)]
    unsafe fn load_kv_partial<S: Isa, T: Stored>(s: S, row: *const u8, d: usize, n: usize) -> S::I32 {
        if BLOCK_SCALED {
            let [low, _] = blocks::<T>(row, d);
            // SAFETY: the row has `d + n` elements (caller); the array is as long as any vector.
            return unsafe { s.load_lower_half(low) };
        }
        // SAFETY: the row has `d + n` elements (caller); the array is as long as any vector.
        unsafe { s.load_i32(padded(row, d, n, 1).as_ptr().cast()) }
    }

    #[inline(always)]
    fn key_operand<S: Isa>(s: S, words: S::I32) -> S::I32 {
        s.xor(words, s.splat_i32(SIGNS))
    }

    #[inline(always)]
    fn add_score<S: Isa>(s: S, q: [S::I32; 2], k: S::I32, sum: [S::I32; 2]) -> [S::I32; 2] {
        [s.dot_u8_i8(sum[0], k, q[0]), s.dot_u8_i8(sum[1], k, q[1])]
    }

    #[inline(always)]
    fn product<S: Isa>(s: S, q: [S::I32; 2], k: S::I32) -> S::I32 {
        let upper = s.dot_u8_i8(s.splat_i32(0), k, q[0]);
        s.dot_u8_i8(s.join_digits(upper, s.splat_i32(0)), k, q[1])
    }

    #[inline(always)]
    fn add_value<S: Isa>(s: S, p: [S::I32; 2], v: S::I32, sum: [S::I32; 2]) -> [S::I32; 2] {
        [s.dot_u8_i8(sum[0], p[0], v), s.dot_u8_i8(sum[1], p[1], v)]
    }

    #[inline(always)]
    fn sums_of_halves<S: Isa>(s: S, lanes: &[S::I32; MAX_LANES], [low, high]: [S::I32; 2]) -> [S::F32; 2] {
        let [first, second] = s.sums_of_halves(lanes);
        [s.to_f32(s.sub_i32(first, low)), s.to_f32(s.sub_i32(second, high))]
    }

    #[inline(always)]
    fn probability<S: Isa>(s: S, x: S::F32) -> S::F32 {
        if BLOCK_SCALED {
            // Rounded when it has been multiplied by a scale.
            return s.exp2(s.add(x, s.splat(Self::P_SCALE.log2())));
        }
        <I16 as Gemv>::probability(s, x)
    }

    #[inline(always)]
    unsafe fn store_probabilities<S: Isa>(s: S, line: *mut f32, key: usize, p: S::F32) {
        // SAFETY: the line has a vector from `key` on (caller).
        unsafe { s.store_digits(digits_of_keys::<S>(line, key).cast_mut(), p) };
    }

    #[inline(always)]
    unsafe fn weight<S: Isa>(s: S, line: *const f32, key: usize) -> [S::I32; 2] {
        // SAFETY: the digits of the line, which `store_probabilities` has written (caller).
        unsafe { Pair::broadcast(s, digits_of_keys::<S>(line, key)) }
    }

    #[inline(always)]
    unsafe fn weights<S: Isa>(s: S, lines: [*const f32; 2], key: usize) -> [S::I32; 2] {
        let [low, high] = lines.map(|line| {
            let at = digits_of_keys::<S>(line, key).cast::<i32>();
            // SAFETY: `store_probabilities` wrote both lines (caller).
            unsafe { [at.read_unaligned(), at.wrapping_byte_add(S::LANES).read_unaligned()] }
        });
        [s.splat_halves(low[0], high[0]), s.splat_halves(low[1], high[1])]
    }
}
