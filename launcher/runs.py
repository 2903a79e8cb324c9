"""The runs and sweeps under one root: listed, and found by what a user calls them."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

from launcher.address import Address, absolute, below, storage_at
from launcher.errors import LauncherError, UsageError
from launcher.layout import cell_folder, cell_id
from launcher.record import RECORD, SWEEP, read_record
from launcher.run import Run

_AT_ONCE = 16


class Entry(NamedTuple):
    """A run or a sweep."""

    id: str
    address: str
    is_sweep: bool = False


def entries(runs_root: Address) -> list[Entry]:
    """All runs and sweeps, the oldest first; without the runs of sweeps.

    Raises:
        OSError: they cannot be listed.
    """
    storage = storage_at(runs_root)

    def aged(name: str) -> tuple[float, Entry] | None:
        for file in (RECORD, SWEEP):
            with suppress(FileNotFoundError, NotADirectoryError):
                return storage.modified(f"{name}/{file}"), Entry(name, below(runs_root, name), file == SWEEP)
        return None

    names = storage.list("")
    with ThreadPoolExecutor(_AT_ONCE) as threads:  # an object store answers each after some hundredths of a second
        found = list(threads.map(aged, names)) if names else []
    return [entry for _, entry in sorted(one for one in found if one is not None)]


def run_ids(runs_root: Address) -> list[str]:
    """Ids of all runs and sweeps: a new one can have none of them. The oldest first."""
    return [one.id for one in entries(runs_root)]


def find(runs_root: Address, wanted: str | None) -> Entry:
    """The run or sweep with this id, name or unique beginning of an id; without one, the latest.

    `SWEEP.3` is the fourth run of a sweep.

    Raises:
        UsageError: none or several fit.
    """
    known = entries(runs_root)
    if not known:
        raise UsageError(f"there are no runs under {absolute(runs_root)} (see --runs-root, LAUNCHER_RUNS)")
    if wanted is None:
        return known[-1]
    fitting = _fitting(known, wanted)
    if not fitting and (cell := _cell(known, wanted)):
        return cell
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UsageError(f"'{wanted}' fits {len(fitting)} runs: {', '.join(one.id for one in fitting[-5:])}")
    raise UsageError(f"no run '{wanted}' under {absolute(runs_root)}; `launcher list` shows them")


def find_run(runs_root: Address, wanted: str | None) -> Run:
    """The same, where it must be a single run.

    Raises:
        UsageError: none or several fit, or a sweep.
        LauncherError: it is damaged, or too new.
    """
    found = find(runs_root, wanted)
    if found.is_sweep:
        raise UsageError(
            f"{found.id} is a sweep: name one of its runs, such as {found.id}.0 (`launcher status {found.id}` has all)"
        )
    return Run(storage_at(found.address))


def _fitting(known: list[Entry], wanted: str) -> list[Entry]:
    """One, if its id or name says so; else all whose ids begin like this."""
    if exact := [one for one in known if one.id == wanted]:
        return exact
    begun = [one for one in known if one.id.startswith(wanted)]
    return [one for one in begun if _name_of(one) == wanted][-1:] or begun


def _cell(known: list[Entry], wanted: str) -> Entry | None:
    name, _, index = wanted.rpartition(".")
    sweeps = [one for one in _fitting(known, name) if one.is_sweep] if name and index.isdecimal() else []
    if len(sweeps) != 1:
        return None
    (sweep,) = sweeps
    cell = Entry(cell_id(sweep.id, int(index)), below(sweep.address, cell_folder(int(index))))
    if RECORD not in storage_at(cell.address).list(""):
        raise UsageError(f"{cell.id} has not begun, or there is no such run; `launcher status {sweep.id}` lists them")
    return cell


def _name_of(entry: Entry) -> str | None:
    """None if the record cannot be read: it must not hide the others."""
    try:
        return read_record(storage_at(entry.address), SWEEP if entry.is_sweep else RECORD).name
    except (LauncherError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def open_run(runs_root: Address, run_id: str) -> Run:
    return Run(storage_at(below(runs_root, run_id)))
