//! The path for many query rows: lanes are query rows.
//!
//! A query tile, the rows that one thread computes at a time, is cut into lane tiles of one or two
//! vectors. Blocks of keys are the outer loop and lane tiles the inner one: a block is read from
//! memory (and staged, if its type needs it) once for all lane tiles.
//!
//! ```text
//! pack    the queries of each lane tile: transposed, scaled                  compute
//! for each split of the keys, mostly one
//! for each block of keys that some row sees
//!   look    what masks leave of it to each row; none of it: the next block   skip
//!   stage   K and V, if they cannot be read in place                         stage, compute
//!   for each lane tile that sees some of it
//!     cut into spans that the same vectors see                               mask
//!     scores -> logits -> mask (partial spans only) -> softmax -> accumulate
//!     before softmax, scores to the output, if probabilities are wanted      weights
//! where keys are split: combine the state with that of the splits before     splits
//! for each lane tile: epilogue                                               epilogue
//! ```
//!
//! Scores and the output accumulator are kept transposed: a vector holds one key, or one output
//! element, for neighbouring rows. So nothing is summed across lanes, and a row's result cannot
//! depend on its neighbours. Blocks start at multiples of the block size from key 0, whatever a row
//! sees: a row's result depends on its own keys and on the block size alone.

pub(crate) mod accumulate;
mod block;
pub(crate) mod epilogue;
pub(crate) mod gemm;
pub(crate) mod mask;
mod outliers;
pub(crate) mod prefetch;
pub(crate) mod scores;
mod skip;
pub(crate) mod softmax;
pub(crate) mod splits;
pub(crate) mod stage;
mod weights;

use std::marker::PhantomData;
use std::ops::Range;

use crate::attend::blocks::{clip, first_block, next_block};
use crate::attend::convert;
use crate::attend::finish::blank;
use crate::attend::fold::{self, Folding};
use crate::attend::rows::{Source, copy_rows, key_rows, query_rows};
use crate::attend::seen::kept_block;
use crate::attend::{K, V, VECTORS, prefetch_row};
use crate::problem::{Problem, Sequence, Shape};
use crate::simd::{Body, Isa};
use crate::view::{Layout, ScaleGranularity, View};
use crate::work::query_tiles::{QueryTile, TileSizes};
use crate::workspace::{Arena, Measure, Scratch};
use accumulate::first_not_finite;
use block::Block;
use epilogue::epilogue;
use gemm::{Gemm, staged_bytes};
use mask::Visible;
use prefetch::Prefetch;
use scores::Keys;
use skip::MaskBuffers;
use softmax::State;
pub use splits::Splits;
use splits::combine;
pub(crate) use splits::state_bytes;

/// Query rows of a whole lane tile.
pub(crate) const fn tile_rows<S: Isa>() -> usize {
    VECTORS * S::LANES
}

/// Bytes of scratch memory for one query tile; `None` if no machine has as many.
pub(crate) fn scratch_bytes<S: Isa, F: Gemm>(shape: &Shape, tiles: TileSizes) -> Option<usize> {
    measure(Sizes::of::<S, F>(shape, tiles), shape, tiles)
}

/// Bytes of all arrays. Kept out of line, so that the code exists once.
#[inline(never)]
fn measure(sizes: Sizes, shape: &Shape, tiles: TileSizes) -> Option<usize> {
    Measure::of(|arena| Buffers::of(arena, sizes, shape, tiles))
}

/// What the sizes of arrays depend on beside shape and tiles: the instruction set and the compute
/// type. In numbers, so that the code that measures exists once.
#[derive(Clone, Copy)]
struct Sizes {
    /// Lanes of all lane tiles, of which the last may be one vector wide, and keys of a block in
    /// whole spans. `None` if no machine has the memory.
    lanes: Option<usize>,
    keys: Option<usize>,
    /// f32 lanes of a vector, and of a lane tile.
    vector: usize,
    width: usize,
    panel_lines: usize,
    /// [`Gemm::INT_ACC`] and [`Gemm::query_scratch`].
    int_acc: bool,
    query: usize,
    /// Whether a word of V has several keys.
    is_packed: bool,
    staged: [usize; 2],
}

impl Sizes {
    #[inline(always)]
    fn of<S: Isa, F: Gemm>(shape: &Shape, tiles: TileSizes) -> Sizes {
        Sizes {
            lanes: tiles.q.checked_next_multiple_of(S::LANES),
            keys: tiles.kv.checked_next_multiple_of(F::SPAN_KEYS),
            vector: S::LANES,
            width: tile_rows::<S>(),
            panel_lines: panel_lines::<F>(shape),
            int_acc: F::INT_ACC,
            query: F::query_scratch(shape.storage.dtypes[0], shape.dim_qk),
            is_packed: F::PACK > 1,
            staged: staged_bytes::<F>(shape, tiles),
        }
    }
}

