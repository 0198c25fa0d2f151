/* With hardly any memory left a call computes or returns FA_ERR_MEMORY; it never ends the process,
 * nor does anything that it uses or starts. */

#define _GNU_SOURCE

#include <malloc.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "limit.h"

/* A problem for several threads. */
enum { HEADS = 4, LEN = 136, DIM = 64, ELEMENTS = HEADS * LEN * DIM };
static float *q, *k, *v, *out;

/* What a call gives when nothing is short, found out by a child: in this process, and so in all
 * other children, the library must never have been used. */
static struct known {
    float want[ELEMENTS];
    size_t scratch;
} *known;

/* What the next child does. */
static uint32_t num_threads;
static bool warm;

static fa_status attend(void) {
    fa_config cfg = {.head_dim = DIM, .softmax_scale = 0.125f, .num_threads = num_threads};
    memset(out, 0xa5, ELEMENTS * sizeof *out);
    return fa_mha(&cfg, q, k, v, HEADS, LEN, LEN, out);
}

static int find_out(size_t unused) {
    (void)unused;
    fa_config cfg = {.head_dim = DIM, .softmax_scale = 0.125f, .num_threads = num_threads};
    if (attend() != FA_OK) return 20;
    memcpy(known->want, out, sizeof known->want);
    return fa_scratch_bytes(&cfg, FA_DTYPE_F32, HEADS, LEN, LEN, &known->scratch) == FA_OK ? 0 : 20;
}

/* The stack grows page by page, which the limit stops too: not what is tested here. A function of
 * its own, so that the callee's frames come to lie where it was. */
__attribute__((noinline)) static void touch_stack(void) {
    volatile char stack[1 << 20];
    for (size_t i = 0; i < sizeof stack; i += 1024) stack[i] = 0;
}

/* Gets all that there is. */
static void exhaust(void) {
    for (size_t size = 1 << 20; size > 1024; size /= 2) {
        while (malloc(size) != NULL) {}
    }
    /* Freed blocks of each small size are kept apart, each for its size alone. */
    for (size_t size = 1024; size > 0; size -= 8) {
        while (malloc(size) != NULL) {}
    }
}

/* 0: computed, 1: FA_ERR_MEMORY; anything else is wrong. */
static int judge(fa_status status) {
    if (status == FA_OK) return same_bits(out, known->want, ELEMENTS) ? 0 : 10;
    if (status != FA_ERR_MEMORY) return 20 + (int)status;
    for (size_t i = 0; i < ELEMENTS * sizeof *out; i++) {
        if (((unsigned char *)out)[i] != 0xa5) return 11;
    }
    return 1;
}

/* A call with no memory but one free block, which it can use as it likes. */
static int starved_call(size_t free_bytes) {
    touch_stack();
    void *block = free_bytes > 0 ? malloc(free_bytes) : NULL;
    if (warm) (void)attend();
    limit_memory(0);
    exhaust();
    free(block);
    return judge(attend());
}

/* A call with so much address space left: enough for some of its threads' stacks, or for none. */
static int crowded_call(size_t spare_bytes) {
    /* As in an ordinary process: large blocks go back to the system, where stacks come from. */
    mallopt(M_MMAP_THRESHOLD, 128 << 10);
    mallopt(M_TRIM_THRESHOLD, 128 << 10);
    touch_stack();
    limit_memory(spare_bytes);
    return judge(attend());
}

/* In a process of its own, which may be killed by what it does. */
static int in_child(int (*run)(size_t), size_t bytes, const char *what) {
    fflush(NULL);
    pid_t child = fork();
    if (child < 0) exit(2);
    if (child == 0) {
        alarm(20);
        _exit(run(bytes));
    }
    int status = 0;
    if (waitpid(child, &status, 0) != child) exit(2);
    CHECK(WIFEXITED(status), "%s, %u threads, %zu bytes left: killed by signal %d", what,
          (unsigned)num_threads, bytes, WTERMSIG(status));
    if (!WIFEXITED(status)) return -1;
    int code = WEXITSTATUS(status);
    CHECK(code != 10, "%s, %u threads, %zu bytes left: other bits", what, (unsigned)num_threads,
          bytes);
    CHECK(code != 11, "%s, %u threads, %zu bytes left: FA_ERR_MEMORY, but the output has changed",
          what, (unsigned)num_threads, bytes);
    CHECK(code < 20, "%s, %u threads, %zu bytes left: %s", what, (unsigned)num_threads, bytes,
          fa_status_string(code - 20));
    return code;
}

/* Each allocation of a call fails in turn: with a little more memory left, a later one. */
static void every_allocation(void) {
    const char *what = warm ? "second call" : "first call";
    CHECK(in_child(find_out, 0, "with all memory") == 0, "nothing to compare with");
    int computed = 0, refused = 0;
    for (size_t step = 0; step < 160; step++) {
        size_t scratch = known->scratch;
        size_t bytes = step < 8 ? step * scratch / 8 : scratch - 512 + (step - 8) * 80;
        int result = in_child(starved_call, bytes, what);
        computed += result == 0;
        refused += result == 1;
    }
    CHECK(refused > 0, "%s, %u threads: memory was never short", what, (unsigned)num_threads);
    CHECK(computed > 0, "%s, %u threads: memory was never enough", what, (unsigned)num_threads);
}

static void few_threads(void) {
    num_threads = 8;
    CHECK(in_child(find_out, 0, "with all memory") == 0, "nothing to compare with");
    int computed = 0;
    for (size_t spare = 0; spare <= 160; spare += 2) {
        size_t bytes = known->scratch + (spare << 15);
        computed += in_child(crowded_call, bytes, "first call, with room for some threads") == 0;
    }
    CHECK(computed > 0, "memory was never enough");
}

int main(void) {
    /* All blocks come from the heap then, where a free one is used again byte by byte. */
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    q = random_normal(ELEMENTS), k = random_normal(ELEMENTS), v = random_normal(ELEMENTS);
    out = need(ELEMENTS * sizeof *out);
    known = mmap(NULL, sizeof *known, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (known == MAP_FAILED) return 2;

    for (int i = 0; i < 4; i++) {
        num_threads = i < 2 ? 1 : 4;
        warm = i % 2;
        every_allocation();
    }
    few_threads();
    free(q), free(k), free(v), free(out);
    return check_result();
}
