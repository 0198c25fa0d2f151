// flash_attention.h for C++17: typed views of the caller's memory, memory and threads that clean up
// after themselves.
//
//   using namespace flash_attention;
//   Workspace ws;
//   Attention a(token_first(q, batch, len_q, heads_q, dim),
//               token_first(k, batch, len_kv, heads_kv, dim),
//               token_first(v, batch, len_kv, heads_kv, dim),
//               token_first(out, batch, len_q, heads_q, dim));
//   a.causal();
//   fa_status status = a.run(ws);                     // or, with exceptions: check(a.run(ws));
//
// Only check() throws, and it does not exist under -fno-exceptions. Everything that can fail
// returns an fa_status. Only Workspace and Pool allocate. Views neither own nor copy what they
// point to: it must stay valid until the calls that use it have returned.
//
// Sizes count elements, strides of tensors bytes. Everything that flash_attention.h says holds
// here, too.

#ifndef FLASH_ATTENTION_HPP
#define FLASH_ATTENTION_HPP

#include <flash_attention.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>
#if defined(__cpp_exceptions)
#include <stdexcept>
#endif

namespace flash_attention {

// Stored numbers that C++17 has no types for. Pointers to types of your own may be cast to pointers
// to these; or specialise Type for them.
enum class half : std::uint16_t {};
enum class bfloat16 : std::uint16_t {};
struct q8_0; // blocks of 32 elements in 34 bytes
struct q4_0; // in 18
struct q4_1; // in 20
struct q5_0; // in 22
struct q5_1; // in 24
struct iq4_nl; // in 18
enum class float8_e4m3 : std::uint8_t {};
enum class float8_e5m2 : std::uint8_t {};

namespace detail {

// Sizes come from the caller: instead of overflowing, a stride becomes one that the library refuses
// (or that does not matter, as the axis has one element).
constexpr std::int64_t times(std::int64_t a, std::int64_t b) {
    constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
    if (a <= 0 || b <= 0)
        return 0;
    return a > most / b ? most : a * b;
}

} // namespace detail

// How elements are stored: the value of fa_dtype, and the bytes of a row.
template <fa_dtype Dtype, std::int64_t Block, std::int64_t Bytes> struct Stored {
    static constexpr fa_dtype dtype = Dtype;
    static constexpr std::int64_t bytes = Bytes;
    static constexpr std::int64_t row_bytes(std::int64_t dim) { return detail::times(dim / Block, Bytes); }
};
template <class T> struct Type;
template <> struct Type<float> : Stored<FA_DTYPE_F32, 1, 4> {};
template <> struct Type<half> : Stored<FA_DTYPE_F16, 1, 2> {};
template <> struct Type<bfloat16> : Stored<FA_DTYPE_BF16, 1, 2> {};
template <> struct Type<std::int8_t> : Stored<FA_DTYPE_I8, 1, 1> {};
template <> struct Type<q8_0> : Stored<FA_DTYPE_Q8_0, 32, 34> {};
template <> struct Type<q4_0> : Stored<FA_DTYPE_Q4_0, 32, 18> {};
template <> struct Type<q4_1> : Stored<FA_DTYPE_Q4_1, 32, 20> {};
template <> struct Type<q5_0> : Stored<FA_DTYPE_Q5_0, 32, 22> {};
template <> struct Type<q5_1> : Stored<FA_DTYPE_Q5_1, 32, 24> {};
template <> struct Type<iq4_nl> : Stored<FA_DTYPE_IQ4_NL, 32, 18> {};
template <> struct Type<float8_e4m3> : Stored<FA_DTYPE_F8_E4M3, 1, 1> {};
template <> struct Type<float8_e5m2> : Stored<FA_DTYPE_F8_E5M2, 1, 1> {};
template <> struct Type<std::uint8_t> : Stored<FA_DTYPE_U8, 1, 1> {};
template <> struct Type<std::int16_t> : Stored<FA_DTYPE_Q15, 1, 2> {}; // fractions of 32768
template <> struct Type<bool> : Stored<FA_DTYPE_BOOL8, 1, 1> {};
static_assert(sizeof(bool) == 1, "FA_DTYPE_BOOL8 is a byte");

// A tensor [batch][head][token][dim] in the caller's memory; T is const for one that is only read.
template <class T> struct Tensor {
    T *data = nullptr;
    std::int64_t batch = 0, heads = 0, tokens = 0, dim = 0;
    std::int64_t stride[3] = {0, 0, 0}; // BYTES from one batch entry, head, token to the next
    const fa_quant *quant = nullptr;    // what elements of 8 bits stand for, and fractions
    std::int64_t stride_dim = 0;        // BYTES between elements of a row, 0 = neighbours; others for K and V only
    std::int64_t bytes = 0;             // BYTES of the memory, 0 = unknown

    // The same memory with other strides, in bytes.
    Tensor strides(std::int64_t of_batch, std::int64_t of_heads, std::int64_t of_tokens) const {
        Tensor other = *this;
        other.stride[0] = of_batch, other.stride[1] = of_heads, other.stride[2] = of_tokens;
        return other;
    }

    // The same memory with elements of a row so many bytes apart, for K and V.
    Tensor elements_apart(std::int64_t of_elements) const {
        Tensor other = *this;
        other.stride_dim = of_elements;
        return other;
    }

    // Keeps the address of `how`, which must live until the calls that use the tensor have
    // returned: a temporary is refused.
    Tensor scales(const fa_quant &how) const {
        Tensor other = *this;
        other.quant = &how;
        return other;
    }
    Tensor scales(const fa_quant &&how) const = delete;

    // Says how much memory there is, 0 = unknown: every call refuses (FA_ERR_SHAPE) a tensor that
    // takes more.
    Tensor in_bytes(std::size_t of_memory) const {
        constexpr auto most = std::numeric_limits<std::int64_t>::max();
        Tensor other = *this;
        other.bytes = of_memory > static_cast<std::uint64_t>(most) ? most : static_cast<std::int64_t>(of_memory);
        return other;
    }

    // C says only in comments which tensors are outputs. This header makes sure that they are not
    // const.
    fa_tensor c() const {
        fa_tensor t{};
        t.data = const_cast<void *>(static_cast<const void *>(data));
        for (int i = 0; i < 3; i++)
            t.stride[i] = stride[i];
        t.dtype = Type<std::remove_const_t<T>>::dtype;
        t.quant = quant;
        // A number that the field cannot hold becomes one that the library refuses.
        const bool fits = stride_dim >= 0 && stride_dim <= std::numeric_limits<std::int32_t>::max();
        t.stride_dim = fits ? static_cast<std::int32_t>(stride_dim) : -1;
        return t;
    }
};

// Dense [batch][head][token][dim].
template <class T>
Tensor<T> head_first(T *data, std::int64_t batch, std::int64_t heads, std::int64_t tokens, std::int64_t dim) {
    const std::int64_t row = Type<std::remove_const_t<T>>::row_bytes(dim), head = detail::times(tokens, row);
    return Tensor<T>{data, batch, heads, tokens, dim, {detail::times(heads, head), head, row}, nullptr, 0, 0};
}

// Dense [batch][token][head][dim], as the projections of a model make it.
template <class T>
Tensor<T> token_first(T *data, std::int64_t batch, std::int64_t tokens, std::int64_t heads, std::int64_t dim) {
    const std::int64_t row = Type<std::remove_const_t<T>>::row_bytes(dim), token = detail::times(heads, row);
    return Tensor<T>{data, batch, heads, tokens, dim, {detail::times(tokens, token), row, token}, nullptr, 0, 0};
}

// Pages [page][token][head][dim] of K or V, for Paged. Of [page][head][token][dim]: head_first.
template <class T>
Tensor<T> paged(T *data, std::int64_t pages, std::int64_t page_size, std::int64_t heads, std::int64_t dim) {
    return token_first(data, pages, page_size, heads, dim);
}

// Dense [batch][head][dim][token], for K and V: a transposed cache.
template <class T>
Tensor<T> transposed(T *data, std::int64_t batch, std::int64_t heads, std::int64_t dim, std::int64_t tokens) {
    const std::int64_t element = Type<std::remove_const_t<T>>::bytes, apart = detail::times(tokens, element);
    const std::int64_t head = detail::times(dim, apart);
    return Tensor<T>{data, batch, heads, tokens, dim, {detail::times(heads, head), head, element}, nullptr, apart, 0};
}

// Writes a tensor in another type, as fa_quantize: src of f32, f16 or bf16; of 8-bit integers dst
// has scales, and of fractions it may have some, which are found and written. FA_ERR_SHAPE where
// sizes disagree.
template <class S, class D> [[nodiscard]] fa_status quantize(const Tensor<S> &src, const Tensor<D> &dst) noexcept {
    static_assert(!std::is_const<D>::value, "the output is written");
    if (src.batch != dst.batch || src.heads != dst.heads || src.tokens != dst.tokens || src.dim != dst.dim)
        return FA_ERR_SHAPE;
    const fa_tensor from = src.c(), to = dst.c();
    return fa_quantize(&from, src.batch, src.heads, src.tokens, src.dim, &to);
}

// How run_q15 computes.
struct Fixed {
    std::int32_t scale_mantissa = 0, scale_shift = 0; // the scale is mantissa / 2^shift; 0 = 1/sqrt(dim)
    bool causal = false;
    std::uint32_t threads = 1; // 1 = the calling thread alone, 0 = one per core
};

// Attention of fractions in integers alone, as fa_mha_q15: the same bits on every machine. Tensors
// are head_first. FA_ERR_SHAPE where sizes disagree, FA_ERR_STRIDE where rows are not dense,
// FA_ERR_DTYPE with scales.
[[nodiscard]] inline fa_status run_q15(const Tensor<const std::int16_t> &q, const Tensor<const std::int16_t> &k,
                                       const Tensor<const std::int16_t> &v, const Tensor<std::int16_t> &out,
                                       const Fixed &how = {}) noexcept {
    const auto differ = [](const auto &a, const auto &b) {
        return a.batch != b.batch || a.heads != b.heads || a.tokens != b.tokens || a.dim != b.dim;
    };
    const auto is_dense = [](const auto &t) {
        const auto dense = head_first(t.data, t.batch, t.heads, t.tokens, t.dim);
        return (t.batch <= 1 || t.stride[0] == dense.stride[0]) && (t.heads <= 1 || t.stride[1] == dense.stride[1]) &&
               (t.tokens <= 1 || t.stride[2] == dense.stride[2]) && (t.stride_dim == 0 || t.stride_dim == 2);
    };
    if (q.batch < 0 || q.heads < 0 || q.tokens < 0 || q.dim < 0 || k.heads < 0 || k.tokens < 0 || k.batch != q.batch ||
        k.dim != q.dim || differ(k, v) || differ(q, out))
        return FA_ERR_SHAPE;
    if (q.quant != nullptr || k.quant != nullptr || v.quant != nullptr || out.quant != nullptr)
        return FA_ERR_DTYPE;
    if (!is_dense(q) || !is_dense(k) || !is_dense(v) || !is_dense(out))
        return FA_ERR_STRIDE;
    fa_q15_config cfg{};
    cfg.struct_size = sizeof cfg, cfg.head_dim = static_cast<std::size_t>(q.dim);
    cfg.scale_mantissa = how.scale_mantissa, cfg.scale_shift = how.scale_shift;
    cfg.causal = how.causal, cfg.num_threads = how.threads;
    const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
    // A batch is as many heads, of both kinds.
    return q.batch == 0 ? FA_OK
                        : fa_mha_q15(&cfg, q.data, k.data, v.data, size(detail::times(q.batch, q.heads)),
                                     size(detail::times(q.batch, k.heads)), size(q.tokens), size(k.tokens), out.data);
}

// Scratch memory: grows when a call needs more, is kept for the next one. For one call at a time.
class Workspace {
  public:
    // FA_ERR_MEMORY if that much cannot be allocated; the memory that there was is kept then.
    [[nodiscard]] fa_status reserve(std::size_t bytes) noexcept {
        if (bytes <= size_)
            return FA_OK;
        std::unique_ptr<std::byte[]> more(new (std::nothrow) std::byte[bytes]);
        if (!more)
            return FA_ERR_MEMORY;
        memory_ = std::move(more);
        size_ = bytes;
        return FA_OK;
    }
    void *data() noexcept { return memory_.get(); }
    std::size_t size() const noexcept { return size_; }