/// Scratch arrays of a query tile.
struct Buffers {
    /// Packed queries, state and scores of all lane tiles.
    lanes: LaneBuffers,
    /// Where keys are split: the state of a split before it is combined with that of those before.
    later: State,
    /// Query rows of one vector of lanes, while they are packed.
    queries: *mut u8,
    /// Query rows of a lane tile, where those of several heads are taken as those of one.
    grouped: *mut u8,
    /// Scales of the keys of a block, if each key has its own, and zeros, if K has some.
    key_scales: *mut f32,
    key_zeros: *mut f32,
    /// Staged K and V of a block.
    staged: [*mut u8; 2],
    /// Rows that are gathered before they are staged.
    gathered: *mut u8,
    /// What masks leave of a block.
    masks: MaskBuffers,
}

impl Buffers {
    /// Takes all arrays from `arena`. Inlined where memory is cut: a small call is as long as this,
    /// and most sizes are known when that is compiled.
    #[inline(always)]
    fn of<A: Arena>(arena: &mut A, sizes: Sizes, shape: &Shape, tiles: TileSizes) -> Buffers {
        let Sizes { lanes, keys, .. } = sizes;
        let lines = |lines: usize| lanes.and_then(|lanes| lanes.checked_mul(lines));
        let width = lanes.map_or(0, |lanes| lanes.min(sizes.width));
        let [k, v] = sizes.staged;
        let int_acc = sizes.int_acc;
        Buffers {
            lanes: LaneBuffers {
                panel: arena.take(lines(sizes.panel_lines)),
                state: State::take(arena, lanes, shape),
                scores: arena.take(keys.and_then(|keys| keys.checked_mul(width))),
                block: arena.take(if int_acc { Some(0) } else { shape.dim_v.checked_mul(width) }),
                values: arena.take(if int_acc { convert::row_bytes(shape.dim_v) / 4 } else { 0 }),
            },
            later: State::take(arena, if tiles.splits.is_some() { lanes } else { Some(0) }, shape),
            queries: arena.take(sizes.query.checked_mul(sizes.vector)),
            grouped: arena.take(if tiles.heads > 1 {
                shape.storage.dtypes[0].row_bytes(shape.dim_qk).and_then(|row| row.checked_mul(width))
            } else {
                Some(0)
            }),
            key_scales: arena.take(if has_key_scales(int_acc, shape) { tiles.kv } else { 0 }),
            key_zeros: arena.take(if has_key_zeros(int_acc, shape) { tiles.kv } else { 0 }),
            staged: [arena.take(k), arena.take(v)],
            gathered: arena.take(stage::gathered_bytes(shape)),
            masks: MaskBuffers::of(arena, shape, tiles, sizes.width, !sizes.is_packed && !tiles.staged[V]),
        }
    }
}

/// Lines of a panel of packed queries.
#[inline(always)]
fn panel_lines<F: Gemm>(shape: &Shape) -> usize {
    F::PANEL_HEADER + F::steps(shape.dim_qk)
}

/// Whether integer scores are multiplied by a scale of their key. A scale that all keys of a head
/// share is a factor of the queries.
#[inline(always)]
fn has_key_scales(int_acc: bool, shape: &Shape) -> bool {
    int_acc && shape.storage.granularities[1] == ScaleGranularity::PerToken
}

/// Whether integer scores are corrected by zeros of K.
#[inline(always)]
fn has_key_zeros(int_acc: bool, shape: &Shape) -> bool {
    int_acc && shape.storage.zeros[1]
}

/// The computation of one query tile, to be entered with an instruction set. `R` is the height of
/// the register tiles: keys of a score tile, elements of an output tile.
pub(crate) struct Prefill<'a, 'p, F, const R: usize> {
    query_tile: &'a QueryTile<'p>,
    tiles: TileSizes,
    splits: Option<Splits<'a, 'p>>,
    scratch: Scratch<'a>,
    compute: PhantomData<F>,
}

impl<'a, 'p, F, const R: usize> Prefill<'a, 'p, F, R> {
    pub(crate) fn new(
        query_tile: &'a QueryTile<'p>,
        tiles: TileSizes,
        splits: Option<Splits<'a, 'p>>,
        scratch: Scratch<'a>,
    ) -> Self {
        Prefill { query_tile, tiles, splits, scratch, compute: PhantomData }
    }
}

