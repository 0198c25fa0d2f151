//! A block of keys and a lane tile: scores, softmax and accumulation, span by span.

use std::ops::Range;

use super::accumulate::{Onto, accumulate, accumulate_guarded, add_block, first_not_finite};
use super::gemm::Gemm;
use super::mask::{self, Span, Visible};
use super::outliers::{self, Outliers, Reference, Scores};
use super::prefetch::Prefetch;
use super::scores::{self, Correct, Keys};
use super::softmax::{self, Probabilities, State};
use super::weights;
use super::{LaneBuffers, LaneTile};
use crate::attend::finish::blank;
use crate::attend::logits::Logits;
use crate::attend::rows::Rows;
use crate::attend::{MAX_WIDTH, VECTORS};
use crate::simd::Isa;
use crate::simd::lane::Registers;
use crate::tuning::Tuning;
use crate::work::query_tiles::QueryTile;

/// A block of keys.
pub(super) struct Block {
    pub(super) keys: Range<usize>,
    /// Whether it is the first that is computed of the keys, or of their split.
    pub(super) is_first: bool,
    /// Rows of K, and groups of V, as the compute type reads them.
    pub(super) k: Keys,
    pub(super) v: Rows,
    /// Whether a key that is hidden from some row may have values that are not finite, or such
    /// values were left out when V was staged.
    pub(super) has_nonfinite: bool,
    /// Whether scores may be NaN without the compute type's sums showing it.
    pub(super) maybe_nan: bool,
    pub(super) tuning: &'static Tuning,
}