  private:
    std::unique_ptr<std::byte[]> memory_;
    std::size_t size_ = 0;
};

// A pool of the library's own threads. Before create() it has none, and the calling thread does the
// work.
class Pool {
  public:
    Pool() = default;
    Pool(Pool &&other) noexcept : pool_(std::exchange(other.pool_, nullptr)) {}
    Pool &operator=(Pool &&other) noexcept {
        std::swap(pool_, other.pool_);
        return *this;
    }
    ~Pool() { fa_pool_destroy(pool_); }

    // Makes threads, the calling one included; 0 = one per core. They replace the old ones, unless
    // it fails.
    [[nodiscard]] fa_status create(std::int32_t threads = 0) noexcept {
        fa_pool *made = nullptr;
        const fa_status status = fa_pool_create(threads, &made);
        if (status == FA_OK)
            fa_pool_destroy(std::exchange(pool_, made));
        return status;
    }
    const fa_pool *get() const noexcept { return pool_; }

  private:
    fa_pool *pool_ = nullptr;
};

// One call of the library's, of which a pool of yours has several to make.
class Task {
  public:
    Task(fa_task task, void *arg) noexcept : task_(task), arg_(arg) {}
    void operator()(std::size_t i) const noexcept { task_(arg_, i); }

  private:
    fa_task task_;
    void *arg_;
};

// Threads of yours: a callable with (std::size_t n, Task task) that calls task(i) once for each i
// below n, on any threads, and returns when all these calls have returned; see fa_pool. An
// exception that leaves it ends the program. Say how many threads compute at the same time, the
// calling one included.
//
//   CallablePool pool(4, [&](std::size_t n, Task task) {
//       tbb::parallel_for(std::size_t{0}, n, task);
//   });
template <class F> class CallablePool {
  public:
    CallablePool(std::int32_t width, F parallel_for) : parallel_for_(std::move(parallel_for)), width_(width) {
        static_assert(std::is_invocable_v<F &, std::size_t, Task>, "parallel_for takes (std::size_t n, Task task)");
        pool_.struct_size = sizeof pool_, pool_.ctx = this;
        pool_.width = [](void *self) { return static_cast<CallablePool *>(self)->width_; };
        pool_.parallel_for = run;
    }
    // The library gets its address.
    CallablePool(const CallablePool &) = delete;
    CallablePool &operator=(const CallablePool &) = delete;
    const fa_pool *get() const noexcept { return &pool_; }

  private:
    static void run(void *self, std::size_t n, fa_task task, void *arg) noexcept {
        static_cast<CallablePool *>(self)->parallel_for_(n, Task(task, arg));
    }

    fa_pool pool_{};
    F parallel_for_;
    std::int32_t width_;
};

// How many parts a pool has: n_parts of fa_attention_workspace.
inline std::int32_t width(const fa_pool *pool) {
    if (pool == nullptr || pool->width == nullptr)
        return 1;
    const std::int32_t n = pool->width(pool->ctx);
    return n < 1 ? 1 : n > 256 ? 256 : n;
}

// Ragged rows: tensors have one batch entry with the rows of all sequences one after another, those
// of sequence b from starts[b] to starts[b + 1] - 1. starts has batch + 1 entries; no sequence has
// more rows than `longest`.
struct Ragged {
    const std::int32_t *starts;
    std::int64_t batch, longest;
};

// Keys in pages: k and v are [page][head][token of the page][dim] (paged() or head_first()), and
// key j of sequence b is in page table[b * table_stride + j / page size]. lens: how many keys of
// each sequence are in use; NULL = all of len_kv. No sequence has more keys than len_kv.
struct Paged {
    const std::int32_t *table;
    std::int64_t table_stride, len_kv;
    const std::int32_t *lens = nullptr;
};

// One problem: fa_attention, whose fields are reached by ->.
class Attention {
  public:
    // All fields are the caller's to fill.
    Attention() noexcept { status_ = fa_attention_init(&a_, sizeof a_); }

