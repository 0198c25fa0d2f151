/* One rank passes nonsense, has no memory, or describes something else than the others: all
 * ranks return the same status, with words that name it, write nothing, and can go on. What is
 * the program's own in MPI stays as it is. */

#include "ranks.h"

enum { HEADS_Q = 4, HEADS_KV = 2, DIM = 32, LEN = 12, STRAY = 7 };

static fa_mpi *mpi;
static float q[LEN * HEADS_Q * DIM], k[LEN * HEADS_KV * DIM], v[LEN * HEADS_KV * DIM], o[LEN * HEADS_Q * DIM], lse[LEN * HEADS_Q];
static float sinks[HEADS_Q], scale = 1;
static int32_t list[2] = {0, LEN};
static unsigned char blocks[LEN];
static fa_quant quant = {.scale = &scale};
static fa_pool bad_pool = {.struct_size = 3};
static fa_mpi_run runs[2] = {{0, LEN / 2}, {LEN / 2, LEN / 2}};

/* What one call is given; a rank may be told to spoil it. */
struct call {
    fa_attention a;
    const fa_attention *given;
    fa_mpi_prefill_options options;
    void *ws;
    size_t ws_size;
    const fa_pool *pool;
};

static struct call good_call(void) {
    struct call c = {.options = {.struct_size = sizeof c.options}};
    CHECK(fa_attention_init(&c.a, sizeof c.a) == FA_OK, "init");
    c.a.batch = 1, c.a.heads_q = HEADS_Q, c.a.heads_kv = HEADS_KV, c.a.len_q = c.a.len_kv = LEN, c.a.dim_qk = c.a.dim_v = DIM;
    c.a.q = (fa_tensor){.data = q, .stride = {0, DIM * 4, HEADS_Q * DIM * 4}};
    c.a.k = (fa_tensor){.data = k, .stride = {0, DIM * 4, HEADS_KV * DIM * 4}};
    c.a.v = (fa_tensor){.data = v, .stride = {0, DIM * 4, HEADS_KV * DIM * 4}};
    c.a.o = (fa_tensor){.data = o, .stride = {0, DIM * 4, HEADS_Q * DIM * 4}};
    c.a.lse = lse, c.a.lse_stride[1] = 1, c.a.lse_stride[2] = HEADS_Q;
    return c;
}

/* ---- what may be wrong with one rank ---- */

#define SPOIL(name, ...) \
    static void name(struct call *c) { __VA_ARGS__; }

SPOIL(no_description, c->given = NULL)
SPOIL(old_struct, c->a.struct_size = 8)
SPOIL(no_heads, c->a.heads_kv = 0)
SPOIL(odd_heads, c->a.heads_q = 3)
SPOIL(negative_length, c->a.len_kv = -1)
SPOIL(no_type, c->a.k.dtype = 99)
SPOIL(no_keys, c->a.k.data = NULL)
SPOIL(nan_scale, c->a.scale = NAN)
SPOIL(bad_window, c->a.window_left = -7)
SPOIL(reserved, c->a.reserved0 = 1)
SPOIL(overlap, c->a.o.data = q)
SPOIL(stride, c->a.o.stride[2] = 4)
SPOIL(bad_mode, c->options.mode = 9)
SPOIL(pool, c->pool = &bad_pool)
SPOIL(small_workspace, c->ws = blocks; c->ws_size = 3)
SPOIL(null_workspace, c->ws = NULL; c->ws_size = 1 << 20)
SPOIL(prefix, c->a.prefix_keys = 1)
SPOIL(scales_of_o, c->a.o.dtype = FA_DTYPE_Q15; c->a.o.quant = &quant)
SPOIL(bad_lens, c->a.kv_lens = list; list[0] = LEN + 1)
SPOIL(old_options, c->options.struct_size = 1)
SPOIL(reserved_option, c->options.reserved = 1)
SPOIL(mask, c->a.mask = (fa_tensor){.data = k, .stride = {0, 0, LEN * 4}})
SPOIL(lens, c->a.kv_lens = list)
SPOIL(lists_q, c->a.cu_len_q = list)
SPOIL(lists_kv, c->a.cu_len_kv = list)
SPOIL(starts, c->a.kv_starts = list)
SPOIL(positions, c->a.q_positions = list)
SPOIL(block_mask, c->a.block_mask = blocks; c->a.block_mask_q = c->a.block_mask_kv = LEN)
SPOIL(kept, c->a.kept_start = list; c->a.kept_q = c->a.kept_kv = LEN)
SPOIL(columns, c->a.column_start = list)
SPOIL(pages, c->a.block_table = list; c->a.table_stride = 1; c->a.page_size = LEN; c->a.num_pages = 1)
SPOIL(many_runs, c->options.num_q_runs = FA_MPI_MAX_RUNS + 1; c->options.q_runs = runs)
SPOIL(minus_runs, c->options.num_kv_runs = -1; c->options.kv_runs = runs)
SPOIL(no_runs, c->options.num_q_runs = 1)
SPOIL(short_runs, c->options.num_kv_runs = 1; c->options.kv_runs = runs)
SPOIL(negative_run, runs[0].length = -1; c->options.num_q_runs = 2; c->options.q_runs = runs)
SPOIL(negative_key, runs[0].position = -1; c->options.num_kv_runs = 2; c->options.kv_runs = runs)
SPOIL(far_run, runs[0].position = INT64_MAX - 3; c->options.num_q_runs = 2; c->options.q_runs = runs)

