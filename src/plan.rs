//! HOW a problem is computed: kernel row, tile sizes, threads. A pure function of the problem, the
//! machine and the number of threads, computed once; everything below only reads it.
//!
//! Results depend on the kernel row and on the keys of a block, and on nothing else here: query
//! tiles and threads can be chosen freely without changing a bit.

use std::fmt;

use crate::dtype::Dtype;
use crate::error::Error;
use crate::kernel::{Kernel, Path};
use crate::machine::Machine;
use crate::problem::Shape;
use crate::work::Partition;
use crate::work::query_tiles::{self, PathRule, TileSizes};
use crate::work::split_kv;
use crate::workspace;

/// How to compute a problem.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Instruction set and compute types.
    pub kernel: &'static dyn Kernel,
    /// Which way its rows go, those of the longest sequence.
    pub path: Path,
    /// Rows of a part (or band) and keys of a block there.
    pub tiles: TileSizes,
    /// What K and V are stored as, and whether they could be read where they lie.
    kv: [Dtype; 2],
    in_place: [bool; 2],
    /// How it is cut, whatever way its sequences go.
    pub cut: Partition,
    /// Number of parts; of bands, where there are few rows.
    pub parts: usize,
    /// Threads that work at the same time; at least 1.
    pub threads: usize,
    /// How many of them, besides the calling one, are worth being woken for that if they sleep.
    pub wakes: usize,
    /// Scratch memory.
    pub memory: workspace::Size,
}

/// Query rows of a part, when the caller leaves the choice: enough for each block of keys, once
/// in cache, to be used several times over (8 tiles of 16 or 4 of 32 rows).
const ROWS: usize = 128;

/// Keys of a block, when the caller leaves the choice, at most: beyond this nothing is gained.
const KEYS: usize = 256;

/// The same where query rows are rule: what a block costs besides its keys is then as much as tens of them. Twice as
/// many gave one row 2 % more and several nothing, and sums of 16-bit integers hold no more.
const KEYS_OF_FEW: usize = 512;

/// Keys of a block of block-sparse attention up to which several make one of ours: shorter ones cost more
/// than skipping gives.
const SMALL_CELL: usize = 32;

/// Parts for each thread, so that the last ones to finish are short against the whole.
const PARTS_PER_THREAD: usize = 4;

/// Shares of decode, at most, that are cut for that reason: each keeps states for others.
const SHARES: usize = 64;

/// Work that is worth another thread.
#[derive(Clone, Copy)]
struct Worth {
    /// Multiplications.
    work: f64,
    /// Bytes of K and V that are read for few rows.
    bytes: f64,
}

/// For a thread that is awake, or may be: a caller's. A core with wide vectors takes 10 µs for the bytes, from its
/// caches.
const AWAKE: Worth = Worth { work: 2e6, bytes: 1e6 };

/// For one that has to be woken: it comes 20 to 60 µs later, and the caller spends 10 on it (measured in a virtual
/// machine whose idle cores sleep), which is what two threads save of these.
const ASLEEP: Worth = Worth { work: 2e6, bytes: 4e6 };

/// Bytes of scratch memory up to which one thread cannot want more than an address space, however much larger the
/// pieces of one thread are than those of many.
const FAR_FROM_ALL: usize = 1 << 30;

impl Plan {
    /// The plan for problems of a shape on `machine` with at most `threads` threads (at least 1).
    pub fn new(
        shape: &Shape,
        row: &'static dyn Kernel,
        machine: Machine,
        threads: usize,
    ) -> Result<Plan, Error> {
        Plan::of(PathRule::ByRows(row.lanes()), shape, row, machine, threads)
    }

    /// The same with all sequences on a path of the caller's choice.
    pub fn on(
        path: Path,
        shape: &Shape,
        row: &'static dyn Kernel,
        machine: Machine,
        threads: usize,
    ) -> Result<Plan, Error> {
        let rule = if path == Path::Decode { PathRule::AlwaysDecode } else { PathRule::AlwaysPrefill };
        Plan::of(rule, shape, row, machine, threads)
    }

    fn of(
        rule: PathRule,
        shape: &Shape,
        row: &'static dyn Kernel,
        machine: Machine,
        threads: usize,
    ) -> Result<Plan, Error> {
        let plan = Plan::exactly(rule, shape, row, machine, threads);
        if threads == 1 || matches!(&plan, Ok(plan) if plan.memory.bytes()? <= FAR_FROM_ALL) {
            return plan;
        }
        // What one thread cannot compute is refused whatever the number of threads, and nothing else is: a description
        // that has been checked stays right when there are more threads.
        let alone = Plan::exactly(rule, shape, row, machine, 1)?;
        Ok(plan.unwrap_or(alone))
    }

