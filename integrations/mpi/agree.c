/* An fa_mpi, and how its ranks agree on a call before anything is exchanged. */

#include "internal.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const field_names[LAST_AGREED] = {
    [CALL] = "the function called",
    [VERSION] = "fa_version",
    [MODE] = "mode",
    [BATCH] = "batch",
    [HEADS_Q] = "heads_q",
    [HEADS_KV] = "heads_kv",
    [DIM_QK] = "dim_qk",
    [DIM_V] = "dim_v",
    [FLAGS] = "flags",
    [SCALE] = "scale",
    [SOFTCAP] = "softcap",
    [WINDOW_LEFT] = "window_left",
    [WINDOW_RIGHT] = "window_right",
    [SLOPES] = "alibi_slopes (given or not)",
    [SINKS] = "sinks (given or not)",
    [K_TYPE] = "k.dtype",
    [V_TYPE] = "v.dtype",
    [K_SCALES] = "k.quant (what is given, and the axes with a stride)",
    [V_SCALES] = "v.quant (what is given, and the axes with a stride)",
    [K_GROUP_DIMS] = "k.quant.group_dims",
    [V_GROUP_DIMS] = "v.quant.group_dims",
    [V_IN_K] = "v as a view of k (offset in bytes, -1 = none)",
    [LEN_Q_OF_ALL] = "len_q",
    [ROWS_OF_ALL] = "cu_len_q[batch]",
    [Q_LISTS] = "cu_len_q or q_positions (what is in them)",
    [Q_POS] = "q_pos",
    [Q_LAYOUT] = "num_q_runs (0 or not)",
    [KV_LAYOUT] = "num_kv_runs (0 or not)",
};

/* ---- words and statuses ---- */

int32_t say(fa_mpi *m, int32_t status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(m->words, sizeof m->words, format, arguments);
    va_end(arguments);
    return status;
}

int32_t mpi_ok(fa_mpi *m, int code, const char *function) {
    if (code == MPI_SUCCESS) return FA_OK;
    char text[MPI_MAX_ERROR_STRING + 1] = "";
    int length = 0;
    MPI_Error_string(code, text, &length);
    return say(m, FA_MPI_ERR_MPI, "rank %d: %s: %.300s", m->rank, function, text);
}

const char *fa_mpi_status_string(int32_t status) {
    switch (status) {
    case FA_MPI_ERR_DISAGREE: return "the ranks' descriptions disagree about what has to be the same";
    case FA_MPI_ERR_RUNS: return "runs are negative, are not the rows that there are, or have the same keys";
    case FA_MPI_ERR_MPI: return "a function of MPI failed";
    case FA_MPI_ERR_MODE: return "not a value of fa_mpi_mode";
    default: return fa_status_string(status);
    }
}

const char *fa_mpi_words(const fa_mpi *mpi) {
    return mpi != NULL ? mpi->words : "";
}

void fa_mpi_last(const fa_mpi *mpi, fa_mpi_report *report) {
    if (mpi != NULL && report != NULL) *report = mpi->report;
}

void begin(fa_mpi *m, enum call call) {
    m->words[0] = '\0';
    memset(&m->report, 0, sizeof m->report);
    memset(m->mine, 0, sizeof m->mine);
    m->mine[CALL] = call;
    m->mine[VERSION] = fa_version();
}

/* ---- making and freeing ---- */

static void *plain_allocate(void *ctx, size_t bytes) {
    (void)ctx;
    return malloc(bytes);
}

static void plain_release(void *ctx, void *memory) {
    (void)ctx;
    free(memory);
}

