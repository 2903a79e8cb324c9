"""The only module that starts programs: argv and environment, never a shell string."""

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from launcher.driver import start_ticks


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


def run(argv: Sequence[str], *, env: Mapping[str, str], given: str) -> tuple[int, str]:
    """Run a program to its end.

    Args:
        given: what it reads from its stdin.

    Returns:
        Its exit code and what it printed to stdout and stderr.
    """
    done = subprocess.run(
        argv, env=dict(env), input=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.returncode, done.stdout


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
