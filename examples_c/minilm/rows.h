/* What is done to each row of activations by itself. All of them in place. */
#ifndef MINILM_ROWS_H
#define MINILM_ROWS_H

#include <flash_attention.h>
#include <stddef.h>

typedef struct norm {
    const float *weight, *bias;
} norm;

/* Layer normalisation of x + added; added may be NULL. */
void rows_norm(const fa_pool *pool, const norm *n, float *x, const float *added, size_t rows, size_t dim);
/* x * P(X <= x) of a standard normal X. */
void rows_gelu(const fa_pool *pool, float *x, size_t rows, size_t dim);

#endif
