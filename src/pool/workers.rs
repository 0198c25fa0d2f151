//! Threads that wait for calls to take part in.
//!
//! A call posts its id on the board and works itself. Threads that are awake take a post each, and
//! so do those that are worth waking. When the caller finds no work left, it takes its post down,
//! so that it does not wait for a thread that wakes up late. No call allocates.

use std::hint;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{mem, process};

use super::Concurrency;
use super::calls::{self, CALL_SLOTS, CallId};
use crate::machine::{self, Machine};

/// What the names of the threads start with.
pub(crate) const THREAD_NAME: &str = "flash_attention";

/// Stack of a thread. Kernels keep their arrays in scratch memory, so little is needed; but where
/// nothing is inlined, as in a debug build of a Rust program, vectors are copied from frame to
/// frame.
const STACK: usize = if cfg!(debug_assertions) { 8 << 20 } else { 512 << 10 };

/// What starting a thread takes from the allocator besides, at most.
const START_MEMORY: usize = 256 << 10;

/// Threads of this process.
pub(super) struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    process: u32,
}

struct Shared {
    board: Mutex<Board>,
    /// Wakes threads that sleep: there is a post, or the end has come.
    posted: Condvar,
    /// Counts posts, for threads that spin.
    post_count: AtomicUsize,
    /// Wakes callers: a thread has started, or left a task.
    left: Condvar,
    /// Callers that sleep until threads have left their tasks.
    waiting: AtomicUsize,
    /// When the threads were made, and how many nanoseconds later the last call ended.
    begin: Instant,
    last_end: AtomicU64,
    spin: Spin,
}

/// How threads and callers wait before they sleep.
#[derive(Clone, Copy)]
struct Spin {
    duration: Duration,
    /// Spins before the core is offered to others.
    spins: usize,
}

struct Board {
    /// Each of another call, so that there are never more than call slots. First come, first
    /// served.
    posts: Vec<Post>,
    started: usize,
    /// Threads that spin. Each looks at the board once more before it sleeps.
    spinning: usize,
    sleeping: usize,
    has_ended: bool,
}

struct Post {
    call: CallId,
    /// Threads that are wanted; at least 1.
    wanted: usize,
}

impl Workers {
    /// So many threads, or as many as the system grants, if any.
    pub(super) fn new(threads: usize) -> Option<Workers> {
        if !machine::HAS_THREADS {
            return None;
        }
        // A thread that gets its stack but no memory to start with would end the process.
        let fits = |&n: &usize| machine::has_memory(n * (STACK + START_MEMORY));
        let halves = std::iter::successors(Some(threads), |n| Some(n / 2));
        let count = halves.take_while(|n| *n > 0).find(fits)?;
        let board = Board {
            posts: Vec::with_capacity(CALL_SLOTS),
            started: 0,
            spinning: 0,
            sleeping: 0,
            has_ended: false,
        };
        let tuning = &Machine::get().tuning.threads;
        let duration = Duration::from_micros(tuning.spin_us as u64);
        let shared = Arc::new(Shared {
            board: Mutex::new(board),
            posted: Condvar::new(),
            post_count: AtomicUsize::new(0),
            left: Condvar::new(),
            waiting: AtomicUsize::new(0),
            begin: Instant::now(),
            last_end: AtomicU64::new(0),
            spin: Spin { duration, spins: tuning.spins },
        });
        machine::stay_loaded();
        let mut workers = Workers { shared, threads: Vec::with_capacity(count), process: process::id() };
        for i in 0..count {
            let shared = workers.shared.clone();
            let thread = thread::Builder::new().name(format!("{THREAD_NAME} {i}")).stack_size(STACK);
            match thread.spawn(move || shared.work()) {
                Ok(thread) => workers.threads.push(thread),
                Err(_) => break,
            }
        }
        // Each allocates when it starts, for which there is memory now.
        let mut board = workers.shared.board();
        while board.started < workers.threads.len() {
            board = workers.shared.left.wait(board).unwrap_or_else(PoisonError::into_inner);
        }
        drop(board);
        (!workers.threads.is_empty()).then_some(workers)
    }

    /// How many there are; at least 1.
    pub(super) fn count(&self) -> usize {
        self.threads.len()
    }

    /// Whether the threads exist in this process: a forked child has none of its parent's.
    pub(super) fn are_of_this_process(&self) -> bool {
        self.process == process::id()
    }

