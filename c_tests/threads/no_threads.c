/* Threads that the system refuses to create: calls compute with fewer, down to the calling one, and
 * pools are narrower; later ones get more when there are. */

#define _GNU_SOURCE

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

/* ---- This program's pthread_create, which the library in it calls, too. ---- */

/* Threads that may live at the same time, and that do; how often one was refused. */
static atomic_int most = 1 << 20, alive, refused;

struct start {
    void *(*run)(void *);
    void *argument;
};

static void *counted(void *argument) {
    struct start start = *(struct start *)argument;
    free(argument);
    void *result = start.run(start.argument);
    atomic_fetch_sub(&alive, 1);
    return result;
}

int pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*run)(void *), void *argument) {
    static int (*create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    void *symbol = dlsym(RTLD_NEXT, "pthread_create");
    memcpy(&create, &symbol, sizeof create);
    struct start *start = need(sizeof *start);
    *start = (struct start){run, argument};
    if (atomic_fetch_add(&alive, 1) >= most) {
        atomic_fetch_sub(&alive, 1);
        atomic_fetch_add(&refused, 1);
        free(start);
        return EAGAIN;
    }
    int error = create(thread, how, counted, start);
    if (error != 0) atomic_fetch_sub(&alive, 1), free(start);
    return error;
}

/* ---- Calls. ---- */

enum { HEADS = 6, LEN = 120, D = 64, ELEMENTS = HEADS * LEN * D };
static float *q, *k, *v, *want, *out;

static bool computes(uint32_t num_threads) {
    fa_config cfg = {.head_dim = D, .softmax_scale = 0.125f, .num_threads = num_threads};
    memset(out, 0xff, ELEMENTS * sizeof *out);
    return fa_mha(&cfg, q, k, v, HEADS, LEN, LEN, out) == FA_OK && same_bits(out, want, ELEMENTS);
}

static bool computes_on(const fa_pool *pool) {
    fa_attention a;
    size_t bytes = 0;
    bool good = fa_attention_init(&a, sizeof a) == FA_OK;
    a.batch = 1, a.heads_q = a.heads_kv = HEADS, a.len_q = a.len_kv = LEN, a.dim_qk = a.dim_v = D, a.scale = 0.125f;
    a.q = (fa_tensor){.data = q, .stride = {0, LEN * D * 4, D * 4}};
    a.k = a.q, a.k.data = k, a.v = a.q, a.v.data = v, a.o = a.q, a.o.data = out;
    good &= fa_attention_workspace(&a, pool->width(pool->ctx), &bytes) == FA_OK;
    void *ws = need(bytes);
    memset(out, 0xff, ELEMENTS * sizeof *out);
    good &= fa_attention_run(&a, ws, bytes, pool) == FA_OK && same_bits(out, want, ELEMENTS);
    free(ws);
    return good;
}

/* What the system grants to a process that has never had threads. 0 = all is well, else a line. */
static int with(int granted) {
    most = granted;
    if (!computes(8)) return __LINE__;
    /* How many it wants depends on the problem; it wants some. */
    if (granted == 0 && refused == 0) return __LINE__;
    if (alive > granted) return __LINE__;
    /* Again, and with other numbers of threads: what was refused is not asked for at every call. */
    for (uint32_t n = 1; n <= 8; n++) {
        if (!computes(n)) return __LINE__;
    }
    if (!computes(0) || alive > granted) return __LINE__;
    return 0;
}

/* The same for a pool. */
static int with_pool(int granted) {
    fa_pool *pool = NULL;
    most = granted;
    fa_status status = fa_pool_create(8, &pool);
    if (granted == 0) return status == FA_ERR_MEMORY && pool == NULL ? 0 : __LINE__;
    /* Threads of an attempt that failed may still be ending when the next one is made. */
    if (status == FA_ERR_MEMORY) return granted < 7 && pool == NULL ? 0 : __LINE__;
    if (status != FA_OK) return __LINE__;
    int32_t width = pool->width(pool->ctx);
    if (width < 2 || width > granted + 1 || (granted >= 7 && width != 8)) return __LINE__;
    if (!computes_on(pool) || !computes_on(pool)) return __LINE__;
    fa_pool_destroy(pool);
    /* When the system has threads again, so have pools. */
    most = 1 << 20;
    if (fa_pool_create(8, &pool) != FA_OK || pool->width(pool->ctx) != 8 || !computes_on(pool)) return __LINE__;
    fa_pool_destroy(pool);
    return 0;
}

static void in_child(int (*run)(int), int granted, const char *what) {
    fflush(NULL);
    pid_t child = fork();
    if (child < 0) exit(2);
    if (child == 0) {
        alarm(60);
        int line = run(granted);
        if (line != 0) fprintf(stderr, "%s:%d\n", __FILE__, line);
        _exit(line != 0);
    }
    int status = 0;
    if (waitpid(child, &status, 0) != child) exit(2);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s, %d threads granted", what, granted);
}

int main(void) {
    q = random_normal(ELEMENTS), k = random_normal(ELEMENTS), v = random_normal(ELEMENTS);
    want = need(ELEMENTS * sizeof *want), out = need(ELEMENTS * sizeof *out);
    fa_config cfg = {.head_dim = D, .softmax_scale = 0.125f, .num_threads = 1};
    CHECK(fa_mha(&cfg, q, k, v, HEADS, LEN, LEN, want) == FA_OK, "one thread");
    for (int granted = 0; granted <= 8; granted++) {
        in_child(with, granted, "fa_mha");
        in_child(with_pool, granted, "fa_pool_create");
    }
    free(q), free(k), free(v), free(want), free(out);
    return check_result();
}
