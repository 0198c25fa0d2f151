/* Unaligned addresses: a description, and everything that its pointers lead to, outputs included,
 * gives the same bits there. */

#include "described.h"

static fa_attention *const a = &described.a;

static struct {
    unsigned char bytes[1 << 17];
    size_t used;
} odd;

static void *at_odd(const void *from, size_t bytes) {
    odd.used |= 1;
    unsigned char *at = odd.bytes + odd.used;
    odd.used += bytes;
    CHECK(odd.used <= sizeof odd.bytes, "room");
    memcpy(at, from, bytes);
    return at;
}

/* Moves what a pointer leads to, if it leads anywhere. */
static const void *moved(const char *field, const void *from, size_t bytes) {
    if (from == NULL) return NULL;
    cover(field, "odd", FA_OK);
    return at_odd(from, bytes);
}

static const fa_quant *moved_quant(const char *name, const fa_quant *from) {
    char field[40];
    if (from == NULL) return NULL;
    fa_quant g = *from;
#define FIELD(what) (snprintf(field, sizeof field, "%s.quant%s", name, what), field)
    g.scale = moved(FIELD(".scale"), g.scale, sizeof MANY), g.zero = moved(FIELD(".zero"), g.zero, sizeof MANY);
    return moved(FIELD(""), &g, sizeof g);
}

static void move_tensor(const char *name, fa_tensor *t, size_t bytes) {
    char field[20];
    snprintf(field, sizeof field, "%s.data", name);
    t->data = (void *)(uintptr_t)moved(field, t->data, bytes);
    t->quant = moved_quant(name, t->quant);
}

static const void *the_lists(const char *field, const int32_t *list, size_t n) {
    return moved(field, list, n * sizeof *list);
}

