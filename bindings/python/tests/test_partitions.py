"""Lists from partitions, pair by pair, and what attention() makes of them."""

import unittest

import numpy as np
from common import formula, normal

import cpu_attention as fa


def seen(lists, len_q, len_kv):
    """Which pairs the lists of blocks say."""
    blocks = np.zeros((len(lists.kept_start) - 1, -(-len_kv // lists.kept_kv)), bool)
    for row, ends in zip(blocks, zip(lists.kept_start, lists.kept_start[1:], strict=False), strict=True):
        row[lists.kept_blocks[slice(*ends)]] = True
    return blocks.repeat(lists.kept_q, 0)[:len_q].repeat(lists.kept_kv, 1)[:, :len_kv]


class Partitions(unittest.TestCase):
    def test_pairs(self):
        n, rows, starts, tokens = 90, 70, np.array([0, 20, 33, 60]), [0, 5, 20, 33, 61]
        of = np.searchsorted(starts, np.arange(n), "right")
        token, key = np.arange(n - rows, n)[:, None], np.arange(n)
        for window, causal in (0, True), (7, True), (4, False):
            options = {"len_q": rows, "window": window, "causal": causal, "kept_q": 1, "kept_kv": 1, "max_edges": 3}
            lists = fa.sparse_from_partitions(starts, n, boundary_tokens=tokens, **options)
            near = (of[token] == of[key]) | (abs(token - key) <= window)
            listed = near & (key <= token) if causal else near
            np.testing.assert_array_equal(seen(lists, rows, n), listed)
            np.testing.assert_array_equal(lists.columns, [0, 5, 33])
            may = (key <= token) | (not causal)
            self.assertEqual(lists.all_pairs, may.sum())
            pairs = (listed | np.isin(key, lists.columns)) & may
            self.assertEqual((lists.pairs, lists.column_pairs), (pairs.sum(), (pairs & ~listed).sum()))
            self.assertEqual(lists.density, lists.pairs / lists.all_pairs)
            self.assertEqual((lists.window, lists.reach, lists.dense), (window, None, False))
        self.assertEqual(len(fa.sparse_from_partitions(starts, n, boundary_tokens=tokens, max_edges=None).columns), 5)
        self.assertEqual(fa.sparse_from_partitions((), 0).pairs, 0)

    def test_densities(self):
        starts = np.arange(0, 1000, 100, np.int32)
        size = {"kept_q": 1, "kept_kv": 1}
        for schedule, coherence, wanted in ("linear", 165, 0.5), ("threshold", 40, 0.1), ("adaptive", 150, 0.5):
            limits = {"min_density": 0.1, "max_density": 0.9}
            lists = fa.sparse_from_partitions(starts, 1000, schedule=schedule, coherence=coherence, **limits, **size)
            self.assertAlmostEqual(lists.target_density, wanted, 3)
            self.assertAlmostEqual(lists.density, wanted, 2)
            self.assertAlmostEqual(lists.time_saved, max(0, 1 - 1.1 * lists.density), 9)
        self.assertTrue(fa.sparse_from_partitions(starts, 1000, schedule="adaptive", coherence=29).dense)
        few = fa.sparse_from_partitions(starts, 1000, max_density=0.05, **size)
        self.assertTrue(0.04 < few.density <= 0.05 and 0 < few.reach < 100, few)

    def test_attention(self):
        tokens = 450
        q, k, v = normal(2, 4, tokens, 16), normal(2, 2, tokens, 16, seed=1), normal(2, 2, tokens, 16, seed=2)
        starts = [0, 130, 260]
        lists = fa.sparse_from_partitions(starts, tokens, boundary_tokens=starts, window=32, max_density=0.5)
        out = fa.attention(q, k, v, causal=True, **lists.options)
        mask = (seen(lists, tokens, tokens) | np.isin(np.arange(tokens), starts)) & np.tri(tokens, dtype=bool)
        self.assertEqual(lists.pairs, mask.sum())
        self.assertTrue(0.3 < lists.density <= 0.5)
        np.testing.assert_allclose(out, formula(q, k, v, mask), 0, 1e-5)

    def test_refusals(self):
        for bad in (
            {"kept_q": 0},
            {"kept_kv": -1},
            {"window": -1},
            {"window": 1 << 63},
            {"len_q": 31},
            {"max_edges": -1},
            {"schedule": "steep"},
            {"coherence": -1},
            {"coherence_low": 301},
            {"coherence_high": 1 << 32},
            {"concentration": 1.5},
            {"min_density": float("nan")},
            {"min_density": 0.5, "max_density": 0.4},
            {"boundary_tokens": [4, 4]},
            {"boundary_tokens": [30]},
            {"partitions": [1, 2]},
        ):
            with self.assertRaises(ValueError, msg=str(bad)):
                fa.sparse_from_partitions(**{"partitions": [0, 10], "len_kv": 30, **bad})
        with self.assertRaisesRegex(fa.Error, r"boundary_tokens\[1\] = 30: not below len_kv = 30"):
            fa.sparse_from_partitions([0], 30, boundary_tokens=[2, 30])
        with self.assertRaises(TypeError):
            fa.sparse_from_partitions([0, 0.5], 30)
