/* Nothing beyond the last used element of a tensor or an array of scales is touched, nor before the
 * first: each lies against a page that may not be touched, at its end or at its beginning. */

#define _DEFAULT_SOURCE

#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "blocks.h"

/* Room for this many bytes, against a forbidden page on one side. */
static void *guarded(size_t bytes, bool at_end) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t room = (bytes + page - 1) / page * page;
    unsigned char *base = mmap(NULL, room + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED || mprotect(base + page, room, PROT_READ | PROT_WRITE) != 0) exit(2);
    return at_end ? base + page + room - bytes : base + page;
}

static void release(void *data, size_t bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    unsigned char *base = (unsigned char *)((uintptr_t)data / page * page) - page;
    munmap(base, (bytes + page - 1) / page * page + 2 * page);
}

static float *guarded_normal(size_t n, bool at_end) {
    float *from = random_normal(n), *to = guarded(n * 4, at_end);
    memcpy(to, from, n * 4);
    free(from);
    return to;
}

enum { HEADS = 2, PAGE = 3 };

/* What is [entry][head][token][dim] becomes [entry][head][dim][token], in the same room. */
static void transpose(fa_tensor *t, size_t tokens, size_t d, size_t element) {
    t->stride[2] = (int64_t)element, t->stride_dim = (int32_t)(tokens * element);
    t->stride[1] = (int64_t)(tokens * d * element), t->stride[0] = HEADS * t->stride[1];
}

/* Features that need more than a field. */
enum { PAGES = 3, KEPT = 6, PAGES_OF_HEADS, COLUMNS, FEATURES };