impl<F: Gemm, const R: usize> Body for Prefill<'_, '_, F, R> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Prefill { query_tile: part, tiles, splits, mut scratch, .. } = self;
        let problem = part.problem();
        assert!(part.rows().len() <= tiles.q);
        let shape = problem.shape();
        let Shape { dim_qk, dim_v, .. } = *shape;
        let Buffers {
            lanes: mut buffers,
            later,
            queries,
            grouped,
            key_scales,
            key_zeros,
            staged: [staged_k, staged_v],
            gathered,
            masks,
        } = Buffers::of(&mut scratch, Sizes::of::<S, F>(shape, tiles), shape, tiles);
        let key_scales = has_key_scales(F::INT_ACC, shape).then_some(key_scales);
        let key_zeros = has_key_zeros(F::INT_ACC, shape).then_some(key_zeros);
        let scans = shape.scans_masks;

        // SAFETY: rows of Q, K and V lie in their views (I2), rows of O are this query tile's alone
        // (I3), and the arrays have the sizes that the callees ask for (I5). Each lane tile uses
        // its own lanes.
        unsafe {
            let (sequence, head) = (part.sequence(), part.head());
            let kv_head = problem.kv_head(head);
            let of_tile = part.seen();
            let mut factor = problem.score_factor();
            let mut folding = None;
            if F::INT_ACC
                && let Some(first) = sequence.some_key(&of_tile.keys)
            {
                folding = Folding::of(problem, sequence, kv_head, first);
                if shape.storage.granularities[1] == ScaleGranularity::PerHead {
                    factor *= key_rows(problem, problem.k(), sequence, kv_head, first).scale();
                }
            }
            let folding = folding.as_ref();
            let (masked, mut maybe_nan) = (problem.logits().has_masks(), problem.changes_scores());
            let prefetches = of_tile.len() >= tiles.tuning.prefill.prefetch_queries_from;
            for tile in LaneTiles::<S>::new(part.rows()) {
                for row in tile.after_next::<S>(&part.rows()).filter(|_| prefetches) {
                    let row = query_rows(problem, sequence, head, row);
                    prefetch_row(s, row.rows().base, row.view.layout().row_bytes());
                }
                let mut q = query_rows(problem, sequence, head, tile.rows.start);
                let view;
                if sequence.is_grouped() {
                    view = group(problem, sequence, head, &tile.rows, grouped);
                    if let Some(view) = &view {
                        q = Source { view, at: [0; 3] };
                    }
                }
                let LaneBuffers { panel, .. } = buffers.of_tile::<S, F>(&tile, problem);
                let n = tile.rows.len();
                maybe_nan |= F::pack_query(s, q, n, dim_qk, tile.lanes, factor, folding, panel, queries);
            }

            let tile_count = part.rows().len().div_ceil(tile_rows::<S>());
            let lanes = part.rows().len().next_multiple_of(S::LANES);
            let own = [buffers.state, later];
            let count = splits.as_ref().map_or(1, |splits| splits.work.splits.len());
            // Single keys are added to the state of the first split, before others are.
            let began_before = splits.as_ref().is_some_and(|splits| splits.work.began_before());
            let columns = if began_before { None } else { part.of_columns() };
            let single = usize::from(columns.is_some());
            for pass in 0..count + single {
                let n = if pass > 0 { pass - single } else { 0 };
                let columns = columns.as_ref().filter(|_| pass == 1);
                let mut all_seen = of_tile.clone();
                let mut keys = None;
                if let Some(columns) = columns {
                    all_seen = columns.seen().clone();
                    if let Some(splits) = &splits {
                        buffers.state = splits.state::<S>(0, own, tiles, shape);
                    }
                } else if let Some(splits) = &splits {
                    let of_split = splits.work.keys(splits.work.splits.start + n);
                    all_seen.keys = clip(all_seen.keys, &of_split);
                    if n > 0 && !began_before && all_seen.keys.is_empty() && problem.weights().is_none() {
                        continue;
                    }
                    keys = Some(of_split);
                    buffers.state = splits.state::<S>(n, own, tiles, shape);
                }
                let (part, tiles, scans) = match columns {
                    None => (part, tiles, scans),
                    Some(columns) => (columns, tiles.of_columns(), false),
                };
                let (seen, sequence) = (&all_seen.keys, part.sequence());
                let kept = |block| {
                    let size = [tiles.kv, F::SPAN_KEYS];
                    kept_block(problem, sequence, &(head..head + 1), &part.rows(), &all_seen, block, size)
                };
                let mut whole_block = kept(first_block(&all_seen, tiles.kv, F::SPAN_KEYS));
                if columns.is_none() {
                    // Of single keys, no one can say which are the first that a row sees.
                    let is_blank = (whole_block.is_empty() && !scans) || shape.columns.is_some();
                    splits::begin(buffers.state, lanes, dim_v, is_blank);
                    if problem.weights().is_some() {
                        weights::begin(s.core(), part, keys);
                    }
                }
                if scans {
                    masks.begin(tile_count);
                }
                let mut is_first = columns.is_none();
                while !whole_block.is_empty() {
                    let next = kept(next_block(&all_seen, &whole_block, tiles.kv, F::SPAN_KEYS));
                    let (start, mut block, mut is_mixed) =
                        (whole_block.start, whole_block, masked && columns.is_none());
                    if scans {
                        let is_first = block.start <= seen.start;
                        (block, is_mixed) = masks.look(s.core(), part, &block, F::SPAN_KEYS, is_first);
                    }
                    whole_block = next.clone();
                    if block.is_empty() {
                        continue;
                    }
                    is_mixed |= problem.columns_in(sequence, head, &block).is_some();
                    let staged = tiles.staged;
                    let (k, _) = stage::rows::<S, F, K>(
                        s, problem, sequence, kv_head, &block, staged, staged_k, gathered,
                    );
                    let (v, left_out) = stage::rows::<S, F, V>(
                        s, problem, sequence, kv_head, &block, staged, staged_v, gathered,
                    );
                    // Where all rows see ranges, only keys at the ends of spans can be hidden from
                    // one.
                    let (mut v, mut has_nonfinite) = (v, left_out);
                    if F::PACK == 1 && is_mixed {
                        has_nonfinite = first_not_finite(s, v, 0..block.len(), dim_v).is_some();
                    }
                    if scans && has_nonfinite {
                        let is_packed = F::PACK > 1;
                        (v, has_nonfinite) =
                            masks.clean(s.core(), part, &block, start, tiles.staged[V], is_packed, v);
                    }
                    let mut maybe_nan = maybe_nan;
                    let of_keys = [key_scales, key_zeros];
                    if of_keys != [None; 2] {
                        maybe_nan |= stage::scales_and_zeros(problem, sequence, kv_head, &block, of_keys);
                    }
                    let [scales, zeros] = of_keys.map(|to| to.map(|to| to.cast_const()));
                    let k = Keys { rows: k, scales, zeros };
                    let block_of = Block {
                        keys: block.clone(),
                        is_first,
                        k,
                        v,
                        has_nonfinite,
                        maybe_nan,
                        tuning: tiles.tuning,
                    };
                    is_first = false;
                    let mut ahead = if columns.is_some() { 0..0 } else { next.clone() };
                    if let Some(splits) = &splits
                        && ahead.is_empty()
                        && columns.is_none()
                    {
                        ahead = splits.begin_of(n + 1, of_tile, tiles.kv);
                    }
                    let mut prefetch = Prefetch::new(part, &ahead, tiles.kv, tile_count * (block.len() / R));
                    for tile in LaneTiles::<S>::new(part.rows()) {
                        let mut visible = Visible { sequence, unmasked: None };
                        if scans {
                            match masks.of_tile(s.core(), part, &tile, start, &next) {
                                Some(unmasked) => visible = unmasked,
                                None => continue,
                            }
                        }
                        let buffers = buffers.of_tile::<S, F>(&tile, problem);
                        block::attend::<S, F, R>(s, part, &tile, &block_of, &visible, buffers, &mut prefetch);
                    }
                    prefetch.finish(s.core());
                }
                for tile in LaneTiles::<S>::new(part.rows()).filter(|_| scans) {
                    if !masks.has_begun(&tile) {
                        blank(buffers.of_tile::<S, F>(&tile, problem).state.output, dim_v * tile.lanes);
                    }
                }
                if let Some(splits) = &splits
                    && n > 0
                    && !began_before
                    && columns.is_none()
                {
                    combine(s, part.rows(), dim_v, splits.state::<S>(0, own, tiles, shape), buffers.state);
                }
            }

            if let Some(splits) = &splits {
                if !splits.work.is_whole() {
                    return;
                }
                buffers.state = own[0];
            }
            let (scale, values) = values_of(part, F::INT_ACC);
            for tile in LaneTiles::<S>::new(part.rows()) {
                for row in tile.after_next::<S>(&part.rows()).filter(|_| prefetches) {
                    prefetch_row(s, part.output(row, 1), problem.o().layout().row_bytes());
                }
                let state = buffers.of_tile::<S, F>(&tile, problem).state;
                epilogue(s, part, tile.rows, state, scale, values);
            }
        }
    }
}

