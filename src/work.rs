//! The work items of a call: query tiles over all keys, and ranges of splits of keys.

pub mod query_tiles;
pub mod split_kv;

use crate::problem::Problem;
use query_tiles::{TileQueue, TileSizes, Way, WayRule};
use split_kv::SplitQueue;

/// The work items of all sequences. No query row is in both queues.
pub struct WorkQueues<'p> {
    /// Query tiles over all keys.
    pub tiles: TileQueue<'p>,
    /// Ranges of the splits of keys.
    pub ranges: SplitQueue<'p>,
}

/// How a problem is cut into work items.
#[derive(Clone, Copy, Debug)]
pub struct Partition {
    /// Which way a sequence takes.
    pub rule: WayRule,
    /// Tile sizes of prefill over all keys.
    pub prefill: TileSizes,
    /// Tile sizes of prefill over splits, with the query rows of each head.
    pub split_tiles: TileSizes,
    /// Tile sizes of decode.
    pub decode: TileSizes,
    /// Ranges that all splits are cut into.
    pub ranges: usize,
}

impl Partition {
    /// Tile sizes of a way.
    pub fn tiles(&self, way: Way) -> TileSizes {
        match way {
            Way::Tiles => self.prefill,
            Way::SplitTiles => self.split_tiles,
            Way::Decode => self.decode,
        }
    }
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