    // q [batch][heads_q][len_q][dim_qk], k [batch][heads_kv][len_kv][dim_qk], v
    // [batch][heads_kv][len_kv][dim_v], out [batch][heads_q][len_q][dim_v]. Where they disagree
    // about a size, every call returns FA_ERR_SHAPE.
    template <class Q, class K, class V, class O>
    Attention(const Tensor<Q> &q, const Tensor<K> &k, const Tensor<V> &v, const Tensor<O> &out) noexcept : Attention() {
        describe(q, k, v, out);
        a_.batch = q.batch, a_.len_q = q.tokens, a_.len_kv = k.tokens;
        agree(k.batch == q.batch);
    }

    // Ragged queries, and keys: the rows of all sequences one after another, [1][head][row][dim].
    template <class Q, class K, class V, class O>
    Attention(const Tensor<Q> &q, const Tensor<K> &k, const Tensor<V> &v, const Tensor<O> &out, const Ragged &rows,
              const Ragged &keys) noexcept
        : Attention() {
        describe(q, k, v, out);
        ragged_queries(q, rows);
        a_.cu_len_kv = keys.starts, a_.len_kv = keys.longest;
        agree(k.batch == 1 && keys.batch == rows.batch && keys.starts != nullptr && keys.batch >= 0
              && keys.starts[keys.batch] <= k.tokens);
    }

