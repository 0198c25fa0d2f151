"""Exact attention on CPUs, from Python: the library flash_attention on arrays of numpy, torch and JAX.

    import cpu_attention as fa

    out = fa.attention(q, k, v, causal=True, threads=0)                  # [batch][head][token][dim]
    out = fa.attention(q, k8, v8, k_scales=fa.Scales(ks), v_scales=fa.Scales(vs))
    k = fa.blocks("q8_0", (pages, heads_kv, page_size, 128))             # a cache in pages, as ggml stores it
    fa.append(k, v, new_k, new_v, block_table=table, kv_lens=lens)
    out = fa.attention(q, k, v, block_table=table, kv_lens=lens, causal=True)
    call = fa.prepare(q, k, v, kv_lens=lens, causal=True)                # for loops: call.run()
    out = fa.scaled_dot_product_attention(query, key, value, is_causal=True)          # the arguments of PyTorch

Inference only: nothing is differentiated. Unrelated to the package flash-attn, which is for GPUs.
"""

from ._arrays import BLOCK, BLOCK_TYPES, Array, Blocks, Integers, Scales, bfloat16, blocks, float8_e4m3fn, float8_e5m2
from ._attention import (
    NO_LIMIT,
    POS_END,
    SCALE_ZERO,
    Fields,
    Options,
    Parts,
    Plan,
    Prepared,
    attention,
    check,
    check_run,
    free_scratch,
    plan,
    prepare,
)
from ._caches import append, merge, quantize
from ._fixed import attention_q15
from ._library import Error, enable_amx, isa, limit_isa, load, version
from ._partitions import SparseLists, sparse_from_partitions
from ._sdpa import scaled_dot_product_attention, usable
from ._threads import ExecutorPool, Pool, Threads, set_threads
from ._version import __version__

__all__ = [
    "BLOCK",
    "BLOCK_TYPES",
    "NO_LIMIT",
    "POS_END",
    "SCALE_ZERO",
    "Array",
    "Blocks",
    "Error",
    "ExecutorPool",
    "Fields",
    "Integers",
    "Options",
    "Parts",
    "Plan",
    "Pool",
    "Prepared",
    "Scales",
    "SparseLists",
    "Threads",
    "append",
    "__version__",
    "attention",
    "attention_q15",
    "bfloat16",
    "blocks",
    "check",
    "check_run",
    "enable_amx",
    "float8_e4m3fn",
    "float8_e5m2",
    "free_scratch",
    "isa",
    "limit_isa",
    "load",
    "merge",
    "plan",
    "prepare",
    "quantize",
    "scaled_dot_product_attention",
    "set_threads",
    "sparse_from_partitions",
    "usable",
    "version",
]
