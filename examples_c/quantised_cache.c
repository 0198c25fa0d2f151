/*
 * What a cache of 8 bits costs in accuracy, and what scales of different granularity and smoothing
 * win back.
 *
 *   quantised_cache DIRECTORY
 *
 * Quantises the keys and values of a real model on real text (see README.md in the directory) in
 * several ways, lets the same f32 queries attend to each, and compares with attention in double: on
 * the model's numbers, and on those that the integers stand for, which shows what the kernel adds.
 * What it adds is shown for a second set of tensors, too, whose first token is an attention sink:
 * it has 98 % of the probability, and a value near 0. Exit code 1 if finer scales do not give
 * better results, or the kernel adds too much, 2 if something else went wrong.
 */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "flash_attention.h"

/* The longest set of the fixture; all tensors are [token][head][dim]. */
enum { HEADS = 12, LEN = 128, DIM = 32, ROWS = LEN * HEADS, ELEMENTS = ROWS * DIM };
static const char *const NAME = "layer1_q128_kv128";
static const double SCALE = 0.17677669529663687;
/* Relative RMS error that the kernel may add: by default, and with FA_FAST. */
static const double KERNEL_BOUND[] = {5e-4, 2.5e-2};
/* The part of the probability that the first token has in the second set. */
static const double SINK = 0.98;

static float *q;
/* Keys and values: as they are, and with a sink. */
static float *k[2], *v[2];

static void fail(const char *what, const char *detail)
{
    fprintf(stderr, "quantised_cache: %s: %s\n", what, detail);
    exit(2);
}

static void *allocate(size_t bytes)
{
    void *memory = calloc(1, bytes);
    if (memory == NULL)
        fail("out of memory", "");
    return memory;
}

static void must(fa_status status)
{
    if (status != FA_OK)
        fail("flash_attention", fa_status_string(status));
}

static float *load(const char *directory, const char *suffix)
{
    char path[4096];
    int length = snprintf(path, sizeof path, "%s/%s_%s.f32", directory, NAME, suffix);
    if (length < 0 || (size_t)length >= sizeof path)
        fail("path too long", directory);
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        fail("cannot open", path);
    float *x = allocate(ELEMENTS * sizeof *x);
    if (fread(x, sizeof *x, ELEMENTS, file) != ELEMENTS)
        fail("too short", path);
    fclose(file);
    return x;
}

/* Rows of so many bytes, [token][head]. */
static fa_tensor tensor(void *data, fa_dtype dtype, int64_t row)
{
    fa_tensor t = {.data = data, .dtype = dtype};
    t.stride[0] = ROWS * row, t.stride[1] = row, t.stride[2] = HEADS * row;
    return t;
}

/* ---- Keys or values as a cache stores them. ---- */

/* What is stored, and the numbers it stands for. */
typedef struct cache {
    fa_tensor tensor;
    fa_quant quant;
    float *numbers;
    size_t bytes;
} cache;

static cache as_f32(const float *x)
{
    cache c = {.bytes = ELEMENTS * sizeof *x};
    c.numbers = allocate(c.bytes);
    memcpy(c.numbers, x, c.bytes);
    c.tensor = tensor(c.numbers, FA_DTYPE_F32, DIM * 4);
    return c;
}

/* Who has scales (and zeros) of their own. */
typedef struct grain {
    bool head, token, channel, zeros;
} grain;

