//! How a task gets to other threads: not as a pointer, but as a [`CallId`], the number of a call
//! slot and of the call that has it.
//!
//! A thread may arrive after the call has returned, when all that its task would use is gone: one
//! of the library's own that woke up late, or one of a caller's pool that breaks its contract. A
//! closed slot admits no thread, and closing waits for those inside, so a late thread does nothing,
//! however late it is. Slots belong to the process, because nothing else outlives every call.

use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// Calls on several threads at the same time, at most: twice the 256 with pools that callers are
/// promised, because calls without a pool take slots, too. Further calls compute on their own
/// thread.
pub(crate) const CALL_SLOTS: usize = 512;

/// Bits of a slot's state: threads inside (more than any call has tasks), whether more are
/// admitted, whether a call has the slot; above them the number of that call.
const INSIDE: usize = (1 << 9) - 1;
const OPEN: usize = 1 << 9;
const TAKEN: usize = 1 << 10;
const CALL_SHIFT: u32 = 11;

/// A slot; on a cache line of its own, because its neighbours belong to other calls.
#[repr(align(64))]
struct CallSlot {
    state: AtomicUsize,
    /// A `Call`.
    call: AtomicPtr<()>,
}

static SLOTS: [CallSlot; CALL_SLOTS] =
    [const { CallSlot { state: AtomicUsize::new(0), call: AtomicPtr::new(ptr::null_mut()) } }; CALL_SLOTS];

/// Where the search for a free slot begins: behind the one that was taken last.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// What a slot leads to.
struct Call<'t> {
    task: &'t (dyn Fn() + Sync),
    has_panicked: AtomicBool,
}

/// The number of a call. It admits a thread as long as the call's slot is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallId(usize);

impl CallId {
    /// The id as a number; never 0.
    pub fn number(self) -> usize {
        self.0
    }

    /// The id with that number. One that was never given out runs nothing, or the task of a call
    /// that is under way.
    pub fn of(number: usize) -> CallId {
        CallId(number)
    }

    /// Runs the task, unless its call has been closed. Panics are caught and reported to the
    /// caller.
    pub fn run(self) {
        let CallSlot { state, call } = &SLOTS[self.0 % CALL_SLOTS];
        let number = self.0 / CALL_SLOTS;
        let enter = |now: usize| {
            let is_open = now >> CALL_SHIFT == number && now & OPEN != 0 && now & INSIDE < INSIDE;
            is_open.then_some(now + 1)
        };
        if state.fetch_update(Ordering::Acquire, Ordering::Relaxed, enter).is_err() {
            return;
        }
        // SAFETY: I8: `open` put it there, and it lives until the slot is closed and all threads
        // have left.
        let call = unsafe { &*call.load(Ordering::Relaxed).cast_const().cast::<Call>() };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(call.task)) {
            // Dropping a payload can itself panic.
            std::mem::forget(panic);
            call.has_panicked.store(true, Ordering::Relaxed);
        }
        // Sequentially consistent: see `OpenCall::is_empty`.
        state.fetch_sub(1, Ordering::SeqCst);
    }
}

/// An open slot. Dropping it closes the slot and waits until no thread is inside.
pub struct OpenCall<'c> {
    slot: usize,
    call: PhantomData<&'c Call<'c>>,
}

/// Opens a slot for `task`, runs `body` with it, closes it, and waits until no thread is inside.
/// Returns false, without running `body`, if no slot is free.
///
/// # Panics
/// If the task panics, or `body`.
// The open slot is lent, never given: one that were forgotten would stay open.
#[must_use]
pub fn open(task: &(dyn Fn() + Sync), body: impl FnOnce(&OpenCall)) -> bool {
    let call = Call { task, has_panicked: AtomicBool::new(false) };
    let first = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut slots = (0..CALL_SLOTS).map(|i| first.wrapping_add(i) % CALL_SLOTS);
    let Some(slot) = slots.find(|&slot| take(slot)) else {
        return false;
    };
    SLOTS[slot].call.store(ptr::from_ref(&call).cast_mut().cast(), Ordering::Relaxed);
    // Release: a thread that finds the slot open also finds the call.
    SLOTS[slot].state.fetch_or(OPEN, Ordering::Release);
    let open = OpenCall { slot, call: PhantomData };
    body(&open);
    drop(open);
    assert!(!call.has_panicked.into_inner(), "a task panicked");
    true
}

/// Takes a slot for a call with a new number, if it is free.
fn take(slot: usize) -> bool {
    let state = &SLOTS[slot].state;
    let free = state.load(Ordering::Relaxed);
    // Numbers begin with 1, so that no id is 0, and again after 2^53 calls (2^21 on 32-bit
    // machines).
    let number = ((free >> CALL_SHIFT) + 1) & (usize::MAX >> CALL_SHIFT);
    let taken = (number.max(1) << CALL_SHIFT) | TAKEN;
    free & TAKEN == 0 && state.compare_exchange(free, taken, Ordering::Acquire, Ordering::Relaxed).is_ok()
}

