"""Files and folders as locks between processes."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold a file or folder that exists, against others who do; gives the number of its inode."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield os.fstat(descriptor).st_ino
    finally:
        os.close(descriptor)


@contextmanager
def folder_of_its_own(folder: Path) -> Iterator[None]:
    """Make and hold a folder that may be removed meanwhile. It is the lock itself, so that none is left behind."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder) as held:
            if folder.exists() and held == folder.stat().st_ino:
                yield
                return