    // Ragged queries, and keys in pages: a step of an engine, with prompts and single tokens.
    template <class Q, class K, class V, class O>
    Attention(const Tensor<Q> &q, const Tensor<K> &k, const Tensor<V> &v, const Tensor<O> &out, const Ragged &rows,
              const Paged &keys) noexcept
        : Attention() {
        describe(q, k, v, out);
        ragged_queries(q, rows);
        paged_keys(k, keys);
    }

    // Queries of the same number for each sequence, and keys in pages.
    template <class Q, class K, class V, class O>
    Attention(const Tensor<Q> &q, const Tensor<K> &k, const Tensor<V> &v, const Tensor<O> &out,
              const Paged &keys) noexcept
        : Attention() {
        describe(q, k, v, out);
        a_.batch = q.batch, a_.len_q = q.tokens;
        paged_keys(k, keys);
    }

    // Causal, with the last query at the last key. To put query 0 at key 0, set a->q_pos = 0.
    void causal() noexcept { a_.window_right = 0; }

    // [batch or 1][heads_q or 1][len_q or 1][len_kv], bool (true = visible) or added to the scores.
    // Sizes that do not fit make every call return FA_ERR_SHAPE.
    template <class M> void mask(const Tensor<M> &m) noexcept {
        a_.mask = m.c(), a_.mask_bytes = m.bytes;
        const std::int64_t given[3] = {m.batch, m.heads, m.tokens}, wanted[3] = {a_.batch, a_.heads_q, a_.len_q};
        bool fits = m.dim == a_.len_kv;
        for (int i = 0; i < 3; i++) {
            fits = fits && (given[i] == 1 || given[i] == wanted[i]);
            if (given[i] == 1)
                a_.mask.stride[i] = 0;
        }
        if (status_ == FA_OK && !fits)
            status_ = FA_ERR_SHAPE;
    }

