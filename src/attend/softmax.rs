//! Step 3: the online softmax: a running reference and a running sum for each row.
//!
//! The reference is the largest score so far, but *lazily*: it moves only when a score exceeds it
//! by more than [`SLACK`], so on ordinary data the sums are rescaled once or not at all. Each
//! lane decides for itself, so a row's bits do not depend on its neighbours.

use super::{MAX_WIDTH, VECTORS};
use crate::simd::{Body, Isa, math};

/// How far, in log2 units, a score may exceed the reference before it moves. Probabilities stay
/// at or below 2^8, so a sum of n of them stays below n · 2^8, far from overflow, and loses no
/// precision: f32 is as dense at 2^8 as at 1.
const SLACK: f32 = 8.0;

/// Where the softmax state and the accumulator of one tile of rows are kept.
#[derive(Clone, Copy)]
pub(crate) struct State {
    /// Reference of each lane: -inf before its first visible key.
    pub(crate) reference: *mut f32,
    /// Sum of 2^(score - reference) of each lane.
    pub(crate) sum: *mut f32,
    /// Transposed output, `[dim_v][lane]`, not normalised; not written before the first block.
    pub(crate) output: *mut f32,
}

/// Moves references where the block's maximum demands it, and gives what is to be subtracted from
/// the scores.
///
/// # Safety
/// `state.reference` and `state.sum` hold `Z` vectors, `state.output` `dim_v * Z`; the output is
/// initialised unless `first`.
#[inline(always)]
pub(crate) unsafe fn update<S: Isa, const Z: usize>(
    s: S,
    state: State,
    dim_v: usize,
    block_max: [S::F32; Z],
    first: bool,
) -> [S::F32; Z] {
    const { assert!(Z <= VECTORS) };
    // SAFETY: z < Z, and the caller's sizes.
    unsafe {
        if first {
            for (z, &max) in block_max.iter().enumerate() {
                s.store(state.reference.add(z * S::LANES), max);
                s.store(state.sum.add(z * S::LANES), s.splat(0.0));
            }
        } else {
            let mut moves = false;
            for (z, &max) in block_max.iter().enumerate() {
                moves |= s.any(exceeds(s, max, s.load(state.reference.add(z * S::LANES))));
            }
            if moves {
                // Stored here, where the vectors are: `rescale` is not compiled for them.
                let mut max = [0.0; MAX_WIDTH];
                for (z, &block_max) in block_max.iter().enumerate() {
                    s.store(max.as_mut_ptr().add(z * S::LANES), block_max);
                }
                rescale(s, Rescale { state, dim_v, max: &max, vectors: Z });
            }
        }
        let mut reference = block_max;
        for (z, reference) in reference.iter_mut().enumerate() {
            let r = s.load(state.reference.add(z * S::LANES));
            // A lane that has seen no key, or only scores of -inf, has the reference -inf;
            // subtracting that from -inf would be NaN where 0 is meant.
            *reference = s.select(s.gt(r, s.splat(f32::NEG_INFINITY)), r, s.splat(0.0));
        }
        reference
    }
}

#[inline(always)]
fn exceeds<S: Isa>(s: S, max: S::F32, reference: S::F32) -> S::Mask {
    s.gt(max, s.add(reference, s.splat(SLACK)))
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
    state: State,
    dim_v: usize,
    /// The block's maximum of each lane.
    max: &'a [f32; MAX_WIDTH],
    vectors: usize,
}

impl Body for Rescale<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Rescale { state, dim_v, max, vectors } = self;
        for z in 0..vectors {
            let at = z * S::LANES;
            // SAFETY: the contract of `update`, which made this; at + LANES is within `max`.
            unsafe {
                let max = s.load(max.as_ptr().add(at));
                let old = s.load(state.reference.add(at));
                let moves = exceeds(s, max, old);
                let factor = s.select(moves, math::exp2(s, s.sub(old, max)), s.splat(1.0));
                s.store(state.reference.add(at), s.select(moves, max, old));
                let sum = state.sum.add(at);
                s.store(sum, s.mul(s.load(sum), factor));
                for d in 0..dim_v {
                    let o = state.output.add(d * vectors * S::LANES + at);
                    s.store(o, s.mul(s.load(o), factor));
                }
            }
        }
    }
}

/// Turns the scores of a block into probabilities 2^(score - reference) and sums them. Each lane
/// adds in the order of the keys, block by block.
#[derive(Clone, Copy)]
pub(crate) struct Probabilities<S: Isa, const Z: usize> {
    reference: [S::F32; Z],
    sum: [S::F32; Z],
}

impl<S: Isa, const Z: usize> Probabilities<S, Z> {
    /// For scores against these references, from [`update`].
    #[inline(always)]
    pub(crate) fn new(s: S, reference: [S::F32; Z]) -> Self {
        Probabilities { reference, sum: [s.splat(0.0); Z] }
    }

    /// One key.
    #[inline(always)]
    pub(crate) fn make(&mut self, s: S, scores: &mut [S::F32; Z]) {
        for (z, x) in scores.iter_mut().enumerate() {
            *x = math::exp2(s, s.sub(*x, self.reference[z]));
            self.sum[z] = s.add(self.sum[z], *x);
        }
    }

    /// `n` keys, in place.
    ///
    /// # Safety
    /// `scores` holds `n * Z` vectors.
    #[inline(always)]
    pub(crate) unsafe fn make_all(&mut self, s: S, scores: *mut f32, n: usize) {
        for key in 0..n {
            let mut p = self.reference;
            // SAFETY: key < n and z < Z.
            unsafe {
                for (z, p) in p.iter_mut().enumerate() {
                    *p = s.load(scores.add((key * Z + z) * S::LANES));
                }
                self.make(s, &mut p);
                for (z, &p) in p.iter().enumerate() {
                    s.store(scores.add((key * Z + z) * S::LANES), p);
                }
            }
        }
    }

    /// Adds the sums of the block to the state.
    ///
    /// # Safety
    /// `state.sum` holds `Z` vectors.
    #[inline(always)]
    pub(crate) unsafe fn finish(self, s: S, state: State) {
        for (z, &sum) in self.sum.iter().enumerate() {
            // SAFETY: z < Z.
            unsafe {
                let at = state.sum.add(z * S::LANES);
                s.store(at, s.add(s.load(at), sum));
            }
        }
    }
}
