//! `fa_tensor`: where the rows of a tensor are, and of what type.

use std::ffi::c_void;

use crate::dtype::Dtype;
use crate::error::{Error, Refusal};

/// Storage types. Later versions add values.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum fa_dtype {
    /// IEEE 754 binary32.
    FA_DTYPE_F32 = 0,
    /// IEEE 754 binary16.
    FA_DTYPE_F16 = 1,
    /// bfloat16: the upper half of a binary32.
    FA_DTYPE_BF16 = 2,
    /// Signed 8-bit integer, standing for what fa_quant says, or for itself.
    FA_DTYPE_I8 = 3,
    /// Blocks of 32 elements in 34 bytes, as in ggml: a binary16 scale, then 32 signed 8-bit
    /// integers that it is multiplied with. Rows have whole blocks: dim is a multiple of 32.
    FA_DTYPE_Q8_0 = 4,
    /// Masks only: a byte, nonzero = attend.
    FA_DTYPE_BOOL8 = 5,
    /// Blocks of 32 elements in 18 bytes, as in ggml, and as all below: a binary16 scale d, then 16
    /// bytes. The low nibble n of byte i is element i, the high one element i + 16; an element is
    /// d * (n - 8).
    FA_DTYPE_Q4_0 = 6,
    /// In 20 bytes: d, a binary16 minimum m, then 16 bytes of nibbles; an element is d * n + m.
    FA_DTYPE_Q4_1 = 7,
    /// In 22 bytes: d, 32 bits (the first is the lowest of the first byte), then 16 bytes of
    /// nibbles. Bit i is the fifth, the highest, of the code n of element i, which is
    /// d * (n - 16).
    FA_DTYPE_Q5_0 = 8,
    /// In 24 bytes: d, m, 32 bits, 16 bytes of nibbles; an element is d * n + m.
    FA_DTYPE_Q5_1 = 9,
    /// In 18 bytes, as Q4_0; an element is d times the nth of -127, -104, -83, -65, -49, -35, -22,
    /// -10, 1, 13, 25, 38, 53, 69, 89, 113.
    FA_DTYPE_IQ4_NL = 10,
    /// Floating-point number of 8 bits: sign, 4 bits of exponent with bias 7, 3 of mantissa; the
    /// variant of machine learning ("E4M3FN"), without infinities, whose largest number is 448. All
    /// bits but the sign are 1 in a NaN. It may have scales (fa_quant).
    FA_DTYPE_F8_E4M3 = 11,
    /// Floating-point number of 8 bits: sign, 5 bits of exponent with bias 15, 2 of mantissa, with
    /// infinities and NaN as in IEEE 754: the upper half of a binary16. The largest number is
    /// 57344. It may have scales (fa_quant).
    FA_DTYPE_F8_E5M2 = 12,
    /// Unsigned 8-bit integer, standing for what fa_quant says, or for itself.
    FA_DTYPE_U8 = 13,
}

/// How elements of 8 bits become numbers: x = (stored - zero) * scale. Integers may have zeros,
/// floating-point numbers have none (zero is NULL, else FA_ERR_DTYPE).
///
/// Scale and zero of element d of token t of head h of batch entry (or page) b are at
/// b * stride[0] + h * stride[1] + (t / group_tokens) * stride[2] + (d / group_dims) * stride[3].
/// So one scale for the whole tensor is all strides 0; one for each head, token or channel has a
/// stride there; blocks of tokens and groups of channels have a group of more than 1. Of a paged
/// tensor t counts within the page; of packed ragged rows t is the row, and b is 0.
///
/// fa_quantize_i8, fa_quantize and, those of single tokens, fa_cache_append find and write scales
/// and zeros; every other function reads them.
///
/// What is fast, of integers, signed or unsigned: scales and zeros that leave the sums over
/// elements and keys, so that integers are multiplied as integers (see FA_PRECISE): those of K a
/// head, a token or a channel, and those of V a head or a channel (or group of channels) that all
/// tokens share. With V's a token f32 computes: of few query rows (decode) from the bytes as they
/// are read, about twice as fast as from f32 in memory. All else becomes f32 a block at a time, at
/// the speed of f32 within a tenth: scales that change from token to token and within a row, and
/// V's a token with many query rows. (Half to three quarters of that speed: a token and groups of
/// 3, 5, 6, 7 or 9 to 15 channels, or of 1, 2, 4 or 8 with a stride[3] other than 1.)
/// Floating-point numbers of 8 bits become f32, whatever shares a scale.
///
/// A scale (or zero) shared by a whole tensor must be finite: FA_ERR_QUANT_SCALE. Others are data:
/// one that is NaN or infinite makes its elements so.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fa_quant {
    /// NULL = 1. Needs no alignment.
    pub scale: *const f32,
    /// NULL = 0. Needs no alignment.
    pub zero: *const f32,
    /// Values from one batch entry (or page), head, group of tokens, group of channels to the next;
    /// not negative; 0 = the same for all.
    pub stride: [i64; 4],
    /// Tokens that share a value; at least 1, or anything where stride[2] is 0.
    pub group_tokens: i32,
    /// Channels (elements of a row) that share a value; at least 1, or anything where stride[3] is
    /// 0.
    pub group_dims: i32,
}

