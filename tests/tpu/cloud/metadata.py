"""The metadata server of a host, as a pure function. Names are Google's, as libtpu, torch_xla and gcloud read them."""

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from tpu.cloud.status import Json

ADDRESS = "169.254.169.254"
NAME = "metadata.google.internal"
PREFIX = "/computeMetadata/v1"
PROJECT_NUMBER = 123456789012


def tpu_attributes(node: str, zone: str, project: str, accelerator: str, worker: int, addresses: list[str]) -> Json:
    """What the service adds to a node's own metadata."""
    environment = {
        "ACCELERATOR_TYPE": accelerator,
        "CONSUMER_PROJECT_ID": project,
        "NODE_ID": node,
        "TPU_WORKER_HOSTNAMES": ",".join(addresses),
        "WORKER_ID": str(worker),
        "ZONE": zone,
    }
    return {
        "accelerator-type": accelerator,
        "agent-worker-number": str(worker),
        "instance-id": node,
        "tpu-env": "".join(f"{name}: '{value}'\n" for name, value in environment.items()),
        "worker-network-endpoints": ",".join(f"unknown:unknown:{address}" for address in addresses),
    }


def answer(tree: Json, path: str, query: Mapping[str, str]) -> tuple[str, str] | None:
    """The text at a path below PREFIX and its content type; None where there is nothing."""
    found: Any = tree
    for part in path.strip("/").split("/"):
        if part and not (isinstance(found, dict) and part in found):
            return None
        found = found[part] if part else found
    if isinstance(found, dict):
        if query.get("recursive", "").lower() == "true":
            return json.dumps(found), "application/json"
        lines = [f"{name}/" if isinstance(inner, dict) else name for name, inner in found.items()]
        return "".join(f"{line}\n" for line in lines), "application/text"
    if query.get("alt") == "json":
        return json.dumps(found), "application/json"
    return str(found), "application/text"


def etag(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]
