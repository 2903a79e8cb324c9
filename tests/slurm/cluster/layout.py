"""Every name, address and path of a cluster, so that two of them never meet."""

import re
import zlib
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from slurm.cluster.errors import ClusterError

CONTROLLER = "ctl"

# Set aside for tests of networks (RFC 2544): no site and no other tool routes them.
_NETWORKS = tuple(IPv4Network("198.18.0.0/16").subnets(new_prefix=24))
_FIRST_NODE = 11
_LOGIN = 254

_LONGEST_SOCKET = 107
"""Bytes of a Unix socket's path."""


@dataclass(frozen=True)
class Layout:
    """Names and paths. `folder` is the cluster's own."""

    name: str
    folder: Path

    def __post_init__(self) -> None:
        # An interface's name has 15 characters, and "sc-", "-n200" belong to us.
        if not re.fullmatch(r"[a-z][a-z0-9]{0,6}", self.name):
            raise ClusterError(
                f"the cluster's name is {self.name!r}; take up to 7 lower-case letters and digits, a letter first"
            )
        if re.search(r"[\s#,=\[\]]", str(self.folder)):
            raise ClusterError(f"{self.folder} cannot stand in slurm.conf; take a --state without blanks and []#,=")
        if len(str(self.munge_socket)) > _LONGEST_SOCKET:
            raise ClusterError(f"{self.munge_socket} is too long for a socket; take a shorter --state")

    @property
    def etc(self) -> Path:
        return self.folder / "etc"

    @property
    def log(self) -> Path:
        return self.folder / "log"

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
    def bridge(self) -> str:
        return f"sc-{self.name}"

    def interface(self, machine: str) -> str:
        """The login node's end of a machine's cable."""
        return f"sc-{self.name}-{machine}"

    @property
    def cgroup(self) -> str:
        return f"slurm-cluster-{self.name}"

    def mark(self, machine: str = "") -> str:
        """Stands in the environment of the processes that hold a machine; without one, the beginning of all marks."""
        return f"SLURM_CLUSTER_MACHINE={self.folder}:{machine}"


@dataclass(frozen=True)
class Addresses:
    """A cluster's network: the controller, the login node (this machine) and the nodes."""

    network: IPv4Network

    @property
    def controller(self) -> str:
        return str(self.network[1])

    @property
    def login(self) -> str:
        return str(self.network[_LOGIN])

    def node(self, name: str) -> str:
        return str(self.network[_FIRST_NODE + int(name.removeprefix("n")) - 1])

    def of(self, machine: str) -> str:
        return self.controller if machine == CONTROLLER else self.node(machine)


def networks_for(name: str) -> tuple[IPv4Network, ...]:
    """All that a cluster may take, in the order in which it tries them: by its name, so that it is mostly the same."""
    first = zlib.crc32(name.encode()) % len(_NETWORKS)
    return _NETWORKS[first:] + _NETWORKS[:first]
