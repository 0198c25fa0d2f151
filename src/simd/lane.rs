//! The contents of registers in a compute type: vectors of f32, or vectors of 32-bit words that are
//! an i32 each or pack 2 or 4 narrower numbers.

use super::{Isa, MAX_LANES};

/// Numbers in a 32-bit word, at most.
pub(crate) const MAX_PACK: usize = 4;

/// A value that a kernel keeps in one or more vector registers: an accumulator or an operand.
pub(crate) trait Registers: 'static {
    /// The vector register or registers.
    type Of<S: Isa>: Copy;
    /// The type of the single vector that [`Registers::collapse`] gives.
    type Lane: Lane;

    /// All zeros.
    fn zero<S: Isa>(s: S) -> Self::Of<S>;

    /// Loads a value from one vector in memory; no alignment is needed.
    ///
    /// # Safety
    /// `LANES` 32-bit words are readable at `p`.
    unsafe fn load<S: Isa>(s: S, p: *const f32) -> Self::Of<S>;

    /// Broadcasts the 32-bit word at `p` to every lane; no alignment is needed.
    ///
    /// # Safety
    /// The word is readable.
    unsafe fn broadcast<S: Isa>(s: S, p: *const u8) -> Self::Of<S>;

    /// Reduces the value to one vector; a value of one register stays as it is.
    fn collapse<S: Isa>(s: S, x: Self::Of<S>) -> <Self::Lane as Registers>::Of<S>;
}

/// A value of one vector register. A word that packs 2 or 4 numbers has the first one in its lowest
/// bits.
pub(crate) trait Lane: Registers {
    /// Stores a vector; no alignment is needed.
    ///
    /// # Safety
    /// `LANES` 32-bit words are writable at `p`.
    unsafe fn store<S: Isa>(s: S, p: *mut f32, x: Self::Of<S>);

    /// Broadcasts lane `I`.
    fn splat_lane<S: Isa, const I: i32>(s: S, x: Self::Of<S>) -> Self::Of<S>;

    /// Converts to f32; integers are rounded to nearest even.
    fn to_f32<S: Isa>(s: S, x: Self::Of<S>) -> S::F32;

    /// Horizontal sums of the first `LANES` vectors, as f32: lane `i` is the sum of the lanes of
    /// `vectors[i]`.
    fn horizontal_sums<S: Isa>(s: S, vectors: &[Self::Of<S>; MAX_LANES]) -> S::F32;

    /// Horizontal sum of one vector, as f32, with the bits that [`Lane::horizontal_sums`] gives for
    /// it.
    fn horizontal_sum<S: Isa>(s: S, x: Self::Of<S>) -> f32;

    /// Interleaves the narrow numbers of the first `pack` vectors (1, 2 or 4): each word of the
    /// first `pack` results has one number of each. Words are in the order of
    /// [`Isa::interleave_i16`] or [`Isa::interleave_bytes`]. The other vectors and results are
    /// unspecified.
    fn interleave<S: Isa>(s: S, pack: usize, vectors: [Self::Of<S>; MAX_PACK]) -> [Self::Of<S>; MAX_PACK];
}

/// Vectors of f32.
pub(crate) enum Float {}

/// Vectors of i32, or of 32-bit words that pack narrower numbers.
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
        // SAFETY: LANES words are readable at `p` (caller).
        unsafe { s.load(p) }
    }

    #[inline(always)]
    unsafe fn broadcast<S: Isa>(s: S, p: *const u8) -> S::F32 {
        // SAFETY: one word is readable at `p` (caller).
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
        // SAFETY: LANES words are writable at `p` (caller).
        unsafe { s.store(p, x) };
    }

    #[inline(always)]
    fn splat_lane<S: Isa, const I: i32>(s: S, x: S::F32) -> S::F32 {
        s.splat_lane::<I>(x)
    }

    #[inline(always)]
    fn to_f32<S: Isa>(_s: S, x: S::F32) -> S::F32 {
        x
    }

    #[inline(always)]
    fn horizontal_sums<S: Isa>(s: S, vectors: &[S::F32; MAX_LANES]) -> S::F32 {
        s.horizontal_sums(vectors)
    }

    #[inline(always)]
    fn horizontal_sum<S: Isa>(s: S, x: S::F32) -> f32 {
        s.horizontal_sum(x)
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
        // SAFETY: LANES words are readable at `p` (caller).
        unsafe { s.load_i32(p.cast()) }
    }

    #[inline(always)]
    unsafe fn broadcast<S: Isa>(s: S, p: *const u8) -> S::I32 {
        // SAFETY: one word is readable at `p` (caller).
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
        // SAFETY: LANES words are writable at `p` (caller).
        unsafe { s.store_i32(p.cast(), x) };
    }

    #[inline(always)]
    fn splat_lane<S: Isa, const I: i32>(s: S, x: S::I32) -> S::I32 {
        s.splat_lane_i32::<I>(x)
    }

    #[inline(always)]
    fn to_f32<S: Isa>(s: S, x: S::I32) -> S::F32 {
        s.to_f32(x)
    }

    #[inline(always)]
    fn horizontal_sums<S: Isa>(s: S, vectors: &[S::I32; MAX_LANES]) -> S::F32 {
        s.to_f32(s.horizontal_sums_i32(vectors))
    }

    #[inline(always)]
    fn horizontal_sum<S: Isa>(s: S, x: S::I32) -> f32 {
        s.horizontal_sum_i32(x) as f32
    }

    #[inline(always)]
    fn interleave<S: Isa>(s: S, pack: usize, vectors: [S::I32; MAX_PACK]) -> [S::I32; MAX_PACK] {
        match pack {
            1 => vectors,
            2 => {
                let [low, high] = s.interleave_i16(vectors[0], vectors[1]);
                [low, high, low, high]
            }
            _ => s.interleave_bytes(vectors),
        }
    }
}
