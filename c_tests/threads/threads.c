/* Calls from many threads at once, and which threads the library makes. */

#define _POSIX_C_SOURCE 200809L

#include <dirent.h>
#include <pthread.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

/* Enough work for many threads. */
enum { HEADS = 6, LQ = 200, LKV = 264, DIM = 64, ELEMENTS = HEADS * LQ * DIM };
enum { CALLERS = 8 };

static float *q, *k, *v, *want[2];

static fa_config config_of(uint32_t num_threads, bool causal) {
    fa_config cfg;
    CHECK(fa_config_auto(&cfg, DIM) == FA_OK, "constructor");
    cfg.num_threads = num_threads;
    cfg.causal = causal;
    return cfg;
}

static void call(uint32_t num_threads) {
    float *out = need(ELEMENTS * sizeof *out);
    for (int causal = 0; causal < 2; causal++) {
        fa_config cfg = config_of(num_threads, causal);
        memset(out, 0xff, ELEMENTS * sizeof *out);
        fa_status status = fa_mha(&cfg, q, k, v, HEADS, LQ, LKV, out);
        CHECK(status == FA_OK, "%u threads: %s", (unsigned)num_threads, fa_status_string(status));
        CHECK(same_bits(out, want[causal], ELEMENTS), "%u threads: other bits",
              (unsigned)num_threads);
    }
    free(out);
}

/* Threads of this process. */
static int count_tasks(void) {
    DIR *tasks = opendir("/proc/self/task");
    if (tasks == NULL) {
        fputs("cannot read /proc/self/task\n", stderr);
        exit(2);
    }
    int n = 0;
    for (struct dirent *entry; (entry = readdir(tasks)) != NULL;) n += entry->d_name[0] != '.';
    closedir(tasks);
    return n;
}

static void rest(long milliseconds) {
    nanosleep(&(struct timespec){milliseconds / 1000, milliseconds % 1000 * 1000000}, NULL);
}

/* The count once it is at most `most`; a thread that has ended takes a moment to disappear. */
static int settled_tasks(int most) {
    int n = count_tasks();
    for (int wait = 0; n > most && wait < 500; wait++) {
        rest(10);
        n = count_tasks();
    }
    return n;
}

struct caller {
    pthread_t thread;
    int number, iterations;
    int bad_status, bad_bits;
};

static pthread_barrier_t start;

static void *call_often(void *argument) {
    static const uint32_t mixed[] = {1, 2, 0};
    struct caller *me = argument;
    float *out = need(ELEMENTS * sizeof *out);
    pthread_barrier_wait(&start);
    for (int i = 0; i < me->iterations; i++) {
        fa_config cfg;
        bool causal = (i + me->number) % 2;
        me->bad_status += fa_config_auto(&cfg, DIM) != FA_OK;
        cfg.num_threads = mixed[(me->number + i) % 3];
        cfg.causal = causal;
        memset(out, 0xff, ELEMENTS * sizeof *out);
        me->bad_status += fa_mha(&cfg, q, k, v, HEADS, LQ, LKV, out) != FA_OK;
        me->bad_bits += !same_bits(out, want[causal], ELEMENTS);
    }
    free(out);
    return NULL;
}

static void storm(int iterations) {
    struct caller callers[CALLERS];
    pthread_barrier_init(&start, NULL, CALLERS);
    for (int i = 0; i < CALLERS; i++) {
        callers[i] = (struct caller){.number = i, .iterations = iterations};
        if (pthread_create(&callers[i].thread, NULL, call_often, &callers[i]) != 0) {
            fputs("cannot create threads\n", stderr);
            exit(2);
        }
    }
    for (int i = 0; i < CALLERS; i++) {
        pthread_join(callers[i].thread, NULL);
        CHECK(callers[i].bad_status == 0, "caller %d: %d calls failed", i, callers[i].bad_status);
        CHECK(callers[i].bad_bits == 0, "caller %d: %d results of %d with other bits", i,
              callers[i].bad_bits, iterations);
    }
    pthread_barrier_destroy(&start);
}

/* Must come before anything that makes threads. */
static void one_thread_makes_none(void) {
    CHECK(count_tasks() == 1, "%d threads before the first call", count_tasks());
    for (int i = 0; i < 3; i++) {
        call(1);
        CHECK(count_tasks() == 1, "num_threads = 1 left %d threads", count_tasks());
    }
    /* Too little work to share. */
    float *out = need(ELEMENTS * sizeof *out);
    fa_config cfg = config_of(0, false);
    CHECK(fa_mha(&cfg, q, k, v, 1, 1, 1, out) == FA_OK, "a small problem");
    CHECK(count_tasks() == 1, "a small problem left %d threads", count_tasks());
    free(out);
}

