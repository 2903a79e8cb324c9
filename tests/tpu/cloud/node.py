"""A node: what it is, what it may be, how the API shows it, and what its hosts read of themselves."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tpu.cloud import metadata
from tpu.cloud.catalogue import RUNTIMES, Slice, accelerator_of, slice_of
from tpu.cloud.hosts import Vm
from tpu.cloud.operations import Operation
from tpu.cloud.status import ApiError, Json, invalid

_ID = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")


@dataclass
class Host:
    number: int
    """Of all in this cloud."""
    internal: str
    external: str
    """Its addresses. It has the second where the node asks for it."""
    up: bool = False
    attributes: dict[str, str] = field(default_factory=dict)
    """Guest attributes, as "hostkeys/ssh-ed25519"."""


@dataclass
class Node:
    name: str
    id: str
    given: Json
    """Of the body of the call that created it, what a user may set."""
    slice: Slice
    created: str
    hosts: list[Host]
    queued_resource: str = ""
    state: str = "CREATING"
    health: str = ""
    preempted: bool = False
    maintenance: str = "NONE"
    failed: ApiError | None = None
    """Why it never came to be."""
    operation: Operation | None = None
    """What is being done to it for a user."""
    when_up: Callable[[], None] | None = None
    """To be done when all its hosts are."""
    falls: int = 0
    """How often its power was taken away."""

    @property
    def short_name(self) -> str:
        return self.name.rpartition("/")[2]

    @property
    def project(self) -> str:
        return self.name.split("/")[1]

    @property
    def zone(self) -> str:
        return self.name.split("/")[3]

    @property
    def reserved(self) -> bool:
        return bool(self.given.get("schedulingConfig", {}).get("reserved"))

    @property
    def spot(self) -> bool:
        scheduling = self.given.get("schedulingConfig", {})
        return bool(scheduling.get("spot") or scheduling.get("preemptible"))

    @property
    def external(self) -> bool:
        return bool(self.given.get("networkConfig", {}).get("enableExternalIps"))

    @property
    def view(self) -> Json:
        """As the API shows it."""
        network = {"network": f"projects/{self.project}/global/networks/default", **self.given.get("networkConfig", {})}
        shown = {
            **self.given,
            "name": self.name,
            "acceleratorType": self.slice.type,
            "state": self.state,
            "health": self.health,
            "networkConfig": network,
            "networkEndpoints": self._endpoints() if self.state != "CREATING" else [],
            "createTime": self.created,
            "id": self.id,
            "apiVersion": "V2",
            "queuedResource": self.queued_resource,
        }
        if self.maintenance != "NONE":
            shown["upcomingMaintenance"] = {"type": "UNSCHEDULED", "maintenanceStatus": "PENDING"}
        return {key: value for key, value in shown.items() if value not in ("", [], {})}

    def _endpoints(self) -> list[Json]:
        return [
            {
                "ipAddress": host.internal,
                "port": 8470,
                "accessConfig": {"externalIp": host.external} if self.external else {},
            }
            for host in self.hosts
        ]

    def hostname(self, worker: int) -> str:
        return f"t1v-n-{self.id[:8]}-w-{worker}"

    def vm(self, worker: int) -> Vm:
        names = {self.hostname(each): host.internal for each, host in enumerate(self.hosts)}
        number = self.hosts[worker].number
        return Vm(number, self.hostname(worker), names, self.external, self.slice.chips_a_host)

    def metadata(self, worker: int, of_project: Json) -> Json:
        """All that a host's metadata server has."""
        name, addresses = self.hostname(worker), [host.internal for host in self.hosts]
        added = metadata.tpu_attributes(self.short_name, self.zone, self.project, self.slice.type, worker, addresses)
        account = self.given.get("serviceAccount", {}).get("email", f"{metadata.PROJECT_NUMBER}-compute@fake")
        return {
            "instance": {
                "attributes": {**self.given.get("metadata", {}), **added},
                "guest-attributes": _nested(self.hosts[worker].attributes),
                "hostname": f"{name}.{self.zone}.c.{self.project}.internal",
                "id": f"{self.id}{worker}",
                "maintenance-event": self.maintenance,
                "name": name,
                "network-interfaces": {"0": {"ip": addresses[worker]}},
                "preempted": "TRUE" if self.preempted else "FALSE",
                "scheduling": {"preemptible": "TRUE" if self.spot else "FALSE"},
                "service-accounts": {"default": {"email": account}},
                "tags": list(self.given.get("tags", [])),
                "zone": f"projects/{metadata.PROJECT_NUMBER}/zones/{self.zone}",
            },
            "project": {
                "attributes": of_project,
                "numeric-project-id": metadata.PROJECT_NUMBER,
                "project-id": self.project,
            },
        }

    def guest_attributes(self, worker: int, path: str) -> Json:
        """Those below a path, as "hostkeys/"."""
        items = [
            dict(zip(("namespace", "key", "value"), (*key.split("/", 1), value), strict=True))
            for key, value in self.hosts[worker].attributes.items()
            if key.startswith(path)
        ]
        return {"queryPath": path, "queryValue": {"items": items} if items else {}}


def slice_for(name: str, given: Json) -> Slice:
    """What a node of this name and body would be. Raises ApiError where it cannot be."""
    zone, short = name.split("/")[3], name.rpartition("/")[2]
    if not _ID.fullmatch(short):
        raise invalid("node_id", f"Invalid value '{short}': must match {_ID.pattern}")
    check_labels(given.get("labels", {}))
    if "networkConfig" in given and "networkConfigs" in given:
        raise invalid("node", "network_config and network_configs are mutually exclusive")
    if given.get("runtimeVersion") not in RUNTIMES:
        said = f'Runtime version "{given.get("runtimeVersion", "")}" is not available in zone "{zone}"'
        raise invalid("node.runtime_version", f"Cloud TPU received a bad request. {said}")
    if ("acceleratorType" in given) == ("acceleratorConfig" in given):
        raise invalid("node", "exactly one of accelerator_type and accelerator_config must be set")
    config = given.get("acceleratorConfig", {})
    accelerator = given.get("acceleratorType") or accelerator_of(config.get("type", ""), config.get("topology", ""))
    return slice_of(accelerator, zone)


def check_labels(labels: Mapping[str, str]) -> None:
    """Raises ApiError for one that cannot be."""
    for key, value in labels.items():
        if not _LABEL.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            raise invalid("node.labels", f"Invalid label {key}={value}")


def _nested(attributes: Mapping[str, str]) -> Json:
    tree: Json = {}
    for path, value in attributes.items():
        namespace, _, key = path.partition("/")
        tree.setdefault(namespace, {})[key] = value
    return tree
