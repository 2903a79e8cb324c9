"""Ranks on Cloud TPU VMs that are made for the attempt. The supervisor stands outside of them."""

import hashlib
import json
import os
from typing import Any

from launcher.accelerator import asks_for_xla, check_xla
from launcher.address import below, is_local, scratch, storage_at
from launcher.backend import Handle, Plan, RankPlan
from launcher.backends.ranks import place_env
from launcher.backends.tpu.api import Api
from launcher.backends.tpu.attempt import MachineAttempt
from launcher.backends.tpu.claims import claim_path
from launcher.backends.tpu.hosts import HOME, LIBRARY, SCRATCH
from launcher.backends.tpu.machines import chips_a_host, hosts_of
from launcher.backends.tpu.slices import check_zones
from launcher.backends.tpu.ssh import own_key
from launcher.elastic import check_size
from launcher.errors import UsageError
from launcher.layout import code_archive, code_folder, code_root, log_path, spec_path
from launcher.policy import Seen
from launcher.record import Record
from launcher.run import Run
from launcher.snapshot import import_path
from launcher.spec import JobSpec
from launcher.spec_tpu import Tpu

PORT = 29500
"""Where rank 0 listens. Nobody else is on its machine; libtpu has 8470 to 8480."""
WORKER = ("-m", "launcher.node.worker")


class TpuBackend:
    """Runs each attempt on machines of its own, which are gone when it has ended."""

    def __init__(self, endpoint: str | None = None, *, worker: tuple[str, ...] = WORKER) -> None:
        """
        Args:
            endpoint: of the API; see Api.
            worker: arguments of the hosts' Python that make it a rank.
        """
        self._endpoint, self._worker = endpoint, worker
        self._attempts: dict[int, MachineAttempt] = {}

    def plan(self, run_dir: str, record: Record, spec: JobSpec, attempt: int) -> Plan:
        tpu = _complete(spec.tpu)
        if is_local(run_dir):
            raise UsageError(
                f"the run directory would be {run_dir}: on Cloud TPU it is on an object store, which all hosts see; "
                "choose one with --runs-root gs://BUCKET/FOLDER or LAUNCHER_RUNS"
            )
        if not spec.code.snapshot:
            raise UsageError(
                "code.snapshot: false: hosts of Cloud TPU do not see the code on this machine; leave it on"
            )
        if spec.resources.gpus_per_node:
            raise UsageError("resources.gpus_per_node: hosts of Cloud TPU have none; leave it out")
        assert tpu.accelerator_type
        hosts, tasks = hosts_of(tpu.accelerator_type), spec.resources.tasks_per_node or 1
        accelerator, variables = "cpu", dict(spec.env.vars)
        if asks_for_xla(spec):
            check_xla(spec)
            accelerator = "xla"
            if variables.setdefault("PJRT_DEVICE", "TPU") == "TPU":  # else the hosts' CPUs
                tasks = chips_a_host(tpu.accelerator_type)
        check_size(spec, record.ranks, hosts * tasks, accelerator)
        threads = spec.resources.cpus_per_task
        home = str(scratch(run_dir, SCRATCH))
        code = record.code
        snapshot = f"{scratch(code_root(run_dir, code), SCRATCH)}/{code_folder(code)}" if code else ""
        env = {
            **variables,
            **place_env(run_dir, attempt, hosts * tasks, tasks, accelerator, threads or 1),
            # Without a snapshot it is only looked at what would be executed, on this machine.
            "PYTHONPATH": os.pathsep.join([*(import_path(code, snapshot) if code else record.import_path), LIBRARY]),
            "LAUNCHER_SCRATCH": str(SCRATCH),
            "MASTER_PORT": str(PORT),
        }
        if threads is None:  # a host's cores are its ranks' own
            del env["OMP_NUM_THREADS"]
        if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):  # else the same address would be another place there
            env["STORAGE_EMULATOR_HOST"] = emulator
        ranks = []
        for rank in range(hosts * tasks):
            node, local = divmod(rank, tasks)
            own = {"RANK": str(rank), "LOCAL_RANK": str(local), "NODE_RANK": str(node)}
            ranks.append(RankPlan(rank=rank, node=node, local_rank=local, env=own, log=log_path(attempt, rank)))
        return Plan(
            target=record.target,
            run_dir=run_dir,
            attempt=attempt,
            hosts=(),
            workdir=record.workdir
            if code is None
            else f"{snapshot}/{code.workdir}"
            if code.workdir is not None
            else home,
            env=env,
            launch=(),
            argv=(python_of(tpu), *self._worker),
            accelerator=accelerator,
            archive=below(code_root(run_dir, code), code_archive(code)) if code else None,
            ranks=tuple(ranks),
        )

    def check(self, spec: JobSpec) -> None:
        """Before a run is created: credentials, project, zones, types.

        Raises:
            UsageError: in words of the spec.
            TpuError: credentials or permissions are lacking, or the API does not answer.
        """
        tpu = _complete(spec.tpu)
        check_zones(self._api(tpu), tpu)
        own_key()

    def start(self, plan: Plan) -> Handle:
        run = Run(storage_at(plan.run_dir))
        self._open(run, plan.attempt)
        return _handle(plan.attempt)

    def find(self, run_dir: str, attempt: int) -> Handle | None:
        """One that is written down whole is carried on: to ask for its machines twice is to ask once."""
        folder, _, name = spec_path(attempt).rpartition("/")
        return _handle(attempt) if name in storage_at(run_dir).list(folder) else None

    def poll(self, run: Run, attempt: int, handle: Handle) -> Seen:
        return self._open(run, attempt).poll()

    def stop(self, handle: Handle) -> None:
        if one := self._attempts.get(handle["attempt"]):
            one.stop()

    def kill(self, handle: Handle) -> None:
        if one := self._attempts.get(handle["attempt"]):
            one.kill()

    def _open(self, run: Run, attempt: int) -> MachineAttempt:
        if attempt not in self._attempts:
            spec = JobSpec.model_validate(run.read_json(spec_path(attempt)))
            tpu = _complete(spec.tpu)
            self._attempts[attempt] = MachineAttempt(run, attempt, self._api(tpu, patience_s=0.0), tpu, own_key())
        return self._attempts[attempt]

    def _api(self, tpu: Tpu, patience_s: float | None = None) -> Api:
        assert tpu.project
        return Api(tpu.project, self._endpoint, patience_s=patience_s)


def python_of(tpu: Tpu) -> str:
    """What runs the ranks on a host. Pure."""
    if not tpu.packages:
        return tpu.python
    wanted: list[Any] = [tpu.python, tpu.packages, tpu.setup]
    return f"{HOME}/environments/{hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:12]}/bin/python"


def _complete(tpu: Tpu | None) -> Tpu:
    """Raises UsageError when something is missing without which nothing can be asked for."""
    tpu = tpu or Tpu()
    missing = [key for key in ("accelerator_type", "zone", "project") if not getattr(tpu, key)]
    if missing:
        named = ", ".join(f"tpu.{key}" for key in missing)
        raise UsageError(f"{named}: required on Cloud TPU, but missing; a target may give it for all runs")
    return tpu


def _handle(attempt: int) -> Handle:
    return {"attempt": attempt, "slice": claim_path(attempt)}
