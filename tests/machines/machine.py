"""One machine of a lab: namespaces (network, mounts, processes, hostname, System V), held by their pid 1."""

import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from machines import network, processes
from machines.errors import MachineError
from machines.lab import Lab
from machines.shell import output

CLEAN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "USER": "root", "LANG": "C.UTF-8"}
"""Daemons begin as they would at boot, whatever the environment of who starts the machine."""


@dataclass(frozen=True)
class Machine:
    """What it is when it is on; most of its life is in the kernel."""

    lab: Lab
    name: str

    @property
    def namespaces(self) -> tuple[str, ...]:
        """As the options of unshare and nsenter name them."""
        return ("--net", "--mount", "--uts", "--ipc", "--pid")

    @property
    def init(self) -> int | None:
        """Its pid 1, as this machine numbers it; None when it is off."""
        return next(filter(processes.is_init, processes.marked(self.lab.mark(self.name) + "\0")), None)

    def switch_on(
        self,
        boot: Sequence[str],
        variables: Mapping[str, str],
        entering: Sequence[str] = (),
        entered: Callable[[int], None] = lambda init: None,
    ) -> int:
        """Have it run this as its pid 1, which is returned; it has booted then. It must be off.

        The program writes its pid as this machine numbers it, waits for eth0 and writes "ready"; it goes on for as long
        as the machine is on. `entering` is the beginning of a command that puts itself where the machine is to be;
        `entered` hears of its pid 1 before it is on the network.
        """
        unshare = ["setsid", "--fork", *entering, "unshare", *self.namespaces, "--fork", "--kill-child"]
        mark, _, value = self.lab.mark(self.name).partition("=")
        log = self.lab.log / f"boot.{self.name}.log"
        with (
            log.open("w") as errors,
            subprocess.Popen(
                [*unshare, *boot],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**CLEAN, **variables, mark: value},
            ) as started,
        ):
            assert started.stdout
            pid = started.stdout.readline()
            if pid:
                entered(int(pid))
                network.plug_in(self.lab, self.name, int(pid))
            if started.stdout.readline() != b"ready\n":
                raise MachineError(f"{self.name} does not boot: {log.read_text().strip()}")
        return int(pid)

    def power_off(self, held: int | None = None) -> None:
        """As when the power fails: nobody on the network hears a goodbye. Does nothing when it is off.

        `held` is its pid 1, by os.pidfd_open: with it all its processes end, and nobody has to search for them.
        """
        self._silence()
        if held is None:
            _end(self.lab.mark(self.name) + "\0")
        else:
            processes.kill_held(held)
        network.unplug(self.lab, self.name)

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command that runs this one on the machine. Raises MachineError when the machine is off."""
        if (init := self.init) is None:
            raise MachineError(f"{self.name} is off; `power-on {self.name}` switches it on")
        return ["nsenter", f"--target={init}", *self.namespaces, "--", *command]

    def output(self, command: Sequence[str], seconds: float = 30) -> str:
        """What a program on the machine prints. Raises MachineError as `shell.output` does."""
        return output(self.inside(command), seconds)

    def daemon(self, program: str) -> list[int]:
        """Its processes, as this machine numbers them; empty when it does not run."""
        init = self.init
        if init is None:
            return []
        return [pid for pid in processes.in_pid_namespace_of(init) if processes.program(pid) == program[:15]]

    def _silence(self) -> None:
        with suppress(MachineError):  # it has no cable: there is nothing that could be heard
            network.set_link(self.lab, self.name, "down")


def end_all(lab: Lab) -> None:
    """All processes of all machines of a lab."""
    _end(lab.mark())


def _end(mark: str) -> None:
    holders = processes.marked(mark)
    inits = [pid for pid in holders if processes.is_init(pid)]
    processes.kill([*holders, *(pid for init in inits for pid in processes.in_pid_namespace_of(init))])
