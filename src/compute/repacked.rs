//! [`super::split16`] for block-scaled rows that are repacked ([`crate::decode::repacked`]): the
//! same integers, and so the same bits, with no sums across lanes.
//!
//! Worth what repacking takes where rows have to be unpacked anyway.

use super::split16::{self, Pair, Split16, behind, halves, halves_of_keys};
use crate::attend::rows::Source;
use crate::decode::block::{Block, Run};
use crate::decode::gemv::{BlockScaledGemv, Gemv, Reading, RepackedGemv, width};
use crate::decode::prefetch::PrefetchStream;
use crate::decode::scratch::{BlockArrays, RowArrays, Sums, Weights};
use crate::decode::state::State;
use crate::decode::{block_scaled, repacked};
use crate::dtype::q8_0::Q8_0;
use crate::dtype::{Dtype, Stored};
use crate::simd::lane::{Int, Lane, MAX_PACK, Registers};
use crate::simd::{Isa, MAX_LANES};

/// 16-bit queries and weights, split in two bytes, times codes that have been repacked.
pub(crate) enum Repacked {}

/// Whose integers these are.
type Plain = Split16<Q8_0>;

/// Behind a packed query of `dim` elements: 128 times the sum of the elements of each block.
#[inline(always)]
fn corrections<S: Isa>(row: *const f32, dim: usize) -> *mut i32 {
    behind::<S>(row, dim).cast_mut()
}

impl Gemv for Repacked {
    const NAME: &'static str = <Plain as Gemv>::NAME;
    const DTYPE: Option<Dtype> = <Plain as Gemv>::DTYPE;
    type Own = <Plain as Gemv>::Own;
    const PACK: usize = <Plain as Gemv>::PACK;
    const MAX_KEYS: usize = <Plain as Gemv>::MAX_KEYS;
    const INT_ACC: bool = true;
    const ADDS_RUNS: bool = false;
    const ROUNDS: bool = false;
    const P_SCALE: f32 = <Plain as Gemv>::P_SCALE;
    type Operand = <Plain as Gemv>::Operand;
    type Weight = <Plain as Gemv>::Weight;
    type Sum = <Plain as Gemv>::Sum;

    #[inline(always)]
    unsafe fn pack<S: Isa>(s: S, source: Source, dim: usize, factor: f32, to: *mut f32) -> f32 {
        let end = |d: usize, sum| {
            let mut lanes = [0i32; MAX_LANES];
            // SAFETY: I7: the array is as long as any vector; I5: the second half of the row at
            // `to` has room for a number for each block behind the query (caller).
            unsafe {
                s.store_i32(lanes.as_mut_ptr(), Pair::collapse(s, sum));
                for (i, lane) in lanes.into_iter().enumerate().take(S::LANES) {
                    let first = d + i * Self::PACK;
                    if first < dim {
                        let at = corrections::<S>(to, dim).add(first / Q8_0::BLOCK);
                        let before = if first.is_multiple_of(Q8_0::BLOCK) { 0 } else { at.read() };
                        at.write(before + lane);
                    }
                }
            }
            Pair::zero(s)
        };
        // SAFETY: I2, I5: the caller vouches for the row of `source` and for room at `to`.
        unsafe { split16::pack(s, source, dim, factor, to, end).0 }
    }

    /// Never: rows are repacked.
    #[inline(always)]
    unsafe fn load_kv<S: Isa, T: Stored>(s: S, _row: *const u8, _d: usize) -> S::I32 {
        s.splat_i32(0)
    }

    /// Never: rows are repacked.
    #[inline(always)]
    unsafe fn load_kv_partial<S: Isa, T: Stored>(s: S, _row: *const u8, _d: usize, _n: usize) -> S::I32 {
        s.splat_i32(0)
    }

    #[inline(always)]
    fn add_score<S: Isa>(s: S, q: [S::I32; 2], k: S::I32, sum: [S::I32; 2]) -> [S::I32; 2] {
        Plain::add_score(s, q, k, sum)
    }

    #[inline(always)]
    fn add_value<S: Isa>(s: S, p: [S::I32; 2], v: S::I32, sum: [S::I32; 2]) -> [S::I32; 2] {
        Plain::add_value(s, p, v, sum)
    }

    #[inline(always)]
    fn probability<S: Isa>(s: S, x: S::F32) -> S::F32 {
        Plain::probability(s, x)
    }

    #[inline(always)]
    unsafe fn store_probabilities<S: Isa>(s: S, scores: *mut f32, key: usize, p: S::F32) {
        // SAFETY: the contract is the same.
        unsafe { Plain::store_probabilities(s, scores, key, p) };
    }

