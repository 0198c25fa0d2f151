/* fa_forward_q15 and fa_mha_q15: every bit is that of docs/fixed-point.md, for any number of
 * threads and heads; what they refuse, and that a refusal changes nothing. */

#include <limits.h>

#include "covered.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* ---- The definition, once more. ---- */

static int64_t power(uint64_t x) {
    uint64_t n = x >> 16, f = x & 0xffff;
    if (n >= 30) return 0;
    uint64_t t = (uint64_t)floor(exp2(30 - (double)(f / 2048) / 32) + 0.5);
    uint64_t y = f % 2048 * 11629080 / 1024, p = ((uint64_t)1 << 30) - y + y * y / ((uint64_t)1 << 31);
    return (int64_t)((t * p + ((uint64_t)1 << (32 + n))) >> (33 + n));
}

/* Rounded down. */
static int64_t over(int64_t a, int64_t b) {
    return a / b - (a % b < 0);
}

static void reference(const int16_t *q, const int16_t *k, const int16_t *v, size_t lq, size_t lkv,
                      const fa_q15_config *cfg, int16_t *out) {
    size_t dim = cfg->head_dim;
    int64_t m = cfg->scale_mantissa, s = cfg->scale_shift, a = 0, b = 0;
    if (m == 0) {
        s = 30;
        m = (int64_t)sqrt((double)(((int64_t)1 << 60) / (int64_t)dim)) - 2;
        while ((m + 1) * (m + 1) <= ((int64_t)1 << 60) / (int64_t)dim) m++;
    }
    while ((size_t)1 << a < dim) a++;
    uint64_t c = (uint64_t)(m < 0 ? -m : m) * 1549082005;
    while (c >> b >> 32 != 0) b++;
    c >>= b;
    int64_t e = 44 + s - a - b, *scores = need(lkv * sizeof *scores), *weights = need(lkv * sizeof *weights);
    for (size_t i = 0; i < lq; i++) {
        size_t seen = keys_seen(i, lq, lkv, cfg->causal != 0);
        int64_t largest = INT64_MIN, total = 0;
        for (size_t j = 0; j < seen; j++) {
            int64_t sum = 0;
            for (size_t d = 0; d < dim; d++) sum += (int64_t)q[i * dim + d] * k[j * dim + d];
            scores[j] = over(m < 0 ? -sum : sum, (int64_t)1 << a);
            if (scores[j] > largest) largest = scores[j];
        }
        for (size_t j = 0; j < seen; j++) {
            uint64_t below = (uint64_t)(largest - scores[j]) * c;
            weights[j] = power(e < 64 ? below >> e : 0);
            total += weights[j];
        }
        for (size_t d = 0; d < dim; d++) {
            int64_t sum = 0;
            for (size_t j = 0; j < seen; j++) sum += weights[j] * v[j * dim + d];
            int64_t quotient = seen == 0 ? 0 : over(sum, total), twice = seen == 0 ? 0 : 2 * (sum - quotient * total);
            if (twice > total || (seen != 0 && twice == total && quotient % 2 != 0)) quotient++;
            out[i * dim + d] = (int16_t)quotient;
        }
    }
    free(scores), free(weights);
}

/* ---- Results ---- */

static int16_t *random_numbers(size_t n, int kind) {
    int16_t *x = need(n * sizeof *x);
    for (size_t i = 0; i < n; i++) {
        uint64_t bits = random_bits();
        x[i] = kind == 0 ? (int16_t)(bits & 0xffff)
               : kind == 1 ? (int16_t)((int64_t)(bits % 2001) - 1000)
                           : (bits & 1 ? INT16_MAX : INT16_MIN);
    }
    return x;
}

