"""Tests of the package on arrays of numpy: strides, types, refusals, threads, and the adapter for PyTorch's arguments
against float64 and, where it is installed, against ONNX Runtime's operator Attention."""

import os
import sys
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from common import decoded, float8, formula, normal

import cpu_attention as fa
from cpu_attention import _arrays, _library

try:
    import onnxruntime
    from onnx import TensorProto, helper
except ImportError:
    onnxruntime = None

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "example"))
import real_model  # noqa: E402


def described(name, a):
    """The fa_tensor of an array."""
    t = _library.Tensor()
    _arrays.put(t, 0, name, a, [])
    return t


def onnx_attention(q, k, v, mask=None, causal=False, scale=None):
    types = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bool": TensorProto.BOOL}
    inputs = {"Q": q, "K": k, "V": v} | ({} if mask is None else {"mask": mask})
    attributes = {"is_causal": int(causal)} | ({} if scale is None else {"scale": scale})
    node = helper.make_node("Attention", list(inputs), ["Y"], **attributes)
    declared = [helper.make_tensor_value_info(n, types[x.dtype.name], x.shape) for n, x in inputs.items()]
    output = helper.make_tensor_value_info("Y", types[q.dtype.name], (*q.shape[:3], v.shape[3]))
    graph = helper.make_graph([node], "attention", declared, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


class Adapter(unittest.TestCase):
    def agree(self, q, k, v, mask=None, causal=False, scale=None, gqa=False, bound=1e-5):
        got = fa.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=gqa)
        self.assertEqual(got.dtype, q.dtype)
        want = formula(q, k, v, mask, causal, scale)
        np.testing.assert_allclose(got, want, 0, bound * np.abs(v).max())
        if onnxruntime is None:
            return
        theirs = onnx_attention(q, k, v, mask, causal, scale).astype(np.float64)
        np.testing.assert_allclose(got, theirs, 0, 4 * bound * np.abs(v).max())

    def test_plain_and_scale(self):
        q, k, v = normal(2, 3, 7, 16), normal(2, 3, 11, 16), normal(2, 3, 11, 24)
        self.agree(q, k, v)
        self.agree(q, k, v, scale=0.7)

    def test_scale_of_zero_weighs_all_keys_alike(self):
        q, k, v = normal(1, 2, 3, 8), normal(1, 2, 5, 8), normal(1, 2, 5, 8)
        got = fa.scaled_dot_product_attention(q, k, v, scale=0.0)
        np.testing.assert_allclose(got, np.broadcast_to(v.mean(2, keepdims=True), got.shape), 0, 1e-6)

    def test_no_sequences(self):
        q, k, v = normal(0, 2, 3, 8), normal(0, 2, 5, 8), normal(0, 2, 5, 4)
        for causal, mask in (False, None), (True, None), (False, np.ones((0, 1, 3, 5), bool)):
            got = fa.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
            self.assertEqual(got.shape, (0, 2, 3, 4))

    def test_causal_begins_at_the_first_key(self):
        for len_q, len_kv in (9, 9), (4, 11), (11, 4):
            self.agree(normal(2, 2, len_q, 16), normal(2, 2, len_kv, 16), normal(2, 2, len_kv, 16), causal=True)

    def test_grouped_heads(self):
        q, k, v = normal(2, 6, 5, 16), normal(2, 2, 9, 16), normal(2, 2, 9, 16)
        self.agree(q, k, v, gqa=True)
        self.agree(q, k, v, causal=True, gqa=True)
        with self.assertRaises(ValueError):
            fa.scaled_dot_product_attention(q, k, v)
        with self.assertRaises(fa.Error):
            fa.scaled_dot_product_attention(q[:, :5], k, v, enable_gqa=True)

    def test_masks(self):
        q, k, v = normal(2, 3, 7, 16), normal(2, 3, 11, 16), normal(2, 3, 11, 16)
        for shape in (7, 11), (2, 1, 7, 11), (1, 3, 7, 11), (2, 3, 7, 11):
            self.agree(q, k, v, normal(*shape))
            seen = normal(*shape) > 0
            seen[..., 0] = True
            self.agree(q, k, v, seen)
        # What the operator does not broadcast: rows, one element for all keys, and one for
        # everything.
        for shape in (11,), (1, 11), (7, 1), (2, 1, 7, 1), ():
            mask = np.asarray(normal(*shape))
            got = fa.scaled_dot_product_attention(q, k, v, mask)
            np.testing.assert_allclose(got, formula(q, k, v, mask), 0, 1e-5 * np.abs(v).max())

    def test_a_row_without_keys_is_zeros(self):
        q, k, v = normal(1, 1, 3, 8), normal(1, 1, 4, 8), normal(1, 1, 4, 8)
        seen = np.ones((3, 4), bool)
        seen[1] = False
        got = fa.scaled_dot_product_attention(q, k, v, seen)
        np.testing.assert_allclose(got, formula(q, k, v, seen), 0, 1e-5 * np.abs(v).max())
        self.assertFalse(got[0, 0, 1].any())

    def test_float16(self):
        q, k, v = (normal(2, 3, n, 16, dtype=np.float16) for n in (7, 11, 11))
        self.agree(q, k, v, bound=2e-3)
        self.agree(q, k, v, normal(7, 11, dtype=np.float16), bound=2e-3)
        self.agree(q, k, v, causal=True, bound=2e-3)

    def test_missing_leading_axes(self):
        q, k, v = normal(3, 7, 16), normal(3, 11, 16), normal(3, 11, 24)
        got = fa.scaled_dot_product_attention(q, k, v, normal(7, 11))
        self.assertEqual(got.shape, (3, 7, 24))
        np.testing.assert_allclose(got, formula(q, k, v, normal(7, 11)), 0, 1e-5 * np.abs(v).max())
        np.testing.assert_array_equal(fa.scaled_dot_product_attention(q[1], k[1], v[1], normal(7, 11)), got[1])

    def test_views_that_cannot_be_used_in_place(self):
        q, k, v = normal(1, 2, 5, 16), normal(1, 2, 7, 32), normal(1, 2, 7, 16)
        got = fa.scaled_dot_product_attention(q.astype(">f4"), k[..., ::2], v[:, ::-1])
        np.testing.assert_allclose(got, formula(q, k[..., ::2], v[:, ::-1]), 0, 1e-5 * np.abs(v).max())

    def test_refusals(self):
        q, k, v = normal(1, 2, 5, 16), normal(1, 2, 7, 16), normal(1, 2, 7, 16)
        call = fa.scaled_dot_product_attention
        mask = np.ones((5, 7), bool)
        for arguments in (
            {"dropout_p": 0.1},
            {"attn_mask": mask, "is_causal": True},
            {"attn_mask": mask[:, :6]},
            {"attn_mask": mask[None, None, None]},
        ):
            with self.assertRaises(ValueError):
                call(q, k, v, **arguments)
        for bad in (q, k[:, :, :6], v), (q, k[..., :8], v), (q[0], k, v), (q[None], k[None], v[None]):
            with self.assertRaises(ValueError):
                call(*bad)
        with self.assertRaises(TypeError):
            call(q.astype(np.float64), k, v)
        with self.assertRaises(TypeError):
            call(q, k, v, mask.astype(np.int64))
        for scale in float("nan"), float("inf"), 1e300:
            with self.assertRaises(fa.Error):
                call(q, k, v, scale=scale)


