/*
 * Multi-head attention of a real model on real text, and the proof that it is right.
 *
 *   real_model DIRECTORY
 *
 * Loads the queries, keys and values of a sentence-embedding model (see README.md in the
 * directory), computes attention in f32 for all heads at once and, quantised to 8 bits, for each
 * head, and compares with the exact outputs that come with the data. Exit code 1 if an error is
 * larger than it may be, 2 if something else went wrong.
 */
#define _POSIX_C_SOURCE 199309L

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "flash_attention.h"

/* f32: largest error against exact attention, as a share of the largest |v|. */
static const double F32_BOUND = 1e-5;
/* i8: relative RMS error against exact attention on the same 8-bit numbers (what the kernel adds:
 * with integer instructions probabilities have 8 bits, too) and on the model's numbers (what
 * quantising to 8 bits, one scale a head, adds to that). */
static const double I8_KERNEL_BOUND = 2e-2;
static const double I8_MODEL_BOUND = 0.1;

/* One set of tensors; q, k, v and exact as [head][seq][dim]. */
typedef struct set {
    char name[64];
    size_t heads, len_q, len_kv, dim;
    float scale;
    bool causal;
    float *q, *k, *v;
    double *exact;
} set;

static bool all_right = true;

static void fail(const char *what, const char *detail)
{
    fprintf(stderr, "real_model: %s: %s\n", what, detail);
    exit(2);
}

static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count, size);
    if (memory == NULL)
        fail("out of memory", "");
    return memory;
}

static void must(fa_status status)
{
    if (status != FA_OK)
        fail("flash_attention", fa_status_string(status));
}

/* Reads [seq][head][dim] and returns it as [head][seq][dim], the order that fa_mha takes. */
static void *load(const char *directory, const set *s, const char *suffix, size_t seq, size_t size)
{
    char path[4096];
    int length = snprintf(path, sizeof path, "%s/%s_%s", directory, s->name, suffix);
    if (length < 0 || (size_t)length >= sizeof path)
        fail("path too long", directory);
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        fail("cannot open", path);
    size_t row = s->dim * size;
    char *stored = allocate(seq * s->heads, row), *sorted = allocate(seq * s->heads, row);
    if (fread(stored, row, seq * s->heads, file) != seq * s->heads)
        fail("too short", path);
    fclose(file);
    for (size_t i = 0; i < seq; i++)
        for (size_t h = 0; h < s->heads; h++)
            memcpy(sorted + (h * seq + i) * row, stored + (i * s->heads + h) * row, row);
    free(stored);
    return sorted;
}

static void load_set(const char *directory, set *s)
{
    s->q = load(directory, s, "q.f32", s->len_q, sizeof(float));
    s->k = load(directory, s, "k.f32", s->len_kv, sizeof(float));
    s->v = load(directory, s, "v.f32", s->len_kv, sizeof(float));
    s->exact = load(directory, s, s->causal ? "out_causal.f64" : "out.f64", s->len_q, sizeof(double));
}

static void free_set(set *s)
{
    free(s->q);
    free(s->k);
    free(s->v);
    free(s->exact);
}

/* Symmetric 8-bit numbers with one scale for the head; returns the scale. */
static float quantise(const float *x, size_t n, int8_t *stored)
{
    float largest = 0;
    for (size_t i = 0; i < n; i++)
        largest = fmaxf(largest, fabsf(x[i]));
    float scale = largest > 0 ? largest / 127 : 1;
    for (size_t i = 0; i < n; i++)
        stored[i] = (int8_t)lrintf(x[i] / scale);
    return scale;
}

/* All heads in 8 bits: the tensors, and for each head the scales of q, k and v. */
typedef struct quantised {
    int8_t *q, *k, *v;
    float (*scale)[3];
} quantised;

static quantised quantise_set(const set *s)
{
    size_t q_head = s->len_q * s->dim, kv_head = s->len_kv * s->dim;
    quantised z = {allocate(s->heads, q_head), allocate(s->heads, kv_head), allocate(s->heads, kv_head),
                   allocate(s->heads, sizeof *z.scale)};
    for (size_t h = 0; h < s->heads; h++) {
        z.scale[h][0] = quantise(s->q + h * q_head, q_head, z.q + h * q_head);
        z.scale[h][1] = quantise(s->k + h * kv_head, kv_head, z.k + h * kv_head);
        z.scale[h][2] = quantise(s->v + h * kv_head, kv_head, z.v + h * kv_head);
    }
    return z;
}

