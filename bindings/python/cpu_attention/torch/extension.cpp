// The library in PyTorch: an operator of its own, and what takes the place of PyTorch's kernels.
// Compiled for the PyTorch that is installed by torch/__init__.py, at first use; the library is
// loaded by its path (cpu_attention::load).

#include <ATen/ExpandUtils.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/core/stack.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_native.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/scaled_dot_product_attention_native.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <dlfcn.h>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

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

// The type of a tensor; -1 if the library has none.
int32_t dtype_of(const Tensor &t) {
    switch (t.scalar_type()) {
    case at::kFloat: return FA_DTYPE_F32;
    case at::kHalf: return FA_DTYPE_F16;
    case at::kBFloat16: return FA_DTYPE_BF16;
    case at::kBool: return FA_DTYPE_BOOL8;
    case at::kChar: return FA_DTYPE_I8;
    case at::kByte: return FA_DTYPE_U8;
    case at::kShort: return FA_DTYPE_Q15;
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

// In the place of aten::_scaled_dot_product_flash_attention_for_cpu: forward, below autograd,
// inductor and vmap. PyTorch's own backward reads the log-sum-exp.
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

// Whether someone wants to see the operators that this one is made of: tensors without memory,
// modes that record.
bool watched(const Tensor &q, const Tensor &k, const Tensor &v) {
    const auto keys = q.key_set() | k.key_set() | v.key_set();
    return keys.has(c10::DispatchKey::Python) || c10::impl::dispatch_mode_enabled();
}

// In the place of aten::scaled_dot_product_attention: also masks of booleans as they are, 3 axes,
// and V of another width.
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

// Arguments of an operator on the stack, read in the order of its schema, whose names must be those
// that are asked for.
class Reader {
  public:
    Reader(const c10::FunctionSchema &schema, c10::ArrayRef<c10::IValue> values) : schema(schema), values(values) {}

    bool is_next(const char *name) const { return at < values.size() && schema.arguments()[at].name() == name; }
    bool done() const { return at == values.size(); }

    // Undefined if there is none.
    Tensor tensor(const char *name) {
        const c10::IValue &x = next(name);
        return x.isNone() ? Tensor() : x.toTensor();
    }
    optional<int64_t> integer(const char *name) { return next(name).toOptional<int64_t>(); }
    optional<double> floating(const char *name) { return next(name).toOptional<double>(); }
    bool boolean(const char *name) { return next(name).toBool(); }
    std::vector<int64_t> integers(const char *name) { return next(name).toIntVector(); }
    void skip(const char *name) { next(name); }

  private:
    const c10::IValue &next(const char *name) {
        TORCH_CHECK(is_next(name), "cpu_attention: the operator has no argument ", name, " at place ", at);
        return values[at++];
    }

    const c10::FunctionSchema &schema;
    const c10::ArrayRef<c10::IValue> values;
    size_t at = 0;
};

// Numbers of 32 bits where they are; count < 0: as many as there are.
const int32_t *list(const Tensor &t, const char *name, int64_t count) {
    if (!t.defined()) {
        return nullptr;
    }
    TORCH_CHECK_VALUE(t.scalar_type() == at::kInt && t.is_contiguous() && t.device().is_cpu(), "cpu_attention: ", name,
                      " must be int32 and contiguous");
    TORCH_CHECK_VALUE(count < 0 || t.numel() == count, "cpu_attention: ", name, " has ", t.numel(), " numbers instead of ",
                      count);
    return t.const_data_ptr<int32_t>();
}

// A number of each sequence, of which one may stand for all.
const int32_t *of_sequences(Tensor &t, const char *name, int64_t batch) {
    if (t.defined() && t.numel() == 1 && batch != 1) {
        t = t.reshape({1}).expand({batch}).contiguous();
    }
    return list(t, name, batch);
}

// Where each sequence of a ragged batch begins, and the end; how long the longest is.
struct Ends {
    int64_t sequences = 0, longest = 0;
};

Ends ends_of(const Tensor &t, const char *name, int64_t most) {
    const int32_t *at = list(t, name, -1);
    const int64_t n = t.numel();
    TORCH_CHECK_VALUE(t.dim() == 1 && n >= 1 && at[n - 1] <= most, "cpu_attention: ", name,
                      " does not fit the rows of its tensor, which has one batch entry");
    Ends out = {n - 1, 0};
    for (int64_t i = 1; i < n; i++) {
        out.longest = std::max<int64_t>(out.longest, at[i] - at[i - 1]);
    }
    return out;
}

// Rows of a tensor that has the sequences behind one another; none if it has more batch entries
// than one.
int64_t rows_behind_one_another(const Tensor &t) {
    return t.dim() == 3 || t.size(0) == 1 ? t.size(t.dim() - 2) : -1;
}

const float *floats(const Tensor &t, const char *name, int64_t batch, int64_t heads) {
    if (!t.defined()) {
        return nullptr;
    }
    const bool fits = t.dim() == 1 ? t.size(0) == heads : t.dim() == 2 && t.size(0) == batch && t.size(1) == heads;
    TORCH_CHECK_VALUE(t.scalar_type() == at::kFloat && t.is_contiguous() && fits, "cpu_attention: ", name,
                      " must be float32, contiguous, one number for each of ", heads, " heads");
    return t.const_data_ptr<float>();
}

// What is said of lists, `lists` of them for each head: heads that have some, and strides.
void lists_of_heads(const fa_attention &a, const std::array<const char *, 2> &names, const Tensor &starts,
                    const int32_t *values, const Tensor &entries, int64_t lists, int64_t &heads_out,
                    int64_t (&stride)[2]) {
    const int64_t m = starts.dim(), each = m > 0 ? starts.size(m - 1) : 0, heads = m > 1 ? starts.size(m - 2) : 1;
    const int64_t sequences = m > 2 ? starts.size(m - 3) : 1;
    TORCH_CHECK_VALUE(m <= 3 && each > lists && heads >= 1 && a.heads_q % heads == 0 &&
                          (sequences == 1 || sequences == a.batch) && entries.dim() == 1,
                      "cpu_attention: ", names[0], " ", starts.sizes(), " or ", names[1], " ", entries.sizes(),
                      " does not fit");
    const int64_t n = starts.numel();
    const int32_t most = n == 0 ? 0 : *std::max_element(values, values + n);
    TORCH_CHECK_VALUE(most <= entries.numel(), "cpu_attention: ", names[0], " leads beyond the ", entries.numel(),
                      " numbers of ", names[1]);
    heads_out = heads;
    stride[0] = sequences > 1 ? heads * each : 0, stride[1] = heads > 1 ? each : 0;
}

// Whether the leading axes of a tensor are broadcast to these.
bool broadcasts(const Tensor &t, const int64_t (&wanted)[3]) {
    const int64_t n = t.dim();
    bool fits = n >= 1 && n <= 4;
    for (int64_t i = 0; fits && i < n - 1; i++) {
        fits = t.size(i) == 1 || t.size(i) == wanted[4 - n + i];
    }
    return fits;
}

// Scales and zeros of a tensor of 8 bits, as they are read.
struct Quantities {
    fa_quant record = {};
    Tensor scale, zero;
};

void set_quantities(fa_tensor &out, Quantities &given, const Tensor &of, const char *name, c10::IntArrayRef groups) {
    TORCH_CHECK_VALUE(groups.size() == 2 && groups[0] >= 1 && groups[1] >= 1 && groups[0] <= INT32_MAX && groups[1] <= INT32_MAX,
                      "cpu_attention: groups of ", name, " are ", groups);
    const int64_t first = of.dim() - 4;
    const int64_t most[] = {first == 0 ? of.size(0) : 1, of.size(first + 1), (of.size(first + 2) - 1) / groups[0] + 1,
                            (of.size(first + 3) - 1) / groups[1] + 1};
    std::vector<int64_t> extent = {1, 1, 1, 1};
    for (const Tensor *t : {&given.scale, &given.zero}) {
        if (t->defined()) {
            extent = at::infer_size(extent, t->sizes());
        }
    }
    bool fits = extent.size() == 4;
    for (size_t i = 0; fits && i < 4; i++) {
        fits = extent[i] == 1 || extent[i] == most[i];
    }
    TORCH_CHECK_VALUE(fits, "cpu_attention: scales or zeros ", extent, " of ", name, " do not fit ",
                      c10::IntArrayRef(most, 4), " groups");
    bool same = true;
    std::array<int64_t, 4> strides = {};
    auto look = [&](Tensor &t) {
        t = t.to(at::kFloat).expand(extent);
        std::array<int64_t, 4> own;
        for (size_t i = 0; i < 4; i++) {
            own[i] = extent[i] == 1 ? 0 : t.stride(static_cast<int64_t>(i));
        }
        same = same && (&t == &given.scale || !given.scale.defined() || own == strides);
        strides = own;
    };
    for (Tensor *t : {&given.scale, &given.zero}) {
        if (t->defined()) {
            look(*t);
        }
    }
    if (!same) {
        given.scale = given.scale.contiguous(), given.zero = given.zero.contiguous();
        look(given.scale);
    }
    given.record.scale = given.scale.defined() ? given.scale.const_data_ptr<float>() : nullptr;
    given.record.zero = given.zero.defined() ? given.zero.const_data_ptr<float>() : nullptr;
    std::copy(strides.begin(), strides.end(), given.record.stride);
    given.record.group_tokens = static_cast<int32_t>(groups[0]);
    given.record.group_dims = static_cast<int32_t>(groups[1]);
    out.quant = &given.record;
}

// The operator of its own, of which an overload has weights. torch/__init__.py makes its schema.
void attention(const c10::OperatorHandle &op, c10::DispatchKeySet, torch::jit::Stack *stack) {
    const size_t count = op.schema().arguments().size();
    Reader read(op.schema(), torch::jit::last(*stack, count));
    const Tensor q = read.tensor("q"), k = read.tensor("k"), v = read.tensor("v");
    const int64_t axes = q.dim(), n = k.dim();
    TORCH_CHECK_VALUE((axes == 3 || axes == 4) && (n == 3 || n == 4) && v.dim() == n,
                      "cpu_attention: tensors have 4 axes [batch][heads][tokens][dim], or 3");
    for (const Tensor &t : {q, k, v}) {
        TORCH_CHECK_VALUE(has_strides(t, true), "cpu_attention: only strided tensors on the CPU can be used, rows forwards");
        const int32_t type = dtype_of(t);
        TORCH_CHECK_TYPE(type >= 0 && type != FA_DTYPE_BOOL8, "cpu_attention: no type of tensors is ", t.scalar_type());
    }
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
    a.scale = scale_of(read.floating("scale")), a.softcap = static_cast<float>(*read.floating("softcap"));
    const bool causal = read.boolean("causal");
    const auto window_left = read.integer("window_left"), window_right = read.integer("window_right");
    TORCH_CHECK_VALUE(!(causal && window_right), "cpu_attention: causal is window_right = 0: they exclude each other");
    a.window_left = window_left.value_or(FA_NO_LIMIT);
    a.window_right = causal ? 0 : window_right.value_or(FA_NO_LIMIT);
    a.prefix_keys = *read.integer("prefix_keys");
    a.q_pos = read.integer("q_pos").value_or(FA_POS_END);
    Tensor q_positions = read.tensor("q_positions"), kv_lens = read.tensor("kv_lens"), kv_starts = read.tensor("kv_starts");
    const Tensor mask = read.tensor("mask");
    a.flags |= read.boolean("mask_times_slope") ? FA_MASK_TIMES_SLOPE : 0;
    const Tensor slopes = read.tensor("alibi_slopes"), sinks = read.tensor("sinks"), block_mask = read.tensor("block_mask");
    a.block_mask_q = *read.integer("block_mask_q"), a.block_mask_kv = *read.integer("block_mask_kv");
    const Tensor kept_start = read.tensor("kept_start"), kept_blocks = read.tensor("kept_blocks");
    a.kept_q = *read.integer("kept_q"), a.kept_kv = *read.integer("kept_kv");
    const Tensor columns = read.tensor("columns"), column_start = read.tensor("column_start");
    const Tensor spans = read.tensor("spans"), span_starts = read.tensor("span_starts");
    const Tensor cu_len_q = read.tensor("cu_len_q"), cu_len_kv = read.tensor("cu_len_kv");
    const auto len_q = read.integer("len_q"), len_kv = read.integer("len_kv");
    const Tensor table = read.tensor("block_table"), table_start = read.tensor("block_table_start");
    std::array<Quantities, 3> quantities;
    const struct {
        fa_tensor &out;
        const Tensor &of;
        const char *name, *scale, *zero, *groups;
    } quantised[] = {{a.q, q, "q", "q_scale", "q_zero", "q_groups"},
                     {a.k, k, "k", "k_scale", "k_zero", "k_groups"},
                     {a.v, v, "v", "v_scale", "v_zero", "v_groups"}};
    for (size_t i = 0; i < 3; i++) {
        const auto &x = quantised[i];
        quantities[i].scale = read.tensor(x.scale), quantities[i].zero = read.tensor(x.zero);
        if (quantities[i].scale.defined() || quantities[i].zero.defined()) {
            set_quantities(x.out, quantities[i], x.of, x.name, read.integers(x.groups));
        } else {
            read.skip(x.groups);
        }
    }
    Tensor weights, weight_heads, weight_rows;
    if (read.is_next("weights")) {
        weights = read.tensor("weights"), weight_heads = read.tensor("weight_heads"), weight_rows = read.tensor("weight_rows");
    }
    a.flags |= read.boolean("fast") ? FA_FAST : 0;
    a.flags |= read.boolean("precise") ? FA_PRECISE : 0;
    a.block_q = *read.integer("block_q"), a.block_kv = *read.integer("block_kv");
    TORCH_CHECK(read.done(), "cpu_attention: the operator has more arguments than the extension knows");

    // Sequences, and their lengths.
    if (cu_len_q.defined()) {
        const Ends ends = ends_of(cu_len_q, "cu_len_q", rows_behind_one_another(q));
        a.cu_len_q = cu_len_q.const_data_ptr<int32_t>();
        a.batch = ends.sequences, a.len_q = len_q.value_or(ends.longest);
    } else {
        TORCH_CHECK_VALUE(!len_q || *len_q == a.len_q, "cpu_attention: len_q is ", *len_q, ", q has ", a.len_q, " rows");
    }
    int64_t sequences = n == 4 ? k.size(0) : 1;
    TORCH_CHECK_VALUE(!(table.defined() && cu_len_kv.defined()), "cpu_attention: cu_len_kv and block_table exclude each other");
    TORCH_CHECK_VALUE(table.defined() || !table_start.defined(), "cpu_attention: block_table_start without block_table");
    if (table.defined()) {
        TORCH_CHECK_VALUE(n == 4, "cpu_attention: pages are [page][heads][tokens][dim]");
        a.num_pages = k.size(0), a.page_size = k.size(2);
        if (table_start.defined()) {
            a.block_table = list(table, "block_table", -1);
            const Ends ends = ends_of(table_start, "block_table_start", table.dim() == 1 ? table.size(0) : -1);
            a.block_table_start = table_start.const_data_ptr<int32_t>();
            sequences = ends.sequences, a.len_kv = ends.longest * a.page_size;
        } else {
            const bool of_heads = table.dim() == 3 && table.size(1) == a.heads_kv && table.is_contiguous();
            const bool is_list = table.scalar_type() == at::kInt && table.device().is_cpu();
            TORCH_CHECK_VALUE(is_list && (of_heads || (table.dim() == 2 && (table.stride(1) == 1 || table.size(1) <= 1))),
                              "cpu_attention: block_table is int32 [batch][pages], its rows contiguous, or "
                              "[batch][heads_kv][pages], contiguous");
            a.block_table = table.const_data_ptr<int32_t>();
            sequences = table.size(0);
            const int64_t pages = table.size(-1);
            a.table_head_stride = of_heads && a.heads_kv > 1 ? pages : 0;
            a.table_stride = sequences > 1 ? table.stride(0) : of_heads ? a.heads_kv * pages : pages;
            a.len_kv = pages * a.page_size;
        }
    } else if (cu_len_kv.defined()) {
        const Ends ends = ends_of(cu_len_kv, "cu_len_kv", rows_behind_one_another(k));
        a.cu_len_kv = cu_len_kv.const_data_ptr<int32_t>();
        // Longer is only a wider mask.
        sequences = ends.sequences, a.len_kv = std::max(ends.longest, len_kv.value_or(0));
    }
    TORCH_CHECK_VALUE(sequences == a.batch, "cpu_attention: keys are of ", sequences, " sequences instead of ", a.batch);
    if (len_kv) {
        TORCH_CHECK_VALUE(*len_kv >= 0 && *len_kv <= a.len_kv, "cpu_attention: len_kv is ", *len_kv, ", there are ", a.len_kv,
                          " keys");
        a.len_kv = *len_kv;
    }

    // What changes scores, and hides keys.
    a.q_positions = of_sequences(q_positions, "q_positions", a.batch);
    a.kv_lens = of_sequences(kv_lens, "kv_lens", a.batch);
    a.kv_starts = of_sequences(kv_starts, "kv_starts", a.batch);
    a.alibi_slopes = floats(slopes, "alibi_slopes", a.batch, a.heads_q);
    a.alibi_batch_stride = slopes.defined() && slopes.dim() == 2 ? a.heads_q : 0;
    TORCH_CHECK_VALUE(!sinks.defined() || sinks.dim() == 1, "cpu_attention: sinks have one axis");
    a.sinks = floats(sinks, "sinks", a.batch, a.heads_q);
    const int64_t scores[] = {a.batch, a.heads_q, a.len_q};
    if (mask.defined()) {
        const auto kind = mask.scalar_type();
        TORCH_CHECK_TYPE(kind == at::kBool || kind == at::kFloat || kind == at::kHalf || kind == at::kBFloat16,
                         "cpu_attention: mask is neither of a floating-point type nor bool");
        TORCH_CHECK_VALUE(broadcasts(mask, scores) && has_strides(mask, false) && mask.size(-1) == a.len_kv,
                          "cpu_attention: mask ", mask.sizes(), " does not fit, or its rows are not contiguous");
        a.mask = described_mask(mask);
    }
    if (block_mask.defined()) {
        TORCH_CHECK_VALUE(a.block_mask_q >= 1 && a.block_mask_kv >= 1, "cpu_attention: block_mask_q is ", a.block_mask_q,
                          ", block_mask_kv is ", a.block_mask_kv, ": at least 1");
        TORCH_CHECK_TYPE(block_mask.scalar_type() == at::kBool || block_mask.scalar_type() == at::kByte,
                         "cpu_attention: block_mask is neither bool nor uint8");
        const int64_t rows = a.len_q == 0 ? 0 : (a.len_q - 1) / a.block_mask_q + 1;
        const int64_t keys = a.len_kv == 0 ? 0 : (a.len_kv - 1) / a.block_mask_kv + 1;
        // More blocks than there are do no harm.
        const int64_t m = block_mask.dim();
        const Tensor read_of = m > 1 && block_mask.size(m - 2) > rows ? block_mask.narrow(m - 2, 0, rows) : block_mask;
        const int64_t blocks[] = {a.batch, a.heads_q, rows};
        TORCH_CHECK_VALUE(broadcasts(read_of, blocks) && has_strides(read_of, false) && read_of.size(m - 1) >= keys,
                          "cpu_attention: block_mask ", block_mask.sizes(), " does not fit, or its rows are not contiguous");
        const fa_tensor described = described_mask(read_of);
        a.block_mask = static_cast<const uint8_t *>(described.data);
        std::copy(described.stride, described.stride + 3, a.block_mask_stride);
    }
    if (kept_start.defined() || kept_blocks.defined()) {
        TORCH_CHECK_VALUE(kept_start.defined() && kept_blocks.defined(),
                          "cpu_attention: kept_start and kept_blocks go together");
        TORCH_CHECK_VALUE(a.kept_q >= 1 && a.kept_kv >= 1, "cpu_attention: kept_q is ", a.kept_q, ", kept_kv is ",
                          a.kept_kv, ": at least 1");
        const int64_t lists = a.len_q == 0 ? 0 : (a.len_q - 1) / a.kept_q + 1;
        a.kept_start = list(kept_start, "kept_start", -1), a.kept_blocks = list(kept_blocks, "kept_blocks", -1);
        lists_of_heads(a, {"kept_start", "kept_blocks"}, kept_start, a.kept_start, kept_blocks, lists, a.kept_heads,
                       a.kept_stride);
    }
    int32_t all_columns[2] = {0, 0};
    TORCH_CHECK_VALUE(columns.defined() || !column_start.defined(),
                      "cpu_attention: column_start is given, but columns are not");
    if (columns.defined()) {
        a.columns = list(columns, "columns", -1), a.column_start = all_columns;
        all_columns[1] = static_cast<int32_t>(columns.numel());
        if (column_start.defined()) {
            a.column_start = list(column_start, "column_start", -1);
            lists_of_heads(a, {"column_start", "columns"}, column_start, a.column_start, columns, 1, a.column_heads,
                           a.column_stride);
        }
    }
    if (spans.defined()) {
        a.spans = list(spans, "spans", -1);
        a.span_starts = list(span_starts, "span_starts", a.batch + 1);
        TORCH_CHECK_VALUE(a.span_starts && spans.dim() == 2 && spans.size(1) == 2 && a.span_starts[a.batch] <= spans.size(0),
                          "cpu_attention: spans ", spans.sizes(), " are no pairs, or fewer than span_starts says");
    }

    a.lse = lse.data_ptr<float>();
    const int64_t first = lse.dim() - 3;
    a.lse_stride[0] = first == 0 ? lse.stride(0) : 0;
    a.lse_stride[1] = lse.stride(first + 1), a.lse_stride[2] = lse.stride(first + 2);
    if (weights.defined()) {
        a.num_weight_heads = weight_heads.defined() ? weight_heads.numel() : a.heads_q;
        a.num_weight_rows = weight_rows.defined() ? weight_rows.numel() : a.len_q;
        a.weight_heads = list(weight_heads, "weight_heads", -1);
        a.weight_rows = list(weight_rows, "weight_rows", -1);
        const int64_t wanted[] = {a.batch, a.num_weight_heads, a.num_weight_rows, a.len_kv};
        TORCH_CHECK_VALUE(weights.scalar_type() == at::kFloat && has_strides(weights, false) && weights.dim() <= 4 &&
                              weights.dim() >= 3 && weights.sizes() == c10::IntArrayRef(wanted, 4).slice(4 - weights.dim()) &&
                              (weights.dim() == 4 || a.batch == 1),
                          "cpu_attention: weights ", weights.sizes(), " of ", weights.scalar_type(), " are not float32 ",
                          c10::IntArrayRef(wanted, 4), " with contiguous rows");
        a.weights = described(weights);
    }
    run(a);
    torch::jit::drop(*stack, count);
    torch::jit::push(*stack, std::move(out), std::move(lse));
}

// Gradients would be lost without a word.
void attention_autograd(const c10::OperatorHandle &op, c10::DispatchKeySet keys, torch::jit::Stack *stack) {
    for (const c10::IValue &x : torch::jit::last(*stack, op.schema().arguments().size())) {
        TORCH_CHECK_NOT_IMPLEMENTED(!x.isTensor() || !differentiated(x.toTensor()),
                                    "cpu_attention::attention has no gradients: call it under torch.no_grad()");
    }
    op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
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
}

TORCH_LIBRARY_IMPL(cpu_attention, CPU, m) {
    for (const char *name : {"attention", "attention.weights"}) {
        m.impl(name, torch::CppFunction::makeFromBoxedFunction<&attention>());
    }
}

TORCH_LIBRARY_IMPL(cpu_attention, AutogradCPU, m) {
    for (const char *name : {"attention", "attention.weights"}) {
        m.impl(name, torch::CppFunction::makeFromBoxedFunction<&attention_autograd>());
    }
}
