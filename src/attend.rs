//! The steps of tiled attention with an online softmax (Milakov and Gimelshein 2018,
//! arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135), in the order in which a tile runs
//! through them. [`crate::prefill`] strings them together.
//!
//! Lanes are query rows. Scores and the output accumulator are kept transposed: a vector holds
//! the same key (or the same output element) for neighbouring rows, so that nothing is ever
//! summed across lanes and a row's result cannot depend on its neighbours.

pub(crate) mod blocks;
pub(crate) mod convert;
pub(crate) mod finish;
pub(crate) mod logits;
#[forbid(unsafe_code)]
pub mod merge;
pub(crate) mod rows;

use crate::simd::{Isa, MAX_LANES};

/// Vectors of query rows in a tile, at most: each broadcast of K or V then feeds two
/// multiplications, and 8 x 2 accumulators are what hides the latency of FMA without spilling.
pub(crate) const VECTORS: usize = 2;

/// Lanes of the widest tile: sizes of small arrays on the stack.
pub(crate) const MAX_WIDTH: usize = VECTORS * MAX_LANES;

/// Index of K in pairs of what concerns K and V.
pub(crate) const K: usize = 0;
/// Index of V in such pairs.
pub(crate) const V: usize = 1;

/// How far, in log2 units, a score may exceed the reference before it moves. Probabilities stay
/// at or below 2^8, so a sum of n of them stays below n · 2^8, far from overflow, and loses no
/// precision: f32 is as dense at 2^8 as at 1.
pub(crate) const RESCALE_THRESHOLD: f32 = 8.0;

/// Prefetches `bytes` bytes into the second-level cache.
#[inline(always)]
pub(crate) fn prefetch_row<S: Isa>(s: S, row: *const u8, bytes: usize) {
    let mut line = 0;
    while line < bytes {
        s.prefetch(row.wrapping_add(line));
        line += 64;
    }
}
