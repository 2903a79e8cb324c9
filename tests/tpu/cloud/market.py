"""What a zone can give and a project may have: stock, reservations, quota."""

from dataclasses import dataclass, field

from tpu.cloud.catalogue import Slice
from tpu.cloud.status import ApiError


@dataclass
class Market:
    quota_chips: int
    """That a project may have in a zone; 0: as many as it likes."""
    reserved_chips: int
    """That are reserved for it in each zone."""
    sold_out: set[str] = field(default_factory=set)
    """Zones, as "us-central2-b", or types in them, as "us-central2-b/v4-32"."""
    _held: dict[str, tuple[str, int, bool]] = field(default_factory=dict)

    def in_stock(self, zone: str, wanted: Slice) -> bool:
        return not self.sold_out & {zone, f"{zone}/{wanted.type}"}

    def sold_out_error(self, zone: str) -> ApiError:
        return ApiError(
            "RESOURCE_EXHAUSTED",
            f'There is no more capacity in the zone "{zone}"; you can try in another zone where Cloud TPU Nodes are '
            "offered (see https://cloud.google.com/tpu/docs/regions) [EID: 0x1fc1c0bcd2ae2a5b]",
        )

    def hold(self, name: str, zone: str, chips: int, reserved: bool) -> None:
        """Count these for a node or a queued resource until `let_go`. Raises ApiError when the quota is too small."""
        held = sum(amount for where, amount, _ in self._held.values() if where == zone)
        if self.quota_chips and held + chips > self.quota_chips:
            limit = "TPUChipsPerProjectPerZoneForTPUAPI"
            said = f"Quota limit '{limit}' has been exceeded. Limit: {self.quota_chips} in zone {zone}."
            violation = {"subject": "project", "description": said}
            details = {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]}
            raise ApiError("RESOURCE_EXHAUSTED", said, [details])
        self._held[name] = (zone, chips, reserved)

    def let_go(self, name: str) -> None:
        self._held.pop(name, None)

    def reservation_error(self, name: str) -> ApiError | None:
        """None where what is held under this name, and was before it, fits into the reservation of its zone."""
        zone, left = self._held[name][0], self.reserved_chips
        for holder, (where, amount, reserved) in self._held.items():
            left -= amount if reserved and where == zone else 0
            if holder == name:
                break
        if left < 0:
            return ApiError("FAILED_PRECONDITION", "Insufficient reserved capacity. [EID: 0x5d2a9c1b7e3f4a60]")
        return None
