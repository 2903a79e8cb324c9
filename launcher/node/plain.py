"""Checkpoints of plain values: what is saved can be loaded under `weights_only=True`, by anybody."""

import enum
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

from launcher.errors import UsageError

_AS_IT_IS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


class NotRepresentable(UsageError):
    """A value cannot be written into a checkpoint such that it can be read again; the message names its key."""


def plain(value: Any, key: str = "", tensor: Callable[[torch.Tensor], Any] = lambda one: one) -> Any:
    """The value with paths as text, enums as their values, NumPy's numbers as Python's and dataclasses as dicts.

    Args:
        key: where it stands in the checkpoint, for errors.
        tensor: what takes the place of each tensor.

    Raises:
        NotRepresentable: it, or a part of it, is none of these and no plain value or tensor.
    """
    if type(value) in _AS_IT_IS:
        return value
    if isinstance(value, torch.Tensor):
        return tensor(value)
    if isinstance(value, enum.Enum):
        return plain(value.value, key, tensor)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, np.generic):
        return plain(value.item(), key, tensor)
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: plain(getattr(value, one.name), _below(key, one.name), tensor) for one in fields(value)}
    if isinstance(value, dict):
        made = {plain(name, key): plain(one, _below(key, name), tensor) for name, one in value.items()}
        if isinstance(value, OrderedDict):  # a state_dict; its `_metadata` are versions of modules
            ordered = OrderedDict(made)
            if hasattr(value, "_metadata"):
                ordered._metadata = value._metadata  # type: ignore[attr-defined]
            return ordered
        return made
    if isinstance(value, list | tuple):
        parts = [plain(one, _below(key, index), tensor) for index, one in enumerate(value)]
        return parts if isinstance(value, list) else tuple(parts)
    if isinstance(value, set | frozenset):
        return {plain(one, key) for one in value}
    for kind in (int, float, str):
        if isinstance(value, kind):  # a class derived from it
            return kind(value)
    raise NotRepresentable(
        f"{key}: a {type(value).__module__}.{type(value).__qualname__} cannot be saved such that it can be loaded "
        "again; keep it out (self.save_hyperparameters(ignore=[...]), or out of the state that your code saves), or "
        "give it as numbers, text, lists, dicts or tensors"
    )


def _below(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)
