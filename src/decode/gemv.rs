//! How a compute type multiplies where query rows are few and lanes are elements of a head.
//!
//! A lane multiplies a 32-bit word at a time: one element, or [`Gemv::PACK`] neighbouring ones. So
//! a vector holds `PACK` times as many elements as it has lanes. Of V, a word holds one element of
//! `PACK` neighbouring keys, and what belongs to a vector of elements fills `PACK` vectors, in the
//! order of [`Lane::interleave`].

use crate::attend::rows::Source;
use crate::dtype::{Dtype, Stored};
use crate::simd::lane::{Lane, MAX_PACK, Registers};
use crate::simd::{Isa, MAX_LANES};

/// Words of K or V in registers.
pub(crate) type Operand<S, P> = <<P as Gemv>::Operand as Registers>::Of<S>;
/// What operands are multiplied by: words of a query, or probabilities.
pub(crate) type Weight<S, P> = <<P as Gemv>::Weight as Registers>::Of<S>;
/// Sums of products in registers, one a lane.
pub(crate) type Sum<S, P> = <<P as Gemv>::Sum as Registers>::Of<S>;
/// Sums of products as one vector of numbers.
pub(crate) type SumLane<S, P> = <SumOf<P> as Registers>::Of<S>;
/// What such a vector holds.
pub(crate) type SumOf<P> = <<P as Gemv>::Sum as Registers>::Lane;

