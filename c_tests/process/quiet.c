/* The library says nothing: whatever is called, nothing reaches stdout or stderr. */

#define _GNU_SOURCE

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "calls.h"
#include "limit.h"

enum { LEN = 160, ELEMENTS = HEADS * LEN * DIM };

static float *q, *k, *v, *out;
static int8_t *q8;

/* Codes that the calls below gave: nothing may be printed while they run, not even by CHECK. */
static int counts[FA_ERR_PAGE + 1];

static void note(fa_status status) {
    if (status <= FA_ERR_PAGE) counts[status]++;
}

static void good_calls(void) {
    fa_config cfg;
    size_t bytes;
    note(fa_config_for_head_dim(&cfg, DIM));
    note(fa_config_for_long_sequence(&cfg, DIM));
    note(fa_config_auto(&cfg, DIM));
    for (uint32_t threads = 0; threads < 5; threads++) {
        cfg.num_threads = threads;
        cfg.causal = threads % 2;
        note(fa_forward_f32(&cfg, q, k, v, LEN, LEN, out));
        note(fa_forward_i8(&cfg, q8, q8, q8, 0.1f, 0.1f, 0.1f, LEN, LEN, out));
        note(fa_mha(&cfg, q, k, v, HEADS, LEN, LEN, out));
        note(fa_scratch_bytes(&cfg, FA_DTYPE_F32, HEADS, LEN, LEN, &bytes));
    }
    for (int i = 0; i < ISAS; i++) {
        note(fa_limit_isa(isa_names[i]));
        note(fa_mha(&cfg, q, k, v, HEADS, LEN, LEN, out));
        (void)fa_isa();
    }
    note(fa_limit_isa(NULL));
    for (int32_t status = -2; status < 30; status++) (void)fa_status_string(status);
    (void)fa_version();
    (void)fa_abi_version();
}

static void bad_calls(void) {
    fa_config cfg, bad;
    size_t bytes;
    note(fa_config_auto(NULL, DIM));
    note(fa_config_for_head_dim(NULL, DIM));
    note(fa_config_for_long_sequence(NULL, DIM));
    note(fa_config_auto(&cfg, 0));
    note(fa_config_auto(&cfg, DIM));
    note(fa_mha(NULL, q, k, v, HEADS, LEN, LEN, out));
    note(fa_mha(&cfg, NULL, k, v, HEADS, LEN, LEN, out));
    note(fa_mha(&cfg, q, k, v, HEADS, LEN, LEN, NULL));
    note(fa_mha(&cfg, q, k, v, 0, LEN, LEN, out));
    note(fa_mha(&cfg, q, k, v, SIZE_MAX, LEN, LEN, out));
    note(fa_forward_f32(&cfg, q, k, v, SIZE_MAX, LEN, out));
    note(fa_forward_f32(&cfg, q, k, v, LEN, LEN, q));
    note(fa_forward_i8(&cfg, q8, q8, q8, NAN, 1, 1, LEN, LEN, out));
    note(fa_forward_i8(&cfg, q8, q8, q8, 1, 1, INFINITY, LEN, LEN, out));
    bad = cfg, bad.softmax_scale = NAN;
    note(fa_forward_f32(&bad, q, k, v, LEN, LEN, out));
    bad = cfg, bad.reserved = 7;
    note(fa_forward_f32(&bad, q, k, v, LEN, LEN, out));
    bad = cfg, bad.head_dim = 0;
    note(fa_forward_f32(&bad, q, k, v, LEN, LEN, out));
    note(fa_scratch_bytes(&cfg, 99, 1, LEN, LEN, &bytes));
    note(fa_scratch_bytes(&cfg, FA_DTYPE_F32, 1, LEN, LEN, NULL));
    note(fa_limit_isa("nonsense"));
    note(fa_limit_isa(""));
    for (size_t i = 0; i < ELEMENTS; i++) q[i] = i % 3 == 0 ? NAN : INFINITY;
    note(fa_mha(&cfg, q, q, q, HEADS, LEN, LEN, out));
}

/* Scratch that is not to be had: a row so wide that one is as much as the scratch of many. */
static void no_memory(void) {
    size_t dim = (size_t)1 << 24, bytes = 0;
    float *wide = calloc(dim, sizeof *wide), *wide_out = calloc(dim, sizeof *wide_out);
    if (wide != NULL && wide_out != NULL) {
        fa_config cfg = {.head_dim = dim, .softmax_scale = 1, .num_threads = 1};
        note(fa_scratch_bytes(&cfg, FA_DTYPE_F32, 1, 1, 1, &bytes));
        limit_memory(bytes / 2);
        note(fa_forward_f32(&cfg, wide, wide, wide, 1, 1, wide_out));
        limit_memory(SIZE_MAX);
    }
    free(wide), free(wide_out);
}

static struct library lib;

