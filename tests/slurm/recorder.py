"""A job that survives what it can and writes down each signal: recorder.py LOG LABEL [COMMAND...].

The command is started as a child. It all runs until it is killed. LABEL says which process of the job this is.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

BEAT_S = 0.1


def main() -> None:
    log, label, *command = sys.argv[1:]
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    alive = Path(f"{log}.{label}.{restart}.alive")
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(what: str) -> None:
        line = {"time": time.time(), "label": label, "restart": restart, "what": what}
        os.write(descriptor, json.dumps(line).encode() + b"\n")

    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
        signal.signal(number, lambda number, _: write(signal.Signals(number).name))
    write("start")
    if command:
        # Signals arrive at once in Python's handlers; what was queued while the child starts is only late.
        subprocess.Popen(command)
    while True:
        alive.touch()
        time.sleep(BEAT_S)


main()
