"""What ranks print: one growing file a rank; where nothing can be appended to, pieces of it, each stored once.

    attempts/001/logs/rank-00000.log                  on a filesystem
    attempts/001/logs/rank-00000.log/000000000000     on an object store: named by the offset of their first byte
    attempts/001/logs/rank-00000.log/000000004711

Readers take either, so that a run may be copied from the one to the other and go on there.
"""

import logging
import os
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from launcher.storage import Storage

SHIP_S = 1.5
_PIECE = 4 << 20

log = logging.getLogger(__name__)


def parts(storage: Storage, path: str, offset: int = 0) -> Iterator[bytes]:
    """A rank's log from an offset on. Raises FileNotFoundError when there is none."""
    names = storage.list(path)
    if not names:
        with storage.open(path) as file:
            file.seek(offset)
            while data := file.read(_PIECE):
                yield data
    for name, following in pairwise([*names, None]):
        if name and (following is None or int(following) > offset):
            data = storage.read(f"{path}/{name}")[max(0, offset - int(name)) :]  # two who ship may overlap
            offset = max(offset, int(name)) + len(data)
            yield data


def end(storage: Storage, path: str, size: int) -> bytes:
    """The last bytes of a rank's log. Raises FileNotFoundError when there is none."""
    if length := stored(storage, path):
        return b"".join(parts(storage, path, max(0, length - size)))
    with storage.open(path) as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - size))
        return file.read()


def last_written(storage: Storage, path: str) -> float:
    """When the rank printed last, in seconds since 1970. Raises FileNotFoundError when there is no log."""
    pieces = storage.files(path)
    return max((one.modified for one in pieces.values()), default=0.0) or storage.modified(path)


def store(storage: Storage, path: str, offset: int, data: bytes) -> int:
    """Store what follows the first `offset` bytes of a rank's log.

    Returns:
        How much is stored now: not with this, if somebody else has stored what begins there.
    """
    try:
        storage.create(f"{path}/{offset:012d}", data)
    except FileExistsError:  # by the supervisor before this one, or by one that was taken for dead
        return stored(storage, path)
    return offset + len(data)


def stored(storage: Storage, path: str) -> int:
    """Bytes of a rank's log that are stored in pieces."""
    return max((int(name) + piece.bytes for name, piece in storage.files(path).items()), default=0)


class Shipper:
    """Stores what the logs in a folder of this machine have grown by, of whatever attempt."""

    def __init__(self, storage: Storage, folder: Path) -> None:
        self._storage, self._folder = storage, folder
        self._sent: dict[str, int] = {}
        self._due = 0.0

    def ship(self, *, now: bool = False) -> None:
        """To be called often; does something about every second, or at once if told to."""
        if now or time.monotonic() >= self._due:
            try:
                for file in sorted(self._folder.glob("attempts/*/logs/rank-*.log")):
                    self._ship(file, file.relative_to(self._folder).as_posix())
            except OSError as error:  # no reason to end a training
                log.warning("the output of the ranks is not stored yet: %s", error.strerror or error)
            self._due = time.monotonic() + SHIP_S

    def _ship(self, file: Path, path: str) -> None:
        sent = self._sent.get(path, 0)
        with file.open("rb") as output:
            output.seek(sent)
            while data := output.read(_PIECE):
                sent = store(self._storage, path, sent, data)
                output.seek(sent)
        self._sent[path] = sent
