"""Writing tensors and caches, and joining results."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np

from ._arrays import F32, Array, Blocks, Integers, Scales, as_numpy, put, view
from ._attention import SIZES_AT, Kept, number, pack_sizes, ragged, set_keys, set_lists
from ._library import Description, Tensor, library, new_description, refuse


def quantize(src: Array, out: Array | Blocks, scales: Scales | None = None, *, smooth: Array | None = None) -> Any:
    """Writes src [batch][heads][tokens][dim] (float32, float16 or bfloat16) to out, of the same shape: one of these
    types, Blocks, float8 or int16, or int8, uint8, float8 or int16 with Scales, whose arrays are found and written.

    smooth: float32 [heads][dim], subtracted first; int8 only, and keys only. Returns out."""
    kept = Kept()
    of_src, of_out = Tensor(), Tensor()
    shape = put(of_src, 0, "src", src, kept)
    if put(of_out, 0, "out", out, kept, scales, written=True) != shape:
        raise ValueError(f"out has not the shape {shape} of src")
    at_src, at_out = ctypes.addressof(of_src), ctypes.addressof(of_out)
    if smooth is None:
        status = library().fa_quantize(at_src, *shape, at_out)
    else:
        vector = np.ascontiguousarray(as_numpy(smooth), np.float32)
        if vector.shape != (shape[1], shape[3]):
            raise ValueError(f"smooth has shape {vector.shape}, not {(shape[1], shape[3])}")
        status = library().fa_quantize_i8(at_src, *shape, vector.ctypes.data, at_out)
    refuse(status)
    return out


def append(
    k: Array | Blocks,
    v: Array | Blocks,
    new_k: Array | None,
    new_v: Array | None,
    *,
    kv_lens: Integers | None = None,
    kv_starts: Integers | None = None,
    q_pos: int | None = None,
    q_positions: Integers | None = None,
    cu_len_q: Integers | None = None,
    cu_len_kv: Integers | None = None,
    len_kv: int | None = None,
    block_table: Any = None,
    block_table_start: Integers | None = None,
    k_scales: Scales | None = None,
    v_scales: Scales | None = None,
) -> None:
    """Writes new keys and values [batch][heads_kv][new][dim] (float32, float16 or bfloat16; None: none) into caches k
    and v [batch][heads_kv][len_kv][dim], or pages of block_table, of any type that attention() takes: where its
    queries, as many, would be. kv_lens counts the new ones; without q_pos and q_positions they are the last of these.
    Lists are those of attention(); with cu_len_q the new rows of all sequences are one behind another.

    Types of 8 bits, and int16: Scales that each token has of its own are found and written; those that tokens share are given. A
    page that is written must be in one list, once."""
    a, kept = new_description(), Kept()
    new = {"new_k": (new_k, Tensor()), "new_v": (new_v, Tensor())}
    shapes = {name: put(t, 0, name, x, kept) for name, (x, t) in new.items() if x is not None}
    if not shapes:
        raise ValueError("neither new_k nor new_v is given")
    k_shape = put(a, Description.k.offset, "k", k, kept, k_scales, written=new_k is not None)
    v_shape = put(a, Description.v.offset, "v", v, kept, v_scales, written=new_v is not None)
    entries, heads, rows, _ = shape = next(iter(shapes.values()))
    for name, cache in ("new_k", k_shape), ("new_v", v_shape):
        if name in shapes and shapes[name] != (entries, cache[1], rows, cache[3]):
            raise ValueError(f"shapes do not fit: k {k_shape}, v {v_shape}, {', '.join(map(str, shapes.values()))}")
    batch, len_q = entries, rows
    if cu_len_q is not None:
        cu, len_q = ragged("cu_len_q", cu_len_q, shape, kept)
        a.cu_len_q = cu.ctypes.data
        batch = len(cu) - 1
    _, len_kv = set_keys(a, k_shape, v_shape, batch, kept, cu_len_kv, block_table, block_table_start, len_kv)
    pack_sizes(a, SIZES_AT, batch, 0, heads, len_q, len_kv, k_shape[3], v_shape[3])
    if q_pos is not None:
        number(a, "q_pos", q_pos)
    set_lists(a, batch, kept, kv_lens=kv_lens, kv_starts=kv_starts, q_positions=q_positions)
    why = ctypes.create_string_buffer(512)
    tensors = (None if x is None else ctypes.addressof(t) for x, t in new.values())
    refuse(library().fa_cache_append(ctypes.addressof(a), *tensors, why, len(why)), why.value)


def merge(o: Array, lse: Array, o2: Array, lse2: Array) -> Any:
    """Joins results of the same queries over disjoint sets of keys: afterwards o and lse are those of all keys.
    float32, contiguous; o [..., dim_v], lse [...]. Returns o."""
    names = {"o": (o, True), "lse": (lse, True), "o2": (o2, False), "lse2": (lse2, False)}
    views = {name: view(name, x, written) for name, (x, written) in names.items()}
    if not views["o"][1]:
        raise ValueError("o has no axes")
    *rows, dim = views["o"][1]
    for name, (_, shape, strides, code, size, _) in views.items():
        wanted = (*rows, dim) if name.startswith("o") else tuple(rows)
        if code != F32 or shape != wanted:
            raise ValueError(f"{name} is not float32 {wanted}")
        for n, s in zip(reversed(shape), reversed(strides), strict=True):
            if n > 1 and s != size and 0 not in shape:
                raise ValueError(f"{name} is not contiguous: strides {strides}")
            size *= n
    refuse(library().fa_merge(*(x[0] for x in views.values()), math.prod(rows), dim))
    return o
