//! Compute types whose products are those of pairs of rows: an instruction multiplies two rows of
//! two words by two others, and adds the 2 x 2 sums. For prefill on vectors of four lanes. Queries,
//! probabilities, sums and softmax are those of the type whose name they have.
//!
//! | product | one pair of rows | the other | two vectors of sums become |
//! |---|---|---|---|
//! | scores | two keys | two lanes of packed queries | a vector of lanes for each key |
//! | outputs | two lanes of probabilities | two elements of V | one for each element |
//!
//! All operands are arranged once, where they are made, so that the loops over products have loads
//! and products alone:
//!
//! - Lines of the panel, lines of probabilities and groups of V are zipped by twos: two words of
//!   each lane, or element, become neighbours. Where two lines had four lanes, the first has two
//!   words of the first two lanes, the second one those of the others. Groups of V become one row.
//! - K is staged as blocks of 12 rows: two words of each in turn.
//!
//! A sum takes its words in ascending order, as it does word by word. So it has the same bits, and
//! does not depend on the row that is multiplied beside it.

use std::marker::PhantomData;

use super::half::Half;
use super::i8::{self, I8};
use super::span::{pack_query, with_words_of};
use crate::attend::fold::Folding;
use crate::attend::rows::{Rows, Source};
use crate::attend::{K, VECTORS};
use crate::compute::integers::clear;
use crate::dtype::Dtype;
use crate::prefill::accumulate::Onto;
use crate::prefill::gemm::{Gemm, Operand, RegisterTile, Sum};
use crate::prefill::prefetch::Prefetch;
use crate::prefill::scores::{self, Keys};
use crate::prefill::softmax::Probabilities;
use crate::simd::lane::{Int, Lane, MAX_PACK, Registers};
use crate::simd::{Body, Isa, MAX_LANES};

/// The compute type `F` by pairs of rows.
pub(crate) struct Pairs<F>(PhantomData<fn() -> F>);

/// A compute type that an instruction has products of pairs of rows of.
pub(crate) trait Paired: Gemm {
    /// Bytes of an element of K.
    const ELEMENT: usize;
    /// What is added to each byte of K, as an exclusive or.
    fn added_to_k<S: Isa>() -> u8;
    /// The 2 x 2 sums and the products of two keys with two queries: a row for each key.
    fn multiply_keys<S: Isa>(
        s: S,
        sum: Sum<S, Self>,
        k: Operand<S, Self>,
        q: Operand<S, Self>,
    ) -> Sum<S, Self>;
    /// The 2 x 2 sums and the products of probabilities of two queries with two elements of values:
    /// a row for each query.
    fn multiply_values<S: Isa>(
        s: S,
        sum: Sum<S, Self>,
        p: Operand<S, Self>,
        v: Operand<S, Self>,
    ) -> Sum<S, Self>;
}

impl Paired for Half {
    const ELEMENT: usize = 2;

    #[inline(always)]
    fn added_to_k<S: Isa>() -> u8 {
        0
    }

    #[inline(always)]
    fn multiply_keys<S: Isa>(s: S, sum: S::F32, k: S::I32, q: S::I32) -> S::F32 {
        s.matrix_bf16(sum, k, q)
    }

    #[inline(always)]
    fn multiply_values<S: Isa>(s: S, sum: S::F32, p: S::I32, v: S::I32) -> S::F32 {
        s.matrix_bf16(sum, p, v)
    }
}

impl Paired for I8 {
    const ELEMENT: usize = 1;

    #[inline(always)]
    fn added_to_k<S: Isa>() -> u8 {
        i8::added::<S>(K)
    }

    #[inline(always)]
    fn multiply_keys<S: Isa>(s: S, sum: S::I32, k: S::I32, q: S::I32) -> S::I32 {
        const { assert!(!S::MULTIPLIES_EQUAL_SIGNS) };
        s.matrix_u8_i8(sum, k, q)
    }

