/* What the test programs share: one macro, random data, attention in double, instruction sets. */

#ifndef CHECK_H
#define CHECK_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#ifdef __linux__
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include <flash_attention.h>

/* Failures are counted and not fatal, so that one run shows all of them; printing stops early
 * because one bug can fail thousands of checks. Not for use from several threads at once. */
static int check_failures;

#define CHECK(condition, ...)                                                   \
    do {                                                                        \
        if (!(condition) && ++check_failures <= 20) {                           \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);     \
            fprintf(stderr, __VA_ARGS__);                                       \
            fputc('\n', stderr);                                                \
        }                                                                       \
    } while (0)

/* What main returns. */
static inline int check_result(void) {
    if (check_failures != 0) fprintf(stderr, "%d checks failed\n", check_failures);
    return check_failures != 0;
}

/* Memory that is there, or no test. */
static inline void *need(size_t bytes) {
    void *memory = malloc(bytes > 0 ? bytes : 1);
    if (memory == NULL) {
        fprintf(stderr, "out of memory: %zu bytes\n", bytes);
        exit(2);
    }
    return memory;
}

static inline bool same_bits(const float *a, const float *b, size_t n) {
    return memcmp(a, b, n * sizeof *a) == 0;
}

static uint64_t check_seed = 1;

/* splitmix64: the same numbers on every machine. */
static inline uint64_t random_bits(void) {
    uint64_t z = check_seed += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* n numbers of the standard normal distribution. */
static inline float *random_normal(size_t n) {
    float *x = need(n * sizeof *x);
    for (size_t i = 0; i < n; i++) {
        double u = ((double)(random_bits() >> 11) + 1) * 0x1p-53;
        double w = (double)(random_bits() >> 11) * 0x1p-53;
        x[i] = (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * w));
    }
    return x;
}

static inline double largest(const float *x, size_t n) {
    double max = 0;
    for (size_t i = 0; i < n; i++) max = fmax(max, fabs((double)x[i]));
    return max;
}

/* Keys that query i sees: the first so many. */
static inline size_t keys_seen(size_t i, size_t lq, size_t lkv, bool causal) {
    if (!causal) return lkv;
    return i + 1 + lkv <= lq ? 0 : i + 1 + lkv - lq;
}

/* The definition, in double: out = softmax(scale * q * k^T) * v. */
static inline void ref_attention(const float *q, const float *k, const float *v, size_t heads,
                                 size_t lq, size_t lkv, size_t d, bool causal, double scale,
                                 double *out) {
    double *p = need(lkv * sizeof *p);
    for (size_t h = 0; h < heads; h++, q += lq * d, k += lkv * d, v += lkv * d, out += lq * d) {
        for (size_t i = 0; i < lq; i++) {
            size_t n = keys_seen(i, lq, lkv, causal);
            double max = -INFINITY, sum = 0;
            for (size_t j = 0; j < n; j++) {
                double dot = 0;
                for (size_t c = 0; c < d; c++) dot += (double)q[i * d + c] * (double)k[j * d + c];
                p[j] = scale * dot;
                max = fmax(max, p[j]);
            }
            for (size_t j = 0; j < n; j++) sum += p[j] = exp(p[j] - max);
            for (size_t c = 0; c < d; c++) out[i * d + c] = 0;
            for (size_t j = 0; j < n; j++) {
                for (size_t c = 0; c < d; c++) out[i * d + c] += p[j] / sum * (double)v[j * d + c];
            }
        }
    }
    free(p);
}

/* The largest difference; infinite if one side has a NaN. */
static inline double distance(const float *x, const double *y, size_t n) {
    double max = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)x[i] - y[i]);
        if (!(d <= max)) max = d == d ? d : INFINITY;
    }
    return max;
}

/* Names of instruction sets, worst first. */
#ifdef __aarch64__
static const char *const isa_names[] = {"scalar", "neon", "neon-dotprod", "neon-i8mm", "neon-bf16"};
#elif defined(FA_WITHOUT_AVX512)
static const char *const isa_names[] = {"scalar", "avx2", "avxvnni"};
#else
static const char *const isa_names[] = {"scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16",
                                         "amx"};
#endif
enum { ISAS = sizeof isa_names / sizeof *isa_names };

/* Index in isa_names, or -1. */
static inline int isa_rank(const char *name) {
    for (int i = 0; i < ISAS; i++) {
        if (strcmp(name, isa_names[i]) == 0) return i;
    }
    return -1;
}

#if defined(__x86_64__) && defined(__GNUC__)
/* Whether the processor has tiles for bfloat16 and bytes. */
static inline bool processor_has_amx(void) {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) != 0 && (d >> 24 & 3) == 3;
}

