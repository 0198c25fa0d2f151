//! A compute type whose engine multiplies whole tiles, in plain Rust: bf16 as matrix units have it
//! (Intel AMX's `tdpbf16ps`). It exists for the crate's own tests alone, and proves that
//! [`Gemm::score_span`] and [`Gemm::value_span`] are all that such an engine overrides.
//!
//! | product | A: 16 rows of 16 words | B: 16 words by 16 lanes | C: 16 rows of 16 lanes |
//! |---|---|---|---|
//! | scores | 16 keys, their staged rows | the packed panel of queries | scores of 16 keys |
//! | outputs | 16 elements of V, transposed | probabilities of 16 pairs of keys | 16 elements of the output |
//!
//! A word is a pair of bf16. Spans begin at multiples of 32 keys, so that a tile of V has whole
//! groups; K is staged, so that a tile has 16 rows behind the last key, too.

use super::bf16::Bf16;
use crate::attend::fold::Folding;
use crate::attend::rows::{Rows, Source};
use crate::dtype::Dtype;
use crate::prefill::accumulate::Onto;
use crate::prefill::gemm::{Gemm, Operand, Sum};
use crate::prefill::prefetch::Prefetch;
use crate::prefill::scores::Keys;
use crate::prefill::softmax::Probabilities;
use crate::problem::{Accuracy, Storage};
use crate::simd::lane::{Float, Int, MAX_PACK};
use crate::simd::{Isa, MAX_LANES, half};

/// bf16 on tiles.
pub(crate) enum Tiles {}

/// Rows and columns of a tile, in words.
const SIDE: usize = 16;

/// Bytes of a word.
const WORD: usize = 4;

/// A tile register: words of A and B, or the bits of f32 of C.
type Tile = [[u32; SIDE]; SIDE];

/// Loads `rows` rows of `columns` words, `stride` bytes apart; the others are 0.
///
/// # Safety
/// They are readable.
unsafe fn load(from: *const u8, stride: usize, rows: usize, columns: usize) -> Tile {
    let mut tile = [[0; SIDE]; SIDE];
    for (r, row) in tile.iter_mut().enumerate().take(rows) {
        for (c, word) in row.iter_mut().enumerate().take(columns) {
            // SAFETY: one of the caller's words.
            *word = unsafe { from.wrapping_add(r * stride + c * WORD).cast::<u32>().read_unaligned() };
        }
    }
    tile
}

/// Stores `rows` rows of `columns` words, `stride` bytes apart.
///
/// # Safety
/// They are writable.
unsafe fn store(tile: &Tile, to: *mut u8, stride: usize, rows: usize, columns: usize) {
    for (r, row) in tile.iter().enumerate().take(rows) {
        for (c, &word) in row.iter().enumerate().take(columns) {
            // SAFETY: one of the caller's words.
            unsafe { to.wrapping_add(r * stride + c * WORD).cast::<u32>().write_unaligned(word) };
        }
    }
}

/// C += A · B, of pairs of bf16.
fn multiply(c: &mut Tile, a: &Tile, b: &Tile) {
    let halves = |word: u32| [half::from_bf16(word as u16), half::from_bf16((word >> 16) as u16)];
    for (c, a) in c.iter_mut().zip(a) {
        for (column, c) in c.iter_mut().enumerate() {
            let mut sum = f32::from_bits(*c);
            for (&a, b) in a.iter().zip(b) {
                let ([a_low, a_high], [b_low, b_high]) = (halves(a), halves(b[column]));
                sum += a_low * b_low + a_high * b_high;
            }
            *c = sum.to_bits();
        }
    }
}

impl Gemm for Tiles {
    const NAME: &'static str = "bf16";
    const ACCURACY: Accuracy = Accuracy::AsStored;
    const PACK: usize = Bf16::PACK;
    const SPAN_KEYS: usize = SIDE * Self::PACK;
    const PANEL_HEADER: usize = <Bf16 as Gemm>::PANEL_HEADER;
    const MAX_KEYS: usize = usize::MAX;
    const MAX_DIM: usize = usize::MAX;
    const INT_ACC: bool = false;
    const P_SCALE: f32 = 1.0;
    type Operand = Int;
    type Sum = Float;

    fn takes(storage: &Storage) -> bool {
        <Bf16 as Gemm>::takes(storage)
    }

    fn query_scratch(dtype: Dtype, dim: usize) -> usize {
        Bf16::query_scratch(dtype, dim)
    }

    fn reads_k(_dtype: Dtype, _dim: usize) -> bool {
        false
    }

