"""Every name, address and path of a cluster, so that two of them never meet."""

import re
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import ClassVar

from machines.lab import Lab, own_address

from slurm.cluster.errors import ClusterError

CONTROLLER = "ctl"

_FIRST_NODE = 11

_LONGEST_SOCKET = 107
"""Bytes of a Unix socket's path."""


@dataclass(frozen=True)
class Layout(Lab):
    """Names and paths. `folder` is the cluster's own."""

    kind: ClassVar[str] = "sc"
    variable: ClassVar[str] = "SLURM_CLUSTER_MACHINE"

    def __post_init__(self) -> None:
        super().__post_init__()
        if re.search(r"[\s#,=\[\]]", str(self.folder)):
            raise ClusterError(f"{self.folder} cannot stand in slurm.conf; take a --state without blanks and []#,=")
        if len(str(self.munge_socket)) > _LONGEST_SOCKET:
            raise ClusterError(f"{self.munge_socket} is too long for a socket; take a shorter --state")

    @property
    def etc(self) -> Path:
        return self.folder / "etc"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def work(self) -> Path:
        """For users: where the output of jobs goes that do not say so themselves."""
        return self.folder / "work"

    @property
    def spool(self) -> Path:
        return self.folder / "spool"

    @property
    def database(self) -> Path:
        return self.folder / "database"

    @property
    def settings(self) -> Path:
        return self.etc / "settings.json"

    @property
    def slurm_conf(self) -> Path:
        return self.etc / "slurm.conf"

    @property
    def munge_key(self) -> Path:
        return self.etc / "munge.key"

    @property
    def munge_socket(self) -> Path:
        return self.run / "munge.socket"

    @property
    def folders(self) -> tuple[Path, ...]:
        own = ("controller", "dev", "mnt")
        return (self.folder, self.etc, self.log, self.run, self.work, self.spool, *(self.folder / name for name in own))

    def gpu(self, number: int) -> Path:
        return self.folder / f"dev/nvidia{number}"

    @property
    def cgroup(self) -> str:
        return f"slurm-cluster-{self.name}"


@dataclass(frozen=True)
class Addresses:
    """A cluster's network: the controller, the login node (this machine) and the nodes."""

    network: IPv4Network
    login_name: str = "login"
    """This machine's own, by which Slurm, from 24.11 on, answers an srun."""

    @property
    def controller(self) -> str:
        return str(self.network[1])

    @property
    def login(self) -> str:
        return own_address(self.network)

    def node(self, name: str) -> str:
        return str(self.network[_FIRST_NODE + int(name.removeprefix("n")) - 1])

    def of(self, machine: str) -> str:
        return self.controller if machine == CONTROLLER else self.node(machine)
