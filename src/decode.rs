//! One piece of a band: few queries, many keys; lanes are elements of a head.
//!
//! With fewer query rows than a vector has lanes, [`crate::prefill`] would leave most of them idle.
//! Here a vector holds neighbouring elements of one row of Q, K, V or the output, or the scores of
//! one row for neighbouring keys:
//!
//! ```text
//! pack    the queries: scaled, in whole vectors                              decode
//! for each chunk of keys: a state of its own                                 band
//!   for each block of keys that some row sees
//!     locate  K and V, where they lie or where they have been converted      decode
//!     scores, softmax, accumulate: each for all rows of the band             decode
//!   join with the state before                                               decode
//! epilogue                                                                   decode
//! ```
//!
//! What a row does not see is skipped, not masked: windows are ranges of keys, so each row takes its
//! own range of a block.
//!
//! Blocks start at multiples of the block size from key 0, and a score's lane is its key's place in
//! the block: a row's result does not depend on the rows that it shares a band with.

pub(crate) mod accumulate;
pub(crate) mod block_scaled;
pub(crate) mod epilogue;
pub(crate) mod gemv;
#[forbid(unsafe_code)]
mod prefetch;
pub(crate) mod scores;
pub(crate) mod softmax;
pub(crate) mod state;

use std::marker::PhantomData;
use std::ops::Range;

use crate::attend::blocks::{clip, first_block, next_block};
use crate::attend::finish::blank;
use crate::attend::logits::Logits;
use crate::attend::rows::{Rows, Source, copy_rows, key_rows, query_rows};
use crate::attend::{K, V, convert};
use crate::dtype::Dtype;
use crate::machine;
use crate::problem::{Sequence, Shape, Storage};
use crate::simd::{Body, Isa, MAX_LANES};
use crate::view::ScaleGranularity;
use crate::work::query_tiles::TileSizes;
use crate::work::split_kv::{SplitRange, SplitWork};
use crate::workspace::{Arena, PartialStates, Scratch, array_bytes};
use accumulate::{Sums, Values};
use block_scaled::Weights;
use gemv::{Gemv, width};
use prefetch::{FIRST, PrefetchStream, fetch_rows};
use scores::Keys;
use state::State;

/// The number of each lane.
const LANE: [i32; MAX_LANES] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Scratch arrays of a band, one line a query row.
struct Lines {
    /// Packed queries, and the values from one line to the next; likewise below.
    queries: *mut f32,
    queries_step: usize,
    /// What the scores of a row are still to be multiplied by.
    factors: *mut f32,
    /// Scores of a block, later its probabilities, from the block's first key on.
    scores: *mut f32,
    scores_step: usize,
    /// One vector a row: each lane sums the probabilities of its own keys.
    sums: *mut f32,
    /// Where sums of a block are integers: those of its values, and one vector a row of what they count.
    block: Sums,
    weights: *mut f32,
}

/// Scratch arrays of a block, counted from its first key.
struct Block {
    /// What each row is multiplied by, where rows have scales of their own.
    scales: [*mut f32; 2],
    /// Rows that have been converted.
    staged: [*mut u8; 2],
    /// Weights of a row, if scales of V are beside its elements.
    weights: Weights,
}

/// Rows that are computed at a time: three are taken as four, one of them for nothing, which costs less than
/// two and one.
pub(crate) const ROWS: usize = 4;

/// Lines of a band of `rows` rows: not fewer than those of a smaller one.
#[inline(always)]
fn lines_of(rows: usize) -> usize {
    // Saturates where no machine has the memory: the plan then finds no room.
    if rows % ROWS == ROWS - 1 { rows.saturating_add(1) } else { rows }
}

/// Values from one line to the next of an array with lines of `n` values: whole vectors of words, each as f32.
#[inline(always)]
fn step<S: Isa, P: Gemv>(n: usize) -> usize {
    // Saturates where no machine has the memory: the plan then finds no room.
    n.checked_next_multiple_of(width::<S, P>()).unwrap_or(usize::MAX)
}

/// The same of the integer sums of a block.
#[inline(always)]
fn block_step<S: Isa, P: Gemv>(shape: &Shape) -> usize {
    if P::INT_ACC { step::<S, P>(shape.dim_v) } else { 0 }
}

