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
    /// Signed 8-bit integer. fa_quant says what number it stands for; without fa_quant it is the
    /// number.
    FA_DTYPE_I8 = 3,
    /// Blocks of 32 elements in 34 bytes, as in ggml: a binary16 scale, then 32 signed 8-bit
    /// integers, which are multiplied by it. A row has whole blocks: dim is a multiple of 32.
    FA_DTYPE_Q8_0 = 4,
    /// Masks only: one byte for each key; nonzero = visible.
    FA_DTYPE_BOOL8 = 5,
    /// Blocks of 32 elements in 18 bytes: a binary16 scale d, then 16 bytes. The low nibble n of
    /// byte i is element i, the high nibble is element i + 16. An element is d * (n - 8). This and
    /// the next four types are ggml's.
    FA_DTYPE_Q4_0 = 6,
    /// Blocks of 32 elements in 20 bytes: d, a binary16 minimum m, then 16 bytes of nibbles as in
    /// Q4_0. An element is d * n + m.
    FA_DTYPE_Q4_1 = 7,
    /// Blocks of 32 elements in 22 bytes: d, 32 bits (the first is the lowest bit of the first
    /// byte), then 16 bytes of nibbles as in Q4_0. Bit i is the fifth and highest bit of the code n
    /// of element i. An element is d * (n - 16).
    FA_DTYPE_Q5_0 = 8,
    /// Blocks of 32 elements in 24 bytes: d, m, 32 bits, 16 bytes of nibbles as in Q5_0. An element
    /// is d * n + m.
    FA_DTYPE_Q5_1 = 9,
    /// Blocks of 32 elements in 18 bytes, as Q4_0. An element is d times the nth of -127, -104,
    /// -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113, from n = 0.
    FA_DTYPE_IQ4_NL = 10,
    /// 8-bit floating point: sign, 4 bits of exponent with bias 7, 3 bits of mantissa. This is the
    /// variant of machine learning ("E4M3FN"): it has no infinities, its largest number is 448, and
    /// in a NaN all bits but the sign are 1. It may have scales (fa_quant).
    FA_DTYPE_F8_E4M3 = 11,
    /// 8-bit floating point: sign, 5 bits of exponent with bias 15, 2 bits of mantissa, with
    /// infinities and NaN as in IEEE 754: the upper half of a binary16. It may have scales
    /// (fa_quant). The largest number is 57344.
    FA_DTYPE_F8_E5M2 = 12,
    /// Unsigned 8-bit integer. fa_quant says what number it stands for; without fa_quant it is the
    /// number.
    FA_DTYPE_U8 = 13,
    /// Fractions ("Q15"): a signed 16-bit integer that stands for itself divided by 32,768, so -1
    /// to 32767/32768. It may have scales (fa_quant). Outputs may have it, too: rounded to nearest
    /// even, and what is too large becomes 32767 or -32768, NaN becomes 0.
    FA_DTYPE_Q15 = 14,
}

/// How elements become numbers: x = (stored - zero) * scale, where stored of FA_DTYPE_Q15 is the
/// fraction. 8-bit integers may have zeros. Other types have none: zero must be NULL, else
/// FA_ERR_DTYPE. Outputs of FA_DTYPE_Q15 may have scales: stored = x / scale, rounded.
///
/// The scale and zero of element d of token t of head h of batch entry (or page) b are at index b *
/// stride[0] + h * stride[1] + (t / group_tokens) * stride[2] + (d / group_dims) * stride[3]. So
/// with all strides 0 the whole tensor has one scale. For one scale per head, token or channel, set
/// that stride. For blocks of tokens or groups of channels, set a group of more than 1. In a paged
/// tensor t counts within the page. In packed ragged rows t is the row, and b is 0.
///
/// fa_quantize_i8 and fa_quantize find and write scales and zeros. So does fa_cache_append where
/// each token has its own. Every other function reads them, also those of outputs.
///
/// Which scales and zeros are fast for integers, signed or unsigned:
///
/// - K: per head, token or channel. V: per head or channel (or group of channels), the same for all
///   tokens. These can be moved out of the sums over elements and keys, so integers are multiplied
///   as integers: see FA_PRECISE.
/// - V per token, few query rows (decode): f32 computes from the bytes as they are read, about
///   twice as fast as from f32 in memory.
/// - All others: a block of keys at a time becomes f32, at the speed of f32 within a tenth. That is
///   V per token with many query rows, and scales that change both from token to token and within a
///   row. Exception: half to three quarters of that speed for scales per token with groups of 3, 5,
///   6, 7 or 9 to 15 channels, or with groups of 1, 2, 4 or 8 channels and a stride[3] other than
///   1.
///
/// 8-bit floating-point numbers become f16, a few keys at a time, and f32 computes. Q15 becomes f32
/// with its scales, whatever shares these, and f32 computes.
///
/// A scale (or zero) shared by a whole tensor must be finite: FA_ERR_QUANT_SCALE. Other scales are
/// data: one that is NaN or infinite makes its elements NaN or infinite.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fa_quant {
    /// NULL = 1. Needs no alignment.
    pub scale: *const f32,
    /// NULL = 0. Needs no alignment.
    pub zero: *const f32,
    /// VALUES (not bytes) from one batch entry (or page), head, group of tokens, group of channels
    /// to the next; not negative; 0 = the same for all.
    pub stride: [i64; 4],
    /// Tokens that share a value; at least 1. Any number if stride[2] is 0.
    pub group_tokens: i32,
    /// Channels (elements of a row) that share a value; at least 1. Any number if stride[3] is 0.
    pub group_dims: i32,
}

/// A tensor [batch][head][token][dim] in the caller's memory. Every axis has a stride, so a tensor
/// can be dense, interleaved, packed, broadcast and, for k and v, transposed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fa_tensor {
    /// The first element of row [0][0][0]. Needs no alignment. May be NULL if there is no element.
    /// NULL means "none" where a tensor is optional.
    pub data: *mut c_void,
    /// BYTES from one batch entry to the next, from one head to the next, from one token to the
    /// next. Not negative; a multiple of the element size (of 2 for types in blocks). 0 repeats the
    /// same data (inputs only). The stride of an axis of extent 1 does not matter. Beware of
    /// strides that count elements: for an input they are legal and give wrong results.
    pub stride: [i64; 3],
    /// A value of fa_dtype.
    pub dtype: i32,
    /// BYTES from one element of a row to the next; 0 = the element size: elements are contiguous.
    /// For k and v of fa_attention another multiple of the element size is allowed: a cache
    /// [head][dim][token] of f16 has stride[2] = 2 and stride_dim = 2 * tokens. Such rows are
    /// gathered in scratch memory, a block of keys at a time, and results have the same bits. All
    /// other tensors, and all types in blocks, must be contiguous: FA_ERR_STRIDE.
    pub stride_dim: i32,
    /// For FA_DTYPE_I8, _U8, _Q15, _F8_E4M3 and _F8_E5M2: how the elements become numbers; NULL =
    /// they are the numbers. For other types NULL.
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
        (fa_dtype::FA_DTYPE_Q15, Dtype::Q15),
    ];
    let found = known.into_iter().find(|&(dtype, _)| dtype as i32 == value);
    found
        .map(|(_, dtype)| dtype)
        .ok_or_else(|| Refusal::of(what, i64::from(value)).but(Error::Dtype, "not a value of fa_dtype"))
}
