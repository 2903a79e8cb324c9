"""Deleting checkpoints by hand: which are surplus, what is litter, and in which order they go."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from launcher.checkpoints import FILE, FOLDER, BadCheckpoint, in_order, verify
from launcher.errors import LauncherError, LedgerConflict
from launcher.ledger import CheckpointSaved, CheckpointsDropped, RunState
from launcher.run import Run
from launcher.status import living_driver

_OURS = re.compile(r"step-(\d{8,})-a(\d{3,})")
"""Folders of the launcher's. A callback of the user's may save beside them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """A folder that goes."""

    path: str
    """Relative to the run directory."""
    step: int
    bytes: int
    litter: bool
    """It does not count: an interrupted save or an interrupted deletion has left it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleanup:
    """What is to be deleted, and the state of the run that this was found by."""

    state: RunState
    removals: tuple[Removal, ...]
    kept: tuple[CheckpointSaved, ...]
    """Those that still count afterwards, the furthest last."""


def plan(run: Run, keep_last: int) -> Cleanup:
    """Find all but the newest checkpoints, and litter. To be sure that one is whole it reads the newest in full.

    Raises:
        LauncherError: a living process drives the run; or no checkpoint is whole.
    """
    names = run.storage.list(FOLDER)  # before the ledger: it then knows the attempt of each of these
    state = run.ledger.refresh()
    if driver := living_driver(run, state):
        raise LauncherError(
            f"{run.id}: process {driver.pid} on {driver.host} drives this run, which deletes by itself what "
            f"checkpoint.keep_last says; `launcher logs -f {run.id}` follows it"
        )
    saved = in_order(state)
    goes = _surplus(run, saved, keep_last)
    events = [record.event for record in run.ledger.records()]
    dropped = {_folder(path) for event in events if isinstance(event, CheckpointsDropped) for path in event.paths}
    found = [(_folder(one.path), False) for one in goes]
    found += [(folder, True) for folder in litter(names, state, dropped)]
    return Cleanup(
        state=state,
        removals=tuple(
            Removal(path=folder, step=_numbers(folder)[0], bytes=run.storage.size(folder), litter=is_litter)
            for folder, is_litter in found
        ),
        kept=tuple(one for one in saved if one not in goes),
    )


def delete(run: Run, cleanup: Cleanup, keep_last: int) -> None:
    """First the event, then the files: a crash leaves litter, not holes.

    Raises:
        LauncherError: something has happened to the run since it was looked at; nothing is deleted.
    """
    files = tuple(f"{one.path}/{FILE}" for one in cleanup.removals if not one.litter)
    if files:
        attempts = cleanup.state.attempts
        dropped = CheckpointsDropped(
            attempt=attempts[-1].number if attempts else 0, paths=files, reason=f"keep_last: {keep_last}, by hand"
        )
        try:
            run.ledger.append(dropped, after=cleanup.state.version)
        except LedgerConflict:
            raise LauncherError(
                f"{run.id}: somebody else acts on this run just now, and nothing was deleted; look again"
            ) from None
    for one in cleanup.removals:
        run.storage.delete(one.path)


def litter(names: Iterable[str], state: RunState, dropped: set[str]) -> list[str]:
    """Folders that do not count and that nobody fills any more.

    Args:
        names: what lies in the folder of checkpoints.
        state: of the run; no living process drives it.
        dropped: folders whose checkpoints have counted once.
    """
    if state.driver is None:  # it is just being created: `run --from` writes a checkpoint before its event
        return []
    counting = {_folder(one.path) for one in state.checkpoints}
    # Nobody has seen the open attempt's end: its ranks may have outlived their driver on another machine.
    unsure = state.open_attempt.number if state.open_attempt else None
    folders = [f"{FOLDER}/{name}" for name in names if _OURS.fullmatch(name)]
    return [one for one in folders if one not in counting and (one in dropped or _numbers(one)[1] != unsure)]


def _surplus(run: Run, saved: Sequence[CheckpointSaved], keep_last: int) -> list[CheckpointSaved]:
    """All but the last ones and the last that is whole.

    Raises:
        LauncherError: none is: who knows what is wrong with the storage.
    """
    if len(saved) <= keep_last:  # and nothing has to be read
        return []
    whole = next((one for one in reversed(saved) if _is_whole(run, one)), None)
    if whole is None:
        raise LauncherError(
            f"{run.id}: none of its {len(saved)} checkpoints is whole, and nothing was deleted; "
            f"`launcher checkpoints verify {run.id}` says why"
        )
    return [one for one in saved[:-keep_last] if one is not whole]


def _is_whole(run: Run, saved: CheckpointSaved) -> bool:
    try:
        verify(run.storage, saved.path)
    except BadCheckpoint:
        return False
    return True


def _folder(path: str) -> str:
    return path.removesuffix(f"/{FILE}")


def _numbers(folder: str) -> tuple[int, int]:
    """Step and attempt, by the folder's name."""
    step, attempt = folder.removeprefix(f"{FOLDER}/step-").split("-a")
    return int(step), int(attempt)
