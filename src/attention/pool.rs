//! Threads that the caller keeps.

use std::fmt;

use crate::error::names::number;
use crate::error::{Error, Refusal};
use crate::machine;
use crate::pool::{Caller, MAX_THREADS, Made, Threads};

/// The threads that compute: the calling thread alone ([`Pool::default`]), or with threads of the
/// pool. These spin for 50 µs after a call, then sleep; they end with the pool. Any number of calls
/// may use a pool at once. After a fork, calls in the child use the calling thread alone: a child
/// makes a pool of its own.
#[derive(Default)]
pub struct Pool {
    made: Option<Made>,
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
            _ => Ok(Pool { made: Some(Made::new(threads).ok_or(Error::Memory)?) }),
        }
    }

    /// How many threads compute a call, at most.
    pub fn threads(&self) -> usize {
        self.made.as_ref().map_or(1, Made::width)
    }

    pub(super) fn threads_to_run_on(&self) -> &dyn Threads {
        match &self.made {
            Some(made) => made,
            None => &Caller,
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({})", self.threads())
    }
}