class General(unittest.TestCase):
    def test_strides_of_views(self):
        """Slices of one array [token][q, k, v][head][padded dim], every second token, out and lse in views."""
        batch, heads, tokens, dim = 2, 3, 9, 16
        packed = normal(batch, 2 * tokens, 3, heads, dim + 4)
        q, k, v = (packed[:, ::2, i, :, 2 : 2 + dim].transpose(0, 2, 1, 3) for i in range(3))
        for a in q, k, v:
            t = described("x", a)
            self.assertEqual((t.data, tuple(t.stride)), (a.ctypes.data, a.strides[:3]))
        room = np.full((batch, tokens, heads, dim + 8), 7, np.float32)
        out = room[..., 8:].transpose(0, 2, 1, 3)
        lse = np.empty((batch, tokens, heads), np.float32).transpose(0, 2, 1)
        self.assertIs(fa.attention(q, k, v, out=out, lse=lse), out)
        np.testing.assert_allclose(out, formula(q, k, v), 0, 1e-5 * np.abs(v).max())
        self.assertTrue((room[..., :8] == 7).all())
        s = np.exp(q.astype(np.float64) @ k.swapaxes(-1, -2) / 4)
        np.testing.assert_allclose(lse, np.log(s.sum(-1)), 0, 1e-5)

    def test_transposed_caches(self):
        """[batch][head][dim][token], and every second element: where they are, with the bits of a copy."""
        for dtype in np.float32, np.float16, np.int8:
            for len_q in 2, 40:
                q = normal(2, 4, len_q, 16)
                k, v = ((64 * normal(2, 2, 16, 50, seed=i) % 7 - 3).astype(dtype).transpose(0, 1, 3, 2) for i in (1, 2))
                t = described("k", k)
                self.assertEqual((t.data, tuple(t.stride), t.stride_dim), (k.ctypes.data, k.strides[:3], k.strides[3]))
                dense = fa.attention(q, np.ascontiguousarray(k), np.ascontiguousarray(v))
                np.testing.assert_allclose(dense, formula(q, k, v), 0, 2e-3 * np.abs(v.astype(float)).max())
                np.testing.assert_array_equal(fa.attention(q, k, v), dense)
                apart = np.full((2, 2, 50, 32), -1, dtype)
                apart[..., ::2] = v
                np.testing.assert_array_equal(fa.attention(q, k, apart[..., ::2]), dense)
                if dtype != np.int8:
                    self.assertTrue(fa.usable(k, transposed=True) is k)
                    want = formula(q, k, v, causal=True)
                    got = fa.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
                    np.testing.assert_allclose(got, want, 0, 2e-3 * np.abs(v.astype(float)).max())

    def test_broadcast_heads(self):
        q, k = normal(2, 4, 5, 16), normal(2, 1, 7, 16)
        wide = np.broadcast_to(k, (2, 4, 7, 16))
        # How many query heads share a kv head decides the path, and with it the rounding.
        np.testing.assert_allclose(fa.attention(q, wide, wide), fa.attention(q, k, k), 0, 1e-6)

    def test_int8(self):
        q = normal(1, 2, 5, 32)
        stored = np.random.default_rng(0).integers(-127, 128, (1, 2, 7, 32), np.int8)
        scale = np.full((1, 2, 1, 1), 1 / 64, np.float32)
        real = stored * scale
        for flags, most in (({}, 5e-4), ({"precise": True}, 5e-4), ({"fast": True}, 2e-2)):
            scales = {"k_scales": fa.Scales(scale), "v_scales": fa.Scales(scale)}
            got = fa.attention(q, stored, stored, **scales, **flags)
            np.testing.assert_allclose(got, formula(q, real, real), 0, most * np.abs(real).max())
        with self.assertRaisesRegex(fa.Error, "exclude"):
            fa.attention(q, stored, stored, fast=True, precise=True)

    def test_types_of_8_bits(self):
        q, x = normal(1, 2, 5, 32), normal(1, 2, 7, 32)
        for dtype, limit in (fa.float8_e4m3fn, 448), (fa.float8_e5m2, 57344):
            # With scales the largest number of a head is the largest of the type.
            stored = np.zeros(x.shape, np.uint8).view(dtype)
            scales = fa.Scales(np.zeros((1, 2, 1, 1), np.float32))
            fa.quantize(x, stored, scales)
            np.testing.assert_array_equal(scales.scale, np.abs(x).max((2, 3), keepdims=True) / np.float32(limit))
            real = float8(stored) * scales.scale
            np.testing.assert_allclose(real, x, 0.13, 1e-6)
            got = fa.attention(q, stored, stored, k_scales=scales, v_scales=scales)
            np.testing.assert_allclose(got, formula(q, real, real), 0, 1e-5 * np.abs(real).max())
            # Without them, each number is rounded.
            fa.quantize(x, stored)
            np.testing.assert_allclose(float8(stored), x, 0.13, 1e-3)
            with self.assertRaisesRegex(fa.Error, "zero"):
                fa.attention(q, stored, stored, k_scales=fa.Scales(scales.scale, scales.scale))
        stored = np.zeros(x.shape, np.uint8)
        scales = fa.Scales(np.zeros((1, 2, 7, 1), np.float32), np.zeros((1, 2, 7, 1), np.float32))
        fa.quantize(x, stored, scales)
        real = (stored - scales.zero) * scales.scale
        np.testing.assert_allclose(real, x, atol=np.ptp(x) / 500)
        got = fa.attention(q, stored, stored, k_scales=scales, v_scales=scales)
        np.testing.assert_allclose(got, formula(q, real, real), 0, 5e-4 * np.abs(real).max())

    def test_no_sequences_with_any_strides(self):
        """numpy gives arrays without elements strides of its own."""
        zeros = {"strides": (0, 0, 0, 0)}
        q, k, v = (np.ndarray((0, 2, n, 8), np.float32, np.empty(1), **zeros) for n in (3, 5, 5))
        lse = np.ndarray((0, 2, 3), np.float32, np.empty(1), strides=(0, 0, 0))
        out = np.ndarray((0, 2, 3, 8), np.float32, np.empty(1), **zeros)
        lists = {"kv_lens": [], "kv_starts": [], "q_positions": [], "spans": []}
        self.assertIs(fa.attention(q, k, v, out=out, lse=lse, **lists), out)
        self.assertEqual(fa.attention(q[..., ::2], k[:, ::-1, :, ::2], v, kv_starts=0).shape, (0, 2, 3, 8))
        with self.assertRaises(ValueError):
            fa.attention(q, k[:, :, :4], v)

    def test_who_sees_whom(self):
        """Positions, first keys, keys that are always seen, spans: against a mask."""
        batch, heads, rows, keys = 2, 3, 40, 120
        q, k, v = normal(batch, heads, rows, 16), normal(batch, heads, keys, 16), normal(batch, heads, keys, 16)
        i, j = np.arange(rows)[:, None], np.arange(keys)
        starts, positions, lens = np.array([7, 0]), np.array([10, 75]), np.array([55, 115])
        spans = [[(0, 12), (30, 41)], [(90, 118)]]
        for few in False, True:
            only = slice(0, 2 if few else rows)
            for given in (
                {"q_positions": positions},
                {"kv_starts": starts, "kv_lens": lens},
                {"kv_starts": 5},
                {"q_positions": positions, "window_left": 6, "prefix_keys": 4, "kv_starts": starts},
                {"q_positions": positions, "spans": spans},
                {"q_positions": positions, "spans": spans, "window_left": 3, "prefix_keys": 9, "kv_lens": lens},
                {"spans": [[], []]},
            ):
                seen = np.zeros((batch, 1, rows, keys), bool)
                for b in range(batch):
                    length = given["kv_lens"][b] if "kv_lens" in given else keys
                    first = np.broadcast_to(given.get("kv_starts", 0), batch)[b]
                    at = given["q_positions"][b] if "q_positions" in given else length - len(q[0, 0, only])
                    p = at + i
                    near = (j >= p - given.get("window_left", keys)) | (j < first + given.get("prefix_keys", 0))
                    sees = near & (j <= p)
                    for begin, end in given.get("spans", [[], []])[b]:
                        sees |= (begin <= p) & (p < end) & (begin <= j) & (j < end)
                    seen[b, 0] = sees & (first <= j) & (j < length)
                got = fa.attention(q[:, :, only], k, v, window_right=0, **given)
                want = formula(q[:, :, only], k, v, seen[:, :, only])
                np.testing.assert_allclose(got, want, 0, 1e-5 * np.abs(v).max(), err_msg=str(given))
        for bad, kind in (
            ({"kv_starts": [0, 121]}, fa.Error),
            ({"q_positions": [0, 1], "q_pos": 3}, fa.Error),
            ({"prefix_keys": -1}, fa.Error),
            ({"spans": [[(3, 2)], []]}, fa.Error),
            ({"spans": [[], [(4, 9), (8, 12)]]}, fa.Error),
            ({"kv_starts": [1, 2, 3]}, ValueError),
            ({"q_positions": [0, 2**31]}, ValueError),
            ({"spans": [[]]}, ValueError),
            ({"spans": [[(1, 2, 3)], []]}, ValueError),
            ({"kv_lens": [1.0, 2.0]}, TypeError),
            ({"spans": [[(1, 2.5)], []]}, TypeError),
        ):
            with self.assertRaises(kind):
                fa.attention(q, k, v, **bad)

    def test_weights(self):
        """Probabilities give the output; those of some heads and rows are those of all."""
        batch, heads, rows, keys = 2, 3, 40, 120
        q, k, v = normal(batch, heads, rows, 16), normal(batch, heads, keys, 16), normal(batch, heads, keys, 16)
        for few in False, True:
            x = q[:, :, : 2 if few else rows]
            n = x.shape[2]
            every = np.full((batch, heads, n, keys), np.nan, np.float32)
            out = fa.attention(x, k, v, window_right=0, weights=every)
            np.testing.assert_allclose(every @ v, out, 0, 1e-5)
            np.testing.assert_allclose(every.sum(-1), 1, 0, 1e-5)
            some = np.full((batch, 2, 1, keys), np.nan, np.float32)
            fa.attention(x, k, v, window_right=0, weights=some, weight_heads=[0, 2], weight_rows=-1)
            np.testing.assert_array_equal(some, every[:, ::2, -1:])
        for bad, kind in (
            ({"weights": every[..., :-1]}, ValueError),
            ({"weights": every.astype(np.float64)}, TypeError),
            ({"weights": every.astype(np.float16)}, fa.Error),
            ({"weights": every[:, :1], "weight_heads": [3]}, fa.Error),
            ({"weights": every[:, :, :1], "weight_rows": [-3]}, fa.Error),
            ({"weights": every, "weight_rows": [-1, 0]}, fa.Error),
            ({"weight_heads": [0]}, fa.Error),
            ({"weights": every[:, :1], "weight_heads": [0.5]}, TypeError),
        ):
            with self.assertRaises(kind):
                fa.attention(q[:, :, :2], k, v, **bad)

    def test_threads_and_pools_give_the_same_bits(self):
        name, scale, causal, *tensors, exact = list(real_model.sets(Path(os.environ["DATA"])))[-1]
        q, k, v = (x.transpose(1, 0, 2)[None] for x in tensors)
        want = fa.attention(q, k, v, scale=scale)
        np.testing.assert_allclose(want[0], exact.transpose(1, 0, 2), 0, 1e-5 * np.abs(v).max())
        with fa.Pool(3) as pool, ThreadPoolExecutor(4) as threads:
            calls = [
                threads.submit(fa.attention, q, k, v, scale=scale, threads=p) for p in (None, pool, None, pool) * 4
            ]
            for call in calls:
                np.testing.assert_array_equal(call.result(), want)
        with self.assertRaises(ValueError):
            fa.attention(q, k, v, threads=pool)
        with self.assertRaises(fa.Error):
            fa.Pool(1000)

    def test_refusals(self):
        q, k, v = normal(1, 2, 5, 16), normal(1, 2, 7, 16), normal(1, 2, 7, 16)
        backwards = k[..., ::-1], np.broadcast_to(k[..., :1], k.shape)
        for bad in (
            (q[..., ::2], k[..., :8], v),
            (q, k[:, ::-1], v),
            (q[0, 0], k, v),
            (q, k[None], v),
            *((q, bad, v) for bad in backwards),
        ):
            with self.assertRaises(ValueError):
                fa.attention(*bad)
        fixed = np.empty((1, 2, 5, 16), np.float32)
        fixed.flags.writeable = False
        for out in fixed, np.empty((1, 2, 5, 15), np.float32), np.empty((1, 2, 5, 32), np.float32)[..., ::2]:
            with self.assertRaises(ValueError):
                fa.attention(q, k, v, out=out)
        for bad in v.astype(np.float64), v.astype(">f4"), v.tolist(), None, np.ma.masked_array(v, v > 0):
            with self.assertRaises(TypeError):
                fa.attention(q, k, bad)
        with self.assertRaisesRegex(fa.Error, "."):
            fa.attention(q, k, v, out=q)
        with self.assertRaises(fa.Error):
            fa.attention(q, k, v, softcap=-1.0)


