/* The general call as an engine uses it: layouts, grouped heads, positions, windows, ragged
 * batches, log-sum-exp, contexts in pieces, an engine's own threads. */

#define _POSIX_C_SOURCE 200809L

#include <pthread.h>

#include "check.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* What outputs hold before a call, so that a row that is left out shows. */
static void spoil(float *x, size_t n) {
    memset(x, 0xff, n * sizeof *x);
}

static fa_attention empty(void) {
    fa_attention a;
    CHECK(fa_attention_init(&a, sizeof a) == FA_OK, "init");
    return a;
}

/* How many numbers are still as they were spoilt. */
static int untouched(const float *x, int n) {
    float pattern;
    int count = 0;
    spoil(&pattern, 1);
    for (int i = 0; i < n; i++) count += same_bits(&x[i], &pattern, 1);
    return count;
}

/* Strides in elements. */
static fa_tensor tensor(float *data, int64_t batch, int64_t head, int64_t token) {
    return (fa_tensor){.data = data, .stride = {4 * batch, 4 * head, 4 * token}};
}

/* ---- The definition in double, read through the description. ---- */

/* Where the rows of a sequence are. */
struct place {
    int64_t entry, first, rows;
};

static struct place place(const int32_t *cu_len, int64_t b, int64_t len) {
    if (cu_len == NULL) return (struct place){b, 0, len};
    return (struct place){0, cu_len[b], cu_len[b + 1] - cu_len[b]};
}

static float *row_of(const fa_tensor *t, struct place at, int64_t head, int64_t row) {
    return (float *)(void *)((char *)t->data + at.entry * t->stride[0] + head * t->stride[1] +
                             (at.first + row) * t->stride[2]);
}

static float *lse_of(const fa_attention *a, struct place at, int64_t head, int64_t row) {
    return a->lse + at.entry * a->lse_stride[0] + head * a->lse_stride[1] +
           (at.first + row) * a->lse_stride[2];
}

/* Whether a position and a key lie in one span of a sequence. */
static bool in_one_span(const fa_attention *a, int64_t b, int64_t p, int64_t j) {
    if (a->spans == NULL) return false;
    for (int32_t i = a->span_starts[b]; i < a->span_starts[b + 1]; i++) {
        int64_t begin = a->spans[2 * i], end = a->spans[2 * i + 1];
        if (begin <= p && p < end && begin <= j && j < end) return true;
    }
    return false;
}

/* Whether windows, first keys and spans let a query at position p see a key. */
static bool sees(const fa_attention *a, int64_t b, int64_t p, int64_t j) {
    int64_t first = a->kv_starts != NULL ? a->kv_starts[b] : 0;
    bool near = a->window_left == FA_NO_LIMIT || j >= p - a->window_left || j - first < a->prefix_keys;
    /* Not j > p + window_right, which may be beyond all numbers. */
    bool early = a->window_right == FA_NO_LIMIT || p >= j - a->window_right;
    return j >= first && ((near && early) || in_one_span(a, b, p, j));
}

/* Keys of a sequence in these tests: len_kv may say more than there are. */
enum { KEYS_AT_MOST = 1000 };

/* One row of the output, its log-sum-exp, and the probabilities of its keys, as many as there are
 * in use; returns how many it sees. */
static int64_t definition(const fa_attention *a, int64_t b, int64_t h, int64_t i, double *o,
                          double *lse, double *weights) {
    struct place q_at = place(a->cu_len_q, b, a->len_q), kv_at = place(a->cu_len_kv, b, a->len_kv);
    int64_t keys = a->kv_lens != NULL ? a->kv_lens[b] : kv_at.rows, seen = 0;
    int64_t kv_head = h / (a->heads_q / a->heads_kv);
    int64_t p = i + (a->q_positions != NULL ? a->q_positions[b]
                     : a->q_pos == FA_POS_END ? keys - q_at.rows : a->q_pos);
    double scale = a->scale == 0 ? 1 / sqrt((double)a->dim_qk) : (double)a->scale;
    double *s = need((size_t)keys * sizeof *s), max = -INFINITY, sum = 0;
    const float *q = row_of(&a->q, q_at, h, i);
    for (int64_t j = 0; j < keys; j++) {
        s[j] = -INFINITY;
        if (!sees(a, b, p, j)) continue;
        const float *k = row_of(&a->k, kv_at, kv_head, j);
        double dot = 0;
        for (int64_t d = 0; d < a->dim_qk; d++) dot += (double)q[d] * (double)k[d];
        s[j] = scale * dot;
        max = fmax(max, s[j]);
        seen++;
    }
    for (int64_t d = 0; d < a->dim_v; d++) o[d] = 0;
    for (int64_t j = 0; j < keys; j++) sum += s[j] == -INFINITY ? 0 : exp(s[j] - max);
    for (int64_t j = 0; j < keys; j++) {
        weights[j] = 0;
        if (s[j] == -INFINITY) continue;
        const float *v = row_of(&a->v, kv_at, kv_head, j);
        double weight = exp(s[j] - max) / sum;
        weights[j] = weight;
        for (int64_t d = 0; d < a->dim_v; d++) o[d] += weight * (double)v[d];
    }
    *lse = max + log(sum);
    free(s);
    return seen;
}

