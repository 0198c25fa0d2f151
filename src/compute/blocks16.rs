//! 16-bit integers times the codes of [`BlockScaled`] types, with dot products of pairs: where
//! there is no dot product of four bytes ([`super::split16`]). Codes are widened as they are
//! loaded, and a block of them is several vectors.
//!
//! - Scores: the products of a block are exact, as integers and as f32 alike, and are multiplied by
//!   the scale of the block lane by lane.
//! - Weights of V: probability times scale, as signed integers. Those of two neighbouring keys meet
//!   their interleaved values.

use std::marker::PhantomData;

use super::i16::I16;
use crate::attend::rows::Source;
use crate::decode::block::{Block, Run};
use crate::decode::block_scaled;
use crate::decode::gemv::{BlockScaledGemv, Gemv, Reading, width};
use crate::decode::prefetch::PrefetchStream;
use crate::decode::scratch::{BlockArrays, RowArrays};
use crate::decode::state::State;
use crate::dtype::block_scaled::BlockScaled;
use crate::dtype::{Dtype, Stored};
use crate::simd::Isa;
use crate::simd::lane::{Int, Registers};

/// 16-bit queries and weights times codes of `T`, widened.
pub(crate) struct Blocks16<T>(PhantomData<fn() -> T>);

/// Where the sums of blocks of a packed row are: behind it, in the second half of its room.
#[inline(always)]
fn sums<S: Isa, T: BlockScaled>(row: *const f32, dim: usize) -> *const i32 {
    row.cast::<i16>().wrapping_add(dim.next_multiple_of(width::<S, Blocks16<T>>())).cast()
}

impl<T: BlockScaled> Gemv for Blocks16<T> {
    const NAME: &'static str = <I16 as Gemv>::NAME;
    const DTYPE: Option<Dtype> = Some(T::DTYPE);
    type Own = T;
    const PACK: usize = <I16 as Gemv>::PACK;
    const MAX_KEYS: usize = <I16 as Gemv>::MAX_KEYS;
    const INT_ACC: bool = true;
    const ADDS_RUNS: bool = false;
    const ROUNDS: bool = false;
    /// Rounded only as part of a weight: a power of two, which is exact.
    const P_SCALE: f32 = 32_768.0;
    type Operand = Int;
    type Weight = Int;
    type Sum = Int;

    #[inline(always)]
    unsafe fn pack<S: Isa>(s: S, source: Source, dim: usize, factor: f32, to: *mut f32) -> f32 {
        // SAFETY: the contract is the same.
        unsafe { <I16 as Gemv>::pack(s, source, dim, factor, to) }
    }

    #[inline(always)]
    unsafe fn load_kv<S: Isa, Own: Stored>(s: S, row: *const u8, d: usize) -> S::I32 {
        // SAFETY: I7: the row has a vector of elements from `d` on, which lie in one block
        // (caller).
        unsafe { T::load_wide(s, row.wrapping_add(d / T::BLOCK * T::BLOCK_BYTES), d % T::BLOCK) }
    }

    /// Never: rows have whole blocks, which are whole vectors.
    #[inline(always)]
    unsafe fn load_kv_partial<S: Isa, Own: Stored>(s: S, _row: *const u8, _d: usize, _n: usize) -> S::I32 {
        s.splat_i32(0)
    }

    #[inline(always)]
    fn add_score<S: Isa>(s: S, q: S::I32, k: S::I32, sum: S::I32) -> S::I32 {
        s.dot_i16(sum, q, k)
    }

    #[inline(always)]
    fn add_value<S: Isa>(s: S, p: S::I32, v: S::I32, sum: S::I32) -> S::I32 {
        s.dot_i16(sum, p, v)
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

    #[inline(never)]
    unsafe fn sum_blocks<S: Isa>(_s: S, row: *mut f32, dim: usize) {
        for block in 0..dim / T::BLOCK {
            let numbers = row.cast::<i16>().wrapping_add(block * T::BLOCK);
            // SAFETY: I5: the packed row has the block, and takes half of its room (caller).
            unsafe {
                let sum = (0..T::BLOCK).map(|i| i32::from(numbers.add(i).read())).sum();
                sums::<S, T>(row, dim).cast_mut().add(block).write(sum);
            }
        }
    }

    #[inline(always)]
    fn reading(dim: usize) -> Reading {
        Reading { scales_in_row: dim / T::BLOCK, is_repacked: false }
    }

    #[inline(always)]
    unsafe fn dot_products<S: Isa>(s: S, rows: &RowArrays, count: usize, run: &Run, _next: PrefetchStream) {
        // SAFETY: I2, I5: the caller vouches for the arrays of its group and for the rows of `run`.
        unsafe { block_scaled::wide_dot_products::<S, Self>(s, rows, count, run) }
    }

    #[inline(always)]
    unsafe fn add_values<S: Isa>(s: S, block: &Block, rows: &RowArrays, arrays: &BlockArrays, state: &State) {
        // SAFETY: I5: the caller vouches for the arrays of the block's group; `reading` made
        // room for weights.
        unsafe { block_scaled::values::<S, Self>(s, block, rows, &arrays.weights, state) }
    }
}

impl<T: BlockScaled> BlockScaledGemv for Blocks16<T> {
    type Blocks = T;
    const VALUE_ROWS: usize = 2;
    /// Sums of the most keys fit: 128 · 512 · 32767 is below 2^31.
    const MAX_WEIGHT: f32 = <I16 as Gemv>::P_SCALE;

    #[inline(always)]
    unsafe fn sum_of_block<S: Isa>(_s: S, row: *const f32, dim: usize, block: usize) -> i32 {
        // SAFETY: I5: `sum_blocks` has written it.
        unsafe { sums::<S, T>(row, dim).add(block).read() }
    }

    #[inline(always)]
    unsafe fn store_weights<S: Isa>(s: S, row: *mut f32, key: usize, weights: S::F32) {
        // SAFETY: I7: the row has a vector from `key` on (caller).
        unsafe { s.store_i16(row.cast::<i16>().add(key), weights) };
    }

    #[inline(always)]
    unsafe fn weights<S: Isa>(s: S, [row, _]: [*const f32; 2], key: usize) -> S::I32 {
        // SAFETY: I7: `store_weights` has written those of two keys (caller).
        unsafe { Int::broadcast(s, row.cast::<i16>().add(key).cast()) }
    }
}