SPOIL(other_batch, c->a.batch = 0)
SPOIL(other_heads, c->a.heads_q = 2)
SPOIL(other_kv_heads, c->a.heads_kv = 1)
SPOIL(other_dim, c->a.dim_qk = 16)
SPOIL(other_dim_v, c->a.dim_v = 16)
SPOIL(other_flags, c->a.flags = FA_PRECISE)
SPOIL(other_scale, c->a.scale = 2)
SPOIL(other_softcap, c->a.softcap = 2)
SPOIL(other_left, c->a.window_left = 3)
SPOIL(other_right, c->a.window_right = 0)
SPOIL(other_slopes, c->a.alibi_slopes = sinks)
SPOIL(other_sinks, c->a.sinks = sinks)
SPOIL(other_mode, c->options.mode = FA_MPI_RING)
SPOIL(other_k, c->a.k.dtype = FA_DTYPE_F16)
SPOIL(other_v, c->a.v.dtype = FA_DTYPE_BF16)
SPOIL(only_quant, c->a.k.dtype = FA_DTYPE_I8; c->a.k.quant = &quant)
SPOIL(view, c->a.v = c->a.k)
SPOIL(other_q_pos, c->a.q_pos = 5)
SPOIL(other_len_q, c->a.len_q = LEN - 1)
SPOIL(named_q_runs, c->options.num_q_runs = 2; c->options.q_runs = runs)
SPOIL(named_kv_runs, c->options.num_kv_runs = 2; c->options.kv_runs = runs)

enum { IN_PREFILL = 1, IN_DECODE = 2, IN_BOTH = 3 };

static const struct fault {
    const char *name;
    void (*spoil)(struct call *c);
    int32_t want;
    int where;
} faults[] = {
    {"no description", no_description, FA_ERR_NULL, IN_BOTH},
    {"struct_size", old_struct, FA_ERR_STRUCT_SIZE, IN_BOTH},
    {"heads_kv", no_heads, FA_ERR_ZERO_EXTENT, IN_BOTH},
    {"heads_q", odd_heads, FA_ERR_SHAPE, IN_BOTH},
    {"len_kv", negative_length, FA_ERR_SHAPE, IN_BOTH},
    {"k.dtype", no_type, FA_ERR_DTYPE, IN_BOTH},
    {"k.data", no_keys, FA_ERR_NULL, IN_BOTH},
    {"scale", nan_scale, FA_ERR_SOFTMAX_SCALE, IN_BOTH},
    {"window_left", bad_window, FA_ERR_WINDOW, IN_BOTH},
    {"reserved0", reserved, FA_ERR_RESERVED, IN_BOTH},
    {"o on q", overlap, FA_ERR_OVERLAP, IN_BOTH},
    {"o.stride", stride, FA_ERR_STRIDE, IN_BOTH},
    {"mode", bad_mode, FA_MPI_ERR_MODE, IN_BOTH},
    {"pool", pool, FA_ERR_STRUCT_SIZE, IN_BOTH},
    {"small workspace", small_workspace, FA_ERR_WORKSPACE, IN_BOTH},
    {"NULL workspace", null_workspace, FA_ERR_WORKSPACE, IN_BOTH},
    {"prefix_keys", prefix, FA_ERR_UNSUPPORTED, IN_BOTH},
    {"o.quant", scales_of_o, FA_ERR_UNSUPPORTED, IN_BOTH},
    {"kv_lens too long", bad_lens, FA_ERR_LENGTHS, IN_DECODE},
    {"options.struct_size", old_options, FA_ERR_STRUCT_SIZE, IN_PREFILL},
    {"options.reserved", reserved_option, FA_ERR_RESERVED, IN_PREFILL},
    {"mask", mask, FA_ERR_UNSUPPORTED, IN_PREFILL},
    {"kv_lens", lens, FA_ERR_UNSUPPORTED, IN_PREFILL},
    {"cu_len_q", lists_q, FA_ERR_UNSUPPORTED, IN_PREFILL},
    {"cu_len_kv", lists_kv, FA_ERR_UNSUPPORTED, IN_PREFILL},
    {"kv_starts", starts, FA_ERR_UNSUPPORTED, IN_PREFILL},
    {"q_positions", positions, FA_ERR_UNSUPPORTED, IN_PREFILL},
    {"block_mask", block_mask, FA_ERR_UNSUPPORTED, IN_PREFILL},
    {"kept_start", kept, FA_ERR_UNSUPPORTED, IN_PREFILL},
    {"column_start", columns, FA_ERR_UNSUPPORTED, IN_PREFILL},
    {"block_table", pages, FA_ERR_UNSUPPORTED, IN_PREFILL},
    {"num_q_runs", many_runs, FA_MPI_ERR_RUNS, IN_PREFILL},
    {"num_kv_runs", minus_runs, FA_MPI_ERR_RUNS, IN_PREFILL},
    {"q_runs", no_runs, FA_ERR_NULL, IN_PREFILL},
    {"kv_runs are not len_kv", short_runs, FA_MPI_ERR_RUNS, IN_PREFILL},
    {"negative length of a run", negative_run, FA_MPI_ERR_RUNS, IN_PREFILL},
    {"negative position of a key", negative_key, FA_MPI_ERR_RUNS, IN_PREFILL},
    {"run too far away", far_run, FA_MPI_ERR_RUNS, IN_PREFILL},
};