    // Keys that see each other both ways, whatever the window: the first of each span, and the one
    // behind its last. Those of sequence b are list[starts[b]] to list[starts[b + 1] - 1].
    void spans(const std::int32_t (*list)[2], const std::int32_t *starts) noexcept {
        a_.spans = list == nullptr ? nullptr : *list, a_.span_starts = starts;
    }

    // The blocks of keys that each block of q query rows sees; a block of keys has kv of them. Row
    // i of head h of sequence b sees blocks[starts[r]] to blocks[starts[r + 1] - 1], ascending,
    // where r = b * batch_stride + h / (heads_q / heads) * head_stride + i / q. heads: how many
    // have lists of their own, 0 = all. Strides of 0: the same lists for all.
    void kept(const std::int32_t *starts, const std::int32_t *blocks, std::int64_t q, std::int64_t kv,
              std::int64_t heads = 0, std::int64_t head_stride = 0, std::int64_t batch_stride = 0) noexcept {
        a_.kept_start = starts, a_.kept_blocks = blocks, a_.kept_q = q, a_.kept_kv = kv, a_.kept_heads = heads;
        a_.kept_stride[0] = batch_stride, a_.kept_stride[1] = head_stride;
    }

    // Single keys that all rows of a head see, besides those in their windows and blocks, as far as
    // the right end of the window: head h of sequence b has keys[starts[r]] to keys[starts[r + 1] -
    // 1], ascending, where r = b * batch_stride + h / (heads_q / heads) * head_stride. heads: how
    // many have a list of their own, 0 = all. Strides of 0: the same list for all.
    void columns(const std::int32_t *starts, const std::int32_t *keys, std::int64_t heads = 0,
                 std::int64_t head_stride = 0, std::int64_t batch_stride = 0) noexcept {
        a_.column_start = starts, a_.columns = keys, a_.column_heads = heads;
        a_.column_stride[0] = batch_stride, a_.column_stride[1] = head_stride;
    }

