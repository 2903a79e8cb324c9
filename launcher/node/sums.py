"""exact: world-size. Gradients are added in one fixed binary tree over all micro-batches of a step, wherever they are.

The tree stands on the slots of `shares.py`, of which a rank has neighbours: the lower part of the tree is what a rank
accumulates, the upper part goes over ranks, by recursive doubling. Losses are not divided before their backward pass;
the sum is, once, at the end: with losses that are divided by the number of micro-batches of a rank, as Lightning does,
small numbers would be rounded differently on different numbers of ranks.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from launcher.errors import UsageError
from launcher.node.elastic import VirtualRanks

Gradients = dict[Tensor, Tensor]
"""By their parameters."""


class NotExact(UsageError):
    """This training cannot have the same bits on another number of ranks; the message says why."""


class Tree:
    """The sum of the leaves of a binary tree that come in ascending order; those that are left out count as nothing.

    Holds one partial sum for each level at most.
    """

    def __init__(self) -> None:
        self._partial: list[tuple[int, Gradients]] = []

    def __len__(self) -> int:
        return len(self._partial)

    def make_room(self, slot: int) -> None:
        """Before the leaf in this slot: what lies in subtrees that end before it becomes one."""
        while len(self._partial) > 1:
            (left, below), (right, top) = self._partial[-2:]
            if _level(left, right) >= _level(right, slot):
                return
            self._partial[-2:] = [(left, _added(below, top))]

    def add(self, slot: int, gradients: Gradients) -> None:
        self.make_room(slot)
        self._partial.append((slot, gradients))

    def with_last(self, parameter: Tensor, last: Tensor | None) -> Tensor | None:
        """The whole sum for one parameter, its last leaf included; changes that one in place."""
        total = last
        for _, gradients in reversed(self._partial):
            if parameter in gradients:
                total = gradients[parameter] if total is None else total.add_(gradients[parameter])
        return total

    def define(self, model: LightningModule) -> None:
        """Give parameters that have had a gradient in this step one of zeros: DDP insists on it for the last one."""
        for parameter in model.parameters():
            if parameter.grad is None and any(parameter in gradients for _, gradients in self._partial):
                parameter.grad = torch.zeros_like(parameter)

    def clear(self) -> None:
        self._partial.clear()


def _level(one: int, other: int) -> int:
    """Height of the lowest node above both slots."""
    return (one ^ other).bit_length()


def _added(one: Gradients, other: Gradients) -> Gradients:
    for parameter, gradient in other.items():
        one[parameter] = one[parameter].add_(gradient) if parameter in one else gradient
    return one


class TreeSums(Callback):
    """Takes the place of Lightning's accumulation and of DDP's all-reduce."""

    def __init__(self, virtual: VirtualRanks) -> None:
        self._virtual = virtual
        self._scale = 1.0 / virtual.share.whole.micro_batches
        self._tree = Tree()

    def attach(self, trainer: Trainer, model: LightningModule) -> None:
        """Raises NotExact: the training uses what cannot be exact."""
        for reason in _obstacles(trainer, model, self._virtual):
            raise NotExact(f"exact: world-size: {reason}; leave `exact` out, or change that")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if any(isinstance(one, torch.optim.LBFGS) for one in trainer.optimizers):
            raise NotExact("exact: world-size: LBFGS goes through a batch several times in a step; leave `exact` out")
        strategy = trainer.strategy
        if isinstance(strategy.model, DistributedDataParallel):
            strategy.model.register_comm_hook(self._virtual.share, self._over_ranks)
        backward = strategy.backward

        def backward_into_tree(loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            micro_batch, last = self._virtual.micro_batch(trainer), not trainer.fit_loop._should_accumulate()
            if micro_batch.counts:
                self._tree.make_room(micro_batch.slot)
            if last and isinstance(strategy.model, DistributedDataParallel) and strategy.model.find_unused_parameters:
                self._tree.define(pl_module)
            done = backward(loss * trainer.accumulate_grad_batches, *args, **kwargs)
            if not last:
                gradients = _taken(pl_module)
                if micro_batch.counts:
                    self._tree.add(micro_batch.slot, gradients)
                return done
            if not isinstance(strategy.model, DistributedDataParallel):
                for parameter in pl_module.parameters():
                    total = self._tree.with_last(parameter, parameter.grad)
                    parameter.grad = None if total is None else total.mul_(self._scale)
            self._tree.clear()
            return done

        strategy.backward = backward_into_tree  # type: ignore[method-assign, assignment]

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_idx % trainer.accumulate_grad_batches == 0 and len(self._tree):
            raise NotExact(
                "exact: world-size: training_step returned None for the last batch of a step; return a loss for each"
            )

    def _over_ranks(self, _: object, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """DDP's communication hook: a bucket with the last gradients of this rank becomes the mean of all."""
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            self._tree.with_last(parameter, gradient)
        total, distance = bucket.buffer(), 1
        while distance < self._virtual.share.world_size:
            peer, theirs = self._virtual.share.rank ^ distance, torch.empty_like(total)
            exchange = [dist.P2POp(dist.isend, total, peer), dist.P2POp(dist.irecv, theirs, peer)]
            for work in dist.batch_isend_irecv(exchange):
                work.wait()
            total.add_(theirs)
            distance *= 2
        done: torch.futures.Future[Tensor] = torch.futures.Future(devices=[total.device] if total.is_cuda else None)
        done.set_result(total.mul_(self._scale))
        return done


def _taken(model: LightningModule) -> Gradients:
    """The gradients, which the model has no longer."""
    taken: Gradients = {}
    for parameter in model.parameters():
        if parameter.grad is not None:
            taken[parameter], parameter.grad = parameter.grad, None
    return taken


def _obstacles(trainer: Trainer, model: LightningModule, virtual: VirtualRanks) -> Iterator[str]:
    strategy, share = trainer.strategy, virtual.share
    if not model.automatic_optimization:
        yield "with manual optimization the model's own code adds up gradients"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler | StochasticWeightAveraging):
            yield f"{type(callback).__name__} changes trainer.accumulate_grad_batches while training"
    if type(strategy) not in (DDPStrategy, SingleDeviceStrategy):
        yield f"trainer.strategy {type(strategy).__name__} adds up gradients in its own way"
    elif isinstance(strategy, DDPStrategy):
        if strategy._ddp_comm_hook is not None:
            yield "trainer.strategy has a ddp_comm_hook, whose place it takes"
        for name in ("gradient_as_bucket_view", "static_graph"):
            if strategy._ddp_kwargs.get(name):
                yield f"trainer.strategy has {name}"
        if strategy._layer_sync is not None:
            yield "with trainer.sync_batchnorm, statistics are taken over the batches of all ranks together"
    if any(isinstance(one, torch.nn.SyncBatchNorm) for one in model.modules()):
        yield "SyncBatchNorm takes its statistics over the batches of all ranks together"
    if any(isinstance(one, torch.nn.Embedding | torch.nn.EmbeddingBag) and one.sparse for one in model.modules()):
        yield "an embedding has sparse gradients, which DDP does not hand to a communication hook"
    if share.accumulate < share.whole.accumulate and any(True for _ in model.buffers()):
        yield (
            f"buffers, such as batch norm's running statistics, would follow fewer batches on {share.world_size} ranks "
            f"than on the {share.whole.ranks} that the run began with"
        )
