/* The stack that calls need: all kinds of calls, on a thread with 64 KiB, of which the header
 * leaves some to the program. */

#define _GNU_SOURCE

#include <pthread.h>
#include <sys/mman.h>

#include "calls.h"

/* Threads on 64-bit Arm have twice as much at least (PTHREAD_STACK_MIN). */
#ifdef __aarch64__
enum { STACK = 128 << 10 };
#else
enum { STACK = 64 << 10 };
#endif
enum { PROMISED = 48 << 10, PAGE = 64 << 10 };

static struct library lib;
static float *want[CALLS];
static unsigned char *stack;

static const unsigned char PAINT = 0xa5;

/* Bytes of the stack that have been written to. */
static size_t depth(void) {
    size_t clean = 0;
    while (clean < STACK && stack[clean] == PAINT) clean++;
    return STACK - clean;
}

static void *one_call(void *argument) {
    int call = *(int *)argument;
    *(int *)argument = call < 0 || call_gives(&lib, call, 1, NULL, want[call]);
    return argument;
}

/* On several threads, with the library's pool and with a pool of its own. */
static void *shared_call(void *argument) {
    int call = *(int *)argument;
    fa_pool *pool = NULL;
    bool good = call_gives(&lib, call, 3, NULL, want[call]);
    good = good && lib.pool_create(3, &pool) == FA_OK && call_gives(&lib, call, 1, pool, want[call]);
    lib.pool_destroy(pool);
    *(int *)argument = good;
    return argument;
}

/* Shapes of which the scratch memory is on the stack, small ones and odd ones. */
static fa_attention shape(int32_t dtype, int64_t rows, int64_t keys, int64_t dim, float *out) {
    fa_attention a = describe(&lib, dtype, 1, out);
    a.heads_q = a.heads_kv = 1, a.len_q = rows, a.len_kv = keys, a.dim_qk = a.dim_v = dim;
    a.q.stride[2] = a.o.stride[2] = 4 * dim;
    return a;
}

static void *odd_calls(void *argument) {
    static const int64_t rows[] = {1, 3, 17, 64}, keys[] = {1, 33, 256}, dims[] = {1, 8, 40, 64};
    float *out = need(MOST * sizeof *out);
    bool good = true;
    for (int32_t dtype = FA_DTYPE_F32; dtype < FA_DTYPE_Q8_0; dtype++)
        for (int n = 0; n < 4 * 3 * 4; n++) {
            fa_attention a = shape(dtype, rows[n % 4], keys[n / 4 % 3], dims[n / 12], out);
            char why[200];
            good = good && fa_attention_check(&a, why, sizeof why) == FA_OK;
            good = good && run_described(&lib, &a, NULL) == FA_OK;
            a.softcap = 5, a.flags = FA_PRECISE;
            good = good && run_described(&lib, &a, NULL) == FA_OK && run_in_parts(&lib, &a) == FA_OK;
            for (int64_t i = 0; i < a.len_q * a.dim_v; i++) good = good && isfinite(out[i]);
        }
    free(out);
    *(int *)argument = good;
    return argument;
}

static size_t on_small_stack(void *(*run)(void *), int call, const char *what) {
    pthread_t thread;
    pthread_attr_t attributes;
    int argument = call;
    memset(stack, PAINT, STACK);
    if (pthread_attr_init(&attributes) != 0 || pthread_attr_setstack(&attributes, stack, STACK) != 0 ||
        pthread_create(&thread, &attributes, run, &argument) != 0) {
        fputs("no thread with so small a stack\n", stderr);
        exit(2);
    }
    pthread_join(thread, NULL);
    pthread_attr_destroy(&attributes);
    CHECK(argument == 1, "%s, %s: other bits or a status", lib.isa(), what);
    return depth();
}

/* The very first one of the process, which finds out about the machine and makes threads. */
static void *first_call(void *argument) {
    float *out = need(MOST * sizeof *out);
    int call = *(int *)argument;
    bool good = make_call(&lib, call, 3, NULL, out) == FA_OK && error_of(call, out) <= error_bound(call, lib.isa());
    *(int *)argument = good;
    free(out);
    return argument;
}

static size_t most;

static void under_one_isa(void) {
    all_calls(&lib, want);
    /* What a thread takes that calls nothing: its own data, and that of each thread of the
     * program. */
    size_t base = on_small_stack(one_call, -1, "nothing");
    for (int call = 0; call <= CALLS; call++) {
        bool odd = call == CALLS;
        const char *name = odd ? "small problems" : call_name(call);
        size_t alone = on_small_stack(odd ? odd_calls : one_call, call, name);
        size_t shared = odd ? 0 : on_small_stack(shared_call, call, name);
        size_t used = (alone > shared ? alone : shared) - base;
        CHECK(used <= PROMISED, "%s, %s: %zu bytes of stack", lib.isa(), name, used);
        if (used > most) most = used;
    }
}

int main(void) {
    make_data();
    lib = LINKED_LIBRARY;
    /* Below it a page that may not be touched. */
    unsigned char *room = mmap(NULL, PAGE + STACK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED || mprotect(room + PAGE, STACK, PROT_READ | PROT_WRITE) != 0) return 2;
    stack = room + PAGE;
    size_t used = on_small_stack(first_call, 2 * MHA, "first call");
    CHECK(used <= PROMISED, "first call: %zu bytes of stack", used);
    for_each_isa(under_one_isa);
    CHECK(most > 16 << 10, "scratch memory was never on the stack: %zu bytes", most);
    return check_result();
}
