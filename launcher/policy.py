"""What to do next with a run. Pure: no clock, no disk, no cluster."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol

from launcher.state import Attempt, RunState

BACKOFF_S = 1.0
BACKOFF_MAX_S = 60.0
_BY_USER = "stopped by the user"


class Cause(StrEnum):
    """Why an attempt ended."""

    FINISHED = "finished"
    STOPPED = "stopped"  # the user asked, the ranks saved and left
    CANCELLED = "cancelled"
    PREEMPTED = "preempted"  # somebody else's signal; the ranks saved and left
    TIMEOUT = "timeout"  # the allocation's time was over
    INFRA = "infra"  # a killed or lost process, node, connection
    ERROR = "error"  # the user's own code


class Phase(StrEnum):
    """What a backend sees of an attempt. UNKNOWN is never an ending."""

    UNKNOWN = "unknown"
    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Seen:
    phase: Phase
    cause: Cause | None = None
    """Set if and only if the phase is ENDED."""
    reason: str = ""
    lost: tuple[str, ...] = ()
    """Hosts that failed."""


class Retry(Protocol):
    """The retry section of a job spec."""

    @property
    def preemption(self) -> int | Literal["unlimited"]: ...
    @property
    def timeout(self) -> int | Literal["unlimited"]: ...
    @property
    def infra(self) -> int: ...
    @property
    def error(self) -> int: ...
    @property
    def max_no_progress(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Start:
    attempt: int


@dataclass(frozen=True, slots=True)
class Wait:
    until: float
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Finish:
    state: str
    reason: str


def decide(state: RunState, retry: Retry, *, stopping: bool, now: float) -> Start | Wait | Finish:
    """Choose what follows when no attempt is open.

    Args:
        state: folded from the ledger; every attempt in it has ended.
        retry: how often each cause may be answered by another attempt.
        stopping: the user asked this supervisor to stop.
        now: seconds since 1970.
    """
    last = state.attempts[-1] if state.attempts else None
    if last and last.cause == Cause.FINISHED and last.number > state.budget_from:
        return Finish("finished", last.reason or "")
    counted = [attempt for attempt in state.attempts if attempt.number > state.budget_from]
    if state.cancelling:
        told = counted[-1].reason if counted and counted[-1].cause == Cause.CANCELLED else None
        return Finish("cancelled", told or "cancelled by the user")
    if last is None or not counted:
        return Finish("stopped", _BY_USER) if stopping else Start(len(state.attempts) + 1)
    if last.cause in (Cause.STOPPED, Cause.CANCELLED):  # if not stopping: its supervisor died before it could say so
        return Finish("stopped", _BY_USER) if stopping else Finish(str(last.cause), last.reason or "")
    if exceeded := _exceeded(counted, retry):
        return Finish("failed", exceeded)
    if stopping:  # an error is none the less one, though there may be attempts left to answer it
        failed = last.cause == Cause.ERROR
        return Finish("failed", _told(last)) if failed else Finish("stopped", _BY_USER)
    until = (last.ended or 0.0) + _backoff_s(counted)
    return Start(last.number + 1) if now >= until else Wait(until)


def _exceeded(counted: list[Attempt], retry: Retry) -> str | None:
    """The budget that is used up, in words; None if another attempt may start."""
    last = counted[-1]
    used = {
        Cause.PREEMPTED: (_total(counted, Cause.PREEMPTED), retry.preemption, "preemption"),
        Cause.TIMEOUT: (_total(counted, Cause.TIMEOUT), retry.timeout, "timeout"),
        Cause.INFRA: (_in_a_row(counted, Cause.INFRA), retry.infra, "infra"),
        Cause.ERROR: (_total(counted, Cause.ERROR), retry.error, "error"),
    }
    count, allowed, key = used[Cause(last.cause or "")]
    if allowed != "unlimited" and count > allowed:
        limit = f" (retry.{key}: {allowed} used up)" if allowed else ""
        return f"{_told(last)}{limit}"
    if (stuck := _stuck(counted)) >= retry.max_no_progress:
        return f"no new checkpoint in {stuck} attempts in a row (retry.max_no_progress); the last, {_told(last)}"
    return None


def _told(attempt: Attempt) -> str:
    return f"attempt {attempt.number}: {attempt.reason}"


def _total(attempts: Iterable[Attempt], cause: Cause) -> int:
    return sum(attempt.cause == cause for attempt in attempts)


def _in_a_row(attempts: list[Attempt], cause: Cause) -> int:
    """Newest attempts with this cause since one that made progress (which counts, but none before it)."""
    count = 0
    for attempt in reversed(attempts):
        count += attempt.cause == cause
        if attempt.progressed:
            break
    return count


def _stuck(attempts: list[Attempt]) -> int:
    count = 0
    for attempt in reversed(attempts):
        if attempt.progressed:
            break
        count += 1
    return count


def _backoff_s(counted: list[Attempt]) -> float:
    """Nothing after a preemption; after failures twice as long each time, as long as they do not progress."""
    if counted[-1].cause in (Cause.PREEMPTED, Cause.TIMEOUT) or counted[-1].progressed:
        return 0.0
    return min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** (_stuck(counted) - 1))
