/* fa_attention_run on every kind of pool, good ones and bad ones: always the same bits. */

#define _POSIX_C_SOURCE 200809L

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "check.h"

/* Enough work for several threads, in parts of one row each. */
enum { B = 2, HQ = 4, HKV = 2, S = 64, KEYS = 300, D = 64, O_SIZE = B * HQ * S * D, LSE_SIZE = B * HQ * S };
static float *q, *k, *v, *want, *want_lse;

static fa_attention problem(float *o, float *lse) {
    fa_attention a;
    CHECK(fa_attention_init(&a, sizeof a) == FA_OK, "init");
    a.batch = B, a.heads_q = HQ, a.heads_kv = HKV, a.len_q = S, a.len_kv = KEYS, a.dim_qk = a.dim_v = D;
    a.q = (fa_tensor){.data = q, .stride = {S * HQ * D * 4, D * 4, HQ * D * 4}};
    a.o = a.q, a.o.data = o;
    a.k = (fa_tensor){.data = k, .stride = {KEYS * HKV * D * 4, D * 4, HKV * D * 4}};
    a.v = a.k, a.v.data = v;
    a.window_right = 0;
    a.lse = lse;
    a.lse_stride[0] = HQ * S, a.lse_stride[1] = S, a.lse_stride[2] = 1;
    return a;
}

/* Whether a run with this pool succeeds and gives the right bits; `parts` is how many threads the
 * library must take the pool for. Safe from several threads at once. */
static bool runs(const fa_pool *pool, int32_t parts) {
    float *o = need(O_SIZE * 4), *lse = need(LSE_SIZE * 4);
    memset(o, 0xff, O_SIZE * 4), memset(lse, 0xff, LSE_SIZE * 4);
    fa_attention a = problem(o, lse);
    size_t bytes = 0;
    bool good = fa_attention_workspace(&a, parts, &bytes) == FA_OK;
    void *ws = need(bytes);
    good &= fa_attention_run(&a, ws, bytes, pool) == FA_OK;
    good &= same_bits(o, want, O_SIZE) && same_bits(lse, want_lse, LSE_SIZE);
    free(o), free(lse), free(ws);
    return good;
}

/* ---- The caller's pools. What `ctx` points to counts calls of parallel_for. ---- */

static void in_order(void *ctx, size_t n, fa_task task, void *arg) {
    ++*(atomic_int *)ctx;
    for (size_t i = 0; i < n; i++) task(arg, i);
}

static void in_reverse(void *ctx, size_t n, fa_task task, void *arg) {
    ++*(atomic_int *)ctx;
    while (n-- > 0) task(arg, n);
}

static void only_the_first(void *ctx, size_t n, fa_task task, void *arg) {
    ++*(atomic_int *)ctx;
    if (n > 0) task(arg, 0);
}

static void only_the_last(void *ctx, size_t n, fa_task task, void *arg) {
    ++*(atomic_int *)ctx;
    if (n > 0) task(arg, n - 1);
}

static void none(void *ctx, size_t n, fa_task task, void *arg) {
    ++*(atomic_int *)ctx;
    (void)n, (void)task, (void)arg;
}

static void each_twice(void *ctx, size_t n, fa_task task, void *arg) {
    ++*(atomic_int *)ctx;
    for (size_t i = 0; i < 2 * n; i++) task(arg, i / 2);
}

/* Threads of this program's. */
struct crew {
    size_t n;
    fa_task task;
    void *arg;
    atomic_size_t next;
    int times;
};

static void *member(void *argument) {
    struct crew *crew = argument;
    for (size_t i; (i = atomic_fetch_add(&crew->next, 1)) < crew->n * (size_t)crew->times;)
        crew->task(crew->arg, i % crew->n);
    return NULL;
}

static void crew_of_4(struct crew *crew) {
    pthread_t threads[3];
    int made = 0;
    while (made < 3 && pthread_create(&threads[made], NULL, member, crew) == 0) made++;
    member(crew);
    while (made > 0) pthread_join(threads[--made], NULL);
}

static void on_threads(void *ctx, size_t n, fa_task task, void *arg) {
    ++*(atomic_int *)ctx;
    crew_of_4(&(struct crew){.n = n, .task = task, .arg = arg, .times = 1});
}

static void twice_on_threads(void *ctx, size_t n, fa_task task, void *arg) {
    ++*(atomic_int *)ctx;
    crew_of_4(&(struct crew){.n = n, .task = task, .arg = arg, .times = 2});
}

/* The calling thread only waits. */
static void *lead(void *crew) {
    crew_of_4(crew);
    return NULL;
}

static void on_others(void *ctx, size_t n, fa_task task, void *arg) {
    struct crew crew = {.n = n, .task = task, .arg = arg, .times = 1};
    pthread_t leader;
    ++*(atomic_int *)ctx;
    if (pthread_create(&leader, NULL, lead, &crew) == 0) pthread_join(leader, NULL);
}

static void beyond_the_end(void *ctx, size_t n, fa_task task, void *arg) {
    ++*(atomic_int *)ctx;
    for (size_t i = 0; i < n; i++) task(arg, n + i);
    task(arg, SIZE_MAX);
}

