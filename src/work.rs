//! All that is to be computed of a problem, cut for threads.

use crate::band::Shares;
use crate::part::{Few, Queue, Tiles};
use crate::problem::Problem;

/// Parts of sequences with many query rows, shares of those with few. No row is in both.
pub struct Work<'p> {
    /// The former.
    pub parts: Queue<'p>,
    /// The latter.
    pub shares: Shares<'p>,
}

/// How a problem is cut.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Which sequences have few rows.
    pub few: Few,
    /// Sizes for the others.
    pub parts: Tiles,
    /// Sizes for them.
    pub bands: Tiles,
    /// Shares of theirs.
    pub shares: usize,
}

impl<'p> Work<'p> {
    /// All parts and shares of `problem`, for about this many threads.
    pub fn new(problem: &'p mut Problem<'_>, cut: &Cut, threads: usize) -> Work<'p> {
        Work::of(problem, cut, [0, 1], threads)
    }

    /// Those of caller `i` of `n`: no two callers have a part or share in common.
    pub fn of_caller(problem: &'p mut Problem<'_>, cut: &Cut, [i, n]: [usize; 2]) -> Work<'p> {
        assert!(i < n);
        Work::of(problem, cut, [i, n], n)
    }

    fn of(problem: &'p mut Problem<'_>, cut: &Cut, caller: [usize; 2], ahead: usize) -> Work<'p> {
        let problem: &'p Problem<'p> = problem;
        let Cut { few, parts, bands, shares } = *cut;
        let shares = if few == Few::None { 0 } else { shares };
        Work {
            parts: Queue::of(problem, parts.q, few, caller, ahead),
            shares: Shares::new(problem, bands, few, shares, caller),
        }
    }

    /// Whether every part and share has been taken.
    pub fn is_drained(&self) -> bool {
        self.parts.is_drained() && self.shares.is_drained()
    }
}