    /// Calls `task` on the calling thread and, at the same time, on others; `concurrency` has at
    /// least 2.
    pub(super) fn run(&self, concurrency: Concurrency, task: &(dyn Fn() + Sync)) {
        let shared = &*self.shared;
        let wanted = concurrency.threads - 1;
        // A thread that is woken by one of several calls in a row is awake for the next of them.
        let wake = if shared.follows_another() { wanted } else { concurrency.wake };
        let is_shared = (wake > 0 || shared.board().sleeping < self.threads.len())
            && calls::open(task, |open| {
                let posted = shared.post(Post { call: open.id(), wanted }, wake);
                task();
                drop(posted);
                open.close();
                shared.wait_until(|| open.is_empty());
            });
        if !is_shared {
            task();
        }
        shared.last_end.store(shared.now(), Ordering::Relaxed);
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        if !self.are_of_this_process() {
            // There is no thread to join, and one of them may have held the lock during the fork.
            mem::forget(mem::take(&mut self.threads));
            return;
        }
        self.shared.board().has_ended = true;
        self.shared.post_count.fetch_add(1, Ordering::Release);
        self.shared.posted.notify_all();
        for thread in self.threads.drain(..) {
            // It cannot have panicked: `CallId::run` catches panics of tasks.
            let _ = thread.join();
        }
    }
}

/// A call's post, taken down when dropped.
struct Posted<'s> {
    shared: &'s Shared,
    call: CallId,
}

impl Drop for Posted<'_> {
    fn drop(&mut self) {
        self.shared.board().posts.retain(|post| post.call != self.call);
    }
}

impl Shared {
    fn board(&self) -> MutexGuard<'_, Board> {
        // No code panics while it holds the lock.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nanoseconds since the threads were made; enough bits for 500 years.
    fn now(&self) -> u64 {
        self.begin.elapsed().as_nanos() as u64
    }

    /// Whether the last call ended so recently that threads may still spin.
    fn follows_another(&self) -> bool {
        let pause = self.now().saturating_sub(self.last_end.load(Ordering::Relaxed));
        u128::from(pause) < self.spin.duration.as_nanos()
    }

