//! Scratch memory of a call: one block, cut into a region for each thread, and behind these the
//! partial states of splits of keys. A region is cut into arrays; see [`Arena`]. A call on one
//! thread that needs little keeps its region on the stack.

use std::alloc::{Layout, alloc, dealloc};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::Error;

/// A cache line, and the widest vector: no array shares a line with another thread's, and no
/// vector of an array straddles two lines.
pub(crate) const ALIGN: usize = 64;

/// More bytes than any machine has, in whole cache lines: what sizes saturate to.
const TOO_MANY: usize = usize::MAX & !(ALIGN - 1);

/// Bytes that an array of `n` elements of `size` bytes takes in scratch memory: whole cache lines.
/// `None` elements are too many.
#[inline(always)]
fn array_bytes(n: Option<usize>, size: usize) -> usize {
    n.map_or(TOO_MANY, |n| n.saturating_mul(size).saturating_add(ALIGN - 1) & !(ALIGN - 1))
}

/// What arrays are taken from. There are two: [`Measure`] adds up the bytes that they need, and
/// [`Scratch`] hands out memory for them.
///
/// One function lays out the arrays of a kernel, for any arena:
///
/// ```ignore
/// fn buffers<A: Arena>(arena: &mut A, shape: &Shape, tiles: TileSizes) -> Buffers {
///     Buffers { scores: arena.take(tiles.q.checked_mul(tiles.kv)), sums: arena.take(tiles.q) }
/// }
/// let bytes = Measure::of(|arena| buffers(arena, shape, tiles)); // when the call is planned
/// let buffers = buffers(&mut scratch, shape, tiles); // when it runs
/// ```
///
/// So the sizes that are planned and the arrays that are used cannot disagree. Such a function
/// must not look at the pointers that it gets: those of a measurement lead nowhere.
pub trait Arena: sealed::Sealed {
    /// An array of `n` elements, aligned to a cache line and uninitialised. `n` may be the result
    /// of checked arithmetic: `None` is more elements than any machine has.
    fn take<T>(&mut self, n: impl Into<Option<usize>>) -> *mut T;
}

/// Adds up the bytes of arrays instead of making them.
#[derive(Debug)]
pub struct Measure {
    /// At least [`TOO_MANY`] once no machine has as many.
    bytes: usize,
}

impl Measure {
    /// Bytes of the arrays that `layout` takes; `None` if no machine has as many.
    #[inline(always)]
    pub fn of<R>(layout: impl FnOnce(&mut Measure) -> R) -> Option<usize> {
        let mut measure = Measure { bytes: 0 };
        layout(&mut measure);
        (measure.bytes < TOO_MANY).then_some(measure.bytes)
    }
}

impl Arena for Measure {
    /// Counts the array. The pointer is aligned and must not be dereferenced.
    #[inline(always)]
    fn take<T>(&mut self, n: impl Into<Option<usize>>) -> *mut T {
        const { assert!(align_of::<T>() <= ALIGN) };
        self.bytes = self.bytes.saturating_add(array_bytes(n.into(), size_of::<T>()));
        ptr::without_provenance_mut(ALIGN)
    }
}

/// Memory of one thread for its arrays, aligned to a cache line and uninitialised.
#[derive(Debug)]
pub struct Scratch<'w> {
    base: *mut u8,
    bytes: usize,
    memory: PhantomData<&'w mut [u8]>,
}

// SAFETY: I5: the memory is exclusively borrowed, by `Workspace::take` or `Local::scratch`, and has
// no owner thread.
unsafe impl Send for Scratch<'_> {}

impl Scratch<'_> {
    /// The whole memory for a shorter time: each piece of work uses it anew.
    #[inline(always)]
    pub fn reborrow(&mut self) -> Scratch<'_> {
        Scratch { base: self.base, bytes: self.bytes, memory: PhantomData }
    }
}

impl Arena for Scratch<'_> {
    /// Cuts off the array.
    ///
    /// # Panics
    /// If the memory is used up: the plan's size and the kernel's use disagree.
    #[inline(always)]
    fn take<T>(&mut self, n: impl Into<Option<usize>>) -> *mut T {
        const { assert!(align_of::<T>() <= ALIGN) };
        let bytes = array_bytes(n.into(), size_of::<T>());
        assert!(bytes <= self.bytes, "scratch as large as the plan says");
        let array = self.base;
        self.base = array.wrapping_add(bytes);
        self.bytes -= bytes;
        array.cast()
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Measure {}
    impl Sealed for super::Scratch<'_> {}
}

