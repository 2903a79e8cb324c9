"""What all ranks are given, wherever they run."""

import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.address import here
from launcher.layout import code_home
from launcher.record import Record
from launcher.snapshot import import_path

WORKER = (sys.executable, "-m", "launcher.node.worker")


def place_env(
    run_dir: str, attempt: int, world_size: int, tasks_per_node: int, accelerator: str, threads: int
) -> dict[str, str]:
    """Where a rank is, as node/environment.py reads it, but for its own number."""
    return {
        "PYTHONSAFEPATH": "1",  # else `-m` has the current folder come before all of PYTHONPATH
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(threads),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(tasks_per_node),
        "LAUNCHER_RUN_DIR": run_dir,
        "LAUNCHER_ATTEMPT": str(attempt),
        "LAUNCHER_ACCELERATOR": accelerator,
    }


def code_path(record: Record, run_dir: str) -> Sequence[str]:
    """PYTHONPATH of the ranks."""
    code = record.code
    return import_path(code, code_home(run_dir, code)) if code else record.import_path


def workdir(record: Record, run_dir: str) -> str:
    """Where the user was, for the sake of relative paths; if that is gone, what the snapshot has of it."""
    code = record.code
    if code is None or Path(record.workdir).is_dir():
        return record.workdir
    return str(here(run_dir)) if code.workdir is None else f"{code_home(run_dir, code)}/{code.workdir}"