    // The lists and columns that partitions of a text make, for all heads and sequences; see
    // Partitions.
    void kept(const fa_sparse_lists &lists, const fa_sparse_config &of) noexcept {
        kept(lists.kept_start, lists.kept_blocks, of.kept_q, of.kept_kv);
        columns(lists.num_columns > 0 ? lists.column_start : nullptr, lists.columns);
    }

    // Where to put the probabilities of all keys, [batch][heads_q][len_q][len_kv], or of the heads
    // and rows of lists: ascending, rows that are negative count from the end of each sequence.
    // Sizes that do not fit make every call return FA_ERR_SHAPE.
    void weights(const Tensor<float> &w, const std::int32_t *heads = nullptr, std::int64_t num_heads = 0,
                 const std::int32_t *rows = nullptr, std::int64_t num_rows = 0) noexcept {
        a_.weights = w.c(), a_.weights_bytes = w.bytes;
        a_.weight_heads = heads, a_.num_weight_heads = num_heads, a_.weight_rows = rows, a_.num_weight_rows = num_rows;
        const bool fits = w.batch == a_.batch && w.heads == (heads == nullptr ? a_.heads_q : num_heads)
                          && w.tokens == (rows == nullptr ? a_.len_q : num_rows) && w.dim == a_.len_kv;
        if (status_ == FA_OK && !fits)
            status_ = FA_ERR_SHAPE;
    }

    // Writes keys and values of new tokens, f32, f16 or bf16, into the cache, as fa_cache_append:
    // the query rows of this problem are the new tokens. k and v are the cache once more, as
    // tensors that may be written; new_k and new_v [batch][heads_kv][len_q][dim], or with cu_len_q
    // the rows of all sequences behind one another. why: NULL, or room for why_size bytes, for a
    // sentence that says what was refused.
    template <class K, class V, class NewK, class NewV>
    [[nodiscard]] fa_status append(const Tensor<K> &k, const Tensor<V> &v, const Tensor<NewK> &new_k,
                                   const Tensor<NewV> &new_v, char *why = nullptr,
                                   std::size_t why_size = 0) const noexcept {
        static_assert(!std::is_const<K>::value && !std::is_const<V>::value, "the cache is written");
        const bool agree = new_k.heads == a_.heads_kv && new_v.heads == a_.heads_kv && k.heads == a_.heads_kv
                           && v.heads == a_.heads_kv && new_k.dim == a_.dim_qk && k.dim == a_.dim_qk
                           && new_v.dim == a_.dim_v && v.dim == a_.dim_v;
        const bool fits = a_.cu_len_q != nullptr
                          || (new_k.batch == a_.batch && new_v.batch == a_.batch && new_k.tokens == a_.len_q
                              && new_v.tokens == a_.len_q);
        if (status_ != FA_OK || !agree || !fits) {
            const fa_status status = status_ != FA_OK ? status_ : FA_ERR_SHAPE;
            words(status, why, why_size);
            return status;
        }
        fa_attention a = a_;
        a.k = k.c(), a.v = v.c();
        a.k_bytes = k.bytes, a.v_bytes = v.bytes;
        const fa_tensor from_k = new_k.c(), from_v = new_v.c();
        return fa_cache_append(&a, &from_k, &from_v, why, why_size);
    }

