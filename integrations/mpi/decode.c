/* A few query rows on every rank, and a cache in shares: each rank computes its partial result,
 * and the results are joined in the order of ranks. */

#include "internal.h"

#include <limits.h>
#include <math.h>
#include <string.h>

/* Bytes that a rank receives in an all-gather, up to which one collective call is better than
 * several steps. */
static const int64_t GATHERED = 64 * 1024;

struct decode {
    fa_mpi *m;
    const fa_attention *a;
    const fa_pool *pool;
    int32_t width;
    /* Whether windows or slopes look at positions. */
    bool has_positions;
    /* Rows of all sequences, floats of a result. */
    int64_t rows, floats;
    /* This rank's result, and others': the rows of o, then those of lse. All of them, by rank,
     * in an all-gather. */
    float *mine, *other;
    /* Keys of each sequence on each rank; where each sequence begins here. */
    int64_t *lens;
    int32_t *positions;
    void *ws;
    size_t ws_size;
};

static int64_t rows_of(const fa_attention *a, int64_t b) {
    return a->cu_len_q != NULL ? (int64_t)a->cu_len_q[b + 1] - a->cu_len_q[b] : a->len_q;
}

static int64_t keys_of(const fa_attention *a, int64_t b) {
    if (a->kv_lens != NULL) return a->kv_lens[b];
    return a->cu_len_kv != NULL ? (int64_t)a->cu_len_kv[b + 1] - a->cu_len_kv[b] : a->len_kv;
}

/* The steps of FNV-1a over some integers. */
static uint64_t hash_of(uint64_t hash, const int32_t *list, int64_t n) {
    for (int64_t i = 0; list != NULL && i < n; i++) hash = (hash ^ (uint32_t)list[i]) * 0x100000001b3u;
    return (hash ^ (list != NULL)) * 0x100000001b3u;
}

static int32_t describe_decode(struct decode *d, int32_t mode) {
    fa_mpi *m = d->m;
    const fa_attention *a = d->a;
    int32_t status = describe(m, a, mode, d->pool);
    if (status != FA_OK) return status;
    char why[WORDS - 64];
    status = fa_attention_check(a, why, sizeof why);
    if (status != FA_OK) return say(m, status, "%s", why);
    int64_t *h = m->mine;
    d->rows = a->cu_len_q != NULL ? a->cu_len_q[a->batch] : a->batch * a->len_q;
    h[LEN_Q_OF_ALL] = a->len_q, h[ROWS_OF_ALL] = d->rows;
    uint64_t lists = hash_of(hash_of(0, a->cu_len_q, a->batch + 1), a->q_positions, a->batch);
    memcpy(&h[Q_LISTS], &lists, sizeof lists);
    if (h[Q_LISTS] == ANY) h[Q_LISTS]++;
    d->has_positions = a->window_left != FA_NO_LIMIT || a->window_right != FA_NO_LIMIT ||
                       (a->alibi_slopes != NULL && (a->flags & FA_MASK_TIMES_SLOPE) == 0);
    /* What is checked here cannot be more than an address space holds. */
    d->floats = d->rows * a->heads_q * (a->dim_v + 1);
    if (d->floats > INT_MAX || a->batch > INT_MAX)
        return say(m, FA_ERR_OVERFLOW, "a result of %lld floats for %lld sequences is more than MPI counts",
                   (long long)d->floats, (long long)a->batch);
    d->width = width_of(d->pool);
    return FA_OK;
}

/* The problem of this rank alone. */
static fa_attention local_problem(const struct decode *d, int32_t *positions) {
    fa_attention c = *d->a;
    int64_t row = c.dim_v * 4;
    c.o = (fa_tensor){.data = d->mine,
                      .stride = {c.len_q * c.heads_q * row, row, c.heads_q * row},
                      .dtype = FA_DTYPE_F32};
    c.lse = d->mine + d->rows * c.heads_q * c.dim_v;
    c.lse_stride[0] = c.len_q * c.heads_q, c.lse_stride[1] = 1, c.lse_stride[2] = c.heads_q;
    /* The memory is the caller's no longer. */
    c.o_bytes = c.lse_bytes = 0;
    if (d->m->rank != 0) c.sinks = NULL;
    if (d->has_positions) c.q_positions = positions, c.q_pos = FA_POS_END;
    return c;
}

