//! Threads of rayon, for programs that have them already.

use std::sync::Arc;

use super::{Concurrency, MAX_THREADS, Threads, spawned};

/// Threads of rayon: of a pool that the caller made, or the global ones.
#[derive(Debug)]
pub enum Rayon {
    /// Those of a pool.
    Pool(Arc<::rayon::ThreadPool>),
    /// Those that rayon makes on first use.
    Global,
}

impl Rayon {
    /// Threads that take part in a call, the calling one included.
    pub fn width(&self) -> usize {
        let threads = match self {
            Rayon::Pool(pool) => pool.current_num_threads(),
            Rayon::Global => ::rayon::current_num_threads(),
        };
        threads.clamp(1, MAX_THREADS)
    }

    fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        match self {
            Rayon::Pool(pool) => pool.spawn(job),
            Rayon::Global => ::rayon::spawn(job),
        }
    }
}

impl Threads for Rayon {
    /// The calling thread takes part, whether it is one of rayon's or not, and no job is waited for
    /// that has not started, as a scope of rayon's would.
    fn run(&self, concurrency: Concurrency, task: &(dyn Fn() + Sync)) {
        spawned::share(concurrency, task, |call| self.spawn(move || call.run()));
    }
}
