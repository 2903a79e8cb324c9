"""What is known of a run: the state that its events fold to."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from launcher.events import (
    AttemptEnded,
    AttemptResumes,
    AttemptStarted,
    AttemptStarting,
    CancelRequested,
    CheckpointSaved,
    CheckpointsDropped,
    Driver,
    Driving,
    Event,
    Moved,
    Record,
    ResumeRequested,
    RunEnded,
    Submitted,
    Submitting,
)


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
    target: str | None = None
    """Where it goes on; None: where it was created for."""
    site: dict[str, Any] | None = None
    """As in ResumeRequested."""
    moved_to: str | None = None
    """The address of its directory now; None: this is it."""
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
            # Whoever drove it has left, or was taken for dead, and is not to wake up and start something elsewhere.
            state = replace(state, driver=None, submission=None, excluded=(), budget_from=len(state.attempts))
            state = replace(state, code=event.code or state.code, spec=event.spec or state.spec)
            if event.target is not None:
                state = replace(state, target=event.target, site=event.site)
            if not event.overrides:
                return state
            return replace(state, overrides=(*state.overrides, *event.overrides), changed_after=len(state.attempts))
        case Moved():
            ended = RunEnded(state="moved", reason=f"it goes on at {event.to}")
            return replace(state, moved_to=event.to, ended=ended, ended_at=at)
        case RunEnded():
            return replace(state, ended=event, ended_at=at)


def _update(state: RunState, number: int, **changes: Any) -> RunState:
    attempts = tuple(replace(attempt, **changes) if attempt.number == number else attempt for attempt in state.attempts)
    return replace(state, attempts=attempts)
