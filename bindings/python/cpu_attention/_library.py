"""The shared library: its structures, its functions, and what they refuse."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from pathlib import Path

ABI_VERSION = 2
# What a wheel has inside, and what the system's loader is asked for without it.
FILE = "libflash_attention.so"
ERR_WORKSPACE = 17


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
        ("quant", c_void_p),
    ]


class Description(ctypes.Structure):
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
        ("kept_start", c_void_p),
        ("kept_blocks", c_void_p),
        ("kept_stride", c_int64 * 2),
        ("kept_heads", c_int64),
        ("kept_q", c_int64),
        ("kept_kv", c_int64),
        ("table_head_stride", c_int64),
        ("column_start", c_void_p),
        ("columns", c_void_p),
        ("column_stride", c_int64 * 2),
        ("column_heads", c_int64),
        ("q_bytes", c_int64),
        ("k_bytes", c_int64),
        ("v_bytes", c_int64),
        ("o_bytes", c_int64),
        ("mask_bytes", c_int64),
        ("lse_bytes", c_int64),
        ("weights_bytes", c_int64),
    ]


class FixedConfig(ctypes.Structure):
    """fa_q15_config"""

    _fields_ = [
        ("struct_size", c_size_t),
        ("head_dim", c_size_t),
        ("scale_mantissa", c_int32),
        ("scale_shift", c_int32),
        ("causal", c_uint32),
        ("num_threads", c_uint32),
    ]


class SparseConfig(ctypes.Structure):
    """fa_sparse_config"""

    _fields_ = [
        ("struct_size", c_size_t),
        ("len_q", c_int64),
        ("len_kv", c_int64),
        ("kept_q", c_int64),
        ("kept_kv", c_int64),
        ("partitions", c_void_p),
        ("num_partitions", c_int64),
        ("boundary_tokens", c_void_p),
        ("num_boundary_tokens", c_int64),
        ("max_edges", c_int64),
        ("window", c_int64),
        ("causal", c_uint32),
        ("schedule", c_int32),
        ("coherence", c_uint32),
        ("coherence_low", c_uint32),
        ("coherence_high", c_uint32),
        ("concentration", c_uint32),
        ("min_density", c_uint32),
        ("max_density", c_uint32),
    ]


class SparseListsFound(ctypes.Structure):
    """fa_sparse_lists"""

    _fields_ = [
        ("struct_size", c_size_t),
        ("kept_start", c_void_p),
        ("kept_blocks", c_void_p),
        ("column_start", c_void_p),
        ("columns", c_void_p),
        ("num_starts", c_int64),
        ("num_blocks", c_int64),
        ("num_columns", c_int64),
        ("room", c_int64),
        ("pairs", c_int64),
        ("column_pairs", c_int64),
        ("all_pairs", c_int64),
        ("window", c_int64),
        ("reach", c_int64),
        ("density", c_double),
        ("time_saved", c_double),
        ("target_density", c_uint32),
        ("dense", c_uint32),
    ]


class PlanFields(ctypes.Structure):
    """fa_plan"""

    _fields_ = [
        ("struct_size", c_size_t),
        ("isa", c_char_p),
        ("compute", c_char_p),
        ("path", c_int32),
        ("threads", c_int32),
        ("threads_awake", c_int32),
        ("k_staged", c_int32),
        ("v_staged", c_int32),
        ("reserved0", c_int32),
        ("tile_heads", c_int64),
        ("tile_kv_heads", c_int64),
        ("tile_rows", c_int64),
        ("tile_keys", c_int64),
        ("work_items", c_int64),
        ("key_ranges", c_int64),
        ("thread_bytes", c_size_t),
        ("workspace_bytes", c_size_t),
    ]


# Functions of a caller's pool.
Width = ctypes.CFUNCTYPE(c_int32, c_void_p)
Task = ctypes.CFUNCTYPE(None, c_void_p, c_size_t)
ParallelFor = ctypes.CFUNCTYPE(None, c_void_p, c_size_t, Task, c_void_p)


class PoolFields(ctypes.Structure):
    """fa_pool"""

    _fields_ = [("struct_size", c_size_t), ("ctx", c_void_p), ("width", Width), ("parallel_for", ParallelFor)]


class Error(ValueError):
    """The library refused; the text is what its check says, `status` a value of fa_status in flash_attention.h."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Loaded:
    """The library in use, and a description as fa_attention_init leaves it."""

    lib: ctypes.CDLL | None = None
    template = b""


