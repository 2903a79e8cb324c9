"""The gcloud CLI as the way to hosts that OpenSSH alone does not reach: OS Login, Identity-Aware Proxy.

One process a host, which takes seconds and a good part of a core: hosts are looked at less often. gcloud runs a command
again when a connection drops; those that come this way can be run twice.
"""

import os
import shlex
from collections.abc import Sequence
from typing import Any

from launcher import shell
from launcher.backends.tpu.ssh import HOME, TIMEOUT_S, USER, Key, SshError, answer_of
from launcher.spec_tpu import Tpu

_OWN_HOME = f'[ -w {HOME} ] || sudo -n install -d -o "$(id -u)" -g "$(id -g)" {HOME}'
"""With OS Login there is no user of our name, and whoever is let in has another home."""


class Gcloud:
    """`gcloud compute tpus tpu-vm ssh` as the way."""

    look_s = 15.0

    def __init__(self, name: str, zone: str, tpu: Tpu, key: Key) -> None:
        """
        Args:
            name: of the node.
            key: where OS Login is off, its public part is in the node's metadata, so that gcloud changes nothing there.
        """
        words = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", f"{USER}@{name}", f"--zone={zone}"]
        words += [f"--project={tpu.project}", f"--ssh-key-file={key.private}", "--quiet"]
        if tpu.ssh == "iap":
            words.insert(1, "alpha")  # others have no such flag
            words.append("--tunnel-through-iap")
        elif tpu.internal_ips:
            words.append("--internal-ip")
        self._words = words

    def python(self, worker: int, argv: Sequence[str], given: str = "") -> Any:
        remote = f"{_OWN_HOME} && exec {shlex.join(['python3', *argv])}"
        command = [*self._words, f"--worker={worker}", f"--command={remote}"]
        try:
            done = shell.ask(command, env=os.environ, given=given, timeout_s=TIMEOUT_S)
        except FileNotFoundError:
            raise SshError(
                "tpu.ssh: gcloud is not on PATH; install it: https://cloud.google.com/sdk/docs/install"
            ) from None
        return answer_of(done, f"host {worker}, by gcloud")

    def close(self) -> None:
        """Nothing is kept open."""
