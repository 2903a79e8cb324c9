"""What can be chosen about a cluster, written down when it comes up."""

from dataclasses import dataclass
from typing import Literal

from machines.settings import Chosen

from slurm.cluster.errors import ClusterError

Proctrack = Literal["cgroup", "linuxproc"]

MAX_NODES = 200
"""What a /24 has room for beside the controller and the login node."""

LEAST_CRED_EXPIRE_S = 5
"""For less than this Slurm silently takes its default of 120."""


@dataclass(frozen=True)
class Settings(Chosen):
    """Sizes are what nodes advertise; the machine need not have them."""

    nodes: int = 4
    cpus: int = 4
    memory_mb: int = 16_000
    gpus: int = 0
    accounting: bool = True
    """slurmdbd with MariaDB. Without, sacct has nothing to ask."""
    proctrack: Proctrack = "cgroup"
    """How Slurm finds a job's processes. With "cgroup", as sites have it, the end of a batch shell is the end of all
    that it started, and memory is limited to what was asked for."""
    grace_seconds: int = 15
    """GraceTime of the partitions main, low and lowcancel."""
    kill_wait_seconds: int = 5
    """KillWait: from SIGTERM to SIGKILL. Slurm's default is 30."""
    cred_expire_seconds: int = 5
    """A requeued job may start again one second after this. Slurm's default is 120."""
    send_user_signal: bool = True
    """A preempted job gets the signal of its --signal. Without it (Slurm's default) it gets SIGTERM only."""
    requeue: bool = True
    """JobRequeue: what becomes of jobs that ask for neither --requeue nor --no-requeue."""
    shared: tuple[str, ...] = ()
    """Folders under /tmp that nodes see too; all else under /tmp is each node's own."""

    def __post_init__(self) -> None:
        least = {"nodes": 1, "cpus": 1, "memory_mb": self.cpus, "gpus": 0, "grace_seconds": 0, "kill_wait_seconds": 1}
        for name, number in {**least, "cred_expire_seconds": LEAST_CRED_EXPIRE_S}.items():
            if getattr(self, name) < number:
                raise ClusterError(f"{name} is {getattr(self, name)}; give {number} or more")
        if self.nodes > MAX_NODES:
            raise ClusterError(f"nodes is {self.nodes}; a cluster has at most {MAX_NODES}")
        for folder in self.shared:
            if not folder.startswith("/tmp/"):
                raise ClusterError(f"shared holds {folder}; only folders under /tmp need it, nodes see all others")

    @property
    def node_names(self) -> tuple[str, ...]:
        return tuple(f"n{number}" for number in range(1, self.nodes + 1))