/* The other functions: all kinds of calls, and descriptions with a mistake each. */
static void described_calls(void) {
    float *o = need(MOST * sizeof *o);
    fa_pool *pool = NULL;
    size_t bytes;
    char why[100];
    note(fa_pool_create(3, &pool));
    for (int call = 0; call < CALLS; call++) {
        note(make_call(&lib, call, 3, NULL, o));
        note(make_call(&lib, call, 1, pool, o));
    }
    fa_pool_destroy(pool), fa_pool_destroy(NULL);
    for (int mistake = 0; mistake < 14; mistake++) {
        fa_attention a = describe(&lib, FA_DTYPE_BF16, FEW, o);
        int32_t page = 7, lengths[] = {-1};
        switch (mistake) {
            case 0: a.len_kv = -1; break;
            case 1: a.k.stride[2] = 3; break;
            case 2: a.kv_lens = lengths; break;
            case 3: a.struct_size = 1; break;
            case 4: a.window_left = -7; break;
            case 5: a.softcap = NAN; break;
            case 6: a.block_table = &page, a.table_stride = a.num_pages = 1, a.page_size = KEYS; break;
            case 7: a.k.dtype = 77; break;
            case 8: a.scale = INFINITY; break;
            case 9: a.o.data = data.k; a.k.data = data.k; break;
            case 10: a.reserved0 = 1; break;
            case 11: a.q.data = NULL; break;
            case 12: a.dim_v = 0; break;
            default: a.batch = INT64_MAX; break;
        }
        note(fa_attention_check(&a, why, sizeof why));
        note(run_described(&lib, &a, NULL));
        note(fa_attention_part(&a, NULL, 0, 0, 1));
    }
    fa_attention a = describe(&lib, FA_DTYPE_F32, MANY, o);
    note(fa_attention_workspace(&a, 999, &bytes));
    note(fa_attention_run(&a, NULL, 0, NULL));
    note(fa_attention_finish(&a, NULL, 0, 3, 2));
    note(fa_pool_create(257, &pool));
    note(fa_quantize_i8(&a.k, 1, HEADS, KEYS, DIM, NULL, &a.v));
    note(fa_merge(o, o, o, o, 1, 1));
    fa_sparse_config cfg;
    fa_sparse_lists lists = {.struct_size = sizeof lists};
    note(fa_sparse_config_init(&cfg, 1));
    note(fa_sparse_config_init(&cfg, sizeof cfg));
    note(fa_sparse_from_partitions(&cfg, NULL, 0, &lists, why, sizeof why));
    cfg.len_q = 1;
    note(fa_sparse_from_partitions(&cfg, NULL, 0, &lists, why, sizeof why));
    free(o);
}

/* No memory for the stacks of threads: the call computes with fewer, a pool is refused. Before any
 * other call, so that there are no threads yet. */
static void no_threads(void) {
    pid_t child = fork();
    if (child == 0) {
        fa_config cfg = {.head_dim = DIM, .softmax_scale = 1, .num_threads = 64};
        fa_pool *pool = NULL;
        limit_memory(2 << 20);
        fa_status refused = fa_pool_create(64, &pool), computed = fa_mha(&cfg, q, k, v, HEADS, LEN, LEN, out);
        bool few = pool != NULL && pool->width(pool->ctx) < 64;
        _exit(computed == FA_OK && (refused == FA_ERR_MEMORY || (refused == FA_OK && few)) ? 0 : 1);
    }
    int status = -1;
    if (waitpid(child, &status, 0) != child || status != 0) counts[FA_ERR_INTERNAL]++;
}

int main(void) {
    make_data();
    lib = LINKED_LIBRARY;
    q = random_normal(ELEMENTS), k = random_normal(ELEMENTS), v = random_normal(ELEMENTS);
    out = need(ELEMENTS * sizeof *out), q8 = need(ELEMENTS);
    memset(q8, 3, ELEMENTS);

    FILE *caught = tmpfile();
    int saved[2] = {dup(1), dup(2)};
    if (caught == NULL || saved[0] < 0 || saved[1] < 0) {
        fputs("cannot redirect\n", stderr);
        return 2;
    }
    fflush(NULL);
    /* The descriptors, not the streams: the library need not use C's streams. */
    dup2(fileno(caught), 1), dup2(fileno(caught), 2);
    no_threads();
    described_calls();
    good_calls();
    bad_calls();
    no_memory();
    fflush(NULL);
    dup2(saved[0], 1), dup2(saved[1], 2);

    struct stat file;
    CHECK(fstat(fileno(caught), &file) == 0 && file.st_size == 0, "%ld bytes written:",
          (long)file.st_size);
    rewind(caught);
    for (int c; (c = fgetc(caught)) != EOF;) fputc(c, stderr);

    static const fa_status expected[] = {FA_OK, FA_ERR_NULL, FA_ERR_ZERO_EXTENT, FA_ERR_OVERFLOW,
                                         FA_ERR_SOFTMAX_SCALE, FA_ERR_QUANT_SCALE, FA_ERR_RESERVED,
                                         FA_ERR_OVERLAP, FA_ERR_DTYPE, FA_ERR_ISA, FA_ERR_MEMORY,
                                         FA_ERR_SHAPE, FA_ERR_STRIDE, FA_ERR_LENGTHS, FA_ERR_STRUCT_SIZE,
                                         FA_ERR_WORKSPACE, FA_ERR_PART, FA_ERR_WINDOW, FA_ERR_SOFTCAP, FA_ERR_PAGE};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        CHECK(counts[expected[i]] > 0, "no call gave \"%s\"", fa_status_string(expected[i]));
    }
    CHECK(counts[FA_ERR_INTERNAL] == 0, "%d internal errors, or a child", counts[FA_ERR_INTERNAL]);
    fclose(caught);
    free(q), free(k), free(v), free(out), free(q8);
    return check_result();
}
