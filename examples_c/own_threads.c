/*
 * The library on threads that a program already has, in two ways:
 *
 *   as a pool    for programs with a "parallel for": the library calls the program's threads
 *                (fa_pool)
 *   in parts     for programs whose threads walk through a model in step: they call the library
 *                (fa_attention_part, a barrier of the program's, fa_attention_finish)
 *
 * Both must give the same bits as the calling thread alone. Exit code 1 if they do not.
 */
#define _POSIX_C_SOURCE 200112L /* pthread_barrier_t */

#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <flash_attention.h>

enum { THREADS = 4, HEADS = 8, SEQ = 200, DIM = 64, SIZE = HEADS * SEQ * DIM };

static float q[SIZE], k[SIZE], v[SIZE], o[SIZE], alone[SIZE];

static void need(bool condition, const char *what)
{
    if (!condition) {
        fprintf(stderr, "own_threads: %s\n", what);
        exit(2);
    }
}

static void must(fa_status status)
{
    need(status == FA_OK, fa_status_string(status));
}

/* ---- A pool: THREADS - 1 threads that sleep until there is a loop to run. ---- */

static pthread_mutex_t one_loop = PTHREAD_MUTEX_INITIALIZER; /* several threads may use the pool at once */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;     /* of all that follows */
static pthread_cond_t work = PTHREAD_COND_INITIALIZER, done = PTHREAD_COND_INITIALIZER;
static fa_task loop_task;
static void *loop_arg;
static size_t loop_next, loop_n, unfinished;
static bool quit;

/* Makes calls as long as there are some to make. The lock is held before and after, not during a
 * call. */
static void take_part(void)
{
    while (loop_next < loop_n) {
        size_t i = loop_next++;
        pthread_mutex_unlock(&lock);
        loop_task(loop_arg, i);
        pthread_mutex_lock(&lock);
        if (--unfinished == 0)
            pthread_cond_signal(&done);
    }
}

static void *member(void *unused)
{
    pthread_mutex_lock(&lock);
    while (!quit) {
        take_part();
        if (!quit) /* it may have come during the calls */
            pthread_cond_wait(&work, &lock);
    }
    pthread_mutex_unlock(&lock);
    return unused;
}

/* The two functions that the library wants; a program with several pools would find its own by
 * ctx. */
static int32_t width(void *ctx)
{
    (void)ctx;
    return THREADS; /* the thread that calls the library takes part, too */
}

static void parallel_for(void *ctx, size_t n, fa_task task, void *arg)
{
    (void)ctx;
    pthread_mutex_lock(&one_loop);
    pthread_mutex_lock(&lock);
    loop_task = task, loop_arg = arg, loop_next = 0, loop_n = unfinished = n;
    pthread_cond_broadcast(&work); /* a thread that is late is not waited for: the others make the calls */
    take_part();
    while (unfinished > 0) /* what arg leads to lives only until we return */
        pthread_cond_wait(&done, &lock);
    pthread_mutex_unlock(&lock);
    pthread_mutex_unlock(&one_loop);
}

/* ---- In parts: what each thread of an engine does for a layer. ---- */

static fa_attention a;
static void *workspace;
static size_t bytes;
static pthread_barrier_t barrier;

static void *walk(void *number)
{
    int32_t part = *(int32_t *)number;
    must(fa_attention_part(&a, workspace, bytes, part, THREADS));
    pthread_barrier_wait(&barrier);
    must(fa_attention_finish(&a, workspace, bytes, part, THREADS));
    return NULL; /* an engine would wait at the barrier once more before it uses o or the workspace */
}

int main(void)
{
    uint32_t state = 1;
    for (int i = 0; i < 3 * SIZE; i++) {
        state = state * 1664525u + 1013904223u;
        (i < SIZE ? q : i < 2 * SIZE ? k : v)[i % SIZE] = (float)(state >> 8) * 0x1p-22f - 2;
    }
    must(fa_attention_init(&a, sizeof a));
    a.batch = 1, a.heads_q = a.heads_kv = HEADS, a.len_q = a.len_kv = SEQ, a.dim_qk = a.dim_v = DIM;
    a.q = (fa_tensor){.data = q, .stride = {0, SEQ * DIM * sizeof *q, DIM * sizeof *q}};
    a.k = a.v = a.o = a.q; /* the same layout, [head][token][dim] */
    a.k.data = k, a.v.data = v, a.o.data = alone;
    a.window_right = 0;

    /* Both ways need the scratch memory of as many threads; one thread alone needs no more. */
    must(fa_attention_workspace(&a, THREADS, &bytes));
    need((workspace = malloc(bytes > 0 ? bytes : 1)) != NULL, "out of memory");
    must(fa_attention_run(&a, workspace, bytes, NULL));

    pthread_t threads[THREADS];
    for (int i = 1; i < THREADS; i++)
        need(pthread_create(&threads[i], NULL, member, NULL) == 0, "no threads");
    fa_pool pool = {.struct_size = sizeof pool, .width = width, .parallel_for = parallel_for};
    a.o.data = memset(o, 0xff, sizeof o); /* NaN, so that nothing is right by chance */
    must(fa_attention_run(&a, workspace, bytes, &pool));
    bool pool_right = memcmp(o, alone, sizeof o) == 0;
    printf("as a pool of %d, last asked for %zu calls: %s\n", THREADS, loop_n, pool_right ? "same bits" : "WRONG");
    pthread_mutex_lock(&lock);
    quit = true;
    pthread_cond_broadcast(&work);
    pthread_mutex_unlock(&lock);
    for (int i = 1; i < THREADS; i++)
        pthread_join(threads[i], NULL);

    int32_t numbers[THREADS];
    memset(o, 0xff, sizeof o);
    need(pthread_barrier_init(&barrier, NULL, THREADS) == 0, "no barrier");
    for (int32_t i = 0; i < THREADS; i++) {
        numbers[i] = i;
        need(pthread_create(&threads[i], NULL, walk, &numbers[i]) == 0, "no threads");
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&barrier);
    free(workspace);
    bool parts_right = memcmp(o, alone, sizeof o) == 0;
    printf("in %d parts: %s\n", THREADS, parts_right ? "same bits" : "WRONG");

    /* All could be the same nonsense; but query 0 of a head sees key 0 only, so its row is value
     * 0. */
    bool first_right = true;
    for (int i = 0; i < SIZE; i++)
        first_right &= i % (SEQ * DIM) >= DIM || fabsf(alone[i] - v[i]) <= 1e-6f;
    return pool_right && parts_right && first_right ? 0 : 1;
}
