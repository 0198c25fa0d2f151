/* A random problem for the general call, and its definition in double, read through the
 * description. Everything follows from one number, so that a problem that fails can be computed
 * again. Safe from several threads at once. */

#ifndef PROBLEM_H
#define PROBLEM_H

#include "blocks.h"
#include "check.h"

struct random {
    uint64_t state;
};

/* splitmix64. */
static inline uint64_t next(struct random *r) {
    uint64_t z = r->state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static inline int64_t below(struct random *r, int64_t n) {
    return (int64_t)(next(r) % (uint64_t)n);
}

static inline bool chance(struct random *r, int percent) {
    return below(r, 100) < percent;
}

#define ONE_OF(r, array) ((array)[below(r, (int64_t)(sizeof(array) / sizeof *(array)))])

/* ---- Numbers, which all problems take from the same few arrays, each from places of its own. ---- */

enum { TYPES = FA_DTYPE_Q15 + 1, NUMBERS = 1 << 21, SCALES = 1 << 14 };

/* Elements and bytes of a block. Booleans are no type of Q, K and V. */
static const int64_t block_elements[TYPES] = {1, 1, 1, 1, 32, 1, 32, 32, 32, 32, 32, 1, 1, 1, 1},
                     block_bytes[TYPES] = {4, 2, 2, 1, 34, 1, 18, 20, 22, 24, 18, 1, 1, 1, 2};

static struct {
    unsigned char *of_type[TYPES];
    float *scales, *zeros, *sinks;
} bank;

static inline double from_f16(uint16_t bits) {
    int exponent = bits >> 10 & 31, mantissa = bits & 0x3ff;
    double x = exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);
    return bits >> 15 ? -x : x;
}

/* Of normal f16 numbers; cuts digits off. */
static inline uint16_t to_f16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    int32_t exponent = (int32_t)(bits >> 23 & 0xff) - 112;
    uint32_t sign = bits >> 16 & 0x8000;
    return (uint16_t)(exponent <= 0 ? sign : sign | (uint32_t)exponent << 10 | (bits >> 13 & 0x3ff));
}

/* `shift` bytes off any alignment. */
static inline void *shifted(size_t bytes, size_t shift) {
    return (char *)need(bytes + shift) + shift;
}

static inline void fill_bank(uint64_t seed, size_t shift) {
    struct random r = {seed};
    for (int t = 0; t < TYPES; t++)
        bank.of_type[t] = shifted((size_t)(NUMBERS / block_elements[t] * block_bytes[t]), shift);
    check_seed = seed;
    float *x = random_normal(NUMBERS);
    for (size_t i = 0; i < NUMBERS; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        uint16_t f16 = to_f16(x[i]), bf16 = (uint16_t)(bits >> 16);
        memcpy(bank.of_type[FA_DTYPE_F32] + 4 * i, &x[i], 4);
        memcpy(bank.of_type[FA_DTYPE_F16] + 2 * i, &f16, 2);
        memcpy(bank.of_type[FA_DTYPE_BF16] + 2 * i, &bf16, 2);
        uint16_t fraction = (uint16_t)next(&r);
        memcpy(bank.of_type[FA_DTYPE_Q15] + 2 * i, &fraction, 2);
        for (int t = 0; t < TYPES; t++)
            if (is_of_8_bits(t)) bank.of_type[t][i] = random_of_8_bits(t, (unsigned char)next(&r));
        if (i % 32 == 0) {
            uint16_t scale = to_f16((float)(1 + below(&r, 20)) / 1000);
            unsigned char *block = bank.of_type[FA_DTYPE_Q8_0] + i / 32 * 34;
            memcpy(block, &scale, 2);
            for (int n = 0; n < 32; n++) block[2 + n] = (unsigned char)next(&r);
            for (int t = 0; t < TYPES; t++) {
                unsigned char random[64];
                if (t == FA_DTYPE_Q8_0 || !is_in_blocks(t)) continue;
                for (int n = 0; n < 64; n++) random[n] = (unsigned char)next(&r);
                fill_block(t, random, bank.of_type[t] + (int64_t)i / 32 * block_bytes[t]);
            }
        }
    }
    free(x);
    bank.scales = shifted(SCALES * 4, shift), bank.zeros = shifted(SCALES * 4, shift);
    for (size_t i = 0; i < SCALES; i++) {
        float scale = (float)(5 + below(&r, 15)) / 1000, zero = (float)(below(&r, 19) - 9);
        memcpy((char *)bank.scales + 4 * i, &scale, 4), memcpy((char *)bank.zeros + 4 * i, &zero, 4);
    }
    static const float sinks[] = {0, 2.5f, -3, 30, -INFINITY};
    bank.sinks = need(SCALES * 4);
    for (size_t i = 0; i < SCALES; i++) bank.sinks[i] = ONE_OF(&r, sinks);
}

