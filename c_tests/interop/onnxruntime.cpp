// Threads of an ONNX Runtime session, from a custom operator and from a kernel inside ONNX Runtime:
// the recipes of docs/embedding.md.
//
// ONNX Runtime itself is not here: what the recipes use of it is declared below, with its names and
// signatures, and implemented with plain threads.

#include <atomic>
#include <cstddef>
#include <functional>
#include <thread>
#include <vector>

#include "recipe.h"

// ---- The stand-in. ----

struct OrtKernelContext {
    int threads;
};
struct OrtStatus {};
using OrtStatusPtr = OrtStatus *;

static std::atomic<int> statuses; // not released yet

static void for_each(std::ptrdiff_t total, int threads, const std::function<void(std::ptrdiff_t)> &fn)
{
    std::atomic<std::ptrdiff_t> next{0};
    auto work = [&] {
        for (std::ptrdiff_t i; (i = next++) < total;) fn(i);
    };
    std::vector<std::thread> others;
    for (int t = 1; t < threads; t++) others.emplace_back(work);
    work();
    for (std::thread &thread : others) thread.join();
}

// onnxruntime_c_api.h; a context of no threads stands for a call that fails.
struct OrtApi {
    OrtStatusPtr (*KernelContext_ParallelFor)(const OrtKernelContext *context, void (*fn)(void *, size_t),
                                              size_t total, size_t num_batch, void *usr_data);
    void (*ReleaseStatus)(OrtStatus *);
};

static OrtStatusPtr KernelContext_ParallelFor(const OrtKernelContext *context, void (*fn)(void *, size_t),
                                              size_t total, size_t, void *usr_data)
{
    if (context->threads == 0) {
        statuses++;
        return new OrtStatus;
    }
    for_each(static_cast<std::ptrdiff_t>(total), context->threads,
             [=](std::ptrdiff_t i) { fn(usr_data, static_cast<size_t>(i)); });
    return nullptr;
}

static void ReleaseStatus(OrtStatus *status)
{
    if (status != nullptr) statuses--;
    delete status;
}

// core/platform/threadpool.h
namespace onnxruntime {
namespace concurrency {
class ThreadPool {
public:
    explicit ThreadPool(int threads) : threads_(threads) {}
    static int DegreeOfParallelism(const ThreadPool *tp) { return tp == nullptr ? 1 : tp->threads_; }
    static void TrySimpleParallelFor(ThreadPool *tp, std::ptrdiff_t total,
                                     const std::function<void(std::ptrdiff_t)> &fn)
    {
        for_each(total, DegreeOfParallelism(tp), fn);
    }

private:
    int threads_;
};
} // namespace concurrency
} // namespace onnxruntime

// ---- In a custom operator: the public C API. ----

namespace custom_op {

struct Context {
    const OrtApi *api;
    const OrtKernelContext *kernel;
    int32_t threads; // what the session was given: the API has no function that tells
};

static int32_t width(void *ctx) noexcept
{
    return static_cast<Context *>(ctx)->threads;
}

static void parallel_for(void *ctx, size_t n, fa_task task, void *arg) noexcept
{
    const Context *c = static_cast<Context *>(ctx);
    // 0 batches: each call on its own. After an error all calls are made up for on this thread.
    if (OrtStatus *status = c->api->KernelContext_ParallelFor(c->kernel, task, n, 0, arg))
        c->api->ReleaseStatus(status);
}

} // namespace custom_op

// ---- In a kernel of ONNX Runtime: its class ThreadPool. ----

namespace kernel {

using onnxruntime::concurrency::ThreadPool;

static int32_t width(void *ctx) noexcept
{
    return ThreadPool::DegreeOfParallelism(static_cast<ThreadPool *>(ctx));
}

static void parallel_for(void *ctx, size_t n, fa_task task, void *arg) noexcept
{
    try {
        ThreadPool::TrySimpleParallelFor(static_cast<ThreadPool *>(ctx), static_cast<std::ptrdiff_t>(n),
                                         [=](std::ptrdiff_t i) { task(arg, static_cast<size_t>(i)); });
    } catch (...) {
        // No memory for its bookkeeping: calls that were not made are made up for on the calling
        // thread.
    }
}

} // namespace kernel

int main()
{
    const OrtApi api = {KernelContext_ParallelFor, ReleaseStatus};
    for (int32_t n : {1, 2, 5}) {
        OrtKernelContext context = {n};
        custom_op::Context c = {&api, &context, n};
        fa_pool pool = {sizeof(fa_pool), &c, custom_op::width, custom_op::parallel_for};
        recipe_check_pool(&pool, n);

        onnxruntime::concurrency::ThreadPool threads(n);
        pool = {sizeof(fa_pool), &threads, kernel::width, kernel::parallel_for};
        recipe_check_pool(&pool, n);
    }
    fa_pool nobody = {sizeof(fa_pool), nullptr, kernel::width, kernel::parallel_for};
    recipe_check_pool(&nobody, 1); // ONNX Runtime has no pool where a session has one thread

    // A call that fails: the problem is computed all the same, and the status released.
    OrtKernelContext broken = {0};
    custom_op::Context c = {&api, &broken, 3};
    fa_pool pool = {sizeof(fa_pool), &c, custom_op::width, custom_op::parallel_for};
    recipe token = recipe_token();
    size_t bytes = 0;
    EXPECT(fa_attention_workspace(&token.a, 3, &bytes) == FA_OK);
    void *ws = recipe_memory(bytes);
    recipe_clear(&token);
    EXPECT(fa_attention_run(&token.a, ws, bytes, &pool) == FA_OK);
    recipe_compare(&token);
    EXPECT(statuses == 0);
    free(ws);
    recipe_free(&token);
    return recipe_failures != 0;
}
