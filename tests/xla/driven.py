"""Trainings whose ranks have the packages of another Python: `python driven.py RUN_DIR...` drives runs to an end."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "node"))

from forked import Training

from launcher.address import storage_at
from launcher.events import RunEnded
from launcher.run import Run


class Driven(Training):
    """Creates runs in this process, and drives them in another."""

    def __init__(self, root: Path, python: Path) -> None:
        super().__init__(root)
        self._python = python

    def drive(self, *runs: Run) -> RunEnded:
        """One after the other. Returns how the last one ended."""
        command = [self._python, __file__, *(run.storage.root for run in runs)]
        env = {**os.environ, "PJRT_DEVICE": "CPU"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        ended = runs[-1].ledger.refresh().ended
        assert ended, done.stderr
        return ended


if __name__ == "__main__":
    with suppress(ImportError):
        import torch_xla  # noqa: F401 - once, so that no rank has to; its runtime begins in each of them
    for folder in sys.argv[1:]:
        Training(Path(folder).parents[1]).drive(Run(storage_at(folder)))
