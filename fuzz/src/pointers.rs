//! Pointers of a description made real: what they lead to is as long as the other fields say, and
//! no byte longer.

use crate::common::Random;
use crate::memory::{Guarded, untouchable};

/// Bytes behind a pointer, at most; what is larger is nowhere, and only described.
pub const MOST: usize = 1 << 12;

/// Addresses for something that is nowhere. What is said to be larger reaches into its neighbours'.
const NOWHERE: usize = 1 << 40;

/// What outputs hold before.
const BEFORE: u8 = 0xa5;

/// A pointer as an input gives it.
#[derive(Clone, Copy, Debug)]
pub struct Code(pub u64);

impl Code {
    pub fn is_null(self) -> bool {
        self.0 & 3 == 0
    }
    fn is_at_end(self) -> bool {
        self.0 & 3 == 1
    }
    /// Number of the pointer whose memory it leads to, and how far into that.
    fn shared(self, count: usize) -> Option<(usize, usize)> {
        (self.0 & 3 == 3)
            .then_some(((self.0 >> 2 & 31) as usize % count, (self.0 >> 8) as usize % (MOST + 1)))
    }
}

/// Which pointer it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Input,
    Output,
    /// An input whose numbers decide what is legal.
    List,
}

/// A pointer.
#[derive(Clone, Copy, Debug)]
pub struct Pointer {
    pub at: *mut u8,
    /// Bytes that are said to be there.
    pub bytes: i128,
    pub kind: Kind,
    /// Whether it leads to another one's memory, or another to its.
    pub is_shared: bool,
}

impl Pointer {
    pub fn overlaps(&self, other: &Pointer) -> bool {
        let range = |x: &Pointer| {
            let start = x.at.addr() as i128;
            (start, start.saturating_add(if x.at.is_null() { 0 } else { x.bytes }))
        };
        let ((a, b), (c, d)) = (range(self), range(other));
        a < d && c < b && a < b && c < d
    }
}

/// Memory for `N` pointers.
pub struct Memory<const N: usize> {
    slots: [Guarded; N],
    used: [bool; N],
    before: [Vec<u8>; N],
    nowhere: *mut u8,
}

impl<const N: usize> Memory<N> {
    pub fn new() -> Self {
        Memory {
            slots: [0; N].map(|_| Guarded::new(2 * MOST)),
            used: [false; N],
            before: [const { Vec::new() }; N],
            nowhere: untouchable((N + 1) * NOWHERE),
        }
    }

    /// Pointers to so many bytes each, and whether all lead somewhere.
    pub fn place(&mut self, wanted: [(Code, i128, Kind); N]) -> ([Pointer; N], bool) {
        let mut all_real = true;
        self.used = [false; N];
        let mut pointers = [0; N].map(|_| Pointer {
            at: std::ptr::null_mut(),
            bytes: 0,
            kind: Kind::Input,
            is_shared: false,
        });
        // Sizes of what is refused may come out negative.
        let wanted = wanted.map(|(code, bytes, kind)| (code, bytes.max(0), kind));
        for (i, &(code, bytes, kind)) in wanted.iter().enumerate() {
            pointers[i].bytes = bytes;
            pointers[i].kind = kind;
            if code.is_null() {
                continue;
            }
            if bytes > MOST as i128 {
                pointers[i].at = self.nowhere.wrapping_add(i * NOWHERE);
                all_real = false;
                continue;
            }
            self.used[i] = true;
            pointers[i].at = self.slots[i].place(bytes as usize, code.is_at_end());
        }
        for i in 0..N {
            let (code, bytes, kind) = wanted[i];
            let Some((owner, offset)) = code.shared(N) else { continue };
            let owner_kind = wanted[owner].2;
            // Inputs share with inputs of the same kind; outputs with all.
            let may = match kind {
                Kind::List => false,
                Kind::Input => owner_kind == Kind::Input,
                Kind::Output => true,
            };
            if may && self.used[owner] && owner != i && bytes <= MOST as i128 && wanted[owner].0.0 & 3 == 2 {
                pointers[i].at = self.slots[owner].place(0, false).wrapping_add(offset);
                pointers[i].is_shared = true;
                pointers[owner].is_shared = true;
            }
        }
        (pointers, all_real)
    }

    /// Fills outputs, and what is beside all.
    pub fn blank(&mut self) {
        for (slot, used) in self.slots.iter_mut().zip(self.used) {
            if used {
                slot.bytes().fill(BEFORE);
            }
        }
    }

    /// Remembers what everything holds now.
    pub fn keep(&mut self) {
        for i in 0..N {
            if self.used[i] {
                let bytes = self.slots[i].bytes();
                self.before[i].clear();
                self.before[i].extend_from_slice(bytes);
            }
        }
    }

    /// Brings back what everything held then.
    pub fn restore(&mut self) {
        for i in 0..N {
            if self.used[i] {
                self.slots[i].bytes().copy_from_slice(&self.before[i]);
            }
        }
    }

    /// Whether everything but these ranges of addresses is as it was.
    pub fn is_untouched_but(&mut self, written: &[(usize, usize)]) -> bool {
        for i in 0..N {
            if !self.used[i] {
                continue;
            }
            let now = self.slots[i].bytes();
            if *now == *self.before[i] {
                continue;
            }
            let start = now.as_ptr().addr();
            let mut expected = self.before[i].clone();
            for &(at, n) in written {
                let offset = at.wrapping_sub(start);
                if let Some(now) = now.get(offset..).and_then(|now| now.get(..n)) {
                    expected[offset..][..n].copy_from_slice(now);
                }
            }
            if *now != *expected {
                return false;
            }
        }
        true
    }

    /// All that can have been written.
    pub fn contents(&mut self) -> Vec<Vec<u8>> {
        (0..N).filter(|&i| self.used[i]).map(|i| self.slots[i].bytes().to_vec()).collect::<Vec<_>>()
    }
}

impl<const N: usize> Default for Memory<N> {
    fn default() -> Self {
        Memory::new()
    }
}

/// Bytes that are moderate numbers in whatever type and from whatever address on they are read: f16
/// below 2^-4, i8, and bfloat16 and f32 close to 0.
pub fn anything(random: &mut Random, to: &mut [u8]) {
    for byte in to {
        let bits = random.bits();
        *byte = (bits % 0x29) as u8 | (bits >> 16 & 0x80) as u8;
    }
}
