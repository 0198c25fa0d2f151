/* What the functions of the general door refuse, with which code, and that a refusal changes nothing. */

#define _POSIX_C_SOURCE 200809L

#include <float.h>
#include <stdalign.h>

#include "check.h"

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
    unsigned char end[GAP];
} arena, before;
/* A byte of it; for initialisers. */
#define AT(member, bytes) ((void *)((char *)arena.member + (bytes)))

/* A description, and what a later version may have behind it. */
static struct described {
    fa_attention a;
    unsigned char tail[64];
} good, described;

static void fill(void) {
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
    size_t offset, size;
    int64_t n;
    float x;
    const void *p;
};

#define PLACE(field) offsetof(fa_attention, field), sizeof(((fa_attention *)0)->field)
#define N(field, n) {INTEGER, PLACE(field), n, 0, NULL}
#define X(field, x) {REAL, PLACE(field), 0, x, NULL}
#define P(field, p) {POINTER, PLACE(field), 0, 0, p}
#define TAIL(i, n) {INTEGER, sizeof(fa_attention) + (i), 1, n, 0, NULL}
#define INTS(...) ((const int32_t[]){__VA_ARGS__})
#define ONE(x) ((const float[]){x})
/* 8-bit integers with scales. */
#define I8(t, scale, zero, batch, head, token, dim, tokens, dims)                               \
    {N(t.dtype, FA_DTYPE_I8),                                                                   \
     P(t.quant, (&(const fa_quant){scale, zero, {batch, head, token, dim}, tokens, dims}))}

struct row {
    const char *what;
    fa_status want;
    /* What the sentence must speak of; NULL if no single number is to blame. */
    const char *word;
    struct edit edits[7];
};

/* Lists that an output can be moved onto: right as they are, and with room for it behind them. */
static int32_t zeros[GAP], starts[GAP] = {0, 5, 10}, page_starts[GAP] = {0, 1, 2};

#define BIT(n) ((int64_t)1 << (n))
/* The largest multiple of 4. */
#define MOST (INT64_MAX - 3)

