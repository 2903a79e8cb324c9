"""A checkpoint that is read in one pass, held against torch.load."""

import errno
import io
import mmap
import os
import socket
import weakref
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_archive import same, saved, state

from launcher.checkpoints import BadCheckpoint, Manifest, in_order
from launcher.events import AttemptStarting
from launcher.kinds import Kind, classified
from launcher.node import records
from launcher.node.checkpoint import unpickled
from launcher.node.checkpoint_io import DurableCheckpointIO
from launcher.node.records import read_records
from launcher.node.start import choose_start, read_start
from launcher.node.writer import Writer
from launcher.run import Run
from launcher.spec import Checkpoint

MakeRun = Callable[..., Run]


def unseen(part: memoryview) -> None:
    """What is read is not summed up."""


def by_torch(checkpoint: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(checkpoint, stream)
    return stream.getvalue()


@pytest.fixture
def run(make_run: MakeRun) -> Run:
    """With a checkpoint of step 10, and one of step 20."""
    run = make_run("run", AttemptStarting(attempt=1, target="local"))
    writer = Writer(run, Checkpoint(keep_last=2), lambda mark: None)
    for step in (10, 20):
        manifest = Manifest(step=step, epoch=0, attempt=1, world_size=1, precision="32-true", complete=False)
        writer.save({"global_step": step, **state()}, manifest)
        writer.wait()
    writer.close()
    run.ledger.append(AttemptStarting(attempt=2, target="local"), after=run.ledger.refresh().version)
    return run


def newest(run: Run) -> Path:
    return Path(run.storage.root, in_order(run.ledger.refresh())[-1].path)


@pytest.mark.parametrize("written", [saved, by_torch], ids=["by the launcher", "by torch"])
def test_what_was_saved_is_read(written: Callable[[Any], bytes]) -> None:
    checkpoint, seen = state(), bytearray()
    file = written(checkpoint)

    loaded = unpickled(read_records(io.BytesIO(file), seen.extend))

    assert same(loaded, checkpoint)
    assert loaded["view"].untyped_storage().data_ptr() == loaded["weights"].untyped_storage().data_ptr()
    assert seen == file


def test_sparse_tensors_are_read_and_only_those_whose_indices_fit() -> None:
    def sparse(index: int) -> Any:
        return torch.sparse_coo_tensor(torch.tensor([[0, index]]), torch.ones(2), (3,), check_invariants=False)

    def loaded(tensor: Any) -> Any:
        return unpickled(read_records(io.BytesIO(saved({"x": tensor})), unseen))["x"]

    assert torch.equal(loaded(sparse(2)).to_dense(), sparse(2).to_dense())
    with pytest.raises(RuntimeError, match="size is 3 but found index 99"):
        loaded(sparse(99))


@pytest.mark.parametrize("limit", [1000, 1], ids=["some long", "all long"])
def test_records_of_many_gigabytes_are_found(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.node.archive._LIMIT", limit)  # they are written as if they were
    checkpoint = state()

    assert same(unpickled(read_records(io.BytesIO(saved(checkpoint)), unseen)), checkpoint)


def test_tensors_begin_where_torch_has_its_own_begin() -> None:
    loaded = unpickled(read_records(io.BytesIO(saved(state())), unseen))

    assert [loaded[name].data_ptr() % 64 for name in ("weights", "half", "large")] == [0, 0, 0]


def test_a_tensor_that_is_kept_keeps_no_other_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rooms: dict[int, Any] = {}
    make = records._pages

    def made(size: int) -> Any:
        room = make(size)
        if isinstance(room, mmap.mmap):
            rooms[size] = weakref.ref(room)
        return room

    monkeypatch.setattr(records, "_pages", made)
    loaded = unpickled(read_records(io.BytesIO(saved({"a": torch.rand(1000), "b": torch.rand(2000)})), unseen))
    kept = loaded.pop("a")
    del loaded

    assert {size: rooms[size]() is not None for size in (4000, 8000)} == {4000: True, 8000: False}
    assert kept.sum() > 0


def test_a_forked_process_has_tensors_of_its_own() -> None:
    loaded = unpickled(read_records(io.BytesIO(saved({"a": torch.zeros(1000)})), unseen))

    pid = os.fork()
    if pid == 0:
        loaded["a"].add_(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

    assert loaded["a"].sum() == 0


@settings(max_examples=300)
@given(at=st.integers(0, 99_999), damage=st.binary(min_size=1, max_size=8))
def test_a_damaged_file_is_bad_or_read_to_its_end(at: int, damage: bytes) -> None:
    """Where the directory tells nothing of the damage, the checksum does, which takes each byte once."""
    file, seen = bytearray(saved(state())), bytearray()
    at = len(file) - 1 - at % 3000 if at % 2 else at % len(file)  # every other one near the end: the directory
    file[at : at + len(damage)] = damage[: len(file) - at]

    try:
        read_records(io.BytesIO(file), seen.extend)
    except BadCheckpoint:
        return
    assert seen == file


@pytest.mark.parametrize("length", [0, 1, 21, 22, 100, 5000])
def test_half_a_file_is_bad(length: int) -> None:
    with pytest.raises(BadCheckpoint, match="no archive that torch"):
        read_records(io.BytesIO(saved(state())[:length]), unseen)


def test_a_compressed_archive_is_bad() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 1000)

    with pytest.raises(BadCheckpoint, match=r"archive/data\.pkl is compressed"):
        read_records(stream, unseen)


def test_a_file_that_becomes_shorter_meanwhile_is_bad(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(saved(state()))

    with file.open("rb") as stream, pytest.raises(BadCheckpoint, match="shorter"):
        read_records(stream, lambda part: os.truncate(file, 9000))


def test_rank_0_loads_what_it_has_read_while_it_chose(run: Run) -> None:
    file = newest(run)
    found = choose_start(run, 2)
    io = DurableCheckpointIO({str(file): found})
    file.unlink()

    loaded = io.load_checkpoint(str(file))

    assert loaded["global_step"] == 20
    assert not found, "it is in memory for as long as the run trains"
    with pytest.raises(FileNotFoundError):
        io.load_checkpoint(str(file))


def test_of_two_checkpoints_that_is_read_which_is_whole(run: Run) -> None:
    data = bytearray(newest(run).read_bytes())
    data[len(data) // 2] ^= 1
    newest(run).write_bytes(data)

    assert unpickled(choose_start(run, 2))["global_step"] == 10


def test_a_run_without_checkpoints_has_nothing_to_read(make_run: MakeRun) -> None:
    assert choose_start(make_run("new", AttemptStarting(attempt=1, target="local")), 1) == {}


def test_a_checkpoint_for_which_there_is_no_memory_is_not_bad(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **options: Any) -> Any:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(records.mmap, "mmap", full)

    with pytest.raises(MemoryError, match=r"no room for \d+ bytes of a checkpoint") as caught:
        choose_start(run, 2)

    assert classified(caught.value)[0] == Kind.MEMORY
    assert [saved.step for saved in in_order(run.ledger.refresh())] == [10, 20]


def test_a_host_that_sees_another_file_than_rank_0_is_named(run: Run) -> None:
    assert unpickled(read_start(run, in_order(run.ledger.refresh())[-1].path))["global_step"] == 20
    os.truncate(newest(run), 1000)

    with pytest.raises(OSError, match=f"rank 0 has read it whole, {socket.gethostname()} has not") as caught:
        read_start(run, in_order(run.ledger.refresh())[-1].path)

    assert classified(caught.value)[0] == Kind.STORAGE
