/* Tokens to embeddings: a BERT encoder and the mean of what comes out of it. */
#ifndef MINILM_ENCODER_H
#define MINILM_ENCODER_H

#include "attention.h"
#include "weights.h"

typedef struct sentences {
    size_t batch, longest;
    const int32_t *tokens;  /* [batch][longest], those behind a sentence's end are padding: any word */
    const int32_t *lengths; /* [batch], 1 to longest */
} sentences;

/* embeddings is [batch][hidden], each of length 1. */
void encode(const model *m, const fa_pool *pool, attention_kind kind, const sentences *s, float *embeddings);

#endif
