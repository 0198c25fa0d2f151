/* The library in child processes, whatever the parent's threads are doing. */

#define _GNU_SOURCE

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

enum { HEADS = 4, LEN = 136, DIM = 64, ELEMENTS = HEADS * LEN * DIM };

static float *q, *k, *v, *want;

static fa_status attend(uint32_t num_threads, float *out) {
    fa_config cfg;
    fa_status status = fa_config_auto(&cfg, DIM);
    if (status != FA_OK) return status;
    cfg.causal = true;
    cfg.num_threads = num_threads;
    memset(out, 0xff, ELEMENTS * sizeof *out);
    return fa_mha(&cfg, q, k, v, HEADS, LEN, LEN, out);
}

/* With all cores and with a pool of three others. */
static void use(const char *who) {
    static const uint32_t threads[] = {0, 4, 0, 4};
    float *out = need(ELEMENTS * sizeof *out);
    for (size_t i = 0; i < sizeof threads / sizeof *threads; i++) {
        fa_status status = attend(threads[i], out);
        CHECK(status == FA_OK, "%s: %s", who, fa_status_string(status));
        CHECK(same_bits(out, want, ELEMENTS), "%s: other bits", who);
    }
    free(out);
}

static void rest(long microseconds) {
    nanosleep(&(struct timespec){microseconds / 1000000, microseconds % 1000000 * 1000}, NULL);
}

/* How many forks this process is away from main. */
static int depth;

/* Forks; what goes wrong in the child is no failure of its parent's before it is waited for. */
static pid_t child_of(void) {
    fflush(NULL);
    pid_t child = fork();
    if (child < 0) {
        fputs("cannot fork\n", stderr);
        exit(2);
    }
    if (child == 0) {
        check_failures = 0;
        depth++;
    }
    return child;
}

/* A child that hangs is a failure, not a test that never ends. Descendants wait for less time, so
 * that the one that says so is next to the one that hangs. */
static void await(pid_t child, const char *who) {
    const int seconds = 20 >> depth;
    int status;
    time_t end = time(NULL) + seconds;
    while (time(NULL) <= end) {
        if (waitpid(child, &status, WNOHANG) == child) {
            CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s: wait status %#x", who,
                  (unsigned)status);
            return;
        }
        rest(200);
    }
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    CHECK(false, "%s: hangs", who);
    /* The next one would too, and take its time. */
    _exit(check_result());
}

static void before_any_use(void) {
    pid_t child = child_of();
    if (child == 0) {
        use("child of a parent that has called nothing");
        _exit(check_result());
    }
    await(child, "child of a parent that has called nothing");
}

/* exit, not _exit: what the library leaves for the end of the process must end in a child too. */
static void after_use(void) {
    pid_t child = child_of();
    if (child == 0) {
        use("child");
        pid_t grandchild = child_of();
        if (grandchild == 0) {
            use("grandchild");
            exit(check_result());
        }
        use("child with a child");
        await(grandchild, "grandchild");
        exit(check_result());
    }
    use("parent with a child");
    await(child, "child");

    /* A grandchild whose parent has called nothing itself. */
    child = child_of();
    if (child == 0) {
        pid_t grandchild = child_of();
        if (grandchild == 0) {
            use("grandchild of a child that has called nothing");
            exit(check_result());
        }
        await(grandchild, "grandchild of a child that has called nothing");
        exit(check_result());
    }
    await(child, "child that has called nothing");
}

static atomic_bool stop;
static atomic_int calls, bad_calls;

static void *call_until_stopped(void *argument) {
    float *out = argument;
    for (unsigned i = 0; !atomic_load(&stop); i++) {
        /* Growing demands, so that the pool is being replaced now and then. */
        fa_status status = attend(i % 7, out);
        if (status != FA_OK || !same_bits(out, want, ELEMENTS)) atomic_fetch_add(&bad_calls, 1);
        atomic_fetch_add(&calls, 1);
    }
    return NULL;
}

static void fork_while_busy(int rounds) {
    enum { BUSY = 2 };
    pthread_t busy[BUSY];
    float *out[BUSY];
    for (int i = 0; i < BUSY; i++) {
        out[i] = need(ELEMENTS * sizeof(float));
        CHECK(pthread_create(&busy[i], NULL, call_until_stopped, out[i]) == 0, "pthread_create");
    }
    while (atomic_load(&calls) == 0) rest(100);
    for (int round = 0; round < rounds; round++) {
        rest(round * 137 % 1000);
        pid_t child = child_of();
        if (child == 0) {
            use("child of a busy parent");
            _exit(check_result());
        }
        await(child, "child of a busy parent");
    }
    atomic_store(&stop, true);
    for (int i = 0; i < BUSY; i++) {
        pthread_join(busy[i], NULL);
        free(out[i]);
    }
    CHECK(atomic_load(&bad_calls) == 0, "%d calls of %d in the parent went wrong",
          atomic_load(&bad_calls), atomic_load(&calls));
    use("parent after many children");
}

