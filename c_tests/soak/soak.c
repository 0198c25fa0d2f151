/* Random problems, from 8 threads in each of two processes, until the time is over: every result is
 * compared with the definition in double, many are computed in two ways that must give the same
 * bits, and memory must stay as it is. One process uses the best instruction set, the other one
 * after the other.
 *
 *   soak SECONDS [SEED]                  (60 and 1)
 *   soak problem NUMBER ISA BANK SHIFT   computes one problem that was reported to be wrong */

#define _GNU_SOURCE

#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "problem.h"

enum { PROCESSES = 2, THREADS = 8, ROWS_CHECKED = 6, WORKSPACE = 32 << 20, CANARY = 0xa5 };

/* What a process says of itself, in memory that the processes share. */
struct result {
    atomic_long problems, twice, rows, wrong;
    /* Of a row, in millionths of what it may be. */
    atomic_long worst;
    /* Resident memory, and what the heap has given out, in bytes: when all was used once, at the
     * end, at most. */
    long resident[3], heap[3], rounds;
};

static struct result *result;
static fa_pool *pool;
static pthread_barrier_t gate;
static uint64_t bank_seed;
static size_t bank_shift;
static atomic_bool is_over, is_round_over;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void report(uint64_t number, const char *what, double error) {
    if (atomic_fetch_add(&result->wrong, 1) < 10)
        fprintf(stderr, "soak problem %llu %s %llu %zu: %s (%g)\n", (unsigned long long)number, fa_isa(),
                (unsigned long long)bank_seed, bank_shift, what, error);
}

/* ---- The entry points. ---- */

enum entry { ALONE, POOL, PARTS, ENTRIES };

static void *workspace(struct room *room, size_t bytes) {
    if (bytes > room->ws_size) {
        free(room->ws);
        room->ws = need(bytes), room->ws_size = bytes;
    }
    /* NaN of every type. */
    memset(room->ws, 0xff, bytes);
    return room->ws;
}

/* What is not written shows. */
static void blank(const fa_attention *a, struct room *room) {
    memset(room->o, CANARY, bytes_of_o(a) + BEHIND);
    if (a->weights.data != NULL) memset(room->weights, CANARY, sizeof room->weights);
}

static fa_status run(struct random *r, const fa_attention *a, struct room *room, enum entry entry) {
    size_t bytes = 0;
    blank(a, room);
    int32_t n = entry == ALONE ? 1 : entry == POOL ? pool->width(pool->ctx) : 1 + (int32_t)below(r, 5);
    fa_status status = fa_attention_workspace(a, n, &bytes);
    if (status != FA_OK) return status;
    void *ws = workspace(room, bytes);
    if (entry != PARTS) return fa_attention_run(a, ws, bytes, entry == POOL ? pool : NULL);
    int32_t first = (int32_t)below(r, n);
    for (int32_t i = 0; i < n && status == FA_OK; i++) status = fa_attention_part(a, ws, bytes, (first + i) % n, n);
    for (int32_t i = n; i-- > 0 && status == FA_OK;) status = fa_attention_finish(a, ws, bytes, i, n);
    return status;
}

