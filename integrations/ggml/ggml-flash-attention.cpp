/*
 * The library as ggml's operator FLASH_ATTN_EXT: a file that ggml loads as it loads its backends,
 * by GGML_BACKEND_PATH or ggml_backend_load. docs/llama.cpp.md is for its users.
 *
 * It brings no device. It appends an entry to the list of "extra buffer types" of the CPU backend,
 * whose members are asked for each node whether they compute it. So nodes stay on the CPU's device,
 * graphs stay in one piece, and ggml's own threads compute: all of them enter compute_forward, and
 * what is not taken falls through to ggml's own code.
 *
 * Nothing of ggml is linked. Its functions are looked up in the files that have them, since a host
 * may have loaded these without showing their symbols to others; a function that is missing is a
 * reason to refuse, in words.
 */
#include <dlfcn.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "flash_attention.h"

#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "ggml.h"
#include "traits.h"

// These are in the CPU backend's file, which is not linked. Hidden, like all in here but
// ggml_backend_init.
namespace ggml::cpu {
tensor_traits::~tensor_traits() = default;
extra_buffer_type::~extra_buffer_type() = default;
} // namespace ggml::cpu

namespace {

// What K and V may be stored in. Queries and the output are f32.
struct storage {
    ggml_type theirs;
    int32_t ours;
    const char *name; // by which ggml calls it
    size_t bytes;     // of an element, or a block
};

constexpr storage STORAGE[] = {
    {GGML_TYPE_F32, FA_DTYPE_F32, "f32", 4},
    {GGML_TYPE_F16, FA_DTYPE_F16, "f16", 2},
    {GGML_TYPE_BF16, FA_DTYPE_BF16, "bf16", 2},
    {GGML_TYPE_Q8_0, FA_DTYPE_Q8_0, "q8_0", 34},
    {GGML_TYPE_Q4_0, FA_DTYPE_Q4_0, "q4_0", 18},
    {GGML_TYPE_Q4_1, FA_DTYPE_Q4_1, "q4_1", 20},
    {GGML_TYPE_Q5_0, FA_DTYPE_Q5_0, "q5_0", 22},
    {GGML_TYPE_Q5_1, FA_DTYPE_Q5_1, "q5_1", 24},
    {GGML_TYPE_IQ4_NL, FA_DTYPE_IQ4_NL, "iq4_nl", 18},
};

const storage *storage_of(ggml_type type)
{
    for (const storage &s : STORAGE)
        if (s.theirs == type) return &s;
    return nullptr;
}

// ---- ggml, as it was found ----

struct functions {
    // libggml, libggml-base
    decltype(&ggml_log_internal) log;
    decltype(&ggml_version) version;
    decltype(&ggml_op_name) op_name;
    decltype(&ggml_type_name) type_name;
    decltype(&ggml_type_size) type_size;
    decltype(&ggml_backend_reg_by_name) reg_by_name;
    decltype(&ggml_backend_buffer_is_host) buffer_is_host;
    decltype(&ggml_backend_cpu_buffer_type) cpu_buffer_type;
    decltype(&ggml_backend_buft_alloc_buffer) alloc_buffer;
    decltype(&ggml_backend_buft_get_alignment) get_alignment;
    decltype(&ggml_init) init;
    decltype(&ggml_free) free;
    decltype(&ggml_new_tensor_4d) new_tensor_4d;
    decltype(&ggml_get_data) get_data;
    decltype(&ggml_flash_attn_ext) flash_attn_ext;
    decltype(&ggml_new_graph) new_graph;
    decltype(&ggml_build_forward_expand) build_forward_expand;
    // The CPU backend. The list has a C++ name.
    decltype(&ggml_barrier) barrier;
    decltype(&ggml_graph_plan) graph_plan;
    decltype(&ggml_graph_compute) graph_compute;
    decltype(&ggml_backend_cpu_get_extra_buffer_types) extra_buffer_types;
};

functions g;

#define SAY(level, ...) g.log(GGML_LOG_LEVEL_##level, "flash_attention: " __VA_ARGS__)

// The file that an address is in. Where that is the program itself: all that the program lets
// others see.
void *file_of(const void *address)
{
    Dl_info info;
    void *file = nullptr;
    if (dladdr(address, &info) != 0 && info.dli_fname != nullptr) file = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    return file != nullptr ? file : dlopen(nullptr, RTLD_LAZY);
}

// Finds functions in a file and those that it needs, and keeps the name of the first that is not
// there.
struct finder {
    void *file;
    const char *missing;

