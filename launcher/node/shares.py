"""Which micro-batches of a step a rank has, whatever the number of ranks. Pure, no torch.

The run as it was created has `ranks x accumulate` micro-batches in each step. They keep their content for good: the
k-th batch of virtual rank r in an epoch is the k-th that rank r's loader gave. In a step they stand in slots, virtual
rank by virtual rank:

    slot = virtual rank * accumulate + batch within the step

and rank q of W takes the slots from q * A to (q + 1) * A, A = ranks * accumulate / W. Each rank has neighbours, so that
a binary tree over all slots is one within each rank and then one over ranks (`sums.py`).

The last step of an epoch may be short: each virtual rank has only its first batches. Then some ranks may have fewer
micro-batches than others; these begin with one that does not count, since all must meet as often.
"""

from dataclasses import dataclass
from typing import NamedTuple

from launcher.elastic import GlobalBatch


class MicroBatch(NamedTuple):
    rank: int
    """The virtual rank whose batch it is."""
    batch: int
    """Its number in the epoch of that virtual rank."""
    counts: bool
    """False: it is here for the second time, and must leave no trace."""
    slot: int
    """Its place in the step."""


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's part. Batches of the epoch are counted in two ways: `own` ones of this rank, and `virtual` ones, of
    each virtual rank."""

    whole: GlobalBatch
    world_size: int
    """Divides whole.micro_batches."""
    rank: int

    @property
    def is_changed(self) -> bool:
        """The number of ranks is another than at the beginning."""
        return self.world_size != self.whole.ranks

    @property
    def accumulate(self) -> int:
        """Micro-batches of this rank in a step."""
        return self.whole.micro_batches // self.world_size

    def own(self, virtual: int) -> int:
        """Batches of this rank in `virtual` ones, or up to there, if an epoch ends there."""
        steps, rest = divmod(virtual, self.whole.accumulate)
        return steps * self.accumulate + (self._rounds(rest) if rest else 0)

    def virtual(self, own: int, epoch: int | None) -> int:
        """How far `own` batches of this rank are.

        Args:
            own: at the end of a step.
            epoch: virtual batches in an epoch; None: unknown, as for a stream, and the number of ranks unchanged.
        """
        if epoch is not None and own == self.own(epoch):
            return epoch
        steps, rest = divmod(own, self.accumulate)
        return steps * self.whole.accumulate + rest

    def micro_batch(self, own: int, epoch: int | None) -> MicroBatch:
        """This rank's batch number `own` of an epoch.

        Args:
            epoch: as for `virtual`.
        """
        step, place = divmod(own, self.accumulate)
        begun = step * self.whole.accumulate
        rest = self.whole.accumulate if epoch is None else min(self.whole.accumulate, epoch - begun)
        if rest == self.whole.accumulate:
            slot, counts = self.rank * self.accumulate + place, True
        else:
            slots = self._slots(self.rank, rest)
            late = self._rounds(rest) - len(slots)
            counts = place >= late
            slot = slots[place - late] if counts else (slots or [0])[0]
        rank, batch = divmod(slot, self.whole.accumulate)
        return MicroBatch(rank, begun + batch, counts, slot)

    def _slots(self, rank: int, rest: int) -> list[int]:
        """Those of a rank in a step in which each virtual rank has `rest` batches."""
        own = range(rank * self.accumulate, (rank + 1) * self.accumulate)
        return [slot for slot in own if slot % self.whole.accumulate < rest]

    def _rounds(self, rest: int) -> int:
        return max(len(self._slots(rank, rest)) for rank in range(self.world_size))
