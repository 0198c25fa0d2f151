/*
 * Sparse attention from partitions of a text. Partitions are found by minimum cuts along the text:
 * neighbouring tokens are joined by edges, whose capacity is how much their keys are alike, and a
 * text is cut where the edges across weigh least. fa_sparse_from_partitions turns partitions into
 * lists of blocks, and attention by these lists is compared with dense attention, and with other
 * choices of as many pairs.
 *
 *   partitions                                             a text of planted topics, checked
 *   partitions --of FILE [--repeats N] [--csv FILE]        a model's text: scripts/sparse_text.sh
 *
 * FILE holds what scripts/sparse_qkv.py writes. For several densities it prints the time, the error
 * against dense attention, and the share of the attention's mass that was kept. Exit code 1 if
 * planted topics are not found, or their attention is not what it should be.
 */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <flash_attention.h>

/* How far apart tokens are, at most, that edges join. */
enum { EDGES = 64 };

/* q [heads_q][tokens][dim], k and v [heads_kv][tokens][dim]; query rows and keys of a block. */
typedef struct text {
    int64_t heads_q, heads_kv, tokens, dim, block;
    float *q, *k, *v;
} text;

/* Attention's output [heads_q][tokens][dim], and its log-sum-exp [heads_q][tokens]. */
typedef struct result {
    float *o, *lse;
    double seconds;
} result;

/* Lists in one piece of memory. pairs: the share of causal pairs; estimate: the time saved that the
 * library expects. */
typedef struct lists {
    int32_t *memory;
    const int32_t *start, *blocks, *column_start, *columns;
    double pairs, estimate;
} lists;

static void fail(const char *what, const char *detail)
{
    fprintf(stderr, "partitions: %s: %s\n", what, detail);
    exit(2);
}

static void must(fa_status status, const char *why)
{
    if (status != FA_OK)
        fail(fa_status_string(status), why);
}

static void *allocate(int64_t count, size_t size)
{
    void *memory = calloc((size_t)count + 1, size);
    if (memory == NULL)
        fail("out of memory", "");
    return memory;
}

/* ---- Texts ---- */

static text empty(int64_t heads_q, int64_t heads_kv, int64_t tokens, int64_t dim, int64_t block)
{
    text t = {.heads_q = heads_q, .heads_kv = heads_kv, .tokens = tokens, .dim = dim, .block = block};
    t.q = allocate(heads_q * tokens * dim, sizeof *t.q);
    t.k = allocate(heads_kv * tokens * dim, sizeof *t.k);
    t.v = allocate(heads_kv * tokens * dim, sizeof *t.v);
    return t;
}

static text load(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        fail("cannot open", path);
    int32_t n[4];
    if (fread(n, sizeof n, 1, file) != 1 || n[0] < 1 || n[1] < 1 || n[2] < 2 || n[3] < 1 || n[0] % n[1] != 0)
        fail("not a file of scripts/sparse_qkv.py", path);
    text t = empty(n[0], n[1], n[2], n[3], 64);
    size_t row = (size_t)(t.tokens * t.dim), q = row * (size_t)n[0], k = row * (size_t)n[1];
    if (fread(t.q, sizeof(float), q, file) != q || fread(t.k, sizeof(float), k, file) != k
        || fread(t.v, sizeof(float), k, file) != k)
        fail("too short", path);
    fclose(file);
    return t;
}

static uint32_t random_state = 1;

static float uniform(void)
{
    random_state = random_state * 1664525u + 1013904223u;
    return (float)(random_state >> 8) * 0x1p-24f;
}

/* The first tokens of planted topics. */
static const int32_t planted_starts[] = {0, 180, 420, 560, 1000};
enum { TOPICS = sizeof planted_starts / sizeof *planted_starts };

/* Keys and queries of a topic share a direction, beside noise. */
static text planted(void)
{
    text t = empty(4, 2, 1200, 32, 16);
    float directions[TOPICS][32];
    for (int topic = 0; topic < TOPICS; topic++)
        for (int d = 0; d < 32; d++)
            directions[topic][d] = uniform() < 0.5f ? -1.0f : 1.0f;
    float *all[] = {t.q, t.k, t.v};
    int64_t heads[] = {t.heads_q, t.heads_kv, t.heads_kv};
    for (int which = 0; which < 3; which++) {
        for (int64_t row = 0; row < heads[which] * t.tokens; row++) {
            int topic = TOPICS - 1;
            while (planted_starts[topic] > row % t.tokens)
                topic--;
            for (int64_t d = 0; d < t.dim; d++) {
                float shared = which == 2 ? 0 : 1.2f * directions[topic][d];
                all[which][row * t.dim + d] = shared + 4 * uniform() - 2;
            }
        }
    }
    return t;
}

