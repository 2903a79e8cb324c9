"""What sbatch and srun are given. Pure.

Options of sbatch have the names of `submitit.SlurmExecutor.update_parameters`, which writes them into the batch script.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.backends.slurm.environment import setup_lines
from launcher.backends.slurm.job import LEAD_SHARE, expand_hosts
from launcher.spec import JobSpec, seconds
from launcher.spec_slurm import Slurm

_LEAKS = re.compile("SLURM_|SLURMD_|SBATCH_|SRUN_|SALLOC_|PMI|OMPI_")
_KEPT = {"SLURM_CONF"}


def clean(env: Mapping[str, str]) -> dict[str, str]:
    """Without what an allocation around the submitting shell, or the shell itself, would tell sbatch, srun and MPI.

    Variables such as SBATCH_TIMELIMIT and SLURM_NTASKS go before what a batch script says. SLURM_CONF, which names the
    cluster, stays.
    """
    return {name: value for name, value in env.items() if name in _KEPT or not _LEAKS.match(name)}


def lead_s(slurm: Slurm | None, time_s: float | None) -> float:
    """Seconds from the signal to the end of an allocation with this time limit (None: not known before it starts)."""
    wanted = seconds((slurm or Slurm()).signal_delay)
    return wanted if time_s is None else min(wanted, LEAD_SHARE * 60 * _minutes(time_s))


def lead_of(spec: JobSpec) -> float:
    """`lead_s` of a job spec."""
    return lead_s(spec.slurm, seconds(spec.resources.time) if spec.resources.time else None)


def tasks_per_node(spec: JobSpec) -> int:
    """Ranks on each node: without a number, one for each GPU that is asked for, or one."""
    return spec.resources.tasks_per_node or spec.resources.gpus_per_node or 1


def ranks_of(spec: JobSpec) -> int:
    """The world size that a run is created with."""
    return spec.resources.most_nodes * tasks_per_node(spec)


def avoided(spec: JobSpec, failed: Sequence[str], there: int) -> tuple[str, ...]:
    """Of the hosts that failed under a run, those that it can do without: Slurm would keep for ever a job that excludes
    what it asks for.

    Args:
        there: nodes of its partition.
    """
    slurm = spec.slurm or Slurm()
    named = {host for one in slurm.nodelist for host in expand_hosts(one)}
    hosts = tuple(host for host in failed if host not in named)
    return hosts if there - len(hosts) >= spec.resources.least_nodes else ()


def sbatch_options(
    spec: JobSpec, *, name: str, comment: str, exclude: Sequence[str] = (), after: str | None = None
) -> dict[str, Any]:
    """Options of the job whose batch process is the supervisor.

    Args:
        name: the job's: the run's id, or that of its sweep.
        comment: by which the job is found again.
        exclude: nodes to avoid, beside those of the spec.
        after: the job, or element of an array, whose end it waits for. That one has run, hence what the spec's own
            dependency asks for was met; asked again, Slurm would wait for ever for jobs that it has forgotten.
    """
    slurm, resources = spec.slurm or Slurm(), spec.resources
    time_s = seconds(resources.time) if resources.time else None
    additional = {key: value for key, value in slurm.additional_parameters.items() if value is not False}
    if slurm.reservation:
        additional["reservation"] = slurm.reservation
    tasks: dict[str, Any] = {"ntasks_per_node": tasks_per_node(spec), "cpus_per_task": resources.cpus_per_task}
    if resources.least_nodes < resources.most_nodes:
        # Slurm counts a job's tasks when it starts it, and a requeued job would wait for room for as many: it would
        # never shrink. Hence none are named, only the CPUs that they need on each node.
        cpus = tasks_per_node(spec) * (resources.cpus_per_task or 1)
        tasks, additional = {}, {"nodes": str(resources.nodes), "mincpus": cpus, **additional}
    options = {
        "job_name": name,
        "comment": comment,
        "nodes": resources.least_nodes,  # of a range, additional parameters have sbatch's own form
        **tasks,
        # Slurm adds up the GPUs of both options
        "gpus_per_node": None if _has_gpus(slurm.gres) else resources.gpus_per_node or None,
        "mem": resources.mem,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "exclude": ",".join(dict.fromkeys([*slurm.exclude, *exclude])) or None,
        "nodelist": ",".join(slurm.nodelist) or None,
        "gres": slurm.gres,
        "dependency": f"afterany:{after}" if after else slurm.dependency,
        "mail_type": slurm.mail_type,
        "mail_user": slurm.mail_user,
        "array_parallelism": slurm.array_parallelism,
        "setup": setup_lines(slurm) or None,
    }
    return {
        **{key: value for key, value in options.items() if value is not None},
        # submitit has values of its own for these two; None leaves it to the site
        "time": _minutes(time_s) if time_s else None,
        "wckey": None,
        "stderr_to_stdout": True,
        "use_srun": False,
        "additional_parameters": {
            **additional,
            "requeue": True,
            "open-mode": "append",
            "signal": f"USR2@{math.ceil(lead_s(slurm, time_s))}",  # submitit's is what SUBMITIT_PREEMPT_SIGNAL says
        },
    }


def srun(
    *,
    nodes: int,
    nodelist: Sequence[str] = (),
    tasks_per_node: int,
    cpus_per_task: int | None,
    gpus_per_node: int | None,
    log: str,
    name: str,
    extra: Sequence[str],
    argv: Sequence[str],
) -> tuple[str, ...]:
    """The command that starts all ranks of an attempt as one step of the job.

    Args:
        nodelist: which of the job's nodes; empty: all.
        cpus_per_task: srun no longer takes it from the job since Slurm 22.05; None leaves it to the site.
        log: where each rank's output is appended to, with srun's own patterns such as %5t.
        name: of the step.
        extra: options of the user's or of the container's. They go before what a site may want otherwise, not before
            what the launcher relies on.
        argv: what each rank is.
    """
    return (
        "srun",
        "--mpi=none",  # torch makes its own connections
        *extra,
        f"--job-name={name}",
        f"--nodes={nodes}",
        *([f"--nodelist={','.join(nodelist)}"] if nodelist else []),
        f"--ntasks={nodes * tasks_per_node}",
        f"--ntasks-per-node={tasks_per_node}",
        *([f"--cpus-per-task={cpus_per_task}"] if cpus_per_task else []),
        # a rank takes the GPU of its local rank among all of its node's, and NCCL reaches those of the others
        *([f"--gpus-per-node={gpus_per_node}", "--gpu-bind=none"] if gpus_per_node else []),
        "--distribution=block",  # rank = node rank x ranks a node + local rank
        "--kill-on-bad-exit=1",
        "--wait=0",  # who has left does not hurry those who still save
        f"--output={log}",
        "--open-mode=append",
        "--input=none",
        "--export=ALL",
        *argv,
    )


def _minutes(time_s: float) -> int:
    """As Slurm has them."""
    return math.ceil(time_s / 60)


def _has_gpus(gres: str | None) -> bool:
    return bool(re.search(r"(?:^|[,/])gpu\b", gres or ""))
