//! `fa_attention_plan`: what `fa_attention_check` says in words, for programs.

use std::ffi::{CStr, c_char};

use super::attention::fa_attention;
use super::run::parts;
use super::status::fa_status;
use super::{abi, describe, guard};
use crate::error::Error;
use crate::kernel::Path;
use crate::plan::Plan;
use crate::prepared;

/// fa_plan.path. Later versions may add values.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum fa_path {
    /// For many query rows: lanes of vectors are query rows.
    FA_PATH_PREFILL = 0,
    /// For few query rows: lanes of vectors are elements of a head.
    FA_PATH_DECODE = 1,
}

/// How a problem is computed: for tuners and logs. What it says of may change in any version, and
/// with fa_limit_isa.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fa_plan {
    /// sizeof(fa_plan). Set it before the call. Of a larger structure, that of a later version,
    /// the fields that this version does not know become 0.
    pub struct_size: usize,
    /// The instruction set of the kernel, one of those of fa_isa. A static string.
    pub isa: *const c_char,
    /// What is multiplied: "f32", "bf16", "f16", "i16" or "i8". A static string.
    pub compute: *const c_char,
    /// A value of fa_path: that of a sequence of len_q rows. Shorter sequences of a ragged batch
    /// may take the other path.
    pub path: i32,
    /// Threads that compute at the same time; at most n_parts.
    pub threads: i32,
    /// How many of them the problem is worth waking for if they sleep.
    pub threads_awake: i32,
    /// 1 if keys go through scratch memory, some at a time, where they are gathered, copied,
    /// converted or rearranged; 0 if they are read where they are.
    pub k_staged: i32,
    /// 1 if values go through scratch memory, as k_staged; else 0.
    pub v_staged: i32,
    /// 0.
    pub reserved0: i32,
    /// Query heads that share a tile.
    pub tile_heads: i64,
    /// Kv heads that decode takes in turns, some keys at a time.
    pub tile_kv_heads: i64,
    /// Query rows of a tile, those of all its heads together.
    pub tile_rows: i64,
    /// Keys of a tile.
    pub tile_keys: i64,
    /// Tiles; where keys are split, groups of heads. 0 = there is nothing to compute.
    pub work_items: i64,
    /// Ranges that the keys of a work item are cut into, so that threads share them; 1 where they
    /// are not.
    pub key_ranges: i64,
    /// BYTES of scratch memory of a thread.
    pub thread_bytes: usize,
    /// BYTES that fa_attention_workspace answers for n_parts.
    pub workspace_bytes: usize,
}

/// Says how fa_attention_run computes a problem with a pool of n_parts threads.
///
/// @param[in] a       not NULL
/// @param n_parts     1 to 256: as for fa_attention_workspace
/// @param[in,out] plan  not NULL, with its struct_size set; otherwise untouched on errors
/// @return as fa_attention_workspace. FA_ERR_STRUCT_SIZE is about a or about the plan.
///
/// Thread-safe. The answer is valid until fa_limit_isa is called.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_attention_plan(
    a: *const fa_attention,
    n_parts: i32,
    plan: *mut fa_plan,
) -> fa_status {
    guard(|| {
        if plan.is_null() {
            return Err(Error::Null);
        }
        let threads = parts(n_parts)?;
        // SAFETY: I1: `a` is as documented.
        let problem = unsafe { describe::problem(a)? };
        let (shape, accuracy) = (problem.shape(), problem.semantics().accuracy);
        let how = prepared::plan(shape, accuracy, threads)?;
        let workspace_bytes = prepared::bytes_for(shape, accuracy, threads)?;
        // SAFETY: I1: not NULL, so it is writable for `struct_size` bytes.
        unsafe { abi::write_sized("plan->struct_size", plan, |size| of(&how, size, workspace_bytes))? };
        Ok(())
    })
}

/// What programs are told of a plan.
fn of(plan: &Plan, struct_size: usize, workspace_bytes: usize) -> fa_plan {
    let summary = plan.summary();
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    // No more than `n_parts`, which came from an i32.
    let threads = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    fa_plan {
        struct_size,
        isa: plan.kernel.isa().as_ptr(),
        compute: c_name(summary.compute).as_ptr(),
        path: match summary.path {
            Path::Prefill => fa_path::FA_PATH_PREFILL as i32,
            Path::Decode => fa_path::FA_PATH_DECODE as i32,
        },
        threads: threads(summary.threads),
        threads_awake: threads(summary.threads_awake),
        k_staged: summary.staged[0].into(),
        v_staged: summary.staged[1].into(),
        reserved0: 0,
        tile_heads: count(summary.tile_heads),
        tile_kv_heads: count(summary.tile_kv_heads),
        tile_rows: count(summary.tile_rows),
        tile_keys: count(summary.tile_keys),
        work_items: count(summary.work_items),
        key_ranges: count(summary.key_ranges),
        thread_bytes: summary.thread_bytes,
        workspace_bytes,
    }
}

/// What is multiplied, as C writes it.
fn c_name(compute: &str) -> &'static CStr {
    let names = [c"f32", c"bf16", c"f16", c"i16", c"i8"];
    names.into_iter().find(|name| name.to_bytes() == compute.as_bytes()).unwrap_or(c"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel;

    #[test]
    fn what_kernels_multiply_has_a_name_in_c() {
        for kernel in kernel::all() {
            for path in [Path::Prefill, Path::Decode] {
                let compute = kernel.compute_type(path);
                assert_eq!(c_name(compute).to_str(), Ok(compute));
            }
        }
    }
}
