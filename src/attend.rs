//! What both paths, prefill and decode, share: blocks of keys, rows and their conversion, scales
//! that leave the loops (fold), changes of scores (logits), outliers among the scores of integers,
//! the end of a row, probabilities for those who want them (weights), and merging of results.
//!
//! Both paths tile attention with an online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867;
//! Dao et al. 2022, arXiv:2205.14135).

pub(crate) mod blocks;
pub(crate) mod convert;
pub(crate) mod finish;
pub(crate) mod fold;
pub(crate) mod gather;
pub(crate) mod logits;
#[forbid(unsafe_code)]
pub mod merge;
pub(crate) mod outliers;
pub(crate) mod rows;
pub(crate) mod seen;
pub(crate) mod weights;

use crate::simd::{Isa, MAX_LANES};

/// Vectors of query rows in a lane tile of prefill, at most: each broadcast of K or V then feeds
/// two multiplications, and 8 x 2 accumulators hide the latency of FMA without spilling.
pub(crate) const VECTORS: usize = 2;

/// Lanes of the widest lane tile: the size of small arrays on the stack.
pub(crate) const MAX_WIDTH: usize = VECTORS * MAX_LANES;

/// Index of K in pairs of what concerns K and V.
pub(crate) const K: usize = 0;
/// Index of V in such pairs.
pub(crate) const V: usize = 1;

/// How far, in log2 units, a score may exceed the running maximum before that moves (lazy
/// rescaling, FlashAttention 4). Probabilities stay at or below 2^8. So a sum of n of them stays
/// below n · 2^8, far from overflow, and loses no precision: f32 is as dense at 2^8 as at 1.
pub(crate) const RESCALE_THRESHOLD: f32 = 8.0;

/// Prefetches `bytes` bytes into the second-level cache.
#[inline(always)]
pub(crate) fn prefetch_row<S: Isa>(s: S, row: *const u8, bytes: usize) {
    let mut line = 0;
    while line < bytes {
        s.prefetch_l2(row.wrapping_add(line));
        line += 64;
    }
}

/// Prefetches the first `n` rows, of `bytes` bytes each, into the second-level cache: it waits for
/// more lines at once than the first. Kept out of line, so that the code exists once for each
/// instruction set.
#[inline(never)]
pub(crate) fn prefetch_rows_l2<S: Isa>(s: S, rows: rows::Rows, n: usize, bytes: usize) {
    for i in 0..n {
        prefetch_row(s, rows.skip(i).base, bytes);
    }
}
