//! Status codes and their words.

use std::ffi::{CStr, c_char};

use crate::error::Error;

/// What a function returns. Values are pinned: none is ever changed or reused, later versions
/// only add some. On every value but FA_OK no output has been written, except where a value says
/// otherwise.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum fa_status {
    /// Done.
    FA_OK = 0,
    /// A pointer is NULL where data is needed.
    FA_ERR_NULL = 1,
    /// head_dim or num_heads is 0.
    FA_ERR_ZERO_EXTENT = 2,
    /// The sizes describe more bytes than an address space holds.
    FA_ERR_OVERFLOW = 3,
    /// softmax_scale is NaN, infinite, or beyond FLT_MAX / log2(e).
    FA_ERR_SOFTMAX_SCALE = 4,
    /// A quantisation scale is NaN or infinite, or the product of the scales of the query, the
    /// keys and the softmax is beyond FLT_MAX / log2(e).
    FA_ERR_QUANT_SCALE = 5,
    /// A reserved field is not 0.
    FA_ERR_RESERVED = 6,
    /// The output shares memory with an input.
    FA_ERR_OVERLAP = 7,
    /// Not a value of fa_dtype, or not a type that the function takes.
    FA_ERR_DTYPE = 8,
    /// fa_limit_isa or the environment variable FA_MAX_ISA names an instruction set that this
    /// build does not know.
    FA_ERR_ISA = 9,
    /// Scratch memory could not be allocated.
    FA_ERR_MEMORY = 10,
    /// The library broke one of its own rules; please report it. Outputs may be partly written.
    FA_ERR_INTERNAL = 11,
    /// Tensors disagree about a size that they share; no function of this version can say so.
    FA_ERR_SHAPE = 12,
    /// A stride is unusable: rows of an output would overlap; no function of this version says so.
    FA_ERR_STRIDE = 13,
}

impl From<Error> for fa_status {
    fn from(error: Error) -> fa_status {
        match error {
            Error::Null => fa_status::FA_ERR_NULL,
            Error::ZeroExtent => fa_status::FA_ERR_ZERO_EXTENT,
            Error::Overflow => fa_status::FA_ERR_OVERFLOW,
            Error::SoftmaxScale => fa_status::FA_ERR_SOFTMAX_SCALE,
            Error::QuantScale => fa_status::FA_ERR_QUANT_SCALE,
            Error::Reserved => fa_status::FA_ERR_RESERVED,
            Error::Overlap => fa_status::FA_ERR_OVERLAP,
            Error::Dtype => fa_status::FA_ERR_DTYPE,
            Error::Isa => fa_status::FA_ERR_ISA,
            Error::Memory => fa_status::FA_ERR_MEMORY,
            Error::Internal => fa_status::FA_ERR_INTERNAL,
            Error::Shape => fa_status::FA_ERR_SHAPE,
            Error::Stride => fa_status::FA_ERR_STRIDE,
        }
    }
}

/// One sentence for each code; unknown codes have none.
const WORDS: [&CStr; 14] = [
    c"ok",
    c"a pointer is NULL where data is needed",
    c"head_dim or num_heads is 0",
    c"the sizes describe more bytes than an address space holds",
    c"softmax_scale is NaN, infinite or too large",
    c"a quantisation scale is NaN, infinite or too large",
    c"a reserved field is not 0",
    c"the output shares memory with an input",
    c"unknown or unsupported data type",
    c"unknown instruction set (fa_limit_isa or FA_MAX_ISA)",
    c"scratch memory could not be allocated",
    c"internal error in flash_attention; please report it",
    c"tensors disagree about a size that they share",
    c"unusable stride: rows of an output would overlap",
];

/// One sentence in English for a status code.
///
/// @param status  any integer; unknown ones get a sentence that says so
/// @return a static string, never NULL; not to be freed
///
/// Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn fa_status_string(status: i32) -> *const c_char {
    let known = usize::try_from(status).ok().and_then(|i| WORDS.get(i));
    known.unwrap_or(&c"unknown status").as_ptr()
}
