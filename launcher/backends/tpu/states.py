"""What the states of queued resources and nodes mean for an attempt. Pure.

Source: https://cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.queuedResources#state and
.../projects.locations.nodes#state. A state that is not listed here ends nothing.
"""

from dataclasses import dataclass
from enum import StrEnum

from launcher.backends.tpu.errors import Json, TpuError, error_of


class Stand(StrEnum):
    """How an attempt's machines are."""

    ABSENT = "absent"  # there is nothing
    WAITING = "waiting"  # for machines, or for them to come up
    READY = "ready"
    PREEMPTED = "preempted"  # the machines may have some seconds left
    LOST = "lost"  # they are gone, or have lost what was running
    TAKEN = "taken"  # somebody deletes or stops them, or has done so
    FAILED = "failed"  # nothing has come of the request
    LEAVING = "leaving"  # being deleted
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True)
class View:
    """What is to be seen of an attempt's machines."""

    stand: Stand
    reason: str = ""
    error: TpuError | None = None
    """Why nothing has come of it, if so."""
    node: Json | None = None
    """If it is READY."""
    over: bool = False
    """PREEMPTED, and the power is off by now."""


_NODES = {
    **dict.fromkeys(("CREATING", "STARTING", "RESTARTING", "REIMAGING", "UNHIDING"), Stand.WAITING),
    "READY": Stand.READY,
    "PREEMPTED": Stand.PREEMPTED,
    "REPAIRING": Stand.LOST,  # its hosts are started anew
    **dict.fromkeys(("TERMINATED", "UNKNOWN"), Stand.LOST),
    **dict.fromkeys(("STOPPING", "STOPPED", "HIDING", "HIDDEN"), Stand.TAKEN),
    "DELETING": Stand.LEAVING,
}
_REQUESTS = {
    **dict.fromkeys(("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING"), Stand.WAITING),
    "ACTIVE": Stand.READY,
    **dict.fromkeys(("SUSPENDING", "SUSPENDED"), Stand.PREEMPTED),
    "FAILED": Stand.FAILED,
    "DELETING": Stand.TAKEN,  # a launcher does not look any more once it deletes
}
_WAITS = {
    "ACCEPTED": "its request is accepted",
    "WAITING_FOR_RESOURCES": "it waits for machines",
    "PROVISIONING": "its machines are being made",
}


def view(request: Json | None, node: Json | None, ran: bool) -> View:
    """From the queued resource and its node, each None where there is none.

    Args:
        ran: the node has been READY before.
    """
    if request is None:
        return View(Stand.ABSENT, "its queued resource is gone")
    shown = request.get("state", {})
    state = str(shown.get("state", ""))
    stand = _REQUESTS.get(state, Stand.UNCLEAR)
    if stand == Stand.READY:
        return _of_node(node, ran)
    if stand == Stand.PREEMPTED:
        if shown.get("stateInitiator") == "USER":
            return View(Stand.TAKEN, "somebody has deleted its node")
        return View(stand, "preempted by Cloud TPU", over=state == "SUSPENDED")
    if stand == Stand.FAILED:
        error = error_of(shown.get("failedData", {}).get("error", {}), "its request has failed")
        return View(stand, str(error), error)
    if stand == Stand.TAKEN:
        return View(stand, "somebody is deleting its queued resource")
    if stand == Stand.WAITING and ran:
        return View(Stand.LOST, f"its queued resource has gone back to {state}")
    return View(stand, _WAITS.get(state, f"its queued resource is in state {state}"))


def _of_node(node: Json | None, ran: bool) -> View:
    if node is None:
        gone = "its node is gone, though its queued resource is ACTIVE"
        return View(Stand.LOST, gone) if ran else View(Stand.WAITING, "its node is not there yet")
    state = str(node.get("state", ""))
    stand = _NODES.get(state, Stand.UNCLEAR)
    if stand == Stand.READY:
        return View(stand, node=node)
    if stand == Stand.WAITING and ran:
        return View(Stand.LOST, f"its hosts are started anew: its node is in state {state}")
    if stand == Stand.PREEMPTED:
        return View(stand, "preempted by Cloud TPU")
    if stand == Stand.TAKEN:
        return View(stand, f"somebody has stopped its node, which is in state {state}")
    return View(stand, f"its node is in state {state}")