    /// In the order of elements: a lane is one.
    #[inline(always)]
    unsafe fn outputs<S: Isa>(s: S, from: *const f32) -> [S::F32; MAX_PACK] {
        let mut sums = [s.splat(0.0); MAX_PACK];
        for (n, sum) in sums.iter_mut().enumerate().take(Self::PACK) {
            // SAFETY: I7: one of the PACK vectors that the caller vouches for.
            *sum = Int::to_f32(s, unsafe { s.load_i32(from.add(n * S::LANES).cast()) });
        }
        sums
    }

    #[inline(always)]
    fn reading(dim: usize) -> Reading {
        Reading { is_repacked: true, ..Plain::reading(dim) }
    }

    #[inline(always)]
    unsafe fn dot_products<S: Isa>(s: S, rows: &RowArrays, count: usize, run: &Run, _next: PrefetchStream) {
        // SAFETY: I2, I5: the caller vouches for the arrays of its group and for the rows of `run`,
        // which `reading` had repacked.
        unsafe { repacked::dot_products::<S, Self>(s, rows, count, run) }
    }

    #[inline(always)]
    unsafe fn add_values<S: Isa>(s: S, block: &Block, rows: &RowArrays, arrays: &BlockArrays, state: &State) {
        const { assert!(S::REPACKS) };
        // SAFETY: I5: the caller vouches for the arrays of the block's group; `reading` made room
        // for weights.
        unsafe { block_scaled::values::<S, Self>(s, block, rows, &arrays.weights, state) }
    }
}

impl BlockScaledGemv for Repacked {
    type Blocks = Q8_0;
    const VALUE_ROWS: usize = 2;
    const MAX_WEIGHT: f32 = <Plain as BlockScaledGemv>::MAX_WEIGHT;

    #[inline(always)]
    unsafe fn sum_of_block<S: Isa>(_s: S, row: *const f32, dim: usize, block: usize) -> i32 {
        // SAFETY: the contract is the same.
        unsafe { Self::correction::<S>(row, dim, block) / 128 }
    }

    #[inline(always)]
    unsafe fn store_weights<S: Isa>(s: S, row: *mut f32, key: usize, weights: S::F32) {
        // SAFETY: the contract is the same.
        unsafe { Plain::store_weights(s, row, key, weights) };
    }

    #[inline(always)]
    unsafe fn weights<S: Isa>(s: S, rows: [*const f32; 2], key: usize) -> [S::I32; 2] {
        // SAFETY: the contract is the same.
        unsafe { Plain::weights(s, rows, key) }
    }

    #[inline(always)]
    unsafe fn gather_scales<S: Isa>(s: S, block: &Block, _weights: &Weights) -> bool {
        // SAFETY: I5: rows of the block have been repacked, and scales gathered meanwhile.
        unsafe { repacked::all_fit(s, block) }
    }

    #[inline(always)]
    unsafe fn accumulate<S: Isa, const R: usize, const PREFETCH: bool>(
        s: S,
        weights: &Weights,
        sums: Sums,
        run: Run,
        _next: PrefetchStream,
        is_fresh: bool,
    ) {
        // SAFETY: the contract is the same, and rows have been repacked.
        unsafe { repacked::accumulate::<S, Self, R>(s, weights, sums, &run, is_fresh) }
    }

    #[inline(always)]
    unsafe fn add_converted<S: Isa>(s: S, weights: &Weights, run: &Run, key: usize, p: f32, sums: *mut f32) {
        // SAFETY: the contract is the same, and rows have been repacked.
        unsafe { repacked::add_converted(s, weights, run, key, p, sums) }
    }
}

impl RepackedGemv for Repacked {
    #[inline(always)]
    fn words_of_query<S: Isa>(row: *const f32, d: usize) -> [*const i32; 2] {
        let width = width::<S, Self>();
        let hi = halves(row, d - d % width).wrapping_add(d % width / Self::PACK);
        [hi, hi.wrapping_add(S::LANES)]
    }

    #[inline(always)]
    fn words_of_weights<S: Isa>(row: *const f32, key: usize) -> [*const i32; 2] {
        let hi = halves_of_keys::<S>(row, key);
        [hi, hi.wrapping_add(S::LANES)].map(<*const u8>::cast)
    }

    #[inline(always)]
    unsafe fn correction<S: Isa>(row: *const f32, dim: usize, block: usize) -> i32 {
        // SAFETY: I5: `pack` has written a number for each block.
        unsafe { corrections::<S>(row, dim).add(block).read() }
    }
}

#[cfg(test)]
mod tests {
    use std::marker::PhantomData;

    use super::*;
    use crate::decode::repacked::check::Check;
    use crate::simd::on_each_isa;

    #[test]
    fn repacked_rows_are_multiplied() {
        for dtype in [Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4_1, Dtype::Q5_0, Dtype::Q5_1, Dtype::Iq4Nl] {
            for dim in [32, 96, 128] {
                on_each_isa(Check::<Repacked> { dtype, dim, compute: PhantomData });
            }
        }
    }
}
