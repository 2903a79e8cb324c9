"""The file that torch.save writes, and that torch.load and any unzip read: a ZIP archive, byte for byte laid out alike.

torch sums up each record (CRC-32) in a pass of its own, which costs as much as writing it. Here a part is summed up and
written while it is in the cache, and by the instructions that processors have for it where isal is installed.
"""

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils.serialization import config

try:
    from isal.isal_zlib import crc32
except ImportError:  # there are no wheels of it for some processors
    from zlib import crc32

_CHUNK = 1 << 20
"""Bytes that stay in a core's own cache between summing up and writing. In smaller parts this thread would have to wait
for Python's lock, which training holds too, all the more often."""
_FOLDER = "archive"
_VERSION = "3\n"
"""Of torch's format."""
_FLAGS, _DESCRIPTOR = 0x800, 0x8
"""Names are UTF-8; the sum stands behind the data."""
_LIMIT = 0xFFFFFFFF
"""Sizes and offsets from this one on stand elsewhere, in 64 bits (APPNOTE.TXT 4.3.9 to 4.3.16 and 4.5.3)."""
_ELSEWHERE = 0xFFFFFFFF


class _Entry(NamedTuple):
    name: bytes
    flags: int
    crc: int
    size: int
    offset: int


class Archive:
    """Records, one after the other; what torch.save hands its own writer goes to `write_record`."""

    def __init__(self, write: Callable[[bytes | memoryview], object]) -> None:
        self._write, self._offset = write, 0
        self._entries: list[_Entry] = []

    def write_record(self, name: str, data: str | bytes | torch.UntypedStorage, size: int) -> None:
        """`size`: of the data in bytes."""
        view = _bytes_of(data)
        assert len(view) == size
        path = f"{_FOLDER}/{name}".encode()
        offset, flags = self._offset, _FLAGS | _DESCRIPTOR if size else _FLAGS
        is_long = size >= _LIMIT
        short = _ELSEWHERE if is_long else 0  # 0: behind the data
        long = struct.pack("<2H2Q", 1, 16, size, size) if is_long else b""
        begin = offset + 30 + len(path) + len(long) + 4
        padding = -begin % config.save.storage_alignment
        extra = long + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        header = struct.pack("<4s5H3I2H", b"PK\3\4", 0, flags, 0, 0, 0, 0, short, short, len(path), len(extra))
        self._put(header + path + extra)
        crc = 0
        for start in range(0, size, _CHUNK):
            part = view[start : start + _CHUNK]
            crc = crc32(part, crc)
            self._put(part)
        if size:
            self._put(struct.pack("<4sI2Q" if is_long else "<4s3I", b"PK\7\x08", crc, size, size))
        self._entries.append(_Entry(path, flags, crc, size, offset))

    def close(self) -> None:
        """Write what lies at its end: the version and the directory; not torch's id, which only its logs use."""
        self.write_record("version", _VERSION, len(_VERSION))
        begin = self._offset
        for entry in self._entries:
            self._put(_directory_entry(entry))
        self._put(_end(len(self._entries), begin, self._offset))

    def _put(self, data: bytes | memoryview) -> None:
        self._write(data)
        self._offset += len(data)


def _bytes_of(data: str | bytes | torch.UntypedStorage) -> memoryview:
    """Without copying a storage."""
    if isinstance(data, str):
        return memoryview(data.encode())
    if isinstance(data, bytes):
        return memoryview(data)
    taken: Any = torch.empty(0, dtype=torch.uint8).set_(data).numpy()
    return memoryview(taken)


def _directory_entry(entry: _Entry) -> bytes:
    name, flags, crc, size, offset = entry
    long = b""
    if size >= _LIMIT:
        long, size = struct.pack("<2Q", size, size), _ELSEWHERE
    if offset >= _LIMIT:
        long, offset = long + struct.pack("<Q", offset), _ELSEWHERE
    extra = struct.pack("<2H", 1, len(long)) + long if long else b""
    numbers = (0, 0, flags, 0, 0, 0, crc, size, size, len(name), len(extra), 0, 0, 0, 0, offset)
    return struct.pack("<4s6H3I5H2I", b"PK\1\2", *numbers) + name + extra


def _end(count: int, begin: int, end: int) -> bytes:
    """Of a directory that lies there."""
    size, long, few = end - begin, b"", min(count, 0xFFFF)
    if count >= 0xFFFF or begin >= _LIMIT:
        long = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, begin)
        long += struct.pack("<4sIQI", b"PK\6\7", 0, end, 1)
    begin = _ELSEWHERE if begin >= _LIMIT else begin
    return long + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, few, few, size, begin, 0)
