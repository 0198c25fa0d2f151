/* OpenMP's threads, as a pool and as a team that is already at work: the recipes of
 * docs/embedding.md. */

#include <omp.h>

#include "recipe.h"

static int32_t width(void *ctx)
{
    (void)ctx;
    return omp_get_max_threads();
}

static void parallel_for(void *ctx, size_t n, fa_task task, void *arg)
{
    (void)ctx;
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < n; i++) task(arg, i);
}

/* To be called by every thread of a parallel region, which share all arguments. */
static fa_status attention_of_team(const fa_attention *a, void *ws, size_t ws_size)
{
    int32_t me = omp_get_thread_num(), all = omp_get_num_threads();
    fa_status status = fa_attention_part(a, ws, ws_size, me, all);
#pragma omp barrier
    if (status == FA_OK)
        status = fa_attention_finish(a, ws, ws_size, me, all);
#pragma omp barrier
    return status; /* and the output is complete */
}

static void check_team(struct recipe *r, int threads)
{
    size_t bytes = 0;
    EXPECT(fa_attention_workspace(&r->a, threads, &bytes) == FA_OK);
    void *ws = recipe_memory(bytes);
    int failed = 0;
    recipe_clear(r);
#pragma omp parallel num_threads(threads) reduction(+ : failed)
    {
        failed += omp_get_num_threads() != threads;
        failed += attention_of_team(&r->a, ws, bytes) != FA_OK;
        failed += memcmp(r->o, r->want, r->bytes) != 0; /* every thread finds it complete */
    }
    EXPECT(failed == 0);
    free(ws);
}

int main(void)
{
    omp_set_dynamic(0); /* as many threads as are asked for, on machines with fewer cores, too */
    struct recipe prompt = recipe_prompt(), token = recipe_token();
    fa_pool pool = {.struct_size = sizeof pool, .width = width, .parallel_for = parallel_for};
    for (int threads = 1; threads <= 8; threads++) {
        omp_set_num_threads(threads);
        recipe_check_pool(&pool, threads);
        check_team(&prompt, threads);
        check_team(&token, threads);
    }
    recipe_free(&prompt), recipe_free(&token);
    return recipe_failures != 0;
}
