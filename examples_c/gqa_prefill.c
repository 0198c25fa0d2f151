/*
 * Prefill of a decoder layer with grouped heads: 32 query heads share 8 heads of keys and values,
 * and each token sees itself and those before it.
 *
 * Shows the whole way through the general door: describe the problem, ask whether it can be
 * computed and why not, ask for scratch memory, run on a pool of threads. Exit code 1 if the result
 * is wrong.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <flash_attention.h>

enum { BATCH = 2, SEQ = 100, HEADS_Q = 32, HEADS_KV = 8, DIM = 64 };

/* The layout that most inference engines have after the projections. The library takes any layout
 * whose rows are contiguous, so nothing has to be transposed first. */
static float q[BATCH][SEQ][HEADS_Q][DIM], k[BATCH][SEQ][HEADS_KV][DIM], v[BATCH][SEQ][HEADS_KV][DIM];
static float o[BATCH][SEQ][HEADS_Q][DIM];

static void must(fa_status status)
{
    if (status != FA_OK) {
        fprintf(stderr, "gqa_prefill: %s\n", fa_status_string(status));
        exit(2);
    }
}

/* Between -2 and 2: wide enough that some keys matter much more than others. */
static void fill(void *numbers, size_t bytes)
{
    static uint32_t state = 1;
    for (size_t i = 0; i < bytes / sizeof(float); i++) {
        state = state * 1664525u + 1013904223u;
        ((float *)numbers)[i] = (float)(state >> 8) * 0x1p-22f - 2;
    }
}

/* Token i of head h from the formula, in double; returns how far `o` is from it. */
static double error(int b, int i, int h)
{
    int g = h / (HEADS_Q / HEADS_KV); /* the head of k and v that it shares with its neighbours */
    double weight[SEQ], sum = 0, worst = 0;
    for (int j = 0; j <= i; j++) {
        double dot = 0;
        for (int d = 0; d < DIM; d++)
            dot += (double)q[b][i][h][d] * (double)k[b][j][g][d];
        sum += weight[j] = exp(dot / sqrt(DIM));
    }
    for (int d = 0; d < DIM; d++) {
        double exact = 0;
        for (int j = 0; j <= i; j++)
            exact += weight[j] / sum * (double)v[b][j][g][d];
        double difference = fabs((double)o[b][i][h][d] - exact);
        if (!(difference <= worst)) /* not fmax, which would lose a NaN */
            worst = difference;
    }
    return worst;
}

int main(void)
{
    fill(q, sizeof q), fill(k, sizeof k), fill(v, sizeof v);

    fa_attention a;
    must(fa_attention_init(&a, sizeof a));
    a.batch = BATCH;
    a.heads_q = HEADS_Q, a.heads_kv = HEADS_KV; /* nothing else to say about groups; k and v are not repeated */
    a.len_q = a.len_kv = SEQ;
    a.dim_qk = a.dim_v = DIM;
    /* Strides are always in the order batch entry, head, token, wherever these axes are in memory,
     * and in bytes. So sizeof says them best: here a token of all heads is larger than a head. */
    a.q = (fa_tensor){.data = q, .stride = {sizeof q[0], sizeof q[0][0][0], sizeof q[0][0]}};
    a.k = (fa_tensor){.data = k, .stride = {sizeof k[0], sizeof k[0][0][0], sizeof k[0][0]}};
    a.v = (fa_tensor){.data = v, .stride = {sizeof v[0], sizeof v[0][0][0], sizeof v[0][0]}};
    a.o = (fa_tensor){.data = o, .stride = {sizeof o[0], sizeof o[0][0][0], sizeof o[0][0]}};
    a.window_right = 0; /* no key behind the query's position: causal */
    /* q_pos stays FA_POS_END and scale stays 0, which means 1/sqrt(dim_qk). */

    /* While a program is being written, descriptions are wrong. The sentence says more than the
     * status: here somebody counts elements instead of bytes. */
    char why[256];
    fa_attention mistaken = a;
    mistaken.o.stride[2] = HEADS_Q * DIM;
    fa_status refused = fa_attention_check(&mistaken, why, sizeof why);
    printf("with a wrong stride: status %d, \"%s\"\n", (int)refused, why);
    fa_status accepted = fa_attention_check(&a, why, sizeof why);
    printf("as it should be:     status %d, \"%s\"\n", (int)accepted, why);
    must(accepted);

    /* Made once, used for every layer and every token; 0 = as many threads as there are cores. */
    fa_pool *pool;
    must(fa_pool_create(0, &pool));

    /* The library allocates nothing while it runs. Ask with the width of the pool that will be
     * used: it may be less than what fa_pool_create was asked for. */
    size_t bytes;
    must(fa_attention_workspace(&a, pool->width(pool->ctx), &bytes));
    void *workspace = malloc(bytes > 0 ? bytes : 1);
    if (workspace == NULL)
        return 2;
    must(fa_attention_run(&a, workspace, bytes, pool));

    free(workspace);
    fa_pool_destroy(pool);

    double worst = 0;
    for (int b = 0; b < BATCH; b++)
        for (int i = 0; i < SEQ; i++)
            for (int h = 0; h < HEADS_Q; h++) {
                double e = error(b, i, h);
                if (!(e <= worst))
                    worst = e;
            }
    printf("%d x %d tokens, %d heads on %d: largest error %.1e, workspace %zu bytes\n", BATCH, SEQ, HEADS_Q, HEADS_KV,
           worst, bytes);
    return refused != FA_OK && worst <= 2e-5 ? 0 : 1;
}
