"""What an attempt asks Cloud TPU for: what is written down of it, names, labels, the request. Pure."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.backends.tpu.errors import Json
from launcher.backends.tpu.machines import runtime_of
from launcher.layout import attempt_folder
from launcher.spec_fields import seconds
from launcher.spec_tpu import OWN, Tpu

ELSEWHERE_S = 900.0
"""How long a zone has to have machines, where there are several and the spec does not say."""
RUN, ATTEMPT, LEASE = (f"{OWN}{name}" for name in ("run", "attempt", "lease"))
"""Labels; in the metadata, RUN is the address of the run directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What an attempt has asked for last: slice.json."""

    count: int
    """How often it has asked, with this time."""
    zone: str
    name: str
    """Of the queued resource, and of its node."""
    asked: float = 0.0
    """When the API took it, in seconds since 1970; 0: nobody has written down that it did."""
    ready: float = 0.0
    """When the machines came up."""
    not_before: float = 0.0
    """When it may be asked for: after a round through all zones there is a pause."""
    refused: dict[str, str] = field(default_factory=dict)
    """Zones of this round that have none, and the Trouble why."""
    leaves: str = ""
    """Why what was asked for in this zone is deleted, and the next is asked; else ""."""
    verdict: dict[str, Any] | None = None
    """How the attempt has ended: `cause`, `reason`, `lost`. The machines are to be deleted."""


def claim_path(attempt: int) -> str:
    return f"{attempt_folder(attempt)}/slice.json"


def resource_name(run_id: str, run_dir: str, attempt: int, count: int) -> str:
    """At most 63 small letters, digits and dashes; another one for each run directory, attempt and count."""
    digest = hashlib.sha256(run_dir.encode()).hexdigest()[:8]
    tail = f"{digest}-a{attempt}-{count}"
    return f"{_slug(run_id)[: 62 - len(tail)].rstrip('-')}-{tail}"


def labels_of(run_id: str, attempt: int) -> dict[str, str]:
    """All but the lease, which goes by the clock."""
    return {RUN: _slug(run_id)[:63], ATTEMPT: str(attempt)}


def request_body(
    project: str, tpu: Tpu, claim: Claim, run_dir: str, labels: Mapping[str, str], public_key: str
) -> Json:
    """Of the call that creates a queued resource.

    Source: https://cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.queuedResources#QueuedResource, and
    what `gcloud compute tpus queued-resources create` sends.
    """
    assert tpu.accelerator_type, "the plan has seen to that"
    parent = f"projects/{project}/locations/{claim.zone}"
    network: Json = {"enableExternalIps": not tpu.internal_ips}
    for key, value in (("network", tpu.network), ("subnetwork", tpu.subnetwork)):
        if value:
            network[key] = value
    keys = "\n".join(filter(None, (tpu.metadata.get("ssh-keys"), public_key)))
    node: Json = {
        "acceleratorType": tpu.accelerator_type,
        "runtimeVersion": tpu.runtime_version or runtime_of(tpu.accelerator_type),
        "networkConfig": network,
        "labels": {**tpu.labels, **labels},
        "metadata": {**tpu.metadata, "ssh-keys": keys, RUN: run_dir},
    }
    if tpu.tags:
        node["tags"] = list(tpu.tags)
    if tpu.service_account:
        scope = "https://www.googleapis.com/auth/cloud-platform"
        node["serviceAccount"] = {"email": tpu.service_account, "scope": [scope]}
    body: Json = {"tpu": {"nodeSpec": [{"parent": parent, "nodeId": claim.name, "node": node}]}}
    if tpu.spot:
        body["spot"] = {}
    if tpu.reserved:
        body["reservationName"] = f"{parent}/reservations/-"
    wait = seconds(tpu.valid_until_duration) if tpu.valid_until_duration else ELSEWHERE_S if len(tpu.zone) > 1 else None
    if wait:
        body["queueingPolicy"] = {"validUntilDuration": f"{wait:.0f}s"}
    return body


def first_request(run_id: str, run_dir: str, tpu: Tpu) -> Json:
    """What a run's first attempt asks for, but for the lease and the key."""
    assert tpu.project, "the plan has seen to that"
    claim = Claim(count=1, zone=tpu.zone[0], name=resource_name(run_id, run_dir, 1, 1))
    return request_body(tpu.project, tpu, claim, run_dir, labels_of(run_id, 1), "launcher:KEY")


def owner_of(resource: Json) -> tuple[str | None, int | None, float]:
    """Address of the run, attempt, and end of the lease (seconds since 1970) of a queued resource or a node; None where
    it was not made by a launcher."""
    specs = resource.get("tpu", {}).get("nodeSpec", [])
    node = specs[0].get("node", {}) if specs else resource
    labels, attempt = node.get("labels", {}), node.get("labels", {}).get(ATTEMPT, "")
    return node.get("metadata", {}).get(RUN), int(attempt) if attempt.isdecimal() else None, lease_of(labels)


def lease_of(labels: Mapping[str, str]) -> float:
    """When it ends, in seconds since 1970."""
    lease = labels.get(LEASE, "")
    return float(lease) if lease.isdecimal() else 0.0


def _slug(run_id: str) -> str:
    """As a resource may be called: a small letter first, then small letters, digits and dashes."""
    word = re.sub(r"[^a-z0-9]+", "-", run_id.lower()).strip("-")
    return word if word[:1].isalpha() else f"run-{word}".rstrip("-")
