/*
 * The library as an operator of ggml, whose threads all enter the operator as number ith of nth:
 * the recipe of docs/embedding.md. Also what ggml's flash_attn_ext means in terms of fa_attention:
 * docs/migration.md.
 *
 * ggml itself is not here: what the recipe uses of it is declared below, with its names, and its
 * threads are plain ones. Results are compared with the operator's definition in double.
 */
#define _POSIX_C_SOURCE 200112L /* pthread_barrier_t */

#include <math.h>
#include <pthread.h>
#include <stdbool.h>

#include "recipe.h"

/* ---- The stand-in: ggml.h, ggml-cpu-impl.h. ---- */

enum ggml_type {
    GGML_TYPE_F32 = 0,
    GGML_TYPE_F16 = 1,
    GGML_TYPE_Q4_0 = 2,
    GGML_TYPE_Q4_1 = 3,
    GGML_TYPE_Q5_0 = 6,
    GGML_TYPE_Q5_1 = 7,
    GGML_TYPE_Q8_0 = 8,
    GGML_TYPE_IQ4_NL = 20,
    GGML_TYPE_BF16 = 30
};

struct ggml_tensor {
    enum ggml_type type;
    int64_t ne[4]; /* elements, the innermost axis first */
    size_t nb[4];  /* bytes */
    int32_t op_params[16];
    struct ggml_tensor *src[10];
    void *data;
};

struct ggml_threadpool {
    pthread_barrier_t barrier;
};

struct ggml_compute_params {
    int ith, nth;
    size_t wsize;
    void *wdata;
    struct ggml_threadpool *threadpool;
};

static void ggml_barrier(struct ggml_threadpool *tp)
{
    pthread_barrier_wait(&tp->barrier);
}

/* ---- The description of a node. ---- */

static int32_t dtype_of(enum ggml_type type)
{
    switch (type) {
    case GGML_TYPE_F32: return FA_DTYPE_F32;
    case GGML_TYPE_F16: return FA_DTYPE_F16;
    case GGML_TYPE_BF16: return FA_DTYPE_BF16;
    case GGML_TYPE_Q8_0: return FA_DTYPE_Q8_0;
    case GGML_TYPE_Q4_0: return FA_DTYPE_Q4_0;
    case GGML_TYPE_Q4_1: return FA_DTYPE_Q4_1;
    case GGML_TYPE_Q5_0: return FA_DTYPE_Q5_0;
    case GGML_TYPE_Q5_1: return FA_DTYPE_Q5_1;
    case GGML_TYPE_IQ4_NL: return FA_DTYPE_IQ4_NL;
    }
    return -1; /* fa_attention_check will refuse it, in words */
}

static bool is_in_blocks(enum ggml_type type)
{
    return type != GGML_TYPE_F32 && type != GGML_TYPE_F16 && type != GGML_TYPE_BF16;
}

/* [batch][head][token][dim]; an axis of one element is repeated. */
static fa_tensor tensor_of(const struct ggml_tensor *t)
{
    fa_tensor x = {.data = t->data, .dtype = dtype_of(t->type)};
    for (int axis = 0; axis < 3; axis++)
        x.stride[axis] = t->ne[3 - axis] == 1 ? 0 : (int64_t)t->nb[3 - axis];
    if (!is_in_blocks(t->type))
        x.stride_dim = t->nb[0] <= INT32_MAX ? (int32_t)t->nb[0] : -1; /* k and v may be transposed */
    return x;
}

enum { MAX_HEADS = 256 };

