#!/usr/bin/env python3
"""Tests of cpu_attention.torch: what takes the place of PyTorch's kernels, and the operator, against float64.

test_torch.py [--library LIBRARY.so] [TEST...]
"""

import argparse
import os
import subprocess
import sys
import unittest
import warnings
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
parser = argparse.ArgumentParser()
parser.add_argument("--library", help="in place of the one in the package, which need not be installed then")
parser.add_argument("tests", nargs="*")
arguments = parser.parse_args() if __name__ == "__main__" else parser.parse_args([])
if arguments.library:
    sys.path.insert(0, str(HERE.parents[1]))
sys.path.insert(0, str(HERE.parent))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import torch.utils.flop_counter  # noqa: E402
from common import exact  # noqa: E402

import cpu_attention as fa  # noqa: E402

fa.load(arguments.library)
from torch.library import opcheck  # noqa: E402

import cpu_attention.torch as fat  # noqa: E402

FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
# Largest difference from float64, by the type.
BOUNDS = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def heads(batch, heads_q, heads_kv, rows, keys, dim, dim_v=None, dtype=torch.float32):
    """q, k and v as models have them: views of [batch][token][head][dim]."""
    sizes = (rows, heads_q, dim), (keys, heads_kv, dim), (keys, heads_kv, dim_v or dim)
    return [normal(batch, *s, seed=i, dtype=dtype).transpose(1, 2) for i, s in enumerate(sizes)]


def of(x):
    return x.detach().double().numpy()


def wanted(q, k, v, **given):
    return exact(of(q), of(k), of(v), **given)


