#!/usr/bin/env python3
"""Attention over the processes of MPI, on arrays of numpy: a causal prefill in shares, then a token.

    mpirun -n 4 python3 example.py LIBRARY     of libflash_attention_mpi.so, with cpu_attention on PYTHONPATH

Each rank compares its rows with the whole, computed by numpy.
"""

import ctypes
import sys

import numpy as np
from cpu_attention._library import Description, Tensor
from mpi4py import MPI

HEADS_Q, HEADS_KV, DIM = 4, 2, 32


class Run(ctypes.Structure):
    """fa_mpi_run"""

    _fields_ = [("position", ctypes.c_int64), ("length", ctypes.c_int64)]


class Options(ctypes.Structure):
    """fa_mpi_prefill_options"""

    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("mode", ctypes.c_int32),
        ("num_q_runs", ctypes.c_int32),
        ("num_kv_runs", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("q_runs", ctypes.c_void_p),
        ("kv_runs", ctypes.c_void_p),
    ]


class Ranks:
    """An fa_mpi for a communicator of mpi4py."""

    def __init__(self, library: str, comm: MPI.Comm) -> None:
        self.lib = ctypes.CDLL(library)
        for name in ("fa_mpi_words", "fa_mpi_status_string"):
            getattr(self.lib, name).restype = ctypes.c_char_p
        # An MPI_Comm is an integer in MPICH, an address in Open MPI.
        kind = ctypes.c_int if MPI._sizeof(MPI.Comm) == ctypes.sizeof(ctypes.c_int) else ctypes.c_void_p
        self.mpi = ctypes.c_void_p()
        self.check(self.lib.fa_mpi_create(kind.from_address(MPI._addressof(comm)), None, ctypes.byref(self.mpi)))

    def check(self, status: int) -> None:
        if status != 0:
            words = self.lib.fa_mpi_words(self.mpi) or self.lib.fa_mpi_status_string(status)
            raise ValueError(words.decode())

    def words(self) -> str:
        return self.lib.fa_mpi_words(self.mpi).decode()

    def describe(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, out: np.ndarray) -> Description:
        """float32 arrays [token][head][dim], whatever their strides."""
        a = Description()
        self.check(self.lib.fa_attention_init(ctypes.byref(a), ctypes.c_size_t(ctypes.sizeof(a))))
        a.batch, a.heads_q, a.heads_kv = 1, q.shape[1], k.shape[1]
        a.len_q, a.len_kv, a.dim_qk, a.dim_v = len(q), len(k), q.shape[2], v.shape[2]
        for name, x in (("q", q), ("k", k), ("v", v), ("o", out)):
            assert x.dtype == np.float32 and x.strides[2] == 4
            setattr(a, name, Tensor(x.ctypes.data, (0, x.strides[1], x.strides[0])))
        return a

    def prefill(self, q, k, v, runs, causal=True):
        """This rank's rows; runs are (position, length) of its tokens, in their order."""
        out = np.empty((*q.shape[:2], v.shape[2]), np.float32)
        a = self.describe(q, k, v, out)
        if causal:
            a.window_right = 0
        array = (Run * len(runs))(*runs)
        at = ctypes.addressof(array)
        options = Options(ctypes.sizeof(Options), 0, len(runs), len(runs), 0, at, at)
        self.check(self.lib.fa_mpi_prefill(self.mpi, ctypes.byref(a), ctypes.byref(options), None, ctypes.c_size_t(0), None))
        return out

    def decode(self, q, k, v):
        """All ranks have the same q, and k and v in shares; all get the result."""
        out = np.empty((*q.shape[:2], v.shape[2]), np.float32)
        a = self.describe(q, k, v, out)
        self.check(self.lib.fa_mpi_decode(self.mpi, ctypes.byref(a), 0, None, ctypes.c_size_t(0), None))
        return out

    def free(self) -> None:
        self.lib.fa_mpi_free(self.mpi)


def attention(q, k, v, positions):
    """The formula; row i sees keys up to positions[i]."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    k, v = (x.repeat(HEADS_Q // HEADS_KV, axis=1) for x in (k, v))
    scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(DIM)
    scores[:, np.arange(len(k))[None, :] > np.asarray(positions)[:, None]] = -np.inf
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    return np.einsum("hij,jhd->ihd", weights / weights.sum(axis=2, keepdims=True), v)


def main() -> int:
    comm = MPI.COMM_WORLD
    rank, ranks = comm.Get_rank(), comm.Get_size()
    ranks_of = Ranks(sys.argv[1], comm)

    # The whole, which only this example has on every rank.
    tokens = 50 * ranks
    random = np.random.default_rng(1)
    q = random.standard_normal((tokens + 1, HEADS_Q, DIM), np.float32)
    k, v = (random.standard_normal((tokens + 1, HEADS_KV, DIM), np.float32) for _ in range(2))

    # Two pieces a rank, so that causal attention is as much work for each.
    pieces = [rank, 2 * ranks - 1 - rank]
    runs = [(piece * 25, 25) for piece in pieces]
    mine = np.concatenate([np.arange(at, at + length) for at, length in runs])
    out = ranks_of.prefill(q[mine], k[mine], v[mine], runs)
    worst = np.abs(out - attention(q[mine], k[:tokens], v[:tokens], mine)).max()
    if rank == 0:
        print(ranks_of.words())

    # A token more: its key and value are the last rank's.
    if rank == ranks - 1:
        mine = np.append(mine, tokens)
    out = ranks_of.decode(q[tokens:], k[mine], v[mine])
    worst = max(worst, np.abs(out - attention(q[tokens:], k, v, [tokens])).max())
    ranks_of.free()
    worst = comm.allreduce(worst, MPI.MAX)
    if rank == 0:
        print(f"{tokens} tokens and one on {ranks} ranks: off by {worst:.1e} at most")
    return 0 if worst < 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
