//! Windows: what its processes may do, and the sizes of caches where the processor does not tell.

use std::ffi::c_void;
use std::ptr;

#[link(name = "kernel32")]
unsafe extern "system" {
    fn GetCurrentProcess() -> *mut c_void;
    fn GetProcessAffinityMask(process: *mut c_void, own: *mut usize, of_system: *mut usize) -> i32;
    fn GetModuleHandleExW(flags: u32, name: *const c_void, module: *mut *mut c_void) -> i32;
    #[cfg(any(test, not(target_arch = "x86_64")))]
    fn GetLogicalProcessorInformation(entries: *mut Entry, bytes: *mut u32) -> i32;
}

/// The cores that the affinity of the process leaves, which the standard library does not count;
/// not known for a process in several groups of processors.
pub(super) fn allowed_cores() -> Option<usize> {
    let (mut own, mut of_system) = (0, 0);
    // SAFETY: I10: both places are local variables of the size of a pointer.
    let is_known = unsafe { GetProcessAffinityMask(GetCurrentProcess(), &raw mut own, &raw mut of_system) };
    (is_known != 0 && own != 0).then(|| own.count_ones() as usize)
}

/// Keeps the library in memory until the process ends: threads of its own outlive `FreeLibrary`.
pub(super) fn stay_loaded() {
    const PIN: u32 = 1;
    const FROM_ADDRESS: u32 = 4;
    static HERE: u8 = 0;
    let mut module = ptr::null_mut();
    // SAFETY: I10: the first address lies in the library and is not read, the second is a local
    // variable. If it fails, which it does for no address in a module, nothing has changed.
    unsafe { GetModuleHandleExW(PIN | FROM_ADDRESS, (&raw const HERE).cast(), &raw mut module) };
}

/// `SYSTEM_LOGICAL_PROCESSOR_INFORMATION`. For a cache, `about` has level, ways, length of a line
/// and size in 8, 8, 16 and 32 bits, and then its kind in 32.
#[cfg(any(test, not(target_arch = "x86_64")))]
#[repr(C)]
#[derive(Clone, Copy)]
struct Entry {
    cores: usize,
    what: u32,
    about: [u64; 2],
}

/// Level and size of each data or unified cache, 0 where there is none.
#[cfg(any(test, not(target_arch = "x86_64")))]
pub(super) fn caches() -> [(u32, usize); super::LEVELS] {
    const CACHE: u32 = 2;
    const INSTRUCTIONS: u32 = 1;
    let mut found = [(0, 0); super::LEVELS];
    let mut bytes = 0;
    // SAFETY: I10: there is room for nothing, and it says so; it writes what it needs.
    unsafe { GetLogicalProcessorInformation(ptr::null_mut(), &raw mut bytes) };
    let mut entries = Vec::new();
    let count = bytes as usize / size_of::<Entry>();
    if entries.try_reserve_exact(count).is_err() {
        return found;
    }
    entries.resize(count, Entry { cores: 0, what: 0, about: [0; 2] });
    bytes = (count * size_of::<Entry>()) as u32;
    // SAFETY: I10: `entries` has so many bytes.
    if unsafe { GetLogicalProcessorInformation(entries.as_mut_ptr(), &raw mut bytes) } == 0 {
        return found;
    }
    // Those of the first core.
    let is_first =
        |entry: &&Entry| entry.what == CACHE && entry.cores & 1 != 0 && entry.about[1] as u32 != INSTRUCTIONS;
    for (entry, found) in entries.iter().filter(is_first).zip(&mut found) {
        let about = entry.about[0];
        *found = ((about & 0xff) as u32, (about >> 32) as usize);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the system says is what the processor says.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn sizes_of_caches_are_those_of_cpuid() {
        let sorted = |mut caches: [(u32, usize); super::super::LEVELS]| {
            caches.sort_unstable();
            caches
        };
        assert_eq!(sorted(caches()), sorted(super::super::processor::caches()));
    }

    #[test]
    fn affinity_leaves_a_core() {
        let all = std::thread::available_parallelism().map_or(1, usize::from);
        assert!(allowed_cores().is_none_or(|cores| (1..=all).contains(&cores)));
    }
}
