"""Stands for a rank on a host of Cloud TPU: takes steps, saves them, hears of a stop. It knows the run's storage alone.

As ranks do: it goes on from the newest checkpoint, takes steps together with the others or none, saves each few of them
and at a stop, and rank 0 says when all is done.
Files in the run directory say more: `steps`, how many there are; `fail-RANK-ATTEMPT`, what it shall exit with.
"""

import json
import os
import signal
import sys
import time
from typing import Any, NoReturn

from launcher.address import storage_at
from launcher.checkpoints import checkpoint_path, in_order, newest_attempt
from launcher.events import AttemptResumes, CheckpointSaved
from launcher.run import Run

STOP: list[int] = []
for number in (signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, lambda number, frame: STOP.append(number))
RUN = Run(storage_at(os.environ["LAUNCHER_RUN_DIR"]))
RANK, ATTEMPT = int(os.environ["RANK"]), int(os.environ["LAUNCHER_ATTEMPT"])
FOLDER = f"attempts/{ATTEMPT:03d}"
STEP_S = 0.25


def said(file: str) -> str:
    try:
        return RUN.storage.read(file).decode()
    except FileNotFoundError:
        return ""


def leave(code: int = 0) -> NoReturn:
    sys.stdout.flush()
    os._exit(code)


def together() -> bool:
    """Whether all other ranks live: else a collective would hang."""
    beats = [RUN.read_json(f"{FOLDER}/beat-{rank}.json") for rank in range(1, int(os.environ["WORLD_SIZE"]))]
    return all(beat and time.time() - beat["time"] < 4 for beat in beats)


def progress(step: int, **more: Any) -> None:
    RUN.write_json(f"{FOLDER}/progress.json", {"step": step, "epoch": 0, "time": time.time(), **more})


def save(step: int) -> None:
    path = checkpoint_path(step, ATTEMPT)
    RUN.storage.replace(path, b"weights")
    event = CheckpointSaved(attempt=ATTEMPT, step=step, epoch=0, path=path, bytes=7, complete=False)
    RUN.ledger.append_while(newest_attempt(ATTEMPT), event)


print(f"rank {RANK} of {os.environ['WORLD_SIZE']} on {os.uname().nodename}", flush=True)
RUN.write_json(f"{FOLDER}/environment-{RANK}.json", dict(os.environ))
if RANK:
    while not STOP and not said(f"{FOLDER}/finished.json"):
        if code := said(f"fail-{RANK}-{ATTEMPT}"):
            print("this is how I end", flush=True)
            leave(int(code))
        RUN.write_json(f"{FOLDER}/beat-{RANK}.json", {"time": time.time()})
        time.sleep(STEP_S)
    leave()

saved = in_order(RUN.ledger.refresh())
step, path = (saved[-1].step, saved[-1].path) if saved else (0, None)
RUN.ledger.append_while(newest_attempt(ATTEMPT), AttemptResumes(attempt=ATTEMPT, step=step, path=path))
while not STOP and step < int(said("steps") or "1000000"):
    time.sleep(STEP_S)
    if not together():
        continue
    step += 1
    print(f"step {step}", flush=True)
    progress(step)
    if step % 4 == 0:
        save(step)
if STOP:
    save(step)
    progress(step, left=signal.Signals(STOP[0]).name)
    print(f"left at {step}", flush=True)
else:
    finished = {"step": step, "epoch": 1, "attempt": ATTEMPT, "metrics": {}}
    RUN.storage.create(f"{FOLDER}/finished.json", json.dumps(finished).encode())
leave()
