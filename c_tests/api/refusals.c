/* What each function refuses, with which code, and that a refusal changes nothing. */

#include <float.h>
#include <limits.h>

#include "covered.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* The functions that a row of the table is about. */
enum { F32 = 1, I8 = 2, MHA = 4, SCRATCH = 8, COMPUTE = F32 | I8 | MHA, ALL = COMPUTE | SCRATCH };
static const char *const call_names[] = {"fa_forward_f32", "fa_forward_i8", "fa_mha",
                                         "fa_scratch_bytes"};

/* One change to arguments that would be accepted. */
enum field {
    NOTHING,
    /* Pointers become NULL. */
    CFG, Q, K, V, OUT, BYTES,
    /* Sizes and integers. */
    HEAD_DIM, HEADS, LEN_Q, LEN_KV, BLOCK_Q, BLOCK_KV, NUM_THREADS, RESERVED, DTYPE,
    /* Real numbers. */
    SCALE, Q_SCALE, K_SCALE, V_SCALE,
    /* The output is moved so that its first or last bytes, so many, are also the array's. */
    ON_TAIL_OF_Q, ON_TAIL_OF_K, ON_TAIL_OF_V, ON_HEAD_OF_Q, ON_HEAD_OF_K, ON_HEAD_OF_V,
};

struct edit {
    enum field field;
    size_t n;
    float x;
};

struct row {
    const char *what;
    int calls;
    fa_status want;
    struct edit edits[4];
};

#define NULLED(field) {field, 0, 0}
#define N(field, n) {field, n, 0}
#define X(field, x) {field, 0, x}

#define HALF (SIZE_MAX / 2)
#define BIT(n) ((size_t)1 << (n))

