#!/usr/bin/env python3
"""Checks that for every field of every structure and every argument of every function in the header the C tests try
what could be wrong with it, whatever its type can hold, and that the library refuses some of it.

    check_refusals.py HEADER PROGRAM...

The programs print what they try (c_tests/support/covered.h); that it has the right result they check themselves.
"""

import ctypes
import re
import subprocess
import sys
from pathlib import Path

from c_header import SCALARS, Header, of_library

# What values each type can have that nobody expects.
TRIED = {
    ctypes.c_int64: ["negative", "zero", "huge"],
    ctypes.c_int32: ["negative", "huge"],
    ctypes.c_uint32: ["huge"],
    ctypes.c_size_t: ["zero", "huge"],
    ctypes.c_float: ["NaN", "infinite", "-infinite", "denormal", "negative", "zero"],
    ctypes.c_bool: ["odd"],
    ctypes.c_void_p: ["NULL", "odd"],
}

# Anything is legal there, so that nothing is refused; and why.
FREE = {
    "fa_attention_check(why)": "NULL = no words",
    "fa_attention_check(why_size)": "as much as there is room for is written",
    "fa_attention_check_run(why)": "NULL = no words",
    "fa_attention_check_run(why_size)": "as much as there is room for is written",
    "fa_attention_check_run(pool)": "a structure: see its fields; NULL = the calling thread",
    "fa_enable_amx(why)": "NULL = no words",
    "fa_enable_amx(why_size)": "as much as there is room for is written",
    "fa_cache_append(why)": "NULL = no words",
    "fa_cache_append(why_size)": "as much as there is room for is written",
    "fa_attention_run(pool)": "a structure: see its fields; NULL = the calling thread",
    "fa_config.block_size_q": "any size is a tile's",
    "fa_config.block_size_kv": "any size is a tile's",
    "fa_config.num_threads": "too many become fewer",
    "fa_config.causal": "what is not 0 is true",
    "fa_q15_config.causal": "what is not 0 is true",
    "fa_q15_config.num_threads": "too many become fewer",
    "fa_sparse_from_partitions(why)": "NULL = no words",
    "fa_sparse_from_partitions(why_size)": "as much as there is room for is written",
    "fa_sparse_config.causal": "what is not 0 is true",
    "fa_sparse_config.coherence": "any value is somewhere on the schedule",
    "fa_pool.ctx": "handed on",
    "fa_pool.width": "NULL = 1",
    "fa_pool.parallel_for": "NULL = the calling thread",
    "fa_pool_destroy(pool)": "NULL is fine; nothing else can be told from a pool",
    "fa_status_string(status)": "unknown ones have a sentence, too",
}

# What a value of the type cannot be there; and why it is not tried.
IMPOSSIBLE = {
    ("fa_pool.ctx", "odd"): "handed on",
    ("fa_quantize_i8(src).quant", "odd"): "whatever is there is refused",
    ("fa_quantize(src).quant", "odd"): "whatever is there is refused",
    ("fa_cache_append(new_k).quant", "odd"): "whatever is there is refused",
    ("fa_cache_append(why)", "odd"): "bytes have no alignment",
    ("fa_cache_append(why_size)", "huge"): "why is NULL then, or has that room",
    ("fa_sparse_from_partitions(why)", "odd"): "bytes have no alignment",
    ("fa_sparse_from_partitions(why_size)", "huge"): "why is NULL then, or has that room",
    **{(f"fa_attention.{t}.quant", "odd"): "whatever is there is refused" for t in ("mask", "weights")},
    ("fa_attention.o.quant.zero", "odd"): "whatever is there is refused",
    ("fa_pool.width", "odd"): "the address of a function",
    ("fa_pool.parallel_for", "odd"): "the address of a function",
    ("fa_pool_destroy(pool)", "odd"): "only what fa_pool_create gave",
    ("fa_limit_isa(isa)", "odd"): "bytes have no alignment",
    ("fa_attention_check(why)", "odd"): "bytes have no alignment",
    ("fa_attention_check_run(why)", "odd"): "bytes have no alignment",
    ("fa_attention_check_run(why_size)", "huge"): "why is NULL then, or has that room",
    ("fa_enable_amx(why)", "odd"): "bytes have no alignment",
    ("fa_enable_amx(why_size)", "huge"): "why is NULL then, or has that room",
    ("fa_attention_check(why_size)", "huge"): "why is NULL then, or has that room",
}

