"""Why an attempt ended: from exit codes and failure records of all ranks the first cause, not its echoes. Pure."""

import re
import signal
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from launcher.kinds import CAUSES, ECHOES, IN_LOADER, Kind, essence
from launcher.policy import Cause

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
"""What schedulers send before they take the machine away (SLURM: both, as configured; TPU VMs: SIGTERM)."""
UNWRITABLE = 74
"""Exit code of a rank that could not write its failure record (EX_IOERR)."""
_CRASHES = (
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGSEGV,
    signal.SIGSYS,
    signal.SIGTRAP,
)
"""Signals that a process brings on itself."""


class Diagnosis(NamedTuple):
    cause: Cause
    kind: Kind
    rank: int | None
    """The first to fail; None if it is no rank's own doing."""
    reason: str
    """One sentence."""


def attempt_cause(
    exits: Mapping[int, int],
    failures: Sequence[Mapping[str, Any]],
    *,
    ended_by_us: Collection[int],
    left: str | None,
    oom_kills: int | None = None,
) -> tuple[Cause, str]:
    """Cause and reason of an attempt that ended without finished.json; see `diagnose`."""
    found = diagnose(exits, failures, ended_by_us=ended_by_us, left=left, oom_kills=oom_kills)
    return found.cause, found.reason


def diagnose(
    exits: Mapping[int, int],
    failures: Sequence[Mapping[str, Any]],
    *,
    ended_by_us: Collection[int],
    left: str | None,
    oom_kills: int | None = None,
) -> Diagnosis:
    """Why an attempt ended that has not finished.

    A rank that was killed comes before all exceptions: these may be what its end looks like from elsewhere, and a
    user's error that was the first after all comes again in the next attempt. One that crashed comes after them: a
    peer's end may crash the libraries that were talking to it.

    Args:
        exits: exit code of each rank, negative for a signal.
        failures: what the ranks recorded of their exceptions, the earliest first.
        ended_by_us: ranks that were killed because another one had ended.
        left: the signal at which all ranks agreed to save and leave, if they did.
        oom_kills: processes of this attempt that the kernel's out-of-memory killer ended; None if nobody counted.
    """
    signals = {rank: -code for rank, code in sorted(exits.items()) if code < 0 and rank not in ended_by_us}
    killed = next((rank for rank, number in signals.items() if number not in (*STOP_SIGNALS, *_CRASHES)), None)
    stopped = next((rank for rank, number in signals.items() if number in STOP_SIGNALS), None)
    first = first_failure(failures)
    if killed is not None:
        return _killed(killed, signals[killed], oom_kills, any(one.get("oom_kills") for one in failures))
    if first and kind_of(first) not in ECHOES and not (stopped is not None and first.get("stopping")):
        return _of_record(first)
    if stopped is not None:  # before the rank was ready to save
        return _of(Kind.PREEMPTED, stopped, f"rank {stopped} was ended by {_signal_name(signals[stopped])}")
    for rank, number in signals.items():
        return _of(Kind.CRASH, rank, f"rank {rank} was killed by {_signal_name(number)}")
    recorded = {record["rank"] for record in failures}
    for rank, code in sorted(exits.items()):
        if code == UNWRITABLE and rank not in recorded:
            return _of(Kind.DISK, rank, f"rank {rank} could not write to the run directory; see its log")
        if code > 0 and rank not in recorded:
            return _of(Kind.EXIT, rank, f"rank {rank} exited with code {code} and left no traceback; see its log")
    if left:
        return _of(Kind.PREEMPTED, None, f"saved and left at {left}")
    if first:
        return _echo(first, sorted(exits.keys() - recorded))
    return _of(Kind.LEFT, None, "all ranks left before the end of training without saying why")


_SIGNALLED = re.compile(r"rank (\d+) was (?:killed|ended) by (.+?)(; by the out-of-memory killer)?(\?)?$")
_OF_MACHINES = re.compile(r"host \d+\b|its (hosts?|node|queued resource|request)\b|cannot ask for ")
"""Of machines that were made for the attempt: they were lost, or could not be had or set up as the spec has it."""
_EXITED = re.compile(r"rank (\d+) (?:exited with code|could not write)")