static int32_t workspace_of_local(struct decode *d) {
    int32_t *zeros = NULL;
    fa_mpi_memory from = d->m->memory;
    if (d->has_positions) {
        zeros = from.allocate(from.ctx, (size_t)(d->a->batch + 1) * sizeof *zeros);
        if (zeros == NULL) return say(d->m, FA_ERR_MEMORY, "no memory for the positions of %lld sequences", (long long)d->a->batch);
        memset(zeros, 0, (size_t)(d->a->batch + 1) * sizeof *zeros);
    }
    fa_attention c = local_problem(d, zeros);
    c.o.data = nowhere(3), c.lse = nowhere(4);
    int32_t status = fa_attention_workspace(&c, d->width, &d->ws_size);
    if (zeros != NULL) from.release(from.ctx, zeros);
    return status == FA_OK ? FA_OK : say(d->m, status, "%s", fa_status_string(status));
}

static void choose_mode(struct decode *d, int32_t wanted) {
    fa_mpi *m = d->m;
    int64_t bytes = d->floats * 4 * (m->size - 1);
    m->report.mode = wanted != FA_MPI_AUTO ? wanted : bytes <= GATHERED || m->size <= 2 ? FA_MPI_ALL_GATHER : FA_MPI_RING;
    say(m, FA_OK, "%s%s: an all-gather brings %lld bytes of results to each rank (up to %lld at once are cheaper than steps)",
        m->report.mode == FA_MPI_RING ? "steps" : "all-gather", wanted == FA_MPI_AUTO ? "" : " (as asked for)",
        (long long)bytes, (long long)GATHERED);
}

static void arrange(struct decode *d, struct arena *arena) {
    const fa_mpi *m = d->m;
    if (m->report.mode == FA_MPI_RING) {
        d->mine = take(arena, d->floats, 4, 1);
        d->other = take(arena, d->floats, 4, 1);
    } else {
        d->other = take(arena, d->floats, 4, m->size);
        d->mine = d->other != NULL ? d->other + d->floats * m->rank : NULL;
    }
    d->lens = take(arena, d->has_positions ? d->a->batch : 0, m->size, sizeof *d->lens);
    d->positions = take(arena, d->has_positions ? d->a->batch : 0, sizeof *d->positions, 1);
    d->ws = take(arena, (int64_t)d->ws_size, 1, 1);
}

static int32_t prepare(struct decode *d, int32_t mode, struct arena *counted) {
    int32_t status = describe_decode(d, mode);
    if (status == FA_OK) status = workspace_of_local(d);
    if (status != FA_OK) return status;
    choose_mode(d, mode);
    arrange(d, counted);
    return FA_OK;
}

/* Where query row 0 of each sequence is, counted from this rank's first key. Refused on all
 * ranks alike. */
static int32_t find_positions(struct decode *d) {
    fa_mpi *m = d->m;
    const fa_attention *a = d->a;
    double start = MPI_Wtime();
    for (int64_t b = 0; b < a->batch; b++) d->lens[m->rank * a->batch + b] = keys_of(a, b);
    int32_t status = mpi_ok(m, MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, d->lens, (int)a->batch, MPI_INT64_T, m->comm),
                            "MPI_Allgather");
    m->report.seconds_agreeing += MPI_Wtime() - start;
    for (int64_t b = 0; status == FA_OK && b < a->batch; b++) {
        int64_t all = 0, from = 0;
        for (int rank = 0; rank < m->size; rank++) all += d->lens[rank * a->batch + b];
        int64_t position = a->q_positions != NULL ? a->q_positions[b]
                           : a->q_pos == FA_POS_END ? all - rows_of(a, b)
                                                    : a->q_pos;
        for (int rank = 0; rank < m->size; rank++) {
            int64_t here = plus(position, -from);
            if (here < INT32_MIN || here > INT32_MAX - rows_of(a, b))
                return say(m, FA_ERR_OVERFLOW, "sequence %lld: position %lld is too far from the keys of rank %d",
                           (long long)b, (long long)position, rank);
            if (rank == m->rank) d->positions[b] = (int32_t)here;
            from += d->lens[rank * a->batch + b];
        }
    }
    return status;
}

/* ---- joining ---- */

