/* Two copies of the library in one process, and a third one if the program is linked with the
 * static library: each has its own threads and limits. */

#define _GNU_SOURCE

#include <pthread.h>
#include <unistd.h>

#include "calls.h"

enum { COPIES = 3, CALLERS = 2 * COPIES };

static struct library copies[COPIES];
static float *want[COPIES][CALLS];

/* The same file under another name, which the loader does not recognise. */
static void copy_file(const char *from, char *to) {
    static char buffer[1 << 16];
    FILE *in = fopen(from, "rb");
    int file = mkstemp(to);
    ssize_t written = 0;
    size_t n = 0;
    if (in == NULL || file < 0) exit(2);
    while (written >= 0 && (n = fread(buffer, 1, sizeof buffer, in)) > 0) written = write(file, buffer, n);
    if (written < 0 || fclose(in) != 0 || close(file) != 0) exit(2);
}

static void load(struct library *lib, const char *path) {
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL || !library_of(handle, lib)) {
        fprintf(stderr, "%s: %s\n", path, dlerror());
        exit(1);
    }
}

static pthread_barrier_t start;

static void *call_often(void *argument) {
    int number = *(int *)argument, copy = number % COPIES;
    const struct library *lib = &copies[copy];
    fa_pool *pool = NULL;
    bool good = lib->pool_create(2, &pool) == FA_OK;
    pthread_barrier_wait(&start);
    for (int round = 0; round < 3; round++)
        for (int call = 0; call < CALLS; call++)
            good &= call_gives(lib, call, 1 + (uint32_t)(number + call) % 3, round % 2 ? pool : NULL, want[copy][call]);
    lib->pool_destroy(pool);
    *(int *)argument = good;
    return NULL;
}

static void at_once(void) {
    pthread_t threads[CALLERS];
    int arguments[CALLERS];
    pthread_barrier_init(&start, NULL, CALLERS);
    for (int i = 0; i < CALLERS; i++) {
        arguments[i] = i;
        if (pthread_create(&threads[i], NULL, call_often, &arguments[i]) != 0) exit(2);
    }
    for (int i = 0; i < CALLERS; i++) {
        pthread_join(threads[i], NULL);
        CHECK(arguments[i] == 1, "caller %d of copy %d: other bits or a status", i, i % COPIES);
    }
    pthread_barrier_destroy(&start);
}

/* A limit in one copy is none in the others. */
static void limits(void) {
    for (int i = 0; i < COPIES; i++) {
        CHECK(copies[i].limit_isa("scalar") == FA_OK, "copy %d", i);
        for (int j = 0; j < COPIES; j++) {
            bool same = copies[i].limit_isa == copies[j].limit_isa;
            const char *isa = copies[j].isa(), *expected = same ? "scalar" : isa_names[machine_rank()];
            CHECK(strcmp(isa, expected) == 0, "limited copy %d: copy %d uses %s", i, j, isa);
        }
        CHECK(copies[i].limit_isa(NULL) == FA_OK, "copy %d", i);
    }
}

/* A pool is two functions: one of a copy's may serve another. */
static void pool_of_another(void) {
    for (int i = 0; i < COPIES; i++) {
        fa_pool *pool = NULL;
        CHECK(copies[i].pool_create(3, &pool) == FA_OK, "copy %d", i);
        for (int j = 0; j < COPIES && pool != NULL; j++)
            for (int call = 2 * RUN_F32; call <= 2 * RUN_Q8_0 + 1; call++)
                CHECK(call_gives(&copies[j], call, 1, pool, want[j][call]), "%s on copy %d, pool of %d",
                      call_name(call), j, i);
        copies[i].pool_destroy(pool);
    }
}

int main(void) {
    const char *path = getenv("FA_SHARED_LIBRARY");
    if (path == NULL) {
        fputs("FA_SHARED_LIBRARY is not set: it has to name the shared library\n", stderr);
        return 1;
    }
    make_data();
    char other[] = "./flash_attention_XXXXXX";
    copy_file(path, other);
    copies[0] = LINKED_LIBRARY;
    load(&copies[1], path), load(&copies[2], other);
    unlink(other);
    /* Linked with the shared library, the first two are the same. */
    CHECK(copies[1].mha != copies[2].mha && copies[0].mha != copies[2].mha, "one copy under two names");

    for (int i = 0; i < COPIES; i++) all_calls(&copies[i], want[i]);
    for (int call = 0; call < CALLS; call++) {
        bool same = same_bits(want[1][call], want[2][call], call_elements(call));
        CHECK(same, "%s: bits of two copies differ", call_name(call));
    }
    at_once();
    limits();
    pool_of_another();
    at_once();
    return check_result();
}
