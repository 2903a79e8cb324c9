"""Checkpoints written in the background: the same bits, whole or not there, though ranks die and disks are full."""

import logging
import os
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Training, last_checkpoint, log_of
from killed import (
    SHARED_MEMORY,
    Attempts,
    State,
    full_spec,
    killed,
    leftovers,
    manifest,
    seconds,
    small_disk,
    writer_of,
)
from lightning.pytorch import Trainer
from test_exact import spec
from torch import nn
from toys import Full, NoisyData

from launcher.checkpoints import newest_whole
from launcher.errors import Fenced
from launcher.events import AttemptStarting, CheckpointSaved
from launcher.node import writer as writer_module
from launcher.node.staging import Staging
from launcher.node.writer import Saved, Writer
from launcher.run import Run

MakeRun = Callable[..., Run]


def saved_steps(run: Run) -> list[int]:
    """All that were ever committed."""
    return [record.event.step for record in run.ledger.records() if isinstance(record.event, CheckpointSaved)]


# -- staging


TENSORS: dict[str, Callable[[], torch.Tensor]] = {
    "contiguous": lambda: torch.randn(100, 30),
    "view": lambda: torch.randn(100, 30)[10:20],
    "non-contiguous": lambda: torch.randn(100, 30).t()[::2],
    "expanded": lambda: torch.randn(1, 30).expand(100, 30),
    "zero-size": lambda: torch.empty(0, 5),
    "bf16": lambda: torch.randn(33).to(torch.bfloat16),
    "bool": lambda: torch.randn(33) > 0,
    "complex": lambda: torch.randn(7, dtype=torch.complex64),
    "conjugated": lambda: torch.randn(7, dtype=torch.complex64).conj(),
    "0-dim": lambda: torch.tensor(3.5, dtype=torch.float64),
    "parameter": lambda: nn.Parameter(torch.randn(5)),
    "requires grad": lambda: torch.randn(5, requires_grad=True),
    "result of a computation": lambda: torch.randn(5, requires_grad=True) * 2,
    "sparse": lambda: torch.tensor([[0.0, 1.0], [2.0, 0.0]]).to_sparse().coalesce(),
    "sparse rows": lambda: torch.tensor([[0.0, 1.0], [2.0, 0.0]]).to_sparse_csr(),
}


def train_on(tensor: torch.Tensor) -> None:
    """Change every byte of it, and of what it is a view of."""
    values = tensor if tensor.layout == torch.strided else tensor.values()
    values.untyped_storage().fill_(7)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta", "ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize("make", TENSORS.values(), ids=TENSORS)
def test_any_tensor_is_loaded_as_it_was_when_it_was_copied(make: Callable[[], torch.Tensor], tmp_path: Path) -> None:
    tensor = make()
    expected = tensor.detach().clone()
    staged = Staging().copy({"x": tensor})
    train_on(tensor)
    torch.save(staged, tmp_path / "file")

    loaded = torch.load(tmp_path / "file", weights_only=True)["x"]
    assert (loaded.dtype, loaded.shape, loaded.layout) == (expected.dtype, expected.shape, expected.layout)
    assert torch.equal(loaded.detach().to_dense(), expected.to_dense())
    if tensor.layout == torch.strided:
        assert loaded.stride() == tensor.stride()
        assert loaded.requires_grad == tensor.requires_grad


def test_tensors_that_share_memory_share_it_when_loaded_and_are_written_once(tmp_path: Path) -> None:
    table = torch.randn(1000, 100)
    checkpoint = {"embedding": table, "head": nn.Parameter(table), "row": table[7]}
    torch.save(Staging().copy(checkpoint), tmp_path / "file")

    loaded = torch.load(tmp_path / "file", weights_only=True)
    loaded["embedding"][7] = 1.0
    assert bool((loaded["head"][7] == 1.0).all())
    assert bool((loaded["row"] == 1.0).all())
    assert (tmp_path / "file").stat().st_size < table.nbytes + 10_000


def test_a_file_holds_no_bytes_but_those_of_its_tensors(tmp_path: Path) -> None:
    """A tensor that is a part of the block of memory would be written with all of it."""
    staging = Staging()
    staging.copy([torch.randn(1_000_000)])
    small = [torch.randn(10_001), torch.randn(10_001)]
    torch.save(staging.copy(small), tmp_path / "file")

    assert (tmp_path / "file").stat().st_size < sum(tensor.nbytes for tensor in small) + 3000


