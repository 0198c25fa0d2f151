/* What the functions of the general door refuse, with which code, and that a refusal changes nothing. */

#define _POSIX_C_SOURCE 200809L

#include <float.h>
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

/* Lists that an output can be moved onto: right as they are, and with room for it behind them. */
static int32_t zeros[GAP], starts[GAP] = {0, 5, 10}, page_starts[GAP] = {0, 1, 2};

#define TOO_MUCH ": more bytes than an address space holds"
#define BIT(n) ((int64_t)1 << (n))
/* The largest multiple of 4. */
#define MOST (INT64_MAX - 3)

#define NOT_NEGATIVE(field)                                                                     \
    {#field " -1", FA_ERR_SHAPE, #field, {N(field, -1)}},                                       \
    {#field " INT64_MIN", FA_ERR_SHAPE, #field, {N(field, INT64_MIN)}}

#define HUGE_SIZES(field)                                                                       \
    {#field " INT64_MAX", FA_ERR_OVERFLOW, TOO_MUCH, {N(field, INT64_MAX)}},                        \
    {#field " 2^62", FA_ERR_OVERFLOW, TOO_MUCH, {N(field, BIT(62))}},                               \
    {#field " 2^61", FA_ERR_OVERFLOW, TOO_MUCH, {N(field, BIT(61))}}

/* One stride of a tensor. */
#define AXIS(t, axis)                                                                           \
    {#t ".stride -4", FA_ERR_STRIDE, #t ".stride[" #axis "]", {N(t.stride[axis], -4)}},         \
    {#t ".stride INT64_MIN", FA_ERR_STRIDE, #t ".stride[" #axis "]", {N(t.stride[axis], INT64_MIN)}}, \
    {#t ".stride 4098", FA_ERR_STRIDE, #t ".stride[" #axis "]", {N(t.stride[axis], 4098)}},     \
    {#t ".stride 4097", FA_ERR_STRIDE, #t ".stride[" #axis "]", {N(t.stride[axis], 4097)}},     \
    {#t ".stride 2^63", FA_ERR_OVERFLOW, #t TOO_MUCH, {N(t.stride[axis], MOST)}}

#define TENSOR(t, rows)                                                                         \
    {#t " is NULL", FA_ERR_NULL, #t ": NULL", {P(t.data, NULL)}},                                      \
    AXIS(t, 0), AXIS(t, 1), AXIS(t, 2),                                                         \
    {#t ": 2^32 rows, 2^32 bytes apart", FA_ERR_OVERFLOW, #t TOO_MUCH,                                 \
     {N(rows, BIT(32)), N(t.stride[2], BIT(32))}},                                              \
    {#t ": 2^32 rows, 2^31 bytes apart", FA_ERR_OVERFLOW, #t TOO_MUCH,                                 \
     {N(rows, BIT(32) + 1), N(t.stride[2], BIT(31))}},                                          \
    {#t ": 2^32 entries, 2^32 bytes apart", FA_ERR_OVERFLOW, #t TOO_MUCH,                              \
     {N(batch, BIT(32) + 1), N(t.stride[0], BIT(32))}},                                         \
    {#t ": 2^62 entries, 4 bytes apart", FA_ERR_OVERFLOW, TOO_MUCH,                                 \
     {N(batch, BIT(62)), N(t.stride[0], 4)}},                                                   \
    {#t ".dtype 99", FA_ERR_DTYPE, #t ".dtype", {N(t.dtype, 99)}},                              \
    {#t ".dtype -1", FA_ERR_DTYPE, #t ".dtype", {N(t.dtype, -1)}},                              \
    {#t ".dtype INT32_MIN", FA_ERR_DTYPE, #t ".dtype", {N(t.dtype, INT32_MIN)}},                \
    {#t ".dtype INT32_MAX", FA_ERR_DTYPE, #t ".dtype", {N(t.dtype, INT32_MAX)}},                \
    {#t ".dtype BOOL8", FA_ERR_DTYPE, #t ".dtype", {N(t.dtype, FA_DTYPE_BOOL8)}},               \
    {#t ".quant is set", FA_ERR_DTYPE, #t ".quant", {P(t.quant, AT(end, 0))}},                      \
    {#t ".quant NULL", FA_OK, NULL, {P(t.quant, NULL)}},                                        \
    RESERVED(t)

#define RESERVED(t)                                                                             \
    {#t ".reserved 1", FA_ERR_RESERVED, #t ".reserved", {N(t.reserved, 1)}},                    \
    {#t ".reserved -1", FA_ERR_RESERVED, #t ".reserved", {N(t.reserved, -1)}},                  \
    {#t ".reserved INT32_MAX", FA_ERR_RESERVED, #t ".reserved", {N(t.reserved, INT32_MAX)}}

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
    {#t " " #type " with a scale", FA_ERR_DTYPE, #t ".quant",                                   \
     {N(t.dtype, FA_DTYPE_##type), P(t.quant, &quant_of_all), N(dim, n)}},                      \
    {#t " " #type " with a quant that says nothing", FA_ERR_DTYPE, #t ".quant",                     \
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
    {#t ": 2^61 scales", FA_ERR_OVERFLOW, #t ".quant.stride[", I8(t, many, NULL, BIT(60), BIT(60), 0, 0, 1, 1)}, \
    {#t ": 2^61 zeros", FA_ERR_OVERFLOW, #t ".quant.stride[", I8(t, NULL, many, 0, BIT(60), BIT(60), 0, 4, 1)},  \
    NO_NUMBER(t, NAN), NO_NUMBER(t, INFINITY), NO_NUMBER(t, -INFINITY),                         \
    ON_OUTPUT(t, o, scale), ON_OUTPUT(t, o, zero), ON_OUTPUT(t, lse, scale), ON_OUTPUT(t, lse, zero)

/* Scales or zeros in the memory of an output. */
#define ON_OUTPUT(t, output, which)                                                             \
    {#output " is " #t ".quant." #which, FA_ERR_OVERLAP, #output ": shares memory with scales of " #t, \
     {N(t.dtype, FA_DTYPE_I8), P(t.quant, &(const fa_quant){.which = arena.output})}}

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
    {#t ".quant.stride INT64_MAX", FA_ERR_OVERFLOW, #t ".quant.stride[" #axis "]", I8_LIKE(t, many, many, at(INT64_MAX))}, \
    {#t ".quant.stride 2^62", FA_ERR_OVERFLOW, #t ".quant.stride[" #axis "]", I8_LIKE(t, NULL, many, at(BIT(62)))},        \
    {#t ".quant.stride 2^61", FA_ERR_OVERFLOW, #t ".quant.stride[" #axis "]", I8_LIKE(t, many, NULL, at(BIT(61)))}

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
    {"o is " #t, FA_ERR_OVERLAP, "shares memory with " #t, {P(o.data, AT(t, 0))}},                                  \
    {"o begins on the last byte of " #t, FA_ERR_OVERLAP, "shares memory with " #t, {P(o.data, AT(t, sizeof arena.t - 1))}}, \
    {"o begins behind " #t, FA_OK, NULL, {P(o.data, AT(t, sizeof arena.t))}},                   \
    {"o ends on the first byte of " #t, FA_ERR_OVERLAP, "shares memory with " #t, {P(o.data, AT(before_##t, GAP + 1 - sizeof arena.o))}}, \
    {"o ends before " #t, FA_OK, NULL, {P(o.data, AT(before_##t, GAP - sizeof arena.o))}},      \
    {"lse is " #t, FA_ERR_OVERLAP, "shares memory with " #t, {P(lse, AT(t, 0))}},                                   \
    {"lse begins on the last byte of " #t, FA_ERR_OVERLAP, "shares memory with " #t, {P(lse, AT(t, sizeof arena.t - 1))}}, \
    {"lse begins behind " #t, FA_OK, NULL, {P(lse, AT(t, sizeof arena.t))}},                    \
    {"lse ends on the first byte of " #t, FA_ERR_OVERLAP, "shares memory with " #t, {P(lse, AT(before_##t, GAP + 1 - sizeof arena.lse))}}, \
    {"lse ends before " #t, FA_OK, NULL, {P(lse, AT(before_##t, GAP - sizeof arena.lse))}}

/* The keys of both sequences as two pages. */
#define PAGES(table) P(block_table, table), N(table_stride, 1), N(page_size, LKV), N(num_pages, 2)
/* A page of three tokens is a third of that. */
#define SMALL_PAGES(table) P(block_table, table), N(table_stride, 3), N(page_size, 3), N(num_pages, 2)
#define LISTS(table, starts) P(block_table, table), P(block_table_start, starts), N(page_size, LKV), N(num_pages, 2)

/* Numbers behind the tensors, the same for every row. */
#define MASKED P(mask.data, AT(end, 0))
#define CELLS(data) P(block_mask, data), N(block_mask_q, 2), N(block_mask_kv, 4)

/* One stride of a mask. */
#define MASK_AXIS(axis)                                                                         \
    {"mask.stride -4", FA_ERR_STRIDE, "mask.stride[" #axis "]", {MASKED, N(mask.stride[axis], -4)}}, \
    {"mask.stride INT64_MIN", FA_ERR_STRIDE, "mask.stride[" #axis "]", {MASKED, N(mask.stride[axis], INT64_MIN)}}, \
    {"mask.stride 4098", FA_ERR_STRIDE, "mask.stride[" #axis "]", {MASKED, N(mask.stride[axis], 4098)}}, \
    {"mask.stride 2^63", FA_ERR_OVERFLOW, "mask" TOO_MUCH, {MASKED, N(mask.stride[axis], MOST)}}, \
    {"mask.stride 0", FA_OK, NULL, {MASKED, N(mask.stride[axis], 0)}},                          \
    {"block_mask_stride -1", FA_ERR_STRIDE, "block_mask_stride[" #axis "]",                     \
     {CELLS(AT(end, 0)), N(block_mask_stride[axis], -1)}},                                      \
    {"block_mask_stride INT64_MIN", FA_ERR_STRIDE, "block_mask_stride[" #axis "]",              \
     {CELLS(AT(end, 0)), N(block_mask_stride[axis], INT64_MIN)}},                               \
    {"block_mask_stride INT64_MAX", FA_ERR_OVERFLOW, "block_mask" TOO_MUCH,                     \
     {CELLS(AT(end, 0)), N(block_mask_stride[axis], INT64_MAX)}},                               \
    {"block_mask_stride 0", FA_OK, NULL, {CELLS(AT(end, 0)), N(block_mask_stride[axis], 0)}}

/* An output in the memory of something else. */
#define ALONE(what, list, ...)                                                                  \
    {"o is " what, FA_ERR_OVERLAP, "o: shares memory with " what, {P(o.data, list), __VA_ARGS__}},                       \
    {"lse is " what, FA_ERR_OVERLAP, "lse: shares memory with " what, {P(lse, list), __VA_ARGS__}}

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
    {"heads_q 2^62", FA_ERR_OVERFLOW, "q" TOO_MUCH, {N(heads_q, BIT(62))}},
    {"heads INT64_MAX", FA_ERR_OVERFLOW, "q" TOO_MUCH, {N(heads_q, INT64_MAX), N(heads_kv, INT64_MAX)}},
    {"heads_kv 2^62", FA_ERR_OVERFLOW, "k" TOO_MUCH,
     {N(heads_q, BIT(62)), N(heads_kv, BIT(62)), N(q.stride[1], 0), N(o.stride[1], 0)}},
    {"heads_kv INT64_MAX", FA_ERR_OVERFLOW, "k" TOO_MUCH, {N(heads_kv, INT64_MAX)}},
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
    {"o I8 with a scale", FA_ERR_DTYPE, "o.dtype", {N(o.dtype, FA_DTYPE_I8), P(o.quant, &quant_of_all)}},
    {"o Q8_0", FA_ERR_DTYPE, "o.dtype", {N(o.dtype, FA_DTYPE_Q8_0), BLOCKS_OF_O}},
    {"o Q8_0, not of whole blocks", FA_ERR_SHAPE, "o.dtype", {N(o.dtype, FA_DTYPE_Q8_0)}},
    {"rows of o F16 overlap", FA_ERR_STRIDE, "o: strides", {N(o.dtype, FA_DTYPE_F16), N(o.stride[1], DV * 2 - 2)}},
    {"rows of o F16 touch", FA_OK, NULL, {N(o.dtype, FA_DTYPE_F16), N(o.stride[1], DV * 2)}},

    {"mask F16", FA_OK, NULL, {MASK(F16)}},
    {"mask BF16", FA_OK, NULL, {MASK(BF16)}},
    {"mask I8", FA_ERR_DTYPE, "mask.dtype", {MASK(I8)}},
    {"mask I8 with a scale", FA_ERR_DTYPE, "mask.dtype", {MASK(I8), P(mask.quant, &quant_of_all)}},
    {"mask Q8_0", FA_ERR_DTYPE, "mask.dtype", {MASK(Q8_0)}},
    {"mask Q8_0, whole blocks", FA_ERR_DTYPE, "mask.dtype", {MASK(Q8_0), N(len_kv, 32)}},
    {"mask.dtype 99", FA_ERR_DTYPE, "mask.dtype", {P(mask.data, AT(q, 0)), N(mask.dtype, 99)}},
    {"mask F32 with a scale", FA_ERR_DTYPE, "mask.quant", {MASK(F32), P(mask.quant, &quant_of_all)}},
    {"mask F16 with a scale", FA_ERR_DTYPE, "mask.quant", {MASK(F16), P(mask.quant, &quant_of_all)}},
    {"mask BF16 with a quant of nothing", FA_ERR_DTYPE, "mask.quant", {MASK(BF16), P(mask.quant, &quant_of_nothing)}},
    {"mask BOOL8 with a scale", FA_ERR_DTYPE, "mask.quant", {MASK(BOOL8), P(mask.quant, &quant_of_all)}},
    {"mask F16, stride 2", FA_OK, NULL, {MASK(F16), N(mask.stride[2], 2)}},
    {"mask F16, stride 17", FA_ERR_STRIDE, "mask.stride[2]", {MASK(F16), N(mask.stride[2], 17)}},
    {"mask BF16, stride 17", FA_ERR_STRIDE, "mask.stride[1]", {MASK(BF16), N(mask.stride[1], 17)}},
    {"mask F32, stride 18", FA_ERR_STRIDE, "mask.stride[0]", {MASK(F32), N(mask.stride[0], 18)}},
    {"mask BOOL8, stride 17", FA_OK, NULL, {MASK(BOOL8), N(mask.stride[2], 17)}},

    {"no queries, q and o NULL", FA_OK, NULL, {N(len_q, 0), P(q.data, NULL), P(o.data, NULL)}},
    {"no keys, k and v NULL", FA_OK, NULL, {N(len_kv, 0), P(k.data, NULL), P(v.data, NULL)}},
    {"no keys, q NULL", FA_ERR_NULL, "q: NULL", {N(len_kv, 0), P(q.data, NULL)}},
    {"no keys, o NULL", FA_ERR_NULL, "o: NULL", {N(len_kv, 0), P(o.data, NULL)}},
    {"no queries, k NULL", FA_ERR_NULL, "k: NULL", {N(len_q, 0), P(k.data, NULL)}},
    {"no queries, batch 0", FA_ERR_ZERO_EXTENT, "batch", {N(len_q, 0), N(batch, 0)}},
    {"no queries, scale NaN", FA_ERR_SOFTMAX_SCALE, "scale", {N(len_q, 0), X(scale, NAN)}},
    {"heads INT64_MAX, no queries, no keys", FA_ERR_OVERFLOW, "q" TOO_MUCH,
     {N(heads_q, INT64_MAX), N(heads_kv, INT64_MAX), N(len_q, 0), N(len_kv, 0)}},
    {"batch INT64_MAX, no queries, no keys", FA_ERR_OVERFLOW, "q" TOO_MUCH,
     {N(batch, INT64_MAX), N(len_q, 0), N(len_kv, 0)}},
    {"batch INT64_MAX, no queries, no keys, no strides", FA_OK, NULL,
     {N(batch, INT64_MAX), N(len_q, 0), N(len_kv, 0), N(q.stride[0], 0), N(k.stride[0], 0), N(v.stride[0], 0),
      N(o.stride[0], 0), P(lse, NULL)}},
    {"one entry, its stride huge", FA_OK, NULL, {N(batch, 1), N(q.stride[0], MOST), N(o.stride[0], MOST)}},

    {"q repeated", FA_OK, NULL, {N(q.stride[0], 0), N(q.stride[1], 0), N(q.stride[2], 0)}},
    {"k repeated", FA_OK, NULL, {N(k.stride[0], 0), N(k.stride[1], 0), N(k.stride[2], 0)}},
    {"v repeated", FA_OK, NULL, {N(v.stride[0], 0), N(v.stride[1], 0), N(v.stride[2], 0)}},
    {"entries of o on one another", FA_ERR_STRIDE, "o: strides", {N(o.stride[0], 0)}},
    {"entries of o overlap", FA_ERR_STRIDE, "o: strides", {N(o.stride[0], LQ * HQ * DV * 4 - 4)}},
    {"heads of o on one another", FA_ERR_STRIDE, "o: strides", {N(o.stride[1], 0)}},
    {"heads of o overlap", FA_ERR_STRIDE, "o: strides", {N(o.stride[1], DV * 4 - 4)}},
    {"rows of o on one another", FA_ERR_STRIDE, "o: strides", {N(o.stride[2], 0)}},
    {"rows of o overlap", FA_ERR_STRIDE, "o: strides", {N(o.stride[2], HQ * DV * 4 - 4)}},
    {"one row of o, its stride 0", FA_OK, NULL, {N(len_q, 1), N(o.stride[2], 0)}},

    {"scale NaN", FA_ERR_SOFTMAX_SCALE, "scale", {X(scale, NAN)}},
    {"scale +inf", FA_ERR_SOFTMAX_SCALE, "scale", {X(scale, INFINITY)}},
    {"scale -inf", FA_ERR_SOFTMAX_SCALE, "scale", {X(scale, -INFINITY)}},
    {"scale FLT_MAX", FA_ERR_SOFTMAX_SCALE, "scale", {X(scale, FLT_MAX)}},
    {"scale -FLT_MAX", FA_ERR_SOFTMAX_SCALE, "scale", {X(scale, -FLT_MAX)}},
    {"scale 0.69 FLT_MAX", FA_OK, NULL, {X(scale, 0.69f * FLT_MAX)}},
    {"scale < 0", FA_OK, NULL, {X(scale, -1)}},
    {"scale denormal", FA_OK, NULL, {X(scale, FLT_MIN / 4)}},
    {"scale -denormal", FA_OK, NULL, {X(scale, -FLT_MIN / 4)}},
    {"scale 0", FA_OK, NULL, {X(scale, 0)}},
    {"scale -0", FA_OK, NULL, {X(scale, -0.0f)}},

    {"q_pos 0", FA_OK, NULL, {N(q_pos, 0)}},
    {"q_pos INT64_MAX", FA_ERR_OVERFLOW, "q_pos", {N(q_pos, INT64_MAX)}},
    {"q_pos INT64_MAX - 4", FA_ERR_OVERFLOW, "q_pos", {N(q_pos, INT64_MAX - LQ + 1)}},
    {"q_pos INT64_MAX - 5", FA_OK, NULL, {N(q_pos, INT64_MAX - LQ)}},
    {"q_pos INT64_MIN + 1", FA_OK, NULL, {N(q_pos, INT64_MIN + 1)}},
    {"q_pos INT64_MAX - 100", FA_OK, NULL, {N(q_pos, INT64_MAX - 100)}},
    {"window_left 0", FA_OK, NULL, {N(window_left, 0)}},
    {"window_right 0", FA_OK, NULL, {N(window_right, 0)}},
    {"window_left -2", FA_ERR_WINDOW, "window_left", {N(window_left, -2)}},
    {"window_left INT64_MIN", FA_ERR_WINDOW, "window_left", {N(window_left, INT64_MIN)}},
    {"window_right -2", FA_ERR_WINDOW, "window_right", {N(window_right, -2)}},
    {"window_right INT64_MIN", FA_ERR_WINDOW, "window_right", {N(window_right, INT64_MIN)}},
    {"windows INT64_MAX", FA_OK, NULL, {N(window_left, INT64_MAX), N(window_right, INT64_MAX)}},
    {"windows and q_pos huge", FA_OK, NULL,
     {N(window_left, INT64_MAX), N(window_right, INT64_MAX), N(q_pos, INT64_MAX - 100)}},
    {"windows huge, q_pos tiny", FA_OK, NULL,
     {N(window_left, INT64_MAX), N(window_right, INT64_MAX), N(q_pos, INT64_MIN + 1)}},

    {"cu_len_q NULL", FA_OK, NULL, {P(cu_len_q, NULL)}},
    {"cu_len_kv NULL", FA_OK, NULL, {P(cu_len_kv, NULL)}},
    {"kv_lens NULL", FA_OK, NULL, {P(kv_lens, NULL)}},
    {"block_table_start NULL", FA_OK, NULL, {PAGES(INTS(1, 0)), P(block_table_start, NULL)}},
    {"block_table NULL", FA_OK, NULL,
     {P(block_table, NULL), N(table_stride, -1), N(page_size, -1), N(num_pages, INT64_MIN)}},
    {"cu_len_q, batch INT64_MAX", FA_ERR_OVERFLOW, "cu_len_q", {P(cu_len_q, INTS(0, 5)), N(batch, INT64_MAX)}},
    {"cu_len_kv, batch 2^61", FA_ERR_OVERFLOW, "cu_len_kv", {P(cu_len_kv, INTS(0, 5)), N(batch, BIT(61))}},
    {"kv_lens, batch INT64_MAX", FA_ERR_OVERFLOW, "kv_lens", {P(kv_lens, INTS(0, 5)), N(batch, INT64_MAX)}},
    {"block_table_start, batch INT64_MAX", FA_ERR_OVERFLOW, "block_table_start",
     {LISTS(INTS(0, 1), INTS(0, 1)), N(batch, INT64_MAX)}},
    {"cu_len_q", FA_OK, NULL, {P(cu_len_q, INTS(0, 5, 10)), P(lse, NULL)}},
    {"cu_len_q: heads of lse overlap", FA_ERR_STRIDE, "lse: strides", {P(cu_len_q, INTS(0, 5, 10))}},
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
    {"page_size INT64_MAX", FA_ERR_OVERFLOW, "k" TOO_MUCH, {PAGES(INTS(0, 1)), N(page_size, INT64_MAX)}},
    {"page_size INT64_MIN", FA_ERR_SHAPE, "page_size", {PAGES(INTS(0, 1)), N(page_size, INT64_MIN)}},
    {"table_stride 0", FA_ERR_LENGTHS, "pages", {PAGES(INTS(0, 1)), N(table_stride, 0)}},
    {"table_stride 0, no keys", FA_OK, NULL, {PAGES(INTS(0, 1)), P(kv_lens, INTS(0, 0)), N(table_stride, 0)}},
    {"table_stride INT64_MAX", FA_ERR_OVERFLOW, "table_stride", {PAGES(INTS(0, 1)), N(table_stride, INT64_MAX)}},
    {"page_size -1", FA_ERR_SHAPE, "page_size", {PAGES(INTS(0, 1)), N(page_size, -1)}},
    {"num_pages -1", FA_ERR_SHAPE, "num_pages", {PAGES(INTS(0, 1)), N(num_pages, -1)}},
    {"num_pages 2^62", FA_ERR_OVERFLOW, "k" TOO_MUCH, {PAGES(INTS(0, 1)), N(num_pages, BIT(62))}},
    {"table_stride -1", FA_ERR_SHAPE, "table_stride", {PAGES(INTS(0, 1)), N(table_stride, -1)}},
    {"table_stride 2^62", FA_ERR_OVERFLOW, "table_stride", {PAGES(INTS(0, 1)), N(table_stride, BIT(62))}},
    {"block_table_start without a table", FA_ERR_NULL, "block_table_start", {P(block_table_start, INTS(0, 1, 2))}},
    {"cu_len_kv and pages", FA_ERR_SHAPE, "cu_len_kv", {PAGES(INTS(0, 1)), P(cu_len_kv, INTS(0, 9, 18))}},

    {"softcap", FA_OK, NULL, {X(softcap, 30)}},
    {"softcap 0", FA_OK, NULL, {X(softcap, 0)}},
    {"softcap denormal", FA_OK, NULL, {X(softcap, FLT_MIN / 4)}},
    {"softcap FLT_MAX", FA_OK, NULL, {X(softcap, FLT_MAX)}},
    {"softcap -denormal", FA_ERR_SOFTCAP, "softcap", {X(softcap, -FLT_MIN / 4)}},
    {"softcap -1", FA_ERR_SOFTCAP, "softcap", {X(softcap, -1)}},
    {"softcap NaN", FA_ERR_SOFTCAP, "softcap", {X(softcap, NAN)}},
    {"softcap +inf", FA_ERR_SOFTCAP, "softcap", {X(softcap, INFINITY)}},
    {"softcap -inf", FA_ERR_SOFTCAP, "softcap", {X(softcap, -INFINITY)}},

    {"mask", FA_OK, NULL, {MASKED}},
    {"mask of bytes", FA_OK, NULL, {MASKED, N(mask.dtype, FA_DTYPE_BOOL8), N(mask.stride[2], LKV)}},
    {"mask NULL", FA_OK, NULL, {P(mask.data, NULL)}},
    {"mask NULL, its strides wild", FA_OK, NULL,
     {P(mask.data, NULL), N(mask.stride[0], -1), N(mask.stride[1], INT64_MAX), N(mask.stride[2], 3)}},
    MASK_AXIS(0), MASK_AXIS(1), MASK_AXIS(2),
    {"mask.dtype I8", FA_ERR_DTYPE, "mask.dtype", {MASKED, N(mask.dtype, FA_DTYPE_I8)}},
    {"mask.dtype 99", FA_ERR_DTYPE, "mask.dtype", {MASKED, N(mask.dtype, 99)}},
    {"mask.dtype -1", FA_ERR_DTYPE, "mask.dtype", {MASKED, N(mask.dtype, -1)}},
    {"mask.dtype INT32_MAX", FA_ERR_DTYPE, "mask.dtype", {MASKED, N(mask.dtype, INT32_MAX)}},
    {"mask.quant NULL", FA_OK, NULL, {MASKED, P(mask.quant, NULL)}},
    RESERVED(mask),
    {"flags 4", FA_ERR_RESERVED, "flags", {N(flags, 4)}},
    {"slopes times mask", FA_OK, NULL, {N(flags, FA_MASK_TIMES_SLOPE), MASKED, P(alibi_slopes, AT(end, 0))}},
    {"no slopes times mask", FA_ERR_SHAPE, "FA_MASK_TIMES_SLOPE", {N(flags, FA_MASK_TIMES_SLOPE), MASKED}},
    {"slopes times no mask", FA_ERR_SHAPE, "FA_MASK_TIMES_SLOPE",
     {N(flags, FA_MASK_TIMES_SLOPE), P(alibi_slopes, AT(end, 0))}},
    {"slopes times bytes", FA_ERR_SHAPE, "FA_MASK_TIMES_SLOPE",
     {N(flags, FA_MASK_TIMES_SLOPE), MASKED, N(mask.dtype, FA_DTYPE_BOOL8), P(alibi_slopes, AT(end, 0))}},
    {"alibi_slopes NULL", FA_OK, NULL, {P(alibi_slopes, NULL), N(alibi_batch_stride, -1)}},
    {"sinks NULL", FA_OK, NULL, {P(sinks, NULL)}},
    {"alibi_batch_stride 0", FA_OK, NULL, {P(alibi_slopes, AT(end, 0)), N(alibi_batch_stride, 0)}},
    {"alibi_batch_stride INT64_MIN", FA_ERR_STRIDE, "alibi_batch_stride",
     {P(alibi_slopes, AT(end, 0)), N(alibi_batch_stride, INT64_MIN)}},
    {"alibi_batch_stride -1", FA_ERR_STRIDE, "alibi_batch_stride",
     {P(alibi_slopes, AT(end, 0)), N(alibi_batch_stride, -1)}},
    {"alibi_batch_stride INT64_MAX", FA_ERR_OVERFLOW, "alibi_batch_stride",
     {P(alibi_slopes, AT(end, 0)), N(alibi_batch_stride, INT64_MAX)}},
    {"alibi_batch_stride 2^62, 5 sequences", FA_ERR_OVERFLOW, "alibi_batch_stride",
     {P(alibi_slopes, AT(end, 0)), N(alibi_batch_stride, BIT(62)), N(batch, 5), N(o.stride[0], 1 << 20),
      N(lse_stride[0], 1 << 20)}},
    {"block_mask", FA_OK, NULL, {CELLS(AT(end, 0))}},
    {"block_mask_q 0", FA_ERR_ZERO_EXTENT, "block_mask_q", {CELLS(AT(end, 0)), N(block_mask_q, 0)}},
    {"block_mask_kv 0", FA_ERR_ZERO_EXTENT, "block_mask_kv", {CELLS(AT(end, 0)), N(block_mask_kv, 0)}},
    {"block_mask_q -1", FA_ERR_SHAPE, "block_mask_q", {CELLS(AT(end, 0)), N(block_mask_q, -1)}},
    {"block_mask_kv -1", FA_ERR_SHAPE, "block_mask_kv", {CELLS(AT(end, 0)), N(block_mask_kv, -1)}},
    {"block_mask NULL", FA_OK, NULL, {P(block_mask, NULL), N(block_mask_q, -1), N(block_mask_kv, 0)}},
    {"block_mask_q INT64_MAX", FA_OK, NULL, {CELLS(AT(end, 0)), N(block_mask_q, INT64_MAX)}},
    {"block_mask_kv INT64_MAX", FA_OK, NULL, {CELLS(AT(end, 0)), N(block_mask_kv, INT64_MAX)}},

    {"mask is o", FA_ERR_OVERLAP, "o: shares memory with mask", {P(mask.data, AT(o, 0))}},
    {"mask is lse", FA_ERR_OVERLAP, "lse: shares memory with mask", {P(mask.data, AT(lse, 0))}},
    {"block_mask is o", FA_ERR_OVERLAP, "o: shares memory with block_mask", {CELLS(AT(o, 0))}},
    {"block_mask is lse", FA_ERR_OVERLAP, "lse: shares memory with block_mask", {CELLS(AT(lse, 0))}},
    {"slopes are o", FA_ERR_OVERLAP, "o: shares memory with alibi_slopes", {P(alibi_slopes, AT(o, 0))}},
    {"slopes are lse", FA_ERR_OVERLAP, "lse: shares memory with alibi_slopes", {P(alibi_slopes, AT(lse, 0))}},
    {"sinks are o", FA_ERR_OVERLAP, "o: shares memory with sinks", {P(sinks, AT(o, 0))}},
    {"sinks are lse", FA_ERR_OVERLAP, "lse: shares memory with sinks", {P(sinks, AT(lse, 0))}},
    ALONE("kv_lens", zeros, P(kv_lens, zeros)),
    ALONE("cu_len_kv", zeros, P(cu_len_kv, zeros)),
    ALONE("cu_len_q", starts, P(cu_len_q, starts), N(lse_stride[1], 2 * LQ)),
    ALONE("block_table", zeros, PAGES(zeros)),
    ALONE("block_table_start", page_starts, LISTS(INTS(0, 1), page_starts)),

    {"no lse, its strides 0", FA_OK, NULL, {P(lse, NULL), N(lse_stride[0], 0), N(lse_stride[1], 0)}},
    {"lse_stride[0] -1", FA_ERR_STRIDE, "lse_stride[0]", {N(lse_stride[0], -1)}},
    {"lse_stride[1] -1", FA_ERR_STRIDE, "lse_stride[1]", {N(lse_stride[1], -1)}},
    {"lse_stride[2] -1", FA_ERR_STRIDE, "lse_stride[2]", {N(lse_stride[2], -1)}},
    {"lse_stride[0] 0", FA_ERR_STRIDE, "lse: strides", {N(lse_stride[0], 0)}},
    {"lse_stride[1] 0", FA_ERR_STRIDE, "lse: strides", {N(lse_stride[1], 0)}},
    {"lse_stride[2] 0", FA_ERR_STRIDE, "lse: strides", {N(lse_stride[2], 0)}},
    {"lse_stride[0] too small", FA_ERR_STRIDE, "lse: strides", {N(lse_stride[0], HQ * LQ - 1)}},
    {"lse_stride[1] too small", FA_ERR_STRIDE, "lse: strides", {N(lse_stride[1], LQ - 1)}},
    {"lse_stride[0] INT64_MAX", FA_ERR_OVERFLOW, "lse", {N(lse_stride[0], INT64_MAX)}},
    {"lse_stride[1] INT64_MAX / 4", FA_ERR_OVERFLOW, "lse", {N(lse_stride[1], INT64_MAX / 4)}},
    {"lse_stride[2] 2^62", FA_ERR_OVERFLOW, "lse", {N(lse_stride[2], BIT(62))}},

    {"block_q 0", FA_OK, NULL, {N(block_q, 0)}},
    {"block_kv 0", FA_OK, NULL, {N(block_kv, 0)}},
    {"block_q 1", FA_OK, NULL, {N(block_q, 1)}},
    {"block_q INT64_MAX", FA_OK, NULL, {N(block_q, INT64_MAX)}},
    {"block_kv 1", FA_OK, NULL, {N(block_kv, 1)}},
    {"block_kv INT64_MAX", FA_OK, NULL, {N(block_kv, INT64_MAX)}},

    ONTO(q), ONTO(k), ONTO(v),
    {"lse is o", FA_ERR_OVERLAP, "lse: shares memory with o", {P(lse, AT(o, 0))}},
    {"lse begins on the last byte of o", FA_ERR_OVERLAP, "lse: shares memory with o", {P(lse, AT(o, sizeof arena.o - 1))}},
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

/* Whether a sentence has the number that alone is to blame; strides of plain arrays become bytes. */
static bool has_number(const char *why, const struct row *row) {
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
static void check_words(const struct row *row) {
    char why[300], small[12];
    memset(why, 'x', sizeof why), memset(small, 'x', sizeof small);
    CHECK(fa_attention_check(&described.a, why, sizeof why) == row->want, "%s", row->what);
    size_t length = strnlen(why, sizeof why);
    CHECK(length > 0 && length < sizeof why, "%s: %zu bytes of words", row->what, length);
    CHECK((row->word == NULL) == (row->want == FA_OK), "%s: words", row->what);
    CHECK(row->word == NULL || strstr(why, row->word) != NULL, "%s: no %s in \"%.*s\"", row->what, row->word,
          (int)length, why);
    CHECK(row->want == FA_OK || has_number(why, row), "%s: no number in \"%.*s\"", row->what, (int)length, why);
    CHECK(fa_attention_check(&described.a, small, 0) == row->want && small[0] == 'x', "%s: no room", row->what);
    CHECK(fa_attention_check(&described.a, small, 1) == row->want && small[0] == '\0' && small[1] == 'x',
          "%s: one byte", row->what);
    CHECK(fa_attention_check(&described.a, small, 10) == row->want, "%s: ten bytes", row->what);
    CHECK(strlen(small) == (length < 9 ? length : 9) && strncmp(small, why, 9) == 0 && small[10] == 'x',
          "%s: \"%.12s\" of \"%s\"", row->what, small, why);
}

static void cover(const char *field, const char *kind, fa_status status) {
    char place[100];
    snprintf(place, sizeof place, "fa_attention.%s", field);
    covered(place, kind, status);
}

/* The granularity that a row has: only what its words are about is what is wrong with it. */
static void cover_quant(const struct row *row, struct edit e) {
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
static void cover_other(const struct row *row) {
    static const char *const tensors[] = {"q", "k", "v", "mask"};
    const char *other = strstr(row->word, "with ") + strlen("with ");
    char field[50];
    snprintf(field, sizeof field, "%s", other);
    for (size_t i = 0; i < COUNT(tensors); i++) {
        if (strcmp(other, tensors[i]) == 0) snprintf(field, sizeof field, "%s.data", other);
    }
    if (strchr(field, ' ') == NULL && strcmp(field, "o") != 0) cover(field, "overlap", row->want);
}

/* What a row tries: a refusal counts for what the words are about, and for its last edit, which spoils what those before
 * have prepared. */
static void cover_row(const struct row *row) {
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

static int check_table(void) {
    int calls = 0;
    for (size_t r = 0; r < COUNT(rows); r++) {
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
    return calls;
}

/* ---- The other arguments. ---- */

static int checked;

/* `call` is its text. */
static void cover_call(const char *call, const char *argument, const char *kind, fa_status status) {
    char place[100];
    snprintf(place, sizeof place, "%.*s(%s)", (int)strcspn(call, "("), call, argument);
    covered(place, kind, status);
}

/* One call, with such a value of an argument, that must have this result and change nothing. */
#define REFUSES(want, argument, kind, call)                                                              \
    do {                                                                                    \
        fill();                                                                             \
        described = good;                                                                   \
        fa_status status = call;                                                            \
        CHECK(status == want, "%s is %s", #call, fa_status_string(status));                 \
        CHECK(memcmp(&arena, &before, sizeof arena) == 0, "%s: memory has changed", #call); \
        CHECK(memcmp(&described, &good, sizeof good) == 0, "%s: the description has changed", #call); \
        cover_call(#call, argument, kind, want);                                                \
        checked++;                                                                          \
    } while (0)

static fa_attention *const a = &described.a;

static void null_descriptions(void) {
    char why[100] = "";
    size_t *bytes = AT(end, 0);
    REFUSES(FA_ERR_NULL, "a", "NULL", fa_attention_init(NULL, sizeof *a));
    REFUSES(FA_ERR_NULL, "a", "NULL", fa_attention_check(NULL, NULL, 0));
    REFUSES(FA_ERR_NULL, "a", "NULL", fa_attention_check(NULL, why, sizeof why));
    CHECK(why[0] != '\0', "no words");
    REFUSES(FA_OK, "why", "NULL", fa_attention_check(a, NULL, 100));
    REFUSES(FA_OK, "why_size", "zero", fa_attention_check(a, why, 0));
    REFUSES(FA_ERR_NULL, "a", "NULL", fa_attention_workspace(NULL, 1, bytes));
    REFUSES(FA_ERR_NULL, "bytes", "NULL", fa_attention_workspace(a, 1, NULL));
    REFUSES(FA_ERR_NULL, "a", "NULL", fa_attention_run(NULL, ws, sizeof ws, NULL));
    REFUSES(FA_ERR_NULL, "a", "NULL", fa_attention_part(NULL, ws, sizeof ws, 0, 1));
    REFUSES(FA_ERR_NULL, "a", "NULL", fa_attention_finish(NULL, ws, sizeof ws, 0, 1));
}

static void sizes_of_init(void) {
    REFUSES(FA_ERR_STRUCT_SIZE, "struct_size", "zero", fa_attention_init(a, 0));
    REFUSES(FA_ERR_STRUCT_SIZE, "struct_size", "other", fa_attention_init(a, 8));
    REFUSES(FA_ERR_STRUCT_SIZE, "struct_size", "other", fa_attention_init(a, sizeof *a - 1));
    REFUSES(FA_ERR_STRUCT_SIZE, "struct_size", "other", fa_attention_init(a, sizeof *a + 4097));
    REFUSES(FA_ERR_STRUCT_SIZE, "struct_size", "huge", fa_attention_init(a, (size_t)BIT(62)));
    REFUSES(FA_ERR_STRUCT_SIZE, "struct_size", "huge", fa_attention_init(a, SIZE_MAX));
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
        REFUSES(FA_ERR_PART, "n_parts", kind_of_integer(counts[i], 4), fa_attention_workspace(a, counts[i], bytes));
        REFUSES(FA_ERR_PART, "n_parts", kind_of_integer(counts[i], 4), fa_attention_part(a, ws, sizeof ws, 0, counts[i]));
        REFUSES(FA_ERR_PART, "n_parts", kind_of_integer(counts[i], 4), fa_attention_finish(a, ws, sizeof ws, 0, counts[i]));
    }
    for (size_t i = 0; i < COUNT(numbers); i++) {
        REFUSES(FA_ERR_PART, "part", kind_of_integer(numbers[i][0], 4), fa_attention_part(a, ws, sizeof ws, numbers[i][0], numbers[i][1]));
        REFUSES(FA_ERR_PART, "part", kind_of_integer(numbers[i][0], 4), fa_attention_finish(a, ws, sizeof ws, numbers[i][0], numbers[i][1]));
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
        REFUSES(FA_ERR_WORKSPACE, "ws_size", "other", fa_attention_run(&m, ws + 1, pool_bytes - 1, &pool));
        REFUSES(FA_ERR_WORKSPACE, "ws_size", "zero", fa_attention_run(&m, ws, 0, &pool));
        REFUSES(FA_ERR_WORKSPACE, "ws", "NULL", fa_attention_run(&m, NULL, 0, &pool));
        REFUSES(FA_ERR_WORKSPACE, "ws", "NULL", fa_attention_run(&m, NULL, pool_bytes, &pool));
        for (int32_t i = 0; i < n; i += n - 1) {
            REFUSES(FA_ERR_WORKSPACE, "ws_size", "other", fa_attention_part(&m, ws, bytes - 1, i, n));
            REFUSES(FA_ERR_WORKSPACE, "ws_size", "zero", fa_attention_part(&m, ws, 0, i, n));
            REFUSES(FA_ERR_WORKSPACE, "ws", "NULL", fa_attention_part(&m, NULL, bytes, i, n));
            REFUSES(FA_ERR_WORKSPACE, "ws_size", "other", fa_attention_finish(&m, ws, bytes - 1, i, n));
            REFUSES(FA_ERR_WORKSPACE, "ws_size", "zero", fa_attention_finish(&m, ws, 0, i, n));
            REFUSES(FA_ERR_WORKSPACE, "ws", "NULL", fa_attention_finish(&m, NULL, bytes, i, n));
        }
    }
}

static void pools(void) {
    static const size_t sizes[] = {0, 1, 8, sizeof(fa_pool) - 1, SIZE_MAX, (size_t)BIT(62), 1 << 20};
    static const int32_t threads[] = {-1, 257, INT32_MIN, INT32_MAX};
    for (size_t i = 0; i < COUNT(sizes); i++) {
        fa_pool pool = {.struct_size = sizes[i], .width = width};
        REFUSES(FA_ERR_STRUCT_SIZE, "ws", "other", fa_attention_run(a, ws, sizeof ws, &pool));
        covered("fa_pool.struct_size", kind_of_integer((int64_t)sizes[i], 8), FA_ERR_STRUCT_SIZE);
    }
    struct {
        fa_pool pool;
        unsigned char tail[16];
    } later = {.pool = {.struct_size = sizeof later}, .tail = {[15] = 1}};
    REFUSES(FA_ERR_STRUCT_SIZE, "ws", "other", fa_attention_run(a, ws, sizeof ws, &later.pool));
    /* c_tests/pools.c has pools of all kinds. */
    fill(), described = good;
    fa_pool none = {.struct_size = sizeof none};
    CHECK(fa_attention_run(a, ws, sizeof ws, &none) == FA_OK, "a pool of nothing");
    covered("fa_pool.ctx", "NULL", FA_OK), covered("fa_pool.width", "NULL", FA_OK);
    covered("fa_pool.parallel_for", "NULL", FA_OK);
    REFUSES(FA_ERR_NULL, "out", "NULL", fa_pool_create(1, NULL));
    for (size_t i = 0; i < COUNT(threads); i++) REFUSES(FA_ERR_PART, "n_threads", kind_of_integer(threads[i], 4), fa_pool_create(threads[i], AT(end, 0)));
    fa_pool_destroy(NULL);
    covered("fa_pool_destroy(pool)", "NULL", FA_OK);
    unsigned char room[sizeof(fa_pool *) + 1];
    fa_pool *made = NULL;
    CHECK(fa_pool_create(1, (fa_pool **)(void *)(room + 1)) == FA_OK, "a pool at an odd address");
    memcpy(&made, room + 1, sizeof made);
    fa_pool_destroy(made);
    covered("fa_pool_create(out)", "odd", FA_OK);
}

/* ---- Odd addresses: everything that a pointer leads to, the outputs too, gives the same bits there. ---- */

static struct {
    unsigned char bytes[1 << 17];
    size_t used;
} odd;

static void *at_odd(const void *from, size_t bytes) {
    odd.used |= 1;
    unsigned char *at = odd.bytes + odd.used;
    odd.used += bytes;
    CHECK(odd.used <= sizeof odd.bytes, "room");
    memcpy(at, from, bytes);
    return at;
}

/* Moves what a pointer leads to, if it leads anywhere. */
static const void *moved(const char *field, const void *from, size_t bytes) {
    if (from == NULL) return NULL;
    cover(field, "odd", FA_OK);
    return at_odd(from, bytes);
}

static const fa_quant *moved_quant(const char *name, const fa_quant *from) {
    char field[40];
    if (from == NULL) return NULL;
    fa_quant g = *from;
#define FIELD(what) (snprintf(field, sizeof field, "%s.quant%s", name, what), field)
    g.scale = moved(FIELD(".scale"), g.scale, sizeof many), g.zero = moved(FIELD(".zero"), g.zero, sizeof many);
    return moved(FIELD(""), &g, sizeof g);
}

static void move_tensor(const char *name, fa_tensor *t, size_t bytes) {
    char field[20];
    snprintf(field, sizeof field, "%s.data", name);
    t->data = (void *)(uintptr_t)moved(field, t->data, bytes);
    t->quant = moved_quant(name, t->quant);
}

static const void *the_lists(const char *field, const int32_t *list, size_t n) {
    return moved(field, list, n * sizeof *list);
}

/* The description `described`, here and there. */
static void same_at_odd_addresses(const char *what) {
    static float o[COUNT(arena.o)], lse[COUNT(arena.lse)];
    size_t bytes = 0, odd_bytes = 0, *bytes_at_odd;
    unsigned char room[sizeof bytes + 1];
    CHECK(workspace(a) == FA_OK && run(a) == FA_OK, "%s", what);
    CHECK(fa_attention_workspace(a, PARTS, &bytes) == FA_OK, "%s", what);
    memcpy(o, arena.o, sizeof o), memcpy(lse, arena.lse, sizeof lse);

    fa_attention m = *a;
    odd.used = 0;
    move_tensor("q", &m.q, sizeof arena.q), move_tensor("k", &m.k, sizeof arena.k), move_tensor("v", &m.v, sizeof arena.v);
    move_tensor("o", &m.o, sizeof arena.o), move_tensor("mask", &m.mask, B * HQ * LQ * LKV * 4);
    m.lse = (float *)(uintptr_t)moved("lse", m.lse, sizeof arena.lse);
    m.alibi_slopes = moved("alibi_slopes", m.alibi_slopes, B * HQ * 4);
    m.sinks = moved("sinks", m.sinks, HQ * 4);
    m.block_mask = moved("block_mask", m.block_mask, B * HQ * LQ * LKV);
    m.cu_len_q = the_lists("cu_len_q", m.cu_len_q, B + 1), m.cu_len_kv = the_lists("cu_len_kv", m.cu_len_kv, B + 1);
    m.kv_lens = the_lists("kv_lens", m.kv_lens, B), m.block_table = the_lists("block_table", m.block_table, B);
    m.block_table_start = the_lists("block_table_start", m.block_table_start, B + 1);
    const fa_attention *there = at_odd(&m, sizeof m);

    bytes_at_odd = (void *)(room + 1);
    CHECK(check(there) == FA_OK, "%s", what);
    CHECK(fa_attention_workspace(there, PARTS, bytes_at_odd) == FA_OK, "%s", what);
    memcpy(&odd_bytes, bytes_at_odd, sizeof odd_bytes);
    CHECK(odd_bytes == bytes, "%s: %zu bytes, not %zu", what, odd_bytes, bytes);
    fa_pool pool = {.struct_size = sizeof pool, .width = width};
    for (int way = 0; way < 3; way++) {
        memset(m.o.data, 0xff, sizeof arena.o), memset(m.lse, 0xff, sizeof arena.lse);
        fa_status status = way == 0 ? fa_attention_run(there, ws + 1, SIZE_MAX, NULL)
                           : way == 1 ? fa_attention_run(there, ws + 1, bytes, at_odd(&pool, sizeof pool)) : FA_OK;
        for (int32_t i = 0; way == 2 && i < 2 * PARTS && status == FA_OK; i++) {
            status = i < PARTS ? fa_attention_part(there, ws + 1, SIZE_MAX, i, PARTS)
                               : fa_attention_finish(there, ws + 1, SIZE_MAX, i - PARTS, PARTS);
        }
        CHECK(status == FA_OK, "%s: %s", what, fa_status_string(status));
        CHECK(memcmp(m.o.data, o, sizeof o) == 0 && memcmp(m.lse, lse, sizeof lse) == 0, "%s, way %d: other bits", what,
              way);
    }
}

static void odd_addresses(void) {
    static const char *const odd_arguments[] = {
        "fa_attention_init(a)", "fa_attention_check(a)", "fa_attention_workspace(a)", "fa_attention_workspace(bytes)",
        "fa_attention_run(a)", "fa_attention_run(ws)", "fa_attention_run(pool)", "fa_attention_part(a)",
        "fa_attention_part(ws)", "fa_attention_finish(a)", "fa_attention_finish(ws)",
    };
    static const char *const huge[] = {"fa_attention_run(ws_size)", "fa_attention_part(ws_size)",
                                       "fa_attention_finish(ws_size)"};
    for (size_t i = 0; i < COUNT(odd_arguments); i++) covered(odd_arguments[i], "odd", FA_OK);
    for (size_t i = 0; i < COUNT(huge); i++) covered(huge[i], "huge", FA_OK);
    covered("fa_attention_run(pool)", "NULL", FA_OK);

    fill(), described = good;
    static float numbers[B * HQ * LQ * LKV];
    static unsigned char cells[B * HQ * LQ * LKV];
    for (size_t i = 0; i < COUNT(numbers); i++) numbers[i] = (float)i / 100, cells[i] = i % 3 != 0;
    a->mask.data = numbers, a->mask.stride[2] = LKV * 4, a->mask.stride[1] = LQ * LKV * 4;
    a->alibi_slopes = numbers + 3, a->sinks = numbers + 5, a->kv_lens = INTS(7, 9);
    a->block_mask = cells, a->block_mask_q = 2, a->block_mask_kv = 4, a->block_mask_stride[1] = 9;
    same_at_odd_addresses("masks");

    fill(), described = good;
    a->cu_len_q = INTS(0, 5, 10), a->cu_len_kv = INTS(1, 9, 17), a->lse_stride[1] = 2 * LQ;
    same_at_odd_addresses("ragged");

    fill(), described = good;
    a->block_table = INTS(1, 0), a->block_table_start = INTS(0, 1, 2), a->page_size = LKV, a->num_pages = 2;
    same_at_odd_addresses("pages");

    /* The zeros begin one further on, and as many of them are moved. */
    static const float scales[COUNT(many) + 1] = {0.25f, 0.5f, 0.125f, 1};
    static const fa_quant granular = {scales, scales + 1, {0, 1, 0, 0}, 1, 1}, coarse = {scales, NULL, {0, 1, 0, 0}, 1, 1};
    for (int zeros = 0; zeros < 2; zeros++) {
        fill(), described = good;
        fa_tensor *tensors[] = {&a->q, &a->k, &a->v};
        for (size_t i = 0; i < COUNT(tensors); i++) {
            tensors[i]->dtype = FA_DTYPE_I8, tensors[i]->quant = zeros ? &granular : &coarse;
        }
        same_at_odd_addresses(zeros ? "scales and zeros" : "scales");
    }

    unsigned char room[sizeof(fa_attention) + 1];
    fa_attention *there = (void *)(room + 1), empty;
    CHECK(fa_attention_init(&empty, sizeof empty) == FA_OK && fa_attention_init(there, sizeof empty) == FA_OK, "init");
    CHECK(memcmp(room + 1, &empty, sizeof empty) == 0, "init at an odd address");
}

static void merges(void) {
    enum { R = 8 };
    float *o = arena.o, *lse = arena.lse, *o2 = arena.q, *lse2 = arena.k;
    REFUSES(FA_ERR_NULL, "o", "NULL", fa_merge(NULL, lse, o2, lse2, R, DV));
    REFUSES(FA_ERR_NULL, "lse", "NULL", fa_merge(o, NULL, o2, lse2, R, DV));
    REFUSES(FA_ERR_NULL, "o2", "NULL", fa_merge(o, lse, NULL, lse2, R, DV));
    REFUSES(FA_ERR_NULL, "lse2", "NULL", fa_merge(o, lse, o2, NULL, R, DV));
    REFUSES(FA_OK, "o", "NULL", fa_merge(NULL, NULL, NULL, NULL, 0, DV));
    REFUSES(FA_OK, "rows", "zero", fa_merge(o, lse, o2, lse2, 0, DV));
    REFUSES(FA_ERR_SHAPE, "rows", "negative", fa_merge(o, lse, o2, lse2, -1, DV));
    REFUSES(FA_ERR_SHAPE, "rows", "negative", fa_merge(o, lse, o2, lse2, INT64_MIN, DV));
    REFUSES(FA_ERR_SHAPE, "dim_v", "negative", fa_merge(o, lse, o2, lse2, R, -1));
    REFUSES(FA_ERR_SHAPE, "dim_v", "negative", fa_merge(o, lse, o2, lse2, R, INT64_MIN));
    REFUSES(FA_ERR_SHAPE, "rows", "zero", fa_merge(o, lse, o2, lse2, 0, -1));
    REFUSES(FA_ERR_ZERO_EXTENT, "dim_v", "zero", fa_merge(o, lse, o2, lse2, R, 0));
    REFUSES(FA_ERR_ZERO_EXTENT, "rows", "zero", fa_merge(o, lse, o2, lse2, 0, 0));
    REFUSES(FA_ERR_OVERFLOW, "rows", "huge", fa_merge(o, lse, o2, lse2, INT64_MAX, DV));
    REFUSES(FA_ERR_OVERFLOW, "dim_v", "huge", fa_merge(o, lse, o2, lse2, R, INT64_MAX));
    REFUSES(FA_ERR_OVERFLOW, "rows", "huge", fa_merge(o, lse, o2, lse2, INT64_MAX, INT64_MAX));
    REFUSES(FA_ERR_OVERFLOW, "rows", "huge", fa_merge(o, lse, o2, lse2, BIT(32), BIT(32)));
    REFUSES(FA_ERR_OVERFLOW, "rows", "huge", fa_merge(o, lse, o2, lse2, BIT(62), 4));
    REFUSES(FA_ERR_OVERFLOW, "rows", "huge", fa_merge(o, lse, o2, lse2, BIT(61), 1));
    REFUSES(FA_ERR_OVERLAP, "o2", "overlap", fa_merge(o, lse, o, lse2, R, DV));
    REFUSES(FA_ERR_OVERLAP, "o2", "overlap", fa_merge(o, lse, o + R * DV - 1, lse2, R, DV));
    REFUSES(FA_ERR_OVERLAP, "o", "overlap", fa_merge(o + R * DV - 1, lse, o, lse2, R, DV));
    REFUSES(FA_ERR_OVERLAP, "lse2", "overlap", fa_merge(o, lse, o2, lse, R, DV));
    REFUSES(FA_ERR_OVERLAP, "lse2", "overlap", fa_merge(o, lse, o2, lse + R - 1, R, DV));
    REFUSES(FA_ERR_OVERLAP, "lse", "overlap", fa_merge(o, lse + R - 1, o2, lse, R, DV));
    REFUSES(FA_ERR_OVERLAP, "lse2", "overlap", fa_merge(o, lse, o2, o + R * DV - 1, R, DV));
    REFUSES(FA_ERR_OVERLAP, "o2", "overlap", fa_merge(o, lse, lse + R - 1, lse2, R, DV));
    REFUSES(FA_ERR_OVERLAP, "lse", "overlap", fa_merge(o, o + R * DV - 1, o2, lse2, R, DV));
    REFUSES(FA_ERR_STRIDE, "o", "odd", fa_merge(AT(o, 1), lse, o2, lse2, R, DV));
    REFUSES(FA_ERR_STRIDE, "lse", "odd", fa_merge(o, AT(lse, 2), o2, lse2, R, DV));
    REFUSES(FA_ERR_STRIDE, "o2", "odd", fa_merge(o, lse, AT(q, 3), lse2, R, DV));
    REFUSES(FA_ERR_STRIDE, "lse2", "odd", fa_merge(o, lse, o2, AT(k, 1), R, DV));
    /* Side by side is fine, and so are the same states on both right sides. */
    CHECK(fa_merge(o, lse, o + R * DV, lse + R, R, DV) == FA_OK, "neighbours");
    CHECK(fa_merge(o, lse, o2, o2, R, DV) == FA_OK, "inputs may overlap");
}

int main(int argc, char **argv) {
    covered_begin(argc, argv);
    int calls = check_table();
    null_descriptions();
    sizes_of_init();
    part_numbers();
    workspaces();
    pools();
    merges();
    odd_addresses();
    printf("%zu descriptions in %d calls, %d calls with other wrong arguments\n", COUNT(rows), calls, checked);
    return check_result();
}
