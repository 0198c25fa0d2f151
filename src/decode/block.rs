//! A block of keys: which of them each query row sees, and where the rows of K and V lie.

use std::iter;
use std::ops::Range;

use super::prefetch::{PrefetchStream, prefetch_rows};
use super::scratch::{BlockArrays, staged_stride};
use crate::attend::blocks::{clip, visible_in};
use crate::attend::fold::of_key;
use crate::attend::rows::{Rows, Source, copy_rows, key_rows};
use crate::attend::seen::Seen;
use crate::attend::{K, V, convert};
use crate::dtype::Dtype;
use crate::simd::Isa;
use crate::tuning::{DecodeTuning, MaskTuning, Tuning};
use crate::view::ScaleGranularity;
use crate::work::query_tiles::TileSizes;
use crate::work::split_kv::SplitWork;

/// Rows of K or V that lie behind one another, and how they are read.
#[derive(Clone)]
pub(crate) struct Run {
    /// The keys, counted from the first one of the block.
    pub(super) keys: Range<usize>,
    /// Their rows: row n is that of key n of the block, and there are those of `keys` alone.
    pub(super) rows: Rows,
    pub(super) dtype: Dtype,
    /// Elements of a row.
    pub(super) dim: usize,
    /// A factor for each key of the block, in whole vectors, where rows have scales of their own,
    /// and a zero, where they have zeros of their own.
    pub(super) scales: Option<*const f32>,
    pub(super) zeros: Option<*const f32>,
    /// Prefetch distance in rows.
    pub(super) prefetch_rows: usize,
}

impl Run {
    /// The part of the run that has `keys`, some of its own.
    #[inline(always)]
    pub(super) fn of(&self, keys: Range<usize>) -> Run {
        Run { keys, ..*self }
    }
}

/// K or V of a block.
struct KvBlock<'a> {
    work: &'a SplitWork<'a>,
    /// [`K`] or [`V`].
    which: usize,
    kv_head: usize,
    /// The first key of the block.
    start: usize,
    /// Elements of a row.
    dim: usize,
    /// What rows are read as: the type that they are stored as, or f32 where they are converted.
    dtype: Dtype,
    /// Where rows are converted or copied to, if they are, and bytes from one to the next.
    staged: Option<*mut u8>,
    staged_stride: usize,
    /// Bytes of a row that is copied and not converted.
    copied_bytes: Option<usize>,
    /// Where a factor for each key goes, if rows have scales of their own, and a zero.
    scales: Option<*mut f32>,
    zeros: Option<*mut f32>,
    tuning: &'static DecodeTuning,
}

