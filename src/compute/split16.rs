//! 16-bit integers times 8-bit ones with dot products of four bytes, the 16-bit ones split in two
//! bytes (hi, lo): the sums, and so the bits, of [`super::i16`], without widening K and V. Of V
//! four keys at a time are interleaved.
//!
//! For one query row of 8-bit integers: several rows share what widening costs, and the products
//! are as many either way, but need half of the registers there. For block-scaled types, query rows
//! are taken one by one anyway (see [`crate::decode::block_scaled`]): a vector has two blocks.
//!
//! - Scores: with q = 256 hi + lo, both signed, and K made unsigned by adding 128, Σ q · k = 256 ·
//!   Σ hi · (k + 128) + Σ lo · (k + 128) - 128 · Σ q; the last term stands behind the packed query.
//! - Probabilities: 256 hi + lo, both unsigned.

use std::marker::PhantomData;

use super::i16::I16;
use crate::attend::rows::Source;
use crate::decode::block::{Block, Run};
use crate::decode::block_scaled;
use crate::decode::gemv::{BlockScaledGemv, Gemv, PairedBlocks, Reading, width};
use crate::decode::prefetch::PrefetchStream;
use crate::decode::scratch::{BlockArrays, RowArrays};
use crate::decode::state::State;
use crate::dtype::block_scaled::BlockScaled;
use crate::dtype::i8::I8;
use crate::dtype::{self, Dtype, Stored};
use crate::simd::lane::{Int, Registers};
use crate::simd::{Isa, MAX_LANES};

/// 16-bit queries and probabilities, split in two bytes, times K and V stored as `T`: [`I8`], whose
/// scales lie elsewhere, or any [`BlockScaled`] type.
pub(crate) struct Split16<T>(PhantomData<fn() -> T>);

/// Elements of an operand.
const PACK: usize = 4;

/// In each byte, what is added to K: the sign bit, which is added by inverting it.
const SIGNS: i32 = i32::from_ne_bytes([0x80; PACK]);

/// Where the bytes of elements from `d` on are: hi of a vector of operands, then lo.
#[inline(always)]
pub(super) fn halves(row: *const f32, d: usize) -> *const i32 {
    row.cast::<u8>().wrapping_add(2 * d).cast()
}

/// What stands behind a packed query of `dim` elements.
#[inline(always)]
pub(super) fn behind<S: Isa>(row: *const f32, dim: usize) -> *const i32 {
    halves(row, dim.next_multiple_of(PACK * S::LANES))
}

/// Where the bytes of the probabilities of keys from `key` on are: hi of a vector, then lo.
#[inline(always)]
pub(super) fn halves_of_keys<S: Isa>(row: *const f32, key: usize) -> *const u8 {
    row.cast::<u8>().wrapping_add(2 * (key - key % S::LANES) + key % S::LANES)
}

/// Two vectors, hi and lo: 256 times the first one, and the second one, are the number. Sums of
/// their products are such pairs, too.
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
        // SAFETY: I7: the caller vouches for a vector at `p`.
        [s.splat_i32(0), unsafe { s.load_i32(p.cast()) }]
    }

    /// The hi bytes at `p`, and the lo ones as many bytes behind them as there are lanes.
    #[inline(always)]
    unsafe fn broadcast<S: Isa>(s: S, p: *const u8) -> [S::I32; 2] {
        let [hi, lo] = [p, p.wrapping_add(S::LANES)];
        // SAFETY: I7: the caller vouches for four bytes of each.
        unsafe { [Int::broadcast(s, hi), Int::broadcast(s, lo)] }
    }

    #[inline(always)]
    fn collapse<S: Isa>(s: S, [hi, lo]: [S::I32; 2]) -> S::I32 {
        s.join_split16(hi, lo)
    }
}