static void all_and_beyond(void *ctx, size_t n, fa_task task, void *arg) {
    in_order(ctx, n, task, arg);
    beyond_the_end(ctx, n, task, arg);
}

/* Refuses twice, then works. */
static void refuses_twice(void *ctx, size_t n, fa_task task, void *arg) {
    if (++*(atomic_int *)ctx > 2) in_order(ctx, n, task, arg);
}

/* Calls the library itself before it makes its calls, and in between. */
static void calls_the_library(void *ctx, size_t n, fa_task task, void *arg);

typedef void (*parallel_for)(void *, size_t, fa_task, void *);
static const struct {
    const char *name;
    parallel_for run;
} ways[] = {
    {"in order", in_order},           {"in reverse", in_reverse},
    {"only the first", only_the_first}, {"only the last", only_the_last},
    {"none", none},                   {"each twice", each_twice},
    {"on threads", on_threads},       {"twice on threads", twice_on_threads},
    {"on other threads", on_others},  {"NULL", NULL},
    {"beyond the end", beyond_the_end}, {"all and beyond", all_and_beyond},
    {"refuses twice", refuses_twice}, {"calls the library", calls_the_library},
};

static int32_t width_0(void *ctx) { return (void)ctx, 0; }
static int32_t width_minus_5(void *ctx) { return (void)ctx, -5; }
static int32_t width_1(void *ctx) { return (void)ctx, 1; }
static int32_t width_4(void *ctx) { return (void)ctx, 4; }
static int32_t width_100000(void *ctx) { return (void)ctx, 100000; }
static int32_t width_min(void *ctx) { return (void)ctx, INT32_MIN; }

static void calls_the_library(void *ctx, size_t n, fa_task task, void *arg) {
    ++*(atomic_int *)ctx;
    atomic_int calls = 0;
    fa_pool pool = {.struct_size = sizeof pool, .ctx = &calls, .width = width_4, .parallel_for = in_reverse};
    bool good = runs(NULL, 1);
    for (size_t i = 0; i < n; i++) {
        task(arg, i);
        if (i % 2 == 0) good &= runs(&pool, 4);
    }
    CHECK(good, "a call from within a pool");
}

/* Widths, and what the library must make of them. */
static const struct {
    int32_t (*width)(void *);
    int32_t parts;
} widths[] = {{width_4, 4},  {NULL, 1},           {width_1, 1},
              {width_0, 1},  {width_minus_5, 1},  {width_min, 1},
              {width_100000, 256}};

static void pools_of_the_callers(void) {
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
            atomic_int calls = 0;
            fa_pool pool = {.struct_size = sizeof pool, .ctx = &calls, .width = widths[w].width,
                            .parallel_for = ways[i].run};
            CHECK(runs(&pool, widths[w].parts), "%s, width %zu", ways[i].name, w);
            CHECK(widths[w].parts == 1 || pool.parallel_for == NULL || calls > 0, "%s was not used", ways[i].name);
        }
    }
    /* A later version's, of which this one knows the beginning. */
    struct {
        fa_pool pool;
        void *more;
    } later = {.pool = {.struct_size = sizeof later, .parallel_for = NULL}, .more = NULL};
    CHECK(runs(&later.pool, 1), "a larger structure");
}

/* ---- Pools that return too early. ---- */

/* A call that a pool was asked for, to be made whenever the test likes. */
struct kept {
    fa_task task;
    void *arg;
    size_t n;
    atomic_int begun;
    pthread_t threads[4];
    int threads_made;
};

static void keeps_for_later(void *ctx, size_t n, fa_task task, void *arg) {
    struct kept *kept = ctx;
    kept->n = n, kept->task = task, kept->arg = arg;
}

static void makes_one_and_keeps_the_others(void *ctx, size_t n, fa_task task, void *arg) {
    keeps_for_later(ctx, n, task, arg);
    if (n > 0) task(arg, 0);
}

static void *begin(void *argument) {
    struct kept *kept = argument;
    atomic_fetch_add(&kept->begun, 1);
    for (size_t i = 0; i < kept->n; i++) kept->task(kept->arg, i);
    return NULL;
}

/* Returns when its threads have begun, in the midst of their calls. */
static void leaves_them_running(void *ctx, size_t n, fa_task task, void *arg) {
    struct kept *kept = ctx;
    keeps_for_later(ctx, n, task, arg);
    kept->begun = 0;
    for (kept->threads_made = 0; kept->threads_made < 4; kept->threads_made++) {
        if (pthread_create(&kept->threads[kept->threads_made], NULL, begin, kept) != 0) break;
    }
    while (kept->begun < kept->threads_made) sched_yield();
}

