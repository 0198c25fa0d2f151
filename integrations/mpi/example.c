/*
 * A long context on several machines, or on the sockets of one: a causal prefill with grouped heads
 * in bf16, each rank with two pieces of the text ("zigzag"), so that all have as much to do; then
 * tokens one by one, each of them appended to the last rank's share of the cache.
 *
 *     mpirun -n 4 example [TOKENS [STEPS [THREADS]]]    65536 tokens, 8 steps, 1 thread a rank
 *
 * One rank for each NUMA node, with the threads of its cores (0 threads: all that it may use):
 *
 *     mpirun --map-by numa --bind-to numa example 65536 8 0
 *
 * Prints what each rank had to do, and how far some rows are from float64. Exit code 1 if that is
 * too far.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <flash_attention_mpi.h>

enum { HEADS_Q = 8, HEADS_KV = 2, DIM = 64 };
enum { QUERY, KEY, VALUE };

static int rank, ranks;

static void must(int32_t status, const fa_mpi *mpi)
{
    if (status != FA_OK) {
        fprintf(stderr, "example, rank %d: %s (%s)\n", rank, fa_mpi_status_string(status), fa_mpi_words(mpi));
        MPI_Abort(MPI_COMM_WORLD, 2);
    }
}

static void *need(size_t bytes)
{
    void *memory = malloc(bytes > 0 ? bytes : 1);
    if (memory == NULL)
        MPI_Abort(MPI_COMM_WORLD, 2);
    return memory;
}

/* Any rank can tell any number of the text: between -2 and 2, and with so few bits that bf16 has
 * it exactly. */
static float number(int what, int64_t position, int head, int d)
{
    uint64_t z = ((uint64_t)position * 4 + (uint64_t)what) * 1024 + (uint64_t)(head * DIM + d);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (float)((int)(z >> 56) - 128) / 64;
}

static uint16_t bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)(bits >> 16);
}

/* Tokens behind one another, [token][head][dim]. */
static void fill(uint16_t *to, int what, int heads, fa_mpi_run run)
{
    for (int64_t t = 0; t < run.length; t++)
        for (int h = 0; h < heads; h++)
            for (int d = 0; d < DIM; d++)
                *to++ = bf16(number(what, run.position + t, h, d));
}

/* How far a row of one head is from the formula, over all keys up to its position: squares of
 * it, and of what is right. */
static void compare(const float *row, int64_t position, int head, double *off, double *of)
{
    double out[DIM] = {0}, sum = 0;
    for (int64_t j = 0; j <= position; j++) {
        double dot = 0;
        for (int d = 0; d < DIM; d++)
            dot += (double)number(QUERY, position, head, d) * (double)number(KEY, j, head / (HEADS_Q / HEADS_KV), d);
        double weight = exp(dot / sqrt(DIM));
        sum += weight;
        for (int d = 0; d < DIM; d++)
            out[d] += weight * (double)number(VALUE, j, head / (HEADS_Q / HEADS_KV), d);
    }
    for (int d = 0; d < DIM; d++) {
        double right = out[d] / sum, difference = (double)row[d] - right;
        *off += difference * difference, *of += right * right;
    }
}

/* One line of a table for each rank, on rank 0. */
static void print_table(const fa_mpi *mpi, int64_t tokens)
{
    fa_mpi_report report;
    fa_mpi_last(mpi, &report);
    double mine[7] = {(double)tokens, (double)report.pairs * 1e-9, (double)report.bytes_sent * 1e-6,
                      (double)report.workspace * 1e-6, report.seconds, report.seconds_computing,
                      report.seconds_progressing + report.seconds_waiting};
    double *all = need((size_t)ranks * sizeof mine);
    MPI_Gather(mine, 7, MPI_DOUBLE, all, 7, MPI_DOUBLE, 0, MPI_COMM_WORLD);
    if (rank == 0) {
        printf("%s\n\n", fa_mpi_words(mpi));
        printf("rank   tokens   1e9 pairs   MB sent   MB workspace   seconds   computing   exchanging\n");
        for (int r = 0; r < ranks; r++)
            printf("%4d %8.0f %11.3f %9.2f %14.2f %9.3f %11.3f %12.3f\n", r, all[7 * r], all[7 * r + 1], all[7 * r + 2],
                   all[7 * r + 3], all[7 * r + 4], all[7 * r + 5], all[7 * r + 6]);
        printf("\n");
    }
    free(all);
}

