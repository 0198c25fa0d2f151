//! One part, many queries: lanes are query rows.
//!
//! The rows of a part are cut into tiles of one or two vectors. Blocks of keys are the outer
//! loop and tiles the inner one, so that a block is read from memory (and staged, if its type
//! needs it) once for all tiles of the part:
//!
//! ```text
//! pack    the queries of each tile: transposed, scaled                       family
//! for each block of keys that some row sees
//!   stage   K and V, if they cannot be read where they lie                   family
//!   for each tile that sees some of it
//!     cut into spans that the same vectors see                               attend::mask
//!     scores -> logits -> mask (partial spans only) -> softmax -> accumulate attend
//! for each tile: epilogue                                                    attend
//! ```
//!
//! Blocks start at multiples of the block size from key 0, whatever a row sees: a row's result
//! depends on its own keys and the block size, not on the rows it shares a tile or part with.

pub(crate) mod accumulate;
pub(crate) mod epilogue;
pub(crate) mod gemm;
pub(crate) mod mask;
pub(crate) mod prefetch;
pub(crate) mod scores;
pub(crate) mod softmax;
pub(crate) mod stage;

use std::marker::PhantomData;
use std::ops::Range;

use crate::attend::blocks::{first_block, next_block};
use crate::attend::finish::blank;
use crate::attend::logits::Logits;
use crate::attend::rows::{Rows, key_rows, query_rows};
use crate::attend::{K, MAX_WIDTH, V, VECTORS, fetch};
use crate::problem::{Problem, Shape};
use crate::simd::{Body, Isa};
use crate::view::ScaleGranularity;
use crate::work::query_tiles::{QueryTile, TileSizes};
use crate::workspace::{Arena, Scratch, array_bytes};
use accumulate::{accumulate, accumulate_guarded, first_not_finite};
use epilogue::epilogue;
use gemm::{Gemm, staged_bytes};
use mask::Span;
use prefetch::Prefetch;
use scores::Keys;
use softmax::{Probabilities, State};

/// Query rows of a whole tile.
pub(crate) const fn tile_rows<S: Isa>() -> usize {
    VECTORS * S::LANES
}

/// Lanes that the tiles of a part need together: the last tile may be one vector wide.
#[inline(always)]
fn part_lanes<S: Isa>(tiles: TileSizes) -> usize {
    // Cannot overflow where a part has that many rows; `scratch_bytes` checks it where not.
    tiles.q.next_multiple_of(S::LANES)
}

/// Bytes of scratch that [`Prefill`] takes for one part; `None` if no machine has as many.
pub(crate) fn scratch_bytes<S: Isa, F: Gemm>(shape: &Shape, tiles: TileSizes) -> Option<usize> {
    tiles.q.checked_next_multiple_of(S::LANES)?;
    let lanes = part_lanes::<S>(tiles);
    let width = lanes.min(tile_rows::<S>());
    let arrays = [
        array_bytes(lanes.checked_mul(panel_lines::<F>(shape))?, 4),
        array_bytes(lanes.checked_mul(shape.dim_v)?, 4),
        array_bytes(lanes, 4),
        array_bytes(lanes, 4),
        array_bytes(tiles.kv.checked_next_multiple_of(F::SPAN_KEYS)?.checked_mul(width)?, 4),
        array_bytes(room_for_queries::<S, F>(shape), 1),
        array_bytes(key_scales::<F>(shape, tiles), 4),
        array_bytes(staged_bytes::<F>(shape, tiles)[0], 1),
        array_bytes(staged_bytes::<F>(shape, tiles)[1], 1),
    ];
    arrays.into_iter().try_fold(0usize, |sum, bytes| sum.checked_add(bytes?))
}

/// Bytes for as many query rows as a vector has lanes, while they are packed.
#[inline(always)]
fn room_for_queries<S: Isa, F: Gemm>(shape: &Shape) -> usize {
    F::query_scratch(shape.storage.dtypes[0], shape.dim_qk).saturating_mul(S::LANES)
}

