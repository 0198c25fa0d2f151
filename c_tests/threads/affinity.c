/* "All cores" are those that the process may use: CPU affinity and the quota of its control group.
 * Each in a process of its own, since the library asks once. */

#define _GNU_SOURCE

#include <dirent.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "calls.h"

static struct library lib;

static int count_tasks(void) {
    DIR *tasks = opendir("/proc/self/task");
    int n = 0;
    if (tasks == NULL) exit(2);
    for (struct dirent *entry; (entry = readdir(tasks)) != NULL;) n += entry->d_name[0] != '.';
    closedir(tasks);
    return n;
}

/* Whether results are right and the library takes `cores` for all that there are. */
static void use(const char *where, int cores) {
    static float *want[CALLS];
    all_calls(&lib, want);
    CHECK(count_tasks() == 1, "%s: %d threads", where, count_tasks());
    for (int call = 0; call < CALLS; call++)
        CHECK(call_gives(&lib, call, 0, NULL, want[call]), "%s, all cores: %s", where, call_name(call));
    CHECK(count_tasks() == cores, "%s: num_threads = 0 made it %d threads", where, count_tasks());

    fa_pool *pool = NULL;
    CHECK(fa_pool_create(0, &pool) == FA_OK, "%s: a pool", where);
    if (pool == NULL) return;
    CHECK(pool->width(pool->ctx) == cores, "%s: a pool of %d", where, (int)pool->width(pool->ctx));
    CHECK(count_tasks() == 2 * cores - 1, "%s: %d threads with a pool", where, count_tasks());
    for (int call = 0; call < CALLS; call++)
        CHECK(call_gives(&lib, call, 0, pool, want[call]), "%s, pool: %s", where, call_name(call));
    fa_pool_destroy(pool);

    /* A number that is given counts, whatever the cores. */
    CHECK(call_gives(&lib, 2 * MHA, 4, NULL, want[2 * MHA]), "%s, four threads", where);
    CHECK(count_tasks() >= 4, "%s: num_threads = 4 made it %d threads", where, count_tasks());
}

/* ---- Control groups ---- */

/* Where those of this process are, in the tree of either version; empty if there is none. */
static char version_1[500], version_2[500];

static void find_groups(void) {
    char line[400];
    FILE *file = fopen("/proc/self/cgroup", "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        char *controllers = strchr(line, ':'), *path = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        if (path == NULL) continue;
        *path++ = 0;
        path[strcspn(path, "\n")] = 0;
        if (strcmp(path, "/") == 0) *path = 0;
        controllers++;
        if (*controllers == 0) snprintf(version_2, sizeof version_2, "/sys/fs/cgroup%s", path);
        else if (strcmp(controllers, "cpu") == 0 || strncmp(controllers, "cpu,", 4) == 0)
            snprintf(version_1, sizeof version_1, "/sys/fs/cgroup/%s%s", controllers, path);
    }
    if (file != NULL) fclose(file);
}

static double number_in(const char *folder, const char *name) {
    char path[600];
    double number = 0;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "r");
    if (file != NULL && fscanf(file, "%lf", &number) != 1) number = 0;
    if (file != NULL) fclose(file);
    return number;
}

/* Cores that the quota which the tests run under is worth. */
static int quota(void) {
    double of_1 = number_in(version_1, "cpu.cfs_quota_us") / number_in(version_1, "cpu.cfs_period_us");
    double of_2 = number_in(version_2, "cpu.max") / 100000;
    double cores = of_1 > 0 ? of_1 : of_2 > 0 ? of_2 : CPU_SETSIZE;
    return cores < 1 ? 1 : (int)cores;
}

/* ---- Affinity ---- */

/* The first `n` of the cores that this process has; returns how many it gets. */
static int pin(int n) {
    cpu_set_t has, gets;
    CPU_ZERO(&gets);
    if (sched_getaffinity(0, sizeof has, &has) != 0) exit(2);
    for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&gets) < n; i++)
        if (CPU_ISSET(i, &has)) CPU_SET(i, &gets);
    if (sched_setaffinity(0, sizeof gets, &gets) != 0) exit(2);
    return CPU_COUNT(&gets);
}

static void pinned(int n) {
    char where[40];
    int cores = pin(n), most = quota();
    if (cores > most) cores = most;
    snprintf(where, sizeof where, "on %d cores", cores);
    use(where, cores);
}

/* The answer is not asked for again. */
static void pinned_later(int n) {
    static float *want[CALLS];
    fa_pool *pools[2] = {NULL, NULL};
    CHECK(fa_pool_create(0, &pools[0]) == FA_OK, "a pool");
    (void)pin(n);
    CHECK(fa_pool_create(0, &pools[1]) == FA_OK, "a pool");
    CHECK(pools[0]->width(pools[0]->ctx) == pools[1]->width(pools[1]->ctx), "the answer has changed");
    all_calls(&lib, want);
    for (int call = 0; call < CALLS; call++)
        CHECK(call_gives(&lib, call, 0, pools[1], want[call]), "crowded: %s", call_name(call));
    fa_pool_destroy(pools[0]), fa_pool_destroy(pools[1]);
}

static char group[600];

static bool write_to(const char *file, const char *text) {
    char path[700];
    snprintf(path, sizeof path, "%s/%s", group, file);
    FILE *open = fopen(path, "w");
    bool good = open != NULL && fputs(text, open) >= 0;
    return open != NULL && fclose(open) == 0 && good;
}

/* Makes a group below that of this process, with a quota of as much as one core. */
static bool make_group(void) {
    const char *parents[] = {version_1, version_2};
    for (int i = 0; i < 2; i++) {
        if (*parents[i] == 0) continue;
        snprintf(group, sizeof group, "%s/flash_attention_test_%d", parents[i], (int)getpid());
        if (mkdir(group, 0755) != 0) continue;
        if (i == 0 ? write_to("cpu.cfs_period_us", "100000") && write_to("cpu.cfs_quota_us", "100000")
                   : write_to("cpu.max", "100000 100000"))
            return true;
        (void)rmdir(group);
    }
    return false;
}

static void with_quota(int unused) {
    (void)unused;
    char pid[20];
    snprintf(pid, sizeof pid, "%d", (int)getpid());
    CHECK(write_to("cgroup.procs", pid), "cannot join %s", group);
    use("with a quota of one core", 1);
}

/* ---- */

static void in_child(void (*run)(int), int argument, const char *what) {
    int status = -1;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        alarm(60);
        run(argument);
        _exit(check_result());
    }
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s: wait status %#x",
          what, (unsigned)status);
}

int main(void) {
    make_data();
    lib = LINKED_LIBRARY;
    find_groups();
    in_child(pinned, 1, "one core");
    in_child(pinned, 2, "two cores");
    in_child(pinned_later, 1, "one core, later");
    if (make_group()) {
        in_child(with_quota, 0, "a quota");
        CHECK(rmdir(group) == 0, "cannot remove %s", group);
    } else {
        /* Needs root, and a tree that is not mounted read-only. */
        puts("skipped: no control group can be made here, so that its quota is not tested");
    }
    return check_result();
}
