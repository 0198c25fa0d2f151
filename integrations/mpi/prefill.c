/* Queries, keys and values in shares: keys and values travel, and each rank computes its own
 * rows.
 *
 * Rows are computed in slices, and a slice meets the runs of keys of one rank after another:
 * first its own, then those of the rank before it, and so on, as a ring brings them. Each
 * meeting is a call of the library, with positions relative to the first key, whose result is
 * merged into the rows' own. Both modes compute the same; they differ in what they wait for. */

#include "shares.h"

#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

/* Bytes of a message, at most: MPI counts with int. Tests make it small. */
#ifndef FA_MPI_CHUNK
#define FA_MPI_CHUNK ((int64_t)1 << 30)
#endif

/* Multiplications and additions of a slice and the longest run for each thread, about: some ten
 * milliseconds, after which data is moved on. Fewer rows would read keys too often. Tests make
 * both small. */
#ifndef FA_MPI_SLICE
#define FA_MPI_SLICE 4e9
#endif
#ifndef FA_MPI_SLICE_ROWS
#define FA_MPI_SLICE_ROWS 256
#endif

/* ---- types ---- */

static int64_t row_bytes(int32_t dtype, int64_t dim) {
    switch (dtype) {
    case FA_DTYPE_F32: return dim * 4;
    case FA_DTYPE_F16:
    case FA_DTYPE_BF16:
    case FA_DTYPE_Q15: return dim * 2;
    case FA_DTYPE_Q8_0: return dim / 32 * 34;
    case FA_DTYPE_Q4_0:
    case FA_DTYPE_IQ4_NL: return dim / 32 * 18;
    case FA_DTYPE_Q4_1: return dim / 32 * 20;
    case FA_DTYPE_Q5_0: return dim / 32 * 22;
    case FA_DTYPE_Q5_1: return dim / 32 * 24;
    default: return dim;
    }
}

static bool is_contiguous(const fa_tensor *t, int64_t dim) {
    return t->stride_dim == 0 || t->stride_dim * dim == row_bytes(t->dtype, dim);
}

/* ---- scales ---- */

enum { HAS_SCALE = 1, HAS_ZERO = 2, AXIS = 4 };

/* What of a granularity there is, and which of its axes have a stride. */
static int64_t scales_given(const fa_tensor *t) {
    int64_t given = 0;
    if (t->quant == NULL || (t->quant->scale == NULL && t->quant->zero == NULL)) return 0;
    if (t->quant->scale != NULL) given |= HAS_SCALE;
    if (t->quant->zero != NULL) given |= HAS_ZERO;
    for (int i = 0; i < 4; i++) {
        if (t->quant->stride[i] != 0) given |= AXIS << i;
    }
    return given;
}

static int64_t group_dims(const fa_tensor *t) {
    return t->quant != NULL && t->quant->stride[3] != 0 ? t->quant->group_dims : 0;
}

/* Scales as they travel, and zeros likewise: floats [token][batch][head][group of channels], an
 * axis without a stride having one entry. */
struct scales {
    int64_t given, batch, heads, groups;
    int32_t group_dims;
};

static struct scales scales_of(int64_t given, int64_t group, int64_t batch, int64_t heads, int64_t dim) {
    struct scales s = {given, 1, 1, 1, (int32_t)group};
    if (given & AXIS << 0) s.batch = batch;
    if (given & AXIS << 1) s.heads = heads;
    if (given & AXIS << 3) s.groups = (dim + group - 1) / group;
    return s;
}

static bool has_tokens(const struct scales *s) {
    return (s->given & AXIS << 2) != 0;
}

/* Floats of a token. */
static int64_t scales_record(const struct scales *s) {
    return s->batch * s->heads * s->groups;
}

/* Copies tokens `from` to `from + tokens - 1` of a tensor's scales, or zeros. */
static void scales_pack(const struct scales *s, const fa_quant *quant, const float *values, int64_t from, int64_t tokens,
                        float *to) {
    for (int64_t t = 0; t < (has_tokens(s) ? tokens : 1); t++) {
        int64_t token = has_tokens(s) ? (from + t) / quant->group_tokens * quant->stride[2] : 0;
        for (int64_t b = 0; b < s->batch; b++) {
            for (int64_t h = 0; h < s->heads; h++) {
                int64_t at = token + b * quant->stride[0] + h * quant->stride[1];
                /* Neither side has an alignment. */
                for (int64_t g = 0; g < s->groups; g++, to++)
                    memcpy(to, (const char *)values + (at + g * quant->stride[3]) * 4, 4);
            }
        }
    }
}

/* What they are to the library, from a head and a token on. */
static fa_quant scales_quant(const struct scales *s, const float *scale, const float *zero, int64_t head,
                             int64_t token) {
    int64_t at = (s->given & AXIS << 1 ? head * s->groups : 0) + (has_tokens(s) ? token * scales_record(s) : 0);
    return (fa_quant){
        .scale = s->given & HAS_SCALE ? scale + at : NULL,
        .zero = s->given & HAS_ZERO ? zero + at : NULL,
        .stride = {s->given & AXIS << 0 ? s->heads * s->groups : 0, s->given & AXIS << 1 ? s->groups : 0,
                   has_tokens(s) ? scales_record(s) : 0, s->given & AXIS << 3 ? 1 : 0},
        .group_tokens = 1,
        .group_dims = s->group_dims,
    };
}