/* Where probabilities of a row are wanted: its place in a list, -1 = nowhere. */
static int64_t chosen(const int32_t *list, int64_t count, int64_t x, int64_t end) {
    if (list == NULL) return x;
    for (int64_t i = 0; i < count; i++)
        if (list[i] + (list[i] < 0 ? end : 0) == x) return i;
    return -1;
}

static void compare_weights(const char *what, const fa_attention *a, int64_t b, int64_t h, int64_t i, const double *want) {
    struct place at = place(a->cu_len_q, b, a->len_q);
    int64_t head = chosen(a->weight_heads, a->num_weight_heads, h, 0);
    int64_t row = chosen(a->weight_rows, a->num_weight_rows, i, at.rows);
    if (a->weights.data == NULL || head < 0 || row < 0) return;
    const float *got = row_of(&a->weights, (struct place){b, 0, 0}, head, row);
    for (int64_t j = 0; j < a->len_kv; j++) {
        CHECK(want[j] == 0 ? got[j] == 0 : fabs((double)got[j] - want[j]) <= 1e-5 * want[j],
              "%s: weight of sequence %d, head %d, row %d, key %d is %g, not %g", what, (int)b, (int)h, (int)i, (int)j,
              (double)got[j], want[j]);
    }
}

/* Compares all outputs with the definition, whatever computed them; returns how many rows see
 * nothing. */
static int compare(const char *what, const fa_attention *a) {
    int blank = 0;
    double *want = need((size_t)a->dim_v * sizeof *want), lse;
    int64_t most = a->len_kv > KEYS_AT_MOST ? KEYS_AT_MOST : a->len_kv;
    double *weights = need((size_t)(most + 1) * sizeof *weights);
    for (int64_t b = 0; b < a->batch; b++) {
        struct place at = place(a->cu_len_q, b, a->len_q);
        for (int64_t n = 0; n < a->heads_q * at.rows; n++) {
            int64_t h = n / at.rows, i = n % at.rows;
            for (int64_t j = 0; j <= most; j++) weights[j] = 0;
            int64_t seen = definition(a, b, h, i, want, &lse, weights);
            compare_weights(what, a, b, h, i, weights);
            const float *got = row_of(&a->o, at, h, i);
            double far = distance(got, want, (size_t)a->dim_v);
            double got_lse = a->lse != NULL ? (double)*lse_of(a, at, h, i) : lse;
            blank += seen == 0;
            if (seen == 0) {
                CHECK(far == 0, "%s: sequence %d, head %d, row %d sees nothing: %g", what, (int)b,
                      (int)h, (int)i, far);
                CHECK(a->lse == NULL || got_lse == -INFINITY, "%s: lse %g of nothing", what, got_lse);
            } else {
                /* Values are normally distributed, the largest of them about 4. */
                CHECK(far <= 4e-5, "%s: sequence %d, head %d, row %d is off by %g", what, (int)b,
                      (int)h, (int)i, far);
                CHECK(fabs(got_lse - lse) <= 1e-5 * (1 + fabs(lse)), "%s: lse %.9g is not %.9g", what,
                      got_lse, lse);
            }
        }
    }
    free(want), free(weights);
    return blank;
}

/* Runs with the least that the contract allows: scratch memory of exactly the size asked for, not
 * aligned, with NaN in it. */
static void run(const char *what, const fa_attention *a, const fa_pool *pool, int32_t width) {
    size_t bytes = 12345;
    char why[200] = "";
    fa_status status = fa_attention_workspace(a, width, &bytes);
    CHECK(status == FA_OK, "%s: workspace: %s", what, fa_status_string(status));
    unsigned char *ws = need(bytes + 2);
    memset(ws, 0xff, bytes + 2);
    status = fa_attention_run(a, bytes == 0 ? NULL : ws + 1, bytes, pool);
    if (status != FA_OK) (void)fa_attention_check(a, why, sizeof why);
    CHECK(status == FA_OK, "%s: %s: %s", what, fa_status_string(status), why);
    CHECK(ws[0] == 0xff && ws[bytes + 1] == 0xff, "%s: wrote beside %zu bytes of workspace", what, bytes);
    free(ws);
}

