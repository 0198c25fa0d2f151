//! Registers of a matrix unit: eight tiles of 16 rows of 16 words, as Intel's AMX has them, and the
//! same in plain Rust for instruction sets without one.
//!
//! | tile | holds | a row | a column |
//! |---|---|---|---|
//! | A | words of numbers | 16 words of what is multiplied | - |
//! | B | words of numbers | one word of each column | 16 words of what is multiplied |
//! | C | sums | sums of a row of A | with each column of B |
//!
//! A word is two numbers of 16 bits, or four of 8. C += A · B is the dot product of each row of A
//! with each column of B.

use super::half;

/// Rows of a tile, and words of a row.
pub(crate) const SIDE: usize = 16;

/// Bytes of a word.
pub(crate) const WORD: usize = 4;

/// Tiles of a thread.
const TILES: usize = 8;

/// The tiles of a thread. Values of this type are handles: they do not share what they hold unless
/// the instruction set has tile registers, so that a computation uses one of them.
///
/// Tiles have a content only between [`TileRegisters::configure`] and [`TileRegisters::release`].
pub(crate) trait TileRegisters: Sized {
    /// Configures the tiles of this thread: 16 rows of 16 words each.
    fn configure(&self);
    /// Gives them back: the system then saves nothing of them.
    fn release(&self);
    /// Tile `T` becomes 0.
    fn zero<const T: usize>(&mut self);
    /// Loads tile `T`: rows of words, `stride` bytes apart. No alignment is needed.
    ///
    /// # Safety
    /// 16 rows are readable, of as many words as the tiles have columns ([`super::Isa::tiles`]).
    unsafe fn load<const T: usize>(&mut self, from: *const u8, stride: usize);
    /// [`TileRegisters::load`] of a tile A, whose rows always have 16 words.
    ///
    /// # Safety
    /// 16 rows of 16 words are readable.
    unsafe fn load_a<const T: usize>(&mut self, from: *const u8, stride: usize);
    /// Stores tile `T`.
    ///
    /// # Safety
    /// As [`TileRegisters::load`], of memory that is writable.
    unsafe fn store<const T: usize>(&self, to: *mut u8, stride: usize);
    /// C += A · B, of 16-bit numbers: bfloat16, or those of the format that its token has
    /// ([`super::Isa::with_half_format`]). Subnormal bfloat16 may count as 0, and subnormal sums.
    fn dot_halves<const C: usize, const A: usize, const B: usize>(&mut self);
    /// C += A · B, of unsigned bytes by signed ones. Sums wrap.
    fn dot_u8_i8<const C: usize, const A: usize, const B: usize>(&mut self);
    /// C += A · B, of signed bytes by unsigned ones. Sums wrap.
    fn dot_i8_u8<const C: usize, const A: usize, const B: usize>(&mut self);
}

/// Tiles that are configured as long as this lives, on the thread that has made it.
pub(crate) struct Configured<T: TileRegisters>(T);

impl<T: TileRegisters> Configured<T> {
    pub(crate) fn new(tiles: T) -> Self {
        tiles.configure();
        Configured(tiles)
    }
}

impl<T: TileRegisters> Drop for Configured<T> {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// Tiles in memory.
pub(crate) struct Plain {
    tiles: [[[u32; SIDE]; SIDE]; TILES],
    /// Columns of B and C.
    columns: usize,
}

impl Plain {
    #[inline(always)]
    pub(crate) fn new(columns: usize) -> Plain {
        assert!(columns <= SIDE);
        Plain { tiles: [[[0; SIDE]; SIDE]; TILES], columns }
    }

    /// # Safety
    /// 16 rows of `columns` words are readable.
    unsafe fn load_columns(&mut self, tile: usize, from: *const u8, stride: usize, columns: usize) {
        for (r, row) in self.tiles[tile].iter_mut().enumerate() {
            for (c, word) in row.iter_mut().enumerate() {
                let at = from.wrapping_add(r * stride + c * WORD).cast::<u32>();
                // SAFETY: one of the caller's words.
                *word = if c < columns { unsafe { at.read_unaligned() } } else { 0 };
            }
        }
    }