/// Lines of a panel of packed queries.
#[inline(always)]
fn panel_lines<F: Gemm>(shape: &Shape) -> usize {
    F::PANEL_HEADER + F::steps(shape.dim_qk)
}

/// Keys of a block whose scales are kept apart from them: those of heads are queries' affair.
#[inline(always)]
fn key_scales<F: Gemm>(shape: &Shape, tiles: TileSizes) -> usize {
    if F::INT_ACC && shape.storage.granularities[1] == ScaleGranularity::PerToken { tiles.kv } else { 0 }
}

/// The computation of one part, to be entered with an instruction set.
pub(crate) struct Prefill<'a, 'p, F, const R: usize> {
    part: &'a QueryTile<'p>,
    tiles: TileSizes,
    scratch: Scratch<'a>,
    family: PhantomData<F>,
}

impl<'a, 'p, F, const R: usize> Prefill<'a, 'p, F, R> {
    pub(crate) fn new(part: &'a QueryTile<'p>, tiles: TileSizes, scratch: Scratch<'a>) -> Self {
        Prefill { part, tiles, scratch, family: PhantomData }
    }
}

impl<F: Gemm, const R: usize> Body for Prefill<'_, '_, F, R> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Prefill { part, tiles, mut scratch, .. } = self;
        let problem = part.problem();
        assert!(part.rows().len() <= tiles.q);

        let lanes = part_lanes::<S>(tiles);
        let width = lanes.min(tile_rows::<S>());
        let shape = problem.shape();
        let Shape { dim_qk, dim_v, .. } = *shape;
        let buffers = Buffers {
            panel: scratch.take(lanes * panel_lines::<F>(shape)),
            state: State {
                output: scratch.take(lanes * dim_v),
                reference: scratch.take(lanes),
                sum: scratch.take(lanes),
                lanes,
            },
            scores: scratch.take(tiles.kv.next_multiple_of(F::SPAN_KEYS) * width),
        };
        let room = scratch.take::<u8>(room_for_queries::<S, F>(shape));
        let key_scales = key_scales::<F>(shape, tiles);
        let scales = scratch.take::<f32>(key_scales);
        let [staged_k, staged_v] = staged_bytes::<F>(shape, tiles).map(|bytes| scratch.take::<u8>(bytes));

        // SAFETY: views and part vouch for the rows of Q, K, V and O; the arrays have the sizes
        // that the callees ask for, and each tile uses its own lanes of them.
        unsafe {
            let (sequence, head) = (part.sequence(), part.head());
            let kv_head = problem.kv_head(head);
            let seen = sequence.seen_by(&part.rows());
            let mut factor = problem.score_factor();
            let mut out_scale = 1.0;
            if F::INT_ACC && !seen.is_empty() {
                let first_of = |view| key_rows(problem, view, sequence, kv_head, seen.start);
                out_scale = first_of(problem.v()).scale();
                if key_scales == 0 {
                    factor *= first_of(problem.k()).scale();
                }
            }
            let mut doubtful = problem.changes_scores();
            let worth_fetching = seen.len() >= FETCH_FROM;
            for tile in TileIter::<S>::new(part.rows()) {
                for row in tile.after_next::<S>(&part.rows()).filter(|_| worth_fetching) {
                    let row = query_rows(problem, sequence, head, row);
                    fetch(s, row.rows().base, row.view.layout().row_bytes());
                }
                let q = query_rows(problem, sequence, head, tile.rows.start);
                let Buffers { panel, state, .. } = buffers.of_tile::<S, F>(&tile, problem);
                doubtful |= F::pack_query(s, q, tile.rows.len(), dim_qk, tile.lanes, factor, panel, room);
                state.begin(s);
                // What comes first is not known where blocks may be skipped.
                if sequence.seen_by(&tile.rows).is_empty() || problem.logits().cells.is_some() {
                    blank(state.output, dim_v * state.lanes);
                }
            }

            let tile_count = part.rows().len().div_ceil(tile_rows::<S>());
            let mut block = first_block(&seen, tiles.kv, F::SPAN_KEYS);
            while !block.is_empty() {
                let [any, _] = problem.any_and_all(sequence, head, &part.rows(), &block);
                if !any {
                    block = next_block(&seen, &block, tiles.kv);
                    continue;
                }
                let (k, _) =
                    stage::rows::<S, F, K>(s, problem, sequence, kv_head, &block, tiles.staged, staged_k);
                let (v, left_out) =
                    stage::rows::<S, F, V>(s, problem, sequence, kv_head, &block, tiles.staged, staged_v);
                // Without a mask only the keys at the ends of spans can be hidden from a row.
                let suspects = left_out
                    || (F::PACK == 1
                        && problem.logits().hides()
                        && first_not_finite(v, 0..block.len(), dim_v).is_some());
                let mut doubtful = doubtful;
                if key_scales > 0 {
                    doubtful |= stage::key_scales(problem, sequence, kv_head, &block, scales);
                }
                let k = Keys { rows: k, scales: (key_scales > 0).then_some(scales.cast_const()) };
                let block_of = Block { keys: block.clone(), k, v, suspects, doubtful };
                let next = next_block(&seen, &block, tiles.kv);
                let mut ahead = Prefetch::new(part, &next, tiles.kv, tile_count * (block.len() / R));
                for tile in TileIter::<S>::new(part.rows()) {
                    let [any, _] = problem.any_and_all(sequence, head, &tile.rows, &block);
                    if !any {
                        continue;
                    }
                    let buffers = buffers.of_tile::<S, F>(&tile, problem);
                    visit::<S, F, R>(s, part, &tile, &block_of, buffers, &mut ahead);
                }
                ahead.finish(s);
                block = next;
            }

            for tile in TileIter::<S>::new(part.rows()) {
                for row in tile.after_next::<S>(&part.rows()).filter(|_| worth_fetching) {
                    fetch(s, part.output(row, 1), problem.o().layout().row_bytes());
                }
                let state = buffers.of_tile::<S, F>(&tile, problem).state;
                if tile.lanes == S::LANES {
                    epilogue::<S, 1>(s, part, tile.rows, state, out_scale);
                } else {
                    epilogue::<S, VECTORS>(s, part, tile.rows, state, out_scale);
                }
            }
        }
    }
}

