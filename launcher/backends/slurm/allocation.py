"""The job that a supervisor is the batch process of: whether it is ending, why, and how the run goes on after it."""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from launcher.backend import Ending
from launcher.backends.slurm import commands
from launcher.backends.slurm.commands import SlurmError
from launcher.backends.slurm.job import RUNS, Ends, ended_because, expand_hosts, lead_within
from launcher.backends.slurm.script import avoided
from launcher.policy import Cause
from launcher.run import Run
from launcher.spec import JobSpec
from launcher.spec_slurm import Slurm

log = logging.getLogger(__name__)

_LOOK_S = 0.5
"""Between two questions to the controller about a job that is about to end."""
_HEEDED_S = 120.0
"""How long after a signal the controller is asked what it meant. Some mean nothing: a suspended job that goes on has
got SIGCONT, and may run for days."""
_END_S = 30.0
"""Between two questions about when the job's time is over: somebody may have moved it."""
_PATIENCE_S = 120.0
"""How long a controller that does not answer is asked to start the job again; Slurm may end this process before."""
_ASK_AGAIN_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start of a job."""

    job: str
    """Its id; of an array's element `<array>_<task>`: the raw id of one of them means them all."""
    restarts: int
    """How often Slurm had started it before."""
    hosts: tuple[str, ...]
    """In Slurm's order: ranks are laid out along it."""

    def as_json(self) -> dict[str, str | int]:
        return {"job": self.job, "restarts": self.restarts}


def this_start(env: Mapping[str, str] = os.environ) -> Start:
    """That which this process is part of. Raises KeyError outside of a job."""
    in_array = "SLURM_ARRAY_JOB_ID" in env
    return Start(
        job=f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}" if in_array else env["SLURM_JOB_ID"],
        restarts=int(env.get("SLURM_RESTART_COUNT", "0")),
        hosts=expand_hosts(env["SLURM_JOB_NODELIST"]),
    )


class JobAllocation:
    """What Slurm granted to this process, the job's batch process."""

    def __init__(self, start: Start, *, lead_s: float, resubmit: Callable[[Run, JobSpec], object]) -> None:
        """
        Args:
            start: this process's.
            lead_s: how long before the end of the job's time the ranks are to stop.
            resubmit: submits another job for the run, to begin when this one has ended.
        """
        self._start, self._lead_s, self._resubmit = start, lead_s, resubmit
        self._told = float("-inf")
        self._ranks_left = False
        self._ending: Ending | None = None
        self._looked = float("-inf")
        self._stop_at: float | None = None
        self._stop_known = float("-inf")

    def tell(self) -> None:
        """Slurm has sent this process a signal. May be called from its handler: it only takes a note."""
        self._told = time.monotonic()

    def ranks_left(self) -> None:
        """The ranks have left at a signal."""
        self._ranks_left = True
        self._looked = float("-inf")

    def ending(self) -> Ending | None:
        told = time.monotonic() - self._told < _HEEDED_S
        if self._ending or not (told or self._ranks_left):
            return self._ending
        if time.monotonic() - self._looked < _LOOK_S:
            return None
        self._looked = time.monotonic()
        try:
            job = commands.show_job(self._start.job)
        except SlurmError as silent:
            # Ranks do not leave for nothing; `renew` is patient.
            return Ending(cause=Cause.PREEMPTED, reason=f"{self._name}: {silent}") if self._ranks_left else None
        because = ended_because(
            job,
            started_restarts=self._start.restarts,
            stop_signal_seen=self._ranks_left,
            lead_s=self._lead_s,
            now=time.time(),
        )
        if because == Ends.GOES_ON and self._ranks_left:
            self._ranks_left = False
            log.warning("%s has less time than slurm.signal_delay needs; its signal came too early", self._name)
        self._ending = self._as_ending(because, preempted=job.preempted is not None, requeues=job.requeue)
        return self._ending

    def stops_soon(self) -> bool:
        if time.monotonic() - self._stop_known > _END_S:
            self._stop_known = time.monotonic()
            with suppress(SlurmError):  # then what was known before holds
                job = commands.show_job(self._start.job)
                self._stop_at = None if job.end is None else job.end - lead_within(job, self._lead_s)
        return self._stop_at is not None and time.time() > self._stop_at

    def unfit(self, spec: JobSpec, faulty: Sequence[str], excluded: Sequence[str]) -> Ending | None:
        try:
            job = commands.show_job(self._start.job)
            there = commands.node_count(spec.slurm.partition if spec.slurm else None)
        except SlurmError:
            return None
        mine = {*expand_hosts(job.hosts)} if job.state == "RUNNING" else set()  # without those that Slurm has given up
        left = [host for host in faulty if host in mine and host in avoided(spec, excluded, there)]
        if not left:
            return None
        return Ending(cause=Cause.INFRA, reason=f"{self._name} is left: ranks keep failing on {', '.join(left)}")

    def renew(self, run: Run, spec: JobSpec) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                commands.requeue(self._start.job)
                self._exclude(spec, run.ledger.refresh().excluded)
                return
            except SlurmError as refused:
                if not refused.silent:
                    break  # this job may not, or cannot any more
                if time.monotonic() > deadline:
                    raise
                time.sleep(_ASK_AGAIN_S)
        self._resubmit(run, spec)

    def _exclude(self, spec: JobSpec, failed: Sequence[str]) -> None:
        if not failed:
            return
        slurm = spec.slurm or Slurm()
        with suppress(SlurmError):  # Slurm sends no job to a node that it knows to be down
            if hosts := avoided(spec, failed, commands.node_count(slurm.partition)):
                commands.exclude(self._start.job, [*slurm.exclude, *hosts])

    @property
    def _name(self) -> str:
        return f"job {self._start.job}"

    def _as_ending(self, because: Ends, *, preempted: bool, requeues: bool) -> Ending | None:
        match because:
            case Ends.GOES_ON:
                return None
            case Ends.PREEMPTED:
                return Ending(cause=Cause.PREEMPTED, reason=f"{self._name} was preempted")
            case Ends.TIMEOUT:
                return Ending(cause=Cause.TIMEOUT, reason=f"the time of {self._name} is over")
            case Ends.REQUEUED:
                how = "preempted and requeued" if preempted else "requeued"
                return Ending(cause=Cause.PREEMPTED, reason=f"{self._name} was {how} by Slurm", comes_back=True)
            case Ends.NODE_FAIL:
                return Ending(cause=Cause.INFRA, reason=f"{self._name} has lost a node", comes_back=requeues)
            case Ends.CANCELLED:
                return Ending(cause=Cause.CANCELLED, reason=f"{self._name} was cancelled (scancel)")


class Interactive:
    """The allocation of an `salloc`: the user's own. A run stops with it, to be resumed where the user says."""

    def __init__(self, start: Start) -> None:
        self._start = start

    def ranks_left(self) -> None:
        pass  # whatever made them leave, Slurm is asked

    def ending(self) -> Ending | None:
        try:
            job = commands.show_job(self._start.job)
        except SlurmError:
            return None
        if job.state in RUNS:
            return None
        return Ending(cause=Cause.STOPPED, reason=f"job {self._start.job} is over, an allocation of the user's own")