/* Calls that come when everything of the call is gone, and when others have come after it. */
static void too_late(parallel_for way, const char *name) {
    struct kept kept = {.n = 0}, old = {.n = 0};
    fa_pool pool = {.struct_size = sizeof pool, .ctx = &kept, .width = width_4, .parallel_for = way};
    float *o = need(O_SIZE * 4), *lse = need(LSE_SIZE * 4);
    for (int round = 0; round < 12; round++) {
        fa_attention a = problem(o, lse);
        size_t bytes = 0;
        CHECK(fa_attention_workspace(&a, 4, &bytes) == FA_OK, "workspace");
        unsigned char *ws = need(bytes);
        memset(o, 0xff, O_SIZE * 4);
        fa_status status = fa_attention_run(&a, ws, bytes, &pool);
        CHECK(status == FA_OK && same_bits(o, want, O_SIZE), "%s: %s", name, fa_status_string(status));
        CHECK(kept.n > 1, "%s was not asked", name);
        /* Late calls of this one and of an older one. */
        memset(o, 0xa5, O_SIZE * 4), memset(lse, 0xa5, LSE_SIZE * 4), memset(ws, 0xa5, bytes);
        for (size_t i = 0; i < 2 * kept.n; i++) {
            kept.task(kept.arg, i);
            if (old.n > 0) old.task(old.arg, i);
        }
        bool same = true;
        for (size_t i = 0; i < O_SIZE * 4; i++) same &= ((unsigned char *)o)[i] == 0xa5;
        for (size_t i = 0; i < LSE_SIZE * 4; i++) same &= ((unsigned char *)lse)[i] == 0xa5;
        for (size_t i = 0; i < bytes; i++) same &= ws[i] == 0xa5;
        CHECK(same, "%s: a late call has written", name);
        if (round == 0) old.n = kept.n, old.task = kept.task, old.arg = kept.arg;
        free(ws);
    }
    free(o), free(lse);
}

static void left_running(void) {
    struct kept kept = {.n = 0};
    fa_pool pool = {.struct_size = sizeof pool, .ctx = &kept, .width = width_4, .parallel_for = leaves_them_running};
    for (int round = 0; round < 20; round++) {
        CHECK(runs(&pool, 4), "a pool that leaves its threads running");
        while (kept.threads_made > 0) pthread_join(kept.threads[--kept.threads_made], NULL);
    }
}

static void pools_that_return_too_early(void) {
    too_late(keeps_for_later, "keeps all");
    too_late(makes_one_and_keeps_the_others, "keeps all but one");
    left_running();
}

/* ---- The library's. ---- */

struct caller {
    pthread_t thread;
    const fa_pool *pool;
    int bad;
};

static void *call_often(void *argument) {
    struct caller *me = argument;
    for (int i = 0; i < 8; i++) me->bad += !runs(me->pool, 256);
    return NULL;
}

static void at_once(const fa_pool *pool) {
    struct caller callers[5];
    for (size_t i = 0; i < 5; i++) {
        callers[i] = (struct caller){.pool = pool};
        if (pthread_create(&callers[i].thread, NULL, call_often, &callers[i]) != 0) {
            fputs("cannot create threads\n", stderr);
            exit(2);
        }
    }
    for (size_t i = 0; i < 5; i++) {
        pthread_join(callers[i].thread, NULL);
        CHECK(callers[i].bad == 0, "caller %zu: %d of 8", i, callers[i].bad);
    }
}

static void pools_of_the_librarys(void) {
    static const int32_t sizes[] = {1, 2, 0, 7, 256};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        fa_pool *pool = NULL;
        fa_status status = fa_pool_create(sizes[i], &pool);
        CHECK(status == FA_OK && pool != NULL, "%d threads: %s", (int)sizes[i], fa_status_string(status));
        if (pool == NULL) continue;
        CHECK(pool->struct_size == sizeof *pool, "%zu", pool->struct_size);
        int32_t width = pool->width(pool->ctx);
        CHECK(width >= 1 && width <= 256 && (sizes[i] == 0 || width <= sizes[i]), "%d threads, not %d",
              (int)width, (int)sizes[i]);
        for (int times = 0; times < 3; times++) CHECK(runs(pool, width), "%d threads", (int)sizes[i]);
        if (sizes[i] <= 7) at_once(pool);
        /* It is a pool like any other: a part of this program's. */
        fa_pool copy = *pool;
        CHECK(runs(&copy, width), "a copy of the structure");
        fa_pool_destroy(pool);
    }
    fa_pool_destroy(NULL);
}

static void under_one_isa(void) {
    fa_attention a = problem(want, want_lse);
    size_t bytes, shared;
    CHECK(fa_attention_workspace(&a, 1, &bytes) == FA_OK, "workspace");
    CHECK(fa_attention_workspace(&a, 4, &shared) == FA_OK && shared > bytes, "too little work to be shared");
    void *ws = need(bytes);
    CHECK(fa_attention_run(&a, ws, bytes, NULL) == FA_OK, "NULL pool");
    free(ws);
    pools_of_the_callers();
    pools_that_return_too_early();
    pools_of_the_librarys();
}

int main(void) {
    q = random_normal(B * S * HQ * D);
    k = random_normal(B * KEYS * HKV * D);
    v = random_normal(B * KEYS * HKV * D);
    want = need(O_SIZE * 4), want_lse = need(LSE_SIZE * 4);
    for_each_isa(under_one_isa);
    free(q), free(k), free(v), free(want), free(want_lse);
    return check_result();
}