impl<'a> KvBlock<'a> {
    /// K or V of the block that begins with key `start`, for a compute type that reads the type
    /// `read_as` alone, if it does.
    fn new(
        work: &'a SplitWork<'a>,
        which: usize,
        start: usize,
        tiles: TileSizes,
        arrays: &BlockArrays,
        read_as: Option<Dtype>,
    ) -> KvBlock<'a> {
        let shape = work.problem().shape();
        let dim = if which == V { shape.dim_v } else { shape.dim_qk };
        let is_staged = tiles.staged[which];
        let stored = shape.storage.dtypes[1 + which];
        let has_row_scales = shape.storage.granularities[1 + which] == ScaleGranularity::PerToken;
        KvBlock {
            work,
            which,
            kv_head: work.problem().kv_head(work.heads.start),
            start,
            dim,
            dtype: read_as.unwrap_or(if is_staged { Dtype::F32 } else { stored }),
            staged: is_staged.then_some(arrays.staged[which]),
            staged_stride: staged_stride(read_as, dim),
            copied_bytes: read_as.and_then(|dtype| dtype.row_bytes(dim)),
            scales: has_row_scales.then_some(arrays.scales[which]),
            zeros: (has_row_scales && shape.storage.zeros[1 + which]).then_some(arrays.zeros[which]),
            tuning: &tiles.tuning.decode,
        }
    }

    /// The stored rows from key `key` of the sequence on.
    #[inline(always)]
    fn source(&self, key: usize) -> Source<'a> {
        let problem = self.work.problem();
        let view = if self.which == V { problem.v() } else { problem.k() };
        key_rows(problem, view, self.work.sequence(), self.kv_head, key)
    }

    /// Bytes of a row as it is stored.
    #[inline(always)]
    fn row_bytes(&self) -> usize {
        self.work.problem().shape().row_bytes_kv()[self.which]
    }

    /// The first of `keys` that lie behind one another. `keys` are some.
    #[inline(never)]
    fn first_run(&self, keys: &Range<usize>) -> Run {
        let (keys, rows) = match self.staged {
            Some(base) => (keys.clone(), Rows { base, stride: self.staged_stride }),
            None => {
                let key = self.start + keys.start;
                let n = self.work.problem().keys_in_a_row(self.work.sequence(), key).min(keys.len());
                let rows = self.source(key).rows();
                let base = rows.base.wrapping_sub(keys.start * rows.stride);
                (keys.start..keys.start + n, Rows { base, ..rows })
            }
        };
        Run {
            keys,
            rows,
            dtype: self.dtype,
            dim: self.dim,
            scales: self.scales.map(|scales| scales.cast_const()),
            zeros: self.zeros.map(|zeros| zeros.cast_const()),
            prefetch_rows: self.tuning.prefetch_rows,
        }
    }

    /// The runs of `keys`, in the order of the keys.
    #[inline(always)]
    fn runs(&self, keys: Range<usize>) -> impl Iterator<Item = Run> {
        let mut rest = keys;
        iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let run = self.first_run(&rest);
            rest.start = run.keys.end;
            Some(run)
        })
    }

    /// The rows of `keys` as a stream that goes with keys `distance` before them. Nothing where
    /// they are read from scratch memory, or do not lie behind one another.
    fn stream(&self, keys: &Range<usize>, distance: usize) -> PrefetchStream {
        if self.staged.is_some() || keys.is_empty() {
            return PrefetchStream::NOTHING;
        }
        let run = self.first_run(keys);
        // Pages of K and V begin alike. Where they do not, no prefetch is better than one of rows
        // that belong to somebody else.
        if run.keys != *keys {
            return PrefetchStream::NOTHING;
        }
        PrefetchStream::rows(run.rows.skip(distance), self.row_bytes())
    }

    /// Prefetches the first rows of `keys` into the first-level cache. Kept out of line, so that
    /// the code exists once for each instruction set.
    #[inline(never)]
    fn prefetch_first<S: Isa>(&self, s: S, keys: &Range<usize>) {
        if self.staged.is_none() && !keys.is_empty() {
            let Run { keys, rows, .. } = self.first_run(keys);
            prefetch_rows(
                s,
                rows.skip(keys.start),
                self.tuning.prefetch_first.min(keys.len()),
                self.row_bytes(),
            );
        }
    }

    /// Converts or copies the rows of `keys`, if they cannot be read in place, and writes the
    /// factors of rows with scales of their own. `keys` are keys of the sequence, all of this
    /// block.
    ///
    /// # Safety
    /// The arrays of the block have room for its keys (I5).
    #[inline(always)]
    unsafe fn prepare<S: Isa>(&self, s: S, keys: &Range<usize>) {
        if self.staged.is_some() || self.scales.is_some() {
            // SAFETY: I5: the arrays are the caller's.
            unsafe { self.prepare_rows(s.core(), keys) };
        }
    }

    /// [`KvBlock::prepare`] where there is something to do. Kept out of line, so that the code
    /// exists once for each instruction set.
    ///
    /// # Safety
    /// The arrays of the block have room for its keys (I5).
    #[inline(never)]
    unsafe fn prepare_rows<S: Isa>(&self, s: S, keys: &Range<usize>) {
        let problem = self.work.problem();
        if let Some(staged) = self.staged {
            let granularity = problem.shape().storage.granularities[1 + self.which];
            let is_finer = granularity == ScaleGranularity::Finer;
            let mut key = keys.start;
            while key < keys.end {
                let source = self.source(key);
                let n = problem.keys_in_a_row(self.work.sequence(), key).min(keys.end - key);
                // Scales of rows are applied later, as where rows are read in place: the bits are
                // the same.
                let raw = source.view.raw();
                let source = if is_finer { source } else { Source { view: &raw, ..source } };
                let (dim, stride) = (self.dim, self.staged_stride);
                // SAFETY: I2: the sequence has the rows `keys`; I5: `buffers` made room for those
                // of a block, `stride` bytes each.
                unsafe {
                    let to = staged.add((key - self.start) * stride);
                    match self.copied_bytes {
                        Some(bytes) => copy_rows(source.rows(), n, bytes, to, stride, bytes),
                        None => convert::convert(s, source, n, dim, to),
                    }
                }
                key += n;
            }
        }
        if let Some(scales) = self.scales {
            // Whole vectors are read later; what stands at their ends only has to be initialised.
            for key in [keys.start, keys.end - 1] {
                let at = key - self.start;
                for lane in 0..S::LANES {
                    // SAFETY: I5: `buffers` made room for whole vectors of the block, one of which
                    // has `at`.
                    unsafe {
                        scales.add(at - at % S::LANES + lane).write(1.0);
                        if let Some(zeros) = self.zeros {
                            zeros.add(at - at % S::LANES + lane).write(0.0);
                        }
                    }
                }
            }
            for key in keys.clone() {
                let mut of_row = self.source(key).scale_and_zero();
                if self.which == K {
                    of_row = of_row.map(of_key);
                }
                // SAFETY: I5: `buffers` made room for a factor, and a zero, of each key of the
                // block.
                unsafe {
                    scales.add(key - self.start).write(of_row[0]);
                    if let Some(zeros) = self.zeros {
                        zeros.add(key - self.start).write(of_row[1]);
                    }
                }
            }
        }
    }
}

