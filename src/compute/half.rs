//! Numbers of 16 bits, with dot products of pairs: pairs of elements for scores, pairs of keys for
//! outputs. Sums and softmax are f32. The numbers are bf16, or of the format that the token has
//! ([`Isa::half_format`]): f16 on tiles, in prefill.
//!
//! Queries that are stored in that format are used as they are; others are scaled and rounded once.
//! Probabilities are rounded to it, but not their sum. In prefill, V is staged: the values of two
//! keys are interleaved, a block of keys at a time. In decode, K is multiplied in place, and the
//! values of two keys are interleaved as they are loaded.

use crate::attend::convert;
use crate::attend::fold::Folding;
use crate::attend::rows::{Rows, Source, copy_rows, row_scratch, rows_as_f32};
use crate::decode::gemv::{Gemv, width};
use crate::dtype::{self, Dtype, Stored, bf16, f32};
use crate::prefill::gemm::Gemm;
use crate::problem::{Accuracy, Storage};
use crate::simd::half::Format;
use crate::simd::lane::{Float, Int, MAX_PACK};
use crate::simd::transpose::{TransposeTile, transpose_partial};
use crate::simd::{Body, Isa, MAX_LANES, half};

/// The compute type of 16-bit numbers.
pub(crate) enum Half {}

/// The storage type whose numbers are of a format.
#[inline(always)]
fn stored_as(format: Format) -> Dtype {
    match format {
        Format::Bf16 => Dtype::Bf16,
        Format::F16 => Dtype::F16,
    }
}

/// What 16-bit numbers of a format are multiplied by, read as bf16, so that infinity and NaN are
/// those of bf16, and no other number becomes one: f16 has three bits of exponent less.
#[inline(always)]
fn to_the_end(format: Format) -> f32 {
    match format {
        Format::Bf16 => 1.0,
        Format::F16 => 128.0,
    }
}

impl Gemm for Half {
    const NAME: &'static str = "bf16";
    const ACCURACY: Accuracy = Accuracy::AsStored;
    const PACK: usize = 2;
    /// One line: the factor of the scores.
    const PANEL_HEADER: usize = 1;
    const MAX_KEYS: usize = usize::MAX;
    const MAX_DIM: usize = usize::MAX;
    const INT_ACC: bool = false;
    const P_SCALE: f32 = 1.0;
    /// A word is a pair of neighbouring elements, or of the values of neighbouring keys, the first
    /// one in the lower half.
    type Operand = Int;
    type Sum = Float;

    #[inline(always)]
    fn takes(storage: &Storage) -> bool {
        storage.dtypes[1..] == [Dtype::Bf16; 2]
    }

    #[inline(always)]
    fn on<S: Isa>(s: S, storage: &Storage) -> Option<S> {
        s.with_half_format(if storage.dtypes[1] == Dtype::F16 { Format::F16 } else { Format::Bf16 })
    }

    /// Probabilities reach 2^15, so that f16 has all its bits down to 2^-21 of the largest one, and
    /// values are below 2^16. Those of bf16 may be as large as f32 allows.
    #[inline(always)]
    fn headroom<S: Isa>(s: S) -> f32 {
        match s.half_format() {
            Format::Bf16 => 0.0,
            Format::F16 => 7.0,
        }
    }

    #[inline(always)]
    fn query_scratch(dtype: Dtype, dim: usize) -> usize {
        row_scratch(dtype, dim)
    }

