/* OpenMP's threads as a pool, as in an engine that is parallel with OpenMP anyway. */

#include <omp.h>

#include "check.h"

static int32_t width(void *ctx) {
    (void)ctx;
    return omp_get_max_threads();
}

static void parallel_for(void *ctx, size_t n, fa_task task, void *arg) {
    (void)ctx;
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < n; i++) task(arg, i);
}

enum { B = 3, H = 4, S = 50, KEYS = 200, D = 64, O_SIZE = B * H * S * D, KV_SIZE = B * H * KEYS * D };
static float *q, *k, *v, *o;

static fa_attention problem(void) {
    fa_attention a;
    CHECK(fa_attention_init(&a, sizeof a) == FA_OK, "init");
    a.batch = B, a.heads_q = a.heads_kv = H, a.len_q = S, a.len_kv = KEYS, a.dim_qk = a.dim_v = D;
    a.q = (fa_tensor){.data = q, .stride = {H * S * D * 4, S * D * 4, D * 4}};
    a.o = a.q, a.o.data = o;
    a.k = (fa_tensor){.data = k, .stride = {H * KEYS * D * 4, KEYS * D * 4, D * 4}};
    a.v = a.k, a.v.data = v;
    a.window_right = 0;
    return a;
}

int main(void) {
    q = random_normal(O_SIZE), k = random_normal(KV_SIZE), v = random_normal(KV_SIZE);
    o = need(O_SIZE * 4);
    float *want = need(O_SIZE * 4);
    fa_pool pool = {.struct_size = sizeof pool, .width = width, .parallel_for = parallel_for};
    fa_attention a = problem();
    for (int threads = 0; threads <= 8; threads++) {
        if (threads > 0) omp_set_num_threads(threads);
        size_t bytes = 0;
        int32_t parts = threads > 0 ? width(NULL) : 1;
        CHECK(fa_attention_workspace(&a, parts, &bytes) == FA_OK, "workspace");
        void *ws = need(bytes);
        memset(o, 0xff, O_SIZE * 4);
        fa_status status = fa_attention_run(&a, ws, bytes, threads > 0 ? &pool : NULL);
        CHECK(status == FA_OK, "%d threads: %s", threads, fa_status_string(status));
        if (threads == 0) memcpy(want, o, O_SIZE * 4);
        CHECK(same_bits(o, want, O_SIZE), "%d threads: other bits", threads);
        free(ws);
    }
    free(q), free(k), free(v), free(o), free(want);
    return check_result();
}
