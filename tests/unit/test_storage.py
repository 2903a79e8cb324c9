"""Files are whole or not there, whoever races and whatever fails."""

import multiprocessing
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.storage import PosixStorage

HOSTILE = [
    "with space",
    'it\'s "quoted"',
    "; rm -rf $HOME; `id` #",
    "naïve-日本語-🚀",
    "two\nlines",
    "-rf",
    "%s{}*?[a]",
    "back\\slash",
]
fork = multiprocessing.get_context("fork")


@pytest.fixture
def storage(tmp_path: Path) -> PosixStorage:
    return PosixStorage(tmp_path / "root")


def everything(storage: PosixStorage) -> list[str]:
    """All files, those with a dot included."""
    root = Path(storage.root)
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def in_child(body: Callable[[], None]) -> int | None:
    child = fork.Process(target=body)
    child.start()
    child.join()
    return child.exitcode


def test_what_was_created_is_read(storage: PosixStorage) -> None:
    storage.create("deep/er/file", b"content")

    assert storage.read("deep/er/file") == b"content"
    assert everything(storage) == ["deep/er/file"]


def test_create_refuses_a_name_that_is_taken(storage: PosixStorage) -> None:
    storage.create("file", b"first")

    with pytest.raises(FileExistsError):
        storage.create("file", b"second")

    assert storage.read("file") == b"first"
    assert everything(storage) == ["file"]


def test_of_many_processes_that_create_one_name_exactly_one_wins(storage: PosixStorage) -> None:
    ready = fork.Barrier(8)

    def race() -> None:
        body = str(os.getpid()).encode() * 5000
        won = []
        for number in range(25):
            ready.wait()
            try:
                storage.create(f"race/{number}", body)
            except FileExistsError:
                # The loser must see the winner's file, whole.
                winner = storage.read(f"race/{number}")
                assert winner == winner[: len(winner) // 5000] * 5000
            else:
                won.append(number)
        storage.create(f"won/{os.getpid()}", repr(won).encode())

    racers = [fork.Process(target=race) for _ in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()

    assert [racer.exitcode for racer in racers] == [0] * 8
    won = [number for name in storage.list("won") for number in eval(storage.read(f"won/{name}"))]
    assert sorted(won) == list(range(25))
    assert not [name for name in everything(storage) if "/." in name]


def test_replace_writes_a_file_new_or_not(storage: PosixStorage) -> None:
    storage.replace("file", b"old")
    storage.replace("file", b"new")

    assert storage.read("file") == b"new"
    assert everything(storage) == ["file"]


def test_readers_of_a_replaced_file_never_see_a_mixture(storage: PosixStorage) -> None:
    storage.replace("file", b"0" * 100_000)
    stop = fork.Event()

    def rewrite() -> None:
        for number in range(1, 100_000):
            storage.replace("file", str(number % 10).encode() * 100_000)
            if stop.is_set():
                return

    writer = fork.Process(target=rewrite)
    writer.start()
    seen = [storage.read("file") for _ in range(400)]
    stop.set()
    writer.join()

    assert len({content[:1] for content in seen}) > 1, "the writer never got its turn"
    assert all(content == content[:1] * 100_000 for content in seen)


def test_a_streamed_file_appears_at_the_end_and_whole(storage: PosixStorage) -> None:
    with storage.writer("large") as stream:
        stream.write(b"a" * 1000)
        stream.flush()
        assert storage.list("") == []
        stream.write(b"b" * 1000)

    assert storage.read("large") == b"a" * 1000 + b"b" * 1000
    assert everything(storage) == ["large"]


def test_a_stream_that_fails_leaves_nothing_behind(storage: PosixStorage) -> None:
    with pytest.raises(ZeroDivisionError), storage.writer("large") as stream:  # noqa: PT012 - the second raises
        stream.write(b"half")
        raise ZeroDivisionError

    assert everything(storage) == []


def test_a_stream_that_fails_leaves_the_old_file_intact(storage: PosixStorage) -> None:
    storage.create("large", b"old")

    with pytest.raises(KeyboardInterrupt), storage.writer("large") as stream:  # noqa: PT012 - the second raises
        stream.write(b"half of the new")
        raise KeyboardInterrupt

    assert storage.read("large") == b"old"
    assert everything(storage) == ["large"]


@pytest.mark.parametrize("operation", ["create", "replace", "writer"])
def test_a_full_disk_is_an_error_and_not_a_short_file(storage: PosixStorage, operation: str) -> None:
    """The kernel writes what still fits and reports the rest only at the next write."""
    storage.create("other", b"")

    def write() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        data = b"x" * 150
        try:
            if operation == "writer":
                with storage.writer("file") as stream:
                    stream.write(data)
            else:
                getattr(storage, operation)("file", data)
        except OSError:
            sys.exit(7)

    code = in_child(write)

    assert code == 7
    assert everything(storage) == ["other"]


def test_list_is_sorted_and_hides_names_with_a_dot(storage: PosixStorage) -> None:
    for name in ("b", "a", ".a.host.1.2", "c/d"):
        storage.create(f"folder/{name}", b"")

    assert storage.list("folder") == ["a", "b", "c"]


def test_an_absent_folder_is_empty(storage: PosixStorage) -> None:
    assert storage.list("nowhere") == []


def test_an_absent_file_is_said_to_be_absent(storage: PosixStorage) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read("nowhere")
    with pytest.raises(FileNotFoundError):
        storage.open("nowhere")


def test_a_folder_is_moved_with_all_it_holds(storage: PosixStorage) -> None:
    storage.create("from/one", b"1")

    storage.move("from", "a/new/place")

    assert everything(storage) == ["a/new/place/one"]


def test_delete_removes_files_and_folders_and_accepts_their_absence(storage: PosixStorage) -> None:
    storage.create("file", b"")
    storage.create("folder/sub/file", b"")

    for path in ("file", "folder", "nowhere", "no/where"):
        storage.delete(path)

    assert everything(storage) == []


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_names_like_any_other(tmp_path: Path, name: str) -> None:
    storage = PosixStorage(tmp_path / name)

    storage.create(f"{name}/{name}", b"created")
    storage.replace(f"{name}/replaced", b"replaced")
    with storage.writer(f"{name}/streamed {name}") as stream:
        stream.write(b"streamed")
    storage.move(f"{name}/replaced", f"{name}/moved {name}")

    assert storage.list(name) == sorted([name, f"moved {name}", f"streamed {name}"])
    assert storage.read(f"{name}/{name}") == b"created"
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_the_size_of_a_folder_is_that_of_all_its_files(storage: PosixStorage) -> None:
    storage.create("deep/er/file", b"12345")
    storage.create("deep/.hidden", b"123")

    assert [storage.size(path) for path in ("deep", "deep/er/file", "absent")] == [8, 5, 0]