static cache as_i8(const float *x, grain g, const float *smooth)
{
    cache c = {.bytes = ELEMENTS};
    int64_t cells = 1;
    c.quant.group_tokens = c.quant.group_dims = 1;
    if (g.channel)
        c.quant.stride[3] = cells, cells *= DIM;
    if (g.head)
        c.quant.stride[1] = cells, cells *= HEADS;
    if (g.token)
        c.quant.stride[2] = cells, cells *= LEN;
    float *scale = allocate((size_t)cells * sizeof *scale), *zero = NULL;
    if (g.zeros)
        zero = allocate((size_t)cells * sizeof *zero);
    c.bytes += (size_t)cells * (g.zeros ? 8 : 4);
    c.quant.scale = scale, c.quant.zero = zero;

    int8_t *stored = allocate(ELEMENTS);
    fa_tensor from = tensor((void *)(uintptr_t)x, FA_DTYPE_F32, DIM * 4), to = tensor(stored, FA_DTYPE_I8, DIM);
    to.quant = &c.quant;
    must(fa_quantize_i8(&from, 1, HEADS, LEN, DIM, smooth, &to));
    c.tensor = to;

    c.numbers = allocate(ELEMENTS * sizeof *c.numbers);
    for (int64_t i = 0; i < ELEMENTS; i++) {
        int64_t t = i / DIM / HEADS, h = i / DIM % HEADS, d = i % DIM;
        int64_t cell = h * c.quant.stride[1] + t * c.quant.stride[2] + d * c.quant.stride[3];
        c.numbers[i] = ((float)stored[i] - (g.zeros ? zero[cell] : 0)) * scale[cell];
    }
    return c;
}

/* A normal binary16, rounded to nearest; returns what it stands for. */
static float to_f16(float x, unsigned char *bytes)
{
    int exponent;
    long units = lrintf(frexpf(x, &exponent) * 2048);
    if (exponent < -13 || exponent > 15)
        fail("a scale", "not of the range of normal binary16");
    uint16_t bits = (uint16_t)((exponent + 13) * 1024 + units);
    memcpy(bytes, &bits, 2);
    return ldexpf((float)units, exponent - 11);
}

/* ggml's blocks: a binary16 scale and the 32 integers that are multiplied with it. */
static cache as_q8_0(const float *x)
{
    enum { BLOCK = 32, BYTES = 34 };
    cache c = {.bytes = ELEMENTS / BLOCK * BYTES};
    unsigned char *blocks = allocate(c.bytes);
    c.numbers = allocate(ELEMENTS * sizeof *c.numbers);
    for (size_t i = 0; i < ELEMENTS; i += BLOCK) {
        unsigned char *block = blocks + i / BLOCK * BYTES;
        float most = 0;
        for (int j = 0; j < BLOCK; j++)
            most = fmaxf(most, fabsf(x[i + j]));
        /* No smaller than a normal binary16. */
        float step = fmaxf(most / 127, 0x1p-14F), scale = to_f16(step, block);
        for (int j = 0; j < BLOCK; j++) {
            int8_t integer = (int8_t)lrintf(x[i + j] / step);
            memcpy(block + 2 + j, &integer, 1);
            c.numbers[i + j] = scale * integer;
        }
    }
    c.tensor = tensor(blocks, FA_DTYPE_Q8_0, DIM / BLOCK * BYTES);
    return c;
}

/* The mean of each channel of each head over the tokens. */
static const float *means(const float *x)
{
    static float mean[HEADS * DIM];
    memset(mean, 0, sizeof mean);
    for (int i = 0; i < ELEMENTS; i++)
        mean[i % (HEADS * DIM)] += x[i] / LEN;
    return mean;
}

/* ---- Attention. ---- */

/* The definition, in double. */
static double *definition(const float *keys, const float *values)
{
    double *out = allocate(ELEMENTS * sizeof *out), weight[LEN];
    for (int row = 0; row < ROWS; row++) {
        const float *query = q + row * DIM;
        int head = row % HEADS * DIM;
        double largest = -INFINITY, sum = 0;
        for (int j = 0; j < LEN; j++) {
            const float *key = keys + j * HEADS * DIM + head;
            weight[j] = 0;
            for (int d = 0; d < DIM; d++)
                weight[j] += SCALE * query[d] * key[d];
            largest = fmax(largest, weight[j]);
        }
        for (int j = 0; j < LEN; j++)
            sum += weight[j] = exp(weight[j] - largest);
        for (int j = 0; j < LEN; j++)
            for (int d = 0; d < DIM; d++)
                out[row * DIM + d] += weight[j] / sum * values[j * HEADS * DIM + head + d];
    }
    return out;
}