/* ---- a call ---- */

/* Keys of one run, wherever they are; pointers are to the first of them. */
struct keys {
    struct range at;
    fa_tensor k, v;
    /* Of K, then of V: scales, zeros. */
    float *scales[4];
};

/* What one rank has, or what of it has come here. */
struct share {
    int32_t runs;
    struct keys run[FA_MPI_MAX_RUNS];
};

struct job {
    fa_mpi *m;
    const fa_attention *a;
    const fa_pool *pool;
    int32_t width, mode;
    /* Only the memory is counted. */
    bool counting;
    int64_t group, k_row, v_row, v_in_k;
    struct scales q_scales, k_scales, v_scales;
    int64_t slice_rows, slice_heads;
    float *q_scale, *q_zero, *o, *lse, *part_o, *part_lse;
    void *ws;
    size_t ws_size;
    /* This rank's keys, as they are computed with; and as they are sent. */
    struct share own, packed;
    /* Of a ring, by turns; of an all-gather all in the first. */
    struct arena buffers[2];
    size_t buffer_bytes;
    MPI_Request *requests;
    /* Of an all-gather: the first request of what comes from each distance. */
    int32_t *first_request;
    int32_t posted, most_posted;
    int32_t status;
};

static const struct scales *scales_of_plane(const struct job *j, int plane) {
    return plane < 2 ? &j->k_scales : &j->v_scales;
}

/* Whether scales (even planes) or zeros (odd ones) travel. */
static bool has_plane(const struct job *j, int plane) {
    return (scales_of_plane(j, plane)->given & (plane % 2 == 0 ? HAS_SCALE : HAS_ZERO)) != 0;
}

static bool has_scales(const struct job *j) {
    return j->k_scales.given != 0 || j->v_scales.given != 0;
}

/* ---- where keys are ---- */

/* Bytes of a token of K and of V as they travel: [token][batch][head][row]. */
static int64_t k_record(const struct job *j) {
    return j->a->batch * j->a->heads_kv * j->k_row;
}

static int64_t v_record(const struct job *j) {
    return j->v_in_k >= 0 ? 0 : j->a->batch * j->a->heads_kv * j->v_row;
}

static fa_tensor packed_tensor(const struct job *j, void *data, int32_t dtype, int64_t row) {
    int64_t heads = j->a->heads_kv;
    return (fa_tensor){
        .data = data, .stride = {heads * row, row, j->a->batch * heads * row}, .dtype = dtype};
}

/* Whether a tensor of the caller's is as it would be sent. */
static bool is_packed(const struct job *j, const fa_tensor *t, int64_t dim) {
    int64_t row = row_bytes(t->dtype, dim), heads = j->a->heads_kv;
    return is_contiguous(t, dim) && (heads == 1 || t->stride[1] == row) &&
           (j->a->batch == 1 || t->stride[0] == heads * row) && t->stride[2] == j->a->batch * heads * row;
}

static void *offset(void *data, int64_t bytes) {
    return data != NULL ? (char *)data + bytes : NULL;
}

static void set_v_in_k(const struct job *j, struct keys *keys) {
    if (j->v_in_k < 0) return;
    keys->v = keys->k;
    keys->v.data = offset(keys->k.data, j->v_in_k);
}

/* Takes memory for some keys of each run of a rank. Scales that tokens share are those of all
 * its runs. */
static void lay_out(const struct job *j, int32_t runs, const struct range *at, struct arena *arena, struct share *out) {
    const fa_attention *a = j->a;
    float *shared[4] = {NULL};
    bool any = false;
    for (int32_t i = 0; i < runs; i++) any = any || !is_empty(at[i]);
    for (int p = 0; any && p < 4; p++) {
        const struct scales *s = scales_of_plane(j, p);
        if (has_plane(j, p) && !has_tokens(s)) shared[p] = take(arena, scales_record(s), 4, 1);
    }
    out->runs = runs;
    for (int32_t i = 0; i < runs; i++) {
        struct keys *keys = &out->run[i];
        int64_t tokens = is_empty(at[i]) ? 0 : at[i].hi - at[i].lo;
        *keys = (struct keys){.at = at[i]};
        keys->k = packed_tensor(j, take(arena, tokens, k_record(j), 1), a->k.dtype, j->k_row);
        keys->v = packed_tensor(j, take(arena, tokens, v_record(j), 1), a->v.dtype, j->v_row);
        set_v_in_k(j, keys);
        for (int p = 0; p < 4; p++) {
            const struct scales *s = scales_of_plane(j, p);
            keys->scales[p] = shared[p];
            if (has_plane(j, p) && has_tokens(s)) keys->scales[p] = take(arena, tokens, scales_record(s), 4);
        }
    }
}

