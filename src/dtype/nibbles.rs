//! The block formats of ggml with codes of 4 and 5 bits: 32 elements that share a binary16 scale,
//! bit for bit as ggml stores them. One implementation, [`Nibbles`], has them all; what differs is
//! a [`Format`].
//!
//! A block is, without gaps: the scale; a binary16 minimum, with [`Format::HAS_MINIMUM`]; 32 bits,
//! the fifth of each code, with [`Format::HAS_FIFTH_BIT`]; and 16 bytes: elements 0 to 15 are the
//! low nibbles, elements 16 to 31 the high ones.
//!
//! | format | an element, of the unsigned code n |
//! |---|---|
//! | Q4_0 | scale · (n - 8) |
//! | Q4_1 | scale · n + minimum |
//! | Q5_0 | scale · (n - 16) |
//! | Q5_1 | scale · n + minimum |
//! | IQ4_NL | scale · the `n`th of 16 numbers |
//!
//! scale times code is exact in f32, and so an element is too, but for those with a minimum: the
//! sum is rounded once.
//!
//! No loop over K or V reads these blocks. They are converted to f32, unpacked to blocks of Q8_0
//! ([`crate::decode::unpack`]), or repacked ([`crate::decode::repacked`]), in scratch memory that
//! stays in cache: so they cost no kernels of their own.

use std::marker::PhantomData;

use super::Stored;
use crate::simd::{Isa, MAX_LANES, half};

/// The type of [`super::Dtype::Q4_0`].
pub(crate) type Q4_0 = Nibbles<OfQ4_0>;
/// The type of [`super::Dtype::Q4_1`].
pub(crate) type Q4_1 = Nibbles<OfQ4_1>;
/// The type of [`super::Dtype::Q5_0`].
pub(crate) type Q5_0 = Nibbles<OfQ5_0>;
/// The type of [`super::Dtype::Q5_1`].
pub(crate) type Q5_1 = Nibbles<OfQ5_1>;
/// The type of [`super::Dtype::Iq4Nl`].
pub(crate) type Iq4Nl = Nibbles<OfIq4Nl>;

/// Blocks of a [`Format`].
pub(crate) struct Nibbles<F>(PhantomData<fn() -> F>);

/// What a format of 4 or 5 bits says: see the module.
pub(crate) trait Format: 'static {
    /// Whether blocks have a minimum, which is added to each element.
    const HAS_MINIMUM: bool;
    /// Whether codes have a fifth bit: it counts [`FIFTH`].
    const HAS_FIFTH_BIT: bool;
    /// The code of each nibble, as a signed number.
    const CODES: [i8; 16];
    /// What is to be added to a code before it is multiplied by the scale.
    const OFFSET: i8 = 0;
}

/// What the fifth bit of a code counts.
const FIFTH: i8 = 16;

/// 16 neighbouring integers from `first` on.
const fn integers(first: i8) -> [i8; 16] {
    let mut codes = [first; 16];
    let mut n = 0;
    while n < 16 {
        codes[n] = first + n as i8;
        n += 1;
    }
    codes
}

/// [`Format`] of [`super::Dtype::Q4_0`].
pub(crate) enum OfQ4_0 {}

impl Format for OfQ4_0 {
    const HAS_MINIMUM: bool = false;
    const HAS_FIFTH_BIT: bool = false;
    const CODES: [i8; 16] = integers(-8);
}

/// [`Format`] of [`super::Dtype::Q4_1`].
pub(crate) enum OfQ4_1 {}

impl Format for OfQ4_1 {
    const HAS_MINIMUM: bool = true;
    const HAS_FIFTH_BIT: bool = false;
    const CODES: [i8; 16] = integers(-8);
    const OFFSET: i8 = 8;
}

/// [`Format`] of [`super::Dtype::Q5_0`].
pub(crate) enum OfQ5_0 {}

impl Format for OfQ5_0 {
    const HAS_MINIMUM: bool = false;
    const HAS_FIFTH_BIT: bool = true;
    const CODES: [i8; 16] = integers(-16);
}

/// [`Format`] of [`super::Dtype::Q5_1`].
pub(crate) enum OfQ5_1 {}

