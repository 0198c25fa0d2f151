"""What one writes without a library: two matrix products of OpenBLAS with softmax between them, a head at a time."""

import numpy as np


class Peer:
    def __init__(self, variant, threads):
        from threadpoolctl import threadpool_info

        blas = threadpool_info()[0]
        self.version = f"{np.__version__}, {blas['internal_api']} {blas['version']} ({blas['architecture']})"

    def prepare(self, w, q, k, v):
        q, k, v = (np.array(x) for x in (q, k, v))
        self.out = np.empty((*q.shape[:3], w.dim_v), np.float32)
        keys = [np.array(k) for _ in range(w.copies)]
        values = [np.array(v) for _ in range(w.copies)]
        hidden = w.mask()
        if w.causal and hidden is None:
            hidden = np.triu(np.full((w.len_q, w.len_kv), -np.inf, np.float32), 1)
        return [lambda k=k, v=v: self.attention(w, q, k, v, hidden) for k, v in zip(keys, values, strict=True)]

    def attention(self, w, q, k, v, hidden):
        group = w.heads_q // w.heads_kv
        for b in range(w.batch):
            for h in range(w.heads_kv):
                # The query heads of a kv head are rows of one product.
                rows = q[b, h * group : (h + 1) * group].reshape(-1, w.dim)
                s = (rows * np.float32(w.scale)) @ k[b, h].T
                if hidden is not None:
                    s = s.reshape(group, w.len_q, w.len_kv)
                    s += hidden
                    s = s.reshape(-1, w.len_kv)
                s -= s.max(axis=1, keepdims=True)
                np.exp(s, out=s)
                o = s @ v[b, h]
                o /= s.sum(axis=1, keepdims=True)
                self.out[b, h * group : (h + 1) * group] = o.reshape(group, w.len_q, w.dim_v)

    def output(self):
        return self.out
