//! `fa_attention`: the general problem as C describes it.

use std::ptr;

use super::status::fa_status;
use super::tensor::fa_tensor;
use super::{abi, guard};
use crate::error::Error;

/// fa_attention.q_pos: the last query row of each sequence is at its last key, so q_pos = number of
/// keys - number of query rows. That may be negative: rows before key 0 are then at no key.
pub const FA_POS_END: i64 = i64::MIN;

/// fa_attention.window_left, window_right: no limit.
pub const FA_NO_LIMIT: i64 = -1;

/// fa_attention.flags: the bias is slope * mask instead of -slope * |p - j|. The mask then holds
/// distances, as in ggml, whose mask is -|p - j|.
pub const FA_MASK_TIMES_SLOPE: u32 = 1;

/// fa_attention.flags: more accurate than the default. K and V of bf16, f16 and in blocks are not
/// multiplied as they are stored; a block of keys at a time becomes f32.
///
/// By default, with neither FA_PRECISE nor FA_FAST, queries and probabilities are rounded no
/// further than storing K and V in their types has rounded these. The errors below are relative RMS
/// errors against exact attention on the stored numbers. They hold for normal data, and for rows
/// with attention sinks (a few keys that have up to 99.9 % of a row's probability, and values near
/// 0).
///
/// - K and V bf16: multiplied as bf16 if the machine can (fa_isa "avx512bf16" or "neon-bf16") and
///   is faster at it than at f32. AMD's and Arm's processors are. Intel's are not, and do it only
///   if fa_limit_isa or FA_MAX_ISA names "avx512bf16"; with "amx" (see fa_enable_amx) they do it
///   with many query rows, where subnormal bf16 count as 0. Probabilities, and queries that are not
///   bf16, are rounded to bf16. Error: below 3e-3, with sinks 5e-2. With FA_PRECISE f32 computes:
///   1e-6, at half the speed.
/// - K and V f16: multiplied as f16 with "amx" and many query rows, if the processor can (AMX-FP16,
///   Granite Rapids and later). Probabilities, and queries that are not f16, are rounded to f16;
///   the largest of a row are brought to the upper end of its range, so that small ones are not
///   lost. Error: below 5e-4, with sinks 7e-3. Otherwise, and with FA_PRECISE, f32 computes.
/// - K and V i8 or u8, K with scales and zeros per head, token or channel, V per head or channel
///   (see fa_quant): multiplied as 16-bit integers on x86-64 and by "simd128", and with few query
///   rows (decode) by "neon-dotprod" and "neon-i8mm". Queries, times the scales of K's channels,
///   are quantised, each row with a scale of its own. Queries are used as they are if they are i8
///   with one scale per row or for more than a row, and K has no scales of channels. Probabilities
///   have 15 bits, relative to a reference that few keys exceed; what exceeds it is added in f32.
///   Error: below 5e-4. With other scales, and on other machines, f32 computes. FA_PRECISE changes
///   nothing.
/// - K and V in blocks (Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, the same or not), with "avx2", or
///   "avx512vnni" and better, and few query rows (decode): multiplied as integers. Queries are
///   quantised to 16 bits, each row with a scale of its own. Products of probabilities and scales
///   of V are rounded to multiples of 1/32767 or 1/32768 of the largest one of a block of elements.
///   Error: below 3e-4. Otherwise, and with FA_PRECISE, f32 computes.
/// - Others: f32 computes.
pub const FA_PRECISE: u32 = 2;

/// fa_attention.flags: allows probabilities and queries of 8 bits. That applies to K and V of i8 or
/// u8 with the scales that FA_PRECISE names, and to many query rows (prefill), if fa_isa is
/// "avx512vnni" or better, "avxvnni", "neon-i8mm" or "neon-dotprod". It is up to twice as fast as
/// the default. Queries that are not i8 are quantised to 8 bits, each row with a scale of its own.
/// Probabilities are multiples of 1/255 of a reference that few keys exceed; what exceeds it is
/// added in f32. Error: below 2e-2, with sinks 5e-2. In all other cases the flag changes nothing.
/// Together with FA_PRECISE it is refused: FA_ERR_RESERVED.
pub const FA_FAST: u32 = 4;

