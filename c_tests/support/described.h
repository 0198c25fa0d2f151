/* A valid fa_attention, and a table of changes to it. Each row names the status that the functions
 * fa_attention_check, _check_run, _plan, _workspace, _run, _part and _finish must return, and what
 * the words of _check must mention. A refused call must change nothing. */

#ifndef DESCRIBED_H
#define DESCRIBED_H

#include <stdalign.h>

#include "covered.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* All memory that a call is given, so that one comparison shows what it has changed. The gaps are
 * wider than the tensors, so that an output can be moved onto an input without touching another. */
enum { B = 2, HQ = 4, HKV = 2, LQ = 5, LKV = 9, DQK = 8, DV = 6, GAP = 4096 };
static struct {
    unsigned char before_q[GAP];
    float q[B * HQ * LQ * DQK];
    unsigned char before_k[GAP];
    float k[B * HKV * LKV * DQK];
    unsigned char before_v[GAP];
    float v[B * HKV * LKV * DV];
    unsigned char before_o[GAP];
    float o[B * HQ * LQ * DV];
    unsigned char before_lse[GAP];
    float lse[B * HQ * LQ];
    unsigned char before_weights[GAP];
    float weights[B * HQ * LQ * LKV];
    unsigned char end[GAP];
} arena, before;
/* A byte of it; for initialisers. */
#define AT(member, bytes) ((void *)((char *)arena.member + (bytes)))

/* A description, and what a later version may have behind it. */
static struct described {
    fa_attention a;
    unsigned char tail[64];
} good, described;

static inline void fill(void) {
    /* Any four of these bytes are a float between 0.01 and 0.2. */
    unsigned char *bytes = (unsigned char *)&arena;
    for (size_t i = 0; i < sizeof arena; i++) bytes[i] = (unsigned char)(0x3c + (i * 7 + i / 5) % 3);
    memcpy(&before, &arena, sizeof arena);
    memset(&good, 0, sizeof good);
    CHECK(fa_attention_init(&good.a, sizeof good.a) == FA_OK, "init");
    good.a.batch = B, good.a.heads_q = HQ, good.a.heads_kv = HKV;
    good.a.len_q = LQ, good.a.len_kv = LKV, good.a.dim_qk = DQK, good.a.dim_v = DV;
    /* [batch][token][head][dim]. */
    good.a.q = (fa_tensor){.data = arena.q, .stride = {LQ * HQ * DQK * 4, DQK * 4, HQ * DQK * 4}};
    good.a.k = (fa_tensor){.data = arena.k, .stride = {LKV * HKV * DQK * 4, DQK * 4, HKV * DQK * 4}};
    good.a.v = (fa_tensor){.data = arena.v, .stride = {LKV * HKV * DV * 4, DV * 4, HKV * DV * 4}};
    good.a.o = (fa_tensor){.data = arena.o, .stride = {LQ * HQ * DV * 4, DV * 4, HQ * DV * 4}};
    good.a.window_right = 0;
    good.a.lse = arena.lse;
    good.a.lse_stride[0] = HQ * LQ, good.a.lse_stride[1] = LQ, good.a.lse_stride[2] = 1;
}

/* ---- The table. ---- */

/* One field becomes an integer, a real number or a pointer. */
struct edit {
    enum { NOTHING, INTEGER, REAL, POINTER } kind;
    const char *field;
    size_t offset, size;
    int64_t n;
    float x;
    const void *p;
};

#define PLACE(field) #field, offsetof(fa_attention, field), sizeof(((fa_attention *)0)->field)
#define N(field, n) {INTEGER, PLACE(field), n, 0, NULL}
#define X(field, x) {REAL, PLACE(field), 0, x, NULL}
#define P(field, p) {POINTER, PLACE(field), 0, 0, p}
#define TAIL(i, n) {INTEGER, "tail", sizeof(fa_attention) + (i), 1, n, 0, NULL}
#define INTS(...) ((const int32_t[]){__VA_ARGS__})
#define ONE(x) ((const float[]){x})
/* 8-bit integers with scales. */
#define I8(t, scale, zero, batch, head, token, dim, tokens, dims)                               \
    {N(t.dtype, FA_DTYPE_I8),                                                                   \
     P(t.quant, (&(const fa_quant){scale, zero, {batch, head, token, dim}, tokens, dims}))}

struct row {
    const char *what;
    fa_status want;
    /* What the sentence must speak of; NULL if there is nothing wrong. */
    const char *word;
    struct edit edits[8];
};

#define TOO_MUCH ": more bytes than an address space holds"
#define BIT(n) ((int64_t)1 << (n))
/* The largest multiple of 4. */
#define MOST (INT64_MAX - 3)

