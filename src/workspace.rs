//! Scratch memory: one block a call, cut into one piece a thread, cut into the arrays of a part. A
//! call on one thread that needs little keeps it on the stack.

use std::alloc::{Layout, alloc, dealloc};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::Error;

/// A cache line, and the widest vector: no array shares a line with another thread's, and no
/// vector of an array straddles two lines.
pub(crate) const ALIGN: usize = 64;

/// Bytes that an array of `n` elements of `size` bytes takes in scratch memory.
pub fn array_bytes(n: usize, size: usize) -> Option<usize> {
    n.checked_mul(size)?.checked_next_multiple_of(ALIGN)
}

/// How a block is cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Pieces, one for each thread; 0 means 1.
    pub pieces: usize,
    /// Bytes of each; 0 means 1.
    pub piece: usize,
    /// Shares of the work whose threads keep something for others.
    pub shares: usize,
    /// How much each of them keeps, at most, and bytes of it.
    pub kept: [usize; 2],
}

impl Size {
    /// One piece, and nobody to keep anything for.
    pub fn of_one(piece: usize) -> Size {
        Size { pieces: 1, piece, ..Size::default() }
    }

    /// Bytes of a piece, and of a share: whole cache lines.
    fn steps(&self) -> Option<[usize; 2]> {
        let kept = self.kept[1].checked_next_multiple_of(ALIGN)?.checked_mul(self.kept[0])?;
        Some([self.piece.max(1).checked_next_multiple_of(ALIGN)?, kept])
    }

    /// Bytes of the block.
    pub fn bytes(&self) -> Result<usize, Error> {
        let bytes = self.steps().and_then(|[piece, kept]| {
            piece.checked_mul(self.pieces.max(1))?.checked_add(kept.checked_mul(self.shares)?)
        });
        bytes.ok_or(Error::Overflow)
    }

    /// Bytes that it takes in memory of any alignment.
    pub fn borrowed_bytes(&self) -> Result<usize, Error> {
        self.bytes()?.checked_add(ALIGN - 1).ok_or(Error::Overflow)
    }
}

/// Scratch up to this size is kept on the stack, where it costs nothing: an allocation takes as long
/// as the attention of a few rows. Small against the smallest stacks that threads are given.
pub(crate) const ON_STACK: usize = 16 << 10;

/// A piece of `ON_STACK` bytes where it stands.
#[repr(align(64))]
pub struct Local([MaybeUninit<u8>; ON_STACK]);

impl Local {
    /// Uninitialised.
    #[inline(always)]
    pub fn uninit() -> Local {
        const { assert!(align_of::<Local>() == ALIGN) };
        Local([const { MaybeUninit::uninit() }; ON_STACK])
    }

    /// All of it.
    pub fn piece(&mut self) -> Scratch<'_> {
        Scratch { base: self.0.as_mut_ptr().cast(), bytes: ON_STACK, memory: PhantomData }
    }
}

/// A block of scratch memory for several threads, each of which takes a piece of it.
#[derive(Debug)]
pub struct Workspace<'w> {
    base: NonNull<u8>,
    /// The pieces that may be taken from here, behind `first` others.
    size: Size,
    first: usize,
    pieces: usize,
    /// The next piece that nobody has had.
    next: AtomicUsize,
    /// How the block was allocated, if it is to be given back.
    owned: Option<Layout>,
    memory: PhantomData<&'w mut [u8]>,
}

// SAFETY: the block is exclusively borrowed or owned, and pieces are handed out once.
unsafe impl Send for Workspace<'_> {}
// SAFETY: as above.
unsafe impl Sync for Workspace<'_> {}