impl OpenCall<'_> {
    /// The id of this call.
    pub fn id(&self) -> CallId {
        let number = SLOTS[self.slot].state.load(Ordering::Relaxed) >> CALL_SHIFT;
        CallId(number * CALL_SLOTS + self.slot)
    }

    /// Admits no more threads.
    pub fn close(&self) {
        SLOTS[self.slot].state.fetch_and(!OPEN, Ordering::Relaxed);
    }

    /// Whether no thread is inside. All that threads wrote is visible once they have left.
    ///
    /// Sequentially consistent, as leaving is. A thread leaves and then looks for callers that
    /// wait; a caller announces that it waits and then looks here. At least one of the two sees the
    /// other.
    pub fn is_empty(&self) -> bool {
        SLOTS[self.slot].state.load(Ordering::SeqCst) & INSIDE == 0
    }
}

impl Drop for OpenCall<'_> {
    fn drop(&mut self) {
        self.close();
        while !self.is_empty() {
            std::thread::yield_now();
        }
        SLOTS[self.slot].state.fetch_and(!TAKEN, Ordering::Release);
    }
}

/// For tests that need a slot, to be held while they run: another test takes all slots.
#[cfg(test)]
pub(crate) fn for_a_test() -> std::sync::RwLockReadGuard<'static, ()> {
    tests::HELD.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::{Mutex, PoisonError, RwLock};
    use std::time::Duration;

    use super::*;

    /// Locked for writing by the test that takes all slots.
    pub(super) static HELD: RwLock<()> = RwLock::new(());

    #[test]
    fn a_closed_call_admits_no_thread() {
        let _slot = for_a_test();
        let count = AtomicUsize::new(0);
        let task = || _ = count.fetch_add(1, Ordering::Relaxed);
        let mut id = CallId(0);
        let opened = open(&task, |open| {
            id = open.id();
            id.run();
        });
        assert!(opened && id.number() != 0);
        id.run();
        assert_eq!(count.load(Ordering::Relaxed), 1);
        // Nor does its id once the slot is another call's: so many calls have had each slot.
        for _ in 0..2 * CALL_SLOTS {
            let opened = open(&task, |open| {
                assert_ne!(open.id(), id);
                id.run();
            });
            assert!(opened);
        }
        assert_eq!(count.load(Ordering::Relaxed), 1);
        // Nor does a call that admits no more, but has not ended yet.
        let opened = open(&task, |open| {
            open.close();
            open.id().run();
        });
        assert!(opened && count.load(Ordering::Relaxed) == 1);
    }

    #[test]
    fn there_are_only_so_many_slots() {
        fn nest(task: &(dyn Fn() + Sync), count: &mut usize) {
            let opened = open(task, |_| {
                *count += 1;
                nest(task, count);
            });
            assert!(opened || *count > 0);
        }
        let _alone = HELD.write().unwrap_or_else(PoisonError::into_inner);
        let mut count = 0;
        nest(&|| (), &mut count);
        assert_eq!(count, CALL_SLOTS);
        assert!(open(&|| (), |_| ()));
    }

    #[test]
    fn closing_waits_for_threads_inside() {
        let _slot = for_a_test();
        for _ in 0..20 {
            let (entered, left) = (AtomicBool::new(false), AtomicBool::new(false));
            let slowly = || {
                entered.store(true, Ordering::Release);
                std::thread::sleep(Duration::from_millis(2));
                left.store(true, Ordering::Release);
            };
            std::thread::scope(|scope| {
                let opened = open(&slowly, |open| {
                    let id = open.id();
                    scope.spawn(move || id.run());
                    while !entered.load(Ordering::Acquire) {
                        std::thread::yield_now();
                    }
                    assert!(!open.is_empty() || left.load(Ordering::Acquire));
                });
                assert!(opened && left.load(Ordering::Acquire));
            });
        }
    }

    #[test]
    fn a_thread_that_panics_leaves() {
        let _slot = for_a_test();
        let panicked = catch_unwind(|| {
            let planted = || panic!("planted");
            open(&planted, |open| open.id().run())
        });
        assert!(panicked.is_err());
    }

    #[test]
    fn a_call_is_closed_when_its_body_panics() {
        let _slot = for_a_test();
        let count = AtomicUsize::new(0);
        let task = || _ = count.fetch_add(1, Ordering::Relaxed);
        let id = Mutex::new(CallId(0));
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            open(&task, |open| {
                *id.lock().unwrap() = open.id();
                panic!("planted");
            })
        }));
        assert!(panicked.is_err());
        id.into_inner().unwrap_or_else(PoisonError::into_inner).run();
        assert_eq!(count.load(Ordering::Relaxed), 0);
    }
}
