/*
 * Programs that load the hook, and what they may do with it.
 *
 *   hosts HOOK TEST       one of the names at the end
 */
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "ggml-backend-impl.h"
#include "ggml-cpu-impl.h"
#include "node.h"
#include "traits.h"

static const char *path;
static std::string logged;

static void keep_log(ggml_log_level, const char *text, void *)
{
    logged += text;
}

static bool says(const char *words)
{
    return logged.find(words) != std::string::npos;
}

static shape prompt()
{
    shape s;
    s.rows = 70, s.keys = 512, s.mask = masks::causal, s.heads = 6;
    return s;
}

static shape token()
{
    shape s;
    s.keys = 2048, s.mask = masks::causal, s.heads = 8, s.group = 4;
    return s;
}

static bool agrees(const cpu &c, const shape &s, uint64_t seed)
{
    node_of node(s, seed);
    return nmse(node.compute(c.backend), node.defined()) <= 1e-6;
}

/* Any number of threads, the same bits. */
static void threads()
{
    ggml_backend_reg_t hook = ggml_backend_load(path);
    EXPECT(hook != nullptr);
    EXPECT(says("computes FLASH_ATTN_EXT") && says(ggml_version()) && says("f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, iq4_nl"), "%s", logged.c_str());
    EXPECT(ggml_backend_reg_dev_count(hook) == 0);
    cpu c(1);
    shape scattered = prompt();
    scattered.mask = masks::scattered, scattered.mask_heads = scattered.heads, scattered.max_bias = 8;
    for (const shape &s : {prompt(), token(), scattered}) {
        node_of node(s, 1);
        const float *out = node.compute(c.backend);
        const std::vector<float> first(out, out + ggml_nelements(node.out));
        EXPECT(nmse(out, node.defined()) <= 1e-6);
        for (int n = 1; n <= 8; n++) {
            c.set_threads(n);
            EXPECT(memcmp(node.compute(c.backend), first.data(), first.size() * 4) == 0, "%d threads", n);
        }
        c.set_threads(1);
    }
    EXPECT(count(hook, "flash_attention_served") == 27 && count(hook, "flash_attention_left") == 0);
}

/* Which masks become positions. */
static void positions()
{
    ggml_backend_reg_t hook = ggml_backend_load(path);
    cpu c(3);
    uint64_t before = 0;
    const auto are_positions = [&](shape s, masks m, int64_t mask_heads) {
        s.mask = m, s.mask_heads = mask_heads;
        EXPECT(agrees(c, s, 5), "%s", s.name().c_str());
        const uint64_t now = count(hook, "flash_attention_causal");
        const bool is = now != before;
        before = now;
        return is;
    };
    shape batch = prompt();
    batch.batch = 3, batch.rows = 35;
    for (shape s : {prompt(), token(), batch}) {
        EXPECT(are_positions(s, masks::causal, 1));
        EXPECT(are_positions(s, masks::open, 1));
        EXPECT(!are_positions(s, masks::miss_value, 1));
        EXPECT(!are_positions(s, masks::scattered, 1));
        EXPECT(!are_positions(s, masks::distances, 1));
        EXPECT(!are_positions(s, masks::causal, s.heads));
        if (s.rows == 1) continue;
        EXPECT(!are_positions(s, masks::miss_any, 1));
        EXPECT(!are_positions(s, masks::miss_edge, 1));
        EXPECT(!are_positions(s, masks::padded, 1));
    }
}

