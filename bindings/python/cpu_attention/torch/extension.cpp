// The library in PyTorch: an operator of its own, and what takes the place of PyTorch's kernels. Compiled for the PyTorch that
// is installed by torch/__init__.py, at first use; the library is loaded by its path (cpu_attention::load).

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_native.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/scaled_dot_product_attention_native.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <dlfcn.h>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>

#include "flash_attention.h"

namespace {

using at::Tensor;
using std::optional;

struct Library {
    decltype(&fa_attention_init) init = nullptr;
    decltype(&fa_attention_check) check = nullptr;
    decltype(&fa_attention_workspace) workspace = nullptr;
    decltype(&fa_attention_run) run = nullptr;
};
Library library;

template <typename F>
void find(void *handle, const char *name, F &function) {
    function = reinterpret_cast<F>(dlsym(handle, name));
    TORCH_CHECK(function, "cpu_attention: the library has no ", name);
}

void load(c10::string_view path) {
    // It stays for as long as the process lives.
    void *handle = dlopen(std::string(path).c_str(), RTLD_NOW | RTLD_LOCAL);
    TORCH_CHECK(handle, "cpu_attention: ", dlerror());
    decltype(&fa_abi_version) version;
    find(handle, "fa_abi_version", version);
    TORCH_CHECK(version() == FA_ABI_VERSION, "cpu_attention: ", std::string(path), " has interface ", version());
    Library found;
    find(handle, "fa_attention_init", found.init);
    find(handle, "fa_attention_check", found.check);
    find(handle, "fa_attention_workspace", found.workspace);
    find(handle, "fa_attention_run", found.run);
    library = found;
}

// PyTorch's threads. Within a parallel region there is the calling one.
int32_t width(void *) {
    return at::in_parallel_region() ? 1 : at::get_num_threads();
}

void parallel_for(void *, size_t n, fa_task task, void *arg) {
    // No exception may leave this function; what has not been called, the library makes up for.
    try {
        at::parallel_for(0, static_cast<int64_t>(n), 1, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; i++) {
                task(arg, static_cast<size_t>(i));
            }
        });
    } catch (...) {
    }
}

// Scratch memory of a thread, which stays for its later calls.
struct Scratch {
    std::unique_ptr<char[]> memory;
    size_t size = 0;

    void *at_least(size_t wanted) {
        if (size < wanted) {
            memory.reset(new char[wanted]);
            size = wanted;
        }
        return memory.get();
    }
};
thread_local Scratch scratch;

// The type of a tensor that needs no scales; -1 if the library has none.
int32_t dtype_of(const Tensor &t) {
    switch (t.scalar_type()) {
    case at::kFloat: return FA_DTYPE_F32;
    case at::kHalf: return FA_DTYPE_F16;
    case at::kBFloat16: return FA_DTYPE_BF16;
    case at::kBool: return FA_DTYPE_BOOL8;
    case at::kFloat8_e4m3fn: return FA_DTYPE_F8_E4M3;
    case at::kFloat8_e5m2: return FA_DTYPE_F8_E5M2;
    default: return -1;
    }
}

// A tensor of 4 axes, or of 3 (one sequence), as it lies in memory.
fa_tensor described(const Tensor &t) {
    fa_tensor out = {};
    const int64_t size = t.element_size();
    const int64_t missing = 4 - t.dim();
    out.data = t.data_ptr();
    out.dtype = dtype_of(t);
    for (int64_t i = missing; i < 3; i++) {
        out.stride[i] = t.size(i - missing) > 1 && t.numel() > 0 ? t.stride(i - missing) * size : 0;
    }
    const int64_t last = t.dim() - 1;
    out.stride_dim = static_cast<int32_t>(t.size(last) > 1 && t.numel() > 0 ? t.stride(last) * size : size);
    return out;
}