    /// C += A · B, where `dot` adds the product of two words to a sum.
    fn dot(&mut self, [c, a, b]: [usize; 3], dot: impl Fn(u32, u32, u32) -> u32) {
        let (a, b) = (self.tiles[a], self.tiles[b]);
        for (c, a) in self.tiles[c].iter_mut().zip(&a) {
            for (n, c) in c.iter_mut().enumerate() {
                *c = a.iter().zip(&b).fold(*c, |sum, (&a, b)| dot(sum, a, b[n]));
            }
        }
    }

    fn dot_bytes(&mut self, tiles: [usize; 3], product: impl Fn(u8, u8) -> i32) {
        self.dot(tiles, |sum, a, b| {
            let products = a.to_le_bytes().into_iter().zip(b.to_le_bytes()).map(|(a, b)| product(a, b));
            sum.wrapping_add_signed(products.sum::<i32>())
        });
    }
}

impl TileRegisters for Plain {
    fn configure(&self) {}

    fn release(&self) {}

    fn zero<const T: usize>(&mut self) {
        self.tiles[T] = [[0; SIDE]; SIDE];
    }

    unsafe fn load<const T: usize>(&mut self, from: *const u8, stride: usize) {
        // SAFETY: the caller's rows have as many words.
        unsafe { self.load_columns(T, from, stride, self.columns) };
    }

    unsafe fn load_a<const T: usize>(&mut self, from: *const u8, stride: usize) {
        // SAFETY: the caller's rows have 16 words.
        unsafe { self.load_columns(T, from, stride, SIDE) };
    }

    unsafe fn store<const T: usize>(&self, to: *mut u8, stride: usize) {
        for (r, row) in self.tiles[T].iter().enumerate() {
            for (c, &word) in row.iter().enumerate().take(self.columns) {
                // SAFETY: one of the caller's words.
                unsafe { to.wrapping_add(r * stride + c * WORD).cast::<u32>().write_unaligned(word) };
            }
        }
    }

    fn dot_halves<const C: usize, const A: usize, const B: usize>(&mut self) {
        self.dot([C, A, B], |sum, a, b| {
            let number = |word: u32, shift: u32| half::from_bf16((word >> shift) as u16);
            let [low, high] = [0, 16].map(|shift| number(a, shift) * number(b, shift));
            (f32::from_bits(sum) + (low + high)).to_bits()
        });
    }

    fn dot_u8_i8<const C: usize, const A: usize, const B: usize>(&mut self) {
        self.dot_bytes([C, A, B], |a, b| i32::from(a) * i32::from(b.cast_signed()));
    }

    fn dot_i8_u8<const C: usize, const A: usize, const B: usize>(&mut self) {
        self.dot_bytes([C, A, B], |a, b| i32::from(a.cast_signed()) * i32::from(b));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::rc::Rc;

    use super::*;

    /// Tiles that count how often they are configured and not released.
    struct Counted(Rc<Cell<i32>>);

    impl TileRegisters for Counted {
        fn configure(&self) {
            self.0.set(self.0.get() + 1);
        }
        fn release(&self) {
            self.0.set(self.0.get() - 1);
        }
        fn zero<const T: usize>(&mut self) {}
        unsafe fn load<const T: usize>(&mut self, _from: *const u8, _stride: usize) {}
        unsafe fn load_a<const T: usize>(&mut self, _from: *const u8, _stride: usize) {}
        unsafe fn store<const T: usize>(&self, _to: *mut u8, _stride: usize) {}
        fn dot_halves<const C: usize, const A: usize, const B: usize>(&mut self) {}
        fn dot_u8_i8<const C: usize, const A: usize, const B: usize>(&mut self) {}
        fn dot_i8_u8<const C: usize, const A: usize, const B: usize>(&mut self) {}
    }

    #[test]
    fn tiles_are_released_when_a_panic_unwinds() {
        let count = Rc::new(Cell::new(0));
        let result = catch_unwind(AssertUnwindSafe(|| {
            let _configured = Configured::new(Counted(count.clone()));
            assert_eq!(count.get(), 1);
            std::panic::resume_unwind(Box::new(()));
        }));
        assert!(result.is_err() && count.get() == 0);
    }
}
