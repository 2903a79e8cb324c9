"""Ranks under srun, in the job that the supervisor stands in."""

import os
import re
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from launcher import shell
from launcher.accelerator import asks_for_xla, check_xla
from launcher.address import is_local
from launcher.backend import Ending, Handle, Plan, RankPlan
from launcher.backends.ranks import WORKER, code_path, place_env, workdir
from launcher.backends.slurm import commands, environment, script
from launcher.backends.slurm.allocation import Start
from launcher.backends.slurm.blame import Failed, faulty
from launcher.backends.slurm.commands import SlurmError
from launcher.backends.slurm.job import exits_in, launch_failure, lost_hosts
from launcher.diagnosis import Diagnosis, diagnose, ended
from launcher.elastic import nodes_to_use
from launcher.errors import UsageError
from launcher.layout import attempt_folder, code_home, log_path, progress_path
from launcher.policy import Cause, Phase, Seen
from launcher.record import Record
from launcher.run import Run, failures
from launcher.spec import JobSpec
from launcher.status import host_of

ENDS_S = 10.0
"""After srun has named a rank that failed, the step has this long to end by itself."""
_PATH = re.compile(r"[^%\\\x00-\x1f\x7f]+")
"""What Slurm takes for the path of a log as it is."""
_OWN_NUMBERS = ("RANK", "LOCAL_RANK", "NODE_RANK")
"""What ranks get from srun: neither from the plan nor from the shell that submitted."""


class _Allocation(Protocol):
    def ending(self) -> Ending | None: ...
    def ranks_left(self) -> None: ...


