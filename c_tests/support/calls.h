/* Calls of all kinds on the same numbers, for tests of what surrounds a call: which thread, which
 * process, which copy of the library. Keys, values and queries are multiples of 1/16 that every
 * storage type holds exactly, so that one result in double is right for all of them. Safe from
 * several threads at once; nothing large is on the stack. */

#ifndef CALLS_H
#define CALLS_H

#include <dlfcn.h>

#include "check.h"

/* The functions of one copy of the library. */
#define LIBRARY_FUNCTIONS(X)                                                                                 \
    X(config_auto) X(forward_f32) X(forward_i8) X(mha) X(attention_init) X(attention_workspace)              \
    X(attention_run) X(attention_part) X(attention_finish) X(quantize_i8) X(merge) X(isa) X(limit_isa)       \
    X(pool_create) X(pool_destroy) X(status_string)

struct library {
#define X(name) __typeof__(fa_##name) *name;
    LIBRARY_FUNCTIONS(X)
#undef X
};

/* The functions of a loaded library. C has no conversion from a pointer to data to one to a
 * function, so bytes are copied. */
static inline bool library_of(void *handle, struct library *lib) {
    void *symbol;
    bool all = handle != NULL;
#define X(name)                                                       \
    all = all && (symbol = dlsym(handle, "fa_" #name)) != NULL;       \
    if (all) memcpy(&lib->name, &symbol, sizeof symbol);
    LIBRARY_FUNCTIONS(X)
#undef X
    return all;
}

/* The library that the program is linked with; a macro, since not every program that includes this
 * is. */
#define LINKED_NAME(name) fa_##name,
#define LINKED_LIBRARY ((struct library){LIBRARY_FUNCTIONS(LINKED_NAME)})

enum { HEADS = 4, MANY = 80, FEW = 2, KEYS = 2000, DIM = 64, MOST = HEADS * MANY * DIM, KV = HEADS * KEYS * DIM };

/* What computes, and how K and V are stored. `few` rows are for decode, the others for prefill. */
enum kind { FORWARD, MHA, FORWARD_I8, RUN_F32, RUN_F16, RUN_BF16, RUN_I8, RUN_Q8_0, PARTS, QUANTIZED, MERGED, KINDS };
enum { CALLS = 2 * KINDS };

static const char *const kind_names[] = {"fa_forward_f32", "fa_mha", "fa_forward_i8", "run, f32", "run, f16",
                                         "run, bf16", "run, i8", "run, Q8_0", "part and finish", "quantize, run",
                                         "merge"};

static struct {
    float *q, *k, *v;
    int8_t *q8, *k8, *v8;
    /* By data type. */
    void *stored_k[FA_DTYPE_Q8_0 + 1], *stored_v[FA_DTYPE_Q8_0 + 1];
    double *want[2];
} data;

static const float sixteenth = 0x1p-4f;

static inline size_t call_rows(int call) {
    return call % 2 ? FEW : MANY;
}

static inline size_t call_elements(int call) {
    return HEADS * call_rows(call) * DIM;
}

static inline const char *call_name(int call) {
    return kind_names[call / 2];
}

/* Exact: x is a multiple of 1/16 below 8. */
static inline uint16_t f16_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint32_t sign = bits >> 16 & 0x8000;
    return (uint16_t)(x == 0 ? sign : sign | (((bits >> 23 & 0xff) - 112) << 10) | (bits >> 13 & 0x3ff));
}

static inline int8_t *integers_of(float *x, size_t n) {
    int8_t *y = need(n);
    for (size_t i = 0; i < n; i++) {
        y[i] = (int8_t)fmax(-64, fmin(64, rint(16 * (double)x[i])));
        x[i] = sixteenth * (float)y[i];
    }
    return y;
}

static inline void store(const float *x, const int8_t *x8, void **stored) {
    uint16_t *f16 = need(KV * 2), *bf16 = need(KV * 2);
    unsigned char *q8_0 = need(KV / 32 * 34);
    for (size_t i = 0; i < KV; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        f16[i] = f16_of(x[i]), bf16[i] = (uint16_t)(bits >> 16);
    }
    uint16_t scale = f16_of(sixteenth);
    for (size_t i = 0; i < KV / 32; i++) {
        memcpy(q8_0 + 34 * i, &scale, 2);
        memcpy(q8_0 + 34 * i + 2, x8 + 32 * i, 32);
    }
    stored[FA_DTYPE_F16] = f16, stored[FA_DTYPE_BF16] = bf16, stored[FA_DTYPE_Q8_0] = q8_0;
}

/* To be called first, by one thread. */
static inline void make_data(void) {
    data.q = random_normal(MOST), data.k = random_normal(KV), data.v = random_normal(KV);
    data.q8 = integers_of(data.q, MOST), data.k8 = integers_of(data.k, KV), data.v8 = integers_of(data.v, KV);
    store(data.k, data.k8, data.stored_k), store(data.v, data.v8, data.stored_v);
    data.stored_k[FA_DTYPE_F32] = data.k, data.stored_v[FA_DTYPE_F32] = data.v;
    data.stored_k[FA_DTYPE_I8] = data.k8, data.stored_v[FA_DTYPE_I8] = data.v8;
    for (int few = 0; few < 2; few++) {
        data.want[few] = need(MOST * sizeof(double));
        ref_attention(data.q, data.k, data.v, HEADS, call_rows(few), KEYS, DIM, true, 1 / sqrt(DIM), data.want[few]);
    }
}

/* Relative root mean square error of a call's result. */
static inline double error_of(int call, const float *out) {
    double error = 0, size = 0;
    const double *want = data.want[call % 2];
    for (size_t i = 0; i < call_elements(call); i++) {
        error += ((double)out[i] - want[i]) * ((double)out[i] - want[i]);
        size += want[i] * want[i];
    }
    return sqrt(error / size);
}

/* What the header promises of that. */
static inline double error_bound(int call, const char *isa) {
    switch (call / 2) {
        case FORWARD_I8: case RUN_I8: return i8_bound(isa);
        case RUN_BF16: case PARTS: return 3e-3;
        /* Few rows are multiplied as integers but by plain code. */
        case RUN_Q8_0: return call % 2 == 0 || !has_integers_in_blocks(isa_rank(isa)) ? 1e-5 : 3e-4;
        /* The scale is not 1/16 any more: steps are max / 127. */
        case QUANTIZED: return i8_bound(isa) + 2e-2;
        default: return 1e-5;
    }
}

static inline fa_attention describe(const struct library *lib, int32_t dtype, size_t rows, float *out) {
    static const fa_quant quant = {.scale = &sixteenth};
    static const int64_t row_bytes[] = {4 * DIM, 2 * DIM, 2 * DIM, DIM, DIM / 32 * 34};
    fa_attention a;
    memset(&a, 0, sizeof a);
    (void)lib->attention_init(&a, sizeof a);
    a.batch = 1, a.heads_q = a.heads_kv = HEADS, a.len_q = (int64_t)rows, a.len_kv = KEYS, a.dim_qk = a.dim_v = DIM;
    a.q = (fa_tensor){.data = data.q, .stride = {0, (int64_t)rows * DIM * 4, DIM * 4}};
    a.o = a.q, a.o.data = out;
    a.k = (fa_tensor){.data = data.stored_k[dtype], .dtype = dtype};
    a.k.stride[1] = KEYS * row_bytes[dtype], a.k.stride[2] = row_bytes[dtype];
    a.k.quant = dtype == FA_DTYPE_I8 ? &quant : NULL;
    a.v = a.k, a.v.data = data.stored_v[dtype];
    a.window_right = 0;
    return a;
}

static inline fa_status run_described(const struct library *lib, const fa_attention *a, const fa_pool *pool) {
    size_t bytes = 0;
    fa_status status = lib->attention_workspace(a, pool != NULL ? pool->width(pool->ctx) : 1, &bytes);
    void *ws = need(bytes);
    if (status == FA_OK) status = lib->attention_run(a, ws, bytes, pool);
    free(ws);
    return status;
}

static inline fa_status run_in_parts(const struct library *lib, const fa_attention *a) {
    enum { N = 3 };
    size_t bytes = 0;
    fa_status status = lib->attention_workspace(a, N, &bytes);
    void *ws = need(bytes);
    for (int i = 0; i < N && status == FA_OK; i++) status = lib->attention_part(a, ws, bytes, i, N);
    for (int i = 0; i < N && status == FA_OK; i++) status = lib->attention_finish(a, ws, bytes, i, N);
    free(ws);
    return status;
}

/* Keys and values become integers first, with one scale for all. */
static inline fa_status quantize_and_run(const struct library *lib, size_t rows, float *out, const fa_pool *pool) {
    float scale[2] = {0};
    fa_quant quant[2] = {{.scale = &scale[0]}, {.scale = &scale[1]}};
    fa_attention a = describe(lib, FA_DTYPE_I8, rows, out), from = describe(lib, FA_DTYPE_BF16, rows, out);
    int8_t *k8 = need(KV), *v8 = need(KV);
    a.k.data = k8, a.k.quant = &quant[0], a.v.data = v8, a.v.quant = &quant[1];
    fa_status status = lib->quantize_i8(&from.k, 1, HEADS, KEYS, DIM, NULL, &a.k);
    if (status == FA_OK) status = lib->quantize_i8(&from.v, 1, HEADS, KEYS, DIM, NULL, &a.v);
    if (status == FA_OK) status = run_described(lib, &a, pool);
    free(k8), free(v8);
    return status;
}

/* The first half of the keys and the second one. */
static inline fa_status run_and_merge(const struct library *lib, size_t rows, float *out, const fa_pool *pool) {
    float *more = need(MOST * sizeof *more), *lse = need(2 * HEADS * rows * sizeof *lse);
    fa_status status = FA_OK;
    for (int half = 0; half < 2 && status == FA_OK; half++) {
        fa_attention a = describe(lib, FA_DTYPE_F32, rows, half ? more : out);
        a.len_kv = KEYS / 2, a.q_pos = KEYS - half * (KEYS / 2) - (int64_t)rows;
        a.k.data = data.k + half * (KEYS / 2) * DIM, a.v.data = data.v + half * (KEYS / 2) * DIM;
        a.lse = lse + (size_t)half * HEADS * rows, a.lse_stride[1] = (int64_t)rows, a.lse_stride[2] = 1;
        status = run_described(lib, &a, pool);
    }
    if (status == FA_OK) status = lib->merge(out, lse, more, lse + HEADS * rows, (int64_t)(HEADS * rows), DIM);
    free(more), free(lse);
    return status;
}

/* Writes call_elements(call) numbers. A pool is for those that take one, num_threads for the
 * others. */
static inline fa_status make_call(const struct library *lib, int call, uint32_t num_threads, const fa_pool *pool,
                                  float *out) {
    size_t rows = call_rows(call);
    fa_config cfg;
    fa_attention a;
    fa_status status = lib->config_auto(&cfg, DIM);
    cfg.causal = true, cfg.num_threads = num_threads;
    memset(out, 0xff, call_elements(call) * sizeof *out);
    switch (call / 2) {
        case FORWARD:
        case FORWARD_I8:
            for (size_t h = 0; h < HEADS && status == FA_OK; h++) {
                size_t at = h * rows * DIM, kv = h * KEYS * DIM;
                status = call / 2 == FORWARD
                             ? lib->forward_f32(&cfg, data.q + at, data.k + kv, data.v + kv, rows, KEYS, out + at)
                             : lib->forward_i8(&cfg, data.q8 + at, data.k8 + kv, data.v8 + kv, sixteenth, sixteenth,
                                               sixteenth, rows, KEYS, out + at);
            }
            return status;
        case MHA: return lib->mha(&cfg, data.q, data.k, data.v, HEADS, rows, KEYS, out);
        case PARTS: a = describe(lib, FA_DTYPE_BF16, rows, out); return run_in_parts(lib, &a);
        case QUANTIZED: return quantize_and_run(lib, rows, out, pool);
        case MERGED: return run_and_merge(lib, rows, out, pool);
        default: a = describe(lib, call / 2 - RUN_F32, rows, out); return run_described(lib, &a, pool);
    }
}

/* What each call gives when nothing is unusual. */
static inline void all_calls(const struct library *lib, float *out[CALLS]) {
    for (int call = 0; call < CALLS; call++) {
        if (out[call] == NULL) out[call] = need(call_elements(call) * sizeof(float));
        fa_status status = make_call(lib, call, 1, NULL, out[call]);
        double error = error_of(call, out[call]), bound = error_bound(call, lib->isa());
        CHECK(status == FA_OK, "%s, %s: %s", lib->isa(), call_name(call), lib->status_string(status));
        CHECK(error <= bound, "%s, %s, %zu rows: error %g", lib->isa(), call_name(call), call_rows(call), error);
    }
}

/* Whether a call gives these bits. */
static inline bool call_gives(const struct library *lib, int call, uint32_t num_threads, const fa_pool *pool,
                              const float *want) {
    float *out = need(call_elements(call) * sizeof *out);
    fa_status status = make_call(lib, call, num_threads, pool, out);
    bool good = status == FA_OK && same_bits(out, want, call_elements(call));
    free(out);
    return good;
}

#endif
