/*
 * Speculative decoding with a tree of drafts: a small model proposes several continuations at once,
 * the large one checks all of them in one pass. A draft must see the past, its ancestors and
 * itself, but no draft of another branch: a mask says so.
 *
 *             0
 *           /   \
 *          1     2
 *         / \     \
 *        3   4     5
 *                  |
 *                  6
 *
 * Each draft is compared with its branch alone as ordinary causal attention, which is what the
 * large model would have computed without drafts. Exit code 1 if they differ by more than rounding.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <flash_attention.h>

enum { PAST = 50, DRAFTS = 7, KEYS = PAST + DRAFTS, HEADS_Q = 8, HEADS_KV = 2, DIM = 64 };

static const int parent[DRAFTS] = {-1, 0, 0, 1, 1, 2, 5};

/* The keys of the drafts stand behind those of the past, in the order of their numbers. */
static float q[DRAFTS][HEADS_Q][DIM], k[KEYS][HEADS_KV][DIM], v[KEYS][HEADS_KV][DIM], o[DRAFTS][HEADS_Q][DIM];

static void must(fa_status status)
{
    if (status != FA_OK) {
        fprintf(stderr, "tree_mask: %s\n", fa_status_string(status));
        exit(2);
    }
}

static void fill(void *numbers, size_t bytes)
{
    static uint32_t state = 1;
    for (size_t i = 0; i < bytes / sizeof(float); i++) {
        state = state * 1664525u + 1013904223u;
        ((float *)numbers)[i] = (float)(state >> 8) * 0x1p-22f - 2;
    }
}

static void run(const fa_attention *a)
{
    size_t bytes;
    must(fa_attention_workspace(a, 1, &bytes));
    void *workspace = malloc(bytes > 0 ? bytes : 1);
    if (workspace == NULL)
        exit(2);
    must(fa_attention_run(a, workspace, bytes, NULL));
    free(workspace);
}

/* One sequence of [token][head][dim] everywhere; `rows` queries behind `past` keys. */
static fa_attention describe(int rows, int past, void *queries, void *keys, void *values, void *output)
{
    enum { ROW = DIM * sizeof(float) };
    fa_attention a;
    must(fa_attention_init(&a, sizeof a));
    a.batch = 1, a.heads_q = HEADS_Q, a.heads_kv = HEADS_KV;
    a.len_q = rows, a.len_kv = past + rows;
    a.dim_qk = a.dim_v = DIM;
    /* The first stride, from sequence to sequence, does not matter for one. */
    a.q = (fa_tensor){.data = queries, .stride = {0, ROW, HEADS_Q * ROW}};
    a.k = (fa_tensor){.data = keys, .stride = {0, ROW, HEADS_KV * ROW}};
    a.v = (fa_tensor){.data = values, .stride = {0, ROW, HEADS_KV * ROW}};
    a.o = (fa_tensor){.data = output, .stride = {0, ROW, HEADS_Q * ROW}};
    return a;
}

/* The branch from the root to this draft alone, without a mask; returns how far row `leaf` of `o`
 * is off. */
static double error(int leaf)
{
    static float branch_q[DRAFTS][HEADS_Q][DIM], branch_o[DRAFTS][HEADS_Q][DIM];
    static float branch_k[KEYS][HEADS_KV][DIM], branch_v[KEYS][HEADS_KV][DIM];
    int depth = 0;
    for (int i = leaf; i >= 0; i = parent[i])
        depth++;
    memcpy(branch_k, k, PAST * sizeof k[0]), memcpy(branch_v, v, PAST * sizeof v[0]);
    for (int i = leaf, at = depth - 1; i >= 0; i = parent[i], at--) {
        memcpy(branch_q[at], q[i], sizeof q[i]);
        memcpy(branch_k[PAST + at], k[PAST + i], sizeof k[0]);
        memcpy(branch_v[PAST + at], v[PAST + i], sizeof v[0]);
    }
    fa_attention a = describe(depth, PAST, branch_q, branch_k, branch_v, branch_o);
    a.q_pos = PAST, a.window_right = 0; /* causal, behind a past */
    run(&a);

    double worst = 0;
    for (int i = 0; i < HEADS_Q * DIM; i++) {
        double x = (double)o[leaf][i / DIM][i % DIM], y = (double)branch_o[depth - 1][i / DIM][i % DIM];
        if (!(fabs(x - y) <= worst)) /* not fmax, which would lose a NaN */
            worst = fabs(x - y);
    }
    return worst;
}

int main(void)
{
    fill(q, sizeof q), fill(k, sizeof k), fill(v, sizeof v);

    static uint8_t mask[DRAFTS][KEYS]; /* nonzero = seen */
    for (int i = 0; i < DRAFTS; i++) {
        memset(mask[i], 1, PAST);
        for (int j = i; j >= 0; j = parent[j])
            mask[i][PAST + j] = 1;
    }

    /* No window: where a draft's key stands in memory says nothing about who may see it, and a
     * draft's position in the text is its depth, not its row. (Rotary embeddings of q and k must
     * use the depth.) */
    fa_attention a = describe(DRAFTS, PAST, q, k, v, o);
    /* Strides of 0: the same for all heads. A row is as long as there are keys. */
    a.mask = (fa_tensor){.data = mask, .stride = {0, 0, sizeof mask[0]}, .dtype = FA_DTYPE_BOOL8};
    run(&a);

    double worst = 0;
    for (int i = 0; i < DRAFTS; i++) {
        double e = error(i);
        if (!(e <= worst))
            worst = e;
    }
    printf("%d drafts behind %d tokens, checked in one pass\n", DRAFTS, PAST);
    printf("largest difference to their branches one by one: %.1e\n", worst);
    return worst <= 2e-5 ? 0 : 1;
}