/* The three calls for dense arrays; the description is for the comparison. */
static fa_status run_easy(struct random *r, fa_attention *a, struct room *room, float scales[3]) {
    static const int64_t rows[] = {1, 2, 30, ROWS}, dims[] = {7, 32, 64, WIDEST};
    bool is_i8 = chance(r, 50), causal = chance(r, 50);
    (void)fa_attention_init(a, sizeof *a);
    a->batch = 1, a->heads_q = a->heads_kv = is_i8 ? 1 : 1 + below(r, KV_HEADS);
    a->len_q = ONE_OF(r, rows), a->len_kv = 1 + below(r, 700), a->dim_qk = a->dim_v = ONE_OF(r, dims);
    if (causal) a->window_right = 0;
    fa_tensor *tensors[] = {&a->q, &a->k, &a->v, &a->o};
    for (int i = 0; i < 4; i++) {
        int32_t dtype = is_i8 && i < 3 ? FA_DTYPE_I8 : FA_DTYPE_F32;
        int64_t row = a->dim_qk * block_bytes[dtype], tokens = i == 1 || i == 2 ? a->len_kv : a->len_q;
        unsigned char *data = i < 3 ? bank.of_type[dtype] + row * below(r, 1000) : room->o;
        *tensors[i] = (fa_tensor){.data = data, .dtype = dtype, .stride = {0, tokens * row, row}};
        if (!is_i8 || i == 3) continue;
        scales[i] = (float)(5 + below(r, 15)) / 1000;
        room->quant[i] = (fa_quant){.scale = &scales[i], .group_tokens = 1, .group_dims = 1};
        tensors[i]->quant = &room->quant[i];
    }
    a->o.stride[0] = a->heads_q * a->o.stride[1];
    fa_config cfg;
    fa_status status = fa_config_auto(&cfg, (size_t)a->dim_qk);
    cfg.causal = causal, cfg.num_threads = (uint32_t)below(r, 4);
    size_t lq = (size_t)a->len_q, lkv = (size_t)a->len_kv;
    if (status != FA_OK) return status;
    blank(a, room);
    if (is_i8)
        return fa_forward_i8(&cfg, a->q.data, a->k.data, a->v.data, scales[0], scales[1], scales[2], lq, lkv,
                             (float *)(void *)room->o);
    return fa_mha(&cfg, a->q.data, a->k.data, a->v.data, (size_t)a->heads_q, lq, lkv, (float *)(void *)room->o);
}

/* ---- One problem. ---- */

static void check_rows(uint64_t number, struct random *r, const fa_attention *a) {
    char words[400] = "";
    fa_status status = fa_attention_check(a, words, sizeof words);
    if (status != FA_OK) report(number, words, 0);
    struct family family = family_of(a, words, fa_isa());
    for (int n = 0; n < ROWS_CHECKED; n++) {
        int64_t b = below(r, a->batch), h = below(r, a->heads_q), i = below(r, a->len_q);
        double error = row_error(a, family, b, h, i);
        atomic_fetch_add(&result->rows, 1);
        if (!(error <= 1)) {
            report(number, "a row is wrong", error);
            return;
        }
        /* Of 16 bits the rounding, which is always about half a unit, hides the rest. */
        if (a->o.dtype != FA_DTYPE_F32) continue;
        long millionths = (long)(error * 1e6), worst = atomic_load(&result->worst);
        while (millionths > worst && !atomic_compare_exchange_weak(&result->worst, &worst, millionths)) {}
    }
}

static void compute(uint64_t number, struct room *room) {
    struct random r = {number};
    float scales[3];
    fa_attention a;
    bool easy = chance(&r, 20);
    fa_status status;
    if (easy) {
        status = run_easy(&r, &a, room, scales);
    } else {
        a = random_problem(&r, room);
        status = run(&r, &a, room, (enum entry)below(&r, ENTRIES));
    }
    atomic_fetch_add(&result->problems, 1);
    size_t bytes = bytes_of_o(&a), lses = (size_t)(a.batch * a.heads_q * a.len_q), beside = 0;
    for (size_t i = bytes; i < bytes + BEHIND; i++) beside += room->o[i] != CANARY;
    if (status != FA_OK || beside > 0) {
        report(number, status != FA_OK ? fa_status_string(status) : "wrote behind the output", (double)beside);
        return;
    }
    check_rows(number, &r, &a);
    if (easy || !chance(&r, 30)) return;
    memcpy(room->once, room->o, bytes), memcpy(room->lse_once, room->lse, lses * 4);
    if (a.weights.data != NULL) memcpy(room->weights_once, room->weights, sizeof room->weights);
    status = run(&r, &a, room, (enum entry)below(&r, ENTRIES));
    atomic_fetch_add(&result->twice, 1);
    if (status != FA_OK) report(number, fa_status_string(status), 0);
    if (memcmp(room->once, room->o, bytes) != 0 || !same_bits(room->lse_once, room->lse, lses) ||
        (a.weights.data != NULL && !same_bits(room->weights_once, room->weights, WEIGHTS)))
        report(number, "other bits the second time", 0);
}