/// Attention in general: dense, interleaved, broadcast, ragged or paged tensors, grouped heads,
/// positions and windows, masks of all kinds, log-sum-exp. One description serves
/// fa_attention_check, _workspace, _run, _part and _finish, and fa_cache_append.
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
/// A key that windows, kv_lens, kv_starts, mask, block_mask or kept_blocks hide from a row (and
/// columns do not show to it) has no influence on that row, even if it is NaN. A NaN that a row
/// sees makes only that row NaN. A row that sees no key is zeros, and its lse is -infinity.
///
/// Call fa_attention_init, then set what you need. Later versions only append fields. Inputs are
/// never written. Strides of tensors are in bytes; strides of plain arrays (lse, alibi_slopes) are
/// in elements.
///
/// Same bits: as said at the top of this header, with block_kv for block_size_kv. If block_kv is 0,
/// the size is chosen from head dimensions, caches, block_mask_kv or kept_kv and the instruction
/// set. Ragged, paged and dense keys, copies or views, alone or in a batch, give the same bits.
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
    /// Heads of q and o; a multiple of heads_kv. Query head h reads kv head h / (heads_q /
    /// heads_kv).
    pub heads_q: i64,
    /// Heads of k and v; at least 1.
    pub heads_kv: i64,
    /// Query rows of a sequence. 0 does nothing. With cu_len_q: at least the number of the longest
    /// sequence.
    pub len_q: i64,
    /// Keys of a sequence. With 0, rows see nothing. With cu_len_kv or kv_lens: at least the number
    /// of the longest sequence.
    pub len_kv: i64,
    /// Elements of a row of q and k; at least 1.
    pub dim_qk: i64,
    /// Elements of a row of v and o; at least 1. Independent of dim_qk.
    pub dim_v: i64,
    /// Queries [batch][heads_q][len_q][dim_qk]; any type but FA_DTYPE_BOOL8, whatever types k and v
    /// have. Strides are in this order of axes, whatever the order in memory: f32 in memory as
    /// [batch][token][head][dim] has {len_q * heads_q * dim_qk * 4, dim_qk * 4, heads_q * dim_qk *
    /// 4}.
    pub q: fa_tensor,
    /// Keys [batch][heads_kv][len_kv][dim_qk]; types as for q. Types other than f32 become f32 a
    /// block of keys at a time, in scratch memory, or are multiplied as they are: see FA_PRECISE.
    /// Sums and softmax are f32 for every type.
    pub k: fa_tensor,
    /// Values [batch][heads_kv][len_kv][dim_v]; types as for q. The type may differ from that of k.
    /// v may be a view of k (multi-head latent attention).
    pub v: fa_tensor,
    /// Output [batch][heads_q][len_q][dim_v]; FA_DTYPE_F32, _F16, _BF16 or _Q15, rounded once from
    /// f32, to nearest even. Of FA_DTYPE_Q15 it may have scales (fa_quant), by which numbers are
    /// divided first: an input, which must not overlap an output. Every row is written completely;
    /// its old content does not matter. Bytes between rows are not touched. Its rows must not
    /// overlap each other. The memory from its first row to its last row must not overlap an input
    /// or lse; an output between the rows of an input is refused, too.
    pub o: fa_tensor,
    /// The softmax scale, by which every dot product of a query and a key is multiplied. Finite;
    /// may be negative; 0 = 1/sqrt(dim_qk). With FA_SCALE_ZERO all visible keys weigh the same.
    pub scale: f32,
    /// 0 = off. Otherwise the score s = scale * q.k is replaced by softcap * tanh(s / softcap).
    /// Finite, not negative.
    pub softcap: f32,
    /// The key position of query row 0, the same for all sequences: 0 if there is no past, else the
    /// number of keys before it. If sequences differ: FA_POS_END (or q_positions). Any number for
    /// which q_pos + len_q does not overflow (else FA_ERR_OVERFLOW). Only windows, spans and linear
    /// biases depend on it.
    pub q_pos: i64,
    /// How many keys before its own position p a query sees: the first is p - window_left. At least
    /// 0, or FA_NO_LIMIT. (A Hugging Face sliding_window of W is window_left = W - 1, window_right
    /// = 0.)
    pub window_left: i64,
    /// How many keys behind its own position p a query sees: the last is p + window_right. At least
    /// 0, or FA_NO_LIMIT. Causal attention is window_right = 0.
    pub window_right: i64,
    /// data = NULL: no mask. Otherwise a mask [batch][heads_q][len_q], each row with one element
    /// for each of len_kv keys. A stride (of batch entry, head or row) of 0 repeats it.
    /// FA_DTYPE_F32, _F16, _BF16: added to the scores, after softcap; -infinity hides the key, and
    /// no other value does, however small. FA_DTYPE_BOOL8: nonzero = visible. In ragged batches,
    /// too, row i of entry b is for row i of sequence b. Elements for keys that windows and kv_lens
    /// hide are not read. Keys that it hides from all neighbouring rows, as a window would, take no
    /// time except for reading the mask.
    pub mask: fa_tensor,
    /// NULL, or the slope of each query head (ALiBi, arXiv:2108.12409): -slope * |p - j| is added
    /// to the score of the query at position p and key j, after softcap. With FA_MASK_TIMES_SLOPE:
    /// slope * mask.
    pub alibi_slopes: *const f32,
    /// ELEMENTS from the slopes of one sequence to those of the next; 0 = the same slopes for all.
    pub alibi_batch_stride: i64,
    /// NULL, or an attention sink for each query head: a logit that takes part in the softmax
    /// without a value, so the sum of exponentials gets exp(sink) more. It is neither scaled nor
    /// capped. A row that sees no key is zeros, and its lse is the sink. If results are merged
    /// (fa_merge), only one of them may be computed with sinks. -infinity = no sink.
    pub sinks: *const f32,
    /// NULL, or block-sparse attention: bytes [batch][heads_q][blocks of query rows][blocks of
    /// keys]; nonzero = these rows see these keys, unless something else hides them. Blocks without
    /// any visible pair take no time. The bytes of a row of blocks are contiguous.
    pub block_mask: *const u8,
    /// BYTES from one batch entry to the next, one head to the next, one block of query rows to the
    /// next; 0 = the same for all.
    pub block_mask_stride: [i64; 3],
    /// Query rows of a block; at least 1. Block 0 begins with row 0 of each sequence.
    pub block_mask_q: i64,
    /// Keys of a block; at least 1. Block 0 begins with key 0 of each sequence.
    pub block_mask_kv: i64,
    /// Ragged queries: NULL, or [batch + 1]. q, o and lse then have the rows of all sequences one
    /// after another. Those of sequence b are rows cu_len_q[b] to cu_len_q[b + 1] - 1. The stride
    /// between batch entries is not used. Not negative, not decreasing.
    pub cu_len_q: *const i32,
    /// Ragged keys: NULL, or [batch + 1]. k and v then have the keys of all sequences one after
    /// another. Those of sequence b are rows cu_len_kv[b] to cu_len_kv[b + 1] - 1. Not negative,
    /// not decreasing.
    pub cu_len_kv: *const i32,
    /// NULL, or [batch]: how many keys of each sequence are in use, counted from its first one. The
    /// others are never read.
    pub kv_lens: *const i32,
    /// NULL, or the page table of paged keys. k and v are then
    /// [num_pages][heads_kv][page_size][dim], and stride[0] is the one between pages. Key j of a
    /// sequence is token j % page_size of the page that is number j / page_size in the sequence's
    /// list. The lists are [batch][table_stride], or one after another with block_table_start.
    /// Pages in use must be below num_pages; entries that no key needs are not read. cu_len_kv must
    /// be NULL. Strides decide whether memory is [page][token][head][dim] or
    /// [page][head][token][dim].
    pub block_table: *const i32,
    /// NULL, or [batch + 1]: the list of sequence b is block_table[block_table_start[b]] to
    /// block_table[block_table_start[b + 1] - 1].
    pub block_table_start: *const i32,
    /// Entries from the list of one sequence to the list of the next. Not used with
    /// block_table_start.
    pub table_stride: i64,
    /// Tokens of a page; at least 1. With 1 the table is one of token slots.
    pub page_size: i64,
    /// Pages of k and v.
    pub num_pages: i64,
    /// NULL, or an output: the natural logarithm of each row's sum of exponentials, -infinity for a
    /// row that sees no key. Results over different keys can be merged with it: fa_merge, which
    /// needs the rows of lse in the order of the rows of the output (for an output
    /// [token][head][dim]: lse_stride {.., 1, heads_q}).
    pub lse: *mut f32,
    /// ELEMENTS from one batch entry of lse to the next (not with cu_len_q), one head to the next,
    /// one query row to the next.
    pub lse_stride: [i64; 3],
    /// Query rows of a tile; 0 = chosen from this machine's caches. Results do not depend on it.
    pub block_q: i64,
    /// Keys of a tile; 0 = chosen from this machine's caches. Different values give results that
    /// differ within rounding.
    pub block_kv: i64,
    /// NULL, or [batch]: the key position of query row 0 of each sequence, in place of q_pos, which
    /// must then be FA_POS_END (as fa_attention_init leaves it) or 0. Any numbers, as for q_pos.
    /// For sequences with different pasts in a right-padded batch.
    pub q_positions: *const i32,
    /// NULL, or [batch]: the first visible key of each sequence, 0 to its number of keys. Keys
    /// before it are hidden, and their content does not matter. Pages that have only such keys are
    /// not looked up. Positions still count from key 0. For left padding, and for caches that have
    /// dropped their oldest keys.
    pub kv_starts: *const i32,
    /// How many keys of each sequence, from kv_starts on, window_left does not hide: a row at
    /// position p sees key j if j <= p + window_right and either j >= p - window_left or j <
    /// kv_starts + prefix_keys (StreamingLLM, arXiv:2309.17453). 0 = off. Has no effect without
    /// window_left.
    pub prefix_keys: i64,
    /// NULL, or spans of keys that see each other both ways, whatever the windows are (images
    /// within a causal text; the prompt of a prefix language model). A span is two key positions:
    /// its first key, and the key after its last one. Spans are ascending and disjoint in each
    /// sequence. A row whose position is in a span sees all keys of that span, besides the keys in
    /// its windows. kv_lens, kv_starts, mask, block_mask and kept_blocks hide keys of spans, too.
    pub spans: *const i32,
    /// [batch + 1]; NULL without spans. The spans of sequence b are spans[2 * span_starts[b]] to
    /// spans[2 * span_starts[b + 1] - 1]. Not negative, not decreasing.
    pub span_starts: *const i32,
    /// data = NULL, or an output: probabilities, FA_DTYPE_F32, [batch][num_weight_heads]
    /// [num_weight_rows], each row with one element for each of len_kv keys: exp(t_j) / Z. So a row
    /// sums to 1 minus the sink's part. 0 for keys that the row does not see, and for those from
    /// the sequence's own length on. If NaN or infinite scores make o NaN, the weights of all
    /// visible keys are NaN. These probabilities are not rounded, unlike those that values are
    /// multiplied by (FA_PRECISE). For word time stamps, and to inspect a model. They need no other
    /// memory: the scores of a row are kept here until it is finished. In ragged batches, too, row
    /// i of entry b is for row i of sequence b; rows that a sequence does not have are not written.
    /// Its rows must not overlap each other. The memory from its first row to its last row must not
    /// overlap an input or another output.
    pub weights: fa_tensor,
    /// NULL = all query heads, or [num_weight_heads]: the query heads whose probabilities are
    /// wanted, ascending.
    pub weight_heads: *const i32,
    /// Entries of weight_heads, at least 1. Without weight_heads: 0 or heads_q.
    pub num_weight_heads: i64,
    /// NULL = all of len_q query rows, or [num_weight_rows]: the query rows of each sequence whose
    /// probabilities are wanted, ascending. Either all are at least 0, or all are negative:
    /// negative ones count from the sequence's end, so -1 is the last row of each sequence.
    pub weight_rows: *const i32,
    /// Entries of weight_rows, at least 1. Without weight_rows: 0 or len_q.
    pub num_weight_rows: i64,
    /// NULL, or block-sparse attention by lists (BSR: block compressed sparse rows): the blocks of
    /// keys that each block of query rows sees, as far as nothing else hides them. Time is in
    /// proportion to what is listed. Not together with block_mask. Query rows i of head h of
    /// sequence b see the blocks kept_blocks[kept_start[r]] to kept_blocks[kept_start[r + 1] - 1],
    /// where r = b * kept_stride[0] + h / (heads_q / kept_heads) * kept_stride[1] + i / kept_q. So
    /// each head has a number for each block of len_q rows, and one more. Not negative, and not
    /// decreasing within a head.
    pub kept_start: *const i32,
    /// Blocks of keys, by number: block n has keys n * kept_kv to n * kept_kv + kept_kv - 1. In
    /// each list ascending, each once, 0 to (len_kv - 1) / kept_kv. Lists may share entries. May be
    /// NULL if all lists are empty.
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
    /// With block_table: entries from the list of one kv head of a sequence to that of the next; 0
    /// = all kv heads have the same list. So each kv head reads pages of its own, those that were
    /// selected for it (Quest, arXiv:2406.10774), as many as the others do. Lists of all kv heads
    /// lie within the table_stride entries of their sequence, or between its block_table_start and
    /// the next. Keys count within a list: key j is token j % page_size of entry j / page_size, and
    /// positions, windows and masks count so, too.
    pub table_head_stride: i64,
    /// NULL, or single keys that all query rows of a head see, besides those in their windows and
    /// blocks (the vertical lines of MInference, arXiv:2407.02490; global or boundary tokens): head
    /// h of sequence b has the keys columns[column_start[r]] to columns[column_start[r + 1] - 1],
    /// where r = b * column_stride[0] + h / (heads_q / column_heads) * column_stride[1]. So each
    /// head with a list has two entries, and lists behind one another may share them (stride 1). A
    /// row sees a listed key if it is before the right end of the row's window (with a causal
    /// window: not behind the row) or in its span, and kv_lens and kv_starts do not hide it;
    /// window_left, block_mask and kept_blocks do not. Time is in proportion to what is listed. Not
    /// together with mask, alibi_slopes or weights.
    pub column_start: *const i32,
    /// Keys, in each list ascending, each once, 0 to len_kv - 1. Lists may share entries. May be
    /// NULL if all lists are empty.
    pub columns: *const i32,
    /// ENTRIES of column_start from one sequence to the next, and from one head with a list to the
    /// next; 0 = the same list for all.
    pub column_stride: [i64; 2],
    /// Heads that have lists of their own: heads_q, heads_kv (then the query heads of a kv head
    /// share them, and are computed together), or another divisor of heads_q. 0 = heads_q.
    pub column_heads: i64,
    /// BYTES of memory at q.data; 0 = unknown. If it is known here or in the next six fields, every
    /// call refuses a description by which the tensor takes more: FA_ERR_SHAPE. What a tensor takes
    /// goes from its first to its last element by sizes, strides and type: all of len_q or len_kv
    /// tokens (of ragged rows: those of the lists; of pages: num_pages whole pages), whatever
    /// kv_lens are. So a forgotten type, a wrong number of heads, and pages that are not there do
    /// not lead out of the memory.
    pub q_bytes: i64,
    /// BYTES of memory at k.data; 0 = unknown. fa_cache_append checks it, too.
    pub k_bytes: i64,
    /// BYTES of memory at v.data; 0 = unknown. fa_cache_append checks it, too.
    pub v_bytes: i64,
    /// BYTES of memory at o.data; 0 = unknown.
    pub o_bytes: i64,
    /// BYTES of memory at mask.data; 0 = unknown.
    pub mask_bytes: i64,
    /// BYTES (not elements) of memory at lse; 0 = unknown.
    pub lse_bytes: i64,
    /// BYTES of memory at weights.data; 0 = unknown.
    pub weights_bytes: i64,
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
        abi::check_size::<fa_attention>(abi::STRUCT_SIZE, struct_size)?;
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
    column_start: ptr::null(),
    columns: ptr::null(),
    column_stride: [0; 2],
    column_heads: 0,
    table_head_stride: 0,
    q_bytes: 0,
    k_bytes: 0,
    v_bytes: 0,
    o_bytes: 0,
    mask_bytes: 0,
    lse_bytes: 0,
    weights_bytes: 0,
};
