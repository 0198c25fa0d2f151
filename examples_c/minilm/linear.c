#include "linear.h"

#include "parallel.h"

#include <string.h>

/* Rows that share a read of the weights: with a panel's outputs they are as many sums as registers
 * hold. */
enum { TILE = 4 };

typedef struct work {
    const linear *l;
    const float *x;
    float *y;
    size_t rows;
} work;

/* One panel of the outputs of up to TILE rows. */
static void tile(const linear *l, size_t panel, const float *x, size_t rows, float *y)
{
    const float *w = l->weights + panel * l->in * PANEL;
    const float *row[TILE];
    float sum[TILE][PANEL] = {{0}};
    for (size_t r = 0; r < TILE; r++)
        row[r] = x + (r < rows ? r : 0) * l->in; /* a row twice, so that the loops below have fixed lengths */
    for (size_t i = 0; i < l->in; i++, w += PANEL)
        for (size_t r = 0; r < TILE; r++)
            for (size_t o = 0; o < PANEL; o++)
                sum[r][o] += row[r][i] * w[o];
    for (size_t r = 0; r < rows; r++)
        for (size_t o = 0; o < PANEL; o++)
            y[r * l->out + panel * PANEL + o] = sum[r][o] + l->bias[panel * PANEL + o];
}

/* A panel stays in the first-level cache while the rows of a block pass by, and the block in the
 * second-level. */
static void block(void *arg, size_t number)
{
    const work *k = arg;
    size_t first = number * BLOCK_ROWS, end = block_end(number, k->rows);
    for (size_t panel = 0; panel < k->l->out / PANEL; panel++)
        for (size_t r = first; r < end; r += TILE)
            tile(k->l, panel, k->x + r * k->l->in, end - r < TILE ? end - r : TILE, k->y + r * k->l->out);
}

void linear_run(const fa_pool *pool, const linear *l, const float *x, size_t rows, float *y)
{
    work k = {.l = l, .x = x, .y = y, .rows = rows};
    parallel(pool, blocks(rows), block, &k);
}