/// Values of a vector a row that only integer sums need.
#[inline(always)]
fn weight_step<S: Isa, P: Gemv>() -> usize {
    if P::INT_ACC { S::LANES } else { 0 }
}

/// Whether K, and V, are read as they are stored: all but integers whose scales change within a row, or that have
/// zeros.
pub(crate) fn reads_kv(storage: &Storage) -> [bool; 2] {
    [1, 2].map(|i| storage.granularities[i] != ScaleGranularity::Finer)
}

/// Bytes of a row that is not read where it lies: as f32, or just as it is.
#[inline(always)]
fn staged_row<P: Gemv>(dim: usize) -> usize {
    match P::DTYPE {
        None => convert::row_bytes(dim),
        Some(dtype) => dtype.row_bytes(dim).map_or(usize::MAX, |n| n.saturating_add(63) / 64 * 64),
    }
}

/// The same of K, and of V; 0 where none is.
#[inline(always)]
fn staged_rows<P: Gemv>(shape: &Shape, tiles: TileSizes) -> [usize; 2] {
    let [k, v] = tiles.staged;
    [(k, shape.dim_qk), (v, shape.dim_v)].map(|(staged, dim)| if staged { staged_row::<P>(dim) } else { 0 })
}

/// Scales of a block that are kept apart from K, and from V.
#[inline(always)]
fn row_scales<S: Isa, P: Gemv>(shape: &Shape, tiles: TileSizes) -> [usize; 2] {
    [1, 2].map(|i| {
        if shape.storage.granularities[i] == ScaleGranularity::PerToken { step::<S, P>(tiles.kv) } else { 0 }
    })
}

/// Values of [`Weights`]: lines, and factors of as many; `None` if no machine has the memory.
#[inline(always)]
fn weights<S: Isa, P: Gemv>(shape: &Shape, tiles: TileSizes) -> Option<[usize; 2]> {
    let blocks = block_scaled::blocks::<P>(shape.dim_v);
    Some([blocks.checked_mul(step::<S, P>(tiles.kv))?, blocks])
}

/// Bytes of scratch that [`Decode`] takes for one piece; `None` if no machine has as many.
pub(crate) fn scratch_bytes<S: Isa, P: Gemv>(shape: &Shape, tiles: TileSizes) -> Option<usize> {
    let rows = tiles.heads.checked_mul(tiles.q)?;
    let count = lines_of(rows);
    let lines = |values: usize| array_bytes(step::<S, P>(values).checked_mul(count)?, 4);
    let [staged_k, staged_v] = staged_rows::<P>(shape, tiles);
    let [scales_k, scales_v] = row_scales::<S, P>(shape, tiles);
    let [lines_v, factors_v] = weights::<S, P>(shape, tiles)?;
    let arrays = [
        lines(shape.dim_qk),
        array_bytes(count, 4),
        lines(tiles.kv),
        lines(S::LANES),
        array_bytes(block_step::<S, P>(shape).checked_mul(count)?, 4),
        array_bytes(weight_step::<S, P>().checked_mul(count)?, 4),
        state::bytes::<S, P>(rows, shape.dim_v),
        state::bytes::<S, P>(rows, shape.dim_v),
        array_bytes(scales_k, 4),
        array_bytes(scales_v, 4),
        array_bytes(tiles.kv.checked_mul(staged_k)?, 1),
        array_bytes(tiles.kv.checked_mul(staged_v)?, 1),
        array_bytes(lines_v, 4),
        array_bytes(lines_v, 4),
        array_bytes(factors_v, 4),
    ];
    arrays.into_iter().try_fold(0usize, |sum, bytes| sum.checked_add(bytes?))
}

/// Bytes of each state that a share keeps for others; `None` if no machine has as many.
pub(crate) fn kept_bytes<S: Isa, P: Gemv>(shape: &Shape, tiles: TileSizes) -> Option<usize> {
    state::bytes::<S, P>(tiles.heads.checked_mul(tiles.q)?, shape.dim_v)
}

/// The same with the products of a family.
pub(crate) struct By<T, P>(pub(crate) T, pub(crate) PhantomData<P>);

