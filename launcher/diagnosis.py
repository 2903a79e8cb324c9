"""Why an attempt ended: the first cause, not its echoes. Pure, but for `oom_kills`, which reads the kernel's counter.

A rank that fails names the kind of its exception (`classified`) and writes it down; from all ranks' records and exit
codes `diagnose` names the cause of the whole attempt. The texts of torch, gloo and NCCL that are looked for here are
those in tests/node/test_failures.py, most of which that test provokes.
"""

import errno
import re
import signal
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from launcher.errors import LauncherError, UsageError
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


class Kind(StrEnum):
    """What happened. The first group is what ranks record of an exception, the second what is seen from outside."""

    ERROR = "error"  # the user's exception
    SPEC = "spec"  # the job spec does not fit the code or the machine
    IMPORT = "import"
    MEMORY = "memory"  # of the host: an allocation failed, or the out-of-memory killer came
    GPU_MEMORY = "gpu-memory"
    SHARED_MEMORY = "shared-memory"  # /dev/shm, through which DataLoader workers hand over batches
    DISK = "disk"
    CHECKPOINT = "checkpoint"  # it is whole, and yet cannot be loaded
    DRIFT = "drift"  # code, packages or machine are not those that the run began with
    PORT = "port"
    LOADER = "loader"  # a DataLoader worker died
    PREEMPTED = "preempted"
    PEER = "peer"  # an echo: the connection to another rank is gone
    HANG = "hang"  # an echo: another rank did not come

    KILLED = "killed"
    CRASH = "crash"  # by its own native code: SIGSEGV, SIGABRT, ...
    EXIT = "exit"  # with a code and without an exception
    LEFT = "left"  # in peace, before the end
    LAUNCHER = "launcher"  # the supervisor died
    TIMEOUT = "timeout"
    STOPPED = "stopped"
    CANCELLED = "cancelled"
    FINISHED = "finished"


CAUSES: Mapping[Kind, Cause] = {
    Kind.ERROR: Cause.ERROR,
    Kind.SPEC: Cause.ERROR,
    Kind.IMPORT: Cause.ERROR,
    Kind.GPU_MEMORY: Cause.ERROR,  # the same step would need the same memory again
    Kind.CHECKPOINT: Cause.ERROR,
    Kind.DRIFT: Cause.ERROR,
    Kind.EXIT: Cause.ERROR,
    Kind.MEMORY: Cause.INFRA,  # a neighbour may have had it; and a leak gets further with each attempt
    Kind.SHARED_MEMORY: Cause.INFRA,
    Kind.DISK: Cause.INFRA,  # others fill it and others clear it; a retry is in vain at worst, and has its budget
    Kind.PORT: Cause.INFRA,
    Kind.LOADER: Cause.INFRA,
    Kind.PEER: Cause.INFRA,
    Kind.HANG: Cause.INFRA,
    Kind.KILLED: Cause.INFRA,
    Kind.CRASH: Cause.INFRA,
    Kind.LEFT: Cause.INFRA,
    Kind.LAUNCHER: Cause.INFRA,
    Kind.PREEMPTED: Cause.PREEMPTED,
    Kind.TIMEOUT: Cause.TIMEOUT,
    Kind.STOPPED: Cause.STOPPED,
    Kind.CANCELLED: Cause.CANCELLED,
    Kind.FINISHED: Cause.FINISHED,
}
"""How each kind is answered: the retry budget that it draws on."""

ECHOES = (Kind.PEER, Kind.HANG)
"""Never the cause where anything else is known."""

# -- one exception

_ERRNOS = {
    errno.ENOSPC: Kind.DISK,
    errno.EDQUOT: Kind.DISK,
    errno.EADDRINUSE: Kind.PORT,
    errno.ENOMEM: Kind.MEMORY,
}
_TEXTS = (  # of RuntimeErrors; the first that is found counts
    (Kind.SHARED_MEMORY, r"shared memory\(shm\)|out of shared memory|unable to \w+ .*</torch_"),
    (Kind.PREEMPTED, r"DataLoader worker .*killed by signal: (Terminated|User defined signal 2)"),
    (Kind.LOADER, r"DataLoader worker .*(killed by signal|exited unexpectedly)"),
    (Kind.GPU_MEMORY, r"(CUDA|HIP) (error: )?out of memory|Cuda failure .*out of memory|_STATUS_ALLOC_FAILED"),
    (Kind.MEMORY, r"can't allocate memory|Cannot allocate memory"),
    # When torch.save opens the file itself, it keeps the reason to itself: in practice, no space.
    (Kind.DISK, r"No space left on device|Disk quota exceeded|PytorchStreamWriter failed|inline_container.*pos \d+ vs"),
    (Kind.PORT, r"address already in use|EADDRINUSE"),
    (Kind.ERROR, r"ncclInvalidUsage|ncclInvalidArgument|enforce fail at"),  # ranks that do not do the same
    (
        Kind.HANG,
        r"Timed out waiting \d+ms for|collective operation timeout|Application timeout|socket has timed out|"
        r"Socket Timeout|wait timeout after \d+ms|Timed out after .* waiting for clients|did not say within",
    ),
    (
        Kind.PEER,
        r"gloo/transport|Connection (reset|closed|refused)|Broken pipe|connectFullMesh|Connection was likely closed|"
        r"nccl\w+Error|NCCL error|NCCL communicator was aborted|remote process exited",
    ),
)
_WEAK = (Kind.ERROR, Kind.SPEC, *ECHOES)
_IN_LOADER = re.compile(r"Caught \w+ in DataLoader worker process (\d+)\.")


