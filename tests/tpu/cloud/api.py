"""Calls, once they are known to be well-formed and allowed, and what they answer."""

from tpu.cloud import catalogue, filters
from tpu.cloud.nodes import Nodes
from tpu.cloud.operations import Operations
from tpu.cloud.queue import Queue
from tpu.cloud.schema import Call
from tpu.cloud.status import ApiError, Json, not_found


class Api:
    def __init__(self, operations: Operations, nodes: Nodes, queue: Queue) -> None:
        self._operations = operations
        self._nodes = nodes
        self._queue = queue

    def answer(self, call: Call, fails: ApiError | None = None) -> Json:
        """`fails` is what is to come of what the call begins. Raises ApiError where the call comes to that."""
        resource, _, verb = call.method.id.rpartition(".")
        match resource:
            case "nodes":
                return self._of_node(verb, call, fails)
            case "queuedResources":
                return self._of_queued_resource(verb, call, fails)
            case "operations":
                return self._of_operation(verb, call)
            case "acceleratorTypes" | "runtimeVersions":
                return self._of_catalogue(resource, verb, call)
            case "" if verb in ("get", "list"):
                return self._of_locations(verb, call)
        raise ApiError("UNIMPLEMENTED", f"this fake does not do {call.method.id}")

    def _of_node(self, verb: str, call: Call, fails: ApiError | None) -> Json:
        name = f"{call.parent}/nodes/{call.name}"
        match verb:
            case "list":
                entries = [node.view for node in self._nodes.under(call.parent)]
                return filters.page(entries, call.query, "nodes")
            case "create":
                short = call.query.get("nodeId", "")
                return self._nodes.create(f"{call.parent}/nodes/{short}", _settable(call.body), fails)[1].view
            case "get":
                return self._nodes.get(name).view
            case "delete":
                return self._nodes.delete(name).view
            case "patch":
                return self._nodes.patch(name, call.query.get("updateMask", ""), call.body).view
            case "stop":
                return self._nodes.stop(name).view
            case "start":
                return self._nodes.start(name).view
            case "getGuestAttributes":
                return self._nodes.guest_attributes(
                    name, call.body.get("workerIds", []), call.body.get("queryPath", "")
                )
        raise AssertionError(verb)

    def _of_queued_resource(self, verb: str, call: Call, fails: ApiError | None) -> Json:
        name = f"{call.parent}/queuedResources/{call.name}"
        request_id = call.query.get("requestId", "")
        match verb:
            case "list":
                entries = [resource.view for resource in self._queue.under(call.parent)]
                return filters.page(entries, call.query, "queuedResources")
            case "create":
                short = call.query.get("queuedResourceId", "")
                given = {key: value for key, value in call.body.items() if key not in ("name", "state", "createTime")}
                return self._queue.create(f"{call.parent}/queuedResources/{short}", given, request_id, fails).view
            case "get":
                return self._queue.get(name).view
            case "delete":
                return self._queue.delete(name, call.query.get("force", False), request_id).view
        raise ApiError("UNIMPLEMENTED", f"this fake does not do {call.method.id}")

    def _of_operation(self, verb: str, call: Call) -> Json:
        name = f"{call.parent}/operations/{call.name}"
        match verb:
            case "list":
                entries = [operation.view for operation in self._operations.under(call.parent)]
                return filters.page(entries, call.query, "operations")
            case "get":
                return self._operations.get(name).view
            case "delete":
                self._operations.remove(name)
                return {}
        raise ApiError("UNIMPLEMENTED", "Operation cancellation is not supported.")

    def _of_catalogue(self, resource: str, verb: str, call: Call) -> Json:
        of_types = resource == "acceleratorTypes"
        words = catalogue.accelerators(call.location) if of_types else catalogue.RUNTIMES
        entries = [
            {"name": f"{call.parent}/{resource}/{word}", "type" if of_types else "version": word} for word in words
        ]
        if verb == "list":
            return filters.page(entries, call.query, resource)
        wanted = f"{call.parent}/{resource}/{call.name}"
        return next((entry for entry in entries if entry["name"] == wanted), None) or _missing(wanted)

    def _of_locations(self, verb: str, call: Call) -> Json:
        entries = [
            {"name": f"projects/{call.project}/locations/{zone}", "locationId": zone} for zone in catalogue.ZONES
        ]
        if verb == "list":
            return filters.page(entries, call.query, "locations")
        return next(entry for entry in entries if entry["locationId"] == call.location)


def _missing(name: str) -> Json:
    raise not_found(name)


def _settable(body: Json) -> Json:
    """Of the body of a node, what a user may set. The rest is ignored, as by the real one."""
    output = {"name", "state", "health", "createTime", "id", "apiVersion", "networkEndpoints", "queuedResource"}
    output |= {"healthDescription", "multisliceNode", "protectionTier", "symptoms", "upcomingMaintenance"}
    return {key: value for key, value in body.items() if key not in output}
