"""Tests of the package on arrays of others: torch and JAX, where they are installed, and whatever has a protocol."""

import ctypes
import unittest

import ml_dtypes
import numpy as np
from common import exact, normal

import cpu_attention as fa
from cpu_attention import _arrays, _library

try:
    import torch
except ImportError:
    torch = None
try:
    import jax
    import jax.numpy as jnp
except ImportError:
    jax = None


class Exported:
    """An array that shows only DLPack, with or without versions."""

    def __init__(self, array, versions=True, device=1):
        self.array, self.versions, self.device = array, versions, device
        self.shape = array.shape

    def __dlpack__(self, **options):
        if options and not self.versions:
            raise TypeError("no versions")
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device, 0


class Interface:
    """An array that shows only numpy's protocol."""

    def __init__(self, array):
        self.__array_interface__ = array.__array_interface__
        self.array, self.shape = array, array.shape


def fields(x):
    t, kept = _library.Tensor(), []
    _arrays.put(t, 0, "k", x, kept)
    return t.data, tuple(t.stride), t.stride_dim, t.dtype


class Shifted:
    """An array of 12 numbers by DLPack without versions and strides, which begins 8 bytes behind its address."""

    def __init__(self, array, lanes=1):
        self.shape, self.kept = (1, 2, 2, 3), [(ctypes.c_int64 * 4)(1, 2, 2, 3), array]
        t = _arrays._DlTensor(array.ctypes.data - 8, (1, 0), 4, 2, 32, lanes, self.kept[0], None, 8)
        self.kept.append(t)
        new = ctypes.pythonapi.PyCapsule_New
        new.argtypes, new.restype = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p], ctypes.py_object
        self.capsule = new(ctypes.addressof(t), b"dltensor", None)

    def __dlpack__(self):
        return self.capsule

    def __dlpack_device__(self):
        return 1, 0


class Protocols(unittest.TestCase):
    def test_addresses_and_strides_of_capsules(self):
        a = normal(12)
        self.assertEqual(fields(Shifted(a)), (a.ctypes.data, (48, 24, 12), 4, 0))
        with self.assertRaises(TypeError):
            fields(Shifted(a, lanes=2))

    def test_views_are_used_where_they_are(self):
        for dtype in np.float32, np.float16, np.int8, np.uint8, np.int16, bool:
            a = np.zeros((2, 7, 3, 16), dtype).transpose(0, 2, 1, 3)[:, 1:]
            want = a.__array_interface__["data"][0], a.strides[:3], a.itemsize, _arrays.CODES[a.dtype.name]
            for x in a, Exported(a), Exported(a, versions=False), Interface(a):
                self.assertEqual(fields(x), want)

    def test_they_compute(self):
        q, k, v = normal(1, 4, 5, 16), normal(1, 2, 9, 16), normal(1, 2, 9, 16, seed=1)
        want = fa.attention(q, k, v)
        for wrap in Exported, Interface:
            out = np.empty_like(want)
            mask, lens = wrap(np.zeros((5, 9), np.float32)), wrap(np.array([9], np.int32))
            got = fa.attention(wrap(q), wrap(k), wrap(v), out=wrap(out), mask=mask, kv_lens=lens)
            self.assertIsInstance(got, wrap)
            np.testing.assert_array_equal(out, want)
            self.assertIsInstance(fa.attention(wrap(q), wrap(k), wrap(v)), np.ndarray)

    def test_refusals(self):
        q, k, v = normal(1, 4, 5, 16), normal(1, 2, 9, 16), normal(1, 2, 9, 16, seed=1)
        fixed = np.empty((1, 4, 5, 16), np.float32)
        fixed.flags.writeable = False
        for out in Exported(fixed), Interface(fixed):
            # numpy before version 2 does not export what is read-only.
            with self.assertRaisesRegex((ValueError, BufferError), "out cannot be written|readonly"):
                fa.attention(q, k, v, out=out)
        with self.assertRaisesRegex(ValueError, "memory"):
            fa.attention(q, Exported(k, device=2), v)
        with self.assertRaisesRegex(TypeError, "bits"):
            fa.attention(q, Exported(k.astype(np.float64)), v)


