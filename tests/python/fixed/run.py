#!/usr/bin/env python3
"""The definition in docs/fixed-point.md in integers of any size, next to fa_mha_q15.

    run.py LIB.so
"""

import ctypes
import random
import sys
from math import isqrt


def nearest_power(i):
    """2^(30 - i/32), rounded: the largest x with (2 x - 1)^32 <= 2^(32 * 31 - i)."""
    low, high = 0, 1 << 31
    while low < high:
        x = (low + high + 1) // 2
        low, high = (x, high) if (2 * x - 1) ** 32 <= 1 << (32 * 31 - i) else (low, x - 1)
    return low


POWERS = [nearest_power(i) for i in range(32)]


def weight(x):
    n, f = divmod(x, 1 << 16)
    if n >= 30:
        return 0
    y = (f % 2048) * 11629080 >> 10
    p = (1 << 30) - y + (y * y >> 31)
    return POWERS[f // 2048] * p + (1 << (32 + n)) >> (33 + n)


def nearest_even(a, b):
    q, r = divmod(a, b)
    return q + (2 * r > b or (2 * r == b and q % 2))


def reference(q, k, v, dim, mantissa, shift, causal):
    """One head: lists of rows."""
    m, s = (isqrt((1 << 60) // dim), 30) if mantissa == 0 else (mantissa, shift)
    a = (dim - 1).bit_length()
    c = abs(m) * 1549082005
    b = max(0, c.bit_length() - 32)
    c, e = c >> b, 44 + s - a - b
    out = []
    for i, row in enumerate(q):
        seen = max(0, i + 1 + len(k) - len(q)) if causal else len(k)
        scores = [sum(x * y for x, y in zip(row, key)) * (-1 if m < 0 else 1) >> a for key in k[:seen]]
        weights = [weight((max(scores) - t) * c >> e) for t in scores]
        sums = [sum(w * value[d] for w, value in zip(weights, v)) for d in range(dim)]
        out.append([nearest_even(x, sum(weights)) if seen else 0 for x in sums])
    return out


class Config(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("head_dim", ctypes.c_size_t), ("scale_mantissa", ctypes.c_int32),
                ("scale_shift", ctypes.c_int32), ("causal", ctypes.c_uint32), ("num_threads", ctypes.c_uint32)]


def rows(length, dim, kind):
    number = {"any": lambda: random.randint(-32768, 32767), "small": lambda: random.randint(-900, 900),
              "saturated": lambda: random.choice((-32768, 32767))}[kind]
    return [[number() for _ in range(dim)] for _ in range(length)]


def flat(*heads):
    numbers = [x for head in heads for row in head for x in row]
    return (ctypes.c_int16 * max(1, len(numbers)))(*numbers)


def main():
    lib = ctypes.CDLL(sys.argv[1])
    random.seed(15)
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    lib.fa_mha_q15.argtypes = [pointer] * 4 + [size] * 4 + [pointer]
    cases = 60
    for case in range(cases):
        dim, len_q, len_k = random.choice((1, 2, 5, 16, 64, 80, 130)), random.randint(0, 9), random.randint(0, 140)
        a = (dim - 1).bit_length()
        mantissa, shift = random.choice(((0, 0), (0, 7), ((1 << 18) >> a, 0), (-3, 2), (random.randint(1, 1 << 20), 22), (1, 63)))
        causal, threads = random.randint(0, 1), random.randint(0, 3)
        kind = random.choice(("any", "small", "saturated"))
        q, k, v = ([rows(n, dim, kind) for _ in range(2)] for n in (len_q, len_k, len_k))
        want = [reference(*x, dim, mantissa, shift, causal) for x in zip(q, k, v)]
        out = flat(*want)
        ctypes.memset(out, 0x5A, ctypes.sizeof(out))
        config = Config(ctypes.sizeof(Config), dim, mantissa, shift, causal, threads)
        status = lib.fa_mha_q15(ctypes.byref(config), flat(*q), flat(*k), flat(*v), 2, 2, len_q, len_k, out)
        if status != 0 or (len_q > 0 and list(out) != list(flat(*want))):
            sys.exit(f"case {case}: status {status}, {dim=} {len_q=} {len_k=} {mantissa=} {shift=} {causal=} {threads=}")
    print(f"{cases} problems, all bits as defined.")


if __name__ == "__main__":
    main()