    #[inline(always)]
    fn multiply_values<S: Isa>(s: S, sum: S::I32, p: S::I32, v: S::I32) -> S::I32 {
        const { assert!(!S::MULTIPLIES_EQUAL_SIGNS) };
        s.matrix_u8_i8(sum, p, v)
    }
}

/// Lanes of a vector.
const LANES: usize = 4;

/// Bytes of a word.
const WORD: usize = 4;

/// Bytes of a vector.
const VECTOR: usize = LANES * WORD;

/// Keys and output elements of the tallest register tile: 12 x 8 sums take 24 of 32 registers.
const TALL: usize = 12;

/// Bytes of two words of each key of a block.
const STEP: usize = TALL * 2 * WORD;

impl<F: Paired> Gemm for Pairs<F> {
    with_words_of!(F, Self::SPARE_GROUPS);

    /// Whole blocks of K, and two groups.
    const SPAN_KEYS: usize = TALL * F::PACK / 2;
    const SPARE_GROUPS: usize = 2;

    /// Whole vectors of a key.
    #[inline(always)]
    fn steps(dim: usize) -> usize {
        F::steps(dim).next_multiple_of(LANES)
    }

    #[inline(always)]
    fn reads_k(_dtype: Dtype, _dim: usize) -> bool {
        false
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
        unsafe {
            let maybe_nan =
                pack_query::<S, F>(s, steps, source, n, dim, lanes, factor, folding, panel, scratch);
            let base = panel.add(F::PANEL_HEADER * lanes).cast();
            let stride = lanes * WORD;
            let zip = Zip { from: base, to: base, rows: steps, words: lanes, stride, is_one_row: false };
            zip_rows(s.core(), zip);
            maybe_nan
        }
    }

    #[inline(always)]
    unsafe fn stage_k<S: Isa>(s: S, source: Source, n: usize, dim: usize, first: usize, to: *mut u8) {
        let stride = Self::staged_k_row(dim);
        let stage = StageRows {
            rows: source.rows(),
            n,
            bytes: dim * F::ELEMENT,
            first: first % TALL,
            to: to.wrapping_sub(first % TALL * stride),
            stride,
            added: F::added_to_k::<S>(),
        };
        // SAFETY: `n` rows of `dim` elements, and room for whole blocks of them; before the second
        // key of a pair, the first one has been staged (caller).
        unsafe { stage_rows(s.core(), stage) };
    }

    #[inline(always)]
    unsafe fn end_v<S: Isa>(s: S, n: usize, dim: usize, to: *mut u8) {
        let (groups, stride) = (n.div_ceil(F::PACK), Self::staged_v_row(dim));
        let (rows, words) = (groups.next_multiple_of(2), dim.next_multiple_of(LANES));
        let from = to.wrapping_add(Self::SPARE_GROUPS * stride);
        // SAFETY: the groups that have been staged, each in whole cache lines, in room for whole
        // spans and spare groups (caller).
        unsafe {
            if groups < rows {
                clear(from.add(groups * stride), words * WORD);
            }
            if dim < words {
                for group in 0..groups {
                    clear(from.add(group * stride + dim * WORD), (words - dim) * WORD);
                }
            }
            zip_rows(s.core(), Zip { from, to, rows, words, stride, is_one_row: true });
        }
    }

