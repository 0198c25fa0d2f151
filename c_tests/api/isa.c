/* Instruction sets: their names, capping them, and that all of them compute the same. */

#define _POSIX_C_SOURCE 200809L

#include "check.h"
#include "environment.h"

enum { HEADS = 2, LQ = 70, LKV = 150, DIM = 72, NQ = HEADS * LQ * DIM, NKV = HEADS * LKV * DIM };

static float *q, *k, *v, *out;
static int8_t q8[LQ * DIM], k8[LKV * DIM], v8[LKV * DIM];
static double *want, *want_i8, bound, bound_i8;

/* Results of each instruction set, f32 and i8; doubles for `distance`. */
static double *results[ISAS][2];

static void compute(void) {
    int rank = isa_rank(fa_isa());
    if (rank < 0) return;
    fa_config cfg;
    CHECK(fa_config_for_head_dim(&cfg, DIM) == FA_OK, "constructor");
    cfg.causal = true;
    CHECK(fa_mha(&cfg, q, k, v, HEADS, LQ, LKV, out) == FA_OK, "%s", fa_isa());
    double error = distance(out, want, NQ);
    CHECK(error <= bound, "%s: %g > %g from double", fa_isa(), error, bound);
    results[rank][0] = need(NQ * sizeof(double));
    for (int i = 0; i < NQ; i++) results[rank][0][i] = (double)out[i];

    fa_status status = fa_forward_i8(&cfg, q8, k8, v8, 0x1p-5f, 0x1p-5f, 0x1p-5f, LQ, LKV, out);
    CHECK(status == FA_OK, "%s", fa_isa());
    error = distance(out, want_i8, LQ * DIM);
    double most = rank > 0 ? i8_bound(fa_isa()) : bound_i8;
    CHECK(error <= most, "%s, i8: %g > %g from double", fa_isa(), error, most);
    results[rank][1] = need(LQ * DIM * sizeof(double));
    for (int i = 0; i < LQ * DIM; i++) results[rank][1][i] = (double)out[i];
}

static float *quantised(const float *x, size_t n, int8_t *to) {
    float *y = need(n * sizeof *y);
    for (size_t i = 0; i < n; i++) {
        to[i] = (int8_t)lrint(fmax(-128, fmin(127, (double)x[i] * 32)));
        y[i] = (float)to[i] * 0x1p-5f;
    }
    return y;
}

static void compare_all(void) {
    for (int a = 0; a < ISAS; a++) {
        for (int b = 0; b < a; b++) {
            for (int type = 0; type < 2; type++) {
                const double *x = results[a][type], *y = results[b][type];
                if (x == NULL || y == NULL) continue;
                double apart = 0, most = type == 0 ? bound : i8_bound(isa_names[a]);
                int n = type == 0 ? NQ : LQ * DIM;
                for (int i = 0; i < n; i++) apart = fmax(apart, fabs(x[i] - y[i]));
                CHECK(apart <= most, "%s and %s, %s: %g apart", isa_names[a], isa_names[b],
                      type == 0 ? "f32" : "i8", apart);
            }
        }
    }
}

static void names_and_caps(void) {
    CHECK(isa_rank(fa_isa()) == machine_rank(), "%s on a machine with %s", fa_isa(),
          isa_names[machine_rank()]);
    for (int i = 0; i < ISAS; i++) {
        int best = best_up_to(i);
        CHECK(fa_limit_isa(isa_names[i]) == FA_OK, "%s", isa_names[i]);
        CHECK(strcmp(fa_isa(), isa_names[best]) == 0, "capped at %s: %s", isa_names[i], fa_isa());
        CHECK(fa_limit_isa("sse9") == FA_ERR_ISA, "an unknown name");
        CHECK(fa_limit_isa("") == FA_ERR_ISA, "no name");
        CHECK(strcmp(fa_isa(), isa_names[best]) == 0, "a refusal has changed it to %s", fa_isa());
        /* The name must not be remembered by its address. */
        char name[8] = "scalar";
        CHECK(fa_limit_isa(name) == FA_OK, "%s", name);
        strcpy(name, "avx512");
        CHECK(strcmp(fa_isa(), "scalar") == 0, "%s after the name has been overwritten", fa_isa());
    }
    CHECK(fa_limit_isa(NULL) == FA_OK, "NULL");
    CHECK(isa_rank(fa_isa()) == machine_rank(), "NULL does not take the cap back: %s", fa_isa());
}

/* Dot products of bfloat16 are taken by themselves only where they are faster: not on Intel's
 * machines, which do it if their instruction set is named. */