/// Computes a block of keys for one lane tile.
///
/// # Safety
/// `block` has the rows of its keys. `buffers` are the arrays of the lane tile, with the queries
/// packed and the state that the previous blocks left.
#[inline(always)]
pub(super) unsafe fn attend<S: Isa, F: Gemm, const R: usize>(
    s: S,
    part: &QueryTile,
    tile: &LaneTile,
    block: &Block,
    visible: &Visible,
    buffers: LaneBuffers,
    prefetch: &mut Prefetch,
) {
    let problem = part.problem();
    let within = visible.within(&block.keys);
    let spans = mask::spans(S::LANES, visible, &tile.rows, &within, F::SPAN_KEYS, F::INT_ACC);
    let mut max = [s.splat(f32::NEG_INFINITY); VECTORS];
    // SAFETY: spans are parts of the caller's block and lane tile, whose arrays have room for them
    // (I5).
    unsafe {
        for span in &spans {
            let arrays = SpanArrays::of::<S, F>(span, tile, block, &buffers);
            match span.vectors {
                _ if span.keys.is_empty() => {}
                1 => {
                    let [x] = score::<S, F, R, 1>(s, part, span, visible, arrays, prefetch);
                    max[span.vector] = s.max(x, max[span.vector]);
                }
                _ => {
                    let found = score::<S, F, R, VECTORS>(s, part, span, visible, arrays, prefetch);
                    for (max, x) in max.iter_mut().zip(found) {
                        *max = s.max(x, *max);
                    }
                }
            }
        }
        if problem.weights().is_some() {
            weights::keep(s.core(), part, tile, &spans, block.keys.start, buffers.scores);
        }
        // The tile's first keys begin its output, unless they are seen by one of its vectors only.
        let mut fresh = match &visible.unmasked {
            None => {
                let sequence = visible.sequence;
                block.is_first
                    || (!sequence.is_of_columns() && sequence.seen_from(&tile.rows) >= block.keys.start)
            }
            Some(masks) => masks.begins,
        };
        let dim = problem.shape().dim_v;
        let first = spans.iter().find(|span| !span.keys.is_empty());
        let covers = first.is_some_and(|span| span.vectors * S::LANES >= tile.lanes);
        // Rows that do not see the same keys cut a block. Sums must not depend on that, so that
        // they are made beside the output.
        let is_cut = const { !F::INT_ACC } && spans.iter().filter(|span| !span.keys.is_empty()).count() > 1;
        if fresh && (is_cut || !covers) {
            blank(buffers.state.output, dim * tile.lanes);
            fresh = false;
        }
        if const { F::INT_ACC } && block.maybe_nan {
            for span in spans.iter().filter(|span| !span.keys.is_empty()) {
                let SpanArrays { scores, state, .. } = SpanArrays::of::<S, F>(span, tile, block, &buffers);
                match span.vectors {
                    1 => softmax::mark_nan::<S, 1>(s, scores, span.keys.len(), state.sum),
                    _ => softmax::mark_nan::<S, VECTORS>(s, scores, span.keys.len(), state.sum),
                }
            }
        }
        let mut reference = [Reference::none(s); VECTORS];
        if const { F::INT_ACC } {
            reference = references::<S, F>(s, tile, block, &spans, &buffers);
            max = [reference[0].max, reference[1].max];
        }
        let lanes = [reference[0].lanes, reference[1].lanes];
        let relative = softmax::update::<S, F>(s, buffers.state, problem.shape().dim_v, max, lanes);
        if const { F::INT_ACC } && (reference[0].groups | reference[1].groups) != 0 {
            if fresh {
                blank(buffers.state.output, dim * tile.lanes);
                fresh = false;
            }
            add_outliers::<S, F>(s, part, tile, block, &spans, &buffers, reference);
        }
        let mut probabilities = Probabilities::new(s, relative);
        let mut onto = if fresh { Onto::Nothing } else { Onto::Blocks };
        let mut sums = buffers.state.output;
        if is_cut {
            (onto, sums) = (Onto::Nothing, buffers.block);
            if !covers {
                blank(sums, dim * tile.lanes);
                onto = Onto::Block;
            }
        }
        for span in &spans {
            let mut arrays = SpanArrays::of::<S, F>(span, tile, block, &buffers);
            arrays.state.output = sums.wrapping_add(span.vector * S::LANES);
            match span.vectors {
                _ if span.keys.is_empty() => continue,
                1 => accumulate_span::<S, F, R, 1>(s, part, span, arrays, onto, &mut probabilities),
                _ => accumulate_span::<S, F, R, VECTORS>(s, part, span, arrays, onto, &mut probabilities),
            }
            if is_cut {
                onto = Onto::Block;
            }
        }
        if is_cut {
            add_block(s, sums, buffers.state.output, dim, tile.lanes, tile.lanes / S::LANES);
        }
        probabilities.finish(s, buffers.state);
    }
}

/// What the integer probabilities of each vector of a lane tile are relative to.
///
/// # Safety
/// `buffers` has the scores of the spans.
#[inline(always)]
unsafe fn references<S: Isa, F: Gemm>(
    s: S,
    tile: &LaneTile,
    block: &Block,
    spans: &[Span; 3],
    buffers: &LaneBuffers,
) -> [Reference<S>; VECTORS] {
    let mut found = [Reference::none(s); VECTORS];
    for span in spans.iter().filter(|span| !span.keys.is_empty()) {
        let SpanArrays { scores, .. } = SpanArrays::of::<S, F>(span, tile, block, buffers);
        for z in 0..span.vectors {
            let scores = Scores::of::<S>(scores, span, z);
            // SAFETY: one of the vectors of the span, whose scores have been written (caller).
            found[(span.vector + z) % VECTORS] = unsafe { Reference::of(s, scores, &span.keys) };
        }
    }
    found
}

