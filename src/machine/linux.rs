//! Linux and Android: files of the kernel's, where the processor does not tell.

use std::fs;

use super::LEVELS;

/// Level and size of each data or unified cache, 0 where there is none.
pub(super) fn caches() -> [(u32, usize); LEVELS] {
    let mut found = [(0, 0); LEVELS];
    for (index, found) in found.iter_mut().enumerate() {
        let folder = format!("/sys/devices/system/cpu/cpu0/cache/index{index}");
        let read = |name: &str| fs::read_to_string(format!("{folder}/{name}")).unwrap_or_default();
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
