/**
 * @file
 * Exact attention on CPUs.
 *
 *     out = softmax(softmax_scale * q * k^T) * v
 *
 * computed tile by tile with an online softmax (arXiv:1805.02867, arXiv:2205.14135), so that the
 * seq_len_q x seq_len_kv matrix of scores never exists.
 *
 *     fa_config cfg;
 *     fa_config_auto(&cfg, 64);
 *     cfg.causal = true;
 *     fa_status status = fa_mha(&cfg, q, k, v, num_heads, seq_len, seq_len, out);
 *     if (status != FA_OK) puts(fa_status_string(status));
 *
 * Everything else (strides, grouped heads, masks, pages, ragged batches, threads of your own) is
 * one description:
 *
 *     fa_attention a;
 *     fa_attention_init(&a, sizeof a);
 *     a.batch = 1, a.heads_q = 32, a.heads_kv = 8, a.len_q = a.len_kv = n, a.dim_qk = a.dim_v = 64;
 *     // Strides in bytes, of [token][head][dim].
 *     a.q.data = q, a.q.stride[1] = 64 * 4, a.q.stride[2] = 32 * 64 * 4;
 *     ...                                       // a.k, a.v, a.o alike
 *     a.window_right = 0;                       // causal
 *     fa_attention_workspace(&a, 1, &bytes);
 *     status = fa_attention_run(&a, malloc(bytes), bytes, NULL);
 *
 * @par Sizes
 * Sizes count elements, never bytes, unless a name or a comment says bytes. Arrays of the functions
 * that take no description are dense and row-major: the last size given is the contiguous one.
 * Nothing needs an alignment, unless a function says so.
 *
 * @par Threads
 * Every function may be called from any number of threads at once. Inputs may be shared between
 * calls; an output belongs to one call until it returns. No pointer is kept after a call.
 *
 * @par Errors
 * A function that returns fa_status never aborts, never writes to stdout or stderr, and on errors
 * leaves its outputs as they were (FA_ERR_INTERNAL excepted). Arguments are checked before anything
 * is computed; which of several errors is reported is not promised. What cannot be checked is
 * whether a pointer that is not NULL leads to memory of the size that the other arguments say.
 *
 * @par Same bits
 * With one version of the library, one instruction set and one size of blocks of keys
 * (block_size_kv, block_kv), a row of an output depends on nothing but its own query, the keys and
 * values that it sees, their number and position, what changes their scores, and the number of
 * query rows of its sequence, which decides whether rows are computed in the way that suits few of
 * them or in the one that suits many: not on threads, pools or parts, block_size_q, strides or
 * pages, other heads and sequences, what is in other rows, or chance. Between instruction sets,
 * block sizes and versions results differ within rounding; do not compare them with stored bits.
 * (Those of fa_forward_q15 and fa_mha_q15, which compute in integers, are the same everywhere.)
 *
 * @par Floating-point environment
 * On x86-64 all threads compute in the default one (round to nearest, subnormal numbers are
 * numbers, nothing traps), whatever MXCSR of the caller is, and the caller finds its own as it was,
 * exception flags included. So FTZ and DAZ change no bit of a result. Functions of a caller's pool
 * are called in the caller's environment, tasks may be called in any; threads of the library's have
 * the default one. On other machines the caller must have set the default one.
 *
 * @par Signals
 * Handlers may interrupt any call; its result does not change. They must not call the library, nor
 * leave a call by longjmp. The library's threads have the signal mask of the thread whose call
 * makes them, as all new threads do: block signals around that call, or around fa_pool_create, to
 * keep handlers off them.
 *
 * @par Copies
 * Two copies of the library in one process (two files, or a static and a shared one) do not know of
 * each other; each has its own threads, and its own fa_limit_isa.
 *
 * @par Processes and loading
 * The library works in a child process after fork(), whatever the parent's threads were doing: a
 * child makes threads of its own when it first needs some (one that was forked in the middle of the
 * parent's first call with several threads computes on the calling thread alone). The shared
 * library creates nothing when it is loaded. It stays mapped after dlclose(), with its threads:
 * loading it again is the same copy.
 *
 * @par Environment variables
 * FA_MAX_ISA, read once; see fa_limit_isa. Nothing else.
 */


#ifndef FLASH_ATTENTION_H
#define FLASH_ATTENTION_H

/* Generated from src/capi; do not edit. FA_BLESS=1 cargo test --test header */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/**
 * fa_attention.q_pos: the last query row of each sequence is on its last key, q_pos = number of
 * keys - number of query rows. It may come out negative: the rows before key 0 are then at no key.
 */
#define FA_POS_END INT64_MIN

/**
 * fa_attention.window_left, window_right: no limit.
 */
#define FA_NO_LIMIT -1

/**
 * fa_attention.flags: slopes are multiplied by the mask, which holds distances (as in ggml, whose
 * mask is -|p - j|), in place of -|p - j|.
 */
#define FA_MASK_TIMES_SLOPE 1

/**
 * fa_attention.flags: more accurate than by default. K and V of bf16, and in blocks, are not
 * multiplied as they are stored, but become f32 a block at a time.
 *
 * By default, with neither FA_PRECISE nor FA_FAST, queries and probabilities are rounded no
 * further than storing K and V in their types has rounded these. Errors below are relative RMS
 * errors against exact attention on the stored numbers, of normal data and of rows with attention
 * sinks (a few keys that have up to 99.9 % of a row's probability, and values near 0).
 *
 * - K and V bf16: multiplied as bf16 if the machine can (fa_isa "avx512bf16" or "neon-bf16") and
 *   is faster at it than at f32 (AMD's and Arm's are, Intel's are not, and only do it if
 *   fa_limit_isa or FA_MAX_ISA names "avx512bf16"), queries that are not bf16 and probabilities
 *   rounded to bf16: error below 3e-3, with sinks 5e-2. With FA_PRECISE f32 computes: 1e-6, at
 *   half the speed.
 * - K and V i8 or u8, K with scales and zeros a head, a token or a channel, V a head or a channel
 *   (see fa_quant): multiplied as integers of 16 bits on x86-64, and in few query rows (decode)
 *   with "neon-dotprod" and "neon-i8mm". Queries, times the scales of K's channels, are quantised,
 *   each row with a scale of its own, unless they are i8 with one scale a row or fewer, and K has
 *   no scales of channels; probabilities have 15 bits, relative to a reference that few keys
 *   exceed, and what exceeds it is added in f32: error below 5e-4. With other scales, and on other
 *   machines, f32 computes. FA_PRECISE changes nothing.
 * - K and V in blocks (Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, the same or not): with "avx2", or
 *   "avx512vnni" and better, and few query rows (decode) multiplied as integers: queries are
 *   quantised, each row with a scale of its own, to 16 bits, and the products of probabilities and
 *   the scales of V, relative to the largest of a block of elements, are multiples of 1/32767 or
 *   1/32768: error below 3e-4. With FA_PRECISE, and else, f32 computes.
 * - Others: f32 computes.
 */
#define FA_PRECISE 2

/**
 * fa_attention.flags: allows probabilities and queries of 8 bits, for K and V of i8 or u8 with
 * scales as FA_PRECISE says and many query rows (prefill), where fa_isa is "avx512vnni" or better,
 * "avxvnni", "neon-i8mm" or "neon-dotprod": up to twice as fast as by default. Queries that are
 * not i8 are quantised to 8 bits, each row with a scale of its own. Probabilities are multiples of
 * 1/255 of a reference that few keys exceed, and what exceeds it is added in f32. Error: below
 * 2e-2, with sinks 5e-2. Elsewhere the flag changes nothing. Together with FA_PRECISE it is
 * refused: FA_ERR_RESERVED.
 */
#define FA_FAST 4

/**
 * fa_attention.scale, fa_config.softmax_scale: a scale as good as 0, 2 to the power of -100. (0
 * itself is the usual scale.) Keys of dot products below 1e22 weigh exactly alike.
 */
#define FA_SCALE_ZERO 7.888609052210118e-31

/**
 * The binary interface that this header describes; see fa_abi_version.
 */
#define FA_ABI_VERSION 2

/**
 * What a function returns. Values are pinned: none is ever changed or reused, later versions
 * only add some. On every value but FA_OK no output has been written, except where a value says
 * otherwise.
 */
