/* The shared library, loaded at run time: the environment variable FA_SHARED_LIBRARY says where
 * it is. Loaded, used, closed, and loaded again, with threads that outlive the closing. */

#define _POSIX_C_SOURCE 200809L

#include <dlfcn.h>
#include <pthread.h>

#include "check.h"

enum { HEADS = 4, LEN = 160, DIM = 64, ELEMENTS = HEADS * LEN * DIM };

static struct {
    void *handle;
    uint32_t (*abi_version)(void);
    fa_status (*config_auto)(fa_config *, size_t);
    fa_status (*mha)(const fa_config *, const float *, const float *, const float *, size_t, size_t,
                     size_t, float *);
    const char *(*isa)(void);
    const char *(*status_string)(int32_t);
} library;

static float *q, *k, *v;
static double *want;

/* C has no conversion from a pointer to data to one to a function, so bytes are copied. */
static void resolve(const char *name, void *function) {
    void *symbol = dlsym(library.handle, name);
    CHECK(symbol != NULL, "%s: %s", name, dlerror());
    if (symbol == NULL) exit(check_result());
    memcpy(function, &symbol, sizeof symbol);
}

static void load(const char *path) {
    library.handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library.handle == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    resolve("fa_abi_version", &library.abi_version);
    resolve("fa_config_auto", &library.config_auto);
    resolve("fa_mha", &library.mha);
    resolve("fa_isa", &library.isa);
    resolve("fa_status_string", &library.status_string);
    CHECK(library.abi_version() == FA_ABI_VERSION, "abi %u", (unsigned)library.abi_version());
    CHECK(isa_rank(library.isa()) >= 0, "isa %s", library.isa());
    CHECK(strcmp(library.status_string(FA_OK), library.status_string(FA_ERR_NULL)) != 0, "strings");
}

/* The largest error, or infinity. */
static double use(uint32_t num_threads) {
    fa_config cfg;
    float *out = need(ELEMENTS * sizeof *out);
    memset(out, 0xff, ELEMENTS * sizeof *out);
    double error = INFINITY;
    if (library.config_auto(&cfg, DIM) == FA_OK) {
        cfg.causal = true;
        cfg.num_threads = num_threads;
        if (library.mha(&cfg, q, k, v, HEADS, LEN, LEN, out) == FA_OK) {
            error = distance(out, want, ELEMENTS);
        }
    }
    free(out);
    return error;
}

/* Before anything that could keep the library by accident, as a running thread of its own does. */
static void stays_mapped(const char *path) {
    load(path);
    uint32_t (*abi_version)(void) = library.abi_version;
    CHECK(dlclose(library.handle) == 0, "dlclose: %s", dlerror());
    library.handle = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    CHECK(library.handle != NULL, "the library does not stay mapped after dlclose");
    if (library.handle == NULL) return;
    CHECK(dlclose(library.handle) == 0, "dlclose: %s", dlerror());
    CHECK(abi_version() == FA_ABI_VERSION, "an address from before dlclose");
}

static pthread_barrier_t used, closed;
static double error_in_thread;

/* Calls the library while it is there and ends when it is not: what the library keeps for each
 * thread is cleaned up after the closing. */
static void *outlive(void *argument) {
    (void)argument;
    error_in_thread = use(3);
    pthread_barrier_wait(&used);
    pthread_barrier_wait(&closed);
    return NULL;
}

static void *do_nothing(void *argument) {
    return argument;
}

int main(void) {
    const char *path = getenv("FA_SHARED_LIBRARY");
    if (path == NULL) {
        fputs("FA_SHARED_LIBRARY is not set: it has to name the shared library\n", stderr);
        return 1;
    }
    q = random_normal(ELEMENTS), k = random_normal(ELEMENTS), v = random_normal(ELEMENTS);
    want = need(ELEMENTS * sizeof *want);
    double bound = 1e-5 * largest(v, ELEMENTS);
    ref_attention(q, k, v, HEADS, LEN, LEN, DIM, true, 1 / sqrt(DIM), want);

    stays_mapped(path);
    for (int round = 0; round < 3; round++) {
        load(path);
        CHECK(use(1) <= bound, "round %d: one thread", round);
        CHECK(use(0) <= bound, "round %d: all cores", round);
        CHECK(use(4) <= bound, "round %d: four threads", round);

        pthread_t thread;
        pthread_barrier_init(&used, NULL, 2), pthread_barrier_init(&closed, NULL, 2);
        CHECK(pthread_create(&thread, NULL, outlive, NULL) == 0, "pthread_create");
        pthread_barrier_wait(&used);
        CHECK(error_in_thread <= bound, "round %d: a thread of the program's", round);
        CHECK(dlclose(library.handle) == 0, "dlclose: %s", dlerror());
        memset(&library, 0, sizeof library);
        pthread_barrier_wait(&closed);
        pthread_join(thread, NULL);
        pthread_barrier_destroy(&used), pthread_barrier_destroy(&closed);

        CHECK(pthread_create(&thread, NULL, do_nothing, NULL) == 0, "pthread_create");
        pthread_join(thread, NULL);
    }
    free(q), free(k), free(v), free(want);
    return check_result();
}
