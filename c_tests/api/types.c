/* Storage types through the general call: tensors of all types and their mixtures, scales and zeros
 * of every granularity, outputs and masks of 16 bits, each against the definition in double, which
 * reads the stored numbers by itself. */

#include "blocks.h"
#include "check.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

static const char *const names[] = {"F32",  "F16",  "BF16", "I8",   "Q8_0",  "BOOL8",
                                    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "F8_E4M3", "F8_E5M2", "U8", "Q15"};
/* The types that are mixed in every way. */
enum { TYPES = FA_DTYPE_Q8_0 + 1 };

/* ---- Numbers as they are stored. ---- */

static double from_f16(uint16_t bits) {
    int exponent = bits >> 10 & 31, mantissa = bits & 0x3ff;
    double x = ldexp(1024 + mantissa, exponent - 25);
    if (exponent == 0) x = ldexp(mantissa, -24);
    if (exponent == 31) x = mantissa == 0 ? INFINITY : NAN;
    return bits >> 15 ? -x : x;
}

static double from_bf16(uint16_t bits) {
    int exponent = bits >> 7 & 255, mantissa = bits & 0x7f;
    double x = ldexp(128 + mantissa, exponent - 134);
    if (exponent == 0) x = ldexp(mantissa, -133);
    if (exponent == 255) x = mantissa == 0 ? INFINITY : NAN;
    return bits >> 15 ? -x : x;
}

/* Bits of the mantissa, and the exponent of the smallest normal number. */
static int digits(int32_t dtype) {
    return dtype == FA_DTYPE_F32 ? 23 : dtype == FA_DTYPE_F16 ? 10 : 7;
}

static int exponent_of(double x, int32_t dtype) {
    int least = dtype == FA_DTYPE_F16 ? -14 : -126;
    return x == 0 || ilogb(x) < least ? least : ilogb(x);
}

/* The distance to the next number of a floating-point type. */
static double ulp(double x, int32_t dtype) {
    if (dtype == FA_DTYPE_Q15) return 0;
    return ldexp(1, exponent_of(x, dtype) - digits(dtype));
}

/* The nearest number of 16 bits; x is in the range of the type. */
static uint16_t to_half(double x, int32_t dtype) {
    double units = nearbyint(fabs(x) / ulp(x, dtype));
    int32_t least = dtype == FA_DTYPE_F16 ? -14 : -126;
    /* The leading bit of a normal number adds one to an exponent that is too small by one. */
    int32_t bits = (exponent_of(x, dtype) - least) * ((int32_t)1 << digits(dtype)) + (int32_t)units;
    return (uint16_t)(bits | (signbit(x) ? 0x8000 : 0));
}

static int64_t row_bytes(int32_t dtype, int64_t dim) {
    switch (dtype) {
        case FA_DTYPE_F32: return dim * 4;
        case FA_DTYPE_I8:
        case FA_DTYPE_F8_E4M3:
        case FA_DTYPE_F8_E5M2:
        case FA_DTYPE_U8: return dim;
        case FA_DTYPE_F16:
        case FA_DTYPE_Q15:
        case FA_DTYPE_BF16: return dim * 2;
        default: return dim / 32 * bytes_of_block(dtype);
    }
}

/* As ggml does it: the largest number becomes 127, the scale is rounded afterwards. */
static void encode_q8_0(const float *x, int64_t dim, char *row) {
    for (int64_t block = 0; block < dim / 32; block++, x += 32, row += 34) {
        float most = (float)largest(x, 32), d = most / 127, inverse = d != 0 ? 1 / d : 0;
        uint16_t scale = to_half((double)d, FA_DTYPE_F16);
        memcpy(row, &scale, 2);
        for (int i = 0; i < 32; i++) row[2 + i] = (char)(int8_t)roundf(x[i] * inverse);
    }
}

/* Random numbers; integers get all values, fractions often the least and the largest. */
static void fill_row(int32_t dtype, int64_t dim, char *row) {
    float *x = random_normal((size_t)dim);
    /* One channel of numbers that are subnormal in binary16: columns of the output are judged one
     * by one. */
    if (dtype == FA_DTYPE_F16) x[dim / 2] *= 0x1p-18f;
    switch (dtype) {
        case FA_DTYPE_F32: memcpy(row, x, (size_t)dim * 4); break;
        case FA_DTYPE_I8:
        case FA_DTYPE_F8_E4M3:
        case FA_DTYPE_F8_E5M2:
        case FA_DTYPE_U8:
            for (int64_t d = 0; d < dim; d++)
                row[d] = (char)random_of_8_bits(dtype, (unsigned char)(random_bits() >> 56));
            break;
        case FA_DTYPE_Q15:
            for (int64_t d = 0; d < dim; d++) {
                uint64_t random = random_bits();
                int16_t bits = (int16_t)(random >> 60 == 0 ? -32768 : random >> 60 == 1 ? 32767 : (int)(random & 0xffff) - 32768);
                memcpy(row + 2 * d, &bits, 2);
            }
            break;
        case FA_DTYPE_Q8_0: encode_q8_0(x, dim, row); break;
        case FA_DTYPE_F16:
        case FA_DTYPE_BF16:
            for (int64_t d = 0; d < dim; d++) {
                uint16_t bits = to_half((double)x[d], dtype);
                memcpy(row + 2 * d, &bits, 2);
            }
            break;
        default:
            for (int64_t block = 0; block < dim / 32; block++) {
                unsigned char random[64];
                for (int i = 0; i < 64; i++) random[i] = (unsigned char)(random_bits() >> 56);
                fill_block(dtype, random, row + block * bytes_of_block(dtype));
            }
    }
    free(x);
}

