/* fa_sparse_from_partitions: what each pair of a row and a key is said to see, one by one; lists
 * that attention takes; what is refused, and that a refusal changes nothing. */

#include "covered.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

static char why[200];

static fa_sparse_config initial(void) {
    fa_sparse_config cfg;
    memset(&cfg, 0xa5, sizeof cfg);
    CHECK(fa_sparse_config_init(&cfg, sizeof cfg) == FA_OK, "init");
    return cfg;
}

/* ---- Results ---- */

/* Whether a key lies in a listed block, by what the header says of its rows. */
static bool is_listed(const fa_sparse_config *cfg, const fa_sparse_lists *found, int64_t row, int64_t key) {
    int64_t first = row / cfg->kept_q * cfg->kept_q, block = key / cfg->kept_kv;
    for (int64_t i = first; i < first + cfg->kept_q && i < cfg->len_q; i++) {
        for (int64_t j = block * cfg->kept_kv; j < (block + 1) * cfg->kept_kv && j < cfg->len_kv; j++) {
            int64_t p = cfg->len_kv - cfg->len_q + i, away = p > j ? p - j : j - p;
            if (cfg->causal && j > p) continue;
            int64_t of_p = 0, of_j = 0;
            for (int64_t n = 0; n < cfg->num_partitions; n++) of_p += cfg->partitions[n] <= p, of_j += cfg->partitions[n] <= j;
            bool in_reach = of_p == of_j && (found->reach == FA_NO_LIMIT || away <= found->reach);
            if (away <= found->window || in_reach) return true;
        }
    }
    return false;
}

static int32_t some_of(int32_t *list, int64_t below, unsigned one_in, bool from_0) {
    int32_t n = 0;
    for (int32_t i = 0; i < below; i++) {
        if (random_bits() % one_in == 0 || (from_0 && i == 0)) list[n++] = i;
    }
    return n;
}

