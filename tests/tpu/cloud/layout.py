"""Every name, address and path of a cloud, so that two of them never meet."""

from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import ClassVar

from machines.lab import Lab, own_address

SERVER = "server"
"""What stands in the place of a machine's name in the mark of the process that is the API."""
FAKE = "a FAKE Cloud TPU, made for tests; nothing here is Google's"
ORDER = "/fake/"
"""Of the API's paths those below are a test's: the name of an order."""
PORT = 8080
"""Of the API, where the cloud has a network of its own."""


@dataclass(frozen=True)
class Layout(Lab):
    """Names and paths. `folder` is the cloud's own."""

    kind: ClassVar[str] = "tc"
    variable: ClassVar[str] = "TPU_CLOUD_MACHINE"

    @property
    def settings(self) -> Path:
        return self.folder / "settings.json"

    @property
    def requests(self) -> Path:
        """Every request of the API and its answer, one a line."""
        return self.folder / "requests.jsonl"

    @property
    def url(self) -> Path:
        """Holds the address of the API while it is up."""
        return self.folder / "url"

    @property
    def gcloud(self) -> Path:
        """An empty configuration of gcloud, and of google-auth, which looks there for credentials."""
        return self.folder / "gcloud"

    @property
    def disks(self) -> Path:
        return self.folder / "disks"

    def disk(self, machine: str) -> Path:
        return self.disks / machine

    @property
    def folders(self) -> tuple[Path, ...]:
        return (self.folder, self.log, self.gcloud, self.disks)


@dataclass(frozen=True)
class Addresses:
    """Of a cloud's hosts: each has an internal one, and may have an external one besides."""

    network: IPv4Network
    """The internal one."""

    @property
    def outside(self) -> IPv4Network:
        """Of the external addresses: the other half of what is set aside for tests, in step with the first."""
        return IPv4Network((int(self.network.network_address) + (1 << 16), self.network.prefixlen))

    @property
    def own(self) -> tuple[str, str]:
        """This machine's: hosts reach the API at the first, and whatever else listens there."""
        return own_address(self.network), own_address(self.outside)

    def of(self, number: int) -> tuple[str, str]:
        """Internal and external."""
        return str(self.network[number]), str(self.outside[number])
