//! `fa_attention_check`, `_check_run`, `_workspace`, `_workspace_max`, `_run`, `_part`, `_finish`.

use std::ffi::{c_char, c_void};
use std::fmt::{self, Write};

use super::attention::fa_attention;
use super::doubts::Doubts;
use super::pool::{Lent, fa_pool};
use super::status::fa_status;
use super::{Quiet, describe, guard};
use crate::error::names::number;
use crate::error::{Error, Refusal};
use crate::machine::Machine;
use crate::plan::Plan;
use crate::pool::{Caller, MAX_THREADS, Threads};
use crate::prepared::{self, Prepared};
use crate::simd::fp_env::FpEnv;
use crate::workspace::Memory;

/// Says whether a problem can be computed, and how on the calling thread alone. If it cannot, says
/// why, with the numbers that do not fit. Writes nothing but why.
///
/// If it can, warnings follow for what is legal and yet cannot be meant: strides of q, k or v that
/// are smaller than a row, or by which heads and tokens overlap, as if they counted elements, or
/// were swapped, or there were fewer heads; a stride of 0 between pages; strides of 0 by which a
/// head has one key and one value; strides of mask that count elements. A warning begins with
/// "warning: ". That data is repeated by a stride of 0 is no reason for one.
///
/// @param[in] a        not NULL
/// @param[out] why     NULL, or room for why_size bytes: a sentence in English, always ended by a
///                     zero byte, cut off if it is longer. Its wording may change in any version;
///                     fa_attention_plan is for programs.
/// @param why_size     bytes at why
/// @return FA_OK, or the status with which fa_attention_run would refuse it. Workspace and pool are
///         not looked at: fa_attention_check_run does that.
///
/// Thread-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_attention_check(
    a: *const fa_attention,
    why: *mut c_char,
    why_size: usize,
) -> fa_status {
    guard(|| {
        // SAFETY: I1: `a` is as documented.
        unsafe { explain(Words::new(why, why_size), a, None) }
    })
}

/// fa_attention_check for a whole call of fa_attention_run, workspace and pool included: says
/// whether the call would be refused and why, or how it computes with this pool, and the same
/// warnings. There is no refusal of fa_attention_run that it does not explain. Computes nothing and
/// does not touch the workspace; it calls the function width of the pool.
///
/// @param[in] a        not NULL
/// @param ws           as for fa_attention_run
/// @param ws_size      bytes at ws
/// @param[in] pool     as for fa_attention_run
/// @param[out] why     as for fa_attention_check
/// @param why_size     bytes at why
/// @return what fa_attention_run would return (except for FA_ERR_INTERNAL)
///
/// Thread-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_attention_check_run(
    a: *const fa_attention,
    ws: *const c_void,
    ws_size: usize,
    pool: *const fa_pool,
    why: *mut c_char,
    why_size: usize,
) -> fa_status {
    let lent = WhatIsLent { ws, ws_size, pool, environment: FpEnv::current() };
    // SAFETY: I1: `a` and `pool` are as documented.
    guard(|| unsafe { explain(Words::new(why, why_size), a, Some(&lent)) })
}

/// What a call is given besides the description.
struct WhatIsLent {
    ws: *const c_void,
    ws_size: usize,
    pool: *const fa_pool,
    environment: FpEnv,
}

/// Says in words how a call computes, or why it is refused. Without what is lent, it is one on the
/// calling thread, whose workspace is not looked at.
///
/// # Safety
/// `a` is NULL or as documented, except that nothing need be readable where the tensors are; the
/// pool is as documented.
#[inline(never)]
unsafe fn explain(mut words: Words, a: *const fa_attention, lent: Option<&WhatIsLent>) -> Result<(), Error> {
    // SAFETY: I1: as the caller vouches.
    let found = unsafe { describe_call(&mut words, a, lent) };
    words.end(found)?;
    Ok(())
}

