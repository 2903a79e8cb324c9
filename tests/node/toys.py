"""Small modules to train, and faults to train them with; found by the specs of the tests as `toys.Name`."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset


class NoisyDataset(Dataset[tuple[Tensor, Tensor, int]]):
    """Fixed samples, each with fresh noise whenever it is drawn."""

    def __init__(self, size: int) -> None:
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(size, 16, generator=generator)
        self.y = (self.x.sum(1) > 0).long()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        return self.x[index] + 0.1 * torch.randn(16), self.y[index], index


class NoisyData(LightningDataModule):
    def __init__(self, size: int = 192, batch_size: int = 8, num_workers: int = 0) -> None:
        super().__init__()
        self.size, self.batch_size, self.num_workers = size, batch_size, num_workers

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(NoisyDataset(self.size), self.batch_size, shuffle=True, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(NoisyDataset(64), 16)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(NoisyDataset(64), 16)


class Classifier(LightningModule):
    """With dropout, so that random state matters; writes which samples each step has seen."""

    def __init__(self, lr: float = 1e-2, trace: str | None = None) -> None:
        super().__init__()
        self.lr, self.trace = lr, trace
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 2))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y, index = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.log("train_loss", loss)
        if self.trace:
            seen = {"rank": self.global_rank, "step": self.global_step, "samples": index.tolist(), "x": float(x.sum())}
            with Path(self.trace).open("a") as file:
                file.write(json.dumps(seen) + "\n")
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y, _ = batch
        self.log("val_loss", nn.functional.cross_entropy(self.net(x), y), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.lr)


class Signal(Callback):
    """Sends a signal to this rank's own process after the given steps, each once in the life of a run."""

    def __init__(self, at: list[int], number: str = "SIGKILL", ranks: list[int] | None = None) -> None:
        self.at, self.number, self.ranks = at, getattr(signal, number), ranks

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step not in self.at or (self.ranks is not None and trainer.global_rank not in self.ranks):
            return
        fired = Path(os.environ["LAUNCHER_RUN_DIR"]) / f"fired-{trainer.global_step}-{trainer.global_rank}"
        if not fired.exists():
            fired.touch()
            os.kill(os.getpid(), self.number)


class Raise(Callback):
    """The user's own mistake, in one rank."""

    def __init__(self, at: int, rank: int = 0) -> None:
        self.at, self.rank = at, rank

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.at and trainer.global_rank == self.rank:
            raise ValueError("no such luck")


class DiesInTest(Classifier):
    """Killed in its first test; what it had trained must not be trained again."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        tested = Path(os.environ["LAUNCHER_RUN_DIR"]) / f"tested-{self.global_rank}"
        if not tested.exists():
            tested.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        x, y, _ = batch
        self.log("test_loss", nn.functional.cross_entropy(self.net(x), y), sync_dist=True)


class Stream(IterableDataset[tuple[Tensor, Tensor, int]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        data = NoisyDataset(96)
        return ((data.x[i], data.y[i], i) for i in range(96))


class StreamData(NoisyData):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Stream(), 8)


class Holder:
    def __init__(self, parts: Any, plain: Any = None) -> None:
        self.parts, self.plain = parts, plain


class Fussy:
    def __init__(self, size: int) -> None:
        if size < 0:
            raise ValueError("negative")