static void bf16_where_it_is_faster(void) {
    static uint16_t ones[64 * 32];
    static float to[64 * 32];
    fa_attention a;
    CHECK(fa_attention_init(&a, sizeof a) == FA_OK, "init");
    a.batch = a.heads_q = a.heads_kv = 1;
    a.len_q = a.len_kv = 64;
    a.dim_qk = a.dim_v = 32;
    a.q = a.k = a.v = (fa_tensor){.data = ones, .stride = {0, 0, 64}, .dtype = FA_DTYPE_BF16};
    a.o = (fa_tensor){.data = to, .stride = {0, 0, 128}, .dtype = FA_DTYPE_F32};
    bool is_intel = false;
#if defined(__x86_64__) && defined(__GNUC__)
    is_intel = __builtin_cpu_is("intel") != 0;
#endif
    /* The best that has them in vectors, and the next one. */
#ifdef __aarch64__
    enum { BEST = ISAS - 1 };
#else
    enum { BEST = ISAS - 2 };
#endif
    const char *best = isa_names[BEST], *named[] = {NULL, best, isa_names[BEST - 1]};
    for (int i = 0; i < 3; i++) {
        char why[256];
        CHECK(fa_limit_isa(named[i]) == FA_OK, "cap %d", i);
        CHECK(fa_attention_check(&a, why, sizeof why) == FA_OK, "%s", why);
        bool is_expected = machine_has(BEST) && (i == 1 || (i == 0 && !is_intel));
        CHECK((strncmp(why, best, strlen(best)) == 0) == is_expected, "cap %d: %s", i, why);
    }
    CHECK(fa_limit_isa(NULL) == FA_OK, "NULL");
}

/* Enabled, or refused with words and without an effect. */
static void matrix_unit(void) {
    char why[200] = "", shorter[8] = "", before[20];
    snprintf(before, sizeof before, "%s", fa_isa());
    fa_status status = fa_enable_amx(why, sizeof why);
    bool may_be = false;
#if defined(__x86_64__) && defined(__GNUC__)
    may_be = processor_has_amx();
#endif
    CHECK(status == FA_OK || status == FA_ERR_ISA, "%s", fa_status_string(status));
    if (status == FA_OK) {
        CHECK(may_be && strcmp(fa_isa(), "amx") == 0 && machine_rank() == isa_rank("amx"), "%s: %s", fa_isa(), why);
    } else {
        /* Nothing but the processor, or the system. */
        CHECK(strncmp(why, "AMX: ", 5) == 0 && strlen(why) > 20, "%s", why);
        CHECK((strstr(why, "processor") == NULL) == may_be, "%s", why);
        CHECK(strcmp(fa_isa(), before) == 0, "a refusal has turned %s into %s", before, fa_isa());
    }
    CHECK(fa_enable_amx(NULL, 0) == status && fa_enable_amx(why, sizeof why) == status, "again: %s", why);
    CHECK(fa_enable_amx(shorter, sizeof shorter) == status && strncmp(shorter, why, 7) == 0 && shorter[7] == 0,
          "short room: %s", why);
#ifdef __x86_64__
    CHECK(fa_limit_isa("amx") == FA_OK && fa_limit_isa(NULL) == FA_OK, "a name on every machine");
#else
    CHECK(fa_limit_isa("amx") == FA_ERR_ISA, "a name of another processor's");
#endif
}

int main(void) {
    /* Here the machine alone must decide; nothing has read the variable yet. */
    set_variable("FA_MAX_ISA", NULL);
    q = random_normal(NQ), k = random_normal(NKV), v = random_normal(NKV);
    out = need(NQ * sizeof *out), want = need(NQ * sizeof *want);
    want_i8 = need(LQ * DIM * sizeof *want_i8);
    float *qf = quantised(q, LQ * DIM, q8), *kf = quantised(k, LKV * DIM, k8);
    float *vf = quantised(v, LKV * DIM, v8);
    fa_config cfg;
    CHECK(fa_config_auto(&cfg, DIM) == FA_OK, "constructor");
    double scale = (double)cfg.softmax_scale;
    ref_attention(q, k, v, HEADS, LQ, LKV, DIM, true, scale, want);
    ref_attention(qf, kf, vf, 1, LQ, LKV, DIM, true, scale, want_i8);
    bound = 2e-6 * largest(v, NKV);
    bound_i8 = 2e-6 * largest(vf, LKV * DIM);

    names_and_caps();
    bf16_where_it_is_faster();
    matrix_unit();
    for_each_isa(compute);
    compare_all();

    for (int i = 0; i < ISAS; i++) free(results[i][0]), free(results[i][1]);
    free(q), free(k), free(v), free(out), free(want), free(want_i8), free(qf), free(kf), free(vf);
    return check_result();
}
