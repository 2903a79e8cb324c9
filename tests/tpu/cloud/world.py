"""All of the cloud but its edges: the API, and what tests do to it. Nothing here waits; time is what it is told."""

from collections.abc import Callable, Mapping
from typing import Any

from tpu.cloud import catalogue, schema
from tpu.cloud.api import Api
from tpu.cloud.gate import Fault, Gate, How
from tpu.cloud.hosts import Hosts
from tpu.cloud.market import Market
from tpu.cloud.node import Node
from tpu.cloud.nodes import Nodes
from tpu.cloud.operations import Operations
from tpu.cloud.queue import Queue
from tpu.cloud.settings import Settings
from tpu.cloud.status import CODES, ApiError, Json
from tpu.cloud.timers import Timers


class ConnectionLost(Exception):
    """The caller gets no answer."""


class World:
    def __init__(self, settings: Settings, hosts: Hosts, now: Callable[[], float]) -> None:
        self.settings = settings
        self.timers = Timers(now)
        self.gate = Gate(self.timers, settings.project, settings.token_seconds, settings.rate_per_minute)
        self._market = Market(settings.quota_chips, settings.reserved_chips)
        operations = Operations(self.timers)
        self.nodes = Nodes(settings, self.timers, operations, self._market, hosts)
        self._queue = Queue(settings, self.timers, operations, self._market, self.nodes)
        self._api = Api(operations, self.nodes, self._queue)

    def call(self, verb: str, path: str, query: Mapping[str, str], body: object, authorization: str | None) -> Json:
        """What a call of the API answers. Raises ApiError, and ConnectionLost."""
        self.gate.check_token(authorization)
        call = schema.call(verb, path, query, body)
        self.gate.check(call)
        fault = self.gate.fault(call)
        if fault is None:
            return self._api.answer(call)
        if fault.how == "refuse":
            raise fault.error
        if fault.how == "fail":
            return self._api.answer(call, fault.error)
        if fault.how == "lose-answer":
            self._api.answer(call)
        raise ConnectionLost

    # What a test does to it

    def preempt(self, node: str, grace: float | None = None, vanish: bool = False) -> None:
        """With it go all nodes of its queued resource."""
        grace = self.settings.grace_seconds if grace is None else grace
        one = self._node(node)
        for each in self._siblings(one):
            self.nodes.preempt(each, grace, vanish)

    def maintain(self, node: str, warning: float = 0.0) -> None:
        self.nodes.maintain(self._node(node), warning)

    def lose_host(self, node: str, worker: int) -> None:
        self.nodes.lose_host(*self._host(node, worker))

    def boot_host(self, node: str, worker: int) -> None:
        self.nodes.boot_host(*self._host(node, worker))

    def cut_host(self, node: str, worker: int) -> None:
        self.nodes.cut_host(*self._host(node, worker))

    def restore_host(self, node: str, worker: int) -> None:
        self.nodes.restore_host(*self._host(node, worker))

    def sell_out(self, what: str) -> None:
        """A zone, or a type in one: "us-central2-b/v4-32"."""
        zone, _, accelerator = what.partition("/")
        if zone not in catalogue.ZONES or (accelerator and accelerator not in catalogue.accelerators(zone)):
            raise LookupError(f"no zone, nor type in one, is named {what!r}; zones are {', '.join(catalogue.ZONES)}")
        self._market.sold_out.add(what)

    def restock(self, what: str = "") -> None:
        """What was sold out; without a word, all."""
        self._market.sold_out = self._market.sold_out - {what} if what else set()
        self._queue.retry()

    def quota(self, chips: int) -> None:
        self._market.quota_chips = chips

    def rate(self, per_minute: int) -> None:
        self.gate.rate_per_minute = per_minute

    def deny(self, permission: str) -> None:
        """As "tpu.nodes.create"."""
        self.gate.denied.add(permission)

    def allow(self, permission: str = "") -> None:
        """What was denied; without a word, all."""
        self.gate.denied = self.gate.denied - {permission} if permission else set()

    def expire_tokens(self) -> None:
        self.gate.expire_tokens()

    def inject(
        self,
        on: str,
        how: How = "refuse",
        code: str = "UNAVAILABLE",
        message: str = "The service is currently unavailable.",
        details: list[Json] | None = None,
        times: int = 1,
    ) -> None:
        """A fault for the next calls of a method, as "nodes.create"; "*" is any."""
        known = ["*", *(method.id for method in schema.methods())]
        if on not in known or code not in CODES:
            raise LookupError(f"there is no method {on!r} (of {', '.join(known)}), or no code {code!r}")
        self.gate.faults.append(Fault(on, how, ApiError(code, message, details or ()), times))

    def force(self, resource: str, becomes: str, health: str = "") -> None:
        """The state of a queued resource or a node, whatever that means for it."""
        queued = [one for one in self._queue.under(self._everywhere) if resource in (one.name, one.name.split("/")[-1])]
        known = schema.states("QueuedResourceState" if queued else "Node")
        if becomes not in known:
            raise LookupError(f"there is no state {becomes!r}; there are {', '.join(known)}")
        for one in queued:
            self._queue.force(one, becomes)
        if not queued:
            self.nodes.force(self._node(resource), becomes, health)

    def status(self) -> Json:
        """All there is in the project, as the API shows it."""
        nodes = self.nodes.under(self._everywhere)
        return {
            "nodes": [node.view for node in nodes],
            "queuedResources": [one.view for one in self._queue.under(self._everywhere)],
            "hosts": [
                {"node": node.short_name, "worker": worker, "machine": f"v{host.number}", "up": host.up}
                for node in nodes
                for worker, host in enumerate(node.hosts)
            ],
        }

    @property
    def _everywhere(self) -> str:
        return f"projects/{self.settings.project}/locations/-"

    def _node(self, name: str) -> Node:
        """By its whole name, or the last part of it. Raises LookupError where there is none."""
        nodes = self.nodes.under(self._everywhere)
        for node in nodes:
            if name in (node.name, node.short_name):
                return node
        raise LookupError(f"no node {name!r}; there are {', '.join(node.short_name for node in nodes) or 'none'}")

    def _host(self, name: str, worker: int) -> tuple[Node, int]:
        node = self._node(name)
        if not 0 <= worker < len(node.hosts):
            raise LookupError(f"no worker {worker}; {name} has 0 to {len(node.hosts) - 1}")
        return node, worker

    def _siblings(self, node: Node) -> list[Node]:
        if not node.queued_resource:
            return [node]
        return [one for one in self.nodes.under(self._everywhere) if one.queued_resource == node.queued_resource]


ORDERS: Mapping[str, Callable[..., Any]] = {
    order.__name__: order
    for order in (
        *(World.preempt, World.maintain, World.lose_host, World.boot_host, World.cut_host, World.restore_host),
        *(World.sell_out, World.restock, World.quota, World.rate, World.deny, World.allow, World.expire_tokens),
        *(World.inject, World.force, World.status),
    )
}
"""What a test may ask for by name."""
