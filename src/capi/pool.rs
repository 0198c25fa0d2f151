//! `fa_pool`: the caller's threads, or a pool of the library's in the same form.

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::status::fa_status;
use super::{abi, guard};
use crate::error::{Error, Refusal};
use crate::machine;
use crate::pool::calls::{self, CallId};
use crate::pool::{Concurrency, MAX_THREADS, Made, Threads};
use crate::simd::fp_env::FpEnv;

/// One call of a task.
pub type fa_task = Option<unsafe extern "C" fn(arg: *mut c_void, i: usize)>;

/// The caller's threads: two functions that ONNX Runtime's ParallelFor, pthreadpool, TBB, OpenMP,
/// libdispatch and the like can implement in a few lines. Both must return normally: no exception
/// and no longjmp may leave them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fa_pool {
    /// sizeof(fa_pool). The larger structure of a later version is accepted if the fields that this
    /// version does not know are 0.
    pub struct_size: usize,
    /// Passed to both functions.
    pub ctx: *mut c_void,
    /// How many threads compute at the same time, the calling thread included; clamped to 1 to 256.
    /// NULL = 1.
    pub width: Option<unsafe extern "C" fn(ctx: *mut c_void) -> i32>,
    /// Calls task(arg, i) once for each i below n, in any order, at the same time or one after
    /// another, on any threads (the calling one may be among them), and returns when all these
    /// calls have returned. It does not matter which thread makes which call; tasks never wait for
    /// each other. NULL = the calling thread makes the calls.
    ///
    /// A pool that breaks this contract only loses time. If it leaves out a call, other tasks or
    /// the calling thread do its work. A call that it makes twice, or with an i of n or more, finds
    /// nothing to do. If calls still run when it returns, the library waits for them; later calls
    /// do nothing. No thread may end within a task, or leave a task, parallel_for or width by
    /// longjmp or an exception. At most 256 calls can use pools at the same time; further calls use
    /// the calling thread alone.
    pub parallel_for:
        Option<unsafe extern "C" fn(ctx: *mut c_void, n: usize, task: fa_task, arg: *mut c_void)>,
}

/// Makes a pool of the library's own threads, to be used like a pool of the caller's. Idle threads
/// spin for 50 microseconds, yielding their core to other threads, and then sleep.
///
/// @param n_threads  0 to 256: threads that compute at the same time in a call, the calling one
///                   included; 0 = one per core that the process may use, 256 at most
/// @param[out] out   not NULL; the pool; give it back with fa_pool_destroy. Untouched on errors.
/// @return FA_OK; FA_ERR_NULL; FA_ERR_PART (n_threads out of range); FA_ERR_MEMORY (no thread could
///         be created; if the system grants fewer than n_threads, the pool has fewer)
///
/// Allocates up to 1 MiB a thread, and in a rare race can abort the process when memory runs out:
/// see fa_scratch_bytes. Calls on the pool allocate nothing.
///
/// Thread-safe, and so is the pool. In a child process after fork(), calls on it use the calling
/// thread alone: a child makes a pool of its own, and may destroy this one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_pool_create(n_threads: i32, out: *mut *mut fa_pool) -> fa_status {
    guard(|| {
        if out.is_null() {
            return Err(Error::Null);
        }
        let threads = match usize::try_from(n_threads) {
            Ok(0) => machine::cores().min(MAX_THREADS),
            Ok(n) if n <= MAX_THREADS => n,
            _ => return Err(Error::Part),
        };
        let made = match threads {
            1 => None,
            _ => Some(Made::new(threads).ok_or(Error::Memory)?),
        };
        if !machine::has_memory(1 << 10) {
            return Err(Error::Memory);
        }
        let owned = Box::into_raw(Box::new(Owned {
            face: fa_pool {
                struct_size: size_of::<fa_pool>(),
                ctx: ptr::null_mut(),
                width: Some(width_of_owned),
                parallel_for: Some(parallel_for_of_owned),
            },
            made,
        }));
        // SAFETY: `owned` was just allocated. I1: `out` is not NULL, so it is writable.
        unsafe {
            (*owned).face.ctx = owned.cast();
            out.write_unaligned(owned.cast());
        }
        Ok(())
    })
}

/// Ends the threads of a pool from fa_pool_create and frees it. No call may be using it.
///
/// @param pool  NULL does nothing
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_pool_destroy(pool: *mut fa_pool) {
    let _ = guard(|| {
        if !pool.is_null() {
            // SAFETY: I1: a pool from `fa_pool_create`, which no call uses any more.
            drop(unsafe { Box::from_raw(pool.cast::<Owned>()) });
        }
        Ok(())
    });
}

