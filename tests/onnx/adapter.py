"""flash_attention on numpy arrays, through the C interface. Needs nothing but numpy and the shared library;
include/flash_attention.h says what the fields mean.

    lib = adapter.load("libflash_attention.so")
    out = adapter.attention(lib, q, k, v, window_right=0)     # causal, the last query on the last key
    out = adapter.attention(lib, q, k8, v8, k_scales=adapter.Scales(ks), v_scales=adapter.Scales(vs))
"""

import ctypes
from ctypes import POINTER, byref, c_char_p, c_float, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from typing import NamedTuple

import numpy as np

POS_END = -(2**63)
NO_LIMIT = -1
ABI_VERSION = 1
# FA_DTYPE_F32 and so on, by numpy's names: bfloat16 is that of ml_dtypes, which need not be there. (Q8_0 is left
# out: numpy has no type for its blocks.)
DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2, "int8": 3, "bool": 5}


class Quant(ctypes.Structure):
    """fa_quant"""

    _fields_ = [
        ("scale", c_void_p),
        ("zero", c_void_p),
        ("stride", c_int64 * 4),
        ("group_tokens", c_int32),
        ("group_dims", c_int32),
    ]


class Tensor(ctypes.Structure):
    """fa_tensor"""

    _fields_ = [
        ("data", c_void_p),
        ("stride", c_int64 * 3),
        ("dtype", c_int32),
        ("reserved", c_int32),
        ("quant", POINTER(Quant)),
    ]


class Attention(ctypes.Structure):
    """fa_attention"""

    _fields_ = [
        ("struct_size", c_size_t),
        ("flags", c_uint32),
        ("reserved0", c_uint32),
        ("batch", c_int64),
        ("heads_q", c_int64),
        ("heads_kv", c_int64),
        ("len_q", c_int64),
        ("len_kv", c_int64),
        ("dim_qk", c_int64),
        ("dim_v", c_int64),
        ("q", Tensor),
        ("k", Tensor),
        ("v", Tensor),
        ("o", Tensor),
        ("scale", c_float),
        ("softcap", c_float),
        ("q_pos", c_int64),
        ("window_left", c_int64),
        ("window_right", c_int64),
        ("mask", Tensor),
        ("alibi_slopes", c_void_p),
        ("alibi_batch_stride", c_int64),
        ("sinks", c_void_p),
        ("block_mask", c_void_p),
        ("block_mask_stride", c_int64 * 3),
        ("block_mask_q", c_int64),
        ("block_mask_kv", c_int64),
        ("cu_len_q", c_void_p),
        ("cu_len_kv", c_void_p),
        ("kv_lens", c_void_p),
        ("block_table", c_void_p),
        ("block_table_start", c_void_p),
        ("table_stride", c_int64),
        ("page_size", c_int64),
        ("num_pages", c_int64),
        ("lse", c_void_p),
        ("lse_stride", c_int64 * 3),
        ("block_q", c_int64),
        ("block_kv", c_int64),
    ]


