"""What a user might train: found beside the spec as `slow_net.Net`. Slow enough to be interrupted."""

import time
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


class Samples(Dataset[tuple[Tensor, Tensor]]):
    """Each sample takes a moment, and has fresh noise whenever it is drawn."""

    def __init__(self, size: int, nap: float) -> None:
        self.size, self.nap = size, nap

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        time.sleep(self.nap)
        x = torch.full((4,), index / self.size) + 0.1 * torch.randn(4)
        return x, x.sum(0, keepdim=True)


class Net(LightningModule):
    def __init__(self, steps: int = 200, nap: float = 0.02, raises_at: int | None = None) -> None:
        super().__init__()
        self.steps, self.nap, self.raises_at = steps, nap, raises_at
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.global_step == self.raises_at and self.global_rank == 1:
            raise KeyError("label")
        x, y = batch
        loss = nn.functional.mse_loss(self.net(x), y)
        self.log("train_loss", loss)
        return loss

    def test_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("test_loss", nn.functional.mse_loss(self.net(x), y), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)

    def train_dataloader(self) -> DataLoader[Any]:
        ranks = self.trainer.world_size
        return DataLoader(Samples(self.steps * ranks, self.nap), 1, shuffle=True, num_workers=1)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Samples(4, 0), 2)
