/* The static library in one program with another archive made by Rust. Whichever of the two the
 * linker takes the standard library from, neither must notice. */

#include <flash_attention.h>

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unwind.h>

uint64_t other_sum(uint32_t n);
uint64_t other_arguments(void);

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "line %d: %s\n", __LINE__, #condition); \
            return 1; \
        } \
    } while (0)

enum { HEADS = 4, SEQ = 256, DIM = 64 };
static float q[HEADS * SEQ * DIM], k[HEADS * SEQ * DIM], v[HEADS * SEQ * DIM], once[HEADS * SEQ * DIM],
    again[HEADS * SEQ * DIM];
static int walked;

static fa_status call(fa_pool *pool, float *out);

static _Unwind_Reason_Code frame(struct _Unwind_Context *context, void *found)
{
    *(int *)found |= _Unwind_GetRegionStart(context) == (uintptr_t)call;
    return _URC_NO_REASON;
}

/* A pool that looks at the stack, in which the library's own frames are. */
static int32_t width(void *ctx)
{
    (void)ctx;
    return 2;
}

static void parallel_for(void *ctx, size_t n, fa_task task, void *arg)
{
    (void)ctx;
    _Unwind_Backtrace(frame, &walked);
    for (size_t i = 0; i < n; i++) task(arg, i);
}

__attribute__((noinline)) static fa_status call(fa_pool *pool, float *out)
{
    static char workspace[1 << 22];
    fa_attention a;
    fa_status status = fa_attention_init(&a, sizeof a);
    if (status != FA_OK)
        return status;
    a.batch = 1, a.heads_q = a.heads_kv = HEADS, a.dim_qk = a.dim_v = DIM, a.len_q = a.len_kv = SEQ;
    a.q = fa_head_first(q, FA_DTYPE_F32, HEADS, SEQ, DIM), a.k = fa_head_first(k, FA_DTYPE_F32, HEADS, SEQ, DIM);
    a.v = fa_head_first(v, FA_DTYPE_F32, HEADS, SEQ, DIM), a.o = fa_head_first(out, FA_DTYPE_F32, HEADS, SEQ, DIM);
    /* Not the last thing it does: its frame must be there. */
    status = fa_attention_run(&a, workspace, sizeof workspace, pool);
    return a.struct_size == sizeof a ? status : FA_ERR_INTERNAL;
}

/* With an argument: the other archive ends the process at a panic, so there must be none. */
int main(int argc, char **argv)
{
    (void)argv;
    for (int i = 0; i < HEADS * SEQ * DIM; i++)
        q[i] = (float)(i % 5), k[i] = (float)(i % 3), v[i] = (float)(i % 7);

    /* 10 digits, and 90 numbers of two. */
    CHECK(other_sum(100) == 190 + 190 && other_sum(10) == 10 + 200);
    fa_config cfg;
    CHECK(fa_config_auto(&cfg, DIM) == FA_OK);
    cfg.num_threads = 2;
    CHECK(fa_mha(&cfg, q, k, v, HEADS, SEQ, SEQ, again) == FA_OK && call(NULL, once) == FA_OK);
    fa_pool pool = {.struct_size = sizeof pool, .width = width, .parallel_for = parallel_for};
    CHECK(call(&pool, again) == FA_OK && memcmp(once, again, sizeof once) == 0);
    CHECK(walked);
    if (argc == 1)
        CHECK(other_sum(0) == 1000 + 200);
    CHECK(other_arguments() == (uint64_t)argc);

    /* A pool of the library's: its threads end with it. */
    fa_pool *own = NULL;
    CHECK(fa_pool_create(2, &own) == FA_OK && call(own, again) == FA_OK && memcmp(once, again, sizeof once) == 0);
    fa_pool_destroy(own);
    printf("%s\n", fa_isa());
    return 0;
}
