/* The three computing functions against the definition, over shapes, tiles and threads. */

#include "check.h"

enum { HEADS = 3 };

static const size_t dims[] = {1, 7, 64, 80, 128, 257};
static const size_t lengths[][2] = {{1, 1}, {1, 300}, {17, 33}, {33, 17}, {128, 128}, {129, 257}};
static const size_t blocks[] = {0, 1, 3, 64, SIZE_MAX};
static const uint32_t threads[] = {1, 2, 7, 0};

#define COUNT(array) (sizeof(array) / sizeof *(array))

static fa_config config_of(size_t dim, bool causal, size_t block_q, size_t block_kv,
                           uint32_t num_threads) {
    return (fa_config){
        .block_size_q = block_q,
        .block_size_kv = block_kv,
        .head_dim = dim,
        .causal = causal,
        .softmax_scale = (float)(1 / sqrt((double)dim)),
        .num_threads = num_threads,
        .reserved = 0,
    };
}

/* An output that no result looks like, so that what is not written shows. */
static void forget(float *out, size_t n) {
    memset(out, 0xff, n * sizeof *out);
}

static void check_blind_rows(const float *out, size_t heads, size_t lq, size_t lkv, size_t dim) {
    for (size_t i = 0; i < heads * lq * dim; i++) {
        if (keys_seen(i / dim % lq, lq, lkv, true) == 0) {
            CHECK(out[i] == 0, "%zux%zux%zu: element %zu is %g", lq, lkv, dim, i, (double)out[i]);
        }
    }
}

static void check_f32(size_t dim, size_t lq, size_t lkv, bool causal) {
    size_t nq = HEADS * lq * dim, nkv = HEADS * lkv * dim;
    float *q = random_normal(nq), *k = random_normal(nkv), *v = random_normal(nkv);
    float *base = need(nq * sizeof *base), *out = need(nq * sizeof *out);
    double *want = need(nq * sizeof *want);
    double bound = 1e-5 * largest(v, nkv);
    fa_config cfg = config_of(dim, causal, 0, 0, 1);
    ref_attention(q, k, v, HEADS, lq, lkv, dim, causal, (double)cfg.softmax_scale, want);

    for (size_t b = 0; b < COUNT(blocks); b++) {
        cfg = config_of(dim, causal, 0, blocks[b], 1);
        forget(base, nq);
        fa_status status = fa_mha(&cfg, q, k, v, HEADS, lq, lkv, base);
        CHECK(status == FA_OK, "%zux%zux%zu: %s", lq, lkv, dim, fa_status_string(status));
        double error = distance(base, want, nq);
        CHECK(error <= bound, "%zux%zux%zu causal %d block_kv %zu: error %g > %g", lq, lkv, dim,
              causal, blocks[b], error, bound);
        if (causal) check_blind_rows(base, HEADS, lq, lkv, dim);

        for (size_t h = 0; h < HEADS; h++) {
            cfg.num_threads = threads[(h + b) % COUNT(threads)];
            forget(out, lq * dim);
            status = fa_forward_f32(&cfg, q + h * lq * dim, k + h * lkv * dim, v + h * lkv * dim,
                                    lq, lkv, out);
            CHECK(status == FA_OK && same_bits(out, base + h * lq * dim, lq * dim),
                  "%zux%zux%zu causal %d block_kv %zu: head %zu alone has other bits", lq, lkv,
                  dim, causal, blocks[b], h);
        }
        for (size_t bq = 0; bq < COUNT(blocks); bq++) {
            for (size_t t = 0; t < COUNT(threads); t++) {
                /* Not all pairs with all others: that would take half a minute without SIMD. */
                if (bq % 2 == 1 && t != (b + bq) % COUNT(threads)) continue;
                cfg = config_of(dim, causal, blocks[bq], blocks[b], threads[t]);
                forget(out, nq);
                status = fa_mha(&cfg, q, k, v, HEADS, lq, lkv, out);
                CHECK(status == FA_OK && same_bits(out, base, nq),
                      "%zux%zux%zu causal %d block_kv %zu: other bits with block_q %zu, %u threads",
                      lq, lkv, dim, causal, blocks[b], blocks[bq], (unsigned)threads[t]);
            }
        }
    }
    free(q), free(k), free(v), free(base), free(out), free(want);
}

static int8_t *random_i8(size_t n) {
    int8_t *x = need(n);
    for (size_t i = 0; i < n; i++) x[i] = (int8_t)(random_bits() % 256 - 128);
    return x;
}

static float *dequantised(const int8_t *x, size_t n, float scale) {
    float *y = need(n * sizeof *y);
    for (size_t i = 0; i < n; i++) y[i] = (float)x[i] * scale;
    return y;
}

