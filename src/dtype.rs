//! Storage types: how the bytes of a tensor become numbers.
//!
//! A new type is one file in this folder, which implements `Stored`, and one line in each of the
//! small tables here (see `docs/adding-a-dtype.md`). [`crate::compute`] has the arithmetic on the
//! numbers.

pub(crate) mod bf16;
pub(crate) mod block_scaled;
pub(crate) mod bool8;
pub mod encode;
pub(crate) mod f16;
pub(crate) mod f32;
pub(crate) mod f8;
pub(crate) mod i8;
pub(crate) mod nibbles;
pub(crate) mod q15;
pub(crate) mod q8_0;
pub(crate) mod u8;

use crate::simd::{Isa, MAX_LANES, Padded, half};

/// How the elements of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper 16 bits of a binary32.
    Bf16,
    /// Signed 8-bit integer.
    I8,
    /// Blocks of a binary16 scale and 32 signed 8-bit integers (ggml).
    Q8_0,
    /// A boolean in a byte, true if not 0: for masks.
    Bool8,
    /// Blocks of a binary16 scale and 32 codes of 4 bits, -8 to 7 (ggml).
    Q4_0,
    /// Blocks of a binary16 scale, a binary16 minimum and 32 codes of 4 bits, 0 to 15 (ggml).
    Q4_1,
    /// Blocks of a binary16 scale and 32 codes of 5 bits, -16 to 15 (ggml).
    Q5_0,
    /// Blocks of a binary16 scale, a binary16 minimum and 32 codes of 5 bits, 0 to 31 (ggml).
    Q5_1,
    /// Blocks of a binary16 scale and 32 codes of 4 bits, which stand for 16 numbers (ggml).
    Iq4Nl,
    /// Floating-point number of 8 bits: 4 of exponent, 3 of mantissa, and no infinity.
    F8E4M3,
    /// Floating-point number of 8 bits: the upper half of a binary16.
    F8E5M2,
    /// Unsigned 8-bit integer.
    U8,
    /// Signed 16-bit integer, divided by 32,768.
    Q15,
}

impl std::fmt::Display for Dtype {
    /// The name in the C header, without its prefix.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
            Dtype::I8 => "I8",
            Dtype::Q8_0 => "Q8_0",
            Dtype::Bool8 => "BOOL8",
            Dtype::Q4_0 => "Q4_0",
            Dtype::Q4_1 => "Q4_1",
            Dtype::Q5_0 => "Q5_0",
            Dtype::Q5_1 => "Q5_1",
            Dtype::Iq4Nl => "IQ4_NL",
            Dtype::F8E4M3 => "F8_E4M3",
            Dtype::F8E5M2 => "F8_E5M2",
            Dtype::U8 => "U8",
            Dtype::Q15 => "Q15",
        })
    }
}

/// Runs `$code` with `$Type` as the [`Stored`] type of a [`Dtype`] that loops over K and V read.
/// `Shape::of` refuses booleans, and the others have been converted or unpacked before, or copied
/// as what they are [`Dtype::read_as`]: no loop is compiled for them.
macro_rules! with_read_type {
    ($dtype:expr, $Type:ident => $code:expr) => {
        match $dtype {
            $crate::dtype::Dtype::F32 => {
                type $Type = $crate::dtype::f32::F32;
                $code
            }
            $crate::dtype::Dtype::F16 => {
                type $Type = $crate::dtype::f16::F16;
                $code
            }
            $crate::dtype::Dtype::Bf16 => {
                type $Type = $crate::dtype::bf16::Bf16;
                $code
            }
            // The others do not come; any type compiles.
            $crate::dtype::Dtype::I8
            | $crate::dtype::Dtype::Bool8
            | $crate::dtype::Dtype::Q4_0
            | $crate::dtype::Dtype::Q4_1
            | $crate::dtype::Dtype::Q5_0
            | $crate::dtype::Dtype::Q5_1
            | $crate::dtype::Dtype::Iq4Nl
            | $crate::dtype::Dtype::F8E4M3
            | $crate::dtype::Dtype::F8E5M2
            | $crate::dtype::Dtype::U8
            | $crate::dtype::Dtype::Q15 => {
                type $Type = $crate::dtype::i8::I8;
                $code
            }
            $crate::dtype::Dtype::Q8_0 => {
                type $Type = $crate::dtype::q8_0::Q8_0;
                $code
            }
        }
    };
}
pub(crate) use with_read_type;

