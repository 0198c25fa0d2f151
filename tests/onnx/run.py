#!/usr/bin/env python3
"""Runs the ONNX project's own tests of the operator Attention (opsets 23 to 25) through the library.

    run.py LIB.so
"""

import sys
import warnings

import adapter
import numpy as np
from onnx.backend.test.case.node import collect_testcases
from onnx.helper import get_attribute_value

RTOL, ATOL = 1e-3, 1e-5
# Fewer means that the package has moved them.
CASES_AT_LEAST = 70


def heads_first(x, heads):
    """(batch, tokens, heads * dim) as (batch, heads, tokens, dim), without a copy."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def attention(
    lib,
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
        q_pos = adapter.POS_END
    if is_causal:
        right_window_size = 0

    # Keys beyond the mask's end are not attended.
    len_kv = K.shape[2] if attn_mask is None else attn_mask.shape[-1]
    Y = np.empty((batch, len_q, heads, V.shape[3]), np.float32)
    lse = np.empty((batch, heads, len_q), np.float32)
    adapter.attention(
        lib,
        Q,
        K[:, :, :len_kv],
        V[:, :, :len_kv],
        scale=scale,
        softcap=softcap,
        q_pos=q_pos,
        window_left=left_window_size,
        window_right=right_window_size,
        mask=attn_mask,
        kv_lens=nonpad_kv_seqlen,
        out=Y.transpose(0, 2, 1, 3),
        lse=lse,
    )

    def scores():
        """Debug output, which the library does not have: only its log-sum-exp takes part."""
        s = Q @ K.repeat(heads // K.shape[1], axis=1).swapaxes(2, 3) * (scale or Q.shape[3] ** -0.5)
        if softcap and qk_matmul_output_mode >= 1:
            s = softcap * np.tanh(s / softcap)
        if qk_matmul_output_mode >= 2:
            keys = np.arange(s.shape[3])
            used = np.full(batch, s.shape[3]) if nonpad_kv_seqlen is None else nonpad_kv_seqlen
            used = used.reshape(batch, 1, 1, 1)
            first = used - len_q if q_pos == adapter.POS_END else q_pos
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
        return s.astype(np.float32)

    return {
        "Y": Y.reshape(batch, len_q, -1) if packed else Y.transpose(0, 2, 1, 3),
        "present_key": K,
        "present_value": V,
        "qk_matmul_output": scores(),
    }


def failure(lib, case):
    """None, or why the case fails."""
    node = case.model.graph.node[0]
    ((inputs, outputs),) = case.data_sets
    arguments = dict(zip(filter(None, node.input), inputs, strict=True))
    arguments |= {a.name: get_attribute_value(a) for a in node.attribute}
    try:
        got = attention(lib, **arguments)
        for name, want in zip(filter(None, node.output), outputs, strict=True):
            np.testing.assert_allclose(got[name], want, RTOL, ATOL, err_msg=name, strict=True)
    except adapter.Error as e:
        return f"status {e.status}: {e}"
    except AssertionError as e:
        return str(e).strip()
    return None


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    lib = adapter.load(sys.argv[1])

    # Inputs are drawn when cases are collected; the package's other operators warn meanwhile.
    np.random.seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases("Attention")
    # Each case comes a second time, as a graph of simpler operators.
    cases = [c for c in cases if [n.op_type for n in c.model.graph.node] == ["Attention"]]

    passed = failed = skipped = 0
    for case in cases:
        if any(x.dtype not in (np.float32, np.int64, np.bool_) for x in case.data_sets[0][0]):
            skipped += 1
            print(f"skipped {case.name}: not f32")
        elif why := failure(lib, case):
            failed += 1
            print(f"FAILED  {case.name}: {' '.join(why.split())}")
        else:
            passed += 1
    print(f"onnx: {passed} passed, {failed} failed, {skipped} skipped (not f32)")
    if len(cases) < CASES_AT_LEAST:
        sys.exit(f"only {len(cases)} cases found, expected at least {CASES_AT_LEAST}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
