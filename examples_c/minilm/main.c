/*
 * Embeddings of sentences with all-MiniLM-L6-v2, and how much alike they are.
 *
 *   minilm MODEL SENTENCES [--attention f32|i8|i8-fast] [--threads own|library|pthread]
 *                          [--tokens | --embeddings FILE]
 *
 * MODEL is what get_model.sh makes, SENTENCES a text with a sentence in each line. --threads: none
 * but the calling one, the library's, or the program's. --tokens prints the numbers of tokens and
 * computes nothing; --embeddings writes floats [sentence][dimension] in place of the table. Exit
 * code 2 if something goes wrong.
 */
#include "encoder.h"
#include "fail.h"
#include "pool.h"
#include "tokens.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Sentences that are computed at once, as long as the longest of them; pool_create's number of
 * threads. */
enum { BATCH = 8, THREADS = 4 };

typedef struct options {
    const char *model, *text, *attention, *threads, *embeddings;
    bool tokens;
} options;

/* A sentence of the text, and its tokens. */
typedef struct sentence {
    const char *text;
    size_t bytes;
    int32_t *tokens, length;
} sentence;

static options read_options(int argc, char **argv)
{
    options o = {.attention = "f32", .threads = "own"};
    for (int i = 1; i < argc; i++) {
        const char **value = strcmp(argv[i], "--attention") == 0    ? &o.attention
                             : strcmp(argv[i], "--threads") == 0    ? &o.threads
                             : strcmp(argv[i], "--embeddings") == 0 ? &o.embeddings
                             : argv[i][0] == '-'                    ? NULL
                             : o.model == NULL                      ? &o.model
                             : o.text == NULL                       ? &o.text
                                                                    : NULL;
        if (strcmp(argv[i], "--tokens") == 0)
            o.tokens = true;
        else if (value == NULL)
            fail("not understood", argv[i]);
        else if (argv[i][0] != '-')
            *value = argv[i];
        else if (i + 1 < argc)
            *value = argv[++i];
        else
            fail("lacks a value", argv[i]);
    }
    if (o.text == NULL)
        fail("usage",
             "minilm MODEL SENTENCES [--attention f32|i8|i8-fast] [--threads own|library|pthread] "
             "[--tokens | --embeddings FILE]");
    return o;
}

static char *read_text(const char *path, size_t *bytes)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        fail("cannot open", path);
    size_t room = 4096, got;
    char *text = allocate(room, 1);
    *bytes = 0;
    while ((got = fread(text + *bytes, 1, room - *bytes, file)) > 0)
        if ((*bytes += got) == room) {
            text = realloc(text, room *= 2);
            if (text == NULL)
                fail("out of memory", path);
        }
    if (ferror(file))
        fail("cannot read", path);
    fclose(file);
    return text;
}

/* A line is a sentence, also an empty one. */
static sentence *split(const model *m, const char *text, size_t bytes, size_t *count)
{
    const char *end = text + bytes;
    size_t lines = bytes > 0 && end[-1] != '\n';
    for (size_t i = 0; i < bytes; i++)
        lines += text[i] == '\n';
    sentence *list = allocate(lines, sizeof *list);
    for (size_t i = 0; i < lines; i++) {
        const char *stop = memchr(text, '\n', (size_t)(end - text));
        list[i].text = text, list[i].bytes = (size_t)((stop != NULL ? stop : end) - text);
        list[i].tokens = allocate(m->positions, sizeof *list[i].tokens);
        list[i].length = (int32_t)tokenise(&m->vocabulary, text, list[i].bytes, list[i].tokens, m->positions);
        text += list[i].bytes + 1;
    }
    *count = lines;
    return list;
}

/* Sentences of different lengths in one array, the shorter ones padded. */
static void encode_batch(const model *m, const fa_pool *pool, attention_kind kind, const sentence *list, size_t n,
                         float *out)
{
    int32_t lengths[BATCH];
    size_t longest = 0;
    for (size_t b = 0; b < n; b++) {
        lengths[b] = list[b].length;
        if ((size_t)lengths[b] > longest)
            longest = (size_t)lengths[b];
    }
    int32_t *tokens = allocate(n * longest, sizeof *tokens);
    for (size_t b = 0; b < n; b++)
        memcpy(tokens + b * longest, list[b].tokens, (size_t)lengths[b] * sizeof *tokens);
    encode(m, pool, kind, &(sentences){.batch = n, .longest = longest, .tokens = tokens, .lengths = lengths}, out);
    free(tokens);
}

static attention_kind kind_of(const char *name)
{
    static const char *const names[] = {"f32", "i8", "i8-fast"}; /* in the order of attention_kind */
    for (int i = 0; i < 3; i++)
        if (strcmp(name, names[i]) == 0)
            return (attention_kind)i;
    fail("no such attention", name);
}

static fa_pool *threads(const char *whose)
{
    fa_pool *pool = NULL;
    if (strcmp(whose, "library") == 0)
        must(fa_pool_create(0, &pool));
    else if (strcmp(whose, "pthread") == 0)
        pool = pool_create(THREADS);
    else if (strcmp(whose, "own") != 0)
        fail("no such threads", whose);
    return pool;
}

static float *embeddings_of(const model *m, const options *o, const sentence *list, size_t count)
{
    attention_kind kind = kind_of(o->attention);
    fa_pool *pool = threads(o->threads);
    float *out = allocate(count * m->hidden, sizeof *out);
    for (size_t i = 0; i < count; i += BATCH)
        encode_batch(m, pool, kind, list + i, count - i < BATCH ? count - i : BATCH, out + i * m->hidden);
    (strcmp(o->threads, "library") == 0 ? fa_pool_destroy : pool_destroy)(pool);
    return out;
}

static void print_tokens(const sentence *list, size_t count)
{
    for (size_t i = 0; i < count; i++)
        for (int32_t t = 0; t < list[i].length; t++)
            printf("%d%c", (int)list[i].tokens[t], t + 1 < list[i].length ? ' ' : '\n');
}

static void print_table(const float *embeddings, const sentence *list, size_t count, size_t hidden)
{
    for (size_t i = 0; i < count; i++)
        printf("%3zu  %.*s\n", i + 1, (int)list[i].bytes, list[i].text);
    printf("\n   ");
    for (size_t i = 0; i < count; i++)
        printf("%6zu", i + 1);
    for (size_t i = 0; i < count; i++) {
        printf("\n%3zu", i + 1);
        for (size_t j = 0; j < count; j++) {
            double dot = 0;
            for (size_t d = 0; d < hidden; d++)
                dot += (double)embeddings[i * hidden + d] * embeddings[j * hidden + d];
            printf("%6.2f", dot);
        }
    }
    printf("\n");
}

static void write_floats(const char *path, const float *x, size_t n)
{
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(x, sizeof *x, n, file) != n || fclose(file) != 0)
        fail("cannot write", path);
}

int main(int argc, char **argv)
{
    options o = read_options(argc, argv);
    model m = model_load(o.model);
    size_t bytes, count;
    char *text = read_text(o.text, &bytes);
    sentence *list = split(&m, text, bytes, &count);

    if (o.tokens) {
        print_tokens(list, count);
    } else {
        float *embeddings = embeddings_of(&m, &o, list, count);
        if (o.embeddings != NULL)
            write_floats(o.embeddings, embeddings, count * m.hidden);
        else
            print_table(embeddings, list, count, m.hidden);
        free(embeddings);
    }

    for (size_t i = 0; i < count; i++)
        free(list[i].tokens);
    free(list);
    free(text);
    model_free(&m);
    if (fflush(stdout) != 0)
        fail("cannot write", "standard output");
    return 0;
}
