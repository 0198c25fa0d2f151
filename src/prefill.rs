//! One part, many queries: lanes are query rows.
//!
//! The rows of a part are cut into tiles of one or two vectors. Blocks of keys are the outer
//! loop and tiles the inner one, so that a block is read from memory (and staged, if its type
//! needs it) once for all tiles of the part:
//!
//! ```text
//! pack    the queries of each tile: transposed, scaled                       dtype
//! for each block of keys that some row sees
//!   stage   K and V, if they cannot be read where they lie                   dtype
//!   for each tile that sees some of it
//!     scores -> mask (partial blocks only) -> softmax -> accumulate          attend
//! for each tile: epilogue                                                    attend
//! ```
//!
//! Blocks start at multiples of the block size from key 0, whatever a row sees: a row's result
//! depends on its own keys and the block size, not on the rows it shares a tile or part with.

use std::marker::PhantomData;
use std::ops::Range;

use crate::attend::VECTORS;
use crate::attend::accumulate::{accumulate, accumulate_guarded, first_not_finite, make_and_accumulate};
use crate::attend::epilogue::epilogue;
use crate::attend::mask::{Sight, mask};
use crate::attend::scores::scores;
use crate::attend::softmax::{self, Probabilities, State};
use crate::dtype::{Family, Rows};
use crate::part::Part;
use crate::problem::{Problem, Shape};
use crate::simd::{Body, Isa};
use crate::view::View;
use crate::workspace::{Scratch, array_bytes};

/// Sizes of the pieces that a problem is cut into; at least 1 each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiles {
    /// Query rows of a part.
    pub q: usize,
    /// Keys of a block.
    pub kv: usize,
}

/// Lanes that the tiles of a part need together: the last tile may be one vector wide.
#[inline(always)]
fn part_lanes<S: Isa>(tiles: Tiles) -> usize {
    // Cannot overflow where a part has that many rows; `scratch_bytes` checks it where not.
    tiles.q.next_multiple_of(S::LANES)
}

/// Bytes of scratch that [`Prefill`] takes for one part; `None` if no machine has as many.
pub(crate) fn scratch_bytes<S: Isa, F: Family>(shape: &Shape, tiles: Tiles) -> Option<usize> {
    tiles.q.checked_next_multiple_of(S::LANES)?;
    let lanes = part_lanes::<S>(tiles);
    let width = lanes.min(VECTORS * S::LANES);
    let arrays = [
        array_bytes(lanes.checked_mul(F::steps(shape.dim_qk))?, size_of::<F::Query>()),
        array_bytes(lanes.checked_mul(shape.dim_v)?, 4),
        array_bytes(lanes, 4),
        array_bytes(lanes, 4),
        array_bytes(tiles.kv.checked_mul(width)?, 4),
        array_bytes(tiles.kv, F::staged_k_row(shape.dim_qk)),
        array_bytes(tiles.kv, F::staged_v_row(shape.dim_v)),
    ];
    arrays.into_iter().try_fold(0usize, |sum, bytes| sum.checked_add(bytes?))
}

/// The computation of one part, to be entered with an instruction set.
pub(crate) struct Prefill<'a, 'p, F, const R: usize> {
    part: &'a Part<'p>,
    tiles: Tiles,
    scratch: Scratch<'a>,
    family: PhantomData<F>,
}

impl<'a, 'p, F, const R: usize> Prefill<'a, 'p, F, R> {
    pub(crate) fn new(part: &'a Part<'p>, tiles: Tiles, scratch: Scratch<'a>) -> Self {
        Prefill { part, tiles, scratch, family: PhantomData }
    }
}

