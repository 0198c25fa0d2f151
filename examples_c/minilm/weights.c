#include "weights.h"

#include "fail.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What has not been read yet. */
typedef struct rest {
    const char *path;
    const unsigned char *next;
    size_t bytes;
} rest;

/* Every count is below 2^24, so count * each cannot overflow. */
static const void *take(rest *r, size_t count, size_t each)
{
    if (count * each > r->bytes)
        fail("the model ends too early", r->path);
    const void *here = r->next;
    r->next += count * each, r->bytes -= count * each;
    return here;
}

static linear take_linear(rest *r, size_t in, size_t out)
{
    linear l = {.in = in, .out = out};
    l.weights = take(r, in * out, sizeof(float));
    l.bias = take(r, out, sizeof(float));
    return l;
}

static norm take_norm(rest *r, size_t dim)
{
    norm n;
    n.weight = take(r, dim, sizeof(float));
    n.bias = take(r, dim, sizeof(float));
    return n;
}

static vocabulary take_vocabulary(rest *r, size_t words, size_t folds, size_t runs)
{
    vocabulary v = {.words = words, .folds = folds, .runs = runs};
    v.fold = take(r, folds, 4 * sizeof(uint32_t));
    v.run = take(r, runs, 3 * sizeof(uint32_t));
    v.number = take(r, words, sizeof(uint32_t));
    v.start = take(r, words + 1, sizeof(uint32_t));
    v.bytes = (const char *)r->next;
    for (size_t w = 0; w < words; w++)
        if (v.number[w] >= words || v.start[w] > v.start[w + 1])
            fail("the model's words are damaged", r->path);
    if (v.start[0] != 0 || v.start[words] != r->bytes)
        fail("the model's words do not end with the file", r->path);
    return v;
}

static rest read_file(const char *path, void **file)
{
    FILE *stream = fopen(path, "rb");
    long size = -1;
    if (stream == NULL || fseek(stream, 0, SEEK_END) != 0 || (size = ftell(stream)) < 0)
        fail("cannot open", path);
    rewind(stream);
    *file = allocate((size_t)size, 1);
    if (fread(*file, 1, (size_t)size, stream) != (size_t)size)
        fail("cannot read", path);
    fclose(stream);
    return (rest){.path = path, .next = *file, .bytes = (size_t)size};
}

model model_load(const char *path)
{
    model m = {0};
    rest r = read_file(path, &m.file);
    if (memcmp(take(&r, 8, 1), "MINILM01", 8) != 0)
        fail("not a model of this engine", path);
    const uint32_t *count = take(&r, 8, sizeof *count);
    for (int i = 0; i < 8; i++)
        if (count[i] < 1 || count[i] >= 1u << 24)
            fail("the model has impossible sizes", path);
    m.layers = count[0], m.heads = count[1], m.hidden = count[2], m.inner = count[3], m.positions = count[4];
    /* Two positions are those of the first and the last token of every sentence. */
    if (m.hidden % m.heads != 0 || m.hidden % PANEL != 0 || m.inner % PANEL != 0 || m.positions < 2)
        fail("the model has sizes that do not fit each other", path);

    m.word = take(&r, count[5] * m.hidden, sizeof(float));
    m.position = take(&r, m.positions * m.hidden, sizeof(float));
    m.embedded = take_norm(&r, m.hidden);
    m.layer = allocate(m.layers, sizeof *m.layer);
    for (size_t i = 0; i < m.layers; i++) {
        layer *l = &m.layer[i];
        l->qkv = take_linear(&r, m.hidden, 3 * m.hidden);
        l->out = take_linear(&r, m.hidden, m.hidden);
        l->attended = take_norm(&r, m.hidden);
        l->up = take_linear(&r, m.hidden, m.inner);
        l->down = take_linear(&r, m.inner, m.hidden);
        l->fed = take_norm(&r, m.hidden);
    }
    m.vocabulary = take_vocabulary(&r, count[5], count[6], count[7]);
    return m;
}

void model_free(model *m)
{
    free(m->layer);
    free(m->file);
}
