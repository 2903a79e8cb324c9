"""A sweep: several runs of one spec in one folder, which differ in some values; what is done of them, and the best.

`sweep.json` is written once, and has all that its runs have in common and all that they differ in. Each is a run like
any other, made in the folder of its number when it begins. The ledger of the sweep itself knows who drives it, and
whether it was cancelled.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from launcher.address import Address, below, storage_at
from launcher.driver import is_alive, this_process
from launcher.errors import FormatTooNew, LauncherError, UsageError
from launcher.layout import cell_folder, cell_id
from launcher.ledger import Ledger
from launcher.record import RECORD, SWEEP, Record, check_id, read_record, write_record
from launcher.run import Run
from launcher.status import glance, living_driver
from launcher.storage import Storage, Unreachable

_AT_ONCE = 16

Waiting = Callable[[], Mapping[int, str] | None]
"""The scheduler's jobs for runs that have not begun, by index; None where it does not say."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a sweep, begun or not."""

    index: int
    values: Mapping[str, Any]
    """In place of the spec's own, by dotted key."""


class Sweep:
    """An existing sweep."""

    def __init__(self, storage: Storage) -> None:
        """Opens what `create_sweep` made.

        Raises:
            FormatTooNew: a newer launcher made it.
            LauncherError: sweep.json cannot be read, or is not what a launcher wrote.
            Unreachable: the storage does not answer.
        """
        self.storage = storage
        try:
            self.record = read_record(storage, SWEEP)
            """What all runs have in common; its id is that of the sweep."""
            self.cells = tuple(Cell(*one) for one in enumerate(json.loads(storage.read(SWEEP))["cells"]))
        except (Unreachable, FormatTooNew):
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"{type(error).__name__}: {error}"
            raise LauncherError(f"{storage.root}/{SWEEP}: damaged, or not written by a launcher ({problem})") from error
        self.ledger = Ledger(storage)

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def metric(self) -> str | None:
        """What the runs are compared by."""
        metric: str | None = self._section.get("metric") or self.record.spec.get("checkpoint", {}).get("monitor")
        return metric

    @property
    def mode(self) -> str:
        """min or max: which values of the metric are better."""
        section = self._section if self._section.get("metric") else self.record.spec.get("checkpoint", {})
        return str(section.get("mode", "min"))

    @property
    def max_parallel(self) -> int:
        """How many runs one machine does at the same time."""
        return int(self._section.get("max_parallel", 1))

    @property
    def _section(self) -> Mapping[str, Any]:
        section: Mapping[str, Any] = self.record.spec["sweep"]
        return section

    def cell(self, index: int) -> Run | None:
        """None if it has not begun. Raises as Run does."""
        try:
            return Run(storage_at(below(self.storage.root, cell_folder(index))))
        except UsageError:
            return None


def create_sweep(runs_root: Address, record: Record, cells: Iterable[Mapping[str, Any]]) -> Sweep:
    """Raises UsageError if the id is taken or no good as a folder's name, LauncherError if it cannot be written."""
    check_id(record.id)
    storage = storage_at(below(runs_root, record.id))
    write_record(storage, SWEEP, record, cells=[dict(values) for values in cells])
    return Sweep(storage)


def create_cell(sweep: Sweep, cell: Cell, spec: Mapping[str, Any], ranks: int) -> Run:
    """The run's directory; if somebody else is faster, theirs.

    Args:
        spec: the resolved spec of this run.
        ranks: its world size.
    """
    code = sweep.record.code
    record = replace(
        sweep.record,
        id=cell_id(sweep.id, cell.index),
        spec=dict(spec),
        overrides=cell_overrides(sweep.record.overrides, cell.values),
        ranks=ranks,
        code=replace(code, shared=True) if code else None,
    )
    storage = storage_at(below(sweep.storage.root, cell_folder(cell.index)))
    with suppress(UsageError):
        write_record(storage, RECORD, record)
    return Run(storage)


def cell_overrides(overrides: Iterable[str], values: Mapping[str, Any]) -> tuple[str, ...]:
    """What --set would have to say for the spec to be that of one run. Pure."""
    own = (f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items())
    return (*overrides, *own, "sweep=null")


def missing(sweep: Sweep, *, failed: bool = False) -> list[Cell]:
    """Runs that have not come to an end, and that nobody drives now; `failed`: those that failed too."""
    found = [one for one in lines(sweep) if one["state"] in unfinished(failed=failed)]
    return [sweep.cells[one["index"]] for one in found if one["state"] != "queued" or not _driven(sweep, one["index"])]


def unfinished(*, failed: bool) -> set[str]:
    """States of runs that are to go on if nobody drives them, or is about to; `failed`: those that failed too."""
    return {"queued", "stopped", "cancelled", "unknown", *(["failed"] if failed else [])}