    template <class F> void operator()(const char *name, F &function)
    {
        void *found = dlsym(file, name);
        if (found == nullptr && missing == nullptr) missing = name;
        static_assert(sizeof function == sizeof found, "a pointer to a function");
        memcpy(&function, &found, sizeof found);
    }
};

// ---- One node ----

// A type that is left to ggml is said once: somebody may wonder why nothing became faster.
void note_type(ggml_type type)
{
    static std::atomic<uint64_t> noted{0};
    const uint64_t bit = uint64_t{1} << (static_cast<unsigned>(type) % 64);
    if ((noted.fetch_or(bit, std::memory_order_relaxed) & bit) == 0)
        SAY(INFO, "K or V of %s: left to ggml's own code\n", g.type_name(type));
}

bool on_host(const ggml_tensor *t)
{
    const ggml_backend_buffer_t buffer = t->view_src != nullptr ? t->view_src->buffer : t->buffer;
    return buffer == nullptr || g.buffer_is_host(buffer);
}

// Arguments of the operator, as ggml_flash_attn_ext leaves them.
struct node {
    const ggml_tensor *dst, *q, *k, *v, *mask, *sinks;
    float scale, max_bias, softcap;

    explicit node(const ggml_tensor *op)
        : dst(op), q(op->src[0]), k(op->src[1]), v(op->src[2]), mask(op->src[3]), sinks(op->src[4])
    {
        memcpy(&scale, &op->op_params[0], sizeof scale);
        memcpy(&max_bias, &op->op_params[1], sizeof max_bias);
        memcpy(&softcap, &op->op_params[2], sizeof softcap);
    }

    int64_t batch() const { return q->ne[3]; }
    int64_t heads() const { return q->ne[2]; }
    int64_t rows() const { return q->ne[1]; }
    int64_t keys() const { return k->ne[1]; }

    // Whether it can be described. That depends on nothing but types, shapes and places, so all
    // threads agree, and the plan before them. Sums are f32, whatever precision is asked for
    // (op_params[3]). The largest number of keys that a row sees (op_params[4]) is a hint.
    bool is_served() const
    {
        if (q == nullptr || k == nullptr || v == nullptr) return false;
        for (const ggml_tensor *t : {k, v}) {
            const storage *s = storage_of(t->type);
            if (s == nullptr) return note_type(t->type), false;
            if (t->nb[0] != s->bytes) return false;
        }
        if (q->type != GGML_TYPE_F32 || q->nb[0] != sizeof(float)) return false;
        if (dst->type != GGML_TYPE_F32 || dst->nb[0] != sizeof(float)) return false;
        if (k->ne[0] != q->ne[0] || k->ne[3] != batch() || v->ne[3] != batch()) return false;
        if (v->ne[1] != keys() || v->ne[2] != k->ne[2] || k->ne[2] < 1 || heads() % k->ne[2] != 0) return false;
        if (dst->ne[0] != v->ne[0] || dst->ne[1] != heads() || dst->ne[2] != rows() || dst->ne[3] != batch()) return false;
        if (batch() < 1 || heads() < 1 || rows() < 1 || keys() < 1) return false;
        if (batch() > INT32_MAX || keys() > INT32_MAX) return false;
        if (mask != nullptr) {
            if (mask->type != GGML_TYPE_F16 || mask->nb[0] != 2) return false;
            if (mask->ne[0] < keys() || mask->ne[1] < rows()) return false;
            // In ggml head h has mask h % ne[2].
            if (mask->ne[2] != 1 && mask->ne[2] != heads()) return false;
            if (mask->ne[3] != 1 && mask->ne[3] != batch()) return false;
        } else if (max_bias > 0) {
            return false;
        }
        if (sinks != nullptr && (sinks->type != GGML_TYPE_F32 || sinks->nb[0] != sizeof(float) || sinks->ne[0] != heads()))
            return false;
        for (const ggml_tensor *t : {dst, q, k, v, mask, sinks})
            if (t != nullptr && !on_host(t)) return false;
        return true;
    }
};

// [batch][head][token][dim]; `head` and `token` are ggml's axes. What has one element there is
// repeated.
fa_tensor tensor_of(const ggml_tensor *t, int head, int token, int32_t dtype)
{
    fa_tensor x = {};
    x.data = t->data;
    x.dtype = dtype;
    const int axes[] = {3, head, token};
    for (int i = 0; i < 3; i++) x.stride[i] = t->ne[axes[i]] == 1 ? 0 : static_cast<int64_t>(t->nb[axes[i]]);
    return x;
}

// All but slopes, and with the mask as it is.
fa_status describe(fa_attention &a, const node &n)
{
    const fa_status status = fa_attention_init(&a, sizeof a);
    if (status != FA_OK) return status;
    a.batch = n.batch();
    a.heads_q = n.heads();
    a.heads_kv = n.k->ne[2];
    a.len_q = n.rows();
    a.len_kv = n.keys();
    a.dim_qk = n.q->ne[0];
    a.dim_v = n.v->ne[0];
    a.q = tensor_of(n.q, 2, 1, FA_DTYPE_F32);
    a.k = tensor_of(n.k, 2, 1, storage_of(n.k->type)->ours);
    a.v = tensor_of(n.v, 2, 1, storage_of(n.v->type)->ours);
    a.o = tensor_of(n.dst, 1, 2, FA_DTYPE_F32);
    if (n.mask != nullptr) a.mask = tensor_of(n.mask, 2, 1, FA_DTYPE_F16);
    a.scale = n.scale == 0 ? static_cast<float>(FA_SCALE_ZERO) : n.scale;
    a.softcap = n.softcap;
    if (n.sinks != nullptr) a.sinks = static_cast<const float *>(n.sinks->data);
    return FA_OK;
}

// ggml's series of slopes: the first ones are powers of 2^(-max_bias / n), the others the odd
// powers of its root, where n is the largest power of two that there are heads for.
void slopes_of(const node &n, float *slopes)
{
    int64_t whole = 1;
    while (2 * whole <= n.heads()) whole *= 2;
    const float base = std::exp2(-n.max_bias / static_cast<float>(whole));
    const float root = std::exp2(-n.max_bias / 2 / static_cast<float>(whole));
    for (int64_t h = 0; h < n.heads(); h++)
        slopes[h] = h < whole ? std::pow(base, static_cast<float>(h + 1))
                              : std::pow(root, static_cast<float>(2 * (h - whole) + 1));
}

// ---- Masks that say nothing but causality ----

// Row i of sequence b sees key j if j <= position[b] + i, all with 0. Such a mask need not be
// applied, nor, by the kernels, read. Anything else is the library's affair, which skips what a
// mask hides, unused keys at the end of a cache among it.
class causal_mask {
    const char *data;
    size_t row_bytes, batch_bytes;
    int64_t rows, keys, batch;