impl Format for OfQ5_1 {
    const HAS_MINIMUM: bool = true;
    const HAS_FIFTH_BIT: bool = true;
    const CODES: [i8; 16] = integers(-16);
    const OFFSET: i8 = 16;
}

/// [`Format`] of [`super::Dtype::Iq4Nl`].
pub(crate) enum OfIq4Nl {}

impl Format for OfIq4Nl {
    const HAS_MINIMUM: bool = false;
    const HAS_FIFTH_BIT: bool = false;
    const CODES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
}

/// Runs `$code` with `$Type` as the [`Nibbles`] of a [`Dtype`], or `$other` if it is another type.
macro_rules! with_nibbles {
    ($dtype:expr, $Type:ident => $code:expr, else $other:expr) => {
        match $dtype {
            $crate::dtype::Dtype::Q4_0 => {
                type $Type = $crate::dtype::nibbles::Q4_0;
                $code
            }
            $crate::dtype::Dtype::Q4_1 => {
                type $Type = $crate::dtype::nibbles::Q4_1;
                $code
            }
            $crate::dtype::Dtype::Q5_0 => {
                type $Type = $crate::dtype::nibbles::Q5_0;
                $code
            }
            $crate::dtype::Dtype::Q5_1 => {
                type $Type = $crate::dtype::nibbles::Q5_1;
                $code
            }
            $crate::dtype::Dtype::Iq4Nl => {
                type $Type = $crate::dtype::nibbles::Iq4Nl;
                $code
            }
            _ => $other,
        }
    };
}
pub(crate) use with_nibbles;

impl<F: Format> Nibbles<F> {
    /// A value, for functions that take the format as a parameter.
    pub(crate) const NEW: Self = Nibbles(PhantomData);
    /// Whether blocks have a minimum.
    pub(crate) const HAS_MINIMUM: bool = F::HAS_MINIMUM;
    /// Bytes from the beginning of a block to its minimum.
    pub(crate) const MINIMUM: usize = 2;
    /// What is to be added to a code of [`Nibbles::unpack`] before it is multiplied by the scale.
    pub(crate) const OFFSET: f32 = F::OFFSET as f32;
    /// Whether codes have a fifth bit, and what it counts.
    pub(crate) const HAS_FIFTH_BIT: bool = F::HAS_FIFTH_BIT;
    pub(crate) const FIFTH: i8 = FIFTH;
    /// The code of each nibble, as a signed byte, and plus 128, as an unsigned one.
    pub(crate) const SIGNED: [i8; 16] = F::CODES;
    pub(crate) const UNSIGNED: [i8; 16] = {
        let mut codes = F::CODES;
        let mut n = 0;
        while n < 16 {
            codes[n] = codes[n].wrapping_add(i8::MIN);
            n += 1;
        }
        codes
    };
    const BITS: usize = if F::HAS_MINIMUM { 4 } else { 2 };
    /// Bytes from the beginning of a block to its nibbles.
    pub(crate) const CODES: usize = Self::BITS + if F::HAS_FIFTH_BIT { 4 } else { 0 };

    /// The fifth bits of the codes of a block whose format has them.
    ///
    /// # Safety
    /// The block is readable.
    #[inline(always)]
    pub(crate) unsafe fn fifths(block: *const u8) -> u32 {
        // SAFETY: I7: the bits of the block (caller).
        unsafe { block.wrapping_add(Self::BITS).cast::<u32>().read_unaligned() }
    }

    /// The block that has element `d` of a row.
    #[inline(always)]
    fn block(row: *const u8, d: usize) -> *const u8 {
        row.wrapping_add(d / Self::BLOCK * Self::BLOCK_BYTES)
    }

    /// Writes the codes of a block, without [`Format::OFFSET`], to `to`; each with the other sign
    /// if `sign` is negative.
    ///
    /// # Safety
    /// The block is readable, and 32 codes are writable at `to`.
    #[inline(always)]
    pub(crate) unsafe fn unpack<S: Isa>(s: S, block: *const u8, sign: Option<i8>, to: *mut i8) {
        // SAFETY: I7: 16 bytes of the block, and, if the format has them, the bits before these;
        // room for 32 codes (caller).
        unsafe {
            let fifths = if const { F::HAS_FIFTH_BIT } { Some((Self::fifths(block), FIFTH)) } else { None };
            s.unpack_nibbles(block.wrapping_add(Self::CODES), &F::CODES, fifths, sign, to);
        }
    }

