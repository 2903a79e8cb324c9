"""What the scheduler says of runs: a hint beside what their directories say. One question for all of them."""

import getpass
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from launcher.cli.terminal import clock
from launcher.errors import LauncherError
from launcher.sweep import Sweep, Waiting

if TYPE_CHECKING:
    from launcher.backends.slurm.commands import Queued

Hint = dict[str, Any]
"""`state`, `reason` and `start` (seconds since 1970, or None) of a job; `state` is UNKNOWN where there is no answer."""


class Scheduler:
    """Is asked when the first one wants to know, and then no more."""

    @cached_property
    def _queue(self) -> "list[Queued] | LauncherError":
        from launcher.backends.slurm import commands

        try:
            return commands.queued(getpass.getuser())
        except LauncherError as error:
            return error

    def hints(self, jobs: Iterable[str]) -> dict[str, Hint]:
        """By job. One that neither waits nor runs has the state GONE."""
        if not (jobs := {*jobs}):
            return {}
        if isinstance(there := self._queue, LauncherError):
            return {job: {"state": "UNKNOWN", "reason": str(there), "start": None} for job in jobs}
        found = {one.id: {"state": one.state, "reason": one.reason, "start": one.start} for one in there}
        return {job: found.get(job, {"state": "GONE", "reason": "", "start": None}) for job in jobs}

    def waiting(self, sweep: Sweep) -> Waiting:
        """Which jobs there are for runs of a sweep, for whoever asks."""

        def ask() -> dict[int, str] | None:
            from launcher.backends.slurm.arrays import arrays_in, in_queue

            if isinstance(there := self._queue, LauncherError):
                return None
            found = in_queue(sweep.id, arrays_in(sweep.ledger.records()), there)
            return {index: one.id for index, one in found.items()}

        return ask


def in_words(job: str, hint: Hint) -> str:
    parts = [f"job {job} {hint['state']}"]
    if hint["reason"] not in ("", "None"):
        parts.append(f"({hint['reason']})")
    if hint["state"] == "PENDING" and hint["start"]:
        parts.append(f"expected to start {clock(hint['start'])}")
    return " ".join(parts)