@unittest.skipUnless(jax, "JAX is not installed")
class Jax(unittest.TestCase):
    def test_types(self):
        q, k, v = normal(1, 4, 5, 16), normal(1, 2, 9, 16), normal(1, 2, 9, 16, seed=1)
        for dtype, bound in (jnp.float32, 1e-5), (jnp.float16, 3e-3), (jnp.bfloat16, 3e-2):
            x = [jnp.asarray(a, dtype) for a in (q, k, v)]
            for a in x:
                self.assertEqual(fields(a)[0], a.unsafe_buffer_pointer())
            got = fa.attention(*x, causal=True)
            self.assertEqual(got.dtype, np.dtype(dtype))
            seen = np.arange(9) <= np.arange(5)[:, None] + 4
            want = exact(*(np.asarray(a.astype(jnp.float32)) for a in x), seen)[0]
            np.testing.assert_allclose(got.astype(np.float64), want, 0, bound)
        stored = jnp.asarray(k, ml_dtypes.float8_e4m3fn)
        want = exact(q, np.asarray(stored).astype(np.float64), v)[0]
        np.testing.assert_allclose(fa.attention(q, stored, v), want, 0, 1e-5)
        with self.assertRaisesRegex(ValueError, "written"):
            fa.attention(q, k, v, out=jnp.zeros((1, 4, 5, 16)))


@unittest.skipUnless(torch, "PyTorch is not installed")
class Torch(unittest.TestCase):
    def test_types_and_views(self):
        for dtype, bound in (torch.float32, 1e-5), (torch.float16, 3e-3), (torch.bfloat16, 3e-2):
            # Views of [batch][token][q, k, v][head][dim].
            packed = torch.from_numpy(normal(2, 9, 3, 4, 16)).to(dtype)
            q, k, v = (packed[:, :, i].transpose(1, 2) for i in range(3))
            self.assertEqual(fields(k)[0], k.data_ptr())
            lse = torch.empty(2, 4, 9)
            mask = torch.ones(9, 9, dtype=torch.bool).tril()
            got = fa.attention(q, k, v, lse=lse, mask=mask)
            self.assertEqual((type(got), got.dtype), (torch.Tensor, dtype))
            want, log, _ = exact(*(x.float().numpy() for x in (q, k, v)), mask.numpy())
            np.testing.assert_allclose(got.double(), want, 0, bound)
            np.testing.assert_allclose(lse.double(), log, 0, bound)
            out = torch.empty(2, 9, 4, 16, dtype=dtype).transpose(1, 2)
            call = fa.prepare(q, k, v, causal=True, out=out, kv_lens=torch.tensor([9, 9], dtype=torch.int32))
            np.testing.assert_array_equal(call.run().float(), got.float())
        self.assertEqual(fa.attention(q.to(torch.int8), k, v).dtype, torch.float32)

    def test_caches(self):
        x = torch.from_numpy(normal(1, 2, 5, 64))
        stored, scale = torch.zeros(1, 2, 5, 64, dtype=torch.int8), torch.zeros(1, 2, 5, 1)
        fa.append(stored, x.clone(), x, None, q_pos=0, k_scales=fa.Scales(scale))
        np.testing.assert_allclose(stored * scale, x, 0, float(x.abs().max()) / 127)
        eight = torch.zeros(1, 2, 5, 64, dtype=torch.float8_e5m2)
        fa.quantize(x, eight)
        np.testing.assert_array_equal(eight.float(), x.to(torch.float8_e5m2).float())

    def test_refusals(self):
        q = torch.zeros(1, 2, 3, 16, requires_grad=True)
        with self.assertRaisesRegex(ValueError, "gradient"):
            fa.attention(q, q, q)
        with torch.no_grad():
            fa.attention(q, q, q)
        with self.assertRaises(TypeError):
            fa.attention(*(q.detach().double(),) * 3)
        with self.assertRaisesRegex(ValueError, "meta"):
            fa.attention(*(q.detach().to("meta"),) * 3)
