//! How a compute type multiplies where query rows are few and lanes are elements of a head.
//!
//! A lane multiplies a 32-bit operand at a time: one element, or [`Gemv::PACK`] neighbouring ones.
//! So a vector holds `PACK` times as many elements as it has lanes. Of V, an operand holds one
//! element of `PACK` neighbouring keys, and what belongs to a vector of elements fills `PACK`
//! vectors, in the order of [`Lane::interleave`].

use super::block::{Block, Run};
use super::prefetch::PrefetchStream;
use super::scratch::{BlockArrays, RowArrays, Sums, Weights};
use super::state::State;
use super::{accumulate, block_scaled, scores};
use crate::attend::rows::Source;
use crate::dtype::block_scaled::BlockScaled;
use crate::dtype::{Dtype, Stored, with_read_type};
use crate::simd::lane::{Lane, MAX_PACK, Registers};
use crate::simd::{Isa, MAX_LANES};

/// Operands of K or V in registers.
pub(crate) type Operand<S, P> = <<P as Gemv>::Operand as Registers>::Of<S>;
/// What operands are multiplied by: elements of a query, or probabilities.
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
/// Functions that take pointers need the elements that they name valid for reads, or whole vectors
/// valid for writes.
pub(crate) trait Gemv: Sized + 'static {
    /// Its name, for people.
    const NAME: &'static str;
    /// What K and V are stored as, if the type multiplies them as they are stored; `None` if it
    /// converts any type.
    const DTYPE: Option<Dtype>;
    /// The type of [`Gemv::DTYPE`]; of no account without one.
    type Own: Stored;
    /// Elements of an operand, and keys that are weighted at a time: 1, 2 or 4.
    const PACK: usize;
    /// Query rows of a register tile, at most.
    const MAX_ROWS: usize = usize::MAX;
    /// Keys of a block, at most, that sums can take.
    const MAX_KEYS: usize;
    /// Whether the sums of a block are integers: relative to a score of the block, begun with 0,
    /// and weighted when they are added to the output. Else they continue those of the blocks
    /// before.
    const INT_ACC: bool;
    /// Whether probabilities are rounded to integers before they meet a scale: they are relative to
    /// a reference then (see [`crate::attend::outliers`]), else to the largest score of the block.
    const ROUNDS: bool = Self::INT_ACC;
    /// What a probability of 1 counts in the sums.
    const P_SCALE: f32;
    /// Operands of K or V.
    type Operand: Lane;
    /// What they are multiplied by.
    type Weight: Registers;
    /// Sums of products.
    type Sum: Registers;

    /// Packs a query row, zeros behind it up to whole vectors of operands. Returns what its scores
    /// are still to be multiplied by; scores are dot products times `factor`, in log2 units.
    ///
    /// # Safety
    /// `source` has a row of `dim` elements; `to` holds a row of f32 in as many vectors.
    unsafe fn pack<S: Isa>(s: S, source: Source, dim: usize, factor: f32, to: *mut f32) -> f32;

    /// Elements of a packed query row from element `d` on.
    ///
    /// # Safety
    /// `row` is a packed row with a vector of elements from `d` on.
    #[inline(always)]
    unsafe fn query<S: Isa>(s: S, row: *const f32, d: usize) -> Weight<S, Self> {
        // SAFETY: I7: an element takes 4 / PACK bytes of the packed row, which has a vector of them
        // (caller).
        unsafe { Self::Weight::load(s, row.byte_add(d * (4 / Self::PACK))) }
    }

    /// What the sums of a score with a packed query row of `dim` elements begin with.
    ///
    /// # Safety
    /// `row` is a packed row of `dim` elements.
    #[inline(always)]
    unsafe fn begin<S: Isa>(s: S, _row: *const f32, _dim: usize) -> Sum<S, Self> {
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

    /// Operands of K as they are multiplied.
    #[inline(always)]
    fn key_operand<S: Isa>(_s: S, operand: Operand<S, Self>) -> Operand<S, Self> {
        operand
    }

    /// `sum` and the products of elements of a query and of K.
    fn add_score<S: Isa>(s: S, q: Weight<S, Self>, k: Operand<S, Self>, sum: Sum<S, Self>) -> Sum<S, Self>;

    /// `sum` and the products of probabilities and elements of V.
    fn add_value<S: Isa>(s: S, p: Weight<S, Self>, v: Operand<S, Self>, sum: Sum<S, Self>) -> Sum<S, Self>;

    /// The probability 2^`x`, times [`Gemv::P_SCALE`], as it counts in the sum of probabilities.
    /// `x` is at most [`crate::attend::RESCALE_THRESHOLD`], or at most 0 with [`Gemv::INT_ACC`].
    fn probability<S: Isa>(s: S, x: S::F32) -> S::F32;

    /// Writes a vector of probabilities of keys from `key` on, in place of scores: rounded, as
    /// [`Gemv::weight`] reads them. Nothing before `key + LANES` of `scores` is still to be read.
    ///
    /// # Safety
    /// `scores` has a vector from `key` on.
    unsafe fn store_probabilities<S: Isa>(s: S, scores: *mut f32, key: usize, p: S::F32);

    /// The probability of a key in all lanes; of [`Gemv::PACK`] keys from a multiple of that on.
    ///
    /// # Safety
    /// [`Gemv::store_probabilities`] has written them to `scores`.
    #[inline(always)]
    unsafe fn weight<S: Isa>(s: S, scores: *const f32, key: usize) -> Weight<S, Self> {
        // SAFETY: I7: a probability takes 4 / PACK bytes, and those of `key` have been written
        // (caller).
        unsafe { Self::Weight::broadcast(s, scores.byte_add(key * (4 / Self::PACK)).cast()) }
    }

    /// Sums of outputs to continue, in the order of [`Lane::interleave`].
    ///
    /// # Safety
    /// `PACK` vectors are readable at `from`, written by [`Gemv::store_sums`].
    #[inline(always)]
    unsafe fn load_sums<S: Isa>(s: S, from: *const f32) -> [Sum<S, Self>; MAX_PACK] {
        let mut sums = [Self::Sum::zero(s); MAX_PACK];
        for (n, sum) in sums.iter_mut().enumerate().take(Self::PACK) {
            // SAFETY: I7: one of the PACK vectors that the caller vouches for.
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
            // SAFETY: I7: one of the PACK vectors that the caller vouches for.
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
            // SAFETY: I7: one of the PACK vectors that the caller vouches for.
            let stored = unsafe { SumOf::<Self>::load(s, from.add(n * S::LANES)) };
            *sum = SumOf::<Self>::to_f32(s, stored);
        }
        match Self::PACK {
            2 if Self::INT_ACC => {
                let [first, second] = s.deinterleave([sums[0], sums[1]]);
                [first, second, first, second]
            }
            4 if Self::INT_ACC => s.deinterleave_bytes(sums),
            _ => sums,
        }
    }

    /// Makes the sums of blocks of a packed query row, where K has minima:
    /// [`BlockScaledGemv::sum_of_block`] reads them.
    ///
    /// # Safety
    /// `row` is a packed row of `dim` elements.
    #[inline(always)]
    unsafe fn sum_blocks<S: Isa>(_s: S, _row: *mut f32, _dim: usize) {}

    /// How rows of V of `dim` elements are read whose blocks carry scales, with
    /// [`BlockScaledGemv`].
    #[inline(always)]
    fn reading(_dim: usize) -> Reading {
        Reading::default()
    }

    /// The dot products of the first `count` query rows with the keys of `run`, not yet multiplied
    /// by the factors of the rows: the whole of this step, which a compute type may replace. `next`
    /// is prefetched meanwhile.
    ///
    /// # Safety
    /// `rows` are the arrays of a group, for `count` rows and what [`super::scratch::padded_rows`]
    /// adds, with queries packed; `run` has rows of K.
    #[inline(always)]
    unsafe fn dot_products<S: Isa>(s: S, rows: &RowArrays, count: usize, run: &Run, next: PrefetchStream) {
        // SAFETY: I2, I5: rows of K and arrays are the caller's; I9: `T` is the type that the rows
        // of `run` are stored as.
        unsafe {
            // Decided when the loops are compiled: those of other types would never run.
            if const { Self::DTYPE.is_some() } {
                scores::dot_products::<S, Self, Self::Own>(s, rows, count, run, next);
            } else {
                with_read_type!(run.dtype, T => {
                    scores::dot_products::<S, Self, T>(s, rows, count, run, next);
                });
            }
        }
    }

    /// Whether [`Gemv::add_values`] is [`accumulate::values`], which can take a block in parts.
    const ADDS_RUNS: bool = true;

    /// Adds the values of a block, weighted with the probabilities of its keys, to the output of
    /// each row: the whole of this step, which a compute type may replace.
    ///
    /// # Safety
    /// `rows`, `arrays` and `state` are those of the block's group, with probabilities of its keys.
    #[inline(always)]
    unsafe fn add_values<S: Isa>(
        s: S,
        block: &Block,
        rows: &RowArrays,
        _arrays: &BlockArrays,
        state: &State,
    ) {
        // SAFETY: I5: arrays of the block's group, with probabilities of its keys (caller).
        unsafe { accumulate::values::<S, Self>(s, block, rows, state) }
    }
}