/// Products of query rows with K, and of probabilities with V, as [`crate::decode`] strings them
/// together.
///
/// All functions that take pointers need the elements that they name, valid for reads, or whole
/// vectors, valid for writes.
pub(crate) trait Gemv: 'static {
    /// Its name, for people.
    const NAME: &'static str;
    /// What K and V are stored as, if the type multiplies them as they are stored; `None` if it
    /// converts any type.
    const DTYPE: Option<Dtype>;
    /// Whether blocks of elements have scales beside them (Q8_0): then
    /// [`crate::decode::block_scaled`] takes the place of the loops over rows without such scales.
    const BLOCK_SCALED: bool = false;
    /// Elements of a word, and keys that are weighted at a time: 1, 2 or 4.
    const PACK: usize;
    /// Query rows of a register tile, at most.
    const MAX_ROWS: usize = usize::MAX;
    /// Keys of a block, at most, that sums can take.
    const MAX_KEYS: usize;
    /// Whether the sums of a block are integers: relative to the largest score of the block, begun
    /// with 0, and weighted where blocks meet. Else they continue those of the blocks before.
    const INT_ACC: bool;
    /// What a probability of 1 counts in the sums.
    const P_SCALE: f32;
    /// Words of K or V.
    type Operand: Lane;
    /// What they are multiplied by.
    type Weight: Registers;
    /// Sums of products.
    type Sum: Registers;

    /// Packs a query row, zeros behind it up to whole vectors of words. Returns what its scores are
    /// still to be multiplied by; scores are dot products times `factor`, in log2 units.
    ///
    /// # Safety
    /// `source` has a row of `dim` elements; `to` holds a row of f32 in as many vectors.
    unsafe fn pack<S: Isa>(s: S, source: Source, dim: usize, factor: f32, to: *mut f32) -> f32;

    /// Elements of a packed query row from element `d` on.
    ///
    /// # Safety
    /// `line` is a packed row with a vector of elements from `d` on.
    #[inline(always)]
    unsafe fn query<S: Isa>(s: S, line: *const f32, d: usize) -> Weight<S, Self> {
        // SAFETY: an element takes 4 / PACK bytes of the packed row, which has them (caller).
        unsafe { Self::Weight::load(s, line.byte_add(d * (4 / Self::PACK))) }
    }

    /// What the sums of a score with a packed query row of `dim` elements begin with. With
    /// [`Gemv::BLOCK_SCALED`], what is to be taken from those of the two blocks of a vector of
    /// elements from `d` on.
    ///
    /// # Safety
    /// `line` is a packed row of `dim` elements.
    #[inline(always)]
    unsafe fn begin<S: Isa>(s: S, _line: *const f32, _dim: usize, _d: usize) -> Sum<S, Self> {
        Self::Sum::zero(s)
    }

    /// Elements of a row of K or V from element `d` on, stored as `T`.
    ///
    /// # Safety
    /// The row has a vector of elements from `d` on.
    unsafe fn load_kv<S: Isa, T: Stored>(s: S, row: *const u8, d: usize) -> Operand<S, Self>;

    /// The first `n` elements of [`Gemv::load_kv`], fewer than a vector has; the others are 0.
    ///
    /// # Safety
    /// The row has `d + n` elements.
    unsafe fn load_kv_partial<S: Isa, T: Stored>(
        s: S,
        row: *const u8,
        d: usize,
        n: usize,
    ) -> Operand<S, Self>;

    /// Words of K as they are multiplied.
    #[inline(always)]
    fn key_operand<S: Isa>(_s: S, words: Operand<S, Self>) -> Operand<S, Self> {
        words
    }

    /// `sum` and the products of words of a query and of K.
    fn add_score<S: Isa>(s: S, q: Weight<S, Self>, k: Operand<S, Self>, sum: Sum<S, Self>) -> Sum<S, Self>;

    /// `sum` and the products of probabilities and words of V.
    fn add_value<S: Isa>(s: S, p: Weight<S, Self>, v: Operand<S, Self>, sum: Sum<S, Self>) -> Sum<S, Self>;

    /// The products of words of a query and of K alone.
    #[inline(always)]
    fn product<S: Isa>(s: S, q: Weight<S, Self>, k: Operand<S, Self>) -> SumLane<S, Self> {
        Self::Sum::collapse(s, Self::add_score(s, q, k, Self::Sum::zero(s)))
    }

    /// The sums of each half of the first `LANES` vectors, each in the lane of its number, less
    /// what [`Gemv::begin`] gave: for [`Gemv::BLOCK_SCALED`].
    #[inline(always)]
    fn sums_of_halves<S: Isa>(
        s: S,
        vectors: &[SumLane<S, Self>; MAX_LANES],
        _begin: Sum<S, Self>,
    ) -> [S::F32; 2] {
        [SumOf::<Self>::sums(s, vectors), s.splat(0.0)]
    }

    /// The probability 2^`x`, times [`Gemv::P_SCALE`], as it counts in the sum of probabilities.
    /// `x` is at most [`crate::attend::RESCALE_THRESHOLD`], or at most 0 with [`Gemv::INT_ACC`].
    fn probability<S: Isa>(s: S, x: S::F32) -> S::F32;

    /// Writes a vector of probabilities of keys from `key` on, rounded, into a line of f32. Nothing
    /// before `key + LANES` of the line is still to be read.
    ///
    /// # Safety
    /// The line has a vector from `key` on.
    unsafe fn store_probabilities<S: Isa>(s: S, line: *mut f32, key: usize, p: S::F32);

    /// The probability of a key in all lanes: of [`Gemv::PACK`] keys from a multiple of that on.
    ///
    /// # Safety
    /// [`Gemv::store_probabilities`] has written them.
    #[inline(always)]
    unsafe fn weight<S: Isa>(s: S, line: *const f32, key: usize) -> Weight<S, Self> {
        // SAFETY: a probability takes 4 / PACK bytes of the line, which has this one (caller).
        unsafe { Self::Weight::broadcast(s, line.byte_add(key * (4 / Self::PACK)).cast()) }
    }

    /// [`Gemv::weight`] of the first line for the lower half of a vector, and of the second line
    /// for the upper half: for [`Gemv::BLOCK_SCALED`].
    ///
    /// # Safety
    /// Both lines have been written as [`Gemv::weight`] asks.
    #[inline(always)]
    unsafe fn weights<S: Isa>(s: S, lines: [*const f32; 2], key: usize) -> Weight<S, Self> {
        // SAFETY: the caller vouches for the first line.
        unsafe { Self::weight(s, lines[0], key) }
    }

    /// Sums of outputs to continue, in the order of [`Lane::interleave`].
    ///
    /// # Safety
    /// `PACK` vectors are readable at `from`, written by [`Gemv::store_sums`].
    #[inline(always)]
    unsafe fn load_sums<S: Isa>(s: S, from: *const f32) -> [Sum<S, Self>; MAX_PACK] {
        let mut sums = [Self::Sum::zero(s); MAX_PACK];
        for (n, sum) in sums.iter_mut().enumerate().take(Self::PACK) {
            // SAFETY: one of PACK vectors.
            *sum = unsafe { Self::Sum::load(s, from.add(n * S::LANES)) };
        }
        sums
    }

    /// Writes sums of outputs: as f32 in the order of elements; with [`Gemv::INT_ACC`] as integers,
    /// in the order that they have in registers.
    ///
    /// # Safety
    /// `PACK` vectors are writable at `to`.
    #[inline(always)]
    unsafe fn store_sums<S: Isa>(s: S, to: *mut f32, sums: [Sum<S, Self>; MAX_PACK]) {
        for (n, sum) in sums.into_iter().enumerate().take(Self::PACK) {
            // SAFETY: one of PACK vectors.
            unsafe { SumOf::<Self>::store(s, to.add(n * S::LANES), Self::Sum::collapse(s, sum)) };
        }
    }

    /// Sums that [`Gemv::store_sums`] has written, as f32 in the order of elements.
    ///
    /// # Safety
    /// `PACK` vectors are readable at `from`.
    #[inline(always)]
    unsafe fn outputs<S: Isa>(s: S, from: *const f32) -> [S::F32; MAX_PACK] {
        let mut sums = [s.splat(0.0); MAX_PACK];
        for (n, sum) in sums.iter_mut().enumerate().take(Self::PACK) {
            // SAFETY: one of PACK vectors.
            let stored = unsafe { SumOf::<Self>::load(s, from.add(n * S::LANES)) };
            *sum = SumOf::<Self>::to_f32(s, stored);
        }
        match Self::PACK {
            2 if Self::INT_ACC => {
                let [first, second] = s.unzipped([sums[0], sums[1]]);
                [first, second, first, second]
            }
            4 if Self::INT_ACC => s.unzipped_bytes(sums),
            _ => sums,
        }
    }
}

/// Words of V of [`Gemv::PACK`] keys, with what belongs to one element in one word.
#[inline(always)]
pub(crate) fn interleave<S: Isa, P: Gemv>(
    s: S,
    rows: [Operand<S, P>; MAX_PACK],
) -> [Operand<S, P>; MAX_PACK] {
    P::Operand::interleave(s, P::PACK, rows)
}

/// Elements of a vector.
#[inline(always)]
pub(crate) const fn width<S: Isa, P: Gemv>() -> usize {
    S::LANES * P::PACK
}

/// `n` elements of `bytes` bytes each from element `d` of a row on, and zeros behind them. Kept out
/// of line: LLVM lowers this loop to memcpy, and the call would spill the kernel's registers.
///
/// # Safety
/// The row has `d + n` elements; `n * bytes` is at most 64.
#[inline(never)]
pub(crate) unsafe fn padded(row: *const u8, d: usize, n: usize, bytes: usize) -> [u8; 64] {
    let mut elements = [0; 64];
    for (i, byte) in elements.iter_mut().enumerate().take(n * bytes) {
        // SAFETY: a byte of one of the row's elements.
        *byte = unsafe { row.wrapping_add(d * bytes + i).read() };
    }
    elements
}
