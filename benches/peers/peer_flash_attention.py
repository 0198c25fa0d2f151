"""This library, by its package for Python."""

import os
import sys

import ml_dtypes
import numpy as np
from stored import i8, q4, q8_0
from worker import Unsupported

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "bindings", "python"))
import cpu_attention as fa

# Types in blocks: what makes them.
BLOCKS = {"q8_0": q8_0, "q4_0": lambda x: q4(x, False), "q4_1": lambda x: q4(x, True)}
DTYPES = {"f32": np.float32, "bf16": ml_dtypes.bfloat16, "f16": np.float16}


class Peer:
    def __init__(self, variant, threads):
        fa.load(os.environ["PEER_FLASH_ATTENTION"])
        self.version = f"{fa.version()} ({fa.isa()})"
        self.variant = variant
        # One thread is the calling one.
        self.pool = fa.Pool(threads) if threads > 1 else 1

    def prepare(self, w, q, k, v):
        if self.variant in BLOCKS and w.group not in ("decode", "few", "latent"):
            raise Unsupported("no integer kernels for many queries: as f32")
        q = np.array(q)
        if self.variant in DTYPES:
            q = q.astype(DTYPES[self.variant])
        self.out = np.empty((*q.shape[:3], w.dim_v), np.float32)
        return [self.call(w, q, k, v).run for _ in range(w.copies)]

    def call(self, w, q, k, v):
        """A call that is ready to run."""
        mask = w.mask()
        causal = w.causal and mask is None
        if mask is not None:
            # As others have it, and one for all heads.
            mask = mask.astype(np.float16)
        # A key has one scale, the values of a head one: the kernels of integers take that.
        k, k_scales = self.cache(k, 3)
        # Of latent attention, V is the first elements of the rows of K.
        v, v_scales = (first(k, w.dim_v), k_scales) if w.latent else self.cache(v, (2, 3))
        return fa.prepare(
            q, k, v, mask=mask, causal=causal, k_scales=k_scales, v_scales=v_scales, out=self.out, threads=self.pool
        )

    def cache(self, x, axes):
        x = np.array(x)
        if self.variant in BLOCKS:
            return fa.Blocks(BLOCKS[self.variant](x), self.variant), None
        if self.variant != "i8":
            return x.astype(DTYPES[self.variant]), None
        stored, scale = i8(x, axes)
        groups = {"group_dims": x.shape[3], "group_tokens": 1 if axes == 3 else x.shape[2]}
        return stored, fa.Scales(scale, **groups)

    def output(self):
        return self.out


def first(k, dim):
    """The first elements of the rows of K."""
    if isinstance(k, fa.Blocks):
        return fa.Blocks(k.bytes[..., : dim // fa.BLOCK * fa.BLOCK_TYPES[k.type][1]], k.type)
    return k[..., :dim]
