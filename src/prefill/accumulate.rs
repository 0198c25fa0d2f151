//! Step 5: output += probabilities · V, word by word. The output is transposed: a vector is one
//! element of the output for neighbouring rows.
//!
//! With 32 registers, the first register tile makes the probabilities while it goes through the
//! keys: the exponential fills issue slots that multiply-adds leave free, which a pass of its own
//! cannot.

use std::ops::Range;

use super::gemm::{Gemm, Operand, RegisterTile, Sum, weighted};
use super::softmax::Probabilities;
use crate::attend::MAX_WIDTH;
use crate::attend::rows::Rows;
use crate::simd::lane::Registers;
use crate::simd::{BY_LANE, Body, Isa};

/// What products of a span are added to. Sums of a block are added to those of all blocks before as
/// a whole, so that errors grow with the number of keys of a block and of blocks, and not with that
/// of all keys (Higham 2002, Accuracy and Stability of Numerical Algorithms, section 4.2).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Onto {
    /// Nothing: they begin the sums.
    Nothing,
    /// Sums of the same block, which they go on with, key by key.
    Block,
    /// Sums of the blocks before.
    Blocks,
}

impl Onto {
    /// Writes a vector of sums of a span, times their weight, or adds it to what is there.
    ///
    /// # Safety
    /// A vector is readable and writable at `at`.
    #[inline(always)]
    pub(crate) unsafe fn store<S: Isa, F: Gemm>(self, s: S, at: *mut f32, sum: Sum<S, F>, weight: S::F32) {
        let sum = weighted::<S, F>(s, sum, weight);
        let more = self == Onto::Blocks || (F::INT_ACC && self == Onto::Block);
        // SAFETY: a vector of the output (caller).
        unsafe { s.store(at, if more { s.add(s.load(at), sum) } else { sum }) };
    }
}

/// Output elements of the register tile that makes the probabilities: fewer than in other tiles, so
/// that the constants of the exponential stay in registers, too.
const EXP_TILE: usize = 4;

/// Output elements of a register tile with [`Isa::MULTIPLIES_BY_LANE`]: 12 x 2 accumulators, three
/// vectors of values and two of probabilities fit 32 registers. Lower tiles take more loads for
/// each multiplication than there are slots for.
const TALL_TILE: usize = 12;

/// Turns the scores of `n` groups of keys into words of probabilities, in place, and adds their
/// products with V to the first elements of the output; returns how many elements these are.
/// [`accumulate`] does the others.
///
/// # Safety
/// As [`accumulate`], with `PACK` times as many vectors of scores in place of words.
#[inline(always)]
pub(crate) unsafe fn make_and_accumulate<S: Isa, F: Gemm, const Z: usize>(
    s: S,
    scores: *mut f32,
    v: Rows,
    n: usize,
    dim: usize,
    output: *mut f32,
    lanes: usize,
    onto: Onto,
    prefetch_groups: usize,
    probabilities: &mut Probabilities<S, F, Z>,
) -> usize {
    let (weight, distance) = (probabilities.weight(), prefetch_groups);
    let zero = [F::Sum::zero(s); Z];
    // SAFETY: EXP_TILE elements or 1 of the caller's dim, which is at least 1.
    unsafe {
        if const { !S::EXP_IN_FIRST_TILE } {
            probabilities.make_all(s, scores, n);
            0
        } else if dim >= EXP_TILE {
            tile::<S, F, EXP_TILE, Z>(
                s,
                scores,
                v,
                n,
                output,
                lanes,
                onto,
                weight,
                zero,
                distance,
                Some(probabilities),
            );
            EXP_TILE
        } else {
            tile::<S, F, 1, Z>(
                s,
                scores,
                v,
                n,
                output,
                lanes,
                onto,
                weight,
                zero,
                distance,
                Some(probabilities),
            );
            1
        }
    }
}

/// Adds the products of `n` groups of keys to `Z` vectors of `output[d][lane]`, which is `lanes`
/// wide, from element `d` on, in register tiles of `R` elements. Each element sums the groups in
/// ascending order, from `begin` on where it does not go on with those of the same block.
///
/// # Safety
/// `p` holds `n * Z` vectors of words, `v` holds `n` groups of `dim` words, and `output` holds `Z`
/// vectors in each of `dim` rows: initialised, unless they are added to nothing.
#[inline(always)]
pub(crate) unsafe fn accumulate<S: Isa, F: Gemm, const R: usize, const Z: usize>(
    s: S,
    p: *mut f32,
    v: Rows,
    n: usize,
    mut d: usize,
    dim: usize,
    output: *mut f32,
    lanes: usize,
    onto: Onto,
    weight: [S::F32; Z],
    begin: [Sum<S, F>; Z],
    prefetch_groups: usize,
) {
    // SAFETY: a tile is computed only while as many of the caller's `dim` elements are left.
    unsafe {
        macro_rules! tiles_of {
            ($rows:expr) => {
                tiles_of!($rows, true)
            };
            ($rows:expr, $and:expr) => {
                while dim - d >= $rows && $and {
                    let v = Rows { base: v.base.wrapping_add(d * 4), ..v };
                    let output = output.add(d * lanes);
                    tile::<S, F, { $rows }, Z>(
                        s,
                        p,
                        v,
                        n,
                        output,
                        lanes,
                        onto,
                        weight,
                        begin,
                        prefetch_groups,
                        None,
                    );
                    d += $rows;
                }
            };
        }
        if const { S::MULTIPLIES_BY_LANE && R > 4 } {
            // Two tiles of 8 are faster than one of 12 and one of 4.
            tiles_of!(TALL_TILE, dim - d != TALL_TILE + 4);
        }
        tiles_of!(R);
        if const { R > 4 } {
            tiles_of!(4);
        }
        tiles_of!(2);
        tiles_of!(1);
    }
}

