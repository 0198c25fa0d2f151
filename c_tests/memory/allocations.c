/* Allocations that fail: each of a call's in turn, on one thread and on several at once; and memory
 * of which only so much is left, for calls with several threads. FA_ERR_MEMORY or the right bits,
 * nothing lost, and the next call works. */

#define _GNU_SOURCE

#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

/* Sanitizers and other machines' libraries have allocators that cannot be replaced like this. */
#if defined __GLIBC__ && !defined __SANITIZE_ADDRESS__ && !defined __SANITIZE_THREAD__

/* ---- The allocator of this program, and so of the library in it. ---- */

void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);
void __libc_free(void *);

/* This thread's: allocations until one fails (counted while positive), whether all after it do,
 * too, and how many blocks more than before it holds. */
static _Thread_local long until_failure = -1, held;
static _Thread_local bool failed, for_good;

/* All threads': bytes that may be got, if not negative. */
static atomic_long budget = -1;
static atomic_bool limited;

static bool grants(size_t bytes) {
    if (until_failure > 0 && --until_failure == 0) {
        failed = true;
        return false;
    }
    if (until_failure == 0 && for_good) return false;
    if (!limited) return true;
    if (atomic_fetch_sub(&budget, (long)bytes) >= (long)bytes) return true;
    atomic_fetch_add(&budget, (long)bytes);
    failed = true;
    return false;
}

/* What the system adds to a block counts, so that what is given back is what was taken. */
static void *got(void *block, size_t bytes) {
    if (block == NULL) return NULL;
    held++;
    if (limited) atomic_fetch_sub(&budget, (long)malloc_usable_size(block) - (long)bytes);
    return block;
}

void *malloc(size_t n) { return grants(n) ? got(__libc_malloc(n), n) : NULL; }
void *calloc(size_t n, size_t size) { return grants(n * size) ? got(__libc_calloc(n, size), n * size) : NULL; }
void *memalign(size_t align, size_t n) { return grants(n) ? got(__libc_memalign(align, n), n) : NULL; }
void *aligned_alloc(size_t align, size_t n) { return memalign(align, n); }

int posix_memalign(void **block, size_t align, size_t n) {
    void *b = memalign(align, n);
    if (b == NULL) return ENOMEM;
    *block = b;
    return 0;
}

void free(void *block) {
    if (block == NULL) return;
    held--;
    if (limited) atomic_fetch_add(&budget, (long)malloc_usable_size(block));
    __libc_free(block);
}

void *realloc(void *block, size_t n) {
    if (block == NULL) return malloc(n);
    if (!grants(n)) return NULL;
    long before = (long)malloc_usable_size(block);
    void *other = __libc_realloc(block, n);
    if (limited && other != NULL) atomic_fetch_add(&budget, before + (long)n - (long)malloc_usable_size(other));
    return other;
}

/* ---- Calls that allocate. ---- */

enum { HEADS = 4, LEN = 136, D = 64, ELEMENTS = HEADS * LEN * D };
enum call { FORWARD, FORWARD_I8, MHA, CALLS };
static const char *const call_names[] = {"fa_forward_f32", "fa_forward_i8", "fa_mha"};
static float *q, *k, *v, *want[CALLS];
static int8_t *q8;

static fa_status make(enum call call, uint32_t num_threads, float *out) {
    fa_config cfg = {.head_dim = D, .softmax_scale = 0.125f, .num_threads = num_threads};
    switch (call) {
    case FORWARD: return fa_forward_f32(&cfg, q, k, v, LEN, LEN, out);
    case FORWARD_I8: return fa_forward_i8(&cfg, q8, q8, q8, 0.1f, 0.1f, 0.1f, LEN, LEN, out);
    default: return fa_mha(&cfg, q, k, v, HEADS, LEN, LEN, out);
    }
}

static size_t elements(enum call call) {
    return call == MHA ? ELEMENTS : LEN * D;
}

static bool all_bytes(const float *out, unsigned char byte) {
    for (size_t i = 0; i < ELEMENTS * sizeof *out; i++) {
        if (((const unsigned char *)out)[i] != byte) return false;
    }
    return true;
}

/* What is wrong with what a call has returned and done, or NULL. */
static const char *wrong(enum call call, fa_status status, const float *out) {
    if (status == FA_OK) return same_bits(out, want[call], elements(call)) ? NULL : "other bits";
    if (status != FA_ERR_MEMORY) return fa_status_string(status);
    return all_bytes(out, 0xa5) ? NULL : "FA_ERR_MEMORY, but the output has changed";
}

/* ---- One thread: the n-th allocation fails, alone or with all that come after it. ---- */

struct found {
    int calls, refused;
    const char *what;
};

