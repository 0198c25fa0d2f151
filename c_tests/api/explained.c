/* fa_attention_check_run explains every refusal of fa_attention_run, and fa_attention_plan says in
 * numbers what the sentence of a success says in words. The tables of the other tests compare all
 * descriptions that they refuse, too: described.h. */

#include "described.h"

static fa_attention *const a = &described.a;
static bool seen[FA_ERR_PAGE + 1];

/* run and check_run have this status, and the words speak of what is wrong. */
static void explains(const char *what, fa_status want, const char *word, size_t ws_size, void *memory, const fa_pool *pool) {
    char why[400], small[20];
    fa_attention before_it = *a;
    memset(why, 'x', sizeof why), memset(small, 'x', sizeof small);
    fa_status got = fa_attention_run(a, memory, ws_size, pool);
    CHECK(got == want, "%s: run is %s", what, fa_status_string(got));
    if (got != FA_OK) CHECK(untouched(got), "%s: memory has changed", what);
    fill();
    got = fa_attention_check_run(a, memory, ws_size, pool, why, sizeof why);
    CHECK(got == want && memchr(why, '\0', sizeof why) != NULL, "%s: check_run is %s", what, fa_status_string(got));
    CHECK(strstr(why, word) != NULL, "%s: no %s in \"%s\"", what, word, why);
    CHECK(memcmp(&arena, &before, sizeof arena) == 0 && memcmp(a, &before_it, sizeof before_it) == 0, "%s: memory", what);
    CHECK(fa_attention_check_run(a, memory, ws_size, pool, NULL, 0) == want, "%s: no words", what);
    CHECK(fa_attention_check_run(a, memory, ws_size, pool, small, 10) == want && small[9] == '\0' && small[10] == 'x',
          "%s: ten bytes", what);
    seen[want] = true;
}