static const struct row rows[] = {
    {"nothing wrong", ALL, FA_OK, {{NOTHING, 0, 0}}},

    {"cfg is NULL", ALL, FA_ERR_NULL, {NULLED(CFG)}},
    {"q is NULL", COMPUTE, FA_ERR_NULL, {NULLED(Q)}},
    {"k is NULL", COMPUTE, FA_ERR_NULL, {NULLED(K)}},
    {"v is NULL", COMPUTE, FA_ERR_NULL, {NULLED(V)}},
    {"out is NULL", COMPUTE, FA_ERR_NULL, {NULLED(OUT)}},
    {"bytes is NULL", SCRATCH, FA_ERR_NULL, {NULLED(BYTES)}},
    {"no keys, but q is NULL", COMPUTE, FA_ERR_NULL, {N(LEN_KV, 0), NULLED(Q)}},
    {"no keys, but out is NULL", COMPUTE, FA_ERR_NULL, {N(LEN_KV, 0), NULLED(OUT)}},
    {"no queries", ALL, FA_OK, {N(LEN_Q, 0)}},
    {"no queries, q and out NULL", COMPUTE, FA_OK, {N(LEN_Q, 0), NULLED(Q), NULLED(OUT)}},
    {"no keys", ALL, FA_OK, {N(LEN_KV, 0)}},
    {"no keys, k and v NULL", COMPUTE, FA_OK, {N(LEN_KV, 0), NULLED(K), NULLED(V)}},
    {"no elements at all", ALL, FA_OK, {N(LEN_Q, 0), N(LEN_KV, 0)}},

    {"head_dim 0", ALL, FA_ERR_ZERO_EXTENT, {N(HEAD_DIM, 0)}},
    {"head_dim 0, no queries", ALL, FA_ERR_ZERO_EXTENT, {N(HEAD_DIM, 0), N(LEN_Q, 0)}},
    {"num_heads 0", MHA | SCRATCH, FA_ERR_ZERO_EXTENT, {N(HEADS, 0)}},
    {"num_heads 0, no elements", MHA | SCRATCH, FA_ERR_ZERO_EXTENT,
     {N(HEADS, 0), N(LEN_Q, 0), N(LEN_KV, 0)}},

    {"head_dim SIZE_MAX", ALL, FA_ERR_OVERFLOW, {N(HEAD_DIM, SIZE_MAX)}},
    {"head_dim SIZE_MAX/2", ALL, FA_ERR_OVERFLOW, {N(HEAD_DIM, HALF)}},
    {"a row of 2^64 bytes", COMPUTE, FA_ERR_OVERFLOW, {N(HEAD_DIM, BIT(62))}},
    {"a row of 2^63 bytes", COMPUTE, FA_ERR_OVERFLOW, {N(HEAD_DIM, BIT(61)), N(LEN_Q, 1)}},
    {"len_q SIZE_MAX", ALL, FA_ERR_OVERFLOW, {N(LEN_Q, SIZE_MAX)}},
    {"len_q SIZE_MAX/2", ALL, FA_ERR_OVERFLOW, {N(LEN_Q, HALF)}},
    {"an output of 2^64 bytes", COMPUTE, FA_ERR_OVERFLOW, {N(LEN_Q, BIT(59))}},
    {"an output of 2^64 + 32 bytes", COMPUTE, FA_ERR_OVERFLOW, {N(LEN_Q, BIT(59) + 1)}},
    {"an output of 2^63 bytes", COMPUTE, FA_ERR_OVERFLOW, {N(LEN_Q, BIT(58))}},
    {"int8 queries that fit, an output of 2^64 bytes", I8 | SCRATCH, FA_ERR_OVERFLOW,
     {N(LEN_Q, BIT(59)), N(HEADS, 1), N(DTYPE, FA_DTYPE_I8)}},
    {"len_kv SIZE_MAX", ALL, FA_ERR_OVERFLOW, {N(LEN_KV, SIZE_MAX)}},
    {"len_kv SIZE_MAX/2", ALL, FA_ERR_OVERFLOW, {N(LEN_KV, HALF)}},
    {"len_kv SIZE_MAX, head_dim 1", ALL, FA_ERR_OVERFLOW, {N(LEN_KV, SIZE_MAX), N(HEAD_DIM, 1)}},
    {"keys of 2^64 bytes", ALL, FA_ERR_OVERFLOW, {N(LEN_KV, BIT(61))}},
    {"both lengths SIZE_MAX", ALL, FA_ERR_OVERFLOW, {N(LEN_Q, SIZE_MAX), N(LEN_KV, SIZE_MAX)}},
    {"2^32 rows of 2^32", ALL, FA_ERR_OVERFLOW, {N(LEN_Q, BIT(32)), N(HEAD_DIM, BIT(32))}},
    {"2^32 keys of 2^32", ALL, FA_ERR_OVERFLOW, {N(LEN_KV, BIT(32)), N(HEAD_DIM, BIT(32))}},
    {"no queries, but head_dim SIZE_MAX", ALL, FA_ERR_OVERFLOW,
     {N(LEN_Q, 0), N(HEAD_DIM, SIZE_MAX)}},
    {"num_heads SIZE_MAX", MHA | SCRATCH, FA_ERR_OVERFLOW, {N(HEADS, SIZE_MAX)}},
    {"num_heads SIZE_MAX/2", MHA | SCRATCH, FA_ERR_OVERFLOW, {N(HEADS, HALF)}},
    {"2^64 bytes in heads", MHA | SCRATCH, FA_ERR_OVERFLOW, {N(HEADS, BIT(57))}},
    {"2^32 heads of 2^32 rows", MHA | SCRATCH, FA_ERR_OVERFLOW,
     {N(HEADS, BIT(32)), N(LEN_Q, BIT(32))}},
    {"2^32 heads of 2^32 keys", MHA | SCRATCH, FA_ERR_OVERFLOW,
     {N(HEADS, BIT(32)), N(LEN_KV, BIT(32))}},
    {"num_heads SIZE_MAX, no elements", MHA | SCRATCH, FA_OK,
     {N(HEADS, SIZE_MAX), N(LEN_Q, 0), N(LEN_KV, 0)}},
    {"block_size_q 0", ALL, FA_OK, {N(BLOCK_Q, 0)}},
    {"block_size_kv 0", ALL, FA_OK, {N(BLOCK_KV, 0)}},
    {"block_size_q SIZE_MAX", ALL, FA_OK, {N(BLOCK_Q, SIZE_MAX)}},
    {"block_size_kv SIZE_MAX", ALL, FA_OK, {N(BLOCK_KV, SIZE_MAX)}},
    {"num_threads UINT32_MAX", ALL, FA_OK, {N(NUM_THREADS, UINT32_MAX)}},

    {"softmax_scale NaN", COMPUTE, FA_ERR_SOFTMAX_SCALE, {X(SCALE, NAN)}},
    {"softmax_scale +inf", COMPUTE, FA_ERR_SOFTMAX_SCALE, {X(SCALE, INFINITY)}},
    {"softmax_scale -inf", COMPUTE, FA_ERR_SOFTMAX_SCALE, {X(SCALE, -INFINITY)}},
    {"softmax_scale FLT_MAX", COMPUTE, FA_ERR_SOFTMAX_SCALE, {X(SCALE, FLT_MAX)}},
    {"softmax_scale -FLT_MAX", COMPUTE, FA_ERR_SOFTMAX_SCALE, {X(SCALE, -FLT_MAX)}},
    {"softmax_scale 0.7 FLT_MAX", COMPUTE, FA_ERR_SOFTMAX_SCALE, {X(SCALE, 0.7f * FLT_MAX)}},
    {"softmax_scale NaN, no queries", COMPUTE, FA_ERR_SOFTMAX_SCALE,
     {X(SCALE, NAN), N(LEN_Q, 0)}},
    {"softmax_scale NaN, no keys", COMPUTE, FA_ERR_SOFTMAX_SCALE, {X(SCALE, NAN), N(LEN_KV, 0)}},
    {"softmax_scale 0.69 FLT_MAX", COMPUTE, FA_OK, {X(SCALE, 0.69f * FLT_MAX)}},
    {"softmax_scale 0", COMPUTE, FA_OK, {X(SCALE, 0)}},
    {"softmax_scale denormal", COMPUTE, FA_OK, {X(SCALE, FLT_MIN / 4)}},
    {"softmax_scale < 0", COMPUTE, FA_OK, {X(SCALE, -1)}},

    {"q_scale NaN", I8, FA_ERR_QUANT_SCALE, {X(Q_SCALE, NAN)}},
    {"q_scale +inf", I8, FA_ERR_QUANT_SCALE, {X(Q_SCALE, INFINITY)}},
    {"q_scale -inf", I8, FA_ERR_QUANT_SCALE, {X(Q_SCALE, -INFINITY)}},
    {"k_scale NaN", I8, FA_ERR_QUANT_SCALE, {X(K_SCALE, NAN)}},
    {"k_scale +inf", I8, FA_ERR_QUANT_SCALE, {X(K_SCALE, INFINITY)}},
    {"k_scale -inf", I8, FA_ERR_QUANT_SCALE, {X(K_SCALE, -INFINITY)}},
    {"v_scale NaN", I8, FA_ERR_QUANT_SCALE, {X(V_SCALE, NAN)}},
    {"v_scale +inf", I8, FA_ERR_QUANT_SCALE, {X(V_SCALE, INFINITY)}},
    {"v_scale -inf", I8, FA_ERR_QUANT_SCALE, {X(V_SCALE, -INFINITY)}},
    {"q_scale NaN, no queries", I8, FA_ERR_QUANT_SCALE, {X(Q_SCALE, NAN), N(LEN_Q, 0)}},
    {"q_scale and k_scale FLT_MAX", I8, FA_OK, {X(Q_SCALE, FLT_MAX), X(K_SCALE, FLT_MAX)}},
    {"a product of 1e30, but q_scale * k_scale 1e60", I8, FA_OK,
     {X(SCALE, 1e-30f), X(Q_SCALE, 1e30f), X(K_SCALE, 1e30f)}},
    {"scales of 0", I8, FA_OK, {X(Q_SCALE, 0), X(K_SCALE, 0), X(V_SCALE, 0)}},
    {"scales denormal", I8, FA_OK, {X(Q_SCALE, FLT_MIN / 4), X(K_SCALE, FLT_MIN / 4), X(V_SCALE, FLT_MIN / 4)}},
    {"scales < 0", I8, FA_OK, {X(Q_SCALE, -1), X(K_SCALE, -1), X(V_SCALE, -1)}},

    {"reserved 1", ALL, FA_ERR_RESERVED, {N(RESERVED, 1)}},
    {"reserved 0x80000000", ALL, FA_ERR_RESERVED, {N(RESERVED, 0x80000000)}},
    {"reserved 1, no queries", ALL, FA_ERR_RESERVED, {N(RESERVED, 1), N(LEN_Q, 0)}},

    {"out is q", COMPUTE, FA_ERR_OVERLAP, {N(ON_HEAD_OF_Q, 0)}},
    {"out begins on the last element of q", COMPUTE, FA_ERR_OVERLAP, {N(ON_TAIL_OF_Q, 4)}},
    {"out begins on the last element of k", COMPUTE, FA_ERR_OVERLAP, {N(ON_TAIL_OF_K, 4)}},
    {"out begins on the last element of v", COMPUTE, FA_ERR_OVERLAP, {N(ON_TAIL_OF_V, 4)}},
    {"out begins on the last byte of q", COMPUTE, FA_ERR_OVERLAP, {N(ON_TAIL_OF_Q, 1)}},
    {"out begins on the last byte of k", COMPUTE, FA_ERR_OVERLAP, {N(ON_TAIL_OF_K, 1)}},
    {"out begins on the last byte of v", COMPUTE, FA_ERR_OVERLAP, {N(ON_TAIL_OF_V, 1)}},
    {"out ends on the first element of q", COMPUTE, FA_ERR_OVERLAP, {N(ON_HEAD_OF_Q, 4)}},
    {"out ends on the first element of k", COMPUTE, FA_ERR_OVERLAP, {N(ON_HEAD_OF_K, 4)}},
    {"out ends on the first element of v", COMPUTE, FA_ERR_OVERLAP, {N(ON_HEAD_OF_V, 4)}},
    {"out ends on the first byte of q", COMPUTE, FA_ERR_OVERLAP, {N(ON_HEAD_OF_Q, 1)}},
    {"out ends on the first byte of k", COMPUTE, FA_ERR_OVERLAP, {N(ON_HEAD_OF_K, 1)}},
    {"out ends on the first byte of v", COMPUTE, FA_ERR_OVERLAP, {N(ON_HEAD_OF_V, 1)}},
    {"out within k", COMPUTE, FA_ERR_OVERLAP, {N(ON_TAIL_OF_K, 80)}},
    {"out within v", COMPUTE, FA_ERR_OVERLAP, {N(ON_TAIL_OF_V, 80)}},
    {"out right behind q", COMPUTE, FA_OK, {N(ON_TAIL_OF_Q, 0)}},
    {"out right behind k", COMPUTE, FA_OK, {N(ON_TAIL_OF_K, 0)}},
    {"out right behind v", COMPUTE, FA_OK, {N(ON_TAIL_OF_V, 0)}},
    {"out within k, no queries", COMPUTE, FA_OK, {N(ON_TAIL_OF_K, 4), N(LEN_Q, 0)}},
    {"out on the place of no keys", COMPUTE, FA_OK, {N(ON_TAIL_OF_K, 4), N(LEN_KV, 0)}},

    {"dtype 1", SCRATCH, FA_ERR_DTYPE, {N(DTYPE, 1)}},
    {"dtype 2", SCRATCH, FA_ERR_DTYPE, {N(DTYPE, 2)}},
    {"dtype 4", SCRATCH, FA_ERR_DTYPE, {N(DTYPE, 4)}},
    {"dtype -1", SCRATCH, FA_ERR_DTYPE, {N(DTYPE, SIZE_MAX)}},
    {"dtype INT32_MIN", SCRATCH, FA_ERR_DTYPE, {N(DTYPE, 0x80000000)}},
    {"dtype INT32_MAX", SCRATCH, FA_ERR_DTYPE, {N(DTYPE, INT32_MAX)}},
    {"dtype I8", SCRATCH, FA_OK, {N(DTYPE, FA_DTYPE_I8)}},
};

