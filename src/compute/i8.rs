//! 8-bit integers, with dot products of four unsigned by four signed bytes, summed in 32 bits; for
//! prefill.
//!
//! - Scores: K becomes unsigned by adding 128, a block of keys at a time; Q stays signed. Sums
//!   begin with -128 · Σ q, so that they end as Σ q · k, exactly. Queries of other types are
//!   quantised, row by row.
//! - Probabilities: unsigned, 255 at the row's reference of the block (see
//!   [`crate::attend::outliers`]). Their sum is that of the rounded ones.
//! - V: the values of four keys are interleaved. V's scale is a factor of the output.
//!
//! With [`Isa::MULTIPLIES_EQUAL_SIGNS`] it is V that becomes unsigned: sums begin with -128 · Σ p,
//! of the probabilities of their keys, and K is staged as it is.
//!
//! The method is that of SageAttention (arXiv:2410.02367), and of I-BERT's integer softmax
//! (arXiv:2101.01321) before it.

use super::integers::{self, Integers};
use crate::attend::fold::Folding;
use crate::attend::rows::{Rows, Source, copy_rows};
use crate::attend::{K, V, convert};
use crate::dtype::Dtype;
use crate::prefill::gemm::Gemm;
use crate::problem::{Accuracy, Storage};
use crate::simd::lane::{Int, MAX_PACK};
use crate::simd::{Body, Isa};

/// The compute type of 8-bit integers.
pub(crate) enum I8 {}

/// Elements of a word.
const WORD: usize = 4;

/// What is added to the bytes of K or V, as an exclusive or: their sign bits, if the other operand
/// is unsigned there and the instruction wants equal signs, or is signed and it wants others.
#[inline(always)]
pub(super) const fn added<S: Isa>(which: usize) -> u8 {
    if (which == K) != S::MULTIPLIES_EQUAL_SIGNS { 0x80 } else { 0 }
}

impl Gemm for I8 {
    const NAME: &'static str = "i8";
    const ACCURACY: Accuracy = Accuracy::Fast;
    const PACK: usize = WORD;
    /// Three lines: the factor of the scores, what their sums begin with, and their corrections.
    const PANEL_HEADER: usize = 3;
    /// 255 · 128 times so many keys, or elements, is below 2^31.
    const MAX_KEYS: usize = 1 << 16;
    const MAX_DIM: usize = 1 << 16;
    const INT_ACC: bool = true;
    const P_SCALE: f32 = 255.0;
    /// A word is four neighbouring elements, or the values of four neighbouring keys, the first one
    /// in the lowest byte.
    type Operand = Int;
    type Sum = Int;

    #[inline(always)]
    fn takes(storage: &Storage) -> bool {
        integers::takes(storage)
    }

    #[inline(always)]
    fn query_scratch(_dtype: Dtype, dim: usize) -> usize {
        convert::row_bytes(dim)
    }

    #[inline(always)]
    fn reads_k(_dtype: Dtype, _dim: usize) -> bool {
        false
    }

    #[inline(always)]
    fn reads_v(_dtype: Dtype) -> bool {
        false
    }

    #[inline(always)]
    unsafe fn pack_query<S: Isa>(
        s: S,
        source: Source,
        n: usize,
        dim: usize,
        lanes: usize,
        factor: f32,
        folding: Option<&Folding>,
        panel: *mut f32,
        scratch: *mut u8,
    ) -> bool {
        // SAFETY: the caller vouches for rows, panel and scratch, as `Gemm::pack_query` asks.
        unsafe { integers::pack::<S, I8>(s, source, n, dim, lanes, factor, folding, panel, scratch) }
    }

    #[inline(always)]
    unsafe fn stage_k<S: Isa>(s: S, source: Source, n: usize, dim: usize, _first: usize, to: *mut u8) {
        // SAFETY: `n` rows of `dim` elements, and room for them staged (caller).
        unsafe { flip(s, Flip { rows: source.rows(), n, dim, to }) }
    }

    #[inline(always)]
    unsafe fn stage_v<S: Isa>(s: S, source: Source, n: usize, dim: usize, first: usize, to: *mut u8) -> bool {
        // SAFETY: `n` rows of `dim` elements, and room for their groups (caller).
        unsafe { interleave(s, Interleave { rows: source.rows(), n, dim, first, to }) }
        false
    }

