"""How often to save: the interval that costs least, from what saving costs and how often work is lost. Pure."""

import math
from collections.abc import Iterable

from launcher.policy import Cause
from launcher.state import RunState

SHARE = 0.035
"""Saving takes at most this part of the time (CheckFreq, Mohan et al., FAST'21, keeps to the same bound)."""
FIRST_S = 30.0
"""The first save of a run comes after this time: what it costs is not known before."""
LONGEST_S = 1800.0
PRIOR_S = 4 * 3600.0
"""Time between two losses that is assumed as long as none has been seen; weighs as much as one that was."""
_LOSES_WORK = (Cause.INFRA, Cause.ERROR)
"""After all other endings the ranks had saved first."""


def best_interval_s(cost_s: float, between_losses_s: float) -> float:
    """The interval at which saving and work that has to be done again take least time together.

    Source: J. W. Young, "A first order approximation to the optimum checkpoint interval", CACM 17(9), 1974,
    T = sqrt(2 C M); J. T. Daly (FGCS 22(3), 2006) shows that it holds while C is small against M.

    Args:
        cost_s: training time that one save takes.
        between_losses_s: mean time between two interruptions that lose work.
    """
    return min(LONGEST_S, max(math.sqrt(2 * cost_s * between_losses_s), cost_s / SHARE))


def between_losses_s(state: RunState, now: float) -> float:
    """Estimated from this run's own attempts.

    Args:
        now: seconds since 1970.
    """
    ran = sum((attempt.ended or now) - attempt.started for attempt in state.attempts)
    lost = sum(attempt.cause in _LOSES_WORK for attempt in state.attempts)
    return (PRIOR_S + max(0.0, ran)) / (1 + lost)


def last_cost_s(state: RunState) -> float | None:
    """What the newest save has cost at the most: all of its time; None if there was none."""
    saved = state.checkpoints[-1] if state.checkpoints else None
    return saved.stall_s + saved.write_s if saved and saved.attempt else None


def drain_s(state: RunState) -> float | None:
    """How long ranks take from the stop to the durable checkpoint, by the slowest of the last saves; None: unknown."""
    return max(_durations(state), default=None)


def _durations(state: RunState) -> Iterable[float]:
    return (saved.stall_s + saved.write_s for saved in state.checkpoints[-5:] if saved.attempt)


class Cadence:
    """When the next save is due by the clock. Of rank 0."""

    def __init__(self, every_s: float | None, *, auto: bool, state: RunState, now: float, clock: float) -> None:
        """Begins to count.

        Args:
            every_s: the interval; None for never, unless it is chosen.
            auto: choose the interval.
            state: with this attempt in it.
            now: seconds since 1970.
            clock: monotonic seconds, as in all that follows.
        """
        self._auto = auto
        self._between_losses_s = between_losses_s(state, now)
        self._since = clock
        cost = last_cost_s(state)
        self.interval_s = every_s
        if auto:
            self.interval_s = FIRST_S if cost is None else self._chosen(cost)

    def is_due(self, clock: float) -> bool:
        return self.interval_s is not None and clock - self._since >= self.interval_s

    def saved(self, clock: float) -> None:
        """A save has begun, or was tried in vain."""
        self._since = clock

    def measured(self, cost_s: float) -> None:
        """A save has cost so much training time."""
        if self._auto:
            self.interval_s = self._chosen(cost_s)

    def _chosen(self, cost_s: float) -> float:
        return best_interval_s(cost_s, self._between_losses_s)
