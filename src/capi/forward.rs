//! `fa_forward_f32`, `fa_forward_i8`, `fa_mha`: attention on dense arrays.

use super::config::{Config, fa_config};
use super::status::fa_status;
use super::{Quiet, guard};
use crate::dtype::Dtype;
use crate::pool::Own;
use crate::prepared::Prepared;
use crate::problem::{Problem, Tensors};
use crate::view::{Layout, Quant, View, ViewMut};

/// Attention of one head in f32: out = softmax(softmax_scale * q * k^T) * v.
///
/// @param[in] cfg   not NULL
/// @param[in] q     [seq_len_q][head_dim]
/// @param[in] k     [seq_len_kv][head_dim]
/// @param[in] v     [seq_len_kv][head_dim]
/// @param seq_len_q   rows of q and out; at least 0
/// @param seq_len_kv  rows of k and v; at least 0
/// @param[out] out  [seq_len_q][head_dim]; must not overlap an input. Written completely; its old
///                  content does not matter.
/// @return FA_OK; FA_ERR_NULL; FA_ERR_ZERO_EXTENT; FA_ERR_OVERFLOW; FA_ERR_SOFTMAX_SCALE;
///         FA_ERR_RESERVED; FA_ERR_OVERLAP; FA_ERR_ISA; FA_ERR_MEMORY; FA_ERR_INTERNAL
///
/// All arrays are dense and row-major. They need no alignment, and an array without elements may be
/// NULL. seq_len_q = 0 does nothing; seq_len_kv = 0 gives zeros.
///
/// Scores, softmax and sums are f32. Against exact arithmetic the error is that of f32 dot products
/// and sums: at most 1e-5 times the largest |v| while |softmax_scale * q.k| stays below about 50. A
/// key that a query does not see has no influence on its row, even if it is NaN. A NaN or infinity
/// that a query sees only makes its own row NaN: NaN in q makes the whole row NaN, NaN in a row of
/// v that column of it, and so on as in the formula.
///
/// Thread-safe: any number of calls may run at the same time, with outputs of their own; inputs may
/// be shared. Scratch memory is allocated for the time of the call: see fa_scratch_bytes. Calls
/// need up to 48 KiB of stack, so a thread with 64 KiB may make them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_forward_f32(
    cfg: *const fa_config,
    q: *const f32,
    k: *const f32,
    v: *const f32,
    seq_len_q: usize,
    seq_len_kv: usize,
    out: *mut f32,
) -> fa_status {
    // SAFETY: I1: arrays and configuration are as documented.
    unsafe { run(cfg, q, k, v, Dense { heads: 1, seq_len_q, seq_len_kv }, None, out) }
}

/// Attention of one head of 8-bit integers: out = softmax(softmax_scale * q' * k'^T) * v', where q'
/// = q_scale * q, and so on.
///
/// @param[in] cfg   not NULL
/// @param[in] q     [seq_len_q][head_dim]
/// @param[in] k     [seq_len_kv][head_dim]
/// @param[in] v     [seq_len_kv][head_dim]
/// @param q_scale, k_scale, v_scale  the real number that one step of the stored integers stands
///                  for; finite, usually max|x| / 127
/// @param seq_len_q   rows of q and out; at least 0
/// @param seq_len_kv  rows of k and v; at least 0
/// @param[out] out  [seq_len_q][head_dim], f32
/// @return as fa_forward_f32, and FA_ERR_QUANT_SCALE
///
/// On x86-64 products are made of integers: scores are exact, and probabilities are rounded to 15
/// bits (relative RMS error against attention on q', k', v' below 5e-4: see FA_PRECISE). Other
/// machines compute in f32, with the error of fa_forward_f32. The tensors are never expanded as a
/// whole. For many queries, fa_attention with FA_FAST is faster: it allows probabilities of 8 bits.
///
/// Everything else is as for fa_forward_f32.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_forward_i8(
    cfg: *const fa_config,
    q: *const i8,
    k: *const i8,
    v: *const i8,
    q_scale: f32,
    k_scale: f32,
    v_scale: f32,
    seq_len_q: usize,
    seq_len_kv: usize,
    out: *mut f32,
) -> fa_status {
    let scales = [q_scale, k_scale, v_scale];
    // SAFETY: I1: arrays and configuration are as documented.
    unsafe { run(cfg, q, k, v, Dense { heads: 1, seq_len_q, seq_len_kv }, Some(&scales), out) }
}

