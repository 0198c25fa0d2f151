/* Loading the library creates nothing and changes nothing: no thread, file, memory, signal handler,
 * variable. Using it on one thread does not, either. */

#define _GNU_SOURCE

#include <dirent.h>
#include <link.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "calls.h"

extern char **environ;

enum { SIGNALS = 64, MAPS = 1000 };

/* What the process has. */
struct state {
    int tasks, files, maps, signals;
    size_t environment;
    sigset_t mask;
    struct sigaction actions[SIGNALS + 1];
    unsigned mxcsr;
    mode_t umask;
    char directory[1000];
};

static char maps[2][MAPS][300];

static int entries(const char *folder) {
    DIR *open = opendir(folder);
    int n = 0;
    if (open == NULL) {
        fprintf(stderr, "cannot read %s\n", folder);
        exit(2);
    }
    for (struct dirent *entry; (entry = readdir(open)) != NULL;) n += entry->d_name[0] != '.';
    closedir(open);
    return n;
}

static void look(struct state *state, int which) {
    memset(state, 0, sizeof *state);
    state->tasks = entries("/proc/self/task"), state->files = entries("/proc/self/fd");
    for (char **variable = environ; *variable != NULL; variable++)
        for (char *c = *variable; *c != 0; c++) state->environment = 31 * state->environment + (unsigned char)*c;
    (void)pthread_sigmask(SIG_BLOCK, NULL, &state->mask);
    for (int i = 1; i <= SIGNALS; i++) (void)sigaction(i, NULL, &state->actions[i]);
#ifdef __x86_64__
    state->mxcsr = __builtin_ia32_stmxcsr() & ~0x3fu;
#endif
    state->umask = umask(0), umask(state->umask);
    if (getcwd(state->directory, sizeof state->directory) == NULL) exit(2);
    FILE *file = fopen("/proc/self/maps", "r");
    while (file != NULL && state->maps < MAPS && fgets(maps[which][state->maps], 300, file) != NULL) state->maps++;
    fclose(file);
}

static void compare(const struct state *before, const struct state *now, const char *when) {
    CHECK(now->tasks == before->tasks, "%s: %d threads, %d before", when, now->tasks, before->tasks);
    CHECK(now->files == before->files, "%s: %d open files, %d before", when, now->files, before->files);
    CHECK(now->environment == before->environment, "%s: the environment", when);
    CHECK(memcmp(&now->mask, &before->mask, sizeof now->mask) == 0, "%s: the signal mask", when);
    for (int i = 1; i <= SIGNALS; i++) {
        CHECK(now->actions[i].sa_handler == before->actions[i].sa_handler, "%s: the handler of signal %d", when, i);
        CHECK(now->actions[i].sa_flags == before->actions[i].sa_flags, "%s: flags of signal %d", when, i);
    }
    CHECK(now->mxcsr == before->mxcsr, "%s: MXCSR %#x, %#x before", when, now->mxcsr, before->mxcsr);
    CHECK(now->umask == before->umask, "%s: umask", when);
    CHECK(strcmp(now->directory, before->directory) == 0, "%s: the working directory", when);
}

/* Bytes of a mapping that belonged to none before. */
static size_t new_bytes(const char *line, const struct state *before) {
    char *end;
    size_t start = strtoull(line, &end, 16), stop = strtoull(end + 1, NULL, 16), bytes = stop - start;
    for (int i = 0; i < before->maps; i++) {
        size_t from = strtoull(maps[0][i], &end, 16), to = strtoull(end + 1, NULL, 16);
        from = from > start ? from : start, to = to < stop ? to : stop;
        if (from < to) bytes -= to - from;
    }
    return bytes;
}

static bool is_named(const char *line) {
    return strpbrk(line, "/[") != NULL;
}

/* The loader takes what it notes down from the heap. That of musl is pieces without a name, which
 * the system joins with their neighbours. */
#if defined __linux__ && !defined __GLIBC__
enum { UNNAMED_HEAP = 1 << 16 };
#else
enum { UNNAMED_HEAP = 0 };
#endif

/* Memory that was not there is the library's file, or its variables right behind that, or the heap,
 * of which a piece may be new. */
static void judge_maps(const struct state *before, const struct state *now, const char *file) {
    bool behind = false;
    size_t unnamed = 0;
    for (int i = 0; i < now->maps; i++) {
        const char *line = maps[1][i];
        size_t bytes = new_bytes(line, before);
        bool ours = strstr(line, file) != NULL, variables = behind && !is_named(line);
        if (bytes > 0 && !is_named(line) && !variables) unnamed += bytes;
        CHECK(bytes == 0 || ours || !is_named(line) || strstr(line, "[heap]") != NULL || strstr(line, "libgcc_s") != NULL,
              "new memory: %s", line);
        CHECK(bytes == 0 || variables || unnamed <= UNNAMED_HEAP, "%zu new bytes without a name: %s", unnamed, line);
        behind = ours;
    }
}

/* Functions that the loader runs: the compiler's own, and the one by which Rust's standard library
 * takes note of the arguments of main; on 64-bit Arm two more of the compiler's, which ask what the
 * processor has. */
#ifdef __aarch64__
enum { CONSTRUCTORS = 4 };
#else
enum { CONSTRUCTORS = 2 };
#endif

static void judge_constructors(void *handle) {
    struct link_map *map = NULL;
    size_t bytes = 0, init = 0;
    CHECK(dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0, "%s", dlerror());
    for (const ElfW(Dyn) *entry = map->l_ld; entry->d_tag != DT_NULL; entry++) {
        if (entry->d_tag == DT_INIT_ARRAYSZ) bytes = entry->d_un.d_val;
        if (entry->d_tag == DT_PREINIT_ARRAYSZ) init += entry->d_un.d_val;
    }
    CHECK(bytes <= CONSTRUCTORS * sizeof(void *) && init == 0, "%zu functions run at load", bytes / sizeof(void *));
}

int main(void) {
    static struct state before, loaded, used;
    static float *want[CALLS];
    const char *path = getenv("FA_SHARED_LIBRARY"), *name = path != NULL ? strrchr(path, '/') : NULL;
    if (name == NULL) {
        fputs("FA_SHARED_LIBRARY is not set: it has to be the path of the shared library\n", stderr);
        return 1;
    }
    make_data();
    look(&before, 0), look(&before, 0);
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    look(&loaded, 1);
    struct library lib;
    if (!library_of(handle, &lib)) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    compare(&before, &loaded, "after loading");
    judge_maps(&before, &loaded, name);
    judge_constructors(handle);

    all_calls(&lib, want);
    look(&used, 1);
    compare(&before, &used, "after use by one thread");
    CHECK(call_gives(&lib, 2 * MHA, 3, NULL, want[2 * MHA]), "three threads");
    look(&used, 1);
    CHECK(used.tasks > before.tasks, "three threads made none");
    used.tasks = before.tasks;
    compare(&before, &used, "after use by three threads");
    return check_result();
}
