"""Kinds of failure, and which of them an exception is.

A rank that fails names the kind of its exception (`classified`) and writes it down. The texts of torch, gloo and NCCL
that are looked for here are those in tests/node/test_failures.py, most of which that test provokes.
"""

import errno
import re
import traceback
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import PurePath

from launcher.errors import LauncherError, NotSaved, UsageError
from launcher.policy import Cause
from launcher.storage import Unreachable


class Kind(StrEnum):
    """What happened. The first group is what ranks record of an exception, the second what is seen from outside."""

    ERROR = "error"  # the user's exception
    SPEC = "spec"  # the job spec does not fit the code or the machine
    IMPORT = "import"
    MEMORY = "memory"  # of the host: an allocation failed, or the out-of-memory killer came
    GPU_MEMORY = "gpu-memory"
    SHARED_MEMORY = "shared-memory"  # /dev/shm, through which DataLoader workers hand over batches
    DISK = "disk"
    STORAGE = "storage"  # the run directory could not be reached, or the last checkpoint not be written
    CHECKPOINT = "checkpoint"  # it is whole, and yet cannot be loaded
    DRIFT = "drift"  # code, packages or machine are not those that the run began with
    HOSTS = "hosts"  # they cannot train together: one is out of reach, or is not as the others
    PORT = "port"
    LOADER = "loader"  # a DataLoader worker died
    PREEMPTED = "preempted"
    PEER = "peer"  # an echo: the connection to another rank is gone
    HANG = "hang"  # an echo: another rank did not come

    KILLED = "killed"
    CRASH = "crash"  # by its own native code: SIGSEGV, SIGABRT, ...
    EXIT = "exit"  # with a code and without an exception
    LAUNCH = "launch"  # srun could not start the ranks
    LEFT = "left"  # in peace, before the end
    MACHINE = "machine"  # one that was made for the attempt is gone, or says nothing any more
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
    Kind.STORAGE: Cause.INFRA,
    Kind.HOSTS: Cause.INFRA,  # the next attempt may be given others
    Kind.PORT: Cause.INFRA,
    Kind.LOADER: Cause.INFRA,
    Kind.PEER: Cause.INFRA,
    Kind.HANG: Cause.INFRA,
    Kind.KILLED: Cause.INFRA,
    Kind.CRASH: Cause.INFRA,
    Kind.LAUNCH: Cause.INFRA,
    Kind.LEFT: Cause.INFRA,
    Kind.MACHINE: Cause.INFRA,
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

_OURS = {"Drift": Kind.DRIFT, "Unfit": Kind.HOSTS, "NoRoom": Kind.DISK}  # of the node side
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
IN_LOADER = re.compile(r"Caught \w+ in DataLoader worker process (\d+)\.")


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
    name, text = type(error).__name__, essence(str(error))
    if isinstance(error, LauncherError) and name in _OURS:
        return _OURS[name]
    if isinstance(error, NotSaved):
        return Kind.STORAGE
    if name == "OutOfMemoryError":
        return Kind.GPU_MEMORY
    if isinstance(error, MemoryError):
        return Kind.MEMORY
    if isinstance(error, Unreachable):
        return Kind.STORAGE
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


def essence(message: str) -> str:
    """The message; of one that carries a DataLoader worker's traceback, the last line."""
    if not IN_LOADER.search(message):
        return message
    return message.strip().splitlines()[-1]
