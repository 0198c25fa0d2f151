/* Too little memory on demand: the system's own limit, so that whatever allocates is caught.
 * Needs _GNU_SOURCE or _POSIX_C_SOURCE. */

#ifndef LIMIT_H
#define LIMIT_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

/* Address space of this process, in bytes. */
static inline size_t address_space(void) {
    FILE *statm = fopen("/proc/self/statm", "r");
    unsigned long pages = 0;
    if (statm == NULL || fscanf(statm, "%lu", &pages) != 1) {
        fputs("cannot read /proc/self/statm\n", stderr);
        exit(2);
    }
    fclose(statm);
    return pages * (size_t)sysconf(_SC_PAGESIZE);
}

/* From now on the process can get so many bytes more; SIZE_MAX takes the limit back. */
static inline void limit_memory(size_t bytes) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_AS, &limit) == 0) {
        /* Only the soft limit: an ordinary process cannot raise the hard one again. */
        limit.rlim_cur = bytes == SIZE_MAX ? limit.rlim_max : address_space() + bytes;
        if (setrlimit(RLIMIT_AS, &limit) == 0) return;
    }
    fputs("cannot limit memory\n", stderr);
    exit(2);
}

#endif