/// Sizes of what a block is cut into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Threads, each with a region of its own; 0 means 1.
    pub threads: usize,
    /// Bytes of a thread's region; 0 means 1.
    pub bytes_per_thread: usize,
    /// Partial states of splits of keys.
    pub states: StatesSize,
}

/// How many partial states one thread may leave for another, and their size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatesSize {
    /// Ranges of KV splits, each computed by one thread.
    pub ranges: usize,
    /// States of a range, at most.
    pub per_range: usize,
    /// Bytes of a state.
    pub bytes: usize,
}

impl StatesSize {
    /// Bytes from one state to the next, and from the states of one range to those of the next.
    fn strides(&self) -> Option<[usize; 2]> {
        let state = self.bytes.checked_next_multiple_of(ALIGN)?;
        Some([state, state.checked_mul(self.per_range)?])
    }

    /// Bytes of all of them; `None` if no machine has as many.
    pub fn total(&self) -> Option<usize> {
        let [_, range] = self.strides()?;
        range.checked_mul(self.ranges)
    }
}

impl Size {
    /// One thread, which needs no partial states.
    pub fn of_one(bytes_per_thread: usize) -> Size {
        Size { threads: 1, bytes_per_thread, states: StatesSize::default() }
    }

    /// Bytes from one thread's region to the next: whole cache lines.
    fn region(&self) -> Option<usize> {
        self.bytes_per_thread.max(1).checked_next_multiple_of(ALIGN)
    }

    /// Bytes of all regions.
    fn regions(&self) -> Option<usize> {
        self.region()?.checked_mul(self.threads.max(1))
    }

    /// Bytes of the block.
    pub fn bytes(&self) -> Result<usize, Error> {
        let bytes = self.regions().zip(self.states.total()).and_then(|(a, b)| a.checked_add(b));
        bytes.ok_or(Error::Overflow)
    }

    /// Bytes that the block takes in memory of any alignment.
    pub fn borrowed_bytes(&self) -> Result<usize, Error> {
        self.bytes()?.checked_add(ALIGN - 1).ok_or(Error::Overflow)
    }
}

/// Scratch up to this size is kept on the stack, where it costs nothing: an allocation takes as
/// long as the attention of a few rows. Small against the smallest stacks that threads are given.
const ON_STACK: usize = 16 << 10;

/// A region of `ON_STACK` bytes that stands on the stack.
#[repr(align(64))]
pub struct Local([MaybeUninit<u8>; ON_STACK]);

impl Local {
    /// Uninitialised memory.
    #[inline(always)]
    pub fn uninit() -> Local {
        const { assert!(align_of::<Local>() == ALIGN) };
        Local([const { MaybeUninit::uninit() }; ON_STACK])
    }

    /// Whether it has room for the scratch of a call: one thread's, without partial states.
    pub fn fits(size: Size) -> bool {
        size.threads <= 1 && size.bytes_per_thread <= ON_STACK
    }

    /// All of it.
    pub fn scratch(&mut self) -> Scratch<'_> {
        Scratch { base: self.0.as_mut_ptr().cast(), bytes: ON_STACK, memory: PhantomData }
    }
}

/// Memory that a caller lends for the scratch of a call: of any alignment and content, perhaps less
/// than the call needs.
#[derive(Debug)]
pub struct Memory<'w> {
    base: *mut u8,
    bytes: usize,
    memory: PhantomData<&'w mut [u8]>,
}

impl<'w> Memory<'w> {
    /// A slice.
    pub fn of(slice: &'w mut [MaybeUninit<u8>]) -> Memory<'w> {
        Memory { base: slice.as_mut_ptr().cast(), bytes: slice.len(), memory: PhantomData }
    }

    /// `bytes` bytes at `base`; none if that is null.
    ///
    /// # Safety
    /// They are writable and in one allocation. Nobody else uses them while this value or a
    /// workspace on it lives, except through [`Workspace::share`] of the same size, each call with
    /// another thread number.
    pub unsafe fn new(base: *mut u8, bytes: usize) -> Memory<'w> {
        Memory { base, bytes: if base.is_null() { 0 } else { bytes }, memory: PhantomData }
    }

    /// How many bytes there are.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A block of scratch memory.
#[derive(Debug)]
pub struct Workspace<'w> {
    base: NonNull<u8>,
    size: Size,
    /// The regions that may be taken: the next one, and the end.
    next: AtomicUsize,
    end: usize,
    /// How the block was allocated, if it is to be given back.
    owned: Option<Layout>,
    memory: PhantomData<&'w mut [u8]>,
}

