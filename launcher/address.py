"""Addresses of runs and of folders of runs: a path, or `gs://bucket/folder`; and the folder on this machine that stands
in where an object store cannot: to import from, to append to."""

import hashlib
import os
import tempfile
from pathlib import Path

from launcher.errors import LauncherError
from launcher.gcs import GcsStorage
from launcher.gcs_client import SCHEME
from launcher.storage import PosixStorage, Storage

Address = str | Path


def storage_at(address: Address) -> Storage:
    """The storage at an address; need not hold anything yet.

    Raises:
        LauncherError: the address is of a kind that is not known, or what it needs is not installed.
    """
    text = str(address)
    if is_local(text):
        return PosixStorage(Path(text))
    if not text.startswith(SCHEME):
        raise LauncherError(f"{text}: no such kind of address; expected a path or {SCHEME}BUCKET/FOLDER")
    return GcsStorage(text)


def is_local(address: Address) -> bool:
    """Whether it is a path."""
    return "://" not in str(address)


def absolute(address: Address) -> str:
    """As it is called from any folder; symlinks are kept."""
    return str(Path(address).absolute()) if is_local(address) else str(address).rstrip("/")


def below(address: Address, name: str) -> str:
    return f"{str(address).rstrip('/')}/{name}"


def split(address: Address) -> tuple[str, str]:
    """The folder of runs and the name in it, of a run's address."""
    folder, _, name = absolute(address).rpartition("/")
    return folder, name


def here(address: Address) -> Path:
    """The folder of this machine for what needs one: the run directory itself if it is a path. Pure: see `own`."""
    return Path(absolute(address)) if is_local(address) else scratch(address)


def scratch(address: Address, base: Path | None = None) -> Path:
    """The folder of this machine that belongs to the run at an address: in LAUNCHER_SCRATCH, or else below the
    system's folder for temporary files. It may be lost at any time. Pure: see `own`.

    Args:
        base: LAUNCHER_SCRATCH of another machine.
    """
    own_base = os.environ.get("LAUNCHER_SCRATCH") or f"{tempfile.gettempdir()}/launcher-{os.getuid()}"
    digest = hashlib.sha256(absolute(address).encode()).hexdigest()
    return (base or Path(own_base).absolute()) / f"{split(address)[1]}-{digest[:8]}"


def own(folder: Path) -> Path:
    """Make a folder of scratch files where there is none, for this user alone.

    Raises:
        LauncherError: it is another user's, who might change what is imported from there.
    """
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for one in (folder.parent, folder):
        if (owner := one.stat().st_uid) not in (os.getuid(), 0):
            raise LauncherError(
                f"{one}: belongs to another user ({owner}); name a folder of your own in LAUNCHER_SCRATCH"
            )
    return folder