/// Runs `$code` with `$Type` as the [`Stored`] type of a [`Dtype`] that Q, K and V may have.
/// `Shape::of` refuses booleans, and others have been copied as what they are [`Dtype::read_as`].
macro_rules! with_qkv_type {
    ($dtype:expr, $Type:ident => $code:expr) => {
        match $dtype {
            $crate::dtype::Dtype::Q15 => {
                type $Type = $crate::dtype::q15::Q15;
                $code
            }
            dtype => $crate::dtype::nibbles::with_nibbles!(dtype, $Type => $code, else {
                $crate::dtype::with_read_type!(dtype, $Type => $code)
            }),
        }
    };
}
pub(crate) use with_qkv_type;

/// Runs `$code` with `$Type` as the [`Stored`] type of any [`Dtype`].
macro_rules! with_stored {
    ($dtype:expr, $Type:ident => $code:expr) => {
        match $dtype {
            $crate::dtype::Dtype::Bool8 => {
                type $Type = $crate::dtype::bool8::Bool8;
                $code
            }
            $crate::dtype::Dtype::U8 => {
                type $Type = $crate::dtype::u8::U8;
                $code
            }
            $crate::dtype::Dtype::F8E4M3 => {
                type $Type = $crate::dtype::f8::E4M3;
                $code
            }
            $crate::dtype::Dtype::F8E5M2 => {
                type $Type = $crate::dtype::f8::E5M2;
                $code
            }
            dtype => $crate::dtype::with_qkv_type!(dtype, $Type => $code),
        }
    };
}
pub(crate) use with_stored;

impl Dtype {
    /// Elements of a block: rows are stored as whole blocks.
    pub const fn block(self) -> usize {
        with_stored!(self, T => T::BLOCK)
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        with_stored!(self, T => T::BLOCK_BYTES)
    }

    /// Byte strides between rows are multiples of this.
    pub const fn unit(self) -> usize {
        match self {
            // The size of a scale.
            _ if self.has_blocks() => 2,
            _ => self.block_bytes(),
        }
    }

    /// Bytes of a row of `dim` elements; `None` if the number overflows.
    pub const fn row_bytes(self, dim: usize) -> Option<usize> {
        dim.div_ceil(self.block()).checked_mul(self.block_bytes())
    }

    /// Whether elements are stored in blocks that carry their own scales.
    pub const fn has_blocks(self) -> bool {
        self.block() > 1
    }

    /// Whether they are [`nibbles`], which no loop over K or V reads.
    pub const fn is_nibbles(self) -> bool {
        nibbles::with_nibbles!(self, _T => true, else false)
    }

    /// Whether elements become f32 before a loop over K or V reads them, where the compute type
    /// does not unpack or repack them.
    pub(crate) const fn is_converted(self) -> bool {
        self.is_nibbles() || matches!(self, Dtype::Q15)
    }

    /// Whether blocks have a minimum beside their scale.
    pub(crate) const fn has_minimum(self) -> bool {
        nibbles::with_nibbles!(self, T => T::HAS_MINIMUM, else false)
    }

    /// What elements become where rows are copied before anything reads them; another type for
    /// those that no loop reads ([`u8`], [`f8`]).
    pub const fn read_as(self) -> Dtype {
        match self {
            Dtype::U8 => Dtype::I8,
            Dtype::F8E4M3 | Dtype::F8E5M2 => Dtype::F16,
            _ => self,
        }
    }

    /// Whether they are floating-point numbers of 8 bits.
    pub const fn is_f8(self) -> bool {
        matches!(self, Dtype::F8E4M3 | Dtype::F8E5M2)
    }

