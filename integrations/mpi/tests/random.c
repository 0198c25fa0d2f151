/* Random problems in shares: against float64, against one process, in all modes, with the same
 * bits in each of them.
 *
 *   random PROBLEMS [SEED]
 *   random PROBLEMS SEED prefill|decode|ragged NUMBER     one that was reported to be wrong */

#define _POSIX_C_SOURCE 200809L

#include <time.h>

#include "ranks.h"

static fa_mpi *mpi;
static fa_pool *pool;
static struct room whole;
static long number;

/* One rank is late, so that things arrive in another order. */
static void be_late(struct random *r) {
    bool late = below(r, ranks) == rank;
    if (chance(r, 30) && late) nanosleep(&(struct timespec){0, 2000000}, NULL);
}

/* ---- prefill ---- */

/* What no share can have. */
static void without(struct random *r, fa_attention *a) {
    a->kv_lens = a->kv_starts = a->q_positions = a->spans = a->span_starts = NULL;
    a->prefix_keys = 0;
    memset(&a->mask, 0, sizeof a->mask);
    memset(&a->weights, 0, sizeof a->weights);
    a->weight_heads = a->weight_rows = NULL, a->num_weight_heads = a->num_weight_rows = 0;
    if (a->len_kv > 700) a->len_kv = 700;
    if (chance(r, 60)) {
        a->len_q = ROWS - below(r, 60);
        if (chance(r, 80)) a->len_kv = a->len_q;
    }
    /* Those that are compared with one process most closely. */
    if (chance(r, 25)) {
        a->k.dtype = a->v.dtype = a->o.dtype = FA_DTYPE_F32, a->k.quant = a->v.quant = NULL;
        a->o.stride[1] = a->dim_v * 4, a->o.stride[2] = a->heads_q * a->dim_v * 4;
    }
    const fa_quant *k = a->k.quant, *v = a->v.quant, *q = a->q.quant;
    a->block_table = NULL, a->page_size = a->num_pages = a->table_stride = 0;
    a->q = placed(r, a->q.dtype, a->batch, a->heads_q, a->len_q, a->dim_qk), a->q.quant = q;
    a->k = placed(r, a->k.dtype, a->batch, a->heads_kv, a->len_kv, a->dim_qk), a->k.quant = k;
    a->v = placed(r, a->v.dtype, a->batch, a->heads_kv, a->len_kv, a->dim_v), a->v.quant = v;
    /* Latent attention. */
    if (chance(r, 10) && a->k.dtype == FA_DTYPE_F32 && a->dim_v < a->dim_qk)
        a->v = a->k, a->v.data = (char *)a->k.data + 4 * below(r, a->dim_qk - a->dim_v + 1);
    int64_t row = a->dim_v * block_bytes[a->o.dtype];
    a->o.stride[0] = a->heads_q * a->len_q * row;
    a->lse_stride[0] = a->heads_q * a->len_q, a->lse_stride[1] = a->len_q;
}

/* Tokens whose scales are the same, which no cut goes through. */
static int64_t unit_of(const fa_tensor *t) {
    return t->quant != NULL && t->quant->stride[2] != 0 ? t->quant->group_tokens : 1;
}

/* The pieces of this rank: as runs, and how long they are together. */
static int64_t runs_of(const struct piece *pieces, int count, int64_t from, fa_mpi_run *runs, int32_t *num) {
    int64_t length = 0;
    *num = 0;
    for (int i = 0; i < count; i++) {
        if (pieces[i].owner != rank) continue;
        runs[(*num)++] = (fa_mpi_run){from + pieces[i].from, pieces[i].length};
        length += pieces[i].length;
    }
    return length;
}

static void gather_rows(struct copy *c, const fa_tensor *from, int64_t batch, int64_t heads, const struct piece *pieces,
                        int count) {
    int64_t to = 0;
    for (int i = 0; i < count; i++) {
        if (pieces[i].owner != rank) continue;
        for (int64_t t = 0; t < pieces[i].length; t++, to++)
            for (int64_t b = 0; b < batch; b++)
                for (int64_t h = 0; h < heads; h++) copy_row(c, b, h, to, from, b, h, pieces[i].from + t);
    }
}

