//! How a task gets to other threads: not as a pointer, but as a ticket, the number of a gate and of the call that opened
//! it.
//!
//! A thread may come when the call has returned, and what the task would use is gone: one of our own that woke up late,
//! or one of a caller's pool that breaks its contract. A gate that has been closed lets nobody in, and closing it waits
//! for those inside; so whoever comes late does nothing, whenever that is. Gates are the process's, since nothing else
//! outlives every call.

use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// Calls on several threads at the same time: twice the 256 with pools that callers are promised, as calls without one
/// take some, too. Those beyond get none, and compute on their own thread.
pub(crate) const GATES: usize = 512;

/// Bits of a state: how many are inside (more than any call has tasks), whether more are let in, whether some call has
/// the gate; above them the number of that call.
const INSIDE: usize = (1 << 9) - 1;
const OPEN: usize = 1 << 9;
const TAKEN: usize = 1 << 10;
const CALL: u32 = 11;

/// A gate; on a cache line of its own, as its neighbours are other calls'.
#[repr(align(64))]
struct Gate {
    state: AtomicUsize,
    /// A `Call`.
    to: AtomicPtr<()>,
}

static ALL: [Gate; GATES] =
    [const { Gate { state: AtomicUsize::new(0), to: AtomicPtr::new(ptr::null_mut()) } }; GATES];

/// Where to look for a free one first: behind the one that was taken last.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// What a gate leads to.
struct Call<'t> {
    task: &'t (dyn Fn() + Sync),
    failed: AtomicBool,
}

/// What lets a thread in as long as the gate is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallId(usize);

impl CallId {
    /// Never 0.
    pub fn number(self) -> usize {
        self.0
    }

    /// The ticket of that number; of one that nobody has given out, one that lets nobody in, or somebody into a call
    /// that is under way.
    pub fn of(number: usize) -> CallId {
        CallId(number)
    }

    /// Does the task behind the gate, unless that has been closed. A panic of the task stays inside.
    pub fn enter(self) {
        let Gate { state, to } = &ALL[self.0 % GATES];
        let call = self.0 / GATES;
        let lets_in =
            |now: usize| (now >> CALL == call && now & OPEN != 0 && now & INSIDE < INSIDE).then_some(now + 1);
        if state.fetch_update(Ordering::Acquire, Ordering::Relaxed, lets_in).is_err() {
            return;
        }
        // SAFETY: what `open` put there, which lives until the gate has been closed and everybody has left.
        let call = unsafe { &*to.load(Ordering::Relaxed).cast_const().cast::<Call>() };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(call.task)) {
            // Dropping a payload can itself panic.
            std::mem::forget(panic);
            call.failed.store(true, Ordering::Relaxed);
        }
        // Sequentially consistent: `Open::is_empty`.
        state.fetch_sub(1, Ordering::SeqCst);
    }
}

/// An open gate; closed when dropped, which waits until nobody is inside.
pub struct Open<'c> {
    gate: usize,
    to: PhantomData<&'c Call<'c>>,
}

/// Does `body` with an open gate to `task`, closes it, and waits until nobody is inside. Or returns false if there is
/// no gate.
///
/// # Panics
/// If the task did, or `body`.
// The gate is lent, never given: one that were forgotten would stay open.
#[must_use]
pub fn open(task: &(dyn Fn() + Sync), body: impl FnOnce(&Open)) -> bool {
    let call = Call { task, failed: AtomicBool::new(false) };
    let first = NEXT.fetch_add(1, Ordering::Relaxed);
    let Some(gate) = (0..GATES).map(|i| first.wrapping_add(i) % GATES).find(|&gate| take(gate)) else {
        return false;
    };
    let Gate { state, to } = &ALL[gate];
    to.store(ptr::from_ref(&call).cast_mut().cast(), Ordering::Relaxed);
    // Whoever sees it open sees where it leads to.
    state.fetch_or(OPEN, Ordering::Release);
    let open = Open { gate, to: PhantomData };
    body(&open);
    drop(open);
    assert!(!call.failed.into_inner(), "a task panicked");
    true
}

/// Takes a free gate for a call with a new number.
fn take(gate: usize) -> bool {
    let state = &ALL[gate].state;
    let free = state.load(Ordering::Relaxed);
    // Numbers begin with 1, so that no ticket is 0, and again after 2^53 calls (2^21 on machines with 32 bits).
    let call = ((free >> CALL) + 1) & (usize::MAX >> CALL);
    let taken = (call.max(1) << CALL) | TAKEN;
    free & TAKEN == 0 && state.compare_exchange(free, taken, Ordering::Acquire, Ordering::Relaxed).is_ok()
}