def failure_kind(error: BaseException, *, oom_kills: int | None = None) -> Kind:
    """What kind of failure an exception is; see `classified`."""
    return classified(error, oom_kills=oom_kills)[0]


def classified(error: BaseException, *, oom_kills: int | None = None) -> tuple[Kind, BaseException]:
    """The kind of an exception, and the one in its chain that shows it: what came first, not what became of it.

    Args:
        error: with its causes, contexts and traceback. Types are known by their names: torch is not imported here.
        oom_kills: processes that the kernel's out-of-memory killer has ended since this rank began.
    """
    chain = list(_chain(error))
    kinds = [(_kind_of(one), one) for one in chain]
    for kind, one in reversed(kinds):  # the innermost was the first
        if kind == Kind.LOADER and oom_kills and "Killed" in str(one):
            return Kind.MEMORY, one
        if kind not in _WEAK:
            return kind, one
    if _stems_from_import(error):
        return Kind.IMPORT, error
    if isinstance(error, UsageError):
        return (Kind.ERROR if isinstance(error.__cause__, SyntaxError) else Kind.SPEC), error
    for kind, one in kinds:
        if kind in ECHOES:
            return kind, one
    if any(map(_while_resuming, chain)):
        return Kind.CHECKPOINT, error
    return Kind.ERROR, error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those it came of, the last first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _kind_of(error: BaseException) -> Kind:
    """Of this one exception, without what it came of."""
    name, text = type(error).__name__, _essence(str(error))
    if name == "Drift":
        return Kind.DRIFT
    if name == "OutOfMemoryError":
        return Kind.GPU_MEMORY
    if isinstance(error, MemoryError):
        return Kind.MEMORY
    if isinstance(error, OSError):
        return _ERRNOS.get(error.errno or _errno_in(text), Kind.ERROR)
    if isinstance(error, RuntimeError | LauncherError):
        for kind, pattern in _TEXTS:
            if re.search(pattern, text, re.IGNORECASE):
                return kind
        if type(error).__module__.startswith("torch.distributed"):
            return Kind.PEER
    return Kind.SPEC if isinstance(error, UsageError) else Kind.ERROR


def _errno_in(text: str) -> int:
    """DataLoader workers hand over the text alone."""
    found = re.search(r"\[Errno (\d+)\]", text)
    return int(found[1]) if found else 0


def _stems_from_import(error: BaseException) -> bool:
    """Not by context: an ImportError that the user's code has handled is no cause."""
    return isinstance(error, ImportError) or (
        isinstance(error, LauncherError) and isinstance(error.__cause__, ImportError)
    )


def _while_resuming(error: BaseException) -> bool:
    """Whether it was raised while Lightning, or the launcher, restored a checkpoint."""
    return any(_restores(PurePath(one.filename), one.name) for one in traceback.extract_tb(error.__traceback__))


def _restores(file: PurePath, function: str) -> bool:
    if file.name == "checkpoint_connector.py":
        return function.lstrip("_").startswith(("restore", "resume", "load"))
    return file.parts[-3:] == ("launcher", "node", "accumulators.py") and function == "restore"


# -- all ranks of an attempt


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
        return (Kind.ERROR if cause == Cause.ERROR else _unrecorded(reason)), None
    return Kind(cause), None


def _unrecorded(reason: str) -> Kind:
    """Of an attempt that left no trace in its ranks' records."""
    if reason.startswith("all ranks left"):
        return Kind.LEFT
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
    essence = _essence(message)
    lines = [line.strip() for line in essence.splitlines() if line.strip()] or [""]
    text = lines[0]
    if text.endswith(":") and len(lines) > 1:  # "Error(s) in loading state_dict for Net:"
        text = f"{text} {lines[1]}"
    text = _SOURCE_LINE.sub("", text.removeprefix(f"{type_}: ")).partition(_ADVICE)[0]
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + "..."
    in_loader = _IN_LOADER.search(message)
    return f"{text} (in DataLoader worker {in_loader[1]})" if in_loader else text


def _essence(message: str) -> str:
    """The message; of one that carries a DataLoader worker's traceback, the last line."""
    if not _IN_LOADER.search(message):
        return message
    return message.strip().splitlines()[-1]


# -- the kernel's counter


def oom_kills(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """How many processes of this process's cgroup the out-of-memory killer has ended so far; None if not readable."""
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "memory":  # v1
                places = [cgroups / "memory" / path[1:] / "memory.oom_control", cgroups / "memory/memory.oom_control"]
            elif controllers == "":  # v2
                places = [cgroups / path[1:] / "memory.events", cgroups / "memory.events"]
            else:
                continue
            for place in places:  # in a container, its own cgroup may be mounted as the root
                with suppress(OSError):
                    if found := re.search(r"^oom_kill (\d+)$", place.read_text(), re.MULTILINE):
                        return int(found[1])
    return None


def oom_kills_since(before: int | None) -> int | None:
    """How many since `oom_kills` said `before`; None if it is not known."""
    now = oom_kills()
    return None if now is None or before is None else now - before
