/* A pool of the library pthreadpool, which XNNPACK and others compute on: the recipe of
 * docs/embedding.md. */

#include <pthreadpool.h>

#include "recipe.h"

static int32_t width(void *ctx)
{
    return (int32_t)pthreadpool_get_threads_count((pthreadpool_t)ctx);
}

static void parallel_for(void *ctx, size_t n, fa_task task, void *arg)
{
    pthreadpool_parallelize_1d((pthreadpool_t)ctx, task, arg, n, 0);
}

static fa_pool pool_of(pthreadpool_t threads)
{
    return (fa_pool){.struct_size = sizeof(fa_pool), .ctx = threads, .width = width, .parallel_for = parallel_for};
}

int main(void)
{
    for (int32_t n = 1; n <= 5; n += 2) {
        pthreadpool_t threads = pthreadpool_create((size_t)n);
        EXPECT(threads != NULL);
        fa_pool pool = pool_of(threads);
        recipe_check_pool(&pool, n);
        pthreadpool_destroy(threads);
    }
    /* The library's word for "no pool" is NULL, here too. */
    fa_pool none = pool_of(NULL);
    recipe_check_pool(&none, 1);
    return recipe_failures != 0;
}
