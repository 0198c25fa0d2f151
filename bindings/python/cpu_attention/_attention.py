"""Attention: one call, or a prepared one."""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import numpy as np

from ._arrays import (
    BF16,
    BOOL8,
    F16,
    F32,
    SIZES,
    U8,
    Array,
    Blocks,
    Integers,
    Scales,
    address,
    as_numpy,
    integers,
    is_torch,
    numpy_type,
    pack_tensor,
    put,
    view,
)
from ._library import ERR_WORKSPACE, Description, Error, PlanFields, Tensor, library, new_description
from ._threads import ExecutorPool, Pool, Threads, pool_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

POS_END = -(2**63)
NO_LIMIT = -1
MASK_TIMES_SLOPE, PRECISE, FAST = 1, 2, 4
SCALE_ZERO = 2.0**-100


class Fields(TypedDict, total=False):
    """What is said of a call by name, here and in cpu_attention.torch."""

    scale: float | None
    softcap: float
    causal: bool
    window_left: int | None
    window_right: int | None
    prefix_keys: int
    q_pos: int | None
    q_positions: Integers | None
    kv_lens: Integers | None
    kv_starts: Integers | None
    mask: Array | None
    mask_times_slope: bool
    alibi_slopes: Array | Sequence[float] | None
    sinks: Array | Sequence[float] | None
    block_mask: Array | None
    block_mask_q: int
    block_mask_kv: int
    kept_start: Integers | None
    kept_blocks: Integers | None
    kept_q: int
    kept_kv: int
    columns: Integers | None
    column_start: Integers | None
    spans: Integers | Sequence[Sequence[Sequence[int]]] | None
    span_starts: Integers | None
    cu_len_q: Integers | None
    cu_len_kv: Integers | None
    len_q: int | None
    len_kv: int | None
    block_table: Integers | Sequence[Sequence[int]] | Sequence[Sequence[Sequence[int]]] | None
    block_table_start: Integers | None
    q_scales: Scales | None
    k_scales: Scales | None
    v_scales: Scales | None
    weights: Array | None
    weight_heads: Integers | None
    weight_rows: Integers | None
    fast: bool
    precise: bool
    block_q: int
    block_kv: int


class Options(Fields, total=False):
    """What attention(), prepare() and check() take by name."""

    out: Array | None
    out_scales: Scales | None
    lse: Array | None
    threads: Threads


_Q, _K, _V, _O, _MASK, _WEIGHTS = (getattr(Description, x).offset for x in ("q", "k", "v", "o", "mask", "weights"))
# batch, heads_q, heads_kv, len_q, len_kv, dim_qk, dim_v
SIZES_AT, pack_sizes = Description.batch.offset, struct.Struct("@7q").pack_into
_pack_number = struct.Struct("@q").pack_into
_PLAN_NUMBERS = (
    *("threads", "threads_awake", "tile_heads", "tile_kv_heads", "tile_rows", "tile_keys", "work_items", "key_ranges"),
    *("thread_bytes", "workspace_bytes"),
)
_TENSORS = {"q": _Q, "k": _K, "v": _V, "out": _O}


Kept = list[Any]


class _Scratch(threading.local):
    """Scratch memory of a thread, which stays for its later calls: (the array, its address, its bytes)."""

    memory: tuple[Any, int, int] = (None, 0, 0)


_scratch = _Scratch()


def _memory(size: int) -> tuple[Any, int, int]:
    memory = _scratch.memory
    if memory[2] < size:
        array = np.empty(size, np.uint8)
        memory = _scratch.memory = array, address(array), size
    return memory


def free_scratch() -> None:
    """Frees the scratch memory that this thread's calls have left for later ones."""
    _scratch.memory = (None, 0, 0)


class Plan(NamedTuple):
    """How a call is computed, as fa_plan in flash_attention.h: for tuners and logs. It may change in any version."""

    isa: str
    compute: str
    path: str
    threads: int
    threads_awake: int
    k_staged: bool
    v_staged: bool
    tile_heads: int
    tile_kv_heads: int
    tile_rows: int
    tile_keys: int
    work_items: int
    key_ranges: int
    thread_bytes: int
    workspace_bytes: int


