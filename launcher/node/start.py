"""Where an attempt begins: rank 0 reads and chooses, all others wait for its word in the ledger. No torch."""

import errno
import logging
import socket
import time
from contextlib import suppress

from launcher.checkpoints import FOLDER, BadCheckpoint, in_order, litter, newest_attempt, set_aside, verified
from launcher.errors import LauncherError
from launcher.events import AttemptResumes
from launcher.node.records import Records, read_records
from launcher.run import Run
from launcher.state import Attempt
from launcher.storage import Unreachable

WAIT_S = 600.0
"""Rank 0 reads the whole checkpoint before it speaks: 600 s are 300 GB at 500 MB/s."""

log = logging.getLogger(__name__)


def choose_start(run: Run, attempt: int) -> Records:
    """Read the newest checkpoint that is whole, set aside those that are not, and tell all ranks.

    Returns:
        What it holds; nothing, where there is none.

    Raises:
        Fenced: a newer attempt has begun.
    """
    names = run.storage.list(FOLDER)
    state = run.ledger.refresh()
    records: Records = {}
    for saved in reversed(in_order(state)):
        try:
            _, records = verified(run.storage, saved.path, read_records)
        except BadCheckpoint as bad:
            log.warning("checkpoint of step %d is bad and was set aside: %s (%s)", saved.step, bad, saved.path)
            set_aside(run, attempt, saved.path, str(bad))
        else:
            log.info("resuming from step %d (%s)", saved.step, saved.path)
            event = AttemptResumes(
                attempt=attempt,
                step=saved.step,
                path=saved.path,
                complete=saved.complete,
                changed=saved.attempt == 0 or (state.spec is not None and saved.attempt <= state.changed_after),
            )
            break
    else:
        log.info("starting from the beginning")
        event = AttemptResumes(attempt=attempt, step=0, path=None)
    run.ledger.append_while(newest_attempt(attempt), event)
    for folder in litter(names, state, attempt):
        with suppress(OSError):  # it costs room, no more
            run.storage.delete(folder)
    return records


def read_start(run: Run, path: str) -> Records:
    """On the other ranks, what rank 0 has chosen.

    Raises:
        Unreachable: this host does not see what rank 0 has verified.
    """
    try:
        return verified(run.storage, path, read_records)[1]
    except BadCheckpoint as bad:
        raise Unreachable(
            errno.EIO,
            f"{run.storage.root}/{path}: rank 0 has read it whole, {socket.gethostname()} has not ({bad}); look "
            "whether that storage is mounted there, and the same",
        ) from None


def await_start(run: Run, number: int) -> Attempt:
    """The attempt, once rank 0 has chosen where it begins.

    Raises:
        Fenced: a newer attempt has begun.
        LauncherError: rank 0 said nothing for WAIT_S.
    """
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        state = run.ledger.refresh()
        newest_attempt(number)(state)
        attempt = next((one for one in state.attempts if one.number == number), None)
        if attempt and attempt.first_step is not None:
            return attempt
        time.sleep(run.storage.pause_s)
    raise LauncherError(f"rank 0 of attempt {number} did not say within {WAIT_S:g} s where to begin; see its log")