    static constexpr uint16_t HIDDEN = 0xfc00; // -infinity

    const char *row(int64_t b, int64_t i) const { return data + b * batch_bytes + i * row_bytes; }

    static uint16_t at(const char *row, int64_t j)
    {
        uint16_t x;
        memcpy(&x, row + 2 * j, 2);
        return x;
    }

    // Whether elements are all `value`. Words are compared without looking which one differs, which
    // vectorises.
    static bool all(const char *x, int64_t elements, uint16_t value)
    {
        constexpr int64_t SPAN = 512;
        const uint64_t four = value * uint64_t{0x0001000100010001};
        while (elements >= SPAN) {
            uint64_t differs = 0;
            for (int64_t j = 0; j < SPAN; j += 4) {
                uint64_t word;
                memcpy(&word, x + 2 * j, 8);
                differs |= word ^ four;
            }
            if (differs != 0) return false;
            x += 2 * SPAN;
            elements -= SPAN;
        }
        uint16_t differs = 0;
        for (int64_t j = 0; j < elements; j++) differs |= at(x, j) ^ value;
        return differs == 0;
    }

public:
    explicit causal_mask(const node &n)
        : data(static_cast<const char *>(n.mask->data)), row_bytes(n.mask->nb[1]),
          batch_bytes(n.mask->ne[3] == 1 ? 0 : n.mask->nb[3]), rows(n.rows()), keys(n.keys()), batch(n.batch())
    {
    }

    // Rows that there are to be looked at, all sequences counted.
    int64_t total() const { return rows * batch; }
    // Whether looking at all of it costs a thread less than waiting for the others.
    bool is_small() const { return total() * keys <= 16 * 1024; }

    // The only position that sequence b can have, by its first row and the first keys.
    int32_t position(int64_t b) const
    {
        const char *first = row(b, 0);
        if (at(first, 0) != HIDDEN) {
            // Keys below `low` are seen, those from `high` on not, if this is a row as it has to
            // be.
            int64_t low = 1, high = keys;
            while (low < high) {
                const int64_t middle = low + (high - low) / 2;
                if (at(first, middle) == HIDDEN) high = middle;
                else low = middle + 1;
            }
            return static_cast<int32_t>(low - 1);
        }
        int64_t i = 1;
        while (i < rows && at(row(b, i), 0) == HIDDEN) i++;
        return static_cast<int32_t>(-i);
    }