/* ggml_flash_attn_ext */
static fa_status describe(fa_attention *a, const struct ggml_tensor *dst, float slopes[MAX_HEADS])
{
    const struct ggml_tensor *q = dst->src[0], *k = dst->src[1], *v = dst->src[2];
    const struct ggml_tensor *mask = dst->src[3], *sinks = dst->src[4];
    float params[3]; /* scale, max_bias, logit_softcap */
    memcpy(params, dst->op_params, sizeof params);

    fa_status status = fa_attention_init(a, sizeof *a);
    if (status != FA_OK || q->ne[2] > MAX_HEADS)
        return status != FA_OK ? status : FA_ERR_UNSUPPORTED;
    a->batch = q->ne[3], a->heads_q = q->ne[2], a->heads_kv = k->ne[2];
    a->len_q = q->ne[1], a->len_kv = k->ne[1], a->dim_qk = q->ne[0], a->dim_v = v->ne[0];
    a->q = tensor_of(q), a->k = tensor_of(k), a->v = tensor_of(v);
    a->o = (fa_tensor){.data = dst->data, .dtype = dtype_of(dst->type)}; /* [batch][token][head][dim] */
    a->o.stride[0] = (int64_t)dst->nb[3], a->o.stride[1] = (int64_t)dst->nb[1], a->o.stride[2] = (int64_t)dst->nb[2];
    a->scale = params[0], a->softcap = params[2];
    if (mask != NULL) {
        a->mask = tensor_of(mask); /* added; -infinity hides the key: causality is in here, too */
        if (params[1] > 0) {       /* max_bias: the mask is multiplied by the head's slope */
            int n = 1;
            while (2 * n <= a->heads_q) n *= 2;
            for (int h = 0; h < a->heads_q; h++)
                slopes[h] = h < n ? powf(powf(2, -params[1] / n), (float)(h + 1))
                                  : powf(powf(2, -params[1] / 2 / n), (float)(2 * (h - n) + 1));
            a->alibi_slopes = slopes, a->flags = FA_MASK_TIMES_SLOPE;
        }
    }
    if (sinks != NULL)
        a->sinks = sinks->data;
    return FA_OK;
}

/* ---- The operator. ---- */

/* Where ggml_graph_plan finds out how much wdata a node wants. Fewer threads than planned may come,
 * which do not always need less: this is enough for any of them. */
static size_t work_size(const struct ggml_tensor *dst, int n_tasks)
{
    fa_attention a;
    float slopes[MAX_HEADS];
    size_t bytes = 0;
    if (describe(&a, dst, slopes) != FA_OK || fa_attention_workspace_max(&a, n_tasks, &bytes) != FA_OK)
        return 0; /* and the operator will say why */
    return bytes;
}

/* What every thread calls. */
static fa_status flash_attn_ext(const struct ggml_compute_params *params, struct ggml_tensor *dst)
{
    fa_attention a;
    float slopes[MAX_HEADS];
    fa_status status = describe(&a, dst, slopes);
    if (status == FA_OK)
        status = fa_attention_part(&a, params->wdata, params->wsize, params->ith, params->nth);
    ggml_barrier(params->threadpool); /* also after an error: all threads get the same one, none waits for ever */
    if (status == FA_OK)
        status = fa_attention_finish(&a, params->wdata, params->wsize, params->ith, params->nth);
    return status; /* ggml has a barrier of its own after each node */
}

/* ---- The test. ---- */

static struct ggml_tensor tensor(enum ggml_type type, int64_t n0, int64_t n1, int64_t n2, void *data)
{
    size_t size = type == GGML_TYPE_F32 ? 4 : 2;
    struct ggml_tensor t = {.type = type, .ne = {n0, n1, n2, 1}, .data = data};
    t.nb[0] = size;
    for (int i = 1; i < 4; i++) t.nb[i] = t.nb[i - 1] * (size_t)t.ne[i - 1];
    return t;
}

struct thread {
    pthread_t thread;
    struct ggml_compute_params params;
    struct ggml_tensor *dst;
    fa_status status;
};

static void *enter(void *argument)
{
    struct thread *me = argument;
    me->status = flash_attn_ext(&me->params, me->dst);
    return NULL;
}

enum { HEADS = 6, KV_HEADS = 2, DIM = 32, DIM_V = 16, MAX_KEYS = 20000, MAX_ROWS = 40 };

/* One node, planned for 8 threads, on `nth`, against the definition. max_bias with 6 heads: both
 * kinds of slopes. */
