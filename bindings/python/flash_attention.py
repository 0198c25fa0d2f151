"""flash_attention on numpy arrays, through the C interface. Needs nothing but numpy and the shared library;
include/flash_attention.h says what the fields mean.

    fa.load("build/cargo/release/libflash_attention.so")
    out = fa.scaled_dot_product_attention(query, key, value, is_causal=True)         # the arguments of PyTorch
    out = fa.attention(q, k, v, window_right=0)                  # causal, the last query on the last key
    out = fa.attention(q, k8, v8, k_scales=fa.Scales(ks), v_scales=fa.Scales(vs))
    k = fa.blocks("q8_0", (pages, heads_kv, page_size, 128))             # a cache in pages, as ggml stores it
    fa.cache_append(k, v, new_k, new_v, block_table=table, kv_lens=lens)
    out = fa.attention(q, k, v, block_table=table, kv_lens=lens, window_right=0)

Arrays are read and written where they are, with the strides that they have. Calls may be made from any number of
threads at once: the interpreter's lock is not held meanwhile.
"""

import ctypes
from ctypes import CFUNCTYPE, POINTER, byref, c_char_p, c_float, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from itertools import chain
from operator import index
from typing import NamedTuple

import numpy as np

POS_END = -(2**63)
NO_LIMIT = -1
PRECISE, FAST = 2, 4
SCALE_ZERO = 2.0**-100
ABI_VERSION = 2
# FA_DTYPE_F32 and so on, by numpy's names: bfloat16 and those of 8 bits are those of ml_dtypes, which need not be
# there.
DTYPES = {
    "float32": 0,
    "float16": 1,
    "bfloat16": 2,
    "int8": 3,
    "bool": 5,
    "float8_e4m3fn": 11,
    "float8_e5m2": 12,
    "uint8": 13,
}
# Types of 8 bits without ml_dtypes: bytes.view(float8_e4m3fn), where bytes is an array of uint8.
float8_e4m3fn = np.dtype([("float8_e4m3fn", np.uint8)])
float8_e5m2 = np.dtype([("float8_e5m2", np.uint8)])
# Types in blocks of 32 elements, as ggml stores them, for which numpy has none: FA_DTYPE_Q8_0 and so on, and the bytes
# of a block.
BLOCK_TYPES = {"q8_0": (4, 34), "q4_0": (6, 18), "q4_1": (7, 20), "q5_0": (8, 22), "q5_1": (9, 24), "iq4_nl": (10, 18)}
BLOCK = 32


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
        ("stride_dim", c_int32),
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
        ("q_positions", c_void_p),
        ("kv_starts", c_void_p),
        ("prefix_keys", c_int64),
        ("spans", c_void_p),
        ("span_starts", c_void_p),
        ("weights", Tensor),
        ("weight_heads", c_void_p),
        ("num_weight_heads", c_int64),
        ("weight_rows", c_void_p),
        ("num_weight_rows", c_int64),
    ]


