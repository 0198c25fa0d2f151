//! Memory whose neighbours cannot be touched.

use std::ptr;

/// Pages between two that nobody may read or write: what is used of them can end where the last one
/// begins, or begin where the first one ends.
pub struct Guarded {
    base: *mut u8,
    size: usize,
}

impl Guarded {
    /// At least `size` bytes. Never given back: targets make what they need once.
    pub fn new(size: usize) -> Guarded {
        // SAFETY: new mappings, checked below; the guards lie inside of them.
        unsafe {
            let page = libc::sysconf(libc::_SC_PAGESIZE) as usize;
            let size = size.next_multiple_of(page);
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let all = libc::mmap(ptr::null_mut(), size + 2 * page, libc::PROT_NONE, flags, -1, 0);
            assert!(all != libc::MAP_FAILED, "no memory");
            let base = all.wrapping_byte_add(page);
            assert!(libc::mprotect(base, size, libc::PROT_READ | libc::PROT_WRITE) == 0, "no memory");
            Guarded { base: base.cast(), size }
        }
    }

    pub fn size(&self) -> usize {
        self.size
    }

    /// All bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: our own mapping; the borrow keeps others away.
        unsafe { std::slice::from_raw_parts_mut(self.base, self.size) }
    }

    /// Where `n` bytes are that end at the guard behind, or begin at the one before.
    pub fn place(&self, n: usize, at_end: bool) -> *mut u8 {
        assert!(n <= self.size);
        self.base.wrapping_add(if at_end { self.size - n } else { 0 })
    }
}

/// An address range that is reserved and that nobody may touch.
pub fn untouchable(bytes: usize) -> *mut u8 {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping, checked.
    let all = unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0) };
    assert!(all != libc::MAP_FAILED, "no addresses");
    all.cast()
}
