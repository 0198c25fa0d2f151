"""PyTorch's function on arrays of numpy."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._attention import attention
from ._threads import Threads

FLOATS = frozenset(map(np.dtype, (np.float32, np.float16)))
# bfloat16 is that of ml_dtypes, or of this package.
NAMES = ("float32", "float16", "bfloat16")


def usable(a: Any, transposed: bool = False) -> Any:
    """The array itself if the library can use it where it is, else a contiguous copy in the machine's byte order.
    transposed: elements of a row may lie apart, as in k and v they may."""
    if a.flags.c_contiguous and a.dtype.isnative:
        return a
    last = a.strides[-1]
    apart = transposed and 0 < last < 2**31 and last % a.itemsize == 0
    fit = a.shape[-1] <= 1 or last == a.itemsize or apart
    strides = [s for s, n in zip(a.strides[:-1], a.shape[:-1], strict=True) if n > 1]
    if a.dtype.isnative and (a.size == 0 or (fit and all(s >= 0 and s % a.itemsize == 0 for s in strides))):
        return a
    return np.ascontiguousarray(a if a.dtype.isnative else a.astype(a.dtype.newbyteorder("=")))


def scaled_dot_product_attention(
    query: np.ndarray[Any, Any],
    key: np.ndarray[Any, Any],
    value: np.ndarray[Any, Any],
    attn_mask: np.ndarray[Any, Any] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    threads: Threads = None,
) -> np.ndarray[Any, Any]:
    """torch.nn.functional.scaled_dot_product_attention for numpy arrays.

    query [batch][heads][L][E], key [batch][heads][S][E], value [batch][heads][S][Ev]; leading axes may be missing.
    float32, float16 or bfloat16; the output has the type of query. enable_gqa: heads of query are a multiple of
    those of key and value. attn_mask: bool (True = attend) or a floating-point type (added), broadcast to
    [batch][heads][L][S].
    is_causal: query i sees keys 0 to i, also where L and S differ (attention() with causal=True puts the last query on
    the last key). A query that sees no key gives zeros.

    Arrays are used where they are; a view that attention() refuses is copied first. ValueError and TypeError as there;
    also for a mask with is_causal, and for dropout, which an inference library does not have."""
    if dropout_p != 0.0:
        raise ValueError("dropout_p must be 0")
    if is_causal and attn_mask is not None:
        raise ValueError("attn_mask and is_causal exclude each other")
    axes = query.ndim
    if not 2 <= axes <= 4 or key.ndim != axes or value.ndim != axes:
        raise ValueError(f"query, key and value have {axes}, {key.ndim} and {value.ndim} axes: not 2, 3 or 4 each")
    for name, a in ("query", query), ("key", key), ("value", value):
        if a.dtype not in FLOATS and (a.dtype.names or (a.dtype.name,))[0] not in NAMES:
            raise TypeError(f"{name} is {a.dtype}, not float32, float16 or bfloat16")
    q, k, v = (query, key, value) if axes == 4 else (a[(None,) * (4 - axes)] for a in (query, key, value))
    q, k, v = usable(q), usable(k, transposed=True), usable(v, transposed=True)
    if not enable_gqa and k.shape[1] != q.shape[1]:
        raise ValueError(f"{q.shape[1]} heads of query on {k.shape[1]} of key need enable_gqa")
    mask = None
    if attn_mask is not None:
        if attn_mask.ndim > axes:
            raise ValueError(f"attn_mask has {attn_mask.ndim} axes, query {axes}")
        # Keys get their own elements before the others are broadcast, as rows are to be contiguous.
        mask = usable(np.broadcast_to(attn_mask, (*attn_mask.shape[:-1], k.shape[2])))
    out = np.empty((*q.shape[:3], v.shape[3]), q.dtype)
    attention(q, k, v, scale=scale, mask=mask, q_pos=0, causal=is_causal, out=out, threads=threads)
    return out if axes == 4 else out.reshape(out.shape[4 - axes :])
