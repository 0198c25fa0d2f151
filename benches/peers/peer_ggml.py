"""ggml's flash_attn_ext: queries in f32, K and V in the type that is named."""

import ctypes
import os
from ctypes import POINTER, Structure, c_bool, c_float, c_int, c_int64, c_size_t, c_void_p

import numpy as np

# enum ggml_type
TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 8, "bf16": 30}


class InitParams(Structure):
    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


class Plan(Structure):
    _fields_ = [
        ("work_size", c_size_t),
        ("work_data", c_void_p),
        ("n_threads", c_int),
        ("threadpool", c_void_p),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        ("use_ref", c_bool),
    ]


def load():
    folder = os.environ["PEER_GGML"]
    base = ctypes.CDLL(os.path.join(folder, "libggml-base.so"), ctypes.RTLD_GLOBAL)
    cpu = ctypes.CDLL(os.path.join(folder, "libggml-cpu.so"), ctypes.RTLD_GLOBAL)
    of = c_void_p
    for lib, name, result, arguments in (
        (base, "ggml_version", ctypes.c_char_p, []),
        (base, "ggml_init", of, [InitParams]),
        (base, "ggml_free", None, [of]),
        (base, "ggml_new_tensor_4d", of, [of, c_int, c_int64, c_int64, c_int64, c_int64]),
        (base, "ggml_get_data", of, [of]),
        (base, "ggml_row_size", c_size_t, [c_int, c_int64]),
        (base, "ggml_view_4d", of, [of, of, *4 * [c_int64], *4 * [c_size_t]]),
        (base, "ggml_quantize_chunk", c_size_t, [c_int, of, of, c_int64, c_int64, c_int64, of]),
        (base, "ggml_flash_attn_ext", of, [of, of, of, of, of, c_float, c_float, c_float]),
        (base, "ggml_new_graph", of, [of]),
        (base, "ggml_build_forward_expand", None, [of, of]),
        (cpu, "ggml_cpu_init", None, []),
        (cpu, "ggml_graph_plan", Plan, [of, c_int, of]),
        (cpu, "ggml_graph_compute", c_int, [of, POINTER(Plan)]),
    ):
        f = getattr(lib, name)
        f.restype, f.argtypes = result, arguments
        setattr(load, name, f)
    load.ggml_cpu_init()
    return load


class Peer:
    def __init__(self, variant, threads):
        self.lib, self.type, self.threads = load(), TYPES[variant], threads
        self.version = self.lib.ggml_version().decode()
        self.context = None

    def prepare(self, w, q, k, v):
        if self.context:
            self.lib.ggml_free(self.context)
        sizes = 4 * (2 * q.size + w.copies * (k.size + v.size)) + 2 * w.len_q * w.len_kv
        self.context = self.lib.ggml_init(InitParams(sizes + (64 << 20), None, False))
        queries = self.tensor(q, 0)
        mask = w.mask()
        if mask is not None:
            mask = self.tensor(mask[None, None], 1)
        elif w.causal:
            mask = self.tensor(np.triu(np.full((1, 1, w.len_q, w.len_kv), -np.inf, np.float32), 1), 1)
        self.shape = w.batch, w.len_q, w.heads_q, w.dim_v
        return [self.call(w, queries, *self.cache(w, k, v), mask) for _ in range(w.copies)]

    def cache(self, w, k, v):
        keys = self.tensor(k, self.type)
        if not w.latent:
            return keys, self.tensor(v, self.type)
        # A part of each row of K.
        row = self.lib.ggml_row_size(self.type, w.dim)
        sizes = w.dim_v, w.len_kv, w.heads_kv, w.batch
        steps = row, row * w.len_kv, row * w.len_kv * w.heads_kv
        return keys, self.lib.ggml_view_4d(self.context, keys, *sizes, *steps, 0)

    def tensor(self, x, dtype):
        t = self.lib.ggml_new_tensor_4d(self.context, dtype, *x.shape[::-1])
        data = self.lib.ggml_get_data(t)
        x = np.ascontiguousarray(x)
        if dtype == 0:
            ctypes.memmove(data, x.ctypes.data, x.nbytes)
        else:
            rows = x.size // x.shape[-1]
            self.lib.ggml_quantize_chunk(dtype, x.ctypes.data, data, 0, rows, x.shape[-1], None)
        return t

    def call(self, w, q, k, v, mask):
        out = self.lib.ggml_flash_attn_ext(self.context, q, k, v, mask, w.scale, 0.0, 0.0)
        graph = self.lib.ggml_new_graph(self.context)
        self.lib.ggml_build_forward_expand(graph, out)
        plan = self.lib.ggml_graph_plan(graph, self.threads, None)
        work = np.empty(plan.work_size + 64, np.uint8)
        plan.work_data = work.ctypes.data

        def run(kept=work):
            status = self.lib.ggml_graph_compute(graph, ctypes.byref(plan))
            assert status == 0, f"ggml_status {status}"
            self.out = out

        return run

    def output(self):
        data = self.lib.ggml_get_data(self.out)
        x = np.ctypeslib.as_array(ctypes.cast(data, POINTER(c_float)), self.shape)
        return x.transpose(0, 2, 1, 3).copy()