    /// Whether a tensor of this type may have scales ([`crate::view::Quant`]).
    pub const fn takes_scales(self) -> bool {
        self.takes_zeros() || self.is_f8() || matches!(self, Dtype::Q15)
    }

    /// Whether it may also have zero points.
    pub const fn takes_zeros(self) -> bool {
        matches!(self, Dtype::I8 | Dtype::U8)
    }

    /// Whether elements are floating-point numbers that need no scale: what masks may be, and what
    /// is quantised.
    pub const fn is_float(self) -> bool {
        match self {
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 => true,
            Dtype::I8 | Dtype::U8 | Dtype::Bool8 | Dtype::F8E4M3 | Dtype::F8E5M2 | Dtype::Q15 => false,
            Dtype::Q8_0 | Dtype::Q4_0 | Dtype::Q4_1 | Dtype::Q5_0 | Dtype::Q5_1 | Dtype::Iq4Nl => false,
        }
    }

    /// Whether outputs may be of this type: [`store`] writes it.
    pub const fn is_stored(self) -> bool {
        self.is_float() || matches!(self, Dtype::Q15)
    }
}

/// A storage type: converts elements of a row to f32. Every conversion is exact, but that the sum
/// of a product and a minimum is rounded.
pub(crate) trait Stored {
    /// Elements of a block.
    const BLOCK: usize;
    /// Bytes of a block.
    const BLOCK_BYTES: usize;

    /// Loads element `d`.
    ///
    /// # Safety
    /// Element `d` of the row is readable.
    unsafe fn element(row: *const u8, d: usize) -> f32;

    /// Loads a vector of elements, from element `d` on.
    ///
    /// # Safety
    /// The row has `d + LANES` readable elements. If blocks have several elements, the vector lies
    /// in one block.
    unsafe fn load<S: Isa>(s: S, row: *const u8, d: usize) -> S::F32;

    /// Partial load: the first `n` lanes, fewer than `LANES`, from element `d` on. The other lanes
    /// are 0, and memory behind the `n` elements is not read.
    ///
    /// # Safety
    /// The row has `d + n` readable elements.
    #[inline(always)]
    unsafe fn load_partial<S: Isa>(s: S, row: *const u8, d: usize, n: usize) -> S::F32
    where
        Self: Sized,
    {
        // SAFETY: `d + n` elements are readable (caller); what is padded has a vector of elements.
        // Rows of blocks are read one by one: no padding has the scale of a block.
        unsafe {
            if const { Self::BLOCK == 1 } {
                let padded = padded::<S, Self>(s, row, d, n, S::LANES);
                Self::load(s, padded.as_ptr(), 0)
            } else {
                s.load(load_elements::<Self>(row, d, n).as_ptr())
            }
        }
    }

    /// A vector of elements from element `d` on of a row of `dim`, of which there are some: those
    /// that the row has, and zeros behind them.
    ///
    /// # Safety
    /// The row has `dim` readable elements, more than `d`. If blocks have several elements, what is
    /// left of the vector lies in one block.
    #[inline(always)]
    unsafe fn load_rest<S: Isa>(s: S, row: *const u8, d: usize, dim: usize) -> S::F32
    where
        Self: Sized,
    {
        // SAFETY: the row has `dim` elements (caller).
        unsafe {
            if d + S::LANES <= dim { Self::load(s, row, d) } else { Self::load_partial(s, row, d, dim - d) }
        }
    }

    /// Writes a row of `dim` elements as f32.
    ///
    /// # Safety
    /// The row has `dim` readable elements, and there is room for as many f32 at `to`.
    #[inline(always)]
    unsafe fn convert_row<S: Isa>(s: S, row: *const u8, dim: usize, to: *mut f32)
    where
        Self: Sized,
    {
        for d in (0..dim).step_by(S::LANES) {
            let n = S::LANES.min(dim - d);
            // SAFETY: elements below `dim` of the row, and room for them (caller).
            unsafe {
                let x = Self::load_rest(s, row, d, dim);
                let to = to.wrapping_add(d);
                if n == S::LANES { s.store(to, x) } else { s.store_partial(to, n, x) }
            }
        }
    }
}