static inline double f32_at(const float *x, int64_t i) {
    float y;
    memcpy(&y, (const char *)x + 4 * i, 4);
    return (double)y;
}

/* An element as it is stored; `row` is where its row begins. */
static inline double stored(int32_t dtype, const unsigned char *row, int64_t d) {
    uint16_t bits;
    uint32_t wide;
    float x;
    if (dtype == FA_DTYPE_F32) return f32_at((const float *)(const void *)row, d);
    if (is_of_8_bits(dtype)) return element_of_8_bits(dtype, row[d]);
    if (dtype == FA_DTYPE_Q15) return fraction_at(row + 2 * d);
    if (is_in_blocks(dtype)) return element_of_block(dtype, row + d / 32 * block_bytes[dtype], d % 32);
    memcpy(&bits, row + 2 * d, 2);
    if (dtype == FA_DTYPE_F16) return from_f16(bits);
    wide = (uint32_t)bits << 16;
    memcpy(&x, &wide, 4);
    return (double)x;
}

/* ---- A problem. ---- */

enum { BATCH = 3, GROUP = 4, KV_HEADS = 3, ROWS = 100, KEYS = 5000, WIDEST = 128, PAGES = BATCH * KEYS, SPANS = 4 };
enum { BEHIND = 64, O_BYTES = BATCH * GROUP * KV_HEADS * ROWS * WIDEST * 4, LSES = BATCH * GROUP * KV_HEADS * ROWS };
/* Heads, and rows of each, whose probabilities are wanted, at most. */
enum { CHOSEN = 2, WEIGHTS = BATCH * CHOSEN * CHOSEN * KEYS };

/* What a problem points to; one for each thread, used again and again. */
struct room {
    unsigned char o[O_BYTES + BEHIND], once[O_BYTES];
    float lse[LSES], lse_once[LSES], weights[WEIGHTS], weights_once[WEIGHTS];
    int32_t weight_heads[CHOSEN], weight_rows[CHOSEN];
    int32_t table[PAGES], kv_lens[BATCH], kv_starts[BATCH], positions[BATCH];
    int32_t spans[2 * BATCH * SPANS], span_starts[BATCH + 1];
    fa_quant quant[3];
    unsigned char *ws;
    size_t ws_size;
};

/* Rows one behind the other: [batch][token][head] or [batch][head][token], at some place of the
 * bank. */
static inline fa_tensor placed(struct random *r, int32_t dtype, int64_t entries, int64_t heads, int64_t rows,
                               int64_t dim) {
    static const int64_t apart[] = {0, 0, 1, 8, 64};
    int64_t unit = block_bytes[dtype], gap = is_in_blocks(dtype) ? 0 : ONE_OF(r, apart);
    int64_t row = dim / block_elements[dtype] * block_bytes[dtype] + unit * gap;
    fa_tensor t = {.dtype = dtype, .stride = {heads * rows * row, rows * row, row}};
    if (chance(r, 50)) t.stride[1] = row, t.stride[2] = heads * row;
    int64_t spare = (NUMBERS / block_elements[dtype] * block_bytes[dtype] - entries * heads * rows * row) / unit;
    t.data = bank.of_type[dtype] + unit * below(r, spare + 1);
    return t;
}

