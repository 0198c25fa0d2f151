"""The library in Hugging Face's transformers.

    import cpu_attention.transformers

    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="fa_cpu")

The import registers the name, for attention and for masks. What a model asks of a mask (causality, sliding windows,
padding, caches that are longer than what is in them, several sequences in one row) becomes numbers of the call, as far
as it can, and no mask is made; softcaps, sinks and values of another width than keys are the call's, too. What the
library does not compute is PyTorch's, with the same windows, softcaps and sinks: gradients, dropout, float64, weights.

Continuous batching takes no names but its own: register("sdpa") puts the library in the place of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

from .torch import attention

try:
    from transformers import AttentionInterface, AttentionMaskInterface  # type: ignore[import-not-found, unused-ignore]
    from transformers import masking_utils as masks
    from transformers.integrations.sdpa_attention import (  # type: ignore[import-not-found, unused-ignore]
        create_position_bias_mask,
        repeat_kv,
        sdpa_attention_forward,
    )
    from transformers.utils.import_utils import is_tracing  # type: ignore[import-not-found, unused-ignore]
except ImportError as e:
    raise ImportError(f"cpu_attention.transformers needs transformers, made for 5.24: {e}") from e

__all__ = ["attention_forward", "attention_mask", "register"]

_TYPES = torch.float32, torch.float16, torch.bfloat16
# What a model may ask for besides, and would not get: keys that it has chosen, sinks of each token.
_REFUSED = "indices", "block_indices", "sinks"


@dataclass
class Fields:
    """What a mask says, as arguments of cpu_attention.torch.attention()."""

    q_pos: int = 0
    window_left: int | None = None
    window_right: int | None = None
    kv_lens: Tensor | None = None
    kv_starts: Tensor | None = None
    # Where the sequences begin that lie behind one another, those of all rows of the batch.
    cu_len: Tensor | None = None

    def options(self) -> dict[str, Any]:
        options = vars(self).copy()
        ends = options.pop("cu_len")
        return options if ends is None else options | {"q_pos": None, "cu_len_q": ends, "cu_len_kv": ends}

    def hides(self, *, only_later: bool = False) -> bool:
        """Whether any key is hidden; or any but those behind a query."""
        lists = (self.kv_lens, self.kv_starts, self.cu_len)
        windows = self.window_left, self.window_right, self.q_pos if only_later else None
        return any(x is not None for x in lists) or windows != ((None, 0, 0) if only_later else (None, None, None))


class Mask(Tensor):  # type: ignore[misc, unused-ignore]
    """A mask of booleans, [batch][1][query][key], that is not made before someone reads it."""

    fields: Fields | None
    _make: Callable[[], Tensor]
    _made: Tensor | None

    @staticmethod
    def __new__(cls, fields: Fields, shape: tuple[int, ...], make: Callable[[], Tensor]) -> Mask:
        self = Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bool, device="cpu")  # type: ignore[attr-defined, no-untyped-call, unused-ignore]
        self.fields, self._make, self._made = fields, make, None
        return self  # type: ignore[no-any-return, unused-ignore]

    def made(self) -> Tensor:
        """The booleans."""
        if self._made is None:
            # It may be one that is broadcast, which nobody could write to.
            self._made = self._make().contiguous()
        return self._made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment, unused-ignore]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def read(x: Any) -> Any:
            if not isinstance(x, Mask):
                return x
            if func._schema.is_mutable:
                x.fields = None
            return x.made()

        args, kwargs = torch.utils._pytree.tree_map(read, (args, kwargs or {}))
        return func(*args, **kwargs)


class _Described(NamedTuple):
    """What a function of masking_utils says of keys and queries."""

    left: int | None = None
    right: int | None = None
    # (keys of a chunk, where the first one begins in each sequence)
    chunks: tuple[int, Tensor] | None = None
    # Numbers [batch][token] that are the same within a sequence.
    packed: Tensor | None = None


def _least(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else min(a, b)


def _code(factory: Callable[..., Any], *arguments: Any) -> Any:
    return factory(*arguments).__code__


# Functions are known by what they are made of. Any other is a mask.
_AND = _code(masks.and_masks, masks.causal_mask_function)
_WINDOW = _code(masks.sliding_window_overlay, 1)
_BOTH_WAYS = _code(masks.sliding_window_bidirectional_overlay, 1)
_CHUNKS = _code(masks.chunked_overlay, 1, torch.zeros(1))
_PACKED = _code(masks.packed_sequence_mask_function, torch.zeros(1))
_REMAPPED = _code(masks.remap_positions_for_packed_sequence, masks.causal_mask_function, torch.zeros(1))
_KNOWN = _AND, _WINDOW, _BOTH_WAYS, _CHUNKS, _PACKED, _REMAPPED


def _describe(function: Any) -> _Described | None:
    """What a function says of keys and queries; None if that is not known."""
    if function is masks.causal_mask_function:
        return _Described(right=0)
    if function is masks.bidirectional_mask_function:
        return _Described()
    code = getattr(function, "__code__", None)
    if code not in _KNOWN:
        return None
    held = dict(zip(code.co_freevars, (x.cell_contents for x in function.__closure__), strict=True))
    if code is _WINDOW:
        return _Described(left=held["sliding_window"] - 1)
    if code is _BOTH_WAYS:
        return _Described(left=held["sliding_window"], right=held["sliding_window"])
    if code is _CHUNKS:
        return _Described(chunks=(held["chunk_size"], held["left_padding"]))
    if code is _PACKED:
        return _Described(packed=held["packed_sequence_mask"])
    if code is _REMAPPED:
        # Positions of one sequence follow one another, so that their differences are those of the
        # rows; chunks are not.
        inner = _describe(held["mask_function"])
        return inner if inner is not None and inner.chunks is None else None
    whole = _Described()
    for part in map(_describe, held["mask_functions"]):
        if part is None or (whole.chunks and part.chunks) or (whole.packed is not None and part.packed is not None):
            return None
        whole = _Described(
            _least(whole.left, part.left),
            _least(whole.right, part.right),
            whole.chunks or part.chunks,
            part.packed if whole.packed is None else whole.packed,
        )
    return whole


def _remapped(function: Any) -> bool:
    """Whether a function of keys and queries counts from where their sequences begin."""
    code = getattr(function, "__code__", None)
    if code is _AND:
        return any(_remapped(x) for cell in function.__closure__ for x in cell.cell_contents)
    return code is _REMAPPED


def _ends(padding: Tensor) -> tuple[Tensor, Tensor] | None:
    """The first key of each sequence and the one behind its last; None if some between them are hidden."""
    keys = padding.shape[1]
    count = padding.sum(-1)
    first = padding.int().argmax(-1)
    last = keys - padding.flip(-1).int().argmax(-1)
    first, last = first * (count > 0), last * (count > 0)
    return (first.int(), last.int()) if torch.equal(last - first, count) else None


def _fields(
    batch: int,
    q_length: int,
    kv_length: int,
    q_offset: int,
    kv_offset: int,
    function: Any,
    padding: Tensor | None,
) -> Fields | None:
    """A mask as fields; None if it is none."""
    told = _describe(function)
    if told is None or (told.packed is None and _remapped(function)):
        return None
    fields = Fields(q_offset - kv_offset, told.left, told.right)
    if told.packed is not None:
        if padding is not None or told.chunks or not q_length == kv_length == told.packed.shape[1]:
            return None
        packed = told.packed.expand(batch, -1)
        begins = torch.ones((batch, q_length), dtype=torch.bool)
        begins[:, 1:] = packed[:, 1:] != packed[:, :-1]
        # A sequence that went on after another would be two.
        if q_offset != kv_offset or bool((packed[:, 1:] < packed[:, :-1]).any()):
            return None
        end = torch.tensor([batch * q_length], dtype=torch.int32)
        fields.cu_len = torch.cat((begins.flatten().nonzero().flatten().int(), end))
        return fields
    first = last = None
    if padding is not None:
        padding = padding[:, kv_offset : kv_offset + kv_length]
        if padding.shape != (batch, kv_length) or not bool(padding.all()):
            ends = _ends(padding.expand(batch, -1))
            if ends is None:
                return None
            first, last = ends
            if padding.shape[1] == kv_length and not bool(first.any()):
                first = None
            if bool((last == kv_length).all()):
                last = None
    # Keys that no row has reached: those of a cache that is not full.
    if told.right is not None and (reached := fields.q_pos + q_length + told.right) < kv_length:
        reached = max(reached, 0)
        last = torch.full((batch,), reached, dtype=torch.int32) if last is None else last.clamp(max=reached)
        first = first if first is None else torch.minimum(first, last)
    if told.chunks is not None:
        size, left = told.chunks
        left = left.expand(batch)
        if q_length == 1:
            at = ((q_offset - left) // size * size + left - kv_offset).clamp(min=0).int()
            first = at if first is None else torch.maximum(first, at)
            first = first.clamp(max=kv_length) if last is None else torch.minimum(first, last)
        elif kv_offset + kv_length > size or bool((left > kv_offset + kv_length).any()):
            # What is not padding is not in the first chunk alone.
            return None
        elif bool((left > 0).any()) and (first is None or bool((first + kv_offset < left).any())):
            return None
    fields.kv_starts, fields.kv_lens = first, last
    return fields


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = masks.causal_mask_function,
    attention_mask: Tensor | None = None,
    allow_is_bidirectional_skip: bool = False,
    device: Any = "cpu",
    **others: Any,
) -> Tensor | None:
    """What transformers calls for a mask. attention_mask: booleans [batch][key], False for padding."""
    others |= {"allow_is_causal_skip": False, "device": device, "mask_function": mask_function}
    lengths = {"batch_size": batch_size, "q_length": q_length, "kv_length": kv_length, "kv_offset": kv_offset}

    def make(skip: bool = False) -> Any:
        others["allow_is_bidirectional_skip"] = skip
        return masks.sdpa_mask(q_offset=q_offset, attention_mask=attention_mask, **lengths, **others)

    # Nothing may be read of what is recorded, and what others recorded would not know a Mask.
    recorded = is_tracing(attention_mask) or is_tracing(q_offset)
    if recorded or torch.device(device).type != "cpu":
        return make(allow_is_bidirectional_skip)  # type: ignore[no-any-return, unused-ignore]
    padding = masks.prepare_padding_mask(attention_mask, kv_length, kv_offset)
    at = int(q_offset)
    fields = _fields(batch_size, q_length, kv_length, at, kv_offset, mask_function, padding)
    if fields is None:
        return make(allow_is_bidirectional_skip)  # type: ignore[no-any-return, unused-ignore]
    if allow_is_bidirectional_skip and not fields.hides():
        return None
    if q_length == 1 and isinstance(q_offset, Tensor):
        # It is small, and goes into what generate() has compiled, which is compiled again for each
        # Mask.
        made = make().contiguous()
        made._cpu_attention = fields, made._version
        return made  # type: ignore[no-any-return, unused-ignore]
    # The position is that of now: a static cache counts on in the same tensor.
    q_offset = at
    return Mask(fields, (batch_size, 1, q_length, kv_length), make)


def _fields_of(mask: Tensor) -> Fields | None:
    """What attention_mask() knew of a mask, if it is still so."""
    if isinstance(mask, Mask):
        return mask.fields
    if torch.compiler.is_compiling():
        return None
    fields, version = getattr(mask, "_cpu_attention", (None, 0))
    return fields if fields is not None and mask._version == version else None


def _weights(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Attention in PyTorch's own operators, as the models' "eager" has it, with its weights."""
    group = query.shape[1] // key.shape[1]
    scores = query @ repeat_kv(key, group).transpose(2, 3) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        least = torch.finfo(scores.dtype).min
        scores = torch.where(mask, scores, least) if mask.dtype == torch.bool else scores + mask
    if sinks is not None:
        column = sinks.to(scores.dtype).reshape(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], -1)
        scores = torch.cat((scores, column), -1)
    wide = scores.dtype if scores.dtype == torch.float64 else torch.float32
    weights = torch.softmax(scores, -1, dtype=wide).to(query.dtype)
    weights = weights if sinks is None else weights[..., :-1]
    weights = torch.nn.functional.dropout(weights, dropout, module.training)
    return (weights @ repeat_kv(value, group)).transpose(1, 2).contiguous(), weights


