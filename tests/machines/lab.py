"""A set of machines by its name and folder, so that two of them never meet."""

import re
import zlib
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import ClassVar

from machines.errors import MachineError

# Set aside for tests of networks (RFC 2544): no site and no other tool routes them.
_NETWORKS = tuple(IPv4Network("198.18.0.0/16").subnets(new_prefix=24))


@dataclass(frozen=True)
class Lab:
    """Names and paths. `folder` is its own."""

    name: str
    folder: Path

    kind: ClassVar[str]
    """Two letters, which begin the names of its network interfaces."""
    variable: ClassVar[str]
    """In the environment of the processes that hold its machines."""

    def __post_init__(self) -> None:
        # An interface's name has 15 characters, and "sc-", "-n200" belong to us.
        if not re.fullmatch(r"[a-z][a-z0-9]{0,6}", self.name):
            raise MachineError(f"the name is {self.name!r}; take up to 7 lower-case letters and digits, a letter first")

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def bridge(self) -> str:
        return f"{self.kind}-{self.name}"

    def interface(self, machine: str) -> str:
        """This machine's end of a machine's cable."""
        return f"{self.bridge}-{machine}"

    def mark(self, machine: str = "") -> str:
        """Stands in the environment of the processes that hold a machine; without one, the beginning of all marks."""
        return f"{self.variable}={self.folder}:{machine}"


def networks_for(name: str) -> tuple[IPv4Network, ...]:
    """All that a lab may take, in the order in which it tries them: by its name, so that it is mostly the same."""
    first = zlib.crc32(name.encode()) % len(_NETWORKS)
    return _NETWORKS[first:] + _NETWORKS[:first]


def own_address(network: IPv4Network) -> str:
    """This machine's, on the bridge of a lab."""
    return str(network[254])
