//! Storage types: how bytes in memory become numbers.
//!
//! A new type is one file in this folder, which implements `Stored`, and one row in each of the small
//! tables here. What is computed with the numbers is the affair of [`crate::compute`].

pub(crate) mod bf16;
pub(crate) mod block_scaled;
pub(crate) mod bool8;
pub(crate) mod f16;
pub(crate) mod f32;
pub(crate) mod i8;
pub(crate) mod q8_0;

use crate::simd::{Isa, MAX_LANES, half};

/// How the elements of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// Signed 8-bit integer.
    I8,
    /// Blocks of 32 signed 8-bit integers behind their binary16 scale.
    Q8_0,
    /// A byte that is 0 or not: masks.
    Bool8,
}

impl std::fmt::Display for Dtype {
    /// As in the header, without its prefix.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
            Dtype::I8 => "I8",
            Dtype::Q8_0 => "Q8_0",
            Dtype::Bool8 => "BOOL8",
        })
    }
}

/// Runs `$code` with `$Type` standing for the [`Stored`] of a type that Q, K and V may have. `Shape::of` refuses
/// booleans there: no kernel is compiled for them.
macro_rules! with_qkv_type {
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
            // Refused before: any type will do.
            $crate::dtype::Dtype::I8 | $crate::dtype::Dtype::Bool8 => {
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
pub(crate) use with_qkv_type;

/// Runs `$code` with `$Type` standing for the [`Stored`] of any [`Dtype`].
macro_rules! with_stored {
    ($dtype:expr, $Type:ident => $code:expr) => {
        match $dtype {
            $crate::dtype::Dtype::Bool8 => {
                type $Type = $crate::dtype::bool8::Bool8;
                $code
            }
            dtype => $crate::dtype::with_qkv_type!(dtype, $Type => $code),
        }
    };
}
pub(crate) use with_stored;

impl Dtype {
    /// Elements that are stored together: rows have whole blocks of them.
    pub const fn block(self) -> usize {
        with_stored!(self, T => T::BLOCK)
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        with_stored!(self, T => T::BLOCK_BYTES)
    }

    /// What distances between rows are multiples of, in bytes.
    pub const fn unit(self) -> usize {
        match self {
            // The scale of each block.
            Dtype::Q8_0 => 2,
            _ => self.block_bytes(),
        }
    }

    /// Bytes of a row of `dim` elements; `None` if no address space has as many.
    pub const fn row_bytes(self, dim: usize) -> Option<usize> {
        dim.div_ceil(self.block()).checked_mul(self.block_bytes())
    }

    /// Whether elements are floating-point numbers of their own, without a scale.
    pub const fn is_float(self) -> bool {
        matches!(self, Dtype::F32 | Dtype::F16 | Dtype::Bf16)
    }
}

/// A storage type: how elements of a row become f32, which all of them do exactly.
pub(crate) trait Stored {
    /// Elements of a block.
    const BLOCK: usize;
    /// Bytes of a block.
    const BLOCK_BYTES: usize;

    /// Element `d`.
    ///
    /// # Safety
    /// The row has an element `d`.
    unsafe fn one(row: *const u8, d: usize) -> f32;

    /// A vector of elements, from element `d` on.
    ///
    /// # Safety
    /// The row has `d + LANES` elements; they are of one block, if blocks have more than one.
    unsafe fn load<S: Isa>(s: S, row: *const u8, d: usize) -> S::F32;

    /// The first `n` lanes of a vector of elements, fewer than `LANES`, from element `d` on; the others are 0.
    ///
    /// # Safety
    /// The row has `d + n` elements.
    #[inline(always)]
    unsafe fn load_first<S: Isa>(s: S, row: *const u8, d: usize, n: usize) -> S::F32
    where
        Self: Sized,
    {
        // SAFETY: this method's contract; an array is as long as any vector.
        unsafe { s.load(few::<Self>(row, d, n).as_ptr()) }
    }
}

/// Out of line: compilers make calls of such loops, which do not belong into kernels.
///
/// # Safety
/// As [`Stored::load_first`].
#[inline(never)]
unsafe fn few<T: Stored>(row: *const u8, d: usize, n: usize) -> [f32; MAX_LANES] {
    let mut lanes = [0.0; MAX_LANES];
    for (i, lane) in lanes.iter_mut().enumerate().take(n) {
        // SAFETY: i < n.
        *lane = unsafe { T::one(row, d + i) };
    }
    lanes
}

/// Writes the first `n` lanes of `x` (at most `LANES`) as elements of `dtype`, rounded to nearest even, from
/// element `d` of a row on. Only [`Dtype::is_float`] types are written.
///
/// # Safety
/// `row` has room for `d + n` elements.
#[inline(always)]
pub(crate) unsafe fn store<S: Isa>(s: S, dtype: Dtype, row: *mut u8, d: usize, n: usize, x: S::F32) {
    let to = row.wrapping_add(d * dtype.block_bytes());
    // SAFETY: room for `n` elements from there on; an array is as long as any vector.
    unsafe {
        match dtype {
            Dtype::F16 if n == S::LANES => s.store_f16(to.cast(), x),
            Dtype::Bf16 if n == S::LANES => s.store_bf16(to.cast(), x),
            Dtype::F16 | Dtype::Bf16 => {
                let mut lanes = [0.0; MAX_LANES];
                s.store(lanes.as_mut_ptr(), x);
                store_few(dtype, to.cast(), &lanes[..n]);
            }
            _ if n == S::LANES => s.store(to.cast(), x),
            _ => s.store_first(to.cast(), n, x),
        }
    }
}

/// # Safety
/// `to` has room for as many 16-bit numbers.
#[inline(never)]
unsafe fn store_few(dtype: Dtype, to: *mut u16, values: &[f32]) {
    for (i, &x) in values.iter().enumerate() {
        let bits = if dtype == Dtype::F16 { half::to_f16(x) } else { half::to_bf16(x) };
        // SAFETY: one of them.
        unsafe { to.wrapping_add(i).write_unaligned(bits) };
    }
}
