//! `fa_attention`: the general problem as C describes it.

use std::ptr;

use super::status::fa_status;
use super::tensor::fa_tensor;
use super::{abi, guard};
use crate::error::Error;

/// fa_attention.q_pos: the last query row of each sequence is on its last key, q_pos = number of
/// keys - number of query rows. It may come out negative: the rows before key 0 are then at no key.
pub const FA_POS_END: i64 = i64::MIN;

/// fa_attention.window_left, window_right: no limit.
pub const FA_NO_LIMIT: i64 = -1;

/// fa_attention.flags: slopes are multiplied by the mask, which holds distances (as in ggml, whose
/// mask is -|p - j|), in place of -|p - j|.
pub const FA_MASK_TIMES_SLOPE: u32 = 1;

/// fa_attention.flags: more accurate than by default. K and V of bf16, and in blocks, are not
/// multiplied as they are stored, but become f32 a block at a time.
///
/// By default, with neither FA_PRECISE nor FA_FAST, queries and probabilities are rounded no
/// further than storing K and V in their types has rounded these. Errors below are relative RMS
/// errors against exact attention on the stored numbers, of normal data and of rows with attention
/// sinks (a few keys that have up to 99.9 % of a row's probability, and values near 0).
///
/// - K and V bf16: multiplied as bf16 if the machine can (fa_isa "avx512bf16" or "neon-bf16") and
///   is faster at it than at f32 (AMD's and Arm's are, Intel's are not, and only do it if
///   fa_limit_isa or FA_MAX_ISA names "avx512bf16"), queries that are not bf16 and probabilities
///   rounded to bf16: error below 3e-3, with sinks 5e-2. With FA_PRECISE f32 computes: 1e-6, at
///   half the speed.
/// - K and V i8 or u8, K with scales and zeros a head, a token or a channel, V a head or a channel
///   (see fa_quant): multiplied as integers of 16 bits on x86-64, and in few query rows (decode)
///   with "neon-dotprod" and "neon-i8mm". Queries, times the scales of K's channels, are quantised,
///   each row with a scale of its own, unless they are i8 with one scale a row or fewer, and K has
///   no scales of channels; probabilities have 15 bits, relative to a reference that few keys
///   exceed, and what exceeds it is added in f32: error below 5e-4. With other scales, and on other
///   machines, f32 computes. FA_PRECISE changes nothing.
/// - K and V in blocks (Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, the same or not): with "avx2", or
///   "avx512vnni" and better, and few query rows (decode) multiplied as integers: queries are
///   quantised, each row with a scale of its own, to 16 bits, and the products of probabilities and
///   the scales of V, relative to the largest of a block of elements, are multiples of 1/32767 or
///   1/32768: error below 3e-4. With FA_PRECISE, and else, f32 computes.
/// - Others: f32 computes.
pub const FA_PRECISE: u32 = 2;

/// fa_attention.flags: allows probabilities and queries of 8 bits, for K and V of i8 or u8 with
/// scales as FA_PRECISE says and many query rows (prefill), where fa_isa is "avx512vnni" or better,
/// "avxvnni", "neon-i8mm" or "neon-dotprod": up to twice as fast as by default. Queries that are
/// not i8 are quantised to 8 bits, each row with a scale of its own. Probabilities are multiples of
/// 1/255 of a reference that few keys exceed, and what exceeds it is added in f32. Error: below
/// 2e-2, with sinks 5e-2. Elsewhere the flag changes nothing. Together with FA_PRECISE it is
/// refused: FA_ERR_RESERVED.
pub const FA_FAST: u32 = 4;