/// What outputs of a tile are still to be multiplied by, and what has the scales and zeros of their
/// elements, where sums are those of the integers of V.
#[inline(always)]
fn values_of<'p>(tile: &QueryTile<'p>, sums_integers: bool) -> (f32, Option<Source<'p>>) {
    let (problem, sequence) = (tile.problem(), tile.sequence());
    let Some(key) = sequence.some_key(&tile.seen().keys).filter(|_| sums_integers) else {
        return (1.0, None);
    };
    let kv_head = problem.kv_head(tile.head());
    match fold::values(problem, sequence, kv_head, key) {
        None => (key_rows(problem, problem.v(), sequence, kv_head, key).scale(), None),
        values => (1.0, values),
    }
}

/// Copies query rows of several heads, which are taken as rows of one, to rows behind one another.
/// Kept out of line: it uses no vectors of its own.
///
/// # Safety
/// `rows` are those of the sequence (I2), and `to` has room for them (I5).
#[inline(never)]
unsafe fn group<'a>(
    problem: &Problem,
    sequence: &Sequence,
    head: usize,
    rows: &Range<usize>,
    to: *mut u8,
) -> Option<View<'a>> {
    let Layout { dtype, dim, .. } = *problem.q().layout();
    let layout = Layout::dense(dtype, 1, rows.len(), dim).ok()?;
    let bytes = layout.row_bytes();
    for (i, row) in rows.clone().enumerate() {
        let from = query_rows(problem, sequence, head, row).rows();
        // SAFETY: one row, and room for it (caller).
        unsafe { copy_rows(from, 1, bytes, to.add(i * bytes), bytes, bytes) };
    }
    // SAFETY: I5: the rows that have just been written, which nobody else uses.
    unsafe { View::new(to, layout).ok() }
}