#define EXPLAINS(status, word, ...)                                                             \
    do {                                                                                        \
        fill(), described = good;                                                               \
        __VA_ARGS__;                                                                            \
        explains(#__VA_ARGS__, status, word, sizeof ws, ws, NULL);                              \
    } while (0)

static void descriptions(void) {
    static const int32_t wrong_lens[] = {3, -1}, pages[] = {0, 2};
    static const float nan_scale[] = {NAN};
    static const fa_quant quant = {.scale = nan_scale};
    EXPLAINS(FA_OK, "thread", a->len_q = LQ);
    EXPLAINS(FA_ERR_NULL, "v: NULL", a->v.data = NULL);
    EXPLAINS(FA_ERR_ZERO_EXTENT, "dim_v", a->dim_v = 0);
    EXPLAINS(FA_ERR_OVERFLOW, "k: more bytes", a->len_kv = BIT(61));
    EXPLAINS(FA_ERR_SOFTMAX_SCALE, "scale = NaN", a->scale = NAN);
    EXPLAINS(FA_ERR_QUANT_SCALE, "k.quant", a->k.dtype = FA_DTYPE_I8, a->k.quant = &quant);
    EXPLAINS(FA_ERR_RESERVED, "reserved0 = 1", a->reserved0 = 1);
    EXPLAINS(FA_ERR_OVERLAP, "o: shares memory with k", a->o.data = arena.k);
    EXPLAINS(FA_ERR_DTYPE, "q.dtype = 99", a->q.dtype = 99);
    EXPLAINS(FA_ERR_SHAPE, "heads_q", a->heads_q = 3);
    EXPLAINS(FA_ERR_STRIDE, "q.stride[1] = -4", a->q.stride[1] = -4);
    EXPLAINS(FA_ERR_LENGTHS, "kv_lens[1] = -1", a->kv_lens = wrong_lens);
    EXPLAINS(FA_ERR_STRUCT_SIZE, "struct_size = 8", a->struct_size = 8);
    EXPLAINS(FA_ERR_WINDOW, "window_left = -2", a->window_left = -2);
    EXPLAINS(FA_ERR_SOFTCAP, "softcap", a->softcap = -1);
    EXPLAINS(FA_ERR_PAGE, "block_table[1] = 2", a->block_table = pages, a->table_stride = 1, a->page_size = LKV, a->num_pages = 2);
    CHECK(fa_attention_check_run(NULL, ws, sizeof ws, NULL, NULL, 0) == FA_ERR_NULL, "no description");
}

/* One key repeated so often that threads are worth their scratch memory, in blocks that need more
 * than there is on the stack. */
static void make_much(void) {
    fill(), described = good;
    a->len_kv = 200000, a->k.stride[2] = a->v.stride[2] = 0, a->block_kv = 1024;
}

static void workspaces_and_pools(void) {
    char number[50];
    size_t alone = 0, bytes = 0;
    fa_pool pool = {.struct_size = sizeof pool, .width = width};
    make_much();
    CHECK(fa_attention_workspace(a, 1, &alone) == FA_OK && fa_attention_workspace(a, PARTS, &bytes) == FA_OK, "workspace");
    CHECK(alone > 0 && bytes > alone && bytes <= sizeof ws, "%zu and %zu bytes", alone, bytes);
    explains("enough", FA_OK, "thread", bytes, ws, &pool);
    make_much(), snprintf(number, sizeof number, "ws_size = %zu: fewer", alone);
    explains("the workspace of one thread", FA_ERR_WORKSPACE, number, alone, ws, &pool);
    make_much(), explains("no workspace", FA_ERR_WORKSPACE, "ws: NULL", bytes, NULL, &pool);
    make_much(), explains("no bytes", FA_ERR_WORKSPACE, "ws_size = 0: fewer", 0, ws, NULL);
    make_much(), explains("alone", FA_OK, "1 thread", alone, ws, NULL);
    /* Whoever needs none, needs none. */
    fill(), described = good, a->len_q = 0;
    explains("nothing to do", FA_OK, " 0 groups", 0, NULL, NULL);

    fill(), described = good;
    fa_pool wrong = {.struct_size = 3};
    explains("another structure", FA_ERR_STRUCT_SIZE, "pool->struct_size = 3", sizeof ws, ws, &wrong);
    struct {
        fa_pool pool;
        unsigned char tail[16];
    } later = {.pool = {.struct_size = sizeof later}, .tail = {[15] = 1}};
    fill(), described = good;
    explains("a pool of a later version", FA_ERR_STRUCT_SIZE, "fields of a later version", sizeof ws, ws, &later.pool);
}

/* No program returns FA_ERR_ISA but where FA_MAX_ISA is wrong: isa_env.c. Nothing is allocated,
 * nothing is numbered, and there is no way to an internal error. */
static void all_statuses(void) {
    static const fa_status elsewhere[] = {FA_ERR_ISA, FA_ERR_MEMORY, FA_ERR_INTERNAL, FA_ERR_PART, FA_ERR_UNSUPPORTED};
    for (size_t i = 0; i < COUNT(elsewhere); i++) seen[elsewhere[i]] = true;
    for (size_t i = 0; i < COUNT(seen); i++) CHECK(seen[i], "%s is not tried", fa_status_string((int32_t)i));
}

/* ---- The plan. ---- */

static fa_plan plan_of(int32_t parts) {
    fa_plan how;
    memset(&how, 0xa5, sizeof how);
    how.struct_size = sizeof how;
    size_t bytes = 0;
    CHECK(fa_attention_plan(a, parts, &how) == FA_OK && how.struct_size == sizeof how, "%d parts", (int)parts);
    CHECK(fa_attention_workspace(a, parts, &bytes) == FA_OK && bytes == how.workspace_bytes, "%zu bytes", how.workspace_bytes);
    CHECK(how.threads >= 1 && how.threads <= parts && how.threads_awake >= 1 && how.threads_awake <= how.threads, "%d threads",
          (int)how.threads);
    CHECK(how.reserved0 == 0 && how.tile_rows >= 1 && how.tile_keys >= 1 && how.tile_heads >= 1 && how.key_ranges >= 1 &&
          how.tile_kv_heads >= 1, "sizes");
    return how;
}

/* The plan for one part, as fa_attention_check puts it. */
static void check_words_of(const fa_plan *how, const char *path) {
    char why[400], begin[100], threads[50];
    CHECK(fa_attention_check(a, why, sizeof why) == FA_OK, "%s", why);
    snprintf(begin, sizeof begin, "%s %s, %s (", how->isa, how->compute, path);
    snprintf(threads, sizeof threads, "1 thread of %zu bytes", how->thread_bytes);
    CHECK(strncmp(why, begin, strlen(begin)) == 0 && strstr(why, threads) != NULL, "%s and %s, not \"%s\"", begin, threads, why);
}

static void plans(void) {
    fill(), described = good;
    a->batch = 1, a->len_q = a->len_kv = 4000, a->k.stride[2] = a->v.stride[2] = 0, a->q.stride[2] = 0, a->lse = NULL;
    fa_plan how = plan_of(1);
    CHECK(how.path == FA_PATH_PREFILL && how.threads == 1 && how.threads_awake == 1 && how.key_ranges == 1, "prefill alone");
    CHECK(how.work_items == HQ / how.tile_heads * ((4000 + how.tile_rows - 1) / how.tile_rows), "%lld tiles",
          (long long)how.work_items);
    CHECK(strcmp(how.compute, "f32") == 0 && how.thread_bytes > 0 && how.workspace_bytes >= how.thread_bytes, "scratch");
    check_words_of(&how, "prefill");
    fa_plan three = plan_of(3);
    CHECK(three.threads == 3 && three.workspace_bytes > how.workspace_bytes, "%d threads", (int)three.threads);
    a->block_q = 40, a->block_kv = 24;
    how = plan_of(1);
    CHECK(how.tile_rows == 40 && how.tile_keys == 24, "tiles of %lld x %lld", (long long)how.tile_rows, (long long)how.tile_keys);

    make_much(), a->len_q = 1;
    how = plan_of(1);
    CHECK(how.path == FA_PATH_DECODE && how.tile_heads == HQ / HKV && how.tile_rows == how.tile_heads && how.work_items == B * HKV,
          "decode: %lld items", (long long)how.work_items);
    check_words_of(&how, "decode");
    CHECK(plan_of(PARTS).key_ranges > 1, "keys are not split");
    a->k.dtype = a->v.dtype = FA_DTYPE_I8;
    how = plan_of(1);
    check_words_of(&how, "decode");

    fill(), described = good, a->len_q = 0;
    how = plan_of(4);
    CHECK(how.work_items == 0 && how.workspace_bytes == 0, "nothing to do");

    /* A larger structure is that of a later version. */
    fill(), described = good;
    struct {
        fa_plan plan;
        unsigned char tail[40];
    } later;
    memset(&later, 0xa5, sizeof later), later.plan.struct_size = sizeof later;
    CHECK(fa_attention_plan(a, 1, &later.plan) == FA_OK && later.plan.struct_size == sizeof later, "a later version");
    for (size_t i = 0; i < sizeof later.tail; i++) CHECK(later.tail[i] == 0, "byte %zu", i);
    static const size_t sizes[] = {0, 8, sizeof(fa_plan) - 1, sizeof(fa_plan) + 4097, SIZE_MAX};
    for (size_t i = 0; i < COUNT(sizes); i++) {
        fa_plan wrong, copy;
        memset(&wrong, 0xa5, sizeof wrong), wrong.struct_size = sizes[i];
        memcpy(&copy, &wrong, sizeof copy);
        CHECK(fa_attention_plan(a, 1, &wrong) == FA_ERR_STRUCT_SIZE && memcmp(&copy, &wrong, sizeof copy) == 0, "a plan of %zu bytes",
              sizes[i]);
    }
    fa_plan untouched_by = {.struct_size = sizeof untouched_by, .tile_keys = 77};
    a->scale = NAN;
    CHECK(fa_attention_plan(a, 1, &untouched_by) == FA_ERR_SOFTMAX_SCALE && untouched_by.tile_keys == 77, "refused");
}

int main(void) {
    descriptions();
    workspaces_and_pools();
    all_statuses();
    plans();
    return check_result();
}
