/* Mistakes that compute something, and something else than was meant: what the memory of a tensor
 * is known to be (q_bytes and the like) refuses those that lead out of it, and fa_attention_check
 * warns of strides that nobody means. What is meant is neither refused nor warned of. */

#include "check.h"

enum { BATCH = 2, HEADS = 8, HEADS_KV = 2, TOKENS = 40, DIM = 16, PAGE = 8, PAGES = 10 };
static float q[BATCH * TOKENS * HEADS * DIM], o[BATCH * TOKENS * HEADS * DIM], mask[TOKENS * TOKENS];
static float k[BATCH * TOKENS * HEADS_KV * DIM], v[BATCH * TOKENS * HEADS_KV * DIM];
static uint16_t k16[BATCH * TOKENS * HEADS_KV * DIM], v16[BATCH * TOKENS * HEADS_KV * DIM];
/* A cache of pages has as many tokens as that. */
static const int32_t table[BATCH][PAGES / BATCH] = {{3, 1, 4, 0, 5}, {9, 2, 6, 8, 7}}, lens[BATCH] = {TOKENS, TOKENS};
static fa_attention a;

static void sizes(void) {
    CHECK(fa_attention_init(&a, sizeof a) == FA_OK, "init");
    a.batch = BATCH, a.heads_q = HEADS, a.heads_kv = HEADS_KV, a.len_q = a.len_kv = TOKENS, a.dim_qk = a.dim_v = DIM;
    a.window_right = 0;
}

/* [batch][token][head][dim], with its bytes. */
static void token_first(void) {
    sizes();
    a.q = fa_token_first(q, FA_DTYPE_F32, TOKENS, HEADS, DIM), a.q_bytes = sizeof q;
    a.k = fa_token_first(k, FA_DTYPE_F32, TOKENS, HEADS_KV, DIM), a.k_bytes = sizeof k;
    a.v = fa_token_first(v, FA_DTYPE_F32, TOKENS, HEADS_KV, DIM), a.v_bytes = sizeof v;
    a.o = fa_token_first(o, FA_DTYPE_F32, TOKENS, HEADS, DIM), a.o_bytes = sizeof o;
}

static void pages(void) {
    token_first();
    a.k = fa_paged(k, FA_DTYPE_F32, PAGE, HEADS_KV, DIM), a.v = fa_paged(v, FA_DTYPE_F32, PAGE, HEADS_KV, DIM);
    a.block_table = table[0], a.table_stride = PAGES / BATCH, a.page_size = PAGE, a.num_pages = PAGES, a.kv_lens = lens;
}

/* Strides as if they counted elements. */
static void count_elements(fa_tensor *t, int64_t bytes) {
    for (int i = 0; i < 3; i++) t->stride[i] /= bytes;
}

static void swap(fa_tensor *t) {
    int64_t head = t->stride[1];
    t->stride[1] = t->stride[2], t->stride[2] = head;
}

static void no_bytes(void) { a.q_bytes = a.k_bytes = a.v_bytes = a.o_bytes = 0; }

/* Every call refuses the description; the words are the same and have `word`. */
static void refused(const char *what, const char *word) {
    char why[400], words[400];
    size_t bytes = 12345;
    static unsigned char ws[1 << 20];
    CHECK(fa_attention_check(&a, why, sizeof why) == FA_ERR_SHAPE && strstr(why, word) != NULL, "%s: %s", what, why);
    CHECK(fa_attention_check_run(&a, ws, sizeof ws, NULL, words, sizeof words) == FA_ERR_SHAPE && strcmp(why, words) == 0,
          "%s: %s", what, words);
    CHECK(fa_attention_workspace(&a, 1, &bytes) == FA_ERR_SHAPE && bytes == 12345, "%s: workspace", what);
    CHECK(fa_attention_run(&a, ws, sizeof ws, NULL) == FA_ERR_SHAPE, "%s: run", what);
    CHECK(fa_attention_part(&a, ws, sizeof ws, 0, 1) == FA_ERR_SHAPE, "%s: part", what);
    CHECK(fa_attention_finish(&a, ws, sizeof ws, 0, 1) == FA_ERR_SHAPE, "%s: finish", what);
}

