/* fa_quantize_i8: what it refuses; that fa_attention_run on its integers is attention on the
 * numbers they stand for, in every granularity; that smoothing keys changes nothing but the
 * errors. */

#include "covered.h"
#include "blocks.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

enum { B = 2, H = 2, LEN = 37, DIM = 40, ROWS = B * H * LEN, ELEMENTS = ROWS * DIM };

/* ---- Refusals. ---- */

/* Wider than the integers, so that they can be moved onto an input without touching another. */
enum { GAP = 8192 };
static struct {
    unsigned char before_x[GAP];
    float x[ELEMENTS];
    unsigned char before_smooth[GAP];
    float smooth[H * DIM];
    unsigned char before_bytes[GAP];
    int8_t bytes[ELEMENTS];
    unsigned char before_scale[GAP];
    float scale[ELEMENTS];
    unsigned char before_zero[GAP];
    float zero[ELEMENTS];
    unsigned char end[GAP];
} arena, before;

static fa_tensor src, dst;
static fa_quant quant;
static int refused;

/* [batch][token][head][dim]: a scale and a zero for each token and head. */
static void fill(void) {
    unsigned char *bytes = (unsigned char *)&arena;
    for (size_t i = 0; i < sizeof arena; i++) bytes[i] = (unsigned char)(0x3c + (i * 7 + i / 5) % 3);
    memcpy(&before, &arena, sizeof arena);
    src = (fa_tensor){.data = arena.x, .stride = {LEN * H * DIM * 4, DIM * 4, H * DIM * 4}};
    dst = (fa_tensor){.data = arena.bytes, .stride = {LEN * H * DIM, DIM, H * DIM}, .dtype = FA_DTYPE_I8};
    quant = (fa_quant){arena.scale, arena.zero, {LEN * H, 1, H, 0}, 1, 1};
    dst.quant = &quant;
}

/* What differs from the arguments that `fill` leaves, one line each. */
static void cover_integer(const char *place, int64_t is, int64_t was, size_t bytes, fa_status status) {
    if (is == was) return;
    covered(place, kind_of_integer(is, bytes), status);
    if (status == FA_ERR_STRIDE && is >= 0) covered(place, "small", status);
}

static void cover_pointer(const char *place, const void *is, const void *was, fa_status status) {
    if (is != was) covered(place, status == FA_ERR_OVERLAP ? "overlap" : kind_of_pointer(is), status);
}

static void cover_tensor(const char *name, const fa_tensor *is, const fa_tensor *was, fa_status status) {
    char place[60];
#define PLACE(...) (snprintf(place, sizeof place, __VA_ARGS__), place)
    cover_pointer(PLACE("fa_quantize_i8(%s).data", name), is->data, was->data, status);
    for (int i = 0; i < 3; i++) {
        cover_integer(PLACE("fa_quantize_i8(%s).stride[%d]", name, i), is->stride[i], was->stride[i], 8, status);
    }
    cover_integer(PLACE("fa_quantize_i8(%s).dtype", name), is->dtype, was->dtype, 4, status);
    cover_integer(PLACE("fa_quantize_i8(%s).stride_dim", name), is->stride_dim, was->stride_dim, 4, status);
    cover_pointer(PLACE("fa_quantize_i8(%s).quant", name), is->quant, was->quant, status);
}

static void cover_quant(const fa_quant *is, const fa_quant *was, fa_status status) {
    static const char *const name = "fa_quantize_i8(dst).quant";
    char place[60];
    cover_pointer(PLACE("%s.scale", name), is->scale, was->scale, status);
    cover_pointer(PLACE("%s.zero", name), is->zero, was->zero, status);
    for (int i = 0; i < 4; i++) {
        cover_integer(PLACE("%s.stride[%d]", name, i), is->stride[i], was->stride[i], 8, status);
    }
    cover_integer(PLACE("%s.group_tokens", name), is->group_tokens, was->group_tokens, 4, status);
    cover_integer(PLACE("%s.group_dims", name), is->group_dims, was->group_dims, 4, status);
}

