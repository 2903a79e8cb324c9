"""Writing and reading Lightning's checkpoint files durably, and committing them to the run."""

import hashlib
import os
import shutil
import tempfile
from typing import IO, Any, BinaryIO, cast

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from launcher.address import is_local, split, storage_at
from launcher.checkpoints import Manifest, newest_attempt, prune, write_manifest
from launcher.ledger import CheckpointSaved
from launcher.node.plain import plain
from launcher.run import Run

_CHUNK = 1 << 20


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes plain values, beside the target, syncs and renames; keeps size and checksum of the last file.

    (Lightning's own goes through TMPDIR, which on a cluster is another filesystem: the final move is a copy
    that a kill tears.)
    """

    def __init__(self) -> None:
        self.bytes = 0
        self.sha256 = ""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        folder, name = split(path)
        with storage_at(folder).writer(name) as stream:
            counted = _Checksum(stream)
            torch.save(plain(checkpoint), cast(IO[bytes], counted))
        self.bytes, self.sha256 = counted.bytes, counted.digest.hexdigest()

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


class _Checksum:
    """The part of a file that torch.save writes to."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        written = self._stream.write(data)
        self.bytes += written
        return written

    def flush(self) -> None:
        self._stream.flush()


def commit(run: Run, path: str, manifest: Manifest, keep_last: int) -> None:
    """Make a written checkpoint count: its manifest, then its event; then older ones are pruned.

    Raises:
        Fenced: a newer attempt has begun; the checkpoint does not count.
    """
    write_manifest(run.storage, path, manifest)
    saved = CheckpointSaved(
        attempt=manifest.attempt,
        step=manifest.step,
        epoch=manifest.epoch,
        path=path,
        bytes=manifest.bytes,
        complete=manifest.complete,
    )
    run.ledger.append_while(newest_attempt(manifest.attempt), saved)
    prune(run, manifest.attempt, keep_last)