    // Whether rows from `begin` to `end` are as these positions have them.
    bool holds(const int32_t *positions, int64_t begin, int64_t end) const
    {
        for (int64_t r = begin; r < end; r++) {
            const int64_t b = r / rows, i = r % rows;
            const int64_t last = positions[b] + i + 1, seen = last < 0 ? 0 : last < keys ? last : keys;
            const char *x = row(b, i);
            if (!all(x, seen, 0) || !all(x + 2 * seen, keys - seen, HIDDEN)) return false;
        }
        return true;
    }

    bool is_open(const int32_t *positions) const
    {
        for (int64_t b = 0; b < batch; b++)
            if (positions[b] < keys - 1) return false;
        return true;
    }
};

// ---- Scratch memory: a slot for each thread, which others read, then the library's ----

constexpr size_t LINE = 64;
constexpr int MAX_PARTS = 256; // of fa_attention_part

constexpr size_t whole_lines(size_t bytes) { return (bytes + LINE - 1) / LINE * LINE; }

struct slot {
    int32_t is_causal; // of this thread's share of the mask
    fa_status status;
};

size_t slot_bytes(const node &n)
{
    const size_t heads = n.max_bias > 0 ? static_cast<size_t>(n.heads()) : 0;
    return whole_lines(sizeof(slot)) + whole_lines(sizeof(int32_t) * static_cast<size_t>(n.batch()))
        + whole_lines(sizeof(float) * heads);
}

struct scratch {
    char *slots;
    size_t each;
    char *rest;
    size_t rest_bytes; // 0 if there is not even room for the slots

    scratch(const node &n, void *data, size_t bytes, int threads) : each(slot_bytes(n))
    {
        const size_t skipped = whole_lines(reinterpret_cast<uintptr_t>(data)) - reinterpret_cast<uintptr_t>(data);
        const size_t taken = skipped + each * static_cast<size_t>(threads);
        slots = static_cast<char *>(data) + skipped;
        rest = static_cast<char *>(data) + taken;
        rest_bytes = bytes > taken ? bytes - taken : 0;
    }

    char *at(int thread) const { return slots + each * static_cast<size_t>(thread); }
    slot &of(int thread) const { return *reinterpret_cast<slot *>(at(thread)); }
    int32_t *positions(int thread) const { return reinterpret_cast<int32_t *>(at(thread) + whole_lines(sizeof(slot))); }
    float *slopes(const node &n, int thread) const
    {
        const size_t before = whole_lines(sizeof(slot)) + whole_lines(sizeof(int32_t) * static_cast<size_t>(n.batch()));
        return reinterpret_cast<float *>(at(thread) + before);
    }
};

// What the library may be asked for, in the same words for the plan and for the call: the mask as
// it is, or what it says.
void apply_mask(fa_attention &a, const float *slopes)
{
    if (slopes == nullptr) return;
    a.alibi_slopes = slopes;
    a.flags |= FA_MASK_TIMES_SLOPE;
}

void apply_positions(fa_attention &a, const int32_t *positions)
{
    a.mask.data = nullptr;
    if (positions == nullptr) return;
    a.q_positions = positions;
    a.window_right = 0;
}

// Enough for any number of threads up to this one, and whatever the mask turns out to be. 0: it is
// not served.
size_t workspace_bytes(const fa_attention &a, bool has_slopes, int threads)
{
    // What they are does not matter, but they are looked at.
    const std::unique_ptr<int32_t[]> positions(new (std::nothrow) int32_t[static_cast<size_t>(a.batch)]());
    const std::unique_ptr<float[]> slopes(new (std::nothrow) float[static_cast<size_t>(a.heads_q)]());
    if (positions == nullptr || slopes == nullptr) return 0;
    const int parts = threads < MAX_PARTS ? threads : MAX_PARTS;
    size_t most = 1;
    for (int i = 0; i < (a.mask.data != nullptr ? 3 : 1); i++) {
        fa_attention one = a;
        size_t bytes;
        if (i == 0) apply_mask(one, has_slopes ? slopes.get() : nullptr);
        else apply_positions(one, i == 1 ? positions.get() : nullptr);
        if (fa_attention_workspace_max(&one, parts, &bytes) != FA_OK) return 0;
        if (bytes > most) most = bytes;
    }
    return most;
}

// Graphs are planned for every token, and have the same node for every layer: the last answer is
// kept.
size_t scratch_bytes(const node &n, int threads)
{
    static thread_local struct {
        fa_attention a;
        bool has_slopes;
        int threads;
        size_t bytes;
    } last;
    fa_attention a;
    if (!n.is_served() || describe(a, n) != FA_OK) return 0;
    // They depend on which tensors there are, not on where these are.
    const bool has_slopes = n.max_bias > 0;
    static const float there = 0;
    fa_attention key = a;
    key.q.data = key.k.data = key.v.data = key.o.data = nullptr;
    key.mask.data = a.mask.data != nullptr ? &last : nullptr;
    key.sinks = a.sinks != nullptr ? &there : nullptr;
    if (memcmp(&last.a, &key, sizeof key) != 0 || last.has_slopes != has_slopes || last.threads != threads) {
        last.bytes = workspace_bytes(a, has_slopes, threads);
        last.a = key, last.has_slopes = has_slopes, last.threads = threads;
    }
    return last.bytes == 0 ? 0 : LINE + slot_bytes(n) * static_cast<size_t>(threads) + last.bytes;
}

// ---- The operator ----

// A graph of one node that is computed before anything is promised: what this file takes for the
// arguments of compute_forward has to be them.
struct probe {
    const ggml_tensor *op;
    const void *wdata;
    size_t wsize;
    bool is_planned, is_computed;
};

probe *probing; // while one runs
std::atomic<uint64_t> served{0}, causal{0}, left{0};
std::atomic<bool> enabled{true};

// Old versions have no reference implementation to ask for.
template <class P> auto wants_reference(const P *params, int) -> decltype(params->use_ref) { return params->use_ref; }
template <class P> bool wants_reference(const P *, long) { return false; }

class traits final : public ggml::cpu::tensor_traits {
public:
    // Besides what is asked for here ggml has to reserve what its own code needs, in case that the
    // node is left to it after all. That is what happens if the answer is no: it adds its own to
    // `size`. Did it not, compute_forward would find out.
    bool work_size(int threads, const ggml_tensor *op, size_t &size) override
    {
        if (probing != nullptr && op == probing->op) probing->is_planned = true;
        size = scratch_bytes(node(op), threads);
        return false;
    }

