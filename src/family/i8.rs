//! Dot products of 8-bit integers, four at a time: unsigned ones with signed ones, sums in 32 bits.
//!
//! - Scores: K becomes unsigned by adding 128, a block of keys at a time, and Q stays signed. Sums begin with
//!   -128 · Σ q, so that they end as Σ q · k, exactly. Queries of other types are quantised, a row each.
//! - Probabilities: unsigned, 255 at the row's largest score of the block; their sum is that of the rounded ones.
//! - V is rearranged so that the values of four keys are neighbours; its scale is a factor of the output.
//!
//! As in SageAttention (arXiv:2410.02367) and I-BERT's integer softmax (arXiv:2101.01321) before it.

use super::{Family, Rows, Source, convert, copy_rows, plain_rows};
use crate::dtype::Dtype;
use crate::problem::Storage;
use crate::simd::{Body, Isa, MAX_LANES};
use crate::view::Grain;

/// The compute family of 8-bit integers.
pub(crate) enum I8 {}

/// Elements of a word.
const WORD: usize = 4;

impl Family for I8 {
    const NAME: &'static str = "i8";
    const ROUNDS: bool = true;
    const KEYS: usize = WORD;
    /// What scores are multiplied by, and what their sums begin with.
    const HEAD: usize = 2;
    /// 255 · 128 times as many stay below 2^31.
    const MOST: [usize; 2] = [1 << 16; 2];
    const BLOCKWISE: bool = true;
    const ONE: f32 = 255.0;
    /// Four neighbouring elements, or an element of four neighbouring keys, from the lowest byte on.
    type Words<S: Isa> = S::I32;
    type Sum<S: Isa> = S::I32;

    #[inline(always)]
    fn takes(storage: &Storage) -> bool {
        let Storage { dtypes: [_, k, v], grains: [_, grain_k, grain_v] } = *storage;
        k == Dtype::I8 && v == Dtype::I8 && grain_k != Grain::Finer && grain_v == Grain::Head
    }

    #[inline(always)]
    fn query_room(_dtype: Dtype, dim: usize) -> usize {
        convert::row_bytes(dim)
    }

