/*
 * A model with and without the hook, in turns: prefill of 512 tokens and generation of 32 at
 * several depths of a cache.
 *
 *   model MODEL.gguf HOOK TEXT TYPE DEPTHS THREADS SECONDS
 *
 * TEXT is a file whose tokens fill the cache, TYPE that of the cache (f16, q8_0, ...), DEPTHS and
 * THREADS are lists with commas, SECONDS is how long each comparison may go on (each way is run at
 * least once). Prints a line of JSON for each comparison: the least CPU time and wall time of each
 * way, and where the generated tokens differ first.
 *
 * The cache up to each depth is computed once, with the hook; tokens behind it by each way for
 * itself.
 */
#include <ctime>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "llama.h"

enum { PROMPT = 512, TOKENS = 32 };

[[noreturn]] static void die(const std::string &why)
{
    fprintf(stderr, "model: %s\n", why.c_str());
    exit(1);
}

static std::string logged;

static double seconds(clockid_t clock)
{
    timespec t;
    clock_gettime(clock, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

struct times {
    double cpu = INFINITY, wall = INFINITY;
    int runs = 0;

    template <class F> void least(F &&f)
    {
        const double w = seconds(CLOCK_MONOTONIC), c = seconds(CLOCK_PROCESS_CPUTIME_ID);
        f();
        cpu = std::min(cpu, seconds(CLOCK_PROCESS_CPUTIME_ID) - c), wall = std::min(wall, seconds(CLOCK_MONOTONIC) - w);
        runs++;
    }
};

struct session {
    llama_context *ctx;
    const llama_vocab *vocab;
    std::vector<llama_token> text;

    // Leaves `depth` tokens in the cache.
    void cut(int depth) { llama_memory_seq_rm(llama_get_memory(ctx), 0, depth, -1); }

    void decode(llama_token *tokens, int n)
    {
        if (llama_decode(ctx, llama_batch_get_one(tokens, n)) != 0) die("llama_decode failed");
        llama_synchronize(ctx);
    }

    // Some hundred tokens at a time, as a prompt is.
    void fill(int from, int to)
    {
        for (int i = from; i < to; i += PROMPT) decode(&text[static_cast<size_t>(i)], std::min<int>(PROMPT, to - i));
    }

    std::vector<float> logits() const
    {
        const float *x = llama_get_logits_ith(ctx, -1);
        return std::vector<float>(x, x + llama_vocab_n_tokens(vocab));
    }
};

// What one way has computed at a depth. Tokens are timed one by one, and the least of each counts:
// something else that runs for a moment then costs one time of one token.
struct way {
    times prompt, tokens[TOKENS];
    std::vector<llama_token> generated;
    std::vector<std::vector<float>> logits;

    void run(session &s, int depth)
    {
        s.cut(depth);
        prompt.least([&] { s.decode(&s.text[static_cast<size_t>(depth)], PROMPT); });
        // Greedily, behind the prompt. What is timed is at the depth itself: below.
        generated.clear(), logits.clear();
        for (int i = 0; i < TOKENS; i++) {
            logits.push_back(s.logits());
            const std::vector<float> &x = logits.back();
            generated.push_back(static_cast<llama_token>(std::max_element(x.begin(), x.end()) - x.begin()));
            s.decode(&generated.back(), 1);
        }
        s.cut(depth);
    }

    void generate(session &s, int depth)
    {
        for (int i = 0; i < TOKENS; i++) tokens[i].least([&] { s.decode(&s.text[static_cast<size_t>(depth + i)], 1); });
        s.cut(depth);
    }
};

static std::vector<int> list(const char *text)
{
    std::vector<int> numbers;
    std::istringstream in(text);
    for (std::string number; std::getline(in, number, ',');) numbers.push_back(std::stoi(number));
    return numbers;
}

int main(int argc, char **argv)
{
    if (argc != 8) return fprintf(stderr, "model MODEL.gguf HOOK TEXT TYPE DEPTHS THREADS SECONDS\n"), 2;
    const std::vector<int> depths = list(argv[5]), threads = list(argv[6]);
    const double limit = atof(argv[7]);
    const auto keep = [](ggml_log_level level, const char *words, void *) {
        if (level != GGML_LOG_LEVEL_DEBUG) logged += words;
    };
    ggml_log_set(keep, nullptr);
    llama_log_set(keep, nullptr);

    // As programs do that find GGML_BACKEND_PATH in the environment.
    setenv("GGML_BACKEND_PATH", argv[2], 1);
    ggml_backend_load_all();
    ggml_backend_reg_t hook = ggml_backend_reg_by_name("FlashAttention");
    if (hook == nullptr) die("the hook was not loaded:\n" + logged);
    const auto enable = reinterpret_cast<void (*)(bool)>(ggml_backend_reg_get_proc_address(hook, "flash_attention_enable"));
    const auto served = reinterpret_cast<uint64_t (*)()>(ggml_backend_reg_get_proc_address(hook, "flash_attention_served"));

    llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (model == nullptr) die("the model could not be loaded:\n" + logged);
    int type = 0;
    for (; type < GGML_TYPE_COUNT; type++) {
        const char *name = ggml_type_name(static_cast<ggml_type>(type));
        if (name != nullptr && strcmp(name, argv[4]) == 0) break;
    }
    if (type == GGML_TYPE_COUNT) die(std::string("no such type: ") + argv[4]);

    const int most = *std::max_element(threads.begin(), threads.end());
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(*std::max_element(depths.begin(), depths.end()) + PROMPT + TOKENS + 256);
    params.n_batch = params.n_ubatch = PROMPT;
    params.n_threads = params.n_threads_batch = most;
    params.type_k = params.type_v = static_cast<ggml_type>(type);
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_AUTO; // which has to be content
    session s;
    s.ctx = llama_init_from_model(model, params);
    if (s.ctx == nullptr) die("no context:\n" + logged);
    s.vocab = llama_model_get_vocab(model);

    std::ifstream file(argv[3]);
    const std::string words((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    s.text.resize(words.size() + 1);
    const int length = llama_tokenize(s.vocab, words.data(), static_cast<int>(words.size()), s.text.data(),
                                      static_cast<int>(s.text.size()), true, false);
    s.text.resize(static_cast<size_t>(std::max(length, 0)));
    if (s.text.size() < params.n_ctx) die("the text is too short: " + std::to_string(s.text.size()) + " tokens");

    int filled = 0;
    for (int depth : depths) {
        enable(true);
        llama_set_n_threads(s.ctx, most, most);
        s.fill(filled, depth);
        filled = depth;
        fprintf(stderr, "model: %s, %d tokens in the cache\n", argv[4], depth);
        for (int n : threads) {
            llama_set_n_threads(s.ctx, n, n);
            way ways[2]; // without, with
            const double begin = seconds(CLOCK_MONOTONIC);
            do {
                for (int on = 0; on < 2; on++) {
                    enable(on != 0);
                    const uint64_t before = served();
                    ways[on].run(s, depth);
                    if ((served() != before) != (on != 0)) die("the hook does not compute what it should:\n" + logged);
                }
                // Short ones: several, in turns, since other work comes and goes.
                const double first = seconds(CLOCK_MONOTONIC);
                for (int turn = 0; turn < 2 || seconds(CLOCK_MONOTONIC) - first < 8; turn++) {
                    enable(turn % 2 != 0);
                    ways[turn % 2].generate(s, depth);
                }
            } while (seconds(CLOCK_MONOTONIC) - begin < limit);
            size_t same = 0;
            while (same < TOKENS && ways[0].generated[same] == ways[1].generated[same]) same++;
            double error = 0, power = 0;
            for (size_t i = 0; i < ways[0].logits[0].size(); i++) {
                const double a = static_cast<double>(ways[0].logits[0][i]), b = static_cast<double>(ways[1].logits[0][i]);
                error += (a - b) * (a - b), power += a * a;
            }
            printf("{\"type\": \"%s\", \"depth\": %d, \"threads\": %d, \"runs\": %d", argv[4], depth, n, ways[0].prompt.runs);
            printf(", \"logits_nmse\": %.2g, \"same_tokens\": %zu", error / power, same);
            if (same < TOKENS) {
                // What each way thought of both.
                const auto logit = [&](int of, int as) {
                    return static_cast<double>(ways[of].logits[same][static_cast<size_t>(ways[as].generated[same])]);
                };
                printf(", \"first_difference\": {\"without\": [%.4f, %.4f], \"with\": [%.4f, %.4f]}", logit(0, 0), logit(0, 1),
                       logit(1, 0), logit(1, 1));
            }
            for (int on = 0; on < 2; on++) {
                const times &p = ways[on].prompt;
                double cpu = 0, wall = 0;
                for (const times &t : ways[on].tokens) cpu += t.cpu, wall += t.wall;
                printf(", \"%s\": {\"pp_cpu\": %.4f, \"pp_wall\": %.4f, \"tg_cpu\": %.4f, \"tg_wall\": %.4f}",
                       on ? "with" : "without", p.cpu, p.wall, cpu, wall);
            }
            printf("}\n");
            fflush(stdout);
        }
    }
    if (logged.find(" splits = 1") == std::string::npos) die("the graph is in pieces:\n" + logged);
    llama_free(s.ctx);
    llama_model_free(model);
    return 0;
}
