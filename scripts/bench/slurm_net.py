"""A module that writes down when each of its steps ends, and when its process is told to stop. For `slurm notice`."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

SAMPLES = 1 << 20


class Net(LightningModule):
    """
    Args:
        nap: seconds of a step: like one on an accelerator, it leaves the CPU to others.
        log: where rank 0 writes.
    """

    def __init__(self, nap: float, log: str) -> None:
        super().__init__()
        self._nap, self._log = nap, Path(log)
        self.net = nn.Sequential(nn.Linear(8, 1024), nn.ReLU(), nn.Linear(1024, 1))

    def on_train_start(self) -> None:
        before: Any = signal.getsignal(signal.SIGUSR2)

        def told(number: int, frame: object) -> None:
            before(number, frame)
            self._note("told")

        signal.signal(signal.SIGUSR2, told)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        time.sleep(self._nap)
        return self.net(batch[0]).square().mean()

    def on_train_batch_end(self, *args: Any) -> None:
        self._note("step")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.randn(8).expand(SAMPLES, 8)), 8)

    def _note(self, what: str) -> None:
        if self.global_rank == 0:
            line = {"what": what, "time": time.time(), "attempt": int(os.environ["LAUNCHER_ATTEMPT"])}
            descriptor = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, json.dumps(line).encode() + b"\n")
            os.close(descriptor)
