"""OpenVINO's ScaledDotProductAttention; `state`: fused with its cache of K and V, as its language models use it."""

import ml_dtypes
import numpy as np
import openvino as ov
from openvino import opset13 as op
from openvino.op.util import Variable, VariableInfo
from worker import Unsupported


class Peer:
    version = ov.__version__

    def __init__(self, variant, threads):
        *state, self.dtype = variant.split("-")
        self.state = bool(state)
        self.core = ov.Core()
        self.config = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "bf16" if self.dtype == "bf16" else "f32",
        }
        if self.state:
            self.config["KV_CACHE_PRECISION"] = self.dtype

    def prepare(self, w, q, k, v):
        if w.group in ("masked", "latent"):
            raise Unsupported("masks and latent attention are compared with ggml and PyTorch")
        self.shape = q.shape
        if self.state:
            return self.with_state(w, q, k, v)
        # The heads of a group are rows of one head: the operator has no groups.
        if w.heads_q > w.heads_kv and w.len_q > 1:
            raise Unsupported("no grouped heads")
        q = np.array(q).reshape(w.batch, w.heads_kv, -1, w.dim)
        dtype = ov.Type.bf16 if self.dtype == "bf16" else ov.Type.f32
        parameters = [op.parameter(list(x.shape), dtype) for x in (q, k, v)]
        node = op.scaled_dot_product_attention(*parameters, causal=w.causal)
        result = op.convert(node, ov.Type.f32) if dtype != ov.Type.f32 else node
        compiled = self.core.compile_model(ov.Model([result], parameters), "CPU", self.config)
        calls = []
        for _ in range(w.copies):
            request = compiled.create_infer_request()
            tensors = [self.tensor(x, dtype) for x in (q, k, v)]
            for i, x in enumerate(tensors):
                request.set_input_tensor(i, x)
            calls.append(lambda request=request, kept=tensors: self.run(request))
        return calls

    def tensor(self, x, dtype):
        if dtype == ov.Type.f32:
            return ov.Tensor(np.array(x), shared_memory=True)
        t = ov.Tensor(dtype, list(x.shape))
        # numpy has no such type: bits.
        t.data.view(np.uint16)[:] = np.array(x).astype(ml_dtypes.bfloat16).view(np.uint16)
        return t

    def with_state(self, w, q, k, v):
        if w.len_q != 1:
            raise Unsupported("for one query")
        model = self.stateful_model(w)
        compiled = self.core.compile_model(model, "CPU", self.config)
        layers = [n.get_rt_info()["layerType"].astype(str) for n in compiled.get_runtime_model().get_ops()]
        if "MatMul" in layers:
            raise Unsupported("cache and attention were not fused")
        calls = []
        for _ in range(w.copies):
            request = compiled.create_infer_request()
            # The last key is the new one. Each call appends one more: a few hundredths of a per
            # cent.
            for state in request.query_state():
                x = k if state.name.startswith("k") else v
                state.state = ov.Tensor(np.ascontiguousarray(x[:, :, :-1]))
            new = [np.array(q), np.array(k[:, :, -1:]), np.array(v[:, :, -1:]), np.arange(w.batch, dtype=np.int32)]
            tensors = [ov.Tensor(x, shared_memory=True) for x in new]
            for i, x in enumerate(tensors):
                request.set_input_tensor(i, x)
            calls.append(lambda request=request, kept=tensors: self.run(request))
        return calls

    def stateful_model(self, w):
        """The graph that the CPU plugin looks for."""
        f32, heads = ov.Type.f32, w.heads_kv
        q = op.parameter(ov.PartialShape([-1, w.heads_q, -1, w.dim]), f32)
        new = [op.parameter(ov.PartialShape([-1, heads, -1, w.dim]), f32) for _ in "kv"]
        beam = op.parameter(ov.PartialShape([-1]), ov.Type.i32)
        axis = op.constant(np.int32(0))
        stored, sinks = [], []
        for name, x in zip("kv", new, strict=True):
            info = VariableInfo()
            info.data_shape, info.data_type, info.variable_id = ov.PartialShape([-1, heads, -1, w.dim]), f32, name
            variable = Variable(info)
            empty = op.broadcast(op.constant(np.float32(0)), op.constant(np.array([w.batch, heads, 0, w.dim], np.int64)))
            past = op.gather(op.read_value(empty, variable), beam, axis)
            all_ = op.concat([past, x], 2)
            sinks.append(op.assign(all_, variable))
            if w.heads_q > heads:
                group = w.heads_q // heads
                lifted = op.unsqueeze(all_, op.constant(np.int32(2)))
                lifted = op.multiply(lifted, op.constant(np.ones((1, 1, group, 1, 1), np.float32)))
                all_ = op.reshape(lifted, op.constant(np.array([0, w.heads_q, -1, w.dim], np.int64)), True)
            stored.append(all_)
        out = op.scaled_dot_product_attention(q, *stored, causal=False)
        return ov.Model([op.result(out)], sinks, [q, *new, beam])

    def run(self, request):
        request.infer()
        self.last = request

    def output(self):
        return np.array(self.last.get_output_tensor(0).data).reshape(self.shape).astype(np.float32)