/// Packs a query row, and calls `end(s, d, sum)` behind each vector of operands, from element `d`
/// on, with the sum of its elements times 128 and of those before it. What that returns is the sum
/// to continue with. Returns what [`Gemv::pack`] does, and the last sum.
///
/// # Safety
/// The contract of [`Gemv::pack`].
#[inline(always)]
pub(super) unsafe fn pack<S: Isa>(
    s: S,
    source: Source,
    dim: usize,
    factor: f32,
    to: *mut f32,
    mut end: impl FnMut(usize, [S::I32; 2]) -> [S::I32; 2],
) -> (f32, [S::I32; 2]) {
    // SAFETY: I5: the row at `to` has whole vectors of operands, each element as f32 (caller): the
    // 16-bit elements fill half of it. Vectors are split where they lie.
    unsafe {
        let factor = <I16 as Gemv>::pack(s, source, dim, factor, to);
        let numbers = to.cast::<i16>();
        let all = dim.next_multiple_of(PACK * S::LANES);
        // I16 fills whole vectors of pairs.
        let filled = dim.next_multiple_of(2 * S::LANES);
        if filled < all {
            s.store_i32(numbers.add(filled).cast(), s.splat_i32(0));
        }
        let (mut sum, signs) = (Pair::zero(s), s.splat_i32(SIGNS));
        for d in (0..all).step_by(PACK * S::LANES) {
            let both = s.load_split16(numbers.add(d));
            let at = halves(to, d).cast_mut();
            s.store_i32(at, both[0]);
            s.store_i32(at.add(S::LANES), both[1]);
            sum = end(d, add_score(s, both, signs, sum));
        }
        (factor, sum)
    }
}

#[inline(always)]
fn add_score<S: Isa>(s: S, q: [S::I32; 2], k: S::I32, sum: [S::I32; 2]) -> [S::I32; 2] {
    [s.dot_u8_i8(sum[0], k, q[0]), s.dot_u8_i8(sum[1], k, q[1])]
}

/// Whose products block-scaled types share.
type Plain = Split16<I8>;

impl Gemv for Split16<I8> {
    const NAME: &'static str = <I16 as Gemv>::NAME;
    const DTYPE: Option<Dtype> = Some(Dtype::I8);
    type Own = crate::dtype::i8::I8;
    const PACK: usize = PACK;
    const MAX_ROWS: usize = 1;
    const MAX_KEYS: usize = <I16 as Gemv>::MAX_KEYS;
    const INT_ACC: bool = true;
    const P_SCALE: f32 = <I16 as Gemv>::P_SCALE;
    type Operand = Int;
    type Weight = Pair;
    type Sum = Pair;

    #[inline(always)]
    unsafe fn pack<S: Isa>(s: S, source: Source, dim: usize, factor: f32, to: *mut f32) -> f32 {
        // SAFETY: I5: the second half of the row at `to` is free for the vector behind the query
        // (caller).
        unsafe {
            let (factor, sum) = pack(s, source, dim, factor, to, |_, sum| sum);
            let begin = s.sub_i32(s.splat_i32(0), Pair::collapse(s, sum));
            s.store_i32(behind::<S>(to, dim).cast_mut(), begin);
            factor
        }
    }

    #[inline(always)]
    unsafe fn query<S: Isa>(s: S, row: *const f32, d: usize) -> [S::I32; 2] {
        let at = halves(row, d);
        // SAFETY: I7: hi and lo of a vector of elements from `d` on, which the packed row has
        // (caller).
        unsafe { [s.load_i32(at), s.load_i32(at.add(S::LANES))] }
    }

    #[inline(always)]
    unsafe fn begin<S: Isa>(s: S, row: *const f32, dim: usize) -> [S::I32; 2] {
        // SAFETY: I5: `pack` has written the vector behind the query.
        [s.splat_i32(0), unsafe { s.load_i32(behind::<S>(row, dim)) }]
    }

    #[inline(always)]
    unsafe fn load_kv<S: Isa, T: Stored>(s: S, row: *const u8, d: usize) -> S::I32 {
        // SAFETY: I7: the row has a vector of bytes from `d` on (caller).
        unsafe { s.load_i32(row.wrapping_add(d).cast()) }
    }

    #[inline(always)]
    unsafe fn load_kv_partial<S: Isa, T: Stored>(s: S, row: *const u8, d: usize, n: usize) -> S::I32 {
        // SAFETY: I7: the row has `d + n` bytes (caller); the array is as long as any vector.
        unsafe { s.load_i32(dtype::padded::<S, T>(s, row, d, n, width::<S, Self>()).as_ptr().cast()) }
    }

    #[inline(always)]
    fn key_operand<S: Isa>(s: S, operand: S::I32) -> S::I32 {
        s.xor(operand, s.splat_i32(SIGNS))
    }

    #[inline(always)]
    fn add_score<S: Isa>(s: S, q: [S::I32; 2], k: S::I32, sum: [S::I32; 2]) -> [S::I32; 2] {
        add_score(s, q, k, sum)
    }

