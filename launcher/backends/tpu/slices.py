"""The machines of one attempt: asked for, found again, deleted. One name for each time that they are asked for.

What is asked for stands in `attempts/NNN/slice.json` before it is asked for, and the name follows from the run's
address, the attempt and the count: whoever drives the run after a crash asks for the same, and the API has no two of a
name.
"""

import json
import logging
import time
from dataclasses import asdict, replace

from launcher.backends.tpu.api import Api
from launcher.backends.tpu.claims import (
    LEASE,
    Claim,
    claim_path,
    labels_of,
    lease_of,
    owner_of,
    request_body,
    resource_name,
)
from launcher.backends.tpu.errors import ELSEWHERE, PASSING, Json, TpuError, Trouble
from launcher.backends.tpu.machines import runtime_of
from launcher.backends.tpu.states import Stand, View, view
from launcher.errors import UsageError
from launcher.policy import Cause
from launcher.spec_tpu import Tpu
from launcher.storage import Storage

LEASE_S = 1800.0
"""For so long nobody takes the machines for abandoned; renewed at half of it."""
SETTLES_S = 30.0
"""What was asked for may not be seen for so long."""
AGAIN_S = 60.0
"""Pause after all zones have been asked in vain."""
_WAITED_OUT = (*PASSING, Trouble.UNAUTHENTICATED)
"""A login that has expired was good when the run began: somebody logs in again."""

_ASKED = View(Stand.WAITING, "it is asked for")

log = logging.getLogger(__name__)