impl<F: Family, const R: usize> Body for Prefill<'_, '_, F, R> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Prefill { part, tiles, mut scratch, .. } = self;
        let problem = part.problem();
        assert!(problem.shape().dtype == F::DTYPE && part.rows().len() <= tiles.q);

        let lanes = part_lanes::<S>(tiles);
        let width = lanes.min(VECTORS * S::LANES);
        let Shape { dim_qk, dim_v, .. } = *problem.shape();
        let buffers = Buffers::<F> {
            panel: scratch.take(lanes * F::steps(dim_qk)),
            state: State {
                output: scratch.take(lanes * dim_v),
                reference: scratch.take(lanes),
                sum: scratch.take(lanes),
            },
            scores: scratch.take(tiles.kv * width),
        };
        let staged_k = scratch.take::<u8>(tiles.kv * F::staged_k_row(dim_qk));
        let staged_v = scratch.take::<u8>(tiles.kv * F::staged_v_row(dim_v));

        // SAFETY: views and part vouch for the rows of Q, K, V and O; the arrays have the sizes
        // that the callees ask for, and each tile uses its own lanes of them.
        unsafe {
            for tile in TileIter::<S>::new(part.rows()) {
                let q = rows_of(problem.q(), part.batch(), part.head(), tile.rows.start);
                let panel = buffers.of_tile::<S>(&tile, problem).panel;
                F::pack_query(s, q, tile.rows.len(), dim_qk, tile.lanes, problem.score_factor(), panel);
            }

            let kv_head = problem.kv_head(part.head());
            let seen = seen_by(problem, &part.rows());
            let mut start = if seen.is_empty() { seen.end } else { seen.start - seen.start % tiles.kv };
            while start < seen.end {
                let block = start.max(seen.start)..seen.end.min(start.saturating_add(tiles.kv));
                let k = rows_of(problem.k(), part.batch(), kv_head, block.start);
                let v = rows_of(problem.v(), part.batch(), kv_head, block.start);
                let k = F::stage_k(s, k, block.len(), dim_qk, staged_k);
                let v = F::stage_v(s, v, block.len(), dim_v, staged_v);
                for tile in TileIter::<S>::new(part.rows()) {
                    let buffers = buffers.of_tile::<S>(&tile, problem);
                    // One vector where one is enough: half the work for the last rows.
                    if tile.lanes == S::LANES {
                        visit::<S, F, R, 1>(s, problem, &tile, &block, k, v, buffers);
                    } else {
                        visit::<S, F, R, VECTORS>(s, problem, &tile, &block, k, v, buffers);
                    }
                }
                start = start.saturating_add(tiles.kv);
            }

            let value_scale = problem.semantics().scales.v;
            for tile in TileIter::<S>::new(part.rows()) {
                let state = buffers.of_tile::<S>(&tile, problem).state;
                if tile.lanes == S::LANES {
                    epilogue::<S, 1>(s, part, tile.rows, state, value_scale);
                } else {
                    epilogue::<S, VECTORS>(s, part, tile.rows, state, value_scale);
                }
            }
        }
    }
}

/// The rows of one head from `token` on.
#[inline(always)]
fn rows_of(view: &View, batch: usize, head: usize, token: usize) -> Rows {
    Rows { base: view.row(batch, head, token), stride: view.layout().stride[2] }
}

/// Consecutive query rows that share vectors.
struct Tile {
    rows: Range<usize>,
    /// Vectors times their lanes: at least the number of rows.
    lanes: usize,
    /// Its number within the part.
    index: usize,
}

/// The tiles of a part. A type of its own and not a closure: closures are compiled without the
/// instruction set when they happen not to be inlined.
struct TileIter<S> {
    rows: Range<usize>,
    index: usize,
    isa: PhantomData<S>,
}

impl<S: Isa> TileIter<S> {
    #[inline(always)]
    fn new(rows: Range<usize>) -> Self {
        TileIter { rows, index: 0, isa: PhantomData }
    }
}

impl<S: Isa> Iterator for TileIter<S> {
    type Item = Tile;

    #[inline(always)]
    fn next(&mut self) -> Option<Tile> {
        let Range { start, end } = self.rows;
        if start == end {
            return None;
        }
        let width = VECTORS * S::LANES;
        let rows = start..end.min(start.saturating_add(width));
        let lanes = if rows.len() <= S::LANES { S::LANES } else { width };
        let index = self.index;
        self.rows.start = rows.end;
        self.index += 1;
        Some(Tile { rows, lanes, index })
    }
}

/// The keys that at least one of `rows` sees.
#[inline(always)]
fn seen_by(problem: &Problem, rows: &Range<usize>) -> Range<usize> {
    // Windows move with the row, so the first and the last row bound all others.
    let start = problem.visible(rows.start).start;
    start..problem.visible(rows.end - 1).end.max(start)
}

/// Scratch arrays of a part, or of one of its tiles.
struct Buffers<F: Family> {
    panel: *mut F::Query,
    state: State,
    scores: *mut f32,
}