static int expect(const char *what, const fa_attention *a) {
    run(what, a, NULL, 1);
    return compare(what, a);
}

/* ---- A decoder layer: [batch][token][head][dim], causal, 6 query heads on 2 kv heads. ---- */

enum { B = 2, HQ = 6, HKV = 2, S = 37, PAST = 50, KEYS = S + PAST, D = 32 };
enum { O_SIZE = B * S * HQ * D, LSE_SIZE = B * HQ * S };
static float *q, *k, *v, *o, *lse;

static fa_attention layer(void) {
    fa_attention a = empty();
    a.batch = B, a.heads_q = HQ, a.heads_kv = HKV, a.len_q = S, a.len_kv = KEYS;
    a.dim_qk = a.dim_v = D;
    a.q = tensor(q, S * HQ * D, D, HQ * D);
    a.k = tensor(k, KEYS * HKV * D, D, HKV * D);
    a.v = tensor(v, KEYS * HKV * D, D, HKV * D);
    a.o = tensor(o, S * HQ * D, D, HQ * D);
    a.q_pos = FA_POS_END, a.window_right = 0;
    a.lse = lse;
    a.lse_stride[0] = HQ * S, a.lse_stride[1] = S, a.lse_stride[2] = 1;
    spoil(o, O_SIZE), spoil(lse, LSE_SIZE);
    return a;
}

static void layouts(void) {
    fa_attention a = layer();
    CHECK(expect("a layer", &a) == 0, "every row sees a key");

    /* One token after another, as in generation. */
    a = layer();
    a.len_q = 1;
    CHECK(expect("one token", &a) == 0, "every row sees a key");

    /* [token][q heads, k heads, v heads], as one matrix product leaves them. */
    enum { ROW = (HQ + 2 * HKV) * D };
    float *packed = random_normal(B * S * ROW);
    a = layer();
    a.len_kv = S;
    a.q = tensor(packed, S * ROW, D, ROW);
    a.k = tensor(packed + HQ * D, S * ROW, D, ROW);
    a.v = tensor(packed + (HQ + HKV) * D, S * ROW, D, ROW);
    expect("packed q, k and v", &a);
    free(packed);

    a = layer();
    a.k.stride[0] = a.v.stride[0] = 0;
    expect("keys and values shared by the batch", &a);
    a.heads_kv = HQ;
    a.k.stride[1] = a.v.stride[1] = 0;
    expect("and by all heads", &a);
    a.k.stride[2] = a.v.stride[2] = 0;
    expect("one key, repeated", &a);

    /* Multi-head latent attention: values are the beginning of keys. */
    a = layer();
    a.heads_kv = 1;
    a.dim_qk = 24, a.dim_v = 16;
    a.q = tensor(q, S * HQ * 24, 24, HQ * 24);
    a.k = a.v = tensor(k, KEYS * 24, 24, 24);
    expect("v is a view of k", &a);

    static const int64_t dims[][2] = {{1, 1}, {1, 32}, {32, 1}, {8, 32}, {17, 5}, {32, 24}};
    for (size_t i = 0; i < COUNT(dims); i++) {
        a = layer();
        a.dim_qk = dims[i][0], a.dim_v = dims[i][1];
        expect("dim_v is not dim_qk", &a);
    }

    /* Between rows of the output and numbers of lse nothing is written. */
    enum { HEAD = 3, ROW_STRIDE = 2 * HQ * HEAD + 1, BATCH = S * ROW_STRIDE + 7, SIZE = B * BATCH };
    float *sparse = need(SIZE * sizeof *sparse);
    spoil(sparse, SIZE);
    a = layer();
    a.dim_v = D - 7;
    a.lse = sparse;
    a.lse_stride[0] = BATCH, a.lse_stride[1] = HEAD, a.lse_stride[2] = ROW_STRIDE;
    expect("outputs with gaps", &a);
    CHECK(untouched(o, O_SIZE) == B * HQ * S * 7, "%d numbers between rows", untouched(o, O_SIZE));
    CHECK(untouched(sparse, SIZE) == SIZE - B * HQ * S, "%d numbers between those of lse",
          untouched(sparse, SIZE));
    free(sparse);

    a = layer();
    a.lse = NULL;
    expect("without lse", &a);

    /* Addresses at which no float is: the same bits. */
    enum { Q_SIZE = B * S * HQ * D, KV_SIZE = B * KEYS * HKV * D };
    char *bytes = need((Q_SIZE + 2 * KV_SIZE + O_SIZE + LSE_SIZE) * 4 + 5), *at = bytes + 1;
    float *want = need(O_SIZE * 4), *want_lse = need(LSE_SIZE * 4);
    for (int rows = 1; rows <= S; rows += S - 1) {
        a = layer();
        a.len_q = rows;
        expect("aligned", &a);
        memcpy(want, o, O_SIZE * 4), memcpy(want_lse, lse, LSE_SIZE * 4);
        spoil(o, O_SIZE), spoil(lse, LSE_SIZE);
        struct {
            void *from;
            size_t size;
            char *to;
        } moved[] = {{q, Q_SIZE, at}, {k, KV_SIZE, NULL}, {v, KV_SIZE, NULL}, {o, O_SIZE, NULL}, {lse, LSE_SIZE, NULL}};
        for (size_t i = 0; i < COUNT(moved); i++) {
            if (i > 0) moved[i].to = moved[i - 1].to + moved[i - 1].size * 4 + 1;
            memcpy(moved[i].to, moved[i].from, moved[i].size * 4);
        }
        a.q.data = moved[0].to, a.k.data = moved[1].to, a.v.data = moved[2].to, a.o.data = moved[3].to;
        a.lse = (float *)(void *)moved[4].to;
        run("unaligned", &a, NULL, 1);
        memcpy(o, moved[3].to, O_SIZE * 4), memcpy(lse, moved[4].to, LSE_SIZE * 4);
        CHECK(same_bits(o, want, O_SIZE) && same_bits(lse, want_lse, LSE_SIZE), "unaligned: other bits");
    }
    free(bytes), free(want), free(want_lse);

    static const float scales[] = {0.3f, -0.3f, -1, 0, 1e-30f};
    for (size_t i = 0; i < COUNT(scales); i++) {
        a = layer();
        a.scale = scales[i];
        expect("scales", &a);
    }
}

