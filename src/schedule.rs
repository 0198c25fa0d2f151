//! WHO computes query tiles and ranges of KV splits: the calling thread, and pool threads where the
//! plan says so.
//!
//! Threads take work from one queue, so that a slow or late thread just does less of it. Results do
//! not depend on who computes what or when. Who may call what, and with which memory, is decided in
//! [`crate::prepared`].

use std::sync::atomic::{AtomicBool, Ordering};

use crate::decode::Decode;
use crate::error::Error;
use crate::plan::Plan;
use crate::pool::{Concurrency, Threads};
use crate::prefill::Splits;
use crate::problem::Problem;
use crate::work::WorkQueues;
use crate::work::query_tiles::Way;
use crate::work::split_kv::Combine;
use crate::workspace::{PartialStates, Scratch, Workspace};

/// Computes the whole problem on `threads`. The workspace is as large as the plan says.
pub fn run(
    problem: &mut Problem,
    plan: &Plan,
    workspace: &Workspace,
    threads: &dyn Threads,
) -> Result<(), Error> {
    let mut work = WorkQueues::new(problem, &plan.partition, plan.threads);
    let failed = AtomicBool::new(false);
    let task = || {
        // Where there is no region left, other threads are computing in each of them.
        let done = workspace
            .take()
            .map_or(Ok(()), |scratch| compute(&work, plan, scratch, workspace.partial_states()));
        if done.is_err() {
            failed.store(true, Ordering::Relaxed);
        }
    };
    threads.run(Concurrency { threads: plan.threads, wake: plan.wake }, &task);
    // Threads of a caller may have done less than they should: nothing is left out.
    if !work.is_drained() {
        task();
    }
    if failed.into_inner() || !work.is_drained() {
        return Err(Error::Internal);
    }
    work.ranges.rewind();
    combine(&work, plan, workspace.partial_states())
}

/// Computes share `i` of `n` of the problem on the calling thread.
pub fn run_share(
    problem: &mut Problem,
    plan: &Plan,
    [i, n]: [usize; 2],
    scratch: Scratch,
    states: PartialStates,
) -> Result<(), Error> {
    compute(&WorkQueues::of_caller(problem, &plan.partition, [i, n]), plan, scratch, states)
}

/// Combines partial states of share `i` of `n`, once all shares have been computed.
pub fn finish(
    problem: &mut Problem,
    plan: &Plan,
    [i, n]: [usize; 2],
    states: PartialStates,
) -> Result<(), Error> {
    combine(&WorkQueues::of_caller(problem, &plan.partition, [i, n]), plan, states)
}

/// Takes work from the queues and computes it, until they are drained.
fn compute(work: &WorkQueues, plan: &Plan, mut scratch: Scratch, states: PartialStates) -> Result<(), Error> {
    let mut hulls = None;
    while let Some(mut tile) = work.tiles.take() {
        if tile.problem().shape().scans_masks {
            tile.narrow(&mut hulls, plan.partition.prefill.kv);
        }
        #[cfg(test)]
        planted::go_off(tile.problem());
        plan.kernel.prefill(&tile, plan.partition.prefill, None, scratch.reborrow())?;
    }
    while let Some(range) = work.ranges.take() {
        range.try_for_each(|mut work| {
            let (tiles, range, partial) = (plan.partition.tiles(work.way), &range, states);
            if work.problem().shape().scans_masks {
                work.narrow(&mut hulls, tiles.kv);
            }
            let (work, scratch) = (&work, scratch.reborrow());
            if work.way == Way::Decode {
                return plan.kernel.decode(Decode { work, tiles, scratch, partial, range });
            }
            let splits = Splits { work, range, partial };
            plan.kernel.prefill(&work.tile(), tiles.together(), Some(splits), scratch)
        })?;
    }
    Ok(())
}

/// Combines the partial states of rows whose keys begin in one range of splits and end in another.
fn combine(work: &WorkQueues, plan: &Plan, states: PartialStates) -> Result<(), Error> {
    while let Some(range) = work.ranges.take() {
        if plan.partition.ranges == 1 {
            break;
        }
        range.try_for_each(|work| {
            if work.splits.start > 0 || work.is_whole() {
                return Ok(());
            }
            let (work, tiles) = (&work, plan.partition.tiles(work.way));
            plan.kernel.combine(Combine { work, range: &range, tiles, partial: states })
        })?;
    }
    Ok(())
}

/// A panic in the midst of the work, on whichever thread does it: for tests.
#[cfg(test)]
pub(crate) mod planted {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use crate::problem::Problem;

    /// Elements of a row of V in problems that panic, which no other test has.
    pub(crate) const DIM: usize = 61;

    /// Query tiles that are computed before the panic.
    static AFTER: AtomicUsize = AtomicUsize::new(usize::MAX);

    /// Makes the tile after `after` others panic.
    pub(crate) fn plant(after: usize) {
        AFTER.store(after, Ordering::Relaxed);
    }

    pub(super) fn go_off(problem: &Problem) {
        let planted = problem.shape().dim_v == DIM && AFTER.load(Ordering::Relaxed) != usize::MAX;
        assert!(!planted || AFTER.fetch_sub(1, Ordering::Relaxed) > 0, "planted");
    }
}
