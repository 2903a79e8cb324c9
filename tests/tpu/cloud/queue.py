"""Queued resources: requests that wait until there is stock, and then own nodes."""

import copy
import re
from dataclasses import dataclass, field
from datetime import datetime

from tpu.cloud.market import Market
from tpu.cloud.node import Node
from tpu.cloud.nodes import Nodes
from tpu.cloud.operations import Operation, Operations
from tpu.cloud.settings import Settings
from tpu.cloud.status import ApiError, Json, exists, invalid, not_found
from tpu.cloud.timers import Timers

_ID = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_WITHOUT_FORCE = ("ACCEPTED", "WAITING_FOR_RESOURCES", "FAILED", "SUSPENDED")


@dataclass
class QueuedResource:
    name: str
    given: Json
    wanted: dict[str, Json]
    """Bodies of its nodes by their names."""
    created: str
    fails: ApiError | None
    """What is to come of it, if nothing else does."""
    state: str = "CREATING"
    initiator: str = "USER"
    failed: ApiError | None = None
    nodes: list[Node] = field(default_factory=list)

    @property
    def zone(self) -> str:
        return self.name.split("/")[3]

    @property
    def view(self) -> Json:
        data = {} if self.failed is None else {"error": self.failed.status}
        state: Json = {"state": self.state, "stateInitiator": self.initiator}
        if self.state != "WAITING_FOR_RESOURCES":
            state[f"{self.state.lower()}Data"] = data
        return {**self.given, "name": self.name, "createTime": self.created, "state": state}


class Queue:
    def __init__(
        self, settings: Settings, timers: Timers, operations: Operations, market: Market, nodes: Nodes
    ) -> None:
        self._settings = settings
        self._timers = timers
        self._operations = operations
        self._market = market
        self._nodes = nodes
        self._all: dict[str, QueuedResource] = {}
        self._requests: dict[str, Operation] = {}
        nodes.changed = self._node_changed

    # What a user does

    def get(self, name: str) -> QueuedResource:
        """Raises ApiError where there is none."""
        if name not in self._all:
            raise not_found(name)
        return self._all[name]

    def under(self, parent: str) -> list[QueuedResource]:
        """In the order of their names; for projects/P/locations/- those of all zones."""
        start = parent.removesuffix("-") if parent.endswith("/-") else f"{parent}/"
        return sorted((one for name, one in self._all.items() if name.startswith(start)), key=lambda one: one.name)

    def create(self, name: str, given: Json, request_id: str, fails: ApiError | None) -> Operation:
        """It is accepted, and waits. Called again with the same request id: the same operation."""
        if known := self._requests.get(request_id):
            return known
        if not _ID.fullmatch(name.rpartition("/")[2]):
            raise invalid("queued_resource_id", f"Invalid value '{name}': its last part must match {_ID.pattern}")
        if name in self._all:
            raise exists(name)
        wanted = _nodes_of(name, given)
        chips = sum(self._nodes.check(each, body).chips for each, body in wanted.items())
        resource = QueuedResource(name, given, wanted, self._timers.stamp(), fails)
        after, until = _times(given.get("queueingPolicy", {}), self._timers.now())
        reserved = any(body["schedulingConfig"].get("reserved") for body in wanted.values())
        self._market.hold(name, resource.zone, chips, reserved)
        self._all[name] = resource
        operation = self._operations.begin(name, "create")
        short = self._settings.operation_seconds
        self._timers.after(short, lambda: self._accept(resource, operation))
        self._timers.after(2 * short, lambda: self._move(resource, "ACCEPTED", "WAITING_FOR_RESOURCES"))
        waits = max(2 * short + self._settings.queue_seconds, after - self._timers.now())
        self._timers.after(waits, lambda: self._provision(resource))
        if until is not None:
            self._timers.after(until - self._timers.now(), lambda: self._expire(resource))
        if request_id:
            self._requests[request_id] = operation
        return operation

    def delete(self, name: str, force: bool, request_id: str) -> Operation:
        if known := self._requests.get(request_id):
            return known
        resource = self.get(name)
        if resource.state == "DELETING":
            raise ApiError("ABORTED", f"Resource '{name}' is being deleted")
        if not force and resource.state not in _WITHOUT_FORCE and any(map(self._there, resource.nodes)):
            raise ApiError(
                "FAILED_PRECONDITION",
                f"Queued resource '{name}' is in state {resource.state} and has nodes; delete them first, or use force",
            )
        operation = self._operations.begin(name, "delete")
        self._enter(resource, "DELETING", "USER")
        for node in resource.nodes:
            if self._there(node) and node.state != "DELETING":
                self._nodes.delete(node.name)

        def gone() -> None:
            if any(map(self._there, resource.nodes)):
                self._timers.after(0.05, gone)
                return
            del self._all[name]
            self._market.let_go(name)
            self._operations.succeed(operation)

        self._timers.after(self._settings.delete_seconds, gone)
        if request_id:
            self._requests[request_id] = operation
        return operation

    def retry(self) -> None:
        """There may be stock again."""
        for resource in list(self._all.values()):
            self._provision(resource)

    def force(self, resource: QueuedResource, state: str) -> None:
        """As a caller might one day find it. Its nodes go on as before."""
        resource.failed = ApiError("INTERNAL", "An internal error has occurred") if state == "FAILED" else None
        self._enter(resource, state, "SERVICE")

    # How it comes and goes

    def _accept(self, resource: QueuedResource, operation: Operation) -> None:
        self._move(resource, "CREATING", "ACCEPTED")
        self._operations.succeed(operation, "QueuedResource", resource.view)

    def _provision(self, resource: QueuedResource) -> None:
        """Now, or when `retry` comes: as soon as there is stock for all of it."""
        if resource.state != "WAITING_FOR_RESOURCES":
            return
        try:
            slices = [self._nodes.check(name, body) for name, body in resource.wanted.items()]
        except ApiError as error:  # somebody has made a node of that name meanwhile
            self._fail(resource, error)
            return
        if not all(self._market.in_stock(resource.zone, one) for one in slices):
            return
        self._enter(resource, "PROVISIONING", "SERVICE")
        for name, body in resource.wanted.items():
            node, _ = self._nodes.create(name, copy.deepcopy(body), resource.fails, resource.name)
            resource.nodes.append(node)

    def _node_changed(self, node: Node) -> None:
        resource = self._all.get(node.queued_resource)
        if resource is None or node not in resource.nodes:
            return
        if resource.state == "PROVISIONING" and node.failed:
            self._fail(resource, node.failed)
        elif resource.state == "PROVISIONING" and all(each.state == "READY" for each in resource.nodes):
            self._enter(resource, "ACTIVE", "SERVICE")
        elif resource.state in ("ACTIVE", "PROVISIONING") and node.state in ("PREEMPTED", "DELETING"):
            self._enter(resource, "SUSPENDING", "SERVICE" if node.state == "PREEMPTED" else "USER")
        if resource.state == "SUSPENDING" and not any(self._powered(each) for each in resource.nodes):
            self._enter(resource, "SUSPENDED", resource.initiator)

    def _there(self, node: Node) -> bool:
        """Not another of the same name."""
        return any(node is each for each in self._nodes.under(node.name.rpartition("/nodes/")[0]))

    def _powered(self, node: Node) -> bool:
        return self._there(node) and (node.state != "PREEMPTED" or any(host.up for host in node.hosts))

    def _expire(self, resource: QueuedResource) -> None:
        if resource.state in ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES"):
            self._fail(resource, ApiError("DEADLINE_EXCEEDED", "The 'valid until' time of the request has passed"))

    def _fail(self, resource: QueuedResource, error: ApiError) -> None:
        """Nodes of it that are there already go."""
        resource.failed = error
        self._enter(resource, "FAILED", "SERVICE")
        for node in resource.nodes:
            if self._there(node) and node.state != "DELETING":
                self._nodes.delete(node.name)

    def _move(self, resource: QueuedResource, before: str, after: str) -> None:
        if resource.state == before:
            self._enter(resource, after, "SERVICE")

    def _enter(self, resource: QueuedResource, state: str, initiator: str) -> None:
        resource.state, resource.initiator = state, initiator


