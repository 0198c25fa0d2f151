//! `fa_scratch_bytes`.

use super::config::{Config, fa_config};
use super::guard;
use super::status::fa_status;
use super::tensor;
use crate::dtype::Dtype;
use crate::error::Error;
use crate::prepared;
use crate::problem::{Accuracy, Batch, Shape};
use crate::view::Layout;

/// Bytes of scratch memory that a call of fa_mha (or, with num_heads = 1, of fa_forward_f32 or
/// fa_forward_i8) with this configuration and these sizes allocates, and frees before it returns.
/// It grows at most with the sum of the sizes, never with their product, and with the number of
/// threads. On one thread, up to 16 KiB are on the stack instead, and the answer is 0. If an
/// allocation fails, the call tries again with the scratch memory of one thread before it returns
/// FA_ERR_MEMORY.
///
/// This does not count the library's pool. The first call with more than one thread creates it, and
/// a call that needs more threads than it has replaces it with a larger one: up to 1 MiB a thread.
/// If that memory is not available, there are fewer threads, down to the calling one. Creating
/// threads can still abort the process: the library checks first that the memory is available, but
/// another thread of the process may take it in between. This applies to fa_pool_create and to
/// these calls, never to fa_attention_run, with any pool, nor to other calls.
///
/// @param[in] cfg     not NULL
/// @param dtype       FA_DTYPE_F32 or FA_DTYPE_I8: the type of q, k and v
/// @param num_heads   at least 1
/// @param seq_len_q   query rows of a head; at least 0
/// @param seq_len_kv  keys of a head; at least 0
/// @param[out] bytes  not NULL; untouched on errors
/// @return FA_OK; FA_ERR_NULL; FA_ERR_ZERO_EXTENT; FA_ERR_OVERFLOW; FA_ERR_RESERVED; FA_ERR_DTYPE;
///         FA_ERR_ISA
///
/// Thread-safe. The answer is valid until fa_limit_isa is called.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_scratch_bytes(
    cfg: *const fa_config,
    dtype: i32,
    num_heads: usize,
    seq_len_q: usize,
    seq_len_kv: usize,
    bytes: *mut usize,
) -> fa_status {
    guard(|| {
        // SAFETY: I1: `cfg` is NULL or leads to an fa_config.
        let config = unsafe { Config::read(cfg)? };
        if bytes.is_null() {
            return Err(Error::Null);
        }
        // Tensors of other types are not taken by these calls.
        let dtype =
            tensor::dtype("dtype", dtype).ok().filter(|dtype| matches!(dtype, Dtype::F32 | Dtype::I8));
        let dtype = dtype.ok_or(Error::Dtype)?;
        let q = Layout::dense(dtype, num_heads, seq_len_q, config.head_dim)?;
        let kv = Layout::dense(dtype, num_heads, seq_len_kv, config.head_dim)?;
        let _out = Layout::dense(Dtype::F32, num_heads, seq_len_q, config.head_dim)?;
        let shape = Shape::of(&q, &kv, &kv, &Batch::default(), &config.semantics())?;
        let needed =
            prepared::allocated_bytes(&prepared::plan(&shape, Accuracy::default(), config.threads)?)?;
        // SAFETY: I1: not NULL, so it is writable; no alignment is assumed.
        unsafe { bytes.write_unaligned(needed) };
        Ok(())
    })
}