    #[inline(always)]
    unsafe fn begin_score<S: Isa>(s: S, panel: *const f32, lanes: usize) -> S::I32 {
        // SAFETY: the panel has a line behind its first (caller).
        unsafe { s.load_i32(panel.add(lanes).cast()) }
    }

    #[inline(always)]
    fn add_score<S: Isa>(s: S, q: S::I32, k: S::I32, sum: S::I32) -> S::I32 {
        if const { S::MULTIPLIES_EQUAL_SIGNS } { s.dot_i8(sum, q, k) } else { s.dot_u8_i8(sum, k, q) }
    }

    #[inline(always)]
    fn add_score_lane<S: Isa, const I: i32>(s: S, q: S::I32, k: S::I32, sum: S::I32) -> S::I32 {
        if const { S::MULTIPLIES_EQUAL_SIGNS } {
            s.dot_i8_lane::<I>(sum, q, k)
        } else {
            Self::add_score(s, q, s.splat_lane_i32::<I>(k), sum)
        }
    }

    #[inline(always)]
    fn probabilities<S: Isa>(
        s: S,
        scores: [S::F32; MAX_PACK],
        running_max: S::F32,
        total: &mut S::I32,
    ) -> S::I32 {
        let p = s.exp2_u8(scores, running_max);
        let ones = s.splat_i32(0x0101_0101);
        *total = if const { S::MULTIPLIES_EQUAL_SIGNS } {
            s.dot_u8(*total, p, ones)
        } else {
            s.dot_u8_i8(*total, p, ones)
        };
        p
    }

    /// With 128 more in each value: -128 · Σ p.
    #[inline(always)]
    fn begin_value<S: Isa>(s: S, before: S::I32, after: S::I32) -> S::I32 {
        if const { !S::MULTIPLIES_EQUAL_SIGNS } {
            return s.splat_i32(0);
        }
        let mut sum = s.sub_i32(before, after);
        // Seven times twice as much.
        for _ in 0..7 {
            sum = s.sub_i32(sum, s.sub_i32(s.splat_i32(0), sum));
        }
        sum
    }

    #[inline(always)]
    fn add_value<S: Isa>(s: S, p: S::I32, v: S::I32, sum: S::I32) -> S::I32 {
        if const { S::MULTIPLIES_EQUAL_SIGNS } { s.dot_u8(sum, p, v) } else { s.dot_u8_i8(sum, p, v) }
    }

    #[inline(always)]
    fn add_value_lane<S: Isa, const I: i32>(s: S, p: S::I32, v: S::I32, sum: S::I32) -> S::I32 {
        if const { S::MULTIPLIES_EQUAL_SIGNS } {
            s.dot_u8_lane::<I>(sum, p, v)
        } else {
            Self::add_value(s, p, s.splat_lane_i32::<I>(v), sum)
        }
    }

    #[inline(always)]
    fn probability(word: u32, key: usize) -> f32 {
        f32::from((word >> (8 * key)) as u8) / Self::P_SCALE
    }
}

impl Integers for I8 {
    #[inline(always)]
    fn max_magnitude(_dim: usize) -> f32 {
        127.0
    }

    #[inline(always)]
    unsafe fn store_elements<S: Isa>(s: S, to: *mut u8, d: usize, x: S::F32) {
        // SAFETY: a vector of elements from `d` on (caller).
        unsafe { s.store_i8(to.add(d).cast(), x) };
    }

    #[inline(always)]
    unsafe fn offset<S: Isa>(s: S, words: *const u32, steps: usize, lanes: usize) -> S::I32 {
        let mut sum = s.splat_i32(0);
        if const { S::MULTIPLIES_EQUAL_SIGNS } {
            return sum;
        }
        let offset = s.splat_i32(i32::from_ne_bytes([0x80; WORD]));
        for step in 0..steps {
            // SAFETY: one of `steps` lines of words (caller).
            sum = s.dot_u8_i8(sum, offset, unsafe { s.load_i32(words.add(step * lanes).cast()) });
        }
        s.sub_i32(s.splat_i32(0), sum)
    }
}

