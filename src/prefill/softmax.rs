//! Step 4: the online softmax: a running running_max and a running sum for each row.
//!
//! The running_max is the largest score so far, but *lazily*: it moves only when a score exceeds it
//! by more than [`RESCALE_THRESHOLD`], so on ordinary data the sums are rescaled once or not at all. Each
//! lane decides for itself, so a row's bits do not depend on its neighbours.

use super::gemm::{Gemm, Operand, Sum, weighted};
use crate::attend::{RESCALE_THRESHOLD, VECTORS};
use crate::simd::lane::{Lane, MAX_PACK, Registers};
use crate::simd::{Body, Isa, MAX_LANES};

/// Where the softmax state and the accumulator of one tile of rows are kept, `lanes` wide.
#[derive(Clone, Copy)]
pub(crate) struct State {
    /// Reference of each lane: -inf before its first visible key.
    pub(crate) running_max: *mut f32,
    /// Sum of 2^(score - running_max) of each lane.
    pub(crate) sum: *mut f32,
    /// Transposed output, `[dim_v][lane]`, not normalised.
    pub(crate) output: *mut f32,
    /// Lanes of the tile: one or more vectors.
    pub(crate) lanes: usize,
}

impl State {
    /// The state of the vectors from `vector` on; the rows of the output keep their distance.
    #[inline(always)]
    pub(crate) fn from<S: Isa>(self, vector: usize) -> State {
        let lane = vector * S::LANES;
        State {
            running_max: self.running_max.wrapping_add(lane),
            sum: self.sum.wrapping_add(lane),
            output: self.output.wrapping_add(lane),
            lanes: self.lanes,
        }
    }

    /// The state before the first key. The output is written by the first keys, or
    /// blanked.
    ///
    /// # Safety
    /// `running_max` and `sum` have room for `lanes`.
    #[inline(always)]
    pub(crate) unsafe fn begin<S: Isa>(self, s: S) {
        for lane in (0..self.lanes).step_by(S::LANES) {
            // SAFETY: below the caller's count.
            unsafe {
                s.store(self.running_max.add(lane), s.splat(f32::NEG_INFINITY));
                s.store(self.sum.add(lane), s.splat(0.0));
            }
        }
    }
}

/// What the probabilities of a block are relative to, for each vector of the tile.
#[derive(Clone, Copy)]
pub(crate) struct Relative<S: Isa, const Z: usize> {
    /// Subtracted from the scores.
    pub(crate) running_max: [S::F32; Z],
    /// What sums of the block are multiplied by, if the family is [`Gemm::INT_ACC`].
    pub(crate) weight: [S::F32; Z],
}

/// Moves references where the block's maximum demands it, and says what the block's probabilities are
/// relative to.
///
/// # Safety
/// `state` is initialised, for at most `VECTORS` vectors and `dim_v` output elements.
#[inline(always)]
pub(crate) unsafe fn update<S: Isa, F: Gemm>(
    s: S,
    state: State,
    dim_v: usize,
    block_max: [S::F32; VECTORS],
) -> Relative<S, VECTORS> {
    let never = s.splat(f32::NEG_INFINITY);
    let zero = s.splat(0.0);
    let mut relative = Relative { running_max: [zero; VECTORS], weight: [zero; VECTORS] };
    for (z, &max) in block_max.iter().enumerate() {
        let at = z * S::LANES;
        if at >= state.lanes {
            break;
        }
        // SAFETY: below `lanes`.
        unsafe {
            let old = s.load(state.running_max.add(at));
            let moves = exceeds(s, max, old);
            if s.any(moves) {
                if s.any(s.gt(s.select(moves, old, never), never)) {
                    // Stored here, where the vectors are: `rescale` is not compiled for them.
                    let mut lanes = [0.0; MAX_LANES];
                    s.store(lanes.as_mut_ptr(), max);
                    rescale(s, Rescale { state: state.from::<S>(z), dim_v, max: &lanes });
                } else {
                    // Lanes that move for the first time have nothing to be scaled yet.
                    s.store(state.running_max.add(at), s.select(moves, max, old));
                }
            }
            let running_max = s.load(state.running_max.add(at));
            // A lane that has seen no key, or only scores of -inf, has the running_max -inf;
            // subtracting that from -inf would be NaN where 0 is meant.
            let running_max = s.select(s.gt(running_max, never), running_max, zero);
            relative.running_max[z] = running_max;
            if F::INT_ACC {
                relative.running_max[z] = s.select(s.gt(max, never), max, zero);
                relative.weight[z] = s.mul(s.exp2(s.sub(max, running_max)), s.splat(1.0 / F::P_SCALE));
            }
        }
    }
    relative
}