/// Attention in general: dense, interleaved, broadcast, ragged or paged tensors, grouped heads,
/// positions and windows, masks of all kinds, log-sum-exp. One description serves
/// fa_attention_check, _workspace, _run, _part and _finish.
///
/// For query row i of a sequence, at key position p = q_pos + i (or q_positions), over the keys j
/// that it sees. Terms of options that are off drop out:
///
/// ~~~text
///   s_j = scale * sum_d q[i][d] * k[j][d]
///   t_j = softcap * tanh(s_j / softcap) - slope * |p - j| + mask[i][j]
///   Z = sum_j exp(t_j) + exp(sink)
///   o[i] = sum_j exp(t_j) * v[j] / Z                   lse[i] = log Z
/// ~~~
///
/// A key that windows, kv_lens, kv_starts, mask, block_mask or kept_blocks hide from a row has no
/// influence on it, even if it is NaN. A NaN that a row sees gives NaN in that row only. A row that sees no key
/// is zeros, and its lse -infinity.
///
/// Fill it with fa_attention_init, then set what you need. Fields are only ever appended. Inputs
/// are never written. Strides of tensors are in bytes, those of plain arrays (lse, alibi_slopes) in
/// elements.
///
/// Bits: as said at the top of this header; block_kv stands for block_size_kv there, and where it
/// is 0 the size is chosen from head dimensions, caches, block_mask_kv or kept_kv and the
/// instruction set.
/// Ragged, paged and dense keys, copies or views, alone or in a batch, give the same bits.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fa_attention {
    /// sizeof(fa_attention), set by fa_attention_init.
    pub struct_size: usize,
    /// FA_MASK_TIMES_SLOPE, and FA_PRECISE or FA_FAST; or 0.
    pub flags: u32,
    /// 0.
    pub reserved0: u32,
    /// Sequences. 0 does nothing.
    pub batch: i64,
    /// Heads of q and o; a multiple of heads_kv. Query head h uses kv head
    /// h / (heads_q / heads_kv).
    pub heads_q: i64,
    /// Heads of k and v; at least 1.
    pub heads_kv: i64,
    /// Query rows of a sequence. 0 does nothing. With cu_len_q: at least those of the longest
    /// sequence.
    pub len_q: i64,
    /// Keys of a sequence. 0 gives rows that see nothing. With cu_len_kv or kv_lens: at least those
    /// of the longest.
    pub len_kv: i64,
    /// Elements of a row of q and k; at least 1.
    pub dim_qk: i64,
    /// Elements of a row of v and o; at least 1. Independent of dim_qk.
    pub dim_v: i64,
    /// Queries [batch][heads_q][len_q][dim_qk]; any type but FA_DTYPE_BOOL8, whatever k and v
    /// are. The order of axes is that of strides, not of memory: [batch][token][head][dim] of
    /// f32 is {len_q * heads_q * dim_qk * 4, dim_qk * 4, heads_q * dim_qk * 4}.
    pub q: fa_tensor,
    /// Keys [batch][heads_kv][len_kv][dim_qk]; types as for q. What is not f32 becomes f32 a block
    /// of keys at a time, in scratch memory, or is multiplied as it is: see FA_PRECISE. Sums and
    /// softmax are f32 for every type.
    pub k: fa_tensor,
    /// Values [batch][heads_kv][len_kv][dim_v]; types as for q, not necessarily that of k. May be a
    /// view of k (multi-head latent attention).
    pub v: fa_tensor,
    /// Output [batch][heads_q][len_q][dim_v]; FA_DTYPE_F32, _F16 or _BF16, rounded once from f32,
    /// to nearest even. Its rows do not overlap each other, and the memory from its first row to
    /// its last that of no input and not lse (rows between those of an input are refused, too).
    /// Every row is written completely; what was in it does not matter. Bytes between rows are not
    /// touched.
    pub o: fa_tensor,
    /// The softmax scale, which every dot product of a query and a key is multiplied by. Finite;
    /// may be negative; 0 = 1/sqrt(dim_qk). FA_SCALE_ZERO weighs all keys that a row sees alike.
    pub scale: f32,
    /// 0 = off, else the score s = scale * q.k is replaced by softcap * tanh(s / softcap). Finite,
    /// not negative.
    pub softcap: f32,
    /// Key position of query row 0, one for all sequences: 0 if there is no past, the number of
    /// keys that came before, or, where sequences differ, FA_POS_END (or q_positions). Any number,
    /// as long as q_pos + len_q is one, too (else FA_ERR_OVERFLOW); only windows and linear biases
    /// depend on it.
    pub q_pos: i64,
    /// Keys before a query's position that it sees: p - window_left is the first. At least 0, or
    /// FA_NO_LIMIT. (A Hugging Face sliding_window of W is window_left = W - 1, window_right = 0.)
    pub window_left: i64,
    /// Keys behind a query's position that it sees: p + window_right is the last. At least 0, or
    /// FA_NO_LIMIT. Causal attention is window_right = 0.
    pub window_right: i64,
    /// data = NULL, or a mask [batch][heads_q][len_q], each row with one element for each of len_kv
    /// keys; strides (of batch entry, head and row) of 0 repeat it. FA_DTYPE_F32, _F16, _BF16:
    /// added to the scores, after softcap; -infinity hides the key (no other value does, however
    /// small). FA_DTYPE_BOOL8: nonzero = the key is seen. Of ragged batches, too, row i of entry b
    /// is for row i of sequence b. What windows and kv_lens leave out is not looked at. Keys that
    /// it hides from neighbouring rows, as a window would, take no time but that of reading it.
    pub mask: fa_tensor,
    /// NULL, or the slope of each query head (ALiBi, arXiv:2108.12409): -slope * |p - j| is added
    /// to the score of the query at position p and key j, after softcap. With FA_MASK_TIMES_SLOPE:
    /// slope * mask.
    pub alibi_slopes: *const f32,
    /// ELEMENTS from the slopes of one sequence to those of the next; 0 = all have the same.
    pub alibi_batch_stride: i64,
    /// NULL, or an attention sink for each query head: a logit that takes part in the softmax
    /// without a value, so that each sum gets exp(sink) more. Neither scaled nor capped. A row that
    /// sees no key is zeros, its lse the sink. Of results to be merged, only one may be computed
    /// with it. -infinity = none.
    pub sinks: *const f32,
    /// NULL, or block-sparse attention: bytes [batch][heads_q][blocks of query rows][blocks of
    /// keys], nonzero = these rows see these keys, as far as nothing else hides them. Blocks
    /// without a pair that is seen take no time. The bytes of a row of blocks are contiguous.
    pub block_mask: *const u8,
    /// BYTES from one batch entry to the next, one head to the next, one block of query rows to the
    /// next; 0 = the same for all.
    pub block_mask_stride: [i64; 3],
    /// Query rows of a block; at least 1. Block 0 begins with row 0 of each sequence.
    pub block_mask_q: i64,
    /// Keys of a block; at least 1. Block 0 begins with key 0 of each sequence.
    pub block_mask_kv: i64,
    /// Ragged queries: NULL, or [batch + 1]. q, o and lse then have the rows of all sequences
    /// behind one another, those of sequence b from cu_len_q[b] to cu_len_q[b + 1] - 1, and the
    /// stride between batch entries does not count. Not negative, not decreasing.
    pub cu_len_q: *const i32,
    /// Ragged keys: NULL, or [batch + 1]. k and v then have the keys of all sequences behind one
    /// another, those of sequence b from cu_len_kv[b] to cu_len_kv[b + 1] - 1. Not negative, not
    /// decreasing.
    pub cu_len_kv: *const i32,
    /// NULL, or [batch]: keys of each sequence that are in use, the first ones of those that it
    /// has. The others are never read.
    pub kv_lens: *const i32,
    /// NULL, or keys in pages: k and v are then [num_pages][heads_kv][page_size][dim], stride[0] is
    /// that between pages, and key j of a sequence is token j % page_size of the page that is
    /// number j / page_size in its list. Lists are [batch][table_stride], or with block_table_start
    /// one behind another. Pages in use are below num_pages; entries that no key needs are not
    /// read. cu_len_kv must be NULL. Other strides give [page][token][head][dim] or
    /// [page][head][token][dim].
    pub block_table: *const i32,
    /// NULL, or [batch + 1]: the list of sequence b is block_table[block_table_start[b]] to
    /// block_table[block_table_start[b + 1] - 1].
    pub block_table_start: *const i32,
    /// Entries from the list of one sequence to that of the next; not with block_table_start.
    pub table_stride: i64,
    /// Tokens of a page; at least 1. 1 makes the table one of token slots.
    pub page_size: i64,
    /// Pages of k and v.
    pub num_pages: i64,
    /// NULL, or where to put the natural logarithm of each row's sum of exponentials: -infinity for
    /// a row that sees no key. With it, results over parts of the keys can be joined: fa_merge,
    /// which takes rows in one order (for an output [token][head][dim], lse_stride {.., 1,
    /// heads_q}).
    pub lse: *mut f32,
    /// ELEMENTS from one batch entry of lse to the next (not with cu_len_q), one head to the next,
    /// one query row to the next.
    pub lse_stride: [i64; 3],
    /// Query rows of a tile; 0 = chosen from this machine's caches. Results do not depend on it.
    pub block_q: i64,
    /// Keys of a tile; 0 = chosen from this machine's caches. Results differ between values within
    /// rounding.
    pub block_kv: i64,
    /// NULL, or [batch]: the key position of query row 0 of each sequence, in place of q_pos, which
    /// is then FA_POS_END (as fa_attention_init leaves it) or 0. Any numbers: as for q_pos. For
    /// sequences with different pasts in a right-padded batch.
    pub q_positions: *const i32,
    /// NULL, or [batch]: the first key of each sequence that any row sees, 0 to its number of keys.
    /// Those before it are hidden, and so is what is in them; pages that have no other keys are not
    /// looked up. Positions still count from key 0. For left padding, and caches that have dropped
    /// their oldest keys.
    pub kv_starts: *const i32,
    /// So many keys of each sequence, from kv_starts on, are not hidden by window_left: a row at
    /// position p sees key j if j <= p + window_right and either j >= p - window_left or j <
    /// kv_starts + prefix_keys (StreamingLLM, arXiv:2309.17453). 0 = off; without window_left
    /// nothing is hidden by it.
    pub prefix_keys: i64,
    /// NULL, or spans of keys that see each other both ways, whatever the windows (images within a
    /// causal text; the prompt of a prefix language model): two key positions each, the first of
    /// the span and the one behind its last, ascending and disjoint in each sequence. A row whose
    /// position lies in a span sees all keys of that span, besides what the windows leave it.
    /// kv_lens, kv_starts, mask, block_mask and kept_blocks hide keys of spans, too.
    pub spans: *const i32,
    /// [batch + 1], NULL without spans: the spans of sequence b are spans[2 * span_starts[b]] to
    /// spans[2 * span_starts[b + 1] - 1]. Not negative, not decreasing.
    pub span_starts: *const i32,
    /// data = NULL, or where to put probabilities, FA_DTYPE_F32, [batch][num_weight_heads]
    /// [num_weight_rows], each row with one element for each of len_kv keys: exp(t_j) / Z, so that
    /// a row sums to 1 less the sink's part. 0 for keys that the row does not see, and for those
    /// from the sequence's own length on; NaN for those that it sees where o is NaN for NaN or
    /// infinite scores. Not rounded as FA_PRECISE says of those that values are multiplied by. For
    /// word time stamps, and to look into a model. They cost no memory beside this: until a row is
    /// finished its scores stand here. Of ragged batches, too, row i of entry b is for row i of
    /// sequence b; rows that a sequence does not have are not written. Rows do not overlap each
    /// other, and the memory from the first to the last that of no input or other output.
    pub weights: fa_tensor,
    /// NULL = all query heads, or [num_weight_heads]: the query heads whose probabilities are
    /// wanted, ascending.
    pub weight_heads: *const i32,
    /// Entries of weight_heads, at least 1; without it 0 or heads_q.
    pub num_weight_heads: i64,
    /// NULL = all of len_q query rows, or [num_weight_rows]: the query rows of each sequence whose
    /// probabilities are wanted, ascending. Either none is negative, or all are: these count from
    /// the sequence's end, so that -1 is the last row of each.
    pub weight_rows: *const i32,
    /// Entries of weight_rows, at least 1; without it 0 or len_q.
    pub num_weight_rows: i64,
    /// NULL, or block-sparse attention by lists (BSR: block compressed sparse rows): the blocks of
    /// keys that each block of query rows sees, as far as nothing else hides them. Time is in
    /// proportion to what is listed. Not together with block_mask. Query rows i of head h of
    /// sequence b see the blocks kept_blocks[kept_start[r]] to kept_blocks[kept_start[r + 1] - 1],
    /// where r = b * kept_stride[0] + h / (heads_q / kept_heads) * kept_stride[1] + i / kept_q. So
    /// each head has a number for each block of len_q rows, and one more. Not negative, and not
    /// decreasing within a head.
    pub kept_start: *const i32,
    /// Blocks of keys, by number: block n has keys n * kept_kv to n * kept_kv + kept_kv - 1. In each
    /// list ascending, each once, 0 to (len_kv - 1) / kept_kv. Lists may share entries. May be NULL
    /// if all lists are empty.
    pub kept_blocks: *const i32,
    /// ENTRIES of kept_start from one sequence to the next, and from one head with lists to the
    /// next; 0 = the same lists for all.
    pub kept_stride: [i64; 2],
    /// Heads that have lists of their own: heads_q, heads_kv (then the query heads of a kv head
    /// share them), or another divisor of heads_q. 0 = heads_q.
    pub kept_heads: i64,
    /// Query rows of a block; at least 1. Block 0 begins with row 0 of each sequence.
    pub kept_q: i64,
    /// Keys of a block; at least 1. Block 0 begins with key 0 of each sequence.
    pub kept_kv: i64,
    /// With block_table: entries from the list of one kv head of a sequence to that of the next; 0 =
    /// all kv heads have the same list. So each kv head reads pages of its own, those that were
    /// selected for it (Quest, arXiv:2406.10774), as many as the others do. Lists of all kv heads lie
    /// within the table_stride entries of their sequence, or between its block_table_start and the
    /// next. Keys count within a list: key j is token j % page_size of entry j / page_size, and
    /// positions, windows and masks count so, too.
    pub table_head_stride: i64,
}

