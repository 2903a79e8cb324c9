"""A fake srun for unit tests: starts the ranks of a step on this machine, and speaks of their ends as srun does.

fake_srun.py FOLDER OPTIONS... COMMAND... A test may have left in FOLDER what it prints (`srun-log`) and its exit code
(`srun-code`); then it starts nothing. SIGUSR2 is handed on to all ranks; SIGHUP stands for the controller's order to
kill them. A rank that fails is the end of the others (--kill-on-bad-exit).
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ENDS = {signal.SIGTERM: "Terminated", signal.SIGKILL: "Killed", signal.SIGSEGV: "Segmentation fault"}


def main(folder: Path, arguments: list[str]) -> int:
    (folder / "srun-environment").write_text("".join(f"{name}={value}\n" for name, value in os.environ.items()))
    if (folder / "srun-code").exists():
        print((folder / "srun-log").read_text(), end="", flush=True)
        return int((folder / "srun-code").read_text())
    options = dict(one.removeprefix("--").partition("=")[::2] for one in arguments if one.startswith("--"))
    first = next(index for index, one in enumerate(arguments) if not one.startswith("--"))
    command, per_node = arguments[first:], int(options["ntasks-per-node"])
    ranks: list[subprocess.Popen[bytes]] = []
    # Before the first rank lives: a signal may come at once.
    signal.signal(signal.SIGUSR2, lambda *_: [rank.send_signal(signal.SIGUSR2) for rank in ranks])
    signal.signal(signal.SIGHUP, lambda *_: [rank.kill() for rank in ranks])
    for number in range(int(options["ntasks"])):
        node, local = divmod(number, per_node)
        numbers = {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(local), "SLURM_NODEID": str(node)}
        with Path(options["output"].replace("%5t", f"{number:05d}")).open("ab") as log:
            ranks.append(subprocess.Popen(command, env={**os.environ, **numbers}, stdout=log, stderr=log))
    (folder / "srun-pid").write_text(str(os.getpid()))
    worst, left = 0, dict(enumerate(ranks))
    while left:
        for number, rank in [*left.items()]:
            if (code := rank.poll()) is not None:
                del left[number]
                if code:
                    end = ENDS[signal.Signals(-code)] if code < 0 else f"Exited with exit code {code}"
                    print(f"srun: error: n{number // per_node + 1}: task {number}: {end}", flush=True)
                    if not worst:
                        print("srun: launch/slurm: _step_signal: Terminating StepId=7.0", flush=True)
                        for other in left.values():
                            other.terminate()
                    worst = max(worst, code if code > 0 else 128 - code)
        time.sleep(0.01)
    return worst


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