/* The description `described`, here and there. */
static void same_at_odd_addresses(const char *what) {
    static float o[COUNT(arena.o)], lse[COUNT(arena.lse)], weights[COUNT(arena.weights)];
    size_t bytes = 0, odd_bytes = 0, *bytes_at_odd;
    unsigned char room[sizeof bytes + 1];
    memset(arena.o, 0xff, sizeof arena.o);
    CHECK(workspace(a) == FA_OK && run(a) == FA_OK, "%s", what);
    CHECK(fa_attention_workspace(a, PARTS, &bytes) == FA_OK, "%s", what);
    memcpy(o, arena.o, sizeof o), memcpy(lse, arena.lse, sizeof lse);
    memcpy(weights, arena.weights, sizeof weights);

    fa_attention m = *a;
    odd.used = 0;
    move_tensor("q", &m.q, sizeof arena.q), move_tensor("k", &m.k, sizeof arena.k), move_tensor("v", &m.v, sizeof arena.v);
    move_tensor("o", &m.o, sizeof arena.o), move_tensor("mask", &m.mask, B * HQ * LQ * LKV * 4);
    m.lse = (float *)(uintptr_t)moved("lse", m.lse, sizeof arena.lse);
    m.alibi_slopes = moved("alibi_slopes", m.alibi_slopes, B * HQ * 4);
    m.sinks = moved("sinks", m.sinks, HQ * 4);
    m.block_mask = moved("block_mask", m.block_mask, B * HQ * LQ * LKV);
    m.cu_len_q = the_lists("cu_len_q", m.cu_len_q, B + 1), m.cu_len_kv = the_lists("cu_len_kv", m.cu_len_kv, B + 1);
    m.kv_lens = the_lists("kv_lens", m.kv_lens, B), m.block_table = the_lists("block_table", m.block_table, B);
    m.block_table_start = the_lists("block_table_start", m.block_table_start, B + 1);
    m.kv_starts = the_lists("kv_starts", m.kv_starts, B), m.q_positions = the_lists("q_positions", m.q_positions, B);
    m.spans = the_lists("spans", m.spans, 2 * B), m.span_starts = the_lists("span_starts", m.span_starts, B + 1);
    m.kept_start = the_lists("kept_start", m.kept_start, 2), m.kept_blocks = the_lists("kept_blocks", m.kept_blocks, 2);
    m.column_start = the_lists("column_start", m.column_start, 2), m.columns = the_lists("columns", m.columns, 2);
    move_tensor("weights", &m.weights, sizeof arena.weights);
    m.weight_heads = the_lists("weight_heads", m.weight_heads, 2), m.weight_rows = the_lists("weight_rows", m.weight_rows, 2);
    const fa_attention *there = at_odd(&m, sizeof m);

    bytes_at_odd = (void *)(room + 1);
    CHECK(check(there) == FA_OK, "%s", what);
    fa_plan how = {.struct_size = sizeof how}, *how_at_odd = at_odd(&how, sizeof how);
    CHECK(fa_attention_plan(a, PARTS, &how) == FA_OK && fa_attention_plan(there, PARTS, how_at_odd) == FA_OK, "%s", what);
    CHECK(memcmp(how_at_odd, &how, sizeof how) == 0 && how.workspace_bytes == bytes, "%s: another plan", what);
    CHECK(fa_attention_workspace(there, PARTS, bytes_at_odd) == FA_OK, "%s", what);
    memcpy(&odd_bytes, bytes_at_odd, sizeof odd_bytes);
    CHECK(odd_bytes == bytes, "%s: %zu bytes, not %zu", what, odd_bytes, bytes);
    CHECK(fa_attention_workspace_max(there, PARTS, bytes_at_odd) == FA_OK, "%s", what);
    memcpy(&odd_bytes, bytes_at_odd, sizeof odd_bytes);
    CHECK(odd_bytes >= bytes, "%s: up to %d parts need %zu bytes", what, PARTS, odd_bytes);
    fa_pool pool = {.struct_size = sizeof pool, .width = width};
    CHECK(fa_attention_check_run(there, ws + 1, SIZE_MAX, at_odd(&pool, sizeof pool), NULL, 0) == FA_OK, "%s", what);
    for (int way = 0; way < 3; way++) {
        memset(m.o.data, 0xff, sizeof arena.o), memset(m.lse, 0xff, sizeof arena.lse);
        if (m.weights.data != NULL) memset(m.weights.data, 0xff, sizeof arena.weights);
        fa_status status = way == 0 ? fa_attention_run(there, ws + 1, SIZE_MAX, NULL)
                           : way == 1 ? fa_attention_run(there, ws + 1, bytes, at_odd(&pool, sizeof pool)) : FA_OK;
        for (int32_t i = 0; way == 2 && i < 2 * PARTS && status == FA_OK; i++) {
            status = i < PARTS ? fa_attention_part(there, ws + 1, SIZE_MAX, i, PARTS)
                               : fa_attention_finish(there, ws + 1, SIZE_MAX, i - PARTS, PARTS);
        }
        CHECK(status == FA_OK, "%s: %s", what, fa_status_string(status));
        for (size_t row = 0; m.weights.data != NULL && row < B * 2 * 2; row++) {
            size_t at = row * LKV * sizeof(float);
            CHECK(memcmp((char *)m.weights.data + at, (char *)weights + at, LKV * sizeof(float)) == 0, "%s, way %d: other weights", what, way);
        }
        CHECK(memcmp(m.o.data, o, sizeof o) == 0 && memcmp(m.lse, lse, sizeof lse) == 0, "%s, way %d: other bits", what,
              way);
    }
}