    fn exactly(
        rule: PathRule,
        shape: &Shape,
        row: &'static dyn Kernel,
        machine: Machine,
        threads: usize,
    ) -> Result<Plan, Error> {
        let path = if rule.decodes(shape.queries[2]) { Path::Decode } else { Path::Prefill };
        // Only in a ragged batch do sequences go either way: else nobody need ask each of them.
        let rule = match path {
            _ if shape.ragged.is_some() => rule,
            Path::Prefill => PathRule::AlwaysPrefill,
            Path::Decode => PathRule::AlwaysDecode,
        };
        let bands = tiles(Path::Decode, shape, row, machine, threads);
        let [threads, woken] =
            [AWAKE, ASLEEP].map(|worth| threads.clamp(1, threads_worth(worth, shape, path, bands)));
        let parts = if rule == PathRule::AlwaysDecode {
            bands
        } else {
            tiles(Path::Prefill, shape, row, machine, threads)
        };
        let (tiles, count, most) = match path {
            Path::Prefill => {
                let count = query_tiles::count(shape, parts.q);
                (parts, count, count)
            }
            Path::Decode if shape.queries[2] == 0 => (bands, 0, 0),
            Path::Decode => (bands, split_kv::count(shape, bands), split_kv::most_threads(shape, bands)),
        };
        // Of a ragged batch, not by how long its sequences are just now: scratch memory would depend on it.
        let threads = if shape.ragged.is_some() { threads } else { threads.min(most.max(1)) };
        let shares = if threads > 1 { threads * (SHARES / threads).clamp(1, PARTS_PER_THREAD) } else { 1 };
        // Sequences of a ragged batch go either way.
        let mut memory = workspace::Size { threads, ..workspace::Size::default() };
        memory.states.ranges = shares;
        for way in [Path::Prefill, Path::Decode] {
            let tiles = if way == Path::Decode { bands } else { parts };
            if way != path && shape.ragged.is_none() {
                continue;
            }
            let bytes = row.scratch_bytes(way, shape, tiles).ok_or(Error::Overflow)?;
            memory.bytes_per_thread = memory.bytes_per_thread.max(bytes);
            if way == Path::Decode {
                memory.states.per_range = split_kv::states(shape, tiles, shares);
                memory.states.bytes = row.state_bytes(shape, tiles).ok_or(Error::Overflow)?;
            }
        }
        memory.bytes()?;
        let [_, k, v] = shape.storage.dtypes;
        let in_place = row.reads_kv(path, shape);
        let cut = Partition { rule, parts, bands, shares };
        let wakes = woken.min(threads) - 1;
        Ok(Plan { kernel: row, path, tiles, kv: [k, v], in_place, cut, parts: count, threads, wakes, memory })
    }

    /// The same for one thread, where memory is short.
    pub fn alone(&self) -> Plan {
        let memory = workspace::Size::of_one(self.memory.bytes_per_thread);
        Plan { cut: Partition { shares: 1, ..self.cut }, threads: 1, wakes: 0, memory, ..self.clone() }
    }

    /// Whether the scratch of the call is kept on the stack.
    pub fn is_on_stack(&self) -> bool {
        self.threads == 1 && self.memory.bytes_per_thread <= workspace::ON_STACK
    }

    /// Bytes of scratch that the call allocates for all threads together.
    pub fn scratch_total(&self) -> usize {
        if self.parts == 0 || self.is_on_stack() { 0 } else { self.memory.bytes().unwrap_or(usize::MAX) }
    }
}

/// The pieces that sequences are cut into on a path.
fn tiles(path: Path, shape: &Shape, row: &dyn Kernel, machine: Machine, threads: usize) -> TileSizes {
    let [heads, q] = match path {
        Path::Prefill => [1, rows(shape, row, machine, threads)],
        Path::Decode => split_kv::size(shape),
    };
    let kv = keys(path, shape, row, machine);
    TileSizes { heads, q, kv, staged: staged(path, shape, row, [q, kv]) }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { kernel, path, tiles, parts, threads, wakes, memory, kv, in_place, .. } = self;
        let family = kernel.compute_type(*path);
        let TileSizes { heads, q, kv: block, .. } = tiles;
        let isa = kernel.isa().to_str().map_err(|_| fmt::Error)?;
        write!(f, "{isa} {family}, ")?;
        match path {
            Path::Prefill => {
                write!(f, "prefill (lanes are query rows), {q} x {block} tiles, {parts} parts, ")?
            }
            Path::Decode => {
                write!(
                    f,
                    "decode (few query rows: lanes are elements of a head), {heads} heads x {q} rows x {block} "
                )?;
                write!(f, "tiles, {parts} bands in {} shares, ", self.cut.shares)?;
            }
        }
        write!(f, "{threads} threads of {} bytes", memory.bytes_per_thread)?;
        if wakes + 1 < *threads {
            write!(f, " ({wakes} worth waking)")?;
        }
        for (i, name) in ["K", "V"].into_iter().enumerate() {
            let dtype = kv[i];
            if !tiles.staged[i] {
                if *path == Path::Decode && family == "f32" && dtype != Dtype::F32 {
                    write!(f, ", {name} converted from {dtype} as it is read")?;
                }
            } else if in_place[i] && (*path == Path::Prefill || family != "f32" || dtype == Dtype::F32) {
                write!(f, ", {name} copied block by block")?;
            } else if family == "f32" {
                write!(f, ", {name} converted from {dtype} block by block")?;
            } else {
                write!(f, ", {name} rearranged block by block")?;
            }
        }
        Ok(())
    }
}