    /// The minimum of a block, of which the scale times [`Nibbles::OFFSET`] is a part.
    ///
    /// # Safety
    /// The block is readable.
    pub(crate) unsafe fn centred_minimum(block: *const u8) -> f32 {
        // SAFETY: I7: scale and minimum (caller).
        unsafe {
            let number = |at: usize| half::from_f16(block.wrapping_add(at).cast::<u16>().read_unaligned());
            number(0) * Self::OFFSET + number(Self::MINIMUM)
        }
    }

    /// Elements of a block from those at `codes` on, as f32: what [`Nibbles::unpack`] has written,
    /// without a sign.
    ///
    /// # Safety
    /// The block is readable, and so are `LANES` codes.
    #[inline(always)]
    unsafe fn elements<S: Isa>(s: S, block: *const u8, codes: *const i8) -> S::F32 {
        // SAFETY: I7: scale, minimum and codes (caller).
        unsafe {
            let (scale, codes) = (s.splat_f16(block.cast()), s.load_i8(codes));
            if const { F::HAS_MINIMUM } {
                let minimum = s.splat_f16(block.wrapping_add(Self::MINIMUM).cast());
                // Exact but for the last addition, whether it is fused or not.
                s.fma(s.add(codes, s.splat(Self::OFFSET)), scale, minimum)
            } else {
                s.mul(scale, codes)
            }
        }
    }
}

impl<F: Format> Stored for Nibbles<F> {
    const BLOCK: usize = 32;
    const BLOCK_BYTES: usize = Self::CODES + 16;

    #[inline(always)]
    unsafe fn element(row: *const u8, d: usize) -> f32 {
        let (block, i) = (Self::block(row, d), d % Self::BLOCK);
        // SAFETY: I7: parts of the block of element `d`, which the row has (caller); rows have
        // whole blocks.
        unsafe {
            let number = |at: usize| half::from_f16(block.wrapping_add(at).cast::<u16>().read_unaligned());
            let nibble = block.wrapping_add(Self::CODES + i % 16).read() >> (i / 16 * 4) & 15;
            let mut code = F::CODES[usize::from(nibble)];
            if F::HAS_FIFTH_BIT {
                code += if Self::fifths(block) >> i & 1 == 1 { FIFTH } else { 0 };
            }
            let product = number(0) * f32::from(code + F::OFFSET);
            if F::HAS_MINIMUM { product + number(Self::MINIMUM) } else { product }
        }
    }

    #[inline(always)]
    unsafe fn load<S: Isa>(s: S, row: *const u8, d: usize) -> S::F32 {
        // Vectors do not straddle blocks.
        const { assert!(Self::BLOCK.is_multiple_of(MAX_LANES)) };
        let (block, mut codes) = (Self::block(row, d), [0; 32]);
        // SAFETY: I7: the block of element `d` and the vector behind it (caller), and its codes.
        unsafe {
            Self::unpack(s, block, None, codes.as_mut_ptr());
            Self::elements(s, block, codes.as_ptr().wrapping_add(d % Self::BLOCK))
        }
    }

    /// A block is unpacked once.
    #[inline(always)]
    unsafe fn convert_row<S: Isa>(s: S, row: *const u8, dim: usize, to: *mut f32) {
        for first in (0..dim).step_by(Self::BLOCK) {
            let (block, mut codes) = (Self::block(row, first), [0; 32]);
            // SAFETY: I7: rows have whole blocks, and there is room for their elements (caller).
            unsafe {
                Self::unpack(s, block, None, codes.as_mut_ptr());
                for d in (0..Self::BLOCK).step_by(S::LANES) {
                    let x = Self::elements(s, block, codes.as_ptr().wrapping_add(d));
                    s.store(to.wrapping_add(first + d), x);
                }
            }
        }
    }
}