static void attend(const cache *keys, const cache *values, uint32_t flags, float *out)
{
    fa_attention a;
    size_t bytes;
    must(fa_attention_init(&a, sizeof a));
    a.batch = 1, a.heads_q = a.heads_kv = HEADS, a.len_q = a.len_kv = LEN, a.dim_qk = a.dim_v = DIM;
    a.q = tensor(q, FA_DTYPE_F32, DIM * 4), a.o = tensor(out, FA_DTYPE_F32, DIM * 4);
    a.k = keys->tensor, a.v = values->tensor;
    /* The structures have moved since the tensors were made. */
    if (a.k.dtype == FA_DTYPE_I8)
        a.k.quant = &keys->quant;
    if (a.v.dtype == FA_DTYPE_I8)
        a.v.quant = &values->quant;
    a.scale = (float)SCALE, a.flags = flags;
    must(fa_attention_workspace(&a, 1, &bytes));
    void *workspace = allocate(bytes);
    must(fa_attention_run(&a, workspace, bytes, NULL));
    free(workspace);
}

/* RMS of the difference over RMS of the exact values. */
static double rms(const float *out, const double *exact)
{
    double square = 0, all = 0;
    for (int i = 0; i < ELEMENTS; i++) {
        double difference = out[i] - exact[i];
        square += difference * difference;
        all += exact[i] * exact[i];
    }
    return sqrt(square / all);
}

/* How much of the probability the first key has, averaged over the rows of a head. */
static double share_of_first(const float *keys, int head)
{
    double share = 0;
    for (int i = 0; i < LEN; i++) {
        double score[LEN], largest = -INFINITY, sum = 0;
        for (int j = 0; j < LEN; j++) {
            score[j] = 0;
            for (int d = 0; d < DIM; d++)
                score[j] += SCALE * q[(i * HEADS + head) * DIM + d] * keys[(j * HEADS + head) * DIM + d];
            largest = fmax(largest, score[j]);
        }
        for (int j = 0; j < LEN; j++)
            sum += exp(score[j] - largest);
        share += exp(score[0] - largest) / sum / LEN;
    }
    return share;
}

/* Makes a sink of the first token of the second set: a key along the mean query of each head, and a
 * small value. */
static void add_sink(void)
{
    for (int i = 0; i < 2; i++) {
        float **x = i == 0 ? k : v;
        x[1] = allocate(ELEMENTS * sizeof **x);
        memcpy(x[1], x[0], ELEMENTS * sizeof **x);
    }
    const float *mean = means(q);
    for (int head = 0; head < HEADS; head++) {
        double low = 0, high = 1000;
        for (int step = 0; step < 40; step++) {
            double factor = (low + high) / 2;
            for (int d = 0; d < DIM; d++)
                k[1][head * DIM + d] = (float)factor * mean[head * DIM + d];
            *(share_of_first(k[1], head) < SINK ? &low : &high) = factor;
        }
    }
    for (int i = 0; i < HEADS * DIM; i++)
        v[1][i] *= 0.01F;
}

/* ---- The table. ---- */

/* In what form a cache is. */
typedef struct form {
    fa_dtype dtype;
    grain grain;
    bool smooth;
} form;

static cache store(const float *x, form f)
{
    if (f.dtype == FA_DTYPE_F32)
        return as_f32(x);
    return f.dtype == FA_DTYPE_Q8_0 ? as_q8_0(x) : as_i8(x, f.grain, f.smooth ? means(x) : NULL);
}

static void release(cache *c)
{
    if (c->tensor.dtype != FA_DTYPE_F32)
        free(c->tensor.data);
    free((void *)(uintptr_t)c->quant.scale);
    free((void *)(uintptr_t)c->quant.zero);
    free(c->numbers);
}

/* Errors by default and with FA_FAST: against the model's numbers, and against those that are
 * stored, as they are and with a sink. */
typedef struct errors {
    double model[2], stored[2][2];
} errors;

static bool all_right = true;

