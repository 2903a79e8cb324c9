"""Deleting checkpoints by hand: which are surplus, what is litter, and in which order they go."""

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.checkpoints import (
    FILE,
    FOLDER,
    BadCheckpoint,
    Retention,
    in_order,
    litter,
    rules_in_words,
    surplus,
    verify,
)
from launcher.errors import LauncherError, LedgerConflict
from launcher.events import CheckpointSaved, CheckpointsDropped
from launcher.run import Run
from launcher.state import RunState
from launcher.status import living_driver


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


def plan(run: Run, rules: Retention) -> Cleanup:
    """Find the checkpoints that no rule keeps, and litter. To be sure that one is whole it reads the newest in full.

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
    goes = _surplus(run, saved, rules)
    found = [(one.path.removesuffix(f"/{FILE}"), False) for one in goes]
    if state.driver is not None:  # else it is just being created: `run --from` writes a checkpoint before its event
        # The open attempt's ranks may have outlived their driver on another machine.
        unsure = state.open_attempt.number if state.open_attempt else len(state.attempts) + 1
        found += [(folder, True) for folder in litter(names, state, unsure)]
    return Cleanup(
        state=state,
        removals=tuple(
            Removal(path=folder, step=_step(folder), bytes=run.storage.size(folder), litter=is_litter)
            for folder, is_litter in found
        ),
        kept=tuple(one for one in saved if one not in goes),
    )


def delete(run: Run, cleanup: Cleanup, rules: Retention) -> None:
    """First the event, then the files: a crash leaves litter, not holes.

    Raises:
        LauncherError: something has happened to the run since it was looked at; nothing is deleted.
    """
    files = tuple(f"{one.path}/{FILE}" for one in cleanup.removals if not one.litter)
    if files:
        attempts = cleanup.state.attempts
        dropped = CheckpointsDropped(
            attempt=attempts[-1].number if attempts else 0, paths=files, reason=f"{rules_in_words(rules)}, by hand"
        )
        try:
            run.ledger.append(dropped, after=cleanup.state.version)
        except LedgerConflict:
            raise LauncherError(
                f"{run.id}: somebody else acts on this run just now, and nothing was deleted; look again"
            ) from None
    for one in cleanup.removals:
        run.storage.delete(one.path)


def _surplus(run: Run, saved: Sequence[CheckpointSaved], rules: Retention) -> list[CheckpointSaved]:
    """Those that no rule keeps, but for the last that is whole.

    Raises:
        LauncherError: none is: who knows what is wrong with the storage.
    """
    goes = surplus(list(saved), rules)
    if not goes:  # and nothing has to be read
        return []
    whole = next((one for one in reversed(saved) if _is_whole(run, one)), None)
    if whole is None:
        raise LauncherError(
            f"{run.id}: none of its {len(saved)} checkpoints is whole, and nothing was deleted; "
            f"`launcher checkpoints verify {run.id}` says why"
        )
    return [one for one in goes if one is not whole]


def _is_whole(run: Run, saved: CheckpointSaved) -> bool:
    try:
        verify(run.storage, saved.path)
    except BadCheckpoint:
        return False
    return True


def _step(folder: str) -> int:
    return int(folder.removeprefix(f"{FOLDER}/step-").partition("-")[0])