static double stored(int32_t dtype, const char *row, int64_t d) {
    float wide;
    uint16_t half;
    switch (dtype) {
        case FA_DTYPE_F32: return memcpy(&wide, row + 4 * d, 4), (double)wide;
        case FA_DTYPE_F16: return memcpy(&half, row + 2 * d, 2), from_f16(half);
        case FA_DTYPE_BF16: return memcpy(&half, row + 2 * d, 2), from_bf16(half);
        case FA_DTYPE_Q15: return fraction_at(row + 2 * d);
        case FA_DTYPE_I8:
        case FA_DTYPE_F8_E4M3:
        case FA_DTYPE_F8_E5M2:
        case FA_DTYPE_U8: return element_of_8_bits(dtype, (unsigned char)row[d]);
        default: return element_of_block(dtype, row + d / 32 * bytes_of_block(dtype), d % 32);
    }
}

/* ---- Tensors at odd addresses. ---- */

/* Memory of one problem. */
static void *kept[32];
static size_t kept_count;

static char *keep(int64_t bytes) {
    if (kept_count == COUNT(kept)) exit(2);
    kept[kept_count] = need((size_t)bytes + 1);
    return (char *)kept[kept_count++] + 1;
}

static void forget(void) {
    while (kept_count > 0) free(kept[--kept_count]);
}

static char *row_of(const fa_tensor *t, int64_t entry, int64_t head, int64_t token) {
    return (char *)t->data + entry * t->stride[0] + head * t->stride[1] + token * t->stride[2];
}

struct size {
    int64_t entries, heads, tokens, dim;
};

/* [entry][head][token][dim] or [entry][token][head][dim], `gap` bytes between rows. */
static fa_tensor room(int32_t dtype, struct size n, bool heads_first, int64_t gap) {
    fa_tensor t = {.dtype = dtype};
    int64_t row = row_bytes(dtype, n.dim) + gap;
    t.stride[0] = row * n.heads * n.tokens;
    t.stride[1] = heads_first ? row * n.tokens : row;
    t.stride[2] = heads_first ? row : row * n.heads;
    t.data = keep(t.stride[0] * n.entries);
    return t;
}

static fa_tensor filled(int32_t dtype, struct size n, bool heads_first) {
    fa_tensor t = room(dtype, n, heads_first, 0);
    for (int64_t e = 0; e < n.entries; e++)
        for (int64_t h = 0; h < n.heads; h++)
            for (int64_t i = 0; i < n.tokens; i++) fill_row(dtype, n.dim, row_of(&t, e, h, i));
    return t;
}

/* Which elements share a scale. */
struct grain {
    /* Whether entries, heads, tokens, channels have scales of their own. */
    bool own[4];
    /* So many of the last two share one. */
    int32_t tokens, dims;
    bool scale, zero;
    /* Values of neighbouring entries lie next to each other, and not those of neighbouring
     * channels. */
    bool backwards;
};

static float *values(int64_t n, bool wanted, float spread, float least) {
    if (!wanted) return NULL;
    char *to = keep(n * 4);
    for (int64_t i = 0; i < n; i++) {
        float x = least + spread * (float)(random_bits() >> 40) * 0x1p-24f;
        memcpy(to + 4 * i, &x, 4);
    }
    return (float *)(void *)to;
}

static void quantise(fa_tensor *t, struct size n, struct grain g) {
    if (!may_have_scales(t->dtype)) return;
    fa_quant *quant = (fa_quant *)(void *)keep(sizeof *quant);
    fa_quant filled = {.group_tokens = g.tokens, .group_dims = g.dims};
    int64_t count[] = {n.entries, n.heads, (n.tokens + g.tokens - 1) / g.tokens,
                       (n.dim + g.dims - 1) / g.dims};
    int64_t all = 1;
    for (int i = 0; i < 4; i++) {
        int axis = g.backwards ? i : 3 - i;
        if (!g.own[axis]) continue;
        filled.stride[axis] = all;
        all *= count[axis];
    }
    /* Numbers up to 2, and a zero that is no integer. */
    float unit = t->dtype == FA_DTYPE_Q15 ? 128 : 1;
    filled.scale = values(all, g.scale, 0.01f * unit, 0.005f * unit);
    filled.zero = values(all, g.zero && is_integer(t->dtype), 60, t->dtype == FA_DTYPE_U8 ? 100 : -30);
    memcpy(quant, &filled, sizeof filled);
    t->quant = quant;
}

static double value_at(const float *values, int64_t i) {
    float x;
    memcpy(&x, (const char *)values + 4 * i, 4);
    return (double)x;
}

/* Scale and zero of an element. */
struct step {
    double scale, zero;
};

static struct step step_of(const fa_tensor *t, int64_t entry, int64_t head, int64_t token, int64_t d) {
    struct step of = {1, 0};
    if (t->quant == NULL) return of;
    fa_quant g;
    memcpy(&g, t->quant, sizeof g);
    int64_t at = entry * g.stride[0] + head * g.stride[1];
    if (g.stride[2] != 0) at += token / g.group_tokens * g.stride[2];
    if (g.stride[3] != 0) at += d / g.group_dims * g.stride[3];
    if (g.zero != NULL) of.zero = value_at(g.zero, at);
    if (g.scale != NULL) of.scale = value_at(g.scale, at);
    return of;
}

static double element(const fa_tensor *t, int64_t entry, int64_t head, int64_t token, int64_t d) {
    struct step of = step_of(t, entry, head, token, d);
    return (stored(t->dtype, row_of(t, entry, head, token), d) - of.zero) * of.scale;
}

/* ---- The definition in double, read through the description. ---- */

static int64_t rows_of(const fa_attention *a, int64_t b) {
    return a->cu_len_q != NULL ? a->cu_len_q[b + 1] - a->cu_len_q[b] : a->len_q;
}