/* Takes q, k and v over. */
static void check_i8_of(int8_t *q, int8_t *k, int8_t *v, size_t dim, size_t lq, size_t lkv,
                        bool causal) {
    /* Powers of two, so that the dequantised inputs of the reference are exact. */
    const float q_scale = 0x1p-6f, k_scale = 0x1p-7f, v_scale = -0x1p-5f;
    size_t nq = lq * dim, nkv = lkv * dim;
    float *qf = dequantised(q, nq, q_scale), *kf = dequantised(k, nkv, k_scale);
    float *vf = dequantised(v, nkv, v_scale);
    float *base = need(nq * sizeof *base), *out = need(nq * sizeof *out);
    double *want = need(nq * sizeof *want);
    fa_config cfg = config_of(dim, causal, 0, 0, 1);
    ref_attention(qf, kf, vf, 1, lq, lkv, dim, causal, (double)cfg.softmax_scale, want);

    double usual = 0;
    for (size_t i = 0; i < nkv; i++) usual += pow((double)vf[i], 2) / (double)nkv / (double)lkv;

    for (size_t b = 0; b < COUNT(blocks); b++) {
        cfg = config_of(dim, causal, 0, blocks[b], 1);
        forget(base, nq);
        fa_status status = fa_forward_i8(&cfg, q, k, v, q_scale, k_scale, v_scale, lq, lkv, base);
        CHECK(status == FA_OK, "%zux%zux%zu: %s", lq, lkv, dim, fa_status_string(status));
        double error = 0, norm = 0;
        for (size_t i = 0; i < nq; i++) {
            error += pow((double)base[i] - want[i], 2);
            norm += pow(want[i], 2);
        }
        /* A handful of numbers has no mean to speak of, and one of them may be next to 0 by chance:
         * as large as the mean of so many values is, errors may be, too. */
        norm = fmax(norm, (double)nq * usual);
        double most = (nq < 256 ? 4 : 1) * i8_bound(fa_isa());
        CHECK(sqrt(error) <= most * sqrt(norm),
              "i8 %zux%zux%zu causal %d block_kv %zu: relative error %g", lq, lkv, dim, causal,
              blocks[b], sqrt(error / norm));
        if (causal) check_blind_rows(base, 1, lq, lkv, dim);

        for (size_t bq = 0; bq < COUNT(blocks); bq++) {
            cfg = config_of(dim, causal, blocks[bq], blocks[b], threads[(b + bq) % COUNT(threads)]);
            forget(out, nq);
            status = fa_forward_i8(&cfg, q, k, v, q_scale, k_scale, v_scale, lq, lkv, out);
            CHECK(status == FA_OK && same_bits(out, base, nq),
                  "i8 %zux%zux%zu causal %d block_kv %zu: other bits with block_q %zu, %u threads",
                  lq, lkv, dim, causal, blocks[b], blocks[bq], (unsigned)cfg.num_threads);
        }
    }
    free(q), free(k), free(v), free(qf), free(kf), free(vf), free(base), free(out), free(want);
}

static void check_i8(size_t dim, size_t lq, size_t lkv, bool causal) {
    check_i8_of(random_i8(lq * dim), random_i8(lkv * dim), random_i8(lkv * dim), dim, lq, lkv,
                causal);
}

/* The largest dot product that there is: sums of 16 bits or saturating ones show. */
static void check_i8_extreme(size_t dim) {
    const size_t lq = 5, lkv = 9;
    int8_t *q = need(lq * dim), *k = need(lkv * dim);
    memset(q, -128, lq * dim);
    for (size_t i = 0; i < lkv * dim; i++) k[i] = (int8_t)(i / dim % 3 == 0 ? 127 : -128);
    check_i8_of(q, k, random_i8(lkv * dim), dim, lq, lkv, false);
}