static void run(size_t lq, size_t lkv, size_t d, bool at_end, int feature) {
    bool in_pages = feature == PAGES || feature == PAGES_OF_HEADS;
    size_t pages = (lkv + PAGE - 1) / PAGE, kv = in_pages ? pages * PAGE : lkv;
    size_t nq = HEADS * lq * d, nkv = HEADS * kv * d, nmask = lq * lkv;
    float *q = guarded_normal(nq, at_end), *k = guarded_normal(nkv, at_end);
    float *v = guarded_normal(nkv, at_end), *o = guarded(nq * 4, at_end);
    float *lse = guarded(HEADS * lq * 4, at_end), *sinks = guarded_normal(HEADS, at_end);
    float *mask = guarded_normal(nmask, at_end), *weights = guarded(HEADS * nmask * 4, at_end);
    unsigned char *bytes = guarded(nmask, at_end), *blocks = guarded((lq + 1) / 2 * ((lkv + 4) / 5), at_end);
    int32_t *table = guarded(pages * 4, at_end);
    /* Each head has the pages in an order of its own; each block of two rows sees each second one
     * of five keys. */
    int32_t *tables = guarded(HEADS * pages * 4, at_end);
    size_t lists = (lq + 1) / 2, of_list = (lkv + 9) / 10;
    int32_t *kept_start = guarded((lists + 1) * 4, at_end), *kept = guarded(lists * of_list * 4, at_end);
    /* Every fifth key, beside a window. */
    size_t singles = (lkv + 4) / 5;
    int32_t *column_start = guarded(2 * 4, at_end), *columns = guarded(singles * 4, at_end);
    column_start[0] = 0, column_start[1] = (int32_t)singles;
    for (size_t i = 0; i < singles; i++) columns[i] = (int32_t)(i * 5);
    memset(bytes, 1, nmask);
    memset(blocks, 1, (lq + 1) / 2 * ((lkv + 4) / 5));
    for (size_t i = 0; i < pages; i++) table[i] = (int32_t)(pages - 1 - i);
    for (size_t i = 0; i < HEADS * pages; i++) tables[i] = (int32_t)(i < pages ? i : HEADS * pages - 1 - i);
    for (size_t i = 0; i <= lists; i++) kept_start[i] = (int32_t)(i * of_list);
    for (size_t i = 0; i < lists * of_list; i++) kept[i] = (int32_t)(i % of_list * 2);

    fa_attention a;
    CHECK(fa_attention_init(&a, sizeof a) == FA_OK, "init");
    a.batch = 1, a.heads_q = a.heads_kv = HEADS;
    a.len_q = (int64_t)lq, a.len_kv = (int64_t)lkv, a.dim_qk = a.dim_v = (int64_t)d;
    a.q.data = q, a.k.data = k, a.v.data = v, a.o.data = o, a.lse = lse, a.sinks = sinks;
    a.q.stride[1] = a.o.stride[1] = (int64_t)(lq * d * 4), a.q.stride[2] = a.o.stride[2] = (int64_t)(d * 4);
    a.k.stride[1] = a.v.stride[1] = (int64_t)(kv * d * 4), a.k.stride[2] = a.v.stride[2] = (int64_t)(d * 4);
    a.lse_stride[1] = (int64_t)lq, a.lse_stride[2] = 1;
    a.mask.stride[2] = (int64_t)(lkv * 4);
    a.weights.data = weights;
    a.weights.stride[1] = (int64_t)(nmask * 4), a.weights.stride[2] = (int64_t)(lkv * 4);
    switch (feature) {
        case 0: a.window_right = 0; break;
        case 1: a.mask.data = mask; break;
        case 2: a.mask.data = bytes, a.mask.dtype = FA_DTYPE_BOOL8, a.mask.stride[2] = (int64_t)lkv; break;
        case PAGES: /* [page][head][token][dim] */
        case PAGES_OF_HEADS:
            a.block_table = table, a.table_stride = a.num_pages = (int64_t)pages, a.page_size = PAGE;
            if (feature == PAGES_OF_HEADS)
                a.block_table = tables, a.table_stride *= HEADS, a.table_head_stride = (int64_t)pages;
            a.k.stride[0] = a.v.stride[0] = (int64_t)(HEADS * PAGE * d * 4);
            a.k.stride[1] = a.v.stride[1] = (int64_t)(PAGE * d * 4);
            break;
        case 4: transpose(&a.k, lkv, d, 4), transpose(&a.v, lkv, d, 4); break;
        case KEPT:
            a.kept_start = kept_start, a.kept_blocks = kept, a.kept_q = 2, a.kept_kv = 5;
            break;
        case COLUMNS:
            a.column_start = column_start, a.columns = columns, a.window_left = 3, a.window_right = 0;
            a.weights.data = NULL;
            break;
        default:
            a.block_mask = blocks, a.block_mask_q = 2, a.block_mask_kv = 5;
            a.block_mask_stride[2] = (int64_t)((lkv + 4) / 5);
    }
    a.q_bytes = a.o_bytes = (int64_t)(nq * 4), a.k_bytes = a.v_bytes = (int64_t)(nkv * 4);
    a.lse_bytes = (int64_t)(HEADS * lq * 4), a.weights_bytes = (int64_t)(HEADS * nmask * 4);
    a.mask_bytes = (int64_t)(a.mask.dtype == FA_DTYPE_BOOL8 ? nmask : nmask * 4);
    size_t size = 0;
    CHECK(fa_attention_workspace(&a, 1, &size) == FA_OK, "workspace");
    void *ws = guarded(size, at_end);
    CHECK(fa_attention_run(&a, ws, size, NULL) == FA_OK, "feature %d", feature);
    /* What there is no memory for is not looked at. */
    fa_attention more = a;
    more.heads_q++, more.heads_kv++;
    CHECK(fa_attention_run(&more, ws, size, NULL) == FA_ERR_SHAPE, "feature %d, a head more", feature);
    for (size_t i = 0; i < nq; i++) CHECK(isfinite(o[i]), "feature %d, element %zu", feature, i);

    for (size_t i = 0; feature != COLUMNS && i < HEADS * nmask; i++)
        CHECK(weights[i] >= 0 && weights[i] <= 1, "feature %d, weight %zu", feature, i);

    release(weights, HEADS * nmask * 4), release(column_start, 2 * 4), release(columns, singles * 4);
    release(tables, HEADS * pages * 4), release(kept_start, (lists + 1) * 4), release(kept, lists * of_list * 4);
    release(ws, size), release(table, pages * 4), release(blocks, (lq + 1) / 2 * ((lkv + 4) / 5));
    release(bytes, nmask), release(mask, nmask * 4), release(sinks, HEADS * 4);
    release(lse, HEADS * lq * 4), release(o, nq * 4), release(v, nkv * 4), release(k, nkv * 4);
    release(q, nq * 4);
}

/* ---- Storage types. ---- */

/* Room for random bytes of which any two or four are a small number, whatever the type. */
static void *guarded_bytes(size_t n, bool at_end) {
    unsigned char *to = guarded(n, at_end);
    for (size_t i = 0; i < n; i++) to[i] = random_bits() & 0x3f;
    return to;
}

