#include "rows.h"

#include "parallel.h"

#include <math.h>

/* The model's, so small that it only keeps rows of equal numbers from being divided by 0. */
static const double EPSILON = 1e-12;

typedef struct work {
    const norm *n;
    float *x;
    const float *added;
    size_t rows, dim;
} work;

static void norm_row(const norm *n, float *x, const float *added, size_t dim)
{
    /* Sums in double: hundreds of numbers, of which differences of like size are taken. */
    double mean = 0, variance = 0;
    for (size_t i = 0; i < dim; i++) {
        if (added != NULL)
            x[i] += added[i];
        mean += x[i];
    }
    mean /= (double)dim;
    for (size_t i = 0; i < dim; i++)
        variance += (x[i] - mean) * (x[i] - mean);
    double factor = 1 / sqrt(variance / (double)dim + EPSILON);
    for (size_t i = 0; i < dim; i++)
        x[i] = (float)((x[i] - mean) * factor) * n->weight[i] + n->bias[i];
}

static void norm_block(void *arg, size_t number)
{
    const work *k = arg;
    for (size_t r = number * BLOCK_ROWS; r < block_end(number, k->rows); r++)
        norm_row(k->n, k->x + r * k->dim, k->added != NULL ? k->added + r * k->dim : NULL, k->dim);
}

static void gelu_block(void *arg, size_t number)
{
    const work *k = arg;
    for (size_t i = number * BLOCK_ROWS * k->dim; i < block_end(number, k->rows) * k->dim; i++)
        k->x[i] *= 0.5f * (1 + erff(k->x[i] * 0.70710678f));
}

void rows_norm(const fa_pool *pool, const norm *n, float *x, const float *added, size_t rows, size_t dim)
{
    work k = {.n = n, .x = x, .added = added, .rows = rows, .dim = dim};
    parallel(pool, blocks(rows), norm_block, &k);
}

void rows_gelu(const fa_pool *pool, float *x, size_t rows, size_t dim)
{
    work k = {.x = x, .rows = rows, .dim = dim};
    parallel(pool, blocks(rows), gelu_block, &k);
}