/* Every allocation of a call in turn, then a call that can have all memory. */
static struct found each_in_turn(enum call call, bool and_all_after, float *out) {
    struct found found = {0, 0, NULL};
    for_good = and_all_after;
    for (long n = 1; found.what == NULL; n++) {
        memset(out, 0xa5, ELEMENTS * sizeof *out);
        until_failure = n, failed = false, held = 0;
        fa_status status = make(call, 1, out);
        until_failure = -1;
        found.what = wrong(call, status, out);
        found.calls++;
        if (held != 0) found.what = "memory is lost";
        if (!failed && status != FA_OK) found.what = "refused with all memory";
        /* Scratch memory for one thread is tried where that for several fails, but there is no
         * third try. */
        if (n == 1 && and_all_after && status != FA_ERR_MEMORY) found.what = "computed without memory";
        if (!failed) break;
        found.refused += status != FA_OK;
        memset(out, 0xa5, ELEMENTS * sizeof *out);
        if (make(call, 1, out) != FA_OK || wrong(call, FA_OK, out) != NULL) found.what = "the next call";
    }
    return found;
}

static void on_one_thread(void) {
    float *out = need(ELEMENTS * sizeof *out);
    for (int i = 0; i < 2 * CALLS; i++) {
        enum call call = i / 2;
        struct found found = each_in_turn(call, i % 2, out);
        CHECK(found.what == NULL, "%s, call %d: %s", call_names[call], found.calls, found.what);
        CHECK(i % 2 == 0 || found.refused > 0, "%s never lacked memory", call_names[call]);
        CHECK(found.calls > 1, "%s: nothing failed", call_names[call]);
    }
    free(out);
}

static void *often(void *result) {
    struct found *all = result;
    float *out = need(ELEMENTS * sizeof *out);
    for (int i = 0; i < 60 && all->what == NULL; i++) {
        struct found found = each_in_turn(i % CALLS, i % 2, out);
        all->calls += found.calls, all->refused += found.refused, all->what = found.what;
    }
    free(out);
    return NULL;
}

/* Each with failures of its own, while the others call as well. */
static void on_threads_at_once(void) {
    enum { N = 6 };
    pthread_t threads[N];
    struct found found[N] = {{0, 0, NULL}};
    for (int i = 0; i < N; i++) {
        if (pthread_create(&threads[i], NULL, often, &found[i]) != 0) exit(2);
    }
    for (int i = 0; i < N; i++) {
        pthread_join(threads[i], NULL);
        CHECK(found[i].what == NULL, "thread %d: %s", i, found[i].what);
        CHECK(found[i].refused > 0, "thread %d never lacked memory", i);
    }
}

/* A pool of one: its structure is all that is allocated. */
static void pools_of_one(void) {
    fa_pool *pool = (void *)&pool, *before = pool;
    for (long n = 1;; n++) {
        until_failure = n, failed = false, held = 0;
        fa_status status = fa_pool_create(1, &pool);
        until_failure = -1;
        if (!failed) {
            CHECK(status == FA_OK && held == 1, "a pool: %s, %ld blocks", fa_status_string(status), held);
            break;
        }
        /* The library asks before it allocates: what fails in between would end the process. */
        CHECK(n == 1, "allocation %ld failed", n);
        CHECK(status == FA_ERR_MEMORY && pool == before && held == 0, "a pool: %s", fa_status_string(status));
        if (n == 1) {
            CHECK(fa_pool_create(1, &pool) == FA_OK, "a pool");
            break;
        }
    }
    fa_pool_destroy(pool);
    CHECK(held == 0 || held == 1, "%ld blocks", held);
}

/* ---- Several threads: so many bytes are left. ---- */

static void limit_to(long bytes) {
    limited = false;
    budget = bytes;
    limited = bytes >= 0;
}

/* In a process of its own, which the library's threads have never been in: how many calls computed,
 * or what was wrong. */
static int in_child(const char *(*run)(long, int *), long bytes) {
    int pipes[2], computed = 0;
    if (pipe(pipes) != 0) exit(2);
    fflush(NULL);
    pid_t child = fork();
    if (child < 0) exit(2);
    if (child == 0) {
        alarm(60);
        const char *what = run(bytes, &computed);
        limit_to(-1);
        if (what != NULL) fprintf(stderr, "%ld bytes: %s\n", bytes, what);
        if (write(pipes[1], &computed, sizeof computed) != sizeof computed) _exit(2);
        _exit(what != NULL);
    }
    int status = 0;
    close(pipes[1]);
    if (read(pipes[0], &computed, sizeof computed) != sizeof computed) computed = -1;
    close(pipes[0]);
    if (waitpid(child, &status, 0) != child) exit(2);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%ld bytes: %s %d", bytes,
          WIFEXITED(status) ? "status" : "killed by signal", WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
    return computed;
}