/// How many threads the work is enough for.
fn threads_worth(worth: Worth, shape: &Shape, path: Path, bands: TileSizes) -> usize {
    let [batch, heads, rows] = shape.queries.map(|n| n as f64);
    let keys = shape.len_kv as f64;
    let mut work = batch * heads * rows * keys * (shape.dim_qk as f64 + shape.dim_v as f64) / worth.work;
    if path == Path::Decode {
        let [k, v] = shape.row_bytes_kv();
        work += split_kv::count(shape, bands) as f64 * keys * (k as f64 + v as f64) / worth.bytes;
    }
    // `as` saturates; beyond that many threads other limits apply.
    (work as usize).max(1)
}

/// Keys of a block.
fn keys(path: Path, shape: &Shape, row: &dyn Kernel, machine: Machine) -> usize {
    // What the mask counts in 32-bit lanes.
    let longest = shape.len_kv.clamp(1, i32::MAX as usize);
    let wanted = match (shape.block_kv, path) {
        // What is hidden as a whole is skipped as a whole.
        (0, _) if let Some(cell) = shape.cell => {
            if cell <= SMALL_CELL {
                SMALL_CELL - SMALL_CELL % cell
            } else {
                cell.div_ceil(cell.div_ceil(KEYS))
            }
        }
        // Rows of K and V pass by once: the longer each of them, the less often the machine has to find out what is
        // read next.
        (0, Path::Decode) => KEYS_OF_FEW,
        (0, Path::Prefill) => {
            // A tile's scores are written once and read once for every 8 output elements: half of
            // the first-level cache for them leaves room for the rows of V that stream past.
            let bytes_per_key = row.tile_rows() * 4;
            // Integer sums of a block are converted and added to those before: all of that cache is better for
            // half as many blocks.
            let share = if row.sums_integers() { 1 } else { 2 };
            let cached = (machine.l1d / share / bytes_per_key).clamp(64, KEYS);
            // Whole register tiles: smaller ones for the rest would cost as much as whole ones.
            cached - cached % row.tile_keys()
        }
        (given, _) => given,
    };
    wanted.min(longest).min(row.max_keys(path))
}

/// Query rows of a part, where there are many.
fn rows(shape: &Shape, row: &dyn Kernel, machine: Machine, threads: usize) -> usize {
    let [batch, heads, len_q] = shape.queries;
    let given = shape.block_q;
    if given != 0 {
        return given.min(len_q.max(1));
    }
    let tile = row.tile_rows();
    let bytes_per_row = shape.dim_qk.saturating_add(shape.dim_v).saturating_mul(4);
    // K and V of a head that come from memory should be worth it: they are passed half as often by
    // twice as many rows. Other cores have their part of the last cache.
    let [k, v] = shape.row_bytes_kv();
    let bytes_per_key = k.saturating_add(v);
    let far = bytes_per_key.saturating_mul(shape.len_kv) >= machine.l3 / 4;
    // And what is staged is worth more the more rows use it.
    let (most, share) = if staged(Path::Prefill, shape, row, [usize::MAX; 2]) != [false; 2] {
        (4 * ROWS, 2)
    } else if far {
        (2 * ROWS, 2)
    } else {
        (ROWS, 4)
    };
    // Queries and output of a part stay in this share of the second-level cache, next to K and V.
    let cached = (machine.l2 / share / bytes_per_row).clamp(1, most);
    let mut rows = cached.next_multiple_of(tile);
    if threads > 1 {
        let enough = (threads * PARTS_PER_THREAD).div_ceil(batch.saturating_mul(heads));
        rows = rows.min(len_q.div_ceil(enough).next_multiple_of(tile));
    }
    rows.min(len_q.max(1))
}

/// Whether K, and V, cannot be read in place, or better are not, by so many query rows and in such blocks.
fn staged(path: Path, shape: &Shape, row: &dyn Kernel, [rows, kv]: [usize; 2]) -> [bool; 2] {
    // Prefill reads rows that lie at equal distances. Else each row is to be used for this many query
    // rows at least, which hides its copying.
    let copied = match path {
        Path::Prefill => shape.page.is_some() || (clash(shape) && rows >= 64),
        // Decode takes whole vectors of keys, counted from the start of the block, from one page.
        Path::Decode => shape.page.is_some_and(|page| {
            let whole = |keys: usize| keys.is_multiple_of(row.lanes());
            !whole(page) || (kv < shape.len_kv && !whole(kv))
        }),
    };
    row.reads_kv(path, shape).map(|in_place| copied || !in_place)
}

/// Whether rows of K or V displace each other from the first-level cache.
fn clash(shape: &Shape) -> bool {
    // A first-level cache finds a line by the address within a 4 KiB page: rows at multiples of 1
    // KiB share a quarter of it or less, and a register tile reads eight of them at a time.
    shape.strides_kv.iter().any(|stride| *stride != 0 && stride.is_multiple_of(1 << 10))
}