class Prepared:
    """A call that is ready to run, again and again: see prepare().

    It uses the arrays that it was made of, where they are; so what is written into them between runs counts. That is
    also true of q_positions, kv_lens, kv_starts and block_table, if they are contiguous and of int32."""

    __slots__ = ("_arrays", "_at", "_bytes", "_description", "_kept", "_lib", "_pool", "_run", "_shapes", "out")

    out: Any
    _description: Description
    _at: int
    _bytes: int
    _arrays: dict[str, Kept]
    _kept: Kept
    _shapes: dict[str, tuple[int, ...]]
    _lib: ctypes.CDLL
    _run: Any
    _pool: Pool | ExecutorPool | None

    def run(self) -> Any:
        """Computes; returns `out`. Error: what the library refuses, in numbers that have changed."""
        memory, at, size = _memory(self._bytes)
        pool = self._pool
        if pool is None:
            status = self._run(self._at, at, size, None)
        else:
            if type(pool) is ExecutorPool:
                # Other code of Python's runs meanwhile in this thread, which may call, too.
                memory = np.empty(self._bytes, np.uint8)
                at = address(memory)
                size = self._bytes
            handle = pool.enter()
            try:
                status = self._run(self._at, at, size, handle)
            finally:
                pool.leave()
        if status != 0:
            self._failed(status)
        return self.out

    __call__ = run

    def check(self) -> str:
        """Which kernel computes this and how, on the calling thread alone, in words, with warnings of strides that
        nobody means. Error: what is refused."""
        why = ctypes.create_string_buffer(2048)
        status = self._lib.fa_attention_check(self._at, why, len(why))
        if status != 0:
            raise Error(status, (why.value or self._lib.fa_status_string(status)).decode())
        return why.value.decode()

    def check_run(self) -> str:
        """What run() would do with its threads, in words as those of check(), or what it would refuse (Error)."""
        self._measure()
        _, at, size = _memory(self._bytes)
        pool, why = self._pool, ctypes.create_string_buffer(2048)
        handle = None if pool is None else pool.enter()
        try:
            status = self._lib.fa_attention_check_run(self._at, at, size, handle, why, len(why))
        finally:
            if pool is not None:
                pool.leave()
        if status != 0:
            raise Error(status, (why.value or self._lib.fa_status_string(status)).decode())
        return why.value.decode()

    def workspace(self, threads: int) -> int:
        """Bytes of scratch memory of a call on so many threads, or in so many parts(): 1 to 256."""
        return self._ask(self._lib.fa_attention_workspace, threads)

    def workspace_max(self, most: int) -> int:
        """Bytes that are enough for every number of threads, and of parts(), from 1 to `most`: more threads do not
        always need more."""
        return self._ask(self._lib.fa_attention_workspace_max, most)

    def parts(self, n: int, memory: Array | None = None) -> Parts:
        """The call for `n` threads of the program's own (1 to 256), each of which computes a part: see Parts. memory:
        contiguous bytes (uint8) that it may use, workspace(n) or more; None = new ones."""
        return Parts(self, n, memory)

    def plan(self) -> Plan:
        """How run() computes this, with its threads, in numbers. Error: what is refused."""
        pool, how = self._pool, PlanFields(struct_size=ctypes.sizeof(PlanFields))
        status = self._lib.fa_attention_plan(self._at, 1 if pool is None else pool.width, ctypes.addressof(how))
        if status != 0:
            self.check()
            raise Error(status, self._lib.fa_status_string(status).decode())
        return Plan(
            isa=how.isa.decode(),
            compute=how.compute.decode(),
            path="decode" if how.path else "prefill",
            k_staged=bool(how.k_staged),
            v_staged=bool(how.v_staged),
            **{name: getattr(how, name) for name in _PLAN_NUMBERS},
        )

    def bind(self, **arrays: Array | Blocks) -> Prepared:
        """Puts other arrays of the same shapes and types in the place of q, k, v or out; their scales stay. Returns
        self."""
        for name, x in arrays.items():
            if name not in _TENSORS:
                raise TypeError(f"{name} is none of {', '.join(_TENSORS)}")
            new, kept = Tensor(), Kept()
            shape = put(new, 0, name, x, kept, written=name == "out")
            before = self._shapes[name]
            if shape != before:
                raise ValueError(f"{name} has shape {shape} instead of {before}")
            old = Tensor.from_buffer(self._description, _TENSORS[name])
            if new.dtype != old.dtype:
                raise TypeError(f"{name} has another type than before")
            moved = (*new.stride, new.stride_dim) != (*old.stride, old.stride_dim)
            new.quant = old.quant
            old_bytes = bytes(old)
            ctypes.memmove(ctypes.addressof(old), ctypes.addressof(new), ctypes.sizeof(new))
            if moved:
                try:
                    self._measure()
                except Error:
                    ctypes.memmove(ctypes.addressof(old), old_bytes, len(old_bytes))
                    raise
            # What comes after it are its scales, which stay.
            self._arrays[name][0] = kept[0]
            if name == "out":
                self.out = x
        return self

    def _measure(self) -> None:
        """Asks for the bytes of scratch memory."""
        pool = self._pool
        self._bytes = self.workspace(1 if pool is None else pool.width)

    def _ask(self, function: Any, threads: int) -> int:
        """What a function says of bytes for so many threads."""
        if not 1 <= threads <= 256:
            raise ValueError(f"{threads} threads: not 1 to 256")
        size = ctypes.c_size_t()
        status = function(self._at, threads, ctypes.byref(size))
        if status != 0:
            self.check()
            raise Error(status, self._lib.fa_status_string(status).decode())
        return size.value

    def _failed(self, status: int) -> None:
        if status == ERR_WORKSPACE:
            # limit_isa() was called, or the like: other kernels need other memory.
            before = self._bytes
            self._measure()
            if self._bytes > before:
                self.run()
                return
        self.check()
        raise Error(status, self._lib.fa_status_string(status).decode())


