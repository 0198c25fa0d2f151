/**
 * @file
 * Attention over the processes of MPI: contexts and caches that are larger than one machine.
 *
 * Each process (rank) has a share of a sequence. Prefill has shares of queries, keys and values:
 * keys and values travel, and each rank computes its own query rows. Decode has a few query rows
 * on every rank, and shares of a cache: nothing travels but results.
 *
 *     fa_mpi *mpi;
 *     fa_mpi_create(MPI_COMM_WORLD, NULL, &mpi);
 *
 *     fa_attention a;                            // of this rank's rows: see flash_attention.h
 *     ...
 *     fa_mpi_prefill_options options = {sizeof options}; // shares in the order of ranks
 *     if (fa_mpi_prefill(mpi, &a, &options, NULL, 0, NULL) != FA_OK) puts(fa_mpi_words(mpi));
 *
 *     fa_mpi_decode(mpi, &a, FA_MPI_AUTO, NULL, 0, NULL);
 *
 *     fa_mpi_free(mpi);
 *
 * @par Collective calls
 * fa_mpi_create, _free, _prefill, _prefill_workspace and _decode are called by all ranks of the
 * communicator, in the same order. Each of them agrees first: if one rank refuses its arguments or
 * has no memory, or if the ranks' descriptions do not fit each other, all ranks return the same
 * status, with the same words, and nothing has been sent or written. A rank that does not call, or
 * calls something else, is waited for, as in MPI itself.
 *
 * @par Errors
 * Functions return FA_OK, a value of fa_status as the library alone would, or a value of
 * fa_mpi_status. Two may differ between ranks: FA_ERR_INTERNAL, after which the exchange is
 * completed nevertheless, and FA_MPI_ERR_MPI, after which nothing is known about the others.
 *
 * @par Same bits
 * The same shares give the same bits, run after run, whatever arrives first, on any threads and in
 * every mode: partial results are merged in an order that depends on the ranks alone. Against one
 * process, or other shares, results differ within rounding: 1e-6 relative RMS where f32 computes
 * and scores are below 16.
 *
 * @par MPI
 * MPI 3.0. The communicator is duplicated, so that no tag or message of the program's is touched;
 * errors are returned from the duplicate, and error handlers of the program's stay as they are.
 * MPI_THREAD_FUNNELED is enough: only the calling thread calls MPI. One call at a time for an
 * fa_mpi; several of them may be used by turns.
 */

#ifndef FLASH_ATTENTION_MPI_H
#define FLASH_ATTENTION_MPI_H

#include <flash_attention.h>
#include <mpi.h>

