#!/usr/bin/env python3
"""A decode loop of one layer and sequence: grouped heads, and a cache of 8-bit integers in pages, in which each token
of each head has a scale of its own."""

import sys

import numpy as np

import cpu_attention as fa

heads, heads_kv, dim, page_size, pages = 8, 2, 64, 4, 16


def cache():
    """Pages [page][head][token][dim], and the scale of each row."""
    rows = np.zeros((pages, heads_kv, page_size, 1), np.float32)
    return np.zeros((pages, heads_kv, page_size, dim), np.int8), fa.Scales(rows)


def decode_paged(tokens):
    """Outputs [1][head][1][dim] of tokens, each of which has queries [1][head][1][dim], keys and values."""
    (k, k_scales), (v, v_scales) = cache(), cache()
    table = np.array([[7, 2, 9, 4]], np.int32)  # the pages of this sequence
    lens = np.zeros(1, np.int32)  # its keys in use
    paged = {"block_table": table, "kv_lens": lens, "k_scales": k_scales, "v_scales": v_scales}
    for q, new_k, new_v in tokens:
        lens += 1  # counts the new token, for append() and for attention()
        fa.append(k, v, new_k, new_v, **paged)
        yield fa.attention(q, k, v, causal=True, threads=0, **paged)


def projected(token):
    """A key in a direction of its own, and queries in that of the token of half its position."""
    q, k, v = (np.zeros((1, n, 1, dim), np.float32) for n in (heads, heads_kv, heads_kv))
    q[..., token // 2] = k[..., token] = 30
    v[..., 0] = token
    return q, k, v


def main():
    for token, out in enumerate(decode_paged(map(projected, range(13)))):
        if not np.abs(out[..., 0] - token // 2).max() <= 1e-3:
            sys.exit(f"token {token}: {out[0, :, 0, 0]} instead of {token // 2}")
    print("13 tokens: right")


if __name__ == "__main__":
    main()