    #[inline(always)]
    fn reads_k(dtype: Dtype, dim: usize) -> bool {
        // A pair must not reach beyond the row.
        matches!(dtype, Dtype::Bf16 | Dtype::F16) && dim.is_multiple_of(2)
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
        _folding: Option<&Folding>,
        panel: *mut f32,
        scratch: *mut u8,
    ) -> bool {
        // Queries of the format are exact without the factor; the scores are multiplied by it. So
        // they are where others are multiplied by a power of two, to be in the range of f16.
        let format = s.half_format();
        let is_exact = source.dtype() == stored_as(format);
        let moves = format == Format::F16 && !is_exact;
        let [factor, later] = if is_exact || moves { [1.0, factor] } else { [factor, 1.0] };
        let scale = s.splat(factor);
        // SAFETY: the panel has a line for the header before those of the steps (caller).
        let steps = unsafe { panel.add(Self::PANEL_HEADER * lanes) };
        for first in (0..lanes).step_by(S::LANES) {
            let here = n.saturating_sub(first).min(S::LANES);
            // SAFETY: `here` rows from `first` on, and room for a vector of them (caller).
            let from = unsafe {
                s.store(panel.add(first), s.splat(later));
                rows_as_f32(s, source.skip(first), here, dim, scratch)
            };
            let mut up = [1f32; MAX_LANES];
            if moves {
                // SAFETY: `here` rows of `dim` f32; the panel has a vector of the first line.
                unsafe {
                    powers(s, Powers { rows: from, n: here, dim, up: &mut up });
                    let mut down = up;
                    down.iter_mut().for_each(|x| *x = later / *x);
                    s.store(panel.add(first), s.load(down.as_ptr()));
                }
            }
            for d in (0..dim).step_by(S::LANES) {
                let mut square = TransposeTile::uninit();
                let square = square.as_mut_ptr().cast::<f32>();
                let width = S::LANES.min(dim - d);
                // SAFETY: `here` rows and columns below `dim` exist; the square has LANES lines of
                // LANES, and the panel `lanes` in each step.
                unsafe {
                    let q = from.base.cast::<f32>().wrapping_add(d);
                    if width == S::LANES {
                        transpose_partial(s, q, from.stride, here, square, S::LANES * 4, Some(scale));
                    } else {
                        for i in 0..S::LANES * S::LANES {
                            let (column, lane) = (i / S::LANES, i % S::LANES);
                            let is_there = lane < here && column < width;
                            let x = if is_there {
                                q.wrapping_byte_add(lane * from.stride).wrapping_add(column).read_unaligned()
                            } else {
                                0.0
                            };
                            square.add(i).write(x * factor);
                        }
                    }
                    for pair in 0..width.div_ceil(2) {
                        let mut rounded = [0u16; 2 * MAX_LANES];
                        let (low, high) = (rounded.as_mut_ptr(), rounded.as_mut_ptr().add(MAX_LANES));
                        for (at, i) in [(low, 2 * pair), (high, 2 * pair + 1)] {
                            let x = s.load(square.add(i * S::LANES));
                            match format {
                                Format::Bf16 => s.store_bf16(at, x),
                                Format::F16 => s.store_f16(at, s.mul(x, s.load(up.as_ptr()))),
                            }
                        }
                        let words = s.pack_bf16(s.load_bf16(low), s.load_bf16(high));
                        s.store_i32(steps.add((d / 2 + pair) * lanes + first).cast(), words);
                    }
                }
            }
        }
        false
    }

    #[inline(always)]
    unsafe fn stage_k<S: Isa>(_s: S, source: Source, n: usize, dim: usize, _first: usize, to: *mut u8) {
        // SAFETY: `n` rows of `dim` elements, and room for them staged (caller).
        unsafe { copy_rows(source.rows(), n, 2 * dim, to, Self::staged_k_row(dim), 4 * Self::steps(dim)) }
    }

    #[inline(always)]
    unsafe fn stage_v<S: Isa>(s: S, source: Source, n: usize, dim: usize, first: usize, to: *mut u8) -> bool {
        // SAFETY: `n` rows of `dim` elements, and room for their groups (caller).
        unsafe { interleave(s, Interleave { source, n, dim, first, to, format: s.half_format() }) }
    }

    #[inline(always)]
    fn add_score<S: Isa>(s: S, q: S::I32, k: S::I32, sum: S::F32) -> S::F32 {
        s.dot_bf16(sum, q, k)
    }

    #[inline(always)]
    fn probabilities<S: Isa>(
        s: S,
        [low, high, ..]: [S::F32; MAX_PACK],
        running_max: S::F32,
        total: &mut S::F32,
    ) -> S::I32 {
        let low = s.exp2_approx(s.sub(low, running_max));
        *total = s.add(*total, low);
        let high = s.exp2_approx(s.sub(high, running_max));
        *total = s.add(*total, high);
        // NaN need not survive rounding: the sum of the probabilities has it.
        match s.half_format() {
            Format::Bf16 => s.pack_bf16_rounded(low, high),
            Format::F16 => s.pack_f16(low, high),
        }
    }

