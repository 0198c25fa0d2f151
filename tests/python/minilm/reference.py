"""The model in float64, a sentence at a time: no batch, no padding, no tiles."""

import math

import numpy as np

HEADS = 12
EPSILON = 1e-12
erf = np.vectorize(math.erf, otypes=[float])


class Reference:
    def __init__(self, tensors):
        self.t = {name: x.astype(np.float64) for name, x in tensors.items()}

    def linear(self, name, x):
        return x @ self.t[name + ".weight"].T + self.t[name + ".bias"]

    def norm(self, name, x):
        x = x - x.mean(1, keepdims=True)
        x /= np.sqrt((x**2).mean(1, keepdims=True) + EPSILON)
        return x * self.t[name + ".weight"] + self.t[name + ".bias"]

    def attention(self, layer, x):
        q, k, v = (
            self.linear(f"{layer}attention.self.{name}", x).reshape(len(x), HEADS, -1).swapaxes(0, 1)
            for name in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[2])
        weights = np.exp(scores - scores.max(2, keepdims=True))
        weights /= weights.sum(2, keepdims=True)
        return (weights @ v).swapaxes(0, 1).reshape(len(x), -1)

    def embedding(self, tokens):
        x = self.t["embeddings.word_embeddings.weight"][tokens]
        x = x + self.t["embeddings.position_embeddings.weight"][: len(tokens)]
        x = self.norm("embeddings.LayerNorm", x + self.t["embeddings.token_type_embeddings.weight"][0])
        for i in range(6):
            layer = f"encoder.layer.{i}."
            x = x + self.linear(layer + "attention.output.dense", self.attention(layer, x))
            x = self.norm(layer + "attention.output.LayerNorm", x)
            inner = self.linear(layer + "intermediate.dense", x)
            inner *= (1 + erf(inner / math.sqrt(2))) / 2
            x = self.norm(layer + "output.LayerNorm", x + self.linear(layer + "output.dense", inner))
        mean = x.mean(0)
        return mean / np.linalg.norm(mean)
