"""One machine of a cluster: namespaces (network, mounts, processes, hostname, System V), held by their pid 1."""

import shlex
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from slurm.cluster import cgroups, network, processes
from slurm.cluster.errors import ClusterError
from slurm.cluster.layout import Layout
from slurm.cluster.processes import until
from slurm.cluster.shell import output

_BOOT = Path(__file__).with_name("boot")
_CLEAN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "USER": "root", "LANG": "C.UTF-8"}
"""Daemons begin as they would at boot, whatever the environment of who starts the cluster."""


@dataclass(frozen=True)
class Machine:
    """What it is when it is on; most of its life is in the kernel."""

    layout: Layout
    name: str
    address: str = ""
    cgroup_version: int | None = None
    """None for a machine without control groups of its own."""
    shared: tuple[str, ...] = ()
    """Folders under /tmp that it sees."""

    @property
    def init(self) -> int | None:
        """Its pid 1, as this machine numbers it; None when it is off."""
        return next(filter(processes.is_init, processes.marked(self.layout.mark(self.name) + "\0")), None)

    def boot(self) -> None:
        """Switch it on; it is ready when this returns. One that is on is only plugged in again, if need be."""
        if self.init is not None and self._answers():
            network.set_link(self.layout, self.name, "up")
            return
        self.power_off()
        folders = [] if self.cgroup_version is None else cgroups.make(self.layout.cgroup, self.name)
        unshare = ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
        if folders:
            unshare.append("--cgroup")
        command = ["setsid", "--fork", *_joining(folders), *unshare, str(_BOOT), *self.shared]
        mark, _, value = self.layout.mark(self.name).partition("=")
        own = {"MACHINE": self.name, "ADDRESS": f"{self.address}/24", "FOLDER": str(self.layout.folder), mark: value}
        own["CGROUP_VERSION"] = str(self.cgroup_version or "")
        log = self.layout.log / f"boot.{self.name}.log"
        with (
            log.open("w") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=_CLEAN | own) as started,
        ):
            assert started.stdout
            until(lambda: self.init is not None, 10, f"{self.name} to boot (see {log})", every=0.01)
            cgroups.settle(folders)
            network.plug_in(self.layout, self.name, self._pid())
            if started.stdout.readline() != b"ready\n":
                raise ClusterError(f"{self.name} does not boot: {log.read_text().strip()}")

    def power_off(self) -> None:
        """As when the power fails: nobody on the network hears a goodbye. Does nothing when it is off."""
        self._silence()
        _end(self.layout.mark(self.name) + "\0")
        network.unplug(self.layout, self.name)

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command that runs this one on the machine. Raises ClusterError when the machine is off."""
        folders: list[Path] = []
        if self.cgroup_version is not None:
            folders = cgroups.home(cgroups.make(self.layout.cgroup, self.name))
        enter = ["nsenter", f"--target={self._pid()}", "--net", "--mount", "--uts", "--ipc", "--pid"]
        if folders:
            enter.append("--cgroup")
        return [*_joining(folders), *enter, "--", *command]

    def output(self, command: Sequence[str], seconds: float = 30) -> str:
        """What a program on the machine prints. Raises ClusterError as `shell.output` does."""
        return output(self.inside(command), seconds)

    def start(self, *command: str, seconds: float = 30) -> None:
        """Run a daemon's program on the machine, until it has gone to the background."""
        log = self.layout.log / f"{command[0]}.{self.name}.out"
        variables = {**_CLEAN, "SLURM_CONF": self.layout.slurm_conf}
        into = ["sh", "-c", f'exec "$@" < /dev/null > {shlex.quote(str(log))} 2>&1', "sh"]
        try:
            self.output(
                ["env", "-i", *(f"{key}={value}" for key, value in variables.items()), *into, *command], seconds
            )
        except ClusterError as error:
            said = log.read_text().strip()
            raise ClusterError(f"{command[0]} does not start on {self.name} (logs in {log.parent}): {said}") from error

    def daemon(self, program: str) -> list[int]:
        """Its processes, as this machine numbers them; empty when it does not run."""
        init = self.init
        if init is None:
            return []
        return [pid for pid in processes.in_pid_namespace_of(init) if processes.program(pid) == program[:15]]

    def _pid(self) -> int:
        if (init := self.init) is None:
            raise ClusterError(f"{self.name} is off; `scripts/slurm-cluster power-on {self.name}` switches it on")
        return init

    def _answers(self) -> bool:
        """It has booted to the end, and was not left half-way."""
        try:
            return f" {self.address}/" in self.output(["ip", "-oneline", "address", "show", "dev", "eth0"])
        except ClusterError:
            return False

    def _silence(self) -> None:
        with suppress(ClusterError):  # it has no cable: there is nothing that could be heard
            network.set_link(self.layout, self.name, "down")


def end_all(layout: Layout) -> None:
    """All processes of all machines of a cluster."""
    _end(layout.mark())


def _end(mark: str) -> None:
    holders = processes.marked(mark)
    inits = [pid for pid in holders if processes.is_init(pid)]
    processes.kill([*holders, *(pid for init in inits for pid in processes.in_pid_namespace_of(init))])


def _joining(folders: Sequence[Path]) -> list[str]:
    """The beginning of a command that puts itself into these control groups."""
    if not folders:
        return []
    return ["sh", "-c", "".join(f"echo $$ > {folder}/cgroup.procs; " for folder in folders) + 'exec "$@"', "sh"]
