"""reconcile: hold the runs against the queue, and mend what a crash has left between the two.

A submission is written down before it is made and after. Whoever dies in between leaves a job that no run names, or a
job without the pickle that submitit puts beside it last; a supervisor that dies leaves a run without a job.
"""

import argparse
import getpass
import time
from collections.abc import Mapping
from pathlib import Path

from launcher.cli.common import damage_named, print_json, runs_root, wanted_run
from launcher.cli.terminal import Terminal
from launcher.errors import LauncherError, LedgerConflict
from launcher.ledger import RunEnded, RunState, Submitted
from launcher.run import Run, open_run, run_ids
from launcher.spec import JobSpec
from launcher.status import living_driver

_NOBODYS_WISH = ("BOOT_FAIL", "NODE_FAIL", "PREEMPTED", "TIMEOUT")
"""States of a job after which its run is brought back, when its supervisor could not do so itself."""
_SETTLED_S = 60.0
"""A submission that is younger may still be under way."""


def reconcile(args: argparse.Namespace) -> int:
    runs = [wanted_run(args)] if args.run else _all(args)
    waiting = [run for run in runs if _waits(run.ledger.refresh())]
    done = []
    if waiting:
        from launcher.backends.slurm import commands

        queue = commands.queued(getpass.getuser())
        comments = {one.comment: one.id for one in queue}
        for run in waiting:
            try:
                what = _reconciled(run, comments, {one.id for one in queue})
            except LedgerConflict:
                what = "somebody else acts on it just now"
            except LauncherError as error:
                what = str(error)
            if what:
                done.append({"run": run.id, "done": what})
    if args.json:
        print_json(done)
        return 0
    terminal = Terminal()
    for one in done:
        terminal.line(f"{one['run']}: {one['done']}")
    if not done:
        terminal.line(f"{len(waiting)} run(s) wait for a job or have one; nothing is amiss")
    return 0


def _all(args: argparse.Namespace) -> list[Run]:
    root = runs_root(args)
    found = []
    for run_id in run_ids(root):
        try:
            run = open_run(root, run_id)
            with damage_named(run.storage.root):
                run.ledger.refresh()
        except LauncherError:
            continue  # `list` says what is wrong with it
        found.append(run)
    return found


def _waits(state: RunState) -> bool:
    """Whether the run is meant to have a job."""
    return state.submission is not None and not state.ended and not state.cancelling


def _reconciled(run: Run, comments: Mapping[str, str], queue: set[str]) -> str:
    """Mend one run; says what was done, "" if nothing.

    Args:
        comments: jobs that wait or run, by their comments.
        queue: ids of the same.
    """
    from launcher.backends.slurm import commands
    from launcher.backends.slurm.submission import FOLDER, comment, submit

    state = run.ledger.refresh()
    now = state.submission
    if now is None or not _waits(state):  # it ended while the queue was asked
        return ""
    young = time.time() - now.at < _SETTLED_S
    job = now.job or comments.get(comment(run.id, now.number))
    if job in queue:
        assert job is not None
        if Path(run.storage.root, FOLDER, f"{job}_submitted.pkl").exists():
            if now.job:
                return ""
            run.ledger.append(Submitted(submission=now.number, job=job), after=state.version)
            return f"job {job} is its own"
        if young:
            return ""
        commands.cancel(job)
        again = f"job {job} had nothing to run and is cancelled"
    elif young or living_driver(run, state):
        return ""
    elif job is None:
        again = "its submission did not arrive"
    else:
        ended = commands.ended_as(job)
        if ended == "CANCELLED":
            reason = f"job {job} was cancelled (scancel)"
            run.ledger.append(RunEnded(state="cancelled", reason=reason), after=state.version)
            return f"{reason}, and the run with it"
        if ended not in _NOBODYS_WISH:
            known = f"ended as {ended}" if ended else "is gone, and Slurm does not know any more how it ended"
            return f"job {job} {known}; see {run.storage.root}/{FOLDER}, then: launcher resume {run.id}"
        again = f"job {job} ended as {ended}"
    spec = JobSpec.model_validate(run.now.spec)
    return f"{again}; submitted as job {submit(run, spec, after=state.version)}"
