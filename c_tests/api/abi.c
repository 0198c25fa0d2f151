/* The binary interface: sizes, offsets and values that programs were compiled with. */

#include <limits.h>
#include <stdalign.h>

#include "check.h"

_Static_assert(FA_ABI_VERSION == 2, "abi version");

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
_Static_assert(FA_ERR_LENGTHS == 14, "FA_ERR_LENGTHS");
_Static_assert(FA_ERR_STRUCT_SIZE == 15, "FA_ERR_STRUCT_SIZE");
_Static_assert(FA_ERR_UNSUPPORTED == 16, "FA_ERR_UNSUPPORTED");
_Static_assert(FA_ERR_WORKSPACE == 17, "FA_ERR_WORKSPACE");
_Static_assert(FA_ERR_PART == 18, "FA_ERR_PART");
_Static_assert(FA_ERR_WINDOW == 19, "FA_ERR_WINDOW");
_Static_assert(FA_ERR_SOFTCAP == 20, "FA_ERR_SOFTCAP");
_Static_assert(FA_ERR_PAGE == 21, "FA_ERR_PAGE");

_Static_assert(FA_DTYPE_F32 == 0, "FA_DTYPE_F32");
_Static_assert(FA_DTYPE_F16 == 1, "FA_DTYPE_F16");
_Static_assert(FA_DTYPE_BF16 == 2, "FA_DTYPE_BF16");
_Static_assert(FA_DTYPE_I8 == 3, "FA_DTYPE_I8");
_Static_assert(FA_DTYPE_Q8_0 == 4, "FA_DTYPE_Q8_0");
_Static_assert(FA_DTYPE_BOOL8 == 5, "FA_DTYPE_BOOL8");
_Static_assert(FA_DTYPE_Q4_0 == 6, "FA_DTYPE_Q4_0");
_Static_assert(FA_DTYPE_Q4_1 == 7, "FA_DTYPE_Q4_1");
_Static_assert(FA_DTYPE_Q5_0 == 8, "FA_DTYPE_Q5_0");
_Static_assert(FA_DTYPE_Q5_1 == 9, "FA_DTYPE_Q5_1");
_Static_assert(FA_DTYPE_IQ4_NL == 10, "FA_DTYPE_IQ4_NL");
_Static_assert(FA_DTYPE_F8_E4M3 == 11, "FA_DTYPE_F8_E4M3");
_Static_assert(FA_DTYPE_F8_E5M2 == 12, "FA_DTYPE_F8_E5M2");
_Static_assert(FA_DTYPE_U8 == 13, "FA_DTYPE_U8");
_Static_assert(FA_DTYPE_Q15 == 14, "FA_DTYPE_Q15");

_Static_assert(FA_PATH_PREFILL == 0, "FA_PATH_PREFILL");
_Static_assert(FA_PATH_DECODE == 1, "FA_PATH_DECODE");

