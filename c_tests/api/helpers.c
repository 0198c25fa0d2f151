/* The helpers in the header: strides of each type and order, workspaces that grow. */

#include "check.h"

static void rows(void) {
    static const struct {
        int32_t dtype;
        int64_t bytes_of_64;
    } types[] = {
        {FA_DTYPE_F32, 256}, {FA_DTYPE_F16, 128}, {FA_DTYPE_BF16, 128}, {FA_DTYPE_I8, 64}, {FA_DTYPE_Q8_0, 68},
        {FA_DTYPE_BOOL8, 64}, {FA_DTYPE_Q4_0, 36}, {FA_DTYPE_Q4_1, 40}, {FA_DTYPE_Q5_0, 44}, {FA_DTYPE_Q5_1, 48},
        {FA_DTYPE_IQ4_NL, 36}, {FA_DTYPE_F8_E4M3, 64}, {FA_DTYPE_F8_E5M2, 64}, {FA_DTYPE_U8, 64},
        {FA_DTYPE_Q15, 128},
    };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        CHECK(types[i].dtype == (int32_t)i, "every type");
        int64_t row = types[i].bytes_of_64;
        CHECK(fa_row_bytes(types[i].dtype, 64) == row, "type %zu: %lld", i, (long long)fa_row_bytes(types[i].dtype, 64));
        fa_tensor t = fa_token_first(&row, types[i].dtype, 5, 3, 64);
        CHECK(t.data == &row && t.dtype == types[i].dtype && t.stride_dim == 0 && t.quant == NULL, "type %zu", i);
        CHECK(t.stride[0] == 15 * row && t.stride[1] == row && t.stride[2] == 3 * row, "token first, type %zu", i);
        t = fa_head_first(&row, types[i].dtype, 3, 5, 64);
        CHECK(t.stride[0] == 15 * row && t.stride[1] == 5 * row && t.stride[2] == row, "head first, type %zu", i);
        t = fa_paged(&row, types[i].dtype, 16, 2, 64);
        CHECK(t.stride[0] == 32 * row && t.stride[1] == row && t.stride[2] == 2 * row, "pages, type %zu", i);
    }
    CHECK(fa_row_bytes(15, 64) == 0 && fa_row_bytes(-1, 64) == 0, "no type");
    CHECK(fa_row_bytes(FA_DTYPE_F32, -3) == 0 && fa_row_bytes(FA_DTYPE_F32, INT64_MAX) == INT64_MAX, "no size");
    fa_tensor t = fa_token_first(NULL, FA_DTYPE_F32, INT64_MAX / 3, 3, 64);
    CHECK(t.stride[0] == INT64_MAX && t.stride[2] == 768, "what overflows is refused");
}

static int32_t width_of(void *ctx) { return *(int32_t *)ctx; }

static void workspaces(void) {
    fa_workspace ws = {NULL, 0};
    CHECK(fa_workspace_reserve(&ws, 0) == FA_OK && ws.data == NULL, "nothing");
    CHECK(fa_workspace_reserve(&ws, 1000) == FA_OK && ws.size == 1000 && ws.data != NULL, "memory");
    void *data = ws.data;
    memset(data, 1, 1000);
    CHECK(fa_workspace_reserve(&ws, 999) == FA_OK && ws.size == 1000 && ws.data == data, "never less");
    CHECK(fa_workspace_reserve(&ws, PTRDIFF_MAX) == FA_ERR_MEMORY && ws.size == 1000 && ws.data == data, "no memory");
    fa_workspace_free(&ws);
    CHECK(ws.size == 0 && ws.data == NULL, "free");
    fa_workspace_free(&ws);

    int32_t width = 7;
    fa_pool pool = {.struct_size = sizeof pool, .ctx = &width, .width = width_of};
    CHECK(fa_pool_width(NULL) == 1 && fa_pool_width(&pool) == 7, "widths");
    width = 0;
    CHECK(fa_pool_width(&pool) == 1, "at least 1");
    width = 1000;
    CHECK(fa_pool_width(&pool) == 256, "at most 256");
    pool.width = NULL;
    CHECK(fa_pool_width(&pool) == 1, "no width");
}

/* Calls of which each needs more than the one before, and one that is refused. */
static void runs(void) {
    enum { TOKENS = 300, HEADS_Q = 4, HEADS_KV = 2, DIM = 32 };
    float *q = random_normal(TOKENS * HEADS_Q * DIM), *k = random_normal(TOKENS * HEADS_KV * DIM);
    float *v = random_normal(TOKENS * HEADS_KV * DIM), *o = need(TOKENS * HEADS_Q * DIM * sizeof *o);
    float *same = need(TOKENS * HEADS_Q * DIM * sizeof *same);
    fa_workspace ws = {NULL, 0};
    int32_t three = 3;
    fa_pool pool = {.struct_size = sizeof pool, .ctx = &three, .width = width_of};
    fa_attention a;
    CHECK(fa_attention_init(&a, sizeof a) == FA_OK, "init");
    a.batch = 1, a.heads_q = HEADS_Q, a.heads_kv = HEADS_KV, a.dim_qk = a.dim_v = DIM;
    size_t largest = 0;
    for (int tokens = 1; tokens <= TOKENS; tokens += 23) {
        a.len_q = a.len_kv = tokens;
        a.q = fa_token_first(q, FA_DTYPE_F32, tokens, HEADS_Q, DIM), a.o = fa_token_first(o, FA_DTYPE_F32, tokens, HEADS_Q, DIM);
        a.k = fa_token_first(k, FA_DTYPE_F32, tokens, HEADS_KV, DIM), a.v = fa_token_first(v, FA_DTYPE_F32, tokens, HEADS_KV, DIM);
        for (int pools = 0; pools < 2; pools++) {
            memset(o, 0xff, (size_t)(tokens * HEADS_Q * DIM) * sizeof *o);
            CHECK(fa_run(&a, &ws, pools ? &pool : NULL) == FA_OK, "%d tokens", tokens);
            CHECK(ws.size >= largest, "%zu bytes after %zu", ws.size, largest);
            largest = ws.size;
            if (pools) CHECK(memcmp(o, same, (size_t)(tokens * HEADS_Q * DIM) * sizeof *o) == 0, "%d tokens: other bits", tokens);
            else memcpy(same, o, (size_t)(tokens * HEADS_Q * DIM) * sizeof *o);
        }
    }
    CHECK(largest > 0, "no call needed memory");
    void *data = ws.data;
    a.window_left = -2;
    CHECK(fa_run(&a, &ws, NULL) == FA_ERR_WINDOW && ws.data == data, "a refusal");
    fa_workspace_free(&ws);
    free(q), free(k), free(v), free(o), free(same);
}

int main(void) {
    rows();
    workspaces();
    runs();
    return check_result();
}