/* Copies rows of a tensor of the caller's, from a token on. */
static void pack(const struct job *j, const fa_tensor *from, int64_t dim, int64_t token, int64_t tokens, char *to) {
    int64_t row = row_bytes(from->dtype, dim);
    for (int64_t t = token; t < token + tokens; t++) {
        for (int64_t b = 0; b < j->a->batch; b++) {
            for (int64_t h = 0; h < j->a->heads_kv; h++, to += row) {
                const char *source =
                    (const char *)from->data + b * from->stride[0] + h * from->stride[1] + t * from->stride[2];
                if (is_contiguous(from, dim)) {
                    memcpy(to, source, (size_t)row);
                    continue;
                }
                int64_t element = row / dim;
                for (int64_t d = 0; d < dim; d++)
                    memcpy(to + d * element, source + d * from->stride_dim, (size_t)element);
            }
        }
    }
}

/* Views of the caller's tensors: run `i` from a position on, at token `token`. */
static void view_own(const struct job *j, struct keys *keys, int64_t token) {
    keys->k = j->a->k, keys->v = j->a->v;
    keys->k.data = offset(j->a->k.data, token * j->a->k.stride[2]);
    keys->v.data = offset(j->a->v.data, token * j->a->v.stride[2]);
}

/* This rank's keys as they are sent: in memory of their own, unless the caller has them so
 * already. */
static void lay_out_packed(struct job *j, struct arena *arena) {
    const fa_attention *a = j->a;
    const fa_mpi *m = j->m;
    struct range at[FA_MPI_MAX_RUNS];
    int32_t runs = kv_runs_of(m, m->rank);
    bool as_is = !has_scales(j) && is_packed(j, &a->k, a->dim_qk) && (j->v_in_k >= 0 || is_packed(j, &a->v, a->dim_v));
    int64_t token = 0;
    for (int32_t i = 0; i < runs; i++) {
        fa_mpi_run run = kv_run(m, m->rank, i);
        at[i] = carried(m, m->rank, i, (m->rank + 1) % m->size);
        /* Then it is what this rank computes with, too. */
        if (has_scales(j)) at[i] = (struct range){run.position, run.position + run.length};
    }
    if (!as_is) lay_out(j, runs, at, arena, &j->packed);
    j->own.runs = j->packed.runs = runs;
    for (int32_t i = 0; i < runs; i++) {
        fa_mpi_run run = kv_run(m, m->rank, i);
        struct keys *keys = &j->packed.run[i];
        int64_t from = token + at[i].lo - run.position, tokens = at[i].hi - at[i].lo;
        if (as_is) {
            *keys = (struct keys){.at = at[i]};
            if (tokens > 0) view_own(j, keys, from);
        } else if (!j->counting && tokens > 0) {
            pack(j, &a->k, a->dim_qk, from, tokens, keys->k.data);
            if (j->v_in_k < 0) pack(j, &a->v, a->dim_v, from, tokens, keys->v.data);
            for (int p = 0; p < 4; p++) {
                const fa_quant *quant = p < 2 ? a->k.quant : a->v.quant;
                if (has_plane(j, p))
                    scales_pack(scales_of_plane(j, p), quant, p % 2 == 0 ? quant->scale : quant->zero, from, tokens,
                                keys->scales[p]);
            }
        }
        if (has_scales(j)) {
            j->own.run[i] = *keys;
        } else {
            j->own.run[i] = (struct keys){.at = {run.position, run.position + run.length}};
            view_own(j, &j->own.run[i], token);
        }
        token += run.length;
    }
}

/* ---- slices of rows ---- */

/* Query rows of one run and of some kv heads. */
struct slice {
    int32_t run;
    /* The first of the slice, in the run; the run's first among all of the rank. */
    int64_t row, run_row, rows, position, head, heads;
    /* Where its rows of results are, and how many. */
    int64_t at, results;
    bool started;
};

static bool next_slice(const struct job *j, struct slice *s) {
    const fa_mpi *m = j->m;
    if (s->started) {
        s->at += s->results;
        s->head += s->heads;
        if (s->head >= j->a->heads_kv) {
            s->head = 0;
            s->row += s->rows;
        }
    }
    s->started = true;
    while (s->run < q_runs_of(m, m->rank) && s->row >= q_run(m, m->rank, s->run).length) {
        s->run_row += s->row, s->row = 0, s->run++;
    }
    if (s->run >= q_runs_of(m, m->rank)) return false;
    fa_mpi_run run = q_run(m, m->rank, s->run);
    /* Slices of the same size, or one row less: none is so small that its rows count as few. */
    int64_t slices = (run.length + j->slice_rows - 1) / j->slice_rows, rows = run.length / slices;
    s->rows = rows + (s->row < run.length % slices * (rows + 1));
    s->position = run.position + s->row;
    s->heads = j->slice_heads < j->a->heads_kv - s->head ? j->slice_heads : j->a->heads_kv - s->head;
    s->results = j->a->batch * s->heads * j->group * s->rows;
    return true;
}

/* How many rows and heads suit the longest run of keys there is. The bits of a row depend on
 * whether it is one of few, so only slices of many rows may depend on the number of threads. */
