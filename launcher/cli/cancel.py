"""cancel: end a run for good, by the user's word."""

import argparse
import time
from contextlib import suppress

from launcher.cli.common import print_json, wanted
from launcher.cli.place import drive, kind_of, who
from launcher.errors import LauncherError, LedgerConflict, UsageError
from launcher.events import CancelRequested, RunEnded
from launcher.run import Run
from launcher.state import RunState
from launcher.status import living_driver, status
from launcher.sweep import Sweep

_PATIENCE_S = 180.0
"""How long a supervisor has to hear of it and to have the ranks leave; then it is ended without its help."""


def cancel(args: argparse.Namespace) -> int:
    found = wanted(args)
    if isinstance(found, Sweep):
        from launcher.cli import sweep  # which builds on this module

        return sweep.cancel(found, args)
    if found.finished is not None or _has_ended(found.ledger.refresh()):
        raise UsageError(f"{found.id} has ended already: {status(found)['state']}")
    if (end := cancel_run(found, checkpoint=args.checkpoint)) != "cancelled":
        raise LauncherError(f"{found.id} {end} before it could be cancelled")
    if args.json:
        print_json({"run": found.id, "state": "cancelled", "run_dir": found.storage.root})
    else:
        print(f"{found.id} is cancelled; `launcher resume {found.id}` would carry it on")
    return 0


def cancel_run(found: Run, *, checkpoint: bool) -> str:
    """Have it end, by its driver if there is one; how it did."""
    state = found.ledger.refresh()
    asked = time.monotonic()
    while not _has_ended(state):
        with suppress(LedgerConflict):  # somebody wrote in between: look again
            machines = kind_of(found.now) == "tpu" and state.open_attempt is not None
            driven = _driven(found, state)
            if machines and not driven and state.cancelling:
                drive(found.storage.root)  # somebody has to delete them
            elif not machines and (not driven or time.monotonic() - asked > _PATIENCE_S):
                _end_job(state)
                found.ledger.append(RunEnded(state="cancelled", reason="cancelled by the user"), after=state.version)
            elif not state.cancelling:
                found.ledger.append(CancelRequested(by=who(), checkpoint=checkpoint), after=state.version)
            else:
                time.sleep(found.storage.pause_s)
        state = found.ledger.refresh()
    _end_job(state)
    return str(status(found)["state"])


def _driven(found: Run, state: RunState) -> bool:
    """Whether somebody would hear of it. A supervisor in a job lives as long as that runs."""
    if job := _job(state):
        from launcher.backends.slurm import commands

        try:
            return commands.runs(job)
        except commands.SlurmError as error:
            if not error.silent:
                raise
            return True  # it may run, and hears of it without Slurm
    return living_driver(found, state) is not None


def _job(state: RunState) -> str | None:
    return state.submission.job if state.submission else None


def _end_job(state: RunState) -> None:
    """Take the run's job out of the queue, or off its nodes; one that has ended is left alone by Slurm."""
    if job := _job(state):
        from launcher.backends.slurm import commands

        commands.cancel(job)


def _has_ended(state: RunState) -> bool:
    """For good, as long as nobody resumes it."""
    return state.ended is not None and state.ended.state != "stopped"
