/* Rows, heads, batch entries and pages more than 4 GiB apart: the bits of dense tensors. The memory
 * is only reserved; what is not touched costs nothing. */

#define _DEFAULT_SOURCE

#include <sys/mman.h>

#include "check.h"

enum { B = 2, H = 2, KEYS = 5, D = 8, MOST = 20 };
/* Cut to 32 bits, strides lead to other elements of the same memory. */
#define FAR (((int64_t)1 << 32) + 4096)

/* Reserves so many times FAR bytes. */
static void *reserve(int64_t times) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *at = mmap(NULL, (size_t)(times * FAR), PROT_READ | PROT_WRITE, flags, -1, 0);
    if (at == MAP_FAILED) {
        fputs("cannot reserve memory\n", stderr);
        exit(2);
    }
    return at;
}

/* A dense array [batch][head][row][bytes] and its copy with one axis far apart. */
struct array {
    int64_t extent[3], bytes, dense[3], far[3];
    char *from, *to;
};

static struct array array(const void *from, int64_t heads, int64_t rows, int64_t bytes, int axis) {
    struct array x = {.extent = {B, heads, rows}, .bytes = bytes, .from = (char *)(uintptr_t)from};
    x.dense[0] = heads * rows * bytes, x.dense[1] = rows * bytes, x.dense[2] = bytes;
    memcpy(x.far, x.dense, sizeof x.far);
    x.far[axis] = FAR;
    x.to = reserve(x.extent[axis]);
    return x;
}

/* Copies all rows there, or back. */
static void copy(struct array x, bool back) {
    for (int64_t b = 0; b < x.extent[0]; b++)
        for (int64_t h = 0; h < x.extent[1]; h++)
            for (int64_t r = 0; r < x.extent[2]; r++) {
                char *dense = x.from + b * x.dense[0] + h * x.dense[1] + r * x.dense[2];
                char *far = x.to + b * x.far[0] + h * x.far[1] + r * x.far[2];
                memcpy(back ? dense : far, back ? far : dense, (size_t)x.bytes);
            }
}

static void place(fa_tensor *t, struct array x, bool far) {
    t->data = far ? x.to : x.from;
    memcpy(t->stride, far ? x.far : x.dense, sizeof x.far);
}

static void run(const char *what, const fa_attention *a) {
    static unsigned char ws[1 << 16];
    size_t size = 0;
    CHECK(fa_attention_workspace(a, 1, &size) == FA_OK && size <= sizeof ws, "%s: %zu bytes", what, size);
    CHECK(fa_attention_run(a, ws, sizeof ws, NULL) == FA_OK, "%s", what);
}

/* One kind of tensor far apart on one axis; `rows` decide the path. */
static void apart(int64_t rows, int axis, int which, bool paged) {
    static float o[2][B * H * MOST * D], lse[2][B * H * MOST];
    static unsigned char blocks[B * H * MOST * KEYS];
    static const int32_t pages[] = {1, 0};
    static const char *const names[] = {"q", "k", "v", "o", "lse", "mask", "block_mask"};
    float *q = random_normal(B * H * MOST * D), *k = random_normal(B * H * KEYS * D);
    float *v = random_normal(B * H * KEYS * D), *mask = random_normal(B * H * MOST * KEYS);
    for (size_t i = 0; i < sizeof blocks; i++) blocks[i] = random_bits() % 4 != 0;
    const void *from[] = {q, k, v, o[1], lse[1], mask, blocks};
    int64_t bytes[] = {D * 4, D * 4, D * 4, D * 4, 4, KEYS * 4, KEYS};

    fa_attention a;
    CHECK(fa_attention_init(&a, sizeof a) == FA_OK, "init");
    a.batch = B, a.heads_q = a.heads_kv = H, a.len_q = rows, a.len_kv = KEYS, a.dim_qk = a.dim_v = D;
    a.block_mask_q = a.block_mask_kv = 1;
    if (paged) a.block_table = pages, a.table_stride = 1, a.page_size = KEYS, a.num_pages = B;
    struct array x[7];
    for (int i = 0; i < 7; i++) {
        x[i] = array(from[i], H, i == 1 || i == 2 ? KEYS : rows, bytes[i], axis);
        copy(x[i], false);
    }
    for (int far = 0; far < 2; far++) {
        fa_tensor lse_at, blocks_at, *tensors[] = {&a.q, &a.k, &a.v, &a.o, &lse_at, &a.mask, &blocks_at};
        for (int i = 0; i < 7; i++) place(tensors[i], x[i], far && i == which);
        a.lse = lse_at.data, a.block_mask = blocks_at.data;
        for (int i = 0; i < 3; i++) {
            a.lse_stride[i] = lse_at.stride[i] / 4, a.block_mask_stride[i] = blocks_at.stride[i];
        }
        memset(o[1], 0xff, sizeof o[1]), memset(lse[1], 0xff, sizeof lse[1]);
        run(names[which], &a);
        if (far && (which == 3 || which == 4)) copy(x[which], true);
        if (!far) memcpy(o[0], o[1], sizeof o[0]), memcpy(lse[0], lse[1], sizeof lse[0]);
    }
    CHECK(same_bits(o[0], o[1], B * H * MOST * D) && same_bits(lse[0], lse[1], B * H * MOST),
          "%s: %d rows, axis %d of %s far apart, pages %d", fa_isa(), (int)rows, axis, names[which], paged);
    for (int i = 0; i < 7; i++) munmap(x[i].to, (size_t)(x[i].extent[axis] * FAR));
    free(q), free(k), free(v), free(mask);
}

static void all(void) {
    static const int64_t rows[] = {2, MOST};
    for (int path = 0; path < 2; path++)
        for (int axis = 0; axis < 3; axis++)
            for (int which = 0; which < 7; which++) {
                apart(rows[path], axis, which, false);
                apart(rows[path], axis, which, true);
            }
}

int main(void) {
    for_each_isa(all);
    return check_result();
}