static void cover_call(const fa_tensor *from, int64_t batch, int64_t heads, int64_t tokens, int64_t dim,
                       const float *smooth, const fa_tensor *to, fa_status status) {
    fa_tensor was[] = {src, dst};
    fa_quant quant_was = quant;
    cover_pointer("fa_quantize_i8(src)", from, &src, status);
    cover_pointer("fa_quantize_i8(dst)", to, &dst, status);
    if (smooth == NULL) covered("fa_quantize_i8(smooth)", "NULL", FA_OK);
    if (smooth != NULL && status == FA_ERR_OVERLAP) cover_pointer("fa_quantize_i8(smooth)", smooth, arena.smooth, status);
    cover_integer("fa_quantize_i8(batch)", batch, B, 8, status);
    cover_integer("fa_quantize_i8(heads)", heads, H, 8, status);
    cover_integer("fa_quantize_i8(tokens)", tokens, LEN, 8, status);
    cover_integer("fa_quantize_i8(dim)", dim, DIM, 8, status);
    fill();
    cover_tensor("src", &was[0], &src, status), cover_tensor("dst", &was[1], &dst, status);
    cover_quant(&quant_was, &quant, status);
}

/* A call after `edit`, with these arguments, that must have this result and change nothing. */
#define REFUSES_CALL(want, edit, ...)                                                                      \
    do {                                                                                                   \
        fill();                                                                                            \
        edit;                                                                                              \
        fa_status status = fa_quantize_i8(__VA_ARGS__);                                                    \
        CHECK(status == want, "%s, %s: %s", #edit, #__VA_ARGS__, fa_status_string(status));                \
        CHECK(memcmp(&arena, &before, sizeof arena) == 0, "%s, %s: memory has changed", #edit, #__VA_ARGS__); \
        cover_call(__VA_ARGS__, want);                                                                     \
        refused++;                                                                                         \
    } while (0)
#define REFUSES(want, edit) REFUSES_CALL(want, edit, &src, B, H, LEN, DIM, arena.smooth, &dst)
#define ACCEPTS(edit)                                                                      \
    do {                                                                                   \
        fill();                                                                            \
        edit;                                                                              \
        fa_status status = fa_quantize_i8(&src, B, H, LEN, DIM, arena.smooth, &dst);       \
        CHECK(status == FA_OK, "%s: %s", #edit, fa_status_string(status));                 \
        cover_call(&src, B, H, LEN, DIM, arena.smooth, &dst, FA_OK);                       \
    } while (0)
#define BIT(i) ((int64_t)1 << (i))

static void sizes(void) {
    static const int64_t negative[] = {-1, -7, INT64_MIN}, huge[] = {BIT(61), BIT(62), INT64_MAX};
    for (size_t i = 0; i < COUNT(negative); i++) {
        REFUSES_CALL(FA_ERR_SHAPE, , &src, negative[i], H, LEN, DIM, NULL, &dst);
        REFUSES_CALL(FA_ERR_SHAPE, , &src, B, negative[i], LEN, DIM, NULL, &dst);
        REFUSES_CALL(FA_ERR_SHAPE, , &src, B, H, negative[i], DIM, NULL, &dst);
        REFUSES_CALL(FA_ERR_SHAPE, , &src, B, H, LEN, negative[i], NULL, &dst);
    }
    for (size_t i = 0; i < COUNT(huge); i++) {
        REFUSES_CALL(FA_ERR_OVERFLOW, , &src, huge[i], H, LEN, DIM, NULL, &dst);
        REFUSES_CALL(FA_ERR_OVERFLOW, , &src, B, huge[i], LEN, DIM, NULL, &dst);
        REFUSES_CALL(FA_ERR_OVERFLOW, , &src, B, H, huge[i], DIM, NULL, &dst);
        REFUSES_CALL(FA_ERR_OVERFLOW, , &src, B, H, LEN, huge[i], NULL, &dst);
        REFUSES_CALL(FA_ERR_OVERFLOW, , &src, huge[i], huge[i], huge[i], huge[i], arena.smooth, &dst);
    }
    REFUSES_CALL(FA_ERR_ZERO_EXTENT, , &src, B, H, LEN, 0, arena.smooth, &dst);
    REFUSES_CALL(FA_ERR_ZERO_EXTENT, , &src, 0, H, LEN, 0, arena.smooth, &dst);
    REFUSES_CALL(FA_OK, , &src, 0, H, LEN, DIM, arena.smooth, &dst);
    REFUSES_CALL(FA_OK, , &src, B, 0, LEN, DIM, arena.smooth, &dst);
    /* Where nothing is, distances are of no account. */
    REFUSES_CALL(FA_OK, src.stride[1] = INT64_MAX - 3, &src, B, H, 0, DIM, arena.smooth, &dst);
    REFUSES_CALL(FA_OK, dst.stride[0] = INT64_MAX, &src, B, H, 0, DIM, arena.smooth, &dst);
    REFUSES_CALL(FA_OK, , &src, B, BIT(61), 0, DIM, arena.smooth, &dst);
    REFUSES_CALL(FA_OK, , &src, B, H, 0, DIM, arena.smooth, &dst);
    REFUSES_CALL(FA_OK, src.data = dst.data = NULL; quant.scale = quant.zero = NULL, &src, B, H, 0, DIM, NULL, &dst);
    REFUSES_CALL(FA_ERR_DTYPE, dst.dtype = FA_DTYPE_F32, &src, B, H, 0, DIM, NULL, &dst);
}

static void pointers(void) {
    REFUSES_CALL(FA_ERR_NULL, , NULL, B, H, LEN, DIM, NULL, &dst);
    REFUSES_CALL(FA_ERR_NULL, , &src, B, H, LEN, DIM, NULL, NULL);
    REFUSES_CALL(FA_ERR_NULL, , NULL, 0, 0, 0, DIM, NULL, NULL);
    REFUSES(FA_ERR_NULL, src.data = NULL);
    REFUSES(FA_ERR_NULL, dst.data = NULL);
    REFUSES(FA_ERR_NULL, dst.quant = NULL);
    REFUSES(FA_ERR_NULL, quant.scale = NULL);
}

static void types(void) {
    static const int32_t not_a_source[] = {FA_DTYPE_I8, FA_DTYPE_U8, FA_DTYPE_F8_E4M3, FA_DTYPE_F8_E5M2, FA_DTYPE_BOOL8,
                                           FA_DTYPE_Q15, FA_DTYPE_Q15 + 1, -1, INT32_MAX, INT32_MIN};
    static const int32_t not_a_result[] = {FA_DTYPE_F32, FA_DTYPE_F16, FA_DTYPE_BF16, FA_DTYPE_BOOL8,
                                           FA_DTYPE_F8_E4M3, FA_DTYPE_F8_E5M2, FA_DTYPE_U8, FA_DTYPE_Q15,
                                           FA_DTYPE_Q15 + 1, -1, 99, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < COUNT(not_a_source); i++) REFUSES(FA_ERR_DTYPE, src.dtype = not_a_source[i]);
    for (size_t i = 0; i < COUNT(not_a_result); i++) REFUSES(FA_ERR_DTYPE, dst.dtype = not_a_result[i]);
    for (int i = 0; i < BLOCK_TYPES; i++) {
        REFUSES_CALL(FA_ERR_DTYPE, src.dtype = block_types[i], &src, B, H, LEN, 32, NULL, &dst);
        REFUSES_CALL(FA_ERR_DTYPE, dst.dtype = block_types[i], &src, B, H, LEN, 32, NULL, &dst);
    }
    REFUSES(FA_ERR_DTYPE, src.quant = &quant);
}

static void strides(void) {
    REFUSES(FA_ERR_STRIDE, src.stride_dim = 8);
    REFUSES(FA_ERR_STRIDE, dst.stride_dim = INT32_MIN);
    REFUSES(FA_ERR_STRIDE, src.stride_dim = -4);
    REFUSES(FA_ERR_STRIDE, src.stride_dim = INT32_MAX);
    REFUSES(FA_ERR_STRIDE, dst.stride_dim = 2);
    REFUSES(FA_ERR_STRIDE, dst.stride_dim = INT32_MAX);
    REFUSES_CALL(FA_OK, src.stride_dim = 4; dst.stride_dim = 1, &src, B, H, 0, DIM, arena.smooth, &dst);
    for (int axis = 0; axis < 3; axis++) {
        REFUSES(FA_ERR_STRIDE, src.stride[axis] = -4);
        REFUSES(FA_ERR_STRIDE, dst.stride[axis] = -1);
        REFUSES(FA_ERR_STRIDE, src.stride[axis] += 2);
        REFUSES(FA_ERR_STRIDE, src.stride[axis] += 1; src.dtype = FA_DTYPE_BF16);
        REFUSES(FA_ERR_STRIDE, dst.stride[axis] = 0);
        REFUSES(FA_ERR_STRIDE, dst.stride[axis] -= 1);
        REFUSES(FA_ERR_OVERFLOW, src.stride[axis] = INT64_MAX - 3);
        REFUSES(FA_ERR_OVERFLOW, dst.stride[axis] = INT64_MAX);
        ACCEPTS(src.stride[axis] = 0);
    }
    ACCEPTS(memset(src.stride, 0, sizeof src.stride));
    for (int axis = 0; axis < 4; axis++) {
        REFUSES(FA_ERR_STRIDE, quant.stride[axis] = -1);
        REFUSES(FA_ERR_STRIDE, quant.stride[axis] = INT64_MIN);
        REFUSES(FA_ERR_OVERFLOW, quant.stride[axis] = INT64_MAX);
        REFUSES(FA_ERR_OVERFLOW, quant.stride[axis] = BIT(61));
    }
    /* Two cells at one place. */
    REFUSES(FA_ERR_STRIDE, quant.stride[0] -= 1);
    REFUSES(FA_ERR_STRIDE, quant.stride[1] = H);
    REFUSES(FA_ERR_STRIDE, quant.stride[2] = 1);
    REFUSES(FA_ERR_STRIDE, quant.stride[3] = 1);
    ACCEPTS(quant.stride[0] = 0);
    ACCEPTS(quant.stride[1] = 0);
    ACCEPTS(quant.stride[2] = 0);
    ACCEPTS(memset(quant.stride, 0, sizeof quant.stride));
    /* One cell has no neighbour, whatever its stride. */
    ACCEPTS(quant.stride[3] = 1; quant.group_dims = DIM);
    ACCEPTS(quant.stride[3] = INT64_MAX; quant.group_dims = INT32_MAX);
    REFUSES(FA_ERR_ZERO_EXTENT, quant.group_tokens = 0);
    REFUSES(FA_ERR_SHAPE, quant.group_tokens = -1);
    REFUSES(FA_ERR_ZERO_EXTENT, quant.stride[3] = 1; quant.group_dims = 0);
    REFUSES(FA_ERR_SHAPE, quant.stride[3] = 1; quant.group_dims = INT32_MIN);
    ACCEPTS(quant.group_tokens = INT32_MAX);
    ACCEPTS(quant.group_dims = 0);
    ACCEPTS(quant.stride[2] = 0; quant.group_tokens = INT32_MIN);
}

static void overlaps(void) {
    REFUSES(FA_ERR_OVERLAP, src.data = arena.bytes);
    REFUSES(FA_ERR_OVERLAP, dst.data = arena.x);
    REFUSES(FA_ERR_OVERLAP, dst.data = (char *)(arena.x + ELEMENTS) - 1);
    REFUSES(FA_ERR_OVERLAP, dst.data = (char *)arena.x - ELEMENTS + 1);
    REFUSES(FA_ERR_OVERLAP, quant.scale = arena.x + 5);
    REFUSES(FA_ERR_OVERLAP, quant.zero = arena.x + ELEMENTS - 1);
    REFUSES(FA_ERR_OVERLAP, quant.zero = quant.scale);
    REFUSES(FA_ERR_OVERLAP, quant.zero = quant.scale + ROWS - 1);
    REFUSES(FA_ERR_OVERLAP, quant.scale = quant.zero + ROWS - 1);
    REFUSES(FA_ERR_OVERLAP, dst.data = arena.smooth);
    REFUSES(FA_ERR_OVERLAP, quant.scale = arena.smooth + H * DIM - 1);
    REFUSES(FA_ERR_OVERLAP, quant.zero = arena.smooth);
    REFUSES(FA_ERR_OVERLAP, dst.data = arena.scale);
    REFUSES(FA_ERR_OVERLAP, quant.zero = (const float *)(const void *)arena.bytes);
    REFUSES_CALL(FA_ERR_OVERLAP, , &src, B, H, LEN, DIM, quant.scale, &dst);
    /* Neighbours, at odd addresses, and inputs that share memory. */
    ACCEPTS(quant.zero = quant.scale + ROWS);
    ACCEPTS(quant.scale = (const float *)(const void *)((char *)arena.scale + 1));
    fill();
    CHECK(fa_quantize_i8(&src, B, H, LEN, DIM, arena.x, &dst) == FA_OK, "smoothed by itself");
}

/* Everything at odd addresses: the same bytes. */
static void odd_addresses(void) {
    static struct {
        unsigned char x[sizeof arena.x + 1], smooth[sizeof arena.smooth + 1], bytes[sizeof arena.bytes + 1];
        unsigned char scale[sizeof arena.scale + 1], zero[sizeof arena.zero + 1];
        unsigned char src[sizeof(fa_tensor) + 1], dst[sizeof(fa_tensor) + 1], quant[sizeof(fa_quant) + 1];
    } odd;
    static const char *const places[] = {"", ".data", ".quant", ".quant.scale", ".quant.zero"};
    char place[50];
    fill();
    CHECK(fa_quantize_i8(&src, B, H, LEN, DIM, arena.smooth, &dst) == FA_OK, "even addresses");
    memcpy(odd.x + 1, arena.x, sizeof arena.x), memcpy(odd.smooth + 1, arena.smooth, sizeof arena.smooth);
    src.data = odd.x + 1, dst.data = odd.bytes + 1;
    quant.scale = (const float *)(const void *)(odd.scale + 1), quant.zero = (const float *)(const void *)(odd.zero + 1);
    memcpy(odd.quant + 1, &quant, sizeof quant);
    dst.quant = (const fa_quant *)(const void *)(odd.quant + 1);
    memcpy(odd.src + 1, &src, sizeof src), memcpy(odd.dst + 1, &dst, sizeof dst);
    const void *from = odd.src + 1, *to = odd.dst + 1, *smooth = odd.smooth + 1;
    CHECK(fa_quantize_i8(from, B, H, LEN, DIM, smooth, to) == FA_OK, "odd addresses");
    CHECK(memcmp(odd.bytes + 1, arena.bytes, sizeof arena.bytes) == 0, "integers at odd addresses");
    CHECK(memcmp(odd.scale + 1, arena.scale, ROWS * 4) == 0 && memcmp(odd.zero + 1, arena.zero, ROWS * 4) == 0,
          "scales at odd addresses");
    for (size_t i = 0; i < COUNT(places); i++) covered(PLACE("fa_quantize_i8(dst)%s", places[i]), "odd", FA_OK);
    covered("fa_quantize_i8(src)", "odd", FA_OK), covered("fa_quantize_i8(src).data", "odd", FA_OK);
    covered("fa_quantize_i8(smooth)", "odd", FA_OK);
    /* As `fill` leaves them. */
    covered("fa_quantize_i8(dst).quant.stride[3]", "zero", FA_OK), covered("fa_quantize_i8(src).quant", "NULL", FA_OK);
}

static void refusals(void) {
    sizes(), pointers(), types(), strides(), overlaps(), odd_addresses();
    fill();
    CHECK(fa_limit_isa("scalar") == FA_OK, "a limit");
    CHECK(fa_quantize_i8(&src, B, H, LEN, DIM, NULL, &dst) == FA_OK, "under a limit");
    CHECK(fa_limit_isa(NULL) == FA_OK, "no limit");
}

/* ---- Caches. ---- */

/* Dense [batch][head][token][dim], its integers, scales and zeros. */
struct cache {
    fa_tensor tensor;
    fa_quant quant;
    int8_t *bytes;
    float *scale, *zero;
};

static fa_tensor dense(void *data, int32_t dtype, int64_t element) {
    fa_tensor t = {.data = data, .dtype = dtype};
    t.stride[0] = H * LEN * DIM * element, t.stride[1] = LEN * DIM * element, t.stride[2] = DIM * element;
    return t;
}

static void quantise(struct cache *c, float *x, const float *smooth, int own, int32_t tokens, int32_t dims,
                     bool zeros) {
    int64_t count[] = {B, H, (LEN + tokens - 1) / tokens, (DIM + dims - 1) / dims}, all = 1;
    memset(c, 0, sizeof *c);
    for (int axis = 3; axis >= 0; axis--) {
        if (!(own >> axis & 1)) continue;
        c->quant.stride[axis] = all;
        all *= count[axis];
    }
    c->bytes = need(ELEMENTS), c->scale = need((size_t)all * 4), c->zero = need((size_t)all * 4);
    c->quant.scale = c->scale, c->quant.zero = zeros ? c->zero : NULL;
    c->quant.group_tokens = tokens, c->quant.group_dims = dims;
    c->tensor = dense(c->bytes, FA_DTYPE_I8, 1);
    c->tensor.quant = &c->quant;
    fa_tensor from = dense(x, FA_DTYPE_F32, 4);
    fa_status status = fa_quantize_i8(&from, B, H, LEN, DIM, smooth, &c->tensor);
    CHECK(status == FA_OK, "own %d, groups %d, %d: %s", own, (int)tokens, (int)dims, fa_status_string(status));
}

static void release(struct cache *c) {
    free(c->bytes), free(c->scale), free(c->zero);
}

/* What the integers stand for, element by element; `step` is the scale of each. */
static float *numbers(const struct cache *c, float *step) {
    float *x = need(ELEMENTS * sizeof *x);
    const fa_quant *g = &c->quant;
    for (int64_t i = 0; i < ELEMENTS; i++) {
        int64_t d = i % DIM, t = i / DIM % LEN, h = i / DIM / LEN % H, b = i / DIM / LEN / H;
        int64_t at = b * g->stride[0] + h * g->stride[1];
        at += t / g->group_tokens * g->stride[2] + d / g->group_dims * g->stride[3];
        float zero = g->zero != NULL ? c->zero[at] : 0;
        x[i] = ((float)c->bytes[i] - zero) * c->scale[at];
        if (step != NULL) step[i] = fabsf(c->scale[at]);
    }
    return x;
}

static void attend(const float *q, const fa_tensor *k, const fa_tensor *v, int64_t right, float *o) {
    fa_attention a;
    size_t size = 0;
    CHECK(fa_attention_init(&a, sizeof a) == FA_OK, "init");
    a.batch = B, a.heads_q = a.heads_kv = H, a.len_q = a.len_kv = LEN, a.dim_qk = a.dim_v = DIM;
    a.q = dense((void *)(uintptr_t)q, FA_DTYPE_F32, 4), a.o = dense(o, FA_DTYPE_F32, 4);
    a.k = *k, a.v = *v, a.flags = FA_PRECISE, a.window_right = right;
    CHECK(fa_attention_workspace(&a, 1, &size) == FA_OK, "workspace");
    void *ws = need(size);
    fa_status status = fa_attention_run(&a, ws, size, NULL);
    CHECK(status == FA_OK, "%s", fa_status_string(status));
    free(ws);
}

static double *definition(const float *q, const float *k, const float *v) {
    double *o = need(ELEMENTS * sizeof *o);
    ref_attention(q, k, v, B * H, LEN, LEN, DIM, false, 1 / sqrt(DIM), o);
    return o;
}

/* ---- Every granularity, before attention. ---- */

static int problems;

static void one_granularity(float *q, float *k, float *v, int own, int32_t tokens, int32_t dims, bool zeros) {
    struct cache ck, cv;
    quantise(&ck, k, NULL, own, tokens, dims, zeros), quantise(&cv, v, NULL, own, tokens, dims, zeros);
    float *step = need(ELEMENTS * sizeof *step), *o = need(ELEMENTS * sizeof *o);
    float *back_v = numbers(&cv, NULL), *back_k = numbers(&ck, step);
    for (int i = 0; i < ELEMENTS; i++) {
        double bound = (double)step[i] / 2 * (1 + 2e-5) + fabs((double)k[i]) * 4e-7;
        CHECK(fabs((double)back_k[i] - (double)k[i]) <= bound, "own %d, %d, %d, zeros %d: %g is %g, steps of %g", own,
              (int)tokens, (int)dims, zeros, (double)k[i], (double)back_k[i], (double)step[i]);
    }
    attend(q, &ck.tensor, &cv.tensor, FA_NO_LIMIT, o);
    double *want = definition(q, back_k, back_v), error = distance(o, want, ELEMENTS);
    /* Integers are multiplied as 16-bit ones where tokens have no scales of their own; else numbers
     * as f32. */
    double most = (own & 4) == 0 ? 5e-4 : 1e-5;
    CHECK(error <= most * largest(back_v, ELEMENTS), "own %d, %d, %d, zeros %d: %g", own, (int)tokens, (int)dims,
          zeros, error);
    problems++;
    free(want), free(step), free(o), free(back_k), free(back_v);
    release(&ck), release(&cv);
}

static void granularities(void) {
    static const int32_t groups[][2] = {{1, 1}, {4, 8}, {5, 32}, {16, 3}};
    float *q = random_normal(ELEMENTS), *k = random_normal(ELEMENTS), *v = random_normal(ELEMENTS);
    for (int own = 0; own < 16; own++)
        for (size_t i = 0; i < COUNT(groups); i++)
            for (int zeros = 0; zeros < 2; zeros++)
                one_granularity(q, k, v, own, groups[i][0], groups[i][1], zeros);
    free(q), free(k), free(v);
}

/* A cache that grows by a token at a time holds the same as one that is written at once. */
static void appended(void) {
    enum { PER_TOKEN = 7 };
    float *x = random_normal(ELEMENTS), *smooth = random_normal(H * DIM);
    struct cache whole, grown;
    quantise(&whole, x, smooth, PER_TOKEN, 1, 1, true);
    quantise(&grown, x, smooth, PER_TOKEN, 1, 1, true);
    memset(grown.bytes, 0, ELEMENTS), memset(grown.scale, 0, ROWS * 4), memset(grown.zero, 0, ROWS * 4);
    for (int t = 0; t < LEN; t++) {
        fa_tensor from = dense(x + t * DIM, FA_DTYPE_F32, 4), to = grown.tensor;
        fa_quant g = grown.quant;
        to.data = grown.bytes + t * DIM, to.quant = &g;
        g.scale += t, g.zero += t;
        CHECK(fa_quantize_i8(&from, B, H, 1, DIM, smooth, &to) == FA_OK, "token %d", t);
    }
    CHECK(memcmp(whole.bytes, grown.bytes, ELEMENTS) == 0, "integers");
    CHECK(same_bits(whole.scale, grown.scale, ROWS) && same_bits(whole.zero, grown.zero, ROWS), "scales");
    free(x), free(smooth), release(&whole), release(&grown);
}

/* A token with a NaN or an infinity: whoever sees it gets NaN, and nobody else. */
static void not_finite(void) {
    enum { PER_TOKEN = 7, BAD = 20 };
    float *q = random_normal(ELEMENTS), *k = random_normal(ELEMENTS), *v = random_normal(ELEMENTS);
    float *o = need(ELEMENTS * sizeof *o);
    for (int n = 0; n < 8; n++) {
        float *x = n % 2 == 0 ? k : v, was = x[BAD * DIM + 3];
        x[BAD * DIM + 3] = n / 2 % 2 == 0 ? NAN : -INFINITY;
        struct cache ck, cv;
        quantise(&ck, k, NULL, PER_TOKEN, 1, 1, n / 4), quantise(&cv, v, NULL, PER_TOKEN, 1, 1, n / 4);
        attend(q, &ck.tensor, &cv.tensor, 0, o);
        for (int i = 0; i < ELEMENTS; i++) {
            bool sees = i < LEN * DIM && i / DIM >= BAD;
            CHECK(sees ? isnan(o[i]) : isfinite(o[i]), "%d: row %d, element %d: %g", n, i / DIM, i % DIM, (double)o[i]);
        }
        x[BAD * DIM + 3] = was;
        release(&ck), release(&cv);
    }
    free(q), free(k), free(v), free(o);
}

/* ---- Smoothing. ---- */

static double rms(const float *x, const double *y) {
    double square = 0, all = 0;
    for (int i = 0; i < ELEMENTS; i++) {
        double d = (double)x[i] - y[i];
        square += d * d, all += y[i] * y[i];
    }
    return sqrt(square / all);
}

/* Relative RMS errors of attention on keys that are quantised by tokens, with exact values. */
static double by_token(const float *q, float *k, float *v, const float *smooth, const double *want) {
    struct cache c;
    fa_tensor exact = dense(v, FA_DTYPE_F32, 4);
    float *o = need(ELEMENTS * sizeof *o);
    quantise(&c, k, smooth, 7, 1, 1, false);
    attend(q, &c.tensor, &exact, FA_NO_LIMIT, o);
    double error = rms(o, want);
    free(o), release(&c);
    return error;
}

static void smoothing(void) {
    float *q = random_normal(ELEMENTS), *k = random_normal(ELEMENTS), *v = random_normal(ELEMENTS);
    /* Channels of one head that are all far from 0, the same for all tokens and both batch
     * entries. */
    float *offset = random_normal(H * DIM);
    for (int i = 0; i < ELEMENTS; i++) k[i] += 10 * offset[i / DIM / LEN % H * DIM + i % DIM];
    float mean[H * DIM] = {0};
    for (int i = 0; i < ELEMENTS; i++) mean[i / DIM / LEN % H * DIM + i % DIM] += k[i] / (B * LEN);
    double *want = definition(q, k, v);
    double plain = by_token(q, k, v, NULL, want), smooth = by_token(q, k, v, mean, want);
    CHECK(smooth < 0.02, "smoothed keys: %g", smooth);
    CHECK(smooth < plain / 4, "smoothed keys: %g, others: %g", smooth, plain);
    printf("%s: relative RMS error of keys far from 0: %.1e, smoothed %.1e\n", fa_isa(), plain, smooth);
    free(q), free(k), free(v), free(offset), free(want);
}

static void all(void) {
    check_seed = 1;
    granularities();
    appended();
    not_finite();
    smoothing();
}

int main(int argc, char **argv) {
    covered_begin(argc, argv);
    refusals();
    if (print_covered) return check_result();
    for_each_isa(all);
    printf("%d refusals, %d problems\n", refused, problems);
    return check_result();
}
