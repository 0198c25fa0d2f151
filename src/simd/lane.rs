//! What registers hold in a compute type: vectors of f32, or vectors of 32-bit words of packed
//! numbers.

use super::{Isa, MAX_LANES};

/// The most numbers that a 32-bit word packs.
pub(crate) const MAX_PACK: usize = 4;

/// Registers that are one value to a kernel: what a sum is kept in, or what it is multiplied by.
pub(crate) trait Registers: 'static {
    /// The registers.
    type Of<S: Isa>: Copy;
    /// The vector that the value is worth, see [`Registers::collapse`].
    type Lane: Lane;

    /// All zeros.
    fn zero<S: Isa>(s: S) -> Self::Of<S>;

    /// Reads a value from one vector.
    ///
    /// # Safety
    /// A vector is readable at `p`; no alignment is needed.
    unsafe fn load<S: Isa>(s: S, p: *const f32) -> Self::Of<S>;

    /// The word at `p` in every lane.
    ///
    /// # Safety
    /// The word is readable; no alignment is needed.
    unsafe fn broadcast<S: Isa>(s: S, p: *const u8) -> Self::Of<S>;

    /// The value as one vector.
    fn collapse<S: Isa>(s: S, x: Self::Of<S>) -> <Self::Lane as Registers>::Of<S>;
}

/// One vector. A word of packed numbers holds 2 or 4 of them, the first one in the lowest bits.
pub(crate) trait Lane: Registers {
    /// Writes a vector; no alignment is needed.
    ///
    /// # Safety
    /// A vector is writable at `p`.
    unsafe fn store<S: Isa>(s: S, p: *mut f32, x: Self::Of<S>);

    /// The same numbers as f32: integers are converted, rounded to nearest even.
    fn to_f32<S: Isa>(s: S, x: Self::Of<S>) -> S::F32;

    /// The sum of each of the first `LANES` vectors, in the lane of its number: see [`Isa::sums`].
    fn sums<S: Isa>(s: S, vectors: &[Self::Of<S>; MAX_LANES]) -> S::F32;

    /// The sum of the lanes: the number that [`Lane::sums`] gives for the vector.
    fn total<S: Isa>(s: S, x: Self::Of<S>) -> f32;

    /// The numbers of `pack` vectors (1, 2 or 4) that have the same place, packed into one word:
    /// see [`Isa::zip_i16`] and [`Isa::zip_bytes`] for the order of the words. The other vectors
    /// are of no account.
    fn interleave<S: Isa>(s: S, pack: usize, vectors: [Self::Of<S>; MAX_PACK]) -> [Self::Of<S>; MAX_PACK];
}

/// Vectors of f32.
pub(crate) enum Float {}

/// Vectors of 32-bit integers, or of words of packed numbers.
pub(crate) enum Int {}

impl Registers for Float {
    type Of<S: Isa> = S::F32;
    type Lane = Float;

    #[inline(always)]
    fn zero<S: Isa>(s: S) -> S::F32 {
        s.splat(0.0)
    }

    #[inline(always)]
    unsafe fn load<S: Isa>(s: S, p: *const f32) -> S::F32 {
        // SAFETY: the caller vouches for a vector at `p`.
        unsafe { s.load(p) }
    }

    #[inline(always)]
    unsafe fn broadcast<S: Isa>(s: S, p: *const u8) -> S::F32 {
        // SAFETY: the caller vouches for 4 bytes at `p`.
        s.splat(unsafe { p.cast::<f32>().read_unaligned() })
    }

    #[inline(always)]
    fn collapse<S: Isa>(_s: S, x: S::F32) -> S::F32 {
        x
    }
}

impl Lane for Float {
    #[inline(always)]
    unsafe fn store<S: Isa>(s: S, p: *mut f32, x: S::F32) {
        // SAFETY: the caller vouches for a vector at `p`.
        unsafe { s.store(p, x) };
    }

    #[inline(always)]
    fn to_f32<S: Isa>(_s: S, x: S::F32) -> S::F32 {
        x
    }

    #[inline(always)]
    fn sums<S: Isa>(s: S, vectors: &[S::F32; MAX_LANES]) -> S::F32 {
        s.sums(vectors)
    }

    #[inline(always)]
    fn total<S: Isa>(s: S, x: S::F32) -> f32 {
        s.total(x)
    }

    #[inline(always)]
    fn interleave<S: Isa>(_s: S, pack: usize, vectors: [S::F32; MAX_PACK]) -> [S::F32; MAX_PACK] {
        debug_assert!(pack == 1);
        vectors
    }
}

impl Registers for Int {
    type Of<S: Isa> = S::I32;
    type Lane = Int;

    #[inline(always)]
    fn zero<S: Isa>(s: S) -> S::I32 {
        s.splat_i32(0)
    }

    #[inline(always)]
    unsafe fn load<S: Isa>(s: S, p: *const f32) -> S::I32 {
        // SAFETY: the caller vouches for a vector at `p`.
        unsafe { s.load_i32(p.cast()) }
    }

    #[inline(always)]
    unsafe fn broadcast<S: Isa>(s: S, p: *const u8) -> S::I32 {
        // SAFETY: the caller vouches for 4 bytes at `p`.
        s.splat_i32(unsafe { p.cast::<i32>().read_unaligned() })
    }

    #[inline(always)]
    fn collapse<S: Isa>(_s: S, x: S::I32) -> S::I32 {
        x
    }
}

impl Lane for Int {
    #[inline(always)]
    unsafe fn store<S: Isa>(s: S, p: *mut f32, x: S::I32) {
        // SAFETY: the caller vouches for a vector at `p`.
        unsafe { s.store_i32(p.cast(), x) };
    }

    #[inline(always)]
    fn to_f32<S: Isa>(s: S, x: S::I32) -> S::F32 {
        s.to_f32(x)
    }

    #[inline(always)]
    fn sums<S: Isa>(s: S, vectors: &[S::I32; MAX_LANES]) -> S::F32 {
        s.to_f32(s.sums_i32(vectors))
    }

    #[inline(always)]
    fn total<S: Isa>(s: S, x: S::I32) -> f32 {
        s.total_i32(x) as f32
    }

    #[inline(always)]
    fn interleave<S: Isa>(s: S, pack: usize, vectors: [S::I32; MAX_PACK]) -> [S::I32; MAX_PACK] {
        match pack {
            1 => vectors,
            2 => {
                let [low, high] = s.zip_i16(vectors[0], vectors[1]);
                [low, high, low, high]
            }
            _ => s.zip_bytes(vectors),
        }
    }
}
