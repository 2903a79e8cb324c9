"""What a rank says about its training: the metrics that it has logged, and rank 0's heartbeat with them."""

import math
from typing import Any

from lightning.pytorch import Trainer

from launcher.node.environment import Place
from launcher.node.heartbeat import Heartbeat
from launcher.node.saving import Saving
from launcher.run import Run


class Reports:
    """One per rank and attempt. All ranks know their metrics; only rank 0 has a heartbeat."""

    def __init__(self, run: Run, place: Place) -> None:
        self._heartbeat = Heartbeat(run, place.attempt) if place.rank == 0 else None
        self._saving: Saving | None = None
        self._compute = ""
        self._total_steps: int | None = None
        self._metrics: dict[str, float | None] = {}

    def begin(self, compute: str, saving: Saving | None) -> None:
        """
        Args:
            compute: the type that the precision really computes in.
            saving: whose state is part of each report.
        """
        self._compute, self._saving = compute, saving

    def restore(self, metrics: dict[str, float | None]) -> None:
        """Those of a checkpoint."""
        self._metrics = metrics

    def count_steps(self, trainer: Trainer) -> None:
        """How many there will be; known when training starts, if at all."""
        total = trainer.estimated_stepping_batches
        self._total_steps = int(total) if 0 < total < float("inf") else None

    def metrics(self, trainer: Trainer) -> dict[str, float | None]:
        """The last value of everything that was logged; None where it is not finite (JSON has no NaN)."""
        for name, value in trainer.callback_metrics.items():
            self._metrics[name] = float(value) if math.isfinite(value) else None
        return dict(self._metrics)

    def check(self) -> None:
        """At each step. Raises Fenced: a newer attempt has begun."""
        if self._heartbeat:
            self._heartbeat.check()

    def report_if_due(self, trainer: Trainer, stage: str) -> None:
        if self._heartbeat and self._heartbeat.due:
            self.report(trainer, stage)

    def report(self, trainer: Trainer, stage: str, **more: Any) -> None:
        if self._heartbeat:
            self._heartbeat.report(
                stage=stage,
                step=trainer.global_step,
                total_steps=self._total_steps,
                epoch=trainer.current_epoch,
                precision=str(trainer.precision),
                compute=self._compute,
                metrics=self.metrics(trainer),
                **(self._saving.report if self._saving else {}),
                **more,
            )

    def close(self) -> None:
        if self._heartbeat:
            self._heartbeat.close()