    #[inline(always)]
    fn word_at(group: usize, lane: usize, width: usize) -> usize {
        let (vector, lane) = (lane - lane % LANES, lane % LANES);
        (group - group % 2 + lane / 2) * width + vector + lane % 2 * 2 + group % 2
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
        const { assert!(R == TALL) };
        let mut max = [s.splat(f32::NEG_INFINITY); Z];
        let mut key = 0;
        macro_rules! tile {
            ($keys:expr) => {{
                let here = $keys.min(n - key);
                // SAFETY: as many of the caller's keys are left, of which the last may have none
                // beside it, and stored behind the keys before. Spans begin with a block of K.
                unsafe {
                    let block = k.rows.skip(key - key % TALL).base;
                    let pairs = block.wrapping_add(key % TALL * 2 * WORD);
                    let sums = multiply_keys::<S, F, { $keys }, Z>(s, panel, lanes, pairs, dim);
                    let tile = scores::end::<S, F, { $keys }, Z>(s, panel, k.skip(key).scales, here, sums);
                    scores::store(s, &tile[..here], out.add(key * Z * S::LANES), &mut max);
                }
                $keys
            }};
        }
        while key < n {
            key += match n - key {
                left if left >= TALL => tile!(TALL),
                left if left >= 4 => tile!(4),
                _ => tile!(2),
            };
            prefetch.step(s);
        }
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
        prefetch_groups: usize,
        probabilities: &mut Probabilities<S, Self, Z>,
    ) {
        let (pairs, weight) = (n.div_ceil(2), probabilities.weight());
        // SAFETY: scores up to the end of the last span; a tile is computed only while as many of
        // the caller's elements are left.
        unsafe {
            make_all(s, scores, pairs, probabilities);
            let mut d = 0;
            macro_rules! tile {
                ($elements:expr) => {{
                    let values = Rows { base: v.base.wrapping_add(d * 2 * WORD), ..v };
                    let at = output.add(d * lanes);
                    let elements = (dim - d).min($elements);
                    multiply_values::<S, F, { $elements }, Z>(
                        s,
                        scores,
                        values,
                        pairs,
                        elements,
                        at,
                        lanes,
                        onto,
                        weight,
                        prefetch_groups,
                    );
                    $elements
                }};
            }
            while d < dim {
                d += match dim - d {
                    // Two tiles of 8 are faster than one of 12 and one of 4.
                    left if left >= TALL && left != TALL + 4 => tile!(TALL),
                    left if left >= 8 => tile!(8),
                    left if left >= 4 => tile!(4),
                    _ => tile!(2),
                };
            }
        }
    }
}

/// The words of a vector, whatever they are. In memory that the compiler does without.
#[inline(always)]
fn words_of<S: Isa, L: Lane>(s: S, x: L::Of<S>) -> S::F32 {
    let mut words = [0f32; MAX_LANES];
    // SAFETY: I7: the array has MAX_LANES words.
    unsafe {
        L::store(s, words.as_mut_ptr(), x);
        s.load(words.as_ptr())
    }
}

/// [`words_of`], back again.
#[inline(always)]
fn of_words<S: Isa, L: Lane>(s: S, x: S::F32) -> L::Of<S> {
    let mut words = [0f32; MAX_LANES];
    // SAFETY: I7: the array has MAX_LANES words.
    unsafe {
        s.store(words.as_mut_ptr(), x);
        L::load(s, words.as_ptr())
    }
}

