/**
 * @file
 * Exact attention on CPUs.
 *
 *     out = softmax(softmax_scale * q * k^T) * v
 *
 * computed tile by tile with an online softmax (arXiv:1805.02867, arXiv:2205.14135), so that the
 * seq_len_q x seq_len_kv matrix of scores never exists.
 *
 * One description has everything: strides, grouped heads, masks, pages, ragged batches, threads of
 * your own. A program to begin with:
 *
 *     #include <stdio.h>
 *     #include <flash_attention.h>
 *
 *     enum { TOKENS = 100, HEADS_Q = 8, HEADS_KV = 2, DIM = 64 };
 *     static float q[TOKENS][HEADS_Q][DIM], out[TOKENS][HEADS_Q][DIM];
 *     static float k[TOKENS][HEADS_KV][DIM], v[TOKENS][HEADS_KV][DIM];
 *
 *     int main(void)
 *     {
 *         q[99][0][0] = k[7][0][0] = 8, v[7][0][0] = 1; // your data: here query 99 matches key 7
 *         fa_attention a;
 *         fa_attention_init(&a, sizeof a); // everything off
 *         a.batch = 1, a.heads_q = HEADS_Q, a.heads_kv = HEADS_KV, a.dim_qk = a.dim_v = DIM;
 *         a.len_q = a.len_kv = TOKENS;
 *         a.q = fa_token_first(q, FA_DTYPE_F32, TOKENS, HEADS_Q, DIM), a.q_bytes = sizeof q;
 *         a.k = fa_token_first(k, FA_DTYPE_F32, TOKENS, HEADS_KV, DIM), a.k_bytes = sizeof k;
 *         a.v = fa_token_first(v, FA_DTYPE_F32, TOKENS, HEADS_KV, DIM), a.v_bytes = sizeof v;
 *         a.o = fa_token_first(out, FA_DTYPE_F32, TOKENS, HEADS_Q, DIM), a.o_bytes = sizeof out;
 *         a.window_right = 0; // causal
 *
 *         char why[400];
 *         fa_workspace ws = {NULL, 0};
 *         fa_status status = fa_attention_check(&a, why, sizeof why);
 *         puts(why); // what is wrong, or which kernel computes it, and warnings
 *         if (status == FA_OK) status = fa_run(&a, &ws, NULL); // NULL: on this thread alone
 *         fa_workspace_free(&ws);
 *         if (status == FA_OK) printf("out[99][0][0] = %.3f\n", (double)out[99][0][0]);
 *         else printf("refused: %s\n", fa_status_string(status));
 *         return status == FA_OK ? 0 : 1;
 *     }
 *
 * For f32 in dense arrays [head][token][dim] there is a shorter way:
 *
 *     fa_config cfg;
 *     fa_config_auto(&cfg, 64);
 *     cfg.causal = true;
 *     fa_status status = fa_mha(&cfg, q, k, v, num_heads, seq_len, seq_len, out);
 *     if (status != FA_OK) puts(fa_status_string(status));
 *
 * @par Units
 * Sizes count elements, heads and tokens; strides of tensors, and what is called bytes, count
 * bytes; strides of plain arrays (log-sum-exp, slopes, scales, lists) count values. docs/units.md
 * has all of it on one page. Strides are in the order batch entry (or page), head, token, whatever
 * the order in memory: fa_token_first, fa_head_first and fa_paged make them. Arrays of functions
 * that take no description are dense and row-major: the last size given is the contiguous one.
 * Nothing needs an alignment, unless a function says so.
 *
 * @par Threads
 * Every function may be called from any number of threads at once. Inputs may be shared between
 * calls; an output belongs to one call until it returns. No pointer is kept after a call.
 *
 * @par Errors
 * A function that returns fa_status never writes to stdout or stderr. On errors it leaves its
 * outputs as they were (except for FA_ERR_INTERNAL). It never aborts, with one exception: creating
 * threads when memory runs out (fa_pool_create, and simple calls that need more threads than there
 * are; see fa_scratch_bytes). Arguments are checked before anything is computed. If there are
 * several errors, any of them may be reported. Whether a tensor fits its memory is checked if
 * fa_attention is told how much there is (q_bytes and the like). What cannot be checked is whether
 * other pointers that are not NULL lead to memory of the size that the arguments say.
 *
 * @par Same bits
 * With one version of the library, one instruction set and one size of blocks of keys
 * (block_size_kv, block_kv), a row of an output depends on: its own query; the keys and values that
 * it sees, their number and position, and what changes their scores; and the number of query rows
 * of its sequence (with 8-bit integers and blocks also that of its keys), which decides between the
 * path for few rows (decode) and the path for many rows (prefill). It does not depend on threads,
 * pools or parts, block_size_q, strides or pages, other heads and sequences, what is in other rows,
 * or chance. Between instruction sets, block sizes, paths and versions results differ within
 * rounding: do not compare them with stored bits.
 * (fa_forward_q15 and fa_mha_q15 compute in integers: their bits are the same everywhere.)
 *
 * @par Floating-point environment
 * On x86-64 and 64-bit Arm all threads compute in the default environment (round to nearest,
 * subnormal numbers are not flushed, nothing traps), whatever MXCSR (or FPCR) of the caller is. The
 * caller's environment is restored, exception flags included. So FTZ and DAZ change no bit of a
 * result. Functions of a caller's pool are called in the caller's environment. Tasks may be called
 * in any environment. The library's threads have the default one. On other processors the caller
 * must have set the default environment.
 *
 * @par Signals
 * Signal handlers may interrupt any call; its result does not change. They must not call the
 * library, nor leave a call by longjmp. The library's threads inherit the signal mask of the thread
 * whose call makes them. To keep handlers off them, block signals around that call, or around
 * fa_pool_create. Frames of signals become larger by fa_enable_amx.
 *
 * @par Copies
 * Two copies of the library in one process (two files, or a static and a shared one) do not know of
 * each other. Each has its own threads, and its own fa_limit_isa.
 *
 * @par Processes and loading
 * The library works in a child process after fork(), whatever the parent's threads were doing. A
 * child makes threads of its own when it first needs some. (A child that was forked in the middle
 * of the parent's first call with several threads computes on the calling thread alone.) The shared
 * library creates no threads and allocates nothing when it is loaded. It stays mapped after
 * dlclose(), with its threads; loading it again gives the same copy.
 *
 * @par Environment variables
 * FA_MAX_ISA and FA_AMX, read once; see fa_limit_isa and fa_enable_amx. No others.
 */


#ifndef FLASH_ATTENTION_H
#define FLASH_ATTENTION_H

/* Generated from src/capi; do not edit. FA_BLESS=1 cargo test --test header */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/**
 * fa_attention.q_pos: the last query row of each sequence is at its last key, so q_pos = number of
 * keys - number of query rows. That may be negative: rows before key 0 are then at no key.
 */
#define FA_POS_END INT64_MIN

/**
 * fa_attention.window_left, window_right: no limit.
 */
#define FA_NO_LIMIT -1

/**
 * fa_attention.flags: the bias is slope * mask instead of -slope * |p - j|. The mask then holds
 * distances, as in ggml, whose mask is -|p - j|.
 */
#define FA_MASK_TIMES_SLOPE 1

/**
 * fa_attention.flags: more accurate than the default. K and V of bf16, f16 and in blocks are not
 * multiplied as they are stored; a block of keys at a time becomes f32.
 *
 * By default, with neither FA_PRECISE nor FA_FAST, queries and probabilities are rounded no
 * further than storing K and V in their types has rounded these. The errors below are relative RMS
 * errors against exact attention on the stored numbers. They hold for normal data, and for rows
 * with attention sinks (a few keys that have up to 99.9 % of a row's probability, and values near
 * 0).
 *
 * - K and V bf16: multiplied as bf16 if the machine can (fa_isa "avx512bf16" or "neon-bf16") and
 *   is faster at it than at f32. AMD's and Arm's processors are. Intel's are not, and do it only
 *   if fa_limit_isa or FA_MAX_ISA names "avx512bf16"; with "amx" (see fa_enable_amx) they do it
 *   with many query rows, where subnormal bf16 count as 0. Probabilities, and queries that are not
 *   bf16, are rounded to bf16. Error: below 3e-3, with sinks 5e-2. With FA_PRECISE f32 computes:
 *   1e-6, at half the speed.
 * - K and V f16: multiplied as f16 with "amx" and many query rows, if the processor can (AMX-FP16,
 *   Granite Rapids and later). Probabilities, and queries that are not f16, are rounded to f16;
 *   the largest of a row are brought to the upper end of its range, so that small ones are not
 *   lost. Error: below 5e-4, with sinks 7e-3. Otherwise, and with FA_PRECISE, f32 computes.
 * - K and V i8 or u8, K with scales and zeros per head, token or channel, V per head or channel
 *   (see fa_quant): multiplied as 16-bit integers on x86-64 and by "simd128", and with few query
 *   rows (decode) by "neon-dotprod" and "neon-i8mm". Queries, times the scales of K's channels,
 *   are quantised, each row with a scale of its own. Queries are used as they are if they are i8
 *   with one scale per row or for more than a row, and K has no scales of channels. Probabilities
 *   have 15 bits, relative to a reference that few keys exceed; what exceeds it is added in f32.
 *   Error: below 5e-4. With other scales, and on other machines, f32 computes. FA_PRECISE changes
 *   nothing.
 * - K and V in blocks (Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, the same or not), with "avx2", or
 *   "avx512vnni" and better, and few query rows (decode): multiplied as integers. Queries are
 *   quantised to 16 bits, each row with a scale of its own. Products of probabilities and scales
 *   of V are rounded to multiples of 1/32767 or 1/32768 of the largest one of a block of elements.
 *   Error: below 3e-4. Otherwise, and with FA_PRECISE, f32 computes.
 * - Others: f32 computes.
 */
#define FA_PRECISE 2

/**
 * fa_attention.flags: allows probabilities and queries of 8 bits. That applies to K and V of i8 or
 * u8 with the scales that FA_PRECISE names, and to many query rows (prefill), if fa_isa is
 * "avx512vnni" or better, "avxvnni", "neon-i8mm" or "neon-dotprod". It is up to twice as fast as
 * the default. Queries that are not i8 are quantised to 8 bits, each row with a scale of its own.
 * Probabilities are multiples of 1/255 of a reference that few keys exceed; what exceeds it is
 * added in f32. Error: below 2e-2, with sinks 5e-2. In all other cases the flag changes nothing.
 * Together with FA_PRECISE it is refused: FA_ERR_RESERVED.
 */
#define FA_FAST 4

/**
 * fa_attention.scale, fa_config.softmax_scale: stands for a scale of 0, as 0 itself means the
 * default scale. Its value is 2 to the power of -100. Keys whose dot products are below 1e22 weigh
 * exactly the same.
 */
