"""Sweeps on Slurm: their runs are elements of job arrays, and begin when these start."""

import getpass
import sys
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from launcher.address import below
from launcher.backend import Plan
from launcher.backends.slurm import commands
from launcher.backends.slurm.arrays import MAX_ARRAY_SIZE, Due, Element, arrays_in, elements_of, in_queue, together
from launcher.backends.slurm.backend import SlurmBackend
from launcher.backends.slurm.commands import Queued, SlurmError
from launcher.backends.slurm.job import comment
from launcher.backends.slurm.submission import FOLDER, payload_file, submit_array
from launcher.cli.common import damage_named
from launcher.cli.place import distinct, who
from launcher.cli.terminal import Terminal
from launcher.errors import LauncherError, LedgerConflict, UsageError
from launcher.events import CancelRequested, Event, ResumeRequested, RunEnded, Submitted, Submitting
from launcher.layout import cell_folder
from launcher.overrides import vary
from launcher.record import Record
from launcher.run import Run
from launcher.spec import JobSpec
from launcher.state import RunState
from launcher.storage import Unreachable
from launcher.sweep import Sweep, lines, unfinished
from launcher.target import Target

SETTLED_S = 60.0
"""A submission that is younger may still be under way."""
_ENDED = ("failed", "cancelled")
_OVER = ("finished", *_ENDED)
_PATIENCE_S = 180.0
"""How long supervisors have to hear that their runs are cancelled, and to have the ranks leave."""


def planned(spec: JobSpec, record: Record, address: str) -> tuple[JobSpec, Plan]:
    """The spec and the plan of the first run; of the others, those that ask for something else are planned, too.

    Raises:
        UsageError: some of them cannot be planned; all of that.
    """
    backend, specs = SlurmBackend(), distinct(spec)
    problems: dict[str, str] = {}
    plans = []
    for index, one in specs.items():
        try:
            plans.append(backend.plan(address, record, one, 1))
        except UsageError as error:
            problems.setdefault(str(error), f"sweep: run {index}: {error}")
    if problems:
        raise UsageError("\n".join(problems.values()))
    return specs[0], plans[0]


class _Seen(NamedTuple):
    """A sweep and what the queue has of it; the queue was asked before the runs were looked at."""

    version: int
    """Of the sweep's state, from before."""
    there: Mapping[int, Queued]
    """Elements by the index of their run."""
    jobs: set[str]
    """Ids of all jobs that wait or run."""


def submit_missing(sweep: Sweep, terminal: Terminal, *, failed: bool = False) -> None:
    """Submit all runs that have not come to an end, and that no job waits for; `failed`: those that failed too.

    Raises:
        LauncherError: Slurm refuses some of them; somebody else acts on the sweep.
    """
    state = sweep.ledger.refresh()
    if state.version == 0:
        left, version = [cell.index for cell in sweep.cells], 0
    else:
        seen = _look(sweep)
        found = lines(sweep, lambda: {index: one.id for index, one in seen.there.items()})
        wanted = [one for one in found if one["state"] in unfinished(failed=failed)]
        # What is left of the job of a run that has ended is nothing to wait for.
        left = [one["index"] for one in wanted if one["state"] in _ENDED or one["job"] not in seen.jobs]
        if not left:
            terminal.line(f"{sweep.id}: nothing is missing; {len(seen.there)} run(s) wait for their jobs or have them")
            return
        version = _appended(sweep, ResumeRequested(by=who()), seen.version).version
    _submit(sweep, left, version, terminal)


def _look(sweep: Sweep) -> _Seen:
    """What the queue has, once it is clear what became of submissions that were cut off in the middle.

    Raises:
        LauncherError: one may be under way just now.
        SlurmError: Slurm does not answer.
    """
    state = sweep.ledger.refresh()
    if (now := state.submission) and now.job is None and not state.ended and time.time() - now.at < SETTLED_S:
        raise LauncherError(
            f"{sweep.id}: somebody submits it just now, or was cut off in the middle of that; try again in a minute"
        )
    queue = commands.queued(getpass.getuser())
    there, idle = _able(sweep, queue)
    commands.cancel(*idle)
    return _Seen(state.version, there, {one.id for one in queue} - idle)