static size_t row_bytes(int32_t dtype, size_t dim) {
    static const size_t bytes[] = {4, 2, 2};
    if (is_of_8_bits(dtype)) return dim;
    if (dtype == FA_DTYPE_Q15) return 2 * dim;
    return is_in_blocks(dtype) ? dim / 32 * (size_t)bytes_of_block(dtype) : dim * bytes[dtype];
}

struct typed {
    fa_tensor tensor;
    fa_quant quant;
    size_t bytes, values;
};

/* [entry][head][token][dim]; 8-bit integers have a scale and a zero for each entry, head, two
 * tokens and five channels, or for some of that. */
static void typed(struct typed *t, int32_t dtype, size_t entries, size_t tokens, size_t dim, int grain,
                  bool at_end) {
    size_t row = row_bytes(dtype, dim), count[] = {entries, HEADS, (tokens + 1) / 2, (dim + 4) / 5};
    memset(t, 0, sizeof *t);
    t->bytes = entries * HEADS * tokens * row;
    t->tensor.dtype = dtype, t->tensor.data = guarded_bytes(t->bytes, at_end);
    t->tensor.stride[0] = (int64_t)(HEADS * tokens * row);
    t->tensor.stride[1] = (int64_t)(tokens * row), t->tensor.stride[2] = (int64_t)row;
    if (!may_have_scales(dtype)) return;
    t->values = 1;
    for (int axis = 3; axis >= 0; axis--) {
        if (!(grain >> axis & 1)) continue;
        t->quant.stride[axis] = (int64_t)t->values;
        t->values *= count[axis];
    }
    t->quant.group_tokens = 2, t->quant.group_dims = 5;
    t->quant.scale = guarded_bytes(t->values * 4, at_end), t->quant.zero = is_integer(dtype) ? guarded_bytes(t->values * 4, at_end) : NULL;
    t->tensor.quant = &t->quant;
}

static void release_typed(struct typed *t) {
    release(t->tensor.data, t->bytes);
    if (!may_have_scales(t->tensor.dtype)) return;
    release((void *)(uintptr_t)t->quant.scale, t->values * 4);
    if (t->quant.zero != NULL) release((void *)(uintptr_t)t->quant.zero, t->values * 4);
}

enum layout { DENSE, PAGED, TRANSPOSED, PAGES_TRANSPOSED };

static void run_typed(int32_t dtype, size_t lq, size_t lkv, size_t d, bool at_end, enum layout layout, int grain) {
    bool paged = layout == PAGED || layout == PAGES_TRANSPOSED;
    size_t pages = paged ? (lkv + PAGE - 1) / PAGE : 1, tokens = paged ? PAGE : lkv, size = 0;
    /* Also outputs and masks of 16 bits; outputs may have scales. */
    int32_t half = dtype == FA_DTYPE_F32 || dtype == FA_DTYPE_F16 ? FA_DTYPE_BF16 : FA_DTYPE_F16;
    bool is_fraction = dtype == FA_DTYPE_Q15;
    struct typed q, k, v, o, mask;
    typed(&q, dtype, 1, lq, d, grain, at_end), typed(&o, is_fraction ? dtype : half, 1, lq, d, is_fraction ? grain : 0, at_end);
    typed(&k, dtype, pages, tokens, d, grain, at_end), typed(&v, dtype, pages, tokens, d, grain, at_end);
    typed(&mask, half, 1, lq, lkv, 0, at_end);
    if (layout >= TRANSPOSED) {
        transpose(&k.tensor, tokens, d, row_bytes(dtype, 1)), transpose(&v.tensor, tokens, d, row_bytes(dtype, 1));
    }
    int32_t *table = guarded(pages * 4, at_end);
    for (size_t i = 0; i < pages; i++) table[i] = (int32_t)(pages - 1 - i);

    fa_attention a;
    CHECK(fa_attention_init(&a, sizeof a) == FA_OK, "init");
    a.batch = 1, a.heads_q = a.heads_kv = HEADS;
    a.len_q = (int64_t)lq, a.len_kv = (int64_t)lkv, a.dim_qk = a.dim_v = (int64_t)d;
    a.q = q.tensor, a.k = k.tensor, a.v = v.tensor, a.o = o.tensor, a.mask = mask.tensor;
    if (paged) a.block_table = table, a.table_stride = a.num_pages = (int64_t)pages, a.page_size = PAGE;
    CHECK(fa_attention_workspace(&a, 1, &size) == FA_OK, "workspace");
    void *ws = guarded(size, at_end);
    fa_status status = fa_attention_run(&a, ws, size, NULL);
    CHECK(status == FA_OK, "type %d: %s", (int)dtype, fa_status_string(status));
    release(ws, size), release(table, pages * 4);
    release_typed(&q), release_typed(&k), release_typed(&v), release_typed(&o), release_typed(&mask);
}

