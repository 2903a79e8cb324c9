"""A run directory on Google Cloud Storage: `gs://bucket/prefix`, through gcsfs.

What the protocol needs of an object store: an object appears whole or not at all, is seen by all as soon as it is
written, and can be created on the condition that there is none of its name
(https://cloud.google.com/storage/docs/consistency, https://cloud.google.com/storage/docs/request-preconditions).
Folders are prefixes of names: there are none without objects, and to move one is to copy each object.
"""

import errno
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, BinaryIO, cast

from launcher.errors import LauncherError
from launcher.gcs_client import SCHEME, as_oserror, connection
from launcher.storage import Entry, Unreachable

_CHUNK = 16 << 20
"""Bytes in one request of a stream: at most so much of it is in memory, and is sent again after a fault."""
_TOKEN = "launcher-created"
_PAGE = "items(name,size,updated),prefixes,nextPageToken"


class NoBucket(OSError):
    """There is no such bucket. (No FileNotFoundError: that a file is absent is an answer, this is none.)"""


class GcsStorage:
    """All objects below a prefix of a bucket. May be used from several threads, and after a fork."""

    pause_s = 1.0

    def __init__(self, address: str) -> None:
        """Raises LauncherError: gcsfs is not installed, or the address names no bucket."""
        self._bucket, _, self._prefix = address.removeprefix(SCHEME).rstrip("/").partition("/")
        self._root = f"{SCHEME}{self._bucket}/{self._prefix}".rstrip("/")
        if not self._bucket:
            raise LauncherError(f"{address}: there is no bucket in this address; expected gs://BUCKET/FOLDER")
        connection()

    @property
    def root(self) -> str:
        return self._root

    def read(self, path: str) -> bytes:
        with self._named("read", path):
            return cast(bytes, connection().cat_file(self._whole(path)))

    def open(self, path: str) -> BinaryIO:
        with self._named("read", path):
            file = connection().open(self._whole(path), "rb", block_size=_CHUNK, cache_type="readahead")
        return cast(BinaryIO, _Named(self, path, file))

    def create(self, path: str, data: bytes) -> None:
        token = uuid.uuid4().hex
        try:
            self._upload("create", path, data, {_TOKEN: token}, ifGenerationMatch="0")
        except FileExistsError:
            # If the answer to an upload is lost, it is sent again, and then finds its own object.
            with suppress(FileNotFoundError):
                if self._about(path, "metadata").get("metadata", {}).get(_TOKEN) == token:
                    return
            raise

    def replace(self, path: str, data: bytes) -> None:
        self._upload("write", path, data, {})

    @contextmanager
    def writer(self, path: str) -> Iterator[BinaryIO]:
        with self._named("write", path, absent=self._bucket):
            file = connection().open(self._whole(path), "wb", block_size=_CHUNK)
            try:
                yield file
            except BaseException:
                with suppress(Exception):  # what was begun cannot be seen, and the storage forgets it within a week
                    file.discard()
                file.closed = True  # else to forget it would be to finish it
                raise
            size = file.tell()
            file.close()
            if (stored := int(self._about(path, "size")["size"])) != size:
                self.delete(path)  # a part that was sent again was not taken for one
                raise Unreachable(errno.EIO, f"cannot write {self._root}/{path}: {stored} bytes of {size} were stored")

    def list(self, folder: str) -> list[str]:
        names = {name for name, _ in self._objects(folder, delimiter="/")}
        return sorted(name for name in names if name and not name.startswith("."))

    def files(self, folder: str) -> dict[str, Entry]:
        found = {name: _entry(about) for name, about in self._objects(folder) if name}
        return {name: found[name] for name in sorted(found) if not any(p.startswith(".") for p in name.split("/"))}

    def modified(self, path: str) -> float:
        return _entry(self._about(path, "size,updated")).modified

    def size(self, path: str) -> int:
        with suppress(FileNotFoundError):
            return _entry(self._about(path, "size,updated")).bytes
        return sum(_entry(about).bytes for _, about in self._objects(path))

    def move(self, path: str, to: str) -> None:
        with self._named("move", path):
            pairs = [(self._whole(one), self._whole(to + one[len(path) :])) for one in self._at(path)]
            if not pairs:
                raise FileNotFoundError
            for source, target in pairs:
                connection().cp_file(source, target)
        self.delete(path)

    def delete(self, path: str) -> None:
        for one in self._at(path):
            with self._named("delete", one), suppress(FileNotFoundError):
                connection().rm_file(self._whole(one))

    def _at(self, path: str) -> Sequence[str]:
        """The object of this name and all below it, relative to the root."""
        below = [f"{path}/{name}" for name, _ in self._objects(path)]
        with suppress(FileNotFoundError):
            self._about(path, "name")
            return [path, *below]
        return below

    def _objects(self, folder: str, **options: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Names relative to the folder, and what is known of each; with a delimiter, of folders only the names."""
        prefix, token = self._start(folder), None
        while True:
            with self._named("list", folder, absent=self._bucket):
                page = connection().call(
                    *("GET", "b/{}/o", self._bucket),
                    **{"prefix": prefix, "fields": _PAGE, "pageToken": token, "json_out": True, **options},
                )
            for name in page.get("prefixes", []):
                yield name.removeprefix(prefix).rstrip("/"), {}
            for about in page.get("items", []):
                yield about["name"].removeprefix(prefix), about
            if not (token := page.get("nextPageToken")):
                return

    def _about(self, path: str, fields: str) -> dict[str, Any]:
        with self._named("look at", path):
            found: dict[str, Any] = connection().call(
                "GET", "b/{}/o/{}", self._bucket, self._key(path), fields=fields, json_out=True
            )
            return found

    def _upload(self, doing: str, path: str, data: bytes, metadata: dict[str, str], **conditions: str) -> None:
        """In one request. Not by gcsfs's own: it marks the end of the data by a fixed text, which data may hold."""
        mark = uuid.uuid4().hex
        about = json.dumps({"name": self._key(path), "metadata": metadata})
        head = f"--{mark}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{about}\r\n--{mark}\r\n"
        body = [head.encode(), b"Content-Type: application/octet-stream\r\n\r\n", data, f"\r\n--{mark}--\r\n".encode()]
        storage = connection()
        with self._named(doing, path, absent=self._bucket):
            storage.call(
                *("POST", storage.base.replace("/storage/", "/upload/storage/", 1) + "b/{}/o", self._bucket),
                headers={"Content-Type": f"multipart/related; boundary={mark}"},
                data=b"".join(body),
                uploadType="multipart",
                **conditions,
            )

    def _key(self, path: str) -> str:
        return "/".join(filter(None, (self._prefix, path)))

    def _start(self, folder: str) -> str:
        """What the names of all objects below a folder begin with."""
        key = self._key(folder)
        return f"{key}/" if key else ""

    def _whole(self, path: str) -> str:
        return f"{self._bucket}/{self._key(path)}"

    @contextmanager
    def _named(self, doing: str, path: str, *, absent: str = "") -> Iterator[None]:
        """Errors of gcsfs as those that the protocol knows.

        Args:
            doing: a verb.
            absent: the bucket, where "not found" can only mean that.
        """
        where = f"{self._root}/{path}".rstrip("/")
        try:
            yield
        except FileNotFoundError:
            if absent:
                raise NoBucket(
                    errno.ENXIO,
                    f"cannot {doing} {where}: there is no bucket {absent}, or this account may not see it; make it "
                    f"(gcloud storage buckets create gs://{absent}) or correct the address",
                ) from None
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), where) from None
        except FileExistsError:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), where) from None
        except Exception as error:
            if said := as_oserror(error, f"cannot {doing} {where}"):
                raise said from error
            raise


class _Named:
    """A file to read from, whose errors are the storage's."""

    def __init__(self, storage: GcsStorage, path: str, file: Any) -> None:
        self._storage, self._path, self._file = storage, path, file

    def read(self, size: int = -1) -> bytes:
        with self._storage._named("read", self._path):
            return cast(bytes, self._file.read(size))

    def readinto(self, buffer: memoryview) -> int:
        part = self.read(len(buffer))
        buffer[: len(part)] = part
        return len(part)

    def seek(self, offset: int, whence: int = 0) -> int:
        return cast(int, self._file.seek(offset, whence))

    def tell(self) -> int:
        return cast(int, self._file.tell())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "_Named":
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


def _entry(about: dict[str, Any]) -> Entry:
    """Of an object's resource in the JSON API."""
    updated = datetime.fromisoformat(about["updated"].replace("Z", "+00:00"))
    return Entry(int(about.get("size", 0)), updated.timestamp())