impl Open<'_> {
    /// The ticket of this call.
    pub fn ticket(&self) -> CallId {
        let call = ALL[self.gate].state.load(Ordering::Relaxed) >> CALL;
        CallId(call * GATES + self.gate)
    }

    /// Lets nobody in any more.
    pub fn shut(&self) {
        ALL[self.gate].state.fetch_and(!OPEN, Ordering::Relaxed);
    }

    /// Whether nobody is inside. What they have written is there when they have left.
    ///
    /// Sequentially consistent, as leaving is: of two threads, one of which leaves and then looks for who waits, while
    /// the other says that it waits and then looks in here, one sees the other.
    pub fn is_empty(&self) -> bool {
        ALL[self.gate].state.load(Ordering::SeqCst) & INSIDE == 0
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.shut();
        while !self.is_empty() {
            std::thread::yield_now();
        }
        ALL[self.gate].state.fetch_and(!TAKEN, Ordering::Release);
    }
}

/// Tests that need a gate, held while they run: one other takes all there are.
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

    /// To be written by the test that takes all gates.
    pub(super) static HELD: RwLock<()> = RwLock::new(());

    #[test]
    fn a_closed_gate_lets_nobody_in() {
        let _gate = for_a_test();
        let count = AtomicUsize::new(0);
        let task = || _ = count.fetch_add(1, Ordering::Relaxed);
        let mut ticket = CallId(0);
        let opened = open(&task, |open| {
            ticket = open.ticket();
            ticket.enter();
        });
        assert!(opened && ticket.number() != 0);
        ticket.enter();
        assert_eq!(count.load(Ordering::Relaxed), 1);
        // Nor once it is another call's: as many calls as there are gates have had each of them.
        for _ in 0..2 * GATES {
            let opened = open(&task, |open| {
                assert_ne!(open.ticket(), ticket);
                ticket.enter();
            });
            assert!(opened);
        }
        assert_eq!(count.load(Ordering::Relaxed), 1);
        // Nor one that is shut, but not yet closed.
        let opened = open(&task, |open| {
            open.shut();
            open.ticket().enter();
        });
        assert!(opened && count.load(Ordering::Relaxed) == 1);
    }

    #[test]
    fn there_are_only_so_many() {
        fn held(task: &(dyn Fn() + Sync), most: &mut usize) {
            let opened = open(task, |_| {
                *most += 1;
                held(task, most);
            });
            assert!(opened || *most > 0);
        }
        let _alone = HELD.write().unwrap_or_else(PoisonError::into_inner);
        let mut most = 0;
        held(&|| (), &mut most);
        assert_eq!(most, GATES);
        assert!(open(&|| (), |_| ()));
    }

    #[test]
    fn closing_waits_for_who_is_inside() {
        let _gate = for_a_test();
        for _ in 0..20 {
            let (entered, left) = (AtomicBool::new(false), AtomicBool::new(false));
            let slowly = || {
                entered.store(true, Ordering::Release);
                std::thread::sleep(Duration::from_millis(2));
                left.store(true, Ordering::Release);
            };
            std::thread::scope(|scope| {
                let opened = open(&slowly, |open| {
                    let ticket = open.ticket();
                    scope.spawn(move || ticket.enter());
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
    fn who_panics_inside_leaves() {
        let _gate = for_a_test();
        let panicked = catch_unwind(|| {
            let planted = || panic!("planted");
            open(&planted, |open| open.ticket().enter())
        });
        assert!(panicked.is_err());
    }

    #[test]
    fn a_gate_is_closed_when_its_call_panics() {
        let _gate = for_a_test();
        let count = AtomicUsize::new(0);
        let task = || _ = count.fetch_add(1, Ordering::Relaxed);
        let ticket = Mutex::new(CallId(0));
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            open(&task, |open| {
                *ticket.lock().unwrap() = open.ticket();
                panic!("planted");
            })
        }));
        assert!(panicked.is_err());
        ticket.into_inner().unwrap_or_else(PoisonError::into_inner).enter();
        assert_eq!(count.load(Ordering::Relaxed), 0);
    }
}