#[inline(always)]
fn exceeds<S: Isa>(s: S, max: S::F32, running_max: S::F32) -> S::Mask {
    s.gt(max, s.add(running_max, s.splat(RESCALE_THRESHOLD)))
}

/// Moves the references that must move and scales sum and output of their lanes accordingly.
/// Out of line, because it is rare and would crowd the registers of the loops around it.
#[cold]
#[inline(never)]
fn rescale<S: Isa>(s: S, body: Rescale) {
    s.enter(body);
}

/// Made by [`update`] alone, whose contract covers what it points to.
struct Rescale<'a> {
    /// Of one vector.
    state: State,
    dim_v: usize,
    /// The block's maximum of each lane.
    max: &'a [f32; MAX_LANES],
}

impl Body for Rescale<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Rescale { state, dim_v, max } = self;
        // SAFETY: the contract of `update`, which made this; `max` is as long as any vector.
        unsafe {
            let max = s.load(max.as_ptr());
            let old = s.load(state.running_max);
            let moves = exceeds(s, max, old);
            let factor = s.select(moves, s.exp2(s.sub(old, max)), s.splat(1.0));
            s.store(state.running_max, s.select(moves, max, old));
            s.store(state.sum, s.mul(s.load(state.sum), factor));
            for d in 0..dim_v {
                let o = state.output.add(d * state.lanes);
                s.store(o, s.mul(s.load(o), factor));
            }
        }
    }
}

/// Makes the sum of each lane NaN one of whose scores is NaN (or +inf): for families whose own sums do not
/// tell. Out of line, because few problems need to ask.
///
/// # Safety
/// `scores` has `n` vectors of each of `Z` neighbours, and `sums` `Z` vectors.
#[inline(never)]
pub(crate) unsafe fn mark_nan<S: Isa, const Z: usize>(s: S, scores: *const f32, n: usize, sums: *mut f32) {
    s.enter(MarkNan::<Z> { scores, n, sums });
}

/// Made by [`mark_nan`] alone, whose contract covers what it points to.
struct MarkNan<const Z: usize> {
    scores: *const f32,
    n: usize,
    sums: *mut f32,
}

impl<const Z: usize> Body for MarkNan<Z> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        for z in 0..Z {
            // SAFETY: the contract of `mark_nan`, which made this.
            unsafe {
                let at = self.sums.add(z * S::LANES);
                let mut sum = s.load(at);
                for key in 0..self.n {
                    let x = s.load(self.scores.add((key * Z + z) * S::LANES));
                    sum = s.select(s.gt(s.splat(f32::INFINITY), x), sum, s.splat(f32::NAN));
                }
                s.store(at, sum);
            }
        }
    }
}

/// Turns the scores of a block into probabilities 2^(score - running_max) and sums them. Each lane
/// adds in the order of the keys, then the block's sum to that of all blocks, so that the sum does
/// not depend on how a tile cuts the block into spans.
pub(crate) struct Probabilities<S: Isa, F: Gemm, const Z: usize> {
    relative: Relative<S, Z>,
    sum: [Sum<S, F>; Z],
}

// Not derived, which would ask for families that can be copied.
impl<S: Isa, F: Gemm, const Z: usize> Clone for Probabilities<S, F, Z> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<S: Isa, F: Gemm, const Z: usize> Copy for Probabilities<S, F, Z> {}

impl<S: Isa, F: Gemm> Probabilities<S, F, VECTORS> {
    /// For a block of scores.
    #[inline(always)]
    pub(crate) fn new(s: S, relative: Relative<S, VECTORS>) -> Self {
        Probabilities { relative, sum: [F::Sum::zero(s); VECTORS] }
    }