/* ---- Cuts ---- */

/* cut[t], 1 to tokens - 1: the weight of all edges between a token before t and one from t on. An
 * edge weighs as much as the cosine of two keys, less what is common to all keys, summed over
 * heads, and at least nothing. */
static double *cuts_of(const text *t)
{
    int64_t n = t->tokens, dim = t->dim;
    double *cut = allocate(n, sizeof *cut), *before = allocate(n, sizeof *before), *after = allocate(n, sizeof *after);
    float *unit = allocate(n * dim, sizeof *unit);
    for (int64_t h = 0; h < t->heads_kv; h++) {
        const float *k = t->k + h * n * dim;
        for (int64_t d = 0; d < dim; d++) {
            double mean = 0;
            for (int64_t i = 0; i < n; i++)
                mean += (double)k[i * dim + d] / (double)n;
            for (int64_t i = 0; i < n; i++)
                unit[i * dim + d] = k[i * dim + d] - (float)mean;
        }
        for (int64_t i = 0; i < n; i++) {
            float square = 0;
            for (int64_t d = 0; d < dim; d++)
                square += unit[i * dim + d] * unit[i * dim + d];
            for (int64_t d = 0; d < dim && square > 0; d++)
                unit[i * dim + d] /= sqrtf(square);
        }
        for (int64_t i = 0; i < n; i++) {
            for (int64_t j = i + 1; j < n && j <= i + EDGES; j++) {
                float cosine = 0;
                for (int64_t d = 0; d < dim; d++)
                    cosine += unit[i * dim + d] * unit[j * dim + d];
                if (cosine > 0)
                    after[i] += (double)cosine, before[j] += (double)cosine;
            }
        }
    }
    /* A token that comes to the left side takes its edges to the left out of the cut. */
    for (int64_t i = 1; i < n; i++)
        cut[i] = cut[i - 1] - before[i - 1] + after[i - 1];
    free(before), free(after), free(unit);
    return cut;
}

/* The first tokens of `count` partitions, each of `least` tokens or more, with the least sum of all
 * cuts, found by dynamic programming. */
static int32_t *partition(const double *cut, int64_t n, int64_t count, int64_t least)
{
    /* best[c][i]: the least sum of c cuts, the last of them before token i or further left; from:
     * where that one is. */
    double *best = allocate(count * (n + 1), sizeof *best);
    int32_t *from = allocate(count * (n + 1), sizeof *from), *starts = allocate(count, sizeof *starts);
    for (int64_t c = 1; c < count; c++) {
        double *now = best + c * (n + 1), *last = now - (n + 1);
        for (int64_t i = 0; i <= n; i++) {
            now[i] = i == 0 ? INFINITY : now[i - 1];
            from[c * (n + 1) + i] = i == 0 ? 0 : from[c * (n + 1) + i - 1];
            if (i < c * least || i + least > n)
                continue;
            double sum = last[i - least] + cut[i];
            if (sum < now[i])
                now[i] = sum, from[c * (n + 1) + i] = (int32_t)i;
        }
    }
    int64_t end = n;
    for (int64_t c = count - 1; c > 0; c--) {
        starts[c] = from[c * (n + 1) + end];
        end = starts[c] - least;
    }
    free(best), free(from);
    return starts;
}

/* ---- Attention ---- */

static void run(const text *t, const lists *kept, result *to)
{
    fa_attention a;
    must(fa_attention_init(&a, sizeof a), "");
    int64_t row = t->dim * (int64_t)sizeof(float), head = t->tokens * row;
    a.batch = 1, a.heads_q = t->heads_q, a.heads_kv = t->heads_kv, a.len_q = a.len_kv = t->tokens;
    a.dim_qk = a.dim_v = t->dim, a.window_right = 0;
    a.q = (fa_tensor){.data = t->q, .stride = {0, head, row}};
    a.k = (fa_tensor){.data = t->k, .stride = {0, head, row}};
    a.v = (fa_tensor){.data = t->v, .stride = {0, head, row}};
    a.o = (fa_tensor){.data = to->o, .stride = {0, head, row}};
    a.lse = to->lse, a.lse_stride[1] = t->tokens, a.lse_stride[2] = 1;
    if (kept != NULL) {
        /* Strides of 0: all heads have the same lists. */
        a.kept_start = kept->start, a.kept_blocks = kept->blocks, a.kept_q = a.kept_kv = t->block;
        a.column_start = kept->column_start, a.columns = kept->columns;
    }
    char why[200];
    must(fa_attention_check(&a, why, sizeof why), why);
    size_t bytes;
    must(fa_attention_workspace(&a, 1, &bytes), "");
    void *workspace = allocate((int64_t)bytes, 1);
    clock_t start = clock();
    must(fa_attention_run(&a, workspace, bytes, NULL), "");
    double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    if (to->seconds == 0 || seconds < to->seconds)
        to->seconds = seconds;
    free(workspace);
}

