/*
 * Four sequences begin with the same 100 tokens, a system prompt. Attention over these is computed
 * once, for the queries of all sequences together; attention over what each sequence has of its own
 * is computed for itself; fa_merge joins the two. The prompt's keys and values exist once, and are
 * read once for all sequences instead of once for each.
 *
 * Compared with attention over each sequence as a whole, prompt included. Exit code 1 if the
 * results differ by more than rounding.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <flash_attention.h>

enum { SEQUENCES = 4, PREFIX = 100, OWN = 52, HEADS_Q = 8, HEADS_KV = 2, DIM = 64 };

/* Tokens that the sequences have of their own, one sequence behind the other: 7, 1, 24 and 20. */
static const int32_t starts[SEQUENCES + 1] = {0, 7, 8, 32, OWN};

static float q[OWN][HEADS_Q][DIM], k[OWN][HEADS_KV][DIM], v[OWN][HEADS_KV][DIM];
static float prefix_k[PREFIX][HEADS_KV][DIM], prefix_v[PREFIX][HEADS_KV][DIM];

/* Learned logits, one a head, that take part in the softmax without a value (attention sinks). */
static float sinks[HEADS_Q];

static void must(fa_status status)
{
    if (status != FA_OK) {
        fprintf(stderr, "prefix_sharing: %s\n", fa_status_string(status));
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

/* All queries as one sequence; keys, lengths and windows are left to the caller. */
static fa_attention describe(void *keys, void *values, int64_t num_keys, float *out, float *lse)
{
    enum { ROW = DIM * sizeof(float) };
    fa_attention a;
    must(fa_attention_init(&a, sizeof a));
    a.batch = 1, a.heads_q = HEADS_Q, a.heads_kv = HEADS_KV;
    a.len_q = OWN, a.len_kv = num_keys, a.dim_qk = a.dim_v = DIM;
    a.q = (fa_tensor){.data = q, .stride = {0, ROW, HEADS_Q * ROW}};
    a.k = (fa_tensor){.data = keys, .stride = {0, ROW, HEADS_KV * ROW}};
    a.v = (fa_tensor){.data = values, .stride = {0, ROW, HEADS_KV * ROW}};
    a.o = (fa_tensor){.data = out, .stride = {0, ROW, HEADS_Q * ROW}};
    /* fa_merge joins dense rows with one lse each, so lse must be in the order of the rows of o:
     * [token][head]. These strides count elements. */
    a.lse = lse, a.lse_stride[1] = 1, a.lse_stride[2] = HEADS_Q;
    return a;
}

int main(void)
{
    fill(q, sizeof q), fill(k, sizeof k), fill(v, sizeof v), fill(sinks, sizeof sinks);
    fill(prefix_k, sizeof prefix_k), fill(prefix_v, sizeof prefix_v);

    /* Over the prompt: who owns a query does not matter, so 52 rows of "one sequence". Every query
     * stands behind the whole prompt and sees all of it: no causal window, and thus no position. (A
     * model with a sliding window or linear biases does need positions here, and one q_pos cannot
     * say them for all sequences at once. Then: batch = SEQUENCES, cu_len_q, k and v with a first
     * stride of 0, q_pos = PREFIX.) */
    static float o[OWN * HEADS_Q * DIM], lse[OWN * HEADS_Q];
    fa_attention shared = describe(prefix_k, prefix_v, PREFIX, o, lse);
    /* A sink is one more term of the sum, so it must be in one of the parts and not in both. */
    shared.sinks = sinks;
    run(&shared);

    /* Over their own tokens: causal, and positions count from the first token that is not shared,
     * because here that is key 0. The same would be q_pos = FA_POS_END, as each has as many keys as
     * queries. */
    static float own_o[OWN * HEADS_Q * DIM], own_lse[OWN * HEADS_Q];
    fa_attention own = describe(k, v, OWN, own_o, own_lse);
    own.batch = SEQUENCES, own.cu_len_q = own.cu_len_kv = starts;
    own.q_pos = 0, own.window_right = 0;
    run(&own);

    must(fa_merge(o, lse, own_o, own_lse, OWN * HEADS_Q, DIM));

    /* The long way: a copy of the prompt in front of each sequence's own tokens. */
    enum { ALL = SEQUENCES * PREFIX + OWN };
    static float all_k[ALL][HEADS_KV][DIM], all_v[ALL][HEADS_KV][DIM];
    static float all_o[OWN * HEADS_Q * DIM], all_lse[OWN * HEADS_Q];
    int32_t all_starts[SEQUENCES + 1];
    for (int s = 0; s <= SEQUENCES; s++)
        all_starts[s] = s * PREFIX + starts[s];
    for (int s = 0; s < SEQUENCES; s++) {
        int32_t at = all_starts[s], tokens = starts[s + 1] - starts[s];
        memcpy(all_k[at], prefix_k, sizeof prefix_k);
        memcpy(all_v[at], prefix_v, sizeof prefix_v);
        memcpy(all_k[at + PREFIX], k[starts[s]], (size_t)tokens * sizeof k[0]);
        memcpy(all_v[at + PREFIX], v[starts[s]], (size_t)tokens * sizeof v[0]);
    }
    fa_attention whole = describe(all_k, all_v, ALL, all_o, all_lse);
    whole.batch = SEQUENCES, whole.cu_len_q = starts, whole.cu_len_kv = all_starts;
    whole.q_pos = PREFIX, whole.window_right = 0;
    whole.sinks = sinks;
    run(&whole);

    double worst = 0;
    for (int i = 0; i < OWN * HEADS_Q * DIM; i++) {
        double off = fabs((double)o[i] - (double)all_o[i]) + fabs((double)lse[i / DIM] - (double)all_lse[i / DIM]);
        if (!(off <= worst)) /* not fmax, which would lose a NaN */
            worst = off;
    }
    printf("%d sequences, %d tokens of their own, behind %d shared ones: %d keys held instead of %d\n", SEQUENCES, OWN,
           PREFIX, PREFIX + OWN, ALL);
    printf("largest difference to each sequence as a whole, of output and lse together: %.1e\n", worst);
    return worst <= 2e-5 ? 0 : 1;
}
