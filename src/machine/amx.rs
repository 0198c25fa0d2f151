//! AMX on x86-64: whether the processor has its tiles, and whether this process may use them.
//!
//! Linux gives tiles to a process that has asked for them (`arch_prctl`, Linux 5.16), because they
//! make the frames of its signals 8 KiB larger. The permission is the process's: its threads and
//! children have it, and none gives it back. So the library asks for it only if it is told to. It
//! is not used unasked either where another library has asked: no machine with AMX has run it yet.

use core::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::sync::atomic::{AtomicU8, Ordering};

/// What is known of the permission.
static STATE: AtomicU8 = AtomicU8::new(UNASKED);
const UNASKED: u8 = 0;
const NO: u8 = 1;
const YES: u8 = 2;
/// The processor has products of binary16, too.
const YES_WITH_F16: u8 = 3;
/// A test executes the instructions.
const EMULATED: u8 = 4;
const EMULATED_WITH_F16: u8 = 5;

/// The variable `FA_AMX`: "1" asks for the permission at the first call, "0" forbids tiles.
const VARIABLE: &str = "FA_AMX";

/// Whether this process uses tiles: the processor has them, and the system has permitted it. Asked
/// once; [`enable`] may turn a no to a yes. Threads that ask at the same time find the same, so no
/// lock is needed: one that is held during a fork would never be released in the child.
#[inline(always)]
pub(crate) fn is_permitted() -> bool {
    state() != NO
}

/// [`is_permitted`], and the tiles have products of binary16 (AMX-FP16: Granite Rapids and later).
#[inline(always)]
pub(crate) fn has_f16() -> bool {
    matches!(state(), YES_WITH_F16 | EMULATED_WITH_F16)
}

#[inline(always)]
fn state() -> u8 {
    match STATE.load(Ordering::Relaxed) {
        UNASKED => look(),
        state => state,
    }
}

/// The first answer of [`state`].
#[cold]
#[inline(never)]
fn look() -> u8 {
    let is_wanted = std::env::var_os(VARIABLE).is_some_and(|wanted| wanted == "1");
    let state = if is_wanted { ask().unwrap_or(NO) } else { NO };
    // Another thread may have enabled it in the meantime.
    match STATE.compare_exchange(UNASKED, state, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => state,
        Err(now) => now,
    }
}

/// Asks the system for the permission, unless the process has it; or says why there are no tiles.
pub(crate) fn enable() -> Result<(), &'static str> {
    if matches!(STATE.load(Ordering::Relaxed), EMULATED | EMULATED_WITH_F16) {
        return Ok(());
    }
    STATE.store(ask()?, Ordering::Relaxed);
    Ok(())
}

/// Asks the system for the permission, unless the process has it: the state that follows.
fn ask() -> Result<u8, &'static str> {
    usable()?;
    if !system::has_permission()? {
        system::ask()?;
    }
    Ok(if multiplies_f16() { YES_WITH_F16 } else { YES })
}

/// Takes it from now on that the machine has AMX, with products of binary16 or without, and the
/// process the permission: for tests, on machines that have not.
///
/// # Safety
/// Something executes the instructions of AMX on every thread: a handler of the signal that the
/// machine gives for illegal ones.
pub unsafe fn emulate(with_f16: bool) {
    STATE.store(if with_f16 { EMULATED_WITH_F16 } else { EMULATED }, Ordering::Relaxed);
}

/// Whether there are tiles as this library configures them, and nothing forbids them.
fn usable() -> Result<(), &'static str> {
    if !has_tiles() {
        return Err("the processor has no tiles for bfloat16 and 8-bit integers");
    }
    if std::env::var_os(VARIABLE).is_some_and(|wanted| wanted == "0") {
        return Err("the environment forbids it (FA_AMX=0)");
    }
    // Tile configuration and tile data, which the system saves.
    const TILES: u64 = 3 << 17;
    const OSXSAVE: u32 = 1 << 27;
    // SAFETY: I4: OSXSAVE says that the instruction is there.
    if __cpuid(1).ecx & OSXSAVE == 0 || unsafe { xcr0() } & TILES != TILES {
        return Err("the operating system does not save tiles");
    }
    Ok(())
}

/// Whether CPUID has AMX-TILE, AMX-BF16 and AMX-INT8, and eight tiles of 16 rows of 64 bytes.
fn has_tiles() -> bool {
    /// Bits of leaf 7, EDX.
    const NEEDED: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    if __cpuid(0).eax < 0x1d || __cpuid_count(7, 0).edx & NEEDED != NEEDED {
        return false;
    }
    let palette = __cpuid_count(0x1d, 1);
    (palette.ebx & 0xffff, palette.ebx >> 16, palette.ecx & 0xffff) == (64, 8, 16)
}

/// Whether CPUID has AMX-FP16. It has leaf 7 ([`has_tiles`]).
fn multiplies_f16() -> bool {
    __cpuid_count(7, 0).eax >= 1 && __cpuid_count(7, 1).eax >> 21 & 1 == 1
}

/// # Safety
/// The processor has the instruction, and the system has enabled it.
#[target_feature(enable = "xsave")]
unsafe fn xcr0() -> u64 {
    // SAFETY: as above (caller).
    unsafe { _xgetbv(0) }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod system {
    use std::arch::asm;

    /// `arch_prctl`, and its codes.
    const ARCH_PRCTL: i64 = 158;
    const GET_PERMISSION: i64 = 0x1022;
    const ASK_FOR_PERMISSION: i64 = 0x1023;
    /// The number of the tiles' data among the parts of a state.
    const TILE_DATA: u64 = 18;

    /// # Safety
    /// `argument` is what the code wants: nothing is written elsewhere.
    unsafe fn arch_prctl(code: i64, argument: u64) -> i64 {
        let mut result = ARCH_PRCTL;
        // SAFETY: a system call changes these registers only; the caller vouches for its argument.
        unsafe {
            asm!(
                "syscall",
                inout("rax") result, in("rdi") code, in("rsi") argument,
                out("rcx") _, out("r11") _,
                options(nostack),
            );
        }
        result
    }

    /// Whether the process has the permission.
    pub(super) fn has_permission() -> Result<bool, &'static str> {
        let mut permitted = 0u64;
        // SAFETY: I10: 64 bits are written to a local variable of 64 bits.
        let result = unsafe { arch_prctl(GET_PERMISSION, (&raw mut permitted) as u64) };
        if result == 0 {
            return Ok(permitted >> TILE_DATA & 1 == 1);
        }
        Err("the kernel has no permission for it (Linux before 5.16, or a sandbox)")
    }

    /// Asks for it.
    pub(super) fn ask() -> Result<(), &'static str> {
        const NO_SPACE: i64 = -28;
        // SAFETY: I10: a number, and nothing is written.
        match unsafe { arch_prctl(ASK_FOR_PERMISSION, TILE_DATA) } {
            0 => Ok(()),
            NO_SPACE => Err("a thread's alternate signal stack is too small for the tiles"),
            _ => Err("the kernel refuses it"),
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod system {
    pub(super) fn has_permission() -> Result<bool, &'static str> {
        Err("the library uses it under Linux only")
    }

    pub(super) fn ask() -> Result<(), &'static str> {
        has_permission().map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A refusal says why, and the answer to the first question does not change by asking again.
    #[test]
    fn what_is_refused_is_not_permitted() {
        let before = is_permitted();
        assert_eq!(is_permitted(), before);
        match enable() {
            Ok(()) => assert!(is_permitted() && enable().is_ok()),
            Err(why) => assert!(!before && !is_permitted() && !why.is_empty()),
        }
    }
}