/// Keys from which on the rows of Q and O are fetched ahead: packing and epilogue touch sixteen rows
/// at a time, which the machine does not foresee. Below, asking costs more than it hides.
const FETCH_FROM: usize = 256;

/// Consecutive query rows that share vectors.
struct Tile {
    rows: Range<usize>,
    /// Vectors times their lanes: at least the number of rows.
    lanes: usize,
    /// Its number within the part.
    index: usize,
}

impl Tile {
    /// The rows of a part that the tile after the next one has; for the first tile, those before, too.
    #[inline(always)]
    fn after_next<S: Isa>(&self, part: &Range<usize>) -> Range<usize> {
        let ahead = 2 * tile_rows::<S>();
        let start = if self.index == 0 { self.rows.start } else { self.rows.start + ahead };
        start.min(part.end)..part.end.min(self.rows.start.saturating_add(ahead + tile_rows::<S>()))
    }
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
        let width = tile_rows::<S>();
        let rows = start..end.min(start.saturating_add(width));
        let lanes = if rows.len() <= S::LANES { S::LANES } else { width };
        let index = self.index;
        self.rows.start = rows.end;
        self.index += 1;
        Some(Tile { rows, lanes, index })
    }
}

/// Scratch arrays of a part, or of one of its tiles.
struct Buffers {
    panel: *mut f32,
    state: State,
    scores: *mut f32,
}

impl Buffers {
    /// The arrays of one tile.
    #[inline(always)]
    fn of_tile<S: Isa, F: Gemm>(&self, tile: &Tile, problem: &Problem) -> Buffers {
        let lane = tile.index * tile_rows::<S>();
        let State { reference, sum, output, .. } = self.state;
        Buffers {
            panel: self.panel.wrapping_add(lane * panel_lines::<F>(problem.shape())),
            state: State {
                reference: reference.wrapping_add(lane),
                sum: sum.wrapping_add(lane),
                output: output.wrapping_add(lane * problem.shape().dim_v),
                lanes: tile.lanes,
            },
            scores: self.scores,
        }
    }
}