    bool compute_forward(ggml_compute_params *params, ggml_tensor *op) override
    {
        if (probing != nullptr && op == probing->op) {
            if (params->ith != 0 || params->nth != 1 || params->wdata != probing->wdata || params->wsize != probing->wsize
                || params->threadpool == nullptr || wants_reference(params, 0))
                return false;
            probing->is_computed = true;
        }
        const bool is_done = compute(*params, op);
        if (params->ith == 0) (is_done ? served : left).fetch_add(1, std::memory_order_relaxed);
        return is_done;
    }

private:
    // No thread may take what another one leaves, so what decides is the same for all, or is
    // exchanged behind a barrier.
    static bool compute(const ggml_compute_params &params, const ggml_tensor *op)
    {
        const node n(op);
        const int ith = params.ith, nth = params.nth;
        if (wants_reference(&params, 0) || !n.is_served()) return false;
        const scratch memory(n, params.wdata, params.wsize, nth);
        fa_attention a;
        if (memory.rest_bytes == 0 || describe(a, n) != FA_OK) return false;

        slot &mine = memory.of(ith);
        mine.is_causal = 0;
        if (n.mask != nullptr && n.mask->ne[2] == 1) {
            const causal_mask mask(n);
            int32_t *positions = memory.positions(ith);
            for (int64_t b = 0; b < n.batch(); b++) positions[b] = mask.position(b);
            if (nth == 1 || mask.is_small()) {
                mine.is_causal = mask.holds(positions, 0, mask.total());
            } else {
                mine.is_causal = mask.holds(positions, mask.total() * ith / nth, mask.total() * (ith + 1) / nth);
                g.barrier(params.threadpool);
                for (int i = 0; i < nth; i++)
                    if (memory.of(i).is_causal == 0) return masked(params, n, memory, a);
            }
            if (mine.is_causal != 0) {
                apply_positions(a, mask.is_open(positions) ? nullptr : positions);
                if (ith == 0) causal.fetch_add(1, std::memory_order_relaxed);
                return run(params, memory, a);
            }
        }
        return masked(params, n, memory, a);
    }

    static bool masked(const ggml_compute_params &params, const node &n, const scratch &memory, fa_attention &a)
    {
        float *slopes = n.max_bias > 0 ? memory.slopes(n, params.ith) : nullptr;
        if (slopes != nullptr) slopes_of(n, slopes);
        apply_mask(a, slopes);
        return run(params, memory, a);
    }

