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
use crate::problem::Shape;
use crate::tuning::Tuning;
use crate::work::Partition;
use crate::work::query_tiles::{self, PathRule, TileSizes};
use crate::work::split_kv;
use crate::workspace;

/// How to compute a problem.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Instruction set and compute types.
    pub kernel: &'static dyn Kernel,
    /// The numbers that the machine is tuned with.
    pub tuning: &'static Tuning,
    /// The path of the longest sequence.
    pub path: Path,
    /// Tile sizes of that path.
    pub tiles: TileSizes,
    /// Storage types of K and V.
    kv: [Dtype; 2],
    /// Whether K, and V, could be read in place.
    in_place: [bool; 2],
    /// Whether elements of their rows lie apart.
    strided: [bool; 2],
    /// How the work is cut, whatever path each sequence takes.
    pub partition: Partition,
    /// Work items of the path: query tiles, or GQA groups.
    pub work_items: usize,
    /// Threads that work at the same time; at least 1.
    pub threads: usize,
    /// How many of them, besides the calling one, are worth waking if they sleep.
    pub wake: usize,
    /// Scratch memory.
    pub memory: workspace::Size,
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
        let (lanes, border) = (kernel.lanes(), machine.tuning.decode.border);
        let rule = PathRule::ByRows { lanes, border, heads: shape.heads_of_group() };
        Planner { shape, kernel, machine }.plan(rule, threads)
    }

    /// [`Plan::new`] with all sequences on a path of the caller's choice.
    pub fn on(
        path: Path,
        shape: &Shape,
        kernel: &'static dyn Kernel,
        machine: Machine,
        threads: usize,
    ) -> Result<Plan, Error> {
        let rule = if path == Path::Decode { PathRule::AlwaysDecode } else { PathRule::AlwaysPrefill };
        Planner { shape, kernel, machine }.plan(rule, threads)
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
}

