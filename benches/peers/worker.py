"""A process that computes with one peer, as compare.py asks it to: worker.py MODULE VARIANT THREADS.

Requests and answers are lines of JSON; the peers' own words go to the standard error.
"""

import ctypes
import gc
import importlib
import json
import os
import sys
import time

import numpy as np
from workloads import Workload


class Unsupported(Exception):
    """The peer does not have this."""


def inputs(folder, w):
    """Q, K, V [batch][heads][tokens][dim] in f32, shared by all workers."""
    return [
        np.memmap(os.path.join(folder, name), np.float32, "r", shape=(w.batch, heads, tokens, dim))
        for name, heads, tokens, dim in (
            ("q", w.heads_q, w.len_q, w.dim),
            ("k", w.heads_kv, w.len_kv, w.dim),
            ("v", w.heads_kv, w.len_kv, w.dim_v),
        )
    ]


def status(key):
    """A line of the kernel's on this process, in bytes."""
    with open("/proc/self/status") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key + ":"))


class Worker:
    def __init__(self, peer):
        self.peer = peer
        self.calls = []
        self.next = 0

    def load(self, r):
        """Makes everything that is not timed, and computes once: [milliseconds, rows of the output]."""
        w = Workload(*r["workload"])
        self.calls = []
        gc.collect()
        self.calls = self.peer.prepare(w, *inputs(r["folder"], w))
        self.next = 0
        ms = self.time({"calls": 1})[0] / 1e6
        out = self.peer.output()
        assert out.shape == (w.batch, w.heads_q, w.len_q, w.dim_v), out.shape
        return ms, [out[tuple(at)].astype(np.float64).tolist() for at in r["rows"]]

    def time(self, r):
        """Nanoseconds of so many calls, the copies of K and V in turn."""
        took = []
        for _ in range(r["calls"]):
            call = self.calls[self.next]
            self.next = (self.next + 1) % len(self.calls)
            begin = time.perf_counter_ns()
            call()
            took.append(time.perf_counter_ns() - begin)
        return took

    def peak(self, r):
        """By how many bytes the first call makes the process grow, besides its output."""
        w = Workload(*r["workload"])
        calls = self.peer.prepare(w, *inputs(r["folder"], w))
        gc.collect()
        # What was freed, and what is only mapped, must not hide what the call takes.
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as peak:
            peak.write("5")
        before = status("VmRSS")
        calls[0]()
        grown = status("VmHWM") - before
        return max(0, grown - 4 * w.batch * w.heads_q * w.len_q * w.dim_v)

    def limit(self, r):
        return self.peer.limit(r["kind"])


def main():
    module, variant, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(what):
        answers.write(json.dumps(what) + "\n")

    try:
        peer = importlib.import_module("peer_" + module).Peer(variant, int(threads))
    except Exception as e:
        return answer({"error": f"{type(e).__name__}: {e}"})
    worker = Worker(peer)
    answer({"ok": peer.version})
    for line in sys.stdin:
        r = json.loads(line)
        try:
            answer({"ok": getattr(worker, r["op"])(r)})
        except Unsupported as e:
            answer({"unsupported": str(e)})
        except Exception as e:
            answer({"error": f"{type(e).__name__}: {e}"})


if __name__ == "__main__":
    # Peers raise the class of the module of this name, not of __main__.
    sys.modules["worker"] = sys.modules["__main__"]
    main()
