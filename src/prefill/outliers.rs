//! References of integer probabilities, and scores above them: see [`crate::attend::outliers`].

use std::ops::Range;

use super::mask::Span;
use super::softmax::State;
use crate::attend::convert;
use crate::attend::outliers::HEADROOM;
use crate::attend::rows::{Source, key_rows};
use crate::simd::{Body, Isa, MAX_LANES};
use crate::work::query_tiles::QueryTile;

/// Keys of a group, counted from key 0 of the sequence: the sinks of a model are neighbours.
const GROUP: usize = 16;

/// Which of the groups' maxima decides, the largest being the first: sinks in fewer groups than
/// that leave it alone.
const RANK: usize = 4;

/// Keys of a group whose scores are loaded at a time.
const EIGHT: usize = 8;

/// The scores of one vector of rows: the first key's, and the distance to those of the next.
#[derive(Clone, Copy)]
pub(super) struct Scores {
    first: *mut f32,
    stride: usize,
}

impl Scores {
    /// Those of vector `z` of a span, whose scores are at `scores`.
    #[inline(always)]
    pub(super) fn of<S: Isa>(scores: *mut f32, span: &Span, z: usize) -> Scores {
        Scores { first: scores.wrapping_add(z * S::LANES), stride: span.vectors * S::LANES }
    }
}

/// What the integer probabilities of one vector of rows are relative to in a block.
#[derive(Clone, Copy)]
pub(super) struct Reference<S: Isa> {
    /// The largest score of each lane.
    pub(super) max: S::F32,
    /// The reference of each lane: its largest score, or what exceeds the maximum of rank [`RANK`]
    /// of its groups by [`HEADROOM`], if that is less.
    pub(super) lanes: S::F32,
    /// 0 if no score is above it. Else a bit for each group that may have one: bit i is for the
    /// i-th group, from that of the first key on, and the last bit for those behind, too.
    pub(super) groups: u64,
}

/// The last bit of [`Reference::groups`].
const LAST: usize = u64::BITS as usize - 1;

impl<S: Isa> Reference<S> {
    /// Of a vector that sees no key.
    #[inline(always)]
    pub(super) fn none(s: S) -> Reference<S> {
        let never = s.splat(f32::NEG_INFINITY);
        Reference { max: never, lanes: never, groups: 0 }
    }

    /// That of the scores of `keys`.
    ///
    /// # Safety
    /// `scores` are those of `keys`.
    #[inline(always)]
    pub(super) unsafe fn of(s: S, scores: Scores, keys: &Range<usize>) -> Reference<S> {
        // Passed in memory: `find` is not compiled for the instruction set.
        let mut to = [[0.0; MAX_LANES]; 2];
        let groups = find(s, Find { scores, keys, to: &mut to });
        // SAFETY: the arrays are as long as any vector.
        unsafe { Reference { max: s.load(to[0].as_ptr()), lanes: s.load(to[1].as_ptr()), groups } }
    }
}

/// The keys of the group that `key` is in, as far as they are among `keys`, from `key` on.
#[inline(always)]
fn group(key: usize, keys: &Range<usize>) -> Range<usize> {
    key..keys.end.min(key - key % GROUP + GROUP)
}

/// Kept out of line, so that the code exists once for each instruction set and not in each kernel.
#[inline(never)]
fn find<S: Isa>(s: S, body: Find) -> u64 {
    s.core().enter(body)
}

/// The arguments of [`find`]. Only [`Reference::of`] makes one, whose caller vouches for the
/// scores.
struct Find<'a> {
    scores: Scores,
    keys: &'a Range<usize>,
    to: &'a mut [[f32; MAX_LANES]; 2],
}

