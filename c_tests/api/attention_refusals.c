/* Fields of fa_attention itself: sizes, flags, scale, positions, windows, blocks, log-sum-exp. */

#include <float.h>

#include "described.h"

#define NOT_NEGATIVE(field)                                                                     \
    {#field " -1", FA_ERR_SHAPE, #field, {N(field, -1)}},                                       \
    {#field " INT64_MIN", FA_ERR_SHAPE, #field, {N(field, INT64_MIN)}}

#define HUGE_SIZES(field)                                                                       \
    {#field " INT64_MAX", FA_ERR_OVERFLOW, TOO_MUCH, {N(field, INT64_MAX)}},                        \
    {#field " 2^62", FA_ERR_OVERFLOW, TOO_MUCH, {N(field, BIT(62))}},                               \
    {#field " 2^61", FA_ERR_OVERFLOW, TOO_MUCH, {N(field, BIT(61))}}

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

    {"batch 0", FA_OK, NULL, {N(batch, 0)}},
    {"batch 0, no tensors", FA_OK, NULL,
     {N(batch, 0), P(q.data, NULL), P(k.data, NULL), P(v.data, NULL), P(o.data, NULL)}},
    {"batch 0, heads_q 0", FA_ERR_ZERO_EXTENT, "heads_q", {N(batch, 0), N(heads_q, 0)}},
    {"batch 0, scale NaN", FA_ERR_SOFTMAX_SCALE, "scale", {N(batch, 0), X(scale, NAN)}},
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

    {"no queries, q and o NULL", FA_OK, NULL, {N(len_q, 0), P(q.data, NULL), P(o.data, NULL)}},
    {"no keys, k and v NULL", FA_OK, NULL, {N(len_kv, 0), P(k.data, NULL), P(v.data, NULL)}},
    {"no keys, q NULL", FA_ERR_NULL, "q: NULL", {N(len_kv, 0), P(q.data, NULL)}},
    {"no keys, o NULL", FA_ERR_NULL, "o: NULL", {N(len_kv, 0), P(o.data, NULL)}},
    {"no queries, k NULL", FA_ERR_NULL, "k: NULL", {N(len_q, 0), P(k.data, NULL)}},
    {"no queries, batch 0", FA_OK, NULL, {N(len_q, 0), N(batch, 0)}},
    {"no queries, scale NaN", FA_ERR_SOFTMAX_SCALE, "scale", {N(len_q, 0), X(scale, NAN)}},
    {"heads INT64_MAX, no queries, no keys", FA_ERR_OVERFLOW, "q" TOO_MUCH,
     {N(heads_q, INT64_MAX), N(heads_kv, INT64_MAX), N(len_q, 0), N(len_kv, 0)}},
    {"batch INT64_MAX, no queries, no keys", FA_ERR_OVERFLOW, "q" TOO_MUCH,
     {N(batch, INT64_MAX), N(len_q, 0), N(len_kv, 0)}},
    {"batch INT64_MAX, no queries, no keys, no strides", FA_OK, NULL,
     {N(batch, INT64_MAX), N(len_q, 0), N(len_kv, 0), N(q.stride[0], 0), N(k.stride[0], 0), N(v.stride[0], 0),
      N(o.stride[0], 0), P(lse, NULL)}},
    {"one entry, its stride huge", FA_OK, NULL, {N(batch, 1), N(q.stride[0], MOST), N(o.stride[0], MOST)}},

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
};

int main(int argc, char **argv) { return check_rows(argc, argv, rows, COUNT(rows)); }
