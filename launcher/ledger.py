"""The events of a run: append-only, one file each, numbered without gaps; and the state they fold to.

An event is created exclusively under the next number, so the ledger is the one compare-and-swap that a
run has: whoever appends with `after=version` knows that nothing happened in between.
"""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from launcher.errors import FormatTooNew, LedgerConflict
from launcher.storage import Storage

FORMAT = 1
_FOLDER = "events"


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """The process that drives a run, such that a reader on the same machine can tell whether it lives."""

    host: str
    machine: str
    """Boot and pid namespace; "" where the system does not say."""
    pid: int
    started: int
    """Start time in clock ticks since boot: a pid alone may be reused."""
    job: str = ""
    """The scheduler's job that it is the batch process of; "" outside of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Driving:
    """A supervisor took the run over."""

    driver: Driver


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitting:
    """The intent to have a scheduler start a supervisor: a job that no event names is told by its comment."""

    submission: int
    target: str
    exclude: tuple[str, ...] = ()
    """Hosts that it is not to run on."""
    cells: tuple[int, ...] = ()
    """Of a sweep: which of its runs, by the order of the array's elements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    submission: int
    job: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStarting:
    """The intent: written before the backend is called, so that a crash in between is seen."""

    attempt: int
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStarted:
    attempt: int
    hosts: tuple[str, ...]
    handle: dict[str, Any]
    """What the backend needs to find the attempt again."""
    idle: tuple[str, ...] = ()
    """Hosts of the allocation that it does not use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptResumes:
    """Rank 0 chose where the attempt begins; all ranks wait for this event."""

    attempt: int
    step: int
    path: str | None
    """Checkpoint file, relative to the run directory; None: from the beginning."""
    complete: bool = False
    """Training has ended there: what is left is the test, unless the spec has been changed."""
    changed: bool = False
    """The spec has been changed since this checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnded:
    attempt: int
    cause: str
    """A policy.Cause."""
    reason: str
    step: int
    """The last step that was seen."""
    lost: tuple[str, ...] = ()
    """Hosts that failed in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSaved:
    """A checkpoint counts from this event on, and not before."""

    attempt: int
    """0: it comes from another run."""
    step: int
    epoch: int
    path: str
    """The .ckpt file, relative to the run directory; manifest.json lies beside it."""
    bytes: int
    complete: bool
    """Training has reached its end with this checkpoint; what may be missing is the test."""
    metric: float | None = None
    """What checkpoint.monitor was, in a validation of just this step; None if there was none."""
    stall_s: float = 0.0
    """How long training stood still for it."""
    write_s: float = 0.0
    """How long it took to write after that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointsDropped:
    """These no longer count: pruned, or found to be bad and set aside."""

    attempt: int
    paths: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequested:
    by: str
    checkpoint: bool = False
    """Save before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeRequested:
    """The user wants an ended run to go on; budgets count from here."""

    by: str
    overrides: tuple[str, ...] = ()
    """What is changed from here on, as `--set` has it."""
    spec: dict[str, Any] | None = None
    """The resolved spec with these changes; None: it stays as it is."""
    code: dict[str, Any] | None = None
    """The snapshot to import from; None: it stays the one before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    state: str
    """finished, stopped, failed or cancelled."""
    reason: str


Event = (
    Driving
    | Submitting
    | Submitted
    | AttemptStarting
    | AttemptStarted
    | AttemptResumes
    | AttemptEnded
    | CheckpointSaved
    | CheckpointsDropped
    | CancelRequested
    | ResumeRequested
    | RunEnded
)
_KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in Event.__args__}


class Record(NamedTuple):
    number: int
    time: float
    """Seconds since 1970, by the writer's clock."""
    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One start of all ranks."""

    number: int
    target: str
    started: float
    hosts: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    """Hosts that were granted, and that it does not use."""
    handle: dict[str, Any] | None = None
    first_step: int | None = None
    """Known once rank 0 has chosen where to begin."""
    resumes_from: str | None = None
    """Checkpoint file, relative to the run directory."""
    complete: bool = False
    """It begins where training has ended."""
    changed: bool = False
    """It begins with a checkpoint that was taken under another spec."""
    ended: float | None = None
    cause: str | None = None
    reason: str | None = None
    last_step: int | None = None
    progressed: bool = False
    """It saved a checkpoint beyond all earlier ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A job that is to bring up, or has brought up, the supervisor of a run."""

    number: int
    at: float
    """Seconds since 1970."""
    job: str | None = None
    """None: nobody has written down whether the scheduler took it."""
    cells: tuple[int, ...] = ()
    """As in Submitting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """All that is known of a run, folded from its events."""

    version: int = 0
    driver: Driver | None = None
    submission: Submission | None = None
    """The one that counts; an older one's supervisor leaves. None: the run needs no job."""
    submissions: int = 0
    """How many there have been."""
    excluded: tuple[str, ...] = ()
    """Hosts that failed under this run."""
    attempts: tuple[Attempt, ...] = ()
    checkpoints: tuple[CheckpointSaved, ...] = ()
    """Those that count, oldest first."""
    best_step: int = -1
    budget_from: int = 0
    """Attempts after this number count against the retry budgets."""
    overrides: tuple[str, ...] = ()
    """All changes since the run was created."""
    spec: dict[str, Any] | None = None
    """The resolved spec as it is now; None: as it was created."""
    changed_after: int = 0
    """Attempts up to this number had another spec."""
    code: dict[str, Any] | None = None
    """The snapshot as it is now; None: the one that the run was created with."""
    cancelling: bool = False
    saves_first: bool = False
    """Before it is cancelled."""
    ended: RunEnded | None = None
    ended_at: float | None = None

    @property
    def open_attempt(self) -> Attempt | None:
        return self.attempts[-1] if self.attempts and self.attempts[-1].ended is None else None