/// [`Gemm::stage_k`]: adds 128 by flipping sign bits. Kept out of line, so that the code exists
/// once for each instruction set and not in each kernel.
///
/// # Safety
/// The pointers of `body` are as [`Gemm::stage_k`] asks.
#[inline(never)]
unsafe fn flip<S: Isa>(s: S, body: Flip) {
    s.enter(body);
}

/// The arguments of [`flip`]. Only [`I8::stage_k`] makes one, whose caller vouches for its
/// pointers.
struct Flip {
    rows: Rows,
    n: usize,
    dim: usize,
    to: *mut u8,
}

impl Body for Flip {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Flip { rows, n, dim, to } = self;
        let sign = s.splat_i32(i32::from_ne_bytes([added::<S>(K); WORD]));
        let whole = dim - dim % (WORD * S::LANES);
        for row in 0..n {
            let from = rows.skip(row).base;
            let to = to.wrapping_add(row * I8::staged_k_row(dim));
            // SAFETY: elements below `dim` of one of `n` rows; staged rows have room for whole
            // vectors (caller).
            unsafe {
                for d in (0..whole).step_by(WORD * S::LANES) {
                    let x = s.load_i32(from.wrapping_add(d).cast());
                    s.store_i32(to.add(d).cast(), s.xor(x, sign));
                }
                if whole < dim {
                    let last = Rows { base: from.wrapping_add(whole), stride: 0 };
                    let at = to.add(whole);
                    copy_rows(last, 1, dim - whole, at, 0, WORD * I8::steps(dim) - whole);
                    s.store_i32(at.cast(), s.xor(s.load_i32(at.cast()), sign));
                }
            }
        }
    }
}

/// [`Gemm::stage_v`], kept out of line, so that the code exists once for each instruction set and
/// not in each kernel.
///
/// # Safety
/// The pointers of `body` are as [`Gemm::stage_v`] asks.
#[inline(never)]
unsafe fn interleave<S: Isa>(s: S, body: Interleave) {
    s.enter(body);
}

/// The arguments of [`interleave`]. Only [`I8::stage_v`] makes one, whose caller vouches for its
/// pointers.
struct Interleave {
    rows: Rows,
    n: usize,
    dim: usize,
    first: usize,
    to: *mut u8,
}

impl Body for Interleave {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Interleave { rows, n, dim, first, to } = self;
        let sign = s.splat_i32(i32::from_ne_bytes([added::<S>(V); WORD]));
        let mut key = first;
        while key < first + n {
            let row = rows.skip(key - first);
            let group = to.wrapping_add(key / WORD * I8::staged_v_row(dim));
            // SAFETY: one of `n` rows, and room for the group of its key (caller).
            unsafe {
                if key.is_multiple_of(WORD) && key + WORD <= first + n {
                    let four = [row.base, row.skip(1).base, row.skip(2).base, row.skip(3).base];
                    let whole = dim - dim % S::LANES;
                    for d in (0..whole).step_by(S::LANES) {
                        let words = s.load_interleaved_bytes(four, d);
                        let words =
                            if const { S::MULTIPLIES_EQUAL_SIGNS } { s.xor(words, sign) } else { words };
                        s.store_i32(group.add(WORD * d).cast(), words);
                    }
                    for (i, row) in four.into_iter().enumerate() {
                        one_key(row, whole..dim, group, i, added::<S>(V));
                    }
                    key += WORD;
                } else {
                    if key.is_multiple_of(WORD) {
                        // Probabilities of keys that are missing are 0.
                        integers::clear(group, WORD * dim);
                    }
                    one_key(row.base, 0..dim, group, key % WORD, added::<S>(V));
                    key += 1;
                }
            }
        }
    }
}

/// Writes some elements of one key, the one with number `i` in its group.
///
/// # Safety
/// `row` has these elements, and `group` has a word for each.
#[inline(never)]
unsafe fn one_key(row: *const u8, elements: std::ops::Range<usize>, group: *mut u8, i: usize, sign: u8) {
    for d in elements {
        // SAFETY: one of the row's elements, and its word of the group (caller).
        unsafe { group.add(WORD * d + i).write(row.wrapping_add(d).read() ^ sign) };
    }
}
