/*
 * What the parameters of other libraries are in an fa_attention: the rules of docs/migration.md.
 * Queries are zeros, so that all keys that a row sees weigh alike, and values are the unit vectors:
 * an output is a row of the pattern of who sees whom.
 */

#include <math.h>
#include <stdbool.h>

#include "recipe.h"

/* flash_attn_func(causal, window_size), and FlashAttention's other functions. */
static void flash_attention(fa_attention *a, bool causal, const int64_t window_size[2])
{
    a->q_pos = FA_POS_END;
    a->window_left = window_size[0], a->window_right = window_size[1]; /* -1 is FA_NO_LIMIT, too */
    if (causal)
        a->window_right = 0;
}

/* torch.nn.functional.scaled_dot_product_attention(is_causal): the first query is on the first
 * key. */
static void pytorch(fa_attention *a, bool is_causal)
{
    a->q_pos = 0;
    if (is_causal)
        a->window_right = 0;
}

/* ONNX Attention, opset 23 to 25: behind the past; with nonpad_kv_seqlen the last query is on the
 * last key in use. */
static void onnx(fa_attention *a, bool is_causal, int64_t past_len, const int32_t *nonpad_kv_seqlen)
{
    a->q_pos = nonpad_kv_seqlen != NULL ? FA_POS_END : past_len;
    a->kv_lens = nonpad_kv_seqlen;
    if (is_causal)
        a->window_right = 0;
}

/* A sliding_window of Hugging Face's models: so many keys, the query's own among them. */
static void sliding_window(fa_attention *a, int64_t keys)
{
    a->q_pos = FA_POS_END;
    a->window_left = keys - 1, a->window_right = 0;
}

/* FlashInfer's page table of one sequence (indptr, indices, last_page_len) for pages
 * [page][token][head][dim]. */
static void flashinfer(fa_attention *a, const int32_t *indptr, const int32_t *indices, const int32_t *last_page_len,
                       int64_t page_size, int32_t *kv_lens)
{
    for (int64_t b = 0; b < a->batch; b++) {
        int32_t pages = indptr[b + 1] - indptr[b];
        kv_lens[b] = pages == 0 ? 0 : (pages - 1) * (int32_t)page_size + last_page_len[b];
    }
    a->kv_lens = kv_lens;
    a->block_table_start = indptr, a->block_table = indices, a->page_size = page_size;
}

/* ---- The test. ---- */

enum { KEYS = 5, DIM = 8 };

static float zeros[KEYS * DIM], units[KEYS][DIM], out[KEYS][DIM];

static fa_attention begin(int64_t len_q)
{
    fa_attention a;
    EXPECT(fa_attention_init(&a, sizeof a) == FA_OK);
    a.batch = a.heads_q = a.heads_kv = 1, a.len_q = len_q, a.len_kv = KEYS, a.dim_qk = a.dim_v = DIM;
    a.q = (fa_tensor){.data = zeros, .stride = {0, 0, DIM * 4}};
    a.k = a.v = a.o = a.q;
    a.v.data = units, a.o.data = out;
    return a;
}

/* Each row of the pattern: a string of # and -. */
static void sees(const char *name, const fa_attention *a, const char *const *rows)
{
    char ws[1 << 16];
    memset(out, 0xff, sizeof out);
    fa_status status = fa_attention_run(a, ws, sizeof ws, NULL);
    bool right = status == FA_OK;
    for (int64_t i = 0; i < a->len_q; i++) {
        int n = 0;
        for (int j = 0; j < KEYS; j++) n += rows[i][j] == '#';
        for (int j = 0; j < KEYS; j++) {
            float want = rows[i][j] == '#' ? 1 / (float)n : 0;
            right = right && fabsf(out[i][j] - want) < 1e-6f;
        }
    }
    if (!right) recipe_failures++, fprintf(stderr, "%s: %s, or another pattern\n", name, fa_status_string(status));
}
#define SEES(name, ...) sees(name, &a, (const char *const[]){__VA_ARGS__})

int main(void)
{
    for (int j = 0; j < KEYS; j++) units[j][j] = 1;
    fa_attention a;

    a = begin(3), flash_attention(&a, true, (int64_t[]){-1, -1});
    SEES("FlashAttention, causal", "###--", "####-", "#####");
    a = begin(3), flash_attention(&a, false, (int64_t[]){1, 1});
    SEES("FlashAttention, window (1, 1)", "-###-", "--###", "---##");
    a = begin(3), flash_attention(&a, true, (int64_t[]){1, -1});
    SEES("FlashAttention, causal window (1, -1)", "-##--", "--##-", "---##");

    a = begin(3), pytorch(&a, true);
    SEES("PyTorch, is_causal", "#----", "##---", "###--");
    a = begin(3), pytorch(&a, false);
    SEES("PyTorch", "#####", "#####", "#####");

    a = begin(3), onnx(&a, true, 0, NULL);
    SEES("ONNX, is_causal", "#----", "##---", "###--");
    a = begin(3), onnx(&a, true, 2, NULL);
    SEES("ONNX, is_causal, a past of 2", "###--", "####-", "#####");
    a = begin(3), onnx(&a, true, 0, (int32_t[]){4});
    SEES("ONNX, is_causal, 4 keys in use", "##---", "###--", "####-");
    a = begin(3), onnx(&a, true, 0, (int32_t[]){2});
    SEES("ONNX, is_causal, 2 keys in use", "-----", "#----", "##---");

    a = begin(3), sliding_window(&a, 2);
    SEES("a sliding window of 2", "-##--", "--##-", "---##");

    /* Pages of 2 tokens: keys 0 and 1 are tokens of page 1 (values 2 and 3), key 2 is one of page 0
     * (value 0). */
    int32_t kv_lens[1];
    a = begin(3), a.num_pages = 2, a.k.stride[0] = a.v.stride[0] = 2 * DIM * 4;
    flashinfer(&a, (int32_t[]){0, 2}, (int32_t[]){1, 0}, (int32_t[]){1}, 2, kv_lens);
    EXPECT(kv_lens[0] == 3);
    a.window_right = 0; /* its "causal" is FlashAttention's */
    SEES("FlashInfer, pages", "--#--", "--##-", "#-##-");

    /* A scale of 0 is the default one; FA_SCALE_ZERO weighs all alike. */
    float one[DIM] = {0}, keys[KEYS][DIM] = {{0}};
    one[0] = 4, keys[3][0] = 8;
    a = begin(1), a.q.data = one, a.k.data = keys;
    char ws[1 << 16];
    EXPECT(fa_attention_run(&a, ws, sizeof ws, NULL) == FA_OK);
    EXPECT(out[0][3] > 0.99f);
    a.scale = (float)FA_SCALE_ZERO;
    SEES("FA_SCALE_ZERO", "#####");
    return recipe_failures != 0;
}
