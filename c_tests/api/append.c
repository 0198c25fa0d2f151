/* fa_quantize and fa_cache_append: the bytes of every type, one by one, against definitions in
 * plain C; caches that are dense, ragged and in pages; what is refused, which touches nothing; what
 * lies beside what is written. */

#include "blocks.h"
#include "covered.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define BIT(i) ((int64_t)1 << (i))

/* ---- Definitions. ---- */

static uint16_t half_of(float x) {
    uint16_t sign = signbit(x) ? 0x8000 : 0;
    if (isnan(x)) return (uint16_t)(sign | 0x7e00);
    double a = fabs((double)x);
    if (a == 0) return sign;
    if (a >= 65520) return (uint16_t)(sign | 0x7c00);
    int exponent = ilogb(a) > -14 ? ilogb(a) : -14;
    return (uint16_t)(sign | (((exponent + 14) << 10) + (int)nearbyint(ldexp(a, 10 - exponent))));
}

static uint16_t bfloat_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (isnan(x)) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void put(unsigned char *to, uint16_t bits) {
    to[0] = (unsigned char)bits, to[1] = (unsigned char)(bits >> 8);
}

static float inverse_of(float d) {
    return d == 0 ? 0 : 1 / d;
}

/* A block of 32 numbers, as ggml's reference functions write it. */
static void block_of(int32_t dtype, const float *x, unsigned char *to) {
    static const float numbers[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    float largest = 0, least = x[0], most = x[0], d;
    int code[32], bits = dtype == FA_DTYPE_Q5_0 || dtype == FA_DTYPE_Q5_1 ? 5 : 4;
    bool has_minimum = dtype == FA_DTYPE_Q4_1 || dtype == FA_DTYPE_Q5_1;
    memset(to, 0, (size_t)bytes_of_block(dtype));
    for (int i = 0; i < 32; i++) {
        if (!isfinite(x[i])) {
            put(to, 0x7e00);
            return;
        }
        if (fabsf(x[i]) > fabsf(largest)) largest = x[i];
        if (x[i] < least) least = x[i];
        if (x[i] > most) most = x[i];
    }
    if (dtype == FA_DTYPE_Q8_0) {
        d = fabsf(largest) / 127;
        for (int i = 0; i < 32; i++) to[2 + i] = (unsigned char)(int8_t)roundf(x[i] * inverse_of(d));
        put(to, half_of(d));
        return;
    }
    if (dtype == FA_DTYPE_IQ4_NL) {
        float products = 0, squares = 0;
        float id = fabsf(largest) < 1e-15F ? 0 : 1 / (largest / numbers[0]);
        for (int i = 0; i < 32; i++) {
            code[i] = 0;
            if (id == 0) continue;
            /* The nearest; of two the larger. */
            for (int n = 1; n < 16; n++)
                if (fabsf(numbers[n] - id * x[i]) <= fabsf(numbers[code[i]] - id * x[i])) code[i] = n;
            float weight = x[i] * x[i];
            products += weight * numbers[code[i]] * x[i], squares += weight * numbers[code[i]] * numbers[code[i]];
        }
        d = squares > 0 ? products / squares : 0;
    } else {
        float half = (float)(1 << (bits - 1)), top = (float)((1 << bits) - 1);
        d = has_minimum ? (most - least) / top : largest / -half;
        for (int i = 0; i < 32; i++) {
            float at = has_minimum ? (x[i] - least) * inverse_of(d) + 0.5F : x[i] * inverse_of(d) + (half + 0.5F);
            code[i] = (int)at > (int)top ? (int)top : (int)at;
        }
    }
    put(to, half_of(d)), to += 2;
    if (has_minimum) put(to, half_of(least)), to += 2;
    if (bits == 5) {
        for (int i = 0; i < 32; i++) to[i / 8] |= (unsigned char)((code[i] >> 4) << i % 8);
        to += 4;
    }
    for (int i = 0; i < 16; i++) to[i] = (unsigned char)((code[i] & 15) | (code[i + 16] & 15) << 4);
}

static int64_t row_bytes(int32_t dtype, int64_t dim) {
    static const int64_t bytes[] = {4, 2, 2};
    if (is_of_8_bits(dtype)) return dim;
    if (dtype == FA_DTYPE_Q15) return 2 * dim;
    return is_in_blocks(dtype) ? dim / 32 * bytes_of_block(dtype) : dim * bytes[dtype];
}

/* The nearest fraction, of two the even one; saturated, and 0 for NaN. */
static int16_t fraction_of(float x) {
    double units = rint((double)x * 32768);
    return (int16_t)(isnan(units) ? 0 : units < -32768 ? -32768 : units > 32767 ? 32767 : units);
}

/* A row in any type but 8-bit integers with scales of their own; `given` is the scale of all. */
static void row_of(int32_t dtype, const float *x, int64_t dim, float given, unsigned char *to) {
    for (int64_t i = 0; i < dim; i++) {
        if (dtype == FA_DTYPE_F32) memcpy(to + 4 * i, &x[i], 4);
        if (dtype == FA_DTYPE_F16 || dtype == FA_DTYPE_BF16) {
            uint16_t bits = dtype == FA_DTYPE_F16 ? half_of(x[i]) : bfloat_of(x[i]);
            memcpy(to + 2 * i, &bits, 2);
        }
        if (dtype == FA_DTYPE_I8) {
            float n = rintf(x[i] / given);
            to[i] = (unsigned char)(int8_t)(isnan(n) ? 0 : n < -128 ? -128 : n > 127 ? 127 : n);
        }
        if (dtype == FA_DTYPE_U8) {
            float n = rintf(x[i] / given);
            to[i] = (unsigned char)(isnan(n) || n < 0 ? 0 : n > 255 ? 255 : n);
        }
        if (is_f8(dtype)) to[i] = nearest_f8(dtype, x[i] / given);
        if (dtype == FA_DTYPE_Q15) {
            int16_t fraction = fraction_of(x[i] / given);
            memcpy(to + 2 * i, &fraction, 2);
        }
        if (is_in_blocks(dtype) && i % 32 == 0) block_of(dtype, x + i, to + i / 32 * bytes_of_block(dtype));
    }
}

/* ---- fa_quantize. ---- */

static const int32_t all_types[] = {FA_DTYPE_F32,  FA_DTYPE_F16,  FA_DTYPE_BF16, FA_DTYPE_Q8_0, FA_DTYPE_Q4_0,
                                    FA_DTYPE_Q4_1, FA_DTYPE_Q5_0, FA_DTYPE_Q5_1, FA_DTYPE_IQ4_NL,
                                    FA_DTYPE_F8_E4M3, FA_DTYPE_F8_E5M2, FA_DTYPE_Q15};

enum { B = 2, H = 3, LEN = 5, DIM = 64, ROWS = B * H * LEN, MOST = ROWS * (DIM * 4 + 8) };
static float x[ROWS * DIM];
static unsigned char stored[MOST + 1], expected[MOST + 1];

static fa_tensor dense(void *data, int32_t dtype, int64_t gap) {
    int64_t row = row_bytes(dtype, DIM) + gap;
    return (fa_tensor){.data = data, .stride = {H * LEN * row, LEN * row, row}, .dtype = dtype};
}

/* Numbers of many sizes, ties, zeros, infinities and NaN; as f32, f16 or bf16 holds them. */
static void fill_numbers(int32_t dtype) {
    float *normal = random_normal(ROWS * DIM);
    for (int i = 0; i < ROWS * DIM; i++) {
        float n = normal[i];
        switch (i / 32 % 8) {
            case 1: n = ldexpf(n, i % 40 - 30); break;
            case 2: n = (float)(i * 7 % 33 - 16) / 2; break;
            case 3: n = 0; break;
            case 4: n = i % 7 == 3 ? (i % 2 ? INFINITY : -INFINITY) : n; break;
            case 5: n = n * 1e5F; break;
            case 6: n = i % 32 == 5 ? NAN : n; break;
            default: break;
        }
        uint16_t bits = dtype == FA_DTYPE_F16 ? half_of(n) : bfloat_of(n);
        if (dtype == FA_DTYPE_BF16) {
            uint32_t wide = (uint32_t)bits << 16;
            memcpy(&n, &wide, 4);
        }
        if (dtype == FA_DTYPE_F16 && isfinite(n)) {
            unsigned char bytes[2];
            put(bytes, bits);
            n = (bits & 0x7fff) == 0x7c00 ? copysignf(INFINITY, n) : (float)half_at(bytes);
        }
        x[i] = n;
    }
    free(normal);
}

static void values(void) {
    static unsigned char source[MOST];
    static const int32_t sources[] = {FA_DTYPE_F32, FA_DTYPE_F16, FA_DTYPE_BF16};
    for (size_t s = 0; s < COUNT(sources); s++) {
        fill_numbers(sources[s]);
        for (int i = 0; i < ROWS; i++)
            row_of(sources[s], x + i * DIM, DIM, 1, source + i * row_bytes(sources[s], DIM));
        for (size_t t = 0; t < COUNT(all_types); t++) {
            int32_t dtype = all_types[t];
            int64_t row = row_bytes(dtype, DIM) + 8;
            memset(stored, 0xa7, sizeof stored), memset(expected, 0xa7, sizeof expected);
            for (int i = 0; i < ROWS; i++) row_of(dtype, x + i * DIM, DIM, 1, expected + 1 + i * row);
            fa_tensor from = dense(source, sources[s], 0), to = dense(stored + 1, dtype, 8);
            fa_status status = fa_quantize(&from, B, H, LEN, DIM, &to);
            CHECK(status == FA_OK, "%d to %d: %s", sources[s], dtype, fa_status_string(status));
            for (size_t i = 0; i < sizeof stored; i++)
                CHECK(stored[i] == expected[i], "%d to %d: byte %zu is %#x, not %#x", sources[s], dtype, i, stored[i],
                      expected[i]);
        }
    }
    /* 8-bit integers are those of fa_quantize_i8. */
    float scale[2][ROWS];
    memset(scale, 0, sizeof scale);
    fa_quant quant[2] = {{scale[0], NULL, {H * LEN, LEN, 1, 0}, 1, 1}, {scale[1], NULL, {H * LEN, LEN, 1, 0}, 1, 1}};
    fa_tensor from = dense(x, FA_DTYPE_F32, 0), to = dense(stored, FA_DTYPE_I8, 0);
    fa_tensor other = dense(expected, FA_DTYPE_I8, 0);
    to.quant = &quant[0], other.quant = &quant[1];
    memset(stored, 0, sizeof stored), memset(expected, 0, sizeof expected);
    CHECK(fa_quantize(&from, B, H, LEN, DIM, &to) == FA_OK, "8-bit integers");
    CHECK(fa_quantize_i8(&from, B, H, LEN, DIM, NULL, &other) == FA_OK, "8-bit integers");
    CHECK(memcmp(stored, expected, sizeof stored) == 0, "integers differ");
    CHECK(memcmp(scale[0], scale[1], sizeof scale[0]) == 0, "scales differ");

    /* Of other types of 8 bits: the largest number of a row becomes the largest of the type; or,
     * with zeros, the least becomes 0 and the largest 255. */
    static const int32_t others[] = {FA_DTYPE_F8_E4M3, FA_DTYPE_F8_E5M2, FA_DTYPE_U8};
    float zero[ROWS];
    for (size_t t = 0; t < COUNT(others); t++) {
        bool has_zeros = others[t] == FA_DTYPE_U8;
        to = dense(stored, others[t], 0), to.quant = &quant[0], quant[0].zero = has_zeros ? zero : NULL;
        for (int i = 0; i < ROWS * DIM; i++) x[i] = ldexpf((float)(i * 7919 % 1009 - 300), i / DIM % 9 - 9);
        memset(stored, 0xa7, sizeof stored);
        fa_status status = fa_quantize(&from, B, H, LEN, DIM, &to);
        CHECK(status == FA_OK, "to %d: %s", others[t], fa_status_string(status));
        for (int i = 0; i < ROWS; i++) {
            float least = x[i * DIM], most = least;
            for (int d = 0; d < DIM; d++) {
                least = fminf(least, x[i * DIM + d]), most = fmaxf(most, x[i * DIM + d]);
            }
            float limit = others[t] == FA_DTYPE_F8_E4M3 ? 448 : 57344;
            float want = has_zeros ? (most - least) / 255 : fmaxf(most, -least) / limit;
            CHECK(scale[0][i] == want, "%d, row %d: scale %g, not %g", others[t], i, (double)scale[0][i], (double)want);
            if (has_zeros) CHECK(zero[i] == rintf(-least / want), "row %d: zero %g", i, (double)zero[i]);
            for (int d = 0; d < DIM; d++) {
                float n = x[i * DIM + d] / want;
                int byte = has_zeros ? (int)rintf(n + zero[i]) : nearest_f8(others[t], n);
                CHECK(stored[i * DIM + d] == (has_zeros && byte > 255 ? 255 : byte), "%d, row %d: %#x, not %#x", others[t],
                      i, stored[i * DIM + d], byte);
            }
        }
        CHECK(stored[ROWS * DIM] == 0xa7, "%d: a byte too many", others[t]);
        if (t == 0) {
            /* Fractions, of which the largest number of a row becomes 32767. */
            fa_tensor fractions = dense(expected, FA_DTYPE_Q15, 0);
            fractions.quant = &quant[1];
            CHECK(fa_quantize(&from, B, H, LEN, DIM, &fractions) == FA_OK, "fractions");
            for (int i = 0; i < ROWS * DIM; i++) {
                float step = 0, *row = x + i / DIM * DIM;
                for (int d = 0; d < DIM; d++) step = fmaxf(step, fabsf(row[d]));
                step /= 32767;
                CHECK(scale[1][i / DIM] == step * 32768, "fractions, row %d: scale %g", i / DIM, (double)scale[1][i / DIM]);
                CHECK(fraction_at(expected + 2 * i) * 32768 == (double)rintf(x[i] / step), "fraction %d", i);
            }
        }
        /* What is missing, and what there must not be. */
        quant[0].zero = has_zeros ? NULL : zero;
        CHECK(fa_quantize(&from, B, H, LEN, DIM, &to) == (has_zeros ? FA_ERR_NULL : FA_ERR_DTYPE), "zeros of %d", others[t]);
    }
}

/* ---- Refusals of both. ---- */

static struct {
    unsigned char before[4096];
    float x[ROWS * DIM];
    unsigned char gap[4096];
    unsigned char k[2 * MOST];
    unsigned char end[4096];
} arena, was;
static fa_tensor src, dst;
static fa_attention a;
static fa_quant of_src, of_dst;
static float scales[ROWS];

static void fill(void) {
    memset(&arena, 0x3c, sizeof arena), memcpy(&was, &arena, sizeof was);
    src = dense(arena.x, FA_DTYPE_F32, 0), dst = dense(arena.k, FA_DTYPE_Q8_0, 0);
    of_src = of_dst = (fa_quant){scales, NULL, {H * LEN, LEN, 1, 0}, 1, 1};
    (void)fa_attention_init(&a, sizeof a);
    a.batch = B, a.heads_kv = H, a.len_q = LEN, a.len_kv = LEN, a.dim_qk = a.dim_v = DIM, a.k = dst;
}

enum { QUANTIZE, APPEND };
static const char *const functions[] = {"fa_quantize", "fa_cache_append"};

static char why[200];

static fa_status call(int which) {
    if (which == QUANTIZE) return fa_quantize(&src, B, H, LEN, DIM, &dst);
    a.k = dst;
    return fa_cache_append(&a, &src, NULL, why, sizeof why);
}

/* After `edit`, `made` has this result, and nothing has changed. */
#define REFUSES(want, place, kind, edit, made)                                                            \
    do {                                                                                                  \
        fill();                                                                                           \
        edit;                                                                                             \
        why[0] = 'x';                                                                                     \
        fa_status status = made;                                                                          \
        CHECK(status == want, "%s, %s: %s", #edit, #made, fa_status_string(status));                      \
        CHECK(memcmp(&arena, &was, sizeof arena) == 0, "%s, %s: memory has changed", #edit, #made);       \
        covered(place, kind, want);                                                                       \
    } while (0)
#define BOTH(want, field, kind, edit)                                                                     \
    do {                                                                                                  \
        char place[60];                                                                                   \
        for (int which = QUANTIZE; which <= APPEND; which++) {                                            \
            snprintf(place, sizeof place, "%s(%s", functions[which], which == QUANTIZE ? "" : "new_k");   \
            snprintf(place + strlen(place), sizeof place - strlen(place), "%s", field + (which == QUANTIZE ? 0 : 3)); \
            REFUSES(want, place, kind, edit, call(which));                                                \
            CHECK(which == QUANTIZE || (want == FA_OK) == (why[0] == '\0'), "%s: no words", #edit);       \
        }                                                                                                 \
    } while (0)
#define QUANTIZE_REFUSES(want, place, kind, edit) REFUSES(want, "fa_quantize(" place ")", kind, edit, call(QUANTIZE))
#define CALL(b, h, t, d) fa_quantize(&src, b, h, t, d, &dst)

static void sizes(void) {
    static const int64_t wrong[] = {-1, INT64_MIN, INT64_MAX, BIT(61)};
    for (size_t i = 0; i < COUNT(wrong); i++) {
        const char *kind = wrong[i] < 0 ? "negative" : "huge";
        fa_status want = wrong[i] < 0 ? FA_ERR_SHAPE : FA_ERR_OVERFLOW;
        REFUSES(want, "fa_quantize(batch)", kind, , CALL(wrong[i], H, LEN, DIM));
        REFUSES(want, "fa_quantize(heads)", kind, , CALL(B, wrong[i], LEN, DIM));
        REFUSES(want, "fa_quantize(tokens)", kind, , CALL(B, H, wrong[i], DIM));
        /* The largest number is no multiple of 32. */
        if (wrong[i] % 32 != 0) want = FA_ERR_SHAPE;
        REFUSES(want, "fa_quantize(dim)", kind, , CALL(B, H, LEN, wrong[i]));
    }
    REFUSES(FA_OK, "fa_quantize(batch)", "zero", , CALL(0, H, LEN, DIM));
    REFUSES(FA_OK, "fa_quantize(heads)", "zero", , CALL(B, 0, LEN, DIM));
    REFUSES(FA_OK, "fa_quantize(tokens)", "zero", , CALL(B, H, 0, DIM));
    REFUSES(FA_ERR_ZERO_EXTENT, "fa_quantize(dim)", "zero", , CALL(B, H, LEN, 0));
    REFUSES(FA_ERR_SHAPE, "fa_quantize(dim)", "other", , CALL(B, H, LEN, DIM - 1));
    REFUSES(FA_OK, "fa_quantize(tokens)", "zero", src.data = dst.data = NULL;
            src.stride[1] = INT64_MAX - 3, CALL(B, H, 0, DIM));
}

static void fields(void) {
    BOTH(FA_ERR_NULL, "src).data", "NULL", src.data = NULL);
    BOTH(FA_ERR_OVERLAP, "src).data", "overlap", src.data = arena.k);
    BOTH(FA_ERR_DTYPE, "src).dtype", "negative", src.dtype = -1);
    BOTH(FA_ERR_DTYPE, "src).dtype", "huge", src.dtype = INT32_MAX);
    BOTH(FA_ERR_DTYPE, "src).dtype", "other", src.dtype = FA_DTYPE_Q8_0);
    BOTH(FA_ERR_DTYPE, "src).dtype", "other", src.dtype = FA_DTYPE_I8);
    BOTH(FA_ERR_DTYPE, "src).dtype", "other", src.dtype = FA_DTYPE_Q15);
    BOTH(FA_ERR_DTYPE, "src).dtype", "other", src.dtype = FA_DTYPE_BOOL8);
    BOTH(FA_ERR_DTYPE, "src).quant", "other", src.quant = &of_src);
    covered("fa_quantize(src).quant", "NULL", FA_OK), covered("fa_cache_append(new_k).quant", "NULL", FA_OK);
    BOTH(FA_ERR_STRIDE, "src).stride_dim", "negative", src.stride_dim = -4);
    BOTH(FA_ERR_STRIDE, "src).stride_dim", "huge", src.stride_dim = INT32_MAX);
    BOTH(FA_ERR_STRIDE, "src).stride_dim", "other", src.stride_dim = 8);
    static const char *const of_src_stride[] = {"src).stride[0]", "src).stride[1]", "src).stride[2]"};
    for (int i = 0; i < 3; i++) {
        BOTH(FA_ERR_STRIDE, of_src_stride[i], "negative", src.stride[i] = -4);
        BOTH(FA_ERR_STRIDE, of_src_stride[i], "odd", src.stride[i] += 1);
        BOTH(FA_ERR_OVERFLOW, of_src_stride[i], "huge", src.stride[i] = INT64_MAX - 3);
    }
    for (int i = 0; i < 3; i++) {
        char place[60];
        for (int which = QUANTIZE; which <= APPEND; which++) {
            snprintf(place, sizeof place, "fa_quantize(dst).stride[%d]", i);
            REFUSES(FA_ERR_STRIDE, place, "negative", dst.stride[i] = -2, call(which));
            REFUSES(FA_ERR_STRIDE, place, "zero", dst.stride[i] = 0, call(which));
            REFUSES(FA_ERR_STRIDE, place, "small", dst.stride[i] -= 2, call(which));
            REFUSES(FA_ERR_STRIDE, place, "odd", dst.stride[i] += 1, call(which));
            REFUSES(FA_ERR_OVERFLOW, place, "huge", dst.stride[i] = INT64_MAX - 1, call(which));
        }
    }
    for (int which = QUANTIZE; which <= APPEND; which++) {
        REFUSES(FA_ERR_NULL, "fa_quantize(dst).data", "NULL", dst.data = NULL, call(which));
        REFUSES(FA_ERR_OVERLAP, "fa_quantize(dst).data", "overlap", dst.data = arena.x, call(which));
        REFUSES(FA_ERR_DTYPE, "fa_quantize(dst).dtype", "negative", dst.dtype = -1, call(which));
        REFUSES(FA_ERR_DTYPE, "fa_quantize(dst).dtype", "huge", dst.dtype = INT32_MAX, call(which));
        REFUSES(FA_ERR_DTYPE, "fa_quantize(dst).dtype", "other", dst.dtype = FA_DTYPE_BOOL8, call(which));
        REFUSES(FA_ERR_DTYPE, "fa_quantize(dst).quant", "other", dst.quant = &of_dst, call(which));
        REFUSES(FA_ERR_STRIDE, "fa_quantize(dst).stride_dim", "negative", dst.stride_dim = -1, call(which));
        REFUSES(FA_ERR_STRIDE, "fa_quantize(dst).stride_dim", "huge", dst.stride_dim = INT32_MAX, call(which));
        REFUSES(FA_ERR_STRIDE, "fa_quantize(dst).stride_dim", "small",
                dst.dtype = FA_DTYPE_F16; dst.stride_dim = 1, call(which));
        REFUSES(FA_ERR_STRIDE, "fa_quantize(dst).stride_dim", "other",
                dst.dtype = FA_DTYPE_F16; dst.stride_dim = 4, call(which));
    }
    QUANTIZE_REFUSES(FA_ERR_NULL, "dst", "other", dst.dtype = FA_DTYPE_I8);
    covered("fa_quantize(dst).quant", "NULL", FA_ERR_NULL);
    REFUSES(FA_ERR_NULL, "fa_quantize(src)", "NULL", , fa_quantize(NULL, B, H, LEN, DIM, &dst));
    REFUSES(FA_ERR_NULL, "fa_quantize(dst)", "NULL", , fa_quantize(&src, B, H, LEN, DIM, NULL));
    REFUSES(FA_OK, "fa_cache_append(new_k)", "NULL", , fa_cache_append(&a, NULL, NULL, why, sizeof why));
    REFUSES(FA_OK, "fa_cache_append(new_v)", "NULL", , fa_cache_append(&a, NULL, NULL, NULL, 0));
    /* However many sequences have nothing to be written. */
    REFUSES(FA_OK, "fa_cache_append(new_v)", "NULL", a.batch = INT64_MAX, fa_cache_append(&a, NULL, NULL, NULL, 0));
    REFUSES(FA_ERR_NULL, "fa_cache_append(new_k)", "other", src.data = NULL, call(APPEND));
    REFUSES(FA_ERR_NULL, "fa_cache_append(new_v)", "other", src.data = NULL; a.v = dst,
            fa_cache_append(&a, NULL, &src, NULL, 7));
    REFUSES(FA_ERR_NULL, "fa_cache_append(a)", "NULL", , fa_cache_append(NULL, &src, NULL, why, sizeof why));
    covered("fa_cache_append(why)", "NULL", FA_OK), covered("fa_cache_append(why_size)", "zero", FA_OK);
}

static void paged(const int32_t *pages) {
    a.block_table = pages, a.table_stride = 3, a.page_size = 2, a.num_pages = 6;
}

/* What only appending refuses: the fields of fa_attention are in other tests. */
static void descriptions(void) {
    int32_t list[2 * B + 2] = {0};
#define APPEND_REFUSES(want, edit)                                                            \
    do {                                                                                      \
        REFUSES(want, "fa_cache_append(a)", "other", edit, call(APPEND));                     \
        CHECK(want == FA_ERR_INTERNAL || why[0] != 'x', "%s: no words", #edit);               \
    } while (0)
    APPEND_REFUSES(FA_ERR_STRUCT_SIZE, a.struct_size = 3);
    APPEND_REFUSES(FA_ERR_RESERVED, a.reserved0 = 1);
    APPEND_REFUSES(FA_ERR_SHAPE, a.batch = -1);
    APPEND_REFUSES(FA_ERR_ZERO_EXTENT, a.heads_kv = 0);
    APPEND_REFUSES(FA_ERR_SHAPE, a.len_q = -1);
    APPEND_REFUSES(FA_ERR_SHAPE, a.len_kv = -1);
    APPEND_REFUSES(FA_ERR_ZERO_EXTENT, a.dim_qk = 0);
    /* Positions that are no keys in use. */
    APPEND_REFUSES(FA_ERR_LENGTHS, a.len_kv = LEN - 1);
    APPEND_REFUSES(FA_ERR_LENGTHS, a.q_pos = 1);
    APPEND_REFUSES(FA_ERR_LENGTHS, a.q_pos = -1);
    APPEND_REFUSES(FA_ERR_OVERFLOW, a.q_pos = INT64_MAX);
    APPEND_REFUSES(FA_ERR_LENGTHS, a.q_positions = list; list[0] = 0; list[1] = 1);
    APPEND_REFUSES(FA_ERR_LENGTHS, a.kv_lens = list; list[0] = LEN; list[1] = LEN - 1);
    APPEND_REFUSES(FA_ERR_LENGTHS, a.kv_lens = list; list[0] = LEN; list[1] = LEN + 1);
    APPEND_REFUSES(FA_ERR_LENGTHS, a.kv_starts = list; list[0] = 0; list[1] = 1);
    APPEND_REFUSES(FA_ERR_LENGTHS, a.cu_len_q = list; list[0] = 0; list[1] = -1; list[2] = 3);
    list[0] = list[1] = list[2] = 0;
    /* Pages of 2 tokens, three for each of two sequences. */
    int32_t pages[] = {0, 1, 2, 3, 4, 5};
    APPEND_REFUSES(FA_ERR_PAGE, paged(pages); pages[5] = 6);
    APPEND_REFUSES(FA_ERR_PAGE, paged(pages); pages[5] = -1);
    pages[5] = 5;
    APPEND_REFUSES(FA_ERR_LENGTHS, paged(pages); a.table_stride = 2);
    APPEND_REFUSES(FA_ERR_ZERO_EXTENT, paged(pages); a.page_size = 0);
    APPEND_REFUSES(FA_ERR_SHAPE, paged(pages); a.cu_len_kv = pages);
    APPEND_REFUSES(FA_ERR_OVERLAP, a.kv_lens = (const int32_t *)(const void *)(arena.k + 8); memset(arena.k, 0, 64);
                   ((int32_t *)(void *)arena.k)[2] = LEN; ((int32_t *)(void *)arena.k)[3] = LEN;
                   memcpy(&was, &arena, sizeof was));
    /* Scales of a whole cache that are no numbers; integers that share memory with their scales. */
    APPEND_REFUSES(FA_ERR_QUANT_SCALE, dst = dense(arena.k, FA_DTYPE_I8, 0); dst.quant = &of_dst;
                   memset(of_dst.stride, 0, sizeof of_dst.stride); scales[0] = NAN);
    APPEND_REFUSES(FA_ERR_OVERLAP, dst = dense(arena.k, FA_DTYPE_I8, 0); dst.quant = &of_dst;
                   of_dst.scale = (const float *)(const void *)(arena.k + 4));
    APPEND_REFUSES(FA_ERR_OVERLAP, dst = dense(arena.k, FA_DTYPE_I8, 0); dst.quant = &of_dst; of_dst.scale = arena.x);
    REFUSES(FA_ERR_OVERLAP, "fa_cache_append(new_v)", "other",
            a.k = a.v = dense(arena.k, FA_DTYPE_I8, 0); a.v.data = arena.k + MOST;
            a.k.quant = a.v.quant = &of_dst, fa_cache_append(&a, &src, &src, why, sizeof why));
    REFUSES(FA_ERR_OVERLAP, "fa_cache_append(new_v)", "other", a.k = a.v = dst,
            fa_cache_append(&a, &src, &src, why, sizeof why));
}

/* Arguments and data at odd addresses. */
static void odd_addresses(void) {
    static unsigned char tensors[3][sizeof(fa_tensor) + 1], numbers[sizeof arena.x + 1], described[sizeof a + 1];
    static unsigned char bytes[MOST + 1];
    fill();
    CHECK(fa_quantize(&src, B, H, LEN, DIM, &dst) == FA_OK, "even addresses");
    memcpy(numbers + 1, arena.x, sizeof arena.x);
    src.data = numbers + 1, dst.data = bytes + 1, a.k = dst;
    memcpy(tensors[0] + 1, &src, sizeof src), memcpy(tensors[1] + 1, &dst, sizeof dst);
    memcpy(described + 1, &a, sizeof a);
    const void *from = tensors[0] + 1, *to = tensors[1] + 1, *description = described + 1;
    size_t n = (size_t)(ROWS * row_bytes(FA_DTYPE_Q8_0, DIM));
    CHECK(fa_quantize(from, B, H, LEN, DIM, to) == FA_OK && memcmp(bytes + 1, arena.k, n) == 0, "odd addresses");
    memset(bytes, 0, sizeof bytes);
    CHECK(fa_cache_append(description, from, NULL, NULL, 0) == FA_OK, "odd addresses");
    CHECK(memcmp(bytes + 1, arena.k, n) == 0, "bytes at odd addresses");
    static const char *const odd[] = {"fa_quantize(src)", "fa_quantize(dst)", "fa_quantize(src).data",
                                      "fa_quantize(dst).data",
                                      "fa_quantize(dst).quant", "fa_cache_append(a)", "fa_cache_append(new_k)",
                                      "fa_cache_append(new_v)", "fa_cache_append(new_k).data"};
    for (size_t i = 0; i < COUNT(odd); i++) covered(odd[i], "odd", FA_OK);
    for (int i = 0; i < 3; i++) {
        char place[60];
        snprintf(place, sizeof place, "fa_quantize(src).stride[%d]", i), covered(place, "zero", FA_OK);
        snprintf(place, sizeof place, "fa_cache_append(new_k).stride[%d]", i), covered(place, "zero", FA_OK);
    }
    static const char *const zero[] = {"fa_quantize(src).dtype", "fa_quantize(dst).dtype",
                                       "fa_quantize(src).stride_dim"};
    for (size_t i = 0; i < COUNT(zero); i++) covered(zero[i], "zero", FA_OK);
    /* Words are cut off. */
    char few[5] = "xxxx";
    fill();
    a.batch = -1;
    CHECK(fa_cache_append(&a, &src, NULL, few, 4) == FA_ERR_SHAPE && few[3] == '\0' && few[4] == '\0', "%s", few);
}

/* ---- Caches. ---- */

enum { SEQS = 3, PAGE = 4, PAGES = 4, NUM_PAGES = SEQS * PAGES + 1, CAPACITY = PAGE * PAGES };
static const int32_t cu_new[SEQS + 1] = {0, 1, 6, 8}, kv_lens[SEQS] = {9, 5, CAPACITY};
static const int32_t table[SEQS * PAGES] = {12, 3, 7, 0, 5, 9, 1, 11, 2, 6, 4, 10};

/* K and V of these types, new tokens that are ragged: [token][head][dim] in f32, as projections
 * make them. */
static void caches(int32_t of_k, int32_t of_v, int kind) {
    int64_t extent[3] = {kind == 2 ? NUM_PAGES : SEQS, H, kind == 2 ? PAGE : CAPACITY};
    int32_t cu_kv[SEQS + 1] = {0, 9, 14, 30}, types[2] = {of_k, of_v};
    if (kind == 1) extent[0] = 1, extent[2] = cu_kv[SEQS];
    int64_t rows = extent[0] * extent[1] * extent[2];
    float *new[2] = {random_normal(8 * H * DIM), random_normal(8 * H * DIM)};
    fa_attention c;
    (void)fa_attention_init(&c, sizeof c);
    c.batch = SEQS, c.heads_q = c.heads_kv = H, c.len_q = 5, c.len_kv = CAPACITY, c.dim_qk = c.dim_v = DIM;
    c.cu_len_q = cu_new, c.kv_lens = kv_lens;
    if (kind == 1) c.cu_len_kv = cu_kv;
    if (kind == 2) c.block_table = table, c.table_stride = PAGES, c.page_size = PAGE, c.num_pages = NUM_PAGES;
    unsigned char *got[2], *want[2];
    fa_tensor of_new[2];
    static const float given = 0.03F;
    static const fa_quant quant = {.scale = &given};
    for (int i = 0; i < 2; i++) {
        int64_t row = row_bytes(types[i], DIM) + 4, bytes = rows * row;
        got[i] = need((size_t)bytes), want[i] = need((size_t)bytes);
        memset(got[i], 0xa7, (size_t)bytes), memset(want[i], 0xa7, (size_t)bytes);
        fa_tensor *cache = i == 0 ? &c.k : &c.v;
        *cache = (fa_tensor){.data = got[i], .stride = {H * extent[2] * row, extent[2] * row, row}, .dtype = types[i]};
        if (may_have_scales(types[i])) cache->quant = &quant;
        of_new[i] = (fa_tensor){.data = new[i], .stride = {0, DIM * 4, H * DIM * 4}};
        for (int b = 0; b < SEQS; b++) {
            for (int t = cu_new[b]; t < cu_new[b + 1]; t++) {
                int64_t key = kv_lens[b] - cu_new[b + 1] + t;
                int64_t entry = kind == 2 ? table[b * PAGES + key / PAGE] : kind == 0 ? b : 0;
                int64_t at = kind == 2 ? key % PAGE : kind == 0 ? key : cu_kv[b] + key;
                for (int h = 0; h < H; h++)
                    row_of(types[i], new[i] + (t * H + h) * DIM, DIM, given,
                           want[i] + ((entry * H + h) * extent[2] + at) * row);
            }
        }
    }
    fa_status status = fa_cache_append(&c, &of_new[0], &of_new[1], why, sizeof why);
    CHECK(status == FA_OK, "types %d and %d, kind %d: %s", of_k, of_v, kind, why);
    for (int i = 0; i < 2; i++) {
        size_t bytes = (size_t)(rows * (row_bytes(types[i], DIM) + 4));
        CHECK(memcmp(got[i], want[i], bytes) == 0, "types %d and %d, kind %d: bytes of %s", of_k, of_v, kind,
              i ? "v" : "k");
        free(got[i]), free(want[i]), free(new[i]);
    }
}

int main(int argc, char **argv) {
    covered_begin(argc, argv);
    sizes(), fields(), descriptions(), odd_addresses();
    values();
    for (size_t i = 0; i < COUNT(all_types); i++) {
        for (int kind = 0; kind < 3; kind++) {
            caches(all_types[i], FA_DTYPE_I8, kind);
            caches(FA_DTYPE_BF16, all_types[i], kind);
        }
    }
    for (int kind = 0; kind < 3; kind++) caches(FA_DTYPE_U8, FA_DTYPE_U8, kind);
    CHECK(fa_limit_isa("scalar") == FA_OK, "a limit");
    values();
    return check_result();
}