static int64_t keys_of(const fa_attention *a, int64_t b) {
    if (a->kv_lens != NULL) return a->kv_lens[b];
    return a->cu_len_kv != NULL ? a->cu_len_kv[b + 1] - a->cu_len_kv[b] : a->len_kv;
}

/* Entry (or page) and row of a key in k and v. */
static void find_key(const fa_attention *a, int64_t b, int64_t j, int64_t *entry, int64_t *row) {
    *entry = b, *row = j;
    if (a->cu_len_kv != NULL) *entry = 0, *row = a->cu_len_kv[b] + j;
    if (a->block_table != NULL) {
        *entry = a->block_table[b * a->table_stride + j / a->page_size];
        *row = j % a->page_size;
    }
}

static void find_row(const fa_attention *a, int64_t b, int64_t i, int64_t *entry, int64_t *row) {
    *entry = a->cu_len_q != NULL ? 0 : b;
    *row = a->cu_len_q != NULL ? a->cu_len_q[b] + i : i;
}

static bool sees(const fa_attention *a, int64_t b, int64_t i, int64_t j) {
    int64_t p = i + (a->q_pos == FA_POS_END ? keys_of(a, b) - rows_of(a, b) : a->q_pos);
    if (a->window_left != FA_NO_LIMIT && j < p - a->window_left) return false;
    return a->window_right == FA_NO_LIMIT || j <= p + a->window_right;
}

/* The output of all rows one after another, and how far from it a result may be: in the end, where
 * queries and probabilities are rounded to bfloat16, to binary16, to 16-bit and to 8-bit
 * integers. */
enum family { IN_FLOAT, IN_BF16, IN_F16, IN_I16, IN_I8, FAMILIES };
static const char *const family_words[] = {" f32, ", " bf16, ", " f16, ", " i16, ", " i8, "};
struct want {
    double *o, *far[FAMILIES];
    int64_t n;
};

/* Of integers: steps of the largest probability, error of the others, steps of the largest element
 * of a query. */
static const double i16_steps[] = {16384, 1e-4, 40000}, i8_steps[] = {255, 6e-3, 254};

/* Of one row: q is its query, k and v are all keys and values of its head. */
static void want_row(const fa_attention *a, int64_t b, int64_t h, int64_t i, const double *q,
                     const double *k, const double *v, struct want *want) {
    int64_t keys = keys_of(a, b), dv = a->dim_v;
    double scale = a->scale == 0 ? 1 / sqrt((double)a->dim_qk) : (double)a->scale;
    double *s = need((size_t)keys * sizeof *s), max = -INFINITY, sum = 0, magnitude = 0, most_q = 0, sum_k = 0;
    int64_t count = 0;
    double *o = want->o + want->n, *far = want->far[IN_FLOAT] + want->n;
    bool *seen = need((size_t)keys);
    for (int64_t j = 0; j < keys; j++) {
        double bias = a->mask.data != NULL ? element(&a->mask, b, h, i, j) : 0, dot = 0, size = 0, of_k = 0;
        seen[j] = sees(a, b, i, j) && bias != -INFINITY;
        if (!seen[j]) continue;
        for (int64_t d = 0; d < a->dim_qk; d++) {
            dot += q[d] * k[j * a->dim_qk + d];
            size += fabs(q[d] * k[j * a->dim_qk + d]);
            of_k += fabs(k[j * a->dim_qk + d]);
            most_q = fmax(most_q, fabs(q[d]));
        }
        count++;
        sum_k = fmax(sum_k, of_k);
        magnitude = fmax(magnitude, scale * size);
        s[j] = scale * dot + bias;
        max = fmax(max, s[j]);
    }
    for (int64_t j = 0; j < keys; j++) sum += seen[j] ? s[j] = exp(s[j] - max) : 0;
    for (int64_t d = 0; d < dv; d++) o[d] = far[d] = 0;
    for (int64_t j = 0; j < keys; j++) {
        for (int64_t d = 0; d < dv && seen[j]; d++) {
            o[d] += s[j] / sum * v[j * dv + d];
            far[d] = fmax(far[d], fabs(v[j * dv + d]));
        }
    }
    /* Of each column its own largest |v|, which is stricter than that of the tensor. */
    for (int64_t d = 0; d < dv; d++) {
        double more[FAMILIES] = {0};
        /* A rounding of the query and one of the probability, each by a 2^-9th at most, or a
         * 2^-12th. */
        more[IN_BF16] = far[d] * (2 * magnitude + 2) / 512;
        more[IN_F16] = more[IN_BF16] / 8;
        for (int i8 = 0; i8 < 2 && count > 0; i8++) {
            const double *steps = i8 ? i8_steps : i16_steps;
            double of_powers = (double)count / sum / 2 / steps[0] + steps[1];
            more[i8 ? IN_I8 : IN_I16] = far[d] * 2 * (of_powers + scale * most_q * sum_k / steps[2]);
        }
        far[d] *= 1e-5;
        far[d] += ulp(fabs(o[d]) + far[d], a->o.dtype) / 2;
        for (int f = IN_BF16; f < FAMILIES; f++)
            want->far[f][want->n + d] = far[d] + more[f] + ulp(fabs(o[d]) + more[f], a->o.dtype) / 2;
    }
    want->n += dv;
    free(s), free(seen);
}

static double *plain(const fa_tensor *t, const fa_attention *a, int64_t b, int64_t head, int64_t dim) {
    int64_t keys = keys_of(a, b), entry, row;
    double *x = need((size_t)(keys * dim) * sizeof *x);
    for (int64_t j = 0; j < keys; j++) {
        find_key(a, b, j, &entry, &row);
        for (int64_t d = 0; d < dim; d++) x[j * dim + d] = element(t, entry, head, row, d);
    }
    return x;
}

