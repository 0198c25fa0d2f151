/* flash_attention.dll, loaded at run time: the environment variable FA_SHARED_LIBRARY says where it
 * is. Loaded, used, let go, and loaded again, with threads that outlive that; and how many threads
 * the affinity of a process leaves. */

#include "check.h"

#include <windows.h>

enum { HEADS = 4, LEN = 160, DIM = 64, ELEMENTS = HEADS * LEN * DIM };

static struct {
    HMODULE handle;
    uint32_t (*abi_version)(void);
    fa_status (*config_auto)(fa_config *, size_t);
    fa_status (*mha)(const fa_config *, const float *, const float *, const float *, size_t, size_t, size_t, float *);
    const char *(*isa)(void);
    fa_status (*pool_create)(int32_t, fa_pool **);
    void (*pool_destroy)(fa_pool *);
} library;

static const char *path;
static float *q, *k, *v;
static double *want;

/* C has no conversion between kinds of pointers to functions, so bytes are copied. */
static void resolve(const char *name, void *function) {
    FARPROC symbol = GetProcAddress(library.handle, name);
    if (symbol == NULL) {
        fprintf(stderr, "%s: error %lu\n", name, GetLastError());
        exit(1);
    }
    memcpy(function, &symbol, sizeof symbol);
}

static void load(void) {
    library.handle = LoadLibraryA(path);
    if (library.handle == NULL) {
        fprintf(stderr, "%s: error %lu\n", path, GetLastError());
        exit(1);
    }
    resolve("fa_abi_version", &library.abi_version);
    resolve("fa_config_auto", &library.config_auto);
    resolve("fa_mha", &library.mha);
    resolve("fa_isa", &library.isa);
    resolve("fa_pool_create", &library.pool_create);
    resolve("fa_pool_destroy", &library.pool_destroy);
    CHECK(library.abi_version() == FA_ABI_VERSION, "abi %u", (unsigned)library.abi_version());
    CHECK(isa_rank(library.isa()) == machine_rank(), "isa %s", library.isa());
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
        if (library.mha(&cfg, q, k, v, HEADS, LEN, LEN, out) == FA_OK) error = distance(out, want, ELEMENTS);
    }
    free(out);
    return error;
}

/* Before the library has been asked for all cores, an answer that it keeps. */
static void affinity_counts(void) {
    fa_pool *pool = NULL;
    DWORD_PTR own = 0, of_system = 0;
    CHECK(GetProcessAffinityMask(GetCurrentProcess(), &own, &of_system), "error %lu", GetLastError());
    CHECK(SetProcessAffinityMask(GetCurrentProcess(), own & (~own + 1)), "error %lu", GetLastError());
    CHECK(library.pool_create(0, &pool) == FA_OK, "a pool for all cores");
    if (pool != NULL) CHECK(pool->width(pool->ctx) == 1, "%d threads on one core", (int)pool->width(pool->ctx));
    library.pool_destroy(pool);
    CHECK(SetProcessAffinityMask(GetCurrentProcess(), own), "error %lu", GetLastError());
}

/* Calls the library while it is there and ends when it has been let go: what is kept for each
 * thread is cleaned up after that. */
static HANDLE used, let_go;
static double error_in_thread;

static DWORD WINAPI outlive(void *argument) {
    (void)argument;
    error_in_thread = use(3);
    SetEvent(used);
    WaitForSingleObject(let_go, INFINITE);
    return 0;
}

int main(void) {
    path = getenv("FA_SHARED_LIBRARY");
    if (path == NULL) {
        fputs("FA_SHARED_LIBRARY is not set: it has to name the shared library\n", stderr);
        return 1;
    }
    q = random_normal(ELEMENTS), k = random_normal(ELEMENTS), v = random_normal(ELEMENTS);
    want = need(ELEMENTS * sizeof *want);
    double bound = 1e-5 * largest(v, ELEMENTS);
    ref_attention(q, k, v, HEADS, LEN, LEN, DIM, true, 1 / sqrt(DIM), want);
    used = CreateEventA(NULL, FALSE, FALSE, NULL), let_go = CreateEventA(NULL, FALSE, FALSE, NULL);

    for (int round = 0; round < 3; round++) {
        load();
        if (round == 0) affinity_counts();
        CHECK(use(1) <= bound, "round %d: one thread", round);
        CHECK(use(0) <= bound, "round %d: all cores", round);
        CHECK(use(4) <= bound, "round %d: four threads", round);

        HANDLE thread = CreateThread(NULL, 0, outlive, NULL, 0, NULL);
        CHECK(thread != NULL, "error %lu", GetLastError());
        WaitForSingleObject(used, INFINITE);
        CHECK(error_in_thread <= bound, "round %d: a thread of the program's", round);
        uint32_t (*abi_version)(void) = library.abi_version;
        CHECK(FreeLibrary(library.handle), "error %lu", GetLastError());
        memset(&library, 0, sizeof library);
        /* The library's threads sleep in it. */
        HMODULE handle = NULL;
        CHECK(GetModuleHandleExA(GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT, "flash_attention.dll", &handle),
              "round %d: the library does not stay in memory", round);
        if (handle != NULL) CHECK(abi_version() == FA_ABI_VERSION, "an address from before FreeLibrary");
        SetEvent(let_go);
        WaitForSingleObject(thread, INFINITE);
        CloseHandle(thread);
    }
    free(q), free(k), free(v), free(want);
    return check_result();
}
