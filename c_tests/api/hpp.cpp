// flash_attention.hpp: layouts, masks, refusals, pools. The numbers are those of
// bindings/cpp/example.

#include <flash_attention.hpp>
#include <flash_attention.hpp>

#include <cassert>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>
#include <type_traits>
#include <vector>

namespace fa = flash_attention;
using std::int64_t;

static_assert(!std::is_copy_constructible<fa::Pool>::value && std::is_nothrow_move_constructible<fa::Pool>::value,
              "a pool has one owner");

// No tensor keeps the address of a temporary.
template <class Q, class = void> constexpr bool takes_scales = false;
template <class Q>
constexpr bool takes_scales<Q, std::void_t<decltype(fa::Tensor<std::int8_t>{}.scales(std::declval<Q>()))>> = true;
static_assert(takes_scales<const fa_quant &> && takes_scales<fa_quant &> && !takes_scales<fa_quant> && !takes_scales<const fa_quant>,
              "scales of a temporary");

namespace {

constexpr int64_t BATCH = 2, HEADS_Q = 4, HEADS_KV = 2, LEN_Q = 3, LEN_KV = 5, DIM = 32;
constexpr int64_t MOST = std::numeric_limits<int64_t>::max();

struct Numbers {
    std::vector<float> q, k, v, out;
    Numbers()
        : q(some(BATCH * HEADS_Q * LEN_Q * DIM)), k(some(BATCH * HEADS_KV * LEN_KV * DIM)), v(k), out(q.size(), -1.0f) {
    }
    static std::vector<float> some(int64_t n) {
        std::vector<float> x(static_cast<std::size_t>(n));
        for (std::size_t i = 0; i < x.size(); i++)
            x[i] = static_cast<float>(i * 37 % 101) / 50 - 1;
        return x;
    }
    fa::Tensor<const float> tq() const { return fa::head_first<const float>(q.data(), BATCH, HEADS_Q, LEN_Q, DIM); }
    fa::Tensor<const float> tk() const { return fa::head_first<const float>(k.data(), BATCH, HEADS_KV, LEN_KV, DIM); }
    fa::Tensor<const float> tv() const { return fa::head_first<const float>(v.data(), BATCH, HEADS_KV, LEN_KV, DIM); }
    fa::Tensor<float> to() { return fa::head_first(out.data(), BATCH, HEADS_Q, LEN_Q, DIM); }
};

bool close(const float *a, const float *b) {
    for (int64_t d = 0; d < DIM; d++)
        if (!(std::fabs(a[d] - b[d]) <= 1e-6f))
            return false;
    return true;
}

// Strides count bytes, in the order batch, head, token.
void layouts() {
    Numbers n;
    const auto dense = n.tq();
    assert(dense.stride[0] == HEADS_Q * LEN_Q * DIM * 4 && dense.stride[1] == LEN_Q * DIM * 4);
    assert(dense.stride[2] == DIM * 4);
    const auto q8 = fa::token_first(static_cast<const fa::q8_0 *>(nullptr), BATCH, LEN_KV, HEADS_KV, 64);
    assert(q8.stride[0] == LEN_KV * HEADS_KV * 68 && q8.stride[1] == 68 && q8.stride[2] == HEADS_KV * 68);
    assert(q8.c().dtype == FA_DTYPE_Q8_0);
    const auto q5 = fa::token_first(static_cast<const fa::q5_1 *>(nullptr), BATCH, LEN_KV, HEADS_KV, 64);
    assert(q5.stride[1] == 48 && q5.c().dtype == FA_DTYPE_Q5_1);
    static_assert(fa::Type<fa::q4_0>::row_bytes(64) == 36 && fa::Type<fa::q4_0>::dtype == FA_DTYPE_Q4_0, "");
    static_assert(fa::Type<fa::q4_1>::row_bytes(64) == 40 && fa::Type<fa::q4_1>::dtype == FA_DTYPE_Q4_1, "");
    static_assert(fa::Type<fa::q5_0>::row_bytes(64) == 44 && fa::Type<fa::q5_0>::dtype == FA_DTYPE_Q5_0, "");
    static_assert(fa::Type<fa::float8_e4m3>::dtype == FA_DTYPE_F8_E4M3 && fa::Type<fa::float8_e4m3>::bytes == 1, "");
    static_assert(fa::Type<fa::float8_e5m2>::dtype == FA_DTYPE_F8_E5M2 && sizeof(fa::float8_e5m2) == 1, "");
    static_assert(fa::Type<std::uint8_t>::dtype == FA_DTYPE_U8 && fa::Type<std::uint8_t>::row_bytes(7) == 7, "");
    static_assert(fa::Type<std::int16_t>::dtype == FA_DTYPE_Q15 && fa::Type<std::int16_t>::row_bytes(7) == 14, "");
    static_assert(fa::Type<fa::iq4_nl>::row_bytes(64) == 36 && fa::Type<fa::iq4_nl>::dtype == FA_DTYPE_IQ4_NL, "");

    // The same numbers in the other order give the same bits.
    fa::Workspace ws;
    fa::Attention a(n.tq(), n.tk(), n.tv(), n.to());
    assert(a.run(ws) == FA_OK);
    std::vector<float> q(n.q.size()), out(n.q.size());
    auto place = [](int64_t b, int64_t t, int64_t h) { return ((b * LEN_Q + t) * HEADS_Q + h) * DIM; };
    auto dense_place = [](int64_t b, int64_t t, int64_t h) { return ((b * HEADS_Q + h) * LEN_Q + t) * DIM; };
    for (int64_t b = 0; b < BATCH; b++)
        for (int64_t t = 0; t < LEN_Q; t++)
            for (int64_t h = 0; h < HEADS_Q; h++)
                std::memcpy(&q[place(b, t, h)], &n.q[dense_place(b, t, h)], DIM * 4);
    fa::Attention other(fa::token_first<const float>(q.data(), BATCH, LEN_Q, HEADS_Q, DIM), n.tk(), n.tv(),
                        fa::token_first(out.data(), BATCH, LEN_Q, HEADS_Q, DIM));
    assert(other.run(ws) == FA_OK);
    for (int64_t b = 0; b < BATCH; b++)
        for (int64_t t = 0; t < LEN_Q; t++)
            for (int64_t h = 0; h < HEADS_Q; h++)
                assert(std::memcmp(&out[place(b, t, h)], &n.out[dense_place(b, t, h)], DIM * 4) == 0);
}

// K and V as [batch][head][dim][token] give the same bits; a stride that the field does not hold is
// refused.
void transposed() {
    Numbers n;
    fa::Workspace ws;
    fa::Attention a(n.tq(), n.tk(), n.tv(), n.to());
    assert(a.run(ws) == FA_OK);
    std::vector<float> k(n.k.size()), out(n.q.size());
    for (int64_t head = 0; head < BATCH * HEADS_KV; head++)
        for (int64_t t = 0; t < LEN_KV; t++)
            for (int64_t d = 0; d < DIM; d++) {
                const int64_t from = (head * LEN_KV + t) * DIM + d, to = (head * DIM + d) * LEN_KV + t;
                k[static_cast<std::size_t>(to)] = n.k[static_cast<std::size_t>(from)];
            }
    const auto kt = fa::transposed<const float>(k.data(), BATCH, HEADS_KV, DIM, LEN_KV);
    assert(kt.stride[2] == 4 && kt.c().stride_dim == LEN_KV * 4);
    fa::Attention other(n.tq(), kt, kt, fa::head_first(out.data(), BATCH, HEADS_Q, LEN_Q, DIM));
    assert(other.run(ws) == FA_OK);
    assert(std::memcmp(out.data(), n.out.data(), out.size() * 4) == 0);
    for (const int64_t apart : {int64_t{1} << 31, int64_t{1} << 32, int64_t{-4}, int64_t{6}}) {
        fa::Attention wrong(n.tq(), kt.elements_apart(apart), kt, n.to());
        assert(wrong.run(ws) == FA_ERR_STRIDE);
    }
}

// A mask that leaves one key a row: the output is its value.
void masks() {
    Numbers n;
    bool seen[LEN_Q * LEN_KV] = {};
    for (int64_t i = 0; i < LEN_Q; i++)
        seen[i * LEN_KV + i + 1] = true;
    fa::Workspace ws;
    fa::Attention a(n.tq(), n.tk(), n.tv(), n.to());
    a.mask(fa::head_first(seen, 1, 1, LEN_Q, LEN_KV));
    assert(a.run(ws) == FA_OK);
    for (int64_t b = 0; b < BATCH; b++)
        for (int64_t h = 0; h < HEADS_Q; h++)
            for (int64_t i = 0; i < LEN_Q; i++)
                assert(close(&n.out[((b * HEADS_Q + h) * LEN_Q + i) * DIM],
                             &n.v[((b * HEADS_KV + h / 2) * LEN_KV + i + 1) * DIM]));
    // The same as a window of one key, with query 0 at key 1.
    fa::Attention window(n.tq(), n.tk(), n.tv(), n.to());
    window.causal();
    window->window_left = 0;
    window->q_pos = 1;
    const std::vector<float> before = n.out;
    assert(window.run(ws) == FA_OK && n.out.size() == before.size());
    for (std::size_t i = 0; i < before.size(); i++)
        assert(std::fabs(n.out[i] - before[i]) <= 1e-6f);

    a.mask(fa::head_first(seen, 1, 1, LEN_Q, LEN_KV - 1));
    assert(a.run(ws) == FA_ERR_SHAPE);
}

// Who sees whom by fields is the same as by a mask.
void sight() {
    Numbers n;
    const std::int32_t spans[][2] = {{0, 3}, {3, 5}}, starts[] = {0, 2, 2}, firsts[] = {1, 0}, positions[] = {2, 1};
    bool seen[BATCH * LEN_Q * LEN_KV] = {};
    for (int64_t b = 0; b < BATCH; b++)
        for (int64_t i = 0; i < LEN_Q; i++)
            for (int64_t j = firsts[b]; j < LEN_KV; j++) {
                const int64_t p = positions[b] + i;
                bool in_one = false;
                for (std::int32_t s = starts[b]; s < starts[b + 1]; s++)
                    in_one = in_one || (spans[s][0] <= p && p < spans[s][1] && spans[s][0] <= j && j < spans[s][1]);
                seen[(b * LEN_Q + i) * LEN_KV + j] = in_one || (j <= p && (j >= p || j < firsts[b] + 1));
            }
    fa::Workspace ws;
    fa::Attention by_mask(n.tq(), n.tk(), n.tv(), n.to());
    by_mask.mask(fa::head_first(seen, BATCH, 1, LEN_Q, LEN_KV));
    assert(by_mask.run(ws) == FA_OK);
    const std::vector<float> want = n.out;
    n.out.assign(n.out.size(), -1.0f);
    fa::Attention a(n.tq(), n.tk(), n.tv(), n.to());
    a.causal();
    a->window_left = 0, a->prefix_keys = 1, a->kv_starts = firsts, a->q_positions = positions;
    a.spans(spans, starts);
    std::size_t bytes = 0, most = 0;
    assert(a.workspace(bytes) == FA_OK && a.workspace_max(most, 4) == FA_OK && most >= bytes);
    assert(a.workspace_max(most, 0) == FA_ERR_PART);
    assert(a.run(ws) == FA_OK);
    for (std::size_t i = 0; i < want.size(); i++)
        assert(std::fabs(n.out[i] - want[i]) <= 1e-6f);
    a.spans(spans, nullptr);
    assert(a.run(ws) == FA_ERR_NULL);
    a.spans(nullptr, nullptr);
    assert(a.run(ws) == FA_OK);
}

// Probabilities of the last head and row are those of all, and give the output.
void weights() {
    Numbers n;
    fa::Workspace ws;
    fa::Attention a(n.tq(), n.tk(), n.tv(), n.to());
    const std::int64_t heads = n.tq().heads;
    const std::int32_t head = static_cast<std::int32_t>(heads - 1), row = -1;
    std::vector<float> all(static_cast<std::size_t>(BATCH * heads * LEN_Q * LEN_KV), -1.0f), one(BATCH * LEN_KV, -1.0f);
    a.weights(fa::head_first(all.data(), BATCH, heads, LEN_Q, LEN_KV));
    assert(a.run(ws) == FA_OK);
    a.weights(fa::head_first(one.data(), BATCH, 1, 1, LEN_KV), &head, 1, &row, 1);
    assert(a.run(ws) == FA_OK);
    for (std::int64_t b = 0; b < BATCH; b++) {
        float sum = 0;
        for (std::int64_t j = 0; j < LEN_KV; j++) {
            const float x = one[static_cast<std::size_t>(b * LEN_KV + j)];
            sum += x;
            assert(x == all[static_cast<std::size_t>((((b + 1) * heads - 1) * LEN_Q + LEN_Q - 1) * LEN_KV + j)]);
        }
        assert(std::fabs(sum - 1.0f) <= 1e-6f);
    }
    a.weights(fa::head_first(one.data(), BATCH, 1, 1, LEN_KV), &head, 1);
    assert(a.run(ws) == FA_ERR_SHAPE);
}

// Integers of scale 1/64 are the numbers that they stand for.
void scales() {
    Numbers n;
    std::vector<std::int8_t> k8(n.k.size());
    for (std::size_t i = 0; i < k8.size(); i++) {
        k8[i] = static_cast<std::int8_t>(std::lrint(n.k[i] * 64));
        n.k[i] = static_cast<float>(k8[i]) / 64;
    }
    const float step = 1.0f / 64;
    fa_quant how{};
    how.scale = &step;
    fa::Workspace ws;
    fa::Attention plain(n.tq(), n.tk(), n.tv(), n.to());
    assert(plain.run(ws) == FA_OK);
    const std::vector<float> want = n.out;
    fa::Attention a(n.tq(), fa::head_first(k8.data(), BATCH, HEADS_KV, LEN_KV, DIM).scales(how), n.tv(), n.to());
    assert(a.run(ws) == FA_OK);
    for (std::size_t i = 0; i < want.size(); i++)
        assert(std::fabs(n.out[i] - want[i]) <= 1e-5f);
}

void refusals() {
    Numbers n;
    fa::Workspace ws;
    const std::vector<float> before = n.out;
    char why[64] = "";

    fa::Attention dims(n.tq(), fa::head_first(n.k.data(), BATCH, HEADS_KV, LEN_KV, DIM / 2), n.tv(), n.to());
    assert(dims.run(ws) == FA_ERR_SHAPE && dims.check(why, sizeof why) == FA_ERR_SHAPE && why[0] != '\0');
    assert(dims.check(why, 1) == FA_ERR_SHAPE && why[0] == '\0' && dims.check() == FA_ERR_SHAPE);
    fa::Attention tokens(n.tq(), n.tk(), fa::head_first(n.v.data(), BATCH, HEADS_KV, LEN_KV - 1, DIM), n.to());
    assert(tokens.run(ws) == FA_ERR_SHAPE);
    fa::Attention heads(n.tq(), fa::head_first(n.k.data(), BATCH, 3, LEN_KV, DIM),
                        fa::head_first(n.v.data(), BATCH, 3, LEN_KV, DIM), n.to());
    assert(heads.run(ws) == FA_ERR_SHAPE);
    fa::Attention negative(n.tq().strides(-4, 4, 4), n.tk(), n.tv(), n.to());
    assert(negative.run(ws) == FA_ERR_STRIDE && negative.check(why, sizeof why) == FA_ERR_STRIDE);
    fa::Attention overlap(n.tq(), n.tk(), n.tv(), fa::head_first(n.q.data(), BATCH, HEADS_Q, LEN_Q, DIM));
    assert(overlap.run(ws) == FA_ERR_OVERLAP);
    fa::Attention null(fa::head_first<const float>(nullptr, BATCH, HEADS_Q, LEN_Q, DIM), n.tk(), n.tv(), n.to());
    assert(null.run(ws) == FA_ERR_NULL);
    fa::Attention huge(fa::head_first(n.q.data(), BATCH, MOST, MOST, MOST), n.tk(), n.tv(), n.to());
    assert(huge.run(ws) != FA_OK);
    fa::Attention below(fa::head_first(n.q.data(), BATCH, -1, LEN_Q, DIM), n.tk(), n.tv(),
                        fa::head_first(n.out.data(), BATCH, -1, LEN_Q, DIM));
    assert(below.run(ws) == FA_ERR_SHAPE);
    fa::Attention large(fa::head_first(n.q.data(), MOST / 4, MOST / 4, LEN_Q, DIM),
                        fa::head_first(n.k.data(), MOST / 4, MOST / 4, LEN_KV, DIM),
                        fa::head_first(n.v.data(), MOST / 4, MOST / 4, LEN_KV, DIM),
                        fa::head_first(n.out.data(), MOST / 4, MOST / 4, LEN_Q, DIM));
    assert(large.run(ws) != FA_OK);
    fa::Attention empty;
    assert(empty.run(ws) != FA_OK);

    fa::Attention fine(n.tq(), n.tk(), n.tv(), n.to());
    // Large enough to need more than the stack.
    std::vector<float> x(1024 * 128, 1.0f), y(x.size());
    const auto tx = fa::head_first<const float>(x.data(), 1, 1, 1024, 128);
    fa::Attention more(tx, tx, tx, fa::head_first(y.data(), 1, 1, 1024, 128));
    std::size_t bytes = 0;
    assert(more.workspace(bytes) == FA_OK && bytes > 0);
    assert(more.run(nullptr, 0) == FA_ERR_WORKSPACE && more.run(x.data(), bytes - 1) == FA_ERR_WORKSPACE);
    assert(more.run(ws) == FA_OK && ws.size() == bytes && y[y.size() - 1] == 1.0f);
    assert(n.out == before);
    assert(ws.reserve(static_cast<std::size_t>(MOST) - 64) == FA_ERR_MEMORY && fine.run(ws) == FA_OK);

#if defined(__cpp_exceptions)
    fa::check(FA_OK);
    try {
        fa::check(negative.run(ws));
        assert(false);
    } catch (const fa::Error &e) {
        assert(e.status == FA_ERR_STRIDE && std::strlen(e.what()) > 0);
    }
#endif
}

// What is appended is what a program quantises by itself, and attention reads it.
void caches() {
    Numbers n;
    const auto new_k = fa::head_first<const float>(n.k.data(), BATCH, HEADS_KV, LEN_Q, DIM);
    const std::vector<float> other = Numbers::some(BATCH * HEADS_KV * LEN_Q * DIM + 7);
    const auto new_v = fa::head_first<const float>(other.data() + 7, BATCH, HEADS_KV, LEN_Q, DIM);
    std::vector<unsigned char> blocks(BATCH * HEADS_KV * LEN_KV * 34, 0), by_hand = blocks;
    std::vector<std::uint16_t> halves(BATCH * HEADS_KV * LEN_KV * DIM, 0);
    const auto k = fa::head_first(reinterpret_cast<fa::q8_0 *>(blocks.data()), BATCH, HEADS_KV, LEN_KV, DIM);
    const auto v = fa::head_first(reinterpret_cast<fa::bfloat16 *>(halves.data()), BATCH, HEADS_KV, LEN_KV, DIM);
    fa::Attention a(n.tq(), k, v, n.to());
    char why[100] = "x";
    assert(a.append(k, v, new_k, new_v, why, sizeof why) == FA_OK && why[0] == '\0');

    // The last LEN_Q tokens of each head.
    auto part = fa::head_first(reinterpret_cast<fa::q8_0 *>(by_hand.data()), BATCH, HEADS_KV, LEN_KV, DIM);
    part.data = reinterpret_cast<fa::q8_0 *>(by_hand.data() + (LEN_KV - LEN_Q) * 34), part.tokens = LEN_Q;
    assert(fa::quantize(new_k, part) == FA_OK && by_hand == blocks);
    part.tokens++;
    assert(fa::quantize(new_k, part) == FA_ERR_SHAPE);
    fa::Workspace ws;
    assert(a.run(ws) == FA_OK && n.out[0] == n.out[0]);

    auto fewer = new_k;
    fewer.tokens--;
    assert(a.append(k, v, fewer, new_v, why, sizeof why) == FA_ERR_SHAPE && why[0] != '\0');
    a->q_pos = LEN_KV;
    assert(a.append(k, v, new_k, new_v) == FA_ERR_LENGTHS && by_hand == blocks);
}

// Two partitions, each of which sees itself, and the first token.
void partitions() {
    Numbers n;
    fa::Workspace ws;
    const std::int32_t starts[] = {0, 3}, tokens[] = {0, 3};
    fa::Partitions p(starts, 2, LEN_KV);
    p.boundary_tokens(tokens, 2);
    p->len_q = LEN_Q, p->kept_q = p->kept_kv = 1, p->max_edges = 1, p->causal = 0;
    fa_sparse_lists lists;
    assert(p.measure(lists) == FA_OK && lists.kept_start == nullptr && lists.num_starts == LEN_Q + 1);
    assert(lists.num_blocks == 3 + 2 + 2 && lists.num_columns == 1 && lists.room == 4 + 2 + 1 + 7);
    std::vector<std::int32_t> memory(static_cast<std::size_t>(lists.room), -1);
    char why[100];
    assert(p.lists(memory.data(), lists.room - 1, lists, why, sizeof why) == FA_ERR_SHAPE && why[0] != '\0');
    assert(p.lists(nullptr, lists.room, lists) == FA_ERR_NULL);
    assert(p.lists(memory.data(), lists.room, lists) == FA_OK && lists.columns[0] == 0 && lists.column_start[1] == 1);

    fa::Attention a(n.tq(), n.tk(), n.tv(), n.to());
    a.kept(lists, *p);
    assert(a.run(ws) == FA_OK);
    const std::vector<float> by_lists = n.out;
    bool mask[LEN_Q * LEN_KV];
    for (int64_t i = 0; i < LEN_Q; i++)
        for (int64_t j = 0; j < LEN_KV; j++)
            mask[i * LEN_KV + j] = (LEN_KV - LEN_Q + i < 3) == (j < 3) || j == 0;
    fa::Attention b(n.tq(), n.tk(), n.tv(), n.to());
    b.mask(fa::head_first<const bool>(mask, 1, 1, LEN_Q, LEN_KV));
    assert(b.run(ws) == FA_OK);
    for (std::size_t i = 0; i < n.out.size(); i += DIM)
        assert(close(&n.out[i], &by_lists[i]));
    p->window = -1;
    assert(p.measure(lists) == FA_ERR_WINDOW && lists.num_columns == 1);
}

void pools() {
    Numbers n;
    fa::Workspace ws;
    fa::Attention a(n.tq(), n.tk(), n.tv(), n.to());
    assert(a.run(ws) == FA_OK);
    const std::vector<float> want = n.out;

    fa::Pool pool;
    assert(pool.get() == nullptr && fa::width(pool.get()) == 1);
    assert(pool.create(1000) == FA_ERR_PART && pool.get() == nullptr);
    assert(pool.create(2) == FA_OK && fa::width(pool.get()) == 2);
    assert(pool.create(-1) == FA_ERR_PART && fa::width(pool.get()) == 2);
    fa::Pool other(std::move(pool));
    assert(other.create(3) == FA_OK && fa::width(other.get()) == 3);
    pool = std::move(other);
    n.out.assign(n.out.size(), -1.0f);
    assert(a.run(ws, pool) == FA_OK && n.out == want);
}

// Threads of a callable: all calls are made, and bits do not change.
void callables() {
    const std::vector<float> x = Numbers::some(2000 * DIM);
    std::vector<float> y(x.size()), want(x.size());
    const auto tx = fa::head_first(x.data(), 1, 1, 2000, DIM);
    fa::Workspace ws;
    assert(fa::Attention(tx, tx, tx, fa::head_first(want.data(), 1, 1, 2000, DIM)).run(ws) == FA_OK);
    std::size_t calls = 0;
    fa::CallablePool pool(3, [&calls](std::size_t n, fa::Task task) {
        std::vector<std::thread> threads;
        for (std::size_t i = 1; i < n; i++)
            threads.emplace_back(task, i);
        task(0);
        for (std::thread &thread : threads)
            thread.join();
        calls += n;
    });
    static_assert(!std::is_copy_constructible<decltype(pool)>::value, "the library has its address");
    assert(fa::width(pool.get()) == 3);
    fa::Attention a(tx, tx, tx, fa::head_first(y.data(), 1, 1, 2000, DIM));
    assert(a.run(ws, pool) == FA_OK && calls > 1 && y == want);
}

// Ragged rows and pages have the bits of sequences alone.
void ragged_and_paged() {
    constexpr int64_t PAGE = 4, PAGES = 6;
    const std::int32_t starts[] = {0, 1, LEN_Q + 1}, key_starts[] = {0, LEN_KV, LEN_KV + 7}, lens[] = {LEN_KV, 7};
    const std::int32_t table[] = {4, 1, -1, 0, 3, -1};
    const std::vector<float> q = Numbers::some((LEN_Q + 1) * HEADS_Q * DIM), k = Numbers::some(12 * HEADS_KV * DIM);
    std::vector<float> v = k, out(q.size()), want(q.size()), k_pages(PAGES * PAGE * HEADS_KV * DIM), v_pages = k_pages;
    for (float &x : v)
        x = 1 - x;
    auto tensor = [](auto *data, int64_t row, int64_t rows, int64_t heads) {
        return fa::token_first(data + row * heads * DIM, 1, rows, heads, DIM);
    };
    fa::Workspace ws;
    for (int64_t s = 0; s < 2; s++) {
        const int64_t first = starts[s], rows = starts[s + 1] - first, key = key_starts[s], keys = lens[s];
        fa::Attention alone(tensor(q.data(), first, rows, HEADS_Q), tensor(k.data(), key, keys, HEADS_KV),
                            tensor(v.data(), key, keys, HEADS_KV), tensor(want.data(), first, rows, HEADS_Q));
        alone.causal();
        assert(alone.run(ws) == FA_OK);
        const std::size_t row_bytes = HEADS_KV * DIM * sizeof(float);
        for (int64_t j = 0; j < keys; j++) {
            const int64_t to = (table[s * 3 + j / PAGE] * PAGE + j % PAGE) * HEADS_KV * DIM;
            std::memcpy(&k_pages[static_cast<std::size_t>(to)], &k[static_cast<std::size_t>((key + j) * HEADS_KV * DIM)], row_bytes);
            std::memcpy(&v_pages[static_cast<std::size_t>(to)], &v[static_cast<std::size_t>((key + j) * HEADS_KV * DIM)], row_bytes);
        }
    }
    const auto tq = tensor(q.data(), 0, LEN_Q + 1, HEADS_Q), tk = tensor(k.data(), 0, 12, HEADS_KV);
    const auto tv = fa::token_first<const float>(v.data(), 1, 12, HEADS_KV, DIM);
    const auto to = tensor(out.data(), 0, LEN_Q + 1, HEADS_Q);
    const auto pk = fa::paged(k_pages.data(), PAGES, PAGE, HEADS_KV, DIM).in_bytes(k_pages.size() * sizeof(float));
    const auto pv = fa::paged(v_pages.data(), PAGES, PAGE, HEADS_KV, DIM);
    const fa::Ragged rows{starts, 2, LEN_Q}, keys{key_starts, 2, 7};
    const fa::Paged pages{table, 3, 3 * PAGE, lens};

    fa::Attention ragged(tq, tk, tv, to, rows, keys);
    ragged.causal();
    assert(ragged.run(ws) == FA_OK && out == want);
    out.assign(out.size(), -1.0f);
    fa::Attention mixed(tq, pk, pv, to, rows, pages);
    mixed.causal();
    assert(mixed.run(ws) == FA_OK && out == want);
    // The second sequence alone, whose queries are not ragged.
    out.assign(out.size(), -1.0f);
    fa::Attention paged(tensor(q.data(), 1, LEN_Q, HEADS_Q), pk, pv, tensor(out.data(), 1, LEN_Q, HEADS_Q),
                        fa::Paged{table + 3, 3, 3 * PAGE, lens + 1});
    paged.causal();
    assert(paged.run(ws) == FA_OK);
    assert(std::memcmp(&out[HEADS_Q * DIM], &want[HEADS_Q * DIM], LEN_Q * HEADS_Q * DIM * sizeof(float)) == 0);

    // Rows or keys that are not there, and pages.
    const std::int32_t beyond[] = {0, 1, LEN_Q + 2}, keys_beyond[] = {0, LEN_KV, 13};
    assert(fa::Attention(tq, tk, tv, to, fa::Ragged{beyond, 2, LEN_Q + 1}, keys).run(ws) == FA_ERR_SHAPE);
    assert(fa::Attention(tq, tk, tv, to, rows, fa::Ragged{keys_beyond, 2, 8}).run(ws) == FA_ERR_SHAPE);
    assert(fa::Attention(tq, tk, tv, to, rows, fa::Ragged{key_starts, 1, 7}).run(ws) == FA_ERR_SHAPE);
    assert(fa::Attention(tq, pk, tv, to, rows, pages).run(ws) == FA_ERR_SHAPE);
    const std::int32_t no_page[] = {4, 6, 0, 0, 3, 0};
    assert(fa::Attention(tq, pk, pv, to, rows, fa::Paged{no_page, 3, 3 * PAGE, lens}).run(ws) == FA_ERR_PAGE);
}

// The memory that there is; why a call would be refused, and how it is computed.
void explained() {
    Numbers n;
    char why[200] = "";
    fa::Workspace ws;
    fa::Attention a(n.tq(), n.tk().in_bytes(n.k.size() * 4), n.tv(), n.to());
    assert(a.run(ws) == FA_OK);
    fa::Attention short_k(n.tq(), n.tk().in_bytes(n.k.size() * 4 - 1), n.tv(), n.to());
    assert(short_k.run(ws) == FA_ERR_SHAPE && short_k.check(why, sizeof why) == FA_ERR_SHAPE);
    assert(std::strstr(why, "k_bytes = ") != nullptr);
    fa::Attention short_out(n.tq(), n.tk(), n.tv(), n.to().in_bytes(4));
    assert(short_out.run(ws) == FA_ERR_SHAPE && n.tq().in_bytes(std::size_t(-1)).bytes == MOST);
    float scores[4];
    a.weights(fa::head_first(scores, BATCH, HEADS_Q, LEN_Q, LEN_KV).in_bytes(sizeof scores));
    assert(a.check(why, sizeof why) == FA_ERR_SHAPE && std::strstr(why, "weights_bytes = ") != nullptr);

    std::vector<float> x(1024 * 128, 1.0f), y(x.size());
    const auto tx = fa::head_first<const float>(x.data(), 1, 1, 1024, 128);
    fa::Attention more(tx, tx, tx, fa::head_first(y.data(), 1, 1, 1024, 128));
    fa_plan how;
    std::size_t bytes = 0;
    assert(more.plan(how) == FA_OK && more.workspace(bytes) == FA_OK && how.workspace_bytes == bytes);
    assert(how.path == FA_PATH_PREFILL && how.threads == 1 && std::strcmp(how.compute, "f32") == 0);
    assert(more.check_run(x.data(), bytes, nullptr, why, sizeof why) == FA_OK);
    assert(more.check_run(x.data(), bytes - 1, nullptr, why, sizeof why) == FA_ERR_WORKSPACE);
    assert(std::strstr(why, "ws_size") != nullptr);
    fa::Attention none(n.tq(), fa::head_first(n.k.data(), BATCH, HEADS_KV, LEN_KV, DIM / 2), n.tv(), n.to());
    assert(none.plan(how) == FA_ERR_SHAPE && none.check_run(nullptr, 0, nullptr) == FA_ERR_SHAPE);
}

// Fractions: as tensors of the general call, whose output has a scale, and in integers alone.
void fractions() {
    Numbers n;
    const auto of = [](const std::vector<float> &x) {
        std::vector<std::int16_t> stored;
        for (float e : x)
            stored.push_back(static_cast<std::int16_t>(e * 16384));
        return stored;
    };
    const auto q = of(n.q), k = of(n.k);
    for (std::size_t i = 0; i < q.size(); i++)
        n.q[i] = static_cast<float>(q[i]) / 32768;
    for (std::size_t i = 0; i < k.size(); i++)
        n.k[i] = n.v[i] = static_cast<float>(k[i]) / 32768;
    fa::Workspace ws;
    assert(fa::Attention(n.tq(), n.tk(), n.tv(), n.to()).run(ws) == FA_OK);

    const auto tq = fa::head_first(q.data(), BATCH, HEADS_Q, LEN_Q, DIM);
    const auto tk = fa::head_first(k.data(), BATCH, HEADS_KV, LEN_KV, DIM);
    std::vector<std::int16_t> out(q.size(), 7), alone(out);
    const float half = 0.5f;
    fa_quant scale{};
    scale.scale = &half;
    const auto to = fa::head_first(out.data(), BATCH, HEADS_Q, LEN_Q, DIM);
    assert(fa::Attention(tq, tk, tk, to.scales(scale)).run(ws) == FA_OK);
    const auto t_alone = fa::head_first(alone.data(), BATCH, HEADS_Q, LEN_Q, DIM);
    assert(fa::run_q15(tq, tk, tk, t_alone) == FA_OK);
    for (std::size_t i = 0; i < out.size(); i++) {
        assert(std::fabs(static_cast<float>(out[i]) / 65536 - n.out[i]) <= 1e-5f);
        assert(std::fabs(static_cast<float>(alone[i]) / 32768 - n.out[i]) <= 6e-4f);
    }
    // Several threads give the same bits; a causal call, whose rows see less, gives others.
    const auto before = alone;
    fa::Fixed how;
    how.threads = 3;
    assert(fa::run_q15(tq, tk, tk, t_alone, how) == FA_OK && alone == before);
    how.causal = true;
    assert(fa::run_q15(tq, tk, tk, t_alone, how) == FA_OK && alone != before);
    // What it cannot say.
    assert(fa::run_q15(tq, tk, tk, t_alone.scales(scale)) == FA_ERR_DTYPE);
    assert(fa::run_q15(tq, tk, tq, t_alone) == FA_ERR_SHAPE && fa::run_q15(tk, tk, tk, t_alone) == FA_ERR_SHAPE);
    assert(fa::run_q15(tq, tk, fa::token_first(k.data(), BATCH, LEN_KV, HEADS_KV, DIM), t_alone) == FA_ERR_STRIDE);
    auto negative = tq;
    negative.dim = -1;
    assert(fa::run_q15(negative, tk, tk, t_alone) == FA_ERR_SHAPE);
    how.scale_mantissa = std::numeric_limits<std::int32_t>::max();
    assert(fa::run_q15(tq, tk, tk, t_alone, how) == FA_ERR_SOFTMAX_SCALE);
}

// Enabled, or refused with words and without an effect; as the function of C says.
void matrix_unit() {
    char why[200] = "", of_c[200] = "", few[8] = "";
    const bool had_it = std::strcmp(fa_isa(), "amx") == 0;
    const fa_status status = fa::enable_amx(why, sizeof why);
    assert(status == FA_OK || status == FA_ERR_ISA);
    assert((std::strcmp(fa_isa(), "amx") == 0) == (had_it || status == FA_OK));
    assert(fa_enable_amx(of_c, sizeof of_c) == status && std::strcmp(why, of_c) == 0 && std::strlen(why) > 10);
    assert(fa::enable_amx(few, sizeof few) == status && std::strncmp(few, why, 7) == 0 && std::strlen(few) == 7);
    assert(fa::enable_amx() == status && noexcept(fa::enable_amx()));
    Numbers n;
    fa::Workspace ws;
    assert(fa::Attention(n.tq(), n.tk(), n.tv(), n.to()).run(ws) == FA_OK);
}

} // namespace

int main() {
    layouts();
    fractions();
    transposed();
    masks();
    sight();
    weights();
    scales();
    refusals();
    caches();
    partitions();
    pools();
    callables();
    ragged_and_paged();
    explained();
    matrix_unit();
    return 0;
}
