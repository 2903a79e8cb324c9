"""The storage contract on a POSIX filesystem, and what is its own: full disks, hostile names."""

import multiprocessing
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from storage_contract import Contract

from launcher.storage import PosixStorage, Storage

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


def everything(storage: Storage) -> list[str]:
    """All files, those with a dot included."""
    root = Path(storage.root)
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def in_child(body: Callable[[], None]) -> int | None:
    child = fork.Process(target=body)
    child.start()
    child.join()
    return child.exitcode


class TestPosix(Contract):
    def everything(self, storage: Storage) -> list[str]:
        return everything(storage)


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
