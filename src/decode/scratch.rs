//! The arrays of one call of decode: one function lays them out, to be measured and to be cut.

use super::gemv::{Gemv, Reading, width};
use super::state::State;
use super::unpack::OfBlocks;
use crate::attend::fold::folds_queries;
use crate::attend::seen::Seen;
use crate::attend::{K, V, convert};
use crate::dtype::Dtype;
use crate::problem::{Shape, Storage};
use crate::simd::Isa;
use crate::view::ScaleGranularity;
use crate::work::query_tiles::TileSizes;
use crate::workspace::{Arena, Measure};

/// Query rows of a register tile where there are several: a constant of the loops when they are
/// compiled, not to be tuned at run time. Three rows are taken as four, one of them for nothing:
/// that costs less than two and one.
pub(crate) const ROWS: usize = 4;

/// The fewest query rows that are taken as [`ROWS`]. With 8 lanes, integers gain nothing by a row
/// more.
pub(super) const fn least_of_four<S: Isa, P: Gemv>() -> usize {
    if S::SCORES_FILL_VECTOR && P::PACK > 1 { ROWS } else { ROWS - 1 }
}

/// Arrays with a part for each query row of a group. Where [`padded_rows`] says so, there is one
/// row more than the group has.
#[derive(Clone, Copy)]
pub(crate) struct RowArrays {
    /// Packed queries. Strides are values from one row to the next.
    pub(super) queries: *mut f32,
    pub(super) query_stride: usize,
    /// What the dot products of a row are still to be multiplied by.
    pub(super) factors: *mut f32,
    /// What is added to the scores of a row, times the zero of the key if it has its own; with
    /// zeros of K.
    pub(super) corrections: Option<*mut f32>,
    /// A query row as f32, changed by scales of K, before it is packed.
    pub(super) folded: *mut f32,
    /// Scores of a block, later its probabilities, from the block's first key on: whole vectors.
    pub(super) scores: *mut f32,
    pub(super) score_stride: usize,
    /// One vector a row: each lane sums the probabilities of its own keys.
    pub(super) sums: *mut f32,
    /// With [`Gemv::INT_ACC`]: the sums of values of a block, and one vector a row of their weight
    /// in the output.
    pub(super) block_sums: Sums,
    pub(super) block_weights: *mut f32,
    /// Where masks may hide keys: what each row sees of a block.
    pub(super) seen: *mut Seen,
}

impl RowArrays {
    /// The arrays from row `n` on.
    #[inline(always)]
    pub(super) fn skip<S: Isa>(&self, n: usize) -> RowArrays {
        let Sums { base, stride } = self.block_sums;
        RowArrays {
            queries: self.queries.wrapping_add(n * self.query_stride),
            factors: self.factors.wrapping_add(n),
            corrections: self.corrections.map(|corrections| corrections.wrapping_add(n)),
            scores: self.scores.wrapping_add(n * self.score_stride),
            sums: self.sums.wrapping_add(n * S::LANES),
            block_sums: Sums { base: base.wrapping_add(n * stride), stride },
            block_weights: self.block_weights.wrapping_add(n * S::LANES),
            seen: self.seen.wrapping_add(n),
            ..*self
        }
    }
}

/// Weighted sums of values, a row of them for each query row.
#[derive(Clone, Copy)]
pub(crate) struct Sums {
    pub(super) base: *mut f32,
    /// Values from one row to the next: whole vectors.
    pub(super) stride: usize,
}

/// Arrays of a block, counted from its first key. Those of K come first, then those of V.
#[derive(Clone, Copy)]
pub(crate) struct BlockArrays {
    /// A factor for each key, where rows have scales of their own, and a zero, where they have
    /// zeros of their own: whole vectors.
    pub(super) scales: [*mut f32; 2],
    pub(super) zeros: [*mut f32; 2],
    /// Rows that have been converted, unpacked or copied.
    pub(super) staged: [*mut u8; 2],
    /// The scales of blocks that have been repacked, and the minima of rows that have been unpacked
    /// or repacked, if their type has any.
    pub(super) block_scales: [Option<OfBlocks>; 2],
    pub(super) minima: [Option<OfBlocks>; 2],
    pub(crate) weights: Weights,
}

