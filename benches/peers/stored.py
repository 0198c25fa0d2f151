"""Types of fewer bits."""

import numpy as np


def q8_0(x):
    """ggml's blocks along the last axis: a scale in f16, 32 integers."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    out = np.empty((*blocks.shape[:-1], 34), np.uint8)
    out[..., :2] = scale.astype(np.float16).view(np.uint8)
    out[..., 2:] = np.rint(blocks * inverse).astype(np.int8).view(np.uint8)
    return out.reshape(*x.shape[:-1], -1)


def q4(x, has_minimum):
    """ggml's blocks of 32 codes of 4 bits: a scale in f16, with a minimum (q4_1) or without (q4_0)."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    if has_minimum:
        least = blocks.min(axis=-1, keepdims=True)
        scale = (blocks.max(axis=-1, keepdims=True) - least) / np.float32(15)
        half = np.float32(0.5)
    else:
        at = np.abs(blocks).argmax(axis=-1, keepdims=True)
        scale = np.take_along_axis(blocks, at, axis=-1) / np.float32(-8)
        least, half = np.float32(0), np.float32(8.5)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    codes = np.minimum(15, (blocks - least) * inverse + half).astype(np.uint8)
    parts = [scale.astype(np.float16).view(np.uint8)]
    if has_minimum:
        parts.append(least.astype(np.float16).view(np.uint8))
    parts.append(codes[..., :16] | codes[..., 16:] << 4)
    return np.concatenate(parts, axis=-1).reshape(*x.shape[:-1], -1)


def i8(x, axes):
    """Integers, and the scale that all those along the axes share."""
    scale = np.abs(x).max(axis=axes, keepdims=True) / np.float32(127)
    return np.rint(x / scale).astype(np.int8), scale.astype(np.float32)