static void node(int64_t rows, int64_t keys, float max_bias, float softcap, bool with_sinks, int nth)
{
    float *qx = recipe_numbers((size_t)(HEADS * rows * DIM), 1), *kx = recipe_numbers((size_t)(KV_HEADS * keys * DIM), 2);
    float *vx = recipe_numbers((size_t)(KV_HEADS * keys * DIM_V), 3), *o = recipe_memory((size_t)(HEADS * rows * DIM_V) * 4);
    uint16_t *m = recipe_memory((size_t)(rows * keys) * 2);
    float sink_values[HEADS] = {0, 1, -1, 2, -INFINITY, 0.5f};
    /* binary16: 0, small negative integers as distances, -infinity for keys behind the query */
    static const uint16_t distance[] = {0, 0xbc00, 0xc000, 0xc200}; /* 0 to -3 */
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < keys; j++)
            m[i * keys + j] = j > i + keys - rows ? 0xfc00 : distance[(i + j) % 4];

    struct ggml_tensor q = tensor(GGML_TYPE_F32, DIM, rows, HEADS, qx), k = tensor(GGML_TYPE_F32, DIM, keys, KV_HEADS, kx);
    struct ggml_tensor v = tensor(GGML_TYPE_F32, DIM_V, keys, KV_HEADS, vx), mask = tensor(GGML_TYPE_F16, keys, rows, 1, m);
    struct ggml_tensor sinks = tensor(GGML_TYPE_F32, HEADS, 1, 1, sink_values);
    struct ggml_tensor dst = tensor(GGML_TYPE_F32, DIM_V, HEADS, rows, o);
    float params[3] = {0.2f, max_bias, softcap};
    memcpy(dst.op_params, params, sizeof params);
    dst.src[0] = &q, dst.src[1] = &k, dst.src[2] = &v, dst.src[3] = &mask, dst.src[4] = with_sinks ? &sinks : NULL;

    struct ggml_threadpool pool;
    EXPECT(pthread_barrier_init(&pool.barrier, NULL, (unsigned)nth) == 0);
    size_t size = work_size(&dst, 8);
    void *wdata = recipe_memory(size);
    struct thread threads[8];
    for (int i = 0; i < nth; i++) {
        threads[i] = (struct thread){.params = {i, nth, size, wdata, &pool}, .dst = &dst};
        EXPECT(pthread_create(&threads[i].thread, NULL, enter, &threads[i]) == 0);
    }
    for (int i = 0; i < nth; i++) {
        pthread_join(threads[i].thread, NULL);
        EXPECT(threads[i].status == FA_OK);
    }
    pthread_barrier_destroy(&pool.barrier);

    double worst = 0, *p = recipe_memory((size_t)keys * sizeof *p);
    for (int64_t h = 0; h < HEADS; h++) {
        /* ALiBi's slopes for 6 heads: 4 of the series of 4, then every other one of that of 8 */
        double slope = max_bias == 0 ? 1 : pow(2, h < 4 ? -max_bias / 4 * (double)(h + 1) : -max_bias / 8 * (double)(2 * (h - 4) + 1));
        for (int64_t i = 0; i < rows; i++) {
            double sum = with_sinks ? exp((double)sink_values[h]) : 0;
            for (int64_t j = 0; j < keys; j++) {
                double s = 0;
                for (int64_t d = 0; d < DIM; d++)
                    s += (double)qx[(h * rows + i) * DIM + d] * (double)kx[(h / 3 * keys + j) * DIM + d];
                s *= (double)0.2f;
                if (softcap > 0) s = (double)softcap * tanh(s / (double)softcap);
                s -= slope * (double)((i + j) % 4);
                sum += p[j] = j > i + keys - rows ? 0 : exp(s);
            }
            for (int64_t d = 0; d < DIM_V; d++) {
                double want = 0;
                for (int64_t j = 0; j < keys; j++) want += p[j] / sum * (double)vx[(h / 3 * keys + j) * DIM_V + d];
                double error = fabs((double)o[(i * HEADS + h) * DIM_V + d] - want);
                if (!(error <= worst)) worst = error;
            }
        }
    }
    EXPECT(worst <= 2e-5);
    free(qx), free(kx), free(vx), free(o), free(m), free(p), free(wdata);
}

int main(void)
{
    for (int nth = 1; nth <= 7; nth += 3) {
        node(MAX_ROWS, 300, 0, 0, false, nth);
        node(MAX_ROWS, 300, 8, 15, true, nth);
        node(1, MAX_KEYS, 0, 0, true, nth); /* threads divide the keys: finish has something to do */
        node(1, MAX_KEYS, 8, 0, false, nth);
    }
    return recipe_failures != 0;
}
