"""Training data that can be entered at any batch: order and random state are functions of the position.

A batch's samples depend on (seed, epoch, batch) and a sample's random numbers on (seed, epoch, index), so that a
resumed rank needs nothing but the loop counters, whatever the number of DataLoader workers.
"""

import copy
import signal
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader, Dataset, IterableDataset

from launcher.diagnosis import STOP_SIGNALS
from launcher.node.environment import die_with_parent
from launcher.node.seeding import mix, seed_all


class Position(NamedTuple):
    """Where training stands, in this rank's batches."""

    epoch: int
    batches_done: int
    """In this epoch."""


class ExactLoader:
    """A training loader that begins where the loops stand, and calls back before each batch.

    For a map-style DataLoader no batch before the position is loaded. Any other iterable is read up to it.
    """

    def __init__(
        self, loader: Any, *, seed: int, position: Callable[[], Position], between_steps: Callable[[], None]
    ) -> None:
        self._seed, self._position, self._between_steps = seed, position, between_steps
        self._order: _Order | None = None
        self._loader = loader
        if isinstance(loader, DataLoader):
            changes: dict[str, Any] = {"worker_init_fn": _WorkerInit(loader.worker_init_fn)}
            if not isinstance(loader.dataset, IterableDataset):
                name = "sampler" if loader.batch_sampler is None else "batch_sampler"
                self._order = _Order(getattr(loader, name), loader.sampler, batched=name == "batch_sampler")
                changes |= {name: self._order, "dataset": _SeededDataset(loader.dataset)}
            self._loader = _changed(loader, changes)

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy and pickle ask for these before __init__ has run
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Any]:
        # The first `next` asks where training stands, not `iter`: Lightning calls that one too early.
        self._between_steps()
        batches = self._begin()
        for batch in batches:
            yield batch
            self._between_steps()

    def state_dict(self) -> dict[str, Any]:
        """Empty: says to Lightning that this loader can resume within an epoch."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def _begin(self) -> Iterator[Any]:
        epoch, done = self._position()
        if self._order is None:
            return islice(iter(self._loader), done, None)
        # A loader shorter than the epoch is gone through several times (CombinedLoader's max_size_cycle).
        round_, start = divmod(done, max(1, len(self)))
        self._order.enter(mix(self._seed, "order", epoch, round_), epoch, start)
        return iter(self._loader)


def protected(loader: Any) -> Any:
    """A loader for validation or test whose workers outlive the stop signals and no rank."""
    if not isinstance(loader, DataLoader):
        return loader
    return _changed(loader, {"worker_init_fn": _WorkerInit(loader.worker_init_fn)})


class _Order:
    """A (batch) sampler whose whole order is drawn from a seed of its own, entered at `start`.

    The order is drawn at once: a sampler that drew bit by bit would mix with the random numbers of training.
    """

    def __init__(self, drawn_from: Any, sampler: Any, *, batched: bool) -> None:
        self._drawn_from, self._sampler, self._batched = drawn_from, sampler, batched
        self._seed, self._epoch, self._start = 0, 0, 0

    def enter(self, seed: int, epoch: int, start: int) -> None:
        self._seed, self._epoch, self._start = seed, epoch, start

    def __len__(self) -> int:
        return len(self._drawn_from)

    def __iter__(self) -> Iterator[Any]:
        for part in (self._sampler, self._drawn_from):
            if (generator := getattr(part, "generator", None)) is not None:
                generator.manual_seed(self._seed)
            if hasattr(part, "set_epoch"):
                part.set_epoch(self._epoch)
        with isolate_rng():
            seed_all(self._seed)
            order = list(self._drawn_from)
        for item in order[self._start :]:
            yield [(self._seed, index) for index in item] if self._batched else (self._seed, item)


class _SeededDataset(Dataset[Any]):
    """Draws each sample with random state of its own, so that any worker gives the same one."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_dataset":
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __getitem__(self, key: tuple[int, Any]) -> Any:
        seed, index = key
        seed_all(mix(seed, index))
        return self._dataset[index]

    def __getitems__(self, keys: list[tuple[int, Any]]) -> Any:
        fetch = getattr(self._dataset, "__getitems__", None)
        if fetch is None:
            return [self[key] for key in keys]
        seed_all(mix(*keys))
        return fetch([index for _, index in keys])


class _WorkerInit:
    """What a DataLoader worker does first."""

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self._then = then

    def __call__(self, worker: int) -> None:
        # A signal to all processes must not take the workers before the ranks have saved. They end with their rank.
        for number in (*STOP_SIGNALS, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        die_with_parent()
        if self._then is not None:
            self._then(worker)


def _changed(loader: DataLoader[Any], changes: dict[str, Any]) -> DataLoader[Any]:
    """A copy with other parts. DataLoader refuses to set them, and building it anew would lose subclasses."""
    changed = copy.copy(loader)
    vars(changed).update(changes)
    return changed