int32_t fa_mpi_create(MPI_Comm comm, const fa_mpi_memory *memory, fa_mpi **out) {
    int started = 0, inter = 0;
    MPI_Initialized(&started);
    if (!started) return FA_MPI_ERR_MPI;
    if (comm == MPI_COMM_NULL) return FA_ERR_NULL;
    /* The communicator is known to all its ranks alike. */
    if (MPI_Comm_test_inter(comm, &inter) != MPI_SUCCESS || inter) return FA_MPI_ERR_MPI;
    MPI_Comm own;
    if (MPI_Comm_dup(comm, &own) != MPI_SUCCESS) return FA_MPI_ERR_MPI;
    MPI_Comm_set_errhandler(own, MPI_ERRORS_RETURN);

    fa_mpi_memory from = {plain_allocate, plain_release, NULL};
    int32_t status = out != NULL ? FA_OK : FA_ERR_NULL;
    if (memory != NULL) {
        from = *memory;
        if (from.allocate == NULL || from.release == NULL) status = FA_ERR_NULL;
    }
    int rank = 0, size = 1;
    MPI_Comm_rank(own, &rank);
    MPI_Comm_size(own, &size);
    fa_mpi *m = NULL;
    int64_t *headers = NULL;
    struct owned_run *sorted = NULL;
    if (status == FA_OK) {
        m = from.allocate(from.ctx, sizeof *m);
        headers = from.allocate(from.ctx, (size_t)size * FIELDS * sizeof *headers);
        sorted = from.allocate(from.ctx, (size_t)size * FA_MPI_MAX_RUNS * sizeof *sorted);
        if (m == NULL || headers == NULL || sorted == NULL) status = FA_ERR_MEMORY;
    }
    int32_t worst = status;
    if (MPI_Allreduce(&status, &worst, 1, MPI_INT32_T, MPI_MAX, own) != MPI_SUCCESS) worst = FA_MPI_ERR_MPI;
    if (worst != FA_OK) {
        if (sorted != NULL) from.release(from.ctx, sorted);
        if (headers != NULL) from.release(from.ctx, headers);
        if (m != NULL) from.release(from.ctx, m);
        MPI_Comm_free(&own);
        return worst;
    }
    *m = (struct fa_mpi){
        .comm = own, .rank = rank, .size = size, .memory = from, .headers = headers, .sorted = sorted};
    *out = m;
    return FA_OK;
}

void fa_mpi_free(fa_mpi *m) {
    if (m == NULL) return;
    int over = 0;
    MPI_Finalized(&over);
    if (!over) MPI_Comm_free(&m->comm);
    fa_mpi_memory from = m->memory;
    from.release(from.ctx, m->sorted);
    from.release(from.ctx, m->headers);
    from.release(from.ctx, m);
}

/* ---- what a rank says ---- */

static int64_t float_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

int32_t width_of(const fa_pool *pool) {
    int32_t width = pool != NULL && pool->width != NULL ? pool->width(pool->ctx) : 1;
    return width < 1 ? 1 : width > 256 ? 256 : width;
}

/* A pool is looked at by the library alone, which also does it where there is nothing to
 * compute. */
static int32_t check_pool(const fa_pool *pool) {
    fa_attention nothing;
    int32_t status = fa_attention_init(&nothing, sizeof nothing);
    nothing.heads_q = nothing.heads_kv = nothing.dim_qk = nothing.dim_v = 1;
    return status != FA_OK ? status : (int32_t)fa_attention_run(&nothing, NULL, 0, pool);
}

