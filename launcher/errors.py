"""Every error the launcher raises on purpose, and the exit codes of the command line.

* LauncherError          printed without a traceback; exit 1
  - UsageError           the call is wrong; exit 64
    - SpecError          the job spec is wrong: every problem at once, each with file, line and key
  - LedgerConflict       another process appended the event first: read again, decide again
  - NotTheDriver         another living process drives this run
  - Fenced               a newer attempt of this run exists: whoever sees this must leave
  - NotSaved             the last checkpoint of an attempt could not be written
  - FormatTooNew         the run directory was written by a newer launcher
"""

from collections.abc import Iterable
from typing import NamedTuple

FINISHED = 0
"""The run finished, or was accepted when detached."""
FAILED = 1
"""The run failed; `launcher why` says of what."""
USAGE = 64
"""The spec or the call is wrong; nothing was started (EX_USAGE)."""
RESUMABLE = 75
"""Checkpointed and resumable, also after Ctrl-C (EX_TEMPFAIL)."""
INTERRUPTED = 130
"""Stopped at once, without saving (128 + SIGINT)."""


class LauncherError(Exception):
    """Something the user can act on. The message says what, where, and what to do next."""

    exit_code = FAILED


class UsageError(LauncherError):
    """The call is wrong; nothing was started."""

    exit_code = USAGE


class Problem(NamedTuple):
    """One thing that is wrong with a job spec."""

    where: str
    """`file:line` or, for an override, `--set key=value`."""
    key: str
    """Dotted path of the key, "" for the file as a whole."""
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in self if part)


class SpecError(UsageError):
    """The job spec is wrong; carries all problems that were found."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class LedgerConflict(LauncherError):
    """Another process appended an event first. Read again and decide again."""


class NotTheDriver(LauncherError):
    """Another living process drives this run."""


class Fenced(LauncherError):
    """A newer attempt of this run exists; the older one must leave without writing."""


class NotSaved(LauncherError):
    """The checkpoint with which an attempt was to leave could not be written; the run goes on from the one before."""


class FormatTooNew(LauncherError):
    """The run directory was written by a newer launcher."""
