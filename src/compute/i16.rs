//! Dot products of 16-bit integers, two at a time: for K and V of 8 bits where there is no instruction for four, or
//! where more is wanted of probabilities than 8 bits.
//!
//! - Scores: sums of products of integers are exact. Queries that are not 8-bit integers with a scale for each row
//!   are quantised, to as many bits as sums of 32 bits allow: nearly 16 up to a head of 514.
//! - Probabilities: integers up to 2^14 at the row's largest score of the block; their sum is that of the rounded
//!   ones.
//! - V is rearranged so that the values of two keys are neighbours; its scale is a factor of the output.

use super::integers::{self, Integers};
use crate::attend::convert;
use crate::attend::rows::{Rows, Source};
use crate::decode::gemv::{Gemv, padded};
use crate::dtype::{Dtype, Stored, i8};
use crate::prefill::gemm::Gemm;
use crate::problem::Storage;
use crate::simd::lane::{Int, MAX_PACK};
use crate::simd::{Body, Isa};

/// The compute family of 16-bit integers.
pub(crate) enum I16 {}

/// The largest number of two signed bytes, 256 times the first one and the second: see
/// [`crate::compute::gemv::digits`].
const TWO_DIGITS: usize = 127 * 256 + 127;

impl Gemm for I16 {
    const NAME: &'static str = "i16";
    const ROUNDS: bool = false;
    const PACK: usize = 2;
    /// What scores are multiplied by.
    const PANEL_HEADER: usize = 1;
    /// 2^14 · 128 times fewer keys, and 127 · 128 times as many elements, stay below 2^31.
    const MAX_KEYS: usize = 1000;
    const MAX_DIM: usize = 1 << 16;
    const INT_ACC: bool = true;
    const P_SCALE: f32 = 16384.0;
    /// Two neighbouring elements, or an element of two neighbouring keys, the first in the lower half.
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
        panel: *mut f32,
        scratch: *mut u8,
    ) -> bool {
        // SAFETY: this function's contract.
        unsafe { integers::pack::<S, I16>(s, source, n, dim, lanes, factor, panel, scratch) }
    }

    #[inline(always)]
    unsafe fn stage_k<S: Isa>(s: S, source: Source, n: usize, dim: usize, to: *mut u8) {
        // SAFETY: this function's contract.
        unsafe { stage(s, Stage { rows: source.rows(), n, dim, to, pairs_from: None }) }
    }

    #[inline(always)]
    unsafe fn stage_v<S: Isa>(s: S, source: Source, n: usize, dim: usize, first: usize, to: *mut u8) -> bool {
        // SAFETY: this function's contract.
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
        reference: S::F32,
        total: &mut S::I32,
    ) -> S::I32 {
        // 2^14 in the exponent costs nothing.
        let reference = s.sub(reference, s.splat(<Self as Gemm>::P_SCALE.log2()));
        let low = s.exp2_roughly(s.sub(low, reference));
        let high = s.exp2_roughly(s.sub(high, reference));
        let p = s.pair_i16(low, high);
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
    fn most(dim: usize) -> f32 {
        // 128 times that, for each element, stays below 2^31.
        (i32::MAX as usize / (128 * dim)).min(TWO_DIGITS) as f32
    }

    #[inline(always)]
    unsafe fn store_elements<S: Isa>(s: S, to: *mut u8, d: usize, x: S::F32) {
        // SAFETY: this function's contract.
        unsafe { s.store_i16(to.cast::<i16>().add(d), x) };
    }

    #[inline(always)]
    unsafe fn offset<S: Isa>(s: S, _words: *const u32, _steps: usize, _lanes: usize) -> S::I32 {
        s.splat_i32(0)
    }
}

/// Rows of K, or groups of V from a key on. Out of line: once for each instruction set, not in each kernel.
///
/// # Safety
/// As [`Gemm::stage_k`] or [`Gemm::stage_v`], for what is in it.
#[inline(never)]
unsafe fn stage<S: Isa>(s: S, body: Stage) {
    s.enter(body);
}