    /// Posts a call, and wakes up to `wake` threads if not enough are awake.
    fn post(&self, post: Post, wake: usize) -> Posted<'_> {
        let Post { call, wanted } = post;
        let mut board = self.board();
        // Full only in a forked child, where the posts of its parent's other threads stay for ever.
        if board.posts.len() < board.posts.capacity() {
            board.posts.push(post);
        }
        let sleeping = board.sleeping;
        let wake = wanted.saturating_sub(board.spinning).min(wake).min(sleeping);
        drop(board);
        self.post_count.fetch_add(1, Ordering::Release);
        if wake > 0 && wake == sleeping {
            self.posted.notify_all();
        } else {
            (0..wake).for_each(|_| self.posted.notify_one());
        }
        Posted { shared: self, call }
    }

    /// The main loop of a thread.
    fn work(&self) {
        let mut board = self.board();
        board.started += 1;
        self.left.notify_all();
        while !board.has_ended {
            let seen = self.post_count.load(Ordering::Acquire);
            if let Some(call) = board.take() {
                drop(board);
                call.run();
                // A caller that announces later that it waits finds that this thread has left: see
                // `OpenCall::is_empty`.
                if self.waiting.load(Ordering::SeqCst) > 0 {
                    drop(self.board());
                    self.left.notify_all();
                }
                board = self.board();
                continue;
            }
            board.spinning += 1;
            drop(board);
            self.spin.until(|| self.post_count.load(Ordering::Acquire) != seen);
            board = self.board();
            board.spinning -= 1;
            if board.posts.is_empty() && !board.has_ended {
                board.sleeping += 1;
                board = self.posted.wait(board).unwrap_or_else(PoisonError::into_inner);
                board.sleeping -= 1;
            }
        }
    }

    /// Waits for a condition that threads make true by leaving a task.
    fn wait_until(&self, is_met: impl Fn() -> bool) {
        if self.spin.until(&is_met) {
            return;
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut board = self.board();
        while !is_met() {
            board = self.left.wait(board).unwrap_or_else(PoisonError::into_inner);
        }
        drop(board);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Board {
    /// A call that wants one more thread.
    fn take(&mut self) -> Option<CallId> {
        let post = self.posts.first_mut()?;
        let call = post.call;
        post.wanted -= 1;
        if post.wanted == 0 {
            self.posts.remove(0);
        }
        Some(call)
    }
}

impl Spin {
    /// Spins until a condition is met, but not for longer than it is set to; whether it was met.
    fn until(self, is_met: impl Fn() -> bool) -> bool {
        if is_met() {
            return true;
        }
        let start = Instant::now();
        loop {
            for _ in 0..self.spins {
                if is_met() {
                    return true;
                }
                hint::spin_loop();
            }
            if start.elapsed() >= self.duration {
                return false;
            }
            thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::pool::{Made, Threads};

    /// Waits for a condition, but not for ever.
    fn until(is_met: impl Fn() -> bool) {
        let start = Instant::now();
        while !is_met() {
            assert!(start.elapsed() < Duration::from_secs(20), "in vain");
            thread::yield_now();
        }
    }

    #[test]
    fn threads_take_part_awake_and_asleep() {
        let _slot = calls::for_a_test();
        let workers = Workers::new(3).expect("threads");
        assert_eq!(workers.count(), 3);
        for rest in [0, 0, 0, 5, 0, 5] {
            thread::sleep(Duration::from_millis(rest));
            for wanted in 1..4 {
                let here = AtomicUsize::new(0);
                workers.run(Concurrency::of(wanted + 1), &|| {
                    here.fetch_add(1, Ordering::Relaxed);
                    until(|| here.load(Ordering::Relaxed) > wanted);
                });
                assert_eq!(here.into_inner(), wanted + 1);
            }
        }
    }

    #[test]
    fn a_thread_that_has_not_come_is_not_waited_for() {
        let _slot = calls::for_a_test();
        let workers = Workers::new(1).expect("a thread");
        let (held, go) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                workers.run(Concurrency::of(2), &|| {
                    if thread::current().name().is_some_and(|name| name.starts_with(THREAD_NAME)) {
                        held.store(true, Ordering::Relaxed);
                        until(|| go.load(Ordering::Relaxed));
                    } else {
                        until(|| held.load(Ordering::Relaxed));
                    }
                });
            });
            until(|| held.load(Ordering::Relaxed));
            let calls = AtomicUsize::new(0);
            workers.run(Concurrency::of(2), &|| _ = calls.fetch_add(1, Ordering::Relaxed));
            assert_eq!(calls.into_inner(), 1);
            assert!(workers.shared.board().posts.is_empty());
            // Long enough for the other caller to sleep until its task has been left.
            until(|| workers.shared.waiting.load(Ordering::Relaxed) == 1);
            go.store(true, Ordering::Relaxed);
        });
        assert_eq!(workers.shared.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn threads_that_sleep_are_left_alone_by_a_small_call() {
        let _slot = calls::for_a_test();
        let workers = Workers::new(2).expect("threads");
        let small = Concurrency { threads: 3, wake: 0 };
        let asleep = || until(|| workers.shared.board().sleeping == 2);
        let rest = || thread::sleep(2 * workers.shared.spin.duration);
        asleep();
        rest();
        let posted = || workers.shared.post_count.load(Ordering::Relaxed);
        let before = posted();
        workers.run(small, &|| ());
        assert_eq!(posted(), before);
        // But not by one of several calls in a row, which this thread may be kept from making.
        until(|| {
            asleep();
            (0..2).for_each(|_| workers.run(small, &|| ()));
            posted() > before
        });
    }

    /// Each piece of work is done once, however many callers there are at the same time.
    #[test]
    fn many_callers_share_threads() {
        let _slot = calls::for_a_test();
        let workers = Workers::new(3).expect("threads");
        thread::scope(|scope| {
            for caller in 0..6 {
                let workers = &workers;
                scope.spawn(move || {
                    for call in 0..2000 {
                        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
                        workers.run(
                            Concurrency { wake: call % 2, ..Concurrency::of(2 + (call + caller) % 4) },
                            &|| {
                                while next.fetch_add(1, Ordering::Relaxed) < 10 {
                                    done.fetch_add(1, Ordering::Relaxed);
                                }
                            },
                        );
                        assert_eq!(done.into_inner(), 10);
                    }
                });
            }
        });
        assert!(workers.shared.board().posts.is_empty());
    }

    /// One of its parent's threads may have held the lock during the fork: a child must not wait
    /// for it.
    #[test]
    fn a_forked_child_computes_alone() {
        let mut made = Made::new(3).expect("threads");
        made.0.process ^= 1;
        let shared = made.0.shared.clone();
        let mut board = shared.board();
        let calls = AtomicUsize::new(0);
        made.run(Concurrency::of(3), &|| _ = calls.fetch_add(1, Ordering::Relaxed));
        drop(made);
        assert_eq!(calls.into_inner(), 1);
        // The threads exist after all, and must end.
        board.has_ended = true;
        drop(board);
        shared.posted.notify_all();
    }

    #[test]
    fn threads_end_with_the_pool() {
        for rest in [0, 5] {
            let workers = Workers::new(2).expect("threads");
            thread::sleep(Duration::from_millis(rest));
            let shared = Arc::downgrade(&workers.shared);
            drop(workers);
            assert!(shared.upgrade().is_none());
        }
    }
}