/* All memory that a call is given, so that one comparison shows what it has changed. The gaps are
 * wider than the output, so that it can be moved onto one array without touching another. */
enum { DIM = 8, LQ = 4, LKV = 6, MHA_HEADS = 2, GAP = 512, ARENA = 8192 };
static unsigned char arena[ARENA], before[ARENA];

static void fill_arena(void) {
    /* Any four of these bytes are a float between 0.01 and 0.2. */
    for (size_t i = 0; i < ARENA; i++) arena[i] = (unsigned char)(0x3c + (i * 7 + i / 5) % 3);
    memcpy(before, arena, ARENA);
}

/* Whether the arena is as it was, except for `n` bytes from `at` on. */
static bool untouched_but(const unsigned char *at, size_t n) {
    size_t start = (size_t)(at - arena);
    return memcmp(arena, before, start) == 0 &&
           memcmp(at + n, before + start + n, ARENA - start - n) == 0;
}

struct arguments {
    fa_config cfg;
    bool no_cfg;
    unsigned char *array[3];
    size_t array_bytes[3];
    unsigned char *out;
    size_t out_bytes;
    size_t *bytes;
    size_t heads, lq, lkv;
    float q_scale, k_scale, v_scale;
    int32_t dtype;
};

static struct arguments good_arguments(int call) {
    struct arguments a = {
        .cfg = {.head_dim = DIM, .causal = true, .softmax_scale = 0.35f, .num_threads = 1},
        .heads = call == MHA || call == SCRATCH ? MHA_HEADS : 1,
        .lq = LQ,
        .lkv = LKV,
        .q_scale = 0.01f,
        .k_scale = 0.02f,
        .v_scale = 0.03f,
        .dtype = FA_DTYPE_F32,
    };
    size_t size = call == I8 ? 1 : 4;
    unsigned char *at = arena + GAP;
    for (int i = 0; i < 3; i++) {
        a.array[i] = at;
        a.array_bytes[i] = a.heads * (i == 0 ? LQ : LKV) * DIM * size;
        /* Whole floats, so that the address is aligned. */
        at += (a.array_bytes[i] + 3) / 4 * 4 + GAP;
    }
    a.out = at;
    a.out_bytes = a.heads * LQ * DIM * 4;
    a.bytes = (size_t *)(void *)(arena + ARENA - 64);
    return a;
}

