/*
 * What an engine adds to examples_c/decoder.c: threads, caches of 8 bits, and drafts of speculative
 * decoding that are rejected. docs/decoder.md explains it. The output is computed with each type of
 * cache, on one thread and on a pool. Exit code 1 if it is farther from the definition than its
 * type of cache allows, or if threads change a bit.
 */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <flash_attention.h>

enum { SEQS = 2, HEADS_Q = 8, HEADS_KV = 2, DIM = 64, PAGE = 16, MAX_PAGES = 8, NUM_PAGES = 16, MAX_NEW = 100 };
enum { MAX_LEN = MAX_PAGES * PAGE, DRAFTS = 3, STEPS = 9, MAX_ROW = DIM * 2 };

/* One of K and V: elements [page][token][head], and the scales of I8, [page][token][head]. */
struct cache {
    unsigned char data[NUM_PAGES * PAGE * HEADS_KV * MAX_ROW];
    float scales[NUM_PAGES * PAGE * HEADS_KV];
};
static struct cache k_cache, v_cache;
static const int32_t table[SEQS][MAX_PAGES] = {{7, 0, 5, 2, 9, 8, 15, 12}, {3, 6, 1, 4, 14, 11, 10, 13}};
static int32_t kv_lens[SEQS], cu_new[SEQS + 1];
static float q[SEQS * MAX_NEW][HEADS_Q][DIM], out[SEQS * MAX_NEW][HEADS_Q][DIM];
static float new_k[SEQS * MAX_NEW][HEADS_KV][DIM], new_v[SEQS * MAX_NEW][HEADS_KV][DIM];

static void must(fa_status status, const char *why)
{
    if (status != FA_OK) {
        fprintf(stderr, "decoder_grown: %s: %s\n", fa_status_string(status), why);
        exit(2);
    }
}

/* The cache in one of three types. quant has to live as long as the tensor. */
static fa_tensor cache_of(struct cache *c, int32_t dtype, fa_quant *quant)
{
    fa_tensor x = fa_paged(c->data, dtype, PAGE, HEADS_KV, DIM);
    /* A scale for each token and head. Strides of scales count values. BF16 and Q8_0 need none. */
    *quant = (fa_quant){.scale = c->scales, .stride = {PAGE * HEADS_KV, 1, HEADS_KV}, .group_tokens = 1};
    if (dtype == FA_DTYPE_I8)
        x.quant = quant;
    return x;
}

/* As in decoder.c, but for the type of the cache and the threads. NULL = the calling thread
 * alone. */
static void attention(int32_t dtype, const fa_pool *pool)
{
    static fa_workspace ws;
    char why[256] = "";
    fa_quant k_quant, v_quant;
    fa_attention a;
    must(fa_attention_init(&a, sizeof a), why);
    a.batch = SEQS, a.heads_q = HEADS_Q, a.heads_kv = HEADS_KV, a.dim_qk = a.dim_v = DIM;
    a.len_q = MAX_NEW, a.len_kv = MAX_LEN;
    a.cu_len_q = cu_new, a.kv_lens = kv_lens;
    a.window_right = 0;
    a.q = fa_token_first(q, FA_DTYPE_F32, MAX_NEW, HEADS_Q, DIM), a.q_bytes = sizeof q;
    a.o = fa_token_first(out, FA_DTYPE_F32, MAX_NEW, HEADS_Q, DIM), a.o_bytes = sizeof out;
    a.k = cache_of(&k_cache, dtype, &k_quant), a.v = cache_of(&v_cache, dtype, &v_quant);
    a.k_bytes = sizeof k_cache.data, a.v_bytes = sizeof v_cache.data;
    fa_tensor k = fa_token_first(new_k, FA_DTYPE_F32, MAX_NEW, HEADS_KV, DIM);
    fa_tensor v = fa_token_first(new_v, FA_DTYPE_F32, MAX_NEW, HEADS_KV, DIM);
    a.block_table = table[0], a.table_stride = MAX_PAGES, a.page_size = PAGE, a.num_pages = NUM_PAGES;
    must(fa_cache_append(&a, &k, &v, why, sizeof why), why);
    must(fa_run(&a, &ws, pool), why);
}

/* Stands for the model: a number from -2 to 2 for each element. what is 0, 1 or 2 for q, k or v. A
 * rejected draft is another token than the one that is accepted at its position later. */
static float number(int what, bool rejected, int seq, int token, int head, int d)
{
    uint32_t x = (uint32_t)(((((what * 2 + rejected) * SEQS + seq) * MAX_LEN + token) * HEADS_Q + head) * DIM + d);
    x = (x ^ x >> 15) * 0x2c1b3c6du, x = (x ^ x >> 12) * 0x297a2d39u;
    return (float)((x ^ x >> 15) >> 8) * 0x1p-22f - 2;
}