def _in_pytorch(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    dropout: float,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    weights: bool,
) -> tuple[Tensor, Tensor | None]:
    """What the library does not compute, or not with gradients."""
    if isinstance(mask, Mask):
        square = query.shape[2] == key.shape[2] and not (softcap or sinks is not None or weights)
        causal = square and mask.fields is not None and not mask.fields.hides(only_later=True)
        mask = None if causal else mask.made()
    if softcap or sinks is not None or weights:
        if mask is None and causal:
            mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
        return _weights(module, query, key, value, mask, dropout, scale, softcap, sinks)
    options = {"dropout": dropout, "scaling": scale, "is_causal": causal}
    return sdpa_attention_forward(module, query, key, value, mask, **options)  # type: ignore[no-any-return]


def _as_mask(mask: Tensor, query: Tensor, key: Tensor) -> Tensor | None:
    """A mask that others have made, as the library reads it; None if it cannot."""
    shape = *query.shape[:3], key.shape[2]
    if mask.dim() > 4 or mask.dtype not in (torch.bool, *_TYPES):
        return None
    if any(n not in (1, wanted) for n, wanted in zip(reversed(mask.shape), reversed(shape), strict=False)):
        return None
    if mask.shape[-1] != shape[-1]:
        mask = mask.expand(*mask.shape[:-1], shape[-1])
    return mask if mask.stride(-1) == 1 or shape[-1] == 1 else mask.contiguous()