static void apply(struct arguments *a, struct edit e) {
    int array;
    switch (e.field) {
    case NOTHING: break;
    case CFG: a->no_cfg = true; break;
    case Q: a->array[0] = NULL; break;
    case K: a->array[1] = NULL; break;
    case V: a->array[2] = NULL; break;
    case OUT: a->out = NULL; break;
    case BYTES: a->bytes = NULL; break;
    case HEAD_DIM: a->cfg.head_dim = e.n; break;
    case HEADS: a->heads = e.n; break;
    case LEN_Q: a->lq = e.n; break;
    case LEN_KV: a->lkv = e.n; break;
    case BLOCK_Q: a->cfg.block_size_q = e.n; break;
    case BLOCK_KV: a->cfg.block_size_kv = e.n; break;
    case NUM_THREADS: a->cfg.num_threads = (uint32_t)e.n; break;
    case RESERVED: a->cfg.reserved = (uint32_t)e.n; break;
    case DTYPE: a->dtype = (int32_t)(uint32_t)e.n; break;
    case SCALE: a->cfg.softmax_scale = e.x; break;
    case Q_SCALE: a->q_scale = e.x; break;
    case K_SCALE: a->k_scale = e.x; break;
    case V_SCALE: a->v_scale = e.x; break;
    case ON_TAIL_OF_Q:
    case ON_TAIL_OF_K:
    case ON_TAIL_OF_V:
        array = (int)e.field - ON_TAIL_OF_Q;
        a->out = a->array[array] + a->array_bytes[array] - e.n;
        break;
    case ON_HEAD_OF_Q:
    case ON_HEAD_OF_K:
    case ON_HEAD_OF_V:
        array = (int)e.field - ON_HEAD_OF_Q;
        /* 0 stands for the very same address. */
        a->out = e.n == 0 ? a->array[array] : a->array[array] - a->out_bytes + e.n;
        break;
    }
}