    static bool run(const ggml_compute_params &params, const scratch &memory, const fa_attention &a)
    {
        const int parts = params.nth < MAX_PARTS ? params.nth : MAX_PARTS;
        slot &mine = memory.of(params.ith);
        mine.status = FA_OK;
        if (params.ith < parts) mine.status = fa_attention_part(&a, memory.rest, memory.rest_bytes, params.ith, parts);
        g.barrier(params.threadpool);
        for (int i = 0; i < params.nth; i++)
            if (memory.of(i).status != FA_OK) return refused(a, memory.of(i).status, params.ith);
        if (params.ith < parts) {
            const fa_status status = fa_attention_finish(&a, memory.rest, memory.rest_bytes, params.ith, parts);
            if (status != FA_OK) SAY(ERROR, "%s\n", fa_status_string(status));
        }
        return true;
    }

    // What the library refuses, ggml may know what to do with.
    static bool refused(const fa_attention &a, fa_status status, int ith)
    {
        static std::atomic<bool> said{false};
        char why[256];
        if (ith == 0 && !said.exchange(true)) {
            if (fa_attention_check(&a, why, sizeof why) == FA_OK) strcpy(why, fa_status_string(status));
            SAY(WARN, "left to ggml's own code: %s\n", why);
        }
        return false;
    }
};

class extra final : public ggml::cpu::extra_buffer_type {
    traits operators;

public:
    // Of tensors in buffers of this type, of which there are none.
    bool supports_op(ggml_backend_dev_t, const ggml_tensor *) override { return false; }
    ggml::cpu::tensor_traits *get_tensor_traits(const ggml_tensor *op) override
    {
        return op->op == GGML_OP_FLASH_ATTN_EXT && enabled.load(std::memory_order_relaxed) ? &operators : nullptr;
    }
};

// ---- Loading ----

constexpr char NAME[] = "FlashAttention";

const char *buffer_type_name(ggml_backend_buffer_type_t) { return NAME; }
// Nobody is offered it; if somebody asks all the same, it is memory as of the CPU's.
ggml_backend_buffer_t allocate(ggml_backend_buffer_type_t, size_t size)
{
    return g.alloc_buffer(g.cpu_buffer_type(), size);
}
size_t alignment(ggml_backend_buffer_type_t) { return g.get_alignment(g.cpu_buffer_type()); }
bool is_host(ggml_backend_buffer_type_t) { return true; }

const char *reg_name(ggml_backend_reg_t) { return NAME; }
size_t device_count(ggml_backend_reg_t) { return 0; }
ggml_backend_dev_t device(ggml_backend_reg_t, size_t) { return nullptr; }

// Nodes that were computed here, those among them whose masks were positions, and nodes that were
// left to ggml: for tests.
uint64_t count_served() { return served.load(std::memory_order_relaxed); }
uint64_t count_causal() { return causal.load(std::memory_order_relaxed); }
uint64_t count_left() { return left.load(std::memory_order_relaxed); }
// Between graphs: for those who compare.
void enable(bool on) { enabled.store(on, std::memory_order_relaxed); }

void *proc_address(ggml_backend_reg_t, const char *name)
{
    if (strcmp(name, "flash_attention_enable") == 0) return reinterpret_cast<void *>(&enable);
    if (strcmp(name, "flash_attention_served") == 0) return reinterpret_cast<void *>(&count_served);
    if (strcmp(name, "flash_attention_causal") == 0) return reinterpret_cast<void *>(&count_causal);
    if (strcmp(name, "flash_attention_left") == 0) return reinterpret_cast<void *>(&count_left);
    return nullptr;
}

// Three numbers, whatever follows them: how far along a version is apart from commits is not ours
// to know.
bool is_version(const char *version)
{
    const size_t n = strlen(FA_GGML_VERSION);
    return strncmp(version, FA_GGML_VERSION, n) == 0 && strspn(version + n, "0123456789.") == 0;
}

// Whether tensors are made as the headers say that this file was compiled with. A graph with
// no_alloc = false has data directly behind each tensor.
bool tensors_fit(const ggml_tensor *t)
{
    static const int64_t ne[] = {2, 3, 4, 5};
    size_t nb = 4;
    for (int i = 0; i < 4; i++) {
        if (t->ne[i] != ne[i] || t->nb[i] != nb) return false;
        nb *= static_cast<size_t>(ne[i]);
    }
    return t->type == GGML_TYPE_F32 && t->data == g.get_data(t) && t->data == t + 1 && t->buffer == nullptr
        && t->op == GGML_OP_NONE && t->src[0] == nullptr && t->view_src == nullptr;
}

bool names_fit()
{
    for (const storage &s : STORAGE)
        if (strcmp(g.type_name(s.theirs), s.name) != 0 || g.type_size(s.theirs) != s.bytes) return false;
    return strcmp(g.op_name(GGML_OP_FLASH_ATTN_EXT), "FLASH_ATTN_EXT") == 0 && strcmp(g.op_name(GGML_OP_NONE), "NONE") == 0;
}

// One query, which weighs three keys alike.
bool operator_fits(ggml_context *ctx)
{
    ggml_tensor *q = g.new_tensor_4d(ctx, GGML_TYPE_F32, 8, 1, 2, 1), *k = g.new_tensor_4d(ctx, GGML_TYPE_F32, 8, 3, 1, 1);
    ggml_tensor *v = g.new_tensor_4d(ctx, GGML_TYPE_F32, 4, 3, 1, 1);
    for (int i = 0; i < 16; i++) static_cast<float *>(q->data)[i] = 0;
    for (int i = 0; i < 24; i++) static_cast<float *>(k->data)[i] = 1;
    for (int i = 0; i < 12; i++) static_cast<float *>(v->data)[i] = static_cast<float>(i / 4 + 1);
    ggml_tensor *op = g.flash_attn_ext(ctx, q, k, v, nullptr, 0.5F, 0, 0);
    if (op->op != GGML_OP_FLASH_ATTN_EXT || op->src[0] != q || op->src[1] != k || op->src[2] != v || node(op).scale != 0.5F
        || !node(op).is_served())
        return false;
    ggml_cgraph *graph = g.new_graph(ctx);
    g.build_forward_expand(graph, op);

    probe probe = {op, nullptr, 0, false, false};
    probing = &probe;
    ggml_cplan plan = g.graph_plan(graph, 1, nullptr);
    std::vector<uint8_t> work(plan.work_size + 1);
    probe.wdata = plan.work_data = work.data();
    probe.wsize = plan.work_size;
    const bool is_computed = g.graph_compute(graph, &plan) == GGML_STATUS_SUCCESS && probe.is_planned && probe.is_computed
        && count_served() == 1;
    probing = nullptr;
    served = left = 0;
    for (int i = 0; i < 8; i++)
        if (!(std::fabs(static_cast<float *>(op->data)[i] - 2) < 1e-5F)) return false;
    return is_computed;
}

bool list_fits(const std::vector<ggml_backend_buffer_type_t> &list)
{
    if (list.size() > 64 || list.capacity() < list.size()) return false;
    for (ggml_backend_buffer_type_t type : list)
        if (type == nullptr || type->iface.get_name == nullptr) return false;
    return true;
}

extra hook;
ggml_backend_buffer_type hook_type;

// Puts the hook into the list, and takes it out again if it is not called as it should be. A
// sentence if so.
const char *install(ggml_backend_reg_t cpu)
{
    std::vector<ggml_backend_buffer_type_t> &list = g.extra_buffer_types();
    if (!list_fits(list)) return "its list of extra buffer types is not as expected";
    for (ggml_backend_buffer_type_t type : list)
        if (strcmp(type->iface.get_name(type), NAME) == 0) return nullptr; // loaded before, by this or another file

    // Programs that look for memory of models get a copy of the list, which is made when it is
    // first asked for: now, while the hook is not in it.
    const auto extra_types = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
        cpu->iface.get_proc_address(cpu, "ggml_backend_dev_get_extra_bufts"));
    if (extra_types != nullptr) extra_types(cpu->iface.get_device(cpu, 0));

