"""OpenSSH to the hosts of a slice: one key of this user's, host keys pinned, one connection a host that is kept open.

Not by `gcloud ... ssh --worker=all`: it runs a command again when a connection drops, loses exit codes, and waits for a
dead host before it tells of the others.
"""

import hashlib
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from launcher import shell
from launcher.address import own
from launcher.driver import start_ticks
from launcher.errors import LauncherError

USER = "launcher"
HOME = f"/home/{USER}/.launcher"
"""On the hosts."""
TIMEOUT_S = 120.0
"""Of one command. A host that is silent is given up before, by ssh itself."""
_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "8",
    "ControlMaster": "auto",
    "ControlPersist": "120",
    "GlobalKnownHostsFile": "/dev/null",
    "IdentitiesOnly": "yes",
    "LogLevel": "ERROR",
    "PasswordAuthentication": "no",
    "ServerAliveCountMax": "2",
    "ServerAliveInterval": "5",
    "StrictHostKeyChecking": "yes",
    "UpdateHostKeys": "no",
}


class SshError(LauncherError):
    """A host does not answer, or does not let us in."""


class Key(NamedTuple):
    private: Path
    public: str
    """As `ssh-keys` in a node's metadata has it."""


def own_key() -> Key:
    """This user's key for hosts of Cloud TPU, made at its first use. It never leaves this machine.

    Raises:
        LauncherError: there is no OpenSSH.
    """
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    private = Path(base) / "launcher/ssh/id_ed25519"
    public = private.with_suffix(".pub")
    if not private.exists():
        private.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside = private.with_name(f"{private.name}.{os.getpid()}")
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", USER, "-f", str(beside)]
        try:
            done = shell.ask(command, env=os.environ, timeout_s=TIMEOUT_S)
        except FileNotFoundError:
            raise LauncherError("ssh-keygen is not on PATH: Cloud TPU needs OpenSSH's client here") from None
        if done.code:
            raise LauncherError(f"ssh-keygen: {done.stderr.strip()}")
        beside.with_suffix(f"{beside.suffix}.pub").replace(public)
        beside.replace(private)
    return Key(private, f"{USER}:{public.read_text().strip()}")


class Way(Protocol):
    """To the hosts of one slice. May be used from several threads."""

    look_s: float
    """How often a host may be looked at: of what it costs here."""

    def python(self, worker: int, argv: Sequence[str], given: str = "") -> Any:
        """Have a host's own Python do something, and return the JSON that it prints.

        Raises:
            SshError: the host does not answer, or what it runs fails.
        """

    def close(self) -> None:
        """End the connections that are kept open. What runs on the hosts does not notice."""


class Ssh:
    """OpenSSH as the way."""

    look_s = 1.5

    def __init__(self, name: str, addresses: Sequence[str], host_keys: Sequence[Sequence[tuple[str, str]]], key: Key):
        """
        Args:
            name: of the slice; another one is another set of machines, though addresses come again.
            host_keys: type and key of each host.
        """
        self._addresses, self._key = tuple(addresses), key
        # This process's own, and nowhere else: the path of a socket has at most 108 bytes.
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        self._folder = own(Path(tempfile.gettempdir()) / f"launcher-{os.getuid()}/ssh-{digest}-{os.getpid()}")
        for left in self._folder.parent.glob(f"ssh-{digest}-*"):  # by a process that was killed
            if start_ticks(int(left.name.rpartition("-")[2])) is None:
                shutil.rmtree(left, ignore_errors=True)
        self._known = self._folder / "known_hosts"
        lines = [
            f"{_alias(worker)} {type_} {public}\n" for worker, keys in enumerate(host_keys) for type_, public in keys
        ]
        self._known.write_text("".join(lines))

    def python(self, worker: int, argv: Sequence[str], given: str = "") -> Any:
        # One word for the shell of the other side.
        remote = shlex.join(["python3", *argv])
        done = shell.ask(self._command(worker, remote), env=os.environ, given=given, timeout_s=TIMEOUT_S)
        return answer_of(done, f"host {worker} ({self._addresses[worker]})")

    def close(self) -> None:
        for worker in range(len(self._addresses)):
            if (self._folder / str(worker)).exists():
                shell.ask([*self._command(worker, "")[:-1], "-O", "exit"], env=os.environ, timeout_s=TIMEOUT_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _command(self, worker: int, remote: str) -> list[str]:
        options = {
            **_OPTIONS,
            "ControlPath": str(self._folder / str(worker)),
            "HostKeyAlias": _alias(worker),
            "UserKnownHostsFile": str(self._known),
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        where = f"{USER}@{self._addresses[worker]}"
        return ["ssh", "-T", "-F", "none", "-i", str(self._key.private), *words, where, remote]


def answer_of(done: shell.Printed, host: str) -> Any:
    """The JSON that came back from a host. Raises SshError."""
    if done.code:
        said = " ".join(done.stderr.split()) or f"exit code {done.code}"
        raise SshError(f"{host}: {said}")
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise SshError(f"{host}: it said {done.stdout[:200]!r}") from None


def _alias(worker: int) -> str:
    return f"w{worker}"