typedef enum fa_status {
  /**
   * Done.
   */
  FA_OK = 0,
  /**
   * A pointer is NULL where data is needed.
   */
  FA_ERR_NULL = 1,
  /**
   * A size that must be at least 1 is 0: head_dim, num_heads, dim_v, page_size and the like.
   */
  FA_ERR_ZERO_EXTENT = 2,
  /**
   * The sizes describe more bytes than an address space holds. fa_forward_q15, fa_mha_q15: more
   * elements of a row, or more keys, than 64 bits hold sums of.
   */
  FA_ERR_OVERFLOW = 3,
  /**
   * softmax_scale is NaN, infinite, or beyond FLT_MAX / log2(e); that of an fa_q15_config is
   * beyond what it says, or scale_shift is.
   */
  FA_ERR_SOFTMAX_SCALE = 4,
  /**
   * A quantisation scale (or zero) that a whole tensor shares is NaN or infinite.
   */
  FA_ERR_QUANT_SCALE = 5,
  /**
   * A reserved field is not 0.
   */
  FA_ERR_RESERVED = 6,
  /**
   * The output shares memory with an input.
   */
  FA_ERR_OVERLAP = 7,
  /**
   * Not a value of fa_dtype, or not a type that the function takes.
   */
  FA_ERR_DTYPE = 8,
  /**
   * fa_limit_isa or the environment variable FA_MAX_ISA names an instruction set that this
   * build does not know.
   */
  FA_ERR_ISA = 9,
  /**
   * Scratch memory could not be allocated.
   */
  FA_ERR_MEMORY = 10,
  /**
   * The library broke one of its own rules; please report it. Outputs may be partly written.
   */
  FA_ERR_INTERNAL = 11,
  /**
   * Tensors disagree about a size that they share, a size is negative, or heads_q is no multiple
   * of heads_kv.
   */
  FA_ERR_SHAPE = 12,
  /**
   * A stride is unusable: negative, no multiple of the element size, or so small that rows of an
   * output would overlap. fa_merge: an address that is no multiple of 4; fa_forward_q15,
   * fa_mha_q15: of 2.
   */
  FA_ERR_STRIDE = 13,
  /**
   * cu_len_q, cu_len_kv, block_table_start or span_starts decreases or is negative, kv_lens or
   * kv_starts is negative, a sequence is longer than len_q, len_kv or its pages, or begins
   * behind its last key, spans are negative or out of order, or weight_heads or weight_rows name
   * what there is not, or are out of order. fa_cache_append: the position of a new token is that
   * of no key in use.
   */
  FA_ERR_LENGTHS = 14,
  /**
   * struct_size is not that of any version up to this one, or what lies beyond the fields that
   * this version knows is not 0.
   */
  FA_ERR_STRUCT_SIZE = 15,
  /**
   * Reserved for what a later version may allow: no function of this version returns it.
   */
  FA_ERR_UNSUPPORTED = 16,
  /**
   * The workspace is NULL or smaller than fa_attention_workspace asks for.
   */
  FA_ERR_WORKSPACE = 17,
  /**
   * Not 0 <= part < n_parts, or n_parts is out of range.
   */
  FA_ERR_PART = 18,
  /**
   * A window is negative and not FA_NO_LIMIT.
   */
  FA_ERR_WINDOW = 19,
  /**
   * softcap is negative, infinite or NaN.
   */
  FA_ERR_SOFTCAP = 20,
  /**
   * A page in use is not one of num_pages.
   */
  FA_ERR_PAGE = 21,
} fa_status;

/**
 * Storage types. Later versions add values.
 */
typedef enum fa_dtype {
  /**
   * IEEE 754 binary32.
   */
  FA_DTYPE_F32 = 0,
  /**
   * IEEE 754 binary16.
   */
  FA_DTYPE_F16 = 1,
  /**
   * bfloat16: the upper half of a binary32.
   */
  FA_DTYPE_BF16 = 2,
  /**
   * Signed 8-bit integer, standing for what fa_quant says, or for itself.
   */
  FA_DTYPE_I8 = 3,
  /**
   * Blocks of 32 elements in 34 bytes, as in ggml: a binary16 scale, then 32 signed 8-bit
   * integers that it is multiplied with. Rows have whole blocks: dim is a multiple of 32.
   */
  FA_DTYPE_Q8_0 = 4,
  /**
   * Masks only: a byte, nonzero = attend.
   */
  FA_DTYPE_BOOL8 = 5,
  /**
   * Blocks of 32 elements in 18 bytes, as in ggml, and as all below: a binary16 scale d, then 16
   * bytes. The low nibble n of byte i is element i, the high one element i + 16; an element is
   * d * (n - 8).
   */
  FA_DTYPE_Q4_0 = 6,
  /**
   * In 20 bytes: d, a binary16 minimum m, then 16 bytes of nibbles; an element is d * n + m.
   */
  FA_DTYPE_Q4_1 = 7,
  /**
   * In 22 bytes: d, 32 bits (the first is the lowest of the first byte), then 16 bytes of
   * nibbles. Bit i is the fifth, the highest, of the code n of element i, which is
   * d * (n - 16).
   */
  FA_DTYPE_Q5_0 = 8,
  /**
   * In 24 bytes: d, m, 32 bits, 16 bytes of nibbles; an element is d * n + m.
   */
  FA_DTYPE_Q5_1 = 9,
  /**
   * In 18 bytes, as Q4_0; an element is d times the nth of -127, -104, -83, -65, -49, -35, -22,
   * -10, 1, 13, 25, 38, 53, 69, 89, 113.
   */
  FA_DTYPE_IQ4_NL = 10,
  /**
   * Floating-point number of 8 bits: sign, 4 bits of exponent with bias 7, 3 of mantissa; the
   * variant of machine learning ("E4M3FN"), without infinities, whose largest number is 448. All
   * bits but the sign are 1 in a NaN. It may have scales (fa_quant).
   */
  FA_DTYPE_F8_E4M3 = 11,
  /**
   * Floating-point number of 8 bits: sign, 5 bits of exponent with bias 15, 2 of mantissa, with
   * infinities and NaN as in IEEE 754: the upper half of a binary16. The largest number is
   * 57344. It may have scales (fa_quant).
   */
  FA_DTYPE_F8_E5M2 = 12,
  /**
   * Unsigned 8-bit integer, standing for what fa_quant says, or for itself.
   */
  FA_DTYPE_U8 = 13,
} fa_dtype;

/**
 * How elements of 8 bits become numbers: x = (stored - zero) * scale. Integers may have zeros,
 * floating-point numbers have none (zero is NULL, else FA_ERR_DTYPE).
 *
 * Scale and zero of element d of token t of head h of batch entry (or page) b are at
 * b * stride[0] + h * stride[1] + (t / group_tokens) * stride[2] + (d / group_dims) * stride[3].
 * So one scale for the whole tensor is all strides 0; one for each head, token or channel has a
 * stride there; blocks of tokens and groups of channels have a group of more than 1. Of a paged
 * tensor t counts within the page; of packed ragged rows t is the row, and b is 0.
 *
 * fa_quantize_i8, fa_quantize and, those of single tokens, fa_cache_append find and write scales
 * and zeros; every other function reads them.
 *
 * What is fast, of integers, signed or unsigned: scales and zeros that leave the sums over
 * elements and keys, so that integers are multiplied as integers (see FA_PRECISE): those of K a
 * head, a token or a channel, and those of V a head or a channel (or group of channels) that all
 * tokens share. With V's a token f32 computes: of few query rows (decode) from the bytes as they
 * are read, about twice as fast as from f32 in memory. All else becomes f32 a block at a time, at
 * the speed of f32 within a tenth: scales that change from token to token and within a row, and
 * V's a token with many query rows. (Half to three quarters of that speed: a token and groups of
 * 3, 5, 6, 7 or 9 to 15 channels, or of 1, 2, 4 or 8 with a stride[3] other than 1.)
 * Floating-point numbers of 8 bits become f16, a few keys at a time, and f32 computes.
 *
 * A scale (or zero) shared by a whole tensor must be finite: FA_ERR_QUANT_SCALE. Others are data:
 * one that is NaN or infinite makes its elements so.
 */
typedef struct fa_quant {
  /**
   * NULL = 1. Needs no alignment.
   */
  const float *scale;
  /**
   * NULL = 0. Needs no alignment.
   */
  const float *zero;
  /**
   * Values from one batch entry (or page), head, group of tokens, group of channels to the next;
   * not negative; 0 = the same for all.
   */
  int64_t stride[4];
  /**
   * Tokens that share a value; at least 1, or anything where stride[2] is 0.
   */
  int32_t group_tokens;
  /**
   * Channels (elements of a row) that share a value; at least 1, or anything where stride[3] is
   * 0.
   */
  int32_t group_dims;
} fa_quant;

/**
 * A tensor [batch][head][token][dim] in the caller's memory. Everything has a stride, so dense,
 * interleaved, packed, broadcast and, for k and v, transposed layouts are all this.
 */
