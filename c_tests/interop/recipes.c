/*
 * Batches of sequences of different lengths, and what one call says in several ways: the recipes of
 * docs/using.md. Each sequence must come out as it does alone, without padding, by a call that
 * needs no recipe.
 */

#include <math.h>
#include <stdbool.h>

#include "recipe.h"

/* K and V [batch][room][heads][dim], each sequence at the end of its room: the keys before pads[b]
 * are padding. As if the batch were one ragged list of keys, whose sequences begin behind their
 * padding. */
static void left_padded(fa_attention *a, const int32_t *pads, int64_t room, int32_t *cu_len_kv, int32_t *kv_lens)
{
    for (int64_t b = 0; b <= a->batch; b++)
        cu_len_kv[b] = (int32_t)(b * room) + (b < a->batch ? pads[b] : 0);
    for (int64_t b = 0; b < a->batch; b++)
        kv_lens[b] = (int32_t)room - pads[b];
    a->cu_len_kv = cu_len_kv, a->kv_lens = kv_lens;
    a->len_kv = 2 * room; /* from where one sequence begins to where the next one does, at most */
}

/* The same, where positions are to count the padding, too. */
static void left_padded_in_place(fa_attention *a, const int32_t *pads)
{
    a->kv_starts = pads;
}

/* A chunk of new tokens for each sequence, padded at its end to len_q rows, whose keys are already
 * in the cache behind past[b] others. Rows of padding see keys that are not there yet: they must be
 * memory, and the rows are of no use. */
static void right_padded_chunks(fa_attention *a, const int32_t *past, int32_t *kv_lens)
{
    for (int64_t b = 0; b < a->batch; b++)
        kv_lens[b] = past[b] + (int32_t)a->len_q;
    a->kv_lens = kv_lens, a->q_pos = FA_POS_END, a->window_right = 0;
}

/* The same for a cache that ends with the new tokens: nothing behind them is looked at. */
static void right_padded_chunks_at(fa_attention *a, const int32_t *past, const int32_t *new_tokens, int32_t *kv_lens)
{
    for (int64_t b = 0; b < a->batch; b++)
        kv_lens[b] = past[b] + new_tokens[b];
    a->q_positions = past, a->kv_lens = kv_lens, a->window_right = 0;
}

/* Numbers that are added to the scores, and beside them who sees whom, one byte for each query and
 * key. */
static void bias_and_bool_mask(fa_attention *a, fa_tensor bias, const unsigned char *seen, const int64_t stride[3])
{
    a->mask = bias;
    a->block_mask = seen, a->block_mask_q = a->block_mask_kv = 1;
    for (int axis = 0; axis < 3; axis++)
        a->block_mask_stride[axis] = stride[axis];
}

/* Lists of blocks of keys, one for each block of query rows (BSR): of FlashInfer's block-sparse
 * wrapper (indptr, indices, R rows and C keys a block), the same for all heads. */
static void block_sparse(fa_attention *a, const int32_t *indptr, const int32_t *indices, int64_t R, int64_t C)
{
    a->kept_start = indptr, a->kept_blocks = indices;
    a->kept_q = R, a->kept_kv = C;
}

/* Vertical lines and a slash (MInference, arXiv:2407.02490): `count` keys that all rows of all
 * heads see, ascending, and the last `slash` keys before each row, itself included. */
static void vertical_and_slash(fa_attention *a, const int32_t *vertical, int32_t count, int64_t slash,
                               int32_t starts[2])
{
    starts[0] = 0, starts[1] = count;
    a->column_start = starts, a->columns = vertical;
    a->window_left = slash - 1, a->window_right = 0;
}

/* A cache of V that is transposed, [batch][head][dim][room for tokens], as llama.cpp keeps it
 * without flash attention: elements of `size` bytes. K may be one, too. */
static fa_tensor transposed(void *data, int32_t dtype, int32_t size, int64_t heads, int64_t dim, int32_t room)
{
    fa_tensor v = {.data = data, .dtype = dtype};
    v.stride_dim = room * size; /* from one element of a token to its next one */
    v.stride[0] = heads * dim * v.stride_dim, v.stride[1] = dim * v.stride_dim, v.stride[2] = size;
    return v;
}

/* Keys in two places: a call for each, of which the second has outputs of its own, and fa_merge.
 * All rows of an output and its lse are in one order, [batch][head][token]. */
