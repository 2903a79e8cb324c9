"""Long-running operations."""

import secrets
from dataclasses import dataclass, field

from tpu.cloud.status import ApiError, Json, not_found
from tpu.cloud.timers import Timers


@dataclass
class Operation:
    name: str
    metadata: Json
    outcome: Json = field(default_factory=dict)
    """Empty until it is done; then what it came to: an "error" or a "response"."""

    @property
    def view(self) -> Json:
        return {"name": self.name, "metadata": self.metadata, "done": bool(self.outcome), **self.outcome}


class Operations:
    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._all: dict[str, Operation] = {}

    def begin(self, target: str, verb: str) -> Operation:
        """Of something named projects/P/locations/L/..."""
        parent = "/".join(target.split("/")[:4])
        name = f"{parent}/operations/operation-{int(self._timers.now() * 1000)}-{secrets.token_hex(6)}"
        metadata = {
            "@type": "type.googleapis.com/google.cloud.tpu.v2.OperationMetadata",
            "createTime": self._timers.stamp(),
            "target": target,
            "verb": verb,
            "cancelRequested": False,
            "apiVersion": "v2",
        }
        self._all[name] = Operation(name, metadata)
        return self._all[name]

    def succeed(self, operation: Operation, kind: str = "", response: Json | None = None) -> None:
        """With a message of this kind, as "Node"; with none, as deletions do."""
        named = f"google.cloud.tpu.v2.{kind}" if kind else "google.protobuf.Empty"
        self._end(operation, {"response": {"@type": f"type.googleapis.com/{named}", **(response or {})}})

    def fail(self, operation: Operation, error: ApiError) -> None:
        self._end(operation, {"error": error.status})

    def _end(self, operation: Operation, outcome: Json) -> None:
        if not operation.outcome:
            operation.metadata["endTime"] = self._timers.stamp()
            operation.outcome = outcome

    def get(self, name: str) -> Operation:
        """Raises ApiError where there is none."""
        if name not in self._all:
            raise not_found(name)
        return self._all[name]

    def remove(self, name: str) -> None:
        del self._all[self.get(name).name]

    def under(self, parent: str) -> list[Operation]:
        return [one for name, one in self._all.items() if name.startswith(f"{parent}/")]