    fn reads_v(_dtype: Dtype) -> bool {
        false
    }

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
        // SAFETY: the caller vouches for the same arrays.
        unsafe { Bf16::pack_query(s, source, n, dim, lanes, factor, folding, panel, scratch) }
    }

    unsafe fn stage_k<S: Isa>(s: S, source: Source, n: usize, dim: usize, to: *mut u8) {
        // SAFETY: the caller vouches for the same arrays.
        unsafe { Bf16::stage_k(s, source, n, dim, to) }
    }

    unsafe fn stage_v<S: Isa>(s: S, source: Source, n: usize, dim: usize, first: usize, to: *mut u8) -> bool {
        // SAFETY: the caller vouches for the same arrays.
        unsafe { Bf16::stage_v(s, source, n, dim, first, to) }
    }

    fn add_score<S: Isa>(s: S, q: Operand<S, Self>, k: Operand<S, Self>, sum: Sum<S, Self>) -> Sum<S, Self> {
        <Bf16 as Gemm>::add_score(s, q, k, sum)
    }

    fn probabilities<S: Isa>(
        s: S,
        scores: [S::F32; MAX_PACK],
        running_max: S::F32,
        total: &mut Sum<S, Self>,
    ) -> Operand<S, Self> {
        Bf16::probabilities(s, scores, running_max, total)
    }

    fn add_value<S: Isa>(s: S, p: Operand<S, Self>, v: Operand<S, Self>, sum: Sum<S, Self>) -> Sum<S, Self> {
        <Bf16 as Gemm>::add_value(s, p, v, sum)
    }

    fn probability(word: u32, key: usize) -> f32 {
        <Bf16 as Gemm>::probability(word, key)
    }

    unsafe fn score_span<S: Isa, const R: usize, const Z: usize>(
        s: S,
        panel: *const f32,
        lanes: usize,
        k: Keys,
        n: usize,
        dim: usize,
        out: *mut f32,
        _prefetch: &mut Prefetch,
    ) -> [S::F32; Z] {
        let (columns, steps) = (Z * S::LANES, Self::steps(dim));
        let queries = panel.wrapping_add(Self::PANEL_HEADER * lanes);
        for key in (0..n).step_by(SIDE) {
            let keys = SIDE.min(n - key);
            let mut c = [[0; SIDE]; SIDE];
            for step in (0..steps).step_by(SIDE) {
                let here = SIDE.min(steps - step);
                let row = k.rows.skip(key).base.wrapping_add(step * WORD);
                // SAFETY: `here` words of rows of the caller's keys, and as many lines of the
                // panel; a tile's rows of scores are the caller's.
                unsafe {
                    let a = load(row, k.rows.stride, keys, here);
                    let b = load(queries.add(step * lanes).cast(), lanes * WORD, here, columns);
                    multiply(&mut c, &a, &b);
                }
            }
            // SAFETY: a tile's scores are the caller's.
            unsafe { store(&c, out.add(key * columns).cast(), columns * WORD, keys, columns) };
        }
        let mut max = [s.splat(f32::NEG_INFINITY); Z];
        for at in 0..n * Z {
            // SAFETY: a vector of scores, written above, and the first line of the panel.
            unsafe {
                let score = Self::end_score(s, panel.add(at % Z * S::LANES), s.load(out.add(at * S::LANES)));
                s.store(out.add(at * S::LANES), score);
                max[at % Z] = s.max(score, max[at % Z]);
            }
        }
        max
    }

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
        let columns = Z * S::LANES;
        // SAFETY: the caller's groups, with their scores; the end of the last 32 keys are scores of
        // -inf.
        unsafe { probabilities.make_all(s, scores, n) };
        for d in (0..dim).step_by(SIDE) {
            let elements = SIDE.min(dim - d);
            let to = output.wrapping_add(d * lanes).cast::<u8>();
            let mut c = [[0; SIDE]; SIDE];
            // SAFETY: elements of the caller's groups and of its output; words of probabilities
            // that were made above.
            unsafe {
                let old = match onto {
                    Onto::Nothing => c,
                    Onto::Block | Onto::Blocks => load(to, lanes * WORD, elements, columns),
                };
                if onto == Onto::Block {
                    c = old;
                }
                for group in (0..n).step_by(SIDE) {
                    let groups = SIDE.min(n - group);
                    let values = load(v.skip(group).base.wrapping_add(d * WORD), v.stride, groups, elements);
                    let mut a = [[0; SIDE]; SIDE];
                    for (r, row) in a.iter_mut().enumerate() {
                        for (word, values) in row.iter_mut().zip(&values) {
                            *word = values[r];
                        }
                    }
                    let b = load(scores.add(group * columns).cast(), columns * WORD, groups, columns);
                    multiply(&mut c, &a, &b);
                }
                if onto == Onto::Blocks {
                    for (x, old) in c.as_flattened_mut().iter_mut().zip(old.as_flattened()) {
                        *x = (f32::from_bits(*x) + f32::from_bits(*old)).to_bits();
                    }
                }
                store(&c, to, lanes * WORD, elements, columns);
            }
        }
    }
}

const _: () = assert!(MAX_LANES <= SIDE);

#[cfg(test)]
mod tests {
    use std::ptr;

    use crate::common_tests::description::Case;

    /// Random descriptions, of which the table gives those of bf16 to [`super::Tiles`], agree with
    /// the definition however they are run.
    #[test]
    fn tiles_agree_with_the_definition() {
        for seed in 0..200 {
            Case::random(seed).check_everywhere(ptr::null(), 1);
        }
    }
}