class Caches(unittest.TestCase):
    def test_appended_tokens_are_as_numpy_rounds_them(self):
        new_k, new_v = normal(2, 3, 4, 16), normal(2, 3, 4, 24, seed=1)
        k, v = np.full((2, 3, 9, 16), 7, np.float16), np.full((2, 3, 9, 24), 7, np.float32)
        fa.append(k, v, new_k, new_v, kv_lens=[9, 6])
        for b, end in enumerate((9, 6)):
            np.testing.assert_array_equal(k[b, :, end - 4 : end], new_k[b].astype(np.float16))
            np.testing.assert_array_equal(v[b, :, end - 4 : end], new_v[b])
            k[b, :, end - 4 : end] = v[b, :, end - 4 : end] = 7
        self.assertTrue((k == 7).all() and (v == 7).all())
        with self.assertRaisesRegex(fa.Error, "position"):
            fa.append(k, v, new_k, new_v, q_pos=6)
        with self.assertRaises(ValueError):
            fa.append(k, v, new_k[:, :2], new_v)
        self.assertTrue((k == 7).all() and (v == 7).all())

    def test_integers_have_scales_of_their_tokens(self):
        x = normal(1, 2, 5, 32)
        cache, whole = np.zeros((1, 2, 5, 32), np.int8), np.zeros((1, 2, 5, 32), np.int8)
        own, scales = (fa.Scales(np.zeros((1, 2, 5, 1), np.float32)) for _ in range(2))
        values = np.zeros((1, 2, 5, 32), np.float32)
        for t in range(5):
            fa.append(cache, values, x[:, :, t : t + 1], x[:, :, t : t + 1], q_pos=t, k_scales=own)
        fa.quantize(x, whole, scales)
        np.testing.assert_array_equal(cache, whole)
        np.testing.assert_array_equal(own.scale, scales.scale)
        np.testing.assert_array_equal(values, x)
        np.testing.assert_allclose(cache * own.scale, x, atol=np.abs(x).max() / 127)
        with self.assertRaises(ValueError):
            fa.quantize(x, whole, fa.Scales(np.zeros((1, 2, 5, 1))))

    def test_blocks_are_the_numbers(self):
        """Within a step of what was written, of the largest number of a block; attention is that of what was stored."""
        steps = {"q8_0": 0.0045, "q4_0": 0.127, "q4_1": 0.069, "q5_0": 0.064, "q5_1": 0.034, "iq4_nl": 0.125}
        self.assertEqual(steps.keys(), fa.BLOCK_TYPES.keys())
        q, x, y = normal(2, 4, 40, 64), normal(2, 2, 75, 64, seed=1), normal(2, 2, 75, 96, seed=2)
        for (of_k, step), of_v in zip(steps.items(), [*list(steps)[1:], "q8_0"], strict=True):
            k, v = fa.quantize(x, fa.blocks(of_k, x.shape)), fa.quantize(y, fa.blocks(of_v, y.shape))
            largest = np.abs(x.reshape(2, 2, 75, 2, 32)).max(-1).repeat(32, -1)
            self.assertLessEqual((np.abs(decoded(k) - x) / largest).max(), step)
            for rows in 1, 40:
                got = fa.attention(q[:, :, :rows], k, v, window_right=0, precise=True)
                position = np.arange(rows)[:, None] + 75 - rows
                want = formula(q[:, :, :rows], decoded(k), decoded(v), np.arange(75) <= position)
                np.testing.assert_allclose(got, want, 0, 1e-3 * np.abs(y).max(), err_msg=f"{of_k} {of_v} {rows}")
                got = fa.attention(q[:, :, :rows], k, v, window_right=0)
                np.testing.assert_allclose(got, want, 0, 2e-2 * np.abs(y).max(), err_msg=f"{of_k} {of_v} {rows}")

    def test_blocks_that_do_not_fit(self):
        x = normal(1, 2, 5, 64)
        with self.assertRaises(ValueError):
            fa.blocks("q8_0", (1, 2, 5, 33))
        with self.assertRaises(TypeError):
            fa.blocks("q8_1", (1, 2, 5, 64))
        k = fa.blocks("q8_0", x.shape)
        for bad, kind in (
            (fa.Blocks(k.bytes, "q9_0"), TypeError),
            (fa.Blocks(k.bytes.view(np.int8), "q8_0"), TypeError),
            (fa.Blocks(k.bytes[..., :-1], "q8_0"), ValueError),
            (fa.Blocks(np.zeros((1, 2, 5, 136), np.uint8)[..., ::2], "q8_0"), ValueError),
            (fa.Blocks(k.bytes[..., :34], "q8_0"), ValueError),
        ):
            with self.assertRaises(kind):
                fa.attention(x, bad, k)
            with self.assertRaises(kind):
                fa.quantize(x, bad)
        with self.assertRaises(TypeError):
            fa.attention(x, k, k, k_scales=fa.Scales(np.ones((1, 1, 1, 1), np.float32)))

    def test_pages(self):
        """Tokens that are appended to pages, in an order of their own, are those of a cache without pages."""
        table = np.array([[5, 0, 3, -1], [1, 6, -1, 7]])
        lens, size = np.array([11, 5]), 4
        new_k, new_v = normal(2, 3, 12, 64), normal(2, 3, 12, 32, seed=1)
        q = normal(2, 6, 3, 64, seed=2)

        def some(kind, dim, *rows):
            """A cache, and its scales: those of a token and head are neighbours."""
            if kind in fa.BLOCK_TYPES:
                return fa.blocks(kind, (*rows, dim)), None
            scales = fa.Scales(np.zeros((*rows, 1), np.float32)) if kind == "int8" else None
            return np.zeros((*rows, dim), kind), scales

        for of_k, of_v in ("float32", "q4_0"), ("q8_0", "float16"), ("int8", "q5_1"), ("iq4_nl", "int8"):
            pages = [some(kind, dim, 8, 3, size) for kind, dim in ((of_k, 64), (of_v, 32))]
            dense = [some(kind, dim, 2, 3, 16) for kind, dim in ((of_k, 64), (of_v, 32))]
            for n, given in (0, {}), (1, {"block_table": table}):
                (k, ks), (v, vs) = (dense, pages)[n]
                # A prompt, and then tokens one by one.
                for first, end in (0, 2), *((t, t + 1) for t in range(2, 5)):
                    rows = new_k[:, :, first:end], new_v[:, :, first:end]
                    fa.append(k, v, *rows, kv_lens=end, k_scales=ks, v_scales=vs, **given)
                rows = new_k[:1, :, 5:11], new_v[:1, :, 5:11]
                if given:
                    fa.append(k, v, *rows, kv_lens=lens[:1], k_scales=ks, v_scales=vs, block_table=table[:1])
                else:
                    first = [x and fa.Scales(x.scale[:1]) for x in (ks, vs)]
                    k1, v1 = (fa.Blocks(x.bytes[:1], x.type) if isinstance(x, fa.Blocks) else x[:1] for x in (k, v))
                    fa.append(k1, v1, *rows, kv_lens=lens[:1], k_scales=first[0], v_scales=first[1])
            raw = lambda x: x.bytes if isinstance(x, fa.Blocks) else x  # noqa: E731
            for (page, page_scales), (whole, whole_scales) in zip(pages, dense, strict=True):
                for b, n in enumerate(lens):
                    for t in range(n):
                        at = table[b, t // size], slice(None), t % size
                        np.testing.assert_array_equal(raw(page)[at], raw(whole)[b, :, t])
                        self.assertTrue(raw(page)[at].any())
                        if page_scales is not None:
                            np.testing.assert_array_equal(page_scales.scale[at], whole_scales.scale[b, :, t])
                self.assertFalse(raw(page)[[2, 4, 7]].any())
            (k, ks), (v, vs) = pages
            got = fa.attention(q, k, v, kv_lens=lens, block_table=table, window_right=0, k_scales=ks, v_scales=vs)
            (k, ks), (v, vs) = dense
            want = fa.attention(q, k, v, kv_lens=lens, window_right=0, k_scales=ks, v_scales=vs)
            np.testing.assert_allclose(got, want, 0, 1e-5)
            self.assertGreater(np.abs(want).max(), 0.1)

        (k, _), (v, _) = some("float32", 64, 8, 3, size), some("float32", 32, 8, 3, size)
        for bad, kind in (
            ({"block_table": table[:, :2], "kv_lens": lens}, fa.Error),
            ({"block_table": table, "kv_lens": 16}, fa.Error),
            ({"block_table": table + 3, "kv_lens": lens}, fa.Error),
            ({"block_table": table[:1], "kv_lens": lens}, ValueError),
            ({"block_table": table[0], "kv_lens": lens}, ValueError),
            ({"block_table": table / 2, "kv_lens": lens}, TypeError),
            ({"block_table": table + 2**40, "kv_lens": lens}, ValueError),
            ({"kv_lens": lens}, ValueError),
        ):
            with self.assertRaises(kind, msg=str(bad)):
                fa.attention(q, k, v, **bad)
            with self.assertRaises(kind, msg=str(bad)):
                fa.append(k, v, new_k[:, :, :1], new_v[:, :, :1], **bad)
        self.assertFalse(k.any() or v.any())