/// Adds what scores exceed the references by: see [`outliers::add`].
///
/// # Safety
/// `buffers` has the scores of the spans, and the state that they are added to, initialised.
#[inline(always)]
unsafe fn add_outliers<S: Isa, F: Gemm>(
    s: S,
    part: &QueryTile,
    tile: &LaneTile,
    block: &Block,
    spans: &[Span; 3],
    buffers: &LaneBuffers,
    reference: [Reference<S>; VECTORS],
) {
    for span in spans.iter().filter(|span| !span.keys.is_empty()) {
        let SpanArrays { scores, state, .. } = SpanArrays::of::<S, F>(span, tile, block, buffers);
        for z in 0..span.vectors {
            let reference = reference[(span.vector + z) % VECTORS];
            if reference.groups == 0 {
                continue;
            }
            let (scores, state) = (Scores::of::<S>(scores, span, z), state.from::<S>(z));
            let outliers = Outliers { part, keys: &span.keys, scores, state, values: buffers.values };
            // SAFETY: scores and state of one of the vectors of the span (caller).
            unsafe { outliers::add(s, outliers, reference) };
        }
    }
}

/// The keys, values and arrays of one span.
struct SpanArrays {
    k: Keys,
    v: Rows,
    panel: *const f32,
    scores: *mut f32,
    state: State,
    /// Where the output of a block may be made.
    block: *mut f32,
    has_nonfinite: bool,
    tuning: &'static Tuning,
}

impl SpanArrays {
    #[inline(always)]
    fn of<S: Isa, F: Gemm>(span: &Span, tile: &LaneTile, block: &Block, buffers: &LaneBuffers) -> SpanArrays {
        let key = span.keys.start - block.keys.start;
        SpanArrays {
            k: block.k.skip(key),
            v: block.v.skip(key / F::PACK),
            has_nonfinite: block.has_nonfinite,
            tuning: block.tuning,
            panel: buffers.panel.wrapping_add(span.vector * S::LANES),
            // Earlier spans leave room for whole lane tiles.
            scores: buffers.scores.wrapping_add(key * tile.lanes),
            state: buffers.state.from::<S>(span.vector),
            block: buffers.block.wrapping_add(span.vector * S::LANES),
        }
    }
}

/// Writes the scores of a span, masked; returns the largest score of each lane.
///
/// # Safety
/// `arrays` are those of the span, which has `Z` vectors.
#[inline(always)]
unsafe fn score<S: Isa, F: Gemm, const R: usize, const Z: usize>(
    s: S,
    part: &QueryTile,
    span: &Span,
    visible: &Visible,
    arrays: SpanArrays,
    prefetch: &mut Prefetch,
) -> [S::F32; Z] {
    let SpanArrays { k, panel, scores, state, tuning, .. } = arrays;
    let (problem, sequence) = (part.problem(), part.sequence());
    let is_plain = visible.unmasked.is_some_and(|masks| masks.is_plain);
    let logits = Logits::of(problem, sequence, part.head(), &span.rows, &span.keys, is_plain, &tuning.masks);
    let dim = problem.shape().dim_qk;
    let mut max = [s.splat(f32::NEG_INFINITY); Z];
    // The keys that every row sees, as far as they fill register tiles, and those at either end,
    // which are masked.
    let [_, by_all, all] = span.thirds();
    let start = by_all.start.next_multiple_of(R).min(all.end);
    let end = (by_all.end - by_all.end % R).max(start);
    for (third, keys) in [0..start, start..end, end..all.end].into_iter().enumerate() {
        if keys.is_empty() {
            continue;
        }
        // SAFETY: `keys` are among those of the span, whose rows of K and scores the caller has
        // vouched for.
        unsafe {
            let out = scores.add(keys.start * Z * S::LANES);
            let k = k.skip(keys.start);
            let mut found =
                F::score_span::<S, R, Z>(s, panel, state.lanes, k, keys.len(), dim, out, prefetch);
            if const { F::INT_ACC }
                && let Some(zeros) = k.zeros
            {
                let corrections = panel.wrapping_add((F::PANEL_HEADER - 1) * state.lanes);
                let (scores, n, scales) = (out, keys.len(), k.scales);
                scores::correct(s, Correct { scores, n, vectors: Z, zeros, scales, corrections });
            }
            if let Some(logits) = &logits {
                let keys = span.keys.start + keys.start..span.keys.start + keys.end;
                found = logits.change::<S, Z>(s, &span.rows, keys, out);
            }
            if third == 1 {
                for (max, found) in max.iter_mut().zip(found) {
                    *max = s.max(found, *max);
                }
            } else {
                let sight = span.sight(s, visible, &keys, scores);
                mask::mask(s, scores, keys, &sight, &mut max);
            }
        }
    }
    max
}