def _behind_one_another(x: Tensor) -> Tensor:
    """[batch][head][token][dim] as one row of a batch."""
    return x if x.shape[0] == 1 else x.transpose(1, 2).flatten(0, 1).unsqueeze(0).transpose(1, 2)


def _says_no_more(module: Any, others: dict[str, Any]) -> bool:
    """Whether the mask that continuous batching makes says only what the lengths say: none of chunks, no window that is
    not passed."""
    config = getattr(module, "config", None)
    window = "sliding_window" not in others and getattr(config, "sliding_window", None)
    return not (window or getattr(config, "attention_chunk_size", None))


def attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    output_attentions: bool | None = False,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """What transformers calls for attention: tensors [batch][head][token][dim], the output [batch][token][head][dim].

    NotImplementedError: what a model asks for that neither the library nor this function knows."""
    for name in _REFUSED:
        if others.get(name) is not None:
            raise NotImplementedError(f'cpu_attention: {name} of {type(module).__name__}; use "sdpa" or "eager"')
    if isinstance(scaling, Tensor):
        query, scaling = query * scaling, 1.0
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    mask, fields = attention_mask, None
    options: dict[str, Any] = {}
    sliding_window = others.get("sliding_window")
    batched = others.get("read_index") is not None and _says_no_more(module, others)
    ragged = (mask is None or batched) and position_bias is None and query.shape[0] == 1
    if ragged and cu_seq_lens_q is not None and cu_seq_lens_k is not None:
        if batched:
            # is_causal is False beside a mask.
            mask, causal = None, bool(getattr(module, "is_causal", True))
        options = {"cu_len_q": cu_seq_lens_q.int().contiguous(), "cu_len_kv": cu_seq_lens_k.int().contiguous()}
        options["window_right"] = 0 if causal else None
        if sliding_window is not None:
            options["window_left"] = sliding_window - 1
            options["window_right"] = 0 if causal else sliding_window - 1
    else:
        ragged = False
        # Of a prompt there may be room for more keys. One row sees them all.
        causal = causal and mask is None and query.shape[2] > 1
        if causal and key.shape[2] > query.shape[2]:
            key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
    if position_bias is not None:
        bias = position_bias[..., : key.shape[2]]
        made = mask.made() if isinstance(mask, Mask) else mask
        mask, causal = create_position_bias_mask(bias, made, causal, query, key), False
    if mask is not None and mask.shape == (query.shape[0], 1, query.shape[2], key.shape[2]):
        fields = _fields_of(mask)
    if isinstance(mask, Mask) and fields is None:
        mask = mask.made()

    tensors = query, key, value
    gradients = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (*tensors, s_aux, mask))
    serves = (
        not (gradients or dropout or output_attentions)
        and query.dtype in _TYPES
        and all([x.dtype == query.dtype and x.is_cpu and x.shape[0] == query.shape[0] for x in tensors])
        and (s_aux is None or s_aux.numel() == query.shape[1])
    )
    if fields is not None:
        options = fields.options()
    elif mask is not None and serves:
        read = _as_mask(mask, query, key)
        serves, options = read is not None, {"mask": read}
    elif not ragged:
        options = {"causal": causal, "q_pos": 0}
    if not serves:
        if ragged:
            return _in_parts(module, query, key, value, causal, sliding_window, options, dropout, scale, softcap, s_aux)
        weights = bool(output_attentions)
        return _in_pytorch(module, query, key, value, mask, causal, dropout, scale, softcap, s_aux, weights)

    sinks = None if s_aux is None else s_aux.detach().float().flatten().contiguous()
    packed = fields is not None and fields.cu_len is not None
    if packed:
        query, key, value = map(_behind_one_another, (query, key, value))
    query = query if query.stride(-1) == 1 else query.contiguous()
    out, _ = attention(query, key, value, scale=scale, softcap=softcap or 0.0, sinks=sinks, **options)
    out = out.transpose(1, 2)
    if batched and ragged and (rows := int(options["cu_len_q"][-1])) < out.shape[1]:
        # Rows that are there for their number alone.
        out[:, rows:] = 0
    return out.view(tensors[0].shape[0], -1, *out.shape[2:]) if packed else out, None