/* Scales and zeros of any granularity. */
static inline void quantise(struct random *r, fa_tensor *t, fa_quant *quant) {
    static const int32_t tokens[] = {1, 1, 4, 7}, dims[] = {1, 8, 32};
    static const int64_t steps[][4] = {{0, 0, 0, 0}, {0, 1, 0, 0}, {0, 0, 1, 0}, {1, 7, 1, 0},
                                       {0, 3, 1, 0}, {0, 0, 0, 1}, {3, 5, 2, 1}};
    if (!may_have_scales(t->dtype)) return;
    *quant = (fa_quant){.scale = bank.scales, .group_tokens = ONE_OF(r, tokens), .group_dims = ONE_OF(r, dims)};
    if (chance(r, 20) && is_integer(t->dtype)) quant->zero = bank.zeros;
    memcpy(quant->stride, ONE_OF(r, steps), sizeof quant->stride);
    t->quant = quant;
}

static inline int32_t type_for(struct random *r, int64_t dim) {
    int32_t dtype = (int32_t)below(r, TYPES);
    bool is_none = dtype == FA_DTYPE_BOOL8 || (is_in_blocks(dtype) && dim % 32 != 0);
    return is_none ? FA_DTYPE_BF16 : dtype;
}

/* Up to SPANS spans for each sequence, ascending and disjoint; some empty, some adjacent, some
 * behind the last key. */
static inline void add_spans(struct random *r, fa_attention *a, struct room *room) {
    int32_t count = 0;
    room->span_starts[0] = 0;
    for (int64_t b = 0; b < a->batch; b++) {
        int32_t end = 0;
        for (int64_t left = below(r, SPANS + 1); left > 0; left--, count++) {
            int32_t begin = end + (chance(r, 30) ? 0 : (int32_t)below(r, a->len_kv / 3 + 2));
            end = begin + (int32_t)below(r, chance(r, 50) ? 40 : a->len_kv / 2 + 2);
            room->spans[2 * count] = begin, room->spans[2 * count + 1] = end;
        }
        room->span_starts[b + 1] = count;
    }
    a->spans = room->spans, a->span_starts = room->span_starts;
}