// A mask whose leading axes are broadcast to [batch][heads][rows].
fa_tensor described_mask(const Tensor &t) {
    fa_tensor out = {};
    out.data = t.data_ptr();
    out.dtype = dtype_of(t);
    for (int64_t i = 0; i < t.dim() - 1; i++) {
        out.stride[4 - t.dim() + i] = t.size(i) == 1 || t.numel() == 0 ? 0 : t.stride(i) * t.element_size();
    }
    return out;
}

void run(const fa_attention &a) {
    TORCH_CHECK(library.run, "cpu_attention: no library is loaded");
    const fa_pool pool = {sizeof(fa_pool), nullptr, width, parallel_for};
    // What there is does most of the time, and asking costs as much as a small call.
    fa_status status = library.run(&a, scratch.memory.get(), scratch.size, &pool);
    if (status == FA_ERR_WORKSPACE) {
        size_t bytes = 0;
        status = library.workspace(&a, std::clamp(width(nullptr), 1, 256), &bytes);
        if (status == FA_OK) {
            status = library.run(&a, scratch.at_least(bytes), bytes, &pool);
        }
    }
    if (status != FA_OK) {
        char why[512] = "";
        library.check(&a, why, sizeof why);
        TORCH_CHECK_VALUE(false, "cpu_attention: ", why, " (status ", static_cast<int>(status), ")");
    }
}

fa_attention begun(const Tensor &q, const Tensor &k, const Tensor &v, const Tensor &out) {
    fa_attention a;
    TORCH_CHECK(library.init && library.init(&a, sizeof a) == FA_OK, "cpu_attention: no library is loaded");
    const int64_t first = q.dim() - 4;
    a.batch = first == 0 ? q.size(0) : 1;
    a.heads_q = q.size(first + 1), a.len_q = q.size(first + 2), a.dim_qk = q.size(first + 3);
    a.heads_kv = k.size(k.dim() - 3), a.len_kv = k.size(k.dim() - 2), a.dim_v = v.size(v.dim() - 1);
    a.q = described(q), a.k = described(k), a.v = described(v), a.o = described(out);
    return a;
}

float scale_of(optional<double> scale) {
    // 0 stands for the usual scale in the description.
    return !scale ? 0.0f : *scale == 0.0 ? static_cast<float>(FA_SCALE_ZERO) : static_cast<float>(*scale);
}

bool has_strides(const Tensor &t, bool transposed) {
    const int64_t last = t.dim() - 1, apart = t.stride(last);
    if (t.size(last) > 1 && apart != 1 && !(transposed && apart > 0 && apart < std::numeric_limits<int32_t>::max() / 4)) {
        return false;
    }
    return t.layout() == at::kStrided && t.device().is_cpu() && !t.is_neg();
}

// What the library computes of PyTorch's function; the rest is left to PyTorch's own kernel.
bool serves(const Tensor &q, const Tensor &k, const Tensor &v, const optional<Tensor> &mask, double dropout, bool causal) {
    const auto type = q.scalar_type();
    const int64_t axes = q.dim();
    if ((type != at::kFloat && type != at::kHalf && type != at::kBFloat16) || k.scalar_type() != type ||
        v.scalar_type() != type || dropout != 0.0 || axes < 3 || axes > 4 || k.dim() != axes || v.dim() != axes) {
        return false;
    }
    if (!has_strides(q, false) || !has_strides(k, true) || !has_strides(v, true) || q.numel() == 0 || k.numel() == 0 ||
        v.numel() == 0) {
        return false;
    }
    const int64_t heads = k.size(axes - 3);
    if (k.size(axes - 1) != q.size(axes - 1) || v.size(axes - 2) != k.size(axes - 2) || v.size(axes - 3) != heads ||
        q.size(axes - 3) % heads != 0 || (axes == 4 && (k.size(0) != q.size(0) || v.size(0) != q.size(0)))) {
        return false;
    }
    if (mask) {
        const Tensor &m = *mask;
        const int64_t n = m.dim();
        const auto kind = m.scalar_type();
        if (causal || n < 1 || n > axes || !has_strides(m, false) || m.size(n - 1) != k.size(axes - 2) ||
            (kind != at::kBool && kind != at::kFloat && kind != at::kHalf && kind != at::kBFloat16)) {
            return false;
        }
        for (int64_t i = 2; i <= n; i++) {
            if (m.size(n - i) != 1 && m.size(n - i) != q.size(axes - i)) {
                return false;
            }
        }
    }
    return true;
}

