//! The machine: the only reader of CPUID, the system's tables and the environment.

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
        let [l1d, l2, l3] = cache_sizes(&caches());
        let microarch = microarch();
        let index = Microarch::ALL.iter().position(|known| *known == microarch).unwrap_or(0);
        MICROARCH.store(index, Ordering::Relaxed);
        L2.store(l2, Ordering::Relaxed);
        L3.store(l3, Ordering::Relaxed);
        L1D.store(l1d, Ordering::Release);
        Machine { l1d, l2, l3, tuning: microarch.tuning() }
    }
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
    CORES.store(cores, Ordering::Relaxed);
    cores
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

#[cfg(target_arch = "x86_64")]
fn microarch() -> Microarch {
    use core::arch::x86_64::{__cpuid, __cpuid_count};

    use crate::tuning::X86;

    let first = __cpuid(0);
    let mut vendor = [0; 12];
    vendor.copy_from_slice([first.ebx, first.edx, first.ecx].map(u32::to_le_bytes).as_flattened());
    let version = __cpuid(1).eax;
    let (family, model) = (version >> 8 & 15, version >> 4 & 15);
    let amx = if first.eax >= 7 { __cpuid_count(7, 0).edx >> 24 & 1 } else { 0 };
    Microarch::of_x86(X86 {
        vendor,
        family: if family == 15 { family + (version >> 20 & 255) } else { family },
        model: if family == 6 || family == 15 { version >> 12 & 0xf0 | model } else { model },
        has_avx512: std::arch::is_x86_feature_detected!("avx512f"),
        has_amx: amx != 0,
    })
}

#[cfg(target_arch = "aarch64")]
fn microarch() -> Microarch {
    use crate::tuning::Arm;

    let path = "/sys/devices/system/cpu/cpu0/regs/identification/midr_el1";
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let midr = u32::from_str_radix(text.trim().trim_start_matches("0x"), 16);
    Microarch::of_arm(midr.ok().map(|midr| Arm { implementer: midr >> 24, part: midr >> 4 & 0xfff }))
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn microarch() -> Microarch {
    Microarch::Generic16
}

/// Level and size of each data or unified cache, 0 where there is none.
#[cfg(target_arch = "x86_64")]
fn caches() -> [(u32, usize); LEVELS] {
    use core::arch::x86_64::{__cpuid, __cpuid_count};

    // Deterministic cache parameters: leaf 4 (Intel SDM, CPUID), or AMD's leaf of the same form,
    // which leaves leaf 4 empty.
    let read = |leaf: u32| {
        let mut found = [(0, 0); LEVELS];
        if __cpuid(leaf & 0x8000_0000).eax < leaf {
            return found;
        }
        for (index, found) in (0..).zip(&mut found) {
            let r = __cpuid_count(leaf, index);
            let (kind, level) = (r.eax & 31, r.eax >> 5 & 7);
            match kind {
                0 => break,
                2 => continue, // instructions
                _ => {}
            }
            let (ways, partitions, line) =
                ((r.ebx >> 22) + 1, (r.ebx >> 12 & 0x3ff) + 1, (r.ebx & 0xfff) + 1);
            let sets = r.ecx as usize + 1;
            let bytes = [ways, partitions, line].iter().fold(sets, |n, &x| n.saturating_mul(x as usize));
            *found = (level, bytes);
        }
        found
    };
    let found = read(4);
    if found == [(0, 0); LEVELS] { read(0x8000_001d) } else { found }
}

/// Level and size of each data or unified cache, 0 where there is none.
#[cfg(not(target_arch = "x86_64"))]
fn caches() -> [(u32, usize); LEVELS] {
    let mut found = [(0, 0); LEVELS];
    for (index, found) in found.iter_mut().enumerate() {
        let folder = format!("/sys/devices/system/cpu/cpu0/cache/index{index}");
        let read = |name: &str| std::fs::read_to_string(format!("{folder}/{name}")).unwrap_or_default();
        if read("type").trim() == "Instruction" {
            continue;
        }
        let level = read("level").trim().parse();
        let size = read("size").trim().trim_end_matches('K').parse::<usize>();
        if let (Ok(level), Ok(size)) = (level, size) {
            *found = (level, size.saturating_mul(1024));
        }
    }
    found
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
