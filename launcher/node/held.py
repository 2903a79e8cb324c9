"""Files that stay those of one attempt, though another one puts its own in their place."""

import os
from pathlib import Path

from launcher.storage import PosixStorage

_CHUNK = 1 << 20


class Held:
    """A file to append to that stays this one, whatever comes to bear its name. The kernel closes it at the end."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def write(self, data: bytes) -> None:
        while data:  # a disk that is filling up takes a part, and reports the rest at the next write
            data = data[os.write(self.descriptor, data) :]

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Left to the end of the process: TensorBoard's writer may close a file twice."""


def keep(path: Path, size: int) -> None:
    """Put the first bytes of a file in its place, as a file of their own."""
    folder, left = PosixStorage(path.parent), size
    # Whatever has "tfevents" in its name is read by TensorBoard, so that the copy must not until it is whole.
    with path.open("rb") as given, folder.writer(".kept") as taken:
        while chunk := given.read(min(left, _CHUNK)):
            taken.write(chunk)
            left -= len(chunk)
    folder.move(".kept", path.name)
