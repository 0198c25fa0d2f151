//! Arrays begin at cache lines, as the tensors of engines do. What `malloc` maps for large ones
//! begins 16 bytes behind one, and every vector of 64 bytes would then be two accesses.

use std::alloc::{GlobalAlloc, Layout, System};

pub struct Lines;

const LINE: usize = 64;

fn lines(layout: Layout) -> Layout {
    // Sizes that overflow have been refused before.
    layout.align_to(LINE).unwrap_or(layout)
}

// SAFETY: what the system gives for a stricter layout is good for the demanded one.
unsafe impl GlobalAlloc for Lines {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: this method's contract.
        unsafe { System.alloc(lines(layout)) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(lines(layout)) }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: allocated with the same.
        unsafe { System.dealloc(p, lines(layout)) }
    }
}
