/* What a query does not see does not matter, even if it is NaN or memory that is not there. */

#define _GNU_SOURCE

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* Lengths with rows that see nothing, one key, all keys; longer than one tile both ways. */
static const size_t lengths[][2] = {{1, 9}, {37, 37}, {21, 53}, {53, 21}, {70, 140}};
static const size_t dims[] = {1, 7, 33};
static const size_t key_blocks[] = {0, 8};

/* The problem at hand; each test changes the inputs and puts them back. */
static fa_config cfg;
static size_t lq, lkv, dim;
static float *q, *k, *v, *clean, *out;

static void compute(float *into) {
    memset(into, 0xff, lq * dim * sizeof *into);
    fa_status status = fa_forward_f32(&cfg, q, k, v, lq, lkv, into);
    CHECK(status == FA_OK, "%s", fa_status_string(status));
}

static bool sees(size_t row, size_t key) {
    return key < keys_seen(row, lq, lkv, cfg.causal);
}

static bool same_row(size_t i) {
    return same_bits(out + i * dim, clean + i * dim, dim);
}

static bool row_is_nan(size_t i) {
    for (size_t c = 0; c < dim; c++) {
        if (!isnan(out[i * dim + c])) return false;
    }
    return true;
}

static void fill(float *row, float x) {
    for (size_t c = 0; c < dim; c++) row[c] = x;
}

/* Goes through positions 0 to n: all at the ends, some between, because there are many calls. */
static size_t next(size_t at, size_t n) {
    return at < 20 || at + 8 >= n ? at + 1 : at + 5;
}

#define WHERE "%s %zux%zux%zu causal %d block_kv %zu"
#define HERE fa_isa(), lq, lkv, dim, cfg.causal, cfg.block_size_kv

/* One key at a time, at every position: all rows that do not see it keep their bits. */
static void poison_one_key(void) {
    static const float poisons[] = {NAN, INFINITY, -INFINITY};
    float *saved_k = need(dim * sizeof *saved_k), *saved_v = need(dim * sizeof *saved_v);
    for (size_t j = 0; j < lkv; j = next(j, lkv)) {
        memcpy(saved_k, k + j * dim, dim * sizeof *k);
        memcpy(saved_v, v + j * dim, dim * sizeof *v);
        for (size_t p = 0; p < COUNT(poisons); p++) {
            for (int what = 1; what <= 3; what++) {
                if (what & 1) fill(k + j * dim, poisons[p]);
                if (what & 2) fill(v + j * dim, poisons[p]);
                compute(out);
                for (size_t i = 0; i < lq; i++) {
                    if (!sees(i, j)) {
                        CHECK(same_row(i), WHERE ": %g in key %zu shows in row %zu", HERE,
                              (double)poisons[p], j, i);
                    } else if (isnan(poisons[p])) {
                        CHECK(row_is_nan(i), WHERE ": NaN in key %zu not in row %zu", HERE, j, i);
                    } else if (what & 2) {
                        CHECK(!isfinite(out[i * dim]), WHERE ": %g in key %zu not in row %zu", HERE,
                              (double)poisons[p], j, i);
                    }
                }
                memcpy(k + j * dim, saved_k, dim * sizeof *k);
                memcpy(v + j * dim, saved_v, dim * sizeof *v);
            }
        }
    }
    free(saved_k), free(saved_v);
}

/* Everything behind a row's last key: for this row and those before it nothing has changed. */
static void poison_the_future(void) {
    size_t bytes = lkv * dim * sizeof *k;
    float *saved_k = need(bytes), *saved_v = need(bytes);
    memcpy(saved_k, k, bytes), memcpy(saved_v, v, bytes);
    for (size_t i = 0; i < lq; i = next(i, lq)) {
        for (size_t j = keys_seen(i, lq, lkv, true); j < lkv; j++) {
            fill(k + j * dim, j % 2 ? NAN : INFINITY);
            fill(v + j * dim, j % 3 ? NAN : -INFINITY);
        }
        compute(out);
        for (size_t r = 0; r <= i; r++) {
            CHECK(same_row(r), WHERE ": the future of row %zu shows in row %zu", HERE, i, r);
        }
        memcpy(k, saved_k, bytes), memcpy(v, saved_v, bytes);
    }
    free(saved_k), free(saved_v);
}