static fa_status perform(int call, const struct arguments *a) {
    const fa_config *cfg = a->no_cfg ? NULL : &a->cfg;
    const void *q = a->array[0], *k = a->array[1], *v = a->array[2];
    void *out = a->out;
    switch (call) {
    case F32: return fa_forward_f32(cfg, q, k, v, a->lq, a->lkv, out);
    case I8:
        return fa_forward_i8(cfg, q, k, v, a->q_scale, a->k_scale, a->v_scale, a->lq, a->lkv, out);
    case MHA: return fa_mha(cfg, q, k, v, a->heads, a->lq, a->lkv, out);
    default: return fa_scratch_bytes(cfg, a->dtype, a->heads, a->lq, a->lkv, a->bytes);
    }
}

/* What a row tries: a refusal counts where one field alone is to blame. */
static void cover_row(const struct row *row, const char *call) {
    static const char *const names[] = {
        [CFG] = "(cfg)", [Q] = "(q)", [K] = "(k)", [V] = "(v)", [OUT] = "(out)", [BYTES] = "(bytes)",
        [HEAD_DIM] = ".head_dim", [HEADS] = "(num_heads)", [LEN_Q] = "(seq_len_q)", [LEN_KV] = "(seq_len_kv)",
        [BLOCK_Q] = ".block_size_q", [BLOCK_KV] = ".block_size_kv", [NUM_THREADS] = ".num_threads",
        [RESERVED] = ".reserved", [DTYPE] = "(dtype)", [SCALE] = ".softmax_scale", [Q_SCALE] = "(q_scale)",
        [K_SCALE] = "(k_scale)", [V_SCALE] = "(v_scale)", [ON_TAIL_OF_Q] = "(q)", [ON_TAIL_OF_K] = "(k)",
        [ON_TAIL_OF_V] = "(v)", [ON_HEAD_OF_Q] = "(q)", [ON_HEAD_OF_K] = "(k)", [ON_HEAD_OF_V] = "(v)",
    };
    char place[60];
    for (size_t i = 0; i < COUNT(row->edits) && row->edits[i].field != NOTHING; i++) {
        struct edit e = row->edits[i];
        if (row->want != FA_OK && row->edits[1].field != NOTHING) continue;
        const char *kind = e.field < HEAD_DIM ? "NULL" : e.field < SCALE ? kind_of_integer((int64_t)e.n, 8)
                           : e.field < ON_TAIL_OF_Q ? kind_of_real(e.x) : "overlap";
        if (e.field == RESERVED || e.field == NUM_THREADS || e.field == DTYPE) {
            kind = kind_of_integer((int64_t)(int32_t)(uint32_t)e.n, 4);
        }
        snprintf(place, sizeof place, "%s%s", names[e.field][0] == '.' ? "fa_config" : call, names[e.field]);
        covered(place, kind, row->want);
        if (e.field < ON_TAIL_OF_Q) continue;
        snprintf(place, sizeof place, "%s(out)", call);
        covered(place, kind, row->want);
    }
}