/* Joins results of ranks behind one another: those in `lower` stand before those in `upper`. */
static int32_t join(struct decode *d, float *lower, const float *upper) {
    int64_t o = d->rows * d->a->heads_q * d->a->dim_v;
    return fa_merge(lower, lower + o, upper, upper + o, d->rows * d->a->heads_q, d->a->dim_v);
}

/* The shape of both ways is the same, so that they give the same bits: ranks 2 i and 2 i + 1
 * become one for as many i as it takes to have a power of two, and then neighbours become one
 * until one is left. */
struct shape {
    int extra, powers;
};

static struct shape shape_of(int size) {
    int powers = 1;
    while (2 * powers <= size) powers *= 2;
    return (struct shape){size - powers, powers};
}

static int32_t join_gathered(struct decode *d) {
    fa_mpi *m = d->m;
    struct shape shape = shape_of(m->size);
    double start = MPI_Wtime();
    int32_t status = mpi_ok(m, MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, d->other, (int)d->floats, MPI_FLOAT, m->comm),
                            "MPI_Allgather");
    m->report.seconds_waiting += MPI_Wtime() - start;
    m->report.messages = 1;
    m->report.bytes_sent = m->report.bytes_received = d->floats * 4 * (m->size - 1);
    for (int i = 0; status == FA_OK && i < shape.extra; i++)
        status = join(d, d->other + d->floats * (2 * i), d->other + d->floats * (2 * i + 1));
    for (int step = 1; status == FA_OK && step < shape.powers; step *= 2) {
        for (int i = 0; status == FA_OK && i < shape.powers; i += 2 * step) {
            int k = i + step;
            int lower = i < shape.extra ? 2 * i : i + shape.extra, upper = k < shape.extra ? 2 * k : k + shape.extra;
            status = join(d, d->other + d->floats * lower, d->other + d->floats * upper);
        }
    }
    d->mine = d->other;
    return status;
}

static int32_t swap(struct decode *d, int partner, bool sends, bool receives) {
    fa_mpi *m = d->m;
    double start = MPI_Wtime();
    int count = (int)d->floats, nobody = MPI_PROC_NULL;
    int32_t status = mpi_ok(m, MPI_Sendrecv(d->mine, count, MPI_FLOAT, sends ? partner : nobody, TAG, d->other, count,
                                            MPI_FLOAT, receives ? partner : nobody, TAG, m->comm, MPI_STATUS_IGNORE),
                            "MPI_Sendrecv");
    m->report.seconds_waiting += MPI_Wtime() - start;
    m->report.messages += sends;
    m->report.bytes_sent += sends ? d->floats * 4 : 0;
    m->report.bytes_received += receives ? d->floats * 4 : 0;
    return status;
}

/* What has come takes the place of this rank's own. */
static void take_other(struct decode *d) {
    float *mine = d->mine;
    d->mine = d->other, d->other = mine;
}

static int32_t join_in_steps(struct decode *d) {
    fa_mpi *m = d->m;
    struct shape shape = shape_of(m->size);
    bool is_paired = m->rank < 2 * shape.extra;
    int32_t status = FA_OK;
    if (is_paired && m->rank % 2 == 1) {
        status = swap(d, m->rank - 1, true, false);
        if (status == FA_OK) status = swap(d, m->rank - 1, false, true);
        if (status == FA_OK) take_other(d);
        return status;
    }
    if (is_paired) {
        status = swap(d, m->rank + 1, false, true);
        if (status == FA_OK) status = join(d, d->mine, d->other);
    }
    int self = is_paired ? m->rank / 2 : m->rank - shape.extra;
    for (int step = 1; status == FA_OK && step < shape.powers; step *= 2) {
        int partner = self ^ step;
        status = swap(d, partner < shape.extra ? 2 * partner : partner + shape.extra, true, true);
        if (status != FA_OK) return status;
        /* Both of a pair join the lower one's and the upper one's, in this order. */
        if ((self & step) != 0) take_other(d);
        status = join(d, d->mine, d->other);
    }
    if (status == FA_OK && is_paired) status = swap(d, m->rank + 1, true, false);
    return status;
}

/* ---- the call ---- */