def _driven(sweep: Sweep, index: int) -> bool:
    """Whether somebody is about to start it."""
    run = sweep.cell(index)
    return run is not None and living_driver(run, run.ledger.refresh()) is not None


def lines(sweep: Sweep, waiting: Waiting = lambda: None) -> list[dict[str, Any]]:
    """One for each run: what it differs in, its state, its metrics as they were logged last.

    Args:
        waiting: is asked if something waits.
    """
    begun = {*sweep.storage.list("")}
    state = "cancelled" if sweep.ledger.refresh().cancelling else "queued"
    not_begun = {"state": state, "reason": "", "step": 0, "epoch": 0, "attempts": 0, "metrics": {}, "job": None}

    def of(cell: Cell) -> dict[str, Any]:
        return {"index": cell.index, "run": cell_id(sweep.id, cell.index), "values": dict(cell.values)}

    def line(cell: Cell) -> dict[str, Any]:
        known = of(cell)
        try:
            run = sweep.cell(cell.index)
            return known | (not_begun if run is None else glance(run))
        except Unreachable:
            raise
        except (LauncherError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return known | not_begun | {"state": "unknown", "reason": str(error)}

    with ThreadPoolExecutor(_AT_ONCE) as threads:  # an object store answers each after some hundredths of a second
        seen = {
            one["index"]: one for one in threads.map(line, [c for c in sweep.cells if cell_folder(c.index) in begun])
        }
    found = [seen.get(cell.index) or of(cell) | not_begun for cell in sweep.cells]
    if sweep.record.site is None or all(one["state"] != "queued" or one["job"] for one in found):
        return found
    jobs = waiting()
    return found if jobs is None else [_with_job(one, jobs) for one in found]


def _with_job(line: dict[str, Any], jobs: Mapping[int, str]) -> dict[str, Any]:
    """Of a run that has not begun, or begins again, what is known about its job."""
    if line["state"] != "queued" or line["job"]:
        return line
    job = jobs.get(line["index"])
    return {**line, "job": job, "reason": f"job {job} is to start" if job else "no job waits for it"}


def summary(sweep: Sweep, waiting: Waiting = lambda: None) -> dict[str, Any]:
    """The answer of `launcher status --json` for a sweep."""
    found = lines(sweep, waiting)
    return {
        **_common(sweep, found),
        "metric": sweep.metric,
        "mode": sweep.mode,
        "best": best(found, sweep.metric, sweep.mode),
        "cells": found,
        "run_dir": sweep.storage.root,
    }


def sweep_brief(sweep: Sweep, waiting: Waiting = lambda: None) -> dict[str, Any]:
    """One line of `launcher list`."""
    found = lines(sweep, waiting)
    common = _common(sweep, found)
    return {**common, "step": None, "epoch": None, "attempts": sum(one["attempts"] for one in found), "job": None}


def _common(sweep: Sweep, found: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    counts = dict(Counter(one["state"] for one in found))
    jobs = sum(one["state"] == "queued" and one["job"] is not None for one in found)
    state = sweep.ledger.refresh()
    driven = state.driver is not None and state.driver != this_process() and is_alive(state.driver, sweep.storage)
    return {
        "run": sweep.id,
        "name": sweep.record.name,
        "target": sweep.record.target,
        "state": overall(counts, driven=driven, jobs=jobs),
        "reason": counted(counts) + (f"; {jobs} in the scheduler's queue" if jobs else ""),
        "counts": counts,
        "created": sweep.record.created,
    }


def overall(counts: Mapping[str, int], *, driven: bool, jobs: int = 0) -> str:
    """The state of a sweep from those of its runs. Pure.

    Args:
        counts: of runs, by state.
        driven: a process lives that begins one after the other.
        jobs: so many of those that are queued wait for a job.
    """
    if counts.get("running") or driven:
        return "running"
    if {*counts} == {"queued"} or jobs:
        return "queued"
    for state in ("unknown", "stopped", "queued", "cancelled", "failed"):
        if counts.get(state):
            return "stopped" if state == "queued" else state
    return "finished"


def counted(counts: Mapping[str, int]) -> str:
    """`3 of 12 finished, 1 failed`. Pure."""
    others = [f"{number} {state}" for state, number in sorted(counts.items()) if state != "finished"]
    return ", ".join([f"{counts.get('finished', 0)} of {sum(counts.values())} finished", *others])


def best(found: Iterable[Mapping[str, Any]], metric: str | None, mode: str) -> dict[str, Any] | None:
    """Of the runs that have finished, the one with the best metric; None if there is none. Pure."""
    sign = 1 if mode == "min" else -1
    ended = [
        (sign * value, one["index"], one)
        for one in found
        if one["state"] == "finished" and (value := one["metrics"].get(metric)) is not None and math.isfinite(value)
    ]
    if not ended:
        return None
    _, index, one = min(ended, key=lambda entry: entry[:2])
    return {"index": index, "run": one["run"], "values": one["values"], "value": one["metrics"][metric]}
