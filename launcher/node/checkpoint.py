"""Lightning's checkpoint files: written as plain values, durably, with a checksum; and read."""

import os
import shutil
import tempfile
from typing import IO, Any, BinaryIO, NamedTuple, cast

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from launcher.address import is_local, split, storage_at
from launcher.checkpoints import Checksum
from launcher.node.plain import plain
from launcher.storage import Storage

_CHUNK = 1 << 20


class Written(NamedTuple):
    bytes: int
    checksum: str


def write(storage: Storage, path: str, checkpoint: Any) -> Written:
    """Write plain values as torch.save does, beside the target, which is renamed once it is on the disk.

    Raises:
        OSError: it cannot be written; nothing of it is left.
    """
    with storage.writer(path) as stream:
        counted = _Counted(stream)
        try:
            torch.save(checkpoint, cast(IO[bytes], counted))
        except RuntimeError:
            if counted.error:  # torch says no more than that writing failed
                raise counted.error from None
            raise
    return Written(counted.bytes, counted.checksum.text)


class _Counted:
    """The part of a file that torch.save writes to."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.checksum = Checksum()
        self.bytes = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """A tensor comes in one piece: by parts, that are still in the cache when they are written."""
        view = memoryview(data)
        for begin in range(0, len(view), _CHUNK):
            part = view[begin : begin + _CHUNK]
            self.checksum.update(part)
            try:
                self._stream.write(part)
            except OSError as error:
                self.error = error
                raise
        self.bytes += len(view)
        return len(view)

    def flush(self) -> None:
        self._stream.flush()


class DurableCheckpointIO(TorchCheckpointIO):
    """What Lightning and the user's own code save and load with; the launcher's checkpoints go through `Writer`.

    (Lightning's own goes through TMPDIR, which on a cluster is another filesystem: the final move is a copy
    that a kill tears.)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        folder, name = split(path)
        write(storage_at(folder), name, plain(checkpoint))

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        loaded: dict[str, Any]
        if is_local(path):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
            return loaded
        folder, name = split(path)
        # torch.load reads here and there; a stream from an object store is read once, from its beginning.
        with tempfile.NamedTemporaryFile(dir=os.environ.get("LAUNCHER_SCRATCH")) as copy:
            with storage_at(folder).open(name) as stream:
                shutil.copyfileobj(stream, copy, _CHUNK)
            copy.flush()
            loaded = torch.load(copy.name, map_location="cpu", weights_only=True)
        return loaded