_Static_assert(FA_POS_END == INT64_MIN, "FA_POS_END");
_Static_assert(FA_NO_LIMIT == -1, "FA_NO_LIMIT");
_Static_assert(FA_MASK_TIMES_SLOPE == 1, "FA_MASK_TIMES_SLOPE");
_Static_assert(FA_PRECISE == 2, "FA_PRECISE");
_Static_assert(FA_FAST == 4, "FA_FAST");
_Static_assert(FA_SCHEDULE_NONE == 0, "FA_SCHEDULE_NONE");
_Static_assert(FA_SCHEDULE_LINEAR == 1, "FA_SCHEDULE_LINEAR");
_Static_assert(FA_SCHEDULE_THRESHOLD == 2, "FA_SCHEDULE_THRESHOLD");
_Static_assert(FA_SCHEDULE_ADAPTIVE == 3, "FA_SCHEDULE_ADAPTIVE");

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
    fa_status (*forward_q15)(const fa_q15_config *, const int16_t *, const int16_t *, const int16_t *,
                             size_t, size_t, int16_t *);
    fa_status (*mha_q15)(const fa_q15_config *, const int16_t *, const int16_t *, const int16_t *,
                         size_t, size_t, size_t, size_t, int16_t *);
    const char *(*isa)(void);
    fa_status (*limit_isa)(const char *);
    fa_status (*enable_amx)(char *, size_t);
    fa_status (*scratch_bytes)(const fa_config *, int32_t, size_t, size_t, size_t, size_t *);
    const char *(*status_string)(int32_t);
    uint32_t (*version)(void);
    uint32_t (*abi_version)(void);
    fa_status (*attention_init)(fa_attention *, size_t);
    fa_status (*attention_check)(const fa_attention *, char *, size_t);
    fa_status (*attention_check_run)(const fa_attention *, const void *, size_t, const fa_pool *, char *, size_t);
    fa_status (*attention_plan)(const fa_attention *, int32_t, fa_plan *);
    fa_status (*attention_workspace)(const fa_attention *, int32_t, size_t *);
    fa_status (*attention_workspace_max)(const fa_attention *, int32_t, size_t *);
    fa_status (*attention_run)(const fa_attention *, void *, size_t, const fa_pool *);
    fa_status (*attention_part)(const fa_attention *, void *, size_t, int32_t, int32_t);
    fa_status (*attention_finish)(const fa_attention *, void *, size_t, int32_t, int32_t);
    fa_status (*merge)(float *, float *, const float *, const float *, int64_t, int64_t);
    fa_status (*quantize_i8)(const fa_tensor *, int64_t, int64_t, int64_t, int64_t, const float *,
                             const fa_tensor *);
    fa_status (*quantize)(const fa_tensor *, int64_t, int64_t, int64_t, int64_t, const fa_tensor *);
    fa_status (*cache_append)(const fa_attention *, const fa_tensor *, const fa_tensor *, char *, size_t);
    fa_status (*pool_create)(int32_t, fa_pool **);
    void (*pool_destroy)(fa_pool *);
    fa_status (*sparse_config_init)(fa_sparse_config *, size_t);
    fa_status (*sparse_from_partitions)(const fa_sparse_config *, int32_t *, int64_t, fa_sparse_lists *, char *, size_t);
} functions = {
    fa_config_for_head_dim, fa_config_for_long_sequence, fa_config_auto, fa_forward_f32,
    fa_forward_i8, fa_mha, fa_forward_q15, fa_mha_q15, fa_isa, fa_limit_isa, fa_enable_amx, fa_scratch_bytes, fa_status_string,
    fa_version, fa_abi_version, fa_attention_init, fa_attention_check, fa_attention_check_run,
    fa_attention_plan, fa_attention_workspace,
    fa_attention_workspace_max, fa_attention_run, fa_attention_part, fa_attention_finish, fa_merge, fa_quantize_i8,
    fa_quantize, fa_cache_append, fa_pool_create, fa_pool_destroy, fa_sparse_config_init, fa_sparse_from_partitions,
};

/* The types of a pool's functions. */
static int32_t a_width(void *ctx) { return (void)ctx, 1; }
static void a_parallel_for(void *ctx, size_t n, fa_task task, void *arg) {
    (void)ctx;
    for (size_t i = 0; i < n; i++) task(arg, i);
}
static const fa_pool a_pool = {sizeof(fa_pool), NULL, a_width, a_parallel_for};