/// A block of keys.
struct Block {
    keys: Range<usize>,
    /// Themselves and their values, staged.
    k: Keys,
    v: Rows,
    /// Whether any key may be hidden from some row while its values are not finite, or such values have been
    /// left out.
    suspects: bool,
    /// Whether scores may be NaN of which sums of the family would not tell.
    doubtful: bool,
}

/// One tile of queries meets one block of keys.
///
/// # Safety
/// `block` has the staged rows of its keys; `buffers` are the tile's arrays, with the queries packed, and
/// the state as previous blocks left it.
#[inline(always)]
unsafe fn visit<S: Isa, F: Gemm, const R: usize>(
    s: S,
    part: &QueryTile,
    tile: &Tile,
    block: &Block,
    buffers: Buffers,
    ahead: &mut Prefetch,
) {
    let (problem, sequence) = (part.problem(), part.sequence());
    let spans = mask::spans::<S>(sequence, &tile.rows, &block.keys, F::SPAN_KEYS, F::INT_ACC);
    let mut max = [s.splat(f32::NEG_INFINITY); VECTORS];
    // SAFETY: spans are parts of `block` and of the tile's vectors; see the steps themselves.
    unsafe {
        for span in &spans {
            let place = Place::of::<S, F>(span, tile, block, &buffers);
            match span.vectors {
                _ if span.keys.is_empty() => {}
                1 => {
                    let [x] = score::<S, F, R, 1>(s, part, span, place, ahead);
                    max[span.vector] = s.max(x, max[span.vector]);
                }
                _ => {
                    let found = score::<S, F, R, VECTORS>(s, part, span, place, ahead);
                    for (max, x) in max.iter_mut().zip(found) {
                        *max = s.max(x, *max);
                    }
                }
            }
        }
        // The tile's first keys begin its output, unless they are seen by one of its vectors only.
        let mut fresh =
            problem.logits().cells.is_none() && sequence.seen_by(&tile.rows).start >= block.keys.start;
        let first = spans.iter().find(|span| !span.keys.is_empty());
        if fresh && first.is_none_or(|span| span.vectors * S::LANES < tile.lanes) {
            blank(buffers.state.output, problem.shape().dim_v * tile.lanes);
            fresh = false;
        }
        if F::INT_ACC && block.doubtful {
            for span in spans.iter().filter(|span| !span.keys.is_empty()) {
                let Place { scores, state, .. } = Place::of::<S, F>(span, tile, block, &buffers);
                match span.vectors {
                    1 => softmax::mark_not_numbers::<S, 1>(s, scores, span.keys.len(), state.sum),
                    _ => softmax::mark_not_numbers::<S, VECTORS>(s, scores, span.keys.len(), state.sum),
                }
            }
        }
        let relative = softmax::update::<S, F>(s, buffers.state, problem.shape().dim_v, max);
        let mut making = Probabilities::new(s, relative);
        for span in &spans {
            let place = Place::of::<S, F>(span, tile, block, &buffers);
            match span.vectors {
                _ if span.keys.is_empty() => {}
                1 => weigh::<S, F, R, 1>(s, part, span, place, fresh, &mut making),
                _ => weigh::<S, F, R, VECTORS>(s, part, span, place, fresh, &mut making),
            }
            fresh &= span.keys.is_empty();
        }
        making.finish(s, buffers.state);
    }
}

/// Where one span finds its keys, values and arrays.
struct Place {
    k: Keys,
    v: Rows,
    panel: *const f32,
    scores: *mut f32,
    state: State,
    suspects: bool,
}

impl Place {
    #[inline(always)]
    fn of<S: Isa, F: Gemm>(span: &Span, tile: &Tile, block: &Block, buffers: &Buffers) -> Place {
        let key = span.keys.start - block.keys.start;
        Place {
            k: block.k.skip(key),
            v: block.v.skip(key / F::PACK),
            suspects: block.suspects,
            panel: buffers.panel.wrapping_add(span.vector * S::LANES),
            // Spans before this one have left room for whole tiles.
            scores: buffers.scores.wrapping_add(key * tile.lanes),
            state: buffers.state.from::<S>(span.vector),
        }
    }
}

