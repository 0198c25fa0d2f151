/* Nothing beyond the last used element of a tensor is read, nor before the first: each lies against
 * a page that may not be touched, at its end or at its beginning. */

#define _DEFAULT_SOURCE

#include <sys/mman.h>
#include <unistd.h>

#include "check.h"

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

static void run(size_t lq, size_t lkv, size_t d, bool at_end, int feature) {
    size_t pages = (lkv + PAGE - 1) / PAGE, kv = feature == 3 ? pages * PAGE : lkv;
    size_t nq = HEADS * lq * d, nkv = HEADS * kv * d, nmask = lq * lkv;
    float *q = guarded_normal(nq, at_end), *k = guarded_normal(nkv, at_end);
    float *v = guarded_normal(nkv, at_end), *o = guarded(nq * 4, at_end);
    float *lse = guarded(HEADS * lq * 4, at_end), *sinks = guarded_normal(HEADS, at_end);
    float *mask = guarded_normal(nmask, at_end);
    unsigned char *bytes = guarded(nmask, at_end), *blocks = guarded((lq + 1) / 2 * ((lkv + 4) / 5), at_end);
    int32_t *table = guarded(pages * 4, at_end);
    memset(bytes, 1, nmask);
    memset(blocks, 1, (lq + 1) / 2 * ((lkv + 4) / 5));
    for (size_t i = 0; i < pages; i++) table[i] = (int32_t)(pages - 1 - i);

    fa_attention a;
    CHECK(fa_attention_init(&a, sizeof a) == FA_OK, "init");
    a.batch = 1, a.heads_q = a.heads_kv = HEADS;
    a.len_q = (int64_t)lq, a.len_kv = (int64_t)lkv, a.dim_qk = a.dim_v = (int64_t)d;
    a.q.data = q, a.k.data = k, a.v.data = v, a.o.data = o, a.lse = lse, a.sinks = sinks;
    a.q.stride[1] = a.o.stride[1] = (int64_t)(lq * d * 4), a.q.stride[2] = a.o.stride[2] = (int64_t)(d * 4);
    a.k.stride[1] = a.v.stride[1] = (int64_t)(kv * d * 4), a.k.stride[2] = a.v.stride[2] = (int64_t)(d * 4);
    a.lse_stride[1] = (int64_t)lq, a.lse_stride[2] = 1;
    a.mask.stride[2] = (int64_t)(lkv * 4);
    switch (feature) {
        case 0: a.window_right = 0; break;
        case 1: a.mask.data = mask; break;
        case 2: a.mask.data = bytes, a.mask.dtype = FA_DTYPE_BOOL8, a.mask.stride[2] = (int64_t)lkv; break;
        case 3: /* [page][head][token][dim] */
            a.block_table = table, a.table_stride = a.num_pages = (int64_t)pages, a.page_size = PAGE;
            a.k.stride[0] = a.v.stride[0] = (int64_t)(HEADS * PAGE * d * 4);
            a.k.stride[1] = a.v.stride[1] = (int64_t)(PAGE * d * 4);
            break;
        default:
            a.block_mask = blocks, a.block_mask_q = 2, a.block_mask_kv = 5;
            a.block_mask_stride[2] = (int64_t)((lkv + 4) / 5);
    }
    size_t size = 0;
    CHECK(fa_attention_workspace(&a, 1, &size) == FA_OK, "workspace");
    void *ws = guarded(size, at_end);
    CHECK(fa_attention_run(&a, ws, size, NULL) == FA_OK, "feature %d", feature);
    for (size_t i = 0; i < nq; i++) CHECK(isfinite(o[i]), "feature %d, element %zu", feature, i);

    release(ws, size), release(table, pages * 4), release(blocks, (lq + 1) / 2 * ((lkv + 4) / 5));
    release(bytes, nmask), release(mask, nmask * 4), release(sinks, HEADS * 4);
    release(lse, HEADS * lq * 4), release(o, nq * 4), release(v, nkv * 4), release(k, nkv * 4);
    release(q, nq * 4);
}

static void all(void) {
    static const size_t lq[] = {1, 2, 15, 33}, lkv[] = {1, 17, 65}, d[] = {1, 3, 8, 15, 17, 64, 67};
    for (size_t i = 0; i < sizeof lq / sizeof *lq; i++)
        for (size_t j = 0; j < sizeof lkv / sizeof *lkv; j++)
            for (size_t c = 0; c < sizeof d / sizeof *d; c++)
                for (int feature = 0; feature < 5; feature++) {
                    run(lq[i], lkv[j], d[c], true, feature);
                    run(lq[i], lkv[j], d[c], false, feature);
                }
}

int main(void) {
    for_each_isa(all);
    return check_result();
}