static fa_status two_places(fa_attention *a, fa_tensor k2, fa_tensor v2, int64_t len_kv2, float *o2, float *lse2,
                            void *ws, size_t ws_size)
{
    fa_attention second = *a;
    second.k = k2, second.v = v2, second.len_kv = len_kv2;
    second.o.data = o2, second.lse = lse2;
    a->window_left = a->window_right = FA_NO_LIMIT; /* all of the first keys come before all queries */
    fa_status status = fa_attention_run(a, ws, ws_size, NULL);
    if (status == FA_OK)
        status = fa_attention_run(&second, ws, ws_size, NULL);
    if (status == FA_OK)
        status = fa_merge(a->o.data, a->lse, o2, lse2, a->batch * a->heads_q * a->len_q, a->dim_v);
    return status;
}

/* Word time stamps, as whisper makes them: which audio frames the newest token of each sequence
 * looks at, by the heads of a layer that are known to align, weights[batch][n][len_kv]. Attention
 * itself is computed as without. */
static void alignment(fa_attention *a, const int32_t *heads, int64_t n, float *weights)
{
    static const int32_t newest[] = {-1};
    a->weights.data = weights, a->weight_heads = heads, a->num_weight_heads = n;
    a->weight_rows = newest, a->num_weight_rows = 1;
    a->weights.stride[0] = n * a->len_kv * 4, a->weights.stride[1] = a->len_kv * 4;
}

/* ---- The test. ---- */

enum { BATCH = 3, HEADS = 4, KV_HEADS = 2, ROOM = 200, ROWS = 8, DIM = 32 };
enum { Q_SIZE = BATCH * HEADS * ROWS * DIM, KV_SIZE = BATCH * ROOM * KV_HEADS * DIM, LSES = BATCH * HEADS * ROWS };
static float *q, *k, *v, o[Q_SIZE], lse[LSES];
static char ws[1 << 20];

/* Queries and outputs [batch][head][row][dim], keys [batch][room][head][dim]. */
static fa_attention begin(int64_t rows)
{
    fa_attention a;
    EXPECT(fa_attention_init(&a, sizeof a) == FA_OK);
    a.batch = BATCH, a.heads_q = HEADS, a.heads_kv = KV_HEADS, a.len_q = rows, a.len_kv = ROOM, a.dim_qk = a.dim_v = DIM;
    a.q = (fa_tensor){.data = q, .stride = {HEADS * ROWS * DIM * 4, ROWS * DIM * 4, DIM * 4}};
    a.k = (fa_tensor){.data = k, .stride = {ROOM * KV_HEADS * DIM * 4, DIM * 4, KV_HEADS * DIM * 4}};
    a.v = a.k, a.v.data = v;
    a.o = (fa_tensor){.data = o, .stride = {HEADS * rows * DIM * 4, rows * DIM * 4, DIM * 4}};
    a.lse = lse, a.lse_stride[0] = HEADS * rows, a.lse_stride[1] = rows, a.lse_stride[2] = 1;
    a.window_right = 0;
    memset(o, 0xff, sizeof o), memset(lse, 0xff, sizeof lse);
    return a;
}

static void spoil(int64_t b, int64_t first, int64_t end)
{
    for (int64_t at = (b * ROOM + first) * KV_HEADS * DIM; at < (b * ROOM + end) * KV_HEADS * DIM; at++)
        k[at] = v[at] = NAN;
}

/* Rows 0 to n - 1 of sequence b, of an output of `rows` rows a head, are those of keys `first` to
 * `end` - 1 alone, the last row on the last key. */
static void alone(const char *name, int64_t b, int64_t rows, int64_t n, int64_t first, int64_t end)
{
    static float want[HEADS * ROWS * DIM], want_lse[HEADS * ROWS];
    fa_attention a;
    EXPECT(fa_attention_init(&a, sizeof a) == FA_OK);
    a.batch = 1, a.heads_q = HEADS, a.heads_kv = KV_HEADS, a.len_q = n, a.len_kv = end - first, a.dim_qk = a.dim_v = DIM;
    a.q = (fa_tensor){.data = q + b * HEADS * ROWS * DIM, .stride = {0, ROWS * DIM * 4, DIM * 4}};
    a.k = (fa_tensor){.data = k + (b * ROOM + first) * KV_HEADS * DIM, .stride = {0, DIM * 4, KV_HEADS * DIM * 4}};
    a.v = a.k, a.v.data = v + (b * ROOM + first) * KV_HEADS * DIM;
    a.o = (fa_tensor){.data = want, .stride = {0, n * DIM * 4, DIM * 4}};
    a.lse = want_lse, a.lse_stride[1] = n, a.lse_stride[2] = 1;
    a.window_right = 0;
    EXPECT(fa_attention_run(&a, ws, sizeof ws, NULL) == FA_OK);
    bool right = true;
    for (int64_t h = 0; h < HEADS; h++)
        for (int64_t i = 0; i < n; i++) {
            int64_t row = (b * HEADS + h) * rows + i;
            right = right && fabsf(lse[row] - want_lse[h * n + i]) <= 1e-5f;
            for (int d = 0; d < DIM; d++)
                right = right && fabsf(o[row * DIM + d] - want[(h * n + i) * DIM + d]) <= 1e-5f;
        }
    if (!right) recipe_failures++, fprintf(stderr, "%s: sequence %d is not what it is alone\n", name, (int)b);
}

