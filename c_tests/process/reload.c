/* Loaded, used and closed 100 times by several threads at once, which end each time: results are
 * right and nothing piles up. (The library stays mapped: see c_tests/process/dlopen.c.) */

#define _GNU_SOURCE

#include <dirent.h>
#include <malloc.h>
#include <pthread.h>
#include <unistd.h>

#include "calls.h"

enum { THREADS = 4, ROUNDS = 100, WARM = 30 };

static const char *path;
static float *want[CALLS];

struct user {
    pthread_t thread;
    int number;
    const char *failure;
};

static void *load_use_close(void *argument) {
    struct user *me = argument;
    struct library lib;
    fa_pool *pool = NULL;
    /* Few rows most of the time: there are many rounds. */
    int call = (me->number % CALLS) | (me->number % 8 != 0);
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library_of(handle, &lib)) return me->failure = "dlopen", NULL;
    if (!call_gives(&lib, call, (uint32_t)me->number % 4, NULL, want[call])) me->failure = call_name(call);
    if (me->number % 16 == 3) {
        if (lib.pool_create(2, &pool) != FA_OK) me->failure = "fa_pool_create";
        if (!call_gives(&lib, 2 * RUN_F16, 1, pool, want[2 * RUN_F16])) me->failure = "pool";
        lib.pool_destroy(pool);
    }
    if (dlclose(handle) != 0) me->failure = "dlclose";
    return NULL;
}

static int entries(const char *folder) {
    DIR *open = opendir(folder);
    int n = 0;
    if (open == NULL) exit(2);
    for (struct dirent *entry; (entry = readdir(open)) != NULL;) n += entry->d_name[0] != '.';
    closedir(open);
    return n;
}

/* What the process has; memory in KiB. */
struct usage {
    int tasks, files, maps;
    long memory;
};

static struct usage usage(void) {
    struct usage now = {entries("/proc/self/task"), entries("/proc/self/fd"), 0, 0};
    unsigned long resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL || fscanf(file, "%*u %lu", &resident) != 1) exit(2);
    fclose(file);
    now.memory = (long)resident * sysconf(_SC_PAGESIZE) / 1024;
    file = fopen("/proc/self/maps", "r");
    for (int c; file != NULL && (c = fgetc(file)) != EOF;) now.maps += c == '\n';
    fclose(file);
    return now;
}

int main(void) {
    path = getenv("FA_SHARED_LIBRARY");
    if (path == NULL) {
        fputs("FA_SHARED_LIBRARY is not set: it has to name the shared library\n", stderr);
        return 1;
    }
    /* Or memory depends on which threads meet in which heap. */
    mallopt(M_ARENA_MAX, 1);
    make_data();
    /* In this program the library is not linked: what results should be comes from it, too,
     * compared with double. */
    struct library lib;
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library_of(handle, &lib)) return 1;
    all_calls(&lib, want);
    CHECK(dlclose(handle) == 0, "%s", dlerror());

    struct usage warm = {0}, now;
    for (int round = 0; round < ROUNDS; round++) {
        struct user users[THREADS];
        for (int i = 0; i < THREADS; i++) {
            users[i] = (struct user){.number = THREADS * round + i};
            if (pthread_create(&users[i].thread, NULL, load_use_close, &users[i]) != 0) exit(2);
        }
        for (int i = 0; i < THREADS; i++) {
            pthread_join(users[i].thread, NULL);
            CHECK(users[i].failure == NULL, "round %d, thread %d: %s", round, i, users[i].failure);
        }
        if (round == WARM) usleep(100000), warm = usage();
    }
    for (int wait = 0; wait < 300; wait++) {
        now = usage();
        if (now.tasks <= warm.tasks) break;
        usleep(10000);
    }
    CHECK(now.tasks <= warm.tasks, "%d threads, %d after %d rounds", now.tasks, warm.tasks, WARM);
    CHECK(now.files == warm.files, "%d open files, %d after %d rounds", now.files, warm.files, WARM);
    CHECK(now.maps <= warm.maps + 8, "%d mappings, %d after %d rounds", now.maps, warm.maps, WARM);
    CHECK(now.memory <= warm.memory + 3072, "%ld KiB, %ld after %d rounds", now.memory, warm.memory, WARM);
    return check_result();
}