#define FA_SCALE_ZERO 7.888609052210118e-31

/**
 * fa_sparse_config.schedule: the coherence decides nothing. Partitions stay whole, unless
 * min_density or max_density demands otherwise.
 */
#define FA_SCHEDULE_NONE 0

/**
 * fa_sparse_config.schedule: the density rises in a line, from min_density at coherence_low to
 * max_density at coherence_high.
 */
#define FA_SCHEDULE_LINEAR 1

/**
 * fa_sparse_config.schedule: max_density from coherence_high on, min_density below it.
 */
#define FA_SCHEDULE_THRESHOLD 2

/**
 * fa_sparse_config.schedule: 0.1, and up to 0.6 more as the coherence rises to half of
 * coherence_high; up to 0.2 more by concentration; 0.05 less for each partition, up to four of
 * them. At least 0.1, at most 0.9, and within min_density and max_density.
 */
#define FA_SCHEDULE_ADAPTIVE 3

/**
 * The binary interface that this header describes; see fa_abi_version.
 */
#define FA_ABI_VERSION 2

/**
 * What a function returns. The values never change and are never reused; later versions only add
 * some. On every value but FA_OK no output has been written, unless the value says otherwise.
 */
typedef enum fa_status {
  /**
   * Done.
   */
  FA_OK = 0,
  /**
   * A pointer is NULL, but data is needed.
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
   * An output shares memory with an input or another output.
   */
  FA_ERR_OVERLAP = 7,
  /**
   * Not a value of fa_dtype, or not a type that the function takes.
   */
  FA_ERR_DTYPE = 8,
  /**
   * fa_limit_isa or the environment variable FA_MAX_ISA names an instruction set that this
   * build does not know. fa_enable_amx: this process cannot have it.
   */
  FA_ERR_ISA = 9,
  /**
   * Scratch memory could not be allocated.
   */
  FA_ERR_MEMORY = 10,
  /**
   * The library broke one of its own rules: please report it. Outputs may be partly written.
   */
  FA_ERR_INTERNAL = 11,
  /**
   * Tensors disagree about a size that they share, a size is negative, or heads_q is not a
   * multiple of heads_kv.
   */
  FA_ERR_SHAPE = 12,
  /**
   * A stride is unusable: negative, not a multiple of the element size, or so small that rows of
   * an output would overlap. fa_merge: an address is not a multiple of 4; fa_forward_q15,
   * fa_mha_q15: of 2.
   */
  FA_ERR_STRIDE = 13,
  /**
   * A list is wrong: cu_len_q, cu_len_kv, block_table_start or span_starts decreases or is
   * negative; kv_lens or kv_starts is negative; a sequence is longer than len_q, len_kv or its
   * pages, or begins behind its last key; spans are negative or out of order; weight_heads or
   * weight_rows are out of range or out of order. fa_cache_append: the position of a new token
   * is not among the keys in use.
   */
  FA_ERR_LENGTHS = 14,
  /**
   * struct_size is not the size of any version up to this one, or a field that this version does
   * not know is not 0.
   */
  FA_ERR_STRUCT_SIZE = 15,
  /**
   * Reserved for later versions: no function of this version returns it.
   */
  FA_ERR_UNSUPPORTED = 16,
  /**
   * The workspace is NULL, or smaller than fa_attention_workspace says.
   */
  FA_ERR_WORKSPACE = 17,
  /**
   * 0 <= part < n_parts does not hold, or n_parts (or n_threads) is out of range.
   */
  FA_ERR_PART = 18,
  /**
   * A window is negative, and not FA_NO_LIMIT.
   */
  FA_ERR_WINDOW = 19,
  /**
   * softcap is negative, infinite or NaN.
   */
  FA_ERR_SOFTCAP = 20,
  /**
   * A page in use is not below num_pages, or is negative.
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
   * Signed 8-bit integer. fa_quant says what number it stands for; without fa_quant it is the
   * number.
   */
  FA_DTYPE_I8 = 3,
  /**
   * Blocks of 32 elements in 34 bytes, as in ggml: a binary16 scale, then 32 signed 8-bit
   * integers, which are multiplied by it. A row has whole blocks: dim is a multiple of 32.
   */
  FA_DTYPE_Q8_0 = 4,
  /**
   * Masks only: one byte for each key; nonzero = visible.
   */
  FA_DTYPE_BOOL8 = 5,
  /**
   * Blocks of 32 elements in 18 bytes: a binary16 scale d, then 16 bytes. The low nibble n of
   * byte i is element i, the high nibble is element i + 16. An element is d * (n - 8). This and
   * the next four types are ggml's.
   */
  FA_DTYPE_Q4_0 = 6,
  /**
   * Blocks of 32 elements in 20 bytes: d, a binary16 minimum m, then 16 bytes of nibbles as in
   * Q4_0. An element is d * n + m.
   */
  FA_DTYPE_Q4_1 = 7,
  /**
   * Blocks of 32 elements in 22 bytes: d, 32 bits (the first is the lowest bit of the first
   * byte), then 16 bytes of nibbles as in Q4_0. Bit i is the fifth and highest bit of the code n
   * of element i. An element is d * (n - 16).
   */
  FA_DTYPE_Q5_0 = 8,
  /**
   * Blocks of 32 elements in 24 bytes: d, m, 32 bits, 16 bytes of nibbles as in Q5_0. An element
   * is d * n + m.
   */
  FA_DTYPE_Q5_1 = 9,
  /**
   * Blocks of 32 elements in 18 bytes, as Q4_0. An element is d times the nth of -127, -104,
   * -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113, from n = 0.
   */
  FA_DTYPE_IQ4_NL = 10,
  /**
   * 8-bit floating point: sign, 4 bits of exponent with bias 7, 3 bits of mantissa. This is the
   * variant of machine learning ("E4M3FN"): it has no infinities, its largest number is 448, and
   * in a NaN all bits but the sign are 1. It may have scales (fa_quant).
   */
  FA_DTYPE_F8_E4M3 = 11,
  /**
   * 8-bit floating point: sign, 5 bits of exponent with bias 15, 2 bits of mantissa, with
   * infinities and NaN as in IEEE 754: the upper half of a binary16. It may have scales
   * (fa_quant). The largest number is 57344.
   */
  FA_DTYPE_F8_E5M2 = 12,
  /**
   * Unsigned 8-bit integer. fa_quant says what number it stands for; without fa_quant it is the
   * number.
   */
  FA_DTYPE_U8 = 13,
  /**
   * Fractions ("Q15"): a signed 16-bit integer that stands for itself divided by 32,768, so -1
   * to 32767/32768. It may have scales (fa_quant). Outputs may have it, too: rounded to nearest
   * even, and what is too large becomes 32767 or -32768, NaN becomes 0.
   */
  FA_DTYPE_Q15 = 14,
} fa_dtype;

/**
 * fa_plan.path. Later versions may add values.
 */
typedef enum fa_path {
  /**
   * For many query rows: lanes of vectors are query rows.
   */
  FA_PATH_PREFILL = 0,
  /**
   * For few query rows: lanes of vectors are elements of a head.
   */
  FA_PATH_DECODE = 1,
} fa_path;

/**
 * How elements become numbers: x = (stored - zero) * scale, where stored of FA_DTYPE_Q15 is the
 * fraction. 8-bit integers may have zeros. Other types have none: zero must be NULL, else
 * FA_ERR_DTYPE. Outputs of FA_DTYPE_Q15 may have scales: stored = x / scale, rounded.
 *
 * The scale and zero of element d of token t of head h of batch entry (or page) b are at index b *
 * stride[0] + h * stride[1] + (t / group_tokens) * stride[2] + (d / group_dims) * stride[3]. So
 * with all strides 0 the whole tensor has one scale. For one scale per head, token or channel, set
 * that stride. For blocks of tokens or groups of channels, set a group of more than 1. In a paged
 * tensor t counts within the page. In packed ragged rows t is the row, and b is 0.
 *
 * fa_quantize_i8 and fa_quantize find and write scales and zeros. So does fa_cache_append where
 * each token has its own. Every other function reads them, also those of outputs.
 *
 * Which scales and zeros are fast for integers, signed or unsigned:
 *
 * - K: per head, token or channel. V: per head or channel (or group of channels), the same for all
 *   tokens. These can be moved out of the sums over elements and keys, so integers are multiplied
 *   as integers: see FA_PRECISE.
 * - V per token, few query rows (decode): f32 computes from the bytes as they are read, about
 *   twice as fast as from f32 in memory.
 * - All others: a block of keys at a time becomes f32, at the speed of f32 within a tenth. That is
 *   V per token with many query rows, and scales that change both from token to token and within a
 *   row. Exception: half to three quarters of that speed for scales per token with groups of 3, 5,
 *   6, 7 or 9 to 15 channels, or with groups of 1, 2, 4 or 8 channels and a stride[3] other than
 *   1.
 *
 * 8-bit floating-point numbers become f16, a few keys at a time, and f32 computes. Q15 becomes f32
 * with its scales, whatever shares these, and f32 computes.
 *
 * A scale (or zero) shared by a whole tensor must be finite: FA_ERR_QUANT_SCALE. Other scales are
 * data: one that is NaN or infinite makes its elements NaN or infinite.
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
   * VALUES (not bytes) from one batch entry (or page), head, group of tokens, group of channels
   * to the next; not negative; 0 = the same for all.
   */
  int64_t stride[4];
  /**
   * Tokens that share a value; at least 1. Any number if stride[2] is 0.
   */
  int32_t group_tokens;
  /**
   * Channels (elements of a row) that share a value; at least 1. Any number if stride[3] is 0.
   */
  int32_t group_dims;
} fa_quant;

/**
 * A tensor [batch][head][token][dim] in the caller's memory. Every axis has a stride, so a tensor
 * can be dense, interleaved, packed, broadcast and, for k and v, transposed.
 */
typedef struct fa_tensor {
  /**
   * The first element of row [0][0][0]. Needs no alignment. May be NULL if there is no element.
   * NULL means "none" where a tensor is optional.
   */
  void *data;
  /**
   * BYTES from one batch entry to the next, from one head to the next, from one token to the
   * next. Not negative; a multiple of the element size (of 2 for types in blocks). 0 repeats the
   * same data (inputs only). The stride of an axis of extent 1 does not matter. Beware of
   * strides that count elements: for an input they are legal and give wrong results.
   */
  int64_t stride[3];
  /**
   * A value of fa_dtype.
   */
  int32_t dtype;
  /**
   * BYTES from one element of a row to the next; 0 = the element size: elements are contiguous.
   * For k and v of fa_attention another multiple of the element size is allowed: a cache
   * [head][dim][token] of f16 has stride[2] = 2 and stride_dim = 2 * tokens. Such rows are
   * gathered in scratch memory, a block of keys at a time, and results have the same bits. All
   * other tensors, and all types in blocks, must be contiguous: FA_ERR_STRIDE.
   */
  int32_t stride_dim;
  /**
   * For FA_DTYPE_I8, _U8, _Q15, _F8_E4M3 and _F8_E5M2: how the elements become numbers; NULL =
   * they are the numbers. For other types NULL.
   */
  const struct fa_quant *quant;
} fa_tensor;