impl BlockArrays {
    /// The arrays of the `n`th kv head: those of factors and zeros are its own.
    #[inline(always)]
    pub(super) fn of_part(&self, n: usize) -> BlockArrays {
        let skip = |array: *mut f32| array.wrapping_add(n * self.weights.stride);
        BlockArrays { scales: self.scales.map(skip), zeros: self.zeros.map(skip), ..*self }
    }
}

/// Integer weights of V with [`super::gemv::BlockScaledGemv`]: a row of them for each block of a
/// row of V, with a value for each key.
#[derive(Clone, Copy)]
pub(crate) struct Weights {
    /// The scales of V, and its minima, if it has any.
    pub(super) scales: *mut f32,
    pub(super) minima: Option<OfBlocks>,
    /// The weights of a query row: probability times scale, quantised. Of two query rows those of
    /// the second one take the second half of each row.
    pub(super) integers: *mut f32,
    /// Values from one row of scales, or of weights, to the next.
    pub(super) stride: usize,
    /// What a sum with weights of each row is to be multiplied by, behind one another for two query
    /// rows.
    pub(super) factors: *mut f32,
}

/// All arrays of a call.
pub(super) struct Buffers {
    pub(super) rows: RowArrays,
    /// A state for the first split, and one for each later split before it is combined.
    pub(super) states: [State; 2],
    pub(super) block: BlockArrays,
}

/// What the sizes of arrays depend on beside shape and tiles: the instruction set and the compute
/// type. In numbers, so that the code that measures exists once.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    /// f32 lanes of a vector.
    lanes: usize,
    /// Values from one row to the next: of packed queries, of scores, of the output.
    query_stride: usize,
    score_stride: usize,
    output_stride: usize,
    /// [`Gemv::INT_ACC`], and [`Gemv::reading`] of V.
    int_acc: bool,
    reading: Reading,
}

impl Sizes {
    #[inline(always)]
    pub(super) fn of<S: Isa, P: Gemv>(shape: &Shape, tiles: TileSizes) -> Sizes {
        Sizes {
            lanes: S::LANES,
            query_stride: row_stride::<S, P>(shape.dim_qk),
            score_stride: row_stride::<S, P>(tiles.kv),
            output_stride: row_stride::<S, P>(shape.dim_v),
            int_acc: P::INT_ACC,
            reading: P::reading(shape.dim_v),
        }
    }
}