// SAFETY: I5: the block is exclusively borrowed or owned, and `take` hands out each region once.
unsafe impl Send for Workspace<'_> {}
// SAFETY: I5: `take` claims a region with one atomic operation, so two threads never get the same.
unsafe impl Sync for Workspace<'_> {}

impl<'w> Workspace<'w> {
    /// A block of the allocator's.
    pub fn allocate(size: Size) -> Result<Workspace<'static>, Error> {
        let layout = Layout::from_size_align(size.bytes()?, ALIGN).map_err(|_| Error::Overflow)?;
        // SAFETY: I5: `Size::bytes` counts at least one region, so the size is not 0.
        let base = NonNull::new(unsafe { alloc(layout) }).ok_or(Error::Memory)?;
        Ok(Workspace::of(base, size, [0, size.threads.max(1)], Some(layout)))
    }

    /// A block in lent memory, which must have [`Size::borrowed_bytes`].
    pub fn on(memory: Memory<'w>, size: Size) -> Result<Workspace<'w>, Error> {
        Workspace::in_memory(memory, size, [0, size.threads.max(1)])
    }

    /// The region of thread `i` alone, in a block that threads of the caller's share, each with a
    /// number of its own; no region if the block has none of that number.
    pub fn share(memory: Memory<'w>, size: Size, i: usize) -> Result<Workspace<'w>, Error> {
        Workspace::in_memory(memory, size, [i, size.threads.max(1).min(i.saturating_add(1))])
    }

    fn in_memory(memory: Memory<'w>, size: Size, regions: [usize; 2]) -> Result<Workspace<'w>, Error> {
        // Whatever its alignment: an answer that depends on addresses would be no help to anybody.
        if memory.bytes < size.borrowed_bytes()? {
            return Err(Error::Workspace);
        }
        let aligned = memory.base.wrapping_add(memory.base.align_offset(ALIGN));
        let base = NonNull::new(aligned).ok_or(Error::Workspace)?;
        Ok(Workspace::of(base, size, regions, None))
    }

    fn of(base: NonNull<u8>, size: Size, [first, end]: [usize; 2], owned: Option<Layout>) -> Self {
        Workspace { base, size, next: AtomicUsize::new(first), end, owned, memory: PhantomData }
    }

    /// Sizes of what the block is cut into.
    pub fn size(&self) -> Size {
        self.size
    }

    /// A region that has not been taken yet.
    pub fn take(&self) -> Option<Scratch<'_>> {
        // Relaxed: only uniqueness matters.
        let i = self.next.fetch_add(1, Ordering::Relaxed);
        let bytes = self.size.region()?;
        (i < self.end).then(|| Scratch {
            // Within the block, by `Size::bytes`.
            base: self.base.as_ptr().wrapping_add(i * bytes),
            bytes,
            memory: PhantomData,
        })
    }

    /// The partial states, which all threads share.
    pub fn partial_states(&self) -> PartialStates<'_> {
        let [stride, _] = self.size.states.strides().unwrap_or_default();
        // Behind the regions.
        let base = self.base.as_ptr().wrapping_add(self.size.regions().unwrap_or_default());
        PartialStates { base, size: self.size.states, stride, memory: PhantomData }
    }
}

impl Drop for Workspace<'_> {
    fn drop(&mut self) {
        if let Some(layout) = self.owned {
            // SAFETY: I5: `allocate` got the block with this layout, and nothing else frees it.
            unsafe { dealloc(self.base.as_ptr(), layout) };
        }
    }
}

/// Partial states of splits of keys: computed by one thread, combined by another. It tells where
/// they are; when which thread may use one is the scheduler's affair.
#[derive(Clone, Copy, Debug)]
pub struct PartialStates<'w> {
    base: *mut u8,
    size: StatesSize,
    /// Bytes from one state to the next.
    stride: usize,
    memory: PhantomData<&'w mut [u8]>,
}

// SAFETY: I6: it holds addresses only, and the scheduler orders who uses what is there.
unsafe impl Send for PartialStates<'_> {}
// SAFETY: I6: through a shared reference it only computes addresses.
unsafe impl Sync for PartialStates<'_> {}