    hook_type = {};
    hook_type.iface.get_name = buffer_type_name;
    hook_type.iface.alloc_buffer = allocate;
    hook_type.iface.get_alignment = alignment;
    hook_type.iface.is_host = is_host;
    hook_type.device = cpu->iface.get_device(cpu, 0);
    hook_type.context = static_cast<ggml::cpu::extra_buffer_type *>(&hook);

    ggml_init_params params = {};
    params.mem_size = size_t{1} << 20;
    ggml_context *ctx = g.init(params);
    if (ctx == nullptr) return "there is no memory";
    const char *why = nullptr;
    if (!tensors_fit(g.new_tensor_4d(ctx, GGML_TYPE_F32, 2, 3, 4, 5))) {
        why = "its tensors are laid out otherwise";
    } else {
        list.push_back(&hook_type);
        if (!operator_fits(ctx)) {
            list.pop_back();
            why = "its CPU backend calls operators otherwise";
        }
    }
    g.free(ctx);
    return why;
}

ggml_backend_reg_t refuse_to(const char *why)
{
    SAY(ERROR, "not used, since %s (built for ggml %s, backend API %d; this is ggml %s)\n", why, FA_GGML_VERSION,
        GGML_BACKEND_API_VERSION, g.version());
    return nullptr;
}

