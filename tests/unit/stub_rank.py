"""Stands for a rank in the tests of the supervisor: does what stub.json in the run directory says. No torch.

stub.json maps "ATTEMPT.RANK", "ATTEMPT", or "*" to a list of actions, each a list of a name and its arguments.
"""

import json
import os
import signal
import site
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from launcher.node.environment import adopt_slurm_numbers, die_with_parent

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
    record = {"rank": RANK, "host": "here", "time": time.time(), "kind": kind, "type": type_, "message": message}
    write(FOLDER / f"failure-{RANK:05d}.json", {**record, "traceback": "Traceback ..."})
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


def save(step: int) -> None:
    """An event of a rank, written while the supervisor writes its own."""
    site.main()  # this process was started without it
    from launcher.checkpoints import checkpoint_path, newest_attempt
    from launcher.ledger import CheckpointSaved, Ledger
    from launcher.storage import PosixStorage

    path = checkpoint_path(step, ATTEMPT)
    event = CheckpointSaved(attempt=ATTEMPT, step=step, epoch=0, path=path, bytes=0, complete=False)
    Ledger(PosixStorage(RUN_DIR)).append_while(newest_attempt(ATTEMPT), event)


if __name__ == "__main__":
    if parent := os.environ.get("LAUNCHER_PARENT"):
        die_with_parent(int(parent))
    note("started.log", f"{ATTEMPT} {RANK} {os.getpid()}")
    write(FOLDER / f"environment-{RANK}.json", dict(os.environ))
    script = json.loads((RUN_DIR / "stub.json").read_text())
    for step in next(script[key] for key in (f"{ATTEMPT}.{RANK}", str(ATTEMPT), "*") if key in script):
        act(*step)
