//! Compute types whose products a matrix unit makes, whole tiles at a time: for prefill. Queries,
//! probabilities, sums and softmax are those of the type whose name they have.
//!
//! | product | A: 16 rows of 16 words | B: 16 words by 16 columns | C: 16 rows by 16 columns |
//! |---|---|---|---|
//! | scores | 16 keys, where they lie | the packed panel of queries | scores of 16 keys |
//! | outputs | 16 elements of V, transposed | words of probabilities | 16 elements of the output |
//!
//! Columns are lanes: query rows. So scores and outputs lie as everywhere in prefill, nothing is
//! summed across lanes, and of the operands V alone is transposed, once a block.
//!
//! Spans begin at multiples of a tile of V, so that a tile has whole groups of the span. A register
//! block is 32 keys, or elements, by 32 lanes: two tiles by two.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::span::{pack_query, with_words_of};
use super::{half::Half, i8::I8};
use crate::attend::fold::Folding;
use crate::attend::rows::{Rows, Source};
use crate::compute::integers::clear;
use crate::dtype::Dtype;
use crate::prefill::accumulate::Onto;
use crate::prefill::gemm::{Gemm, Operand, Sum};
use crate::prefill::prefetch::Prefetch;
use crate::prefill::scores::Keys;
use crate::prefill::softmax::Probabilities;
use crate::simd::lane::{MAX_PACK, Registers};
use crate::simd::tiles::{SIDE, TileRegisters, WORD};
use crate::simd::{Body, Isa};

/// The compute type `F` on tiles.
pub(crate) struct Tiles<F>(PhantomData<fn() -> F>);

/// A compute type that tiles have products of.
pub(crate) trait Tiled: Gemm {
    /// The line of a panel that sums of scores begin with, if not with 0.
    const BEGINS_WITH: Option<usize>;

    /// Whether rows of K can be read in place, if they are whole tiles.
    fn reads_k(dtype: Dtype) -> bool;

    /// C += A · B, of keys by queries.
    fn multiply_keys<T: TileRegisters, const C: usize, const A: usize, const B: usize>(tiles: &mut T);

    /// C += A · B, of values by probabilities.
    fn multiply_values<T: TileRegisters, const C: usize, const A: usize, const B: usize>(tiles: &mut T);
}

impl Tiled for Half {
    const BEGINS_WITH: Option<usize> = None;

    #[inline(always)]
    fn reads_k(dtype: Dtype) -> bool {
        matches!(dtype, Dtype::Bf16 | Dtype::F16)
    }

    #[inline(always)]
    fn multiply_keys<T: TileRegisters, const C: usize, const A: usize, const B: usize>(tiles: &mut T) {
        tiles.dot_halves::<C, A, B>();
    }

    #[inline(always)]
    fn multiply_values<T: TileRegisters, const C: usize, const A: usize, const B: usize>(tiles: &mut T) {
        tiles.dot_halves::<C, A, B>();
    }
}

impl Tiled for I8 {
    const BEGINS_WITH: Option<usize> = Some(1);

    #[inline(always)]
    fn reads_k(_dtype: Dtype) -> bool {
        false
    }

    #[inline(always)]
    fn multiply_keys<T: TileRegisters, const C: usize, const A: usize, const B: usize>(tiles: &mut T) {
        tiles.dot_u8_i8::<C, A, B>();
    }

    #[inline(always)]
    fn multiply_values<T: TileRegisters, const C: usize, const A: usize, const B: usize>(tiles: &mut T) {
        tiles.dot_i8_u8::<C, A, B>();
    }
}

/// Keys, or elements of the output, of a register block.
const BLOCK: usize = 2 * SIDE;

/// Bytes of a row of a tile.
const ROW: usize = SIDE * WORD;

/// Memory for the rows of a tile A.
#[repr(C, align(64))]
struct Staged([u8; SIDE * ROW]);

/// Memory for the sums of a register block, `[row][lane]`.
#[repr(C, align(64))]
struct Sums([f32; BLOCK * BLOCK]);

/// Whether a register block is two tiles wide.
#[inline(always)]
const fn is_wide<S: Isa>(vectors: usize) -> bool {
    vectors * S::LANES > SIDE
}