static inline fa_attention random_problem(struct random *r, struct room *room) {
    static const int64_t rows[] = {1, 1, 1, 2, 5, 17, 40, 64, ROWS}, dims[] = {7, 16, 32, 64, 64, 80, WIDEST};
    static const int64_t windows[] = {FA_NO_LIMIT, FA_NO_LIMIT, 0, 3, 100}, blocks[] = {0, 0, 0, 16, 50};
    static const int64_t pages[] = {1, 16, 16, 24, 64};
    static const float scales[] = {0, 0, 0.3f, -0.1f}, caps[] = {3, 50};
    fa_attention a;
    (void)fa_attention_init(&a, sizeof a);
    a.batch = 1 + below(r, BATCH), a.heads_kv = 1 + below(r, KV_HEADS);
    a.heads_q = a.heads_kv * (1 + below(r, GROUP));
    a.len_q = ONE_OF(r, rows), a.len_kv = 1 + below(r, 700), a.dim_qk = ONE_OF(r, dims);
    /* So many keys that they are divided among threads. */
    if (chance(r, 5)) a.batch = a.heads_kv = 1, a.heads_q = 1 + below(r, 2), a.len_q = 1, a.len_kv = KEYS - below(r, 3000);
    a.dim_v = chance(r, 70) ? a.dim_qk : ONE_OF(r, dims);
    a.scale = ONE_OF(r, scales);
    a.flags = chance(r, 25) ? FA_PRECISE : chance(r, 33) ? FA_FAST : 0;
    a.window_left = ONE_OF(r, windows), a.window_right = ONE_OF(r, windows);
    if (chance(r, 20)) a.q_pos = below(r, a.len_kv);
    if (chance(r, 20)) a.softcap = ONE_OF(r, caps);
    if (chance(r, 20)) a.sinks = bank.sinks + below(r, SCALES - a.heads_q);
    /* As small as scales are. */
    if (chance(r, 20)) a.alibi_slopes = bank.scales, a.alibi_batch_stride = below(r, 2) * a.heads_q;
    a.block_q = ONE_OF(r, blocks), a.block_kv = ONE_OF(r, blocks);
    if (chance(r, 30)) {
        for (int64_t b = 0; b < a.batch; b++) room->kv_lens[b] = (int32_t)below(r, a.len_kv + 1);
        a.kv_lens = room->kv_lens;
    }
    if (chance(r, 15)) {
        for (int64_t b = 0; b < a.batch; b++)
            room->kv_starts[b] = (int32_t)below(r, (a.kv_lens != NULL ? a.kv_lens[b] : a.len_kv) + 1);
        a.kv_starts = room->kv_starts;
    }
    /* From far before the keys, or behind them, now and then. */
    if (a.q_pos == FA_POS_END && chance(r, 20)) {
        for (int64_t b = 0; b < a.batch; b++) room->positions[b] = (int32_t)(below(r, a.len_kv + 400) - 200);
        a.q_positions = room->positions;
    }
    if (chance(r, 20)) a.prefix_keys = chance(r, 70) ? 1 + below(r, 20) : below(r, a.len_kv + 10);
    if (chance(r, 20)) add_spans(r, &a, room);
    int64_t entries = a.batch, keys = a.len_kv;
    if (chance(r, 30)) {
        keys = a.page_size = ONE_OF(r, pages);
        a.table_stride = (a.len_kv + keys - 1) / keys, entries = a.num_pages = 1 + a.batch * a.table_stride / 2;
        for (int64_t i = 0; i < a.batch * a.table_stride; i++) room->table[i] = (int32_t)below(r, entries);
        a.block_table = room->table;
    }
    int32_t k = type_for(r, a.dim_qk), v = chance(r, 70) && a.dim_v == a.dim_qk ? k : type_for(r, a.dim_v);
    a.q = placed(r, chance(r, 50) ? FA_DTYPE_F32 : type_for(r, a.dim_qk), a.batch, a.heads_q, a.len_q, a.dim_qk);
    a.k = placed(r, k, entries, a.heads_kv, keys, a.dim_qk), a.v = placed(r, v, entries, a.heads_kv, keys, a.dim_v);
    quantise(r, &a.q, &room->quant[0]), quantise(r, &a.k, &room->quant[1]), quantise(r, &a.v, &room->quant[2]);
    if (chance(r, 20)) {
        a.mask = placed(r, chance(r, 50) ? FA_DTYPE_F32 : FA_DTYPE_I8, 1, 1, a.len_q, a.len_kv);
        a.mask.stride[0] = a.mask.stride[1] = 0;
        if (a.mask.dtype == FA_DTYPE_I8) a.mask.dtype = FA_DTYPE_BOOL8;
    }
    static const int32_t of_outputs[] = {FA_DTYPE_F32, FA_DTYPE_F16, FA_DTYPE_BF16, FA_DTYPE_Q15};
    a.o = (fa_tensor){.data = room->o, .dtype = ONE_OF(r, of_outputs)};
    int64_t row = a.dim_v * block_bytes[a.o.dtype];
    a.o.stride[0] = a.heads_q * a.len_q * row, a.o.stride[1] = row, a.o.stride[2] = a.heads_q * row;
    a.lse = room->lse, a.lse_stride[0] = a.heads_q * a.len_q, a.lse_stride[1] = a.len_q, a.lse_stride[2] = 1;
    if (chance(r, 25)) {
        /* The first head and another one; one row and, of several, another one, counted from the
         * end or not. */
        int32_t last = (int32_t)below(r, a.heads_q), row = (int32_t)below(r, a.len_q), end = chance(r, 50) ? (int32_t)a.len_q : 0;
        a.num_weight_heads = last > 0 ? 2 : 1, a.num_weight_rows = row > 0 ? 2 : 1;
        room->weight_heads[0] = 0, room->weight_heads[1] = last;
        room->weight_rows[0] = -end, room->weight_rows[1] = row - end;
        a.weight_heads = room->weight_heads, a.weight_rows = room->weight_rows;
        a.weights = (fa_tensor){.data = room->weights, .stride = {CHOSEN * CHOSEN * KEYS * 4, CHOSEN * KEYS * 4, KEYS * 4}};
    }
    return a;
}