/// Takes all arrays of a call from `arena`, whose sizes depend on nothing else. Inlined where
/// memory is cut: a small call is as long as this, and most sizes are known when that is compiled.
#[inline(always)]
pub(super) fn buffers<A: Arena>(arena: &mut A, sizes: Sizes, shape: &Shape, tiles: TileSizes) -> Buffers {
    let Shape { dim_qk, dim_v, .. } = *shape;
    let Sizes { lanes, query_stride, score_stride, output_stride, .. } = sizes;
    let (has_zeros, folds) = (shape.storage.zeros, folds_queries(&shape.storage));
    let rows = max_rows(tiles);
    let all = |values: usize| values.checked_mul(padded_rows(rows));
    let parts = tiles.kv_heads;
    let (block_stride, weight_lanes) = if sizes.int_acc { (output_stride, lanes) } else { (0, 0) };
    let rows_of = RowArrays {
        queries: arena.take(all(query_stride)),
        query_stride,
        factors: arena.take(all(1)),
        corrections: (folds && has_zeros[1]).then(|| arena.take(all(1))),
        folded: arena.take(if folds { convert::row_bytes(dim_qk) / 4 } else { 0 }),
        scores: arena.take(all(score_stride)),
        score_stride,
        sums: arena.take(all(lanes)),
        block_sums: Sums { base: arena.take(all(block_stride)), stride: block_stride },
        block_weights: arena.take(all(weight_lanes)),
        seen: arena.take(if shape.scans_masks { all(1) } else { Some(0) }),
    };
    let states = [State::take(arena, rows, output_stride), State::take(arena, rows, output_stride)];
    let [_, k, v] = shape.storage.granularities;
    let row_scales = |granularity| match granularity {
        ScaleGranularity::PerToken => score_stride.checked_mul(parts),
        _ => Some(0),
    };
    let scales = [arena.take(row_scales(k)), arena.take(row_scales(v))];
    let row_zeros = |granularity, has_zeros| if has_zeros { row_scales(granularity) } else { Some(0) };
    let zeros = [arena.take(row_zeros(k, has_zeros[1])), arena.take(row_zeros(v, has_zeros[2]))];
    let has_staging = tiles.has_staging(shape);
    let staged_bytes = |which, dim| {
        let stride =
            if has_staging[which] { staged_stride(sizes.reading, &shape.storage, which, dim) } else { 0 };
        let keys = staged_keys(sizes.reading, shape, which, tiles);
        // Lanes are keys.
        let keys = if sizes.reading.is_repacked { keys.checked_next_multiple_of(lanes)? } else { keys };
        keys.checked_mul(stride)
    };
    let staged = [arena.take(staged_bytes(K, dim_qk)), arena.take(staged_bytes(V, dim_v))];
    let Reading { scales_in_row: in_row, is_repacked } = sizes.reading;
    let mut of_blocks = |are_there: bool, dim: usize| {
        let values = (dim / Dtype::Q8_0.block()).checked_mul(score_stride);
        are_there.then(|| OfBlocks { base: arena.take(values), stride: score_stride })
    };
    let has_minima = |which: usize| in_row > 0 && shape.storage.dtypes[1 + which].has_minimum();
    let minima = [of_blocks(has_minima(K), dim_qk), of_blocks(has_minima(V), dim_v)];
    let scales_of_k = of_blocks(is_repacked, dim_qk);
    let weights = Weights {
        scales: arena.take(in_row.checked_mul(score_stride)),
        minima: minima[V],
        integers: arena.take(in_row.checked_mul(score_stride)),
        stride: score_stride,
        factors: arena.take(in_row.checked_mul(2)),
    };
    let scales_of_v = OfBlocks { base: weights.scales, stride: weights.stride };
    let block_scales = [scales_of_k, is_repacked.then_some(scales_of_v)];
    Buffers {
        rows: rows_of,
        states,
        block: BlockArrays { scales, zeros, staged, block_scales, minima, weights },
    }
}

/// Bytes of scratch that [`super::Decode`] takes; `None` if no machine has as many.
pub(crate) fn scratch_bytes<S: Isa, P: Gemv>(shape: &Shape, tiles: TileSizes) -> Option<usize> {
    measure(Sizes::of::<S, P>(shape, tiles), shape, tiles)
}

/// Bytes of all arrays. Kept out of line, so that the code exists once.
#[inline(never)]
fn measure(sizes: Sizes, shape: &Shape, tiles: TileSizes) -> Option<usize> {
    Measure::of(|arena| buffers(arena, sizes, shape, tiles))
}

/// Bytes of a partial state that one thread keeps for another; `None` if no machine has as many.
pub(crate) fn state_bytes<S: Isa, P: Gemv>(shape: &Shape, tiles: TileSizes) -> Option<usize> {
    Measure::of(|arena| State::take(arena, max_rows(tiles), row_stride::<S, P>(shape.dim_v)))
}

/// Rows of the arrays of a group, at most. Saturates where no machine has the memory:
/// [`Arena::take`] refuses.
#[inline(always)]
pub(super) fn max_rows(tiles: TileSizes) -> usize {
    match tiles.kv_heads {
        1 => rows_of_part(tiles),
        parts => padded_rows(rows_of_part(tiles)).saturating_mul(parts),
    }
}

/// Query rows of each kv head of a group, at most.
#[inline(always)]
fn rows_of_part(tiles: TileSizes) -> usize {
    tiles.heads.saturating_mul(tiles.q)
}

/// Where the arrays of the `n`th kv head of a group begin, in rows.
#[inline(always)]
pub(super) fn part_start(tiles: TileSizes, n: usize) -> usize {
    if n == 0 { 0 } else { n * padded_rows(rows_of_part(tiles)) }
}

