/* Times of prefill and decode on the ranks there are, as lines of CSV on standard output.
 *
 *    mpirun -n 2 measure [TOKENS [HEADS_Q [HEADS_KV [REPEATS]]]]      16384 tokens, 8 on 2 heads
 * of 64, 3 times
 *
 * bf16, causal. Each mode is timed in turns; of the repeats the fastest counts, by its slowest
 * rank. `alone` is what the same bytes take when nothing is computed. */

#define _POSIX_C_SOURCE 200809L

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <flash_attention_mpi.h>

enum { DIM = 64, ROUNDS = 200 };

static int rank, ranks;

static void must(int32_t status, const fa_mpi *mpi) {
    if (status == FA_OK) return;
    fprintf(stderr, "measure, rank %d: %s (%s)\n", rank, fa_mpi_status_string(status), fa_mpi_words(mpi));
    MPI_Abort(MPI_COMM_WORLD, 2);
}

static void *numbers(size_t count) {
    uint16_t *x = malloc(count > 0 ? count * 2 : 1);
    if (x == NULL) MPI_Abort(MPI_COMM_WORLD, 2);
    uint32_t state = 1 + (uint32_t)rank;
    for (size_t i = 0; i < count; i++) {
        state = state * 1664525u + 1013904223u;
        /* bf16 between 0.5 and 1, with either sign. */
        x[i] = (uint16_t)(0x3f00 | (state >> 16 & 0x807f));
    }
    return x;
}