static int check_results(void) {
    enum { MOST = 60 };
    int checked = 0;
    for (int round = 0; round < 400; round++, checked++) {
        int32_t partitions[MOST], tokens[MOST];
        fa_sparse_config cfg = initial();
        cfg.len_kv = (int64_t)(random_bits() % MOST);
        cfg.len_q = round % 3 == 0 ? (int64_t)(random_bits() % (uint64_t)(cfg.len_kv + 1)) : cfg.len_kv;
        cfg.kept_q = 1 + (int64_t)(random_bits() % 9), cfg.kept_kv = 1 + (int64_t)(random_bits() % 9);
        cfg.partitions = partitions, cfg.boundary_tokens = tokens;
        cfg.num_partitions = some_of(partitions, cfg.len_kv, 12, true);
        cfg.num_boundary_tokens = some_of(tokens, cfg.len_kv, 7, false);
        cfg.max_edges = round % 2 ? FA_NO_LIMIT : (int64_t)(random_bits() % 5);
        cfg.window = (int64_t)(random_bits() % 6), cfg.causal = round % 4 != 0;
        cfg.schedule = round % 5 == 4 ? FA_SCHEDULE_NONE : round % 5;
        cfg.coherence = (uint32_t)(random_bits() % 400);
        cfg.concentration = (uint32_t)(random_bits() % 32769);
        cfg.min_density = 3277, cfg.max_density = 29491;

        fa_sparse_lists found = {.struct_size = sizeof found}, again = found;
        fa_status status = fa_sparse_from_partitions(&cfg, NULL, -1, &found, why, sizeof why);
        CHECK(status == FA_OK && why[0] == '\0', "round %d: %s", round, why);
        CHECK(found.kept_start == NULL && found.kept_blocks == NULL && found.columns == NULL && found.column_start == NULL,
              "round %d: lists without memory", round);
        CHECK(found.room == found.num_starts + 2 + found.num_columns + found.num_blocks, "round %d: room", round);
        /* Unaligned, exactly as large as asked for, with something on both sides. */
        size_t bytes = (size_t)found.room * 4;
        unsigned char *room = need(bytes + 16);
        memset(room, 0x5a, bytes + 16);
        int32_t *memory = (int32_t *)(void *)(room + 1 + round % 7);
        status = fa_sparse_from_partitions(&cfg, memory, found.room, &again, why, sizeof why);
        CHECK(status == FA_OK, "round %d: %s", round, why);
        for (size_t i = 0; i < bytes + 16; i++) {
            size_t at = (size_t)(1 + round % 7);
            CHECK((i >= at && i < at + bytes) || room[i] == 0x5a, "round %d: wrote beside the memory", round);
        }
        const unsigned char *places[] = {(const void *)again.kept_start, (const void *)again.column_start,
                                         (const void *)again.columns, (const void *)again.kept_blocks};
        const int64_t sizes[] = {again.num_starts, 2, again.num_columns, again.num_blocks};
        int32_t *list[4];
        for (int i = 0; i < 4; i++) {
            list[i] = need((size_t)sizes[i] * 4);
            CHECK(places[i] >= (unsigned char *)memory && places[i] + sizes[i] * 4 <= (unsigned char *)memory + bytes,
                  "round %d: list %d is elsewhere", round, i);
            memcpy(list[i], places[i], (size_t)sizes[i] * 4);
        }
        again.kept_start = again.kept_blocks = again.column_start = again.columns = NULL;
        CHECK(memcmp(&again, &found, sizeof found) == 0, "round %d: two answers", round);

        int64_t kept = cfg.max_edges >= 0 && cfg.max_edges < cfg.num_boundary_tokens ? cfg.max_edges : cfg.num_boundary_tokens;
        CHECK(found.num_columns == kept && list[1][0] == 0 && list[1][1] == kept, "round %d: columns", round);
        for (int64_t i = 0; i < kept; i++) {
            CHECK(list[2][i] == tokens[i * cfg.num_boundary_tokens / kept], "round %d: column %d", round, (int)i);
        }
        int64_t pairs = 0, column_pairs = 0, all = 0;
        CHECK(found.num_starts == (cfg.len_q + cfg.kept_q - 1) / cfg.kept_q + 1 && list[0][0] == 0, "round %d: starts", round);
        CHECK(list[0][found.num_starts - 1] == found.num_blocks, "round %d: end", round);
        for (int64_t row = 0; row < cfg.len_q; row++) {
            for (int64_t key = 0; key < cfg.len_kv; key++) {
                const int32_t *ends = list[0] + row / cfg.kept_q;
                bool in_list = false, in_column = false;
                for (int32_t i = ends[0]; i < ends[1]; i++) in_list |= list[3][i] == key / cfg.kept_kv;
                for (int64_t i = 0; i < kept; i++) in_column |= list[2][i] == key;
                CHECK(in_list == is_listed(&cfg, &found, row, key), "round %d: row %d, key %d", round, (int)row, (int)key);
                if (cfg.causal && key > cfg.len_kv - cfg.len_q + row) continue;
                all++, pairs += in_list || in_column, column_pairs += in_column && !in_list;
            }
        }
        CHECK(found.all_pairs == all && found.pairs == pairs && found.column_pairs == column_pairs, "round %d: pairs", round);
        CHECK(found.density == (all == 0 ? 1 : (double)pairs / (double)all), "round %d: density %g", round, found.density);
        bool dense = cfg.schedule != FA_SCHEDULE_NONE && (cfg.coherence < 30 || cfg.num_partitions < 2);
        CHECK(found.dense == dense, "round %d: dense %u", round, (unsigned)found.dense);
        CHECK(!dense || (pairs == all && found.time_saved == 0), "round %d: not dense", round);
        double cost = all == 0 ? 0 : (1.1 * (double)(pairs - column_pairs) + 1.3 * (double)column_pairs) / (double)all;
        double saved = dense || all == 0 || cost > 1 ? 0 : 1 - cost;
        CHECK(fabs(found.time_saved - saved) < 1e-12, "round %d: time %g instead of %g", round, found.time_saved, saved);
        for (int i = 0; i < 4; i++) free(list[i]);
        free(room);
    }
    return checked;
}

