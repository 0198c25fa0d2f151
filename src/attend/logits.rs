//! Step 2: from dot products to logits: softcap, then linear bias (ALiBi) and mask, in log2 units
//! like the scores.
//!
//! This is a pass of its own over scores that lie in L1; problems without any of these skip it. A
//! key that the mask hides gets the score -inf. Windows are the next step (`prefill::mask`).

use std::f32::consts::LOG2_E;
use std::iter::Peekable;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::MAX_WIDTH;
use crate::dtype::bf16::Bf16;
use crate::dtype::bool8::Bool8;
use crate::dtype::f16::F16;
use crate::dtype::f32::F32;
use crate::dtype::{Dtype, Stored};
use crate::problem::{BlockMask, List, Problem, Sequence};
use crate::simd::{Body, Isa, MAX_LANES, math, transpose};
use crate::tuning::MaskTuning;
use crate::view::{Layout, View};

/// What changes the scores of one head of one sequence.
pub(crate) struct Logits<'p> {
    sequence: Sequence<'p>,
    head: usize,
    /// The cap in log2 units, if there is one.
    cap: Option<f32>,
    /// The slope for |p - j|, in log2 units.
    slope: Option<f32>,
    mask: Option<&'p View<'p>>,
    /// The block mask, if it hides something here.
    cells: Option<&'p BlockMask<'p>>,
    /// Single keys that are hidden here since they are computed for themselves, if there are some.
    columns: Option<List<'p>>,
    /// Factor of the mask: log2(e), times the slope if the mask is multiplied by slopes.
    mask_factor: f32,
    /// Bound of the mask's numbers, so that their product with the factor is at most
    /// [`LARGEST_BIAS`].
    mask_max: f32,
    /// Prefetch distance in each row of the mask, in bytes.
    prefetch_bytes: usize,
}

impl<'p> Logits<'p> {
    /// What changes the scores of `rows` and `keys`; `None` if nothing does. Masks count unless
    /// these are plain (`seen`), a block mask only if it hides some of them. Single keys are hidden
    /// in any case.
    #[inline(always)]
    pub(crate) fn of(
        problem: &'p Problem<'p>,
        sequence: &Sequence<'p>,
        head: usize,
        rows: &Range<usize>,
        keys: &Range<usize>,
        is_plain: bool,
        tuning: &MaskTuning,
    ) -> Option<Self> {
        if problem.changes_scores() {
            Logits::some(problem, sequence, head, rows, keys, is_plain, tuning)
        } else {
            None
        }
    }

    /// [`Logits::of`] a problem that changes scores. Kept out of line: few problems do.
    #[inline(never)]
    fn some(
        problem: &'p Problem<'p>,
        sequence: &Sequence<'p>,
        head: usize,
        rows: &Range<usize>,
        keys: &Range<usize>,
        is_plain: bool,
        tuning: &MaskTuning,
    ) -> Option<Self> {
        let sequence = *sequence;
        let logits = problem.logits();
        let columns = problem.columns_in(&sequence, head, keys);
        let is_plain = is_plain || sequence.is_of_columns();
        let mask = logits.mask.as_ref().filter(|_| !is_plain);
        let cells = logits.cells.as_ref().filter(|_| !is_plain);
        let cells = cells.filter(|cells| !cells.sees_all(&sequence, head, rows, keys));
        let times_mask = logits.slopes.is_some_and(|slopes| slopes.times_mask);
        let slope = problem.slope(&sequence, head);
        let has_slope = slope.is_some() && !times_mask;
        let hides = mask.is_some() || cells.is_some() || columns.is_some();
        if logits.softcap == 0.0 && !hides && !has_slope {
            return None;
        }
        let mask_factor = finite(LOG2_E * slope.filter(|_| times_mask).unwrap_or(1.0));
        Some(Logits {
            sequence,
            head,
            cap: (logits.softcap > 0.0).then_some((logits.softcap * LOG2_E).min(LARGEST_CAP)),
            slope: slope.filter(|_| has_slope).map(|slope| finite(slope * LOG2_E)),
            mask,
            cells,
            columns,
            mask_factor,
            mask_max: LARGEST_BIAS / mask_factor.abs().max(1.0),
            prefetch_bytes: tuning.prefetch_bytes,
        })
    }

