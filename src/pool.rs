//! Threads: a pool of the library's own that is made on first use, pools that callers make, and
//! with the feature `rayon` threads of that crate's.
//!
//! A forked child has none of its parent's threads, so a pool remembers its process, and a child
//! makes a new one. Nothing here waits for a lock: one that another thread held during the fork
//! stays locked in the child for ever. A caller that finds the lock taken makes a pool for its one
//! call, or works alone if there is none; results are the same bits anyway.

pub mod calls;
#[cfg(feature = "rayon")]
#[forbid(unsafe_code)]
pub mod rayon;
#[forbid(unsafe_code)]
pub mod spawned;
#[forbid(unsafe_code)]
mod workers;

use std::sync::{Arc, RwLock};

use crate::machine;
#[cfg(test)]
pub(crate) use workers::THREAD_NAME;
use workers::Workers;

struct Owned {
    /// Threads that were requested; the system may have granted fewer, and would again.
    requested: usize,
    workers: Arc<Workers>,
}

static POOL: RwLock<Option<Owned>> = RwLock::new(None);

/// Threads of one call, at most.
pub(crate) const MAX_THREADS: usize = 256;

/// How many threads a call uses.
#[derive(Clone, Copy, Debug)]
pub struct Concurrency {
    /// Threads that take part, the calling one included; at least 1.
    pub threads: usize,
    /// How many of the others are worth waking if they sleep.
    pub wake: usize,
}

impl Concurrency {
    /// So many threads (at least 1), all of them worth waking.
    pub fn of(threads: usize) -> Concurrency {
        Concurrency { threads, wake: threads - 1 }
    }
}

/// Threads that can run a task.
pub trait Threads {
    /// Calls `task` up to `concurrency.threads` times, some of them at the same time on different
    /// threads, and returns when all calls have returned. Fewer calls will do, because each goes on
    /// as long as there is work.
    fn run(&self, concurrency: Concurrency, task: &(dyn Fn() + Sync));
}

/// The calling thread and the library's own pool.
pub struct Own;

impl Threads for Own {
    /// Fewer threads, down to the calling one, take part if they cannot be made.
    fn run(&self, concurrency: Concurrency, task: &(dyn Fn() + Sync)) {
        let others = concurrency.threads - 1;
        match if others > 0 { pool(others) } else { None } {
            Some(workers) => workers.run(concurrency, task),
            None => task(),
        }
    }
}

/// The calling thread alone.
pub struct Caller;

impl Threads for Caller {
    fn run(&self, _: Concurrency, task: &(dyn Fn() + Sync)) {
        task();
    }
}

/// A pool of the caller's.
pub struct Made(Workers);

impl Made {
    /// A pool for calls with `threads` threads, the calling one included.
    pub fn new(threads: usize) -> Option<Made> {
        Workers::new(threads - 1).map(Made)
    }

    /// Threads that take part in a call.
    pub fn width(&self) -> usize {
        self.0.count() + 1
    }
}

impl Threads for Made {
    /// In a forked child the calling thread alone takes part.
    fn run(&self, concurrency: Concurrency, task: &(dyn Fn() + Sync)) {
        if concurrency.threads > 1 && self.0.are_of_this_process() {
            self.0.run(concurrency, task);
        } else {
            task();
        }
    }
}

/// The library's pool, of at least `threads` threads.
fn pool(threads: usize) -> Option<Arc<Workers>> {
    if let Ok(slot) = POOL.try_read()
        && let Some(owned) = &*slot
        && owned.serves(threads)
    {
        return Some(owned.workers.clone());
    }
    // One fewer than the cores: the calling thread works too.
    let requested = threads.max(machine::cores() - 1);
    let workers = Arc::new(Workers::new(requested)?);
    let Ok(mut slot) = POOL.try_write() else { return Some(workers) };
    if let Some(owned) = &*slot
        && owned.serves(requested)
    {
        return Some(owned.workers.clone());
    }
    let old = slot.replace(Owned { requested, workers: workers.clone() });
    // Dropped after the lock, because it waits for its threads.
    drop(slot);
    drop(old);
    Some(workers)
}

impl Owned {
    fn serves(&self, threads: usize) -> bool {
        self.requested >= threads && self.workers.are_of_this_process()
    }
}
