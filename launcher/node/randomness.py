"""Random state of a training: set anew for each step, so that none of it has to be saved."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from launcher.node.elastic import VirtualRanks
from launcher.node.seeding import mix, seed_all


class Randomness(Callback):
    """Before the hooks of the user's own callbacks."""

    def __init__(self, seed: int, rank: int, virtual: VirtualRanks) -> None:
        self._seed, self._rank, self._virtual = seed, rank, virtual

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._set("epoch", trainer.current_epoch)

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        rank, batch, _, _ = self._virtual.micro_batch(trainer)
        seed_all(mix(self._seed, "step", trainer.current_epoch, batch, rank))

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._set("validation", trainer.global_step, dataloader_idx, batch_idx)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._set("test", dataloader_idx, batch_idx)

    def _set(self, *where: object) -> None:
        seed_all(mix(self._seed, *where, self._rank))
