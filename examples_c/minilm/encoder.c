#include "encoder.h"

#include "fail.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Sums of what tokens and positions stand for. */
static void embed(const model *m, const sentences *s, float *x)
{
    for (size_t row = 0; row < s->batch * s->longest; row++) {
        const float *word = m->word + (size_t)s->tokens[row] * m->hidden;
        const float *position = m->position + row % s->longest * m->hidden;
        for (size_t i = 0; i < m->hidden; i++)
            x[row * m->hidden + i] = word[i] + position[i];
    }
}

/* The mean over a sentence's own tokens, made a vector of length 1. */
static void pool_tokens(const float *x, size_t tokens, size_t hidden, float *embedding)
{
    double square = 0;
    for (size_t i = 0; i < hidden; i++) {
        double sum = 0;
        for (size_t t = 0; t < tokens; t++)
            sum += x[t * hidden + i];
        embedding[i] = (float)(sum / (double)tokens);
        square += (double)embedding[i] * embedding[i];
    }
    if (!(square > 0 && square < HUGE_VAL)) /* NaN is neither */
        fail("the model's weights are damaged", "an embedding is not a direction");
    for (size_t i = 0; i < hidden; i++)
        embedding[i] = (float)(embedding[i] / sqrt(square));
}

void encode(const model *m, const fa_pool *pool, attention_kind kind, const sentences *s, float *embeddings)
{
    size_t rows = s->batch * s->longest;
    float *x = allocate(rows * m->hidden, sizeof *x), *change = allocate(rows * m->hidden, sizeof *change);
    float *qkv = allocate(rows * m->hidden, 3 * sizeof *qkv), *inner = allocate(rows * m->inner, sizeof *inner);
    attention a = attention_make(s->batch, s->longest, m->heads, m->hidden / m->heads, s->lengths, kind, pool);

    embed(m, s, x);
    rows_norm(pool, &m->embedded, x, NULL, rows, m->hidden);
    for (size_t i = 0; i < m->layers; i++) {
        const layer *l = &m->layer[i];
        linear_run(pool, &l->qkv, x, rows, qkv);
        attention_run(&a, qkv, inner); /* there is room, as inner is used only later */
        linear_run(pool, &l->out, inner, rows, change);
        rows_norm(pool, &l->attended, x, change, rows, m->hidden);
        linear_run(pool, &l->up, x, rows, inner);
        rows_gelu(pool, inner, rows, m->inner);
        linear_run(pool, &l->down, inner, rows, change);
        rows_norm(pool, &l->fed, x, change, rows, m->hidden);
    }
    for (size_t b = 0; b < s->batch; b++)
        pool_tokens(x + b * s->longest * m->hidden, (size_t)s->lengths[b], m->hidden, embeddings + b * m->hidden);

    attention_free(&a);
    free(x);
    free(change);
    free(qkv);
    free(inner);
}