static void positions_and_windows(void) {
    fa_attention a = layer();
    a.q_pos = 0;
    CHECK(expect("no past", &a) == 0, "every row sees a key");
    a.q_pos = PAST;
    expect("a past", &a);
    a.q_pos = 10 * KEYS;
    CHECK(expect("all rows behind all keys", &a) == 0, "every row sees a key");
    a.q_pos = -10;
    CHECK(expect("10 rows before key 0", &a) == 10 * B * HQ, "10 rows see nothing");
    a.q_pos = INT64_MIN + 1;
    CHECK(expect("all rows before key 0", &a) == S * B * HQ, "no row sees anything");
    a = layer();
    a.len_kv = 30;
    CHECK(expect("more rows than keys", &a) == (S - 30) * B * HQ, "the first rows see nothing");

    static const int64_t windows[][3] = {
        /* Position, left, right. */
        {FA_POS_END, 0, 0},  {FA_POS_END, 7, 0},           {FA_POS_END, 0, 7},
        {FA_POS_END, 16, 3}, {FA_POS_END, FA_NO_LIMIT, 5}, {FA_POS_END, 5, FA_NO_LIMIT},
        {0, 5, 5},           {-20, 3, 9},                  {KEYS - 5, 4, 0},
        {KEYS + 3, 9, 0},    {0, INT64_MAX, INT64_MAX},    {FA_POS_END, FA_NO_LIMIT, FA_NO_LIMIT},
    };
    for (size_t i = 0; i < COUNT(windows); i++) {
        for (int rows = 1; rows <= S; rows += S - 1) {
            a = layer();
            a.len_q = rows;
            a.q_pos = windows[i][0], a.window_left = windows[i][1], a.window_right = windows[i][2];
            expect("windows", &a);
        }
    }
    /* Both ends belong to the window. */
    a = layer();
    a.q_pos = KEYS + 2, a.window_left = 4, a.len_q = 3;
    CHECK(expect("the end of a window", &a) == B * HQ, "of 3 rows, 2 reach the last keys");
    a.q_pos = -3, a.window_left = FA_NO_LIMIT, a.window_right = 2;
    CHECK(expect("the end of a window", &a) == B * HQ, "of 3 rows, 2 reach the first keys");
}

/* Copies of the keys and values of a layer, with NaN in `rows` keys of a sequence. */
static void hide(float *k2, float *v2, int64_t sequence, int64_t first, int64_t rows) {
    size_t size = B * KEYS * HKV * D;
    memcpy(k2, k, size * sizeof *k), memcpy(v2, v, size * sizeof *v);
    int64_t at = (sequence * KEYS + first) * HKV * D;
    spoil(k2 + at, (size_t)(rows * HKV * D)), spoil(v2 + at, (size_t)(rows * HKV * D));
}