    #[inline(always)]
    fn add_value<S: Isa>(s: S, p: [S::I32; 2], v: S::I32, sum: [S::I32; 2]) -> [S::I32; 2] {
        [s.dot_u8_i8(sum[0], p[0], v), s.dot_u8_i8(sum[1], p[1], v)]
    }

    #[inline(always)]
    fn probability<S: Isa>(s: S, x: S::F32) -> S::F32 {
        <I16 as Gemv>::probability(s, x)
    }

    #[inline(always)]
    unsafe fn store_probabilities<S: Isa>(s: S, scores: *mut f32, key: usize, p: S::F32) {
        // SAFETY: I7: hi and lo of a vector of keys take less than the vector that the row has
        // (caller).
        unsafe { s.store_split16(halves_of_keys::<S>(scores, key).cast_mut(), p) };
    }

    #[inline(always)]
    unsafe fn weight<S: Isa>(s: S, scores: *const f32, key: usize) -> [S::I32; 2] {
        // SAFETY: I7: `store_probabilities` has written hi and lo of these keys (caller).
        unsafe { Pair::broadcast(s, halves_of_keys::<S>(scores, key)) }
    }
}

impl<T: BlockScaled> Gemv for Split16<T> {
    const NAME: &'static str = <Plain as Gemv>::NAME;
    const DTYPE: Option<Dtype> = Some(T::DTYPE);
    type Own = T;
    const PACK: usize = PACK;
    const MAX_ROWS: usize = 1;
    const MAX_KEYS: usize = <Plain as Gemv>::MAX_KEYS;
    const INT_ACC: bool = true;
    const ADDS_RUNS: bool = false;
    const ROUNDS: bool = false;
    /// Probabilities are multiplied by scales and rounded then: nothing is lost by a power of two.
    /// Sums of the most keys still fit: -128 · 512 · 32768 = -2^31.
    const P_SCALE: f32 = 32_768.0;
    type Operand = Int;
    type Weight = Pair;
    type Sum = Pair;

    /// Behind the query stand two numbers for each vector of operands: see
    /// [`BlockScaledGemv::corrections`].
    #[inline(always)]
    unsafe fn pack<S: Isa>(s: S, source: Source, dim: usize, factor: f32, to: *mut f32) -> f32 {
        let end = |d, sum| {
            let mut lanes = [0i32; MAX_LANES];
            // SAFETY: I7: the array is as long as any vector; I5: the second half of the row at
            // `to` has room for the numbers behind the query (caller).
            unsafe {
                s.store_i32(lanes.as_mut_ptr(), Pair::collapse(s, sum));
                let (low, high) = lanes.split_at(S::LANES / 2);
                let at = behind::<S>(to, dim).wrapping_add(d / PACK).cast_mut();
                at.write(low.iter().sum());
                at.add(1).write(high.iter().sum());
            }
            Pair::zero(s)
        };
        // SAFETY: I2, I5: the caller vouches for the row of `source` and for room at `to`.
        unsafe { pack(s, source, dim, factor, to, end).0 }
    }

    #[inline(always)]
    unsafe fn query<S: Isa>(s: S, row: *const f32, d: usize) -> [S::I32; 2] {
        // SAFETY: I7: queries are packed alike, and the row has a vector of elements from `d` on
        // (caller).
        unsafe { Plain::query(s, row, d) }
    }

    #[inline(always)]
    unsafe fn load_kv<S: Isa, Own: Stored>(s: S, row: *const u8, d: usize) -> S::I32 {
        // SAFETY: I7: the row has the two blocks of a vector of elements from `d` on (caller).
        unsafe { T::load_pair(s, row.wrapping_add(d / T::BLOCK * T::BLOCK_BYTES)) }
    }

    #[inline(always)]
    unsafe fn load_kv_partial<S: Isa, Own: Stored>(s: S, row: *const u8, d: usize, _n: usize) -> S::I32 {
        // SAFETY: I7: rows have whole blocks, and less than a vector is one block (caller).
        unsafe { T::load_single(s, row.wrapping_add(d / T::BLOCK * T::BLOCK_BYTES)) }
    }

    #[inline(always)]
    fn key_operand<S: Isa>(s: S, operand: S::I32) -> S::I32 {
        Plain::key_operand(s, operand)
    }

    #[inline(always)]
    fn add_score<S: Isa>(s: S, q: [S::I32; 2], k: S::I32, sum: [S::I32; 2]) -> [S::I32; 2] {
        Plain::add_score(s, q, k, sum)
    }

