//! x86-64, under any system: CPUID tells everything.

use core::arch::x86_64::{__cpuid, __cpuid_count};

use super::LEVELS;
use crate::tuning::{Microarch, X86};

pub(super) fn microarch() -> Microarch {
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

/// Level and size of each data or unified cache, 0 where there is none.
pub(super) fn caches() -> [(u32, usize); LEVELS] {
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
