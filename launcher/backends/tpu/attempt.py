"""One attempt on machines of its own, from the request for them until nothing is left of them.

Each look does what is next, and none waits: machines are asked for, a runner is started on each host, the ranks are
looked at. How the attempt has ended is written down before its machines are deleted, and it counts as over only when
they are gone: whoever drives the run next finds nothing that costs money, or a word that says what to delete.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.backends.tpu.api import Api
from launcher.backends.tpu.errors import Json, TpuError, Trouble
from launcher.backends.tpu.gcloud import Gcloud
from launcher.backends.tpu.hosts import LIBRARY, Host, Hosts
from launcher.backends.tpu.slices import Slice
from launcher.backends.tpu.ssh import HOME, Key, Ssh, Way
from launcher.backends.tpu.states import Stand, View
from launcher.diagnosis import attempt_cause
from launcher.layout import attempt_folder, progress_path
from launcher.policy import Cause, Phase, Seen
from launcher.run import Run, failures
from launcher.spec_tpu import Tpu

LOOK_S = 3.0
"""How often the API is asked."""
ECHO_S = 5.0
"""After a rank has failed, its peers have this long to say what they saw."""
FOLLOW_S = 60.0
"""After a rank has left in peace, its peers have this long to do so too."""
POWER_S = 45.0
"""From the notice of a preemption until nothing is expected of the machines any more (30 s for spot, and some)."""
SILENT_S = 60.0
"""A host that says nothing for so long, while the API does and no rank reports progress, is lost."""
BOOT_S = 300.0
"""The same for one that has not said anything yet."""
_USERS = (Trouble.DENIED, Trouble.DISABLED, Trouble.ZONE, Trouble.INVALID, Trouble.QUOTA, Trouble.RESERVATION)
"""To be mended by somebody."""

log = logging.getLogger(__name__)


class MachineAttempt:
    """An attempt as its driver carries it on."""

    def __init__(self, run: Run, number: int, api: Api, tpu: Tpu, key: Key) -> None:
        self._run, self._number, self._api, self._key = run, number, api, key
        self._tpu = tpu
        self._slice = Slice(api, run.storage, run.id, number, tpu)
        self._claim = self._slice.begin()
        self._hosts: Hosts | None = None
        self._view = View(Stand.UNCLEAR)
        self._due = 0.0
        self._stop = False
        self._preempted: float | None = None
        self._first_exit: float | None = None
        self._dark = ""
        """What the API said last, if that was not how the machines are."""
        self._told = ""

    def stop(self) -> None:
        self._stop = True

    def kill(self) -> None:
        self._end(Cause.INFRA, "killed by the launcher")

    def poll(self) -> Seen:
        try:
            if not self._claim.verdict:
                self._advance()
            if self._claim.verdict:
                return self._clear_away(self._claim.verdict)
        except TpuError as error:  # that says nothing about the attempt
            self._note(error)
            return Seen(Phase.UNKNOWN, reason=str(error))
        begun = self._hosts is not None and all(host.begun for host in self._hosts.all)
        self._tell(f"hosts: {self._hosts.summary()}" if self._hosts else self._view.reason)
        return Seen(Phase.RUNNING if begun else Phase.PENDING, reason=self._view.reason)

    def close(self) -> None:
        if self._hosts:
            self._hosts.close()
            self._hosts = None

    def _tell(self, what: str) -> None:
        """Once, as long as it stays so."""
        if what and what != self._told:
            log.info("attempt %d in %s: %s", self._number, self._claim.zone, what)
        self._told = what

    def _note(self, error: TpuError) -> None:
        if str(error) != self._dark:
            log.warning("%s", error)
        self._dark = str(error)
        self._due = time.monotonic() + LOOK_S

    # Machines

    def _advance(self) -> None:
        if time.monotonic() >= self._due:
            try:
                self._claim, self._view = self._slice.look(self._claim, self._key.public)
                self._dark = ""
            except TpuError as error:
                if self._hosts is None:
                    raise
                self._note(error)  # the hosts are there all the same
            self._due = time.monotonic() + LOOK_S
        view = self._view
        match view.stand:
            case Stand.READY if view.node:
                self._slice.renew(self._claim, view.node)
                self._with_hosts(view.node)
            case Stand.PREEMPTED:
                self._preempt(view)
            case Stand.FAILED:
                trouble = view.error.trouble if view.error else Trouble.QUOTA
                self._end(Cause.ERROR if trouble in _USERS else Cause.INFRA, view.reason)
            case Stand.LOST | Stand.ABSENT:
                self._end(Cause.INFRA, view.reason)
            case Stand.TAKEN:
                self._end(Cause.STOPPED, view.reason)
            case _ if self._hosts:
                self._hosts.tick(stop=self._stop)
            case Stand.WAITING if self._stop:
                self._end(Cause.STOPPED, "stopped before its machines came")

    def _preempt(self, view: View) -> None:
        """They may have some seconds left, in which the ranks save."""
        self._preempted = self._preempted or time.monotonic()
        if self._hosts and not view.over and time.monotonic() - self._preempted < POWER_S:
            self._hosts.tick(stop=True)
            if not all(host.over for host in self._hosts.all):
                return
        left = self._progress().get("left")
        self._end(Cause.PREEMPTED, f"{view.reason}; saved and left at {left}" if left else view.reason)

    def _clear_away(self, verdict: Mapping[str, Any]) -> Seen:
        self._tell("its machines are being deleted")
        self.close()
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + LOOK_S / 2
            if self._slice.gone(self._claim):
                return Seen(Phase.ENDED, Cause(verdict["cause"]), verdict["reason"], tuple(verdict["lost"]))
        return Seen(Phase.RUNNING, reason="its machines are being deleted")

    def _end(self, cause: Cause, reason: str) -> None:
        self._claim = self._slice.end(self._claim, cause, reason)
        self._due = 0.0

    # Hosts

    def _with_hosts(self, node: Json) -> None:
        self._hosts = self._hosts or self._enter(node)
        if self._hosts is None:
            if self._stop:
                self._end(Cause.STOPPED, "stopped before its ranks began")
            elif time.time() - self._claim.ready > BOOT_S:
                self._end(Cause.INFRA, f"its hosts have no host keys after {BOOT_S:.0f} s")
            return
        self._hosts.tick(stop=self._stop)
        if ended := self._judged(self._hosts):
            self._end(*ended)

    def _enter(self, node: Json) -> Hosts | None:
        """None: they are not up yet."""
        endpoints = node.get("networkEndpoints", [])
        plan = self._run.read_json(f"{attempt_folder(self._number)}/plan.json")
        hosts = max(rank["node"] for rank in plan["ranks"]) + 1
        if len(endpoints) != hosts:
            self._end(Cause.ERROR, f"{self._tpu.accelerator_type} has {len(endpoints)} hosts, not {hosts} as planned")
            return None
        if (way := self._way(node, [_address(one) for one in endpoints])) is None:
            return None
        orders = orders_of(plan, self._tpu, endpoints[0]["ipAddress"])
        return Hosts(way, self._run.storage, f"{HOME}/{attempt_folder(self._number)}", orders)

    def _way(self, node: Json, addresses: Sequence[str]) -> Way | None:
        if self._tpu.ssh != "openssh":
            return Gcloud(self._claim.name, self._claim.zone, self._tpu, self._key)
        keys = self._api.host_keys(self._claim.zone, self._claim.name)
        if len(keys) < len(addresses) or not all(keys):
            return None
        metadata = node.get("metadata", {})
        if self._key.public not in metadata.get("ssh-keys", ""):  # its driver was on another machine
            both = "\n".join(filter(None, (metadata.get("ssh-keys"), self._key.public)))
            self._api.change_node(self._claim.zone, self._claim.name, metadata={**metadata, "ssh-keys": both})
        return Ssh(f"{self._claim.zone}/{self._claim.name}", addresses, keys, self._key)

    def _judged(self, hosts: Hosts) -> tuple[Cause, str] | None:
        """How the attempt has ended, as far as hosts can tell; None while it has not."""
        now = time.monotonic()
        if failed := _first(hosts.all, "failed"):
            return self._failed(*failed)
        if dead := [number for number, one in enumerate(hosts.all) if one.over and one.phase != "ended"]:
            return Cause.INFRA, f"host {dead[0]} has lost what ran on it: it was started anew, or its runner was killed"
        codes, ranks = hosts.codes, sum(len(one.ranks) for one in hosts.all)
        if all(one.told for one in hosts.all):
            return self._cause(codes)
        if codes and self._first_exit is None:
            self._first_exit = now
        if self._first_exit and len(codes) < ranks:
            patience = ECHO_S if any(codes.values()) else FOLLOW_S
            if now - self._first_exit > patience:
                return self._cause(codes)
        begun = all(one.begun for one in hosts.all)
        silent = hosts.silent(SILENT_S if begun else BOOT_S)
        if silent and not self._dark and not self._moves():
            return Cause.INFRA, f"host {silent[0]} does not answer: {hosts.all[silent[0]].error or 'no word from it'}"
        return None

    def _failed(self, number: int, host: Host) -> tuple[Cause, str]:
        cause, said = Cause(host.state["cause"]), f"host {number}: {host.state['said']}"
        if cause == Cause.STOPPED and (host.state["notice"] or not self._stop):
            cause = Cause.PREEMPTED
        return cause, said

    def _cause(self, codes: Mapping[int, int]) -> tuple[Cause, str]:
        records = failures(self._run, self._number)
        return attempt_cause(codes, records, ended_by_us=(), left=self._progress().get("left"))

    def _progress(self) -> dict[str, Any]:
        return self._run.read_json(progress_path(self._number)) or {}

    def _moves(self) -> bool:
        """Whether rank 0 has reported in the meantime: then it is not the hosts that are silent."""
        return time.time() - float(self._progress().get("time", 0.0)) < SILENT_S / 2


def orders_of(plan: Mapping[str, Any], tpu: Tpu, main_address: str) -> list[dict[str, Any]]:
    """What each host's runner is told. Pure.

    Args:
        plan: as Plan.as_json gives it.
        main_address: of the first host, as the others see it.
    """
    hosts = max(rank["node"] for rank in plan["ranks"]) + 1
    common = {
        "library": LIBRARY,
        "setup": tpu.setup,
        "python": tpu.python,
        "packages": tpu.packages,
        "environment": plan["argv"][0].removesuffix("/bin/python"),
        "archive": plan["archive"],
        "workdir": plan["workdir"],
        "env": {**plan["env"], "MASTER_ADDR": main_address},
        "argv": plan["argv"],
    }
    return [{**common, "ranks": [one for one in plan["ranks"] if one["node"] == host]} for host in range(hosts)]


def _address(endpoint: Json) -> str:
    return str(endpoint.get("accessConfig", {}).get("externalIp") or endpoint["ipAddress"])


def _first(hosts: Sequence[Host], phase: str) -> tuple[int, Host] | None:
    return next(((number, one) for number, one in enumerate(hosts) if one.phase == phase), None)
