"""Tests of the package: every field of the description against float64, prepared calls, threads, caches, joining."""

import os
import threading
import typing
import unittest
from concurrent.futures import ThreadPoolExecutor
from inspect import signature
from pathlib import Path

import numpy as np
from common import exact, normal

import cpu_attention as fa
from cpu_attention import _attention, _library, _threads


def close(got, want, bound=1e-5):
    np.testing.assert_allclose(got, want, 0, bound)


class Fields(unittest.TestCase):
    def setUp(self):
        self.q, self.k, self.v = normal(2, 4, 9, 16), normal(2, 2, 33, 16, seed=1), normal(2, 2, 33, 24, seed=2)

    def agrees(self, given, bound=1e-5, **want):
        """Output and log-sum-exp are those of `exact` with what it is told."""
        for rows in 9, 1:
            q, lse = self.q[:, :, :rows], np.empty((2, 4, rows), np.float32)
            options = {
                name: x[..., :rows, :] if name == "mask" and x.shape[-2:-1] == (9,) else x for name, x in given.items()
            }
            wanted = {name: x[..., :rows, :] if np.shape(x)[-2:-1] == (9,) else x for name, x in want.items()}
            out, log, _ = exact(q, self.k, self.v, **wanted)
            close(fa.attention(q, self.k, self.v, lse=lse, **options), out, bound)
            close(lse, log, bound)

    def test_scale_and_softcap(self):
        self.agrees({})
        self.agrees({"scale": 0.7}, scale=0.7)
        self.agrees({"scale": 0.0}, scale=0.0)
        self.agrees({"scale": np.float32(-0.3), "softcap": 1.5}, scale=float(np.float32(-0.3)), softcap=1.5)

    def test_masks(self):
        for shape in (33,), (9, 33), (1, 4, 1, 33), (2, 1, 9, 33):
            mask = normal(*shape)
            self.agrees({"mask": mask}, bias=mask)
            self.agrees({"mask": mask > 0}, seen=mask > 0)
        wide = normal(2, 4, 9, 40)[..., 3:36]
        self.agrees({"mask": wide}, bias=wide)

    def test_sinks_and_slopes(self):
        sinks, slopes = np.array([0.5, -np.inf, 3, -1], np.float32), np.array([[1, 0, 0.5, 2], [0.1, 3, 0, 1]])
        self.agrees({"sinks": sinks}, sinks=sinks)
        self.agrees({"sinks": sinks.tolist()}, sinks=sinks)
        distance = np.abs(np.arange(33) - np.arange(9)[:, None])
        bias = -slopes[:, :, None, None] * distance
        self.agrees({"alibi_slopes": slopes, "q_pos": 0}, bias=bias)
        self.agrees({"alibi_slopes": slopes[0], "q_pos": 0}, bias=bias[:1])
        self.agrees({"alibi_slopes": slopes, "mask": -distance.astype(np.float32), "mask_times_slope": True}, bias=bias)

    def test_block_masks(self):
        blocks = np.zeros((2, 1, 3, 5), np.uint8)
        blocks[0, 0, :, 1] = blocks[1, 0, 1, :3] = blocks[:, :, 0, 4] = 1
        seen = blocks.repeat(4, 2)[:, :, :9].repeat(8, 3)[..., :33] != 0
        self.agrees({"block_mask": blocks, "block_mask_q": 4, "block_mask_kv": 8}, seen=seen)
        row = blocks[:1, :, :1].astype(bool)
        self.agrees({"block_mask": row[0, 0], "block_mask_q": 9, "block_mask_kv": 8}, seen=row.repeat(8, 3)[..., :33])
        given = {"block_mask": blocks, "block_mask_q": 4, "block_mask_kv": 8}
        for bad in ({"block_mask_q": 0}, {"block_mask_kv": 6}, {"block_mask_q": 2}, {"block_mask": blocks[..., :4]}):
            with self.assertRaises(ValueError, msg=str(bad)):
                fa.attention(self.q, self.k, self.v, **{**given, **bad})
        with self.assertRaises(TypeError):
            fa.attention(self.q, self.k, self.v, block_mask=blocks.astype(np.int8), block_mask_q=4, block_mask_kv=8)

    def test_lists_of_blocks(self):
        blocks = np.zeros((2, 2, 3, 5), bool)
        blocks[0, 0, :, 1] = blocks[1, 0, 1, :3] = blocks[:, :, 0, 4] = blocks[0, 1, 2, 2:] = True
        size = {"kept_q": 4, "kept_kv": 8}

        def seen_by(blocks):
            """Neighbouring query heads share what is given for fewer heads."""
            of_heads = blocks.repeat(4 // blocks.shape[1], 1)
            return of_heads.repeat(4, 2)[:, :, :9].repeat(8, 3)[..., :33]

        def lists(blocks):
            """Of each head its lists one behind another, and where the last one ends."""
            ends = blocks.sum(-1).reshape(-1, blocks.shape[2]).cumsum(-1)
            heads = np.cumsum([0, *ends[:-1, -1]])[:, None] + np.pad(ends, ((0, 0), (1, 0)))
            return {"kept_start": heads.reshape(*blocks.shape[:2], -1), "kept_blocks": blocks.nonzero()[3], **size}

        self.agrees(lists(blocks), seen=seen_by(blocks))
        for some in blocks[:1], blocks[:, :1], blocks[1:, :1]:
            self.agrees(lists(some), seen=seen_by(some))
        given = lists(blocks[:1])
        self.agrees({**given, "kept_start": given["kept_start"][0]}, seen=seen_by(blocks[:1]))
        one = lists(blocks[:1, :1])
        self.agrees({**one, "kept_start": one["kept_start"][0, 0]}, seen=seen_by(blocks[:1, :1]))
        for bad in (
            {"kept_q": 0},
            {"kept_kv": -1},
            {"kept_q": 2},
            {"kept_blocks": None},
            {"kept_start": None},
            {"kept_blocks": given["kept_blocks"][:-1]},
            {"kept_start": given["kept_start"].repeat(3, 1)},
            {"kept_start": given["kept_start"] - 1},
            {"kept_blocks": given["kept_blocks"] + 4},
        ):
            with self.assertRaises(ValueError, msg=str(bad)):
                fa.attention(self.q, self.k, self.v, **{**given, **bad})
        with self.assertRaises(TypeError):
            fa.attention(self.q, self.k, self.v, **{**given, "kept_blocks": given["kept_blocks"] * 0.5})

    def test_columns(self):
        p, j = np.arange(9)[:, None] + 24, np.arange(33)
        near = {"window_left": 5, "causal": True, "q_pos": 24}
        is_near = (j >= p - 5) & (j <= p)
        single = np.isin(j, (0, 7, 23, 26, 32))
        self.agrees({**near, "columns": [0, 7, 23, 26, 32]}, seen=is_near | (single & (j <= p)))
        of_heads = {"columns": [3, 11, 30], "column_start": [[0, 1], [1, 3]]}
        seen = np.stack([j == 3, np.isin(j, (11, 30))])[:, None]
        self.agrees({**near, **of_heads}, seen=(is_near | (seen & (j <= p))).repeat(2, 0)[None].repeat(2, 0))
        of_all = {"columns": [1, 2, 8], "column_start": [[[0, 2]], [[2, 3]]]}
        seen = np.stack([np.isin(j, (1, 2)), j == 8])[:, None, None]
        self.agrees({**near, **of_all}, seen=(is_near | (seen & (j <= p))).repeat(4, 1))
        for bad in (
            {"columns": None},
            {"columns": [33]},
            {"columns": [5, 5]},
            {"columns": [[1, 2, 3]]},
            {"column_start": [0]},
            {"column_start": [0, 4]},
            {"column_start": [[0, 1]] * 3},
            {"mask": np.ones((9, 33), bool)},
            {"alibi_slopes": np.ones(4, np.float32)},
        ):
            with self.assertRaises(ValueError, msg=str(bad)):
                fa.attention(self.q, self.k, self.v, **{**near, **of_heads, **bad})

    def test_windows(self):
        p, j = np.arange(9)[:, None] + 24, np.arange(33)
        self.agrees({"causal": True, "q_pos": 24}, seen=j <= p)
        self.agrees({"window_left": 5, "window_right": 2, "q_pos": 24}, seen=(j >= p - 5) & (j <= p + 2))
        q = self.q[:, :, -3:]
        close(fa.attention(q, self.k, self.v, causal=True), exact(q, self.k, self.v, j <= p[-3:])[0])
        pairs = {"span_starts": np.array([0, 1, 2]), "spans": np.array([[24, 31], [20, 28]])}
        lists = {"spans": [[(24, 31)], [(20, 28)]]}
        for given in pairs, lists:
            seen = np.zeros((2, 1, 9, 33), bool)
            for b, (begin, end) in enumerate(pairs["spans"]):
                seen[b, 0] = (j <= p) | ((begin <= p) & (p < end) & (begin <= j) & (j < end))
            close(fa.attention(self.q, self.k, self.v, causal=True, **given), exact(self.q, self.k, self.v, seen)[0])
        for bad in {"span_starts": [0, 1, 3]}, {"span_starts": [0, 2]}, {"spans": np.array([24, 31, 20, 28])}:
            with self.assertRaisesRegex(ValueError, "fewer than span_starts"):
                fa.attention(self.q, self.k, self.v, causal=True, **{**pairs, **bad})
        with self.assertRaises(ValueError):
            fa.attention(self.q, self.k, self.v, causal=True, window_right=3)
        for bad in {"q_pos": 2**63}, {"window_left": 1.5}, {"prefix_keys": 2**70}:
            with self.assertRaises(ValueError, msg=str(bad)):
                fa.attention(self.q, self.k, self.v, **bad)

    def test_tiles(self):
        """Tiles of queries change no bit, those of keys no more than rounding does."""
        want = fa.attention(self.q, self.k, self.v)
        np.testing.assert_array_equal(fa.attention(self.q, self.k, self.v, block_q=3), want)
        close(fa.attention(self.q, self.k, self.v, block_kv=8), want)
        with self.assertRaises(fa.Error):
            fa.attention(self.q, self.k, self.v, block_q=-1)

    def test_ragged(self):
        """Sequences behind one another are those alone, with masks, probabilities and log-sum-exp of their own."""
        lens_q, lens_kv = [3, 0, 9], [7, 5, 20]
        cu_q, cu_kv = np.cumsum([0, *lens_q]), np.cumsum([0, *lens_kv]).tolist()
        q, k, v = normal(13, 4, 16), normal(32, 2, 16, seed=1), normal(32, 2, 24, seed=2)
        first = [x.transpose(1, 0, 2) for x in (q, k, v)]
        lse = np.full((4, 13), 7, np.float32)
        weights = np.full((3, 4, 9, 20), 7, np.float32)
        mask = normal(3, 1, 9, 20)
        given = {"cu_len_q": cu_q, "cu_len_kv": cu_kv, "causal": True, "mask": mask}
        out = fa.attention(*first, lse=lse, weights=weights, **given)
        self.assertEqual(out.shape, (4, 13, 24))
        for b in range(3):
            rows, keys = slice(cu_q[b], cu_q[b + 1]), slice(cu_kv[b], cu_kv[b + 1])
            n, m = lens_q[b], lens_kv[b]
            x = [y[None, :, at] for y, at in zip(first, (rows, keys, keys), strict=True)]
            seen = np.arange(m) <= np.arange(n)[:, None] + m - n
            want, log, probabilities = exact(*x, seen, mask[b : b + 1, :, :n, :m])
            close(out[None, :, rows], want)
            close(lse[None, :, rows], log)
            close(weights[b : b + 1, :, :n, :m], probabilities)
        # The last row of q is nobody's.
        self.assertTrue((lse[:, 12:] == 7).all())
        for wrong in (
            {"cu_len_q": [0, 3, 3, 14]},
            {"cu_len_kv": [0, 7, 12, 33]},
            {"cu_len_kv": [0, 7, 12]},
            {"cu_len_q": []},
            {"cu_len_q": [0, 3, 2, 12]},
            {"cu_len_q": [-1, 3, 3, 12]},
            {"len_q": 8},
            {"kv_lens": [7, 5, 21]},
            {"mask": mask[..., :19]},
        ):
            with self.assertRaises(ValueError, msg=str(wrong)):
                fa.attention(*first, **{**given, **wrong})
        wide = np.pad(mask, ((0, 0), (0, 0), (0, 2), (0, 5)))
        got = fa.attention(*first, **{**given, "mask": wide}, len_q=11, len_kv=25)
        np.testing.assert_array_equal(got[:, :12], out[:, :12])
        # Rows of queries alone, on keys of a batch.
        some = normal(3, 2, 20, 16), normal(3, 2, 20, 24)
        got = fa.attention(first[0], *some, cu_len_q=cu_q, kv_lens=lens_kv)
        want = fa.attention(first[0][None, :, 3:12], some[0][2:], some[1][2:], kv_lens=20)
        close(got[None, :, 3:12], want)

    def test_lists_of_pages(self):
        pages = normal(7, 2, 4, 16), normal(7, 2, 4, 24, seed=1)
        lists, start, lens = [5, 1, 0, 3, 6], [0, 2, 5], [7, 10]
        q = normal(2, 4, 3, 16)
        got = fa.attention(q, *pages, block_table=lists, block_table_start=start, kv_lens=lens, causal=True)
        for b in range(2):
            k, v = (
                x[lists[start[b] : start[b + 1]]].transpose(1, 0, 2, 3).reshape(1, 2, -1, x.shape[3]) for x in pages
            )
            seen = np.arange(k.shape[2]) <= np.arange(3)[:, None] + lens[b] - 3
            close(got[b : b + 1], exact(q[b : b + 1], k, v, seen)[0])
        # The same by rows of a table; of a wider one the first pages of each.
        table = np.full((2, 5), -1, np.int32)
        table[0, :2], table[1, :3] = lists[:2], lists[2:]
        for rows in table[:, :3], table[:, :3].copy(), table[:, :3].tolist():
            again = fa.attention(q, *pages, block_table=rows, kv_lens=lens, causal=True)
            np.testing.assert_array_equal(again, got)
        for bad in (
            {"block_table_start": [0, 2, 6]},
            {"block_table_start": [0, 5]},
            {"block_table": table, "block_table_start": start},
            {"kv_lens": [9, 10]},
            {"block_table": None},
            {"block_table": lists, "block_table_start": None},
            {"cu_len_kv": [0, 2, 3]},
            {"len_kv": 13},
            {"block_table": [5, 7, 0, 3, 6]},
        ):
            given = {"block_table": lists, "block_table_start": start, "kv_lens": lens, **bad}
            with self.assertRaises(ValueError, msg=str(bad)):
                fa.attention(q, *pages, **given)

    def test_three_axes(self):
        q, k, v = self.q[0], self.k[0], self.v[0]
        lse = np.empty((4, 9), np.float32)
        out = fa.attention(q, k, v, lse=lse)
        self.assertEqual(out.shape, (4, 9, 24))
        np.testing.assert_array_equal(out, fa.attention(self.q, self.k, self.v)[0])
        close(lse, exact(self.q, self.k, self.v)[1][0])
        np.testing.assert_array_equal(fa.attention(q, self.k[:1], v), out)

    def test_axes_of_length_1_may_have_any_strides(self):
        apart = {"strides": (4, 36, 4, 12)}
        q = np.ndarray((1, 4, 9, 1), np.float32, normal(40), **apart)
        k, v = (np.ndarray((1, 2, 33, 1), np.float32, normal(400, seed=i), strides=(-4, 132, 4, -12)) for i in (1, 2))
        out = fa.attention(q, k, v)
        close(out, exact(q, k, v)[0])
        np.testing.assert_array_equal(fa.attention(q[::-1], k[::-1], v[::-1]), out)

    def test_outputs_have_the_type_of_q(self):
        import ml_dtypes

        want = fa.attention(self.q, self.k, self.v)
        for dtype in np.float16, ml_dtypes.bfloat16, fa.bfloat16:
            if dtype is fa.bfloat16:
                x = [y.astype(ml_dtypes.bfloat16).view(np.uint16).view(dtype) for y in (self.q, self.k, self.v)]
                got = fa.attention(*x)
                self.assertEqual(got.dtype, np.dtype(ml_dtypes.bfloat16))
            else:
                got = fa.attention(*(y.astype(dtype) for y in (self.q, self.k, self.v)))
                self.assertEqual(got.dtype, dtype)
            close(got.astype(np.float32), want, 0.03)
        stored = (self.q * 20).astype(np.int8)
        self.assertEqual(fa.attention(stored, self.k, self.v).dtype, np.float32)
        blocks = fa.quantize(normal(2, 4, 9, 32), fa.blocks("q8_0", (2, 4, 9, 32)))
        self.assertEqual(fa.attention(blocks, blocks, blocks).dtype, np.float32)

    def test_fractions(self):
        """int16 stands for itself divided by 32768, as inputs and as the output; both may have scales."""
        x = [np.clip(y * 8000, -32768, 32767).astype(np.int16) for y in (self.q, self.k, self.v)]
        real = [y / 32768 for y in x]
        want = exact(*real)[0]
        self.assertEqual(fa.attention(*x).dtype, np.float32)
        close(fa.attention(*x), want)
        out = np.empty(want.shape, np.int16)
        self.assertIs(fa.attention(*x, out=out), out)
        self.assertLessEqual(np.abs(out / 32768 - want).max(), 0.5 / 32768 + 1e-6)
        scale = np.linspace(0.5, 2, x[1].shape[1], dtype=np.float32).reshape(1, -1, 1, 1)
        want = exact(real[0], real[1] * scale, real[2] * scale)[0]
        close(fa.attention(*x, k_scales=fa.Scales(scale), v_scales=fa.Scales(scale)), want)
        # Outputs are divided by scales, which may be read-only; what is too large saturates.
        of_out = np.full((1, 1, 1, 1), 0.25, np.float32)
        of_out.flags.writeable = False
        options = {"k_scales": fa.Scales(scale), "v_scales": fa.Scales(scale), "out_scales": fa.Scales(of_out)}
        fa.attention(*x, out=out, **options)
        self.assertLessEqual(np.abs(out / 32768 * 0.25 - np.clip(want, -0.25, 0.25)).max(), 0.25 / 32768 + 1e-6)
        with self.assertRaises(ValueError):
            fa.attention(*x, out_scales=fa.Scales(of_out))
        with self.assertRaises(fa.Error):
            fa.attention(*x, out=np.empty(want.shape, np.float32), out_scales=fa.Scales(of_out))
        # Written with a scale of each row, and without.
        stored, found = np.empty(self.k.shape, np.int16), np.empty((*self.k.shape[:3], 1), np.float32)
        fa.quantize(self.k, stored, fa.Scales(found))
        self.assertLessEqual((np.abs(stored / 32768 * found - self.k) / found).max(), 0.51 / 32768)
        fa.quantize(self.k, stored)
        np.testing.assert_array_equal(stored, np.clip(np.rint(self.k.astype(np.float64) * 32768), -32768, 32767))

    def test_integers_alone(self):
        values = np.ascontiguousarray(self.v[..., :16])
        x = [np.clip(y * 8000, -32768, 32767).astype(np.int16) for y in (self.q, self.k, values)]
        want = exact(*(y / 32768 for y in x))[0]
        out = fa.attention_q15(*x)
        self.assertLessEqual(np.abs(out / 32768 - want).max(), 6e-4)
        for threads in 0, 3:
            np.testing.assert_array_equal(fa.attention_q15(*x, threads=threads), out)
        again = np.empty_like(out[0])
        self.assertIs(fa.attention_q15(x[0][0], x[1][0], x[2][0], out=again), again)
        np.testing.assert_array_equal(again, out[0])
        scaled = fa.attention_q15(*x, scale=(3, 4))
        self.assertLessEqual(np.abs(scaled / 32768 - exact(*(y / 32768 for y in x), scale=3 / 16)[0]).max(), 6e-4)
        self.assertTrue((fa.attention_q15(*x, causal=True) != out).any())
        for wrong in (x[0], x[1][:, :, :-1], x[2]), (x[0], x[1], x[2].swapaxes(1, 2)), (x[0][..., ::2], x[1], x[2]):
            with self.assertRaises(ValueError):
                fa.attention_q15(*wrong)
        with self.assertRaises(TypeError):
            fa.attention_q15(self.q, x[1], x[2])
        for options in {"scale": (0, 0)}, {"scale": (1 << 31, 0)}, {"threads": -1}, {"scale": (1 << 30, 0)}:
            with self.assertRaises(ValueError):
                fa.attention_q15(*x, **options)

    def test_types_of_ml_dtypes(self):
        import ml_dtypes

        for dtype in ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2:
            k, v = self.k.astype(dtype), self.v.astype(dtype)
            close(fa.attention(self.q, k, v), exact(self.q, k.astype(np.float64), v.astype(np.float64))[0])
            out = np.empty(self.k.shape, dtype)
            fa.quantize(self.k, out)
            np.testing.assert_array_equal(out.view(np.uint8), k.view(np.uint8))

    def test_scales_with_strides(self):
        """Views of one array are read where they are, others are copied."""
        stored = np.random.default_rng(0).integers(-127, 128, (2, 2, 33, 16), np.int8)
        both = np.random.default_rng(1).uniform(0.01, 0.02, (2, 2, 33, 2)).astype(np.float32)
        scale, zero = both[..., :1], both[..., 1:]
        real = (stored - zero) * scale.astype(np.float64)
        want = exact(self.q, real, self.v)[0]
        for x in fa.Scales(scale, zero), fa.Scales(scale.astype(np.float64), np.ascontiguousarray(zero)):
            close(fa.attention(self.q, stored, self.v, k_scales=x), want, 1e-3)
        record, _ = fa._arrays.quantities("k", fa.Scales(scale, zero), stored.shape, False)
        self.assertEqual((record.scale, tuple(record.stride)), (scale.ctypes.data, (132, 66, 2, 0)))
        for bad in fa.Scales(both), fa.Scales(scale, group_tokens=0), fa.Scales(scale[:, :, :5]):
            with self.assertRaises(ValueError):
                fa.attention(self.q, stored, self.v, k_scales=bad)

    def test_words(self):
        self.assertIn("decode", fa.check(self.q[:, :, :1], self.k, self.v))
        with self.assertRaisesRegex(fa.Error, "softcap") as refused:
            fa.check(self.q, self.k, self.v, softcap=-1.0)
        self.assertEqual(refused.exception.status, 20)
        with self.assertRaises(TypeError):
            fa.attention(self.q, self.k, self.v, window=3)
        with self.assertRaisesRegex(fa.Error, "FA_ERR|instruction|isa|unknown"):
            fa.limit_isa("abacus")
        before = fa.isa()
        try:
            fa.limit_isa("scalar")
            self.assertEqual(fa.isa(), "scalar")
        finally:
            fa.limit_isa(None)
        self.assertEqual(fa.isa(), before)
        self.assertEqual(fa.version(), fa.__version__)

    def test_plans(self):
        many = normal(1, 4, 500, 16)
        plan = fa.plan(many, many, many)
        self.assertEqual((plan.path, plan.threads, plan.compute, plan.key_ranges), ("prefill", 1, "f32", 1))
        self.assertIn(f"{plan.isa} f32, prefill", fa.check(many, many, many))
        plan = fa.plan(many, many, many, block_q=40, block_kv=24)
        self.assertEqual((plan.tile_rows, plan.tile_keys), (40, 24))
        keys = normal(1, 2, 3000, 64, seed=1)
        call = fa.prepare(normal(1, 4, 1, 64), keys, keys, threads=2)
        plan = call.plan()
        self.assertEqual((plan.path, plan.tile_heads, plan.work_items), ("decode", 2, 2))
        self.assertLessEqual(plan.threads, 2)
        self.assertEqual(plan.workspace_bytes, call._bytes)
        self.assertEqual(plan._fields, tuple(f for f, *_ in _library.PlanFields._fields_ if f in plan._fields))
        with self.assertRaisesRegex(fa.Error, "softcap"):
            fa.plan(self.q, self.k, self.v, softcap=-1.0)

    def test_words_of_a_whole_call(self):
        """With its threads, and what it refuses."""
        keys = normal(1, 2, 3000, 64, seed=1)
        options = {"q": normal(1, 4, 1, 64), "k": keys, "v": keys}
        alone, both = fa.check(**options), fa.check_run(**options, threads=2)
        self.assertEqual(alone, fa.check_run(**options))
        self.assertNotEqual(alone, both)
        self.assertIn("2 threads", both)
        self.assertEqual(both, fa.prepare(**options, threads=2).check_run())
        with self.assertRaisesRegex(fa.Error, "softcap"):
            fa.check_run(**options, softcap=-1.0)

    def test_bytes_of_threads(self):
        keys = normal(1, 2, 3000, 64, seed=1)
        call = fa.prepare(normal(1, 4, 1, 64), keys, keys, threads=2)
        every = [call.workspace(n) for n in range(1, 9)]
        self.assertEqual(every[1], call._bytes)
        self.assertEqual([call.workspace_max(n) for n in range(1, 9)], [max(every[:n]) for n in range(1, 9)])
        for bad in 0, 257:
            with self.assertRaises(ValueError):
                call.workspace(bad)
            with self.assertRaises(ValueError):
                call.workspace_max(bad)

    def test_parts(self):
        """Parts, on threads with a barrier or one after another, have the bits of a call."""
        for rows, length in (1, 3000), (70, 90), (1, 3):
            q, keys = normal(1, 4, rows, 64), normal(1, 2, length, 64, seed=1)
            want = fa.attention(q, keys, keys)
            for n in 1, 2, 3:
                call = fa.prepare(q, keys, keys)
                parts = call.parts(n)
                for _ in range(2):
                    call.out[:] = np.nan
                    for i in reversed(range(n)):
                        with self.assertRaisesRegex(ValueError, "when all"):
                            parts.finish(i)
                        parts.run(i)
                        with self.assertRaisesRegex(ValueError, "begun"):
                            parts.run(i)
                    for i in range(n):
                        self.assertIs(parts.finish(i), call.out)
                    np.testing.assert_array_equal(call.out.view(np.uint32), want.view(np.uint32))
                call.out[:] = np.nan
                barrier = threading.Barrier(n)

                def on_a_thread(i, parts=parts, barrier=barrier):
                    parts.run(i)
                    barrier.wait()
                    parts.finish(i)

                threads = [threading.Thread(target=on_a_thread, args=(i,)) for i in range(n)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                np.testing.assert_array_equal(call.out.view(np.uint32), want.view(np.uint32))

    def test_parts_that_are_refused(self):
        keys = normal(1, 2, 3000, 64, seed=1)
        call = fa.prepare(normal(1, 4, 1, 64), keys, keys)
        size = call.workspace(2)
        for bad in 0, 257:
            with self.assertRaises(ValueError):
                call.parts(bad)
        for bad in np.empty(size - 1, np.uint8), np.empty(size, np.float32), np.empty((2, size), np.uint8):
            with self.assertRaisesRegex(ValueError, "memory"):
                call.parts(2, bad)
        memory = np.empty(size + 5, np.uint8)
        parts = call.parts(2, memory[5:])
        for bad in -1, 2:
            with self.assertRaisesRegex(ValueError, "none of 2"):
                parts.run(bad)
            with self.assertRaisesRegex(ValueError, "none of 2"):
                parts.finish(bad)
        lens = np.array([3000], np.int32)
        call = fa.prepare(normal(1, 4, 1, 64), keys, keys, kv_lens=lens)
        parts = call.parts(1)
        lens[0] = -1
        with self.assertRaisesRegex(fa.Error, "kv_lens"):
            parts.run(0)
        lens[0] = 3000
        parts.run(0)
        np.testing.assert_array_equal(parts.finish(0), fa.attention(normal(1, 4, 1, 64), keys, keys))

    def test_warnings(self):
        pages = np.broadcast_to(self.k[:1], (3, *self.k.shape[1:]))
        words = fa.check(self.q, pages, pages, block_table=[[0], [1]], len_kv=33)
        self.assertIn("warning: k.stride[0] = 0: all pages", words)
        self.assertNotIn("warning", fa.check(self.q, self.k, self.v))

    def test_matrix_unit(self):
        before = fa.isa()
        try:
            fa.enable_amx()
        except fa.Error as refused:
            self.assertEqual(refused.status, 9)
            self.assertRegex(str(refused), "AMX: ")
            self.assertEqual(fa.isa(), before)
        else:
            self.assertEqual(fa.isa(), "amx")

    def test_names_and_layouts(self):
        """Options are those of the function behind them, and structures those of the header."""
        names = [n for n, p in signature(_attention.describe).parameters.items() if p.kind is p.KEYWORD_ONLY]
        self.assertEqual(names, list(fa.Options.__annotations__))
        for name in names:
            self.assertRegex(fa.attention.__doc__, rf"\b{name}\b")
        table = Path(__file__).resolve().parents[3] / "c_tests" / "abi.txt"
        rows = [line.split() for line in table.read_text().splitlines()]
        for name, structure in (
            ("fa_quant", _library.Quant),
            ("fa_tensor", _library.Tensor),
            (
                "fa_attention",
                _library.Description,
            ),
            ("fa_plan", _library.PlanFields),
            ("fa_pool", _library.PoolFields),
            ("fa_sparse_config", _library.SparseConfig),
            ("fa_sparse_lists", _library.SparseListsFound),
        ):
            want = {r[1]: (int(r[2]), int(r[3])) for r in rows if r[0] == name and r[1] != "-"}
            got = {f: (getattr(structure, f).offset, getattr(structure, f).size) for f, *_ in structure._fields_}
            self.assertEqual(got, want)
        self.assertIn(["version", str(_library.ABI_VERSION)], [r[:2] for r in rows])
        self.assertTrue(typing.get_type_hints(fa.version))


class Calls(unittest.TestCase):
    def test_prepared(self):
        """A loop of decode, whose arrays change between runs."""
        q, k, v = normal(1, 4, 1, 16), np.zeros((1, 2, 40, 16), np.float32), np.zeros((1, 2, 40, 16), np.float32)
        lens, lse = np.array([0], np.int32), np.empty((1, 4, 1), np.float32)
        call = fa.prepare(q, k, v, kv_lens=lens, causal=True, lse=lse)
        for t in range(40):
            q[...] = normal(1, 4, 1, 16, seed=t)
            k[:, :, t], v[:, :, t] = normal(1, 2, 16, seed=100 + t), normal(1, 2, 16, seed=200 + t)
            lens[0] = t + 1
            self.assertIs(call.run(), call.out)
            want, log, _ = exact(q, k[:, :, : t + 1], v[:, :, : t + 1])
            close(call.out, want)
            close(lse, log)
        lens[0] = 41
        with self.assertRaisesRegex(fa.Error, "41"):
            call.run()
        lens[0] = 40
        call()
        close(call.out, want)

    def test_bound_again(self):
        q, k, v = normal(2, 4, 70, 16), normal(2, 2, 33, 16), normal(2, 2, 33, 16, seed=1)
        call = fa.prepare(q, k, v)
        call.run()
        new = normal(2, 70, 4, 16, seed=9).transpose(0, 2, 1, 3)
        out = np.empty((2, 70, 4, 16), np.float32).transpose(0, 2, 1, 3)
        self.assertIs(call.bind(q=new, out=out), call)
        self.assertIs(call.run(), out)
        np.testing.assert_array_equal(out, fa.attention(new, k, v))
        for bad, kind in (
            ({"q": q[:1]}, ValueError),
            ({"k": k.astype(np.float16)}, TypeError),
            ({"mask": k}, TypeError),
            ({"out": np.broadcast_to(out[..., :1], out.shape)}, ValueError),
        ):
            with self.assertRaises(kind):
                call.bind(**bad)
        # What was refused changed nothing.
        out[...] = 0
        call.run()
        np.testing.assert_array_equal(out, fa.attention(new, k, v))
        call.bind(out=new)
        with self.assertRaisesRegex(fa.Error, "share"):
            call.run()
        call.bind(out=out).run()
        np.testing.assert_array_equal(out, fa.attention(new, k, v))
        # Scales stay.
        stored = np.random.default_rng(0).integers(-9, 9, k.shape, np.int8)
        scales = fa.Scales(np.full((1, 1, 1, 1), 0.1, np.float32))
        call = fa.prepare(q, stored, v, k_scales=scales)
        np.testing.assert_array_equal(
            call.bind(k=stored[::-1].copy()).run(), fa.attention(q, stored[::-1].copy(), v, k_scales=scales)
        )

    def test_other_instruction_sets_need_other_memory(self):
        q, k = normal(1, 2, 70, 64), normal(1, 2, 300, 64)
        fa.free_scratch()
        try:
            fa.limit_isa("scalar")
            call = fa.prepare(q, k.astype(np.float16), k.astype(np.float16))
            close(call.run(), exact(q, k, k)[0], 2e-3)
        finally:
            fa.limit_isa(None)
        close(call.run(), exact(q, k, k)[0], 2e-3)
        # Not every type has kernels of the best instruction set.
        self.assertEqual("scalar" in call.check(), fa.isa() == "scalar")

    def test_arrays_live_as_long_as_the_call(self):
        given = {"kv_lens": [4], "mask": normal(3, 5), "sinks": [1.0, 2.0], "alibi_slopes": [0.5, 0.25]}
        call = fa.prepare(normal(1, 2, 3, 16), normal(1, 2, 5, 16), normal(1, 2, 5, 16), **given)
        rubbish = [np.full(n, np.nan, np.float32) for n in (160, 96, 15, 2) * 100]
        self.assertTrue(np.isfinite(call.run()).all())
        del rubbish

    def test_threads(self):
        """The same bits on any threads; pools may be closed and used at the same time."""
        q, k, v = normal(2, 8, 90, 32), normal(2, 2, 300, 32), normal(2, 2, 300, 32, seed=1)
        want = fa.attention(q, k, v, causal=True)
        with ThreadPoolExecutor(3) as executor, fa.Pool(2) as pool:
            self.assertEqual(pool.width, 2)
            own = fa.ExecutorPool(executor, 3)
            for threads in 0, 1, 2, pool, own:
                np.testing.assert_array_equal(fa.attention(q, k, v, causal=True, threads=threads), want)
                call = fa.prepare(q, k, v, causal=True, threads=threads)
                np.testing.assert_array_equal(call.run(), want)
            # On threads of the executor itself, all of which wait for others to be free.
            calls = [executor.submit(fa.attention, q, k, v, causal=True, threads=own) for _ in range(6)]
            for c in calls:
                np.testing.assert_array_equal(c.result(60), want)
            try:
                fa.set_threads(pool)
                np.testing.assert_array_equal(fa.attention(q, k, v, causal=True), want)
                self.assertIs(_threads.pool_of(None), pool)
                fa.set_threads(2)
                self.assertEqual(_threads.pool_of(None).width, 2)
            finally:
                fa.set_threads(1)
            self.assertIsNone(_threads.pool_of(None))
        np.testing.assert_array_equal(fa.attention(q, k, v, causal=True, threads=own), want)
        with self.assertRaisesRegex(ValueError, "closed"):
            fa.attention(q, k, v, threads=pool)
        for bad in 0, 257:
            with self.assertRaises(ValueError):
                fa.ExecutorPool(executor, bad)

    def test_a_pool_that_is_closed_meanwhile(self):
        q, k, v = normal(2, 8, 90, 32), normal(2, 2, 300, 32), normal(2, 2, 300, 32, seed=1)
        want = fa.attention(q, k, v)
        for _ in range(10):
            pool, wrong, begun = fa.Pool(2), [], threading.Barrier(3)

            def work(pool=pool, wrong=wrong, begun=begun):
                begun.wait()
                try:
                    for _ in range(50):
                        if not np.array_equal(fa.attention(q, k, v, threads=pool), want):
                            wrong.append(1)
                except ValueError as e:
                    wrong.extend([] if "closed" in str(e) else [e])

            threads = [threading.Thread(target=work) for _ in range(2)]
            for t in threads:
                t.start()
            begun.wait()
            pool.close()
            for t in threads:
                t.join()
            self.assertEqual(wrong, [])
            self.assertIsNone(pool._handle)

        pool = fa.Pool(2)
        pool.enter()
        pool.close()
        self.assertIsNotNone(pool._handle)
        pool.leave()
        self.assertIsNone(pool._handle)

    @unittest.skipUnless(hasattr(os, "fork"), "no fork")
    def test_a_child_computes(self):
        q, k, v = normal(2, 8, 90, 32), normal(2, 2, 300, 32), normal(2, 2, 300, 32, seed=1)
        with fa.Pool(2) as pool:
            want = fa.attention(q, k, v, threads=pool)
            fa.attention(q, k, v, threads=2)
            child = os.fork()
            if child == 0:
                same = False
                try:
                    same = all(np.array_equal(fa.attention(q, k, v, threads=t), want) for t in (1, 2, pool))
                finally:
                    os._exit(0 if same else 1)
            self.assertEqual(os.waitpid(child, 0)[1], 0)


class Caches(unittest.TestCase):
    def test_ragged_append(self):
        cu_q, cu_kv = [0, 2, 2, 5], [0, 4, 9, 12]
        new_k, new_v = normal(5, 3, 16).transpose(1, 0, 2), normal(5, 3, 8, seed=1).transpose(1, 0, 2)
        k, v = np.zeros((3, 12, 16), np.float16), np.zeros((3, 12, 8), np.float32)
        fa.append(k, v, new_k, new_v, cu_len_q=cu_q, cu_len_kv=cu_kv)
        want_k, want_v = np.zeros_like(k), np.zeros_like(v)
        for at, rows in (slice(2, 4), slice(0, 2)), (slice(9, 12), slice(2, 5)):
            want_k[:, at], want_v[:, at] = new_k[:, rows], new_v[:, rows]
        np.testing.assert_array_equal(k, want_k)
        np.testing.assert_array_equal(v, want_v)
        # Values alone, into lists of pages.
        pages = np.zeros((4, 3, 2, 16), np.float16), np.zeros((4, 3, 2, 8), np.float32)
        lists = {"block_table": [3, 1, 0, 2], "block_table_start": [0, 2, 4], "kv_lens": [3, 4]}
        fa.append(*pages, None, new_v[None, :, :2].repeat(2, 0), **lists)
        self.assertFalse(pages[0].any())
        np.testing.assert_array_equal(pages[1][3, :, 1], new_v[:, 0])
        np.testing.assert_array_equal(pages[1][1, :, 0], new_v[:, 1])
        np.testing.assert_array_equal(pages[1][2], new_v[:, :2])
        for bad in (
            lambda: fa.append(k, v, None, None),
            lambda: fa.append(k, v, new_k, new_v, cu_len_q=[0, 6], cu_len_kv=[0, 12]),
            lambda: fa.append(k, v, new_k, new_v[:2], q_pos=0),
            lambda: fa.append(k, v, new_k, new_v, q_pos=9),
        ):
            with self.assertRaises(ValueError):
                bad()
        np.testing.assert_array_equal(k, want_k)

    def test_smoothed_keys(self):
        x = normal(1, 2, 50, 32) + 10 * normal(1, 2, 1, 32, seed=5)
        mean = x.mean((0, 2))
        stored, scales = np.zeros(x.shape, np.int8), fa.Scales(np.zeros((1, 2, 50, 1), np.float32))
        fa.quantize(x, stored, scales, smooth=mean)
        np.testing.assert_allclose(
            stored * scales.scale + mean[None, :, None], x, 0, np.abs(x - mean[:, None]).max() / 250
        )
        with self.assertRaises(ValueError):
            fa.quantize(x, stored, scales, smooth=mean[0])

    def test_merge(self):
        q, k, v = normal(2, 4, 9, 16), normal(2, 4, 33, 16, seed=1), normal(2, 4, 33, 24, seed=2)
        parts = []
        for keys in slice(0, 13), slice(13, 33):
            lse = np.empty((2, 4, 9), np.float32)
            parts += [fa.attention(q, k[:, :, keys], v[:, :, keys], lse=lse), lse]
        self.assertIs(fa.merge(*parts), parts[0])
        out, log, _ = exact(q, k, v)
        close(parts[0], out)
        close(parts[1], log)
        o, lse, o2, lse2 = parts
        for bad in (
            (o, lse, o2[..., :23], lse2),
            (o, lse[..., :8], o2, lse2),
            (o.astype(np.float64), lse, o2, lse2),
            (o, lse, np.empty((2, 9, 4, 24), np.float32).transpose(0, 2, 1, 3), lse2),
            (o, lse, o, lse2),
        ):
            with self.assertRaises((ValueError, TypeError)):
                fa.merge(*bad)
        close(parts[0], out)