    fa_attention *operator->() noexcept { return &a_; }
    const fa_attention *operator->() const noexcept { return &a_; }

    // Whether run() would refuse it. why: NULL, or room for why_size bytes, for a sentence that
    // says why.
    [[nodiscard]] fa_status check(char *why = nullptr, std::size_t why_size = 0) const noexcept {
        if (status_ == FA_OK)
            return fa_attention_check(&a_, why, why_size);
        words(status_, why, why_size);
        return status_;
    }

    // Whether run(memory, bytes, pool) would be refused, and why.
    [[nodiscard]] fa_status check_run(const void *memory, std::size_t bytes, const fa_pool *pool, char *why = nullptr,
                                      std::size_t why_size = 0) const noexcept {
        if (status_ == FA_OK)
            return fa_attention_check_run(&a_, memory, bytes, pool, why, why_size);
        words(status_, why, why_size);
        return status_;
    }

    // How run() computes it with this pool, for tuners and logs.
    [[nodiscard]] fa_status plan(fa_plan &how, const fa_pool *pool = nullptr) const noexcept {
        how.struct_size = sizeof how;
        return status_ != FA_OK ? status_ : fa_attention_plan(&a_, width(pool), &how);
    }

    // Bytes that run() needs with this pool.
    [[nodiscard]] fa_status workspace(std::size_t &bytes, const fa_pool *pool = nullptr) const noexcept {
        return status_ != FA_OK ? status_ : fa_attention_workspace(&a_, width(pool), &bytes);
    }

    // Bytes that are enough for any pool of at most so many parts, 1 to 256.
    [[nodiscard]] fa_status workspace_max(std::size_t &bytes, std::int32_t max_parts) const noexcept {
        return status_ != FA_OK ? status_ : fa_attention_workspace_max(&a_, max_parts, &bytes);
    }

    // With memory of the caller's. pool: NULL = the calling thread alone.
    [[nodiscard]] fa_status run(void *memory, std::size_t bytes, const fa_pool *pool = nullptr) const noexcept {
        return status_ != FA_OK ? status_ : fa_attention_run(&a_, memory, bytes, pool);
    }

    // With memory that grows as needed.
    [[nodiscard]] fa_status run(Workspace &ws, const fa_pool *pool = nullptr) const noexcept {
        std::size_t bytes = 0;
        fa_status status = workspace(bytes, pool);
        if (status == FA_OK)
            status = ws.reserve(bytes);
        return status != FA_OK ? status : run(ws.data(), ws.size(), pool);
    }
    [[nodiscard]] fa_status run(Workspace &ws, const Pool &pool) const noexcept { return run(ws, pool.get()); }
    template <class F> [[nodiscard]] fa_status run(Workspace &ws, const CallablePool<F> &pool) const noexcept {
        return run(ws, pool.get());
    }

  private:
    void agree(bool fits) noexcept {
        if (status_ == FA_OK && !fits)
            status_ = FA_ERR_SHAPE;
    }

    // Tensors, heads and elements; not how many sequences there are, and of what lengths.
    template <class Q, class K, class V, class O>
    void describe(const Tensor<Q> &q, const Tensor<K> &k, const Tensor<V> &v, const Tensor<O> &out) noexcept {
        static_assert(!std::is_const<O>::value, "the output is written");
        a_.heads_q = q.heads, a_.heads_kv = k.heads, a_.dim_qk = q.dim, a_.dim_v = v.dim;
        a_.q = q.c(), a_.k = k.c(), a_.v = v.c(), a_.o = out.c();
        a_.q_bytes = q.bytes, a_.k_bytes = k.bytes, a_.v_bytes = v.bytes, a_.o_bytes = out.bytes;
        agree(v.batch == k.batch && out.batch == q.batch && v.heads == k.heads && out.heads == q.heads
              && v.tokens == k.tokens && out.tokens == q.tokens && k.dim == q.dim && out.dim == v.dim);
    }

    template <class Q> void ragged_queries(const Tensor<Q> &q, const Ragged &rows) noexcept {
        a_.cu_len_q = rows.starts, a_.batch = rows.batch, a_.len_q = rows.longest;
        // There may be room for more rows than there are.
        agree(q.batch == 1 && rows.starts != nullptr && rows.batch >= 0 && rows.starts[rows.batch] <= q.tokens);
    }

