//! WHO computes the parts: the calling thread, and pool threads where the plan says so.
//!
//! Threads take parts from one queue, so that a slow or late thread just does fewer of them. A
//! part's result does not depend on who computes it or when.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Error;
use crate::part::Queue;
use crate::plan::Plan;
use crate::pool;
use crate::problem::Problem;
use crate::workspace::{Local, Scratch, Workspace};

/// Computes the whole problem with scratch memory of its own, given back before it returns.
pub fn run(problem: &mut Problem, plan: &Plan) -> Result<(), Error> {
    if plan.parts == 0 {
        return Ok(());
    }
    if plan.is_on_stack() {
        return on_stack(problem, plan);
    }
    // Where memory is short, one thread does it all.
    let mut workspace =
        Workspace::allocate(plan.threads, plan.scratch).or_else(|_| Workspace::allocate(1, plan.scratch))?;
    let mut pieces = workspace.pieces();
    let mine = pieces.next().ok_or(Error::Internal)?;

    let queue = Queue::new(problem, plan.tiles.q, plan.threads);
    let failed = AtomicBool::new(false);
    pool::run_with(pieces, mine, |scratch: Scratch| {
        if compute(&queue, plan, scratch).is_err() {
            failed.store(true, Ordering::Relaxed);
        }
    });
    if failed.into_inner() { Err(Error::Internal) } else { Ok(()) }
}

/// A function of its own, so that only small calls take the room.
#[inline(never)]
fn on_stack(problem: &mut Problem, plan: &Plan) -> Result<(), Error> {
    let mut memory = Local::uninit();
    compute(&Queue::new(problem, plan.tiles.q, plan.threads), plan, memory.piece())
}

/// Takes parts until there are none.
fn compute(queue: &Queue, plan: &Plan, mut scratch: Scratch) -> Result<(), Error> {
    while let Some(part) = queue.take() {
        let (path, tiles) = plan.way(part.sequence().len_q);
        plan.row.compute(path, &part, tiles, scratch.reborrow())?;
    }
    Ok(())
}
