/* Signal handlers that compute interrupt calls all the time: the same bits, on every kind of stack.
 * Whose handlers run on the library's threads is as the header says. */

#define _GNU_SOURCE

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/time.h>
#include <unistd.h>

#include "calls.h"

static struct library lib;
static float *want[CALLS];

static volatile sig_atomic_t interrupts, bad_handlers;
static volatile float seed[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};

/* Every vector register that the compiler can get, and MXCSR. */
__attribute__((noinline)) static float compute(void) {
    float x[64], sum = 0;
    for (int i = 0; i < 64; i++) x[i] = seed[i % 16] * 1.25f;
    for (int round = 0; round < 20; round++)
        for (int i = 0; i < 64; i++) x[i] = x[i] * 1.5f - x[(i + 1) % 64] * 0.5f;
    for (int i = 0; i < 64; i++) sum += x[i];
    return sum;
}

#ifdef __x86_64__
/* Overwrites registers that are as wide as the machine has them. */
__attribute__((target("avx2,fma"), noinline)) static void overwrite_256(void) {
    __asm__ volatile("vpcmpeqd %%ymm0, %%ymm0, %%ymm0\n vmovaps %%ymm0, %%ymm5\n vmovaps %%ymm0, %%ymm15\n vzeroupper"
                     : : : "xmm0", "xmm5", "xmm15");
}

__attribute__((target("avx512f,avx512bw"), noinline)) static void overwrite_512(void) {
    __asm__ volatile("vpternlogd $255, %%zmm31, %%zmm31, %%zmm31\n vmovaps %%zmm31, %%zmm2\n vmovaps %%zmm31, %%zmm17\n"
                     "kxorq %%k1, %%k1, %%k1\n vzeroupper" : : : "xmm2", "xmm17", "xmm31");
}
#endif

static float computed;
static int rank;

static void handler(int signal) {
    (void)signal;
    int before = errno;
    interrupts++;
    if (compute() != computed) bad_handlers++;
#ifdef __x86_64__
    if (rank >= 1) overwrite_256();
    if (rank >= 3) overwrite_512();
    __builtin_ia32_ldmxcsr(0x9fc0);
#endif
    errno = before;
}

static void tick(long microseconds) {
    struct itimerval timer = {{0, microseconds}, {0, microseconds}};
    if (setitimer(ITIMER_REAL, &timer, NULL) != 0) exit(2);
}

/* In intervals that fit no rhythm of a call's. */
static void under_fire(int flags) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    fa_pool *pool = NULL;
    CHECK(sigaction(SIGALRM, &action, NULL) == 0, "sigaction");
    tick(197);
    for (uint32_t threads = 1; threads <= 3; threads += 2)
        for (int call = 0; call < CALLS; call++) {
            bool good = call_gives(&lib, call, threads, NULL, want[call]);
            CHECK(good, "%s, %s, %u threads: other bits or a status", lib.isa(), call_name(call), (unsigned)threads);
        }
    for (int i = 0; i < 2; i++) {
        CHECK(fa_pool_create(3, &pool) == FA_OK, "a pool");
        for (int call = 2 * RUN_F32; call < CALLS; call++)
            CHECK(call_gives(&lib, call, 1, pool, want[call]), "%s, %s, pool", lib.isa(), call_name(call));
        fa_pool_destroy(pool);
    }
    tick(0);
}

static void under_one_isa(void) {
    rank = isa_rank(lib.isa());
    all_calls(&lib, want);
    under_fire(SA_RESTART);
}

/* How many threads of the process block SIGUSR1, and how many there are. */
static int blocking(int *tasks) {
    DIR *open = opendir("/proc/self/task");
    int n = *tasks = 0;
    if (open == NULL) exit(2);
    for (struct dirent *entry; (entry = readdir(open)) != NULL;) {
        char path[300], line[200];
        if (entry->d_name[0] == '.') continue;
        ++*tasks;
        snprintf(path, sizeof path, "/proc/self/task/%s/status", entry->d_name);
        FILE *file = fopen(path, "r");
        while (file != NULL && fgets(line, sizeof line, file) != NULL)
            if (strncmp(line, "SigBlk:", 7) == 0) n += strtoull(line + 7, NULL, 16) >> (SIGUSR1 - 1) & 1;
        if (file != NULL) fclose(file);
    }
    closedir(open);
    return n;
}

static pthread_t main_thread;
static volatile sig_atomic_t on_main, elsewhere;

static void where(int signal) {
    (void)signal;
    if (pthread_equal(pthread_self(), main_thread)) on_main++;
    else elsewhere++;
}

static void masks(void) {
    sigset_t usr1, before;
    int tasks, tasks_before, blocked_before = blocking(&tasks_before);
    fa_pool *pool = NULL;
    /* Threads of pools that are gone take a moment to end. */
    for (int wait = 0, again = 0; again < 10 && wait < 500; wait++) {
        usleep(10000);
        blocked_before = blocking(&tasks);
        again = tasks == tasks_before ? again + 1 : 0;
        tasks_before = tasks;
    }
    sigemptyset(&usr1), sigaddset(&usr1, SIGUSR1);

    pthread_sigmask(SIG_BLOCK, &usr1, &before);
    CHECK(fa_pool_create(4, &pool) == FA_OK, "a pool");
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    int blocked = blocking(&tasks);
    CHECK(tasks - tasks_before == 3 && blocked - blocked_before == 3, "%d of %d new threads block the signal",
          blocked - blocked_before, tasks - tasks_before);
    CHECK(call_gives(&lib, 2 * RUN_F32, 1, pool, want[2 * RUN_F32]), "a pool that blocks a signal");
    fa_pool_destroy(pool);

    sigset_t now;
    pthread_sigmask(SIG_BLOCK, NULL, &now);
    for (int i = 1; i <= 64; i++)
        CHECK(sigismember(&now, i) == sigismember(&before, i), "signal %d in the caller's mask", i);
}

/* A signal for the process comes to a thread of the program's if the library's block it, because
 * all signals were blocked at the first call that needed threads. */
static void first_call_with_signals_blocked(void) {
    sigset_t all, before;
    main_thread = pthread_self();
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    float *out = need(MOST * sizeof *out);
    CHECK(make_call(&lib, 2 * MHA, 3, NULL, out) == FA_OK, "first call");
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    struct sigaction action = {.sa_handler = where};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0, "sigaction");
    for (int i = 0; i < 50; i++) {
        (void)kill(getpid(), SIGUSR1);
        CHECK(make_call(&lib, 2 * MHA, 3, NULL, out) == FA_OK, "call %d", i);
        CHECK(error_of(2 * MHA, out) <= 1e-5, "call %d", i);
    }
    CHECK(on_main == 50 && elsewhere == 0, "%d signals on main's thread, %d on others", (int)on_main, (int)elsewhere);
    free(out);
}

int main(void) {
    static unsigned char other_stack[64 << 10];
    stack_t stack = {.ss_sp = other_stack, .ss_size = sizeof other_stack};
    make_data();
    lib = LINKED_LIBRARY;
    computed = compute();
    CHECK(sigaltstack(&stack, NULL) == 0, "sigaltstack");
    first_call_with_signals_blocked();
    for_each_isa(under_one_isa);
    under_one_isa();
    under_fire(0);
    under_fire(SA_ONSTACK);
    masks();
    CHECK(interrupts > 500, "%d interrupts", (int)interrupts);
    CHECK(bad_handlers == 0, "%d of %d handlers computed something else", (int)bad_handlers, (int)interrupts);
    return check_result();
}