static void odd_addresses(void) {
    static const char *const odd_arguments[] = {
        "fa_attention_init(a)", "fa_attention_check(a)", "fa_attention_check_run(a)", "fa_attention_check_run(ws)",
        "fa_attention_check_run(pool)", "fa_attention_plan(a)", "fa_attention_plan(plan)", "fa_attention_workspace(a)", "fa_attention_workspace(bytes)",
        "fa_attention_workspace_max(a)", "fa_attention_workspace_max(bytes)",
        "fa_attention_run(a)", "fa_attention_run(ws)", "fa_attention_run(pool)", "fa_attention_part(a)",
        "fa_attention_part(ws)", "fa_attention_finish(a)", "fa_attention_finish(ws)",
    };
    static const char *const huge[] = {"fa_attention_check_run(ws_size)", "fa_attention_run(ws_size)", "fa_attention_part(ws_size)",
                                       "fa_attention_finish(ws_size)"};
    for (size_t i = 0; i < COUNT(odd_arguments); i++) covered(odd_arguments[i], "odd", FA_OK);
    for (size_t i = 0; i < COUNT(huge); i++) covered(huge[i], "huge", FA_OK);
    covered("fa_attention_run(pool)", "NULL", FA_OK), covered("fa_attention_check_run(pool)", "NULL", FA_OK);

    fill(), described = good;
    static float numbers[B * HQ * LQ * LKV];
    static unsigned char cells[B * HQ * LQ * LKV];
    for (size_t i = 0; i < COUNT(numbers); i++) numbers[i] = (float)i / 100, cells[i] = i % 3 != 0;
    a->mask.data = numbers, a->mask.stride[2] = LKV * 4, a->mask.stride[1] = LQ * LKV * 4;
    a->alibi_slopes = numbers + 3, a->sinks = numbers + 5, a->kv_lens = INTS(7, 9);
    a->block_mask = cells, a->block_mask_q = 2, a->block_mask_kv = 4, a->block_mask_stride[1] = 9;
    same_at_odd_addresses("masks");

    fill(), described = good;
    a->cu_len_q = INTS(0, 5, 10), a->cu_len_kv = INTS(1, 9, 17), a->lse_stride[1] = 2 * LQ;
    same_at_odd_addresses("ragged");

    fill(), described = good;
    a->kept_start = INTS(0, 2), a->kept_blocks = INTS(0, 2), a->kept_q = LQ, a->kept_kv = 3;
    same_at_odd_addresses("lists of blocks");

    fill(), described = good;
    a->column_start = INTS(0, 2), a->columns = INTS(1, 5), a->window_left = 1;
    same_at_odd_addresses("single keys");

    fill(), described = good;
    a->kv_starts = INTS(1, 3), a->q_positions = INTS(2, 4), a->window_left = 1, a->prefix_keys = 2;
    a->spans = INTS(1, 6, 3, 5), a->span_starts = INTS(0, 1, 2);
    same_at_odd_addresses("positions and spans");

    fill(), described = good;
    a->weights = (fa_tensor){.data = arena.weights, .stride = {4 * LKV * 4, 2 * LKV * 4, LKV * 4}};
    a->weight_heads = INTS(1, 3), a->num_weight_heads = 2, a->weight_rows = INTS(-3, -1), a->num_weight_rows = 2;
    same_at_odd_addresses("weights");

    fill(), described = good;
    a->block_table = INTS(1, 0), a->block_table_start = INTS(0, 1, 2), a->page_size = LKV, a->num_pages = 2;
    same_at_odd_addresses("pages");

    /* The zeros begin one further on, and as many of them are moved. */
    static const float scales[COUNT(MANY) + 1] = {0.25f, 0.5f, 0.125f, 1};
    static const fa_quant granular = {scales, scales + 1, {0, 1, 0, 0}, 1, 1}, coarse = {scales, NULL, {0, 1, 0, 0}, 1, 1};
    for (int zeros = 0; zeros < 2; zeros++) {
        fill(), described = good;
        fa_tensor *tensors[] = {&a->q, &a->k, &a->v};
        for (size_t i = 0; i < COUNT(tensors); i++) {
            tensors[i]->dtype = FA_DTYPE_I8, tensors[i]->quant = zeros ? &granular : &coarse;
        }
        same_at_odd_addresses(zeros ? "scales and zeros" : "scales");
    }
    fill(), described = good;
    a->o.dtype = FA_DTYPE_Q15, a->o.quant = &coarse;
    same_at_odd_addresses("scales of the output");

    unsigned char room[sizeof(fa_attention) + 1];
    fa_attention *there = (void *)(room + 1), empty;
    CHECK(fa_attention_init(&empty, sizeof empty) == FA_OK && fa_attention_init(there, sizeof empty) == FA_OK, "init");
    CHECK(memcmp(room + 1, &empty, sizeof empty) == 0, "init at an odd address");
}

int main(int argc, char **argv) {
    covered_begin(argc, argv);
    odd_addresses();
    return check_result();
}
