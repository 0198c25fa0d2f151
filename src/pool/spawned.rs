//! Threads of a program that starts jobs on them: of an executor, or of another crate's pool.

use std::fmt;

use super::calls::{self, CallId};
use super::{Concurrency, Threads};

/// Threads that jobs are started on.
pub struct Spawned {
    /// Threads that take part in a call, the calling one included.
    pub threads: usize,
    /// Has some thread run a call.
    pub spawn: Box<dyn Fn(CallId) + Send + Sync>,
}

impl Threads for Spawned {
    fn run(&self, concurrency: Concurrency, task: &(dyn Fn() + Sync)) {
        share(concurrency, task, &self.spawn);
    }
}

impl fmt::Debug for Spawned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Spawned({})", self.threads)
    }
}

/// Starts a job for each thread but the calling one, which takes part, too. A job that starts when
/// there is no work left is not waited for: see [`calls`].
pub(super) fn share(concurrency: Concurrency, task: &(dyn Fn() + Sync), spawn: impl Fn(CallId)) {
    let is_shared = concurrency.threads > 1
        && calls::open(task, |open| {
            (1..concurrency.threads).for_each(|_| spawn(open.id()));
            task();
        });
    if !is_shared {
        task();
    }
}