static struct want definition(const fa_attention *a) {
    int64_t rows = 0, group = a->heads_q / a->heads_kv, entry, row;
    for (int64_t b = 0; b < a->batch; b++) rows += rows_of(a, b);
    size_t size = (size_t)(rows * a->heads_q * a->dim_v) * sizeof(double);
    struct want want = {.o = need(size)};
    for (int f = 0; f < FAMILIES; f++) want.far[f] = need(size);
    double *q = need((size_t)a->dim_qk * sizeof *q);
    for (int64_t b = 0; b < a->batch; b++) {
        for (int64_t kv_head = 0; kv_head < a->heads_kv; kv_head++) {
            double *k = plain(&a->k, a, b, kv_head, a->dim_qk), *v = plain(&a->v, a, b, kv_head, a->dim_v);
            for (int64_t n = 0; n < group * rows_of(a, b); n++) {
                int64_t h = kv_head * group + n / rows_of(a, b), i = n % rows_of(a, b);
                find_row(a, b, i, &entry, &row);
                for (int64_t d = 0; d < a->dim_qk; d++) q[d] = element(&a->q, entry, h, row, d);
                want_row(a, b, h, i, q, k, v, &want);
            }
            free(k), free(v);
        }
    }
    free(q);
    return want;
}

/* ---- One problem under every instruction set. ---- */

/* All bytes of the output. */
static unsigned char *o_bytes;
static size_t o_size;
static int problems, results, converted, multiplied;

/* Takes each row that is looked at back to what it was before the call, so that afterwards only
 * what was written besides is left. */
static void compare(const char *what, const fa_attention *a, const struct want *want, enum family family) {
    int64_t entry, row, at = 0;
    for (int64_t b = 0; b < a->batch; b++) {
        for (int64_t n = 0; n < a->heads_q * rows_of(a, b); n++) {
            int64_t h = n / rows_of(a, b), i = n % rows_of(a, b);
            find_row(a, b, i, &entry, &row);
            char *got = row_of(&a->o, entry, h, row);
            for (int64_t d = 0; d < a->dim_v; d++, at++, results++) {
                double x = element(&a->o, entry, h, row, d), y = want->o[at], far = want->far[family][at];
                if (a->o.dtype == FA_DTYPE_Q15) {
                    /* Half a step; what is too large saturates, and NaN becomes 0. */
                    double scale = step_of(&a->o, entry, h, row, d).scale;
                    far += scale / 65536;
                    y = isnan(y) ? 0 : fmin(fmax(y, -scale), scale * 32767 / 32768);
                }
                CHECK(isnan(y) ? isnan(x) : fabs(x - y) <= far,
                      "%s, %s, %d rows: sequence %d, head %d, row %d, element %d: %.9g is not %.9g", what,
                      fa_isa(), (int)a->len_q, (int)b, (int)h, (int)i, (int)d, x, y);
            }
            memset(got, 0xff, (size_t)row_bytes(a->o.dtype, a->dim_v));
        }
    }
    size_t beside = 0;
    for (size_t i = 0; i < o_size; i++) beside += o_bytes[i] != 0xff;
    CHECK(beside == 0, "%s: %zu bytes beside the output", what, beside);
}

/* Whether tokens, or elements of a row, have scales and zeros of their own. */
struct own {
    bool tokens, elements;
};

static struct own own(const fa_attention *a, const fa_tensor *t, int64_t dim) {
    fa_quant g;
    if (t->quant == NULL) return (struct own){false, false};
    /* At an odd address, where C must not look itself. */
    memcpy(&g, t->quant, sizeof g);
    bool has_pages = a->block_table != NULL && g.stride[0] != 0;
    return (struct own){g.stride[2] != 0 || has_pages, g.stride[3] != 0 && g.group_dims < dim};
}

/* Whether scales can leave sums of products, of K over elements and of V over keys. */
static bool leave(const fa_attention *a, bool v) {
    struct own of = own(a, v ? &a->v : &a->k, v ? a->dim_v : a->dim_qk);
    return v ? !of.tokens : !of.tokens || !of.elements;
}

/* What fa_attention_check says: which tensors become f32, and from what, or else which family
 * computes. */
static enum family check_words(const char *what, const fa_attention *a) {
    const fa_tensor *tensors[] = {&a->k, &a->v};
    char why[400] = "", words[60];
    fa_status status = fa_attention_check(a, why, sizeof why);
    CHECK(status == FA_OK, "%s: %s: %s", what, fa_status_string(status), why);
    CHECK(strstr(why, a->len_q == 1 ? "decode" : "prefill") != NULL, "%s: %s", what, why);
    enum family family = IN_FLOAT;
    for (int f = 0; f < FAMILIES; f++) {
        if (strstr(why, family_words[f]) != NULL) family = (enum family)f;
    }
    for (int i = 0; i < 2; i++) {
        bool is = tensors[i]->dtype != FA_DTYPE_F32 && family == IN_FLOAT;
        snprintf(words, sizeof words, "%c converted from", "KV"[i]);
        CHECK((strstr(why, words) != NULL) == is, "%s: %s", what, why);
        /* A row is converted as it is read, unless scales change within it and from row to row. */
        struct own of = own(a, tensors[i], i == 0 ? a->dim_qk : a->dim_v);
        bool is_nibbles = tensors[i]->dtype > FA_DTYPE_BOOL8;
        bool as_read = a->len_q == 1 && !(of.tokens && of.elements) && !is_nibbles;
        snprintf(words, sizeof words, "%c converted from %s %s", "KV"[i], names[tensors[i]->dtype],
                 as_read ? "as it is read" : "block by block");
        CHECK(!is || strstr(why, words) != NULL, "%s: no \"%s\" in \"%s\"", what, words, why);
        converted += is;
    }
    bool is_said = strstr(why, "V rearranged") != NULL;
    /* Few rows are multiplied as they are; Q8_0 beside nibbles is repacked with them on some
     * instruction sets. */
    bool may_be = family != IN_FLOAT && a->len_q == 1 && a->k.dtype > FA_DTYPE_BOOL8 && a->v.dtype == FA_DTYPE_Q8_0;
    CHECK(may_be || is_said == (family != IN_FLOAT && a->len_q != 1), "%s: %s", what, why);
    return family;
}

