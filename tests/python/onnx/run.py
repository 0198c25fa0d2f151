#!/usr/bin/env python3
"""Runs the ONNX project's own tests of the operator Attention (opsets 23 to 25) through the library.

    run.py LIB.so
"""

import sys
import warnings
from pathlib import Path

import numpy as np
from onnx.backend.test.case.node import collect_testcases
from onnx.helper import get_attribute_value

sys.path.insert(0, str(Path(__file__).parents[3] / "bindings" / "python"))
import cpu_attention as fa  # noqa: E402

# Relative and absolute, by the type of an output. Those of 16 bits are what the package's own
# runner allows (onnx/backend/test/runner: 1e-3, but 2^-6 for bfloat16; and 1e-7). There the package
# rounds every step to 16 bits and so is off itself by up to an ulp (2^-10, 2^-7), whereas the
# library rounds once, the output: where both are right, they are an ulp apart. 1e-3 is a little
# more than that, 2^-6 twice as much.
TOLERANCES = {"float32": (1e-3, 1e-5), "float16": (1e-3, 1e-7), "bfloat16": (2**-6, 1e-7)}
# Lengths and boolean masks.
OTHER_TYPES = ("int64", "bool")
# Fewer means that the package has moved them.
CASES_AT_LEAST = 90


def heads_first(x, heads):
    """(batch, tokens, heads * dim) as (batch, heads, tokens, dim), without a copy."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def attention(
    Q,
    K,
    V,
    attn_mask=None,
    past_key=None,
    past_value=None,
    nonpad_kv_seqlen=None,
    q_num_heads=None,
    kv_num_heads=None,
    scale=0.0,
    softcap=0.0,
    is_causal=0,
    left_window_size=-1,
    right_window_size=-1,
    qk_matmul_output_mode=0,
    softmax_precision=None,  # of no concern: the library computes in f32
):
    """The operator; all its outputs by name."""
    packed = Q.ndim == 3
    if packed:
        Q, K, V = heads_first(Q, q_num_heads), heads_first(K, kv_num_heads), heads_first(V, kv_num_heads)
    batch, heads, len_q, _ = Q.shape

    # Where query 0 is: behind the past, or such that the last query is on the last key in use.
    q_pos = 0
    if past_key is not None:
        q_pos = past_key.shape[2]
        K, V = np.concatenate((past_key, K), axis=2), np.concatenate((past_value, V), axis=2)
    elif nonpad_kv_seqlen is not None:
        q_pos = fa.POS_END
    if is_causal:
        right_window_size = 0

    # Keys beyond the mask's end are not attended.
    len_kv = K.shape[2] if attn_mask is None else attn_mask.shape[-1]
    mask = None if attn_mask is None else fa.usable(attn_mask)
    Y = np.empty((batch, len_q, heads, V.shape[3]), Q.dtype)
    lse = np.empty((batch, heads, len_q), np.float32)
    fa.attention(
        *(fa.usable(x) for x in (Q, K[:, :, :len_kv], V[:, :, :len_kv])),
        scale=scale or None,
        softcap=softcap,
        q_pos=q_pos,
        window_left=left_window_size,
        window_right=right_window_size,
        mask=mask,
        kv_lens=nonpad_kv_seqlen,
        out=Y.transpose(0, 2, 1, 3),
        lse=lse,
    )

    def scores():
        """Debug output, which the library does not have: only its log-sum-exp takes part."""
        q, k = Q.astype(np.float32), K.astype(np.float32)
        s = q @ k.repeat(heads // K.shape[1], axis=1).swapaxes(2, 3) * (scale or Q.shape[3] ** -0.5)
        if softcap and qk_matmul_output_mode >= 1:
            s = softcap * np.tanh(s / softcap)
        if qk_matmul_output_mode >= 2:
            keys = np.arange(s.shape[3])
            used = np.full(batch, s.shape[3]) if nonpad_kv_seqlen is None else nonpad_kv_seqlen
            used = used.reshape(batch, 1, 1, 1)
            first = used - len_q if q_pos == fa.POS_END else q_pos
            ahead = keys - (first + np.arange(len_q)[:, None])
            seen = (keys < used) & (keys < len_kv)
            if left_window_size >= 0:
                seen = seen & (ahead >= -left_window_size)
            if right_window_size >= 0:
                seen = seen & (ahead <= right_window_size)
            if attn_mask is not None:
                bias = attn_mask if attn_mask.dtype != bool else np.where(attn_mask, 0, -np.inf)
                s[..., :len_kv] += bias
            s = np.where(seen, s, -np.inf)
        if qk_matmul_output_mode == 3:
            # A row that sees nothing has a log-sum-exp of -infinity, and is to be zeros.
            s = np.exp(s - np.where(np.isneginf(lse), 0, lse)[..., None])
        return s.astype(Q.dtype)

    return {
        "Y": Y.reshape(batch, len_q, -1) if packed else Y.transpose(0, 2, 1, 3),
        "present_key": K,
        "present_value": V,
        "qk_matmul_output": scores(),
    }


def failure(case):
    """None, or why the case fails."""
    node = case.model.graph.node[0]
    ((inputs, outputs),) = case.data_sets
    arguments = dict(zip(filter(None, node.input), inputs, strict=True))
    arguments |= {a.name: get_attribute_value(a) for a in node.attribute}
    try:
        got = attention(**arguments)
        for name, want in zip(filter(None, node.output), outputs, strict=True):
            if got[name].dtype != want.dtype:
                return f"{name} is {got[name].dtype} instead of {want.dtype}"
            # numpy's comparison does not know bfloat16; f32 has all its values.
            ours, theirs = got[name].astype(np.float32), want.astype(np.float32)
            rtol, atol = TOLERANCES[want.dtype.name]
            np.testing.assert_allclose(ours, theirs, rtol, atol, err_msg=name, strict=True)
    except fa.Error as e:
        return f"status {e.status}: {e}"
    except AssertionError as e:
        return str(e).strip()
    return None


def misread_scales():
    """None, or what is wrong with int8 and its scales, which the operator does not have: the same numbers as f32
    must give the same result, but for probabilities that the kernels for integers round."""
    rng = np.random.default_rng(0)
    shape = 2, 3, 20, 24
    for groups in (1, 1, 1, 1), (2, 1, 1, 1), (1, 3, 20, 1), (1, 3, 5, 1), (2, 3, 5, 3), (1, 1, 1, 24):
        tokens, dims = shape[2] // groups[2], shape[3] // groups[3]
        stored, plain = {}, {}
        for name in "qkv":
            x = rng.integers(-128, 128, shape, np.int8)
            scale = rng.uniform(0.005, 0.015, groups).astype(np.float32)
            zero = None if name == "v" else rng.uniform(-30, 30, groups).astype(np.float32)
            stored |= {name: x, f"{name}_scales": fa.Scales(scale, zero, tokens, dims)}
            if zero is None:
                zero = np.zeros_like(scale)
            scale, zero = (a.repeat(tokens, 2).repeat(dims, 3) for a in (scale, zero))
            plain[name] = (x - zero) * scale
        got, want = fa.attention(**stored), fa.attention(**plain)
        # The bound of docs/numerics.md for 16-bit probabilities.
        if not np.linalg.norm(got - want) <= 5e-4 * np.linalg.norm(want):
            return f"scales {groups}: off by {np.abs(got - want).max()}"
    return None


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    fa.load(sys.argv[1])

    # Inputs are drawn when cases are collected; the package's other operators warn meanwhile.
    np.random.seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases("Attention")
    # Each case comes a second time, as a graph of simpler operators.
    cases = [c for c in cases if [n.op_type for n in c.model.graph.node] == ["Attention"]]

    passed = failed = skipped = 0
    for case in cases:
        if strange := {x.dtype.name for x in case.data_sets[0][0]} - {*TOLERANCES, *OTHER_TYPES}:
            skipped += 1
            print(f"skipped {case.name}: {', '.join(strange)}")
        elif why := failure(case):
            failed += 1
            print(f"FAILED  {case.name}: {' '.join(why.split())}")
        else:
            passed += 1
    print(f"onnx: {passed} passed, {failed} failed, {skipped} skipped")
    if why := misread_scales():
        sys.exit(f"int8 through the adapter: {why}")
    if len(cases) < CASES_AT_LEAST:
        sys.exit(f"only {len(cases)} cases found, expected at least {CASES_AT_LEAST}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