void compute(const Tensor &q, const Tensor &k, const Tensor &v, const Tensor &out, const optional<Tensor> &mask, bool causal,
             optional<double> scale, const Tensor *lse) {
    fa_attention a = begun(q, k, v, out);
    a.scale = scale_of(scale);
    // Query 0 is on key 0, whatever the lengths.
    a.q_pos = 0;
    if (causal) {
        a.window_right = 0;
    }
    if (mask) {
        a.mask = described_mask(*mask);
    }
    if (lse) {
        a.lse = lse->data_ptr<float>();
        a.lse_stride[0] = lse->stride(0), a.lse_stride[1] = lse->stride(1), a.lse_stride[2] = lse->stride(2);
    }
    run(a);
}

// In the place of aten::_scaled_dot_product_flash_attention_for_cpu: forward, below autograd, inductor and vmap. PyTorch's own
// backward reads the log-sum-exp.
std::tuple<Tensor, Tensor> flash(const Tensor &q, const Tensor &k, const Tensor &v, double dropout, bool causal,
                                 const optional<Tensor> &mask, optional<double> scale) {
    if (q.dim() != 4 || v.size(3) != q.size(3) || !serves(q, k, v, mask, dropout, causal)) {
        return at::native::_scaled_dot_product_flash_attention_cpu(q, k, v, dropout, causal, mask, scale);
    }
    // Strides as those that PyTorch's shape function promises.
    Tensor out = at::empty_like(q);
    Tensor lse = at::empty({q.size(0), q.size(2), q.size(1)}, q.options().dtype(at::kFloat)).transpose(1, 2);
    compute(q, k, v, out, mask, causal, scale, &lse);
    if (mask) {
        // Rows that see nothing: 0 is what PyTorch's backward expects of them.
        lse.masked_fill_(lse.eq(-std::numeric_limits<float>::infinity()), 0.0);
    }
    return {out, lse};
}

// Whether a derivative of an output by this is wanted, backwards or forwards.
bool differentiated(const Tensor &t) {
    return (t.requires_grad() && at::GradMode::is_enabled()) || t._fw_grad(0).defined();
}

// Whether someone wants to see the operators that this one is made of: tensors without memory, modes that record.
bool watched(const Tensor &q, const Tensor &k, const Tensor &v) {
    const auto keys = q.key_set() | k.key_set() | v.key_set();
    return keys.has(c10::DispatchKey::Python) || c10::impl::dispatch_mode_enabled();
}

// In the place of aten::scaled_dot_product_attention: also masks of booleans as they are, 3 axes, and V of another width.
Tensor sdpa(const Tensor &q, const Tensor &k, const Tensor &v, const optional<Tensor> &mask, double dropout, bool causal,
            optional<double> scale, bool gqa) {
    const bool gradients = differentiated(q) || differentiated(k) || differentiated(v) || (mask && differentiated(*mask));
    if (gradients || watched(q, k, v) || !serves(q, k, v, mask, dropout, causal) ||
        (!gqa && q.size(q.dim() - 3) != k.size(k.dim() - 3))) {
        return at::native::scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale, gqa);
    }
    // [batch][row][head][dim], as what follows reads it.
    auto sizes = q.sizes().vec();
    sizes.back() = v.size(v.dim() - 1);
    std::swap(sizes[sizes.size() - 2], sizes[sizes.size() - 3]);
    Tensor out = at::empty(sizes, q.options()).transpose(-2, -3);
    compute(q, k, v, out, mask, causal, scale, nullptr);
    return out;
}

