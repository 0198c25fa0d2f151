/* Long runs of rows, in many slices: the same bits on any number of threads, in each mode. */

#include "ranks.h"

enum { HEADS_Q = 6, HEADS_KV = 3, DIM = 16, LEN = 1100, POOLS = 3 };

static float q[LEN * HEADS_Q * DIM], k[LEN * HEADS_KV * DIM], v[LEN * HEADS_KV * DIM];
static float o[LEN * HEADS_Q * DIM], first[LEN * HEADS_Q * DIM];

int main(int argc, char **argv) {
    ranks_begin(&argc, &argv);
    fa_mpi *mpi;
    fa_pool *pools[POOLS] = {NULL};
    long count = 0;
    if (fa_mpi_create(MPI_COMM_WORLD, NULL, &mpi) != FA_OK) return 2;
    for (int i = 1; i < POOLS; i++)
        if (fa_pool_create(i + 1, &pools[i]) != FA_OK) return 2;
    struct random r = {5 + (uint64_t)rank};
    for (int i = 0; i < LEN * HEADS_Q * DIM; i++) q[i] = (float)below(&r, 2001) / 1000 - 1;
    for (int i = 0; i < LEN * HEADS_KV * DIM; i++) k[i] = (float)below(&r, 2001) / 1000 - 1, v[i] = k[i] * 0.7f + 0.1f;

    static const int64_t windows[][2] = {{FA_NO_LIMIT, FA_NO_LIMIT}, {FA_NO_LIMIT, 0}, {300, 0}, {77, 1500}};
    for (int w = 0; w < 4; w++) {
        fa_attention a;
        CHECK(fa_attention_init(&a, sizeof a) == FA_OK, "init");
        a.batch = 1, a.heads_q = HEADS_Q, a.heads_kv = HEADS_KV, a.dim_qk = a.dim_v = DIM;
        a.len_q = a.len_kv = LEN - rank;
        a.q = (fa_tensor){.data = q, .stride = {0, DIM * 4, HEADS_Q * DIM * 4}};
        a.k = (fa_tensor){.data = k, .stride = {0, DIM * 4, HEADS_KV * DIM * 4}};
        a.v = (fa_tensor){.data = v, .stride = {0, DIM * 4, HEADS_KV * DIM * 4}};
        a.o = (fa_tensor){.data = o, .stride = {0, DIM * 4, HEADS_Q * DIM * 4}};
        a.window_left = windows[w][0], a.window_right = windows[w][1];
        for (int i = 0; i < 2 * POOLS; i++, count++) {
            fa_mpi_prefill_options options = {.struct_size = sizeof options, .mode = 1 + i % 2};
            memset(o, 0xff, sizeof o);
            int32_t status = fa_mpi_prefill(mpi, &a, &options, NULL, 0, pools[i / 2]);
            CHECK(status == FA_OK, "%s", fa_mpi_words(mpi));
            if (i == 0) memcpy(first, o, sizeof o);
            CHECK(memcmp(first, o, sizeof o) == 0, "windows %d: %d threads, mode %d have other bits", w, i / 2 + 1, 1 + i % 2);
        }
    }
    for (int i = 1; i < POOLS; i++) fa_pool_destroy(pools[i]);
    fa_mpi_free(mpi);
    return ranks_end("calls", count);
}