static void run(const char *what, const fa_attention *a, const struct want *want, enum family family) {
    size_t bytes = 0;
    CHECK(fa_attention_workspace(a, 1, &bytes) == FA_OK, "%s: workspace", what);
    unsigned char *ws = need(bytes + 2);
    memset(ws, 0xff, bytes + 2);
    memset(o_bytes, 0xff, o_size);
    fa_status status = fa_attention_run(a, ws + 1, bytes, NULL);
    CHECK(status == FA_OK, "%s: %s", what, fa_status_string(status));
    CHECK(ws[0] == 0xff && ws[bytes + 1] == 0xff, "%s: wrote beside the workspace", what);
    compare(what, a, want, family);
    free(ws);
}

/* Which family is to compute, on the best instruction set of this machine or a lesser one. */
static enum family family_of(const fa_attention *a, const char *isa, uint32_t flag) {
    bool precise = flag == FA_PRECISE;
    int rank = isa_rank(isa);
    if (a->k.dtype == FA_DTYPE_BF16 && a->v.dtype == FA_DTYPE_BF16)
        return !precise && has_dots_of_bf16(rank, a->len_q == 1) ? IN_BF16 : IN_FLOAT;
    if (a->k.dtype == FA_DTYPE_F16 && a->v.dtype == FA_DTYPE_F16)
        return !precise && has_dots_of_f16(rank, a->len_q == 1) ? IN_F16 : IN_FLOAT;
    if (is_in_blocks(a->k.dtype) && is_in_blocks(a->v.dtype)) {
        return !precise && a->len_q == 1 && has_integers_in_blocks(rank) ? IN_I16 : IN_FLOAT;
    }
    if (a->k.dtype != FA_DTYPE_I8 || a->v.dtype != FA_DTYPE_I8) return IN_FLOAT;
    if (rank == 0 || !leave(a, false) || !leave(a, true)) return IN_FLOAT;
    if (flag == FA_FAST && a->len_q != 1 && has_dots_of_bytes(rank)) return IN_I8;
    return has_integers(rank, a->len_q == 1) ? IN_I16 : IN_FLOAT;
}

/* With more rounding and more: what makes no difference is computed once. */
static void expect(const char *what, const fa_attention *given) {
    struct want want = definition(given);
    for (int i = 0; i <= machine_rank(); i++) {
        if (!machine_has(i)) continue;
        CHECK(fa_limit_isa(isa_names[i]) == FA_OK, "%s", isa_names[i]);
        static const uint32_t flags[] = {FA_PRECISE, 0, FA_FAST};
        for (int f = 0; f < 3; f++) {
            fa_attention a = *given;
            a.flags |= flags[f];
            enum family expected = family_of(given, isa_names[i], flags[f]);
            if (f > 0 && expected == family_of(given, isa_names[i], flags[f - 1])) continue;
            enum family family = check_words(what, &a);
            CHECK(family == expected, "%s, %s: family %d, not %d", what, isa_names[i], (int)family, (int)expected);
            run(what, &a, &want, family);
            multiplied += family != IN_FLOAT;
        }
    }
    CHECK(fa_limit_isa(NULL) == FA_OK, "taking the cap back");
    problems++;
    free(want.o);
    for (int f = 0; f < FAMILIES; f++) free(want.far[f]);
}

/* ---- Problems: 4 query heads on 2 kv heads, two sequences, causal, the last query on the last key. ---- */

enum { B = 2, HQ = 4, HKV = 2, KEYS = 75, SHORT = 41, PAGE = 16, PAGES = 11 };
/* So many query rows are computed in the way that suits many on any instruction set; a page table's
 * unused entries lead nowhere. */
/* Of 16 lanes, 65 rows are more than four vectors. */
enum { MANY = 65, NOWHERE = -1 };
enum layout { TOKENS_FIRST, HEADS_FIRST, RAGGED, PAGED, LAYOUTS };
static const char *const layout_names[] = {"[token][head]", "[head][token]", "ragged", "paged"};

struct types {
    int32_t q, k, v, o;
};

static const struct grain fine = {{true, true, true, true}, 3, 5, true, true, false};

