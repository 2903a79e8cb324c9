"""The machines behind nodes, as the rest of the cloud sees them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from tpu.cloud.status import Json


@dataclass(frozen=True)
class Vm:
    """What is known of one before it boots."""

    number: int
    """Of all in this cloud: it has the addresses and the disk."""
    hostname: str
    names: Mapping[str, str]
    """Addresses of its node's hosts by their names."""
    external: bool
    """Whether it has an external address."""
    chips: int


class News(Protocol):
    """Hears of a host."""

    def up(self, attributes: Mapping[str, str]) -> None:
        """It has booted, with these guest attributes ("hostkeys/ssh-ed25519": ...)."""

    def wrote(self, attributes: Mapping[str, str]) -> None:
        """It has set these guest attributes."""

    def broken(self, reason: str) -> None:
        """It does not boot: this machine cannot do it."""


class Hosts(Protocol):
    """They are told what to do and do it in this order, host by host; nothing here waits for it."""

    def addresses(self, number: int) -> tuple[str, str]:
        """Internal and external."""

    def boot(self, vm: Vm, metadata: Callable[[], Json], news: News) -> None:
        """Switch it on. `metadata` is what its metadata server has at any time."""

    def shut_down(self, number: int) -> None:
        """The power button: what runs on it gets SIGTERM."""

    def power_off(self, number: int) -> None: ...

    def erase(self, number: int) -> None:
        """Off, and its disk is gone."""

    def cut(self, number: int) -> None:
        """It goes on and reaches nobody."""

    def restore(self, number: int) -> None: ...

    def metadata_changed(self, number: int, metadata: Json) -> None: ...


class NoHosts:
    """For tests of callers of the API: nothing is behind a node."""

    def addresses(self, number: int) -> tuple[str, str]:
        return f"198.18.0.{number}", f"198.19.0.{number}"

    def boot(self, vm: Vm, metadata: Callable[[], Json], news: News) -> None:
        news.up({"hostkeys/ssh-ed25519": f"AAAAC3NzaC1lZDI1NTE5AAAAI{vm.number:043d}"})

    def shut_down(self, number: int) -> None: ...

    def power_off(self, number: int) -> None: ...

    def erase(self, number: int) -> None: ...

    def cut(self, number: int) -> None: ...

    def restore(self, number: int) -> None: ...

    def metadata_changed(self, number: int, metadata: Json) -> None: ...
