/* What the files of the library share. */

#ifndef FA_MPI_INTERNAL_H
#define FA_MPI_INTERNAL_H

/* The library is compiled with hidden symbols: only what the header declares is to be seen. */
#pragma GCC visibility push(default)
#include "flash_attention_mpi.h"
#pragma GCC visibility pop

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a rank tells the others about a call. Ranks have to agree on those before LAST_AGREED. */
enum field {
    CALL,
    VERSION,
    MODE,
    BATCH,
    HEADS_Q,
    HEADS_KV,
    DIM_QK,
    DIM_V,
    FLAGS,
    SCALE,
    SOFTCAP,
    WINDOW_LEFT,
    WINDOW_RIGHT,
    SLOPES,
    SINKS,
    K_TYPE,
    V_TYPE,
    K_SCALES,
    V_SCALES,
    K_GROUP_DIMS,
    V_GROUP_DIMS,
    V_IN_K,
    LEN_Q_OF_ALL,
    ROWS_OF_ALL,
    Q_LISTS,
    Q_POS,
    Q_LAYOUT,
    KV_LAYOUT,
    LAST_AGREED,
    STATUS = LAST_AGREED,
    LEN_Q,
    LEN_KV,
    Q_RUNS,
    KV_RUNS,
    /* Position and length of each run. */
    RUNS_OF_Q,
    RUNS_OF_KV = RUNS_OF_Q + 2 * FA_MPI_MAX_RUNS,
    FIELDS = RUNS_OF_KV + 2 * FA_MPI_MAX_RUNS
};

/* A field that this rank has no opinion about. */
#define ANY INT64_MIN

enum call { PREFILL = 1, PREFILL_WORKSPACE, DECODE };

enum { WORDS = 512, TAG = 0 };

struct fa_mpi {
    MPI_Comm comm;
    int rank, size;
    fa_mpi_memory memory;
    /* Those of all ranks, and this rank's own, which is sent. */
    int64_t *headers, mine[FIELDS];
    /* All runs of keys, sorted: to see whether two ranks have the same keys. */
    struct owned_run *sorted;
    char words[WORDS];
    fa_mpi_report report;
};

struct owned_run {
    fa_mpi_run run;
    int64_t rank;
};

static inline const int64_t *header_of(const fa_mpi *m, int rank) {
    return m->headers + (size_t)rank * FIELDS;
}

/* Forgets the last call. */
void begin(fa_mpi *m, enum call call);

/* Sets the words, and returns the status. */
int32_t say(fa_mpi *m, int32_t status, const char *format, ...);

/* Whether a function of MPI succeeded; else FA_MPI_ERR_MPI, with its words. */
int32_t mpi_ok(fa_mpi *m, int code, const char *function);

/* Fills m->mine with what a description says, and looks at what both calls refuse. */
int32_t describe(fa_mpi *m, const fa_attention *a, int32_t mode, const fa_pool *pool);

/* Tells each rank the header of all, and whether they go together: the same answer on all ranks.
 * `status` is what this rank alone thinks. */
int32_t agree(fa_mpi *m, int32_t status);

/* The same where nobody needs to know the others' headers if all is well; in two parts, between
 * which one may compute. */
struct pending {
    uint64_t sent[3], received[3];
    MPI_Request request;
};
int32_t agree_begin(fa_mpi *m, int32_t status, struct pending *p);
int32_t agree_end(fa_mpi *m, int32_t status, struct pending *p);

/* Whether all ranks can go on: the status of the first that cannot, and its words. */
int32_t agree_on_status(fa_mpi *m, int32_t status);

/* Threads that a pool computes with, as the library asks it. */
int32_t width_of(const fa_pool *pool);

/* a + b, or the nearest that there is. */
static inline int64_t plus(int64_t a, int64_t b) {
    if (b > 0 && a > INT64_MAX - b) return INT64_MAX;
    if (b < 0 && a < INT64_MIN + 1 - b) return INT64_MIN + 1;
    return a + b;
}

/* Memory that is handed out from its beginning. Without memory it only counts. */
struct arena {
    char *base;
    size_t used;
    bool overflow;
};

enum { ALIGNMENT = 64 };

/* Room for a * b * c bytes; NULL if it only counts. */
void *take(struct arena *arena, int64_t a, int64_t b, int64_t c);

/* The caller's workspace or one of our own, large enough or else a status; and an arena in it. */
struct memory {
    void *own;
    struct arena arena;
};
int32_t memory_get(fa_mpi *m, void *ws, size_t ws_size, const struct arena *counted, struct memory *out);
void memory_release(fa_mpi *m, struct memory *memory);

/* An address for a tensor that is only asked the size of workspace for, far from the others'. */
static inline void *nowhere(int i) {
    return (void *)(PTRDIFF_MAX / 8 * (uintptr_t)(i + 1));
}

/* Bytes that a caller has to have for what was counted, aligned in memory of any alignment. */
int32_t memory_size(fa_mpi *m, const struct arena *counted, size_t *bytes);

#endif