/* Sequences with different pasts, first keys, keys that are always seen, spans. */
static void positions_and_spans(void) {
    enum { KV_SIZE = B * KEYS * HKV * D };
    float *k2 = need(KV_SIZE * sizeof *k2), *v2 = need(KV_SIZE * sizeof *v2);
    fa_attention a;
    for (int rows = 1; rows <= S; rows += S / 3) {
        a = layer(), a.len_q = rows;
        a.q_positions = (const int32_t[]){PAST, 3};
        CHECK(expect("a position for each sequence", &a) == 0, "every row sees a key");
        a.q_pos = 0, a.window_left = 5, a.q_positions = (const int32_t[]){-2, KEYS - 1};
        CHECK(expect("a position for each sequence", &a) > 0, "the first row sees nothing");

        a = layer(), a.len_q = rows;
        hide(k2, v2, 0, 0, 41), a.k.data = k2, a.v.data = v2;
        a.kv_starts = (const int32_t[]){41, 0};
        CHECK(expect("NaN before the first key", &a) == 0, "every row sees a key");
        a.window_right = FA_NO_LIMIT;
        expect("NaN before the first key", &a);
        a.q_pos = 0, a.window_right = 0;
        CHECK(expect("rows before the first key", &a) == HQ * rows, "rows of one sequence see nothing");
        a.kv_starts = (const int32_t[]){KEYS, 7};
        expect("no first key", &a);

        /* 4 keys, then a window: between them anything may be. */
        for (int64_t first = 0; first < 12; first += 11) {
            const int32_t firsts[] = {(int32_t)first, (int32_t)first};
            a = layer(), a.len_q = rows;
            a.window_left = 15, a.prefix_keys = 4, a.kv_starts = firsts;
            int64_t hidden = KEYS - rows - 15 - (first + 4);
            hide(k2, v2, 1, first + 4, hidden > 0 ? hidden : 0), a.k.data = k2, a.v.data = v2;
            CHECK(expect("the first keys and a window", &a) == 0, "every row sees a key");
            a.k.data = k, a.v.data = v, a.q_pos = 0;
            expect("a window that begins in the first keys", &a);
            a.q_pos = 2 * KEYS, a.prefix_keys = 70;
            CHECK(expect("the first keys alone", &a) == 0, "every row sees a key");
            a.prefix_keys = INT64_MAX;
            expect("a window that hides nothing", &a);
        }

        /* A prefix of 20 keys and an image of 9; and one of 30 that the queries begin in. */
        a = layer(), a.len_q = rows;
        a.spans = (const int32_t[]){0, 20, 60, 69, 38, 68}, a.span_starts = (const int32_t[]){0, 2, 3};
        a.q_pos = 0;
        CHECK(expect("spans", &a) == 0, "every row sees a key");
        a.window_left = 6;
        expect("spans and a window", &a);
        a.q_pos = FA_POS_END, a.prefix_keys = 3, a.kv_starts = (const int32_t[]){2, 40};
        expect("spans, a window and the first keys", &a);
        a.kv_lens = (const int32_t[]){66, 66};
        expect("spans that end behind the keys in use", &a);
    }
    free(k2), free(v2);
}

static void ragged(void) {
    /* 4 sequences in the memory of a layer's 2: the second has no queries, the third no keys. */
    static const int32_t cu_len_q[] = {3, 20, 20, 21, B * S}, cu_len_kv[] = {0, 17, 40, 40, 124};
    static const int32_t kv_lens[] = {5, 20, 0, 40}, none[] = {0, 0}, at[] = {30, 0, 7, -3}, from[] = {5, 4, 0, 3};
    for (int which = 0; which < 32; which++) {
        fa_attention a = layer();
        a.batch = 4;
        a.len_q = 10, a.q.stride[0] = a.o.stride[0] = 16 * HQ * D * 4;
        a.len_kv = 40, a.k.stride[0] = a.v.stride[0] = 41 * HKV * D * 4;
        a.lse_stride[0] = HQ * 10, a.lse_stride[1] = 10;
        if (which & 1) a.cu_len_q = cu_len_q, a.len_q = B * S - 21, a.lse_stride[1] = B * S;
        if (which & 2) a.cu_len_kv = cu_len_kv, a.len_kv = 1000000;
        if (which & 4) a.kv_lens = kv_lens;
        if (which & 8) a.window_right = FA_NO_LIMIT, a.window_left = 4, a.prefix_keys = 2;
        if (which & 16) a.q_positions = at, a.kv_starts = from;
        expect("ragged", &a);
    }

    /* Behind the keys in use anything may be. */
    static const int32_t lens[] = {KEYS - 40, KEYS};
    size_t size = B * KEYS * HKV * D;
    float *k2 = need(size * sizeof *k2), *v2 = need(size * sizeof *v2);
    memcpy(k2, k, size * sizeof *k), memcpy(v2, v, size * sizeof *v);
    fa_attention a = layer();
    a.k.data = k2, a.v.data = v2;
    spoil(k2 + (KEYS - 40) * HKV * D, 40 * HKV * D), spoil(v2 + (KEYS - 40) * HKV * D, 40 * HKV * D);
    a.kv_lens = lens;
    expect("NaN behind the keys in use", &a);
    a.window_right = FA_NO_LIMIT;
    expect("NaN behind the keys in use", &a);
    free(k2), free(v2);

    a = layer();
    a.kv_lens = none;
    CHECK(expect("caches without a key", &a) == B * HQ * S, "no row sees anything");
}

