//! Threads that wait for calls to take part in.
//!
//! A call puts a ticket for its task on the board and works itself; threads take one each, those that are awake, and
//! those that are worth being woken. When the caller finds nothing left to do, it takes back the tickets that nobody
//! wanted: a thread that wakes up late is not waited for. No call allocates.

use std::hint;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{mem, process};

use super::Concurrency;
use super::calls::{self, CallId, GATES};
use crate::machine;

/// What the names of the threads start with.
pub(crate) const THREAD_NAME: &str = "flash_attention";

/// Their stack: kernels keep their arrays in scratch memory, so little is needed. But where nothing is inlined, as in a
/// Rust program that is being debugged, vectors are copied from frame to frame.
const STACK: usize = if cfg!(debug_assertions) { 8 << 20 } else { 512 << 10 };

/// What starting one takes from the allocator besides, generously.
const START_MEMORY: usize = 256 << 10;

/// How long a thread looks out for what it waits for before it sleeps: about as long as waking it takes (20 to 60 µs in
/// a virtual machine whose idle cores sleep), so that it never costs more than twice what the better of the two would
/// (Karlin, Li, Manasse, Owicki: Empirical studies of competitive spinning for a shared-memory multiprocessor, 1991).
const LOOK_OUT: Duration = Duration::from_micros(50);

/// Looks before the core is offered to others: half a microsecond to one and a half.
const LOOKS: usize = 32;

/// Threads of this process.
pub(super) struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    process: u32,
}

struct Shared {
    board: Mutex<Board>,
    /// Something is on the board, or the end has come: for threads that sleep.
    news: Condvar,
    /// How often something was put there: for threads that look out.
    posted: AtomicUsize,
    /// A thread has started, or left a task.
    done: Condvar,
    /// Callers that sleep until threads have left their tasks.
    waiting: AtomicUsize,
    /// When there were threads, and how many nanoseconds later the last call ended.
    begin: Instant,
    last: AtomicU64,
}

struct Board {
    /// Each of another call, so that there are never more than gates. First come, first served.
    posts: Vec<Post>,
    started: usize,
    /// Threads that look out, each of which looks at the board once more before it sleeps; and those that sleep.
    looking: usize,
    sleeping: usize,
    ended: bool,
}

struct Post {
    ticket: CallId,
    /// Threads that are wanted; at least 1.
    wanted: usize,
}

impl Workers {
    /// As many threads, or as many as the system grants, if any.
    pub(super) fn new(threads: usize) -> Option<Workers> {
        // A thread that gets its stack and then nothing more would end the process.
        let fits = |&n: &usize| machine::has_memory(n * (STACK + START_MEMORY));
        let most = std::iter::successors(Some(threads), |n| Some(n / 2)).take_while(|n| *n > 0).find(fits)?;
        let board =
            Board { posts: Vec::with_capacity(GATES), started: 0, looking: 0, sleeping: 0, ended: false };
        let shared = Arc::new(Shared {
            board: Mutex::new(board),
            news: Condvar::new(),
            posted: AtomicUsize::new(0),
            done: Condvar::new(),
            waiting: AtomicUsize::new(0),
            begin: Instant::now(),
            last: AtomicU64::new(0),
        });
        let mut workers = Workers { shared, threads: Vec::with_capacity(most), process: process::id() };
        for i in 0..most {
            let shared = workers.shared.clone();
            let thread = thread::Builder::new().name(format!("{THREAD_NAME} {i}")).stack_size(STACK);
            match thread.spawn(move || shared.work()) {
                Ok(thread) => workers.threads.push(thread),
                Err(_) => break,
            }
        }
        // Each allocates when it starts: now there is memory for that.
        let mut board = workers.shared.board();
        while board.started < workers.threads.len() {
            board = workers.shared.done.wait(board).unwrap_or_else(PoisonError::into_inner);
        }
        drop(board);
        (!workers.threads.is_empty()).then_some(workers)
    }

    /// How many there are; at least 1.
    pub(super) fn count(&self) -> usize {
        self.threads.len()
    }

    /// Whether they are this process's: a forked child has none of its parent's.
    pub(super) fn are_here(&self) -> bool {
        self.process == process::id()
    }

    /// Calls `task` on the calling thread, and on others meanwhile: a team of at least 2.
    pub(super) fn help(&self, team: Concurrency, task: &(dyn Fn() + Sync)) {
        let shared = &*self.shared;
        let wanted = team.size - 1;
        // Whom a call wakes that follows another is awake for the next.
        let wakes = if shared.follows() { wanted } else { team.woken };
        let helped = (wakes > 0 || shared.board().sleeping < self.threads.len())
            && calls::open(task, |open| {
                let posted = shared.post(Post { ticket: open.ticket(), wanted }, wakes);
                task();
                drop(posted);
                open.shut();
                shared.wait_until(|| open.is_empty());
            });
        if !helped {
            task();
        }
        shared.last.store(shared.now(), Ordering::Relaxed);
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        if !self.are_here() {
            // Nobody to be waited for; nor is the lock to be had, if one of them held it.
            mem::forget(mem::take(&mut self.threads));
            return;
        }
        self.shared.board().ended = true;
        self.shared.posted.fetch_add(1, Ordering::Release);
        self.shared.news.notify_all();
        for thread in self.threads.drain(..) {
            // It cannot have panicked, as tasks keep that to themselves.
            let _ = thread.join();
        }
    }
}

/// What a call has on the board; taken down when dropped.
struct Posted<'s> {
    shared: &'s Shared,
    ticket: CallId,
}

impl Drop for Posted<'_> {
    fn drop(&mut self) {
        self.shared.board().posts.retain(|post| post.ticket != self.ticket);
    }
}