def test_the_second_copy_lies_in_the_memory_of_the_first() -> None:
    staging = Staging()
    addresses = [
        [tensor.data_ptr() for tensor in staging.copy([torch.randn(size), torch.randn(9)])] for size in (999, 999, 500)
    ]

    assert addresses[0] == addresses[1]
    assert addresses[0][0] == addresses[2][0]


def test_memory_is_got_anew_for_a_checkpoint_that_has_grown() -> None:
    staging = Staging()
    first = staging.copy([torch.ones(10)])
    second = staging.copy([torch.full((100_000,), 2.0)])

    assert first[0].tolist() == [1.0] * 10  # still held by somebody: not given back
    assert bool((second[0] == 2.0).all())


# -- the thread


@pytest.fixture
def run(make_run: MakeRun) -> Run:
    return make_run("run", AttemptStarting(attempt=1, target="local"))


@pytest.fixture
def writer(run: Run) -> Iterator[Writer]:
    made = writer_of(run)
    yield made
    made.close()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Nothing is written before it is set."""
    opened, write = threading.Event(), writer_module.write

    def write_later(*args: Any) -> Any:
        opened.wait(20)
        return write(*args)

    monkeypatch.setattr(writer_module, "write", write_later)
    yield opened
    opened.set()


def poll_to_its_end(writer: Writer) -> list[Saved]:
    """What was told until there was nothing to wait for."""
    told = []
    while not writer.is_idle:
        if saved := writer.poll():
            told.append(saved)
        time.sleep(0.01)
    return told


def test_what_training_changes_meanwhile_is_not_written(run: Run, writer: Writer, gate: threading.Event) -> None:
    weights = torch.ones(1000)
    writer.save({"weights": weights}, manifest(5))
    weights.zero_()
    gate.set()

    saved = writer.wait()
    assert saved
    assert saved.step == 5
    loaded = torch.load(Path(run.storage.root, newest_whole(run, 5)[0].path), weights_only=True)
    assert bool((loaded["weights"] == 1.0).all())


def test_one_checkpoint_is_written_at_a_time(run: Run, writer: Writer, gate: threading.Event) -> None:
    writer.save({}, manifest(1))
    with pytest.raises(RuntimeError, match="still being written"):
        writer.save({}, manifest(2))
    gate.set()
    writer.wait()
    writer.save({}, manifest(3))
    writer.wait()

    assert saved_steps(run) == [1, 3]


def test_what_has_been_written_is_told_once(writer: Writer, gate: threading.Event) -> None:
    assert writer.poll() is writer.wait() is None
    writer.save({}, manifest(1))
    assert writer.poll() is None
    assert not writer.is_idle
    gate.set()

    assert [saved.step for saved in poll_to_its_end(writer)] == [1]
    assert writer.poll() is writer.wait() is None


def test_a_failure_is_told_at_the_next_look_and_the_next_save_is_tried(run: Run, writer: Writer) -> None:
    obstacle = Path(run.storage.root, "checkpoints")
    obstacle.write_text("no folder")
    writer.save({}, manifest(1))
    with pytest.raises(OSError, match="checkpoints"):
        poll_to_its_end(writer)
    obstacle.unlink()
    writer.save({}, manifest(2))

    assert writer.wait()
    assert saved_steps(run) == [2]
    assert leftovers(run) == []


def test_an_overtaken_attempt_commits_nothing_and_is_told(run: Run, writer: Writer, gate: threading.Event) -> None:
    writer.save({}, manifest(1))
    run.ledger.append(AttemptStarting(attempt=2, target="local"), after=run.ledger.refresh().version)
    gate.set()
    with pytest.raises(Fenced, match="attempt 1 was overtaken by attempt 2"):
        writer.wait()

    assert saved_steps(run) == []


def test_an_older_checkpoint_that_cannot_be_removed_takes_nothing_from_the_new_one(
    run: Run, writer: Writer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: str) -> None:
        raise OSError("directory not empty")

    monkeypatch.setattr(writer._run.storage, "delete", refuse)
    for step in range(1, 5):
        writer.save({}, manifest(step))
        assert writer.wait()

    assert saved_steps(run) == [1, 2, 3, 4]
    assert "directory not empty" in caplog.text


def test_close_lets_a_checkpoint_come_to_its_end(run: Run, gate: threading.Event) -> None:
    writer = writer_of(run)
    writer.save({}, manifest(1))
    threading.Timer(0.1, gate.set).start()
    writer.close()

    assert saved_steps(run) == [1]


def test_close_only_logs_why_the_last_one_failed(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    Path(run.storage.root, "checkpoints").write_text("no folder")
    writer = writer_of(run)
    writer.save({}, manifest(1))
    with caplog.at_level(logging.WARNING):
        writer.close()

    assert "the last checkpoint was not written" in caplog.text


# -- what others make of the files


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Training(tmp_path_factory.mktemp("trained")).run(spec(max_epochs=1, ranks=1))


def test_a_checkpoint_is_loaded_without_the_launcher(trained: Run) -> None:
    saved, _ = newest_whole(trained, None)
    path = f"{trained.storage.root}/{saved.path}"
    model = Full.load_from_checkpoint(path, weights_only=True)

    expected = last_checkpoint(trained)["state_dict"]
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_plain_lightning_goes_on_from_a_checkpoint(trained: Run, tmp_path: Path) -> None:
    saved, _ = newest_whole(trained, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and the like
        trainer = Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        path = f"{trained.storage.root}/{saved.path}"
        trainer.fit(Full(), datamodule=NoisyData(92), ckpt_path=path, weights_only=True)

    assert trainer.current_epoch == 2
    assert trainer.global_step == 2 * saved.step


# -- kills, and no room


KILLS, MEGABYTES = 12, 40


@pytest.mark.parametrize("elsewhere", [False, True], ids=["disk", "shared memory"])
def test_a_save_that_is_killed_at_any_point_leaves_the_newest_whole_and_nothing_else(
    elsewhere: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = tmp_path
    if elsewhere:
        if "CI" not in os.environ and not os.access(SHARED_MEMORY, os.W_OK):
            pytest.skip(f"no {SHARED_MEMORY} here; in CI this fails")
        root = SHARED_MEMORY / f"launcher-test-{os.getpid()}"
        request.addfinalizer(lambda: shutil.rmtree(root))
    attempts = Attempts(root / "runs", State(MEGABYTES))
    took = min(seconds(attempts.save) for _ in range(3) if not attempts.begin())
    met = 0
    for kill in range(3 * KILLS):
        if kill >= KILLS and met > KILLS / 3:  # it is not enough at once where the machine was busier at first
            break
        assert attempts.begin() == []
        met += killed(attempts.save, after_s=(kill % KILLS + 0.5) / KILLS * took)

    assert attempts.begin() == []
    assert met > KILLS / 3, "most saves had ended before they were killed: nothing was tried"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small one."""
    if "CI" not in os.environ and os.geteuid() != 0:
        pytest.skip("mounting a small filesystem takes root; in CI this fails")
    with small_disk(tmp_path / "disk", 5 * MEGABYTES) as folder:
        yield folder


def test_training_goes_on_while_the_disk_is_full_and_saves_once_there_is_room(disk: Path) -> None:
    training = Training(disk)
    run = training.run(full_spec(MEGABYTES, until=17))

    steps = saved_steps(run)
    assert {4, 8, 20, 24} <= set(steps), log_of(run)
    assert 12 not in steps
    assert len(run.ledger.refresh().attempts) == 1
    assert "No space left on device; training goes on, the next save is tried at its time" in log_of(run)
    assert [saved.step for saved in run.ledger.refresh().checkpoints] == [20, 24]
    assert leftovers(run) == []


def test_without_room_for_the_last_checkpoint_the_run_fails_and_keeps_the_one_before(disk: Path) -> None:
    training = Training(disk)
    run = training.create(full_spec(MEGABYTES, until=0))
    ended = training.drive(run)

    assert ended.state == "failed"
    assert "No space left on device" in ended.reason, log_of(run)
    assert "the last checkpoint could not be written: [Errno 28] No space left on device" in log_of(run)
    assert run.finished is None
    assert newest_whole(run, None)[0].step == 8
    assert leftovers(run) == []