/// Consecutive query rows that share vectors.
struct LaneTile {
    rows: Range<usize>,
    /// Lanes of its vectors, at least as many as rows.
    lanes: usize,
    /// Its number within the query tile.
    index: usize,
}

impl LaneTile {
    /// The rows of the lane tile after the next one; for the first lane tile, its own and the next
    /// one's, too.
    #[inline(always)]
    fn after_next<S: Isa>(&self, part: &Range<usize>) -> Range<usize> {
        let ahead = 2 * tile_rows::<S>();
        let start = if self.index == 0 { self.rows.start } else { self.rows.start + ahead };
        start.min(part.end)..part.end.min(self.rows.start.saturating_add(ahead + tile_rows::<S>()))
    }
}

/// The lane tiles of a query tile. A type and not a closure, because a closure that is not inlined
/// is compiled without the instruction set.
struct LaneTiles<S> {
    rows: Range<usize>,
    index: usize,
    isa: PhantomData<S>,
}

impl<S: Isa> LaneTiles<S> {
    #[inline(always)]
    fn new(rows: Range<usize>) -> Self {
        LaneTiles { rows, index: 0, isa: PhantomData }
    }
}

impl<S: Isa> Iterator for LaneTiles<S> {
    type Item = LaneTile;

    #[inline(always)]
    fn next(&mut self) -> Option<LaneTile> {
        let Range { start, end } = self.rows;
        if start == end {
            return None;
        }
        let width = tile_rows::<S>();
        let rows = start..end.min(start.saturating_add(width));
        let lanes = if rows.len() <= S::LANES { S::LANES } else { width };
        let index = self.index;
        self.rows.start = rows.end;
        self.index += 1;
        Some(LaneTile { rows, lanes, index })
    }
}

/// Scratch arrays of all lane tiles of a query tile, or of one of them.
struct LaneBuffers {
    panel: *mut f32,
    state: State,
    scores: *mut f32,
    /// The output of one block, where that has several spans, or hidden values that are not finite;
    /// not with [`Gemm::INT_ACC`].
    block: *mut f32,
    /// A row of V as f32, with [`Gemm::INT_ACC`].
    values: *mut f32,
}

impl LaneBuffers {
    /// The arrays of one lane tile. Scores, sums of a block and values are the same arrays for all.
    #[inline(always)]
    fn of_tile<S: Isa, F: Gemm>(&self, tile: &LaneTile, problem: &Problem) -> LaneBuffers {
        let lane = tile.index * tile_rows::<S>();
        LaneBuffers {
            panel: self.panel.wrapping_add(lane * panel_lines::<F>(problem.shape())),
            state: self.state.of_tile::<S>(tile.index, tile.lanes, problem.shape().dim_v),
            scores: self.scores,
            block: self.block,
            values: self.values,
        }
    }
}