    /// Those of `Z` vectors from `vector` on.
    #[inline(always)]
    pub(crate) fn part<const Z: usize>(&self, vector: usize) -> Probabilities<S, F, Z> {
        const { assert!(Z <= VECTORS) };
        // Every index is in range, as vector + Z <= VECTORS; without the remainder the compiler
        // would check.
        let at = |z: usize| (vector + z) % VECTORS;
        Probabilities {
            relative: Relative {
                running_max: std::array::from_fn(|z| self.relative.running_max[at(z)]),
                weight: std::array::from_fn(|z| self.relative.weight[at(z)]),
            },
            sum: std::array::from_fn(|z| self.sum[at(z)]),
        }
    }

    /// Takes back what [`Probabilities::part`] gave.
    #[inline(always)]
    pub(crate) fn put_back<const Z: usize>(&mut self, vector: usize, part: &Probabilities<S, F, Z>) {
        for (z, &sum) in part.sum.iter().enumerate() {
            self.sum[(vector + z) % VECTORS] = sum;
        }
    }

    /// Adds the sums of the block to the state.
    ///
    /// # Safety
    /// `state` is initialised.
    #[inline(always)]
    pub(crate) unsafe fn finish(self, s: S, state: State) {
        for (z, &sum) in self.sum.iter().enumerate() {
            if z * S::LANES < state.lanes {
                // SAFETY: below `lanes`.
                unsafe {
                    let at = state.sum.add(z * S::LANES);
                    s.store(at, s.add(s.load(at), weighted::<S, F>(s, sum, self.relative.weight[z])));
                }
            }
        }
    }
}

impl<S: Isa, F: Gemm, const Z: usize> Probabilities<S, F, Z> {
    /// What sums of the block are multiplied by, see [`Relative`].
    #[inline(always)]
    pub(crate) fn weight(&self) -> [S::F32; Z] {
        self.relative.weight
    }

    /// One group of keys, from its scores to its words, in place: they take the room of its first key.
    ///
    /// # Safety
    /// `scores` holds `Z` vectors for each key of the group, `words` has room for `Z`.
    #[inline(always)]
    pub(crate) unsafe fn make(&mut self, s: S, scores: *const f32, words: *mut f32) -> [Operand<S, F>; Z] {
        // SAFETY: every key below KEYS and z below Z are the caller's; all are read before any is written.
        unsafe {
            let mut made = [self.make_one(s, 0, scores); Z];
            for (z, made) in made.iter_mut().enumerate().skip(1) {
                *made = self.make_one(s, z, scores);
            }
            for (z, &made) in made.iter().enumerate() {
                F::Operand::store(s, words.add(z * S::LANES), made);
            }
            made
        }
    }

    /// That of vector `z`.
    ///
    /// # Safety
    /// As [`Probabilities::make`].
    #[inline(always)]
    unsafe fn make_one(&mut self, s: S, z: usize, scores: *const f32) -> Operand<S, F> {
        let mut x = [s.splat(0.0); MAX_PACK];
        for (key, x) in x.iter_mut().enumerate().take(F::PACK) {
            // SAFETY: key and z are below the caller's counts.
            *x = unsafe { s.load(scores.add((key * Z + z) * S::LANES)) };
        }
        F::probabilities(s, x, self.relative.running_max[z], &mut self.sum[z])
    }

    /// `n` groups, in place: words of neighbouring groups become neighbours.
    ///
    /// # Safety
    /// `scores` holds `Z` vectors for each of their keys.
    #[inline(always)]
    pub(crate) unsafe fn make_all(&mut self, s: S, scores: *mut f32, n: usize) {
        if F::PACK > 1 {
            for group in 0..n {
                // SAFETY: the caller's groups; words lie behind no score that is still to be read.
                unsafe {
                    let words = scores.add(group * Z * S::LANES);
                    self.make(s, scores.add(group * F::PACK * Z * S::LANES), words);
                }
            }
            return;
        }
        // One vector of rows at a time: with two, the sums would not stay in sixteen registers.
        for (z, sum) in self.sum.iter_mut().enumerate() {
            let Relative { running_max, weight } = self.relative;
            let relative = Relative { running_max: [running_max[z]], weight: [weight[z]] };
            let mut made = Probabilities::<S, F, 1> { relative, sum: [*sum] };
            for key in 0..n {
                // SAFETY: key < n and z < Z.
                unsafe {
                    let at = scores.add((key * Z + z) * S::LANES);
                    made.make(s, at, at);
                }
            }
            [*sum] = made.sum;
        }
    }
}