static int32_t prefill_once(struct random *r, const fa_attention *a, const fa_mpi_prefill_options *options, bool threads,
                            bool own_memory) {
    size_t bytes = 0;
    void *ws = NULL;
    be_late(r);
    const fa_pool *with = threads ? pool : NULL;
    if (own_memory) {
        int32_t status = fa_mpi_prefill_workspace(mpi, a, options, with, &bytes);
        if (status != FA_OK) return status;
        ws = (char *)need(bytes + 1) + 1;
        memset(ws, 0xff, bytes);
    }
    int32_t status = fa_mpi_prefill(mpi, a, options, ws, bytes, with);
    if (ws != NULL) free((char *)ws - 1);
    return status;
}

static double worst_of_all, worst_relative;

/* The largest length of a row of queries or keys, as vectors have one. */
static double longest_row(const fa_tensor *t, const fa_attention *a, int64_t heads, int64_t tokens) {
    double most = 0;
    for (int64_t b = 0; b < a->batch; b++) {
        for (int64_t h = 0; h < heads; h++) {
            for (int64_t i = 0; i < tokens; i++) {
                double squares = 0;
                for (int64_t d = 0; d < a->dim_qk; d++) squares += pow(element(t, b, h, i, d), 2);
                most = fmax(most, sqrt(squares));
            }
        }
    }
    return most;
}

