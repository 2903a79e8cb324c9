"""Lightning's loops, entered where an attempt has left them.

An attempt leaves in one of three places: between two epochs, between two steps of one epoch, or before a validation
that is due. Lightning's own notion of restarting knows neither exactly: it takes a state from between two steps for one
from before the validation there, counts a batch twice, skips the update of a plateau scheduler at the end of the epoch,
and goes on in the middle of an interrupted validation.
"""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.loops.evaluation_loop import RestartStage


def in_epoch(trainer: Trainer) -> bool:
    """Whether an epoch has begun and not ended."""
    progress = trainer.fit_loop.epoch_progress.current
    return progress.ready > progress.completed


def batches_done(trainer: Trainer) -> int:
    """This rank's batches of this epoch; 0 between two epochs."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready if in_epoch(trainer) else 0


def before_validation(loops: dict[str, Any]) -> None:
    """Change a checkpoint's loop state, taken during a validation, to that before its first batch."""
    progress = loops["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    for name, done in progress["current"].items():
        progress["total"][name] -= done
        progress["current"][name] = 0
    progress["is_last_batch"] = False


def rescale(loops: dict[str, Any], ranks: int, new: int) -> None:
    """Change a checkpoint's loop state, which counts one rank's batches, to that of another number of ranks.

    The first batches of all ranks are the same samples as the first ones of more or fewer ranks, since a distributed
    sampler deals them out in turn; where the division leaves a rest, these samples are seen again.
    """
    progress = loops["fit_loop"]["epoch_loop.batch_progress"]
    for part in ("total", "current"):
        progress[part] = {name: done * ranks // new for name, done in progress[part].items()}


def set_batches(loops: dict[str, Any], done: int, *, earlier: tuple[int, int]) -> None:
    """Change a checkpoint's loop state, taken between two steps, to one with so many batches of this epoch done.

    Args:
        done: batches of the rank that goes on.
        earlier: numbers of ranks, of the checkpoint and now: epochs before have as many more or fewer batches.
    """
    progress = loops["fit_loop"]["epoch_loop.batch_progress"]
    ranks, new = earlier
    for name, current in progress["current"].items():
        progress["total"][name] = (progress["total"][name] - current) * ranks // new + done
        progress["current"][name] = done


def enter(trainer: Trainer, *, validation_due: bool) -> None:
    """Have the loops go on exactly where they have been left. At on_train_start of a resumed attempt."""
    fit, epoch = trainer.fit_loop, trainer.fit_loop.epoch_loop
    fit._restarting = False  # else the plateau schedulers miss the end of this epoch
    if not in_epoch(trainer):
        epoch.restarting = False  # nothing of the next epoch has run: begin it
        return
    if validation_due:
        epoch.val_loop.restarting = False
        epoch.val_loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION  # "go back and run it"
        return
    begin = epoch.on_run_start

    def on_run_start(data_fetcher: Any) -> None:
        begin(data_fetcher)
        # The counters are set: from here on nothing is restarting, and no validation is due again.
        epoch.restarting = False
        del epoch.on_run_start

    epoch.on_run_start = on_run_start  # type: ignore[method-assign]


def set_up_epoch(trainer: Trainer) -> None:
    """Call the hook that these callbacks of Lightning have missed: they keep nothing of it in their state.

    Before the first epoch of a resumed attempt, after on_train_start.

    SWA's sets up its scheduler, and with it learning rates that the optimizer has been given back already. (Its last
    epoch, for batch norm, begins anew each time: it is never left half-way.)
    """
    groups = [[dict(group) for group in optimizer.param_groups] for optimizer in trainer.optimizers]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, StochasticWeightAveraging):
            missed = callback._scheduler_state is not None and trainer.current_epoch <= callback.swa_end
        else:
            missed = isinstance(callback, GradientAccumulationScheduler)
        if missed:
            callback.on_train_epoch_start(trainer, trainer.lightning_module)
    for optimizer, saved in zip(trainer.optimizers, groups, strict=True):
        for group, values in zip(optimizer.param_groups, saved, strict=True):
            group.update(values)
