"""Jobs are submitted by submitit. Nothing else of it is relied on: neither its states nor its requeueing."""

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher.backends.ranks import WORKER
from launcher.backends.slurm import commands, script
from launcher.backends.slurm.arrays import Element
from launcher.backends.slurm.commands import SlurmError
from launcher.backends.slurm.job import comment
from launcher.record import Record
from launcher.run import Run
from launcher.spec import JobSpec
from launcher.supervise import submit as write_down
from launcher.sweep import Sweep

FOLDER = "slurm"
"""Of submitit's files and the supervisor's output, in the directory of the run, or of the sweep."""


def submit(
    run: Run, spec: JobSpec, *, behind: str | None = None, after: int | None = None, worker: tuple[str, ...] = WORKER
) -> str:
    """Have Slurm bring up a supervisor for the run.

    Args:
        run: that waits for no other job.
        spec: as it is now.
        behind: the run's earlier job, which has to end before.
        after: as in `supervise.submit`.
        worker: command of a rank.

    Returns:
        The job's id.

    Raises:
        SlurmError: sbatch refuses; says why.
        LedgerConflict: somebody else acts on the run.
    """

    def send(number: int, exclude: Sequence[str]) -> str:
        from launcher.backends.slurm.payload import Supervise

        executor = _executor(run.now, spec, run.storage.root, number, exclude, behind=behind)
        return _sent(lambda: executor.submit(Supervise(run.storage.root, number, worker)))

    return write_down(run, run.now.target, send, after=after)


def check_here() -> None:
    """Raises SlurmError when nothing can be submitted from this machine."""
    if not shutil.which("srun"):  # submitit raises RuntimeError
        raise SlurmError("srun: not on PATH. Is this a login node of a Slurm cluster?")


def submit_array(
    sweep: Sweep,
    spec: JobSpec,
    elements: Sequence[Element],
    *,
    after: int,
    worker: tuple[str, ...] = WORKER,
) -> str:
    """Have Slurm bring up a supervisor for each of these runs of a sweep, in one array; a single one is a plain job.

    Args:
        sweep: in whose ledger it is written down.
        spec: of any of the runs: their options of sbatch are the same.
        elements: in their order.
        after: the version of the sweep's state that this was decided on.
        worker: command of a rank.

    Returns:
        The id of the array, or of the job.

    Raises:
        SlurmError: sbatch refuses; says why.
        LedgerConflict: somebody else acts on the sweep.
    """

    def send(number: int, exclude: Sequence[str]) -> str:
        from launcher.backends.slurm.payload import SuperviseCell

        root = sweep.storage.root
        executor = _executor(sweep.record, spec, root, number, exclude, array=len(elements))
        functions = [SuperviseCell(root, one.cell, one.submission, worker) for one in elements]
        return _sent(lambda: executor.submit_array(functions)[0]).partition("_")[0]

    cells = tuple(one.cell for one in elements)
    return write_down(sweep, sweep.record.target, send, after=after, cells=cells)


def script_text(record: Record, spec: JobSpec, run_dir: str, array: int = 1) -> str:
    """The batch script of a run's first job, as `sbatch` would get it; or that of so many elements of an array."""
    executor = _executor(record, spec, run_dir, 1, (), array=array)
    if array > 1:
        executor.parameters["map_count"] = array
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def payload_file(folder: str, job: str) -> Path:
    """What a job, or an element of an array, runs: without it there is nothing to run.

    Args:
        folder: the directory of the run or of the sweep that it was submitted for.
        job: its id.
    """
    return Path(folder, FOLDER, f"{job}_submitted.pkl")


def _executor(
    record: Record,
    spec: JobSpec,
    run_dir: str,
    number: int,
    exclude: Sequence[str],
    *,
    behind: str | None = None,
    array: int = 1,
) -> Any:
    from submitit import SlurmExecutor

    if exclude:
        exclude = script.avoided(spec, exclude, commands.node_count(spec.slurm.partition if spec.slurm else None))
    check_here()
    python = (record.site or {}).get("python") or sys.executable
    # exec: under proctrack/cgroup the shell's end would be the end of all that it started, when SIGTERM comes.
    executor = SlurmExecutor(Path(run_dir, FOLDER), python=f"exec {shlex.quote(python)} -P")
    options = script.sbatch_options(
        spec, name=record.id, comment=comment(record.id, number), exclude=exclude, after=behind
    )
    # submitit's own limit would be 256 at the same time
    executor.update_parameters(**{"array_parallelism": array, **options})
    return executor


def _sent(submit: Callable[[], Any]) -> str:
    """The id of the job that is submitted."""
    with _environment():
        try:
            return str(submit().job_id)
        except Exception as error:  # submitit's own, with sbatch's words in it
            raise SlurmError(f"sbatch: {error}") from None


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
