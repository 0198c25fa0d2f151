/* fa_tensor in q, k, v and o: addresses, strides, types, and outputs that overlap inputs. */

#include "described.h"

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
    {#t ".quant NULL", FA_OK, NULL, {P(t.quant, NULL)}}

/* A transposed cache [batch][head][dim][token] in the room of the usual one. */
#define TRANSPOSED(t, dim, bytes)                                                               \
    N(t.stride[0], HKV * dim * LKV * bytes), N(t.stride[1], dim * LKV * bytes), N(t.stride[2], bytes), \
        N(t.stride_dim, LKV * bytes)

/* Elements of k and v that lie apart. */
#define APART(t, sizes, dim)                                                                    \
    STRIDE_DIM(t, ),                                                                            \
    {#t " transposed", FA_OK, NULL, {TRANSPOSED(t, dim, 4)}},                                   \
    {#t " F16, transposed", FA_OK, NULL, {TRANSPOSED(t, dim, 2), N(t.dtype, FA_DTYPE_F16)}},    \
    {#t " BF16, transposed", FA_OK, NULL, {TRANSPOSED(t, dim, 2), N(t.dtype, FA_DTYPE_BF16)}},  \
    {#t " I8, transposed", FA_OK, NULL, {TRANSPOSED(t, dim, 1), N(t.dtype, FA_DTYPE_I8)}},      \
    {#t " every second element", FA_OK, NULL,                                                   \
     {N(t.stride[0], 0), N(t.stride[1], 0), N(t.stride[2], 8 * dim), N(t.stride_dim, 8)}},      \
    {#t " F16, stride_dim 3", FA_ERR_STRIDE, #t ".stride_dim", {N(t.dtype, FA_DTYPE_F16), N(t.stride_dim, 3)}}, \
    {#t " Q8_0, stride_dim 34", FA_ERR_STRIDE, "rows of blocks are contiguous",                 \
     {N(t.dtype, FA_DTYPE_Q8_0), N(sizes, 32), N(t.stride_dim, 34)}},                           \
    {#t " Q8_0, stride_dim 1", FA_ERR_STRIDE, #t ".stride_dim",                                 \
     {N(t.dtype, FA_DTYPE_Q8_0), N(sizes, 32), N(t.stride_dim, 1)}},                            \
    {#t ": 2^31 bytes between 2^33 elements", FA_ERR_OVERFLOW, TOO_MUCH,                        \
     {N(sizes, BIT(33) + 1), N(t.stride_dim, INT32_MAX - 3)}},                                  \
    {#t ": one element", FA_OK, NULL, {N(sizes, 1), N(t.stride_dim, INT32_MAX - 3)}},           \
    {"o in the gaps of " #t, FA_ERR_OVERLAP, "shares memory with " #t,                          \
     {P(o.data, AT(t, sizeof arena.t)), N(t.stride_dim, 1024)}}

/* Inputs of other types than f32; their rows have `dim` elements. */
#define OTHER_TYPES(t, dim)                                                                     \
    HALF(t, F16), HALF(t, BF16), HALF(t, Q15),                                                  \
    {#t " Q8_0, a third of a block", FA_ERR_SHAPE, #t ".dtype", {N(t.dtype, FA_DTYPE_Q8_0), N(dim, 10)}}, \
    {#t " Q8_0, half a block more", FA_ERR_SHAPE, #t ".dtype", {N(t.dtype, FA_DTYPE_Q8_0), N(dim, 48)}}, \
    {#t " Q8_0, an element less", FA_ERR_SHAPE, #t ".dtype", {N(t.dtype, FA_DTYPE_Q8_0), N(dim, 31)}}, \
    ODD_Q8_0(t, dim, 0), ODD_Q8_0(t, dim, 1), ODD_Q8_0(t, dim, 2),                              \
    BLOCKS(t, dim, Q4_0), BLOCKS(t, dim, Q4_1), BLOCKS(t, dim, Q5_0), BLOCKS(t, dim, Q5_1), BLOCKS(t, dim, IQ4_NL), \
    ZERO_ON(t, F8_E4M3), ZERO_ON(t, F8_E5M2), ZERO_ON(t, Q15),                                  \
    QUANT_ON(t, F32, dim, 8), QUANT_ON(t, F16, dim, 8), QUANT_ON(t, BF16, dim, 8),              \
    QUANT_ON(t, Q8_0, dim, 32)

/* Blocks of 4 and 5 bits. */
#define BLOCKS(t, dim, type)                                                                    \
    {#t " " #type ", half a block more", FA_ERR_SHAPE, #t ".dtype", {N(t.dtype, FA_DTYPE_##type), N(dim, 48)}}, \
    {#t " " #type ", an element less", FA_ERR_SHAPE, #t ".dtype", {N(t.dtype, FA_DTYPE_##type), N(dim, 31)}}, \
    {#t " " #type ", stride 4097", FA_ERR_STRIDE, #t ".stride[0]",                              \
     {N(t.dtype, FA_DTYPE_##type), N(dim, 32), N(t.stride[0], 4097)}},                          \
    {#t " " #type ", stride_dim 1", FA_ERR_STRIDE, #t ".stride_dim",                            \
     {N(t.dtype, FA_DTYPE_##type), N(dim, 32), N(t.stride_dim, 1)}},                            \
    QUANT_ON(t, type, dim, 32)

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
     {N(t.dtype, FA_DTYPE_##type), P(t.quant, QUANT_OF_ALL), N(dim, n)}},                      \
    {#t " " #type " with a quant that says nothing", FA_ERR_DTYPE, #t ".quant",                     \
     {N(t.dtype, FA_DTYPE_##type), P(t.quant, QUANT_OF_NOTHING), N(dim, n)}}

/* Scales alone are fine. */
#define ZERO_ON(t, type)                                                                        \
    {#t " " #type " with a zero", FA_ERR_DTYPE, #t ".quant.zero",                               \
     {N(t.dtype, FA_DTYPE_##type), P(t.quant, QUANT_OF_ALL)}}

/* What is not an output. */
#define BLOCKS_OF_O N(dim_v, 32), N(o.stride[0], 2560), N(o.stride[1], 128), N(o.stride[2], 512)

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

static const struct row rows[] = {
    {"nothing wrong", FA_OK, NULL, {{0}}},

    TENSOR(q, len_q), TENSOR(k, len_kv), TENSOR(v, len_kv), TENSOR(o, len_q),
    NO_STRIDE_DIM(q, ), NO_STRIDE_DIM(o, ), APART(k, dim_qk, DQK), APART(v, dim_v, DV),
    {"q Q8_0, stride_dim 34", FA_ERR_STRIDE, "rows of blocks are contiguous",
     {N(q.dtype, FA_DTYPE_Q8_0), N(dim_qk, 32), N(q.stride_dim, 34)}},

    OTHER_TYPES(q, dim_qk), OTHER_TYPES(k, dim_qk), OTHER_TYPES(v, dim_v),
    {"k Q8_0", FA_OK, NULL, {N(k.dtype, FA_DTYPE_Q8_0), N(dim_qk, 32)}},
    {"k Q4_0", FA_OK, NULL, {N(k.dtype, FA_DTYPE_Q4_0), N(dim_qk, 32)}},
    {"k Q5_1, stride 4098", FA_OK, NULL, {N(k.dtype, FA_DTYPE_Q5_1), N(dim_qk, 32), N(k.stride[0], 4098)}},
    {"k IQ4_NL", FA_OK, NULL, {N(k.dtype, FA_DTYPE_IQ4_NL), N(dim_qk, 32)}},
    {"k Q4_1, q Q5_0", FA_OK, NULL,
     {N(k.dtype, FA_DTYPE_Q4_1), N(q.dtype, FA_DTYPE_Q5_0), N(dim_qk, 32)}},
    {"o Q4_0", FA_ERR_DTYPE, "o.dtype", {N(o.dtype, FA_DTYPE_Q4_0), BLOCKS_OF_O}},
    {"k.dtype behind the last", FA_ERR_DTYPE, "k.dtype", {N(k.dtype, FA_DTYPE_Q15 + 1)}},
    {"k Q8_0, stride 4098", FA_OK, NULL, {N(k.dtype, FA_DTYPE_Q8_0), N(dim_qk, 32), N(k.stride[0], 4098)}},

    HALF(o, F16), HALF(o, BF16), HALF(o, Q15), ZERO_ON(o, Q15), QUANT_ON(o, F32, dim_v, DV), QUANT_ON(o, F16, dim_v, DV),
    QUANT_ON(o, BF16, dim_v, DV),
    {"o I8", FA_ERR_DTYPE, "o.dtype", {N(o.dtype, FA_DTYPE_I8)}},
    {"o F8_E4M3", FA_ERR_DTYPE, "o.dtype", {N(o.dtype, FA_DTYPE_F8_E4M3)}},
    {"o F8_E5M2 with a scale", FA_ERR_DTYPE, "o.dtype", {N(o.dtype, FA_DTYPE_F8_E5M2), P(o.quant, QUANT_OF_SCALES)}},
    {"o U8", FA_ERR_DTYPE, "o.dtype", {N(o.dtype, FA_DTYPE_U8)}},
    {"k U8", FA_OK, NULL, {N(k.dtype, FA_DTYPE_U8)}},
    {"q Q15", FA_OK, NULL, {N(q.dtype, FA_DTYPE_Q15)}},
    {"k Q15 with a scale", FA_OK, NULL, {N(k.dtype, FA_DTYPE_Q15), P(k.quant, QUANT_OF_SCALES)}},
    {"v Q15, transposed", FA_OK, NULL, {TRANSPOSED(v, DV, 2), N(v.dtype, FA_DTYPE_Q15)}},
    {"o Q15", FA_OK, NULL, {N(o.dtype, FA_DTYPE_Q15)}},
    {"o Q15 with a scale", FA_OK, NULL, {N(o.dtype, FA_DTYPE_Q15), P(o.quant, QUANT_OF_SCALES)}},
    {"o Q15, stride_dim 4", FA_ERR_STRIDE, "o.stride_dim", {N(o.dtype, FA_DTYPE_Q15), N(o.stride_dim, 4)}},
    {"rows of o Q15 overlap", FA_ERR_STRIDE, "o: strides", {N(o.dtype, FA_DTYPE_Q15), N(o.stride[1], DV * 2 - 2)}},
    {"k U8 with a scale and a zero", FA_OK, NULL, {N(k.dtype, FA_DTYPE_U8), P(k.quant, QUANT_OF_ALL)}},
    {"v U8, transposed", FA_OK, NULL, {TRANSPOSED(v, DV, 1), N(v.dtype, FA_DTYPE_U8)}},
    {"q F8_E5M2", FA_OK, NULL, {N(q.dtype, FA_DTYPE_F8_E5M2)}},
    {"k F8_E4M3 with a scale", FA_OK, NULL, {N(k.dtype, FA_DTYPE_F8_E4M3), P(k.quant, QUANT_OF_SCALES)}},
    {"v F8_E5M2 with a quant that says nothing", FA_OK, NULL,
     {N(v.dtype, FA_DTYPE_F8_E5M2), P(v.quant, QUANT_OF_NOTHING)}},
    {"k F8_E4M3, transposed", FA_OK, NULL, {TRANSPOSED(k, DQK, 1), N(k.dtype, FA_DTYPE_F8_E4M3)}},
    {"o I8 with a scale", FA_ERR_DTYPE, "o.dtype", {N(o.dtype, FA_DTYPE_I8), P(o.quant, QUANT_OF_ALL)}},
    {"o Q8_0", FA_ERR_DTYPE, "o.dtype", {N(o.dtype, FA_DTYPE_Q8_0), BLOCKS_OF_O}},
    {"o Q8_0, not of whole blocks", FA_ERR_SHAPE, "o.dtype", {N(o.dtype, FA_DTYPE_Q8_0)}},
    {"rows of o F16 overlap", FA_ERR_STRIDE, "o: strides", {N(o.dtype, FA_DTYPE_F16), N(o.stride[1], DV * 2 - 2)}},
    {"rows of o F16 touch", FA_OK, NULL, {N(o.dtype, FA_DTYPE_F16), N(o.stride[1], DV * 2)}},

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

    ONTO(q), ONTO(k), ONTO(v),
    {"lse is o", FA_ERR_OVERLAP, "lse: shares memory with o", {P(lse, AT(o, 0))}},
    {"lse begins on the last byte of o", FA_ERR_OVERLAP, "lse: shares memory with o", {P(lse, AT(o, sizeof arena.o - 1))}},
    {"v is k", FA_OK, NULL, {P(v.data, AT(k, 0))}},
    {"no queries, o is k", FA_OK, NULL, {N(len_q, 0), P(o.data, AT(k, 0))}},
};

int main(int argc, char **argv) { return check_rows(argc, argv, rows, COUNT(rows)); }
