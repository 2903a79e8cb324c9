"""Hosts that a run is better off without, though Slurm has nothing against them. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from launcher.kinds import Kind

_OF_A_HOST = (Kind.KILLED, Kind.CRASH, Kind.MEMORY, Kind.SHARED_MEMORY, Kind.LOADER)
"""Once, it is anybody's; on the same host twice in a row, the host's."""


class Failed(NamedTuple):
    """How an attempt ended."""

    kind: Kind
    host: str | None
    """Of the first rank to fail; None where there is none."""


def faulty(
    now: Failed, before: Failed | None, failures: Iterable[Mapping[str, Any]], hosts: Sequence[str]
) -> tuple[str, ...]:
    """Those to which the end of an attempt is put down.

    Args:
        now: the attempt.
        before: the one before it, if that failed of the infrastructure, too.
        failures: what the ranks of this one recorded; `nodes`: whom they found unfit.
        hosts: of this one, by node.
    """
    if now.kind == Kind.HOSTS:
        nodes = {node for record in failures for node in record.get("nodes", ()) if node < len(hosts)}
        # If most of them are, it is nothing of theirs.
        return tuple(hosts[node] for node in sorted(nodes)) if 2 * len(nodes) <= len(hosts) else ()
    again = before is not None and before.kind in _OF_A_HOST and before.host == now.host
    return (now.host,) if now.host and now.kind in _OF_A_HOST and again else ()
