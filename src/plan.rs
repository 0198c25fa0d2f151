//! HOW a problem is computed: kernel, tile sizes, threads. A pure function of the problem, the
//! machine and the number of threads, computed once; everything below only reads it.
//!
//! Results depend on the kernel, on the path, on the keys of a block and on how keys are split, and
//! on nothing else here: query tiles and threads can be chosen freely without changing a bit.

use std::fmt;

use crate::dtype::Dtype;
use crate::error::Error;
use crate::kernel::{Kernel, Path};
use crate::machine::Machine;
use crate::problem::{Accuracy, Shape};
use crate::tuning::Tuning;
use crate::work::Partition;
use crate::work::query_tiles::{self, DecodeRule, TileSizes, Way, WayRule};
use crate::work::split_kv;
use crate::workspace;

/// How to compute a problem.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Instruction set and compute types.
    pub kernel: &'static dyn Kernel,
    /// The numbers that the machine is tuned with.
    pub tuning: &'static Tuning,
    /// The path that computes the longest sequence.
    pub path: Path,
    /// Tile sizes of that sequence.
    pub tiles: TileSizes,
    /// Storage types of K and V.
    kv: [Dtype; 2],
    /// Whether K, and V, could be read in place.
    in_place: [bool; 2],
    /// Whether elements of their rows lie apart.
    strided: [bool; 2],
    /// How the work is cut, whatever way each sequence takes.
    pub partition: Partition,
    /// Work items of the longest sequence's way: query tiles, or GQA groups.
    pub work_items: usize,
    /// Threads that work at the same time; at least 1.
    pub threads: usize,
    /// How many of them, besides the calling one, are worth waking if they sleep.
    pub wake: usize,
    /// Scratch memory.
    pub memory: workspace::Size,
}

/// What programs are told of a plan: for tuners, and for logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlanSummary {
    /// The instruction set whose kernel computes, such as "avx512bf16" or "scalar".
    pub isa: &'static str,
    /// What is multiplied: "f32", "bf16", "f16", "i16" or "i8".
    pub compute: &'static str,
    /// The path of the longest sequence; others of a ragged batch may take the other one.
    pub path: Path,
    /// Threads that compute at the same time, at most as many as there are.
    pub threads: usize,
    /// How many of them the problem is worth waking for if they sleep.
    pub threads_awake: usize,
    /// Query heads that share a tile.
    pub tile_heads: usize,
    /// Kv heads that decode takes in turns, some keys at a time.
    pub tile_kv_heads: usize,
    /// Query rows of a tile, those of all its heads together.
    pub tile_rows: usize,
    /// Keys of a tile.
    pub tile_keys: usize,
    /// Tiles, or, where keys are split, groups of heads. 0 = there is nothing to compute.
    pub work_items: usize,
    /// Ranges into which the keys of a work item are cut for the threads; 1 where keys are not
    /// split.
    pub key_ranges: usize,
    /// Whether K, and V, go through scratch memory, some keys at a time: gathered, copied,
    /// converted or rearranged.
    pub staged: [bool; 2],
    /// Bytes of scratch memory of a thread.
    pub thread_bytes: usize,
}

/// Where all threads together need at most so many bytes of scratch memory, one thread alone does
/// not need more than an address space has, however much larger its region is.
const SAFE_SCRATCH: usize = 1 << 30;

impl Plan {
    /// The plan for problems of a shape on `machine` with at most `threads` threads (at least 1).
    pub fn new(
        shape: &Shape,
        kernel: &'static dyn Kernel,
        machine: Machine,
        threads: usize,
    ) -> Result<Plan, Error> {
        Planner { shape, kernel, machine, is_in_parts: false }.plan_by_rows(threads)
    }

    /// [`Plan::new`] for a caller whose threads, so many, each compute a part: they come whether
    /// there is much to do or not.
    pub fn in_parts(
        shape: &Shape,
        kernel: &'static dyn Kernel,
        machine: Machine,
        parts: usize,
    ) -> Result<Plan, Error> {
        Planner { shape, kernel, machine, is_in_parts: true }.plan_by_rows(parts)
    }

