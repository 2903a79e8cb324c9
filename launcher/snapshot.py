"""A copy of the user's code in the run directory, stored by content, to import from.

Where nothing can be imported from, it is one archive there, and whoever starts ranks has it unpacked (`unpack`).
"""

import hashlib
import itertools
import os
import shutil
import stat
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from launcher.address import Address, here, is_local, own, split, storage_at
from launcher.errors import UsageError
from launcher.git import git
from launcher.layout import code_archive, code_folder, diff_path
from launcher.mirror import fetch
from launcher.record import Code, Tree, writing
from launcher.storage import sync
from launcher.tree import Source, editable_entries, place

_CHUNK = 1 << 20
_AT_ONCE = 16
"""Files that are written to the disk at the same time."""
_BATCH = 500
"""Paths in one call of git."""


def digest_of(sources: Sequence[Source]) -> str:
    """What the snapshot would be called; reads all files, writes none."""
    return _digest(sources, None)


def describe(sources: Sequence[Source], digest: str, import_path: Sequence[str], workdir: str, *, diff: bool) -> Code:
    """What run.json says about the snapshot.

    Args:
        import_path: folders of the live tree; those of editable installs are added.
        workdir: the live one.
    """
    mapped = [place(entry, sources) or entry for entry in import_path]
    editable = (place(entry, sources) for entry in editable_entries(sys.path, sys.meta_path))
    return Code(
        digest=digest,
        trees=tuple(
            Tree(path=str(one.root), folder=one.folder, commit=one.commit, changed=len(one.changed) + one.new)
            for one in sources
        ),
        import_path=tuple(dict.fromkeys([*mapped, *(entry for entry in editable if entry)])),
        workdir=place(workdir, sources),
        diff=diff,
    )


def import_path(code: Code, folder: str) -> list[str]:
    """The entries in their order, for a snapshot that lies in this folder."""
    return [os.path.join(folder, entry) for entry in code.import_path]  # noqa: PTH118 - keeps absolute ones as they are


class Staged(NamedTuple):
    """A copy that does not yet have its name."""

    code: Code
    folder: Path
    """Where it is now."""
    publish: Callable[[], None]
    """Gives it its name in the run directory."""


@contextmanager
def staged(sources: Sequence[Source], run_dir: Address, import_path: Sequence[str], workdir: str) -> Iterator[Staged]:
    """Copy the trees beside where ranks shall import from. What has not been published by the end is removed.

    Raises:
        UsageError: a file cannot be read.
        LauncherError: the run directory cannot be written.
    """
    home = here(run_dir)
    above = [home / "code", home, *home.parents]
    made = list(itertools.takewhile(lambda folder: not folder.exists(), above))
    beside = home / f"code/.{os.uname().nodename}.{os.getpid()}.{time.monotonic_ns()}"
    tree, diff = beside / "tree", beside / "diff"
    try:
        with writing(str(run_dir)):
            if not is_local(run_dir):
                own(home)
            beside.mkdir(parents=True)
            digest = _digest(sources, tree)
            code = describe(sources, digest, import_path, workdir, diff=_write_diff(sources, diff))
            _sync_all(beside)
        yield Staged(code, tree, lambda: _publish(code, tree, diff, run_dir))
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        with suppress(OSError):  # not empty: they are wanted
            for folder in made:
                folder.rmdir()


def _publish(code: Code, tree: Path, diff: Path, run_dir: Address) -> None:
    target = here(run_dir) / code_folder(code)
    with writing(str(run_dir)):
        if is_local(run_dir):
            if code.diff:
                diff.replace(Path(run_dir) / diff_path(code))
        else:
            storage = storage_at(run_dir)
            if code.diff:
                storage.replace(diff_path(code), diff.read_bytes())
            with storage.writer(code_archive(code)) as stream:
                pack(tree, stream)
        if not target.exists():  # else it is the same, left by a launcher that died
            tree.rename(target)
        sync(target.parent)


