//! WHO computes the parts: the calling thread, and pool threads where the plan says so.
//!
//! Threads take parts from one queue, so that a slow or late thread just does fewer of them. A
//! part's result does not depend on who computes it or when.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Error;
use crate::part::Queue;
use crate::plan::Plan;
use crate::pool::{Own, Threads};
use crate::problem::Problem;
use crate::workspace::{Local, Scratch, Workspace};

/// Computes the whole problem with the library's threads and scratch memory of its own, given back before
/// it returns.
pub fn run(problem: &mut Problem, plan: &Plan) -> Result<(), Error> {
    if plan.parts == 0 {
        return Ok(());
    }
    if plan.is_on_stack() {
        return on_stack(problem, plan);
    }
    // Where memory is short, one thread does it all.
    let workspace =
        Workspace::allocate(plan.threads, plan.scratch).or_else(|_| Workspace::allocate(1, plan.scratch))?;
    run_on(problem, plan, &workspace, &Own)
}

/// The same with somebody's threads and memory: pieces as the plan has threads.
pub fn run_on(
    problem: &mut Problem,
    plan: &Plan,
    workspace: &Workspace,
    threads: &dyn Threads,
) -> Result<(), Error> {
    let queue = Queue::new(problem, plan.tiles.q, plan.threads);
    let failed = AtomicBool::new(false);
    let task = || {
        // Without a piece, somebody else is computing in each of them.
        let done = workspace.take().map_or(Ok(()), |scratch| compute(&queue, plan, scratch));
        if done.is_err() {
            failed.store(true, Ordering::Relaxed);
        }
    };
    threads.run(plan.threads, &task);
    // Whatever the threads have done, nothing is left out.
    if !queue.is_drained() {
        task();
    }
    if failed.into_inner() || !queue.is_drained() { Err(Error::Internal) } else { Ok(()) }
}

/// Share `i` of `n` of the problem on the calling thread, in a piece of its own.
pub fn share(problem: &mut Problem, plan: &Plan, [i, n]: [usize; 2], scratch: Scratch) -> Result<(), Error> {
    compute(&Queue::of_share(problem, plan.tiles.q, [i, n]), plan, scratch)
}

/// The whole problem on the calling thread, with scratch memory on its stack. A function of its own, so that only
/// small calls take the room.
#[inline(never)]
pub fn on_stack(problem: &mut Problem, plan: &Plan) -> Result<(), Error> {
    let mut memory = Local::uninit();
    compute(&Queue::new(problem, plan.tiles.q, 1), plan, memory.piece())
}

/// Takes parts until there are none.
fn compute(queue: &Queue, plan: &Plan, mut scratch: Scratch) -> Result<(), Error> {
    while let Some(part) = queue.take() {
        let (path, tiles) = plan.way(part.sequence().len_q);
        plan.row.compute(path, &part, tiles, scratch.reborrow())?;
    }
    Ok(())
}