static void size_slices(struct job *j) {
    const fa_mpi *m = j->m;
    const fa_attention *a = j->a;
    int64_t longest = 1;
    for (int rank = 0; rank < m->size; rank++) {
        for (int32_t i = 0; i < kv_runs_of(m, rank); i++) {
            int64_t length = kv_run(m, rank, i).length;
            if (length > longest) longest = length;
        }
    }
    double row = 2.0 * (double)longest * (double)(a->dim_qk + a->dim_v) * (double)a->batch * (double)j->group;
    double slice = FA_MPI_SLICE * (FA_MPI_SLICE_ROWS < 256 ? 1 : j->width), heads = slice / (row * FA_MPI_SLICE_ROWS);
    j->slice_heads = heads < 1 ? 1 : heads > (double)a->heads_kv ? a->heads_kv : (int64_t)heads;
    double rows = slice / (row * (double)j->slice_heads);
    j->slice_rows = rows < FA_MPI_SLICE_ROWS ? FA_MPI_SLICE_ROWS : rows > 1e9 ? 1000000000 : (int64_t)rows;
}

/* ---- computing ---- */

static const float one = 1;

/* A slice and some keys of a run as the library's problem; quants is room for what it points to. */
static fa_attention make_call(const struct job *j, const struct slice *s, const struct keys *keys, struct range at,
                              fa_quant quants[3]) {
    const fa_attention *a = j->a;
    fa_attention c = *a;
    int64_t token = at.lo - keys->at.lo, head = s->head * j->group, heads = s->heads * j->group;
    c.heads_q = heads, c.heads_kv = s->heads;
    c.len_q = s->rows, c.len_kv = at.hi - at.lo;
    c.q.data = offset(a->q.data, head * a->q.stride[1] + (s->run_row + s->row) * a->q.stride[2]);
    c.k = keys->k, c.v = keys->v;
    c.k.data = offset(c.k.data, s->head * c.k.stride[1] + token * c.k.stride[2]);
    c.v.data = offset(c.v.data, s->head * c.v.stride[1] + token * c.v.stride[2]);
    if (j->counting) {
        c.q.data = nowhere(0), c.k.data = nowhere(1);
        c.v.data = j->v_in_k >= 0 ? offset(c.k.data, j->v_in_k) : nowhere(2);
    }
    /* Sizes are asked for before there are scales. */
    const float *of[6] = {j->q_scale, j->q_zero, keys->scales[0], keys->scales[1], keys->scales[2], keys->scales[3]};
    for (int i = 0; j->counting && i < 6; i++) of[i] = &one;
    quants[0] = scales_quant(&j->q_scales, of[0], of[1], j->counting ? 0 : head, j->counting ? 0 : s->run_row + s->row);
    quants[1] = scales_quant(&j->k_scales, of[2], of[3], j->counting ? 0 : s->head, j->counting ? 0 : token);
    quants[2] = scales_quant(&j->v_scales, of[4], of[5], j->counting ? 0 : s->head, j->counting ? 0 : token);
    c.q.quant = j->q_scales.given != 0 ? &quants[0] : NULL;
    c.k.quant = j->k_scales.given != 0 ? &quants[1] : NULL;
    c.v.quant = j->v_scales.given != 0 ? &quants[2] : NULL;
    int64_t row = a->dim_v * 4;
    c.o = (fa_tensor){
        .data = j->counting ? nowhere(3) : j->part_o, .stride = {heads * s->rows * row, s->rows * row, row}, .dtype = FA_DTYPE_F32};
    c.lse = j->counting ? nowhere(4) : j->part_lse;
    c.lse_stride[0] = heads * s->rows, c.lse_stride[1] = s->rows, c.lse_stride[2] = 1;
    /* Parts of the caller's memory, or other memory. */
    c.q_bytes = c.k_bytes = c.v_bytes = c.o_bytes = c.lse_bytes = 0;
    c.sinks = NULL;
    if (a->alibi_slopes != NULL) c.alibi_slopes = (const float *)offset((void *)(uintptr_t)a->alibi_slopes, head * 4);
    c.q_pos = s->position - at.lo;
    return c;
}

/* Lets MPI move on what is on its way. */
static void progress(struct job *j) {
    if (j->posted == 0) return;
    int done = 0;
    double start = MPI_Wtime();
    int32_t status = mpi_ok(j->m, MPI_Testall(j->posted, j->requests, &done, MPI_STATUSES_IGNORE), "MPI_Testall");
    if (j->status == FA_OK) j->status = status;
    j->m->report.seconds_progressing += MPI_Wtime() - start;
}