#define NOT_NEGATIVE(field)                                                                     \
    {#field " -1", FA_ERR_SHAPE, #field, {N(field, -1)}},                                       \
    {#field " INT64_MIN", FA_ERR_SHAPE, #field, {N(field, INT64_MIN)}}

#define HUGE_SIZES(field)                                                                       \
    {#field " INT64_MAX", FA_ERR_OVERFLOW, NULL, {N(field, INT64_MAX)}},                        \
    {#field " 2^62", FA_ERR_OVERFLOW, NULL, {N(field, BIT(62))}},                               \
    {#field " 2^61", FA_ERR_OVERFLOW, NULL, {N(field, BIT(61))}}

/* One stride of a tensor. */
#define AXIS(t, axis)                                                                           \
    {#t ".stride -4", FA_ERR_STRIDE, #t ".stride[" #axis "]", {N(t.stride[axis], -4)}},         \
    {#t ".stride INT64_MIN", FA_ERR_STRIDE, #t ".stride[" #axis "]", {N(t.stride[axis], INT64_MIN)}}, \
    {#t ".stride 4098", FA_ERR_STRIDE, #t ".stride[" #axis "]", {N(t.stride[axis], 4098)}},     \
    {#t ".stride 4097", FA_ERR_STRIDE, #t ".stride[" #axis "]", {N(t.stride[axis], 4097)}},     \
    {#t ".stride 2^63", FA_ERR_OVERFLOW, NULL, {N(t.stride[axis], MOST)}}

#define TENSOR(t, rows)                                                                         \
    {#t " is NULL", FA_ERR_NULL, NULL, {P(t.data, NULL)}},                                      \
    AXIS(t, 0), AXIS(t, 1), AXIS(t, 2),                                                         \
    {#t ": 2^32 rows, 2^32 bytes apart", FA_ERR_OVERFLOW, NULL,                                 \
     {N(rows, BIT(32)), N(t.stride[2], BIT(32))}},                                              \
    {#t ": 2^32 rows, 2^31 bytes apart", FA_ERR_OVERFLOW, NULL,                                 \
     {N(rows, BIT(32) + 1), N(t.stride[2], BIT(31))}},                                          \
    {#t ": 2^32 entries, 2^32 bytes apart", FA_ERR_OVERFLOW, NULL,                              \
     {N(batch, BIT(32) + 1), N(t.stride[0], BIT(32))}},                                         \
    {#t ": 2^62 entries, 4 bytes apart", FA_ERR_OVERFLOW, NULL,                                 \
     {N(batch, BIT(62)), N(t.stride[0], 4)}},                                                   \
    {#t ".dtype 99", FA_ERR_DTYPE, #t ".dtype", {N(t.dtype, 99)}},                              \
    {#t ".dtype -1", FA_ERR_DTYPE, #t ".dtype", {N(t.dtype, -1)}},                              \
    {#t ".dtype INT32_MIN", FA_ERR_DTYPE, #t ".dtype", {N(t.dtype, INT32_MIN)}},                \
    {#t ".dtype INT32_MAX", FA_ERR_DTYPE, #t ".dtype", {N(t.dtype, INT32_MAX)}},                \
    {#t ".dtype BOOL8", FA_ERR_DTYPE, #t ".dtype", {N(t.dtype, FA_DTYPE_BOOL8)}},               \
    {#t ".quant is set", FA_ERR_DTYPE, "quant", {P(t.quant, AT(end, 0))}},                      \
    {#t ".reserved 1", FA_ERR_RESERVED, "reserved", {N(t.reserved, 1)}},                                \
    {#t ".reserved -1", FA_ERR_RESERVED, "reserved", {N(t.reserved, -1)}}

/* Inputs of other types than f32; their rows have `dim` elements. */
#define OTHER_TYPES(t, dim)                                                                     \
    HALF(t, F16), HALF(t, BF16),                                                                \
    {#t " Q8_0, a third of a block", FA_ERR_SHAPE, #t ".dtype", {N(t.dtype, FA_DTYPE_Q8_0), N(dim, 10)}}, \
    {#t " Q8_0, half a block more", FA_ERR_SHAPE, #t ".dtype", {N(t.dtype, FA_DTYPE_Q8_0), N(dim, 48)}}, \
    {#t " Q8_0, an element less", FA_ERR_SHAPE, #t ".dtype", {N(t.dtype, FA_DTYPE_Q8_0), N(dim, 31)}}, \
    ODD_Q8_0(t, dim, 0), ODD_Q8_0(t, dim, 1), ODD_Q8_0(t, dim, 2),                              \
    QUANT_ON(t, F32, dim, 8), QUANT_ON(t, F16, dim, 8), QUANT_ON(t, BF16, dim, 8),              \
    QUANT_ON(t, Q8_0, dim, 32)

#define HALF(t, type)                                                                           \
    {#t " " #type ", stride 482", FA_OK, NULL, {N(t.dtype, FA_DTYPE_##type), N(t.stride[0], 482)}},   \
    ODD(t, type, 0), ODD(t, type, 1), ODD(t, type, 2)

#define ODD(t, type, axis)                                                                      \
    {#t " " #type ", stride 4097", FA_ERR_STRIDE, #t ".stride[" #axis "]",                      \
     {N(t.dtype, FA_DTYPE_##type), N(t.stride[axis], 4097)}}

#define ODD_Q8_0(t, dim, axis)                                                                  \
    {#t " Q8_0, stride 4097", FA_ERR_STRIDE, #t ".stride[" #axis "]",                           \
     {N(t.dtype, FA_DTYPE_Q8_0), N(dim, 32), N(t.stride[axis], 4097)}}

#define QUANT_ON(t, type, dim, n)                                                               \
    {#t " " #type " with a scale", FA_ERR_DTYPE, #t ".dtype",                                   \
     {N(t.dtype, FA_DTYPE_##type), P(t.quant, &quant_of_all), N(dim, n)}},                      \
    {#t " " #type " with a quant that says nothing", FA_ERR_DTYPE, "quant",                     \
     {N(t.dtype, FA_DTYPE_##type), P(t.quant, &quant_of_nothing), N(dim, n)}}

/* Scales and zeros of an input. */
#define QUANT(t)                                                                                \
    {#t " I8", FA_OK, NULL, {N(t.dtype, FA_DTYPE_I8)}},                                         \
    {#t " I8, odd strides", FA_OK, NULL,                                                        \
     {N(t.dtype, FA_DTYPE_I8), N(t.stride[0], 1281), N(t.stride[1], 33)}},                      \
    {#t " with a scale", FA_OK, NULL, I8(t, ONE(0.5f), NULL, 0, 0, 0, 0, 1, 1)},                \
    {#t " with a zero", FA_OK, NULL, I8(t, NULL, ONE(-7.5f), 0, 0, 0, 0, 1, 1)},                \
    {#t " with neither", FA_OK, NULL, I8(t, NULL, NULL, 0, 0, 0, 0, 1, 1)},                     \
    {#t " with scales and zeros for all", FA_OK, NULL, I8(t, many, many, 1, 1, 1, 1, 1, 1)},    \
    {#t ", groups larger than all", FA_OK, NULL,                                                \
     I8(t, many, many, 1, 1, INT64_MAX, INT64_MAX, INT32_MAX, INT32_MAX)},                      \
    {#t ", groups of nothing", FA_OK, NULL, I8(t, many, many, 1, 1, 0, 0, 0, 0)},               \
    {#t ", groups of less than nothing", FA_OK, NULL, I8(t, many, NULL, 1, 1, 0, 0, -1, INT32_MIN)}, \
    {#t ", no groups of tokens", FA_OK, NULL, I8(t, many, many, 0, 0, 0, 1, INT32_MIN, 1)},     \
    {#t ", no groups of channels", FA_OK, NULL, I8(t, many, many, 0, 0, 1, 0, 1, -1)},          \
    NO_GROUP(t, FA_ERR_ZERO_EXTENT, 0), NO_GROUP(t, FA_ERR_SHAPE, -1), NO_GROUP(t, FA_ERR_SHAPE, INT32_MIN), \
    QUANT_AXIS(t, 0, FOR_ENTRY), QUANT_AXIS(t, 1, FOR_HEAD), QUANT_AXIS(t, 2, FOR_TOKEN),       \
    QUANT_AXIS(t, 3, FOR_CHANNEL),                                                              \
    {#t ": 2^61 scales", FA_ERR_OVERFLOW, #t, I8(t, many, NULL, BIT(60), BIT(60), 0, 0, 1, 1)}, \
    {#t ": 2^61 zeros", FA_ERR_OVERFLOW, #t, I8(t, NULL, many, 0, BIT(60), BIT(60), 0, 4, 1)},  \
    NO_NUMBER(t, NAN), NO_NUMBER(t, INFINITY), NO_NUMBER(t, -INFINITY)

#define NO_GROUP(t, want, n)                                                                    \
    {#t ", group_tokens " #n, want, #t ".quant.group_tokens", I8(t, many, many, 0, 0, 1, 1, n, 1)}, \
    {#t ", group_tokens " #n ", channels alike", want, #t ".quant.group_tokens",                    \
     I8(t, many, NULL, 0, 0, 1, 0, n, 0)},                                                      \
    {#t ", group_dims " #n, want, #t ".quant.group_dims", I8(t, many, many, 0, 0, 1, 1, 1, n)},     \
    {#t ", group_dims " #n ", tokens alike", want, #t ".quant.group_dims", I8(t, NULL, many, 0, 0, 0, 1, 0, n)}

#define I8_LIKE(...) I8(__VA_ARGS__)
#define FOR_ENTRY(n) n, 0, 0, 0, 1, 1
#define FOR_HEAD(n) 0, n, 0, 0, 1, 1
#define FOR_TOKEN(n) 0, 0, n, 0, 1, 1
#define FOR_CHANNEL(n) 0, 0, 0, n, 1, 1

#define QUANT_AXIS(t, axis, at)                                                                 \
    {#t ".quant.stride -1", FA_ERR_STRIDE, #t ".quant.stride[" #axis "]", I8_LIKE(t, many, many, at(-1))}, \
    {#t ".quant.stride INT64_MIN", FA_ERR_STRIDE, #t ".quant.stride[" #axis "]",                    \
     I8_LIKE(t, NULL, NULL, at(INT64_MIN))},                                                    \
    {#t ".quant.stride INT64_MAX", FA_ERR_OVERFLOW, #t, I8_LIKE(t, many, many, at(INT64_MAX))}, \
    {#t ".quant.stride 2^62", FA_ERR_OVERFLOW, #t, I8_LIKE(t, NULL, many, at(BIT(62)))},        \
    {#t ".quant.stride 2^61", FA_ERR_OVERFLOW, #t, I8_LIKE(t, many, NULL, at(BIT(61)))}

/* Refused where all elements share it, data where it is the first of several. */
#define NO_NUMBER(t, x)                                                                         \
    {#t ", one scale: " #x, FA_ERR_QUANT_SCALE, #t ".quant", I8(t, ONE(x), NULL, 0, 0, 0, 0, 1, 1)},   \
    {#t ", one zero: " #x, FA_ERR_QUANT_SCALE, #t ".quant", I8(t, ONE(1), ONE(x), 0, 0, 0, 0, 1, 1)},  \
    {#t ", one scale: " #x ", groups", FA_ERR_QUANT_SCALE, #t ".quant", I8(t, ONE(x), NULL, 0, 0, 0, 0, 3, 3)}, \
    {#t ", a token's scale: " #x, FA_OK, NULL, I8(t, FIRST(x), NULL, 0, 0, 1, 0, 1, 1)},        \
    {#t ", a token's zero: " #x, FA_OK, NULL, I8(t, NULL, FIRST(x), 0, 0, 1, 0, 1, 1)},         \
    {#t ", a channel's scale: " #x, FA_OK, NULL, I8(t, FIRST(x), NULL, 0, 0, 0, 1, 1, 1)},      \
    {#t ", a head's scale: " #x, FA_OK, NULL, I8(t, FIRST(x), NULL, 0, 1, 0, 0, 1, 1)},         \
    {#t ", an entry's zero: " #x, FA_OK, NULL, I8(t, NULL, FIRST(x), 1, 0, 0, 0, 1, 1)}
#define FIRST(x) ((const float[16]){x})

/* What is not an output, or not a mask. */
#define BLOCKS_OF_O N(dim_v, 32), N(o.stride[0], 2560), N(o.stride[1], 128), N(o.stride[2], 512)
#define MASK(type) P(mask.data, AT(q, 0)), N(mask.dtype, FA_DTYPE_##type)

/* Both outputs on the first and the last byte of an input. */
#define ONTO(t)                                                                                 \
    {"o is " #t, FA_ERR_OVERLAP, NULL, {P(o.data, AT(t, 0))}},                                  \
    {"o begins on the last byte of " #t, FA_ERR_OVERLAP, NULL, {P(o.data, AT(t, sizeof arena.t - 1))}}, \
    {"o begins behind " #t, FA_OK, NULL, {P(o.data, AT(t, sizeof arena.t))}},                   \
    {"o ends on the first byte of " #t, FA_ERR_OVERLAP, NULL, {P(o.data, AT(before_##t, GAP + 1 - sizeof arena.o))}}, \
    {"o ends before " #t, FA_OK, NULL, {P(o.data, AT(before_##t, GAP - sizeof arena.o))}},      \
    {"lse is " #t, FA_ERR_OVERLAP, NULL, {P(lse, AT(t, 0))}},                                   \
    {"lse begins on the last byte of " #t, FA_ERR_OVERLAP, NULL, {P(lse, AT(t, sizeof arena.t - 1))}}, \
    {"lse begins behind " #t, FA_OK, NULL, {P(lse, AT(t, sizeof arena.t))}},                    \
    {"lse ends on the first byte of " #t, FA_ERR_OVERLAP, NULL, {P(lse, AT(before_##t, GAP + 1 - sizeof arena.lse))}}, \
    {"lse ends before " #t, FA_OK, NULL, {P(lse, AT(before_##t, GAP - sizeof arena.lse))}}

/* The keys of both sequences as two pages. */
#define PAGES(table) P(block_table, table), N(table_stride, 1), N(page_size, LKV), N(num_pages, 2)
/* A page of three tokens is a third of that. */
#define SMALL_PAGES(table) P(block_table, table), N(table_stride, 3), N(page_size, 3), N(num_pages, 2)
#define LISTS(table, starts) P(block_table, table), P(block_table_start, starts), N(page_size, LKV), N(num_pages, 2)

/* Numbers behind the tensors, the same for every row. */
#define MASKED P(mask.data, AT(end, 0))
#define CELLS(data) P(block_mask, data), N(block_mask_q, 2), N(block_mask_kv, 4)

/* An output in the memory of something else. */
#define ALONE(what, list, ...)                                                                  \
    {"o is " what, FA_ERR_OVERLAP, NULL, {P(o.data, list), __VA_ARGS__}},                       \
    {"lse is " what, FA_ERR_OVERLAP, NULL, {P(lse, list), __VA_ARGS__}}

static const float many[64];
static const fa_quant quant_of_all = {many, many, {0, 0, 0, 0}, 1, 1}, quant_of_nothing;

static const struct row rows[] = {
    {"nothing wrong", FA_OK, NULL, {{0}}},

    {"struct_size 0", FA_ERR_STRUCT_SIZE, "struct_size", {N(struct_size, 0)}},
    {"struct_size 8", FA_ERR_STRUCT_SIZE, "struct_size", {N(struct_size, 8)}},
    {"struct_size -1", FA_ERR_STRUCT_SIZE, "struct_size", {N(struct_size, sizeof(fa_attention) - 1)}},
    {"struct_size 2^20", FA_ERR_STRUCT_SIZE, "struct_size", {N(struct_size, 1 << 20)}},
    {"struct_size 2^64 - 1", FA_ERR_STRUCT_SIZE, "struct_size", {N(struct_size, -1)}},
    {"struct_size + 1", FA_OK, NULL, {N(struct_size, sizeof(fa_attention) + 1)}},
    {"struct_size + 64", FA_OK, NULL, {N(struct_size, sizeof(struct described))}},
    {"struct_size + 64, first byte set", FA_ERR_STRUCT_SIZE, "struct_size",
     {N(struct_size, sizeof(struct described)), TAIL(0, 1)}},
    {"struct_size + 64, last byte set", FA_ERR_STRUCT_SIZE, "struct_size",
     {N(struct_size, sizeof(struct described)), TAIL(63, 0x80)}},
    {"struct_size + 63, the byte behind it set", FA_OK, NULL,
     {N(struct_size, sizeof(struct described) - 1), TAIL(63, 0x80)}},

    {"flags 2^30", FA_ERR_RESERVED, "flags", {N(flags, BIT(30))}},
    {"flags 2^31", FA_ERR_RESERVED, "flags", {N(flags, BIT(31))}},
    {"reserved0 1", FA_ERR_RESERVED, "reserved0", {N(reserved0, 1)}},
    {"reserved0 2^31", FA_ERR_RESERVED, "reserved0", {N(reserved0, BIT(31))}},

    {"batch 0", FA_ERR_ZERO_EXTENT, "batch", {N(batch, 0)}},
    {"heads_q 0", FA_ERR_ZERO_EXTENT, "heads_q", {N(heads_q, 0)}},
    {"heads_kv 0", FA_ERR_ZERO_EXTENT, "heads_kv", {N(heads_kv, 0)}},
    {"len_q 0", FA_OK, NULL, {N(len_q, 0)}},
    {"len_kv 0", FA_OK, NULL, {N(len_kv, 0)}},
    {"dim_qk 0", FA_ERR_ZERO_EXTENT, "dim_qk", {N(dim_qk, 0)}},
    {"dim_v 0", FA_ERR_ZERO_EXTENT, "dim_v", {N(dim_v, 0)}},
    NOT_NEGATIVE(batch), NOT_NEGATIVE(heads_q), NOT_NEGATIVE(heads_kv), NOT_NEGATIVE(len_q),
    NOT_NEGATIVE(len_kv), NOT_NEGATIVE(dim_qk), NOT_NEGATIVE(dim_v), NOT_NEGATIVE(block_q),
    NOT_NEGATIVE(block_kv),
    HUGE_SIZES(batch), HUGE_SIZES(len_q), HUGE_SIZES(len_kv), HUGE_SIZES(dim_qk), HUGE_SIZES(dim_v),
    {"heads_q 2^62", FA_ERR_OVERFLOW, NULL, {N(heads_q, BIT(62))}},
    {"heads INT64_MAX", FA_ERR_OVERFLOW, NULL, {N(heads_q, INT64_MAX), N(heads_kv, INT64_MAX)}},
    {"heads_kv 2^62", FA_ERR_OVERFLOW, NULL,
     {N(heads_q, BIT(62)), N(heads_kv, BIT(62)), N(q.stride[1], 0), N(o.stride[1], 0)}},
    {"3 heads on 2", FA_ERR_SHAPE, "heads_q", {N(heads_q, 3)}},
    {"4 heads on 3", FA_ERR_SHAPE, "heads_kv", {N(heads_kv, 3)}},
    {"4 heads on 8", FA_ERR_SHAPE, "heads_kv", {N(heads_kv, 8)}},

    TENSOR(q, len_q), TENSOR(k, len_kv), TENSOR(v, len_kv), TENSOR(o, len_q),

    OTHER_TYPES(q, dim_qk), OTHER_TYPES(k, dim_qk), OTHER_TYPES(v, dim_v),
    {"k Q8_0", FA_OK, NULL, {N(k.dtype, FA_DTYPE_Q8_0), N(dim_qk, 32)}},
    {"k Q8_0, stride 4098", FA_OK, NULL, {N(k.dtype, FA_DTYPE_Q8_0), N(dim_qk, 32), N(k.stride[0], 4098)}},
    QUANT(q), QUANT(k), QUANT(v),
    {"one entry, the stride of its scales huge", FA_OK, NULL,
     {N(batch, 1), N(k.dtype, FA_DTYPE_I8),
      P(k.quant, (&(const fa_quant){many, many, {INT64_MAX, 1, 0, 0}, 0, 0}))}},

    HALF(o, F16), HALF(o, BF16), QUANT_ON(o, F32, dim_v, DV), QUANT_ON(o, F16, dim_v, DV),
    QUANT_ON(o, BF16, dim_v, DV),
    {"o I8", FA_ERR_DTYPE, "o.dtype", {N(o.dtype, FA_DTYPE_I8)}},
    {"o is the scales of k", FA_ERR_OVERLAP, NULL,
     {N(k.dtype, FA_DTYPE_I8), P(k.quant, &(const fa_quant){.scale = arena.o})}},
    {"lse is the zeros of v", FA_ERR_OVERLAP, NULL,
     {N(v.dtype, FA_DTYPE_I8), P(v.quant, &(const fa_quant){.zero = arena.lse})}},
    {"o I8 with a scale", FA_ERR_DTYPE, "o.dtype", {N(o.dtype, FA_DTYPE_I8), P(o.quant, &quant_of_all)}},
    {"o Q8_0", FA_ERR_DTYPE, "o.dtype", {N(o.dtype, FA_DTYPE_Q8_0), BLOCKS_OF_O}},
    {"o Q8_0, not of whole blocks", FA_ERR_SHAPE, "o.dtype", {N(o.dtype, FA_DTYPE_Q8_0)}},
    {"rows of o F16 overlap", FA_ERR_STRIDE, NULL, {N(o.dtype, FA_DTYPE_F16), N(o.stride[1], DV * 2 - 2)}},
    {"rows of o F16 touch", FA_OK, NULL, {N(o.dtype, FA_DTYPE_F16), N(o.stride[1], DV * 2)}},

    {"mask F16", FA_OK, NULL, {MASK(F16)}},
    {"mask BF16", FA_OK, NULL, {MASK(BF16)}},
    {"mask I8", FA_ERR_DTYPE, "mask.dtype", {MASK(I8)}},
    {"mask I8 with a scale", FA_ERR_DTYPE, "mask.dtype", {MASK(I8), P(mask.quant, &quant_of_all)}},
    {"mask Q8_0", FA_ERR_DTYPE, "mask.dtype", {MASK(Q8_0)}},
    {"mask Q8_0, whole blocks", FA_ERR_DTYPE, "mask.dtype", {MASK(Q8_0), N(len_kv, 32)}},
    {"mask.dtype 99", FA_ERR_DTYPE, "mask.dtype", {P(mask.data, AT(q, 0)), N(mask.dtype, 99)}},
    {"mask F32 with a scale", FA_ERR_DTYPE, "mask.dtype", {MASK(F32), P(mask.quant, &quant_of_all)}},
    {"mask F16 with a scale", FA_ERR_DTYPE, "quant", {MASK(F16), P(mask.quant, &quant_of_all)}},
    {"mask BF16 with a quant of nothing", FA_ERR_DTYPE, "quant", {MASK(BF16), P(mask.quant, &quant_of_nothing)}},
    {"mask BOOL8 with a scale", FA_ERR_DTYPE, "quant", {MASK(BOOL8), P(mask.quant, &quant_of_all)}},
    {"mask F16, stride 2", FA_OK, NULL, {MASK(F16), N(mask.stride[2], 2)}},
    {"mask F16, stride 17", FA_ERR_STRIDE, "mask.stride[2]", {MASK(F16), N(mask.stride[2], 17)}},
    {"mask BF16, stride 17", FA_ERR_STRIDE, "mask.stride[1]", {MASK(BF16), N(mask.stride[1], 17)}},
    {"mask F32, stride 18", FA_ERR_STRIDE, "mask.stride[0]", {MASK(F32), N(mask.stride[0], 18)}},
    {"mask BOOL8, stride 17", FA_OK, NULL, {MASK(BOOL8), N(mask.stride[2], 17)}},

    {"no queries, q and o NULL", FA_OK, NULL, {N(len_q, 0), P(q.data, NULL), P(o.data, NULL)}},
    {"no keys, k and v NULL", FA_OK, NULL, {N(len_kv, 0), P(k.data, NULL), P(v.data, NULL)}},
    {"no keys, q NULL", FA_ERR_NULL, NULL, {N(len_kv, 0), P(q.data, NULL)}},
    {"no keys, o NULL", FA_ERR_NULL, NULL, {N(len_kv, 0), P(o.data, NULL)}},
    {"no queries, k NULL", FA_ERR_NULL, NULL, {N(len_q, 0), P(k.data, NULL)}},
    {"no queries, batch 0", FA_ERR_ZERO_EXTENT, "batch", {N(len_q, 0), N(batch, 0)}},
    {"no queries, scale NaN", FA_ERR_SOFTMAX_SCALE, "scale", {N(len_q, 0), X(scale, NAN)}},
    {"one entry, its stride huge", FA_OK, NULL, {N(batch, 1), N(q.stride[0], MOST), N(o.stride[0], MOST)}},

    {"q repeated", FA_OK, NULL, {N(q.stride[0], 0), N(q.stride[1], 0), N(q.stride[2], 0)}},
    {"k repeated", FA_OK, NULL, {N(k.stride[0], 0), N(k.stride[1], 0), N(k.stride[2], 0)}},
    {"v repeated", FA_OK, NULL, {N(v.stride[0], 0), N(v.stride[1], 0), N(v.stride[2], 0)}},
    {"entries of o on one another", FA_ERR_STRIDE, NULL, {N(o.stride[0], 0)}},
    {"entries of o overlap", FA_ERR_STRIDE, NULL, {N(o.stride[0], LQ * HQ * DV * 4 - 4)}},
    {"heads of o on one another", FA_ERR_STRIDE, NULL, {N(o.stride[1], 0)}},
    {"heads of o overlap", FA_ERR_STRIDE, NULL, {N(o.stride[1], DV * 4 - 4)}},
    {"rows of o on one another", FA_ERR_STRIDE, NULL, {N(o.stride[2], 0)}},
    {"rows of o overlap", FA_ERR_STRIDE, NULL, {N(o.stride[2], HQ * DV * 4 - 4)}},
    {"one row of o, its stride 0", FA_OK, NULL, {N(len_q, 1), N(o.stride[2], 0)}},

    {"scale NaN", FA_ERR_SOFTMAX_SCALE, "scale", {X(scale, NAN)}},
    {"scale +inf", FA_ERR_SOFTMAX_SCALE, "scale", {X(scale, INFINITY)}},
    {"scale -inf", FA_ERR_SOFTMAX_SCALE, "scale", {X(scale, -INFINITY)}},
    {"scale FLT_MAX", FA_ERR_SOFTMAX_SCALE, "scale", {X(scale, FLT_MAX)}},
    {"scale -FLT_MAX", FA_ERR_SOFTMAX_SCALE, "scale", {X(scale, -FLT_MAX)}},
    {"scale 0.69 FLT_MAX", FA_OK, NULL, {X(scale, 0.69f * FLT_MAX)}},
    {"scale < 0", FA_OK, NULL, {X(scale, -1)}},
    {"scale denormal", FA_OK, NULL, {X(scale, FLT_MIN / 4)}},

    {"q_pos INT64_MIN + 1", FA_OK, NULL, {N(q_pos, INT64_MIN + 1)}},
    {"q_pos INT64_MAX - 100", FA_OK, NULL, {N(q_pos, INT64_MAX - 100)}},
    {"window_left -2", FA_ERR_WINDOW, "window_left", {N(window_left, -2)}},
    {"window_left INT64_MIN", FA_ERR_WINDOW, "window_left", {N(window_left, INT64_MIN)}},
    {"window_right -2", FA_ERR_WINDOW, "window_right", {N(window_right, -2)}},
    {"window_right INT64_MIN", FA_ERR_WINDOW, "window_right", {N(window_right, INT64_MIN)}},
    {"windows INT64_MAX", FA_OK, NULL, {N(window_left, INT64_MAX), N(window_right, INT64_MAX)}},
    {"windows and q_pos huge", FA_OK, NULL,
     {N(window_left, INT64_MAX), N(window_right, INT64_MAX), N(q_pos, INT64_MAX - 100)}},
    {"windows huge, q_pos tiny", FA_OK, NULL,
     {N(window_left, INT64_MAX), N(window_right, INT64_MAX), N(q_pos, INT64_MIN + 1)}},

    {"cu_len_q", FA_OK, NULL, {P(cu_len_q, INTS(0, 5, 10)), P(lse, NULL)}},
    {"cu_len_q: heads of lse overlap", FA_ERR_STRIDE, NULL, {P(cu_len_q, INTS(0, 5, 10))}},
    {"cu_len_q: no rows", FA_OK, NULL, {P(cu_len_q, INTS(3, 3, 3))}},
    {"cu_len_q: two entries in the space of one", FA_OK, NULL, {P(cu_len_q, INTS(1, 4, 5)), N(o.stride[0], 0)}},
    {"cu_len_q decreases", FA_ERR_LENGTHS, "cu_len_q", {P(cu_len_q, INTS(0, 4, 3))}},
    {"cu_len_q decreases to 0", FA_ERR_LENGTHS, "cu_len_q", {P(cu_len_q, INTS(5, 5, 0))}},
    {"cu_len_q falls and rises", FA_ERR_LENGTHS, "cu_len_q", {P(cu_len_q, INTS(4, 0, 5))}},
    {"cu_len_q falls between its ends", FA_ERR_LENGTHS, "cu_len_q",
     {P(cu_len_q, INTS(0, 4, 2, 5)), N(batch, 3), N(k.stride[0], 0), N(v.stride[0], 0)}},
    {"cu_len_q from -1", FA_ERR_LENGTHS, "cu_len_q", {P(cu_len_q, INTS(-1, 2, 4))}},
    {"cu_len_q to -1", FA_ERR_LENGTHS, "cu_len_q", {P(cu_len_q, INTS(0, 0, -1))}},
    {"cu_len_q all negative", FA_ERR_LENGTHS, "cu_len_q", {P(cu_len_q, INTS(-3, -2, -1))}},
    {"cu_len_q from INT32_MIN to INT32_MAX", FA_ERR_LENGTHS, "cu_len_q",
     {P(cu_len_q, INTS(INT32_MIN, 0, INT32_MAX))}},
    {"cu_len_q: first of 6", FA_ERR_LENGTHS, "cu_len_q", {P(cu_len_q, INTS(0, 6, 7))}},
    {"cu_len_q: last of 6", FA_ERR_LENGTHS, "cu_len_q", {P(cu_len_q, INTS(0, 1, 7))}},
    {"cu_len_q: of INT32_MAX", FA_ERR_LENGTHS, "cu_len_q", {P(cu_len_q, INTS(0, 0, INT32_MAX))}},
    {"cu_len_q: of 1, but len_q 0", FA_ERR_LENGTHS, "cu_len_q", {P(cu_len_q, INTS(0, 0, 1)), N(len_q, 0)}},
    {"cu_len_kv", FA_OK, NULL, {P(cu_len_kv, INTS(0, 9, 18))}},
    {"cu_len_kv: no keys", FA_OK, NULL, {P(cu_len_kv, INTS(3, 3, 3))}},
    {"cu_len_kv decreases", FA_ERR_LENGTHS, "cu_len_kv", {P(cu_len_kv, INTS(0, 4, 3))}},
    {"cu_len_kv from -1", FA_ERR_LENGTHS, "cu_len_kv", {P(cu_len_kv, INTS(-1, 2, 4))}},
    {"cu_len_kv to INT32_MIN", FA_ERR_LENGTHS, "cu_len_kv", {P(cu_len_kv, INTS(0, 0, INT32_MIN))}},
    {"cu_len_kv: first of 10", FA_ERR_LENGTHS, "cu_len_kv", {P(cu_len_kv, INTS(0, 10, 10))}},
    {"cu_len_kv: last of 10", FA_ERR_LENGTHS, "cu_len_kv", {P(cu_len_kv, INTS(0, 0, 10))}},
    {"kv_lens", FA_OK, NULL, {P(kv_lens, INTS(9, 0))}},
    {"kv_lens -1", FA_ERR_LENGTHS, "kv_lens[0]", {P(kv_lens, INTS(-1, 3))}},
    {"kv_lens INT32_MIN", FA_ERR_LENGTHS, "kv_lens[1]", {P(kv_lens, INTS(3, INT32_MIN))}},
    {"kv_lens 10", FA_ERR_LENGTHS, "kv_lens[1]", {P(kv_lens, INTS(3, 10))}},
    {"kv_lens INT32_MAX", FA_ERR_LENGTHS, "kv_lens[0]", {P(kv_lens, INTS(INT32_MAX, 3))}},
    {"kv_lens 1 of none", FA_ERR_LENGTHS, "kv_lens[0]", {P(kv_lens, INTS(1, 0)), N(len_kv, 0)}},
    {"kv_lens 4 of 3", FA_ERR_LENGTHS, "kv_lens[0]", {P(cu_len_kv, INTS(0, 3, 9)), P(kv_lens, INTS(4, 6))}},

    {"pages", FA_OK, NULL, {PAGES(INTS(1, 0))}},
    {"a page twice", FA_OK, NULL, {PAGES(INTS(1, 1))}},
    {"page num_pages", FA_ERR_PAGE, "block_table[1]", {PAGES(INTS(0, 2))}},
    {"page INT32_MAX", FA_ERR_PAGE, "block_table[0]", {PAGES(INTS(INT32_MAX, 0))}},
    {"page -1", FA_ERR_PAGE, "block_table[0]", {PAGES(INTS(-1, 0))}},
    {"page INT32_MIN", FA_ERR_PAGE, "block_table[1]", {PAGES(INTS(1, INT32_MIN))}},
    {"the last page of the last sequence", FA_ERR_PAGE, "block_table[5]", {SMALL_PAGES(INTS(0, 1, 0, 1, 0, 2))}},
    {"pages that no key needs", FA_OK, NULL,
     {SMALL_PAGES(INTS(0, 1, -1, 1, 2, INT32_MIN)), P(kv_lens, INTS(6, 3))}},
    {"no page at all", FA_OK, NULL, {PAGES(INTS(2, -1)), P(kv_lens, INTS(0, 0)), N(num_pages, 0)}},
    {"a key too many for the pages", FA_ERR_LENGTHS, "pages", {SMALL_PAGES(INTS(0, 0, 0, 0, 0, 0)), N(table_stride, 2)}},
    {"kv_lens 10 in pages", FA_ERR_LENGTHS, "kv_lens[1]", {PAGES(INTS(0, 1)), P(kv_lens, INTS(9, 10))}},
    {"kv_lens -1 in pages", FA_ERR_LENGTHS, "kv_lens[0]", {PAGES(INTS(0, 1)), P(kv_lens, INTS(-1, 9))}},
    {"lists of pages", FA_OK, NULL, {LISTS(INTS(0, 1, 1, 0), INTS(1, 2, 4))}},
    {"a list too short", FA_ERR_LENGTHS, "pages", {LISTS(INTS(0, 1), INTS(0, 0, 1))}},
    {"lists out of order", FA_ERR_LENGTHS, "block_table_start", {LISTS(INTS(0, 1), INTS(1, 0, 2))}},
    {"a list that ends behind the last", FA_ERR_LENGTHS, "block_table_start", {LISTS(INTS(0, 1), INTS(0, 2, 1))}},
    {"a list from -1", FA_ERR_LENGTHS, "block_table_start", {LISTS(INTS(0, 1), INTS(-1, 1, 2))}},
    {"lists to -1", FA_ERR_LENGTHS, "block_table_start", {LISTS(INTS(0, 1), INTS(0, 1, -1))}},
    {"page_size 0", FA_ERR_ZERO_EXTENT, "page_size", {PAGES(INTS(0, 1)), N(page_size, 0)}},
    {"page_size -1", FA_ERR_SHAPE, "page_size", {PAGES(INTS(0, 1)), N(page_size, -1)}},
    {"num_pages -1", FA_ERR_SHAPE, "num_pages", {PAGES(INTS(0, 1)), N(num_pages, -1)}},
    {"num_pages 2^62", FA_ERR_OVERFLOW, NULL, {PAGES(INTS(0, 1)), N(num_pages, BIT(62))}},
    {"table_stride -1", FA_ERR_SHAPE, "table_stride", {PAGES(INTS(0, 1)), N(table_stride, -1)}},
    {"table_stride 2^62", FA_ERR_OVERFLOW, NULL, {PAGES(INTS(0, 1)), N(table_stride, BIT(62))}},
    {"block_table_start without a table", FA_ERR_NULL, "block_table_start", {P(block_table_start, INTS(0, 1, 2))}},
    {"cu_len_kv and pages", FA_ERR_SHAPE, "cu_len_kv", {PAGES(INTS(0, 1)), P(cu_len_kv, INTS(0, 9, 18))}},

    {"softcap", FA_OK, NULL, {X(softcap, 30)}},
    {"softcap -1", FA_ERR_SOFTCAP, "softcap", {X(softcap, -1)}},
    {"softcap NaN", FA_ERR_SOFTCAP, "softcap", {X(softcap, NAN)}},
    {"softcap +inf", FA_ERR_SOFTCAP, "softcap", {X(softcap, INFINITY)}},
    {"softcap -inf", FA_ERR_SOFTCAP, "softcap", {X(softcap, -INFINITY)}},

    {"mask", FA_OK, NULL, {MASKED}},
    {"mask of bytes", FA_OK, NULL, {MASKED, N(mask.dtype, FA_DTYPE_BOOL8), N(mask.stride[2], LKV)}},
    {"mask.stride -4", FA_ERR_STRIDE, "mask.stride[0]", {MASKED, N(mask.stride[0], -4)}},
    {"mask.stride 4098", FA_ERR_STRIDE, "mask.stride[2]", {MASKED, N(mask.stride[2], 4098)}},
    {"mask.stride 2^63", FA_ERR_OVERFLOW, NULL, {MASKED, N(mask.stride[1], MOST)}},
    {"mask.dtype I8", FA_ERR_DTYPE, "mask.dtype", {MASKED, N(mask.dtype, FA_DTYPE_I8)}},
    {"mask.dtype 99", FA_ERR_DTYPE, "mask.dtype", {MASKED, N(mask.dtype, 99)}},
    {"mask.reserved 1", FA_ERR_RESERVED, "mask", {MASKED, N(mask.reserved, 1)}},
    {"flags 4", FA_ERR_RESERVED, "flags", {N(flags, 4)}},
    {"slopes times mask", FA_OK, NULL, {N(flags, FA_MASK_TIMES_SLOPE), MASKED, P(alibi_slopes, AT(end, 0))}},
    {"no slopes times mask", FA_ERR_SHAPE, "FA_MASK_TIMES_SLOPE", {N(flags, FA_MASK_TIMES_SLOPE), MASKED}},
    {"slopes times no mask", FA_ERR_SHAPE, "FA_MASK_TIMES_SLOPE",
     {N(flags, FA_MASK_TIMES_SLOPE), P(alibi_slopes, AT(end, 0))}},
    {"slopes times bytes", FA_ERR_SHAPE, "FA_MASK_TIMES_SLOPE",
     {N(flags, FA_MASK_TIMES_SLOPE), MASKED, N(mask.dtype, FA_DTYPE_BOOL8), P(alibi_slopes, AT(end, 0))}},
    {"alibi_batch_stride -1", FA_ERR_STRIDE, "alibi_batch_stride",
     {P(alibi_slopes, AT(end, 0)), N(alibi_batch_stride, -1)}},
    {"alibi_batch_stride INT64_MAX", FA_ERR_OVERFLOW, NULL,
     {P(alibi_slopes, AT(end, 0)), N(alibi_batch_stride, INT64_MAX)}},
    {"alibi_batch_stride 2^62, 5 sequences", FA_ERR_OVERFLOW, NULL,
     {P(alibi_slopes, AT(end, 0)), N(alibi_batch_stride, BIT(62)), N(batch, 5), N(o.stride[0], 1 << 20),
      N(lse_stride[0], 1 << 20)}},
    {"block_mask", FA_OK, NULL, {CELLS(AT(end, 0))}},
    {"block_mask_q 0", FA_ERR_ZERO_EXTENT, "block_mask_q", {CELLS(AT(end, 0)), N(block_mask_q, 0)}},
    {"block_mask_kv 0", FA_ERR_ZERO_EXTENT, "block_mask_kv", {CELLS(AT(end, 0)), N(block_mask_kv, 0)}},
    {"block_mask_q -1", FA_ERR_SHAPE, "block_mask_q", {CELLS(AT(end, 0)), N(block_mask_q, -1)}},
    {"block_mask_kv -1", FA_ERR_SHAPE, "block_mask_kv", {CELLS(AT(end, 0)), N(block_mask_kv, -1)}},
    {"block_mask_stride -1", FA_ERR_STRIDE, "block_mask_stride[1]",
     {CELLS(AT(end, 0)), N(block_mask_stride[1], -1)}},
    {"block_mask_stride INT64_MAX", FA_ERR_OVERFLOW, NULL, {CELLS(AT(end, 0)), N(block_mask_stride[2], INT64_MAX)}},

    {"mask is o", FA_ERR_OVERLAP, NULL, {P(mask.data, AT(o, 0))}},
    {"mask is lse", FA_ERR_OVERLAP, NULL, {P(mask.data, AT(lse, 0))}},
    {"block_mask is o", FA_ERR_OVERLAP, NULL, {CELLS(AT(o, 0))}},
    {"block_mask is lse", FA_ERR_OVERLAP, NULL, {CELLS(AT(lse, 0))}},
    {"slopes are o", FA_ERR_OVERLAP, NULL, {P(alibi_slopes, AT(o, 0))}},
    {"slopes are lse", FA_ERR_OVERLAP, NULL, {P(alibi_slopes, AT(lse, 0))}},
    {"sinks are o", FA_ERR_OVERLAP, NULL, {P(sinks, AT(o, 0))}},
    {"sinks are lse", FA_ERR_OVERLAP, NULL, {P(sinks, AT(lse, 0))}},
    ALONE("kv_lens", zeros, P(kv_lens, zeros)),
    ALONE("cu_len_kv", zeros, P(cu_len_kv, zeros)),
    ALONE("cu_len_q", starts, P(cu_len_q, starts), N(lse_stride[1], 2 * LQ)),
    ALONE("block_table", zeros, PAGES(zeros)),
    ALONE("block_table_start", page_starts, LISTS(INTS(0, 1), page_starts)),

    {"no lse, its strides 0", FA_OK, NULL, {P(lse, NULL), N(lse_stride[0], 0), N(lse_stride[1], 0)}},
    {"lse_stride[0] -1", FA_ERR_STRIDE, "lse_stride[0]", {N(lse_stride[0], -1)}},
    {"lse_stride[1] -1", FA_ERR_STRIDE, "lse_stride[1]", {N(lse_stride[1], -1)}},
    {"lse_stride[2] -1", FA_ERR_STRIDE, "lse_stride[2]", {N(lse_stride[2], -1)}},
    {"lse_stride[0] 0", FA_ERR_STRIDE, NULL, {N(lse_stride[0], 0)}},
    {"lse_stride[1] 0", FA_ERR_STRIDE, NULL, {N(lse_stride[1], 0)}},
    {"lse_stride[2] 0", FA_ERR_STRIDE, NULL, {N(lse_stride[2], 0)}},
    {"lse_stride[0] too small", FA_ERR_STRIDE, NULL, {N(lse_stride[0], HQ * LQ - 1)}},
    {"lse_stride[1] too small", FA_ERR_STRIDE, NULL, {N(lse_stride[1], LQ - 1)}},
    {"lse_stride[0] INT64_MAX", FA_ERR_OVERFLOW, NULL, {N(lse_stride[0], INT64_MAX)}},
    {"lse_stride[1] INT64_MAX / 4", FA_ERR_OVERFLOW, NULL, {N(lse_stride[1], INT64_MAX / 4)}},
    {"lse_stride[2] 2^62", FA_ERR_OVERFLOW, NULL, {N(lse_stride[2], BIT(62))}},

    {"block_q 1", FA_OK, NULL, {N(block_q, 1)}},
    {"block_q INT64_MAX", FA_OK, NULL, {N(block_q, INT64_MAX)}},
    {"block_kv 1", FA_OK, NULL, {N(block_kv, 1)}},
    {"block_kv INT64_MAX", FA_OK, NULL, {N(block_kv, INT64_MAX)}},

    ONTO(q), ONTO(k), ONTO(v),
    {"lse is o", FA_ERR_OVERLAP, NULL, {P(lse, AT(o, 0))}},
    {"lse begins on the last byte of o", FA_ERR_OVERLAP, NULL, {P(lse, AT(o, sizeof arena.o - 1))}},
    {"v is k", FA_OK, NULL, {P(v.data, AT(k, 0))}},
    {"no queries, o is k", FA_OK, NULL, {N(len_q, 0), P(o.data, AT(k, 0))}},
};

/* ---- The functions, with arguments of their own that are right. ---- */

enum { PARTS = 3 };
static alignas(64) unsigned char ws[1 << 20];
static size_t bytes_asked;

static fa_status check(const fa_attention *a) { return fa_attention_check(a, NULL, 0); }
static fa_status workspace(const fa_attention *a) { return fa_attention_workspace(a, PARTS, &bytes_asked); }
static fa_status run(const fa_attention *a) { return fa_attention_run(a, ws, sizeof ws, NULL); }
static int32_t width(void *ctx) { return (void)ctx, PARTS; }
static fa_status run_on_pool(const fa_attention *a) {
    fa_pool pool = {.struct_size = sizeof pool, .width = width};
    return fa_attention_run(a, ws, sizeof ws, &pool);
}
static fa_status part(const fa_attention *a) { return fa_attention_part(a, ws, sizeof ws, PARTS - 1, PARTS); }
static fa_status finish(const fa_attention *a) { return fa_attention_finish(a, ws, sizeof ws, 0, PARTS); }

static const struct {
    const char *name;
    fa_status (*call)(const fa_attention *);
} functions[] = {
    {"check", check}, {"workspace", workspace}, {"run", run}, {"run on a pool", run_on_pool}, {"part", part},
    {"finish", finish},
};

static void apply(struct edit e) {
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

static bool within(const void *at, const void *start, size_t n) {
    return (uintptr_t)at - (uintptr_t)start < n;
}

/* Whether nothing has changed; after a success, but for the outputs. */
static bool untouched(fa_status status) {
    const unsigned char *now = (const unsigned char *)&arena, *then = (const unsigned char *)&before;
    if (status != FA_OK) return memcmp(now, then, sizeof arena) == 0;
    for (size_t i = 0; i < sizeof arena; i++) {
        if (now[i] != then[i] && !within(&now[i], described.a.o.data, sizeof arena.o) &&
            !within(&now[i], described.a.lse, sizeof arena.lse)) {
            return false;
        }
    }
    return true;
}

/* What fa_attention_check says, in much room and in little. */
static void check_words(const struct row *row) {
    char why[300], small[12];
    memset(why, 'x', sizeof why), memset(small, 'x', sizeof small);
    CHECK(fa_attention_check(&described.a, why, sizeof why) == row->want, "%s", row->what);
    size_t length = strnlen(why, sizeof why);
    CHECK(length > 0 && length < sizeof why, "%s: %zu bytes of words", row->what, length);
    CHECK(row->word == NULL || strstr(why, row->word) != NULL, "%s: no %s in \"%.*s\"", row->what, row->word,
          (int)length, why);
    CHECK(fa_attention_check(&described.a, small, 0) == row->want && small[0] == 'x', "%s: no room", row->what);
    CHECK(fa_attention_check(&described.a, small, 1) == row->want && small[0] == '\0' && small[1] == 'x',
          "%s: one byte", row->what);
    CHECK(fa_attention_check(&described.a, small, 10) == row->want, "%s: ten bytes", row->what);
    CHECK(strlen(small) == (length < 9 ? length : 9) && strncmp(small, why, 9) == 0 && small[10] == 'x',
          "%s: \"%.12s\" of \"%s\"", row->what, small, why);
}

static int check_table(void) {
    int calls = 0;
    for (size_t r = 0; r < COUNT(rows); r++) {
        const struct row *row = &rows[r];
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
    return calls;
}

/* ---- The other arguments. ---- */

static int checked;

/* One call that must have this result and change nothing. */
#define REFUSES(want, call)                                                                 \
    do {                                                                                    \
        fill();                                                                             \
        described = good;                                                                   \
        fa_status status = call;                                                            \
        CHECK(status == want, "%s is %s", #call, fa_status_string(status));                 \
        CHECK(memcmp(&arena, &before, sizeof arena) == 0, "%s: memory has changed", #call); \
        CHECK(memcmp(&described, &good, sizeof good) == 0, "%s: the description has changed", #call); \
        checked++;                                                                          \
    } while (0)

static fa_attention *const a = &described.a;

static void null_descriptions(void) {
    char why[100] = "";
    size_t *bytes = AT(end, 0);
    REFUSES(FA_ERR_NULL, fa_attention_init(NULL, sizeof *a));
    REFUSES(FA_ERR_NULL, fa_attention_check(NULL, NULL, 0));
    REFUSES(FA_ERR_NULL, fa_attention_check(NULL, why, sizeof why));
    CHECK(why[0] != '\0', "no words");
    REFUSES(FA_OK, fa_attention_check(a, NULL, 100));
    REFUSES(FA_ERR_NULL, fa_attention_workspace(NULL, 1, bytes));
    REFUSES(FA_ERR_NULL, fa_attention_workspace(a, 1, NULL));
    REFUSES(FA_ERR_NULL, fa_attention_run(NULL, ws, sizeof ws, NULL));
    REFUSES(FA_ERR_NULL, fa_attention_part(NULL, ws, sizeof ws, 0, 1));
    REFUSES(FA_ERR_NULL, fa_attention_finish(NULL, ws, sizeof ws, 0, 1));
}

static void sizes_of_init(void) {
    REFUSES(FA_ERR_STRUCT_SIZE, fa_attention_init(a, 0));
    REFUSES(FA_ERR_STRUCT_SIZE, fa_attention_init(a, 8));
    REFUSES(FA_ERR_STRUCT_SIZE, fa_attention_init(a, sizeof *a - 1));
    /* A later version's structure is filled as a whole. */
    memset(&described, 0xa5, sizeof described);
    CHECK(fa_attention_init(a, sizeof described) == FA_OK && a->struct_size == sizeof described, "a larger one");
    for (size_t i = 0; i < sizeof described.tail; i++) CHECK(described.tail[i] == 0, "byte %zu behind", i);
    CHECK(a->q_pos == FA_POS_END && a->window_left == FA_NO_LIMIT && a->window_right == FA_NO_LIMIT, "init");
    CHECK(a->q.data == NULL && a->lse == NULL && a->scale == 0 && a->block_kv == 0, "init");
}

static void part_numbers(void) {
    static const int32_t counts[] = {0, -1, 257, 258, INT32_MIN, INT32_MAX};
    static const int32_t numbers[][2] = {{-1, 1}, {1, 1}, {3, 3}, {256, 256}, {INT32_MIN, 3}, {INT32_MAX, 3}};
    size_t *bytes = AT(end, 0);
    for (size_t i = 0; i < COUNT(counts); i++) {
        REFUSES(FA_ERR_PART, fa_attention_workspace(a, counts[i], bytes));
        REFUSES(FA_ERR_PART, fa_attention_part(a, ws, sizeof ws, 0, counts[i]));
        REFUSES(FA_ERR_PART, fa_attention_finish(a, ws, sizeof ws, 0, counts[i]));
    }
    for (size_t i = 0; i < COUNT(numbers); i++) {
        REFUSES(FA_ERR_PART, fa_attention_part(a, ws, sizeof ws, numbers[i][0], numbers[i][1]));
        REFUSES(FA_ERR_PART, fa_attention_finish(a, ws, sizeof ws, numbers[i][0], numbers[i][1]));
    }
}

/* One key repeated so often that threads are worth their scratch memory. */
static fa_attention much(void) {
    fa_attention much = good.a;
    much.len_kv = 200000;
    much.k.stride[2] = much.v.stride[2] = 0;
    return much;
}

static void workspaces(void) {
    fill();
    fa_attention m = much();
    for (int32_t n = 2; n <= 256; n *= 2) {
        size_t bytes = 0, pool_bytes = 0;
        fa_pool pool = {.struct_size = sizeof pool, .width = width};
        CHECK(fa_attention_workspace(&m, n, &bytes) == FA_OK && bytes > 0, "%d parts", (int)n);
        CHECK(fa_attention_workspace(&m, PARTS, &pool_bytes) == FA_OK && pool_bytes > 0, "a pool");
        /* Where all the room for alignment is needed. */
        REFUSES(FA_ERR_WORKSPACE, fa_attention_run(&m, ws + 1, pool_bytes - 1, &pool));
        REFUSES(FA_ERR_WORKSPACE, fa_attention_run(&m, ws, 0, &pool));
        REFUSES(FA_ERR_WORKSPACE, fa_attention_run(&m, NULL, 0, &pool));
        REFUSES(FA_ERR_WORKSPACE, fa_attention_run(&m, NULL, pool_bytes, &pool));
        for (int32_t i = 0; i < n; i += n - 1) {
            REFUSES(FA_ERR_WORKSPACE, fa_attention_part(&m, ws, bytes - 1, i, n));
            REFUSES(FA_ERR_WORKSPACE, fa_attention_part(&m, ws, 0, i, n));
            REFUSES(FA_ERR_WORKSPACE, fa_attention_part(&m, NULL, bytes, i, n));
            REFUSES(FA_ERR_WORKSPACE, fa_attention_finish(&m, ws, bytes - 1, i, n));
            REFUSES(FA_ERR_WORKSPACE, fa_attention_finish(&m, ws, 0, i, n));
            REFUSES(FA_ERR_WORKSPACE, fa_attention_finish(&m, NULL, bytes, i, n));
        }
    }
}

static void pools(void) {
    static const size_t sizes[] = {0, 1, 8, sizeof(fa_pool) - 1};
    static const int32_t threads[] = {-1, 257, INT32_MIN, INT32_MAX};
    for (size_t i = 0; i < COUNT(sizes); i++) {
        fa_pool pool = {.struct_size = sizes[i], .width = width};
        REFUSES(FA_ERR_STRUCT_SIZE, fa_attention_run(a, ws, sizeof ws, &pool));
    }
    REFUSES(FA_ERR_NULL, fa_pool_create(1, NULL));
    for (size_t i = 0; i < COUNT(threads); i++) REFUSES(FA_ERR_PART, fa_pool_create(threads[i], AT(end, 0)));
    fa_pool_destroy(NULL);
}

static void merges(void) {
    enum { R = 8 };
    float *o = arena.o, *lse = arena.lse, *o2 = arena.q, *lse2 = arena.k;
    REFUSES(FA_ERR_NULL, fa_merge(NULL, lse, o2, lse2, R, DV));
    REFUSES(FA_ERR_NULL, fa_merge(o, NULL, o2, lse2, R, DV));
    REFUSES(FA_ERR_NULL, fa_merge(o, lse, NULL, lse2, R, DV));
    REFUSES(FA_ERR_NULL, fa_merge(o, lse, o2, NULL, R, DV));
    REFUSES(FA_OK, fa_merge(NULL, NULL, NULL, NULL, 0, DV));
    REFUSES(FA_OK, fa_merge(o, lse, o2, lse2, 0, DV));
    REFUSES(FA_ERR_SHAPE, fa_merge(o, lse, o2, lse2, -1, DV));
    REFUSES(FA_ERR_SHAPE, fa_merge(o, lse, o2, lse2, INT64_MIN, DV));
    REFUSES(FA_ERR_SHAPE, fa_merge(o, lse, o2, lse2, R, -1));
    REFUSES(FA_ERR_SHAPE, fa_merge(o, lse, o2, lse2, R, INT64_MIN));
    REFUSES(FA_ERR_SHAPE, fa_merge(o, lse, o2, lse2, 0, -1));
    REFUSES(FA_ERR_ZERO_EXTENT, fa_merge(o, lse, o2, lse2, R, 0));
    REFUSES(FA_ERR_ZERO_EXTENT, fa_merge(o, lse, o2, lse2, 0, 0));
    REFUSES(FA_ERR_OVERFLOW, fa_merge(o, lse, o2, lse2, INT64_MAX, DV));
    REFUSES(FA_ERR_OVERFLOW, fa_merge(o, lse, o2, lse2, R, INT64_MAX));
    REFUSES(FA_ERR_OVERFLOW, fa_merge(o, lse, o2, lse2, INT64_MAX, INT64_MAX));
    REFUSES(FA_ERR_OVERFLOW, fa_merge(o, lse, o2, lse2, BIT(32), BIT(32)));
    REFUSES(FA_ERR_OVERFLOW, fa_merge(o, lse, o2, lse2, BIT(62), 4));
    REFUSES(FA_ERR_OVERFLOW, fa_merge(o, lse, o2, lse2, BIT(61), 1));
    REFUSES(FA_ERR_OVERLAP, fa_merge(o, lse, o, lse2, R, DV));
    REFUSES(FA_ERR_OVERLAP, fa_merge(o, lse, o + R * DV - 1, lse2, R, DV));
    REFUSES(FA_ERR_OVERLAP, fa_merge(o + R * DV - 1, lse, o, lse2, R, DV));
    REFUSES(FA_ERR_OVERLAP, fa_merge(o, lse, o2, lse, R, DV));
    REFUSES(FA_ERR_OVERLAP, fa_merge(o, lse, o2, lse + R - 1, R, DV));
    REFUSES(FA_ERR_OVERLAP, fa_merge(o, lse + R - 1, o2, lse, R, DV));
    REFUSES(FA_ERR_OVERLAP, fa_merge(o, lse, o2, o + R * DV - 1, R, DV));
    REFUSES(FA_ERR_OVERLAP, fa_merge(o, lse, lse + R - 1, lse2, R, DV));
    REFUSES(FA_ERR_OVERLAP, fa_merge(o, o + R * DV - 1, o2, lse2, R, DV));
    /* Side by side is fine, and so are the same states on both right sides. */
    CHECK(fa_merge(o, lse, o + R * DV, lse + R, R, DV) == FA_OK, "neighbours");
    CHECK(fa_merge(o, lse, o2, o2, R, DV) == FA_OK, "inputs may overlap");
}

int main(void) {
    int calls = check_table();
    null_descriptions();
    sizes_of_init();
    part_numbers();
    workspaces();
    pools();
    merges();
    printf("%zu descriptions in %d calls, %d calls with other wrong arguments\n", COUNT(rows), calls, checked);
    return check_result();
}
