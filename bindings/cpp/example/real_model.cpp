// Attention of a real model on real text, from C++17, against the exact outputs that come with the
// data.
//
//   real_model DIRECTORY
//
// Exit code 1 if an error is larger than it may be, 2 if something else went wrong. Compiles with
// and without exceptions.

#include <flash_attention.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

namespace {

struct Set {
    std::string name;
    std::int64_t heads, len_q, len_kv, dim;
    float scale;
    int causal_too;
    std::vector<float> q, k, v; // [token][head][dim]
};

// Largest error, as a share of the largest |v|.
constexpr double BOUND = 1e-5;

template <class T> bool load(const std::string &path, std::int64_t count, std::vector<T> &x) {
    x.resize(static_cast<std::size_t>(count));
    const auto bytes = static_cast<std::streamsize>(x.size() * sizeof(T));
    std::ifstream file(path, std::ios::binary);
    return file.read(reinterpret_cast<char *>(x.data()), bytes).good();
}

// README begin
fa_status model_attention(const Set &s, bool causal, float *out, flash_attention::Workspace &ws,
                          const flash_attention::Pool &threads) {
    using flash_attention::token_first; // [batch][token][head][dim], as the model computes them
    flash_attention::Attention a(token_first(s.q.data(), 1, s.len_q, s.heads, s.dim),
                                 token_first(s.k.data(), 1, s.len_kv, s.heads, s.dim),
                                 token_first(s.v.data(), 1, s.len_kv, s.heads, s.dim),
                                 token_first(out, 1, s.len_q, s.heads, s.dim));
    a->scale = s.scale;
    if (causal)
        a.causal();
    return a.run(ws, threads);
}
// README end

// Computes one set, checks and prints it.
bool right(const Set &s, bool causal, const std::vector<double> &exact) {
    flash_attention::Workspace ws;
    flash_attention::Pool one, three;
    std::vector<float> out(exact.size(), std::numeric_limits<float>::quiet_NaN()), again = out;
#if defined(__cpp_exceptions)
    flash_attention::check(three.create(3));
    flash_attention::check(model_attention(s, causal, out.data(), ws, one));
    flash_attention::check(model_attention(s, causal, again.data(), ws, three));
#else
    fa_status status = three.create(3);
    if (status == FA_OK)
        status = model_attention(s, causal, out.data(), ws, one);
    if (status == FA_OK)
        status = model_attention(s, causal, again.data(), ws, three);
    if (status != FA_OK) {
        std::fprintf(stderr, "%s: %s\n", s.name.c_str(), fa_status_string(status));
        return false;
    }
#endif
    double largest = 0, error = 0;
    for (float x : s.v)
        largest = std::max(largest, std::fabs(static_cast<double>(x)));
    for (std::size_t i = 0; i < out.size(); i++) {
        const double e = std::fabs(static_cast<double>(out[i]) - exact[i]) / largest;
        if (!(e <= error)) // also a NaN
            error = e;
    }
    std::printf("%s%s: error %.1e of the largest value\n", s.name.c_str(), causal ? " causal" : "", error);
    if (out != again)
        std::printf("%s: three threads give other bits than one\n", s.name.c_str());
    return error <= BOUND && out == again;
}

// 0, 1 or 2, as for the program.
int run(const std::string &directory) {
    std::ifstream index(directory + "/index.txt");
    int sets = 0, failures = 0;
    for (std::string line; std::getline(index, line);) {
        Set s;
        std::istringstream words(line);
        if (line[0] == '#')
            continue;
        words >> s.name >> s.heads >> s.len_q >> s.len_kv >> s.dim >> s.scale >> s.causal_too;
        const std::string path = directory + "/" + s.name;
        const std::int64_t token = s.heads * s.dim;
        if (!words || !load(path + "_q.f32", s.len_q * token, s.q) || !load(path + "_k.f32", s.len_kv * token, s.k) ||
            !load(path + "_v.f32", s.len_kv * token, s.v))
            return 2;
        for (int causal = 0; causal <= s.causal_too; causal++) {
            std::vector<double> exact;
            if (!load(path + (causal ? "_out_causal.f64" : "_out.f64"), s.len_q * token, exact))
                return 2;
            sets++;
            failures += !right(s, causal != 0, exact);
        }
    }
    return sets == 0 ? 2 : failures != 0;
}

} // namespace

int main(int argc, char **argv) {
    if (argc != 2) {
        std::fprintf(stderr, "usage: real_model DIRECTORY\n");
        return 2;
    }
#if defined(__cpp_exceptions)
    try {
        return run(argv[1]);
    } catch (const std::exception &e) {
        std::fprintf(stderr, "real_model: %s\n", e.what());
        return 2;
    }
#else
    return run(argv[1]);
#endif
}