/// Sums of the products of `R` keys with `Z` vectors of packed queries. `pairs` is the first of
/// `R / 2` neighbouring pairs of keys in a block.
///
/// # Safety
/// The pairs are there, with `dim` elements. `panel` is the first of `Z` neighbouring vectors of a
/// packed panel, which is `lanes` wide.
#[inline(always)]
unsafe fn multiply_keys<S: Isa, F: Paired, const R: usize, const Z: usize>(
    s: S,
    panel: *const f32,
    lanes: usize,
    pairs: *const u8,
    dim: usize,
) -> RegisterTile<Sum<S, F>, R, Z> {
    const { assert!(S::LANES == LANES && R.is_multiple_of(2) && R <= TALL) };
    // A whole tile is as wide as the panel, which the compiler then knows.
    let lanes = if Z == VECTORS { Z * LANES } else { lanes };
    // Two keys by the first two lanes of a vector, and by the others.
    let mut sum = [[[F::Sum::zero(s); 2]; Z]; TALL / 2];
    for z in 0..Z {
        // SAFETY: one of the `Z` vectors of the panel (caller).
        let begin = words_of::<S, F::Sum>(s, unsafe { F::begin_score(s, panel.add(z * LANES), lanes) });
        let begin = s.zip_halves(begin, begin).map(|begin| of_words::<S, F::Sum>(s, begin));
        for sum in &mut sum {
            sum[z] = begin;
        }
    }
    let mut q = panel.wrapping_add(F::PANEL_HEADER * lanes);
    let mut pairs = pairs;
    for _ in 0..Pairs::<F>::steps(dim) / 2 {
        // SAFETY: the panel has Z vectors for each step, and a block of keys its pairs for two
        // (caller).
        unsafe {
            let mut query = [[F::Operand::zero(s); 2]; Z];
            for (z, query) in query.iter_mut().enumerate() {
                let at = q.add(z * LANES);
                *query = [F::Operand::load(s, at), F::Operand::load(s, at.add(lanes))];
            }
            for (pair, sum) in sum.iter_mut().enumerate().take(R / 2) {
                let keys = F::Operand::load(s, pairs.wrapping_add(pair * VECTOR).cast());
                for (sum, query) in sum.iter_mut().zip(query) {
                    sum[0] = F::multiply_keys(s, sum[0], keys, query[0]);
                    sum[1] = F::multiply_keys(s, sum[1], keys, query[1]);
                }
            }
        }
        q = q.wrapping_add(2 * lanes);
        pairs = pairs.wrapping_add(STEP);
    }
    let mut rows = [[F::Sum::zero(s); Z]; R];
    for (rows, sum) in rows.chunks_exact_mut(2).zip(sum) {
        for z in 0..Z {
            let [low, high] = sum[z].map(|sum| words_of::<S, F::Sum>(s, sum));
            for (row, words) in rows.iter_mut().zip(s.zip_halves(low, high)) {
                row[z] = of_words::<S, F::Sum>(s, words);
            }
        }
    }
    rows
}

/// Turns the scores of `2 * pairs` groups into words of probabilities, in place, zipped by twos.
///
/// # Safety
/// `scores` holds `Z` vectors for each key of these groups.
#[inline(always)]
unsafe fn make_all<S: Isa, F: Paired, const Z: usize>(
    s: S,
    scores: *mut f32,
    pairs: usize,
    probabilities: &mut Probabilities<S, Pairs<F>, Z>,
) {
    let width = Z * S::LANES;
    // A copy, which can live in registers.
    let mut made = *probabilities;
    for group in (0..2 * pairs).step_by(2) {
        // SAFETY: the caller's groups; no words are written over scores that are still to be read.
        unsafe {
            let first = made.words(s, scores.add(group * F::PACK * width));
            let second = made.words(s, scores.add((group + 1) * F::PACK * width));
            let to = scores.add(group * width);
            for z in 0..Z {
                let [first, second] = [first[z], second[z]].map(|x| words_of::<S, F::Operand>(s, x));
                let [low, high] = s.zip(first, second);
                s.store(to.add(z * S::LANES), low);
                s.store(to.add(width + z * S::LANES), high);
            }
        }
    }
    *probabilities = made;
}