    /// Changes the scores of `keys` for `Z` vectors of query rows, which begin with `rows`; returns
    /// the largest score of each lane.
    ///
    /// # Safety
    /// `scores` holds `Z` vectors for each of `keys`; rows and keys are those of the sequence.
    #[inline(always)]
    pub(crate) unsafe fn change<S: Isa, const Z: usize>(
        &self,
        s: S,
        rows: &Range<usize>,
        keys: Range<usize>,
        scores: *mut f32,
    ) -> [S::F32; Z] {
        let mut largest = [0.0; MAX_WIDTH];
        change_tile(s, Tile::<Z> { logits: self, rows, keys, scores, largest: &mut largest });
        let mut max = [s.splat(0.0); Z];
        for (z, max) in max.iter_mut().enumerate() {
            // SAFETY: the array has room for Z vectors.
            *max = unsafe { s.load(largest.as_ptr().add(z * S::LANES)) };
        }
        max
    }

    /// [`Logits::change`], compiled for an instruction set.
    ///
    /// # Safety
    /// As [`Logits::change`].
    #[inline(always)]
    unsafe fn change_tile<S: Isa, const Z: usize>(
        &self,
        s: S,
        rows: &Range<usize>,
        keys: Range<usize>,
        scores: *mut f32,
    ) -> [S::F32; Z] {
        let mut max = [s.splat(f32::NEG_INFINITY); Z];
        let mut biases = MaybeUninit::<[f32; MAX_LANES * MAX_WIDTH]>::uninit();
        let biases = biases.as_mut_ptr().cast::<f32>();
        let hides = self.mask.is_some() || self.cells.is_some();
        let masking = self.masking(s);
        let mut columns = self.columns_from(keys.start);
        let mut first = keys.start;
        while first < keys.end {
            let here = first..keys.end.min(first + S::LANES);
            // SAFETY: `here` lies in `keys`; `biases` has room for LANES keys.
            unsafe {
                if hides {
                    self.biases::<S, Z>(s, rows, &here, biases);
                }
                for key in here.clone() {
                    let is_column = columns.next_if_eq(&key).is_some();
                    for (z, max) in max.iter_mut().enumerate() {
                        let at = scores.add(((key - keys.start) * Z + z) * S::LANES);
                        if is_column {
                            s.store(at, s.splat(f32::NEG_INFINITY));
                            continue;
                        }
                        let mut x = self.capped(s, s.load(at));
                        if let Some(slope) = self.slope {
                            let away = self.distance(key, rows.start).saturating_sub((z * S::LANES) as i64);
                            x = biased(s, x, away, -1, slope);
                        }
                        if hides {
                            x = masked(s, x, masking, biases.add(((key - first) * Z + z) * S::LANES));
                        }
                        // NaN as the first operand leaves the maximum alone.
                        *max = s.max(x, *max);
                        s.store(at, x);
                    }
                }
            }
            first = here.end;
        }
        max
    }

    /// Changes the scores of one query row for the keys `seen`. Keys and scores are counted from
    /// key `start`. Scores beside them, up to whole vectors, may be written, too.
    ///
    /// # Safety
    /// `scores` has whole vectors; row and keys are those of the sequence.
    #[inline(always)]
    pub(crate) unsafe fn change_row<S: Isa>(
        &self,
        s: S,
        row: usize,
        start: usize,
        seen: &Range<usize>,
        scores: *mut f32,
    ) {
        change_line(s, Line { logits: self, row, start, seen, scores });
    }