    /// [`Plan::new`] with all sequences computed by a path of the caller's choice.
    pub fn on(
        path: Path,
        shape: &Shape,
        kernel: &'static dyn Kernel,
        machine: Machine,
        threads: usize,
    ) -> Result<Plan, Error> {
        let planner = Planner { shape, kernel, machine, is_in_parts: false };
        let rule = match path {
            Path::Decode => WayRule::Always(Way::Decode),
            Path::Prefill => WayRule::ByRows { split_rows: planner.split_rows(), decode: None },
        };
        planner.plan(rule, threads)
    }

    /// What programs are told of it.
    pub fn summary(&self) -> PlanSummary {
        let Plan { kernel, path, tiles, work_items, threads, wake, memory, .. } = *self;
        PlanSummary {
            // Names are ASCII.
            isa: kernel.isa().to_str().unwrap_or_default(),
            compute: kernel.compute_type(path),
            path,
            threads,
            threads_awake: wake + 1,
            tile_heads: tiles.heads,
            tile_kv_heads: tiles.kv_heads,
            tile_rows: if tiles.splits.is_some() { tiles.together().q } else { tiles.q },
            tile_keys: tiles.kv,
            work_items,
            key_ranges: if tiles.splits.is_some() { self.partition.ranges } else { 1 },
            staged: tiles.staged,
            thread_bytes: memory.bytes_per_thread,
        }
    }

    /// This plan for one thread, where memory is short.
    pub fn alone(&self) -> Plan {
        let partition = Partition { ranges: 1, ..self.partition };
        let memory = workspace::Size::of_one(self.memory.bytes_per_thread);
        Plan { partition, threads: 1, wake: 0, memory, ..self.clone() }
    }
}

/// All that a plan is made from, but for the number of threads.
#[derive(Clone, Copy)]
struct Planner<'s> {
    shape: &'s Shape,
    kernel: &'static dyn Kernel,
    machine: Machine,
    /// Whether threads are those of a caller that computes in parts.
    is_in_parts: bool,
}

