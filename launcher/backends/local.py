"""This machine: ranks are child processes, and `resources.nodes` are simulated."""

import os
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from launcher import shell
from launcher.accelerator import asks_for_xla, check_xla
from launcher.address import below, here, is_local, own
from launcher.backend import Handle, Plan, RankPlan
from launcher.backends.ranks import WORKER, code_path, place_env, workdir
from launcher.diagnosis import attempt_cause
from launcher.driver import start_ticks, this_machine
from launcher.elastic import nodes_to_use
from launcher.errors import UsageError
from launcher.layout import code_archive, code_root, log_path, progress_path
from launcher.oom import oom_kills, oom_kills_since
from launcher.output import Shipper
from launcher.policy import Cause, Phase, Seen
from launcher.record import Record
from launcher.run import Run, failures
from launcher.snapshot import unpack
from launcher.spec import JobSpec, Resources

ECHO_S = 3.0
"""After a rank fails, its peers have this long to say what they saw; then they are killed."""
FOLLOW_S = 60.0
"""After a rank leaves in peace, its peers have this long to do so too (rank 0 may still be writing)."""
_MARK = "LAUNCHER_MARK"


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is to run on."""

    cpus: int
    gpus: tuple[str, ...]
    """As CUDA_VISIBLE_DEVICES names them."""


def this_host() -> Machine:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        devices = (path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
        gpus = tuple(sorted(devices, key=int))
    else:
        gpus = tuple(name for name in visible.split(",") if name)
    return Machine(cpus=len(os.sched_getaffinity(0)), gpus=gpus)


@dataclass
class _Children:
    """The ranks that this process started."""

    ranks: dict[int, shell.Process]
    killed_before: int | None = None
    """Processes that the out-of-memory killer had ended before these began."""
    first_exit: float | None = None
    ended_by_us: set[int] = field(default_factory=set)

    def kill(self) -> None:
        self.ended_by_us |= {rank for rank, child in self.ranks.items() if child.poll() is None}
        for child in self.ranks.values():
            child.kill_all()


class LocalBackend:
    """Runs attempts as children of this process; they die with it (PR_SET_PDEATHSIG, set by the worker)."""

    def __init__(self, machine: Machine | None = None, *, worker: tuple[str, ...] = WORKER) -> None:
        self._machine = machine or this_host()
        self._worker = worker
        self._children: dict[int, _Children] = {}
        self._shipper: Shipper | None = None

    def plan(self, run_dir: str, record: Record, spec: JobSpec, attempt: int) -> Plan:
        cpus = self._machine.cpus
        if asks_for_xla(spec):
            check_xla(spec)
            tasks, gpus, accelerator = spec.resources.tasks_per_node or 1, 0, "xla"
        else:
            tasks, gpus = _ranks_and_gpus(spec.resources, self._machine)
            accelerator = "gpu" if gpus else "cpu"
        nodes = nodes_to_use(spec, record.ranks, tasks, accelerator)
        threads = spec.resources.cpus_per_task or max(1, cpus // (nodes * tasks))
        env = {
            **spec.env.vars,
            **place_env(run_dir, attempt, nodes * tasks, tasks, accelerator, threads),
            "PYTHONPATH": os.pathsep.join(code_path(record, run_dir)),
            "MASTER_ADDR": "127.0.0.1",
            _MARK: _mark(run_dir, attempt),
        }
        ranks = []
        for rank in range(nodes * tasks):
            node, local_rank = divmod(rank, tasks)
            own_env = {"RANK": str(rank), "LOCAL_RANK": str(local_rank), "NODE_RANK": str(node)}
            if self._machine.gpus:
                own_env["CUDA_VISIBLE_DEVICES"] = ",".join(self._machine.gpus[node * gpus : (node + 1) * gpus])
            log = log_path(attempt, rank)
            ranks.append(RankPlan(rank=rank, node=node, local_rank=local_rank, env=own_env, log=log))
        return Plan(
            target=record.target,
            run_dir=run_dir,
            attempt=attempt,
            hosts=(socket.gethostname(),),
            workdir=workdir(record, run_dir),
            env=env,
            launch=(),
            argv=self._worker,
            accelerator=accelerator,
            archive=below(code_root(run_dir, record.code), code_archive(record.code)) if record.code else None,
            ranks=tuple(ranks),
        )

    def start(self, plan: Plan) -> Handle:
        if not is_local(plan.run_dir):
            own(here(plan.run_dir))
        if plan.archive:
            unpack(plan.archive)
        # The port is the one thing that cannot be planned: it has to be free now.
        shared = {"MASTER_PORT": str(_free_port()), "LAUNCHER_PARENT": str(os.getpid())}
        children = _Children({}, killed_before=oom_kills())
        self._children[plan.attempt] = children
        for rank in plan.ranks:
            env = {**os.environ, **plan.env, **rank.env, **shared}
            children.ranks[rank.rank] = self._spawn(plan.argv, env, plan.workdir, str(here(plan.run_dir) / rank.log))
        pids = {str(rank): [child.pid, child.started] for rank, child in children.ranks.items()}
        return {"machine": this_machine(), "pids": pids}

    def _spawn(self, argv: tuple[str, ...], env: Mapping[str, str], workdir: str, log: str) -> shell.Process:
        return shell.spawn(argv, env=env, cwd=Path(workdir), log=Path(log))

    def find(self, run_dir: str, attempt: int) -> Handle | None:
        found = ((pid, start_ticks(pid)) for pid in shell.find_processes(_MARK, _mark(run_dir, attempt)))
        living = [[pid, started] for pid, started in found if started is not None]
        pids = {str(index): one for index, one in enumerate(living)}
        return {"machine": this_machine(), "pids": pids} if pids else None

    def poll(self, run: Run, attempt: int, handle: Handle) -> Seen:
        children = self._children.get(attempt)
        if not is_local(run.storage.root):
            self._shipper = self._shipper or Shipper(run.storage, here(run.storage.root))
            self._shipper.ship()
        if children is None:
            return _poll_foreign(handle)
        codes = {rank: child.poll() for rank, child in children.ranks.items()}
        ended = {rank: code for rank, code in codes.items() if code is not None}
        if ended and children.first_exit is None:
            children.first_exit = time.monotonic()
        if len(ended) < len(codes):
            patience = ECHO_S if any(ended.values()) else FOLLOW_S
            if children.first_exit and time.monotonic() - children.first_exit > patience:
                children.kill()
            return Seen(Phase.RUNNING)
        children.kill()  # what the ranks may have left behind
        if self._shipper:
            self._shipper.ship(now=True)
        progress = run.read_json(progress_path(attempt)) or {}
        cause, reason = attempt_cause(
            ended,
            failures(run, attempt),
            ended_by_us=children.ended_by_us,
            left=progress.get("left"),
            oom_kills=oom_kills_since(children.killed_before),
        )
        return Seen(Phase.ENDED, cause, reason)

    def stop(self, handle: Handle) -> None:
        _send(handle, signal.SIGTERM)

    def kill(self, handle: Handle) -> None:
        self.close()
        _send(handle, signal.SIGKILL)

    def close(self) -> None:
        """End all that this process has started."""
        for children in self._children.values():
            if any(child.poll() is None for child in children.ranks.values()):  # else their pids may be others' by now
                children.kill()


def _poll_foreign(handle: Handle) -> Seen:
    """An attempt of a supervisor that is gone: its ranks were told by the kernel to die with it."""
    if _living(handle):
        return Seen(Phase.RUNNING)
    return Seen(Phase.ENDED, Cause.INFRA, "the launcher that had started it died")


def _living(handle: Handle) -> list[int]:
    """Pids of the ranks that still run here."""
    if handle["machine"] != this_machine():
        return []
    return [pid for pid, started in handle["pids"].values() if started is not None and start_ticks(pid) == started]


def _send(handle: Handle, number: signal.Signals) -> None:
    for pid in _living(handle):
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(pid, number)


def _ranks_and_gpus(resources: Resources, machine: Machine) -> tuple[int, int]:
    """Ranks a node and GPUs a node (0: CPU); one rank has one GPU.

    Raises:
        UsageError: more GPUs are asked for than this machine has, or fewer than ranks.
    """
    nodes, tasks, wanted = resources.most_nodes, resources.tasks_per_node, resources.gpus_per_node
    there = len(machine.gpus) // nodes
    if wanted is None:  # use what there is, if there is one for each rank
        wanted = there if tasks is None else tasks if tasks <= there else 0
    elif wanted > there:
        raise UsageError(
            f"resources.gpus_per_node: {wanted} on {nodes} node(s), but this machine has {len(machine.gpus)} GPU(s); "
            "lower it, or set it to 0 for the CPU"
        )
    tasks = tasks or wanted or 1
    if 0 < wanted < tasks:
        raise UsageError(
            f"resources: tasks_per_node is {tasks}, gpus_per_node {wanted}: every rank needs a GPU of its own"
        )
    return tasks, min(wanted, tasks)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _mark(run_dir: str, attempt: int) -> str:
    return f"{run_dir}#{attempt}"
