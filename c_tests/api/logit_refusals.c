/* What changes scores: softcap, masks, ALiBi slopes, block masks, sinks. */

#include <float.h>

#include "described.h"

#define MASK(type) P(mask.data, AT(q, 0)), N(mask.dtype, FA_DTYPE_##type)

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

static const struct row rows[] = {
    {"nothing wrong", FA_OK, NULL, {{0}}},

    BYTES(mask_bytes, LKV * 4, MASKED, ),
    {"no mask: its bytes", FA_OK, NULL, {N(mask_bytes, -1)}},
    {"mask F16", FA_OK, NULL, {MASK(F16)}},
    {"mask BF16", FA_OK, NULL, {MASK(BF16)}},
    {"mask I8", FA_ERR_DTYPE, "mask.dtype", {MASK(I8)}},
    {"mask I8 with a scale", FA_ERR_DTYPE, "mask.dtype", {MASK(I8), P(mask.quant, QUANT_OF_ALL)}},
    {"mask U8", FA_ERR_DTYPE, "mask.dtype", {MASK(U8)}},
    {"mask Q15", FA_ERR_DTYPE, "mask.dtype", {MASK(Q15)}},
    {"mask Q15 with a scale", FA_ERR_DTYPE, "mask.dtype", {MASK(Q15), P(mask.quant, QUANT_OF_SCALES)}},
    {"mask F8_E4M3", FA_ERR_DTYPE, "mask.dtype", {MASK(F8_E4M3)}},
    {"mask F8_E5M2 with a scale", FA_ERR_DTYPE, "mask.dtype", {MASK(F8_E5M2), P(mask.quant, QUANT_OF_ALL)}},
    {"mask Q8_0", FA_ERR_DTYPE, "mask.dtype", {MASK(Q8_0)}},
    {"mask Q4_0, whole blocks", FA_ERR_DTYPE, "mask.dtype", {MASK(Q4_0), N(len_kv, 32)}},
    {"mask IQ4_NL, whole blocks", FA_ERR_DTYPE, "mask.dtype", {MASK(IQ4_NL), N(len_kv, 32)}},
    {"mask Q8_0, whole blocks", FA_ERR_DTYPE, "mask.dtype", {MASK(Q8_0), N(len_kv, 32)}},
    {"mask.dtype 99", FA_ERR_DTYPE, "mask.dtype", {P(mask.data, AT(q, 0)), N(mask.dtype, 99)}},
    {"mask F32 with a scale", FA_ERR_DTYPE, "mask.quant", {MASK(F32), P(mask.quant, QUANT_OF_ALL)}},
    {"mask F16 with a scale", FA_ERR_DTYPE, "mask.quant", {MASK(F16), P(mask.quant, QUANT_OF_ALL)}},
    {"mask BF16 with a quant of nothing", FA_ERR_DTYPE, "mask.quant", {MASK(BF16), P(mask.quant, QUANT_OF_NOTHING)}},
    {"mask BOOL8 with a scale", FA_ERR_DTYPE, "mask.quant", {MASK(BOOL8), P(mask.quant, QUANT_OF_ALL)}},
    {"mask F16, stride 2", FA_OK, NULL, {MASK(F16), N(mask.stride[2], 2)}},
    {"mask F16, stride 17", FA_ERR_STRIDE, "mask.stride[2]", {MASK(F16), N(mask.stride[2], 17)}},
    {"mask BF16, stride 17", FA_ERR_STRIDE, "mask.stride[1]", {MASK(BF16), N(mask.stride[1], 17)}},
    {"mask F32, stride 18", FA_ERR_STRIDE, "mask.stride[0]", {MASK(F32), N(mask.stride[0], 18)}},
    {"mask BOOL8, stride 17", FA_OK, NULL, {MASK(BOOL8), N(mask.stride[2], 17)}},

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
    NO_STRIDE_DIM(mask, MASKED, ),
    {"mask NULL, its stride_dim wild", FA_OK, NULL, {P(mask.data, NULL), N(mask.stride_dim, -3)}},
    {"flags 8", FA_ERR_RESERVED, "flags", {N(flags, 8)}},
    {"FA_FAST", FA_OK, NULL, {N(flags, FA_FAST)}},
    {"FA_FAST and FA_PRECISE", FA_ERR_RESERVED, "exclude each other", {N(flags, FA_FAST | FA_PRECISE)}},
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
};

int main(int argc, char **argv) { return check_rows(argc, argv, rows, COUNT(rows)); }
