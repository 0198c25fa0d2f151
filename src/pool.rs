//! The library's own threads: a pool that is made on first use, and pools that callers make.
//!
//! A forked child has none of its parent's threads, so a pool remembers the process it belongs to and a child makes a
//! new one. Nothing here waits for a lock: one that another thread held during a fork stays locked in the child for
//! ever. Where a lock is taken, the caller gets a pool of its own for the one call, or none and works alone; results
//! are the same bits anyway.

pub mod calls;
#[forbid(unsafe_code)]
mod workers;

use std::sync::{Arc, RwLock};

use crate::machine;
#[cfg(test)]
pub(crate) use workers::THREAD_NAME;
use workers::Workers;

struct Owned {
    /// Threads that were asked for; the system may have granted fewer, and would again.
    asked: usize,
    workers: Arc<Workers>,
}

static POOL: RwLock<Option<Owned>> = RwLock::new(None);

/// More threads than any one call gets, however many it asks for.
pub(crate) const MAX_THREADS: usize = 256;

/// How many threads a call is enough for.
#[derive(Clone, Copy, Debug)]
pub struct Concurrency {
    /// All that take part, the calling one included; at least 1.
    pub size: usize,
    /// Of the others, those that are worth waking.
    pub woken: usize,
}

impl Concurrency {
    /// So many threads (at least 1), for work that is worth waking them.
    pub fn of(size: usize) -> Concurrency {
        Concurrency { size, woken: size - 1 }
    }
}

/// Somebody's threads.
pub trait Threads {
    /// Calls `task` up to `team.size` times, some of them at the same time on different threads, and returns when
    /// all calls have returned. Fewer calls will do: each goes on as long as there is work.
    fn run(&self, team: Concurrency, task: &(dyn Fn() + Sync));
}

/// The calling thread and the library's own pool.
pub struct Own;

impl Threads for Own {
    /// Fewer threads, down to the calling one, take part if they cannot be made.
    fn run(&self, team: Concurrency, task: &(dyn Fn() + Sync)) {
        match if team.size > 1 { pool(team.size - 1) } else { None } {
            Some(workers) => workers.help(team, task),
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

/// A pool that belongs to whoever made it.
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
    fn run(&self, team: Concurrency, task: &(dyn Fn() + Sync)) {
        if team.size > 1 && self.0.are_here() { self.0.help(team, task) } else { task() }
    }
}

/// A pool of at least `threads` threads.
fn pool(threads: usize) -> Option<Arc<Workers>> {
    if let Ok(slot) = POOL.try_read()
        && let Some(owned) = &*slot
        && owned.serves(threads)
    {
        return Some(owned.workers.clone());
    }
    // One fewer than the cores: the calling thread works too.
    let asked = threads.max(machine::cores() - 1);
    let workers = Arc::new(Workers::new(asked)?);
    let Ok(mut slot) = POOL.try_write() else { return Some(workers) };
    if let Some(owned) = &*slot
        && owned.serves(asked)
    {
        return Some(owned.workers.clone());
    }
    let old = slot.replace(Owned { asked, workers: workers.clone() });
    // Without the lock: its threads are waited for.
    drop(slot);
    drop(old);
    Some(workers)
}

impl Owned {
    fn serves(&self, threads: usize) -> bool {
        self.asked >= threads && self.workers.are_here()
    }
}