/// The computation of one piece, to be entered with an instruction set.
pub struct Decode<'a, 'p> {
    pub(crate) piece: &'a SplitWork<'p>,
    pub(crate) tiles: TileSizes,
    pub(crate) scratch: Scratch<'a>,
    /// Room of the share that it belongs to, for states that others need.
    pub(crate) kept: PartialStates<'a>,
    pub(crate) share: &'a SplitRange<'a, 'p>,
}

/// The state, among those that a share keeps, of the band that begins in it; those of chunks of the band that began
/// before it are behind.
const BEGUN: usize = 0;

impl<P: Gemv> Body for By<Decode<'_, '_>, P> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Decode { piece, tiles, mut scratch, kept, share } = self.0;
        let (problem, sequence) = (piece.problem(), piece.sequence());
        let shape = problem.shape();
        let Shape { dim_qk, dim_v, .. } = *shape;
        let rows = tiles.heads * tiles.q;
        assert!(piece.heads.len() <= tiles.heads && piece.rows.len() <= tiles.q);

        let (queries_step, scores_step) = (step::<S, P>(dim_qk), step::<S, P>(tiles.kv));
        let block_step = block_step::<S, P>(shape);
        let count = lines_of(rows);
        let lines = Lines {
            queries: scratch.take(count * queries_step),
            queries_step,
            factors: scratch.take(count),
            scores: scratch.take(count * scores_step),
            scores_step,
            sums: scratch.take(count * S::LANES),
            block: Sums { base: scratch.take(count * block_step), step: block_step },
            weights: scratch.take(count * weight_step::<S, P>()),
        };
        let state_bytes = state::bytes::<S, P>(rows, dim_v).unwrap_or(usize::MAX);
        let states = [(); 2].map(|()| scratch.take::<u8>(state_bytes));
        let [staged_k, staged_v] = staged_rows::<P>(shape, tiles);
        let [scales_k, scales_v] = row_scales::<S, P>(shape, tiles);
        // As many as there is room for.
        let [lines_v, factors_v] = weights::<S, P>(shape, tiles).unwrap_or_default();
        let block = Block {
            scales: [scratch.take(scales_k), scratch.take(scales_v)],
            staged: [scratch.take(tiles.kv * staged_k), scratch.take(tiles.kv * staged_v)],
            weights: Weights {
                scales: scratch.take(lines_v),
                digits: scratch.take(lines_v),
                step: scores_step,
                factors: scratch.take(factors_v),
            },
        };

        // SAFETY: views and band vouch for the rows of Q, K, V and O; the arrays have the sizes
        // that the callees ask for, and a share's states are nobody else's until all shares are computed.
        unsafe {
            let [own, other] = states.map(|base| State::at::<S, P>(base, rows, dim_v));
            let keep = |n| State::at::<S, P>(kept.state(share.index, n), rows, dim_v);
            let kv_head = problem.kv_head(piece.heads.start);
            let keys = piece.keys(piece.chunks.start);
            let mut factor = problem.score_factor();
            if shape.storage.granularities[1] == ScaleGranularity::PerHead && !keys.is_empty() {
                factor *= key_rows(problem, problem.k(), sequence, kv_head, keys.start).scale();
            }
            let last = piece.count() - 1;
            for r in 0..lines_of(piece.count()) {
                // Lines without a row repeat the last row: their results go nowhere.
                let (head, row) = piece.line(r.min(last));
                let query = lines.queries.add(r * queries_step);
                let source = query_rows(problem, sequence, head, row);
                lines.factors.add(r).write(P::pack(s, source, dim_qk, factor, query));
            }

            let first = if piece.is_whole() { own } else { keep(BEGUN) };
            for (n, chunk) in piece.chunks.clone().enumerate() {
                let keys = piece.keys(chunk);
                if piece.chunks.start > 0 {
                    compute::<S, P>(s, piece, &keys, tiles, &lines, &block, &keep(BEGUN + 1 + n));
                } else if n == 0 {
                    compute::<S, P>(s, piece, &keys, tiles, &lines, &block, &first);
                } else {
                    compute::<S, P>(s, piece, &keys, tiles, &lines, &block, &other);
                    first.join(s, &other, piece.count());
                }
            }
            if piece.is_whole() {
                epilogue::epilogue(s, piece, &first, scale_of_values(piece));
            }
        }
    }
}