def _in_parts(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    causal: bool,
    window: int | None,
    options: dict[str, Any],
    dropout: float,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> tuple[Tensor, None]:
    """Sequences behind one another, in PyTorch: one after the other."""
    ends_q, ends_kv = options["cu_len_q"].tolist(), options["cu_len_kv"].tolist()
    out = query.new_zeros((1, query.shape[2], query.shape[1], value.shape[3]))
    for i in range(len(ends_q) - 1):
        rows, keys = slice(*ends_q[i : i + 2]), slice(*ends_kv[i : i + 2])
        q, k, v = query[:, :, rows], key[:, :, keys], value[:, :, keys]
        if q.shape[2] == 0:
            continue
        p, j = torch.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2], torch.arange(k.shape[2])
        seen = torch.ones((q.shape[2], k.shape[2]), dtype=torch.bool)
        if causal:
            seen &= j <= p
        if window is not None:
            seen &= (j - p).abs() < window
        mask = seen[None, None].to(query.device)
        part, _ = _in_pytorch(module, q, k, v, mask, False, dropout, scale, softcap, sinks, False)
        out[:, rows] = part
    return out, None


def register(name: str = "fa_cpu") -> None:
    """Makes a name of attn_implementation stand for the library; the import has done so with "fa_cpu". "sdpa" or
    "paged|eager": in the place of transformers' own, for all models that use it, and for continuous batching."""
    AttentionInterface.register(name, attention_forward)
    AttentionMaskInterface.register(name, attention_mask)


register()
