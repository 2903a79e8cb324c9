"""Slurm's own commands: what they are asked, and what they answer. A thin edge; `job.py` reads the longer answers."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from launcher import shell
from launcher.backends.slurm.job import LIVING, Job, in_short, parse_job, parse_time
from launcher.errors import LauncherError

_TIMEOUT_S = 20
"""A command gives up on a slurmctld that is down after nine seconds; some ask twice."""
_FIELD, _RECORD = "\x1f", "\x1e\n"
"""ASCII's unit and record separators: names and comments may hold anything else, newlines too."""
_SILENT = ("Unable to contact slurm controller", "timed out", "Connection refused", "Connection reset")
_FORGOTTEN = "Invalid job id"
_OTHERWISE = ("SBATCH_", "SCANCEL_", "SCONTROL_", "SQUEUE_", "SLURM_TIME_FORMAT")
"""With these in the environment the commands do something else than what they are told."""


class SlurmError(LauncherError):
    """A command of Slurm's did not do what it was asked; carries what it said."""

    def __init__(self, message: str, *, silent: bool = False) -> None:
        super().__init__(message)
        self.silent = silent
        """The controller did not answer: it may do so later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """A job that waits or runs, one a task of a job array."""

    id: str
    """What scontrol and scancel must be given: `<array>_<task>` in a job array."""
    name: str
    comment: str
    state: str
    reason: str
    start: float | None
    """When it started, or is expected to: seconds since the epoch; None where Slurm has not worked it out."""


def show_job(job: str) -> Job:
    """What Slurm knows of a job, by raw id or `<array>_<task>`: some minutes after its end no more (MinJobAge).

    Raises:
        SlurmError: it does not say, or not of this job.
    """
    said = _ask("scontrol", "show", "job", job, "--oneliner").stdout
    try:
        # The raw id of one element of an array has all of them shown.
        jobs = [parse_job(one) for one in re.split(r"^(?=JobId=)", said, flags=re.MULTILINE) if one.strip()]
    except ValueError as error:
        raise SlurmError(f"scontrol show job {job}: {error}") from error
    for one in jobs:
        if job in (one.name, one.id):
            return one
    raise SlurmError(f"scontrol show job {job}: no such job in what it said: {said.strip()!r}")


def lives(job: str) -> bool:
    """Whether a job waits, runs or is being ended: one that Slurm has forgotten does not. Raises SlurmError."""
    return _state(job) in LIVING


def runs(job: str) -> bool:
    """Whether it runs now. Raises SlurmError."""
    return _state(job) == "RUNNING"


def _state(job: str) -> str | None:
    try:
        return show_job(job).state
    except SlurmError as error:
        if _FORGOTTEN in str(error):
            return None
        raise


def ended_as(job: str) -> str | None:
    """The state in which a job ended, as far as Slurm still knows; None if nobody does. Raises SlurmError."""
    if state := _state(job):
        return state
    try:
        said = _ask("sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={job}").stdout
    except SlurmError:  # there is no accounting, or it is down
        return None
    return said.split()[0] if said.split() else None  # "CANCELLED by 1000"


def requeue(name: str) -> None:
    """Have a job ended and started again; by `Job.name`. It revives a cancelled one that is still being ended."""
    _ask("scontrol", "requeue", name)


def cancel(*jobs: str) -> None:
    """End jobs: SIGTERM to all of them, SIGKILL after KillWait. Not an error if one has ended, or is forgotten."""
    if not jobs:
        return
    try:
        _ask("scancel", *in_short(jobs))
    except SlurmError as error:
        if _FORGOTTEN not in str(error):
            raise


def signal_step(step: str, name: str) -> None:
    """Send a signal (`USR2`) to all tasks of a step (`12.0`)."""
    _ask("scancel", f"--signal={name}", step)


def steps(job: str) -> dict[str, str]:
    """The steps of a job that run, ids by names."""
    return {name: step for step, name in _squeue("--steps", f"--jobs={job}", fields="%i %j")}


def queued(user: str) -> list[Queued]:
    """All jobs of a user that wait or run, in one question."""
    records = _squeue("--array", f"--user={user}", fields="%i %j %k %T %r %S")
    return [
        Queued(
            id=job,
            name=name,
            comment="" if comment == "(null)" else comment,
            state=state,
            reason=reason,
            start=parse_time(start),
        )
        for job, name, comment, state, reason, start in records
    ]


def start_estimate(arguments: Sequence[str]) -> float | None:
    """When a job with these arguments of sbatch would start: seconds since the epoch. Nothing is submitted.

    Raises:
        SlurmError: it never would; carries why.
    """
    said = _ask("sbatch", "--test-only", *arguments).stderr
    found = re.search(r"to start at (\d+)", said)
    return float(found[1]) if found else None


def node_count(partition: str | None) -> int:
    """Nodes of a partition, in whatever state; of the cluster without a partition."""
    where = [f"--partition={partition}"] if partition else []
    return sum(map(int, _ask("sinfo", "--noheader", *where, "--format=%D").stdout.split()))


def exclude(job: str, hosts: Sequence[str]) -> None:
    """Have a job that waits start on other hosts than these."""
    _ask("scontrol", "update", f"JobId={job}", f"ExcNodeList={','.join(hosts)}")


def _squeue(*options: str, fields: str) -> list[list[str]]:
    form = _FIELD.join(fields.split()) + _RECORD.strip("\n")
    said = _ask("squeue", "--noheader", *options, f"--format={form}").stdout
    return [record.split(_FIELD) for record in said.split(_RECORD) if record]


def _ask(*argv: str) -> shell.Printed:
    env = {name: value for name, value in os.environ.items() if not name.startswith(_OTHERWISE)}
    try:
        answer = shell.ask(argv, env={**env, "SLURM_TIME_FORMAT": "%s"}, timeout_s=_TIMEOUT_S)
    except FileNotFoundError:
        raise SlurmError(f"{argv[0]}: not on PATH. Is this a login node of a Slurm cluster?") from None
    said = answer.stderr.strip() or answer.stdout.strip() or "nothing"
    command = " ".join(argv).translate({ord(_FIELD): " ", ord(_RECORD[0]): None})
    if answer.code == shell.TIMED_OUT:
        raise SlurmError(f"{command}: no answer within {_TIMEOUT_S} s; it said: {said}", silent=True)
    if answer.code:
        silent = any(word in said for word in _SILENT)
        raise SlurmError(f"{command}: exit code {answer.code}, it said: {said}", silent=silent)
    return answer
