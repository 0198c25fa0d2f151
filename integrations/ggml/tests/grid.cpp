/*
 * The hook against the operator's definition in double, and against ggml's own code, over types,
 * head sizes, groups, batches, biases, masks and layouts.
 *
 *   grid HOOK [SHARE]     HOOK: libggml-flash-attention.so; one in SHARE of the cases
 */
#include "node.h"

static struct worst {
    double error = 0, own = 0;
    std::string name;
} worst[GGML_TYPE_COUNT];

static int cases = 0;

static void check(ggml_backend_reg_t hook, const cpu &with, cpu &without, const shape &s, uint64_t seed)
{
    node_of node(s, seed);
    const uint64_t served = count(hook, "flash_attention_served");
    const std::vector<double> defined = node.defined();
    const double error = nmse(node.compute(with.backend), defined);
    cases++;
    EXPECT(count(hook, "flash_attention_served") == served + 1, "not served: %s", s.name().c_str());
    const bool exact = !ggml_is_quantized(s.k) && !ggml_is_quantized(s.v);
    /* Where bf16 is multiplied as it is, queries and probabilities are rounded to it; ggml's own
     * code rounds queries, too. */
    const bool rounds = s.k == GGML_TYPE_BF16 && s.v == GGML_TYPE_BF16 && __builtin_cpu_supports("avx512bf16");
    EXPECT(error <= (rounds ? 2e-5 : exact ? 1e-6 : 1e-5), "%g: %s", error, s.name().c_str());
    /* ggml's error, for the record, and that both compute the same operator. */
    const uint64_t left = count(hook, "flash_attention_left");
    const double own = nmse(node.compute(without.backend), defined);
    EXPECT(count(hook, "flash_attention_left") == left + 1, "not left to the reference: %s", s.name().c_str());
    EXPECT(own <= 5e-3, "ggml's own, %g: %s", own, s.name().c_str());
    struct worst &w = worst[ggml_is_quantized(s.v) ? s.v : s.k];
    if (error > w.error) w.error = error, w.name = s.name();
    if (own > w.own) w.own = own;
}

int main(int argc, char **argv)
{
    if (argc < 2) return fprintf(stderr, "grid HOOK [SHARE]\n"), 2;
    const int64_t share = argc > 2 ? atoi(argv[2]) : 1;
    ggml_backend_load_all();
    ggml_backend_reg_t hook = ggml_backend_load(argv[1]);
    if (hook == nullptr) return 1;

    static const ggml_type TYPES[] = {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0,
                                      GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_IQ4_NL};
    static const int64_t DIMS[][2] = {{40, 40}, {64, 64}, {72, 72}, {80, 80}, {96, 96}, {128, 128}, {192, 192}, {192, 128},
                                      {256, 256}, {320, 256}, {512, 512}, {576, 512}};
    static const int64_t ROWS[] = {1, 1, 2, 7, 33, 75}, KEYS[] = {1, 31, 113, 256, 512, 1024}, BATCH[] = {1, 1, 3};
    static const float SCALES[] = {0.3f, 0, -0.2f};
    static const int64_t GROUPS[] = {1, 2, 4, 8}, KV_HEADS[] = {1, 2, 3};

    cpu with(1), without(2, true);
    random_numbers random(1);
    uint64_t seed = 0;
    for (ggml_type k : TYPES)
        for (ggml_type v : TYPES)
            for (const int64_t (&dims)[2] : DIMS)
                for (int mask = 0; mask <= static_cast<int>(masks::distances); mask++) {
                    shape s;
                    s.k = k, s.v = v, s.dim = dims[0], s.dim_v = dims[1], s.mask = static_cast<masks>(mask);
                    s.group = random.of(GROUPS), s.heads = s.group * random.of(KV_HEADS), s.batch = random.of(BATCH);
                    s.rows = random.of(ROWS), s.keys = random.of(KEYS), s.layout = static_cast<int>(random.below(3));
                    s.sinks = random.below(3) == 0, s.softcap = random.below(3) == 0 ? 10.0f : 0.0f;
                    s.scale = random.below(4) == 0 ? random.of(SCALES) : NAN;
                    s.mask_batch = random.below(3) != 0;
                    if (mask != 0 && random.below(4) == 0) s.mask_heads = s.heads;
                    if (mask != 0 && (s.mask == masks::distances || random.below(4) == 0)) s.max_bias = 8;
                    s.hints = seed % 2 != 0;
                    s.latent = s.dim == 576 && k == v;
                    /* Different types are one in eight; rows of blocks are whole blocks. */
                    const bool wanted = (k == v || random.below(8) == 0) && random.below(share) == 0;
                    seed++;
                    if (!wanted || s.dim % ggml_blck_size(k) != 0 || s.dim_v % ggml_blck_size(v) != 0) continue;
                    with.set_threads(1 + static_cast<int>(seed % 8));
                    check(hook, with, without, s, seed);
                }
    for (ggml_type t : TYPES)
        printf("%s: NMSE %.1e at most (ggml's own %.1e): %s\n", ggml_type_name(t), worst[t].error, worst[t].own,
               worst[t].name.c_str());
    printf("grid: %d cases, %llu masks became positions, %d failed\n", cases,
           (unsigned long long)count(hook, "flash_attention_causal"), failures);
    return failures != 0;
}
