//! WHO computes parts and shares: the calling thread, and pool threads where the plan says so.
//!
//! Threads take them from one queue, so that a slow or late thread just does fewer of them. Results do not depend on
//! who computes what or when.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::decode::{Combine, Decode};
use crate::error::Error;
use crate::plan::Plan;
use crate::pool::{Concurrency, Own, Threads};
use crate::problem::Problem;
use crate::work::WorkQueues;
use crate::workspace::{Local, PartialStates, Scratch, Workspace};

/// Computes the whole problem with the library's threads and scratch memory of its own, given back before
/// it returns.
pub fn run(problem: &mut Problem, plan: &Plan) -> Result<(), Error> {
    if plan.parts == 0 {
        return Ok(());
    }
    if plan.is_on_stack() {
        return on_stack(problem, plan);
    }
    match Workspace::allocate(plan.memory) {
        Ok(workspace) => run_on(problem, plan, &workspace, &Own),
        // Where memory is short, one thread does it all.
        Err(_) => {
            let plan = plan.alone();
            run_on(problem, &plan, &Workspace::allocate(plan.memory)?, &Own)
        }
    }
}

/// The same with somebody's threads and memory, which is as large as the plan says.
pub fn run_on(
    problem: &mut Problem,
    plan: &Plan,
    workspace: &Workspace,
    threads: &dyn Threads,
) -> Result<(), Error> {
    let mut work = WorkQueues::new(problem, &plan.cut, plan.threads);
    let failed = AtomicBool::new(false);
    let task = || {
        // Without a piece, somebody else is computing in each of them.
        let done = workspace
            .take()
            .map_or(Ok(()), |scratch| compute(&work, plan, scratch, workspace.partial_states()));
        if done.is_err() {
            failed.store(true, Ordering::Relaxed);
        }
    };
    threads.run(Concurrency { size: plan.threads, woken: plan.wakes }, &task);
    // Whatever the threads have done, nothing is left out.
    if !work.is_drained() {
        task();
    }
    if failed.into_inner() || !work.is_drained() {
        return Err(Error::Internal);
    }
    work.shares.again();
    join(&work, plan, workspace.partial_states())
}

/// The part of caller `i` of `n` in the problem, on the calling thread, in a piece of its own.
pub fn share(
    problem: &mut Problem,
    plan: &Plan,
    [i, n]: [usize; 2],
    scratch: Scratch,
    kept: PartialStates,
) -> Result<(), Error> {
    compute(&WorkQueues::of_caller(problem, &plan.cut, [i, n]), plan, scratch, kept)
}

/// What is left for that caller to do, once all callers have done their part.
pub fn finish(
    problem: &mut Problem,
    plan: &Plan,
    [i, n]: [usize; 2],
    kept: PartialStates,
) -> Result<(), Error> {
    join(&WorkQueues::of_caller(problem, &plan.cut, [i, n]), plan, kept)
}

/// The whole problem on the calling thread, with scratch memory on its stack. A function of its own, so that only
/// small calls take the room.
#[inline(never)]
pub fn on_stack(problem: &mut Problem, plan: &Plan) -> Result<(), Error> {
    let mut memory = Local::uninit();
    compute(&WorkQueues::new(problem, &plan.cut, 1), plan, memory.scratch(), PartialStates::none())
}

/// Takes parts and shares until there are none.
fn compute(work: &WorkQueues, plan: &Plan, mut scratch: Scratch, kept: PartialStates) -> Result<(), Error> {
    while let Some(part) = work.parts.take() {
        #[cfg(test)]
        planted::go_off(part.problem());
        plan.kernel.prefill(&part, plan.cut.parts, scratch.reborrow())?;
    }
    while let Some(share) = work.shares.take() {
        share.pieces(|piece| {
            let (work, scratch) = (&piece, scratch.reborrow());
            plan.kernel.decode(Decode { work, tiles: plan.cut.bands, scratch, partial: kept, range: &share })
        })?;
    }
    Ok(())
}

/// Ends the bands that begin in a share and end in another.
fn join(work: &WorkQueues, plan: &Plan, kept: PartialStates) -> Result<(), Error> {
    while let Some(share) = work.shares.take() {
        if plan.cut.shares == 1 {
            break;
        }
        share.pieces(|piece| {
            if piece.chunks.start > 0 || piece.is_whole() {
                return Ok(());
            }
            plan.kernel.combine(Combine { work: &piece, range: &share, tiles: plan.cut.bands, partial: kept })
        })?;
    }
    Ok(())
}

/// A panic in the midst of the work, on whichever thread has it.
#[cfg(test)]
pub(crate) mod planted {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use crate::problem::Problem;

    /// Elements of a value in the problems that it is planted in, which no other test has.
    pub(crate) const DIM: usize = 61;

    /// How many parts are computed before.
    static AFTER: AtomicUsize = AtomicUsize::new(usize::MAX);

    /// Lays it.
    pub(crate) fn plant(after: usize) {
        AFTER.store(after, Ordering::Relaxed);
    }

    pub(super) fn go_off(problem: &Problem) {
        let planted = problem.shape().dim_v == DIM && AFTER.load(Ordering::Relaxed) != usize::MAX;
        assert!(!planted || AFTER.fetch_sub(1, Ordering::Relaxed) > 0, "planted");
    }
}