static void prefill(uint64_t seed) {
    /* What all ranks know, and what one rank alone does. */
    struct random r = {seed}, alone = {seed + (uint64_t)rank * 77};
    fa_attention a = random_problem(&r, &whole);
    without(&r, &a);
    int64_t from = a.q_pos == FA_POS_END ? a.len_kv - a.len_q : a.q_pos;

    struct piece q_pieces[PIECES * RANKS], kv_pieces[PIECES * RANKS];
    int q_each = 1 + (int)below(&r, PIECES), kv_each = chance(&r, 70) ? q_each : 1 + (int)below(&r, PIECES);
    int64_t unit = unit_of(&a.k) * unit_of(&a.v);
    int q_count = cut(&r, a.len_q, unit_of(&a.q), q_each, q_pieces), kv_count = cut(&r, a.len_kv, unit, kv_each, kv_pieces);
    /* One piece a rank need not be named. */
    bool q_named = q_each > 1 || chance(&r, 30), kv_named = kv_each > 1 || chance(&r, 30);
    fa_mpi_run q_runs[PIECES], kv_runs[PIECES];
    fa_mpi_prefill_options options = {.struct_size = sizeof options, .q_runs = q_runs, .kv_runs = kv_runs};
    fa_attention local = a;
    local.len_q = runs_of(q_pieces, q_count, from, q_runs, &options.num_q_runs);
    local.len_kv = runs_of(kv_pieces, kv_count, 0, kv_runs, &options.num_kv_runs);
    if (!q_named) options.num_q_runs = 0;
    if (!kv_named) options.num_kv_runs = 0;

    struct copy q, k, v;
    new_copy(&alone, &q, &a.q, a.batch, a.heads_q, local.len_q, a.dim_qk, unit_of(&a.q), false);
    new_copy(&alone, &k, &a.k, a.batch, a.heads_kv, local.len_kv, a.dim_qk, unit_of(&a.k), false);
    new_copy(&alone, &v, &a.v, a.batch, a.heads_kv, local.len_kv, a.dim_v, unit_of(&a.v), false);
    gather_rows(&q, &a.q, a.batch, a.heads_q, q_pieces, q_count);
    gather_rows(&k, &a.k, a.batch, a.heads_kv, kv_pieces, kv_count);
    gather_rows(&v, &a.v, a.batch, a.heads_kv, kv_pieces, kv_count);
    bool is_latent = (char *)a.v.data >= (char *)a.k.data && (char *)a.v.data < (char *)a.k.data + a.dim_qk * 4 &&
                     a.k.dtype == FA_DTYPE_F32 && a.v.dtype == FA_DTYPE_F32 &&
                     memcmp(a.k.stride, a.v.stride, sizeof a.k.stride) == 0;
    if (!is_latent && chance(&alone, 15)) transpose(&k, a.batch, a.heads_kv, local.len_kv);
    local.q = q.tensor, local.k = k.tensor, local.v = v.tensor;
    if (is_latent) local.v = local.k, local.v.data = (char *)k.data + ((char *)a.v.data - (char *)a.k.data);

    /* Results, with something between and behind the rows. */
    int64_t row = a.dim_v * block_bytes[a.o.dtype] + 8, results = a.batch * a.heads_q * local.len_q;
    size_t bytes = (size_t)(results * row);
    unsigned char *o[3];
    float *lse[3];
    for (int i = 0; i < 3; i++) {
        o[i] = need(bytes), lse[i] = need((size_t)results * 4);
        memset(o[i], 0xa5, bytes), memset(lse[i], 0xa5, (size_t)results * 4);
        local.o.data = o[i], local.lse = lse[i];
        local.o.stride[0] = a.heads_q * local.len_q * row, local.o.stride[1] = row, local.o.stride[2] = a.heads_q * row;
        local.lse_stride[0] = a.heads_q * local.len_q, local.lse_stride[1] = local.len_q, local.lse_stride[2] = 1;
        options.mode = i;
        int32_t status = prefill_once(&r, &local, &options, chance(&r, 50), chance(&r, 50));
        CHECK(status == FA_OK, "prefill %ld, mode %d: %d, %s", number, i, (int)status, fa_mpi_words(mpi));
        if (status != FA_OK) goto out;
        CHECK(i == 0 || memcmp(o[i], o[0], bytes) == 0, "prefill %ld: mode %d has other bits", number, i);
        CHECK(i == 0 || same_bits(lse[i], lse[0], (size_t)results), "prefill %ld: lse of mode %d has other bits", number, i);
    }
    for (size_t i = 0; i < bytes; i++) {
        if ((int64_t)i % row >= row - 8 && o[0][i] != 0xa5) {
            CHECK(false, "prefill %ld: wrote between rows", number);
            break;
        }
    }

    /* All rows where they are in the whole, next to those of one process. */
    static unsigned char once[O_BYTES];
    run_whole(&a);
    memcpy(once, whole.o, bytes_of_o(&a));
    struct family family = family_at(&a);
    if (local.len_q > 0 && local.len_kv > 0) {
        fa_attention part = local;
        part.q_pos = 0;
        family = widest_family(family, family_at(&part));
    }
    family.bf16 = family.bf16 || (a.k.dtype == FA_DTYPE_BF16 && (a.flags & FA_PRECISE) == 0);
    family.i16 = family.i16 || ((is_integer(a.k.dtype) || is_in_blocks(a.k.dtype)) && !family.i8);
    if (family.i8 || family.i16 || family.bf16 || family.f16) family.exact_q = false;
    struct difference difference = {0};
    int64_t to = 0;
    for (int i = 0; i < q_count; i++) {
        for (int64_t t = 0; q_pieces[i].owner == rank && t < q_pieces[i].length; t++, to++) {
            int64_t global = q_pieces[i].from + t;
            for (int64_t b = 0; b < a.batch; b++) {
                for (int64_t h = 0; h < a.heads_q; h++) {
                    const unsigned char *got = o[0] + b * local.o.stride[0] + h * row + to * local.o.stride[2];
                    unsigned char *place = row_at(&a.o, b, h, global);
                    for (int64_t d = 0; d < a.dim_v; d++)
                        add_difference(&difference, stored(a.o.dtype, got, d),
                                       stored(a.o.dtype, once + (place - whole.o), d));
                    memcpy(place, got, (size_t)(row - 8));
                    whole.lse[b * a.lse_stride[0] + h * a.lse_stride[1] + global] =
                        lse[0][b * local.lse_stride[0] + h * local.lse_stride[1] + to];
                    /* The definition takes its time. */
                    if (!chance(&alone, 4) && to != 0 && to != local.len_q - 1) continue;
                    double error = row_error(&a, family, b, h, global);
                    worst_of_all = fmax(worst_of_all, error);
                    CHECK(error <= 1, "prefill %ld: row %lld of head %lld is off by %g of what it may be", number,
                          (long long)global, (long long)h, error);
                }
            }
        }
    }
    if (!family.i8 && !family.i16 && !family.bf16 && !family.f16 && a.o.dtype == FA_DTYPE_F32) {
        /* Results meet with a log-sum-exp each, which is rounded to 2^-24 of itself; and few rows
         * are summed up in another order than many, so that scores differ by as much. */
        double coarse = 1, scale = a.scale == 0 ? 1 / sqrt((double)a.dim_qk) : fabs((double)a.scale);
        for (int64_t i = 0; i < results; i++)
            if (isfinite(lse[0][i])) coarse = fmax(coarse, fabs((double)lse[0][i]) / 8);
        coarse = fmax(coarse, scale * longest_row(&a.q, &a, a.heads_q, a.len_q) * longest_row(&a.k, &a, a.heads_kv, a.len_kv) / 16);
        worst_relative = fmax(worst_relative, relative(difference) / coarse);
        CHECK(relative(difference) < 1e-6 * coarse, "prefill %ld: %g relative RMS from one process", number,
              relative(difference));
    }
out:
    for (int i = 0; i < 3; i++) {
        if (i > 0 && check_failures > 0) break;
        free(o[i]), free(lse[i]);
    }
    free_copy(&q), free_copy(&k), free_copy(&v);
}