def unpack(archive: str) -> None:
    """Have the snapshot at an address on this machine as a folder, to import from; it may be there already.

    A run directory that was copied from elsewhere may hold it in the form that is not usual where it is now.

    Raises:
        OSError: it cannot be read, or not be written here.
        LauncherError: the scratch folder is another user's.
    """
    run_dir, name = split(split(archive)[0])[0], split(archive)[1]
    folder = f"code/{name.removesuffix('.tar')}"
    target = here(run_dir) / folder
    if target.exists():
        return
    if not is_local(run_dir):
        own(here(run_dir))
    beside = target.with_name(f".{os.uname().nodename}.{os.getpid()}.{time.monotonic_ns()}")
    beside.mkdir(parents=True)
    try:
        storage = storage_at(run_dir)
        if copied := storage.files(folder):
            fetch(storage, folder, copied, beside)
        else:
            with storage.open(f"code/{name}") as stream, tarfile.open(fileobj=stream, mode="r|") as packed:
                # All of it as it was packed, by this user's own launcher; the default differs between Pythons.
                packed.extraction_filter = lambda member, path: member
                packed.extractall(beside)
        _sync_all(beside)
        with suppress(OSError):  # somebody else was faster
            beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def pack(tree: Path, stream: BinaryIO) -> None:
    """Write a snapshot as the archive that `unpack` reads."""

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(fileobj=stream, mode="w|") as packed:
        packed.add(tree, ".", filter=anonymous)


def _write_diff(sources: Sequence[Source], file: Path) -> bool:
    """What `git diff HEAD` says of the files that have changed; whether that is anything."""
    options = ("--binary", "--no-renames", "--no-ext-diff", "--no-textconv")
    part = file.with_name("part")
    with file.open("wb") as whole:
        for one in sources:
            for start in range(0, len(one.changed) if one.commit else 0, _BATCH):
                names = [f":(literal){name}" for name in one.changed[start : start + _BATCH]]
                prefixes = ("--src-prefix=a/", "--dst-prefix=b/")
                code, lines = git(one.root, "diff", *options, *prefixes, f"--output={part}", "HEAD", "--", *names)
                if code:
                    raise UsageError(f"{one.root}: git diff failed: {' '.join(lines).strip()}")
                with part.open("rb") as stream:
                    shutil.copyfileobj(stream, whole)
        return whole.tell() > 0


# The copy


def _digest(sources: Sequence[Source], into: Path | None) -> str:
    """Over names, modes and contents; all of it is copied if there is a folder to copy to."""
    whole = hashlib.sha256()
    for one in sources:
        target = into / one.folder if into else None
        for name in one.files:
            if said := _entry(one, name, target / name if target else None):
                whole.update(f"{one.folder}/{name}\0{said}\0".encode(errors="surrogateescape"))
        if target:
            target.mkdir(parents=True, exist_ok=True)
    return whole.hexdigest()[:16]


def _entry(source: Source, name: str, target: Path | None) -> str | None:
    """What one file adds to the digest; None if it is gone. Copied, read-only, if there is a target."""
    path = source.root / name
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        link = _link(source, path) if path.is_symlink() else None
        if link is None:
            return _contents(path, target)
    except FileNotFoundError:
        return None
    if target:
        target.symlink_to(link)
    return f"link {link}"


def _link(source: Source, path: Path) -> str | None:
    """What a link says in the snapshot; None where the file it leads to is copied in its place.

    Folders outside are not copied (data, as a rule): the link still leads there. That no module is imported through
    it, each start checks.
    """
    real = Path(os.path.realpath(path))
    if not real.exists():
        return str(path.readlink())
    if not real.is_relative_to(source.root):
        return str(real) if real.is_dir() else None
    if real.is_dir() or str(real.relative_to(source.root)) in source.files:
        return os.path.relpath(real, path.parent)
    return None


def _contents(path: Path, target: Path | None) -> str | None:
    content = hashlib.sha256()
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UsageError(
            f"{path}: the code is to be copied into the run directory, but this file cannot be read: {error.strerror}; "
            "leave it out with code.exclude"
        ) from None
    with stream:
        mode = 0o555 if os.fstat(stream.fileno()).st_mode & stat.S_IXUSR else 0o444
        copy = target.open("xb") if target else None
        try:
            while chunk := stream.read(_CHUNK):
                content.update(chunk)
                if copy:
                    copy.write(chunk)
            if copy:
                os.fchmod(copy.fileno(), mode)  # not its folder, so that `rm -r` removes a run
        finally:
            if copy:
                copy.close()
    return f"{mode:o} {content.hexdigest()}"


def _sync_all(folder: Path) -> None:
    """Everything in the folder is durable. Many at a time: one by one, each waits for the disk."""
    found = [folder, *(path for path in folder.rglob("*") if not path.is_symlink())]
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        list(threads.map(sync, found))