static void compute(struct decode *d, int32_t *status) {
    double start = MPI_Wtime();
    const fa_attention *a = d->a;
    fa_attention c = local_problem(d, d->positions);
    /* Rows before the first sequence's are nobody's. */
    if (a->cu_len_q != NULL) {
        int64_t before = a->cu_len_q[0] * a->heads_q;
        memset(d->mine, 0, (size_t)(before * a->dim_v) * 4);
        memset(c.lse, 0, (size_t)before * 4);
    }
    *status = fa_attention_run(&c, d->ws, d->ws_size, d->pool);
    /* The others are to see that something is wrong. */
    for (int64_t i = 0; *status != FA_OK && i < d->floats; i++) d->mine[i] = NAN;
    for (int64_t b = 0; b < a->batch; b++) d->m->report.pairs += a->heads_q * rows_of(a, b) * keys_of(a, b);
    d->m->report.seconds_computing += MPI_Wtime() - start;
}

static int32_t write_results(struct decode *d) {
    const fa_attention *a = d->a;
    int64_t row = a->dim_v * 4, first = a->cu_len_q != NULL ? a->cu_len_q[0] : 0;
    bool packed = a->cu_len_q != NULL;
    int64_t batch = packed ? 1 : a->batch, rows = packed ? d->rows - first : a->len_q;
    const float *lse = d->mine + d->rows * a->heads_q * a->dim_v;
    fa_tensor from = {.data = d->mine + first * a->heads_q * a->dim_v,
                      .stride = {a->len_q * a->heads_q * row, row, a->heads_q * row},
                      .dtype = FA_DTYPE_F32},
              to = a->o;
    if (to.data != NULL) to.data = (char *)to.data + first * to.stride[2];
    int32_t status = fa_quantize(&from, batch, a->heads_q, rows, a->dim_v, &to);
    for (int64_t b = 0; a->lse != NULL && b < batch; b++) {
        for (int64_t i = 0; i < rows; i++) {
            for (int64_t h = 0; h < a->heads_q; h++) {
                int64_t at = b * a->lse_stride[0] + h * a->lse_stride[1] + (first + i) * a->lse_stride[2];
                memcpy((char *)a->lse + at * 4, &lse[(b * a->len_q + first + i) * a->heads_q + h], 4);
            }
        }
    }
    return status;
}

int32_t fa_mpi_decode_workspace(fa_mpi *m, const fa_attention *a, int32_t mode, const fa_pool *pool, size_t *bytes) {
    if (m == NULL || bytes == NULL) return FA_ERR_NULL;
    begin(m, DECODE);
    struct decode d = {.m = m, .a = a, .pool = pool};
    struct arena counted = {0};
    int32_t status = prepare(&d, mode, &counted);
    return status == FA_OK ? memory_size(m, &counted, bytes) : status;
}

int32_t fa_mpi_decode(fa_mpi *m, const fa_attention *a, int32_t mode, void *ws, size_t ws_size, const fa_pool *pool) {
    if (m == NULL) return FA_ERR_NULL;
    double start = MPI_Wtime();
    begin(m, DECODE);
    struct decode d = {.m = m, .a = a, .pool = pool};
    struct arena counted = {0};
    struct memory memory = {0};
    struct pending pending;
    int32_t refused = prepare(&d, mode, &counted), computed = FA_OK;
    if (refused == FA_OK) refused = memory_get(m, ws, ws_size, &counted, &memory);
    int32_t status = agree_begin(m, refused, &pending);
    if (refused == FA_OK) arrange(&d, &memory.arena);
    /* The agreement is on its way meanwhile. */
    if (status == FA_OK && refused == FA_OK && !d.has_positions) compute(&d, &computed);
    if (status == FA_OK) status = agree_end(m, refused, &pending);
    if (status == FA_OK && d.has_positions) {
        status = find_positions(&d);
        if (status == FA_OK) compute(&d, &computed);
    }
    if (status == FA_OK && d.floats > 0) {
        status = m->report.mode == FA_MPI_RING ? join_in_steps(&d) : join_gathered(&d);
        if (status == FA_OK) status = write_results(&d);
        if (status == FA_OK) status = computed;
    }
    /* What MPI may still write to stays. */
    if (status != FA_MPI_ERR_MPI) memory_release(m, &memory);
    m->report.seconds = MPI_Wtime() - start;
    return status;
}
