/* The first example of flash_attention.h, which has its text: tests/header.rs. */
#include <stdio.h>
#include <flash_attention.h>

enum { TOKENS = 100, HEADS_Q = 8, HEADS_KV = 2, DIM = 64 };
static float q[TOKENS][HEADS_Q][DIM], out[TOKENS][HEADS_Q][DIM];
static float k[TOKENS][HEADS_KV][DIM], v[TOKENS][HEADS_KV][DIM];

int main(void)
{
    q[99][0][0] = k[7][0][0] = 8, v[7][0][0] = 1; // your data: here query 99 matches key 7
    fa_attention a;
    fa_attention_init(&a, sizeof a); // everything off
    a.batch = 1, a.heads_q = HEADS_Q, a.heads_kv = HEADS_KV, a.dim_qk = a.dim_v = DIM;
    a.len_q = a.len_kv = TOKENS;
    a.q = fa_token_first(q, FA_DTYPE_F32, TOKENS, HEADS_Q, DIM), a.q_bytes = sizeof q;
    a.k = fa_token_first(k, FA_DTYPE_F32, TOKENS, HEADS_KV, DIM), a.k_bytes = sizeof k;
    a.v = fa_token_first(v, FA_DTYPE_F32, TOKENS, HEADS_KV, DIM), a.v_bytes = sizeof v;
    a.o = fa_token_first(out, FA_DTYPE_F32, TOKENS, HEADS_Q, DIM), a.o_bytes = sizeof out;
    a.window_right = 0; // causal

    char why[400];
    fa_workspace ws = {NULL, 0};
    fa_status status = fa_attention_check(&a, why, sizeof why);
    puts(why); // what is wrong, or which kernel computes it, and warnings
    if (status == FA_OK) status = fa_run(&a, &ws, NULL); // NULL: on this thread alone
    fa_workspace_free(&ws);
    if (status == FA_OK) printf("out[99][0][0] = %.3f\n", (double)out[99][0][0]);
    else printf("refused: %s\n", fa_status_string(status));
    return status == FA_OK ? 0 : 1;
}