class Error(Exception):
    """The library refused; `status` is a value of fa_status."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


def load(path):
    lib = ctypes.CDLL(path)
    problem = POINTER(Attention)
    lib.fa_abi_version.restype = c_uint32
    lib.fa_status_string.argtypes, lib.fa_status_string.restype = [c_int32], c_char_p
    lib.fa_attention_init.argtypes = [problem, c_size_t]
    lib.fa_attention_check.argtypes = [problem, c_char_p, c_size_t]
    lib.fa_attention_workspace.argtypes = [problem, c_int32, POINTER(c_size_t)]
    lib.fa_attention_run.argtypes = [problem, c_void_p, c_size_t, c_void_p]
    if lib.fa_abi_version() != ABI_VERSION:
        raise ImportError(f"{path} has interface {lib.fa_abi_version()}, this file is for {ABI_VERSION}")
    return lib


def usable(a):
    """The array itself if the library can read it where it is, else a copy."""
    contiguous = a.shape[-1] == 1 or a.strides[-1] == a.itemsize
    if contiguous and all(s >= 0 and s % a.itemsize == 0 for s in a.strides[:-1]):
        return a
    return np.ascontiguousarray(a)


class Scales(NamedTuple):
    """What int8 stands for: (stored - zero) * scale. Arrays of float32 [batch][heads][groups of tokens][groups of
    elements]; axes of length 1 are shared by all, None is 1 and 0."""

    scale: np.ndarray | None = None
    zero: np.ndarray | None = None
    group_tokens: int = 1
    group_dims: int = 1


def quant(scales, shape):
    """The structure for a tensor of this shape, and the arrays that must outlive it."""
    given = [x for x in (scales.scale, scales.zero) if x is not None]
    extent = np.broadcast_shapes((1, 1, 1, 1), *(x.shape for x in given))
    batch, heads, tokens, dim = shape
    groups = batch, heads, -(-tokens // scales.group_tokens), -(-dim // scales.group_dims)
    if any(n not in (1, most) for n, most in zip(extent, groups, strict=True)):
        raise ValueError(f"scales or zeros {extent} do not fit {groups} groups")
    # Both arrays have the same strides.
    scale, zero = (
        None if x is None else np.ascontiguousarray(np.broadcast_to(x, extent), np.float32)
        for x in (scales.scale, scales.zero)
    )
    q = Quant(group_tokens=scales.group_tokens, group_dims=scales.group_dims)
    q.scale, q.zero = (None if x is None else x.ctypes.data for x in (scale, zero))
    stride = np.cumprod((1, *extent[:0:-1]))[::-1]
    q.stride = tuple(0 if n == 1 else int(s) for n, s in zip(extent, stride, strict=True))
    return q, (scale, zero)


def tensor(a, scales=None):
    """The structure, and what must outlive it besides the array."""
    if a.dtype.name not in DTYPES:
        raise TypeError(f"{a.dtype} is none of {', '.join(DTYPES)}")
    t = Tensor(data=a.ctypes.data, stride=a.strides[:3], dtype=DTYPES[a.dtype.name])
    kept = None
    if scales is not None:
        kept = quant(scales, a.shape)
        t.quant = ctypes.pointer(kept[0])
    return t, kept


def attention(
    lib,
    q,
    k,
    v,
    *,
    scale=0.0,
    softcap=0.0,
    q_pos=POS_END,
    window_left=NO_LIMIT,
    window_right=NO_LIMIT,
    mask=None,
    kv_lens=None,
    q_scales=None,
    k_scales=None,
    v_scales=None,
    out=None,
    lse=None,
):
    """q [batch][heads_q][len_q][dim_qk], k and v [batch][heads_kv][len_kv][dim]: float32, float16, bfloat16 or int8
    each, with whatever strides; int8 stands for what its Scales say, or for itself.
    mask: a floating-point type (added) or bool (true = attend), anything that broadcasts to
    [batch][heads_q][len_q][len_kv].
    out (float32, float16 or bfloat16; float32 if it is not given) and lse [batch][heads_q][len_q] are written.
    Returns out.
    """
    (batch, heads_q, len_q, dim_qk), (heads_kv, len_kv), dim_v = q.shape, k.shape[1:3], v.shape[3]
    # What the library cannot find out from pointers.
    if k.shape != (batch, heads_kv, len_kv, dim_qk) or v.shape != (batch, heads_kv, len_kv, dim_v):
        raise ValueError(f"shapes do not fit: q {q.shape}, k {k.shape}, v {v.shape}")
    if out is None:
        out = np.empty((batch, heads_q, len_q, dim_v), np.float32)
    if out.shape != (batch, heads_q, len_q, dim_v) or usable(out) is not out:
        raise ValueError("out has the wrong shape or unusable strides")

    # These names keep what the descriptor points to alive until the call is over.
    q, k, v = usable(q), usable(k), usable(v)
    a = Attention()
    check(lib, lib.fa_attention_init(byref(a), ctypes.sizeof(a)))
    a.batch, a.heads_q, a.heads_kv = batch, heads_q, heads_kv
    a.len_q, a.len_kv, a.dim_qk, a.dim_v = len_q, len_kv, dim_qk, dim_v
    a.q, q_kept = tensor(q, q_scales)
    a.k, k_kept = tensor(k, k_scales)
    a.v, v_kept = tensor(v, v_scales)
    a.o, _ = tensor(out)
    a.scale, a.softcap = scale, softcap
    a.q_pos, a.window_left, a.window_right = q_pos, window_left, window_right
    if mask is not None:
        # Axes that are broadcast get a stride of 0; nothing is copied for them.
        mask = usable(np.broadcast_to(mask, (batch, heads_q, len_q, len_kv)))
        a.mask, _ = tensor(mask)
    if kv_lens is not None:
        kv_lens = np.ascontiguousarray(np.broadcast_to(kv_lens, batch), np.int32)
        a.kv_lens = kv_lens.ctypes.data
    if lse is not None:
        if lse.shape != (batch, heads_q, len_q) or lse.dtype != np.float32:
            raise ValueError("lse must be float32 [batch][heads_q][len_q]")
        a.lse, a.lse_stride = lse.ctypes.data, tuple(s // lse.itemsize for s in lse.strides)

    size = c_size_t()
    check(lib, lib.fa_attention_workspace(byref(a), 1, byref(size)), a)
    workspace = np.empty(size.value, np.uint8)
    # No pool: this thread does the work.
    check(lib, lib.fa_attention_run(byref(a), workspace.ctypes.data, size, None), a)
    return out


def check(lib, status, problem=None):
    if status == 0:
        return
    why = ctypes.create_string_buffer(256)
    if problem is not None:
        lib.fa_attention_check(byref(problem), why, len(why))
    raise Error(status, (why.value or lib.fa_status_string(status)).decode())