/* ---- decode ---- */

static void decode(uint64_t seed) {
    struct random r = {seed}, alone = {seed + (uint64_t)rank * 77};
    fa_attention a = random_problem(&r, &whole);
    a.prefix_keys = 0, a.spans = a.span_starts = NULL;
    memset(&a.weights, 0, sizeof a.weights);
    a.weight_heads = a.weight_rows = NULL, a.num_weight_heads = a.num_weight_rows = 0;
    if (a.batch > 1) memset(&a.mask, 0, sizeof a.mask);
    if (a.len_q > 17) {
        a.len_q = 17;
        a.o.stride[0] = a.heads_q * a.len_q * a.o.stride[1];
    }
    bool has_positions = a.window_left != FA_NO_LIMIT || a.window_right != FA_NO_LIMIT || a.alibi_slopes != NULL;
    int64_t whole_keys[BATCH], from[BATCH], keys[BATCH], longest = 0;
    for (int64_t b = 0; b < a.batch; b++) {
        struct piece pieces[PIECES * RANKS];
        whole_keys[b] = a.kv_lens != NULL ? a.kv_lens[b] : a.len_kv;
        (void)cut(&r, whole_keys[b], 1, 1, pieces);
        int shift = has_positions || a.mask.data != NULL ? 0 : (int)below(&r, ranks);
        from[b] = pieces[(rank + shift) % ranks].from, keys[b] = pieces[(rank + shift) % ranks].length;
        longest = keys[b] > longest ? keys[b] : longest;
    }

    /* Dense, with room to spare, or pages; scales a token of its own. */
    fa_attention local = a;
    int32_t kv_lens[BATCH], kv_starts[BATCH], *table = NULL;
    int64_t page = chance(&alone, 50) ? 0 : 1 + below(&alone, 40), entries = a.batch, tokens = longest + below(&alone, 3);
    local.block_table = NULL, local.page_size = local.num_pages = local.table_stride = 0;
    local.len_kv = tokens;
    if (page > 0) {
        local.table_stride = (tokens + page - 1) / page + 1, local.page_size = page;
        entries = local.num_pages = a.batch * local.table_stride;
        table = need((size_t)entries * sizeof *table);
        for (int64_t i = 0; i < entries; i++) table[i] = (int32_t)(entries - 1 - i);
        local.block_table = table;
    }
    struct copy k, v;
    new_copy(&alone, &k, &a.k, entries, a.heads_kv, page > 0 ? page : tokens, a.dim_qk, 1, true);
    new_copy(&alone, &v, &a.v, entries, a.heads_kv, page > 0 ? page : tokens, a.dim_v, 1, true);
    for (int64_t b = 0; b < a.batch; b++) {
        for (int64_t j = 0; j < keys[b]; j++) {
            int64_t there = from[b] + j, entry = b, token = there, to_entry = b, to = j;
            if (a.block_table != NULL)
                entry = a.block_table[b * a.table_stride + there / a.page_size], token = there % a.page_size;
            if (page > 0) to_entry = table[b * local.table_stride + j / page], to = j % page;
            for (int64_t h = 0; h < a.heads_kv; h++) {
                copy_row(&k, to_entry, h, to, &a.k, entry, h, token);
                copy_row(&v, to_entry, h, to, &a.v, entry, h, token);
            }
        }
        kv_lens[b] = (int32_t)keys[b];
        if (a.kv_starts == NULL) continue;
        int64_t start = a.kv_starts[b] - from[b];
        kv_starts[b] = (int32_t)(start < 0 ? 0 : start > keys[b] ? keys[b] : start);
    }
    local.k = k.tensor, local.v = v.tensor;
    local.kv_lens = kv_lens;
    if (a.kv_starts != NULL) local.kv_starts = kv_starts;
    if (a.mask.data != NULL) local.mask.data = (char *)a.mask.data + from[0] * block_bytes[a.mask.dtype];

    size_t bytes = bytes_of_o(&a);
    static unsigned char once[O_BYTES];
    static float lse_once[LSES];
    for (int mode = 0; mode < 3; mode++) {
        size_t size = 0;
        void *ws = NULL;
        const fa_pool *with = chance(&r, 50) ? pool : NULL;
        memset(whole.o, 0xa5, bytes), memset(whole.lse, 0xa5, sizeof whole.lse);
        be_late(&r);
        if (chance(&alone, 50)) {
            CHECK(fa_mpi_decode_workspace(mpi, &local, mode, with, &size) == FA_OK, "%s", fa_mpi_words(mpi));
            ws = (char *)need(size + 1) + 1;
            memset(ws, 0xff, size);
        }
        int32_t status = fa_mpi_decode(mpi, &local, mode, ws, size, with);
        if (ws != NULL) free((char *)ws - 1);
        CHECK(status == FA_OK, "decode %ld, mode %d: %d, %s", number, mode, (int)status, fa_mpi_words(mpi));
        if (status != FA_OK) break;
        CHECK(is_same_everywhere(whole.o, bytes), "decode %ld, mode %d: ranks have different results", number, mode);
        CHECK(is_same_everywhere(whole.lse, sizeof whole.lse), "decode %ld: ranks have different lse", number);
        CHECK(mode == 0 || memcmp(whole.o, once, bytes) == 0, "decode %ld: mode %d has other bits", number, mode);
        CHECK(mode == 0 || same_bits(whole.lse, lse_once, LSES), "decode %ld: lse of mode %d has other bits", number, mode);
        memcpy(once, whole.o, bytes), memcpy(lse_once, whole.lse, sizeof lse_once);
        if (mode > 0) continue;
        struct family family = family_at(&a);
        if (longest > 0) family = widest_family(family, family_at(&local));
        family.bf16 = family.bf16 || (a.k.dtype == FA_DTYPE_BF16 && (a.flags & FA_PRECISE) == 0);
        family.i16 = family.i16 || ((is_integer(a.k.dtype) || is_in_blocks(a.k.dtype)) && !family.i8);
        if (family.i8 || family.i16 || family.bf16 || family.f16) family.exact_q = false;
        for (int64_t b = 0; b < a.batch; b++) {
            for (int64_t h = 0; h < a.heads_q; h++) {
                for (int64_t i = 0; i < a.len_q; i++) {
                    if (!chance(&alone, 10)) continue;
                    double error = row_error(&a, family, b, h, i);
                    worst_of_all = fmax(worst_of_all, error);
                    CHECK(error <= 1, "decode %ld: row %lld of head %lld of entry %lld is off by %g of what it may be",
                          number, (long long)i, (long long)h, (long long)b, error);
                }
            }
        }
    }
    free(table);
    free_copy(&k), free_copy(&v);
}

