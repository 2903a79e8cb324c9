"""What ranks print, as one file or in pieces: stored once, read whole."""

import os
from pathlib import Path

import pytest

from launcher.output import Shipper, end, last_written, parts
from launcher.storage import PosixStorage

PATH = "attempts/001/logs/rank-00000.log"


@pytest.fixture
def storage(tmp_path: Path) -> PosixStorage:
    return PosixStorage(tmp_path / "store")


@pytest.fixture
def printed(tmp_path: Path) -> Path:
    """The file that a rank prints to."""
    path = tmp_path / "scratch" / PATH
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def shipper(storage: PosixStorage, tmp_path: Path) -> Shipper:
    return Shipper(storage, tmp_path / "scratch")


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def whole(storage: PosixStorage, offset: int = 0) -> bytes:
    return b"".join(parts(storage, PATH, offset))


def test_what_has_grown_is_stored_in_another_piece(storage: PosixStorage, tmp_path: Path, printed: Path) -> None:
    ships = shipper(storage, tmp_path)
    for data in (b"one\n", b"", b"two\nthr", b"ee\n"):
        append(printed, data)
        ships.ship(now=True)

    assert storage.list(PATH) == ["000000000000", "000000000004", "000000000011"]
    assert whole(storage) == b"one\ntwo\nthree\n"
    assert [whole(storage, offset) for offset in (4, 6, 14)] == [b"two\nthree\n", b"o\nthree\n", b""]


def test_it_does_nothing_until_it_is_time(storage: PosixStorage, tmp_path: Path, printed: Path) -> None:
    ships = shipper(storage, tmp_path)
    append(printed, b"one\n")
    ships.ship()
    append(printed, b"two\n")
    ships.ship()

    assert whole(storage) == b"one\n"


def test_the_next_supervisor_stores_what_the_one_before_could_not(
    storage: PosixStorage, tmp_path: Path, printed: Path
) -> None:
    append(printed, b"one\n")
    shipper(storage, tmp_path).ship(now=True)
    append(printed, b"two\n")

    shipper(storage, tmp_path).ship(now=True)

    assert whole(storage) == b"one\ntwo\n"


def test_two_that_store_the_same_log_store_it_once(storage: PosixStorage, tmp_path: Path, printed: Path) -> None:
    ghost, living = shipper(storage, tmp_path), shipper(storage, tmp_path)
    for data, one in ((b"1\n", ghost), (b"22\n", living), (b"333\n", ghost), (b"4444\n", living)):
        append(printed, data)
        one.ship(now=True)

    assert whole(storage) == printed.read_bytes()


def test_pieces_that_overlap_are_read_once(storage: PosixStorage) -> None:
    storage.create(f"{PATH}/{0:012d}", b"0123456")
    storage.create(f"{PATH}/{4:012d}", b"456789")

    assert whole(storage) == b"0123456789"
    assert whole(storage, 5) == b"56789"


def test_a_log_that_is_one_file_is_read_too(storage: PosixStorage) -> None:
    storage.create(PATH, b"one\ntwo\n")

    assert whole(storage) == b"one\ntwo\n"
    assert whole(storage, 4) == b"two\n"


@pytest.mark.parametrize("pieces", [False, True])
def test_the_end_and_its_time_are_known(storage: PosixStorage, pieces: bool) -> None:
    for at, data in {0: b"one\ntwo\n", 8: b"three\n"}.items() if pieces else {0: b"one\ntwo\nthree\n"}.items():
        name = f"{PATH}/{at:012d}" if pieces else PATH
        storage.create(name, data)
        os.utime(Path(storage.root, name), (1000 + at, 1000 + at))

    assert end(storage, PATH, 10) == b"two\nthree\n"
    assert end(storage, PATH, 1000) == b"one\ntwo\nthree\n"
    assert last_written(storage, PATH) == (1008 if pieces else 1000)


def test_a_log_that_is_not_there_is_said_not_to_be(storage: PosixStorage) -> None:
    for look in (whole, lambda storage: end(storage, PATH, 1), lambda storage: last_written(storage, PATH)):
        with pytest.raises(FileNotFoundError):
            look(storage)


def test_storage_that_fails_ends_nothing(
    storage: PosixStorage,
    tmp_path: Path,
    printed: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ships = shipper(storage, tmp_path)
    append(printed, b"one\n")

    def fail(*_: object) -> None:
        raise OSError(5, "the disk is gone")

    with monkeypatch.context() as failing:
        failing.setattr(storage, "create", fail)
        ships.ship(now=True)
    assert "the disk is gone" in caplog.text
    ships.ship(now=True)

    assert whole(storage) == b"one\n"
