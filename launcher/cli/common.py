"""What most verbs need: where runs live, which run is meant, JSON on stdout."""

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from launcher.address import absolute, storage_at
from launcher.errors import LauncherError, UsageError
from launcher.run import Run
from launcher.runs import find, find_run
from launcher.storage import Unreachable
from launcher.sweep import Sweep


def runs_root(args: argparse.Namespace) -> str:
    """A path or the address of an object store's folder; absolute."""
    return absolute(args.runs_root or os.environ.get("LAUNCHER_RUNS") or "runs")


def wanted_run(args: argparse.Namespace) -> Run:
    """The run that is meant; its ledger is read.

    Raises:
        UsageError: none or several fit.
        LauncherError: it cannot be read.
    """
    return _opened(args, args.run)


def wanted(args: argparse.Namespace) -> Run | Sweep:
    """The same, where it may be a sweep."""
    found = find(runs_root(args), args.run)
    opened = (Sweep if found.is_sweep else Run)(storage_at(found.address))
    with damage_named(found.address):
        opened.ledger.refresh()
    return opened


def run_and_step(args: argparse.Namespace, wanted: str | None) -> tuple[Run, int | None]:
    """What `RUN[@STEP]` names; without a run, the latest, and None if no step is said.

    Raises:
        UsageError: it is written otherwise; no run fits, or several.
        LauncherError: the run cannot be read.
    """
    if wanted is None:
        return _opened(args, None), None
    name, at, step = wanted.partition("@")
    if at and not step.isdecimal():
        raise UsageError(f"{wanted}: expected RUN or RUN@STEP, with a whole number for STEP")
    return _opened(args, name), int(step) if at else None


def _opened(args: argparse.Namespace, wanted: str | None) -> Run:
    run = find_run(runs_root(args), wanted)
    with damage_named(run.storage.root):
        run.ledger.refresh()
    return run


@contextmanager
def damage_named(place: str) -> Iterator[None]:
    """Files beside run.json that are not what a launcher wrote: a LauncherError that names place and first defect."""
    try:
        yield
    except Unreachable:  # nothing is known to be damaged
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LauncherError(f"{place}: damaged, or no run of a launcher ({type(error).__name__}: {error})") from error


def print_json(body: Any) -> None:
    """On one line, so that the last line of stdout is the whole answer."""
    print(json.dumps(body), flush=True)