/* The lists as attention takes them: the same as a mask that hides the other blocks. */
static void check_attention(void) {
    enum { LEN = 200, DIM = 8, Q = 16, KV = 32 };
    const int32_t partitions[] = {0, 50, 120}, tokens[] = {0, 50, 60};
    fa_sparse_config cfg = initial();
    cfg.len_q = cfg.len_kv = LEN, cfg.kept_q = Q, cfg.kept_kv = KV;
    cfg.partitions = partitions, cfg.num_partitions = 3, cfg.window = 5;
    cfg.boundary_tokens = tokens, cfg.num_boundary_tokens = 3;
    fa_sparse_lists lists = {.struct_size = sizeof lists};
    CHECK(fa_sparse_from_partitions(&cfg, NULL, 0, &lists, NULL, 0) == FA_OK, "sizes");
    int32_t *memory = need((size_t)lists.room * 4);
    CHECK(fa_sparse_from_partitions(&cfg, memory, lists.room, &lists, NULL, 0) == FA_OK, "lists");

    float *x = random_normal(LEN * DIM), out[2][LEN * DIM];
    bool *mask = need(LEN * LEN);
    for (int pair = 0; pair < LEN * LEN; pair++) {
        int key = pair % LEN;
        mask[pair] = is_listed(&cfg, &lists, pair / LEN, key) || key == 0 || key == 50 || key == 60;
    }
    for (int by_mask = 0; by_mask < 2; by_mask++) {
        fa_attention a;
        CHECK(fa_attention_init(&a, sizeof a) == FA_OK, "init");
        a.batch = a.heads_q = a.heads_kv = 1, a.len_q = a.len_kv = LEN, a.dim_qk = a.dim_v = DIM;
        a.q = a.k = a.v = a.o = (fa_tensor){.data = x, .stride = {0, 0, DIM * 4}};
        a.o.data = out[by_mask], a.window_right = 0;
        if (by_mask) {
            a.mask = (fa_tensor){.data = mask, .stride = {0, 0, LEN}, .dtype = FA_DTYPE_BOOL8};
        } else {
            a.kept_start = lists.kept_start, a.kept_blocks = lists.kept_blocks, a.kept_q = Q, a.kept_kv = KV;
            a.column_start = lists.column_start, a.columns = lists.columns;
        }
        size_t bytes = 0;
        CHECK(fa_attention_check(&a, why, sizeof why) == FA_OK, "%s", why);
        CHECK(fa_attention_workspace(&a, 1, &bytes) == FA_OK, "workspace");
        void *ws = need(bytes);
        CHECK(fa_attention_run(&a, ws, bytes, NULL) == FA_OK, "run");
        free(ws);
    }
    for (int i = 0; i < LEN * DIM; i++) CHECK(fabsf(out[0][i] - out[1][i]) < 1e-5f, "number %d", i);
    free(memory), free(x), free(mask);
}

/* ---- Refusals ---- */

enum place { CFG, STRUCT_SIZE, LEN_Q, LEN_KV, KEPT_Q, KEPT_KV, PARTITIONS, NUM_PARTITIONS, TOKENS, NUM_TOKENS, MAX_EDGES,
             WINDOW, CAUSAL, SCHEDULE, COHERENCE, LOW, HIGH, CONCENTRATION, MIN, MAX, LATER, MEMORY, ROOM, LISTS,
             LISTS_SIZE, PARTITION, TOKEN };
static const char *const names[] = {"(cfg)", ".struct_size", ".len_q", ".len_kv", ".kept_q", ".kept_kv", ".partitions",
    ".num_partitions", ".boundary_tokens", ".num_boundary_tokens", ".max_edges", ".window", ".causal", ".schedule",
    ".coherence", ".coherence_low", ".coherence_high", ".concentration", ".min_density", ".max_density", ".struct_size",
    "(memory)", "(room)", "(lists)", "", ".partitions", ".boundary_tokens"};