impl Planner<'_> {
    /// The plan whose sequences take the way that their number of query rows says.
    fn plan_by_rows(self, threads: usize) -> Result<Plan, Error> {
        let decode = Some(self.decode_rule());
        self.plan(WayRule::ByRows { split_rows: self.split_rows(), decode }, threads)
    }

    fn plan(self, rule: WayRule, threads: usize) -> Result<Plan, Error> {
        let plan = self.plan_exactly(rule, threads);
        if threads == 1 || matches!(&plan, Ok(plan) if plan.memory.bytes()? <= SAFE_SCRATCH) {
            return plan;
        }
        // A problem is refused if one thread cannot compute it, whatever the number of threads, and
        // for no other reason: a description that has been checked stays right with more threads.
        let alone = self.plan_exactly(rule, 1)?;
        Ok(plan.unwrap_or(alone))
    }

    /// The plan for these threads, even if they need more memory than any machine has.
    fn plan_exactly(self, rule: WayRule, threads: usize) -> Result<Plan, Error> {
        let Planner { shape, kernel, machine, is_in_parts } = self;
        let tuning = machine.tuning;
        let way_of = |keys: usize| rule.way(shape.queries[2], || keys);
        let way = way_of(shape.len_kv);
        let path = path_of(way);
        // Ways differ only between sequences of a ragged batch, and where some may have few keys:
        // elsewhere no sequence need be looked at.
        let is_mixed = shape.ragged.is_some() || (shape.has_lengths && way_of(0) != way);
        let rule = if is_mixed { rule } else { WayRule::Always(way) };
        let takes = |other: Way| match rule {
            WayRule::Always(way) => way == other,
            WayRule::ByRows { decode, .. } if other == Way::Decode => decode.is_some(),
            WayRule::ByRows { split_rows, .. } => other == Way::Tiles || split_rows > 0,
        };
        let decode = self.tiles(Way::Decode, threads);
        let split_tiles = if takes(Way::SplitTiles) { self.tiles(Way::SplitTiles, threads) } else { decode };
        let split = if way == Way::Decode { decode } else { split_tiles };
        let groups = if way == Way::Tiles { 0 } else { split_kv::group_count(shape, split) };
        let worth = &tuning.threads;
        let max_threads = threads;
        let awake = match is_in_parts {
            true => [worth.min_work_of_part, worth.min_bytes_of_part],
            false => [worth.min_work, worth.min_bytes],
        };
        let [threads, worth_waking] = [awake, [worth.min_work_asleep, worth.min_bytes_asleep]]
            .map(|least| max_threads.clamp(1, self.threads_worth(least, way, groups)));
        let prefill = if takes(Way::Tiles) { self.tiles(Way::Tiles, threads) } else { split };
        let (tiles, work_items, max_threads) = match way {
            Way::Tiles => {
                let count = query_tiles::count(shape, prefill.heads, prefill.q);
                (prefill, count, count)
            }
            _ if shape.queries[2] == 0 => (split, 0, 0),
            _ => (split, groups, split_kv::max_threads(shape, split)),
        };
        // The lengths of a ragged batch do not count: they change from call to call, and scratch
        // memory would with them.
        let threads = if shape.ragged.is_some() { threads } else { threads.min(max_threads.max(1)) };
        // As many ranges for each thread as are wanted, or as their states have room.
        let mut each = (worth.max_ranges / threads).clamp(1, worth.items_per_thread);
        let (partition, memory) = loop {
            let ranges = match threads {
                1 => 1,
                _ => split_kv::range_count(shape, split, threads, each),
            };
            let partition = Partition { rule, prefill, split_tiles, decode, ranges };
            let memory = self.memory(&partition, threads, takes)?;
            let fits = memory.states.total().is_some_and(|bytes| bytes / threads <= worth.state_bytes);
            if fits || each == 1 || threads == 1 {
                break (partition, memory);
            }
            each -= 1;
        };
        memory.bytes()?;
        Ok(Plan {
            kernel,
            tuning,
            path,
            tiles,
            kv: shape.storage.stored,
            in_place: kernel.reads_kv(path, shape),
            strided: shape.strided_kv,
            partition,
            work_items,
            threads,
            wake: worth_waking.min(threads) - 1,
            memory,
        })
    }

    /// Scratch memory of a partition, some of whose ways are taken.
    fn memory(
        self,
        partition: &Partition,
        threads: usize,
        takes: impl Fn(Way) -> bool,
    ) -> Result<workspace::Size, Error> {
        let Planner { shape, kernel, .. } = self;
        let mut memory = workspace::Size { threads, ..workspace::Size::default() };
        memory.states.ranges = partition.ranges;
        for way in [Way::Tiles, Way::SplitTiles, Way::Decode].into_iter().filter(|&way| takes(way)) {
            let path = path_of(way);
            let tiles = partition.tiles(way);
            let whole = if way == Way::SplitTiles { tiles.together() } else { tiles };
            let bytes = kernel.scratch_bytes(path, shape, whole).ok_or(Error::Overflow)?;
            memory.bytes_per_thread = memory.bytes_per_thread.max(bytes);
            if way != Way::Tiles {
                let states = &mut memory.states;
                let bytes = kernel.state_bytes(path, shape, whole).ok_or(Error::Overflow)?;
                let per_range = split_kv::max_states(shape, tiles, partition.ranges);
                states.per_range = states.per_range.max(per_range);
                states.bytes = states.bytes.max(bytes);
            }
        }
        Ok(memory)
    }

    /// Query rows up to which the keys of prefill's tiles are split, so that each thread has some.
    /// Where all keys are those of one split, tiles over all keys give the same bits.
    fn split_rows(self) -> usize {
        let tuning = self.machine.tuning;
        let is_one = self.shape.len_kv <= tuning.prefill.splits.min_split_keys;
        if is_one { 0 } else { tuning.prefill.grouped_rows }
    }

    /// Which query rows are too few for prefill.
    fn decode_rule(self) -> DecodeRule {
        let Planner { shape, kernel, machine, .. } = self;
        let tuning = &machine.tuning.decode;
        let border = if kernel.lanes() < 16 { &tuning.border_short } else { &tuning.border };
        let [k, v] = [1, 2].map(|i| match shape.storage.dtypes[i] {
            Dtype::F32 => border.f32,
            Dtype::I8 if kernel.accuracy() == Accuracy::Fast => border.fast,
            Dtype::I8 => border.integers,
            dtype if dtype.has_blocks() && kernel.repacks() => border.repacked,
            dtype if dtype.has_blocks() => border.blocks,
            _ => border.bits16,
        });
        DecodeRule {
            lanes: kernel.lanes(),
            too_few: std::array::from_fn(|i| k.rows[i].max(v.rows[i])),
            // Measured with 8 and 16 lanes. Four are filled by a token of grouped heads.
            row_keys: if kernel.lanes() < 8 { 0 } else { k.row_keys.min(v.row_keys) },
            heads: shape.heads_of_group(),
            of_head: border.of_head,
        }
    }

    /// Tile sizes of a way.
    fn tiles(self, way: Way, threads: usize) -> TileSizes {
        let (shape, tuning) = (self.shape, self.machine.tuning);
        let path = path_of(way);
        let [heads, q] = match way {
            Way::Tiles => {
                let together = self.heads_together(threads);
                [together, self.tile_rows(together, threads)]
            }
            Way::SplitTiles => {
                let heads = shape.heads_of_group();
                let most = if threads > 1 { tuning.prefill.split_rows } else { usize::MAX };
                split_kv::group_size(shape, heads, self.tile_rows(heads, 1).min(most))
            }
            Way::Decode => {
                let heads = shape.heads_alike();
                split_kv::group_size(shape, heads, tuning.decode.group_rows)
            }
        };
        let kv = self.block_keys(path);
        let Machine { l3, tuning, .. } = self.machine;
        let prefetch_stream_above = match tuning.decode.prefetches_stream {
            true => l3 / tuning.decode.l3_share_stream,
            false => usize::MAX,
        };
        let splits = match way {
            Way::Tiles => None,
            Way::SplitTiles => Some(tuning.prefill.splits),
            Way::Decode => Some(tuning.decode.splits),
        };
        let lines = if way == Way::SplitTiles { q.saturating_mul(heads) } else { q };
        let staged = self.staged(path, lines, kv);
        let kv_heads = match way {
            Way::Decode if staged == [false; 2] && shape.columns.is_none() => {
                self.kv_heads_together([heads, q], threads)
            }
            _ => 1,
        };
        TileSizes { heads, kv_heads, q, kv, staged, splits, prefetch_stream_above, tuning }
    }

    /// How many threads the work is enough for, if each of them takes at least so many
    /// multiply-adds or, where few query rows share what is read, reads at least so many bytes.
    fn threads_worth(self, [min_work, min_bytes]: [usize; 2], way: Way, groups: usize) -> usize {
        let Planner { shape, .. } = self;
        let [batch, heads, rows] = shape.queries.map(|n| n as f64);
        let keys = shape.len_kv as f64;
        let mut work = batch * heads * rows * keys * (shape.dim_qk as f64 + shape.dim_v as f64);
        work /= min_work as f64;
        if way != Way::Tiles {
            let [k, v] = shape.row_bytes_kv();
            work += groups as f64 * keys * (k as f64 + v as f64) / min_bytes as f64;
        }
        // `as` saturates; beyond that many threads other limits apply.
        (work as usize).max(1)
    }

    /// Keys of a block.
    fn block_keys(self, path: Path) -> usize {
        let Planner { shape, kernel, machine, .. } = self;
        let tuning = &machine.tuning.prefill;
        // Masks count keys in 32-bit lanes.
        let longest = shape.len_kv.clamp(1, i32::MAX as usize);
        let wanted = match (shape.block_kv, path) {
            // A block of a block-sparse mask is skipped as a whole.
            (0, _) if let Some(sparse) = shape.cell => {
                if sparse <= tuning.min_sparse_keys / 2 {
                    tuning.min_sparse_keys - tuning.min_sparse_keys % sparse
                } else if sparse <= tuning.block_keys / 2 {
                    // What is left of two of them is one range.
                    2 * sparse
                } else {
                    sparse.div_ceil(sparse.div_ceil(tuning.block_keys))
                }
            }
            // K and V are read once: the longer each run of rows, the less often the hardware
            // prefetcher has to find the next one.
            (0, Path::Decode) => machine.tuning.decode.block_keys,
            (0, Path::Prefill) => {
                let bytes_per_key = kernel.tile_rows() * 4;
                let share = if kernel.sums_integers() { tuning.l1_share_integers } else { tuning.l1_share };
                let [k, v] = shape.row_bytes_kv();
                let of_block = machine.l2.checked_div(tuning.l2_share_block).unwrap_or(usize::MAX);
                let of_l2 = of_block / k.saturating_add(v).max(1);
                let cached = (machine.l1d / share / bytes_per_key).min(of_l2);
                let keys = cached.clamp(tuning.min_block_keys, tuning.block_keys);
                // Whole register tiles: smaller ones for the rest would cost as much as whole ones.
                keys - keys % kernel.tile_keys()
            }
            (given, _) => given,
        };
        wanted.min(longest).min(kernel.max_keys(path))
    }

    /// Neighbouring query heads whose rows prefill takes as those of one: where each has few rows,
    /// they fill vectors together, and K and V are read once for all of them. As many as leave a
    /// tile to each thread. No bit depends on it.
    fn heads_together(self, threads: usize) -> usize {
        let Planner { shape, kernel, machine, .. } = self;
        let [batch, heads, len_q] = shape.queries;
        // How long the sequences of a ragged batch are, is not known here.
        if shape.ragged.is_none() && len_q > machine.tuning.prefill.grouped_rows {
            return 1;
        }
        let group = shape.heads_of_group();
        let tiles = |together: usize| {
            let of_heads = len_q.saturating_mul(together).div_ceil(kernel.tile_rows());
            batch.saturating_mul(heads / together).saturating_mul(of_heads)
        };
        let mut divisors = (1..=group).rev().filter(|&heads| group.is_multiple_of(heads));
        divisors.find(|&heads| threads == 1 || tiles(heads) >= threads).unwrap_or(1)
    }

    /// Kv heads that decode goes through together, of whose query heads it takes so many, with so
    /// many rows each: where neighbouring heads lie nearer to each other than neighbouring keys,
    /// and come from memory. No bit depends on it.
    fn kv_heads_together(self, [heads, q]: [usize; 2], threads: usize) -> usize {
        let Planner { shape, machine, .. } = self;
        let tuning = &machine.tuning.decode;
        let bytes = shape.row_bytes_kv();
        let is_token_first = |i: usize| {
            let [row, head] = [shape.strides_kv[i], shape.head_strides_kv[i]];
            bytes[i] <= head && head < row && head < 2 * bytes[i]
        };
        let row = bytes[0].saturating_add(bytes[1]).saturating_mul(shape.heads_kv);
        let all = row.saturating_mul(shape.len_kv).saturating_mul(shape.queries[0]);
        let takes_all_heads = heads == shape.queries[1] / shape.heads_kv;
        if all <= tuning.together_above || !takes_all_heads || !(is_token_first(0) && is_token_first(1)) {
            return 1;
        }
        let rows = heads.saturating_mul(q);
        let most = (tuning.together_rows / rows.max(1)).clamp(1, shape.heads_kv.min(split_kv::MAX_KV_HEADS));
        // Fewer, if threads would have nothing to do else.
        let splits = shape.len_kv.div_ceil(tuning.splits.min_split_keys).min(tuning.splits.max_splits);
        let groups = |kv_heads: usize| shape.queries[0].saturating_mul(shape.heads_kv.div_ceil(kv_heads));
        let is_enough =
            |kv_heads: &usize| threads == 1 || groups(*kv_heads).saturating_mul(splits) >= 2 * threads;
        (1..=most).rev().find(is_enough).unwrap_or(1)
    }

    /// Query rows of a tile of prefill, of so many heads together.
    fn tile_rows(self, together: usize, threads: usize) -> usize {
        let Planner { shape, kernel, machine, .. } = self;
        let tuning = &machine.tuning.prefill;
        let [batch, heads, len_q] = shape.queries;
        let (heads, len_q) = (heads / together, len_q.saturating_mul(together));
        let given = shape.block_q;
        if given != 0 {
            return given.min(len_q.max(1));
        }
        let tile = kernel.tile_rows();
        let bytes_per_row = shape.dim_qk.saturating_add(shape.dim_v).saturating_mul(4);
        let [k, v] = shape.row_bytes_kv();
        let bytes_per_key = k.saturating_add(v);
        let is_far = bytes_per_key.saturating_mul(shape.len_kv) >= machine.l3 / tuning.l3_share_far;
        let is_packed = self.staged(Path::Prefill, usize::MAX, usize::MAX) != [false; 2];
        let (max_rows, share) = if is_packed {
            (tuning.tile_rows_packed, tuning.l2_share_tall)
        } else if is_far {
            (tuning.tile_rows_far, tuning.l2_share_tall)
        } else {
            (tuning.tile_rows, tuning.l2_share)
        };
        // Queries and output of the tile stay in this share of L2, next to K and V.
        let cached = (machine.l2 / share / bytes_per_row).clamp(1, max_rows);
        let mut rows = cached.next_multiple_of(tile);
        if threads > 1 {
            let items = threads * machine.tuning.threads.items_per_thread;
            let per_head = items.div_ceil(batch.saturating_mul(heads).max(1));
            rows = rows.min(len_q.div_ceil(per_head).next_multiple_of(tile));
        }
        rows.min(len_q.max(1))
    }

    /// Whether K, and V, go through scratch memory, if `rows` query rows use each block of `kv`
    /// keys.
    fn staged(self, path: Path, rows: usize, kv: usize) -> [bool; 2] {
        let Planner { shape, kernel, machine, .. } = self;
        let tuning = &machine.tuning.prefill;
        let is_copied = match path {
            // Prefill reads rows at one stride, which pages do not have. Rows that alias in L1 are
            // copied where enough query rows use them to hide it.
            Path::Prefill => {
                let row_bytes = shape.row_bytes_kv();
                let aliases = |i: usize| {
                    let (stride, is_dense) = (shape.strides_kv[i], shape.strides_kv[i] == row_bytes[i]);
                    let from = if is_dense { tuning.copy_dense_from } else { tuning.copy_aliasing_from };
                    stride != 0 && stride.is_multiple_of(tuning.aliasing_stride) && rows >= from
                };
                shape.page.is_some() || aliases(0) || aliases(1)
            }
            // Decode reads whole vectors of keys, counted from the start of the block, from one
            // page.
            Path::Decode => shape.page.is_some_and(|page| {
                let is_whole = |keys: usize| keys.is_multiple_of(kernel.lanes());
                !is_whole(page) || (kv < shape.len_kv && !is_whole(kv))
            }),
        };
        let (in_place, strided) = (kernel.reads_kv(path, shape), shape.strided_kv);
        [0, 1].map(|i| is_copied || strided[i] || !in_place[i])
    }
}

