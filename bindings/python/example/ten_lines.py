#!/usr/bin/env python3
"""A prompt, and then tokens one by one on a cache, checked against float64."""

import sys

import numpy as np

import cpu_attention as fa

heads, heads_kv, room, dim = 32, 8, 1024, 128
k, v = np.zeros((2, 1, heads_kv, room, dim), np.float16)  # a cache [batch][head][token][dim]
lens = np.zeros(1, np.int32)


def step(q, new_k, new_v):
    """float32 [1][head][new tokens][dim] each, as the model computes them."""
    lens[0] += q.shape[2]
    fa.append(k, v, new_k, new_v, kv_lens=lens)
    return fa.attention(q, k, v, kv_lens=lens, causal=True, threads=0)


def exact(q, end):
    """In float64, what the rows of q see of the cache: up to key end - 1."""
    k64, v64 = (x[:, :, :end].astype(np.float64).repeat(heads // heads_kv, 1) for x in (k, v))
    s = q @ k64.swapaxes(-1, -2) / np.sqrt(dim)
    s = np.where(np.arange(end) <= np.arange(q.shape[2])[:, None] + end - q.shape[2], s, -np.inf)
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True) @ v64


def main():
    random = np.random.default_rng(0).standard_normal
    for new in 100, 1, 1:
        q, *kv = (random((1, n, new, dim), np.float32) for n in (heads, heads_kv, heads_kv))
        error = np.abs(step(q, *kv) - exact(q, lens[0])).max()
        print(f"{new} new, {lens[0]} in the cache: error {error:.1e} ({fa.isa()})")
        if not error <= 1e-5:
            sys.exit(1)


if __name__ == "__main__":
    main()
