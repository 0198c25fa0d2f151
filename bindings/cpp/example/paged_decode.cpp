// A decode loop of one layer and sequence: grouped heads, and a cache of 8-bit integers in pages,
// in which each token of each head has a scale of its own.
//
// Exit code 1 if a result is not what the data were made for, 2 if a call was refused. Compiles
// with and without exceptions.

#include <flash_attention.hpp>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace {

namespace fa = flash_attention;

constexpr std::int64_t HEADS = 8, HEADS_KV = 2, DIM = 64, PAGE_SIZE = 4, PAGES = 16;

// What a layer of the model computes for a token: queries, keys and values, [head][dim].
struct Projected {
    std::array<float, HEADS * DIM> q{};
    std::array<float, HEADS_KV * DIM> k{}, v{};
};

// Keys or values in pages, [page][token][head][dim], and the scale of each row in the same order.
struct Cache {
    std::vector<std::int8_t> elements = std::vector<std::int8_t>(PAGES * PAGE_SIZE * HEADS_KV * DIM);
    std::vector<float> scales = std::vector<float>(PAGES * PAGE_SIZE * HEADS_KV);
    fa_quant quant{};

    Cache() {
        quant.scale = scales.data(), quant.group_tokens = 1;
        quant.stride[0] = PAGE_SIZE * HEADS_KV, quant.stride[1] = 1, quant.stride[2] = HEADS_KV;
    }
    Cache(const Cache &) = delete;
    Cache &operator=(const Cache &) = delete;

    auto tensor() { return fa::paged(elements.data(), PAGES, PAGE_SIZE, HEADS_KV, DIM).scales(quant); }
};

bool decode_paged(const std::vector<Projected> &tokens, std::vector<std::array<float, HEADS * DIM>> &outs) {
    fa::Pool threads;
    if (threads.create() != FA_OK) // one thread per core
        return false;
    fa::Workspace ws; // grows at the first token, then is kept
    Cache k, v;
    const std::int32_t table[] = {7, 2, 9, 4}; // the pages of this sequence
    std::int32_t length = 0;                   // keys in use
    char why[400] = "";
    for (std::size_t n = 0; n < tokens.size(); n++) {
        const Projected &token = tokens[n];
        length++; // counts the new token, for append and for run
        fa::Attention a(fa::token_first(token.q.data(), 1, 1, HEADS, DIM), k.tensor(), v.tensor(),
                        fa::token_first(outs[n].data(), 1, 1, HEADS, DIM),
                        fa::Paged{table, 4, 4 * PAGE_SIZE, &length});
        a.causal();
        const auto new_k = fa::token_first(token.k.data(), 1, 1, HEADS_KV, DIM);
        const auto new_v = fa::token_first(token.v.data(), 1, 1, HEADS_KV, DIM);
        if (a.append(k.tensor(), v.tensor(), new_k, new_v, why, sizeof why) != FA_OK
            || (a.run(ws, threads) != FA_OK && a.check(why, sizeof why) != FA_OK)) {
            std::fprintf(stderr, "%s\n", why);
            return false;
        }
    }
    return true;
}

} // namespace

// Each token attends to the one of half its position: a key in a direction of its own, and queries
// in that of another.
int main() {
    std::vector<Projected> tokens(13);
    std::vector<std::array<float, HEADS * DIM>> outs(tokens.size());
    for (std::size_t n = 0; n < tokens.size(); n++) {
        for (std::size_t h = 0; h < HEADS_KV; h++)
            tokens[n].k[h * DIM + n] = 30, tokens[n].v[h * DIM] = static_cast<float>(n);
        for (std::size_t h = 0; h < HEADS; h++)
            tokens[n].q[h * DIM + n / 2] = 30;
    }
    if (!decode_paged(tokens, outs))
        return 2;
    for (std::size_t n = 0; n < outs.size(); n++)
        for (std::size_t h = 0; h < HEADS; h++)
            if (!(std::fabs(outs[n][h * DIM] - static_cast<float>(n / 2)) <= 1e-3f)) {
                std::fprintf(stderr, "token %zu: %g instead of %zu\n", n, static_cast<double>(outs[n][h * DIM]), n / 2);
                return 1;
            }
    std::printf("%zu tokens: right\n", outs.size());
    return 0;
}
