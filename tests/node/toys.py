"""Small modules to train, and faults to train them with; found by the specs of the tests as `toys.Name`."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
from torchmetrics import CatMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from launcher.ledger import Ledger
from launcher.storage import PosixStorage


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


def wait_until_saved(step: int) -> None:
    ledger = Ledger(PosixStorage(Path(os.environ["LAUNCHER_RUN_DIR"])))
    while ledger.refresh().best_step < step:
        time.sleep(0.01)


class Signal(Callback):
    """Sends a signal to this rank's own process after the given steps, each once in the life of a run.

    With `saved` not before the checkpoint of that step counts: it is written while training goes on.
    """

    def __init__(self, at: list[int], number: str = "SIGKILL", ranks: list[int] | None = None, saved: int = -1) -> None:
        self.at, self.number, self.ranks, self.saved = at, getattr(signal, number), ranks, saved

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step not in self.at or (self.ranks is not None and trainer.global_rank not in self.ranks):
            return
        fired = Path(os.environ["LAUNCHER_RUN_DIR"]) / f"fired-{trainer.global_step}-{trainer.global_rank}"
        if not fired.exists():
            fired.touch()
            wait_until_saved(self.saved)
            os.kill(os.getpid(), self.number)


class Raise(Callback):
    """The user's own mistake, in one rank."""

    def __init__(self, at: int, rank: int = 0) -> None:
        self.at, self.rank = at, rank

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.at and trainer.global_rank == self.rank:
            raise ValueError("no such luck")


class Interrupt(Callback):
    """Sends a signal to some ranks' own processes at a place in the training, once in the life of a run.

    Places: `first step`, `mid-epoch`, `last batch`, `epoch end` (between the last batch and the hooks of others),
    `validation` (the one after the first epoch, or within it), `save`, `test`.
    """

    def __init__(self, place: str, number: str = "SIGKILL", ranks: list[int] | None = None) -> None:
        self.place, self.number, self.ranks = place, getattr(signal, number), ranks

    def at(self, trainer: Trainer, place: str) -> None:
        if place != self.place or (self.ranks is not None and trainer.global_rank not in self.ranks):
            return
        fired = Path(os.environ["LAUNCHER_RUN_DIR"]) / f"fired-{place}-{trainer.global_rank}"
        if not fired.exists():
            fired.touch()
            os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.fit_loop.total_batch_idx == 0:
            self.at(trainer, "first step")

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        batch, batches = trainer.fit_loop.total_batch_idx + 1, int(trainer.num_training_batches)
        if batch == batches + batches // 2 - 1:
            self.at(trainer, "mid-epoch")
        if batch == batches:
            self.at(trainer, "last batch")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.at(trainer, "epoch end")

    def on_validation_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Any, idx: int, *_: Any
    ) -> None:
        if not trainer.sanity_checking and idx == 1:
            self.at(trainer, "validation")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.global_step >= 8:
            self.at(trainer, "save")

    def on_test_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.at(trainer, "test")


class Blocked(Callback):
    """From one step to another, no folder can be made for a checkpoint; as when storage fails.

    It begins when the checkpoint of step `saved` counts: that one is written while training goes on.
    """

    def __init__(self, begin: int, end: int, saved: int, stop_at: int | None = None) -> None:
        self.begin, self.end, self.saved, self.stop_at = begin, end, saved, stop_at
        self.folder = Path(os.environ["LAUNCHER_RUN_DIR"]) / "checkpoints"

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_rank == 0 and trainer.global_step == self.begin and not self.folder.is_file():
            wait_until_saved(self.saved)
            self.folder.rename(self.folder.with_name("aside"))
            self.folder.touch()
        if self.folder.is_file() and trainer.global_step == self.end:
            self.folder.unlink()
            self.folder.with_name("aside").rename(self.folder)
        if trainer.global_step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)