/* One NaN in V: in its column of the rows that see it, nowhere else. One in K: in whole rows. */
static void poison_one_element(void) {
    for (size_t j = 0; j < lkv; j = next(j, lkv)) {
        for (size_t d = 0; d < dim; d += dim < 4 ? 1 : dim / 3) {
            size_t at = j * dim + d;
            float saved_v = v[at], saved_k = k[at];
            v[at] = NAN;
            compute(out);
            v[at] = saved_v;
            for (size_t i = 0; i < lq; i++) {
                for (size_t c = 0; c < dim; c++) {
                    float got = out[i * dim + c];
                    if (c == d && sees(i, j)) {
                        CHECK(isnan(got), WHERE ": NaN in v[%zu][%zu] not in row %zu", HERE, j, d,
                              i);
                    } else {
                        CHECK(same_bits(&got, &clean[i * dim + c], 1),
                              WHERE ": NaN in v[%zu][%zu] shows in out[%zu][%zu]", HERE, j, d, i,
                              c);
                    }
                }
            }
            k[at] = NAN;
            compute(out);
            k[at] = saved_k;
            for (size_t i = 0; i < lq; i++) {
                CHECK(sees(i, j) ? row_is_nan(i) : same_row(i),
                      WHERE ": NaN in k[%zu][%zu] and row %zu", HERE, j, d, i);
            }
        }
    }
}

/* A NaN in a query: its row, whole, unless it sees nothing; no other. */
static void poison_one_query(void) {
    for (size_t i = 0; i < lq; i = next(i, lq)) {
        size_t at = i * dim + i % dim;
        float saved = q[at];
        q[at] = NAN;
        compute(out);
        q[at] = saved;
        for (size_t r = 0; r < lq; r++) {
            CHECK(r == i && sees(r, 0) ? row_is_nan(r) : same_row(r),
                  WHERE ": NaN in query %zu and row %zu", HERE, i, r);
        }
    }
}

/* Scores of -inf: weight 0, also for all keys of a tile; NaN only where a row sees no other. */
static void infinite_scores(void) {
    float *saved_q = need(lq * dim * sizeof *q), *saved_k = need(lkv * dim * sizeof *k);
    float *saved_v = need(lkv * dim * sizeof *v);
    double *want = need(lq * dim * sizeof *want);
    memcpy(saved_q, q, lq * dim * sizeof *q);
    memcpy(saved_k, k, lkv * dim * sizeof *k);
    memcpy(saved_v, v, lkv * dim * sizeof *v);
    for (size_t i = 0; i < lq; i++) q[i * dim] = fabsf(q[i * dim]) + 0.1f;
    for (int pattern = 0; pattern < 5; pattern++) {
        for (size_t j = 0; j < lkv; j++) {
            bool excluded = pattern == 0   ? j == 0
                            : pattern == 1 ? j == lkv / 2
                            : pattern == 2 ? j % 2 == 0
                            : pattern == 3 ? j + 1 < lkv
                                           : j < lkv / 2;
            if (excluded) k[j * dim] = -INFINITY;
        }
        compute(out);
        ref_attention(q, k, v, 1, lq, lkv, dim, cfg.causal, (double)cfg.softmax_scale, want);
        double bound = 1e-5 * largest(v, lkv * dim);
        for (size_t i = 0; i < lq; i++) {
            for (size_t c = 0; c < dim; c++) {
                double x = (double)out[i * dim + c], y = want[i * dim + c];
                CHECK(isnan(y) ? isnan(x) : fabs(x - y) <= bound,
                      WHERE ": -inf pattern %d: out[%zu][%zu] is %g instead of %g", HERE, pattern,
                      i, c, x, y);
            }
        }
        memcpy(k, saved_k, lkv * dim * sizeof *k);
    }
    memcpy(q, saved_q, lq * dim * sizeof *q);
    free(saved_q), free(saved_k), free(saved_v), free(want);
}