    /// [`Logits::change_row`], compiled for an instruction set.
    ///
    /// # Safety
    /// As [`Logits::change_row`].
    #[inline(always)]
    unsafe fn change_line<S: Isa>(
        &self,
        s: S,
        row: usize,
        start: usize,
        seen: &Range<usize>,
        scores: *mut f32,
    ) {
        let first = seen.start - seen.start % S::LANES;
        let masking = self.masking(s);
        for at in (first..seen.end).step_by(S::LANES) {
            // SAFETY: `at` is within the line; keys are among `seen`.
            unsafe {
                let mut x = self.capped(s, s.load(scores.add(at)));
                if let Some(slope) = self.slope {
                    x = biased(s, x, self.distance(start + at, row), 1, slope);
                }
                if self.mask.is_some() || self.cells.is_some() {
                    let here = at.max(seen.start)..seen.end.min(at + S::LANES);
                    let mut biases = MaybeUninit::<[f32; 2 * MAX_LANES]>::uninit();
                    let biases = biases.as_mut_ptr().cast::<f32>();
                    s.store(biases, s.splat(0.0));
                    let keys = start + here.start..start + here.end;
                    self.bias_row(s, row, &keys, biases.add(here.start - at));
                    x = masked(s, x, masking, biases);
                }
                s.store(scores.add(at), x);
            }
        }
        for column in self.columns_from(start + seen.start).take_while(|&column| column < start + seen.end) {
            // SAFETY: a key among `seen`.
            unsafe { scores.add(column - start).write(f32::NEG_INFINITY) };
        }
    }