/// What remains to be done with a band that begins in one share and ends in another, to be entered with an instruction
/// set, once all shares have been computed.
pub struct Join<'a, 's, 'p> {
    pub(crate) piece: &'a SplitWork<'p>,
    pub(crate) share: &'a SplitRange<'s, 'p>,
    pub(crate) tiles: TileSizes,
    pub(crate) kept: PartialStates<'a>,
}

impl<P: Gemv> Body for By<Join<'_, '_, '_>, P> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Join { piece, share, tiles, kept } = self.0;
        let rows = tiles.heads * tiles.q;
        // SAFETY: as in `Decode`; whoever has the share in which a band begins is the only one to look at the
        // states of that band.
        unsafe {
            let keep =
                |share, n| State::at::<S, P>(kept.state(share, n), rows, piece.problem().shape().dim_v);
            let first = keep(share.index, BEGUN);
            for (share, chunks) in share.rest(piece) {
                for n in 0..chunks.len() {
                    first.join(s, &keep(share, BEGUN + 1 + n), piece.count());
                }
            }
            epilogue::epilogue(s, piece, &first, scale_of_values(piece));
        }
    }
}

/// What the output is still to be multiplied by: the scale of V that all rows of a head share.
#[inline(always)]
fn scale_of_values(piece: &SplitWork) -> f32 {
    let (problem, seen) = (piece.problem(), piece.keys(0));
    if problem.shape().storage.granularities[2] != ScaleGranularity::PerHead || seen.is_empty() {
        return 1.0;
    }
    let kv_head = problem.kv_head(piece.heads.start);
    key_rows(problem, problem.v(), piece.sequence(), kv_head, seen.start).scale()
}

/// All rows of a band meet a chunk of keys.
///
/// # Safety
/// The arrays are those of the band, with the queries packed.
#[inline(always)]
unsafe fn compute<S: Isa, P: Gemv>(
    s: S,
    piece: &SplitWork,
    chunk: &Range<usize>,
    tiles: TileSizes,
    lines: &Lines,
    block: &Block,
    state: &State,
) {
    let (problem, sequence) = (piece.problem(), piece.sequence());
    let kv_head = problem.kv_head(piece.heads.start);
    // SAFETY: one line of each array a row, and rows of K and V that the sequence has.
    unsafe {
        for r in 0..lines_of(piece.count()) {
            state.references.add(r).write(f32::NEG_INFINITY);
            s.store(lines.sums.add(r * S::LANES), s.splat(0.0));
        }
        // What some row of this band sees.
        let seen = clip(sequence.seen_by(&piece.rows), chunk);
        let mut keys = first_block(&seen, tiles.kv, 1);
        let asks = asks::<S, P>(piece);
        let mut fresh = true;
        while !keys.is_empty() {
            let any = |head| problem.any_and_all(sequence, head, &piece.rows, &keys)[0];
            if problem.shape().cell.is_none() || piece.heads.clone().any(any) {
                let start = keys.start - keys.start % tiles.kv;
                let here = keys.start - start..keys.end - start;
                let [k, v] = [K, V].map(|which| {
                    let staged = tiles.staged[which].then_some(block.staged[which]);
                    Place::<P> {
                        which,
                        kv_head,
                        start,
                        staged,
                        scales: block.scales[which],
                        products: PhantomData,
                    }
                });
                let next = next_block(&seen, &keys, tiles.kv);
                let next = next.start - start..next.end - start;
                k.prepare(s, piece, &keys);
                v.prepare(s, piece, &keys);
                visit::<S, P>(
                    s,
                    piece,
                    &Visit { start, keys: here, next, k, v, fresh, asks },
                    lines,
                    block,
                    state,
                );
                fresh = false;
            }
            keys = next_block(&seen, &keys, tiles.kv);
        }
        if fresh {
            blank(state.output, lines_of(piece.count()) * state.step);
        }
        for r in 0..piece.count() {
            state.sums.add(r).write(s.total(s.load(lines.sums.add(r * S::LANES))));
        }
    }
}

/// Where a block of K or V is.
struct Place<P> {
    which: usize,
    kv_head: usize,
    /// The first key of the block.
    start: usize,
    /// Where its rows are once they have been converted or copied, if they are.
    staged: Option<*mut u8>,
    /// Where their scales are, if they have their own.
    scales: *mut f32,
    products: PhantomData<P>,
}

