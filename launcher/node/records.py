"""The records of a checkpoint file, read in one pass. No torch: a large file is read while torch is being imported.

Each lies in memory of its own, so that whoever keeps one tensor of a checkpoint keeps no more.
"""

import mmap
import os
import struct
from collections.abc import Callable
from typing import BinaryIO
from zipfile import ZIP_STORED, ZipFile

from launcher.checkpoints import BadCheckpoint

Records = dict[str, memoryview]
"""By their names in the archive, less the folder that all are in."""

_PART = 1 << 18
"""Bytes that are still in a core's own cache when they are summed up."""
_HEADER = struct.Struct("<26x2H")
"""Of a record: the lengths of its name and of what follows that (APPNOTE.TXT 4.3.7)."""


def read_records(stream: BinaryIO, seen: Callable[[memoryview], object]) -> Records:
    """All records of a file of torch.save's format, which is a ZIP archive without compression.

    Args:
        stream: at its beginning or not; its end is read first, for the directory is there.
        seen: gets all bytes of the file, in order.

    Raises:
        BadCheckpoint: it is no such file.
        OSError: it cannot be read.
        MemoryError: there is no room for it.
    """
    size = stream.seek(0, os.SEEK_END)
    try:
        entries = sorted(ZipFile(stream).infolist(), key=lambda entry: entry.header_offset)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of a directory that is damaged: whatever can come of parsing it
        raise BadCheckpoint(f"no archive that torch.save writes ({error})") from None
    stream.seek(0)
    once, records = _Once(stream, size, seen), {}
    for entry in entries:
        if entry.compress_type != ZIP_STORED:
            raise BadCheckpoint(f"no archive that torch.save writes ({entry.filename} is compressed)")
        once.read(entry.header_offset - once.position)
        once.read(sum(_HEADER.unpack(once.read(_HEADER.size))))
        records[entry.filename.partition("/")[2]] = once.read(entry.file_size, _pages)
    once.read(size - once.position)
    return records


class _Once:
    """A stream from its beginning to its end."""

    def __init__(self, stream: BinaryIO, size: int, seen: Callable[[memoryview], object]) -> None:
        self._stream, self._size, self._seen = stream, size, seen
        self.position = 0

    def read(self, size: int, room: Callable[[int], bytearray | mmap.mmap] = bytearray) -> memoryview:
        """The next bytes."""
        if not 0 <= size <= self._size - self.position:
            raise BadCheckpoint("its directory does not fit what lies before it")
        whole = memoryview(room(size))
        for start in range(0, size, _PART):
            part, count = whole[start : start + _PART], 0
            while count < len(part):
                got = self._stream.readinto(part[count:])  # type: ignore[attr-defined]  # BinaryIO has it, its stub not
                if not got:
                    raise BadCheckpoint("it became shorter while it was read")
                count += got
            self._seen(part)
        self.position += size
        return whole


def _pages(size: int) -> bytearray | mmap.mmap:
    """Memory that begins at a page, for vector instructions; given back to the system with its last tensor."""
    if not size:
        return bytearray()
    try:
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:  # that says nothing about the file
        raise MemoryError(f"no room for {size} bytes of a checkpoint ({error.strerror})") from None