/// A block of keys and the query rows that meet it. Keys are counted from the first key of the
/// block, whether a row sees that or not.
pub(crate) struct Block<'a> {
    pub(super) work: &'a SplitWork<'a>,
    /// The first key of the block, counted from the first one of the sequence.
    pub(super) start: usize,
    /// The keys that some row sees.
    pub(super) keys: Range<usize>,
    /// The keys of the next block that some row sees; empty if there is none.
    next: Range<usize>,
    k: KvBlock<'a>,
    v: KvBlock<'a>,
    /// Whether it is the first block of its split: the output of the state is not initialised yet.
    pub(super) is_first: bool,
    /// Whether V is prefetched while K is multiplied, and the next K while V is.
    pub(super) prefetches: bool,
    /// The keys that all rows see; it may begin behind its end if there are none.
    seen_by_all: Range<usize>,
    /// Whether every row sees all of `keys`, or all but a gap.
    pub(super) is_whole: bool,
    /// Where masks are scanned: what each row sees.
    unmasked: Option<&'a [Seen]>,
    /// Whether masks change no score of a key that a row sees: always, if there are none.
    pub(super) is_plain: bool,
    /// Whether some row sees keys on both sides of some that it does not see, masks aside.
    pub(super) has_gap: bool,
    tuning: &'static Tuning,
}

impl<'a> Block<'a> {
    /// The block with the visible keys `keys`, before the one with `next`: both counted from the
    /// first key of the sequence. Where masks are scanned, `unmasked` is what they leave to each
    /// row, and whether they change no score there.
    /// `read_as` is the only type that the compute type reads, if there is one. Kept out of line,
    /// so that the code exists once.
    #[inline(never)]
    pub(super) fn new(
        work: &'a SplitWork<'a>,
        tiles: TileSizes,
        arrays: &BlockArrays,
        read_as: Option<Dtype>,
        keys: &Range<usize>,
        next: &Range<usize>,
        unmasked: Option<(&'a [Seen], bool)>,
        is_first: bool,
        prefetches: bool,
    ) -> Block<'a> {
        let start = keys.start - keys.start % tiles.kv;
        let from_start = |keys: &Range<usize>| keys.start - start..keys.end - start;
        let k = KvBlock::new(work, K, start, tiles, arrays, read_as);
        let v = KvBlock::new(work, V, start, tiles, arrays, read_as);
        // Windows move with the row, so the first and the last row bound all others.
        let visible = |row| from_start(&visible_in(work.sequence(), row, keys));
        let (first, last) = (visible(work.rows.start), visible(work.rows.end - 1));
        let mut is_whole = first == from_start(keys) && last == from_start(keys);
        let mut seen_by_all = last.start..first.end;
        let mut has_gap = false;
        if !work.sequence().has_windows_only() {
            let (all, gap) = seen_beside_gaps(work, keys);
            (seen_by_all, has_gap) = (from_start(&all), gap);
            is_whole = all == *keys;
        }
        let (keys, next) = (from_start(keys), from_start(next));
        if let Some((seen, _)) = unmasked {
            seen_by_all = Seen::by_all(seen, 0);
            is_whole = seen_by_all == keys;
        }
        Block {
            work,
            start,
            keys,
            next,
            k,
            v,
            is_first,
            prefetches,
            seen_by_all,
            is_whole,
            unmasked: unmasked.map(|(seen, _)| seen),
            is_plain: unmasked.map_or(!work.problem().logits().hides(), |(_, is_plain)| is_plain),
            has_gap,
            tuning: tiles.tuning,
        }
    }

    /// The keys that row `r` of the group sees, from the first to the last; masks may hide some
    /// between them, unless the block is plain.
    #[inline(always)]
    pub(super) fn visible(&self, r: usize) -> Range<usize> {
        if self.is_whole { self.keys.clone() } else { self.visible_part(r) }
    }

    /// [`Block::visible`] where some row does not see all. Kept out of line, so that it exists
    /// once.
    #[inline(never)]
    fn visible_part(&self, r: usize) -> Range<usize> {
        if let Some(seen) = self.unmasked {
            return seen[r].keys(0);
        }
        let keys = self.start + self.keys.start..self.start + self.keys.end;
        let (_, row) = self.work.line(r);
        let keys = visible_in(self.work.sequence(), row, &keys);
        keys.start - self.start..keys.end - self.start
    }