/* Ragged batches: each sequence has the bits that it has alone. */
static void ragged(uint64_t seed) {
    enum { SEQS = 3, HEADS = 4, DIM = 32, MOST_Q = 5, MOST_KV = 40, ALL_Q = SEQS * MOST_Q + 3, ALL_KV = SEQS * MOST_KV + 3 };
    static float q[ALL_Q * HEADS * DIM], k[ALL_KV * HEADS / 2 * DIM], v[ALL_KV * HEADS / 2 * DIM];
    static float o[ALL_Q * HEADS * DIM], once[ALL_Q * HEADS * DIM], lse[ALL_Q * HEADS], lse_once[ALL_Q * HEADS];
    struct random r = {seed}, alone = {seed + (uint64_t)rank * 77};
    int32_t cu_q[SEQS + 1], cu_kv[SEQS + 1], positions[SEQS];
    cu_q[0] = (int32_t)below(&r, 3), cu_kv[0] = (int32_t)below(&alone, 3);
    for (int b = 0; b < SEQS; b++) {
        cu_q[b + 1] = cu_q[b] + (int32_t)below(&r, MOST_Q);
        cu_kv[b + 1] = cu_kv[b] + (int32_t)below(&alone, MOST_KV);
        positions[b] = (int32_t)below(&r, 60);
    }
    for (size_t i = 0; i < ALL_Q * HEADS * DIM; i++) q[i] = (float)below(&r, 4001) / 1000 - 2;
    for (size_t i = 0; i < ALL_KV * HEADS / 2 * DIM; i++)
        k[i] = (float)below(&alone, 4001) / 1000 - 2, v[i] = (float)below(&alone, 4001) / 1000 - 2;

    fa_attention a;
    (void)fa_attention_init(&a, sizeof a);
    a.batch = SEQS, a.heads_q = HEADS, a.heads_kv = HEADS / 2, a.dim_qk = a.dim_v = DIM, a.len_q = MOST_Q, a.len_kv = MOST_KV;
    a.q = (fa_tensor){.data = q, .stride = {0, DIM * 4, HEADS * DIM * 4}};
    a.o = (fa_tensor){.data = o, .stride = {0, DIM * 4, HEADS * DIM * 4}};
    a.k = (fa_tensor){.data = k, .stride = {0, DIM * 4, HEADS / 2 * DIM * 4}};
    a.v = (fa_tensor){.data = v, .stride = {0, DIM * 4, HEADS / 2 * DIM * 4}};
    a.lse = lse, a.lse_stride[1] = 1, a.lse_stride[2] = HEADS;
    a.cu_len_q = cu_q, a.cu_len_kv = cu_kv;
    if (chance(&r, 70)) a.window_right = below(&r, 3);
    if (chance(&r, 50)) a.window_left = below(&r, 50);
    if (chance(&r, 30)) a.sinks = bank.sinks + below(&r, SCALES - HEADS);
    if (chance(&r, 40)) a.q_positions = positions;
    memset(o, 0xa5, sizeof o), memset(lse, 0xa5, sizeof lse);
    int32_t status = fa_mpi_decode(mpi, &a, (int32_t)below(&r, 3), NULL, 0, pool);
    CHECK(status == FA_OK, "ragged %ld: %s", number, fa_mpi_words(mpi));
    memcpy(once, o, sizeof o), memcpy(lse_once, lse, sizeof lse);
    memset(o, 0xa5, sizeof o), memset(lse, 0xa5, sizeof lse);
    for (int b = 0; b < SEQS; b++) {
        fa_attention one = a;
        one.cu_len_q = one.cu_len_kv = NULL;
        one.batch = 1, one.len_q = cu_q[b + 1] - cu_q[b], one.len_kv = cu_kv[b + 1] - cu_kv[b];
        one.q.data = row_at(&a.q, 0, 0, cu_q[b]), one.o.data = row_at(&a.o, 0, 0, cu_q[b]);
        one.k.data = row_at(&a.k, 0, 0, cu_kv[b]), one.v.data = row_at(&a.v, 0, 0, cu_kv[b]);
        one.lse = lse + cu_q[b] * HEADS;
        if (a.q_positions != NULL) one.q_positions = positions + b;
        status = fa_mpi_decode(mpi, &one, FA_MPI_AUTO, NULL, 0, NULL);
        CHECK(status == FA_OK, "sequence %d of ragged %ld: %s", b, number, fa_mpi_words(mpi));
    }
    CHECK(same_bits(o, once, sizeof o / 4), "ragged %ld: other bits than alone", number);
    CHECK(same_bits(lse, lse_once, sizeof lse / 4), "ragged %ld: another lse than alone", number);
}

int main(int argc, char **argv) {
    ranks_begin(&argc, &argv);
    long problems = argc > 1 ? atol(argv[1]) : 20;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    fill_bank(seed, 0);
    if (fa_mpi_create(MPI_COMM_WORLD, NULL, &mpi) != FA_OK || fa_pool_create(2, &pool) != FA_OK) return 2;
    long first = argc > 4 ? atol(argv[4]) : 0, last = argc > 4 ? first + 1 : problems, done = 0;
    for (number = first; number < last; number++) {
        if (argc < 4 || strcmp(argv[3], "prefill") == 0) prefill(seed * 1000003 + (uint64_t)number * 2), done++;
        if (argc < 4 || strcmp(argv[3], "decode") == 0) decode(seed * 1000003 + (uint64_t)number * 2 + 1), done++;
        if (argc < 4 || strcmp(argv[3], "ragged") == 0) ragged(seed * 1000003 + (uint64_t)number * 2 + 1), done++;
    }
    if (rank == 0) printf("largest error %.3f of what it may be; %.1e relative RMS from one process\n", worst_of_all, worst_relative);
    fa_mpi_free(mpi);
    fa_pool_destroy(pool);
    return ranks_end("problems", done);
}