/* The sentence of a success, and how many warnings it has. */
static int warnings(const char *what, char *why, size_t size) {
    CHECK(fa_attention_check(&a, why, size) == FA_OK, "%s: %s", what, why);
    int count = 0;
    for (const char *at = why; (at = strstr(at, "warning: ")) != NULL; at++) count++;
    return count;
}

static void warns(const char *what, const char *word) {
    char why[2000];
    CHECK(warnings(what, why, sizeof why) > 0 && strstr(strstr(why, "warning: "), word) != NULL, "%s: no %s in \"%s\"", what,
          word, why);
}

static void is_fine(const char *what) {
    char why[2000];
    CHECK(warnings(what, why, sizeof why) == 0, "%s: \"%s\"", what, why);
}

/* What leads out of the memory. */
static void out_of_memory(void) {
    token_first(), is_fine("token first");
    pages(), is_fine("pages");

    token_first(), a.k.data = k16, a.k_bytes = sizeof k16;
    refused("keys of bf16, without the type", "k_bytes = ");
    token_first(), a.v.data = v16, a.v_bytes = sizeof v16;
    refused("values of f16, without the type", "v_bytes = ");
    token_first(), a.heads_kv = HEADS;
    refused("heads_kv = heads_q, strides of fewer", "k_bytes = ");
    token_first(), a.heads_kv = HEADS, a.k = a.v = fa_token_first(k, FA_DTYPE_F32, TOKENS, HEADS, DIM);
    refused("heads_kv = heads_q, strides too", "k_bytes = ");
    token_first(), a.batch = 1, a.len_q = 4, swap(&a.q), a.q_bytes = 4 * HEADS * DIM * 4;
    refused("head and token of q swapped, fewer tokens than heads", "q_bytes = ");
    token_first(), a.len_kv = TOKENS + 1;
    refused("a key too many", "k_bytes = ");
    pages(), a.num_pages++;
    refused("a page too many", "k_bytes = ");
    pages(), a.page_size++;
    refused("pages too large", "k_bytes = ");
    token_first(), a.o_bytes -= 4;
    refused("an output a number too short", "o_bytes = ");
    token_first(), a.lse = o, a.lse_stride[0] = HEADS * TOKENS, a.lse_stride[1] = TOKENS, a.lse_stride[2] = 1;
    a.lse_bytes = BATCH * HEADS * TOKENS;
    refused("bytes of the log-sum-exp, which are elements", "lse_bytes = ");
    token_first(), a.mask = fa_head_first(mask, FA_DTYPE_F32, 1, TOKENS, TOKENS), a.mask_bytes = sizeof mask;
    refused("a mask of one head for all", "mask_bytes = ");

    /* A cache of which only some keys are in use has memory for all of them. */
    token_first(), a.kv_lens = (const int32_t[]){3, 5}, a.k_bytes = 5 * HEADS_KV * DIM * 4;
    refused("a cache with room that is not there", "k_bytes = ");

    /* So does a cache that is appended to. */
    char why[400];
    fa_tensor rows = fa_token_first(k, FA_DTYPE_F32, TOKENS, HEADS_KV, DIM);
    pages(), a.k.data = q, a.v.data = o, a.k_bytes = sizeof k - 1;
    CHECK(fa_cache_append(&a, &rows, &rows, why, sizeof why) == FA_ERR_SHAPE && strstr(why, "k_bytes = ") != NULL, "%s", why);
    pages(), a.k.data = q, a.v.data = o, a.v_bytes = sizeof v / 2;
    CHECK(fa_cache_append(&a, &rows, &rows, why, sizeof why) == FA_ERR_SHAPE && strstr(why, "v_bytes = ") != NULL, "%s", why);
    pages(), a.k.data = q, a.v.data = o;
    CHECK(fa_cache_append(&a, &rows, &rows, why, sizeof why) == FA_OK, "%s", why);
}

