"""This library, by its C interface."""

import ctypes
import os
import sys

import ml_dtypes
import numpy as np
from stored import i8, q4, q8_0
from worker import Unsupported

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "bindings", "python"))
import flash_attention as fa

# Types in blocks: their number in the header, and what makes them.
BLOCKS = {"q8_0": (4, q8_0), "q4_0": (6, lambda x: q4(x, False)), "q4_1": (7, lambda x: q4(x, True))}
DTYPES = {"f32": np.float32, "bf16": ml_dtypes.bfloat16, "f16": np.float16}


class Peer:
    def __init__(self, variant, threads):
        fa.load(os.environ["PEER_FLASH_ATTENTION"])
        lib = fa.library()
        lib.fa_isa.restype = ctypes.c_char_p
        lib.fa_version.restype = ctypes.c_uint32
        version = ".".join(str(lib.fa_version() >> shift & 0xFF) for shift in (16, 8, 0))
        self.version = f"{version} ({lib.fa_isa().decode()})"
        self.variant = variant
        # One thread is the calling one.
        self.pool = fa.Pool(threads) if threads > 1 else None

    def prepare(self, w, q, k, v):
        if self.variant in BLOCKS and w.group not in ("decode", "few", "latent"):
            raise Unsupported("no integer kernels for many queries: as f32")
        q = np.array(q)
        if self.variant in DTYPES:
            q = q.astype(DTYPES[self.variant])
        self.out = np.empty((*q.shape[:3], w.dim_v), np.float32)
        self.copies = [Call(w, q, k, v, self.out, self.variant, self.pool) for _ in range(w.copies)]
        return [call.run for call in self.copies]

    def output(self):
        return self.out


class Call:
    """A description that is ready to run, and what it points to."""

    def __init__(self, w, q, k, v, out, variant, pool):
        lib = fa.library()
        self.run_c, self.pool = lib.fa_attention_run, pool.handle if pool else None
        a = self.description = fa.Attention()
        fa.check(lib.fa_attention_init(ctypes.byref(a), ctypes.sizeof(a)))
        a.batch, a.heads_q, a.heads_kv = w.batch, w.heads_q, w.heads_kv
        a.len_q, a.len_kv, a.dim_qk, a.dim_v = w.len_q, w.len_kv, w.dim, w.dim_v
        mask = w.mask()
        if w.causal and mask is None:
            a.window_right = 0
        self.kept = [q, out]
        if mask is not None:
            # As others have it, and one for all heads.
            mask = mask.astype(np.float16)
            self.kept.append(mask)
            a.mask, _ = fa.tensor("mask", np.broadcast_to(mask, (w.batch, w.heads_q, *mask.shape)))
        a.q, _ = fa.tensor("q", q)
        a.o, _ = fa.tensor("out", out)
        # A key has one scale, the values of a head one: the kernels of integers take that.
        a.k = self.cache(k, variant, 3)
        # Of latent attention, V is the first elements of the rows of K.
        a.v = a.k if w.latent else self.cache(v, variant, (2, 3))
        size = ctypes.c_size_t()
        fa.check(lib.fa_attention_workspace(ctypes.byref(a), pool.width() if pool else 1, ctypes.byref(size)), a)
        self.workspace = np.empty(size.value, np.uint8)
        self.arguments = ctypes.byref(a), self.workspace.ctypes.data, size, self.pool

    def cache(self, x, variant, axes):
        if variant in BLOCKS:
            dtype, store = BLOCKS[variant]
            blocks = store(np.array(x))
            self.kept.append(blocks)
            return fa.Tensor(data=blocks.ctypes.data, stride=blocks.strides[:3], dtype=dtype)
        if variant != "i8":
            stored = np.array(x).astype(DTYPES[variant])
            self.kept.append(stored)
            return fa.tensor("kv", stored)[0]
        stored, scale = i8(np.array(x), axes)
        t, quant = fa.tensor("kv", stored, fa.Scales(scale, group_dims=x.shape[3], group_tokens=1 if axes == 3 else x.shape[2]))
        self.kept += [stored, quant]
        return t

    def run(self):
        status = self.run_c(*self.arguments)
        if status:
            fa.check(status, self.description)
