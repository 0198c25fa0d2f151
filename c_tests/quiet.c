/* The library says nothing: whatever is called, nothing reaches stdout or stderr. */

#define _POSIX_C_SOURCE 200809L

#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "limit.h"

enum { HEADS = 4, LEN = 160, DIM = 64, ELEMENTS = HEADS * LEN * DIM };

static float *q, *k, *v, *out;
static int8_t *q8;

/* Codes that the calls below gave: nothing may be printed while they run, not even by CHECK. */
static int counts[FA_ERR_STRIDE + 1];

static void note(fa_status status) {
    if (status <= FA_ERR_STRIDE) counts[status]++;
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
    for (int32_t status = -2; status < 20; status++) (void)fa_status_string(status);
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

int main(void) {
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
                                         FA_ERR_OVERLAP, FA_ERR_DTYPE, FA_ERR_ISA, FA_ERR_MEMORY};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        CHECK(counts[expected[i]] > 0, "no call gave \"%s\"", fa_status_string(expected[i]));
    }
    CHECK(counts[FA_ERR_INTERNAL] == 0, "%d internal errors", counts[FA_ERR_INTERNAL]);
    fclose(caught);
    free(q), free(k), free(v), free(out), free(q8);
    return check_result();
}