/// Puts a call that is right into words; see [`explain`].
///
/// # Safety
/// As for [`explain`].
unsafe fn describe_call(
    words: &mut Words,
    a: *const fa_attention,
    lent: Option<&WhatIsLent>,
) -> Result<(), Refusal> {
    let mut width = 1;
    if let Some(lent) = lent {
        // SAFETY: I1: the pool is as documented.
        let pool = unsafe { Lent::read(lent.pool, lent.environment)? };
        width = pool.as_ref().map_or(1, Lent::width);
    }
    // SAFETY: I1: `a` is NULL or as documented.
    let problem = unsafe { describe::problem(a)? };
    let plan = prepared::plan(problem.shape(), problem.semantics().accuracy, width)?;
    if let Some(lent) = lent {
        enough(prepared::borrowed_bytes(&plan)?, lent.ws, lent.ws_size)?;
    }
    // What there is no room for is left out.
    let _ = write!(words, "{plan}{}", Doubts(&problem));
    Ok(())
}

/// Refuses a workspace of `size` bytes at `ws` for a call that needs `needed`.
fn enough(needed: usize, ws: *const c_void, size: usize) -> Result<(), Refusal> {
    if needed == 0 || (size >= needed && !ws.is_null()) {
        return Ok(());
    }
    let (fact, but) = match ws.is_null() {
        true => (Refusal::of_thing("ws"), "NULL, but with its pool the call needs bytes"),
        false => (Refusal::of("ws_size", number(size)), "fewer bytes than the call needs with its pool"),
    };
    Err(fact.against(Error::Workspace, but, number(needed)))
}

/// Bytes of scratch memory that fa_attention_run needs with a pool of n_parts threads, and that
/// fa_attention_part needs with n_parts parts. For a NULL pool n_parts is 1. For another pool it is
/// what its function width answers (pool->width(pool->ctx); a pool from fa_pool_create always has
/// one), clamped to 1 to 256. The size grows at most with the sum of the sizes, never with their
/// product. It may be 0. A larger workspace is fine.
///
/// The size depends on the sizes, strides and block sizes of the description and on which pointers
/// are NULL, not on what they point to. So a decode loop asks once, with the largest len_kv that
/// there will be, and uses the memory for every step with that len_kv, whatever kv_lens are. For
/// other sizes ask again: a smaller problem does not always need less, as it may be divided
/// differently. Lists of lengths, positions, spans, pages and scales are checked nevertheless, so
/// they must be there, with values that a call could have. Tensors need not be there.
///
/// @param[in] a        not NULL
/// @param n_parts      1 to 256
/// @param[out] bytes   not NULL; untouched on errors
/// @return as fa_attention_check, and FA_ERR_NULL, FA_ERR_PART
///
/// Thread-safe. The answer is valid until fa_limit_isa or
/// fa_enable_amx is called.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_attention_workspace(
    a: *const fa_attention,
    n_parts: i32,
    bytes: *mut usize,
) -> fa_status {
    guard(|| {
        if bytes.is_null() {
            return Err(Error::Null);
        }
        let threads = parts(n_parts)?;
        // SAFETY: I1: `a` is as documented.
        let problem = unsafe { describe::problem(a)? };
        let needed = prepared::bytes_for(problem.shape(), problem.semantics().accuracy, threads)?;
        // SAFETY: I1: not NULL, so it is writable; no alignment is assumed.
        unsafe { bytes.write_unaligned(needed) };
        Ok(())
    })
}

/// Bytes of scratch memory that are enough for every number of parts from 1 to max_parts: the
/// largest answer of fa_attention_workspace for any of them. (More parts do not always need more.)
/// For programs that do not know yet how many threads they will have.
///
/// @param[in] a        not NULL
/// @param max_parts    1 to 256
/// @param[out] bytes   not NULL; untouched on errors
/// @return as fa_attention_workspace
///
/// Thread-safe. The answer is valid until fa_limit_isa or
/// fa_enable_amx is called.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_attention_workspace_max(
    a: *const fa_attention,
    max_parts: i32,
    bytes: *mut usize,
) -> fa_status {
    guard(|| {
        if bytes.is_null() {
            return Err(Error::Null);
        }
        let threads = parts(max_parts)?;
        // SAFETY: I1: `a` is as documented.
        let problem = unsafe { describe::problem(a)? };
        let needed = prepared::most_borrowed_bytes(problem.shape(), problem.semantics().accuracy, threads)?;
        // SAFETY: I1: not NULL, so it is writable; no alignment is assumed.
        unsafe { bytes.write_unaligned(needed) };
        Ok(())
    })
}

