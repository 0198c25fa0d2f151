/* The binary interface: sizes, offsets and values that programs were compiled with. */

#include <limits.h>
#include <stdalign.h>

#include "check.h"

_Static_assert(FA_ABI_VERSION == 1, "abi version");

_Static_assert(sizeof(fa_status) == 4, "fa_status is an int");
_Static_assert(sizeof(fa_dtype) == 4, "fa_dtype is an int");
_Static_assert(INT_MAX == INT32_MAX, "int has 32 bits");

_Static_assert(FA_OK == 0, "FA_OK");
_Static_assert(FA_ERR_NULL == 1, "FA_ERR_NULL");
_Static_assert(FA_ERR_ZERO_EXTENT == 2, "FA_ERR_ZERO_EXTENT");
_Static_assert(FA_ERR_OVERFLOW == 3, "FA_ERR_OVERFLOW");
_Static_assert(FA_ERR_SOFTMAX_SCALE == 4, "FA_ERR_SOFTMAX_SCALE");
_Static_assert(FA_ERR_QUANT_SCALE == 5, "FA_ERR_QUANT_SCALE");
_Static_assert(FA_ERR_RESERVED == 6, "FA_ERR_RESERVED");
_Static_assert(FA_ERR_OVERLAP == 7, "FA_ERR_OVERLAP");
_Static_assert(FA_ERR_DTYPE == 8, "FA_ERR_DTYPE");
_Static_assert(FA_ERR_ISA == 9, "FA_ERR_ISA");
_Static_assert(FA_ERR_MEMORY == 10, "FA_ERR_MEMORY");
_Static_assert(FA_ERR_INTERNAL == 11, "FA_ERR_INTERNAL");
_Static_assert(FA_ERR_SHAPE == 12, "FA_ERR_SHAPE");
_Static_assert(FA_ERR_STRIDE == 13, "FA_ERR_STRIDE");

_Static_assert(FA_DTYPE_F32 == 0, "FA_DTYPE_F32");
_Static_assert(FA_DTYPE_I8 == 3, "FA_DTYPE_I8");

/* In words, so that it holds with 32 bits too. */
#define WORD sizeof(size_t)
_Static_assert(sizeof(bool) == 1, "bool is a byte");
_Static_assert(sizeof(((fa_config *)0)->block_size_q) == WORD, "block_size_q");
_Static_assert(sizeof(((fa_config *)0)->causal) == 1, "causal");
_Static_assert(sizeof(((fa_config *)0)->softmax_scale) == 4, "softmax_scale");
_Static_assert(sizeof(((fa_config *)0)->num_threads) == 4, "num_threads");
_Static_assert(sizeof(((fa_config *)0)->reserved) == 4, "reserved");
_Static_assert(offsetof(fa_config, block_size_q) == 0, "block_size_q");
_Static_assert(offsetof(fa_config, block_size_kv) == WORD, "block_size_kv");
_Static_assert(offsetof(fa_config, head_dim) == 2 * WORD, "head_dim");
_Static_assert(offsetof(fa_config, causal) == 3 * WORD, "causal");
_Static_assert(offsetof(fa_config, softmax_scale) == 3 * WORD + 4, "softmax_scale");
_Static_assert(offsetof(fa_config, num_threads) == 3 * WORD + 8, "num_threads");
_Static_assert(offsetof(fa_config, reserved) == 3 * WORD + 12, "reserved");
_Static_assert(sizeof(fa_config) == 3 * WORD + 16, "fa_config");
_Static_assert(alignof(fa_config) == alignof(size_t), "fa_config");
_Static_assert(WORD != 8 || sizeof(fa_config) == 40, "fa_config on LP64");

/* The types of the functions: an initialiser of another type does not compile. */
static const struct {
    fa_status (*config_for_head_dim)(fa_config *, size_t);
    fa_status (*config_for_long_sequence)(fa_config *, size_t);
    fa_status (*config_auto)(fa_config *, size_t);
    fa_status (*forward_f32)(const fa_config *, const float *, const float *, const float *, size_t,
                             size_t, float *);
    fa_status (*forward_i8)(const fa_config *, const int8_t *, const int8_t *, const int8_t *,
                            float, float, float, size_t, size_t, float *);
    fa_status (*mha)(const fa_config *, const float *, const float *, const float *, size_t, size_t,
                     size_t, float *);
    const char *(*isa)(void);
    fa_status (*limit_isa)(const char *);
    fa_status (*scratch_bytes)(const fa_config *, int32_t, size_t, size_t, size_t, size_t *);
    const char *(*status_string)(int32_t);
    uint32_t (*version)(void);
    uint32_t (*abi_version)(void);
} functions = {
    fa_config_for_head_dim, fa_config_for_long_sequence, fa_config_auto, fa_forward_f32,
    fa_forward_i8, fa_mha, fa_isa, fa_limit_isa, fa_scratch_bytes, fa_status_string, fa_version,
    fa_abi_version,
};