/// One register tile: `R` elements of the output. With `probabilities`, `p` holds scores, which
/// become words of probabilities on the way.
///
/// # Safety
/// As [`accumulate`], for `R` elements from the first of `v` on.
#[inline(always)]
unsafe fn tile<S: Isa, F: Gemm, const R: usize, const Z: usize>(
    s: S,
    p: *mut f32,
    v: Rows,
    n: usize,
    output: *mut f32,
    lanes: usize,
    onto: Onto,
    weight: [S::F32; Z],
    begin: [Sum<S, F>; Z],
    prefetch_groups: usize,
    probabilities: Option<&mut Probabilities<S, F, Z>>,
) {
    let mut sum = [begin; R];
    // SAFETY: `n` groups of probabilities and of V, and `R` elements of the output (caller).
    unsafe {
        if onto == Onto::Block && !F::INT_ACC {
            for (r, sum) in sum.iter_mut().enumerate() {
                for (z, sum) in sum.iter_mut().enumerate() {
                    *sum = F::Sum::load(s, output.add(r * lanes + z * S::LANES));
                }
            }
        }
        let (mut row, ahead) = (v.base, prefetch_groups * v.stride);
        if let Some(probabilities) = probabilities {
            // A copy, which can live in registers. Probabilities are made one group before they are
            // used, so that the multiply-adds of a group never wait for its exponentials.
            let mut made = *probabilities;
            let mut words = made.make(s, p, p);
            for group in 1..n {
                let at = p.add(group * Z * S::LANES);
                let next = made.make(s, p.add(group * F::PACK * Z * S::LANES), at);
                s.prefetch_l1(row.wrapping_add(ahead));
                add_group::<S, F, R, Z>(s, words, row, &mut sum);
                words = next;
                row = row.wrapping_add(v.stride);
            }
            add_group::<S, F, R, Z>(s, words, row, &mut sum);
            *probabilities = made;
        } else {
            let mut p = p;
            for _ in 0..n {
                s.prefetch_l1(row.wrapping_add(ahead));
                let mut words = [F::Operand::load(s, p); Z];
                for (z, words) in words.iter_mut().enumerate().skip(1) {
                    *words = F::Operand::load(s, p.add(z * S::LANES));
                }
                add_group::<S, F, R, Z>(s, words, row, &mut sum);
                p = p.add(Z * S::LANES);
                row = row.wrapping_add(v.stride);
            }
        }
        for (r, sum) in sum.iter().enumerate() {
            for (z, &sum) in sum.iter().enumerate() {
                let at = output.add(r * lanes + z * S::LANES);
                onto.store::<S, F>(s, at, sum, weight[z]);
            }
        }
    }
}

/// Adds the sums of a block to those of the blocks before: `dim` rows of `vectors` vectors, which
/// are `lanes` apart in both. Kept out of line: most blocks have one span, whose register tiles do
/// that.
///
/// # Safety
/// `block` and `output` have these vectors; `output` is initialised.
#[inline(never)]
pub(crate) unsafe fn add_block<S: Isa>(
    s: S,
    block: *const f32,
    output: *mut f32,
    dim: usize,
    lanes: usize,
    vectors: usize,
) {
    s.core().enter(AddBlock { block, output, dim, lanes, vectors });
}

/// The arguments of [`add_block`], which alone makes one and vouches for its pointers.
struct AddBlock {
    block: *const f32,
    output: *mut f32,
    dim: usize,
    lanes: usize,
    vectors: usize,
}

impl Body for AddBlock {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let AddBlock { block, output, dim, lanes, vectors } = self;
        for d in 0..dim {
            for z in 0..vectors {
                // SAFETY: one of the vectors that `add_block` vouches for.
                unsafe {
                    let at = d * lanes + z * S::LANES;
                    s.store(output.add(at), s.add(s.load(output.add(at)), s.load(block.add(at))));
                }
            }
        }
    }
}