/* Probabilities, of all heads and rows and of some: nothing else is written. */
static void probabilities(void) {
    static const int32_t heads[] = {0, 2, 5}, first_rows[] = {0, 1, S - 1}, last_rows[] = {-S, -2, -1};
    static const int32_t cu_len_q[] = {0, 3, S}, lens[] = {KEYS - 30, KEYS};
    static const float sinks[HQ] = {0, 1, -1, 3, -INFINITY, 0};
    enum { SIZE = B * HQ * S * KEYS };
    float *weights = need(SIZE * sizeof *weights);
    for (int which = 0; which < 64; which++) {
        fa_attention a = layer();
        int64_t of_heads = HQ, of_rows = S;
        if (which & 1) a.window_left = 20, a.prefix_keys = 3;
        if (which & 2) a.kv_lens = lens;
        if (which & 4) a.weight_heads = heads, of_heads = a.num_weight_heads = 3;
        if (which & 8) a.weight_rows = which & 16 ? last_rows : first_rows, of_rows = a.num_weight_rows = 3;
        if (which & 32) a.cu_len_q = cu_len_q, a.lse = NULL;
        spoil(weights, SIZE);
        a.weights = tensor(weights, of_heads * of_rows * KEYS, of_rows * KEYS, KEYS);
        expect("probabilities", &a);
        size_t wanted = 0, written = SIZE - untouched(weights, SIZE);
        for (int64_t b = 0; b < B; b++) {
            struct place at = place(a.cu_len_q, b, S);
            for (int64_t i = 0; i < at.rows; i++) wanted += chosen(a.weight_rows, a.num_weight_rows, i, at.rows) >= 0;
        }
        CHECK(written == wanted * (size_t)(of_heads * KEYS), "%zu weights are written, not of %zu rows", written, wanted);
    }
    /* A sink takes its part. */
    fa_attention a = layer();
    a.sinks = sinks;
    a.weights = tensor(weights, HQ * S * KEYS, S * KEYS, KEYS);
    run("probabilities beside a sink", &a, NULL, 1);
    for (int64_t n = 0; n < B * HQ * S; n++) {
        double sum = 0, of_sink = exp((double)sinks[n / S % HQ] - (double)lse[n]);
        for (int64_t j = 0; j < KEYS; j++) sum += (double)weights[n * KEYS + j];
        CHECK(fabs(sum + of_sink - 1) <= 1e-5, "row %d sums to %g, the sink has %g", (int)n, sum, of_sink);
    }
    free(weights);
}

static void nothing(void) {
    fa_attention a = layer();
    a.len_q = 0;
    a.q.data = a.o.data = NULL;
    run("no queries", &a, NULL, 1);
    a.o.data = o;
    run("no queries", &a, NULL, 1);
    CHECK(untouched(o, O_SIZE) == O_SIZE && untouched(lse, LSE_SIZE) == LSE_SIZE, "no queries, but outputs");

    a = layer();
    a.len_kv = 0;
    a.k.data = a.v.data = NULL;
    CHECK(expect("no keys", &a) == B * HQ * S, "no row sees anything");

    /* No sequences: whatever else there is, nothing is done, and nothing is needed for it. */
    static const int32_t starts[] = {3}, table[] = {-1};
    for (int variant = 0; variant < 4; variant++) {
        a = layer();
        a.batch = 0;
        if (variant == 1) a.cu_len_q = a.cu_len_kv = starts, a.lse_stride[1] = B * S;
        if (variant == 2) a.block_table = table, a.table_stride = 1, a.page_size = 16, a.num_pages = 1;
        if (variant == 3) a.len_q = 1, a.q.data = a.k.data = a.v.data = a.o.data = NULL;
        spoil(o, O_SIZE), spoil(lse, LSE_SIZE);
        run("no sequences", &a, NULL, 1);
        size_t bytes = 1;
        CHECK(fa_attention_workspace_max(&a, 256, &bytes) == FA_OK && bytes == 0, "%zu bytes", bytes);
        for (int32_t part = 0; part < 3; part++) {
            CHECK(fa_attention_part(&a, NULL, 0, part, 3) == FA_OK, "no sequences, part");
            CHECK(fa_attention_finish(&a, NULL, 0, part, 3) == FA_OK, "no sequences, finish");
        }
        CHECK(untouched(o, O_SIZE) == O_SIZE && untouched(lse, LSE_SIZE) == LSE_SIZE, "no sequences, but outputs");
    }
}

