"""What a run on an object store leaves on this machine, and how that goes again."""

import shutil
from contextlib import suppress

from launcher.address import here, is_local
from launcher.output import stored
from launcher.storage import Storage


def clear(storage: Storage) -> None:
    """Remove it, unless the ranks' output in it is not all stored. Called by the run's driver, while it is that and no
    attempt is open: then nobody imports from there or writes to it, and nobody begins to."""
    if is_local(storage.root):
        return
    folder = here(storage.root)
    with suppress(OSError):  # what cannot be looked up, or be removed, stays
        logs = folder.glob("attempts/*/logs/rank-*.log")
        if all(stored(storage, log.relative_to(folder).as_posix()) >= log.stat().st_size for log in logs):
            shutil.rmtree(folder)