/* What stays within the memory, or of which that is not known. */
static void nobody_means_it(void) {
    token_first(), count_elements(&a.q, 4);
    warns("strides of q in elements", "q.stride[1] = 16: strides count bytes");
    token_first(), count_elements(&a.k, 4);
    warns("strides of k in elements", "k.stride[1] = 16: strides count bytes");
    token_first(), count_elements(&a.v, 4);
    warns("strides of v in elements", "v.stride[1] = 16: strides count bytes");
    token_first(), a.k = fa_head_first(k16, FA_DTYPE_BF16, HEADS_KV, TOKENS, DIM), count_elements(&a.k, 2);
    warns("strides of bf16 in elements", "k.stride[2] = 16: strides count bytes");
    token_first(), no_bytes(), a.k = fa_token_first(k16, FA_DTYPE_F16, TOKENS, HEADS_KV, DIM), a.k.dtype = FA_DTYPE_F32;
    warns("a forgotten type", "k.stride[1] = 32: strides count bytes");
    token_first(), no_bytes(), swap(&a.q);
    warns("head and token of q swapped", "q.stride[1] = 512: heads overlap");
    token_first(), no_bytes(), swap(&a.k);
    warns("head and token of k swapped", "k.stride[1] = 128: heads overlap");
    token_first(), no_bytes(), swap(&a.v);
    warns("head and token of v swapped", "v.stride[1] = 128: heads overlap");
    pages(), no_bytes(), swap(&a.k);
    warns("head and token of pages swapped", "k.stride[1] = 128: heads overlap");
    token_first(), no_bytes(), a.heads_kv = HEADS;
    warns("heads_kv = heads_q", "k.stride[2] = 128: heads of a token reach into the next token");
    pages(), a.k.stride[0] = 0;
    warns("no stride of pages of k", "k.stride[0] = 0: all pages");
    pages(), a.v.stride[0] = 0;
    warns("no stride of pages of v", "v.stride[0] = 0: all pages");
    pages(), memset(a.k.stride, 0, sizeof a.k.stride), memset(a.v.stride, 0, sizeof a.v.stride);
    warns("no strides of pages", "v.stride[0] = 0: all pages");
    token_first(), memset(a.k.stride, 0, sizeof a.k.stride), memset(a.v.stride, 0, sizeof a.v.stride);
    warns("no strides of k and v", "k.stride[2] = 0");
    token_first(), a.mask.data = mask, a.mask.stride[2] = TOKENS;
    warns("a mask whose stride counts elements", "mask.stride[2] = 40: strides count bytes");

    /* Cut off, as any sentence. */
    char why[60];
    memset(why, 'x', sizeof why);
    CHECK(fa_attention_check(&a, why, sizeof why) == FA_OK && memchr(why, '\0', sizeof why) != NULL, "cut off");
}

