#!/usr/bin/env python3
"""PyTorch's attention on the library, and what it has no function for, checked against float64.

in_pytorch.py [LIBRARY.so]
"""

import sys

import torch

import cpu_attention as fa

fa.load(sys.argv[1] if len(sys.argv) == 2 else None)
import torch.nn.functional as F

import cpu_attention.torch as fa_torch

fa_torch.enable()  # F.scaled_dot_product_attention and compiled graphs, with gradients


def layer(q, k, v, sinks):
    """One of a model with sinks, a window of 128 and a softcap: [batch][head][token][dim]."""
    out, lse = fa_torch.attention(q, k, v, causal=True, window_left=127, softcap=30.0, sinks=sinks)
    return out


def exact(q, k, v, sinks):
    s = q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5
    s = 30 * torch.tanh(s / 30)
    row, key = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
    s = s.masked_fill((key > row) | (key < row - 127), -torch.inf)
    with_sink = torch.cat((s, sinks.double()[:, None, None].expand(*s.shape[:3], 1)), -1)
    return torch.softmax(with_sink, -1)[..., :-1] @ v.double()


def main():
    q, k, v = (torch.randn(2, 4, 300, 64) for _ in range(3))
    sinks = torch.randn(4)
    error = float((layer(q, k, v, sinks) - exact(q, k, v, sinks)).abs().max())
    plain = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    same = torch.equal(plain, fa_torch.attention(q, k, v, causal=True)[0])
    print(f"error {error:.1e}; PyTorch's function has the library's bits: {same}")
    sys.exit(not (error <= 1e-5 and same))


if __name__ == "__main__":
    main()
