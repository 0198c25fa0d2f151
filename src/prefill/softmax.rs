//! Step 4: the online softmax, a running maximum and a running sum for each row (Milakov and
//! Gimelshein 2018, arXiv:1805.02867).
//!
//! The running maximum is lazy: it moves only when a score exceeds it by more than
//! [`RESCALE_THRESHOLD`], so that on ordinary data the sums are rescaled once or not at all. Each
//! lane decides for itself, so that a row's bits do not depend on its neighbours.

use super::gemm::{Gemm, Operand, Sum, weighted};
use crate::attend::{RESCALE_THRESHOLD, VECTORS};
use crate::simd::lane::{Lane, MAX_PACK, Registers};
use crate::simd::{Body, Isa, MAX_LANES};

/// The softmax state and the output accumulator of one lane tile, in scratch memory.
#[derive(Clone, Copy)]
pub(crate) struct State {
    /// Running maximum of each lane: -inf before its first visible key.
    pub(crate) running_max: *mut f32,
    /// Sum of 2^(score - running maximum) of each lane.
    pub(crate) sum: *mut f32,
    /// Output, transposed: `[dim_v][lane]`, not yet divided by the sum.
    pub(crate) output: *mut f32,
    /// Lanes of the tile: whole vectors.
    pub(crate) lanes: usize,
}

impl State {
    /// The state of the vectors from `vector` on. The rows of the output stay `lanes` apart.
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
}

/// What the probabilities of a block are relative to, for each vector of a lane tile.
#[derive(Clone, Copy)]
pub(crate) struct Relative<S: Isa, const Z: usize> {
    /// What is subtracted from the scores.
    pub(crate) running_max: [S::F32; Z],
    /// What sums of the block are multiplied by, with [`Gemm::INT_ACC`].
    pub(crate) weight: [S::F32; Z],
}

/// Moves running maxima where the maximum of the block demands it, and returns what the
/// probabilities of the block are relative to: the running maximum, or, with [`Gemm::INT_ACC`], the
/// `reference` of the block.
///
/// # Safety
/// `state` is initialised, with at most `VECTORS` vectors and `dim_v` output elements.
#[inline(always)]
pub(crate) unsafe fn update<S: Isa, F: Gemm>(
    s: S,
    state: State,
    dim_v: usize,
    block_max: [S::F32; VECTORS],
    reference: [S::F32; VECTORS],
) -> Relative<S, VECTORS> {
    let never = s.splat(f32::NEG_INFINITY);
    let zero = s.splat(0.0);
    let mut relative = Relative { running_max: [zero; VECTORS], weight: [zero; VECTORS] };
    for (z, &max) in block_max.iter().enumerate() {
        let at = z * S::LANES;
        if at >= state.lanes {
            break;
        }
        let max = s.sub(max, s.splat(F::headroom(s)));
        // SAFETY: a vector below `lanes` of the state (caller).
        unsafe {
            let old = s.load(state.running_max.add(at));
            let moves = exceeds(s, max, old);
            if s.any(moves) {
                if s.any(s.gt(s.select(moves, old, never), never)) {
                    // Passed in memory: `rescale` is not compiled for the instruction set.
                    let mut lanes = [0.0; MAX_LANES];
                    s.store(lanes.as_mut_ptr(), max);
                    rescale(s, Rescale { state: state.from::<S>(z), dim_v, max: &lanes });
                } else {
                    // Lanes that move for the first time have nothing to scale.
                    s.store(state.running_max.add(at), s.select(moves, max, old));
                }
            }
            let running_max = s.load(state.running_max.add(at));
            // A lane that has seen no key, or only scores of -inf, has the running maximum -inf.
            // Subtracting that from -inf would give NaN where 0 is meant.
            let running_max = s.select(s.gt(running_max, never), running_max, zero);
            relative.running_max[z] = running_max;
            if F::INT_ACC {
                let reference = reference[z];
                relative.running_max[z] = s.select(s.gt(reference, never), reference, zero);
                relative.weight[z] = s.mul(s.exp2(s.sub(reference, running_max)), s.splat(1.0 / F::P_SCALE));
            }
        }
    }
    relative
}

#[inline(always)]
fn exceeds<S: Isa>(s: S, max: S::F32, running_max: S::F32) -> S::Mask {
    s.gt(max, s.add(running_max, s.splat(RESCALE_THRESHOLD)))
}

/// Moves the running maxima that must move, and scales sum and output of their lanes. Kept out of
/// line: it is rare, and would take registers from the loops around it.
#[cold]
#[inline(never)]
fn rescale<S: Isa>(s: S, body: Rescale) {
    s.core().enter(body);
}

/// The arguments of [`rescale`]. Only [`update`] makes one, and vouches for its pointers.
struct Rescale<'a> {
    /// The state of one vector.
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
        // SAFETY: `update` made this and vouches for the state; `max` is as long as any vector.
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

/// Makes NaN of the sum of each lane that has a score of NaN or +inf: for compute types whose own
/// sums do not show it. Kept out of line: few problems need it.
///
/// # Safety
/// `scores` has `n` times `Z` vectors, and `sums` has `Z` vectors.
#[inline(never)]
pub(crate) unsafe fn mark_nan<S: Isa, const Z: usize>(s: S, scores: *const f32, n: usize, sums: *mut f32) {
    s.core().enter(MarkNan::<Z> { scores, n, sums });
}

