//! HOW a problem is computed: kernel row, tile sizes, threads. A pure function of the problem, the
//! machine and the number of threads, computed once; everything below only reads it.
//!
//! Results depend on the kernel row and on the keys of a block, and on nothing else here: query
//! tiles and threads can be chosen freely without changing a bit.

use std::fmt;

use crate::decode;
use crate::dtype::Dtype;
use crate::error::Error;
use crate::kernel::{Path, Row};
use crate::machine::Machine;
use crate::part::{self, Tiles};
use crate::problem::Shape;
use crate::workspace;

/// How to compute a problem.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Instruction set and compute family.
    pub row: &'static Row,
    /// Which way through a part, for the longest sequence.
    pub path: Path,
    /// Rows of a part and keys of a block there.
    pub tiles: Tiles,
    /// What K and V are stored as, and whether they could be read where they lie.
    kv: [Dtype; 2],
    in_place: [bool; 2],
    /// Tiles on the other path, if shorter sequences take that.
    others: Option<Tiles>,
    /// Number of parts.
    pub parts: usize,
    /// Threads that work at the same time; at least 1.
    pub threads: usize,
    /// Bytes of scratch that each thread needs.
    pub scratch: usize,
}

/// Query rows of a part, when the caller leaves the choice: enough for each block of keys, once
/// in cache, to be used several times over (8 tiles of 16 or 4 of 32 rows).
const ROWS: usize = 128;

/// Keys of a block, when the caller leaves the choice, at most: beyond this nothing is gained.
const KEYS: usize = 256;

/// Keys of a block of block-sparse attention up to which several make one of ours: shorter ones cost more
/// than skipping gives.
const SMALL_CELL: usize = 32;

/// Parts for each thread, so that the last ones to finish are short against the whole.
const PARTS_PER_THREAD: usize = 4;

/// Multiplications that are worth a second thread: waking one takes 10 to 20 µs, in which a core
/// with wide vectors does about 10^6 of them.
const WORK_PER_THREAD: f64 = 2e6;

impl Plan {
    /// The plan for problems of a shape on `machine` with at most `threads` threads (at least 1).
    pub fn new(shape: &Shape, row: &'static Row, machine: Machine, threads: usize) -> Result<Plan, Error> {
        let mut plan = Plan::on(path(shape.queries[2], row), shape, row, machine, threads)?;
        if shape.ragged.is_some() {
            let other = plan.path.other();
            let staged = staged(other, shape, row, plan.tiles.q);
            let tiles = Tiles { kv: keys(other, shape, row, machine), staged, ..plan.tiles };
            let scratch = row.scratch_bytes(other, shape, tiles).ok_or(Error::Overflow)?;
            plan.scratch = plan.scratch.max(scratch);
            plan.others = Some(tiles);
            workspace::total_bytes(plan.threads, plan.scratch)?;
        }
        Ok(plan)
    }

    /// The same on a path of the caller's choice.
    pub fn on(
        path: Path,
        shape: &Shape,
        row: &'static Row,
        machine: Machine,
        threads: usize,
    ) -> Result<Plan, Error> {
        let threads = threads.clamp(1, threads_worth(shape));
        let q = rows(path, shape, row, machine, threads);
        let tiles = Tiles { q, kv: keys(path, shape, row, machine), staged: staged(path, shape, row, q) };
        let parts = part::count(shape, tiles.q);
        let scratch = row.scratch_bytes(path, shape, tiles).ok_or(Error::Overflow)?;
        // Of a ragged batch, not by how long its sequences are just now: scratch memory would depend on it.
        let threads = if shape.ragged.is_some() { threads } else { threads.min(parts.max(1)) };
        let [_, k, v] = shape.storage.dtypes;
        let in_place = row.reads_kv(path, shape);
        let plan = Plan { row, path, tiles, kv: [k, v], in_place, others: None, parts, threads, scratch };
        workspace::total_bytes(plan.threads, plan.scratch).map(|_| plan)
    }

    /// Path and tiles for a sequence of this many query rows.
    pub fn way(&self, len_q: usize) -> (Path, Tiles) {
        match self.others {
            Some(tiles) if path(len_q, self.row) != self.path => (self.path.other(), tiles),
            _ => (self.path, self.tiles),
        }
    }

    /// Whether the scratch of the call is kept on the stack.
    pub fn is_on_stack(&self) -> bool {
        self.threads == 1 && self.scratch <= workspace::ON_STACK
    }