    #[inline(always)]
    fn add_value<S: Isa>(s: S, p: [S::I32; 2], v: S::I32, sum: [S::I32; 2]) -> [S::I32; 2] {
        Plain::add_value(s, p, v, sum)
    }

    /// Not rounded before it has been multiplied by a scale.
    #[inline(always)]
    fn probability<S: Isa>(s: S, x: S::F32) -> S::F32 {
        s.exp2(s.add(x, s.splat(Self::P_SCALE.log2())))
    }

    /// As f32: [`BlockScaledGemv::store_weights`] writes what is multiplied.
    #[inline(always)]
    unsafe fn store_probabilities<S: Isa>(s: S, scores: *mut f32, key: usize, p: S::F32) {
        // SAFETY: I7: the row has a vector from `key` on (caller).
        unsafe { s.store(scores.add(key), p) };
    }

    #[inline(always)]
    fn reading(dim: usize) -> Reading {
        Reading { scales_in_row: dim / T::BLOCK, is_repacked: false }
    }

    #[inline(always)]
    unsafe fn dot_products<S: Isa>(s: S, rows: &RowArrays, count: usize, run: &Run, next: PrefetchStream) {
        // SAFETY: I2, I5: the caller vouches for the arrays of its group and for the rows of `run`.
        unsafe {
            if const { S::PREFETCHES_STREAM } && next.is_any() {
                block_scaled::dot_products::<S, Self, true>(s, rows, count, run, next);
            } else {
                block_scaled::dot_products::<S, Self, false>(s, rows, count, run, next);
            }
        }
    }

    #[inline(always)]
    unsafe fn add_values<S: Isa>(s: S, block: &Block, rows: &RowArrays, arrays: &BlockArrays, state: &State) {
        // SAFETY: I5: the caller vouches for the arrays of the block's group; `reading` made
        // room for weights.
        unsafe { block_scaled::values::<S, Self>(s, block, rows, &arrays.weights, state) }
    }
}

impl<T: BlockScaled> BlockScaledGemv for Split16<T> {
    type Blocks = T;
    const VALUE_ROWS: usize = 1;
    const MAX_WEIGHT: f32 = <Self as Gemv>::P_SCALE;

    /// `pack` has written 128 times that.
    #[inline(always)]
    unsafe fn sum_of_block<S: Isa>(_s: S, row: *const f32, dim: usize, block: usize) -> i32 {
        let at = behind::<S>(row, dim).wrapping_add(block / 2 * S::LANES + block % 2);
        // SAFETY: I5: `pack` has written two numbers for each vector of operands.
        unsafe { at.read() / 128 }
    }

    #[inline(always)]
    unsafe fn store_weights<S: Isa>(s: S, row: *mut f32, key: usize, weights: S::F32) {
        // SAFETY: I7: weights are written as probabilities are, to a row that has a vector
        // (caller).
        unsafe { Plain::store_probabilities(s, row, key, weights) };
    }

    #[inline(always)]
    unsafe fn weights<S: Isa>(s: S, rows: [*const f32; 2], key: usize) -> [S::I32; 2] {
        let [low, high] = rows.map(|row| {
            let at = halves_of_keys::<S>(row, key).cast::<i32>();
            // SAFETY: I7: `store_weights` has written hi and lo of these keys (caller).
            unsafe { [at.read_unaligned(), at.wrapping_byte_add(S::LANES).read_unaligned()] }
        });
        [s.splat_halves(low[0], high[0]), s.splat_halves(low[1], high[1])]
    }
}

impl<T: BlockScaled> PairedBlocks for Split16<T> {
    #[inline(always)]
    fn product<S: Isa>(s: S, q: [S::I32; 2], k: S::I32) -> S::I32 {
        let hi = s.dot_u8_i8(s.splat_i32(0), k, q[0]);
        s.dot_u8_i8(s.join_split16(hi, s.splat_i32(0)), k, q[1])
    }

    #[inline(always)]
    fn sums_of_halves<S: Isa>(s: S, vectors: &[S::I32; MAX_LANES], [low, high]: [S::I32; 2]) -> [S::F32; 2] {
        let [first, second] = s.horizontal_sums_of_halves(vectors);
        [s.to_f32(s.sub_i32(first, low)), s.to_f32(s.sub_i32(second, high))]
    }

