"""Arrays of any library, as the address, sizes and strides that they have. Nothing is copied here."""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, Union

import numpy as np

from ._library import Quant


class HasDlpack(Protocol):
    """An array that other libraries can look into: PyTorch, JAX, CuPy's on the host."""

    def __dlpack__(self) -> Any: ...
    def __dlpack_device__(self) -> Any: ...


class HasInterface(Protocol):
    """An array as numpy's protocol has it."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...


# numpy, torch (CPU), jax (CPU), or whatever else has one of the two protocols.
Array: TypeAlias = Union["np.ndarray[Any, Any]", HasDlpack, HasInterface]
# Lists of integers: one number may stand for all. int32, contiguous: read where it is; else it is
# copied.
Integers: TypeAlias = Union[int, Sequence[int], Array]

F32, F16, BF16, I8, BOOL8, F8_E4M3, F8_E5M2, U8, Q15 = 0, 1, 2, 3, 5, 11, 12, 13, 14
# What bytes and 16 bits are without ml_dtypes: x.view(float8_e4m3fn), where x is an array of uint8.
float8_e4m3fn = np.dtype([("float8_e4m3fn", np.uint8)])
float8_e5m2 = np.dtype([("float8_e5m2", np.uint8)])
bfloat16 = np.dtype([("bfloat16", np.uint16)])
# FA_DTYPE_F32 and so on, by the names that numpy, ml_dtypes and torch have for types.
CODES = {
    "float32": F32,
    "float16": F16,
    "bfloat16": BF16,
    "int8": I8,
    "bool": BOOL8,
    "float8_e4m3fn": F8_E4M3,
    "float8_e5m2": F8_E5M2,
    "uint8": U8,
    "int16": Q15,
}
# The same by DLPack's kind and bits.
DLPACK_CODES = {
    (2, 32): F32,
    (2, 16): F16,
    (4, 16): BF16,
    (0, 8): I8,
    (6, 8): BOOL8,
    (10, 8): F8_E4M3,
    (12, 8): F8_E5M2,
    (1, 8): U8,
    (0, 16): Q15,
}
SIZES = {F32: 4, F16: 2, BF16: 2, I8: 1, BOOL8: 1, F8_E4M3: 1, F8_E5M2: 1, U8: 1, Q15: 2}
# Types that the buffers of Python have, too.
_BUFFERS = frozenset((F32, F16, I8, BOOL8, U8, Q15))
# Types in blocks of 32 elements, as ggml stores them: FA_DTYPE_Q8_0 and so on, and the bytes of a
# block.
BLOCK_TYPES = {"q8_0": (4, 34), "q4_0": (6, 18), "q4_1": (7, 20), "q5_0": (8, 22), "q5_1": (9, 24), "iq4_nl": (10, 18)}
BLOCK = 32
# Types of numpy and torch that have been met.
_known: dict[Any, int] = {bfloat16: BF16, float8_e4m3fn: F8_E4M3, float8_e5m2: F8_E5M2}


class Scales(NamedTuple):
    """What stored elements of 8 bits stand for: (stored - zero) * scale; types of float8 have no zero. Of int16, which
    are fractions of 32768, too: stored / 32768 * scale.

    float32 [batch or page][heads][groups of tokens][groups of elements]; axes of length 1 are shared by all. None is a
    scale of 1, a zero of 0. A group has group_tokens tokens, group_dims elements of a row."""

    scale: Array | None = None
    zero: Array | None = None
    group_tokens: int = 1
    group_dims: int = 1


class Blocks(NamedTuple):
    """Numbers in ggml's blocks: uint8 [batch or page][heads][tokens][bytes of a row], and a name of BLOCK_TYPES.
    blocks() makes them of zeros; quantize() and append() write them."""

    bytes: Array
    type: str

    @property
    def shape(self) -> tuple[int, ...]:
        """In elements."""
        *rows, n = self.bytes.shape  # type: ignore[union-attr]
        return (*rows, n // block_type(self.type)[1] * BLOCK)

    @property
    def ndim(self) -> int:
        return len(self.shape)


def block_type(name: str) -> tuple[int, int]:
    """Number of a type of BLOCK_TYPES, and the bytes of a block."""
    if name not in BLOCK_TYPES:
        raise TypeError(f"{name!r} is none of {', '.join(BLOCK_TYPES)}")
    return BLOCK_TYPES[name]


def blocks(type: str, shape: Sequence[int]) -> Blocks:
    """Zeros in blocks of a type of BLOCK_TYPES. shape: [batch or page][heads][tokens][dim] in elements; dim is a
    multiple of 32."""
    *rows, dim = shape
    if dim % BLOCK:
        raise ValueError(f"rows of {dim} elements are no whole blocks of {BLOCK}")
    return Blocks(np.zeros((*rows, dim // BLOCK * block_type(type)[1]), np.uint8), type)


# Where an array is: address, shape, strides in bytes, code of the type, bytes of an element, and
# what must live as long as the address is used.
View: TypeAlias = tuple[int, tuple[int, ...], tuple[int, ...], int, int, Any]
_from_buffer: Any = ctypes.c_char.from_buffer
_addressof = ctypes.addressof


def view(name: str, x: Any, written: bool = False) -> View:
    """Looks at an array. TypeError: of no type that the library has; ValueError: it cannot be looked at or written."""
    look = _looks.get(type(x))
    if look is not None:
        return look(name, x, written)
    if isinstance(x, np.ndarray):
        if isinstance(x, np.ma.MaskedArray):
            raise TypeError(f"{name} is a masked array, whose mask would be lost")
        return _view_numpy(name, x, written)
    if is_torch(x):
        return _view_torch(name, x, written)
    if hasattr(x, "__dlpack__"):
        return _view_dlpack(name, x, written)
    if hasattr(x, "__array_interface__"):
        return view(name, np.asarray(x), written)
    raise TypeError(
        f"{name} is {type(x).__name__}: neither numpy's nor torch's, without __dlpack__ or __array_interface__"
    )


def _view_numpy(name: str, x: np.ndarray[Any, Any], written: bool) -> View:
    dtype = x.dtype
    code = _known.get(dtype)
    if code is None:
        code = _meet(name, dtype, dtype.name if dtype.isnative else str(dtype))
    if x.flags.carray and code in _BUFFERS and x.size:
        # A third of the time that the dictionary takes.
        return _addressof(_from_buffer(x)), x.shape, x.strides, code, SIZES[code], x
    if written and not x.flags.writeable:
        raise ValueError(f"{name} cannot be written")
    return x.__array_interface__["data"][0], x.shape, x.strides, code, SIZES[code], x


def _meet(name: str, dtype: Any, words: str) -> int:
    """The code of a type that is new."""
    if words not in CODES:
        raise TypeError(f"{name} is {words}, none of {', '.join(CODES)}")
    _known[dtype] = CODES[words]
    return CODES[words]


# How arrays of a type are looked at, of the types that have been met: asking for their classes
# takes longer.
_looks: dict[type, Callable[[str, Any, bool], View]] = {np.ndarray: _view_numpy}


def is_torch(x: Any) -> bool:
    """Whether it is a tensor of PyTorch, which is not imported for that."""
    if _looks.get(type(x)) is _view_torch:
        return True
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(x, getattr(torch, "Tensor", ())):
        return False
    _looks[type(x)] = _view_torch
    return True


def _view_torch(name: str, x: Any, written: bool) -> View:
    if x.requires_grad and sys.modules["torch"].is_grad_enabled():
        raise ValueError(f"{name} requires a gradient, which is not computed here: call under torch.no_grad()")
    if not x.is_cpu or x.layout is not sys.modules["torch"].strided or x.is_neg():
        raise ValueError(f"{name} is on {x.device} in layout {x.layout}: only strided tensors on the CPU can be used")
    dtype = x.dtype
    code = _known.get(dtype)
    if code is None:
        code = _meet(name, dtype, str(dtype).removeprefix("torch."))
    size = SIZES[code]
    strides = tuple([s * size for s in x.stride()])
    return x.data_ptr(), x.shape, strides, code, size, x


class _DlTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("kind", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _DlVersioned(ctypes.Structure):
    _fields_ = [
        ("version", ctypes.c_uint32 * 2),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _DlTensor),
    ]


_READ_ONLY, _COPIED = 1, 2
_capsule_valid = ctypes.pythonapi.PyCapsule_IsValid
_capsule_valid.argtypes, _capsule_valid.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_int
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.argtypes, _capsule_pointer.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p


def _view_dlpack(name: str, x: Any, written: bool) -> View:
    kind, _ = x.__dlpack_device__()
    # kDLCPU and kDLCUDAHost.
    if int(kind) not in (1, 3):
        raise ValueError(f"{name} is not in the memory of the CPU")
    try:
        capsule = x.__dlpack__(max_version=(1, 0))
    except TypeError:
        # From before there were versions.
        capsule = x.__dlpack__()
    flags = 0
    if _capsule_valid(capsule, b"dltensor_versioned"):
        managed = _DlVersioned.from_address(_capsule_pointer(capsule, b"dltensor_versioned"))
        if managed.version[0] != 1:
            raise TypeError(f"{name}: DLPack {managed.version[0]} is newer than this package")
        t, flags = managed.tensor, managed.flags
    else:
        t = _DlTensor.from_address(_capsule_pointer(capsule, b"dltensor"))
    # What JAX has nobody may write, whatever a capsule without flags says.
    if written and (flags & (_READ_ONLY | _COPIED) or type(x).__module__.startswith("jax")):
        raise ValueError(f"{name} cannot be written")
    code = DLPACK_CODES.get((t.kind, t.bits)) if t.lanes == 1 else None
    if code is None:
        raise TypeError(f"{name} is of DLPack's kind {t.kind} with {t.bits} bits, none of {', '.join(CODES)}")
    shape, size = tuple(t.shape[: t.ndim]), t.bits // 8
    if t.strides:
        strides = tuple([s * size for s in t.strides[: t.ndim]])
    else:
        strides = _dense(shape, size)
    # The capsule is not consumed: it frees what it holds when it goes.
    return (t.data or 0) + t.byte_offset, shape, strides, code, size, (capsule, x)


def _dense(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    strides: list[int] = []
    for n in reversed(shape):
        strides.insert(0, size)
        size *= n
    return tuple(strides)


def as_numpy(x: Any) -> np.ndarray[Any, Any]:
    """Numbers beside the tensors, as numpy has them: not copied, if they are in an array."""
    if isinstance(x, np.ndarray):
        return x
    if hasattr(x, "__dlpack__") and not isinstance(x, np.generic):
        return np.from_dlpack(x.detach() if hasattr(x, "detach") else x)
    return np.asarray(x)


# data, stride[3], dtype, stride_dim, quant of fa_tensor. Packed in one step, which refuses what is
# out of range.
_TENSOR = struct.Struct("@P3q2iP")
pack_tensor = _TENSOR.pack_into
ROWS = "[batch][heads][tokens][dim]"


def put(
    where: Any,
    offset: int,
    name: str,
    x: Any,
    kept: list[Any],
    scales: Scales | None = None,
    written: bool = False,
    given: bool = False,
) -> tuple[int, ...]:
    """Describes an array of 4 axes, or of 3 (then of one sequence), by the fa_tensor at an offset. Returns its shape in
    elements, 4 numbers. given: the scales of what is written are read."""
    if isinstance(x, Blocks):
        return _put_blocks(where, offset, name, x, kept, scales, written)
    address, shape, strides, code, size, holder = view(name, x, written)
    if len(shape) != 4:
        if len(shape) != 3:
            raise ValueError(f"{name} has {len(shape)} axes instead of 4 {ROWS}, or 3")
        shape, strides = (1, *shape), (0, *strides)
    kept.append(holder)
    batch, heads, tokens, dim = shape
    s0, s1, s2, s3 = strides
    if dim <= 1 or not (batch and heads and tokens):
        # Arrays without elements, and axes of length 1, may have any strides.
        s3 = size
        if not (batch and heads and tokens and dim):
            s0 = s1 = s2 = 0
    elif s3 <= 0:
        raise ValueError(f"elements of a row of {name} are {s3} bytes apart; a contiguous copy can be used")
    quant = 0
    if scales is not None:
        record, arrays = quantities(name, scales, shape, written and not given)
        kept.extend((record, arrays))
        quant = _addressof(record)
    try:
        pack_tensor(where, offset, address, s0, s1, s2, code, s3, quant)
    except struct.error:
        raise ValueError(f"strides {strides} of {name} are too large") from None
    return shape


def _put_blocks(
    where: Any, offset: int, name: str, x: Blocks, kept: list[Any], scales: Scales | None, written: bool
) -> tuple[int, ...]:
    """The same of rows in blocks, which have no scales but their own."""
    dtype, size = block_type(x.type)
    address, shape, strides, code, _, holder = view(name, x.bytes, written)
    if code != U8 or scales is not None:
        raise TypeError(f"{name} is in blocks: of uint8, without Scales")
    if len(shape) == 3:
        shape, strides = (1, *shape), (0, *strides)
    if len(shape) != 4:
        raise ValueError(f"{name} has {len(shape)} axes instead of 4 {ROWS}, or 3")
    if shape[3] % size or (shape[3] > 1 and strides[3] != 1):
        raise ValueError(f"rows of {name} are no whole blocks of {size} bytes, or their bytes lie apart: {strides}")
    kept.append(holder)
    empty = 0 in shape
    apart = (0 if empty or n <= 1 else s for s, n in zip(strides[:3], shape[:3], strict=True))
    pack_tensor(where, offset, address, *apart, dtype, 0, 0)
    return (*shape[:3], shape[3] // size * BLOCK)


def quantities(name: str, scales: Scales, shape: tuple[int, ...], written: bool) -> tuple[Quant, Any]:
    """fa_quant for a tensor of this shape, and the arrays that must outlive it."""
    given = [None if x is None else as_numpy(x) for x in (scales.scale, scales.zero)]
    extent = np.broadcast_shapes((1, 1, 1, 1), *(x.shape for x in given if x is not None))
    if scales.group_tokens < 1 or scales.group_dims < 1:
        raise ValueError(f"groups of {name} have {scales.group_tokens} tokens, {scales.group_dims} elements")
    batch, heads, tokens, dim = shape
    groups = batch, heads, -(-tokens // scales.group_tokens), -(-dim // scales.group_dims)
    if len(extent) != 4 or any(n not in (1, most) for n, most in zip(extent, groups, strict=True)):
        raise ValueError(f"scales or zeros {extent} of {name} do not fit {groups} groups")
    layouts = set()
    for x in given:
        if x is not None:
            fits = x.dtype == np.float32 and x.shape == extent and all(s >= 0 and s % 4 == 0 for s in x.strides)
            layouts.add(
                tuple(0 if n == 1 else s // 4 for s, n in zip(x.strides, extent, strict=True)) if fits else None
            )
            if written and not x.flags.writeable:
                raise ValueError(f"scales or zeros of {name} cannot be written")
    # Both arrays have the same strides, or are copied.
    if len(layouts) > 1 or None in layouts:
        if written:
            raise ValueError(f"scales and zeros of {name} are written: float32 of the same shape and strides, {extent}")
        given = [None if x is None else np.ascontiguousarray(np.broadcast_to(x, extent), np.float32) for x in given]
        layouts = {tuple(0 if n == 1 else s // 4 for s, n in zip(_dense(extent, 4), extent, strict=True))}
    record = Quant(group_tokens=scales.group_tokens, group_dims=scales.group_dims)
    record.scale, record.zero = (None if x is None else x.__array_interface__["data"][0] for x in given)
    record.stride = layouts.pop() if layouts else (0, 0, 0, 0)
    return record, given


_INT32 = np.dtype(np.int32)


def integers(name: str, x: Any, kept: list[Any], count: int | None = None, own: bool = False) -> np.ndarray[Any, Any]:
    """Numbers as the library reads them: where they are, if they are int32 and contiguous and need not be our own.
    count: so many, one may stand for all."""
    numbers = as_numpy(x)
    if (
        numbers.dtype != _INT32
        or not numbers.flags.c_contiguous
        or own
        or (count is not None and numbers.shape != (count,))
    ):
        if numbers.size > 0 and not np.issubdtype(numbers.dtype, np.integer):
            raise TypeError(f"{name} is {numbers.dtype}, no integers")
        if count is not None and numbers.shape not in ((), (1,), (count,)):
            raise ValueError(f"{name} has shape {numbers.shape} instead of ({count},)")
        copy = np.array(numbers if count is None else np.broadcast_to(numbers, count), np.int32, order="C")
        if (copy != numbers).any():
            raise ValueError(f"{name} has numbers that are no 32-bit integers")
        numbers = copy
    kept.append(numbers)
    return numbers


def address(x: np.ndarray[Any, Any]) -> int:
    """Of an array of numpy."""
    at: int = x.__array_interface__["data"][0]
    return at


def numpy_type(code: int) -> Any:
    """numpy's type of an output."""
    if code == BF16:
        try:
            import ml_dtypes
        except ImportError:
            return bfloat16
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(np.float16 if code == F16 else np.float32)