/// Made by [`I16::stage_k`] and [`I16::stage_v`] alone, whose contracts cover what it points to.
struct Stage {
    rows: Rows,
    n: usize,
    dim: usize,
    to: *mut u8,
    /// Of V: the number of the first key among those that are staged.
    pairs_from: Option<usize>,
}

impl Body for Stage {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Stage { rows, n, dim, to, pairs_from } = self;
        // SAFETY: `n` rows of `dim` bytes; staged rows and groups are whole cache lines, and so whole vectors.
        unsafe {
            let Some(first) = pairs_from else {
                for row in 0..n {
                    let to = to.add(row * I16::staged_k_row(dim)).cast::<i16>();
                    for d in (0..dim).step_by(S::LANES) {
                        s.store_i16(to.add(d), elements(s, rows.skip(row), d, dim));
                    }
                }
                return;
            };
            for key in first..first + n {
                let row = rows.skip(key - first);
                let group = to.add(key / 2 * I16::staged_v_row(dim));
                let is_high = key % 2 == 1;
                // The lower one of a pair is written together with the higher one, if that is here.
                let next = key + 1 < first + n && !is_high;
                if is_high && key > first {
                    continue;
                }
                for d in (0..dim).step_by(S::LANES) {
                    let at = group.add(4 * d).cast::<i32>();
                    let x = elements(s, row, d, dim);
                    let zero = s.splat(0.0);
                    let words = if is_high {
                        // Its neighbour came with other rows, the higher half still 0.
                        s.sub_i32(s.load_i32(at), s.sub_i32(s.splat_i32(0), s.pair_i16(zero, x)))
                    } else if next {
                        s.pair_i16(x, elements(s, row.skip(1), d, dim))
                    } else {
                        s.pair_i16(x, zero)
                    };
                    s.store_i32(at, words);
                }
            }
        }
    }
}

/// A vector of elements from element `d` on, 0 behind the last.
///
/// # Safety
/// `row` has `dim` bytes, more than `d`.
#[inline(always)]
unsafe fn elements<S: Isa>(s: S, row: Rows, d: usize, dim: usize) -> S::F32 {
    // SAFETY: this function's contract.
    unsafe {
        if d + S::LANES <= dim {
            i8::I8::load(s, row.base, d)
        } else {
            i8::I8::load_first(s, row.base, d, dim - d)
        }
    }
}

/// 1.5 · 2^23: an f32 next to it is an integer, so that adding it rounds.
const INTEGERS: f32 = 12_582_912.0;

impl Gemv for I16 {
    const NAME: &'static str = <I16 as Gemm>::NAME;
    const DTYPE: Option<Dtype> = Some(Dtype::I8);
    const PACK: usize = 2;
    /// [`Gemv::P_SCALE`] · 128 times fewer keys stay below 2^31.
    const MAX_KEYS: usize = 512;
    const INT_ACC: bool = true;
    /// Twice as fine as where many rows are computed, as blocks are longer: probabilities are relative to the largest score of
    /// one.
    const P_SCALE: f32 = 32_767.0;
    type Operand = Int;
    type Weight = Int;
    type Sum = Int;

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
    unsafe fn load_kv<S: Isa, T: Stored>(s: S, row: *const u8, d: usize) -> S::I32 {
        // SAFETY: this function's contract.
        unsafe { s.load_i8_i16(row.cast::<i8>().wrapping_add(d)) }
    }

    #[inline(always)]
    unsafe fn load_kv_partial<S: Isa, T: Stored>(s: S, row: *const u8, d: usize, n: usize) -> S::I32 {
        // SAFETY: this function's contract; an array is longer than any vector of bytes.
        unsafe { s.load_i8_i16(padded(row, d, n, 1).as_ptr().cast()) }
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
        // A factor in the exponent costs nothing; NaN stays, which the sum of the probabilities needs.
        let p = s.exp2(s.add(x, s.splat(<Self as Gemv>::P_SCALE.log2())));
        s.sub(s.add(p, s.splat(INTEGERS)), s.splat(INTEGERS))
    }

    #[inline(always)]
    unsafe fn store_probabilities<S: Isa>(s: S, line: *mut f32, key: usize, p: S::F32) {
        // SAFETY: this function's contract.
        unsafe { s.store_i16(line.cast::<i16>().add(key), p) };
    }
}
