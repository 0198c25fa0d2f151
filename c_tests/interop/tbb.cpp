// Threads of TBB's arena: the recipe of docs/embedding.md.

#include <tbb/global_control.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include "recipe.h"

static int32_t width(void *) noexcept
{
    return tbb::this_task_arena::max_concurrency();
}

static void parallel_for(void *, size_t n, fa_task task, void *arg) noexcept
{
    try {
        tbb::this_task_arena::isolate([=] {
            tbb::parallel_for(
                size_t{0}, n, [=](size_t i) { task(arg, i); }, tbb::simple_partitioner());
        });
    } catch (...) {
        // TBB had no memory: calls that were not made are made up for on the calling thread.
    }
}

int main()
{
    tbb::global_control control(tbb::global_control::max_allowed_parallelism, 8);
    fa_pool pool = {sizeof(fa_pool), nullptr, width, parallel_for};
    for (int n : {1, 3, 8}) {
        tbb::task_arena arena(n);
        arena.execute([&] { recipe_check_pool(&pool, n); });
    }
    // From tasks of the same arena, several at once.
    tbb::task_arena arena(4);
    arena.execute([&] { tbb::parallel_for(0, 4, [&](int) {
        recipe token = recipe_token();
        size_t bytes = 0;
        bool good = fa_attention_workspace(&token.a, 4, &bytes) == FA_OK;
        void *ws = recipe_memory(bytes);
        recipe_clear(&token);
        good = good && fa_attention_run(&token.a, ws, bytes, &pool) == FA_OK;
        good = good && memcmp(token.o, token.want, token.bytes) == 0;
        free(ws);
        recipe_free(&token);
        if (!good) abort(); // EXPECT is for one thread
    }); });
    return recipe_failures != 0;
}