/// Adds the products of `pairs` pairs of groups with `R` elements, from the first two of `v` on, to
/// the first `elements` rows of the output: all of them, or all but one.
///
/// # Safety
/// As [`Gemm::value_span`], for so many elements, with words of probabilities zipped by twos.
#[inline(always)]
unsafe fn multiply_values<S: Isa, F: Paired, const R: usize, const Z: usize>(
    s: S,
    p: *const f32,
    v: Rows,
    pairs: usize,
    elements: usize,
    output: *mut f32,
    lanes: usize,
    onto: Onto,
    weight: [S::F32; Z],
    prefetch_groups: usize,
) {
    const { assert!(S::LANES == LANES && R.is_multiple_of(2) && R <= TALL) };
    let width = Z * LANES;
    // The first two lanes of a vector by two elements, and the others.
    let mut sum = [[[F::Sum::zero(s); 2]; Z]; TALL / 2];
    // SAFETY: pairs of groups of probabilities and of V, and rows of the output (caller).
    unsafe {
        if onto == Onto::Block && !F::INT_ACC {
            for (pair, sum) in sum.iter_mut().enumerate().take(R / 2) {
                let first = output.add(2 * pair * lanes);
                // The row beside the last is not there.
                let second = if 2 * pair + 1 < elements { first.add(lanes) } else { first };
                for (z, sum) in sum.iter_mut().enumerate() {
                    let rows = [first, second].map(|row| s.load(row.add(z * LANES)));
                    *sum = s.zip(rows[0], rows[1]).map(|words| of_words::<S, F::Sum>(s, words));
                }
            }
        }
        let (mut row, mut p, ahead) = (v.base, p, prefetch_groups * v.stride);
        for _ in 0..pairs {
            s.prefetch_l1(row.wrapping_add(ahead));
            let mut words = [[F::Operand::zero(s); 2]; Z];
            for (z, words) in words.iter_mut().enumerate() {
                let at = p.add(z * LANES);
                *words = [F::Operand::load(s, at), F::Operand::load(s, at.add(width))];
            }
            for (pair, sum) in sum.iter_mut().enumerate().take(R / 2) {
                let values = F::Operand::load(s, row.wrapping_add(pair * VECTOR).cast());
                for (sum, words) in sum.iter_mut().zip(words) {
                    sum[0] = F::multiply_values(s, sum[0], words[0], values);
                    sum[1] = F::multiply_values(s, sum[1], words[1], values);
                }
            }
            p = p.add(2 * width);
            row = row.wrapping_add(2 * v.stride);
        }
        for (pair, sum) in sum.into_iter().enumerate().take(R / 2) {
            for (z, sum) in sum.into_iter().enumerate() {
                let [low, high] = sum.map(|sum| words_of::<S, F::Sum>(s, sum));
                for (r, words) in s.unzip(low, high).into_iter().enumerate() {
                    if R > 2 || r < elements {
                        let sum = of_words::<S, F::Sum>(s, words);
                        let at = output.add((2 * pair + r) * lanes + z * LANES);
                        onto.store::<S, F>(s, at, sum, weight[z]);
                    }
                }
            }
        }
    }
}

/// Zips lines of words by twos. Kept out of line, so that the code exists once for each instruction
/// set.
///
/// # Safety
/// The lines of `body` are there.
#[inline(never)]
unsafe fn zip_rows<S: Isa>(s: S, body: Zip) {
    s.enter(body);
}

/// The arguments of [`zip_rows`], whose caller vouches for them.
struct Zip {
    from: *mut u8,
    /// Where the zipped lines go: over those of `from`, or two lines before them.
    to: *mut u8,
    /// Lines, an even number.
    rows: usize,
    /// Words of a line, whole vectors.
    words: usize,
    /// Bytes from one line to the next.
    stride: usize,
    /// Whether two lines become one that is twice as long, at another place.
    is_one_row: bool,
}

impl Body for Zip {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Zip { from, to, rows, words, stride, is_one_row } = self;
        // Bytes from the first vector of the result to the second one, and between first ones.
        let [second, step] = if is_one_row { [VECTOR, 2] } else { [stride, 1] };
        for row in (0..rows).step_by(2) {
            for at in (0..words).step_by(S::LANES) {
                let line = from.wrapping_add(row * stride + at * WORD);
                let there = to.wrapping_add(row * stride + step * at * WORD);
                // SAFETY: I5, I7: a vector of each of two lines, and where these are, or lines that
                // have been read (caller of `zip_rows`).
                unsafe {
                    let lines = [line, line.wrapping_add(stride)].map(|line| s.load(line.cast()));
                    let [low, high] = s.zip(lines[0], lines[1]);
                    s.store(there.cast(), low);
                    s.store(there.wrapping_add(second).cast(), high);
                }
            }
        }
    }
}

