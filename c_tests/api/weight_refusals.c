/* Probabilities: fa_attention.weights and its lists of heads and rows. */

#include "described.h"

/* Lists that an output can be moved onto: right as they are, and with room for it behind them. */
static int32_t zeros[GAP], in_order[GAP] = {0, 1, 2, 3};

/* Those of all heads and rows; another field of it may follow. */
#define STRIDES(heads, rows)                                                                    \
    N(weights.stride[0], (heads) * (rows) * LKV * 4), N(weights.stride[1], (rows) * LKV * 4), N(weights.stride[2], LKV * 4)
#define ALL P(weights.data, arena.weights), STRIDES(HQ, LQ)

#define HEADS(n, ...) P(weight_heads, INTS(__VA_ARGS__)), N(num_weight_heads, n)
#define ROWS(n, ...) P(weight_rows, INTS(__VA_ARGS__)), N(num_weight_rows, n)

#define AXIS(axis, small)                                                                       \
    {"stride -4", FA_ERR_STRIDE, "weights.stride[" #axis "]", {ALL, N(weights.stride[axis], -4)}}, \
    {"stride INT64_MIN", FA_ERR_STRIDE, "weights.stride[" #axis "]", {ALL, N(weights.stride[axis], INT64_MIN)}}, \
    {"stride 4098", FA_ERR_STRIDE, "weights.stride[" #axis "]", {ALL, N(weights.stride[axis], 4098)}}, \
    {"stride 4097", FA_ERR_STRIDE, "weights.stride[" #axis "]", {ALL, N(weights.stride[axis], 4097)}}, \
    {"stride 2^63", FA_ERR_OVERFLOW, "weights" TOO_MUCH, {ALL, N(weights.stride[axis], MOST)}},  \
    {"stride 0", FA_ERR_STRIDE, "weights: strides", {ALL, N(weights.stride[axis], 0)}},         \
    {"rows overlap", FA_ERR_STRIDE, "weights: strides", {ALL, N(weights.stride[axis], small)}}

#define DTYPE(type) {"dtype " #type, FA_ERR_DTYPE, "weights.dtype", {ALL, N(weights.dtype, type)}}

/* A number of entries of a list, without the list and with it. */
#define COUNTED(list, number, more)                                                             \
    {#number " 1", FA_ERR_SHAPE, #number " = 1", {N(number, 1)}},                               \
    {#number " -1", FA_ERR_SHAPE, #number " = -1", {N(number, -1)}},                            \
    {#number " INT64_MIN", FA_ERR_SHAPE, #number, {N(number, INT64_MIN)}},                      \
    {#number " INT64_MAX", FA_ERR_SHAPE, #number, {N(number, INT64_MAX)}},                      \
    {#number " INT64_MAX without a list", FA_ERR_SHAPE, #number, {ALL, N(number, INT64_MAX)}},  \
    {#number " 0, a list", FA_ERR_ZERO_EXTENT, #number, {ALL, P(list, in_order), N(number, 0)}}, \
    {#number " -1, a list", FA_ERR_SHAPE, #number, {ALL, P(list, in_order), N(number, -1)}},    \
    {#number " more than there are", FA_ERR_SHAPE, #number, {ALL, P(list, in_order), N(number, more)}}, \
    {#number " INT64_MAX, a list", FA_ERR_SHAPE, #number, {ALL, P(list, in_order), N(number, INT64_MAX)}}, \
    {#list " NULL", FA_OK, NULL, {ALL, P(list, NULL)}},                                         \
    {#list " without weights", FA_ERR_NULL, #list, {N(number, 2), P(list, in_order)}}

/* An output in the memory of something else. */
#define ALONE(list, number)                                                                     \
    {"o is " #list, FA_ERR_OVERLAP, "o: shares memory with " #list, {ALL, N(number, 1), P(list, zeros), P(o.data, zeros)}}, \
    {"lse is " #list, FA_ERR_OVERLAP, "lse: shares memory with " #list, {ALL, N(number, 1), P(list, zeros), P(lse, zeros)}}, \
    {"weights are " #list, FA_ERR_OVERLAP, "weights: shares memory with " #list,                \
     {ALL, N(number, 1), P(list, zeros), P(weights.data, zeros)}}

#define ONTO(t)                                                                                 \
    {"weights are " #t, FA_ERR_OVERLAP, "weights: shares memory with " #t, {ALL, P(weights.data, AT(t, 0))}}, \
    {"weights begin on the last byte of " #t, FA_ERR_OVERLAP, "weights: shares memory with " #t, \
     {ALL, P(weights.data, AT(t, sizeof arena.t - 1))}},                                        \
    {"weights begin behind " #t, FA_OK, NULL, {ALL, P(weights.data, AT(t, sizeof arena.t))}},   \
    {"weights end on the first byte of " #t, FA_ERR_OVERLAP, "weights: shares memory with " #t, \
     {ALL, P(weights.data, AT(before_##t, GAP + 1 - sizeof arena.weights))}},                   \
    {"weights end before " #t, FA_OK, NULL, {ALL, P(weights.data, AT(before_##t, GAP - sizeof arena.weights))}}

static const struct row rows[] = {
    {"nothing wrong", FA_OK, NULL, {{0}}},
    {"weights", FA_OK, NULL, {ALL}},
    BYTES(weights_bytes, B * HQ * LQ * LKV * 4, ALL, ),
    {"no weights: their bytes", FA_OK, NULL, {N(weights_bytes, -1)}},
    {"weights NULL", FA_OK, NULL, {P(weights.data, NULL)}},
    {"weights NULL, its strides wild", FA_OK, NULL,
     {P(weights.data, NULL), N(weights.stride[0], -1), N(weights.stride[1], INT64_MAX), N(weights.dtype, 99)}},
    {"weights of all, counted", FA_OK, NULL, {ALL, N(num_weight_heads, HQ), N(num_weight_rows, LQ)}},
    {"as many as there are, but none wanted", FA_OK, NULL, {N(num_weight_heads, HQ), N(num_weight_rows, LQ)}},
    AXIS(0, HQ * LQ * LKV * 4 - 4), AXIS(1, LQ * LKV * 4 - 4), AXIS(2, LKV * 4 - 4),
    {"one row, its stride 0", FA_OK, NULL,
     {P(weights.data, arena.weights), N(weights.stride[0], HQ * LKV * 4), N(weights.stride[1], LKV * 4), ROWS(1, -1)}},
    DTYPE(FA_DTYPE_F16), DTYPE(FA_DTYPE_BF16), DTYPE(FA_DTYPE_I8), DTYPE(FA_DTYPE_Q8_0), DTYPE(FA_DTYPE_BOOL8),
    DTYPE(99), DTYPE(-1), DTYPE(INT32_MIN), DTYPE(INT32_MAX),
    {"weights with a scale", FA_ERR_DTYPE, "weights.quant", {ALL, P(weights.quant, QUANT_OF_ALL)}},
    {"weights with a quant of nothing", FA_ERR_DTYPE, "weights.quant", {ALL, P(weights.quant, QUANT_OF_NOTHING)}},
    {"weights.quant NULL", FA_OK, NULL, {P(weights.quant, NULL)}},
    NO_STRIDE_DIM(weights, ALL, ),

    COUNTED(weight_heads, num_weight_heads, HQ + 1), COUNTED(weight_rows, num_weight_rows, LQ + 1),
    {"heads", FA_OK, NULL, {ALL, HEADS(2, 1, 3)}},
    {"all heads", FA_OK, NULL, {ALL, HEADS(4, 0, 1, 2, 3)}},
    {"head 4", FA_ERR_LENGTHS, "weight_heads[1] = 4", {ALL, HEADS(2, 1, 4)}},
    {"head INT32_MAX", FA_ERR_LENGTHS, "weight_heads[0]", {ALL, HEADS(1, INT32_MAX)}},
    {"head -1", FA_ERR_LENGTHS, "weight_heads[0] = -1", {ALL, HEADS(2, -1, 1)}},
    {"head INT32_MIN", FA_ERR_LENGTHS, "weight_heads[0]", {ALL, HEADS(1, INT32_MIN)}},
    {"a head twice", FA_ERR_LENGTHS, "weight_heads[1] = 2", {ALL, HEADS(2, 2, 2)}},
    {"heads descend", FA_ERR_LENGTHS, "weight_heads[2] = 1", {ALL, HEADS(3, 0, 2, 1)}},
    {"rows", FA_OK, NULL, {ALL, ROWS(3, 0, 2, 4)}},
    {"rows from the end", FA_OK, NULL, {ALL, ROWS(3, -5, -2, -1)}},
    {"row 5", FA_ERR_LENGTHS, "weight_rows[1] = 5", {ALL, ROWS(2, 1, 5)}},
    {"row INT32_MAX", FA_ERR_LENGTHS, "weight_rows[0]", {ALL, ROWS(1, INT32_MAX)}},
    {"row -6", FA_ERR_LENGTHS, "weight_rows[0] = -6", {ALL, ROWS(2, -6, -1)}},
    {"row INT32_MIN", FA_ERR_LENGTHS, "weight_rows[0]", {ALL, ROWS(1, INT32_MIN)}},
    {"rows from both ends", FA_ERR_LENGTHS, "weight_rows[1] = 0", {ALL, ROWS(2, -1, 0)}},
    {"a row twice", FA_ERR_LENGTHS, "weight_rows[1] = -1", {ALL, ROWS(2, -1, -1)}},
    {"rows descend", FA_ERR_LENGTHS, "weight_rows[1] = 1", {ALL, ROWS(2, 3, 1)}},
    {"rows that a sequence does not have", FA_OK, NULL, {ALL, ROWS(2, -5, 4), P(cu_len_q, INTS(0, 0, 5)), N(num_weight_rows, 1)}},

    ONTO(q), ONTO(k), ONTO(v), ONTO(o), ONTO(lse),
    {"weights are mask", FA_ERR_OVERLAP, "weights: shares memory with mask",
     {ALL, P(mask.data, AT(end, 0)), P(weights.data, AT(end, 0))}},
    {"weights are sinks", FA_ERR_OVERLAP, "weights: shares memory with sinks", {ALL, P(sinks, zeros), P(weights.data, zeros)}},
    {"weights are kv_lens", FA_ERR_OVERLAP, "weights: shares memory with kv_lens",
     {ALL, P(kv_lens, zeros), P(weights.data, zeros)}},
    ALONE(weight_heads, num_weight_heads), ALONE(weight_rows, num_weight_rows),
};

int main(int argc, char **argv) { return check_rows(argc, argv, rows, COUNT(rows)); }