// The log first: what else is missing can then be told.
const char *find_base(const void *caller)
{
    finder find = {file_of(caller), nullptr};
    find("ggml_log_internal", g.log);
    find("ggml_version", g.version);
    find("ggml_op_name", g.op_name);
    find("ggml_type_name", g.type_name);
    find("ggml_type_size", g.type_size);
    find("ggml_backend_reg_by_name", g.reg_by_name);
    find("ggml_backend_buffer_is_host", g.buffer_is_host);
    find("ggml_backend_cpu_buffer_type", g.cpu_buffer_type);
    find("ggml_backend_buft_alloc_buffer", g.alloc_buffer);
    find("ggml_backend_buft_get_alignment", g.get_alignment);
    find("ggml_init", g.init);
    find("ggml_free", g.free);
    find("ggml_new_tensor_4d", g.new_tensor_4d);
    find("ggml_get_data", g.get_data);
    find("ggml_flash_attn_ext", g.flash_attn_ext);
    find("ggml_new_graph", g.new_graph);
    find("ggml_build_forward_expand", g.build_forward_expand);
    return find.missing;
}

const char *find_cpu(ggml_backend_reg_t cpu)
{
    finder find = {file_of(reinterpret_cast<const void *>(cpu->iface.get_name)), nullptr};
    find("ggml_barrier", g.barrier);
    find("ggml_graph_plan", g.graph_plan);
    find("ggml_graph_compute", g.graph_compute);
    find("_Z39ggml_backend_cpu_get_extra_buffer_typesv", g.extra_buffer_types);
    return find.missing;
}

ggml_backend_reg_t load(const void *caller)
{
    static ggml_backend_reg reg;
    const char *missing = find_base(caller);
    if (missing != nullptr) {
        if (g.log != nullptr && g.version != nullptr) {
            SAY(ERROR, "there is no %s\n", missing);
            return refuse_to("it does not show that function");
        }
        // There is no log to say it in.
        fputs("flash_attention: not used, since the program does not show ggml's functions (-rdynamic)\n", stderr);
        return nullptr;
    }
    reg.api_version = GGML_BACKEND_API_VERSION;
    reg.iface.get_name = reg_name;
    reg.iface.get_device_count = device_count;
    reg.iface.get_device = device;
    reg.iface.get_proc_address = proc_address;

    const char *wish = getenv("FA_GGML");
    if (wish != nullptr && strcmp(wish, "off") == 0) {
        SAY(INFO, "switched off by FA_GGML=off\n");
        return &reg;
    }
    if (!is_version(g.version())) return refuse_to("it is another version");
    if (!names_fit()) return refuse_to("its types or operators are others");
    const ggml_backend_reg_t cpu = g.reg_by_name("CPU");
    if (cpu == nullptr) return refuse_to("there is no CPU backend (load that first)");
    if (cpu->api_version != GGML_BACKEND_API_VERSION) return refuse_to("it has another backend API");
    missing = find_cpu(cpu);
    if (missing != nullptr) {
        SAY(ERROR, "there is no %s\n", missing);
        return refuse_to("its CPU backend does not show that function");
    }
    const char *why = install(cpu);
    if (why != nullptr) return refuse_to(why);

    const uint32_t ours = fa_version();
    char types[8 * (sizeof STORAGE / sizeof *STORAGE)] = "";
    for (const storage &s : STORAGE) {
        if (types[0] != 0) strcat(types, ", ");
        strcat(types, s.name);
    }
    SAY(INFO, "%u.%u.%u computes FLASH_ATTN_EXT of the CPU backend, ggml %s (backend API %d), K and V of %s; FA_GGML=off "
        "switches it off\n",
        ours >> 16, ours >> 8 & 0xff, ours & 0xff, FA_GGML_VERSION, GGML_BACKEND_API_VERSION, types);
    return &reg;
}

} // namespace

// What ggml calls when it has loaded the file. The one who calls is the ggml that is meant, should
// there be several.
extern "C" __attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init(void);

extern "C" ggml_backend_reg_t ggml_backend_init(void)
{
    try {
        return load(__builtin_return_address(0));
    } catch (...) {
        return nullptr; // no memory
    }
}
