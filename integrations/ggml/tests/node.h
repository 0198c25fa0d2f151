/* One FLASH_ATTN_EXT, made and computed as programs with ggml do it, and its definition in
 * double. */
#ifndef NODE_H
#define NODE_H

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

inline int failures = 0;

#define EXPECT(condition, ...)                                        \
    do {                                                              \
        if (!(condition)) {                                           \
            failures++;                                               \
            printf("%s:%d: %s", __FILE__, __LINE__, #condition);      \
            printf(" " __VA_ARGS__);                                  \
            printf("\n");                                             \
        }                                                             \
    } while (false)

/* xorshift64* */
struct random_numbers {
    uint64_t state;

    explicit random_numbers(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15u + 1) {}
    uint64_t next()
    {
        state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
        return state * 0x2545f4914f6cdd1du;
    }
    int64_t below(int64_t n) { return static_cast<int64_t>((next() >> 33) % static_cast<uint64_t>(n)); }
    float number() { return static_cast<float>(next() >> 40) / 8388608.0f - 1; }
    template <class T, size_t N> T of(const T (&values)[N]) { return values[below(N)]; }
};

enum class masks {
    none,
    causal,         /* and nothing else: becomes a position for each sequence */
    open,           /* zeros */
    miss_any,       /* causal but for one key of a row, hidden or seen against the rule */
    miss_edge,      /* the same at the edge */
    miss_value,     /* causal but for a number */
    miss_row,       /* causal, but one row is a key ahead of the others */
    padded,         /* zeros, then hidden keys at the end of the cache */
    window,
    scattered,      /* numbers, a third hidden, some rows wholly */
    distances,      /* of ALiBi: -|p - j| */
};
const char *const MASK_NAMES[] = {"none", "causal", "open", "miss_any", "miss_edge", "miss_value", "miss_row", "padded",
                                  "window", "scattered", "distances"};

struct shape {
    ggml_type k = GGML_TYPE_F16, v = GGML_TYPE_F16;
    int64_t dim = 64, dim_v = 64, heads = 4, group = 2, rows = 1, keys = 256, batch = 1;
    masks mask = masks::none;
    int64_t mask_heads = 1;
    bool mask_batch = true; /* a mask for each sequence */
    float scale = NAN; /* that: the usual one */
    float max_bias = 0, softcap = 0;
    bool sinks = false;
    int layout = 0;      /* 0 dense [head][token]; 1 permuted, [token][head]; 2 views of larger caches, permuted */
    bool latent = false; /* v is a view of k */
    bool hints = false;  /* a precision, and a number of keys */

    std::string name() const
    {
        char text[256];
        snprintf(text, sizeof text,
                 "K %s V %s, %lld/%lld, %lld heads of %lld, %lld x %lld, batch %lld, mask %s%s%s, scale %g, bias %g, cap %g%s, layout %d",
                 ggml_type_name(k), ggml_type_name(v), (long long)dim, (long long)dim_v, (long long)heads, (long long)group,
                 (long long)rows, (long long)keys, (long long)batch, MASK_NAMES[static_cast<int>(mask)],
                 mask_heads > 1 ? " a head" : "", mask_batch && batch > 1 ? " a sequence" : "", (double)scale, (double)max_bias, (double)softcap, sinks ? ", sinks" : "", layout);
        return text;
    }
};

inline float from_half(uint16_t x) { return ggml_fp16_to_fp32(x); }

/* A node with its tensors in a buffer of the CPU's, and a graph of it. */
class node_of {
public:
    shape s;
    ggml_context *ctx;
    ggml_backend_buffer_t buffer;
    ggml_tensor *q, *k, *v, *mask = nullptr, *sinks = nullptr, *out;
    ggml_cgraph *graph;

    node_of(const shape &of, uint64_t seed) : s(of)
    {
        ctx = ggml_init({ggml_tensor_overhead() * 64 + ggml_graph_overhead(), nullptr, true});
        const int64_t kv_heads = s.heads / s.group;
        std::vector<ggml_tensor *> made;
        q = tensor(GGML_TYPE_F32, s.dim, s.rows, s.heads, s.layout, made);
        k = tensor(s.k, s.dim, s.keys, kv_heads, s.layout, made);
        v = s.latent ? ggml_view_4d(ctx, k, s.dim_v, k->ne[1], k->ne[2], k->ne[3], k->nb[1], k->nb[2], k->nb[3], 0)
                     : tensor(s.v, s.dim_v, s.keys, kv_heads, s.layout, made);
        if (s.mask != masks::none) {
            /* As llama.cpp pads it; rows behind the last are not looked at. */
            const int64_t padded = (s.rows + 31) / 32 * 32;
            mask = ggml_new_tensor_4d(ctx, GGML_TYPE_F16, s.keys, padded, s.mask_heads, s.mask_batch ? s.batch : 1);
        }
        if (s.sinks) sinks = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, s.heads);
        const float scale = std::isnan(s.scale) ? 1 / std::sqrt(static_cast<float>(s.dim)) : s.scale;
        out = ggml_flash_attn_ext(ctx, q, k, v, mask, scale, s.max_bias, s.softcap);
        if (s.sinks) ggml_flash_attn_ext_add_sinks(out, sinks);
        if (s.hints) {
            out->op_params[3] = GGML_PREC_F32;
            out->op_params[4] = 1; /* n_kv_max, which is not true: nobody reads it */
        }
        graph = ggml_new_graph(ctx);
        ggml_build_forward_expand(graph, out);
        buffer = ggml_backend_alloc_ctx_tensors_from_buft(ctx, ggml_backend_cpu_buffer_type());

        random_numbers random(seed);
        for (ggml_tensor *t : made) fill(t, random);
        if (mask) fill_mask(random);
        if (sinks)
            for (int64_t h = 0; h < s.heads; h++) static_cast<float *>(sinks->data)[h] = 3 * random.number();
    }

    ~node_of()
    {
        ggml_backend_buffer_free(buffer);
        ggml_free(ctx);
    }

    node_of(const node_of &) = delete;
    node_of &operator=(const node_of &) = delete;

    const float *compute(ggml_backend_t backend)
    {
        memset(out->data, 0x7f, ggml_nbytes(out));
        if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) failures++;
        return static_cast<const float *>(out->data);
    }

    /* The operator's definition, of numbers as they are stored. */
    std::vector<double> defined() const
    {
        const int64_t kv_heads = s.heads / s.group;
        std::vector<double> o(static_cast<size_t>(s.batch * s.rows * s.heads * s.dim_v)), p(static_cast<size_t>(s.keys));
        std::vector<float> kx(static_cast<size_t>(s.keys * s.dim)), vx(static_cast<size_t>(s.keys * s.dim_v));
        int64_t whole = 1;
        while (2 * whole <= s.heads) whole *= 2;
        for (int64_t b = 0; b < s.batch; b++)
            for (int64_t g = 0; g < kv_heads; g++) {
                for (int64_t j = 0; j < s.keys; j++) {
                    numbers(k, j, g, b, &kx[static_cast<size_t>(j * s.dim)]);
                    numbers(v, j, g, b, &vx[static_cast<size_t>(j * s.dim_v)]);
                }
                for (int64_t h = g * s.group; h < (g + 1) * s.group; h++) {
                    const double step = static_cast<double>(s.max_bias) / static_cast<double>(whole);
                    const double slope = h < whole ? std::pow(2, -step * static_cast<double>(h + 1))
                                                   : std::pow(2, -step / 2 * static_cast<double>(2 * (h - whole) + 1));
                    for (int64_t i = 0; i < s.rows; i++)
                        row(b, h, i, slope, kx, vx, p, &o[static_cast<size_t>(((b * s.rows + i) * s.heads + h) * s.dim_v)]);
                }
            }
        return o;
    }

