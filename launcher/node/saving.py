"""Rank 0's part in saving: when it is time, what the manifest says, and what becomes of a save that failed."""

import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Trainer

from launcher.cadence import Cadence
from launcher.checkpoints import Manifest, best
from launcher.errors import NotSaved, UsageError
from launcher.events import CheckpointSaved
from launcher.node.curves import Curves
from launcher.node.environment import Place
from launcher.node.writer import Saved, Writer
from launcher.run import Run
from launcher.spec import Checkpoint, seconds

_STEPS = 50
"""Steps whose median says how long one takes while nothing is written."""

log = logging.getLogger(__name__)


class Saving:
    """One per attempt."""

    def __init__(self, run: Run, place: Place, policy: Checkpoint, curves: Curves) -> None:
        self._run, self._place, self._policy = run, place, policy
        self.curves = curves
        self._writer = Writer(run, policy, curves.sync)
        every_s = None if policy.every in (None, "auto") else seconds(policy.every or "")
        self._cadence = Cadence(
            every_s,
            auto=policy.every == "auto",
            state=run.ledger.refresh(),
            now=time.time(),
            clock=time.monotonic(),
        )
        self._metric: tuple[int, float] | None = None
        self._step_s: deque[float] = deque(maxlen=_STEPS)
        self._last_step_at: float | None = None
        self._saved_at, self._steps_since = 0.0, 0
        self._problem: str | None = None

    @property
    def is_due(self) -> bool:
        """By the clock."""
        return self._writer.is_idle and self._cadence.is_due(time.monotonic())

    @property
    def report(self) -> dict[str, Any]:
        """For the heartbeat: the interval by the clock, and why the newest save failed if it did."""
        return {"save_interval_s": self._cadence.interval_s, "save_problem": self._problem}

    def at_step(self) -> None:
        """Between any two steps: take note of what has been written meanwhile.

        Raises:
            Fenced: a newer attempt has begun.
        """
        now = time.monotonic()
        if self._writer.is_idle and self._last_step_at is not None:
            self._step_s.append(now - self._last_step_at)
        self._steps_since += 1
        self._settle(self._writer.poll)
        self._last_step_at = now

    def is_among_best(self, trainer: Trainer) -> bool:
        """After a validation: whether its state belongs to the best ones by checkpoint.monitor.

        Raises:
            UsageError: the metric was not logged.
        """
        name = self._policy.monitor
        if name is None:
            return False
        if name not in trainer.callback_metrics:
            logged = ", ".join(sorted(map(str, trainer.callback_metrics))) or "nothing"
            raise UsageError(f"checkpoint.monitor: the validation has not logged '{name}'; logged are: {logged}")
        value = float(trainer.callback_metrics[name])
        if not math.isfinite(value):
            return False
        self._metric = trainer.global_step, value
        candidate = CheckpointSaved(
            attempt=self._place.attempt,
            step=trainer.global_step,
            epoch=0,
            path="",
            bytes=0,
            complete=False,
            metric=value,
        )
        rivals = [*self._run.ledger.refresh().checkpoints, candidate]
        return candidate in best(rivals, self._policy.mode, self._policy.keep_best)

    def save(
        self, trainer: Trainer, checkpoint: dict[str, Any], *, complete: bool, curves: dict[str, Any] | None
    ) -> None:
        """Have a checkpoint written; returns when it has been copied.

        Args:
            complete: training has reached its end.
            curves: the mark that belongs to it; None: as they are now.

        Raises:
            Fenced: a newer attempt has begun.
        """
        self._settle(self._writer.wait)
        step, metric = trainer.global_step, None
        if self._metric and self._metric[0] == step:
            metric = {"name": self._policy.monitor, "mode": self._policy.mode, "value": self._metric[1]}
        manifest = Manifest(
            step=step,
            epoch=trainer.current_epoch,
            attempt=self._place.attempt,
            world_size=self._place.world_size,
            precision=str(trainer.precision),
            complete=complete,
            curves=curves or self.curves.mark(),
            monitored=metric,
        )
        self._writer.save(checkpoint, manifest)
        self._saved_at, self._steps_since = time.monotonic(), 0
        self._last_step_at = None
        self._cadence.saved(self._saved_at)

    def drain(self) -> None:
        """Wait until the newest checkpoint is durable and counts.

        Raises:
            NotSaved: it could not be written.
            Fenced: a newer attempt has begun.
        """
        try:
            self._writer.wait()
        except OSError as error:
            raise NotSaved(f"the last checkpoint could not be written: {error}") from error

    def close(self) -> None:
        self._writer.close()
        self.curves.close()

    def _settle(self, outcome: Callable[[], Saved | None]) -> None:
        try:
            saved = outcome()
        except OSError as error:
            self._problem = f"the checkpoint could not be written: {error}"
            log.warning("%s; training goes on, the next save is tried at its time", self._problem)
            return
        if saved:
            self._problem = None
            self._cadence.measured(self._cost_s(saved))

    def _cost_s(self, saved: Saved) -> float:
        """Training time that a save took: standing still, and being slower while it was written."""
        usual = statistics.median(self._step_s) * self._steps_since if self._step_s else 0.0
        slowed = time.monotonic() - self._saved_at - usual
        return saved.stall_s + min(saved.write_s, max(0.0, slowed))
