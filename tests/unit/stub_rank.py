"""Stands for a rank in the tests of supervisors and backends: does what stub.json in the run directory says. No torch.

stub.json maps "ATTEMPT.RANK", "ATTEMPT", or "*" to a list of actions, each a list of a name and its arguments.
"""

import json
import os
import signal
import site
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from launcher.node.environment import adopt_slurm_numbers, die_with_parent

if TYPE_CHECKING:
    from launcher.events import Event
    from launcher.ledger import Ledger

adopt_slurm_numbers()
RUN_DIR = Path(os.environ["LAUNCHER_RUN_DIR"])
ATTEMPT, RANK = int(os.environ["LAUNCHER_ATTEMPT"]), int(os.environ["RANK"])
FOLDER = RUN_DIR / f"attempts/{ATTEMPT:03d}"


def write(path: Path, body: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(body))
    beside.rename(path)


def note(file: str, text: str) -> None:
    """Append one line, in one write."""
    descriptor = os.open(RUN_DIR / file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{text}\n".encode())
    os.close(descriptor)


def leave(number: int, frame: object) -> NoReturn:
    """What a rank does at a stop: all save, rank 0 says so."""
    if RANK == 0:
        write(FOLDER / "progress.json", {"step": 7, "epoch": 0, "left": signal.Signals(number).name})
    os._exit(0)


def fail(kind: str, type_: str, message: str) -> NoReturn:
    record = {"rank": RANK, "host": os.uname().nodename, "time": time.time()}
    said = {"kind": kind, "type": type_, "message": message, "traceback": "Traceback ..."}
    write(FOLDER / f"failure-{RANK:05d}.json", {**record, **said})
    os._exit(1)


def act(action: str, *arguments: Any) -> None:
    match action:
        case "sleep":
            time.sleep(*arguments)
        case "obey":
            signal.signal(signal.SIGTERM, leave)
            signal.signal(signal.SIGUSR2, leave)
        case "ignore":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        case "ready":
            note("ready.log", f"{ATTEMPT} {RANK}")
        case "wait for":
            while not (RUN_DIR / arguments[0]).exists():
                time.sleep(0.01)
        case "touch":
            (RUN_DIR / arguments[0]).touch()
        case "progress":
            write(FOLDER / "progress.json", {"step": arguments[0], "epoch": 0})
        case "save":
            save(*arguments)
        case "train":
            train(*arguments)
        case "print":
            print(*arguments, flush=True)
        case "say where":
            write(FOLDER / f"folder-{RANK}.json", {"folder": str(Path.cwd())})
        case "leave behind":
            command = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
            note("left_behind.log", str(subprocess.Popen(command).pid))
        case "finish":
            if RANK == 0:
                write(FOLDER / "finished.json", {"step": 10, "epoch": 1, "attempt": ATTEMPT, "metrics": {}})
            os._exit(0)
        case "fail":
            fail(*arguments)
        case "exit":
            os._exit(*arguments)
        case "die":
            os.kill(os.getpid(), *arguments)
        case _:
            raise ValueError(action)


@cache
def ledger() -> "Ledger":
    site.main()  # this process was started without it
    from launcher.ledger import Ledger
    from launcher.storage import PosixStorage

    return Ledger(PosixStorage(RUN_DIR))


def append(event: "Event") -> None:
    """An event of a rank, written while the supervisor writes its own. Raises Fenced in an overtaken attempt."""
    from launcher.checkpoints import newest_attempt

    ledger().append_while(newest_attempt(ATTEMPT), event)


def save(step: int) -> None:
    ledger()
    from launcher.checkpoints import checkpoint_path
    from launcher.events import CheckpointSaved

    path = checkpoint_path(step, ATTEMPT)
    append(CheckpointSaved(attempt=ATTEMPT, step=step, epoch=0, path=path, bytes=0, complete=False))


def resume() -> int:
    """The step of the newest checkpoint, once it is in the ledger that this attempt begins there."""
    ledger()
    from launcher.checkpoints import in_order
    from launcher.events import AttemptResumes

    saved = in_order(ledger().refresh())
    step, path = (saved[-1].step, saved[-1].path) if saved else (0, None)
    append(AttemptResumes(attempt=ATTEMPT, step=step, path=path))
    return step


def train(step_s: float, every: int, steps: int = sys.maxsize) -> NoReturn:
    """As ranks do: from the newest checkpoint on, one each `every` steps, and one at SIGTERM or SIGUSR2 to any of them.

    Rank 0 does the work. The end has come after `steps`, or once there is a file called `enough` in the run directory.
    """
    stop = FOLDER / "stop"

    def tell(number: int, frame: object) -> None:
        """To all; at once, for others tell it too, and rank 0 reads it."""
        beside = FOLDER / f".stop.{RANK}.{time.monotonic_ns()}"
        beside.write_text(signal.Signals(number).name)
        beside.rename(stop)

    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, tell)
    if RANK != 0:
        while not stop.exists() and not (FOLDER / "finished.json").exists():
            time.sleep(0.05)
        os._exit(0)
    step = resume()
    while step < steps and not stop.exists() and not (RUN_DIR / "enough").exists():
        time.sleep(step_s)
        step += 1
        note("steps.log", f"{ATTEMPT} {step}")
        write(FOLDER / "progress.json", {"step": step, "epoch": 0})
        if step % every == 0:
            save(step)
    if stop.exists():
        save(step)
        write(FOLDER / "progress.json", {"step": step, "epoch": 0, "left": stop.read_text()})
    else:
        write(FOLDER / "finished.json", {"step": step, "epoch": 1, "attempt": ATTEMPT, "metrics": {}})
    os._exit(0)


if __name__ == "__main__":
    if parent := os.environ.get("LAUNCHER_PARENT"):
        die_with_parent(int(parent))
    note("started.log", f"{ATTEMPT} {RANK} {os.getpid()}")
    write(FOLDER / f"environment-{RANK}.json", dict(os.environ))
    script = json.loads((RUN_DIR / "stub.json").read_text())
    for step in next(script[key] for key in (f"{ATTEMPT}.{RANK}", str(ATTEMPT), "*") if key in script):
        act(*step)