impl<P: Gemv> Place<P> {
    #[inline(always)]
    fn source<'a>(&self, piece: &'a SplitWork, key: usize) -> Source<'a> {
        let problem = piece.problem();
        let view = if self.which == V { problem.v() } else { problem.k() };
        key_rows(problem, view, piece.sequence(), self.kv_head, key)
    }

    #[inline(always)]
    fn dim(&self, piece: &SplitWork) -> usize {
        let shape = piece.problem().shape();
        if self.which == V { shape.dim_v } else { shape.dim_qk }
    }

    /// The first of `keys`, counted from the block's start, that lie behind one another, and their rows: row n is that
    /// of key n.
    #[inline(always)]
    fn run(&self, piece: &SplitWork, keys: &Range<usize>) -> (Range<usize>, Rows) {
        if let Some(base) = self.staged {
            return (keys.clone(), Rows { base, stride: staged_row::<P>(self.dim(piece)) });
        }
        let key = self.start + keys.start;
        let n = piece.problem().keys_in_a_row(piece.sequence(), key).min(keys.len());
        let rows = self.source(piece, key).rows();
        let base = rows.base.wrapping_sub(keys.start * rows.stride);
        (keys.start..keys.start + n, Rows { base, ..rows })
    }

    /// What of `keys` lies behind one another and is still to be read, as rows that go with keys `beyond` before them.
    #[inline(always)]
    fn to_come(&self, piece: &SplitWork, keys: &Range<usize>, beyond: usize) -> PrefetchStream {
        if self.staged.is_some() || keys.is_empty() {
            return PrefetchStream::NOTHING;
        }
        let (run, rows) = self.run(piece, keys);
        // Pages of K and V begin alike; where they do not, better nothing than rows of somebody else.
        if run != *keys {
            return PrefetchStream::NOTHING;
        }
        PrefetchStream::rows(rows.skip(beyond), piece.problem().shape().row_bytes_kv()[self.which])
    }

    /// Converts or copies the rows of `keys`, where that must be, and finds their scales.
    ///
    /// # Safety
    /// There is room for a block's.
    #[inline(always)]
    unsafe fn prepare<S: Isa>(&self, s: S, piece: &SplitWork, keys: &Range<usize>) {
        let problem = piece.problem();
        if let Some(staged) = self.staged {
            let dim = self.dim(piece);
            let is_finer = problem.shape().storage.granularities[1 + self.which] == ScaleGranularity::Finer;
            let mut key = keys.start;
            while key < keys.end {
                let source = self.source(piece, key);
                let n = problem.keys_in_a_row(piece.sequence(), key).min(keys.end - key);
                // Scales of rows come later, as where nothing is converted: the bits are the same.
                let raw = source.view.raw();
                let source = if is_finer { source } else { Source { view: &raw, ..source } };
                // SAFETY: rows of the block, by the caller's contract.
                unsafe {
                    let bytes = staged_row::<P>(dim);
                    let to = staged.add((key - self.start) * bytes);
                    match P::DTYPE.and_then(|dtype| dtype.row_bytes(dim)) {
                        Some(own) => copy_rows(source.rows(), n, own, to, bytes, own),
                        None => convert::convert(s, source, n, dim, to),
                    }
                }
                key += n;
            }
        }
        if problem.shape().storage.granularities[1 + self.which] == ScaleGranularity::PerToken {
            // Whole vectors are read, whose ends nobody sees.
            for key in [keys.start, keys.end - 1] {
                let at = key - self.start;
                // SAFETY: `row_scales` makes room for whole vectors of the block, in which this key is.
                unsafe { s.store(self.scales.add(at - at % S::LANES), s.splat(1.0)) };
            }
            for key in keys.clone() {
                let scale = self.source(piece, key).scale();
                // SAFETY: as above.
                unsafe { self.scales.add(key - self.start).write(scale) };
            }
        }
    }

    /// Scales that are still to be multiplied by.
    #[inline(always)]
    fn scales(&self, piece: &SplitWork) -> Option<*const f32> {
        let is_row =
            piece.problem().shape().storage.granularities[1 + self.which] == ScaleGranularity::PerToken;
        is_row.then_some(self.scales.cast_const())
    }

    /// What the rows are stored as.
    #[inline(always)]
    fn dtype(&self, piece: &SplitWork) -> Dtype {
        let dtypes = piece.problem().shape().storage.dtypes;
        let converted = if self.staged.is_some() { Dtype::F32 } else { dtypes[1 + self.which] };
        P::DTYPE.unwrap_or(converted)
    }
}