/* What is done to arguments that are fine: a number, of lists the first entry, or, of pointers: */
enum { TO_NULL = 0, TO_ODD = 1, ONTO_PARTITIONS = 2, ONTO_TOKENS = 3 };
struct edit {
    enum place place;
    int64_t n;
};
struct row {
    fa_status want;
    struct edit edits[2];
    int count;
};

static const struct row rows[] = {
    {FA_ERR_NULL, {{CFG, TO_NULL}}, 1},
    {FA_OK, {{CFG, TO_ODD}}, 1},
    {FA_ERR_STRUCT_SIZE, {{STRUCT_SIZE, 0}}, 1},
    {FA_ERR_STRUCT_SIZE, {{STRUCT_SIZE, sizeof(fa_sparse_config) - 1}}, 1},
    {FA_ERR_STRUCT_SIZE, {{STRUCT_SIZE, sizeof(fa_sparse_config) + 4097}}, 1},
    {FA_ERR_STRUCT_SIZE, {{STRUCT_SIZE, INT64_MAX}}, 1},
    {FA_OK, {{STRUCT_SIZE, sizeof(fa_sparse_config) + 8}}, 1},
    {FA_ERR_STRUCT_SIZE, {{STRUCT_SIZE, sizeof(fa_sparse_config) + 8}, {LATER, 1}}, 2},
    {FA_OK, {{LEN_Q, 0}}, 1},
    {FA_OK, {{LEN_Q, 3}}, 1},
    {FA_ERR_SHAPE, {{LEN_Q, -1}}, 1},
    {FA_ERR_SHAPE, {{LEN_Q, INT64_MIN}}, 1},
    {FA_ERR_SHAPE, {{LEN_Q, 41}}, 1},
    {FA_ERR_SHAPE, {{LEN_Q, INT64_MAX}}, 1},
    {FA_ERR_SHAPE, {{LEN_KV, -1}}, 1},
    {FA_ERR_SHAPE, {{LEN_KV, 39}}, 1},
    {FA_ERR_LENGTHS, {{LEN_KV, 0}}, 1},
    {FA_ERR_LENGTHS, {{LEN_KV, 20}, {LEN_Q, 20}}, 2},
    {FA_ERR_OVERFLOW, {{LEN_KV, INT64_MAX}}, 1},
    {FA_ERR_OVERFLOW, {{LEN_KV, (int64_t)1 << 31}}, 1},
    {FA_OK, {{LEN_KV, INT32_MAX}}, 1},
    {FA_ERR_ZERO_EXTENT, {{KEPT_Q, 0}}, 1},
    {FA_ERR_SHAPE, {{KEPT_Q, -1}}, 1},
    {FA_OK, {{KEPT_Q, INT64_MAX}}, 1},
    {FA_ERR_ZERO_EXTENT, {{KEPT_KV, 0}}, 1},
    {FA_ERR_SHAPE, {{KEPT_KV, -1}}, 1},
    {FA_OK, {{KEPT_KV, INT64_MAX}}, 1},
    {FA_ERR_NULL, {{PARTITIONS, TO_NULL}}, 1},
    {FA_OK, {{PARTITIONS, TO_ODD}}, 1},
    {FA_OK, {{NUM_PARTITIONS, 0}}, 1},
    {FA_OK, {{NUM_PARTITIONS, 0}, {PARTITIONS, TO_NULL}}, 2},
    {FA_ERR_SHAPE, {{NUM_PARTITIONS, -1}}, 1},
    {FA_ERR_LENGTHS, {{NUM_PARTITIONS, 41}}, 1},
    {FA_ERR_LENGTHS, {{NUM_PARTITIONS, INT64_MAX}}, 1},
    {FA_ERR_LENGTHS, {{PARTITION, 1}}, 1},
    {FA_ERR_LENGTHS, {{PARTITION, -1}}, 1},
    {FA_ERR_LENGTHS, {{PARTITION, INT32_MIN}}, 1},
    {FA_ERR_LENGTHS, {{PARTITION, INT32_MAX}}, 1},
    {FA_ERR_NULL, {{TOKENS, TO_NULL}}, 1},
    {FA_OK, {{TOKENS, TO_ODD}}, 1},
    {FA_OK, {{NUM_TOKENS, 0}}, 1},
    {FA_OK, {{NUM_TOKENS, 0}, {TOKENS, TO_NULL}}, 2},
    {FA_ERR_SHAPE, {{NUM_TOKENS, -1}}, 1},
    {FA_ERR_LENGTHS, {{NUM_TOKENS, 41}}, 1},
    {FA_ERR_LENGTHS, {{NUM_TOKENS, INT64_MAX}}, 1},
    {FA_OK, {{TOKEN, 0}}, 1},
    {FA_ERR_LENGTHS, {{TOKEN, -1}}, 1},
    {FA_ERR_LENGTHS, {{TOKEN, 12}}, 1},
    {FA_ERR_LENGTHS, {{TOKEN, INT32_MAX}}, 1},
    {FA_OK, {{MAX_EDGES, 0}}, 1},
    {FA_OK, {{MAX_EDGES, FA_NO_LIMIT}}, 1},
    {FA_OK, {{MAX_EDGES, INT64_MAX}}, 1},
    {FA_ERR_SHAPE, {{MAX_EDGES, -2}}, 1},
    {FA_ERR_SHAPE, {{MAX_EDGES, INT64_MIN}}, 1},
    {FA_OK, {{WINDOW, 0}}, 1},
    {FA_OK, {{WINDOW, INT64_MAX}}, 1},
    {FA_ERR_WINDOW, {{WINDOW, -1}}, 1},
    {FA_OK, {{CAUSAL, 0}}, 1},
    {FA_OK, {{CAUSAL, UINT32_MAX}}, 1},
    {FA_ERR_RESERVED, {{SCHEDULE, -1}}, 1},
    {FA_ERR_RESERVED, {{SCHEDULE, 4}}, 1},
    {FA_ERR_RESERVED, {{SCHEDULE, INT32_MAX}}, 1},
    {FA_OK, {{SCHEDULE, FA_SCHEDULE_NONE}}, 1},
    {FA_OK, {{COHERENCE, 0}}, 1},
    {FA_OK, {{COHERENCE, UINT32_MAX}}, 1},
    {FA_OK, {{LOW, 0}}, 1},
    {FA_ERR_SHAPE, {{LOW, 301}}, 1},
    {FA_ERR_SHAPE, {{LOW, UINT32_MAX}}, 1},
    {FA_ERR_SHAPE, {{HIGH, 0}}, 1},
    {FA_OK, {{HIGH, 0}, {LOW, 0}}, 2},
    {FA_OK, {{HIGH, UINT32_MAX}}, 1},
    {FA_OK, {{CONCENTRATION, 32768}}, 1},
    {FA_ERR_SHAPE, {{CONCENTRATION, 32769}}, 1},
    {FA_ERR_SHAPE, {{CONCENTRATION, UINT32_MAX}}, 1},
    {FA_ERR_SHAPE, {{MIN, 30001}}, 1},
    {FA_ERR_SHAPE, {{MIN, UINT32_MAX}}, 1},
    {FA_ERR_SHAPE, {{MAX, 0}}, 1},
    {FA_ERR_SHAPE, {{MAX, 32769}}, 1},
    {FA_ERR_SHAPE, {{MAX, UINT32_MAX}}, 1},
    {FA_OK, {{MEMORY, TO_NULL}}, 1},
    {FA_OK, {{MEMORY, TO_NULL}, {ROOM, -1}}, 2},
    {FA_OK, {{MEMORY, TO_ODD}}, 1},
    {FA_ERR_OVERLAP, {{MEMORY, ONTO_PARTITIONS}}, 1},
    {FA_ERR_OVERLAP, {{MEMORY, ONTO_TOKENS}}, 1},
    {FA_ERR_SHAPE, {{ROOM, -1}}, 1},
    {FA_ERR_SHAPE, {{ROOM, 0}}, 1},
    {FA_ERR_SHAPE, {{ROOM, 1}}, 1},
    /* Only what is needed is used of it. */
    {FA_OK, {{ROOM, INT64_MAX}}, 1},
    {FA_ERR_NULL, {{LISTS, TO_NULL}}, 1},
    {FA_OK, {{LISTS, TO_ODD}}, 1},
    {FA_ERR_STRUCT_SIZE, {{LISTS_SIZE, 0}}, 1},
    {FA_ERR_STRUCT_SIZE, {{LISTS_SIZE, sizeof(fa_sparse_lists) - 1}}, 1},
    {FA_ERR_STRUCT_SIZE, {{LISTS_SIZE, sizeof(fa_sparse_lists) + 4097}}, 1},
    {FA_OK, {{LISTS_SIZE, sizeof(fa_sparse_lists) + 8}}, 1},
};