/// The arguments of [`mark_nan`], which alone makes one and vouches for its pointers.
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
            // SAFETY: `mark_nan` made this and vouches for both arrays.
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

/// Turns the scores of a block into probabilities 2^(score - running maximum) and sums them. Each
/// lane adds in the order of the keys, and then the sum of the block to that of all blocks, so that
/// the sum does not depend on how the block is cut into spans.
pub(crate) struct Probabilities<S: Isa, F: Gemm, const Z: usize> {
    relative: Relative<S, Z>,
    sum: [Sum<S, F>; Z],
}

// Not derived: `derive` would ask for compute types that can be copied.
impl<S: Isa, F: Gemm, const Z: usize> Clone for Probabilities<S, F, Z> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<S: Isa, F: Gemm, const Z: usize> Copy for Probabilities<S, F, Z> {}

impl<S: Isa, F: Gemm> Probabilities<S, F, VECTORS> {
    /// Nothing summed yet.
    #[inline(always)]
    pub(crate) fn new(s: S, relative: Relative<S, VECTORS>) -> Self {
        Probabilities { relative, sum: [F::Sum::zero(s); VECTORS] }
    }

    /// The part for `Z` vectors from `vector` on.
    #[inline(always)]
    pub(crate) fn part<const Z: usize>(&self, vector: usize) -> Probabilities<S, F, Z> {
        const { assert!(Z <= VECTORS) };
        // Every index is in range, as vector + Z <= VECTORS. The remainder saves bounds checks.
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
    /// What sums of the block are multiplied by, with [`Gemm::INT_ACC`].
    #[inline(always)]
    pub(crate) fn weight(&self) -> [S::F32; Z] {
        self.relative.weight
    }

    /// What probabilities sum up to so far.
    #[inline(always)]
    pub(crate) fn sum(&self) -> [Sum<S, F>; Z] {
        self.sum
    }

    /// Turns the scores of one group of keys into words of probabilities, written to `words`, which
    /// may be where the scores of the first key are.
    ///
    /// # Safety
    /// `scores` holds `Z` vectors for each key of the group; `words` has room for `Z` vectors.
    #[inline(always)]
    pub(crate) unsafe fn make(&mut self, s: S, scores: *const f32, words: *mut f32) -> [Operand<S, F>; Z] {
        // SAFETY: scores and words that the caller has vouched for; all are read before any is
        // written.
        unsafe {
            let made = self.words(s, scores);
            for (z, &made) in made.iter().enumerate() {
                F::Operand::store(s, words.add(z * S::LANES), made);
            }
            made
        }
    }

    /// The words of probabilities of one group of keys.
    ///
    /// # Safety
    /// `scores` holds `Z` vectors for each key of the group.
    #[inline(always)]
    pub(crate) unsafe fn words(&mut self, s: S, scores: *const f32) -> [Operand<S, F>; Z] {
        // SAFETY: the scores of the group (caller).
        unsafe {
            let mut made = [self.make_one(s, 0, scores); Z];
            for (z, made) in made.iter_mut().enumerate().skip(1) {
                *made = self.make_one(s, z, scores);
            }
            made
        }
    }

    /// The words of vector `z` of a group.
    ///
    /// # Safety
    /// `scores` holds `Z` vectors for each key of the group, and z is below `Z`.
    #[inline(always)]
    unsafe fn make_one(&mut self, s: S, z: usize, scores: *const f32) -> Operand<S, F> {
        let mut x = [s.splat(0.0); MAX_PACK];
        for (key, x) in x.iter_mut().enumerate().take(F::PACK) {
            // SAFETY: one of the `PACK * Z` vectors (caller).
            *x = unsafe { s.load(scores.add((key * Z + z) * S::LANES)) };
        }
        F::probabilities(s, x, self.relative.running_max[z], &mut self.sum[z])
    }

    /// Turns the scores of `n` groups into words of probabilities, in place: words of neighbouring
    /// groups become neighbours.
    ///
    /// # Safety
    /// `scores` holds `Z` vectors for each of the `n * PACK` keys.
    #[inline(always)]
    pub(crate) unsafe fn make_all(&mut self, s: S, scores: *mut f32, n: usize) {
        if const { F::PACK > 1 } {
            for group in 0..n {
                // SAFETY: the caller's groups; no words are written over scores that are still to
                // be read.
                unsafe {
                    let words = scores.add(group * Z * S::LANES);
                    self.make(s, scores.add(group * F::PACK * Z * S::LANES), words);
                }
            }
            return;
        }
        // One vector of rows at a time: with two, the sums would spill from 16 registers.
        for (z, sum) in self.sum.iter_mut().enumerate() {
            let Relative { running_max, weight } = self.relative;
            let relative = Relative { running_max: [running_max[z]], weight: [weight[z]] };
            let mut made = Probabilities::<S, F, 1> { relative, sum: [*sum] };
            for key in 0..n {
                // SAFETY: one of the `n * Z` vectors (caller).
                unsafe {
                    let at = scores.add((key * Z + z) * S::LANES);
                    made.make(s, at, at);
                }
            }
            [*sum] = made.sum;
        }
    }
}
