//! 16-bit integers, with dot products of pairs: for K and V of 8 bits, where there is no dot
//! product of four bytes, or where probabilities need more than 8 bits.
//!
//! - Scores: sums of products of integers are exact. Queries are quantised to as many bits as sums
//!   of 32 bits allow, nearly 16 for heads of up to 514 elements, unless they are 8-bit integers
//!   with a scale for each row.
//! - Probabilities: integers up to [`Gemm::P_SCALE`] at the row's reference of the block (see
//!   [`crate::attend::outliers`]). Their sum is that of the rounded ones.
//! - V: the values of two keys are interleaved, in prefill a block of keys at a time, in decode as
//!   they are loaded. V's scale is a factor of the output.

use super::integers::{self, Integers};
use crate::attend::convert;
use crate::attend::fold::Folding;
use crate::attend::rows::{Rows, Source};
use crate::decode::gemv::{Gemv, width};
use crate::dtype::{self, Dtype, Stored, i8};
use crate::prefill::gemm::Gemm;
use crate::problem::{Accuracy, Storage};
use crate::simd::lane::{Int, MAX_PACK};
use crate::simd::{Body, Isa};

/// The compute type of 16-bit integers.
pub(crate) enum I16 {}

/// The largest number that [`super::split16`] splits into two signed bytes: 256 times the first
/// one, and the second one.
const MAX_SPLIT: usize = 127 * 256 + 127;

impl Gemm for I16 {
    const NAME: &'static str = "i16";
    const ACCURACY: Accuracy = Accuracy::Precise;
    const PACK: usize = 2;
    /// Two lines: the factor of the scores, and their corrections.
    const PANEL_HEADER: usize = 2;
    /// [`Gemm::P_SCALE`] · 128 times so many keys is below 2^31.
    const MAX_KEYS: usize = 512;
    /// 127 · 128 times so many elements is below 2^31.
    const MAX_DIM: usize = 1 << 16;
    const INT_ACC: bool = true;
    /// The largest number of 16 bits. Its inverse, rounded, leaves the value of a key that is seen
    /// alone exact, which it does not for every number.
    const P_SCALE: f32 = 32_767.0;
    /// A word is a pair of neighbouring elements, or of the values of neighbouring keys, the first
    /// one in the lower half.
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
        unsafe { integers::pack::<S, I16>(s, source, n, dim, lanes, factor, folding, panel, scratch) }
    }

    #[inline(always)]
    unsafe fn stage_k<S: Isa>(s: S, source: Source, n: usize, dim: usize, _first: usize, to: *mut u8) {
        // SAFETY: `n` rows of `dim` elements, and room for them staged (caller).
        unsafe { stage(s, Stage { rows: source.rows(), n, dim, to, pairs_from: None }) }
    }

    #[inline(always)]
    unsafe fn stage_v<S: Isa>(s: S, source: Source, n: usize, dim: usize, first: usize, to: *mut u8) -> bool {
        // SAFETY: `n` rows of `dim` elements, and room for their groups (caller).
        unsafe { stage(s, Stage { rows: source.rows(), n, dim, to, pairs_from: Some(first) }) }
        false
    }

    #[inline(always)]
    fn add_score<S: Isa>(s: S, q: S::I32, k: S::I32, sum: S::I32) -> S::I32 {
        s.dot_i16(sum, q, k)
    }

    #[inline(always)]
    fn probabilities<S: Isa>(
        s: S,
        [low, high, ..]: [S::F32; MAX_PACK],
        running_max: S::F32,
        total: &mut S::I32,
    ) -> S::I32 {
        // Multiplied afterwards: the exponential is exact at the reference, and nowhere larger.
        let factor = s.splat(<Self as Gemm>::P_SCALE);
        let low = s.mul(s.exp2_approx(s.sub(low, running_max)), factor);
        let high = s.mul(s.exp2_approx(s.sub(high, running_max)), factor);
        let p = s.pack_i16(low, high);
        *total = s.dot_i16(*total, p, s.splat_i32(0x0001_0001));
        p
    }

    #[inline(always)]
    fn add_value<S: Isa>(s: S, p: S::I32, v: S::I32, sum: S::I32) -> S::I32 {
        s.dot_i16(sum, p, v)
    }

    #[inline(always)]
    fn probability(word: u32, key: usize) -> f32 {
        f32::from((word >> (16 * key)) as u16) / <Self as Gemm>::P_SCALE
    }
}

impl Integers for I16 {
    #[inline(always)]
    fn max_magnitude(dim: usize) -> f32 {
        // 128 times the magnitude, for each element, stays below 2^31.
        (i32::MAX as usize / (128 * dim)).min(MAX_SPLIT) as f32
    }

    #[inline(always)]
    unsafe fn store_elements<S: Isa>(s: S, to: *mut u8, d: usize, x: S::F32) {
        // SAFETY: a vector of elements from `d` on (caller).
        unsafe { s.store_i16(to.cast::<i16>().add(d), x) };
    }

    #[inline(always)]
    unsafe fn offset<S: Isa>(s: S, _words: *const u32, _steps: usize, _lanes: usize) -> S::I32 {
        s.splat_i32(0)
    }
}