static int check_results(void) {
    static const struct {
        size_t dim, heads, kv, lq, lkv;
        int32_t mantissa, shift;
        uint32_t causal;
    } cases[] = {
        {64, 1, 1, 40, 300, 0, 0, 0},   {64, 4, 2, 33, 129, 0, 5, 1},  {128, 3, 3, 7, 200, 100, 3, 1},
        {80, 6, 2, 65, 64, -3, 1, 1},   {1, 2, 1, 100, 100, 1, 0, 7},  {130, 2, 2, 5, 257, 0, 0, 0},
        {300, 2, 1, 9, 30, 511, 0, 1},  {64, 8, 8, 1, 1000, 4096, 0, 0}, {16, 2, 1, 50, 3, 0, 0, 1},
        {24, 2, 2, 20, 40, 1, 63, 0},   {32, 2, 1, 3, 0, 0, 0, 0},     {96, 5, 5, 128, 128, 0, 0, UINT32_MAX},
        {48, 16, 4, 70, 150, INT32_MAX, 20, 1},
    };
    static const uint32_t threads[] = {1, 2, 3, 7, 0, UINT32_MAX};
    int checked = 0;
    for (size_t n = 0; n < COUNT(cases); n++) {
        size_t dim = cases[n].dim, heads = cases[n].heads, kv = cases[n].kv, lq = cases[n].lq, lkv = cases[n].lkv;
        size_t of_q = lq * dim, of_kv = lkv * dim;
        int kind = (int)(n % 3);
        int16_t *q = random_numbers(heads * of_q, kind), *k = random_numbers(kv * of_kv, kind);
        int16_t *v = random_numbers(kv * of_kv, kind == 1 ? 0 : kind);
        int16_t *want = need(heads * of_q * 2), *room = need((heads * of_q + 16) * 2), *out = room + 8;
        fa_q15_config cfg = {.struct_size = sizeof cfg, .head_dim = dim, .scale_mantissa = cases[n].mantissa,
                             .scale_shift = cases[n].shift, .causal = cases[n].causal};
        for (size_t h = 0; h < heads; h++) {
            const int16_t *keys = k + h / (heads / kv) * of_kv, *values = v + h / (heads / kv) * of_kv;
            reference(q + h * of_q, keys, values, lq, lkv, &cfg, want + h * of_q);
        }
        for (size_t t = 0; t < COUNT(threads); t++, checked++) {
            cfg.num_threads = threads[t];
            memset(room, 0x5a, (heads * of_q + 16) * 2);
            fa_status status = fa_mha_q15(&cfg, q, k, v, heads, kv, lq, lkv, out);
            CHECK(status == FA_OK, "case %zu: %s", n, fa_status_string(status));
            CHECK(memcmp(out, want, heads * of_q * 2) == 0, "case %zu, %u threads: other bits", n, threads[t]);
            for (size_t i = 0; i < 8; i++) {
                CHECK(room[i] == 0x5a5a && out[heads * of_q + i] == 0x5a5a, "case %zu: wrote beside the output", n);
            }
            memset(room, 0xa5, (heads * of_q + 16) * 2);
            for (size_t h = 0; h < heads; h++) {
                size_t g = h / (heads / kv) * of_kv;
                status = fa_forward_q15(&cfg, q + h * of_q, k + g, v + g, lq, lkv, out + h * of_q);
                CHECK(status == FA_OK, "case %zu, head %zu: %s", n, h, fa_status_string(status));
            }
            CHECK(memcmp(out, want, heads * of_q * 2) == 0, "case %zu, %u threads, by heads: other bits", n, threads[t]);
        }
        free(q), free(k), free(v), free(want), free(room);
    }
    return checked;
}

/* ---- Refusals ---- */

enum { DIM = 8, LQ = 4, LKV = 6, HEADS = 4, KV = 2, GAP = 400, ARENA = 8192 };

/* A configuration, perhaps of a later version, with all memory that a call is given. */
static struct {
    fa_q15_config cfg;
    uint64_t later[600];
} sized;
static _Alignas(8) unsigned char arena[ARENA], before[ARENA];

