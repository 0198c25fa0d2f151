"""Threads that compute: the library's own, or the caller's."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from concurrent.futures import Executor, Future
from ctypes import byref, c_void_p, sizeof
from typing import Any, TypeAlias, Union

from ._library import ParallelFor, PoolFields, Width, library, refuse


class Pool:
    """Threads of the library's own, to be used by any number of calls, also at the same time:

        with Pool(4) as pool:
            attention(q, k, v, threads=pool)

    threads: how many compute at the same time in a call, the calling one included; 0 = one for each core. Idle threads
    spin for 50 microseconds, then sleep. In a process that was forked the calling thread computes alone. Error: there
    are more than 256 or none to be had."""

    def __init__(self, threads: int = 0) -> None:
        handle = c_void_p()
        # Before anything can fail: __del__ looks at it.
        self._handle: int | None = None
        self._lock = threading.Lock()
        self._calls = 0
        self._closed = False
        self._lib = library()
        refuse(self._lib.fa_pool_create(threads, byref(handle)))
        self._handle = handle.value
        _all.add(self)
        assert handle.value is not None
        fields = PoolFields.from_address(handle.value)
        self.width: int = fields.width(fields.ctx)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Ends the threads, when the calls that use them are over; later calls are refused."""
        with self._lock:
            self._closed = True
            self._end()

    def enter(self) -> int:
        """Address of the fa_pool, for one call; leave() follows."""
        with self._lock:
            if self._closed or self._handle is None:
                raise ValueError("the pool is closed")
            self._calls += 1
            return self._handle

    def leave(self) -> None:
        with self._lock:
            self._calls -= 1
            self._end()

    def _end(self) -> None:
        if self._closed and self._calls == 0 and self._handle is not None:
            handle, self._handle = self._handle, None
            self._lib.fa_pool_destroy(handle)


class ExecutorPool:
    """Threads of the caller's: an executor of concurrent.futures (or what has its submit()) and how many of its threads
    may compute at the same time, the calling one included. What the executor has not begun when the calling thread is
    done is cancelled, so that calls may be made on threads of the executor itself. Each share of work costs what
    submit() costs, some ten microseconds: Pool is for short calls."""

    def __init__(self, executor: Executor, width: int) -> None:
        if not 1 <= width <= 256:
            raise ValueError(f"a pool of {width} threads: not 1 to 256")
        self.width = width
        self._executor = executor
        # They must live as long as the structure.
        self._functions = Width(lambda _: width), ParallelFor(self._parallel_for)
        self._fields = PoolFields(sizeof(PoolFields), None, *self._functions)

    def _parallel_for(self, _: Any, n: int, task: Any, arg: Any) -> None:
        # The library makes up for calls that are left out, and no exception may leave this
        # function.
        begun: list[Future[Any]] = []
        try:
            for i in range(1, n):
                begun.append(self._executor.submit(task, arg, i))
        except BaseException:  # noqa: BLE001
            pass
        if n > 0:
            task(arg, 0)
        for future in begun:
            if not future.cancel():
                try:
                    future.exception()
                except BaseException:  # noqa: BLE001
                    pass

    def enter(self) -> int:
        return ctypes.addressof(self._fields)

    def leave(self) -> None:
        pass


# None is what set_threads() says; a number is threads of the library's own, of a pool that all
# calls share.
Threads: TypeAlias = Union[int, Pool, ExecutorPool, None]

_lock = threading.Lock()
_all: weakref.WeakSet[Pool] = weakref.WeakSet()
_shared: dict[int, Pool] = {}
_default: int | Pool | ExecutorPool = 1


def set_threads(threads: Threads) -> None:
    """What computes in calls that name no threads: 1 (at first) = the calling one alone, 0 = one for each core, another
    number, or a Pool or ExecutorPool."""
    global _default
    # Refuses what no call could use.
    pool_of(threads)
    _default = 1 if threads is None else threads


def pool_of(threads: Threads) -> Pool | ExecutorPool | None:
    """The pool of a call; None = the calling thread."""
    if threads is None:
        threads = _default
    if not isinstance(threads, int):
        return threads
    if threads == 1:
        return None
    with _lock:
        pool = _shared.get(threads)
        if pool is None:
            pool = _shared[threads] = Pool(threads)
        return pool


def _after_fork() -> None:
    """A child has none of its parent's threads, and none of the locks that they had."""
    global _lock
    _lock = threading.Lock()
    for pool in _all:
        pool._lock = threading.Lock()
    _abandoned.extend(_shared.values())
    _shared.clear()


# Pools of a parent, which nobody ends: calls of other threads of the parent's count for ever.
_abandoned: list[Pool] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
