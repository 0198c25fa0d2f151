"""The library in PyTorch.

    import cpu_attention.torch as fa_torch

    fa_torch.enable()                                   # from now on F.scaled_dot_product_attention runs on the library
    out, lse = fa_torch.attention(q, k, v, causal=True, window_left=511, softcap=30.0)

A C++ extension does it, which the first import compiles for the PyTorch that is installed (a C++ compiler; half a
minute; kept in ~/.cache/cpu_attention). Where that fails there is a warning, and the operator, not enable(), works
through ctypes, slower. PyTorch's own threads compute: torch.set_num_threads(). The library is the one that
cpu_attention.load() has loaded before the import.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import shutil
import subprocess
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

from .._arrays import Scales
from .._attention import Fields, describe
from .._library import library

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["attention", "disable", "enable", "enabled", "extension"]

# Types of the operator's arguments, by how describe() annotates its own.
_TYPES = {
    "Any": "Tensor?",
    "float | None": "float?",
    "int | None": "int?",
    "float": "float",
    "int": "int",
    "bool": "bool",
}
_SCALES = "q_scales", "k_scales", "v_scales"
_WEIGHTS = "weights", "weight_heads", "weight_rows"


def _schemas() -> Iterator[str]:
    """The operator, and its overload that also writes weights: their arguments are those of describe()."""
    for weights in False, True:
        parts: list[str] = []
        for name, x in inspect.signature(describe).parameters.items():
            if name not in Fields.__annotations__ or (name in _WEIGHTS and not weights):
                continue
            if name in _SCALES:
                # The fields of Scales.
                letter = name[0]
                parts += f"Tensor? {letter}_scale=None", f"Tensor? {letter}_zero=None", f"int[2] {letter}_groups=[1, 1]"
            elif name == "weights":
                parts.append("Tensor(a!) weights")
            else:
                parts.append(f"{_TYPES[x.annotation]} {name}={x.default}")
        overload = "attention.weights" if weights else "attention"
        yield f"{overload}(Tensor q, Tensor k, Tensor v, *, {', '.join(parts)}) -> (Tensor, Tensor)"


_enabled = False, False


def _header() -> Path:
    """The folder of the C header: in a wheel beside the package's files, else in the repository."""
    inside = Path(__file__).resolve().parents[1] / "include"
    return inside if inside.exists() else Path(__file__).resolve().parents[4] / "include"


def _compile() -> Path:
    """The extension for this PyTorch and this source, made if it is not there."""
    source, header = Path(__file__).with_name("extension.cpp"), _header() / "flash_attention.h"
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise OSError("there is no C++ compiler")
    home = Path(torch.__file__).parent
    command = [compiler, "-std=c++20", "-O2", "-fPIC", "-shared", "-fopenmp"]
    command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    command += [f"-I{p}" for p in (home / "include", home / "include/torch/csrc/api/include", _header())]
    digest = hashlib.sha256(source.read_bytes() + header.read_bytes())
    digest.update(repr((torch.__version__, sysconfig.get_platform(), command)).encode())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cpu_attention"
    built = cache / f"torch-{torch.__version__}-{digest.hexdigest()[:16]}.so"
    if not built.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # Others may be at it, too: what comes last stays.
        part = built.with_suffix(f".{os.getpid()}.part")
        libraries = [f"-L{home / 'lib'}", "-ltorch_cpu", "-lc10", "-ldl"]
        done = subprocess.run([*command, str(source), "-o", str(part), *libraries], capture_output=True, text=True)
        if done.returncode != 0:
            part.unlink(missing_ok=True)
            raise OSError(f"{compiler} failed: {done.stderr[-2000:]}")
        part.replace(built)
    return built