typedef struct fa_tensor {
  /**
   * The first element of row [0][0][0]. Needs no alignment. NULL is fine if there is no element,
   * and means "none" where a tensor is optional.
   */
  void *data;
  /**
   * BYTES from one batch entry to the next, from one head to the next, from one token to the
   * next: not negative, a multiple of the element size (of 2 for types in blocks). 0 repeats the
   * same data (inputs only); the stride of an axis of extent 1 does not matter. (Strides of an
   * input that count elements by mistake are legal and give nonsense.)
   */
  int64_t stride[3];
  /**
   * A value of fa_dtype.
   */
  int32_t dtype;
  /**
   * BYTES from one element of a row to the next; 0 = the element size: they are contiguous. For
   * k and v of fa_attention also another multiple of the element size: a cache
   * [head][dim][token] of f16 has stride[2] = 2 and stride_dim = 2 * tokens. Such rows are
   * gathered in scratch memory, a block of keys at a time; results have the same bits. All other
   * tensors, and all of types in blocks, are contiguous: FA_ERR_STRIDE.
   */
  int32_t stride_dim;
  /**
   * For FA_DTYPE_I8, _U8, _F8_E4M3 and _F8_E5M2: how the elements become numbers, NULL = they
   * are the numbers. Else NULL.
   */
  const struct fa_quant *quant;
} fa_tensor;

/**
 * Attention in general: dense, interleaved, broadcast, ragged or paged tensors, grouped heads,
 * positions and windows, masks of all kinds, log-sum-exp. One description serves
 * fa_attention_check, _workspace, _run, _part and _finish.
 *
 * For query row i of a sequence, at key position p = q_pos + i (or q_positions), over the keys j
 * that it sees. Terms of options that are off drop out:
 *
 * ~~~text
 *   s_j = scale * sum_d q[i][d] * k[j][d]
 *   t_j = softcap * tanh(s_j / softcap) - slope * |p - j| + mask[i][j]
 *   Z = sum_j exp(t_j) + exp(sink)
 *   o[i] = sum_j exp(t_j) * v[j] / Z                   lse[i] = log Z
 * ~~~
 *
 * A key that windows, kv_lens, kv_starts, mask or block_mask hide from a row has no influence on
 * it, even if it is NaN. A NaN that a row sees gives NaN in that row only. A row that sees no key
 * is zeros, and its lse -infinity.
 *
 * Fill it with fa_attention_init, then set what you need. Fields are only ever appended. Inputs
 * are never written. Strides of tensors are in bytes, those of plain arrays (lse, alibi_slopes) in
 * elements.
 *
 * Bits: as said at the top of this header; block_kv stands for block_size_kv there, and where it
 * is 0 the size is chosen from head dimensions, caches, block_mask_kv and the instruction set.
 * Ragged, paged and dense keys, copies or views, alone or in a batch, give the same bits.
 */
typedef struct fa_attention {
  /**
   * sizeof(fa_attention), set by fa_attention_init.
   */
  size_t struct_size;
  /**
   * FA_MASK_TIMES_SLOPE, and FA_PRECISE or FA_FAST; or 0.
   */
  uint32_t flags;
  /**
   * 0.
   */
  uint32_t reserved0;
  /**
   * Sequences. 0 does nothing.
   */
  int64_t batch;
  /**
   * Heads of q and o; a multiple of heads_kv. Query head h uses kv head
   * h / (heads_q / heads_kv).
   */
  int64_t heads_q;
  /**
   * Heads of k and v; at least 1.
   */
  int64_t heads_kv;
  /**
   * Query rows of a sequence. 0 does nothing. With cu_len_q: at least those of the longest
   * sequence.
   */
  int64_t len_q;
  /**
   * Keys of a sequence. 0 gives rows that see nothing. With cu_len_kv or kv_lens: at least those
   * of the longest.
   */
  int64_t len_kv;
  /**
   * Elements of a row of q and k; at least 1.
   */
  int64_t dim_qk;
  /**
   * Elements of a row of v and o; at least 1. Independent of dim_qk.
   */
  int64_t dim_v;
  /**
   * Queries [batch][heads_q][len_q][dim_qk]; any type but FA_DTYPE_BOOL8, whatever k and v
   * are. The order of axes is that of strides, not of memory: [batch][token][head][dim] of
   * f32 is {len_q * heads_q * dim_qk * 4, dim_qk * 4, heads_q * dim_qk * 4}.
   */
  struct fa_tensor q;
  /**
   * Keys [batch][heads_kv][len_kv][dim_qk]; types as for q. What is not f32 becomes f32 a block
   * of keys at a time, in scratch memory, or is multiplied as it is: see FA_PRECISE. Sums and
   * softmax are f32 for every type.
   */
  struct fa_tensor k;
  /**
   * Values [batch][heads_kv][len_kv][dim_v]; types as for q, not necessarily that of k. May be a
   * view of k (multi-head latent attention).
   */
  struct fa_tensor v;
  /**
   * Output [batch][heads_q][len_q][dim_v]; FA_DTYPE_F32, _F16 or _BF16, rounded once from f32,
   * to nearest even. Its rows do not overlap each other, and the memory from its first row to
   * its last that of no input and not lse (rows between those of an input are refused, too).
   * Every row is written completely; what was in it does not matter. Bytes between rows are not
   * touched.
   */
  struct fa_tensor o;
  /**
   * The softmax scale, which every dot product of a query and a key is multiplied by. Finite;
   * may be negative; 0 = 1/sqrt(dim_qk). FA_SCALE_ZERO weighs all keys that a row sees alike.
   */
  float scale;
  /**
   * 0 = off, else the score s = scale * q.k is replaced by softcap * tanh(s / softcap). Finite,
   * not negative.
   */
  float softcap;
  /**
   * Key position of query row 0, one for all sequences: 0 if there is no past, the number of
   * keys that came before, or, where sequences differ, FA_POS_END (or q_positions). Any number,
   * as long as q_pos + len_q is one, too (else FA_ERR_OVERFLOW); only windows and linear biases
   * depend on it.
   */
  int64_t q_pos;
  /**
   * Keys before a query's position that it sees: p - window_left is the first. At least 0, or
   * FA_NO_LIMIT. (A Hugging Face sliding_window of W is window_left = W - 1, window_right = 0.)
   */
  int64_t window_left;
  /**
   * Keys behind a query's position that it sees: p + window_right is the last. At least 0, or
   * FA_NO_LIMIT. Causal attention is window_right = 0.
   */
  int64_t window_right;
  /**
   * data = NULL, or a mask [batch][heads_q][len_q], each row with one element for each of len_kv
   * keys; strides (of batch entry, head and row) of 0 repeat it. FA_DTYPE_F32, _F16, _BF16:
   * added to the scores, after softcap; -infinity hides the key (no other value does, however
   * small). FA_DTYPE_BOOL8: nonzero = the key is seen. Of ragged batches, too, row i of entry b
   * is for row i of sequence b. What windows and kv_lens leave out is not looked at. Keys that
   * it hides from neighbouring rows, as a window would, take no time but that of reading it.
   */
  struct fa_tensor mask;
  /**
   * NULL, or the slope of each query head (ALiBi, arXiv:2108.12409): -slope * |p - j| is added
   * to the score of the query at position p and key j, after softcap. With FA_MASK_TIMES_SLOPE:
   * slope * mask.
   */
  const float *alibi_slopes;
  /**
   * ELEMENTS from the slopes of one sequence to those of the next; 0 = all have the same.
   */
  int64_t alibi_batch_stride;
  /**
   * NULL, or an attention sink for each query head: a logit that takes part in the softmax
   * without a value, so that each sum gets exp(sink) more. Neither scaled nor capped. A row that
   * sees no key is zeros, its lse the sink. Of results to be merged, only one may be computed
   * with it. -infinity = none.
   */
  const float *sinks;
  /**
   * NULL, or block-sparse attention: bytes [batch][heads_q][blocks of query rows][blocks of
   * keys], nonzero = these rows see these keys, as far as nothing else hides them. Blocks
   * without a pair that is seen take no time. The bytes of a row of blocks are contiguous.
   */
  const uint8_t *block_mask;
  /**
   * BYTES from one batch entry to the next, one head to the next, one block of query rows to the
   * next; 0 = the same for all.
   */
  int64_t block_mask_stride[3];
  /**
   * Query rows of a block; at least 1. Block 0 begins with row 0 of each sequence.
   */
  int64_t block_mask_q;
  /**
   * Keys of a block; at least 1. Block 0 begins with key 0 of each sequence.
   */
  int64_t block_mask_kv;
  /**
   * Ragged queries: NULL, or [batch + 1]. q, o and lse then have the rows of all sequences
   * behind one another, those of sequence b from cu_len_q[b] to cu_len_q[b + 1] - 1, and the
   * stride between batch entries does not count. Not negative, not decreasing.
   */
  const int32_t *cu_len_q;
  /**
   * Ragged keys: NULL, or [batch + 1]. k and v then have the keys of all sequences behind one
   * another, those of sequence b from cu_len_kv[b] to cu_len_kv[b + 1] - 1. Not negative, not
   * decreasing.
   */
  const int32_t *cu_len_kv;
  /**
   * NULL, or [batch]: keys of each sequence that are in use, the first ones of those that it
   * has. The others are never read.
   */
  const int32_t *kv_lens;
  /**
   * NULL, or keys in pages: k and v are then [num_pages][heads_kv][page_size][dim], stride[0] is
   * that between pages, and key j of a sequence is token j % page_size of the page that is
   * number j / page_size in its list. Lists are [batch][table_stride], or with block_table_start
   * one behind another. Pages in use are below num_pages; entries that no key needs are not
   * read. cu_len_kv must be NULL. Other strides give [page][token][head][dim] or
   * [page][head][token][dim].
   */
  const int32_t *block_table;
  /**
   * NULL, or [batch + 1]: the list of sequence b is block_table[block_table_start[b]] to
   * block_table[block_table_start[b + 1] - 1].
   */
  const int32_t *block_table_start;
  /**
   * Entries from the list of one sequence to that of the next; not with block_table_start.
   */
  int64_t table_stride;
  /**
   * Tokens of a page; at least 1. 1 makes the table one of token slots.
   */
  int64_t page_size;
  /**
   * Pages of k and v.
   */
  int64_t num_pages;
  /**
   * NULL, or where to put the natural logarithm of each row's sum of exponentials: -infinity for
   * a row that sees no key. With it, results over parts of the keys can be joined: fa_merge,
   * which takes rows in one order (for an output [token][head][dim], lse_stride {.., 1,
   * heads_q}).
   */
  float *lse;
  /**
   * ELEMENTS from one batch entry of lse to the next (not with cu_len_q), one head to the next,
   * one query row to the next.
   */
  int64_t lse_stride[3];
  /**
   * Query rows of a tile; 0 = chosen from this machine's caches. Results do not depend on it.
   */
  int64_t block_q;
  /**
   * Keys of a tile; 0 = chosen from this machine's caches. Results differ between values within
   * rounding.
   */
  int64_t block_kv;
  /**
   * NULL, or [batch]: the key position of query row 0 of each sequence, in place of q_pos, which
   * is then FA_POS_END (as fa_attention_init leaves it) or 0. Any numbers: as for q_pos. For
   * sequences with different pasts in a right-padded batch.
   */
  const int32_t *q_positions;
  /**
   * NULL, or [batch]: the first key of each sequence that any row sees, 0 to its number of keys.
   * Those before it are hidden, and so is what is in them; pages that have no other keys are not
   * looked up. Positions still count from key 0. For left padding, and caches that have dropped
   * their oldest keys.
   */
  const int32_t *kv_starts;
  /**
   * So many keys of each sequence, from kv_starts on, are not hidden by window_left: a row at
   * position p sees key j if j <= p + window_right and either j >= p - window_left or j <
   * kv_starts + prefix_keys (StreamingLLM, arXiv:2309.17453). 0 = off; without window_left
   * nothing is hidden by it.
   */
  int64_t prefix_keys;
  /**
   * NULL, or spans of keys that see each other both ways, whatever the windows (images within a
   * causal text; the prompt of a prefix language model): two key positions each, the first of
   * the span and the one behind its last, ascending and disjoint in each sequence. A row whose
   * position lies in a span sees all keys of that span, besides what the windows leave it.
   * kv_lens, kv_starts, mask and block_mask hide keys of spans, too.
   */
  const int32_t *spans;
  /**
   * [batch + 1], NULL without spans: the spans of sequence b are spans[2 * span_starts[b]] to
   * spans[2 * span_starts[b + 1] - 1]. Not negative, not decreasing.
   */
  const int32_t *span_starts;
  /**
   * data = NULL, or where to put probabilities, FA_DTYPE_F32, [batch][num_weight_heads]
   * [num_weight_rows], each row with one element for each of len_kv keys: exp(t_j) / Z, so that
   * a row sums to 1 less the sink's part. 0 for keys that the row does not see, and for those
   * from the sequence's own length on; NaN for those that it sees where o is NaN for NaN or
   * infinite scores. Not rounded as FA_PRECISE says of those that values are multiplied by. For
   * word time stamps, and to look into a model. They cost no memory beside this: until a row is
   * finished its scores stand here. Of ragged batches, too, row i of entry b is for row i of
   * sequence b; rows that a sequence does not have are not written. Rows do not overlap each
   * other, and the memory from the first to the last that of no input or other output.
   */
  struct fa_tensor weights;
  /**
   * NULL = all query heads, or [num_weight_heads]: the query heads whose probabilities are
   * wanted, ascending.
   */
  const int32_t *weight_heads;
  /**
   * Entries of weight_heads, at least 1; without it 0 or heads_q.
   */
  int64_t num_weight_heads;
  /**
   * NULL = all of len_q query rows, or [num_weight_rows]: the query rows of each sequence whose
   * probabilities are wanted, ascending. Either none is negative, or all are: these count from
   * the sequence's end, so that -1 is the last row of each.
   */
  const int32_t *weight_rows;
  /**
   * Entries of weight_rows, at least 1; without it 0 or len_q.
   */
  int64_t num_weight_rows;
} fa_attention;