/* Numbers of each type to integers of each grain, with all their scales and zeros. */
static void run_quantize(int32_t dtype, size_t tokens, size_t d, bool at_end, int grain) {
    struct typed from, to;
    typed(&from, dtype, 2, tokens, d, 0, at_end), typed(&to, FA_DTYPE_I8, 2, tokens, d, grain, at_end);
    float *smooth = guarded_normal(HEADS * d, at_end);
    fa_status status = fa_quantize_i8(&from.tensor, 2, HEADS, (int64_t)tokens, (int64_t)d, smooth, &to.tensor);
    CHECK(status == FA_OK, "type %d: %s", (int)dtype, fa_status_string(status));
    for (size_t i = 0; i < to.values; i++) CHECK(isfinite(to.quant.scale[i]), "grain %d, scale %zu", grain, i);
    release(smooth, HEADS * d * 4), release_typed(&from), release_typed(&to);
}

/* Numbers of each type to every other one: whole tensors, and appended to pages, in an order of
 * their own. */
static void run_written(int32_t from, int32_t to, size_t tokens, size_t d, bool at_end) {
    struct typed src, dst, pages;
    size_t count = (tokens + PAGE - 1) / PAGE;
    typed(&src, from, 1, tokens, d, 0, at_end), typed(&dst, to, 1, tokens, d, 2, at_end);
    typed(&pages, to, count, PAGE, d, 5, at_end);
    fa_status status = fa_quantize(&src.tensor, 1, HEADS, (int64_t)tokens, (int64_t)d, &dst.tensor);
    CHECK(status == FA_OK, "type %d to %d: %s", (int)from, (int)to, fa_status_string(status));
    int32_t *table = guarded(count * 4, at_end);
    for (size_t i = 0; i < count; i++) table[i] = (int32_t)(count - 1 - i);
    fa_attention a;
    CHECK(fa_attention_init(&a, sizeof a) == FA_OK, "init");
    a.batch = 1, a.heads_kv = HEADS, a.len_q = a.len_kv = (int64_t)tokens, a.dim_qk = a.dim_v = (int64_t)d;
    a.k = pages.tensor, a.block_table = table, a.table_stride = a.num_pages = (int64_t)count, a.page_size = PAGE;
    char *why = guarded(100, at_end);
    status = fa_cache_append(&a, &src.tensor, NULL, why, 100);
    CHECK(status == FA_OK, "type %d to %d: %s", (int)from, (int)to, why);
    release(why, 100), release(table, count * 4);
    release_typed(&src), release_typed(&dst), release_typed(&pages);
}

/* Keys that are not in use are not read, nor are their scales: another thread may be writing them.
 * So their memory is left out here, of a cache [token][head][dim] that is said to have one more. */
static void run_unused(int32_t dtype, size_t lq, size_t used, size_t d) {
    size_t row = row_bytes(dtype, d), size = 0;
    struct typed q, kv[2], o;
    typed(&q, FA_DTYPE_F32, 1, lq, d, 0, true), typed(&o, FA_DTYPE_F32, 1, lq, d, 0, true);
    for (int i = 0; i < 2; i++) {
        typed(&kv[i], dtype, 1, used, d, 0, true);
        kv[i].tensor.stride[1] = (int64_t)row, kv[i].tensor.stride[2] = (int64_t)(HEADS * row);
        if (!may_have_scales(dtype)) continue;
        bool zeros = kv[i].quant.zero != NULL;
        release((void *)(uintptr_t)kv[i].quant.scale, 4);
        if (zeros) release((void *)(uintptr_t)kv[i].quant.zero, 4);
        kv[i].values = used * HEADS;
        kv[i].quant = (fa_quant){guarded_bytes(kv[i].values * 4, true),
                                 zeros ? guarded_bytes(kv[i].values * 4, true) : NULL,
                                 {0, 1, HEADS, 0}, 1, 1};
    }
    int32_t *lens = guarded(4, true);
    *lens = (int32_t)used;
    fa_attention a;
    CHECK(fa_attention_init(&a, sizeof a) == FA_OK, "init");
    a.batch = 1, a.heads_q = a.heads_kv = HEADS, a.len_q = (int64_t)lq, a.dim_qk = a.dim_v = (int64_t)d;
    a.len_kv = (int64_t)used + 1, a.kv_lens = lens;
    a.q = q.tensor, a.k = kv[0].tensor, a.v = kv[1].tensor, a.o = o.tensor;
    CHECK(fa_attention_workspace(&a, 1, &size) == FA_OK, "workspace");
    void *ws = guarded(size, true);
    fa_status status = fa_attention_run(&a, ws, size, NULL);
    CHECK(status == FA_OK, "type %d: %s", (int)dtype, fa_status_string(status));
    release(ws, size), release(lens, 4);
    release_typed(&q), release_typed(&kv[0]), release_typed(&kv[1]), release_typed(&o);
}