/// Adds one group to `R` elements: its probabilities times the first `R` words at `row`.
///
/// # Safety
/// `row` has `R` words.
#[inline(always)]
unsafe fn add_group<S: Isa, F: Gemm, const R: usize, const Z: usize>(
    s: S,
    words: [Operand<S, F>; Z],
    row: *const u8,
    sum: &mut RegisterTile<Sum<S, F>, R, Z>,
) {
    if const { S::MULTIPLIES_BY_LANE && R.is_multiple_of(BY_LANE) } {
        for (i, sum) in sum.chunks_exact_mut(BY_LANE).enumerate() {
            // SAFETY: some of the `R` words of the row (caller).
            let x = unsafe { F::Operand::load(s, row.wrapping_add(4 * BY_LANE * i).cast()) };
            macro_rules! lane {
                ($lane:literal) => {
                    for (sum, words) in sum[$lane].iter_mut().zip(words) {
                        *sum = F::add_value_lane::<S, $lane>(s, words, x, *sum);
                    }
                };
            }
            lane!(0);
            lane!(1);
            lane!(2);
            lane!(3);
        }
        return;
    }
    for (r, sum) in sum.iter_mut().enumerate() {
        // SAFETY: one of the `R` words of the row (caller).
        let x = unsafe { F::Operand::broadcast(s, row.wrapping_add(4 * r)) };
        for (sum, words) in sum.iter_mut().zip(words) {
            *sum = F::add_value(s, words, x, *sum);
        }
    }
}

/// Adds one key to the rows that see it alone, those with a 1 in `sees`: for values that are not
/// finite, whose product with the probability 0 of the other rows would be NaN. Kept out of line,
/// because it is rare.
///
/// # Safety
/// As [`accumulate`], for one key, with an output that is initialised.
#[cold]
#[inline(never)]
pub(crate) unsafe fn accumulate_guarded<S: Isa, const Z: usize>(
    s: S,
    p: *const f32,
    v: *const u8,
    dim: usize,
    output: *mut f32,
    lanes: usize,
    sees: &[f32; MAX_WIDTH],
) {
    s.core().enter(Guarded::<Z> { p, v, dim, output, lanes, sees });
}

/// The arguments of [`accumulate_guarded`], which alone makes one.
struct Guarded<'a, const Z: usize> {
    p: *const f32,
    v: *const u8,
    dim: usize,
    output: *mut f32,
    lanes: usize,
    sees: &'a [f32; MAX_WIDTH],
}

impl<const Z: usize> Body for Guarded<'_, Z> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Guarded { p, v, dim, output, lanes, sees } = self;
        for z in 0..Z {
            // SAFETY: the array has MAX_WIDTH lanes, at least those of Z vectors.
            let sees = s.gt(unsafe { s.load(sees.as_ptr().add(z * S::LANES)) }, s.splat(0.0));
            for d in 0..dim {
                // SAFETY: an element of the key and of its output; the caller of
                // `accumulate_guarded` vouches for both.
                unsafe {
                    let x = s.splat(v.cast::<f32>().wrapping_add(d).read_unaligned());
                    let at = output.add(d * lanes + z * S::LANES);
                    let old = s.load(at);
                    s.store(at, s.select(sees, s.fma(s.load(p.add(z * S::LANES)), x, old), old));
                }
            }
        }
    }
}

/// The first key in `keys` whose values are not all finite.
///
/// # Safety
/// `v` has the rows `keys`, of `dim` f32.
#[inline(always)]
pub(crate) unsafe fn first_not_finite<S: Isa>(
    s: S,
    v: Rows,
    keys: Range<usize>,
    dim: usize,
) -> Option<usize> {
    if keys.is_empty() { None } else { find(s, FirstNotFinite { v, keys, dim }) }
}

/// Kept out of line, so that the code exists once for each instruction set and not in each kernel.
#[inline(never)]
fn find<S: Isa>(s: S, body: FirstNotFinite) -> Option<usize> {
    s.core().enter(body)
}

/// The arguments of [`first_not_finite`], which alone makes one.
struct FirstNotFinite {
    v: Rows,
    keys: Range<usize>,
    dim: usize,
}

impl Body for FirstNotFinite {
    type Out = Option<usize>;

    #[inline(always)]
    fn run<S: Isa>(self, _s: S) -> Option<usize> {
        // The exponent field, all ones in infinities and NaN.
        const EXPONENT: u32 = 0x7f80_0000;
        for key in self.keys {
            let row = self.v.skip(key).base.cast::<u32>();
            // A maximum and no early exit, so that the loop becomes vector code.
            let mut exponent = 0;
            for d in 0..self.dim {
                // SAFETY: an element of one of the rows; the caller of `first_not_finite` vouches
                // for them.
                let bits = unsafe { row.wrapping_add(d).read_unaligned() };
                exponent = exponent.max(bits & EXPONENT);
            }
            if exponent == EXPONENT {
                return Some(key);
            }
        }
        None
    }
}
