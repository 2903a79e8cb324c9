"""Machines that launchers have made, and whether anybody still wants them.

The run directory says it, which a resource's metadata name. Where it cannot be read, the lease does: a label that
whoever drives the run renews.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from launcher.address import storage_at
from launcher.backends.tpu.api import Api
from launcher.backends.tpu.claims import owner_of
from launcher.backends.tpu.errors import Json
from launcher.driver import is_alive
from launcher.errors import LauncherError
from launcher.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """A queued resource of a launcher's, or a node without one."""

    name: str
    zone: str
    state: str
    run_dir: str
    attempt: int
    lease: float
    """Seconds since 1970."""
    is_node: bool = False


def all_machines(api: Api) -> list[Machines]:
    """In all zones of the project. Raises TpuError."""
    requests, nodes = api.requests(), {_path(one): one for one in api.nodes()}
    found: list[Machines] = []
    for request in requests:
        # The lease is renewed on the node, once there is one.
        found += _machines(request, request["state"]["state"], nodes.pop(_path(request), None), is_node=False)
    for node in nodes.values():
        found += _machines(node, node["state"], node, is_node=True)
    return found


def wanted_by(one: Machines) -> tuple[bool, str]:
    """Whether somebody wants it, and who; or why nobody does."""
    left = one.lease - time.time()
    try:
        run = Run(storage_at(one.run_dir))
        state = run.ledger.refresh()
    except (OSError, LauncherError) as error:
        leased = f"its lease {'runs' if left > 0 else 'ended'} {_minutes(abs(left))} {'more' if left > 0 else 'ago'}"
        return left > 0, f"its run cannot be read ({error}); {leased}"
    if state.ended:
        return False, f"its run has ended: {state.ended.state}"
    attempt = state.open_attempt
    if attempt is None or attempt.number != one.attempt:
        return False, f"attempt {one.attempt} of its run is over"
    driver = state.driver
    if driver and is_alive(driver, run.storage):
        return True, f"process {driver.pid} on {driver.host} drives its run"
    if left > 0:
        return True, f"nobody drives its run: `launcher watch` does, or `launcher resume {run.id}`"
    return False, f"nobody has driven its run for {_minutes(-left)} and more"


def remove(api: Api, one: Machines) -> None:
    """Returns when that has begun. Raises TpuError."""
    (api.delete_node if one.is_node else api.delete_request)(one.zone, one.name)


def _machines(resource: Json, state: str, node: Json | None, *, is_node: bool) -> Iterator[Machines]:
    run_dir, attempt, lease = owner_of(resource)
    if run_dir is not None and attempt is not None:
        zone, name = _path(resource)
        lease = max(lease, owner_of(node)[2] if node else 0.0)
        yield Machines(
            name=name, zone=zone, state=state, run_dir=run_dir, attempt=attempt, lease=lease, is_node=is_node
        )


def _path(resource: Json) -> tuple[str, str]:
    """Zone and last part of a name: projects/P/locations/ZONE/nodes/NAME. A request's node is called like it."""
    _, _, _, zone, _, name = resource["name"].split("/")
    return zone, name


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min"