/// Scores of one span, masked; returns their maximum for each lane.
///
/// # Safety
/// As [`visit`], for the span's place; the span has `Z` vectors.
#[inline(always)]
unsafe fn score<S: Isa, F: Gemm, const R: usize, const Z: usize>(
    s: S,
    part: &QueryTile,
    span: &Span,
    place: Place,
    ahead: &mut Prefetch,
) -> [S::F32; Z] {
    let Place { k, panel, scores, state, .. } = place;
    let logits = Logits::of(part.problem(), part.sequence(), part.head(), &span.rows, &span.keys);
    let (problem, sequence) = (part.problem(), part.sequence());
    let dim = problem.shape().dim_qk;
    let mut max = [s.splat(f32::NEG_INFINITY); Z];
    // The keys that every row sees, as far as they fill register tiles, and those at either end, which
    // are masked.
    let [_, by_all, all] = span.thirds();
    let start = by_all.start.next_multiple_of(R).min(all.end);
    let end = (by_all.end - by_all.end % R).max(start);
    for (third, keys) in [0..start, start..end, end..all.end].into_iter().enumerate() {
        if keys.is_empty() {
            continue;
        }
        // SAFETY: rows of k and scores exist for all keys of the span; the rest is the caller's
        // contract.
        unsafe {
            let out = scores.add(keys.start * Z * S::LANES);
            let k = k.skip(keys.start);
            let mut found = F::score_span::<S, R, Z>(s, panel, state.lanes, k, keys.len(), dim, out, ahead);
            if let Some(logits) = &logits {
                let keys = span.keys.start + keys.start..span.keys.start + keys.end;
                found = logits.change::<S, Z>(s, &span.rows, keys, out);
            }
            if third == 1 {
                for (max, found) in max.iter_mut().zip(found) {
                    *max = s.max(found, *max);
                }
            } else {
                mask::mask(s, scores, keys, &span.sight::<S>(sequence), &mut max);
            }
        }
    }
    max
}

/// Probabilities of one span from its scores, and their product with the values: added to the output, or
/// the first of it if `fresh`.
///
/// # Safety
/// As [`visit`], for the span's place, with its scores made; the span has `Z` vectors.
#[inline(always)]
unsafe fn weigh<S: Isa, F: Gemm, const R: usize, const Z: usize>(
    s: S,
    part: &QueryTile,
    span: &Span,
    place: Place,
    fresh: bool,
    all_making: &mut Probabilities<S, F, VECTORS>,
) {
    let Place { v, scores: p, state, suspects, .. } = place;
    let State { output, lanes, .. } = state;
    let (problem, n) = (part.problem(), span.keys.len());
    let dim = problem.shape().dim_v;
    let mut making = all_making.part::<Z>(span.vector);
    // Values that are not finite must not meet the probability 0 of a key that is not visible: 0 · NaN is NaN. Types with
    // several keys in a word leave such values out when they stage V, and add them behind. Others take these few keys one
    // by one.
    // SAFETY: `n` rows of v exist, of f32 if words have one key; scores exist for all keys of the span, with room for
    // whole groups (caller).
    unsafe {
        let guarded = if F::PACK > 1 { None } else { next_guarded(v, span, suspects, 0, dim) };
        match guarded {
            Some(first) => {
                making.make_all(s, p, n);
                accumulate_around::<S, F, R, Z>(s, part, span, place, first, fresh, making.weight());
            }
            None => {
                let groups = n.div_ceil(F::PACK);
                // The end of the last group or tile, if it is the block's.
                for at in n * Z..n.next_multiple_of(F::SPAN_KEYS) * Z {
                    s.store(p.add(at * S::LANES), s.splat(f32::NEG_INFINITY));
                }
                F::value_span::<S, R, Z>(s, p, v, groups, dim, output, lanes, fresh, &mut making);
                if F::PACK > 1 && suspects {
                    add_what_is_not_finite::<F>(part, span, p, Z * S::LANES, output, lanes);
                }
            }
        }
    }
    all_making.put_back(span.vector, &making);
}

