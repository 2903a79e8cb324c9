"""What a rank has compiled for its device, kept in the run directory: to compile takes minutes, and on Cloud TPU each
attempt has machines of its own."""

import logging
from pathlib import Path

from launcher.address import here, is_local, storage_at
from launcher.mirror import Mirror, refresh

log = logging.getLogger(__name__)


def kept_programs(run_dir: str, rank: int) -> Path:
    """The folder for them, with those of attempts before in it; what comes to it is stored about every half minute.

    Each rank has its own: torch_xla asks for that where each process compiles for itself.
    """
    prefix = f"compiled/rank-{rank:05d}"
    folder = here(run_dir) / prefix
    folder.mkdir(parents=True, exist_ok=True)
    if not is_local(run_dir):
        storage = storage_at(run_dir)
        try:
            refresh(storage, prefix, folder, {})
        except OSError as error:
            log.warning("programs of earlier attempts are not at hand, and are compiled again: %s", error)
        Mirror(storage, prefix, folder).start()
    return folder