class SlurmBackend:
    """Runs attempts as steps of a job, one after the other; they end with it."""

    def __init__(
        self, start: Start | None = None, allocation: _Allocation | None = None, *, worker: tuple[str, ...] = WORKER
    ) -> None:
        """
        Args:
            start: the job that this process stands in; None where it only plans.
            allocation: the same, as the one who knows why it ends.
            worker: command of a rank, where neither a container nor an environment of its own names another Python.
        """
        self._start, self._allocation, self._worker = start, allocation, worker
        self._srun: shell.Process | None = None
        self._killed = False
        self._end_at = 0.0

    def plan(self, run_dir: str, record: Record, spec: JobSpec, attempt: int) -> Plan:
        if not is_local(run_dir) or not _PATH.fullmatch(run_dir):
            raise UsageError(
                f"the run directory would be {run_dir!r}: on Slurm it is a folder that all nodes see, and has in its "
                "path no '%' (Slurm puts names of jobs and nodes there), no backslash (Slurm removes it) and no "
                "control character; choose one with --runs-root or LAUNCHER_RUNS"
            )
        resources = spec.resources
        tasks = script.tasks_per_node(spec)
        gpus = resources.gpus_per_node or 0
        if 0 < gpus < tasks:
            raise UsageError(
                f"resources: tasks_per_node is {tasks}, gpus_per_node {gpus}: every rank needs a GPU of its own"
            )
        if asks_for_xla(spec):
            check_xla(spec)
        accelerator = "xla" if asks_for_xla(spec) else "gpu" if gpus else "cpu"
        granted = self._start.hosts if self._start else ()
        nodes = nodes_to_use(spec, record.ranks, tasks, accelerator, granted=len(granted) or None)
        hosts, idle = granted[:nodes], granted[nodes:]
        threads = resources.cpus_per_task or 1
        env = {
            **spec.env.vars,
            **place_env(run_dir, attempt, nodes * tasks, tasks, accelerator, threads),
            "PYTHONPATH": os.pathsep.join(code_path(record, run_dir)),
        }
        folder = workdir(record, run_dir)
        shared = [code_home(run_dir, record.code)] if record.code and record.code.shared else []
        mounts = (run_dir, *shared)
        launch = script.srun(
            nodes=nodes,
            nodelist=hosts if idle else (),
            tasks_per_node=tasks,
            cpus_per_task=resources.cpus_per_task,
            gpus_per_node=gpus or None,
            log=f"{run_dir}/{attempt_folder(attempt)}/logs/rank-%5t.log",
            name=_step_name(attempt),
            extra=environment.srun_options(spec.slurm, mounts=mounts, workdir=folder),
            argv=(),
        )
        ranks = (divmod(rank, tasks) for rank in range(nodes * tasks))
        return Plan(
            target=record.target,
            run_dir=run_dir,
            attempt=attempt,
            hosts=hosts,
            idle=idle,
            workdir=folder,
            env={name: value for name, value in env.items() if name not in _OWN_NUMBERS},
            launch=launch,
            argv=environment.rank_command(
                spec.slurm,
                python=self._worker[0],
                argv=self._worker[1:],
                mounts=mounts,
                workdir=folder,
                gpus=bool(gpus),
            ),
            accelerator=accelerator,
            archive=None,
            ranks=tuple(
                RankPlan(rank=rank, node=node, local_rank=local, env={}, log=log_path(attempt, rank))
                for rank, (node, local) in enumerate(ranks)
            ),
        )

    def start(self, plan: Plan) -> Handle:
        assert self._start is not None, "attempts start in a job"
        log = _srun_log(plan.run_dir, plan.attempt)
        (log.parent / "logs").mkdir(parents=True, exist_ok=True)
        around = {name: value for name, value in os.environ.items() if name not in _OWN_NUMBERS}
        # Rank 0 runs on the first host, as this process does.
        env = {**around, **plan.env, "MASTER_ADDR": plan.hosts[0], "MASTER_PORT": str(_free_port())}
        self._killed, self._end_at = False, 0.0
        self._srun = shell.spawn((*plan.launch, *plan.argv), env=env, cwd=Path(plan.workdir), log=log)
        return {**self._start.as_json(), "step": _step_name(plan.attempt)}

    def find(self, run_dir: str, attempt: int) -> Handle | None:
        """None: the ranks of a supervisor that is gone ended with its job, or with its start of it."""
        return None

    def poll(self, run: Run, attempt: int, handle: Handle) -> Seen:
        code = self._srun.poll() if self._srun else None  # first: what it leaves behind is all there, then
        left = (run.read_json(progress_path(attempt)) or {}).get("left")
        log = _read(_srun_log(run.storage.root, attempt))
        if (
            self._start is None
            or self._srun is None
            or handle["job"] != self._start.job
            or (handle["restarts"] != self._start.restarts)
        ):
            return _of_earlier_start(handle, left, lost_hosts(log))
        if code is None:
            self._end_the_rest(handle, log)
            return Seen(Phase.RUNNING)
        return self._ended(run, attempt, code, log, left)

    def _end_the_rest(self, handle: Handle, log: str) -> None:
        """srun ends a step when one of its ranks has failed, by way of the controller; asks once, and is not heard in
        an outage."""
        if not exits_in(log):
            return
        now = time.monotonic()
        self._end_at = self._end_at or now + ENDS_S
        if now > self._end_at:
            self._end_at = now + ENDS_S
            self._kill_step(handle)

    def _ended(self, run: Run, attempt: int, code: int, log: str, left: str | None) -> Seen:
        exits = exits_in(log)
        lost = lost_hosts(log)
        records = failures(run, attempt)
        if not exits and not records and (reason := launch_failure(log)):
            return self._with_ending(Seen(Phase.ENDED, Cause.INFRA, reason, lost))
        first = next(iter(exits), None)
        # What srun ended itself, after the first.
        echoes = {rank for rank, number in exits.items() if rank != first and number < 0}
        found = diagnose(exits, records, ended_by_us=set(exits) if self._killed else echoes, left=left)
        cause, reason = found.cause, found.reason
        if not exits and not records and not left and code != 0:
            cause, reason = Cause.INFRA, f"srun ended with {code}; see {_srun_log(run.storage.root, attempt)}"
        if lost:
            cause, reason = Cause.INFRA, f"{', '.join(lost)} failed"
        elif cause == Cause.INFRA and not self._killed:
            lost = _faulty(run, attempt, found, records)
        return self._with_ending(Seen(Phase.ENDED, cause, reason, lost))

    def _with_ending(self, seen: Seen) -> Seen:
        """The allocation's end explains what ranks only echo; it does not explain an error of the user's."""
        if self._allocation is None or seen.cause == Cause.ERROR:
            return seen
        if seen.cause == Cause.PREEMPTED:
            self._allocation.ranks_left()
        ending = self._allocation.ending()
        if ending is None or (seen.lost and ending.cause != Cause.CANCELLED):
            return seen
        told = f"; {seen.reason}" if seen.cause == Cause.PREEMPTED else ""
        return Seen(Phase.ENDED, ending.cause, f"{ending.reason}{told}", seen.lost)

    def stop(self, handle: Handle) -> None:
        if self._srun:
            self._srun.signal(signal.SIGUSR2)  # srun hands it on to all ranks, also while no controller answers

    def kill(self, handle: Handle) -> None:
        self._killed = True
        self._kill_step(handle)

    def _kill_step(self, handle: Handle) -> None:
        with suppress(SlurmError):  # asked again at the next look
            if step := commands.steps(handle["job"]).get(handle["step"]):
                commands.signal_step(step, "KILL")


def _of_earlier_start(handle: Handle, left: str | None, lost: tuple[str, ...]) -> Seen:
    """An attempt of another start of the job, or of another job: it ended with that, and nobody has seen how."""
    if left:
        return Seen(Phase.ENDED, Cause.PREEMPTED, f"saved and left at {left}", lost)
    return Seen(
        Phase.ENDED, Cause.INFRA, f"job {handle['job']} was ended by Slurm: a node was lost, or it was killed", lost
    )


def _faulty(run: Run, number: int, found: Diagnosis, records: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    state = run.ledger.refresh()
    counted = {one.number: one for one in state.attempts if one.number > state.budget_from}
    if (now := counted.get(number)) is None:
        return ()
    before = None
    if (last := counted.get(number - 1)) and last.cause == Cause.INFRA:
        kind, rank = ended(last.cause, last.reason or "", failures(run, last.number))
        before = Failed(kind, host_of(run, last, rank))
    return faulty(Failed(found.kind, host_of(run, now, found.rank)), before, records, now.hosts)


def _step_name(attempt: int) -> str:
    return f"attempt-{attempt:03d}"


def _srun_log(run_dir: str, attempt: int) -> Path:
    return Path(run_dir, attempt_folder(attempt), "srun.log")


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