    template <class K> void paged_keys(const Tensor<K> &k, const Paged &keys) noexcept {
        a_.block_table = keys.table, a_.table_stride = keys.table_stride, a_.len_kv = keys.len_kv;
        a_.kv_lens = keys.lens, a_.num_pages = k.batch, a_.page_size = k.tokens;
    }

    static void words(fa_status status, char *why, std::size_t why_size) noexcept {
        if (why == nullptr || why_size == 0)
            return;
        const char *text = fa_status_string(status);
        std::size_t n = 0;
        for (; n + 1 < why_size && text[n] != '\0'; n++)
            why[n] = text[n];
        why[n] = '\0';
    }

    fa_attention a_;
    fa_status status_;
};

// Partitions of a text, and how much of the attention across them is kept: to lists for
// Attention::kept, by fa_sparse_from_partitions. Options are fields of fa_sparse_config.
//
//   Partitions p(starts, num_starts, len);
//   p.boundary_tokens(tokens, num_tokens);
//   p->window = 128;
//   fa_sparse_lists lists;
//   check(p.measure(lists));                          // lists.room, lists.density
//   check(p.lists(memory, lists.room, lists));
//   a.kept(lists, *p);
class Partitions {
  public:
    // The token at which each partition begins, of a text of len tokens, which are all query rows,
    // too.
    Partitions(const std::int32_t *starts, std::int64_t num_starts, std::int64_t len) noexcept {
        status_ = fa_sparse_config_init(&cfg_, sizeof cfg_);
        cfg_.partitions = starts, cfg_.num_partitions = num_starts, cfg_.len_q = cfg_.len_kv = len;
    }

    // Tokens that are seen across partitions: ascending.
    void boundary_tokens(const std::int32_t *tokens, std::int64_t num_tokens) noexcept {
        cfg_.boundary_tokens = tokens, cfg_.num_boundary_tokens = num_tokens;
    }

    fa_sparse_config *operator->() noexcept { return &cfg_; }
    const fa_sparse_config *operator->() const noexcept { return &cfg_; }
    const fa_sparse_config &operator*() const noexcept { return cfg_; }

    // How long the lists are, and how dense. why: NULL, or room for why_size bytes, for a sentence
    // that says what was refused.
    [[nodiscard]] fa_status measure(fa_sparse_lists &lists, char *why = nullptr,
                                    std::size_t why_size = 0) const noexcept {
        return make(nullptr, 0, lists, why, why_size);
    }

    // Writes them; there is room for so many numbers.
    [[nodiscard]] fa_status lists(std::int32_t *memory, std::int64_t room, fa_sparse_lists &lists, char *why = nullptr,
                                  std::size_t why_size = 0) const noexcept {
        return memory == nullptr ? FA_ERR_NULL : make(memory, room, lists, why, why_size);
    }

  private:
    fa_status make(std::int32_t *memory, std::int64_t room, fa_sparse_lists &lists, char *why,
                   std::size_t why_size) const noexcept {
        fa_sparse_lists found{};
        found.struct_size = sizeof found;
        fa_status status = status_;
        if (status == FA_OK)
            status = fa_sparse_from_partitions(&cfg_, memory, room, &found, why, why_size);
        if (status == FA_OK)
            lists = found;
        return status;
    }

    fa_sparse_config cfg_{};
    fa_status status_;
};

// Lets all later calls in the process use AMX, as fa_enable_amx: FA_ERR_ISA where there is none.
// why: NULL, or room for why_size bytes, for a sentence that says why.
[[nodiscard]] inline fa_status enable_amx(char *why = nullptr, std::size_t why_size = 0) noexcept {
    return fa_enable_amx(why, why_size);
}

#if defined(__cpp_exceptions)
class Error : public std::runtime_error {
  public:
    explicit Error(fa_status why) : std::runtime_error(fa_status_string(why)), status(why) {}
    const fa_status status;
};

inline void check(fa_status status) {
    if (status != FA_OK)
        throw Error(status);
}
#endif

} // namespace flash_attention

#endif // FLASH_ATTENTION_HPP
