"""What the ranks say of their hosts before training, and what of it must not differ. Pure."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from launcher.node.provenance import differences

_COMPUTE = ("Python", "launcher", "torch", "lightning", "pytorch-lightning", "torchmetrics", "numpy")
"""What all ranks must have alike; of other packages, code.drift decides."""
_NAMED = 10
"""So many differences are named, then they are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """As the first of its ranks found it."""

    node: int
    name: str
    ranks: tuple[int, ...]
    versions: Mapping[str, Any]
    """As provenance.versions gives them, the launcher's own among the packages."""
    code: str | None
    """Digest of the snapshot that it would run; None if there is none."""
    missing: str | None
    """The folder of that snapshot, if it is not there."""
    unwritable: str | None
    """Why nothing can be written to the run directory."""

    def __str__(self) -> str:
        return f"{self.name} ({named(self.ranks)})"


def hosts_of(reports: Iterable[Mapping[str, Any]]) -> list[Host]:
    """Those of which the first rank has reported; rank 0's first."""
    members: dict[int, list[int]] = defaultdict(list)
    found: dict[int, Mapping[str, Any]] = {}
    for one in sorted(reports, key=lambda report: int(report["rank"])):
        members[one["node"]].append(one["rank"])
        if one["found"]:
            found[one["node"]] = {"name": one["host"], **one["found"]}
    return [Host(node=node, ranks=tuple(members[node]), **found[node]) for node in members if node in found]


class Comparison(NamedTuple):
    """Hosts with the same fault share a sentence."""

    wrong: list[str]
    doubtful: list[str]
    """Worth a warning."""
    faulty: set[int]
    """Nodes with which something is wrong."""


def compare(hosts: Sequence[Host], seen: Collection[int], run_dir: str, drift: Literal["warn", "fail"]) -> Comparison:
    """What is wrong with hosts that are to train together.

    Args:
        hosts: rank 0's first: the others are held against it.
        seen: nodes of whose writing to the run directory rank 0 saw something.
    """
    first = hosts[0]
    faulty: dict[str, list[Host]] = defaultdict(list)
    doubtful: dict[str, list[Host]] = defaultdict(list)
    for host in hosts:
        for fault in _faults(host, first, host.node in seen, run_dir):
            faulty[fault].append(host)
        grave, slight = _other_versions(first, host, drift)
        if grave:
            said = f"other versions than on {first.name}: {_counted(grave)}; have all hosts use the same installation"
            faulty[said].append(host)
        if slight:
            doubtful[f"other versions than on {first.name}: {_counted(slight)}"].append(host)
    nodes = {host.node for of_fault in faulty.values() for host in of_fault}
    return Comparison(_sentences(faulty), _sentences(doubtful), nodes)


def _faults(host: Host, first: Host, seen: bool, run_dir: str) -> Iterator[str]:
    if host.unwritable:
        yield f"cannot write to {run_dir}: {host.unwritable}; see how it is mounted there, and whose it is"
    elif not seen:
        yield (
            f"{first.name} does not see what was written there to {run_dir}: it is not the same storage; choose a "
            "place that all hosts share with --runs-root or LAUNCHER_RUNS"
        )
    if host.code != first.code:
        yield f"would run the code {host.code}, {first.name} {first.code}: the run directory is not seen the same"
    elif host.missing:
        yield f"the code is not there: no {host.missing}; see how it is mounted there"


def _other_versions(first: Host, host: Host, drift: str) -> tuple[list[str], list[str]]:
    grave: list[str] = []
    slight: list[str] = []
    for difference in differences(first.versions, host.versions):
        matters = drift == "fail" or difference.partition(" ")[0] in _COMPUTE
        (grave if matters else slight).append(difference)
    return grave, slight


def _counted(found: Sequence[str]) -> str:
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return ", ".join(found[:_NAMED]) + more


def _sentences(found: Mapping[str, Sequence[Host]]) -> list[str]:
    return [f"{', '.join(map(str, hosts))}: {fault}" for fault, hosts in found.items()]


def named(ranks: Iterable[int]) -> str:
    """`rank 3`; `ranks 2-5`; `ranks 2-3, 7`."""
    stretches: list[list[int]] = []
    for rank in sorted(ranks):
        if stretches and rank == stretches[-1][-1] + 1:
            stretches[-1].append(rank)
        else:
            stretches.append([rank])
    text = ", ".join(str(one[0]) if len(one) == 1 else f"{one[0]}-{one[-1]}" for one in stretches)
    return f"rank{'' if text.isdigit() else 's'} {text}"
