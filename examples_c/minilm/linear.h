/* Linear layers: every output of a row is a sum over its inputs, and a bias. */
#ifndef MINILM_LINEAR_H
#define MINILM_LINEAR_H

#include <flash_attention.h>
#include <stddef.h>

/* Outputs that are computed together. */
enum { PANEL = 16 };

typedef struct linear {
    size_t in, out;
    const float *weights; /* [out / PANEL][in][PANEL]: in the order in which they are used */
    const float *bias;    /* [out] */
} linear;

/* y = x * weights + bias; x is [rows][in], y is [rows][out]. */
void linear_run(const fa_pool *pool, const linear *l, const float *x, size_t rows, float *y);

#endif