/* New rows of a sequence: those from position `wrong` on are drafts that will be rejected. */
static void project(int s, int wrong)
{
    for (int row = cu_new[s]; row < cu_new[s + 1]; row++)
        for (int i = 0, t = kv_lens[s] - cu_new[s + 1] + row; i < HEADS_Q * DIM; i++) {
            q[row][i / DIM][i % DIM] = number(0, t >= wrong, s, t, i / DIM, i % DIM);
            if (i < HEADS_KV * DIM) {
                new_k[row][i / DIM][i % DIM] = number(1, t >= wrong, s, t, i / DIM, i % DIM);
                new_v[row][i / DIM][i % DIM] = number(2, t >= wrong, s, t, i / DIM, i % DIM);
            }
        }
}

/* The largest difference of a row from the definition, in double, with keys and values that no
 * cache has rounded. */
static double error(int row, int seq, int token, int wrong)
{
    double worst = 0;
    for (int h = 0; h < HEADS_Q; h++) {
        double p[MAX_LEN], sum = 0;
        int g = h / (HEADS_Q / HEADS_KV);
        for (int j = 0; j <= token; j++) {
            double dot = 0;
            for (int d = 0; d < DIM; d++)
                dot += (double)q[row][h][d] * (double)number(1, j >= wrong, seq, j, g, d);
            sum += p[j] = exp(dot / sqrt(DIM));
        }
        for (int d = 0; d < DIM; d++) {
            double exact = 0;
            for (int j = 0; j <= token; j++)
                exact += p[j] / sum * (double)number(2, j >= wrong, seq, j, g, d);
            double difference = fabs((double)out[row][h][d] - exact);
            worst = difference <= worst ? worst : difference; /* a NaN stays */
        }
    }
    return worst;
}

/* A prompt for each sequence, then steps of one token and DRAFTS drafts, of which some are
 * accepted. */
static double generate(int32_t dtype, const fa_pool *pool, bool *same)
{
    static float alone[SEQS * MAX_NEW][HEADS_Q][DIM];
    double worst = 0;
    memset(kv_lens, 0, sizeof kv_lens);
    for (int step = 0; step <= STEPS; step++) {
        int wrong[SEQS];
        for (int s = 0; s < SEQS; s++) {
            int fresh = step == 0 ? 20 + 70 * s : 1 + DRAFTS;
            /* What verification will find: after the prompt and the new token, this many drafts are
             * right. */
            int accepted = step == 0 ? 0 : (step + s) % (DRAFTS + 1);
            wrong[s] = step == 0 ? MAX_LEN : kv_lens[s] + 1 + accepted;
            kv_lens[s] += fresh, cu_new[s + 1] = cu_new[s] + fresh;
            project(s, wrong[s]);
        }
        attention(dtype, NULL);
        memcpy(alone, out, sizeof out);
        memset(out, 0xff, sizeof out); /* NaN, so that nothing is right by chance */
        attention(dtype, pool);        /* the same keys and values are written again */
        *same &= memcmp(alone, out, (size_t)cu_new[SEQS] * sizeof out[0]) == 0;
        for (int s = 0; s < SEQS; s++) {
            for (int row = cu_new[s]; row < cu_new[s + 1]; row++) {
                double e = error(row, s, kv_lens[s] - cu_new[s + 1] + row, wrong[s]);
                worst = e <= worst ? worst : e;
            }
            /* Rejected drafts: the cache forgets them, and the next step writes over their keys and
             * values. */
            if (kv_lens[s] > wrong[s])
                kv_lens[s] = wrong[s];
        }
    }
    return worst;
}

int main(void)
{
    static const struct {
        int32_t dtype;
        const char *name;
        double bound;
    } caches[] = {{FA_DTYPE_BF16, "bf16", 2e-2}, {FA_DTYPE_Q8_0, "Q8_0", 5e-2}, {FA_DTYPE_I8, "int8", 5e-2}};
    bool right = true, same = true;
    fa_pool *pool;
    must(fa_pool_create(4, &pool), "no pool"); /* or a pool of your own threads */
    for (int i = 0; i < 3; i++) {
        double worst = generate(caches[i].dtype, pool, &same);
        printf("cache of %s: largest error %.1e\n", caches[i].name, worst);
        right &= worst <= caches[i].bound;
    }
    fa_pool_destroy(pool);
    printf("with %s bits on threads\n", same ? "the same" : "OTHER");
    return right && same ? 0 : 1;
}
