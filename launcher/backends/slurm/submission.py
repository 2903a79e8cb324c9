"""Jobs are submitted by submitit. Nothing else of it is relied on: neither its states nor its requeueing."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher.backends.ranks import WORKER
from launcher.backends.slurm import script
from launcher.backends.slurm.commands import SlurmError
from launcher.run import Record, Run
from launcher.spec import JobSpec
from launcher.supervise import submit as submit_run

FOLDER = "slurm"
"""Of submitit's files and the supervisor's output, in the run directory."""


def submit(
    run: Run, spec: JobSpec, *, again: bool = False, after: int | None = None, worker: tuple[str, ...] = WORKER
) -> str:
    """Have Slurm bring up a supervisor for the run.

    Args:
        run: that waits for no other job.
        spec: as it is now.
        again: begin when the run's earlier job has ended.
        after: as in `supervise.submit`.
        worker: command of a rank.

    Returns:
        The job's id.

    Raises:
        SlurmError: sbatch refuses; says why.
        LedgerConflict: somebody else acts on the run.
    """

    def send(number: int, failed: Sequence[str]) -> str:
        try:
            return sbatch(number, failed)
        except SlurmError:
            if not failed:
                raise
            return sbatch(number, ())  # without these too few nodes may be left

    def sbatch(number: int, exclude: Sequence[str]) -> str:
        from launcher.backends.slurm.payload import Supervise

        executor = _executor(run.record, spec, run.storage.root, number, exclude, again=again)
        with _environment():
            try:
                return str(executor.submit(Supervise(run.storage.root, number, worker)).job_id)
            except Exception as error:  # submitit's own, with sbatch's words in it
                raise SlurmError(f"sbatch: {error}") from None

    return submit_run(run, run.record.target, send, after=after)


def script_text(record: Record, spec: JobSpec, run_dir: str) -> str:
    """The batch script of a run's first job, as `sbatch` would get it."""
    executor = _executor(record, spec, run_dir, 1, ())
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def comment(run_id: str, number: int) -> str:
    """By which the job of a submission is found again when nobody has written its id down."""
    return f"launcher:{run_id}:{number}"


def _executor(
    record: Record, spec: JobSpec, run_dir: str, number: int, exclude: Sequence[str], *, again: bool = False
) -> Any:
    from submitit import SlurmExecutor

    if not shutil.which("srun"):  # submitit raises RuntimeError
        raise SlurmError("srun: not on PATH. Is this a login node of a Slurm cluster?")
    python = (record.site or {}).get("python") or sys.executable
    # exec: under proctrack/cgroup the shell's end would be the end of all that it started, when SIGTERM comes.
    executor = SlurmExecutor(Path(run_dir, FOLDER), python=f"exec {shlex.quote(python)} -P")
    options = script.sbatch_options(
        spec, name=record.id, comment=comment(record.id, number), exclude=exclude, singleton=again
    )
    executor.update_parameters(**options)
    return executor


@contextmanager
def _environment() -> Iterator[None]:
    """Without what belongs to a job that the submitting shell may stand in: sbatch hands all of it on."""
    before = dict(os.environ)
    clean = script.clean(before)
    for name in before.keys() - clean.keys():
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(before)
