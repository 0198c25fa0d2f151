/* Which ranks have what, who sees it, and so what is sent. */

#include "shares.h"

#include <stdlib.h>

/* Positions are less than this, so that sums and differences of two are numbers. */
#define FAR ((int64_t)1 << 61)

/* ---- runs ---- */

/* Copies runs into the header; what all of them have is `length`. */
static int32_t copy_runs(fa_mpi *m, const char *name, int32_t count, const fa_mpi_run *runs, int64_t length,
                         bool is_key, int64_t *header) {
    if (count < 0 || count > FA_MPI_MAX_RUNS)
        return say(m, FA_MPI_ERR_RUNS, "num_%s is %d, not 0 to %d", name, (int)count, FA_MPI_MAX_RUNS);
    if (count > 0 && runs == NULL) return say(m, FA_ERR_NULL, "%s is NULL", name);
    int64_t sum = 0;
    for (int32_t i = 0; i < count; i++) {
        fa_mpi_run run = runs[i];
        if (run.length < 0 || run.position < (is_key ? 0 : -FAR) || plus(run.position, run.length) > FAR)
            return say(m, FA_MPI_ERR_RUNS, "%s[%d] has %lld tokens from position %lld on", name, (int)i,
                       (long long)run.length, (long long)run.position);
        sum = plus(sum, run.length);
        header[2 * i] = run.position, header[2 * i + 1] = run.length;
    }
    if (count > 0 && sum != length)
        return say(m, FA_MPI_ERR_RUNS, "%s have %lld tokens, len_%s is %lld", name, (long long)sum,
                   is_key ? "kv" : "q", (long long)length);
    return FA_OK;
}

int32_t shares_describe(fa_mpi *m, const fa_attention *a, const fa_mpi_prefill_options *o) {
    int64_t *h = m->mine;
    h[Q_RUNS] = o->num_q_runs, h[KV_RUNS] = o->num_kv_runs;
    h[Q_LAYOUT] = o->num_q_runs != 0, h[KV_LAYOUT] = o->num_kv_runs != 0;
    /* Rows have their positions. */
    if (o->num_q_runs != 0) h[Q_POS] = ANY;
    int32_t status = copy_runs(m, "q_runs", o->num_q_runs, o->q_runs, a->len_q, false, h + RUNS_OF_Q);
    if (status != FA_OK) return status;
    return copy_runs(m, "kv_runs", o->num_kv_runs, o->kv_runs, a->len_kv, true, h + RUNS_OF_KV);
}

/* One run for each rank, behind one another. */
static void place(fa_mpi *m, int64_t from, int length, int count, int runs) {
    for (int rank = 0; rank < m->size; rank++) {
        int64_t *h = m->headers + (size_t)rank * FIELDS;
        h[count] = 1, h[runs] = from, h[runs + 1] = h[length];
        from = plus(from, h[length]);
    }
}

static int by_position(const void *x, const void *y) {
    const struct owned_run *a = x, *b = y;
    if (a->run.position != b->run.position) return a->run.position < b->run.position ? -1 : 1;
    return (a->rank > b->rank) - (a->rank < b->rank);
}

/* Sorts all runs of keys; returns how many there are. */
static size_t sort_runs(fa_mpi *m) {
    size_t count = 0;
    for (int rank = 0; rank < m->size; rank++) {
        for (int32_t i = 0; i < kv_runs_of(m, rank); i++) {
            fa_mpi_run run = kv_run(m, rank, i);
            if (run.length > 0) m->sorted[count++] = (struct owned_run){run, rank};
        }
    }
    qsort(m->sorted, count, sizeof *m->sorted, by_position);
    return count;
}

int32_t shares_place(fa_mpi *m) {
    const int64_t *first = header_of(m, 0);
    int64_t rows = 0, keys = 0;
    for (int rank = 0; rank < m->size; rank++) {
        rows = plus(rows, header_of(m, rank)[LEN_Q]);
        keys = plus(keys, header_of(m, rank)[LEN_KV]);
    }
    if (rows > FAR || keys > FAR) return say(m, FA_ERR_OVERFLOW, "all ranks together have more than 2^61 rows");
    if (first[KV_LAYOUT] == 0) place(m, 0, LEN_KV, KV_RUNS, RUNS_OF_KV);
    size_t count = sort_runs(m);
    for (size_t i = 1; i < count; i++) {
        struct owned_run a = m->sorted[i - 1], b = m->sorted[i];
        if (b.run.position < a.run.position + a.run.length)
            return say(m, FA_MPI_ERR_RUNS, "rank %d and rank %d both have the key at position %lld", (int)a.rank,
                       (int)b.rank, (long long)b.run.position);
    }
    if (first[Q_LAYOUT] == 0) {
        struct owned_run last = count > 0 ? m->sorted[count - 1] : (struct owned_run){{0, 0}, 0};
        int64_t end = last.run.position + last.run.length;
        int64_t from = first[Q_POS] == INT64_MAX ? end - rows : first[Q_POS];
        if (from < -FAR || plus(from, rows) > FAR)
            return say(m, FA_ERR_OVERFLOW, "q_pos %lld is more than 2^61 from 0", (long long)from);
        place(m, from, LEN_Q, Q_RUNS, RUNS_OF_Q);
    }
    return FA_OK;
}

fa_mpi_run fa_mpi_contiguous(int64_t tokens, int rank, int size) {
    if (tokens < 0 || size < 1 || rank < 0 || rank >= size) return (fa_mpi_run){0, 0};
    int64_t each = tokens / size, more = tokens % size;
    return (fa_mpi_run){rank * each + (rank < more ? rank : more), each + (rank < more)};
}

void fa_mpi_zigzag(int64_t tokens, int rank, int size, fa_mpi_run runs[2]) {
    runs[0] = fa_mpi_contiguous(tokens, rank, 2 * size);
    runs[1] = fa_mpi_contiguous(tokens, 2 * size - 1 - rank, 2 * size);
}

/* ---- who sees what ---- */

static struct range hull(struct range a, struct range b) {
    if (is_empty(a)) return b;
    if (is_empty(b)) return a;
    return (struct range){a.lo < b.lo ? a.lo : b.lo, a.hi > b.hi ? a.hi : b.hi};
}

struct range seen_by(const fa_mpi *m, fa_mpi_run rows, struct range keys) {
    int64_t left = header_of(m, 0)[WINDOW_LEFT], right = header_of(m, 0)[WINDOW_RIGHT];
    if (rows.length == 0) return (struct range){0, 0};
    if (left != FA_NO_LIMIT) {
        int64_t lo = plus(rows.position, -left);
        if (lo > keys.lo) keys.lo = lo;
    }
    if (right != FA_NO_LIMIT) {
        int64_t hi = plus(plus(rows.position, rows.length), right);
        if (hi < keys.hi) keys.hi = hi;
    }
    return is_empty(keys) ? (struct range){0, 0} : keys;
}

struct range needed(const fa_mpi *m, int owner, int32_t run, int by) {
    fa_mpi_run keys = kv_run(m, owner, run);
    struct range all = {keys.position, keys.position + keys.length}, result = {0, 0};
    for (int32_t i = 0; i < q_runs_of(m, by); i++) result = hull(result, seen_by(m, q_run(m, by, i), all));
    return result;
}

struct range carried(const fa_mpi *m, int owner, int32_t run, int first) {
    struct range result = {0, 0};
    for (int rank = first; rank != owner; rank = (rank + 1) % m->size)
        result = hull(result, needed(m, owner, run, rank));
    return result;
}