impl Shared {
    fn board(&self) -> MutexGuard<'_, Board> {
        // Nothing panics that holds it.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nanoseconds since the beginning; fits for 500 years.
    fn now(&self) -> u64 {
        self.begin.elapsed().as_nanos() as u64
    }

    /// Whether the last call has just ended.
    fn follows(&self) -> bool {
        u128::from(self.now().saturating_sub(self.last.load(Ordering::Relaxed))) < LOOK_OUT.as_nanos()
    }

    /// Wakes so many threads, if not enough are awake.
    fn post(&self, post: Post, wakes: usize) -> Posted<'_> {
        let Post { ticket, wanted } = post;
        let mut board = self.board();
        // Full only in a child of a process that was forked meanwhile, whose calls nobody takes down.
        if board.posts.len() < board.posts.capacity() {
            board.posts.push(post);
        }
        let sleeping = board.sleeping;
        let wakes = wanted.saturating_sub(board.looking).min(wakes).min(sleeping);
        drop(board);
        self.posted.fetch_add(1, Ordering::Release);
        if wakes > 0 && wakes == sleeping {
            self.news.notify_all();
        } else {
            (0..wakes).for_each(|_| self.news.notify_one());
        }
        Posted { shared: self, ticket }
    }

    /// What each thread does.
    fn work(&self) {
        let mut board = self.board();
        board.started += 1;
        self.done.notify_all();
        while !board.ended {
            let seen = self.posted.load(Ordering::Acquire);
            if let Some(ticket) = board.take() {
                drop(board);
                ticket.enter();
                // Whoever says later that it waits sees that this thread has left: `Open::is_empty`.
                if self.waiting.load(Ordering::SeqCst) > 0 {
                    drop(self.board());
                    self.done.notify_all();
                }
                board = self.board();
                continue;
            }
            board.looking += 1;
            drop(board);
            look_out(|| self.posted.load(Ordering::Acquire) != seen);
            board = self.board();
            board.looking -= 1;
            if board.posts.is_empty() && !board.ended {
                board.sleeping += 1;
                board = self.news.wait(board).unwrap_or_else(PoisonError::into_inner);
                board.sleeping -= 1;
            }
        }
    }

    /// Waits for something that is so when threads have left a task.
    fn wait_until(&self, is_so: impl Fn() -> bool) {
        if look_out(&is_so) {
            return;
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut board = self.board();
        while !is_so() {
            board = self.done.wait(board).unwrap_or_else(PoisonError::into_inner);
        }
        drop(board);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Board {
    /// A ticket for somebody who is wanted.
    fn take(&mut self) -> Option<CallId> {
        let post = self.posts.first_mut()?;
        let ticket = post.ticket;
        post.wanted -= 1;
        if post.wanted == 0 {
            self.posts.remove(0);
        }
        Some(ticket)
    }
}

/// Looks for a while; whether it was so.
fn look_out(is_so: impl Fn() -> bool) -> bool {
    if is_so() {
        return true;
    }
    let start = Instant::now();
    loop {
        for _ in 0..LOOKS {
            if is_so() {
                return true;
            }
            hint::spin_loop();
        }
        if start.elapsed() >= LOOK_OUT {
            return false;
        }
        thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::pool::{Made, Threads};

    /// Waits, not for ever.
    fn until(is_so: impl Fn() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < Duration::from_secs(20), "in vain");
            thread::yield_now();
        }
    }

    #[test]
    fn threads_take_part_awake_and_asleep() {
        let _gate = calls::for_a_test();
        let workers = Workers::new(3).expect("threads");
        assert_eq!(workers.count(), 3);
        for rest in [0, 0, 0, 5, 0, 5] {
            thread::sleep(Duration::from_millis(rest));
            for wanted in 1..4 {
                let here = AtomicUsize::new(0);
                workers.help(Concurrency::of(wanted + 1), &|| {
                    here.fetch_add(1, Ordering::Relaxed);
                    until(|| here.load(Ordering::Relaxed) > wanted);
                });
                assert_eq!(here.into_inner(), wanted + 1);
            }
        }
    }

    #[test]
    fn a_thread_that_has_not_come_is_not_waited_for() {
        let _gate = calls::for_a_test();
        let workers = Workers::new(1).expect("a thread");
        let (held, go) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                workers.help(Concurrency::of(2), &|| {
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
            workers.help(Concurrency::of(2), &|| _ = calls.fetch_add(1, Ordering::Relaxed));
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
        let _gate = calls::for_a_test();
        let workers = Workers::new(2).expect("threads");
        let team = Concurrency { size: 3, woken: 0 };
        let asleep = || until(|| workers.shared.board().sleeping == 2);
        let rest = || thread::sleep(2 * LOOK_OUT);
        asleep();
        rest();
        let posted = || workers.shared.posted.load(Ordering::Relaxed);
        let before = posted();
        workers.help(team, &|| ());
        assert_eq!(posted(), before);
        // But not by one of several that follow each other, unless this thread is kept from that.
        until(|| {
            asleep();
            (0..2).for_each(|_| workers.help(team, &|| ()));
            posted() > before
        });
    }

    /// Each piece of work is done once, whoever calls at the same time.
    #[test]
    fn many_callers_share_threads() {
        let _gate = calls::for_a_test();
        let workers = Workers::new(3).expect("threads");
        thread::scope(|scope| {
            for caller in 0..6 {
                let workers = &workers;
                scope.spawn(move || {
                    for call in 0..2000 {
                        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
                        workers.help(
                            Concurrency { woken: call % 2, ..Concurrency::of(2 + (call + caller) % 4) },
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

    /// Whatever its parent's threads were doing, such as holding the lock, which a child waits for in vain.
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
        // They are here after all.
        board.ended = true;
        drop(board);
        shared.news.notify_all();
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