/// Writes rows of K in blocks. Kept out of line, so that the code exists once for each instruction
/// set.
///
/// # Safety
/// The pointers of `body` are as [`Gemm::stage_k`] asks.
#[inline(never)]
unsafe fn stage_rows<S: Isa>(s: S, body: StageRows) {
    s.enter(body);
}

/// The arguments of [`stage_rows`]. Only [`Pairs::stage_k`] makes one, whose caller vouches for its
/// pointers.
struct StageRows {
    rows: Rows,
    n: usize,
    /// Bytes of a row.
    bytes: usize,
    /// The place of the first row in its block.
    first: usize,
    /// The first block.
    to: *mut u8,
    /// Bytes of a staged row.
    stride: usize,
    /// What is added to each byte, as an exclusive or.
    added: u8,
}

impl Body for StageRows {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let StageRows { rows, n, bytes, first, to, stride, added } = self;
        let mut place = first;
        while place < first + n {
            let pair = place - place % 2;
            let to = to.wrapping_add(pair / TALL * TALL * stride + pair % TALL * 2 * WORD);
            let row =
                |place: usize| (first..first + n).contains(&place).then(|| rows.skip(place - first).base);
            // SAFETY: one or two rows, and room in their block, where the row before the first one
            // has been written (caller of `stage_rows`).
            unsafe { stage_pair(s, [row(pair), row(pair + 1)], bytes, to, added) };
            place = pair + 2;
        }
    }
}

/// Writes a pair of rows into a block. Without the first one, the second one is written beside that
/// which is there; without the second one, zeros are.
///
/// # Safety
/// The rows have so many bytes, and there is room for two in the block whose pair begins at `to`.
/// Without the first one, it has been written.
#[inline(always)]
unsafe fn stage_pair<S: Isa>(s: S, rows: [Option<*const u8>; 2], bytes: usize, to: *mut u8, added: u8) {
    const { assert!(S::LANES == LANES) };
    let sign = s.splat_i32(i32::from_ne_bytes([added; WORD]));
    for at in (0..bytes).step_by(VECTOR) {
        // SAFETY: a vector of each row, or what is left of it, and room for two words of both,
        // twice (caller).
        unsafe {
            let load = |row: *const u8| {
                let x = if at + VECTOR <= bytes {
                    s.load_i32(row.wrapping_add(at).cast())
                } else {
                    s.load_i32(s.load_padded(row, at, bytes - at, VECTOR).as_ptr().cast())
                };
                words_of::<S, Int>(s, s.xor(x, sign))
            };
            let two = to.add(at / VECTOR * 2 * STEP).cast::<f32>();
            let next = two.byte_add(STEP);
            let first = match rows[0] {
                Some(row) => load(row),
                None => s.zip_halves(s.load(two), s.load(next))[0],
            };
            let [low, high] = s.zip_halves(first, rows[1].map_or(s.splat(0.0), load));
            s.store(two, low);
            s.store(next, high);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::scalar::Scalar;

    /// Words of two groups are where zipped lines have them.
    #[test]
    fn words_are_where_zipped_lines_have_them() {
        for vectors in 1..=VECTORS {
            let width = vectors * LANES;
            let mut lines = vec![0f32; 4 * width];
            for (i, word) in lines.iter_mut().enumerate() {
                *word = i as f32;
            }
            let base = lines.as_mut_ptr().cast::<u8>();
            let zip =
                Zip { from: base, to: base, rows: 4, words: width, stride: width * WORD, is_one_row: false };
            // SAFETY: four lines of whole vectors.
            unsafe { zip_rows(Scalar, zip) };
            for (i, word) in (0..4 * width).enumerate() {
                assert_eq!(lines[Pairs::<Half>::word_at(i / width, i % width, width)], word as f32);
            }
        }
    }
}