class Full(LightningModule):
    """Dropout, batch norm, and every way to accumulate over an epoch; schedulers and optimizers as the test asks."""

    def __init__(self, scheduler: str | None = None, optimizers: int = 1, manual: bool = False, every: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 2))
        self.other = nn.Linear(16, 2)
        self.accuracy = MulticlassAccuracy(2)
        self.unlogged = MulticlassAccuracy(2)
        self.collection = MetricCollection([MulticlassAccuracy(2, average="micro"), MulticlassF1Score(2)], prefix="c_")
        self.scores = CatMetric()
        self.automatic_optimization = not manual

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        x, y, _ = batch
        logits = self.net(x) + self.other(x)
        loss = nn.functional.cross_entropy(logits, y)
        self.accuracy(logits, y)
        self.unlogged.update(logits, y)
        self.collection.update(logits, y)
        self.scores.update(loss.detach())
        self.log("loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        self.log("largest", loss, on_step=False, on_epoch=True, reduce_fx="max", sync_dist=True)
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        if batch_idx == 2:  # not in each batch
            self.log("rarely", loss, on_step=False, on_epoch=True, sync_dist=True)
        if self.automatic_optimization:
            return loss
        optimizers = self.optimizers()
        every = self.hparams["every"]
        self.manual_backward(loss / every)
        if (batch_idx + 1) % every == 0:
            for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
                optimizer.step()
                optimizer.zero_grad()
        return None

    def on_train_epoch_end(self) -> None:
        self.log("unlogged", self.unlogged.compute(), sync_dist=True)
        self.log("scores", self.scores.compute().mean(), sync_dist=True)
        self.log_dict(self.collection.compute(), sync_dist=True)
        for metric in (self.unlogged, self.scores, self.collection):
            metric.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y, _ = batch
        self.log("val_loss", nn.functional.cross_entropy(self.net(x) + self.other(x), y), sync_dist=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        x, y, _ = batch
        self.log("test_loss", nn.functional.cross_entropy(self.net(x) + self.other(x), y), sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(self.parameters(), 1e-2)]
        if self.hparams["optimizers"] == 2:
            optimizers = [torch.optim.Adam(self.net.parameters(), 1e-2), torch.optim.SGD(self.other.parameters(), 1e-2)]
        match self.hparams["scheduler"]:
            case "step":
                schedule = torch.optim.lr_scheduler.OneCycleLR(optimizers[0], 3e-2, total_steps=40)
                return optimizers, [{"scheduler": schedule, "interval": "step"}]
            case "epoch":
                return optimizers, [torch.optim.lr_scheduler.StepLR(optimizers[0], 1, 0.5)]
            case "plateau":
                plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizers[0], patience=0, threshold=0.5)
                return optimizers, [{"scheduler": plateau, "monitor": "val_loss"}]
            case "plateau on loss_epoch":
                plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizers[0], patience=0, threshold=0.5)
                return optimizers, [{"scheduler": plateau, "monitor": "loss_epoch"}]
        return optimizers


class Recorded(Classifier):
    """Writes down each micro-batch, with what was drawn for its samples and in its step, and whether it counts."""

    def __init__(self, trace: str, norm: bool = False, lr_every: int = 0, spare: bool = False) -> None:
        super().__init__()
        self.folder, self.lr_every = trace, lr_every
        self.spare = nn.Linear(16, 2) if spare else None
        if norm:
            self.net = nn.Sequential(
                nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 2)
            )
        self.accuracy = MulticlassAccuracy(2, average="micro")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y, index = batch
        logits = self.net(x)
        if self.spare and index[0] % 3 == 0:  # not in each batch
            logits = logits + self.spare(x)
        loss = nn.functional.cross_entropy(logits, y)
        self.accuracy(logits, y)
        self.log("loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        self.seen = {
            "attempt": int(os.environ["LAUNCHER_ATTEMPT"]),
            "rank": self.global_rank,
            "step": self.global_step,
            "what": [index.tolist(), x.tolist(), float(torch.rand(()))],
        }
        return loss

    def on_before_backward(self, loss: Tensor) -> None:
        with Path(self.folder).open("a") as file:
            file.write(json.dumps({**self.seen, "counts": bool(loss != 0)}) + "\n")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), self.lr)
        if not self.lr_every:
            return optimizer
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
        return [optimizer], [{"scheduler": schedule, "interval": "step", "frequency": self.lr_every}]


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
    """96 samples, of which each worker has its share; says where it stands."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        data, info = NoisyDataset(96), get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        while self.at * workers + worker < 96:
            index = self.at * workers + worker
            self.at += 1
            yield data[index]
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


class StreamData(NoisyData):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Stream(), 8, num_workers=self.num_workers)


class Blind(IterableDataset[Any]):
    """Does not say where it stands."""

    def __iter__(self) -> Iterator[Any]:
        return iter(NoisyDataset(96))


class BlindData(NoisyData):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Blind(), 8)


class Schedule(GradientAccumulationScheduler):
    """JSON has no numbers for keys."""

    def __init__(self, scheduling: dict[str, int]) -> None:
        super().__init__({int(epoch): factor for epoch, factor in scheduling.items()})


class Holder:
    def __init__(self, parts: Any, plain: Any = None) -> None:
        self.parts, self.plain = parts, plain


class Fussy:
    def __init__(self, size: int) -> None:
        if size < 0:
            raise ValueError("negative")


class Tied(Classifier):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
        self.net[2].weight = self.net[0].weight


class ByXla(Classifier):
    """Has gradients go as on a TPU, whatever there is."""

    def __init__(self) -> None:
        super().__init__()
        from launcher.node import xla, xla_ranks

        xla.join = lambda place: xla_ranks.ByXla()


class Types(Callback):
    """Writes down which types each layer has seen in a forward pass, and those of what is kept from step to step."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.seen: dict[str, set[str]] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for layer in pl_module.modules():
            if isinstance(layer, nn.Linear):
                layer.register_forward_hook(
                    lambda layer, _, out: self.note(computed=[out], **{"in forward": [layer.weight]})
                )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parameters = list(pl_module.parameters())
        states = [
            one for state in trainer.optimizers[0].state.values() for one in (state["exp_avg"], state["exp_avg_sq"])
        ]
        self.note(parameters=parameters, gradients=[one.grad for one in parameters], optimizer=states)
        Path(self.path).write_text(json.dumps({name: sorted(seen) for name, seen in self.seen.items()}))

    def note(self, **tensors: list[Any]) -> None:
        for name, values in tensors.items():
            self.seen.setdefault(name, set()).update(f"{one.dtype} on {one.device.type}" for one in values)