    /// Sets the scores of keys in the gap of a row to -inf.
    ///
    /// # Safety
    /// `scores` has those of the keys of the block.
    #[inline(never)]
    pub(super) unsafe fn hide_gap(&self, row: usize, visible: &Range<usize>, scores: *mut f32) {
        let gap = self.work.sequence().seen(&(row..row + 1)).gap;
        for key in clip(gap, &(self.start + visible.start..self.start + visible.end)) {
            // SAFETY: a key of the block (caller).
            unsafe { scores.add(key - self.start).write(f32::NEG_INFINITY) };
        }
    }

    /// Whether a row sees a key of the block, masks included.
    #[inline(always)]
    pub(super) fn sees(&self, head: usize, row: usize, key: usize) -> bool {
        self.work.problem().sees(self.work.sequence(), head, row, self.start + key)
    }

    /// The keys of the block in three ranges: the middle one is seen by all rows, in whole operands
    /// of `pack` keys; those before and behind it are seen by some.
    #[inline(always)]
    pub(super) fn thirds(&self, pack: usize) -> [Range<usize>; 3] {
        let all = if self.is_whole {
            self.keys.clone()
        } else {
            let Range { start, end } = self.seen_by_all;
            let start = start.next_multiple_of(pack);
            start..(end - end % pack).max(start)
        };
        let keys = &self.keys;
        [keys.start..all.start.min(keys.end), all.clone(), keys.end.min(all.end)..keys.end]
    }

    /// The runs of the rows of K that some query row sees.
    #[inline(always)]
    pub(super) fn k_runs(&self) -> impl Iterator<Item = Run> {
        self.k.runs(self.keys.clone())
    }

    /// The runs of the rows of V of `keys`.
    #[inline(always)]
    pub(super) fn v_runs(&self, keys: Range<usize>) -> impl Iterator<Item = Run> {
        self.v.runs(keys)
    }

    /// The measured numbers of masks.
    #[inline(always)]
    pub(super) fn masks(&self) -> &'static MaskTuning {
        &self.tuning.masks
    }

    /// A factor for each key, by which its values are still to be multiplied.
    #[inline(always)]
    pub(super) fn v_scales(&self) -> Option<*const f32> {
        self.v.scales.map(|scales| scales.cast_const())
    }

    /// The stored row of V of `key`, without scales.
    #[inline(always)]
    pub(super) fn raw_value(&self, key: usize) -> *const u8 {
        self.v.source(self.start + key).rows().base
    }

    /// A zero for each key, whose product with the key's weight is to be subtracted.
    #[inline(always)]
    pub(super) fn v_zeros(&self) -> Option<*const f32> {
        self.v.zeros.map(|zeros| zeros.cast_const())
    }

    /// What to prefetch while a run of K is multiplied: V of the same keys.
    #[inline(always)]
    pub(super) fn v_stream(&self, k: &Run) -> PrefetchStream {
        self.v.stream(&k.keys, 0).unless_at(k.rows)
    }

    /// What to prefetch while a run of V is multiplied: K of the next block.
    #[inline(always)]
    pub(super) fn next_k_stream(&self, v: &Run) -> PrefetchStream {
        let distance = self.next.start.saturating_sub(self.keys.start);
        let keys = clip(v.keys.start + distance..v.keys.end + distance, &self.next);
        self.k.stream(&keys, distance)
    }

    /// Prefetches the first rows that are needed next: of V of this block, and of K of the next
    /// one.
    #[inline(always)]
    pub(super) fn prefetch_first<S: Isa>(&self, s: S) {
        self.v.prefetch_first(s.core(), &self.keys);
        self.k.prefetch_first(s.core(), &self.next);
    }

    /// Prepares the rows that cannot be read in place, and the factors of rows with scales of their
    /// own.
    ///
    /// # Safety
    /// The arrays that the block was made with have room for it (I5).
    #[inline(always)]
    pub(super) unsafe fn prepare<S: Isa>(&self, s: S) {
        let keys = self.start + self.keys.start..self.start + self.keys.end;
        // SAFETY: I5: the arrays are the caller's.
        unsafe {
            self.k.prepare(s, &keys);
            self.v.prepare(s, &keys);
        }
    }
}

/// Of the keys of a block, from the last of the first keys that the rows of a group see to the
/// first of their last keys; and whether a row does not see some of them. For sequences whose
/// windows are not all that decides: what a row sees may end before what the row before sees. Kept
/// out of line.
#[inline(never)]
fn seen_beside_gaps(work: &SplitWork, keys: &Range<usize>) -> (Range<usize>, bool) {
    let sequence = work.sequence();
    let (mut all, mut has_gap) = (keys.clone(), false);
    for row in work.rows.clone() {
        let visible = visible_in(sequence, row, keys);
        has_gap |= !clip(sequence.seen(&(row..row + 1)).gap, &visible).is_empty();
        let start = all.start.max(visible.start);
        all = start..all.end.min(visible.end).max(start);
    }
    (all, has_gap)
}
