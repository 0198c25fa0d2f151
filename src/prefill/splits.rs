//! Tiles over splits of their keys: few query rows and many keys, which several threads share. Each
//! split gives a state of all rows, and states are combined in the order of the keys; see
//! [`crate::work::split_kv`].

use std::ops::Range;

use super::epilogue::epilogue;
use super::softmax::State;
use super::{LaneTile, LaneTiles, tile_rows, values_of};
use crate::attend::blocks::{clip, first_block};
use crate::attend::finish::blank;
use crate::problem::{SeenKeys, Shape};
use crate::simd::{Body, Isa};
use crate::work::query_tiles::TileSizes;
use crate::work::split_kv::{BEGUN, Combine, SplitRange, SplitWork};
use crate::workspace::{Arena, Measure, PartialStates};

/// The splits of a tile's keys that one thread computes.
pub struct Splits<'a, 'p> {
    pub(crate) work: &'a SplitWork<'p>,
    /// The range of splits that the work belongs to, and states that one thread leaves for another.
    pub(crate) range: &'a SplitRange<'a, 'p>,
    pub(crate) partial: PartialStates<'a>,
}

impl Splits<'_, '_> {
    /// The state of split `n` of these; `own` are two states in memory of this thread. The second
    /// one is combined with the first after each split.
    #[inline(always)]
    pub(super) fn state<S: Isa>(&self, n: usize, own: [State; 2], tiles: TileSizes, shape: &Shape) -> State {
        match self.work.kept(n) {
            Some(i) => State::take(&mut self.partial.arena(self.range.index, i), lanes::<S>(tiles), shape),
            None => own[usize::from(n > 0)],
        }
    }

    /// The first block of split `n` of these, if there is one: blocks have `size` keys, and `seen`
    /// are those of the tile. Kept out of line, since it is asked once a split.
    #[inline(never)]
    pub(super) fn begin_of(&self, n: usize, seen: &SeenKeys, size: usize) -> Range<usize> {
        let split = self.work.splits.start + n;
        if split >= self.work.splits.end {
            return 0..0;
        }
        let keys = clip(seen.keys.clone(), &self.work.keys(split));
        first_block(&SeenKeys { keys, gap: seen.gap.clone() }, size, 1)
    }
}

/// Lanes of all lane tiles of a query tile; `None` if no machine has the memory.
#[inline(always)]
fn lanes<S: Isa>(tiles: TileSizes) -> Option<usize> {
    tiles.q.checked_next_multiple_of(S::LANES)
}

impl State {
    /// The state of so many lanes in memory of `arena`: uninitialised, or as it was left there.
    #[inline(always)]
    pub(super) fn take<A: Arena>(arena: &mut A, lanes: Option<usize>, shape: &Shape) -> State {
        State {
            output: arena.take(lanes.and_then(|lanes| lanes.checked_mul(shape.dim_v))),
            running_max: arena.take(lanes),
            sum: arena.take(lanes),
            lanes: lanes.unwrap_or(0),
        }
    }

    /// Of the state of all lane tiles, that of lane tile `index`, which has so many lanes.
    #[inline(always)]
    pub(super) fn of_tile<S: Isa>(self, index: usize, lanes: usize, dim_v: usize) -> State {
        let lane = index * tile_rows::<S>();
        State {
            running_max: self.running_max.wrapping_add(lane),
            sum: self.sum.wrapping_add(lane),
            output: self.output.wrapping_add(lane * dim_v),
            lanes,
        }
    }
}

/// Bytes of a partial state that one thread keeps for another; `None` if no machine has as many.
pub(crate) fn state_bytes<S: Isa>(shape: &Shape, tiles: TileSizes) -> Option<usize> {
    Measure::of(|arena| State::take(arena, lanes::<S>(tiles), shape))
}

