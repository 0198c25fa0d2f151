//! Threads that the caller keeps.

use std::fmt;
#[cfg(feature = "rayon")]
use std::sync::Arc;

use crate::error::names::number;
use crate::error::{Error, Refusal};
use crate::machine;
use crate::pool::calls::CallId;
#[cfg(feature = "rayon")]
use crate::pool::rayon::Rayon;
use crate::pool::spawned::Spawned;
use crate::pool::{Caller, MAX_THREADS, Made, Threads};

/// The threads that compute: the calling thread alone ([`Pool::default`]), or with threads of the
/// pool. These spin for 50 µs after a call, then sleep; they end with the pool. Any number of calls
/// may use a pool at once. After a fork, calls in the child use the calling thread alone: a child
/// makes a pool of its own.
#[derive(Default)]
pub struct Pool(Kind);

#[derive(Default)]
enum Kind {
    #[default]
    Caller,
    Made(Made),
    Spawned(Spawned),
    #[cfg(feature = "rayon")]
    Rayon(Rayon),
}

impl Pool {
    /// Makes a pool with which `threads` threads compute a call, the calling one included: up to
    /// 256; 0 = one per core that the process may use. Where the system grants fewer, the pool has
    /// fewer.
    ///
    /// # Errors
    /// [`Error::Part`]: more than 256. [`Error::Memory`]: no threads to be had.
    pub fn new(threads: usize) -> Result<Pool, Refusal> {
        let wanted = if threads == 0 { machine::cores().min(MAX_THREADS) } else { threads };
        match self::threads(wanted)? {
            1 => Ok(Pool::default()),
            n => Ok(Pool(Kind::Made(Made::new(n).ok_or(Error::Memory)?))),
        }
    }

    /// Threads of the program's own, which it starts jobs on: of an executor, or of any crate's
    /// pool. A call that has work for n threads of at most `threads` (1 to 256) calls `spawn` n - 1
    /// times, and each time that is to have some thread call [`Task::run`], now or soon; the
    /// calling thread takes part anyway. A task that comes late, or never, is not waited for: it
    /// does nothing once the call has no work for it.
    ///
    /// ```
    /// use std::sync::{Mutex, mpsc};
    /// use flash_attention::{Pool, Task};
    ///
    /// // Two threads that do whatever they are sent.
    /// let (jobs, queue) = mpsc::channel::<Task>();
    /// let queue = std::sync::Arc::new(Mutex::new(queue));
    /// for _ in 0..2 {
    ///     let queue = queue.clone();
    ///     std::thread::spawn(move || {
    ///         while let Ok(task) = { let next = queue.lock().unwrap().recv(); next } {
    ///             task.run();
    ///         }
    ///     });
    /// }
    /// let pool = Pool::from_spawn(3, move |task| jobs.send(task).expect("threads are there"))?;
    /// assert_eq!(pool.threads(), 3);
    /// # use flash_attention::{Attention, Tensor, TensorMut, Workspace};
    /// # let (x, mut out) = (vec![0.5; 300 * 64], vec![0.0; 300 * 64]);
    /// # let tensor = Tensor::head_first(&x, [1, 1, 300, 64]);
    /// # let output = TensorMut::head_first(&mut out, [1, 1, 300, 64]);
    /// # let mut attention = Attention::new(tensor, tensor, tensor, output);
    /// # let mut workspace = Workspace::new();
    /// attention.reserve(&mut workspace, &pool)?;
    /// attention.run(&mut workspace, &pool)?;
    /// # assert_eq!(out, vec![0.5; 300 * 64]);
    /// # Ok::<(), flash_attention::Refusal>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Part`]: not 1 to 256 threads.
    pub fn from_spawn(threads: usize, spawn: impl Fn(Task) + Send + Sync + 'static) -> Result<Pool, Refusal> {
        let spawn = Box::new(move |call| spawn(Task(call)));
        Ok(Pool(Kind::Spawned(Spawned { threads: self::threads(threads)?, spawn })))
    }

    /// Threads of a rayon pool. A call uses as many as [`Pool::threads`] says, the calling thread
    /// included, which may be one of the pool's. Needs the feature `rayon`.
    ///
    /// ```
    /// # #[cfg(feature = "rayon")] {
    /// let threads = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    /// let pool = flash_attention::Pool::from_rayon(threads); // or an Arc, if it has other work
    /// assert_eq!(pool.threads(), 2);
    /// # }
    /// ```
    #[cfg(feature = "rayon")]
    pub fn from_rayon(pool: impl Into<Arc<rayon::ThreadPool>>) -> Pool {
        Pool(Kind::Rayon(Rayon::Pool(pool.into())))
    }

    /// Rayon's global threads, which that crate makes on first use. Needs the feature `rayon`.
    #[cfg(feature = "rayon")]
    pub fn rayon_global() -> Pool {
        Pool(Kind::Rayon(Rayon::Global))
    }

    /// How many threads compute a call, at most.
    pub fn threads(&self) -> usize {
        match &self.0 {
            Kind::Caller => 1,
            Kind::Made(made) => made.width(),
            Kind::Spawned(spawned) => spawned.threads,
            #[cfg(feature = "rayon")]
            Kind::Rayon(rayon) => rayon.width(),
        }
    }

    pub(super) fn threads_to_run_on(&self) -> &dyn Threads {
        match &self.0 {
            Kind::Caller => &Caller,
            Kind::Made(made) => made,
            Kind::Spawned(spawned) => spawned,
            #[cfg(feature = "rayon")]
            Kind::Rayon(rayon) => rayon,
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({})", self.threads())
    }
}

/// What a thread of [`Pool::from_spawn`] does for a call: some of its work, as long as there is
/// any.
#[derive(Clone, Copy, Debug)]
#[must_use = "nothing is computed before run()"]
pub struct Task(CallId);

impl Task {
    /// Computes on this thread until the call has no more work; does nothing if it has returned. A
    /// panic is reported to the thread that made the call, not to this one.
    pub fn run(self) {
        self.0.run();
    }
}

/// Refuses a number of threads that no call has.
pub(super) fn threads(n: usize) -> Result<usize, Refusal> {
    match n {
        1..=MAX_THREADS => Ok(n),
        0 => Err(Refusal::of("threads", 0).but(Error::Part, "must be at least 1")),
        _ => {
            let fact = Refusal::of("threads", number(n));
            Err(fact.against(Error::Part, "more than a call has", MAX_THREADS as i64))
        }
    }
}