/* Values so small that their products are zeros with a sign: the values behind a row's last key
 * have signs too, and those must not show. A key of full weight would make the sum more than a
 * zero, so the heaviest ones get the value 0. */
static void signs_of_zero(void) {
    size_t bytes = lkv * dim * sizeof *v;
    float *saved_v = need(bytes), *positive = need(lq * dim * sizeof *positive);
    double *score = need(lkv * sizeof *score);
    memcpy(saved_v, v, bytes);
    for (size_t i = 0; i < lq; i = next(i, lq)) {
        size_t n = keys_seen(i, lq, lkv, cfg.causal);
        double max = -INFINITY;
        for (size_t j = 0; j < n; j++) {
            const float *x = q + i * dim, *y = k + j * dim;
            score[j] = 0;
            for (size_t c = 0; c < dim; c++) score[j] += (double)x[c] * (double)y[c];
            score[j] *= (double)cfg.softmax_scale;
            max = fmax(max, score[j]);
        }
        for (size_t j = 0; j < n; j++) fill(v + j * dim, score[j] < max - 1 ? -0x1p-149f : 0);
        for (size_t j = n; j < lkv; j++) fill(v + j * dim, 1);
        compute(positive);
        for (size_t j = n; j < lkv; j++) fill(v + j * dim, -1);
        compute(out);
        CHECK(same_bits(out + i * dim, positive + i * dim, dim),
              WHERE ": row %zu shows signs of values that it does not see", HERE, i);
    }
    memcpy(v, saved_v, bytes);
    free(saved_v), free(positive), free(score);
}

static void poisons(void) {
    for (size_t l = 0; l < COUNT(lengths); l++) {
        for (size_t d = 0; d < COUNT(dims); d++) {
            lq = lengths[l][0], lkv = lengths[l][1], dim = dims[d];
            q = random_normal(lq * dim), k = random_normal(lkv * dim), v = random_normal(lkv * dim);
            clean = need(lq * dim * sizeof *clean), out = need(lq * dim * sizeof *out);
            for (size_t b = 0; b < COUNT(key_blocks); b++) {
                for (int causal = 1; causal >= 0; causal--) {
                    CHECK(fa_config_auto(&cfg, dim) == FA_OK, "constructor");
                    cfg.block_size_kv = key_blocks[b];
                    cfg.num_threads = 1;
                    cfg.causal = causal;
                    compute(clean);
                    poison_one_query();
                    infinite_scores();
                    poison_one_element();
                    if (!causal) continue;
                    poison_one_key();
                    poison_the_future();
                    signs_of_zero();
                }
            }
            free(q), free(k), free(v), free(clean), free(out);
        }
    }
}

/* Memory between two pages that nobody may touch. */
struct fenced {
    unsigned char *memory;
    size_t bytes;
};

static struct fenced fence(size_t bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    bytes = (bytes + page - 1) / page * page;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    unsigned char *all = mmap(NULL, bytes + 2 * page, PROT_NONE, flags, -1, 0);
    if (all == MAP_FAILED || mprotect(all + page, bytes, PROT_READ | PROT_WRITE) != 0) {
        fputs("cannot set up guard pages\n", stderr);
        exit(2);
    }
    return (struct fenced){all + page, bytes};
}

/* An array of so many bytes that begins, or ends, where the memory does. */
static void *place(struct fenced f, size_t bytes, bool at_end) {
    return at_end ? f.memory + f.bytes - bytes : f.memory;
}

enum { GUARD_LQ = 35, GUARD_LKV = 66, GUARD_DIM = 67 };

static struct fenced fences[4];
static float *inputs[3];
static int8_t *inputs_i8[3];

static fa_status attend(bool is_i8, const void *a, const void *b, const void *c, float *o) {
    if (is_i8) return fa_forward_i8(&cfg, a, b, c, 0.05f, 0.05f, 0.05f, lq, lkv, o);
    return fa_forward_f32(&cfg, a, b, c, lq, lkv, o);
}