/**
 * Attention in general: dense, interleaved, broadcast, ragged or paged tensors, grouped heads,
 * positions and windows, masks of all kinds, log-sum-exp. One description serves
 * fa_attention_check, _workspace, _run, _part and _finish, and fa_cache_append.
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
 * A key that windows, kv_lens, kv_starts, mask, block_mask or kept_blocks hide from a row (and
 * columns do not show to it) has no influence on that row, even if it is NaN. A NaN that a row
 * sees makes only that row NaN. A row that sees no key is zeros, and its lse is -infinity.
 *
 * Call fa_attention_init, then set what you need. Later versions only append fields. Inputs are
 * never written. Strides of tensors are in bytes; strides of plain arrays (lse, alibi_slopes) are
 * in elements.
 *
 * Same bits: as said at the top of this header, with block_kv for block_size_kv. If block_kv is 0,
 * the size is chosen from head dimensions, caches, block_mask_kv or kept_kv and the instruction
 * set. Ragged, paged and dense keys, copies or views, alone or in a batch, give the same bits.
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
   * Heads of q and o; a multiple of heads_kv. Query head h reads kv head h / (heads_q /
   * heads_kv).
   */
  int64_t heads_q;
  /**
   * Heads of k and v; at least 1.
   */
  int64_t heads_kv;
  /**
   * Query rows of a sequence. 0 does nothing. With cu_len_q: at least the number of the longest
   * sequence.
   */
  int64_t len_q;
  /**
   * Keys of a sequence. With 0, rows see nothing. With cu_len_kv or kv_lens: at least the number
   * of the longest sequence.
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
   * Queries [batch][heads_q][len_q][dim_qk]; any type but FA_DTYPE_BOOL8, whatever types k and v
   * have. Strides are in this order of axes, whatever the order in memory: f32 in memory as
   * [batch][token][head][dim] has {len_q * heads_q * dim_qk * 4, dim_qk * 4, heads_q * dim_qk *
   * 4}.
   */
  struct fa_tensor q;
  /**
   * Keys [batch][heads_kv][len_kv][dim_qk]; types as for q. Types other than f32 become f32 a
   * block of keys at a time, in scratch memory, or are multiplied as they are: see FA_PRECISE.
   * Sums and softmax are f32 for every type.
   */
  struct fa_tensor k;
  /**
   * Values [batch][heads_kv][len_kv][dim_v]; types as for q. The type may differ from that of k.
   * v may be a view of k (multi-head latent attention).
   */
  struct fa_tensor v;
  /**
   * Output [batch][heads_q][len_q][dim_v]; FA_DTYPE_F32, _F16, _BF16 or _Q15, rounded once from
   * f32, to nearest even. Of FA_DTYPE_Q15 it may have scales (fa_quant), by which numbers are
   * divided first: an input, which must not overlap an output. Every row is written completely;
   * its old content does not matter. Bytes between rows are not touched. Its rows must not
   * overlap each other. The memory from its first row to its last row must not overlap an input
   * or lse; an output between the rows of an input is refused, too.
   */
  struct fa_tensor o;
  /**
   * The softmax scale, by which every dot product of a query and a key is multiplied. Finite;
   * may be negative; 0 = 1/sqrt(dim_qk). With FA_SCALE_ZERO all visible keys weigh the same.
   */
  float scale;
  /**
   * 0 = off. Otherwise the score s = scale * q.k is replaced by softcap * tanh(s / softcap).
   * Finite, not negative.
   */
  float softcap;
  /**
   * The key position of query row 0, the same for all sequences: 0 if there is no past, else the
   * number of keys before it. If sequences differ: FA_POS_END (or q_positions). Any number for
   * which q_pos + len_q does not overflow (else FA_ERR_OVERFLOW). Only windows, spans and linear
   * biases depend on it.
   */
  int64_t q_pos;
  /**
   * How many keys before its own position p a query sees: the first is p - window_left. At least
   * 0, or FA_NO_LIMIT. (A Hugging Face sliding_window of W is window_left = W - 1, window_right
   * = 0.)
   */
  int64_t window_left;
  /**
   * How many keys behind its own position p a query sees: the last is p + window_right. At least
   * 0, or FA_NO_LIMIT. Causal attention is window_right = 0.
   */
  int64_t window_right;
  /**
   * data = NULL: no mask. Otherwise a mask [batch][heads_q][len_q], each row with one element
   * for each of len_kv keys. A stride (of batch entry, head or row) of 0 repeats it.
   * FA_DTYPE_F32, _F16, _BF16: added to the scores, after softcap; -infinity hides the key, and
   * no other value does, however small. FA_DTYPE_BOOL8: nonzero = visible. In ragged batches,
   * too, row i of entry b is for row i of sequence b. Elements for keys that windows and kv_lens
   * hide are not read. Keys that it hides from all neighbouring rows, as a window would, take no
   * time except for reading the mask.
   */
  struct fa_tensor mask;
  /**
   * NULL, or the slope of each query head (ALiBi, arXiv:2108.12409): -slope * |p - j| is added
   * to the score of the query at position p and key j, after softcap. With FA_MASK_TIMES_SLOPE:
   * slope * mask.
   */
  const float *alibi_slopes;
  /**
   * ELEMENTS from the slopes of one sequence to those of the next; 0 = the same slopes for all.
   */
  int64_t alibi_batch_stride;
  /**
   * NULL, or an attention sink for each query head: a logit that takes part in the softmax
   * without a value, so the sum of exponentials gets exp(sink) more. It is neither scaled nor
   * capped. A row that sees no key is zeros, and its lse is the sink. If results are merged
   * (fa_merge), only one of them may be computed with sinks. -infinity = no sink.
   */
  const float *sinks;
  /**
   * NULL, or block-sparse attention: bytes [batch][heads_q][blocks of query rows][blocks of
   * keys]; nonzero = these rows see these keys, unless something else hides them. Blocks without
   * any visible pair take no time. The bytes of a row of blocks are contiguous.
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
   * Ragged queries: NULL, or [batch + 1]. q, o and lse then have the rows of all sequences one
   * after another. Those of sequence b are rows cu_len_q[b] to cu_len_q[b + 1] - 1. The stride
   * between batch entries is not used. Not negative, not decreasing.
   */
  const int32_t *cu_len_q;
  /**
   * Ragged keys: NULL, or [batch + 1]. k and v then have the keys of all sequences one after
   * another. Those of sequence b are rows cu_len_kv[b] to cu_len_kv[b + 1] - 1. Not negative,
   * not decreasing.
   */
  const int32_t *cu_len_kv;
  /**
   * NULL, or [batch]: how many keys of each sequence are in use, counted from its first one. The
   * others are never read.
   */
  const int32_t *kv_lens;
  /**
   * NULL, or the page table of paged keys. k and v are then
   * [num_pages][heads_kv][page_size][dim], and stride[0] is the one between pages. Key j of a
   * sequence is token j % page_size of the page that is number j / page_size in the sequence's
   * list. The lists are [batch][table_stride], or one after another with block_table_start.
   * Pages in use must be below num_pages; entries that no key needs are not read. cu_len_kv must
   * be NULL. Strides decide whether memory is [page][token][head][dim] or
   * [page][head][token][dim].
   */
  const int32_t *block_table;
  /**
   * NULL, or [batch + 1]: the list of sequence b is block_table[block_table_start[b]] to
   * block_table[block_table_start[b + 1] - 1].
   */
  const int32_t *block_table_start;
  /**
   * Entries from the list of one sequence to the list of the next. Not used with
   * block_table_start.
   */
  int64_t table_stride;
  /**
   * Tokens of a page; at least 1. With 1 the table is one of token slots.
   */
  int64_t page_size;
  /**
   * Pages of k and v.
   */
  int64_t num_pages;
  /**
   * NULL, or an output: the natural logarithm of each row's sum of exponentials, -infinity for a
   * row that sees no key. Results over different keys can be merged with it: fa_merge, which
   * needs the rows of lse in the order of the rows of the output (for an output
   * [token][head][dim]: lse_stride {.., 1, heads_q}).
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
   * Keys of a tile; 0 = chosen from this machine's caches. Different values give results that
   * differ within rounding.
   */
  int64_t block_kv;
  /**
   * NULL, or [batch]: the key position of query row 0 of each sequence, in place of q_pos, which
   * must then be FA_POS_END (as fa_attention_init leaves it) or 0. Any numbers, as for q_pos.
   * For sequences with different pasts in a right-padded batch.
   */
  const int32_t *q_positions;
  /**
   * NULL, or [batch]: the first visible key of each sequence, 0 to its number of keys. Keys
   * before it are hidden, and their content does not matter. Pages that have only such keys are
   * not looked up. Positions still count from key 0. For left padding, and for caches that have
   * dropped their oldest keys.
   */
  const int32_t *kv_starts;
  /**
   * How many keys of each sequence, from kv_starts on, window_left does not hide: a row at
   * position p sees key j if j <= p + window_right and either j >= p - window_left or j <
   * kv_starts + prefix_keys (StreamingLLM, arXiv:2309.17453). 0 = off. Has no effect without
   * window_left.
   */
  int64_t prefix_keys;
  /**
   * NULL, or spans of keys that see each other both ways, whatever the windows are (images
   * within a causal text; the prompt of a prefix language model). A span is two key positions:
   * its first key, and the key after its last one. Spans are ascending and disjoint in each
   * sequence. A row whose position is in a span sees all keys of that span, besides the keys in
   * its windows. kv_lens, kv_starts, mask, block_mask and kept_blocks hide keys of spans, too.
   */
  const int32_t *spans;
  /**
   * [batch + 1]; NULL without spans. The spans of sequence b are spans[2 * span_starts[b]] to
   * spans[2 * span_starts[b + 1] - 1]. Not negative, not decreasing.
   */
  const int32_t *span_starts;
  /**
   * data = NULL, or an output: probabilities, FA_DTYPE_F32, [batch][num_weight_heads]
   * [num_weight_rows], each row with one element for each of len_kv keys: exp(t_j) / Z. So a row
   * sums to 1 minus the sink's part. 0 for keys that the row does not see, and for those from
   * the sequence's own length on. If NaN or infinite scores make o NaN, the weights of all
   * visible keys are NaN. These probabilities are not rounded, unlike those that values are
   * multiplied by (FA_PRECISE). For word time stamps, and to inspect a model. They need no other
   * memory: the scores of a row are kept here until it is finished. In ragged batches, too, row
   * i of entry b is for row i of sequence b; rows that a sequence does not have are not written.
   * Its rows must not overlap each other. The memory from its first row to its last row must not
   * overlap an input or another output.
   */
  struct fa_tensor weights;
  /**
   * NULL = all query heads, or [num_weight_heads]: the query heads whose probabilities are
   * wanted, ascending.
   */
  const int32_t *weight_heads;
  /**
   * Entries of weight_heads, at least 1. Without weight_heads: 0 or heads_q.
   */
  int64_t num_weight_heads;
  /**
   * NULL = all of len_q query rows, or [num_weight_rows]: the query rows of each sequence whose
   * probabilities are wanted, ascending. Either all are at least 0, or all are negative:
   * negative ones count from the sequence's end, so -1 is the last row of each sequence.
   */
  const int32_t *weight_rows;
  /**
   * Entries of weight_rows, at least 1. Without weight_rows: 0 or len_q.
   */
  int64_t num_weight_rows;
  /**
   * NULL, or block-sparse attention by lists (BSR: block compressed sparse rows): the blocks of
   * keys that each block of query rows sees, as far as nothing else hides them. Time is in
   * proportion to what is listed. Not together with block_mask. Query rows i of head h of
   * sequence b see the blocks kept_blocks[kept_start[r]] to kept_blocks[kept_start[r + 1] - 1],
   * where r = b * kept_stride[0] + h / (heads_q / kept_heads) * kept_stride[1] + i / kept_q. So
   * each head has a number for each block of len_q rows, and one more. Not negative, and not
   * decreasing within a head.
   */
  const int32_t *kept_start;
  /**
   * Blocks of keys, by number: block n has keys n * kept_kv to n * kept_kv + kept_kv - 1. In
   * each list ascending, each once, 0 to (len_kv - 1) / kept_kv. Lists may share entries. May be
   * NULL if all lists are empty.
   */
  const int32_t *kept_blocks;
  /**
   * ENTRIES of kept_start from one sequence to the next, and from one head with lists to the
   * next; 0 = the same lists for all.
   */
  int64_t kept_stride[2];
  /**
   * Heads that have lists of their own: heads_q, heads_kv (then the query heads of a kv head
   * share them), or another divisor of heads_q. 0 = heads_q.
   */
  int64_t kept_heads;
  /**
   * Query rows of a block; at least 1. Block 0 begins with row 0 of each sequence.
   */
  int64_t kept_q;
  /**
   * Keys of a block; at least 1. Block 0 begins with key 0 of each sequence.
   */
  int64_t kept_kv;
  /**
   * With block_table: entries from the list of one kv head of a sequence to that of the next; 0
   * = all kv heads have the same list. So each kv head reads pages of its own, those that were
   * selected for it (Quest, arXiv:2406.10774), as many as the others do. Lists of all kv heads
   * lie within the table_stride entries of their sequence, or between its block_table_start and
   * the next. Keys count within a list: key j is token j % page_size of entry j / page_size, and
   * positions, windows and masks count so, too.
   */
  int64_t table_head_stride;
  /**
   * NULL, or single keys that all query rows of a head see, besides those in their windows and
   * blocks (the vertical lines of MInference, arXiv:2407.02490; global or boundary tokens): head
   * h of sequence b has the keys columns[column_start[r]] to columns[column_start[r + 1] - 1],
   * where r = b * column_stride[0] + h / (heads_q / column_heads) * column_stride[1]. So each
   * head with a list has two entries, and lists behind one another may share them (stride 1). A
   * row sees a listed key if it is before the right end of the row's window (with a causal
   * window: not behind the row) or in its span, and kv_lens and kv_starts do not hide it;
   * window_left, block_mask and kept_blocks do not. Time is in proportion to what is listed. Not
   * together with mask, alibi_slopes or weights.
   */
  const int32_t *column_start;
  /**
   * Keys, in each list ascending, each once, 0 to len_kv - 1. Lists may share entries. May be
   * NULL if all lists are empty.
   */
  const int32_t *columns;
  /**
   * ENTRIES of column_start from one sequence to the next, and from one head with a list to the
   * next; 0 = the same list for all.
   */
  int64_t column_stride[2];
  /**
   * Heads that have lists of their own: heads_q, heads_kv (then the query heads of a kv head
   * share them, and are computed together), or another divisor of heads_q. 0 = heads_q.
   */
  int64_t column_heads;
  /**
   * BYTES of memory at q.data; 0 = unknown. If it is known here or in the next six fields, every
   * call refuses a description by which the tensor takes more: FA_ERR_SHAPE. What a tensor takes
   * goes from its first to its last element by sizes, strides and type: all of len_q or len_kv
   * tokens (of ragged rows: those of the lists; of pages: num_pages whole pages), whatever
   * kv_lens are. So a forgotten type, a wrong number of heads, and pages that are not there do
   * not lead out of the memory.
   */
  int64_t q_bytes;
  /**
   * BYTES of memory at k.data; 0 = unknown. fa_cache_append checks it, too.
   */
  int64_t k_bytes;
  /**
   * BYTES of memory at v.data; 0 = unknown. fa_cache_append checks it, too.
   */
  int64_t v_bytes;
  /**
   * BYTES of memory at o.data; 0 = unknown.
   */
  int64_t o_bytes;
  /**
   * BYTES of memory at mask.data; 0 = unknown.
   */
  int64_t mask_bytes;
  /**
   * BYTES (not elements) of memory at lse; 0 = unknown.
   */
  int64_t lse_bytes;
  /**
   * BYTES of memory at weights.data; 0 = unknown.
   */
  int64_t weights_bytes;
} fa_attention;