/// Stages rows of K, or groups of V. Kept out of line, so that the code exists once for each
/// instruction set and not in each kernel.
///
/// # Safety
/// The pointers of `body` are as [`Gemm::stage_k`] or [`Gemm::stage_v`] asks.
#[inline(never)]
unsafe fn stage<S: Isa>(s: S, body: Stage) {
    s.core().enter(body);
}

/// The arguments of [`stage`]. Only [`I16::stage_k`] and [`I16::stage_v`] make one; their callers
/// vouch for its pointers.
struct Stage {
    rows: Rows,
    n: usize,
    dim: usize,
    to: *mut u8,
    /// For V: the number of the first key among those that are staged.
    pairs_from: Option<usize>,
}

impl Body for Stage {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Stage { rows, n, dim, to, pairs_from } = self;
        // SAFETY: `n` rows of `dim` bytes; staged rows and groups have room for whole vectors,
        // because they are whole cache lines (caller).
        unsafe {
            let Some(first) = pairs_from else {
                for row in 0..n {
                    let to = to.add(row * I16::staged_k_row(dim)).cast::<i16>();
                    for d in (0..dim).step_by(S::LANES) {
                        s.store_i16(to.add(d), i8::I8::load_rest(s, rows.skip(row).base, d, dim));
                    }
                }
                return;
            };
            for key in first..first + n {
                let row = rows.skip(key - first);
                let group = to.add(key / 2 * I16::staged_v_row(dim));
                let is_high = key % 2 == 1;
                // The first key of a pair is written together with the second one, if both are
                // here.
                let next = key + 1 < first + n && !is_high;
                if is_high && key > first {
                    continue;
                }
                for d in (0..dim).step_by(S::LANES) {
                    let at = group.add(4 * d).cast::<i32>();
                    let x = i8::I8::load_rest(s, row.base, d, dim);
                    let zero = s.splat(0.0);
                    let words = if is_high {
                        // The first key of the pair was staged before, with 0 in the upper half.
                        s.sub_i32(s.load_i32(at), s.sub_i32(s.splat_i32(0), s.pack_i16(zero, x)))
                    } else if next {
                        s.pack_i16(x, i8::I8::load_rest(s, row.skip(1).base, d, dim))
                    } else {
                        s.pack_i16(x, zero)
                    };
                    s.store_i32(at, words);
                }
            }
        }
    }
}

/// 1.5 · 2^23: f32 numbers near it are integers, so that adding it rounds.
const INTEGERS: f32 = 12_582_912.0;

impl Gemv for I16 {
    const NAME: &'static str = <I16 as Gemm>::NAME;
    const DTYPE: Option<Dtype> = Some(Dtype::I8);
    type Own = i8::I8;
    const PACK: usize = 2;
    /// [`Gemv::P_SCALE`] · 128 times so many keys is below 2^31.
    const MAX_KEYS: usize = 512;
    const INT_ACC: bool = true;
    const P_SCALE: f32 = 32_767.0;
    type Operand = Int;
    type Weight = Int;
    type Sum = Int;

    #[inline(always)]
    unsafe fn pack<S: Isa>(s: S, source: Source, dim: usize, factor: f32, to: *mut f32) -> f32 {
        let mut rows = source.rows();
        // SAFETY: one row of `dim` elements; `to` has room for as many f32 in whole vectors
        // (caller).
        unsafe {
            let scale = if integers::is_direct(&source) {
                integers::copy_integers::<S, I16>(s, rows, dim, to.cast());
                source.scale()
            } else {
                if source.dtype() != Dtype::F32 {
                    convert::convert(s, source, 1, dim, to.cast());
                    rows = Rows { base: to.cast(), ..rows };
                }
                integers::quantize_row::<S, I16>(s, rows, dim, to.cast())
            };
            for d in (dim.next_multiple_of(S::LANES)..dim.next_multiple_of(2 * S::LANES)).step_by(S::LANES) {
                I16::store_elements(s, to.cast(), d, s.splat(0.0));
            }
            scale * factor
        }
    }

    #[inline(always)]
    unsafe fn load_kv<S: Isa, T: Stored>(s: S, row: *const u8, d: usize) -> S::I32 {
        // SAFETY: the row has a vector of elements from `d` on (caller).
        unsafe { s.load_i8_i16(row.cast::<i8>().wrapping_add(d)) }
    }

    #[inline(always)]
    unsafe fn load_kv_partial<S: Isa, T: Stored>(s: S, row: *const u8, d: usize, n: usize) -> S::I32 {
        // SAFETY: the row has `d + n` elements (caller); the array is as long as any vector.
        unsafe { s.load_i8_i16(dtype::padded::<S, T>(s, row, d, n, width::<S, Self>()).as_ptr().cast()) }
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
    fn probability<S: Isa>(s: S, x: S::F32) -> S::F32 {
        // A factor in the exponent costs nothing. NaN stays NaN, which the sum of the probabilities
        // needs.
        let p = s.exp2(s.add(x, s.splat(<Self as Gemv>::P_SCALE.log2())));
        s.sub(s.add(p, s.splat(INTEGERS)), s.splat(INTEGERS))
    }

    #[inline(always)]
    unsafe fn store_probabilities<S: Isa>(s: S, line: *mut f32, key: usize, p: S::F32) {
        // SAFETY: the line has a vector from `key` on (caller).
        unsafe { s.store_i16(line.cast::<i16>().add(key), p) };
    }
}