/// Computes the problem.
///
/// @param[in] a     not NULL
/// @param ws        scratch memory: fa_attention_workspace bytes for as many parts as the pool is
///                  wide. May be uninitialised and unaligned. NULL if that size is 0. Belongs to
///                  the call until it returns; its content is of no use afterwards.
/// @param ws_size   bytes at ws
/// @param[in] pool  the threads; NULL = the calling thread alone
/// @return FA_OK; FA_ERR_NULL; FA_ERR_STRUCT_SIZE; FA_ERR_RESERVED; FA_ERR_SHAPE;
///         FA_ERR_ZERO_EXTENT; FA_ERR_OVERFLOW; FA_ERR_STRIDE; FA_ERR_DTYPE; FA_ERR_SOFTMAX_SCALE;
///         FA_ERR_SOFTCAP; FA_ERR_WINDOW; FA_ERR_LENGTHS; FA_ERR_PAGE; FA_ERR_OVERLAP;
///         FA_ERR_QUANT_SCALE; FA_ERR_WORKSPACE; FA_ERR_ISA; FA_ERR_INTERNAL. FA_ERR_STRUCT_SIZE is
///         about a or about the pool. fa_attention_check_run says why in words.
///
/// Allocates nothing, takes no locks and prints nothing (the functions of a pool may). Calls need
/// up to 48 KiB of stack. A row has the same bits for every pool, and for fa_attention_part with
/// any n_parts.
///
/// Thread-safe: any number of calls may run at the same time, with outputs and workspaces of their
/// own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_attention_run(
    a: *const fa_attention,
    ws: *mut c_void,
    ws_size: usize,
    pool: *const fa_pool,
) -> fa_status {
    let environment = FpEnv::current();
    guard(|| {
        // SAFETY: I1: `pool` and `a` are as documented.
        let lent = unsafe { Lent::read(pool, environment)? };
        let threads: &dyn Threads = lent.as_ref().map_or(&Caller, |lent| lent);
        let width = lent.as_ref().map_or(1, Lent::width);
        // SAFETY: I1: `a` is as documented.
        let mut problem = unsafe { describe::problem(a)? };
        // SAFETY: I1: `ws_size` bytes at `ws`, which belong to this call until it returns.
        let memory = unsafe { Memory::new(ws.cast(), ws_size) };
        Prepared::new(&mut problem, width)?.run(memory, &Quiet(threads))
    })
}

/// Computes one part of n_parts of the problem on the calling thread: for engines that have their
/// own threads and barriers. Call it once for each part below n_parts, on any threads, at the same
/// time or one after another, in any order. Then, after a barrier, call fa_attention_finish once
/// for each part.
///
/// @param[in] a     not NULL; the same in every call
/// @param ws        as for fa_attention_run: fa_attention_workspace bytes for n_parts. All parts
///                  share it, from the first call of part to the last call of finish.
/// @param ws_size   bytes at ws; the same in every call
/// @param part      at least 0, less than n_parts
/// @param n_parts   1 to 256; the same in every call
/// @return as fa_attention_run, and FA_ERR_PART
///
/// Allocates nothing, takes no locks and prints nothing. In small problems some parts have nothing
/// to do.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_attention_part(
    a: *const fa_attention,
    ws: *mut c_void,
    ws_size: usize,
    part: i32,
    n_parts: i32,
) -> fa_status {
    guard(|| {
        let [i, n] = share(part, n_parts)?;
        // SAFETY: I1: `a` is as documented.
        let mut problem = unsafe { describe::problem(a)? };
        // SAFETY: I1: `ws_size` bytes at `ws`, shared by the parts, each of which has another
        // number.
        let memory = unsafe { Memory::new(ws.cast(), ws_size) };
        Prepared::in_parts(&mut problem, n)?.run_share(memory, i)
    })
}