// The operator of its own. Lists are int32 and contiguous.
const int32_t *list(const optional<Tensor> &t, const char *name, int64_t count) {
    if (!t) {
        return nullptr;
    }
    TORCH_CHECK_VALUE(t->scalar_type() == at::kInt && t->is_contiguous() && t->device().is_cpu(), "cpu_attention: ", name,
                      " must be int32 and contiguous");
    TORCH_CHECK_VALUE(count < 0 || t->numel() == count, "cpu_attention: ", name, " has ", t->numel(), " numbers instead of ",
                      count);
    return t->data_ptr<int32_t>();
}

const float *of_heads(const optional<Tensor> &t, const char *name, int64_t heads) {
    if (!t) {
        return nullptr;
    }
    TORCH_CHECK_VALUE(t->scalar_type() == at::kFloat && t->is_contiguous() && t->dim() == 1 && t->numel() == heads,
                      "cpu_attention: ", name, " must be float32, contiguous, one number for each of ", heads, " heads");
    return t->data_ptr<float>();
}

// Longest of a ragged batch, whose rows are all there.
int64_t longest(const Tensor &cu, const Tensor &rows, const char *name) {
    const int32_t *at = cu.data_ptr<int32_t>();
    const int64_t n = cu.numel();
    TORCH_CHECK_VALUE(n >= 1 && at[n - 1] <= rows.size(rows.dim() - 2) && (rows.dim() == 3 || rows.size(0) == 1),
                      "cpu_attention: ", name, " does not fit the rows of its tensor, which has one batch entry");
    int64_t most = 0;
    for (int64_t i = 1; i < n; i++) {
        most = std::max<int64_t>(most, at[i] - at[i - 1]);
    }
    return most;
}

