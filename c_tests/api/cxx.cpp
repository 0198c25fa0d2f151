// The header in C++, twice.

#include <flash_attention.h>
#include <flash_attention.h>

#include <cmath>
#include <cstdio>
#include <type_traits>
#include <vector>

static_assert(std::is_standard_layout<fa_config>::value && std::is_trivial<fa_config>::value,
              "fa_config is a C struct");
static_assert(sizeof(fa_status) == 4, "fa_status is an int");

int main() {
    const std::size_t heads = 2, len = 3, dim = 4, n = heads * len * dim;
    const std::vector<float> q(n, 0.5f), k(n, -1.0f), v(n, 0.25f);
    std::vector<float> out(n, -1.0f);

    fa_config cfg{};
    fa_status status = fa_mha(&cfg, q.data(), k.data(), v.data(), heads, len, len, out.data());
    if (status != FA_ERR_ZERO_EXTENT) {
        std::fprintf(stderr, "an empty configuration: %s\n", fa_status_string(status));
        return 1;
    }
    cfg.head_dim = dim;
    cfg.softmax_scale = 0.5f;
    status = fa_mha(&cfg, q.data(), k.data(), v.data(), heads, len, len, out.data());
    if (status != FA_OK) {
        std::fprintf(stderr, "fa_mha: %s\n", fa_status_string(status));
        return 1;
    }
    for (float x : out) {
        if (!(std::fabs(x - 0.25f) <= 1e-6f)) {
            std::fprintf(stderr, "the mean of equal values is %g\n", static_cast<double>(x));
            return 1;
        }
    }
    return 0;
}