static fa_attention problem(struct types t, enum layout layout, int64_t rows, struct grain g) {
    static const int32_t cu_len_one[] = {1, 2, 3}, cu_len_many[] = {0, 30, 30 + MANY};
    static const int32_t cu_len_kv[] = {2, 2 + SHORT, 2 + SHORT + KEYS}, kv_lens[] = {SHORT, KEYS};
    static const int32_t table[] = {7, 0, 10, NOWHERE, NOWHERE, 3, 9, 1, 8, 5};
    forget();
    fa_attention a;
    CHECK(fa_attention_init(&a, sizeof a) == FA_OK, "init");
    a.batch = B, a.heads_q = HQ, a.heads_kv = HKV, a.len_q = rows, a.len_kv = KEYS;
    a.dim_qk = is_in_blocks(t.q) || is_in_blocks(t.k) ? 64 : 53;
    a.dim_v = is_in_blocks(t.v) ? 96 : 45;
    a.window_right = 0;
    struct size q = {B, HQ, rows, a.dim_qk}, k = {B, HKV, KEYS, a.dim_qk};
    if (layout == RAGGED) {
        a.cu_len_q = rows == 1 ? cu_len_one : cu_len_many;
        a.cu_len_kv = cu_len_kv;
        q.entries = k.entries = 1, q.tokens = a.cu_len_q[B], k.tokens = cu_len_kv[B];
    }
    if (layout == PAGED) {
        a.block_table = table, a.table_stride = 5, a.page_size = PAGE, a.num_pages = PAGES;
        a.kv_lens = kv_lens;
        k.entries = PAGES, k.tokens = PAGE;
    }
    struct size v = {k.entries, k.heads, k.tokens, a.dim_v}, o = {q.entries, q.heads, q.tokens, a.dim_v};
    bool heads_first = layout == HEADS_FIRST;
    a.q = filled(t.q, q, heads_first), a.k = filled(t.k, k, heads_first), a.v = filled(t.v, v, heads_first);
    quantise(&a.q, q, g), quantise(&a.k, k, g), quantise(&a.v, v, g);
    a.o = room(t.o, o, heads_first, t.o == FA_DTYPE_F32 ? 8 : 6);
    quantise(&a.o, o, g);
    o_bytes = a.o.data, o_size = (size_t)(a.o.stride[0] * o.entries);
    return a;
}

static void mixtures(void) {
    for (int32_t n = 0; n < TYPES * TYPES * TYPES; n++) {
        for (int64_t rows = 1; rows <= MANY; rows += MANY - 1) {
            struct types t = {n % TYPES, n / TYPES % TYPES, n / TYPES / TYPES, 0};
            char what[100];
            for (t.o = FA_DTYPE_F32; t.o <= FA_DTYPE_BF16; t.o++) {
                /* Every triple in every layout, with another output in each. */
                enum layout layout = (enum layout)((n + t.o) % LAYOUTS);
                fa_attention a = problem(t, layout, rows, fine);
                if (t.o != FA_DTYPE_F32) a.block_kv = 16 + 7 * t.o;
                if (n % 2 == 0) a.window_left = 20;
                snprintf(what, sizeof what, "q %s, k %s, v %s, o %s, %s", names[t.q], names[t.k], names[t.v],
                         names[t.o], layout_names[layout]);
                expect(what, &a);
            }
        }
    }
}

/* What outputs may be. */
static const int32_t of_outputs[] = {FA_DTYPE_F32, FA_DTYPE_F16, FA_DTYPE_BF16, FA_DTYPE_Q15};

/* Blocks of few bits, the other types of 8 bits, and fractions, as each of Q, K and V, beside every
 * other type. */
static void blocks_beside_others(void) {
    enum { ALL = FA_DTYPE_Q15 + 1, NEW = ALL - FA_DTYPE_Q4_0 };
    for (int32_t n = 0; n < NEW * ALL * 3; n++) {
        int32_t one = FA_DTYPE_Q4_0 + n % NEW, other = n / NEW % ALL, which = n / NEW / ALL % 3;
        if (other == FA_DTYPE_BOOL8) continue;
        struct types t = {which == 0 ? one : FA_DTYPE_F32, which == 1 ? one : other, which == 2 ? one : other,
                          of_outputs[n / NEW % 4]};
        enum layout layout = (enum layout)(n / 3 % LAYOUTS);
        fa_attention a = problem(t, layout, n / 2 % 2 == 0 ? 1 : MANY, fine);
        if (n % 5 == 0) a.window_left = 20;
        char what[100];
        snprintf(what, sizeof what, "q %s, k %s, v %s, o %s, %s", names[t.q], names[t.k], names[t.v], names[t.o],
                 layout_names[layout]);
        expect(what, &a);
    }
}

/* One scale for each of any of entries (pages), heads, blocks of tokens, groups of channels. */
static void granularities(void) {
    static const int32_t groups[][2] = {{1, 1}, {7, 5}, {16, 32}, {1000, 1000}};
    static const struct types all = {FA_DTYPE_I8, FA_DTYPE_I8, FA_DTYPE_I8, FA_DTYPE_F32};
    for (int which = 0; which < 16 * 3; which++) {
        for (size_t n = 0; n < COUNT(groups) * LAYOUTS * 2; n++) {
            struct grain g = {{which & 1, which & 2, which & 4, which & 8}, 0, 0, true, true, n % 3 == 0};
            enum layout layout = (enum layout)(n / 2 % LAYOUTS);
            char what[100];
            g.tokens = groups[n / 2 / LAYOUTS][0], g.dims = groups[n / 2 / LAYOUTS][1];
            /* Only scales, only zeros, or both. */
            if (which / 16 == 0) g.zero = false;
            if (which / 16 == 1) g.scale = false;
            fa_attention a = problem(all, layout, n % 2 == 0 ? 1 : MANY, g);
            if (!g.scale) a.scale = 1e-5f;
            a.block_kv = n % 3 == 1 ? 32 : 0;
            snprintf(what, sizeof what, "own %d%d%d%d, groups %d and %d, scale %d, zero %d, %s", g.own[0],
                     g.own[1], g.own[2], g.own[3], (int)g.tokens, (int)g.dims, g.scale, g.zero,
                     layout_names[layout]);
            expect(what, &a);
        }
    }

    /* Integers that stand for themselves; a quant that says nothing. */
    static const fa_quant nothing = {.group_tokens = 1, .group_dims = 1};
    for (int64_t rows = 1; rows <= MANY; rows += MANY - 1) {
        fa_attention a = problem(all, TOKENS_FIRST, rows, fine);
        a.scale = 1e-5f;
        a.q.quant = a.k.quant = a.v.quant = NULL;
        expect("integers", &a);
        a.k.quant = a.v.quant = &nothing;
        expect("neither scale nor zero", &a);
    }

    /* The same integers for both heads and both sequences, but scales of their own. */
    for (int64_t rows = 1; rows <= MANY; rows += MANY - 1) {
        fa_attention a = problem(all, TOKENS_FIRST, rows, fine);
        a.k.stride[0] = a.k.stride[1] = a.v.stride[0] = a.v.stride[1] = 0;
        expect("integers shared, scales not", &a);
    }

    /* The size of a group does not matter where nothing is grouped. */
    static const float scale = 0.01f, zero = -3.5f;
    static const fa_quant whole = {&scale, &zero, {0, 0, 0, 0}, 0, INT32_MIN};
    for (int64_t rows = 1; rows <= MANY; rows += MANY - 1) {
        fa_attention a = problem(all, PAGED, rows, fine);
        a.q.quant = a.k.quant = a.v.quant = &whole;
        expect("groups of nothing", &a);
    }
}