    /// The single keys that are hidden here, from `key` on.
    fn columns_from(&self, key: usize) -> Peekable<impl Iterator<Item = usize> + '_> {
        let columns = self.columns.iter();
        columns.flat_map(move |list| (list.below(key)..list.count()).map(|n| list.get(n))).peekable()
    }

    #[inline(always)]
    fn capped<S: Isa>(&self, s: S, x: S::F32) -> S::F32 {
        match self.cap {
            // Finite, so that a score of 0 stays 0 under the smallest caps.
            Some(cap) => s.mul(s.splat(cap), math::tanh(s, s.mul(x, s.splat((1.0 / cap).min(f32::MAX))))),
            None => x,
        }
    }

    /// Factor and bounds of the mask, as [`masked`] takes them.
    #[inline(always)]
    fn masking<S: Isa>(&self, s: S) -> [S::F32; 3] {
        [s.splat(self.mask_factor), s.splat(self.mask_max), s.splat(-self.mask_max)]
    }

    /// Distance of a key from the position of `row`, positive behind it.
    #[inline(always)]
    fn distance(&self, key: usize, row: usize) -> i64 {
        (key as i64).saturating_sub(self.sequence.position(row))
    }

    /// The mask of keys `here` (at most `LANES`) as `[key][lane]`, `Z` vectors wide.
    ///
    /// # Safety
    /// `to` has room for `LANES` keys; rows and keys are those of the sequence.
    #[inline(always)]
    unsafe fn biases<S: Isa, const Z: usize>(
        &self,
        s: S,
        rows: &Range<usize>,
        here: &Range<usize>,
        to: *mut f32,
    ) {
        for z in 0..Z {
            let first = rows.start + z * S::LANES;
            let n = rows.end.saturating_sub(first).min(S::LANES);
            // SAFETY: rows below `n`, and of each of them the keys `here`; the square has room.
            unsafe {
                let to = to.add(z * S::LANES);
                if let Some(mask) = self.mask.filter(|_| n > 0) {
                    let Layout { dtype, stride: [_, _, stride], .. } = *mask.layout();
                    let bytes = dtype.block_bytes();
                    let from = self.mask_at(mask, first, here.start);
                    // The next keys are in another line of each row, which no hardware prefetcher
                    // follows.
                    if here.start * bytes % LINE < S::LANES * bytes {
                        for row in 0..n {
                            let row = match self.sequence.is_grouped() {
                                true => self.mask_at(mask, first + row, here.start),
                                false => from.wrapping_add(row * stride),
                            };
                            s.prefetch_l2(row.wrapping_add(self.prefetch_bytes));
                        }
                    }
                    let is_whole = here.len() == S::LANES && !self.sequence.is_grouped();
                    if dtype == Dtype::F32 && is_whole && self.cells.is_none() {
                        transpose::transpose_partial(s, from.cast(), stride, n, to, Z * S::LANES * 4, None);
                        continue;
                    }
                }
                let mut square = MaybeUninit::<[f32; MAX_LANES * MAX_LANES]>::uninit();
                let square = square.as_mut_ptr().cast::<f32>();
                for row in 0..S::LANES {
                    let line = square.add(row * S::LANES);
                    if row < n {
                        self.bias_row(s, first + row, here, line);
                    } else {
                        s.store(line, s.splat(0.0));
                    }
                }
                s.transpose(square, S::LANES * 4, to, Z * S::LANES * 4, None);
            }
        }
    }

    /// The mask of one row for keys `here` (at most `LANES`) as numbers to be added; the lanes
    /// behind them hold anything.
    ///
    /// # Safety
    /// `to` has room for a vector; row and keys are those of the sequence.
    #[inline(always)]
    unsafe fn bias_row<S: Isa>(&self, s: S, row: usize, here: &Range<usize>, to: *mut f32) {
        let n = here.len();
        // SAFETY: the mask has the keys of the sequence (I2); `to` has room for a vector (caller).
        unsafe {
            let bias = match self.mask {
                None => s.splat(0.0),
                Some(mask) => {
                    let from = self.mask_at(mask, row, here.start);
                    match mask.layout().dtype {
                        Dtype::F16 => F16::load_rest(s, from, 0, n),
                        Dtype::Bf16 => Bf16::load_rest(s, from, 0, n),
                        Dtype::Bool8 => {
                            let seen = s.gt(Bool8::load_rest(s, from, 0, n), s.splat(0.0));
                            s.select(seen, s.splat(0.0), s.splat(f32::NEG_INFINITY))
                        }
                        // Types that masks cannot have are named, so that a new one is not
                        // taken for f32.
                        Dtype::F32
                        | Dtype::I8
                        | Dtype::Q8_0
                        | Dtype::Q4_0
                        | Dtype::Q4_1
                        | Dtype::Q5_0
                        | Dtype::Q5_1
                        | Dtype::Iq4Nl
                        | Dtype::F8E4M3
                        | Dtype::F8E5M2
                        | Dtype::U8
                        | Dtype::Q15 => F32::load_rest(s, from, 0, n),
                    }
                }
            };
            s.store(to, bias);
            if let Some(cells) = self.cells {
                let [head, row] = self.sequence.line(self.head, row);
                for i in 0..n {
                    if !cells.sees(self.sequence.batch, head, row, here.start + i) {
                        to.add(i).write(f32::NEG_INFINITY);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn mask_at(&self, mask: &View, row: usize, key: usize) -> *const u8 {
        let [head, row] = self.sequence.line(self.head, row);
        mask.row(self.sequence.batch, head, row).wrapping_add(key * mask.layout().dtype.block_bytes())
    }
}

/// Adds a vector of the mask to scores `x`; a mask of -inf gives -inf.
///
/// # Safety
/// A vector is readable at `bias`.
#[inline(always)]
unsafe fn masked<S: Isa>(s: S, x: S::F32, [factor, max, min]: [S::F32; 3], bias: *const f32) -> S::F32 {
    // SAFETY: a vector is readable at `bias` (caller).
    let (bits, bias) = unsafe { (s.load_i32(bias.cast()), s.load(bias)) };
    // Compared as bits, so that a hidden key stays hidden whatever the factor, and NaN is not
    // hidden.
    let hides = s.in_range(s.splat_i32(HIDDEN), bits, s.splat_i32(HIDDEN + 1));
    // NaN comes out as the second operand.
    let x = s.fma(s.min(max, s.max(min, bias)), factor, x);
    s.select(hides, s.splat(f32::NEG_INFINITY), x)
}

/// Kept out of line: few problems need it, and it would take registers from the loops around it.
#[inline(never)]
fn change_tile<S: Isa, const Z: usize>(s: S, body: Tile<Z>) {
    s.core().enter(body);
}

/// The arguments of [`change_tile`]. Only [`Logits::change`] makes one, and vouches for its
/// pointers.
struct Tile<'a, const Z: usize> {
    logits: &'a Logits<'a>,
    rows: &'a Range<usize>,
    keys: Range<usize>,
    scores: *mut f32,
    largest: &'a mut [f32; MAX_WIDTH],
}

impl<const Z: usize> Body for Tile<'_, Z> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Tile { logits, rows, keys, scores, largest } = self;
        // SAFETY: `Logits::change` made this and vouches for the scores; `largest` has MAX_WIDTH
        // lanes.
        unsafe {
            let max = logits.change_tile::<S, Z>(s, rows, keys, scores);
            for (z, max) in max.into_iter().enumerate() {
                s.store(largest.as_mut_ptr().add(z * S::LANES), max);
            }
        }
    }
}

/// Kept out of line, as [`change_tile`] is.
#[inline(never)]
fn change_line<S: Isa>(s: S, body: Line) {
    s.core().enter(body);
}

/// The arguments of [`change_line`]. Only [`Logits::change_row`] makes one, and vouches for its
/// pointers.
struct Line<'a> {
    logits: &'a Logits<'a>,
    row: usize,
    start: usize,
    seen: &'a Range<usize>,
    scores: *mut f32,
}

