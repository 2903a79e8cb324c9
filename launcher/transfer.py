"""A run directory at another address, whole: on a filesystem or an object store, in the form that each has for it."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launcher.address import below, is_local
from launcher.driver import LEASE
from launcher.errors import LauncherError, UsageError
from launcher.record import RECORD
from launcher.run import Run
from launcher.snapshot import pack, unpack
from launcher.storage import Storage

_CODE = "code"
_AT_ONCE = 16
_CHUNK = 1 << 20
_NOT_CARRIED = (RECORD, LEASE)
"""The record comes last, and makes a run of it; the lease is of a process that drives it no more."""


def carry(run: Run, target: Storage) -> None:
    """Copy all that there is of a run, but for its record: until `reveal`, there is no run there.

    To do it again, after a crash in between, is fine. Nobody drives the run meanwhile.

    Raises:
        UsageError: there is another run.
        LauncherError: files were changed while they were copied.
        OSError: one cannot be read or written.
    """
    source = run.storage
    _check_free(target)
    trees = [one.name for one in _trees(source)]
    sizes = {
        name: entry.bytes
        for name, entry in source.files("").items()
        if name not in _NOT_CARRIED and not any(name.startswith(f"{_CODE}/{tree}/") for tree in trees)
    }

    def copy(name: str) -> None:
        with source.open(name) as given, target.writer(name) as taken:
            shutil.copyfileobj(given, taken, _CHUNK)

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        list(threads.map(copy, sizes))
    for tree in _trees(source):
        with target.writer(f"{_CODE}/{tree.name}.tar") as stream:
            pack(tree, stream)
    if is_local(target.root):
        for name in target.list(_CODE):
            if name.endswith(".tar"):
                unpack(below(target.root, f"{_CODE}/{name}"))
    there = target.files("")
    if wrong := [name for name, size in sizes.items() if name not in there or there[name].bytes != size]:
        raise LauncherError(
            f"{target.root}/{wrong[0]}: not as it is in {source.root}; somebody has written there meanwhile. Try again"
        )


def reveal(run: Run, target: Storage) -> Run:
    """From here on what was carried there is a run. Raises UsageError if there is another."""
    if not arrived(run, target):
        try:
            target.create(RECORD, run.storage.read(RECORD))
        except FileExistsError:
            _check_free(target)
    return Run(target)


def arrived(run: Run, target: Storage) -> bool:
    """Whether there is a run there, and it is this one."""
    try:
        return target.read(RECORD) == run.storage.read(RECORD)
    except FileNotFoundError:
        return False


def _check_free(target: Storage) -> None:
    if RECORD in target.list(""):
        raise UsageError(f"{target.root}: there is a run already; choose another folder, or give that one another name")


def _trees(storage: Storage) -> Iterator[Path]:
    """Copies of code that are folders: with links, modes and hidden files, which only an archive keeps."""
    if is_local(storage.root):
        folder = Path(storage.root, _CODE)
        yield from (folder / name for name in storage.list(_CODE) if (folder / name).is_dir())