struct on_pool {
    fa_attention a;
    fa_pool *pool;
    void *ws;
    size_t bytes;
};

static void *run_until_stopped(void *argument) {
    struct on_pool *call = argument;
    while (!atomic_load(&stop)) {
        atomic_fetch_add(&bad_calls, fa_attention_run(&call->a, call->ws, call->bytes, call->pool) != FA_OK);
    }
    return NULL;
}

/* A pool of the parent's has no threads in a child, where it computes all the same, and ends,
 * whatever they were doing for another thread, and whichever lock was held. */
static void with_a_pool_of_the_parents(void) {
    fa_attention a;
    fa_pool *pool;
    size_t bytes;
    const int64_t row = DIM * sizeof(float);
    CHECK(fa_attention_init(&a, sizeof a) == FA_OK && fa_pool_create(4, &pool) == FA_OK, "init");
    float *out = need(ELEMENTS * sizeof *out);
    fa_tensor tensor = {.data = q, .stride = {0, LEN * row, row}};
    a.batch = 1, a.heads_q = a.heads_kv = HEADS, a.len_q = a.len_kv = LEN, a.dim_qk = a.dim_v = DIM;
    a.window_right = 0;
    a.q = a.k = a.v = a.o = tensor;
    a.k.data = k, a.v.data = v, a.o.data = out;
    CHECK(fa_attention_workspace(&a, pool->width(pool->ctx), &bytes) == FA_OK, "workspace");
    void *ws = need(bytes + 1);
    struct on_pool other = {a, pool, need(bytes + 1), bytes};
    other.a.o.data = need(ELEMENTS * sizeof *out);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, run_until_stopped, &other) == 0, "pthread_create");
    for (int round = 0; round < 100; round++) {
        rest(round % 20 * 11);
        pid_t child = child_of();
        memset(out, 0xff, ELEMENTS * sizeof *out);
        for (int i = 0; i < 3; i++) {
            CHECK(fa_attention_run(&a, ws, bytes, pool) == FA_OK, "run");
            CHECK(same_bits(out, want, ELEMENTS), "a pool of the parent's: other bits");
        }
        if (child == 0) {
            fa_pool_destroy(pool);
            _exit(check_result());
        }
        await(child, "child with a pool of its parent's");
    }
    atomic_store(&stop, true);
    pthread_join(thread, NULL);
    atomic_store(&stop, false);
    CHECK(atomic_load(&bad_calls) == 0, "%d calls on the pool meanwhile failed", atomic_load(&bad_calls));
    fa_pool_destroy(pool);
    free(ws), free(out), free(other.ws), free(other.a.o.data);
}

static atomic_bool started;

static void *first_use(void *argument) {
    atomic_store(&started, true);
    (void)attend(4, argument);
    return NULL;
}

static void spin(long nanoseconds) {
    struct timespec from, now;
    clock_gettime(CLOCK_MONOTONIC, &from);
    do {
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((now.tv_sec - from.tv_sec) * 1000000000 + now.tv_nsec - from.tv_nsec < nanoseconds);
}

#if defined __linux__ && !defined __GLIBC__
enum { FIRST_USES = 0 }; /* musl */
#else
enum { FIRST_USES = 1200 };
#endif

/* In a fresh process, the fork comes while another thread makes the very first call: everything
 * that is set up once, under a lock or not, may be half done in the child. Such moments are short,
 * so there are many rounds, each a little later; sleeping would not hit them. */
static void fork_during_first_use(int rounds) {
    for (int round = 0; round < rounds && check_failures == 0; round++) {
        pid_t fresh = child_of();
        if (fresh == 0) {
            pthread_t thread;
            float *out = need(ELEMENTS * sizeof *out);
            CHECK(pthread_create(&thread, NULL, first_use, out) == 0, "pthread_create");
            while (!atomic_load(&started)) {}
            spin(round * 500);
            pid_t child = child_of();
            if (child == 0) {
                bool ok = attend(4, out) == FA_OK && same_bits(out, want, ELEMENTS);
                _exit(!ok);
            }
            await(child, "child of a first use");
            pthread_join(thread, NULL);
            CHECK(same_bits(out, want, ELEMENTS), "first use: other bits");
            _exit(check_result());
        }
        await(fresh, "fresh process");
    }
}

int main(void) {
    q = random_normal(ELEMENTS), k = random_normal(ELEMENTS), v = random_normal(ELEMENTS);

    /* The result comes from a child, because the library must still be untouched here. */
    want = mmap(NULL, ELEMENTS * sizeof *want, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                -1, 0);
    if (want == MAP_FAILED) return 2;
    pid_t child = child_of();
    if (child == 0) _exit(attend(1, want) != FA_OK);
    await(child, "first child");

    before_any_use();
    if (FIRST_USES == 0)
        puts("left out: a fork during the first call (musl 1.2.3 keeps pthread_key_create's lock)");
    fork_during_first_use(FIRST_USES);
    use("parent");
    after_use();
    with_a_pool_of_the_parents();
    fork_while_busy(20);
    free(q), free(k), free(v);
    return check_result();
}