/* What only other ranks can see. */
static const struct fault disagreements[] = {
    {"batch", other_batch, FA_MPI_ERR_DISAGREE, IN_BOTH},
    {"heads_q", other_heads, FA_MPI_ERR_DISAGREE, IN_BOTH},
    {"heads_kv", other_kv_heads, FA_MPI_ERR_DISAGREE, IN_BOTH},
    {"dim_qk", other_dim, FA_MPI_ERR_DISAGREE, IN_BOTH},
    {"dim_v", other_dim_v, FA_MPI_ERR_DISAGREE, IN_BOTH},
    {"flags", other_flags, FA_MPI_ERR_DISAGREE, IN_BOTH},
    {"scale", other_scale, FA_MPI_ERR_DISAGREE, IN_BOTH},
    {"softcap", other_softcap, FA_MPI_ERR_DISAGREE, IN_BOTH},
    {"window_left", other_left, FA_MPI_ERR_DISAGREE, IN_BOTH},
    {"window_right", other_right, FA_MPI_ERR_DISAGREE, IN_BOTH},
    {"alibi_slopes", other_slopes, FA_MPI_ERR_DISAGREE, IN_BOTH},
    {"sinks", other_sinks, FA_MPI_ERR_DISAGREE, IN_BOTH},
    {"mode", other_mode, FA_MPI_ERR_DISAGREE, IN_BOTH},
    {"k.dtype", other_k, FA_MPI_ERR_DISAGREE, IN_PREFILL},
    {"v.dtype", other_v, FA_MPI_ERR_DISAGREE, IN_PREFILL},
    {"k.dtype", only_quant, FA_MPI_ERR_DISAGREE, IN_PREFILL},
    {"v as a view of k", view, FA_MPI_ERR_DISAGREE, IN_PREFILL},
    {"q_pos", other_q_pos, FA_MPI_ERR_DISAGREE, IN_BOTH},
    {"len_q", other_len_q, FA_MPI_ERR_DISAGREE, IN_DECODE},
    {"cu_len_q", lists_q, FA_MPI_ERR_DISAGREE, IN_DECODE},
    {"num_q_runs", named_q_runs, FA_MPI_ERR_DISAGREE, IN_PREFILL},
    {"num_kv_runs", named_kv_runs, FA_MPI_ERR_DISAGREE, IN_PREFILL},
};

/* ---- calls ---- */

static int32_t make(struct call *c, int which) {
    const fa_attention *a = c->given;
    size_t bytes = 12345;
    if (which == IN_DECODE) return fa_mpi_decode(mpi, a, c->options.mode, c->ws, c->ws_size, c->pool);
    int32_t status = fa_mpi_prefill_workspace(mpi, a, &c->options, c->pool, &bytes);
    /* What is wrong with the workspace, it does not know. */
    if (status != FA_OK) {
        CHECK(bytes == 12345, "a refused call has written bytes");
        return status;
    }
    return fa_mpi_prefill(mpi, a, &c->options, c->ws, c->ws_size, c->pool);
}

