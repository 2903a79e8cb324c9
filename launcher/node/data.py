"""Data that can be entered at any batch: order and random numbers are functions of the position.

A batch's samples depend on (seed, epoch, batch), and so do the random numbers that its samples draw, whatever the
number of DataLoader workers: a resumed rank needs nothing but the loops' counters. Only a stream (an iterable dataset)
has a position that counters cannot give back; `streams.py` keeps it.
"""

import copy
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from torch.multiprocessing import get_start_method
from torch.utils.data import DataLoader, IterableDataset

from launcher.diagnosis import STOP_SIGNALS
from launcher.errors import UsageError
from launcher.node.environment import die_with_parent
from launcher.node.order import Deal, Order, Position, SeededDataset
from launcher.node.streams import Parcel, Stream, StreamState, is_stateful

_DRAWN_AHEAD = 8
"""Lightning and CombinedLoader draw at most a few batches before they are trained with."""


def _nothing() -> None:
    pass


class NotResumable(UsageError):
    """The data give no way to go on where an attempt has ended; the message says what to add."""


class ExactLoader:
    """Any loader, entered where `position` says. Calls `between` before each batch of a pass but the first.

    For a map-style DataLoader no batch before the position is loaded; a sequence of batches is read from there; what
    has a state is put back to the one that it had there.
    """

    def __init__(
        self,
        loader: Any,
        position: Callable[[], Position],
        between: Callable[[], None] = _nothing,
        deal: Deal | None = None,
    ) -> None:
        """`deal`: only for a DataLoader over a map-style dataset, as one of the original ranks would have it."""
        self._position, self._between = position, between
        self._loader = loader
        self._order: Order | None = None
        self._stream: Stream | None = None
        self._keeps_state = False
        self._states: deque[tuple[int, StreamState]] = deque(maxlen=_DRAWN_AHEAD)
        self._resume: StreamState | None = None
        self.entered_with: StreamState | None = None
        """What `stream_state(0)` was when this pass began."""
        if not isinstance(loader, DataLoader):
            self._keeps_state = is_stateful(loader)
            return
        parts: dict[str, Any] = {"worker_init_fn": _WorkerInit(loader)}
        if not isinstance(loader.dataset, IterableDataset):
            name = "sampler" if loader.batch_sampler is None else "batch_sampler"
            self._order = Order(getattr(loader, name), loader.sampler, deal)
            parts |= {name: self._order, "dataset": SeededDataset(loader.dataset)}
        elif is_stateful(loader.dataset):
            self._stream = Stream(loader)
            parts |= self._stream.parts
        self._loader = _changed(loader, parts)

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy and pickle ask for these before __init__ has run
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Any]:
        # The first `next` asks where training stands, not `iter`: Lightning calls that one too early.
        position = self._position()
        done = position.start
        for batch in self._begin(position):
            done += 1
            if not isinstance(batch, Parcel):
                if self._keeps_state:
                    self._states.append((done, self._loader.state_dict()))
                yield batch
            elif batch.skipped:
                done -= 1
                continue
            else:
                assert self._stream is not None
                self._states.append((done, self._stream.delivered(batch)))
                yield batch.data
            self._between()

    def state_dict(self) -> dict[str, Any]:
        """Empty: says to Lightning that this loader can resume within an epoch."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def stream_state(self, done: int) -> StreamState | None:
        """What it takes beside the loops' counters to go on after `done` batches of this pass; 0: between passes."""
        if self._resume is not None:  # not entered since
            return self._resume
        if done == 0:
            if self._stream is not None:
                return self._stream.between_passes()
            return self._loader.state_dict() if self._keeps_state else None
        return dict(self._states)[done] if self._states else None

    @property
    def virtual_batches(self) -> int:
        """Batches of an epoch, of each rank that the run began with. Only of a map-style DataLoader."""
        assert self._order is not None
        return self._order.virtual_batches

    def resume_stream(self, state: StreamState | None) -> None:
        """Begin the next pass with this state."""
        self._resume = state

    def _begin(self, position: Position) -> Iterator[Any]:
        self.entered_with = self.stream_state(0)
        state, self._resume = self._resume, None
        self._states.clear()
        if state is not None:
            self._states.append((position.start, state))
        if self._order is not None:
            # A loader shorter than the epoch is gone through several times (CombinedLoader's max_size_cycle).
            round_, start = divmod(position.start, max(1, len(self)))
            self._order.enter(position, round_, start)
        elif self._stream is not None:
            self._stream.enter(position.samples, state)
        elif self._keeps_state:
            if state is not None:
                self._loader.load_state_dict(state)
        elif position.start:
            return islice(iter(self._loader), position.start % max(1, len(self)), None)
        return iter(self._loader)


def require_resumable(loader: Any, name: str) -> None:
    """Whether training can go on within a pass over this loader.

    Raises:
        NotResumable: with what to add.
    """
    if not isinstance(loader, DataLoader):
        if not isinstance(loader, Sequence) and not is_stateful(loader):
            raise NotResumable(
                f"{name}: the position of a {type(loader).__name__} cannot be saved; add `state_dict()` and "
                "`load_state_dict(state)` to it, or use a DataLoader over a map-style dataset"
            )
    elif isinstance(loader.dataset, IterableDataset):
        kind = f"the IterableDataset {type(loader.dataset).__name__}"
        if not is_stateful(loader.dataset):
            raise NotResumable(
                f"{name}: the position of {kind} cannot be saved. Add `state_dict()`, which returns "
                "where it stands, and `load_state_dict(state)`, after which `__iter__` goes on from there; or use a "
                "map-style dataset"
            )
        if loader.persistent_workers:
            raise NotResumable(
                f"{name}: workers that outlive a pass over {kind} draw ahead and lose their place; "
                "set persistent_workers=False"
            )


class _WorkerInit:
    """What a DataLoader worker does first."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        context = loader.multiprocessing_context
        method = get_start_method() if context is None else context.get_start_method()
        # A server that forks workers is their parent, and dies with the rank by itself.
        self._parent = None if method == "forkserver" else os.getpid()
        self._then = loader.worker_init_fn

    def __call__(self, worker: int) -> None:
        # A signal to all processes must not take the workers before the ranks have saved. They end with their rank.
        for number in (*STOP_SIGNALS, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        die_with_parent(self._parent)
        if self._then is not None:
            self._then(worker)


def _changed(loader: DataLoader[Any], changes: dict[str, Any]) -> DataLoader[Any]:
    """A copy with other parts. DataLoader refuses to set them, and building it anew would lose subclasses."""
    changed = copy.copy(loader)
    vars(changed).update(changes)
    return changed
