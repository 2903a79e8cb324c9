"""Checkpoint files as torch.save writes them: durably, with a checksum; and read. Torch alone, no Lightning."""

import os
import pickle
import shutil
import tempfile
from contextlib import suppress
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import _weights_only_unpickler

from launcher.address import is_local, split, storage_at
from launcher.checkpoints import Checksum
from launcher.node.archive import Archive
from launcher.node.records import Records
from launcher.storage import Storage

_CHUNK = 1 << 20
_WRITE_BACK = 8 << 20
"""So many bytes are given to the disk at once."""


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
        archive = Archive(counted.write)
        # What torch.save does, but for the archive.
        protocol = torch.serialization.DEFAULT_PROTOCOL
        torch.serialization._save(checkpoint, archive, pickle, protocol, False)  # type: ignore[no-untyped-call]
        archive.close()
    return Written(counted.bytes, counted.checksum.text)


def load(address: str) -> Any:
    """The plain values and tensors of a file, on the CPU.

    Raises:
        OSError: it cannot be read.
        UnpicklingError, RuntimeError: it is no checkpoint.
    """
    if is_local(address):
        return torch.load(address, map_location="cpu", weights_only=True)
    folder, name = split(address)
    # torch.load reads here and there; a stream from an object store is read once, from its beginning.
    with tempfile.NamedTemporaryFile(dir=os.environ.get("LAUNCHER_SCRATCH")) as copy:
        with storage_at(folder).open(name) as stream:
            shutil.copyfileobj(stream, copy, _CHUNK)
        copy.flush()
        return torch.load(copy.name, map_location="cpu", weights_only=True)


def unpickled(records: Records) -> Any:
    """What `load` makes of the file that these were read from; tensors lie where the records do.

    Raises:
        UnpicklingError, RuntimeError: it is no checkpoint.
    """
    # What torch.load does, but for the archive. Indices of sparse tensors are held against their sizes: a
    # checkpoint from elsewhere could have memory read that is not its own.
    with torch.sparse.check_sparse_tensor_invariants():  # type: ignore[no-untyped-call]
        return torch.serialization._load(  # type: ignore[no-untyped-call]
            _Reader(records), "cpu", _weights_only_unpickler, encoding="utf-8"
        )


class _Reader:
    """Records, as torch.load asks its own reader for them."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def has_record(self, name: str) -> bool:
        return name in self._records

    def get_record(self, name: str) -> bytes:
        return bytes(self._records[name])

    def get_storage_from_record(self, name: str, size: int, kind: type) -> torch.Tensor:
        data = self._records[name]
        return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)

    def serialization_id(self) -> str:
        return ""  # for torch's logs


class _Counted:
    """A stream, its length and its checksum."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.checksum = Checksum()
        self.bytes = 0
        self._given_back = 0

    def write(self, part: bytes | memoryview) -> None:
        self.checksum.update(part)
        self._stream.write(part)
        self.bytes += len(part)
        if self.bytes - self._given_back >= _WRITE_BACK:
            self._write_back()

    def _write_back(self) -> None:
        """Have the system begin to write what it would keep until the final sync: the disk works while sums are made.

        (Dirty pages are not dropped by this advice, only written; a stream that is no file has nothing to advise.)
        """
        with suppress(OSError, AttributeError):
            size = self.bytes - self._given_back
            os.posix_fadvise(self._stream.fileno(), self._given_back, size, os.POSIX_FADV_DONTNEED)
        self._given_back = self.bytes