static void check_constructors(void) {
    static const struct {
        fa_status (*fill)(fa_config *, size_t);
        size_t block_q, block_kv;
    } all[] = {
        {fa_config_for_head_dim, 64, 64},
        {fa_config_for_long_sequence, 32, 128},
        {fa_config_auto, 0, 0},
    };
    enum { LQ = 100, LKV = 300 };
    for (size_t i = 0; i < COUNT(dims); i++) {
        size_t dim = dims[i];
        float *q = random_normal(LQ * dim), *k = random_normal(LKV * dim);
        float *v = random_normal(LKV * dim);
        float *out[COUNT(all)];
        double *want = need(LQ * dim * sizeof *want);
        double scale = 1 / sqrt((double)dim);
        double bound = 2e-6 * largest(v, LKV * dim);
        ref_attention(q, k, v, 1, LQ, LKV, dim, false, scale, want);
        for (size_t c = 0; c < COUNT(all); c++) {
            fa_config cfg;
            memset(&cfg, 0xff, sizeof cfg);
            CHECK(all[c].fill(&cfg, dim) == FA_OK, "constructor %zu, head_dim %zu", c, dim);
            CHECK(cfg.block_size_q == all[c].block_q && cfg.block_size_kv == all[c].block_kv,
                  "constructor %zu: tiles of %zu x %zu", c, cfg.block_size_q, cfg.block_size_kv);
            CHECK(cfg.head_dim == dim, "constructor %zu: head_dim %zu", c, cfg.head_dim);
            unsigned char causal;
            memcpy(&causal, (const char *)&cfg + offsetof(fa_config, causal), 1);
            CHECK(causal == 0, "constructor %zu: causal %u", c, causal);
            CHECK(fabs((double)cfg.softmax_scale - scale) <= 0x1p-24 * scale,
                  "constructor %zu: softmax_scale %.9g", c, (double)cfg.softmax_scale);
            CHECK(cfg.num_threads == 0 && cfg.reserved == 0, "constructor %zu: %u threads, %u", c,
                  (unsigned)cfg.num_threads, (unsigned)cfg.reserved);
            out[c] = need(LQ * dim * sizeof(float));
            CHECK(fa_forward_f32(&cfg, q, k, v, LQ, LKV, out[c]) == FA_OK, "constructor %zu", c);
            double error = distance(out[c], want, LQ * dim);
            CHECK(error <= bound, "constructor %zu, head_dim %zu: %g > %g", c, dim, error, bound);
        }
        for (size_t c = 1; c < COUNT(all); c++) {
            for (size_t j = 0; j < LQ * dim; j++) want[j] = (double)out[0][j];
            double error = distance(out[c], want, LQ * dim);
            CHECK(error <= bound, "constructors 0 and %zu, head_dim %zu: %g apart", c, dim, error);
        }
        for (size_t c = 0; c < COUNT(all); c++) free(out[c]);
        free(q), free(k), free(v), free(want);
    }
}

/* 0 is the usual scale, as in fa_attention; what is as good as 0 weighs all keys alike. */
static void check_scales(void) {
    enum { DIM = 32, LQ = 20, LKV = 50 };
    float *q = random_normal(LQ * DIM), *k = random_normal(LKV * DIM), *v = random_normal(LKV * DIM);
    float *usual = need(LQ * DIM * sizeof *usual), *out = need(LQ * DIM * sizeof *out);
    double *want = need(LQ * DIM * sizeof *want);
    fa_config cfg;
    CHECK(fa_config_auto(&cfg, DIM) == FA_OK, "constructor");
    CHECK(fa_forward_f32(&cfg, q, k, v, LQ, LKV, usual) == FA_OK, "the usual scale");
    for (int negative = 0; negative < 2; negative++) {
        cfg.softmax_scale = negative ? -0.0f : 0;
        forget(out, LQ * DIM);
        CHECK(fa_forward_f32(&cfg, q, k, v, LQ, LKV, out) == FA_OK && same_bits(out, usual, LQ * DIM), "scale 0");
    }
    cfg.softmax_scale = (float)FA_SCALE_ZERO;
    ref_attention(q, k, v, 1, LQ, LKV, DIM, false, 0, want);
    CHECK(fa_forward_f32(&cfg, q, k, v, LQ, LKV, out) == FA_OK, "FA_SCALE_ZERO");
    double error = distance(out, want, LQ * DIM);
    CHECK(error <= 2e-6 * largest(v, LKV * DIM), "FA_SCALE_ZERO: %g", error);
    free(q), free(k), free(v), free(usual), free(out), free(want);
}

int main(void) {
    const char *demanded = getenv("FA_MAX_ISA");
    if (demanded != NULL && *demanded != '\0') {
        int rank = best_up_to(isa_rank(demanded));
        CHECK(isa_rank(fa_isa()) == rank, "FA_MAX_ISA=%s, but fa_isa() is %s", demanded, fa_isa());
    }
    for (size_t i = 0; i < COUNT(dims); i++) {
        for (size_t l = 0; l < COUNT(lengths); l++) {
            for (int causal = 0; causal < 2; causal++) {
                check_f32(dims[i], lengths[l][0], lengths[l][1], causal);
                check_i8(dims[i], lengths[l][0], lengths[l][1], causal);
            }
        }
        check_i8_extreme(dims[i]);
    }
    check_constructors();
    check_scales();
    return check_result();
}