impl<F: Family> Buffers<F> {
    /// The arrays of one tile.
    #[inline(always)]
    fn of_tile<S: Isa>(&self, tile: &Tile, problem: &Problem) -> Buffers<F> {
        let lane = tile.index * VECTORS * S::LANES;
        let State { reference, sum, output } = self.state;
        Buffers {
            panel: self.panel.wrapping_add(lane * F::steps(problem.shape().dim_qk)),
            state: State {
                reference: reference.wrapping_add(lane),
                sum: sum.wrapping_add(lane),
                output: output.wrapping_add(lane * problem.shape().dim_v),
            },
            scores: self.scores,
        }
    }
}

/// One tile of queries meets one block of keys.
///
/// # Safety
/// `k` and `v` are the staged rows of `block`; `buffers` are the tile's arrays, with the queries
/// packed, and the state as previous blocks left it.
#[inline(always)]
unsafe fn visit<S: Isa, F: Family, const R: usize, const Z: usize>(
    s: S,
    problem: &Problem,
    tile: &Tile,
    block: &Range<usize>,
    k: Rows,
    v: Rows,
    buffers: Buffers<F>,
) {
    let Buffers { panel, state, scores: block_scores } = buffers;
    let sight = Sight::new(problem, tile.rows.clone(), tile.lanes, block.clone());
    let n = sight.seen.len();
    if n == 0 {
        return;
    }
    let first = is_first(problem, tile, block);
    let skipped = sight.seen.start - block.start;
    let (k, v) = (k.skip(skipped), v.skip(skipped));
    let dim_v = problem.shape().dim_v;
    // SAFETY: `seen` is part of `block`, so `n` rows of k, v and scores exist; the rest is the
    // caller's contract.
    unsafe {
        let mut max = scores::<S, F, R, Z>(
            s,
            panel,
            k,
            n,
            problem.shape().dim_qk,
            problem.score_factor(),
            block_scores,
        );
        if sight.is_partial() {
            max = mask(s, block_scores, &sight);
        }
        let mut making = Probabilities::new(s, softmax::update(s, state, dim_v, max, first));

        // Values that are not finite must not meet the probability 0 of a key that is not
        // visible: 0 · NaN is NaN. All others may, so only these few keys are taken one by one.
        let mut guarded = if sight.is_partial() { next_guarded(v, &sight, 0, dim_v) } else { None };
        let mut fresh = first;
        let mut d = 0;
        if guarded.is_none() {
            d = make_and_accumulate(s, block_scores, v, n, dim_v, state.output, fresh, &mut making);
        } else {
            making.make_all(s, block_scores, n);
        }
        let mut done = 0;
        while done < n {
            let end = guarded.unwrap_or(n);
            if end > done || fresh {
                let p = block_scores.add(done * Z * S::LANES);
                accumulate::<S, R, Z>(s, p, v.skip(done), end - done, d, dim_v, state.output, fresh);
                fresh = false;
            }
            done = end;
            if let Some(key) = guarded {
                let p = block_scores.add(key * Z * S::LANES);
                accumulate_guarded::<S, Z>(s, p, v.skip(key).base, dim_v, state.output, &sight, key);
                done = key + 1;
                guarded = next_guarded(v, &sight, done, dim_v);
            }
        }
        making.finish(s, state);
    }
}

/// Whether `block` is the first one that the tile sees anything of: its state is then not
/// initialised yet.
#[inline(always)]
fn is_first(problem: &Problem, tile: &Tile, block: &Range<usize>) -> bool {
    seen_by(problem, &tile.rows).start >= block.start
}

/// The first key from `done` on, counted from `seen.start`, that some row does not see and whose
/// values are not all finite.
///
/// # Safety
/// `v` has the rows of `sight.seen`, of `dim` f32.
#[inline(always)]
unsafe fn next_guarded(v: Rows, sight: &Sight, done: usize, dim: usize) -> Option<usize> {
    let to_seen = |key: usize| key - sight.seen.start;
    let (start, end) = (to_seen(sight.by_all.start), to_seen(sight.by_all.end));
    // SAFETY: both ranges lie in `seen`.
    unsafe {
        first_not_finite(v, done..start, dim)
            .or_else(|| first_not_finite(v, done.max(end)..sight.seen.len(), dim))
    }
}