/* Whoever sees a scale that is no number gets none, and nobody else. */
static void not_a_number(void) {
    static const struct types types[] = {
        {FA_DTYPE_F32, FA_DTYPE_I8, FA_DTYPE_F32, FA_DTYPE_F32},
        {FA_DTYPE_F32, FA_DTYPE_F32, FA_DTYPE_I8, FA_DTYPE_BF16},
        {FA_DTYPE_I8, FA_DTYPE_F16, FA_DTYPE_F16, FA_DTYPE_F16},
    };
    static const struct grain tokens = {{false, false, true, false}, 1, 1, true, true, false};
    static const int token_of[] = {KEYS - 10, KEYS - 10, 20};
    float nan = NAN;
    for (int n = 0; n < 12; n++) {
        int64_t rows = n % 2 == 0 ? 1 : MANY;
        fa_attention a = problem(types[n / 4], HEADS_FIRST, rows, tokens);
        const fa_tensor *t = n / 4 == 0 ? &a.k : n / 4 == 1 ? &a.v : &a.q;
        fa_quant g;
        memcpy(&g, t->quant, sizeof g);
        const float *values = n / 2 % 2 == 0 ? g.scale : g.zero;
        int token = t == &a.q && rows == 1 ? 0 : token_of[n / 4];
        memcpy((char *)(uintptr_t)values + 4 * token, &nan, 4);
        expect("NaN as the scale of one token", &a);
        /* Before the token, where it is hidden from all rows. */
        if (t == &a.q) continue;
        a.q_pos = KEYS - 10 - rows;
        expect("NaN as the scale of a token that is hidden", &a);
        a.window_right = FA_NO_LIMIT;
        a.kv_lens = (const int32_t[]){KEYS - 10, KEYS - 11};
        expect("NaN behind the keys in use", &a);

        /* Hidden by a mask, among others that are seen. */
        a = problem(types[n / 4], HEADS_FIRST, rows, tokens);
        t = n / 4 == 0 ? &a.k : &a.v;
        memcpy(&g, t->quant, sizeof g);
        values = n / 2 % 2 == 0 ? g.scale : g.zero;
        memcpy((char *)(uintptr_t)values + 4 * token, &nan, 4);
        uint16_t hidden = 0xfc00;
        a.mask = filled(FA_DTYPE_F16, (struct size){1, 1, rows, KEYS}, true);
        a.mask.stride[0] = a.mask.stride[1] = 0;
        for (int64_t i = 0; i < rows; i++) memcpy(row_of(&a.mask, 0, 0, i) + 2 * token, &hidden, 2);
        expect("NaN as the scale of a token that a mask hides", &a);
    }
}

/* ---- Outputs and masks. ---- */

static void outputs(void) {
    for (size_t of = 0; of < COUNT(of_outputs); of++) {
        int32_t o = of_outputs[of];
        for (int n = 0; n < LAYOUTS * 2; n++) {
            static const int64_t dims[] = {1, 2, 16, 17, 31, 32, 45};
            struct types t = {FA_DTYPE_F32, FA_DTYPE_F32, FA_DTYPE_F32, o};
            for (size_t i = 0; i < COUNT(dims); i++) {
                fa_attention a = problem(t, (enum layout)(n / 2), n % 2 == 0 ? 1 : MANY, fine);
                a.dim_v = dims[i];
                expect("outputs", &a);
                /* Rows that see nothing are zeros of the right size. */
                a.q_pos = -7;
                expect("outputs of rows that see nothing", &a);
                if (o != FA_DTYPE_Q15) continue;
                a.q_pos = FA_POS_END, a.o.quant = NULL;
                expect("fractions without scales", &a);
            }
        }
    }
}

/* Mostly small numbers, some keys hidden, some as good as hidden. */
static fa_tensor random_mask(int32_t dtype, struct size n) {
    static const float wide[] = {-3.4e38f, -INFINITY};
    static const uint16_t halves[][2] = {{0xfbff, 0xfc00}, {0xff7f, 0xff80}};
    fa_tensor mask = filled(dtype, n, true);
    for (int64_t r = 0; r < n.entries * n.heads * n.tokens; r++) {
        char *row = (char *)mask.data + r * mask.stride[2];
        /* Every tenth row is hidden from all keys but the last few, or from all. */
        int64_t hidden = r % 10 == 4 ? n.dim - r % 3 : 0;
        for (int64_t j = 0; j < n.dim; j++) {
            uint64_t dice = random_bits() >> 60;
            bool hide = j < hidden || (dice < 4 && j % 4 != 0);
            /* The lowest number, as PyTorch's masks have it, hides nothing: each row sees others,
             * too. */
            bool low = dice == 5 && j % 4 != 0 && hidden == 0;
            if (!hide && !low) continue;
            const void *from = &wide[hide];
            if (dtype != FA_DTYPE_F32) from = &halves[dtype == FA_DTYPE_BF16][hide];
            memcpy(row + row_bytes(dtype, j), from, (size_t)row_bytes(dtype, 1));
        }
    }
    return mask;
}