private:
    ggml_tensor *tensor(ggml_type type, int64_t dim, int64_t tokens, int64_t heads, int layout,
                        std::vector<ggml_tensor *> &made)
    {
        ggml_tensor *t;
        if (layout == 0) {
            t = ggml_new_tensor_4d(ctx, type, dim, tokens, heads, s.batch);
            made.push_back(t);
            return t;
        }
        const int64_t more = layout == 2 ? 5 : 0, more_heads = layout == 2 ? 1 : 0;
        t = ggml_new_tensor_4d(ctx, type, dim, heads + more_heads, tokens + more, s.batch);
        made.push_back(t);
        if (layout == 2) /* some tokens and a head further */
            t = ggml_view_4d(ctx, t, dim, heads, tokens, s.batch, t->nb[1], t->nb[2], t->nb[3],
                             3 * t->nb[2] + more_heads * t->nb[1]);
        return ggml_permute(ctx, t, 0, 2, 1, 3);
    }

    static void fill(ggml_tensor *t, random_numbers &random)
    {
        const int64_t n = ggml_nelements(t);
        std::vector<float> x(static_cast<size_t>(n));
        for (float &y : x) y = 1.5f * random.number();
        if (t->type == GGML_TYPE_F32) memcpy(t->data, x.data(), x.size() * 4);
        else ggml_quantize_chunk(t->type, x.data(), t->data, 0, n / t->ne[0], t->ne[0], nullptr);
    }

    uint16_t *mask_row(int64_t b, int64_t h, int64_t i) const
    {
        const int64_t at = b % mask->ne[3] * mask->nb[3] + h % mask->ne[2] * mask->nb[2] + i * mask->nb[1];
        return reinterpret_cast<uint16_t *>(static_cast<char *>(mask->data) + at);
    }

    void fill_mask(random_numbers &random)
    {
        const uint16_t hidden = ggml_fp32_to_fp16(-INFINITY);
        for (int64_t b = 0; b < mask->ne[3]; b++) {
            /* Also before the first key, and so far that nothing is hidden from the last rows. */
            const int64_t position = s.mask == masks::open ? s.keys : random.below(s.keys + s.rows / 2 + 1) - s.rows / 2;
            const int64_t odd_row = random.below(s.rows);
            const int64_t window = 1 + random.below(s.keys), used = 1 + random.below(s.keys);
            for (int64_t h = 0; h < mask->ne[2]; h++)
                for (int64_t i = 0; i < mask->ne[1]; i++) {
                    uint16_t *x = mask_row(b, h, i);
                    const int64_t p = position + i + (s.mask == masks::miss_row && i >= odd_row ? 1 : 0);
                    const bool blind = random.below(8) == 0;
                    for (int64_t j = 0; j < s.keys; j++) {
                        bool seen = j <= p;
                        float value = 0;
                        switch (s.mask) {
                        case masks::padded: seen = j < used; break;
                        case masks::window: seen = j <= p && j > p - window; break;
                        case masks::scattered: seen = !blind && random.below(3) != 0, value = random.number(); break;
                        case masks::distances: value = -static_cast<float>(std::abs(p - j)); break;
                        default: break;
                        }
                        x[j] = seen ? ggml_fp32_to_fp16(value) : hidden;
                    }
                    if (i == odd_row) {
                        const int64_t last = p < 0 ? 0 : p < s.keys ? p : s.keys - 1;
                        uint16_t &any = x[random.below(s.keys)];
                        if (s.mask == masks::miss_any) any = any == hidden ? 0 : hidden;
                        if (s.mask == masks::miss_edge) x[last] = x[last] == hidden ? 0 : hidden;
                        if (s.mask == masks::miss_value) x[last] = ggml_fp32_to_fp16(-0.5f);
                    }
                    if (i >= s.rows) /* padding of rows: anything */
                        for (int64_t j = 0; j < s.keys; j++) x[j] = 0x7e00;
                }
        }
    }

    static void numbers(const ggml_tensor *t, int64_t token, int64_t head, int64_t b, float *x)
    {
        const char *data = static_cast<const char *>(t->data) + token * t->nb[1] + head * t->nb[2] + b * t->nb[3];
        if (t->type == GGML_TYPE_F32) memcpy(x, data, static_cast<size_t>(t->ne[0]) * 4);
        else ggml_get_type_traits(t->type)->to_float(data, x, t->ne[0]);
    }

    void row(int64_t b, int64_t h, int64_t i, double slope, const std::vector<float> &kx, const std::vector<float> &vx,
             std::vector<double> &p, double *o) const
    {
        std::vector<float> qx(static_cast<size_t>(s.dim));
        numbers(q, i, h, b, qx.data());
        float scale;
        memcpy(&scale, out->op_params, 4);
        const uint16_t *m = mask == nullptr ? nullptr : mask_row(b, h, i);
        const double sink = sinks ? static_cast<double>(static_cast<const float *>(sinks->data)[h]) : -INFINITY;
        double most = sink, sum = 0;
        bool any = false;
        for (int64_t j = 0; j < s.keys; j++) {
            const double bias = m == nullptr ? 0 : slope * static_cast<double>(from_half(m[j]));
            p[static_cast<size_t>(j)] = -INFINITY;
            if (std::isinf(bias)) continue;
            double dot = 0;
            const float *key = &kx[static_cast<size_t>(j * s.dim)];
            for (int64_t d = 0; d < s.dim; d++) dot += static_cast<double>(qx[static_cast<size_t>(d)]) * static_cast<double>(key[d]);
            dot *= static_cast<double>(scale);
            if (s.softcap > 0) dot = static_cast<double>(s.softcap) * std::tanh(dot / static_cast<double>(s.softcap));
            p[static_cast<size_t>(j)] = dot + bias;
            most = std::fmax(most, dot + bias);
            any = true;
        }
        for (int64_t d = 0; d < s.dim_v; d++) o[d] = 0;
        if (!any) return;
        sum = std::exp(sink - most);
        for (int64_t j = 0; j < s.keys; j++) {
            const double w = std::exp(p[static_cast<size_t>(j)] - most);
            if (w == 0) continue;
            sum += w;
            for (int64_t d = 0; d < s.dim_v; d++) o[d] += w * static_cast<double>(vx[static_cast<size_t>(j * s.dim_v + d)]);
        }
        for (int64_t d = 0; d < s.dim_v; d++) o[d] /= sum;
    }
};

