"""The job arrays of a sweep: which runs go together in one, and which of them Slurm's queue has. Pure."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from launcher.backends.slurm.commands import Queued
from launcher.backends.slurm.job import comment
from launcher.events import Record, Submitted, Submitting

MAX_ARRAY_SIZE = 1001
"""Slurm's own, where nobody knows the cluster's."""


class Element(NamedTuple):
    """Of an array: a run of a sweep."""

    cell: int
    submission: int
    """The one of the run that this will be."""


def elements_of(job: str, count: int) -> list[str]:
    """Ids, one a run: a single one is a plain job, since submitit makes no array of one."""
    return [f"{job}_{task}" for task in range(count)] if count > 1 else [job]


class Due(NamedTuple):
    """A run that is to be submitted."""

    element: Element
    spec: Mapping[str, Any]
    """Its resolved spec."""


def together(due: Iterable[Due], longest: int = MAX_ARRAY_SIZE) -> list[list[Due]]:
    """The runs of each array: those with the same options of sbatch, and not more of them than `longest`."""
    groups: dict[str, list[Due]] = {}
    for one in due:
        groups.setdefault(json.dumps([one.spec.get("resources"), one.spec.get("slurm")]), []).append(one)
    return [group[start : start + longest] for group in groups.values() for start in range(0, len(group), longest)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Array:
    """One submission of a sweep: an array, or the plain job of a single run."""

    number: int
    cells: tuple[int, ...]
    """Which runs, by the order of its elements."""
    job: str | None = None
    """None: nobody has written down whether Slurm took it."""


def arrays_in(records: Iterable[Record]) -> list[Array]:
    """Those that the ledger of a sweep names, the oldest first."""
    found: dict[int, Array] = {}
    for _, _, event in records:
        match event:
            case Submitting():
                found[event.submission] = Array(number=event.submission, cells=event.cells)
            case Submitted():
                found[event.submission] = replace(found[event.submission], job=event.job)
    return [*found.values()]


def in_queue(sweep_id: str, arrays: Iterable[Array], queue: Iterable[Queued]) -> dict[int, Queued]:
    """The elements that wait or run, by the index of their run; of an array without a job, by their comments."""
    by_job = {array.job: array for array in arrays if array.job}
    by_comment = {comment(sweep_id, array.number): array for array in arrays if not array.job}
    found = {}
    for one in queue:
        job, _, task = one.id.partition("_")
        if array := by_job.get(job) or by_comment.get(one.comment):
            found[array.cells[int(task or 0)]] = one
    return found