#ifdef __cplusplus
extern "C" {
#endif

/** What functions return besides fa_status. Values are pinned. */
typedef enum fa_mpi_status {
    /** The ranks' descriptions disagree about what has to be the same. */
    FA_MPI_ERR_DISAGREE = 1001,
    /** Runs are negative, are not the rows that there are, or two of them have the same keys. */
    FA_MPI_ERR_RUNS = 1002,
    /** A function of MPI failed. */
    FA_MPI_ERR_MPI = 1003,
    /** Not a value of fa_mpi_mode. */
    FA_MPI_ERR_MODE = 1004
} fa_mpi_status;

/** How data travels. The mode changes time and memory, and no bit of a result. */
typedef enum fa_mpi_mode {
    /** The library chooses, on all ranks the same, and says what and why: fa_mpi_words. */
    FA_MPI_AUTO = 0,
    /**
     * Prefill: keys and values go round, from each rank to the next, while the last ones are
     * multiplied. Memory for two shares.
     * Decode: results are joined in log2(ranks) steps.
     */
    FA_MPI_RING = 1,
    /**
     * Prefill: each rank sends its keys and values at once to all who see some of them. Memory
     * for all that a rank sees; no rank waits for another one's computing.
     * Decode: all results go to all ranks in one step.
     */
    FA_MPI_ALL_GATHER = 2
} fa_mpi_mode;

/** Tokens behind one another: position, position + 1, ..., position + length - 1. */
typedef struct fa_mpi_run {
    int64_t position;
    int64_t length;
} fa_mpi_run;

/** Runs of a rank, at most. */
#define FA_MPI_MAX_RUNS 8

/** Where an fa_mpi gets memory; both functions are called on the calling thread alone. */
typedef struct fa_mpi_memory {
    /** As malloc; NULL = there is none. */
    void *(*allocate)(void *ctx, size_t bytes);
    /** As free; memory is not NULL. */
    void (*release)(void *ctx, void *memory);
    void *ctx;
} fa_mpi_memory;

/** How the shares of a prefill lie. All 0 but struct_size: one behind another, by rank. */
typedef struct fa_mpi_prefill_options {
    /** sizeof(fa_mpi_prefill_options). */
    size_t struct_size;
    /** A value of fa_mpi_mode. */
    int32_t mode;
    /** Entries of q_runs and kv_runs, at most FA_MPI_MAX_RUNS. On all ranks 0, or on none. */
    int32_t num_q_runs, num_kv_runs;
    /** 0. */
    int32_t reserved;
    /**
     * Positions of this rank's query rows, in the order of the rows. With num_q_runs = 0 the
     * query rows of all ranks stand behind one another, by rank, from position a->q_pos on
     * (FA_POS_END: so that the last row of all stands on the last key). A rank without rows has
     * one run of length 0.
     */
    const fa_mpi_run *q_runs;
    /**
     * Positions of this rank's keys, likewise; no two ranks have the same key. With num_kv_runs =
     * 0 the keys of all ranks stand behind one another, by rank, from position 0 on.
     */
    const fa_mpi_run *kv_runs;
} fa_mpi_prefill_options;

/** What the last call of an fa_mpi did on this rank. */
typedef struct fa_mpi_report {
    /** FA_MPI_RING or FA_MPI_ALL_GATHER: what was used. */
    int32_t mode;
    /** Messages that this rank sent. */
    int32_t messages;
    /** Bytes of keys, values and scales (prefill), or of results (decode). */
    int64_t bytes_sent, bytes_received;
    /** Bytes of workspace. */
    int64_t workspace;
    /** Pairs of a query row and a key that were multiplied, or hidden within a call. */
    int64_t pairs;
    /** Of the whole call; of it, in attention and merging; in agreeing on it; */
    double seconds, seconds_computing, seconds_agreeing;
    /** in moving data on between two pieces of computing; in waiting with nothing to compute. */
    double seconds_progressing, seconds_waiting;
} fa_mpi_report;

/** A communicator's duplicate and what goes with it. */
typedef struct fa_mpi fa_mpi;

/**
 * Makes an fa_mpi for the ranks of a communicator. Collective.
 *
 * @param comm        not MPI_COMM_NULL, no intercommunicator; may be freed afterwards
 * @param[in] memory  NULL = malloc and free; copied
 * @param[out] out    not NULL
 * @return FA_OK; FA_ERR_NULL; FA_ERR_MEMORY; FA_MPI_ERR_MPI (also before MPI_Init). On errors *out
 *         is untouched, on all ranks.
 */
int32_t fa_mpi_create(MPI_Comm comm, const fa_mpi_memory *memory, fa_mpi **out);

/** Frees it. Collective, before MPI_Finalize; NULL is fine, on all ranks. */
void fa_mpi_free(fa_mpi *mpi);

/**
 * Attention of queries in shares to keys and values in shares: the output of this rank's rows.
 *
 * a describes what this rank has: len_q and len_kv are its own, q, k, v, o and lse have as many
 * rows. Either may be 0, and lengths may differ between ranks. Everything else is as for
 * fa_attention_run, over the keys of all ranks: windows, causality and alibi_slopes by positions
 * in the whole sequence, sinks once. All entries of a batch have the same positions.
 *
 * The same on all ranks: batch, heads, dimensions, flags, scale, softcap, windows, types of k and
 * v, which axes their scales have (their values are the rank's own), whether there are sinks or
 * slopes, and q_pos where there are no q_runs. Types of q and o, strides and lse may differ.
 *
 * Refused, FA_ERR_UNSUPPORTED: cu_len_q, cu_len_kv, kv_lens, kv_starts, q_positions, block_table,
 * mask, block_mask, kept_start, column_start, spans, prefix_keys, weights,
 * o.quant.
 *
 * Keys and values are sent as they are stored, with scales as floats. What no query row of a rank
 * sees is neither sent to it nor multiplied by it (a ring sends on what later ranks see).
 *
 * @param[in] a        not NULL
 * @param[in] options  NULL = all 0
 * @param ws, ws_size  workspace: fa_mpi_prefill_workspace bytes, of any alignment. NULL and 0 = it
 *                     is allocated and released again
 * @param[in] pool     threads, as for fa_attention_run; NULL = the calling one
 * @return FA_OK; what fa_attention_run refuses a with; FA_ERR_UNSUPPORTED, FA_ERR_MEMORY,
 *         FA_ERR_WORKSPACE; fa_mpi_status
 */
int32_t fa_mpi_prefill(fa_mpi *mpi, const fa_attention *a, const fa_mpi_prefill_options *options, void *ws,
                       size_t ws_size, const fa_pool *pool);

/**
 * Bytes of workspace that this rank needs for fa_mpi_prefill with the same arguments on all ranks.
 * Collective. The answer holds for other data of the same sizes, strides and runs.
 *
 * @param[out] bytes  not NULL; untouched on errors
 * @return as fa_mpi_prefill
 */
int32_t fa_mpi_prefill_workspace(fa_mpi *mpi, const fa_attention *a, const fa_mpi_prefill_options *options,
                                 const fa_pool *pool, size_t *bytes);

/**
 * Attention of query rows that all ranks have to a cache in shares: the whole output on each rank.
 *
 * a describes the same queries everywhere, with the same numbers, and this rank's share of the
 * cache: dense, ragged or in pages, of any length, also 0, different for each sequence of a batch.
 * Every rank computes its partial result, and the results are joined in the order of ranks.
 *
 * Positions matter where there are windows, or slopes without FA_MASK_TIMES_SLOPE. Then shares
 * stand behind one another by rank, and q_pos and q_positions count from the first key of a whole
 * sequence; FA_POS_END has the last row of each sequence on its last key. Else any keys may be
 * anywhere. mask, block_mask, kept_blocks and columns are for this rank's keys.
 *
 * The same on all ranks: what fa_mpi_prefill wants, len_q and q_pos. Types of k and v may differ.
 *
 * Refused, FA_ERR_UNSUPPORTED: spans, prefix_keys, weights, o.quant.
 *
 * @param[in] a        not NULL
 * @param mode         a value of fa_mpi_mode
 * @param ws, ws_size  workspace: fa_mpi_decode_workspace bytes, of any alignment. NULL and 0 = it
 *                     is allocated and released again
 * @param[in] pool     threads, as for fa_attention_run; NULL = the calling one
 * @return as fa_mpi_prefill
 */
int32_t fa_mpi_decode(fa_mpi *mpi, const fa_attention *a, int32_t mode, void *ws, size_t ws_size, const fa_pool *pool);

/**
 * Bytes of workspace that fa_mpi_decode needs. Not collective. The answer holds as that of
 * fa_attention_workspace does: for all kv_lens with this len_kv.
 *
 * @param[out] bytes  not NULL; untouched on errors
 * @return as fa_mpi_decode, as far as one rank can know
 */
int32_t fa_mpi_decode_workspace(fa_mpi *mpi, const fa_attention *a, int32_t mode, const fa_pool *pool, size_t *bytes);

/**
 * Why the last call was refused, and by which rank; or, after FA_OK, which mode was chosen, and
 * why. On all ranks the same. In English; the wording may change in any version.
 *
 * @return ended by a zero byte; until the next call, or fa_mpi_free
 */
const char *fa_mpi_words(const fa_mpi *mpi);

/** What the last call did. */
void fa_mpi_last(const fa_mpi *mpi, fa_mpi_report *report);

/** One sentence for a status of this header, or of fa_status. A static string. */
const char *fa_mpi_status_string(int32_t status);

/** The run of a rank where so many tokens are shared out evenly, one share behind another. */
fa_mpi_run fa_mpi_contiguous(int64_t tokens, int rank, int size);

/**
 * The two runs of a rank where causal attention is as much work for each rank: of 2 * size pieces
 * behind one another, the one numbered rank and the one numbered 2 * size - 1 - rank.
 */
void fa_mpi_zigzag(int64_t tokens, int rank, int size, fa_mpi_run runs[2]);

#ifdef __cplusplus
}
#endif

#endif
