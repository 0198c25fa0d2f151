//! Numbers of one floating-point type as those of another, or in blocks that carry their scales, or
//! as elements whose scales are given.

use std::slice;

use crate::dtype::{Dtype, Stored, bf16::Bf16, encode, f8, f16::F16, f32::F32, q15, store};
use crate::error::Error;
use crate::simd::{Body, Isa, MAX_LANES};
use crate::view::{Layout, Quant, View, ViewMut, overlap};

/// Elements of a block of every type that has blocks.
const BLOCK: usize = 32;

/// A tensor and where its numbers go, in another type; consistent by construction.
#[derive(Debug)]
pub struct Round<'a> {
    src: View<'a>,
    dst: ViewMut<'a>,
    /// Scales and zeros of elements, and the row of their tensor that `dst` begins with.
    quant: Option<(Quant<'a>, [usize; 3])>,
}

impl<'a> Round<'a> {
    /// Checks the tensors. `dst` is of a floating-point type, Q15 or in blocks.
    pub fn new(src: View<'a>, dst: ViewMut<'a>) -> Result<Round<'a>, Error> {
        let to = dst.layout().dtype;
        if !to.is_stored() && !to.is_f8() && !to.has_blocks() {
            return Err(Error::Dtype);
        }
        Round { src, dst, quant: None }.checked()
    }

    /// Of elements that become numbers by `quant`; row 0 of `dst` is row `first` of the
    /// tensor that it belongs to.
    pub(crate) fn by_scales(
        src: View<'a>,
        dst: ViewMut<'a>,
        quant: Quant<'a>,
        first: [usize; 3],
    ) -> Result<Round<'a>, Error> {
        let dtype = dst.layout().dtype;
        if !dtype.takes_scales() || (quant.zero.is_some() && !dtype.takes_zeros()) {
            return Err(Error::Dtype);
        }
        Round { src, dst, quant: Some((quant, first)) }.checked()
    }

    fn checked(self) -> Result<Round<'a>, Error> {
        let (from, to) = (self.src.layout(), self.dst.layout());
        if !from.dtype.is_float() {
            return Err(Error::Dtype);
        }
        if (from.extent, from.dim) != (to.extent, to.dim) {
            return Err(Error::Shape);
        }
        if from.is_strided() {
            return Err(Error::Stride);
        }
        if overlap(&self.src.addresses(), &self.dst.addresses()) {
            return Err(Error::Overlap);
        }
        Ok(self)
    }

    /// Writes all rows; elements of `src` are stored as `T`.
    ///
    /// # Safety
    /// `T` is the storage type of `src`.
    #[inline(always)]
    unsafe fn rows<S: Isa, T: Stored>(&self, s: S) {
        let Layout { dtype, extent: [batch, heads, tokens], dim, .. } = *self.dst.layout();
        for b in 0..batch {
            for h in 0..heads {
                for t in 0..tokens {
                    let (from, to) = (self.src.row(b, h, t), self.dst.row(b, h, t));
                    // SAFETY: I2: rows of the views, of `dim` elements: whole blocks, where there
                    // are blocks. I3: `self` is the only one that writes `dst`. I9: `T` is the
                    // type of `src`.
                    unsafe {
                        match &self.quant {
                            Some((quant, [b0, h0, t0])) => {
                                scaled::<T>(
                                    from,
                                    dim,
                                    (quant, quant.at([b0 + b, h0 + h, t0 + t])),
                                    dtype,
                                    to,
                                );
                            }
                            None if dtype.has_blocks() => blocks::<S, T>(s, from, dim, dtype, to),
                            None if dtype.is_f8() => {
                                for d in (0..dim).step_by(S::LANES) {
                                    let mut values = [0.0; MAX_LANES];
                                    s.store(values.as_mut_ptr(), T::load_rest(s, from, d, dim));
                                    write_f8(dtype, &values, S::LANES.min(dim - d), to.wrapping_add(d));
                                }
                            }
                            None => {
                                for d in (0..dim).step_by(S::LANES) {
                                    let x = T::load_rest(s, from, d, dim);
                                    store(s, dtype, to, d, S::LANES.min(dim - d), x);
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

impl Body for &Round<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        // SAFETY: I4: `s` was detected. I9: `checked` takes no other types than these.
        unsafe {
            match self.src.layout().dtype {
                Dtype::F16 => self.rows::<S, F16>(s),
                Dtype::Bf16 => self.rows::<S, Bf16>(s),
                // Types that `checked` refuses are named, so that a new one is not taken for f32.
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
                | Dtype::U8
                | Dtype::Q15 => self.rows::<S, F32>(s),
            }
        }
    }
}

/// Writes a row in blocks.
///
/// # Safety
/// The row has `dim` readable elements, a multiple of [`BLOCK`], and there is room for their blocks
/// at `to`.
#[inline(always)]
unsafe fn blocks<S: Isa, T: Stored>(s: S, row: *const u8, dim: usize, dtype: Dtype, to: *mut u8) {
    let size = dtype.block_bytes();
    for (i, d) in (0..dim).step_by(BLOCK).enumerate() {
        let mut values = [0.0f32; BLOCK];
        // SAFETY: I2, I7: elements `d` to `d + BLOCK` of the row; vectors divide a block. I3: block
        // `i` is the caller's alone.
        unsafe {
            for lane in (0..BLOCK).step_by(S::LANES) {
                s.store(values.as_mut_ptr().wrapping_add(lane), T::load(s, row, d + lane));
            }
            encode::block(dtype, &values, slice::from_raw_parts_mut(to.wrapping_add(i * size), size));
        }
    }
}

/// Writes the first `n` numbers of 8 bits. Kept out of line, like [`f8::round`].
///
/// # Safety
/// There is room for `n` bytes, at most as many as there are values, at `to`.
#[inline(never)]
unsafe fn write_f8(dtype: Dtype, values: &[f32; MAX_LANES], n: usize, to: *mut u8) {
    for (i, byte) in f8::round(dtype, values).into_iter().enumerate().take(n) {
        // SAFETY: I2: one of `n` bytes (caller).
        unsafe { to.wrapping_add(i).write(byte) };
    }
}

/// Writes a row of elements, whose first scale is at a place of `quant`. One copy serves all
/// instruction sets.
///
/// # Safety
/// The row has `dim` readable elements, and there is room for as many at `to`.
#[inline(never)]
unsafe fn scaled<T: Stored>(
    row: *const u8,
    dim: usize,
    (quant, at): (&Quant, usize),
    dtype: Dtype,
    to: *mut u8,
) {
    for first in (0..dim).step_by(MAX_LANES) {
        let n = MAX_LANES.min(dim - first);
        let mut values = [0.0; MAX_LANES];
        for (i, value) in values.iter_mut().enumerate().take(n) {
            let [scale, zero] = quant.of(at, first + i);
            // SAFETY: I2: an element of the row (caller).
            let x = unsafe { T::element(row, first + i) } / scale;
            // Without zeros a 0 keeps its sign.
            *value = if dtype.takes_zeros() { (x + zero).round_ties_even() } else { x };
        }
        // `as` saturates, and makes 0 of NaN.
        let bytes = match dtype {
            Dtype::Q15 => {
                for (i, x) in values.into_iter().enumerate().take(n) {
                    let to = to.cast::<i16>().wrapping_add(first + i);
                    // SAFETY: I2: element `first + i` of the row that is written (caller).
                    unsafe { to.write_unaligned(q15::round(x)) };
                }
                continue;
            }
            Dtype::I8 => values.map(|x| (x as i8).cast_unsigned()),
            Dtype::U8 => values.map(|x| x as u8),
            _ => f8::round(dtype, &values),
        };
        for (i, byte) in bytes.into_iter().enumerate().take(n) {
            // SAFETY: I2: element `first + i` of the row that is written (caller).
            unsafe { to.wrapping_add(first + i).write(byte) };
        }
    }
}
