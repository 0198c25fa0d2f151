"""What is timed."""

from typing import NamedTuple

import numpy as np


class Workload(NamedTuple):
    name: str
    group: str
    batch: int
    heads_q: int
    heads_kv: int
    len_q: int
    len_kv: int
    dim: int
    causal: bool
    # In the group "masked", a mask says what is seen: causal, or these many keys up to a query's
    # own.
    window: int = 0
    # In the group "latent", elements of a row of V, which are the first ones of the row of K.
    latent: int = 0

    @property
    def dim_v(self):
        return self.latent or self.dim

    @property
    def scale(self):
        return self.dim**-0.5

    def seen(self, i):
        """The keys that query i sees, as a range."""
        end = self.len_kv - self.len_q + i + 1 if self.causal else self.len_kv
        return max(0, end - self.window) if self.window else 0, end

    def mask(self):
        """None, or what is added to the scores, for peers that are to be told by that alone."""
        if self.group != "masked":
            return None
        mask = np.full((self.len_q, self.len_kv), -np.inf, np.float32)
        for i in range(self.len_q):
            mask[i, slice(*self.seen(i))] = 0
        return mask

    @property
    def pairs(self):
        """Those of a query and a key that it sees."""
        return sum(end - start for start, end in map(self.seen, range(self.len_q)))

    @property
    def flops(self):
        """Of the visible pairs, whatever else is computed."""
        return 2 * self.batch * self.heads_q * self.pairs * (self.dim + self.dim_v)

    @property
    def kv_elements(self):
        """Of memory: V may be a part of K."""
        return (1 if self.latent else 2) * self.batch * self.heads_kv * self.len_kv * self.dim

    @property
    def copies(self):
        """As many of K and V that no cache holds those (256 MiB in f32) when their turn comes again."""
        return max(1, -(-(1 << 28) // (4 * self.kv_elements))) if self.group == "decode" else 1


def prefill(length, dim, causal, heads=8, heads_kv=None, group="prefill"):
    heads_kv = heads_kv or heads
    heads_name = f"{heads}" if heads == heads_kv else f"{heads}/{heads_kv}"
    name = f"{heads_name} x {length} x {dim}" + (", causal" if causal else "")
    return Workload(name, group, 1, heads, heads_kv, length, length, dim, causal)


def encoder(batch, length, dim):
    return Workload(f"{batch} x 12 x {length} x {dim}", "encoder", batch, 12, 12, length, length, dim, False)


def decode(length, group="decode"):
    return Workload(f"1 query, 32/8 heads, {length} keys", group, 1, 32, 8, 1, length, 128, False)


def few(len_q):
    """Speculation, prediction of several tokens, small chunks."""
    return Workload(f"{len_q} queries, 32/8 heads, 8192 keys", "few", 1, 32, 8, len_q, 8192, 128, False)


def latent(heads, length):
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): one kv head, V is a part of K."""
    name = f"1 query, {heads}/1 heads, {length} keys"
    return Workload(name, "latent", 1, heads, 1, 1, length, 576, False, 0, 512)


def masked(len_q, len_kv, window=0):
    what = f"window of {window}" if window else "causal"
    name = f"{len_q} queries, 8/2 heads, {len_kv} keys, {what}"
    return Workload(name, "masked", 1, 8, 2, len_q, len_kv, 128, True, window)


ALL = [
    *(prefill(length, dim, causal) for causal in (False, True) for dim in (64, 128) for length in (512, 2048, 8192)),
    prefill(2048, 128, True, 32, 8, "gqa"),
    encoder(8, 384, 64),
    encoder(32, 128, 32),
    decode(4096),
    decode(32768),
    prefill(16, 64, False, 1, group="small"),
    prefill(12, 64, False, 12, group="small"),
    decode(16, "small"),
    *(few(len_q) for len_q in (4, 8, 16)),
    *(latent(heads, length) for heads in (16, 128) for length in (4096, 32768)),
    masked(1, 32768, 512),
    masked(128, 8192, 512),
    masked(2048, 2048),
]
# Time against length, one head.
LENGTHS = [prefill(1 << n, 64, False, 1, group="length") for n in range(8, 16)]
# In processes of their own.
MEMORY = [w for w in LENGTHS if w.len_q in (512, 2048, 8192, 32768)]
# What a first look needs.
QUICK = {
    "8 x 512 x 64",
    "8 x 2048 x 128",
    "8 x 2048 x 64, causal",
    "8 x 12 x 384 x 64",
    "1 query, 32/8 heads, 4096 keys",
    "12 x 12 x 64",
    "128 queries, 8/2 heads, 8192 keys, window of 512",
}


def chosen(name, threads):
    """Those that are timed with so many threads."""
    if name == "quick":
        return [w for w in ALL if w.name in QUICK]
    if name != "all":
        return [w for w in ALL if w.group == name]
    # Twice as many threads on what is large, but not for minutes.
    return ALL + LENGTHS if threads == 1 else [w for w in ALL if w.len_q < 8192 or w.group == "decode"]
