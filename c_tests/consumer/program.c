// The README's program: run.sh compares what it prints.
// README begin
#include <stdio.h>
#include <flash_attention.h>

int main(void)
{
    enum { HEADS = 2, SEQ = 3, DIM = 4 };
    float q[HEADS * SEQ * DIM], k[HEADS * SEQ * DIM], v[HEADS * SEQ * DIM], out[HEADS * SEQ * DIM];
    for (int i = 0; i < HEADS * SEQ * DIM; i++) {
        q[i] = (float)(i % 5);
        k[i] = (float)(i % 3);
        v[i] = (float)i;
    }

    fa_config cfg;
    fa_config_auto(&cfg, DIM);   /* softmax_scale = 1/sqrt(DIM), all cores */
    cfg.causal = true;
    cfg.num_threads = 1;         /* only the calling thread */

    fa_status status = fa_mha(&cfg, q, k, v, HEADS, SEQ, SEQ, out);
    if (status != FA_OK) {
        fprintf(stderr, "%s\n", fa_status_string(status));
        return 1;
    }
    printf("%s: %g %g %g %g\n", fa_isa(), out[4], out[5], out[6], out[7]);
    return 0;
}
// README end