impl PartialStates<'_> {
    /// For work that is not split.
    pub fn none() -> PartialStates<'static> {
        let size = StatesSize::default();
        PartialStates { base: ptr::null_mut(), size, stride: 0, memory: PhantomData }
    }

    /// Memory of state `n` of a range. Asking twice gives the same memory twice: see I6 for who
    /// uses it when.
    ///
    /// # Panics
    /// If there are not as many: the plan's size and the kernel's use disagree.
    #[inline(always)]
    pub fn arena(&self, range: usize, n: usize) -> Scratch<'_> {
        Scratch { base: self.state(range, n), bytes: self.stride, memory: PhantomData }
    }

    /// Address of state `n` of a range, aligned to a cache line.
    ///
    /// # Panics
    /// If there are not as many: the plan's size and the kernel's use disagree.
    #[inline(always)]
    pub(crate) fn state(&self, range: usize, n: usize) -> *mut u8 {
        assert!(range < self.size.ranges && n < self.size.per_range);
        self.base.wrapping_add((range * self.size.per_range + n) * self.stride)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Arrays of several sizes, one of them empty.
    fn arrays<A: Arena>(arena: &mut A, n: usize) -> [*mut u8; 4] {
        let floats = arena.take::<f32>(n.checked_mul(3));
        let bytes = arena.take::<u8>(n);
        let none = arena.take::<f32>(0);
        [floats.cast(), bytes, none.cast(), arena.take::<f32>(1).cast()]
    }

    #[test]
    fn a_measure_is_what_scratch_hands_out() {
        for n in [0, 1, 5, 16, 1000] {
            let bytes = Measure::of(|arena| arrays(arena, n)).expect("few bytes");
            let workspace = Workspace::allocate(Size::of_one(bytes)).expect("memory");
            let mut scratch = workspace.take().expect("a region");
            let [a, b, c, d] = arrays(&mut scratch, n);
            assert!([a, b, c, d].iter().all(|p| p.addr().is_multiple_of(ALIGN)));
            let gaps = [a.addr(), b.addr(), c.addr(), d.addr()];
            assert_eq!(gaps[1] - gaps[0], (12 * n).next_multiple_of(ALIGN));
            assert_eq!(gaps[2] - gaps[1], n.next_multiple_of(ALIGN));
            assert_eq!(gaps[3], gaps[2]);
            assert_eq!(gaps[3] + ALIGN - gaps[0], bytes);
            assert_eq!(scratch.bytes, 0, "nothing is left of {bytes}");
        }
    }

    #[test]
    fn a_measure_that_overflows_once_stays_without_an_answer() {
        let sums = [
            Measure::of(|arena| arena.take::<u8>(None)),
            Measure::of(|arena| arena.take::<u8>(usize::MAX)),
            Measure::of(|arena| arena.take::<f32>(usize::MAX / 2)),
            Measure::of(|arena| {
                arena.take::<u8>(usize::MAX / 2);
                arena.take::<u8>(usize::MAX / 2);
                arena.take::<u8>(1)
            }),
            Measure::of(|arena| arrays(arena, usize::MAX / 2)),
        ];
        assert_eq!(sums, [None; 5]);
    }

    #[test]
    #[should_panic(expected = "scratch as large as the plan says")]
    fn scratch_that_is_too_small_is_not_cut() {
        Local::uninit().scratch().take::<u8>(ON_STACK + 1);
    }

    #[test]
    fn states_and_regions_do_not_overlap() {
        let states = StatesSize { ranges: 3, per_range: 2, bytes: 100 };
        let size = Size { threads: 2, bytes_per_thread: 65, states };
        assert_eq!(size.bytes(), Ok(2 * 128 + 6 * 128));
        let workspace = Workspace::allocate(size).expect("memory");
        let regions = [workspace.take(), workspace.take()].map(|scratch| scratch.expect("a region").base);
        assert!(workspace.take().is_none());
        let states = workspace.partial_states();
        let all = (0..6).map(|i| states.state(i / 2, i % 2).addr());
        let all: Vec<usize> = regions.iter().map(|base| base.addr()).chain(all).collect();
        assert!(all.windows(2).all(|pair| pair[1] - pair[0] == 128), "{all:?}");
    }

    #[test]
    fn memory_must_do_for_any_alignment() {
        let size = Size { threads: 2, ..Size::of_one(64) };
        let mut memory = [MaybeUninit::uninit(); 128 + 63];
        assert!(Workspace::on(Memory::of(&mut memory[1..]), size).is_err());
        let beyond = Workspace::share(Memory::of(&mut memory), size, 2).expect("enough");
        assert!(beyond.take().is_none());
        drop(beyond);
        let share = Workspace::share(Memory::of(&mut memory), size, 1).expect("enough");
        assert!(share.take().is_some() && share.take().is_none());
    }
}
