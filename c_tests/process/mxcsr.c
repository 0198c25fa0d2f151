/* The caller's floating-point environment: calls neither depend on it nor change it, with any
 * number of threads. */

#define _GNU_SOURCE

#include <pthread.h>

#include "calls.h"

#if defined(__x86_64__) || defined(__aarch64__)

#ifdef __x86_64__

#include <xmmintrin.h>

enum { FLAGS = 0x3f, DAZ = 1 << 6, MASKS = 0x3f << 7, DOWN = 1 << 13, UP = 2 << 13, TO_ZERO = 3 << 13, FTZ = 1 << 15 };
enum { DIVISION_BY_ZERO = 1 << 2, INEXACT = 1 << 5 };

static unsigned control(void) { return _mm_getcsr(); }
static void set_control(unsigned word) { __asm__ volatile("ldmxcsr %0" : : "m"(word)); }

/* The control word of x87, which is replaced. */
static unsigned short set_x87(unsigned short word) {
    unsigned short before;
    __asm__ volatile("fnstcw %0" : "=m"(before));
    __asm__ volatile("fldcw %0" : : "m"(word));
    return before;
}

#else

/* FPCR has no flags. DAZ stands for what makes every NaN the same one. Traps are missing on most
 * machines. */
enum { FLAGS = 0, DAZ = 1 << 25, MASKS = 0, DOWN = 2 << 22, UP = 1 << 22, TO_ZERO = 3 << 22, FTZ = 1 << 24 };
enum { DIVISION_BY_ZERO = 0 };

static unsigned control(void) {
    uint64_t word;
    __asm__ volatile("mrs %0, fpcr" : "=r"(word));
    return (unsigned)word;
}
static void set_control(unsigned word) { __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)word)); }
static unsigned short set_x87(unsigned short word) { return word; }

#endif

/* Where masks are missing, every exception traps. */
static const unsigned environments[] = {
    MASKS | FTZ | DAZ,
    MASKS | UP,
    0,
#ifdef __x86_64__
    /* Without masks and flags these are no others. */
    MASKS,
    INEXACT | DIVISION_BY_ZERO | MASKS,
#endif
    MASKS | DAZ,
    MASKS | DOWN | FTZ,
    MASKS | TO_ZERO | DAZ | DIVISION_BY_ZERO,
    UP | FTZ | DAZ,
};
enum { ENVIRONMENTS = sizeof environments / sizeof *environments };

static struct library lib;
static float *want[CALLS];

/* Afterwards the program's own environment again: CHECK and random numbers compute, too. */
static bool call_in(unsigned word, unsigned short x87, int call, uint32_t threads, const fa_pool *pool) {
    unsigned before = control(), after;
    float *out = need(MOST * sizeof *out);
    unsigned short x87_before = set_x87(x87), x87_after;
    set_control(word);
    fa_status status = make_call(&lib, call, threads, pool, out);
    after = control();
    set_control(before);
    x87_after = set_x87(x87_before);
    bool good = status == FA_OK && same_bits(out, want[call], call_elements(call));
    CHECK(good, "%s, %s, %zu rows, %u threads, control word %#x: %s", lib.isa(), call_name(call), call_rows(call),
          (unsigned)threads, word, status == FA_OK ? "other bits" : lib.status_string(status));
    CHECK(after == word, "%s: control word %#x has become %#x", call_name(call), word, after);
    CHECK(x87_after == x87, "%s: x87 control word %#x has become %#x", call_name(call), x87, x87_after);
    free(out);
    return good && after == word;
}

/* Numbers so small that they and their products are subnormal: what FTZ and DAZ would make 0. */
static void shrink(void) {
    for (size_t i = 0; i < KV; i++) data.v[i] *= 0x1p-128f;
    for (int few = 0; few < 2; few++)
        for (size_t i = 0; i < MOST; i++) data.want[few][i] *= 0x1p-128;
}

static void in_first(int n, const fa_pool *pool, uint32_t threads) {
    for (int call = 0; call < CALLS; call++)
        for (int i = 0; i < n; i++) call_in(environments[i], 0x37f, call, threads, pool);
}

static void under_one_isa(void) {
    all_calls(&lib, want);
    in_first(3, NULL, 1);
}

/* The library's threads begin in the environment of whoever creates them, which is not the default
 * one here, and a pool is used by callers in others. */
static void pools(void) {
    unsigned strange = MASKS | FTZ | DAZ | UP, before = control();
    fa_pool *pool = NULL;
    set_control(strange);
    fa_status status = fa_pool_create(3, &pool);
    unsigned after = control();
    set_control(before);
    CHECK(status == FA_OK && after == strange, "fa_pool_create: %s, control word %#x", fa_status_string(status), after);
    if (pool == NULL) return;
    in_first(ENVIRONMENTS, pool, 3);
    fa_pool_destroy(pool);
}