    #[inline(always)]
    fn add_value<S: Isa>(s: S, p: S::I32, v: S::I32, sum: S::F32) -> S::F32 {
        s.dot_bf16(sum, p, v)
    }

    #[inline(always)]
    fn probability(word: u32, key: usize) -> f32 {
        // It is multiplied by what is not finite: of f16, too, this is 0 where it is 0.
        half::from_bf16((word >> (16 * key)) as u16)
    }
}

/// [`Gemm::stage_v`], kept out of line, so that the code exists once for each instruction set and
/// not in each kernel.
///
/// # Safety
/// The pointers of `body` are as [`Gemm::stage_v`] asks.
#[inline(never)]
unsafe fn interleave<S: Isa>(s: S, body: Interleave) -> bool {
    s.core().enter(body)
}

/// The arguments of [`interleave`]. Only [`Half::stage_v`] makes one, whose caller vouches for its
/// pointers.
struct Interleave<'a> {
    source: Source<'a>,
    n: usize,
    dim: usize,
    first: usize,
    to: *mut u8,
    format: Format,
}

impl Body for Interleave<'_> {
    type Out = bool;

    #[inline(always)]
    fn run<S: Isa>(self, s: S) -> bool {
        let Interleave { source, n, dim, first, to, format } = self;
        let (rows, end) = (source.rows(), s.splat(to_the_end(format)));
        // 0 as long as all values are finite, NaN afterwards.
        let mut nonfinite = s.splat(0.0);
        let mut key = first;
        while key < first + n {
            let low = rows.skip(key - first).base;
            let has_high = key.is_multiple_of(2) && key + 1 < first + n;
            let high = rows.skip(key + 1 - first).base;
            let group = to.wrapping_add(key / 2 * Half::staged_v_row(dim)).cast::<i32>();
            for d in (0..dim).step_by(S::LANES) {
                // SAFETY: elements below `dim` of the caller's rows; groups have room for whole
                // vectors, because they are whole cache lines.
                unsafe {
                    let at = group.wrapping_add(d);
                    let low = values(s, low, d, dim, end, &mut nonfinite);
                    let words = if has_high {
                        s.pack_bf16(low, values(s, high, d, dim, end, &mut nonfinite))
                    } else if key.is_multiple_of(2) {
                        s.pack_bf16(low, s.splat(0.0))
                    } else {
                        // The other key of the pair was staged before.
                        s.pack_bf16(s.low_bf16(s.load_i32(at)), low)
                    };
                    s.store_i32(at, words);
                }
            }
            key += if has_high { 2 } else { 1 };
        }
        s.horizontal_sum(nonfinite).is_nan()
    }
}

/// A vector of values from element `d` on, as if they were bf16, with 0 behind the last and where a
/// value is not finite; such a value makes `nonfinite` NaN. `end` is that of [`to_the_end`].
///
/// # Safety
/// `row` has `dim` numbers of 16 bits.
#[inline(always)]
unsafe fn values<S: Isa>(
    s: S,
    row: *const u8,
    d: usize,
    dim: usize,
    end: S::F32,
    nonfinite: &mut S::F32,
) -> S::F32 {
    // SAFETY: the row has `dim` elements (caller).
    let x = unsafe { bf16::Bf16::load_rest(s, row, d, dim) };
    let at_end = s.mul(x, end);
    let zero_or_nan = s.sub(at_end, at_end);
    *nonfinite = s.add(*nonfinite, zero_or_nan);
    s.select(s.gt(s.splat(1.0), zero_or_nan), x, s.splat(0.0))
}

/// [`Powers`], kept out of line: queries of other types than K and V are not the usual ones.
///
/// # Safety
/// There are as many rows as `body` says.
#[inline(never)]
unsafe fn powers<S: Isa>(s: S, body: Powers) {
    s.core().enter(body);
}

/// The powers of two that bring rows of queries into the range of f16: the largest finite element
/// of each becomes at least 2^14, and less than 2^15. So 29 powers of two below it keep all their
/// bits. Only [`powers`] takes one, whose caller vouches for the rows.
struct Powers<'a> {
    rows: Rows,
    n: usize,
    dim: usize,
    up: &'a mut [f32; MAX_LANES],
}