/* All rows of this rank and one share of keys. When counting: the workspace for it. */
static void meet(struct job *j, const struct share *share) {
    struct slice s = {0};
    fa_quant quants[3];
    int64_t last_rows = -1, last_keys = -1, last_heads = -1;
    while (next_slice(j, &s)) {
        for (int32_t i = 0; i < share->runs; i++) {
            const struct keys *keys = &share->run[i];
            struct range at = seen_by(j->m, (fa_mpi_run){s.position, s.rows}, keys->at);
            if (is_empty(at)) continue;
            /* Bits depend on where keys begin: as the whole run of rows sees them, whatever the
             * slice, and whatever else a ring has brought. What is hidden costs nothing. */
            at.lo = seen_by(j->m, q_run(j->m, j->m->rank, s.run), keys->at).lo;
            fa_attention c = make_call(j, &s, keys, at, quants);
            if (j->counting) {
                size_t bytes = 0;
                if (last_rows == c.len_q && last_keys == c.len_kv && last_heads == c.heads_q) continue;
                last_rows = c.len_q, last_keys = c.len_kv, last_heads = c.heads_q;
                int32_t status = fa_attention_workspace(&c, j->width, &bytes);
                if (status != FA_OK && j->status == FA_OK) j->status = status;
                if (bytes > j->ws_size) j->ws_size = bytes;
                continue;
            }
            double start = MPI_Wtime();
            int32_t status = fa_attention_run(&c, j->ws, j->ws_size, j->pool);
            if (status == FA_OK)
                status = fa_merge(j->o + s.at * j->a->dim_v, j->lse + s.at, j->part_o, j->part_lse, s.results,
                                  j->a->dim_v);
            if (j->status == FA_OK) j->status = status;
            j->m->report.pairs += j->a->batch * c.heads_q * c.len_q * c.len_kv;
            j->m->report.seconds_computing += MPI_Wtime() - start;
            progress(j);
        }
    }
}

/* Before the first share: results of no keys, and of the sinks. */
static void start_results(struct job *j) {
    struct slice s = {0};
    while (next_slice(j, &s)) {
        int64_t heads = s.heads * j->group;
        memset(j->o + s.at * j->a->dim_v, 0, (size_t)(s.results * j->a->dim_v) * 4);
        for (int64_t i = 0; i < s.results; i++) {
            float sink = -INFINITY;
            if (j->a->sinks != NULL)
                memcpy(&sink, (const char *)j->a->sinks + (s.head * j->group + i / s.rows % heads) * 4, 4);
            j->lse[s.at + i] = sink;
        }
    }
}

/* After the last: to where, and in the type that, the caller wants. */
static void write_results(struct job *j) {
    const fa_attention *a = j->a;
    struct slice s = {0};
    while (next_slice(j, &s)) {
        int64_t heads = s.heads * j->group, row = a->dim_v * 4, head = s.head * j->group, first = s.run_row + s.row;
        fa_tensor from = {.data = j->o + s.at * a->dim_v,
                          .stride = {heads * s.rows * row, s.rows * row, row},
                          .dtype = FA_DTYPE_F32},
                  to = a->o;
        to.data = offset(a->o.data, head * a->o.stride[1] + first * a->o.stride[2]);
        int32_t status = fa_quantize(&from, a->batch, heads, s.rows, a->dim_v, &to);
        if (j->status == FA_OK) j->status = status;
        for (int64_t i = 0; a->lse != NULL && i < s.results; i++) {
            int64_t b = i / s.rows / heads, h = head + i / s.rows % heads, r = first + i % s.rows;
            int64_t at = b * a->lse_stride[0] + h * a->lse_stride[1] + r * a->lse_stride[2];
            memcpy((char *)a->lse + at * 4, &j->lse[s.at + i], 4);
        }
    }
}

/* ---- exchange ---- */

/* Begins to send or to receive, in messages that MPI can count; or only counts these. */
static void post(struct job *j, int peer, void *data, int64_t bytes, bool is_send) {
    fa_mpi *m = j->m;
    for (int64_t at = 0; at < bytes; at += FA_MPI_CHUNK, j->posted++) {
        int count = (int)(bytes - at < FA_MPI_CHUNK ? bytes - at : FA_MPI_CHUNK);
        if (j->counting) continue;
        MPI_Request *request = &j->requests[j->posted];
        *request = MPI_REQUEST_NULL;
        int32_t status =
            is_send ? mpi_ok(m, MPI_Isend((char *)data + at, count, MPI_BYTE, peer, TAG, m->comm, request), "MPI_Isend")
                    : mpi_ok(m, MPI_Irecv((char *)data + at, count, MPI_BYTE, peer, TAG, m->comm, request), "MPI_Irecv");
        if (j->status == FA_OK) j->status = status;
        m->report.messages += is_send;
        *(is_send ? &m->report.bytes_sent : &m->report.bytes_received) += count;
    }
    if (j->posted > j->most_posted) j->most_posted = j->posted;
}

/* Some keys of each run of a share that is packed. Both sides name the same ranges, so the
 * messages are the same. */