/// Turns the scores of a span into probabilities and adds their products with the values to the
/// output as `onto` says.
///
/// # Safety
/// `arrays` are those of the span, which has `Z` vectors, with its scores written.
#[inline(always)]
unsafe fn accumulate_span<S: Isa, F: Gemm, const R: usize, const Z: usize>(
    s: S,
    part: &QueryTile,
    span: &Span,
    arrays: SpanArrays,
    onto: Onto,
    all_probabilities: &mut Probabilities<S, F, VECTORS>,
) {
    let SpanArrays { v, scores: p, state, has_nonfinite, tuning, .. } = arrays;
    let distance = tuning.prefill.prefetch_groups;
    let State { output, lanes, .. } = state;
    let (problem, n) = (part.problem(), span.keys.len());
    let dim = problem.shape().dim_v;
    let mut probabilities = all_probabilities.part::<Z>(span.vector);
    // A value that is not finite must not be multiplied by the probability 0 of a hidden key: 0 ·
    // NaN is NaN. Types with several keys in a word leave such values out when they stage V, and
    // add them afterwards. The others take these few keys one by one.
    // SAFETY: the caller vouches for `n` rows of V (of f32 where words have one key) and for the
    // scores of all keys of the span; the scores of a block have room for whole spans (I5).
    unsafe {
        let guarded = match const { F::PACK } {
            1 => next_guarded(s, v, span, has_nonfinite, 0, dim),
            _ => None,
        };
        match guarded {
            Some(first) if const { F::PACK == 1 } => {
                probabilities.make_all(s, p, n);
                let mut arrays = arrays;
                let mut within = onto;
                if onto == Onto::Blocks {
                    // The keys between those that are taken alone belong to one block.
                    (arrays.state.output, within) = (arrays.block, Onto::Nothing);
                }
                let block = arrays.state.output;
                accumulate_around::<S, F, Z>(s, part, span, arrays, first, within, probabilities.weight());
                if onto == Onto::Blocks {
                    add_block(s, block, output, dim, lanes, Z);
                }
            }
            _ => {
                let groups = n.div_ceil(F::PACK);
                // The end of the last group or tile, if it is the block's.
                for at in n * Z..n.next_multiple_of(F::SPAN_KEYS) * Z {
                    s.store(p.add(at * S::LANES), s.splat(f32::NEG_INFINITY));
                }
                F::value_span::<S, R, Z>(
                    s,
                    p,
                    v,
                    groups,
                    dim,
                    output,
                    lanes,
                    onto,
                    distance,
                    &mut probabilities,
                );
                if const { F::PACK > 1 } && has_nonfinite {
                    add_nonfinite::<F>(part, span, p, Z * S::LANES, output, lanes);
                }
            }
        }
    }
    all_probabilities.put_back(span.vector, &probabilities);
}