/// How K and V are read whose blocks carry their own scales.
#[derive(Clone, Copy, Default)]
pub(crate) struct Reading {
    /// Scales that are stored within a row of V: one a block. 0 for compute types of other storage.
    pub(crate) scales_in_row: usize,
    /// Whether blocks of any type are repacked: see [`super::repacked`].
    pub(crate) is_repacked: bool,
}

/// A compute type for K and V in blocks that carry their own scales: [`super::block_scaled`] takes
/// the place of the loops over rows without such scales. A vector of operands has two blocks
/// ([`PairedBlocks`]), or a block several vectors of operands. A sum of integers is multiplied by
/// the scale of its block.
pub(crate) trait BlockScaledGemv: Gemv {
    /// How K and V are stored.
    type Blocks: BlockScaled;
    /// Query rows whose weighted sums of V are made together, at most: 1 or 2. The integer weights
    /// of a key then take at most 4 bytes divided by that.
    const VALUE_ROWS: usize;
    /// What the largest weight becomes.
    const MAX_WEIGHT: f32;

    /// The sum of the elements of block `block` of a packed query row of `dim` elements, as they
    /// are multiplied.
    ///
    /// # Safety
    /// `row` is a packed row of `dim` elements, behind [`Gemv::sum_blocks`].
    unsafe fn sum_of_block<S: Isa>(s: S, row: *const f32, dim: usize, block: usize) -> i32;

