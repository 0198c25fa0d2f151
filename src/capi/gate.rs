//! What a task's `arg` is on its way through a caller's pool: not a pointer, but the number of a gate and of the call
//! that opened it.
//!
//! A pool that breaks its contract may call a task when `parallel_for` has returned, and what the task would use is
//! gone. A gate that has been closed lets nobody in, and closing it waits for those inside; so such a call does
//! nothing, whenever it comes. Gates are the process's, since nothing else outlives every call.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// Calls with a caller's pool at the same time. Those beyond get none, and compute on their own thread.
const GATES: usize = 256;

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
    to: AtomicPtr<c_void>,
}

static ALL: [Gate; GATES] =
    [const { Gate { state: AtomicUsize::new(0), to: AtomicPtr::new(ptr::null_mut()) } }; GATES];

/// Where to look for a free one first: behind the one that was taken last.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// An open gate to a `T`; closed when dropped, which waits until nobody is inside.
pub(super) struct Open<'t, T> {
    gate: usize,
    to: PhantomData<&'t T>,
}

/// Opens a gate, if there is one.
pub(super) fn open<T: Sync>(to: &T) -> Option<Open<'_, T>> {
    let first = NEXT.fetch_add(1, Ordering::Relaxed);
    (0..GATES).map(|i| first.wrapping_add(i) % GATES).find(|&gate| take(gate)).map(|gate| {
        let Gate { state, to: place } = &ALL[gate];
        place.store(ptr::from_ref(to).cast_mut().cast(), Ordering::Relaxed);
        // Whoever sees it open sees where it leads to.
        state.fetch_or(OPEN, Ordering::Release);
        Open { gate, to: PhantomData }
    })
}

/// Takes a free gate for a call with a new number.
fn take(gate: usize) -> bool {
    let state = &ALL[gate].state;
    let free = state.load(Ordering::Relaxed);
    // Numbers begin with 1, so that no argument is NULL, and again after 2^53 calls (2^21 on machines with 32 bits).
    let call = ((free >> CALL) + 1) & (usize::MAX >> CALL);
    let taken = (call.max(1) << CALL) | TAKEN;
    free & TAKEN == 0 && state.compare_exchange(free, taken, Ordering::Acquire, Ordering::Relaxed).is_ok()
}

impl<T> Open<'_, T> {
    /// What [`enter`] wants: the call's number and the gate's.
    pub(super) fn arg(&self) -> *mut c_void {
        let call = ALL[self.gate].state.load(Ordering::Relaxed) >> CALL;
        ptr::without_provenance_mut(call * GATES + self.gate)
    }
}

impl<T> Drop for Open<'_, T> {
    fn drop(&mut self) {
        let state = &ALL[self.gate].state;
        state.fetch_and(!OPEN, Ordering::Relaxed);
        // What they have written is there when they have left.
        while state.load(Ordering::Acquire) & INSIDE > 0 {
            std::thread::yield_now();
        }
        state.fetch_and(!TAKEN, Ordering::Release);
    }
}

/// Does `what` with that to which the gate of `arg` leads, unless it has been closed.
///
/// # Safety
/// `arg` came from a gate that leads to a `T`, however long ago.
pub(super) unsafe fn enter<T: Sync>(arg: *mut c_void, what: impl FnOnce(&T)) {
    let Gate { state, to } = &ALL[arg.addr() % GATES];
    let call = arg.addr() / GATES;
    let lets_in =
        |now: usize| (now >> CALL == call && now & OPEN != 0 && now & INSIDE < INSIDE).then_some(now + 1);
    if state.fetch_update(Ordering::Acquire, Ordering::Relaxed, lets_in).is_err() {
        return;
    }
    /// Leaves, also if `what` panics.
    struct Inside(&'static AtomicUsize);
    impl Drop for Inside {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Release);
        }
    }
    let _inside = Inside(state);
    // SAFETY: a `T`, by the contract, which is borrowed until the gate has been closed and everybody has left.
    what(unsafe { &*to.load(Ordering::Relaxed).cast_const().cast::<T>() });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::{Mutex, MutexGuard, PoisonError};
    use std::time::Duration;

    use super::*;

    /// Held by each of these tests, one of which takes all gates.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    fn alone() -> MutexGuard<'static, ()> {
        ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often a count was reached through a gate.
    fn knock(arg: *mut c_void) {
        // SAFETY: all gates of these tests lead to one.
        unsafe { enter(arg, |count: &AtomicUsize| _ = count.fetch_add(1, Ordering::Relaxed)) };
    }

    #[test]
    fn a_closed_gate_lets_nobody_in() {
        let _alone = alone();
        let count = AtomicUsize::new(0);
        let gate = open(&count).expect("a gate");
        let arg = gate.arg();
        assert!(!arg.is_null());
        knock(arg);
        drop(gate);
        knock(arg);
        assert_eq!(count.load(Ordering::Relaxed), 1);
        // Nor once it is another call's: as many calls as there are gates have had each of them.
        for _ in 0..2 * GATES {
            let gate = open(&count).expect("a gate");
            assert_ne!(gate.arg(), arg);
            knock(arg);
        }
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn there_are_only_so_many() {
        let _alone = alone();
        // Other tests may hold some.
        let count = AtomicUsize::new(0);
        let held: Vec<_> = std::iter::from_fn(|| open(&count)).collect();
        assert!(held.len() > GATES / 2 && held.len() <= GATES);
        drop(held);
        assert!(open(&count).is_some());
    }

    #[test]
    fn closing_waits_for_who_is_inside() {
        let _alone = alone();
        for _ in 0..20 {
            let (entered, left) = (AtomicBool::new(false), AtomicBool::new(false));
            std::thread::scope(|scope| {
                let count = AtomicUsize::new(0);
                let gate = open(&count).expect("a gate");
                let arg = gate.arg().addr();
                let (entered, left) = (&entered, &left);
                scope.spawn(move || {
                    let slowly = |_: &AtomicUsize| {
                        entered.store(true, Ordering::Release);
                        std::thread::sleep(Duration::from_millis(2));
                        left.store(true, Ordering::Release);
                    };
                    // SAFETY: it leads to a count.
                    unsafe { enter(ptr::without_provenance_mut(arg), slowly) };
                });
                while !entered.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
                drop(gate);
                assert!(left.load(Ordering::Acquire));
            });
        }
    }

    #[test]
    fn who_panics_inside_leaves() {
        let _alone = alone();
        let count = AtomicUsize::new(0);
        let gate = open(&count).expect("a gate");
        let arg = gate.arg().addr();
        let panicked = std::panic::catch_unwind(|| {
            // SAFETY: it leads to a count.
            unsafe { enter(ptr::without_provenance_mut(arg), |_: &AtomicUsize| panic!("planted")) };
        });
        assert!(panicked.is_err());
        drop(gate);
    }
}