/// Adds the values of a span to the output, where some keys with values that are not finite are
/// hidden from some rows: these keys one by one, to the rows that see them, and the keys between
/// them in tiles. `guarded` is the first of them.
///
/// # Safety
/// `arrays` are those of the span, with probabilities in place of scores, of a compute type with
/// one key in a word.
#[inline(always)]
unsafe fn accumulate_around<S: Isa, F: Gemm, const Z: usize>(
    s: S,
    part: &QueryTile,
    span: &Span,
    arrays: SpanArrays,
    guarded: usize,
    mut onto: Onto,
    weight: [S::F32; Z],
) {
    let SpanArrays { v, scores: p, state: State { output, lanes, .. }, has_nonfinite, tuning, .. } = arrays;
    let distance = tuning.prefill.prefetch_groups;
    let (n, dim) = (span.keys.len(), part.problem().shape().dim_v);
    let (mut done, mut guarded) = (0, Some(guarded));
    while done < n {
        let end = guarded.unwrap_or(n);
        // SAFETY: keys of the span, for whose rows and probabilities the caller vouches.
        unsafe {
            let from = p.add(done * Z * S::LANES);
            let rows = v.skip(done);
            // Lower register tiles than elsewhere: this is rare, and its code is to be small.
            accumulate::<S, F, 2, Z>(
                s,
                from,
                rows,
                end - done,
                0,
                dim,
                output,
                lanes,
                onto,
                weight,
                [F::Sum::zero(s); Z],
                distance,
            );
            onto = Onto::Block;
            done = end;
            if let Some(key) = guarded {
                let (from, row) = (p.add(key * Z * S::LANES), v.skip(key).base);
                let sees = rows_that_see(part, &span.rows, span.keys.start + key);
                accumulate_guarded::<S, Z>(s, from, row, dim, output, lanes, &sees);
                done = key + 1;
                guarded = next_guarded(s, v, span, has_nonfinite, done, dim);
            }
        }
    }
}

/// Adds the values that are not finite, which [`Gemm::stage_v`] has left out, to the rows that see
/// them.
///
/// # Safety
/// `words` has the words of probabilities of all groups of the span, `width` for each; `output` is
/// that of the span's rows, `lanes` wide.
#[cold]
#[inline(never)]
unsafe fn add_nonfinite<F: Gemm>(
    part: &QueryTile,
    span: &Span,
    words: *const f32,
    width: usize,
    output: *mut f32,
    lanes: usize,
) {
    let (problem, sequence, head) = (part.problem(), part.sequence(), part.head());
    for (i, key) in span.keys.clone().enumerate() {
        let [page, token] = problem.key_at(sequence, problem.kv_head(head), key);
        for d in 0..problem.shape().dim_v {
            let x = problem.v().get(page, problem.kv_head(head), token, d) as f32;
            if x.is_finite() {
                continue;
            }
            for (lane, row) in span.rows.clone().enumerate() {
                if problem.sees(sequence, head, row, key) {
                    // SAFETY: a word and an element of the output that the caller has vouched for.
                    unsafe {
                        let word = words.cast::<u32>().add(F::word_at(i / F::PACK, lane, width)).read();
                        let at = output.add(d * lanes + lane);
                        at.write(at.read() + F::probability(word, i % F::PACK) * x);
                    }
                }
            }
        }
    }
}

/// 1 for each of `rows` that sees a key. Kept out of line, because it is rare.
#[cold]
#[inline(never)]
fn rows_that_see(part: &QueryTile, rows: &Range<usize>, key: usize) -> [f32; MAX_WIDTH] {
    let mut sees = [0.0; MAX_WIDTH];
    for (row, sees) in rows.clone().zip(&mut sees) {
        *sees = f32::from(part.problem().sees(part.sequence(), part.head(), row, key));
    }
    sees
}

/// The first key from `done` on, counted from the first of the span, that is hidden from some row
/// and has values that are not finite. Kept out of line: it uses no vectors of its own.
///
/// # Safety
/// `v` has the rows of `span`, of `dim` f32.
#[inline(never)]
unsafe fn next_guarded<S: Isa>(
    s: S,
    v: Rows,
    span: &Span,
    has_nonfinite: bool,
    done: usize,
    dim: usize,
) -> Option<usize> {
    let [before, middle, behind] = span.thirds();
    // In the order of the keys.
    for keys in [before, if has_nonfinite { middle } else { 0..0 }, behind] {
        // SAFETY: keys of the span, for whose rows the caller vouches.
        let found = unsafe { first_not_finite(s, v, keys.start.max(done)..keys.end, dim) };
        if found.is_some() {
            return found;
        }
    }
    None
}
