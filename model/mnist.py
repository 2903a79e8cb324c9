"""A fully connected classifier of handwritten digits, and the MNIST data it learns from."""

import math
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split
from torchmetrics.classification import MulticlassAccuracy
from torchvision.datasets import MNIST
from torchvision.transforms import Normalize

Batch = tuple[Tensor, Tensor]
"""Images, (batch, 1, 28, 28) float32, normalised; labels, (batch,) int64, 0..9."""

IMAGE_SHAPE = (1, 28, 28)
NUM_CLASSES = 10

normalize = Normalize((0.1307,), (0.3081,))
"""Brings images, (..., 1, 28, 28) with values 0..1, to MNIST's zero mean and unit variance."""


class MNISTClassifier(LightningModule):
    """A 784-128-256-10 perceptron with ReLU, trained by cross-entropy and Adam.

    Logs `train_loss` and `train_acc` a step (each rank's own batch), and over all ranks an epoch `val_loss`,
    `val_acc`, `test_loss`, `test_acc`.

    Args:
        lr: Adam's learning rate.
    """

    def __init__(self, lr: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        # Lightning's summary runs this through the layers, to show the sizes that go in and out of each
        self.example_input_array = torch.zeros(1, *IMAGE_SHAPE)
        self.hidden1 = nn.Linear(math.prod(IMAGE_SHAPE), 128)
        self.hidden2 = nn.Linear(128, 256)
        self.output = nn.Linear(256, NUM_CLASSES)
        self.train_acc = MulticlassAccuracy(NUM_CLASSES, average="micro")
        self.val_acc = MulticlassAccuracy(NUM_CLASSES, average="micro")
        self.test_acc = MulticlassAccuracy(NUM_CLASSES, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (batch, 10), of normalised float images, (batch, 1, 28, 28) or (batch, 784)."""
        x = functional.relu(self.hidden1(images.flatten(start_dim=1)))
        x = functional.relu(self.hidden2(x))
        logits: Tensor = self.output(x)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean cross-entropy of the batch, a scalar."""
        images, labels = batch
        logits = self(images)
        loss = functional.cross_entropy(logits, labels)
        self.train_acc(logits, labels)
        self.log("train_loss", loss)
        # a step, not an epoch: a run resumed within an epoch would report only what came after
        self.log("train_acc", self.train_acc, on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val", self.val_acc)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test", self.test_acc)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Class probabilities, (batch, 10) float32 whatever the precision, each row summing to 1."""
        images, _ = batch
        return functional.softmax(self(images), dim=1, dtype=torch.float32)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    def _evaluate(self, batch: Batch, stage: str, accuracy: MulticlassAccuracy) -> None:
        images, labels = batch
        logits = self(images)
        accuracy(logits, labels)
        loss = functional.cross_entropy(logits, labels)
        self.log(f"{stage}_loss", loss, on_epoch=True, sync_dist=True, prog_bar=True)
        self.log(f"{stage}_acc", accuracy, on_epoch=True, prog_bar=True)  # a metric gathers its ranks itself


class ImageDataModule(LightningDataModule):
    """The three loaders over `train_set`, `val_set` and `test_set`, which a subclass fills in `setup`.

    Args:
        batch_size: samples a batch, on each rank.
        num_workers: loader processes, on each rank. None suits images that are already in memory.
    """

    train_set: Dataset[tuple[Tensor, ...]]
    val_set: Dataset[tuple[Tensor, ...]]
    test_set: Dataset[tuple[Tensor, ...]]

    def __init__(self, batch_size: int, num_workers: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.num_workers = num_workers

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of the training set, shuffled, the incomplete last one included."""
        return self._loader(self.train_set, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of the validation set, in order."""
        return self._loader(self.val_set, shuffle=False)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of the test set, in order."""
        return self._loader(self.test_set, shuffle=False)

    def _loader(self, dataset: Dataset[tuple[Tensor, ...]], shuffle: bool) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


class DataNotFoundError(RuntimeError):
    """MNIST is not in its folder, or cannot be read there, and could not be fetched.

    Args:
        folder: where the files are expected.
        reason: what went wrong, in a few words.
    """

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(
            f"no MNIST in {folder}: {reason}\n"
            f"Expected there, unpacked: {', '.join(MNIST_FILES)}.\n"
            "Copy these four files into that folder, or set LAUNCHER_DATA to the folder that holds MNIST/raw."
        )


MNIST_FILES = tuple(Path(name).stem for name, _ in MNIST.resources)
"""The four files of the data set, as they are called once unpacked."""

NETWORK_TIMEOUT_S = 5.0
"""How long one connection or one read may take: a host cut off from the network must hear of it soon."""


class MNISTDataModule(ImageDataModule):
    """MNIST: 70,000 handwritten digits, 60,000 of them for training and validation, 10,000 for the test.

    The files are taken from `root`/MNIST/raw if they are there and may be read-only; otherwise one process
    downloads them, so `root` belongs on storage that every host sees.

    Args:
        root: the folder above MNIST/raw. LAUNCHER_DATA in the environment, if set, takes its place.
        batch_size: samples a batch, on each rank.
        val_size: how many of the 60,000 are held out for validation.
        num_workers: loader processes, on each rank.
        split_seed: which samples are held out depends on this alone.
        download: whether missing files are downloaded.
    """

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 64,
        val_size: int = 5000,
        num_workers: int = 0,
        split_seed: int = 42,
        download: bool = True,
    ) -> None:
        super().__init__(batch_size, num_workers)
        self.prepare_data_per_node = False
        self.root = Path(os.environ.get("LAUNCHER_DATA") or root).expanduser().absolute()
        self.val_size = val_size
        self.split_seed = split_seed
        self.download = download

    @property
    def folder(self) -> Path:
        """The folder of the four files, absolute."""
        return self.root / "MNIST" / "raw"

    def prepare_data(self) -> None:
        """Downloads the files unless all four are there.

        Raises:
            DataNotFoundError: they are missing, and downloading is switched off or failed.
        """
        if all((self.folder / name).is_file() for name in MNIST_FILES):
            return
        if not self.download:
            raise DataNotFoundError(self.folder, "files are missing and download is off")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Downloaded beside and renamed, so that a file under its own name is always a whole one.
            with tempfile.TemporaryDirectory(dir=self.root) as temporary, _socket_timeout(NETWORK_TIMEOUT_S):
                MNIST(temporary, download=True)
                for name in MNIST_FILES:
                    (Path(temporary) / "MNIST" / "raw" / name).replace(self.folder / name)
        except (RuntimeError, OSError) as error:
            raise DataNotFoundError(self.folder, f"the download failed. {error}") from error

    def setup(self, stage: str) -> None:
        """Reads the sets that `stage` needs.

        Raises:
            DataNotFoundError: the files are missing or incomplete.
        """
        if stage in ("fit", "validate"):
            full = self._read(train=True)
            sizes = [len(full) - self.val_size, self.val_size]
            split = torch.Generator().manual_seed(self.split_seed)
            self.train_set, self.val_set = random_split(full, sizes, generator=split)
        else:
            self.test_set = self._read(train=False)

    def _read(self, train: bool) -> TensorDataset:
        try:
            mnist = MNIST(self.root, train=train)
        except (RuntimeError, ValueError) as error:  # the second: an empty file
            raise DataNotFoundError(self.folder, str(error)) from error
        # All images at once, normalised and kept (188 MB): an epoch of loading takes 0.4 s this way, and 13 s
        # when each sample is decoded and transformed whenever it is drawn.
        return TensorDataset(normalize(mnist.data.unsqueeze(1) / 255), mnist.targets)


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Bounds every connection that is opened within; torchvision's downloads set no limit of their own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
