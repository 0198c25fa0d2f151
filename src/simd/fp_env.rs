//! The floating-point environment: rounding mode, flushing of subnormal numbers, exception traps.
//!
//! Each thread has its own, and compiled code assumes the default. The library computes in the
//! default environment, whatever the caller's is: results do not depend on the thread that computes
//! them. On x86-64 this is MXCSR; other targets have nothing here yet (Arm's register is FPCR).

#[cfg(target_arch = "x86_64")]
use std::arch::asm;

/// The environment of a thread: the MXCSR register of SSE. No code here uses x87.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FpEnv(u32);

impl FpEnv {
    /// What processes start with: round to nearest even, no flushing to zero, no traps.
    const DEFAULT: FpEnv = FpEnv(0x1f80);

    /// Reads the environment of the calling thread.
    #[inline(always)]
    pub(crate) fn current() -> FpEnv {
        #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut, reason = "only x86-64 reads a register"))]
        let mut environment = FpEnv::DEFAULT;
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the instruction writes 32 bits to a local variable of 32 bits.
        unsafe {
            asm!("stmxcsr [{}]", in(reg) &raw mut environment.0, options(nostack, preserves_flags));
        }
        environment
    }

    /// Runs `body` in the default environment, then restores the caller's with its exception flags.
    #[inline(always)]
    pub(crate) fn with_default<R>(body: impl FnOnce() -> R) -> R {
        // SAFETY: compiled code assumes the default environment.
        unsafe { FpEnv::DEFAULT.during(body) }
    }

    /// Runs `body` in this environment, then restores the caller's with its exception flags.
    ///
    /// # Safety
    /// Compiled code assumes the default environment: either `self` is the default, or `body` only
    /// calls a foreign function that expects `self`.
    #[inline(always)]
    pub(crate) unsafe fn during<R>(self, body: impl FnOnce() -> R) -> R {
        let _before = Before(FpEnv::current());
        self.set();
        opaque_call(body)
    }

    #[inline(always)]
    fn set(self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the value is the default or was read from the register, so no reserved bit is
        // set, which would trap. Code that runs in this environment is the business of `during`'s
        // caller.
        unsafe {
            asm!("ldmxcsr [{}]", in(reg) &raw const self.0, options(nostack, readonly));
        }
    }
}

/// Restores an environment when dropped, also while a panic unwinds.
struct Before(FpEnv);

impl Drop for Before {
    #[inline(always)]
    fn drop(&mut self) {
        self.0.set();
    }
}

/// A call that is never inlined. The compiler does not know that arithmetic depends on the
/// register, and could move arithmetic of an inlined body across the instruction that writes it.
#[inline(never)]
fn opaque_call<R>(body: impl FnOnce() -> R) -> R {
    body()
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    /// Flushes subnormal numbers to zero, rounds up, and has the flag of a division by 0 set.
    const STRANGE: FpEnv = FpEnv(0x1f80 | 1 << 15 | 1 << 6 | 2 << 13 | 1 << 2);

    #[test]
    fn it_is_given_back() {
        // SAFETY: the body only moves integers before it restores the default environment.
        let (inside, after) =
            unsafe { STRANGE.during(|| (FpEnv::with_default(FpEnv::current), FpEnv::current())) };
        assert_eq!((inside, after), (FpEnv::DEFAULT, STRANGE));
    }

    #[test]
    fn it_is_given_back_by_a_panic() {
        let before = FpEnv::current();
        // SAFETY: a panic and its unwinding do no floating-point arithmetic.
        let result = catch_unwind(|| unsafe { STRANGE.during(|| panic!("planted")) });
        assert!(result.is_err());
        assert_eq!(FpEnv::current(), before);
    }
}
