"""A run on another number of ranks than it began with: the ranks of that time become virtual ones (`shares.py`).

Each micro-batch keeps its samples, its random numbers and its place in the step; Lightning's counters, which count
batches of a real rank, are translated where they matter.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.trainer.connectors.data_connector import _get_distributed_sampler
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.data import _update_dataloader
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset

from launcher.errors import UsageError
from launcher.node import accumulators, loops
from launcher.node.shares import MicroBatch, Share


class CannotShare(UsageError):
    """This training cannot go on with another number of ranks; the message says why, and with which it can."""


class VirtualRanks(Callback):
    """Before the hooks of the user's own callbacks."""

    def __init__(self, share: Share) -> None:
        self.share = share
        self._epoch: int | None = None
        self._limit: int | float = 1.0
        self._interval: Any = None
        self._buffers: _Buffers | None = None
        self._unseen: accumulators.RankState | None = None

    def attach(self, trainer: Trainer, model: LightningModule) -> None:
        """Take the places in the trainer that are the launcher's, if the number of ranks has changed.

        Raises:
            CannotShare: what this training uses forbids another number of ranks.
        """
        if not self.share.is_changed:
            return
        for reason in _obstacles(trainer, model):
            raise self._refusal(reason)
        self._limit, self._interval = trainer.limit_train_batches, trainer.val_check_interval
        connector = trainer._data_connector
        prepare = connector._prepare_dataloader

        def _prepare_dataloader(dataloader: object, shuffle: bool, mode: RunningStage) -> object:
            if mode == RunningStage.TRAINING:
                return self._prepared(trainer, dataloader, shuffle=shuffle)
            return prepare(dataloader, shuffle=shuffle, mode=mode)

        connector._prepare_dataloader = _prepare_dataloader  # type: ignore[method-assign]

    def micro_batch(self, trainer: Trainer) -> MicroBatch:
        """The one that is being trained with."""
        return self.share.micro_batch(trainer.fit_loop.epoch_loop.batch_idx, self._epoch)

    # -- counters

    def limit(self, batches: int) -> int:
        """How many of an original rank's batches trainer.limit_train_batches leaves."""
        return min(batches, self._limit) if isinstance(self._limit, int) else int(batches * self._limit)

    def begin(self, trainer: Trainer, epoch: int, number: int) -> None:
        """Before Lightning reads what it counts batches with: translate it.

        Args:
            epoch: batches that each original rank would be trained with.
            number: of the loader, among those of the training.

        Raises:
            CannotShare: validations would lie within a step, or there are several loaders.
        """
        if number > 0:
            raise self._refusal("there are several training dataloaders")
        self._epoch = epoch
        trainer.limit_train_batches = 1.0
        if trainer._val_check_time_interval is None:  # type: ignore[attr-defined]
            trainer.val_check_interval = self._validate_after(trainer, epoch)

    def _validate_after(self, trainer: Trainer, epoch: int) -> int | float:
        given, accumulate = self._interval, self.share.whole.accumulate
        after = given if isinstance(given, int) else max(1, int(epoch * given))
        across = trainer.check_val_every_n_epoch is None
        if after == epoch and not across:
            return 1.0
        if after % accumulate or (across and epoch % accumulate):
            raise self._refusal(
                f"trainer.val_check_interval has a validation after {after} batches, within a step of {accumulate}"
            )
        return int(after // accumulate * self.share.accumulate)

    def state(self, trainer: Trainer) -> dict[str, int]:
        """Where this rank stands, such that any number of ranks can go on from there."""
        own = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return {"ranks": self.share.whole.ranks, "done": self.share.virtual(own, self._epoch)}

    def enter(self, checkpoint: dict[str, Any]) -> None:
        """Change a checkpoint's loop state, which counts batches of one of its ranks, to count those of this one."""
        saved, ranks = checkpoint["launcher"], len(checkpoint["launcher"]["ranks"])
        if saved["virtual"]["ranks"] != self.share.whole.ranks:  # another run's, with which this one begins
            if ranks != self.share.world_size:
                loops.rescale(checkpoint["loops"], ranks, self.share.world_size)
            return
        if ranks == self.share.world_size and not self.share.is_changed:
            return
        done = saved["virtual"]["done"]
        if not self.share.is_changed:
            own = done
        elif checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"]:
            own = self.share.own(done)
        else:
            own = done // self.share.whole.accumulate * self.share.accumulate
        loops.set_batches(checkpoint["loops"], own, earlier=(ranks, self.share.world_size))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.share.is_changed:
            return
        for config in trainer.lr_scheduler_configs:
            if config.interval == "step" and config.frequency > 1:  # Lightning counts batches here too
                if (self._epoch or 0) % self.share.whole.accumulate:
                    raise self._refusal(f"a learning rate scheduler has frequency {config.frequency} in short steps")
                config.frequency = (
                    self.share.accumulate * config.frequency // math.gcd(config.frequency, self.share.whole.accumulate)
                )

    # -- each micro-batch

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.share.is_changed:
            return
        strategy = trainer.strategy
        backward = strategy.backward

        def weighted(loss: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            return backward(loss if self.micro_batch(trainer).counts else loss * 0.0, *args, **kwargs)

        strategy.backward = weighted  # type: ignore[method-assign, assignment]
        if any(True for _ in pl_module.buffers()):
            self._buffers = _Buffers(pl_module, keeps=self.share.rank == 0)
            if self.share.world_size > 1:
                # DDP sends rank 0's within its forward, and calls this hook after that.
                pl_module.register_forward_pre_hook(lambda *_: self._enter_buffers(trainer))

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if not self.share.is_changed:
            return
        if not self.micro_batch(trainer).counts:
            self._unseen = accumulators.collect(trainer)
        if self._buffers:
            self._buffers.entered = False
            if self.share.world_size == 1:
                self._enter_buffers(trainer)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if self._unseen is not None:
            accumulators.forget(trainer)
            accumulators.restore(trainer, self._unseen)
            self._unseen = None
        if self._epoch is not None and trainer.fit_loop.epoch_loop.batch_idx + 1 == self.share.own(self._epoch):
            accumulators.allow_fractions(trainer)
        if self._buffers and not trainer.fit_loop._should_accumulate():
            self._buffers.end_step()

    def _enter_buffers(self, trainer: Trainer) -> None:
        if self._buffers and trainer.training and not self._buffers.entered:
            first = trainer.fit_loop.epoch_loop.batch_idx % self.share.accumulate == 0
            self._buffers.enter(self.micro_batch(trainer), first=first)

    # -- data

    def _prepared(self, trainer: Trainer, loader: object, *, shuffle: bool) -> object:
        """The loader as Lightning would prepare it for one of the original ranks; `Order` says for which."""
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            what = loader.dataset if isinstance(loader, DataLoader) else loader
            raise self._refusal(f"nobody can divide the stream of train_dataloader ({type(what).__name__})")
        ranks, sampler = self.share.whole.ranks, loader.sampler
        if isinstance(sampler, DistributedSampler):
            if type(sampler) is not DistributedSampler or type(loader.batch_sampler) not in (BatchSampler, type(None)):
                raise self._refusal(f"train_dataloader deals samples to ranks with its own {type(sampler).__name__}")
            original = type(sampler)(
                sampler.dataset, ranks, 0, sampler.shuffle, seed=sampler.seed, drop_last=sampler.drop_last
            )
            return _update_dataloader(loader, original, mode=RunningStage.TRAINING)
        if not trainer._accelerator_connector.use_distributed_sampler:
            raise self._refusal("trainer.use_distributed_sampler is false: the code deals samples to ranks itself")
        if ranks == 1:
            return loader
        overfit: int | float = trainer.overfit_batches  # type: ignore[attr-defined]
        original = _get_distributed_sampler(
            loader, shuffle, overfit, mode=RunningStage.TRAINING, num_replicas=ranks, rank=0
        )
        return _update_dataloader(loader, original, mode=RunningStage.TRAINING)

    def _refusal(self, reason: str) -> CannotShare:
        return CannotShare(
            f"{self.share.world_size} ranks cannot go on with what {self.share.whole.ranks} have begun: {reason}; "
            f"resume with {self.share.whole.ranks} ranks, or start anew with `launcher run`"
        )


def deviations(share: Share, trainer: Trainer) -> Iterator[str]:
    """What differs from the run on the original number of ranks: sentences for the user."""
    if not share.is_changed:
        return
    if _syncs_batch_norm(trainer.lightning_module):
        yield "SyncBatchNorm takes its statistics over the batches of all ranks, which are now others"
    elif share.accumulate < share.whole.accumulate and any(True for _ in trainer.lightning_module.buffers()):
        yield "buffers, such as batch norm's running statistics, follow fewer of the batches: rank 0 has fewer of them"


def _syncs_batch_norm(model: LightningModule) -> bool:
    return any(isinstance(one, torch.nn.SyncBatchNorm) for one in model.modules())


def _obstacles(trainer: Trainer, model: LightningModule) -> Iterator[str]:
    """What decides by itself how many batches a step has."""
    if not model.automatic_optimization:
        yield "with manual optimization the model's own code decides which batches make a step"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler | StochasticWeightAveraging):
            yield f"{type(callback).__name__} changes trainer.accumulate_grad_batches while training"
    if trainer.strategy.handles_gradient_accumulation:
        yield f"{type(trainer.strategy).__name__} accumulates gradients by itself"


class _Buffers:
    """The model's buffers, such as running statistics, as each virtual rank would have had them.

    DDP sends those of rank 0 to all at the beginning of each step: every virtual rank begins with these, and those of
    virtual rank 0 remain.
    """

    def __init__(self, model: LightningModule, *, keeps: bool) -> None:
        """`keeps`: this is rank 0, whose buffers remain."""
        self._model, self._keeps = model, keeps
        self._begun: list[torch.Tensor] = []
        self._kept: list[torch.Tensor] | None = None
        self._at: tuple[int, bool] = (0, True)
        self.entered = True
        """This micro-batch's have been put in place."""

    def enter(self, micro_batch: MicroBatch, *, first: bool) -> None:
        """`first`: of a step."""
        at = (micro_batch.rank, micro_batch.counts)
        if first:
            self._begun, self._kept = self._copied(), None
        elif at != self._at:
            if self._keeps and self._at == (0, True):
                self._kept = self._copied()
            self._put(self._begun)
        self._at, self.entered = at, True

    def end_step(self) -> None:
        if self._kept is not None:
            self._put(self._kept)

    def _copied(self) -> list[torch.Tensor]:
        return [one.detach().clone() for one in self._model.buffers()]

    def _put(self, values: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for buffer, value in zip(self._model.buffers(), values, strict=True):
                buffer.copy_(value)