/* A whole row of the same number, however low, changes nothing. */
static void constants(void) {
    static const uint16_t low[] = {0, 0xfbff, 0xff00};
    for (int n = 0; n < 4; n++) {
        int32_t dtype = n / 2 == 0 ? FA_DTYPE_F16 : FA_DTYPE_BF16;
        struct types t = {FA_DTYPE_F16, FA_DTYPE_F16, FA_DTYPE_BF16, FA_DTYPE_F32};
        fa_attention a = problem(t, HEADS_FIRST, n % 2 == 0 ? 1 : MANY, fine);
        /* Scores of 0 are what f32 can add to such numbers. */
        memset(a.q.data, 0, (size_t)(B * a.q.stride[0]));
        a.mask = filled(dtype, (struct size){1, 1, 1, KEYS}, true);
        memset(a.mask.stride, 0, sizeof a.mask.stride);
        for (int j = 0; j < KEYS; j++) memcpy((char *)a.mask.data + 2 * j, &low[dtype], 2);
        expect(dtype == FA_DTYPE_F16 ? "the lowest F16 for all keys" : "a low BF16 for all keys", &a);
    }
}

static void masks(void) {
    static const char *const what[] = {"mask F32", "mask F16", "mask BF16"};
    static const struct types types[] = {
        {FA_DTYPE_F32, FA_DTYPE_F32, FA_DTYPE_F32, FA_DTYPE_F32},
        {FA_DTYPE_F16, FA_DTYPE_BF16, FA_DTYPE_Q8_0, FA_DTYPE_F16},
        {FA_DTYPE_BF16, FA_DTYPE_I8, FA_DTYPE_BF16, FA_DTYPE_BF16},
    };
    for (int32_t dtype = FA_DTYPE_F32; dtype <= FA_DTYPE_BF16; dtype++) {
        for (int n = 0; n < (int)COUNT(types) * LAYOUTS * 2; n++) {
            int64_t rows = n % 2 == 0 ? 1 : MANY;
            for (int shared = 0; shared < 8; shared++) {
                fa_attention a = problem(types[n / 2 / LAYOUTS], (enum layout)(n / 2 % LAYOUTS), rows, fine);
                struct size n_mask = {shared & 1 ? 1 : B, shared & 2 ? 1 : HQ, shared & 4 ? 1 : rows, KEYS};
                a.mask = random_mask(dtype, n_mask);
                for (int axis = 0; axis < 3; axis++) {
                    if (shared >> axis & 1) a.mask.stride[axis] = 0;
                }
                if (shared % 3 == 1) a.window_right = FA_NO_LIMIT;
                if (shared % 3 == 2) a.window_left = 30;
                a.block_kv = n % 3 == 1 ? 32 : 0;
                expect(what[dtype], &a);
            }
        }
    }
}

/* ---- Caches of ggml. ---- */

static void blocks_of_ggml(void) {
    static const int64_t dims[] = {32, 64, 96, 128, 256};
    for (size_t n = 0; n < COUNT(dims) * LAYOUTS * 2 * BLOCK_TYPES; n++) {
        enum layout layout = (enum layout)(n / 2 % LAYOUTS);
        int32_t k_type = block_types[n / 2 / LAYOUTS / COUNT(dims)], v_type = n % 7 == 6 ? block_types[n % BLOCK_TYPES] : k_type;
        struct types t = {FA_DTYPE_F32, k_type, v_type, FA_DTYPE_F32};
        if (n % 3 == 1) t.q = FA_DTYPE_Q8_0;
        fa_attention a = problem(t, layout, n % 2 == 0 ? 1 : MANY, fine);
        /* The same memory, with one head that has the rows of all, and gaps where rows are
         * shorter. */
        a.dim_qk = a.dim_v = dims[n / 2 / LAYOUTS % COUNT(dims)];
        a.heads_kv = 1;
        struct size q = {layout == RAGGED ? 1 : B, HQ, layout == RAGGED ? a.cu_len_q[B] : a.len_q, a.dim_qk};
        struct size k = {layout == RAGGED ? 1 : layout == PAGED ? PAGES : B, 1,
                         layout == RAGGED ? a.cu_len_kv[B] : layout == PAGED ? PAGE : KEYS, a.dim_qk};
        a.q = filled(t.q, q, false), a.k = filled(t.k, k, false), a.v = filled(t.v, k, false);
        a.o = room(t.o, q, false, 4);
        o_bytes = a.o.data, o_size = (size_t)(a.o.stride[0] * q.entries);
        /* A block of zeros has the scale 0. */
        memset(row_of(&a.v, 0, 0, 3), 0, (size_t)bytes_of_block(v_type));
        expect("ggml, causal", &a);
        a.window_left = 24;
        expect("ggml, sliding window", &a);
        a.window_left = a.window_right = FA_NO_LIMIT;
        expect("ggml, no window", &a);
        a.heads_q = 1;
        expect("ggml, one head", &a);
    }
}

int main(void) {
    mixtures();
    blocks_beside_others();
    granularities();
    not_a_number();
    outputs();
    masks();
    constants();
    blocks_of_ggml();
    forget();
    printf("%d problems, %d of them multiplied as bfloat16, too; %d numbers, %d conversions announced\n", problems,
           multiplied, results, converted);
    return check_result();
}
