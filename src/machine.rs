//! The machine: the only reader of CPUID, the system's tables and the environment.
//!
//! What differs is in a file for each kind of processor and for each system. Threads, waiting and
//! waking are those of Rust's standard library, which has the means of each system for them.

#[cfg(target_arch = "x86_64")]
pub mod amx;
// Both kinds have `caches`: processors that cannot tell ask the system.
#[forbid(unsafe_code)]
#[cfg_attr(target_arch = "x86_64", path = "machine/x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "machine/aarch64.rs")]
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), path = "machine/plain.rs")]
mod processor;
#[cfg(any(not(target_arch = "x86_64"), windows))]
#[cfg_attr(any(target_os = "linux", target_os = "android"), path = "machine/linux.rs")]
#[cfg_attr(target_vendor = "apple", path = "machine/apple.rs")]
#[cfg_attr(windows, path = "machine/windows.rs")]
#[cfg_attr(
    not(any(target_os = "linux", target_os = "android", target_vendor = "apple", windows)),
    path = "machine/other.rs"
)]
mod system;

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::tuning::{Microarch, Tuning};

/// Cache sizes of one core, in bytes, and the numbers that its microarchitecture is tuned with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// First-level data cache.
    pub l1d: usize,
    /// Second-level cache.
    pub l2: usize,
    /// Last-level cache, all of it.
    pub l3: usize,
    /// The record of its microarchitecture.
    pub tuning: &'static Tuning,
}

/// Cache sizes where the machine does not tell: the smallest of current server cores.
const UNKNOWN: [usize; 3] = [32 << 10, 512 << 10, 8 << 20];

static L1D: AtomicUsize = AtomicUsize::new(0);
static L2: AtomicUsize = AtomicUsize::new(0);
static L3: AtomicUsize = AtomicUsize::new(0);
static CORES: AtomicUsize = AtomicUsize::new(0);
/// Index in [`Microarch::ALL`].
static MICROARCH: AtomicUsize = AtomicUsize::new(0);

impl Machine {
    /// The running machine, detected once. Threads that detect it at the same time find the same,
    /// so no lock is needed; one that is held during a fork would never be released in the child.
    pub fn get() -> Machine {
        let l1d = L1D.load(Ordering::Acquire);
        if l1d != 0 {
            let [l2, l3] = [&L2, &L3].map(|known| known.load(Ordering::Relaxed));
            let tuning = Microarch::ALL[MICROARCH.load(Ordering::Relaxed)].tuning();
            return Machine { l1d, l2, l3, tuning };
        }
        let [l1d, l2, l3] = cache_sizes(&processor::caches());
        let microarch = processor::microarch();
        let index = Microarch::ALL.iter().position(|known| *known == microarch).unwrap_or(0);
        MICROARCH.store(index, Ordering::Relaxed);
        L2.store(l2, Ordering::Relaxed);
        L3.store(l3, Ordering::Relaxed);
        L1D.store(l1d, Ordering::Release);
        Machine { l1d, l2, l3, tuning: microarch.tuning() }
    }
}

/// Whether the system has threads: WebAssembly without atomic instructions has none, and panics
/// where it is asked for the time or the process.
pub const HAS_THREADS: bool = cfg!(any(not(target_family = "wasm"), target_feature = "atomics"));

/// Called before the first thread of a pool is made: its code must stay in memory when the library
/// is unloaded. Elsewhere than on Windows the linker is told so (`build.rs`).
pub fn stay_loaded() {
    #[cfg(windows)]
    system::stay_loaded();
}

/// Cores that this process may use: affinity and container quota count. Asked once, because the
/// answer costs several system calls.
pub fn cores() -> usize {
    let known = CORES.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    // The question reads files into memory.
    if !has_memory(64 << 10) {
        return 1;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    #[cfg(windows)]
    let cores = system::allowed_cores().map_or(cores, |allowed| allowed.min(cores));
    CORES.store(cores, Ordering::Relaxed);
    cores
}

/// Asks the system for the permission to use AMX, or says why there is none.
pub(crate) fn enable_amx() -> Result<(), &'static str> {
    #[cfg(target_arch = "x86_64")]
    return amx::enable();
    #[cfg(not(target_arch = "x86_64"))]
    Err("the processor is not x86-64")
}

/// Whether the kernel of bfloat16 dot products is worth choosing: [`Tuning::has_fast_bf16_dots`].
pub fn has_fast_bf16_dots() -> bool {
    Machine::get().tuning.has_fast_bf16_dots
}

/// Whether the allocator still has `bytes`. Asked before using code of others that ends the process
/// where it has not; another thread may be faster, but on a machine that is merely full it helps.
pub fn has_memory(bytes: usize) -> bool {
    let mut block: Vec<u8> = Vec::new();
    let got = block.try_reserve_exact(bytes).is_ok();
    // Or the compiler leaves out the allocation.
    std::hint::black_box(&block);
    got
}

/// The variable `FA_MAX_ISA`, if it is set to something.
pub fn max_isa() -> Option<Vec<u8>> {
    let name = std::env::var_os("FA_MAX_ISA")?.into_encoded_bytes();
    (!name.is_empty()).then_some(name)
}

/// Sizes of the three levels, from level and size of each cache.
fn cache_sizes(caches: &[(u32, usize)]) -> [usize; 3] {
    let mut found = [0; 3];
    for &(level, bytes) in caches {
        if level > 0 {
            let size = &mut found[(level as usize).min(3) - 1];
            *size = bytes.max(*size);
        }
    }
    let or = |bytes, otherwise| if bytes == 0 { otherwise } else { bytes };
    let [l1d, l2] = [0, 1].map(|i| or(found[i], UNKNOWN[i]));
    // Without a third level, as on some small cores, the second is the last.
    let l3 = if found[1] != 0 && found[2] == 0 { l2 } else { or(found[2], UNKNOWN[2]) };
    [l1d, l2, l3]
}

/// Entries of the table of caches that are read: more than any machine has, since a hypervisor may
/// never report the end.
const LEVELS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_that_are_missing_are_assumed() {
        const K: usize = 1 << 10;
        for (caches, wanted) in [
            (&[(1, 32 * K), (2, 1024 * K), (3, 32_768 * K)][..], [32 * K, 1024 * K, 32_768 * K]),
            (
                &[(1, 48 * K), (0, 0), (2, 2048 * K), (3, 4096 * K), (4, 9000 * K)],
                [48 * K, 2048 * K, 9000 * K],
            ),
            (&[(1, 32 * K), (2, 256 * K)], [32 * K, 256 * K, 256 * K]),
            (&[], UNKNOWN),
        ] {
            assert_eq!(cache_sizes(caches), wanted, "{caches:?}");
        }
    }

    #[test]
    fn the_second_answer_is_the_first() {
        assert_eq!(Machine::get(), Machine::get());
    }
}
