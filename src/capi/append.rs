//! `fa_cache_append`.

use std::ffi::c_char;

use super::attention::fa_attention;
use super::run::Words;
use super::status::fa_status;
use super::tensor::fa_tensor;
use super::{describe, guard};
use crate::kernel;

/// Writes the keys and values of new tokens into a cache, dense, ragged or paged. They are rounded
/// or quantised to the types of the cache, as fa_quantize does it.
///
/// The description is that of the attention that follows. Its query rows are the new tokens, and
/// the key and value of a row go to the key position of that row (FA_POS_END, q_pos or
/// q_positions). So the same description, with kv_lens that already count the new tokens, serves
/// this call and then fa_attention_run. This function uses batch, heads_kv, len_q, len_kv, dim_qk,
/// dim_v, k, v, q_pos, q_positions, cu_len_q, cu_len_kv, kv_lens, kv_starts, spans and the page
/// table. Everything else may be as fa_attention_init leaves it. Tokens whose position is not among
/// the keys in use of their sequence are refused.
///
/// A cache of 8-bit elements, or of FA_DTYPE_Q15 with a quant: if each token has scales of its own
/// (quant->stride[2] is not 0, group_tokens is 1, and stride[0] is not 0 where there are several
/// batch entries or pages), the scales, and zeros if there are any, are found and written as by
/// fa_quantize: they are OUTPUTS. Scales that tokens share, and a scale that is NULL, are inputs:
/// an element becomes x / scale + zero, rounded to nearest even (of FA_DTYPE_Q15 to a multiple of
/// 1/32768). Integers out of range become the least or the largest one, and NaN becomes 0. For
/// floating-point numbers fa_quantize says what happens.
///
/// @param[in] a        not NULL; rows of a->k and a->v that belong to the new tokens are OUTPUTS
/// @param[in] new_k    NULL = no keys are written; or [batch][heads_kv][len_q][dim_qk]; with
///                     cu_len_q the rows of all sequences one after another, as in q;
///                     FA_DTYPE_F32, _F16 or _BF16
/// @param[in] new_v    NULL = no values are written (v is a view of k); or
///                     [batch][heads_kv][len_q][dim_v], likewise
/// @param[out] why     NULL, or room for why_size bytes: a sentence in English that says what was
///                     refused, empty if nothing was, ended by a zero byte
/// @param why_size     bytes at why
/// @return FA_OK; FA_ERR_NULL; FA_ERR_STRUCT_SIZE; FA_ERR_RESERVED; FA_ERR_SHAPE;
///         FA_ERR_ZERO_EXTENT; FA_ERR_DTYPE; FA_ERR_STRIDE (also for a stride_dim of k or v, as
///         rows of a cache that is written must be contiguous, and for tokens of k or v that
///         overlap); FA_ERR_OVERFLOW; FA_ERR_LENGTHS (a list, or a position that is not among the
///         keys in use); FA_ERR_PAGE; FA_ERR_QUANT_SCALE; FA_ERR_ISA; FA_ERR_OVERLAP (what is
///         written shares memory with new_k, new_v, scales that are inputs, a list, or its own
///         scales; or k and v, or their scales, begin at the same address. All bytes from the first
///         to the last one of a tensor belong to it). On errors nothing has been written but why.
///
/// Not checked: whether two sequences share a page. A page that is written must be in one list,
/// once. Bytes of the cache that belong to no new token are neither read nor written.
///
/// Computes on the calling thread and allocates nothing. Thread-safe: several threads may write at
/// the same time if no two of them write the same rows, for example keys and values (the other one
/// NULL), different sequences, or different heads. Other threads may compute attention on the same
/// cache meanwhile: of keys that are not in use (kv_lens), attention reads neither the bytes nor
/// scales that only they have.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_cache_append(
    a: *const fa_attention,
    new_k: *const fa_tensor,
    new_v: *const fa_tensor,
    why: *mut c_char,
    why_size: usize,
) -> fa_status {
    guard(|| {
        let words = Words::new(why, why_size);
        // SAFETY: I1: description and tensors are as documented.
        let found = unsafe { describe::append(a, [new_k, new_v]) };
        words.end(found)?.run(kernel::best()?)
    })
}
