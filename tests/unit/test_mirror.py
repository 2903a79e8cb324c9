"""A folder and its mirror on storage."""

import os
import threading
from pathlib import Path

import pytest

from launcher import mirror
from launcher.mirror import Mirror, fetch, refresh
from launcher.storage import PosixStorage


@pytest.fixture
def storage(tmp_path: Path) -> PosixStorage:
    return PosixStorage(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "local"
    (path / "csv").mkdir(parents=True)
    (path / "csv/metrics.csv").write_text("step\n0\n")
    (path / ".kept").write_text("half")
    return path


class Counting(PosixStorage):
    """Counts what is written."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.written: list[str] = []

    def writer(self, path: str):  # type: ignore[no-untyped-def]  # as the base class's
        self.written.append(path)
        return super().writer(path)


def test_a_push_stores_what_has_changed_and_nothing_else(tmp_path: Path, folder: Path) -> None:
    storage = Counting(tmp_path / "store")
    pushes = Mirror(storage, "attempts/001/files", folder)

    pushes.push()
    assert storage.written == ["attempts/001/files/csv/metrics.csv"]
    pushes.push()
    assert len(storage.written) == 1

    (folder / "csv/metrics.csv").write_text("step\n0\n1\n")
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard/events").write_bytes(b"\0")
    pushes.push()

    assert storage.written[1:] == ["attempts/001/files/csv/metrics.csv", "attempts/001/files/tensorboard/events"]
    assert storage.read("attempts/001/files/csv/metrics.csv") == b"step\n0\n1\n"


def test_it_pushes_by_itself_and_once_more_at_the_end(
    storage: PosixStorage, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "PERIOD_S", 0.01)
    pushed = threading.Event()
    pushes = Mirror(storage, "files", folder)
    push = pushes.push
    monkeypatch.setattr(pushes, "push", lambda: (push(), pushed.set()))
    pushes.start()

    assert pushed.wait(10)
    (folder / "last").write_text("word")
    pushes.close()

    assert storage.read("files/last") == b"word"


def test_what_cannot_be_stored_is_an_error_when_it_is_asked_for_and_a_warning_when_not(
    folder: Path, storage: PosixStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(path: str) -> None:
        raise OSError(5, "no answer")

    monkeypatch.setattr(storage, "writer", fail)
    pushes = Mirror(storage, "files", folder)

    with pytest.raises(OSError, match="no answer"):
        pushes.push()
    pushes.close()

    assert "not stored yet: no answer" in caplog.text


def test_files_are_fetched_and_absent_ones_left_out(storage: PosixStorage, tmp_path: Path) -> None:
    storage.create("attempts/001/files/csv/metrics.csv", b"step\n")
    storage.create("top", b"1")

    fetch(storage, "attempts/001/files", ["csv/metrics.csv", "nothing"], tmp_path / "here")
    fetch(storage, "", ["top"], tmp_path / "here")

    assert sorted(str(one.relative_to(tmp_path / "here")) for one in (tmp_path / "here").rglob("*")) == [
        "csv",
        "csv/metrics.csv",
        "top",
    ]


def test_a_refresh_brings_what_is_new_and_takes_away_what_is_gone(storage: PosixStorage, tmp_path: Path) -> None:
    here = tmp_path / "here"
    storage.create("board/a", b"1")
    storage.create("board/b", b"1")
    seen = refresh(storage, "board", here, {})
    untouched = (here / "b").stat().st_ino

    storage.replace("board/a", b"12")
    os.utime(Path(storage.root, "board/a"), (2000, 2000))
    storage.create("board/c", b"1")
    seen = refresh(storage, "board", here, seen)
    assert [(here / name).read_bytes() for name in "abc"] == [b"12", b"1", b"1"]
    assert (here / "b").stat().st_ino == untouched

    storage.delete("board/b")
    refresh(storage, "board", here, seen)
    assert sorted(one.name for one in here.iterdir()) == ["a", "c"]