static void transfer(struct job *j, const struct share *share, const struct range *at, int peer, bool is_send) {
    bool shared = false;
    for (int32_t i = 0; i < share->runs; i++) {
        const struct keys *keys = &share->run[i];
        if (is_empty(at[i])) continue;
        int64_t token = at[i].lo - keys->at.lo, tokens = at[i].hi - at[i].lo;
        post(j, peer, offset(keys->k.data, token * k_record(j)), tokens * k_record(j), is_send);
        if (j->v_in_k < 0) post(j, peer, offset(keys->v.data, token * v_record(j)), tokens * v_record(j), is_send);
        for (int p = 0; p < 4; p++) {
            const struct scales *s = scales_of_plane(j, p);
            int64_t record = scales_record(s);
            if (!has_plane(j, p) || (shared && !has_tokens(s))) continue;
            if (has_tokens(s))
                post(j, peer, offset(keys->scales[p], token * record * 4), tokens * record * 4, is_send);
            else
                post(j, peer, keys->scales[p], record * 4, is_send);
        }
        shared = true;
    }
}

/* Waits for requests from one on, up to another one. */
static void wait_for(struct job *j, int32_t from, int32_t to) {
    if (from >= to) return;
    double start = MPI_Wtime();
    int32_t status =
        mpi_ok(j->m, MPI_Waitall(to - from, j->requests + from, MPI_STATUSES_IGNORE), "MPI_Waitall");
    if (j->status == FA_OK) j->status = status;
    j->m->report.seconds_waiting += MPI_Wtime() - start;
}

/* The rank so many before this one. */
static int before(const fa_mpi *m, int distance) {
    return (m->rank - distance + m->size) % m->size;
}

/* Ranges of all runs of an owner that a ring brings to a rank. */
static void carry(const fa_mpi *m, int owner, int to, struct range *at) {
    for (int32_t i = 0; i < kv_runs_of(m, owner); i++) at[i] = carried(m, owner, i, to);
}

static void need(const fa_mpi *m, int owner, int by, struct range *at) {
    for (int32_t i = 0; i < kv_runs_of(m, owner); i++) at[i] = needed(m, owner, i, by);
}

/* Each step sends the share of the last one on, receives the next, and computes with what is
 * here. */
static void ring(struct job *j) {
    const fa_mpi *m = j->m;
    struct share current = j->packed, next = {0};
    struct range at[FA_MPI_MAX_RUNS];
    int to = (m->rank + 1) % m->size, from = before(m, 1);
    for (int step = 0; step < m->size; step++) {
        j->posted = 0;
        if (step + 1 < m->size) {
            int owner = before(m, step), coming = before(m, step + 1);
            struct arena *buffer = &j->buffers[step % 2];
            carry(m, coming, m->rank, at);
            buffer->used = 0;
            lay_out(j, kv_runs_of(m, coming), at, buffer, &next);
            if (buffer->used > j->buffer_bytes) j->buffer_bytes = buffer->used;
            transfer(j, &next, at, from, false);
            carry(m, owner, to, at);
            transfer(j, &current, at, to, true);
        }
        meet(j, step == 0 ? &j->own : &current);
        if (!j->counting) wait_for(j, 0, j->posted);
        current = next;
    }
    j->posted = 0;
}

/* Everything is on its way at once; shares are taken in the order of the ring. */
static void all_gather(struct job *j) {
    const fa_mpi *m = j->m;
    struct share share;
    struct range at[FA_MPI_MAX_RUNS];
    struct arena *buffer = &j->buffers[0];
    j->posted = 0;
    buffer->used = 0;
    for (int distance = 1; distance < m->size; distance++) {
        int owner = before(m, distance);
        need(m, owner, m->rank, at);
        lay_out(j, kv_runs_of(m, owner), at, buffer, &share);
        if (!j->counting) j->first_request[distance] = j->posted;
        transfer(j, &share, at, owner, false);
    }
    j->buffer_bytes = buffer->used;
    int32_t receives = j->posted;
    for (int distance = 1; distance < m->size; distance++) {
        int to = (m->rank + distance) % m->size;
        need(m, m->rank, to, at);
        transfer(j, &j->packed, at, to, true);
    }
    meet(j, &j->own);
    buffer->used = 0;
    for (int distance = 1; distance < m->size; distance++) {
        int owner = before(m, distance);
        need(m, owner, m->rank, at);
        lay_out(j, kv_runs_of(m, owner), at, buffer, &share);
        if (!j->counting)
            wait_for(j, j->first_request[distance],
                     distance + 1 < m->size ? j->first_request[distance + 1] : receives);
        meet(j, &share);
    }
    if (!j->counting) wait_for(j, receives, j->posted);
    j->posted = 0;
}

/* ---- the plan ---- */

/* Whether V is a view of K's rows: how many bytes from their beginning, else -1. */
static int64_t find_v_in_k(const fa_attention *a) {
    if (a->len_kv == 0) return ANY;
    int64_t at = (int64_t)((uintptr_t)a->v.data - (uintptr_t)a->k.data);
    bool same = a->k.dtype == a->v.dtype && a->k.quant == NULL && a->v.quant == NULL &&
                is_contiguous(&a->k, a->dim_qk) && is_contiguous(&a->v, a->dim_v) &&
                (a->batch == 1 || a->k.stride[0] == a->v.stride[0]) &&
                (a->heads_kv == 1 || a->k.stride[1] == a->v.stride[1]) &&
                (a->len_kv == 1 || a->k.stride[2] == a->v.stride[2]);
    bool within = at >= 0 && at + row_bytes(a->v.dtype, a->dim_v) <= row_bytes(a->k.dtype, a->dim_qk);
    return same && within ? at : -1;
}

