//! A call on threads of the program, which come to it.

use std::cell::Cell;
use std::fmt;

use crate::error::{Error, Refusal};
use crate::pool::{Concurrency, Threads};
use crate::prepared::Prepared;
use crate::workspace::Memory;

/// A call that threads of the program compute together: see
/// [`Attention::run_in_parts`](super::Attention::run_in_parts).
pub struct Parts<'c> {
    task: &'c (dyn Fn() + Sync),
}

impl Parts<'_> {
    /// Computes on this thread what no other one has taken, a piece at a time, until nothing is
    /// left. Others may still compute theirs when it returns.
    pub fn compute(&self) {
        (self.task)();
    }
}

impl fmt::Debug for Parts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Parts")
    }
}

/// Computes a problem on the threads that `body` brings.
pub(super) fn run<R>(
    prepared: &mut Prepared,
    memory: Memory,
    body: impl FnOnce(&Parts) -> R,
) -> Result<R, Refusal> {
    let brought = Brought { body: Cell::new(Some(body)), answer: Cell::new(None) };
    prepared.run(memory, &brought)?;
    // It has not been called where there was nothing to divide.
    brought.run(Concurrency::of(1), &|| ());
    Ok(brought.answer.take().ok_or(Error::Internal)?)
}

/// Threads that a function brings, and what it answers.
struct Brought<F, R> {
    body: Cell<Option<F>>,
    answer: Cell<Option<R>>,
}

impl<F: FnOnce(&Parts) -> R, R> Threads for Brought<F, R> {
    fn run(&self, _: Concurrency, task: &(dyn Fn() + Sync)) {
        if let Some(body) = self.body.take() {
            self.answer.set(Some(body(&Parts { task })));
        }
    }
}