/// Calls an operation on the tiles C of a register block: `$do!(tile, row, column)`, of as many as
/// there are.
macro_rules! each_sum {
    ($two_rows:expr, $two_columns:expr, $do:ident) => {
        $do!(0, 0, 0);
        if $two_columns {
            $do!(1, 0, SIDE);
        }
        if $two_rows {
            $do!(2, SIDE, 0);
            if $two_columns {
                $do!(3, SIDE, SIDE);
            }
        }
    };
}

/// The products of tiles A in 4 and 5 with tiles B in 6 and 7, which have been loaded.
macro_rules! multiply {
    ($multiply:ident, $F:ident, $tiles:ident, $two_rows:expr, $two_columns:expr) => {
        $F::$multiply::<_, 0, 4, 6>(&mut $tiles);
        if $two_columns {
            $F::$multiply::<_, 1, 4, 7>(&mut $tiles);
        }
        if $two_rows {
            $F::$multiply::<_, 2, 5, 6>(&mut $tiles);
            if $two_columns {
                $F::$multiply::<_, 3, 5, 7>(&mut $tiles);
            }
        }
    };
}

impl<F: Tiled> Gemm for Tiles<F> {
    with_words_of!(F, 0);

    /// The keys of a tile of V.
    const SPAN_KEYS: usize = SIDE * F::PACK;
    const HAS_TILES: bool = true;

    /// Whole tiles.
    #[inline(always)]
    fn steps(dim: usize) -> usize {
        F::steps(dim).next_multiple_of(SIDE)
    }

    #[inline(always)]
    fn reads_k(dtype: Dtype, dim: usize) -> bool {
        // A tile must not reach beyond the row.
        <F as Tiled>::reads_k(dtype) && dim.is_multiple_of(SIDE * F::PACK)
    }

    #[inline(always)]
    unsafe fn pack_query<S: Isa>(
        s: S,
        source: Source,
        n: usize,
        dim: usize,
        lanes: usize,
        factor: f32,
        folding: Option<&Folding>,
        panel: *mut f32,
        scratch: *mut u8,
    ) -> bool {
        let steps = Self::steps(dim);
        // SAFETY: the caller vouches for rows, panel and scratch.
        unsafe { pack_query::<S, F>(s, steps, source, n, dim, lanes, factor, folding, panel, scratch) }
    }

