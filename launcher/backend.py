"""A backend plans an attempt, starts it, finds it again, says how it goes, and stops it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from launcher.policy import Cause, Seen
from launcher.record import Record
from launcher.run import Run
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
    """What is added to the environment that is common to all ranks."""
    log: str
    """Relative to the run directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One attempt, worked out in full: exactly what would be executed."""

    target: str
    run_dir: str
    attempt: int
    hosts: tuple[str, ...]
    """That it runs on."""
    idle: tuple[str, ...] = ()
    """Hosts of the allocation that it leaves idle: with them, ranks could not share the global batch."""
    workdir: str
    env: dict[str, str]
    """What is added to the environment of the supervisor for all ranks."""
    launch: tuple[str, ...]
    """The command that starts all ranks at once, each by `argv`; empty where each is started by itself."""
    argv: tuple[str, ...]
    """The command of every rank."""
    accelerator: str
    """`gpu`, `cpu` or `xla`."""
    archive: str | None
    """The snapshot's address: unpacked on each machine where it is no folder yet."""
    ranks: tuple[RankPlan, ...]

    @property
    def tasks_per_node(self) -> int:
        return sum(rank.node == 0 for rank in self.ranks)

    @property
    def device(self) -> str:
        """Of the accelerator, as `exactness.guarantee` has it: with XLA, `tpu`, or `xla` on the CPU."""
        return "tpu" if self.env.get("PJRT_DEVICE") == "TPU" else self.accelerator

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The allocation that a supervisor stands in is over, or is about to be."""

    cause: Cause
    """As of an attempt that has run until then."""
    reason: str
    comes_back: bool = False
    """The scheduler starts the supervisor again by itself."""


class Allocation(Protocol):
    """What a scheduler granted: several attempts may run in it, one after the other."""

    def ending(self) -> Ending | None:
        """Why it ends; None while it goes on. Called a few times a second."""

    def stops_soon(self) -> bool:
        """Whether the time has come to have the ranks save and leave."""

    def unfit(self, spec: JobSpec, faulty: Sequence[str], excluded: Sequence[str]) -> Ending | None:
        """Why it is left though it goes on, after an attempt has failed of its hosts; None if it is not.

        Args:
            faulty: to which that is put down.
            excluded: all hosts that the next allocation would be without.
        """

    def renew(self, run: Run, spec: JobSpec) -> None:
        """Have the run go on in another one, or in this one again; called once, when no attempt runs.

        Raises:
            LauncherError: the scheduler refuses.
        """


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
