"""tensorboard: hand over to TensorBoard itself, or have it read what is brought here from an object store."""

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from launcher import shell
from launcher.address import is_local
from launcher.cli.common import wanted
from launcher.errors import UsageError
from launcher.layout import files_prefix
from launcher.mirror import refresh
from launcher.run import Run
from launcher.storage import Entry, Unreachable
from launcher.sweep import Sweep

_REFRESH_S = 10.0
_FOLDER = "tensorboard"


def tensorboard(args: argparse.Namespace) -> int:
    run = wanted(args)
    # Without --host and --bind_all it listens on the loopback device alone.
    argv = [sys.executable, "-m", "tensorboard.main", "--port", str(args.port), "--logdir"]
    if is_local(run.storage.root):
        home = Path(run.storage.root)
        curves = home if isinstance(run, Sweep) else home / _FOLDER  # of all its runs, beside each other
        shell.replace_process([*argv, str(curves)])
    if isinstance(run, Sweep):
        raise UsageError(f"{run.id} is a sweep on an object store: name one of its runs, such as {run.id}.0")
    with tempfile.TemporaryDirectory(dir=os.environ.get("LAUNCHER_SCRATCH")) as folder:
        curves = Path(folder)
        seen = _bring(run, curves, {})

        def bring() -> None:
            nonlocal seen
            with suppress(Unreachable):  # perhaps the next time
                seen = _bring(run, curves, seen)

        return shell.run_beside([*argv, str(curves)], bring, every_s=_REFRESH_S)


def _bring(run: Run, curves: Path, seen: Mapping[str, Entry]) -> Mapping[str, Entry]:
    """The curves of the newest attempt that has stored any: they hold those of all before it."""
    attempts = [files_prefix(one.number) for one in reversed(run.ledger.refresh().attempts)]
    folders = [*(f"{prefix}/{_FOLDER}" for prefix in attempts), _FOLDER]  # the last is a copied run's own
    stored = next((folder for folder in folders if run.storage.list(folder)), _FOLDER)
    return refresh(run.storage, stored, curves, seen)
