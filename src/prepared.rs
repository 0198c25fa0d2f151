//! A problem that is ready to run: checked, planned, and told where its scratch memory is. The C
//! functions and the Rust interface only make one and call a method of it.

use crate::error::Error;
use crate::kernel;
use crate::machine::Machine;
use crate::plan::Plan;
pub use crate::plan::PlanSummary;
use crate::pool::Threads;
use crate::problem::{Accuracy, Problem, Shape};
use crate::schedule;
use crate::workspace::{Local, Memory, PartialStates, Workspace};

/// Where the scratch memory of a call is. Every special case of a call is decided here, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ScratchPlace {
    /// Nowhere: there is nothing to compute.
    Nowhere,
    /// On the stack of the one thread that computes.
    Stack,
    /// In a block of memory, lent or allocated, of the size that the plan says.
    Block,
}

impl ScratchPlace {
    #[inline(always)]
    fn of(plan: &Plan) -> ScratchPlace {
        let Plan { work_items, memory, .. } = *plan;
        match work_items {
            0 => ScratchPlace::Nowhere,
            _ if Local::fits(memory) => ScratchPlace::Stack,
            _ => ScratchPlace::Block,
        }
    }
}

/// Plans problems of a shape for this machine and at most `threads` threads (at least 1). Kernels
/// that do not meet the demand on `accuracy` are left out. Out of line: calls that compute make
/// their plan in [`Prepared::new`].
#[inline(never)]
pub fn plan(shape: &Shape, accuracy: Accuracy, threads: usize) -> Result<Plan, Error> {
    plan_on(Machine::get(), shape, accuracy, threads)
}

/// [`plan`] for a machine.
#[inline(always)]
pub fn plan_on(machine: Machine, shape: &Shape, accuracy: Accuracy, threads: usize) -> Result<Plan, Error> {
    Plan::new(shape, kernel::select(shape, accuracy)?, machine, threads)
}

/// [`plan`] for a caller whose threads, so many, each compute a part.
pub fn plan_in_parts(shape: &Shape, accuracy: Accuracy, parts: usize) -> Result<Plan, Error> {
    Plan::in_parts(shape, kernel::select(shape, accuracy)?, Machine::get(), parts)
}

/// Bytes of scratch that [`Prepared::run_allocating`] allocates for a plan.
pub fn allocated_bytes(plan: &Plan) -> Result<usize, Error> {
    match ScratchPlace::of(plan) {
        ScratchPlace::Nowhere | ScratchPlace::Stack => Ok(0),
        ScratchPlace::Block => plan.memory.bytes(),
    }
}

/// Bytes of memory, of any alignment, that are lent to a call with a plan.
pub fn borrowed_bytes(plan: &Plan) -> Result<usize, Error> {
    match ScratchPlace::of(plan) {
        ScratchPlace::Nowhere | ScratchPlace::Stack => Ok(0),
        ScratchPlace::Block => plan.memory.borrowed_bytes(),
    }
}

/// Bytes of memory, of any alignment, that do for so many threads, and for a caller that computes
/// in as many parts.
pub fn bytes_for(shape: &Shape, accuracy: Accuracy, threads: usize) -> Result<usize, Error> {
    let alone = borrowed_bytes(&plan(shape, accuracy, threads)?)?;
    match threads {
        1 => Ok(alone),
        parts => Ok(alone.max(borrowed_bytes(&plan_in_parts(shape, accuracy, parts)?)?)),
    }
}

/// [`bytes_for`] for every number of threads from 1 to `threads`.
pub fn most_borrowed_bytes(shape: &Shape, accuracy: Accuracy, threads: usize) -> Result<usize, Error> {
    // More threads do not always need more: keys are cut differently.
    (1..=threads).try_fold(0, |most: usize, n| Ok(most.max(bytes_for(shape, accuracy, n)?)))
}

/// A problem and how it is computed.
#[derive(Debug)]
pub struct Prepared<'p, 'a> {
    problem: &'p mut Problem<'a>,
    plan: Plan,
    scratch: ScratchPlace,
}

impl<'p, 'a> Prepared<'p, 'a> {
    /// Plans a problem for this machine and at most `threads` threads (at least 1).
    #[inline(always)]
    pub fn new(problem: &'p mut Problem<'a>, threads: usize) -> Result<Prepared<'p, 'a>, Error> {
        let plan = plan_on(Machine::get(), problem.shape(), problem.semantics().accuracy, threads)?;
        Ok(Prepared::with_plan(problem, plan))
    }

