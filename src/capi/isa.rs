//! Which instruction set runs, and how to hold it back.

use std::ffi::{CStr, c_char};
use std::fmt::Write;

use super::guard;
use super::run::Words;
use super::status::fa_status;

use crate::error::Error;
use crate::kernel;

/// The instruction set that calls use from now on: the best one that the machine has and that
/// fa_limit_isa or FA_MAX_ISA allows. Names, from the best one on:
///
/// - x86-64: "amx" (AVX-512 with tiles of bfloat16 and 8-bit integers, and of binary16 where the
///   processor has AMX-FP16, if it was asked for: see fa_enable_amx), "avx512bf16" (with dot
///   products of bfloat16), "avx512vnni" (with dot products of 8-bit integers), "avx512" (F, BW, DQ
///   and VL), "avxvnni" (AVX2 with dot products of 8-bit integers), "avx2" (with FMA and F16C).
/// - 64-bit Arm: "neon-bf16" (FEAT_BF16), "neon-i8mm" (FEAT_I8MM), "neon-dotprod" (FEAT_DotProd),
///   "neon".
/// - WebAssembly: "simd128", if the library was compiled for it.
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

/// Lets all calls in the process that start after this one returns use AMX, the matrix unit of
/// Intel's server processors since Sapphire Rapids: "amx" in fa_isa. A refusal changes nothing.
///
/// Linux gives it to processes that ask for it (arch_prctl, ARCH_REQ_XCOMP_PERM), because it makes
/// the frames of their signals 8 KiB larger: alternate signal stacks that were made with a fixed
/// size, such as SIGSTKSZ of older C libraries, may be too small, and then this is refused. The
/// permission is that of all threads, and of children made by fork; no process gives it back. The
/// library asks for it here, or at the first call if the environment variable FA_AMX is 1, and
/// never otherwise; and it does not use AMX unasked where another library, such as PyTorch, has
/// asked for it. FA_AMX=0 forbids it. Tiles are configured while a thread computes a part, and
/// released when it ends.
///
/// Results differ from those of other sets in rounding. Its speed has not been measured.
///
/// @param[out] why   NULL, or room for why_size bytes: a sentence in English, always ended by a
///                   zero byte, cut off if it is longer. Its wording may change in any version.
/// @param why_size   bytes at why
/// @return FA_OK, also if it was enabled before; FA_ERR_ISA: this process has none, because of
///         the processor, the system, FA_AMX=0 or an alternate signal stack
///
/// Thread-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_enable_amx(why: *mut c_char, why_size: usize) -> fa_status {
    guard(|| {
        let mut words = Words::new(why, why_size);
        let found = kernel::enable_amx();
        if found.is_ok() {
            let _ = words.write_str("AMX is enabled");
        }
        Ok(words.end(found)?)
    })
}