def ended(cause: str, reason: str, failures: Sequence[Mapping[str, Any]]) -> tuple[Kind, int | None]:
    """Kind and first rank of an attempt that is over, from what is still known of it.

    Args:
        cause: as the ledger has it.
        reason: the same; a sentence of `diagnose`, unless the attempt did not end by itself.
        failures: as in `diagnose`.
    """
    for record in failures:
        if reason.startswith(sentence(record)):
            return kind_of(record), record["rank"]
    if signalled := _SIGNALLED.match(reason):
        rank, name, by_killer, guessed = signalled.groups()
        if cause == Cause.PREEMPTED:
            return Kind.PREEMPTED, int(rank)
        if by_killer and not guessed:
            return Kind.MEMORY, int(rank)
        return (Kind.CRASH if name in {one.name for one in _CRASHES} else Kind.KILLED), int(rank)
    if exited := _EXITED.match(reason):
        return (Kind.EXIT if cause == Cause.ERROR else Kind.DISK), int(exited[1])
    first = first_failure(failures)
    if cause in (Cause.ERROR, Cause.INFRA):
        if first:
            return kind_of(first), first["rank"]
        if _OF_MACHINES.match(reason):
            return (Kind.SPEC if cause == Cause.ERROR else Kind.MACHINE), None
        return (Kind.ERROR if cause == Cause.ERROR else _unrecorded(reason)), None
    return Kind(cause), None


def _unrecorded(reason: str) -> Kind:
    """Of an attempt that left no trace in its ranks' records."""
    if reason.startswith("all ranks left"):
        return Kind.LEFT
    if reason.startswith(("srun", "slurmstepd")):
        return Kind.LAUNCH
    return Kind.LAUNCHER if reason.startswith("the launcher") else Kind.KILLED


def first_failure(failures: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The earliest record that is no echo; an echo only if there is nothing else."""
    causes = [record for record in failures if kind_of(record) not in ECHOES]
    return next(iter(causes or failures), None)


def kind_of(record: Mapping[str, Any]) -> Kind:
    """As the rank recorded it. Another launcher's word for it may be unknown here."""
    with suppress(ValueError):
        return Kind(record["kind"])
    return Kind.LOADER if record["kind"] == "infra" else Kind.ERROR


def sentence(record: Mapping[str, Any]) -> str:
    """Who, what, and the line of the message that says most."""
    return f"rank {record['rank']}: {record['type']}: {_headline(record['message'] or '', record['type'])}"


def _killed(rank: int, number: int, counted: int | None, seen_by_peers: bool) -> Diagnosis:
    reason = f"rank {rank} was killed by {_signal_name(number)}"
    if number == signal.SIGKILL and (counted or seen_by_peers):
        return _of(Kind.MEMORY, rank, f"{reason}; by the out-of-memory killer")
    unsure = number == signal.SIGKILL and counted is None
    return _of(Kind.KILLED, rank, f"{reason}; by the out-of-memory killer?" if unsure else reason)


def _echo(record: Mapping[str, Any], silent: Sequence[int]) -> Diagnosis:
    if kind_of(record) == Kind.HANG and silent:
        names = f"rank{'s' if len(silent) > 1 else ''} {', '.join(map(str, silent[:8]))}"
        return _of_record(record, f"; {names}{' ...' if len(silent) > 8 else ''} did not come")
    return _of_record(record)


def _of_record(record: Mapping[str, Any], more: str = "") -> Diagnosis:
    return _of(kind_of(record), record["rank"], sentence(record) + more)


def _of(kind: Kind, rank: int | None, reason: str) -> Diagnosis:
    return Diagnosis(CAUSES[kind], kind, rank, reason)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"


# -- messages

_SOURCE_LINE = re.compile(r"^\[\S+:\d+\] ")
_ADVICE = " This is typically caused by"
_LONGEST = 300


def _headline(message: str, type_: str) -> str:
    lines = [line.strip() for line in essence(message).splitlines() if line.strip()] or [""]
    text = lines[0]
    if text.endswith(":") and len(lines) > 1:  # "Error(s) in loading state_dict for Net:"
        text = f"{text} {lines[1]}"
    text = _SOURCE_LINE.sub("", text.removeprefix(f"{type_}: ")).partition(_ADVICE)[0]
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + "..."
    in_loader = IN_LOADER.search(message)
    return f"{text} (in DataLoader worker {in_loader[1]})" if in_loader else text