/* What to say when a guard page is touched: in a signal handler it is too late to format it. */
static char current[200];

static void touched(int signal) {
    (void)signal;
    ssize_t written = write(2, current, strlen(current));
    _exit(written < 0 ? 2 : 1);
}

static void guarded_call(bool is_i8) {
    static float want[GUARD_LQ * GUARD_DIM];
    size_t size = is_i8 ? 1 : sizeof(float);
    size_t n_q = lq * dim, n_kv = lkv * dim;
    size_t bytes[] = {n_q * size, n_kv * size, n_kv * size, n_q * sizeof(float)};
    const void *plain[3], *fenced[3];
    for (int i = 0; i < 3; i++) plain[i] = is_i8 ? (const void *)inputs_i8[i] : inputs[i];
    CHECK(attend(is_i8, plain[0], plain[1], plain[2], want) == FA_OK, "without guard pages");
    for (int at_end = 0; at_end < 2; at_end++) {
        for (int i = 0; i < 3; i++) {
            void *array = place(fences[i], bytes[i], at_end);
            memcpy(array, plain[i], bytes[i]);
            fenced[i] = array;
        }
        memset(fences[3].memory, 0xa5, fences[3].bytes);
        float *o = place(fences[3], bytes[3], at_end);
        snprintf(current, sizeof current, WHERE ": memory %s an array touched, i8 %d\n", HERE,
                 at_end ? "behind" : "before", is_i8);
        CHECK(attend(is_i8, fenced[0], fenced[1], fenced[2], o) == FA_OK, "with guard pages");
        CHECK(memcmp(o, want, bytes[3]) == 0, WHERE ": other bits next to guard pages, i8 %d", HERE,
              is_i8);
        const unsigned char *rest = at_end ? fences[3].memory : fences[3].memory + bytes[3];
        size_t changed = 0;
        for (size_t i = 0; i < fences[3].bytes - bytes[3]; i++) changed += rest[i] != 0xa5;
        CHECK(changed == 0, WHERE ": %zu bytes around the output written, i8 %d", HERE, changed,
              is_i8);
    }
}

static void guards(void) {
    static const size_t rows[] = {1, 2, 15, 17, GUARD_LQ};
    static const size_t keys[] = {1, 3, 16, 31, GUARD_LKV};
    static const size_t widths[] = {1, 2, 3, 5, 7, 8, 13, 17, 31, 33, GUARD_DIM};
    for (size_t r = 0; r < COUNT(rows); r++) {
        for (size_t n = 0; n < COUNT(keys); n++) {
            for (size_t w = 0; w < COUNT(widths); w++) {
                lq = rows[r], lkv = keys[n], dim = widths[w];
                for (int variant = 0; variant < 4; variant++) {
                    CHECK(fa_config_auto(&cfg, dim) == FA_OK, "constructor");
                    cfg.causal = variant & 1;
                    cfg.block_size_kv = variant & 2 ? 5 : 0;
                    cfg.num_threads = 1;
                    guarded_call(false);
                    guarded_call(true);
                }
            }
        }
    }
}

static void test_guards(void) {
    size_t most = (size_t)GUARD_LKV * GUARD_DIM;
    for (int i = 0; i < 4; i++) fences[i] = fence(most * sizeof(float));
    for (int i = 0; i < 3; i++) {
        inputs[i] = random_normal(most);
        inputs_i8[i] = need(most);
        for (size_t j = 0; j < most; j++) inputs_i8[i][j] = (int8_t)(random_bits() % 256 - 128);
    }
    strcpy(current, "a crash that has nothing to do with guard pages\n");
    signal(SIGSEGV, touched), signal(SIGBUS, touched);
    for_each_isa(guards);
    for (int i = 0; i < 3; i++) free(inputs[i]), free(inputs_i8[i]);
}

int main(void) {
    for_each_isa(poisons);
    test_guards();
    return check_result();
}