/* What ggml computes itself. */
static void fallback()
{
    ggml_backend_reg_t hook = ggml_backend_load(path);
    cpu c(2), reference(2, true);
    shape s = prompt();
    s.mask = masks::none, s.dim = s.dim_v = 256, s.k = s.v = GGML_TYPE_Q4_K;
    {
        node_of node(s, 1);
        EXPECT(nmse(node.compute(c.backend), node.defined()) <= 1e-3);
        EXPECT(count(hook, "flash_attention_served") == 0 && count(hook, "flash_attention_left") == 1);
        EXPECT(says("K or V of q4_K: left to ggml"), "%s", logged.c_str());
        node.compute(c.backend);
        EXPECT(logged.find("left to ggml", logged.find("left to ggml") + 1) == std::string::npos, "said twice");
    }
    /* Head h has mask h % 2: no stride says that. */
    s = prompt();
    s.mask_heads = 2;
    {
        node_of node(s, 1);
        EXPECT(nmse(node.compute(c.backend), node.defined()) <= 1e-4);
        EXPECT(count(hook, "flash_attention_served") == 0 && count(hook, "flash_attention_left") == 3);
        EXPECT(!says("own code:"), "not known by itself, but refused: %s", logged.c_str());
    }
    /* The reference implementation is ggml's. */
    {
        node_of node(prompt(), 1);
        EXPECT(nmse(node.compute(reference.backend), node.defined()) <= 1e-4);
        EXPECT(count(hook, "flash_attention_served") == 0 && count(hook, "flash_attention_left") == 4);
        EXPECT(nmse(node.compute(c.backend), node.defined()) <= 1e-6);
        EXPECT(count(hook, "flash_attention_served") == 1);
    }
    /* What the library refuses, a scale that is not finite, is said once and left to ggml. */
    s = prompt();
    s.scale = INFINITY;
    node_of node(s, 1);
    node.compute(c.backend);
    EXPECT(says("own code: "), "%s", logged.c_str());
    node.compute(c.backend);
    EXPECT(count(hook, "flash_attention_served") == 1 && count(hook, "flash_attention_left") == 6);
}

/* The file stays, and goes on, since a CPU backend that has it in its list cannot be told. */
static void unload()
{
    for (int i = 0; i < 3; i++) {
        ggml_backend_reg_t hook = ggml_backend_load(path);
        EXPECT(hook != nullptr);
        cpu c(2);
        EXPECT(agrees(c, prompt(), 3));
        EXPECT(count(hook, "flash_attention_served") == static_cast<uint64_t>(2 * i + 1));
        ggml_backend_unload(hook);
        EXPECT(agrees(c, token(), 4));
    }
}

/* Two contexts at the same time, each with threads of its own. */
static void contexts()
{
    ggml_backend_load(path);
    std::thread hosts[2];
    bool agree[2] = {true, true};
    for (int i = 0; i < 2; i++)
        hosts[i] = std::thread([i, &agree] {
            cpu c(2 + i);
            for (uint64_t n = 0; n < 10; n++) agree[i] &= agrees(c, n % 2 ? prompt() : token(), n);
        });
    for (std::thread &host : hosts) host.join();
    EXPECT(agree[0] && agree[1]);
}