/* Exact attention on the 8-bit numbers, straight from the formula. */
static double *exact_quantised(const set *s, const quantised *z)
{
    double *out = allocate(s->heads * s->len_q * s->dim, sizeof *out);
    double *weight = allocate(s->len_kv, sizeof *weight);
    for (size_t h = 0; h < s->heads; h++) {
        const int8_t *k = z->k + h * s->len_kv * s->dim, *v = z->v + h * s->len_kv * s->dim;
        for (size_t i = 0; i < s->len_q; i++) {
            const int8_t *q = z->q + (h * s->len_q + i) * s->dim;
            double *o = out + (h * s->len_q + i) * s->dim;
            size_t seen = s->causal ? i + 1 : s->len_kv;
            double largest = -INFINITY, sum = 0;
            for (size_t j = 0; j < seen; j++) {
                double dot = 0;
                for (size_t d = 0; d < s->dim; d++)
                    dot += q[d] * k[j * s->dim + d];
                weight[j] = dot * s->scale * z->scale[h][0] * z->scale[h][1];
                largest = fmax(largest, weight[j]);
            }
            for (size_t j = 0; j < seen; j++)
                sum += weight[j] = exp(weight[j] - largest);
            for (size_t j = 0; j < seen; j++)
                for (size_t d = 0; d < s->dim; d++)
                    o[d] += weight[j] / sum * z->scale[h][2] * v[j * s->dim + d];
        }
    }
    free(weight);
    return out;
}

typedef struct error {
    double max, rms; /* largest difference; RMS difference over RMS of the exact values */
} error;