static int32_t unsupported(fa_mpi *m, const fa_attention *a) {
    const struct {
        const char *name;
        bool given;
    } fields[] = {
        {"cu_len_q", a->cu_len_q != NULL},   {"cu_len_kv", a->cu_len_kv != NULL},
        {"kv_lens", a->kv_lens != NULL},     {"kv_starts", a->kv_starts != NULL},
        {"mask", a->mask.data != NULL},      {"q_positions", a->q_positions != NULL},
        {"block_mask", a->block_mask != NULL}, {"block_table", a->block_table != NULL},
        {"kept_start", a->kept_start != NULL},
        {"column_start", a->column_start != NULL},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        if (fields[i].given) return say(m, FA_ERR_UNSUPPORTED, "%s is not supported in prefill", fields[i].name);
    }
    return FA_OK;
}

static int32_t describe_prefill(fa_mpi *m, const fa_attention *a, const fa_mpi_prefill_options *o, const fa_pool *pool) {
    if (o->struct_size != sizeof *o)
        return say(m, FA_ERR_STRUCT_SIZE, "options.struct_size is %zu, not %zu", o->struct_size, sizeof *o);
    if (o->reserved != 0) return say(m, FA_ERR_RESERVED, "options.reserved is %d, not 0", (int)o->reserved);
    int32_t status = describe(m, a, o->mode, pool);
    if (status == FA_OK) status = unsupported(m, a);
    if (status != FA_OK) return status;
    fa_attention local = *a;
    /* Any position that is one. */
    local.q_pos = 0;
    char why[WORDS - 64];
    status = fa_attention_check(&local, why, sizeof why);
    if (status != FA_OK) return say(m, status, "%s", why);
    int64_t *h = m->mine;
    h[K_TYPE] = a->k.dtype, h[V_TYPE] = a->v.dtype;
    h[K_SCALES] = scales_given(&a->k), h[V_SCALES] = scales_given(&a->v);
    h[K_GROUP_DIMS] = group_dims(&a->k), h[V_GROUP_DIMS] = group_dims(&a->v);
    h[V_IN_K] = find_v_in_k(a);
    return shares_describe(m, a, o);
}

/* Bytes of keys, values and scales that an all-gather brings to a rank. */
static double gathered(const struct job *j, int rank) {
    const fa_mpi *m = j->m;
    double token = (double)(k_record(j) + v_record(j)), tokens = 0;
    for (int p = 0; p < 4; p++) {
        const struct scales *s = scales_of_plane(j, p);
        if (has_plane(j, p) && has_tokens(s)) token += 4.0 * (double)scales_record(s);
    }
    for (int owner = 0; owner < m->size; owner++) {
        for (int32_t i = 0; owner != rank && i < kv_runs_of(m, owner); i++) {
            struct range at = needed(m, owner, i, rank);
            if (!is_empty(at)) tokens += (double)(at.hi - at.lo);
        }
    }
    return token * tokens;
}

/* All-gather where no rank has to hold more keys than it holds queries and results anyway, which
 * is so with few kv heads; else a ring. The same on all ranks, since all look at all ranks. */
static void choose_mode(struct job *j, int32_t wanted) {
    fa_mpi *m = j->m;
    const fa_attention *a = j->a;
    double most = 0, own = 0;
    int worst = 0;
    for (int rank = 0; rank < m->size; rank++) {
        double bytes = gathered(j, rank);
        double rows = 4.0 * (double)header_of(m, rank)[LEN_Q] * (double)(a->batch * a->heads_q) *
                      (double)(a->dim_qk + a->dim_v);
        if (rank == 0 || bytes - rows > most - own) most = bytes, own = rows, worst = rank;
    }
    j->mode = most <= own ? FA_MPI_ALL_GATHER : FA_MPI_RING;
    const char *names[] = {"", "ring", "all-gather"}, *by = wanted == FA_MPI_AUTO ? "" : " (as asked for)";
    if (wanted != FA_MPI_AUTO) j->mode = wanted;
    say(m, FA_OK, "%s%s: an all-gather brings %.3g MB of keys and values to rank %d, which has %.3g MB of queries and results",
        names[j->mode], by, most * 1e-6, worst, own * 1e-6);
    m->report.mode = j->mode;
}

