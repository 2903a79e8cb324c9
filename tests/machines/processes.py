"""Processes of this machine as /proc shows them, those inside of machines included."""

import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from machines.errors import MachineError


def until(condition: Callable[[], bool], seconds: float, awaited: str, every: float = 0.05) -> None:
    """Raises MachineError, which names what was awaited, when it has not come by then."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise MachineError(f"waited {seconds:.0f} s for {awaited}")
        time.sleep(every)


def pids() -> Iterator[int]:
    return (int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit())


def running(pid: int) -> bool:
    """A zombie is not: pid 1 of a container may never reap it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def marked(mark: str) -> list[int]:
    """Running processes with a variable in their environment that begins like this."""
    found = []
    for pid in pids():
        with suppress(OSError):
            if b"\0" + mark.encode() in b"\0" + Path(f"/proc/{pid}/environ").read_bytes() and running(pid):
                found.append(pid)
    return found


def in_pid_namespace_of(init: int) -> list[int]:
    """Running processes that see the same process table as this one, itself included."""
    try:
        namespace = Path(f"/proc/{init}/ns/pid").readlink()
    except OSError:
        return []
    found = []
    for pid in pids():
        with suppress(OSError):
            if Path(f"/proc/{pid}/ns/pid").readlink() == namespace and running(pid):
                found.append(pid)
    return found


def is_init(pid: int) -> bool:
    """Pid 1 of a process table other than this one."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    seen_as = next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
    return len(seen_as) > 1 and seen_as[-1] == "1"


def program(pid: int) -> str:
    """The name of the program, cut off by the kernel at 15 characters; empty when it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def kill(those: Iterable[int]) -> None:
    """SIGKILL, and wait until they are gone."""
    _end(those, signal.SIGKILL, seconds=10)


def kill_held(descriptor: int) -> None:
    """SIGKILL to the process of os.pidfd_open, which may have ended already, and wait until it is gone."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    if not select.select([descriptor], [], [], 10)[0]:
        raise MachineError("waited 10 s for the end of a process")


def terminate(those: Iterable[int]) -> None:
    """SIGTERM, and wait until they are gone."""
    _end(those, signal.SIGTERM, seconds=30)


def _end(those: Iterable[int], number: signal.Signals, seconds: float) -> None:
    those = list(those)
    for pid in those:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    until(lambda: not any(map(running, those)), seconds, f"the end of processes {those}", every=0.01)