/// Multi-head attention in f32: fa_forward_f32 for each of num_heads heads. For a batch, pass
/// batch * heads as num_heads.
///
/// @param[in] cfg   not NULL
/// @param[in] q     [num_heads][seq_len_q][head_dim]
/// @param[in] k     [num_heads][seq_len_kv][head_dim]
/// @param[in] v     [num_heads][seq_len_kv][head_dim]
/// @param num_heads   at least 1
/// @param seq_len_q   rows of q and out; at least 0
/// @param seq_len_kv  rows of k and v; at least 0
/// @param[out] out  [num_heads][seq_len_q][head_dim]
/// @return as fa_forward_f32
///
/// A head has the same bits as in fa_forward_f32 on that head alone. Everything else is as for
/// fa_forward_f32.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_mha(
    cfg: *const fa_config,
    q: *const f32,
    k: *const f32,
    v: *const f32,
    num_heads: usize,
    seq_len_q: usize,
    seq_len_kv: usize,
    out: *mut f32,
) -> fa_status {
    // SAFETY: I1: arrays and configuration are as documented.
    unsafe { run(cfg, q, k, v, Dense { heads: num_heads, seq_len_q, seq_len_kv }, None, out) }
}

/// Sizes of dense `[heads][seq][head_dim]` arrays.
#[derive(Clone, Copy)]
pub(super) struct Dense {
    pub(super) heads: usize,
    pub(super) seq_len_q: usize,
    pub(super) seq_len_kv: usize,
}

/// A type of q, k and v in these calls.
pub(super) trait Stored {
    const DTYPE: Dtype;
}
impl Stored for f32 {
    const DTYPE: Dtype = Dtype::F32;
}
impl Stored for i8 {
    const DTYPE: Dtype = Dtype::I8;
}

/// Attention on dense arrays of one type, whose integers have a scale for each of Q, K and V.
///
/// # Safety
/// `cfg` is NULL or readable; the arrays are NULL or have the elements that the sizes say, and
/// nobody writes to them, nor uses `out`, during the call.
unsafe fn run<T: Stored>(
    cfg: *const fa_config,
    q: *const T,
    k: *const T,
    v: *const T,
    sizes: Dense,
    scales: Option<&[f32; 3]>,
    out: *mut f32,
) -> fa_status {
    guard(|| {
        // SAFETY: I1: `cfg` is NULL or leads to an fa_config.
        let config = unsafe { Config::read(cfg)? };
        let Dense { heads, seq_len_q, seq_len_kv } = sizes;
        let layout = |dtype, tokens| Layout::dense(dtype, heads, tokens, config.head_dim);
        // SAFETY: I1: dense arrays of these sizes.
        let mut tensors = unsafe {
            Tensors::new(
                View::new(q.cast(), layout(T::DTYPE, seq_len_q)?)?,
                View::new(k.cast(), layout(T::DTYPE, seq_len_kv)?)?,
                View::new(v.cast(), layout(T::DTYPE, seq_len_kv)?)?,
                ViewMut::new(out.cast(), layout(Dtype::F32, seq_len_q)?)?,
            )
        };
        if let Some([q, k, v]) = scales.map(|scales| scales.each_ref().map(Quant::per_tensor)) {
            tensors.q = tensors.q.quantised(q)?;
            tensors.k = tensors.k.quantised(k)?;
            tensors.v = tensors.v.quantised(v)?;
        }
        let mut problem = Problem::new(tensors, config.semantics())?;
        Prepared::new(&mut problem, config.threads)?.run_allocating(&Quiet(&Own))
    })
}