class Parts:
    """A call that `n` threads of the program's own compute together, and not the library's: for engines that have
    threads and barriers. See Prepared.parts().

        parts = prepare(q, k, v).parts(n)
        # on each of n threads, i is 0 to n - 1
        parts.run(i)
        barrier.wait()                            # a threading.Barrier(n)
        parts.finish(i)                           # the output is complete when all have finished

    The parts may as well be computed one after another, in any order. The interpreter's lock is released meanwhile. The
    bits are those of Prepared.run(). When all have finished, it may be run again, from the first part on."""

    __slots__ = ("_at", "_begun", "_call", "_finished", "_lock", "_memory", "_ran", "_size", "n")

    n: int

    def __init__(self, call: Prepared, n: int, memory: Array | None = None) -> None:
        size = call.workspace(n)
        if memory is None:
            memory = np.empty(size, np.uint8)
        at, shape, strides, code, _, holder = view("memory", memory, written=True)
        if len(shape) != 1 or code != U8 or (shape[0] > 1 and strides[0] != 1):
            raise ValueError(f"memory {shape} is no row of bytes (uint8)")
        if shape[0] < size:
            raise ValueError(f"memory has {shape[0]} bytes, {n} parts need {size}")
        self.n, self._call, self._at, self._size, self._memory = n, call, at, shape[0], (memory, holder)
        self._lock = threading.Lock()
        self._begun: set[int] = set()
        self._ran: set[int] = set()
        self._finished: set[int] = set()

    def run(self, i: int) -> None:
        """Computes part `i` on this thread. ValueError: it is none, or has been begun; Error: what is refused."""
        with self._lock:
            self._check(i)
            if i in self._begun:
                raise ValueError(f"part {i} has been begun already")
            self._begun.add(i)
        self._compute("fa_attention_part", i, self._begun)
        with self._lock:
            self._ran.add(i)

    def finish(self, i: int) -> Any:
        """Completes part `i` on this thread, once all parts have been computed; returns `out`. ValueError: some have
        not, or it has been finished."""
        with self._lock:
            self._check(i)
            if len(self._ran) < self.n:
                raise ValueError(f"part {i} is finished when all {self.n} parts have run; {len(self._ran)} have")
            if i in self._finished:
                raise ValueError(f"part {i} has been finished already")
            self._finished.add(i)
        self._compute("fa_attention_finish", i, self._finished)
        with self._lock:
            # Counted by removal, so that the last to return begins anew.
            self._begun.discard(i)
            if not self._begun:
                self._ran.clear()
                self._finished.clear()
        return self._call.out

    def _check(self, i: int) -> None:
        if not 0 <= i < self.n:
            raise ValueError(f"part {i} is none of {self.n}")

    def _compute(self, function: str, i: int, claimed: set[int]) -> None:
        """Calls a function of the library for part `i`, whose claim is given up if it fails."""
        call = self._call
        try:
            status = getattr(call._lib, function)(call._at, self._at, self._size, i, self.n)
            if status != 0:
                call.check()
                raise Error(status, call._lib.fa_status_string(status).decode())
        except BaseException:
            with self._lock:
                claimed.discard(i)
            raise


def number(a: Description, name: str, x: int) -> None:
    """Sets a field of 64 bits."""
    try:
        _pack_number(a, getattr(Description, name).offset, x)
    except struct.error:
        raise ValueError(f"{name} is {x!r}, no integer of 64 bits") from None


def floats(name: str, x: Any, kept: Kept) -> np.ndarray[Any, Any]:
    """Numbers of each head: where they are, if they are float32 and contiguous."""
    numbers = as_numpy(x)
    if numbers.dtype != np.float32 or not numbers.flags.c_contiguous:
        numbers = np.ascontiguousarray(numbers, np.float32)
    kept.append(numbers)
    return numbers


def ragged(name: str, x: Any, shape: tuple[int, ...], kept: Kept) -> tuple[np.ndarray[Any, Any], int]:
    """cu_len_q or cu_len_kv of tensors of a shape, in memory of our own: what it was checked for stays so. And the
    length of the longest sequence."""
    cu = integers(name, x, kept, own=True)
    if cu.ndim != 1 or len(cu) < 1:
        raise ValueError(f"{name} has shape {cu.shape}: one number for each sequence, and one")
    if shape[0] != 1 or cu[-1] > shape[2]:
        raise ValueError(
            f"{name} ends at {cu[-1]}, its tensor has {shape[2]} rows, and {shape[0]} batch entries, not 1"
        )
    return cu, int(np.diff(cu).max(initial=0))