enum place { CFG, Q, K, V, OUT, STRUCT_SIZE, HEAD_DIM, MANTISSA, SHIFT, CAUSAL, THREADS, LATER, NUM_HEADS, NUM_KV, LEN_Q, LEN_KV };
static const char *const names[] = {"(cfg)", "(q)", "(k)", "(v)", "(out)", ".struct_size", ".head_dim", ".scale_mantissa",
    ".scale_shift", ".causal", ".num_threads", ".struct_size", "(num_heads)", "(num_kv_heads)", "(seq_len_q)", "(seq_len_kv)"};

/* What is done to arguments that are fine. Pointers: NULL, one byte on, or, of an input, onto the
 * output. */
struct edit {
    enum place place;
    int64_t n;
};
enum { TO_NULL = 0, TO_ODD = 1, ONTO_OUT = 2, ONTO_END_OF_OUT = 3 };
struct row {
    fa_status want;
    struct edit edits[3];
    int count;
};

static const struct row rows[] = {
    {FA_OK, {{CAUSAL, 0}}, 1},
    {FA_OK, {{CAUSAL, UINT32_MAX}}, 1},
    {FA_OK, {{THREADS, UINT32_MAX}}, 1},
    {FA_ERR_NULL, {{CFG, TO_NULL}}, 1},
    {FA_OK, {{CFG, TO_ODD}}, 1},
    {FA_ERR_NULL, {{Q, TO_NULL}}, 1},
    {FA_ERR_NULL, {{K, TO_NULL}}, 1},
    {FA_ERR_NULL, {{V, TO_NULL}}, 1},
    {FA_ERR_NULL, {{OUT, TO_NULL}}, 1},
    {FA_ERR_STRIDE, {{Q, TO_ODD}}, 1},
    {FA_ERR_STRIDE, {{K, TO_ODD}}, 1},
    {FA_ERR_STRIDE, {{V, TO_ODD}}, 1},
    {FA_ERR_STRIDE, {{OUT, TO_ODD}}, 1},
    {FA_ERR_OVERLAP, {{Q, ONTO_OUT}}, 1},
    {FA_ERR_OVERLAP, {{K, ONTO_OUT}}, 1},
    {FA_ERR_OVERLAP, {{V, ONTO_OUT}}, 1},
    {FA_ERR_OVERLAP, {{Q, ONTO_END_OF_OUT}}, 1},
    {FA_ERR_OVERLAP, {{K, ONTO_END_OF_OUT}}, 1},
    {FA_ERR_OVERLAP, {{V, ONTO_END_OF_OUT}}, 1},
    {FA_ERR_STRUCT_SIZE, {{STRUCT_SIZE, 0}}, 1},
    {FA_ERR_STRUCT_SIZE, {{STRUCT_SIZE, sizeof(fa_q15_config) - 1}}, 1},
    {FA_ERR_STRUCT_SIZE, {{STRUCT_SIZE, sizeof(fa_q15_config) + 4097}}, 1},
    {FA_ERR_STRUCT_SIZE, {{STRUCT_SIZE, -1}}, 1},
    {FA_ERR_STRUCT_SIZE, {{STRUCT_SIZE, INT64_MAX}}, 1},
    {FA_OK, {{STRUCT_SIZE, sizeof(fa_q15_config) + 4096}}, 1},
    {FA_OK, {{STRUCT_SIZE, sizeof(fa_q15_config) + 8}}, 1},
    {FA_ERR_STRUCT_SIZE, {{STRUCT_SIZE, sizeof(fa_q15_config) + 8}, {LATER, 1}}, 2},
    {FA_ERR_ZERO_EXTENT, {{HEAD_DIM, 0}}, 1},
    {FA_ERR_ZERO_EXTENT, {{HEAD_DIM, 0}, {LEN_Q, 0}}, 2},
    {FA_ERR_OVERFLOW, {{HEAD_DIM, 65537}}, 1},
    {FA_ERR_OVERFLOW, {{HEAD_DIM, -1}}, 1},
    {FA_ERR_OVERFLOW, {{HEAD_DIM, INT64_MAX}}, 1},
    {FA_ERR_SOFTMAX_SCALE, {{MANTISSA, INT32_MAX}}, 1},
    {FA_ERR_SOFTMAX_SCALE, {{MANTISSA, INT32_MIN}}, 1},
    {FA_ERR_SOFTMAX_SCALE, {{MANTISSA, 131073}}, 1},
    {FA_ERR_SOFTMAX_SCALE, {{MANTISSA, -131073}}, 1},
    {FA_OK, {{MANTISSA, 131072}}, 1},
    {FA_OK, {{MANTISSA, -131072}}, 1},
    {FA_OK, {{MANTISSA, INT32_MIN}, {SHIFT, 16}}, 2},
    {FA_OK, {{MANTISSA, 0}}, 1},
    {FA_ERR_SOFTMAX_SCALE, {{SHIFT, -1}}, 1},
    {FA_ERR_SOFTMAX_SCALE, {{SHIFT, INT32_MIN}}, 1},
    {FA_ERR_SOFTMAX_SCALE, {{SHIFT, INT32_MAX}}, 1},
    {FA_ERR_SOFTMAX_SCALE, {{SHIFT, 64}}, 1},
    {FA_ERR_SOFTMAX_SCALE, {{SHIFT, 64}, {MANTISSA, 0}}, 2},
    {FA_OK, {{SHIFT, 63}}, 1},
    {FA_ERR_SOFTMAX_SCALE, {{SHIFT, 64}, {LEN_Q, 0}}, 2},
    {FA_ERR_ZERO_EXTENT, {{NUM_HEADS, 0}}, 1},
    {FA_ERR_ZERO_EXTENT, {{NUM_KV, 0}}, 1},
    {FA_ERR_SHAPE, {{NUM_KV, 3}}, 1},
    {FA_ERR_SHAPE, {{NUM_KV, 8}}, 1},
    {FA_ERR_SHAPE, {{NUM_HEADS, 3}}, 1},
    {FA_ERR_SHAPE, {{NUM_KV, INT64_MAX}}, 1},
    {FA_ERR_OVERFLOW, {{NUM_HEADS, INT64_MAX - 1}}, 1},
    {FA_ERR_OVERFLOW, {{NUM_HEADS, (int64_t)1 << 60}}, 1},
    {FA_OK, {{LEN_Q, 0}}, 1},
    {FA_ERR_OVERFLOW, {{LEN_Q, -1}}, 1},
    {FA_ERR_OVERFLOW, {{LEN_Q, (int64_t)1 << 60}}, 1},
    {FA_ERR_OVERFLOW, {{LEN_Q, (int64_t)1 << 59}}, 1},
    {FA_OK, {{LEN_KV, 0}}, 1},
    {FA_ERR_OVERFLOW, {{LEN_KV, 2097153}}, 1},
    {FA_ERR_OVERFLOW, {{LEN_KV, -1}}, 1},
    {FA_ERR_OVERFLOW, {{LEN_KV, INT64_MAX}}, 1},
    {FA_ERR_OVERFLOW, {{LEN_KV, -1}, {LEN_Q, 0}}, 2},
    {FA_OK, {{LEN_Q, 0}, {Q, TO_NULL}, {OUT, TO_NULL}}, 3},
    {FA_OK, {{LEN_KV, 0}, {K, TO_NULL}, {V, TO_NULL}}, 3},
    {FA_ERR_NULL, {{LEN_KV, 0}, {OUT, TO_NULL}}, 2},
};

