/* With a single key every query gets that key's value, whatever the scores are. */

#include <flash_attention.h>

#include <stdio.h>
#include <string.h>

int main(void) {
    const float q[2][4] = {{1, 2, 3, 4}, {-1, 0, 1, 0}};
    const float k[4] = {0.5f, -0.5f, 0.25f, 1};
    const float v[4] = {7, -8, 9, 0.125f};
    float out[2][4];
    fa_config cfg;
    fa_status status = fa_config_auto(&cfg, 4);
    if (status == FA_OK)
        status = fa_mha(&cfg, q[0], k, v, 1, 2, 1, out[0]);
    if (status != FA_OK) {
        fprintf(stderr, "%s\n", fa_status_string(status));
        return 1;
    }
    if (memcmp(out[0], v, sizeof v) != 0 || memcmp(out[1], v, sizeof v) != 0) {
        fprintf(stderr, "the output is not the only value\n");
        return 1;
    }
    return 0;
}
