#include "attention.h"

#include "fail.h"

#include <stdlib.h>

/* One of the three that lie side by side in the activations: a view, nothing is moved. */
static fa_tensor third(const attention *a, void *qkv, size_t which, fa_dtype dtype)
{
    size_t element = dtype == FA_DTYPE_I8 ? 1 : sizeof(float), head = a->dim * element, token = 3 * a->heads * head;
    fa_tensor t = {.data = (char *)qkv + which * a->heads * head, .dtype = dtype};
    t.stride[0] = (int64_t)(a->longest * token), t.stride[1] = (int64_t)head, t.stride[2] = (int64_t)token;
    return t;
}

static fa_attention describe(const attention *a, float *qkv, float *out)
{
    fa_attention d;
    must(fa_attention_init(&d, sizeof d));
    d.batch = (int64_t)a->batch, d.heads_q = d.heads_kv = (int64_t)a->heads;
    d.len_q = d.len_kv = (int64_t)a->longest, d.dim_qk = d.dim_v = (int64_t)a->dim;
    d.kv_lens = a->lengths; /* no query sees padding; what padding's own rows become, nobody reads */
    d.q = third(a, qkv, 0, FA_DTYPE_F32), d.k = third(a, qkv, 1, FA_DTYPE_F32), d.v = third(a, qkv, 2, FA_DTYPE_F32);
    size_t row = a->heads * a->dim * sizeof *out;
    d.o.data = out;
    d.o.stride[0] = (int64_t)(a->longest * row), d.o.stride[2] = (int64_t)row;
    d.o.stride[1] = (int64_t)(a->dim * sizeof *out);
    return d;
}

/* One scale for each head of each sentence. */
static fa_quant scales(const attention *a, size_t which)
{
    fa_quant q = {.scale = a->scales + which * a->batch * a->heads};
    q.stride[0] = (int64_t)a->heads, q.stride[1] = 1;
    return q;
}

/* A sentence at a time, without its padding, which must not have a say in the scales. */
static void quantise(const attention *a, float *qkv, size_t which)
{
    for (size_t b = 0; b < a->batch; b++) {
        fa_tensor from = third(a, qkv, which, FA_DTYPE_F32), to = third(a, a->stored, which, FA_DTYPE_I8);
        fa_quant q = scales(a, which);
        q.scale += b * a->heads;
        from.data = (char *)from.data + (int64_t)b * from.stride[0];
        to.data = (char *)to.data + (int64_t)b * to.stride[0];
        to.quant = &q;
        must(fa_quantize_i8(&from, 1, (int64_t)a->heads, a->lengths[b], (int64_t)a->dim, NULL, &to));
    }
}

attention attention_make(size_t batch, size_t longest, size_t heads, size_t dim, const int32_t *lengths,
                         attention_kind kind, const fa_pool *pool)
{
    attention a = {.kind = kind, .batch = batch, .longest = longest, .heads = heads, .dim = dim};
    a.lengths = lengths, a.pool = pool;
    if (kind != ATTENTION_F32) {
        a.stored = allocate(batch * longest * 3 * heads * dim, sizeof *a.stored);
        a.scales = allocate(3 * batch * heads, sizeof *a.scales);
    }
    return a;
}

void attention_run(attention *a, float *qkv, float *out)
{
    fa_attention d = describe(a, qkv, out);
    fa_quant quants[3];
    if (a->kind != ATTENTION_F32) {
        d.flags = a->kind == ATTENTION_I8_FAST ? FA_FAST : 0;
        fa_tensor *tensors[] = {&d.q, &d.k, &d.v};
        for (size_t i = 0; i < 3; i++) {
            quantise(a, qkv, i);
            quants[i] = scales(a, i);
            *tensors[i] = third(a, a->stored, i, FA_DTYPE_I8);
            tensors[i]->quant = &quants[i];
        }
    }
    if (a->workspace == NULL) { /* every layer needs as much as the first one */
        must(fa_attention_workspace(&d, a->pool != NULL ? a->pool->width(a->pool->ctx) : 1, &a->bytes));
        a->workspace = allocate(a->bytes, 1);
    }
    must(fa_attention_run(&d, a->workspace, a->bytes, a->pool));
}

void attention_free(attention *a)
{
    free(a->workspace);
    free(a->stored);
    free(a->scales);
}