static void check_row(const struct row *row, bool is_mha) {
    const char *call = is_mha ? "fa_mha_q15" : "fa_forward_q15";
    size_t heads = is_mha ? HEADS : 1, kv = is_mha ? KV : 1, lq = LQ, lkv = LKV;
    size_t bytes[] = {heads * LQ * DIM * 2, kv * LKV * DIM * 2, kv * LKV * DIM * 2, heads * LQ * DIM * 2};
    unsigned char *array[4], odd[sizeof sized + 1];
    size_t at = GAP;
    for (int i = 0; i < 4; i++) array[i] = arena + at, at += bytes[i] + GAP;
    memset(&sized, 0, sizeof sized);
    sized.cfg = (fa_q15_config){.struct_size = sizeof sized.cfg, .head_dim = DIM, .scale_mantissa = 3, .scale_shift = 2,
                                .causal = 1, .num_threads = 1};
    const void *cfg = &sized.cfg;
    for (size_t i = 0; i < ARENA; i++) arena[i] = (unsigned char)(i * 7 + i / 5 + 1);
    for (int i = 0; i < row->count; i++) {
        struct edit e = row->edits[i];
        const char *kind = kind_of_integer(e.n, e.place >= MANTISSA && e.place <= THREADS ? 4 : 8);
        switch (e.place) {
        case CFG:
            kind = e.n == TO_NULL ? "NULL" : "odd";
            memcpy(odd + 1, &sized, sizeof sized);
            cfg = e.n == TO_NULL ? NULL : odd + 1;
            break;
        case Q: case K: case V: case OUT:
            kind = e.n == TO_NULL ? "NULL" : e.n == TO_ODD ? "odd" : "overlap";
            array[e.place - Q] = e.n == TO_NULL ? NULL : e.n == TO_ODD ? array[e.place - Q] + 1
                                 : e.n == ONTO_OUT ? array[3] : array[3] + bytes[3] - 2;
            break;
        case STRUCT_SIZE: sized.cfg.struct_size = (size_t)e.n; break;
        case HEAD_DIM: sized.cfg.head_dim = (size_t)e.n; break;
        case MANTISSA: sized.cfg.scale_mantissa = (int32_t)e.n; break;
        case SHIFT: sized.cfg.scale_shift = (int32_t)e.n; break;
        case CAUSAL: sized.cfg.causal = (uint32_t)e.n; break;
        case THREADS: sized.cfg.num_threads = (uint32_t)e.n; break;
        case LATER: memset(&sized.later[0], 1, 1); break;
        case NUM_HEADS: heads = (size_t)e.n; break;
        case NUM_KV: kv = (size_t)e.n; break;
        case LEN_Q: lq = (size_t)e.n; break;
        case LEN_KV: lkv = (size_t)e.n; break;
        }
        if (!is_mha && (e.place == NUM_HEADS || e.place == NUM_KV)) return;
        if (row->count > 1 && row->want != FA_OK) continue;
        char place[60];
        snprintf(place, sizeof place, "%s%s", names[e.place][0] == '.' ? "fa_q15_config" : call, names[e.place]);
        covered(place, kind, row->want);
        if (strcmp(kind, "overlap") != 0) continue;
        snprintf(place, sizeof place, "%s(out)", call);
        covered(place, kind, row->want);
    }
    memcpy(before, arena, ARENA);
    const void *q = array[0], *k = array[1], *v = array[2];
    void *out = array[3];
    fa_status got = is_mha ? fa_mha_q15(cfg, q, k, v, heads, kv, lq, lkv, out) : fa_forward_q15(cfg, q, k, v, lq, lkv, out);
    CHECK(got == row->want, "%s, row %d: %d (%s) instead of %d", call, (int)(row - rows), (int)got, fa_status_string(got),
          (int)row->want);
    bool writes = got == FA_OK && lq > 0;
    size_t from = writes ? (size_t)(array[3] - arena) : 0, to = writes ? from + bytes[3] : 0;
    CHECK(memcmp(arena, before, from) == 0 && memcmp(arena + to, before + to, ARENA - to) == 0,
          "%s, row %d: memory has changed", call, (int)(row - rows));
    CHECK(!writes || memcmp(arena + from, before + from, to - from) != 0, "%s, row %d: nothing was written", call,
          (int)(row - rows));
}

int main(int argc, char **argv) {
    covered_begin(argc, argv);
    int checked = 0;
    for (size_t r = 0; r < COUNT(rows); r++) check_row(&rows[r], false), check_row(&rows[r], true);
    checked = check_results();
    printf("%d results, %zu refusals and their neighbours checked\n", checked, 2 * COUNT(rows));
    return check_result();
}