impl<'w> Workspace<'w> {
    /// Memory of this size, uninitialised.
    pub fn allocate(size: Size) -> Result<Workspace<'static>, Error> {
        let layout = Layout::from_size_align(size.bytes()?, ALIGN).map_err(|_| Error::Overflow)?;
        // SAFETY: the size is at least ALIGN.
        let base = NonNull::new(unsafe { alloc(layout) }).ok_or(Error::Memory)?;
        Ok(Workspace::of(base, size, [0, size.pieces.max(1)], Some(layout)))
    }

    /// The same in a slice of any length; see [`Size::borrowed_bytes`].
    pub fn on(memory: &'w mut [MaybeUninit<u8>], size: Size) -> Result<Workspace<'w>, Error> {
        // SAFETY: the slice is exclusively borrowed for 'w.
        unsafe { Workspace::borrow(memory.as_mut_ptr().cast(), memory.len(), size) }
    }

    /// The same in memory of the caller's, of any content and alignment; see [`Size::borrowed_bytes`].
    ///
    /// # Safety
    /// `bytes` bytes at `memory`, unless that is null, which nobody else uses while the workspace lives.
    pub unsafe fn borrow(memory: *mut u8, bytes: usize, size: Size) -> Result<Workspace<'w>, Error> {
        // SAFETY: the caller's contract, for each of the pieces.
        unsafe { Workspace::borrow_some(memory, bytes, size, [0, size.pieces.max(1)]) }
    }

    /// Piece `i` of the same, alone: other callers use the others at the same time.
    ///
    /// # Safety
    /// `bytes` bytes at `memory`, of which nobody else uses this piece while the workspace lives.
    pub unsafe fn borrow_piece(
        memory: *mut u8,
        bytes: usize,
        size: Size,
        i: usize,
    ) -> Result<Workspace<'w>, Error> {
        // SAFETY: the caller's contract.
        unsafe { Workspace::borrow_some(memory, bytes, size, [i, 1]) }
    }

    /// # Safety
    /// As [`Workspace::borrow_piece`], for `pieces` pieces from `first` on.
    unsafe fn borrow_some(
        memory: *mut u8,
        bytes: usize,
        size: Size,
        [first, pieces]: [usize; 2],
    ) -> Result<Workspace<'w>, Error> {
        let needed = size.bytes()?;
        let before = memory.align_offset(ALIGN);
        let fits = before.checked_add(needed).is_some_and(|end| end <= bytes);
        if memory.is_null() || first >= size.pieces.max(1) || !fits {
            return Err(Error::Workspace);
        }
        let base = NonNull::new(memory.wrapping_add(before)).ok_or(Error::Workspace)?;
        Ok(Workspace::of(base, size, [first, pieces], None))
    }

    fn of(base: NonNull<u8>, size: Size, [first, pieces]: [usize; 2], owned: Option<Layout>) -> Self {
        Workspace { base, size, first, pieces, next: AtomicUsize::new(0), owned, memory: PhantomData }
    }

    /// How it is cut.
    pub fn size(&self) -> Size {
        self.size
    }

    /// A piece that nobody has had yet.
    pub fn take(&self) -> Option<Scratch<'_>> {
        // Relaxed: only uniqueness matters.
        let i = self.next.fetch_add(1, Ordering::Relaxed);
        let [bytes, _] = self.size.steps()?;
        (i < self.pieces).then(|| {
            // SAFETY: the piece lies within the block; pieces do not overlap.
            let base = unsafe { self.base.as_ptr().add((self.first + i) * bytes) };
            Scratch { base, bytes, memory: PhantomData }
        })
    }

    /// What threads keep for others.
    pub fn kept(&self) -> PartialStates<'_> {
        let [piece, share] = self.size.steps().unwrap_or_default();
        // Behind the pieces.
        let base = self.base.as_ptr().wrapping_add(piece * self.size.pieces.max(1));
        let [count, _] = self.size.kept;
        let step = share.checked_div(count).unwrap_or(0);
        PartialStates { base, shares: self.size.shares, count, step, memory: PhantomData }
    }
}

/// Room for what one thread computes and another needs later: some for each share of the work. It hands out places;
/// who may use them when is for those to know who share the work.
#[derive(Clone, Copy, Debug)]
pub struct PartialStates<'w> {
    base: *mut u8,
    shares: usize,
    /// Places of a share, and bytes of each.
    count: usize,
    step: usize,
    memory: PhantomData<&'w mut [u8]>,
}

// SAFETY: places are raw memory without an owner thread.
unsafe impl Send for PartialStates<'_> {}
// SAFETY: as above; nothing is read or written here.
unsafe impl Sync for PartialStates<'_> {}

impl PartialStates<'_> {
    /// For work that is one share, which has nobody to keep anything for.
    pub fn nothing() -> PartialStates<'static> {
        PartialStates { base: std::ptr::null_mut(), shares: 0, count: 0, step: 0, memory: PhantomData }
    }

    /// Place `n` of a share, aligned to [`ALIGN`].
    ///
    /// # Panics
    /// If there are not as many: the plan's size and the kernel's use disagree.
    pub(crate) fn state(&self, share: usize, n: usize) -> *mut u8 {
        assert!(share < self.shares && n < self.count);
        self.base.wrapping_add((share * self.count + n) * self.step)
    }
}

impl Drop for Workspace<'_> {
    fn drop(&mut self) {
        if let Some(layout) = self.owned {
            // SAFETY: allocated in `allocate` with this layout.
            unsafe { dealloc(self.base.as_ptr(), layout) };
        }
    }
}

/// Exclusive, uninitialised memory, aligned to `ALIGN`.
#[derive(Debug)]
pub struct Scratch<'w> {
    base: *mut u8,
    bytes: usize,
    memory: PhantomData<&'w mut [u8]>,
}

// SAFETY: a piece is exclusively borrowed memory without an owner thread.
unsafe impl Send for Scratch<'_> {}

impl Scratch<'_> {
    /// The same memory for a shorter time: each part reuses the whole piece.
    pub fn reborrow(&mut self) -> Scratch<'_> {
        Scratch { base: self.base, bytes: self.bytes, memory: PhantomData }
    }

    /// Cuts off an array of `n` elements, aligned to [`ALIGN`] and uninitialised.
    ///
    /// # Panics
    /// If the piece is used up: the plan's size and the kernel's use disagree.
    pub(crate) fn take<T>(&mut self, n: usize) -> *mut T {
        const { assert!(align_of::<T>() <= ALIGN) };
        let bytes = array_bytes(n, size_of::<T>()).filter(|&bytes| bytes <= self.bytes);
        let bytes = bytes.expect("scratch as large as the plan says");
        let array = self.base;
        self.base = array.wrapping_add(bytes);
        self.bytes -= bytes;
        array.cast()
    }
}
