"""What submitit runs in a job: a supervisor, told where the run is and nothing else."""

import signal
from dataclasses import dataclass
from functools import partial

from launcher.address import storage_at
from launcher.backends.ranks import WORKER
from launcher.backends.slurm import submission as submissions
from launcher.backends.slurm.allocation import JobAllocation, this_start
from launcher.backends.slurm.backend import SlurmBackend
from launcher.backends.slurm.script import lead_of
from launcher.errors import NotTheDriver
from launcher.run import Run
from launcher.spec import JobSpec
from launcher.supervise import Place, Supervisor


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
        again = partial(submissions.submit, again=True, worker=self.worker)
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
