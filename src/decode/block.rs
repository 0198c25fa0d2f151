//! A block of keys: which of them each query row sees, and where the rows of K and V lie.

use std::iter;
use std::ops::Range;
use std::ptr;

use super::gemv::Reading;
use super::prefetch::{PrefetchStream, prefetch_rows};
use super::repacked::{self, Group};
use super::scratch::{BlockArrays, Staging, staged_keys, staged_stride, staging};
use super::unpack::{self, OfBlocks};
use crate::attend::blocks::{clip, visible_in};
use crate::attend::fold::of_key;
use crate::attend::rows::{Rows, Source, chunk_rows, key_rows};
use crate::attend::seen::Seen;
use crate::attend::{K, V, convert, gather, prefetch_rows_l2};
use crate::dtype::Dtype;
use crate::problem::Chunk;
use crate::simd::{Body, Isa, MAX_LANES};
use crate::tuning::{DecodeTuning, MaskTuning, Tuning};
use crate::view::{ScaleGranularity, View};
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
    /// Scales of blocks, where rows have been repacked, and minima, where rows have been unpacked
    /// or repacked that have any.
    pub(super) block_scales: Option<OfBlocks>,
    pub(super) minima: Option<OfBlocks>,
    /// Prefetch distance in rows, and where they end that are prefetched.
    pub(super) prefetch_rows: usize,
    pub(super) prefetch_end: usize,
}

impl Run {
    /// The part of the run that has `keys`, some of its own.
    #[inline(always)]
    pub(super) fn of(&self, keys: Range<usize>) -> Run {
        let prefetch_end = keys.end;
        Run { keys, prefetch_end, ..*self }
    }

    /// [`Run::of`] where rows are prefetched `distance` keys ahead, up to the end of this run.
    #[inline(always)]
    pub(super) fn turn(&self, keys: Range<usize>, distance: usize) -> Run {
        Run { keys, prefetch_rows: distance, prefetch_end: self.keys.end, ..*self }
    }
}

/// Rows that are converted at a time, while others are prefetched.
const ROWS_OF_PART: usize = 8;

/// K or V of a block.
struct KvBlock<'a> {
    work: &'a SplitWork<'a>,
    /// [`K`] or [`V`].
    which: usize,
    view: &'a View<'a>,
    kv_head: usize,
    /// The first row of the head in the first entry.
    origin: *const u8,
    /// Rows of the block, counted from its first key, if all lie behind one another where they are
    /// read.
    whole: Option<Rows>,
    /// The first key of the block.
    start: usize,
    /// Elements of a row, and bytes as it is stored.
    dim: usize,
    row_bytes: usize,
    /// What rows are read as: the type that they are stored as, f32 where they are converted, Q8_0
    /// where they are unpacked.
    dtype: Dtype,
    /// Where rows are converted or copied to, if they are, and bytes from one to the next.
    staged: Option<*mut u8>,
    staged_stride: usize,
    /// Keys of a run that is staged, and whether that is the whole block.
    staged_keys: usize,
    is_staged_at_once: bool,
    /// What is done to rows that are staged.
    staging: Staging,
    block_scales: Option<OfBlocks>,
    minima: Option<OfBlocks>,
    /// Where a factor for each key goes, if rows have scales of their own, and a zero.
    scales: Option<*mut f32>,
    zeros: Option<*mut f32>,
    /// How many keys before a page its first rows are prefetched, and how many rows: see
    /// [`DecodeTuning::prefetch_page_bytes`]. 0 without pages.
    prefetch_page: usize,
    /// Whether that is into the second-level cache.
    prefetches_l2: bool,
    tuning: &'static DecodeTuning,
}

