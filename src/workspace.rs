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

/// Bytes of a block of `pieces` pieces of `piece` bytes.
pub fn total_bytes(pieces: usize, piece: usize) -> Result<usize, Error> {
    let piece = piece.checked_next_multiple_of(ALIGN).ok_or(Error::Overflow)?;
    piece.checked_mul(pieces).ok_or(Error::Overflow)
}

/// Bytes that a block of `pieces` pieces takes in memory of any alignment.
pub fn borrowed_bytes(pieces: usize, piece: usize) -> Result<usize, Error> {
    total_bytes(pieces.max(1), piece.max(1))?.checked_add(ALIGN - 1).ok_or(Error::Overflow)
}

/// Scratch up to this size is kept on the stack, where it costs nothing: an allocation takes as long
/// as the attention of a few rows. Small against the smallest stacks that threads are given.
pub(crate) const ON_STACK: usize = 16 << 10;

/// A piece of [`ON_STACK`] bytes where it stands.
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
    piece: usize,
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
    /// `pieces` pieces of `piece` bytes, both at least 1; uninitialised.
    pub fn allocate(pieces: usize, piece: usize) -> Result<Workspace<'static>, Error> {
        let bytes = total_bytes(pieces.max(1), piece.max(1))?;
        let layout = Layout::from_size_align(bytes, ALIGN).map_err(|_| Error::Overflow)?;
        // SAFETY: the size is at least ALIGN.
        let base = NonNull::new(unsafe { alloc(layout) }).ok_or(Error::Memory)?;
        Ok(Workspace::of(base, pieces.max(1), bytes / pieces.max(1), Some(layout)))
    }

    /// The same in memory of the caller's, of any content and alignment; see [`borrowed_bytes`].
    ///
    /// # Safety
    /// `size` bytes at `memory`, unless that is null, which nobody else uses while the workspace lives.
    pub unsafe fn borrow(
        memory: *mut u8,
        size: usize,
        pieces: usize,
        piece: usize,
    ) -> Result<Workspace<'w>, Error> {
        // SAFETY: the caller's contract. The first piece is followed by the others.
        let first = unsafe { Workspace::borrow_piece(memory, size, [0, pieces], piece)? };
        Ok(Workspace::of(first.base, pieces, first.piece, None))
    }

    /// Piece `i` of the same, alone: other callers use the others at the same time.
    ///
    /// # Safety
    /// `size` bytes at `memory`, of which nobody else uses this piece while the workspace lives.
    pub unsafe fn borrow_piece(
        memory: *mut u8,
        size: usize,
        [i, pieces]: [usize; 2],
        piece: usize,
    ) -> Result<Workspace<'w>, Error> {
        let bytes = total_bytes(pieces.max(1), piece.max(1))?;
        let piece = bytes / pieces.max(1);
        let before = memory.align_offset(ALIGN);
        if memory.is_null() || i >= pieces || before.checked_add(bytes).is_none_or(|end| end > size) {
            return Err(Error::Workspace);
        }
        let base = NonNull::new(memory.wrapping_add(before + i * piece)).ok_or(Error::Workspace)?;
        Ok(Workspace::of(base, 1, piece, None))
    }

    fn of(base: NonNull<u8>, pieces: usize, piece: usize, owned: Option<Layout>) -> Self {
        Workspace { base, piece, pieces, next: AtomicUsize::new(0), owned, memory: PhantomData }
    }

    /// A piece that nobody has had yet.
    pub fn take(&self) -> Option<Scratch<'_>> {
        // Relaxed: only uniqueness matters.
        let i = self.next.fetch_add(1, Ordering::Relaxed);
        (i < self.pieces).then(|| {
            // SAFETY: piece i lies within the block; pieces do not overlap.
            let base = unsafe { self.base.as_ptr().add(i * self.piece) };
            Scratch { base, bytes: self.piece, memory: PhantomData }
        })
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

/// Exclusive, uninitialised memory, aligned to [`ALIGN`].
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