static void check_row(const struct row *row, int call, const char *name) {
    struct arguments a = good_arguments(call);
    for (size_t i = 0; i < COUNT(row->edits); i++) apply(&a, row->edits[i]);
    struct arguments copy;
    memcpy(&copy, &a, sizeof a);
    fill_arena();

    fa_status got = perform(call, &a);

    CHECK(got == row->want, "%s, %s: %d (%s) instead of %d", name, row->what, (int)got,
          fa_status_string(got), (int)row->want);
    CHECK(memcmp(&copy.cfg, &a.cfg, sizeof a.cfg) == 0, "%s, %s: cfg has changed", name, row->what);
    if (got == FA_OK && call == SCRATCH) {
        CHECK(untouched_but((unsigned char *)a.bytes, sizeof *a.bytes), "%s, %s: memory around",
              name, row->what);
    } else if (got == FA_OK && a.lq > 0 && a.out != NULL) {
        CHECK(untouched_but(a.out, a.out_bytes), "%s, %s: memory around out", name, row->what);
        static const unsigned char zeros[sizeof arena];
        CHECK((memcmp(a.out, zeros, a.out_bytes) == 0) == (a.lkv == 0 || a.v_scale == 0),
              "%s, %s: %s", name, row->what, a.lkv == 0 ? "not zeros" : "zeros");
    } else {
        CHECK(untouched_but(arena, 0), "%s, %s: memory has changed", name, row->what);
    }
}

static int check_table(void) {
    int checked = 0;
    for (size_t r = 0; r < COUNT(rows); r++) {
        for (size_t c = 0; c < COUNT(call_names); c++) {
            if ((rows[r].calls & 1 << c) == 0) continue;
            cover_row(&rows[r], call_names[c]);
            check_row(&rows[r], 1 << c, call_names[c]);
            checked++;
        }
    }
    return checked;
}

static int check_constructors(void) {
    static fa_status (*const fill[])(fa_config *, size_t) = {
        fa_config_for_head_dim, fa_config_for_long_sequence, fa_config_auto};
    static const char *const names[] = {"for_head_dim", "for_long_sequence", "auto"};
    for (size_t i = 0; i < COUNT(fill); i++) {
        char cfg_argument[50], dim_argument[50];
        snprintf(cfg_argument, sizeof cfg_argument, "fa_config_%s(cfg)", names[i]);
        snprintf(dim_argument, sizeof dim_argument, "fa_config_%s(head_dim)", names[i]);
        covered(cfg_argument, "NULL", FA_ERR_NULL);
        covered(dim_argument, "zero", FA_ERR_ZERO_EXTENT);
        covered(dim_argument, "huge", FA_OK);
        fa_config cfg, copy;
        memset(&cfg, 0xa5, sizeof cfg);
        memset(&copy, 0xa5, sizeof copy);
        CHECK(fill[i](&cfg, 0) == FA_ERR_ZERO_EXTENT, "constructor %zu", i);
        CHECK(memcmp(&cfg, &copy, sizeof cfg) == 0, "constructor %zu: cfg has changed", i);
        CHECK(fill[i](NULL, 64) == FA_ERR_NULL, "constructor %zu", i);
        CHECK(fill[i](&cfg, SIZE_MAX) == FA_OK && cfg.head_dim == SIZE_MAX, "constructor %zu", i);

        unsigned char odd[sizeof cfg + 1];
        void *odd_cfg = odd + 1;
        CHECK(fill[i](&cfg, 33) == FA_OK && fill[i](odd_cfg, 33) == FA_OK, "constructor %zu", i);
        memcpy(&copy, odd_cfg, sizeof copy);
        CHECK(copy.block_size_q == cfg.block_size_q && copy.block_size_kv == cfg.block_size_kv &&
                  copy.head_dim == 33 && copy.softmax_scale == cfg.softmax_scale,
              "constructor %zu at an odd address", i);
        covered(cfg_argument, "odd", FA_OK);
    }
    return 3 * (int)COUNT(fill);
}

