"""The command line as a user has it: processes of `launcher`, in a pipe or at a terminal, and what becomes of them."""

import fcntl
import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from launcher.driver import start_ticks
from launcher.run import Run
from launcher.runs import open_run
from launcher.state import Attempt
from launcher.status import status

JOBS = Path(__file__).parent / "jobs"
LAUNCHER = str(Path(sys.executable).with_name("launcher"))
CTRL_C = "\x03"
SOON = 150.0
"""Seconds until ranks train, on a machine that is busy with other things."""

# Becomes the program with the terminal at its stdin as its controlling one, so that Ctrl-C and hanging up reach it.
_AT_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def answer(self) -> Any:
        """The JSON on the last line of stdout."""
        return json.loads(self.out.splitlines()[-1])


class Command:
    """A command that runs, its output in files."""

    def __init__(self, argv: list[str], folder: Path, **options: Any) -> None:
        self._out, self._err = folder / f"{time.monotonic_ns()}.out", folder / f"{time.monotonic_ns()}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(argv, **{"stdout": out, "stderr": err, **options})

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        """All that was printed up to now."""
        return self._out.read_text() + self._err.read_text()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = SOON) -> int:
        """Its exit code."""
        return self.process.wait(seconds)

    def end(self) -> None:
        """Whatever it does; for the end of a test."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class AtTerminal(Command):
    """A command at a terminal of its own."""

    def __init__(self, argv: list[str], folder: Path, **options: Any) -> None:
        self._keyboard, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", _AT_TERMINAL, *argv],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            **options,
        )
        os.close(slave)
        self._shown: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        return b"".join(self._shown).decode()

    def type(self, text: str) -> None:
        os.write(self._keyboard, text.encode())

    def wait(self, seconds: float = SOON) -> int:
        code = self.process.wait(seconds)
        self._reader.join(seconds)
        return code

    def hang_up(self) -> None:
        """Close the terminal."""
        keyboard, self._keyboard = self._keyboard, -1
        if keyboard >= 0:
            os.close(keyboard)

    def end(self) -> None:
        super().end()
        self._reader.join()
        self.hang_up()

    def _read(self) -> None:
        with suppress(OSError):  # closed, on this side or on that one
            while shown := os.read(self._keyboard, 4096):
                self._shown.append(shown)


class Shell:
    """Somebody who types commands, in a folder that is neither the spec's nor the runs'."""

    def __init__(self, folder: Path) -> None:
        self.cwd = folder / "elsewhere"
        self.runs = folder / "my runs"
        self._outputs = folder / "outputs"
        for made in (self.cwd, self._outputs):
            made.mkdir()
        dropped = ("NO_COLOR", "COLUMNS", "PYTHONPATH")
        self._env = {key: value for key, value in os.environ.items() if key not in dropped}
        self._env |= {"LAUNCHER_RUNS": str(self.runs), "TERM": "xterm"}
        self._running: list[Command] = []

    def __call__(self, *words: str | Path, seconds: float = SOON, **env: str) -> Done:
        """Run a command to its end."""
        argv = [LAUNCHER, *map(str, words)]
        done = subprocess.run(
            argv, cwd=self.cwd, env=self._env | env, capture_output=True, text=True, timeout=seconds, check=False
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def start(self, *words: str | Path, before: tuple[str, ...] = (), **options: Any) -> Command:
        """Run a command beside the test. `before`: words that come before `launcher`, such as nohup."""
        command = Command([*before, LAUNCHER, *map(str, words)], self._outputs, cwd=self.cwd, env=self._env, **options)
        self._running.append(command)
        return command

    def start_at_terminal(self, *words: str | Path, **env: str) -> AtTerminal:
        argv = [LAUNCHER, *map(str, words)]
        command = AtTerminal(argv, self._outputs, cwd=self.cwd, env=self._env | env)
        self._running.append(command)
        return command

    def run_of(self, name: str) -> Run:
        return open_run(self.runs, name)

    def end(self) -> None:
        """Of everything that was started, ranks included."""
        for command in self._running:
            command.end()
        for pid in _marked(f"LAUNCHER_MARK={self.runs}/") + _marked(f"LAUNCHER_RUNS={self.runs}"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def in_bash(launcher: Shell, script: str) -> subprocess.CompletedProcess[str]:
    env = {"LAUNCHER_RUNS": str(launcher.runs), "PATH": "/usr/bin:/bin"}
    return subprocess.run(["bash", "-c", script, LAUNCHER], capture_output=True, text=True, check=False, env=env)


def copied(launcher: Shell, folder: Path, *names: str) -> Path:
    """Copies of the finished run, in a runs root of their own."""
    for name in names:
        shutil.copytree(launcher.runs / "reference", folder / "runs" / name, symlinks=True)
        record = folder / "runs" / name / "run.json"
        record.write_text(record.read_text().replace('"id": "reference"', f'"id": "{name}"'))
    return folder / "runs"


def within(seconds: float, condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def processes_of(run: Run) -> list[int]:
    """Ranks and all that they started, of any attempt."""
    return _marked(f"LAUNCHER_MARK={run.storage.root}#")


def all_gone(pids: list[int]) -> bool:
    return all(start_ticks(pid) is None for pid in pids)


def ranks_of(run: Run) -> list[int]:
    """Pids of the newest attempt's ranks."""
    handle = newest(run).handle
    assert handle is not None
    return [handle["pids"][str(rank)][0] for rank in range(len(handle["pids"]))]


def newest(run: Run) -> Attempt:
    return run.ledger.refresh().attempts[-1]


def trains(run: Run, attempt: int = 1) -> bool:
    """That attempt, or a later one, has saved a checkpoint of its own and goes on."""
    state = run.ledger.refresh()
    saved = {saved.attempt for saved in state.checkpoints}
    return any(one.ended is None and one.number >= attempt and one.number in saved for one in state.attempts[-1:])


def state_of(run: Run) -> str:
    return str(status(run)["state"])


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _marked(variable: str) -> list[int]:
    """Living processes whose environment has a variable that begins like this."""
    return sorted(pid for pid, environ in _environments() if b"\0" + variable.encode() in b"\0" + environ)


def _environments() -> Iterator[tuple[int, bytes]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with suppress(OSError):
                environ = (folder / "environ").read_bytes()
                if start_ticks(int(folder.name)) is not None:
                    yield int(folder.name), environ