/* All memory of a call, in the same order when it is counted and when it is there. */
static void arrange(struct job *j, struct arena *arena) {
    const fa_attention *a = j->a;
    const fa_mpi *m = j->m;
    int64_t results = 0, most = 0;
    struct slice s = {0};
    while (next_slice(j, &s)) {
        results = plus(results, s.results);
        if (s.results > most) most = s.results;
    }
    int64_t q_tokens = has_tokens(&j->q_scales) ? a->len_q : 1;
    if (j->q_scales.given & HAS_SCALE) j->q_scale = take(arena, q_tokens, scales_record(&j->q_scales), 4);
    if (j->q_scales.given & HAS_ZERO) j->q_zero = take(arena, q_tokens, scales_record(&j->q_scales), 4);
    if (!j->counting && j->q_scale != NULL) scales_pack(&j->q_scales, a->q.quant, a->q.quant->scale, 0, a->len_q, j->q_scale);
    if (!j->counting && j->q_zero != NULL) scales_pack(&j->q_scales, a->q.quant, a->q.quant->zero, 0, a->len_q, j->q_zero);
    j->o = take(arena, results, a->dim_v, 4);
    j->lse = take(arena, results, 4, 1);
    j->part_o = take(arena, most, a->dim_v, 4);
    j->part_lse = take(arena, most, 4, 1);
    lay_out_packed(j, arena);
    if (j->counting) {
        /* Going through it all without data. */
        if (j->mode == FA_MPI_RING) ring(j);
        else all_gather(j);
        for (int i = 0; i < 2; i++) arena->overflow = arena->overflow || j->buffers[i].overflow;
    }
    j->buffers[0].base = take(arena, (int64_t)j->buffer_bytes, 1, 1);
    if (j->mode == FA_MPI_RING && m->size > 2) j->buffers[1].base = take(arena, (int64_t)j->buffer_bytes, 1, 1);
    j->requests = take(arena, j->most_posted, sizeof *j->requests, 1);
    j->first_request = take(arena, m->size, sizeof *j->first_request, 1);
    j->ws = take(arena, (int64_t)j->ws_size, 1, 1);
}

/* Agrees on a call; then `job` knows how it will go, and `memory` how much it takes. */
static int32_t prepare(struct job *j, const fa_mpi_prefill_options *options, struct arena *counted) {
    static const fa_mpi_prefill_options none = {.struct_size = sizeof none};
    fa_mpi *m = j->m;
    const fa_mpi_prefill_options *o = options != NULL ? options : &none;
    int32_t status = agree(m, describe_prefill(m, j->a, o, j->pool));
    if (status == FA_OK) status = shares_place(m);
    if (status != FA_OK) return status;

    const fa_attention *a = j->a;
    j->width = width_of(j->pool);
    j->group = a->heads_q / a->heads_kv;
    j->k_row = row_bytes(a->k.dtype, a->dim_qk), j->v_row = row_bytes(a->v.dtype, a->dim_v);
    j->v_in_k = -1;
    for (int rank = 0; rank < m->size; rank++) {
        int64_t theirs = header_of(m, rank)[V_IN_K];
        if (theirs != ANY) j->v_in_k = theirs;
    }
    j->q_scales = scales_of(scales_given(&a->q), group_dims(&a->q), a->batch, a->heads_q, a->dim_qk);
    j->k_scales = scales_of(m->mine[K_SCALES], m->mine[K_GROUP_DIMS], a->batch, a->heads_kv, a->dim_qk);
    j->v_scales = scales_of(m->mine[V_SCALES], m->mine[V_GROUP_DIMS], a->batch, a->heads_kv, a->dim_v);
    choose_mode(j, o->mode);
    size_slices(j);
    j->counting = true;
    arrange(j, counted);
    j->counting = false;
    if (j->status != FA_OK) return agree_on_status(m, say(m, j->status, "%s", fa_status_string(j->status)));
    return FA_OK;
}

int32_t fa_mpi_prefill_workspace(fa_mpi *m, const fa_attention *a, const fa_mpi_prefill_options *options,
                                 const fa_pool *pool, size_t *bytes) {
    if (m == NULL) return FA_ERR_NULL;
    begin(m, PREFILL_WORKSPACE);
    struct job j = {.m = m, .a = a, .pool = pool};
    struct arena counted = {0};
    int32_t status = prepare(&j, options, &counted);
    if (status != FA_OK) return status;
    size_t needed_bytes = 0;
    status = memory_size(m, &counted, &needed_bytes);
    if (status == FA_OK && bytes == NULL) status = say(m, FA_ERR_NULL, "bytes is NULL");
    status = agree_on_status(m, status);
    if (status == FA_OK) *bytes = needed_bytes;
    return status;
}

int32_t fa_mpi_prefill(fa_mpi *m, const fa_attention *a, const fa_mpi_prefill_options *options, void *ws, size_t ws_size,
                       const fa_pool *pool) {
    if (m == NULL) return FA_ERR_NULL;
    double start = MPI_Wtime();
    begin(m, PREFILL);
    struct job j = {.m = m, .a = a, .pool = pool};
    struct arena counted = {0};
    struct memory memory;
    int32_t status = prepare(&j, options, &counted);
    if (status != FA_OK) return status;
    status = agree_on_status(m, memory_get(m, ws, ws_size, &counted, &memory));
    if (status == FA_OK) {
        arrange(&j, &memory.arena);
        start_results(&j);
        if (j.mode == FA_MPI_RING) ring(&j);
        else all_gather(&j);
        write_results(&j);
        status = j.status;
    }
    /* What MPI may still write to stays. */
    if (status != FA_MPI_ERR_MPI) memory_release(m, &memory);
    m->report.seconds = MPI_Wtime() - start;
    return status;
}