/// A block of keys, and all that is said of it counted from its start.
struct Visit<P> {
    start: usize,
    /// Those that some row sees.
    keys: Range<usize>,
    /// Those of the next block.
    next: Range<usize>,
    k: Place<P>,
    v: Place<P>,
    /// Whether there was none before: what the state's output holds does not matter.
    fresh: bool,
    /// Whether K and V are asked for while the other one is multiplied.
    asks: bool,
}

/// Whether K and V are asked for while the other one is multiplied. One row alone takes longer to read than to multiply,
/// and its machine foresees what is next, unless rows of bytes are multiplied faster than it does. The loops that ask exist only where registers are many, which
/// `visit` says to the compiler once more.
fn asks<S: Isa, P: Gemv>(piece: &SplitWork) -> bool {
    let is_worth_it = piece.count() >= ROWS || (P::MAX_ROWS == 1 && piece.count() == 1);
    S::REGISTERS >= 32 && is_worth_it && machine::wants_requests(bytes_read(piece))
}

/// Bytes of K and V that the call reads, if all sequences are like this one.
fn bytes_read(piece: &SplitWork) -> usize {
    let shape = piece.problem().shape();
    let heads = shape.queries[0].saturating_mul(shape.heads_kv);
    let keys = piece.sequence().seen_by(&piece.rows).len();
    let row = shape.row_bytes_kv().into_iter().fold(0usize, usize::saturating_add);
    row.saturating_mul(heads).saturating_mul(keys)
}

impl<P: Gemv> Visit<P> {
    /// K of the next block, as rows that go with `keys` of this one.
    #[inline(always)]
    fn next_keys(&self, piece: &SplitWork, keys: &Range<usize>) -> PrefetchStream {
        let beyond = self.next.start.saturating_sub(self.keys.start);
        self.k.to_come(piece, &clip(keys.start + beyond..keys.end + beyond, &self.next), beyond)
    }

    /// What a row sees of it.
    #[inline(always)]
    fn seen_by(&self, sequence: &Sequence, row: usize) -> Range<usize> {
        let keys = clip(sequence.visible(row), &(self.start + self.keys.start..self.start + self.keys.end));
        keys.start - self.start..keys.end - self.start
    }
}