/* ---- Contexts in pieces. ---- */

/* As fa_merge wants it: [batch][head][token][dim], dense. */
static void dense(fa_attention *a, float *to, float *lse_to) {
    a->o = tensor(to, HQ * S * D, S * D, D);
    a->lse = lse_to;
}

static void pieces(void) {
    static const int64_t windows[][2] = {{FA_NO_LIMIT, 0}, {20, 0}, {FA_NO_LIMIT, FA_NO_LIMIT}};
    static const int counts[] = {2, 3, 7};
    float *whole = need(O_SIZE * 4), *whole_lse = need(LSE_SIZE * 4);
    float *piece = need(O_SIZE * 4), *piece_lse = need(LSE_SIZE * 4);
    for (size_t n = 0; n < COUNT(counts) * COUNT(windows); n++) {
        int count = counts[n % COUNT(counts)];
        fa_attention a = layer();
        a.window_left = windows[n / COUNT(counts)][0], a.window_right = windows[n / COUNT(counts)][1];
        dense(&a, whole, whole_lse);
        run("the whole", &a, NULL, 1);
        for (int i = 0; i < count; i++) {
            int64_t start = i * KEYS / count, end = (i + 1) * KEYS / count;
            fa_attention part = a;
            part.k.data = k + start * HKV * D, part.v.data = v + start * HKV * D;
            part.len_kv = end - start;
            part.q_pos = PAST - start;
            if (i == 0) {
                dense(&part, o, lse);
                expect("the first piece", &part);
                continue;
            }
            dense(&part, piece, piece_lse);
            spoil(piece, O_SIZE), spoil(piece_lse, LSE_SIZE);
            expect("a piece", &part);
            CHECK(fa_merge(o, lse, piece, piece_lse, LSE_SIZE, D) == FA_OK, "merge");
        }
        double far = 0, lse_far = 0;
        for (int i = 0; i < O_SIZE; i++) far = fmax(far, fabs((double)o[i] - (double)whole[i]));
        for (int i = 0; i < LSE_SIZE; i++) lse_far = fmax(lse_far, fabs((double)lse[i] - (double)whole_lse[i]));
        CHECK(far <= 1e-5 && lse_far <= 1e-5, "%d pieces are off by %g, lse by %g", count, far, lse_far);
    }

    /* No keys: nothing changes, not even by rounding. */
    float *zeros = calloc(O_SIZE, 4), *infinite = need(LSE_SIZE * 4);
    for (int i = 0; i < LSE_SIZE; i++) infinite[i] = -INFINITY;
    memcpy(o, whole, O_SIZE * 4), memcpy(lse, whole_lse, LSE_SIZE * 4);
    CHECK(fa_merge(o, lse, zeros, infinite, LSE_SIZE, D) == FA_OK, "nothing merged into something");
    CHECK(same_bits(o, whole, O_SIZE) && same_bits(lse, whole_lse, LSE_SIZE), "other bits");
    memcpy(o, zeros, O_SIZE * 4), memcpy(lse, infinite, LSE_SIZE * 4);
    CHECK(fa_merge(o, lse, zeros, infinite, LSE_SIZE, D) == FA_OK, "nothing merged into nothing");
    CHECK(same_bits(o, zeros, O_SIZE) && same_bits(lse, infinite, LSE_SIZE), "other bits");
    CHECK(fa_merge(o, lse, whole, whole_lse, LSE_SIZE, D) == FA_OK, "something merged into nothing");
    CHECK(same_bits(o, whole, O_SIZE) && same_bits(lse, whole_lse, LSE_SIZE), "other bits");
    free(whole), free(whole_lse), free(piece), free(piece_lse), free(zeros), free(infinite);
}

/* ---- An engine's own threads and barriers. ---- */

enum { THREADS = 4 };

struct engine {
    const fa_attention *a;
    void *ws;
    size_t bytes;
    int32_t n_parts;
    pthread_barrier_t barrier;
};

struct worker {
    pthread_t thread;
    struct engine *engine;
    int number, failed;
};

static void *work(void *argument) {
    struct worker *me = argument;
    struct engine *e = me->engine;
    for (int i = me->number; i < e->n_parts; i += THREADS)
        me->failed += fa_attention_part(e->a, e->ws, e->bytes, i, e->n_parts) != FA_OK;
    pthread_barrier_wait(&e->barrier);
    for (int i = me->number; i < e->n_parts; i += THREADS)
        me->failed += fa_attention_finish(e->a, e->ws, e->bytes, i, e->n_parts) != FA_OK;
    return NULL;
}