/**
 * How fa_forward_f32, fa_forward_i8 and fa_mha compute. Frozen: this struct never changes.
 * Fill all fields, or let a constructor fill them and change what you like.
 */
typedef struct fa_config {
  /**
   * Query rows per tile; 0 = chosen from this machine's caches. Any value is honoured; results
   * do not depend on it.
   */
  size_t block_size_q;
  /**
   * Keys per tile; 0 = chosen from this machine's caches. Any value is honoured; results differ
   * between values within rounding. Fix it to get the same bits on machines of different cache
   * sizes (and the same instruction set).
   */
  size_t block_size_kv;
  /**
   * Elements of one row of query, key, value and output; at least 1.
   */
  size_t head_dim;
  /**
   * Key j is visible to query i if and only if j <= i + (seq_len_kv - seq_len_q): the last
   * query sees all keys. A query that sees no key has an output of zeros. false: every query
   * sees every key.
   */
  bool causal;
  /**
   * The softmax scale, which every dot product of a query and a key is multiplied by. Finite;
   * may be negative; 0 = 1/sqrt(head_dim). FA_SCALE_ZERO weighs all keys that a row sees alike.
   */
  float softmax_scale;
  /**
   * Threads that compute at the same time, at most: 1 = only the calling thread, 0 = one per
   * core that the process may use (CPU affinity and control groups count, as the first call
   * finds them that has to know). The calling thread is one of them; the others belong to a
   * pool of the library's own, which the first call that needs it creates and which stays.
   * Small problems use fewer, none more than 256; where threads cannot be created, fewer work.
   * Results are the same bits for every value.
   */
  uint32_t num_threads;
  /**
   * 0.
   */
  uint32_t reserved;
} fa_config;

/**
 * How fa_forward_q15 and fa_mha_q15 compute. Fill it with zeros, then struct_size, head_dim and
 * what you like. Later versions may append fields.
 */
typedef struct fa_q15_config {
  /**
   * sizeof(fa_q15_config).
   */
  size_t struct_size;
  /**
   * Elements of one row of query, key, value and output; 1 to 65,536.
   */
  size_t head_dim;
  /**
   * The softmax scale is scale_mantissa / 2^scale_shift; 0 = 1/sqrt(head_dim). May be negative.
   * Its size is at most 2^18 divided by head_dim, rounded up to a power of two (so 4096 for 64
   * elements): larger ones would cost accuracy.
   */
  int32_t scale_mantissa;
  /**
   * 0 to 63.
   */
  int32_t scale_shift;
  /**
   * Not 0: key j is visible to query i if and only if j <= i + (seq_len_kv - seq_len_q), as in
   * fa_config. 0: every query sees every key.
   */
  uint32_t causal;
  /**
   * As in fa_config: 1 = only the calling thread, 0 = one per core.
   */
  uint32_t num_threads;
} fa_q15_config;

/**
 * One call of a task.
 */
typedef void (*fa_task)(void *arg, size_t i);

