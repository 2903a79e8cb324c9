"""Stands for the one rank of a run of a sweep: does what model.init_args of its spec says. No torch."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any, NoReturn

FOLDER = Path(os.environ["LAUNCHER_RUN_DIR"]) / f"attempts/{int(os.environ['LAUNCHER_ATTEMPT']):03d}"


def write(file: str, body: dict[str, Any]) -> None:
    beside = FOLDER / f".{file}"
    beside.write_text(json.dumps(body))
    beside.rename(FOLDER / file)


def leave(number: int, frame: object) -> NoReturn:
    write("progress.json", {"step": 7, "epoch": 0, "left": signal.Signals(number).name})
    os._exit(0)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, leave)
    arguments = json.loads((FOLDER / "spec.json").read_text())["model"]["init_args"]
    write("environment.json", dict(os.environ))
    begun = time.time()
    while not Path(arguments["until"]).exists():
        time.sleep(0.01)
    if Path(arguments["until"]).read_text() == "fail":
        raise SystemExit(1)
    body = {"step": 10, "epoch": 1, "attempt": 1, "metrics": {"loss": arguments["loss"]}}
    write("finished.json", body | {"begun": begun, "ended": time.time()})