/// The `n` elements from `d` on, fewer than `width`, as they are stored, and zeros behind them up
/// to `width` elements. Blocks of `T` have one element.
///
/// # Safety
/// The row has `d + n` readable elements.
#[inline(always)]
pub(crate) unsafe fn padded<S: Isa, T: Stored>(
    s: S,
    row: *const u8,
    d: usize,
    n: usize,
    width: usize,
) -> Padded {
    let bytes = T::BLOCK_BYTES;
    // SAFETY: `d + n` elements of so many bytes are readable (caller).
    unsafe { s.load_padded(row, d * bytes, n * bytes, width * bytes) }
}

/// Loads the first `n` elements from `d` on, one by one; the rest of the array is 0.
///
/// Kept out of line: LLVM lowers such loops to calls of memcpy, and a call inside a kernel spills
/// its registers.
///
/// # Safety
/// The row has `d + n` readable elements.
#[inline(never)]
unsafe fn load_elements<T: Stored>(row: *const u8, d: usize, n: usize) -> [f32; MAX_LANES] {
    let mut lanes = [0.0; MAX_LANES];
    for (i, lane) in lanes.iter_mut().enumerate().take(n) {
        // SAFETY: `i < n`, and `d + n` elements are readable (caller).
        *lane = unsafe { T::element(row, d + i) };
    }
    lanes
}

/// Stores the first `n` lanes of `x` (at most `LANES`) as elements of `dtype`, from element `d` of
/// a row on, rounded to nearest even. `dtype` must be one that outputs may have
/// ([`Dtype::is_stored`]).
///
/// # Safety
/// `n` elements of the row are writable from element `d` on.
#[inline(always)]
pub(crate) unsafe fn store<S: Isa>(s: S, dtype: Dtype, row: *mut u8, d: usize, n: usize, x: S::F32) {
    let to = row.wrapping_add(d * dtype.block_bytes());
    // SAFETY: `n` elements are writable at `to` (caller); I7: the array has MAX_LANES elements.
    unsafe {
        match dtype {
            Dtype::F16 if n == S::LANES => s.store_f16(to.cast(), x),
            Dtype::Bf16 if n == S::LANES => s.store_bf16(to.cast(), x),
            Dtype::Q15 if n == S::LANES => q15::store(s, to.cast(), x),
            Dtype::F16 | Dtype::Bf16 | Dtype::Q15 => {
                let mut lanes = [0.0; MAX_LANES];
                s.store(lanes.as_mut_ptr(), x);
                store_elements(dtype, to.cast(), &lanes[..n]);
            }
            // Types that outputs cannot have are named, so that a new one is not taken for f32.
            Dtype::F32
            | Dtype::I8
            | Dtype::Bool8
            | Dtype::Q8_0
            | Dtype::Q4_0
            | Dtype::Q4_1
            | Dtype::Q5_0
            | Dtype::Q5_1
            | Dtype::Iq4Nl
            | Dtype::F8E4M3
            | Dtype::F8E5M2
            | Dtype::U8 => match n == S::LANES {
                true => s.store(to.cast(), x),
                false => s.store_partial(to.cast(), n, x),
            },
        }
    }
}

/// Stores values as binary16, bfloat16 or Q15, one by one. Kept out of line, like
/// [`load_elements`].
///
/// # Safety
/// As many 16-bit numbers as `values` has are writable at `to`.
#[inline(never)]
unsafe fn store_elements(dtype: Dtype, to: *mut u16, values: &[f32]) {
    for (i, &x) in values.iter().enumerate() {
        let bits = match dtype {
            Dtype::F16 => half::to_f16(x),
            Dtype::Q15 => q15::round(x).cast_unsigned(),
            _ => half::to_bf16(x),
        };
        // SAFETY: `i` is below the number of values, which are writable at `to` (caller).
        unsafe { to.wrapping_add(i).write_unaligned(bits) };
    }
}
