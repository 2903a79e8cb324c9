"""What submitit runs in a job: a supervisor, told where the run is, or the sweep, and nothing else."""

import signal
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from launcher.address import storage_at
from launcher.backends.ranks import WORKER
from launcher.backends.slurm import submission as submissions
from launcher.backends.slurm.allocation import JobAllocation, this_start
from launcher.backends.slurm.backend import SlurmBackend
from launcher.backends.slurm.script import lead_of, ranks_of
from launcher.errors import LedgerConflict, NotTheDriver
from launcher.events import RunEnded, Submitting
from launcher.overrides import vary
from launcher.run import Run
from launcher.spec import JobSpec
from launcher.supervise import Place, Supervisor
from launcher.sweep import Cell, Sweep, create_cell


@dataclass(frozen=True)
class Supervise:
    """The function that is submitted; pickled by reference to this module."""

    run_dir: str
    submission: int
    worker: tuple[str, ...] = WORKER

    def __call__(self) -> None:
        run = Run(storage_at(self.run_dir))
        spec = JobSpec.model_validate(run.now.spec)
        start = this_start()
        again = partial(submissions.submit, behind=start.job, worker=self.worker)
        allocation = JobAllocation(start, lead_s=lead_of(spec), resubmit=again)
        # In place of submitit's: what a signal means here is found out, not guessed.
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT):
            signal.signal(number, lambda *_: allocation.tell())
        backend = SlurmBackend(start, allocation, worker=self.worker)
        place = Place(submission=self.submission, job=start.job, allocation=allocation)
        try:
            ended = Supervisor(run, spec, backend, place).drive()
        except NotTheDriver as overtaken:
            print(f"launcher: {overtaken}", flush=True)
            return
        if ended and ended.state == "failed":
            raise SystemExit(1)  # so that the accounting says FAILED


@dataclass(frozen=True)
class SuperviseCell:
    """The same for a run of a sweep, which begins here if it has not yet."""

    sweep_dir: str
    index: int
    submission: int
    worker: tuple[str, ...] = WORKER

    def __call__(self) -> None:
        sweep = Sweep(storage_at(self.sweep_dir))
        if _cancelled(sweep):
            return
        run = sweep.cell(self.index) or _begun(sweep, sweep.cells[self.index])
        with suppress(LedgerConflict):  # it had begun
            run.ledger.append(Submitting(submission=self.submission, target=run.record.target), after=0)
        if _cancelled(sweep):  # by somebody who has not seen this run
            state = run.ledger.refresh()
            if not state.ended:
                with suppress(LedgerConflict):
                    run.ledger.append(RunEnded(state="cancelled", reason="cancelled by the user"), after=state.version)
            return
        Supervise(run.storage.root, self.submission, self.worker)()


def _begun(sweep: Sweep, cell: Cell) -> Run:
    spec = JobSpec.model_validate(vary(sweep.record.spec, cell.values))
    return create_cell(sweep, cell, spec.model_dump(mode="json", exclude_unset=True), ranks_of(spec))


def _cancelled(sweep: Sweep) -> bool:
    cancelled = sweep.ledger.refresh().cancelling
    if cancelled:
        print(f"launcher: {sweep.id} is cancelled", flush=True)
    return cancelled
