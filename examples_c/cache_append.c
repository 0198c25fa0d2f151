/*
 * Writing a cache: keys of Q8_0 and values of bf16 in pages. Each step gives every sequence some
 * new tokens, a prompt first and then one at a time; one description serves the call that writes
 * them and the one that attends to them.
 *
 * The same keys and values are kept in f32, and every step is computed from those, too. Exit code 1
 * if the results differ by more than the types of the cache cost.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <flash_attention.h>

enum { SEQS = 3, HEADS_Q = 4, HEADS_KV = 2, DIM = 64, STEPS = 20, MOST_NEW = 40 };
enum { PAGE = 16, MAX_PAGES = 4, MAX_LEN = PAGE * MAX_PAGES, NUM_PAGES = SEQS * MAX_PAGES };
/* A block of 32 elements of Q8_0 has 34 bytes. */
enum { K_ROW = DIM / 32 * 34, V_ROW = DIM * 2 };

static unsigned char k_pages[NUM_PAGES][PAGE][HEADS_KV][K_ROW], v_pages[NUM_PAGES][PAGE][HEADS_KV][V_ROW];
static int32_t table[SEQS][MAX_PAGES], kv_lens[SEQS], cu_new[SEQS + 1];
/* New tokens of all sequences behind one another, [token][head][dim], as the projections of a model
 * make them. */
static float q[SEQS * MOST_NEW * HEADS_Q * DIM], o[2][SEQS * MOST_NEW * HEADS_Q * DIM];
static float new_k[SEQS * MOST_NEW * HEADS_KV * DIM], new_v[SEQS * MOST_NEW * HEADS_KV * DIM];
/* The same cache without rounding, [sequence][token][head][dim]. */
static float k_plain[SEQS][MAX_LEN][HEADS_KV][DIM], v_plain[SEQS][MAX_LEN][HEADS_KV][DIM];

static void fail(const char *what)
{
    fprintf(stderr, "cache_append: %s\n", what);
    exit(2);
}

static void must(fa_status status)
{
    if (status != FA_OK)
        fail(fa_status_string(status));
}

static void fill(float *x, size_t n)
{
    static uint32_t state = 1;
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        x[i] = (float)(state >> 8) * 0x1p-22f - 2;
    }
}

static void run(const fa_attention *a)
{
    size_t bytes;
    must(fa_attention_workspace(a, 1, &bytes));
    void *memory = malloc(bytes > 0 ? bytes : 1);
    if (memory == NULL)
        fail("out of memory");
    must(fa_attention_run(a, memory, bytes, NULL));
    free(memory);
}

/* Rows of `heads` heads, [token][head][dim] in f32, all sequences behind one another. */
static fa_tensor rows(float *data, int64_t heads)
{
    return (fa_tensor){.data = data, .stride = {0, DIM * 4, heads * DIM * 4}, .dtype = FA_DTYPE_F32};
}

/* Attention of the new tokens to all of their sequence, causal, from the pages. */
static fa_attention describe(float *out)
{
    fa_attention a;
    must(fa_attention_init(&a, sizeof a));
    a.batch = SEQS, a.heads_q = HEADS_Q, a.heads_kv = HEADS_KV, a.dim_qk = a.dim_v = DIM;
    a.len_q = MOST_NEW, a.len_kv = MAX_LEN;
    a.cu_len_q = cu_new;   /* new tokens of each sequence: queries, keys and values */
    a.kv_lens = kv_lens;   /* the new ones counted: they are the last */
    a.q = rows(q, HEADS_Q), a.o = rows(out, HEADS_Q);
    a.k = (fa_tensor){.data = k_pages, .dtype = FA_DTYPE_Q8_0}; /* [page][token][head][dim] */
    a.v = (fa_tensor){.data = v_pages, .dtype = FA_DTYPE_BF16};
    a.k.stride[0] = PAGE * HEADS_KV * K_ROW, a.k.stride[1] = K_ROW, a.k.stride[2] = HEADS_KV * K_ROW;
    a.v.stride[0] = PAGE * HEADS_KV * V_ROW, a.v.stride[1] = V_ROW, a.v.stride[2] = HEADS_KV * V_ROW;
    a.block_table = table[0], a.table_stride = MAX_PAGES, a.page_size = PAGE, a.num_pages = NUM_PAGES;
    a.window_right = 0;
    return a;
}

/* Writes the new keys and values where the table says, and attends to them. */
static void step(void)
{
    fa_attention a = describe(o[0]);
    fa_tensor k = rows(new_k, HEADS_KV), v = rows(new_v, HEADS_KV);
    char why[200];
    if (fa_cache_append(&a, &k, &v, why, sizeof why) != FA_OK)
        fail(why);
    run(&a);
}

/* The same without pages and without rounding. */
static void plain_step(void)
{
    for (int b = 0; b < SEQS; b++) {
        int n = cu_new[b + 1] - cu_new[b];
        size_t bytes = (size_t)n * sizeof k_plain[b][0];
        memcpy(k_plain[b][kv_lens[b] - n], new_k + cu_new[b] * HEADS_KV * DIM, bytes);
        memcpy(v_plain[b][kv_lens[b] - n], new_v + cu_new[b] * HEADS_KV * DIM, bytes);
    }
    fa_attention a = describe(o[1]);
    a.k = rows(k_plain[0][0][0], HEADS_KV), a.v = rows(v_plain[0][0][0], HEADS_KV);
    a.k.stride[0] = a.v.stride[0] = sizeof k_plain[0];
    a.block_table = NULL;
    run(&a);
}

int main(void)
{
    /* Pages in any order. */
    for (int i = 0; i < NUM_PAGES; i++)
        table[i % SEQS][i / SEQS] = (i * 5 + 3) % NUM_PAGES;
    double largest = 0;
    for (int n = 0; n < STEPS; n++) {
        for (int b = 0; b < SEQS; b++) {
            int tokens = n == 0 ? 10 * (b + 1) : 1;
            cu_new[b + 1] = cu_new[b] + tokens, kv_lens[b] += tokens;
        }
        size_t all = (size_t)cu_new[SEQS];
        fill(q, all * HEADS_Q * DIM), fill(new_k, all * HEADS_KV * DIM), fill(new_v, all * HEADS_KV * DIM);
        step();
        plain_step();
        double error = 0, size = 0;
        for (size_t i = 0; i < all * HEADS_Q * DIM; i++) {
            error += ((double)o[0][i] - o[1][i]) * ((double)o[0][i] - o[1][i]);
            size += (double)o[1][i] * o[1][i];
        }
        largest = fmax(largest, sqrt(error / size));
    }
    printf("keys of Q8_0 and values of bf16: %.1e of the outputs in %d steps\n", largest, STEPS);
    return largest < 1e-2 ? 0 : 1;
}