/**
 * The caller's threads: two functions that ONNX Runtime's ParallelFor, pthreadpool, TBB, OpenMP,
 * libdispatch and the like can implement in a few lines. Both return normally: no exception and no
 * longjmp may leave them.
 */
typedef struct fa_pool {
  /**
   * sizeof(fa_pool). A later version's larger structure is fine if what this one does not know
   * is 0.
   */
  size_t struct_size;
  /**
   * Passed to both functions.
   */
  void *ctx;
  /**
   * How many threads compute at the same time, the calling one included; held to 1 to 256.
   * NULL = 1.
   */
  int32_t (*width)(void *ctx);
  /**
   * Calls task(arg, i) once for each i below n, in any order, at the same time or one after
   * another, on any threads (the calling one among them or not), and returns when all calls have
   * returned. Which thread makes which call does not matter; tasks never wait for each other.
   * NULL = the calling thread makes the calls.
   *
   * A pool that breaks this contract only loses time. If it leaves out a call, other tasks or
   * the calling thread do the work. A call that it makes twice, or with an i beyond n, finds
   * nothing to do. Calls that still run when it returns are waited for; later ones do nothing.
   * No thread may be ended in a task, nor leave it, parallel_for or width by longjmp or an
   * exception. If more than 256 calls use pools at the same time, the others use the calling
   * thread alone.
   */
  void (*parallel_for)(void *ctx, size_t n, fa_task task, void *arg);
} fa_pool;





#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Writes the keys and values of new tokens into a cache, dense, ragged or paged, in the types that
 * it has: they are rounded, or quantised, as fa_quantize says.
 *
 * The description is that of the attention which follows: its query rows are the new tokens, and
 * the key position of a row (FA_POS_END, q_pos or q_positions) is where its key and value go. So
 * the same a, with kv_lens that already count the new tokens, serves this call and then
 * fa_attention_run. Looked at are batch, heads_kv, len_q, len_kv, dim_qk, dim_v, k, v, q_pos,
 * q_positions, cu_len_q, cu_len_kv, kv_lens, kv_starts, spans and the page table; everything else
 * may be as fa_attention_init leaves it. Tokens whose position is not one of the keys in use of
 * their sequence are refused.
 *
 * A cache of elements of 8 bits: where each token has scales of its own (quant->stride[2] is not 0
 * and group_tokens is 1, and stride[0] is not 0 where there are several batch entries or pages)
 * these, and zeros if there are any, are found and written as by fa_quantize: OUTPUTS. Scales that
 * tokens share, and a scale that is NULL, are given: an element becomes x / scale + zero, rounded
 * to nearest even; of integers what is beyond becomes the least or the largest, and NaN 0; of
 * floating-point numbers as fa_quantize says.
 *
 * @param[in] a        not NULL; the rows of a->k and a->v that the new tokens have are OUTPUTS
 * @param[in] new_k    NULL = no keys are written; or [batch][heads_kv][len_q][dim_qk], with
 *                     cu_len_q the rows of all sequences behind one another, as in q;
 *                     FA_DTYPE_F32, _F16 or _BF16
 * @param[in] new_v    NULL = no values are written (where v is a view of k); or
 *                     [batch][heads_kv][len_q][dim_v], likewise
 * @param[out] why     NULL, or room for why_size bytes: a sentence in English that says what was
 *                     refused, empty if nothing was, ended by a zero byte
 * @param why_size     bytes at why
 * @return FA_OK; FA_ERR_NULL; FA_ERR_STRUCT_SIZE; FA_ERR_RESERVED; FA_ERR_SHAPE;
 *         FA_ERR_ZERO_EXTENT; FA_ERR_DTYPE; FA_ERR_STRIDE (also a stride_dim of k or v: rows of a
 *         cache that is written are contiguous; and tokens of k or v that overlap each other);
 *         FA_ERR_OVERFLOW; FA_ERR_LENGTHS (a list, or a position that is no key in use);
 *         FA_ERR_PAGE; FA_ERR_QUANT_SCALE; FA_ERR_ISA; FA_ERR_OVERLAP (what is written shares
 *         memory with new_k, new_v, scales that are given, a list, or its own scales, or k and v,
 *         or their scales, begin at the same place; what lies between the first and the last byte
 *         of a tensor belongs to it). On errors nothing has been written but why.
 *
 * Not told: whether two sequences have the same page. A page that is written must be in one list,
 * once. Bytes of the cache that no new token has are neither read nor written.
 *
 * Computes on the calling thread and allocates nothing. Thread-safe: several threads may write at
 * once what no two of them have, as keys and values (one of them NULL), sequences or heads. Others
 * may attend meanwhile to keys of the same cache that are written: of keys that are not in use
 * (kv_lens), attention reads neither the bytes nor scales of their own.
 */
enum fa_status fa_cache_append(const struct fa_attention *a,
                               const struct fa_tensor *new_k,
                               const struct fa_tensor *new_v,
                               char *why,
                               size_t why_size);

/**
 * Sets struct_size, q_pos = FA_POS_END, both windows to FA_NO_LIMIT, and everything else to 0.
 *
 * @param[out] a       not NULL
 * @param struct_size  sizeof(fa_attention)
 * @return FA_OK; FA_ERR_NULL; FA_ERR_STRUCT_SIZE. *a is untouched on errors.
 *
 * Thread-safe.
 */
enum fa_status fa_attention_init(struct fa_attention *a, size_t struct_size);

/**
 * Fills a configuration: 64 x 64 tiles, not causal, softmax_scale 1/sqrt(head_dim), all cores.
 *
 * @param[out] cfg   not NULL
 * @param head_dim   at least 1
 * @return FA_OK; FA_ERR_NULL; FA_ERR_ZERO_EXTENT. cfg is untouched on errors.
 *
 * Thread-safe.
 */
enum fa_status fa_config_for_head_dim(struct fa_config *cfg, size_t head_dim);

/**
 * As fa_config_for_head_dim, but with tiles of 32 queries x 128 keys: fewer, longer passes over
 * the keys.
 *
 * @param[out] cfg   not NULL
 * @param head_dim   at least 1
 * @return as fa_config_for_head_dim
 *
 * Thread-safe.
 */
enum fa_status fa_config_for_long_sequence(struct fa_config *cfg, size_t head_dim);

/**
 * As fa_config_for_head_dim, but with tile sizes of 0: chosen from this machine's caches at each
 * call. The fastest.
 *
 * @param[out] cfg   not NULL
 * @param head_dim   at least 1
 * @return as fa_config_for_head_dim
 *
 * Thread-safe.
 */
enum fa_status fa_config_auto(struct fa_config *cfg, size_t head_dim);

/**
 * Attention of one head of 16-bit fixed-point numbers, computed in integers alone:
 * out = softmax(scale * q * k^T) * v.
 *
 * @param[in] cfg   not NULL
 * @param[in] q     [seq_len_q][head_dim]
 * @param[in] k     [seq_len_kv][head_dim]
 * @param[in] v     [seq_len_kv][head_dim]
 * @param seq_len_q   rows of q and out; at least 0
 * @param seq_len_kv  rows of k and v; 0 to 2,097,152
 * @param[out] out  [seq_len_q][head_dim]; overlaps no input. Written completely; what was in it
 *                  does not matter.
 * @return FA_OK; FA_ERR_NULL; FA_ERR_STRUCT_SIZE; FA_ERR_ZERO_EXTENT; FA_ERR_OVERFLOW;
 *         FA_ERR_SOFTMAX_SCALE; FA_ERR_STRIDE (an odd address); FA_ERR_OVERLAP; FA_ERR_MEMORY;
 *         FA_ERR_INTERNAL
 *
 * A stored number stands for itself divided by 32,768, in q, k, v and out alike. If yours have
 * other units, they belong into the scale (those of q and k), or are those of the output (v's).
 *
 * The output is the same bits on every machine, with every instruction set and number of threads,
 * and in every later version: docs/fixed-point.md defines it. Relative to the largest |v|, and
 * besides half a step of the output, it is within 6e-4 of attention of the stored numbers in exact
 * arithmetic for up to 8,192 keys, and within 2e-3 for up to 190,000.
 *
 * All arrays are dense and row-major, at even addresses, and one without elements may be NULL.
 * seq_len_q = 0 does nothing; a row that sees no key is zeros.
 *
 * Thread-safe: any number of calls may run at once, on arrays of their own or with inputs in
 * common. Scratch memory is allocated for the time of the call: 640 * head_dim bytes a thread, or
 * 64 more, and less for few queries.
 */
enum fa_status fa_forward_q15(const struct fa_q15_config *cfg,
                              const int16_t *q,
                              const int16_t *k,
                              const int16_t *v,
                              size_t seq_len_q,
                              size_t seq_len_kv,
                              int16_t *out);