static inline size_t bytes_of_o(const fa_attention *a) {
    return (size_t)(a->batch * a->o.stride[0]);
}

/* ---- The definition. ---- */

/* Where the scale of an element is. */
static inline int64_t place_of(const fa_quant *g, int64_t entry, int64_t head, int64_t row, int64_t d) {
    return entry * g->stride[0] + head * g->stride[1] + row / g->group_tokens * g->stride[2] +
           d / g->group_dims * g->stride[3];
}

static inline double element(const fa_tensor *t, int64_t entry, int64_t head, int64_t row, int64_t d) {
    const unsigned char *at = t->data;
    double x = stored(t->dtype, at + entry * t->stride[0] + head * t->stride[1] + row * t->stride[2], d);
    const fa_quant *g = t->quant;
    if (g == NULL) return x;
    int64_t i = place_of(g, entry, head, row, d);
    return (x - (g->zero != NULL ? f32_at(g->zero, i) : 0)) * f32_at(g->scale, i);
}

/* How far computing in some family may be off: as in tests/general.rs, which derives it. */
struct family {
    bool bf16, i8, i16, exact_q, f16;
};

static inline bool begins(const char *words, const char *with) { return strncmp(words, with, strlen(with)) == 0; }

static inline struct family family_of(const fa_attention *a, const char *words, const char *isa) {
    struct family f = {.bf16 = begins(words, "avx512bf16") || begins(words, "neon-bf16") || strstr(words, "amx bf16") != NULL,
                       .f16 = strstr(words, "amx f16") != NULL};
    bool vnni = begins(words, "avx512vnni") || begins(words, "amx");
    bool bytes = vnni || begins(words, "avxvnni") || begins(words, "neon-i8mm") || begins(words, "neon-dotprod");
    f.i8 = bytes && is_integer(a->k.dtype) && (a->flags & FA_FAST) != 0;
    f.i16 = !f.i8 && has_integers(isa_rank(isa), true) && is_integer(a->k.dtype) && is_integer(a->v.dtype);
    /* Few rows of blocks of ggml. */
    bool is_avx2 = begins(words, "avx2") && is_in_blocks(a->v.dtype) && (a->flags & FA_PRECISE) == 0;
    f.i16 |= (vnni || is_avx2) && is_in_blocks(a->k.dtype);
    const fa_quant *g = a->q.quant;
    f.exact_q = f.i8 || f.i16 ? a->q.dtype == FA_DTYPE_I8 && (g == NULL || (g->zero == NULL && g->stride[3] == 0))
                              : a->q.dtype == (f.f16 ? FA_DTYPE_F16 : FA_DTYPE_BF16);
    return f;
}

