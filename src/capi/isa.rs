//! Which instruction set runs, and how to hold it back.

use std::ffi::{CStr, c_char};

use super::guard;
use super::status::fa_status;

use crate::error::Error;
use crate::kernel;

/// The instruction set that calls use from now on: the best one that the machine has and that
/// fa_limit_isa or FA_MAX_ISA allows. Names, from the best one on:
///
/// - x86-64: "avx512bf16" (with dot products of bfloat16), "avx512vnni" (with dot products of 8-bit
///   integers), "avx512" (F, BW, DQ and VL), "avxvnni" (AVX2 with dot products of 8-bit integers),
///   "avx2" (with FMA and F16C).
/// - 64-bit Arm: "neon-bf16" (FEAT_BF16), "neon-i8mm" (FEAT_I8MM), "neon-dotprod" (FEAT_DotProd),
///   "neon".
/// - Everywhere: "scalar".
///
/// Each set includes those after it in its line. Exception: machines with AVX-512 may lack
/// "avxvnni". Later versions add names. fa_attention_check says which set a problem uses: the
/// fastest one for it, which need not be the best one. If FA_MAX_ISA is none of these names, the
/// answer is "unknown", and computing functions return FA_ERR_ISA.
///
/// @return a static string, never NULL; do not free it
///
/// Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn fa_isa() -> *const c_char {
    kernel::best().map_or(c"unknown", |kernel| kernel.isa()).as_ptr()
}

/// Caps the instruction set of all calls in the process that start after this one returns. For
/// tests, and to compare results between machines. It overrides the environment variable
/// FA_MAX_ISA, which takes the same names and is read once, at the first call that needs it.
///
/// @param isa  the best instruction set to use, a name as fa_isa returns it. If the machine lacks
///             it, the next best one is used; that is no error. If you name a set, its kernels are
///             used even if others would be faster (for example dot products of bfloat16 on Intel's
///             machines). NULL removes the cap, and FA_MAX_ISA applies again.
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
