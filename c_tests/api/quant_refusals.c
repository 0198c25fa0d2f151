/* fa_quant: scales and zeros of 8-bit integers, scales of outputs, and their granularity. */

#include "described.h"

/* Scales and zeros of an input. */
#define QUANT(t)                                                                                \
    {#t " I8", FA_OK, NULL, {N(t.dtype, FA_DTYPE_I8)}},                                         \
    {#t " I8, odd strides", FA_OK, NULL,                                                        \
     {N(t.dtype, FA_DTYPE_I8), N(t.stride[0], 1281), N(t.stride[1], 33)}},                      \
    {#t " with a scale", FA_OK, NULL, I8(t, ONE(0.5f), NULL, 0, 0, 0, 0, 1, 1)},                \
    {#t " with a zero", FA_OK, NULL, I8(t, NULL, ONE(-7.5f), 0, 0, 0, 0, 1, 1)},                \
    {#t " with neither", FA_OK, NULL, I8(t, NULL, NULL, 0, 0, 0, 0, 1, 1)},                     \
    {#t " with scales and zeros for all", FA_OK, NULL, I8(t, MANY, MANY, 1, 1, 1, 1, 1, 1)},    \
    {#t ", groups larger than all", FA_OK, NULL,                                                \
     I8(t, MANY, MANY, 1, 1, INT64_MAX, INT64_MAX, INT32_MAX, INT32_MAX)},                      \
    {#t ", groups of nothing", FA_OK, NULL, I8(t, MANY, MANY, 1, 1, 0, 0, 0, 0)},               \
    {#t ", groups of less than nothing", FA_OK, NULL, I8(t, MANY, NULL, 1, 1, 0, 0, -1, INT32_MIN)}, \
    {#t ", no groups of tokens", FA_OK, NULL, I8(t, MANY, MANY, 0, 0, 0, 1, INT32_MIN, 1)},     \
    {#t ", no groups of channels", FA_OK, NULL, I8(t, MANY, MANY, 0, 0, 1, 0, 1, -1)},          \
    NO_GROUP(t, FA_ERR_ZERO_EXTENT, 0), NO_GROUP(t, FA_ERR_SHAPE, -1), NO_GROUP(t, FA_ERR_SHAPE, INT32_MIN), \
    QUANT_AXIS(t, 0, FOR_ENTRY), QUANT_AXIS(t, 1, FOR_HEAD), QUANT_AXIS(t, 2, FOR_TOKEN),       \
    QUANT_AXIS(t, 3, FOR_CHANNEL),                                                              \
    {#t ": 2^61 scales", FA_ERR_OVERFLOW, #t ".quant.stride[", I8(t, MANY, NULL, BIT(60), BIT(60), 0, 0, 1, 1)}, \
    {#t ": 2^61 zeros", FA_ERR_OVERFLOW, #t ".quant.stride[", I8(t, NULL, MANY, 0, BIT(60), BIT(60), 0, 4, 1)},  \
    NO_NUMBER(t, NAN), NO_NUMBER(t, INFINITY), NO_NUMBER(t, -INFINITY),                         \
    ON_OUTPUT(t, o, scale), ON_OUTPUT(t, o, zero), ON_OUTPUT(t, lse, scale), ON_OUTPUT(t, lse, zero)

/* Scales or zeros in the memory of an output. */
#define ON_OUTPUT(t, output, which)                                                             \
    {#output " is " #t ".quant." #which, FA_ERR_OVERLAP, #output ": shares memory with scales of " #t, \
     {N(t.dtype, FA_DTYPE_I8), P(t.quant, &(const fa_quant){.which = arena.output})}}

#define NO_GROUP(t, want, n)                                                                    \
    {#t ", group_tokens " #n, want, #t ".quant.group_tokens", I8(t, MANY, MANY, 0, 0, 1, 1, n, 1)}, \
    {#t ", group_tokens " #n ", channels alike", want, #t ".quant.group_tokens",                    \
     I8(t, MANY, NULL, 0, 0, 1, 0, n, 0)},                                                      \
    {#t ", group_dims " #n, want, #t ".quant.group_dims", I8(t, MANY, MANY, 0, 0, 1, 1, 1, n)},     \
    {#t ", group_dims " #n ", tokens alike", want, #t ".quant.group_dims", I8(t, NULL, MANY, 0, 0, 0, 1, 0, n)}

#define I8_LIKE(...) I8(__VA_ARGS__)
#define FOR_ENTRY(n) n, 0, 0, 0, 1, 1
#define FOR_HEAD(n) 0, n, 0, 0, 1, 1
#define FOR_TOKEN(n) 0, 0, n, 0, 1, 1
#define FOR_CHANNEL(n) 0, 0, 0, n, 1, 1

#define QUANT_AXIS(t, axis, at)                                                                 \
    {#t ".quant.stride -1", FA_ERR_STRIDE, #t ".quant.stride[" #axis "]", I8_LIKE(t, MANY, MANY, at(-1))}, \
    {#t ".quant.stride INT64_MIN", FA_ERR_STRIDE, #t ".quant.stride[" #axis "]",                    \
     I8_LIKE(t, NULL, NULL, at(INT64_MIN))},                                                    \
    {#t ".quant.stride INT64_MAX", FA_ERR_OVERFLOW, #t ".quant.stride[" #axis "]", I8_LIKE(t, MANY, MANY, at(INT64_MAX))}, \
    {#t ".quant.stride 2^62", FA_ERR_OVERFLOW, #t ".quant.stride[" #axis "]", I8_LIKE(t, NULL, MANY, at(BIT(62)))},        \
    {#t ".quant.stride 2^61", FA_ERR_OVERFLOW, #t ".quant.stride[" #axis "]", I8_LIKE(t, MANY, NULL, at(BIT(61)))}

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

/* Fractions with scales. */
#define Q15(t, scale, zero, batch, head, token, dim, tokens, dims)                              \
    {N(t.dtype, FA_DTYPE_Q15),                                                                  \
     P(t.quant, (&(const fa_quant){scale, zero, {batch, head, token, dim}, tokens, dims}))}

/* Scales of an output. */
#define SCALES_OF_O(t)                                                                          \
    {#t " with a scale for all", FA_OK, NULL, Q15(t, MANY, NULL, 1, 1, 1, 1, 1, 1)},            \
    {#t " with no scale", FA_OK, NULL, Q15(t, NULL, NULL, 0, 0, 0, 0, 1, 1)},                   \
    {#t " with a zero", FA_ERR_DTYPE, #t ".quant.zero", Q15(t, ONE(1), ONE(1), 0, 0, 0, 0, 1, 1)}, \
    {#t ", groups larger than all", FA_OK, NULL,                                                \
     Q15(t, MANY, NULL, 1, 1, INT64_MAX, INT64_MAX, INT32_MAX, INT32_MAX)},                     \
    {#t ", groups of nothing", FA_OK, NULL, Q15(t, MANY, NULL, 1, 1, 0, 0, 0, INT32_MIN)},      \
    NO_GROUP_OF_O(t, FA_ERR_ZERO_EXTENT, 0), NO_GROUP_OF_O(t, FA_ERR_SHAPE, -1),                \
    NO_GROUP_OF_O(t, FA_ERR_SHAPE, INT32_MIN),                                                  \
    AXIS_OF_O(t, 0, FOR_ENTRY), AXIS_OF_O(t, 1, FOR_HEAD), AXIS_OF_O(t, 2, FOR_TOKEN),          \
    AXIS_OF_O(t, 3, FOR_CHANNEL),                                                               \
    {#t ", one scale: NaN", FA_ERR_QUANT_SCALE, #t ".quant", Q15(t, ONE(NAN), NULL, 0, 0, 0, 0, 1, 1)}, \
    {#t ", one scale: -infinity", FA_ERR_QUANT_SCALE, #t ".quant", Q15(t, ONE(-INFINITY), NULL, 0, 0, 0, 0, 1, 1)}, \
    {#t ", a token's scale: NaN", FA_OK, NULL, Q15(t, FIRST(NAN), NULL, 0, 0, 1, 0, 1, 1)},     \
    {#t " is " #t ".quant.zero", FA_ERR_DTYPE, #t ".quant.zero",                                \
     {N(t.dtype, FA_DTYPE_Q15), P(t.quant, &(const fa_quant){.zero = arena.t})}},               \
    SCALE_ON_OUTPUT(t, o), SCALE_ON_OUTPUT(t, lse)

#define NO_GROUP_OF_O(t, want, n)                                                               \
    {#t ", group_tokens " #n, want, #t ".quant.group_tokens", Q15(t, MANY, NULL, 0, 0, 1, 1, n, 1)}, \
    {#t ", group_dims " #n, want, #t ".quant.group_dims", Q15(t, MANY, NULL, 0, 0, 1, 1, 1, n)}

#define Q15_LIKE(...) Q15(__VA_ARGS__)
#define AXIS_OF_O(t, axis, at)                                                                  \
    {#t ".quant.stride -1", FA_ERR_STRIDE, #t ".quant.stride[" #axis "]", Q15_LIKE(t, MANY, NULL, at(-1))}, \
    {#t ".quant.stride INT64_MIN", FA_ERR_STRIDE, #t ".quant.stride[" #axis "]",                \
     Q15_LIKE(t, NULL, NULL, at(INT64_MIN))},                                                   \
    {#t ".quant.stride INT64_MAX", FA_ERR_OVERFLOW, #t ".quant.stride[" #axis "]", Q15_LIKE(t, MANY, NULL, at(INT64_MAX))}

#define SCALE_ON_OUTPUT(t, output)                                                              \
    {#output " is " #t ".quant.scale", FA_ERR_OVERLAP, #output ": shares memory with scales of " #t, \
     {N(t.dtype, FA_DTYPE_Q15), P(t.quant, &(const fa_quant){.scale = arena.output})}}

static const struct row rows[] = {
    {"nothing wrong", FA_OK, NULL, {{0}}},

    SCALES_OF_O(o),
    QUANT(q), QUANT(k), QUANT(v),
    {"one entry, the stride of its scales huge", FA_OK, NULL,
     {N(batch, 1), N(k.dtype, FA_DTYPE_I8),
      P(k.quant, (&(const fa_quant){MANY, MANY, {INT64_MAX, 1, 0, 0}, 0, 0}))}},
};

int main(int argc, char **argv) { return check_rows(argc, argv, rows, COUNT(rows)); }