impl Planner<'_> {
    fn plan(self, rule: PathRule, threads: usize) -> Result<Plan, Error> {
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
    fn plan_exactly(self, rule: PathRule, threads: usize) -> Result<Plan, Error> {
        let Planner { shape, kernel, machine } = self;
        let tuning = machine.tuning;
        let path = if rule.decodes(shape.queries[2]) { Path::Decode } else { Path::Prefill };
        // Only in a ragged batch do paths differ: elsewhere no sequence need be looked at.
        let rule = match path {
            _ if shape.ragged.is_some() => rule,
            Path::Prefill => PathRule::AlwaysPrefill,
            Path::Decode => PathRule::AlwaysDecode,
        };
        let decode = self.tiles(Path::Decode, threads);
        let groups = if path == Path::Decode { split_kv::group_count(shape, decode) } else { 0 };
        let worth = &tuning.threads;
        let max_threads = threads;
        let [threads, worth_waking] =
            [[worth.min_work, worth.min_bytes], [worth.min_work_asleep, worth.min_bytes_asleep]]
                .map(|least| max_threads.clamp(1, self.threads_worth(least, path, groups)));
        let prefill =
            if rule == PathRule::AlwaysDecode { decode } else { self.tiles(Path::Prefill, threads) };
        let splits = tuning.decode.splits;
        let (tiles, work_items, max_threads) = match path {
            Path::Prefill => {
                let count = query_tiles::count(shape, prefill.heads, prefill.q);
                (prefill, count, count)
            }
            Path::Decode if shape.queries[2] == 0 => (decode, 0, 0),
            Path::Decode => (decode, groups, split_kv::max_threads(shape, decode, splits)),
        };
        // The lengths of a ragged batch do not count: they change from call to call, and scratch
        // memory would with them.
        let threads = if shape.ragged.is_some() { threads } else { threads.min(max_threads.max(1)) };
        let ranges = if threads > 1 {
            threads * (worth.max_ranges / threads).clamp(1, worth.items_per_thread)
        } else {
            1
        };
        let mut memory = workspace::Size { threads, ..workspace::Size::default() };
        memory.states.ranges = ranges;
        for on in [Path::Prefill, Path::Decode] {
            // Sequences of a ragged batch take either path.
            if on != path && shape.ragged.is_none() {
                continue;
            }
            let tiles = if on == Path::Decode { decode } else { prefill };
            let bytes = kernel.scratch_bytes(on, shape, tiles).ok_or(Error::Overflow)?;
            memory.bytes_per_thread = memory.bytes_per_thread.max(bytes);
            if on == Path::Decode {
                memory.states.per_range = split_kv::max_states(shape, tiles, splits, ranges);
                memory.states.bytes = kernel.state_bytes(shape, tiles).ok_or(Error::Overflow)?;
            }
        }
        memory.bytes()?;
        let [_, k, v] = shape.storage.dtypes;
        Ok(Plan {
            kernel,
            tuning,
            path,
            tiles,
            kv: [k, v],
            in_place: kernel.reads_kv(path, shape),
            strided: shape.strided_kv,
            partition: Partition { rule, prefill, decode, splits, ranges },
            work_items,
            threads,
            wake: worth_waking.min(threads) - 1,
            memory,
        })
    }

    /// Tile sizes of a path.
    fn tiles(self, path: Path, threads: usize) -> TileSizes {
        let [heads, q] = match path {
            Path::Prefill => {
                let together = self.heads_together(threads);
                [together, self.tile_rows(together, threads)]
            }
            Path::Decode => split_kv::group_size(self.shape, self.machine.tuning.decode.group_rows),
        };
        let kv = self.block_keys(path);
        let Machine { l3, tuning, .. } = self.machine;
        let prefetch_other_above = match tuning.decode.prefetches_other {
            true => l3 / tuning.decode.l3_share_other,
            false => usize::MAX,
        };
        TileSizes { heads, q, kv, staged: self.staged(path, q, kv), prefetch_other_above, tuning }
    }

    /// How many threads the work is enough for, if each of them takes at least so many
    /// multiply-adds or, in decode, reads at least so many bytes.
    fn threads_worth(self, [min_work, min_bytes]: [usize; 2], path: Path, groups: usize) -> usize {
        let Planner { shape, .. } = self;
        let [batch, heads, rows] = shape.queries.map(|n| n as f64);
        let keys = shape.len_kv as f64;
        let mut work = batch * heads * rows * keys * (shape.dim_qk as f64 + shape.dim_v as f64);
        work /= min_work as f64;
        if path == Path::Decode {
            let [k, v] = shape.row_bytes_kv();
            work += groups as f64 * keys * (k as f64 + v as f64) / min_bytes as f64;
        }
        // `as` saturates; beyond that many threads other limits apply.
        (work as usize).max(1)
    }

    /// Keys of a block.
    fn block_keys(self, path: Path) -> usize {
        let Planner { shape, kernel, machine } = self;
        let tuning = &machine.tuning.prefill;
        // Masks count keys in 32-bit lanes.
        let longest = shape.len_kv.clamp(1, i32::MAX as usize);
        let wanted = match (shape.block_kv, path) {
            // A block of a block-sparse mask is skipped as a whole.
            (0, _) if let Some(sparse) = shape.cell => {
                if sparse <= tuning.min_sparse_keys {
                    tuning.min_sparse_keys - tuning.min_sparse_keys % sparse
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
                let cached = machine.l1d / share / bytes_per_key;
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
        let Planner { shape, kernel, machine } = self;
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

    /// Query rows of a tile of prefill, of so many heads together.
    fn tile_rows(self, together: usize, threads: usize) -> usize {
        let Planner { shape, kernel, machine } = self;
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
        let Planner { shape, kernel, machine } = self;
        let tuning = &machine.tuning.prefill;
        let is_copied = match path {
            // Prefill reads rows at one stride, which pages do not have. Rows that alias in L1 are
            // copied where enough query rows use them to hide it.
            Path::Prefill => {
                let aliases = |stride: &usize| *stride != 0 && stride.is_multiple_of(tuning.aliasing_stride);
                shape.page.is_some()
                    || (shape.strides_kv.iter().any(aliases) && rows >= tuning.copy_aliasing_from)
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

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { kernel, path, tiles, work_items, threads, wake, memory, kv, in_place, .. } = self;
        let compute_type = kernel.compute_type(*path);
        let TileSizes { heads, q, kv: block, .. } = tiles;
        let isa = kernel.isa().to_str().map_err(|_| fmt::Error)?;
        write!(f, "{isa} {compute_type}, ")?;
        match path {
            Path::Prefill => {
                write!(f, "prefill (lanes are query rows), ")?;
                if *heads > 1 {
                    write!(f, "{heads} heads together, ")?;
                }
                write!(f, "{q} x {block} tiles, {work_items} parts, ")?;
            }
            Path::Decode => {
                let ranges = self.partition.ranges;
                write!(f, "decode (few query rows: lanes are elements of a head), ")?;
                write!(f, "{heads} heads x {q} rows x {block} tiles, ")?;
                write!(f, "{work_items} bands in {ranges} shares, ")?;
            }
        }
        write!(f, "{threads} threads of {} bytes", memory.bytes_per_thread)?;
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