    /// Plans a problem for a caller whose threads, so many, each compute a part.
    pub fn in_parts(problem: &'p mut Problem<'a>, parts: usize) -> Result<Prepared<'p, 'a>, Error> {
        let plan = plan_in_parts(problem.shape(), problem.semantics().accuracy, parts)?;
        Ok(Prepared::with_plan(problem, plan))
    }

    /// Takes a plan that was made for the problem's shape.
    #[inline(always)]
    pub fn with_plan(problem: &'p mut Problem<'a>, plan: Plan) -> Prepared<'p, 'a> {
        let scratch = ScratchPlace::of(&plan);
        Prepared { problem, plan, scratch }
    }

    /// How the problem is computed.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Bytes of memory, of any alignment, that [`Prepared::run`], or [`Prepared::run_share`] and
    /// [`Prepared::finish`], need.
    pub fn bytes(&self) -> Result<usize, Error> {
        borrowed_bytes(&self.plan)
    }

    /// Computes the problem on `threads`, with scratch in `memory`.
    ///
    /// # Errors
    /// [`Error::Workspace`]: `memory` has fewer than [`Prepared::bytes`].
    pub fn run(&mut self, memory: Memory, threads: &dyn Threads) -> Result<(), Error> {
        match self.scratch {
            ScratchPlace::Nowhere => Ok(()),
            ScratchPlace::Stack => self.run_on_stack(),
            ScratchPlace::Block => {
                let workspace = Workspace::on(memory, self.plan.memory)?;
                schedule::run(self.problem, &self.plan, &workspace, threads)
            }
        }
    }

    /// Computes the problem on `threads`, with scratch memory that is allocated for the call. Where
    /// there is not enough for all threads, the calling one computes alone.
    ///
    /// # Errors
    /// [`Error::Memory`]: there is not enough for one thread either.
    pub fn run_allocating(&mut self, threads: &dyn Threads) -> Result<(), Error> {
        match self.scratch {
            ScratchPlace::Nowhere => Ok(()),
            ScratchPlace::Stack => self.run_on_stack(),
            ScratchPlace::Block => match Workspace::allocate(self.plan.memory) {
                Ok(workspace) => schedule::run(self.problem, &self.plan, &workspace, threads),
                Err(_) => {
                    let alone = self.plan.alone();
                    let workspace = Workspace::allocate(alone.memory)?;
                    schedule::run(self.problem, &alone, &workspace, threads)
                }
            },
        }
    }

    /// Computes share `i` of the problem on the calling thread. There is a share for each thread of
    /// the plan, and nothing to do for those beyond. All shares have `memory` in common. What is
    /// left when all have been computed, [`Prepared::finish`] does.
    ///
    /// # Errors
    /// [`Error::Workspace`]: `memory` has fewer than [`Prepared::bytes`].
    pub fn run_share(&mut self, memory: Memory, i: usize) -> Result<(), Error> {
        match self.scratch {
            ScratchPlace::Nowhere => Ok(()),
            // It has one share.
            ScratchPlace::Stack if i > 0 => Ok(()),
            ScratchPlace::Stack => self.run_on_stack(),
            ScratchPlace::Block => {
                let workspace = Workspace::share(memory, self.plan.memory, i)?;
                let Some(scratch) = workspace.take() else { return Ok(()) };
                let share = [i, self.plan.threads];
                schedule::run_share(self.problem, &self.plan, share, scratch, workspace.partial_states())
            }
        }
    }

    /// Combines the partial states of the rows that share `i` has begun, once all shares have been
    /// computed in this memory.
    ///
    /// # Errors
    /// [`Error::Workspace`]: `memory` has fewer than [`Prepared::bytes`].
    pub fn finish(&mut self, memory: Memory, i: usize) -> Result<(), Error> {
        if self.scratch != ScratchPlace::Block {
            return Ok(());
        }
        let workspace = Workspace::share(memory, self.plan.memory, i)?;
        if i >= self.plan.threads {
            return Ok(());
        }
        let share = [i, self.plan.threads];
        schedule::finish(self.problem, &self.plan, share, workspace.partial_states())
    }

    /// Computes the problem with scratch on the stack. A function of its own, so that only small
    /// calls take the room.
    #[inline(never)]
    fn run_on_stack(&mut self) -> Result<(), Error> {
        let mut local = Local::uninit();
        schedule::run_share(self.problem, &self.plan, [0, 1], local.scratch(), PartialStates::none())
    }
}