def load(path: str | None = None) -> None:
    """Loads a shared library (None: the one in the package, or else the one that the system finds) in place of that in
    use. Without a call, the first function that needs one does so."""
    if path is None:
        inside = Path(__file__).with_name(FILE)
        path = str(inside) if inside.exists() else FILE
    lib = ctypes.CDLL(path)
    lib.fa_abi_version.restype = c_uint32
    if lib.fa_abi_version() != ABI_VERSION:
        raise ImportError(f"{path} has interface {lib.fa_abi_version()}, this package is for {ABI_VERSION}")
    # Descriptions are passed as addresses: that costs less than pointers that ctypes knows.
    at, tensor = c_void_p, c_void_p
    for name, arguments, result in (
        ("fa_version", [], c_uint32),
        ("fa_isa", [], c_char_p),
        ("fa_limit_isa", [c_char_p], c_int32),
        ("fa_enable_amx", [c_char_p, c_size_t], c_int32),
        ("fa_status_string", [c_int32], c_char_p),
        ("fa_attention_init", [at, c_size_t], c_int32),
        ("fa_attention_check", [at, c_char_p, c_size_t], c_int32),
        ("fa_attention_check_run", [at, c_void_p, c_size_t, c_void_p, c_char_p, c_size_t], c_int32),
        ("fa_attention_plan", [at, c_int32, at], c_int32),
        ("fa_attention_workspace", [at, c_int32, POINTER(c_size_t)], c_int32),
        ("fa_attention_workspace_max", [at, c_int32, POINTER(c_size_t)], c_int32),
        ("fa_attention_run", [at, c_void_p, c_size_t, c_void_p], c_int32),
        ("fa_attention_part", [at, c_void_p, c_size_t, c_int32, c_int32], c_int32),
        ("fa_attention_finish", [at, c_void_p, c_size_t, c_int32, c_int32], c_int32),
        ("fa_cache_append", [at, tensor, tensor, c_char_p, c_size_t], c_int32),
        ("fa_quantize", [tensor, *[c_int64] * 4, tensor], c_int32),
        ("fa_quantize_i8", [tensor, *[c_int64] * 4, c_void_p, tensor], c_int32),
        ("fa_sparse_config_init", [at, c_size_t], c_int32),
        ("fa_sparse_from_partitions", [at, c_void_p, c_int64, at, c_char_p, c_size_t], c_int32),
        ("fa_merge", [*[c_void_p] * 4, c_int64, c_int64], c_int32),
        ("fa_mha_q15", [at, *[c_void_p] * 3, *[c_size_t] * 4, c_void_p], c_int32),
        ("fa_pool_create", [c_int32, POINTER(c_void_p)], c_int32),
        ("fa_pool_destroy", [c_void_p], None),
    ):
        function = getattr(lib, name)
        function.argtypes, function.restype = arguments, result
    a = Description()
    status = lib.fa_attention_init(ctypes.addressof(a), ctypes.sizeof(a))
    if status != 0:
        raise ImportError(f"{path}: {lib.fa_status_string(status).decode()}")
    _Loaded.template = bytes(a)
    _Loaded.lib = lib


def library() -> ctypes.CDLL:
    """The library in use."""
    if _Loaded.lib is None:
        load()
    assert _Loaded.lib is not None
    return _Loaded.lib


def new_description() -> Description:
    """A description as fa_attention_init leaves it."""
    if _Loaded.lib is None:
        load()
    return Description.from_buffer_copy(_Loaded.template)


def refuse(status: int, why: bytes = b"") -> None:
    """Raises Error, unless status is FA_OK."""
    if status != 0:
        raise Error(status, (why or library().fa_status_string(status)).decode())


def version() -> str:
    """Version of the library, like "0.2.0"."""
    number = library().fa_version()
    return ".".join(str(number >> shift & 0xFF) for shift in (16, 8, 0))


def isa() -> str:
    """The instruction set in use, such as "avx512bf16", "avx2", "neon-bf16", "neon" or "scalar"."""
    name: bytes = library().fa_isa()
    return name.decode()


def enable_amx() -> None:
    """Lets all calls that begin later use AMX, the matrix unit of Intel's server processors, which asks the system for
    it; see fa_enable_amx in the C header. Error: there is none for this process, and why."""
    why = ctypes.create_string_buffer(300)
    refuse(library().fa_enable_amx(why, len(why)), why.value)


def limit_isa(name: str | None) -> None:
    """Caps the instruction set of all calls that begin later, in all threads; None takes the cap back. For tests, and
    to compare machines. Error: no such name."""
    refuse(library().fa_limit_isa(None if name is None else name.encode()))