static result room_for(const text *t)
{
    result r = {.o = allocate(t->heads_q * t->tokens * t->dim, sizeof(float))};
    r.lse = allocate(t->heads_q * t->tokens, sizeof(float));
    return r;
}

/* Relative RMS error against dense attention. */
static double error_of(const text *t, const result *sparse, const result *dense)
{
    double wrong = 0, all = 0;
    for (int64_t i = 0; i < t->heads_q * t->tokens * t->dim; i++) {
        double is = (double)sparse->o[i], want = (double)dense->o[i];
        wrong += (is - want) * (is - want), all += want * want;
    }
    return sqrt(wrong / all);
}

/* The share of its probability that a row keeps: the sum of exp over the keys that it sees, by that
 * over all keys. The mean over rows and heads. */
static double mass_of(const text *t, const result *sparse, const result *dense)
{
    double sum = 0;
    int64_t rows = t->heads_q * t->tokens;
    for (int64_t i = 0; i < rows; i++)
        sum += exp((double)sparse->lse[i] - (double)dense->lse[i]);
    return sum / (double)rows;
}

/* ---- Lists ---- */

static int64_t row_blocks(const text *t)
{
    return (t->tokens + t->block - 1) / t->block;
}

/* Lists from partitions with a density. Boundary tokens are the first ones of partitions, `edges`
 * of them. */
static lists from_partitions(const text *t, const int32_t *starts, int64_t count, int64_t edges, double density)
{
    char why[200];
    fa_sparse_config cfg;
    must(fa_sparse_config_init(&cfg, sizeof cfg), "");
    cfg.len_q = cfg.len_kv = t->tokens, cfg.kept_q = cfg.kept_kv = t->block;
    cfg.partitions = cfg.boundary_tokens = starts;
    cfg.num_partitions = cfg.num_boundary_tokens = count, cfg.max_edges = edges;
    cfg.min_density = cfg.max_density = (uint32_t)(32768 * density);
    fa_sparse_lists found = {.struct_size = sizeof found};
    must(fa_sparse_from_partitions(&cfg, NULL, 0, &found, why, sizeof why), why);
    int32_t *memory = allocate(found.room, sizeof *memory);
    must(fa_sparse_from_partitions(&cfg, memory, found.room, &found, why, sizeof why), why);
    return (lists){memory, found.kept_start, found.kept_blocks, found.column_start, found.columns, found.density,
                   found.time_saved};
}

/* Each block of rows sees itself, and others by chance. */
static lists at_random(const text *t, double density)
{
    int64_t n = row_blocks(t), pairs = 0;
    int32_t *memory = allocate(n + 1 + n * n, sizeof *memory), *blocks = memory + n + 1, end = 0;
    for (int64_t r = 0; r < n; r++) {
        double wanted = density * ((double)r + 0.5) - 0.5;
        int64_t left = (int64_t)wanted + (uniform() < (float)(wanted - floor(wanted)));
        int64_t rows = t->tokens - r * t->block < t->block ? t->tokens - r * t->block : t->block;
        for (int64_t block = 0; block < r; block++) {
            if (uniform() * (float)(r - block) < (float)left)
                blocks[end++] = (int32_t)block, left--, pairs += rows * t->block;
        }
        blocks[end++] = (int32_t)r, pairs += rows * (rows + 1) / 2;
        memory[r + 1] = end;
    }
    double share = (double)pairs / ((double)t->tokens * (double)(t->tokens + 1) / 2);
    return (lists){memory, memory, blocks, NULL, NULL, share, 1 - 1.1 * share};
}

/* ---- Comparison ---- */

enum { PARTITIONS, WINDOW, WINDOW_AND_FIRST, RANDOM, METHODS };
static const char *const method_names[] = {"partitions", "window", "window and first token", "random"};

/* Partitions that are about as large, on the whole, as the density has pairs. */
static int64_t partitions_for(double density, int64_t tokens)
{
    int64_t count = (int64_t)(1 / density + 0.5), most = tokens / 32;
    return count > most ? most : count;
}

