//! The library's own threads: a dedicated rayon pool, made on first use, never rayon's global one.
//!
//! A forked child has none of its parent's threads, so the pool remembers the process it belongs
//! to and a child makes a new one. Nothing here waits for a lock: one that another thread held
//! during a fork stays locked in the child for ever. Where a lock is taken, the caller gets a pool
//! of its own for the one call, or none and works alone; results are the same bits anyway.
//!
//! The libraries below (the memory reclamation of work-stealing queues, std) initialise things of
//! their own during the first use of a pool, behind locks that nobody else can see. A child forked
//! in the middle of that works alone for ever.

use std::process;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, RwLock};

use rayon::{Scope, ThreadPool, ThreadPoolBuilder};

use crate::machine;

struct Owned {
    process: u32,
    /// Threads that were asked for; the system may have granted fewer, and would again.
    asked: usize,
    pool: Arc<ThreadPool>,
}

static POOL: RwLock<Option<Owned>> = RwLock::new(None);

/// What the names of pool threads start with.
pub(crate) const THREAD_NAME: &str = "flash_attention";

/// More threads than any one call gets, however many it asks for.
pub(crate) const MAX_THREADS: usize = 256;

/// Stack of a pool thread: kernels keep their arrays in scratch memory, so little is needed.
const STACK: usize = 512 << 10;

/// What a call takes from the allocator for each thread, generously. Rayon and std end the process
/// where there is less.
const CALL_MEMORY: usize = 1 << 10;

/// What making a pool takes for each thread besides its stack, likewise.
const START_MEMORY: usize = 256 << 10;

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
    WARM.store(true, Ordering::Release);
}

/// The process that first wanted a pool; 0 before that.
static FIRST: AtomicU32 = AtomicU32::new(0);
/// Whether some pool has been used to the end, and with it everything that is initialised once.
static WARM: AtomicBool = AtomicBool::new(false);

/// Whether this process was forked while its parent's first use of a pool was under way.
fn is_half_made() -> bool {
    let me = process::id();
    let first = FIRST.compare_exchange(0, me, Ordering::AcqRel, Ordering::Acquire).unwrap_or_else(|pid| pid);
    first != 0 && first != me && !WARM.load(Ordering::Acquire)
}

/// A pool of at least `threads` threads.
fn pool(threads: usize) -> Option<Arc<ThreadPool>> {
    if is_half_made() || !machine::has_memory(threads * CALL_MEMORY) {
        return None;
    }
    if let Ok(slot) = POOL.try_read()
        && let Some(owned) = &*slot
        && owned.serves(threads)
    {
        return Some(owned.pool.clone());
    }
    // One fewer than the cores: the calling thread works too.
    let asked = threads.max(machine::cores() - 1);
    let pool = Arc::new(make(asked)?);
    let Ok(mut slot) = POOL.try_write() else { return Some(pool) };
    if let Some(owned) = &*slot
        && owned.serves(asked)
    {
        return Some(owned.pool.clone());
    }
    let old = slot.replace(Owned { process: process::id(), asked, pool: pool.clone() });
    drop(slot);
    if let Some(old) = old
        && old.process != process::id()
    {
        // Its threads are the parent's: dropping it would wake threads that are not there.
        std::mem::forget(old);
    }
    Some(pool)
}

/// A new pool of `threads` threads, or of as many as the system grants.
fn make(mut threads: usize) -> Option<ThreadPool> {
    while threads > 0 {
        let builder = ThreadPoolBuilder::new()
            .num_threads(threads)
            .stack_size(STACK)
            .thread_name(|i| format!("{THREAD_NAME} {i}"));
        // A thread that gets its stack and then nothing more would end the process.
        if machine::has_memory(threads * (STACK + START_MEMORY))
            && let Ok(pool) = builder.build()
        {
            // Each thread allocates when it starts working; now there is memory for that.
            pool.broadcast(|_| ());
            return Some(pool);
        }
        threads /= 2;
    }
    None
}

impl Owned {
    fn serves(&self, threads: usize) -> bool {
        self.process == process::id() && self.asked >= threads
    }
}