static int check_isa_names(void) {
    static const char *const wrong[] = {"",      " ",       "AVX2",     "avx2 ", " avx2", "avx",
                                        "avx51", "avx512f", "unknown",  "Scalar", "nonsense",
                                        "scalar,avx2", "avx2\n", "\xff\xfe",  "neon-", "neonbf16"};
    const char *caps[] = {NULL, "scalar", isa_names[1]};
    int checked = 0;
    for (size_t c = 0; c < COUNT(caps); c++) {
        CHECK(fa_limit_isa(caps[c]) == FA_OK, "%s", caps[c] ? caps[c] : "NULL");
        const char *isa = fa_isa();
        for (size_t i = 0; i < COUNT(wrong); i++, checked++) {
            CHECK(fa_limit_isa(wrong[i]) == FA_ERR_ISA, "\"%s\"", wrong[i]);
            CHECK(strcmp(fa_isa(), isa) == 0, "\"%s\" turned %s into %s", wrong[i], isa, fa_isa());
        }
    }
    CHECK(fa_limit_isa(NULL) == FA_OK, "taking the cap back");
    covered("fa_limit_isa(isa)", "NULL", FA_OK);
    covered("fa_limit_isa(isa)", "unknown", FA_ERR_ISA);
    return checked;
}

/* Where AMX is not, the status is that of isa.c; no argument is refused. */
static void check_words_of_amx(void) {
    char why[9] = "xxxxxxxx";
    fa_status status = fa_enable_amx(NULL, 100);
    CHECK(status == FA_OK || status == FA_ERR_ISA, "%s", fa_status_string(status));
    CHECK(fa_enable_amx(why, 0) == status && strcmp(why, "xxxxxxxx") == 0, "no room: %s", why);
    CHECK(fa_enable_amx(why, 1) == status && strcmp(why, "") == 0 && why[1] == 'x', "room for the end: %s", why);
    covered("fa_enable_amx(why)", "NULL", FA_OK), covered("fa_enable_amx(why_size)", "zero", FA_OK);
}

static void cover_odd(const char *call, const char *const *arguments) {
    char place[60];
    for (; *arguments != NULL; arguments++) {
        snprintf(place, sizeof place, "%s(%s)", call, *arguments);
        covered(place, "odd", FA_OK);
    }
}

/* Any integer has a sentence. */
static int check_status_strings(void) {
    static const int32_t statuses[] = {INT32_MIN, -1, 0, FA_ERR_PAGE, FA_ERR_PAGE + 1, INT32_MAX};
    for (size_t i = 0; i < COUNT(statuses); i++) {
        const char *words = fa_status_string(statuses[i]);
        CHECK(words != NULL && strlen(words) > 1, "status %d", (int)statuses[i]);
        bool known = statuses[i] >= 0 && statuses[i] <= FA_ERR_PAGE;
        CHECK((strstr(words, "unknown") != NULL) == !known, "status %d: %s", (int)statuses[i], words);
        covered("fa_status_string(status)", kind_of_integer(statuses[i], 4), FA_OK);
    }
    return (int)COUNT(statuses);
}

