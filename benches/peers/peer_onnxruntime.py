"""ONNX Runtime's MultiHeadAttention (mha) and GroupQueryAttention (gqa), buffers bound beforehand."""

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper
from stored import i8
from worker import Unsupported

TYPES = {
    "f32": (TensorProto.FLOAT, np.float32),
    "f16": (TensorProto.FLOAT16, np.float16),
    # The cache alone; everything else is f32.
    "i8": (TensorProto.FLOAT, np.float32),
}


class Peer:
    version = ort.__version__

    def __init__(self, variant, threads):
        self.operator, dtype = variant.split("-")
        self.type, self.numpy = TYPES[dtype]
        self.quantised = dtype == "i8"
        self.threads = threads

    def session(self, node, inputs, outputs):
        infos = [[helper.make_tensor_value_info(name, t, None) for name, t in x] for x in (inputs, outputs)]
        graph = helper.make_graph([node], "attention", *infos)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def rows(self, x):
        """[batch][token][head · dim]"""
        return np.ascontiguousarray(x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)).astype(self.numpy)

    def prepare(self, w, q, k, v):
        if w.group in ("masked", "latent"):
            raise Unsupported("masks and latent attention are compared with ggml and PyTorch")
        self.shape = w.batch, w.len_q, w.heads_q, w.dim
        return (self.mha if self.operator == "mha" else self.gqa)(w, q, k, v)

    def mha(self, w, q, k, v):
        if w.heads_q != w.heads_kv:
            raise Unsupported("MultiHeadAttention has no grouped heads")
        node = helper.make_node(
            "MultiHeadAttention", ["q", "k", "v"], ["o"], domain="com.microsoft",
            num_heads=w.heads_q, scale=w.scale, unidirectional=int(w.causal),
        )
        session = self.session(node, [(n, self.type) for n in "qkv"], [("o", self.type)])
        return [self.call(session, {"q": self.rows(q), "k": self.rows(k), "v": self.rows(v)}, {}, w)]

    def gqa(self, w, q, k, v):
        if not w.causal and w.len_q > 1:
            raise Unsupported("GroupQueryAttention is causal")
        past = w.len_q < w.len_kv
        if self.quantised and not past:
            raise Unsupported("8-bit caches in decode only: six times as slow as f32 elsewhere")
        names = ["q", "k", "v", *(["past_k", "past_v"] if past else ["", ""]), "last", "total"]
        outputs = ["o", "present_k", "present_v"]
        attributes = {"num_heads": w.heads_q, "kv_num_heads": w.heads_kv, "scale": w.scale}
        cache = self.type
        if self.quantised:
            names += [""] * 5 + ["scale_k", "scale_v"]
            attributes |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
            cache = TensorProto.INT8
        node = helper.make_node("GroupQueryAttention", names, outputs, domain="com.microsoft", **attributes)
        types = dict.fromkeys(names + outputs, self.type)
        types |= dict.fromkeys(("past_k", "past_v", "present_k", "present_v"), cache)
        types |= dict.fromkeys(("last", "total"), TensorProto.INT32)
        session = self.session(node, [(n, types[n]) for n in names if n], [(n, types[n]) for n in outputs])
        calls = []
        for _ in range(w.copies):
            new = {"q": self.rows(q), "k": self.rows(k[:, :, -w.len_q :]), "v": self.rows(v[:, :, -w.len_q :])}
            new["last"] = np.full(w.batch, w.len_kv - 1, np.int32)
            new["total"] = np.array(w.len_kv, np.int32)
            shared = {}
            # The operator puts the new keys where the last ones are already.
            for name, x in (("k", k), ("v", v)) if past else ():
                if self.quantised:
                    shared[name], new["scale_" + name] = i8(np.array(x), (0, 2))
                else:
                    shared[name] = np.array(x).astype(self.numpy)
            calls.append(self.call(session, new, shared, w))
        return calls

    def call(self, session, inputs, shared, w):
        binding = session.io_binding()
        kept = []

        def value(x):
            kept.append(x)
            return ort.OrtValue.ortvalue_from_numpy(x)

        for name, x in inputs.items():
            binding.bind_ortvalue_input(name, value(x))
        for name, x in shared.items():
            both = value(x)
            binding.bind_ortvalue_input("past_" + name, both)
            binding.bind_ortvalue_output("present_" + name, both)
        out = value(np.zeros((w.batch, w.len_q, w.heads_q * w.dim), self.numpy))
        binding.bind_ortvalue_output("o", out)
        if self.operator == "gqa" and not shared:
            for name in "kv":
                empty = np.empty((w.batch, w.heads_kv, w.len_kv, w.dim), self.numpy)
                binding.bind_ortvalue_output("present_" + name, value(empty))

        def run():
            session.run_with_iobinding(binding)
            self.out = out

        return run

    def output(self):
        return self.out.numpy().reshape(self.shape).transpose(0, 2, 1, 3).astype(np.float32)