/// Sets struct_size, q_pos = FA_POS_END, both windows to FA_NO_LIMIT, and everything else to 0.
///
/// @param[out] a       not NULL
/// @param struct_size  sizeof(fa_attention)
/// @return FA_OK; FA_ERR_NULL; FA_ERR_STRUCT_SIZE. *a is untouched on errors.
///
/// Thread-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_attention_init(a: *mut fa_attention, struct_size: usize) -> fa_status {
    guard(|| {
        if a.is_null() {
            return Err(Error::Null);
        }
        abi::check_size::<fa_attention>(struct_size)?;
        let empty = fa_attention { struct_size, ..EMPTY };
        // SAFETY: I1: not NULL, so it is writable for `struct_size` bytes; no alignment is assumed.
        // What a later version of the structure has beyond ours is 0.
        unsafe {
            a.cast::<u8>().write_bytes(0, struct_size);
            a.write_unaligned(empty);
        }
        Ok(())
    })
}

/// What `fa_attention_init` leaves.
pub(super) const EMPTY: fa_attention = fa_attention {
    struct_size: size_of::<fa_attention>(),
    flags: 0,
    reserved0: 0,
    batch: 0,
    heads_q: 0,
    heads_kv: 0,
    len_q: 0,
    len_kv: 0,
    dim_qk: 0,
    dim_v: 0,
    q: fa_tensor::NONE,
    k: fa_tensor::NONE,
    v: fa_tensor::NONE,
    o: fa_tensor::NONE,
    scale: 0.0,
    softcap: 0.0,
    q_pos: FA_POS_END,
    window_left: FA_NO_LIMIT,
    window_right: FA_NO_LIMIT,
    mask: fa_tensor::NONE,
    alibi_slopes: ptr::null(),
    alibi_batch_stride: 0,
    sinks: ptr::null(),
    block_mask: ptr::null(),
    block_mask_stride: [0; 3],
    block_mask_q: 0,
    block_mask_kv: 0,
    cu_len_q: ptr::null(),
    cu_len_kv: ptr::null(),
    kv_lens: ptr::null(),
    block_table: ptr::null(),
    block_table_start: ptr::null(),
    table_stride: 0,
    page_size: 0,
    num_pages: 0,
    lse: ptr::null_mut(),
    lse_stride: [0; 3],
    block_q: 0,
    block_kv: 0,
    q_positions: ptr::null(),
    kv_starts: ptr::null(),
    prefix_keys: 0,
    spans: ptr::null(),
    span_starts: ptr::null(),
    weights: fa_tensor::NONE,
    weight_heads: ptr::null(),
    num_weight_heads: 0,
    weight_rows: ptr::null(),
    num_weight_rows: 0,
    kept_start: ptr::null(),
    kept_blocks: ptr::null(),
    kept_stride: [0; 2],
    kept_heads: 0,
    kept_q: 0,
    kept_kv: 0,
    table_head_stride: 0,
};
