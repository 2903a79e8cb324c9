"""A node and its hosts, as a launcher uses them: created with a key, entered by ssh, host keys pinned."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tpu.cloud import Cloud, Refused

ZONE = "us-central2-b"
USER = "launcher"


def eventually(condition: Callable[[], object], awaited: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {awaited}"
        time.sleep(0.05)


class Slice:
    def __init__(self, cloud: Cloud, name: str, key: Path, accelerator: str = "v4-16", **metadata: str) -> None:
        """It is READY after this."""
        self.cloud = cloud
        self.name = name
        self._key = key
        self._known = key.with_name(f"known-{name}")
        public = key.with_suffix(".pub").read_text().strip()
        body = {
            "acceleratorType": accelerator,
            "runtimeVersion": "tpu-ubuntu2204-base",
            "schedulingConfig": {"spot": True},
            "networkConfig": {"enableExternalIps": True},
            "metadata": {"ssh-keys": f"{USER}:{public}", **metadata},
        }
        self.node = cloud.finish(cloud.call("POST", f"{ZONE}/nodes", body, nodeId=name))
        self._pin()

    def _pin(self) -> None:
        path = f"{ZONE}/nodes/{self.name}:getGuestAttributes"
        answers = self.cloud.call("POST", path, {"queryPath": "hostkeys/"})["guestAttributes"]
        items = [answer["queryValue"]["items"][0] for answer in answers]
        self._known.write_text("".join(f"w{n} {item['key']} {item['value']}\n" for n, item in enumerate(items)))

    def address(self, worker: int) -> str:
        found: str = self.node["networkEndpoints"][worker]["accessConfig"]["externalIp"]
        return found

    def command(self, worker: int, command: str, user: str = USER) -> list[str]:
        options = {"HostKeyAlias": f"w{worker}", "UserKnownHostsFile": self._known, "StrictHostKeyChecking": "yes"}
        options |= {"IdentitiesOnly": "yes", "BatchMode": "yes", "ConnectTimeout": "15", "LogLevel": "ERROR"}
        options |= {"ServerAliveInterval": "1", "ServerAliveCountMax": "2"}
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return ["ssh", "-T", "-F", "none", "-i", str(self._key), *words, f"{user}@{self.address(worker)}", command]

    def run(self, worker: int, command: str, user: str = USER) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(worker, command, user), capture_output=True, text=True, check=False, timeout=180
        )

    def ssh(self, worker: int, command: str, user: str = USER) -> str:
        """What it prints."""
        done = self.run(worker, command, user)
        assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr}"
        return done.stdout

    def root(self, worker: int, command: str) -> str:
        """The same by the back door."""
        inside = self.cloud.inside(self.name, worker, ["sh", "-c", command])
        return subprocess.run(inside, capture_output=True, text=True, check=True, timeout=180).stdout

    def metadata(self, worker: int, path: str, options: str = "") -> str:
        url = f"http://metadata.google.internal/computeMetadata/v1/{path}"
        ask = f"import urllib.request as u; r = u.Request({url!r}, headers={{'Metadata-Flavor': 'Google'}}{options})"
        return self.ssh(worker, f'python3 -c "{ask}; print(u.urlopen(r).read().decode(), end=str())"')

    @property
    def state(self) -> str:
        """Of the node; "gone" where there is none."""
        try:
            found: str = self.cloud.call("GET", f"{ZONE}/nodes/{self.name}")["state"]
        except Refused as error:
            if error.code != 404:
                raise
            return "gone"
        return found

    def delete(self) -> None:
        if self.state != "gone":
            self.cloud.finish(self.cloud.call("DELETE", f"{ZONE}/nodes/{self.name}"))

    def order(self, order: str, **given: Any) -> None:
        self.cloud.order(order, node=self.name, **given)