/* All memory that a call is given. */
static struct {
    fa_sparse_config cfg;
    uint64_t later[600];
    unsigned char gap0[7];
    unsigned char odd_cfg[sizeof(fa_sparse_config)];
    int32_t partitions[3];
    unsigned char gap1[64];
    int32_t tokens[41];
    unsigned char gap2[65];
    unsigned char odd_lists[sizeof(fa_sparse_lists)];
    fa_sparse_lists lists;
    uint64_t later_lists[600];
    int32_t memory[2000];
    unsigned char gap3[8];
} arena, before;

static void check_row(const struct row *row) {
    int n = (int)(row - rows);
    for (size_t i = 0; i < sizeof arena; i++) ((unsigned char *)&arena)[i] = (unsigned char)(i * 7 + i / 5 + 1);
    memset(&arena.cfg, 0, sizeof arena.cfg + sizeof arena.later);
    memset(&arena.lists, 0, sizeof arena.lists + sizeof arena.later_lists);
    arena.cfg = initial();
    arena.cfg.len_q = arena.cfg.len_kv = 40, arena.cfg.kept_q = 4, arena.cfg.kept_kv = 8;
    memcpy(arena.partitions, (int32_t[]){0, 10, 25}, 12);
    memcpy(arena.tokens, (int32_t[]){3, 12, 26}, 12);
    arena.cfg.partitions = arena.partitions, arena.cfg.num_partitions = 3;
    arena.cfg.boundary_tokens = arena.tokens, arena.cfg.num_boundary_tokens = 3;
    arena.cfg.window = 2, arena.cfg.schedule = FA_SCHEDULE_LINEAR, arena.cfg.coherence = 100;
    arena.cfg.min_density = 3000, arena.cfg.max_density = 30000;
    arena.lists.struct_size = sizeof arena.lists;
    const void *cfg = &arena.cfg;
    unsigned char *lists = (unsigned char *)&arena.lists;
    int32_t *memory = arena.memory;
    int64_t room = COUNT(arena.memory);
    bool is_huge = false;
    for (int i = 0; i < row->count; i++) {
        struct edit e = row->edits[i];
        bool is_pointer = e.place == CFG || e.place == PARTITIONS || e.place == TOKENS || e.place == MEMORY || e.place == LISTS;
        const char *kind = is_pointer ? e.n == TO_NULL ? "NULL" : e.n == TO_ODD ? "odd" : "overlap"
                                      : kind_of_integer(e.n, e.place >= CAUSAL && e.place <= MAX ? 4 : 8);
        switch (e.place) {
        case STRUCT_SIZE: arena.cfg.struct_size = (size_t)e.n; break;
        case LEN_Q: arena.cfg.len_q = e.n; break;
        case LEN_KV: arena.cfg.len_kv = e.n, is_huge = e.n > 100; break;
        case KEPT_Q: arena.cfg.kept_q = e.n; break;
        case KEPT_KV: arena.cfg.kept_kv = e.n; break;
        case PARTITIONS:
            /* Onto bytes of another list, where it is again. */
            memmove((unsigned char *)arena.partitions + 1, arena.partitions, 12);
            arena.cfg.partitions = e.n == TO_NULL ? NULL : (const int32_t *)(const void *)((unsigned char *)arena.partitions + 1);
            break;
        case NUM_PARTITIONS: arena.cfg.num_partitions = e.n; break;
        case TOKENS:
            memmove((unsigned char *)arena.tokens + 1, arena.tokens, 12);
            arena.cfg.boundary_tokens = e.n == TO_NULL ? NULL : (const int32_t *)(const void *)((unsigned char *)arena.tokens + 1);
            break;
        case NUM_TOKENS: arena.cfg.num_boundary_tokens = e.n; break;
        case MAX_EDGES: arena.cfg.max_edges = e.n; break;
        case WINDOW: arena.cfg.window = e.n; break;
        case CAUSAL: arena.cfg.causal = (uint32_t)e.n; break;
        case SCHEDULE: arena.cfg.schedule = (int32_t)e.n; break;
        case COHERENCE: arena.cfg.coherence = (uint32_t)e.n; break;
        case LOW: arena.cfg.coherence_low = (uint32_t)e.n; break;
        case HIGH: arena.cfg.coherence_high = (uint32_t)e.n; break;
        case CONCENTRATION: arena.cfg.concentration = (uint32_t)e.n; break;
        case MIN: arena.cfg.min_density = (uint32_t)e.n; break;
        case MAX: arena.cfg.max_density = (uint32_t)e.n; break;
        case LATER: arena.later[0] = 1; break;
        case ROOM: room = e.n; break;
        case LISTS_SIZE: arena.lists.struct_size = (size_t)e.n; break;
        case PARTITION: arena.partitions[0] = (int32_t)e.n; break;
        case TOKEN: arena.tokens[0] = (int32_t)e.n; break;
        case CFG: cfg = e.n == TO_NULL ? NULL : (void *)arena.odd_cfg; break;
        case LISTS:
            memcpy(arena.odd_lists, &arena.lists, sizeof arena.lists);
            lists = e.n == TO_NULL ? NULL : arena.odd_lists;
            break;
        case MEMORY:
            memory = e.n == TO_NULL ? NULL
                     : e.n == TO_ODD ? (int32_t *)(void *)((unsigned char *)memory + 1)
                     : e.n == ONTO_PARTITIONS ? arena.partitions + 2 : (int32_t *)(void *)((unsigned char *)arena.tokens - 3);
            break;
        }
        if ((row->count > 1 && row->want != FA_OK) || e.place == LISTS_SIZE || e.place == PARTITION || e.place == TOKEN) continue;
        char place[60];
        snprintf(place, sizeof place, "%s%s", names[e.place][0] == '.' ? "fa_sparse_config" : "fa_sparse_from_partitions", names[e.place]);
        covered(place, kind, row->want);
        if (e.place == MEMORY && e.n == ONTO_PARTITIONS) covered("fa_sparse_config.partitions", kind, row->want);
        if (e.place == MEMORY && e.n == ONTO_TOKENS) covered("fa_sparse_config.boundary_tokens", kind, row->want);
    }
    /* So many keys have fewer blocks with these. */
    if (is_huge && row->want == FA_OK) arena.cfg.kept_kv = 1 << 24;
    memcpy(arena.odd_cfg, &arena.cfg, sizeof arena.cfg);
    before = arena;
    why[0] = 'x';
    fa_status got = fa_sparse_from_partitions(cfg, memory, room, (fa_sparse_lists *)(void *)lists, why, sizeof why);
    CHECK(got == row->want, "row %d: %d (%s: %s) instead of %d", n, (int)got, fa_status_string(got), why, (int)row->want);
    CHECK(why[0] != 'x' && (got == FA_OK) == (why[0] == '\0'), "row %d: words \"%s\"", n, why);
    if (got != FA_OK) {
        CHECK(memcmp(&arena, &before, sizeof arena) == 0, "row %d: memory has changed", n);
        return;
    }
    fa_sparse_lists found;
    memcpy(&found, lists, sizeof found);
    CHECK(found.struct_size >= sizeof found && found.room > 0 && found.room < (int64_t)COUNT(arena.memory), "row %d: lists", n);
    /* Only the lists have changed, and of memory only what was needed. */
    memcpy(lists, (unsigned char *)&before + (lists - (unsigned char *)&arena), sizeof found);
    if (memory != NULL) {
        CHECK((const void *)found.kept_start == (void *)memory, "row %d: elsewhere", n);
        memcpy(memory, (unsigned char *)&before + ((unsigned char *)memory - (unsigned char *)&arena), (size_t)found.room * 4);
    } else {
        CHECK(found.kept_start == NULL, "row %d: elsewhere", n);
    }
    CHECK(memcmp(&arena, &before, sizeof arena) == 0, "row %d: memory has changed", n);
}

