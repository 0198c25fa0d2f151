//! How a compute type multiplies where query rows are many and lanes are query rows.

use super::accumulate::{Onto, accumulate, make_and_accumulate};
use super::prefetch::Prefetch;
use super::scores::{self, Keys};
use super::softmax::Probabilities;
use crate::attend::fold::Folding;
use crate::attend::rows::{Rows, Source};
use crate::dtype::Dtype;
use crate::problem::{Accuracy, Shape, Storage};
use crate::simd::Isa;
use crate::simd::lane::{Lane, MAX_PACK, Registers};
use crate::work::query_tiles::TileSizes;

/// Operands of one multiplication in registers: words of queries or probabilities, one a lane, or a
/// word of a key or of values, the same in all lanes.
pub(crate) type Operand<S, F> = <<F as Gemm>::Operand as Registers>::Of<S>;
/// Sums of products in registers, one a lane.
pub(crate) type Sum<S, F> = <<F as Gemm>::Sum as Registers>::Of<S>;

/// A register tile: `Z` vectors for each of `R` keys, or for each of `R` elements of an output.
pub(crate) type RegisterTile<T, const R: usize, const Z: usize> = [[T; Z]; R];

/// Products of tiles of query rows with K, and of probabilities with V, and the form in which Q, K
/// and V are read.
///
/// Keys are taken [`Gemm::PACK`] at a time where they meet probabilities: a *group*. A lane has one
/// 32-bit word with the probabilities of a group, and each element of V one word with the values of
/// all its keys.
///
/// The loops over words are [`Gemm::score_span`] and [`Gemm::value_span`]. A type whose engine
/// works on whole tiles (matrix units) overrides these two; the loops over words then never run.
///
/// All functions that take pointers need: every row named of a source, each of `dim` elements;
/// staged rows valid for reads; scratch pointers valid for writes of the bytes that the matching
/// function gave, 64-byte aligned, and not overlapping anything else.
pub(crate) trait Gemm: Sized + 'static {
    /// Its name, for people.
    const NAME: &'static str;
    /// The strictest demand that its rounding of queries and probabilities meets.
    const ACCURACY: Accuracy;
    /// Keys of a group, and elements of a word of K: 1, 2 or 4.
    const PACK: usize;
    /// Spans of keys begin at multiples of so many keys from the start of their block, and have
    /// room for as many: whole groups, or whole tiles.
    const SPAN_KEYS: usize = Self::PACK;
    /// Groups of staged V that there is room for besides: a type that makes another form of V can
    /// stage it behind its place.
    const SPARE_GROUPS: usize = 0;
    /// Lines of a panel of packed queries before those of its steps: what a lane needs to begin and
    /// to end a score with. With [`Gemm::INT_ACC`], the last of them is what scores are corrected
    /// by, times the zero of the key.
    const PANEL_HEADER: usize;
    /// Keys of a block, at most, that sums can take.
    const MAX_KEYS: usize;
    /// Elements of a row of Q and K, at most, that sums can take.
    const MAX_DIM: usize;
    /// Whether the sums of a block are integers: relative to a reference of the block (see
    /// [`crate::attend::outliers`]), begun with 0, and weighted where blocks meet. Else they
    /// continue those of the blocks before.
    const INT_ACC: bool;
    /// What a probability at the reference counts in integer sums, which none exceeds.
    const P_SCALE: f32;
    /// Whether it uses [`Isa::Tiles`]: they are configured while a query tile is computed.
    const HAS_TILES: bool = false;
    /// Operands of a multiplication.
    type Operand: Lane;
    /// Sums of products.
    type Sum: Lane;

    /// Whether it computes problems whose Q, K and V are stored so.
    fn takes(storage: &Storage) -> bool;

    /// The token that computes problems stored so, from that of the instruction set; `None` if the
    /// machine cannot. A matrix unit may multiply numbers of several formats.
    #[inline(always)]
    fn on<S: Isa>(s: S, _storage: &Storage) -> Option<S> {
        Some(s)
    }

    /// How far below the largest score, in log2 units, the running maximum is put when it moves: by
    /// so much larger probabilities use the range of their format, where that is short of small
    /// numbers. They reach 2^([`RESCALE_THRESHOLD`](crate::attend::RESCALE_THRESHOLD) + this),
    /// which values must leave room for.
    #[inline(always)]
    fn headroom<S: Isa>(_s: S) -> f32 {
        0.0
    }

    /// Bytes of scratch memory for a query row while it is packed.
    fn query_scratch(dtype: Dtype, dim: usize) -> usize;

    /// Steps in a packed query row of `dim` elements.
    #[inline(always)]
    fn steps(dim: usize) -> usize {
        dim.div_ceil(Self::PACK)
    }

    /// Whether rows of K of a type can be read in place.
    fn reads_k(dtype: Dtype, dim: usize) -> bool;

    /// Whether rows of V of a type can be read in place.
    fn reads_v(dtype: Dtype) -> bool;

    /// Bytes of a staged row of K: an odd number of cache lines, so that the rows of a register
    /// tile never compete for the same sets of the first-level cache. Saturates where no machine
    /// has the memory.
    #[inline(always)]
    fn staged_k_row(dim: usize) -> usize {
        (Self::steps(dim).div_ceil(16) | 1).saturating_mul(64)
    }

    /// Bytes of a staged group of V, where each element is a word: an odd number of cache lines.
    #[inline(always)]
    fn staged_v_row(dim: usize) -> usize {
        (dim.div_ceil(16) | 1).saturating_mul(64)
    }

    /// Packs `n` query rows, transposed: `panel[line][lane]`, `lanes` wide, the missing lanes as
    /// zeros. Their products with keys are scores in log2 units, which are dot products times
    /// `factor`; `folding` is what scales and zeros of K do to queries, with [`Gemm::INT_ACC`].
    /// Returns whether scores may be NaN without the sums showing it.
    ///
    /// # Safety
    /// Pointers as the trait says; `n <= lanes`, `panel` holds `(PANEL_HEADER + steps(dim)) *
    /// lanes` words, and `scratch` as much as `LANES` rows take.
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
    ) -> bool;

    /// Writes `n` rows of K as words, one for each step of a packed query, beginning with key
    /// `first` of those that are staged.
    ///
    /// # Safety
    /// Pointers as the trait says; `to` holds `n` staged rows, in room for whole spans, behind the
    /// `first` rows that have been staged.
    unsafe fn stage_k<S: Isa>(s: S, source: Source, n: usize, dim: usize, first: usize, to: *mut u8);

    /// Writes `n` rows of V as groups, beginning with key `first` of those that are staged. Where
    /// groups have more than one key, a value that is not finite becomes 0, and the result is
    /// whether there was any; keys that follow in the last group are 0.
    ///
    /// # Safety
    /// Pointers as the trait says; `to` holds all groups, and those to spare; the keys before
    /// `first` have been staged.
    unsafe fn stage_v<S: Isa>(s: S, source: Source, n: usize, dim: usize, first: usize, to: *mut u8) -> bool;

    /// Ends the groups of `n` keys, which all have been staged: a type that reads them in another
    /// form makes it here. `to` has room for whole spans and [`Gemm::SPARE_GROUPS`].
    ///
    /// # Safety
    /// Pointers as the trait says; [`Gemm::stage_v`] has written the groups.
    #[inline(always)]
    unsafe fn end_v<S: Isa>(_s: S, _n: usize, _dim: usize, _to: *mut u8) {}

    /// What the dot products of a vector of packed queries begin with; the panel's first line is at
    /// `panel`.
    ///
    /// # Safety
    /// `panel` is `lanes` wide, and has been packed.
    #[inline(always)]
    unsafe fn begin_score<S: Isa>(s: S, _panel: *const f32, _lanes: usize) -> Sum<S, Self> {
        Self::Sum::zero(s)
    }

    /// `sum` and the products of words of queries and of a key.
    fn add_score<S: Isa>(s: S, q: Operand<S, Self>, k: Operand<S, Self>, sum: Sum<S, Self>) -> Sum<S, Self>;

    /// [`Gemm::add_score`] by lane `I` of words of a key, with [`Isa::MULTIPLIES_BY_LANE`]. Types
    /// that are not multiplied as f32 override it with the instruction.
    #[inline(always)]
    fn add_score_lane<S: Isa, const I: i32>(
        s: S,
        q: Operand<S, Self>,
        k: Operand<S, Self>,
        sum: Sum<S, Self>,
    ) -> Sum<S, Self> {
        Self::add_score(s, q, Self::Operand::splat_lane::<S, I>(s, k), sum)
    }

    /// The scores whose dot products are `sum`: times the first line of the panel, if panels have a
    /// header.
    ///
    /// # Safety
    /// As [`Gemm::begin_score`].
    #[inline(always)]
    unsafe fn end_score<S: Isa>(s: S, panel: *const f32, sum: Sum<S, Self>) -> S::F32 {
        let sum = Self::Sum::to_f32(s, sum);
        if Self::PANEL_HEADER == 0 {
            return sum;
        }
        // SAFETY: the caller vouches for the panel; its first line is the factor.
        s.mul(sum, unsafe { s.load(panel) })
    }

    /// The probabilities of a group from as many `scores` as it has keys, relative to
    /// `running_max`; added to `total`.
    fn probabilities<S: Isa>(
        s: S,
        scores: [S::F32; MAX_PACK],
        running_max: S::F32,
        total: &mut Sum<S, Self>,
    ) -> Operand<S, Self>;

    /// What the sums of a span begin with, if they do not go on with others, where probabilities
    /// were summed up `before` and `after` it. It counts only where these are not made within the
    /// first register tile ([`Isa::EXP_IN_FIRST_TILE`]).
    #[inline(always)]
    fn begin_value<S: Isa>(s: S, _before: Sum<S, Self>, _after: Sum<S, Self>) -> Sum<S, Self> {
        Self::Sum::zero(s)
    }

    /// `sum` and the products of words of probabilities and of values.
    fn add_value<S: Isa>(s: S, p: Operand<S, Self>, v: Operand<S, Self>, sum: Sum<S, Self>) -> Sum<S, Self>;

    /// [`Gemm::add_value`] by lane `I` of words of values, as [`Gemm::add_score_lane`].
    #[inline(always)]
    fn add_value_lane<S: Isa, const I: i32>(
        s: S,
        p: Operand<S, Self>,
        v: Operand<S, Self>,
        sum: Sum<S, Self>,
    ) -> Sum<S, Self> {
        Self::add_value(s, p, Self::Operand::splat_lane::<S, I>(s, v), sum)
    }

    /// The probability of one key of a group in the word that a lane has.
    fn probability(word: u32, key: usize) -> f32;

    /// Where [`Gemm::value_span`] leaves the word of a group that a lane has, among groups of
    /// `width` words.
    #[inline(always)]
    fn word_at(group: usize, lane: usize, width: usize) -> usize {
        group * width + lane
    }

    /// Writes the scores of `n` keys of a span as `out[key][lane]`, `Z` vectors wide, against `Z`
    /// vectors of a packed panel that is `lanes` wide; returns the largest score of each lane. A
    /// score has the same bits however keys are cut into spans and rows into tiles. The default
    /// goes word by word, in register tiles of `R` keys. Others may write behind the last key, up
    /// to the end of its span.
    ///
    /// # Safety
    /// As [`scores::scores`]; `out` has room up to the next multiple of [`Gemm::SPAN_KEYS`] keys,
    /// and the scores of later keys are written later.
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
        // SAFETY: the caller's contract is that of the loops.
        unsafe { scores::scores::<S, Self, R, Z>(s, panel, lanes, k, n, dim, out, prefetch) }
    }

    /// Turns the scores of `n` groups of keys of a span into probabilities, in place, and adds
    /// their products with V to `Z` vectors of `output[element][lane]`, which is `lanes` wide, as
    /// `onto` says. The default goes word by word, in register tiles of `R`
    /// elements, and makes the probabilities within the first tile. V is
    /// prefetched `prefetch_groups` groups ahead.
    ///
    /// # Safety
    /// As [`accumulate`], with scores in place of probabilities, which are -inf behind the last key
    /// up to the next multiple of [`Gemm::SPAN_KEYS`].
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
        let (weight, before) = (probabilities.weight(), probabilities.sum());
        // SAFETY: the caller's contract is that of the loops; the second one goes on behind the
        // first.
        unsafe {
            let distance = prefetch_groups;
            let d = make_and_accumulate(s, scores, v, n, dim, output, lanes, onto, distance, probabilities);
            let after = probabilities.sum();
            // No closure: it would not be compiled for the instruction set.
            let mut begin = before;
            for (begin, after) in begin.iter_mut().zip(after) {
                *begin = Self::begin_value(s, *begin, after);
            }
            accumulate::<S, Self, R, Z>(
                s, scores, v, n, d, dim, output, lanes, onto, weight, begin, distance,
            );
        }
    }
}

/// A sum as f32; of integer sums, times `weight`.
#[inline(always)]
pub(crate) fn weighted<S: Isa, F: Gemm>(s: S, sum: Sum<S, F>, weight: S::F32) -> S::F32 {
    let sum = F::Sum::to_f32(s, sum);
    if F::INT_ACC { s.mul(sum, weight) } else { sum }
}

/// Bytes of the staged K and V of a block of keys; 0 where they are read in place.
#[inline(always)]
pub(crate) fn staged_bytes<F: Gemm>(shape: &Shape, tiles: TileSizes) -> [usize; 2] {
    let [k, v] = tiles.has_staging(shape);
    // Saturates where no machine has the memory.
    let keys = tiles.kv.checked_next_multiple_of(F::SPAN_KEYS).unwrap_or(usize::MAX);
    let groups = (keys / F::PACK).saturating_add(F::SPARE_GROUPS);
    [
        if k { F::staged_k_row(shape.dim_qk).saturating_mul(keys) } else { 0 },
        if v { F::staged_v_row(shape.dim_v).saturating_mul(groups) } else { 0 },
    ]
}