/// Rows of the arrays of a group of `rows` query rows: one more where a register tile of [`ROWS`]
/// rows is one short. A larger group never has fewer.
#[inline(always)]
pub(super) fn padded_rows(rows: usize) -> usize {
    if rows % ROWS == ROWS - 1 { rows.saturating_add(1) } else { rows }
}

/// Values from one row to the next of an array with rows of `n` values: whole vectors of operands,
/// each element as f32. Saturates where no machine has the memory.
#[inline(always)]
pub(super) fn row_stride<S: Isa, P: Gemv>(n: usize) -> usize {
    n.checked_next_multiple_of(width::<S, P>()).unwrap_or(usize::MAX)
}

/// Keys that are staged at a time: so many that what is staged stays in the first-level cache, and
/// that the next rows arrive while these are multiplied.
const STAGED_KEYS: usize = 32;

/// Keys of K that are unpacked at a time: rows of Q8_0 are a fourth of those of f32.
const UNPACKED_KEYS: usize = 4 * STAGED_KEYS;

/// Keys of a run of K or V (`which`) that is staged: a part of a block, or all of it where V is
/// read several times, which it is if its rows have scales within them. K that is unpacked is read
/// once.
pub(super) fn staged_keys(reading: Reading, shape: &Shape, which: usize, tiles: TileSizes) -> usize {
    // Bytes of the same element lie side by side if a cache is transposed: a line of them.
    let bytes_lie_apart = shape.strided_kv[which] && shape.storage.dtypes[1 + which] == Dtype::I8;
    match reading.scales_in_row {
        0 if bytes_lie_apart => tiles.kv.min(2 * STAGED_KEYS),
        0 => tiles.kv.min(STAGED_KEYS),
        _ if which == K && (reading.is_repacked || shape.storage.dtypes[1].is_nibbles()) => {
            tiles.kv.min(UNPACKED_KEYS)
        }
        _ => tiles.kv,
    }
}

/// Bytes from one row to the next of K or V (`which`) that has been converted to f32, unpacked to
/// Q8_0, or copied as it is stored.
pub(super) fn staged_stride(reading: Reading, storage: &Storage, which: usize, dim: usize) -> usize {
    let dtype = match staging(reading, storage, which) {
        Staging::Copied => storage.dtypes[1 + which],
        Staging::Converted => Dtype::F32,
        // As dense as a cache of Q8_0: fewer lines are written.
        Staging::Unpacked => return Dtype::Q8_0.row_bytes(dim).unwrap_or(usize::MAX),
        Staging::Repacked => return dim,
    };
    match dtype {
        Dtype::F32 => convert::row_bytes(dim),
        dtype => dtype.row_bytes(dim).map_or(usize::MAX, |n| n.saturating_add(63) / 64 * 64),
    }
}

/// What is done to rows that are staged.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Staging {
    /// Nothing.
    Copied,
    /// They become f32.
    Converted,
    /// They become blocks of Q8_0: see [`super::unpack`].
    Unpacked,
    /// Codes of several keys lie beside one another, scales elsewhere: see [`super::repacked`].
    Repacked,
}

/// What is done to rows of K or V (`which`), if they are staged.
#[inline(always)]
pub(super) fn staging(reading: Reading, storage: &Storage, which: usize) -> Staging {
    let dtype = storage.dtypes[1 + which];
    let is_finer = storage.granularities[1 + which] == ScaleGranularity::Finer;
    match dtype.is_nibbles() {
        _ if reading.is_repacked => Staging::Repacked,
        true if reading.scales_in_row > 0 => Staging::Unpacked,
        _ if dtype.is_converted() || is_finer => Staging::Converted,
        _ => Staging::Copied,
    }
}

/// Whether K, and V, are read as they are stored: all but integers whose scales change within a
/// row and from row to row, what is read as another type or becomes f32, what is packed in nibbles,
/// and what the compute type repacks.
pub(crate) fn reads_kv<P: Gemv>(storage: &Storage) -> [bool; 2] {
    if P::reading(0).is_repacked {
        return [false; 2];
    }
    [0, 1].map(|which| {
        let dtype = storage.dtypes[1 + which];
        let is_finer = storage.granularities[1 + which] == ScaleGranularity::Finer;
        !is_finer && !storage.is_recoded(which) && !dtype.is_converted()
    })
}