/* Whether the process may use them, or the environment wants the library to ask for it. */
static inline bool process_has_amx(void) {
#ifdef __linux__
    extern long syscall(long, ...);
    const char *wanted = getenv("FA_AMX");
    uint64_t permitted = 0;
    if (!processor_has_amx() || (wanted != NULL && strcmp(wanted, "0") == 0)) return false;
    if (wanted != NULL && strcmp(wanted, "1") == 0) return true;
    /* arch_prctl, ARCH_GET_XCOMP_PERM. */
    return syscall(158, 0x1022, &permitted) == 0 && (permitted >> 18 & 1) != 0;
#else
    return false;
#endif
}
#endif

/* Whether this machine has an instruction set, asked from the compiler's library or the machine and
 * not from ours. */
static inline bool machine_has(int rank) {
    if (rank == 0) return true;
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return false;
    if (rank == 1) return true;
    if (rank == 2) {
        /* Not all compilers know its name. */
        unsigned a = 0, b = 0, c = 0, d = 0;
        return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1) != 0;
    }
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return false;
    if (rank == 6) return process_has_amx();
    return rank == 3 || (rank == 4 ? __builtin_cpu_supports("avx512vnni") : __builtin_cpu_supports("avx512bf16")) != 0;
#elif defined(__aarch64__) && defined(__linux__)
    /* HWCAP_ASIMDDP, HWCAP2_I8MM and HWCAP2_BF16. */
    if (rank == 1) return true;
    if (rank == 2) return (getauxval(AT_HWCAP) >> 20 & 1) != 0;
    return (getauxval(AT_HWCAP2) >> (rank == 3 ? 13 : 14) & 1) != 0;
#else
    return false;
#endif
}

/* The best that this machine has, up to a rank. */
static inline int best_up_to(int rank) {
    while (!machine_has(rank)) rank--;
    return rank;
}

/* The best that this machine has. */
static inline int machine_rank(void) { return best_up_to(ISAS - 1); }

/* What an instruction set multiplies but float: pairs of bfloat16, of binary16, bytes, 8-bit
 * integers as those of 16 bits, and those in blocks. */
#ifdef __aarch64__
static inline bool has_dots_of_bf16(int rank, bool few) { return (void)few, rank == 4; }
static inline bool has_dots_of_f16(int rank, bool few) { return (void)few, (void)rank, false; }
static inline bool has_dots_of_bytes(int rank) { return rank >= 2; }
static inline bool has_integers(int rank, bool few) { return rank >= 2 && few; }
static inline bool has_integers_in_blocks(int rank) {
    (void)rank;
    return false;
}
#else
static inline bool has_dots_of_bf16(int rank, bool few) { return rank == 5 || (rank == 6 && !few); }
static inline bool has_dots_of_f16(int rank, bool few) {
#if defined(__x86_64__) && defined(__GNUC__)
    /* AMX-FP16. */
    unsigned a = 0, b = 0, c = 0, d = 0;
    return rank == 6 && !few && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 21 & 1) != 0;
#else
    return (void)few, (void)rank, false;
#endif
}
static inline bool has_dots_of_bytes(int rank) { return rank == 2 || rank >= 4; }
static inline bool has_integers(int rank, bool few) {
    (void)few;
    return rank >= 1;
}
static inline bool has_integers_in_blocks(int rank) { return rank == 1 || rank == 2 || rank >= 4; }
#endif

/* Relative error of 8-bit attention with normal data: probabilities have 8 bits, 14, or those of
 * float. */
static inline double i8_bound(const char *isa) {
    int rank = isa_rank(isa);
    return has_dots_of_bytes(rank) ? 2e-2 : has_integers(rank, true) ? 5e-4 : 1e-4;
}

/* Defined where everything is slow, and what is looked for is the same under each instruction
 * set. */
#ifdef BEST_ISA_ONLY
enum { BEST_ONLY = 1 };
#else
enum { BEST_ONLY = 0 };
#endif

/* Calls `run` under each instruction set that this machine has. */
static inline void for_each_isa(void (*run)(void)) {
    for (int i = BEST_ONLY ? machine_rank() : 0; i <= machine_rank(); i++) {
        if (!machine_has(i)) continue;
        CHECK(fa_limit_isa(isa_names[i]) == FA_OK, "%s", isa_names[i]);
        CHECK(strcmp(fa_isa(), isa_names[i]) == 0, "%s is %s", isa_names[i], fa_isa());
        run();
    }
    CHECK(fa_limit_isa(NULL) == FA_OK, "taking the cap back");
}

#endif
