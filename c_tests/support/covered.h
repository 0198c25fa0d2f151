/* Which wrong values a program has tried where: with the argument --covered it prints a line for
 * each, which scripts/check_refusals.py compares with the header. */

#ifndef COVERED_H
#define COVERED_H

#include "check.h"

static bool print_covered;

static inline void covered_begin(int argc, char **argv) {
    print_covered = argc > 1 && strcmp(argv[1], "--covered") == 0;
}

/* `place` is a field, "fa_config.head_dim", or an argument, "fa_merge(rows)". */
static inline void covered(const char *place, const char *kind, fa_status status) {
    if (print_covered) printf("%s %s %s\n", place, kind, status == FA_OK ? "accepted" : "refused");
}

static inline const char *kind_of_integer(int64_t n, size_t bytes) {
    if (n == 0) return "zero";
    if (n < 0) return "negative";
    if (n >= (bytes == 4 ? INT32_MAX : (int64_t)1 << 60)) return "huge";
    return n % 2 != 0 ? "odd" : "other";
}

static inline const char *kind_of_real(float x) {
    if (isnan(x)) return "NaN";
    if (isinf(x)) return x > 0 ? "infinite" : "-infinite";
    if (x == 0) return "zero";
    if (fabsf(x) < 0x1p-126f) return "denormal";
    return x < 0 ? "negative" : "other";
}

static inline const char *kind_of_pointer(const void *p) {
    return p == NULL ? "NULL" : (uintptr_t)p % 4 != 0 ? "odd" : "other";
}

#endif