/// Combines the state of some lane tiles, those of `rows`, with that of later keys: with m =
/// max(m1, m2), sums and outputs become s1 · 2^(m1 - m) + s2 · 2^(m2 - m). Kept out of line, so
/// that the code exists once for each instruction set.
///
/// # Safety
/// Both are initialised states of a query tile with these rows, and nobody else uses them (I6).
#[inline(never)]
pub(super) unsafe fn combine<S: Isa>(s: S, rows: Range<usize>, dim_v: usize, into: State, other: State) {
    s.core().enter(Join { rows, dim_v, into, other });
}

/// The arguments of [`combine`], which alone makes one.
struct Join {
    rows: Range<usize>,
    dim_v: usize,
    into: State,
    other: State,
}

impl Body for Join {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Join { rows, dim_v, into, other } = self;
        let none = s.splat(f32::NEG_INFINITY);
        for tile in LaneTiles::<S>::new(rows) {
            let [into, other] = [into, other].map(|all| all.of_tile::<S>(tile.index, tile.lanes, dim_v));
            for lane in (0..tile.lanes).step_by(S::LANES) {
                // SAFETY: a vector of the lanes of both states (the caller of `combine`).
                unsafe {
                    let [max, sum] = [into.running_max, into.sum].map(|at| at.add(lane));
                    let (own_max, other_max) = (s.load(max), s.load(other.running_max.add(lane)));
                    let joint = s.max(own_max, other_max);
                    // Without a visible score so far, all sums are 0 or NaN, whatever they are
                    // relative to.
                    let base = s.select(s.gt(joint, none), joint, s.splat(0.0));
                    let [own, its] = [own_max, other_max].map(|max| s.exp2(s.sub(max, base)));
                    s.store(max, joint);
                    s.store(sum, s.fma(s.load(other.sum.add(lane)), its, s.mul(s.load(sum), own)));
                    for d in 0..dim_v {
                        let at = into.output.add(d * tile.lanes + lane);
                        let x = s.load(other.output.add(d * tile.lanes + lane));
                        s.store(at, s.fma(x, its, s.mul(s.load(at), own)));
                    }
                }
            }
        }
    }
}

/// What remains to be done for a tile whose splits several threads had, once all have been
/// computed, to be entered with an instruction set.
pub(crate) struct Finish<'a, 's, 'p> {
    pub(crate) work: Combine<'a, 's, 'p>,
    /// Whether the compute type sums integers.
    pub(crate) sums_integers: bool,
}

impl Body for Finish<'_, '_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Combine { work, range, tiles, partial } = self.work;
        let (tile, shape) = (work.tile(), work.problem().shape());
        let tiles = tiles.together();
        let keep = |range, n| State::take(&mut partial.arena(range, n), lanes::<S>(tiles), shape);
        let first = keep(range.index, BEGUN);
        let (scale, values) = values_of(&tile, self.sums_integers);
        // SAFETY: I6: all ranges have been computed, and only who has the range in which a group
        // begins uses the states of that group; I3: nobody else has its output rows.
        unsafe {
            for (range, splits) in range.in_later_ranges(work) {
                for n in 0..splits.len() {
                    combine(s, tile.rows(), shape.dim_v, first, keep(range, BEGUN + 1 + n));
                }
            }
            for LaneTile { rows, lanes, index } in LaneTiles::<S>::new(tile.rows()) {
                epilogue(s, &tile, rows, first.of_tile::<S>(index, lanes, shape.dim_v), scale, values);
            }
        }
    }
}

/// Makes a state of so many lanes that says that no key has been seen yet. The output is zeros only
/// where no block of keys begins it. Kept out of line: LLVM lowers it to memset.
///
/// # Safety
/// It is a state with room for these lanes.
#[inline(never)]
pub(super) unsafe fn begin(state: State, lanes: usize, dim_v: usize, blanks: bool) {
    for lane in 0..lanes {
        // SAFETY: one of the lanes (caller).
        unsafe {
            state.running_max.add(lane).write(f32::NEG_INFINITY);
            state.sum.add(lane).write(0.0);
        }
    }
    if blanks {
        // SAFETY: the lanes of the output (caller).
        unsafe { blank(state.output, dim_v * lanes) };
    }
}
