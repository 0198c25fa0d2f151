"""From partitions of a text to lists for block-sparse attention."""

from __future__ import annotations

import ctypes
import dataclasses
from typing import Any, Literal

import numpy as np

from ._arrays import Integers, address, integers
from ._library import SparseConfig, SparseListsFound, library, refuse

SCHEDULES = ("none", "linear", "threshold", "adaptive")
# A density of 1 in the library's numbers.
_ALL = 1 << 15
_INT64 = range(-(1 << 63), 1 << 63)


@dataclasses.dataclass(frozen=True)
class SparseLists:
    """What partitions keep: fields of fa_sparse_lists in flash_attention.h."""

    kept_start: np.ndarray[Any, Any]
    kept_blocks: np.ndarray[Any, Any]
    kept_q: int
    kept_kv: int
    columns: np.ndarray[Any, Any]
    pairs: int
    column_pairs: int
    all_pairs: int
    window: int
    reach: int | None
    density: float
    target_density: float
    time_saved: float
    dense: bool

    @property
    def options(self) -> dict[str, Any]:
        """The options of attention() that take the lists, the same for all heads and sequences."""
        names = ["kept_start", "kept_blocks", "kept_q", "kept_kv"]
        if len(self.columns):
            names.append("columns")
        return {name: getattr(self, name) for name in names}


def sparse_from_partitions(
    partitions: Integers,
    len_kv: int,
    *,
    len_q: int | None = None,
    boundary_tokens: Integers = (),
    max_edges: int | None = 20,
    window: int = 0,
    causal: bool = True,
    kept_q: int = 64,
    kept_kv: int = 64,
    schedule: Literal["none", "linear", "threshold", "adaptive"] = "none",
    coherence: int = 0,
    coherence_low: int = 30,
    coherence_high: int = 300,
    concentration: float = 0.0,
    min_density: float = 0.0,
    max_density: float = 1.0,
) -> SparseLists:
    """Lists for a text of len_kv tokens, the last len_q of which (None: all) are query rows, in partitions that begin at
    these tokens: rows see their partition, window tokens before them, and boundary tokens (max_edges of them at most;
    None: all). A schedule turns the coherence into the density to aim at, within min_density and max_density.

    Error: what the library refuses. Densities are rounded to multiples of 1/32768."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}, not one of {', '.join(SCHEDULES)}")
    cfg, found = SparseConfig(), SparseListsFound()
    refuse(library().fa_sparse_config_init(ctypes.addressof(cfg), ctypes.sizeof(cfg)))
    found.struct_size = ctypes.sizeof(found)
    kept: list[Any] = []
    for name, x in ("partitions", partitions), ("boundary_tokens", boundary_tokens):
        tokens = integers(name, x, kept, own=True).reshape(-1)
        setattr(cfg, name, address(tokens))
        setattr(cfg, f"num_{name}", len(tokens))
    numbers = {
        "len_kv": len_kv,
        "len_q": len_kv if len_q is None else len_q,
        "max_edges": -1 if max_edges is None else max_edges,
        "window": window,
        "kept_q": kept_q,
        "kept_kv": kept_kv,
    }
    for name, number in numbers.items():
        if number not in _INT64 or (name == "max_edges" and max_edges == -1):
            raise ValueError(f"{name} is {number}")
        setattr(cfg, name, number)
    for name, number in ("coherence", coherence), ("coherence_low", coherence_low), ("coherence_high", coherence_high):
        if not 0 <= number < 1 << 32:
            raise ValueError(f"{name} is {number}, no number of 32 bits")
        setattr(cfg, name, number)
    for name, share in ("concentration", concentration), ("min_density", min_density), ("max_density", max_density):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is {share}, not 0 to 1")
        setattr(cfg, name, round(share * _ALL))
    cfg.causal, cfg.schedule = causal, SCHEDULES.index(schedule)
    why = ctypes.create_string_buffer(512)

    def make(memory: int | None) -> None:
        at = ctypes.addressof(cfg), memory, found.room, ctypes.addressof(found)
        refuse(library().fa_sparse_from_partitions(*at, why, len(why)), why.value)

    make(None)
    memory = np.empty(found.room, np.int32)
    make(address(memory))

    def part(at: int, size: int) -> np.ndarray[Any, Any]:
        first = (at - address(memory)) // memory.itemsize
        return memory[first : first + size]

    return SparseLists(
        kept_start=part(found.kept_start, found.num_starts),
        kept_blocks=part(found.kept_blocks, found.num_blocks),
        kept_q=kept_q,
        kept_kv=kept_kv,
        columns=part(found.columns, found.num_columns),
        pairs=found.pairs,
        column_pairs=found.column_pairs,
        all_pairs=found.all_pairs,
        window=found.window,
        reach=None if found.reach < 0 else found.reach,
        density=found.density,
        target_density=found.target_density / _ALL,
        time_saved=found.time_saved,
        dense=bool(found.dense),
    )
