//! The work items of a call: query tiles for prefill, ranges of splits for decode.

pub mod query_tiles;
pub mod split_kv;

use crate::problem::Problem;
use crate::tuning::SplitLimits;
use query_tiles::{PathRule, TileQueue, TileSizes};
use split_kv::SplitQueue;

/// The work items of both paths. No query row is in both queues.
pub struct WorkQueues<'p> {
    /// Query tiles of the sequences that prefill computes.
    pub tiles: TileQueue<'p>,
    /// Ranges of splits of the sequences that decode computes.
    pub ranges: SplitQueue<'p>,
}

/// How a problem is cut into work items.
#[derive(Clone, Copy, Debug)]
pub struct Partition {
    /// Which path a sequence takes.
    pub rule: PathRule,
    /// Tile sizes of prefill.
    pub prefill: TileSizes,
    /// Tile sizes of decode.
    pub decode: TileSizes,
    /// How decode splits the keys of a sequence.
    pub splits: SplitLimits,
    /// Ranges that all splits of decode are cut into.
    pub ranges: usize,
}

impl<'p> WorkQueues<'p> {
    /// All work items of `problem`, for about this many threads.
    pub fn new(problem: &'p mut Problem<'_>, partition: &Partition, threads: usize) -> WorkQueues<'p> {
        WorkQueues::of(problem, partition, [0, 1], threads)
    }

    /// The work items of caller `i` of `n`: no two callers have one in common.
    pub fn of_caller(
        problem: &'p mut Problem<'_>,
        partition: &Partition,
        [i, n]: [usize; 2],
    ) -> WorkQueues<'p> {
        assert!(i < n);
        WorkQueues::of(problem, partition, [i, n], n)
    }

    fn of(
        problem: &'p mut Problem<'_>,
        partition: &Partition,
        caller: [usize; 2],
        lookahead: usize,
    ) -> WorkQueues<'p> {
        let problem: &'p Problem<'p> = problem;
        let TileSizes { heads, q, .. } = partition.prefill;
        WorkQueues {
            tiles: TileQueue::of(problem, [heads, q], partition.rule, caller, lookahead),
            ranges: SplitQueue::new(problem, partition, caller),
        }
    }

    /// Whether every work item has been taken.
    pub fn is_drained(&self) -> bool {
        self.tiles.is_drained() && self.ranges.is_drained()
    }
}
