/* Storage types of ggml in blocks of 32 elements, and those of 8 bits, read and written by the
 * tests themselves. */

#ifndef BLOCKS_H
#define BLOCKS_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "flash_attention.h"

static const int32_t block_types[] = {FA_DTYPE_Q8_0, FA_DTYPE_Q4_0, FA_DTYPE_Q4_1,
                                      FA_DTYPE_Q5_0, FA_DTYPE_Q5_1, FA_DTYPE_IQ4_NL};
enum { BLOCK_TYPES = sizeof block_types / sizeof *block_types };

/* Bytes of a block; 0 for types without blocks. */
static inline int64_t bytes_of_block(int32_t dtype) {
    switch (dtype) {
        case FA_DTYPE_Q8_0: return 34;
        case FA_DTYPE_Q4_0: return 18;
        case FA_DTYPE_Q4_1: return 20;
        case FA_DTYPE_Q5_0: return 22;
        case FA_DTYPE_Q5_1: return 24;
        case FA_DTYPE_IQ4_NL: return 18;
        default: return 0;
    }
}

static inline bool is_in_blocks(int32_t dtype) {
    return bytes_of_block(dtype) > 0;
}

/* Floating-point numbers of 8 bits. */
static inline bool is_f8(int32_t dtype) {
    return dtype == FA_DTYPE_F8_E4M3 || dtype == FA_DTYPE_F8_E5M2;
}

static inline bool is_integer(int32_t dtype) {
    return dtype == FA_DTYPE_I8 || dtype == FA_DTYPE_U8;
}

static inline bool is_of_8_bits(int32_t dtype) {
    return is_integer(dtype) || is_f8(dtype);
}

/* Types that may have scales; integers of 8 bits may have zeros. */
static inline bool may_have_scales(int32_t dtype) {
    return is_of_8_bits(dtype) || dtype == FA_DTYPE_Q15;
}

/* A fraction of 16 bits as it is stored. */
static inline double fraction_at(const void *p) {
    int16_t x;
    memcpy(&x, p, 2);
    return x / 32768.0;
}

/* An element of 8 bits as it is stored. */
static inline double element_of_8_bits(int32_t dtype, unsigned char bits) {
    if (dtype == FA_DTYPE_I8) return (int8_t)bits;
    if (dtype == FA_DTYPE_U8) return bits;
    int digits = dtype == FA_DTYPE_F8_E4M3 ? 3 : 2, bias = dtype == FA_DTYPE_F8_E4M3 ? 7 : 15;
    int magnitude = bits & 0x7f, exponent = magnitude >> digits, mantissa = magnitude & ((1 << digits) - 1);
    double x = ldexp(mantissa + (exponent == 0 ? 0 : 1 << digits), (exponent == 0 ? 1 : exponent) - bias - digits);
    if (dtype == FA_DTYPE_F8_E5M2 && exponent == 31) x = mantissa == 0 ? (double)INFINITY : (double)NAN;
    if (dtype == FA_DTYPE_F8_E4M3 && magnitude == 0x7f) x = (double)NAN;
    return bits & 0x80 ? -x : x;
}

/* The finite number of 8 bits that is nearest; of two the even one. A NaN keeps its sign. */
static inline unsigned char nearest_f8(int32_t dtype, float x) {
    int sign = signbit(x) ? 0x80 : 0, most = dtype == FA_DTYPE_F8_E4M3 ? 0x7e : 0x7b, best = 0;
    if (isnan(x)) return (unsigned char)(sign | (dtype == FA_DTYPE_F8_E4M3 ? 0x7f : 0x7e));
    double to = fabs((double)x) < 1e9 ? fabs((double)x) : 1e9, far = to;
    for (int bits = 1; bits <= most; bits++) {
        double distance = fabs(element_of_8_bits(dtype, (unsigned char)bits) - to);
        if (distance < far || (distance == far && bits % 2 == 0)) best = bits, far = distance;
    }
    return (unsigned char)(sign | best);
}

/* A random element: integers get all values, floating-point numbers are up to 4. */
static inline unsigned char random_of_8_bits(int32_t dtype, unsigned char random) {
    if (!is_f8(dtype)) return random;
    int most = dtype == FA_DTYPE_F8_E4M3 ? 0x48 : 0x44;
    return (unsigned char)((random & 0x80) | (random & 0x7f) % (most + 1));
}

/* The binary16 number at `p`, if it is finite. */
static inline double half_at(const unsigned char *p) {
    int bits = p[0] | p[1] << 8, exponent = bits >> 10 & 31, mantissa = bits & 0x3ff;
    double x = exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);
    return bits >> 15 ? -x : x;
}

/* Element `i` of a block. */
static inline double element_of_block(int32_t dtype, const void *bytes, int64_t i) {
    static const int numbers[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    const unsigned char *block = bytes;
    double d = half_at(block);
    if (dtype == FA_DTYPE_Q8_0) return d * (int8_t)block[2 + i];
    /* Nibbles stand at the end. */
    int code = block[bytes_of_block(dtype) - 16 + i % 16];
    code = i < 16 ? code & 15 : code >> 4;
    switch (dtype) {
        case FA_DTYPE_Q4_0: return d * (code - 8);
        case FA_DTYPE_Q4_1: return d * code + half_at(block + 2);
        case FA_DTYPE_Q5_0: return d * (code + (block[2 + i / 8] >> i % 8 & 1) * 16 - 16);
        case FA_DTYPE_Q5_1: return d * (code + (block[4 + i / 8] >> i % 8 & 1) * 16) + half_at(block + 2);
        default: return d * numbers[code];
    }
}

/* A block with any codes: `random` has 64 bytes. Scales are positive and negative, and elements up
 * to 4: larger ones would make scores that f32 has few digits for. */
static inline void fill_block(int32_t dtype, const unsigned char *random, void *to) {
    unsigned char *block = to;
    /* 2^-7 and more by codes of 8 bits, 2^-5 by 5, 2^-4 by 4. */
    int exponent = 11;
    if (dtype == FA_DTYPE_Q8_0 || dtype == FA_DTYPE_IQ4_NL) exponent = 8;
    if (dtype == FA_DTYPE_Q5_0 || dtype == FA_DTYPE_Q5_1) exponent = 10;
    memcpy(block, random, (size_t)bytes_of_block(dtype));
    block[1] = (unsigned char)((random[62] & 0x80) | exponent << 2 | (random[62] & 3));
    /* A minimum of -2 to -1, or of 1/4 to 1/2. */
    if (dtype == FA_DTYPE_Q4_1 || dtype == FA_DTYPE_Q5_1)
        block[3] = (unsigned char)((random[63] & 0x80 ? 0x80 | 15 << 2 : 13 << 2) | (random[63] & 3));
}

#endif