/* All pointers at odd addresses: the same bits. */
static void check_misaligned(void) {
    static const char *const arrays[] = {"cfg", "q", "k", "v", "out", NULL}, *const others[] = {"cfg", "bytes", NULL};
    for (int call = 0; call < 3; call++) cover_odd(call_names[call], arrays);
    cover_odd("fa_scratch_bytes", others);
    enum { D = 33, ROWS = 40, KEYS = 70, NQ = ROWS * D, NKV = KEYS * D };
    float *q = random_normal(NQ), *k = random_normal(NKV), *v = random_normal(NKV);
    int8_t q8[NQ], k8[NKV], v8[NKV];
    float want[NQ], got[NQ];
    for (size_t i = 0; i < NQ; i++) q8[i] = (int8_t)(q[i] * 30);
    for (size_t i = 0; i < NKV; i++) k8[i] = (int8_t)(k[i] * 30), v8[i] = (int8_t)(v[i] * 30);
    unsigned char *odd_q = need(NQ * 4 + 1), *odd_k = need(NKV * 4 + 1), *odd_v = need(NKV * 4 + 1);
    unsigned char *odd_out = need(NQ * 4 + 1), odd_cfg[sizeof(fa_config) + 1];
    memcpy(odd_q + 1, q, NQ * 4), memcpy(odd_k + 1, k, NKV * 4), memcpy(odd_v + 1, v, NKV * 4);
    void *pq = odd_q + 1, *pk = odd_k + 1, *pv = odd_v + 1;
    void *pout = odd_out + 1, *pcfg = odd_cfg + 1;

    fa_config cfg;
    CHECK(fa_config_auto(&cfg, D) == FA_OK, "aligned constructor");
    CHECK(fa_config_auto(pcfg, D) == FA_OK, "misaligned constructor");
    fa_config copy;
    memcpy(&copy, pcfg, sizeof copy);
    CHECK(copy.head_dim == D && copy.softmax_scale == cfg.softmax_scale, "misaligned constructor");
    cfg.causal = true;
    memcpy(pcfg, &cfg, sizeof cfg);

    CHECK(fa_forward_f32(&cfg, q, k, v, ROWS, KEYS, want) == FA_OK, "aligned");
    CHECK(fa_forward_f32(pcfg, pq, pk, pv, ROWS, KEYS, pout) == FA_OK, "misaligned");
    memcpy(got, pout, sizeof got);
    CHECK(same_bits(got, want, NQ), "misaligned fa_forward_f32: other bits");

    memset(odd_out, 0, NQ * 4 + 1);
    CHECK(fa_mha(pcfg, pq, pk, pv, 1, ROWS, KEYS, pout) == FA_OK, "misaligned");
    memcpy(got, pout, sizeof got);
    CHECK(same_bits(got, want, NQ), "misaligned fa_mha: other bits");

    CHECK(fa_forward_i8(&cfg, q8, k8, v8, 0.1f, 0.1f, 0.1f, ROWS, KEYS, want) == FA_OK, "aligned");
    memcpy(pq, q8, NQ), memcpy(pk, k8, NKV), memcpy(pv, v8, NKV);
    CHECK(fa_forward_i8(pcfg, pq, pk, pv, 0.1f, 0.1f, 0.1f, ROWS, KEYS, pout) == FA_OK,
          "misaligned");
    memcpy(got, pout, sizeof got);
    CHECK(same_bits(got, want, NQ), "misaligned fa_forward_i8: other bits");

    size_t bytes, odd_bytes;
    CHECK(fa_scratch_bytes(&cfg, FA_DTYPE_F32, 1, ROWS, KEYS, &bytes) == FA_OK, "aligned");
    CHECK(fa_scratch_bytes(pcfg, FA_DTYPE_F32, 1, ROWS, KEYS, pout) == FA_OK, "misaligned");
    memcpy(&odd_bytes, pout, sizeof odd_bytes);
    CHECK(bytes == odd_bytes, "misaligned: %zu bytes instead of %zu", odd_bytes, bytes);
    free(q), free(k), free(v), free(odd_q), free(odd_k), free(odd_v), free(odd_out);
}

/* Memory of a bool that was never a bool. */
static void check_odd_bools(void) {
    enum { D = 5, LEN = 20, ELEMENTS = LEN * D };
    static const unsigned char values[] = {1, 2, 3, 0x80, 254, 255};
    float *q = random_normal(ELEMENTS), *k = random_normal(ELEMENTS), *v = random_normal(ELEMENTS);
    float open[ELEMENTS], causal[ELEMENTS], got[ELEMENTS];
    fa_config cfg;
    CHECK(fa_config_auto(&cfg, D) == FA_OK, "constructor");
    CHECK(fa_forward_f32(&cfg, q, k, v, LEN, LEN, open) == FA_OK, "not causal");
    cfg.causal = true;
    CHECK(fa_forward_f32(&cfg, q, k, v, LEN, LEN, causal) == FA_OK, "causal");
    CHECK(!same_bits(open, causal, ELEMENTS), "causal makes no difference");
    for (size_t i = 0; i < COUNT(values); i++) {
        memset((unsigned char *)&cfg + offsetof(fa_config, causal), values[i], 1);
        memset(got, 0xff, sizeof got);
        CHECK(fa_forward_f32(&cfg, q, k, v, LEN, LEN, got) == FA_OK, "causal %u", values[i]);
        CHECK(same_bits(got, causal, ELEMENTS), "causal %u does not count as true", values[i]);
        covered("fa_config.causal", kind_of_integer(values[i], 1), FA_OK);
        size_t bytes;
        CHECK(fa_scratch_bytes(&cfg, 0, 1, LEN, LEN, &bytes) == FA_OK, "causal %u", values[i]);
    }
    free(q), free(k), free(v);
}

int main(int argc, char **argv) {
    covered_begin(argc, argv);
    int checked = check_table() + check_constructors() + check_isa_names() + check_status_strings();
    check_misaligned();
    check_odd_bools();
    check_words_of_amx();
    printf("%d refusals and their neighbours checked\n", checked);
    return check_result();
}