static struct room *new_room(void) {
    struct room *room = need(sizeof *room);
    /* All of it resident from the beginning, so that what grows is the library's. */
    memset(room, CANARY, sizeof *room);
    room->ws = need(WORKSPACE), room->ws_size = WORKSPACE;
    memset(room->ws, CANARY, WORKSPACE);
    return room;
}

static void *work(void *argument) {
    struct random numbers = {*(uint64_t *)argument};
    struct room *room = new_room();
    for (;;) {
        pthread_barrier_wait(&gate);
        if (atomic_load(&is_over)) break;
        while (!atomic_load(&is_round_over)) compute(next(&numbers), room);
        pthread_barrier_wait(&gate);
    }
    free(room->ws), free(room);
    return NULL;
}

/* ---- One process: rounds of a second, between which nothing runs. ---- */

static long resident(void) {
    unsigned long all = 0, pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL || fscanf(file, "%lu %lu", &all, &pages) != 2) exit(2);
    fclose(file);
    return (long)pages * sysconf(_SC_PAGESIZE);
}

static void measure(bool is_warm) {
    /* Pages of freed blocks go back: what stays resident is held by somebody. */
    (void)malloc_trim(0);
    struct mallinfo2 heap = mallinfo2();
    long values[] = {resident(), (long)(heap.uordblks + heap.hblkhd)}, *kept[] = {result->resident, result->heap};
    for (int i = 0; i < 2; i++) {
        if (!is_warm) kept[i][0] = kept[i][2] = values[i];
        kept[i][1] = values[i];
        if (values[i] > kept[i][2]) kept[i][2] = values[i];
    }
}

static void process(int which, double seconds, uint64_t seed) {
    pthread_t threads[THREADS];
    uint64_t seeds[THREADS];
    /* Everything at odd addresses in one of them. */
    bank_seed = seed + (uint64_t)which, bank_shift = (size_t)which;
    fill_bank(bank_seed, bank_shift);
    if (fa_pool_create(3, &pool) != FA_OK || pthread_barrier_init(&gate, NULL, THREADS + 1) != 0) exit(2);
    for (int i = 0; i < THREADS; i++) {
        seeds[i] = (seed * PROCESSES + (uint64_t)which) * THREADS + (uint64_t)i;
        if (pthread_create(&threads[i], NULL, work, &seeds[i]) != 0) exit(2);
    }
    double start = now();
    for (double at = start; at < start + seconds; at = now()) {
        if (which > 0) (void)fa_limit_isa(isa_names[result->rounds % (machine_rank() + 1)]);
        atomic_store(&is_round_over, false);
        pthread_barrier_wait(&gate);
        usleep(1000000);
        atomic_store(&is_round_over, true);
        pthread_barrier_wait(&gate);
        result->rounds++;
        /* By then every instruction set had its turn, even in a short run. */
        measure(result->rounds > ISAS && now() > start + seconds / 10);
    }
    atomic_store(&is_over, true);
    pthread_barrier_wait(&gate);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    fa_pool_destroy(pool);
    exit(0);
}

/* ---- All of them. ---- */

static const double MIB = 1 << 20;

/* By how many bytes memory may grow. Resident memory: code and stacks that are used late, some 0.3
 * MiB. The heap: what something rare leaves behind once; as a rule it is +0. A leak of 16 bytes a
 * call is 32 of the heap, with malloc's header. */
static const long MOST_RESIDENT = 4 << 20, MOST_HEAP = 2 << 10;

