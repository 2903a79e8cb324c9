"""Stopping: the one owner of signals, and how all ranks agree on the step at which they stop."""

import signal
import time
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from launcher.diagnosis import STOP_SIGNALS

if TYPE_CHECKING:  # signals are taken care of before torch is imported
    from lightning.pytorch import Trainer

CHECK_S = 0.5
"""How often the ranks ask one another. A stop is agreed within about this time."""
MAX_STEPS = 100
"""Nor less often than this: steps may become much slower than those that were measured."""


class Stopped(BaseException):
    """All ranks have saved and leave. Not an Exception, so that no `except Exception` of the user keeps it."""


class StopFlag:
    """Set by the signal handler, which does nothing else; read at step boundaries."""

    def __init__(self) -> None:
        self.signal = 0
        """The number of the signal that arrived; 0 for none."""

    def install(self) -> None:
        for number in (*STOP_SIGNALS, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.signal = number


def own_signals(trainer: "Trainer") -> None:
    """Switch off both of Lightning's ways of handling SIGTERM.

    Its handler broadcasts from within the signal handler, which deadlocks when ranks are signalled at different
    instants, and its loop broadcasts once a step to make up for it.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


class Agreed(NamedTuple):
    stop: int
    """A signal that some rank received; 0 for none."""
    save: bool


def control_group(world_size: int) -> Any:
    """Collective. A process group on the CPU, which waits for no accelerator; None if there is one rank only."""
    if world_size == 1:
        return None
    import torch.distributed as dist

    return dist.new_group(backend="gloo")


class Agreement:
    """Lets all ranks take the same decision at the same step.

    Each rank calls `ask` once a step. One small all-reduce on the CPU settles the decision and also after how
    many steps the next one takes place, from the measured time of a step: that is the same number on all
    ranks, so they meet again without any clock in common, and most steps cost nothing.
    """

    def __init__(self, flag: StopFlag, group: Any) -> None:
        self._flag, self._group = flag, group
        self._steps_left = 1
        self._interval = 1
        self._since = time.monotonic()

    def ask(self, *, save: bool) -> Agreed:
        """Collective: every rank, every step.

        Args:
            save: this rank holds that a checkpoint is due; one is enough.
        """
        if self._group is None:
            return Agreed(self._flag.signal, save)
        self._steps_left -= 1
        if self._steps_left > 0:
            return Agreed(0, False)
        import torch
        import torch.distributed as dist

        step_s = (time.monotonic() - self._since) / self._interval
        proposed = max(1, min(int(CHECK_S / step_s), 2 * self._interval, MAX_STEPS))
        # The maximum of all three: the smallest interval that any rank proposes is the largest negative one.
        votes = torch.tensor([self._flag.signal, int(save), -proposed])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._group)
        stop, due, interval = votes.tolist()
        self._interval = self._steps_left = -interval
        self._since = time.monotonic()
        return Agreed(stop, bool(due))


def smallest(number: int, group: Any) -> int:
    """Collective: the smallest of all ranks' numbers."""
    if group is None:
        return number
    import torch
    import torch.distributed as dist

    numbers = torch.tensor([number])
    dist.all_reduce(numbers, op=dist.ReduceOp.MIN, group=group)
    return int(numbers)