def set_keys(
    a: Description,
    k_shape: tuple[int, ...],
    v_shape: tuple[int, ...],
    batch: int | None,
    kept: Kept,
    cu_len_kv: Any,
    block_table: Any,
    block_table_start: Any,
    len_kv: int | None,
) -> tuple[int, int]:
    """The fields of ragged and paged keys. Returns the number of sequences, and of keys of each."""
    entries, _, tokens, _ = k_shape
    if v_shape[:3] != k_shape[:3]:
        raise ValueError(f"shapes do not fit: k {k_shape}, v {v_shape}")
    if block_table is not None:
        table = as_numpy(block_table)
        if not (table.ndim == 2 and table.dtype == np.int32 and table.strides[1] == 4 and table.strides[0] >= 0):
            table = integers("block_table", table, kept)
        kept.append(table)
        a.block_table = address(table)
        a.num_pages, a.page_size = entries, tokens
        if block_table_start is not None:
            start = integers("block_table_start", block_table_start, kept, own=True)
            if table.ndim != 1 or start.ndim != 1 or len(start) < 1 or start[-1] > len(table):
                raise ValueError(f"block_table {table.shape} is no list, or shorter than block_table_start says")
            sequences, most = len(start) - 1, int(np.diff(start).max(initial=0)) * tokens
            a.block_table_start = address(start)
        else:
            if table.ndim not in (2, 3) or (table.ndim == 3 and table.shape[1] != k_shape[1]):
                raise ValueError(f"block_table has shape {table.shape}, not one row for each sequence, or kv head")
            sequences, most = table.shape[0], table.shape[-1] * tokens
            a.table_stride = table.strides[0] // 4 if sequences > 1 else table[:1].size
            a.table_head_stride = table.shape[2] if table.ndim == 3 and table.shape[1] > 1 else 0
    elif block_table_start is not None:
        raise ValueError("block_table_start without block_table")
    elif cu_len_kv is not None:
        cu, most = ragged("cu_len_kv", cu_len_kv, k_shape, kept)
        a.cu_len_kv = address(cu)
        sequences = len(cu) - 1
        # Longer is only a wider mask.
        most = most if len_kv is None else max(most, len_kv)
    else:
        sequences, most = entries, tokens
    if cu_len_kv is not None and block_table is not None:
        raise ValueError("cu_len_kv and block_table exclude each other")
    if batch is not None and sequences != batch:
        raise ValueError(f"keys are of {sequences} sequences instead of {batch}")
    if len_kv is not None and not 0 <= len_kv <= most:
        raise ValueError(f"len_kv is {len_kv}, there are {most} keys")
    return sequences, most if len_kv is None else len_kv


def set_lists(a: Description, batch: int, kept: Kept, **lists: Any) -> None:
    """Numbers of each sequence."""
    for name, x in lists.items():
        if x is not None:
            setattr(a, name, address(integers(name, x, kept, batch)))


def set_spans(a: Description, spans: Any, span_starts: Any, batch: int, kept: Kept) -> None:
    if span_starts is None:
        if len(spans) != batch:
            raise ValueError(f"spans are of {len(spans)} sequences instead of {batch}")
        starts = integers("span_starts", np.cumsum([0, *map(len, spans)]), kept)
        pairs = [np.asarray(x) for sequence in spans for x in sequence]
        if any(x.shape != (2,) for x in pairs):
            raise ValueError("spans are pairs (first key, the one behind the last)")
        # The last one is nobody's: there must be a list.
        numbers = integers("spans", np.stack([*pairs, np.zeros(2, np.int32)]), kept)
    else:
        starts = integers("span_starts", span_starts, kept, own=True)
        numbers = integers("spans", spans, kept, own=True)
        if starts.shape != (batch + 1,) or numbers.ndim != 2 or numbers.shape[1] != 2 or starts[-1] > len(numbers):
            raise ValueError(f"spans {numbers.shape} are no pairs, or fewer than span_starts {starts.shape} says")
    a.spans, a.span_starts = address(numbers), address(starts)


def spread(name: str, shape: tuple[int, ...], strides: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...]:
    """Strides with which an array is broadcast to the wanted shape, but for the last axis."""
    if len(shape) > 4 or not shape:
        raise ValueError(f"{name} has {len(shape)} axes, not 1 to 4")
    missing = 4 - len(shape)
    shape, strides = (*[1] * missing, *shape), (*[0] * missing, *strides)
    if any(n not in (1, most) for n, most in zip(shape[:3], wanted[:3], strict=True)):
        raise ValueError(f"{name} {shape} does not fit {wanted}")
    return tuple([0 if n == 1 else s for n, s in zip(shape[:3], strides[:3], strict=True)])


