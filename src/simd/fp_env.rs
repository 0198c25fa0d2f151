//! The floating-point environment: rounding, what becomes of subnormal numbers, which exceptions trap.
//!
//! Compiled code takes the default one for granted, and results that differ with it would differ between threads,
//! which each have their own. So all of the library computes in the default one, whatever the caller's is.

#[cfg(target_arch = "x86_64")]
use std::arch::asm;

/// That of one thread: the control and status register of SSE. Nothing here uses x87.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FpEnv(u32);

impl FpEnv {
    /// What processes start with: round to nearest even, subnormal numbers are numbers, nothing traps.
    const DEFAULT: FpEnv = FpEnv(0x1f80);

    /// The calling thread's.
    #[inline(always)]
    pub(crate) fn current() -> FpEnv {
        #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut, reason = "nothing is read"))]
        let mut environment = FpEnv::DEFAULT;
        #[cfg(target_arch = "x86_64")]
        // SAFETY: writes 32 bits, for which there is room.
        unsafe {
            asm!("stmxcsr [{}]", in(reg) &raw mut environment.0, options(nostack, preserves_flags));
        }
        environment
    }

    /// Runs `body` in the default environment and then gives back the calling thread's, its exception flags included.
    #[inline(always)]
    pub(crate) fn by_default<R>(body: impl FnOnce() -> R) -> R {
        // SAFETY: it is what code expects.
        unsafe { FpEnv::DEFAULT.during(body) }
    }

    /// The same in this one.
    ///
    /// # Safety
    /// It is the default one, or `body` is nothing but a call of somebody else's function that expects it.
    #[inline(always)]
    pub(crate) unsafe fn during<R>(self, body: impl FnOnce() -> R) -> R {
        let _before = Before(FpEnv::current());
        self.set();
        apart(body)
    }

    #[inline(always)]
    fn set(self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: reads 32 bits, which the register held before or may hold: no reserved bit is set. Whoever calls
        // this knows what code runs next: see `during`.
        unsafe {
            asm!("ldmxcsr [{}]", in(reg) &raw const self.0, options(nostack, readonly));
        }
    }
}

/// Set again at the end, also when that is a panic.
struct Before(FpEnv);

impl Drop for Before {
    #[inline(always)]
    fn drop(&mut self) {
        self.0.set();
    }
}

/// A call that stays one: compilers do not know that arithmetic depends on the register, and would be free to move
/// some past the change of it.
#[inline(never)]
fn apart<R>(body: impl FnOnce() -> R) -> R {
    body()
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    /// Flushes subnormal numbers, rounds up, and has seen a division by 0.
    const STRANGE: FpEnv = FpEnv(0x1f80 | 1 << 15 | 1 << 6 | 2 << 13 | 1 << 2);

    #[test]
    fn it_is_given_back() {
        // SAFETY: only moves of integers before the environment is the default one again.
        let (inside, after) =
            unsafe { STRANGE.during(|| (FpEnv::by_default(FpEnv::current), FpEnv::current())) };
        assert_eq!((inside, after), (FpEnv::DEFAULT, STRANGE));
    }

    #[test]
    fn it_is_given_back_by_a_panic() {
        let before = FpEnv::current();
        // SAFETY: a panic and its handling do not compute.
        let result = catch_unwind(|| unsafe { STRANGE.during(|| panic!("planted")) });
        assert!(result.is_err());
        assert_eq!(FpEnv::current(), before);
    }
}
