"""What can happen to a run: the events that its ledger holds, and how they are read."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from launcher.errors import FormatTooNew

FORMAT = 1


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
    target: str | None = None
    """Where it goes on; None: it stays where it was."""
    site: dict[str, Any] | None = None
    """That target as it was resolved, as in run.json; None, if one is named: this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """All that stands before this was brought to another address, and the run goes on there: nothing follows here."""

    to: str


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
    | Moved
    | RunEnded
)

_KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in Event.__args__}


class Record(NamedTuple):
    number: int
    time: float
    """Seconds since 1970, by the writer's clock."""
    event: Event


def decode(data: bytes, *, where: str) -> Record:
    """Raises FormatTooNew: it is of a kind or format that this launcher does not know."""
    body = json.loads(data)
    number, at, kind = body.pop("number"), body.pop("time"), body.pop("kind")
    if body.pop("format") > FORMAT or kind not in _KINDS:
        raise FormatTooNew(f"event {where} was written by a newer launcher; update this one")
    if kind == "Driving":
        body["driver"] = Driver(**body["driver"])
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in body.items()}
    make: Callable[..., Event] = _KINDS[kind]
    return Record(number, at, make(**values))
