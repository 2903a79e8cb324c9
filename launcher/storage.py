"""Where a run directory lives: a tree of files behind a handful of operations.

Each operation is one that a POSIX filesystem and an object store can both do, so that the protocols
above it (events, checkpoints, leases) are the same on `/shared/...` and on `gs://...`.
Paths are relative, with forward slashes. Names that begin with a dot are never listed.
"""

import itertools
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

_unique = itertools.count()


class Unreachable(OSError):
    """The storage did not answer, or lets nobody in: that says nothing about what is stored."""


class Denied(PermissionError, Unreachable):
    """This account may not do that there."""


class Entry(NamedTuple):
    """What a listing says of a file."""

    bytes: int
    modified: float
    """When it was written last, in seconds since 1970, by the storage's clock."""


class Storage(Protocol):
    """The operations on one tree. All writes are durable when they return.

    What fails otherwise than said is an OSError whose `strerror` says what and what to do; one that says
    nothing about what is stored is Unreachable.
    """

    pause_s: float
    """How long to wait before looking again for what others write: on an object store a look costs time and money."""

    @property
    def root(self) -> str:
        """The tree's address, as a user would type it."""

    def read(self, path: str) -> bytes:
        """Raises FileNotFoundError."""

    def open(self, path: str) -> BinaryIO:
        """A stream for large files. Raises FileNotFoundError."""

    def create(self, path: str, data: bytes) -> None:
        """Write a new small file; readers see all of it or nothing. Raises FileExistsError if the name is taken."""

    def replace(self, path: str, data: bytes) -> None:
        """Write a file, new or not; readers see the old content or the new, never a mixture."""

    def writer(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Write a large file as a stream; it appears under its name when the `with` block ends without error."""

    def list(self, folder: str) -> list[str]:
        """Sorted names in a folder; an absent folder is empty, and so is what is a file."""

    def files(self, folder: str) -> dict[str, Entry]:
        """All files below a folder, by their path relative to it; sorted."""

    def modified(self, path: str) -> float:
        """When a file was written last, in seconds since 1970, by the storage's clock. Raises FileNotFoundError."""

    def size(self, path: str) -> int:
        """Bytes of a file, or of all that a folder holds, files that are never listed too; absent is 0."""

    def move(self, path: str, to: str) -> None:
        """Give a file or a folder another name. Raises FileNotFoundError.

        On an object store, whoever is killed in between leaves some of a folder's files under both names.
        """

    def delete(self, path: str) -> None:
        """Remove a file or a folder with all it holds; absent is fine."""


def try_out(storage: Storage) -> None:
    """Make a small file and delete it, which takes all that a run needs. Raises OSError: this account may not, ..."""
    trial = f".trial-{uuid.uuid4().hex[:12]}"
    storage.create(trial, b"")
    storage.delete(trial)


class PosixStorage:
    """A folder on a local or shared POSIX filesystem."""

    pause_s = 0.1

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self.root = str(self._root)

    def read(self, path: str) -> bytes:
        with open(f"{self.root}/{path}", "rb") as file:  # noqa: PTH123  # a table of runs opens thousands: half the time
            return file.read()

    def open(self, path: str) -> BinaryIO:
        return (self._root / path).open("rb")

    def create(self, path: str, data: bytes) -> None:
        target = self._root / path
        beside = self._write_beside(target, data)
        try:
            os.link(beside, target)  # fails if the name is taken, also on NFS; rename would overwrite
        finally:
            beside.unlink()
        sync(target.parent)

    def replace(self, path: str, data: bytes) -> None:
        target = self._root / path
        self._write_beside(target, data).replace(target)
        sync(target.parent)

    @contextmanager
    def writer(self, path: str) -> Iterator[BinaryIO]:
        target = self._root / path
        # Beside the target: a rename from another filesystem would be a copy, which can be torn.
        beside = _beside(target)
        try:
            with beside.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
        sync(target.parent)

    def list(self, folder: str) -> list[str]:
        try:
            with os.scandir(f"{self.root}/{folder}") as entries:
                return sorted(entry.name for entry in entries if not entry.name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def size(self, path: str) -> int:
        target = self._root / path
        return sum(one.stat().st_size for one in (target, *target.rglob("*")) if one.is_file())

    def files(self, folder: str) -> dict[str, Entry]:
        top, found = self._root / folder, {}
        for above, below, names in os.walk(top):
            below[:] = [name for name in below if not name.startswith(".")]
            for name in names:
                path = Path(above, name)
                with suppress(FileNotFoundError):  # deleted meanwhile, or a link that leads nowhere
                    if not name.startswith("."):
                        seen = path.stat()
                        found[path.relative_to(top).as_posix()] = Entry(seen.st_size, seen.st_mtime)
        return dict(sorted(found.items()))

    def modified(self, path: str) -> float:
        return (self._root / path).stat().st_mtime

    def move(self, path: str, to: str) -> None:
        target = self._root / to
        target.parent.mkdir(parents=True, exist_ok=True)
        (self._root / path).rename(target)
        sync(target.parent)

    def delete(self, path: str) -> None:
        target = self._root / path
        if target.is_dir():
            shutil.rmtree(target, onerror=_unless_absent)
        else:
            target.unlink(missing_ok=True)

    def _write_beside(self, target: Path, data: bytes) -> Path:
        beside = _beside(target)
        try:
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        return beside


def _unless_absent(operation: object, path: str, info: tuple[Any, BaseException, Any]) -> None:
    """Somebody else may be deleting it too."""
    if not isinstance(info[1], FileNotFoundError):
        raise info[1]


def _beside(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.with_name(f".{target.name}.{os.uname().nodename}.{os.getpid()}.{next(_unique)}")


def sync(path: Path) -> None:
    """Have a file's content on the disk, or a folder's names: a rename is durable only once its folder is.

    Raises:
        OSError: it is not there, or the disk fails.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
