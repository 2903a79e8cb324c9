"""Why an attempt ended: the first cause, not its echoes. Pure."""

import signal
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from launcher.policy import Cause

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
"""What schedulers send before they take the machine away (SLURM: both, as configured; TPU VMs: SIGTERM)."""


def attempt_cause(
    exits: Mapping[int, int],
    failures: Sequence[Mapping[str, Any]],
    *,
    ended_by_us: Collection[int],
    left: str | None,
) -> tuple[Cause, str]:
    """Cause and reason of an attempt that ended without finished.json.

    Args:
        exits: exit code of each rank, negative for a signal.
        failures: what the ranks recorded of their exceptions, the earliest first.
        ended_by_us: ranks that were killed because another one had ended.
        left: the signal at which all ranks agreed to save and leave, if they did.
    """
    for rank, code in sorted(exits.items()):
        if code < 0 and rank not in ended_by_us:
            name = _signal_name(-code)
            if -code in STOP_SIGNALS:  # before the rank was ready to save
                return Cause.PREEMPTED, f"rank {rank} was ended by {name}"
            hint = "; by the out-of-memory killer?" if -code == signal.SIGKILL else ""
            return Cause.INFRA, f"rank {rank} was killed by {name}{hint}"
    errors = [record for record in failures if record["kind"] == "error"]
    if errors:
        return Cause.ERROR, _sentence(errors[0])
    if failures:
        return Cause.INFRA, _sentence(failures[0])
    for rank, code in sorted(exits.items()):
        if code > 0:
            return Cause.ERROR, f"rank {rank} exited with code {code} and left no traceback; see its log"
    if left:
        return Cause.PREEMPTED, f"saved and left at {left}"
    return Cause.INFRA, "all ranks left before the end of training without saying why"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"


def _sentence(failure: Mapping[str, Any]) -> str:
    first_line = (failure["message"] or "").strip().partition("\n")[0]
    return f"rank {failure['rank']}: {failure['type']}: {first_line}"