/// A pool of the library's own. C sees the first field.
///
/// cbindgen:ignore
#[repr(C)]
struct Owned {
    face: fa_pool,
    made: Option<Made>,
}

unsafe extern "C" fn width_of_owned(ctx: *mut c_void) -> i32 {
    // SAFETY: I1: `ctx` is the pool that `fa_pool_create` made with this function.
    let owned = unsafe { &*ctx.cast::<Owned>() };
    owned.made.as_ref().map_or(1, |made| made.width() as i32)
}

unsafe extern "C" fn parallel_for_of_owned(ctx: *mut c_void, n: usize, task: fa_task, arg: *mut c_void) {
    /// A task of the caller and its argument.
    struct Call(unsafe extern "C" fn(*mut c_void, usize), *mut c_void);
    // SAFETY: I1: `parallel_for` may call the task on any thread.
    unsafe impl Sync for Call {}
    let _ = guard(|| {
        let Some(task) = task else { return Ok(()) };
        // SAFETY: I1: `ctx` is the pool that `fa_pool_create` made with this function.
        let owned = unsafe { &*ctx.cast::<Owned>() };
        let call = Call(task, arg);
        let next = AtomicUsize::new(0);
        let each = || {
            let call = &call;
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= n {
                    break;
                }
                // SAFETY: I1: the caller's task with its argument; each i once.
                unsafe { (call.0)(call.1, i) };
            }
        };
        match &owned.made {
            Some(made) => {
                // How much a task does is not known: all threads are worth waking.
                made.run(Concurrency::of(n.clamp(1, made.width())), &each);
            }
            None => each(),
        }
        Ok(())
    });
}

type ParallelFor = unsafe extern "C" fn(*mut c_void, usize, fa_task, *mut c_void);

/// Tells a pool of the library's own, which can be told how many threads are worth waking.
const PARALLEL_FOR_OF_OWNED: ParallelFor = parallel_for_of_owned;

/// A pool from C whose structure has been checked.
pub(super) struct Lent {
    pool: fa_pool,
    /// The floating-point environment of the caller, in which its functions are called: threads
    /// that they create inherit it.
    environment: FpEnv,
}

impl Lent {
    /// Reads a pool; `None` for NULL. Its functions will be called in `environment`.
    ///
    /// # Safety
    /// `pool` is NULL or readable.
    pub(super) unsafe fn read(pool: *const fa_pool, environment: FpEnv) -> Result<Option<Lent>, Refusal> {
        if pool.is_null() {
            return Ok(None);
        }
        // SAFETY: I1: not NULL, so it is readable. I9: function pointers are addresses or NULL.
        let pool = unsafe { abi::read_sized("pool->struct_size", pool)? };
        Ok(Some(Lent { pool, environment }))
    }

    /// How many threads compute at the same time; at least 1.
    pub(super) fn width(&self) -> usize {
        let fa_pool { ctx, width, .. } = self.pool;
        // SAFETY: I1: the caller's function, with its context and in its environment.
        let width = width.map_or(1, |width| unsafe { self.environment.during(|| width(ctx)) });
        usize::try_from(width).unwrap_or(1).clamp(1, MAX_THREADS)
    }
}

impl Threads for Lent {
    fn run(&self, concurrency: Concurrency, task: &(dyn Fn() + Sync)) {
        let Some(parallel_for) = self.pool.parallel_for.filter(|_| concurrency.threads > 1) else {
            return task();
        };
        let (n, ctx) = (concurrency.threads, self.pool.ctx);
        if ptr::fn_addr_eq(parallel_for, PARALLEL_FOR_OF_OWNED) {
            // SAFETY: I1: a pool with this function is one of `fa_pool_create`, as is its context.
            let owned = unsafe { &*ctx.cast::<Owned>() };
            if let Some(made) = &owned.made {
                return made.run(concurrency, task);
            }
        }
        let opened = calls::open(task, |open| {
            let arg = ptr::without_provenance_mut(open.id().number());
            // SAFETY: I1: the caller's function, with its context and in its environment; I8: the
            // task is reached by number, and only while the call lasts.
            unsafe { self.environment.during(|| parallel_for(ctx, n, Some(enter), arg)) };
        });
        if !opened {
            task();
        }
    }
}

/// A task, called from C: no panic may leave it.
unsafe extern "C" fn enter(arg: *mut c_void, _i: usize) {
    guard(|| {
        CallId::of(arg.addr()).run();
        Ok(())
    });
}
