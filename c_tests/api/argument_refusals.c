/* Arguments besides the description: of the fa_attention functions, of fa_pool and of fa_merge. */

#include "described.h"

static int checked;

/* `call` is its text. */
static void cover_call(const char *call, const char *argument, const char *kind, fa_status status) {
    char place[100];
    snprintf(place, sizeof place, "%.*s(%s)", (int)strcspn(call, "("), call, argument);
    covered(place, kind, status);
}

/* One call, with such a value of an argument, that must have this result and change nothing. */
#define REFUSES(want, argument, kind, call)                                                              \
    do {                                                                                    \
        fill();                                                                             \
        described = good;                                                                   \
        fa_status status = call;                                                            \
        CHECK(status == want, "%s is %s", #call, fa_status_string(status));                 \
        CHECK(memcmp(&arena, &before, sizeof arena) == 0, "%s: memory has changed", #call); \
        CHECK(memcmp(&described, &good, sizeof good) == 0, "%s: the description has changed", #call); \
        cover_call(#call, argument, kind, want);                                                \
        checked++;                                                                          \
    } while (0)

static fa_attention *const a = &described.a;

static void null_descriptions(void) {
    char why[100] = "";
    size_t *bytes = AT(end, 0);
    REFUSES(FA_ERR_NULL, "a", "NULL", fa_attention_init(NULL, sizeof *a));
    REFUSES(FA_ERR_NULL, "a", "NULL", fa_attention_check(NULL, NULL, 0));
    REFUSES(FA_ERR_NULL, "a", "NULL", fa_attention_check(NULL, why, sizeof why));
    CHECK(why[0] != '\0', "no words");
    REFUSES(FA_OK, "why", "NULL", fa_attention_check(a, NULL, 100));
    REFUSES(FA_OK, "why_size", "zero", fa_attention_check(a, why, 0));
    fa_plan how = {.struct_size = sizeof how};
    REFUSES(FA_ERR_NULL, "a", "NULL", fa_attention_check_run(NULL, ws, sizeof ws, NULL, why, sizeof why));
    REFUSES(FA_OK, "why", "NULL", fa_attention_check_run(a, ws, sizeof ws, NULL, NULL, 100));
    REFUSES(FA_OK, "why_size", "zero", fa_attention_check_run(a, ws, sizeof ws, NULL, why, 0));
    REFUSES(FA_ERR_NULL, "a", "NULL", fa_attention_plan(NULL, 1, &how));
    REFUSES(FA_ERR_NULL, "plan", "NULL", fa_attention_plan(a, 1, NULL));
    REFUSES(FA_ERR_NULL, "a", "NULL", fa_attention_workspace(NULL, 1, bytes));
    REFUSES(FA_ERR_NULL, "bytes", "NULL", fa_attention_workspace(a, 1, NULL));
    REFUSES(FA_ERR_NULL, "a", "NULL", fa_attention_workspace_max(NULL, 1, bytes));
    REFUSES(FA_ERR_NULL, "bytes", "NULL", fa_attention_workspace_max(a, 1, NULL));
    REFUSES(FA_ERR_NULL, "a", "NULL", fa_attention_run(NULL, ws, sizeof ws, NULL));
    REFUSES(FA_ERR_NULL, "a", "NULL", fa_attention_part(NULL, ws, sizeof ws, 0, 1));
    REFUSES(FA_ERR_NULL, "a", "NULL", fa_attention_finish(NULL, ws, sizeof ws, 0, 1));
}

static void sizes_of_init(void) {
    REFUSES(FA_ERR_STRUCT_SIZE, "struct_size", "zero", fa_attention_init(a, 0));
    REFUSES(FA_ERR_STRUCT_SIZE, "struct_size", "other", fa_attention_init(a, 8));
    REFUSES(FA_ERR_STRUCT_SIZE, "struct_size", "other", fa_attention_init(a, sizeof *a - 1));
    REFUSES(FA_ERR_STRUCT_SIZE, "struct_size", "other", fa_attention_init(a, sizeof *a + 4097));
    REFUSES(FA_ERR_STRUCT_SIZE, "struct_size", "huge", fa_attention_init(a, (size_t)BIT(62)));
    REFUSES(FA_ERR_STRUCT_SIZE, "struct_size", "huge", fa_attention_init(a, SIZE_MAX));
    /* A later version's structure is filled as a whole. */
    memset(&described, 0xa5, sizeof described);
    CHECK(fa_attention_init(a, sizeof described) == FA_OK && a->struct_size == sizeof described, "a larger one");
    for (size_t i = 0; i < sizeof described.tail; i++) CHECK(described.tail[i] == 0, "byte %zu behind", i);
    CHECK(a->q_pos == FA_POS_END && a->window_left == FA_NO_LIMIT && a->window_right == FA_NO_LIMIT, "init");
    CHECK(a->q.data == NULL && a->lse == NULL && a->scale == 0 && a->block_kv == 0, "init");
}

static void part_numbers(void) {
    static const int32_t counts[] = {0, -1, 257, 258, INT32_MIN, INT32_MAX};
    static const int32_t numbers[][2] = {{-1, 1}, {1, 1}, {3, 3}, {256, 256}, {INT32_MIN, 3}, {INT32_MAX, 3}};
    size_t *bytes = AT(end, 0);
    for (size_t i = 0; i < COUNT(counts); i++) {
        fa_plan how = {.struct_size = sizeof how, .work_items = 12345}, before_it = how;
        REFUSES(FA_ERR_PART, "n_parts", kind_of_integer(counts[i], 4), fa_attention_plan(a, counts[i], &how));
        CHECK(memcmp(&how, &before_it, sizeof how) == 0, "the plan has changed");
        REFUSES(FA_ERR_PART, "n_parts", kind_of_integer(counts[i], 4), fa_attention_workspace(a, counts[i], bytes));
        REFUSES(FA_ERR_PART, "max_parts", kind_of_integer(counts[i], 4), fa_attention_workspace_max(a, counts[i], bytes));
        REFUSES(FA_ERR_PART, "n_parts", kind_of_integer(counts[i], 4), fa_attention_part(a, ws, sizeof ws, 0, counts[i]));
        REFUSES(FA_ERR_PART, "n_parts", kind_of_integer(counts[i], 4), fa_attention_finish(a, ws, sizeof ws, 0, counts[i]));
    }
    for (size_t i = 0; i < COUNT(numbers); i++) {
        REFUSES(FA_ERR_PART, "part", kind_of_integer(numbers[i][0], 4), fa_attention_part(a, ws, sizeof ws, numbers[i][0], numbers[i][1]));
        REFUSES(FA_ERR_PART, "part", kind_of_integer(numbers[i][0], 4), fa_attention_finish(a, ws, sizeof ws, numbers[i][0], numbers[i][1]));
    }
}

/* One key repeated so often that threads are worth their scratch memory. */
static fa_attention much(void) {
    fa_attention much = good.a;
    much.len_kv = 200000;
    much.k.stride[2] = much.v.stride[2] = 0;
    return much;
}

static void workspaces(void) {
    fill();
    fa_attention m = much();
    for (int32_t n = 2; n <= 256; n *= 2) {
        size_t bytes = 0, pool_bytes = 0;
        fa_pool pool = {.struct_size = sizeof pool, .width = width};
        CHECK(fa_attention_workspace(&m, n, &bytes) == FA_OK && bytes > 0, "%d parts", (int)n);
        CHECK(fa_attention_workspace(&m, PARTS, &pool_bytes) == FA_OK && pool_bytes > 0, "a pool");
        /* Where all the room for alignment is needed. */
        REFUSES(FA_ERR_WORKSPACE, "ws_size", "other", fa_attention_run(&m, ws + 1, pool_bytes - 1, &pool));
        REFUSES(FA_ERR_WORKSPACE, "ws_size", "zero", fa_attention_run(&m, ws, 0, &pool));
        REFUSES(FA_ERR_WORKSPACE, "ws", "NULL", fa_attention_run(&m, NULL, 0, &pool));
        REFUSES(FA_ERR_WORKSPACE, "ws", "NULL", fa_attention_run(&m, NULL, pool_bytes, &pool));
        REFUSES(FA_ERR_WORKSPACE, "ws_size", "other", fa_attention_check_run(&m, ws + 1, pool_bytes - 1, &pool, NULL, 0));
        REFUSES(FA_ERR_WORKSPACE, "ws_size", "zero", fa_attention_check_run(&m, ws, 0, &pool, NULL, 0));
        REFUSES(FA_ERR_WORKSPACE, "ws", "NULL", fa_attention_check_run(&m, NULL, pool_bytes, &pool, NULL, 0));
        for (int32_t i = 0; i < n; i += n - 1) {
            REFUSES(FA_ERR_WORKSPACE, "ws_size", "other", fa_attention_part(&m, ws, bytes - 1, i, n));
            REFUSES(FA_ERR_WORKSPACE, "ws_size", "zero", fa_attention_part(&m, ws, 0, i, n));
            REFUSES(FA_ERR_WORKSPACE, "ws", "NULL", fa_attention_part(&m, NULL, bytes, i, n));
            REFUSES(FA_ERR_WORKSPACE, "ws_size", "other", fa_attention_finish(&m, ws, bytes - 1, i, n));
            REFUSES(FA_ERR_WORKSPACE, "ws_size", "zero", fa_attention_finish(&m, ws, 0, i, n));
            REFUSES(FA_ERR_WORKSPACE, "ws", "NULL", fa_attention_finish(&m, NULL, bytes, i, n));
        }
    }
}

static void pools(void) {
    static const size_t sizes[] = {0, 1, 8, sizeof(fa_pool) - 1, SIZE_MAX, (size_t)BIT(62), 1 << 20};
    static const int32_t threads[] = {-1, 257, INT32_MIN, INT32_MAX};
    for (size_t i = 0; i < COUNT(sizes); i++) {
        fa_pool pool = {.struct_size = sizes[i], .width = width};
        REFUSES(FA_ERR_STRUCT_SIZE, "ws", "other", fa_attention_run(a, ws, sizeof ws, &pool));
        covered("fa_pool.struct_size", kind_of_integer((int64_t)sizes[i], 8), FA_ERR_STRUCT_SIZE);
    }
    struct {
        fa_pool pool;
        unsigned char tail[16];
    } later = {.pool = {.struct_size = sizeof later}, .tail = {[15] = 1}};
    REFUSES(FA_ERR_STRUCT_SIZE, "ws", "other", fa_attention_run(a, ws, sizeof ws, &later.pool));
    /* c_tests/threads/pools.c has pools of all kinds. */
    fill(), described = good;
    fa_pool none = {.struct_size = sizeof none};
    CHECK(fa_attention_run(a, ws, sizeof ws, &none) == FA_OK, "a pool of nothing");
    covered("fa_pool.ctx", "NULL", FA_OK), covered("fa_pool.width", "NULL", FA_OK);
    covered("fa_pool.parallel_for", "NULL", FA_OK);
    REFUSES(FA_ERR_NULL, "out", "NULL", fa_pool_create(1, NULL));
    for (size_t i = 0; i < COUNT(threads); i++) REFUSES(FA_ERR_PART, "n_threads", kind_of_integer(threads[i], 4), fa_pool_create(threads[i], AT(end, 0)));
    fa_pool_destroy(NULL);
    covered("fa_pool_destroy(pool)", "NULL", FA_OK);
    unsigned char room[sizeof(fa_pool *) + 1];
    fa_pool *made = NULL;
    CHECK(fa_pool_create(1, (fa_pool **)(void *)(room + 1)) == FA_OK, "a pool at an odd address");
    memcpy(&made, room + 1, sizeof made);
    fa_pool_destroy(made);
    covered("fa_pool_create(out)", "odd", FA_OK);
}

static void merges(void) {
    enum { R = 8 };
    float *o = arena.o, *lse = arena.lse, *o2 = arena.q, *lse2 = arena.k;
    REFUSES(FA_ERR_NULL, "o", "NULL", fa_merge(NULL, lse, o2, lse2, R, DV));
    REFUSES(FA_ERR_NULL, "lse", "NULL", fa_merge(o, NULL, o2, lse2, R, DV));
    REFUSES(FA_ERR_NULL, "o2", "NULL", fa_merge(o, lse, NULL, lse2, R, DV));
    REFUSES(FA_ERR_NULL, "lse2", "NULL", fa_merge(o, lse, o2, NULL, R, DV));
    REFUSES(FA_OK, "o", "NULL", fa_merge(NULL, NULL, NULL, NULL, 0, DV));
    REFUSES(FA_OK, "rows", "zero", fa_merge(o, lse, o2, lse2, 0, DV));
    REFUSES(FA_ERR_SHAPE, "rows", "negative", fa_merge(o, lse, o2, lse2, -1, DV));
    REFUSES(FA_ERR_SHAPE, "rows", "negative", fa_merge(o, lse, o2, lse2, INT64_MIN, DV));
    REFUSES(FA_ERR_SHAPE, "dim_v", "negative", fa_merge(o, lse, o2, lse2, R, -1));
    REFUSES(FA_ERR_SHAPE, "dim_v", "negative", fa_merge(o, lse, o2, lse2, R, INT64_MIN));
    REFUSES(FA_ERR_SHAPE, "rows", "zero", fa_merge(o, lse, o2, lse2, 0, -1));
    REFUSES(FA_ERR_ZERO_EXTENT, "dim_v", "zero", fa_merge(o, lse, o2, lse2, R, 0));
    REFUSES(FA_ERR_ZERO_EXTENT, "rows", "zero", fa_merge(o, lse, o2, lse2, 0, 0));
    REFUSES(FA_ERR_OVERFLOW, "rows", "huge", fa_merge(o, lse, o2, lse2, INT64_MAX, DV));
    REFUSES(FA_ERR_OVERFLOW, "dim_v", "huge", fa_merge(o, lse, o2, lse2, R, INT64_MAX));
    REFUSES(FA_ERR_OVERFLOW, "rows", "huge", fa_merge(o, lse, o2, lse2, INT64_MAX, INT64_MAX));
    REFUSES(FA_ERR_OVERFLOW, "rows", "huge", fa_merge(o, lse, o2, lse2, BIT(32), BIT(32)));
    REFUSES(FA_ERR_OVERFLOW, "rows", "huge", fa_merge(o, lse, o2, lse2, BIT(62), 4));
    REFUSES(FA_ERR_OVERFLOW, "rows", "huge", fa_merge(o, lse, o2, lse2, BIT(61), 1));
    REFUSES(FA_ERR_OVERLAP, "o2", "overlap", fa_merge(o, lse, o, lse2, R, DV));
    REFUSES(FA_ERR_OVERLAP, "o2", "overlap", fa_merge(o, lse, o + R * DV - 1, lse2, R, DV));
    REFUSES(FA_ERR_OVERLAP, "o", "overlap", fa_merge(o + R * DV - 1, lse, o, lse2, R, DV));
    REFUSES(FA_ERR_OVERLAP, "lse2", "overlap", fa_merge(o, lse, o2, lse, R, DV));
    REFUSES(FA_ERR_OVERLAP, "lse2", "overlap", fa_merge(o, lse, o2, lse + R - 1, R, DV));
    REFUSES(FA_ERR_OVERLAP, "lse", "overlap", fa_merge(o, lse + R - 1, o2, lse, R, DV));
    REFUSES(FA_ERR_OVERLAP, "lse2", "overlap", fa_merge(o, lse, o2, o + R * DV - 1, R, DV));
    REFUSES(FA_ERR_OVERLAP, "o2", "overlap", fa_merge(o, lse, lse + R - 1, lse2, R, DV));
    REFUSES(FA_ERR_OVERLAP, "lse", "overlap", fa_merge(o, o + R * DV - 1, o2, lse2, R, DV));
    REFUSES(FA_ERR_STRIDE, "o", "odd", fa_merge(AT(o, 1), lse, o2, lse2, R, DV));
    REFUSES(FA_ERR_STRIDE, "lse", "odd", fa_merge(o, AT(lse, 2), o2, lse2, R, DV));
    REFUSES(FA_ERR_STRIDE, "o2", "odd", fa_merge(o, lse, AT(q, 3), lse2, R, DV));
    REFUSES(FA_ERR_STRIDE, "lse2", "odd", fa_merge(o, lse, o2, AT(k, 1), R, DV));
    /* Side by side is fine, and so are the same states on both right sides. */
    CHECK(fa_merge(o, lse, o + R * DV, lse + R, R, DV) == FA_OK, "neighbours");
    CHECK(fa_merge(o, lse, o2, o2, R, DV) == FA_OK, "inputs may overlap");
}

int main(int argc, char **argv) {
    covered_begin(argc, argv);
    null_descriptions();
    sizes_of_init();
    part_numbers();
    workspaces();
    pools();
    merges();
    printf("%d calls with wrong arguments\n", checked);
    return check_result();
}