static error compare(const float *out, const double *exact, size_t n)
{
    error e = {0, 0};
    double square = 0, reference = 0;
    for (size_t i = 0; i < n; i++) {
        double difference = fabs(out[i] - exact[i]);
        /* not fmax, which would lose a NaN */
        if (!(difference <= e.max))
            e.max = difference;
        square += difference * difference;
        reference += exact[i] * exact[i];
    }
    e.rms = sqrt(square / reference);
    return e;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* What one row of the table computes. */
typedef struct job {
    const set *set;
    const quantised *z; /* NULL: f32 */
    fa_config cfg;
    float *out;
} job;

static void compute(const job *j)
{
    const set *s = j->set;
    if (j->z == NULL) {
        must(fa_mha(&j->cfg, s->q, s->k, s->v, s->heads, s->len_q, s->len_kv, j->out));
        return;
    }
    size_t q_head = s->len_q * s->dim, kv_head = s->len_kv * s->dim;
    for (size_t h = 0; h < s->heads; h++) {
        const float *scale = j->z->scale[h];
        must(fa_forward_i8(&j->cfg, j->z->q + h * q_head, j->z->k + h * kv_head, j->z->v + h * kv_head,
                           scale[0], scale[1], scale[2], s->len_q, s->len_kv, j->out + h * q_head));
    }
}

/* Median seconds of many runs, of fewer where they take seconds together. */
static double measure(const job *j)
{
    enum { RUNS = 101, SECONDS = 2 };
    double times[RUNS], begin = now();
    size_t runs = 0;
    do {
        double start = now();
        compute(j);
        times[runs++] = now() - start;
    } while (runs < RUNS && now() - begin < SECONDS);
    qsort(times, runs, sizeof *times, by_size);
    return times[runs / 2];
}

static void heading(void)
{
    printf("%-28s %-4s %-7s %7s  %9s %9s %9s  %9s %8s  %9s %9s\n", "heads x queries x keys x dim", "type", "ISA",
           "threads", "max error", "rel. RMS", "of kernel", "time us", "GFLOP/s", "scratch B", "matrix B");
}

/* Computes, checks and prints one row; `kernel_exact` is exact attention on the 8-bit numbers. */
static void row(const set *s, const quantised *z, const double *kernel_exact, uint32_t threads)
{
    job j = {.set = s, .z = z};
    size_t elements = s->heads * s->len_q * s->dim;
    must(fa_config_auto(&j.cfg, s->dim));
    j.cfg.causal = s->causal;
    j.cfg.softmax_scale = s->scale;
    j.cfg.num_threads = threads;
    j.out = allocate(elements, sizeof *j.out);
    for (size_t i = 0; i < elements; i++)
        j.out[i] = NAN;
    double seconds = measure(&j);

    error model = compare(j.out, s->exact, elements);
    error kernel = kernel_exact != NULL ? compare(j.out, kernel_exact, elements) : model;
    float largest = 0;
    for (size_t i = 0; i < s->heads * s->len_kv * s->dim; i++)
        largest = fmaxf(largest, fabsf(s->v[i]));
    bool right = z == NULL ? model.max <= F32_BOUND * largest
                           : model.rms <= I8_MODEL_BOUND && kernel.rms <= I8_KERNEL_BOUND;
    all_right = all_right && right;

    size_t scratch, heads_at_once = z == NULL ? s->heads : 1;
    must(fa_scratch_bytes(&j.cfg, z == NULL ? FA_DTYPE_F32 : FA_DTYPE_I8, heads_at_once, s->len_q, s->len_kv,
                          &scratch));
    size_t pairs = s->causal ? s->len_q * (s->len_q + 1) / 2 : s->len_q * s->len_kv;
    char shape[64], count[16];
    snprintf(shape, sizeof shape, "%zu x %zu x %zu x %zu%s", s->heads, s->len_q, s->len_kv, s->dim,
             s->causal ? " causal" : "");
    snprintf(count, sizeof count, threads == 0 ? "all" : "%u", (unsigned)threads);
    printf("%-28s %-4s %-7s %7s  %9.1e %9.1e %9.1e  %9.1f %8.1f  %9zu %9zu%s\n", shape, z == NULL ? "f32" : "i8",
           fa_isa(), count, model.max, model.rms, kernel.rms, 1e6 * seconds,
           4e-9 * (double)(s->heads * pairs * s->dim) / seconds, scratch,
           heads_at_once * s->len_q * s->len_kv * sizeof(float), right ? "" : "  WRONG");
    free(j.out);
}

static void rows(const set *s)
{
    quantised z = quantise_set(s);
    double *kernel_exact = exact_quantised(s, &z);
    row(s, NULL, NULL, 1);
    row(s, &z, kernel_exact, 1);
    if (s->len_q >= 64) { /* enough work for more threads, and to see what vectors are worth */
        row(s, NULL, NULL, 0);
#ifdef __aarch64__
        static const char *const lesser[] = {"neon", "scalar"};
#else
        static const char *const lesser[] = {"avx2", "scalar"};
#endif
        for (size_t i = 0; i < sizeof lesser / sizeof *lesser; i++) {
            must(fa_limit_isa(lesser[i]));
            row(s, NULL, NULL, 1);
            row(s, &z, kernel_exact, 1);
        }
        must(fa_limit_isa(NULL));
    }
    free(kernel_exact);
    free(z.q);
    free(z.k);
    free(z.v);
    free(z.scale);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: real_model DIRECTORY\n");
        return 2;
    }
    char path[4096], line[256];
    snprintf(path, sizeof path, "%s/index.txt", argv[1]);
    FILE *index = fopen(path, "r");
    if (index == NULL)
        fail("cannot open", path);

    uint32_t version = fa_version();
    printf("flash_attention %u.%u.%u: attention of all-MiniLM-L6-v2, layer 1, on real text\n\n", version >> 16,
           version >> 8 & 255, version & 255);
    heading();
    int sets = 0;
    while (fgets(line, sizeof line, index) != NULL) {
        set s = {.causal = false};
        int causal_too;
        if (line[0] == '#')
            continue;
        if (sscanf(line, "%63s %zu %zu %zu %zu %f %d", s.name, &s.heads, &s.len_q, &s.len_kv, &s.dim, &s.scale,
                   &causal_too) != 7)
            fail("not understood", line);
        for (int causal = 0; causal <= causal_too; causal++) {
            s.causal = causal != 0;
            load_set(argv[1], &s);
            rows(&s);
            free_set(&s);
            sets++;
        }
    }
    fclose(index);
    if (sets == 0)
        fail("no sets in", path);

    printf("\nmax error and rel. RMS: against exact attention on the model's numbers; of kernel: rel. RMS against\n"
           "exact attention on the numbers the kernel got (for i8, the 8-bit ones). scratch B: all memory a call\n"
           "takes besides its arrays; matrix B: what the matrix of scores would take.\n\n");
    puts(all_right ? "All errors are within their bounds." : "AN ERROR BOUND IS BROKEN.");
    return all_right ? 0 : 1;
}
