/*
 * The attention of a decoder in one function: grouped heads, paged caches of bf16, prompts and
 * single tokens in one call. docs/decoder.md explains it line by line. Exit code 1 if a result is
 * wrong.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <flash_attention.h>

enum { LAYERS = 2, SEQS = 2, HEADS_Q = 8, HEADS_KV = 2, DIM = 64, MAX_NEW = 40 };
enum { PAGE = 16, MAX_PAGES = 4, NUM_PAGES = 8 };

static uint16_t k_cache[LAYERS][NUM_PAGES][PAGE][HEADS_KV][DIM], v_cache[LAYERS][NUM_PAGES][PAGE][HEADS_KV][DIM];
static const int32_t table[SEQS][MAX_PAGES] = {{7, 0, 5, 2}, {3, 6, 1, 4}}; /* the pages of each sequence */
static int32_t kv_lens[SEQS], cu_new[SEQS + 1]; /* keys of each sequence; where its new rows begin, and the end */
static float q[SEQS * MAX_NEW][HEADS_Q][DIM], out[SEQS * MAX_NEW][HEADS_Q][DIM];
static float new_k[SEQS * MAX_NEW][HEADS_KV][DIM], new_v[SEQS * MAX_NEW][HEADS_KV][DIM];

static void must(fa_status status, const char *why)
{
    if (status != FA_OK) {
        fprintf(stderr, "decoder: %s: %s\n", fa_status_string(status), why);
        exit(2);
    }
}

/* Writes the new keys and values of a layer into its cache, and computes the attention of the new
 * queries. */
static void attention(int layer)
{
    static fa_workspace ws; /* grows when a step needs more */
    char why[400] = "";
    fa_attention a;
    must(fa_attention_init(&a, sizeof a), why); /* everything off: add what the model has */
    a.batch = SEQS, a.heads_q = HEADS_Q, a.heads_kv = HEADS_KV, a.dim_qk = a.dim_v = DIM;
    a.len_q = MAX_NEW, a.len_kv = MAX_PAGES * PAGE; /* upper bounds; the two lists have the lengths */
    a.cu_len_q = cu_new, a.kv_lens = kv_lens;
    a.window_right = 0; /* causal: the last query of a sequence is at its last key */
    a.q = fa_token_first(q, FA_DTYPE_F32, MAX_NEW, HEADS_Q, DIM), a.q_bytes = sizeof q;
    a.o = fa_token_first(out, FA_DTYPE_F32, MAX_NEW, HEADS_Q, DIM), a.o_bytes = sizeof out;
    a.k = fa_paged(k_cache[layer], FA_DTYPE_BF16, PAGE, HEADS_KV, DIM), a.k_bytes = sizeof k_cache[layer];
    a.v = fa_paged(v_cache[layer], FA_DTYPE_BF16, PAGE, HEADS_KV, DIM), a.v_bytes = sizeof v_cache[layer];
    a.block_table = table[0], a.table_stride = MAX_PAGES, a.page_size = PAGE, a.num_pages = NUM_PAGES;
    fa_tensor k = fa_token_first(new_k, FA_DTYPE_F32, MAX_NEW, HEADS_KV, DIM);
    fa_tensor v = fa_token_first(new_v, FA_DTYPE_F32, MAX_NEW, HEADS_KV, DIM);

    must(fa_cache_append(&a, &k, &v, why, sizeof why), why);
    must(fa_attention_check(&a, why, sizeof why), why); /* while you develop: what is wrong or doubtful, which kernel */
    must(fa_run(&a, &ws, NULL), why);
}

/* Stands for the model: a number from -2 to 2 for each element. */
static float number(int what, int layer, int seq, int token, int head, int d)
{
    uint32_t x = (uint32_t)(((((what * LAYERS + layer) * SEQS + seq) * 64 + token) * HEADS_Q + head) * DIM + d);
    x = (x ^ x >> 15) * 0x2c1b3c6du, x = (x ^ x >> 12) * 0x297a2d39u;
    return (float)((x ^ x >> 15) >> 8) * 0x1p-22f - 2;
}

/* The largest difference of a row from the definition, in double, with keys and values that no
 * cache has rounded. */
static double error(int row, int layer, int seq, int token)
{
    double worst = 0;
    for (int h = 0; h < HEADS_Q; h++) {
        double p[MAX_PAGES * PAGE], sum = 0;
        int g = h / (HEADS_Q / HEADS_KV); /* the kv head of query head h */
        for (int j = 0; j <= token; j++) {
            double dot = 0;
            for (int d = 0; d < DIM; d++)
                dot += (double)q[row][h][d] * (double)number(1, layer, seq, j, g, d);
            sum += p[j] = exp(dot / sqrt(DIM));
        }
        for (int d = 0; d < DIM; d++) {
            double exact = 0;
            for (int j = 0; j <= token; j++)
                exact += p[j] / sum * (double)number(2, layer, seq, j, g, d);
            worst = fabs((double)out[row][h][d] - exact) <= worst ? worst : fabs((double)out[row][h][d] - exact);
        }
    }
    return worst;
}

int main(void)
{
    double worst = 0;
    for (int step = 0; step < 12; step++) {
        /* The scheduler: prompts of 19 and 40 tokens, then a token a step; the second one joins in
         * step 2. */
        for (int s = 0; s < SEQS; s++) {
            int fresh = step == 2 * s ? 19 + 21 * s : step > 2 * s;
            kv_lens[s] += fresh, cu_new[s + 1] = cu_new[s] + fresh;
        }
        for (int layer = 0; layer < LAYERS; layer++) {
            for (int s = 0; s < SEQS; s++) /* the model's projections, and rotary embedding */
                for (int row = cu_new[s]; row < cu_new[s + 1]; row++)
                    for (int i = 0, t = kv_lens[s] - cu_new[s + 1] + row; i < HEADS_Q * DIM; i++) {
                        q[row][i / DIM][i % DIM] = number(0, layer, s, t, i / DIM, i % DIM);
                        if (i < HEADS_KV * DIM) {
                            new_k[row][i / DIM][i % DIM] = number(1, layer, s, t, i / DIM, i % DIM);
                            new_v[row][i / DIM][i % DIM] = number(2, layer, s, t, i / DIM, i % DIM);
                        }
                    }
            attention(layer);
            for (int s = 0; s < SEQS; s++)
                for (int row = cu_new[s]; row < cu_new[s + 1]; row++) {
                    double e = error(row, layer, s, kv_lens[s] - cu_new[s + 1] + row);
                    worst = e <= worst ? worst : e; /* a NaN stays */
                }
        }
    }
    printf("%d and %d tokens, %d layers: largest error %.1e\n", (int)kv_lens[0], (int)kv_lens[1], LAYERS, worst);
    return worst <= 2e-2 ? 0 : 1;
}
