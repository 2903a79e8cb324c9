"""The launcher's part in a training: a callback that seeds, saves, reports and stops.

A checkpoint is taken, and training left, between two steps or between two epochs: there, everything that belongs to the
last step is done and nothing of the next has begun, so that the loops' counters alone say where to go on. A validation
that is interrupted is left too; the checkpoint then holds the state from before it.
"""

import copy
import logging
import math
import signal
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden

from launcher.errors import LauncherError
from launcher.node import accumulators, elastic, loops
from launcher.node.buckets import settle_buckets
from launcher.node.curves import Curves, mirror
from launcher.node.deviations import deviations
from launcher.node.elastic import VirtualRanks
from launcher.node.environment import Place
from launcher.node.loaders import Loaders, is_fitting
from launcher.node.plain import plain
from launcher.node.reports import Reports
from launcher.node.saving import Saving
from launcher.node.stop import Agreement, StopFlag, Stopped, control_group, own_signals, smallest
from launcher.run import Run
from launcher.spec import JobSpec
from launcher.state import Attempt

log = logging.getLogger(__name__)


class Session(Callback):
    """One per rank and attempt."""

    def __init__(
        self, run: Run, place: Place, spec: JobSpec, flag: StopFlag, attempt: Attempt, virtual: VirtualRanks
    ) -> None:
        self._virtual = virtual
        self._run, self._place, self._flag = run, place, flag
        self._spec, self._seed, self._policy = spec, spec.seed_everything, spec.checkpoint
        self._attempt = attempt
        self._saved_step = attempt.first_step or 0
        self._stop, self._save = 0, False
        self._restored: dict[str, Any] | None = None
        self._step_begun_at = 0
        self._batches_to_ask = 0
        self._rank_state: accumulators.RankState | None = None
        self._before_validation: dict[str, Any] | None = None
        self._curves_before_validation: dict[str, Any] | None = None
        self._saving: Saving | None = None
        self.reports = Reports(run, place)

    def attach(self, trainer: Trainer, compute: str, curves: dict[str, Any] | None) -> None:
        """Take the places in the trainer that are the launcher's.

        Args:
            compute: the type that the precision really computes in.
            curves: how far the loggers' files reached at the checkpoint; None: the attempt begins at the beginning.
        """
        if self._place.rank == 0:
            files = Curves(trainer.loggers, self._run, mirror(self._run, self._place))
            files.rewind(curves)
            self._saving = Saving(self._run, self._place, self._policy, files)
        self.reports.begin(compute, self._saving)
        own_signals(trainer)
        self._loaders = Loaders(self._seed, self._place.rank, lambda: self._between_steps(trainer), self._virtual)
        self._loaders.attach(trainer)
        begin_epoch = trainer.fit_loop.on_advance_start

        def on_advance_start() -> None:
            if self._restored:
                loops.set_up_epoch(trainer)
                self._restored = None
            self._between_steps(trainer)
            begin_epoch()

        trainer.fit_loop.on_advance_start = on_advance_start  # type: ignore[method-assign]

    # -- starting

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._group = control_group(self._place.world_size)
            self._between = Agreement(self._flag, self._group)
            self._within = Agreement(self._flag, self._group)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._restored = saved = checkpoint["launcher"]
        ranks, world_size = saved["ranks"], self._place.world_size
        if len(ranks) == world_size:
            self._loaders.resume(ranks[self._place.rank]["streams"])
        elif any(state for rank in ranks for state in rank["streams"].values()):
            raise LauncherError(
                f"the streams of {len(ranks)} ranks cannot be divided among {world_size}: "
                f"resume with {len(ranks)} ranks, or start anew with `launcher run`"
            )
        self._virtual.enter(checkpoint)
        # Early stopping's decision, which Lightning forgets; whoever changes a run wants it to go on.
        over = self._attempt.complete or saved["should_stop"]
        trainer.should_stop = over and not self._attempt.changed
        self.reports.restore(saved["metrics"])
        if saved["validation_due"]:
            self._saved_step = -1  # the state after the validation is another one

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        settle_buckets(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.reports.count_steps(trainer)
        if self._restored:
            loops.enter(trainer, validation_due=self._restored["validation_due"])
            ranks, place = self._restored["ranks"], self._place
            state, lost = accumulators.shared_out(trainer, ranks, place.rank, place.world_size)
            accumulators.restore(trainer, state)
            if len(ranks) == 1 < place.world_size:
                accumulators.adopt_sync(trainer)
            if lost and place.rank == 0 and loops.in_epoch(trainer):
                names = ", ".join(lost)
                log.warning("the number of ranks has changed: these metrics of the epoch begin here: %s", names)
        plain(trainer._checkpoint_connector.dump_checkpoint(weights_only=False))  # refuse now what cannot be saved
        if self._place.rank == 0:
            for sentence in deviations(self._spec, trainer, self._loaders.training):
                log.warning("not exact when resumed: %s", sentence)
            for sentence in elastic.deviations(self._virtual.share, trainer):
                log.warning("not as with %d ranks: %s", self._virtual.share.whole.ranks, sentence)
        self.reports.report(trainer, "train")

    # -- at each batch

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self._step_begun_at = trainer.global_step

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self._within_evaluation(trainer)

    def on_test_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self._within_evaluation(trainer)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.reports.report_if_due(trainer, "train")

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.reports.report_if_due(trainer, "validate")

    def close(self) -> None:
        if self._saving:
            self._saving.close()
        self.reports.close()

    def store_curves(self) -> None:
        """Make durable what was logged since the last checkpoint, as by a test. Raises OSError."""
        if self._saving:
            self._saving.curves.sync(self._saving.curves.mark())

    # -- saving and leaving

    def _between_steps(self, trainer: Trainer) -> None:
        """Save if it is time to, leave if all ranks agreed to.

        Raises:
            Stopped: the checkpoint is durable; leave.
            Fenced: a newer attempt has begun.
        """
        self.reports.check()
        if self._saving:
            self._saving.at_step()
        agreed = self._between.ask(save=self._saving is not None and self._saving.is_due)
        self._stop = self._stop or agreed.stop
        self._save = self._save or agreed.save or self._steps_are_up(trainer.global_step)
        if (self._stop or self._save) and self._is_at_rest(trainer):
            self.save(trainer, complete=False)
            if self._stop:
                self._leave(trainer, "train")

    def _is_at_rest(self, trainer: Trainer) -> bool:
        """Nothing has begun that a checkpoint does not hold: no epoch, and no gradients that wait for the next step."""
        if not loops.in_epoch(trainer):
            return True
        done = loops.batches_done(trainer)
        if not trainer.lightning_module.automatic_optimization:
            return done > 0 and trainer.global_step > self._step_begun_at
        return done > 0 and done % trainer.accumulate_grad_batches == 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_evaluation(trainer, sum(trainer.fit_loop.epoch_loop.val_loop.max_batches))
        if trainer.sanity_checking or not self._batches_to_ask:
            return
        self._curves_before_validation = self._saving.curves.mark() if self._saving else None
        self._rank_state = accumulators.collect(trainer)
        if _swaps_for_validation(trainer):
            self._before_validation = copy.deepcopy(self._dump(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rank_state = self._before_validation = None
        if self._policy.monitor and not trainer.sanity_checking:
            is_best = self._saving is not None and self._saving.is_among_best(trainer)
            # Rank 0's word, at once: its metrics may not be those of the others, and one more step changes the weights.
            self._save = smallest(-int(is_best), self._group) < 0 or self._save

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.reports.report(trainer, "test")
        self._begin_evaluation(trainer, sum(trainer.test_loop.max_batches))

    def _begin_evaluation(self, trainer: Trainer, batches: float) -> None:
        """Ranks may have different numbers of batches, and ask one another only while all have one."""
        countable = 0 if trainer.sanity_checking or math.isinf(batches) else int(batches)
        self._batches_to_ask = smallest(countable, self._group)

    def _within_evaluation(self, trainer: Trainer) -> None:
        """Leave a validation or a test if all ranks agreed to.

        Raises:
            Stopped: the state from before the validation is written; leave. (After training there is nothing to write.)
        """
        self.reports.check()
        if self._batches_to_ask == 0:
            return
        self._batches_to_ask -= 1
        self._stop = self._stop or self._within.ask(save=False).stop
        if self._stop:
            if is_fitting(trainer):
                self._write(trainer, self._before_validation or self._dump(trainer), complete=False)
            self._leave(trainer, "validate" if is_fitting(trainer) else "test")

    def _leave(self, trainer: Trainer, stage: str) -> None:
        self.drain(trainer)
        self.reports.report(trainer, stage, left=signal.Signals(self._stop).name)
        raise Stopped

    def drain(self, trainer: Trainer) -> None:
        """Collective. Wait until the newest checkpoint is durable.

        Raises:
            NotSaved: it could not be written.
        """
        if self._saving:
            self._saving.drain()
        trainer.strategy.barrier("launcher.save")  # a rank that leaves early might take the others with it

    def save(self, trainer: Trainer, *, complete: bool) -> None:
        """Collective. Have a checkpoint written, unless there is one of this step.

        Args:
            complete: training has reached its end.
        """
        self._save = False
        if trainer.global_step != self._saved_step:
            self._write(trainer, self._dump(trainer), complete=complete)

    def _dump(self, trainer: Trainer) -> dict[str, Any]:
        return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Collective. Add what Lightning leaves out."""
        validation_due = self._rank_state is not None
        state = self._rank_state or accumulators.collect(trainer)
        state["streams"] = self._loaders.states(trainer, validation_due=validation_due)
        ranks: list[Any] = [state]
        if self._group is not None:
            ranks = [None] * self._place.world_size
            dist.all_gather_object(ranks, state, group=self._group)
        if validation_due:
            loops.before_validation(checkpoint["loops"])
        checkpoint["launcher"] = {
            "should_stop": trainer.should_stop,
            "metrics": self.reports.metrics(trainer),
            "validation_due": validation_due,
            "virtual": self._virtual.state(trainer),
            "ranks": ranks,
        }

    def _write(self, trainer: Trainer, checkpoint: dict[str, Any], *, complete: bool) -> None:
        self._saved_step = trainer.global_step
        if self._saving:
            validation_due = checkpoint["launcher"]["validation_due"]
            curves = self._curves_before_validation if validation_due else None
            self._saving.save(trainer, checkpoint, complete=complete, curves=curves)

    def _steps_are_up(self, step: int) -> bool:
        every = self._policy.every_n_steps
        return every is not None and step // every > self._saved_step // every


def _swaps_for_validation(trainer: Trainer) -> bool:
    """Whether somebody may have put other weights in the model for a validation, as weight averaging does."""
    hooks = ("on_validation_start", "on_validation_epoch_start")
    theirs = [one for one in trainer.callbacks if not isinstance(one, Session)]  # type: ignore[attr-defined]
    of_callbacks = any(is_overridden(hook, one, Callback) for hook in hooks for one in theirs)
    return of_callbacks or any(is_overridden(hook, trainer.lightning_module) for hook in hooks)