impl Body for Powers<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        const BIAS: u32 = 127;
        let zero = s.splat(0.0);
        for (row, up) in self.up.iter_mut().enumerate().take(self.n) {
            let mut largest = zero;
            for d in (0..self.dim).step_by(S::LANES) {
                // SAFETY: I2: a row of `dim` f32 (caller).
                let x = unsafe { f32::F32::load_rest(s, self.rows.skip(row).base, d, self.dim) };
                let magnitude = s.max(x, s.sub(zero, x));
                let is_finite = s.gt(s.splat(f32::INFINITY), magnitude);
                largest = s.max(s.select(is_finite, magnitude, zero), largest);
            }
            let exponent = s.horizontal_max(largest).to_bits() >> 23;
            // Its inverse is a normal number, too.
            *up = f32::from_bits((2 * BIAS + 14 - exponent).min(2 * BIAS - 1) << 23);
        }
    }
}

impl Gemv for Half {
    const NAME: &'static str = <Half as Gemm>::NAME;
    const DTYPE: Option<Dtype> = Some(Dtype::Bf16);
    type Own = bf16::Bf16;
    const PACK: usize = 2;
    const MAX_KEYS: usize = usize::MAX;
    const INT_ACC: bool = false;
    const P_SCALE: f32 = 1.0;
    type Operand = Int;
    type Weight = Int;
    type Sum = Float;

    #[inline(always)]
    unsafe fn pack<S: Isa>(s: S, source: Source, dim: usize, factor: f32, to: *mut f32) -> f32 {
        // Queries of bf16 are exact without the factor; the scores are multiplied by it.
        let [factor, later] = if source.dtype() == Dtype::Bf16 { [1.0, factor] } else { [factor, 1.0] };
        let mut from = source.rows().base.cast::<f32>();
        if source.dtype() != Dtype::F32 {
            // SAFETY: one row of `dim` elements; `to` has room for as many f32 (caller).
            unsafe { convert::convert(s, source, 1, dim, to.cast()) };
            from = to;
        }
        let factor = s.splat(factor);
        let words = to.cast::<u16>();
        for d in (0..dim.next_multiple_of(2 * S::LANES)).step_by(S::LANES) {
            // SAFETY: elements below `dim` of the row, and room for whole vectors of words
            // (caller). In place, halves are written over elements that have been read.
            unsafe {
                let x = if d < dim { f32::F32::load_rest(s, from.cast(), d, dim) } else { s.splat(0.0) };
                s.store_bf16(words.add(d), s.mul(x, factor));
            }
        }
        later
    }

    #[inline(always)]
    unsafe fn load_kv<S: Isa, T: Stored>(s: S, row: *const u8, d: usize) -> S::I32 {
        // SAFETY: the row has a vector of elements from `d` on (caller).
        unsafe { s.load_i32(row.cast::<u16>().wrapping_add(d).cast()) }
    }

    #[inline(always)]
    unsafe fn load_kv_partial<S: Isa, T: Stored>(s: S, row: *const u8, d: usize, n: usize) -> S::I32 {
        // SAFETY: the row has `d + n` elements (caller); the array is as long as any vector.
        unsafe { s.load_i32(dtype::padded::<S, T>(s, row, d, n, width::<S, Self>()).as_ptr().cast()) }
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
    fn probability<S: Isa>(s: S, x: S::F32) -> S::F32 {
        s.exp2(x)
    }

    #[inline(always)]
    unsafe fn store_probabilities<S: Isa>(s: S, line: *mut f32, key: usize, p: S::F32) {
        // SAFETY: the line has a vector from `key` on (caller).
        unsafe { s.store_bf16(line.cast::<u16>().add(key), p) };
    }

    #[inline(always)]
    unsafe fn load_sums<S: Isa>(s: S, from: *const f32) -> [S::F32; MAX_PACK] {
        // SAFETY: `PACK` vectors (caller).
        let [low, high] = unsafe { s.interleave([s.load(from), s.load(from.add(S::LANES))]) };
        [low, high, low, high]
    }

    #[inline(always)]
    unsafe fn store_sums<S: Isa>(s: S, to: *mut f32, [low, high, ..]: [S::F32; MAX_PACK]) {
        let [first, second] = s.deinterleave([low, high]);
        // SAFETY: `PACK` vectors (caller).
        unsafe {
            s.store(to, first);
            s.store(to.add(S::LANES), second);
        }
    }
}
