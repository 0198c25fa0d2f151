/* Which ranks have what, who sees it, and so what is sent: a function of the headers alone,
 * which all ranks have. */

#ifndef FA_MPI_SHARES_H
#define FA_MPI_SHARES_H

#include "internal.h"

/* Positions from lo to hi - 1. */
struct range {
    int64_t lo, hi;
};

static inline bool is_empty(struct range r) {
    return r.lo >= r.hi;
}

/* Gives this rank's header its runs, and refuses those that cannot be. */
int32_t shares_describe(fa_mpi *m, const fa_attention *a, const fa_mpi_prefill_options *options);

/* Gives all headers their runs where shares stand behind one another, and refuses keys that two
 * ranks have. The same on all ranks. */
int32_t shares_place(fa_mpi *m);

static inline int32_t q_runs_of(const fa_mpi *m, int rank) {
    return (int32_t)header_of(m, rank)[Q_RUNS];
}

static inline int32_t kv_runs_of(const fa_mpi *m, int rank) {
    return (int32_t)header_of(m, rank)[KV_RUNS];
}

static inline fa_mpi_run q_run(const fa_mpi *m, int rank, int32_t i) {
    const int64_t *h = header_of(m, rank) + RUNS_OF_Q + 2 * i;
    return (fa_mpi_run){h[0], h[1]};
}

static inline fa_mpi_run kv_run(const fa_mpi *m, int rank, int32_t i) {
    const int64_t *h = header_of(m, rank) + RUNS_OF_KV + 2 * i;
    return (fa_mpi_run){h[0], h[1]};
}

/* Of the keys in a range, the first to the last that some of the query rows see. */
struct range seen_by(const fa_mpi *m, fa_mpi_run rows, struct range keys);

/* Of a run of the owner's keys, the first to the last that some row of another rank sees. */
struct range needed(const fa_mpi *m, int owner, int32_t run, int by);

/* The same for all ranks from `first` on to the one before the owner, in the order of a ring:
 * what the ring hands to `first`. */
struct range carried(const fa_mpi *m, int owner, int32_t run, int first);

#endif