int32_t describe(fa_mpi *m, const fa_attention *a, int32_t mode, const fa_pool *pool) {
    if (a == NULL) return say(m, FA_ERR_NULL, "the description is NULL");
    if (a->struct_size != sizeof *a)
        return say(m, FA_ERR_STRUCT_SIZE, "struct_size is %zu, not %zu", a->struct_size, sizeof *a);
    if (mode < FA_MPI_AUTO || mode > FA_MPI_ALL_GATHER)
        return say(m, FA_MPI_ERR_MODE, "mode is %d, no value of fa_mpi_mode", (int)mode);
    int32_t status = check_pool(pool);
    if (status != FA_OK) return say(m, status, "pool: %s", fa_status_string(status));
    if (a->spans != NULL) return say(m, FA_ERR_UNSUPPORTED, "spans are not supported");
    if (a->o.quant != NULL) return say(m, FA_ERR_UNSUPPORTED, "scales of the output (o.quant) are not supported");
    if (a->prefix_keys != 0) return say(m, FA_ERR_UNSUPPORTED, "prefix_keys is not supported");
    if (a->weights.data != NULL) return say(m, FA_ERR_UNSUPPORTED, "weights are not supported");

    int64_t *h = m->mine;
    h[MODE] = mode;
    h[BATCH] = a->batch;
    h[HEADS_Q] = a->heads_q, h[HEADS_KV] = a->heads_kv;
    h[DIM_QK] = a->dim_qk, h[DIM_V] = a->dim_v;
    h[FLAGS] = a->flags;
    h[SCALE] = float_bits(a->scale), h[SOFTCAP] = float_bits(a->softcap);
    h[WINDOW_LEFT] = a->window_left, h[WINDOW_RIGHT] = a->window_right;
    h[SLOPES] = a->alibi_slopes != NULL, h[SINKS] = a->sinks != NULL;
    /* FA_POS_END is what ANY is. */
    h[Q_POS] = a->q_pos == FA_POS_END ? INT64_MAX : a->q_pos;
    h[LEN_Q] = a->len_q, h[LEN_KV] = a->len_kv;
    return FA_OK;
}

/* ---- what the ranks make of it ---- */

/* The words of one rank, for all. */
static int32_t share_words(fa_mpi *m, int rank, int32_t status) {
    char words[WORDS] = "";
    memcpy(words, m->words, sizeof words);
    if (mpi_ok(m, MPI_Bcast(words, WORDS, MPI_CHAR, rank, m->comm), "MPI_Bcast") != FA_OK) return FA_MPI_ERR_MPI;
    words[WORDS - 1] = '\0';
    return say(m, status, "rank %d: %.*s", rank, WORDS - 32, words);
}

int32_t agree(fa_mpi *m, int32_t status) {
    double start = MPI_Wtime();
    m->mine[STATUS] = status;
    int32_t result = mpi_ok(m, MPI_Allgather(m->mine, FIELDS, MPI_INT64_T, m->headers, FIELDS, MPI_INT64_T, m->comm),
                            "MPI_Allgather");
    for (int rank = 0; result == FA_OK && rank < m->size; rank++) {
        int32_t theirs = (int32_t)header_of(m, rank)[STATUS];
        if (theirs != FA_OK) result = share_words(m, rank, theirs);
    }
    for (int field = 0; result == FA_OK && field < LAST_AGREED; field++) {
        int first = -1;
        for (int rank = 0; result == FA_OK && rank < m->size; rank++) {
            int64_t is = header_of(m, rank)[field];
            if (is == ANY) continue;
            if (first < 0) first = rank;
            int64_t was = header_of(m, first)[field];
            if (is != was)
                result = say(m, FA_MPI_ERR_DISAGREE, "%s: %lld on rank %d, %lld on rank %d", field_names[field],
                             (long long)is, rank, (long long)was, first);
        }
    }
    m->report.seconds_agreeing += MPI_Wtime() - start;
    return result;
}

/* The first rank with a status is the largest number. */
static uint64_t ranked(const fa_mpi *m, int32_t status) {
    return status == FA_OK ? 0 : (uint64_t)(m->size - m->rank) << 32 | (uint32_t)status;
}

int32_t agree_on_status(fa_mpi *m, int32_t status) {
    double start = MPI_Wtime();
    uint64_t mine = ranked(m, status), worst = 0;
    int32_t result =
        mpi_ok(m, MPI_Allreduce(&mine, &worst, 1, MPI_UINT64_T, MPI_MAX, m->comm), "MPI_Allreduce");
    if (result == FA_OK && worst != 0)
        result = share_words(m, m->size - (int)(worst >> 32), (int32_t)(uint32_t)worst);
    m->report.seconds_agreeing += MPI_Wtime() - start;
    return result;
}