static long summary(struct result *results, double seconds, uint64_t seed) {
    long problems = 0, wrong = 0;
    for (int i = 0; i < PROCESSES; i++) {
        struct result *r = &results[i];
        printf("process %d: %ld problems, %ld of them in two ways, %ld rows compared, the worst of f32 at %.2f of its bound; "
               "resident memory %.1f MiB after the first tenth, %.1f at the end, %.1f at most; heap %.1f MiB, %+ld bytes "
               "at the end, %+ld at most\n",
               i, r->problems, r->twice, r->rows, (double)r->worst / 1e6, (double)r->resident[0] / MIB,
               (double)r->resident[1] / MIB, (double)r->resident[2] / MIB, (double)r->heap[0] / MIB,
               r->heap[1] - r->heap[0], r->heap[2] - r->heap[0]);
        if (r->rounds <= ISAS) printf("process %d: too short a time to see whether memory grows\n", i);
        if (r->resident[1] - r->resident[0] > MOST_RESIDENT || r->heap[1] - r->heap[0] > MOST_HEAP) {
            printf("process %d: memory grows\n", i);
            wrong++;
        }
        problems += r->problems, wrong += r->wrong;
        if (r->problems == 0 || r->rows == 0) wrong++;
    }
    printf("soak: %d processes of %d threads, %.0f s, seed %llu: %ld problems, %.1f a second, %ld wrong\n", PROCESSES,
           THREADS, seconds, (unsigned long long)seed, problems, (double)problems / seconds, wrong);
    return wrong;
}

/* Sees to it that the allocator keeps nothing that would be taken for a leak, or hide one: no freed
 * blocks in caches of threads, where they count as in use, and one arena, whose end can be given
 * back. malloc reads this when a program starts. What it keeps otherwise: docs/kernel-log.md. */
static void start_plainly(char **argv) {
    static char again[] = "soak with a plain malloc";
    if (strcmp(argv[0], again) == 0) return;
    argv[0] = again;
    if (setenv("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0:glibc.malloc.arena_max=1", 1) == 0)
        execv("/proc/self/exe", argv);
    perror("soak: starting again");
    exit(2);
}

static int one_problem(char **words) {
    static struct result mine;
    result = &mine;
    if (fa_limit_isa(words[1]) != FA_OK || fa_pool_create(3, &pool) != FA_OK) return 2;
    bank_seed = strtoull(words[2], NULL, 10), bank_shift = strtoull(words[3], NULL, 10);
    fill_bank(bank_seed, bank_shift);
    compute(strtoull(words[0], NULL, 10), new_room());
    printf("problem %s: %ld wrong, %.2f of the bound\n", words[0], mine.wrong, (double)mine.worst / 1e6);
    return mine.wrong != 0;
}

int main(int argc, char **argv) {
    if (argc == 6 && strcmp(argv[1], "problem") == 0) return one_problem(argv + 2);
    start_plainly(argv);
    double seconds = argc > 1 ? atof(argv[1]) : 60;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    struct result *results = mmap(NULL, PROCESSES * sizeof *results, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (results == MAP_FAILED) return 2;
    pid_t children[PROCESSES];
    double start = now();
    for (int i = 0; i < PROCESSES; i++) {
        fflush(NULL);
        result = &results[i];
        children[i] = fork();
        if (children[i] < 0) return 2;
        if (children[i] == 0) process(i, seconds, seed);
    }
    int failed = 0;
    for (int i = 0; i < PROCESSES; i++) {
        int status = 0;
        /* A process that hangs is a failure, not a test that never ends. */
        while (waitpid(children[i], &status, WNOHANG) == 0) {
            if (now() > start + 2 * seconds + 120) kill(children[i], SIGKILL);
            usleep(100000);
        }
        if (status != 0) {
            printf("process %d: wait status %#x\n", i, (unsigned)status);
            failed = 1;
        }
    }
    return summary(results, now() - start, seed) != 0 || failed;
}