/* Blocks of keys that a mask hides from all rows are not read: their memory may not be touched. */
static void run_hidden(size_t lq, int32_t dtype) {
    enum { KEYS = 4096, FIRST = 1008, END = 1504, D = 64, SEEN = END - FIRST };
    size_t element = dtype == FA_DTYPE_F32 ? 4 : dtype == FA_DTYPE_BOOL8 ? 1 : 2, bytes = KEYS * D * 4;
    float *q = random_normal(lq * D), *seen = random_normal(2 * SEEN * D), *kv[2];
    float *o = need(lq * D * 4), *expected = need(lq * D * 4);
    unsigned char *mask = need(lq * KEYS * element);
    for (size_t at = 0; at < lq * KEYS; at++) {
        static const uint16_t f16[] = {0xfc00, 0x8000};
        static const float f32[] = {-INFINITY, 0};
        bool is_seen = at % KEYS >= FIRST && at % KEYS < END;
        if (element == 1) mask[at] = is_seen ? 7 : 0;
        else memcpy(mask + at * element, element == 2 ? (const void *)&f16[is_seen] : &f32[is_seen], element);
    }
    for (int i = 0; i < 2; i++) {
        kv[i] = guarded(bytes, false);
        memcpy(kv[i] + FIRST * D, seen + i * SEEN * D, SEEN * D * 4);
        /* Whole pages: what shares one with keys that are seen stays readable. */
        size_t page = (size_t)sysconf(_SC_PAGESIZE), first = FIRST * D * 4 / page * page;
        size_t end = (END * D * 4 + page - 1) / page * page;
        CHECK(mprotect(kv[i], first, PROT_NONE) == 0, "the keys before");
        CHECK(mprotect((char *)kv[i] + end, bytes - end, PROT_NONE) == 0, "the keys behind");
    }
    fa_attention a;
    CHECK(fa_attention_init(&a, sizeof a) == FA_OK, "init");
    a.batch = a.heads_q = a.heads_kv = 1, a.len_q = (int64_t)lq, a.len_kv = KEYS, a.dim_qk = a.dim_v = D;
    a.q.data = q, a.k.data = kv[0], a.v.data = kv[1], a.o.data = o, a.mask.data = mask, a.mask.dtype = dtype;
    a.q.stride[2] = a.k.stride[2] = a.v.stride[2] = a.o.stride[2] = D * 4;
    a.mask.stride[2] = (int64_t)(KEYS * element);
    for (int i = 0; i < 2; i++) {
        size_t size = 0;
        CHECK(fa_attention_workspace(&a, 1, &size) == FA_OK, "workspace");
        void *ws = need(size + 1);
        CHECK(fa_attention_run(&a, ws, size, NULL) == FA_OK, "%zu rows, mask of type %d", lq, (int)dtype);
        free(ws);
        /* The seen keys alone. */
        a.k.data = seen, a.v.data = seen + SEEN * D, a.o.data = expected, a.len_kv = SEEN, a.mask.data = NULL;
    }
    for (size_t i = 0; i < lq * D; i++)
        CHECK(fabsf(o[i] - expected[i]) <= 1e-5f, "%zu rows, mask of type %d, element %zu", lq, (int)dtype, i);
    release(kv[0], bytes), release(kv[1], bytes);
    free(q), free(seen), free(o), free(expected), free(mask);
}