/* The library was compiled with the same layout as this program: it writes each field where it
 * is expected, and the bytes of a field reach it. */
static void check_layout(void) {
    struct {
        unsigned char front[16];
        fa_config cfg;
        unsigned char back[16];
    } fenced;
    unsigned char fence[16];
    memset(&fenced, 0xa5, sizeof fenced), memset(fence, 0xa5, sizeof fence);
    CHECK(functions.config_for_long_sequence(&fenced.cfg, 64) == FA_OK, "constructor");
    CHECK(memcmp(fenced.front, fence, 16) == 0 && memcmp(fenced.back, fence, 16) == 0,
          "fa_config is larger in the library");
    fa_config cfg = fenced.cfg;
    CHECK(cfg.block_size_q == 32, "block_size_q %zu", cfg.block_size_q);
    CHECK(cfg.block_size_kv == 128, "block_size_kv %zu", cfg.block_size_kv);
    CHECK(cfg.head_dim == 64, "head_dim %zu", cfg.head_dim);
    CHECK(!cfg.causal, "causal");
    CHECK(cfg.softmax_scale == 0.125f, "softmax_scale %g", (double)cfg.softmax_scale);
    CHECK(cfg.num_threads == 0 && cfg.reserved == 0, "num_threads, reserved");

    /* One query 1 of width 1; keys ln 1, ln 3; values 0, 4: weights 1/4 and 3/4. */
    const float q[2] = {1, 1}, k[2] = {0, 1.0986123f}, v[2] = {0, 4};
    float out[2];
    cfg = (fa_config){.head_dim = 1, .softmax_scale = 1};
    CHECK(functions.forward_f32(&cfg, q, k, v, 2, 2, out) == FA_OK, "forward");
    CHECK(fabsf(out[0] - 3) < 1e-5f, "%g instead of 3", (double)out[0]);
    cfg.softmax_scale = -1;
    CHECK(functions.forward_f32(&cfg, q, k, v, 2, 2, out) == FA_OK, "forward");
    CHECK(fabsf(out[0] - 1) < 1e-5f, "scale -1: %g instead of 1", (double)out[0]);
    cfg.causal = true;
    CHECK(functions.forward_f32(&cfg, q, k, v, 2, 2, out) == FA_OK, "forward");
    CHECK(out[0] == 0 && fabsf(out[1] - 1) < 1e-5f, "causal: %g, %g", (double)out[0],
          (double)out[1]);
    cfg.reserved = 1;
    CHECK(functions.forward_f32(&cfg, q, k, v, 2, 2, out) == FA_ERR_RESERVED, "reserved");
}

/* Three real numbers between pointers and integers: a wrong type would shift the others. */
static void check_i8_arguments(void) {
    const int8_t q[1] = {3}, k[1] = {5}, v[2] = {7, -9};
    const int8_t keys[2] = {0, 1};
    float out[1] = {0};
    fa_config cfg = {.head_dim = 1, .softmax_scale = 1};
    CHECK(functions.forward_i8(&cfg, q, k, v, 0.1f, 0.2f, 0.5f, 1, 1, out) == FA_OK, "i8");
    CHECK(out[0] == 3.5f, "%g instead of 3.5", (double)out[0]);
    /* Scores 0 and 3 * 1 * 0.5 * 0.25 = 0.375. */
    CHECK(functions.forward_i8(&cfg, q, keys, v, 0.5f, 0.25f, 2, 1, 2, out) == FA_OK, "i8");
    double e = exp(0.375), want = 2 * (7 - 9 * e) / (1 + e);
    CHECK(fabs((double)out[0] - want) < 1e-5, "%g instead of %g", (double)out[0], want);
}

int main(void) {
    CHECK(functions.abi_version() == FA_ABI_VERSION, "%u", (unsigned)functions.abi_version());
    check_layout();
    check_i8_arguments();
    return check_result();
}