/* What looks odd, and has a meaning. */
static void somebody_means_it(void) {
    sizes();
    a.q = fa_head_first(q, FA_DTYPE_F32, HEADS, TOKENS, DIM), a.o = fa_head_first(o, FA_DTYPE_F32, HEADS, TOKENS, DIM);
    a.k = fa_head_first(k, FA_DTYPE_F32, HEADS_KV, TOKENS, DIM), a.v = a.k, a.v.data = v;
    is_fine("head first");
    token_first(), a.len_q = a.len_kv = HEADS, a.heads_kv = HEADS;
    a.q = a.k = a.v = fa_head_first(q, FA_DTYPE_F32, HEADS, HEADS, DIM), a.o = a.q, a.o.data = o, no_bytes();
    is_fine("as many tokens as heads");
    token_first(), a.heads_kv = HEADS, a.k.stride[1] = a.v.stride[1] = 0;
    is_fine("one head for all");
    token_first(), a.k.stride[0] = a.v.stride[0] = 0;
    is_fine("the same keys for all sequences");
    token_first(), a.q.stride[0] = a.q.stride[1] = a.q.stride[2] = 0;
    is_fine("the same query for all");
    token_first(), a.k.stride[2] = 0;
    is_fine("one key and many values: their means");
    token_first(), a.v = a.k, a.v_bytes = sizeof k;
    is_fine("v is k");
    token_first(), a.dim_v = DIM / 2, a.v = a.k, a.v_bytes = sizeof k;
    a.o = fa_token_first(o, FA_DTYPE_F32, TOKENS, HEADS, DIM / 2);
    is_fine("v is a part of k");
    /* Queries, keys and values of a token beside each other. */
    token_first(), no_bytes(), a.heads_kv = HEADS;
    a.q.stride[2] *= 3, a.q.stride[0] *= 3, a.k = a.v = a.q;
    is_fine("a fused projection");
    token_first(), no_bytes(), a.batch = 3, a.len_q = a.len_kv = 8;
    a.q = fa_token_first(q, FA_DTYPE_F32, 8, HEADS, DIM), a.o = fa_token_first(o, FA_DTYPE_F32, 8, HEADS, DIM);
    a.k.stride[0] = a.v.stride[0] = 4 * HEADS_KV * DIM * 4;
    is_fine("chunks of keys that overlap");
    token_first(), no_bytes(), a.batch = 1, a.heads_kv = HEADS, a.len_kv = 8;
    a.k.stride[2] = a.v.stride[2] = DIM * 4, a.k.stride[1] = a.v.stride[1] = 4 * DIM * 4;
    is_fine("chunks of keys that overlap, one for each head");
    token_first(), no_bytes(), a.k.stride[2] = 4;
    is_fine("keys as windows of a signal");
    token_first(), a.len_q = 1, a.q.stride[2] = 3 * 4, a.o.stride[2] = 0;
    is_fine("the stride of an axis of one element");
    pages(), a.page_size = 1, a.num_pages = TOKENS * BATCH, a.table_stride = 5, a.len_kv = 5;
    a.kv_lens = (const int32_t[]){5, 5}, a.k.stride[0] = a.v.stride[0] = HEADS_KV * DIM * 4;
    is_fine("pages of one token");
    pages(), no_bytes(), a.k.stride[0] = a.v.stride[0] = HEADS_KV * DIM * 4;
    is_fine("pages that begin at any token");
    pages(), a.num_pages = 1, a.block_table = (const int32_t[BATCH]){0}, a.table_stride = 1, a.len_kv = PAGE;
    a.kv_lens = NULL, a.k.stride[0] = a.v.stride[0] = 0;
    is_fine("one page");
    token_first(), a.len_q = 1, a.mask.data = mask;
    is_fine("one row of a mask");
    token_first(), a.mask.data = mask, a.mask.stride[2] = 4, a.len_kv = TOKENS / 2;
    is_fine("a mask of distances, whose rows overlap");
    token_first(), a.mask.data = mask, a.mask.dtype = FA_DTYPE_BOOL8, a.mask.stride[2] = TOKENS;
    is_fine("a mask of bytes");
    /* [batch][head][dim][token]. */
    token_first();
    a.k.stride[0] = HEADS_KV * DIM * TOKENS * 4, a.k.stride[1] = DIM * TOKENS * 4, a.k.stride[2] = 4, a.k.stride_dim = 4 * TOKENS;
    is_fine("a transposed cache");
    token_first(), a.dim_qk = a.dim_v = 32, a.k = a.v = fa_token_first(k, FA_DTYPE_Q4_0, TOKENS, HEADS_KV, 32), no_bytes();
    a.q = fa_token_first(q, FA_DTYPE_F16, TOKENS, HEADS, 32), a.o = fa_token_first(o, FA_DTYPE_F16, TOKENS, HEADS, 32);
    is_fine("types in blocks");
    token_first(), a.batch = 0;
    is_fine("nothing");
}

int main(void) {
    out_of_memory();
    nobody_means_it();
    somebody_means_it();
    return check_result();
}
