/*
 * What the tests of docs/embedding.md share, in C and C++: two problems whose bits on the calling
 * thread alone any threads must reproduce, and what a pool has to do besides.
 *
 *   prompt  many query rows: parts are rows of heads
 *   token   one query row on many keys: threads divide the keys, and the second half of a call
 *           joins what they found
 */

#ifndef RECIPE_H
#define RECIPE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <flash_attention.h>

enum { RECIPE_HEADS = 4, RECIPE_KV_HEADS = 2, RECIPE_ROWS = 150, RECIPE_KEYS = 9000, RECIPE_DIM = 64 };

static int recipe_failures;

#define EXPECT(condition)                                                                          \
    do {                                                                                           \
        if (!(condition)) recipe_failures++, fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
    } while (0)

static inline void *recipe_memory(size_t bytes)
{
    void *memory = malloc(bytes > 0 ? bytes : 1);
    if (memory == NULL) {
        fprintf(stderr, "out of memory: %zu bytes\n", bytes);
        exit(2);
    }
    return memory;
}

/* n numbers between -2 and 2, the same in every run. */
static inline float *recipe_numbers(size_t n, uint32_t seed)
{
    float *x = (float *)recipe_memory(n * sizeof *x);
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (float)(seed >> 8) / 4194304.0f - 2.0f;
    }
    return x;
}

/* A problem with its arrays, what it should give, and how many bytes that is. */
struct recipe {
    fa_attention a;
    float *q, *k, *v, *o, *want;
    size_t bytes;
};

static inline fa_tensor recipe_tensor(float *data, int64_t heads, int64_t rows)
{
    fa_tensor t;
    memset(&t, 0, sizeof t);
    t.data = data;
    t.stride[0] = heads * rows * RECIPE_DIM * 4, t.stride[1] = rows * RECIPE_DIM * 4, t.stride[2] = RECIPE_DIM * 4;
    return t;
}

static inline struct recipe recipe_make(int64_t rows, int64_t keys)
{
    struct recipe r;
    r.q = recipe_numbers((size_t)(RECIPE_HEADS * rows * RECIPE_DIM), 1);
    r.k = recipe_numbers((size_t)(RECIPE_KV_HEADS * keys * RECIPE_DIM), 2);
    r.v = recipe_numbers((size_t)(RECIPE_KV_HEADS * keys * RECIPE_DIM), 3);
    r.bytes = (size_t)(RECIPE_HEADS * rows * RECIPE_DIM) * sizeof *r.o;
    r.o = (float *)recipe_memory(r.bytes), r.want = (float *)recipe_memory(r.bytes);
    EXPECT(fa_attention_init(&r.a, sizeof r.a) == FA_OK);
    r.a.batch = 1, r.a.heads_q = RECIPE_HEADS, r.a.heads_kv = RECIPE_KV_HEADS;
    r.a.len_q = rows, r.a.len_kv = keys, r.a.dim_qk = r.a.dim_v = RECIPE_DIM;
    r.a.q = recipe_tensor(r.q, RECIPE_HEADS, rows), r.a.o = recipe_tensor(r.want, RECIPE_HEADS, rows);
    r.a.k = recipe_tensor(r.k, RECIPE_KV_HEADS, keys), r.a.v = recipe_tensor(r.v, RECIPE_KV_HEADS, keys);
    r.a.window_right = 0;

    size_t bytes = 0;
    EXPECT(fa_attention_workspace(&r.a, 1, &bytes) == FA_OK);
    void *ws = recipe_memory(bytes);
    EXPECT(fa_attention_run(&r.a, ws, bytes, NULL) == FA_OK);
    free(ws);
    r.a.o.data = r.o;
    return r;
}

static inline struct recipe recipe_prompt(void) { return recipe_make(RECIPE_ROWS, RECIPE_ROWS); }
static inline struct recipe recipe_token(void) { return recipe_make(1, RECIPE_KEYS); }

/* Before somebody computes it: nothing may be right by chance. */
static inline void recipe_clear(struct recipe *r) { memset(r->o, 0xff, r->bytes); }

static inline void recipe_compare(const struct recipe *r) { EXPECT(memcmp(r->o, r->want, r->bytes) == 0); }

static inline void recipe_free(struct recipe *r)
{
    free(r->q), free(r->k), free(r->v), free(r->o), free(r->want);
}

enum { RECIPE_CALLS = 1000 };

static void recipe_count(void *arg, size_t i)
{
    if (i < RECIPE_CALLS) ((unsigned char *)arg)[i]++; /* each i is one thread's */
    else ((unsigned char *)arg)[RECIPE_CALLS] = 1;
}

/* A pool that is said to be so wide: each call made once, and before it returns; then both
 * problems. */
static inline void recipe_check_pool(const fa_pool *pool, int32_t width)
{
    unsigned char calls[RECIPE_CALLS + 1] = {0};
    EXPECT(pool->width(pool->ctx) == width);
    pool->parallel_for(pool->ctx, RECIPE_CALLS, recipe_count, calls);
    for (int i = 0; i <= RECIPE_CALLS; i++) EXPECT(calls[i] == (i < RECIPE_CALLS));

    struct recipe both[2] = {recipe_prompt(), recipe_token()};
    for (int i = 0; i < 2; i++) {
        size_t bytes = 0;
        EXPECT(fa_attention_workspace(&both[i].a, width, &bytes) == FA_OK);
        void *ws = recipe_memory(bytes);
        for (int again = 0; again < 3; again++) {
            recipe_clear(&both[i]);
            EXPECT(fa_attention_run(&both[i].a, ws, bytes, pool) == FA_OK);
            recipe_compare(&both[i]);
        }
        free(ws);
        recipe_free(&both[i]);
    }
}

#endif