/* Every field of every public structure, in the order of the header. */
#define STRUCTS \
    STRUCT(fa_quant) FIELD(fa_quant, scale) FIELD(fa_quant, zero) FIELD(fa_quant, stride) \
        FIELD(fa_quant, group_tokens) FIELD(fa_quant, group_dims) \
    STRUCT(fa_tensor) FIELD(fa_tensor, data) FIELD(fa_tensor, stride) FIELD(fa_tensor, dtype) \
        FIELD(fa_tensor, stride_dim) FIELD(fa_tensor, quant) \
    STRUCT(fa_attention) FIELD(fa_attention, struct_size) FIELD(fa_attention, flags) \
        FIELD(fa_attention, reserved0) FIELD(fa_attention, batch) FIELD(fa_attention, heads_q) \
        FIELD(fa_attention, heads_kv) FIELD(fa_attention, len_q) FIELD(fa_attention, len_kv) \
        FIELD(fa_attention, dim_qk) FIELD(fa_attention, dim_v) FIELD(fa_attention, q) \
        FIELD(fa_attention, k) FIELD(fa_attention, v) FIELD(fa_attention, o) \
        FIELD(fa_attention, scale) FIELD(fa_attention, softcap) FIELD(fa_attention, q_pos) \
        FIELD(fa_attention, window_left) FIELD(fa_attention, window_right) FIELD(fa_attention, mask) \
        FIELD(fa_attention, alibi_slopes) FIELD(fa_attention, alibi_batch_stride) \
        FIELD(fa_attention, sinks) FIELD(fa_attention, block_mask) \
        FIELD(fa_attention, block_mask_stride) FIELD(fa_attention, block_mask_q) \
        FIELD(fa_attention, block_mask_kv) FIELD(fa_attention, cu_len_q) \
        FIELD(fa_attention, cu_len_kv) FIELD(fa_attention, kv_lens) FIELD(fa_attention, block_table) \
        FIELD(fa_attention, block_table_start) FIELD(fa_attention, table_stride) \
        FIELD(fa_attention, page_size) FIELD(fa_attention, num_pages) FIELD(fa_attention, lse) \
        FIELD(fa_attention, lse_stride) FIELD(fa_attention, block_q) FIELD(fa_attention, block_kv) \
        FIELD(fa_attention, q_positions) FIELD(fa_attention, kv_starts) FIELD(fa_attention, prefix_keys) \
        FIELD(fa_attention, spans) FIELD(fa_attention, span_starts) FIELD(fa_attention, weights) \
        FIELD(fa_attention, weight_heads) FIELD(fa_attention, num_weight_heads) FIELD(fa_attention, weight_rows) \
        FIELD(fa_attention, num_weight_rows) FIELD(fa_attention, kept_start) FIELD(fa_attention, kept_blocks) \
        FIELD(fa_attention, kept_stride) FIELD(fa_attention, kept_heads) FIELD(fa_attention, kept_q) \
        FIELD(fa_attention, kept_kv) FIELD(fa_attention, table_head_stride) \
        FIELD(fa_attention, column_start) FIELD(fa_attention, columns) FIELD(fa_attention, column_stride) \
        FIELD(fa_attention, column_heads) \
        FIELD(fa_attention, q_bytes) FIELD(fa_attention, k_bytes) FIELD(fa_attention, v_bytes) \
        FIELD(fa_attention, o_bytes) FIELD(fa_attention, mask_bytes) FIELD(fa_attention, lse_bytes) \
        FIELD(fa_attention, weights_bytes) \
    STRUCT(fa_config) FIELD(fa_config, block_size_q) FIELD(fa_config, block_size_kv) \
        FIELD(fa_config, head_dim) FIELD(fa_config, causal) FIELD(fa_config, softmax_scale) \
        FIELD(fa_config, num_threads) FIELD(fa_config, reserved) \
    STRUCT(fa_q15_config) FIELD(fa_q15_config, struct_size) FIELD(fa_q15_config, head_dim) \
        FIELD(fa_q15_config, scale_mantissa) FIELD(fa_q15_config, scale_shift) \
        FIELD(fa_q15_config, causal) FIELD(fa_q15_config, num_threads) \
    STRUCT(fa_plan) FIELD(fa_plan, struct_size) FIELD(fa_plan, isa) FIELD(fa_plan, compute) \
        FIELD(fa_plan, path) FIELD(fa_plan, threads) FIELD(fa_plan, threads_awake) FIELD(fa_plan, k_staged) \
        FIELD(fa_plan, v_staged) FIELD(fa_plan, reserved0) FIELD(fa_plan, tile_heads) \
        FIELD(fa_plan, tile_kv_heads) FIELD(fa_plan, tile_rows) FIELD(fa_plan, tile_keys) \
        FIELD(fa_plan, work_items) FIELD(fa_plan, key_ranges) FIELD(fa_plan, thread_bytes) \
        FIELD(fa_plan, workspace_bytes) \
    STRUCT(fa_pool) FIELD(fa_pool, struct_size) FIELD(fa_pool, ctx) FIELD(fa_pool, width) \
        FIELD(fa_pool, parallel_for) \
    STRUCT(fa_sparse_config) FIELD(fa_sparse_config, struct_size) FIELD(fa_sparse_config, len_q) \
        FIELD(fa_sparse_config, len_kv) FIELD(fa_sparse_config, kept_q) FIELD(fa_sparse_config, kept_kv) \
        FIELD(fa_sparse_config, partitions) FIELD(fa_sparse_config, num_partitions) \
        FIELD(fa_sparse_config, boundary_tokens) FIELD(fa_sparse_config, num_boundary_tokens) \
        FIELD(fa_sparse_config, max_edges) FIELD(fa_sparse_config, window) FIELD(fa_sparse_config, causal) \
        FIELD(fa_sparse_config, schedule) FIELD(fa_sparse_config, coherence) \
        FIELD(fa_sparse_config, coherence_low) FIELD(fa_sparse_config, coherence_high) \
        FIELD(fa_sparse_config, concentration) FIELD(fa_sparse_config, min_density) \
        FIELD(fa_sparse_config, max_density) \
    STRUCT(fa_sparse_lists) FIELD(fa_sparse_lists, struct_size) FIELD(fa_sparse_lists, kept_start) \
        FIELD(fa_sparse_lists, kept_blocks) FIELD(fa_sparse_lists, column_start) FIELD(fa_sparse_lists, columns) \
        FIELD(fa_sparse_lists, num_starts) FIELD(fa_sparse_lists, num_blocks) \
        FIELD(fa_sparse_lists, num_columns) FIELD(fa_sparse_lists, room) FIELD(fa_sparse_lists, pairs) \
        FIELD(fa_sparse_lists, column_pairs) FIELD(fa_sparse_lists, all_pairs) FIELD(fa_sparse_lists, window) \
        FIELD(fa_sparse_lists, reach) FIELD(fa_sparse_lists, density) FIELD(fa_sparse_lists, time_saved) \
        FIELD(fa_sparse_lists, target_density) FIELD(fa_sparse_lists, dense)