# Arrays that no output may share memory with, besides all of fa_attention's.
NO_OVERLAP = re.compile(
    r"quant$|^fa_attention\.o\.quant\.zero$|^fa_pool|"
    r"\((a|cfg|src|dst|new_k|new_v|pool|out|isa|why|bytes|ws|lists|plan)\)$"
)

# Strides of outputs: also some that are too small.
OUTPUT_STRIDE = re.compile(r"^fa_attention\.(o\.stride|lse_stride|weights\.stride)|^fa_quantize(_i8)?\(dst\)\.stride")


def fields(prefix, structure, found):
    """The fields of a structure, down to single values."""
    for name, kind in structure._fields_:
        place = f"{prefix}.{name}"
        if kind in found.values():
            yield from fields(place, kind, found)
        elif issubclass(kind, ctypes.Array):
            yield from ((f"{place}[{i}]", kind._type_) for i in range(kind._length_))
        else:
            yield place, kind


def arguments(header, scalars):
    text = of_library(header)
    for function, declared in re.findall(r"\b(fa_\w+)\(([^()]*)\);", text):
        for declaration in declared.split(","):
            match = re.fullmatch(r"(?:const )?(?:struct |enum )?(\w+) (\**)(\w+)", " ".join(declaration.split()))
            if match:
                base, pointer, name = match.groups()
                yield f"{function}({name})", ctypes.c_void_p if pointer else scalars[base]
            elif declaration.strip() != "void":
                sys.exit(f"{function}: cannot read {declaration!r}.")


def places(header):
    """Every field and argument, and its type. Tensors have granularities, and so have the tensors of functions."""
    found = Header(header).structures
    quant = found["fa_quant"]
    for prefix in ("fa_attention", "fa_config", "fa_q15_config", "fa_sparse_config", "fa_pool"):
        yield from fields(prefix, found[prefix], found)
    for tensor in "qkvo":
        yield from fields(f"fa_attention.{tensor}.quant", quant, found)
    for tensor in ("src", "dst"):
        yield from fields(f"fa_quantize_i8({tensor})", found["fa_tensor"], found)
    yield from fields("fa_quantize_i8(dst).quant", quant, found)
    for tensor in ("fa_quantize(src)", "fa_quantize(dst)", "fa_cache_append(new_k)"):
        yield from fields(tensor, found["fa_tensor"], found)
    yield from arguments(header, SCALARS)


def wanted(place, kind):
    kinds = [k for k in TRIED[kind] if (place, k) not in IMPOSSIBLE]
    if kind is ctypes.c_void_p and not NO_OVERLAP.search(place):
        kinds.append("overlap")
    if OUTPUT_STRIDE.search(place):
        kinds.append("small")
    return kinds


def main():
    header = Path(sys.argv[1]).read_text()
    tried = {}
    lines = 0
    for program in sys.argv[2:]:
        output = subprocess.run([program, "--covered"], stdout=subprocess.PIPE, text=True, check=True).stdout
        for line in output.splitlines():
            match = re.fullmatch(r"(fa_\S+) (\S+) (accepted|refused)", line)
            if match:
                place, kind, result = match.groups()
                tried.setdefault(place, {}).setdefault(kind, set()).add(result)
                lines += 1
    failures = []
    count = 0
    for place, kind in places(header):
        count += 1
        has = tried.get(place, {})
        for k in wanted(place, kind):
            # A size without a sign is huge where it was written as a negative one.
            if k not in has and not (k == "huge" and kind in (ctypes.c_size_t, ctypes.c_uint32) and "negative" in has):
                failures.append(f"{place}: {k} is not tried.")
        refused = any("refused" in results for results in has.values())
        if refused == (place in FREE):
            failures.append(f"{place}: {'refused, though anything is legal' if refused else 'nothing is refused'}.")
    for place in FREE:
        if place not in dict(places(header)):
            failures.append(f"{place} is not in the header.")
    for failure in failures:
        print(failure)
    if not failures:
        print(f"{count} fields and arguments, {lines} values tried.")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