static void compare(const text *t, const char *name, int repeats, FILE *csv)
{
    static const double densities[] = {0.05, 0.1, 0.25, 0.5};
    static const int32_t whole[] = {0};
    double *cut = cuts_of(t);
    result dense = room_for(t), sparse[METHODS];
    for (int m = 0; m < METHODS; m++)
        sparse[m] = room_for(t);
    printf("%s: %d tokens, %d heads on %d, %d elements\n\n", name, (int)t->tokens, (int)t->heads_q, (int)t->heads_kv,
           (int)t->dim);
    printf("%-24s %7s %9s %7s %8s %9s %7s\n", "", "pairs", "time", "saved", "expected", "error", "mass");
    for (size_t d = 0; d < sizeof densities / sizeof *densities; d++) {
        double density = densities[d];
        int64_t count = partitions_for(density, t->tokens);
        int32_t *starts = partition(cut, t->tokens, count, t->tokens / (4 * count) + 1);
        lists l[METHODS] = {
            from_partitions(t, starts, count, 20, density),
            from_partitions(t, whole, 1, 0, density),
            from_partitions(t, whole, 1, 1, density),
            at_random(t, density),
        };
        /* In turns, so that a machine that becomes slower becomes so for all. */
        dense.seconds = 0;
        for (int m = 0; m < METHODS; m++)
            sparse[m].seconds = 0;
        for (int i = 0; i < repeats; i++) {
            run(t, NULL, &dense);
            for (int m = 0; m < METHODS; m++)
                run(t, &l[m], &sparse[m]);
        }
        printf("dense %18s %7.3f %6.1f ms\n", "", 1.0, 1e3 * dense.seconds);
        for (int m = 0; m < METHODS; m++) {
            double saved = 1 - sparse[m].seconds / dense.seconds;
            double error = error_of(t, &sparse[m], &dense), mass = mass_of(t, &sparse[m], &dense);
            printf("%-24s %7.3f %6.1f ms %6.1f%% %7.1f%% %9.2e %6.1f%%\n", method_names[m], l[m].pairs,
                   1e3 * sparse[m].seconds, 100 * saved, 100 * l[m].estimate, error, 100 * mass);
            if (csv != NULL)
                fprintf(csv, "%s,%s,%g,%d,%.4f,%.4f,%.4f,%.4f,%.4f,%.4f,%.4f\n", name, method_names[m], density,
                        (int)count, l[m].pairs, 1e3 * dense.seconds, 1e3 * sparse[m].seconds, saved, l[m].estimate,
                        error, mass);
            free(l[m].memory);
        }
        free(starts);
    }
    printf("\n");
    for (int m = 0; m < METHODS; m++)
        free(sparse[m].o), free(sparse[m].lse);
    free(dense.o), free(dense.lse), free(cut);
}

/* Planted topics are found, and a row's attention is nearly all in its own. */
static bool check_planted(const text *t)
{
    double *cut = cuts_of(t);
    int32_t *starts = partition(cut, t->tokens, TOPICS, 50);
    bool is_right = memcmp(starts, planted_starts, sizeof planted_starts) == 0;
    for (int topic = 0; topic < TOPICS; topic++)
        printf("topic %d begins with token %d, found at %d\n", topic, (int)planted_starts[topic], (int)starts[topic]);
    lists l = from_partitions(t, starts, TOPICS, 0, 0.3);
    result dense = room_for(t), sparse = room_for(t);
    run(t, NULL, &dense), run(t, &l, &sparse);
    double error = error_of(t, &sparse, &dense), mass = mass_of(t, &sparse, &dense);
    printf("%.0f%% of the pairs have %.1f%% of the mass; error %.1e\n\n", 100 * l.pairs, 100 * mass, error);
    /* So a NaN is wrong, too. */
    is_right = is_right && mass > 0.95 && error < 0.2 && l.pairs < 0.35;
    free(cut), free(starts), free(l.memory);
    free(dense.o), free(dense.lse), free(sparse.o), free(sparse.lse);
    return is_right;
}

int main(int argc, char **argv)
{
    const char *of = NULL, *to = NULL;
    int repeats = 1;
    for (int i = 1; i + 1 < argc; i++) {
        if (strcmp(argv[i], "--of") == 0)
            of = argv[++i];
        else if (strcmp(argv[i], "--csv") == 0)
            to = argv[++i];
        else if (strcmp(argv[i], "--repeats") == 0)
            repeats = atoi(argv[++i]);
    }
    text t = of == NULL ? planted() : load(of);
    bool is_right = of != NULL || check_planted(&t);
    FILE *csv = to == NULL ? NULL : fopen(to, "a");
    if (to != NULL && csv == NULL)
        fail("cannot write", to);
    const char *slash = of == NULL ? NULL : strrchr(of, '/');
    compare(&t, of == NULL ? "planted" : slash == NULL ? of : slash + 1, repeats < 1 ? 1 : repeats, csv);
    if (csv != NULL)
        fclose(csv);
    free(t.q), free(t.k), free(t.v);
    return is_right ? 0 : 1;
}