static void check_init(void) {
    struct {
        unsigned char front[1], cfg[sizeof(fa_sparse_config) + 8], back[8];
    } fenced, fence;
    memset(&fenced, 0xa5, sizeof fenced), memset(&fence, 0xa5, sizeof fence);
#define INIT(want, place, kind, call)                                                               \
    do {                                                                                            \
        fa_status got = fa_sparse_config_init call;                                                 \
        CHECK(got == want, "%s: %d", #call, (int)got);                                              \
        covered("fa_sparse_config_init(" place ")", kind, got);                                     \
        CHECK(got == FA_OK || memcmp(&fenced, &fence, sizeof fence) == 0, "%s: changed", #call);    \
    } while (0)
    fa_sparse_config *odd = (fa_sparse_config *)(void *)fenced.cfg;
    INIT(FA_ERR_NULL, "cfg", "NULL", (NULL, sizeof *odd));
    INIT(FA_ERR_STRUCT_SIZE, "struct_size", "zero", (odd, 0));
    INIT(FA_ERR_STRUCT_SIZE, "struct_size", "odd", (odd, sizeof *odd - 1));
    INIT(FA_ERR_STRUCT_SIZE, "struct_size", "huge", (odd, SIZE_MAX));
    INIT(FA_OK, "cfg", "odd", (odd, sizeof *odd + 8));
    fa_sparse_config cfg, want = {.struct_size = sizeof cfg + 8, .kept_q = 64, .kept_kv = 64, .max_edges = 20, .causal = 1,
                                  .coherence_low = 30, .coherence_high = 300, .max_density = 32768};
    memcpy(&cfg, fenced.cfg, sizeof cfg);
    CHECK(memcmp(&cfg, &want, sizeof cfg) == 0, "initial values");
    for (size_t i = 0; i < 8; i++) CHECK(fenced.cfg[sizeof cfg + i] == 0 && fenced.back[i] == 0xa5, "behind");
}

static void check_words(void) {
    fa_sparse_config cfg = initial();
    fa_sparse_lists lists = {.struct_size = sizeof lists};
    cfg.len_q = 1;
    char small[8];
    memset(small, 'x', sizeof small);
    CHECK(fa_sparse_from_partitions(&cfg, NULL, 0, &lists, small, 6) == FA_ERR_SHAPE, "len_q");
    CHECK(memcmp(small, "len_q\0xx", 8) == 0, "cut off: %.8s", small);
    CHECK(fa_sparse_from_partitions(&cfg, NULL, 0, &lists, small, 0) == FA_ERR_SHAPE && small[0] == 'l', "no room");
    cfg.len_q = 0;
    CHECK(fa_sparse_from_partitions(&cfg, NULL, 0, &lists, NULL, 5) == FA_OK && lists.room == 3, "nothing at all");
    covered("fa_sparse_from_partitions(why)", "NULL", FA_OK), covered("fa_sparse_from_partitions(why_size)", "zero", FA_OK);
}

int main(int argc, char **argv) {
    covered_begin(argc, argv);
    check_init();
    for (size_t r = 0; r < COUNT(rows); r++) check_row(&rows[r]);
    check_words();
    check_attention();
    int checked = check_results();
    printf("%d results, %zu refusals and their neighbours checked\n", checked, COUNT(rows));
    return check_result();
}
