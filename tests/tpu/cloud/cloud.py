"""A cloud from outside: up, down, orders, and what a user of it needs."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from machines import network, processes
from machines.errors import MachineError as CloudError
from machines.locks import folder_of_its_own
from machines.machine import Machine, end_all
from machines.processes import until
from machines.shell import output

from tpu.cloud import packages
from tpu.cloud.client import Client, Json, Refused
from tpu.cloud.layout import ORDER, SERVER, Addresses, Layout
from tpu.cloud.settings import Settings

_TESTS = Path(__file__).parents[2]


def state_folder() -> Path:
    """Of all clouds, unless told otherwise."""
    own = Path("/var/lib") if os.geteuid() == 0 else Path.home() / ".local/state"
    return Path(os.environ.get("TPU_CLOUD_STATE", own / "tpu-cloud"))


class Cloud(Client):
    """A cloud by its name, be it up or not. Whatever fails raises CloudError; an answer that is an error is Refused."""

    def __init__(self, name: str, state: Path | None = None) -> None:
        self.layout = Layout(name, ((state or state_folder()) / name).resolve())
        super().__init__(lambda: self.url, lambda: self.settings.project)

    # Up and down

    def up(self, settings: Settings | None = None, lap: Callable[[str], None] = lambda part: None) -> None:
        """Bring up what is missing of it; `lap` hears of each part that is there. Without settings: those that it had
        the last time, else the defaults. Raises CloudError when it is up with others.
        """
        with folder_of_its_own(self.layout.folder):
            wanted = self._settings_for(settings)
            if wanted.hosts == "namespaces":
                packages.NEEDED.install()
                lap("packages")
            for folder in self.layout.folders:
                folder.mkdir(exist_ok=True)
            self.layout.settings.write_text(wanted.to_json())
            if wanted.hosts == "namespaces":
                self._make_network()
                lap("network")
            if not self._servers():
                self._start()
            lap("API")

    def down(self, wipe: bool = False) -> None:
        """All nodes end with it, and it forgets them. Its folder stays, with what was requested; with `wipe`, not that
        either. It need not be up, nor whole."""
        with folder_of_its_own(self.layout.folder):
            # The server first: it would go on switching machines on.
            processes.kill(self._servers())
            end_all(self.layout)
            if shutil.which("ip"):
                network.remove(self.layout)
            self.layout.url.unlink(missing_ok=True)
            shutil.rmtree(self.layout.folder if wipe else self.layout.disks, ignore_errors=not wipe)

    @property
    def settings(self) -> Settings:
        """Those that it came up with."""
        if not self.layout.settings.exists():
            raise CloudError(f"there is no cloud in {self.layout.folder}; `scripts/tpu-cloud up` makes one")
        return Settings.from_json(self.layout.settings.read_text())

    # Its users

    @property
    def url(self) -> str:
        """Of the API: to be used where clients have https://tpu.googleapis.com."""
        if not self.layout.url.exists():
            raise CloudError(f"cloud {self.layout.name!r} is down; `scripts/tpu-cloud up` brings it up")
        return self.layout.url.read_text()

    @property
    def address(self) -> str:
        """This machine's, as hosts see it: where a server has to listen that they are to reach."""
        return Addresses(self._network()).own[0]

    @property
    def env(self) -> Mapping[str, str]:
        """To be added to the environment of a subprocess that is to use this cloud: gcloud, or google-auth, which takes
        this machine for one of Google's that has a service account."""
        server = self.url.removeprefix("http://")
        return {
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": f"{self.url}/compute/v1/",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU": f"{self.url}/",
            "CLOUDSDK_CONFIG": str(self.layout.gcloud),
            "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
            "CLOUDSDK_CORE_PROJECT": self.settings.project,
            "GCE_METADATA_HOST": server,
            "GCE_METADATA_IP": server,
            "GCE_METADATA_ROOT": server,
            "GOOGLE_CLOUD_PROJECT": self.settings.project,
        }

    # Tests of its users

    def order(self, order: str, **given: Any) -> Json:
        """What `World` does under this name, as order("preempt", node="mine", grace=3). Raises CloudError."""
        try:
            return self.send("POST", f"{ORDER}{order}", given)
        except Refused as error:
            raise CloudError(error.message) from None

    def requests(self) -> list[Json]:
        """Every request of the API so far, with its answer: time, verb, path, query, method (its id, as
        "nodes.create", empty for what is no call), body, status, answer. An answer that was lost has no status."""
        if not self.layout.requests.exists():
            return []
        lines = self.layout.requests.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]  # the last may be half written

    def status(self) -> Json:
        return self.order("status")

    def inside(self, node: str, worker: int, command: Sequence[str]) -> list[str]:
        """The command that runs this one on a host, as root. Raises CloudError where the host is not on."""
        for host in self.status()["hosts"]:
            if (host["node"], host["worker"]) == (node, worker):
                return Machine(self.layout, host["machine"]).inside(command)
        raise CloudError(f"there is no host {worker} of a node {node!r}; `scripts/tpu-cloud status` shows all")

    # How it comes up

    def _settings_for(self, wanted: Settings | None) -> Settings:
        if not self.layout.settings.exists():
            return wanted or Settings()
        if wanted is None:
            return self.settings
        if self._servers() and (differences := self.settings.differences(wanted)):
            raise CloudError(
                f"cloud {self.layout.name!r} is up with other settings ({', '.join(differences)}); "
                "take it down first, or another --name"
            )
        return wanted

    def _make_network(self) -> None:
        outside = Addresses(network.make_bridge(self.layout)).own[1]
        bridge = network.bridge_of(self.layout)
        if bridge and outside not in [address.get("local") for address in bridge["addr_info"]]:
            output(["ip", "address", "add", f"{outside}/24", "dev", self.layout.bridge])

    def _network(self) -> Any:
        if (found := network.network_of(self.layout)) is None:
            raise CloudError(f"cloud {self.layout.name!r} has no network; `up` with --hosts namespaces gives it one")
        return found

    def _servers(self) -> list[int]:
        return processes.marked(self.layout.mark(SERVER) + "\0")

    def _start(self) -> None:
        self.layout.url.unlink(missing_ok=True)
        self._token = ""  # it knows none of its predecessor's
        mark, _, value = self.layout.mark(SERVER).partition("=")
        command = ["setsid", "--fork", sys.executable, "-m", "tpu.cloud.server", str(self.layout.folder)]
        log = self.layout.log / "server.log"
        with log.open("ab") as said:
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                cwd="/",
                env={**os.environ, "PYTHONPATH": str(_TESTS), "PYTHONDONTWRITEBYTECODE": "1", mark: value},
                check=True,
            )
        until(self._answers, 30, f"the API to answer (see {log})")

    def _answers(self) -> bool:
        with suppress(CloudError, OSError), urllib.request.urlopen(self.url, timeout=5):
            return True
        return False
