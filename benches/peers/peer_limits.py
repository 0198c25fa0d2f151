"""No peer: what the machine can do, sampled between the peers' turns."""

import ctypes
import os

import numpy as np

# Held by no cache.
BYTES = 1 << 28


class Peer:
    version = "-"

    def __init__(self, variant, threads):
        self.threads = threads
        lib = ctypes.CDLL(os.environ["PEER_LIMITS"])
        lib.limit.restype = ctypes.c_double
        lib.limit.argtypes = [ctypes.c_int, ctypes.c_double, ctypes.c_void_p, ctypes.c_size_t]
        self.limits = lib.limit
        memory = np.ones(BYTES + 64, np.uint8)
        self.memory = memory[-memory.ctypes.data % 64 :]

    def limit(self, kind):
        """Operations or bytes a second."""
        if kind == "fma":
            return self.limits(self.threads, 0.01, None, 0)
        return self.limits(self.threads, 0.02, self.memory.ctypes.data, BYTES)