static void run(const char *name, const fa_attention *a)
{
    char why[200] = "";
    fa_status status = fa_attention_run(a, ws, sizeof ws, NULL);
    if (status != FA_OK) {
        (void)fa_attention_check(a, why, sizeof why);
        recipe_failures++, fprintf(stderr, "%s: %s: %s\n", name, fa_status_string(status), why);
    }
}

static void fresh(void)
{
    free(q), free(k), free(v);
    q = recipe_numbers(Q_SIZE, 1), k = recipe_numbers(KV_SIZE, 2), v = recipe_numbers(KV_SIZE, 3);
}

int main(void)
{
    static const int32_t all_from_96[BATCH] = {96, 96, 96};
    static const int32_t pads[BATCH] = {0, 70, 133}, past[BATCH] = {10, 3, 0}, new_tokens[BATCH] = {8, 5, 2};
    int32_t cu_len_kv[BATCH + 1], kv_lens[BATCH];
    fa_attention a;
    for (int64_t rows = 1; rows <= ROWS; rows += ROWS - 1) {
        fresh();
        for (int64_t b = 0; b < BATCH; b++) spoil(b, 0, pads[b]);
        a = begin(rows), left_padded(&a, pads, ROOM, cu_len_kv, kv_lens), run("left padding", &a);
        for (int64_t b = 0; b < BATCH; b++) alone("left padding", b, rows, rows, pads[b], ROOM);
        a = begin(rows), left_padded_in_place(&a, pads), run("left padding in place", &a);
        for (int64_t b = 0; b < BATCH; b++) alone("left padding in place", b, rows, rows, pads[b], ROOM);
    }

    fresh();
    a = begin(ROWS), right_padded_chunks(&a, past, kv_lens);
    for (int64_t b = 0; b < BATCH; b++) spoil(b, past[b] + new_tokens[b], ROOM);
    run("right padding", &a);
    for (int64_t b = 0; b < BATCH; b++)
        alone("right padding", b, ROWS, new_tokens[b], 0, past[b] + new_tokens[b]);
    a = begin(ROWS), right_padded_chunks_at(&a, past, new_tokens, kv_lens), run("right padding, positions", &a);
    for (int64_t b = 0; b < BATCH; b++)
        alone("right padding, positions", b, ROWS, new_tokens[b], 0, past[b] + new_tokens[b]);
    for (int64_t i = 0; i < (int64_t)LSES * DIM; i++) EXPECT(!isnan(o[i]));

    /* A bias of 0 and a mask of who is behind the padding and not behind the query. */
    static float bias[ROWS * ROOM], many[ROWS * ROOM];
    static unsigned char seen[BATCH * ROWS * ROOM];
    fresh();
    for (int64_t b = 0; b < BATCH; b++) {
        spoil(b, 0, pads[b]);
        for (int64_t at = 0; at < ROWS * ROOM; at++)
            seen[b * ROWS * ROOM + at] = at % ROOM >= pads[b] && at % ROOM <= at / ROOM + ROOM - ROWS;
    }
    const int64_t stride[3] = {ROWS * ROOM, 0, ROOM};
    fa_tensor added = {.data = bias, .stride = {0, 0, ROOM * 4}};
    a = begin(ROWS), a.window_right = FA_NO_LIMIT, bias_and_bool_mask(&a, added, seen, stride);
    run("bias and mask", &a);
    for (int64_t b = 0; b < BATCH; b++) alone("bias and mask", b, ROWS, ROWS, pads[b], ROOM);
    /* The same number for all keys changes the log-sum-exp by it, and nothing else. */
    for (int64_t at = 0; at < ROWS * ROOM; at++) many[at] = 1.5f;
    added.data = many, a.mask = added;
    run("bias and mask", &a);
    for (int64_t i = 0; i < LSES; i++) lse[i] -= 1.5f;
    for (int64_t b = 0; b < BATCH; b++) alone("bias and mask", b, ROWS, ROWS, pads[b], ROOM);

    /* The same values in the other order; those behind the keys in use are not read. */
    static float vt[KV_SIZE];
    for (int64_t rows = 1; rows <= ROWS; rows += ROWS - 1) {
        fresh();
        for (int64_t b = 0; b < BATCH; b++) spoil(b, past[b] + rows, ROOM);
        for (int64_t at = 0; at < KV_SIZE; at++) {
            int64_t b = at / DIM / KV_HEADS / ROOM, t = at / DIM / KV_HEADS % ROOM, h = at / DIM % KV_HEADS, d = at % DIM;
            vt[((b * KV_HEADS + h) * DIM + d) * ROOM + t] = v[at];
        }
        a = begin(rows), a.v = transposed(vt, FA_DTYPE_F32, 4, KV_HEADS, DIM, ROOM);
        for (int64_t b = 0; b < BATCH; b++) kv_lens[b] = past[b] + (int32_t)rows;
        a.kv_lens = kv_lens, a.q_pos = FA_POS_END;
        run("transposed V", &a);
        for (int64_t b = 0; b < BATCH; b++) alone("transposed V", b, rows, rows, 0, past[b] + rows);
    }

    /* All blocks but those of the first 96 keys, for both blocks of rows. */
    static const int32_t indptr[] = {0, 7, 14};
    static const int32_t indices[] = {6, 7, 8, 9, 10, 11, 12, 6, 7, 8, 9, 10, 11, 12};
    fresh();
    for (int64_t b = 0; b < BATCH; b++) spoil(b, 0, 96);
    a = begin(ROWS), block_sparse(&a, indptr, indices, 4, 16), run("block sparse", &a);
    for (int64_t b = 0; b < BATCH; b++) alone("block sparse", b, ROWS, ROWS, 96, ROOM);

    /* All keys but the first 96: each second one as a vertical line, and the slash over all. */
    static int32_t vertical[ROOM], starts[2];
    int32_t count = 0;
    for (int32_t j = 96; j < ROOM; j += 2) vertical[count++] = j;
    fresh();
    for (int64_t b = 0; b < BATCH; b++) spoil(b, 0, 96);
    a = begin(ROWS), vertical_and_slash(&a, vertical, count, ROOM, starts), a.kv_starts = all_from_96;
    run("vertical and slash", &a);
    for (int64_t b = 0; b < BATCH; b++) alone("vertical and slash", b, ROWS, ROWS, 96, ROOM);
    /* As many lines as there are keys, and a slash of the row's own. */
    for (count = 0; count < ROOM - 96; count++) vertical[count] = 96 + count;
    a = begin(ROWS), vertical_and_slash(&a, vertical, count, 1, starts), run("vertical lines alone", &a);
    for (int64_t b = 0; b < BATCH; b++) alone("vertical lines alone", b, ROWS, ROWS, 96, ROOM);

    /* The first 120 keys, and the others. */
    static float o2[Q_SIZE], lse2[LSES];
    fresh();
    a = begin(ROWS), a.len_kv = 120;
    fa_tensor k2 = a.k, v2 = a.v;
    k2.data = k + 120 * KV_HEADS * DIM, v2.data = v + 120 * KV_HEADS * DIM;
    EXPECT(two_places(&a, k2, v2, ROOM - 120, o2, lse2, ws, sizeof ws) == FA_OK);
    for (int64_t b = 0; b < BATCH; b++) alone("two places", b, ROWS, ROWS, 0, ROOM);

    /* Probabilities times values are the output of these heads' last rows. */
    static const int32_t heads[] = {1, 2};
    static float weights[BATCH * 2 * ROOM];
    fresh();
    a = begin(ROWS), alignment(&a, heads, 2, weights), run("alignment", &a);
    for (int64_t n = 0; n < BATCH * 2 * DIM; n++) {
        int64_t b = n / DIM / 2, h = heads[n / DIM % 2], d = n % DIM;
        double sum = 0;
        for (int64_t j = 0; j < ROOM; j++)
            sum += (double)weights[n / DIM * ROOM + j]
                   * (double)v[((b * ROOM + j) * KV_HEADS + h / (HEADS / KV_HEADS)) * DIM + d];
        EXPECT(fabs(sum - (double)o[((b * HEADS + h) * ROWS + ROWS - 1) * DIM + d]) <= 1e-5);
    }
    free(q), free(k), free(v);
    return recipe_failures != 0;
}