static void restore(void) {
    list[0] = 0, list[1] = LEN;
    runs[0] = (fa_mpi_run){rank * LEN, LEN / 2}, runs[1] = (fa_mpi_run){rank * LEN + LEN / 2, LEN / 2};
}

static bool is_blank(void) {
    const unsigned char *bytes = (unsigned char *)o, *more = (unsigned char *)lse;
    for (size_t i = 0; i < sizeof o; i++)
        if (bytes[i] != 0xa5) return false;
    for (size_t i = 0; i < sizeof lse; i++)
        if (more[i] != 0xa5) return false;
    return true;
}

static long count;

static void try(const struct fault *f, int bad, int which) {
    memset(o, 0xa5, sizeof o), memset(lse, 0xa5, sizeof lse);
    restore();
    struct call c = good_call();
    c.given = &c.a;
    if (rank == bad) f->spoil(&c);
    int32_t status = make(&c, which);
    char name[20];
    snprintf(name, sizeof name, "rank %d", bad);
    const char *words = fa_mpi_words(mpi);
    CHECK(status == f->want, "%s on rank %d, call %d: %d, not %d (%s)", f->name, bad, which, (int)status, (int)f->want, words);
    CHECK(strstr(words, name) != NULL, "%s: no %s in \"%s\"", f->name, name, words);
    CHECK(f->want != FA_MPI_ERR_DISAGREE || strstr(words, f->name) != NULL, "%s: not in \"%s\"", f->name, words);
    CHECK(is_same_everywhere(words, strlen(words)), "%s: ranks have different words, here \"%s\"", f->name, words);
    CHECK(is_blank(), "%s: a refused call has written", f->name);
    count++;
}

static void works(const char *after) {
    restore();
    struct call c = good_call();
    c.given = &c.a;
    CHECK(make(&c, IN_PREFILL) == FA_OK, "prefill after %s: %s", after, fa_mpi_words(mpi));
    CHECK(make(&c, IN_DECODE) == FA_OK, "decode after %s: %s", after, fa_mpi_words(mpi));
    count += 2;
}

/* ---- memory ---- */

struct limited {
    long left, given;
};

static void *limited_allocate(void *ctx, size_t bytes) {
    struct limited *l = ctx;
    if (l->left == 0) return NULL;
    l->left--, l->given++;
    return need(bytes);
}

static void limited_release(void *ctx, void *memory) {
    ((struct limited *)ctx)->given--;
    free(memory);
}

/* Each allocation fails once, on one rank. */
static void without_memory(int bad) {
    enum { MOST = 50 };
    long n = 0;
    for (int done = 0; n < MOST && !done; n++) {
        struct limited limited = {rank == bad ? n : -1, 0};
        fa_mpi_memory memory = {limited_allocate, limited_release, &limited};
        fa_mpi *old = mpi, *fresh = NULL;
        int32_t status = fa_mpi_create(MPI_COMM_WORLD, &memory, &fresh);
        if (status != FA_OK) {
            CHECK(status == FA_ERR_MEMORY && fresh == NULL, "create without memory: %d", (int)status);
            CHECK(limited.given == 0, "create keeps memory: %ld", limited.given);
            continue;
        }
        mpi = fresh;
        restore();
        struct call c = good_call();
        c.given = &c.a;
        /* So that positions are needed, too. */
        c.a.window_right = 0;
        memset(o, 0xa5, sizeof o), memset(lse, 0xa5, sizeof lse);
        int32_t prefill = make(&c, IN_PREFILL);
        CHECK(prefill == FA_OK || prefill == FA_ERR_MEMORY, "prefill without memory: %d", (int)prefill);
        CHECK(prefill == FA_OK || (is_blank() && strstr(fa_mpi_words(mpi), "memory") != NULL), "%s", fa_mpi_words(mpi));
        memset(o, 0xa5, sizeof o), memset(lse, 0xa5, sizeof lse);
        int32_t decode = make(&c, IN_DECODE);
        CHECK(decode == FA_OK || decode == FA_ERR_MEMORY, "decode without memory: %d", (int)decode);
        CHECK(decode == FA_OK || is_blank(), "decode without memory has written");
        int32_t both[2] = {prefill, decode};
        CHECK(is_same_everywhere(both, sizeof both), "ranks have different statuses");
        done = prefill == FA_OK && decode == FA_OK;
        fa_mpi_free(mpi);
        CHECK(limited.given == 0, "memory that was not given back: %ld", limited.given);
        mpi = old;
    }
    CHECK(n > 5 && n < MOST, "%ld allocations", n);
    count += n;
}