/* Whether windows, kv_starts and spans let a row at position p see key j. */
static inline bool is_within(const fa_attention *a, int64_t b, int64_t p, int64_t j) {
    int64_t first = a->kv_starts != NULL ? a->kv_starts[b] : 0;
    if (j < first) return false;
    for (int64_t n = a->spans != NULL ? a->span_starts[b] : 0; a->spans != NULL && n < a->span_starts[b + 1]; n++) {
        const int32_t *span = a->spans + 2 * n;
        if (span[0] <= p && p < span[1] && span[0] <= j && j < span[1]) return true;
    }
    bool is_near = a->window_left == FA_NO_LIMIT || j >= p - a->window_left || j < first + a->prefix_keys;
    return is_near && (a->window_right == FA_NO_LIMIT || j <= p + a->window_right);
}

/* The row of the weights that is for a query row; NULL if it is not wanted. */
static inline const float *weights_of(const fa_attention *a, int64_t b, int64_t h, int64_t i) {
    int64_t head = 0, row = 0;
    if (a->weights.data == NULL) return NULL;
    while (head < a->num_weight_heads && a->weight_heads[head] != h) head++;
    while (row < a->num_weight_rows && a->weight_rows[row] + (a->weight_rows[row] < 0 ? a->len_q : 0) != i) row++;
    if (head == a->num_weight_heads || row == a->num_weight_rows) return NULL;
    return (const float *)(void *)((char *)a->weights.data + b * a->weights.stride[0] + head * a->weights.stride[1] +
                                   row * a->weights.stride[2]);
}