/// Adds the values of a span to the output key by key where some row does not see a key whose values are not all finite,
/// the first of which is `guarded`, and as ever between such keys.
///
/// # Safety
/// As [`weigh`], of a type with one key in a word, with probabilities in place of scores.
#[inline(always)]
unsafe fn accumulate_around<S: Isa, F: Gemm, const R: usize, const Z: usize>(
    s: S,
    part: &QueryTile,
    span: &Span,
    place: Place,
    guarded: usize,
    mut fresh: bool,
    weight: [S::F32; Z],
) {
    let Place { v, scores: p, state: State { output, lanes, .. }, suspects, .. } = place;
    let (n, dim) = (span.keys.len(), part.problem().shape().dim_v);
    let (mut done, mut guarded) = (0, Some(guarded));
    while done < n {
        let end = guarded.unwrap_or(n);
        // SAFETY: keys of the span, which the caller has vouched for.
        unsafe {
            let from = p.add(done * Z * S::LANES);
            let rows = v.skip(done);
            accumulate::<S, F, R, Z>(s, from, rows, end - done, 0, dim, output, lanes, fresh, weight);
            fresh = false;
            done = end;
            if let Some(key) = guarded {
                let (from, row) = (p.add(key * Z * S::LANES), v.skip(key).base);
                let sees = who_sees(part, &span.rows, span.keys.start + key);
                accumulate_guarded::<S, Z>(s, from, row, dim, output, lanes, &sees);
                done = key + 1;
                guarded = next_guarded(v, span, suspects, done, dim);
            }
        }
    }
}

/// Values that are not finite and that [`Gemm::stage_v`] has left out, for the rows that see them.
///
/// # Safety
/// As [`weigh`], whose words of probabilities `words` has, `width` for each group.
#[cold]
#[inline(never)]
unsafe fn add_what_is_not_finite<F: Gemm>(
    part: &QueryTile,
    span: &Span,
    words: *const f32,
    width: usize,
    output: *mut f32,
    lanes: usize,
) {
    let (problem, sequence, head) = (part.problem(), part.sequence(), part.head());
    for (i, key) in span.keys.clone().enumerate() {
        let [page, token] = problem.key_at(sequence, key);
        for d in 0..problem.shape().dim_v {
            let x = problem.v().get(page, problem.kv_head(head), token, d) as f32;
            if x.is_finite() {
                continue;
            }
            for (lane, row) in span.rows.clone().enumerate() {
                if problem.sees(sequence, head, row, key) {
                    // SAFETY: one of the caller's groups and lanes, and an element of the output.
                    unsafe {
                        let word = words.cast::<u32>().add(i / F::PACK * width + lane).read();
                        let at = output.add(d * lanes + lane);
                        at.write(at.read() + F::probability(word, i % F::PACK) * x);
                    }
                }
            }
        }
    }
}

/// 1 for each of `rows` that sees a key. Out of line, because it is rare.
#[cold]
#[inline(never)]
fn who_sees(part: &QueryTile, rows: &Range<usize>, key: usize) -> [f32; MAX_WIDTH] {
    let mut sees = [0.0; MAX_WIDTH];
    for (row, sees) in rows.clone().zip(&mut sees) {
        *sees = f32::from(part.problem().sees(part.sequence(), part.head(), row, key));
    }
    sees
}

/// The first key from `done` on, counted from the span's first, that some row does not see and
/// whose values are not all finite.
///
/// # Safety
/// `v` has the rows of `span`, of `dim` f32.
#[inline(always)]
unsafe fn next_guarded(v: Rows, span: &Span, suspects: bool, done: usize, dim: usize) -> Option<usize> {
    let [before, middle, behind] = span.thirds();
    // In the order of the keys.
    for keys in [before, if suspects { middle } else { 0..0 }, behind] {
        // SAFETY: part of the span.
        let found = unsafe { first_not_finite(v, keys.start.max(done)..keys.end, dim) };
        if found.is_some() {
            return found;
        }
    }
    None
}
