"""What `launcher probe` learned about a cluster: what a spec is checked against, and what a backend may rely on."""

import re
from collections import Counter

from pydantic import Field

from launcher.spec_fields import Duration, Section


class Nodes(Section):
    """Those of a partition that are alike."""

    count: int
    cpus: int
    """Of each, as Slurm counts them."""
    memory_mb: int
    """Of each."""
    gres: dict[str, int] = Field(default_factory=dict)
    """GPUs of each: `gpu` is all of them, `gpu:TYPE` those of a type."""


class Partition(Section):
    """Some nodes, and what holds for jobs there."""

    default: bool = False
    """Jobs that name none come here."""
    max_time: Duration | None = None
    """The longest time limit of a job; None if there is none."""
    default_time: Duration | None = None
    """The time limit of a job that does not say; None if the partition does not say either."""
    max_nodes: int | None = None
    """Of one job; None if only their number limits it."""
    accounts: list[str] | None = None
    """Who may run here; None for all."""
    qos: list[str] | None = None
    """What may run here; None for all."""
    preempt_mode: str = "OFF"
    """What happens to jobs that make way, in Slurm's words: OFF, CANCEL, REQUEUE..."""
    grace_time_s: int = 0
    """Between a preemption's notice and its SIGTERM."""
    nodes: list[Nodes] = Field(default_factory=list)


class Facts(Section):
    """A cluster, as one of its users sees it."""

    probed: str
    """When this was learned: UTC, ISO 8601."""
    cluster: str
    """Slurm's ClusterName."""
    version: str
    """Of Slurm."""
    partitions: dict[str, Partition]
    accounting: bool
    """sacct answers."""
    accounts: list[str] | None = None
    """Those of this user; None where accounting does not tell."""
    qos: list[str] | None = None
    """Those that this user may ask for; None where accounting does not tell."""
    enforced: list[str] = Field(default_factory=list)
    """What of accounting's rules jobs are held to: AccountingStorageEnforce."""
    max_submit: int | None = None
    """How many jobs this user may have at a time, by the most generous of the accounts; None if no limit is known."""
    max_array_size: int
    """One more than the greatest index of an array's task."""
    job_requeue: bool
    """Jobs may be requeued unless they say otherwise."""
    kill_wait_s: int
    """From SIGTERM to SIGKILL."""
    user_signal: bool
    """Jobs that make way get the signal of their --signal; where not, SIGTERM alone."""
    compute_nodes_can_requeue: bool | None = None
    """scontrol reaches the controller from a node of a job; None if that was not tried."""

    @property
    def default_partition(self) -> str | None:
        return next((name for name, partition in self.partitions.items() if partition.default), None)


def gpus(gres: str) -> dict[str, int]:
    """GPUs in a list of generic resources, such as `gpu:a100:4(S:0-1),nvme:1`, in the form of `Nodes.gres`."""
    counted: Counter[str] = Counter()
    for one in re.sub(r"\([^)]*\)", "", gres).split(","):
        name, *rest = re.split("[:=]", re.sub("^gres[:/]", "", one.strip()))
        if name == "gpu":
            count = int(rest.pop()) if rest and rest[-1].isdecimal() else 1
            for key in ("gpu", *(f"gpu:{kind}" for kind in rest)):
                counted[key] += count
    return dict(counted)
