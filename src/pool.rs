//! The library's own threads: a dedicated rayon pool, made on first use, never rayon's global one.
//!
//! A forked child has none of its parent's threads, so the pool remembers the process it belongs
//! to and a child makes a new one. Nothing here waits for a lock: one that another thread held
//! during a fork stays locked in the child for ever. Where a lock is taken, the caller gets a pool
//! of its own for the one call, or none and works alone; results are the same bits anyway.

use std::process;
use std::sync::{Arc, RwLock};

use rayon::{Scope, ThreadPool, ThreadPoolBuilder};

use crate::machine;

struct Owned {
    process: u32,
    pool: Arc<ThreadPool>,
}

static POOL: RwLock<Option<Owned>> = RwLock::new(None);

/// What the names of pool threads start with.
pub(crate) const THREAD_NAME: &str = "flash_attention";

/// More threads than any one call gets, however many it asks for.
pub(crate) const MAX_THREADS: usize = 256;

/// Stack of a pool thread: kernels keep their arrays in scratch memory, so little is needed.
const STACK: usize = 512 << 10;

/// Runs `task` on the calling thread and on up to `others` pool threads at the same time, and
/// returns when all have returned. Fewer, down to none, take part if threads cannot be made.
pub fn run_with<T: Send>(others: impl ExactSizeIterator<Item = T>, mine: T, task: impl Fn(T) + Sync) {
    let Some(pool) = (if others.len() == 0 { None } else { pool(others.len()) }) else {
        return task(mine);
    };
    let task = &task;
    pool.in_place_scope(move |scope: &Scope<'_>| {
        for item in others {
            scope.spawn(move |_| task(item));
        }
        task(mine);
    });
}

/// A pool of at least `threads` threads.
fn pool(threads: usize) -> Option<Arc<ThreadPool>> {
    if let Ok(slot) = POOL.try_read()
        && let Some(owned) = &*slot
        && owned.serves(threads)
    {
        return Some(owned.pool.clone());
    }
    // One fewer than the cores: the calling thread works too.
    let threads = threads.max(machine::cores() - 1);
    let builder = ThreadPoolBuilder::new()
        .num_threads(threads)
        .stack_size(STACK)
        .thread_name(|i| format!("{THREAD_NAME} {i}"));
    let pool = Arc::new(builder.build().ok()?);
    let Ok(mut slot) = POOL.try_write() else { return Some(pool) };
    if let Some(owned) = &*slot
        && owned.serves(threads)
    {
        return Some(owned.pool.clone());
    }
    let old = slot.replace(Owned { process: process::id(), pool: pool.clone() });
    drop(slot);
    if let Some(old) = old
        && old.process != process::id()
    {
        // Its threads are the parent's: dropping it would wake threads that are not there.
        std::mem::forget(old);
    }
    Some(pool)
}

impl Owned {
    fn serves(&self, threads: usize) -> bool {
        self.process == process::id() && self.pool.current_num_threads() >= threads
    }
}
