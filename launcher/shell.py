"""The only module that starts programs: argv and environment, never a shell string."""

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from launcher.driver import start_ticks

TIMED_OUT = 124
"""Exit code of a program that was killed because it took too long, as timeout(1) has it."""


class Process:
    """A child in a session of its own, so that signals of the terminal do not reach it."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self.pid = child.pid
        self.started = start_ticks(child.pid) or 0

    def poll(self) -> int | None:
        """Exit code, negative for the signal that killed it; None while it runs."""
        return self._child.poll()

    def signal(self, number: signal.Signals) -> None:
        """To the process alone; nothing if it has ended."""
        self._child.send_signal(number)

    def kill_all(self) -> None:
        """SIGKILL to the process and to all that it started in its process group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def spawn(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> Process:
    """Start a program in the background; its output is appended to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            argv,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Process(child)


class Printed(NamedTuple):
    """What a program left behind."""

    code: int
    stdout: str
    stderr: str


def run(argv: Sequence[str], *, env: Mapping[str, str], given: str, timeout_s: float | None = None) -> tuple[int, str]:
    """Run a program to its end; after `timeout_s` seconds it is killed.

    Args:
        given: what it reads from its stdin.

    Returns:
        Its exit code, TIMED_OUT if it was killed, and what it printed to stdout and stderr.
    """
    done = _complete(argv, env, given, subprocess.STDOUT, timeout_s)
    return done.code, done.stdout


def ask(argv: Sequence[str], *, env: Mapping[str, str], timeout_s: float, given: str = "") -> Printed:
    """`run`, with what it printed to stdout and to stderr apart."""
    return _complete(argv, env, given, subprocess.PIPE, timeout_s)


def _complete(argv: Sequence[str], env: Mapping[str, str], given: str, stderr: int, timeout_s: float | None) -> Printed:
    given_bytes, pipe = given.encode(), subprocess.PIPE
    code, out, err = TIMED_OUT, None, None
    try:
        done = subprocess.run(
            argv, env=dict(env), input=given_bytes, stdout=pipe, stderr=stderr, check=False, timeout=timeout_s
        )
        code, out, err = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as late:
        out, err = late.stdout, late.stderr
    return Printed(code, *((text or b"").decode(errors="replace") for text in (out, err)))


def run_beside(argv: Sequence[str], meanwhile: Callable[[], None], *, every_s: float) -> int:
    """Run a program at this terminal, and something else now and then until it ends; it ends with this process.

    Returns:
        Its exit code.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave by the way of Ctrl-C
    child = subprocess.Popen(argv)
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                return child.wait(every_s)
            meanwhile()
    except KeyboardInterrupt:
        return 0
    finally:
        child.terminate()
        child.wait()


def replace_process(argv: Sequence[str]) -> None:
    """Become another program (exec)."""
    os.execvp(argv[0], list(argv))


def find_processes(name: str, value: str) -> list[int]:
    """Pids of this user's living processes that have `name=value` in their environment (proc(5))."""
    wanted = f"{name}={value}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0") and start_ticks(int(folder.name)):
                    found.append(int(folder.name))
    return sorted(found)
