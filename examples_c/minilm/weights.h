/*
 * The model as convert.py writes it: one file, little-endian, without gaps.
 *
 *   "MINILM01"
 *   8 counts (uint32): layers, heads, hidden, inner, positions, words, folds, runs
 *   floats: word embeddings [words][hidden]; position embeddings [positions][hidden], the one of
 *     token type 0 added; a norm; for each layer: qkv, out, a norm, up, down, a norm
 *     (linear layers and norms are weights, then bias)
 *   folds [folds][4] (uint32), runs [runs][3] (uint32)
 *   words: numbers [words], starts [words + 1] (uint32), bytes
 */
#ifndef MINILM_WEIGHTS_H
#define MINILM_WEIGHTS_H

#include "linear.h"
#include "rows.h"

#include <stddef.h>
#include <stdint.h>

typedef struct layer {
    linear qkv; /* queries, keys and values of all heads, side by side */
    linear out;
    norm attended;
    linear up, down;
    norm fed;
} layer;

/* What characters are made into, and words into numbers. */
typedef struct vocabulary {
    size_t words, folds, runs;
    const uint32_t *fold;            /* [folds][4], ascending: a character, and up to 3 that take its place */
    const uint32_t *run;             /* [runs][3], ascending: first and last character, and their kind */
    const uint32_t *number, *start;  /* of words that are sorted by their bytes, the bytes of w from start[w] */
    const char *bytes;               /* to start[w + 1] */
} vocabulary;

/* Kinds of characters; those in no run make up words. */
enum { DROP = 1, SPACE = 2, ALONE = 3 };

typedef struct model {
    size_t heads, hidden, inner, positions, layers;
    const float *word, *position;
    norm embedded;
    layer *layer;
    vocabulary vocabulary;
    void *file;
} model;

/* Ends the program with a message if the file is not what is said above. */
model model_load(const char *path);
void model_free(model *m);

#endif