/* Strides of elements that no tensor of f32 has, and the one that all have; before each, what else
 * its use needs. */
#define STRIDE_DIM(t, ...)                                                                      \
    {#t ".stride_dim 4", FA_OK, NULL, {__VA_ARGS__ N(t.stride_dim, 4)}},                        \
    {#t ".stride_dim 1", FA_ERR_STRIDE, #t ".stride_dim", {__VA_ARGS__ N(t.stride_dim, 1)}},    \
    {#t ".stride_dim 6", FA_ERR_STRIDE, #t ".stride_dim", {__VA_ARGS__ N(t.stride_dim, 6)}},    \
    {#t ".stride_dim -4", FA_ERR_STRIDE, #t ".stride_dim", {__VA_ARGS__ N(t.stride_dim, -4)}},  \
    {#t ".stride_dim INT32_MIN", FA_ERR_STRIDE, #t ".stride_dim", {__VA_ARGS__ N(t.stride_dim, INT32_MIN)}}, \
    {#t ".stride_dim INT32_MAX", FA_ERR_STRIDE, #t ".stride_dim", {__VA_ARGS__ N(t.stride_dim, INT32_MAX)}}

/* The same, of what has contiguous rows only. */
#define NO_STRIDE_DIM(t, ...)                                                                   \
    STRIDE_DIM(t, __VA_ARGS__),                                                                 \
    {#t ".stride_dim 8", FA_ERR_STRIDE, "only k and v", {__VA_ARGS__ N(t.stride_dim, 8)}}

/* Bytes of memory of a tensor that takes so many; before each, what else its use needs. */
#define BYTES(field, taken, ...)                                                                \
    {#field " 0", FA_OK, NULL, {__VA_ARGS__ N(field, 0)}},                                      \
    {#field " exact", FA_OK, NULL, {__VA_ARGS__ N(field, taken)}},                              \
    {#field " INT64_MAX", FA_OK, NULL, {__VA_ARGS__ N(field, INT64_MAX)}},                      \
    {#field " a byte too few", FA_ERR_SHAPE, #field " = ", {__VA_ARGS__ N(field, (taken) - 1)}}, \
    {#field " 1", FA_ERR_SHAPE, #field " = 1: fewer than", {__VA_ARGS__ N(field, 1)}},          \
    {#field " -1", FA_ERR_SHAPE, #field " = -1: negative", {__VA_ARGS__ N(field, -1)}},         \
    {#field " INT64_MIN", FA_ERR_SHAPE, "negative", {__VA_ARGS__ N(field, INT64_MIN)}}

/* Numbers for what has one of each, and granularities. */
#define MANY ((const float[64]){0})
#define QUANT_OF_ALL (&(const fa_quant){MANY, MANY, {0, 0, 0, 0}, 1, 1})
#define QUANT_OF_SCALES (&(const fa_quant){MANY, NULL, {0, 0, 0, 0}, 1, 1})
#define QUANT_OF_NOTHING (&(const fa_quant){0})

/* ---- The functions, with arguments of their own that are right. ---- */

enum { PARTS = 3 };
static alignas(64) unsigned char ws[1 << 20];
static size_t bytes_asked;

static inline fa_status check(const fa_attention *a) { return fa_attention_check(a, NULL, 0); }
static inline fa_status check_run(const fa_attention *a) {
    return fa_attention_check_run(a, ws, sizeof ws, NULL, NULL, 0);
}
static inline fa_status plan(const fa_attention *a) {
    fa_plan how = {.struct_size = sizeof how};
    return fa_attention_plan(a, PARTS, &how);
}
static inline fa_status workspace(const fa_attention *a) { return fa_attention_workspace(a, PARTS, &bytes_asked); }
static inline fa_status workspace_max(const fa_attention *a) {
    return fa_attention_workspace_max(a, PARTS, &bytes_asked);
}
static inline fa_status run(const fa_attention *a) { return fa_attention_run(a, ws, sizeof ws, NULL); }
static inline int32_t width(void *ctx) { return (void)ctx, PARTS; }
static inline fa_status run_on_pool(const fa_attention *a) {
    fa_pool pool = {.struct_size = sizeof pool, .width = width};
    return fa_attention_run(a, ws, sizeof ws, &pool);
}
static inline fa_status part(const fa_attention *a) { return fa_attention_part(a, ws, sizeof ws, PARTS - 1, PARTS); }
static inline fa_status finish(const fa_attention *a) { return fa_attention_finish(a, ws, sizeof ws, 0, PARTS); }

static const struct {
    const char *name;
    fa_status (*call)(const fa_attention *);
} functions[] = {
    {"check", check}, {"check_run", check_run}, {"plan", plan}, {"workspace", workspace}, {"workspace_max", workspace_max}, {"run", run},
    {"run on a pool", run_on_pool}, {"part", part}, {"finish", finish},
};

static inline void apply(struct edit e) {
    char *at = (char *)&described + e.offset;
    int32_t n32 = (int32_t)(uint32_t)(uint64_t)e.n;
    switch (e.kind) {
    case NOTHING: break;
    case REAL: memcpy(at, &e.x, sizeof e.x); break;
    case POINTER: memcpy(at, &e.p, sizeof e.p); break;
    case INTEGER:
        if (e.size == 8) memcpy(at, &e.n, 8);
        if (e.size == 4) memcpy(at, &n32, 4);
        if (e.size == 1) *at = (char)n32;
        break;
    }
}

static inline bool within(const void *at, const void *start, size_t n) {
    return (uintptr_t)at - (uintptr_t)start < n;
}

/* Whether nothing has changed; after a success, but for the outputs. */
static inline bool untouched(fa_status status) {
    const unsigned char *now = (const unsigned char *)&arena, *then = (const unsigned char *)&before;
    if (status != FA_OK) return memcmp(now, then, sizeof arena) == 0;
    for (size_t i = 0; i < sizeof arena; i++) {
        if (now[i] != then[i] && !within(&now[i], described.a.o.data, sizeof arena.o) &&
            !within(&now[i], described.a.lse, sizeof arena.lse) &&
            !(described.a.weights.data != NULL && within(&now[i], described.a.weights.data, sizeof arena.weights))) {
            return false;
        }
    }
    return true;
}

/* Whether a sentence has the number that alone is to blame; strides of plain arrays become
 * bytes. */
static inline bool has_number(const char *why, const struct row *row) {
    char number[32], bytes[32];
    struct edit e = row->edits[0];
    if (e.kind != INTEGER || row->edits[1].kind != NOTHING) return true;
    /* As the library reads it. */
    int64_t n = e.size == 4 ? (int32_t)e.n : e.n;
    if (e.offset == offsetof(fa_attention, struct_size) && n < 0) n = INT64_MAX;
    if (e.offset == offsetof(fa_attention, flags) || e.offset == offsetof(fa_attention, reserved0)) n = (uint32_t)n;
    snprintf(number, sizeof number, "%lld", (long long)n);
    snprintf(bytes, sizeof bytes, "%lld", (long long)((uint64_t)n * 4));
    return strstr(why, number) != NULL || strstr(why, bytes) != NULL;
}

/* What fa_attention_check says, in much room and in little. */
static inline void check_words(const struct row *row) {
    char why[300], small[12];
    memset(why, 'x', sizeof why), memset(small, 'x', sizeof small);
    CHECK(fa_attention_check(&described.a, why, sizeof why) == row->want, "%s", row->what);
    const char *end = memchr(why, '\0', sizeof why);
    size_t length = end != NULL ? (size_t)(end - why) : sizeof why;
    CHECK(length > 0 && length < sizeof why, "%s: %zu bytes of words", row->what, length);
    CHECK((row->word == NULL) == (row->want == FA_OK), "%s: words", row->what);
    CHECK(row->word == NULL || strstr(why, row->word) != NULL, "%s: no %s in \"%.*s\"", row->what, row->word,
          (int)length, why);
    char whole[sizeof why];
    CHECK(fa_attention_check_run(&described.a, ws, sizeof ws, NULL, whole, sizeof whole) == row->want &&
          (end == NULL || strcmp(whole, why) == 0), "%s: check_run says \"%s\"", row->what, whole);
    CHECK(row->want == FA_OK || has_number(why, row), "%s: no number in \"%.*s\"", row->what, (int)length, why);
    CHECK(fa_attention_check(&described.a, small, 0) == row->want && small[0] == 'x', "%s: no room", row->what);
    CHECK(fa_attention_check(&described.a, small, 1) == row->want && small[0] == '\0' && small[1] == 'x',
          "%s: one byte", row->what);
    CHECK(fa_attention_check(&described.a, small, 10) == row->want, "%s: ten bytes", row->what);
    CHECK(strlen(small) == (length < 9 ? length : 9) && strncmp(small, why, 9) == 0 && small[10] == 'x',
          "%s: \"%.12s\" of \"%s\"", row->what, small, why);
}

static inline void cover(const char *field, const char *kind, fa_status status) {
    char place[100];
    snprintf(place, sizeof place, "fa_attention.%s", field);
    covered(place, kind, status);
}

/* The granularity that a row has: only what its words are about is what is wrong with it. */
static inline void cover_quant(const struct row *row, struct edit e) {
    const fa_quant *g = e.p;
    const struct {
        const char *field, *kind;
    } fields[] = {
        {"scale", kind_of_pointer(g->scale)},
        {"zero", kind_of_pointer(g->zero)},
        {"stride[0]", kind_of_integer(g->stride[0], 8)},
        {"stride[1]", kind_of_integer(g->stride[1], 8)},
        {"stride[2]", kind_of_integer(g->stride[2], 8)},
        {"stride[3]", kind_of_integer(g->stride[3], 8)},
        {"group_tokens", kind_of_integer(g->group_tokens, 4)},
        {"group_dims", kind_of_integer(g->group_dims, 4)},
    };
    for (size_t i = 0; i < COUNT(fields); i++) {
        char field[50];
        snprintf(field, sizeof field, "%s.%s", e.field, fields[i].field);
        bool to_blame = row->want != FA_OK && strstr(row->word, field) != NULL;
        if (row->want == FA_OK || to_blame) cover(field, fields[i].kind, row->want);
    }
    if (row->want == FA_ERR_OVERLAP) {
        char field[50];
        snprintf(field, sizeof field, "%s.%s", e.field, g->scale != NULL ? "scale" : "zero");
        cover(field, "overlap", row->want);
    }
}

/* An output on an input: the input, too, has been tried. */
static inline void cover_other(const struct row *row) {
    static const char *const tensors[] = {"q", "k", "v", "mask"};
    const char *other = strstr(row->word, "with ") + strlen("with ");
    char field[50];
    snprintf(field, sizeof field, "%s", other);
    for (size_t i = 0; i < COUNT(tensors); i++) {
        if (strcmp(other, tensors[i]) == 0) snprintf(field, sizeof field, "%s.data", other);
    }
    if (strchr(field, ' ') == NULL && strcmp(field, "o") != 0) cover(field, "overlap", row->want);
}

/* What a row tries: a refusal counts for what the words are about, and for its last edit, which
 * spoils what those before have prepared. */
static inline void cover_row(const struct row *row) {
    if (row->want == FA_ERR_OVERLAP) cover_other(row);
    for (size_t i = 0; i < COUNT(row->edits) && row->edits[i].kind != NOTHING; i++) {
        struct edit e = row->edits[i];
        const char *end = strrchr(e.field, '.');
        if (e.kind == POINTER && e.p != NULL && end != NULL && strcmp(end, ".quant") == 0 && !within(e.p, &arena, sizeof arena)) {
            cover_quant(row, e);
        }
        bool last = i + 1 == COUNT(row->edits) || row->edits[i + 1].kind == NOTHING;
        bool named = row->want != FA_OK && strstr(row->word, e.field) != NULL;
        if (row->want == FA_ERR_OVERLAP && e.kind == POINTER) {
            cover(e.field, "overlap", row->want);
        } else if (row->want == FA_OK || last || named) {
            const char *kind = e.kind == REAL ? kind_of_real(e.x) : e.kind == POINTER ? kind_of_pointer(e.p)
                                                                   : kind_of_integer(e.n, e.size);
            cover(e.field, kind, row->want);
            if (row->want == FA_ERR_STRIDE && e.kind == INTEGER && e.n >= 0) cover(e.field, "small", row->want);
        }
    }
}

/* What main does with a table. */
static inline int check_rows(int argc, char **argv, const struct row *rows, size_t n) {
    int calls = 0;
    covered_begin(argc, argv);
    for (size_t r = 0; r < n; r++) {
        const struct row *row = &rows[r];
        cover_row(row);
        for (size_t f = 0; f < COUNT(functions); f++, calls++) {
            fill();
            described = good;
            for (size_t i = 0; i < COUNT(row->edits); i++) apply(row->edits[i]);
            struct described copy;
            memcpy(&copy, &described, sizeof copy);
            bytes_asked = 12345;

            fa_status got = functions[f].call(&described.a);

            CHECK(got == row->want, "%s, %s: %d (%s) instead of %d", functions[f].name, row->what, (int)got,
                  fa_status_string(got), (int)row->want);
            CHECK(untouched(got), "%s, %s: memory has changed", functions[f].name, row->what);
            CHECK(memcmp(&copy, &described, sizeof copy) == 0, "%s, %s: the description has changed",
                  functions[f].name, row->what);
            CHECK(got == FA_OK || bytes_asked == 12345, "%s, %s: bytes have changed", functions[f].name, row->what);
        }
        check_words(row);
    }
    printf("%zu descriptions in %d calls\n", n, calls);
    return check_result();
}

#endif