class Overrides(unittest.TestCase):
    """Each test with each override."""

    def setUp(self):
        self.addCleanup(fat.disable)

    def ours(self, sdpa, q, k, v, *args, exactly=None, **options):
        """The output, which has the library's bits (with what attention() is to be told), not PyTorch's."""
        fat.enable(sdpa=sdpa)
        got = F.scaled_dot_product_attention(q, k, v, *args, **options)
        fat.disable()
        if exactly is not None:
            want, _ = fat.attention(q, k, v, q_pos=0, **exactly)
            self.assertTrue(torch.equal(got, want))
        return got

    def test_types_heads_and_lengths(self):
        for sdpa in False, True:
            for dtype, bound in BOUNDS.items():
                for shape in (2, 4, 4, 9, 33, 16), (1, 8, 2, 70, 70, 64), (1, 4, 4, 1, 300, 128), (2, 2, 1, 40, 7, 20):
                    q, k, v = heads(*shape, dtype=dtype)
                    for causal in False, True:
                        seen = np.arange(shape[4]) <= np.arange(shape[3])[:, None] if causal else True
                        options = {"is_causal": causal, "enable_gqa": shape[1] != shape[2], "scale": 0.3}
                        got = self.ours(sdpa, q, k, v, exactly={"causal": causal, "scale": 0.3}, **options)
                        self.assertEqual((got.dtype, got.shape), (dtype, q.shape))
                        want = wanted(q, k, v, seen=seen, scale=0.3)[0]
                        np.testing.assert_allclose(of(got), want, 0, bound * float(v.abs().max()))

    def test_masks(self):
        q, k, v = heads(2, 4, 4, 9, 33, 16)
        for sdpa in False, True:
            for shape in (9, 33), (2, 1, 9, 33), (1, 4, 1, 33), (2, 4, 9, 33), (1, 1, 9, 33):
                mask = normal(*shape)
                for m, given in (mask, {"bias": of(mask)}), (mask > 0, {"seen": (mask > 0).numpy()}):
                    # PyTorch makes booleans additive before the override of its kernel is called.
                    told = m if sdpa or m.dtype != torch.bool else torch.zeros(m.shape).masked_fill(~m, -torch.inf)
                    got = self.ours(sdpa, q, k, v, m, exactly={"mask": told})
                    np.testing.assert_allclose(of(got), wanted(q, k, v, **given)[0], 0, 1e-5)

    def test_only_the_wider_one(self):
        """3 axes, and values of another width."""
        q, k, v = (x[0] for x in heads(1, 4, 4, 9, 33, 16, 24))
        for x in (q, k, v), (q[None], k[None], v[None]):
            got = self.ours(True, *x, exactly={})
            want = wanted(q[None], k[None], v[None])[0]
            np.testing.assert_allclose(of(got).reshape(want.shape), want, 0, 1e-5)
            # Without it PyTorch computes.
            np.testing.assert_allclose(of(self.ours(False, *x)).reshape(want.shape), want, 0, 1e-5)

    def test_what_is_left_to_pytorch_has_its_bits(self):
        q, k, v = heads(2, 4, 4, 9, 33, 16)
        wide = normal(2, 4, 33, 32)
        for args, options in (
            ((q.double(), k.double(), v.double()), {}),
            ((q[None], k[None], v[None]), {}),
            ((q, k[:1], v[:1]), {}),
            ((normal(2, 4, 9, 32)[..., ::2], k, v), {}),
            ((q, k[:, :, :0], v[:, :, :0]), {}),
            ((q, k, v, torch.zeros(9, 1)), {}),
            ((q[:, :, :0], k, v), {}),
            ((q[0, 0], k[0, 0], v[0, 0]), {}),
            ((q, k, v, normal(9, 66)[:, ::2]), {}),
            ((q[:0], k[:0], v[:0]), {}),
        ):
            want = F.scaled_dot_product_attention(*args, **options)
            for sdpa in False, True:
                got = self.ours(sdpa, *args, **options)
                self.assertTrue(torch.equal(got.nan_to_num(7), want.nan_to_num(7)), [x.shape for x in args])
        # Elements of k and v may lie apart; dropout is random.
        got = self.ours(True, q, wide[..., ::2], v, exactly={})
        np.testing.assert_allclose(of(got), wanted(q, wide[..., ::2], v)[0], 0, 1e-5)
        torch.manual_seed(3)
        want = F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)
        for sdpa in False, True:
            torch.manual_seed(3)
            self.assertTrue(torch.equal(self.ours(sdpa, q, k, v, dropout_p=0.5), want))
        with self.assertRaises(RuntimeError):
            self.ours(True, *heads(1, 4, 2, 3, 5, 16))

    def test_gradients(self):
        """By PyTorch's backward, from our log-sum-exp; those of masked rows are zeros."""
        for mask in None, normal(9, 33), torch.ones(9, 33, dtype=torch.bool).tril(-2):
            x = heads(2, 4, 4, 9, 33, 16)
            weight = normal(2, 4, 9, 16, seed=9)
            leaves = [a.double().requires_grad_() for a in x]
            bias = None if mask is None else mask.double() if mask.is_floating_point() else mask
            seen = torch.tensor(True) if mask is None or mask.is_floating_point() else mask
            s = leaves[0] @ leaves[1].transpose(-1, -2) / 4
            s = s + bias if mask is not None and mask.is_floating_point() else s
            p = torch.softmax(s.masked_fill(~seen, -1e30), -1) * seen
            (p @ leaves[2] * weight).sum().backward()
            for sdpa in False, True:
                fat.enable(sdpa=sdpa)
                own = [a.clone().requires_grad_() for a in x]
                out = F.scaled_dot_product_attention(*own, mask)
                with warnings.catch_warnings():
                    # Where autograd knows no kernel, it warns.
                    warnings.simplefilter("error")
                    (out * weight).sum().backward()
                fat.disable()
                for a, b in zip(own, leaves, strict=True):
                    np.testing.assert_allclose(of(a.grad), b.grad, 0, 1e-5)

    def test_log_sum_exp(self):
        q, k, v = heads(2, 4, 2, 9, 33, 16)
        fat.enable()
        mask = torch.zeros(2, 1, 9, 33)
        mask[1, 0, 4] = -torch.inf
        out, lse = FLASH(q, k, v, attn_mask=mask)
        fake = FLASH(*(x.to("meta") for x in (q, k, v)))
        for got, promised in zip((out, lse), fake, strict=True):
            self.assertEqual((got.shape, got.stride(), got.dtype), (promised.shape, promised.stride(), promised.dtype))
        want, log, _ = wanted(q, k, v, bias=of(mask))
        np.testing.assert_allclose(of(out), want, 0, 1e-5)
        np.testing.assert_allclose(of(lse), np.where(np.isneginf(log), 0, log), 0, 1e-5)
        self.assertTrue((of(lse)[1, :, 4] == 0).all())
        # What PyTorch's kernel refuses stays refused.
        for bad in (q, k, normal(2, 2, 33, 24)), (q[0], k[0], v[0]):
            with self.assertRaises(RuntimeError):
                FLASH(*bad)

    def test_compilers(self):
        """Graphs, fake tensors, vmap, autocast, export and trace compute the same."""
        q, k, v = heads(2, 4, 4, 9, 33, 16)

        class Model(torch.nn.Module):
            def forward(self, q, k, v):
                return F.scaled_dot_product_attention(q * 2, k, v, is_causal=True) + 1

        model = Model()
        want = wanted(2 * q, k, v, seen=np.arange(33) <= np.arange(9)[:, None])[0] + 1
        for sdpa in False, True:
            fat.enable(sdpa=sdpa)
            traced = torch.jit.trace(model, (q, k, v))
            exported = torch.export.export(model, (q, k, v)).module()
            vmapped = torch.vmap(model)
            calls = {"trace": traced, "export": exported}
            for backend in "eager", "aot_eager", "inductor":
                torch._dynamo.reset()
                calls[backend] = torch.compile(model, backend=backend, fullgraph=True)
            for name, call in calls.items():
                np.testing.assert_allclose(of(call(q, k, v)), want, 0, 1e-5, err_msg=name)
                leaf = q.clone().requires_grad_()
                if name != "trace":
                    call(leaf, k, v).sum().backward()
                    self.assertTrue(bool(leaf.grad.abs().sum() > 0), name)
            got = vmapped(*(x[:, None] for x in (q, k, v)))[:, 0]
            np.testing.assert_allclose(of(got), want, 0, 1e-5)
            with torch.autocast("cpu", torch.bfloat16):
                got = model(q, k, v)
            np.testing.assert_allclose(of(got), want, 0, 0.1)
            with torch._subclasses.FakeTensorMode() as mode:
                fake = model(*(mode.from_tensor(x) for x in (q, k, v)))
            self.assertEqual(fake.shape, (2, 4, 9, 16))

    def test_nobody_is_bypassed(self):
        """Modes that watch operators see them, and tangents are not lost."""
        q, k, v = heads(2, 4, 4, 9, 33, 16)
        for sdpa in False, True:
            fat.enable(sdpa=sdpa)
            with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
                F.scaled_dot_product_attention(q, k, v)
            self.assertEqual(counter.get_total_flops(), 2 * 2 * 2 * 4 * 9 * 33 * 16)
            with torch.autograd.forward_ad.dual_level(), self.assertRaises(NotImplementedError):
                dual = torch.autograd.forward_ad.make_dual(q, q)
                F.scaled_dot_product_attention(dual, k, v)

    def test_threads(self):
        q, k, v = heads(2, 8, 8, 130, 300, 64)
        before = torch.get_num_threads()
        self.addCleanup(torch.set_num_threads, before)
        outputs = []
        for n in 1, 2, 3:
            torch.set_num_threads(n)
            outputs.append(self.ours(True, q, k, v))
        for out in outputs[1:]:
            self.assertTrue(torch.equal(out, outputs[0]))