static const char *call_within(long bytes, uint32_t threads, float *out, int *computed) {
    memset(out, 0xa5, ELEMENTS * sizeof *out);
    limit_to(bytes);
    fa_status status = make(MHA, threads, out);
    limit_to(-1);
    *computed += status == FA_OK;
    return wrong(MHA, status, out);
}

/* The first call, which makes the threads; then one with all memory. */
static const char *first_call(long bytes, int *computed) {
    float *out = need(ELEMENTS * sizeof *out);
    const char *what = call_within(bytes, 4, out, computed);
    memset(out, 0xa5, ELEMENTS * sizeof *out);
    if (what == NULL && make(MHA, 4, out) != FA_OK) what = "the next call";
    return what != NULL ? what : wrong(MHA, FA_OK, out);
}

/* Calls when the threads are there, as many as fill what queues of tasks have. */
static const char *later_calls(long bytes, int *computed) {
    enum { CALLS_EACH = 64 };
    float *out = need(ELEMENTS * sizeof *out);
    if (make(MHA, 4, out) != FA_OK) return "warming up";
    for (int i = 0; i < CALLS_EACH; i++) {
        const char *what = call_within(bytes, 2 + (uint32_t)i % 3, out, computed);
        if (what != NULL) return what;
    }
    free(out);
    return NULL;
}

/* The general call, with a pool of the library's: only the pool allocates, and can do without. */
static const char *pool_calls(long bytes, int *computed) {
    enum { CALLS_EACH = 64 };
    float *out = need(ELEMENTS * sizeof *out);
    fa_pool *pool = NULL;
    fa_attention a;
    size_t ws_bytes = 0;
    if (fa_attention_init(&a, sizeof a) != FA_OK || fa_pool_create(2, &pool) != FA_OK) return "init";
    a.batch = 1, a.heads_q = a.heads_kv = HEADS, a.len_q = a.len_kv = LEN, a.dim_qk = a.dim_v = D, a.scale = 0.125f;
    a.q = (fa_tensor){.data = q, .stride = {0, LEN * D * 4, D * 4}};
    a.k = a.q, a.k.data = k, a.v = a.q, a.v.data = v, a.o = a.q, a.o.data = out;
    if (fa_attention_workspace(&a, 2, &ws_bytes) != FA_OK) return "workspace";
    void *ws = need(ws_bytes);
    for (int i = 0; i < CALLS_EACH; i++, ++*computed) {
        memset(out, 0xa5, ELEMENTS * sizeof *out);
        limit_to(bytes);
        fa_status status = fa_attention_run(&a, ws, ws_bytes, pool);
        limit_to(-1);
        if (status != FA_OK || !same_bits(out, want[MHA], ELEMENTS)) return "a pool without memory";
    }
    free(ws);
    fa_pool_destroy(pool);
    free(out);
    return NULL;
}

static void on_several_threads(void) {
    int computed = 0, calls = 0;
    for (long bytes = 0; bytes < 4 << 20; bytes += bytes < 4096 ? 512 : bytes / 8, calls++) {
        computed += in_child(first_call, bytes);
    }
    CHECK(computed > 0 && computed < calls, "%d of %d first calls computed", computed, calls);
    printf("%d of %d first calls with 4 threads computed\n", computed, calls);
    size_t scratch = 0;
    fa_config cfg = {.head_dim = D, .softmax_scale = 0.125f, .num_threads = 1};
    CHECK(fa_scratch_bytes(&cfg, FA_DTYPE_F32, HEADS, LEN, LEN, &scratch) == FA_OK && scratch > 0, "scratch");
    computed = calls = 0;
    for (long more = 0; more < 8192; more += 256, calls++) {
        in_child(pool_calls, more);
        computed += in_child(later_calls, more) > 0;
        computed += in_child(later_calls, (long)scratch + more) > 0, calls++;
    }
    CHECK(computed > 0 && computed < calls, "of %d rounds with 2 to 4 threads %d computed", calls, computed);
}

int main(void) {
    q = random_normal(ELEMENTS), k = random_normal(ELEMENTS), v = random_normal(ELEMENTS);
    q8 = need(LEN * D);
    for (int i = 0; i < LEN * D; i++) q8[i] = (int8_t)(i * 37 % 255 - 127);
    for (int call = 0; call < CALLS; call++) {
        want[call] = need(ELEMENTS * sizeof(float));
        CHECK(make(call, 1, want[call]) == FA_OK, "%s", call_names[call]);
    }
    /* The first things that a process does with several threads are children's. */
    on_several_threads();
    on_one_thread();
    pools_of_one();
    on_threads_at_once();
    for (int call = 0; call < CALLS; call++) free(want[call]);
    free(q), free(k), free(v), free(q8);
    return check_result();
}

#else

int main(void) {
    puts("The allocator cannot be replaced here.");
    return 0;
}

#endif