    /// Bytes of scratch that the call allocates for all threads together.
    pub fn scratch_total(&self) -> usize {
        if self.parts == 0 || self.is_on_stack() {
            0
        } else {
            workspace::total_bytes(self.threads, self.scratch).unwrap_or(usize::MAX)
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { row, path, tiles, parts, threads, scratch, kv, in_place, .. } = self;
        let family = row.family(*path);
        let path = match path {
            Path::Prefill => "prefill (lanes are query rows)",
            Path::Decode => "decode (lanes are elements of a head)",
        };
        let isa = row.isa().to_str().map_err(|_| fmt::Error)?;
        write!(f, "{isa} {family}, {path}, {} x {} tiles, {parts} parts, ", tiles.q, tiles.kv)?;
        write!(f, "{threads} threads of {scratch} bytes")?;
        for (i, name) in ["K", "V"].into_iter().enumerate().filter(|&(i, _)| tiles.staged[i]) {
            let dtype = kv[i];
            if in_place[i] {
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
fn threads_worth(shape: &Shape) -> usize {
    let [batch, heads, rows] = shape.queries.map(|n| n as f64);
    let dims = shape.dim_qk as f64 + shape.dim_v as f64;
    let work = batch * heads * rows * shape.len_kv as f64 * dims;
    // `as` saturates; beyond that many threads other limits apply.
    ((work / WORK_PER_THREAD) as usize).max(1)
}

/// The path that is faster for this number of query rows: not a matter of how they are cut into
/// parts, so that the bits of a row are not, either.
fn path(rows: usize, row: &Row) -> Path {
    // Measured on both instruction sets: a row takes as long with lanes of elements as 16/13 of a lane
    // of rows, and vectors of rows are paid for whole.
    let lanes = rows.checked_next_multiple_of(row.lanes()).unwrap_or(usize::MAX);
    if rows.saturating_mul(16) <= lanes.saturating_mul(13) { Path::Decode } else { Path::Prefill }
}

/// Keys of a block.
fn keys(path: Path, shape: &Shape, row: &Row, machine: Machine) -> usize {
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
        (0, Path::Decode) => {
            let cached = machine.l1d / shape.dim_v.saturating_mul(4);
            cached.clamp(64, KEYS).next_multiple_of(row.lanes())
        }
        (0, Path::Prefill) => {
            // A tile's scores are written once and read once for every 8 output elements: half of
            // the first-level cache for them leaves room for the rows of V that stream past.
            let bytes_per_key = row.tile_rows() * 4;
            // Integer sums of a block are converted and added to those before: all of that cache is better for
            // half as many blocks.
            let share = if row.is_blockwise() { 1 } else { 2 };
            let cached = (machine.l1d / share / bytes_per_key).clamp(64, KEYS);
            // Whole register tiles: smaller ones for the rest would cost as much as whole ones.
            cached - cached % row.tile()
        }
        (given, _) => given,
    };
    wanted.min(longest).min(row.most_keys(path))
}

/// Query rows of a part.
fn rows(path: Path, shape: &Shape, row: &Row, machine: Machine, threads: usize) -> usize {
    let [batch, heads, len_q] = shape.queries;
    let given = shape.block_q;
    if given != 0 {
        return given.min(len_q.max(1));
    }
    let tile = match path {
        Path::Prefill => row.tile_rows(),
        Path::Decode => decode::ROWS,
    };
    let bytes_per_row = shape.dim_qk.saturating_add(shape.dim_v).saturating_mul(4);
    // K and V of a head that come from memory should be worth it: they are passed half as often by
    // twice as many rows. Other cores have their part of the last cache.
    let [k, v] = shape.row_bytes_kv();
    let bytes_per_key = k.saturating_add(v);
    let far = bytes_per_key.saturating_mul(shape.len_kv) >= machine.l3 / 4;
    // And what is staged is worth more the more rows use it.
    let (most, share) = if staged(path, shape, row, usize::MAX) != [false; 2] {
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
        let enough = (threads * PARTS_PER_THREAD).div_ceil(batch * heads);
        rows = rows.min(len_q.div_ceil(enough).next_multiple_of(tile));
    }
    rows.min(len_q.max(1))
}

/// Whether K, and V, cannot be read in place, or better are not.
fn staged(path: Path, shape: &Shape, row: &Row, rows: usize) -> [bool; 2] {
    // Tile loops read rows that lie at equal distances. Else each row is to be used for this many query
    // rows at least, which hides its copying.
    let copied = shape.paged || (clash(shape) && rows >= 64);
    row.reads_kv(path, shape).map(|in_place| copied || !in_place)
}

/// Whether rows of K or V displace each other from the first-level cache.
fn clash(shape: &Shape) -> bool {
    // A first-level cache finds a line by the address within a 4 KiB page: rows at multiples of 1
    // KiB share a quarter of it or less, and a register tile reads eight of them at a time.
    shape.strides_kv.iter().any(|stride| *stride != 0 && stride.is_multiple_of(1 << 10))
}
