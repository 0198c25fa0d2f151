/* FA_MAX_ISA with a name that the library does not know: nothing computes until it is overruled. */

#define _POSIX_C_SOURCE 200809L

#include "check.h"
#include "environment.h"

enum { LEN = 20, DIM = 16, ELEMENTS = LEN * DIM };

static float *q, *k, *v;
static double *want;

static void check_refused(const char *when) {
    fa_config cfg;
    CHECK(fa_config_auto(&cfg, DIM) == FA_OK, "%s: constructors compute nothing", when);
    CHECK(strcmp(fa_isa(), "unknown") == 0, "%s: fa_isa() is %s", when, fa_isa());

    float out[ELEMENTS], before[ELEMENTS];
    memset(out, 0xa5, sizeof out), memset(before, 0xa5, sizeof before);
    CHECK(fa_mha(&cfg, q, k, v, 1, LEN, LEN, out) == FA_ERR_ISA, "%s: fa_mha", when);
    CHECK(fa_forward_f32(&cfg, q, k, v, LEN, LEN, out) == FA_ERR_ISA, "%s: fa_forward_f32", when);
    int8_t bytes[ELEMENTS] = {0};
    CHECK(fa_forward_i8(&cfg, bytes, bytes, bytes, 1, 1, 1, LEN, LEN, out) == FA_ERR_ISA,
          "%s: fa_forward_i8", when);
    fa_attention a;
    char why[100] = "";
    CHECK(fa_attention_init(&a, sizeof a) == FA_OK, "%s: nor does this one", when);
    a.batch = a.heads_q = a.heads_kv = 1, a.len_q = a.len_kv = LEN, a.dim_qk = a.dim_v = DIM;
    a.q = fa_token_first(q, FA_DTYPE_F32, LEN, 1, DIM), a.k = fa_token_first(k, FA_DTYPE_F32, LEN, 1, DIM);
    a.v = fa_token_first(v, FA_DTYPE_F32, LEN, 1, DIM), a.o = fa_token_first(out, FA_DTYPE_F32, LEN, 1, DIM);
    CHECK(fa_attention_run(&a, NULL, 0, NULL) == FA_ERR_ISA, "%s: fa_attention_run", when);
    CHECK(fa_attention_check_run(&a, NULL, 0, NULL, why, sizeof why) == FA_ERR_ISA, "%s: fa_attention_check_run", when);
    CHECK(strstr(why, "FA_MAX_ISA") != NULL, "%s: \"%s\"", when, why);
    fa_plan how = {.struct_size = sizeof how};
    CHECK(fa_attention_plan(&a, 1, &how) == FA_ERR_ISA && how.work_items == 0, "%s: fa_attention_plan", when);
    CHECK(memcmp(out, before, sizeof out) == 0, "%s: the output has changed", when);
    size_t scratch = 12345;
    CHECK(fa_scratch_bytes(&cfg, FA_DTYPE_F32, 1, LEN, LEN, &scratch) == FA_ERR_ISA,
          "%s: fa_scratch_bytes", when);
    CHECK(scratch == 12345, "%s: fa_scratch_bytes has written %zu", when, scratch);
}

static void check_works(const char *isa) {
    fa_config cfg;
    float out[ELEMENTS];
    memset(out, 0xff, sizeof out);
    CHECK(fa_config_auto(&cfg, DIM) == FA_OK, "%s", isa);
    CHECK(fa_mha(&cfg, q, k, v, 1, LEN, LEN, out) == FA_OK, "%s", isa);
    CHECK(distance(out, want, ELEMENTS) <= 1e-5 * largest(v, ELEMENTS), "%s", isa);
    size_t scratch = SIZE_MAX;
    CHECK(fa_scratch_bytes(&cfg, FA_DTYPE_F32, 1, LEN, LEN, &scratch) == FA_OK,
          "%s: fa_scratch_bytes", isa);
    CHECK(scratch != SIZE_MAX, "%s: fa_scratch_bytes has written nothing", isa);
}

int main(void) {
    const char *demanded = getenv("FA_MAX_ISA");
    if (demanded == NULL || strcmp(demanded, "nonsense") != 0) {
        fputs("run this with FA_MAX_ISA=nonsense in the environment\n", stderr);
        return 1;
    }
    q = random_normal(ELEMENTS), k = random_normal(ELEMENTS), v = random_normal(ELEMENTS);
    want = need(ELEMENTS * sizeof *want);
    ref_attention(q, k, v, 1, LEN, LEN, DIM, false, 1 / sqrt(DIM), want);

    check_refused("at first");
    CHECK(fa_limit_isa("also nonsense") == FA_ERR_ISA, "another bad name");
    check_refused("after another bad name");

    for (int i = 0; i < ISAS; i++) {
        CHECK(fa_limit_isa(isa_names[i]) == FA_OK, "%s", isa_names[i]);
        int rank = best_up_to(i);
        CHECK(isa_rank(fa_isa()) == rank, "capped at %s: %s", isa_names[i], fa_isa());
        check_works(isa_names[i]);
        CHECK(fa_limit_isa("nonsense") == FA_ERR_ISA, "nonsense");
        check_works(isa_names[i]);
    }
    CHECK(fa_limit_isa(NULL) == FA_OK, "NULL");
    check_refused("after NULL");

    /* It is read once. */
    CHECK(set_variable("FA_MAX_ISA", "scalar") == 0, "set_variable");
    check_refused("after the variable has changed");

    free(q), free(k), free(v), free(want);
    return check_result();
}