def _able(sweep: Sweep, queue: Iterable[Queued]) -> tuple[dict[int, Queued], set[str]]:
    """Elements by the index of their run; ids of those that have nothing to run, since the submission was cut off."""
    there = in_queue(sweep.id, arrays_in(sweep.ledger.records()), queue)
    idle = {one.id for one in there.values() if not payload_file(sweep.storage.root, one.id).exists()}
    return {index: one for index, one in there.items() if one.id not in idle}, idle


def jobs_of_runs(sweep: Sweep, queue: Iterable[Queued]) -> dict[str, str]:
    """Elements for runs that have begun, by the comments that jobs of these runs would have."""
    there, _ = _able(sweep, queue)
    begun, _ = begun_of(sweep, there)
    return {comment(run.id, run.ledger.refresh().submissions): there[index].id for index, run in begun.items()}


def reconciled(sweep: Sweep, queue: Iterable[Queued]) -> str:
    """Mend what a crash in the middle of a submission has left; says what was done, and what is to be done.

    Raises:
        LedgerConflict: somebody else acts on the sweep.
        SlurmError: Slurm does not do what it is asked.
    """
    state = sweep.ledger.refresh()
    now = state.submission
    if now is None or state.cancelling or time.time() - now.at < SETTLED_S:
        return ""
    there, idle = _able(sweep, queue)
    commands.cancel(*idle)
    said = [f"{len(idle)} job(s) had nothing to run and are cancelled"] if idle else []
    mine = [one for index, one in there.items() if index in now.cells]
    if now.job is None and not state.ended and mine:
        job = mine[0].id.partition("_")[0]
        sweep.ledger.append(Submitted(submission=now.number, job=job), after=state.version)
        said.append(f"job {job} is its own")
    begun = {*sweep.storage.list("")}
    lost = sum(cell.index not in there and cell_folder(cell.index) not in begun for cell in sweep.cells)
    if lost:
        where = f"see {sweep.storage.root}/{FOLDER}, then"
        said.append(f"{lost} run(s) have not begun and have no job; {where}: launcher resume {sweep.id}")
    return "; ".join(said)


def begun_of(sweep: Sweep, indices: Iterable[int]) -> tuple[dict[int, Run], set[int]]:
    """Those of these runs that have begun, and which of them are damaged, which is said: they hold up no others."""
    begun: dict[int, Run] = {}
    damaged = set()
    for index in indices:
        try:
            with damage_named(below(sweep.storage.root, cell_folder(index))):
                if run := sweep.cell(index):
                    run.ledger.refresh()
                    begun[index] = run
        except Unreachable:
            raise
        except LauncherError as error:
            print(f"launcher: {error}", file=sys.stderr)
            damaged.add(index)
    return begun, damaged


def _submit(sweep: Sweep, left: list[int], version: int, terminal: Terminal) -> None:
    begun, damaged = begun_of(sweep, left)
    due = [
        Due(Element(index, begun[index].ledger.refresh().submissions + 1), begun[index].now.spec)
        if index in begun
        else Due(Element(index, 1), vary(sweep.record.spec, sweep.cells[index].values))
        for index in left
        if index not in damaged
    ]
    done = 0
    for array in together(due, longest(sweep.record)):
        elements = [one.element for one in array]
        elements = [one for one in elements if one.cell not in begun or _asked(begun[one.cell], one)]
        if not elements:
            continue
        try:
            job = submit_array(sweep, JobSpec.model_validate(array[0].spec), elements, after=version)
        except SlurmError as refused:
            event = RunEnded(state="failed", reason=f"not submitted: {refused}")
            sweep.ledger.append_while(lambda state: None, event)
            raise LauncherError(
                f"{refused}\n{sweep.id}: {done} of {len(due)} runs are submitted; for the others: "
                f"launcher resume {sweep.id}"
            ) from None
        except LedgerConflict:
            raise _not_alone(sweep) from None
        done += len(elements)
        terminal.line(f"  submitted as job {job}: {len(elements)} run(s)")
        for element, name in zip(elements, elements_of(job, len(elements)), strict=True):
            if run := begun.get(element.cell):
                _written_down(run, Submitted(submission=element.submission, job=name))
        state = sweep.ledger.refresh()
        version = state.version
        if state.cancelling:
            commands.cancel(job)
            raise LauncherError(f"{sweep.id} was cancelled meanwhile")


