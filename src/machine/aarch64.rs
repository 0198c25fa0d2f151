//! 64-bit Arm: only the system may ask the processor who it is.

pub(super) use super::system::caches;
use crate::tuning::{Arm, Microarch};

/// From the main identification register of the first core, which Linux has as a file; elsewhere
/// there is no such file, and a core is a big one.
pub(super) fn microarch() -> Microarch {
    let path = "/sys/devices/system/cpu/cpu0/regs/identification/midr_el1";
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let midr = u32::from_str_radix(text.trim().trim_start_matches("0x"), 16);
    Microarch::of_arm(midr.ok().map(|midr| Arm { implementer: midr >> 24, part: midr >> 4 & 0xfff }))
}
