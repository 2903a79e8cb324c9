"""Whether there is room for the checkpoints that are to come."""

import logging
import shutil

from launcher.address import is_local
from launcher.checkpoints import in_order
from launcher.errors import LauncherError
from launcher.run import Run

log = logging.getLogger(__name__)


class NoRoom(LauncherError):
    """The next checkpoint would not fit."""


def check_room(run: Run, keep_last: int) -> None:
    """Whether the checkpoints that are to come fit, if the last one tells how large they are. Quotas are not seen.

    Raises:
        NoRoom: not even the next one fits.
    """
    checkpoints = in_order(run.ledger.refresh())
    if not checkpoints or not is_local(run.storage.root):
        return
    size, free = checkpoints[-1].bytes, shutil.disk_usage(run.storage.root).free
    to_come = max(1, keep_last + 1 - len(checkpoints))  # one more than is kept: it is pruned after the next is written
    said = f"{run.storage.root} has room for {free / 1e9:.1f} GB, and a checkpoint takes {size / 1e9:.1f} GB"
    if free < size:
        raise NoRoom(f"{said}: make room, or have the run elsewhere")
    if free < to_come * size:
        log.warning("%s: %d more are to be kept; make room, or lower checkpoint.keep_last", said, to_come)
