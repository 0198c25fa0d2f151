"""Attention of 16-bit fractions in integers alone."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from ._arrays import Q15, Array, as_numpy, view
from ._library import FixedConfig, library, refuse


def attention_q15(
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: tuple[int, int] | None = None,
    causal: bool = False,
    threads: int = 1,
    out: Array | None = None,
) -> Any:
    """softmax(scale * q k^T) v of int16 that stand for themselves divided by 32768, in integers alone: the same bits on
    every machine, with every instruction set and number of threads, and in every later version. attention() takes such
    arrays, too, is faster, and has everything else.

    q [batch][heads_q][len_q][dim], k and v [batch][heads_kv][len_kv][dim]: int16, contiguous; the first axis may be
    missing. scale: (m, s) is m / 2 ** s; None = 1/sqrt(dim). causal: the last query is on the last key. threads: 0 =
    one for each core.

    out: written; None: a new array of numpy. Returns out. ValueError (Error, where the library refuses) or TypeError:
    in words; then nothing was written."""
    if out is None:
        out = np.empty(as_numpy(q).shape, np.int16)
    views = {name: view(name, x, name == "out") for name, x in (("q", q), ("k", k), ("v", v), ("out", out))}
    shapes = {}
    for name, (_, shape, strides, code, size, _) in views.items():
        if code != Q15:
            raise TypeError(f"{name} is not int16")
        if len(shape) not in (3, 4):
            raise ValueError(f"{name} has {len(shape)} axes instead of 4 [batch][heads][tokens][dim], or 3")
        for n, s in zip(reversed(shape), reversed(strides), strict=True):
            if n > 1 and s != size and 0 not in shape:
                raise ValueError(f"{name} is not contiguous: strides {strides}")
            size *= n
        shapes[name] = shape if len(shape) == 4 else (1, *shape)
    batch, heads, len_q, dim = shapes["q"]
    heads_kv, len_kv = shapes["k"][1:3]
    if shapes["k"] != (batch, heads_kv, len_kv, dim) or shapes["v"] != shapes["k"] or shapes["out"] != shapes["q"]:
        raise ValueError(f"shapes do not fit: {', '.join(f'{name} {shape}' for name, shape in shapes.items())}")
    if batch == 0:
        return out
    if not 0 <= threads < 1 << 32:
        raise ValueError(f"threads is {threads}")
    mantissa, shift = (0, 0) if scale is None else scale
    if scale is not None and mantissa == 0:
        raise ValueError("a scale of 0 would stand for the usual one")
    limit = 1 << 31
    if not (-limit <= mantissa < limit and -limit <= shift < limit):
        raise ValueError(f"scale {scale} is not of two integers of 32 bits")
    config = FixedConfig(ctypes.sizeof(FixedConfig), dim, mantissa, shift, causal, threads)
    at = {name: x[0] for name, x in views.items()}
    # A batch is as many heads, of both kinds.
    sizes = batch * heads, batch * heads_kv, len_q, len_kv
    refuse(library().fa_mha_q15(ctypes.addressof(config), at["q"], at["k"], at["v"], *sizes, at["out"]))
    return out