def longest(record: Record) -> int:
    """How many elements an array may have, as far as that is known."""
    facts = Target.model_validate(record.site).facts
    return min(facts.max_array_size, facts.max_submit or facts.max_array_size) if facts else MAX_ARRAY_SIZE


def _asked(run: Run, element: Element) -> bool:
    """Whether it is written down that the run goes on, with this submission; not if somebody else acts on it."""
    state = run.ledger.refresh()
    if state.submissions + 1 != element.submission:
        return False
    try:
        state = run.ledger.append(ResumeRequested(by=who()), after=state.version)
        run.ledger.append(Submitting(submission=element.submission, target=run.record.target), after=state.version)
    except LedgerConflict:
        return False
    return True


def _written_down(run: Run, submitted: Submitted) -> None:
    """Unless the job has been faster."""
    state = run.ledger.refresh()
    if (now := state.submission) and now.number == submitted.submission and now.job is None:
        run.ledger.append_while(lambda state: None, submitted)


def _appended(sweep: Sweep, event: Event, after: int) -> RunState:
    try:
        return sweep.ledger.append(event, after=after)
    except LedgerConflict:
        raise _not_alone(sweep) from None


def _not_alone(sweep: Sweep) -> LauncherError:
    return LauncherError(f"{sweep.id}: somebody else acts on this sweep just now; look again")


def cancel(sweep: Sweep, *, checkpoint: bool) -> None:
    """End all that has not ended. Elements that start after this leave by themselves.

    Raises:
        SlurmError: Slurm does not answer; what runs has been told all the same.
    """
    asked = CancelRequested(by=who(), checkpoint=checkpoint)
    sweep.ledger.append_while(lambda state: None, asked)
    states = {one["index"]: one["state"] for one in lines(sweep)}
    begun, _ = begun_of(sweep, (index for index, state in states.items() if state not in _OVER))
    for run in begun.values():
        if not run.ledger.refresh().cancelling:
            run.ledger.append_while(lambda state: None, asked)
    queue = {one.id: one for one in commands.queued(getpass.getuser())}
    elements = in_queue(sweep.id, arrays_in(sweep.ledger.records()), queue.values())
    there = {index: one for index, one in elements.items() if states[index] not in ("finished", "failed")}
    jobs = {index: _job(run) or (there[index].id if index in there else None) for index, run in begun.items()}
    hearing = {index for index, job in jobs.items() if job in queue and queue[job].state == "RUNNING"}
    commands.cancel(*(one.id for index, one in there.items() if index not in hearing))
    deadline = time.monotonic() + _PATIENCE_S
    for index in begun.keys() - hearing:
        _end(begun[index])
    while hearing and time.monotonic() < deadline:
        hearing = {index for index in hearing if not begun[index].ledger.refresh().ended}
        time.sleep(sweep.storage.pause_s)
    for index in hearing:
        _end(begun[index])
    commands.cancel(*(job for job in jobs.values() if job in queue))


def _job(run: Run) -> str | None:
    now = run.ledger.refresh().submission
    return now.job if now else None


def _end(run: Run) -> None:
    def not_ended(state: RunState) -> None:
        if state.ended and state.ended.state != "stopped":
            raise LedgerConflict(run.id)

    try:
        run.ledger.append_while(not_ended, RunEnded(state="cancelled", reason="cancelled by the user"))
    except LedgerConflict:
        return
