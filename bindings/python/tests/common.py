"""What the tests share: attention in float64, and what stored numbers are."""

import numpy as np

import cpu_attention as fa


def formula(q, k, v, mask=None, causal=False, scale=None):
    """Attention in float64; key i of a causal row i is the last one that it sees."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    k, v = (x.repeat(q.shape[-3] // x.shape[-3], axis=-3) for x in (k, v))
    s = q @ k.swapaxes(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        mask = np.tri(*s.shape[-2:], dtype=bool)
    if mask is not None:
        s = s + (mask.astype(np.float64) if mask.dtype != bool else np.where(mask, 0, -np.inf))
    top = s.max(-1, keepdims=True)
    e = np.exp(s - np.where(np.isneginf(top), 0, top))
    total = e.sum(-1, keepdims=True)
    return e / np.where(total == 0, 1, total) @ v


def decoded(x):
    """What Blocks stand for, by the formats of ggml."""
    table = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
    size = fa.BLOCK_TYPES[x.type][1]
    b = x.bytes.reshape(*x.bytes.shape[:-1], -1, size)
    half = lambda at: b[..., at : at + 2].copy().view(np.float16).astype(np.float64)  # noqa: E731
    code = np.concatenate((b[..., -16:] & 15, b[..., -16:] >> 4), -1).astype(int)
    if x.type.startswith("q5"):
        code += np.unpackbits(b[..., -20:-16], axis=-1, bitorder="little").astype(int) << 4
    d = half(0)
    match x.type:
        case "q8_0":
            numbers = d * b[..., 2:].view(np.int8)
        case "q4_0" | "q5_0":
            numbers = d * (code - (8 if x.type == "q4_0" else 16))
        case "iq4_nl":
            numbers = d * table[code]
        case _:
            numbers = d * code + half(2)
    return numbers.reshape(x.shape)


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(dtype)


def float8(stored):
    """Numbers of 8 bits as float32, by sign, exponent and mantissa."""
    digits, bias = (3, 7) if stored.dtype == fa.float8_e4m3fn else (2, 15)
    bits = stored.view(np.uint8).astype(np.int32)
    exponent, mantissa = (bits & 127) >> digits, bits & (1 << digits) - 1
    magnitude = np.where(exponent == 0, mantissa, mantissa + (1 << digits)) * 2.0 ** (
        np.maximum(exponent, 1) - bias - digits
    )
    return np.where(bits < 128, magnitude, -magnitude).astype(np.float32)


def exact(q, k, v, seen=True, bias=0.0, scale=None, softcap=0.0, sinks=None):
    """Output, log-sum-exp and probabilities in float64, of arrays of 4 axes; seen, bias and sinks are broadcast to
    [batch][heads_q][len_q][len_kv]."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    k, v = (x.repeat(q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    s = q @ k.swapaxes(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    s = softcap * np.tanh(s / softcap) if softcap else s
    s = np.where(seen, s + bias, -np.inf)
    sink = np.full(q.shape[1], -np.inf) if sinks is None else np.asarray(sinks, np.float64)
    sink = np.broadcast_to(sink[:, None, None], (*s.shape[:3], 1))
    top = np.maximum(s.max(-1, keepdims=True, initial=-np.inf), sink)
    top = np.where(np.isneginf(top), 0, top)
    e = np.exp(s - top)
    total = e.sum(-1, keepdims=True) + np.exp(sink - top)
    weights = e / np.where(total == 0, 1, total)
    with np.errstate(divide="ignore"):
        return weights @ v, (top + np.log(total))[..., 0], weights
