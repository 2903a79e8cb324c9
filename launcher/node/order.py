"""The order of samples and their random numbers, as functions of where a loader is entered."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import Dataset, DistributedSampler, RandomSampler

from launcher.node.seeding import mix, seed_all
from launcher.node.shares import Share


class Position(NamedTuple):
    """Where a loader is entered."""

    order: int
    """Seed of the order of this pass over the data, the same on all ranks."""
    samples: int
    """Seed of what its samples draw, on each rank another."""
    epoch: int
    start: int
    """Batches of this rank that are done."""


class Deal(NamedTuple):
    """Another number of ranks than the run began with: this one has batches of several ranks of that time."""

    share: Share
    limit: Callable[[int], int]
    """How many of a loader's batches are trained with, by their number."""


class Order:
    """A (batch) sampler whose whole order is drawn from a seed of its own, entered at `start`.

    The order is drawn at once: a sampler that drew bit by bit would mix with the random numbers of training. With each
    item goes the seed of the random numbers that belong to it.
    """

    def __init__(self, drawn_from: Any, sampler: Any, deal: Deal | None) -> None:
        self._drawn_from, self._sampler, self._deal = drawn_from, sampler, deal
        self._position, self._round, self._start = Position(0, 0, 0, 0), 0, 0

    def enter(self, position: Position, round_: int, start: int) -> None:
        """`round_`: passes over this loader that are done in this epoch; `start`: batches of this one."""
        self._position, self._round, self._start = position, round_, start

    @property
    def virtual_batches(self) -> int:
        """Those of an epoch, of each rank that the run began with."""
        batches = len(self._drawn_from)
        return self._deal.limit(batches) if self._deal else batches

    def __len__(self) -> int:
        return self._deal.share.own(self.virtual_batches) if self._deal else len(self._drawn_from)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._drawn_from, name)

    def __iter__(self) -> Iterator[Any]:
        if self._deal is None:
            of_samples = mix(self._position.samples, self._round)
            for number, item in zip(count(self._start), self._drawn()[self._start :], strict=False):
                yield mix(of_samples, number), item
            return
        drawn: dict[int, list[Any]] = {}
        for own in range(self._start, len(self)):
            rank, number, _, _ = self._deal.share.micro_batch(own, self.virtual_batches)
            if rank not in drawn:
                drawn[rank] = self._drawn(rank)
            yield mix(mix(mix(self._position.order, rank), self._round), number), drawn[rank][number]

    def _drawn(self, rank: int | None = None) -> list[Any]:
        """The whole order; of that original rank, if the sampler is one that deals to ranks."""
        seed = mix(self._position.order, self._round)
        for part in (self._sampler, self._drawn_from):
            if isinstance(part, RandomSampler) and part.generator is None:
                part.generator = torch.Generator()
            if (generator := getattr(part, "generator", None)) is not None:
                generator.manual_seed(seed)
            if hasattr(part, "set_epoch"):
                part.set_epoch(self._position.epoch)
            if isinstance(part, DistributedSampler):
                # It draws from seed + epoch: the order of one rank's RandomSampler, dealt out to the ranks in turn.
                part.seed = seed - part.epoch
        if rank is not None:
            for part in (self._sampler, getattr(self._drawn_from, "sampler", None)):
                if isinstance(part, DistributedSampler):
                    part.rank = rank
        with isolate_rng():
            seed_all(seed)
            return list(self._drawn_from)


class SeededDataset(Dataset[Any]):
    """Sets the random state once for each batch, so that any worker gives the same one."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_dataset":
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __getitem__(self, key: tuple[int, Any]) -> Any:
        """One sample: the loader makes no batches."""
        seed, index = key
        seed_all(seed)
        return self._dataset[index]

    def __getitems__(self, key: tuple[int, Any]) -> Any:
        seed, indices = key
        seed_all(seed)
        if fetch := getattr(self._dataset, "__getitems__", None):
            return fetch(indices)
        return [self._dataset[index] for index in indices]
