/* What the tests of several ranks share: the ranks, and shares of a problem that all of them
 * know. */

#ifndef RANKS_H
#define RANKS_H

#include <flash_attention_mpi.h>

#include "problem.h"

static int rank, ranks;

/* MPI with no more than the library wants; the threads of a pool never call it. */
static inline void ranks_begin(int *argc, char ***argv) {
    int level;
    MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &level);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
}

/* Whether all ranks had no failure; what main returns. */
static inline int ranks_end(const char *what, long count) {
    int all = 0, mine = check_failures;
    if (mine != 0) fprintf(stderr, "rank %d of %d: %d checks failed\n", rank, ranks, mine);
    MPI_Allreduce(&mine, &all, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    if (rank == 0) printf("%ld %s, %d ranks, %s, %s\n", count, what, ranks, fa_isa(), all == 0 ? "right" : "WRONG");
    MPI_Finalize();
    return all != 0;
}

/* Whether all ranks have the same bytes. */
static inline bool is_same_everywhere(const void *data, size_t bytes) {
    uint64_t hash = 0, both[2], most[2];
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ ((const unsigned char *)data)[i]) * 0x100000001b3u + 1;
    both[0] = hash, both[1] = ~hash;
    MPI_Allreduce(both, most, 2, MPI_UINT64_T, MPI_MAX, MPI_COMM_WORLD);
    return most[0] == ~most[1];
}

/* A piece of a sequence, and whose it is. */
struct piece {
    int64_t from, length;
    int owner;
};

enum { PIECES = 3, RANKS = 16 };

/* Cuts a sequence into `each` pieces a rank, at multiples of a unit; even pieces or not, by
 * turns there and back or in any order. Returns how many there are. */
static inline int cut(struct random *r, int64_t tokens, int64_t unit, int each, struct piece *pieces) {
    int count = each * ranks, owners[PIECES * RANKS];
    int64_t units = (tokens + unit - 1) / unit, ends[PIECES * RANKS];
    bool even = chance(r, 50);
    for (int i = 0; i < count; i++) {
        ends[i] = even ? units * (i + 1) / count : below(r, units + 1);
        for (int k = i; k > 0 && ends[k] < ends[k - 1]; k--) {
            int64_t end = ends[k];
            ends[k] = ends[k - 1], ends[k - 1] = end;
        }
    }
    ends[count - 1] = units;
    for (int i = 0; i < count; i++) owners[i] = i / ranks % 2 == 0 ? i % ranks : ranks - 1 - i % ranks;
    for (int i = count - 1; each > 2 && i > 0; i--) {
        int k = (int)below(r, i + 1), owner = owners[i];
        owners[i] = owners[k], owners[k] = owner;
    }
    for (int i = 0; i < count; i++) {
        int64_t from = (i > 0 ? ends[i - 1] : 0) * unit, to = ends[i] * unit;
        from = from < tokens ? from : tokens, to = to < tokens ? to : tokens;
        pieces[i] = (struct piece){from, to - from, owners[i]};
    }
    return count;
}

/* Where element [entry][head][token] of a tensor begins. */
static inline unsigned char *row_at(const fa_tensor *t, int64_t entry, int64_t head, int64_t token) {
    return (unsigned char *)t->data + entry * t->stride[0] + head * t->stride[1] + token * t->stride[2];
}

/* A tensor of one's own: rows, scales and zeros; given back by free_copy. */
struct copy {
    fa_tensor tensor;
    fa_quant quant;
    void *data;
    float *scale, *zero;
    int64_t dim;
};

/* Room for [entries][heads][tokens] rows like those of a tensor. Scales of tokens are for groups of
 * them; with `each`, tokens that need not have the same scales have their own. */
