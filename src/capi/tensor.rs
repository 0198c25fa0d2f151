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
    /// IEEE 754 binary16. No function of this version takes it.
    FA_DTYPE_F16 = 1,
    /// bfloat16: the upper half of a binary32. No function of this version takes it.
    FA_DTYPE_BF16 = 2,
    /// Signed 8-bit integer with a scale.
    FA_DTYPE_I8 = 3,
    /// Blocks of 32 signed 8-bit integers behind a binary16 scale, 34 bytes a block. No function of
    /// this version takes it.
    FA_DTYPE_Q8_0 = 4,
    /// Masks only: a byte, nonzero = attend.
    FA_DTYPE_BOOL8 = 5,
}

/// How 8-bit integers become numbers: x = (stored - zero) * scale. No function of this version reads it.
///
/// The scale of an element is scale[b * stride[0] + h * stride[1] + (t / group_tokens) * stride[2] +
/// (d / group_dims) * stride[3]] for batch entry (or page) b, head h, token t and element d.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fa_quant {
    /// NULL = 1.
    pub scale: *const f32,
    /// NULL = 0.
    pub zero: *const f32,
    /// In elements; 0 = the same for all.
    pub stride: [i64; 4],
    /// Tokens that share a scale.
    pub group_tokens: i32,
    /// Elements of a row that share a scale.
    pub group_dims: i32,
}

/// A tensor [batch][head][token][dim] in the caller's memory. Elements of a row (dim) are contiguous;
/// everything else has a stride, so dense, interleaved, packed and broadcast layouts are all this.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fa_tensor {
    /// The first element of row [0][0][0]. Needs no alignment. NULL is fine if there is no element, and
    /// means "none" where a tensor is optional.
    pub data: *mut c_void,
    /// BYTES from one batch entry to the next, from one head to the next, from one token to the next:
    /// not negative, a multiple of the element size. 0 repeats the same data (inputs only); the
    /// stride of an axis of extent 1 does not matter. (Strides of an input that count elements by
    /// mistake are legal and give nonsense.)
    pub stride: [i64; 3],
    /// A value of fa_dtype.
    pub dtype: i32,
    /// 0.
    pub reserved: i32,
    /// Only for FA_DTYPE_I8, else NULL.
    pub quant: *const fa_quant,
}

impl fa_tensor {
    /// No tensor.
    pub const NONE: fa_tensor = fa_tensor {
        data: std::ptr::null_mut(),
        stride: [0; 3],
        dtype: 0,
        reserved: 0,
        quant: std::ptr::null(),
    };
}

/// The storage type of an integer from C; `Unsupported` if it is one that nothing reads yet.
pub(super) fn dtype(what: &'static str, value: i32) -> Result<Dtype, Refusal> {
    let later = [fa_dtype::FA_DTYPE_F16, fa_dtype::FA_DTYPE_BF16, fa_dtype::FA_DTYPE_Q8_0];
    let refusal = Refusal::of(what, i64::from(value));
    match value {
        _ if value == fa_dtype::FA_DTYPE_F32 as i32 => Ok(Dtype::F32),
        _ if value == fa_dtype::FA_DTYPE_I8 as i32 => Ok(Dtype::I8),
        _ if later.iter().any(|&dtype| value == dtype as i32) => {
            Err(refusal.but(Error::Unsupported, "no kernel of this version reads this fa_dtype"))
        }
        _ => Err(refusal.but(Error::Dtype, "not a value of fa_dtype for such a tensor")),
    }
}