    /// Writes a vector of integer weights of keys from `key` on, rounded, as [`Gemv::weight`] reads
    /// probabilities.
    ///
    /// # Safety
    /// `row` has a vector from `key` on.
    unsafe fn store_weights<S: Isa>(s: S, row: *mut f32, key: usize, weights: S::F32);

    /// The weights of [`Gemv::PACK`] keys from `key` on: where a vector has two blocks, of the
    /// first row for the lower half, of the second row for the upper half, else of the first row.
    ///
    /// # Safety
    /// [`BlockScaledGemv::store_weights`] has written them to both rows.
    unsafe fn weights<S: Isa>(s: S, rows: [*const f32; 2], key: usize) -> Weight<S, Self>;

    /// Makes the scales of V of a block ready. Returns whether all of them are fit for integer
    /// weights.
    ///
    /// # Safety
    /// `weights` has room for the keys of a block (I5).
    #[inline(always)]
    unsafe fn gather_scales<S: Isa>(s: S, block: &Block, weights: &Weights) -> bool {
        // SAFETY: the contract is the same.
        unsafe { block_scaled::gather_scales::<S, Self>(s, block, weights) }
    }

    /// Adds the values of a run of V, times integer weights, to the integer `sums` of `R` query
    /// rows, or begins these with them if `is_fresh`.
    ///
    /// # Safety
    /// `run` has rows of V (I2); `weights` has the integers of its keys for each of the rows, and
    /// `sums` room for as many (I5).
    #[inline(always)]
    unsafe fn accumulate<S: Isa, const R: usize, const PREFETCH: bool>(
        s: S,
        weights: &Weights,
        sums: Sums,
        run: Run,
        next: PrefetchStream,
        is_fresh: bool,
    ) {
        // SAFETY: the contract is the same.
        unsafe { block_scaled::accumulate::<S, Self, R, PREFETCH>(s, weights, sums, run, next, is_fresh) }
    }