    #[inline(always)]
    fn steps(dim: usize) -> usize {
        dim.div_ceil(WORD)
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
    fn staged_k_row(dim: usize) -> usize {
        // An odd number of cache lines, as everywhere; saturates where no machine has the memory.
        (dim.div_ceil(64) | 1).saturating_mul(64)
    }

    #[inline(always)]
    fn staged_v_row(dim: usize) -> usize {
        convert::row_bytes(dim)
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
        room: *mut u8,
    ) -> bool {
        let mut doubtful = false;
        for first in (0..lanes).step_by(S::LANES) {
            let here = n.saturating_sub(first).min(S::LANES);
            let pack = Pack { source: source.skip(first), n: here, dim, lanes, factor, room };
            // SAFETY: `here` rows from `first` on, and a vector's part of the panel (caller).
            doubtful |= unsafe { pack_vector(s, pack, panel.add(first)) };
        }
        doubtful
    }

    #[inline(always)]
    unsafe fn stage_k<S: Isa>(s: S, source: Source, n: usize, dim: usize, to: *mut u8) {
        let stride = Self::staged_k_row(dim);
        // SAFETY: this function's contract; staged rows are whole vectors.
        unsafe {
            copy_rows(source.rows(), n, dim, to, stride, WORD * Self::steps(dim));
            let sign = s.splat_i32(i32::from_ne_bytes([0x80; WORD]));
            for row in 0..n {
                for word in (0..Self::steps(dim)).step_by(S::LANES) {
                    let at = to.add(row * stride + word * WORD).cast::<i32>();
                    s.store_i32(at, s.xor(s.load_i32(at), sign));
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn stage_v<S: Isa>(s: S, source: Source, n: usize, dim: usize, first: usize, to: *mut u8) -> bool {
        // SAFETY: this function's contract.
        unsafe { interleave(s, Interleave { rows: source.rows(), n, dim, first, to }) }
        false
    }

    #[inline(always)]
    unsafe fn begin_score<S: Isa>(s: S, panel: *const f32, lanes: usize) -> S::I32 {
        // SAFETY: this function's contract: the second line is what sums begin with.
        unsafe { s.load_i32(panel.add(lanes).cast()) }
    }

    #[inline(always)]
    fn add_score<S: Isa>(s: S, q: S::I32, k: S::I32, sum: S::I32) -> S::I32 {
        s.dot_u8_i8(sum, k, q)
    }

    #[inline(always)]
    unsafe fn end_score<S: Isa>(s: S, panel: *const f32, sum: S::I32) -> S::F32 {
        // SAFETY: this function's contract: the first line is the factor.
        s.mul(s.to_f32(sum), unsafe { s.load(panel) })
    }

    #[inline(always)]
    fn make<S: Isa>(s: S, scores: [S::F32; 4], reference: S::F32, total: &mut S::I32) -> S::I32 {
        let p = s.powers_u8(scores, reference);
        *total = s.dot_u8_i8(*total, p, s.splat_i32(0x0101_0101));
        p
    }

    #[inline(always)]
    fn zero<S: Isa>(s: S) -> S::I32 {
        s.splat_i32(0)
    }

    #[inline(always)]
    fn resume<S: Isa>(s: S, _sum: S::F32) -> S::I32 {
        s.splat_i32(0)
    }

    #[inline(always)]
    fn add<S: Isa>(s: S, p: S::I32, v: S::I32, sum: S::I32) -> S::I32 {
        s.dot_u8_i8(sum, p, v)
    }

    #[inline(always)]
    fn total<S: Isa>(s: S, sum: S::I32, weight: S::F32) -> S::F32 {
        s.mul(s.to_f32(sum), weight)
    }

    #[inline(always)]
    unsafe fn load<S: Isa>(s: S, p: *const f32) -> S::I32 {
        // SAFETY: this function's contract.
        unsafe { s.load_i32(p.cast()) }
    }

    #[inline(always)]
    unsafe fn store<S: Isa>(s: S, p: *mut f32, x: S::I32) {
        // SAFETY: this function's contract.
        unsafe { s.store_i32(p.cast(), x) };
    }

    #[inline(always)]
    unsafe fn value<S: Isa>(s: S, v: *const u8) -> S::I32 {
        // SAFETY: this function's contract.
        s.splat_i32(unsafe { v.cast::<i32>().read_unaligned() })
    }

    #[inline(always)]
    fn probability(word: u32, key: usize) -> f32 {
        f32::from((word >> (8 * key)) as u8) / Self::ONE
    }
}

/// Some queries of [`Family::pack_query`]: not more than a vector has lanes.
struct Pack<'a> {
    source: Source<'a>,
    n: usize,
    dim: usize,
    lanes: usize,
    factor: f32,
    room: *mut u8,
}

/// Packs them into the vector of each line that begins at `panel`. Out of line: once for each instruction set,
/// not in each kernel.
///
/// # Safety
/// As [`Family::pack_query`], for what is in it.
#[inline(never)]
unsafe fn pack_vector<S: Isa>(s: S, pack: Pack, panel: *mut f32) -> bool {
    s.enter(PackVector { pack, panel })
}

/// Made by [`pack_vector`] alone, whose contract covers what it points to.
struct PackVector<'a> {
    pack: Pack<'a>,
    panel: *mut f32,
}

impl Body for PackVector<'_> {
    type Out = bool;

    #[inline(always)]
    fn run<S: Isa>(self, s: S) -> bool {
        let PackVector { pack: Pack { source, n, dim, lanes, factor, room }, panel } = self;
        let quant = source.view.quant();
        let is_direct = source.dtype() == Dtype::I8 && quant.is_none_or(|q| q.grain(false) != Grain::Finer);
        let (steps, stride) = (I8::steps(dim), convert::row_bytes(dim));
        let mut factors = [0.0; MAX_LANES];
        // SAFETY: the contract of `pack_vector`, which made this: `n` rows, as much room for each as for a row
        // of f32, and a vector in each line of the panel.
        unsafe {
            if is_direct {
                copy_rows(source.rows(), n, dim, room, stride, WORD * steps);
            } else {
                let rows = plain_rows(s, source, n, dim, room);
                for (row, factor) in factors.iter_mut().enumerate().take(n) {
                    *factor = quantise(s, rows.skip(row), dim, room.add(row * stride));
                }
            }
            let mut doubtful = false;
            for (row, x) in factors.iter_mut().enumerate().take(n) {
                if is_direct {
                    *x = quant.map_or(1.0, |quant| quant.of(quant.at(source.skip(row).at), 0)[0]);
                }
                *x *= factor;
                doubtful |= !x.is_finite();
            }
            s.store(panel, s.load(factors.as_ptr()));
            let words = panel.add(I8::HEAD * lanes).cast::<u32>();
            for step in 0..steps {
                for lane in 0..S::LANES {
                    let word =
                        if lane < n { room.add(lane * stride + step * WORD).cast::<u32>().read() } else { 0 };
                    words.add(step * lanes + lane).write(word);
                }
            }
            let mut sum = s.splat_i32(0);
            let offset = s.splat_i32(i32::from_ne_bytes([0x80; WORD]));
            for step in 0..steps {
                sum = s.dot_u8_i8(sum, offset, s.load_i32(words.add(step * lanes).cast()));
            }
            s.store_i32(panel.add(lanes).cast(), s.sub_i32(s.splat_i32(0), sum));
            doubtful
        }
    }
}

/// One row of f32 as whole words of 8-bit integers, whose largest is 127; what these are to be multiplied by,
/// NaN if an element is not finite.
///
/// # Safety
/// A row of `dim` f32, and room for [`convert::row_bytes`] at `to`, which may be where the row is.
#[inline(always)]
unsafe fn quantise<S: Isa>(s: S, row: Rows, dim: usize, to: *mut u8) -> f32 {
    let from = row.base.cast::<f32>();
    let zero = s.splat(0.0);
    let mut largest = zero;
    // 0 as long as all elements are finite, else NaN.
    let mut suspicion = zero;
    // SAFETY: this function's contract. In place, a byte is written after the element of its number was read.
    unsafe {
        for d in (0..dim).step_by(S::LANES) {
            let at = from.wrapping_add(d);
            let x = if d + S::LANES <= dim { s.load(at) } else { s.load_first(at, dim - d) };
            largest = s.max(s.max(x, s.sub(zero, x)), largest);
            suspicion = s.add(suspicion, s.sub(x, x));
        }
        let largest = s.largest(largest);
        let is_finite = !s.total(suspicion).is_nan();
        let inverse = 127.0 / largest;
        // Rows that are next to 0 are 0.
        let scale = if inverse.is_finite() { inverse } else { 0.0 };
        for d in (0..dim).step_by(S::LANES) {
            let at = from.wrapping_add(d);
            let x = if d + S::LANES <= dim { s.load(at) } else { s.load_first(at, dim - d) };
            // A whole vector of bytes, behind the last element zeros: the elements, four times as long and in whole
            // cache lines, had room for them.
            s.store_i8(to.add(d).cast(), s.mul(x, s.splat(scale)));
        }
        if is_finite { largest / 127.0 } else { f32::NAN }
    }
}

/// See [`Family::stage_v`]. Out of line: once for each instruction set, not in each kernel.
///
/// # Safety
/// As there, for what is in it.
#[inline(never)]
unsafe fn interleave<S: Isa>(s: S, body: Interleave) {
    s.enter(body);
}

/// Made by [`I8::stage_v`] alone, whose contract covers what it points to.
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
        let mut key = first;
        while key < first + n {
            let row = rows.skip(key - first);
            let group = to.wrapping_add(key / WORD * I8::staged_v_row(dim));
            // SAFETY: rows `first..first + n`, and the group that has the key.
            unsafe {
                if key.is_multiple_of(WORD) && key + WORD <= first + n {
                    let four = [row.base, row.skip(1).base, row.skip(2).base, row.skip(3).base];
                    let whole = dim - dim % S::LANES;
                    for d in (0..whole).step_by(S::LANES) {
                        s.store_i32(group.add(WORD * d).cast(), s.load_quads(four, d));
                    }
                    for (i, row) in four.into_iter().enumerate() {
                        one_key(row, whole..dim, group, i);
                    }
                    key += WORD;
                } else {
                    if key.is_multiple_of(WORD) {
                        clear(group, WORD * dim);
                    }
                    one_key(row.base, 0..dim, group, key % WORD);
                    key += 1;
                }
            }
        }
    }
}

/// Zeros. Out of line: compilers make a call of it anyway, which does not belong into kernels.
///
/// # Safety
/// `to` has room for so many bytes.
#[inline(never)]
unsafe fn clear(to: *mut u8, bytes: usize) {
    // SAFETY: this function's contract.
    unsafe { to.write_bytes(0, bytes) };
}

/// Some values of one key, the one of number `i` of its group.
///
/// # Safety
/// `row` has these elements, `group` a word for each.
#[inline(never)]
unsafe fn one_key(row: *const u8, elements: std::ops::Range<usize>, group: *mut u8, i: usize) {
    for d in elements {
        // SAFETY: this function's contract.
        unsafe { group.add(WORD * d + i).write(row.wrapping_add(d).read()) };
    }
}