std::tuple<Tensor, Tensor> attention(
    const Tensor &q, const Tensor &k, const Tensor &v, const optional<Tensor> &mask, optional<double> scale, double softcap,
    bool causal, optional<int64_t> window_left, optional<int64_t> window_right, int64_t prefix_keys, optional<int64_t> q_pos,
    const optional<Tensor> &q_positions, const optional<Tensor> &kv_lens, const optional<Tensor> &kv_starts,
    const optional<Tensor> &alibi_slopes, const optional<Tensor> &sinks, const optional<Tensor> &cu_len_q,
    const optional<Tensor> &cu_len_kv, const optional<Tensor> &block_table) {
    const int64_t axes = q.dim();
    TORCH_CHECK_VALUE((axes == 3 || axes == 4) && (k.dim() == axes || (k.dim() == 4 && block_table)) && v.dim() == k.dim(),
                      "cpu_attention: tensors have 4 axes [batch][heads][tokens][dim], or 3");
    for (const Tensor &t : {q, k, v}) {
        TORCH_CHECK_VALUE(has_strides(t, true), "cpu_attention: only strided tensors on the CPU can be used, rows forwards");
        const int32_t type = dtype_of(t);
        TORCH_CHECK_TYPE(type >= 0 && type != FA_DTYPE_BOOL8, "cpu_attention: no type of tensors is ", t.scalar_type());
    }
    const int64_t n = k.dim();
    TORCH_CHECK_VALUE(k.size(n - 1) == q.size(axes - 1) && v.size(n - 2) == k.size(n - 2) && v.size(n - 3) == k.size(n - 3) &&
                          (n == 3 || v.size(0) == k.size(0)),
                      "cpu_attention: shapes do not fit: q ", q.sizes(), ", k ", k.sizes(), ", v ", v.sizes());
    auto sizes = q.sizes().vec();
    sizes.back() = v.size(n - 1);
    std::swap(sizes[axes - 2], sizes[axes - 3]);
    const bool floating = q.scalar_type() == at::kFloat || q.scalar_type() == at::kHalf || q.scalar_type() == at::kBFloat16;
    Tensor out = at::empty(sizes, floating ? q.options() : q.options().dtype(at::kFloat)).transpose(-2, -3);
    auto of_lse = q.sizes().vec();
    of_lse.pop_back();
    Tensor lse = at::empty(of_lse, q.options().dtype(at::kFloat));

    fa_attention a = begun(q, k, v, out);
    if (cu_len_q) {
        list(cu_len_q, "cu_len_q", -1);
        a.cu_len_q = cu_len_q->data_ptr<int32_t>();
        a.batch = cu_len_q->numel() - 1;
        a.len_q = longest(*cu_len_q, q, "cu_len_q");
    }
    int64_t sequences = n == 4 ? k.size(0) : 1;
    if (block_table) {
        list(block_table, "block_table", -1);
        TORCH_CHECK_VALUE(block_table->dim() == 2 && !cu_len_kv, "cpu_attention: block_table is [batch][pages], without cu_len_kv");
        sequences = block_table->size(0);
        a.block_table = block_table->data_ptr<int32_t>();
        a.table_stride = block_table->size(1);
        a.num_pages = k.size(0), a.page_size = k.size(2);
        a.len_kv = a.table_stride * a.page_size;
    } else if (cu_len_kv) {
        list(cu_len_kv, "cu_len_kv", -1);
        a.cu_len_kv = cu_len_kv->data_ptr<int32_t>();
        sequences = cu_len_kv->numel() - 1;
        a.len_kv = longest(*cu_len_kv, k, "cu_len_kv");
    }
    TORCH_CHECK_VALUE(sequences == a.batch, "cpu_attention: keys are of ", sequences, " sequences instead of ", a.batch);
    a.scale = scale_of(scale), a.softcap = static_cast<float>(softcap);
    TORCH_CHECK_VALUE(!(causal && window_right), "cpu_attention: causal is window_right = 0: they exclude each other");
    a.window_left = window_left.value_or(FA_NO_LIMIT);
    a.window_right = causal ? 0 : window_right.value_or(FA_NO_LIMIT);
    a.prefix_keys = prefix_keys;
    a.q_pos = q_pos.value_or(FA_POS_END);
    a.q_positions = list(q_positions, "q_positions", a.batch);
    a.kv_lens = list(kv_lens, "kv_lens", a.batch);
    a.kv_starts = list(kv_starts, "kv_starts", a.batch);
    a.alibi_slopes = of_heads(alibi_slopes, "alibi_slopes", a.heads_q);
    a.sinks = of_heads(sinks, "sinks", a.heads_q);
    if (mask) {
        const int64_t wanted[] = {a.batch, a.heads_q, a.len_q};
        const int64_t m = mask->dim();
        bool fits = m >= 1 && m <= 4 && has_strides(*mask, false) && mask->size(m - 1) == a.len_kv;
        for (int64_t i = 0; fits && i < m - 1; i++) {
            fits = mask->size(i) == 1 || mask->size(i) == wanted[4 - m + i];
        }
        TORCH_CHECK_VALUE(fits, "cpu_attention: mask ", mask->sizes(), " does not fit, or its rows are not contiguous");
        a.mask = described_mask(*mask);
    }
    a.lse = lse.data_ptr<float>();
    const int64_t first = lse.dim() - 3;
    a.lse_stride[0] = first == 0 ? lse.stride(0) : 0;
    a.lse_stride[1] = lse.stride(first + 1), a.lse_stride[2] = lse.stride(first + 2);
    run(a);
    return {out, lse};
}

