"""What the scheduler says of runs: a hint beside what their directories say. One question for all of them."""

import getpass
from typing import Any

from launcher.cli.terminal import clock
from launcher.errors import LauncherError

Hint = dict[str, Any]
"""`state`, `reason` and `start` (seconds since 1970, or None) of a job; `state` is UNKNOWN where there is no answer."""


def hints(jobs: set[str]) -> dict[str, Hint]:
    """By job. One that neither waits nor runs has the state GONE."""
    if not jobs:
        return {}
    from launcher.backends.slurm import commands

    try:
        there = commands.queued(getpass.getuser())
    except LauncherError as error:
        return {job: {"state": "UNKNOWN", "reason": str(error), "start": None} for job in jobs}
    found = {one.id: {"state": one.state, "reason": one.reason, "start": one.start} for one in there}
    return {job: found.get(job, {"state": "GONE", "reason": "", "start": None}) for job in jobs}


def in_words(job: str, hint: Hint) -> str:
    parts = [f"job {job} {hint['state']}"]
    if hint["reason"] not in ("", "None"):
        parts.append(f"({hint['reason']})")
    if hint["state"] == "PENDING" and hint["start"]:
        parts.append(f"expected to start {clock(hint['start'])}")
    return " ".join(parts)