    #[inline(always)]
    unsafe fn stage_k<S: Isa>(s: S, source: Source, n: usize, dim: usize, first: usize, to: *mut u8) {
        let [staged, whole] = [F::steps(dim), Self::steps(dim)].map(|steps| steps * WORD);
        // SAFETY: `n` rows of `dim` elements, and room for them staged (caller), in whole lines.
        unsafe {
            F::stage_k(s, source, n, dim, first, to);
            if staged < whole {
                for row in 0..n {
                    clear(to.add(row * Self::staged_k_row(dim) + staged), whole - staged);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn end_v<S: Isa>(s: S, n: usize, dim: usize, to: *mut u8) {
        let transpose = Transpose { groups: n.div_ceil(F::PACK), dim, row: Self::staged_v_row(dim), to };
        // SAFETY: the groups that have been staged, in room for whole spans (caller).
        unsafe { transpose_groups(s.core(), transpose) };
    }

    #[inline(always)]
    unsafe fn score_span<S: Isa, const R: usize, const Z: usize>(
        s: S,
        panel: *const f32,
        lanes: usize,
        k: Keys,
        n: usize,
        dim: usize,
        out: *mut f32,
        prefetch: &mut Prefetch,
    ) -> [S::F32; Z] {
        let mut max = [s.splat(f32::NEG_INFINITY); Z];
        // The unit multiplies a block while vectors end the scores of the one before.
        let mut before = 0..0;
        for key in (0..n).step_by(BLOCK) {
            let here = BLOCK.min(n - key);
            let at = out.wrapping_add(key * Z * S::LANES);
            // SAFETY: keys of the caller's, and scores of whole blocks; those before are written.
            unsafe {
                if here > SIDE {
                    multiply_keys::<S, F, Z, true>(s, panel, lanes, k.rows.skip(key), here, dim, at);
                } else {
                    multiply_keys::<S, F, Z, false>(s, panel, lanes, k.rows.skip(key), here, dim, at);
                }
                end_scores::<S, F, Z>(s, panel, k, before, out, &mut max);
            }
            before = key..key + here;
            prefetch.step(s);
        }
        // SAFETY: as above.
        unsafe { end_scores::<S, F, Z>(s, panel, k, before, out, &mut max) };
        max
    }

    #[inline(always)]
    unsafe fn value_span<S: Isa, const R: usize, const Z: usize>(
        s: S,
        scores: *mut f32,
        v: Rows,
        n: usize,
        dim: usize,
        output: *mut f32,
        lanes: usize,
        onto: Onto,
        _prefetch_groups: usize,
        probabilities: &mut Probabilities<S, Self, Z>,
    ) {
        let weight = probabilities.weight();
        for d in (0..dim).step_by(BLOCK) {
            let here = BLOCK.min(dim - d);
            let v = Rows { base: v.base.wrapping_add(d * WORD), ..v };
            // The first block of elements makes the probabilities: the unit multiplies those of 16
            // groups while vectors make the next ones.
            let made = if d == 0 { Some(&mut *probabilities) } else { None };
            // SAFETY: elements of the caller's groups and of its output.
            unsafe {
                let output = output.add(d * lanes);
                if here > SIDE {
                    multiply_values::<S, F, Z, true>(
                        s, scores, v, n, here, output, lanes, onto, weight, made,
                    );
                } else {
                    multiply_values::<S, F, Z, false>(
                        s, scores, v, n, here, output, lanes, onto, weight, made,
                    );
                }
            }
        }
    }
}

/// Writes the products of `n` keys, at most two tiles of them, with `Z` vectors of queries:
/// `out[key][lane]`, whole tiles.
///
/// # Safety
/// As [`Gemm::score_span`], for `n` keys.
#[inline(always)]
unsafe fn multiply_keys<S: Isa, F: Tiled, const Z: usize, const TWO: bool>(
    s: S,
    panel: *const f32,
    lanes: usize,
    keys: Rows,
    n: usize,
    dim: usize,
    out: *mut f32,
) {
    let is_wide = const { is_wide::<S>(Z) };
    let columns = Z * S::LANES;
    let mut tiles = s.tiles(columns.min(SIDE));
    // The last keys of a block may be the last of the tensor: a tile of them is copied.
    let is_whole = n.is_multiple_of(SIDE);
    let mut copy = MaybeUninit::<Staged>::uninit();
    let copy = copy.as_mut_ptr().cast::<u8>();
    let [first, second] = [keys, keys.skip(SIDE)];
    let queries = panel.wrapping_add(F::PANEL_HEADER * lanes);
    // SAFETY: lines of the panel, which has as many as whole tiles take; rows of `n` keys, each of
    // whole tiles; scores of whole tiles (caller).
    unsafe {
        macro_rules! begin {
            ($tile:literal, $row:expr, $column:expr) => {
                match const { F::BEGINS_WITH } {
                    // A stride of 0 gives each of 16 keys the line of the panel.
                    Some(line) => tiles.load::<$tile>(panel.add(line * lanes + $column).cast(), 0),
                    None => tiles.zero::<$tile>(),
                }
            };
        }
        each_sum!(TWO, is_wide, begin);
        if !is_whole {
            clear(copy, SIDE * ROW);
        }
        for step in (0..Tiles::<F>::steps(dim)).step_by(SIDE) {
            let query = queries.add(step * lanes);
            tiles.load::<6>(query.cast(), lanes * WORD);
            if is_wide {
                tiles.load::<7>(query.add(SIDE).cast(), lanes * WORD);
            }
            let [first, second] = [first, second].map(|rows| rows.base.wrapping_add(step * WORD));
            if is_whole {
                tiles.load_a::<4>(first, keys.stride);
                if TWO {
                    tiles.load_a::<5>(second, keys.stride);
                }
            } else {
                let last = if TWO { second } else { first };
                for row in 0..n % SIDE {
                    let to = copy.add(row * ROW);
                    to.copy_from_nonoverlapping(last.wrapping_add(row * keys.stride), ROW);
                }
                if TWO {
                    tiles.load_a::<4>(first, keys.stride);
                    tiles.load_a::<5>(copy, ROW);
                } else {
                    tiles.load_a::<4>(copy, ROW);
                }
            }
            multiply!(multiply_keys, F, tiles, TWO, is_wide);
        }
        macro_rules! store {
            ($tile:literal, $row:expr, $column:expr) => {
                tiles.store::<$tile>(out.add($row * columns + $column).cast(), columns * WORD)
            };
        }
        each_sum!(TWO, is_wide, store);
    }
}

/// Turns the sums of some keys into scores, in place, and updates the largest score of each lane.
///
/// # Safety
/// As [`Gemm::score_span`]; the sums have been written.
#[inline(always)]
unsafe fn end_scores<S: Isa, F: Gemm, const Z: usize>(
    s: S,
    panel: *const f32,
    k: Keys,
    keys: std::ops::Range<usize>,
    out: *mut f32,
    max: &mut [S::F32; Z],
) {
    /// As many chains of maxima of a lane hide their latency.
    const CHAINS: usize = 2;
    let mut chains = [[s.splat(f32::NEG_INFINITY); Z]; CHAINS];
    let mut key = keys.start;
    macro_rules! end {
        ($key:expr, $max:expr) => {
            for (z, max) in $max.iter_mut().enumerate() {
                // SAFETY: a vector of the caller's sums, the scale of a key, and the first lines of
                // the panel.
                unsafe {
                    let at = out.add(($key * Z + z) * S::LANES);
                    let mut score = F::end_score(s, panel.add(z * S::LANES), F::Sum::load(s, at));
                    if F::INT_ACC
                        && let Some(scales) = k.scales
                    {
                        score = s.mul(score, s.splat(scales.add($key).read()));
                    }
                    // NaN as the first operand leaves the maximum alone; it reappears as a
                    // probability.
                    *max = s.max(score, *max);
                    s.store(at, score);
                }
            }
        };
    }
    while key + CHAINS <= keys.end {
        for (i, max) in chains.iter_mut().enumerate() {
            end!(key + i, max);
        }
        key += CHAINS;
    }
    for key in key..keys.end {
        end!(key, max);
    }
    for chain in chains {
        for (max, x) in max.iter_mut().zip(chain) {
            *max = s.max(x, *max);
        }
    }
}

/// Adds the products of `n` groups with `elements` elements, at most two tiles of them, to the
/// output, which begins with the first of these. With `probabilities`, `p` holds scores, which
/// become words of probabilities on the way.
///
/// # Safety
/// As [`Gemm::value_span`], for so many elements.
#[inline(always)]
unsafe fn multiply_values<S: Isa, F: Tiled, const Z: usize, const TWO: bool>(
    s: S,
    p: *mut f32,
    v: Rows,
    n: usize,
    elements: usize,
    output: *mut f32,
    lanes: usize,
    onto: Onto,
    weight: [S::F32; Z],
    probabilities: Option<&mut Probabilities<S, Tiles<F>, Z>>,
) {
    let is_wide = const { is_wide::<S>(Z) };
    let columns = Z * S::LANES;
    let mut tiles = s.tiles(columns.min(SIDE));
    let mut room = MaybeUninit::<Sums>::uninit();
    let room = room.as_mut_ptr().cast::<f32>();
    // Integers begin with 0 and are weighted; sums of a block are added to those before as a whole;
    // the last tile may reach beyond the output.
    let is_whole = elements.is_multiple_of(SIDE);
    let goes_on = onto == Onto::Block && !F::INT_ACC;
    let is_direct = is_whole && !F::INT_ACC && onto != Onto::Blocks;
    // SAFETY: words of whole tiles of groups, whose scores are -inf behind the last group; whole
    // tiles of V; elements of the output, and room for whole tiles (caller).
    unsafe {
        let (from, distance) = if is_direct { (output, lanes) } else { (room, columns) };
        if goes_on && !is_direct {
            for at in 0..BLOCK * Z {
                let (d, z) = (at / Z, at % Z * S::LANES);
                let x = if d < elements { s.load(output.add(d * lanes + z)) } else { s.splat(0.0) };
                s.store(room.add(d * columns + z), x);
            }
        }
        macro_rules! begin {
            ($tile:literal, $row:expr, $column:expr) => {
                if goes_on {
                    tiles.load::<$tile>(from.add($row * distance + $column).cast(), distance * WORD);
                } else {
                    tiles.zero::<$tile>();
                }
            };
        }
        each_sum!(TWO, is_wide, begin);
        let mut made = None;
        if let Some(probabilities) = &probabilities {
            // A copy, which can live in registers.
            made = Some(**probabilities);
        }
        for group in (0..n).step_by(SIDE) {
            if let Some(made) = &mut made {
                for group in group..group + SIDE {
                    made.make(s, p.add(group * F::PACK * columns), p.add(group * columns));
                }
            }
            let (words, values) = (p.add(group * columns), v.skip(group));
            tiles.load::<6>(words.cast(), columns * WORD);
            if is_wide {
                tiles.load::<7>(words.add(SIDE).cast(), columns * WORD);
            }
            tiles.load_a::<4>(values.base, values.stride);
            if TWO {
                tiles.load_a::<5>(values.base.wrapping_add(ROW), values.stride);
            }
            multiply!(multiply_values, F, tiles, TWO, is_wide);
        }
        if let (Some(made), Some(probabilities)) = (made, probabilities) {
            *probabilities = made;
        }
        macro_rules! store {
            ($tile:literal, $row:expr, $column:expr) => {
                tiles.store::<$tile>(from.add($row * distance + $column).cast(), distance * WORD)
            };
        }
        each_sum!(TWO, is_wide, store);
        if is_direct {
            return;
        }
        for d in 0..elements {
            for (z, &weight) in weight.iter().enumerate() {
                let sum = F::Sum::load(s, room.add(d * columns + z * S::LANES));
                onto.store::<S, F>(s, output.add(d * lanes + z * S::LANES), sum, weight);
            }
        }
    }
}

/// [`Gemm::end_v`], kept out of line, so that the code exists once for each instruction set.
///
/// # Safety
/// The arguments are as [`Gemm::end_v`] asks.
#[inline(never)]
unsafe fn transpose_groups<S: Isa>(s: S, body: Transpose) {
    s.enter(body);
}

/// The arguments of [`transpose_groups`], whose caller vouches for them.
struct Transpose {
    groups: usize,
    dim: usize,
    /// Bytes of a group.
    row: usize,
    to: *mut u8,
}

impl Body for Transpose {
    type Out = ();

    /// Tiles of 16 groups by 16 elements become those of 16 elements by 16 groups, where they are.
    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Transpose { groups, dim, row, to } = self;
        let [whole_groups, whole_dim] = [groups, dim].map(|n| n.next_multiple_of(SIDE));
        // SAFETY: I5, I7: rows have whole lines, of 16 words, and there is room for whole tiles of
        // groups (caller).
        unsafe {
            // Products with what is behind the end are 0.
            for group in groups..whole_groups {
                clear(to.add(group * row), whole_dim * WORD);
            }
            if dim < whole_dim {
                for group in 0..groups {
                    clear(to.add(group * row + dim * WORD), (whole_dim - dim) * WORD);
                }
            }
            for group in (0..groups).step_by(SIDE) {
                for d in (0..whole_dim).step_by(SIDE) {
                    let tile = to.add(group * row + d * WORD);
                    let mut square = MaybeUninit::<[f32; SIDE * SIDE]>::uninit();
                    let square = square.as_mut_ptr().cast::<f32>();
                    for at in (0..SIDE * SIDE).step_by(S::LANES) {
                        let from = tile.add(at / SIDE * row + at % SIDE * WORD);
                        s.store(square.add(at), s.load(from.cast()));
                    }
                    for at in (0..SIDE * SIDE).step_by(S::LANES) {
                        let (r, c) = (at / SIDE, at % SIDE);
                        if r.is_multiple_of(S::LANES) {
                            let there = tile.add(c * row + r * WORD).cast();
                            s.transpose(square.add(at), ROW, there, row, None);
                        }
                    }
                }
            }
        }
    }
}

const _: () = assert!(BLOCK * BLOCK * WORD == size_of::<Sums>());

#[cfg(test)]
mod tests {
    use std::ptr;

    use crate::common_tests::description::Case;

    /// Random descriptions, of which the table gives those of bf16 to tiles, agree with the
    /// definition however they are run.
    #[test]
    fn tiles_agree_with_the_definition() {
        for seed in 0..80 {
            Case::random(seed).check_everywhere(ptr::null(), 1);
        }
    }
}