@unittest.skipUnless(find_spec("expecttest"), "expecttest is not installed")
class Samples(unittest.TestCase):
    """What PyTorch tests its own function with: no farther from float64 than PyTorch is, or than the type says."""

    def setUp(self):
        self.addCleanup(fat.disable)

    def test_samples(self):
        from torch.testing._internal.common_methods_invocations import op_db

        (op,) = (o for o in op_db if o.name == "nn.functional.scaled_dot_product_attention")
        checked = 0
        for dtype, bound in BOUNDS.items():
            for gradients in False, True:
                for sample in op.sample_inputs("cpu", dtype, requires_grad=gradients):
                    if sample.kwargs.get("dropout_p"):
                        continue
                    tensors = [sample.input, *sample.args]
                    if any(not isinstance(t, torch.Tensor) for t in tensors):
                        continue
                    doubles = [t.detach().double().requires_grad_(gradients) for t in tensors]
                    options = {
                        n: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
                        for n, x in sample.kwargs.items()
                    }
                    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                        want = F.scaled_dot_product_attention(*doubles, **options)
                    theirs = self.errors(tensors, sample.kwargs, doubles, want, gradients)
                    for sdpa in False, True:
                        fat.enable(sdpa=sdpa)
                        ours = self.errors(tensors, sample.kwargs, doubles, want, gradients)
                        fat.disable()
                        for our, their in zip(ours, theirs, strict=True):
                            self.assertLessEqual(our, max(1.01 * their, bound), f"{dtype} {[t.shape for t in tensors]}")
                    checked += 1
        print(f"{checked} samples")
        self.assertGreater(checked, 50)

    def errors(self, tensors, options, doubles, want, gradients):
        """Largest differences of the output and the gradients, the largest numbers being 1."""
        leaves = [t.detach().clone().requires_grad_(gradients) for t in tensors]
        out = F.scaled_dot_product_attention(*leaves, **options)
        self.assertEqual(out.shape, want.shape)
        pairs = [(out, want)]
        if gradients:
            weight = normal(*out.shape).double()
            own = torch.autograd.grad((out * weight.to(out.dtype)).sum(), leaves)
            right = torch.autograd.grad((want * weight.to(out.dtype).double()).sum(), doubles, retain_graph=True)
            pairs += zip(own, right, strict=True)
        found = []
        for got, right in pairs:
            a, b = got.detach().double(), right.detach()
            # A NaN is an error unless there is one in float64, too.
            off = torch.where(a.isnan() & b.isnan(), 0.0, (a - b).abs()).nan_to_num(torch.inf, torch.inf)
            found.append(float(off.max()) / max(1.0, float(b.abs().nan_to_num(0).max())) if b.numel() else 0.0)
        return found


