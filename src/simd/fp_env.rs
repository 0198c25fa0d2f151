//! The floating-point environment: rounding mode, flushing of subnormal numbers, exception traps.
//!
//! Each thread has its own, and compiled code assumes the default. The library computes in the
//! default environment, whatever the caller's is: results do not depend on the thread that computes
//! them. On x86-64 this is MXCSR, on 64-bit Arm FPCR with the flags of FPSR; other targets have
//! nothing here.

/// The environment of a thread: the MXCSR register of SSE (no code here uses x87), or FPCR, and
/// FPSR in the upper half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FpEnv(registers::Word);

#[cfg(target_arch = "x86_64")]
mod registers {
    use std::arch::asm;

    pub(super) type Word = u32;

    /// Round to nearest even, no flushing to zero, no traps.
    pub(super) const DEFAULT: Word = 0x1f80;

    #[inline(always)]
    pub(super) fn read() -> Word {
        let mut word = DEFAULT;
        // SAFETY: the instruction writes 32 bits to a local variable of 32 bits.
        unsafe {
            asm!("stmxcsr [{}]", in(reg) &raw mut word, options(nostack, preserves_flags));
        }
        word
    }

    /// # Safety
    /// The word is the default or was read: a reserved bit would trap.
    #[inline(always)]
    pub(super) unsafe fn write(word: Word) {
        // SAFETY: no reserved bit is set (caller).
        unsafe {
            asm!("ldmxcsr [{}]", in(reg) &raw const word, options(nostack, readonly));
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod registers {
    use std::arch::asm;

    pub(super) type Word = u64;

    /// Round to nearest even, no flushing to zero, NaN keep their bits, binary16 of IEEE, no traps.
    pub(super) const DEFAULT: Word = 0;

    #[inline(always)]
    pub(super) fn read() -> Word {
        let (control, status): (u64, u64);
        // SAFETY: the instructions write two local variables.
        unsafe {
            asm!("mrs {}, fpcr", "mrs {}, fpsr", out(reg) control, out(reg) status, options(nostack, preserves_flags));
        }
        control | status << 32
    }

    /// # Safety
    /// The word is the default or was read: it has no reserved bit.
    #[inline(always)]
    pub(super) unsafe fn write(word: Word) {
        let (control, status) = (word & 0xffff_ffff, word >> 32);
        // SAFETY: no reserved bit is set (caller).
        unsafe {
            asm!("msr fpcr, {}", "msr fpsr, {}", in(reg) control, in(reg) status, options(nostack, preserves_flags));
        }
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod registers {
    pub(super) type Word = ();

    pub(super) const DEFAULT: Word = ();

    #[inline(always)]
    pub(super) fn read() -> Word {}

    /// # Safety
    /// Any word will do.
    #[inline(always)]
    pub(super) unsafe fn write(_word: Word) {}
}

impl FpEnv {
    /// What processes start with.
    const DEFAULT: FpEnv = FpEnv(registers::DEFAULT);

    /// Reads the environment of the calling thread.
    #[inline(always)]
    pub(crate) fn current() -> FpEnv {
        FpEnv(registers::read())
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
        // SAFETY: the value is the default or was read from the registers. Code that runs in this
        // environment is the business of `during`'s caller.
        unsafe { registers::write(self.0) };
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

#[cfg(all(test, any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    /// Flushes subnormal numbers to zero, rounds up, and has the flag of a division by 0 set.
    #[cfg(target_arch = "x86_64")]
    const STRANGE: FpEnv = FpEnv(0x1f80 | 1 << 15 | 1 << 6 | 2 << 13 | 1 << 2);
    #[cfg(target_arch = "aarch64")]
    const STRANGE: FpEnv = FpEnv(1 << 24 | 1 << 22 | 1 << 33);

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
