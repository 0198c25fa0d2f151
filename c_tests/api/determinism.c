/* The same bits, always: over the library's threads, the caller's pools, parts, other sequences of
 * the batch, and again and again on a machine that is busy; for each storage type, many query rows
 * and few, under each instruction set. What instruction sets differ by is bounded, and printed with
 * the argument `table`: docs/numerics.md has it.
 *
 *   determinism [REPETITIONS of each instruction set | table] */

#define _POSIX_C_SOURCE 200809L

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "problem.h"

/* Enough work for 8 threads and more on either path. Keys of few rows are divided among threads,
 * too. */
enum { ENTRIES = 2, HQ = 4, HKV = 2, DIM = 64, MANY = 64, FEW = 2, KEYS_OF_MANY = 330, KEYS_OF_FEW = 3800 };
enum { MOST_THREADS = 8, O_SIZE = ENTRIES * HQ * MANY * DIM, LSE_SIZE = ENTRIES * HQ * MANY, PATHS = 2 };

struct output {
    float o[O_SIZE], lse[LSE_SIZE];
};

static const char *const type_names[TYPES] = {"f32",  "f16",  "bf16", "i8",   "Q8_0",  NULL,
                                               "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "E4M3", "E5M2", "U8", "Q15"};
static const char *const path_names[PATHS] = {"many rows", "few rows"};
static fa_quant scales_of_keys, scales_of_values;

/* Queries are f32 at seed-dependent places of the bank; integers have one scale a token for keys
 * and one a head for values, which is what the integer families compute. */
static fa_attention problem(int32_t dtype, bool few, uint64_t seed, struct output *out) {
    struct random r = {seed};
    fa_attention a;
    CHECK(fa_attention_init(&a, sizeof a) == FA_OK, "init");
    a.batch = ENTRIES, a.heads_q = HQ, a.heads_kv = HKV, a.dim_qk = a.dim_v = DIM, a.window_right = 0;
    a.len_q = few ? FEW : MANY, a.len_kv = few ? KEYS_OF_FEW : KEYS_OF_MANY;
    a.q = placed(&r, FA_DTYPE_F32, a.batch, HQ, a.len_q, DIM);
    a.k = placed(&r, dtype, a.batch, HKV, a.len_kv, DIM), a.v = placed(&r, dtype, a.batch, HKV, a.len_kv, DIM);
    scales_of_keys = (fa_quant){.scale = bank.scales, .stride = {KEYS_OF_FEW, 0, 1, 0}, .group_tokens = 1};
    scales_of_values = (fa_quant){.scale = bank.scales, .stride = {0, 1, 0, 0}};
    if (may_have_scales(dtype)) a.k.quant = &scales_of_keys, a.v.quant = &scales_of_values;
    a.o = (fa_tensor){.data = out->o, .stride = {HQ * a.len_q * DIM * 4, DIM * 4, HQ * DIM * 4}};
    a.lse = out->lse, a.lse_stride[0] = HQ * a.len_q, a.lse_stride[1] = a.len_q, a.lse_stride[2] = 1;
    return a;
}

/* What was in the workspace must not matter: each call finds something else there. Zeros, quiet
 * NaN, signalling NaN of f32, bf16 and f16, -inf, FLT_MAX, subnormal numbers, -128. */
static const uint32_t garbage[] = {0,          0xffffffff, 0x7f800001, 0x7f817f81, 0x7c017c01,
                                   0xff800000, 0x7f7fffff, 0x00010001, 0x80808080};

static void *workspace(const fa_attention *a, int32_t n, size_t *bytes) {
    static atomic_uint calls;
    CHECK(fa_attention_workspace(a, n, bytes) == FA_OK, "workspace");
    unsigned char *ws = need(*bytes);
    uint32_t word = garbage[atomic_fetch_add(&calls, 1) % (sizeof garbage / sizeof *garbage)];
    for (size_t i = 0; i < *bytes; i++) ws[i] = (unsigned char)(word >> i % 4 * 8);
    return ws;
}

static void run(const fa_attention *a, int32_t n, const fa_pool *pool) {
    size_t bytes = 0;
    void *ws = workspace(a, n, &bytes);
    fa_status status = fa_attention_run(a, ws, bytes, pool);
    CHECK(status == FA_OK, "%d threads: %s", (int)n, fa_status_string(status));
    free(ws);
}

/* ---- Parts, one a thread, with a barrier before they finish. ---- */

struct team {
    const fa_attention *a;
    void *ws;
    size_t bytes;
    int32_t n;
    atomic_int part, bad;
    pthread_barrier_t barrier;
};

static void *member(void *argument) {
    struct team *team = argument;
    int32_t part = atomic_fetch_add(&team->part, 1);
    team->bad += fa_attention_part(team->a, team->ws, team->bytes, part, team->n) != FA_OK;
    pthread_barrier_wait(&team->barrier);
    team->bad += fa_attention_finish(team->a, team->ws, team->bytes, part, team->n) != FA_OK;
    return NULL;
}

static void start(pthread_t *thread, void *(*run)(void *), void *argument) {
    if (pthread_create(thread, NULL, run, argument) == 0) return;
    fputs("cannot create threads\n", stderr);
    exit(2);
}

static void run_in_parts(const fa_attention *a, int32_t n) {
    struct team team = {.a = a, .n = n};
    pthread_t threads[MOST_THREADS];
    team.ws = workspace(a, n, &team.bytes);
    pthread_barrier_init(&team.barrier, NULL, (unsigned)n);
    for (int32_t i = 1; i < n; i++) start(&threads[i], member, &team);
    member(&team);
    for (int32_t i = 1; i < n; i++) pthread_join(threads[i], NULL);
    CHECK(team.bad == 0, "%d parts", (int)n);
    pthread_barrier_destroy(&team.barrier);
    free(team.ws);
}

/* ---- A pool of this program's: threads of its own for each call, which begin with the last task. ---- */

struct crew {
    fa_task task;
    void *arg;
    atomic_long left;
};

static void *worker(void *argument) {
    struct crew *crew = argument;
    for (long i; (i = atomic_fetch_sub(&crew->left, 1)) > 0;) crew->task(crew->arg, (size_t)i - 1);
    return NULL;
}

static int32_t width(void *ctx) {
    return *(int32_t *)ctx;
}

static void parallel_for(void *ctx, size_t n, fa_task task, void *arg) {
    struct crew crew = {.task = task, .arg = arg, .left = (long)n};
    pthread_t threads[MOST_THREADS];
    for (int32_t i = 1; i < width(ctx); i++) start(&threads[i], worker, &crew);
    worker(&crew);
    for (int32_t i = 1; i < width(ctx); i++) pthread_join(threads[i], NULL);
}

static void run_on_crew(const fa_attention *a, int32_t n) {
    fa_pool pool = {.struct_size = sizeof pool, .ctx = &n, .width = width, .parallel_for = parallel_for};
    run(a, n, &pool);
}

/* ---- One sequence without the other, and next to one of NaN. ---- */

static void run_alone(const fa_attention *both, int32_t n) {
    for (int64_t b = 0; b < ENTRIES; b++) {
        fa_attention a = *both;
        fa_quant quant;
        fa_tensor *tensors[] = {&a.q, &a.k, &a.v, &a.o};
        a.batch = 1;
        for (int i = 0; i < 4; i++) tensors[i]->data = (char *)tensors[i]->data + b * tensors[i]->stride[0];
        a.lse += b * a.lse_stride[0];
        if (a.k.quant != NULL) quant = *a.k.quant, quant.scale += b * quant.stride[0], a.k.quant = &quant;
        run_in_parts(&a, n);
    }
}

/* ---- All of that. ---- */

enum way { LIBRARY, CREW, PARTS, ALONE, WAYS };
static const char *const way_names[] = {"the library's pool", "a pool of the program's", "parts",
                                        "each sequence alone, in parts"};
static fa_pool *pools[MOST_THREADS + 1];
static struct output want, got;

static void again(int32_t dtype, bool few, enum way way, int32_t n) {
    fa_attention a = problem(dtype, few, 1, &got);
    size_t rows = (size_t)(ENTRIES * HQ * a.len_q);
    memset(&got, 0xff, sizeof got);
    switch (way) {
        case LIBRARY: run(&a, n, pools[n]); break;
        case CREW: run_on_crew(&a, n); break;
        case PARTS: run_in_parts(&a, n); break;
        default: run_alone(&a, n); break;
    }
    CHECK(same_bits(got.o, want.o, rows * DIM) && same_bits(got.lse, want.lse, rows), "%s, %s, %s: other bits with %s, %d",
          fa_isa(), type_names[dtype], path_names[few], way_names[way], (int)n);
}

static atomic_bool is_over;

/* Takes a core away, and gives it back, all the time. */
static void *burn(void *argument) {
    (void)argument;
    for (volatile unsigned x = 0; !atomic_load(&is_over);) {
        for (unsigned i = 0; i < 200000; i++) x += i;
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    }
    return NULL;
}

/* Uses the threads that the others use. */
static void *call(void *argument) {
    (void)argument;
    enum { LEN = 96 };
    float *x = need(HQ * LEN * DIM * 4), *out = need(HQ * LEN * DIM * 4);
    for (int i = 0; i < HQ * LEN * DIM; i++) x[i] = (float)(i % 17) / 16;
    fa_config cfg;
    (void)fa_config_auto(&cfg, DIM);
    cfg.num_threads = 3;
    while (!atomic_load(&is_over)) (void)fa_mha(&cfg, x, x, x, HQ, LEN, LEN, out);
    free(x), free(out);
    return NULL;
}

static int repetitions = 1000;

static void under_one_isa(void) {
    pthread_t load[3];
    struct random r = {1};
    atomic_store(&is_over, false);
    for (int i = 0; i < 3; i++) start(&load[i], i == 0 ? call : burn, NULL);
    for (int32_t dtype = 0; dtype < TYPES; dtype++) {
        if (dtype == FA_DTYPE_BOOL8) continue;
        for (int few = 0; few < PATHS; few++) {
            fa_attention a = problem(dtype, few, 1, &want);
            size_t shared = 0, one = 0;
            run(&a, 1, NULL);
            CHECK(fa_attention_workspace(&a, 1, &one) == FA_OK && fa_attention_workspace(&a, 2, &shared) == FA_OK &&
                      shared > one, "%s, %s: too little work to be shared", type_names[dtype], path_names[few]);
            for (int32_t n = 1; n <= MOST_THREADS; n++)
                for (enum way way = 0; way < WAYS; way++) again(dtype, few, way, n);
            for (int i = 0; i < repetitions / (TYPES * PATHS); i++)
                again(dtype, few, (enum way)below(&r, WAYS), 1 + (int32_t)below(&r, MOST_THREADS));
        }
    }
    atomic_store(&is_over, true);
    for (int i = 0; i < 3; i++) pthread_join(load[i], NULL);
}

/* The calls for dense arrays take a number of threads: many heads, and one of many rows. */
static void dense_calls(void) {
    enum { LEN = 150, SIZE = HQ * LEN * DIM };
    const float *q = (float *)(void *)bank.of_type[FA_DTYPE_F32], *k = q + 100000, *v = q + 200000;
    float *first = need(SIZE * sizeof *first), *out = need(SIZE * sizeof *out);
    fa_config cfg;
    CHECK(fa_config_auto(&cfg, DIM) == FA_OK, "constructor");
    for (size_t heads = 1; heads <= HQ; heads += HQ - 1) {
        size_t len = HQ / heads * LEN;
        for (uint32_t n = 1; n <= MOST_THREADS; n++) {
            cfg.num_threads = n;
            CHECK(fa_mha(&cfg, q, k, v, heads, len, len, n == 1 ? first : out) == FA_OK, "fa_mha");
            CHECK(n == 1 || same_bits(first, out, SIZE), "%s: %u threads, %zu heads: other bits", fa_isa(), (unsigned)n,
                  heads);
        }
    }
    free(first), free(out);
}

/* ---- How far instruction sets are from each other. ---- */

/* Relative RMS difference from plain code, by storage type, of outputs; what docs/numerics.md
 * promises. Of 16 bits and of integers it is the rounding of probabilities and queries, which plain
 * code does not do. */
static double promised(int32_t dtype, int isa, bool few) {
    if (dtype == FA_DTYPE_BF16) return has_dots_of_bf16(isa, few) ? 4e-3 : 2e-6;
    if (dtype == FA_DTYPE_F16) return has_dots_of_f16(isa, few) ? 5e-4 : 2e-6;
    if (dtype == FA_DTYPE_I8 || dtype == FA_DTYPE_U8) return has_dots_of_bytes(isa) && !few ? 3e-2 : 3e-4;
    if (is_in_blocks(dtype) && few && has_integers_in_blocks(isa)) return 3e-4;
    return 2e-6;
}

static void differences(bool print) {
    static struct output plain, other;
    enum { SEEDS = 10 };
    for (int32_t dtype = 0; dtype < TYPES; dtype++) {
        if (dtype == FA_DTYPE_BOOL8) continue;
        for (int few = 0; few < PATHS; few++) {
            if (print) printf("%-4s %-9s", type_names[dtype], path_names[few]);
            for (int isa = 1; isa <= machine_rank(); isa++) {
                if (!machine_has(isa)) continue;
                double worst = 0, worst_lse = 0;
                bool same = true;
                for (uint64_t seed = 1; seed <= SEEDS; seed++) {
                    double difference = 0, square = 0;
                    CHECK(fa_limit_isa("scalar") == FA_OK, "scalar");
                    fa_attention a = problem(dtype, few, seed, &plain);
                    run(&a, 1, NULL);
                    CHECK(fa_limit_isa(isa_names[isa]) == FA_OK, "%s", isa_names[isa]);
                    a = problem(dtype, few, seed, &other);
                    run(&a, 1, NULL);
                    int64_t rows = ENTRIES * HQ * a.len_q;
                    for (int64_t i = 0; i < rows * DIM; i++) {
                        double x = (double)plain.o[i], y = (double)other.o[i];
                        difference += (x - y) * (x - y), square += x * x;
                    }
                    for (int64_t i = 0; i < rows; i++)
                        worst_lse = fmax(worst_lse, fabs((double)plain.lse[i] - (double)other.lse[i]));
                    worst = fmax(worst, sqrt(difference / square));
                    same = same && same_bits(plain.o, other.o, (size_t)(rows * DIM));
                }
                CHECK(worst <= promised(dtype, isa, few), "%s, %s: %s is %.2g from scalar", type_names[dtype],
                      path_names[few], isa_names[isa], worst);
                /* What is compared is not the same code twice. */
                CHECK(!same, "%s, %s: %s has the bits of scalar", type_names[dtype], path_names[few], isa_names[isa]);
                if (print) printf("  %s %.1e (lse %.1e)", isa_names[isa], worst, worst_lse);
            }
            if (print) putchar('\n');
        }
    }
    CHECK(fa_limit_isa(NULL) == FA_OK, "taking the cap back");
}

int main(int argc, char **argv) {
    bool table = argc > 1 && strcmp(argv[1], "table") == 0;
    if (argc > 1 && !table) repetitions = atoi(argv[1]);
    fill_bank(1, 0);
    for (int32_t n = 1; n <= MOST_THREADS; n++) CHECK(fa_pool_create(n, &pools[n]) == FA_OK, "%d threads", (int)n);
    if (!BEST_ONLY) differences(table);
    if (!table) {
        for_each_isa(under_one_isa);
        for_each_isa(dense_calls);
    }
    for (int32_t n = 1; n <= MOST_THREADS; n++) fa_pool_destroy(pools[n]);
    return check_result();
}
