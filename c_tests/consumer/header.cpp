// The header for C++ where it has been installed. A single key: its value is the output.

#include <flash_attention.hpp>

#include <cstdio>

int main() {
    const float q[4] = {1, 2, 3, 4}, k[4] = {0.5f, -0.5f, 0.25f, 1}, v[4] = {7, -8, 9, 0.125f};
    float out[4] = {};
    flash_attention::Workspace ws;
    flash_attention::Attention a(flash_attention::head_first(q, 1, 1, 1, 4), flash_attention::head_first(k, 1, 1, 1, 4),
                                 flash_attention::head_first(v, 1, 1, 1, 4),
                                 flash_attention::head_first(out, 1, 1, 1, 4));
    const fa_status status = a.run(ws);
    if (status != FA_OK) {
        std::fprintf(stderr, "%s\n", fa_status_string(status));
        return 1;
    }
    for (int i = 0; i < 4; i++)
        if (out[i] != v[i])
            return 1;
    return 0;
}