int32_t agree_begin(fa_mpi *m, int32_t status, struct pending *p) {
    /* The steps of splitmix64, over the fields. */
    uint64_t hash = 0;
    for (int field = 0; field < LAST_AGREED; field++) {
        hash = (hash ^ (uint64_t)m->mine[field]) + 0x9e3779b97f4a7c15u;
        hash = (hash ^ hash >> 30) * 0xbf58476d1ce4e5b9u;
        hash = (hash ^ hash >> 27) * 0x94d049bb133111ebu;
        hash ^= hash >> 31;
    }
    p->sent[0] = ranked(m, status);
    p->sent[1] = hash, p->sent[2] = ~hash;
    return mpi_ok(m, MPI_Iallreduce(p->sent, p->received, 3, MPI_UINT64_T, MPI_MAX, m->comm, &p->request),
                  "MPI_Iallreduce");
}

int32_t agree_end(fa_mpi *m, int32_t status, struct pending *p) {
    double start = MPI_Wtime();
    int32_t result = mpi_ok(m, MPI_Wait(&p->request, MPI_STATUS_IGNORE), "MPI_Wait");
    m->report.seconds_agreeing += MPI_Wtime() - start;
    if (result != FA_OK) return result;
    /* The largest and the smallest hash are the same. */
    if (p->received[0] == 0 && p->received[1] == ~p->received[2]) return FA_OK;
    return agree(m, status);
}

/* ---- workspace ---- */

void *take(struct arena *arena, int64_t a, int64_t b, int64_t c) {
    uint64_t factors[3] = {(uint64_t)a, (uint64_t)b, (uint64_t)c}, bytes = 1;
    const uint64_t most = PTRDIFF_MAX / 2;
    if (a <= 0 || b <= 0 || c <= 0) bytes = 0;
    for (int i = 0; i < 3 && bytes != 0; i++) {
        if (factors[i] > most / bytes) {
            arena->overflow = true;
            return NULL;
        }
        bytes *= factors[i];
    }
    size_t at = arena->used, room = (size_t)((bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    if (room > most - at) {
        arena->overflow = true;
        return NULL;
    }
    arena->used += room;
    return arena->base != NULL ? arena->base + at : NULL;
}

int32_t memory_size(fa_mpi *m, const struct arena *counted, size_t *bytes) {
    if (counted->overflow) return say(m, FA_ERR_OVERFLOW, "more workspace than an address space holds");
    *bytes = counted->used + ALIGNMENT;
    m->report.workspace = (int64_t)*bytes;
    return FA_OK;
}

int32_t memory_get(fa_mpi *m, void *ws, size_t ws_size, const struct arena *counted, struct memory *out) {
    size_t bytes = 0;
    out->own = NULL;
    int32_t status = memory_size(m, counted, &bytes);
    if (status != FA_OK) return status;
    char *base = ws;
    if (ws == NULL && ws_size == 0) {
        base = out->own = m->memory.allocate(m->memory.ctx, bytes);
        if (base == NULL) return say(m, FA_ERR_MEMORY, "no memory for %zu bytes of workspace", bytes);
    } else if (ws == NULL || ws_size < bytes) {
        return say(m, FA_ERR_WORKSPACE, "the workspace has %zu bytes%s, not %zu", ws_size,
                   ws == NULL ? " and is NULL" : "", bytes);
    }
    base += (ALIGNMENT - (uintptr_t)base % ALIGNMENT) % ALIGNMENT;
    out->arena = (struct arena){.base = base};
    return FA_OK;
}

void memory_release(fa_mpi *m, struct memory *memory) {
    if (memory->own != NULL) m->memory.release(m->memory.ctx, memory->own);
    memory->own = NULL;
}