    #[inline(always)]
    unsafe fn corrections<S: Isa>(s: S, row: *const f32, dim: usize, d: usize) -> [S::I32; 2] {
        let at = behind::<S>(row, dim).wrapping_add(d / PACK);
        // SAFETY: I5: `pack` has written two numbers for each vector of operands.
        let [low, high] = unsafe { [at.read(), at.add(1).read()] };
        [s.splat_i32(low), s.splat_i32(high)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::blocks16::Blocks16;
    use crate::decode::block_scaled::check::Check;
    use crate::simd::{half, scalar::Scalar};

    /// A block type that is not Q8_0: 8 elements (half of a vector of the scalar kernels), behind
    /// an unused byte a binary16 scale, then 4 bytes: elements 0 to 3 are the low nibbles, elements
    /// 4 to 7 the high ones; each nibble is 8 more than its code.
    enum Nibbles {}

    const NIBBLES: usize = 3;

    /// # Safety
    /// The block is readable.
    unsafe fn code(block: *const u8, i: usize) -> i8 {
        // SAFETY: I7: one of the 4 bytes of the block.
        let byte = unsafe { block.add(NIBBLES + i % 4).read() };
        (byte >> (i / 4 * 4) & 15).cast_signed() - 8
    }

    impl Stored for Nibbles {
        const BLOCK: usize = 8;
        const BLOCK_BYTES: usize = NIBBLES + 4;

        unsafe fn element(row: *const u8, d: usize) -> f32 {
            let block = row.wrapping_add(d / Self::BLOCK * Self::BLOCK_BYTES);
            // SAFETY: I7: scale and code of the block of element `d` (caller).
            unsafe {
                let scale = half::from_f16(block.add(Self::SCALE).cast::<u16>().read_unaligned());
                scale * f32::from(code(block, d % Self::BLOCK))
            }
        }

        unsafe fn load<S: Isa>(s: S, row: *const u8, d: usize) -> S::F32 {
            let mut lanes = [0.0; MAX_LANES];
            for (i, lane) in lanes.iter_mut().enumerate().take(S::LANES) {
                // SAFETY: I7: the row has `LANES` elements from `d` on (caller).
                *lane = unsafe { Self::element(row, d + i) };
            }
            // SAFETY: I7: the array is as long as any vector.
            unsafe { s.load(lanes.as_ptr()) }
        }
    }

    impl BlockScaled for Nibbles {
        // No value of the enumeration stands for it: nothing here asks.
        const DTYPE: Dtype = Dtype::Q8_0;
        const SCALE: usize = 1;

        unsafe fn load_pair<S: Isa>(s: S, block: *const u8) -> S::I32 {
            let mut codes = [0i8; 4 * MAX_LANES];
            for (i, to) in codes.iter_mut().enumerate().take(2 * Self::BLOCK) {
                // SAFETY: I7: one of two blocks (caller).
                *to =
                    unsafe { code(block.wrapping_add(i / Self::BLOCK * Self::BLOCK_BYTES), i % Self::BLOCK) };
            }
            // SAFETY: I7: the array is as long as any vector.
            unsafe { s.load_i32(codes.as_ptr().cast()) }
        }

        unsafe fn load_single<S: Isa>(s: S, block: *const u8) -> S::I32 {
            let mut codes = [0i8; 4 * MAX_LANES];
            for (i, to) in codes.iter_mut().enumerate().take(Self::BLOCK) {
                // SAFETY: I7: the block is readable (caller).
                *to = unsafe { code(block, i) };
            }
            // SAFETY: I7: the array is as long as any vector.
            unsafe { s.load_i32(codes.as_ptr().cast()) }
        }

        unsafe fn load_wide<S: Isa>(s: S, block: *const u8, first: usize) -> S::I32 {
            let mut codes = [0i16; 2 * MAX_LANES];
            for (i, to) in codes.iter_mut().enumerate().take(2 * S::LANES) {
                // SAFETY: I7: the block is readable and has these codes (caller).
                *to = unsafe { code(block, first + i) }.into();
            }
            // SAFETY: I7: the array is as long as any vector.
            unsafe { s.load_i32(codes.as_ptr().cast()) }
        }
    }

    /// What is generic over the block type does not know Q8_0: where the scale lies and how codes
    /// are unpacked is the type's affair.
    #[test]
    fn any_block_type_is_multiplied() {
        // Whole vectors of two blocks, and a block that is alone.
        for dim in [16, 24, 8, 56] {
            let s = Scalar::detect().expect("a machine");
            s.enter(Check::<Split16<Nibbles>> { dim, compute: PhantomData });
            s.enter(Check::<Blocks16<Nibbles>> { dim, compute: PhantomData });
        }
    }
}