/* The largest error of a row, in units of what it may be; above 1 is wrong. */
static inline double row_error(const fa_attention *a, struct family f, int64_t b, int64_t h, int64_t i) {
    double q[WIDEST], s[KEYS], o[WIDEST] = {0}, far[WIDEST] = {0};
    int64_t entry[KEYS], token[KEYS], key[KEYS], n = 0;
    int64_t keys = a->kv_lens != NULL ? a->kv_lens[b] : a->len_kv, kv = h / (a->heads_q / a->heads_kv);
    int64_t p = i + (a->q_positions != NULL ? a->q_positions[b] : a->q_pos == FA_POS_END ? keys - a->len_q : a->q_pos);
    double scale = a->scale == 0 ? 1 / sqrt((double)a->dim_qk) : (double)a->scale, largest_q = 0, most = 0;
    double sink = a->sinks != NULL ? (double)a->sinks[h] : -INFINITY, max = sink, largest_s = 0, largest_v = 0;
    for (int64_t d = 0; d < a->dim_qk; d++) {
        q[d] = element(&a->q, b, h, i, d);
        largest_q = fmax(largest_q, fabs(q[d]));
    }
    for (int64_t j = 0; j < keys; j++) {
        if (!is_within(a, b, p, j)) continue;
        double bias = 0, dot = 0, size = 0;
        if (a->mask.data != NULL) {
            const unsigned char *row = (unsigned char *)a->mask.data + i * a->mask.stride[2];
            if (a->mask.dtype == FA_DTYPE_F32) bias = stored(FA_DTYPE_F32, row, j);
            else if (row[j] == 0) continue;
        }
        entry[n] = b, token[n] = key[n] = j;
        if (a->block_table != NULL)
            entry[n] = a->block_table[b * a->table_stride + j / a->page_size], token[n] = j % a->page_size;
        for (int64_t d = 0; d < a->dim_qk; d++) {
            double k = element(&a->k, entry[n], kv, token[n], d);
            dot += q[d] * k;
            double more = 0;
            /* Unsigned integers are multiplied as signed ones, which are 128 less. */
            if (a->k.dtype == FA_DTYPE_U8) {
                const fa_quant *g = a->k.quant;
                more = 128 * (g == NULL ? 1 : fabs(f32_at(g->scale, place_of(g, entry[n], kv, token[n], d))));
            }
            size += (f.i8 || f.i16 ? largest_q : fabs(q[d])) * (fabs(k) + more);
        }
        double score = scale * dot, cap = (double)a->softcap;
        if (cap > 0) score = cap * tanh(score / cap);
        if (a->alibi_slopes != NULL)
            bias -= f32_at(a->alibi_slopes, b * a->alibi_batch_stride + h) * fabs((double)(p - j));
        s[n] = score + bias;
        most = fmax(most, size), max = fmax(max, s[n]), largest_s = fmax(largest_s, fabs(s[n]));
        n++;
    }
    double sum = sink == -INFINITY ? 0 : exp(sink - max);
    for (int64_t j = 0; j < n; j++) sum += exp(s[j] - max);
    for (int64_t j = 0; j < n; j++) {
        double weight = exp(s[j] - max) / sum;
        for (int64_t d = 0; d < a->dim_v; d++) {
            double v = element(&a->v, entry[j], kv, token[j], d);
            o[d] += weight * v, largest_v = fmax(largest_v, fabs(v));
        }
    }
    double coarse = 1 + largest_s / 20, rounded = f.i8 ? 1 / 254.0 : f.i16 ? 1 / 40000.0 : f.f16 ? 1 / 2048.0 : 1 / 256.0;
    double of_scores = (f.bf16 || f.f16 || f.i8 || f.i16) && !f.exact_q ? fabs(scale) * rounded * most : 0;
    double of_powers = (f.i8 ? 0.5 / 255 : 0.5 / 16384) * (double)n / fmax(sum, 1) + (f.i8 ? 0.006 : 1e-4);
    double of_weights = f.bf16 || f.f16 ? 2 * rounded + 2 * of_scores : f.i8 || f.i16 ? 2 * of_powers + 2 * of_scores : 0;
    double of_sum = f.bf16 || f.f16 ? of_scores + 1e-4 : f.i8 || f.i16 ? of_scores + 1.1 * of_powers : 0;
    const unsigned char *row =
        (unsigned char *)a->o.data + b * a->o.stride[0] + h * a->o.stride[1] + i * a->o.stride[2];
    double worst = 0;
    for (int64_t d = 0; d < a->dim_v; d++) {
        double rounding = a->o.dtype == FA_DTYPE_F16    ? fmax(ldexp(fabs(o[d]), -11), 0x1p-25)
                          : a->o.dtype == FA_DTYPE_BF16 ? ldexp(fabs(o[d]), -8)
                          : a->o.dtype == FA_DTYPE_Q15  ? 0x1p-16
                                                        : 0;
        far[d] = (1e-5 * coarse + of_weights) * largest_v + 1.01 * rounding;
        /* Fractions saturate. */
        if (a->o.dtype == FA_DTYPE_Q15) o[d] = fmin(fmax(o[d], -1), 32767 / 32768.0);
        double error = fabs(stored(a->o.dtype, row, d) - o[d]);
        /* A row of nothing is exactly 0; NaN is never right. */
        worst = fmax(worst, error <= far[d] ? (far[d] > 0 ? error / far[d] : 0) : error >= 0 ? 1 + error : INFINITY);
    }
    const float *weights = weights_of(a, b, h, i);
    double near = expm1(3e-5 * coarse + of_weights);
    for (int64_t j = 0, at = 0; weights != NULL && j < a->len_kv; j++) {
        bool is_seen = at < n && key[at] == j;
        double weight = is_seen ? exp(s[at] - max) / sum : 0, error_of_it = fabs((double)weights[j] - weight);
        double bound = is_seen ? near * weight + 1e-12 : 0;
        worst = fmax(worst, error_of_it <= bound ? (bound > 0 ? error_of_it / bound : 0) : error_of_it >= 0 ? 1 + error_of_it : INFINITY);
        at += is_seen;
    }
    if (a->lse == NULL) return worst;
    double lse = (double)a->lse[b * a->lse_stride[0] + h * a->lse_stride[1] + i], want = max + log(sum);
    if (n == 0) return lse == sink ? worst : INFINITY;
    if (lse == want) return worst;
    double error = fabs(lse - want) / (1e-5 * (1 + fabs(want)) * coarse + of_sum);
    return fmax(worst, error >= 0 ? error : INFINITY);
}

#endif
