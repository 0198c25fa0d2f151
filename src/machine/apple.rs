//! macOS, iOS and their relatives: `sysctlbyname`, where the processor does not tell.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use super::LEVELS;

/// Level and size of each data or unified cache, 0 where there is none: of the fast cores, where
/// there are two kinds.
pub(super) fn caches() -> [(u32, usize); LEVELS] {
    let mut found = [(0, 0); LEVELS];
    let names = [
        (1, c"hw.perflevel0.l1dcachesize", c"hw.l1dcachesize"),
        (2, c"hw.perflevel0.l2cachesize", c"hw.l2cachesize"),
        (3, c"hw.perflevel0.l3cachesize", c"hw.l3cachesize"),
    ];
    for ((level, of_fast, of_any), found) in names.into_iter().zip(&mut found) {
        if let Some(bytes) = number(of_fast).or_else(|| number(of_any)) {
            *found = (level, bytes);
        }
    }
    found
}

unsafe extern "C" {
    fn sysctlbyname(
        name: *const c_char,
        old: *mut c_void,
        old_bytes: *mut usize,
        new: *const c_void,
        new_bytes: usize,
    ) -> c_int;
}

/// What the system has under a name, if that is a number above 0.
fn number(name: &CStr) -> Option<usize> {
    // Of 64 bits. If it has 32, the lower half is written: these systems are little-endian.
    let (mut number, mut bytes) = (0u64, size_of::<u64>());
    // SAFETY: I10: the name ends with 0, both places are local variables, `bytes` has the size of
    // the first, and nothing is set.
    let status =
        unsafe { sysctlbyname(name.as_ptr(), (&raw mut number).cast(), &raw mut bytes, ptr::null(), 0) };
    usize::try_from(number).ok().filter(|number| status == 0 && *number > 0)
}
