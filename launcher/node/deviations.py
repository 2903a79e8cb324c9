"""What the launcher cannot make exact, named when training starts: a resumed run may differ in these.

Nothing is drawn from the data to find it out: objects are looked at, and the source of `__getitem__` is read.
"""

import ast
import inspect
import random
import textwrap
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from launcher.spec import JobSpec

_SOURCES = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
_EXACT_SAMPLERS = (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler, DistributedSampler)
_LOOKED_AT = 2000
_DEPTH = 8
_BY_THE_CLOCK = "goes by the clock, which an interruption does not stop"


def deviations(spec: JobSpec, trainer: Trainer, dataloaders: list[Any]) -> Iterator[str]:
    """Sentences for the user.

    Args:
        dataloaders: those of the training, as the user has made them.
    """
    given = spec.trainer
    if given.max_time is not None:
        yield f"trainer.max_time {_BY_THE_CLOCK}"
    if isinstance(given.val_check_interval, str | dict):
        yield f"trainer.val_check_interval {_BY_THE_CLOCK}"
    if trainer.strategy.root_device.type == "cuda" and not given.deterministic:
        yield "CUDA kernels may add in another order each time: set trainer.deterministic: true for equal bits"
    for number, loader in enumerate(dataloaders):
        yield from _of_loader(loader, "train_dataloader" if len(dataloaders) == 1 else f"train_dataloader {number}")
    for path in _random_sources(trainer.lightning_module, "model"):
        yield _own_source(path)


def _of_loader(loader: Any, name: str) -> Iterator[str]:
    if not isinstance(loader, DataLoader):
        return
    if not isinstance(loader.dataset, IterableDataset):
        for sampler in (loader.sampler, loader.batch_sampler):
            if isinstance(sampler, Sampler) and type(sampler) not in (*_EXACT_SAMPLERS, BatchSampler):
                yield (
                    f"{name}: the order comes from {type(sampler).__name__}; it is exact if it follows from "
                    "`set_epoch`, the global generators or its own attribute `generator`, and from nothing else"
                )
        for attribute in _assigned(loader.dataset):
            yield (
                f"{name}: {type(loader.dataset).__name__}.__getitem__ changes self.{attribute}; unless that is a "
                "cache, it should be in a checkpoint and is not"
            )
    for path in _random_sources(loader.dataset, f"{name}.dataset"):
        yield _own_source(path)


def _own_source(path: str) -> str:
    return f"{path} is a random generator of its own, which is not in a checkpoint; draw from the global ones"


def _assigned(dataset: Any) -> list[str]:
    """Attributes that `__getitem__` assigns to, in its own source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(type(dataset).__getitem__)))
    except (OSError, TypeError, AttributeError, SyntaxError):
        return []
    found = [
        target.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"
    ]
    return list(dict.fromkeys(found))


def _random_sources(root: Any, name: str) -> Iterator[str]:
    """Where generators stand in attributes, lists and dicts, a few levels deep."""
    waiting, seen = [(root, name, 0)], {id(root)}
    while waiting and len(seen) < _LOOKED_AT:
        value, path, depth = waiting.pop()
        if isinstance(value, _SOURCES):
            yield path
            continue
        if depth == _DEPTH or isinstance(value, torch.Tensor | np.ndarray | Trainer | type):
            continue
        for part, below in _parts(value):
            if id(part) not in seen:
                seen.add(id(part))
                waiting.append((part, f"{path}{below}", depth + 1))


def _parts(value: Any) -> list[tuple[Any, str]]:
    if isinstance(value, dict):
        return [(one, f"[{key!r}]") for key, one in list(value.items())[:50]]
    if isinstance(value, list | tuple):
        return [(one, f"[{index}]") for index, one in enumerate(value[:50])]
    if isinstance(value, torch.nn.Module):
        own = {key: one for key, one in vars(value).items() if not key.startswith("_")}
        return [(one, f".{key}") for key, one in (own | dict(value.named_children())).items()]
    attributes = getattr(value, "__dict__", None)
    return [(one, f".{key}") for key, one in attributes.items()] if isinstance(attributes, dict) else []
