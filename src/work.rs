//! All that is to be computed of a problem, cut for threads.

pub mod query_tiles;
pub mod split_kv;

use crate::problem::Problem;
use query_tiles::{PathRule, TileQueue, TileSizes};
use split_kv::SplitQueue;

/// Parts of sequences with many query rows, shares of those with rule. No row is in both.
pub struct WorkQueues<'p> {
    /// The former.
    pub parts: TileQueue<'p>,
    /// The latter.
    pub shares: SplitQueue<'p>,
}

/// How a problem is cut.
#[derive(Clone, Copy, Debug)]
pub struct Partition {
    /// Which sequences have few rows.
    pub rule: PathRule,
    /// Sizes for the others.
    pub parts: TileSizes,
    /// Sizes for them.
    pub bands: TileSizes,
    /// Shares of theirs.
    pub shares: usize,
}

impl<'p> WorkQueues<'p> {
    /// All parts and shares of `problem`, for about this many threads.
    pub fn new(problem: &'p mut Problem<'_>, cut: &Partition, threads: usize) -> WorkQueues<'p> {
        WorkQueues::of(problem, cut, [0, 1], threads)
    }

    /// Those of caller `i` of `n`: no two callers have a part or share in common.
    pub fn of_caller(problem: &'p mut Problem<'_>, cut: &Partition, [i, n]: [usize; 2]) -> WorkQueues<'p> {
        assert!(i < n);
        WorkQueues::of(problem, cut, [i, n], n)
    }

    fn of(problem: &'p mut Problem<'_>, cut: &Partition, caller: [usize; 2], ahead: usize) -> WorkQueues<'p> {
        let problem: &'p Problem<'p> = problem;
        let Partition { rule, parts, bands, shares } = *cut;
        let shares = if rule == PathRule::AlwaysPrefill { 0 } else { shares };
        WorkQueues {
            parts: TileQueue::of(problem, parts.q, rule, caller, ahead),
            shares: SplitQueue::new(problem, bands, rule, shares, caller),
        }
    }

    /// Whether every part and share has been taken.
    pub fn is_drained(&self) -> bool {
        self.parts.is_drained() && self.shares.is_drained()
    }
}
