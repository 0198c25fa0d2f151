#!/usr/bin/env python3
"""Attention of a real model on real text, from numpy, against the exact outputs that come with the data.

    real_model.py DIRECTORY [LIBRARY.so]

Exit code 1 if an error is larger than it may be.
"""

import sys
from pathlib import Path

# README begin
import numpy as np

import cpu_attention as fa


def model_attention(q, k, v, scale, causal):
    """q, k, v: float32 [token][head][dim], as the model computes them; the result is [head][token][dim]."""
    # Views: nothing is copied, the library gets the strides.
    q, k, v = (x.transpose(1, 0, 2) for x in (q, k, v))
    return fa.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)


# README end


# Largest error, as a share of the largest |v|.
BOUND = 1e-5


def sets(directory):
    """name, scale, causal, q, k, v and the exact output of each set, all [token][head][dim]."""
    for line in (directory / "index.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        name, heads, len_q, len_kv, dim, scale, causal_too = line.split()
        tensors = [
            np.fromfile(directory / f"{name}_{x}.f32", np.float32).reshape(int(n), int(heads), int(dim))
            for x, n in (("q", len_q), ("k", len_kv), ("v", len_kv))
        ]
        for causal in (False, True)[: 1 + int(causal_too)]:
            exact = np.fromfile(directory / f"{name}_out{'_causal' * causal}.f64", np.float64)
            yield name, float(scale), causal, *tensors, exact.reshape(tensors[0].shape)


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    # None: the one in the package.
    fa.load(sys.argv[2] if len(sys.argv) == 3 else None)
    right = checked = 0
    for name, scale, causal, q, k, v, exact in sets(Path(sys.argv[1])):
        out = model_attention(q, k, v, scale, causal)
        error = np.abs(out - exact.transpose(1, 0, 2)).max() / np.abs(v).max()
        print(f"{name}{' causal' * causal}: error {error:.1e} of the largest value")
        # So a NaN is wrong, too.
        right += bool(error <= BOUND)
        checked += 1
    sys.exit(not (right == checked > 0))


if __name__ == "__main__":
    main()
