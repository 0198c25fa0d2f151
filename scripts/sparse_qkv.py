#!/usr/bin/env python3
"""Queries, keys and values of a language model on a text, for examples_c/partitions.c.

    sparse_qkv.py MODEL.gguf TEXT TOKENS LAYER[,LAYER...] PREFIX

Computes the model (of llama's kind, in F32, Q4_1 and Q8_0, with byte-level BPE) in float32 up to the last layer named,
and writes PREFIX-LAYER.qkv for each: numbers of query heads, kv heads, tokens and elements of a head (4 bytes each,
little-endian), then q, k (both with their positions) and v as float32 [head][token][dim].
"""

import re
import struct
import sys
from pathlib import Path

import numpy as np

# Types of GGUF's metadata.
NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
TEXT, LIST = 8, 9
ALIGNMENT = 32


class Model:
    """A GGUF file: its metadata, and tensors as float32."""

    def __init__(self, path):
        self.data = np.memmap(path, np.uint8, "r")
        self.at = 4
        _, tensors, entries = self.numbers("IQQ")
        self.meta = {}
        for _ in range(entries):
            name = self.text()
            self.meta[name] = self.value(self.numbers("I")[0])
        self.tensors = {}
        for _ in range(tensors):
            name = self.text()
            axes = self.numbers(f"{self.numbers('I')[0]}Q")
            self.tensors[name] = axes[::-1], *self.numbers("IQ")
        self.start = -(-self.at // ALIGNMENT) * ALIGNMENT

    def numbers(self, form):
        size = struct.calcsize("<" + form)
        self.at += size
        return struct.unpack("<" + form, self.data[self.at - size : self.at].tobytes())

    def text(self):
        (size,) = self.numbers("Q")
        self.at += size
        return self.data[self.at - size : self.at].tobytes().decode()

    def value(self, kind):
        if kind == TEXT:
            return self.text()
        if kind == LIST:
            of, count = self.numbers("IQ")
            return [self.value(of) for _ in range(count)]
        return self.numbers(NUMBERS[kind])[0]

    def tensor(self, name):
        shape, kind, at = self.tensors[name]
        count = int(np.prod(shape))
        bytes_of = {0: (1, 4), 3: (32, 20), 8: (32, 34)}
        if kind not in bytes_of:
            sys.exit(f"{name} has type {kind}, which this script does not read.")
        elements, size = bytes_of[kind]
        stored = self.data[self.start + at :][: count // elements * size].reshape(-1, size)

        def half(place):
            return stored[:, place : place + 2].copy().view(np.float16).astype(np.float32)

        if kind == 0:
            return stored.copy().view(np.float32).reshape(shape)
        if kind == 8:
            return (half(0) * stored[:, 2:].view(np.int8)).reshape(shape)
        codes = np.concatenate((stored[:, 4:] & 15, stored[:, 4:] >> 4), 1)
        return (half(0) * codes + half(2)).reshape(shape)


def tokens_of(model, text):
    """Byte-level BPE; digits are words of their own."""
    meta = model.meta
    number = {token: i for i, token in enumerate(meta["tokenizer.ggml.tokens"])}
    rank = {tuple(merge.split(" ")): i for i, merge in enumerate(meta["tokenizer.ggml.merges"])}
    # Bytes that are no printable characters get others, one behind another from 256 on.
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (n for n in range(256) if n not in plain)
    letter = {n: chr(n) for n in plain} | {n: chr(256 + i) for i, n in enumerate(others)}
    words = r"\d|'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+"
    known = {}
    for word in re.findall(words, text):
        if word not in known:
            parts = [letter[byte] for byte in word.encode()]
            while len(parts) > 1:
                best = min(zip(parts, parts[1:], strict=False), key=lambda pair: rank.get(pair, len(rank)))
                if best not in rank:
                    break
                i, merged = 0, []
                while i < len(parts):
                    step = 2 if tuple(parts[i : i + 2]) == best else 1
                    merged.append("".join(parts[i : i + step]))
                    i += step
                parts = merged
            known[word] = [number[part] for part in parts]
        yield from known[word]


def norm(x, weight, epsilon):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


def rotated(x, base):
    """Positions: neighbouring elements are turned together."""
    tokens, dim = x.shape[1:]
    angle = np.arange(tokens)[:, None] * base ** (-np.arange(0, dim, 2) / dim)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    a, b = x[..., 0::2], x[..., 1::2]
    return np.stack((a * cos - b * sin, a * sin + b * cos), -1).reshape(x.shape)


def attention(q, k, v, step=512):
    out = np.empty_like(q)
    of_head = len(q) // len(k)
    for h in range(len(q)):
        keys, values = k[h // of_head], v[h // of_head]
        for first in range(0, q.shape[1], step):
            end = min(first + step, q.shape[1])
            s = q[h, first:end] @ keys[:end].T * np.float32(q.shape[2] ** -0.5)
            s[:, first:][~np.tri(end - first, dtype=bool)] = -np.inf
            s = np.exp(s - s.max(-1, keepdims=True))
            out[h, first:end] = s @ values[:end] / s.sum(-1, keepdims=True)
    return out


def main():
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    model, text = Model(sys.argv[1]), Path(sys.argv[2]).read_text()
    count, layers, prefix = int(sys.argv[3]), sorted(map(int, sys.argv[4].split(","))), sys.argv[5]
    meta = {name.removeprefix("llama."): value for name, value in model.meta.items()}
    heads, heads_kv = meta["attention.head_count"], meta["attention.head_count_kv"]
    epsilon, base = meta["attention.layer_norm_rms_epsilon"], meta["rope.freq_base"]
    tokens = list(tokens_of(model, text))[:count]
    if len(tokens) < count:
        sys.exit(f"The text has {len(tokens)} tokens only.")
    x = model.tensor("token_embd.weight")[tokens]
    for layer in range(layers[-1] + 1):

        def weight(name, layer=layer):
            return model.tensor(f"blk.{layer}.{name}.weight")

        y = norm(x, weight("attn_norm"), epsilon)
        q, k, v = (
            (y @ weight(f"attn_{name}").T).reshape(count, n, -1).transpose(1, 0, 2)
            for name, n in (("q", heads), ("k", heads_kv), ("v", heads_kv))
        )
        q, k, v = rotated(q, base), rotated(k, base), np.ascontiguousarray(v)
        if layer in layers:
            path = Path(f"{prefix}-{layer}.qkv")
            header = np.array([heads, heads_kv, count, q.shape[2]], "<i4").tobytes()
            path.write_bytes(header + b"".join(a.astype("<f4").tobytes() for a in (q, k, v)))
            print(f"{path}: {heads} heads on {heads_kv}, {count} tokens", flush=True)
        if layer == layers[-1]:
            break
        x = x + attention(q, k, v).transpose(1, 0, 2).reshape(count, -1) @ weight("attn_output").T
        y = norm(x, weight("ffn_norm"), epsilon)
        gate = y @ weight("ffn_gate").T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ weight("ffn_up").T)) @ weight("ffn_down").T


if __name__ == "__main__":
    main()