// Gradients would be lost without a word.
std::tuple<Tensor, Tensor> attention_autograd(
    c10::DispatchKeySet keys, const Tensor &q, const Tensor &k, const Tensor &v, const optional<Tensor> &mask,
    optional<double> scale, double softcap, bool causal, optional<int64_t> window_left, optional<int64_t> window_right,
    int64_t prefix_keys, optional<int64_t> q_pos, const optional<Tensor> &q_positions, const optional<Tensor> &kv_lens,
    const optional<Tensor> &kv_starts, const optional<Tensor> &alibi_slopes, const optional<Tensor> &sinks,
    const optional<Tensor> &cu_len_q, const optional<Tensor> &cu_len_kv, const optional<Tensor> &block_table) {
    bool wanted = differentiated(q) || differentiated(k) || differentiated(v);
    for (const auto &t : {mask, alibi_slopes, sinks}) {
        wanted = wanted || (t && differentiated(*t));
    }
    TORCH_CHECK_NOT_IMPLEMENTED(!wanted, "cpu_attention::attention has no gradients: call it under torch.no_grad()");
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("cpu_attention::attention", "")
                               .typed<decltype(attention)>();
    return op.redispatch(keys & c10::after_autograd_keyset, q, k, v, mask, scale, softcap, causal, window_left, window_right,
                         prefix_keys, q_pos, q_positions, kv_lens, kv_starts, alibi_slopes, sinks, cu_len_q, cu_len_kv,
                         block_table);
}

std::mutex overrides_lock;
std::unique_ptr<torch::Library> flash_override, sdpa_override, sdpa_autograd_override;

// Puts kernels in the place of PyTorch's, or these back.
void enable(bool of_flash, bool of_sdpa) {
    TORCH_CHECK(library.run, "cpu_attention: no library is loaded");
    // PyTorch warns of what takes the place of something else, which is the purpose.
    struct Quiet : c10::WarningHandler {
        void process(const c10::Warning &) override {}
    } quiet;
    c10::WarningUtils::WarningHandlerGuard guard(&quiet);
    std::lock_guard<std::mutex> lock(overrides_lock);
    auto part = [](c10::DispatchKey key) {
        return std::make_unique<torch::Library>(torch::Library::IMPL, "aten", key, __FILE__, __LINE__);
    };
    if (!of_flash) {
        flash_override.reset();
    } else if (!flash_override) {
        flash_override = part(c10::DispatchKey::CPU);
        flash_override->impl("_scaled_dot_product_flash_attention_for_cpu", TORCH_FN(flash));
    }
    if (!of_sdpa) {
        sdpa_override.reset();
        sdpa_autograd_override.reset();
    } else if (!sdpa_override) {
        sdpa_override = part(c10::DispatchKey::CPU);
        sdpa_override->impl("scaled_dot_product_attention", TORCH_FN(sdpa));
        // Without it gradients would be lost.
        sdpa_autograd_override = part(c10::DispatchKey::AutogradCPU);
        sdpa_autograd_override->impl("scaled_dot_product_attention", TORCH_FN(sdpa));
    }
}

} // namespace

TORCH_LIBRARY_FRAGMENT(cpu_attention, m) {
    m.def("load(str path) -> ()", [](c10::string_view path) { load(path); });
    m.def("enable(bool flash, bool sdpa) -> ()", enable);
    m.def("attention(Tensor q, Tensor k, Tensor v, *, Tensor? mask=None, float? scale=None, float softcap=0.0, "
          "bool causal=False, int? window_left=None, int? window_right=None, int prefix_keys=0, int? q_pos=None, "
          "Tensor? q_positions=None, Tensor? kv_lens=None, Tensor? kv_starts=None, Tensor? alibi_slopes=None, "
          "Tensor? sinks=None, Tensor? cu_len_q=None, Tensor? cu_len_kv=None, Tensor? block_table=None) -> (Tensor, Tensor)",
          {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(cpu_attention, CPU, m) {
    m.impl("attention", attention);
}

TORCH_LIBRARY_IMPL(cpu_attention, AutogradCPU, m) {
    m.impl("attention", attention_autograd);
}