/* A child computes what its parent does. (With one thread: OpenMP's do not outlive a fork.) */
static void forks()
{
    ggml_backend_load(path);
    {
        cpu c(1);
        EXPECT(agrees(c, prompt(), 1));
    }
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        cpu c(1);
        EXPECT(agrees(c, prompt(), 1) && agrees(c, token(), 2));
        fflush(stdout);
        _exit(failures != 0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    EXPECT(status == 0);
    cpu c(4);
    EXPECT(agrees(c, prompt(), 1));
}

static void off()
{
    setenv("FA_GGML", "off", 1);
    ggml_backend_reg_t hook = ggml_backend_load(path);
    EXPECT(hook != nullptr && says("switched off by FA_GGML=off"));
    cpu c(2);
    node_of node(prompt(), 1);
    EXPECT(nmse(node.compute(c.backend), node.defined()) <= 1e-4);
    EXPECT(count(hook, "flash_attention_served") == 0);
}

/* As somebody who has not read about ggml_backend_load: the variable, and all backends. */
static void variable()
{
    EXPECT(says("computes FLASH_ATTN_EXT"), "%s", logged.c_str());
    EXPECT(ggml_backend_reg_by_name("FlashAttention") != nullptr);
}

/* Built for another version. */
static void version()
{
    EXPECT(ggml_backend_load(path) == nullptr);
    EXPECT(says("not used, since it is another version (built for ggml 0.1.2, backend API"), "%s", logged.c_str());
    EXPECT(says(ggml_version()), "%s", logged.c_str());
    cpu c(2);
    node_of node(prompt(), 1);
    EXPECT(nmse(node.compute(c.backend), node.defined()) <= 1e-4);
}

static void api()
{
    ggml_backend_reg_t reg = ggml_backend_reg_by_name("CPU");
    reg->api_version++;
    EXPECT(ggml_backend_load(path) == nullptr);
    reg->api_version--;
    EXPECT(says("not used, since it has another backend API"), "%s", logged.c_str());
}

/* A CPU backend that does not call what is in its list, as one whose structures differ might
 * not. */
static void layout()
{
    static struct : ggml::cpu::tensor_traits {
        bool work_size(int, const ggml_tensor *, size_t &) override { return true; }
        bool compute_forward(ggml_compute_params *, ggml_tensor *) override { return true; }
    } silent;
    static struct : ggml::cpu::extra_buffer_type {
        bool supports_op(ggml_backend_dev_t, const ggml_tensor *) override { return false; }
        ggml::cpu::tensor_traits *get_tensor_traits(const ggml_tensor *) override { return &silent; }
    } first;
    static ggml_backend_buffer_type type = {};
    type.iface.get_name = [](ggml_backend_buffer_type_t) { return "first"; };
    type.context = static_cast<ggml::cpu::extra_buffer_type *>(&first);
    auto &list = ggml_backend_cpu_get_extra_buffer_types();
    list.insert(list.begin(), &type);
    const size_t length = list.size();
    EXPECT(ggml_backend_load(path) == nullptr);
    EXPECT(says("not used, since its CPU backend calls operators otherwise"), "%s", logged.c_str());
    EXPECT(list.size() == length);
    list.erase(list.begin());
    cpu c(2);
    node_of node(prompt(), 1);
    EXPECT(nmse(node.compute(c.backend), node.defined()) <= 1e-4);
    EXPECT(ggml_backend_load(path) != nullptr);
    EXPECT(agrees(c, prompt(), 1));
}

/* Nobody is offered the entry as a kind of memory for models. */
static void memory()
{
    EXPECT(ggml_backend_load(path) != nullptr);
    ggml_backend_reg_t reg = ggml_backend_reg_by_name("CPU");
    const auto types = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
        ggml_backend_reg_get_proc_address(reg, "ggml_backend_dev_get_extra_bufts"));
    for (ggml_backend_buffer_type_t *type = types(ggml_backend_reg_dev_get(reg, 0)); *type != nullptr; type++)
        EXPECT(strcmp(ggml_backend_buft_name(*type), "FlashAttention") != 0);
    /* One that asks for it by force gets memory. */
    ggml_backend_buffer_type_t last = ggml_backend_cpu_get_extra_buffer_types().back();
    EXPECT(strcmp(ggml_backend_buft_name(last), "FlashAttention") == 0 && ggml_backend_buft_is_host(last));
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(last, 1000);
    EXPECT(buffer != nullptr && ggml_backend_buffer_is_host(buffer));
    ggml_backend_buffer_free(buffer);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)();
    } tests[] = {{"threads", threads}, {"positions", positions}, {"fallback", fallback}, {"unload", unload},
                 {"contexts", contexts}, {"forks", forks}, {"off", off}, {"variable", variable}, {"version", version},
                 {"api", api}, {"layout", layout}, {"memory", memory}};
    if (argc != 3) return fprintf(stderr, "hosts HOOK TEST\n"), 2;
    path = argv[1];
    if (strcmp(argv[2], "variable") == 0) setenv("GGML_BACKEND_PATH", path, 1);
    ggml_log_set(keep_log, nullptr);
    ggml_backend_load_all();
    for (const auto &test : tests)
        if (strcmp(test.name, argv[2]) == 0) {
            test.run();
            printf("hosts: %s, %d failed\n", test.name, failures);
            return failures != 0;
        }
    return fprintf(stderr, "hosts: there is no %s\n", argv[2]), 2;
}