class Operator(unittest.TestCase):
    def close(self, given, q, k, v, bound=1e-5, **want):
        out, lse = fat.attention(q, k, v, **given)
        exact_out, exact_lse, _ = wanted(q, k, v, **want)
        np.testing.assert_allclose(of(out), exact_out, 0, bound)
        np.testing.assert_allclose(of(lse), exact_lse, 0, bound)
        self.assertEqual(out.transpose(-2, -3).is_contiguous(), True)

    def test_fields(self):
        q, k, v = heads(2, 4, 2, 9, 33, 16, 24)
        p, j = np.arange(9)[:, None] + 24, np.arange(33)
        mask, sinks = normal(2, 1, 9, 33), torch.tensor([0.5, 2, -1, 3])
        slopes = torch.tensor([1, 0.5, 0.25, 0.0])
        bias = -slopes.double().numpy()[:, None, None] * np.abs(p - j)
        starts = np.array([2, 30])[:, None, None, None]
        lens = np.array([33, 11])[:, None, None, None]
        at = lambda x: torch.tensor(x, dtype=torch.int32)  # noqa: E731
        end = np.arange(9)[:, None] + lens - 9
        for given, want in (
            ({}, {}),
            ({"scale": 0.0}, {"scale": 0.0}),
            ({"softcap": 2.0, "scale": 0.7}, {"softcap": 2.0, "scale": 0.7}),
            ({"causal": True}, {"seen": j <= p}),
            ({"window_left": 5, "window_right": 2}, {"seen": (j >= p - 5) & (j <= p + 2)}),
            ({"causal": True, "window_left": 5, "prefix_keys": 3}, {"seen": ((j >= p - 5) | (j < 3)) & (j <= p)}),
            ({"causal": True, "q_pos": 3}, {"seen": j <= p - 21}),
            ({"causal": True, "q_positions": at([3, 24])}, {"seen": j <= p - np.array([21, 0])[:, None, None, None]}),
            ({"kv_starts": at([2, 30])}, {"seen": j >= starts}),
            ({"kv_lens": at([33, 11]), "causal": True}, {"seen": (j < lens) & (j <= end)}),
            ({"sinks": sinks, "alibi_slopes": slopes}, {"sinks": sinks, "bias": bias}),
            ({"mask": mask}, {"bias": of(mask)}),
            ({"mask": (mask > 0)[0, 0]}, {"seen": (mask > 0)[0, 0].numpy()}),
        ):
            self.close(given, q, k, v, **want)
        for dtype in torch.float16, torch.bfloat16:
            self.close({}, *(x.to(dtype) for x in (q, k, v)), bound=4e-2)
        out, lse = fat.attention(q[0], k[0], v[0])
        both = fat.attention(q, k, v)
        self.assertTrue(torch.equal(out, both[0][0]) and torch.equal(lse, both[1][0]))

    def test_layouts(self):
        """Ragged batches, and pages: as each sequence alone."""
        at = lambda x: torch.tensor(x, dtype=torch.int32)  # noqa: E731
        q, k, v = normal(4, 12, 16), normal(2, 32, 16, seed=1), normal(2, 32, 24, seed=2)
        cu_q, cu_kv = [0, 3, 3, 12], [0, 7, 12, 32]
        out, lse = fat.attention(q, k, v, cu_len_q=at(cu_q), cu_len_kv=at(cu_kv), causal=True)
        for b in range(3):
            rows, keys = slice(cu_q[b], cu_q[b + 1]), slice(cu_kv[b], cu_kv[b + 1])
            one, log = fat.attention(q[:, rows], k[:, keys], v[:, keys], causal=True)
            self.assertTrue(
                torch.allclose(out[:, rows], one, atol=1e-6) and torch.allclose(lse[:, rows], log, atol=1e-6)
            )
        table, lens = [[5, 0, 3], [1, 6, 2]], [11, 6]
        k, v, q = normal(8, 2, 4, 16), normal(8, 2, 4, 24, seed=1), normal(2, 4, 3, 16)
        out, _ = fat.attention(q, k, v, block_table=at(table), kv_lens=at(lens), causal=True)
        # Of a wider table the first pages, and the same pages in one list.
        wide = at([[*row, 99] for row in table])[:, :3]
        lists = {"block_table": at(sum(table, [])), "block_table_start": at([0, 3, 6])}
        for pages in {"block_table": wide}, lists:
            self.assertTrue(torch.equal(fat.attention(q, k, v, kv_lens=at(lens), causal=True, **pages)[0], out))
        for b in range(2):
            dense = [x[table[b]].transpose(0, 1).flatten(1, 2)[None, :, : lens[b]] for x in (k, v)]
            self.assertTrue(
                torch.allclose(out[b : b + 1], fat.attention(q[b : b + 1], *dense, causal=True)[0], atol=1e-6)
            )

    def as_the_package(self, q, k, v, options):
        """The bits of cpu_attention.attention() with the same options, which its own tests compare with float64."""
        lse, shape = torch.empty(q.shape[:-1]), options.get("weights")
        both = [options if shape is None else {**options, "weights": torch.full(shape, 7.0)} for _ in range(2)]
        want = fa.attention(q, k, v, lse=lse, **both[0])
        got = fat.attention(q, k, v, **both[1])
        for a, b in (got[0], want), (got[1], lse), *([] if shape is None else [[x["weights"] for x in both]]):
            self.assertEqual(a.dtype, b.dtype)
            self.assertTrue(torch.equal(a, b), str(options))
        self.assertFalse(bool(got[0].isnan().any()))
        return got[0]

    def test_every_option(self):
        """Each one is passed on, and changes the output, unless it is only another way to say the same."""
        q, k, v = heads(2, 4, 2, 9, 33, 16, 24)
        at = lambda x: torch.tensor(x, dtype=torch.int32)  # noqa: E731
        plain = {"causal": True, "window_left": 20}
        want = self.as_the_package(q, k, v, plain)
        blocks = normal(2, 1, 3, 6) > 0
        blocks[..., 3:5] = True
        pairs = {"spans": at([[20, 26], [24, 33]]), "span_starts": at([0, 1, 2])}
        tried = set(plain)
        for options, same in (
            ({"scale": 0.7}, False),
            ({"softcap": 2.0}, False),
            ({"causal": False, "window_right": 3}, False),
            ({"prefix_keys": 4}, False),
            ({"q_pos": 20}, False),
            ({"q_positions": at([20, 23])}, False),
            ({"q_positions": 24}, True),
            ({"kv_lens": at([33, 30])}, False),
            ({"kv_lens": [33, 30]}, False),
            ({"kv_lens": at([30])}, False),
            ({"kv_starts": 10}, False),
            ({"mask": normal(9, 33)}, False),
            ({"mask": normal(33).numpy()}, False),
            ({"mask": normal(9, 33), "mask_times_slope": True, "alibi_slopes": [1.0, 0.5, 0.3, 0.1]}, False),
            ({"alibi_slopes": normal(2, 4).abs()}, False),
            ({"sinks": [0.5, 2.0, -1.0, 3.0]}, False),
            ({"block_mask": blocks, "block_mask_q": 4, "block_mask_kv": 6}, False),
            ({"block_mask": blocks.to(torch.uint8), "block_mask_q": 3, "block_mask_kv": 6}, False),
            ({"block_mask": torch.ones(1, 7, dtype=torch.bool), "block_mask_q": 9, "block_mask_kv": 5}, True),
            ({"kept_start": at([[0, 2, 3, 4], [0, 0, 1, 2]]), "kept_blocks": at([0, 5, 5, 4]), "kept_q": 4, "kept_kv": 6}, False),
            ({"columns": [0, 4, 5], "window_left": 2, "causal": True}, False),
            ({"columns": at([0, 3, 9]), "column_start": at([[0, 2], [2, 3]]), "window_left": 2}, False),
            ({"columns": [30], "column_start": [0, 1]}, True),
            ({"kept_start": [0, 7], "kept_blocks": list(range(7)), "kept_q": 9, "kept_kv": 5}, True),
            (pairs, False),
            ({"len_q": 9, "len_kv": 30}, False),
            ({"weights": (2, 4, 9, 33)}, True),
            ({"weights": (2, 2, 1, 33), "weight_heads": at([1, 3]), "weight_rows": [-1]}, True),
            ({"block_q": 4, "block_kv": 8}, True),
        ):
            tried |= set(options)
            with self.subTest(str(list(options))):
                got = self.as_the_package(q, k, v, {**plain, **options})
                self.assertEqual(torch.allclose(got, want, atol=1e-6), same)
        half = [x.to(torch.bfloat16) for x in (q, k, v)]
        self.as_the_package(*half, {"precise": True})
        tried |= {"precise", "fast", *(f"{x}_scales" for x in "qkv")}
        tried |= {"cu_len_q", "cu_len_kv", "block_table", "block_table_start"}
        self.assertEqual(tried, set(fa.Fields.__annotations__))
        names = {x.name for x in torch.ops.cpu_attention.attention.weights._schema.arguments}
        self.assertEqual(
            names - tried, {"q", "k", "v", *(f"{x}_{y}" for x in "qkv" for y in ("scale", "zero", "groups"))}
        )

    def test_eight_bits(self):
        q = normal(2, 4, 9, 32)
        for kind in torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2, torch.int16:
            for groups, extent in (
                ((1, 1), (2, 1, 1, 1)),
                ((1, 1), (2, 2, 33, 1)),
                ((1, 16), (1, 2, 1, 2)),
                ((8, 32), (2, 1, 5, 1)),
            ):
                stored, made = [], []
                for seed in 1, 2:
                    x = normal(2, 33, 2, 32, seed=seed).transpose(1, 2)
                    x = x.mul(30).add(128 if kind == torch.uint8 else 0).round() if "int" in str(kind) else x
                    x = x.mul(100) if kind == torch.int16 else x
                    stored.append(x.to(kind))
                    scale = normal(*extent, seed=seed).abs() * 0.02 + 0.01
                    zero = None if kind not in (torch.int8, torch.uint8) else normal(*extent, seed=seed + 3) * 5
                    made.append(fa.Scales(scale, zero, *groups))
                unit = 32768 if kind == torch.int16 else 1
                wide = [
                    (x.double() / unit - (0 if s.zero is None else self.spread(s.zero, groups)))
                    * self.spread(s.scale.double(), groups)
                    for x, s in zip(stored, made, strict=True)
                ]
                options = {"k_scales": made[0], "v_scales": made[1]}
                with self.subTest(str((kind, groups, extent))):
                    got = self.as_the_package(q, *stored, options)
                    bound = 1e-3 * float(wide[1].abs().max())
                    np.testing.assert_allclose(of(got), wanted(q, *wide)[0], 0, bound)
        # Fewer digits where that is asked for; scales and zeros that lie differently are copied.
        k, v = ((normal(2, 2, 33, 32, seed=i) * 30).to(torch.int8) for i in (1, 2))
        zero = normal(2, 2, 1, 33).transpose(2, 3)
        given = {
            "k_scales": fa.Scales(torch.full((2, 2, 33, 1), 0.02), zero),
            "v_scales": fa.Scales(torch.full((1, 1, 1, 1), 0.02)),
        }
        self.as_the_package(q, k, v, given)
        self.as_the_package(q, k, v, {**given, "fast": True})
        # Queries of 8 bits have an output of float32.
        out = self.as_the_package(k, k, v, {"q_scales": fa.Scales(torch.full((2, 1, 1, 1), 0.1)), **given})
        self.assertEqual(out.dtype, torch.float32)
        for bad in (
            fa.Scales(torch.ones(2, 2, 33, 2)),
            fa.Scales(torch.ones(2, 2, 5, 1)),
            fa.Scales(torch.ones(2, 2, 33, 1), group_tokens=0),
            fa.Scales(torch.ones(33, 1)[None], group_tokens=2),
        ):
            with self.assertRaises(ValueError):
                fat.attention(q, k, v, k_scales=bad)

    def spread(self, x, groups):
        """Numbers of groups as numbers of elements [2][2][33][32]."""
        for axis, size, most in (2, groups[0], 33), (3, groups[1], 32):
            x = x.repeat_interleave(size, axis).narrow(axis, 0, most) if x.shape[axis] > 1 else x
        return x

    def test_weights(self):
        q, k, v = heads(2, 4, 2, 9, 33, 16)
        weights = torch.full((2, 4, 9, 33), 7.0)
        fat.attention(q, k, v, causal=True, weights=weights)
        seen = np.arange(33) <= np.arange(9)[:, None] + 24
        np.testing.assert_allclose(of(weights), wanted(q, k, v, seen=seen)[2], 0, 1e-5)
        one = torch.empty(4, 1, 33)
        fat.attention(q[1], k[1], v[1], causal=True, weights=one, weight_rows=[4])
        self.assertTrue(torch.equal(one, weights[1, :, 4:5]))
        graph = torch.compile(
            lambda x: fat.attention(q, k, v, weights=x, causal=True)[0] * 2, backend="aot_eager", fullgraph=True
        )
        again = torch.empty_like(weights)
        graph(again)
        self.assertTrue(torch.equal(again, weights))
        for bad in torch.empty(2, 4, 9, 32), torch.empty(2, 4, 9, 33).double(), torch.empty(4, 9, 33):
            with self.assertRaises(ValueError):
                fat.attention(q, k, v, weights=bad)
        with self.assertRaisesRegex(NotImplementedError, "gradient"):
            fat.attention(q.requires_grad_(), k, v, weights=weights)

    def test_refusals(self):
        q, k, v = heads(2, 4, 2, 9, 33, 16)
        at = lambda x: torch.tensor(x, dtype=torch.int32)  # noqa: E731
        for options in (
            {"softcap": -1.0},
            {"kv_lens": at([1, 2, 3])},
            {"kv_lens": torch.tensor([1, 2])},
            {"kv_lens": at([34, 1])},
            {"mask": normal(9, 32)},
            {"mask": normal(8, 33)},
            {"sinks": normal(3)},
            {"causal": True, "window_right": 2},
            {"cu_len_q": at([0, 9])},
            {"cu_len_kv": at([0, 9])},
            {"block_table": at([[0], [2]])},
            {"block_table": at([0, 1])},
            {"block_table_start": at([0, 1, 2])},
            {"block_table": at([0, 1]), "block_table_start": at([0, 1, 3])},
            {"block_table": at([[0], [1]]), "block_table_start": at([0, 1, 2])},
            {"spans": at([[0, 5]]), "span_starts": at([0, 1, 2])},
            {"spans": at([[0, 5]])},
            {"spans": at([[0, 5]]), "span_starts": at([0])},
            {"spans": at([0, 5]), "span_starts": at([0, 0, 1])},
            {"block_mask": torch.ones(1, 6, dtype=torch.bool), "block_mask_q": 9, "block_mask_kv": 5},
            {"block_mask": torch.ones(1, 7, dtype=torch.bool)},
            {"len_q": 8},
            {"len_kv": 34},
            {"alibi_slopes": normal(3, 4)},
            {"sinks": normal(2, 4)},
            {"fast": True, "precise": True},
            {"block_q": -1},
        ):
            with self.assertRaises(ValueError, msg=str(options)):
                fat.attention(q, k, v, **options)
        for bad in (q[..., :8], k, v), (q, k[:1], v), (q[:1], k, v), (q[0, 0], k, v), (q[..., ::2], k[..., :8], v):
            with self.assertRaises(ValueError):
                fat.attention(*bad)
        # Rows that are not there.
        for options in {"cu_len_q": at([0, 5, 10])}, {"cu_len_q": at([0, 4, 9]), "cu_len_kv": at([0, 5, 34])}:
            with self.assertRaisesRegex(ValueError, "does not fit the rows"):
                fat.attention(q[0], k[0], v[0], **options)
        for bad, options in (q.double(), {}), (q, {"mask": torch.ones(9, 33, dtype=torch.int8)}):
            with self.assertRaises(TypeError):
                fat.attention(bad, k, v, **options)
        for i in range(3):
            x = [a.clone().requires_grad_(i == n) for n, a in enumerate((q, k, v))]
            with self.assertRaisesRegex(NotImplementedError, "gradient"):
                fat.attention(*x)
            with torch.no_grad():
                fat.attention(*x)

    def test_graphs(self):
        q, k, v = heads(2, 4, 2, 9, 33, 16, 24)
        op = torch.ops.cpu_attention.attention.default
        for options in {}, {"causal": True, "window_left": 4, "kv_lens": torch.tensor([33, 20], dtype=torch.int32)}:
            opcheck(op, (q, k, v), options)
        opcheck(op, (q[0], k[0], v[0]))
        call = torch.compile(lambda q: fat.attention(q, k, v, causal=True, softcap=3.0)[0] * 2, fullgraph=True)
        with torch.no_grad():
            self.assertTrue(torch.equal(call(q), 2 * fat.attention(q, k, v, causal=True, softcap=3.0)[0]))

    def test_without_a_compiler(self):
        """ctypes: says so, and computes the same bits, also in a graph; gradients are refused there, too."""
        program = """
import sys, warnings
sys.path[:0] = sys.argv[2:]
import cpu_attention as fa, torch
fa.load(sys.argv[1] or None)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import cpu_attention.torch as fat
assert not fat.extension
assert any("slower" in str(w.message) for w in said), said
q, k, v = (torch.randn(2, 4, n, 16, generator=torch.Generator().manual_seed(n)) for n in (9, 33, 33))
out, lse = fat.attention(q, k, v, causal=True, window_left=7)
assert torch.equal(out, fa.attention(q, k, v, causal=True, window_left=7))
eight, weights = (k * 30).to(torch.int8), torch.zeros(2, 4, 9, 33)
scales = fa.Scales(torch.full((1, 4, 1, 2), 0.03), group_dims=8)
given = {"k_scales": scales, "kv_lens": [33, 20], "weights": weights}
assert torch.equal(fat.attention(q, eight, v, **given)[0], fa.attention(q, eight, v, **given))
assert torch.allclose(weights.sum(-1), torch.ones(2, 4, 9))
graph = torch.compile(lambda q: fat.attention(q, k, v, causal=True, window_left=7), backend="aot_eager", fullgraph=True)
assert torch.equal(graph(q)[0], out)
for call, error in (lambda: fat.attention(q.requires_grad_(), k, v), NotImplementedError), (fat.enable, RuntimeError):
    try:
        call()
    except error:
        pass
    else:
        raise AssertionError(error)
"""
        path = [str(HERE.parents[1])] if arguments.library else []
        command = [sys.executable, "-c", program, arguments.library or "", *path]
        # A cache of its own: there is no extension from before.
        environment = {**os.environ, "CXX": "false", "XDG_CACHE_HOME": os.devnull + "/none"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        self.assertEqual(done.returncode, 0, done.stderr)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if not fat.extension:
        sys.exit("the extension could not be built")
    print(f"{fa.__file__}: {fa.version()} ({fa.isa()}), PyTorch {torch.__version__}")
    unittest.main(argv=[sys.argv[0], *arguments.tests])
