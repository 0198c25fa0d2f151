/* Attention of all heads of a batch of sentences: the library's part of the engine. */
#ifndef MINILM_ATTENTION_H
#define MINILM_ATTENTION_H

#include <flash_attention.h>
#include <stddef.h>
#include <stdint.h>

/* Types of queries, keys and values. The fast way of 8 bits rounds probabilities to 8 bits as
 * well. */
typedef enum attention_kind { ATTENTION_F32, ATTENTION_I8, ATTENTION_I8_FAST } attention_kind;

/* What stays the same from layer to layer. */
typedef struct attention {
    attention_kind kind;
    size_t batch, longest, heads, dim;
    const int32_t *lengths; /* tokens of each sentence, `longest` at most */
    const fa_pool *pool;
    void *workspace;
    size_t bytes;
    /* For 8 bits, else NULL: the activations as integers, and scales [3][batch][heads]. */
    int8_t *stored;
    float *scales;
} attention;

/* `lengths` has to stay where it is. */
attention attention_make(size_t batch, size_t longest, size_t heads, size_t dim, const int32_t *lengths,
                         attention_kind kind, const fa_pool *pool);
/* qkv is [batch][longest][3][heads][dim], out is [batch][longest][heads][dim]. */
void attention_run(attention *a, float *qkv, float *out);
void attention_free(attention *a);

#endif