/* Structures in c_tests/abi.txt, which Rust and Python compare themselves with, too. */
static void check_table(void) {
    static const struct {
        const char *structure, *field;
        size_t offset, size;
    } ours[] = {
#define STRUCT(s) {#s, "-", 0, sizeof(s)},
#define FIELD(s, f) {#s, #f, offsetof(s, f), sizeof(((s *)0)->f)},
        STRUCTS
#undef STRUCT
#undef FIELD
    };
    if (WORD != 8) return;
    FILE *table = fopen(FA_ABI_TABLE, "r");
    CHECK(table != NULL, "cannot read %s", FA_ABI_TABLE);
    if (table == NULL) return;
    char line[200], want[200];
    size_t n = 0;
    while (fgets(line, sizeof line, table) != NULL) {
        /* The other lines are of what is not in structures. */
        if (strncmp(line, "fa_", 3) != 0) continue;
        CHECK(n < sizeof ours / sizeof *ours, "not in this program: %s", line);
        if (n == sizeof ours / sizeof *ours) break;
        snprintf(want, sizeof want, "%s %s %zu %zu\n", ours[n].structure, ours[n].field, ours[n].offset,
                 ours[n].size);
        CHECK(strcmp(line, want) == 0, "the compiler says %sthe table says %s", want, line);
        n++;
    }
    CHECK(n == sizeof ours / sizeof *ours, "%zu lines", n);
    fclose(table);
}


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
    /* Probabilities may be multiples of 1/16384, where few queries meet integers. */
    CHECK(fabs((double)out[0] - want) < 2e-3, "%g instead of %g", (double)out[0], want);
}

/* Fields of the general call reach the library: each one is needed for the result. */
static void check_attention(void) {
    struct {
        fa_attention a;
        unsigned char back[16];
    } fenced;
    unsigned char fence[16];
    memset(&fenced, 0xa5, sizeof fenced), memset(fence, 0xa5, sizeof fence);
    CHECK(functions.attention_init(&fenced.a, sizeof fenced.a) == FA_OK, "init");
    CHECK(memcmp(fenced.back, fence, 16) == 0, "fa_attention is larger in the library");
    fa_attention a = fenced.a;
    CHECK(a.struct_size == sizeof a && a.q_pos == FA_POS_END && a.block_kv == 0, "init");
    CHECK(a.window_left == FA_NO_LIMIT && a.window_right == FA_NO_LIMIT, "init");

    /* As above, once more behind a key that the window leaves out and before one that is not in
     * use; what the tensors have between their numbers is 9. */
    float q[3] = {1, 9, 1}, k[8] = {9, 9, 0, 9, 1.0986123f, 9, 9, 9}, v[4] = {9, 0, 4, 9}, o[5], lse[3];
    const int32_t in_use[1] = {3};
    a.batch = 1, a.heads_q = 2, a.heads_kv = 1, a.len_q = 1, a.len_kv = 4, a.dim_qk = a.dim_v = 1;
    a.q = (fa_tensor){.data = q, .stride = {0, 8, 0}};
    a.k = (fa_tensor){.data = k, .stride = {0, 0, 8}};
    a.v = (fa_tensor){.data = v, .stride = {0, 0, 4}};
    a.o = (fa_tensor){.data = o, .stride = {0, 16, 0}};
    a.scale = 1, a.window_left = 1, a.window_right = 0, a.kv_lens = in_use;
    a.lse = lse, a.lse_stride[1] = 2;
    a.block_kv = 1;
    size_t bytes = 0;
    CHECK(functions.attention_check(&a, NULL, 0) == FA_OK, "check");
    CHECK(functions.attention_workspace(&a, 1, &bytes) == FA_OK, "workspace");
    void *ws = need(bytes);
    CHECK(functions.attention_run(&a, ws, bytes, &a_pool) == FA_OK, "run");
    free(ws);
    for (int h = 0; h < 2; h++) {
        CHECK(fabsf(o[4 * h] - 3) < 1e-5f, "%g instead of 3", (double)o[4 * h]);
        CHECK(fabsf(lse[2 * h] - 1.3862944f) < 1e-5f, "%g instead of ln 4", (double)lse[2 * h]);
    }
}

int main(void) {
    CHECK(functions.abi_version() == FA_ABI_VERSION, "%u", (unsigned)functions.abi_version());
    CHECK(FA_SCALE_ZERO == 0x1p-100, "FA_SCALE_ZERO %g", FA_SCALE_ZERO);
    check_table();
    check_attention();
    check_layout();
    check_i8_arguments();
    return check_result();
}
