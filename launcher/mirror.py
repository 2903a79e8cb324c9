"""A folder of this machine, kept the same on storage that cannot be appended to: files go there whole, now and then."""

import logging
import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from launcher.storage import Entry, PosixStorage, Storage

PERIOD_S = 30.0
_REST = 10
"""After a push that took long there is a pause of so many times its length."""
_CHUNK = 1 << 20

log = logging.getLogger(__name__)


class Mirror:
    """Everything in a folder, hidden files excepted, below a prefix of the storage. Nobody else writes there."""

    def __init__(self, storage: Storage, prefix: str, folder: Path) -> None:
        self.prefix, self.folder = prefix, folder
        self._storage = storage
        self._pushed: dict[Path, tuple[int, int]] = {}
        self._one_at_a_time = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep_pushing, name="mirror", daemon=True)

    def start(self) -> None:
        """Push from now on about every half minute, in a thread of its own."""
        self._thread.start()

    def push(self) -> None:
        """Store what has changed since the last push: when this returns, all that was in the files is stored.

        Raises:
            OSError: it cannot be stored.
        """
        with self._one_at_a_time:
            for path in sorted(self.folder.rglob("*")):
                name = path.relative_to(self.folder)
                if any(part.startswith(".") for part in name.parts) or not path.is_file():
                    continue
                with suppress(FileNotFoundError):  # deleted meanwhile
                    found = path.stat()
                    version = (found.st_size, found.st_mtime_ns)  # taken before it is read: more may come meanwhile
                    if self._pushed.get(path) != version:
                        with (
                            path.open("rb") as given,
                            self._storage.writer(f"{self.prefix}/{name.as_posix()}") as taken,
                        ):
                            shutil.copyfileobj(given, taken, _CHUNK)
                        self._pushed[path] = version

    def close(self) -> None:
        """Push for the last time. What cannot be stored is named in the log: whoever needs it has pushed before."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._push_if_possible()

    def _keep_pushing(self) -> None:
        pause = PERIOD_S
        while not self._closing.wait(pause):
            begun = time.monotonic()
            self._push_if_possible()
            pause = max(PERIOD_S, _REST * (time.monotonic() - begun))

    def _push_if_possible(self) -> None:
        try:
            self.push()
        except OSError as error:
            log.warning("%s is not stored yet: %s", self.prefix, error.strerror or error)


def refresh(storage: Storage, prefix: str, folder: Path, seen: Mapping[str, Entry]) -> Mapping[str, Entry]:
    """Have a folder hold what is stored below a prefix.

    Args:
        seen: what the call before has returned; nothing at first.

    Raises:
        OSError: it cannot be read.
    """
    there = storage.files(prefix)
    fetch(storage, prefix, [name for name, entry in there.items() if seen.get(name) != entry], folder)
    for name in seen.keys() - there.keys():
        (folder / name).unlink(missing_ok=True)
    return there


def fetch(storage: Storage, prefix: str, names: Iterable[str], folder: Path) -> None:
    """Copy files from below a prefix into a folder, each under its name; those that are absent are left out.

    Raises:
        OSError: one cannot be read or written.
    """
    for name in names:
        with (
            suppress(FileNotFoundError),
            storage.open(f"{prefix}/{name}" if prefix else name) as given,
            PosixStorage(folder).writer(name) as taken,
        ):
            shutil.copyfileobj(given, taken, _CHUNK)