/**
 * Multi-head attention of 16-bit fixed-point numbers: fa_forward_q15 for each of num_heads heads
 * (to get a batch, pass batch * heads, of both kinds).
 *
 * @param[in] cfg   not NULL
 * @param[in] q     [num_heads][seq_len_q][head_dim]
 * @param[in] k     [num_kv_heads][seq_len_kv][head_dim]
 * @param[in] v     [num_kv_heads][seq_len_kv][head_dim]
 * @param num_heads     at least 1, a multiple of num_kv_heads
 * @param num_kv_heads  at least 1; query head h reads kv head h / (num_heads / num_kv_heads)
 * @param seq_len_q   rows of q and out; at least 0
 * @param seq_len_kv  rows of k and v; 0 to 2,097,152
 * @param[out] out  [num_heads][seq_len_q][head_dim]
 * @return as fa_forward_q15, and FA_ERR_SHAPE (heads)
 *
 * The bits of a head are those of fa_forward_q15 on that head alone. Everything else is as for
 * fa_forward_q15.
 */
enum fa_status fa_mha_q15(const struct fa_q15_config *cfg,
                          const int16_t *q,
                          const int16_t *k,
                          const int16_t *v,
                          size_t num_heads,
                          size_t num_kv_heads,
                          size_t seq_len_q,
                          size_t seq_len_kv,
                          int16_t *out);

/**
 * Attention of one head in f32: out = softmax(softmax_scale * q * k^T) * v.
 *
 * @param[in] cfg   not NULL
 * @param[in] q     [seq_len_q][head_dim]
 * @param[in] k     [seq_len_kv][head_dim]
 * @param[in] v     [seq_len_kv][head_dim]
 * @param seq_len_q   rows of q and out; at least 0
 * @param seq_len_kv  rows of k and v; at least 0
 * @param[out] out  [seq_len_q][head_dim]; overlaps no input. Written completely; what was in it
 *                  does not matter.
 * @return FA_OK; FA_ERR_NULL; FA_ERR_ZERO_EXTENT; FA_ERR_OVERFLOW; FA_ERR_SOFTMAX_SCALE;
 *         FA_ERR_RESERVED; FA_ERR_OVERLAP; FA_ERR_ISA; FA_ERR_MEMORY; FA_ERR_INTERNAL
 *
 * All arrays are dense and row-major; they need no alignment, and one without elements may be
 * NULL. seq_len_q = 0 does nothing; seq_len_kv = 0 gives zeros.
 *
 * Scores, softmax and sums are f32. Against exact arithmetic the error is that of f32 dot products
 * and sums: at most 1e-5 times the largest |v| while |softmax_scale * q.k| stays below about 50.
 * What a query does not see has no influence on its row, even if it is NaN. A NaN or infinity
 * that it sees gives NaN in its row only: NaN in q in the whole row, NaN in a row of v in that
 * column, and so on as in the formula.
 *
 * Thread-safe: any number of calls may run at once, on arrays of their own or with inputs in
 * common. Scratch memory is allocated for the time of the call: see fa_scratch_bytes. Calls need
 * up to 48 KiB of stack, so that a thread with 64 KiB may make them.
 */
enum fa_status fa_forward_f32(const struct fa_config *cfg,
                              const float *q,
                              const float *k,
                              const float *v,
                              size_t seq_len_q,
                              size_t seq_len_kv,
                              float *out);

/**
 * Attention of one head of 8-bit integers: out = softmax(softmax_scale * q' * k'^T) * v', where
 * q' = q_scale * q, and so on.
 *
 * @param[in] cfg   not NULL
 * @param[in] q     [seq_len_q][head_dim]
 * @param[in] k     [seq_len_kv][head_dim]
 * @param[in] v     [seq_len_kv][head_dim]
 * @param q_scale, k_scale, v_scale  the real number that one step of the stored integers stands
 *                  for; finite, usually max|x| / 127
 * @param seq_len_q   rows of q and out; at least 0
 * @param seq_len_kv  rows of k and v; at least 0
 * @param[out] out  [seq_len_q][head_dim], f32
 * @return as fa_forward_f32, and FA_ERR_QUANT_SCALE
 *
 * On x86-64, products are those of integers: scores are exact, probabilities rounded to 15 bits
 * (relative RMS error against attention on q', k', v' below 5e-4: see FA_PRECISE). Other machines
 * compute in f32: as close as fa_forward_f32. fa_attention with FA_FAST allows 8 bits, which many
 * queries are computed faster with. The tensors are never expanded as a whole.
 *
 * Everything else is as for fa_forward_f32.
 */
enum fa_status fa_forward_i8(const struct fa_config *cfg,
                             const int8_t *q,
                             const int8_t *k,
                             const int8_t *v,
                             float q_scale,
                             float k_scale,
                             float v_scale,
                             size_t seq_len_q,
                             size_t seq_len_kv,
                             float *out);

/**
 * Multi-head attention in f32: fa_forward_f32 for each of num_heads heads (to get a batch, pass
 * batch * heads).
 *
 * @param[in] cfg   not NULL
 * @param[in] q     [num_heads][seq_len_q][head_dim]
 * @param[in] k     [num_heads][seq_len_kv][head_dim]
 * @param[in] v     [num_heads][seq_len_kv][head_dim]
 * @param num_heads   at least 1
 * @param seq_len_q   rows of q and out; at least 0
 * @param seq_len_kv  rows of k and v; at least 0
 * @param[out] out  [num_heads][seq_len_q][head_dim]
 * @return as fa_forward_f32
 *
 * The bits of a head are those of fa_forward_f32 on that head alone. Everything else is as for
 * fa_forward_f32.
 */
enum fa_status fa_mha(const struct fa_config *cfg,
                      const float *q,
                      const float *k,
                      const float *v,
                      size_t num_heads,
                      size_t seq_len_q,
                      size_t seq_len_kv,
                      float *out);

/**
 * The instruction set that calls use from now on: the best that the machine has and that
 * fa_limit_isa or FA_MAX_ISA allows. On x86-64: "avx512bf16" (and dot products of bfloat16),
 * "avx512vnni" (and dot products of 8-bit integers), "avx512" (F, BW, DQ and VL), "avxvnni" (AVX2
 * and dot products of 8-bit integers) or "avx2" (with FMA and F16C). On 64-bit Arm: "neon-bf16"
 * (FEAT_BF16), "neon-i8mm" (FEAT_I8MM), "neon-dotprod" (FEAT_DotProd) or "neon". Everywhere:
 * "scalar". Later versions add names. Each includes those that come after it, but for "avxvnni",
 * which machines with AVX-512 may lack; fa_attention_check says which of them a problem uses: the
 * fastest, which need not be the first. "unknown" if FA_MAX_ISA names none of them: computing
 * functions then return FA_ERR_ISA.
 *
 * @return a static string, never NULL; not to be freed
 *
 * Thread-safe.
 */
const char *fa_isa(void);

/**
 * Caps the instruction set of all calls in the process that start after this one returns: for
 * tests, and for comparing results between machines. It overrides the environment variable
 * FA_MAX_ISA, which takes the same names and is read once, at the first call that needs it.
 *
 * @param isa  the best instruction set to use, a name as fa_isa returns it; one that the machine
 *             lacks is no error, as the next best is used. What computes with a set that is named
 *             is used even where something else were faster (dot products of bfloat16 on Intel's
 *             machines). NULL takes the cap back (FA_MAX_ISA counts again).
 * @return FA_OK, or FA_ERR_ISA for an unknown name: then nothing changes
 *
 * Thread-safe.
 */
enum fa_status fa_limit_isa(const char *isa);

/**
 * Merges two results of attention of the same queries over disjoint sets of keys: afterwards (o,
 * lse) is what attention over all these keys gives, within rounding. For prefixes that sequences
 * share, contexts split over machines, and keys that come in chunks.
 *
 * With w = exp(lse) and w2 = exp(lse2): o = (w * o + w2 * o2) / (w + w2), lse = log(w + w2).
 *
 * @param[in,out] o, lse  [rows][dim_v] and [rows], dense
 * @param[in] o2, lse2    the same sizes; not the same memory
 * @param rows            at least 0
 * @param dim_v           at least 1
 * @return FA_OK; FA_ERR_NULL; FA_ERR_SHAPE (a size is negative); FA_ERR_ZERO_EXTENT;
 *         FA_ERR_OVERFLOW; FA_ERR_STRIDE (an address is no multiple of 4); FA_ERR_OVERLAP
 *
 * A state of no keys (o = 0, lse = -infinity) changes no bit of the other one, on either side.
 * Otherwise both orders give the same within rounding. Thread-safe.
 */
