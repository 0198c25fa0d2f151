//! What the machine is like: the only reader of CPUID, the system's tables and the environment.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Cache sizes of one core, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// First-level data cache.
    pub l1d: usize,
    /// Second-level cache.
    pub l2: usize,
    /// Last-level cache, all of it.
    pub l3: usize,
}

/// What is assumed where the machine does not say: the smallest caches of current server cores.
const UNKNOWN: Machine = Machine { l1d: 32 << 10, l2: 512 << 10, l3: 8 << 20 };

static L1D: AtomicUsize = AtomicUsize::new(0);
static L2: AtomicUsize = AtomicUsize::new(0);
static L3: AtomicUsize = AtomicUsize::new(0);
static CORES: AtomicUsize = AtomicUsize::new(0);
static MADE_BY_INTEL: AtomicUsize = AtomicUsize::new(0);

impl Machine {
    /// The running machine; asked once. Threads that ask at the same time find the same answer,
    /// so no lock is needed (see [`crate::kernel`] on forks).
    pub fn get() -> Machine {
        let l1d = L1D.load(Ordering::Acquire);
        if l1d != 0 {
            return Machine { l1d, l2: L2.load(Ordering::Relaxed), l3: L3.load(Ordering::Relaxed) };
        }
        let machine = detect();
        L2.store(machine.l2, Ordering::Relaxed);
        L3.store(machine.l3, Ordering::Relaxed);
        L1D.store(machine.l1d, Ordering::Release);
        machine
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

/// Whether a dot product of bfloat16 pairs (VDPBF16PS) takes less time than the two multiply-adds in its place. On
/// AMD's cores it takes one multiply-add's (Zen 4 and 5); on Intel's four of them (one in two cycles, measured on
/// Granite Rapids, which has matrix tiles for that instead), so that bfloat16 converted to f32 is twice as fast, and
/// exact besides. No bit of CPUID says so but the maker's name. Asked once.
pub fn has_fast_bf16_dots() -> bool {
    !is_made_by_intel()
}

/// Whether so many bytes, read by one call, come from memory, and requests into the second level bring them earlier. On
/// AMD's cores they do (measured on Zen 4); on Intel's they take the line buffers of the first level, which are better
/// left to late ones (measured on Granite Rapids). Half of the last level is what neighbours may leave.
pub fn wants_requests(bytes: usize) -> bool {
    bytes > Machine::get().l3 / 2 && !is_made_by_intel()
}

fn is_made_by_intel() -> bool {
    const NO: usize = 1;
    const YES: usize = 2;
    match MADE_BY_INTEL.load(Ordering::Relaxed) {
        0 => {
            let is_intel = maker_is_intel();
            MADE_BY_INTEL.store(if is_intel { YES } else { NO }, Ordering::Relaxed);
            is_intel
        }
        known => known == YES,
    }
}

#[cfg(target_arch = "x86_64")]
fn maker_is_intel() -> bool {
    let r = core::arch::x86_64::__cpuid(0);
    [r.ebx, r.edx, r.ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel"
}

#[cfg(not(target_arch = "x86_64"))]
fn maker_is_intel() -> bool {
    false
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

fn detect() -> Machine {
    let mut found = Machine { l1d: 0, l2: 0, l3: 0 };
    for (level, bytes) in caches() {
        match level {
            0 => {}
            1 => found.l1d = found.l1d.max(bytes),
            2 => found.l2 = found.l2.max(bytes),
            _ => found.l3 = found.l3.max(bytes),
        }
    }
    let or = |bytes, otherwise| if bytes == 0 { otherwise } else { bytes };
    let l1d = or(found.l1d, UNKNOWN.l1d);
    let l2 = or(found.l2, UNKNOWN.l2);
    // No third level, as on some small cores: the second is the last.
    let l3 = if found.l2 != 0 && found.l3 == 0 { l2 } else { or(found.l3, UNKNOWN.l3) };
    Machine { l1d, l2, l3 }
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
