//! `fa_cache_append`.

use std::ffi::c_char;
use std::fmt::Write;

use super::attention::fa_attention;
use super::run::Words;
use super::status::fa_status;
use super::tensor::fa_tensor;
use super::{describe, guard};
use crate::kernel;

/// Writes the keys and values of new tokens into a cache, dense, ragged or paged, in the types that
/// it has: they are rounded, or quantised, as fa_quantize says.
///
/// The description is that of the attention which follows: its query rows are the new tokens, and
/// the key position of a row (FA_POS_END, q_pos or q_positions) is where its key and value go. So
/// the same a, with kv_lens that already count the new tokens, serves this call and then
/// fa_attention_run. Looked at are batch, heads_kv, len_q, len_kv, dim_qk, dim_v, k, v, q_pos,
/// q_positions, cu_len_q, cu_len_kv, kv_lens, kv_starts, spans and the page table; everything else
/// may be as fa_attention_init leaves it. Tokens whose position is not one of the keys in use of
/// their sequence are refused.
///
/// A cache of elements of 8 bits: where each token has scales of its own (quant->stride[2] is not 0
/// and group_tokens is 1, and stride[0] is not 0 where there are several batch entries or pages)
/// these, and zeros if there are any, are found and written as by fa_quantize: OUTPUTS. Scales that
/// tokens share, and a scale that is NULL, are given: an element becomes x / scale + zero, rounded
/// to nearest even; of integers what is beyond becomes the least or the largest, and NaN 0; of
/// floating-point numbers as fa_quantize says.
///
/// @param[in] a        not NULL; the rows of a->k and a->v that the new tokens have are OUTPUTS
/// @param[in] new_k    NULL = no keys are written; or [batch][heads_kv][len_q][dim_qk], with
///                     cu_len_q the rows of all sequences behind one another, as in q;
///                     FA_DTYPE_F32, _F16 or _BF16
/// @param[in] new_v    NULL = no values are written (where v is a view of k); or
///                     [batch][heads_kv][len_q][dim_v], likewise
/// @param[out] why     NULL, or room for why_size bytes: a sentence in English that says what was
///                     refused, empty if nothing was, ended by a zero byte
/// @param why_size     bytes at why
/// @return FA_OK; FA_ERR_NULL; FA_ERR_STRUCT_SIZE; FA_ERR_RESERVED; FA_ERR_SHAPE;
///         FA_ERR_ZERO_EXTENT; FA_ERR_DTYPE; FA_ERR_STRIDE (also a stride_dim of k or v: rows of a
///         cache that is written are contiguous; and tokens of k or v that overlap each other);
///         FA_ERR_OVERFLOW; FA_ERR_LENGTHS (a list, or a position that is no key in use);
///         FA_ERR_PAGE; FA_ERR_QUANT_SCALE; FA_ERR_ISA; FA_ERR_OVERLAP (what is written shares
///         memory with new_k, new_v, scales that are given, a list, or its own scales, or k and v,
///         or their scales, begin at the same place; what lies between the first and the last byte
///         of a tensor belongs to it). On errors nothing has been written but why.
///
/// Not told: whether two sequences have the same page. A page that is written must be in one list,
/// once. Bytes of the cache that no new token has are neither read nor written.
///
/// Computes on the calling thread and allocates nothing. Thread-safe: several threads may write at
/// once what no two of them have, as keys and values (one of them NULL), sequences or heads. Others
/// may attend meanwhile to keys of the same cache that are written: of keys that are not in use
/// (kv_lens), attention reads neither the bytes nor scales of their own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_cache_append(
    a: *const fa_attention,
    new_k: *const fa_tensor,
    new_v: *const fa_tensor,
    why: *mut c_char,
    why_size: usize,
) -> fa_status {
    guard(|| {
        let mut words = Words::new(why, why_size);
        // SAFETY: I1: description and tensors are as documented.
        let found = unsafe { describe::append(a, [new_k, new_v]) };
        if let Err(refusal) = &found {
            let _ = write!(words, "{refusal}");
        }
        words.end();
        found?.run(kernel::best()?)
    })
}