impl<'a> KvBlock<'a> {
    /// K or V of the block that begins with key `start`, for a compute type that reads the type
    /// `read_as` alone, if it does, and reads blocks with scales as `reading` says.
    #[inline(always)]
    fn new(
        work: &'a SplitWork<'a>,
        which: usize,
        kv_head: usize,
        start: usize,
        tiles: TileSizes,
        arrays: &BlockArrays,
        read_as: Option<Dtype>,
        reading: Reading,
    ) -> KvBlock<'a> {
        let shape = work.problem().shape();
        let dim = if which == V { shape.dim_v } else { shape.dim_qk };
        let is_staged = tiles.staged[which];
        let stored = shape.storage.dtypes[1 + which];
        let granularity = shape.storage.granularities[1 + which];
        let staging = staging(reading, &shape.storage, which);
        let has_row_scales = granularity == ScaleGranularity::PerToken;
        let row_bytes = shape.row_bytes_kv()[which];
        let staged_keys = staged_keys(reading, shape, which, tiles);
        let tuning = &tiles.tuning.decode;
        // Single keys lie anywhere, as pages do.
        let is_single = work.sequence().is_of_columns();
        let lies_anywhere = shape.page.is_some() || is_single;
        let is_long =
            is_single || shape.page.unwrap_or(1).saturating_mul(row_bytes) >= tuning.prefetch_page_l2_from;
        let prefetches_l2 = tuning.prefetch_page_bytes_l2 > 0 && is_long;
        let ahead = if prefetches_l2 { tuning.prefetch_page_bytes_l2 } else { tuning.prefetch_page_bytes };
        // A loop that only copies has as many misses at once with half of the distance.
        let ahead = ahead / if is_staged { 2 } else { 1 };
        let prefetches_page = lies_anywhere && !shape.strided_kv[which];
        let prefetch_page = if prefetches_page { (ahead / row_bytes).max(1) } else { 0 };
        let view = if which == V { work.problem().v() } else { work.problem().k() };
        let mut block = KvBlock {
            work,
            which,
            view,
            kv_head,
            origin: view.head(kv_head),
            whole: None,
            start,
            dim,
            row_bytes,
            dtype: read_as.unwrap_or(if staging == Staging::Converted { Dtype::F32 } else { stored }),
            staged: is_staged.then_some(arrays.staged[which]),
            staged_stride: match is_staged {
                true => staged_stride(reading, &shape.storage, which, dim),
                false => 0,
            },
            staged_keys,
            is_staged_at_once: staged_keys == tiles.kv,
            staging,
            block_scales: arrays.block_scales[which],
            minima: arrays.minima[which],
            scales: has_row_scales.then_some(arrays.scales[which]),
            zeros: (has_row_scales && shape.storage.zeros[1 + which]).then_some(arrays.zeros[which]),
            prefetch_page,
            prefetches_l2,
            tuning,
        };
        block.whole = match block.staged {
            Some(base) if block.is_staged_at_once => Some(Rows { base, stride: block.staged_stride }),
            None if shape.page.is_none() => {
                let at = work.problem().key_at(work.sequence(), kv_head, start);
                Some(block.rows(&Chunk { keys: start..start, at }))
            }
            _ => None,
        };
        block
    }

    /// The stored rows of a chunk of keys of the sequence.
    #[inline(always)]
    fn source(&self, chunk: &Chunk) -> Source<'a> {
        chunk_rows(self.view, self.kv_head, chunk)
    }

    /// The rows of a chunk of keys in memory. Pages can be as small as a row, so that little may be
    /// computed for each.
    #[inline(always)]
    fn rows(&self, chunk: &Chunk) -> Rows {
        let [entry, row] = chunk.at;
        let [entry_stride, _, stride] = self.view.layout().stride;
        Rows { base: self.origin.wrapping_add(entry * entry_stride + row * stride), stride }
    }

    /// The chunks of `keys`, which are keys of the sequence.
    #[inline(always)]
    fn chunks(&self, keys: Range<usize>) -> impl Iterator<Item = Chunk> + 'a {
        self.work.problem().chunks(self.work.sequence(), self.kv_head, keys)
    }

    /// The run of `keys` with these rows, counted from the first key of the block.
    #[inline(always)]
    fn run(&self, keys: Range<usize>, rows: Rows) -> Run {
        let [scales, zeros] = [self.scales, self.zeros].map(|of| of.map(|of| of.cast_const()));
        let (prefetch_rows, prefetch_end) = (self.tuning.prefetch_rows, keys.end);
        let Self { dtype, dim, block_scales, minima, .. } = *self;
        Run { keys, rows, dtype, dim, scales, zeros, block_scales, minima, prefetch_rows, prefetch_end }
    }

    /// The runs of `keys`, in the order of the keys.
    #[inline(always)]
    fn runs(&self, keys: Range<usize>) -> impl Iterator<Item = Run> {
        let mut chunks = self.chunks(self.start + keys.start..self.start + keys.end);
        let mut rest = keys;
        iter::from_fn(move || {
            let (keys, rows) = match self.staged {
                Some(base) => {
                    let first = rest.start - rest.start % self.staged_keys;
                    let keys = rest.start..rest.end.min(first + self.staged_keys);
                    rest.start = keys.end;
                    let stride = self.staged_stride;
                    (keys, Rows { base: base.wrapping_sub(first * stride), stride })
                }
                None => {
                    let chunk = chunks.next()?;
                    let keys = chunk.keys.start - self.start..chunk.keys.end - self.start;
                    let rows = self.rows(&chunk);
                    let base = rows.base.wrapping_sub(keys.start * rows.stride);
                    (keys, Rows { base, ..rows })
                }
            };
            Some(self.run(keys, rows)).filter(|run| !run.keys.is_empty())
        })
    }

    /// The first run of `keys`.
    #[inline(always)]
    fn first_run(&self, keys: &Range<usize>) -> Option<Run> {
        match self.whole {
            _ if keys.is_empty() => None,
            Some(rows) => Some(self.run(keys.clone(), rows)),
            None => self.first_of_several(keys),
        }
    }

    /// [`KvBlock::first_run`] where there may be several. Kept out of line, so that the code exists
    /// once.
    #[inline(never)]
    fn first_of_several(&self, keys: &Range<usize>) -> Option<Run> {
        self.runs(keys.clone()).next()
    }

    /// The runs of `keys` that are multiplied now. Rows that cannot be read in place are staged a
    /// run at a time; of others, pages that come soon are prefetched.
    ///
    /// # Safety
    /// The arrays of the block have room for its keys (I5), and a run is not used after the next.
    #[inline(always)]
    unsafe fn runs_to_read<S: Isa>(&self, s: S, keys: Range<usize>) -> impl Iterator<Item = Run> {
        let in_place = if self.staged.is_some() { 0 } else { keys.len() };
        let first = self.start + keys.start;
        let mut ahead = self.pages_ahead(first..first + in_place);
        let is_staged_here = self.staged.is_some() && !self.is_staged_at_once;
        self.runs(keys).inspect(move |run| {
            if is_staged_here {
                // SAFETY: I5: the arrays are the caller's.
                unsafe { self.stage(s.core(), run) };
            }
            self.prefetch(s, ahead.next());
        })
    }

    /// The pages that are to be prefetched while those of `keys`, of the sequence, are read.
    #[inline(always)]
    fn pages_ahead(&self, keys: Range<usize>) -> impl Iterator<Item = Chunk> + 'a {
        let len = if self.prefetch_page > 0 && !keys.is_empty() { self.work.sequence().len_kv } else { 0 };
        let ahead = |key: usize| (key + self.prefetch_page).min(len);
        self.chunks(ahead(keys.start)..ahead(keys.end))
    }

    /// Prefetches the first rows of a page. The hardware prefetcher follows rows within a page, and
    /// cannot know which page is next.
    #[inline(always)]
    fn prefetch<S: Isa>(&self, s: S, page: Option<Chunk>) {
        if let Some(chunk) = page {
            self.prefetch_chunk(s, self.rows(&chunk), chunk.keys.len());
        }
    }

    /// Prefetches the first of `n` rows that lie in one page.
    #[inline(always)]
    fn prefetch_chunk<S: Isa>(&self, s: S, rows: Rows, n: usize) {
        let n = n.min(self.prefetch_page);
        if self.prefetches_l2 {
            // The hardware prefetcher follows rows that lie behind one another.
            let n = if rows.stride == self.row_bytes { n.min(self.prefetch_page.div_ceil(2)) } else { n };
            prefetch_rows_l2(s.core(), rows, n, self.row_bytes);
        } else {
            prefetch_rows(s, rows, n, self.row_bytes);
        }
    }

    /// The rows of `keys` as a stream that goes with keys `distance` before them. Nothing where
    /// they are read from scratch memory, or do not lie behind one another.
    fn stream(&self, keys: &Range<usize>, distance: usize) -> PrefetchStream {
        if self.staged.is_some() || keys.is_empty() {
            return PrefetchStream::NOTHING;
        }
        // Pages of K and V begin alike. Where they do not, no prefetch is better than one of rows
        // that belong to somebody else.
        match self.first_run(keys) {
            Some(run) if run.keys == *keys => PrefetchStream::rows(run.rows.skip(distance), self.row_bytes),
            _ => PrefetchStream::NOTHING,
        }
    }

    /// The rows some keys further, as far as memory answers late, as a stream: in its own order,
    /// which it follows at twice the speed of two tensors in turns. Nothing as for
    /// [`KvBlock::stream`].
    fn stream_ahead(&self) -> Option<PrefetchStream> {
        let rows = self.whole.filter(|_| self.staged.is_none())?;
        // Behind the last keys are those of the next head, in most caches, or nobody's.
        Some(PrefetchStream::ahead(rows, self.row_bytes))
    }

    /// Prefetches the first rows of `keys` into the first-level cache. Kept out of line, so that
    /// the code exists once for each instruction set.
    #[inline(never)]
    fn prefetch_first<S: Isa>(&self, s: S, keys: &Range<usize>) {
        if self.staged.is_some() {
            return;
        }
        if let Some(Run { keys, rows, .. }) = self.first_run(keys) {
            prefetch_rows(
                s,
                rows.skip(keys.start),
                self.tuning.prefetch_first.min(keys.len()),
                self.row_bytes,
            );
        }
    }

    /// Writes the factors of rows with scales of their own, and stages rows that are read several
    /// times. `keys` are some keys of this block.
    ///
    /// # Safety
    /// The arrays of the block have room for its keys (I5).
    #[inline(always)]
    unsafe fn prepare<S: Isa>(&self, s: S, keys: &Range<usize>) {
        // SAFETY: I5: the arrays are the caller's.
        unsafe {
            if self.staged.is_some() && self.is_staged_at_once {
                self.runs(keys.clone()).for_each(|run| self.stage(s.core(), &run));
            }
            if self.scales.is_some() {
                self.prepare_scales(S::LANES, keys);
            }
        }
    }

    /// Converts or copies the rows of a run. Kept out of line: it is rare.
    ///
    /// # Safety
    /// The arrays of the block have room for the run (I5).
    #[inline(never)]
    unsafe fn stage<S: Isa>(&self, s: S, run: &Run) {
        let keys = self.start + run.keys.start..self.start + run.keys.end;
        // Row n is that of key n of the block.
        let to = |key: usize| run.rows.skip(key - self.start).base.cast_mut();
        if self.staging == Staging::Copied {
            // Scales of rows are applied later, as where rows are read in place: the bits are the
            // same.
            s.core().enter(CopyRows { block: self, keys, to: to(self.start) });
            return;
        }
        if const { S::REPACKS }
            && let Some(scales) = self.block_scales
        {
            // SAFETY: I5: there is room for the run (caller).
            unsafe { self.repack(s, run, scales) };
            return;
        }
        let blocks = self.dim / Dtype::Q8_0.block();
        if let Some(minima) = self.minima {
            // SAFETY: I5: there is room for those of the block (caller).
            unsafe { minima.begin(S::LANES, blocks, &run.keys) };
        }
        let mut pages = self.pages_ahead(keys.clone());
        for chunk in self.chunks(keys) {
            self.prefetch(s, pages.next());
            let (source, n, key) = (self.source(&chunk), chunk.keys.len(), chunk.keys.start);
            // SAFETY: I2: the sequence has the rows `keys`; I5: there is room for those of a run,
            // `staged_stride` bytes each, and for their minima (caller).
            unsafe {
                if self.staging == Staging::Converted {
                    self.in_parts(s, key, n, &mut |i, n| {
                        convert::convert(s, source.skip(i), n, self.dim, to(key + i));
                    });
                } else {
                    let rows = Rows { base: to(key), stride: self.staged_stride };
                    let minima = self.minima.map(|minima| (minima, key - self.start));
                    let n = (n, self.rows_ahead(key));
                    let from = (source.rows(), source.dtype(), self.which == V);
                    unpack::unpack(s, from, n, self.dim, rows, minima);
                }
            }
        }
    }

    /// Repacks the rows of a run: as many keys at a time as a vector has lanes, wherever they lie.
    ///
    /// # Safety
    /// The arrays of the block have room for the run (I5).
    unsafe fn repack<S: Isa>(&self, s: S, run: &Run, scales: OfBlocks) {
        let keys = self.start + run.keys.start..self.start + run.keys.end;
        let ahead = self.rows_ahead(keys.start);
        let mut group = Group {
            rows: [ptr::null(); MAX_LANES],
            dtype: self.view.layout().dtype,
            is_v: self.which == V,
            dim: self.dim,
            to: ptr::null_mut(),
            key: 0,
            scales,
            minima: self.minima,
            next: PrefetchStream::NOTHING,
            prefetched: 0,
        };
        let mut pages = self.pages_ahead(keys.clone());
        for chunk in self.chunks(keys) {
            self.prefetch(s, pages.next());
            let mut row = self.rows(&chunk);
            let end = chunk.keys.end - self.start;
            let mut key = chunk.keys.start - self.start;
            while key < end {
                let lane = key % S::LANES;
                let n = (S::LANES - lane).min(end - key);
                if lane == 0 || key == run.keys.start {
                    // Lanes of keys that are not of the run have a row that is.
                    if n < S::LANES {
                        group.rows = [row.base; MAX_LANES];
                    }
                    group.key = key - lane;
                    group.to = run.rows.skip(group.key).base.cast_mut();
                    // Without pages a group has one chunk.
                    group.prefetched = ahead.len().saturating_sub(key - run.keys.start).min(n);
                    group.next = PrefetchStream::rows(row.skip(ahead.start), self.row_bytes);
                }
                for (i, to) in group.rows[lane..lane + n].iter_mut().enumerate() {
                    *to = row.skip(i).base;
                }
                row = row.skip(n);
                key += n;
                if lane + n == S::LANES || key == run.keys.end {
                    // SAFETY: I2: rows of the sequence; I5: there is room for those of a run, and
                    // for their scales and minima (caller).
                    unsafe { repacked::repack(s, &group) };
                }
            }
        }
    }

    /// Calls `f` for a few of `n` rows at a time: how many came before, and how many they are.
    /// Between these, rows are prefetched that come next, as nothing reads them meanwhile.
    fn in_parts<S: Isa>(&self, s: S, key: usize, n: usize, f: &mut dyn FnMut(usize, usize)) {
        let ahead = self.rows_ahead(key);
        let here = self.chunks(key..key + 1).next().map(|chunk| self.rows(&chunk));
        let stream = here.map(|rows| PrefetchStream::rows(rows.skip(ahead.start), self.row_bytes));
        for first in (0..n).step_by(ROWS_OF_PART) {
            let here = ROWS_OF_PART.min(n - first);
            if let Some(stream) = stream {
                stream.prefetch_lines(s, first, here.min(ahead.len().saturating_sub(first)));
            }
            f(first, here);
        }
    }

    /// Rows to prefetch while those from `key` on are converted or unpacked, counted from that one:
    /// those of runs that come next, without pages and where their elements lie side by side.
    fn rows_ahead(&self, key: usize) -> Range<usize> {
        if self.work.problem().shape().page.is_some() || self.view.layout().is_strided() {
            return 0..0;
        }
        // Two runs, where one is multiplied soon.
        let runs = if self.is_staged_at_once { 1 } else { 2 };
        let left = self.work.sequence().len_kv.saturating_sub(key);
        let first = left.min(runs * self.staged_keys);
        first..left
    }

    /// Writes the factors of rows with scales of their own, in whole vectors of `lanes`. Kept out
    /// of line, so that the code exists once.
    ///
    /// # Safety
    /// The arrays of the block have room for its keys (I5).
    #[inline(never)]
    unsafe fn prepare_scales(&self, lanes: usize, keys: &Range<usize>) {
        let keys = self.start + keys.start..self.start + keys.end;
        let Some(scales) = self.scales else { return };
        // Whole vectors are read later; what stands at their ends only has to be initialised.
        for key in [keys.start, keys.end - 1] {
            let at = key - self.start;
            for lane in 0..lanes {
                // SAFETY: I5: `buffers` made room for whole vectors of the block, one of which has
                // `at`.
                unsafe {
                    scales.add(at - at % lanes + lane).write(1.0);
                    if let Some(zeros) = self.zeros {
                        zeros.add(at - at % lanes + lane).write(0.0);
                    }
                }
            }
        }
        for chunk in self.chunks(keys) {
            let source = self.source(&chunk);
            for (i, key) in chunk.keys.enumerate() {
                let mut of_row = source.skip(i).scale_and_zero();
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

/// Copies the rows of `keys` as they are stored. [`KvBlock::stage`] alone makes one, whose contract
/// covers what it points to: with small pages a row is copied in the time of a call.
struct CopyRows<'k, 'a> {
    block: &'k KvBlock<'a>,
    keys: Range<usize>,
    /// Where the row of the block's first key would go.
    to: *mut u8,
}

impl Body for CopyRows<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let CopyRows { block, keys, to } = self;
        let problem = block.work.problem();
        let is_gathered = problem.shape().gathers(block.which);
        if let Some((list, at)) = problem.single_keys(block.work.sequence()).filter(|_| !is_gathered) {
            // One row after the other: to make chunks of them takes longer than to copy them.
            let all = block.rows(&Chunk { keys: 0..0, at });
            let row = |key: usize| all.skip(list.get(key));
            let (ahead, last) = (2 * block.prefetch_page, list.count() - 1);
            for key in keys {
                block.prefetch_chunk(s, row((key + ahead).min(last)), 1);
                let to = to.wrapping_add((key - block.start) * block.staged_stride);
                // SAFETY: I2: the sequence has the rows `keys`; I5: there is room for those of a
                // run, `staged_stride` bytes each.
                unsafe { copy_row(s, row(key).base, to, block.row_bytes) };
            }
            return;
        }
        let mut ahead = block.pages_ahead(keys.clone());
        for chunk in block.chunks(keys) {
            block.prefetch(s, ahead.next());
            let rows = block.rows(&chunk);
            let first = chunk.keys.start - block.start;
            if is_gathered {
                let (source, n, stride) = (block.source(&chunk), chunk.keys.len(), block.staged_stride);
                let mut gather = |i: usize, n: usize| {
                    let to = to.wrapping_add((first + i) * stride);
                    // SAFETY: I2: the sequence has the rows `keys`; I5: there is room for those of
                    // a run, in whole cache lines.
                    unsafe { gather::gather(s, source.skip(i), n, block.dim, to, stride) };
                };
                match block.view.layout().is_strided() {
                    true => gather(0, n),
                    false => block.in_parts(s, chunk.keys.start, n, &mut gather),
                }
                continue;
            }
            for i in 0..chunk.keys.len() {
                let to = to.wrapping_add((first + i) * block.staged_stride);
                // SAFETY: I2: the sequence has the rows `keys`; I5: there is room for those of a
                // run, `staged_stride` bytes each.
                unsafe { copy_row(s, rows.skip(i).base, to, block.row_bytes) };
            }
        }
    }
}

/// Copies a row of `bytes` bytes in vectors, the last of which may overlap the one before.
///
/// # Safety
/// `from` has so many bytes, and `to` has room for them.
#[inline(always)]
unsafe fn copy_row<S: Isa>(s: S, from: *const u8, to: *mut u8, bytes: usize) {
    let vector = 4 * S::LANES;
    // SAFETY: I7: bytes below `bytes` (caller).
    unsafe {
        if bytes < vector {
            copy_short(from, to, bytes);
            return;
        }
        let last = bytes - vector;
        let copy = |at: usize| s.store_i32(to.add(at).cast(), s.load_i32(from.add(at).cast()));
        let mut at = 0;
        while at + 4 * vector <= bytes {
            copy(at);
            copy(at + vector);
            copy(at + 2 * vector);
            copy(at + 3 * vector);
            at += 4 * vector;
        }
        while at < last {
            copy(at);
            at += vector;
        }
        if at < bytes {
            copy(last);
        }
    }
}

/// Copies less than a vector. Kept out of line: LLVM lowers it to memcpy, and the call would spill
/// the loop's registers.
///
/// # Safety
/// `from` has so many bytes, and `to` has room for them.
#[inline(never)]
unsafe fn copy_short(from: *const u8, to: *mut u8, bytes: usize) {
    // SAFETY: so many bytes (caller); scratch memory is no part of K or V.
    unsafe { ptr::copy_nonoverlapping(from, to, bytes) };
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
    pub(super) next: Range<usize>,
    k: KvBlock<'a>,
    v: KvBlock<'a>,
    /// Whether it is the first block of its split: the output of the state is not initialised yet.
    pub(super) is_first: bool,
    /// Whether loops prefetch what they read some keys later: what they read is in no cache.
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
    /// row, and whether they change no score there. `read_as` is the only type that the compute
    /// type reads, if there is one. Kept out of line, so that the code exists once.
    #[inline(never)]
    pub(super) fn new(
        work: &'a SplitWork<'a>,
        tiles: TileSizes,
        arrays: &BlockArrays,
        read_as: Option<Dtype>,
        reading: Reading,
        keys: &Range<usize>,
        next: &Range<usize>,
        unmasked: Option<(&'a [Seen], bool)>,
        is_first: bool,
        prefetches: bool,
    ) -> Block<'a> {
        let start = keys.start - keys.start % tiles.kv;
        let from_start = |keys: &Range<usize>| keys.start - start..keys.end - start;
        let kv_head = work.problem().kv_head(work.heads.start);
        let k = KvBlock::new(work, K, kv_head, start, tiles, arrays, read_as, reading);
        let v = KvBlock::new(work, V, kv_head, start, tiles, arrays, read_as, reading);
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
        let problem = work.problem();
        let mut is_plain = match unmasked {
            Some((_, is_plain)) => is_plain,
            None => work.sequence().is_of_columns() || !problem.logits().has_masks(),
        };
        is_plain &= problem.columns_in(work.sequence(), work.heads.start, keys).is_none();
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
            is_plain,
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

    /// The rows of K that some query row sees as one run, if they are one.
    #[inline(always)]
    pub(super) fn k_run(&self) -> Option<Run> {
        self.k.whole.map(|rows| self.k.run(self.keys.clone(), rows))
    }

    /// The rows of V that some query row sees as one run, if they are one.
    #[inline(always)]
    pub(super) fn v_run(&self) -> Option<Run> {
        self.v.whole.map(|rows| self.v.run(self.keys.clone(), rows))
    }

    /// Rows of K or V (`which`) where they lie in memory, that of key 0 of the block first, if they
    /// lie behind one another there.
    pub(super) fn rows_in_place(&self, which: usize) -> Option<Rows> {
        let KvBlock { whole, staged, .. } = if which == V { &self.v } else { &self.k };
        whole.filter(|_| staged.is_none())
    }

    /// Bytes of a row of K or V (`which`) in memory.
    pub(super) fn row_bytes(&self, which: usize) -> usize {
        if which == V { self.v.row_bytes } else { self.k.row_bytes }
    }

    /// The runs of the rows of K of `keys`.
    ///
    /// # Safety
    /// The arrays that the block was made with have room for it (I5), and a run is not used after
    /// the next.
    #[inline(always)]
    pub(super) unsafe fn k_runs<S: Isa>(&self, s: S, keys: Range<usize>) -> impl Iterator<Item = Run> {
        // SAFETY: I5: the arrays are the caller's.
        unsafe { self.k.runs_to_read(s, keys) }
    }

    /// Prefetches the rows of `keys`, of K or V (`which`), into the second-level cache; nothing if
    /// the block's rows do not lie behind one another. Kept out of line, so that the code exists
    /// once for each instruction set.
    #[inline(never)]
    pub(super) fn prefetch<S: Isa>(&self, s: S, which: usize, keys: Range<usize>) {
        let KvBlock { whole, row_bytes, .. } = if which == V { &self.v } else { &self.k };
        if let Some(rows) = *whole {
            let stream = PrefetchStream::rows(rows, *row_bytes);
            stream.prefetch(s, keys.start, keys.len());
        }
    }

    /// The first `n` keys of the next block that some row sees; fewer if it has fewer.
    pub(super) fn first_of_next(&self, n: usize) -> Range<usize> {
        let Range { start, end } = self.next;
        start..end.min(start + n).max(start)
    }

    /// The runs of the rows of V of `keys`.
    ///
    /// # Safety
    /// As for [`Block::k_runs`].
    #[inline(always)]
    pub(super) unsafe fn v_runs<S: Isa>(&self, s: S, keys: Range<usize>) -> impl Iterator<Item = Run> {
        // SAFETY: I5: the arrays are the caller's.
        unsafe { self.v.runs_to_read(s, keys) }
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

    /// The stored row of V of `key`, without scales, until the next is asked for or staged.
    ///
    /// # Safety
    /// The arrays that the block was made with have room for it (I5), and it has been prepared. No
    /// run of V is in use.
    #[inline(always)]
    pub(super) unsafe fn raw_value(&self, key: usize) -> *const u8 {
        let (work, v) = (self.work, &self.v);
        let source = key_rows(work.problem(), v.view, work.sequence(), v.kv_head, self.start + key);
        match (v.staged, v.whole) {
            (Some(_), Some(rows)) => rows.skip(key).base,
            (Some(to), None) if work.problem().shape().gathers(V) => {
                // SAFETY: I2: the sequence has the key; I5: there is room for a row.
                unsafe { gather::gather_row(source, v.dim, to) };
                to
            }
            _ => source.rows().base,
        }
    }

    /// Prefetches the stored row of V of `key`, where rows are read in place.
    #[inline(always)]
    pub(super) fn prefetch_value<S: Isa>(&self, s: S, key: usize) {
        let (work, v) = (self.work, &self.v);
        if v.staged.is_none() {
            let source = key_rows(work.problem(), v.view, work.sequence(), v.kv_head, self.start + key);
            prefetch_rows(s, source.rows(), 1, v.row_bytes);
        }
    }

    /// A zero for each key, whose product with the key's weight is to be subtracted.
    #[inline(always)]
    pub(super) fn v_zeros(&self) -> Option<*const f32> {
        self.v.zeros.map(|zeros| zeros.cast_const())
    }

    /// What to prefetch while a run of K is multiplied, if a stream is prefetched at all: K of some
    /// keys later, also of the next block. Where rows do not lie behind one another, V of the same
    /// keys.
    #[inline(always)]
    pub(super) fn stream_with_k(&self, k: &Run) -> PrefetchStream {
        if !self.prefetches {
            return PrefetchStream::NOTHING;
        }
        self.k.stream_ahead().unwrap_or_else(|| self.v.stream(&k.keys, 0).unless_at(k.rows))
    }

    /// What to prefetch while a run of V is multiplied, if a stream is prefetched at all: V of some
    /// keys later. Where rows do not lie behind one another, K of the next block.
    #[inline(always)]
    pub(super) fn stream_with_v(&self, v: &Run) -> PrefetchStream {
        if !self.prefetches {
            return PrefetchStream::NOTHING;
        }
        if let Some(stream) = self.v.stream_ahead() {
            return stream;
        }
        let distance = self.next.start.saturating_sub(self.keys.start);
        let keys = clip(v.keys.start + distance..v.keys.end + distance, &self.next);
        self.k.stream(&keys, distance)
    }

    /// Prefetches the first rows that are needed next: of V of this block, and of K of the next
    /// one.
    #[inline(always)]
    pub(super) fn prefetch_first<S: Isa>(&self, s: S) {
        self.v.prefetch_first(s.core(), &self.keys);
        if !self.next.is_empty() {
            self.k.prefetch_first(s.core(), &self.next);
        }
    }

    /// Writes the factors of rows with scales of their own, and stages rows that are read several
    /// times.
    ///
    /// # Safety
    /// The arrays that the block was made with have room for it (I5).
    #[inline(always)]
    pub(super) unsafe fn prepare<S: Isa>(&self, s: S) {
        // SAFETY: I5: the arrays are the caller's.
        unsafe {
            self.k.prepare(s, &self.keys);
            self.v.prepare(s, &self.keys);
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
