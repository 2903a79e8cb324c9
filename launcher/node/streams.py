"""Iterable datasets that say where they stand: their state travels with each batch, out of the loader's workers.

The contract: `state_dict()` returns where the dataset stands, as plain values and tensors, also while it is iterated
and between two passes; after `load_state_dict(state)`, the next `__iter__` goes on from there. As in any DataLoader,
each worker has a copy of its own, made anew for each pass; without workers the dataset goes on from pass to pass.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from launcher.errors import LauncherError
from launcher.node.seeding import mix, seed_all

StreamState = dict[str, Any]
"""Plain values: `workers`, the state of each worker's copy, and `next`, the worker whose turn it is."""

_SKIP = object()


def is_stateful(thing: Any) -> bool:
    return callable(getattr(thing, "state_dict", None)) and callable(getattr(thing, "load_state_dict", None))


class Parcel(NamedTuple):
    """A batch, with the state of the dataset behind it."""

    worker: int
    drawn: int
    """Batches that this worker has drawn in this pass, this one included."""
    state: Any
    ended: bool
    """The dataset had no more for this pass."""
    data: Any
    skipped: bool = False
    """No data: it only passes the turn to the next worker."""


class Stream:
    """The main process's view of one stateful iterable dataset."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._tracked = _Tracked(loader.dataset, loader.batch_size or 1)
        self._in_workers = loader.num_workers > 0
        self._workers: list[dict[str, Any] | None] = [None] * max(1, loader.num_workers)
        self.parts = {"dataset": self._tracked, "collate_fn": _Collate(loader.collate_fn, self._tracked)}
        """What replaces the loader's own."""

    def enter(self, seed: int, state: StreamState | None) -> None:
        """Begin a pass.

        Raises:
            LauncherError: the state is that of another number of workers.
        """
        workers = len(self._workers)
        if state is not None and len(state["workers"]) != workers:
            raise LauncherError(
                f"the stream stands where {len(state['workers'])} worker(s) have left it, but the loader has {workers} "
                "now; resume with the same num_workers"
            )
        self._workers = list(state["workers"]) if state else [None] * workers
        self._tracked.enter(seed, self._workers, state["next"] if state else 0)

    def delivered(self, parcel: Parcel) -> StreamState:
        """The state after this batch."""
        self._workers[parcel.worker] = {"drawn": parcel.drawn, "dataset": parcel.state, "ended": parcel.ended}
        return {"workers": list(self._workers), "next": (parcel.worker + 1) % len(self._workers)}

    def between_passes(self) -> StreamState | None:
        """None: workers begin a pass with a fresh copy."""
        if self._in_workers:
            return None
        return {"workers": [{"drawn": 0, "dataset": self._tracked.dataset.state_dict(), "ended": False}], "next": 0}


class _Tracked(IterableDataset[Any]):
    """The dataset as a worker sees it: put back to its state, with random numbers that follow from the position."""

    def __init__(self, dataset: Any, batch_size: int) -> None:
        self.dataset, self._batch_size = dataset, batch_size
        self._seed, self._first, self.drawn, self.ended = 0, 0, 0, False
        self._states: list[dict[str, Any] | None] = []

    def enter(self, seed: int, states: list[dict[str, Any] | None], first: int) -> None:
        self._seed, self._states, self._first = seed, states, first

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Any]:
        state = self._states[worker_id()]
        self.drawn, self.ended = (state["drawn"], state["ended"]) if state else (0, False)
        if state:
            self.dataset.load_state_dict(state["dataset"])
        # Batches come from the workers in turn, worker 0 first: those before the one in turn pass.
        if worker_id() < self._first:
            yield from [_SKIP] * self._batch_size
        samples = iter(self.dataset) if not self.ended else iter(())
        seeded = -1
        while True:
            if seeded != self.drawn:  # a batch begins, and without workers a step has been trained meanwhile
                seeded = self.drawn
                seed_all(mix(self._seed, worker_id(), self.drawn))
            try:
                sample = next(samples)
            except StopIteration:
                self.ended = True
                return
            yield sample


class _Collate:
    """Runs where a batch is drawn, after its last sample: the one place that sees both batch and dataset."""

    def __init__(self, collate: Callable[[Any], Any], tracked: _Tracked) -> None:
        self._collate = collate
        self._tracked = tracked  # a worker's copy of this and of the loader's dataset are one object there too

    def __call__(self, samples: Any) -> Parcel:
        tracked = self._tracked
        if samples is _SKIP or (isinstance(samples, list) and samples[0] is _SKIP):
            return Parcel(worker_id(), 0, None, False, None, skipped=True)
        data = self._collate(samples)
        tracked.drawn += 1
        return Parcel(worker_id(), tracked.drawn, tracked.dataset.state_dict(), tracked.ended, data)


def worker_id() -> int:
    worker = get_worker_info()
    return worker.id if worker else 0
