"""Hosts as machines: namespaces with an sshd and a metadata server each."""

import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from machines import network
from machines.errors import MachineError
from machines.machine import Machine

from tpu.cloud import disk
from tpu.cloud.hosts import News, Vm
from tpu.cloud.layout import Addresses, Layout
from tpu.cloud.metadata import ADDRESS
from tpu.cloud.metadata_server import MetadataServer, Source
from tpu.cloud.status import Json

_BOOT = Path(__file__).with_name("boot")


class Namespaces:
    """Each host has a thread, which does what it is told in its order."""

    def __init__(
        self,
        layout: Layout,
        addresses: Addresses,
        shared: tuple[str, ...],
        changed: threading.Condition,
        token: Callable[[], str],
        token_seconds: float,
    ) -> None:
        self._layout = layout
        self._addresses = addresses
        self._shared = shared
        self._changed = changed
        self._token = token
        self._token_seconds = token_seconds
        self._threads: dict[int, ThreadPoolExecutor] = {}
        self._held: dict[int, int] = {}
        """Pid 1 of each that was booted, by os.pidfd_open: a number could be somebody else's by now."""
        self._metadata: dict[int, MetadataServer] = {}

    def addresses(self, number: int) -> tuple[str, str]:
        return self._addresses.of(number)

    def boot(self, vm: Vm, metadata: Callable[[], Json], news: News) -> None:
        self._later(vm.number, lambda: self._boot(vm, metadata, news))

    def shut_down(self, number: int) -> None:
        self._later(number, lambda: self._press(number))

    def power_off(self, number: int) -> None:
        self._later(number, lambda: self._power_off(number))

    def erase(self, number: int) -> None:
        self._later(number, lambda: self._erase(number))

    def cut(self, number: int) -> None:
        self._later(number, lambda: network.set_link(self._layout, _name(number), "down"))

    def restore(self, number: int) -> None:
        self._later(number, lambda: network.set_link(self._layout, _name(number), "up"))

    def metadata_changed(self, number: int, metadata: Json) -> None:
        self._later(number, lambda: self._follow(number, metadata))

    def _later(self, number: int, act: Callable[[], None]) -> None:
        def said() -> None:
            try:
                act()
            except Exception:
                print(f"{_name(number)}:", file=sys.stderr)
                traceback.print_exc()

        if number not in self._threads:
            self._threads[number] = ThreadPoolExecutor(1)
        self._threads[number].submit(said)

    def _boot(self, vm: Vm, metadata: Callable[[], Json], news: News) -> None:
        try:
            attributes = self._switch_on(vm, metadata, news)
        except (MachineError, OSError) as error:
            with self._changed:
                news.broken(str(error))
                self._changed.notify_all()
            raise
        with self._changed:
            news.up(attributes)
            self._changed.notify_all()

    def _switch_on(self, vm: Vm, metadata: Callable[[], Json], news: News) -> dict[str, str]:
        """Returns its first guest attributes. Raises MachineError, and OSError."""
        number = vm.number
        self._power_off(number)
        with self._changed:
            seen = metadata()
        key = disk.prepare(self._layout.disk(_name(number)), vm, seen)
        internal, external = self.addresses(number)
        variables = {
            "MACHINE": vm.hostname,
            "ADDRESSES": f"{internal}/24 {external}/24" if vm.external else f"{internal}/24",
            "METADATA": ADDRESS,
            "DISK": str(self._layout.disk(_name(number))),
            "CHIPS": str(vm.chips),
        }

        def entered(init: int) -> None:
            source = Source(metadata, self._changed, self._token, self._token_seconds, news.wrote)
            self._held[number] = os.pidfd_open(init)
            self._metadata[number] = MetadataServer(init, source)

        self._machine(number).switch_on([str(_BOOT), *self._shared], variables, entered=entered)
        return {"hostkeys/ssh-ed25519": key, "guest-agent/hostname": vm.hostname}

    def _press(self, number: int) -> None:
        if number in self._held:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._held[number], signal.SIGTERM)

    def _power_off(self, number: int) -> None:
        if number in self._metadata:
            self._metadata.pop(number).close()
        if number in self._held:
            self._machine(number).power_off(self._held[number])
            os.close(self._held.pop(number))

    def _erase(self, number: int) -> None:
        self._power_off(number)
        with suppress(FileNotFoundError):
            shutil.rmtree(self._layout.disk(_name(number)))

    def _follow(self, number: int, metadata: Json) -> None:
        if number in self._held:
            disk.follow(self._layout.disk(_name(number)), metadata)

    def _machine(self, number: int) -> Machine:
        return Machine(self._layout, _name(number))


def _name(number: int) -> str:
    """Of its machine, which nobody but this machine sees."""
    return f"v{number}"
