"""The launcher's part in a training: a callback that seeds, saves, reports and stops, always between two steps."""

import math
import signal
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from launcher.checkpoints import Manifest, checkpoint_path
from launcher.node.checkpoint import DurableCheckpointIO, commit
from launcher.node.data import ExactLoader, Position, protected
from launcher.node.environment import Place
from launcher.node.heartbeat import Heartbeat
from launcher.node.seeding import mix, seed_all
from launcher.node.stop import Agreement, StopFlag, Stopped
from launcher.run import Run
from launcher.spec import JobSpec, seconds


class Session(Callback):
    """One per rank and attempt. Between two steps is the one place where a checkpoint is taken or training left.

    There, everything that belongs to the last step is done (validation and the epoch's end included) and nothing
    of the next has begun, so that the loops' counters alone say where to go on.
    """

    def __init__(
        self, run: Run, place: Place, spec: JobSpec, flag: StopFlag, io: DurableCheckpointIO, restored_step: int
    ) -> None:
        self._run, self._place, self._flag, self._io = run, place, flag, io
        self._seed, self._policy = spec.seed_everything, spec.checkpoint
        self._every_s = seconds(self._policy.every) if self._policy.every else None
        self._saved_step, self._saved_at = restored_step, time.monotonic()
        self._stop, self._save = 0, False
        self._heartbeat = Heartbeat(run, place.attempt) if place.rank == 0 else None
        self._compute = ""
        self._total_steps: int | None = None
        self._metrics: dict[str, float | None] = {}

    def attach(self, trainer: Trainer, compute: str) -> None:
        """Take the places in the trainer that are the launcher's."""
        self._compute = compute
        _own_signals(trainer)
        base = trainer.strategy.process_dataloader

        def process(loader: object) -> object:
            return base(self._training_loader(trainer, loader) if trainer.training else protected(loader))

        trainer.strategy.process_dataloader = process  # type: ignore[method-assign, assignment]

    def _training_loader(self, trainer: Trainer, loader: object) -> ExactLoader:
        loop = trainer.fit_loop

        def position() -> Position:
            return Position(trainer.current_epoch, loop.epoch_loop.batch_progress.current.ready)

        return ExactLoader(
            loader, seed=self._seed, position=position, between_steps=lambda: self._between_steps(trainer)
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._agreement = Agreement(self._flag, self._place.world_size)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = trainer.estimated_stepping_batches
        self._total_steps = int(total) if 0 < total < float("inf") else None
        self._report(trainer, "train")
        loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
        assert fetcher is not None
        if not loop.restarting:
            return
        # Lightning takes a checkpoint from between two steps as one from before the validation that is due there.
        if loop.batch_progress.current.ready == 0:
            loop.restarting = False  # nothing of this epoch has run: begin it
        elif loop._should_check_val_fx(fetcher):
            loop._batches_that_stepped -= 1  # it skips that validation, rightly, but counts the batch again

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seed_all(mix(self._seed, "epoch", trainer.current_epoch, self._place.rank))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        seed_all(mix(self._seed, "step", trainer.fit_loop.total_batch_idx, self._place.rank))

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        step = trainer.global_step
        seed_all(mix(self._seed, "validation", step, dataloader_idx, batch_idx, self._place.rank))

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        seed_all(mix(self._seed, "test", dataloader_idx, batch_idx, self._place.rank))

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if self._heartbeat and self._heartbeat.due:
            self._report(trainer, "train")

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if self._heartbeat and self._heartbeat.due:
            self._report(trainer, "validate")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(trainer, "test")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # Lightning forgets that early stopping has decided, and what was logged last.
        checkpoint["launcher"] = {"should_stop": trainer.should_stop, "metrics": self.metrics(trainer)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        trainer.should_stop = checkpoint["launcher"]["should_stop"]
        self._metrics = checkpoint["launcher"]["metrics"]

    def _between_steps(self, trainer: Trainer) -> None:
        """Save if it is time to, leave if all ranks agreed to.

        Raises:
            Stopped: the checkpoint is written; leave.
        """
        agreed = self._agreement.ask(save=self._time_is_up())
        self._stop = self._stop or agreed.stop
        self._save = self._save or agreed.save or self._steps_are_up(trainer.global_step)
        if not (self._stop or self._save) or _is_accumulating(trainer):
            return
        self.save(trainer, complete=False)
        if self._stop:
            self._report(trainer, "train", left=signal.Signals(self._stop).name)
            raise Stopped

    def save(self, trainer: Trainer, *, complete: bool) -> None:
        """Collective. Write a checkpoint, unless there is one of this step.

        Args:
            complete: training has reached its end.
        """
        step, self._save = trainer.global_step, False
        if step == self._saved_step:
            return
        trainer.should_stop = trainer.should_stop or complete
        path = checkpoint_path(step, self._place.attempt)
        trainer.save_checkpoint(f"{self._run.storage.root}/{path}", weights_only=False)
        self._saved_step, self._saved_at = step, time.monotonic()
        if self._place.rank == 0:
            manifest = Manifest(
                step=step,
                epoch=trainer.current_epoch,
                attempt=self._place.attempt,
                world_size=self._place.world_size,
                precision=str(trainer.precision),
                bytes=self._io.bytes,
                sha256=self._io.sha256,
                complete=complete,
            )
            commit(self._run, path, manifest, self._policy.keep_last)

    def metrics(self, trainer: Trainer) -> dict[str, float | None]:
        """The last value of everything that was logged; None where it is not finite (JSON has no NaN)."""
        for name, value in trainer.callback_metrics.items():
            self._metrics[name] = float(value) if math.isfinite(value) else None
        return dict(self._metrics)

    def close(self) -> None:
        if self._heartbeat:
            self._heartbeat.close()

    def _time_is_up(self) -> bool:
        """By rank 0's clock alone; the agreement spreads its word."""
        due = self._every_s is not None and time.monotonic() - self._saved_at >= self._every_s
        return due and self._place.rank == 0

    def _steps_are_up(self, step: int) -> bool:
        every = self._policy.every_n_steps
        return every is not None and step // every > self._saved_step // every

    def _report(self, trainer: Trainer, stage: str, **more: Any) -> None:
        if self._heartbeat:
            self._heartbeat.report(
                stage=stage,
                step=trainer.global_step,
                total_steps=self._total_steps,
                epoch=trainer.current_epoch,
                precision=str(trainer.precision),
                compute=self._compute,
                metrics=self.metrics(trainer),
                **more,
            )


def _is_accumulating(trainer: Trainer) -> bool:
    """Gradients are half-way to the next optimizer step; they are not in a checkpoint."""
    return bool(trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches)


def _own_signals(trainer: Trainer) -> None:
    """One owner of signals: switch off both of Lightning's.

    Its handler broadcasts from within the signal handler, which deadlocks when ranks are signalled at different
    instants, and its loop broadcasts once a step to make up for it.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