    /// Adds the values of a key of a run times `p` to `sums`, converted to f32: for scales that are
    /// unfit for an integer weight.
    ///
    /// # Safety
    /// The run has the key, whose scales have been made ready in `weights`; `sums` has a row.
    #[inline(always)]
    unsafe fn add_converted<S: Isa>(s: S, _weights: &Weights, run: &Run, key: usize, p: f32, sums: *mut f32) {
        // SAFETY: I2: a row of the run, and room for as many sums (caller).
        unsafe {
            block_scaled::add_converted::<S, Self::Blocks>(s, p, run.rows.skip(key).base, run.dim, sums)
        }
    }
}

/// A compute type of rows that are repacked ([`super::repacked`]): queries and weights of V are
/// pairs of bytes, 256 times the first one plus the second one.
pub(crate) trait RepackedGemv: BlockScaledGemv {
    /// Where the first bytes, and the second ones, of four neighbouring elements from `d` on of a
    /// packed query row are.
    fn words_of_query<S: Isa>(row: *const f32, d: usize) -> [*const i32; 2];

    /// Where those of the weights of four neighbouring keys from `key` on are.
    fn words_of_weights<S: Isa>(row: *const f32, key: usize) -> [*const i32; 2];

    /// What is to be subtracted from the sum of block `block` of a packed query row of `dim`
    /// elements and codes plus 128.
    ///
    /// # Safety
    /// `row` is such a row, with as many blocks.
    unsafe fn correction<S: Isa>(row: *const f32, dim: usize, block: usize) -> i32;
}

/// What scores take where a vector of operands has two blocks.
pub(crate) trait PairedBlocks: BlockScaledGemv {
    /// The products of elements of a query and of K.
    fn product<S: Isa>(s: S, q: Weight<S, Self>, k: Operand<S, Self>) -> SumLane<S, Self>;

    /// The sums of each half of the first `LANES` vectors, each in the lane of its number, less the
    /// corrections of the query row: the integer dot products of two blocks with `LANES` keys.
    fn sums_of_halves<S: Isa>(
        s: S,
        vectors: &[SumLane<S, Self>; MAX_LANES],
        corrections: [S::I32; 2],
    ) -> [S::F32; 2];

    /// What is to be subtracted from the sums of the two blocks of a vector of elements from `d`
    /// on.
    ///
    /// # Safety
    /// `row` is a packed query row of `dim` elements.
    unsafe fn corrections<S: Isa>(s: S, row: *const f32, dim: usize, d: usize) -> [S::I32; 2];
}

/// Operands of V of [`Gemv::PACK`] keys, with what belongs to one element in one operand.
#[inline(always)]
pub(crate) fn interleave<S: Isa, P: Gemv>(
    s: S,
    rows: [Operand<S, P>; MAX_PACK],
) -> [Operand<S, P>; MAX_PACK] {
    P::Operand::interleave(s, P::PACK, rows)
}

/// Elements of a vector of operands.
#[inline(always)]
pub(crate) const fn width<S: Isa, P: Gemv>() -> usize {
    S::LANES * P::PACK
}