/* A pool of the program's sees the program's environment, and may change it between tasks. */
static unsigned seen[2];

static int32_t width(void *ctx) {
    (void)ctx;
    seen[0] = control() & ~(unsigned)FLAGS;
    return 3;
}

static void parallel_for(void *ctx, size_t n, fa_task task, void *arg) {
    (void)ctx;
    unsigned before = control();
    seen[1] = before & ~(unsigned)FLAGS;
    for (size_t i = 0; i < n; i++) {
        set_control(MASKS | FTZ | (i % 2 ? UP : DOWN));
        task(arg, i);
    }
    set_control(before);
}

static void pool_of_the_programs(void) {
    fa_pool pool = {.struct_size = sizeof pool, .width = width, .parallel_for = parallel_for};
    unsigned strange = MASKS | FTZ | DAZ | UP;
    call_in(strange, 0x37f, 2 * RUN_F32, 3, &pool);
    CHECK(seen[0] == strange && seen[1] == strange, "pool functions see %#x and %#x", seen[0], seen[1]);
}

/* A thread of the program's with its own environment, at the same time as others. */
static void *often(void *argument) {
    unsigned *word = argument, bad = 0;
    for (int i = 0; i < 20; i++) {
        unsigned after;
        float *out = need(MOST * sizeof *out);
        set_control(*word);
        fa_status status = make_call(&lib, 2 * MHA, 1 + (uint32_t)i % 3, NULL, out);
        after = control();
        bad += status != FA_OK || after != *word || !same_bits(out, want[2 * MHA], MOST);
        free(out);
    }
    *word = bad;
    return NULL;
}

static void at_once(void) {
    pthread_t threads[ENVIRONMENTS];
    unsigned arguments[ENVIRONMENTS];
    for (int i = 0; i < ENVIRONMENTS; i++) {
        arguments[i] = environments[i] | MASKS;
        if (pthread_create(&threads[i], NULL, often, &arguments[i]) != 0) exit(2);
    }
    for (int i = 0; i < ENVIRONMENTS; i++) {
        pthread_join(threads[i], NULL);
        CHECK(arguments[i] == 0, "environment %d: %u of 20", i, arguments[i]);
    }
}

/* What a configuration says is rounded, too. */
static void constructors(void) {
    for (size_t dim = 1; dim < 200; dim++) {
        fa_config normal, strange;
        CHECK(fa_config_auto(&normal, dim) == FA_OK, "dim %zu", dim);
        unsigned before = control();
        set_control(MASKS | UP);
        (void)fa_config_auto(&strange, dim);
        set_control(before);
        CHECK(same_bits(&normal.softmax_scale, &strange.softmax_scale, 1), "dim %zu", dim);
    }
}

int main(void) {
    make_data();
    lib = LINKED_LIBRARY;
    for_each_isa(under_one_isa);
    all_calls(&lib, want);
    in_first(ENVIRONMENTS, NULL, 1);
    in_first(ENVIRONMENTS, NULL, 3);
    pools();
    pool_of_the_programs();
    at_once();
    constructors();

#ifdef __x86_64__
    /* Other x87 control words: single precision, rounded up; everything traps. */
    for (int call = 0; call < CALLS; call++) call_in(MASKS, 0x87f, call, 2, NULL), call_in(MASKS, 0x340, call, 2, NULL);
#endif

    /* Where flushing would show most. */
    shrink();
    static const int f32_calls[] = {2 * FORWARD, 2 * FORWARD + 1, 2 * MHA, 2 * MHA + 1, 2 * RUN_F32, 2 * MERGED};
    for (size_t i = 0; i < sizeof f32_calls / sizeof *f32_calls; i++) {
        int call = f32_calls[i];
        CHECK(make_call(&lib, call, 1, NULL, want[call]) == FA_OK, "%s", call_name(call));
        size_t subnormal = 0;
        for (size_t n = 0; n < call_elements(call); n++) subnormal += fpclassify(want[call][n]) == FP_SUBNORMAL;
        CHECK(subnormal > call_elements(call) / 2, "%s: %zu are subnormal", call_name(call), subnormal);
        /* Steps of 2^-149 are coarse: so many of them for 2000 products. */
        CHECK(distance(want[call], data.want[call % 2], call_elements(call)) <= 2000 * 0x1p-149, "%s: %g",
              call_name(call), distance(want[call], data.want[call % 2], call_elements(call)));
        for (uint32_t threads = 1; threads < 4; threads++) call_in(MASKS | FTZ | DAZ, 0x37f, call, threads, NULL);
    }
    return check_result();
}

#else

int main(void) {
    puts("skipped: the floating-point environment is the caller's affair on this machine");
    return 0;
}

#endif