def set_mask(a: Description, mask: Any, wanted: tuple[int, ...], kept: Kept) -> None:
    """A mask, whose axes of length 1 get strides of 0; nothing is copied for them."""
    at, shape, strides, code, size, holder = view("mask", mask)
    if code not in (F32, F16, BF16, BOOL8):
        raise TypeError("mask is neither of a floating-point type nor bool")
    kept.append(holder)
    apart = spread("mask", shape, strides, wanted)
    if shape[-1] != wanted[3] or (wanted[3] > 1 and 0 not in wanted and strides[-1] != size):
        raise ValueError(f"rows of mask {shape} have not {wanted[3]} elements each, or these are no neighbours")
    # Without elements there are no strides, and what is NULL is no mask.
    a.mask.data, a.mask.dtype = at, code
    a.mask.stride = (0, 0, 0) if 0 in wanted else apart


def set_block_mask(a: Description, mask: Any, q: int, kv: int, wanted: tuple[int, ...], kept: Kept) -> None:
    at, shape, strides, code, _, holder = view("block_mask", mask)
    if code not in (BOOL8, U8):
        raise TypeError("block_mask is neither bool nor uint8")
    if q < 1 or kv < 1:
        raise ValueError(f"block_mask_q is {q}, block_mask_kv is {kv}: at least 1")
    kept.append(holder)
    wanted = *wanted[:2], -(-wanted[2] // q), -(-wanted[3] // kv)
    # More blocks than there are do no harm.
    if len(shape) > 1 and shape[-2] > wanted[2]:
        shape = (*shape[:-2], wanted[2], shape[-1])
    apart = spread("block_mask", shape, strides, wanted)
    if shape[-1] < wanted[3] or (shape[-1] > 1 and strides[-1] != 1):
        raise ValueError(f"rows of block_mask {shape} have not {wanted[3]} bytes each, or these are no neighbours")
    a.block_mask, a.block_mask_stride = at, apart
    number(a, "block_mask_q", q)
    number(a, "block_mask_kv", kv)


def set_entries(
    a: Description, names: tuple[str, str, str], start: Any, entries: Any, lists: int, wanted: tuple[int, ...], kept: Kept
) -> None:
    """Lists, `lists` of them for each head: where they begin, and what they have. Of `names` the first one is that of
    the starts, the second one that of the entries, and with the third one the fields for heads and strides begin."""
    of_starts, of_entries, prefix = names
    starts, numbers = integers(of_starts, start, kept, own=True), integers(of_entries, entries, kept, own=True)
    batch, heads_q, _, _ = wanted
    shape = (*[1] * (3 - starts.ndim), *starts.shape)
    fits = len(shape) == 3 and shape[0] in (1, batch) and shape[1] >= 1 and heads_q % shape[1] == 0
    if not fits or shape[2] <= lists or numbers.ndim != 1:
        raise ValueError(f"{of_starts} {starts.shape} or {of_entries} {numbers.shape} does not fit {wanted}")
    if starts.max(initial=0) > numbers.size:
        raise ValueError(f"{of_starts} leads beyond the {numbers.size} numbers of {of_entries}")
    setattr(a, of_starts, address(starts))
    setattr(a, of_entries, address(numbers))
    setattr(a, f"{prefix}_heads", shape[1])
    setattr(a, f"{prefix}_stride", (shape[1] * shape[2] if shape[0] > 1 else 0, shape[2] if shape[1] > 1 else 0))


def set_kept(a: Description, start: Any, blocks: Any, q: int, kv: int, wanted: tuple[int, ...], kept: Kept) -> None:
    if start is None or blocks is None:
        raise ValueError("kept_start and kept_blocks go together")
    if q < 1 or kv < 1:
        raise ValueError(f"kept_q is {q}, kept_kv is {kv}: at least 1")
    set_entries(a, ("kept_start", "kept_blocks", "kept"), start, blocks, -(-wanted[2] // q), wanted, kept)
    number(a, "kept_q", q)
    number(a, "kept_kv", kv)


def set_columns(a: Description, start: Any, columns: Any, wanted: tuple[int, ...], kept: Kept) -> None:
    if columns is None:
        raise ValueError("column_start is given, but columns are not")
    if start is None:
        # One list for all.
        columns = np.atleast_1d(as_numpy(columns))
        start = np.array([0, columns.size], np.int32)
    set_entries(a, ("column_start", "columns", "column"), start, columns, 1, wanted, kept)


def set_lse(a: Description, lse: Any, wanted: tuple[int, ...], kept: Kept) -> None:
    at, shape, strides, code, _, holder = view("lse", lse, written=True)
    if len(shape) == 2:
        shape, strides = (1, *shape), (0, *strides)
    if code != F32:
        raise TypeError("lse is not of float32")
    if shape != wanted:
        raise ValueError(f"lse has shape {shape} instead of {wanted}")
    if 0 not in wanted:
        if any(s % 4 for s in strides):
            raise ValueError(f"strides of lse are {strides}, no multiples of its elements")
        a.lse_stride = tuple([s // 4 if n > 1 else 0 for s, n in zip(strides, shape, strict=True)])
    kept.append(holder)
    a.lse = at


def new_output(a: Description, q: Any, shape: tuple[int, ...], kept: Kept) -> Any:
    """A new array for the output, which the description has: torch's if q is that, else numpy's."""
    code = a.q.dtype if a.q.dtype in (F32, F16, BF16) else F32
    sizes = shape if len(q.shape) == 4 else shape[1:]
    out: Any
    if is_torch(q):
        if code == a.q.dtype:
            out = q.new_empty(sizes)
        else:
            import torch  # type: ignore[import-not-found, unused-ignore]

            out = torch.empty(sizes, dtype=torch.float32)
        at = out.data_ptr()
    else:
        out = np.empty(sizes, numpy_type(code))
        at = address(out)
    batch, heads, rows, dim = shape
    size = SIZES[code]
    row = dim * size if batch and heads and rows else 0
    pack_tensor(a, _O, at, heads * rows * row, rows * row, row, code, size, 0)
    kept.append(out)
    return out


def describe(
    q: Any,
    k: Any,
    v: Any,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    causal: bool = False,
    window_left: int | None = None,
    window_right: int | None = None,
    prefix_keys: int = 0,
    q_pos: int | None = None,
    q_positions: Any = None,
    kv_lens: Any = None,
    kv_starts: Any = None,
    mask: Any = None,
    mask_times_slope: bool = False,
    alibi_slopes: Any = None,
    sinks: Any = None,
    block_mask: Any = None,
    block_mask_q: int = 0,
    block_mask_kv: int = 0,
    kept_start: Any = None,
    kept_blocks: Any = None,
    kept_q: int = 0,
    kept_kv: int = 0,
    columns: Any = None,
    column_start: Any = None,
    spans: Any = None,
    span_starts: Any = None,
    cu_len_q: Any = None,
    cu_len_kv: Any = None,
    len_q: int | None = None,
    len_kv: int | None = None,
    block_table: Any = None,
    block_table_start: Any = None,
    q_scales: Scales | None = None,
    k_scales: Scales | None = None,
    v_scales: Scales | None = None,
    weights: Any = None,
    weight_heads: Any = None,
    weight_rows: Any = None,
    fast: bool = False,
    precise: bool = False,
    block_q: int = 0,
    block_kv: int = 0,
    out: Any = None,
    out_scales: Scales | None = None,
    lse: Any = None,
    threads: Threads = None,
) -> Prepared:
    """What attention(), prepare() and check() begin with. What the library cannot find out from pointers is checked
    here: that the memory is there."""
    call, a, kept = Prepared(), new_description(), Kept()
    arrays: dict[str, Kept] = {"q": [], "k": [], "v": [], "out": []}
    q_shape = put(a, _Q, "q", q, arrays["q"], q_scales)
    k_shape = put(a, _K, "k", k, arrays["k"], k_scales)
    v_shape = put(a, _V, "v", v, arrays["v"], v_scales)
    entries, heads_q, rows, dim_qk = q_shape
    dim_v = v_shape[3]
    if k_shape[3] != dim_qk:
        raise ValueError(f"shapes do not fit: q {q_shape}, k {k_shape}")

    # Sequences, and their lengths.
    if cu_len_q is not None:
        cu, longest = ragged("cu_len_q", cu_len_q, q_shape, kept)
        a.cu_len_q = address(cu)
        batch, len_q = len(cu) - 1, longest if len_q is None else len_q
    else:
        if len_q not in (None, rows):
            raise ValueError(f"len_q is {len_q}, q has {rows} rows")
        batch, len_q = entries, rows
    _, len_kv = set_keys(a, k_shape, v_shape, batch, kept, cu_len_kv, block_table, block_table_start, len_kv)
    try:
        pack_sizes(a, SIZES_AT, batch, heads_q, k_shape[1], len_q, len_kv, dim_qk, dim_v)
    except struct.error:
        raise ValueError("len_q or len_kv is no integer of 64 bits") from None
    if kv_lens is not None or kv_starts is not None or q_positions is not None:
        set_lists(a, batch, kept, kv_lens=kv_lens, kv_starts=kv_starts, q_positions=q_positions)

    # What changes scores, and hides keys.
    if scale is not None:
        # 0 stands for the usual scale in the description.
        a.scale = scale or SCALE_ZERO
    if softcap != 0.0:
        a.softcap = softcap
    if q_pos is not None:
        number(a, "q_pos", q_pos)
    if causal:
        if window_right is not None:
            raise ValueError("causal is window_right = 0: they exclude each other")
        window_right = 0
    if window_left is not None:
        number(a, "window_left", window_left)
    if window_right is not None:
        number(a, "window_right", window_right)
    if prefix_keys != 0:
        number(a, "prefix_keys", prefix_keys)
    wanted = batch, heads_q, len_q, len_kv
    if mask is not None:
        set_mask(a, mask, wanted, kept)
    if alibi_slopes is not None:
        slopes = floats("alibi_slopes", alibi_slopes, kept)
        if slopes.shape not in ((heads_q,), (batch, heads_q)):
            raise ValueError(f"alibi_slopes have shape {slopes.shape}, not {(heads_q,)} or {(batch, heads_q)}")
        a.alibi_slopes, a.alibi_batch_stride = address(slopes), heads_q if slopes.ndim == 2 else 0
    if sinks is not None:
        logits = floats("sinks", sinks, kept)
        if logits.shape != (heads_q,):
            raise ValueError(f"sinks have shape {logits.shape}, not {(heads_q,)}")
        a.sinks = address(logits)
    if block_mask is not None:
        set_block_mask(a, block_mask, block_mask_q, block_mask_kv, wanted, kept)
    if kept_start is not None or kept_blocks is not None:
        set_kept(a, kept_start, kept_blocks, kept_q, kept_kv, wanted, kept)
    if columns is not None or column_start is not None:
        set_columns(a, column_start, columns, wanted, kept)
    if spans is not None:
        set_spans(a, spans, span_starts, batch, kept)
    if fast or precise or mask_times_slope:
        a.flags = (FAST if fast else 0) | (PRECISE if precise else 0) | (MASK_TIMES_SLOPE if mask_times_slope else 0)
    if block_q != 0:
        number(a, "block_q", block_q)
    if block_kv != 0:
        number(a, "block_kv", block_kv)

    # Outputs.
    out_shape = entries, heads_q, rows, dim_v
    if out is None:
        if out_scales is not None:
            raise ValueError("out_scales without out")
        out = new_output(a, q, out_shape, arrays["out"])
    elif (given := put(a, _O, "out", out, arrays["out"], out_scales, written=True, given=True)) != out_shape:
        raise ValueError(f"out has shape {given} instead of {out_shape}")
    if lse is not None:
        set_lse(a, lse, (entries, heads_q, rows), kept)
    if weights is not None or weight_heads is not None or weight_rows is not None:
        counts = {"heads": heads_q, "rows": len_q}
        for name, x in ("heads", weight_heads), ("rows", weight_rows):
            if x is not None:
                numbers = integers(f"weight_{name}", np.atleast_1d(as_numpy(x)), kept, own=True)
                setattr(a, f"weight_{name}", address(numbers))
                counts[name] = numbers.size
        a.num_weight_heads, a.num_weight_rows = counts.values()
        if weights is not None:
            shape = put(a, _WEIGHTS, "weights", weights, kept, written=True)
            if shape != (batch, *counts.values(), len_kv):
                raise ValueError(f"weights have shape {shape} instead of {(batch, *counts.values(), len_kv)}")

    call.out = out
    call._description, call._at = a, ctypes.addressof(a)
    call._kept, call._arrays = kept, arrays
    call._shapes = {"q": q_shape, "k": k_shape, "v": v_shape, "out": out_shape}
    call._lib = library()
    call._run = call._lib.fa_attention_run
    call._pool = pool_of(threads)
    # Not asked for: what the thread has does most of the time.
    call._bytes = 0
    return call


def attention(q: Array | Blocks, k: Array | Blocks, v: Array | Blocks, **options: Unpack[Options]) -> Any:
    """softmax(scale * q k^T + ...) v, exact: no scores are left out.

    Arrays are numpy's, torch's on the CPU, JAX's on the CPU, or have `__dlpack__` or `__array_interface__`. They are
    used where they are, with the strides that they have: [batch][token][head][dim] is x.transpose(0, 2, 1, 3). Rows are
    contiguous, those of k and v may also have elements that lie apart: a cache [batch][head][dim][token] is
    x.transpose(0, 1, 3, 2). Of one sequence, the first axis may be missing.

    q: [batch][heads_q][len_q][dim_qk]
    k, v: [batch][heads_kv][len_kv][dim_qk], [..][dim_v]. Query head h reads kv head h // (heads_q // heads_kv).
        float32, float16, bfloat16 (ml_dtypes or torch), int8, uint8, float8_e4m3fn, float8_e5m2, int16 (fractions: a
        number stands for itself divided by 32768), or Blocks each.
    out: written; [batch][heads_q][len_q][dim_v] of float32, float16, bfloat16 or int16 (fractions, rounded and
        saturated; NaN becomes 0). None: a new one, of the floating-point type of q, else float32; torch's if q is
        torch's, else numpy's.
    out_scales: Scales of an out of int16, by which numbers are divided.
    lse: written; float32 [batch][heads_q][len_q], logarithm of each row's sum of exponentials, for merge().

    Scores
    scale: what products are multiplied by; None = 1/sqrt(dim_qk).
    softcap: 0 = off; score s becomes softcap * tanh(s / softcap).
    mask: rows of len_kv elements, other axes broadcast to [batch][heads_q][len_q]. Floating point: added, -inf hides.
        bool: True = seen.
    alibi_slopes: float32 [heads_q] or [batch][heads_q]; -slope * |distance in tokens| is added. mask_times_slope:
        slope * mask instead.
    sinks: float32 [heads_q], logits that take part in each sum without a value.

    Who sees whom; a row at position p sees the keys p - window_left to p + window_right
    causal: window_right = 0. window_left, window_right: keys; None = no limit.
    q_pos: position (key number) of query 0; None = the last query is on the last key. q_positions: for each sequence.
    kv_lens: keys in use of each sequence. kv_starts: its first key that is seen. One number stands for all.
    prefix_keys: so many first keys are seen beside window_left.
    spans: for each sequence a list of (first key, key behind the last) that see each other both ways; or int32 [n][2]
        with span_starts [batch + 1].
    block_mask: bool or uint8 [batch][heads_q][blocks of queries][blocks of keys], broadcast; blocks have block_mask_q
        rows, block_mask_kv keys.
    kept_start, kept_blocks: the blocks of kept_kv keys that each block of kept_q rows sees, in lists (BSR): block r of
        a head sees kept_blocks[kept_start[r]:kept_start[r + 1]], ascending. kept_start: int32 [blocks of queries + 1],
        [heads][..] or [batch or 1][heads][..], where heads divide heads_q: neighbouring query heads share lists.
    columns: single keys that all rows see, whatever window_left and blocks leave, as far as they are not behind the
        window: int32, ascending; with column_start, int32 [2], [heads][2] or [batch or 1][heads][2], lists for heads:
        columns[column_start[0]:column_start[1]]. Not together with mask, alibi_slopes, weights.

    Layouts
    cu_len_q, cu_len_kv: [batch + 1]; q and out (k and v) then have one batch entry with the rows of all sequences
        behind one another, those of b from cu_len[b] to cu_len[b + 1] - 1. len_q, len_kv: at least the longest; it is
        found if they are None.
    block_table: k and v are pages [page][heads_kv][tokens of a page][dim]; [batch][pages], the pages of each sequence
        in order, or with block_table_start [batch + 1] one list behind another; [batch][heads_kv][pages]: each kv head
        has pages of its own.
    q_scales, k_scales, v_scales: Scales of tensors of 8 bits, and of int16.

    Probabilities
    weights: written; float32 [batch][heads][rows][len_kv]: of weight_heads and weight_rows (ascending; negative rows
        count from the end), or all.

    How
    fast: integers of 8 bits may have probabilities of 8 bits. precise: bfloat16 and Blocks are multiplied as float32.
    block_q, block_kv: sizes of tiles; 0 = by this machine's caches.
    threads: None = set_threads(), at first the calling thread alone; 0 = one for each core, or a number, or a Pool.

    Returns out. ValueError (Error, where the library refuses) or TypeError: in words; then nothing was written. Any
    number of threads may call at once, the interpreter's lock is not held meanwhile. A thread keeps the scratch memory
    of its largest call: free_scratch()."""
    return describe(q, k, v, **options).run()


def prepare(q: Array | Blocks, k: Array | Blocks, v: Array | Blocks, **options: Unpack[Options]) -> Prepared:
    """The same call, checked and measured once, to be run many times: for loops, such as one of decode.

        call = prepare(q, k, v, kv_lens=lens, causal=True)      # lens: an array of int32
        for token in ...:
            q[...], lens[0] = ..., token + 1
            call.run()                                          # call.out

    Lists of lengths of rows (cu_len_q, cu_len_kv, block_table_start, spans) are as they were. A prepared call belongs
    to one thread at a time, as its output does."""
    call = describe(q, k, v, **options)
    call._measure()
    return call


def check(q: Array | Blocks, k: Array | Blocks, v: Array | Blocks, **options: Unpack[Options]) -> str:
    """Which kernel attention() would use and how, in words; nothing is computed. Error: why it would refuse."""
    return describe(q, k, v, **options).check()


def check_run(q: Array | Blocks, k: Array | Blocks, v: Array | Blocks, **options: Unpack[Options]) -> str:
    """As check(), for attention() with its threads: all that it could refuse, and how it computes with them."""
    return describe(q, k, v, **options).check_run()


def plan(q: Array | Blocks, k: Array | Blocks, v: Array | Blocks, **options: Unpack[Options]) -> Plan:
    """How attention() would compute it, with its threads, in numbers; nothing is computed. Error: why it would
    refuse."""
    return describe(q, k, v, **options).plan()