static errors row(const char *name, const double *exact, form of_k, form of_v)
{
    static const uint32_t flags[] = {0, FA_FAST};
    errors e;
    bool right = true;
    double bytes = 0;
    float *out = allocate(ELEMENTS * sizeof *out);
    for (int set = 0; set < 2; set++) {
        cache keys = store(k[set], of_k), values = store(v[set], of_v);
        double *stored = definition(keys.numbers, values.numbers);
        bytes = (double)(keys.bytes + values.bytes);
        for (int i = 0; i < 2; i++) {
            attend(&keys, &values, flags[i], out);
            e.stored[set][i] = rms(out, stored);
            right = right && e.stored[set][i] <= KERNEL_BOUND[i];
            if (set == 0)
                e.model[i] = rms(out, exact);
        }
        release(&keys);
        release(&values);
        free(stored);
    }
    all_right = all_right && right;
    printf("%-44s %7.3f", name, bytes / (2 * ELEMENTS));
    for (int i = 0; i < 2; i++)
        printf("   %9.1e %9.1e %9.1e", e.model[i], e.stored[0][i], e.stored[1][i]);
    puts(right ? "" : "  WRONG");
    free(out);
    return e;
}

static void better(const char *what, errors fine, errors coarse)
{
    for (int i = 0; i < 2; i++) {
        if (fine.model[i] < coarse.model[i])
            continue;
        printf("%s: %.1e is not better than %.1e.\n", what, fine.model[i], coarse.model[i]);
        all_right = false;
    }
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: quantised_cache DIRECTORY\n");
        return 2;
    }
    q = load(argv[1], "q"), k[0] = load(argv[1], "k"), v[0] = load(argv[1], "v");
    add_sink();
    double *exact = definition(k[0], v[0]);

    static const form f32 = {.dtype = FA_DTYPE_F32}, blocks = {.dtype = FA_DTYPE_Q8_0};
    static const form tensor = {FA_DTYPE_I8, {.zeros = false}, false}, head = {FA_DTYPE_I8, {.head = true}, false};
    static const form channel = {FA_DTYPE_I8, {.head = true, .channel = true}, false};
    static const form token = {FA_DTYPE_I8, {.head = true, .token = true}, false};
    static const form zeros = {FA_DTYPE_I8, {.head = true, .token = true, .zeros = true}, false};
    static const form smooth = {FA_DTYPE_I8, {.head = true, .token = true}, true};
    printf("Keys and values of all-MiniLM-L6-v2, layer 1: %d heads, %d tokens, %d channels; %s\n\n", HEADS, LEN, DIM,
           fa_isa());
    printf("%-44s %7s   %9s %9s %9s   %9s %9s %9s\n", "", "bytes/", "default", "", "", "FA_FAST", "", "");
    printf("%-44s %7s", "scales of K; of V", "element");
    for (int i = 0; i < 2; i++)
        printf("   %9s %9s %9s", "of model", "of stored", "with sink");
    puts("");
    row("none (f32)", exact, f32, f32);
    errors of_tensors = row("one", exact, tensor, tensor);
    row("one a head", exact, head, head);
    row("each token; one a head", exact, token, head);
    errors of_tokens = row("each token", exact, token, token);
    row("each token, with zeros", exact, zeros, zeros);
    errors of_channels = row("each channel; each token", exact, channel, token);
    errors smoothed = row("each token, smoothed; each token", exact, smooth, token);
    errors of_blocks = row("each block of 32 channels, binary16 (Q8_0)", exact, blocks, blocks);

    printf("\nRelative RMS errors of attention with f32 queries: against attention in double on the model's numbers,\n"
           "and on those that the stored ones stand for; the latter, too, where the first token has %.0f %% of the\n"
           "probability and a value near 0. Scales of tokens and channels are those of one head.\n\n",
           100 * SINK);
    better("a scale for each token", of_tokens, of_tensors);
    better("a scale for each channel of K", of_channels, of_tensors);
    better("smoothed keys", smoothed, of_tokens);
    better("blocks of ggml", of_blocks, of_tensors);
    puts(all_right ? "Finer scales are better." : "NOT AS IT SHOULD BE.");
    free(exact);
    free(q);
    for (int set = 0; set < 2; set++) {
        free(k[set]);
        free(v[set]);
    }
    return all_right ? 0 : 1;
}