class Slice:
    """An attempt's machines, as the API shows them."""

    def __init__(self, api: Api, storage: Storage, run_id: str, attempt: int, tpu: Tpu) -> None:
        self._api, self._storage, self._run_id, self._attempt, self._tpu = api, storage, run_id, attempt, tpu
        self._path = claim_path(attempt)
        self._lease = 0.0

    # The claim

    def claim(self) -> Claim:
        """As it is written down. Raises FileNotFoundError: nothing was asked for yet."""
        return Claim(**json.loads(self._storage.read(self._path)))

    def begin(self) -> Claim:
        """Write down what is to be asked for first; if anything is written already, that holds."""
        try:
            return self.claim()
        except FileNotFoundError:
            return self._keep(self._next(0, {}, 0.0))

    def end(self, claim: Claim, cause: Cause, reason: str, lost: tuple[str, ...] = ()) -> Claim:
        """Write down how the attempt has ended; the first word holds."""
        if claim.verdict:
            return claim
        return self._keep(replace(claim, verdict={"cause": cause, "reason": reason, "lost": list(lost)}))

    def _next(self, count: int, refused: dict[str, str], not_before: float) -> Claim:
        zones = self._tpu.zone
        return Claim(
            count=count + 1,
            zone=zones[count % len(zones)],
            name=resource_name(self._run_id, self._storage.root, self._attempt, count + 1),
            refused=refused,
            not_before=not_before,
        )

    def _keep(self, claim: Claim) -> Claim:
        self._storage.replace(self._path, json.dumps(asdict(claim)).encode())
        return claim

    # The machines

    def look(self, claim: Claim, public_key: str) -> tuple[Claim, View]:
        """What there is now; asks for the machines where they have not been asked for, in each zone in turn.

        Raises:
            TpuError: the API does not say. That means nothing.
        """
        if claim.leaves:
            return self._leave(claim)
        if claim.ready and (node := self._api.node(claim.zone, claim.name)) and node.get("state") == "READY":
            return claim, View(Stand.READY, node=node)  # one call, as long as all is well
        request = self._api.request(claim.zone, claim.name)
        if request is None and not claim.asked:
            return self._ask(claim, public_key)
        if request is None and not claim.ready and time.time() - claim.asked < SETTLES_S:
            return claim, _ASKED
        if request and not claim.asked:
            if owner_of(request)[0] != self._storage.root:
                return self._another_name(claim)
            claim = self._keep(replace(claim, asked=time.time()))  # by a driver that died before it could say so
        active = request is not None and request["state"]["state"] == "ACTIVE"
        node = self._api.node(claim.zone, claim.name) if active else None
        seen = view(request, node, ran=bool(claim.ready))
        if seen.stand == Stand.FAILED and seen.error and seen.error.trouble in (*ELSEWHERE, Trouble.PREEMPTED):
            return self._refused(claim, seen.error)
        if seen.stand == Stand.PREEMPTED and not claim.ready:  # no attempt is spent on machines that never came up
            return self._refused(claim, TpuError(Trouble.PREEMPTED, "preempted before it came up"))
        if seen.stand == Stand.READY and not claim.ready:
            claim = self._keep(replace(claim, ready=time.time()))
        return claim, seen

    def gone(self, claim: Claim) -> bool:
        """Whether nothing is left of the machines; has them deleted where there is something.

        Raises:
            TpuError: the API does not say.
        """
        if request := self._api.request(claim.zone, claim.name):
            if request["state"]["state"] != "DELETING":
                self._api.delete_request(claim.zone, claim.name)
            return False
        if node := self._api.node(claim.zone, claim.name):
            if node["state"] != "DELETING":
                self._api.delete_node(claim.zone, claim.name)
            return False
        return True

    def renew(self, claim: Claim, node: Json) -> None:
        """Say that these machines are wanted. Not said in time, it is said at the next look."""
        now = time.time()
        self._lease = self._lease or lease_of(node.get("labels", {}))
        if self._lease - now > LEASE_S / 2:
            return
        lease = now + LEASE_S
        try:
            self._api.change_node(claim.zone, claim.name, labels={**node.get("labels", {}), LEASE: f"{lease:.0f}"})
            self._lease = lease
        except TpuError as error:
            log.warning("the lease of %s is not renewed: %s", claim.name, error)

    def _ask(self, claim: Claim, public_key: str) -> tuple[Claim, View]:
        if time.time() < claim.not_before:
            return claim, View(Stand.WAITING, "all zones were asked in vain, and will be again")
        body = request_body(self._api.project, self._tpu, claim, self._storage.root, self._labels(), public_key)
        try:
            self._api.create_request(claim.zone, claim.name, body)
        except TpuError as error:
            if error.trouble == Trouble.EXISTS:
                there = self._api.request(claim.zone, claim.name)  # as a queued resource, or as a node
                return (claim, _ASKED) if there else self._another_name(claim)
            if error.trouble in ELSEWHERE:
                return self._refused(claim, error)
            if error.trouble in _WAITED_OUT:
                raise
            return claim, View(Stand.FAILED, str(error), error)
        log.info("asked for %s in %s: %s", self._tpu.accelerator_type, claim.zone, claim.name)
        return self._keep(replace(claim, asked=time.time())), _ASKED

    def _another_name(self, claim: Claim) -> tuple[Claim, View]:
        log.warning("%s in %s is somebody else's; another name is taken", claim.name, claim.zone)
        following = self._next(claim.count, claim.refused, 0.0)
        return self._keep(replace(following, zone=claim.zone)), _ASKED

    def _refused(self, claim: Claim, error: TpuError) -> tuple[Claim, View]:
        log.warning("%s: %s", claim.zone, error)
        refused = {**claim.refused, claim.zone: str(error.trouble)}
        return self._leave(self._keep(replace(claim, refused=refused, leaves=str(error))))

    def _leave(self, claim: Claim) -> tuple[Claim, View]:
        """On to the next zone, once what was asked for in this one is deleted."""
        if not self.gone(claim):
            return claim, View(Stand.WAITING, f"{claim.leaves}; what was asked for is being deleted")
        round_over = len(claim.refused) >= len(set(self._tpu.zone))
        if round_over and set(claim.refused.values()) <= {Trouble.QUOTA, Trouble.RESERVATION}:
            return claim, View(Stand.FAILED, claim.leaves)
        pause = time.time() + AGAIN_S if round_over else 0.0
        following = self._keep(self._next(claim.count, {} if round_over else claim.refused, pause))
        return following, View(Stand.WAITING, claim.leaves)

    def _labels(self) -> dict[str, str]:
        return {**labels_of(self._run_id, self._attempt), LEASE: f"{time.time() + LEASE_S:.0f}"}


def check_zones(api: Api, tpu: Tpu) -> None:
    """Before a run is created: there is such a project, these zones, and what is wanted in each.

    Raises:
        UsageError: in words of the spec.
        TpuError: credentials or permissions are lacking, or the API does not answer.
    """
    assert tpu.accelerator_type, "the plan has seen to that"
    for zone in tpu.zone:
        try:
            api.check_zone(zone, tpu.accelerator_type, tpu.runtime_version or runtime_of(tpu.accelerator_type))
        except TpuError as error:
            if error.trouble in (Trouble.INVALID, Trouble.ZONE):
                raise UsageError(f"tpu: {error}") from None
            raise
