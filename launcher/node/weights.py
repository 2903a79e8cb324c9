"""The weights in a checkpoint: taken out alone, and held against those of another one, to the bit."""

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from launcher.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Where two states differ."""

    name: str
    a: str | None
    """The first value that differs, or what is there instead (`float32[3, 4]`); None: nothing of that name."""
    b: str | None
    index: tuple[int, ...] | None = None
    """Of that value; None if they are not two tensors of one type and shape."""
    largest: float | None = None
    """Absolute difference of two values in this tensor; None if it is not finite, or cannot be said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    tensors: int
    """How many names there are on either side."""
    differences: tuple[Difference, ...]
    """In the order of the first state; what only the second has comes last."""


def weights_in(loaded: Any, where: str) -> Mapping[str, Any]:
    """The state_dict of what was loaded: a checkpoint of Lightning, or a state_dict itself.

    Raises:
        UsageError: it is neither; names `where`.
    """
    weights = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(weights, dict):
        raise UsageError(f"{where}: holds no weights: it is neither a checkpoint of Lightning nor a state_dict")
    return weights


def alone(weights: Mapping[str, Any]) -> "OrderedDict[str, Any]":
    """A copy in which each tensor has a storage of its own size: torch.save writes storages whole.

    Tensors that are one and the same (tied weights) stay so.
    """
    copies: dict[tuple[Any, ...], torch.Tensor] = {}

    def copy(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            place = (
                value.untyped_storage().data_ptr(),
                value.storage_offset(),
                value.shape,
                value.stride(),
                value.dtype,
            )
            if place not in copies:
                copies[place] = value.clone()
            return copies[place]
        if isinstance(value, dict):
            return {name: copy(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(copy, value))
        return value

    made = OrderedDict((name, copy(value)) for name, value in weights.items())
    if hasattr(weights, "_metadata"):  # versions of modules, which load_state_dict reads
        made._metadata = weights._metadata  # type: ignore[attr-defined]
    return made


def compare(a: Any, b: Any) -> Comparison:
    """Hold two states against each other: the same names, types, shapes and bits, whatever the order of names.

    (Bits and not values: a NaN is the same as itself, and 0.0 differs from -0.0.)
    """
    ours, theirs = dict(_leaves(a)), dict(_leaves(b))
    names = list(dict.fromkeys([*ours, *theirs]))
    found = (_difference(name, ours.get(name, _ABSENT), theirs.get(name, _ABSENT)) for name in names)
    return Comparison(tensors=len(names), differences=tuple(one for one in found if one))


class _Absent:
    pass


_ABSENT = _Absent()


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Tensors and plain values, each with its keys joined by dots."""
    parts: Any = None
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    elif isinstance(value, set | frozenset):
        parts = enumerate(sorted(value, key=repr))
    if parts is None:
        yield name, value
    else:
        for key, one in parts:
            yield from _leaves(one, f"{name}.{key}" if name else str(key))


def _difference(name: str, a: Any, b: Any) -> Difference | None:
    both = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
    if both and (a.dtype, a.shape) == (b.dtype, b.shape):
        return _values_differ(name, a, b)
    if not both and type(a) is type(b) and repr(a) == repr(b):  # of plain values it tells each bit
        return None
    return Difference(name=name, a=_described(a), b=_described(b))


def _values_differ(name: str, a: torch.Tensor, b: torch.Tensor) -> Difference | None:
    """Two tensors of one type and shape."""
    bits_a, bits_b = _bits(a), _bits(b)
    if torch.equal(bits_a, bits_b):
        return None
    differ = (bits_a != bits_b).any(dim=1)
    first = int(differ.to(torch.uint8).argmax())  # the first of the largest
    flat_a, flat_b = a.reshape(-1), b.reshape(-1)
    told_a, told_b = repr(flat_a[first].item()), repr(flat_b[first].item())
    if told_a == told_b:  # two NaNs
        told_a, told_b = (f"{told_a} (0x{_hex(bits[first])})" for bits in (bits_a, bits_b))
    wide = torch.complex128 if a.is_complex() else torch.float64
    largest = float((flat_a[differ].to(wide) - flat_b[differ].to(wide)).abs().max())  # NaN if one is
    return Difference(
        name=name,
        a=told_a,
        b=told_b,
        index=_index(first, a.shape),
        largest=largest if math.isfinite(largest) else None,
    )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """One row of bytes for each value."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).reshape(tensor.numel(), tensor.element_size())


def _hex(value: torch.Tensor) -> str:
    return bytes(reversed(value.tolist())).hex()


def _index(position: int, shape: torch.Size) -> tuple[int, ...]:
    index = []
    for size in reversed(shape):
        position, inner = divmod(position, size)
        index.append(inner)
    return tuple(reversed(index))


def _described(value: Any) -> str | None:
    if value is _ABSENT:
        return None
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return repr(value)
