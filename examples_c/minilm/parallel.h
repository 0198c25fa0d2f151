/*
 * Loops on the threads of an fa_pool. The library's pool and the program's have the same form, so
 * what is not attention runs on the same threads as attention does, whoever's they are.
 */
#ifndef MINILM_PARALLEL_H
#define MINILM_PARALLEL_H

#include <flash_attention.h>
#include <stddef.h>

/* Rows of activations that one task works on. */
enum { BLOCK_ROWS = 32 };

static inline size_t blocks(size_t rows)
{
    return (rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
}

/* The row behind the last one of a block. */
static inline size_t block_end(size_t number, size_t rows)
{
    size_t end = (number + 1) * BLOCK_ROWS;
    return end < rows ? end : rows;
}

/* Calls task(arg, i) for each i below n; no pool means the calling thread. */
static inline void parallel(const fa_pool *pool, size_t n, fa_task task, void *arg)
{
    if (pool != NULL)
        pool->parallel_for(pool->ctx, n, task, arg);
    else
        for (size_t i = 0; i < n; i++)
            task(arg, i);
}

#endif
