"""All nodes: how their states change, and what becomes of their hosts."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tpu.cloud.catalogue import Slice
from tpu.cloud.hosts import Hosts
from tpu.cloud.market import Market
from tpu.cloud.node import Host, Node, check_labels, slice_for
from tpu.cloud.operations import Operation, Operations
from tpu.cloud.schema import states
from tpu.cloud.settings import Settings
from tpu.cloud.status import ApiError, Json, exists, invalid, not_found
from tpu.cloud.timers import Timers

_STATES = frozenset(states("Node"))
_MASK = {"description", "tags", "labels", "metadata", "network_config.enable_external_ips"}
MOST_HOSTS = 250
"""What a /24 has room for."""


@dataclass(frozen=True)
class _News:
    """What is to be done when a host is heard of."""

    node: Node
    host: Host
    remove: Callable[[Node, ApiError], None]

    def up(self, attributes: Mapping[str, str]) -> None:
        self.host.up = True
        self.host.attributes |= attributes
        if all(one.up for one in self.node.hosts) and (then := self.node.when_up):
            self.node.when_up = None
            then()

    def wrote(self, attributes: Mapping[str, str]) -> None:
        self.host.attributes |= attributes

    def broken(self, reason: str) -> None:
        self.remove(self.node, ApiError("INTERNAL", f"the fake cannot boot a host of {self.node.name}: {reason}"))


class Nodes:
    def __init__(
        self, settings: Settings, timers: Timers, operations: Operations, market: Market, hosts: Hosts
    ) -> None:
        self._settings = settings
        self._timers = timers
        self._operations = operations
        self._market = market
        self._hosts = hosts
        self._all: dict[str, Node] = {}
        self._last_number = 0
        self.project_attributes: Json = {}
        """Metadata of the project, as "ssh-keys"."""
        self.changed: Callable[[Node], None] = lambda node: None
        """Hears of each change of state."""

    # What a user does

    def get(self, name: str) -> Node:
        """Raises ApiError where there is none."""
        if name not in self._all:
            raise not_found(name)
        return self._all[name]

    def under(self, parent: str) -> list[Node]:
        """In the order of their names; for projects/P/locations/- those of all zones."""
        start = parent.removesuffix("-") if parent.endswith("/-") else f"{parent}/"
        return sorted((node for name, node in self._all.items() if name.startswith(start)), key=lambda node: node.name)

    def check(self, name: str, given: Json) -> Slice:
        """What the node would be. Raises ApiError where it cannot be."""
        wanted = slice_for(name, given)
        if name in self._all:
            raise exists(name)
        return wanted

    def create(
        self, name: str, given: Json, fails: ApiError | None, queued_resource: str = ""
    ) -> tuple[Node, Operation]:
        """It is being created; `fails` is what is to come of that, if nothing else does. Raises ApiError where it
        cannot be begun."""
        wanted = self.check(name, given)
        hosts = [Host(number, *self._hosts.addresses(number)) for number in self._free_numbers(wanted.hosts)]
        number = str(secrets.randbelow(9 * 10**18) + 10**18)
        node = Node(name, number, given, wanted, self._timers.stamp(), hosts, queued_resource)
        if not queued_resource:
            self._market.hold(name, node.zone, wanted.chips, node.reserved)
        self._all[name] = node
        node.operation = self._operations.begin(name, "create")
        self._timers.after(self._settings.create_seconds, lambda: self._provision(node, fails))
        return node, node.operation

    def delete(self, name: str) -> Operation:
        node = self.get(name)
        if node.state == "DELETING":
            raise ApiError("ABORTED", f"Resource '{name}' is being deleted")
        operation = self._operations.begin(name, "delete")
        self._enter(node, "DELETING")
        self._abandon(node)
        for host in node.hosts:
            self._hosts.shut_down(host.number)

        def gone() -> None:
            self._remove(node)
            self._operations.succeed(operation)

        self._timers.after(self._settings.delete_seconds, gone)
        return operation

    def patch(self, name: str, mask: str, given: Json) -> Operation:
        node = self.get(name)
        self._refuse_while(node, "update", "PREEMPTED", "TERMINATED", "DELETING")
        wanted = [path for path in mask.split(",") if path]
        if not wanted or not set(wanted) <= _MASK:
            raise invalid("update_mask", f"Invalid update mask '{mask}': supported are {', '.join(sorted(_MASK))}")
        check_labels(given.get("labels", {}))
        for path in wanted:
            if path == "network_config.enable_external_ips":
                network = node.given.get("networkConfig", {})
                node.given["networkConfig"] = {**network, **given.get("networkConfig", {})}
            else:
                node.given.pop(path, None)
                node.given |= {path: given[path]} if path in given else {}
        self.metadata_changed(node)
        return self._later_done(node, "update")

    def stop(self, name: str) -> Operation:
        node = self.get(name)
        self._refuse_while(node, "stop", *(_STATES - {"READY"}))
        self._refuse_slices(node, "stop")
        self._shut_down(node, "STOPPING", lambda: self._settled(node, "STOPPED"))
        node.operation = self._operations.begin(name, "stop")
        return node.operation

    def start(self, name: str) -> Operation:
        node = self.get(name)
        self._refuse_while(node, "start", *(_STATES - {"STOPPED"}))
        self._refuse_slices(node, "start")
        node.operation = operation = self._operations.begin(name, "start")
        self._enter(node, "STARTING")
        self._boot(node)
        return operation

    def guest_attributes(self, name: str, workers: list[str], path: str) -> Json:
        """Of these workers, or of all; below a path, as "hostkeys/"."""
        node = self.get(name)
        known = [str(worker) for worker in range(len(node.hosts))]
        wanted = [worker for worker in workers if worker] or known  # gcloud asks for [""]
        for worker in wanted:
            if worker not in known:
                raise invalid("worker_ids", f"Invalid worker id {worker}")
        return {"guestAttributes": [node.guest_attributes(int(worker), path) for worker in wanted]}

    # What befalls it

    def preempt(self, node: Node, grace: float, vanish: bool) -> None:
        """The notice, SIGTERM, and after `grace` seconds no power; none of a notice where that is 0.

        With `vanish` nothing is left of the node but what a queued resource says. One that is being deleted just goes.
        """
        if node.state == "DELETING":
            return
        node.preempted = grace > 0
        self.metadata_changed(node)

        def off() -> None:
            if vanish:
                self._remove(node)
            else:
                self._enter(node, "PREEMPTED")

        if self._settings.preempted_at_notice or not grace or node.state == "CREATING":
            self._enter(node, "PREEMPTED")
        self._power_down(node, grace, off)

    def maintain(self, node: Node, warning: float) -> None:
        """The event is announced, and after so many seconds all hosts are rebooted."""
        node.maintenance = "TERMINATE_ON_HOST_MAINTENANCE"
        self.metadata_changed(node)

        def begin() -> None:
            if self._there(node) and node.state == "READY":
                node.health = "UNHEALTHY_MAINTENANCE"
                self._shut_down(node, "REPAIRING", lambda: self._boot(node))

        self._timers.after(warning, begin)

    def lose_host(self, node: Node, worker: int) -> None:
        """Its power fails, and nobody says so: the node stays READY."""
        node.hosts[worker].up = False
        self._hosts.power_off(node.hosts[worker].number)

    def boot_host(self, node: Node, worker: int) -> None:
        self._boot_one(node, worker)

    def cut_host(self, node: Node, worker: int) -> None:
        self._hosts.cut(node.hosts[worker].number)

    def restore_host(self, node: Node, worker: int) -> None:
        self._hosts.restore(node.hosts[worker].number)

    def force(self, node: Node, state: str, health: str) -> None:
        """As a caller might one day find it. Its hosts go on as before."""
        node.health = health or node.health
        self._enter(node, state)

    def metadata_changed(self, node: Node) -> None:
        for worker, host in enumerate(node.hosts):
            self._hosts.metadata_changed(host.number, node.metadata(worker, self.project_attributes))

    # How it comes and goes

    def _provision(self, node: Node, fails: ApiError | None) -> None:
        if node.state != "CREATING":
            return
        error = self._market.reservation_error(node.queued_resource or node.name) if node.reserved else None
        error = error or fails
        if error is None and not self._market.in_stock(node.zone, node.slice):
            error = self._market.sold_out_error(node.zone)
        if error:
            self._remove(node, error)
        else:
            self._boot(node)

    def _boot(self, node: Node) -> None:
        """All hosts; then it is READY, unless something else has begun meanwhile."""
        node.when_up = lambda: self._settled(node, "READY", "HEALTHY")
        for worker in range(len(node.hosts)):
            self._boot_one(node, worker)

    def _boot_one(self, node: Node, worker: int) -> None:
        self._hosts.boot(
            node.vm(worker),
            lambda: node.metadata(worker, self.project_attributes),
            _News(node, node.hosts[worker], self._remove),
        )

    def _settled(self, node: Node, state: str, health: str = "") -> None:
        node.health, node.maintenance = health, "NONE"
        self._enter(node, state)
        if node.operation:
            self._operations.succeed(node.operation, "Node", node.view)
            node.operation = None

    def _abandon(self, node: Node) -> None:
        """What was being done to it: something else comes between."""
        node.when_up = None
        if node.operation:
            self._operations.fail(node.operation, _not_while(node.operation.metadata["verb"], node.state))
            node.operation = None

    def _shut_down(self, node: Node, state: str, then: Callable[[], None]) -> None:
        self._enter(node, state)
        self._power_down(node, self._settings.grace_seconds, then)

    def _power_down(self, node: Node, grace: float, then: Callable[[], None]) -> None:
        """The power button, the power, then this; but for a node that is deleted, or goes down anew, meanwhile."""
        self._abandon(node)
        node.falls += 1
        fall = node.falls
        if grace:
            for host in node.hosts:
                self._hosts.shut_down(host.number)

        def off() -> None:
            if self._there(node) and node.state != "DELETING" and node.falls == fall:
                for host in node.hosts:
                    host.up = False
                    self._hosts.power_off(host.number)
                then()

        self._timers.after(grace, off)

    def _remove(self, node: Node, error: ApiError | None = None) -> None:
        """With the error that its creation came to. Does nothing twice: its hosts' numbers may be another's by then."""
        if not self._there(node):
            return
        if node.operation and error:
            self._operations.fail(node.operation, error)
        node.failed = error
        for host in node.hosts:
            host.up = False
            self._hosts.erase(host.number)
        del self._all[node.name]
        self._market.let_go(node.name)
        self.changed(node)

    def _there(self, node: Node) -> bool:
        """Not another of the same name."""
        return self._all.get(node.name) is node

    def _enter(self, node: Node, state: str) -> None:
        node.state = state
        self.changed(node)

    def _later_done(self, node: Node, verb: str) -> Operation:
        operation = self._operations.begin(node.name, verb)
        self._timers.after(
            self._settings.operation_seconds, lambda: self._operations.succeed(operation, "Node", node.view)
        )
        return operation

    def _free_numbers(self, count: int) -> list[int]:
        """Those that were free for longest: an address that comes back at once hides mistakes."""
        taken = {host.number for node in self._all.values() for host in node.hosts}
        after_last = [(self._last_number + step) % MOST_HOSTS + 1 for step in range(MOST_HOSTS)]
        free = [number for number in after_last if number not in taken][:count]
        if len(free) < count:
            raise ApiError("INTERNAL", f"this fake has room for {MOST_HOSTS} hosts, not for {count} more")
        self._last_number = free[-1]
        return free

    def _refuse_while(self, node: Node, verb: str, *states: str) -> None:
        if node.state in states:
            raise _not_while(verb, node.state)

    def _refuse_slices(self, node: Node, verb: str) -> None:
        if node.slice.hosts > 1:
            said = f"Cloud TPU received a bad request. {verb} is not supported for nodes of several hosts"
            raise ApiError("FAILED_PRECONDITION", said)


def _not_while(verb: str, state: str) -> ApiError:
    return ApiError(
        "INVALID_ARGUMENT",
        f"Cloud TPU received a bad request. {verb} is not supported while in state {state} [EID: 0x73013519f5b7feb2]",
    )
