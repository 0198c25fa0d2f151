//! Which instruction set runs, and how to hold it back.

use std::ffi::{CStr, c_char};

use super::guard;
use super::status::fa_status;

use crate::error::Error;
use crate::kernel;

/// The instruction set that calls use from now on: the best that the machine has and that
/// fa_limit_isa or FA_MAX_ISA allows. On x86-64: "avx512bf16" (and dot products of bfloat16),
/// "avx512vnni" (and dot products of 8-bit integers), "avx512" (F, BW, DQ and VL), "avxvnni" (AVX2
/// and dot products of 8-bit integers) or "avx2" (with FMA and F16C). On 64-bit Arm: "neon-bf16"
/// (FEAT_BF16), "neon-i8mm" (FEAT_I8MM), "neon-dotprod" (FEAT_DotProd) or "neon". Everywhere:
/// "scalar". Later versions add names. Each includes those that come after it, but for "avxvnni",
/// which machines with AVX-512 may lack; fa_attention_check says which of them a problem uses: the
/// fastest, which need not be the first. "unknown" if FA_MAX_ISA names none of them: computing
/// functions then return FA_ERR_ISA.
///
/// @return a static string, never NULL; not to be freed
///
/// Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn fa_isa() -> *const c_char {
    kernel::best().map_or(c"unknown", |kernel| kernel.isa()).as_ptr()
}

/// Caps the instruction set of all calls in the process that start after this one returns: for
/// tests, and for comparing results between machines. It overrides the environment variable
/// FA_MAX_ISA, which takes the same names and is read once, at the first call that needs it.
///
/// @param isa  the best instruction set to use, a name as fa_isa returns it; one that the machine
///             lacks is no error, as the next best is used. What computes with a set that is named
///             is used even where something else were faster (dot products of bfloat16 on Intel's
///             machines). NULL takes the cap back (FA_MAX_ISA counts again).
/// @return FA_OK, or FA_ERR_ISA for an unknown name: then nothing changes
///
/// Thread-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_limit_isa(isa: *const c_char) -> fa_status {
    guard(|| {
        if isa.is_null() {
            return kernel::limit_isa(None);
        }
        // SAFETY: I1: not NULL, so it is a string that ends with a zero byte.
        let name = unsafe { CStr::from_ptr(isa) };
        if name.is_empty() { Err(Error::Isa) } else { kernel::limit_isa(Some(name.to_bytes())) }
    })
}