def _nodes_of(name: str, given: Json) -> dict[str, Json]:
    """Bodies of the nodes that a request wants, by their names."""
    parent, _, short = name.partition("/queuedResources/")
    scheduling: Json = {"spot": True, "preemptible": True} if "spot" in given else {}
    if "reservationName" in given:
        scheduling["reserved"] = True
    wanted: dict[str, Json] = {}
    for number, spec in enumerate(given.get("tpu", {}).get("nodeSpec", [])):
        at = f"queued_resource.tpu.node_spec[{number}]"
        if spec.get("parent", "").split("/")[2:] != parent.split("/")[2:]:  # a project has a name and a number
            raise invalid(f"{at}.parent", f"Invalid value '{spec.get('parent', '')}': must be '{parent}'")
        if ("nodeId" in spec) == ("multisliceParams" in spec):
            raise invalid(at, "exactly one of node_id and multislice_params must be set")
        if "node" not in spec:
            raise invalid(f"{at}.node", "node must be set")
        several = spec.get("multisliceParams", {})
        prefix = several.get("nodeIdPrefix", short)
        ids = [f"{prefix}-{each}" for each in range(several.get("nodeCount", 0))] or [spec.get("nodeId", "")]
        for one in ids:
            own = {**spec["node"].get("schedulingConfig", {}), **scheduling}
            wanted[f"{parent}/nodes/{one}"] = {**spec["node"], "schedulingConfig": own}
    if not wanted:
        raise invalid("queued_resource.tpu.node_spec", "node_spec must be set")
    return wanted


def _times(policy: Json, now: float) -> tuple[float, float | None]:
    """From when on and until when it may be served, in seconds since 1970."""
    interval = policy.get("validInterval", {})
    after, until = now, None
    for given in (policy.get("validAfterTime"), interval.get("startTime")):
        after = max(after, _moment(given)) if given else after
    if given := policy.get("validAfterDuration"):
        after = max(after, now + _seconds(given))
    for given in (policy.get("validUntilTime"), interval.get("endTime")):
        until = _moment(given) if given else until
    if given := policy.get("validUntilDuration"):
        until = now + _seconds(given)
    return after, until


def _moment(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise invalid("queued_resource.queueing_policy", f"Invalid value '{text}': not a timestamp") from error


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?s", text):
        raise invalid("queued_resource.queueing_policy", f"Invalid value '{text}': not a duration, as \"3600s\"")
    return float(text[:-1])