def _result(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    *lead, heads, rows, _ = q.shape
    dtype = q.dtype if q.dtype in (torch.float32, torch.float16, torch.bfloat16) else torch.float32
    out = q.new_empty((*lead, rows, heads, v.shape[-1]), dtype=dtype).transpose(-2, -3)
    return out, q.new_empty((*lead, heads, rows), dtype=torch.float32)


def _shapes(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    return _result(q, v)


def _by_ctypes(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    out, lse = _result(q, v)
    for name in _SCALES:
        given = [options.pop(f"{name[0]}_{x}", y) for x, y in (("scale", None), ("zero", None), ("groups", (1, 1)))]
        if given != [None, None, (1, 1)]:
            options[name] = Scales(*given[:2], *given[2])
    with torch.no_grad():
        describe(q, k, v, out=out, lse=lse, threads=torch.get_num_threads(), **options).run()
    return out, lse


def _refuse_gradients(op: Any, keys: Any, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
    tensors = (q, k, v, *(x for x in options.values() if isinstance(x, Tensor)))
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        raise NotImplementedError("cpu_attention::attention has no gradients: call it under torch.no_grad()")
    below = keys & torch._C._after_autograd_keyset
    return op.redispatch(below, q, k, v, **options)


# Registrations last as long as this.
_library = torch.library.Library("cpu_attention", "FRAGMENT")  # type: ignore[no-untyped-call, unused-ignore]
for _schema in _schemas():
    _library.define(_schema, tags=torch.Tag.pt2_compliant_tag)  # type: ignore[no-untyped-call, unused-ignore]
_attention, _with_weights = torch.ops.cpu_attention.attention.default, torch.ops.cpu_attention.attention.weights


def _load() -> bool:
    """Loads the extension, or the stand-in; says which by True or False."""
    path = library()._name
    try:
        torch.ops.load_library(str(_compile()))  # type: ignore[no-untyped-call, unused-ignore]
        torch.ops.cpu_attention.load(path)
        loaded = True
    except (OSError, RuntimeError) as e:
        warnings.warn(
            "cpu_attention: the extension for PyTorch could not be built, so that calls go through ctypes, which is "
            f"slower, and enable() is not to be had: {e}",
            RuntimeWarning,
            stacklevel=3,
        )
        autograd = {"dispatch_key": "AutogradCPU", "with_keyset": True}
        for op in _attention, _with_weights:
            _library.impl(op, _by_ctypes, "CPU")  # type: ignore[no-untyped-call, unused-ignore]
            refuse = functools.partial(_refuse_gradients, op)
            _library.impl(op, refuse, **autograd)  # type: ignore[no-untyped-call, unused-ignore]
        loaded = False
    for op in _attention, _with_weights:
        torch.library.register_fake(op, _shapes, lib=_library)
    return loaded


# Whether the C++ extension is in use.
extension: bool = _load()


def enable(*, sdpa: bool = False) -> None:
    """From now on PyTorch's kernel of attention on the CPU is the library's: what scaled_dot_product_attention,
    compiled graphs and vmap call, with gradients by PyTorch's own backward. What it does not serve (float64, dropout,
    batches that are broadcast, rows that are not contiguous) PyTorch computes as before.

    sdpa: also scaled_dot_product_attention itself, where no gradient is wanted: masks of booleans are then read as they
    are, 3 axes and values of another width than keys are served. run_decompositions() of torch.export may then keep it
    as one operator.

    RuntimeError: the extension could not be built."""
    global _enabled
    if not extension:
        raise RuntimeError("cpu_attention: enable() needs the extension, which could not be built")
    torch.ops.cpu_attention.enable(True, sdpa)
    _enabled = True, sdpa


def disable() -> None:
    """Puts PyTorch's own kernels back."""
    global _enabled
    if extension:
        torch.ops.cpu_attention.enable(False, False)
    _enabled = False, False


def enabled() -> bool:
    """Whether enable() is in force."""
    return _enabled[0]


# What becomes tensors, and of which type; None: the one that it has.
_TENSORS = {
    name: torch.float32
    if name in ("alibi_slopes", "sinks")
    else None
    if name in ("mask", "block_mask", "weights")
    else torch.int32
    for name, x in inspect.signature(describe).parameters.items()
    if name in Fields.__annotations__ and x.annotation == "Any"
}


def attention(q: Tensor, k: Tensor, v: Tensor, **options: Unpack[Fields]) -> tuple[Tensor, Tensor]:
    """What scaled_dot_product_attention cannot say, as an operator (torch.ops.cpu_attention.attention) that
    torch.compile, torch.export and FakeTensor know: cpu_attention.attention() on tensors, whose arguments mean the
    same. Returns the output [batch][heads_q][len_q][dim_v], whose memory is [batch][row][head][dim], of the type of q
    if that is float32, float16 or bfloat16, else float32, and the log-sum-exp, float32 [batch][heads_q][len_q].

    Tensors are used where they are: lists are int32, sinks and slopes float32, contiguous. What is no tensor becomes
    one; spans in tensors have span_starts.
    NotImplementedError: a gradient is wanted. ValueError, TypeError: what is refused, in words."""
    given: dict[str, Any] = {}
    for name, x in options.items():
        if name in _SCALES:
            if x is not None:
                scales = cast(Scales, x)
                letter = name[0]
                given[f"{letter}_scale"], given[f"{letter}_zero"] = scales.scale, scales.zero
                given[f"{letter}_groups"] = scales.group_tokens, scales.group_dims
        elif x is None or isinstance(x, Tensor) or name not in _TENSORS:
            given[name] = x
        else:
            given[name] = torch.as_tensor(x, dtype=_TENSORS[name])
    if given.get("weights") is None:
        for name in _WEIGHTS:
            given.pop(name, None)
        return _attention(q, k, v, **given)  # type: ignore[no-any-return]
    return _with_weights(q, k, v, **given)  # type: ignore[no-any-return]
