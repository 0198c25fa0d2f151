/* What is sent, to the byte, and what is multiplied, to the pair; and which mode the library
 * chooses. */

#include "ranks.h"

enum { HEADS_Q = 4, DIM = 16, LEN = 64, LONG = 4 * LEN * RANKS };

static fa_mpi *mpi;
static float q[LONG / 4 * HEADS_Q * DIM], k[LONG * HEADS_Q * DIM], v[LONG * HEADS_Q * DIM], o[LONG / 4 * HEADS_Q * DIM];
static fa_mpi_report report;
static long count;

static fa_attention describe(int64_t len_q, int64_t len_kv, int64_t heads_kv) {
    fa_attention a;
    CHECK(fa_attention_init(&a, sizeof a) == FA_OK, "init");
    a.batch = 1, a.heads_q = HEADS_Q, a.heads_kv = heads_kv, a.len_q = len_q, a.len_kv = len_kv, a.dim_qk = a.dim_v = DIM;
    a.q = (fa_tensor){.data = q, .stride = {0, DIM * 4, HEADS_Q * DIM * 4}};
    a.k = (fa_tensor){.data = k, .stride = {0, DIM * 4, heads_kv * DIM * 4}};
    a.v = (fa_tensor){.data = v, .stride = {0, DIM * 4, heads_kv * DIM * 4}};
    a.o = (fa_tensor){.data = o, .stride = {0, DIM * 4, HEADS_Q * DIM * 4}};
    return a;
}

static void run(const fa_attention *a, int mode, int32_t num_runs, const fa_mpi_run *runs) {
    fa_mpi_prefill_options options = {sizeof options, mode, num_runs, num_runs, 0, runs, runs};
    int32_t status = fa_mpi_prefill(mpi, a, &options, NULL, 0, NULL);
    CHECK(status == FA_OK, "%s", fa_mpi_words(mpi));
    fa_mpi_last(mpi, &report);
    CHECK(mode == FA_MPI_AUTO || report.mode == mode, "mode %d", report.mode);
    count++;
}

/* Bytes of K and V of a token. */
static int64_t token(int64_t heads_kv) { return 2 * heads_kv * DIM * 4; }

int main(int argc, char **argv) {
    ranks_begin(&argc, &argv);
    if (fa_mpi_create(MPI_COMM_WORLD, NULL, &mpi) != FA_OK) return 2;
    const int64_t last = ranks - 1, share = LEN * token(2);

    for (int mode = FA_MPI_RING; mode <= FA_MPI_ALL_GATHER; mode++) {
        /* Everybody sees everything. */
        fa_attention a = describe(LEN, LEN, 2);
        run(&a, mode, 0, NULL);
        CHECK(report.bytes_sent == last * share, "all: %lld", (long long)report.bytes_sent);
        CHECK(report.bytes_received == last * share, "all: %lld", (long long)report.bytes_received);
        CHECK(report.pairs == HEADS_Q * LEN * LEN * ranks, "all: %lld pairs", (long long)report.pairs);

        /* Causal: only later ranks see a share; a ring passes on what came from before. */
        a.window_right = 0;
        run(&a, mode, 0, NULL);
        int64_t sent = mode == FA_MPI_ALL_GATHER ? last - rank : rank < last ? rank + 1 : 0;
        CHECK(report.bytes_sent == sent * share, "causal, mode %d: %lld", mode, (long long)report.bytes_sent);
        CHECK(report.bytes_received == rank * share, "causal, mode %d: %lld", mode, (long long)report.bytes_received);
        CHECK(report.pairs == HEADS_Q * LEN * LEN * (rank + 1), "causal: %lld pairs", (long long)report.pairs);

        /* A window of 11 keys: the last 10 of a share are all that the next rank sees. */
        a.window_left = 10;
        run(&a, mode, 0, NULL);
        CHECK(report.bytes_sent == (rank < last ? 10 * token(2) : 0), "window: %lld", (long long)report.bytes_sent);
        CHECK(report.pairs == HEADS_Q * LEN * (LEN + (rank > 0 ? 10 : 0)), "window: %lld pairs", (long long)report.pairs);

        /* Zigzag: as many pairs on each rank, but for one diagonal. */
        fa_mpi_run runs[2];
        fa_mpi_zigzag(LEN * ranks, rank, ranks, runs);
        a.window_left = FA_NO_LIMIT;
        run(&a, mode, 2, runs);
        CHECK(report.pairs == HEADS_Q * LEN / 2 * LEN / 2 * (2 * ranks + 1), "zigzag: %lld pairs", (long long)report.pairs);

        /* bf16, and a single rank that has queries. */
        a = describe(rank == 0 ? LEN : 0, LEN, 2);
        a.k.dtype = a.v.dtype = FA_DTYPE_BF16;
        a.k.stride[1] = a.v.stride[1] = DIM * 2, a.k.stride[2] = a.v.stride[2] = 2 * DIM * 2;
        run(&a, mode, 0, NULL);
        CHECK(report.bytes_received == (rank == 0 ? last * share / 2 : mode == FA_MPI_RING && rank > 1 ? (rank - 1) * share / 2 : 0),
              "one rank: %lld", (long long)report.bytes_received);
        CHECK(report.pairs == (rank == 0 ? HEADS_Q * LEN * LEN * ranks : 0), "one rank: %lld pairs", (long long)report.pairs);

        /* V within K is sent once. */
        a = describe(LEN, LEN, 1);
        a.dim_v = DIM / 2, a.v.data = k + 4, a.v.stride[2] = a.k.stride[2];
        a.o.stride[1] = DIM * 4;
        run(&a, mode, 0, NULL);
        CHECK(report.bytes_sent == last * LEN * DIM * 4, "latent: %lld", (long long)report.bytes_sent);
    }

    /* Few kv heads: an all-gather; a long cache and few rows of queries: a ring. */
    fa_attention a = describe(LEN, LEN, 1);
    run(&a, FA_MPI_AUTO, 0, NULL);
    CHECK(report.mode == FA_MPI_ALL_GATHER || ranks > 4, "few kv heads: %s", fa_mpi_words(mpi));
    a = describe(8, LONG, 4);
    run(&a, FA_MPI_AUTO, 0, NULL);
    CHECK(report.mode == (ranks > 1 ? FA_MPI_RING : FA_MPI_ALL_GATHER), "long cache: %s", fa_mpi_words(mpi));
    CHECK(is_same_everywhere(fa_mpi_words(mpi), strlen(fa_mpi_words(mpi))), "%s", fa_mpi_words(mpi));

    /* A ring holds two shares, whatever the number of ranks. */
    int64_t with_ring = report.workspace;
    run(&a, FA_MPI_ALL_GATHER, 0, NULL);
    CHECK(ranks < 4 || report.workspace > with_ring, "%lld and %lld bytes", (long long)with_ring, (long long)report.workspace);

    /* Shares of the helpers: all tokens once. */
    for (int64_t tokens = 0; tokens < 40; tokens++) {
        int64_t next = 0, zigzag = 0;
        for (int r = 0; r < 5; r++) {
            fa_mpi_run run = fa_mpi_contiguous(tokens, r, 5), two[2];
            CHECK(run.position == next && run.length >= 0, "contiguous");
            next += run.length;
            fa_mpi_zigzag(tokens, r, 5, two);
            zigzag += two[0].length + two[1].length;
        }
        CHECK(next == tokens && zigzag == tokens, "%lld tokens", (long long)tokens);
    }
    fa_mpi_free(mpi);
    return ranks_end("calls", count);
}