impl Body for Find<'_> {
    type Out = u64;

    #[inline(always)]
    fn run<S: Isa>(self, s: S) -> u64 {
        let Find { scores: Scores { first, stride }, keys, to } = self;
        let never = s.splat(f32::NEG_INFINITY);
        let mut largest = [never; RANK];
        let (mut key, mut bit, mut groups) = (keys.start, 0, 0);
        // SAFETY: scores of `keys` (the caller of `Reference::of`); arrays are as long as any
        // vector.
        unsafe {
            while key < keys.end {
                let group = group(key, keys);
                let mut max = never;
                // Eight at a time: as many loads as fit registers. NaN as the first operand leaves
                // the maximum alone.
                while key + EIGHT <= group.end {
                    let at = first.add((key - keys.start) * stride);
                    for i in 0..EIGHT {
                        max = s.max(s.load(at.add(i * stride)), max);
                    }
                    key += EIGHT;
                }
                for key in key..group.end {
                    max = s.max(s.load(first.add((key - keys.start) * stride)), max);
                }
                // What is above the last reference is above that of the groups so far.
                let so_far = s.add(largest[RANK - 1], s.splat(HEADROOM));
                groups |= u64::from(s.any(s.gt(max, so_far))) << bit;
                bit = LAST.min(bit + 1);
                for largest in &mut largest {
                    let less = s.min(*largest, max);
                    *largest = s.max(*largest, max);
                    max = less;
                }
                key = group.end;
            }
            // Where fewer groups are visible, the last of them.
            let mut last = largest[0];
            for &next in &largest[1..] {
                last = s.select(s.gt(next, never), next, last);
            }
            let reference = s.min(largest[0], s.add(last, s.splat(HEADROOM)));
            s.store(to[0].as_mut_ptr(), largest[0]);
            s.store(to[1].as_mut_ptr(), reference);
            if s.any(s.gt(largest[0], reference)) { groups } else { 0 }
        }
    }
}

/// Scores of one vector of rows, and where what exceeds its reference goes.
pub(super) struct Outliers<'a, 'p> {
    pub(super) part: &'a QueryTile<'p>,
    pub(super) keys: &'a Range<usize>,
    pub(super) scores: Scores,
    /// The state of the vector, its running maximum that of the block, its output initialised.
    pub(super) state: State,
    /// Room for a row of V as f32.
    pub(super) values: *mut f32,
}

/// Adds what scores exceed `reference` by to sum and output, key by key; these scores become the
/// reference.
///
/// # Safety
/// `outliers` has the scores of its keys, a state of the vector, and room for a row that was
/// converted; the reference is that of these scores.
#[inline(always)]
pub(super) unsafe fn add<S: Isa>(s: S, outliers: Outliers, reference: Reference<S>) {
    let mut lanes = [0.0; MAX_LANES];
    // SAFETY: the array is as long as any vector.
    unsafe { s.store(lanes.as_mut_ptr(), reference.lanes) };
    add_each(s, Add { outliers, reference: &lanes, groups: reference.groups });
}

/// Kept out of line: it is rare, and would take registers from the loops around it.
#[cold]
#[inline(never)]
fn add_each<S: Isa>(s: S, body: Add) {
    s.core().enter(body);
}

/// The arguments of [`add_each`]. Only [`add`] makes one, whose caller vouches for its pointers.
struct Add<'a, 'b, 'p> {
    outliers: Outliers<'b, 'p>,
    reference: &'a [f32; MAX_LANES],
    groups: u64,
}

impl Body for Add<'_, '_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Outliers { part, keys, scores, state, values } = self.outliers;
        let (problem, sequence) = (part.problem(), part.sequence());
        let kv_head = problem.kv_head(part.head());
        let dim = problem.shape().dim_v;
        // The scale of a head is a factor of the output.
        let raw = problem.v().raw();
        let mut groups = self.groups;
        let mut bit = 0;
        // SAFETY: scores, state and room are those that the caller of `add` vouches for; the
        // sequence has the keys (I2).
        unsafe {
            let reference = s.load(self.reference.as_ptr());
            let running_max = s.load(state.running_max);
            let counted = s.exp2(s.sub(reference, running_max));
            let mut from = keys.start;
            while from < keys.end && groups != 0 {
                let group = group(from, keys);
                from = group.end;
                if groups & 1 == 1 {
                    for key in group {
                        let at = scores.first.add((key - keys.start) * scores.stride);
                        let x = s.load(at);
                        let exceeds = s.gt(x, reference);
                        if !s.any(exceeds) {
                            continue;
                        }
                        s.store(at, s.select(exceeds, reference, x));
                        // Lanes that do not exceed it add 0, which changes no bit.
                        let excess = s.sub(s.exp2(s.sub(x, running_max)), counted);
                        let excess = s.select(exceeds, excess, s.splat(0.0));
                        s.store(state.sum, s.add(s.load(state.sum), excess));
                        let source = key_rows(problem, problem.v(), sequence, kv_head, key);
                        convert::convert(s, Source { view: &raw, ..source }, 1, dim, values.cast());
                        for d in 0..dim {
                            let to = state.output.add(d * state.lanes);
                            s.store(to, s.fma(s.splat(values.add(d).read()), excess, s.load(to)));
                        }
                    }
                }
                // The last bit stands for all groups from its own on.
                if bit < LAST {
                    (groups, bit) = (groups >> 1, bit + 1);
                }
            }
        }
    }
}