/* ---- the program's own in MPI ---- */

static void on_error(MPI_Comm *comm, int *code, ...) {
    (void)comm, (void)code;
}

static void own_things(void) {
    MPI_Errhandler mine, now;
    MPI_Comm_create_errhandler(on_error, &mine);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, mine);
    /* It would take any message there. */
    int got = 0, sent = 1000 + rank, flag = 1;
    MPI_Request request;
    MPI_Irecv(&got, 1, MPI_INT, MPI_ANY_SOURCE, MPI_ANY_TAG, MPI_COMM_WORLD, &request);
    MPI_Barrier(MPI_COMM_WORLD);
    fa_mpi *old = mpi;
    CHECK(fa_mpi_create(MPI_COMM_WORLD, NULL, &mpi) == FA_OK, "create");
    works("creation");
    MPI_Test(&request, &flag, MPI_STATUS_IGNORE);
    CHECK(!flag, "the library's message has come to the program");
    MPI_Barrier(MPI_COMM_WORLD);
    MPI_Send(&sent, 1, MPI_INT, (rank + 1) % ranks, STRAY, MPI_COMM_WORLD);
    if (flag == 0) MPI_Wait(&request, MPI_STATUS_IGNORE);
    CHECK(got == 1000 + (rank + ranks - 1) % ranks, "the program's message is %d", got);
    MPI_Comm_get_errhandler(MPI_COMM_WORLD, &now);
    CHECK(now == mine, "the program's error handler has changed");
    MPI_Errhandler_free(&now);
    fa_mpi_free(mpi);
    mpi = old;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_ARE_FATAL);
    MPI_Errhandler_free(&mine);

    /* Some of the ranks, and the communicator is gone before the first call. */
    MPI_Comm part;
    MPI_Comm_split(MPI_COMM_WORLD, rank % 2, -rank, &part);
    fa_mpi *some = NULL;
    CHECK(fa_mpi_create(part, NULL, &some) == FA_OK, "create of a part");
    MPI_Comm_free(&part);
    struct call c = good_call();
    CHECK(fa_mpi_prefill(some, &c.a, NULL, NULL, 0, NULL) == FA_OK, "prefill of a part: %s", fa_mpi_words(some));
    fa_mpi_free(some);
    fa_mpi_free(NULL);
    CHECK(fa_mpi_create(MPI_COMM_NULL, NULL, &some) == FA_ERR_NULL, "no communicator");
    CHECK(fa_mpi_prefill(NULL, &c.a, NULL, NULL, 0, NULL) == FA_ERR_NULL, "no fa_mpi");
    CHECK(fa_mpi_create(MPI_COMM_WORLD, NULL, NULL) == FA_ERR_NULL, "nowhere to put it");
    count += 6;
}

/* Runs that are right by themselves, and not together. */
static void same_keys(void) {
    restore();
    struct call c = good_call();
    c.options.num_kv_runs = 1, c.options.kv_runs = runs;
    runs[0] = (fa_mpi_run){rank * (LEN - 1), LEN};
    memset(o, 0xa5, sizeof o), memset(lse, 0xa5, sizeof lse);
    int32_t status = fa_mpi_prefill(mpi, &c.a, &c.options, NULL, 0, NULL);
    CHECK(status == (ranks > 1 ? FA_MPI_ERR_RUNS : FA_OK), "two ranks have a key: %d", (int)status);
    CHECK(ranks == 1 || strstr(fa_mpi_words(mpi), "rank 0 and rank 1") != NULL, "%s", fa_mpi_words(mpi));
    CHECK(ranks == 1 || is_blank(), "a refused call has written");
    count++;
}

int main(int argc, char **argv) {
    ranks_begin(&argc, &argv);
    if (fa_mpi_create(MPI_COMM_WORLD, NULL, &mpi) != FA_OK) return 2;
    works("creation");
    for (int bad = 0; bad < ranks; bad += ranks > 1 ? ranks - 1 : 1) {
        for (int which = IN_PREFILL; which <= IN_DECODE; which++) {
            for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
                if (faults[i].where & which) try(&faults[i], bad, which);
            for (size_t i = 0; ranks > 1 && i < sizeof disagreements / sizeof *disagreements; i++)
                if (disagreements[i].where & which) try(&disagreements[i], bad, which);
        }
        without_memory(bad);
        works("refusals");
    }
    own_things();
    same_keys();
    for (int32_t status = 0; status < 1010; status++) CHECK(strlen(fa_mpi_status_string(status)) > 0, "%d", (int)status);
    fa_mpi_free(mpi);
    return ranks_end("calls", count);
}