enum fa_status fa_merge(float *o,
                        float *lse,
                        const float *o2,
                        const float *lse2,
                        int64_t rows,
                        int64_t dim_v);

/**
 * Makes a pool of the library's own threads, to be used like a pool of the caller's. Idle threads
 * spin for 50 microseconds, giving way to other threads, then sleep.
 *
 * @param n_threads  0 to 256: threads that compute at the same time in a call, the calling one
 *                   included; 0 = one per core that the process may use, 256 at most
 * @param[out] out   not NULL; the pool, to be given back to fa_pool_destroy. Untouched on errors.
 * @return FA_OK; FA_ERR_NULL; FA_ERR_PART (n_threads out of range); FA_ERR_MEMORY (no threads to
 *         be had; where the system grants fewer than asked for, the pool has fewer)
 *
 * Allocates up to 1 MiB a thread: see fa_scratch_bytes. Calls on the pool allocate nothing.
 *
 * Thread-safe; so is the pool. In a child process after fork() calls on it use the calling thread
 * alone: a child makes its own, and may destroy this one.
 */
enum fa_status fa_pool_create(int32_t n_threads, struct fa_pool **out);

/**
 * Ends the threads of a pool from fa_pool_create and frees it. No call may be using it.
 *
 * @param pool  NULL is fine
 */
void fa_pool_destroy(struct fa_pool *pool);

/**
 * Writes a tensor in any storage type: what fa_attention then takes as Q, K or V. A whole tensor
 * at once, or the tokens that are new in a cache (for which there is also fa_cache_append).
 *
 * - FA_DTYPE_F32, _F16, _BF16: each number, rounded to nearest even. What is too large becomes an
 *   infinity (f16: from 65520 on), what is too small 0 with its sign; numbers that the type has
 *   subnormal ones for are kept so. A NaN stays a NaN with its sign, and may become quiet.
 * - FA_DTYPE_Q8_0, _Q4_0, _Q4_1, _Q5_0, _Q5_1, _IQ4_NL: bit for bit the blocks that ggml's
 *   reference functions write (as quantize_row_q8_0_ref, without fused multiply-adds). A block
 *   with a NaN or an infinity, which these do not expect: its scale is NaN, all else in it 0, so
 *   that attention gives NaN wherever it is seen. A scale (or minimum) beyond what binary16 holds
 *   is infinite, as in ggml. Codes saturate where a scale is too small to divide by it.
 * - FA_DTYPE_F8_E4M3, _F8_E5M2 without quant: each number, rounded to nearest even. What is too
 *   large, infinities included, becomes the largest number; numbers that the type has subnormal
 *   ones for are kept so. A NaN stays a NaN with its sign.
 * - FA_DTYPE_I8: as fa_quantize_i8 without smooth, whose rules and statuses hold.
 * - FA_DTYPE_U8, whose quant has zeros (FA_ERR_NULL): as FA_DTYPE_I8 with zeros, but zero = -min x
 *   / scale, and stored is 0 to 255.
 * - FA_DTYPE_F8_E4M3, _F8_E5M2 with a quant, which has no zeros (FA_ERR_DTYPE): as FA_DTYPE_I8
 *   without zeros, but scale = max |x| / 448 or / 57344, and stored is x / scale rounded as above.
 *
 * @param src     [batch][heads][tokens][dim], FA_DTYPE_F32, _F16 or _BF16
 * @param batch, heads, tokens  at least 0; if one is 0, nothing happens
 * @param dim     at least 1; a multiple of 32 for types in blocks
 * @param dst     the same sizes, its rows apart from each other. OUTPUTS are its elements, and
 *                those of quant, which FA_DTYPE_I8 and _U8 need, _F8_E4M3 and _F8_E5M2 may have;
 *                of other types quant is NULL
 * @return FA_OK; FA_ERR_NULL; FA_ERR_SHAPE (a size is negative, dim is not made of whole blocks);
 *         FA_ERR_ZERO_EXTENT (dim is 0); FA_ERR_DTYPE (also if src has a quant); FA_ERR_STRIDE
 *         (negative, no multiple of the element size, a stride_dim, rows of dst overlap);
 *         FA_ERR_OVERFLOW; FA_ERR_ISA; FA_ERR_OVERLAP (dst shares memory with src: what lies
 *         between the first and the last byte of a tensor belongs to it). On errors nothing has
 *         been written, as nothing between the rows of dst ever is.
 *
 * Not promised: bits of NaN. All instruction sets give the same bits, NaN included.
 *
 * Computes on the calling thread and allocates nothing. Thread-safe: several threads may each
 * write a part.
 */
enum fa_status fa_quantize(const struct fa_tensor *src,
                           int64_t batch,
                           int64_t heads,
                           int64_t tokens,
                           int64_t dim,
                           const struct fa_tensor *dst);

/**
 * Quantises a tensor to 8-bit integers, and finds their scales (and zeros): what fa_attention then
 * takes as Q, K or V. A whole tensor at once, or the tokens that are new in a cache.
 *
 * A cell is all elements that share a scale, as dst->quant says: the whole tensor if all its
 * strides are 0, else each batch entry (or page), head, group_tokens tokens, group_dims channels,
 * or any combination. Different cells must have different places.
 *
 * Without zeros (dst->quant->zero is NULL), for the numbers x of a cell: scale = max |x| / 127,
 * stored = x / scale, rounded to nearest even, -127 to 127. With zeros: scale = (max x - min
 * x) / 255, zero = -128 - min x / scale, rounded to an integer (of any size: 0 need not be among
 * the numbers), stored = x / scale + zero, rounded to nearest even, -128 to 127. In both cases
 * (stored - zero) * scale is x to within scale / 2, and what rounding to float costs numbers as
 * large as the largest of the cell.
 *
 * Cells of numbers that are all the same: with zeros they are reproduced exactly (zero = 0,
 * stored = 1, scale is the number). Cells whose scale would be less than FLT_MIN: without zeros,
 * scale and stored are 0; with zeros, all of the cell becomes its smallest number. A cell with a
 * NaN or an infinity (after smoothing): its scale is NaN, its zero and all stored are 0, so that
 * attention gives NaN wherever it is seen. No other cell notices, and the call returns FA_OK. (A
 * scale that is NaN and shared by a whole tensor is refused later, by fa_attention_run:
 * FA_ERR_QUANT_SCALE.)
 *
 * Smoothing: keys often have channels far from 0, the same for all tokens, which cost most of the
 * integers' range. Softmax does not change when one vector is subtracted from all keys of a head,
 * as all scores of a query then change by the same: subtract the mean of each channel over the
 * tokens, for K only ("smoothing K" of SageAttention, arXiv:2410.02367). Nothing has to be added
 * afterwards, except to a log-sum-exp: scale times query times smooth. One vector must do for all
 * keys that a query sees; softcap and sinks, which are not shifted with the scores, forbid it.
 *
 * @param src     [batch][heads][tokens][dim], FA_DTYPE_F32, _F16 or _BF16 (which become float
 *                exactly)
 * @param batch, heads, tokens  at least 0; if one is 0, nothing happens
 * @param dim     at least 1
 * @param smooth  NULL, or [heads][dim], dense: subtracted from each element first, rounded once
 * @param dst     the same sizes, FA_DTYPE_I8, its rows apart from each other, with quant. OUTPUTS
 *                are its elements, quant->scale (needed) and quant->zero (or NULL), although
 *                fa_quant says const
 * @return FA_OK; FA_ERR_NULL; FA_ERR_SHAPE (a size is negative); FA_ERR_ZERO_EXTENT (dim, or a
 *         group that matters, is 0); FA_ERR_DTYPE (also if src has a quant); FA_ERR_STRIDE
 *         (negative, no multiple of the element size, a stride_dim, rows of dst overlap, or two
 *         cells have the same place); FA_ERR_OVERFLOW; FA_ERR_ISA; FA_ERR_OVERLAP (dst, scales or
 *         zeros share memory with each other, src or smooth; as in fa_attention, what lies between
 *         the first and the last byte of a tensor or an array belongs to it)
 *
 * For two cells to have different places it is enough, and demanded, that each stride of quant is
 * larger than the farthest that one gets by the smaller ones; strides of axes with one cell do not
 * matter.
 *
 * Not promised: that numbers within a step of FLT_MAX do not become infinite when the integers
 * become numbers again; the sign of 0; equal bits in different versions. All instruction sets give
 * the same bits.
 *
 * Computes on the calling thread and allocates nothing. Thread-safe: several threads may each
 * quantise a part.
 */
