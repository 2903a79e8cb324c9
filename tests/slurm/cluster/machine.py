"""One machine of a cluster: it may have a part of the control groups, and runs daemons."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from machines import machine, network

from slurm.cluster import cgroups
from slurm.cluster.errors import ClusterError
from slurm.cluster.layout import Layout

_BOOT = Path(__file__).with_name("boot")


@dataclass(frozen=True)
class Machine(machine.Machine):
    """Any of them, the controller included."""

    lab: Layout
    address: str = ""
    cgroup_version: int | None = None
    """None for a machine without control groups of its own."""
    shared: tuple[str, ...] = ()
    """Folders under /tmp that it sees."""

    @property
    def namespaces(self) -> tuple[str, ...]:
        own = () if self.cgroup_version is None else ("--cgroup",)
        return (*super().namespaces, *own)

    def boot(self) -> None:
        """Switch it on; it is ready when this returns. One that is on is only plugged in again, if need be."""
        if self.init is not None and self._answers():
            network.set_link(self.lab, self.name, "up")
            return
        self.power_off()
        folders = self._control_groups()
        own = {"MACHINE": self.name, "ADDRESS": f"{self.address}/24", "FOLDER": str(self.lab.folder)}
        own["CGROUP_VERSION"] = str(self.cgroup_version or "")
        self.switch_on([str(_BOOT), *self.shared], own, _joining(folders), lambda init: cgroups.settle(folders))

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command that runs this one on the machine. Raises ClusterError when the machine is off."""
        entered = super().inside(command)
        return [*_joining(cgroups.home(self._control_groups())), *entered]

    def start(self, *command: str, seconds: float = 30) -> None:
        """Run a daemon's program on the machine, until it has gone to the background."""
        log = self.lab.log / f"{command[0]}.{self.name}.out"
        variables = {**machine.CLEAN, "SLURM_CONF": self.lab.slurm_conf}
        into = ["sh", "-c", f'exec "$@" < /dev/null > {shlex.quote(str(log))} 2>&1', "sh"]
        try:
            self.output(
                ["env", "-i", *(f"{key}={value}" for key, value in variables.items()), *into, *command], seconds
            )
        except ClusterError as error:
            said = log.read_text().strip()
            raise ClusterError(f"{command[0]} does not start on {self.name} (logs in {log.parent}): {said}") from error

    def _control_groups(self) -> list[Path]:
        """Its folders of them, made where they are missing."""
        return [] if self.cgroup_version is None else cgroups.make(self.lab.cgroup, self.name)

    def _answers(self) -> bool:
        """It has booted to the end, and was not left half-way."""
        try:
            return f" {self.address}/" in self.output(["ip", "-oneline", "address", "show", "dev", "eth0"])
        except ClusterError:
            return False


def _joining(folders: Sequence[Path]) -> list[str]:
    """The beginning of a command that puts itself into these control groups."""
    if not folders:
        return []
    return ["sh", "-c", "".join(f"echo $$ > {folder}/cgroup.procs; " for folder in folders) + 'exec "$@"', "sh"]
