//! Threads that the caller keeps.

use std::fmt;
#[cfg(feature = "rayon")]
use std::sync::Arc;

use crate::error::names::number;
use crate::error::{Error, Refusal};
use crate::machine;
#[cfg(feature = "rayon")]
use crate::pool::rayon::Rayon;
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
        let threads = match threads {
            0 => machine::cores().min(MAX_THREADS),
            n if n <= MAX_THREADS => n,
            n => {
                let fact = Refusal::of("threads", number(n));
                return Err(fact.against(Error::Part, "more than a pool has", MAX_THREADS as i64));
            }
        };
        match threads {
            1 => Ok(Pool::default()),
            _ => Ok(Pool(Kind::Made(Made::new(threads).ok_or(Error::Memory)?))),
        }
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
            #[cfg(feature = "rayon")]
            Kind::Rayon(rayon) => rayon.width(),
        }
    }

    pub(super) fn threads_to_run_on(&self) -> &dyn Threads {
        match &self.0 {
            Kind::Caller => &Caller,
            Kind::Made(made) => made,
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
