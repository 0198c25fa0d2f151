/*
 * flash_attention: exact attention on CPUs.
 *
 *   out = softmax(softmax_scale * q * k^T) * v
 *
 * computed tile by tile with an online softmax (arXiv:1805.02867, arXiv:2205.14135), so that the
 * seq_len_q x seq_len_kv matrix of scores never exists.
 *
 *   fa_config cfg;
 *   fa_config_auto(&cfg, 64);
 *   cfg.causal = true;
 *   fa_status status = fa_mha(&cfg, q, k, v, num_heads, seq_len, seq_len, out);
 *   if (status != FA_OK) fprintf(stderr, "%s\n", fa_status_string(status));
 *
 * What holds for every function
 *
 * Sizes count elements, never bytes, unless a name says bytes. Arrays are dense and row-major, the
 * last size given is the contiguous one, and they need no alignment.
 *
 * Every function may be called from any number of threads at once. Inputs may be shared between
 * calls; an output belongs to one call until it returns. No pointer is kept after a call.
 *
 * A function that returns fa_status never aborts, never writes to stdout or stderr, and on errors
 * leaves its outputs as they were (FA_ERR_INTERNAL excepted). Arguments are checked before anything
 * is computed; which of several errors is reported is not promised. What cannot be checked is
 * whether a pointer that is not NULL leads to memory of the size that the other arguments say.
 *
 * Same bits: with one version of the library, one instruction set and one block_size_kv, a row of
 * an output depends on nothing but its own query, the keys and values that it sees, their number
 * and position, the scales, and seq_len_q, which decides whether rows are computed in the way that
 * suits few of them or in the one that suits many: not on num_threads, block_size_q, other heads,
 * what is in other rows, or chance. Between instruction sets, block sizes and versions results
 * differ within rounding; do not compare them with stored bits.
 *
 * The library works in a child process after fork(), whatever the parent's threads were doing: a
 * child makes threads of its own when it first needs some (one that was forked in the middle of the
 * parent's first call with several threads computes on the calling thread alone). The shared library
 * stays mapped after dlclose().
 *
 * Environment: FA_MAX_ISA, read once; see fa_limit_isa. Nothing else.
 */


#ifndef FLASH_ATTENTION_H
#define FLASH_ATTENTION_H

/* Generated from src/capi; do not edit. FA_BLESS=1 cargo test --test header */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/**
 * The binary interface that this header describes; see fa_abi_version.
 */
#define FA_ABI_VERSION 1

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
   * head_dim or num_heads is 0.
   */
  FA_ERR_ZERO_EXTENT = 2,
  /**
   * The sizes describe more bytes than an address space holds.
   */
  FA_ERR_OVERFLOW = 3,
  /**
   * softmax_scale is NaN, infinite, or beyond FLT_MAX / log2(e).
   */
  FA_ERR_SOFTMAX_SCALE = 4,
  /**
   * A quantisation scale is NaN or infinite, or the product of the scales of the query, the
   * keys and the softmax is beyond FLT_MAX / log2(e).
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
   * Tensors disagree about a size that they share, a size is negative, or heads_q is no multiple of
   * heads_kv.
   */
  FA_ERR_SHAPE = 12,
  /**
   * A stride is unusable: negative, no multiple of the element size, or so small that rows of an
   * output would overlap.
   */
  FA_ERR_STRIDE = 13,
  /**
   * cu_len_q or cu_len_kv decreases or is negative, or a sequence is longer than len_q or len_kv
   * says.
   */
  FA_ERR_LENGTHS = 14,
  /**
   * struct_size is not that of any version up to this one, or what lies beyond the fields that
   * this version knows is not 0.
   */
  FA_ERR_STRUCT_SIZE = 15,
  /**
   * Legal, but not in this version; fa_attention_check says what.
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
   * Signed 8-bit integer with a scale.
   */
  FA_DTYPE_I8 = 3,
} fa_dtype;

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
   * Multiplied to every dot product of a query and a key; usually 1/sqrt(head_dim). Finite; 0
   * weighs all visible keys alike.
   */
  float softmax_scale;
  /**
   * Threads that compute at the same time, at most: 1 = only the calling thread, 0 = one per
   * core that the process may use. The calling thread is one of them; the others belong to a
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

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

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
 * Thread-safe.
 */
enum fa_status fa_config_for_long_sequence(struct fa_config *cfg, size_t head_dim);

/**
 * As fa_config_for_head_dim, but with tile sizes of 0: chosen from this machine's caches at each
 * call. The fastest.
 *
 * Thread-safe.
 */
enum fa_status fa_config_auto(struct fa_config *cfg, size_t head_dim);

/**
 * Attention of one head in f32: out = softmax(softmax_scale * q * k^T) * v.
 *
 * @param[in] cfg   not NULL
 * @param[in] q     [seq_len_q][head_dim]
 * @param[in] k     [seq_len_kv][head_dim]
 * @param[in] v     [seq_len_kv][head_dim]
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
 * up to 64 KiB of stack.
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
 * @param[out] out  [seq_len_q][head_dim], f32
 * @return as fa_forward_f32, and FA_ERR_QUANT_SCALE
 *
 * Dot products of q and k are exact integers; probabilities are f32, so the result is as close
 * to attention on q', k', v' as that of fa_forward_f32. (Later versions may round probabilities
 * to 8 bits for speed: relative RMS error up to 2 %.) The tensors are never expanded as a whole:
 * a block of keys at a time is widened in cache.
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
 * @param num_heads at least 1
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
 * fa_limit_isa or FA_MAX_ISA allows. "avx512" (F, BW, DQ and VL), "avx2" (with FMA) or "scalar";
 * later versions add names. "unknown" if FA_MAX_ISA names none of them: computing functions then
 * return FA_ERR_ISA.
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
 *             lacks is no error, as the next best is used. NULL takes the cap back (FA_MAX_ISA
 *             counts again).
 * @return FA_OK, or FA_ERR_ISA for an unknown name: then nothing changes
 *
 * Thread-safe.
 */
enum fa_status fa_limit_isa(const char *isa);

/**
 * Bytes of scratch memory that a call of fa_mha (or, with num_heads = 1, of fa_forward_f32 or
 * fa_forward_i8) with this configuration and these sizes allocates, and frees before it returns.
 * It grows with the sum of the sizes at most, never with their product, and with the number of
 * threads. Up to 16 KiB, on one thread, lie on the stack instead, and the answer is 0. (Calls with
 * more than one thread allocate about a kilobyte a thread besides, for the pool's bookkeeping, and
 * the first one the pool itself.) Where so much is not to be had, the call tries with the scratch of
 * one thread before it returns FA_ERR_MEMORY.
 *
 * @param[in] cfg     not NULL
 * @param dtype       a value of fa_dtype: the type of q, k and v
 * @param num_heads   at least 1
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
 * Version of the library, (major << 16) | (minor << 8) | patch. Compare it with what a program
 * was built for only to print it: what must fit is fa_abi_version. Thread-safe.
 */
uint32_t fa_version(void);

/**
 * Version of the binary interface. It grows by one with each release that a program built
 * against an older header cannot use; functions and status codes that are only added leave it as
 * it is. A program that loads the library at run time compares it with FA_ABI_VERSION.
 * Thread-safe.
 */
uint32_t fa_abi_version(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* FLASH_ATTENTION_H */