static void all_types(size_t lq, size_t lkv, size_t d, bool at_end) {
    for (int32_t dtype = FA_DTYPE_F32; dtype <= FA_DTYPE_Q15; dtype++) {
        if (dtype == FA_DTYPE_BOOL8) continue;
        size_t dim = is_in_blocks(dtype) ? (d + 31) / 32 * 32 : d;
        if (at_end) run_unused(dtype, lq, lkv, dim);
        for (int grain = 0; grain < (may_have_scales(dtype) ? 16 : 1); grain++) {
            /* Rows of blocks are contiguous. */
            enum layout last = is_in_blocks(dtype) ? PAGED : PAGES_TRANSPOSED;
            for (int layout = DENSE; layout <= (int)last; layout++)
                run_typed(dtype, lq, lkv, dim, at_end, (enum layout)layout, grain);
        }
    }
    for (int32_t dtype = FA_DTYPE_F32; dtype <= FA_DTYPE_BF16; dtype++)
        for (int grain = 0; grain < 16; grain++) run_quantize(dtype, lkv, d, at_end, grain);
    for (int32_t from = FA_DTYPE_F32; from <= FA_DTYPE_BF16; from++)
        for (int32_t to = FA_DTYPE_F32; to <= FA_DTYPE_Q15; to++)
            if (to != FA_DTYPE_BOOL8) run_written(from, to, lkv, is_in_blocks(to) ? (d + 31) / 32 * 32 : d, at_end);
}

static void all(void) {
    static const int32_t masks[] = {FA_DTYPE_F32, FA_DTYPE_F16, FA_DTYPE_BOOL8};
    for (size_t i = 0; i < sizeof masks / sizeof *masks; i++)
        run_hidden(1, masks[i]), run_hidden(3, masks[i]), run_hidden(40, masks[i]), run_hidden(150, masks[i]);
    static const size_t lq[] = {1, 2, 15, 33}, lkv[] = {1, 17, 65}, d[] = {1, 3, 8, 15, 17, 64, 67};
    for (size_t i = 0; i < sizeof lq / sizeof *lq; i++)
        for (size_t j = 0; j < sizeof lkv / sizeof *lkv; j++)
            for (size_t c = 0; c < sizeof d / sizeof *d; c++)
                for (int at_end = 0; at_end < 2; at_end++) {
                    for (int feature = 0; feature < FEATURES; feature++) run(lq[i], lkv[j], d[c], at_end, feature);
                    all_types(lq[i], lkv[j], d[c], at_end);
                }
}

/* Lists of tokens, the configuration, what is found, and the lists that are written. */
static void run_partitions(int64_t tokens, int32_t step, bool at_end) {
    size_t n = (size_t)((tokens + step - 1) / step);
    int32_t *partitions = guarded(n * 4, at_end), *boundary = guarded(n * 4, at_end);
    fa_sparse_config *cfg = guarded(sizeof *cfg, at_end);
    fa_sparse_lists *found = guarded(sizeof *found, at_end);
    for (size_t i = 0; i < n; i++) partitions[i] = (int32_t)i * step, boundary[i] = (int32_t)i * step;
    CHECK(fa_sparse_config_init(cfg, sizeof *cfg) == FA_OK, "init");
    cfg->len_q = cfg->len_kv = tokens, cfg->kept_q = 3, cfg->kept_kv = 5, cfg->window = 2;
    cfg->partitions = partitions, cfg->num_partitions = (int64_t)n;
    cfg->boundary_tokens = boundary, cfg->num_boundary_tokens = (int64_t)n, cfg->max_edges = FA_NO_LIMIT;
    for (uint32_t causal = 0; causal < 2; causal++) {
        cfg->causal = causal, found->struct_size = sizeof *found;
        CHECK(fa_sparse_from_partitions(cfg, NULL, 0, found, NULL, 0) == FA_OK, "sizes");
        size_t bytes = (size_t)found->room * 4;
        int32_t *memory = guarded(bytes, at_end);
        CHECK(fa_sparse_from_partitions(cfg, memory, found->room, found, NULL, 0) == FA_OK, "lists");
        CHECK(found->num_columns == (int64_t)n && found->columns[n - 1] == boundary[n - 1], "columns");
        release(memory, bytes);
    }
    release(partitions, n * 4), release(boundary, n * 4), release(cfg, sizeof *cfg), release(found, sizeof *found);
}

int main(void) {
    for (int at_end = 0; at_end < 2; at_end++)
        for (int32_t step = 1; step < 40; step += 6) run_partitions(33, step, at_end);
    for_each_isa(all);
    return check_result();
}