class Error(Exception):
    """The library refused; `status` is a value of fa_status."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


class PoolHead(ctypes.Structure):
    """The fields of fa_pool that are used here."""

    _fields_ = [("struct_size", c_size_t), ("ctx", c_void_p), ("width", CFUNCTYPE(c_int32, c_void_p))]


_lib = None


def load(path="libflash_attention.so"):
    """Loads the shared library; without a call, the first one that needs it looks where the system does."""
    global _lib
    lib = ctypes.CDLL(path)
    problem, pool = POINTER(Attention), POINTER(PoolHead)
    lib.fa_abi_version.restype = c_uint32
    lib.fa_status_string.argtypes, lib.fa_status_string.restype = [c_int32], c_char_p
    lib.fa_attention_init.argtypes = [problem, c_size_t]
    lib.fa_attention_check.argtypes = [problem, c_char_p, c_size_t]
    lib.fa_attention_workspace.argtypes = [problem, c_int32, POINTER(c_size_t)]
    lib.fa_attention_run.argtypes = [problem, c_void_p, c_size_t, pool]
    tensors = [POINTER(Tensor)] * 2
    lib.fa_cache_append.argtypes = [problem, *tensors, c_char_p, c_size_t]
    lib.fa_quantize.argtypes = [tensors[0], *[c_int64] * 4, tensors[1]]
    lib.fa_pool_create.argtypes = [c_int32, POINTER(pool)]
    lib.fa_pool_destroy.argtypes, lib.fa_pool_destroy.restype = [pool], None
    if lib.fa_abi_version() != ABI_VERSION:
        raise ImportError(f"{path} has interface {lib.fa_abi_version()}, this file is for {ABI_VERSION}")
    _lib = lib


def library():
    if _lib is None:
        load()
    return _lib


class Pool:
    """Threads of the library's, 0 = one per core: `with Pool(4) as pool: attention(..., pool=pool)`."""

    def __init__(self, threads=0):
        self.handle = POINTER(PoolHead)()
        check(library().fa_pool_create(threads, byref(self.handle)))

    def width(self):
        if not self.handle:
            raise ValueError("the pool is closed")
        return self.handle.contents.width(self.handle.contents.ctx)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Ends the threads; no call may be using them."""
        handle, self.handle = self.handle, POINTER(PoolHead)()
        library().fa_pool_destroy(handle)


class Blocks(NamedTuple):
    """Numbers in blocks: uint8 [batch or page][heads][tokens][bytes of a row], and a name of BLOCK_TYPES. blocks() makes
    them of zeros; quantize() and cache_append() write them."""

    bytes: np.ndarray
    type: str

    @property
    def ndim(self):
        return self.bytes.ndim

    @property
    def shape(self):
        """In elements."""
        *rows, n = self.bytes.shape
        return (*rows, n // block_type(self.type)[1] * BLOCK)

    @property
    def flags(self):
        return self.bytes.flags


def block_type(name):
    """Number of a type of BLOCK_TYPES, and the bytes of a block."""
    if name not in BLOCK_TYPES:
        raise TypeError(f"{name!r} is none of {', '.join(BLOCK_TYPES)}")
    return BLOCK_TYPES[name]


def blocks(type, shape):
    """Zeros in blocks; the last axis of shape, in elements, is a multiple of BLOCK."""
    *rows, dim = shape
    if dim % BLOCK:
        raise ValueError(f"rows of {dim} elements are no whole blocks of {BLOCK}")
    return Blocks(np.zeros((*rows, dim // BLOCK * block_type(type)[1]), np.uint8), type)


def readable(a, transposed=False):
    """Whether the library can use the array where it is; transposed: also if elements of a row lie apart, as in k and
    v they may."""
    last = a.strides[-1]
    apart = transposed and 0 < last < 2**31 and last % a.itemsize == 0
    fit = a.shape[-1] <= 1 or last == a.itemsize or apart
    strides = [s for s, n in zip(a.strides[:-1], a.shape[:-1], strict=True) if n > 1]
    fits = a.size == 0 or (fit and all(s >= 0 and s % a.itemsize == 0 for s in strides))
    return a.dtype.isnative and fits


def strides(a):
    """Those of an array of rows, in bytes. numpy may give axes of length 1, and arrays without elements, any."""
    if a.size == 0:
        return [0] * a.ndim
    return [s if n > 1 else 0 for s, n in zip(a.strides, a.shape, strict=True)]


class Scales(NamedTuple):
    """What int8 and uint8 stand for: (stored - zero) * scale; types of float8 have no zero. Arrays of float32 [batch][heads][groups of tokens][groups of
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


def type_name(dtype):
    """The name of a type in DTYPES."""
    return dtype.names[0] if dtype in (float8_e4m3fn, float8_e5m2) else dtype.name


def tensor(name, a, scales=None):
    """The structure, and what must outlive it besides the array."""
    if isinstance(a, Blocks):
        return tensor_of_blocks(name, a, scales), None
    if type_name(a.dtype) not in DTYPES:
        raise TypeError(f"{name} is {a.dtype}, none of {', '.join(DTYPES)}")
    if not readable(a, transposed=name in ("k", "v")):
        raise ValueError(
            f"{name} cannot be used where it is: elements of the last axis must be neighbours (but those of k and v), in "
            "the byte order of the machine, other strides not negative; they are "
            f"{a.strides}. numpy.ascontiguousarray makes a copy."
        )
    *stride, stride_dim = strides(a)
    t = Tensor(data=a.ctypes.data, stride=tuple(stride), stride_dim=stride_dim, dtype=DTYPES[type_name(a.dtype)])
    kept = None
    if scales is not None:
        kept = quant(scales, a.shape)
        t.quant = ctypes.pointer(kept[0])
    return t, kept


def tensor_of_blocks(name, a, scales):
    """The same of rows in blocks, which have no scales but their own."""
    dtype, size = block_type(a.type)
    if a.bytes.dtype != np.uint8 or scales is not None:
        raise TypeError(f"{name} is in blocks: of uint8, without Scales")
    if a.bytes.shape[-1] % size or not readable(a.bytes):
        raise ValueError(f"rows of {name} are no whole blocks of {size} bytes, or lie apart: {a.bytes.strides}")
    *stride, _ = strides(a.bytes)
    return Tensor(data=a.bytes.ctypes.data, stride=tuple(stride), dtype=dtype)


def keys(k, v, block_table, sequences):
    """Heads, keys of a sequence and elements of a row of v; the page table as the library reads it."""
    (entries, heads, tokens), dim_v = k.shape[:3], v.shape[3]
    if v.shape != (entries, heads, tokens, dim_v):
        raise ValueError(f"shapes do not fit: k {k.shape}, v {v.shape}")
    if block_table is None:
        if entries != sequences:
            raise ValueError(f"k and v are of {entries} sequences instead of {sequences}")
        return heads, tokens, dim_v, None
    table = np.asarray(block_table)
    if table.ndim != 2 or table.shape[0] != sequences:
        raise ValueError(f"block_table has shape {table.shape}, not one row for each of {sequences} sequences")
    return heads, table.shape[1] * tokens, dim_v, integers("block_table", table, sequences)


def set_pages(a, table, k):
    """The fields of a cache in pages; the table must outlive the structure."""
    if table is not None:
        a.block_table = table.ctypes.data
        a.table_stride, (a.num_pages, _, a.page_size) = table.shape[1], k.shape[:3]


def attention(
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
    kv_starts=None,
    q_positions=None,
    prefix_keys=0,
    spans=None,
    block_table=None,
    q_scales=None,
    k_scales=None,
    v_scales=None,
    fast=False,
    precise=False,
    out=None,
    lse=None,
    weights=None,
    weight_heads=None,
    weight_rows=None,
    pool=None,
):
    """Attention in general; scale 0 is 1/sqrt(dim_qk), SCALE_ZERO weighs all keys that a row sees alike.

    q [batch][heads_q][len_q][dim_qk], k and v [batch][heads_kv][len_kv][dim]: float32, float16, bfloat16, int8
    or Blocks each; int8 stands for what its Scales say, or for itself. Any view will do whose last axis is contiguous and whose
    strides are not negative: [batch][token][head][dim] is x.transpose(0, 2, 1, 3). Nothing is copied. The last axis of
    k and v may have any positive stride: a cache [batch][head][dim][token] is x.transpose(0, 1, 3, 2).
    mask: a floating-point type (added) or bool (true = attend), rows of len_kv elements, the other axes anything that
    broadcasts to [batch][heads_q][len_q].
    kv_lens, kv_starts, q_positions: for each sequence (one number stands for all) its number of keys in use, the first
    key that is seen, and the position of query 0, in place of q_pos.
    prefix_keys: so many first keys are seen beside window_left. spans: for each sequence a list of (begin, end) of keys
    that see each other both ways, ascending and disjoint.
    block_table: k and v are pages [page][heads_kv][tokens of a page][dim]; integers [batch][pages], whose row says which
    of them have the keys of a sequence, in their order. Of pages without keys in use anything may stand there.
    fast, precise: FA_FAST (int8 may have probabilities of 8 bits) and FA_PRECISE (bfloat16 is multiplied as float32).
    out (float32, float16 or bfloat16; float32 if it is not given) and lse (float32 [batch][heads_q][len_q]) are
    written. weights: float32 [batch][heads_q][len_q][len_kv], where to put the probabilities; of some heads and rows
    only with weight_heads and weight_rows: ascending, rows that are negative count from the end. pool: threads; without one, the calling thread does the work.

    Returns out. ValueError or TypeError: an array that does not fit; Error: what the library refuses.
    """
    given = {"q": (q, 4), "k": (k, 4), "v": (v, 4), "out": (out, 4), "lse": (lse, 3), "weights": (weights, 4)}
    for name, (a, axes) in given.items():
        if a is not None and a.ndim != axes:
            raise ValueError(f"{name} has {a.ndim} axes instead of {axes}")
    batch, heads_q, len_q, dim_qk = q.shape
    # What the library cannot find out from pointers.
    heads_kv, len_kv, dim_v, table = keys(k, v, block_table, batch)
    if k.shape[3] != dim_qk:
        raise ValueError(f"shapes do not fit: q {q.shape}, k {k.shape}")
    if out is None:
        out = np.empty((batch, heads_q, len_q, dim_v), np.float32)
    if out.shape != (batch, heads_q, len_q, dim_v) or not out.flags.writeable:
        raise ValueError(f"out cannot be written or is not {(batch, heads_q, len_q, dim_v)}")

    lib = library()
    a = Attention()
    check(lib.fa_attention_init(byref(a), ctypes.sizeof(a)))
    a.batch, a.heads_q, a.heads_kv = batch, heads_q, heads_kv
    a.len_q, a.len_kv, a.dim_qk, a.dim_v = len_q, len_kv, dim_qk, dim_v
    # The second names keep what the description points to alive until the call is over.
    a.q, q_kept = tensor("q", q, q_scales)
    a.k, k_kept = tensor("k", k, k_scales)
    a.v, v_kept = tensor("v", v, v_scales)
    a.o, _ = tensor("out", out)
    set_pages(a, table, k)
    a.scale, a.softcap = scale, softcap
    a.flags = (FAST if fast else 0) | (PRECISE if precise else 0)
    a.q_pos, a.window_left, a.window_right = q_pos, window_left, window_right
    a.prefix_keys = prefix_keys
    if mask is not None:
        # Axes that are broadcast get a stride of 0; nothing is copied for them.
        mask = np.broadcast_to(mask, (batch, heads_q, len_q, len_kv))
        a.mask, _ = tensor("mask", mask)
    lists = {"kv_lens": kv_lens, "kv_starts": kv_starts, "q_positions": q_positions}
    if spans is not None:
        if len(spans) != batch:
            raise ValueError(f"spans are of {len(spans)} sequences instead of {batch}")
        lists["span_starts"] = np.cumsum([0, *map(len, spans)])
        # The last one is nobody's: there must be a list.
        lists["spans"] = [index(x) for begin, end in [*chain(*spans), (0, 0)] for x in (begin, end)]
    wanted = {"weight_heads": weight_heads, "weight_rows": weight_rows}
    lists |= {name: np.atleast_1d(x) for name, x in wanted.items() if x is not None}
    # The name keeps them alive until the call is over.
    lists = {name: integers(name, x, batch) for name, x in lists.items() if x is not None}
    for name, x in lists.items():
        setattr(a, name, x.ctypes.data)
    if weights is not None:
        count = {name: len(lists[name]) if name in lists else n for name, n in zip(wanted, (heads_q, len_q), strict=True)}
        a.num_weight_heads, a.num_weight_rows = count.values()
        if weights.shape != (batch, *count.values(), len_kv) or not weights.flags.writeable:
            raise ValueError(f"weights cannot be written or are not {(batch, *count.values(), len_kv)}")
        a.weights, _ = tensor("weights", weights)
    if lse is not None:
        if lse.shape != (batch, heads_q, len_q) or lse.dtype != np.float32 or not lse.flags.writeable:
            raise ValueError("lse must be float32 [batch][heads_q][len_q], to be written")
        if any(s % lse.itemsize for s in strides(lse)):
            raise ValueError(f"strides of lse are {lse.strides}, no multiples of its elements")
        a.lse, a.lse_stride = lse.ctypes.data, tuple(s // lse.itemsize for s in strides(lse))

    size = c_size_t()
    check(lib.fa_attention_workspace(byref(a), pool.width() if pool else 1, byref(size)), a)
    workspace = np.empty(size.value, np.uint8)
    check(lib.fa_attention_run(byref(a), workspace.ctypes.data, size, pool.handle if pool else None), a)
    return out


def written(name, a, scales):
    """The structure of an output, and what must outlive it: scales are written where they are."""
    if not a.flags.writeable:
        raise ValueError(f"{name} cannot be written")
    t, kept = tensor(name, a, scales)
    used = () if kept is None else zip((scales.scale, scales.zero), kept[1], strict=True)
    if any(x is not None and (x.ctypes.data != y.ctypes.data or not x.flags.writeable) for x, y in used):
        raise ValueError(f"scales and zeros of {name} must be contiguous float32 of the same shape, to be written")
    return t, kept


def quantize(src, out, scales=None):
    """Writes src (float32, float16 or bfloat16) to out: one of these types, Blocks, float8, or int8, uint8 or float8 with
    Scales, whose arrays are found and written, too. Both [batch][heads][tokens][dim]. Returns out."""
    if src.ndim != 4 or src.shape != out.shape:
        raise ValueError(f"shapes do not fit: src {src.shape}, out {out.shape}")
    (of_src, _), (of_out, kept) = tensor("src", src), written("out", out, scales)
    check(library().fa_quantize(byref(of_src), *src.shape, byref(of_out)))
    del kept
    return out


def cache_append(
    k,
    v,
    new_k,
    new_v,
    *,
    kv_lens=None,
    kv_starts=None,
    q_pos=POS_END,
    q_positions=None,
    block_table=None,
    k_scales=None,
    v_scales=None,
):
    """Writes new keys and values (float32, float16 or bfloat16, [batch][heads_kv][new][dim]) into caches k and v
    [batch][heads_kv][len_kv][dim], or pages of block_table, of any type that attention() takes: where its queries, as
    many, would be. kv_lens counts the new ones; without q_pos and q_positions they are the last of these. Types of 8
    bits: Scales that each token has of its own are found and written; those that tokens share are given. A page that is
    written must be in one row of the table, once."""
    given = {"k": k, "v": v, "new_k": new_k, "new_v": new_v}
    for name, x in given.items():
        if x.ndim != 4:
            raise ValueError(f"{name} has {x.ndim} axes instead of 4")
    (batch, heads, new, dim_qk), dim_v = new_k.shape, new_v.shape[-1]
    heads_kv, len_kv, dim, table = keys(k, v, block_table, batch)
    if new_v.shape != (batch, heads, new, dim_v) or (heads_kv, k.shape[3], dim) != (heads, dim_qk, dim_v):
        raise ValueError(f"shapes do not fit: k {k.shape}, v {v.shape}, new_k {new_k.shape}, new_v {new_v.shape}")
    lib = library()
    a = Attention()
    check(lib.fa_attention_init(byref(a), ctypes.sizeof(a)))
    a.batch, a.heads_kv, a.len_q, a.len_kv, a.dim_qk, a.dim_v = batch, heads, new, len_kv, dim_qk, dim_v
    # The second names keep what the description points to alive until the call is over.
    (a.k, k_kept), (a.v, v_kept) = written("k", k, k_scales), written("v", v, v_scales)
    (of_k, _), (of_v, _) = tensor("new_k", new_k), tensor("new_v", new_v)
    set_pages(a, table, k)
    a.q_pos = q_pos
    lists = {"kv_lens": kv_lens, "kv_starts": kv_starts, "q_positions": q_positions}
    lists = {name: integers(name, x, batch) for name, x in lists.items() if x is not None}
    for name, x in lists.items():
        setattr(a, name, x.ctypes.data)
    why = ctypes.create_string_buffer(256)
    status = lib.fa_cache_append(byref(a), byref(of_k), byref(of_v), why, len(why))
    if status != 0:
        raise Error(status, (why.value or lib.fa_status_string(status)).decode())


def integers(name, x, batch):
    """The numbers of a list as the library reads them: of each sequence, if it is one of those."""
    x = np.asarray(x)
    if x.size > 0 and not np.issubdtype(x.dtype, np.integer):
        raise TypeError(f"{name} is {x.dtype}, no integers")
    alone = "span" in name or "weight" in name or "table" in name
    kept = np.ascontiguousarray(x if alone else np.broadcast_to(x, batch), np.int32)
    if (kept != x).any():
        raise ValueError(f"{name} has numbers that are no 32-bit integers")
    return kept


def scaled_dot_product_attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    """torch.nn.functional.scaled_dot_product_attention for numpy arrays.

    query [batch][heads][L][E], key [batch][heads][S][E], value [batch][heads][S][Ev]; leading axes may be missing.
    float32, float16 or bfloat16; the output has the type of query. enable_gqa: heads of query are a multiple of
    those of key and value. attn_mask: bool (true = attend) or a floating-point type (added), broadcast to
    [batch][heads][L][S].
    is_causal: query i sees keys 0 to i, also where L and S differ (attention() with window_right=0 puts the last
    query on the last key). A query that sees no key gives zeros.

    Arrays are used where they are; a view that attention() refuses is copied first. ValueError, TypeError and Error
    as there; also for a mask with is_causal, and for dropout, which an inference library does not have.
    """
    if dropout_p != 0.0:
        raise ValueError("dropout_p must be 0")
    if is_causal and attn_mask is not None:
        raise ValueError("attn_mask and is_causal exclude each other")
    axes = query.ndim
    if not 2 <= axes <= 4 or key.ndim != axes or value.ndim != axes:
        raise ValueError(f"query, key and value have {axes}, {key.ndim} and {value.ndim} axes: not 2, 3 or 4 each")
    for name, a in ("query", query), ("key", key), ("value", value):
        if a.dtype.name not in ("float32", "float16", "bfloat16"):
            raise TypeError(f"{name} is {a.dtype}, not float32, float16 or bfloat16")
    lead = (None,) * (4 - axes)
    q, k, v = usable(query[lead]), *(usable(a[lead], transposed=True) for a in (key, value))
    if not enable_gqa and k.shape[1] != q.shape[1]:
        raise ValueError(f"{q.shape[1]} heads of query on {k.shape[1]} of key need enable_gqa")
    mask = None
    if attn_mask is not None:
        if attn_mask.ndim > axes:
            raise ValueError(f"attn_mask has {attn_mask.ndim} axes, query {axes}")
        # Keys get their own elements before the others are broadcast, as rows are to be contiguous.
        mask = usable(np.broadcast_to(attn_mask, (*attn_mask.shape[:-1], k.shape[2])))
    if scale is not None and scale == 0:
        # 0 stands for the usual scale in attention().
        scale = SCALE_ZERO
    out = np.empty((*q.shape[:3], v.shape[3]), q.dtype)
    attention(
        q,
        k,
        v,
        scale=0.0 if scale is None else scale,
        mask=mask,
        q_pos=0,
        window_right=0 if is_causal else NO_LIMIT,
        out=out,
    )
    return out.reshape(out.shape[4 - axes :])


def usable(a, transposed=False):
    """The array itself if the library can use it where it is, else a copy; see readable."""
    if readable(a, transposed):
        return a
    return np.ascontiguousarray(a if a.dtype.isnative else a.astype(a.dtype.newbyteorder("=")))


def check(status, problem=None):
    if status == 0:
        return
    why = ctypes.create_string_buffer(256)
    if problem is not None:
        _lib.fa_attention_check(byref(problem), why, len(why))
    raise Error(status, (why.value or _lib.fa_status_string(status)).decode())
