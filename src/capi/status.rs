//! Status codes and their words.

use std::ffi::{CStr, c_char};

use crate::error::{Error, with_reasons};

/// What a function returns. The values never change and are never reused; later versions only add
/// some. On every value but FA_OK no output has been written, unless the value says otherwise.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum fa_status {
    /// Done.
    FA_OK = 0,
    /// A pointer is NULL, but data is needed.
    FA_ERR_NULL = 1,
    /// A size that must be at least 1 is 0: head_dim, num_heads, dim_v, page_size and the like.
    FA_ERR_ZERO_EXTENT = 2,
    /// The sizes describe more bytes than an address space holds. fa_forward_q15, fa_mha_q15: more
    /// elements of a row, or more keys, than 64 bits hold sums of.
    FA_ERR_OVERFLOW = 3,
    /// softmax_scale is NaN, infinite, or beyond FLT_MAX / log2(e); that of an fa_q15_config is
    /// beyond what it says, or scale_shift is.
    FA_ERR_SOFTMAX_SCALE = 4,
    /// A quantisation scale (or zero) that a whole tensor shares is NaN or infinite.
    FA_ERR_QUANT_SCALE = 5,
    /// A reserved field is not 0.
    FA_ERR_RESERVED = 6,
    /// An output shares memory with an input or another output.
    FA_ERR_OVERLAP = 7,
    /// Not a value of fa_dtype, or not a type that the function takes.
    FA_ERR_DTYPE = 8,
    /// fa_limit_isa or the environment variable FA_MAX_ISA names an instruction set that this
    /// build does not know. fa_enable_amx: this process cannot have it.
    FA_ERR_ISA = 9,
    /// Scratch memory could not be allocated.
    FA_ERR_MEMORY = 10,
    /// The library broke one of its own rules: please report it. Outputs may be partly written.
    FA_ERR_INTERNAL = 11,
    /// Tensors disagree about a size that they share, a size is negative, or heads_q is not a
    /// multiple of heads_kv.
    FA_ERR_SHAPE = 12,
    /// A stride is unusable: negative, not a multiple of the element size, or so small that rows of
    /// an output would overlap. fa_merge: an address is not a multiple of 4; fa_forward_q15,
    /// fa_mha_q15: of 2.
    FA_ERR_STRIDE = 13,
    /// A list is wrong: cu_len_q, cu_len_kv, block_table_start or span_starts decreases or is
    /// negative; kv_lens or kv_starts is negative; a sequence is longer than len_q, len_kv or its
    /// pages, or begins behind its last key; spans are negative or out of order; weight_heads or
    /// weight_rows are out of range or out of order. fa_cache_append: the position of a new token
    /// is not among the keys in use.
    FA_ERR_LENGTHS = 14,
    /// struct_size is not the size of any version up to this one, or a field that this version does
    /// not know is not 0.
    FA_ERR_STRUCT_SIZE = 15,
    /// Reserved for later versions: no function of this version returns it.
    FA_ERR_UNSUPPORTED = 16,
    /// The workspace is NULL, or smaller than fa_attention_workspace says.
    FA_ERR_WORKSPACE = 17,
    /// 0 <= part < n_parts does not hold, or n_parts (or n_threads) is out of range.
    FA_ERR_PART = 18,
    /// A window is negative, and not FA_NO_LIMIT.
    FA_ERR_WINDOW = 19,
    /// softcap is negative, infinite or NaN.
    FA_ERR_SOFTCAP = 20,
    /// A page in use is not below num_pages, or is negative.
    FA_ERR_PAGE = 21,
}

// The table of reasons is in error.rs. The enumeration above is written out for cbindgen; what is
// made here does not compile where the two disagree.
macro_rules! statuses {
    ($($(#[$doc:meta])* $Reason:ident = $code:literal, $status:ident, $words:literal;)*) => {
        impl From<Error> for fa_status {
            fn from(error: Error) -> fa_status {
                match error {
                    $(Error::$Reason => fa_status::$status,)*
                }
            }
        }

        /// The sentence of a status. Every status is here, or is a reason.
        const fn words(status: fa_status) -> &'static CStr {
            match status {
                fa_status::FA_OK => c"ok",
                fa_status::FA_ERR_UNSUPPORTED => c"not supported by this version",
                $(fa_status::$status => $words,)*
            }
        }

        const ALL: &[fa_status] =
            &[fa_status::FA_OK, fa_status::FA_ERR_UNSUPPORTED, $(fa_status::$status,)*];

        $(const _: () = assert!(fa_status::$status as i32 == $code);)*
    };
}
with_reasons!(statuses);

/// One sentence in English for a status code.
///
/// @param status  any integer; an unknown one gets a sentence that says so
/// @return a static string, never NULL; do not free it
///
/// Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn fa_status_string(status: i32) -> *const c_char {
    let known = ALL.iter().find(|&&known| known as i32 == status);
    known.map_or(c"unknown status", |&known| words(known)).as_ptr()
}
