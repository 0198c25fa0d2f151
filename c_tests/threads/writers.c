/* Several threads write one cache at once: its sequences, its heads, or keys here and values there;
 * others attend meanwhile to what has been written. The bytes are those that one call writes, and
 * attention gives the bits that it gives when nobody writes. */

#define _POSIX_C_SOURCE 200809L

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "blocks.h"
#include "check.h"

enum { SEQS = 4, HEADS = 2, PAGE = 8, PAGES = 4, TOKENS = PAGE * PAGES, DIM = 64, GROUP = 2 };
enum { ROW = HEADS * DIM, NEW = SEQS * TOKENS * ROW, QUERIES = HEADS * GROUP * DIM, ROUNDS = 3 };

/* Keys and values of these types. */
static const int32_t types[][2] = {
    {FA_DTYPE_F32, FA_DTYPE_F16},      {FA_DTYPE_I8, FA_DTYPE_BF16},   {FA_DTYPE_Q8_0, FA_DTYPE_I8},
    {FA_DTYPE_Q4_0, FA_DTYPE_Q5_1},    {FA_DTYPE_IQ4_NL, FA_DTYPE_Q8_0},
};

/* How the cache is divided among the threads. */
enum split { SEQUENCES, EVERY_HEAD, KEYS_AND_VALUES };

/* [page][token][head][dim]: what the threads write lies side by side. 8-bit integers have a scale
 * for each token and head. */
struct cache {
    unsigned char *bytes[2];
    float *scales[2];
    fa_quant quant[2];
    size_t size[2];
};

static float *new_rows[2], *queries;
static int32_t table[SEQS * PAGES];
static struct cache shared;
static const int32_t *kinds;
static enum split split;
/* Tokens of each sequence that all writers of it have written. */
static atomic_int written[SEQS][2];
static float *seen[SEQS][TOKENS + 1];
static atomic_int failures;

static int64_t row_bytes(int32_t dtype) {
    static const int64_t bytes[] = {4, 2, 2, 1};
    return is_in_blocks(dtype) ? DIM / 32 * bytes_of_block(dtype) : DIM * bytes[dtype];
}

static void make(struct cache *c) {
    for (int i = 0; i < 2; i++) {
        c->size[i] = (size_t)(SEQS * TOKENS * HEADS * row_bytes(kinds[i]));
        c->bytes[i] = need(c->size[i]), c->scales[i] = need(SEQS * TOKENS * HEADS * sizeof(float));
        memset(c->bytes[i], 0x5a, c->size[i]), memset(c->scales[i], 0x5a, SEQS * TOKENS * HEADS * sizeof(float));
        c->quant[i] = (fa_quant){c->scales[i], NULL, {PAGE * HEADS, 1, HEADS, 0}, 1, 1};
    }
}

static void drop(struct cache *c) {
    for (int i = 0; i < 2; i++) free(c->bytes[i]), free(c->scales[i]);
}

/* Keys and values of some sequences and heads, of which `lens` are in use; `quant` outlives it. */
static fa_attention describe(struct cache *c, fa_quant quant[2], int first, int count, int head, int heads,
                             const int32_t *lens) {
    fa_attention a;
    if (fa_attention_init(&a, sizeof a) != FA_OK) exit(2);
    a.batch = count, a.heads_kv = heads, a.heads_q = heads * GROUP, a.len_kv = TOKENS, a.dim_qk = a.dim_v = DIM;
    a.block_table = table + first * PAGES, a.table_stride = PAGES, a.page_size = PAGE, a.num_pages = SEQS * PAGES;
    a.kv_lens = lens;
    fa_tensor *tensors[] = {&a.k, &a.v};
    for (int i = 0; i < 2; i++) {
        int64_t row = row_bytes(kinds[i]);
        *tensors[i] = (fa_tensor){.data = c->bytes[i] + head * row,
                                  .stride = {PAGE * HEADS * row, row, HEADS * row},
                                  .dtype = kinds[i]};
        quant[i] = c->quant[i];
        quant[i].scale += head;
        if (kinds[i] == FA_DTYPE_I8) tensors[i]->quant = &quant[i];
    }
    return a;
}

/* Writes `n` tokens from `token` on of some sequences and heads; of keys, values or both. */
static void append(struct cache *c, int first, int count, int head, int heads, int token, int n, int which) {
    int32_t lens[SEQS];
    fa_quant quant[2];
    for (int b = 0; b < SEQS; b++) lens[b] = token + n;
    fa_attention a = describe(c, quant, first, count, head, heads, lens);
    a.len_q = n;
    fa_tensor rows[2];
    for (int i = 0; i < 2; i++) {
        rows[i] = (fa_tensor){.data = new_rows[i] + (first * TOKENS + token) * ROW + head * DIM,
                              .stride = {TOKENS * ROW * 4, DIM * 4, ROW * 4}};
    }
    fa_status status = fa_cache_append(&a, which == 1 ? NULL : &rows[0], which == 0 ? NULL : &rows[1], NULL, 0);
    if (status != FA_OK) atomic_fetch_add(&failures, 1);
}