static inline void new_copy(struct random *r, struct copy *c, const fa_tensor *like, int64_t entries, int64_t heads,
                            int64_t tokens, int64_t dim, int64_t group, bool each) {
    int32_t dtype = like->dtype;
    int64_t unit = block_bytes[dtype], row = dim / block_elements[dtype] * unit;
    *c = (struct copy){.tensor = {.dtype = dtype, .stride = {heads * tokens * row, tokens * row, row}}, .dim = dim};
    if (chance(r, 60)) c->tensor.stride[1] = row, c->tensor.stride[2] = heads * row;
    if (chance(r, 20)) c->tensor.stride[0] = row, c->tensor.stride[1] = entries * row, c->tensor.stride[2] = entries * heads * row;
    c->data = need((size_t)(entries * heads * tokens * row));
    c->tensor.data = c->data;
    const fa_quant *quant = like->quant;
    if (quant == NULL) return;
    int64_t groups = quant->stride[3] != 0 ? (dim + quant->group_dims - 1) / quant->group_dims : 1;
    bool of_tokens = quant->stride[2] != 0, of_entries = quant->stride[0] != 0;
    if (each) of_tokens = of_entries = of_tokens || of_entries;
    int64_t times = of_tokens ? (tokens + group - 1) / group : 1, record = entries * heads * groups;
    c->quant = (fa_quant){.group_tokens = (int32_t)group, .group_dims = quant->group_dims};
    c->tensor.quant = &c->quant;
    if (of_entries) c->quant.stride[0] = heads * groups;
    if (quant->stride[1] != 0) c->quant.stride[1] = groups;
    if (of_tokens) c->quant.stride[2] = record;
    if (quant->stride[3] != 0) c->quant.stride[3] = 1;
    size_t bytes = (size_t)(record * (times > 0 ? times : 1)) * 4;
    c->scale = need(bytes), c->zero = need(bytes);
    for (size_t i = 0; i < bytes / 4; i++) c->scale[i] = 1, c->zero[i] = 0;
    if (quant->scale != NULL) c->quant.scale = c->scale;
    if (quant->zero != NULL) c->quant.zero = c->zero;
}

static inline void free_copy(struct copy *c) {
    free(c->data), free(c->scale), free(c->zero);
}

/* Copies one row, and what its scales are; tokens are those of the scales. */
static inline void copy_row(struct copy *c, int64_t entry, int64_t head, int64_t token, const fa_tensor *from,
                            int64_t from_entry, int64_t from_head, int64_t from_token) {
    int32_t dtype = from->dtype;
    memcpy(row_at(&c->tensor, entry, head, token), row_at(from, from_entry, from_head, from_token),
           (size_t)(c->dim / block_elements[dtype] * block_bytes[dtype]));
    if (from->quant == NULL) return;
    for (int64_t d = 0; d < c->dim; d++) {
        int64_t to = place_of(&c->quant, entry, head, token, d);
        int64_t at = place_of(from->quant, from_entry, from_head, from_token, d);
        if (from->quant->scale != NULL) memcpy(&c->scale[to], (char *)(uintptr_t)from->quant->scale + 4 * at, 4);
        if (from->quant->zero != NULL) memcpy(&c->zero[to], (char *)(uintptr_t)from->quant->zero + 4 * at, 4);
    }
}

/* The same numbers, an element every so many. */
static inline void transpose(struct copy *c, int64_t entries, int64_t heads, int64_t tokens) {
    int64_t size = block_bytes[c->tensor.dtype];
    if (block_elements[c->tensor.dtype] != 1 || tokens == 0) return;
    unsigned char *to = need((size_t)(entries * heads * tokens * c->dim * size));
    for (int64_t e = 0; e < entries; e++)
        for (int64_t h = 0; h < heads; h++)
            for (int64_t t = 0; t < tokens; t++)
                for (int64_t d = 0; d < c->dim; d++)
                    memcpy(to + (((e * heads + h) * c->dim + d) * tokens + t) * size,
                           row_at(&c->tensor, e, h, t) + d * size, (size_t)size);
    free(c->data);
    c->data = c->tensor.data = to;
    c->tensor.stride[0] = heads * c->dim * tokens * size, c->tensor.stride[1] = c->dim * tokens * size;
    c->tensor.stride[2] = size, c->tensor.stride_dim = (int32_t)(tokens * size);
}

/* The largest of what two ways of computing may be off by. */
static inline struct family widest_family(struct family a, struct family b) {
    return (struct family){a.bf16 || b.bf16, a.i8 || b.i8, a.i16 || b.i16, a.exact_q && b.exact_q, a.f16 || b.f16};
}

static inline struct family family_at(const fa_attention *a) {
    char words[300];
    CHECK(fa_attention_check(a, words, sizeof words) == FA_OK, "%s", words);
    return family_of(a, words, fa_isa());
}

static inline void run_whole(const fa_attention *a) {
    size_t bytes = 0;
    CHECK(fa_attention_workspace(a, 1, &bytes) == FA_OK, "workspace");
    void *ws = need(bytes);
    CHECK(fa_attention_run(a, ws, bytes, NULL) == FA_OK, "one process");
    free(ws);
}

/* Sums for a relative RMS difference. */
struct difference {
    double squares, of;
};

static inline void add_difference(struct difference *d, double x, double y) {
    d->squares += (x - y) * (x - y), d->of += y * y;
}

static inline double relative(struct difference d) {
    return d.squares == 0 ? 0 : sqrt(d.squares / d.of);
}

#endif
