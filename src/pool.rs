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

/// Stack of a pool thread: kernels keep their arrays in scratch memory, so little is needed. But where nothing is
/// inlined, as in a Rust program that is being debugged, their vectors are copied from frame to frame.
const STACK: usize = if cfg!(debug_assertions) { 8 << 20 } else { 512 << 10 };

/// What a call takes from the allocator for each thread besides the calling one, generously, and for the queue of
/// tasks, which now and then needs another block of 1.5 KB. Rayon and std end the process where there is less. What is
/// left open: another thread may take it between our question and theirs.
const CALL_MEMORY: usize = 1 << 10;
const QUEUE_MEMORY: usize = 4 << 10;

/// Whether there is memory for a call with `threads` threads besides the calling one.
fn has_call_memory(threads: usize) -> bool {
    machine::has_memory(threads * CALL_MEMORY + QUEUE_MEMORY)
}

/// What making a pool takes for each thread besides its stack, likewise.
const START_MEMORY: usize = 256 << 10;

/// Somebody's threads.
pub trait Threads {
    /// Calls `task` up to `n` times, some of them at the same time on different threads, and returns when
    /// all calls have returned. Fewer calls will do: each goes on as long as there is work.
    fn run(&self, n: usize, task: &(dyn Fn() + Sync));
}

/// The calling thread and the library's own pool.
pub struct Own;

impl Threads for Own {
    /// Fewer threads, down to the calling one, take part if they cannot be made.
    fn run(&self, n: usize, task: &(dyn Fn() + Sync)) {
        match if n > 1 { pool(n - 1) } else { None } {
            Some(pool) => {
                run_on(&pool, n, task);
                WARM.store(true, Ordering::Release);
            }
            None => task(),
        }
    }
}

/// The calling thread alone.
pub struct Caller;

impl Threads for Caller {
    fn run(&self, _n: usize, task: &(dyn Fn() + Sync)) {
        task();
    }
}

/// A pool that belongs to whoever made it.
pub struct Made(ThreadPool);

impl Made {
    /// A pool for calls with `threads` threads, the calling one included.
    pub fn new(threads: usize) -> Option<Made> {
        make(threads - 1).map(Made)
    }

    /// Threads that take part in a call.
    pub fn width(&self) -> usize {
        self.0.current_num_threads() + 1
    }
}

impl Threads for Made {
    /// The calling thread alone where there is no memory for more.
    fn run(&self, n: usize, task: &(dyn Fn() + Sync)) {
        match n > 1 && has_call_memory(n - 1) {
            true => run_on(&self.0, n, task),
            false => task(),
        }
    }
}

fn run_on(pool: &ThreadPool, n: usize, task: &(dyn Fn() + Sync)) {
    pool.in_place_scope(|scope: &Scope<'_>| {
        for _ in 1..n {
            scope.spawn(|_| task());
        }
        task();
    });
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
    if is_half_made() || !has_call_memory(threads) {
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