/* What a query sees of the first `len` tokens of a sequence. */
static void attend(struct cache *c, int b, int len, float *o) {
    const int32_t lens = len;
    fa_quant quant[2];
    fa_attention a = describe(c, quant, b, 1, 0, HEADS, &lens);
    a.len_q = 1;
    a.q = (fa_tensor){.data = queries, .stride = {0, DIM * 4, 0}};
    a.o = (fa_tensor){.data = o, .stride = {0, DIM * 4, 0}};
    size_t size = 0;
    fa_status status = fa_attention_workspace(&a, 1, &size);
    void *ws = need(size);
    if (status == FA_OK) status = fa_attention_run(&a, ws, size, NULL);
    free(ws);
    if (status != FA_OK) atomic_fetch_add(&failures, 1);
}

/* One of SEQS writers: of a sequence; or of a head of two sequences; or of keys or values of
 * two. */
static void *write_part(void *number) {
    int me = (int)(intptr_t)number;
    int first = split == SEQUENCES ? me : me / 2 * 2, count = split == SEQUENCES ? 1 : 2, part = me % 2;
    for (int token = 0, n; token < TOKENS; token += n) {
        n = 1 + (token + me) % 3;
        if (n > TOKENS - token) n = TOKENS - token;
        if (split == SEQUENCES) append(&shared, first, 1, 0, HEADS, token, n, 2);
        if (split == EVERY_HEAD) append(&shared, first, 2, part, 1, token, n, 2);
        if (split == KEYS_AND_VALUES) append(&shared, first, 2, 0, HEADS, token, n, part);
        for (int b = first; b < first + count; b++) {
            atomic_store_explicit(&written[b][split == SEQUENCES ? 0 : part], token + n, memory_order_release);
            if (split == SEQUENCES) atomic_store_explicit(&written[b][1], token + n, memory_order_release);
        }
        sched_yield();
    }
    return NULL;
}

/* Attends to every sequence, whenever there is more of it, until all is written. */
static void *read_all(void *nothing) {
    int before[SEQS] = {0};
    for (int left = SEQS; left > 0;) {
        for (int b = 0; b < SEQS; b++) {
            int k = atomic_load_explicit(&written[b][0], memory_order_acquire);
            int v = atomic_load_explicit(&written[b][1], memory_order_acquire), len = k < v ? k : v;
            if (len == before[b]) continue;
            seen[b][len] = need(QUERIES * sizeof(float));
            attend(&shared, b, len, seen[b][len]);
            before[b] = len;
            left -= len == TOKENS;
        }
        sched_yield();
    }
    return nothing;
}

static void together(void) {
    struct cache alone;
    pthread_t threads[SEQS + 1];
    make(&shared), make(&alone);
    memset(seen, 0, sizeof seen);
    for (int b = 0; b < SEQS; b++) atomic_store(&written[b][0], 0), atomic_store(&written[b][1], 0);
    if (pthread_create(&threads[SEQS], NULL, read_all, NULL) != 0) exit(2);
    for (int i = 0; i < SEQS; i++)
        if (pthread_create(&threads[i], NULL, write_part, (void *)(intptr_t)i) != 0) exit(2);
    for (int i = 0; i <= SEQS; i++) pthread_join(threads[i], NULL);
    CHECK(atomic_load(&failures) == 0, "%d calls", atomic_load(&failures));

    append(&alone, 0, SEQS, 0, HEADS, 0, TOKENS, 2);
    for (int i = 0; i < 2; i++) {
        CHECK(memcmp(shared.bytes[i], alone.bytes[i], alone.size[i]) == 0, "type %d, split %d: bytes", (int)kinds[i],
              (int)split);
        CHECK(same_bits(shared.scales[i], alone.scales[i], SEQS * TOKENS * HEADS), "type %d, split %d: scales",
              (int)kinds[i], (int)split);
    }
    float o[QUERIES];
    int reads = 0;
    for (int b = 0; b < SEQS; b++) {
        for (int len = 0; len <= TOKENS; len++) {
            if (seen[b][len] == NULL) continue;
            attend(&alone, b, len, o), reads++;
            CHECK(same_bits(seen[b][len], o, QUERIES), "types %d and %d, split %d: %d tokens", (int)kinds[0],
                  (int)kinds[1], (int)split, len);
            free(seen[b][len]);
        }
    }
    CHECK(reads >= SEQS, "%d reads", reads);
    drop(&shared), drop(&alone);
}

int main(void) {
    for (int i = 0; i < 2; i++) new_rows[i] = random_normal(NEW);
    queries = random_normal(QUERIES);
    /* Neighbours in the cache belong to different sequences. */
    for (int i = 0; i < SEQS * PAGES; i++) table[i] = i % PAGES * SEQS + i / PAGES;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        kinds = types[i];
        for (int round = 0; round < ROUNDS; round++)
            for (split = SEQUENCES; split <= KEYS_AND_VALUES; split++) together();
    }
    for (int i = 0; i < 2; i++) free(new_rows[i]);
    free(queries);
    return check_result();
}