enum fa_status fa_quantize_i8(const struct fa_tensor *src,
                              int64_t batch,
                              int64_t heads,
                              int64_t tokens,
                              int64_t dim,
                              const float *smooth,
                              const struct fa_tensor *dst);

/**
 * Whether a problem can be computed, and how on the calling thread alone; if not, why not, with
 * the offending numbers. Touches nothing but why.
 *
 * @param[in] a        not NULL
 * @param[out] why     NULL, or room for why_size bytes: a sentence in English, always ended by a
 *                     zero byte, cut off where it is longer. Its wording may change in any
 *                     version.
 * @param why_size     bytes at why
 * @return FA_OK, or what fa_attention_run would refuse it with
 *
 * Thread-safe.
 */
enum fa_status fa_attention_check(const struct fa_attention *a, char *why, size_t why_size);

/**
 * Bytes of scratch memory that fa_attention_run needs with a pool of n_parts threads, and that
 * fa_attention_part needs with n_parts parts. For a NULL pool n_parts is 1, for another what its
 * function width answers (pool->width(pool->ctx); a pool from fa_pool_create always has one), held
 * to 1 to 256. It grows with the sum of the sizes at most, never with their product, and may be 0.
 * More memory than that is fine.
 *
 * It depends on the sizes, strides and block sizes of the description and on which pointers are
 * NULL, not on what they point to: ask once, with the largest len_kv that there will be, and a
 * decode loop may use the memory for every step with that len_kv, whatever kv_lens are. For other
 * sizes ask again: a smaller problem does not always need less, as it may be cut differently.
 * Lists of lengths, positions, spans, pages and scales are checked nevertheless, so they must be
 * there, with values that a call could have; tensors need not.
 *
 * @param[in] a        not NULL
 * @param n_parts      1 to 256
 * @param[out] bytes   not NULL; untouched on errors
 * @return as fa_attention_check, and FA_ERR_NULL, FA_ERR_PART
 *
 * Thread-safe. The answer holds as long as fa_limit_isa is not called in between.
 */
enum fa_status fa_attention_workspace(const struct fa_attention *a, int32_t n_parts, size_t *bytes);

/**
 * Bytes of scratch memory that do for every number of parts from 1 to max_parts: the largest that
 * fa_attention_workspace answers for any of them. (More parts do not always need more.) For
 * programs that do not know yet how many threads they will have.
 *
 * @param[in] a        not NULL
 * @param max_parts    1 to 256
 * @param[out] bytes   not NULL; untouched on errors
 * @return as fa_attention_workspace
 *
 * Thread-safe. The answer holds as long as fa_limit_isa is not called in between.
 */
enum fa_status fa_attention_workspace_max(const struct fa_attention *a,
                                          int32_t max_parts,
                                          size_t *bytes);

/**
 * Computes the problem.
 *
 * @param[in] a     not NULL
 * @param ws        scratch memory: fa_attention_workspace bytes for as many parts as the pool is
 *                  wide; uninitialised and unaligned is fine. NULL if that is 0. Belongs to the
 *                  call until it returns, then holds nothing of interest.
 * @param ws_size   bytes at ws
 * @param[in] pool  the threads; NULL = the calling thread alone
 * @return FA_OK; FA_ERR_NULL; FA_ERR_STRUCT_SIZE; FA_ERR_RESERVED; FA_ERR_SHAPE;
 *         FA_ERR_ZERO_EXTENT; FA_ERR_OVERFLOW; FA_ERR_STRIDE; FA_ERR_DTYPE; FA_ERR_SOFTMAX_SCALE;
 *         FA_ERR_SOFTCAP; FA_ERR_WINDOW; FA_ERR_LENGTHS; FA_ERR_PAGE; FA_ERR_OVERLAP;
 *         FA_ERR_QUANT_SCALE; FA_ERR_WORKSPACE; FA_ERR_ISA; FA_ERR_INTERNAL. FA_ERR_STRUCT_SIZE is
 *         that of a or of the pool. fa_attention_check says why in words.
 *
 * Allocates, locks and prints nothing (what the functions of a pool do is their affair). Calls
 * need up to 48 KiB of stack. The bits of a row are the same for every pool, and for
 * fa_attention_part with any n_parts.
 *
 * Thread-safe: any number of calls may run at once, with outputs and workspaces of their own.
 */
enum fa_status fa_attention_run(const struct fa_attention *a,
                                void *ws,
                                size_t ws_size,
                                const struct fa_pool *pool);

/**
 * Computes one part of n_parts of the problem on the calling thread: for engines that have their
 * own threads and barriers. Call it once for each part below n_parts, on any threads, at the same
 * time or one after another, in any order; then, after a barrier, fa_attention_finish, once for
 * each part.
 *
 * @param[in] a     not NULL; the same in every call
 * @param ws        as for fa_attention_run: fa_attention_workspace bytes for n_parts; all parts
 *                  share it, from the first call of part to the last of finish
 * @param ws_size   bytes at ws; the same in every call
 * @param part      at least 0, less than n_parts
 * @param n_parts   1 to 256; the same in every call
 * @return as fa_attention_run, and FA_ERR_PART
 *
 * Allocates, locks and prints nothing. Small problems leave some parts nothing to do.
 */
enum fa_status fa_attention_part(const struct fa_attention *a,
                                 void *ws,
                                 size_t ws_size,
                                 int32_t part,
                                 int32_t n_parts);

/**
 * Completes what fa_attention_part has begun. Call it once for each part, after all parts have
 * returned. Where there are few query rows and many keys, the keys of a row are split among parts:
 * this combines their partial results. The output is complete when it has returned for every part:
 * a thread that reads rows of others needs a barrier after it.
 *
 * @param[in] a     as for fa_attention_part
 * @param ws        the same memory, as fa_attention_part has left it
 * @param ws_size   the same
 * @param part      at least 0, less than n_parts
 * @param n_parts   the same
 * @return as fa_attention_part
 */
enum fa_status fa_attention_finish(const struct fa_attention *a,
                                   void *ws,
                                   size_t ws_size,
                                   int32_t part,
                                   int32_t n_parts);

/**
 * Bytes of scratch memory that a call of fa_mha (or, with num_heads = 1, of fa_forward_f32 or
 * fa_forward_i8) with this configuration and these sizes allocates, and frees before it returns.
 * It grows with the sum of the sizes at most, never with their product, and with the number of
 * threads. Up to 16 KiB, on one thread, lie on the stack instead, and the answer is 0. Where an
 * allocation fails, the call tries with the scratch of one thread before it returns FA_ERR_MEMORY.
 *
 * Besides, the first call with more than one thread makes the pool, up to 1 MiB a thread, and so
 * does one that wants more threads than the pool has. If that memory is not available, there are
 * fewer threads, down to the calling one. One race is left: the allocator is asked first, but if
 * another thread of the process takes that memory before the pool does, the process ends (abort).
 * fa_pool_create has the same race; other calls, and fa_attention_run with any pool, do not.
 *
 * @param[in] cfg     not NULL
 * @param dtype       FA_DTYPE_F32 or FA_DTYPE_I8: the type of q, k and v
 * @param num_heads   at least 1
 * @param seq_len_q   query rows of a head; at least 0
 * @param seq_len_kv  keys of a head; at least 0
 * @param[out] bytes  not NULL; untouched on errors
 * @return FA_OK; FA_ERR_NULL; FA_ERR_ZERO_EXTENT; FA_ERR_OVERFLOW; FA_ERR_RESERVED; FA_ERR_DTYPE;
 *         FA_ERR_ISA
 *
 * Thread-safe. The answer holds as long as fa_limit_isa is not called in between.
 */
enum fa_status fa_scratch_bytes(const struct fa_config *cfg,
                                int32_t dtype,
                                size_t num_heads,
                                size_t seq_len_q,
                                size_t seq_len_kv,
                                size_t *bytes);

/**
 * One sentence in English for a status code.
 *
 * @param status  any integer; unknown ones get a sentence that says so
 * @return a static string, never NULL; not to be freed
 *
 * Thread-safe.
 */
const char *fa_status_string(int32_t status);

/**
 * Version of the library. Compare it with what a program was built for only to print it: what must
 * fit is fa_abi_version.
 *
 * @return (major << 16) | (minor << 8) | patch
 *
 * Thread-safe.
 */
uint32_t fa_version(void);

/**
 * Version of the binary interface. It grows by one with each release that a program built
 * against an older header cannot use; functions and status codes that are only added leave it as
 * it is. A program that loads the library at run time compares it with FA_ABI_VERSION.
 *
 * @return FA_ABI_VERSION as the library was built with it
 *
 * Thread-safe.
 */
uint32_t fa_abi_version(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* FLASH_ATTENTION_H */