int main(int argc, char **argv)
{
    int level;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &level);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    int64_t tokens = argc > 1 ? atoll(argv[1]) : 65536, steps = argc > 2 ? atoll(argv[2]) : 8;
    fa_pool *pool = NULL;
    fa_mpi *mpi = NULL;
    must(fa_pool_create(argc > 3 ? atoi(argv[3]) : 1, &pool), NULL);
    must(fa_mpi_create(MPI_COMM_WORLD, NULL, &mpi), NULL);

    /* This rank's share of the text; the last rank has room for what is to come. */
    fa_mpi_run runs[2];
    fa_mpi_zigzag(tokens, rank, ranks, runs);
    int64_t own = runs[0].length + runs[1].length, room = own + (rank == ranks - 1 ? steps : 0);
    uint16_t *q = need((size_t)own * HEADS_Q * DIM * 2), *k = need((size_t)room * HEADS_KV * DIM * 2);
    uint16_t *v = need((size_t)room * HEADS_KV * DIM * 2);
    float *o = need((size_t)own * HEADS_Q * DIM * 4);
    for (int i = 0; i < 2; i++) {
        int64_t at = i == 0 ? 0 : runs[0].length;
        fill(q + at * HEADS_Q * DIM, QUERY, HEADS_Q, runs[i]);
        fill(k + at * HEADS_KV * DIM, KEY, HEADS_KV, runs[i]);
        fill(v + at * HEADS_KV * DIM, VALUE, HEADS_KV, runs[i]);
    }

    fa_attention a;
    must(fa_attention_init(&a, sizeof a), mpi);
    a.batch = 1, a.heads_q = HEADS_Q, a.heads_kv = HEADS_KV, a.dim_qk = a.dim_v = DIM;
    a.len_q = a.len_kv = own;
    a.q = (fa_tensor){.data = q, .stride = {0, DIM * 2, HEADS_Q * DIM * 2}, .dtype = FA_DTYPE_BF16};
    a.k = (fa_tensor){.data = k, .stride = {0, DIM * 2, HEADS_KV * DIM * 2}, .dtype = FA_DTYPE_BF16};
    a.v = (fa_tensor){.data = v, .stride = {0, DIM * 2, HEADS_KV * DIM * 2}, .dtype = FA_DTYPE_BF16};
    a.o = (fa_tensor){.data = o, .stride = {0, DIM * 4, HEADS_Q * DIM * 4}};
    a.window_right = 0; /* causal */

    /* Where the rows are in the text; keys and queries are the same tokens. */
    fa_mpi_prefill_options options = {.struct_size = sizeof options};
    options.num_q_runs = options.num_kv_runs = 2, options.q_runs = options.kv_runs = runs;
    must(fa_mpi_prefill(mpi, &a, &options, NULL, 0, pool), mpi);
    print_table(mpi, own);

    /* The first and the last row of each run, one head each. */
    double sums[2] = {0, 0};
    for (int i = 0; i < 4; i++) {
        fa_mpi_run run = runs[i / 2];
        if (run.length == 0)
            continue;
        int64_t row = i % 2 == 0 ? 0 : run.length - 1, at = (i / 2 == 0 ? 0 : runs[0].length) + row;
        compare(o + (at * HEADS_Q + (rank + i) % HEADS_Q) * DIM, run.position + row, (rank + i) % HEADS_Q, &sums[0],
                &sums[1]);
    }

    /* Tokens to come: all ranks have the same query, and the last one the new key and value.
     * Without a window a token sees all keys there are, so it does not matter that shares are in
     * two pieces. */
    uint16_t new_q[HEADS_Q * DIM], new_k[HEADS_KV * DIM], new_v[HEADS_KV * DIM];
    float out[HEADS_Q * DIM];
    a.len_q = 1, a.window_right = FA_NO_LIMIT;
    a.q.data = new_q, a.o.data = out;
    double seconds = 0;
    for (int64_t step = 0; step < steps; step++) {
        fa_mpi_run token = {tokens + step, 1};
        fill(new_q, QUERY, HEADS_Q, token), fill(new_k, KEY, HEADS_KV, token), fill(new_v, VALUE, HEADS_KV, token);
        if (rank == ranks - 1) {
            fa_tensor from_k = a.k, from_v = a.v;
            from_k.data = new_k, from_v.data = new_v;
            a.len_kv++; /* counts the new one, which is the last */
            must(fa_cache_append(&a, &from_k, &from_v, NULL, 0), mpi);
        }
        double start = MPI_Wtime();
        must(fa_mpi_decode(mpi, &a, FA_MPI_AUTO, NULL, 0, pool), mpi);
        seconds += MPI_Wtime() - start;
        if (step == steps - 1 && rank == 0)
            compare(out + 3 * DIM, token.position, 3, &sums[0], &sums[1]);
    }

    double all[2], error;
    MPI_Allreduce(sums, all, 2, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    error = all[1] > 0 ? sqrt(all[0] / all[1]) : 0;
    if (rank == 0) {
        printf("decode: %s\n", fa_mpi_words(mpi));
        printf("%lld tokens more, %.3f ms each\n", (long long)steps, steps > 0 ? 1e3 * seconds / (double)steps : 0);
        printf("relative RMS error of some rows: %.1e (bf16)\n", error);
    }
    free(q), free(k), free(v), free(o);
    fa_mpi_free(mpi);
    fa_pool_destroy(pool);
    MPI_Finalize();
    return error < 1e-2 ? 0 : 1;
}