impl Body for Line<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Line { logits, row, start, seen, scores } = self;
        // SAFETY: `Logits::change_row` made this and vouches for the scores.
        unsafe { logits.change_line(s, row, start, seen, scores) };
    }
}

/// The bits of -inf.
const HIDDEN: i32 = f32::NEG_INFINITY.to_bits() as i32;

/// Bytes of a cache line.
const LINE: usize = 64;

/// x - slope · |away + direction · lane|.
#[inline(always)]
fn biased<S: Isa>(s: S, x: S::F32, away: i64, direction: i32, slope: f32) -> S::F32 {
    // Counted in 32 bits and rounded once, so that the distance does not depend on where a tile
    // begins.
    let away = away.clamp(-(1 << 30), 1 << 30) as i32;
    let mut lanes = [0; MAX_LANES];
    for (lane, at) in lanes.iter_mut().enumerate() {
        *at = away + direction * lane as i32;
    }
    // SAFETY: the array is as long as any vector.
    let away = s.to_f32(unsafe { s.load_i32(lanes.as_ptr()) });
    let away = s.max(away, s.sub(s.splat(0.0), away));
    let bias = s.mul(away, s.splat(-slope));
    // NaN comes out as the second operand.
    s.add(s.min(s.splat(LARGEST_BIAS), s.max(s.splat(-LARGEST_BIAS), bias)), x)
}

/// The largest cap, in log2 units: tanh(s / cap) · cap is s for any score that f32 tells apart, and
/// the quotient stays far from subnormal.
const LARGEST_CAP: f32 = (1u64 << 60) as f32;

/// `x`, finite, so that it times 0 is 0. NaN stays NaN.
fn finite(x: f32) -> f32 {
    x.clamp(-f32::MAX, f32::MAX)
}

/// The largest bias in log2 units: the sum of two of them and a score stays finite. A caller's
/// -FLT_MAX is a number; -inf alone hides a key.
const LARGEST_BIAS: f32 = f32::MAX / 4.0;