/**
 * How fa_forward_f32, fa_forward_i8 and fa_mha compute. Frozen: this struct never changes. Fill
 * all fields, or call a constructor and change what you like.
 */
typedef struct fa_config {
  /**
   * Query rows per tile; 0 = chosen from this machine's caches. Any value is honoured. Results
   * do not depend on it.
   */
  size_t block_size_q;
  /**
   * Keys per tile; 0 = chosen from this machine's caches. Any value is honoured. Different
   * values give results that differ within rounding. Set it to get the same bits on machines
   * with different cache sizes and the same instruction set.
   */
  size_t block_size_kv;
  /**
   * Elements of one row of query, key, value and output; at least 1.
   */
  size_t head_dim;
  /**
   * true: key j is visible to query i if and only if j <= i + (seq_len_kv - seq_len_q), so the
   * last query sees all keys. A query that sees no key has an output of zeros. false: every
   * query sees every key.
   */
  bool causal;
  /**
   * The softmax scale, by which every dot product of a query and a key is multiplied. Finite;
   * may be negative; 0 = 1/sqrt(head_dim). With FA_SCALE_ZERO all visible keys weigh the same.
   */
  float softmax_scale;
  /**
   * The number of threads that may compute at the same time, the calling thread included. 1 =
   * only the calling thread. 0 = one per core that the process may use; CPU affinity and control
   * groups count, as they are at the first call that needs the number. The other threads belong
   * to a pool of the library's own. The first call that needs the pool creates it, and it stays.
   * Small problems use fewer threads, no call uses more than 256, and if threads cannot be
   * created, fewer work. Every value gives the same bits.
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
 * How a problem is computed: for tuners and logs. What it says of may change in any version, and
 * with fa_limit_isa.
 */
typedef struct fa_plan {
  /**
   * sizeof(fa_plan). Set it before the call. Of a larger structure, that of a later version,
   * the fields that this version does not know become 0.
   */
  size_t struct_size;
  /**
   * The instruction set of the kernel, one of those of fa_isa. A static string.
   */
  const char *isa;
  /**
   * What is multiplied: "f32", "bf16", "f16", "i16" or "i8". A static string.
   */
  const char *compute;
  /**
   * A value of fa_path: that of a sequence of len_q rows. Shorter sequences of a ragged batch
   * may take the other path.
   */
  int32_t path;
  /**
   * Threads that compute at the same time; at most n_parts.
   */
  int32_t threads;
  /**
   * How many of them the problem is worth waking for if they sleep.
   */
  int32_t threads_awake;
  /**
   * 1 if keys go through scratch memory, some at a time, where they are gathered, copied,
   * converted or rearranged; 0 if they are read where they are.
   */
  int32_t k_staged;
  /**
   * 1 if values go through scratch memory, as k_staged; else 0.
   */
  int32_t v_staged;
  /**
   * 0.
   */
  int32_t reserved0;
  /**
   * Query heads that share a tile.
   */
  int64_t tile_heads;
  /**
   * Kv heads that decode takes in turns, some keys at a time.
   */
  int64_t tile_kv_heads;
  /**
   * Query rows of a tile, those of all its heads together.
   */
  int64_t tile_rows;
  /**
   * Keys of a tile.
   */
  int64_t tile_keys;
  /**
   * Tiles; where keys are split, groups of heads. 0 = there is nothing to compute.
   */
  int64_t work_items;
  /**
   * Ranges that the keys of a work item are cut into, so that threads share them; 1 where they
   * are not.
   */
  int64_t key_ranges;
  /**
   * BYTES of scratch memory of a thread.
   */
  size_t thread_bytes;
  /**
   * BYTES that fa_attention_workspace answers for n_parts.
   */
  size_t workspace_bytes;
} fa_plan;

/**
 * One call of a task.
 */
typedef void (*fa_task)(void *arg, size_t i);

/**
 * The caller's threads: two functions that ONNX Runtime's ParallelFor, pthreadpool, TBB, OpenMP,
 * libdispatch and the like can implement in a few lines. Both must return normally: no exception
 * and no longjmp may leave them.
 */
typedef struct fa_pool {
  /**
   * sizeof(fa_pool). The larger structure of a later version is accepted if the fields that this
   * version does not know are 0.
   */
  size_t struct_size;
  /**
   * Passed to both functions.
   */
  void *ctx;
  /**
   * How many threads compute at the same time, the calling thread included; clamped to 1 to 256.
   * NULL = 1.
   */
  int32_t (*width)(void *ctx);
  /**
   * Calls task(arg, i) once for each i below n, in any order, at the same time or one after
   * another, on any threads (the calling one may be among them), and returns when all these
   * calls have returned. It does not matter which thread makes which call; tasks never wait for
   * each other. NULL = the calling thread makes the calls.
   *
   * A pool that breaks this contract only loses time. If it leaves out a call, other tasks or
   * the calling thread do its work. A call that it makes twice, or with an i of n or more, finds
   * nothing to do. If calls still run when it returns, the library waits for them; later calls
   * do nothing. No thread may end within a task, or leave a task, parallel_for or width by
   * longjmp or an exception. At most 256 calls can use pools at the same time; further calls use
   * the calling thread alone.
   */
  void (*parallel_for)(void *ctx, size_t n, fa_task task, void *arg);
} fa_pool;

/**
 * A text in partitions, and how much of the attention is kept: see fa_sparse_from_partitions. To
 * be initialised by fa_sparse_config_init. Later versions may append fields.
 */
typedef struct fa_sparse_config {
  /**
   * sizeof(fa_sparse_config).
   */
  size_t struct_size;
  /**
   * Query rows: the last tokens of the text. 0 to len_kv.
   */
  int64_t len_q;
  /**
   * Keys: all tokens of the text. 0 to 2^31 - 1.
   */
  int64_t len_kv;
  /**
   * Query rows of a block, as in fa_attention; at least 1. Initially 64.
   */
  int64_t kept_q;
  /**
   * Keys of a block, as in fa_attention; at least 1. Initially 64. Attention is fastest with
   * blocks of 64 and larger.
   */
  int64_t kept_kv;
  /**
   * [num_partitions]: the token at which each partition begins. The first one is 0; ascending,
   * each once, below len_kv. May be NULL if there are none.
   */
  const int32_t *partitions;
  /**
   * Entries of partitions. 0: all of the text is one partition.
   */
  int64_t num_partitions;
  /**
   * [num_boundary_tokens]: tokens that see each other, and that are seen across partitions;
   * often the first token of each partition. Ascending, each once, below len_kv. May be NULL if
   * there are none.
   */
  const int32_t *boundary_tokens;
  /**
   * Entries of boundary_tokens.
   */
  int64_t num_boundary_tokens;
  /**
   * How many boundary tokens are kept, at most; FA_NO_LIMIT = all. If there are more, so many
   * are taken that are evenly spread over their list. Initially 20.
   */
  int64_t max_edges;
  /**
   * Tokens before each row that it sees, whatever the partitions are; if causal is 0, as many
   * behind it, too. At least 0.
   */
  int64_t window;
  /**
   * Not 0: no row sees a key behind it. Initially 1.
   */
  uint32_t causal;
  /**
   * FA_SCHEDULE_NONE (initially), FA_SCHEDULE_LINEAR, FA_SCHEDULE_THRESHOLD or
   * FA_SCHEDULE_ADAPTIVE.
   */
  int32_t schedule;
  /**
   * How coherent the text is: the value of the least cut, or what your schedule is made for.
   */
  uint32_t coherence;
  /**
   * With a schedule, partitions are not relied on if the coherence is less: everything is
   * listed. So it is if there are less than two partitions. Initially 30.
   */
  uint32_t coherence_low;
  /**
   * Where the schedule has its largest density; at least coherence_low. Initially 300.
   */
  uint32_t coherence_high;
  /**
   * To how few boundaries the edges between partitions are concentrated: 0 to 32768, which is 1.
   */
  uint32_t concentration;
  /**
   * The least density to aim at: 0 to 32768, which is 1. Initially 0.
   */
  uint32_t min_density;
  /**
   * The largest density to aim at: min_density to 32768, which is 1. Initially 32768.
   */
  uint32_t max_density;
} fa_sparse_config;

/**
 * What fa_sparse_from_partitions has made: fields that fa_attention has, too, and how much they
 * keep. All of it is output, but struct_size. Later versions may append fields.
 */
typedef struct fa_sparse_lists {
  /**
   * sizeof(fa_sparse_lists), which the caller sets.
   */
  size_t struct_size;
  /**
   * For fa_attention.kept_start, with both strides 0: [num_starts]. NULL if memory was NULL, as
   * the three below.
   */
  const int32_t *kept_start;
  /**
   * For fa_attention.kept_blocks: [num_blocks].
   */
  const int32_t *kept_blocks;
  /**
   * For fa_attention.column_start, with both strides 0: 0 and num_columns.
   */
  const int32_t *column_start;
  /**
   * For fa_attention.columns: [num_columns], the boundary tokens that are kept.
   */
  const int32_t *columns;
  /**
   * Blocks of query rows, and one more.
   */
  int64_t num_starts;
  /**
   * Listed blocks.
   */
  int64_t num_blocks;
  /**
   * Columns.
   */
  int64_t num_columns;
  /**
   * int32_t that memory must have room for.
   */
  int64_t room;
  /**
   * Pairs of a row and a key that it sees, exactly.
   */
  int64_t pairs;
  /**
   * Of these, the ones that are in no listed block: columns elsewhere.
   */
  int64_t column_pairs;
  /**
   * Pairs of dense attention, which is causal if that was asked for.
   */
  int64_t all_pairs;
  /**
   * The window that was chosen: at least that of the configuration.
   */
  int64_t window;
  /**
   * How many tokens of its own partition a row sees to each side; FA_NO_LIMIT = all.
   */
  int64_t reach;
  /**
   * pairs / all_pairs; 1 if there are none.
   */
  double density;
  /**
   * An estimate of the share of the time of dense attention that is saved in prefill, 0 to 1: a
   * pair in a listed block of 64 or more costs 1.1 times what a dense one does, a pair of a
   * column 1.3 times.
   */
  double time_saved;
  /**
   * The density that was aimed at: 32768 is 1.
   */
  uint32_t target_density;
  /**
   * 1: the schedule did not rely on the partitions, and everything is listed; then dense
   * attention, without lists, is as good. Else 0.
   */
  uint32_t dense;
} fa_sparse_lists;





#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Writes the keys and values of new tokens into a cache, dense, ragged or paged. They are rounded
 * or quantised to the types of the cache, as fa_quantize does it.
 *
 * The description is that of the attention that follows. Its query rows are the new tokens, and
 * the key and value of a row go to the key position of that row (FA_POS_END, q_pos or
 * q_positions). So the same description, with kv_lens that already count the new tokens, serves
 * this call and then fa_attention_run. This function uses batch, heads_kv, len_q, len_kv, dim_qk,
 * dim_v, k, v, q_pos, q_positions, cu_len_q, cu_len_kv, kv_lens, kv_starts, spans and the page
 * table. Everything else may be as fa_attention_init leaves it. Tokens whose position is not among
 * the keys in use of their sequence are refused.
 *
 * A cache of 8-bit elements, or of FA_DTYPE_Q15 with a quant: if each token has scales of its own
 * (quant->stride[2] is not 0, group_tokens is 1, and stride[0] is not 0 where there are several
 * batch entries or pages), the scales, and zeros if there are any, are found and written as by
 * fa_quantize: they are OUTPUTS. Scales that tokens share, and a scale that is NULL, are inputs:
 * an element becomes x / scale + zero, rounded to nearest even (of FA_DTYPE_Q15 to a multiple of
 * 1/32768). Integers out of range become the least or the largest one, and NaN becomes 0. For
 * floating-point numbers fa_quantize says what happens.
 *
 * @param[in] a        not NULL; rows of a->k and a->v that belong to the new tokens are OUTPUTS
 * @param[in] new_k    NULL = no keys are written; or [batch][heads_kv][len_q][dim_qk]; with
 *                     cu_len_q the rows of all sequences one after another, as in q;
 *                     FA_DTYPE_F32, _F16 or _BF16
 * @param[in] new_v    NULL = no values are written (v is a view of k); or
 *                     [batch][heads_kv][len_q][dim_v], likewise
 * @param[out] why     NULL, or room for why_size bytes: a sentence in English that says what was
 *                     refused, empty if nothing was, ended by a zero byte
 * @param why_size     bytes at why
 * @return FA_OK; FA_ERR_NULL; FA_ERR_STRUCT_SIZE; FA_ERR_RESERVED; FA_ERR_SHAPE;
 *         FA_ERR_ZERO_EXTENT; FA_ERR_DTYPE; FA_ERR_STRIDE (also for a stride_dim of k or v, as
 *         rows of a cache that is written must be contiguous, and for tokens of k or v that
 *         overlap); FA_ERR_OVERFLOW; FA_ERR_LENGTHS (a list, or a position that is not among the
 *         keys in use); FA_ERR_PAGE; FA_ERR_QUANT_SCALE; FA_ERR_ISA; FA_ERR_OVERLAP (what is
 *         written shares memory with new_k, new_v, scales that are inputs, a list, or its own
 *         scales; or k and v, or their scales, begin at the same address. All bytes from the first
 *         to the last one of a tensor belong to it). On errors nothing has been written but why.
 *
 * Not checked: whether two sequences share a page. A page that is written must be in one list,
 * once. Bytes of the cache that belong to no new token are neither read nor written.
 *
 * Computes on the calling thread and allocates nothing. Thread-safe: several threads may write at
 * the same time if no two of them write the same rows, for example keys and values (the other one
 * NULL), different sequences, or different heads. Other threads may compute attention on the same
 * cache meanwhile: of keys that are not in use (kv_lens), attention reads neither the bytes nor
 * scales that only they have.
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
 * Like fa_config_for_head_dim, but with tiles of 32 queries x 128 keys: fewer, longer passes over
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
 * Like fa_config_for_head_dim, but with tile sizes of 0: chosen from this machine's caches at each
 * call. This is the fastest choice.
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
 * @param[out] out  [seq_len_q][head_dim]; must not overlap an input. Written completely; its old
 *                  content does not matter.
 * @return FA_OK; FA_ERR_NULL; FA_ERR_ZERO_EXTENT; FA_ERR_OVERFLOW; FA_ERR_SOFTMAX_SCALE;
 *         FA_ERR_RESERVED; FA_ERR_OVERLAP; FA_ERR_ISA; FA_ERR_MEMORY; FA_ERR_INTERNAL
 *
 * All arrays are dense and row-major. They need no alignment, and an array without elements may be
 * NULL. seq_len_q = 0 does nothing; seq_len_kv = 0 gives zeros.
 *
 * Scores, softmax and sums are f32. Against exact arithmetic the error is that of f32 dot products
 * and sums: at most 1e-5 times the largest |v| while |softmax_scale * q.k| stays below about 50. A
 * key that a query does not see has no influence on its row, even if it is NaN. A NaN or infinity
 * that a query sees only makes its own row NaN: NaN in q makes the whole row NaN, NaN in a row of
 * v that column of it, and so on as in the formula.
 *
 * Thread-safe: any number of calls may run at the same time, with outputs of their own; inputs may
 * be shared. Scratch memory is allocated for the time of the call: see fa_scratch_bytes. Calls
 * need up to 48 KiB of stack, so a thread with 64 KiB may make them.
 */
enum fa_status fa_forward_f32(const struct fa_config *cfg,
                              const float *q,
                              const float *k,
                              const float *v,
                              size_t seq_len_q,
                              size_t seq_len_kv,
                              float *out);

/**
 * Attention of one head of 8-bit integers: out = softmax(softmax_scale * q' * k'^T) * v', where q'
 * = q_scale * q, and so on.
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
 * On x86-64 products are made of integers: scores are exact, and probabilities are rounded to 15
 * bits (relative RMS error against attention on q', k', v' below 5e-4: see FA_PRECISE). Other
 * machines compute in f32, with the error of fa_forward_f32. The tensors are never expanded as a
 * whole. For many queries, fa_attention with FA_FAST is faster: it allows probabilities of 8 bits.
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
 * Multi-head attention in f32: fa_forward_f32 for each of num_heads heads. For a batch, pass
 * batch * heads as num_heads.
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
 * A head has the same bits as in fa_forward_f32 on that head alone. Everything else is as for
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
 * The instruction set that calls use from now on: the best one that the machine has and that
 * fa_limit_isa or FA_MAX_ISA allows. Names, from the best one on:
 *
 * - x86-64: "amx" (AVX-512 with tiles of bfloat16 and 8-bit integers, and of binary16 where the
 *   processor has AMX-FP16, if it was asked for: see fa_enable_amx), "avx512bf16" (with dot
 *   products of bfloat16), "avx512vnni" (with dot products of 8-bit integers), "avx512" (F, BW, DQ
 *   and VL), "avxvnni" (AVX2 with dot products of 8-bit integers), "avx2" (with FMA and F16C).
 * - 64-bit Arm: "neon-bf16" (FEAT_BF16), "neon-i8mm" (FEAT_I8MM), "neon-dotprod" (FEAT_DotProd),
 *   "neon".
 * - WebAssembly: "simd128", if the library was compiled for it.
 * - Everywhere: "scalar".
 *
 * Each set includes those after it in its line. Exception: machines with AVX-512 may lack
 * "avxvnni". Later versions add names. fa_attention_check says which set a problem uses: the
 * fastest one for it, which need not be the best one. If FA_MAX_ISA is none of these names, the
 * answer is "unknown", and computing functions return FA_ERR_ISA.
 *
 * @return a static string, never NULL; do not free it
 *
 * Thread-safe.
 */
const char *fa_isa(void);

/**
 * Caps the instruction set of all calls in the process that start after this one returns. For
 * tests, and to compare results between machines. It overrides the environment variable
 * FA_MAX_ISA, which takes the same names and is read once, at the first call that needs it.
 *
 * @param isa  the best instruction set to use, a name as fa_isa returns it. If the machine lacks
 *             it, the next best one is used; that is no error. If you name a set, its kernels are
 *             used even if others would be faster (for example dot products of bfloat16 on Intel's
 *             machines). NULL removes the cap, and FA_MAX_ISA applies again.
 * @return FA_OK, or FA_ERR_ISA for an unknown name: then nothing changes
 *
 * Thread-safe.
 */
enum fa_status fa_limit_isa(const char *isa);

/**
 * Lets all calls in the process that start after this one returns use AMX, the matrix unit of
 * Intel's server processors since Sapphire Rapids: "amx" in fa_isa. A refusal changes nothing.
 *
 * Linux gives it to processes that ask for it (arch_prctl, ARCH_REQ_XCOMP_PERM), because it makes
 * the frames of their signals 8 KiB larger: alternate signal stacks that were made with a fixed
 * size, such as SIGSTKSZ of older C libraries, may be too small, and then this is refused. The
 * permission is that of all threads, and of children made by fork; no process gives it back. The
 * library asks for it here, or at the first call if the environment variable FA_AMX is 1, and
 * never otherwise; and it does not use AMX unasked where another library, such as PyTorch, has
 * asked for it. FA_AMX=0 forbids it. Tiles are configured while a thread computes a part, and
 * released when it ends.
 *
 * Results differ from those of other sets in rounding. Its speed has not been measured.
 *
 * @param[out] why   NULL, or room for why_size bytes: a sentence in English, always ended by a
 *                   zero byte, cut off if it is longer. Its wording may change in any version.
 * @param why_size   bytes at why
 * @return FA_OK, also if it was enabled before; FA_ERR_ISA: this process has none, because of
 *         the processor, the system, FA_AMX=0 or an alternate signal stack
 *
 * Thread-safe.
 */
enum fa_status fa_enable_amx(char *why, size_t why_size);

/**
 * Merges two results of attention of the same queries over disjoint sets of keys. Afterwards (o,
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
 *         FA_ERR_OVERFLOW; FA_ERR_STRIDE (an address is not a multiple of 4); FA_ERR_OVERLAP
 *
 * A result over no keys (o = 0, lse = -infinity) changes no bit of the other one, on either side.
 * Otherwise both orders give the same within rounding. Thread-safe.
 */
enum fa_status fa_merge(float *o,
                        float *lse,
                        const float *o2,
                        const float *lse2,
                        int64_t rows,
                        int64_t dim_v);

/**
 * Says how fa_attention_run computes a problem with a pool of n_parts threads.
 *
 * @param[in] a       not NULL
 * @param n_parts     1 to 256: as for fa_attention_workspace
 * @param[in,out] plan  not NULL, with its struct_size set; otherwise untouched on errors
 * @return as fa_attention_workspace. FA_ERR_STRUCT_SIZE is about a or about the plan.
 *
 * Thread-safe. The answer is valid until fa_limit_isa is called.
 */
enum fa_status fa_attention_plan(const struct fa_attention *a,
                                 int32_t n_parts,
                                 struct fa_plan *plan);

/**
 * Makes a pool of the library's own threads, to be used like a pool of the caller's. Idle threads
 * spin for 50 microseconds, yielding their core to other threads, and then sleep.
 *
 * @param n_threads  0 to 256: threads that compute at the same time in a call, the calling one
 *                   included; 0 = one per core that the process may use, 256 at most
 * @param[out] out   not NULL; the pool; give it back with fa_pool_destroy. Untouched on errors.
 * @return FA_OK; FA_ERR_NULL; FA_ERR_PART (n_threads out of range); FA_ERR_MEMORY (no thread could
 *         be created; if the system grants fewer than n_threads, the pool has fewer)
 *
 * Allocates up to 1 MiB a thread, and in a rare race can abort the process when memory runs out:
 * see fa_scratch_bytes. Calls on the pool allocate nothing.
 *
 * Thread-safe, and so is the pool. In a child process after fork(), calls on it use the calling
 * thread alone: a child makes a pool of its own, and may destroy this one.
 */
enum fa_status fa_pool_create(int32_t n_threads, struct fa_pool **out);

/**
 * Ends the threads of a pool from fa_pool_create and frees it. No call may be using it.
 *
 * @param pool  NULL does nothing
 */
void fa_pool_destroy(struct fa_pool *pool);

/**
 * Converts a tensor to any storage type that fa_attention takes as Q, K or V: a whole tensor at
 * once, or the new tokens of a cache (for which there is also fa_cache_append).
 *
 * - FA_DTYPE_F32, _F16, _BF16: each number is rounded to nearest even. A number that is too large
 *   becomes an infinity (f16: from 65520 on), one that is too small becomes 0 with its sign;
 *   subnormal numbers of the type are kept. A NaN stays a NaN with its sign, and may become quiet.
 * - FA_DTYPE_Q15 without quant: each number times 32,768 is rounded to nearest even. What is too
 *   large, infinities included, becomes 32767 or -32768, and NaN becomes 0.
 * - FA_DTYPE_Q8_0, _Q4_0, _Q4_1, _Q5_0, _Q5_1, _IQ4_NL: the blocks that ggml's reference functions
 *   write, bit for bit (as quantize_row_q8_0_ref, without fused multiply-adds). ggml does not
 *   expect NaN and infinities; a block with one gets a scale of NaN and 0 in everything else, so
 *   that attention gives NaN wherever the block is visible. A scale (or minimum) beyond the range
 *   of binary16 is infinite, as in ggml. Codes saturate where a scale is too small to divide by
 *   it.
 * - FA_DTYPE_F8_E4M3, _F8_E5M2 without quant: each number is rounded to nearest even. A number
 *   that is too large, infinities included, becomes the largest number; subnormal numbers of the
 *   type are kept. A NaN stays a NaN with its sign.
 * - FA_DTYPE_I8: as fa_quantize_i8 without smooth, with the same rules and statuses.
 * - FA_DTYPE_U8, whose quant must have zeros (else FA_ERR_NULL): as FA_DTYPE_I8 with zeros, but
 *   zero = -min x / scale, and stored is 0 to 255.
 * - FA_DTYPE_F8_E4M3, _F8_E5M2 with a quant, which must not have zeros (else FA_ERR_DTYPE): as
 *   FA_DTYPE_I8 without zeros, but scale = max |x| / 448 or max |x| / 57344, and stored is x /
 *   scale rounded as above.
 * - FA_DTYPE_Q15 with a quant without zeros: as FA_DTYPE_I8 without zeros, but scale is 32768
 *   times max |x| / 32767 (FLT_MAX, where that is infinite), and stored is x divided by max |x| /
 *   32767. Scale and stored are 0 where max |x| / 32767 would be less than FLT_MIN.
 *
 * @param src     [batch][heads][tokens][dim], FA_DTYPE_F32, _F16 or _BF16
 * @param batch, heads, tokens  at least 0; if one is 0, nothing happens
 * @param dim     at least 1; a multiple of 32 for types in blocks
 * @param dst     the same sizes; its rows must not overlap. OUTPUTS are its elements, and those of
 *                quant, which FA_DTYPE_I8 and _U8 need, and _Q15, _F8_E4M3 and _F8_E5M2 may have;
 *                for other types quant is NULL
 * @return FA_OK; FA_ERR_NULL; FA_ERR_SHAPE (a size is negative, or dim is not made of whole
 *         blocks); FA_ERR_ZERO_EXTENT (dim is 0); FA_ERR_DTYPE (also if src has a quant);
 *         FA_ERR_STRIDE (negative, not a multiple of the element size, a stride_dim, or rows of
 *         dst overlap); FA_ERR_OVERFLOW; FA_ERR_ISA; FA_ERR_OVERLAP (dst shares memory with src;
 *         all bytes from the first to the last one of a tensor belong to it). On errors nothing
 *         has been written. Bytes between the rows of dst are never written.
 *
 * Not promised: which bits a NaN has. All instruction sets give the same bits, also those of NaN.
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
 * Quantises a tensor to 8-bit integers, and finds their scales (and zeros), for fa_attention to
 * take as Q, K or V: a whole tensor at once, or the new tokens of a cache.
 *
 * A cell is all elements that share a scale. dst->quant says which: the whole tensor if all its
 * strides are 0, else each batch entry (or page), head, group_tokens tokens, group_dims channels,
 * or any combination. Different cells must have different scales in memory.
 *
 * Without zeros (dst->quant->zero is NULL), for the numbers x of a cell: scale = max |x| / 127;
 * stored = x / scale, rounded to nearest even, -127 to 127. With zeros: scale = (max x - min x) /
 * 255; zero = -128 - min x / scale, rounded to an integer (of any size: 0 need not be among the
 * numbers); stored = x / scale + zero, rounded to nearest even, -128 to 127. In both cases
 * (stored - zero) * scale differs from x by at most scale / 2, and by what rounding to float costs
 * numbers as large as the largest of the cell.
 *
 * Special cells. All numbers equal: with zeros they are reproduced exactly (zero = 0, stored = 1,
 * scale is the number). A scale that would be less than FLT_MIN: without zeros, scale and stored
 * are 0; with zeros, the whole cell becomes its smallest number. A NaN or an infinity (after
 * smoothing): the scale is NaN, zero and stored are 0, so that attention gives NaN wherever the
 * cell is visible. Other cells are not affected, and the call returns FA_OK. (If the whole tensor
 * shares that scale, fa_attention_run refuses it later: FA_ERR_QUANT_SCALE.)
 *
 * Smoothing: keys often have channels far from 0, by the same number for all tokens, which cost
 * most of the integers' range. Softmax does not change if one vector is subtracted from all keys
 * of a head, as all scores of a query then change by the same number. So subtract the mean of each
 * channel over the tokens, for K only ("smoothing K" of SageAttention, arXiv:2410.02367). Nothing
 * has to be added afterwards, except to a log-sum-exp: scale times query times smooth. All keys
 * that a query sees must have had the same vector subtracted. Do not smooth with softcap or sinks,
 * which do not shift with the scores.
 *
 * @param src     [batch][heads][tokens][dim], FA_DTYPE_F32, _F16 or _BF16 (which become float
 *                exactly)
 * @param batch, heads, tokens  at least 0; if one is 0, nothing happens
 * @param dim     at least 1
 * @param smooth  NULL, or [heads][dim], dense: subtracted from each element first, rounded once
 * @param dst     the same sizes, FA_DTYPE_I8, with quant; its rows must not overlap. OUTPUTS are
 *                its elements, quant->scale (needed) and quant->zero (or NULL), although fa_quant
 *                says const
 * @return FA_OK; FA_ERR_NULL; FA_ERR_SHAPE (a size is negative); FA_ERR_ZERO_EXTENT (dim, or a
 *         group that matters, is 0); FA_ERR_DTYPE (also if src has a quant); FA_ERR_STRIDE
 *         (negative, not a multiple of the element size, a stride_dim, rows of dst overlap, or two
 *         cells have the same place); FA_ERR_OVERFLOW; FA_ERR_ISA; FA_ERR_OVERLAP (dst, scales or
 *         zeros share memory with each other, src or smooth; as in fa_attention, all bytes from
 *         the first to the last one of a tensor or an array belong to it)
 *
 * Cells have different places if each stride of quant is larger than the largest offset that the
 * smaller strides reach together. This is demanded. Strides of axes with one cell do not matter.
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
 * Says whether a problem can be computed, and how on the calling thread alone. If it cannot, says
 * why, with the numbers that do not fit. Writes nothing but why.
 *
 * If it can, warnings follow for what is legal and yet cannot be meant: strides of q, k or v that
 * are smaller than a row, or by which heads and tokens overlap, as if they counted elements, or
 * were swapped, or there were fewer heads; a stride of 0 between pages; strides of 0 by which a
 * head has one key and one value; strides of mask that count elements. A warning begins with
 * "warning: ". That data is repeated by a stride of 0 is no reason for one.
 *
 * @param[in] a        not NULL
 * @param[out] why     NULL, or room for why_size bytes: a sentence in English, always ended by a
 *                     zero byte, cut off if it is longer. Its wording may change in any version;
 *                     fa_attention_plan is for programs.
 * @param why_size     bytes at why
 * @return FA_OK, or the status with which fa_attention_run would refuse it. Workspace and pool are
 *         not looked at: fa_attention_check_run does that.
 *
 * Thread-safe.
 */
enum fa_status fa_attention_check(const struct fa_attention *a, char *why, size_t why_size);

/**
 * fa_attention_check for a whole call of fa_attention_run, workspace and pool included: says
 * whether the call would be refused and why, or how it computes with this pool, and the same
 * warnings. There is no refusal of fa_attention_run that it does not explain. Computes nothing and
 * does not touch the workspace; it calls the function width of the pool.
 *
 * @param[in] a        not NULL
 * @param ws           as for fa_attention_run
 * @param ws_size      bytes at ws
 * @param[in] pool     as for fa_attention_run
 * @param[out] why     as for fa_attention_check
 * @param why_size     bytes at why
 * @return what fa_attention_run would return (except for FA_ERR_INTERNAL)
 *
 * Thread-safe.
 */
enum fa_status fa_attention_check_run(const struct fa_attention *a,
                                      const void *ws,
                                      size_t ws_size,
                                      const struct fa_pool *pool,
                                      char *why,
                                      size_t why_size);

/**
 * Bytes of scratch memory that fa_attention_run needs with a pool of n_parts threads, and that
 * fa_attention_part needs with n_parts parts. For a NULL pool n_parts is 1. For another pool it is
 * what its function width answers (pool->width(pool->ctx); a pool from fa_pool_create always has
 * one), clamped to 1 to 256. The size grows at most with the sum of the sizes, never with their
 * product. It may be 0. A larger workspace is fine.
 *
 * The size depends on the sizes, strides and block sizes of the description and on which pointers
 * are NULL, not on what they point to. So a decode loop asks once, with the largest len_kv that
 * there will be, and uses the memory for every step with that len_kv, whatever kv_lens are. For
 * other sizes ask again: a smaller problem does not always need less, as it may be divided
 * differently. Lists of lengths, positions, spans, pages and scales are checked nevertheless, so
 * they must be there, with values that a call could have. Tensors need not be there.
 *
 * @param[in] a        not NULL
 * @param n_parts      1 to 256
 * @param[out] bytes   not NULL; untouched on errors
 * @return as fa_attention_check, and FA_ERR_NULL, FA_ERR_PART
 *
 * Thread-safe. The answer is valid until fa_limit_isa or
 * fa_enable_amx is called.
 */
enum fa_status fa_attention_workspace(const struct fa_attention *a, int32_t n_parts, size_t *bytes);

/**
 * Bytes of scratch memory that are enough for every number of parts from 1 to max_parts: the
 * largest answer of fa_attention_workspace for any of them. (More parts do not always need more.)
 * For programs that do not know yet how many threads they will have.
 *
 * @param[in] a        not NULL
 * @param max_parts    1 to 256
 * @param[out] bytes   not NULL; untouched on errors
 * @return as fa_attention_workspace
 *
 * Thread-safe. The answer is valid until fa_limit_isa or
 * fa_enable_amx is called.
 */
enum fa_status fa_attention_workspace_max(const struct fa_attention *a,
                                          int32_t max_parts,
                                          size_t *bytes);

/**
 * Computes the problem.
 *
 * @param[in] a     not NULL
 * @param ws        scratch memory: fa_attention_workspace bytes for as many parts as the pool is
 *                  wide. May be uninitialised and unaligned. NULL if that size is 0. Belongs to
 *                  the call until it returns; its content is of no use afterwards.
 * @param ws_size   bytes at ws
 * @param[in] pool  the threads; NULL = the calling thread alone
 * @return FA_OK; FA_ERR_NULL; FA_ERR_STRUCT_SIZE; FA_ERR_RESERVED; FA_ERR_SHAPE;
 *         FA_ERR_ZERO_EXTENT; FA_ERR_OVERFLOW; FA_ERR_STRIDE; FA_ERR_DTYPE; FA_ERR_SOFTMAX_SCALE;
 *         FA_ERR_SOFTCAP; FA_ERR_WINDOW; FA_ERR_LENGTHS; FA_ERR_PAGE; FA_ERR_OVERLAP;
 *         FA_ERR_QUANT_SCALE; FA_ERR_WORKSPACE; FA_ERR_ISA; FA_ERR_INTERNAL. FA_ERR_STRUCT_SIZE is
 *         about a or about the pool. fa_attention_check_run says why in words.
 *
 * Allocates nothing, takes no locks and prints nothing (the functions of a pool may). Calls need
 * up to 48 KiB of stack. A row has the same bits for every pool, and for fa_attention_part with
 * any n_parts.
 *
 * Thread-safe: any number of calls may run at the same time, with outputs and workspaces of their
 * own.
 */
enum fa_status fa_attention_run(const struct fa_attention *a,
                                void *ws,
                                size_t ws_size,
                                const struct fa_pool *pool);

/**
 * Computes one part of n_parts of the problem on the calling thread: for engines that have their
 * own threads and barriers. Call it once for each part below n_parts, on any threads, at the same
 * time or one after another, in any order. Then, after a barrier, call fa_attention_finish once
 * for each part.
 *
 * @param[in] a     not NULL; the same in every call
 * @param ws        as for fa_attention_run: fa_attention_workspace bytes for n_parts. All parts
 *                  share it, from the first call of part to the last call of finish.
 * @param ws_size   bytes at ws; the same in every call
 * @param part      at least 0, less than n_parts
 * @param n_parts   1 to 256; the same in every call
 * @return as fa_attention_run, and FA_ERR_PART
 *
 * Allocates nothing, takes no locks and prints nothing. In small problems some parts have nothing
 * to do.
 */
enum fa_status fa_attention_part(const struct fa_attention *a,
                                 void *ws,
                                 size_t ws_size,
                                 int32_t part,
                                 int32_t n_parts);

/**
 * Completes what fa_attention_part has begun. Call it once for each part, after all parts have
 * returned. If there are few query rows and many keys, the keys of a row are divided among parts;
 * this function merges their partial results. The output is complete when it has returned for
 * every part: a thread that reads rows of others needs a barrier after it.
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
 * It grows at most with the sum of the sizes, never with their product, and with the number of
 * threads. On one thread, up to 16 KiB are on the stack instead, and the answer is 0. If an
 * allocation fails, the call tries again with the scratch memory of one thread before it returns
 * FA_ERR_MEMORY.
 *
 * This does not count the library's pool. The first call with more than one thread creates it, and
 * a call that needs more threads than it has replaces it with a larger one: up to 1 MiB a thread.
 * If that memory is not available, there are fewer threads, down to the calling one. Creating
 * threads can still abort the process: the library checks first that the memory is available, but
 * another thread of the process may take it in between. This applies to fa_pool_create and to
 * these calls, never to fa_attention_run, with any pool, nor to other calls.
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
 * Thread-safe. The answer is valid until fa_limit_isa is called.
 */
enum fa_status fa_scratch_bytes(const struct fa_config *cfg,
                                int32_t dtype,
                                size_t num_heads,
                                size_t seq_len_q,
                                size_t seq_len_kv,
                                size_t *bytes);

/**
 * Sets struct_size, kept_q = kept_kv = 64, max_edges = 20, causal = 1, coherence_low = 30,
 * coherence_high = 300, max_density = 32768, and everything else to 0.
 *
 * @param[out] cfg     not NULL
 * @param struct_size  sizeof(fa_sparse_config)
 * @return FA_OK; FA_ERR_NULL; FA_ERR_STRUCT_SIZE. *cfg is untouched on errors.
 *
 * Thread-safe.
 */
enum fa_status fa_sparse_config_init(struct fa_sparse_config *cfg, size_t struct_size);

/**
 * Turns partitions of a text into lists for block-sparse attention, which are the same for all
 * heads: dense within partitions, sparse across them.
 *
 * Row i is token p = len_kv - len_q + i. It sees the keys of its own partition, those at most
 * window tokens before it (and behind it, if causal is 0), and the columns: boundary tokens that
 * are kept, wherever it is. What it sees of the first two is listed in whole blocks.
 *
 * Then the density, which is the share of all pairs (causal ones, if causal is not 0) that is
 * seen, is brought to a target: what the schedule makes of the coherence, or, without a schedule,
 * the density that there is, within min_density and max_density. If there is too much, rows see
 * less far within their partitions; if there is too little, the window becomes wider. So the
 * density comes as near to the target as blocks permit, and not beyond it. What remains in any
 * case are the blocks within the configured window and the columns, even if they alone are more
 * than the target.
 *
 * The meaning of partitions, boundary tokens, edges, coherence and schedules is that of the crate
 * ruvector-mincut-gated-transformer, whose limits of the density are 3277 and 29491. There, only
 * boundary tokens and the next three see boundary tokens, and the target density is not used.
 *
 * @param[in] cfg      not NULL
 * @param[out] memory  NULL = only sizes and densities are found; or room for as many int32_t as
 *                     lists->room says then: all lists, one behind another. What is written must
 *                     not overlap partitions or boundary_tokens.
 * @param room         int32_t at memory, at least as many as needed; of no matter if it is NULL
 * @param[in,out] lists  not NULL; struct_size must be set. Its pointers lead into memory.
 * @param[out] why     NULL, or room for why_size bytes: a sentence in English that says what was
 *                     refused, empty if nothing was, ended by a zero byte
 * @param why_size     bytes at why
 * @return FA_OK; FA_ERR_NULL; FA_ERR_STRUCT_SIZE; FA_ERR_RESERVED (an unknown schedule);
 *         FA_ERR_SHAPE (also if room is too small, and for densities, coherences and max_edges);
 *         FA_ERR_ZERO_EXTENT; FA_ERR_OVERFLOW (also if there are 2^31 blocks or more);
 *         FA_ERR_LENGTHS (partitions or boundary_tokens); FA_ERR_WINDOW; FA_ERR_OVERLAP. On errors
 *         nothing has been written but why.
 *
 * Everything but density and time_saved is computed in integers, so it is the same on every
 * machine. Takes time in proportion to the lists, and to partitions, boundary tokens and blocks of
 * query rows times the logarithm of len_kv. Computes on the calling thread and allocates nothing.
 * Thread-safe.
 */
enum fa_status fa_sparse_from_partitions(const struct fa_sparse_config *cfg,
                                         int32_t *memory,
                                         int64_t room,
                                         struct fa_sparse_lists *lists,
                                         char *why,
                                         size_t why_size);

/**
 * One sentence in English for a status code.
 *
 * @param status  any integer; an unknown one gets a sentence that says so
 * @return a static string, never NULL; do not free it
 *
 * Thread-safe.
 */
const char *fa_status_string(int32_t status);

/**
 * Version of the library, to be printed. To find out whether a library fits a program, compare
 * fa_abi_version.
 *
 * @return (major << 16) | (minor << 8) | patch
 *
 * Thread-safe.
 */
uint32_t fa_version(void);

/**
 * Version of the binary interface. It grows by one with each release that a program built against
 * an older header cannot use. Functions and status codes that are only added do not change it. A
 * program that loads the library at run time should compare it with FA_ABI_VERSION.
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

#if !defined(FA_NO_HELPERS) && !defined(FLASH_ATTENTION_HELPERS)
#define FLASH_ATTENTION_HELPERS

/*
 * Helpers: functions that the compiler of your program makes, not the library. Define FA_NO_HELPERS
 * before the header is included to leave them, and stdlib.h, out.
 */

#include <stdlib.h>

/* a * b, or the largest number where that is more; 0 if either is negative. */
static inline int64_t fa_helper_times(int64_t a, int64_t b) {
  if (a <= 0 || b <= 0) return 0;
  return a > INT64_MAX / b ? INT64_MAX : a * b;
}

/**
 * BYTES of a row of dim contiguous elements.
 *
 * @param dtype  a value of fa_dtype
 * @param dim    elements; of types in blocks whole blocks
 * @return 0 for an unknown type
 */
static inline int64_t fa_row_bytes(int32_t dtype, int64_t dim) {
  switch (dtype) {
  case FA_DTYPE_F32: return fa_helper_times(dim, 4);
  case FA_DTYPE_F16:
  case FA_DTYPE_BF16:
  case FA_DTYPE_Q15: return fa_helper_times(dim, 2);
  case FA_DTYPE_I8:
  case FA_DTYPE_U8:
  case FA_DTYPE_F8_E4M3:
  case FA_DTYPE_F8_E5M2:
  case FA_DTYPE_BOOL8: return fa_helper_times(dim, 1);
  case FA_DTYPE_Q8_0: return fa_helper_times(dim / 32, 34);
  case FA_DTYPE_Q5_1: return fa_helper_times(dim / 32, 24);
  case FA_DTYPE_Q5_0: return fa_helper_times(dim / 32, 22);
  case FA_DTYPE_Q4_1: return fa_helper_times(dim / 32, 20);
  case FA_DTYPE_Q4_0:
  case FA_DTYPE_IQ4_NL: return fa_helper_times(dim / 32, 18);
  default: return 0;
  }
}

/* A tensor with these strides. C says only in comments which tensors are outputs. */
static inline fa_tensor fa_helper_tensor(const void *data, int32_t dtype, int64_t batch, int64_t head,
                                         int64_t token) {
  fa_tensor t;
#ifdef __cplusplus
  t.data = const_cast<void *>(data);
#else
  t.data = (void *)(uintptr_t)data;
#endif
  t.stride[0] = batch;
  t.stride[1] = head;
  t.stride[2] = token;
  t.dtype = dtype;
  t.stride_dim = 0;
  t.quant = NULL;
  return t;
}

/**
 * Dense [batch][token][head][dim], as the projections of a model make it. A mask is [batch][row]
 * [head][key]. Sizes that overflow make strides that no call accepts.
 *
 * @param data    not written by this function; o, weights and caches that are appended to are
 *                written by calls
 * @param dtype   a value of fa_dtype
 * @param tokens  tokens of a batch entry. Of ragged rows, any number.
 * @param heads   heads of a token
 * @param dim     elements of a row
 * @return the tensor
 */
static inline fa_tensor fa_token_first(const void *data, int32_t dtype, int64_t tokens, int64_t heads,
                                       int64_t dim) {
  int64_t row = fa_row_bytes(dtype, dim), token = fa_helper_times(heads, row);
  return fa_helper_tensor(data, dtype, fa_helper_times(tokens, token), row, token);
}

/**
 * Dense [batch][head][token][dim]. Also pages [page][head][token][dim], with tokens = page_size.
 *
 * @param data    as for fa_token_first
 * @param dtype   a value of fa_dtype
 * @param heads   heads of a batch entry
 * @param tokens  tokens of a head
 * @param dim     elements of a row
 * @return the tensor
 */
static inline fa_tensor fa_head_first(const void *data, int32_t dtype, int64_t heads, int64_t tokens,
                                      int64_t dim) {
  int64_t row = fa_row_bytes(dtype, dim), head = fa_helper_times(tokens, row);
  return fa_helper_tensor(data, dtype, fa_helper_times(heads, head), head, row);
}

/**
 * Pages of k or v, [page][token][head][dim]. The description needs block_table, table_stride (or
 * block_table_start), page_size and num_pages, too.
 *
 * @param data       as for fa_token_first
 * @param dtype      a value of fa_dtype
 * @param page_size  tokens of a page
 * @param heads      kv heads
 * @param dim        elements of a row
 * @return the tensor
 */
static inline fa_tensor fa_paged(const void *data, int32_t dtype, int64_t page_size, int64_t heads,
                                 int64_t dim) {
  return fa_token_first(data, dtype, page_size, heads, dim);
}

/**
 * Scratch memory that grows as calls need it: {NULL, 0} at first. It is kept for the next call, and
 * is for one call at a time.
 */
typedef struct fa_workspace {
  /** The memory; NULL if there is none. */
  void *data;
  /** BYTES at data. */
  size_t size;
} fa_workspace;

/**
 * Makes a workspace at least so large. What was in it is gone if it grows.
 *
 * @param ws     not NULL
 * @param bytes  how large
 * @return FA_OK; FA_ERR_MEMORY: the workspace is as it was
 */
static inline fa_status fa_workspace_reserve(fa_workspace *ws, size_t bytes) {
  void *more;
  if (bytes <= ws->size) return FA_OK;
  more = malloc(bytes);
  if (more == NULL) return FA_ERR_MEMORY;
  free(ws->data);
  ws->data = more;
  ws->size = bytes;
  return FA_OK;
}

/**
 * Gives the memory back; the workspace may be used again.
 *
 * @param ws  not NULL
 */
static inline void fa_workspace_free(fa_workspace *ws) {
  free(ws->data);
  ws->data = NULL;
  ws->size = 0;
}

/**
 * Parts of a pool: n_parts of fa_attention_workspace and fa_attention_plan.
 *
 * @param pool  NULL = 1
 * @return 1 to 256
 */
static inline int32_t fa_pool_width(const fa_pool *pool) {
  int32_t width = pool == NULL || pool->width == NULL ? 1 : pool->width(pool->ctx);
  return width < 1 ? 1 : width > 256 ? 256 : width;
}

/**
 * fa_attention_run with a workspace that grows where it is too small, which costs nothing where it
 * is not.
 *
 * @param a     not NULL
 * @param ws    not NULL
 * @param pool  NULL = the calling thread alone
 * @return as fa_attention_run, and FA_ERR_MEMORY
 */
static inline fa_status fa_run(const fa_attention *a, fa_workspace *ws, const fa_pool *pool) {
  size_t bytes = 0;
  fa_status status = fa_attention_run(a, ws->data, ws->size, pool);
  if (status != FA_ERR_WORKSPACE) return status;
  status = fa_attention_workspace(a, fa_pool_width(pool), &bytes);
  if (status == FA_OK) status = fa_workspace_reserve(ws, bytes);
  return status == FA_OK ? fa_attention_run(a, ws->data, ws->size, pool) : status;
}

#endif  /* FLASH_ATTENTION_HELPERS */