def fold(records: Iterable[Record], state: RunState | None = None) -> RunState:
    """Pure: the same events always give the same state."""
    state = state or RunState()
    for record in records:
        state = _apply(replace(state, version=record.number), record.time, record.event)
    return state


def _apply(state: RunState, at: float, event: Event) -> RunState:
    match event:
        case Driving():
            return replace(state, driver=event.driver)
        case Submitting():
            submission = Submission(number=event.submission, at=at, cells=event.cells)
            return replace(state, submission=submission, submissions=event.submission)
        case Submitted():
            now = state.submission
            known = now is not None and now.number == event.submission
            return replace(state, submission=replace(now, job=event.job)) if now and known else state
        case AttemptStarting():
            attempt = Attempt(number=event.attempt, target=event.target, started=at)
            return replace(state, attempts=(*state.attempts, attempt))
        case AttemptStarted():
            return _update(state, event.attempt, hosts=event.hosts, idle=event.idle, handle=event.handle)
        case AttemptResumes():
            return _update(
                state,
                event.attempt,
                first_step=event.step,
                resumes_from=event.path,
                complete=event.complete,
                changed=event.changed,
            )
        case AttemptEnded():
            state = replace(state, excluded=tuple(dict.fromkeys((*state.excluded, *event.lost))))
            return _update(
                state,
                event.attempt,
                ended=at,
                cause=event.cause,
                reason=event.reason,
                last_step=event.step,
            )
        case CheckpointSaved():
            further = event.step > state.best_step
            state = replace(
                state,
                checkpoints=(*state.checkpoints, event),
                best_step=max(state.best_step, event.step),
            )
            return _update(state, event.attempt, progressed=True) if further else state
        case CheckpointsDropped():
            kept = tuple(saved for saved in state.checkpoints if saved.path not in event.paths)
            return replace(state, checkpoints=kept)
        case CancelRequested():
            return replace(state, cancelling=True, saves_first=event.checkpoint)
        case ResumeRequested():
            state = replace(state, cancelling=False, saves_first=False, ended=None, ended_at=None)
            state = replace(state, submission=None, excluded=(), budget_from=len(state.attempts))
            state = replace(state, code=event.code or state.code)
            if event.spec is None:
                return state
            overrides = (*state.overrides, *event.overrides)
            return replace(state, overrides=overrides, spec=event.spec, changed_after=len(state.attempts))
        case RunEnded():
            return replace(state, ended=event, ended_at=at)


def _update(state: RunState, number: int, **changes: Any) -> RunState:
    attempts = tuple(replace(attempt, **changes) if attempt.number == number else attempt for attempt in state.attempts)
    return replace(state, attempts=attempts)


class Ledger:
    """Reads and appends the events of one run; keeps what it has read."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._records: list[Record] = []
        self._state = RunState()

    def refresh(self) -> RunState:
        """Read what is new and return the state.

        Raises:
            FormatTooNew: a newer launcher wrote an event of a kind or format that this one does not know.
        """
        new: list[Record] = []
        for name in self._storage.list(_FOLDER)[len(self._records) :]:
            if name != _name(len(self._records) + len(new) + 1):
                break  # listed while others wrote: a name was passed over; it is there the next time
            new.append(_decode(self._storage.read(f"{_FOLDER}/{name}"), where=name))
        self._records += new
        self._state = fold(new, self._state)
        return self._state

    def newest(self) -> Record | None:
        """The last event alone; None if there is none. Raises FormatTooNew."""
        names = self._storage.list(_FOLDER)
        return _decode(self._storage.read(f"{_FOLDER}/{names[-1]}"), where=names[-1]) if names else None

    def records(self) -> tuple[Record, ...]:
        self.refresh()
        return tuple(self._records)

    def append(self, event: Event, *, after: int) -> RunState:
        """Write event number `after` + 1.

        Raises:
            LedgerConflict: somebody else wrote that number first; read and decide again.
        """
        number = after + 1
        body = {
            "format": FORMAT,
            "number": number,
            "time": time.time(),
            "kind": type(event).__name__,
            **asdict(event),
        }
        data = (json.dumps(body, indent=1) + "\n").encode()
        try:
            self._storage.create(f"{_FOLDER}/{_name(number)}", data)
        except FileExistsError:
            raise LedgerConflict(f"{self._storage.root}: event {number} was written by somebody else") from None
        return self.refresh()

    def append_while(self, allowed: Callable[[RunState], object], event: Event) -> RunState:
        """Append an event that stays true whatever else happens, unless `allowed` raises on the newest state."""
        while True:
            state = self.refresh()
            allowed(state)
            try:
                return self.append(event, after=state.version)
            except LedgerConflict:
                continue


def _name(number: int) -> str:
    return f"{number:08d}.json"


def _decode(data: bytes, *, where: str) -> Record:
    body = json.loads(data)
    number, at, kind = body.pop("number"), body.pop("time"), body.pop("kind")
    if body.pop("format") > FORMAT or kind not in _KINDS:
        raise FormatTooNew(f"event {where} was written by a newer launcher; update this one")
    if kind == "Driving":
        body["driver"] = Driver(**body["driver"])
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in body.items()}
    make: Callable[..., Event] = _KINDS[kind]
    return Record(number, at, make(**values))
