//! Scratch memory: one block a call, cut into one piece a thread, cut into the arrays of a part. A
//! call on one thread that needs little keeps it on the stack.

use std::alloc::{Layout, alloc, dealloc};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

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

/// An allocated block, given back when dropped.
#[derive(Debug)]
pub struct Workspace {
    base: NonNull<u8>,
    layout: Layout,
    piece: usize,
}

impl Workspace {
    /// `pieces` pieces of `piece` bytes, both at least 1; uninitialised.
    pub fn allocate(pieces: usize, piece: usize) -> Result<Workspace, Error> {
        let bytes = total_bytes(pieces.max(1), piece.max(1))?;
        let piece = bytes / pieces.max(1);
        let layout = Layout::from_size_align(bytes, ALIGN).map_err(|_| Error::Overflow)?;
        // SAFETY: the size is at least ALIGN.
        let base = NonNull::new(unsafe { alloc(layout) }).ok_or(Error::Memory)?;
        Ok(Workspace { base, layout, piece })
    }

    /// The pieces, each for one thread.
    pub fn pieces(&mut self) -> impl ExactSizeIterator<Item = Scratch<'_>> {
        let (base, piece) = (self.base.as_ptr(), self.piece);
        (0..self.layout.size() / piece).map(move |i| {
            // SAFETY: piece i lies within the block; pieces do not overlap.
            let base = unsafe { base.add(i * piece) };
            Scratch { base, bytes: piece, memory: PhantomData }
        })
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // SAFETY: allocated in `allocate` with this layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
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
