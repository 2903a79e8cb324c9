"""tensorboard: hand over to TensorBoard itself, or have it read what is brought here from an object store."""

import argparse
import sys
from collections.abc import Mapping
from contextlib import suppress

from launcher import shell
from launcher.address import here, is_local, own
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
    home = here(run.storage.root)
    curves = home if isinstance(run, Sweep) else home / _FOLDER  # of all its runs, beside each other
    # Without --host and --bind_all it listens on the loopback device alone.
    argv = [sys.executable, "-m", "tensorboard.main", "--logdir", str(curves), "--port", str(args.port)]
    if is_local(run.storage.root):
        shell.replace_process(argv)
    if isinstance(run, Sweep):
        raise UsageError(f"{run.id} is a sweep on an object store: name one of its runs, such as {run.id}.0")
    own(home)
    seen = _bring(run, {})

    def bring() -> None:
        nonlocal seen
        with suppress(Unreachable):  # perhaps the next time
            seen = _bring(run, seen)

    return shell.run_beside(argv, bring, every_s=_REFRESH_S)


def _bring(run: Run, seen: Mapping[str, Entry]) -> Mapping[str, Entry]:
    """The curves of the newest attempt that has stored any: they hold those of all before it."""
    attempts = [files_prefix(one.number) for one in reversed(run.ledger.refresh().attempts)]
    folders = [*(f"{prefix}/{_FOLDER}" for prefix in attempts), _FOLDER]  # the last is a copied run's own
    stored = next((folder for folder in folders if run.storage.list(folder)), _FOLDER)
    return refresh(run.storage, stored, here(run.storage.root) / _FOLDER, seen)