/// The path that computes sequences of a way.
fn path_of(way: Way) -> Path {
    match way {
        Way::Tiles | Way::SplitTiles => Path::Prefill,
        Way::Decode => Path::Decode,
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { kernel, path, tiles, work_items, threads, wake, memory, kv, in_place, .. } = self;
        let compute_type = kernel.compute_type(*path);
        let TileSizes { heads, kv_heads, q, kv: block, splits, .. } = tiles;
        let isa = kernel.isa().to_str().map_err(|_| fmt::Error)?;
        let ranges = self.partition.ranges;
        let s = |n| if n == 1 { "" } else { "s" };
        write!(f, "{isa} {compute_type}, ")?;
        match path {
            Path::Prefill => {
                write!(f, "prefill (lanes are query rows), ")?;
                if *heads > 1 {
                    write!(f, "{heads} heads together, ")?;
                }
                let rows = if splits.is_some() { heads * q } else { *q };
                write!(f, "{rows} x {block} tiles, {work_items} ")?;
                match splits.is_some() {
                    true => {
                        write!(f, "group{} of heads, keys in {ranges} range{}, ", s(*work_items), s(ranges))?
                    }
                    false => write!(f, "of them, ")?,
                }
            }
            Path::Decode => {
                write!(f, "decode (few query rows: lanes are elements of a head), ")?;
                if *kv_heads > 1 {
                    write!(f, "{kv_heads} kv heads in turns, ")?;
                }
                write!(f, "{heads} head{} x {q} row{} x {block} tiles, ", s(*heads), s(*q))?;
                write!(f, "{work_items} group{} of heads, ", s(*work_items))?;
                write!(f, "keys in {ranges} range{}, ", s(ranges))?;
            }
        }
        write!(f, "{threads} thread{} of {} bytes", s(*threads), memory.bytes_per_thread)?;
        if wake + 1 < *threads {
            write!(f, " ({wake} worth waking)")?;
        }
        for (i, name) in ["K", "V"].into_iter().enumerate() {
            let dtype = kv[i];
            let is_converted = compute_type == "f32" && dtype != Dtype::F32;
            if tiles.staged[i] {
                write!(f, ", {name} ")?;
                match (in_place[i], is_converted) {
                    (true, _) if self.strided[i] => write!(f, "gathered")?,
                    (true, _) => write!(f, "copied")?,
                    (false, true) => write!(f, "converted from {dtype}")?,
                    (false, false) if dtype.is_nibbles() => write!(f, "unpacked")?,
                    (false, false) => write!(f, "rearranged")?,
                }
                write!(f, " block by block")?;
            }
            if in_place[i] && is_converted {
                write!(f, ", {name} converted from {dtype} as it is read")?;
            }
        }
        Ok(())
    }
}
