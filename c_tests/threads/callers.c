/* 64 threads of the program's call at once, with problems of their own. */

#define _GNU_SOURCE

#include <dirent.h>
#include <pthread.h>
#include <unistd.h>

#include "calls.h"

enum { CALLERS = 64, ROUNDS = 4 };

static struct library lib;
static float *want[CALLS];
static fa_pool *pool;
static pthread_barrier_t start;

struct caller {
    pthread_t thread;
    int number, bad;
};

/* A problem that no other caller has: rows, keys and head depend on the number. */
static bool own_problem(int number) {
    size_t rows = 1 + (size_t)number % 31, keys = 65 + 7 * (size_t)number;
    const float *k = data.k + number * KEYS, *v = data.v + number * KEYS;
    float *out = need(rows * DIM * sizeof *out);
    double *exact = need(rows * DIM * sizeof *exact);
    fa_config cfg;
    bool good = fa_config_auto(&cfg, DIM) == FA_OK;
    cfg.num_threads = number % 8 == 0 ? 2 : 1;
    good = good && fa_forward_f32(&cfg, data.q, k, v, rows, keys, out) == FA_OK;
    ref_attention(data.q, k, v, 1, rows, keys, DIM, false, 1 / sqrt(DIM), exact);
    good = good && distance(out, exact, rows * DIM) <= 1e-5 * largest(v, keys * DIM);
    free(out), free(exact);
    return good;
}

static void *call_often(void *argument) {
    struct caller *me = argument;
    uint32_t threads = me->number % 8 == 0 ? 2 : 1;
    pthread_barrier_wait(&start);
    for (int round = 0; round < ROUNDS; round++) {
        int call = (me->number + round) % CALLS;
        me->bad += !call_gives(&lib, call, threads, me->number % 4 == 1 ? pool : NULL, want[call]);
        me->bad += !own_problem(me->number);
    }
    return NULL;
}

static int count_tasks(void) {
    DIR *tasks = opendir("/proc/self/task");
    int n = 0;
    if (tasks == NULL) exit(2);
    for (struct dirent *entry; (entry = readdir(tasks)) != NULL;) n += entry->d_name[0] != '.';
    closedir(tasks);
    return n;
}

static int most_tasks(struct caller *callers) {
    pthread_barrier_init(&start, NULL, CALLERS + 1);
    for (int i = 0; i < CALLERS; i++) {
        callers[i] = (struct caller){.number = i};
        if (pthread_create(&callers[i].thread, NULL, call_often, &callers[i]) != 0) exit(2);
    }
    pthread_barrier_wait(&start);
    int most = 0;
    for (int i = 0; i < CALLERS; i++) {
        int now = count_tasks();
        most = now > most ? now : most;
        pthread_join(callers[i].thread, NULL);
        CHECK(callers[i].bad == 0, "caller %d: %d of %d calls", i, callers[i].bad, 2 * ROUNDS);
    }
    pthread_barrier_destroy(&start);
    return most;
}

int main(void) {
    struct caller callers[CALLERS];
    make_data();
    lib = LINKED_LIBRARY;
    all_calls(&lib, want);
    CHECK(fa_pool_create(2, &pool) == FA_OK, "pool");
    /* There are the library's threads from here on. */
    CHECK(call_gives(&lib, 2 * MHA, 2, NULL, want[2 * MHA]), "two threads");
    int before = count_tasks(), most = most_tasks(callers);
    CHECK(most <= before + CALLERS, "%d threads, %d the callers', %d there before", most, CALLERS,
          before);
    int after = count_tasks();
    for (int wait = 0; after > before && wait < 500; wait++) usleep(10000), after = count_tasks();
    CHECK(after == before, "%d threads afterwards, %d before", after, before);
    fa_pool_destroy(pool);
    return check_result();
}