/// A tensor [batch][head][token][dim] in the caller's memory. Everything has a stride, so dense,
/// interleaved, packed, broadcast and, for k and v, transposed layouts are all this.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fa_tensor {
    /// The first element of row [0][0][0]. Needs no alignment. NULL is fine if there is no element,
    /// and means "none" where a tensor is optional.
    pub data: *mut c_void,
    /// BYTES from one batch entry to the next, from one head to the next, from one token to the
    /// next: not negative, a multiple of the element size (of 2 for types in blocks). 0 repeats the
    /// same data (inputs only); the stride of an axis of extent 1 does not matter. (Strides of an
    /// input that count elements by mistake are legal and give nonsense.)
    pub stride: [i64; 3],
    /// A value of fa_dtype.
    pub dtype: i32,
    /// BYTES from one element of a row to the next; 0 = the element size: they are contiguous. For
    /// k and v of fa_attention also another multiple of the element size: a cache
    /// [head][dim][token] of f16 has stride[2] = 2 and stride_dim = 2 * tokens. Such rows are
    /// gathered in scratch memory, a block of keys at a time; results have the same bits. All other
    /// tensors, and all of types in blocks, are contiguous: FA_ERR_STRIDE.
    pub stride_dim: i32,
    /// For FA_DTYPE_I8, _U8, _F8_E4M3 and _F8_E5M2: how the elements become numbers, NULL = they
    /// are the numbers. Else NULL.
    pub quant: *const fa_quant,
}

impl fa_tensor {
    /// No tensor.
    pub const NONE: fa_tensor = fa_tensor {
        data: std::ptr::null_mut(),
        stride: [0; 3],
        dtype: 0,
        stride_dim: 0,
        quant: std::ptr::null(),
    };
}

/// The storage type of an integer from C.
pub(super) fn dtype(what: &'static str, value: i32) -> Result<Dtype, Refusal> {
    let known = [
        (fa_dtype::FA_DTYPE_F32, Dtype::F32),
        (fa_dtype::FA_DTYPE_F16, Dtype::F16),
        (fa_dtype::FA_DTYPE_BF16, Dtype::Bf16),
        (fa_dtype::FA_DTYPE_I8, Dtype::I8),
        (fa_dtype::FA_DTYPE_Q8_0, Dtype::Q8_0),
        (fa_dtype::FA_DTYPE_BOOL8, Dtype::Bool8),
        (fa_dtype::FA_DTYPE_Q4_0, Dtype::Q4_0),
        (fa_dtype::FA_DTYPE_Q4_1, Dtype::Q4_1),
        (fa_dtype::FA_DTYPE_Q5_0, Dtype::Q5_0),
        (fa_dtype::FA_DTYPE_Q5_1, Dtype::Q5_1),
        (fa_dtype::FA_DTYPE_IQ4_NL, Dtype::Iq4Nl),
        (fa_dtype::FA_DTYPE_F8_E4M3, Dtype::F8E4M3),
        (fa_dtype::FA_DTYPE_F8_E5M2, Dtype::F8E5M2),
        (fa_dtype::FA_DTYPE_U8, Dtype::U8),
    ];
    let found = known.into_iter().find(|&(dtype, _)| dtype as i32 == value);
    found
        .map(|(_, dtype)| dtype)
        .ok_or_else(|| Refusal::of(what, i64::from(value)).but(Error::Dtype, "not a value of fa_dtype"))
}