/* Seconds in which each rank hands as many bytes to the next one as the busiest one sent. */
static double alone(int64_t sent) {
    enum { PART = 1 << 22, TIMES = 7 };
    int64_t most = 0;
    MPI_Allreduce(&sent, &most, 1, MPI_INT64_T, MPI_MAX, MPI_COMM_WORLD);
    char *from = calloc(1, PART), *to = calloc(1, PART);
    double best = 1e9;
    for (int i = 0; i < TIMES; i++) {
        MPI_Barrier(MPI_COMM_WORLD);
        double start = MPI_Wtime(), seconds = 0, mine;
        for (int64_t at = 0; at < most; at += PART) {
            int count = (int)(most - at < PART ? most - at : PART);
            MPI_Sendrecv(from, count, MPI_BYTE, (rank + 1) % ranks, 0, to, count, MPI_BYTE, (rank + ranks - 1) % ranks,
                         0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        }
        mine = MPI_Wtime() - start;
        MPI_Allreduce(&mine, &seconds, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
        if (seconds < best) best = seconds;
    }
    free(from), free(to);
    return best;
}

static double slowest(double mine) {
    double most = 0;
    MPI_Allreduce(&mine, &most, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return most;
}

static void print(const char *call, const char *layout, int64_t tokens, int heads_q, int heads_kv,
                  const fa_mpi_report *r, double other) {
    double mine[10] = {r->seconds, r->seconds_computing, r->seconds_agreeing, r->seconds_progressing, r->seconds_waiting,
                       (double)r->bytes_sent, (double)r->messages, (double)r->pairs, (double)r->workspace, other};
    double *all = calloc((size_t)ranks, sizeof mine);
    MPI_Gather(mine, 10, MPI_DOUBLE, all, 10, MPI_DOUBLE, 0, MPI_COMM_WORLD);
    for (int i = 0; rank == 0 && i < ranks; i++) {
        const double *x = all + 10 * i;
        printf("%s,%s,%s,%d,%d,%lld,%d,%d,%.6f,%.6f,%.6f,%.6f,%.6f,%.0f,%.0f,%.0f,%.0f,%.6f\n", call, layout,
               r->mode == FA_MPI_RING ? "ring" : "all-gather", ranks, i, (long long)tokens, heads_q, heads_kv, x[0], x[1],
               x[2], x[3], x[4], x[5], x[6], x[7], x[8], x[9]);
    }
    free(all);
}

int main(int argc, char **argv) {
    int level;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &level);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    int64_t tokens = argc > 1 ? atoll(argv[1]) : 16384;
    int heads_q = argc > 2 ? atoi(argv[2]) : 8, heads_kv = argc > 3 ? atoi(argv[3]) : 2, repeats = argc > 4 ? atoi(argv[4]) : 3;
    fa_mpi *mpi = NULL;
    must(fa_mpi_create(MPI_COMM_WORLD, NULL, &mpi), NULL);
    if (rank == 0)
        printf("call,layout,mode,ranks,rank,tokens,heads_q,heads_kv,seconds,computing,agreeing,progressing,waiting,bytes,"
               "messages,pairs,workspace,alone\n");

    fa_mpi_run run = fa_mpi_contiguous(tokens, rank, ranks), two[2];
    fa_mpi_zigzag(tokens, rank, ranks, two);
    int64_t most = tokens / ranks + 2;
    fa_attention a;
    must(fa_attention_init(&a, sizeof a), mpi);
    a.batch = 1, a.heads_q = heads_q, a.heads_kv = heads_kv, a.dim_qk = a.dim_v = DIM;
    a.q = (fa_tensor){.data = numbers((size_t)(most * heads_q) * DIM), .stride = {0, DIM * 2, heads_q * DIM * 2}};
    a.k = (fa_tensor){.data = numbers((size_t)(most * heads_kv) * DIM), .stride = {0, DIM * 2, heads_kv * DIM * 2}};
    a.v = (fa_tensor){.data = numbers((size_t)(most * heads_kv) * DIM), .stride = {0, DIM * 2, heads_kv * DIM * 2}};
    a.o = (fa_tensor){.data = numbers((size_t)(most * heads_q) * DIM), .stride = {0, DIM * 2, heads_q * DIM * 2}};
    a.q.dtype = a.k.dtype = a.v.dtype = a.o.dtype = FA_DTYPE_BF16;

    fa_mpi_report best, report;
    for (int layout = 0; layout < 2; layout++) {
        for (int mode = FA_MPI_RING; mode <= FA_MPI_ALL_GATHER; mode++) {
            fa_mpi_prefill_options options = {.struct_size = sizeof options, .mode = mode, .q_runs = two, .kv_runs = two};
            if (layout == 1) options.num_q_runs = options.num_kv_runs = 2;
            a.len_q = a.len_kv = layout == 0 ? run.length : two[0].length + two[1].length;
            a.window_right = 0;
            double fastest = 1e9;
            for (int i = 0; i < repeats; i++) {
                MPI_Barrier(MPI_COMM_WORLD);
                must(fa_mpi_prefill(mpi, &a, &options, NULL, 0, NULL), mpi);
                fa_mpi_last(mpi, &report);
                double seconds = slowest(report.seconds);
                if (seconds < fastest) fastest = seconds, best = report;
            }
            print("prefill", layout == 0 ? "contiguous" : "zigzag", tokens, heads_q, heads_kv, &best,
                  alone(best.bytes_sent));
        }
    }

    /* One token: the mean of many, in microseconds nobody can time one by one. */
    a.len_q = 1, a.len_kv = run.length, a.window_right = FA_NO_LIMIT;
    for (int mode = FA_MPI_RING; mode <= FA_MPI_ALL_GATHER; mode++) {
        size_t bytes = 0;
        must(fa_mpi_decode_workspace(mpi, &a, mode, NULL, &bytes), mpi);
        void *ws = malloc(bytes);
        memset(&best, 0, sizeof best);
        for (int i = -10; i < ROUNDS; i++) {
            must(fa_mpi_decode(mpi, &a, mode, ws, bytes, NULL), mpi);
            fa_mpi_last(mpi, &report);
            if (i < 0) continue;
            best.seconds += report.seconds / ROUNDS, best.seconds_computing += report.seconds_computing / ROUNDS;
            best.seconds_agreeing += report.seconds_agreeing / ROUNDS, best.seconds_waiting += report.seconds_waiting / ROUNDS;
        }
        best.mode = report.mode, best.bytes_sent = report.bytes_sent, best.messages = report.messages;
        best.pairs = report.pairs, best.workspace = report.workspace;
        print("decode", "contiguous", tokens, heads_q, heads_kv, &best, 0);
        free(ws);
    }
    fa_mpi_free(mpi);
    MPI_Finalize();
    return 0;
}
