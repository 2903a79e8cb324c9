"""The example model and its data: shapes, splits, files that are missing, a download, a short fit."""

import gzip
import hashlib
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.utilities.model_summary.model_summary import summarize
from torch.utils.data import Subset
from torchvision.datasets import MNIST

from model.digits import DigitsDataModule
from model.mnist import (
    MNIST_FILES,
    NETWORK_TIMEOUT_S,
    DataNotFoundError,
    ImageDataModule,
    MNISTClassifier,
    MNISTDataModule,
)

TRAIN_SIZE, VAL_SIZE, TEST_SIZE = 48, 12, 24


@pytest.fixture(autouse=True)
def _no_data_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAUNCHER_DATA", raising=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root that holds a tiny MNIST: random images in the real files' format."""
    write_mnist(tmp_path / "MNIST" / "raw")
    return tmp_path


def write_mnist(folder: Path) -> None:
    """Writes the four files in MNIST's idx format: magic number and sizes, big endian; a byte a value."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", TRAIN_SIZE + VAL_SIZE), ("t10k", TEST_SIZE)):
        images = torch.randint(256, (count * 28 * 28,), generator=generator).tolist()
        labels = torch.randint(10, (count,), generator=generator).tolist()
        header = struct.pack(">4I", 0x803, count, 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + bytes(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, count) + bytes(labels))


def indices(dataset: object) -> list[int]:
    assert isinstance(dataset, Subset)
    return list(dataset.indices)


def split_of(data: ImageDataModule) -> list[list[int]]:
    """The indices of each set that the fit stage splits off."""
    data.setup("fit")
    return [indices(data.train_set), indices(data.val_set)]


# --- the model


def test_forward_takes_images_and_rows_alike() -> None:
    model = MNISTClassifier()
    images = torch.randn(5, 1, 28, 28)
    logits = model(images)
    assert logits.shape == (5, 10)
    assert torch.equal(logits, model(images.flatten(1)))


def test_number_of_parameters() -> None:
    count = sum(parameter.numel() for parameter in MNISTClassifier().parameters())
    assert count == (784 * 128 + 128) + (128 * 256 + 256) + (256 * 10 + 10)


def test_summary_shows_each_layer_with_its_sizes() -> None:
    summary = summarize(MNISTClassifier())
    assert summary.in_sizes[:3] == [[1, 784], [1, 128], [1, 256]]
    assert summary.out_sizes[:3] == [[1, 128], [1, 256], [1, 10]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_predictions_are_probabilities_in_any_precision(dtype: torch.dtype) -> None:
    batch = torch.randn(5, 1, 28, 28), torch.zeros(5, dtype=torch.long)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        probabilities = MNISTClassifier().predict_step(batch, 0)
    assert probabilities.shape == (5, 10)
    assert probabilities.min() >= 0
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(5))


def test_learning_rate_is_a_saved_hyperparameter() -> None:
    model = MNISTClassifier(lr=0.02)
    assert dict(model.hparams) == {"lr": 0.02}
    optimizer = model.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.defaults["lr"] == 0.02


@pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers:UserWarning",  # none are needed: data in memory
    "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",  # Lightning's own use of torch
)
def test_a_short_fit_lowers_the_loss(tmp_path: Path) -> None:
    seed_everything(1)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        log_every_n_steps=1,
    )
    model, data = MNISTClassifier(), DigitsDataModule()
    [before] = trainer.validate(model, data, verbose=False)
    trainer.fit(model, data)
    assert trainer.callback_metrics.keys() == {"train_loss", "train_acc", "val_loss", "val_acc"}
    assert trainer.callback_metrics["val_loss"] < before["val_loss"] / 2
    [tested] = trainer.test(model, data, verbose=False)
    assert tested.keys() == {"test_loss", "test_acc"}
    assert tested["test_acc"] > 0.7


# --- MNIST


def test_mnist_batches(root: Path) -> None:
    data = MNISTDataModule(str(root), batch_size=32, val_size=VAL_SIZE, download=False)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    train = list(data.train_dataloader())
    assert [len(labels) for _, labels in train] == [32, 16]  # the incomplete batch is kept
    images, labels = train[0]
    assert images.shape == (32, 1, 28, 28)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert sum(len(labels) for _, labels in data.val_dataloader()) == VAL_SIZE
    assert sum(len(labels) for _, labels in data.test_dataloader()) == TEST_SIZE


def test_mnist_values_are_normalised_and_in_order(root: Path) -> None:
    data = MNISTDataModule(str(root), batch_size=TEST_SIZE)
    data.setup("test")
    [(images, labels)] = data.test_dataloader()
    raw = MNIST(root, train=False)
    torch.testing.assert_close(images[:, 0], (raw.data / 255 - 0.1307) / 0.3081)
    assert torch.equal(labels, raw.targets)


def test_only_training_samples_are_shuffled(root: Path) -> None:
    seed_everything(1)
    data = MNISTDataModule(str(root), batch_size=TRAIN_SIZE, val_size=VAL_SIZE)
    data.setup("fit")
    [(first, _)], [(second, _)] = data.train_dataloader(), data.train_dataloader()
    assert not torch.equal(first, second)
    [(first, _)], [(second, _)] = data.val_dataloader(), data.val_dataloader()
    assert torch.equal(first, second)


def test_mnist_split_is_disjoint_and_depends_on_its_seed_alone(root: Path) -> None:
    split = partial(MNISTDataModule, str(root), val_size=VAL_SIZE)
    torch.manual_seed(1)
    train, val = split_of(split())
    assert sorted(train + val) == list(range(TRAIN_SIZE + VAL_SIZE))
    torch.manual_seed(2)
    assert split_of(split()) == [train, val]
    assert split_of(split(split_seed=7)) != [train, val]


def test_launcher_data_takes_the_place_of_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCHER_DATA", str(root))
    data = MNISTDataModule("elsewhere", download=False)
    assert data.folder == root / "MNIST" / "raw"
    data.prepare_data()


def test_read_only_data_are_left_as_they_are(root: Path) -> None:
    for path in [*root.rglob("*"), root]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    data = MNISTDataModule(str(root), val_size=VAL_SIZE)
    try:
        data.prepare_data()
        data.setup("fit")
        data.setup("test")
        assert sorted(path.name for path in data.folder.iterdir()) == sorted(MNIST_FILES)
    finally:
        for path in [root, *root.rglob("*")]:
            path.chmod(0o755)


def test_missing_data_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = MNISTDataModule("somewhere", download=False)
    for read in (data.prepare_data, partial(data.setup, "fit"), partial(data.setup, "test")):
        with pytest.raises(DataNotFoundError) as caught:
            read()
        message = str(caught.value)
        assert str(tmp_path / "somewhere" / "MNIST" / "raw") in message
        assert all(name in message for name in MNIST_FILES)
        assert "LAUNCHER_DATA" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 1000])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
def test_a_file_cut_short_is_refused(root: Path, name: str, size: int) -> None:
    file = root / "MNIST" / "raw" / name
    file.write_bytes(file.read_bytes()[: min(size, file.stat().st_size - 1)])
    with pytest.raises(DataNotFoundError, match="MNIST/raw"):
        MNISTDataModule(str(root), val_size=VAL_SIZE).setup("fit")


# --- the download, from a server on this machine in place of torchvision's mirrors


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a mirror that serves a tiny MNIST; its checksums are those torchvision expects."""
    unpacked, served = tmp_path / "unpacked", tmp_path / "mirror"
    write_mnist(unpacked)
    served.mkdir()
    resources = []
    for name in MNIST_FILES:
        packed = gzip.compress((unpacked / name).read_bytes())
        (served / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(served)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(MNIST, "resources", resources)
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """The requests are of no interest in a test's output."""


def test_download_happens_once_and_leaves_the_four_files(mirror: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    data = MNISTDataModule(str(root), val_size=VAL_SIZE)
    data.prepare_data()
    assert sorted(path.name for path in data.folder.iterdir()) == sorted(MNIST_FILES)
    assert [path.name for path in root.iterdir()] == ["MNIST"]
    data.setup("fit")
    assert socket.getdefaulttimeout() is None
    for file in mirror.iterdir():
        file.unlink()
    data.prepare_data()


def test_a_download_cut_short_is_never_taken_for_data(mirror: Path, tmp_path: Path) -> None:
    last = mirror / f"{MNIST_FILES[-1]}.gz"
    whole = last.read_bytes()
    last.write_bytes(whole[:-10])
    data = MNISTDataModule(str(tmp_path / "data"), val_size=VAL_SIZE)
    with pytest.raises(DataNotFoundError, match=last.name):
        data.prepare_data()
    assert list(data.folder.iterdir()) == []
    last.write_bytes(whole)
    data.prepare_data()
    data.setup("fit")


def test_a_mirror_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.mnist.NETWORK_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        start = time.monotonic()
        with pytest.raises(DataNotFoundError, match="timed out"):
            MNISTDataModule(str(tmp_path)).prepare_data()
        assert time.monotonic() - start < NETWORK_TIMEOUT_S


def test_one_process_downloads_for_all_nodes() -> None:
    assert not MNISTDataModule().prepare_data_per_node


# --- digits


def test_digits_look_like_mnist() -> None:
    data = DigitsDataModule(batch_size=2000)
    data.setup("fit")
    for [(images, labels)] in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert images.shape == (len(labels), 1, 28, 28)
        assert images.dtype == torch.float32
        assert -0.43 < images.min() < -0.42  # 0 and 1 under MNIST's normalisation
        assert 2.7 < images.max() < 2.83
        assert set(labels.tolist()) == set(range(10))


def test_digits_split_is_disjoint_and_depends_on_its_seed_alone() -> None:
    torch.manual_seed(1)
    data = DigitsDataModule()
    train, val = split_of(data)
    assert sorted(train + val + indices(data.test_set)) == list(range(1797))
    torch.manual_seed(2)
    assert split_of(DigitsDataModule()) == [train, val]
    assert split_of(DigitsDataModule(split_seed=7)) != [train, val]


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'launcher\[digits\]'"):
        DigitsDataModule().setup("fit")