static void on_threads(struct engine *e) {
    struct worker workers[THREADS];
    pthread_barrier_init(&e->barrier, NULL, THREADS);
    for (int i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){.engine = e, .number = i};
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0) {
            fputs("cannot create threads\n", stderr);
            exit(2);
        }
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
        CHECK(workers[i].failed == 0, "thread %d of %d parts", i, (int)e->n_parts);
    }
    pthread_barrier_destroy(&e->barrier);
}

/* One after another: forwards, backwards, or every third. */
static void one_by_one(struct engine *e, int order) {
    static fa_status (*const steps[])(const fa_attention *, void *, size_t, int32_t,
                                      int32_t) = {fa_attention_part, fa_attention_finish};
    int32_t n = e->n_parts;
    for (int step = 0; step < 2; step++) {
        for (int32_t i = 0; i < n; i++) {
            int32_t third = n % 3 == 0 ? i : i * 3 % n;
            int32_t part = order == 0 ? i : order == 1 ? n - 1 - i : third;
            fa_status status = steps[step](e->a, e->ws, e->bytes, part, n);
            CHECK(status == FA_OK, "part %d of %d: %s", (int)part, (int)n, fa_status_string(status));
        }
    }
}

static void parts(void) {
    enum { MANY = 800 };
    static const int32_t counts[] = {1, 2, 3, 7, 256}, cu_len_q[] = {0, 3, 70}, kv_lens[] = {MANY, 600};
    float *want = need(O_SIZE * 4), *want_lse = need(LSE_SIZE * 4);
    for (int variant = 0; variant < 3; variant++) {
        fa_attention a = layer();
        /* Keys that overlap each other, so that there is enough work to be shared in little
         * memory. */
        a.len_kv = MANY;
        a.k.stride[2] = a.v.stride[2] = 16;
        if (variant == 1) a.len_q = 70, a.cu_len_q = cu_len_q, a.kv_lens = kv_lens, a.lse_stride[1] = B * S;
        /* Nothing for most of the parts to do. */
        if (variant == 2) a.len_q = a.len_kv = 1;
        run("parts", &a, NULL, 1);
        compare("parts", &a);
        memcpy(want, o, O_SIZE * 4), memcpy(want_lse, lse, LSE_SIZE * 4);
        /* One answer for any number of parts: the largest of theirs, and no more. */
        for (int32_t most = 1; most <= 256; most += most < 8 ? 1 : 31) {
            size_t bytes = 0, largest = 0, of_all = 0;
            for (int32_t n = 1; n <= most; n++) {
                CHECK(fa_attention_workspace(&a, n, &bytes) == FA_OK, "workspace");
                largest = bytes > largest ? bytes : largest;
            }
            CHECK(fa_attention_workspace_max(&a, most, &of_all) == FA_OK && of_all == largest,
                  "up to %d parts: %zu bytes instead of %zu", (int)most, of_all, largest);
        }
        for (size_t n = 0; n < 4 * COUNT(counts); n++) {
            struct engine e = {.a = &a, .n_parts = counts[n / 4]};
            CHECK(fa_attention_workspace(&a, e.n_parts, &e.bytes) == FA_OK, "workspace");
            CHECK(variant == 2 || e.n_parts < 2 || e.bytes > 0, "parts share no work");
            unsigned char *memory = need(e.bytes + 1);
            memset(memory, 0xff, e.bytes + 1);
            e.ws = memory + 1;
            spoil(o, O_SIZE), spoil(lse, LSE_SIZE);
            if (n % 4 == 3) {
                on_threads(&e);
            } else {
                one_by_one(&e, (int)(n % 4));
            }
            CHECK(same_bits(o, want, O_SIZE) && same_bits(lse, want_lse, LSE_SIZE),
                  "variant %d in %d parts: other bits", variant, (int)e.n_parts);
            free(memory);
        }
    }
    free(want), free(want_lse);
}

/* ---- All of it. ---- */

static void under_one_isa(void) {
    layouts();
    positions_and_windows();
    positions_and_spans();
    ragged();
    probabilities();
    nothing();
    pieces();
    parts();
}

int main(void) {
    q = random_normal(B * S * HQ * D);
    k = random_normal(B * KEYS * HKV * D);
    v = random_normal(B * KEYS * HKV * D);
    o = need(O_SIZE * sizeof *o);
    lse = need(LSE_SIZE * sizeof *lse);
    for_each_isa(under_one_isa);
    free(q), free(k), free(v), free(o), free(lse);
    return check_result();
}
