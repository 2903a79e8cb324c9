"""A backend plans an attempt, starts it, finds it again, says how it goes, and stops it."""

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from launcher.policy import Seen
from launcher.run import Record, Run
from launcher.spec import JobSpec

Handle = dict[str, Any]
"""What a backend needs to find an attempt again; JSON, stored in the ledger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """One process."""

    rank: int
    node: int
    local_rank: int
    env: dict[str, str]
    """What is added to the environment of the supervisor."""
    log: str
    """Relative to the run directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One attempt, worked out in full: exactly what would be executed."""

    target: str
    run_dir: str
    attempt: int
    hosts: tuple[str, ...]
    workdir: str
    argv: tuple[str, ...]
    """The command of every rank."""
    accelerator: str
    """`gpu`, `cpu` or `xla`."""
    archive: str | None
    """The snapshot, relative to the run directory: unpacked on each machine where it is no folder yet."""
    ranks: tuple[RankPlan, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Backend(Protocol):
    """A place to run attempts."""

    def plan(self, run_dir: str, record: Record, spec: JobSpec, attempt: int) -> Plan:
        """Pure; called before each attempt and by `launcher plan`.

        Raises:
            UsageError: the spec asks for what this place does not have, or the run cannot go on with so many ranks.
        """

    def start(self, plan: Plan) -> Handle:
        """Start the attempt; called once, after its intent is in the ledger. The one effect."""

    def find(self, run_dir: str, attempt: int) -> Handle | None:
        """The attempt that was begun, if it lives; called when the ledger has an intent only."""

    def poll(self, run: Run, attempt: int, handle: Handle) -> Seen:
        """What can be seen now; called a few times a second. Phase.UNKNOWN when that is nothing."""

    def stop(self, handle: Handle) -> None:
        """Ask the ranks to save at the next step and leave. Doing it twice is fine."""

    def kill(self, handle: Handle) -> None:
        """End the attempt at once, whatever it does."""