/* In a child: the first calls that need the pool all come at once. */
static void first_use_at_once(void) {
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        alarm(60);
        storm(5);
        call(0);
        int n = count_tasks();
        rest(50);
        int settled = settled_tasks(n);
        for (int i = 0; i < 5; i++) call(0);
        CHECK(settled_tasks(settled) <= settled, "a used pool grew from %d threads", settled);
        _exit(check_result());
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0,
          "first use from many threads at once: wait status %#x", (unsigned)status);
}

/* ThreadSanitizer has a thread of its own as soon as there are others. */
#ifdef __SANITIZE_THREAD__
enum { RUNTIME = 1 };
#else
enum { RUNTIME = 0 };
#endif

static void the_pool_stays(void) {
    call(4);
    int n = count_tasks();
    CHECK(n > 1, "num_threads = 4 made no thread");
    static const uint32_t later[] = {4, 3, 2, 1, 4, 2, 0, 1, 0};
    for (size_t i = 0; i < sizeof later / sizeof *later; i++) {
        /* All cores may be more than 4. */
        if (later[i] == 0 && sysconf(_SC_NPROCESSORS_ONLN) > 4) continue;
        call(later[i]);
        CHECK(count_tasks() == n, "%u threads asked for: %d there, %d before", (unsigned)later[i],
              count_tasks(), n);
    }
    storm(30);
    CHECK(settled_tasks(n) == n, "%d threads after calls at once, %d before", count_tasks(), n);

    /* A larger demand replaces the pool: the old threads end. */
    call(7);
    int most = (n > 7 ? n : 7) + RUNTIME;
    CHECK(settled_tasks(most) <= most, "num_threads = 7 left %d threads", count_tasks());
    n = count_tasks();
    call(4), call(0), call(1);
    CHECK(count_tasks() == n, "%d threads, %d before", count_tasks(), n);
}

/* Many small tiles, and work for more threads than there may be. */
static void no_more_than_256(void) {
    enum { ROWS = 1024, KEYS = 4096 };
    float *queries = random_normal(ROWS * DIM), *keys = random_normal(KEYS * DIM);
    float *few = need(ROWS * DIM * sizeof *few), *many = need(ROWS * DIM * sizeof *many);
    fa_config cfg = config_of(2, false);
    cfg.block_size_q = 1;
    CHECK(fa_mha(&cfg, queries, keys, keys, 1, ROWS, KEYS, few) == FA_OK, "2 threads");
    cfg.num_threads = UINT32_MAX;
    CHECK(fa_mha(&cfg, queries, keys, keys, 1, ROWS, KEYS, many) == FA_OK, "UINT32_MAX threads");
    CHECK(same_bits(few, many, ROWS * DIM), "UINT32_MAX threads: other bits");
    CHECK(settled_tasks(256 + RUNTIME) <= 256 + RUNTIME, "%d threads", count_tasks());
    free(queries), free(keys), free(few), free(many);
}

static void *call_all(void *argument) {
    (void)argument;
    for (uint32_t num_threads = 0; num_threads <= 2; num_threads++) call(num_threads);
    /* Few rows, and so few that their scratch memory is on the stack. */
    float out[DIM];
    fa_config cfg = config_of(1, false);
    for (size_t rows = 1; rows <= LQ; rows = 2 * rows + 1) {
        float *few = need(rows * DIM * sizeof *few);
        CHECK(fa_forward_f32(&cfg, q, k, v, rows, LKV, few) == FA_OK, "%zu rows", rows);
        free(few);
    }
    CHECK(fa_forward_f32(&cfg, q, k, v, 1, 1, out) == FA_OK, "one row");
    CHECK(memcmp(out, v, sizeof out) == 0, "the only key is the answer");
    return NULL;
}

/* Callers may have small stacks: the header says how small. */
static void small_stack(void) {
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
    /* Instruments keep what is around each variable there, too. */
    enum { STACK = 4 << 20 };
#else
    enum { STACK = 64 << 10 };
#endif
    pthread_attr_t attributes;
    pthread_t thread;
    CHECK(pthread_attr_init(&attributes) == 0, "attributes");
    CHECK(pthread_attr_setstacksize(&attributes, STACK) == 0, "a stack of %d bytes", STACK);
    if (pthread_create(&thread, &attributes, call_all, NULL) == 0) {
        pthread_join(thread, NULL);
    } else {
        CHECK(false, "no thread with a stack of %d bytes", STACK);
    }
    pthread_attr_destroy(&attributes);
}

int main(void) {
    q = random_normal(HEADS * LQ * DIM);
    k = random_normal(HEADS * LKV * DIM);
    v = random_normal(HEADS * LKV * DIM);
    for (int causal = 0; causal < 2; causal++) {
        fa_config cfg = config_of(1, causal);
        want[causal] = need(ELEMENTS * sizeof(float));
        CHECK(fa_mha(&cfg, q, k, v, HEADS, LQ, LKV, want[causal]) == FA_OK, "the first call");
    }
    one_thread_makes_none();
    first_use_at_once();
    the_pool_stays();
    no_more_than_256();
    small_stack();
    free(q), free(k), free(v), free(want[0]), free(want[1]);
    return check_result();
}