/// All rows of a band meet one block of keys.
///
/// # Safety
/// `lines` and `state` are the band's arrays, with the queries packed, and the rest as previous blocks left it.
#[inline(always)]
unsafe fn visit<S: Isa, P: Gemv>(
    s: S,
    piece: &SplitWork,
    visit: &Visit<P>,
    lines: &Lines,
    block: &Block,
    state: &State,
) {
    let (problem, sequence) = (piece.problem(), piece.sequence());
    let Shape { dim_qk, dim_v, .. } = *problem.shape();
    let Visit { start, keys, next, k, v, asks, .. } = visit;
    let rows = piece.count();
    // SAFETY: keys and rows are those of block and band; see the steps themselves.
    unsafe {
        let mut rest = keys.clone();
        while !rest.is_empty() {
            let (seen, rows_k) = k.run(piece, &rest);
            rest.start = seen.end;
            let next =
                if *asks { v.to_come(piece, &seen, 0).unless_at(rows_k) } else { PrefetchStream::NOTHING };
            let of_keys =
                Keys { seen: &seen, rows: rows_k, dtype: k.dtype(piece), scales: k.scales(piece), next };
            if S::REGISTERS >= 32 && *asks {
                scores::scores::<S, P, true>(s, lines, rows, &of_keys, dim_qk);
            } else {
                scores::scores::<S, P, false>(s, lines, rows, &of_keys, dim_qk);
            }
        }
        // What comes next is elsewhere, and on its way while the softmax waits for itself.
        for (place, keys) in [(v, keys), (k, next)] {
            if place.staged.is_none() && !keys.is_empty() {
                let (run, rows) = place.run(piece, keys);
                let bytes = problem.shape().row_bytes_kv()[place.which];
                fetch_rows(s, rows.skip(run.start), FIRST.min(run.len()), bytes);
            }
        }
        // Windows move with the row, so the first and the last row bound all others.
        let first = visit.seen_by(sequence, piece.rows.start);
        let last = visit.seen_by(sequence, piece.rows.end - 1);
        let is_whole = first == *keys && last == *keys;
        let here = start + keys.start..start + keys.end;
        for (r, (head, row)) in piece.lines().enumerate() {
            let seen = if is_whole { keys.clone() } else { visit.seen_by(sequence, row) };
            if !seen.is_empty() {
                if problem.changes_scores()
                    && let Some(logits) = Logits::of(problem, sequence, head, &piece.rows, &here)
                {
                    logits.change_row(s, row, *start, &seen, lines.scores.add(r * lines.scores_step));
                }
                softmax::softmax::<S, P>(s, lines, state, r, &seen, v.scales(piece));
            }
        }
        if P::BLOCK_SCALED {
            return block_scaled::values(s, piece, visit, lines, &block.weights, state);
        }
        let sums = if P::INT_ACC { lines.block } else { Sums { base: state.output, step: state.step } };
        let begins = P::INT_ACC || visit.fresh;
        if begins && !is_whole {
            blank(sums.base, lines_of(rows) * sums.step);
        }
        // Keys that all rows see are taken for several rows at a time, those before and behind row by row:
        // a value that a row does not see must not reach it, not even multiplied by 0. No pair is torn.
        let all = if is_whole {
            keys.clone()
        } else {
            let start = last.start.next_multiple_of(P::PACK);
            start..(first.end - first.end % P::PACK).max(start)
        };
        let behind = keys.end.min(all.end)..keys.end;
        let mut first = begins && is_whole;
        for (mut part, of_all) in [(keys.start..all.start.min(keys.end), false), (all, true), (behind, false)]
        {
            while !part.is_empty() {
                let (run, rows_v) = v.run(piece, &part);
                part.start = run.end;
                let next = if *asks { visit.next_keys(piece, &run) } else { PrefetchStream::NOTHING };
                let values = Values { rows: rows_v, dtype: v.dtype(piece), dim: dim_v, next };
                // Nor one that is not finite the probability 0 of a key that a mask hides.
                let guarded =
                    problem.logits().hides() && accumulate::any_not_finite(s, values, &run, v.scales(piece));
                if of_all && !guarded {
                    if S::REGISTERS >= 32 && *asks {
                        accumulate::accumulate::<S, P, true>(s, lines, sums, 0..rows, &run, values, first);
                    } else {
                        accumulate::accumulate::<S, P, false>(s, lines, sums, 0..rows, &run, values, first);
                    }
                    first = false;
                    continue;
                }
                if first {
                    blank(sums.base, lines_of(rows) * sums.step);
                    first = false;
                }
                for (r, (head, row)) in piece.lines().enumerate() {
                    let mut seen = clip(visit.seen_by(sequence, row), &run);
                    while !seen.is_empty() {
                        let mut keys = seen.clone();
                        if guarded {
                            // Of those that are taken together, the first that are seen.
                            let sees = |key| problem.sees(sequence, head, row, start + key);
                            let end = keys.end.min((keys.start + 1).next_multiple_of(P::PACK));
                            keys.start = (keys.start..end).find(|&key| sees(key)).unwrap_or(end);
                            keys.end = (keys.start..end).find(|&key| !sees(key)).unwrap_or(end);
                            seen.start = keys.end;
                        } else {
                            seen.start = seen.end;
                        }
                        if !keys.is_empty() {
                            accumulate::accumulate::<S, P, false>(
                                s,
                                lines,
                                sums,
                                r..r + 1,
                                &keys,
                                values,
                                false,
                            );
                        }
                    }
                }
            }
        }
        if P::INT_ACC {
            for (r, (_, row)) in piece.lines().enumerate() {
                let is_blind = !is_whole && visit.seen_by(sequence, row).is_empty();
                accumulate::settle::<S, P>(s, lines, state, r, is_blind, visit.fresh);
            }
        }
    }
}
