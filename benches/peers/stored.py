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


def i8(x, axes):
    """Integers, and the scale that all those along the axes share."""
    scale = np.abs(x).max(axis=axes, keepdims=True) / np.float32(127)
    return np.rint(x / scale).astype(np.int8), scale.astype(np.float32)
