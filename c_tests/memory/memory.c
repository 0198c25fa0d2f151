/* Memory: the matrix of scores never exists, and scratch that cannot be had is a status.
 */

#define _POSIX_C_SOURCE 200809L

#include "check.h"
#include "limit.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

static fa_config config_of(size_t dim, uint32_t num_threads) {
    fa_config cfg;
    CHECK(fa_config_auto(&cfg, dim) == FA_OK, "constructor");
    cfg.num_threads = num_threads;
    return cfg;
}

/* 65536 x 65536 scores would be 16 GiB. */
static void long_sequence(void) {
    enum { LEN = 65536, DIM = 8, SPARE = 32 << 20 };
    static const size_t rows[] = {0, 12345, LEN - 1};
    float *q = random_normal(LEN * DIM), *k = random_normal(LEN * DIM);
    float *v = random_normal(LEN * DIM), *out = need(LEN * DIM * sizeof *out);
    memset(out, 0xff, LEN * DIM * sizeof *out);
    fa_config cfg = config_of(DIM, 1);
    cfg.causal = true;
    limit_memory(SPARE);
    fa_status status = fa_forward_f32(&cfg, q, k, v, LEN, LEN, out);
    limit_memory(SIZE_MAX);
    CHECK(status == FA_OK, "%s", fa_status_string(status));
    for (size_t i = 0; i < COUNT(rows); i++) {
        double want[DIM];
        size_t at = rows[i] * DIM;
        ref_attention(q + at, k, v, 1, 1, rows[i] + 1, DIM, false, (double)cfg.softmax_scale, want);
        double error = distance(out + at, want, DIM);
        CHECK(error <= 1e-5 * largest(v, LEN * DIM), "row %zu: error %g", rows[i], error);
    }
    free(q), free(k), free(v), free(out);
}

/* What the library says that it needs. */
static size_t scratch(const fa_config *cfg, int32_t dtype, size_t heads, size_t len) {
    size_t bytes = SIZE_MAX;
    CHECK(fa_scratch_bytes(cfg, dtype, heads, len, len, &bytes) == FA_OK, "fa_scratch_bytes");
    return bytes;
}

/* At most linear in the length and not a function of the heads; nothing like a matrix of scores. */
static void growth(void) {
    static const int32_t types[] = {FA_DTYPE_F32, FA_DTYPE_I8};
    static const uint32_t threads[] = {1, 4};
    static const size_t blocks[][2] = {{0, 0}, {64, 64}, {32, 128}, {SIZE_MAX, 64}, {64, SIZE_MAX},
                                       {SIZE_MAX, SIZE_MAX}};
    for (size_t t = 0; t < COUNT(types); t++) {
        for (size_t n = 0; n < COUNT(threads); n++) {
            for (size_t b = 0; b < COUNT(blocks); b++) {
                fa_config cfg = config_of(64, threads[n]);
                cfg.block_size_q = blocks[b][0], cfg.block_size_kv = blocks[b][1];
                /* Long enough for all threads from the first step on. */
                size_t last = scratch(&cfg, types[t], 8, 1024);
                CHECK(last > 0, "no scratch memory at all");
                for (size_t len = 2048; len <= (size_t)1 << 24; len *= 2) {
                    size_t now = scratch(&cfg, types[t], 8, len);
                    CHECK(now <= 2 * last, "%zu keys: %zu bytes, half as many: %zu", len, now,
                          last);
                    last = now;
                }
                /* Below a thousandth of the matrix, with whole sequences as tiles too. */
                double matrix = 4.0 * (1 << 24) * (1 << 24);
                CHECK((double)last * 1000 < matrix, "%zu bytes", last);
                CHECK(scratch(&cfg, types[t], 1 << 10, 4096) <= scratch(&cfg, types[t], 8, 4096),
                      "grows with the number of heads");
                if (blocks[b][0] <= 64 && blocks[b][1] <= 128) {
                    /* The library's own tiles are larger where K and V come from memory. */
                    size_t most = scratch(&cfg, types[t], 8, 4096) * (blocks[b][0] == 0 ? 2 : 1);
                    CHECK(last <= most, "fixed tiles, but %zu bytes", last);
                }
            }
        }
    }
}

/* Scratch that does not fit: refused, and nothing written; with the limit gone the call works. */
static void too_little(void) {
    enum { DIM = 1 << 17, LQ = 64, LKV = 4 };
    size_t nq = (size_t)LQ * DIM, nkv = (size_t)LKV * DIM, bytes = 0;
    float *q = need(nq * sizeof *q), *out = need(nq * sizeof *out);
    float *k = need(nkv * sizeof *k), *v = need(nkv * sizeof *v);
    for (size_t i = 0; i < nq; i++) q[i] = (float)(i % 7) * 0.25f;
    for (size_t i = 0; i < nkv; i++) k[i] = (float)(i % 5) * 0.01f, v[i] = (float)(i / DIM + 1);
    memset(out, 0xa5, nq * sizeof *out);
    for (uint32_t threads = 0; threads <= 2; threads++) {
        fa_config cfg = config_of(DIM, threads);
        cfg.block_size_q = 64;
        CHECK(fa_scratch_bytes(&cfg, FA_DTYPE_F32, 1, LQ, LKV, &bytes) == FA_OK, "scratch");
        CHECK(bytes >= 32 << 20, "%zu bytes: this test needs a call that needs more", bytes);
        limit_memory(bytes / 2);
        fa_status status = fa_forward_f32(&cfg, q, k, v, LQ, LKV, out);
        fa_status again = fa_mha(&cfg, q, k, v, 1, LQ, LKV, out);
        limit_memory(SIZE_MAX);
        CHECK(status == FA_ERR_MEMORY && again == FA_ERR_MEMORY, "%zu bytes needed: %s, %s", bytes,
              fa_status_string(status), fa_status_string(again));
        size_t written = 0;
        for (size_t i = 0; i < nq * sizeof *out; i++) written += ((unsigned char *)out)[i] != 0xa5;
        CHECK(written == 0, "%zu bytes of the output have changed", written);
    }
    fa_config cfg = config_of(DIM, 1);
    cfg.block_size_q = 64;
    CHECK(fa_forward_f32(&cfg, q, k, v, LQ, LKV, out) == FA_OK, "after the limit");
    double want[LKV], sum = 0, mean = 0;
    for (int j = 0; j < LKV; j++) {
        double dot = 0;
        for (size_t d = 0; d < DIM; d++) dot += (double)q[d] * (double)k[(size_t)j * DIM + d];
        sum += want[j] = exp(dot * (double)cfg.softmax_scale);
    }
    for (int j = 0; j < LKV; j++) mean += want[j] / sum * (j + 1);
    for (size_t d = 0; d < DIM; d += 1001) {
        CHECK(fabs((double)out[d] - mean) < 1e-3, "%g instead of %g", (double)out[d], mean);
    }
    free(q), free(k), free(v), free(out);
}

int main(void) {
    long_sequence();
    growth();
    too_little();
    return check_result();
}