/// Completes what fa_attention_part has begun. Call it once for each part, after all parts have
/// returned. If there are few query rows and many keys, the keys of a row are divided among parts;
/// this function merges their partial results. The output is complete when it has returned for
/// every part: a thread that reads rows of others needs a barrier after it.
///
/// @param[in] a     as for fa_attention_part
/// @param ws        the same memory, as fa_attention_part has left it
/// @param ws_size   the same
/// @param part      at least 0, less than n_parts
/// @param n_parts   the same
/// @return as fa_attention_part
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_attention_finish(
    a: *const fa_attention,
    ws: *mut c_void,
    ws_size: usize,
    part: i32,
    n_parts: i32,
) -> fa_status {
    guard(|| {
        let [i, n] = share(part, n_parts)?;
        // SAFETY: I1: `a` is as documented.
        let mut problem = unsafe { describe::problem(a)? };
        // SAFETY: I1, I6: `ws_size` bytes at `ws`, as the parts have left them, all of which have
        // returned; each part finishes what began in its own share.
        let memory = unsafe { Memory::new(ws.cast(), ws_size) };
        Prepared::in_parts(&mut problem, n)?.finish(memory, i)
    })
}

/// Plans a description for so many threads (at least 1), or refuses it: what fa_attention_check
/// puts into words. Reads lists of lengths, pages and scales, no tensor.
///
/// # Safety
/// `a` is NULL or as documented, except that nothing need be readable where the tensors are.
pub unsafe fn plan(a: *const fa_attention, threads: usize) -> Result<Plan, Refusal> {
    // SAFETY: I1: `a` is NULL or as documented.
    let problem = unsafe { describe::problem(a)? };
    Ok(prepared::plan(problem.shape(), problem.semantics().accuracy, threads)?)
}

/// Computes a description as fa_attention_run does, with the plan of another machine, which it
/// returns. For tests of what measured numbers decide.
///
/// # Safety
/// As for [`fa_attention_run`].
pub unsafe fn run_as_on(
    machine: Machine,
    a: *const fa_attention,
    threads: usize,
    pool: &dyn Threads,
) -> Result<Plan, Refusal> {
    // SAFETY: I1: `a` is as documented.
    let mut problem = unsafe { describe::problem(a)? };
    let plan = prepared::plan_on(machine, problem.shape(), problem.semantics().accuracy, threads)?;
    Prepared::with_plan(&mut problem, plan.clone()).run_allocating(pool)?;
    Ok(plan)
}

/// The number of a part, and how many there are.
fn share(part: i32, n_parts: i32) -> Result<[usize; 2], Error> {
    let n = parts(n_parts)?;
    let i = usize::try_from(part).ok().filter(|&i| i < n).ok_or(Error::Part)?;
    Ok([i, n])
}

pub(super) fn parts(n: i32) -> Result<usize, Error> {
    usize::try_from(n).ok().filter(|n| (1..=MAX_THREADS).contains(n)).ok_or(Error::Part)
}

/// Writes words into the caller's memory, as far as there is room.
pub(super) struct Words {
    /// Where the next byte goes, and how many are free from there on.
    at: *mut u8,
    left: usize,
}

impl Words {
    pub(super) fn new(at: *mut c_char, size: usize) -> Words {
        Words { at: at.cast(), left: if at.is_null() { 0 } else { size } }
    }

    /// Says why something is refused, if it is; then comes the zero byte at the end.
    pub(super) fn end<T>(mut self, found: Result<T, Refusal>) -> Result<T, Refusal> {
        if let Err(refusal) = &found {
            let _ = write!(self, "{refusal}");
        }
        if self.left > 0 {
            // SAFETY: I1: `left` bytes of the caller's are free at `at`.
            unsafe { self.at.write(0) };
        }
        found
    }
}

impl Write for Words {
    /// An error if there was not room for all: what comes next need not be formatted.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.left <= 1 {
                return Err(fmt::Error);
            }
            // SAFETY: I1: `left` bytes of the caller's are free at `at`, and the last stays so.
            unsafe { self.at.write(byte) };
            self.at = self.at.wrapping_add(1);
            self.left -= 1;
        }
        Ok(())
    }
}
