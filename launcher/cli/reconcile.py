"""reconcile: hold the runs against the queue, and mend what a crash has left between the two.

A submission is written down before it is made and after. Whoever dies in between leaves a job that no run names, or a
job without the pickle that submitit puts beside it last; a supervisor that dies leaves a run without a job. The same
holds for the arrays of a sweep, and for its runs once they have begun.
"""

import argparse
import getpass
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial

from launcher.address import split, storage_at
from launcher.cli.common import damage_named, print_json, runs_root, wanted
from launcher.cli.terminal import Terminal
from launcher.errors import LauncherError, LedgerConflict
from launcher.events import RunEnded, Submitted
from launcher.run import Run
from launcher.runs import entries
from launcher.spec import JobSpec
from launcher.state import RunState
from launcher.status import living_driver
from launcher.sweep import Sweep

_NOBODYS_WISH = ("BOOT_FAIL", "NODE_FAIL", "PREEMPTED", "TIMEOUT")
"""States of a job after which its run is brought back, when its supervisor could not do so itself."""
_SETTLED_S = 60.0
"""A submission that is younger may still be under way."""


def reconcile(args: argparse.Namespace) -> int:
    found = [wanted(args)] if args.run else _all(args)
    sweeps = [one for one in found if isinstance(one, Sweep) and one.record.site is not None]
    runs = [one for one in found if isinstance(one, Run)]
    for sweep in sweeps:
        runs += _begun(sweep)
    waiting = [run for run in runs if _waits(run.ledger.refresh())]
    done: list[dict[str, str]] = []

    def note(name: str, reconciled: Callable[[], str]) -> None:
        try:
            what = reconciled()
        except LedgerConflict:
            what = "somebody else acts on it just now"
        except LauncherError as error:
            what = str(error)
        if what:
            done.append({"run": name, "done": what})

    if waiting or any(_submits(sweep) for sweep in sweeps):
        from launcher.backends.slurm import commands
        from launcher.cli import arrays

        queue = commands.queued(getpass.getuser())
        jobs = {one.comment: one.id for one in queue}
        for sweep in sweeps:
            note(sweep.id, partial(arrays.reconciled, sweep, queue))
            jobs |= arrays.jobs_of_runs(sweep, queue)
        for run in waiting:
            note(run.id, partial(_reconciled, run, jobs, {one.id for one in queue}))
    if args.json:
        print_json(done)
        return 0
    terminal = Terminal()
    for one in done:
        terminal.line(f"{one['run']}: {one['done']}")
    if not done:
        terminal.line(f"{len(waiting)} run(s) wait for a job or have one; nothing is amiss")
    return 0


def _all(args: argparse.Namespace) -> list[Run | Sweep]:
    found: list[Run | Sweep] = []
    for entry in entries(runs_root(args)):
        with suppress(LauncherError), damage_named(entry.address):  # `list` says what is wrong with it
            one = (Sweep if entry.is_sweep else Run)(storage_at(entry.address))
            one.ledger.refresh()
            found.append(one)
    return found


def _begun(sweep: Sweep) -> Iterable[Run]:
    from launcher.cli.arrays import begun_of

    return begun_of(sweep, range(len(sweep.cells)))[0].values()


def _submits(sweep: Sweep) -> bool:
    """Whether some of its runs may wait for jobs."""
    state = sweep.ledger.refresh()
    return state.submission is not None and not state.cancelling


def _waits(state: RunState) -> bool:
    """Whether the run is meant to have a job."""
    return state.submission is not None and not state.ended and not state.cancelling


def _reconciled(run: Run, comments: Mapping[str, str], queue: set[str]) -> str:
    """Mend one run; says what was done, "" if nothing.

    Args:
        comments: jobs that wait or run, by their comments; elements by those that jobs of their runs would have.
        queue: ids of the same.
    """
    from launcher.backends.slurm import commands
    from launcher.backends.slurm.job import comment
    from launcher.backends.slurm.submission import FOLDER, payload_file, submit

    state = run.ledger.refresh()
    now = state.submission
    if now is None or not _waits(state):  # it ended while the queue was asked
        return ""
    young = time.time() - now.at < _SETTLED_S
    job = now.job or comments.get(comment(run.id, now.number))
    # That of a run of a sweep was submitted for the sweep, or later for the run alone.
    own, around = run.storage.root, split(run.storage.root)[0]
    folder = around if job and payload_file(around, job).exists() else own
    if job in queue:
        assert job is not None
        if payload_file(folder, job).exists():
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
            return f"job {job} {known}; see {folder}/{FOLDER}, then: launcher resume {run.id}"
        again = f"job {job} ended as {ended}"
    spec = JobSpec.model_validate(run.now.spec)
    return f"{again}; submitted as job {submit(run, spec, after=state.version)}"