/* Normalised mean squared error, as ggml's own tests have it. */
inline double nmse(const float *x, const std::vector<double> &want)
{
    double error = 0, power = 0;
    for (size_t i = 0; i < want.size(); i++) {
        const double e = static_cast<double>(x[i]) - want[i];
        error += e * e, power += want[i] * want[i];
    }
    if (power == 0) return error == 0 ? 0 : INFINITY;
    return error / power;
}

/* The CPU's backend, by functions that are there however it was loaded. */
struct cpu {
    ggml_backend_t backend;

    explicit cpu(int threads, bool reference = false)
    {
        ggml_backend_reg_t reg = ggml_backend_reg_by_name("CPU");
        backend = ggml_backend_dev_init(ggml_backend_reg_dev_get(reg, 0), nullptr);
        set_threads(threads);
        auto use_reference = reinterpret_cast<void (*)(ggml_backend_t, bool)>(
            ggml_backend_reg_get_proc_address(reg, "ggml_backend_cpu_set_use_ref"));
        if (reference && use_reference) use_reference(backend, true);
    }
    ~cpu() { ggml_backend_free(backend); }
    cpu(const cpu &) = delete;
    cpu &operator=(const cpu &) = delete;

    void set_threads(int threads)
    {
        ggml_backend_reg_t reg = ggml_backend_reg_by_name("CPU");
        void *set = ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads");
        reinterpret_cast<ggml_backend_set_n_threads_t>(set)(backend, threads);
    }
};

/* What the hook has counted. */
inline uint64_t count(ggml_backend_reg_t hook, const char *what)
{
    return reinterpret_cast<uint64_t (*)()>(ggml_backend_reg_get_proc_address(hook, what))();
}

#endif
